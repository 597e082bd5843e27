"""Add context maps to samples that lack them, or make them anew.

    python add_large_scale.py --samples OUT --nbody_base D --fof_nbody_base F
    python add_large_scale.py --samples OUT --nbody_base D --fof_nbody_base F --scales 12.5 25 50 --rotation euler
    python add_large_scale.py --samples OUT --projections P …      # axis-aligned samples, from projections of the box

Files are replaced one by one, each atomically; running it again goes on where it was.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError, ConfigurationError
from bind_core.settings_file import read_yaml_mapping
from storage.context_maps import Orientation, add_context_maps
from storage.preparation import with_absolute_paths

BASES = {
    "dmo_base": ("nbody_base", "BIND_NBODY_BASE"),
    "catalogue_base": ("fof_nbody_base", "BIND_FOF_NBODY_BASE"),
}
"""Settings of paths, with the flag and the environment variable that give them."""


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        epilog="Settings that no flag gives are those of the data set (its dataset.yaml), where there is one.",
    )
    parser.add_argument("--samples", type=Path, help="folder of the samples, with train and test [$BIND_DATASET]")
    parser.add_argument("--nbody_base", type=Path, help="folder of the dark-matter-only runs [$BIND_NBODY_BASE]")
    parser.add_argument("--fof_nbody_base", type=Path, help="folder of their catalogues [$BIND_FOF_NBODY_BASE]")
    parser.add_argument("--projections", type=Path, help="folder of projections_{xy,xz,yz}_<simulation>.npz")
    parser.add_argument("--set", help="set of simulations [SB35]")
    parser.add_argument("--snapnum", type=int, help="snapshot number [90]")
    parser.add_argument("--scales", type=float, nargs="*", metavar="SIZE", help="sizes in Mpc/h [12.5 25 50]")
    parser.add_argument("--mass_threshold", type=float, help="haloes above this M200c were numbered, Msun/h [1e13]")
    parser.add_argument(
        "--rotation",
        choices=[orientation.value for orientation in Orientation],
        default=Orientation.AUTO.value,
        help="whence orientations are known: the file, the older generator's seed formula, or the file's name [auto]",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads that project and write [2]")
    parser.add_argument("--rebuild", action="store_true", help="make the maps of samples anew that have them")
    return parser


def configuration(options: argparse.Namespace) -> DatasetConfig:
    """Return the configuration that the flags, the environment and the data set's own file give together.

    Raises
    ------
    ConfigurationError
        If a value cannot be used or a folder is not given.
    """
    samples = options.samples or os.environ.get("BIND_DATASET")
    if not samples:
        raise ConfigurationError("The folder of the samples is not given: give --samples, or set BIND_DATASET.")
    own = Path(samples) / "dataset.yaml"
    values: dict[str, Any] = read_yaml_mapping(own) if own.exists() else {}
    values["output_root"] = samples
    for setting, (flag, variable) in BASES.items():
        given = getattr(options, flag) or values.get(setting) or os.environ.get(variable)
        if not given:
            raise ConfigurationError(f"A folder is not given: {setting}. Give --{flag}, or set {variable}.")
        values[setting] = given
    values.setdefault("hydro_base", values["dmo_base"])  # which is not read
    flags = {"set_name": options.set, "snapshot_number": options.snapnum, "context_sizes": options.scales}
    values |= {name: value for name, value in flags.items() if value is not None}
    if options.mass_threshold is not None:
        values["strata"] = [{"min_mass": options.mass_threshold}]
    return with_absolute_paths(DatasetConfig.from_values(values, source="The settings given"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""
    options = argument_parser().parse_args(arguments)
    try:
        report = add_context_maps(
            configuration(options),
            orientation=Orientation(options.rotation),
            projections=options.projections,
            rebuild=options.rebuild,
            threads=options.threads,
            progress=lambda simulation, samples: print(f"simulation {simulation}: {samples:,} samples", flush=True),
        )
    except BindDataError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    print(", ".join(f"{number:,} {outcome.value}" for outcome, number in report.outcomes.items()))
    for problem in report.problems:
        print(problem, file=sys.stderr)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
