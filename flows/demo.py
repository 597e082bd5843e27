"""The demo: a mock suite, a data set, and what to do with it."""

import shlex
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.markup import escape

from bind_core.config import DatasetConfig
from flows.generate import run_summary
from storage.layout import DatasetLayout
from storage.manifest import Manifest
from storage.mock_suite import write_mock_suite
from storage.preparation import with_absolute_paths
from storage.summary_table import print_summary

_SIMULATIONS = 4
_PARTICLES_PER_SIDE = 64
_TEST_FRACTION = 0.3
_QUESTION = "SELECT split, count(*), avg(halo_mass) FROM samples GROUP BY split"


def run_demo(folder: Path, console: Console) -> int:
    """Make a mock suite and a data set below a folder, and say what was made and what to try next.

    Returns
    -------
    int
        Exit status: 0 if every sample was made.
    """
    suite_folder, root = folder / "suite", folder / "dataset"
    console.print(f"[bold]1. A mock suite[/bold] of {_SIMULATIONS} pairs, 2 x {_PARTICLES_PER_SIDE}^3 particles each")
    suite = write_mock_suite(
        suite_folder, simulations=_SIMULATIONS, particles_per_side=_PARTICLES_PER_SIDE, progress=console.print
    )
    config = with_absolute_paths(
        DatasetConfig(
            dmo_base=suite.dmo_base,
            hydro_base=suite.hydro_base,
            catalogue_base=suite.catalogue_base,
            parameter_file=suite.parameter_file,
            output_root=root,
            simulations_per_block=2,
            test_fraction=_TEST_FRACTION,
        )
    )
    console.print("[bold]2. The main flow[/bold] on an embedded Prefect server (it takes some seconds to start)")
    summary = run_summary(config)
    print_summary(summary, console)
    layout = DatasetLayout(root, config.set_name)
    samples = Manifest(layout).samples()
    if samples.is_empty():
        return 1
    splits = ", ".join(f"{count} {split}" for split, count in sorted(samples["split"].value_counts().iter_rows()))
    heaviest = samples.sort("halo_mass", descending=True)["sample_id"][0]
    here = escape(shlex.quote(str(root)))
    size = samples.select(pl.col("bytes").sum()).item() / 1e6
    lines = [
        "",
        "[bold]What was made[/bold]",
        f"  {escape(str(root))}/train, {escape(str(root))}/test: {samples.height} samples ({splits}), {size:.0f} MB",
        f"  {escape(str(layout.contact_sheet_file))}: what they look like",
        f"  {escape(str(root))}/manifest: which samples exist, and all that is known of them",
        f"  {escape(str(layout.configuration_file))}: the configuration",
        "",
        "[bold]What to try next[/bold] (after `source .venv/bin/activate`)",
        f"  bind-data status --dataset {here}",
        f'  bind-data query --dataset {here} "{_QUESTION}"',
        f"  bind-data show {heaviest} --dataset {here}",
        f"  bind-data normalize --dataset {here}",
        f"  bind-data generate --dataset {here} --rotations 12   # makes only what is missing",
        f"  bind-data mock {escape(shlex.quote(str(suite_folder)))} --sims {_SIMULATIONS + 1} && "
        f"bind-data generate --dataset {here}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    return 0 if summary.ok else 1
