"""Commands that check a data set and mend it."""

import typer

commands = typer.Typer()
