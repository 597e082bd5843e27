"""Where the examples of a stateful test are played: simulations, each in two variants, and what is made of them."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import h5py
from block_runs import ProjectedBlock
from store_processes import Ended, Writer, run

from bind_core.config import DatasetConfig
from storage.mock_suite import MockFormat, MockSuite, write_mock_suite

NAMES = ("SB35_0", "SB35_1", "SB35_2")
ROOT_SEEDS = (1993, 18, 7)
"""With the second one, samples have other orientations in the same places; with the third, some change their split."""


@dataclass(frozen=True)
class Settings:
    """What a configuration asks for."""

    root_seed: int = ROOT_SEEDS[0]
    rotations: int = 1


class Arena:
    """Where the examples are played, and what is made once for all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer = Writer()
        self.variants = tuple(self._suite(folder / f"variant {number}", number) for number in range(2))
        self._pristine: dict[tuple[Settings, tuple[int, ...]], Path] = {}

    def config(self, suite: Path, root: Path, settings: Settings) -> DatasetConfig:
        return DatasetConfig.from_values(
            {
                "dmo_base": suite / "DMO",
                "hydro_base": suite / "Hydro",
                "catalogue_base": suite / "FOF",
                "output_root": root,
                "resolution": 8,
                "test_fraction": 0.4,
                "simulations_per_block": 1,
                "strata": [{"rotations": settings.rotations}],
                "root_seed": settings.root_seed,
            }
        )

    def pristine(self, settings: Settings, variants: dict[str, int]) -> Path:
        """Return a data set that nothing has disturbed."""
        key = (settings, tuple(variants.values()))
        if key not in self._pristine:
            suite = self.folder / f"suite of {len(self._pristine)}"
            shutil.copytree(self.variants[0], suite)
            for name, variant in variants.items():
                for file in files_of(self.variants[variant], name):
                    shutil.copy2(file, suite / file.relative_to(self.variants[variant]))
            self._pristine[key] = self.folder / f"pristine {len(self._pristine)}"
            config = self.config(suite, self._pristine[key], settings)
            assert self.writer.do(run, config, NAMES, False) == Ended("done", True)
        return self._pristine[key]

    def _suite(self, folder: Path, variant: int) -> Path:
        """Write one of two suites: in the second, each simulation has another input."""
        made: MockSuite = write_mock_suite(
            folder, simulations=NAMES, particles_per_side=8, halos_per_simulation=2, formats=[MockFormat()]
        )
        with h5py.File(next((made.hydro_base / "SB35_0").glob("*.hdf5")), "r+") as file:
            file["Header"].attrs["MassTable"] *= 1.001 if variant else 1
        for name, halos in (("SB35_1", 2 - variant), ("SB35_2", 2 * variant)):
            with h5py.File(next((made.catalogue_base / name).glob("*.hdf5")), "r+") as file:
                masses = file["Group/Group_M_Crit200"][...]
                masses[(masses > 1e3).nonzero()[0][halos:]] = 1.0
                file["Group/Group_M_Crit200"][...] = masses
        return folder


def files_of(suite: Path, name: str) -> list[Path]:
    """Return a simulation's files: of both runs, and its catalogue."""
    return sorted(suite.glob(f"*/{name}/*.hdf5"))


@dataclass
class Pending:
    """A writer that has made samples and recorded none of them yet."""

    run_id: str
    block: ProjectedBlock
    expected: dict[str, set[str]]
    staging: ExitStack
    names: tuple[str, ...] = field(init=False)
    made: set[str] = field(init=False)
    """Ids of the samples whose files are whole."""

    def __post_init__(self) -> None:
        self.names = tuple(one.work.files.name for one in self.block.screened)
        self.made = {sample.sample_id for result in self.block.results.values() for sample in result.samples}

    @property
    def replaces(self) -> bool:
        return any(one.work.replaced for one in self.block.screened)
