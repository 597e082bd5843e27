"""The command `bind-data`.

Prefect is imported by the commands that run flows only, so that the others answer at once.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bind_core.config import DatasetConfig, read_yaml_mapping
from bind_core.errors import BindDataError, ConfigurationError

if TYPE_CHECKING:
    import polars as pl

app = typer.Typer(
    help="Turn pairs of cosmological simulations (dark matter only, and hydrodynamic) into the training set of BIND.",
    epilog="Start with `bind-data demo`. Folders can be given once, as BIND_NBODY_BASE, BIND_HYDRO_BASE, "
    "BIND_FOF_NBODY_BASE, BIND_PARAM_FILE and BIND_DATASET.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)

_SUITE = "The suite"
_NARROWEST_COLUMN = 12
"""Characters per column, frame included, below which a table cannot be read."""
_SET_NAME = r"[A-Za-z0-9][A-Za-z0-9+\-]*"
_BASES = {
    "dmo_base": ("--dmo-base", "BIND_NBODY_BASE"),
    "hydro_base": ("--hydro-base", "BIND_HYDRO_BASE"),
    "catalogue_base": ("--catalogue-base", "BIND_FOF_NBODY_BASE"),
}

DatasetOption = Annotated[
    Path, typer.Option("--dataset", "-d", envvar="BIND_DATASET", help="Folder of the data set.", show_default="here")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML configuration; by default, the data set's own.")
]
DmoOption = Annotated[
    Path | None,
    typer.Option(
        "--dmo-base", envvar="BIND_NBODY_BASE", help="Folder of the dark-matter-only runs.", rich_help_panel=_SUITE
    ),
]
HydroOption = Annotated[
    Path | None,
    typer.Option(
        "--hydro-base", envvar="BIND_HYDRO_BASE", help="Folder of the hydrodynamic runs.", rich_help_panel=_SUITE
    ),
]
CatalogueOption = Annotated[
    Path | None,
    typer.Option(
        "--catalogue-base",
        envvar="BIND_FOF_NBODY_BASE",
        help="Folder of the halo catalogues of the dark-matter-only runs.",
        rich_help_panel=_SUITE,
    ),
]
ParameterOption = Annotated[
    Path | None,
    typer.Option(
        "--param-file",
        envvar="BIND_PARAM_FILE",
        help="Parameter table; by default `CosmoAstroSeed_*<set>*.txt` beside or in the folders above.",
        rich_help_panel=_SUITE,
    ),
]
SimulationOption = Annotated[
    list[str] | None,
    typer.Option("--simulation", "-s", help="Only this simulation, e.g. SB35_0; may be repeated."),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="NAME=VALUE",
        help="Any setting of the configuration; may be repeated. `bind-data config` lists them.",
    ),
]


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to make the demo in.")] = Path("demo"),
) -> None:
    """Make a small mock suite and a data set from it, and show what came out."""
    with _errors_explained():
        from flows.demo import run_demo

        _prepare_prefect(verbose=False)
        sys.exit(run_demo(out, _out))


@app.command()
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
            _out.print(f"  {member.value}")
        return
    with _errors_explained():
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
                progress=None if as_json else _out.print,
            )
        except ValueError as error:
            raise ConfigurationError(f"Cannot write such a suite: {error}") from error
    if as_json:
        bases = {name: str(getattr(suite, name)) for name in (*_BASES, "parameter_file")}
        _print_json(bases | {"simulations": list(suite.names)})
        return
    _out.print(f"{len(suite.names)} simulations in {out}. To make a data set of them:")
    places = {
        "--dmo-base": suite.dmo_base,
        "--hydro-base": suite.hydro_base,
        "--catalogue-base": suite.catalogue_base,
        "--dataset": out / "dataset",
    }
    flags = [f"{flag} {shlex.quote(str(path))}" for flag, path in places.items()]
    _out.print(f"  bind-data generate {' '.join(flags)} --set {set_name}", markup=False)


@app.command()
def config(
    file: Annotated[
        Path | None, typer.Argument(help="A configuration to check; by default, the built-in values.")
    ] = None,
) -> None:
    """Print a configuration with every setting, or check one."""
    with _errors_explained():
        if file is not None:
            _out.print(DatasetConfig.from_yaml(file).to_yaml(), markup=False)
            return
        from importlib.resources import files

        _out.print((files("data") / "default.yaml").read_text(encoding="utf-8"), markup=False)


@app.command()
def generate(
    context: typer.Context,
    dataset: DatasetOption = Path(),
    config_file: ConfigOption = None,
    dmo_base: DmoOption = None,
    hydro_base: HydroOption = None,
    catalogue_base: CatalogueOption = None,
    param_file: ParameterOption = None,
    set_name: Annotated[
        str | None, typer.Option("--set", help="Set of simulations: SB35, 1P, CV, …", rich_help_panel=_SUITE)
    ] = None,
    simulation: SimulationOption = None,
    rotations: Annotated[int | None, typer.Option(help="Random orientations per halo, in every stratum.")] = None,
    ranks: Annotated[int | None, typer.Option(help="MPI ranks per block of simulations.")] = None,
    option: SettingOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the flow's log beside the bar.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make every sample that is asked for and does not exist yet, as a Prefect flow.

    Without PREFECT_API_URL, an embedded server is started for the run. Running it again does only what is missing.
    """
    with _errors_explained():
        settings = _settings(
            context,
            dataset,
            config_file,
            dmo_base,
            hydro_base,
            catalogue_base,
            param_file,
            set_name,
            option,
            ranks=ranks,
        )
        chosen = _configuration(settings)
        if rotations is not None:
            strata = [stratum.model_dump() | {"rotations": rotations} for stratum in chosen.strata]
            chosen = _configuration(settings | {"strata": strata})
        if dry_run:
            sys.exit(_print_workload(chosen, simulation, as_json))
        _refuse_early(chosen, simulation or [])
        _prepare_prefect(verbose)
        from flows.generate import run_summary

        summary = run_summary(chosen, simulation or None)
    if as_json:
        _print_json(
            {"run_id": summary.run_id, "ok": summary.ok, "simulations": [s.as_row() for s in summary.simulations]}
        )
    else:
        from storage.summary_table import print_summary

        print_summary(summary, _out)
    sys.exit(0 if summary.ok else 1)


@app.command()
def validate(
    context: typer.Context,
    dataset: DatasetOption = Path(),
    config_file: ConfigOption = None,
    dmo_base: DmoOption = None,
    hydro_base: HydroOption = None,
    catalogue_base: CatalogueOption = None,
    param_file: ParameterOption = None,
    set_name: Annotated[str | None, typer.Option("--set", help="Set of simulations.", rich_help_panel=_SUITE)] = None,
    simulation: SimulationOption = None,
    option: SettingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every input file and say all that is wrong with it; nothing is written."""
    from bind_core.parameters import find_parameter_file, read_parameter_table
    from bind_core.suite import discover_simulations, find_simulation
    from bind_core.validation import validate_simulation

    with _errors_explained():
        settings = _settings(
            context,
            dataset,
            config_file,
            dmo_base,
            hydro_base,
            catalogue_base,
            param_file,
            set_name,
            option,
            ranks=None,
        )
        chosen = _configuration(settings)
        table = read_parameter_table(find_parameter_file(chosen))
        reports = []
        for name in simulation or discover_simulations(chosen):
            inspection = validate_simulation(find_simulation(name, chosen), chosen, table)
            reports.append(inspection)
            if not as_json:
                verdict = "[red]blocked[/red]" if inspection.blocked else "[green]ok[/green]"
                _out.print(f"{name}: {verdict}")
                for finding in inspection.findings:
                    _out.print(f"  {finding.severity.value}: {escape(finding.message)}")
    if as_json:
        _print_json(
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
        _err.print(f"[red]There is no simulation of set {chosen.set_name} under the base folders.[/red]")
    sys.exit(1 if not reports or any(report.blocked for report in reports) else 0)


@app.command()
def status(dataset: DatasetOption = Path(), as_json: JsonOption = False) -> None:
    """Say where every simulation of a data set stands."""
    with _errors_explained():
        from storage.manifest import Manifest, layout_at
        from storage.summary import summarise
        from storage.summary_table import print_summary
        from storage.workload import compare, recorded_statuses

        chosen = _recorded(dataset)
        manifest = Manifest(layout_at(dataset))
        names = set(recorded_statuses(manifest))
        try:
            from bind_core.suite import discover_simulations

            names.update(discover_simulations(chosen))
        except ConfigurationError as error:  # the data set can be asked about all the same
            _err.print(f"[yellow]The suite is out of reach. {escape(str(error))}[/yellow]")
        summary = summarise(manifest, compare(chosen, manifest, sorted(names)), "", {})
    if as_json:
        _print_json({"ok": summary.ok, "simulations": [s.as_row() for s in summary.simulations]})
    else:
        print_summary(summary, _out)
    sys.exit(0 if summary.ok else 1)


class TableFormat(StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


@app.command()
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
    with _errors_explained():
        from flows.answers import answer_as_csv, answer_as_json
        from storage.manifest import layout_at
        from storage.queries import query as answer

        frame = answer(layout_at(dataset), sql)
        if as_json or as_format is TableFormat.JSON:
            sys.stdout.write(answer_as_json(frame))
        elif as_format is TableFormat.CSV:
            sys.stdout.write(answer_as_csv(frame))
        else:
            _print_rows(frame)
            _out.print(_counted(frame.height, "row"))


@app.command()
def show(
    sample: Annotated[str, typer.Argument(help="Id of the sample (SB35_0_halo_3_rot_1), or its file.")],
    dataset: DatasetOption = Path(),
    output: Annotated[Path | None, typer.Option(help="Picture to write; by default `<sample>.png` here.")] = None,
) -> None:
    """Draw all maps of one sample: condition, targets and context, as PNG."""
    with _errors_explained():
        from storage.files import write_bytes
        from storage.gallery import sheet_of_sample
        from storage.manifest import layout_at

        name, picture = sheet_of_sample(layout_at(dataset), sample)
        path = output or Path(f"{name}.png")
        with _writing(path):
            write_bytes(path, picture)
    _out.print(str(path))


@app.command()
def normalize(
    dataset: DatasetOption = Path(),
    output: Annotated[Path | None, typer.Option(help="Folder for the files; by default the data set's data/.")] = None,
    version: Annotated[int | None, typer.Option(help="Version of the manifest; by default the latest.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that read.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Compute the normalization statistics of the train split and write the three `*_normalization_stats.npz`."""
    with _errors_explained():
        from storage.manifest import layout_at
        from storage.statistics import compute_statistics, write_statistics

        layout = layout_at(dataset)
        stats = compute_statistics(layout, version=version, threads=threads)
        folder = output or layout.statistics_folder
        with _writing(folder):
            files = write_statistics(stats, folder)
    if as_json:
        _print_json({"files": [str(file) for file in files], "n_samples": stats.n_samples, "maps": stats.as_rows()})
        return
    table = Table("map", "mean of log10(x + 1)", "standard deviation")
    for row in stats.as_rows():
        table.add_row(str(row["map"]), f"{row['mean']:.6f}", f"{row['std']:.6f}")
    _out.print(table)
    _out.print(f"From {stats.n_samples:,} samples of the train split:")
    for file in files:
        _out.print(f"  {file}")


def main() -> None:
    """Run the command line."""
    app()


def _settings(
    context: typer.Context,
    dataset: Path,
    config_file: Path | None,
    dmo_base: Path | None,
    hydro_base: Path | None,
    catalogue_base: Path | None,
    param_file: Path | None,
    set_name: str | None,
    options: list[str] | None,
    ranks: int | None,
) -> dict[str, Any]:
    """Gather settings: flags before a --config file before the environment before the data set's own file."""
    own = dataset / "dataset.yaml"
    values: dict[str, Any] = {}
    if config_file is not None:
        values = read_yaml_mapping(config_file)
    elif own.exists():
        values = read_yaml_mapping(own)
    given = {
        "dmo_base": dmo_base,
        "hydro_base": hydro_base,
        "catalogue_base": catalogue_base,
        "parameter_file": param_file,
        "set_name": set_name,
        "ranks": ranks,
    }
    in_file = values if config_file is not None else {}
    values |= {
        name: value
        for name, value in given.items()
        if value is not None and not (in_file.get(name) is not None and _given_by(context, name) == "ENVIRONMENT")
    }
    if in_file.get("output_root") is None or _given_by(context, "dataset") == "COMMANDLINE":
        values["output_root"] = dataset
    for text in options or []:
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigurationError(f"--option {text}: expected NAME=VALUE, e.g. --option resolution=64.")
        values[name.strip()] = _setting(text, value)
    missing = [
        f"  {name}: give {flag}, set {variable}, or name it in a --config file"
        for name, (flag, variable) in _BASES.items()
        if values.get(name) is None
    ]
    if missing:
        raise ConfigurationError("Folders of the suite that are not given:\n" + "\n".join(missing))
    return values


def _configuration(settings: dict[str, Any]) -> DatasetConfig:
    from storage.preparation import with_absolute_paths

    return with_absolute_paths(DatasetConfig.from_values(settings, source="The settings given"))


def _setting(option: str, value: str) -> Any:
    if re.fullmatch(r"[-+]?0[0-9]+", value.strip()):
        return value.strip()  # snapshot 033, which YAML takes for an octal number
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--option {option}: the value is not valid YAML: {error}") from error


def _given_by(context: typer.Context, setting: str) -> str:
    """Return who gave a setting: COMMANDLINE, ENVIRONMENT, DEFAULT."""
    source = context.get_parameter_source({"parameter_file": "param_file"}.get(setting, setting))
    return "" if source is None else source.name


def _recorded(dataset: Path) -> DatasetConfig:
    from storage.manifest import layout_at, recorded_configuration

    layout_at(dataset)
    recorded = recorded_configuration(dataset)
    if recorded is None:
        raise ConfigurationError(f"There is no data set in {dataset}.")
    return recorded.model_copy(update={"output_root": dataset})


def _refuse_early(chosen: DatasetConfig, simulations: list[str]) -> None:
    """Raise what the flow would refuse anyway, before a server is started for it."""
    from bind_core.suite import discover_simulations, find_simulation
    from storage.layout import DatasetLayout
    from storage.manifest import open_dataset

    open_dataset(DatasetLayout(chosen.output_root, chosen.set_name), chosen)
    discover_simulations(chosen)
    for name in simulations:
        find_simulation(name, chosen)


def _print_workload(chosen: DatasetConfig, simulations: list[str] | None, as_json: bool) -> int:
    from storage.layout import DatasetLayout
    from storage.manifest import open_dataset
    from storage.workload import plan_workload

    manifest = open_dataset(DatasetLayout(chosen.output_root, chosen.set_name), chosen)
    workload = plan_workload(chosen, manifest, simulations or None)
    if as_json:
        _print_json(
            [
                {
                    "simulation": work.files.name,
                    "reason": work.reason.value,
                    "planned": len(work.predicted),
                    "missing": [target.sample_id for target in work.missing],
                }
                for work in workload.simulations
            ]
        )
        return 0
    table = Table("simulation", "why", "planned", "to be made")
    for work in workload.simulations:
        table.add_row(work.files.name, work.reason.value, f"{len(work.predicted):,}", f"{len(work.missing):,}")
    _out.print(table)
    blocks = workload.blocks(chosen.simulations_per_block)
    _out.print(
        f"{_counted(workload.samples, 'sample')} to be made in {_counted(len(blocks), 'block')}. Nothing was done."
    )
    return 0


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


def _prepare_prefect(verbose: bool) -> None:
    """Set defaults for an embedded server, before Prefect reads its settings."""
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if not verbose and _err.is_terminal:
        # The bar has the terminal to itself; warnings and errors still interrupt it.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _print_rows(frame: "pl.DataFrame") -> None:
    """Print an answer as a table, or row by row where a table would have no room for what is in its cells."""
    rows = ([escape(_cell(value)) for value in row] for row in frame.iter_rows())
    if frame.width * _NARROWEST_COLUMN <= _out.width:
        table = Table()
        for column in frame.columns:
            table.add_column(escape(column), overflow="fold")  # a path that is cut short leads nowhere
        for row in rows:
            table.add_row(*row)
        _out.print(table)
        return
    indent = max(map(len, frame.columns))
    for number, row in enumerate(rows, start=1):
        _out.print(f"[bold]row {number:,}[/bold]")
        for column, value in zip(frame.columns, row, strict=True):
            _out.print(f"  {escape(column.ljust(indent))}  {value}".rstrip())


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Name the path that the user gave where it cannot be written, and not the temporary file beside it."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"Cannot write {path}: {error.strerror or error}.") from error


class _errors_explained:  # noqa: N801
    """Turns an error of ours into its message and exit status 1."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, BindDataError):
            _fail(f"{type(error).__name__}: {error}")
        if isinstance(error, OSError) and error.filename is not None:
            _fail(f"{error.filename}: {error.strerror}")
        if isinstance(error, KeyboardInterrupt):
            _err.print("[red]Interrupted. What was committed stays; run the same command again to go on.[/red]")
            sys.exit(130)


def _fail(message: str) -> NoReturn:
    _err.print(f"[red]{escape(message)}[/red]")
    sys.exit(1)
