"""Options that several commands share, and the settings that they add up to."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from bind_core.config import DatasetConfig
from bind_core.errors import ConfigurationError
from bind_core.settings_file import read_yaml_mapping

if TYPE_CHECKING:
    from storage.layout import DatasetLayout
    from storage.versions import DatasetVersion

SUITE = "The suite"
"""Panel of the options about simulations in the help of a command."""
BASES = {
    "dmo_base": ("--dmo-base", "BIND_NBODY_BASE"),
    "hydro_base": ("--hydro-base", "BIND_HYDRO_BASE"),
    "catalogue_base": ("--catalogue-base", "BIND_FOF_NBODY_BASE"),
}
"""Settings that are folders of the suite, each with its flag and its variable of the environment."""

DatasetOption = Annotated[
    Path, typer.Option("--dataset", "-d", envvar="BIND_DATASET", help="Folder of the data set.", show_default="here")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
VersionOption = Annotated[
    str | None, typer.Option("--version", metavar="N|TAG", help="Number or tag of the version; by default the latest.")
]
AtOption = Annotated[
    str | None,
    typer.Option(
        "--at", metavar="TIME", help="The version as of a time, e.g. 2026-11-23 (its end) or 2026-11-23T18:30; UTC."
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML configuration; by default, the data set's own.")
]
DmoOption = Annotated[
    Path | None,
    typer.Option(
        "--dmo-base", envvar="BIND_NBODY_BASE", help="Folder of the dark-matter-only runs.", rich_help_panel=SUITE
    ),
]
HydroOption = Annotated[
    Path | None,
    typer.Option(
        "--hydro-base", envvar="BIND_HYDRO_BASE", help="Folder of the hydrodynamic runs.", rich_help_panel=SUITE
    ),
]
CatalogueOption = Annotated[
    Path | None,
    typer.Option(
        "--catalogue-base",
        envvar="BIND_FOF_NBODY_BASE",
        help="Folder of the halo catalogues of the dark-matter-only runs.",
        rich_help_panel=SUITE,
    ),
]
ParameterOption = Annotated[
    Path | None,
    typer.Option(
        "--param-file",
        envvar="BIND_PARAM_FILE",
        help="Parameter table; by default `CosmoAstroSeed_*<set>*.txt` beside or in the folders above.",
        rich_help_panel=SUITE,
    ),
]
RefreshOption = Annotated[
    bool, typer.Option("--refresh", help="Make stale samples anew, as a new version; what they were is kept.")
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


_OPTIONS = {"parameter_file": "param_file"}
"""Options that are called otherwise than their settings."""
_SETTINGS = (*BASES, "parameter_file", "set_name", "ranks")


def settings_of(context: typer.Context) -> dict[str, Any]:
    """Gather settings: flags before a --config file before the environment before the data set's own file.

    Parameters
    ----------
    context : Context
        Of a command with the options of this module for the suite; what it does not have counts as not given.

    Raises
    ------
    ConfigurationError
        If a file cannot be read, an option is not NAME=VALUE, or a folder of the suite is not given.
    """
    options = context.params
    dataset, config_file = Path(options["dataset"]), options["config_file"]
    own = dataset / "dataset.yaml"
    values: dict[str, Any] = {}
    if config_file is not None:
        values = read_yaml_mapping(Path(config_file))
    elif own.exists():
        values = read_yaml_mapping(own)
    given = {setting: options.get(_OPTIONS.get(setting, setting)) for setting in _SETTINGS}
    in_file = values if config_file is not None else {}
    values |= {
        name: value
        for name, value in given.items()
        if value is not None and not (in_file.get(name) is not None and _given_by(context, name) == "ENVIRONMENT")
    }
    if in_file.get("output_root") is None or _given_by(context, "dataset") == "COMMANDLINE":
        values["output_root"] = dataset
    for text in options["option"] or []:
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigurationError(f"--option {text}: expected NAME=VALUE, e.g. --option resolution=64.")
        values[name.strip()] = _setting(text, value)
    missing = [
        f"  {name}: give {flag}, set {variable}, or name it in a --config file"
        for name, (flag, variable) in BASES.items()
        if values.get(name) is None
    ]
    if missing:
        raise ConfigurationError("Folders of the suite that are not given:\n" + "\n".join(missing))
    return values


def configuration(settings: dict[str, Any]) -> DatasetConfig:
    """Return the configuration that settings add up to, with absolute paths.

    Raises
    ------
    ConfigurationError
        If they do not.
    """
    from storage.preparation import with_absolute_paths

    return with_absolute_paths(DatasetConfig.from_values(settings, source="The settings given"))


def version_asked(layout: "DatasetLayout", version: str | None, at: str | None) -> "DatasetVersion | None":
    """Return the version that --version or --at mean, or None if neither is given.

    Raises
    ------
    VersionError
        If both are given, or there is no such version or time.
    """
    if version is None and at is None:
        return None
    from storage.versions import resolve_version, time_meant

    return resolve_version(layout, version, None if at is None else time_meant(at))


def recorded(dataset: Path) -> DatasetConfig:
    """Return the configuration that a data set was made with, for the folder where it lies now.

    Raises
    ------
    ManifestError
        If there is no data set.
    ConfigurationError
        If its ``dataset.yaml`` cannot be read.
    """
    from storage.manifest import layout_at, recorded_configuration

    layout_at(dataset)
    config = recorded_configuration(dataset)
    if config is None:
        raise ConfigurationError(f"There is no data set in {dataset}.")
    return config.model_copy(update={"output_root": dataset})


def _setting(option: str, value: str) -> Any:
    if re.fullmatch(r"[-+]?0[0-9]+", value.strip()):
        return value.strip()  # snapshot 033, which YAML takes for an octal number
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--option {option}: the value is not valid YAML: {error}") from error


def _given_by(context: typer.Context, setting: str) -> str:
    """Return who gave a setting: COMMANDLINE, ENVIRONMENT, DEFAULT."""
    source = context.get_parameter_source(_OPTIONS.get(setting, setting))
    return "" if source is None else source.name
