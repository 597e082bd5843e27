"""Context maps added to samples that lack them: of this system, of the older generator, and along the axes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from block_runs import make
from numpy.typing import NDArray

from add_large_scale import main
from bind_core.config import DatasetConfig
from bind_core.halos import halos_in, read_catalogue
from bind_core.inference import read_particles
from bind_core.legacy import AXES
from bind_core.maps import input_maps
from bind_core.snapshot import Component
from bind_core.suite import find_simulation
from storage.archives import encode_arrays
from storage.context_maps import add_context_maps
from storage.files import sha256_of
from storage.mock_suite import MockSuite, write_mock_suite

pytestmark = pytest.mark.mpi

PROGRAM = Path(__file__).parents[1] / "add_large_scale.py"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    return write_mock_suite(
        tmp_path_factory.mktemp("suite"), simulations=2, particles_per_side=16, halos_per_simulation=2
    )


def config_for(suite: MockSuite, root: Path, **settings: object) -> DatasetConfig:
    bases = {"dmo_base": suite.dmo_base, "hydro_base": suite.hydro_base, "catalogue_base": suite.catalogue_base}
    return DatasetConfig(**bases, output_root=root, **({"strata": ({"rotations": 2},), "resolution": 16} | settings))


def bases(suite: MockSuite) -> list[str]:
    return ["--nbody_base", str(suite.dmo_base), "--fof_nbody_base", str(suite.catalogue_base)]


def digests(root: Path) -> dict[Path, str]:
    return {path: sha256_of(path) for path in sorted(root.rglob("sim_*/*.npz"))}


def without(path: Path, *keys: str) -> None:
    """Take arrays out of a file."""
    with np.load(path) as sample:
        path.write_bytes(encode_arrays({key: array for key, array in sample.items() if key not in keys}))


def loaded(path: Path) -> dict[str, NDArray]:
    with np.load(path) as sample:
        return dict(sample)


def test_samples_get_back_what_was_removed(suite: MockSuite, tmp_path: Path) -> None:
    """From the recorded rotations, files come out as they were, to the byte; a second run finds nothing to do."""
    make(config_for(suite, tmp_path))
    before = digests(tmp_path)
    for path in list(before)[::2]:
        without(path, "large_scale")
    assert main(["--samples", str(tmp_path), *bases(suite)]) == 0
    assert digests(tmp_path) == before
    times = {path: path.stat().st_mtime_ns for path in before}
    assert main(["--samples", str(tmp_path), *bases(suite), "--rebuild"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == times


def test_recorded_samples_keep_to_the_manifest(suite: MockSuite, tmp_path: Path, capsys) -> None:
    """Other sizes would make other samples than were recorded: they are refused, and no file changes."""
    make(config_for(suite, tmp_path))
    before = digests(tmp_path)
    assert main(["--samples", str(tmp_path), *bases(suite), "--scales", "12.5", "25"]) == 1
    assert "is not the sample that the manifest has recorded" in capsys.readouterr().err
    assert digests(tmp_path) == before


def older_tree(suite: MockSuite, root: Path) -> dict[Path, NDArray]:
    """Write samples as the older generator named them, without rotation and context; return the context expected."""
    config = config_for(suite, root, rotations="euler")
    expected = {}
    for name in suite.names:
        files = find_simulation(name, config)
        particles = read_particles(Component.DMO, files.dmo.files, config)
        number = int(name.rpartition("_")[2])
        for halo in halos_in(read_catalogue(files.catalogue.files), config.strata[0]):
            for rotation in range(2):
                random = np.random.RandomState(number * 1000 + halo.ordinal * 100 + rotation)
                a, b, c = random.uniform(0, 2 * np.pi, 3)
                about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
                about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
                about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
                frame = about_z @ about_y @ about_x
                maps = input_maps(particles, np.array(halo.center), frame, config.windows, config.backend)
                path = root / "train" / f"sim_{number}" / f"sim_{number}_halo_{halo.ordinal}_rot_{rotation}.npz"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez(path, condition=maps[0], target=np.zeros((3, 16, 16), np.float32), halo_mass=halo.mass)
                expected[path] = maps[1:]
    return expected


def test_older_samples_are_oriented_by_their_seeds(suite: MockSuite, tmp_path: Path) -> None:
    """Without a recorded rotation or centre, both follow from the file's name, as the older generator drew them."""
    expected = older_tree(suite, tmp_path)
    sizes = ["--scales", "12.5", "25", "50"]
    assert main(["--samples", str(tmp_path), *bases(suite), *sizes]) == 0
    for path, maps in expected.items():
        found = loaded(path)
        np.testing.assert_allclose(found["large_scale"], maps, rtol=1e-5, atol=1e-5 * maps.max())
        assert found["target"].shape == (3, 16, 16)


@pytest.mark.parametrize("axes", list(AXES))
def test_aligned_samples_come_from_snapshot_or_projection(suite: MockSuite, tmp_path: Path, axes: str) -> None:
    """Along an axis, maps from the snapshot are projections along it; those cut out of a projected box agree."""
    config = config_for(suite, tmp_path, resolution=32)
    files = find_simulation("SB35_0", config)
    particles = read_particles(Component.DMO, files.dmo.files, config)
    halo = halos_in(read_catalogue(files.catalogue.files), config.strata[0])[0]
    pixel = config.windows.pixel_size
    center = np.round(np.array(halo.center) / pixel) * pixel  # on a node, where both ways are exact
    path = tmp_path / "test" / "sim_0" / f"halo_0_{axes}.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, condition=np.zeros((32, 32), np.float32), halo_center=center)
    assert add_context_maps(config).problems == []
    from_snapshot = loaded(path)["large_scale"]
    expected = input_maps(particles, center, AXES[axes], config.windows, config.backend)[1:]
    assert np.array_equal(from_snapshot, expected)

    columns = {"xy": (0, 1), "xz": (0, 2), "yz": (1, 2)}[axes]
    n = round(50 / pixel)
    box = np.zeros((n, n))
    scaled = particles.positions[:, columns].astype(np.float64) / pixel
    lower = np.floor(scaled).astype(int)
    upper = scaled - lower
    masses = np.broadcast_to(particles.masses, len(scaled))
    for i in (0, 1):
        for j in (0, 1):
            share = (upper[:, 0] if i else 1 - upper[:, 0]) * (upper[:, 1] if j else 1 - upper[:, 1])
            np.add.at(box, ((lower[:, 0] + i) % n, (lower[:, 1] + j) % n), masses * share)
    folder = tmp_path / "projections"
    folder.mkdir()
    np.savez(folder / f"projections_{axes}_0.npz", dm=box)
    without(path, "large_scale")
    assert add_context_maps(config, projections=folder).problems == []
    cut = loaded(path)["large_scale"]
    for index in (0, 1):
        np.testing.assert_allclose(cut[index], from_snapshot[index], rtol=2e-3, atol=1e-4 * cut[index].max())
    # The widest window is the box itself; only its edge, which the other projection leaves open, may differ.
    inner = np.s_[2, 1:-1, 1:-1]
    np.testing.assert_allclose(cut[inner], from_snapshot[inner], rtol=2e-3, atol=1e-4 * cut[2].max())


def test_a_killed_run_goes_on(suite: MockSuite, tmp_path: Path) -> None:
    """After SIGKILL in the middle, every file is whole, and the rest is done by the next run."""
    make(config_for(suite, tmp_path))
    before = digests(tmp_path)
    for path in before:
        without(path, "large_scale")
    stripped = digests(tmp_path)
    program = f"""
import os, signal, sys
import storage.context_maps as context_maps
write, written = context_maps.write_bytes, []
def dying(path, content):
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(path)
    write(path, content)
context_maps.write_bytes = dying
sys.path.insert(0, {str(PROGRAM.parent)!r})
from add_large_scale import main
main({["--samples", str(tmp_path), *bases(suite), "--threads", "1"]!r})
"""
    killed = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(PROGRAM.parent)}, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL
    after = digests(tmp_path)
    assert sum(after[path] == before[path] for path in before) == 3
    assert all(after[path] in (before[path], stripped[path]) for path in before)
    again = subprocess.run([sys.executable, PROGRAM, "--samples", tmp_path, *bases(suite)], timeout=300)
    assert again.returncode == 0
    assert digests(tmp_path) == before


def test_what_cannot_be_done_is_said(suite: MockSuite, tmp_path: Path, capsys) -> None:
    """Missing folders, samples, haloes, rotations and projections each end with status 1 and what to do."""

    def said(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        return capsys.readouterr().err

    assert "--samples" in said(*bases(suite))
    assert "--nbody_base" in said("--samples", tmp_path)
    assert "There are no samples" in said("--samples", tmp_path, *bases(suite))
    older = tmp_path / "train" / "sim_0" / "sim_0_halo_70_rot_0.npz"
    older.parent.mkdir(parents=True)
    np.savez(older, condition=np.zeros((128, 128), np.float32))
    assert "no halo with position among its 2 haloes 70" in said("--samples", tmp_path, *bases(suite))
    older = older.rename(older.with_name("sim_0_halo_1_rot_0.npz"))
    assert "no key 'rotation'" in said("--samples", tmp_path, *bases(suite), "--rotation", "recorded")
    older.write_bytes(b"no archive")
    assert "is not a whole .npz" in said("--samples", tmp_path, *bases(suite))
    older.unlink()
    aligned = older.with_name("halo_0_xz.npz")
    np.savez(aligned, condition=np.zeros((128, 128), np.float32))
    assert "projections_xz_0.npz" in said("--samples", tmp_path, *bases(suite), "--projections", tmp_path)
