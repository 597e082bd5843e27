"""Commands that make a data set ready for those who train on it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows.options import DatasetOption, JsonOption
from flows.terminal import console, errors_explained, print_json, writing

commands = typer.Typer()


@commands.command()
def normalize(
    dataset: DatasetOption = Path(),
    output: Annotated[Path | None, typer.Option(help="Folder for the files; by default the data set's data/.")] = None,
    version: Annotated[int | None, typer.Option(help="Version of the manifest; by default the latest.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that read.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Compute the normalization statistics of the train split and write the three `*_normalization_stats.npz`."""
    with errors_explained():
        from storage.manifest import layout_at
        from storage.statistics import compute_statistics, write_statistics

        layout = layout_at(dataset)
        stats = compute_statistics(layout, version=version, threads=threads)
        folder = output or layout.statistics_folder
        with writing(folder):
            files = write_statistics(stats, folder)
    if as_json:
        print_json({"files": [str(file) for file in files], "n_samples": stats.n_samples, "maps": stats.as_rows()})
        return
    table = Table("map", "mean of log10(x + 1)", "standard deviation")
    for row in stats.as_rows():
        table.add_row(str(row["map"]), f"{row['mean']:.6f}", f"{row['std']:.6f}")
    console.print(table)
    console.print(f"From {stats.n_samples:,} samples of the train split:")
    for file in files:
        console.print(f"  {file}")
