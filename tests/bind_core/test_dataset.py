"""Samples for training: what a mirrored or turned sample is, and what is refused."""

import numpy as np
import polars as pl
import pytest

from bind_core.backends import Backend
from bind_core.dataset import Augmentation, DatasetError, FileReader, SampleDataset
from bind_core.maps import input_maps, target_map
from bind_core.mesh import ParticleMesh
from bind_core.rotations import quaternion_matrix
from bind_core.windows import Windows

WINDOWS = Windows(native_size=6.25, context_sizes=(12.5, 25.0, 50.0), depth=50.0, resolution=16)
CENTER = np.array([3.0, 49.0, 20.0])


def sample_of(mesh: ParticleMesh, center: np.ndarray, rotation: np.ndarray) -> dict[str, np.ndarray]:
    inputs = input_maps(mesh, center, rotation, WINDOWS, Backend.REFERENCE)
    target = target_map(mesh, center, rotation, WINDOWS, Backend.REFERENCE)
    return {"condition": inputs[0], "large_scale": inputs[1:], "target": target[np.newaxis], "rotation": rotation}


@pytest.fixture(scope="module")
def mesh() -> ParticleMesh:
    random = np.random.default_rng(5)
    positions = np.concatenate([random.uniform(0, 50, (20_000, 3)), CENTER + random.normal(0, 0.6, (2_000, 3))]) % 50
    return ParticleMesh.build(positions.astype(np.float32), 1e10, 50.0)


@pytest.mark.parametrize("symmetry", range(8))
def test_a_changed_sample_is_what_the_changed_frame_sees(mesh: ParticleMesh, symmetry: int) -> None:
    """Its maps are projections along the recorded frame, with the halo one pixel off where an axis is reversed."""
    quaternion = np.array([0.3, -0.5, 0.7, 0.2])
    rotation = quaternion_matrix(quaternion / np.linalg.norm(quaternion))
    changed = Augmentation.changed(sample_of(mesh, CENTER, rotation), symmetry)
    frame = changed["rotation"] @ rotation.T
    reversed_axes = frame.round().min(axis=1) < 0
    pixel = WINDOWS.native_size / WINDOWS.resolution
    center = CENTER + changed["rotation"].T @ (pixel * reversed_axes)
    seen = sample_of(mesh, center, changed["rotation"])
    assert np.linalg.det(changed["rotation"]) == pytest.approx(1 if symmetry < 4 else -1)
    for name in ("condition", "large_scale", "target"):
        np.testing.assert_allclose(changed[name], seen[name], rtol=1e-4, atol=1e-4 * seen[name].max())


def test_the_eight_symmetries_differ(mesh: ParticleMesh) -> None:
    """No two of them give the same map, and random ones are all of them."""
    sample = sample_of(mesh, CENTER, np.eye(3))
    maps = [Augmentation.changed(sample, symmetry)["condition"] for symmetry in range(8)]
    assert len({each.tobytes() for each in maps}) == 8
    augment = Augmentation(seed=1)
    drawn = {augment(sample)["condition"].tobytes() for _ in range(200)}
    assert drawn == {each.tobytes() for each in maps}
    with pytest.raises(ValueError, match="eight symmetries"):
        Augmentation.changed(sample, 8)


def test_what_cannot_be_read_says_how_to_get_it(tmp_path) -> None:
    """Missing rows, missing files, conditions that are none and splits without samples are explained."""
    with pytest.raises(DatasetError, match="bind-data card"):
        FileReader(tmp_path)
    rows = pl.DataFrame({"path": ["train/a.npz"], "split": ["train"], "config_digest": ["0" * 64], "halo_mass": [1e13]})
    reader = FileReader(tmp_path, rows)
    with pytest.raises(DatasetError, match=r"train/a\.npz"):
        SampleDataset(reader)[0]
    with pytest.raises(DatasetError, match="split test"):
        SampleDataset(reader, split="test")
    with pytest.raises(DatasetError, match="fulfils 'halo_mass > 1e14'"):
        SampleDataset(reader, where="halo_mass > 1e14")
    for condition in ("halo_mass >", "no_column > 1", "halo_mass"):
        with pytest.raises(DatasetError, match="cannot be used"):
            SampleDataset(reader, where=condition)


def test_pickled_objects_are_not_loaded(tmp_path) -> None:
    """A sample that holds Python objects is refused, not executed."""
    np.savez(tmp_path / "a.npz", condition=np.array([{}], dtype=object))
    rows = pl.DataFrame({"path": ["a.npz"], "split": ["train"], "config_digest": ["0" * 64]})
    with pytest.raises(DatasetError, match="pickled Python objects"):
        SampleDataset(FileReader(tmp_path, rows))[0]
