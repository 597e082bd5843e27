"""Training on real simulations with torch, from every format, and the conditions for painting with what was trained."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from batch_runs import bases, output, run
from block_runs import make
from command_line import fine
from torch.nn import functional
from torch.utils.data import DataLoader

from bind_core.config import DatasetConfig
from bind_core.dataset import Augmentation, FileReader, Reader, SampleDataset, ShardReader
from bind_core.normalization import NormalizationStats, denormalize_target
from bind_core.painting import paste
from bind_core.plan import Target
from storage.conditions import read_condition, read_condition_set
from storage.manifest import Manifest, layout_at
from storage.mock_suite import MockSuite
from storage.samples import read_sample
from storage.shards import Pack, PackFormat, pack
from storage.statistics import compute_statistics
from storage.versions import resolve_version

pytestmark = [pytest.mark.camels_mini, pytest.mark.mpi]

RESOLUTION = 32


@dataclass(frozen=True)
class TrainingSet:
    root: Path
    shards: Pack
    tars: Pack
    stats: NormalizationStats

    @property
    def files(self) -> FileReader:
        return FileReader(self.root, Manifest(layout_at(self.root)).samples())

    @property
    def readers(self) -> tuple[Reader, Reader]:
        return self.files, ShardReader(self.shards.folder)


def suite_of(folder: Path) -> MockSuite:
    table = next(folder.glob("CosmoAstroSeed_*.txt"))
    return MockSuite(folder / "DMO", folder / "Hydro", folder / "FOF", table, (), {})


@pytest.fixture(scope="module")
def made(camels_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    """Return a data set made by the batch program, with both kinds of packs and its statistics."""
    root = tmp_path_factory.mktemp("trained")
    how = ("--resolution", RESOLUTION, "--num_rotations", 2, "--mass_threshold", 3e13, "--test_frac", 0.5)
    output(run(*bases(suite_of(camels_mini)), "--output_base_root", root, *how))
    layout = layout_at(root)
    version = resolve_version(layout)
    shards, tars = (pack(layout, version, pack_format=form) for form in (PackFormat.ZARR, PackFormat.TAR))
    return TrainingSet(root, shards, tars, compute_statistics(layout))


def loaded(samples: SampleDataset, method: str = "fork") -> Iterator[dict[str, torch.Tensor]]:
    order = torch.Generator().manual_seed(5)
    yield from DataLoader(
        samples, batch_size=8, shuffle=True, num_workers=2, multiprocessing_context=method, generator=order
    )


def trained(samples: SampleDataset, method: str) -> tuple[list[str], list[float]]:
    """Train a small network for an epoch; return the digest of each batch, and each loss."""
    torch.manual_seed(1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.GELU(), torch.nn.Conv2d(8, 3, 3, padding=1)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    digests, losses = [], []
    for batch in loaded(samples, method):
        digests.append(hashlib.sha256(b"".join(batch[name].numpy().tobytes() for name in sorted(batch))).hexdigest())
        seen = torch.cat([batch["condition"][:, None], batch["large_scale"]], dim=1)
        loss = functional.mse_loss(network(seen), batch["target"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return digests, losses


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    """Run functions in a process of their own, which can be forked: this one may have had threads of Prefect's."""
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        yield executor


def trained_from_everywhere(made: TrainingSet) -> list[tuple[list[str], list[float]]]:
    """Train from either format, by forked and by spawned workers."""
    return [
        trained(SampleDataset(reader, split="train", augmentation=Augmentation(3)).normalized(made.stats), method)
        for method in ("fork", "spawn")
        for reader in made.readers
    ]


def test_batches_and_losses_are_those_of_any_format_and_worker(made: TrainingSet, apart: ProcessPoolExecutor) -> None:
    """Files and shards, read by two forked or spawned workers, train a network through the same losses, to the bit."""
    runs = apart.submit(trained_from_everywhere, made).result()
    digests, losses = runs[0]
    assert len(runs) == 4 and all(found == (digests, losses) for found in runs)
    assert len(set(digests)) == len(digests) > 3
    assert losses[-1] < 0.9 * losses[0]


def test_webdataset_streams_the_same_arrays(made: TrainingSet) -> None:
    """The tar files, through the library that they are meant for, hold what the shards hold, in the same order."""
    urls = [str(path) for path in sorted(made.tars.folder.glob("*.tar"))]
    streamed = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    expected = SampleDataset(made.readers[1])
    assert [sample["__key__"] for sample in streamed] == expected.rows["sample_id"].to_list()
    for number, sample in enumerate(streamed):
        arrays = expected[number]
        assert set(sample["npz"].keys()) == arrays.keys()
        assert all(np.array_equal(sample["npz"][name], array) for name, array in arrays.items())
        assert sample["json"]["halo_mass"] == arrays["halo_mass"]


def drawn_in_two_epochs(made: TrainingSet) -> list[list[tuple[bytes, ...]]]:
    """Return the conditions that each of two workers gave in each of two epochs, all of one sample."""
    samples = SampleDataset(made.readers[1], augmentation=Augmentation(7))
    seed = torch.Generator().manual_seed(11)
    loader = DataLoader(samples, batch_size=8, sampler=[0] * 128, num_workers=2, generator=seed)
    drawn = [[batch["condition"].numpy() for batch in loader] for _ in range(2)]
    # Batches come from the workers in turn.
    return [[tuple(m.tobytes() for b in epoch[worker::2] for m in b) for worker in (0, 1)] for epoch in drawn]


def test_random_changes_differ_among_workers_and_epochs(made: TrainingSet, apart: ProcessPoolExecutor) -> None:
    """Each worker draws its own symmetries, anew in every epoch, and the same again from the same seed."""
    found = apart.submit(drawn_in_two_epochs, made).result()
    assert len({worker for epoch in found for worker in epoch}) == 4
    assert all(len(set(worker)) == 8 for epoch in found for worker in epoch)
    assert apart.submit(drawn_in_two_epochs, made).result() == found


def require_masses_back(made: TrainingSet) -> int:
    """Invert what loaders give, compare it with the masses in the files, and return the number of batches."""
    batches = 0
    for reader in made.readers:
        plain = SampleDataset(reader, split="test")
        for batch, seen in zip(loaded(plain), loaded(plain.normalized(made.stats)), strict=True):
            masses = denormalize_target(seen["target"].numpy(), made.stats, plain.config_digest)
            np.testing.assert_allclose(masses, batch["target"].numpy(), rtol=1e-5, atol=1e-3)
            assert torch.equal(batch["halo_mass"], seen["halo_mass"])
            batches += 1
    return batches


def test_what_a_loader_gives_turns_back_into_mass(made: TrainingSet, apart: ProcessPoolExecutor) -> None:
    """Normalized targets of a batch are inverted to the masses in the files, zeros too, to float32's rounding."""
    assert apart.submit(require_masses_back, made).result() > 3


# Conditions


@pytest.fixture
def unturned(camels_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetConfig:
    """Make the samples of a simulation in the box's own orientation."""
    monkeypatch.setattr(Target, "rotation_matrix", lambda target, config: np.eye(3))
    suite = suite_of(camels_mini)
    config = DatasetConfig.from_values(
        {
            "dmo_base": suite.dmo_base,
            "hydro_base": suite.hydro_base,
            "catalogue_base": suite.catalogue_base,
            "output_root": tmp_path / "set",
            "resolution": RESOLUTION,
            "strata": [{"rotations": 1}],
        }
    )
    make(config, ["SB35_4"])
    return config


def test_conditions_are_those_of_training_and_paint_where_the_halo_is(unturned: DatasetConfig, tmp_path: Path) -> None:
    """Both formats hold, to the bit, what the job made for training; pasted mass is kept and sits around its halo."""
    arguments = ("conditions", "SB35_4", "-d", unturned.output_root, "--output")
    fine(*arguments, tmp_path / "files")
    fine(*arguments, tmp_path / "group", "--zarr")
    rows = Manifest(layout_at(unturned.output_root)).samples()
    assert read_condition_set(tmp_path / "group") == read_condition_set(tmp_path / "files")
    assert set(read_condition_set(tmp_path / "group").halos) == set(rows["halo"]) and rows.height == 44
    n, across_a_face = 200, 0
    for path, halo in rows.select("path", "halo").iter_rows():
        sample = read_sample(unturned.output_root / path)
        for folder in (tmp_path / "files", tmp_path / "group"):
            found, grid = read_condition(folder, halo)
            for name in ("condition", "large_scale", "params", "halo_center", "rotation", "halo_mass"):
                expected = sample.arrays()[name]
                assert found[name].dtype == expected.dtype
                assert np.array_equal(found[name], expected)
        canvas = np.zeros((n, n))
        paste(canvas, sample.target[1], grid)
        assert canvas.sum() == pytest.approx(sample.target[1].sum(dtype=float), rel=1e-12)
        across_a_face += bool(np.any(np.abs(grid.center[:2] - grid.box_size / 2) > (grid.box_size - 6.25) / 2))
        for axis in (0, 1):
            from_halo = np.arange(n) * grid.box_size / n - grid.center[axis]
            from_halo -= grid.box_size * np.round(from_halo / grid.box_size)
            in_patch = (np.arange(RESOLUTION) - RESOLUTION // 2) * grid.pixel_size
            expected_offset = sample.target[1].sum(axis=1 - axis, dtype=float) @ in_patch
            assert canvas.sum(axis=1 - axis) @ from_halo == pytest.approx(expected_offset, abs=1e-6 * canvas.sum())
    assert across_a_face > 2
