import subprocess
import sys
from datetime import UTC, timedelta
from pathlib import Path

import duckdb
import polars as pl
import pytest

from storage import compaction
from storage.compaction import compact
from storage.queries import QueryError, query
from storage.versions import resolve_version


def test_samples_can_be_counted_by_split(dataset) -> None:
    """Aggregates over the samples are answered."""
    dataset.commit("SB35_0", "SB35_1")
    dataset.commit("SB35_2", split="test")
    answer = query(dataset.layout, "SELECT split, count(*) AS n FROM samples GROUP BY split ORDER BY split")
    assert answer.rows() == [("test", 2), ("train", 4)]


def test_every_column_is_within_reach(dataset) -> None:
    """SELECT * returns what the manifest returns, values and order of columns included."""
    dataset.commit("SB35_0", "SB35_1")
    answer = query(dataset.layout, "SELECT * FROM samples ORDER BY simulation, halo, rotation")
    assert answer.columns == dataset.open().samples().columns
    assert answer.rows() == dataset.open().samples().rows()


def test_current_simulations_are_the_newest_attempts(dataset) -> None:
    """The view holds one row per simulation, that of the latest attempt; the table holds all."""
    manifest = dataset.open()
    for status in ("failed", "partial", "complete"):
        manifest.commit(None, dataset.simulation_rows("SB35_0", "SB35_1", status=status), "run")
    states = query(dataset.layout, "SELECT simulation, status FROM current_simulations ORDER BY 1")
    assert states.rows() == [("SB35_0", "complete"), ("SB35_1", "complete")]
    assert query(dataset.layout, "SELECT count(*) FROM simulations").item() == 6


def test_a_data_set_without_samples_answers_zero(dataset) -> None:
    """Before any sample is committed, the table of samples is there and empty."""
    dataset.open().commit(None, dataset.simulation_rows("SB35_0", status="blocked"), "run")
    assert query(dataset.layout, "SELECT count(*) FROM samples").item() == 0
    assert query(dataset.layout, "SELECT sum(mass_condition) FROM samples WHERE split = 'train'").item() is None


def test_times_are_utc_and_their_differences_durations(dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times do not depend on the machine's zone, and how long something took can be asked."""
    monkeypatch.setenv("TZ", "America/New_York")
    first, second = dataset.simulation_rows("SB35_0"), dataset.simulation_rows("SB35_0")
    dataset.open().commit(None, pl.concat([first, second]), "run")
    sql = "SELECT min(recorded_at) AS t, max(recorded_at) - min(recorded_at) AS took FROM simulations"
    start, took = query(dataset.layout, sql).row(0)
    assert start == first["recorded_at"][0]
    assert start.utcoffset() == timedelta(0)
    assert start.astimezone(UTC).hour == 13
    assert took == timedelta(hours=1)


@pytest.mark.parametrize("blocks", [1, 5])
def test_rows_can_be_picked_by_text(dataset, monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    """Conditions on texts pick the right rows, from blocks of several simulations and from compacted tables."""
    monkeypatch.setattr(compaction, "_MOST_SMALL_FILES", 3)
    for block in range(blocks):
        dataset.commit(*(f"SB35_{3 * block + i}" for i in range(3)))
    for sql in (
        "SELECT count(*) FROM samples WHERE simulation = 'SB35_1'",
        "SELECT count(*) FROM samples WHERE sample_id LIKE 'SB35_1~_%' ESCAPE '~'",
        "SELECT count(*) FROM samples WHERE simulation IN ('SB35_1', 'SB35_99')",
    ):
        assert query(dataset.layout, sql).item() == 2
    assert query(dataset.layout, "SELECT count(*) FROM simulations WHERE status = 'complete'").item() == 3 * blocks
    assert query(dataset.layout, "SELECT count(*) FROM simulations WHERE message <> ''").item() == 0


@pytest.mark.parametrize(
    "sql",
    [
        "DESCRIBE samples",
        "SUMMARIZE samples",
        "SHOW TABLES",
        "EXPLAIN SELECT * FROM samples",
        "FROM samples LIMIT 1",
        "WITH heavy AS (SELECT * FROM samples WHERE halo_mass > 1e13) SELECT count(*) FROM heavy;",
        "PIVOT samples ON split USING count(*) GROUP BY simulation",
    ],
)
def test_ways_of_reading_are_allowed(dataset, sql: str) -> None:
    """Everything that reads the tables is answered."""
    dataset.commit("SB35_0")
    assert query(dataset.layout, sql).height > 0


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.csv"
    path.write_text("a,b\n1,2\n")
    duckdb.sql("SELECT 42 AS a").write_parquet(str(tmp_path / "secret.parquet"))
    with duckdb.connect(str(tmp_path / "secret.db")) as connection:
        connection.execute("CREATE TABLE t AS SELECT 42 AS a")
    return path


@pytest.mark.parametrize(
    "sql",
    [
        "COPY samples TO '{folder}/stolen.csv'",
        "COPY (SELECT 1) TO '{folder}/stolen.parquet' (FORMAT parquet)",
        "EXPORT DATABASE '{folder}/stolen'",
        "EXPLAIN ANALYZE COPY samples TO '{folder}/stolen.csv'",
        "SELECT * FROM read_csv('{folder}/secret.csv')",
        "SELECT * FROM '{folder}/secret.csv'",
        "SELECT * FROM '{folder}/secret.parquet'",
        "SELECT * FROM read_parquet('{folder}/secret.parquet')",
        "SELECT * FROM read_text('{folder}/secret.csv')",
        "SELECT * FROM read_blob('{folder}/*')",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM sniff_csv('{folder}/secret.csv')",
        "SELECT * FROM duckdb_secrets()",
        "ATTACH '{folder}/secret.db' AS other",
        "ATTACH '{folder}/stolen.db' AS other",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "RESET lock_configuration",
        "PRAGMA enable_profiling",
        "SELECT 1; COPY samples TO '{folder}/stolen.csv'",
        "SELECT * FROM query('COPY samples TO ''{folder}/stolen.csv''')",
        "CREATE TABLE samples2 AS SELECT * FROM samples",
        "DROP VIEW samples",
        "DELETE FROM samples",
        "INSERT INTO samples SELECT * FROM samples",
        "CREATE MACRO f() AS TABLE SELECT * FROM read_text('{folder}/secret.csv')",
        "SELECT * FROM layout",
        "SELECT * FROM sql",
        "SELECT * FROM parameters",
        "SELECT * FROM version",
        "DROP TABLE strata",
        "SELEC 1",
        "SELECT nonsense FROM samples",
        "",
        ";",
    ],
)
def test_a_query_can_neither_write_nor_look_elsewhere(dataset, secret: Path, sql: str) -> None:
    """SQL that writes, reads a file, loads an extension or changes a setting is refused, and leaves no file."""
    dataset.commit("SB35_0")
    before = sorted(secret.parent.rglob("*"))
    with pytest.raises(QueryError):
        query(dataset.layout, sql.format(folder=secret.parent))
    assert sorted(secret.parent.rglob("*")) == before
    assert dataset.open().samples().height == 2


def test_a_mistake_in_the_query_is_explained(dataset) -> None:
    """The message holds what DuckDB says about the mistake, and which tables there are."""
    dataset.commit("SB35_0")
    with pytest.raises(QueryError, match=r"(?s)halo_mas.*current_simulations"):
        query(dataset.layout, "SELECT halo_mas FROM samples")


def test_a_folder_without_a_manifest_is_named(dataset) -> None:
    """Asking a folder that was never committed to says so."""
    with pytest.raises(QueryError, match="no manifest"):
        query(dataset.layout, "SELECT 1")


def test_columns_of_the_same_name_are_refused(dataset) -> None:
    """An answer with two columns of one name is refused, and the name is said."""
    dataset.commit("SB35_0")
    with pytest.raises(QueryError, match="several columns called a"):
        query(dataset.layout, "SELECT 1 AS a, 2 AS a")


def test_an_earlier_version_is_asked(dataset) -> None:
    """Both tables are those of the version, also after rows were replaced and the tables compacted."""
    dataset.commit("SB35_0", run_id="one")
    then = resolve_version(dataset.layout)
    again = dataset.sample_rows("SB35_0", run_id="two").with_columns(halo_mass=9e14)
    rows = dataset.simulation_rows("SB35_0", run_id="two", status="partial")
    dataset.open().commit(again, rows, "two", replaced=set(again["sample_id"]))
    dataset.commit("SB35_1")
    for table in (dataset.layout.samples_table, dataset.layout.simulations_table):
        compact(table, {})
    sql = """
        SELECT any_value(status) AS status, count(*) AS n, max(halo_mass) AS heaviest,
            list(DISTINCT samples.run_id) AS runs
        FROM samples JOIN current_simulations USING (simulation) WHERE simulation = 'SB35_0'
    """
    status, n, heaviest, runs = query(dataset.layout, sql, version=then).row(0)
    assert (status, n, runs) == ("complete", 2, ["one"])
    assert heaviest < 9e14
    assert query(dataset.layout, sql).row(0) == ("partial", 2, 9e14, ["two"])
    assert query(dataset.layout, "SELECT count(*) FROM samples", version=then).item() == 2


def test_parameters_are_bound(dataset) -> None:
    """A parameter of the statement takes the value given, whatever is in it; one that is not given is an error."""
    dataset.commit("SB35_0", "SB35_1")
    sql = "SELECT count(*) FROM samples WHERE simulation = $name AND halo >= $halo"
    assert query(dataset.layout, sql, {"name": "SB35_1", "halo": 0}).item() == 2
    assert query(dataset.layout, sql, {"name": "x' OR 'a' = 'a", "halo": 0}).item() == 0
    with pytest.raises(QueryError, match="halo"):
        query(dataset.layout, sql, {"name": "SB35_1"})


def test_asking_loads_no_compiled_kernels() -> None:
    """What answers questions starts without numba and MPI, whose loading would take longer than an answer."""
    program = "import sys, storage.questions; print(sorted({'numba', 'mpi4py', 'matplotlib'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
