"""Commands that make a data set ready for those who train on it."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows.options import AtOption, DatasetOption, JsonOption, VersionOption, version_asked
from flows.terminal import (
    console,
    counted,
    error_console,
    errors_explained,
    fail,
    print_json,
    shown_progress,
    writing,
)

commands = typer.Typer()


@commands.command()
def normalize(
    dataset: DatasetOption = Path(),
    output: Annotated[Path | None, typer.Option(help="Folder for the files; by default the data set's data/.")] = None,
    version: VersionOption = None,
    at: AtOption = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that read and compute.")] = 2,
    quantiles: Annotated[
        list[str] | None,
        typer.Option(metavar="CHANNEL", help="Channel that gets a table of quantiles, e.g. stars; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compute the normalization statistics of the train split and write the `*_normalization_stats.npz`."""
    with errors_explained():
        from storage.manifest import layout_at
        from storage.statistics import compute_statistics, write_statistics

        layout = layout_at(dataset)
        meant = version_asked(layout, version, at)
        stats = compute_statistics(
            layout, version=None if meant is None else meant.number, threads=threads, quantiles=quantiles or ()
        )
        folder = output or layout.statistics_folder
        with writing(folder):
            files = write_statistics(stats, folder)
    if as_json:
        print_json({"files": [str(file) for file in files], "n_samples": stats.n_samples, "maps": stats.as_rows()})
        return
    table = Table("map", "transform", "mean", "standard deviation", "quantiles")
    for row in stats.as_rows():
        numbers = (f"{row['mean']:.6f}", f"{row['std']:.6f}", str(row["quantiles"] or "-"))
        table.add_row(str(row["map"]), str(row["transform"]), *numbers)
    console.print(table)
    console.print(f"From {stats.n_samples:,} samples of the train split:")
    for file in files:
        console.print(f"  {file}")


@commands.command()
def card(
    dataset: DatasetOption = Path(),
    version: VersionOption = None,
    at: AtOption = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the files; by default the data set's root, which their paths are of."),
    ] = None,
    creator: Annotated[list[str] | None, typer.Option(help="Name of a creator; may be repeated.")] = None,
    licence: Annotated[str, typer.Option("--license", help="URL or SPDX identifier of the licence.")] = "",
    url: Annotated[str, typer.Option(help="Page of the data set.")] = "",
    citation: Annotated[str, typer.Option(help="How to cite it, best as BibTeX; by default an entry is made up.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Describe a version: `croissant.json` for machines, `DATASET.md` for people, and its rows, `samples.parquet`."""
    with errors_explained():
        from storage.card import write_card
        from storage.card_facts import Publication
        from storage.manifest import layout_at
        from storage.versions import resolve_version

        layout = layout_at(dataset)
        publication = Publication(tuple(creator or ()), licence, url, citation)
        meant = version_asked(layout, version, at) or resolve_version(layout)
        with writing(output or layout.root):
            written = write_card(layout, meant, publication, datetime.now(UTC), output)
    if as_json:
        facts = written.facts
        print_json(
            {
                "files": [str(file) for file in written.files],
                "version": facts.version.number,
                "release": facts.release,
                "n_samples": facts.samples.height,
                "unsaid": list(written.unsaid),
            }
        )
        return
    console.print(f"Version {written.facts.version.number}, {counted(written.facts.samples.height, 'sample')}:")
    for file in written.files:
        console.print(f"  {file}")
    if written.unsaid:
        flags = ", ".join({"creators": "--creator"}.get(name, f"--{name}") for name in written.unsaid)
        error_console.print(
            f"[yellow]Before it is published, the card should also say what only its owner knows: {flags}.[/yellow]"
        )


@commands.command()
def pack(
    dataset: DatasetOption = Path(),
    version: VersionOption = None,
    at: AtOption = None,
    where: Annotated[
        str, typer.Option(help='Only samples that fulfil this condition in SQL, e.g. "halo_mass > 3e13".')
    ] = "",
    tar: Annotated[bool, typer.Option("--tar", help="Tar files as WebDataset streams them, not Zarr shards.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="The pack's folder, to be made; by default one in the data set's packs/.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(metavar="PACK", help="Hold a pack against its checksums and the manifest instead.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that read.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Pack the samples of a version into few large files, for training; a killed run is taken up again."""
    with errors_explained():
        from storage.manifest import layout_at
        from storage.shards import PackFormat, verify_pack
        from storage.shards import pack as make_pack
        from storage.versions import resolve_version

        layout = layout_at(dataset)
        if verify is not None:
            problems = verify_pack(layout, verify)
            if as_json:
                print_json({"folder": str(verify), "ok": not problems, "problems": problems})
            elif problems:
                fail("\n".join([f"{verify} is not what it should be:", *(f"  {problem}" for problem in problems)]))
            else:
                console.print(f"{verify} holds what the manifest lists, undamaged.")
            sys.exit(1 if problems else 0)
        meant = version_asked(layout, version, at) or resolve_version(layout)
        pack_format = PackFormat.TAR if tar else PackFormat.ZARR
        with writing(output or layout.packs_folder), shown_progress("samples packed") as progress:
            made = make_pack(
                layout, meant, output, where=where, pack_format=pack_format, threads=threads, progress=progress
            )
    if as_json:
        print_json(made.as_dict())
        return
    size = f"{made.bytes / 1e6:,.0f} MB" if made.bytes > 1e6 else f"{made.bytes:,} bytes"
    console.print(f"{counted(made.identity.n_samples, 'sample')} of version {made.identity.version}, {size} in")
    console.print(f"  {made.folder}", markup=False)
