"""The command `bind-data`.

Prefect is imported by the commands that run flows only, so that the others answer at once.
"""

import typer

from flows.commands import asking, auditing, importing, making, painting, publishing, repairing, serving, versioning

app = typer.Typer(
    help="Turn pairs of cosmological simulations (dark matter only, and hydrodynamic) into the training set of BIND.",
    epilog="Start with `bind-data demo`. Folders can be given once, as BIND_NBODY_BASE, BIND_HYDRO_BASE, "
    "BIND_FOF_NBODY_BASE, BIND_PARAM_FILE and BIND_DATASET.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for module in (making, asking, versioning, auditing, repairing, publishing, painting, importing, serving):
    app.add_typer(module.commands)


def main() -> None:
    """Run the command line."""
    app()
