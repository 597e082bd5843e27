"""The card for people: ``DATASET.md``, which says what a version of a data set is and how to use it."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from bind_core.config import SplitPolicy
from storage.card_facts import Array, DatasetFacts
from storage.croissant import CardFile
from storage.markdown import shown_cell, shown_code

_WIDTH = 120


def dataset_page(facts: DatasetFacts, table: CardFile, others: Sequence[CardFile] = ()) -> str:
    """Return the page of a version, in Markdown.

    Parameters
    ----------
    facts : DatasetFacts
        What there is to say.
    table : CardFile
        The version's rows, as Parquet.
    others : sequence of CardFile
        Further files that belong to the data set.
    """
    sections = {
        "What is in it": _contents(facts),
        "How to read it": _reading(facts, table),
        "Arrays of a sample": _arrays(facts),
        f"Columns of {table.path}": _columns(facts),
        "Statistics": _statistics(facts),
        "How it was made": _making(facts),
        "Limits": _listed(facts.limits),
        "Files": _files(facts, table, others),
        "How to cite": f"```bibtex\n{facts.citation}\n```" if facts.citation.startswith("@") else facts.citation,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return f"# {facts.name}\n\n{_paragraph(facts.description)}\n\n{_overview(facts)}\n\n{body}\n"


def _overview(facts: DatasetFacts) -> str:
    publication = facts.publication
    tags = f", tagged {', '.join(facts.version.tags)}" if facts.version.tags else ""
    rows = {
        "version": f"{facts.release} (manifest version {facts.version.number}{tags})",
        "committed": f"{facts.modified_at:%Y-%m-%d %H:%M} UTC",
        "size": f"{facts.samples.height:,} samples, {_size(facts.bytes)}",
        "by": ", ".join(publication.creators),
        "licence": publication.license,
        "page": publication.url,
    }
    return _table(("", ""), [(f"**{name}**", value) for name, value in rows.items() if value])


def _contents(facts: DatasetFacts) -> str:
    rows = [
        (
            row["split"],
            row["stratum"],
            f"{row['simulations']:,}",
            f"{row['halos']:,}",
            f"{row['samples']:,}",
            f"{row['lightest']:.3g} to {row['heaviest']:.3g}",
        )
        for row in facts.strata.iter_rows(named=True)
    ]
    heading = ("split", "stratum: M200c [Msun/h]", "simulations", "haloes", "samples", "lightest to heaviest [Msun/h]")
    statuses = facts.simulations.group_by("status").len().sort("status").rows()
    outcome = ", ".join(f"{count:,} {status.replace('_', ' ')}" for status, count in statuses)
    policy = {
        SplitPolicy.HASH: "by its name alone, so that none moves when others are added",
        SplitPolicy.SHUFFLE: "by a shuffle of all simulation numbers",
    }[facts.config.split]
    text = f"""Of {facts.simulations.height:,} simulations: {outcome}. Whether a simulation is in train or test was
    decided {policy}; {facts.config.test_fraction:g} of them are to be in test. Lengths are comoving, in Mpc/h; masses
    are in Msun/h; M200c is the mass within the radius that holds 200 times the critical density. All is at snapshot
    {facts.config.snapshot_number} of the simulations."""
    return f"{_table(heading, rows)}\n\n{_paragraph(text)}"


def _reading(facts: DatasetFacts, table: CardFile) -> str:
    others = ", *others" if facts.config.extra_fields else ""
    return f"""In the folder of this file, with [numpy](https://numpy.org) and [polars](https://pola.rs):

```python
import numpy as np
import polars as pl

samples = pl.read_parquet("{table.path}")  # a row per sample
row = samples.filter(pl.col("split") == "{next(iter(facts.split_counts))}").row(0, named=True)
with np.load(row["path"]) as sample:
    condition = sample["condition"]  # the model's input: dark matter of the dark-matter-only run
    dark_matter, gas, stars{others} = sample["target"]  # what it is to paint: the hydrodynamic run
    wider = sample["large_scale"]  # the input's surroundings, one map per wider window

print(row["sample_id"], f"M200c = {{row['halo_mass']:.3g}} Msun/h", condition.shape, wider.shape)
print(f"mass in the window: {{condition.sum():.3g}} Msun/h, of which stars {{stars.sum():.3g}} in the other run")
```

A file without a row in `{table.path}` is no sample. The column `sha256` tells whether a file is the one that this page
speaks of. `croissant.json` says the same to machines ([Croissant 1.1](http://mlcommons.org/croissant/1.1)). Paths in
all three are relative to the root of the data set."""


def _arrays(facts: DatasetFacts) -> str:
    rows = [(f"`{array.name}`", _shape(array), array.dtype, array.unit, array.description) for array in facts.arrays]
    windows = facts.config.windows
    sizes = ", ".join(f"{size:g}" for size in windows.context_sizes)
    middle = windows.resolution // 2
    wider = f"; the wider ones, means over native pixels, are {sizes} Mpc/h wide" if sizes else ""
    text = f"""Pixels of all maps hold mass per *native* pixel, which is
    {windows.native_size:g}/{windows.resolution} Mpc/h = {windows.pixel_size:.4g} Mpc/h wide, so that all maps have one
    unit. The native window is {windows.native_size:g} Mpc/h wide{wider}. Axis 0 is x', axis 1 is y' of the projected
    frame; the line of sight, z', is {windows.depth:g} Mpc/h deep. The halo sits on node ({middle}, {middle}).
    Masses are deposited cloud-in-cell, of all periodic images that a window needs."""
    if facts.config.extra_fields:
        meanings = "; ".join(shown_code(field.meaning) for field in facts.config.extra_fields)
        text += f""" In `target`, after dark matter, gas and stars, there are channels with units of their own:
        {meanings}. Datasets are in the units of the simulation's files, but for masses."""
    if facts.parameters:
        text += f" `params` holds, in this order: {', '.join(shown_code(name) for name in facts.parameters)}."
    return f"{_table(('array', 'shape', 'type', 'unit', 'what'), rows)}\n\n{_paragraph(text)}"


def _columns(facts: DatasetFacts) -> str:
    rows = [(f"`{column.name}`", _type(column.dtype), column.unit, column.description) for column in facts.columns]
    return _table(("column", "type", "unit", "what"), rows)


def _statistics(facts: DatasetFacts) -> str:
    rows = []
    for name in facts.mass_columns:
        values = facts.samples[name].to_numpy()
        numbers = (values.min(), np.median(values), values.max(), values.mean())
        rows.append((f"`{name}`", *(f"{number:.4g}" for number in numbers)))
    text = "Over all samples, in Msun/h:\n\n" + _table(("column", "minimum", "median", "maximum", "mean"), rows)
    if facts.statistics is not None:
        maps = [(found.name, found.transform, f"{found.mean:.6f}", f"{found.std:.6f}") for found in facts.channels]
        text += (
            f"\n\nOf each map's transformed values, over all pixels of {facts.statistics.n_samples:,} samples of the "
            f"train split (manifest version {facts.statistics.manifest_version}); models see (transform - mean) / "
            "deviation:\n\n" + _table(("map", "transform", "mean", "standard deviation"), maps)
        )
    return text


def _making(facts: DatasetFacts) -> str:
    config = facts.config
    runs = [
        (
            row["run_id"],
            row["code_version"],
            f"{row['samples']:,}",
            f"{row['first']:%Y-%m-%d}",
            f"{row['last']:%Y-%m-%d}",
        )
        for row in facts.runs.iter_rows(named=True)
    ]
    settings = [(shown_code(name), shown_code(value)) for name, value in config.content.items()]
    how = f"""For each halo, in each orientation, both runs were rotated about the halo's centre in the dark-matter-only
    run, projected and cut out, by `bind-data`. Orientations are drawn ({config.rotations.value}) from the root seed
    {config.root_seed}, the simulation's name, the halo and the number of the orientation: the same sample comes out the
    same, to the byte. These settings decide what is in a sample (`dataset.yaml` has all settings); their digest is
    `{config.digest}`."""
    from_what = f"""The inputs are the {facts.sources.height:,} simulations in the column `simulation`; the column
    `inputs_digest` tells which state of their files a sample was made from. Runs that made the samples:"""
    commits = f"""This version came about in {len(facts.history):,} commits to the manifest: `bind-data versions` lists
    them, and `bind-data query --version {facts.version.number}` asks this one."""
    parts = [
        _paragraph(how),
        _table(("setting", "value"), settings),
        _paragraph(from_what),
        _table(("run", "code", "samples", "from", "to"), runs),
        _paragraph(commits),
    ]
    return "\n\n".join(parts)


def _files(facts: DatasetFacts, table: CardFile, others: Iterable[CardFile]) -> str:
    single = [(f"`{file.path}`", _size(file.bytes), file.description, f"`{file.sha256}`") for file in [table, *others]]
    samples = [
        (f"`{split}/sim_*/*.npz`", "", f"{count:,} samples of the {split} split", f"in `{table.path}`")
        for split, count in facts.split_counts.items()
    ]
    return _table(("file", "size", "what", "SHA-256"), [*samples, *single])


def _table(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(shown_cell(value) for value in line) + " |" for line in lines)


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), _WIDTH, break_long_words=False, break_on_hyphens=False)


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _shape(array: Array) -> str:
    extents = ["P" if extent is None else str(extent) for extent in array.shape]
    return f"({extents[0]},)" if len(extents) == 1 else f"({', '.join(extents)})"


def _type(dtype: pl.DataType | type[pl.DataType]) -> str:
    return {pl.String: "text", pl.Datetime: "time"}.get(dtype.base_type(), str(dtype).lower())


def _size(number: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number} B"
