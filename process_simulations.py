"""Make a training set from a suite of simulations, plainly or under mpirun.

    python process_simulations.py --total_sims 10 --nbody_base D --hydro_base H --fof_nbody_base F …
    mpirun -n 64 python process_simulations.py --total_sims 1024 …

Needs no server. Running it again makes only what is missing.
"""

from tasks.lonely_end import abort

# isort: split
import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpi4py import MPI
from rich.console import Console

from bind_core.backends import Backend
from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError, ConfigurationError
from bind_core.plan import Share
from bind_core.settings_file import read_yaml_mapping
from storage.preparation import with_absolute_paths
from tasks.launchers import ranks_asked_for
from tasks.projection_job import check_world_size, follow

BASES = {
    "dmo_base": ("nbody_base", "BIND_NBODY_BASE"),
    "hydro_base": ("hydro_base", "BIND_HYDRO_BASE"),
    "catalogue_base": ("fof_nbody_base", "BIND_FOF_NBODY_BASE"),
    "output_root": ("output_base_root", "BIND_DATASET"),
}
"""Settings of paths that must be known, with the flag and the environment variable that give them."""


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        epilog="Flags replace what --config says; environment variables stand in where neither names a base folder.",
    )
    paths = parser.add_argument_group("where")
    paths.add_argument("--config", type=Path, metavar="FILE.yaml", help="a configuration; flags replace its values")
    paths.add_argument("--nbody_base", type=Path, help="folder of the dark-matter-only runs [$BIND_NBODY_BASE]")
    paths.add_argument("--hydro_base", type=Path, help="folder of the hydrodynamic runs [$BIND_HYDRO_BASE]")
    paths.add_argument("--fof_nbody_base", type=Path, help="folder of their catalogues [$BIND_FOF_NBODY_BASE]")
    paths.add_argument("--param_file", type=Path, help="parameter table [$BIND_PARAM_FILE, else looked for]")
    paths.add_argument("--output_base_root", type=Path, help="folder of the data set [$BIND_DATASET]")
    which = parser.add_argument_group("which simulations and haloes")
    which.add_argument("--set", help="set of simulations [SB35]")
    which.add_argument("--snapnum", type=int, help="snapshot number [90]")
    which.add_argument("--total_sims", type=int, help="simulations <set>_0 to <set>_<total_sims - 1> [all that exist]")
    which.add_argument("--start_sim", type=int, help="first number [0]")
    which.add_argument("--end_sim", type=int, help="number after the last [total_sims]")
    which.add_argument("--num_rotations", type=int, help="random orientations per halo [10]")
    which.add_argument("--mass_threshold", type=float, help="haloes above this M200c, Msun/h [1e13]")
    which.add_argument("--skip_missing", action="store_true", help="leave out simulations that do not exist")
    which.add_argument(
        "--share", metavar="I/N", help="of these, part I (from 0) of N that are made at the same time, one run each"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--resolution", type=int, help="pixels per side [128]")
    how.add_argument("--test_frac", type=float, help="share of simulations for testing [0.1]")
    how.add_argument("--seed", type=int, help="seed of everything random [1993]")
    how.add_argument("--backend", choices=[backend.value for backend in Backend], help="projection [fused]")
    how.add_argument("--refresh", action="store_true", help="make stale samples anew; old files are kept")
    how.add_argument("--dry_run", action="store_true", help="print what would be done, and do nothing")
    return parser


def configuration(options: argparse.Namespace) -> DatasetConfig:
    """Return the configuration that the command line, a file and the environment give together.

    Raises
    ------
    ConfigurationError
        If a value cannot be used or a path is not given.
    """
    values: dict[str, Any] = {} if options.config is None else read_yaml_mapping(options.config)
    flags = {
        "parameter_file": _first_given(options.param_file, values.get("parameter_file"), "BIND_PARAM_FILE"),
        "set_name": options.set,
        "snapshot_number": options.snapnum,
        "resolution": options.resolution,
        "test_fraction": options.test_frac,
        "root_seed": options.seed,
        "backend": options.backend,
        "total_simulations": options.total_sims,
    }
    missing = []
    for setting, (flag, variable) in BASES.items():
        given = _first_given(getattr(options, flag), values.get(setting), variable)
        flags[setting] = given
        if given is None:
            missing.append(f"  {setting}: give --{flag}, or set {variable}, or name it in a --config file")
    if missing:
        raise ConfigurationError("Folders that are not given:\n" + "\n".join(missing))
    values |= {name: value for name, value in flags.items() if value is not None}
    if options.num_rotations is not None or options.mass_threshold is not None:
        values["strata"] = [_stratum(options, values.get("strata"))]
    return with_absolute_paths(
        DatasetConfig.from_values(values, source="The settings given by flags, file and environment")
    )


def _first_given(flag: Any, configured: Any, variable: str) -> Any:
    """Return what a flag, else the file, else the environment says; None where none does."""
    return flag or configured or os.environ.get(variable) or None


def _stratum(options: argparse.Namespace, configured: Any) -> dict[str, Any]:
    """Return the one stratum that --num_rotations and --mass_threshold describe."""
    strata = [{}] if configured is None else configured
    if not (isinstance(strata, list) and len(strata) == 1 and isinstance(strata[0], dict)):
        raise ConfigurationError(
            "--num_rotations and --mass_threshold describe one stratum, but the configuration file has the strata "
            f"{strata!r}. Change them in the file, or leave out these flags."
        )
    stratum = dict(strata[0])
    if options.num_rotations is not None:
        stratum["rotations"] = options.num_rotations
    if options.mass_threshold is not None:
        stratum["min_mass"] = options.mass_threshold
    return stratum


def asked_simulations(options: argparse.Namespace, config: DatasetConfig) -> list[str] | None:
    """Return the names that a range of numbers asks for, or None for all simulations that exist.

    Raises
    ------
    ConfigurationError
        If the range is empty or open.
    """
    if options.total_sims is None and options.start_sim is None and options.end_sim is None:
        return None
    start = options.start_sim or 0
    end = options.end_sim if options.end_sim is not None else options.total_sims
    if end is None:
        raise ConfigurationError("--start_sim needs --end_sim or --total_sims, so that the range has an end.")
    if not 0 <= start < end or (options.total_sims is not None and end > options.total_sims):
        total = "" if options.total_sims is None else f" of {options.total_sims} (--total_sims)"
        raise ConfigurationError(
            f"Simulations {start} (--start_sim) to {end} (--end_sim, not included){total} are no range: "
            "expected 0 <= start_sim < end_sim <= total_sims."
        )
    return [f"{config.set_name}_{number}" for number in range(start, end)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the batch program; return its exit status."""
    comm = MPI.COMM_WORLD
    if comm.rank:
        # Rank 0 says what all ranks find.
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    try:
        options = argument_parser().parse_args(arguments)
        check_world_size(comm, ranks_asked_for(os.environ, comm.size))
        if comm.rank:
            follow(comm)
            return 0
        return _lead(comm, options)
    except BindDataError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. What was recorded stays; the same command goes on from there.", file=sys.stderr)
        status = 130
    except OSError as error:
        sys.stderr = sys.__stderr__
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    except Exception:
        sys.stderr = sys.__stderr__
        traceback.print_exc()
        status = 1
    if comm.size > 1:
        abort(status)  # the other ranks would wait for this one for ever
    return status


def _lead(comm: MPI.Intracomm, options: argparse.Namespace) -> int:
    """Run as rank 0, and let the others go at the end; after an unexpected error, the caller aborts them."""
    from tasks.batch import BatchRun

    try:
        config = configuration(options)
        names = asked_simulations(options, config)
        share = None if options.share is None else Share.from_text(options.share)
        console = Console(soft_wrap=False)
        run = BatchRun(comm, config, names, options.skip_missing, options.refresh, share, console)
        status = 0 if run.execute(dry_run=options.dry_run) else 1
    except BindDataError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    comm.bcast(None)
    return status


if __name__ == "__main__":
    sys.exit(main())
