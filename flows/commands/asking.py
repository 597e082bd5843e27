"""Commands that ask a data set."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from bind_core.errors import ConfigurationError
from flows.options import DatasetOption, JsonOption, recorded
from flows.terminal import console, counted, error_console, errors_explained, print_json, print_rows, writing

commands = typer.Typer()


@commands.command()
def status(dataset: DatasetOption = Path(), as_json: JsonOption = False) -> None:
    """Say where every simulation of a data set stands."""
    with errors_explained():
        from storage.manifest import Manifest, layout_at
        from storage.summary import summarise
        from storage.summary_table import print_summary
        from storage.workload import compare, recorded_statuses

        chosen = recorded(dataset)
        manifest = Manifest(layout_at(dataset))
        names = set(recorded_statuses(manifest))
        try:
            from bind_core.suite import discover_simulations

            names.update(discover_simulations(chosen))
        except ConfigurationError as error:  # the data set can be asked about all the same
            error_console.print(f"[yellow]The suite is out of reach. {escape(str(error))}[/yellow]")
        summary = summarise(manifest, compare(chosen, manifest, sorted(names)), "", {})
    if as_json:
        print_json({"ok": summary.ok, "simulations": [s.as_row() for s in summary.simulations]})
    else:
        print_summary(summary, console)
    sys.exit(0 if summary.ok else 1)


class TableFormat(StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


@commands.command()
def query(
    sql: Annotated[str, typer.Argument(help='For example "SELECT split, count(*) FROM samples GROUP BY split".')],
    dataset: DatasetOption = Path(),
    as_format: Annotated[TableFormat, typer.Option("--format", help="How to print the answer.")] = TableFormat.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Ask the manifest in SQL.

    Tables: `samples` (a row per sample), `simulations` (a row per simulation and attempt) and `current_simulations`
    (the newest attempt at each). Nothing can be changed or read beside them.
    """
    with errors_explained():
        from flows.answers import answer_as_csv, answer_as_json
        from storage.manifest import layout_at
        from storage.queries import query as answer

        frame = answer(layout_at(dataset), sql)
        if as_json or as_format is TableFormat.JSON:
            sys.stdout.write(answer_as_json(frame))
        elif as_format is TableFormat.CSV:
            sys.stdout.write(answer_as_csv(frame))
        else:
            print_rows(frame)
            console.print(counted(frame.height, "row"))


@commands.command()
def show(
    sample: Annotated[str, typer.Argument(help="Id of the sample (SB35_0_halo_3_rot_1), or its file.")],
    dataset: DatasetOption = Path(),
    output: Annotated[Path | None, typer.Option(help="Picture to write; by default `<sample>.png` here.")] = None,
) -> None:
    """Draw all maps of one sample: condition, targets and context, as PNG."""
    with errors_explained():
        from storage.files import write_bytes
        from storage.gallery import sheet_of_sample
        from storage.manifest import layout_at

        name, picture = sheet_of_sample(layout_at(dataset), sample)
        path = output or Path(f"{name}.png")
        with writing(path):
            write_bytes(path, picture)
    console.print(str(path))
