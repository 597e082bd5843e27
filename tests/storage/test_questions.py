"""The ready questions, asked of data sets whose answers are known."""

import json
import re
from datetime import timedelta

import polars as pl
import pytest
from deltalake import write_deltalake

from bind_core.config import Stratum
from bind_core.findings import Finding, FindingCode, Severity
from storage.manifest import open_dataset
from storage.queries import query
from storage.questions import QUESTIONS, QuestionError, ask, find_question
from storage.versions import resolve_version, tag_version

HOSTILE = [
    "x' OR '1'='1",
    "'; DROP TABLE samples; --",
    "x' UNION SELECT content FROM read_text('/etc/passwd') --",
    "$run",
    "\x00",
    "%",
    "SB35_0'",
]


def rows(dataset, name: str, version=None, **given: str) -> list[dict]:
    return ask(dataset.layout, name, given, version).to_dicts()


@pytest.fixture
def filled(dataset):
    """Return a data set of three simulations by two runs, in two splits and strata."""
    dataset.clock += timedelta(hours=1)
    light = {"stratum": pl.lit("(1e+12, 1e+13]"), "halo_mass": pl.col("halo_mass") / 10}
    heavy = dataset.sample_rows("SB35_0", halos=2, run_id="one")
    heavy = heavy.with_columns(halo_mass=pl.col("halo") * 1e14 + 2e13)
    parts = [heavy, dataset.sample_rows("SB35_2", run_id="one").with_columns(**light)]
    dataset.open().commit(pl.concat(parts), dataset.simulation_rows("SB35_0", "SB35_2", run_id="one"), "one")
    last = dataset.sample_rows("SB35_10", rotations=1, split="test", run_id="two")
    dataset.open().commit(last, dataset.simulation_rows("SB35_10", run_id="two", split="test"), "two")
    return dataset


def test_every_question_can_be_asked_of_any_data_set(dataset, filled) -> None:
    """Each question is one statement that reads, takes the parameters that it names, and has an answer."""
    assert len({question.name for question in QUESTIONS}) == len(QUESTIONS) >= 11
    for question in QUESTIONS:
        assert set(re.findall(r"\$(\w+)", question.sql)) == {parameter.name for parameter in question.parameters}
        texts = {parameter.name: "1" for parameter in question.parameters}
        ask(filled.layout, question.name, texts)
        assert question.answers.endswith(".")


def test_every_question_has_an_answer_before_the_first_sample(dataset) -> None:
    """Of a data set of simulations without samples, questions are answered too, about samples with no row."""
    dataset.open().commit(None, dataset.simulation_rows("SB35_0", status="blocked"), "run")
    for question in QUESTIONS:
        answer = ask(dataset.layout, question.name, {parameter.name: "1" for parameter in question.parameters})
        about_simulations = question.name in {"statuses", "blocked", "runs"}
        assert answer.height == int(about_simulations), question.name


def test_contents_and_strata(filled) -> None:
    """Samples, simulations and haloes are counted by split, and by split and stratum."""
    test, train = rows(filled, "contents")
    assert (test["split"], test["samples"], test["simulations"], test["haloes"]) == ("test", 1, 1, 1)
    assert (train["samples"], train["simulations"], train["haloes"]) == (6, 2, 3)
    assert (train["heaviest"], train["runs"], test["runs"]) == (1.2e14, ["one"], ["two"])
    assert train["config_digests"] == [filled.config.digest]
    assert train["code_versions"] == ["0.1.0"]
    found = [(row["split"], row["stratum"], row["samples"], row["haloes"]) for row in rows(filled, "strata")]
    assert found == [("test", "(1e+13, inf]", 1, 1), ("train", "(1e+12, 1e+13]", 2, 1), ("train", "(1e+13, inf]", 4, 2)]


def test_a_tag_says_what_a_model_was_trained_on(filled) -> None:
    """Asked at a tag, the contents are those of when it was given, whatever came or was made anew since."""
    tag_version(filled.layout, "trained")
    before = rows(filled, "contents")
    again = filled.sample_rows("SB35_0", halos=2, run_id="three", stars=False)
    filled.open().commit(
        again, filled.simulation_rows("SB35_0", run_id="three"), "three", replaced=set(again["sample_id"])
    )
    filled.commit("SB35_4", run_id="four")
    now, then = rows(filled, "contents"), rows(filled, "contents", resolve_version(filled.layout, "trained"))
    assert then == before
    assert now[1]["runs"] == ["four", "one", "three"]
    assert len(rows(filled, "made-by", run="one")) == 2
    assert len(rows(filled, "made-by", resolve_version(filled.layout, "trained"), run="one")) == 6


def test_statuses_are_those_of_the_record(filled) -> None:
    """Each simulation has its newest status and its number of samples; samples without an attempt are said to be so."""
    filled.open().commit(None, filled.simulation_rows("SB35_3", status="failed", message="no rank"), "run")
    rows_of = filled.open().simulations().filter(pl.col("simulation") != "SB35_2")
    write_deltalake(filled.layout.simulations_table, rows_of.to_arrow(), mode="overwrite")
    found = [(row["simulation"], row["status"], row["samples"], row["message"]) for row in rows(filled, "statuses")]
    assert found == [
        ("SB35_0", "complete", 4, ""),
        ("SB35_2", None, 2, "no attempt was recorded"),
        ("SB35_3", "failed", 0, "no rank"),
        ("SB35_10", "complete", 1, ""),
    ]


def test_simulations_without_work(dataset) -> None:
    """Only simulations whose newest attempt found no halo are listed."""
    manifest = dataset.open()
    manifest.commit(None, dataset.simulation_rows("SB35_1", "SB35_2", "SB35_10", status="no_work", n_halos=0), "run")
    manifest.commit(None, dataset.simulation_rows("SB35_1", status="complete"), "run")
    assert [row["simulation"] for row in rows(dataset, "no-work")] == ["SB35_2", "SB35_10"]


def test_blocked_simulations_have_their_first_error(dataset) -> None:
    """A warning before it is passed over; a failure without findings has its message."""
    finding = Finding(FindingCode.MASS_BUDGET, "SB35_1", "Header", "1", "2", "Look.", Severity.WARNING)
    error = Finding(FindingCode.BAD_MASSES, "SB35_1", 'it\'s "x".hdf5', "masses > 0", "-1", "Copy it again.")
    findings = json.dumps([finding.as_dict(), error.as_dict(), error.as_dict()])
    manifest = dataset.open()
    manifest.commit(None, dataset.simulation_rows("SB35_1", status="blocked", findings=findings), "run")
    manifest.commit(None, dataset.simulation_rows("SB35_0", status="failed", message="lost a rank"), "run")
    manifest.commit(None, dataset.simulation_rows("SB35_2"), "run")
    failed, blocked = rows(dataset, "blocked")
    assert (failed["simulation"], failed["errors"], failed["code"], failed["message"]) == (
        "SB35_0",
        0,
        None,
        "lost a rank",
    )
    assert (blocked["errors"], blocked["code"], blocked["place"]) == (2, "bad_masses", 'it\'s "x".hdf5')
    assert (blocked["expected"], blocked["found"], blocked["advice"]) == ("masses > 0", "-1", "Copy it again.")


def test_one_simulation_can_be_looked_at(filled) -> None:
    """Samples and attempts of a simulation are listed, and of no other whose name begins alike."""
    filled.commit("SB35_1", run_id="three")
    assert [row["sample_id"] for row in rows(filled, "samples", simulation="SB35_1")] == [
        "SB35_1_halo_0_rot_0",
        "SB35_1_halo_0_rot_1",
    ]
    filled.open().commit(None, filled.simulation_rows("SB35_1", status="failed"), "run")
    assert [row["status"] for row in rows(filled, "attempts", simulation="SB35_1")] == ["complete", "failed"]


def test_heaviest_haloes(filled) -> None:
    """Haloes, not samples, are listed by mass; the number of them can be chosen."""
    first, second = rows(filled, "heaviest", count="2")
    assert (first["simulation"], first["halo"], first["halo_mass"], first["samples"]) == ("SB35_0", 1, 1.2e14, 2)
    assert second["halo_mass"] < 1.2e14
    assert len(rows(filled, "heaviest")) == 4


def test_haloes_with_fewer_rotations_than_asked_for(filled) -> None:
    """Haloes are listed that lack orientations of their stratum, as configured; one of no stratum lacks none."""
    config = filled.config.model_copy(update={"strata": (Stratum(rotations=2),)})
    open_dataset(filled.layout, config).commit(None, filled.simulation_rows("SB35_9", status="no_work"), "run")
    (row,) = rows(filled, "fewer-rotations")
    assert (row["simulation"], row["halo"], row["there"], row["asked_for"]) == ("SB35_10", 0, 1, 2)
    assert query(filled.layout, "SELECT * FROM strata").rows() == [("(1e+13, inf]", 1e13, float("inf"), 2)]


def test_runs_and_what_each_made(filled) -> None:
    """Each run has its attempts by outcome and its samples; the samples of one are listed."""
    filled.open().commit(None, filled.simulation_rows("SB35_3", status="blocked", run_id="three"), "three")
    found = [(r["run_id"], r["attempts"], r["complete"], r["blocked"], r["samples"]) for r in rows(filled, "runs")]
    assert found == [("one", 2, 2, 0, 6), ("two", 1, 1, 0, 1), ("three", 1, 0, 1, 0)]
    assert [row["sample_id"] for row in rows(filled, "made-by", run="two")] == ["SB35_10_halo_0_rot_0"]
    sizes = {row["run_id"]: row["bytes"] for row in rows(filled, "runs")}
    assert sum(sizes.values()) == filled.open().samples()["bytes"].sum()


def test_mass_budget(filled) -> None:
    """The toy samples are 84 % dark matter and 15 % gas but for stars, and have the mass of their conditions."""
    for row in rows(filled, "mass-budget"):
        dark, gas, stars = (row[f"{kind}_fraction"] for kind in ("dark", "gas", "star"))
        assert dark + gas + stars == pytest.approx(1)
        assert dark / gas == pytest.approx(0.84 / 0.15, rel=1e-6)
        assert 0 < stars < 0.01
        assert row["target_to_condition"] == pytest.approx(0.99 + stars, abs=2e-4)


def test_disk_use(filled) -> None:
    """Bytes are added up by split and simulation, and are those of the files."""
    found = {(row["split"], row["simulation"]): row["bytes"] for row in rows(filled, "disk-use")}
    assert list(found) == [("test", "SB35_10"), ("train", "SB35_0"), ("train", "SB35_2")]
    for (split, simulation), size in found.items():
        folder = filled.layout.simulation_folder(split, simulation)
        assert size == sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", ["made-by", "samples", "attempts"])
def test_what_is_given_never_becomes_sql(filled, name: str, text: str) -> None:
    """A parameter that holds SQL is a text that nothing is called: the answer has no row, the tables are as before."""
    (parameter,) = find_question(name).parameters
    assert rows(filled, name, **{parameter.name: text}) == []
    assert filled.open().samples().height == 7


@pytest.mark.parametrize("text", ["", "0", "-1", "ten", "1.5", "1; DROP TABLE samples", "9" * 30, "٣", "1e3", " 5"])
def test_a_number_must_be_one(filled, text: str) -> None:
    """A count that is no whole number of 1 or more is refused with an example."""
    with pytest.raises(QuestionError, match=r"expected a whole number .*count=10"):
        ask(filled.layout, "heaviest", {"count": text})


def test_questions_and_parameters_that_there_are_not(filled) -> None:
    """An unknown question is refused with those there are; missing and unknown parameters with those it takes."""
    with pytest.raises(QuestionError, match=r"no ready question called 'nope'; there are contents, strata,"):
        ask(filled.layout, "nope")
    with pytest.raises(QuestionError, match=r"needs run; it takes run \(id of a run\)\. Give it as --param run=VALUE"):
        ask(filled.layout, "made-by")
    with pytest.raises(QuestionError, match=r"no parameter limit; it takes count \(how many\)"):
        ask(filled.layout, "heaviest", {"limit": "3"})
    with pytest.raises(QuestionError, match="no parameter x; it takes none"):
        ask(filled.layout, "runs", {"x": "3"})
