"""Commands for those who paint with a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from bind_core.config import DatasetConfig
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
from flows.terminal import console, counted, errors_explained, print_json, shown_progress, writing

commands = typer.Typer()


@commands.command()
def conditions(
    context: typer.Context,
    simulation: Annotated[str, typer.Argument(help="Name of the simulation; it needs no hydrodynamic run.")],
    output: Annotated[Path, typer.Option(help="Folder for the files, or that is to be the Zarr group.")],
    dataset: DatasetOption = Path(),
    config_file: ConfigOption = None,
    dmo_base: DmoOption = None,
    hydro_base: HydroOption = None,
    catalogue_base: CatalogueOption = None,
    param_file: ParameterOption = None,
    set_name: Annotated[str | None, typer.Option("--set", help="Set of simulations.", rich_help_panel=SUITE)] = None,
    option: SettingOption = None,
    as_zarr: Annotated[
        bool, typer.Option("--zarr", help="Write one Zarr v3 group of all haloes, not a file for each.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the conditions of a dark-matter-only simulation, of any box size, for a model trained on a data set.

    The windows are the data set's (its dataset.yaml, or --config), in Mpc/h, and made by the functions that made it,
    with the identity as rotation.
    """
    with errors_explained():
        from bind_core.errors import ConfigurationError
        from bind_core.halos import halos_in, read_catalogue
        from bind_core.inference import halo_conditions, read_particles
        from bind_core.snapshot import Component
        from bind_core.suite import find_simulation
        from storage.conditions import ConditionFormat, write_conditions

        chosen = configuration(settings_of(context))
        files = find_simulation(simulation, chosen)
        for inputs in (files.dmo, files.catalogue):
            if not inputs.files:
                raise ConfigurationError(
                    f"{simulation}: there is no {inputs.role.value} in {inputs.folder}: expected one of "
                    f"{', '.join(inputs.expected)}."
                )
        catalogue = read_catalogue(files.catalogue.files)
        halos = [halo for stratum in chosen.strata for halo in halos_in(catalogue, stratum)]
        dark_matter = read_particles(Component.DMO, files.dmo.files, chosen)
        with writing(output), shown_progress("haloes") as progress:
            made = halo_conditions(dark_matter, halos, chosen.windows, chosen.backend)
            counting = (progress(number, len(halos)) or each for number, each in enumerate(made, start=1))
            parameters = _known_parameters(simulation, chosen)
            form = ConditionFormat.ZARR if as_zarr else ConditionFormat.NPZ
            written = write_conditions(output, simulation, counting, dark_matter.box_size, chosen, parameters, form)
    if as_json:
        print_json({"folder": str(output), "halos": list(written.halos), "box_size": written.box_size})
        return
    console.print(f"Conditions of {counted(len(written.halos), 'halo').replace('halos', 'haloes')} in {output}")


def _known_parameters(simulation: str, config: DatasetConfig) -> tuple[float, ...] | None:
    """Return a simulation's parameters, if there is a table with them; one that was named must be readable."""
    from bind_core.errors import ParameterTableError
    from bind_core.parameters import find_parameter_file, read_parameter_table

    try:
        table = read_parameter_table(find_parameter_file(config))
    except ParameterTableError:
        if config.parameter_file is not None:
            raise
        return None
    return tuple(table.rows[simulation].tolist()) if simulation in table.rows else None
