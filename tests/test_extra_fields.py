"""Further target channels, from the files of a real simulation to a data set that is audited, packed and read."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import mlcroissant
import numpy as np
import pytest
from batch_runs import assert_same, digests, message_of, output, run, simulation_rows, statuses

from bind_core.config import DatasetConfig
from bind_core.dataset import FileReader, SampleDataset, ShardReader
from bind_core.inputs import read_snapshot_digest
from bind_core.maps import target_map
from bind_core.mesh import ParticleMesh
from bind_core.projection import Backend
from bind_core.sample import Sample
from bind_core.suite import Role
from storage.audit import audit
from storage.audit_depth import Depth
from storage.card import write_card
from storage.card_facts import Publication
from storage.gallery import sheet_of_dataset
from storage.layout import DatasetLayout
from storage.manifest import Manifest
from storage.report_gallery import gallery_of
from storage.samples import read_sample
from storage.shards import pack, verify_pack
from storage.versions import resolve_version

pytestmark = [pytest.mark.camels_mini, pytest.mark.mpi]

NAME = "SB35_2"
BLACK_HOLES = 12
FIELDS: list[dict[str, Any]] = [
    {
        "name": "gas_energy",
        "particle_type": "gas",
        "field": "InternalEnergy",
        "statistic": "mean",
        "unit": "(km/s)^2",
        "transform": {"kind": "log", "scale": 100.0},
    },
    {"name": "gas_again", "particle_type": "gas", "field": "Masses", "weight": ""},
    {"name": "gas_iron", "particle_type": "gas", "field": "GFM_Metals", "component": 8, "unit": "Msun/h of iron"},
    {"name": "gas_constant", "particle_type": "gas", "field": "Constant", "weight": "Density", "statistic": "mean"},
    {
        "name": "gas_velocity",
        "particle_type": "gas",
        "field": "Velocities",
        "component": 2,
        "statistic": "mean",
        "transform": {"kind": "asinh", "scale": 100.0},
    },
    {"name": "black_hole_mass", "particle_type": "black_holes"},
    {"name": "stellar_metallicity", "particle_type": "stars", "field": "GFM_Metallicity", "statistic": "mean"},
]
CHANNELS = ("dark_matter", "gas", "stars", *(field["name"] for field in FIELDS))


def hydro_file(suite: Path) -> Path:
    return suite / "Hydro" / NAME / "snapshot_090.hdf5"


@pytest.fixture(scope="module")
def suite(camels_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a real simulation, without stars, with further fields and black holes; tests must not change it."""
    root = tmp_path_factory.mktemp("fields") / "suite"
    for folder in ("DMO", "Hydro", "FOF"):
        shutil.copytree(camels_mini / folder / NAME, root / folder / NAME)
    shutil.copy(camels_mini / "CosmoAstroSeed_SB35.txt", root)
    random = np.random.default_rng(1)
    with h5py.File(hydro_file(root), "r+") as file:
        gas = file["PartType0"]
        count = len(gas["Masses"])
        gas["Constant"] = np.full(count, 7.5, dtype=np.float32)
        gas["GFM_Metals"] = random.uniform(0, 1e-3, (count, 10)).astype(np.float32)
        gas["Velocities"] = random.normal(0, 300, (count, 3)).astype(np.float32)
        file["PartType5/Coordinates"] = gas["Coordinates"][:: count // BLACK_HOLES][:BLACK_HOLES]
        file["PartType5/Masses"] = random.uniform(1e-5, 1e-2, BLACK_HOLES)
        for name in ("NumPart_ThisFile", "NumPart_Total"):
            counts = file["Header"].attrs[name]
            counts[5] = BLACK_HOLES
            file["Header"].attrs[name] = counts
    return root


def config_of(suite: Path, root: Path, fields: list[dict[str, Any]] = FIELDS, **settings: Any) -> DatasetConfig:
    return DatasetConfig.from_values(
        {
            "dmo_base": suite / "DMO",
            "hydro_base": suite / "Hydro",
            "catalogue_base": suite / "FOF",
            "parameter_file": suite / "CosmoAstroSeed_SB35.txt",
            "output_root": root,
            "resolution": 32,
            "strata": [{"rotations": 1}],
            "extra_fields": fields,
            **settings,
        }
    )


def arguments(config: DatasetConfig, folder: Path) -> list[Path | str]:
    """Return the arguments of a batch run of the one simulation."""
    file = folder / f"{config.output_root.name}.yaml"
    file.write_text(config.to_yaml())
    return ["--config", file]


@pytest.fixture(scope="module")
def made(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    """Return the configuration of a data set that two ranks have made."""
    folder = tmp_path_factory.mktemp("made")
    config = config_of(suite, folder / "dataset")
    output(run(*arguments(config, folder), ranks=2))
    return config


@pytest.fixture(scope="module")
def samples(made: DatasetConfig) -> list[Sample]:
    """Return all of its samples, in the manifest's order."""
    layout = DatasetLayout(made.output_root, made.set_name)
    return [read_sample(layout.absolute(path)) for path in Manifest(layout).samples()["path"]]


def test_ranks_make_no_difference(made: DatasetConfig, suite: Path, tmp_path: Path) -> None:
    """One process makes the samples that two ranks make, to the byte, with all further channels."""
    output(run(*arguments(config_of(suite, tmp_path / "dataset"), tmp_path)))
    assert_same(tmp_path / "dataset", made.output_root)
    assert statuses(made.output_root) == {NAME: "complete"}


def test_the_three_maps_do_not_change(made: DatasetConfig, samples: list[Sample], suite: Path, tmp_path: Path) -> None:
    """Beside further channels, all other arrays are those of a data set without any, which has no word of channels."""
    plain = config_of(suite, tmp_path / "dataset", fields=[])
    output(run(*arguments(plain, tmp_path), ranks=2))
    assert digests(plain.output_root).keys() == digests(made.output_root).keys()
    path, *_ = digests(plain.output_root)
    with np.load(plain.output_root / path, allow_pickle=False) as without, np.load(made.output_root / path) as with_all:
        assert set(with_all) - set(without) == {"target_channels"}
        assert tuple(with_all["target_channels"]) == CHANNELS
        assert np.array_equal(with_all["target"][:3], without["target"])
        for key in set(without) - {"target"}:
            assert np.array_equal(without[key], with_all[key])


def test_channels_hold_what_is_known_of_them(samples: list[Sample]) -> None:
    """The mass as a field is the gas map to the bit; a constant's mean is the constant; no star gives zeros."""
    for sample in samples:
        channel = dict(zip(CHANNELS, sample.target, strict=True))
        assert sample.target_channels == CHANNELS
        assert np.array_equal(channel["gas_again"], channel["gas"])
        constant = channel["gas_constant"]
        weighed = channel["gas"] > 0
        np.testing.assert_allclose(constant[weighed], 7.5, rtol=1e-6)
        assert np.all(constant[~weighed] == 0)
        assert np.all(channel["gas_energy"][weighed] > 0)
        assert not channel["stellar_metallicity"].any()
        assert np.all(channel["gas_iron"] <= 1.001e-3 * channel["gas"])
    assert any((sample.target[CHANNELS.index("gas_velocity")] < 0).any() for sample in samples)
    assert any(sample.target[CHANNELS.index("black_hole_mass")].any() for sample in samples)


@pytest.mark.parametrize("name", ["gas_energy", "gas_iron", "gas_velocity", "black_hole_mass"])
def test_channels_are_those_of_the_reference(
    made: DatasetConfig, samples: list[Sample], suite: Path, name: str
) -> None:
    """Each channel is what the double-precision projection makes of the datasets as h5py reads them."""
    with h5py.File(hydro_file(suite)) as file:
        group = file["PartType5" if name == "black_hole_mass" else "PartType0"]
        positions, masses = group["Coordinates"][:] / 1000, group["Masses"][:].astype(float) * 1e10
        values = {
            "gas_energy": lambda: group["InternalEnergy"][:],
            "gas_iron": lambda: group["GFM_Metals"][:, 8],
            "gas_velocity": lambda: group["Velocities"][:, 2],
            "black_hole_mass": lambda: np.ones(len(masses)),
        }[name]().astype(float)

    def reference(weights: np.ndarray, sample: Sample) -> np.ndarray:
        particles = ParticleMesh.build(positions % 50.0, weights, 50.0)
        return target_map(particles, sample.halo_center, sample.rotation, made.windows, Backend.REFERENCE)

    for sample in samples[:5]:
        expected = reference(values * masses, sample).astype(float)
        scale = reference(np.abs(values) * masses, sample).max()
        found = sample.target[CHANNELS.index(name)].astype(float)
        if name in ("gas_energy", "gas_velocity"):
            found *= reference(masses, sample)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


def test_audit_pack_and_pictures(made: DatasetConfig, samples: list[Sample]) -> None:
    """The audit of every file finds nothing, packs give back what the files hold, and pictures can be drawn."""
    layout = DatasetLayout(made.output_root, made.set_name)
    result = audit(layout, Depth.VERIFIED, audited_at=datetime.now(UTC))
    assert not result.findings
    assert {f"z_{name}" for name in CHANNELS} <= set(result.measures.columns)
    packed = pack(layout, resolve_version(layout))
    assert verify_pack(layout, packed.folder) == []
    from_files = SampleDataset(FileReader(layout.root, Manifest(layout).samples()))
    from_pack = SampleDataset(ShardReader(packed.folder))
    assert from_files.target_channels == from_pack.target_channels == CHANNELS
    assert len(from_files) == len(from_pack) == len(samples)
    for number, sample in enumerate(samples):
        one, other = from_files[number], from_pack[number]
        assert one.keys() == other.keys() == set(Sample.numbers())
        assert all(np.array_equal(one[key], other[key]) for key in one)
        assert np.array_equal(one["target"], sample.target)
    picture = sheet_of_dataset(layout, made)
    assert picture is not None and picture.startswith(b"\x89PNG")
    pages = gallery_of(result, layout)
    shown = {picture.name for group in pages.groups for card in group.cards for picture in card.pictures}
    assert shown >= {f"Target: {name.replace('_', ' ')}" for name in CHANNELS}
    assert {"(km/s)^2", "Msun/h of iron"} <= {bar.unit for bar in pages.bars}


def test_the_card_names_channels_and_units(made: DatasetConfig) -> None:
    """The card says what each further channel is made of and in which unit, to people and to machines."""
    layout = DatasetLayout(made.output_root, made.set_name)
    write_card(layout, resolve_version(layout), Publication(), datetime.now(UTC))
    metadata = json.loads((layout.root / "croissant.json").read_text())
    assert mlcroissant.Dataset(jsonld=metadata).metadata.name
    fields = {field["name"]: field for record in metadata["recordSet"] for field in record["field"]}
    meaning = "gas_iron: sum of GFM_Metals[:, 8] of gas times Masses, in Msun/h of iron"
    assert fields["target"]["arrayShape"] == "10,32,32"
    assert meaning in fields["target"]["description"]
    assert fields["target_channels"]["dataType"] == "sc:Text"
    page = (layout.root / "DATASET.md").read_text()
    assert meaning in " ".join(page.split())
    assert "gas_energy: mean InternalEnergy of gas, weighted with Masses, in (km/s)^2" in " ".join(page.split())


def nan_in_energy(file: h5py.File) -> None:
    file["PartType0/InternalEnergy"][17] = np.nan


def no_metals(file: h5py.File) -> None:
    del file["PartType0/GFM_Metals"]


def few_metals(file: h5py.File) -> None:
    del file["PartType0/GFM_Metals"]
    file["PartType0/GFM_Metals"] = np.zeros((len(file["PartType0/Masses"]), 3), dtype=np.float32)


def negative_density(file: h5py.File) -> None:
    file["PartType0/Density"][3] = -1.0


@pytest.fixture
def spoilt(suite: Path, tmp_path: Path) -> Callable[[Callable[[h5py.File], None]], Path]:
    """Return a function that gives a copy of the suite with a changed snapshot."""

    def spoil(change: Callable[[h5py.File], None]) -> Path:
        copy = tmp_path / "suite"
        shutil.copytree(suite, copy)
        with h5py.File(hydro_file(copy), "r+") as file:
            change(file)
        return copy

    return spoil


@pytest.mark.parametrize(
    ("change", "dataset", "said"),
    [
        (nan_in_energy, "PartType0/InternalEnergy", ("finite numbers", "1 of 32,768")),
        (no_metals, "PartType0/GFM_Metals", ("a dataset of 32,768 particles", "gas_iron", "only Constant")),
        (few_metals, "PartType0/GFM_Metals", ("(32768, 9) or more columns", "(32768, 3)")),
        (negative_density, "PartType0/Density", ("weights of 0 or more", "1 of 32,768")),
    ],
)
def test_what_cannot_be_used_blocks_the_simulation(
    spoilt: Callable[[Callable[[h5py.File], None]], Path],
    tmp_path: Path,
    change: Callable[[h5py.File], None],
    dataset: str,
    said: tuple[str, ...],
) -> None:
    """A field that is missing, misshapen or not finite blocks the simulation, and the message says where and what."""
    broken = spoilt(change)
    root = tmp_path / "dataset"
    finished = run(*arguments(config_of(broken, root), tmp_path), ranks=2)
    message_of(finished, f"{hydro_file(broken)}, {dataset}", *said)
    assert statuses(root) == {NAME: "blocked"}
    assert "bad_field" in simulation_rows(root)["findings"][0]
    assert not digests(root)


def test_a_changed_field_is_a_changed_input(
    spoilt: Callable[[Callable[[h5py.File], None]], Path], suite: Path, tmp_path: Path
) -> None:
    """Another value of a field changes the input's digest where the field is a channel, and there only."""

    def hotter(file: h5py.File) -> None:
        file["PartType0/InternalEnergy"][17] *= 2

    changed = spoilt(hotter)
    with_field, without = config_of(suite, tmp_path), config_of(suite, tmp_path, fields=[])
    digest = {
        (name, number): read_snapshot_digest(hydro_file(root), Role.HYDRO, config)
        for name, root in (("old", suite), ("new", changed))
        for number, config in enumerate((with_field, without))
    }
    assert digest["old", 0] != digest["new", 0]
    assert digest["old", 1] == digest["new", 1]
    assert digest["old", 0] != digest["old", 1]
