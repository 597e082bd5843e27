"""Commands that ask a data set."""

import sys
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bind_core.errors import ConfigurationError
from flows.options import AtOption, DatasetOption, JsonOption, VersionOption, recorded, version_asked
from flows.terminal import console, counted, error_console, errors_explained, print_json, print_rows, writing

if TYPE_CHECKING:
    import polars as pl

    from storage.summary import RunSummary
    from storage.versions import DatasetVersion

commands = typer.Typer()

_MOST_ROWS = 1000
"""Rows of a table that are printed; more can neither be read nor laid out in useful time."""


@commands.command()
def status(
    dataset: DatasetOption = Path(), version: VersionOption = None, at: AtOption = None, as_json: JsonOption = False
) -> None:
    """Say where every simulation of a data set stands, and which files are lost or orphaned.

    Of an earlier version, by the record of then. Exit status 0 if nothing is left to be done or mended.
    """
    with errors_explained():
        from storage.file_listing import unmatched_files
        from storage.lease import living_claims
        from storage.manifest import Manifest, layout_at
        from storage.summary import summarise, summarise_version
        from storage.summary_table import print_status
        from storage.workload import compare, recorded_statuses

        layout = layout_at(dataset)
        meant = version_asked(layout, version, at)
        manifest = Manifest(layout)
        if meant is not None:
            summary = summarise_version(manifest, meant)
        else:
            chosen = recorded(dataset)
            names = set(recorded_statuses(manifest))
            try:
                from bind_core.suite import discover_simulations

                names.update(discover_simulations(chosen))
            except ConfigurationError as error:  # the data set can be asked about all the same
                error_console.print(f"[yellow]The suite is out of reach. {escape(str(error))}[/yellow]")
            summary = summarise(manifest, compare(chosen, manifest, sorted(names)), "", {})
        summary = replace(summary, files=unmatched_files(layout, meant))
        writers = [f"{claim} ({life.value})" for claim, life in (living_claims(layout) if meant is None else ())]
    if as_json:
        print_json(_status_values(summary, meant) | {"writers": writers})
    else:
        if meant is not None:
            console.print(f"{meant.title}, by the record of then:", markup=False)
        print_status(summary, console)
        for writer in writers:
            console.print(f"A run is writing: {writer}", markup=False)
    sys.exit(0 if summary.ok else 1)


class AnswerFormat(StrEnum):
    """How an answer is given."""

    TABLE = "table"
    CSV = "csv"
    PARQUET = "parquet"
    JSON = "json"


@commands.command()
def query(
    sql: Annotated[
        str | None, typer.Argument(help='For example "SELECT split, count(*) FROM samples GROUP BY split".')
    ] = None,
    dataset: DatasetOption = Path(),
    version: VersionOption = None,
    at: AtOption = None,
    ask: Annotated[
        str | None, typer.Option("--ask", metavar="NAME", help="Ask a ready question instead of SQL.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="What the ready question asks for; may be repeated."),
    ] = None,
    list_questions: Annotated[bool, typer.Option("--list", help="List the ready questions, and ask none.")] = False,
    show_question: Annotated[
        str | None, typer.Option("--show", metavar="NAME", help="Print the SQL of a ready question, and do not ask it.")
    ] = None,
    as_format: Annotated[
        AnswerFormat | None,
        typer.Option("--format", help="How to give the answer; by default, a table or what the file's name says."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="File to write the answer to.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the manifest in SQL, or a ready question, of now or of an earlier version.

    Tables: `samples` (a row per sample), `simulations` (a row per simulation and attempt), `current_simulations`
    (the newest attempt at each) and `strata` (what is asked for). Nothing can be changed or read beside them.
    """
    with errors_explained():
        ways = [sql is not None, ask is not None, list_questions, show_question is not None]
        if sum(ways) != 1:
            raise ConfigurationError(
                "Expected one of a query in SQL, --ask NAME, --list and --show NAME, but got "
                f"{'none' if not any(ways) else 'several'} of them."
            )
        if param and ask is None:
            raise ConfigurationError("--param belongs to a ready question: give it with --ask NAME.")
        if list_questions or show_question is not None:
            _print_questions(show_question, as_json)
            return
        from storage.manifest import layout_at
        from storage.queries import query as answer
        from storage.questions import ask as answer_to

        layout = layout_at(dataset)
        meant = version_asked(layout, version, at)
        if sql is not None:
            frame = answer(layout, sql, version=meant)
        else:
            frame = answer_to(layout, str(ask), _parameters(param or []), meant)
        _give(frame, AnswerFormat.JSON if as_json else as_format, output)


@commands.command()
def show(
    sample: Annotated[str, typer.Argument(help="Id of the sample (SB35_0_halo_3_rot_1), or its file.")],
    dataset: DatasetOption = Path(),
    output: Annotated[Path | None, typer.Option(help="Picture to write; by default `<sample>.png` here.")] = None,
) -> None:
    """Draw all maps of one sample: condition, targets and context, as PNG."""
    with errors_explained():
        from storage.files import remove_stale_temporaries, write_bytes
        from storage.gallery import sheet_of_sample
        from storage.manifest import layout_at

        name, picture = sheet_of_sample(layout_at(dataset), sample)
        path = output or Path(f"{name}.png")
        with writing(path):
            remove_stale_temporaries(path.parent)
            write_bytes(path, picture)
    console.print(str(path))


def _parameters(texts: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or name in values:
            raise ConfigurationError(f"--param {text}: expected NAME=VALUE, e.g. --param count=20, and each name once.")
        values[name] = value
    return values


def _print_questions(name: str | None, as_json: bool) -> None:
    from storage.questions import QUESTIONS, find_question

    questions = QUESTIONS if name is None else (find_question(name),)
    if as_json:
        print_json([asdict(question) for question in questions])
    elif name is not None:
        console.print(f"{questions[0].sql};\n-- {questions[0].answers}", markup=False)
    else:
        table = Table("name", "what it answers", "parameters")
        for question in questions:
            asked = [
                parameter.name if parameter.default is None else f"{parameter.name}={parameter.default}"
                for parameter in question.parameters
            ]
            table.add_row(question.name, question.answers, ", ".join(asked))
        console.print(table)
        console.print("Ask one with `bind-data query --ask NAME --param NAME=VALUE`.", markup=False)


def _give(frame: "pl.DataFrame", as_format: AnswerFormat | None, output: Path | None) -> None:
    """Write an answer to a file or to standard output."""
    from flows.answers import answer_as_csv, answer_as_json, answer_as_parquet, answer_as_table

    if as_format is None:
        suffix = "" if output is None else output.suffix.removeprefix(".").lower()
        as_format = AnswerFormat(suffix) if suffix in set(AnswerFormat) else AnswerFormat.TABLE
    if as_format is AnswerFormat.TABLE and output is None:
        print_rows(frame.head(_MOST_ROWS))
        console.print(counted(frame.height, "row"))
        if frame.height > _MOST_ROWS:
            error_console.print(
                f"Only the first {_MOST_ROWS:,} of them are shown; --format csv or --output FILE gives all.",
                style="yellow",
            )
        return
    if as_format is AnswerFormat.PARQUET and output is None and sys.stdout.isatty():
        raise ConfigurationError("Parquet is nothing to look at: give --output FILE, or send it to another program.")
    to_content = {
        AnswerFormat.TABLE: lambda: answer_as_table(frame).encode(),
        AnswerFormat.CSV: lambda: answer_as_csv(frame).encode(),
        AnswerFormat.PARQUET: lambda: answer_as_parquet(frame),
        AnswerFormat.JSON: lambda: answer_as_json(frame).encode(),
    }
    content = to_content[as_format]()
    if output is None:
        sys.stdout.buffer.write(content)
        return
    from storage.files import remove_stale_temporaries, write_bytes

    with writing(output):
        remove_stale_temporaries(output.parent)
        write_bytes(output, content)
    error_console.print(f"{counted(frame.height, 'row')} in {escape(str(output))}")


def _status_values(summary: "RunSummary", meant: "DatasetVersion | None") -> dict[str, Any]:
    """Return a status as plain values, for JSON."""
    files = summary.files
    lost, orphaned = (files.lost, files.orphaned) if files is not None else ({}, None)
    simulations = [
        {
            **simulation.as_row(),
            "orphaned": None if orphaned is None else len(orphaned.get(simulation.simulation, ())),
            "lost": len(lost.get(simulation.simulation, ())),
            "findings": [finding.as_dict() for finding in simulation.findings],
        }
        for simulation in summary.simulations
    ]
    return {
        "ok": summary.ok,
        "version": None if meant is None else meant.as_dict(),
        "totals": {**summary.totals, "statuses": summary.statuses},
        "simulations": simulations,
        "orphaned_files": None if orphaned is None else [path for paths in orphaned.values() for path in paths],
        "lost_files": [path for paths in lost.values() for path in paths],
        "waiting_files": {} if files is None else files.waiting,
    }
