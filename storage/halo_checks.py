"""Audit of haloes and masses: against the stratum, the catalogue, and what is physically plausible."""

import math
from collections.abc import Collection
from itertools import pairwise

import polars as pl

from bind_core.content import CRITICAL_DENSITY
from bind_core.findings import Severity
from storage.audit_result import AuditCode
from storage.checklist import SAMPLE_QUERY, SIMULATION_QUERY, Checklist, Offenders, no_offenders
from storage.evidence import CENTRE, Evidence

MOST_MASSIVE_HALO = 1e16
"""Msun/h. The most massive clusters known have some 2e15 (ACT-CL J0102-4915: Menanteau et al. 2012)."""
LEAST_SHARE_OF_HALO = 0.5
"""Of M200c that a window must hold that is wide enough for the halo: the catalogue is of the same run, so that it
should hold all of it, and what lies before and behind it besides."""
HYDRO_TO_DMO = (0.5, 2.0)
"""Mass in the target's window over that in the condition's. Feedback takes 20 to 25 % of a halo's mass at the most
(Velliscig et al. 2014), most of which stays within the window, and moves the halo itself by less than its radius."""
NESTED_TOLERANCE = 1e-4
"""Relative rounding of float32 pixels, with a margin."""

_REMAKE = "Make the sample again (`bind-data repair`)."
_LOOK = "Look at the sample with `bind-data show`."
_OVERDENSITY = 200.0


def check_strata(rows: pl.DataFrame, checklist: Checklist) -> None:
    """Hold the haloes' masses against the strata that the rows name."""
    limits = pl.col("stratum").str.extract_groups(r"^\((.+), (.+)\]$")
    lower, upper = (limits.struct.field(name).cast(pl.Float64, strict=False) for name in ("1", "2"))
    # The name holds six digits of a limit.
    inside = (pl.col("halo_mass") > lower * (1 - 1e-5)) & (pl.col("halo_mass") <= upper * (1 + 1e-5))
    wrong = rows.filter(~inside.fill_null(value=False))
    checklist.record(
        "haloes lie in the stratum that they were selected by",
        f"{rows.height:,} samples; number of strata: {rows['stratum'].n_unique()}",
        Offenders(
            AuditCode.WRONG_STRATUM,
            Severity.ERROR,
            wrong.select(
                "simulation",
                subject="sample_id",
                expected=pl.format("M200c in {} Msun/h", "stratum"),
                found=pl.col("halo_mass").map_elements(lambda mass: f"{mass:.6g} Msun/h", pl.String),
            ),
            _REMAKE,
            SAMPLE_QUERY,
        ),
    )


def check_masses(evidence: Evidence, checklist: Checklist) -> None:
    """Hold the recorded masses against what is physically plausible."""
    rows, windows = evidence.samples, evidence.config.windows
    nested = ["mass_condition", *(f"mass_large_scale_{index}" for index in range(len(windows.context_sizes)))]
    nested = [name for name in nested if name in rows.columns]
    radius = (3 * pl.col("halo_mass") / (4 * math.pi * _OVERDENSITY * CRITICAL_DENSITY)) ** (1 / 3)
    targets = pl.sum_horizontal("mass_target_dark_matter", "mass_target_gas", "mass_target_stars")
    ratio = targets / pl.col("mass_condition")
    rules = [
        (pl.col("halo_mass") > MOST_MASSIVE_HALO, f"M200c below {MOST_MASSIVE_HALO:g} Msun/h", pl.col("halo_mass")),
        (
            (radius < windows.native_size / 2) & (pl.col("mass_condition") < LEAST_SHARE_OF_HALO * pl.col("halo_mass")),
            f"at least {LEAST_SHARE_OF_HALO:g} of M200c in the condition's window",
            pl.col("mass_condition") / pl.col("halo_mass"),
        ),
        (
            ~ratio.is_between(*HYDRO_TO_DMO),
            f"{HYDRO_TO_DMO[0]:g} to {HYDRO_TO_DMO[1]:g} times the condition's mass in the target",
            ratio,
        ),
        *(
            (
                pl.col(inner) > (1 + NESTED_TOLERANCE) * pl.col(outer),
                f"{outer} to be no less than {inner}",
                pl.col(outer) / pl.col(inner),
            )
            for inner, outer in pairwise(nested)
        ),
    ]
    found = [
        rows.filter(broken.fill_null(value=False)).select(
            "simulation",
            subject="sample_id",
            expected=pl.lit(expected),
            found=value.map_elements(lambda number: f"{number:.4g}", pl.String, skip_nulls=True),
        )
        for broken, expected, value in rules
    ]
    checklist.record(
        "recorded masses are plausible",
        f"{rows.height:,} samples: the halo, the condition, the target and the wider windows",
        Offenders(
            AuditCode.IMPLAUSIBLE_MASS,
            Severity.WARNING,
            pl.concat([no_offenders(), *(part.select(no_offenders().columns) for part in found)]),
            _LOOK,
            SAMPLE_QUERY,
        ),
    )


def check_catalogue(evidence: Evidence, replaced: Collection[str], checklist: Checklist) -> None:
    """Hold the haloes of the rows against the catalogues, where the suite is in reach.

    Parameters
    ----------
    evidence : Evidence
        Rows and catalogues.
    replaced : collection of str
        Simulations whose inputs have changed since: their samples are stale, which has a check of its own.
    checklist : Checklist
        Takes the outcomes.
    """
    name = "haloes have the mass and centre that the catalogue gives them"
    suite = evidence.suite
    if suite is None:
        checklist.skip(name, evidence.no_suite)
        return
    columns = ["halo_mass", *CENTRE]
    comparable = [name for name in suite.simulations if name not in suite.unreadable and name not in replaced]
    rows = evidence.samples.filter(pl.col("simulation").is_in(comparable))
    joined = rows.join(suite.halos, on=["simulation", "halo"], how="left", suffix="_catalogue", maintain_order="left")
    same = pl.all_horizontal(pl.col(column) == pl.col(f"{column}_catalogue") for column in columns)
    wrong = joined.filter(~same.fill_null(value=False))
    left_out = evidence.samples.height - rows.height
    detail = f"{rows.height:,} samples" + (
        f"; {left_out:,} others have no catalogue, or another one than they were made with" if left_out else ""
    )
    checklist.record(
        name,
        detail,
        Offenders(
            AuditCode.WRONG_HALO,
            Severity.ERROR,
            wrong.select(
                "simulation",
                subject="sample_id",
                expected=_halo_text([f"{column}_catalogue" for column in columns]),
                found=_halo_text(columns),
            ),
            _REMAKE,
            SAMPLE_QUERY,
        ),
    )
    gone = evidence.samples.filter(~pl.col("simulation").is_in(list(suite.simulations)))["simulation"].unique().sort()
    checklist.record(
        "every simulation with samples is in the suite",
        f"{len(suite.simulations):,} simulations in the suite",
        Offenders(
            AuditCode.UNKNOWN_SIMULATION,
            Severity.WARNING,
            pl.DataFrame({"subject": gone, "simulation": gone}).with_columns(
                expected=pl.lit("a folder under the base paths"), found=pl.lit("none")
            ),
            "If it was removed from the suite on purpose, its samples cannot be made again.",
            SIMULATION_QUERY,
        ),
    )


def _halo_text(columns: list[str]) -> pl.Expr:
    mass, x, y, z = columns
    text = pl.format("M200c {} Msun/h at ({}, {}, {}) Mpc/h", mass, x, y, z)
    return pl.when(pl.col(mass).is_null()).then(pl.lit("a halo of that number")).otherwise(text)
