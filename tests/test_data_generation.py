"""The training path and the inference path give the same maps, and the maps are right.

Each test makes samples with the program that makes training sets, on real files, and compares them with what
`bind_core.inference` gives for the same halo.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from bind_core.config import DatasetConfig, Stratum
from bind_core.halos import Halo, halos_in, read_catalogue
from bind_core.inference import halo_conditions, read_particles
from bind_core.mesh import ParticleMesh
from bind_core.normalization import denormalize_target, normalize, normalize_input
from bind_core.parameters import read_parameter_table
from bind_core.plan import predicted_samples
from bind_core.sample import Sample
from bind_core.snapshot import Component
from bind_core.suite import SimulationFiles, find_simulation
from bind_core.windows import Windows
from storage.blocks import block_outcomes, plan_block, screen_block
from storage.layout import DatasetLayout
from storage.manifest import open_dataset
from storage.mock_suite import write_mock_suite
from storage.recording import commit_outcomes
from storage.samples import read_sample
from storage.statistics import compute_statistics
from storage.workload import plan_workload
from tasks.projection_job import project_block

BOX = 50.0
PARTICLES_PER_SIDE = 32


@dataclass(frozen=True)
class Made:
    """A data set made from a mock suite, with the inputs it came from."""

    config: DatasetConfig
    layout: DatasetLayout
    files: SimulationFiles
    halos: list[Halo]

    def samples(self) -> Iterator[tuple[Halo, Sample]]:
        for halo in self.halos:
            rows = open_dataset(self.layout, self.config).samples()
            path = rows.filter(rows["halo"] == halo.index)["path"][0]
            yield halo, read_sample(self.layout.absolute(path))

    def dark_matter(self) -> ParticleMesh:
        return read_particles(Component.DMO, self.files.dmo.files, self.config)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("data_generation")
    suite = write_mock_suite(root / "suite", simulations=1, particles_per_side=PARTICLES_PER_SIDE, box_size=BOX)
    config = DatasetConfig(
        dmo_base=suite.dmo_base,
        hydro_base=suite.hydro_base,
        catalogue_base=suite.catalogue_base,
        parameter_file=suite.parameter_file,
        output_root=root / "dataset",
        strata=(Stratum(rotations=1),),
        test_fraction=0.0,
    )
    layout = DatasetLayout(config.output_root, config.set_name)
    manifest = open_dataset(layout, config)
    (block,) = plan_workload(config, manifest).blocks(1)
    screened = screen_block(block, config, read_parameter_table(suite.parameter_file))
    plan = plan_block(screened, config, "run", 0)
    assert plan is not None
    results = {result.simulation: result for result in project_block(MPI.COMM_SELF, plan, lambda progress: None)}
    commit_outcomes(manifest, config, block_outcomes(layout, screened, plan, results), "run")
    files = find_simulation(suite.names[0], config)
    return Made(config, layout, files, halos_in(read_catalogue(files.catalogue.files), config.strata[0]))


def test_multiscale_extraction_consistency(made: Made) -> None:
    """Training and inference cut the same pixels at all four scales, and the scales agree with each other."""
    windows = made.config.windows
    dark_matter = made.dark_matter()
    assert len(made.halos) >= 4
    for halo, sample in made.samples():
        (inferred,) = halo_conditions(dark_matter, [halo], windows, rotation=sample.rotation)
        np.testing.assert_array_equal(inferred.condition, sample.condition)
        np.testing.assert_array_equal(inferred.large_scale, sample.large_scale)
        # The centre of each wider map is the block mean of the narrower one.
        narrower, narrower_factor = sample.condition, 1
        for factor, wider in zip(windows.factors, sample.large_scale, strict=True):
            ratio = factor // narrower_factor
            size = windows.resolution // ratio
            low = (windows.resolution - size) // 2
            blocks = narrower.reshape(size, ratio, size, ratio).mean(axis=(1, 3), dtype=np.float64)
            np.testing.assert_allclose(wider[low : low + size, low : low + size], blocks, rtol=2e-5)
            narrower, narrower_factor = wider, factor
        # The widest window has the box's volume: rotated, it holds other structures twice or not at all.
        mass = windows.factors[-1] ** 2 * sample.large_scale[-1].sum(dtype=np.float64)
        assert mass == pytest.approx(dark_matter.total_mass, rel=0.2)


def test_inference_without_rotation_is_training_with_identity(made: Made) -> None:
    """Inference's default orientation is the identity: the maps are those of a sample that is not rotated."""
    dark_matter = made.dark_matter()
    halo = made.halos[0]
    (inferred,) = halo_conditions(dark_matter, [halo], made.config.windows)
    (explicit,) = halo_conditions(dark_matter, [halo], made.config.windows, rotation=np.eye(3))
    np.testing.assert_array_equal(inferred.rotation, np.eye(3))
    np.testing.assert_array_equal(inferred.condition, explicit.condition)
    # Without rotation, the line of sight is z: moving every particle along z changes nothing.
    moved = dark_matter.positions.astype(np.float64) + np.array([0.0, 0.0, 0.4 * BOX])
    shifted = ParticleMesh.build(np.mod(moved, BOX), dark_matter.masses, BOX)
    (from_shifted,) = halo_conditions(shifted, [halo], made.config.windows)
    np.testing.assert_allclose(from_shifted.condition, inferred.condition, rtol=1e-3, atol=inferred.condition.mean())


def test_normalization_consistency(made: Made) -> None:
    """Statistics of the train split give both paths the same zero mean and unit variance, and invert exactly."""
    stats = compute_statistics(made.layout)
    digest = made.config.digest
    dark_matter = made.dark_matter()
    samples = list(made.samples())
    conditions, targets = [], []
    for halo, sample in samples:
        trained = normalize(sample, stats, digest)
        (inferred,) = halo_conditions(dark_matter, [halo], made.config.windows, rotation=sample.rotation)
        at_inference = normalize_input(inferred.condition, inferred.large_scale, stats, digest)
        np.testing.assert_array_equal(trained.condition, at_inference[0])
        np.testing.assert_array_equal(trained.large_scale, at_inference[1])
        painted = denormalize_target(trained.target, stats, digest)
        np.testing.assert_allclose(painted, sample.target, rtol=1e-4, atol=1e-4)
        conditions.append(trained.condition)
        targets.append(trained.target)
    assert np.mean(conditions, dtype=np.float64) == pytest.approx(0, abs=1e-5)
    assert np.std(conditions, dtype=np.float64) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(np.mean(targets, axis=(0, 2, 3), dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(targets, axis=(0, 2, 3), dtype=np.float64), 1, atol=1e-5)
    gas = np.concatenate([np.log10(sample.target[1].astype(np.float64) + 1).ravel() for _, sample in samples])
    assert stats.target["gas"].mean == pytest.approx(gas.mean(), rel=1e-12)


def test_periodic_boundary_handling(made: Made) -> None:
    """A universe that is moved by any vector across the box's faces gives the same maps, on both paths."""
    windows = made.config.windows
    dark_matter = made.dark_matter()
    nearest_to_a_face = min(made.halos, key=lambda halo: min(min(x, BOX - x) for x in halo.center))
    assert min(min(x, BOX - x) for x in nearest_to_a_face.center) < windows.native_size / 2
    sample = next(sample for halo, sample in made.samples() if halo == nearest_to_a_face)
    shift = np.array([0.5 * BOX, 0.25 * BOX, 0.5 * BOX])  # exact in float32 for most positions
    moved_halo = Halo(
        index=0,
        ordinal=0,
        center=tuple(np.mod(np.array(nearest_to_a_face.center) + shift, BOX)),
        mass=nearest_to_a_face.mass,
        radius=nearest_to_a_face.radius,
    )
    assert min(min(x, BOX - x) for x in moved_halo.center) > 0.1
    moved = ParticleMesh.build(np.mod(dark_matter.positions.astype(np.float64) + shift, BOX), dark_matter.masses, BOX)
    (inferred,) = halo_conditions(moved, [moved_halo], windows, rotation=sample.rotation)
    for made_map, moved_map in zip(
        [sample.condition, *sample.large_scale], [inferred.condition, *inferred.large_scale], strict=True
    ):
        scale = np.maximum(np.abs(made_map), made_map.mean())
        assert np.max(np.abs(made_map - moved_map) / scale) < 5e-3  # positions are float32
        assert moved_map.sum(dtype=np.float64) == pytest.approx(made_map.sum(dtype=np.float64), rel=1e-5)


@pytest.mark.parametrize("box_size", [25.0, 100.0, 205.0])
def test_windows_keep_their_physical_size_in_any_box(box_size: float) -> None:
    """A lattice of the same density fills the same windows with the same mass, whatever the box's size."""
    windows = Windows(resolution=32)
    spacing = 0.78125
    cells = round(box_size / spacing)
    lattice = (np.stack(np.meshgrid(*3 * [np.arange(cells)], indexing="ij"), axis=-1).reshape(-1, 3) + 0.5) * (
        box_size / cells
    )
    particles = ParticleMesh.build(lattice.astype(np.float32), 1e10, box_size)
    halo = Halo(index=0, ordinal=0, center=(0.1, box_size / 2, box_size - 0.1), mass=1e13, radius=0.5)
    (maps,) = halo_conditions(particles, [halo], windows)
    density = particles.total_mass / box_size**3
    for size, factor, pixels in zip(windows.sizes[1:], windows.factors, maps.large_scale, strict=True):
        expected = density * size**2 * windows.depth
        assert factor**2 * pixels.sum(dtype=np.float64) == pytest.approx(expected, rel=0.05)


def test_a_sample_does_not_depend_on_what_else_is_made(made: Made, tmp_path: Path) -> None:
    """One sample made alone has the bytes that it has among others."""
    target = predicted_samples(
        made.files.name, made.files.number, read_catalogue(made.files.catalogue.files), made.config
    ).targets()[2]
    alone = made.config.model_copy(update={"output_root": tmp_path})
    layout = DatasetLayout(tmp_path, alone.set_name)
    manifest = open_dataset(layout, alone)
    (block,) = plan_workload(alone, manifest).blocks(1)
    table = read_parameter_table(made.config.parameter_file or Path())
    screened = screen_block(block, alone, table)
    plan = plan_block(screened, alone, "run", 0)
    assert plan is not None
    simulation = replace(plan.simulations[0], targets=(target,))
    project_block(MPI.COMM_SELF, replace(plan, simulations=(simulation,)), lambda progress: None)
    path = layout.sample_path(simulation.split, target.simulation, target.halo, target.rotation)
    original = made.layout.sample_path(simulation.split, target.simulation, target.halo, target.rotation)
    assert path.read_bytes() == original.read_bytes()
