import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlcroissant as mlc
import numpy as np
import polars as pl
import pytest
from etils import epath
from mlcroissant._src.operation_graph.operations import FilterFiles, LocalDirectory

from bind_core.config import RotationPolicy, Stratum
from bind_core.normalization import ChannelStats, NormalizationStats
from bind_core.sample import TARGET_CHANNELS
from storage.card import Card, write_card
from storage.card_facts import CardError, Publication
from storage.columns import SAMPLES, SIMULATIONS
from storage.statistics import read_statistics, write_statistics
from storage.versions import resolve_version, tag_version

TODAY = datetime(2026, 11, 24, tzinfo=UTC)
SAID = Publication(
    creators=("Ada Person", "Grace Other"),
    license="https://creativecommons.org/licenses/by/4.0/",
    url="https://example.org/bind",
)


@pytest.fixture
def filled(dataset):
    """Return a data set of three simulations, one of them in test, with statistics."""
    dataset.commit("SB35_0", "SB35_1")
    dataset.commit("SB35_2", split="test")
    stats = NormalizationStats(
        condition=ChannelStats(8.5, 1.5),
        large_scale=(ChannelStats(7.0, 2.0),) * 3,
        target=dict.fromkeys(TARGET_CHANNELS, ChannelStats(7.0, 2.0)),
        manifest_version=1,
        config_digest=dataset.config.digest,
        n_samples=4,
    )
    write_statistics(stats, dataset.layout.statistics_folder)
    return dataset


def card_of(dataset, publication: Publication = SAID, version: str | int | None = None, **options: Any) -> Card:
    return write_card(dataset.layout, resolve_version(dataset.layout, version), publication, TODAY, **options)


def described(dataset) -> dict[str, Any]:
    return json.loads((dataset.root / "croissant.json").read_text())


def page(dataset) -> str:
    """Return the page with its lines joined, so that it does not matter where they are broken."""
    return " ".join((dataset.root / "DATASET.md").read_text().split())


def record_set(card: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in card["recordSet"] if found["@id"] == name)


def fields(card: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    return {field["name"]: field for field in record_set(card, name)["field"]}


def test_the_card_is_valid_croissant(filled) -> None:
    """The library mlcroissant finds neither an error nor anything to warn of, and takes it for version 1.1."""
    card_of(filled)
    metadata = mlc.Dataset(jsonld=str(filled.root / "croissant.json")).metadata
    assert metadata.ctx.issues.errors == set()
    assert metadata.ctx.issues.warnings == set()
    assert metadata.ctx.is_v1_1()
    assert metadata.name == "BIND training set SB35"
    assert [creator.name for creator in metadata.creators] == list(SAID.creators)


def test_the_licence_is_not_made_up(filled) -> None:
    """What only the owner knows is left out where it is not said, and the card says what is missing."""
    card = card_of(filled, Publication())
    assert card.unsaid == ("creators", "license", "url")
    assert not {"license", "url", "creator"} & described(filled).keys()
    issues = mlc.Dataset(jsonld=str(filled.root / "croissant.json")).metadata.ctx.issues
    assert issues.errors == set()
    assert len(issues.warnings) == 1
    assert "license" in issues.warnings.pop()
    assert card_of(filled).unsaid == ()


def test_records_are_the_rows_of_the_manifest(filled) -> None:
    """Whoever iterates over the samples with mlcroissant gets every row of the manifest, with its values and types."""
    card_of(filled)
    records = list(mlc.Dataset(jsonld=str(filled.root / "croissant.json")).records("samples"))
    rows = filled.open().samples().rows(named=True)
    assert len(records) == len(rows) == 6
    for record, row in zip(records, rows, strict=True):
        found = {name.removeprefix("samples/"): value for name, value in record.items()}
        texts = {name: value.decode() for name, value in found.items() if isinstance(value, bytes)}
        created = found.pop("created_at").to_pydatetime()
        assert found | texts | {"created_at": created} == row


def test_splits_have_their_records(filled) -> None:
    """The splits are a record set of their own, with what each is for and how many samples it has."""
    card_of(filled)
    found = list(mlc.Dataset(jsonld=str(filled.root / "croissant.json")).records("splits"))
    assert [(row["splits/name"], row["splits/url"], row["splits/samples"]) for row in found] == [
        ("train", "cr:TrainingSplit", 4),
        ("test", "cr:TestSplit", 2),
    ]


def test_file_sets_hold_the_samples(filled) -> None:
    """The patterns of the file sets match exactly the samples' files of each split, and of both."""
    card_of(filled)
    operations = mlc.Dataset(jsonld=str(filled.root / "croissant.json")).operations.operations
    root = epath.Path(filled.root)
    found = {
        node.node.uuid: {
            str(file.fullpath)
            for file in node.call(LocalDirectory(operations=operations, node=node.node, folder=root).call())
        }
        for node in list(operations.nodes)
        if isinstance(node, FilterFiles)
    }
    rows = filled.open().samples()
    train, test = (set(rows.filter(split=split)["path"]) for split in ("train", "test"))
    assert found == {"train-files": train, "test-files": test, "sample-files": train | test}


def test_checksums_are_those_of_the_files(filled) -> None:
    """Every single file of the distribution is there, with the size and the SHA-256 that the card gives."""
    card_of(filled)
    files = [entry for entry in described(filled)["distribution"] if entry["@type"] == "cr:FileObject"]
    assert {"samples.parquet", "dataset.yaml", "data/gas_normalization_stats.npz"} <= {file["@id"] for file in files}
    for file in files:
        content = (filled.root / file["contentUrl"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["contentSize"] == f"{len(content)} B"


def test_every_column_and_array_is_described(filled) -> None:
    """Each column of the table and each array of a sample has a field with a description, and its unit."""
    card_of(filled)
    card = described(filled)
    columns = fields(card, "samples")
    assert list(columns) == filled.open().samples().columns
    assert all(len(field["description"]) > 5 for field in columns.values())
    assert columns["halo_mass"]["unitText"] == "Msun/h"
    assert columns["halo_center_x"]["unitText"] == "Mpc/h"
    assert "25 Mpc/h" in columns["mass_large_scale_1"]["description"]
    arrays = fields(card, "sample_arrays")
    with np.load(filled.root / filled.open().samples()["path"][0]) as sample:
        for name in sample.files:
            shape = arrays[name].get("arrayShape")
            assert (tuple(map(int, shape.split(","))) if shape else ()) == sample[name].shape
            assert f"cr:{sample[name].dtype.name.capitalize()}" in arrays[name]["dataType"]


def test_no_column_of_the_tables_lacks_a_description() -> None:
    """The schemas, from which the card has its descriptions, have one for every column."""
    for form in (SAMPLES, SIMULATIONS):
        assert [column.name for column in form.columns(3) if not column.description] == []


def test_statistics_are_annotations(filled) -> None:
    """The range and mean of the halo masses, and the normalization of each channel, are in the card."""
    card_of(filled)
    card = described(filled)
    masses = filled.open().samples()["halo_mass"]
    found = {item["@id"]: item["value"] for item in fields(card, "samples")["halo_mass"]["annotation"]}
    assert found["samples/halo_mass/min"] == masses.min()
    assert found["samples/halo_mass/max"] == masses.max()
    assert found["samples/halo_mass/mean"] == pytest.approx(masses.mean())
    assert record_set(card, "samples")["annotation"][0]["value"] == 6
    arrays = fields(card, "sample_arrays")
    assert {item["@id"]: item["value"] for item in arrays["condition"]["annotation"]} == {
        "sample_arrays/condition/mean": 8.5,
        "sample_arrays/condition/std": 1.5,
    }
    assert len(arrays["target"]["annotation"]) == len(arrays["large_scale"]["annotation"]) == 6


def test_statistics_of_another_data_set_are_told(filled) -> None:
    """Statistics that lie beside the samples and are of others are a limit that names both, not numbers of the card."""
    stats = read_statistics(filled.layout.statistics_folder)
    write_statistics(dataclasses.replace(stats, config_digest="f" * 64, set_name="CV"), filled.layout.statistics_folder)
    facts = card_of(filled).facts
    assert facts.channels == []
    (limit,) = [line for line in facts.limits if "statistics" in line]
    assert f"configuration {'f' * 12}…, set CV, manifest version 1" in limit
    assert f"configuration {filled.config.digest[:12]}…, set SB35, manifest version 1" in limit


def test_provenance_is_told(filled) -> None:
    """The card names the version, its tags, the configuration, the seed, the runs and the simulations."""
    tag_version(filled.layout, "trained-2026-11")
    card_of(filled)
    card = described(filled)
    known = {entry["propertyID"]: entry["value"] for entry in card["identifier"]}
    assert known == {
        "manifest version": 1,
        "version of the simulations table": 1,
        "configuration digest": filled.config.digest,
        "root seed": filled.config.root_seed,
        "tags": "trained-2026-11",
    }
    assert "run run: 6 samples" in card["prov:wasGeneratedBy"][0]["prov:label"]
    assert [entry["prov:label"] for entry in card["prov:wasDerivedFrom"]] == [
        f"simulation SB35_{number}" for number in range(3)
    ]
    for told in ("trained-2026-11", filled.config.digest, str(filled.config.root_seed), "`resolution` | `16`"):
        assert told in page(filled)


def test_an_earlier_version_is_described_as_it_was(filled) -> None:
    """The card of a version holds its rows only, whatever was committed since."""
    card = card_of(filled, version=0)
    assert card.facts.samples.height == pl.read_parquet(filled.root / "samples.parquet").height == 4
    assert described(filled)["version"] == "1.0.0"
    assert "There is no sample in the test split." in page(filled)
    assert "statistics are those of manifest version 1" in page(filled)
    assert [entry["@id"] for entry in described(filled)["distribution"] if entry["@type"] == "cr:FileSet"] == [
        "train-files",
        "sample-files",
    ]


def test_the_example_runs(filled) -> None:
    """The code that the page gives for reading a sample runs as it stands, in the folder of the page."""
    card_of(filled)
    (code,) = re.findall(r"```python\n(.*?)```", (filled.root / "DATASET.md").read_text(), re.DOTALL)
    ended = subprocess.run([sys.executable, "-c", code], cwd=filled.root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "SB35_0_halo_0_rot_0" in ended.stdout
    assert "(16, 16) (3, 16, 16)" in ended.stdout


def test_the_page_counts_what_is_there(filled) -> None:
    """The page has simulations, haloes and samples of each split and stratum, and what became of the simulations."""
    card_of(filled)
    assert "| train | (1e+13, inf] | 2 | 2 | 4 |" in page(filled)
    assert "| test | (1e+13, inf] | 1 | 1 | 2 |" in page(filled)
    assert "Of 3 simulations: 3 complete." in page(filled)


def test_limits_are_named(dataset) -> None:
    """Simulations that are not complete, missing statistics and orientations that are not uniform are limits."""
    config = {"rotations": RotationPolicy.EULER, "strata": (Stratum(rotations=3),)}
    dataset.config = dataset.config.model_copy(update=config)
    rows = dataset.simulation_rows("SB35_0"), dataset.simulation_rows("SB35_7", status="blocked")
    dataset.open().commit(dataset.sample_rows("SB35_0"), pl.concat(rows), "run")
    card_of(dataset)
    assert "1 simulations were recorded as blocked: SB35_7." in page(dataset)
    assert "No normalization statistics were computed." in page(dataset)
    assert "not uniform on the sphere" in page(dataset)
    assert "(1e+13, inf] Msun/h x 3" in page(dataset)
    assert described(dataset)["rai:dataLimitations"] == card_of(dataset).facts.limits


def test_the_release_counts_changes(filled) -> None:
    """Added samples raise the minor number; merged files, which change no sample, the patch number."""
    from storage.compaction import compact

    assert card_of(filled).facts.release == "1.1.0"
    compact(filled.layout.samples_table, {"run_id": "tidy"})
    assert card_of(filled).facts.release == "1.1.1"
    filled.commit("SB35_3")
    assert card_of(filled).facts.release == "1.2.0"


def test_it_can_be_cited(filled) -> None:
    """The owner's citation is used as it is; without one, an entry names the version, the authors and the year."""
    card_of(filled, Publication(citation="Person et al., in prep."))
    assert described(filled)["citeAs"] == "Person et al., in prep."
    assert page(filled).endswith("## How to cite Person et al., in prep.")
    card_of(filled)
    for part in ("@misc{", "Ada Person and Grace Other", "2026", "manifest version 1"):
        assert part in described(filled)["citeAs"]


def test_the_card_can_go_elsewhere(filled, tmp_path: Path) -> None:
    """In another folder there is the same card, and nothing is written into the data set."""
    before = sorted(filled.root.rglob("*"))
    card = card_of(filled, folder=tmp_path / "card")
    assert sorted(path.name for path in card.files) == ["DATASET.md", "croissant.json", "samples.parquet"]
    assert all(path.parent == tmp_path / "card" for path in card.files)
    assert sorted(filled.root.rglob("*")) == before
    elsewhere = (tmp_path / "card" / "croissant.json").read_bytes()
    card_of(filled)
    assert (filled.root / "croissant.json").read_bytes() == elsewhere


def test_a_version_without_samples_has_no_card(dataset) -> None:
    """Where there is nothing to describe, the error says so."""
    dataset.open().commit(None, dataset.simulation_rows("SB35_0", status="no_work"), "run")
    with pytest.raises(CardError, match="no sample that a card could describe"):
        card_of(dataset)


def test_samples_made_anew_later_are_told(filled) -> None:
    """The card of a version whose samples were replaced since says how many, and where their files are kept."""
    earlier = resolve_version(filled.layout)
    row = filled.open().samples().head(1).with_columns(sha256=pl.lit("f" * 64))
    new = row.with_columns(run_id=pl.lit("again"))
    filled.open().commit(
        new,
        filled.simulation_rows("SB35_0", run_id="again"),
        "again",
        replaced={row["sample_id"][0]},
        action="refresh",
    )
    card = write_card(filled.layout, earlier, SAID, TODAY)
    assert card.facts.n_replaced == 1
    assert "1 of its samples were made anew or removed by a later version" in page(filled)
    assert card_of(filled).facts.release == "2.0.0"
