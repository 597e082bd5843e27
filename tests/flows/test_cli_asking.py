"""The commands that ask a data set: `status`, `query`, `show`, `normalize`."""

import csv
import io
import json
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from command_line import PROGRAM, MadeDataset, call, fine, made, on_disk, refused

from storage.mock_suite import write_mock_suite
from storage.questions import QUESTIONS

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("elsewhere")]


# status


def test_status_is_good_only_where_all_is_well(sound: MadeDataset, ailing: MadeDataset) -> None:
    """A complete data set has status 0; one with a blocked simulation has status 1 and prints its findings."""
    assert "2 complete" in fine("status", "-d", sound.root)
    result = call("status", "-d", ailing.root)
    assert result.exit_code == 1
    assert "SB35_1: missing files" in result.stdout
    assert "1 blocked, 1 complete" in result.stdout


def test_status_as_json(ailing: MadeDataset) -> None:
    """With --json, standard output is one object, with the same exit status."""
    result = call("status", "-d", ailing.root, "--json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["ok"] is False
    assert {row["simulation"]: row["status"] for row in answer["simulations"]} == {
        "SB35_0": "complete",
        "SB35_1": "blocked",
    }
    assert answer["simulations"][1]["message"].startswith("SB35_1: missing files")
    (finding,) = answer["simulations"][1]["findings"]
    assert (finding["simulation"], finding["severity"]) == ("SB35_1", "error")
    assert answer["totals"]["statuses"] == {"blocked": 1, "complete": 1}


def test_status_sees_simulations_that_have_arrived(tmp_path: Path) -> None:
    """A simulation that was added to the suite since is planned, and the data set no longer complete."""
    dataset = made(tmp_path, simulations=1)
    fine("status", "-d", dataset.root)
    write_mock_suite(tmp_path / "suite", simulations=2, particles_per_side=8, halos_per_simulation=1)
    result = call("status", "-d", dataset.root, "--json")
    assert result.exit_code == 1
    assert [row["status"] for row in json.loads(result.stdout)["simulations"]] == ["complete", "planned"]


@pytest.mark.parametrize("columns", [80, 120])
def test_status_shows_where_files_and_rows_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """Lost and orphaned files are counted per simulation and in total, named, and make the status bad."""
    dataset = made(tmp_path, simulations=2)
    root = dataset.config.output_root
    monkeypatch.setenv("COLUMNS", str(columns))
    (lost, *_) = sorted((root / "train").glob("sim_0/*.npz"))
    lost.unlink()
    orphan = root / "train" / "sim_1" / "sim_1_halo_99_rot_0.npz"
    orphan.touch()
    (root / "train" / "halo.npz").touch()
    result = call("status", "-d", root)
    assert result.exit_code == 1
    heading, first, second, total = (
        next(line for line in result.stdout.splitlines() if line.strip().startswith(start))
        for start in ("simulation", "SB35_0", "SB35_1", "all 2")
    )
    for heading_of, numbers in ((first, [2, 2, 0, 0, 0, 1, 0]), (second, [2, 2, 0, 0, 1, 0, 0])):
        assert [int(cell) for cell in heading_of.split() if cell.isdecimal()] == numbers
    assert total.split() == ["all", "2", "4", "4", "0", "0", "2", "1", "0"]
    names = ["planned", "committed", "missing", "stale", "orphaned", "lost", "findings"]
    assert heading.split() == ["simulation", "status", *(["split"] if columns == 120 else []), *names]
    assert all(len(line) <= columns for line in (heading, first, second, total))
    for path in (lost, orphan, root / "train" / "halo.npz"):
        assert str(path.relative_to(root)) in result.stdout
    answer = json.loads(call("status", "-d", root, "--json").stdout)
    assert answer["ok"] is False
    assert answer["totals"] == {
        "planned": 4,
        "committed": 4,
        "missing": 0,
        "stale": 0,
        "orphaned": 2,
        "lost": 1,
        "statuses": {"complete": 2},
    }
    assert [(row["orphaned"], row["lost"]) for row in answer["simulations"]] == [(0, 1), (1, 0)]
    assert answer["lost_files"] == [str(lost.relative_to(root))]


# query


def test_query_answers_as_table_csv_and_json(sound: MadeDataset) -> None:
    """The same answer comes as a table for readers, and as CSV or JSON alone on standard output for scripts."""
    sql = "SELECT simulation, count(*) AS n, sum(bytes) AS size FROM samples GROUP BY ALL ORDER BY 1"
    total = {
        name: sum(p.stat().st_size for p in Path(sound.root).rglob(f"sim_{name[-1]}_*.npz"))
        for name in sound.suite.names
    }
    expected = [{"simulation": name, "n": 2, "size": size} for name, size in total.items()]
    assert json.loads(fine("query", sql, "-d", sound.root, "--json")) == expected
    assert json.loads(fine("query", sql, "-d", sound.root, "--format", "json")) == expected
    rows = list(csv.DictReader(io.StringIO(fine("query", sql, "-d", sound.root, "--format", "csv"))))
    assert rows == [{name: str(value) for name, value in row.items()} for row in expected]
    table = fine("query", sql, "-d", sound.root)
    assert "SB35_0" in table
    assert "2 rows" in table


def test_query_takes_any_kind_of_value(sound: MadeDataset) -> None:
    """Lists, structures, durations, times, binary, empty and not-a-number values come out in every format."""
    sql = (
        "SELECT list(sample_id) AS l, {'a': 1} AS s, max(created_at) - min(created_at) AS d, now() AS t, "
        "'\\x01'::BLOB AS b, NULL AS n, 'nan'::DOUBLE AS f, 1.50::DECIMAL(5, 2) AS c, "
        "100000000000000000000::HUGEINT AS h, '[red]' AS m FROM samples"
    )
    (row,) = json.loads(fine("query", sql, "-d", sound.root, "--json"))
    assert len(row["l"]) == 4
    assert row["s"] == {"a": 1}
    assert (row["d"], row["b"], row["n"], row["f"], row["c"], row["h"]) == ("PT0S", "01", None, None, 1.5, 1e20)
    (line,) = csv.DictReader(io.StringIO(fine("query", sql, "-d", sound.root, "--format", "csv")))
    assert json.loads(line["l"]) == row["l"]
    assert json.loads(line["s"]) == row["s"]
    assert "[red]" in fine("query", sql, "-d", sound.root)


def test_query_of_nothing_is_an_empty_list(sound: MadeDataset) -> None:
    """An answer without rows is [] in JSON and a line of names in CSV, with status 0."""
    sql = "SELECT sample_id FROM samples WHERE false"
    assert json.loads(fine("query", sql, "-d", sound.root, "--json")) == []
    assert fine("query", sql, "-d", sound.root, "--format", "csv") == "sample_id\n"


def test_query_shows_why_a_simulation_is_blocked(ailing: MadeDataset) -> None:
    """Status, message and findings of the newest attempts can be asked for, and paths in a table are not cut."""
    sql = "SELECT simulation, status, message, findings FROM current_simulations ORDER BY 1"
    first, second = json.loads(fine("query", sql, "-d", ailing.root, "--json"))
    assert (first["simulation"], first["status"], first["message"]) == ("SB35_0", "complete", "")
    assert (second["simulation"], second["status"]) == ("SB35_1", "blocked")
    assert "missing files" in second["message"]
    assert json.loads(second["findings"])[0]["simulation"] == "SB35_1"
    table = fine("query", "SELECT simulation, message FROM current_simulations", "-d", ailing.root)
    cells = re.findall(r"│[^│]*│([^│]*)│", table)
    assert str(ailing.suite.hydro_base) in "".join(cell.strip() for cell in cells)


def test_query_of_every_column_can_be_read(sound: MadeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the columns do not fit the terminal, each row is printed column by column, with nothing cut."""
    monkeypatch.setenv("COLUMNS", "80")
    text = fine("query", "SELECT * FROM samples ORDER BY sample_id", "-d", sound.root)
    (row, *_) = json.loads(fine("query", "SELECT * FROM samples ORDER BY sample_id", "-d", sound.root, "--json"))
    assert re.search(rf"^  sha256 +{row['sha256']}$", text, re.MULTILINE)
    assert re.search(rf"^  path +{re.escape(row['path'])}$", text, re.MULTILINE)
    assert text.splitlines()[0] == "row 1"
    assert text.splitlines()[-1] == "4 rows"


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEKT 1", "syntax error"),
        ("SELECT nope FROM samples", "nope"),
        ("SELECT * FROM nowhere", "DESCRIBE samples"),
        ("", "one statement"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("DELETE FROM samples", "reads"),
        ("DROP TABLE samples", "reads"),
        ("CREATE TABLE t AS SELECT 1", "reads"),
        ("COPY samples TO 'stolen.csv'", "reads"),
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled"),
    ],
)
def test_query_refuses_what_is_wrong_or_writes(sound: MadeDataset, elsewhere: Path, sql: str, said: str) -> None:
    """Bad SQL, and SQL that writes or reads elsewhere, is one message; the data set is as before."""
    before = on_disk(sound.config.output_root)
    assert said in refused("query", sql, "-d", sound.root)
    assert on_disk(sound.config.output_root) == before
    assert on_disk(elsewhere) == {}


# query: ready questions, formats and files


def test_ready_questions_are_listed(elsewhere: Path) -> None:
    """`query --list` names each question with what it answers and its parameters, without any data set."""
    text = fine("query", "--list")
    listed = json.loads(fine("query", "--list", "--json"))
    assert [question["name"] for question in listed] == [question.name for question in QUESTIONS]
    for question in listed:
        assert re.search(rf"│ {question['name']} +│ {re.escape(question['answers'])} +│", text)
    assert "count=10" in text
    assert on_disk(elsewhere) == {}


def test_a_ready_question_shows_sql_that_can_be_asked(sound: MadeDataset) -> None:
    """What `query --show` prints is SQL, which answers what the question answers."""
    asked = fine("query", "--ask", "disk-use", "-d", sound.root, "--json")
    assert fine("query", fine("query", "--show", "disk-use"), "-d", sound.root, "--json") == asked
    assert "contents" in refused("query", "--show", "nope")


def test_ready_questions_take_parameters(sound: MadeDataset) -> None:
    """`--ask` answers with its parameters bound; SQL in them is a text like any other."""
    ask = ("query", "-d", sound.root, "--json", "--ask")
    (row,) = json.loads(fine(*ask, "heaviest", "--param", "count=1"))
    assert row["samples"] == 2
    assert len(json.loads(fine(*ask, "samples", "-p", "simulation=SB35_1"))) == 2
    assert json.loads(fine(*ask, "samples", "-p", "simulation=x' OR '1'='1")) == []
    assert json.loads(fine(*ask, "made-by", "-p", "run='; COPY samples TO 'stolen.csv'; --")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "but got none of them"),
        (("SELECT 1", "--ask", "runs"), "but got several of them"),
        (("--list", "--show", "runs"), "but got several of them"),
        (("SELECT 1", "--param", "count=1"), "--ask NAME"),
        (("--ask", "nope"), "contents"),
        (("--ask", "samples"), "--param simulation=VALUE"),
        (("--ask", "heaviest", "-p", "count"), "NAME=VALUE"),
        (("--ask", "heaviest", "-p", "count=1", "-p", "count=2"), "each name once"),
        (("--ask", "heaviest", "-p", "count=many"), "whole number"),
        (("SELECT 1 AS a", "--version", "9"), "versions are 0"),
        (("SELECT 1 AS a", "--version", "0", "--at", "2026-11-23"), "by its name or by a time"),
        (("SELECT 1 AS a", "--at", "yesterday"), "ISO 8601"),
        (("SELECT 1 AS a", "--at", "1999-12-31"), "Nothing was committed"),
    ],
)
def test_query_says_what_is_missing_or_too_much(
    sound: MadeDataset, elsewhere: Path, arguments: tuple[str, ...], said: str
) -> None:
    """One message says what was expected, and no file is written."""
    assert said in refused("query", "-d", sound.root, *arguments)
    assert on_disk(elsewhere) == {}


@pytest.mark.parametrize("named", ["by option", "by suffix"])
def test_answers_are_written_to_files(sound: MadeDataset, elsewhere: Path, named: str) -> None:
    """Table, CSV, Parquet and JSON files hold the same rows; standard output stays empty, and no leftover remains."""
    sql = (
        "SELECT simulation, count(*) AS n, sum(bytes) AS size, max(created_at) AS t FROM samples GROUP BY 1 ORDER BY 1"
    )
    files = {kind: elsewhere / "a folder" / f"answer.{kind}" for kind in ("table", "csv", "parquet", "json")}
    for kind, file in files.items():
        chosen = ("--format", kind) if named == "by option" else ()
        assert fine("query", sql, "-d", sound.root, "--output", file, *chosen) == ""
    assert set(on_disk(elsewhere)) == set(files.values())
    parquet = pl.read_parquet(files["parquet"])
    assert parquet["n"].to_list() == [2, 2]
    assert parquet.schema["size"] == pl.Int64
    assert pl.read_csv(files["csv"])["size"].to_list() == parquet["size"].to_list()
    assert [row["size"] for row in json.loads(files["json"].read_text())] == parquet["size"].to_list()
    assert all(f"│ {size} │" in files["table"].read_text() for size in parquet["size"])


def test_parquet_holds_any_kind_of_value(sound: MadeDataset, elsewhere: Path) -> None:
    """Lists, structures, durations, times, binary, empty and huge values are written and read back."""
    sql = (
        "SELECT list(sample_id) AS l, {'a': 1} AS s, max(created_at) - min(created_at) AS d, max(created_at) AS t, "
        "'\\x01'::BLOB AS b, NULL AS n, 'nan'::DOUBLE AS f, 100000000000000000000::HUGEINT AS h FROM samples"
    )
    fine("query", sql, "-d", sound.root, "--output", "x.parquet")
    (row,) = pl.read_parquet(elsewhere / "x.parquet").to_dicts()
    assert (len(row["l"]), row["s"], row["b"], row["n"], row["h"]) == (4, {"a": 1}, b"\x01", None, 1e20)
    assert row["t"].tzinfo is not None


def test_parquet_is_for_programs(sound: MadeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet goes to a file or another program; on a terminal it is refused with what to do."""
    program = subprocess.run(
        [PROGRAM, "query", "SELECT 42 AS a", "-d", sound.root, "--format", "parquet"],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert pl.read_parquet(io.BytesIO(program.stdout)).rows() == [(42,)]
    leader, follower = pty.openpty()
    on_terminal = subprocess.run(
        [PROGRAM, "query", "SELECT 42 AS a", "-d", sound.root, "--format", "parquet"],
        stdout=follower,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(follower)
    os.close(leader)
    assert on_terminal.returncode == 1
    assert b"--output FILE" in on_terminal.stderr


def test_an_answer_that_is_too_long_to_read_is_cut_and_said_so(sound: MadeDataset, elsewhere: Path) -> None:
    """Of 1,001 rows a terminal shows 1,000, and says so; files and other formats have all."""
    sql = "SELECT range AS a FROM range(1001)"
    result = call("query", sql, "-d", sound.root)
    assert result.exit_code == 0
    assert "1,001 rows" in result.stdout
    assert "│ 999 " in result.stdout
    assert "│ 1000 " not in result.stdout
    assert "first 1,000" in result.stderr
    assert len(fine("query", sql, "-d", sound.root, "--format", "csv").splitlines()) == 1002
    fine("query", sql, "-d", sound.root, "--output", "all.table")
    assert "│ 1000 " in (elsewhere / "all.table").read_text()


# show, normalize


def test_show_draws_a_sample(sound: MadeDataset, elsewhere: Path) -> None:
    """`show` writes <sample>.png here, or the file named, and prints where it is."""
    assert fine("show", "SB35_0_halo_0_rot_1", "-d", sound.root).strip() == "SB35_0_halo_0_rot_1.png"
    assert fine("show", "sim_1_halo_0_rot_0.npz", "-d", sound.root, "--output", "a/b.png").strip() == "a/b.png"
    for name in ("SB35_0_halo_0_rot_1.png", "a/b.png"):
        assert (elsewhere / name).read_bytes().startswith(b"\x89PNG")


def test_show_says_which_samples_there_are(sound: MadeDataset, elsewhere: Path) -> None:
    """An unknown sample is refused with the names of some that exist, and no picture is written."""
    assert "SB35_0_halo_0_rot_0" in refused("show", "SB35_0_halo_99_rot_0", "-d", sound.root)
    assert on_disk(elsewhere) == {}


def test_normalize_writes_three_files(sound: MadeDataset, elsewhere: Path) -> None:
    """`normalize` writes the three files where asked; its JSON names them and has the numbers in them."""
    answer = json.loads(fine("normalize", "-d", sound.root, "--output", "stats", "--json"))
    assert answer["n_samples"] == 4
    assert sorted(Path(file).name for file in answer["files"]) == [
        "dark_matter_normalization_stats.npz",
        "gas_normalization_stats.npz",
        "stellar_normalization_stats.npz",
    ]
    means = {row["map"]: row["mean"] for row in answer["maps"]}
    with np.load(elsewhere / "stats" / "gas_normalization_stats.npz") as stats:
        assert stats["gas_mag_mean"] == means["target: gas"]
    text = fine("normalize", "-d", sound.root, "--output", "stats", "--quantiles", "stars", "--quantiles", "gas")
    assert "4 samples of the train split" in text
    assert "log10(x + 1)" in text
    with np.load(elsewhere / "stats" / "stellar_normalization_stats.npz") as stats:
        assert stats["star_mag_quantiles"].shape == (1001,)
    assert "expected some of condition, large_scale, dark_matter, gas, stars" in refused(
        "normalize", "-d", sound.root, "--quantiles", "dust"
    )


def test_normalize_refuses_a_version_that_is_not_there(sound: MadeDataset) -> None:
    """A version of the manifest that does not exist is refused with those that do."""
    assert "no version '9'" in refused("normalize", "-d", sound.root, "--output", "stats", "--version", "9")


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "SB35_0_halo_0_rot_0", "--output", "file/x.png"),
        ("query", "SELECT 1 AS a", "--output", "file/x"),
        ("normalize", "--output", "file/x"),
    ],
)
def test_an_output_that_cannot_be_written_is_named(
    sound: MadeDataset, elsewhere: Path, arguments: tuple[str, ...]
) -> None:
    """Where the output would lie below a file, one message names the output as it was given."""
    (elsewhere / "file").write_text("")
    text = refused(*arguments, "-d", sound.root)
    assert arguments[-1] in text
    assert "bind-tmp" not in text


# Which data set


@pytest.mark.parametrize(
    "arguments", [("status",), ("query", "SELECT 1"), ("show", "SB35_0_halo_0_rot_0"), ("normalize",)]
)
def test_a_folder_without_data_set_is_said(elsewhere: Path, arguments: tuple[str, ...]) -> None:
    """Here, in a folder that has none, and in a folder that does not exist, the message names the folder."""
    assert str(elsewhere) in refused(*arguments)
    assert "no data set" in refused(*arguments)
    assert "nowhere" in refused(*arguments, "-d", "nowhere")


def test_the_data_set_is_that_of_flag_or_variable_or_folder(
    sound: MadeDataset, ailing: MadeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--dataset wins over $BIND_DATASET, which wins over the current folder."""
    sql = ("query", "SELECT count(*) AS n FROM samples", "--json")
    monkeypatch.chdir(ailing.root)
    assert json.loads(fine(*sql)) == [{"n": 2}]
    monkeypatch.setenv("BIND_DATASET", sound.root)
    assert json.loads(fine(*sql)) == [{"n": 4}]
    assert json.loads(fine(*sql, "--dataset", ailing.root)) == [{"n": 2}]


def test_a_data_set_can_be_moved(tmp_path: Path, elsewhere: Path) -> None:
    """Moved to another folder, a data set answers as before, and is extended where it now is."""
    old = made(tmp_path / "old", simulations=1)
    new = tmp_path / "new" / "place"
    shutil.copytree(old.root, new)
    shutil.rmtree(old.root)
    assert "1 complete" in fine("status", "-d", new)
    assert json.loads(fine("query", "SELECT count(*) AS n FROM samples", "-d", new, "--json")) == [{"n": 2}]
    fine("show", "SB35_0_halo_0_rot_0", "-d", new)
    fine("normalize", "-d", new)
    assert (new / "data" / "gas_normalization_stats.npz").exists()
    plan = json.loads(fine("generate", "-d", new, "--dry-run", "--json"))
    assert [entry["missing"] for entry in plan] == [[]]
    assert not Path(old.root).exists()


def test_a_data_set_answers_without_its_suite(tmp_path: Path) -> None:
    """With the simulations out of reach, status says so and fails, and what was made can be queried and drawn."""
    dataset = made(tmp_path, simulations=1)
    shutil.rmtree(tmp_path / "suite")
    result = call("status", "-d", dataset.root, "--json")
    assert result.exit_code == 1
    assert "out of reach" in result.stderr
    assert [row["status"] for row in json.loads(result.stdout)["simulations"]] == ["stale"]
    assert json.loads(fine("query", "SELECT count(*) AS n FROM samples", "-d", dataset.root, "--json")) == [{"n": 2}]
    fine("show", "SB35_0_halo_0_rot_0", "-d", dataset.root)
