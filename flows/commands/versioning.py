"""Commands about the versions of a data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bind_core.errors import ConfigurationError
from flows.options import DatasetOption, JsonOption, VersionOption
from flows.terminal import console, counted, errors_explained, print_json, writing

if TYPE_CHECKING:
    from storage.differences import VersionDifference
    from storage.tags import Tag

commands = typer.Typer()

_SHOWN = 50
"""Lines of each part of a difference, unless asked for more."""
_DIGEST_SHOWN = 12
_TAG_SHOWN = 16
"""Characters of a tag that stay on one line, however narrow the terminal."""
_WIDE = 140
"""Characters from which a line has room for all that a version says of itself."""


@commands.command()
def versions(dataset: DatasetOption = Path(), as_json: JsonOption = False) -> None:
    """List all versions of a data set: when, who, what for, what came and went, and their tags."""
    with errors_explained():
        from storage.manifest import Manifest, layout_at
        from storage.tags import read_tags

        layout = layout_at(dataset)
        history = Manifest(layout).versions
        names: dict[int, list[str]] = {}
        for tag in read_tags(layout):
            names.setdefault(tag.version, []).append(tag.name)
    if as_json:
        print_json(
            [
                {
                    "version": entry.version,
                    "committed_at": entry.committed_at.isoformat(),
                    "user": entry.user,
                    "host": entry.host,
                    "operation": entry.action or entry.operation.lower(),
                    "run_id": entry.run_id,
                    "samples_added": entry.samples_added,
                    "samples_removed": entry.samples_removed,
                    "tags": names.get(entry.version, []),
                    "config_digest": entry.config_digest,
                    "code_version": entry.code_version,
                }
                for entry in history
            ]
        )
        return
    wide = console.width >= _WIDE
    further = ("run", "host", "configuration") if wide else ()
    table = Table()
    for heading in ("version", "when (UTC)", "who", "operation", "added", "removed", "tags", *further):
        table.add_column(heading, overflow="fold")
    for entry in history:
        cells = (
            str(entry.version),
            f"{entry.committed_at:%Y-%m-%d %H:%M:%S}",
            escape(entry.user),
            entry.action or entry.operation.lower(),
            f"{entry.samples_added:,}",
            f"{entry.samples_removed:,}",
            ", ".join(names.get(entry.version, [])),
        )
        details = (escape(entry.run_id), escape(entry.host), entry.config_digest[:_DIGEST_SHOWN])
        table.add_row(*cells, *(details if wide else ()))
    console.print(table)
    console.print(counted(len(history), "version"))
    if not wide:
        console.print("A wider terminal shows run, host and configuration too; --json has everything.")


@commands.command()
def tag(
    name: Annotated[
        str | None, typer.Argument(help="Letters, digits, dots, underscores and dashes, e.g. trained-2026-11.")
    ] = None,
    dataset: DatasetOption = Path(),
    version: VersionOption = None,
    note: Annotated[str, typer.Option(help="What the name stands for.", show_default=False)] = "",
    list_tags: Annotated[bool, typer.Option("--list", help="List the tags, and give none.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the tag; the version that it names stays.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Give a version of a data set a name that means it for good, or list or delete such names."""
    with errors_explained():
        from storage.manifest import layout_at
        from storage.tags import delete_tag, read_tags
        from storage.versions import tag_version

        if list_tags == (name is not None) or (list_tags and delete):
            raise ConfigurationError("Expected the name of a tag, or --list.")
        if (list_tags or delete) and (version is not None or note):
            raise ConfigurationError("--version and --note belong to a new tag, not to --list or --delete.")
        layout = layout_at(dataset)
        if name is None:
            tags = read_tags(layout)
        else:
            with writing(layout.tags_folder):
                tags = [delete_tag(layout, name) if delete else tag_version(layout, name, version, note)]
    if as_json:
        print_json([given.as_dict() for given in tags])
    elif list_tags:
        _print_tags(tags)
    else:
        done = "Deleted: the tag" if delete else "The tag"
        console.print(f"{done} {tags[0].name} of version {tags[0].version}, {counted(tags[0].samples, 'sample')}.")


@commands.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="Number, tag or time of a version.")],
    after: Annotated[
        str | None, typer.Argument(metavar="B", help="Number, tag or time of a version; by default the latest.")
    ] = None,
    dataset: DatasetOption = Path(),
    limit: Annotated[
        int | None, typer.Option(min=0, help="Most lines of each part; by default 50, and all with --json.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what came, went and changed from version A to version B: samples and statuses of simulations."""
    with errors_explained():
        from storage.differences import difference
        from storage.manifest import layout_at
        from storage.versions import resolve_version, version_named

        layout = layout_at(dataset)
        then = version_named(layout, before)
        found = difference(layout, then, resolve_version(layout) if after is None else version_named(layout, after))
    if as_json:
        samples = found.samples.head(limit) if limit is not None else found.samples
        print_json(
            {
                "before": found.before.as_dict(),
                "after": found.after.as_dict(),
                **found.counts,
                "changed_columns": found.changed_columns,
                "simulations": found.per_simulation.to_dicts(),
                "samples": samples.to_dicts(),
                "statuses": found.statuses.to_dicts(),
            }
        )
    else:
        _print_difference(found, _SHOWN if limit is None else limit)


def _print_tags(tags: "list[Tag]") -> None:
    wide = console.width >= _WIDE
    table = Table()
    for heading in ("tag", "version", "of (UTC)", "samples"):
        table.add_column(heading, overflow="fold", min_width=_TAG_SHOWN if heading == "tag" else None)
    for heading in ("configuration", "tagged (UTC)", "by") if wide else ():
        table.add_column(heading, overflow="fold")
    table.add_column("note", overflow="fold")
    for given in tags:
        details = (
            ", ".join(digest[:_DIGEST_SHOWN] for digest in given.config_digests),
            f"{given.tagged_at:%Y-%m-%d %H:%M:%S}",
            escape(f"{given.user}@{given.host}"),
        )
        table.add_row(
            given.name,
            str(given.version),
            f"{given.committed_at:%Y-%m-%d %H:%M:%S}",
            f"{given.samples:,}",
            *(details if wide else ()),
            escape(given.note),
        )
    console.print(table)
    console.print(counted(len(tags), "tag"))
    if tags and not wide:
        console.print("A wider terminal shows configuration, giver and time too; --json has everything.")


def _print_difference(found: "VersionDifference", limit: int) -> None:
    import polars as pl

    counts, simulations = found.counts, found.per_simulation
    console.print(f"From: {found.before.title}.")
    console.print(f"To:   {found.after.title}.")
    if found.empty:
        console.print("No sample and no status differs.")
        return
    console.print(
        f"{counted(counts['added'], 'sample')} added, {counts['removed']:,} removed, {counts['changed']:,} changed, in "
        f"{counted(simulations.height, 'simulation')}; {counted(found.statuses.height, 'simulation')} with another "
        "status."
    )
    if found.changed_columns:
        console.print("Changed: " + ", ".join(f"{name} ({count:,})" for name, count in found.changed_columns.items()))
    _print_part(Table("simulation", "added", "removed", "changed"), simulations.rows(), limit)
    samples = found.samples.select("sample_id", "what", pl.col("columns").list.join(", ")).rows()
    _print_part(Table("sample", "what", "columns"), samples, limit)
    _print_part(Table("simulation", "status before", "status after", "message"), found.statuses.rows(), limit)


def _print_part(table: Table, rows: list[tuple[object, ...]], limit: int) -> None:
    if not rows:
        return
    for row in rows[:limit]:
        table.add_row(*(escape(f"{value:,}" if isinstance(value, int) else str(value or "")) for value in row))
    if limit:
        console.print(table)
    if len(rows) > limit:
        console.print(f"… and {len(rows) - limit:,} more: give a higher --limit, or --json.")
