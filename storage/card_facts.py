"""What there is to say about a version of a data set: gathered once, for its card's machine and human readers."""

from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Self

import polars as pl

from bind_core.config import BlackHolePolicy, DatasetConfig, RotationPolicy, StarPolicy
from bind_core.errors import BindDataError, NormalizationMismatchError, ParameterTableError
from bind_core.normalization import ChannelStats, DatasetIdentity, NormalizationStats
from bind_core.parameters import find_parameter_file, read_parameter_table
from bind_core.sample import CHANNELS_KEY, TARGET_CHANNELS
from bind_core.splits import Split
from storage.columns import SAMPLES, Column, SimulationStatus
from storage.commits import ManifestVersion
from storage.layout import DatasetLayout
from storage.manifest import Manifest, recorded_configuration
from storage.samples import CONTRACT, SampleError, read_sample
from storage.statistics import StatisticsError, read_statistics, statistics_file
from storage.versions import DatasetVersion

_LISTED = 10
"""Simulations that a limit names; of more, it gives the number."""


class CardError(BindDataError):
    """A version that no card can be written of."""


@dataclass(frozen=True)
class Publication:
    """What only its owner can say of a data set; empty where it is not said."""

    creators: tuple[str, ...] = ()
    license: str = ""
    """URL of a licence, or its SPDX identifier."""
    url: str = ""
    """Page of the data set."""
    citation: str = ""
    """How to cite it, best in BibTeX; an entry for the data set itself is made up where it is not said."""


@dataclass(frozen=True)
class Array:
    """An array in a sample's file."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    """None for an extent that is not known."""
    description: str
    unit: str


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of the transformed values of all pixels of a map in the train split."""

    array: str
    channel: int | None
    """Index along the array's first axis; None for an array that is one map."""
    name: str
    transform: str
    """As a formula of x."""
    mean: float
    std: float

    @classmethod
    def of(cls, array: str, channel: int | None, name: str, stats: ChannelStats) -> Self:
        """Return what a card says of the statistics of a map."""
        return cls(array, channel, name, str(stats.transform), stats.mean, stats.std)


@dataclass(frozen=True)
class DatasetFacts:
    """A version of a data set, as its card describes it."""

    config: DatasetConfig
    version: DatasetVersion
    history: tuple[ManifestVersion, ...]
    """All versions up to this one, oldest first."""
    samples: pl.DataFrame
    """Its rows."""
    simulations: pl.DataFrame
    """The newest attempt at each simulation, as recorded at that version."""
    parameters: tuple[str, ...]
    """Names of the simulations' parameters; empty if the parameter table is out of reach."""
    n_parameters: int | None
    """Length of ``params``; None if no sample can be read."""
    statistics: NormalizationStats | None
    """None if none were computed, or those that lie there cannot be used."""
    statistics_problem: str
    """Why they cannot; empty if they can, or there are none."""
    n_replaced: int
    """Samples of this version that a later one has made anew or removed."""
    publication: Publication
    published_at: datetime
    """UTC."""

    @property
    def name(self) -> str:
        """Name of the data set."""
        return f"BIND training set {self.config.set_name}"

    @property
    def release(self) -> str:
        """The version as MAJOR.MINOR.PATCH: samples were changed or removed, added, or only rearranged."""
        major, minor, patch = 1, -1, 0
        for entry in self.history:
            if entry.samples_removed:
                major, minor, patch = major + 1, 0, 0
            elif entry.samples_added:
                minor, patch = minor + 1, 0
            else:
                patch += 1
        return f"{major}.{max(minor, 0)}.{patch}"

    @property
    def bytes(self) -> int:
        """Size of all samples' files."""
        return int(self.samples["bytes"].sum())

    @property
    def created_at(self) -> datetime:
        """When the first of the samples was made, UTC."""
        return self.samples["created_at"].min()  # type: ignore[return-value]

    @property
    def modified_at(self) -> datetime:
        """When the version was committed, UTC."""
        return self.version.committed_at or self.samples["created_at"].max()  # type: ignore[return-value]

    @property
    def description(self) -> str:
        """What it is, in a few sentences."""
        windows = self.config.windows
        wider = ", ".join(f"{size:g}" for size in windows.context_sizes)
        further = ", ".join(field.name.replace("_", " ") for field in self.config.extra_fields)
        return (
            f"Aligned maps of massive haloes in pairs of cosmological simulations: each universe was run twice, with "
            f"dark matter only and with gas, stars and black holes. A sample shows one halo in one orientation: the "
            f"dark matter of the dark-matter-only run {windows.native_size:g} Mpc/h around the halo"
            + (f" and in wider windows of {wider} Mpc/h" if wider else "")
            + ", and, as targets, dark matter, gas and stars"
            + (f", and further fields ({further})" if further else "")
            + " of the hydrodynamic run in the narrow window, all "
            f"projected along {windows.depth:g} Mpc/h on {windows.resolution} x {windows.resolution} pixels. "
            f"{self.samples.height:,} samples of {self.samples['simulation'].n_unique():,} simulations of set "
            f"{self.config.set_name}. Made to train models that paint baryons onto dark-matter-only simulations."
        )

    @cached_property
    def columns(self) -> list[Column]:
        """Columns of the samples' table."""
        sizes = {f"mass_large_scale_{i}": size for i, size in enumerate(self.config.context_sizes)}
        return [
            replace(column, description=f"Mass in the context window of {sizes[column.name]:g} Mpc/h.")
            if column.name in sizes
            else column
            for column in SAMPLES.columns(len(sizes))
        ]

    @property
    def mass_columns(self) -> list[str]:
        """Names of the columns that hold masses, in Msun/h."""
        return [column.name for column in self.columns if column.unit == "Msun/h"]

    @cached_property
    def arrays(self) -> list[Array]:
        """Arrays of a sample."""
        extents = {
            "npix": self.config.resolution,
            "n_target": len(self.config.target_channels),
            "n_context": len(self.config.context_sizes),
            "n_params": self.n_parameters,
        }
        arrays = [
            Array(
                name,
                contract.dtype.__name__,
                tuple(extents[extent] if isinstance(extent, str) else extent for extent in contract.shape),
                contract.description,
                contract.unit,
            )
            for name, contract in CONTRACT.items()
        ]
        if not self.config.extra_fields:
            return arrays
        meanings = "; ".join(field.meaning for field in self.config.extra_fields)
        further = f" Then further fields, with units of their own: {meanings}."
        arrays = [
            replace(array, description=array.description + further) if array.name == "target" else array
            for array in arrays
        ]
        names = "Names of the channels of target, in their order."
        return [*arrays, Array(CHANNELS_KEY, "str", (len(self.config.target_channels),), names, "")]

    @property
    def channels(self) -> list[ChannelStatistics]:
        """Statistics of each map; empty if none were computed."""
        stats = self.statistics
        if stats is None:
            return []
        found = [ChannelStatistics.of("condition", None, "condition", stats.condition)]
        for index, (channel, own) in enumerate(stats.target.items()):
            found.append(ChannelStatistics.of("target", index, f"target, {channel.replace('_', ' ')}", own))
        for index, (size, own) in enumerate(zip(self.config.context_sizes, stats.large_scale, strict=True)):
            found.append(ChannelStatistics.of("large_scale", index, f"large scale, {size:g} Mpc/h", own))
        return found

    @property
    def citation(self) -> str:
        """How to cite it."""
        if self.publication.citation:
            return self.publication.citation
        fields = {
            "title": f"{self.name}, version {self.release}",
            "author": " and ".join(self.publication.creators),
            "year": f"{self.published_at:%Y}",
            "note": f"manifest version {self.version.number}, configuration {self.config.digest[:12]}",
            "url": self.publication.url,
        }
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
        return f"@misc{{bind_{self.config.set_name.lower()}_{self.version.number},\n{lines}\n}}"

    @property
    def limits(self) -> list[str]:
        """What a user should know before relying on it."""
        return [*self._limits_of_the_method(), *self._limits_of_this_version()]

    def _limits_of_the_method(self) -> list[str]:
        config, lines = self.config, []
        strata = ", ".join(f"{stratum.name} Msun/h x {stratum.rotations}" for stratum in config.strata)
        lines.append(
            f"Only haloes within the chosen mass ranges (M200c; range x orientations: {strata}) are there; the number "
            "of haloes falls steeply with mass, so the heaviest are few."
        )
        lines.append(
            "Orientations of one halo show the same matter, and haloes of one simulation share its parameters and "
            "phases: samples are not independent. The split is by simulation, so that train and test share none."
        )
        lines.append(
            f"A map holds all matter along {config.depth:g} Mpc/h: other structures in the line of sight are in it."
        )
        if config.stars is StarPolicy.ALL:
            lines.append("The star map holds all of PartType4, in TNG-like runs wind-phase gas too.")
        else:
            lines.append("Wind-phase gas is in no map.")
        if config.black_holes is BlackHolePolicy.EXCLUDE:
            lines.append("Black holes are in no map.")
        else:
            lines.append("The mass of black holes is in the star map.")
        if config.rotations is RotationPolicy.EULER:
            lines.append("Orientations are drawn from three uniform Euler angles, which is not uniform on the sphere.")
        return lines

    def _limits_of_this_version(self) -> list[str]:
        lines = []
        unfinished = self.simulations.filter(~pl.col("status").is_in([*map(str, _SETTLED)]))
        for (status,), rows in sorted(unfinished.partition_by("status", as_dict=True).items()):
            names = rows["simulation"].to_list()
            named = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED:,} more" if names[_LISTED:] else "")
            lines.append(f"{len(names):,} simulations were recorded as {str(status).replace('_', ' ')}: {named}.")
        empty = [split.value for split in Split if not self.split_counts.get(split.value)]
        if empty:
            lines.append(f"There is no sample in the {' and the '.join(empty)} split.")
        digests = self.samples["config_digest"].unique().to_list()
        if digests != [self.config.digest]:
            lines.append(
                f"Its samples were made with {len(digests)} configurations ({', '.join(d[:12] for d in digests)}); "
                f"dataset.yaml holds {self.config.digest[:12]}."
            )
        if self.n_replaced:
            lines.append(
                f"{self.n_replaced:,} of its samples were made anew or removed by a later version. What they were then "
                "is kept as superseded/<first two digits of sha256>/<sha256>.npz, and not at their path."
            )
        if self.statistics_problem:
            lines.append(self.statistics_problem)
        elif self.statistics is None:
            lines.append("No normalization statistics were computed.")
        elif self.statistics.manifest_version != self.version.number:
            lines.append(
                f"The normalization statistics are those of manifest version {self.statistics.manifest_version}."
            )
        return lines

    @cached_property
    def split_counts(self) -> dict[str, int]:
        """Samples by split, train first; without those that have none."""
        counts = dict(self.samples.group_by("split").len().rows())
        return {split.value: counts[split.value] for split in Split if split.value in counts}

    @cached_property
    def strata(self) -> pl.DataFrame:
        """A row for each split and stratum: ``simulations``, ``halos``, ``samples``, ``lightest``, ``heaviest``."""
        return (
            self.samples.group_by("split", "stratum")
            .agg(
                simulations=pl.col("simulation").n_unique(),
                halos=pl.struct("simulation", "halo").n_unique(),
                samples=pl.len(),
                lightest=pl.col("halo_mass").min(),
                heaviest=pl.col("halo_mass").max(),
            )
            .sort("split", "stratum", descending=[True, False])
        )

    @cached_property
    def runs(self) -> pl.DataFrame:
        """A row for each run that made some of the samples: ``run_id``, ``code_version``, ``samples``, times."""
        return (
            self.samples.group_by("run_id", "code_version")
            .agg(samples=pl.len(), first=pl.col("created_at").min(), last=pl.col("created_at").max())
            .sort("first", "run_id")
        )

    @cached_property
    def sources(self) -> pl.DataFrame:
        """A row for each simulation that has samples: ``simulation``, ``inputs_digest``, ``samples``."""
        return self.samples.group_by("simulation", "inputs_digest").agg(samples=pl.len()).sort("simulation")


_SETTLED = (SimulationStatus.COMPLETE, SimulationStatus.NO_WORK)


def gather(
    layout: DatasetLayout, version: DatasetVersion, publication: Publication, published_at: datetime
) -> DatasetFacts:
    """Gather what there is to say about a version of a data set.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    version : DatasetVersion
        Which of its versions.
    publication : Publication
        What its owner says.
    published_at : datetime
        UTC.

    Raises
    ------
    CardError
        If the version has no sample.
    ManifestError
        If a table cannot be read.
    ConfigurationError
        If ``dataset.yaml`` cannot be read.
    """
    manifest = Manifest(layout)
    config = recorded_configuration(layout.root)
    samples = manifest.samples(version.number)
    if config is None or samples.is_empty():
        raise CardError(
            f"Version {version.number} of the data set {layout.root} has no sample that a card could describe. "
            "Generate samples first, or choose another version."
        )
    attempts = manifest.simulations(version.simulations_number)
    statistics, problem = _statistics(layout, version, samples)
    return DatasetFacts(
        config=config,
        version=version,
        history=tuple(entry for entry in manifest.versions if entry.version <= version.number),
        samples=samples,
        simulations=attempts.unique("simulation", keep="last", maintain_order=True).sort("simulation"),
        parameters=_parameter_names(config),
        n_parameters=_parameter_count(layout, samples["path"][0]),
        statistics=statistics,
        statistics_problem=problem,
        n_replaced=_replaced(manifest, version, samples),
        publication=publication,
        published_at=published_at,
    )


def _parameter_names(config: DatasetConfig) -> tuple[str, ...]:
    try:
        return read_parameter_table(find_parameter_file(config)).names
    except ParameterTableError:
        return ()


def _parameter_count(layout: DatasetLayout, path: str) -> int | None:
    """Return the number of parameters in a sample's file, if that can be read."""
    try:
        return len(read_sample(layout.absolute(path)).params)
    except SampleError:
        return None


def _statistics(
    layout: DatasetLayout, version: DatasetVersion, samples: pl.DataFrame
) -> tuple[NormalizationStats | None, str]:
    """Return the normalization statistics that lie beside the samples, or why they are not of these."""
    if not any((layout.statistics_folder / statistics_file(channel)).exists() for channel in TARGET_CHANNELS):
        return None, ""
    try:
        stats = read_statistics(layout.statistics_folder)
        if stats.config_digest not in samples["config_digest"]:
            stats.require(DatasetIdentity(samples["config_digest"][0], layout.set_name, version.number))
    except (StatisticsError, NormalizationMismatchError) as error:
        return None, str(error)
    return stats, ""


def _replaced(manifest: Manifest, version: DatasetVersion, samples: pl.DataFrame) -> int:
    """Return how many samples of a version are no longer what they were."""
    if version.number == manifest.version:
        return 0
    now = manifest.samples().select("sample_id", "sha256")
    return samples.select("sample_id", "sha256").join(now, on=["sample_id", "sha256"], how="anti").height
