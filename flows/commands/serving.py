"""Commands that bring the flows to a Prefect server."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from flows.options import CatalogueOption, DmoOption, HydroOption, ParameterOption
from flows.terminal import console, errors_explained, prepare_prefect, terminable

if TYPE_CHECKING:
    from flows.deploying import Registered

commands = typer.Typer()


@commands.command()
def deploy(
    dataset: Annotated[
        Path,
        typer.Option(
            "--dataset", "-d", envvar="BIND_DATASET", help="Data set that scheduled runs are about; may not exist yet."
        ),
    ],
    dmo_base: DmoOption = None,
    hydro_base: HydroOption = None,
    catalogue_base: CatalogueOption = None,
    param_file: ParameterOption = None,
) -> None:
    """Register work pool, deployments and automations with the Prefect server at PREFECT_API_URL.

    What is registered stands in `prefect.yaml` and `automations/`, which are checked first. Running it again brings
    the server up to date.
    """
    with errors_explained():
        prepare_prefect(verbose=False)
        _print_registered(_deploy(dataset, dmo_base, hydro_base, catalogue_base, param_file))


@commands.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="Folder for the server's database, results and logs.")] = Path(
        "served"
    ),
    dataset: Annotated[
        Path | None,
        typer.Option(
            "--dataset",
            "-d",
            envvar="BIND_DATASET",
            help="Data set that scheduled runs are about; may not exist yet.",
            show_default="FOLDER/dataset",
        ),
    ] = None,
    dmo_base: DmoOption = None,
    hydro_base: HydroOption = None,
    catalogue_base: CatalogueOption = None,
    param_file: ParameterOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on. Whoever can reach it can start runs.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 4200,
    limit: Annotated[int, typer.Option(help="Runs executed at the same time.", min=1)] = 2,
) -> None:
    """Run a Prefect server with its UI, all deployments and a worker on this machine, until Ctrl-C."""
    from flows.serving import Platform

    platform = Platform(folder.absolute(), host, port)
    with errors_explained(), terminable():
        os.environ.update(platform.settings)  # before Prefect reads its settings
        prepare_prefect(verbose=False)
        try:
            console.print(f"Starting a Prefect server on {platform.url} (some seconds; {platform.log_folder})")
            platform.start_server()
            registered = _deploy(dataset or folder / "dataset", dmo_base, hydro_base, catalogue_base, param_file)
            _print_registered(registered)
            for pool in registered.work_pools:
                platform.start_worker(pool, limit)
            console.print(f"[bold]The UI is at {platform.url}[/bold]; Ctrl-C ends everything.")
            platform.wait()
        except KeyboardInterrupt:
            console.print("Stopping: runs first, then the worker, then the server")
        finally:
            platform.stop()
        console.print("Stopped. Runs that were under way make the rest when they are run again.")


def _deploy(
    dataset: Path, dmo_base: Path | None, hydro_base: Path | None, catalogue_base: Path | None, table: Path | None
) -> "Registered":
    from flows.deploying import deploy_all

    bases = {
        "BIND_NBODY_BASE": dmo_base,
        "BIND_HYDRO_BASE": hydro_base,
        "BIND_FOF_NBODY_BASE": catalogue_base,
        "BIND_PARAM_FILE": table,
    }
    return deploy_all(dataset.absolute(), bases)


def _print_registered(registered: "Registered") -> None:
    console.print("Deployments:")
    for name in registered.deployments:
        console.print(f"  {escape(name)}")
    for note in registered.notes:
        console.print(f"- {escape(note)}")
