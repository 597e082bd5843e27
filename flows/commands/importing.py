"""The command that takes over an older data set."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.options import (
    SUITE,
    CatalogueOption,
    ConfigOption,
    DatasetOption,
    DmoOption,
    HydroOption,
    JsonOption,
    ParameterOption,
    SettingOption,
    configuration,
    settings_of,
)
from flows.terminal import console, counted, error_console, errors_explained, print_json, shown_progress, terminable

if TYPE_CHECKING:
    from storage.import_report import ImportReport

commands = typer.Typer()

_SHOWN = 20


@commands.command("import")
def import_older(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(help="Folder of the older data set, with train and test; its files stay as they are.")
    ],
    dataset: DatasetOption = Path(),
    check: Annotated[
        int, typer.Option(min=0, help="Samples per simulation, drawn at random, to make anew and compare.")
    ] = 3,
    mass_threshold: Annotated[
        float | None,
        typer.Option(help="M200c above which the older generator numbered haloes, Msun/h.", show_default="1e13"),
    ] = None,
    total_sims: Annotated[
        int | None,
        typer.Option(min=1, help="Simulations of the older run, by which it split.", show_default="those of the suite"),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that read and write samples.")] = 2,
    config_file: ConfigOption = None,
    dmo_base: DmoOption = None,
    hydro_base: HydroOption = None,
    catalogue_base: CatalogueOption = None,
    param_file: ParameterOption = None,
    set_name: Annotated[str | None, typer.Option("--set", help="Set of simulations.", rich_help_panel=SUITE)] = None,
    option: SettingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take over samples of the older generator, `sim_<s>_halo_<h>_rot_<r>.npz`, and check them against the simulations.

    They get this system's names, what their files lack, and a manifest that marks them as imported. Files that cannot
    be samples are listed with the reason and left out, with exit status 1. Run again, it goes on where it was.
    """
    with errors_explained(), terminable():
        from storage.importing import import_samples, older_settings
        from storage.older_samples import survey

        settings = settings_of(context)
        if total_sims is not None:
            settings["total_simulations"] = total_sims
        places = configuration(settings | {"split": "hash"})  # as long as the number of simulations is not known
        older = survey(source)
        chosen = configuration(older_settings(older, places, settings, mass_threshold))
        with shown_progress("simulations") as progress:
            report = import_samples(older, chosen, checked=check, threads=threads, progress=progress)
    if as_json:
        print_json(report.as_dict())
    else:
        _print_report(report, dataset)
    sys.exit(0 if report.ok else 1)


def _print_report(report: "ImportReport", dataset: Path) -> None:
    simulations = counted(len(report.simulations), "simulation")
    console.print(f"{report.imported:,} of {counted(report.files, 'sample')} of {simulations} are in {dataset}.")
    if report.maps:
        table = Table("map", "outcome", title="Imported maps and maps made anew")
        for column in ("deviation", "missing", "worst", "emptiest", "anew"):
            table.add_column(column, justify="right")
        for row in report.maps:
            outcome = ", ".join(f"{number:,} {verdict.value}" for verdict, number in row.verdicts.items() if number)
            table.add_row(
                row.map,
                outcome,
                f"{row.largest_deviation:.1e}",
                f"{round(row.largest_missing_share, 4) + 0.0:.2%}",
                f"{row.lowest_ratio:.0%}",
                f"{row.emptiest:.2f}",
                f"{row.emptiest_anew:.2f}",
            )
        console.print(table)
        console.print(
            "Of the worst sample: deviation and missing mass, as shares of the map's mass; of 32 x 32 pixels, what is "
            "left of the worst one's mass, and the emptiest in units of the mean, as imported and as made anew."
        )
    else:
        console.print("No map was compared with the simulations.")
    for line in report.advice:
        console.print(line, markup=False)
    for name, reason in report.unchecked:
        error_console.print(f"[yellow]{escape(name)} could not be checked: {escape(reason)}[/yellow]")
    for refusal in report.refused[:_SHOWN]:
        error_console.print(f"[red]not imported: {escape(refusal.file)}: {escape(refusal.reason)}[/red]")
    if len(report.refused) > _SHOWN:
        error_console.print(f"[red]and {len(report.refused) - _SHOWN:,} more, in import/report.json.[/red]")
