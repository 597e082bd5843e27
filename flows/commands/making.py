"""Commands that make things: mock suites and data sets.

Options about the suite are named in each command for its help, and read by `flows.options.settings_of`.
"""

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bind_core.config import DatasetConfig, LauncherName
from bind_core.errors import ConfigurationError
from flows.options import (
    BASES,
    SUITE,
    CatalogueOption,
    ConfigOption,
    DatasetOption,
    DmoOption,
    HydroOption,
    JsonOption,
    ParameterOption,
    RefreshOption,
    SettingOption,
    SimulationOption,
    configuration,
    settings_of,
)
from flows.terminal import console, counted, error_console, errors_explained, prefect_server, print_json

commands = typer.Typer()

_SET_NAME = r"[A-Za-z0-9][A-Za-z0-9+\-]*"


@commands.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to make the demo in.")] = Path("demo"),
) -> None:
    """Make a small mock suite and a data set from it, and show what came out."""
    with errors_explained(), prefect_server(verbose=False):
        from flows.demo import run_demo

        status = run_demo(out, console)
    sys.exit(status)


@commands.command()
def mock(
    out: Annotated[Path, typer.Argument(help="Folder to write the suite into; simulations there are kept.")],
    sims: Annotated[int, typer.Option(help="Number of simulations.", min=1)] = 3,
    particles: Annotated[int, typer.Option(help="Particles per side; N^3 of each species.", min=4, max=1024)] = 64,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.", min=0)] = 1993,
    box_size: Annotated[float, typer.Option(help="Side of the box in Mpc/h.", min=1)] = 50.0,
    set_name: Annotated[str, typer.Option("--set", help="Name of the set.")] = "SB35",
    halos: Annotated[int, typer.Option(help="Haloes above 1e13 Msun/h per simulation.", min=0)] = 6,
    defect: Annotated[
        list[str] | None,
        typer.Option(metavar="SIMULATION=DEFECT", help="Spoil a simulation on purpose; `--defect list` lists how."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a suite of paired mock simulations in the layouts of CAMELS."""
    from storage.mock_suite import Defect, write_mock_suite

    if defect == ["list"]:
        for member in Defect:
            console.print(f"  {member.value}")
        return
    with errors_explained():
        if not re.fullmatch(_SET_NAME, set_name):
            raise ConfigurationError(f"--set {set_name}: expected a name such as SB35: letters, digits, + and -.")
        try:
            suite = write_mock_suite(
                out,
                simulations=sims,
                particles_per_side=particles,
                seed=seed,
                box_size=box_size,
                set_name=set_name,
                halos_per_simulation=halos,
                defects=_defects(defect or []),
                progress=None if as_json else console.print,
            )
        except ValueError as error:
            raise ConfigurationError(f"Cannot write such a suite: {error}") from error
    if as_json:
        bases = {name: str(getattr(suite, name)) for name in (*BASES, "parameter_file")}
        print_json(bases | {"simulations": list(suite.names)})
        return
    console.print(f"{len(suite.names)} simulations in {out}. To make a data set of them:")
    places = {
        "--dmo-base": suite.dmo_base,
        "--hydro-base": suite.hydro_base,
        "--catalogue-base": suite.catalogue_base,
        "--dataset": out / "dataset",
    }
    flags = [f"{flag} {shlex.quote(str(path))}" for flag, path in places.items()]
    console.print(f"  bind-data generate {' '.join(flags)} --set {set_name}", markup=False)


@commands.command()
def config(
    file: Annotated[
        Path | None, typer.Argument(help="A configuration to check; by default, the built-in values.")
    ] = None,
) -> None:
    """Print a configuration with every setting, or check one."""
    with errors_explained():
        if file is not None:
            console.print(DatasetConfig.from_yaml(file).to_yaml(), markup=False)
            return
        from importlib.resources import files

        console.print((files("data") / "default.yaml").read_text(encoding="utf-8"), markup=False)


@commands.command()
def generate(
    context: typer.Context,
    dataset: DatasetOption = Path(),
    config_file: ConfigOption = None,
    dmo_base: DmoOption = None,
    hydro_base: HydroOption = None,
    catalogue_base: CatalogueOption = None,
    param_file: ParameterOption = None,
    set_name: Annotated[
        str | None, typer.Option("--set", help="Set of simulations: SB35, 1P, CV, …", rich_help_panel=SUITE)
    ] = None,
    simulation: SimulationOption = None,
    rotations: Annotated[int | None, typer.Option(help="Random orientations per halo, in every stratum.")] = None,
    ranks: Annotated[int | None, typer.Option(help="MPI ranks per block of simulations.")] = None,
    option: SettingOption = None,
    refresh: RefreshOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
    print_job_script: Annotated[
        bool,
        typer.Option(
            "--print-job-script", help="Print what launcher: sbatch would submit for the first block, and do nothing."
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the flow's log beside the bar.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make every sample that is asked for and does not exist yet, as a Prefect flow.

    Without PREFECT_API_URL, an embedded server is started for the run. Running it again does only what is missing.
    """
    with errors_explained():
        settings = settings_of(context)
        chosen = configuration(settings)
        if rotations is not None:
            strata = [stratum.model_dump() | {"rotations": rotations} for stratum in chosen.strata]
            chosen = configuration(settings | {"strata": strata})
        if dry_run:
            verdict = _print_workload(chosen, simulation, refresh=refresh, as_json=as_json)
            sys.exit(1 if verdict else 0)
        if print_job_script:
            _print_job_script(chosen, simulation, refresh=refresh)
            return
        _refuse_early(chosen, simulation or [], refresh)
        with prefect_server(verbose):
            from flows.generate import run_summary

            summary = run_summary(chosen, simulation or None, refresh)
    if as_json:
        print_json(
            {"run_id": summary.run_id, "ok": summary.ok, "simulations": [s.as_row() for s in summary.simulations]}
        )
    else:
        from storage.summary_table import print_summary

        print_summary(summary, console)
    sys.exit(0 if summary.ok else 1)


@commands.command()
def plan(
    context: typer.Context,
    dataset: DatasetOption = Path(),
    config_file: ConfigOption = None,
    dmo_base: DmoOption = None,
    hydro_base: HydroOption = None,
    catalogue_base: CatalogueOption = None,
    param_file: ParameterOption = None,
    set_name: Annotated[str | None, typer.Option("--set", help="Set of simulations.", rich_help_panel=SUITE)] = None,
    simulation: SimulationOption = None,
    option: SettingOption = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only simulations with anything to do.")] = False,
    refresh: RefreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say what the next run would do, simulation by simulation, and why; nothing is done.

    With --json, every sample that would be made is listed.
    """
    with errors_explained():
        chosen = configuration(settings_of(context))
        # Other settings than the recorded ones are no mistake here: the plan says what they would make stale.
        _print_workload(
            chosen, simulation, refresh=refresh, other_settings=True, only_outstanding=missing, as_json=as_json
        )


@commands.command()
def validate(
    context: typer.Context,
    dataset: DatasetOption = Path(),
    config_file: ConfigOption = None,
    dmo_base: DmoOption = None,
    hydro_base: HydroOption = None,
    catalogue_base: CatalogueOption = None,
    param_file: ParameterOption = None,
    set_name: Annotated[str | None, typer.Option("--set", help="Set of simulations.", rich_help_panel=SUITE)] = None,
    simulation: SimulationOption = None,
    option: SettingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every input file and say all that is wrong with it; nothing is written."""
    from bind_core.parameters import find_parameter_file, read_parameter_table
    from bind_core.suite import discover_simulations, find_simulation
    from bind_core.validation import validate_simulation

    with errors_explained():
        chosen = configuration(settings_of(context))
        table = read_parameter_table(find_parameter_file(chosen))
        reports = []
        for name in simulation or discover_simulations(chosen):
            inspection = validate_simulation(find_simulation(name, chosen), chosen, table)
            reports.append(inspection)
            if not as_json:
                verdict = "[red]blocked[/red]" if inspection.blocked else "[green]ok[/green]"
                console.print(f"{name}: {verdict}")
                for finding in inspection.findings:
                    console.print(f"  {finding.severity.value}: {escape(finding.message)}")
    if as_json:
        print_json(
            [
                {
                    "simulation": report.files.name,
                    "blocked": report.blocked,
                    "findings": [finding.as_dict() for finding in report.findings],
                }
                for report in reports
            ]
        )
    elif not reports:
        error_console.print(f"[red]There is no simulation of set {chosen.set_name} under the base folders.[/red]")
    sys.exit(1 if not reports or any(report.blocked for report in reports) else 0)


def _refuse_early(chosen: DatasetConfig, simulations: list[str], refresh: bool) -> None:
    """Raise what the flow would refuse anyway, before a server is started for it."""
    from bind_core.suite import discover_simulations, find_simulation
    from storage.layout import DatasetLayout
    from storage.manifest import open_dataset

    open_dataset(DatasetLayout(chosen.output_root, chosen.set_name), chosen, refresh=refresh)
    discover_simulations(chosen)
    for name in simulations:
        find_simulation(name, chosen)


def _print_workload(
    chosen: DatasetConfig,
    simulations: list[str] | None,
    *,
    refresh: bool,
    other_settings: bool = False,
    only_outstanding: bool = False,
    as_json: bool,
) -> str:
    """Print what a run would do, and return why it would fail; empty where nothing says that it would."""
    from storage.layout import DatasetLayout
    from storage.manifest import open_dataset
    from storage.workload import plan_workload
    from tasks.preflight import estimates

    layout = DatasetLayout(chosen.output_root, chosen.set_name)
    manifest = open_dataset(layout, chosen, refresh=refresh or other_settings)
    workload = plan_workload(chosen, manifest, simulations or None, refresh=refresh)
    shown = workload.outstanding if only_outstanding else workload.simulations
    if as_json:
        print_json([work.as_row() for work in shown])
        return workload.verdict
    table = Table("simulation", "why", "planned", "missing", "stale", "to be made")
    for work in shown:
        numbers = (len(work.predicted), len(work.missing), work.n_stale, len(work.to_make))
        table.add_row(work.files.name, work.reason.value, *(f"{number:,}" for number in numbers))
    console.print(table)
    for work in workload.simulations:
        if work.stale:
            console.print(f"{work.files.name}: {escape(work.explanation)}")
    blocks = workload.blocks(chosen.simulations_per_block)
    console.print(
        f"{counted(workload.samples, 'sample')} to be made in {counted(len(blocks), 'block')}. Nothing was done."
    )
    for line in estimates(chosen, manifest, workload):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if not refresh and any(work.stale for work in workload.simulations):
        console.print("Stale samples are made anew with --refresh only.")
    if workload.verdict:
        console.print(workload.verdict, soft_wrap=True, highlight=False, markup=False)
    return workload.verdict


def _print_job_script(chosen: DatasetConfig, simulations: list[str] | None, *, refresh: bool) -> None:
    from bind_core.parameters import find_parameter_file, read_parameter_table
    from storage.blocks import plan_block, screen_block
    from storage.layout import DatasetLayout
    from storage.manifest import open_dataset
    from storage.recording import new_run_id
    from storage.workload import plan_workload
    from tasks.block_files import block_folder
    from tasks.block_job import BlockJob

    if chosen.launcher is not LauncherName.SBATCH:
        raise ConfigurationError(
            f"--print-job-script: with launcher: {chosen.launcher}, no job is submitted. Add --option launcher=sbatch."
        )
    layout = DatasetLayout(chosen.output_root, chosen.set_name)
    manifest = open_dataset(layout, chosen, refresh=refresh)
    workload = plan_workload(chosen, manifest, simulations or None, refresh=refresh)
    table = read_parameter_table(find_parameter_file(chosen))
    run_id = new_run_id()
    for number, block in enumerate(workload.blocks(chosen.simulations_per_block)):
        plan = plan_block(screen_block(block, chosen, table), chosen, run_id, number)
        if plan is not None:
            typer.echo(BlockJob(plan, block_folder(layout.work_folder / run_id, number)).script(), nl=False)
            return
    error_console.print("No job would be submitted: there is nothing that can be made.")


def _defects(texts: list[str]) -> dict[str, list[Any]]:
    from storage.mock_suite import Defect

    defects: dict[str, list[Any]] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            defects.setdefault(name, []).append(Defect(value))
        except ValueError:
            raise ConfigurationError(
                f"--defect {text}: expected SIMULATION=DEFECT with one of {', '.join(Defect)}."
            ) from None
    return defects
