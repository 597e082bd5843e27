"""What docs/manifest.md says of the manifest is so."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from storage.columns import SAMPLES, SIMULATIONS, SimulationStatus
from storage.questions import QUESTIONS

DOCS = (Path(__file__).parents[2] / "docs" / "manifest.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return DOCS.split(f"# {title}\n", 1)[1].split("\n#", 1)[0]


def first_cells(text: str) -> list[str]:
    """Return the names in backticks of the first column of the tables in a text, in order."""
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\S+)`", row)]


def test_every_column_is_described_in_order() -> None:
    """The two tables of columns name the schemas' columns, all of them and no other, in their order."""
    assert first_cells(section("The table `samples`")) == list(SAMPLES.schema(n_context=2))
    names = first_cells(section("The table `simulations`"))
    columns, statuses = names[: -len(SimulationStatus)], names[-len(SimulationStatus) :]
    assert columns == list(SIMULATIONS.schema())
    assert statuses == [str(status) for status in SimulationStatus]


def test_units_are_those_of_the_schemas() -> None:
    """Every column of the samples with a unit has that unit in the docs, and no other has one."""
    units = {column.name: column.unit for column in SAMPLES.columns(n_context=3)}
    for columns, unit in re.findall(r"^\| (`.*?) \| [^|]* \| ([^|]*)\| ", section("The table `samples`"), re.MULTILINE):
        for name in re.findall(r"`(\S+)`", columns):
            assert units[name] == unit.strip(), name


def test_every_ready_question_is_listed_with_its_parameters() -> None:
    """The table of questions has all of them in order, each with the parameters that it takes."""
    rows = re.findall(r"^\| `([\w-]+)` \| (.*?) ?\| ", section("Ready questions"), re.MULTILINE)
    assert [name for name, _ in rows] == [question.name for question in QUESTIONS]
    for (_, parameters), question in zip(rows, QUESTIONS, strict=True):
        assert re.findall(r"`(\w+)`", parameters) == [parameter.name for parameter in question.parameters]
        defaults = [str(parameter.default) for parameter in question.parameters if parameter.default is not None]
        assert re.findall(r"\((\d+)\)", parameters) == defaults


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL))
def test_the_tables_are_read_without_us(dataset_at, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Each example in the docs reads the rows of the version that it asks for."""
    dataset = dataset_at("OUT")
    dataset.commit("SB35_0")
    dataset.commit("SB35_1", split="test")
    monkeypatch.chdir(dataset.root.parent)
    found: dict[str, Any] = {}
    exec(code, found)  # noqa: S102
    expected = {
        "train": lambda rows: set(rows["simulation"]) == {"SB35_0"},
        "then": lambda rows: isinstance(rows, pl.DataFrame) and rows.height == 2,
        "rows": lambda rows: list(rows["sample_id"]) == ["SB35_0_halo_0_rot_0", "SB35_0_halo_0_rot_1"],
        "per_split": lambda answer: answer == [("test", 2), ("train", 2)],
        "history": lambda entries: [entry["action"] for entry in entries] == ["generate", "generate"],
    }
    results = expected.keys() & found.keys()
    assert results
    for name in results:
        assert expected[name](found[name]), name
