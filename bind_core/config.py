"""The one configuration of a data set.

`DatasetConfig` is what the YAML file, the batch entry point's flags and the form in the Prefect UI all
fill in. It is frozen, and it prints back as YAML.
"""

import hashlib
import json
import math
import reprlib
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bind_core.backends import Backend
from bind_core.errors import ConfigurationError
from bind_core.fields import ExtraField, names_differ
from bind_core.runners import DaskSettings, RunnerName
from bind_core.sample import TARGET_CHANNELS
from bind_core.settings_file import read_yaml_mapping
from bind_core.slurm_jobs import SlurmJobSettings
from bind_core.transforms import ChannelTransform, ChannelTransforms
from bind_core.windows import Windows


class RotationPolicy(StrEnum):
    """How the orientation of a sample is drawn."""

    HAAR = "haar"
    """Uniform on SO(3), from a seed that is unique to the sample."""
    EULER = "euler"
    """Three uniform Euler angles from the older generator's seed; only to continue an older data set."""


class SplitPolicy(StrEnum):
    """How simulations are divided into train and test."""

    HASH = "hash"
    """A keyed hash of the simulation's name: adding simulations moves none."""
    SHUFFLE = "shuffle"
    """The older generator's shuffle of all simulation numbers; only to continue an older data set."""


class StarPolicy(StrEnum):
    """Which particles of PartType4 the stellar map holds."""

    ALL = "all"
    """All of PartType4, wind-phase gas included, as the older generator did."""
    NO_WIND = "no_wind"
    """Only particles with GFM_StellarFormationTime > 0; wind-phase gas appears in no map."""


class BlackHolePolicy(StrEnum):
    """What becomes of black holes (PartType5)."""

    EXCLUDE = "exclude"
    """They appear in no map."""
    WITH_STARS = "with_stars"
    """Their mass is added to the stellar map."""


class LauncherName(StrEnum):
    """Who starts the MPI job of a block."""

    MPIEXEC = "mpiexec"
    """The `mpiexec` that belongs to the installed MPI library, on this machine."""
    SRUN = "srun"
    """SLURM's `srun`, in the allocation that the run was started in."""
    SBATCH = "sbatch"
    """A SLURM job of its own for each block."""


# A form calls a setting as the YAML file does, and not by a title made of its name.
_MODEL = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)


class Stratum(BaseModel):
    """A range of halo masses and the number of orientations each of its haloes gets."""

    model_config = _MODEL

    min_mass: float = Field(1e13, ge=0, description="Haloes above this M200c are taken, in Msun/h (exclusive).")
    max_mass: float | None = Field(
        None, gt=0, description="Haloes up to this M200c are taken, in Msun/h (inclusive); empty for no limit."
    )
    rotations: int = Field(10, ge=1, le=100_000, description="Random orientations per halo.")

    @field_validator("max_mass")
    @classmethod
    def _infinity_is_no_limit(cls, max_mass: float | None) -> float | None:
        return None if max_mass == math.inf else max_mass

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if not self.upper_mass > self.min_mass:
            raise ValueError(f"max_mass ({self.upper_mass:g}) must be greater than min_mass ({self.min_mass:g})")
        return self

    @property
    def upper_mass(self) -> float:
        """The inclusive upper limit in Msun/h, infinite where there is none."""
        return math.inf if self.max_mass is None else self.max_mass

    @property
    def name(self) -> str:
        """The range as interval, e.g. ``(1e+13, inf]``."""
        return f"({self.min_mass:g}, {self.upper_mass:g}]"


class DatasetConfig(BaseModel):
    """Everything that defines a data set and how it is made.

    Lengths are in Mpc/h and masses in Msun/h.
    """

    model_config = _MODEL

    # Where
    dmo_base: Path = Field(description="Folder that holds the dark-matter-only simulations, <set>_<i> each.")
    hydro_base: Path = Field(description="Folder that holds the hydrodynamic simulations, <set>_<i> each.")
    catalogue_base: Path = Field(
        description="Folder that holds the halo catalogues of the dark-matter-only simulations, <set>_<i> each."
    )
    parameter_file: Path | None = Field(
        None,
        description="Table of simulation parameters. If empty, CosmoAstroSeed_*<set>*.txt is looked for in the "
        "three base folders and the folders that hold them.",
    )
    output_root: Path = Field(description="Folder of the data set.")
    set_name: str = Field(
        "SB35", pattern=r"^[A-Za-z0-9][A-Za-z0-9+\-]*$", description="Set of simulations: SB35, 1P, CV, LH, …"
    )
    snapshot_number: int = Field(90, ge=0, le=9999, description="Snapshot; 90 is z = 0 (033 in older releases).")

    # What a sample is
    window_size: float = Field(6.25, gt=0, description="Side of the condition and of the targets, in Mpc/h.")
    context_sizes: tuple[float, ...] = Field(
        (12.5, 25.0, 50.0),
        description="Sides of the context maps, in Mpc/h; integer multiples of window_size.",
    )
    depth: float = Field(50.0, gt=0, description="Extent along the line of sight, in Mpc/h.")
    resolution: int = Field(128, ge=2, le=8192, description="Pixels per side of every map; even.")
    stars: StarPolicy = Field(
        StarPolicy.ALL,
        description="Which particles count as stars. all: every PartType4, wind-phase gas included; no_wind: only "
        "those with GFM_StellarFormationTime > 0.",
    )
    black_holes: BlackHolePolicy = Field(
        BlackHolePolicy.EXCLUDE,
        description="What becomes of black holes. exclude: they are in no map; with_stars: their mass is added to the "
        "stellar map.",
    )
    extra_fields: tuple[ExtraField, ...] = Field(
        (),
        description="Further target channels, after dark matter, gas and stars: fields of the hydrodynamic run's "
        "particles.",
    )
    backend: Backend = Field(
        Backend.FUSED,
        description="Implementation of the projection. fused: the fast one; pylians and reference: the same maps, "
        "slowly, to compare with.",
    )

    # Which samples there are
    strata: tuple[Stratum, ...] = Field(
        (Stratum(),),
        min_length=1,
        description="Ranges of halo mass, each with its number of orientations per halo; they must not overlap.",
    )
    rotations: RotationPolicy = Field(
        RotationPolicy.HAAR,
        description="How orientations are drawn. haar: uniform on all orientations; euler: as the older generator did, "
        "to continue its data sets.",
    )
    root_seed: int = Field(
        1993, ge=0, lt=2**63, description="Seed of everything that is random: the same seed gives the same samples."
    )
    split: SplitPolicy = Field(
        SplitPolicy.HASH,
        description="How train and test are divided. hash: by the simulation's name, so that adding simulations moves "
        "none; shuffle: as the older generator did, to continue its data sets.",
    )
    test_fraction: float = Field(0.1, ge=0, le=1, description="Share of the simulations that form the test set.")
    total_simulations: int | None = Field(
        None, ge=1, description="Number of simulations of the suite; needed by split: shuffle only."
    )

    # How a model sees them
    transforms: ChannelTransforms = Field(
        ChannelTransforms(),
        description="What becomes of each channel's values before their z-score, in the normalization statistics; the "
        "samples hold the values themselves.",
    )

    # How it is made
    runner: RunnerName = Field(
        RunnerName.THREADS,
        description="Where blocks are worked on. threads: by the flow's own process; dask: by the workers of a Dask "
        "cluster.",
    )
    dask: DaskSettings = Field(DaskSettings(), description="The cluster of runner: dask.")
    launcher: LauncherName = Field(
        LauncherName.MPIEXEC,
        description="Who starts the MPI job of a block. mpiexec: that of the installed MPI, on this machine; srun: "
        "SLURM's, in the allocation that the run was started in; sbatch: a SLURM job of its own for each block.",
    )
    slurm_job: SlurmJobSettings = Field(
        SlurmJobSettings(), description="The jobs of launcher: sbatch and of dask.slurm."
    )
    ranks: int = Field(2, ge=1, le=4096, description="MPI ranks per block.")
    simulations_per_block: int = Field(4, ge=1, description="Simulations per block, i.e. per MPI job and commit.")
    concurrent_blocks: int = Field(
        1, ge=1, description="Blocks that are worked on at the same time by runner: threads; dask has its workers."
    )
    read_ahead_memory: float = Field(
        8.0,
        ge=0,
        description="Memory of the node, in GiB, from which the next particles are read while these are projected; "
        "0 for always.",
    )
    retries: int = Field(2, ge=0, description="Repeats of a step that failed for a reason that may pass.")
    retry_delay: float = Field(5.0, ge=0, description="Seconds before the first repeat; doubled each time.")
    pairing_threshold: float = Field(
        0.98,
        ge=-1,
        le=1,
        description="Correlation of the two dark-matter fields on a 16^3 mesh below which a pair is refused. True "
        "pairs have more than 0.99; the same phases with other parameters, or shifted by 1 Mpc/h, have less than 0.98.",
    )

    @field_validator("dmo_base", "hydro_base", "catalogue_base", "output_root", mode="before")
    @classmethod
    def _is_given(cls, folder: Any) -> Any:
        if folder == "":
            raise ValueError("no folder is given")  # a path without a name would be the current folder
        return folder

    @field_validator("dmo_base", "hydro_base", "catalogue_base", "output_root", "parameter_file")
    @classmethod
    def _can_be_a_path(cls, path: Path | None) -> Path | None:
        if path is not None and "\0" in str(path):
            raise ValueError("a path cannot hold the character \\0")
        return path

    @field_validator("parameter_file", mode="before")
    @classmethod
    def _empty_is_none(cls, file: Any) -> Any:
        return None if file == "" else file

    @field_validator("context_sizes")
    @classmethod
    def _ascending(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(sizes))

    @field_validator("strata")
    @classmethod
    def _disjoint(cls, strata: tuple[Stratum, ...]) -> tuple[Stratum, ...]:
        ordered = sorted(strata, key=lambda stratum: stratum.min_mass)
        for lower, upper in pairwise(ordered):
            if lower.upper_mass > upper.min_mass:
                raise ValueError(f"strata {lower.name} and {upper.name} overlap: a halo must belong to one only")
        return strata

    @field_validator("extra_fields")
    @classmethod
    def _names_differ(cls, fields: tuple[ExtraField, ...]) -> tuple[ExtraField, ...]:
        return names_differ(fields)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _ = self.windows
        if self.dask.slurm and self.slurm_job.nodes > 1:
            raise ValueError(f"dask.slurm: a worker is on one node, but slurm_job.nodes is {self.slurm_job.nodes}")
        if self.split is SplitPolicy.SHUFFLE and self.total_simulations is None:
            raise ValueError("split: shuffle needs total_simulations, the number that the older run was made with")
        return self

    @property
    def windows(self) -> Windows:
        """The maps' geometry."""
        return Windows(
            native_size=self.window_size,
            context_sizes=self.context_sizes,
            depth=self.depth,
            resolution=self.resolution,
        )

    @property
    def target_channels(self) -> tuple[str, ...]:
        """What the channels of a sample's target are called, in their order."""
        return (*TARGET_CHANNELS, *(field.name for field in self.extra_fields))

    @property
    def channel_transforms(self) -> dict[str, ChannelTransform]:
        """The transform of each channel by its name: the condition, the context maps, and the target's channels."""
        return self.transforms.by_channel() | {field.name: field.transform for field in self.extra_fields}

    @property
    def content(self) -> dict[str, Any]:
        """The settings that decide what is in a sample and to which split it belongs.

        Neither paths nor worker counts are among them, and neither are the strata: they decide which samples
        there are, not what is in one.
        """
        names = {
            "set_name",
            "snapshot_number",
            "window_size",
            "context_sizes",
            "depth",
            "resolution",
            "stars",
            "black_holes",
            "backend",
            "rotations",
            "root_seed",
            "split",
            "test_fraction",
        }
        if self.split is SplitPolicy.SHUFFLE:
            names.add("total_simulations")
        values = self.model_dump(mode="json", include=names)
        if self.extra_fields:  # a data set without any keeps the digest that it had before there were such fields
            values["extra_fields"] = [field.content for field in self.extra_fields]
        return values

    @property
    def digest(self) -> str:
        """SHA-256 of `content`, as 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return the configuration as YAML that `from_yaml` reads back to an equal one."""
        values = self.model_dump(mode="json")
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_values(cls, values: dict[str, Any], source: str = "the configuration") -> Self:
        """Build a configuration from plain values.

        Parameters
        ----------
        values : dict
            Field values; unknown names are refused.
        source : str
            Where the values come from, for the error message.

        Raises
        ------
        ConfigurationError
            With every problem found, one a line.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigurationError(_explain(error, source)) from None

    @classmethod
    def from_yaml(cls, path: Path, overrides: dict[str, Any] | None = None) -> Self:
        """Read a configuration from a YAML file.

        Parameters
        ----------
        path : Path
            The file. Environment variables in its values are not expanded.
        overrides : dict, optional
            Values that replace those of the file.

        Raises
        ------
        ConfigurationError
            If the file cannot be read, is no YAML mapping, or has values that cannot be used.
        """
        return cls.from_values(read_yaml_mapping(path) | (overrides or {}), source=str(path))


_FOUND = reprlib.Repr()
_FOUND.maxstring = _FOUND.maxother = 300
_FOUND.maxlong = 60


def _explain(error: ValidationError, source: str) -> str:
    lines = [f"{source} cannot be used:"]
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "(settings together)"
        found = "" if problem["type"] in {"missing", "value_error"} else f" (found {_FOUND.repr(problem['input'])})"
        lines.append(f"  {where}: {problem['msg'].removeprefix('Value error, ')}{found}")
        if problem["type"] == "extra_forbidden":
            lines[-1] += f"; known settings are {', '.join(_model_of(problem['loc']).model_fields)}"
    return "\n".join(lines)


def _model_of(setting: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the model that a setting belongs to, by where it stands."""
    groups: dict[int | str, type[BaseModel]] = {
        "strata": Stratum,
        "extra_fields": ExtraField,
        "transform": ChannelTransform,
        "dask": DaskSettings,
        "slurm_job": SlurmJobSettings,
        "transforms": ChannelTransforms,
        **dict.fromkeys(ChannelTransforms.model_fields, ChannelTransform),
    }
    return next((groups[name] for name in reversed(setting[:-1]) if name in groups), DatasetConfig)
