"""An older data set taken over: what its samples become, how they compare, and what is left out."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from block_runs import manifest_of, record, refresh, workload_of
from block_runs import project as projected
from numpy.typing import NDArray
from older_generator import drawn_frame, nested_maps, particles, write_older_dataset

from bind_core.config import DatasetConfig
from bind_core.errors import ConfigurationError
from bind_core.halos import read_catalogue
from bind_core.rotations import euler_matrix
from bind_core.suite import find_simulation
from storage.archives import encode_arrays
from storage.files import sha256_of
from storage.import_check import TOLERANCE, MapComparison, Verdict, compare_maps
from storage.import_report import ImportReport
from storage.importing import import_samples, older_settings
from storage.mock_suite import MockSuite, write_mock_suite
from storage.older_samples import survey
from storage.workload import Reason

pytestmark = pytest.mark.mpi

SIMULATIONS = (1, 3, 9)
"""Of a suite of ten, of which number 3 is for testing."""
NPIX = 32
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Older:
    """An older data set, and the suite that it was made from."""

    suite: MockSuite
    source: Path
    root: Path
    """Where it is imported to."""

    def settings(self, **given: Any) -> dict[str, Any]:
        bases = {name: getattr(self.suite, name) for name in ("dmo_base", "hydro_base", "catalogue_base")}
        return bases | {"output_root": self.root, "resolution": NPIX, "simulations_per_block": 2} | given

    def config(self, mass_threshold: float | None = None, **given: Any) -> DatasetConfig:
        settings = self.settings(**given)
        places = DatasetConfig(**settings)
        return DatasetConfig(**older_settings(survey(self.source), places, settings, mass_threshold))

    def imported(self, mass_threshold: float | None = None, checked: int = 2, **given: Any) -> ImportReport:
        return import_samples(survey(self.source), self.config(mass_threshold, **given), checked=checked)

    def file(self, simulation: int, halo: int = 0, rotation: int = 0, split: str = "train") -> Path:
        return self.source / split / f"sim_{simulation}" / f"sim_{simulation}_halo_{halo}_rot_{rotation}.npz"

    def report(self) -> bytes:
        return (self.root / "import" / "report.json").read_bytes()


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    names = [f"SB35_{number}" for number in SIMULATIONS]
    return write_mock_suite(
        tmp_path_factory.mktemp("suite"), simulations=names, particles_per_side=16, halos_per_simulation=2
    )


@pytest.fixture(scope="module")
def written(suite: MockSuite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written") / "older"
    write_older_dataset(
        root, suite.dmo_base, suite.hydro_base, suite.catalogue_base, SIMULATIONS, total_sims=10, npix=NPIX
    )
    return root


@pytest.fixture
def older(suite: MockSuite, written: Path, tmp_path: Path) -> Older:
    shutil.copytree(written, tmp_path / "older")
    return Older(suite, tmp_path / "older", tmp_path / "new")


def loaded(path: Path) -> dict[str, NDArray]:
    with np.load(path) as sample:
        return dict(sample)


def changed(path: Path, **arrays: Any) -> None:
    """Write a sample with other arrays; None takes one out."""
    path.write_bytes(encode_arrays({key: a for key, a in (loaded(path) | arrays).items() if a is not None}))


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): sha256_of(path) for path in sorted(root.rglob("*.npz"))}


def reasons(report: ImportReport) -> dict[str, str]:
    return {Path(refusal.file).name: refusal.reason for refusal in report.refused}


def test_maps_match_but_for_the_widest_whose_corners_are_empty(older: Older) -> None:
    """Condition, targets, 12.5 and 25 Mpc/h match; of 50 Mpc/h, it is said how much mass is missing."""
    report = older.imported(checked=4)
    assert report.ok
    assert report.imported == report.files == 12
    kinds = ("condition", "dark_matter", "gas", "stars", "12.5 Mpc/h", "25 Mpc/h", "50 Mpc/h")
    assert tuple(summary.map for summary in report.maps) == kinds
    for summary in report.maps[:-1]:
        assert summary.verdicts == {Verdict.MATCHES: 12, Verdict.MASS_MISSING: 0, Verdict.DIFFERS: 0}
        assert summary.largest_deviation < TOLERANCE / 2
        assert abs(summary.largest_missing_share) < 1e-4
    assert report.maps[-1].verdicts[Verdict.MASS_MISSING] == 12
    for found in widest(report):
        simulation, halo, rotation = (int(part) for part in found.sample_id.split("_")[1::2])
        path = older.file(simulation, halo, rotation, "test" if simulation == 3 else "train")
        mass = whole_maps(older, simulation, halo, rotation)[3].sum(dtype=float)
        missing = 1 - loaded(path)["large_scale"][2].sum(dtype=float) / mass
        assert missing > 0
        assert found.missing_share == pytest.approx(missing, abs=1e-5)
    assert "50 Mpc/h" in report.advice[0]
    assert "--refresh" in report.advice[1]
    assert "add_large_scale.py" in report.advice[2]
    assert json.loads(older.report()) == report.as_dict()


def widest(report: ImportReport) -> list[MapComparison]:
    return [found for each in report.simulations for found in each.comparisons if found.map == "50 Mpc/h"]


def whole_maps(older: Older, simulation: int, halo: int, rotation: int) -> NDArray[np.float32]:
    """Return the maps that the older generator would have made with all periodic copies."""
    files = find_simulation(f"SB35_{simulation}", older.config())
    center = read_catalogue(files.catalogue.files).centers[halo]
    dark_matter = particles(older.suite.dmo_base / f"SB35_{simulation}", 1)
    frame = drawn_frame(1000 * simulation + 100 * halo + rotation)
    return nested_maps(*dark_matter, center, frame, NPIX, whole=True)


def test_real_simulations_at_full_resolution(camels_mini: Path, tmp_path: Path) -> None:
    """Of true haloes at 128 pixels, too, all maps match but the widest, which lacks up to two per cent of its mass."""
    bases = {
        "dmo_base": camels_mini / "DMO",
        "hydro_base": camels_mini / "Hydro",
        "catalogue_base": camels_mini / "FOF",
    }
    source, threshold = tmp_path / "older", 1e14
    write_older_dataset(source, *bases.values(), [2], total_sims=5, npix=128, rotations=1, mass_threshold=threshold)
    older = survey(source)
    settings = bases | {"output_root": tmp_path / "new"}
    config = DatasetConfig(**older_settings(older, DatasetConfig(**settings), settings, threshold))
    report = import_samples(older, config)
    assert report.ok
    assert report.imported == older.files > 0
    *others, last = report.maps
    assert all(summary.verdicts[Verdict.MATCHES] == summary.compared > 0 for summary in others)
    assert last.verdicts[Verdict.MASS_MISSING] == last.compared
    assert 1e-3 < last.largest_missing_share < 0.02
    assert last.lowest_ratio < 0.8


def test_the_emptiest_pixel_of_a_uniform_universe() -> None:
    """Where mass is uniform, the 50 Mpc/h map's corners hold about half of the mean, and no other map lacks any."""
    side = 64
    lattice = (np.indices((side, side, side)).reshape(3, -1).T + 0.5) * 50 / side
    lattice += np.random.default_rng(1).uniform(-25, 25, lattice.shape) / side
    masses, center = np.full(len(lattice), 1e9), np.full(3, 25.0)
    frame = euler_matrix(np.array([0.6, 0.6, 0.6]))
    found, anew = (
        dict(
            zip(("condition", "12.5", "25", "50"), nested_maps(lattice, masses, center, frame, 32, whole), strict=True)
        )
        for whole in (False, True)
    )
    *others, last = compare_maps("sample", found, anew)
    assert {comparison.verdict for comparison in others} == {Verdict.MATCHES}
    assert all(comparison.deviation == 0 for comparison in others)
    assert last.verdict is Verdict.MASS_MISSING
    assert 0.005 < last.missing_share < 0.03
    assert 0.4 < last.emptiest < 0.7
    assert last.emptiest_anew > 0.9
    assert last.lowest_ratio == pytest.approx(last.emptiest, abs=0.1)


def test_samples_keep_their_maps_and_get_what_they_lack(older: Older) -> None:
    """Maps come over to the bit; halo, parameters and rotation are those of catalogue, table and seed."""
    before = contents(older.source)
    older.imported()
    assert contents(older.source) == before
    config = older.config()
    rows = manifest_of(config).samples()
    assert rows.height == 12
    for row in rows.iter_rows(named=True):
        sample = loaded(older.root / row["path"])
        number = int(row["simulation"].removeprefix("SB35_"))
        assert row["split"] == ("test" if number == 3 else "train")
        source = loaded(older.file(number, row["halo"], row["rotation"], row["split"]))
        for key in ("condition", "target", "large_scale"):
            assert np.array_equal(sample[key], source[key])
        seed = 1000 * number + 100 * row["halo"] + row["rotation"]
        assert row["seed_entropy"] == str(seed)
        np.testing.assert_allclose(sample["rotation"], drawn_frame(seed), atol=1e-12)
        assert sample["halo_mass"] == row["halo_mass"]
        assert sample["params"].shape == (14,)
        assert sha256_of(older.root / row["path"]) == row["sha256"]
    assert set(rows["output_version"]) == {0}
    assert rows["code_version"].str.starts_with("imported").all()
    assert manifest_of(config).versions[-1].action == "import"


def test_haloes_are_found_by_their_place_above_the_threshold(tmp_path: Path) -> None:
    """The older halo 0 is the catalogue's halo 1 where the first one lies below the threshold."""
    suite = write_mock_suite(
        tmp_path / "suite", simulations=["SB35_1", "SB35_9"], particles_per_side=16, halos_per_simulation=4
    )
    older = Older(suite, tmp_path / "older", tmp_path / "new")
    files = find_simulation("SB35_1", DatasetConfig(**older.settings()))
    masses = read_catalogue(files.catalogue.files).masses
    assert masses[0] < masses[1]
    threshold = float(masses[:2].mean())
    bases = (suite.dmo_base, suite.hydro_base, suite.catalogue_base)
    write_older_dataset(older.source, *bases, [1], total_sims=10, npix=NPIX, mass_threshold=threshold)
    report = older.imported(threshold)
    assert report.ok
    assert set(manifest_of(older.config(threshold)).samples()["halo"]) == {1}
    shutil.rmtree(older.root)
    assert "correct --mass-threshold" in reasons(older.imported())["sim_1_halo_0_rot_0.npz"]


def test_the_data_set_goes_on(older: Older) -> None:
    """What is missing is added beside imported samples, which a refresh makes anew in the same orientations."""
    older.file(9, 1, 1).unlink()
    older.file(9, 1, 0).unlink()
    older.imported()
    config = older.config()
    works = {work.files.name: work for work in workload_of(config).simulations}
    assert works["SB35_1"].reason is Reason.STALE
    assert "another generator" in works["SB35_1"].explanation
    assert len(works["SB35_9"].to_make) == 2
    assert record(config, projected(config))["SB35_9"] == "complete"
    rows = manifest_of(config).samples()
    assert rows["output_version"].value_counts().sort("output_version").rows() == [(0, 10), (1, 2)]
    assert all("input" not in work.explanation for work in workload_of(config).simulations)
    refresh(config)
    remade = manifest_of(config).samples()
    assert set(remade["output_version"]) == {1}
    assert all(work.reason is Reason.NOTHING_TO_DO for work in workload_of(config).simulations)
    columns = ["sample_id", "seed_entropy", "quaternion_w", "quaternion_x", "split"]
    assert remade.select(columns).equals(rows.select(columns))
    gained = remade["mass_large_scale_2"] / rows["mass_large_scale_2"]
    assert gained.filter(rows["output_version"] == 0).min() > 1
    again = older.imported()
    assert (again.ok, again.imported) == (True, 10)
    assert manifest_of(config).samples().equals(remade)


def test_what_cannot_be_a_sample_is_left_out_with_the_reason(older: Older) -> None:
    """Each bad file is named with what is wrong with it, the others are taken; once mended, it is taken too."""
    truncated, missing, wrong = older.file(1), older.file(1, 0, 1), older.file(1, 1)
    whole = {path: path.read_bytes() for path in (truncated, missing, wrong)}
    truncated.write_bytes(whole[truncated][:3000])
    condition = loaded(missing)["condition"]
    condition[3, 4] = np.nan
    changed(missing, condition=condition)
    changed(wrong, target=np.zeros((3, 16, 16), np.float32))
    changed(older.file(1, 1, 1), large_scale=None)
    shutil.copy(older.file(9), older.file(9, 7))
    changed(older.file(9, 1), halo_mass=2e13)
    changed(older.file(9, 1, 1), params=np.zeros(14))
    shutil.copy(older.file(9), older.file(9).with_name("halo_0_xy.npz"))
    report = older.imported()
    assert not report.ok
    assert report.imported == 6
    found = reasons(report)
    for name, reason in {
        "sim_1_halo_0_rot_0.npz": "not a whole .npz",
        "sim_1_halo_0_rot_1.npz": "1 values that are not finite",
        "sim_1_halo_1_rot_0.npz": "shape (3, 16, 16), expected (3, 32, 32)",
        "sim_1_halo_1_rot_1.npz": "no key 'large_scale'",
        "sim_9_halo_7_rot_0.npz": "no halo number 7: the catalogue has 2",
        "sim_9_halo_1_rot_0.npz": "another halo",
        "sim_9_halo_1_rot_1.npz": "parameter table",
        "halo_0_xy.npz": "its name is not",
    }.items():
        assert reason in found.pop(name)
    assert not found
    assert manifest_of(older.config()).samples().height == 6
    for path, content in whole.items():
        path.write_bytes(content)
    assert older.imported().imported == 9


def test_a_simulation_in_both_splits_is_refused(older: Older) -> None:
    """A model that was trained on some of its samples must not be tested on the others."""
    moved = older.file(1, split="test")
    moved.parent.mkdir()
    older.file(1).rename(moved)
    report = older.imported()
    assert not report.ok
    assert report.imported == 8
    (refusal,) = report.refused
    assert "all 4 files of SB35_1" in refusal.file
    assert "in train and in test" in refusal.reason
    assert set(manifest_of(older.config()).samples()["simulation"]) == {"SB35_3", "SB35_9"}


def test_another_split_than_the_settings_give_is_refused(older: Older) -> None:
    """Nothing is imported where simulations would change sides, or maps would lack; the number that fits is named."""
    with pytest.raises(ConfigurationError, match=r"SB35_3.*--total-sims 10\."):
        older.imported(total_simulations=20)
    with pytest.raises(ConfigurationError, match="No number of simulations fits"):
        older.imported(root_seed=7, test_fraction=0)
    assert not older.root.exists()
    with pytest.raises(ConfigurationError, match="rotations: euler"):
        older.imported(rotations="haar")
    with pytest.raises(ConfigurationError, match="and so no pressure"):
        older.imported(extra_fields=[{"name": "pressure", "particle_type": "gas", "field": "Pressure"}])
    with pytest.raises(ConfigurationError, match="among the older samples"):
        older.imported(output_root=older.source)


def test_wrong_maps_are_told_from_empty_corners(older: Older) -> None:
    """Maps of another orientation, or with too much mass, differ, and the import is not well."""
    for simulation, split in ((1, "train"), (3, "test"), (9, "train")):
        for halo in (0, 1):
            path = older.file(simulation, halo, 0, split)
            maps = loaded(path)
            changed(path, condition=maps["condition"].T.copy(), large_scale=2 * maps["large_scale"])
    report = older.imported(checked=4)
    assert not report.ok
    for summary in report.maps:
        differs = summary.map == "condition" or "Mpc/h" in summary.map
        assert summary.verdicts[Verdict.DIFFERS] == (6 if differs else 0)
    assert "are not what the simulations give" in report.advice[1]


def test_without_snapshots_samples_are_taken_and_not_checked(older: Older, tmp_path: Path) -> None:
    """What cannot be verified is said; what can, the target of a hydrodynamic run, is."""
    suite = tmp_path / "suite"
    shutil.copytree(older.suite.dmo_base.parent, suite)
    shutil.rmtree(suite / "DMO" / "SB35_9")
    bases = {"dmo_base": suite / "DMO", "hydro_base": suite / "Hydro", "catalogue_base": suite / "FOF"}
    report = older.imported(**bases)
    assert (report.ok, report.imported) == (False, 12)
    ((simulation, reason),) = report.unchecked
    assert simulation == "SB35_9"
    assert "there is no dmo in" in reason
    assert [summary.compared for summary in report.maps] == [4, 6, 6, 6, 4, 4, 4]
    shutil.rmtree(suite / "FOF" / "SB35_1")
    shutil.rmtree(older.root)
    report = older.imported(**bases)
    assert report.imported == 8
    assert "there is no catalogue in" in report.refused[0].reason


def test_a_second_run_changes_nothing(older: Older) -> None:
    """It has the same report, to the byte, and commits nothing; more checks are added to those made."""
    older.imported()
    report, version = older.report(), manifest_of(older.config()).version
    times = {path: path.stat().st_mtime_ns for path in older.root.rglob("*.npz")}
    older.imported()
    assert older.report() == report
    assert manifest_of(older.config()).version == version
    assert {path: path.stat().st_mtime_ns for path in older.root.rglob("*.npz")} == times
    assert older.imported(checked=4).maps[0].compared == 12
    assert older.imported(checked=0).maps[0].compared == 12


@pytest.mark.parametrize(("where", "call", "committed"), [("write_bytes", 6, 0), ("commit_outcomes", 2, 8)])
def test_a_killed_import_goes_on(older: Older, where: str, call: int, committed: int) -> None:
    """After SIGKILL between files or before a commit, the next run ends with what an undisturbed one would give."""
    program = f"""
import os, signal, sys
from pathlib import Path
import storage.importing as importing
from bind_core.config import DatasetConfig
from storage.older_samples import survey
called, original = [], importing.{where}
def dying(*arguments, **options):
    called.append(1)
    if len(called) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
importing.{where} = dying
config = DatasetConfig.from_yaml(Path(sys.argv[2]))
importing.import_samples(survey(Path(sys.argv[1])), config, checked=2, threads=1)
"""
    settings = older.root.with_suffix(".yaml")
    settings.write_text(older.config().to_yaml())
    killed = subprocess.run(
        [sys.executable, "-c", program, older.source, settings], env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL
    assert manifest_of(older.config()).samples().height == committed
    older.imported()
    interrupted, report = contents(older.root), older.report()
    rows = manifest_of(older.config()).samples().select(pl.exclude("run_id", "created_at"))
    shutil.rmtree(older.root)
    older.imported()
    assert contents(older.root) == interrupted
    assert older.report() == report
    assert manifest_of(older.config()).samples().select(pl.exclude("run_id", "created_at")).equals(rows)
