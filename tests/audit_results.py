"""Audit results made by hand, small and large, with samples on disk where they are to be shown."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bind_core.config import DatasetConfig
from bind_core.findings import Severity
from bind_core.rotations import quaternion_matrix
from bind_core.sample import Sample
from storage.audit_result import AuditCode, AuditFinding, AuditResult, CheckOutcome, Depth
from storage.layout import DatasetLayout
from storage.samples import write_sample

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
HOSTILE = "<img src=x onerror=alert(1)>"
NPIX = 32
MAPS = ("condition", "dark_matter", "gas", "stars", "large_scale_0", "large_scale_1", "large_scale_2")


def finding(code: AuditCode = AuditCode.LEAK, severity: Severity = Severity.ERROR, **values: Any) -> AuditFinding:
    """Return a finding, with these values in place of ordinary ones."""
    ordinary = {
        "subject": "SB35_0",
        "simulation": "SB35_0",
        "expected": "train",
        "found": "test",
        "advice": "Look at it.",
        "query": "SELECT 1",
    }
    return AuditFinding(code, severity, **(ordinary | values))


def empty_result(root: Path) -> AuditResult:
    """Return the audit of a data set without anything in it."""
    nothing = pl.DataFrame()
    config = DatasetConfig(
        dmo_base=root / "dmo", hydro_base=root / "hydro", catalogue_base=root / "fof", output_root=root, resolution=NPIX
    )
    return AuditResult(
        root=str(root),
        set_name="SB35",
        depth=Depth.KNOWN,
        version=-1,
        committed_at=None,
        audited_at=NOON,
        config=config,
        checks=(),
        findings=(),
        counts={},
        errors=0,
        warnings=0,
        samples=nothing,
        simulations=nothing,
        measures=nothing,
        channels=nothing,
        halo_masses=nothing,
        parameters=nothing,
    )


def result_of(
    root: Path,
    simulations: Sequence[str],
    haloes: int = 2,
    rotations: int = 2,
    depth: Depth = Depth.VERIFIED,
    findings: Sequence[AuditFinding] = (),
    n_parameters: int = 5,
) -> AuditResult:
    """Return the audit of a data set of these simulations; every tenth one, and the last, is for testing."""
    rng = np.random.default_rng(1)
    samples = _samples(simulations, haloes, rotations, rng)
    splits = dict(samples.select("simulation", "split").unique().iter_rows())
    per_simulation = haloes * rotations
    n_errors = sum(one.severity is Severity.ERROR for one in findings)
    n_warnings = len(findings) - n_errors
    counts: dict[AuditCode, int] = {}
    for one in findings:
        counts[one.code] = counts.get(one.code, 0) + 1
    values = {
        f"parameter_{index}": np.exp(rng.uniform(-1.5, 1.5, len(simulations))) if index % 2 else rng.random(len(splits))
        for index in range(n_parameters)
    }
    ordinary = empty_result(root)
    fields = {name: getattr(ordinary, name) for name in AuditResult.__dataclass_fields__}
    return AuditResult(
        **fields
        | {
            "depth": depth,
            "version": 7,
            "committed_at": NOON,
            "checks": (
                CheckOutcome("no sample is recorded twice", True, f"{samples.height:,} rows"),
                CheckOutcome("no simulation is in both splits", not n_errors, "looked at all", n_errors, n_errors),
                CheckOutcome("masses are plausible", not n_warnings, "looked at all", n_warnings),
                CheckOutcome("haloes are those of the catalogues", None, "the catalogues are out of reach"),
            ),
            "findings": tuple(findings),
            "counts": counts,
            "errors": n_errors,
            "warnings": n_warnings,
            "samples": samples,
            "simulations": pl.DataFrame(
                {
                    "simulation": simulations,
                    "split": [splits[name] for name in simulations],
                    "status": ["complete"] * len(simulations),
                    "planned": [per_simulation] * len(simulations),
                    "committed": [per_simulation] * len(simulations),
                    "missing": [0] * len(simulations),
                    "stale": [0] * len(simulations),
                    "broken": [0] * len(simulations),
                    "message": [""] * len(simulations),
                }
            ),
            "measures": _measures(samples, rng) if depth is Depth.VERIFIED else pl.DataFrame(),
            "channels": _channels(rng) if depth is Depth.VERIFIED else pl.DataFrame(),
            "halo_masses": samples.select("simulation", "halo", "halo_mass").unique(["simulation", "halo"]),
            "parameters": pl.DataFrame(
                {"simulation": simulations, "split": [splits[name] for name in simulations], **values}
            ),
        }
    )


def write_samples(result: AuditResult, layout: DatasetLayout, only: Sequence[str] | None = None) -> pl.DataFrame:
    """Write the samples' files, all or those with these ids, and return the rows with the files' digests."""
    digests = {}
    for row in result.samples.iter_rows(named=True):
        if only is None or row["sample_id"] in only:
            file = write_sample(layout.absolute(row["path"]), halo_sample(row))
            digests[row["sample_id"]] = file.sha256
    return result.samples.with_columns(
        sha256=pl.col("sample_id").replace_strict(digests, default=pl.col("sha256"), return_dtype=pl.String)
    )


def halo_sample(row: dict[str, Any]) -> Sample:
    """Return maps of a clump with a few smaller ones around it, brighter where the halo is heavier."""
    rng = np.random.default_rng(row["halo"] * 1000 + row["rotation"])
    axis = np.arange(NPIX) - NPIX / 2
    x, y = np.meshgrid(axis, axis, indexing="ij")

    def clumps(zoom: float, number: int, core: float) -> np.ndarray:
        pixels = 1e10 * rng.lognormal(0, 0.4, (NPIX, NPIX))
        for index in range(number):
            at = np.zeros(2) if index == 0 else rng.normal(0, NPIX / 3, 2)
            height = 1.0 if index == 0 else 0.2 * rng.random()
            distance = np.hypot((x - at[0]) * zoom, (y - at[1]) * zoom)
            pixels += height * row["halo_mass"] / 100 / (1 + distance / core) ** 2.5
        return pixels

    dark, gas = clumps(1, 9, 1.5), 0.15 * clumps(1, 4, 3.0)
    stars = np.where(dark > np.quantile(dark, 0.9), 0.01 * dark, 0)
    quaternion = np.array([row[f"quaternion_{part}"] for part in "wxyz"])
    return Sample(
        condition=(dark * 1.1).astype(np.float32),
        target=np.stack([dark, gas, stars]).astype(np.float32),
        large_scale=np.stack([clumps(zoom, 30, 2.0) for zoom in (2, 4, 8)]).astype(np.float32),
        params=np.zeros(3),
        halo_mass=row["halo_mass"],
        halo_center=np.array([row[f"halo_center_{name}"] for name in "xyz"]),
        rotation=quaternion_matrix(quaternion),
    )


def _samples(simulations: Sequence[str], haloes: int, rotations: int, rng: np.random.Generator) -> pl.DataFrame:
    per_simulation = haloes * rotations
    number = len(simulations) * per_simulation
    of_simulation = np.repeat(np.arange(len(simulations)), per_simulation)
    halo = np.tile(np.repeat(np.arange(haloes), rotations), len(simulations))
    is_test = (of_simulation % 10 == 9) | (of_simulation == len(simulations) - 1)
    quaternions = rng.normal(size=(number, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    masses = 1e13 * (1 - rng.random((len(simulations), haloes))) ** (-1 / 1.9)
    mass = masses[of_simulation, halo]
    centers = rng.uniform(0, 50, (number, 3))
    frame = pl.DataFrame(
        {
            "simulation": np.array(simulations)[of_simulation],
            "halo": halo,
            "rotation": np.tile(np.tile(np.arange(rotations), haloes), len(simulations)),
            **{f"quaternion_{part}": quaternions[:, index] for index, part in enumerate("wxyz")},
            "halo_mass": mass,
            **{f"halo_center_{name}": centers[:, index] for index, name in enumerate("xyz")},
            "split": np.where(is_test, "test", "train"),
            "mass_condition": 3 * mass,
            "mass_target_dark_matter": 2.5 * mass,
            "mass_target_gas": 0.4 * mass,
            "mass_target_stars": 0.03 * mass,
            "mass_large_scale_0": 5 * mass,
        }
    )
    identity = pl.format("{}_halo_{}_rot_{}", "simulation", "halo", "rotation")
    folder = pl.col("simulation").str.replace_all(r"[^A-Za-z0-9_]", "-")
    return frame.with_columns(
        sample_id=identity,
        stratum=pl.lit("(1e+13, inf]"),
        path=pl.format("{}/{}/{}_{}.npz", "split", folder, "halo", "rotation"),
        bytes=pl.lit(480_000),
        sha256=pl.lit("0" * 64),
        config_digest=pl.lit("0" * 64),
        code_version=pl.lit("0.1.0"),
        run_id=pl.lit("run"),
        created_at=pl.lit(NOON),
    )


def _measures(samples: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    number = samples.height
    return samples.select("sample_id").with_columns(
        suspicion=pl.Series(rng.exponential(0.3, number)),
        gas_fraction=pl.Series(rng.normal(0.13, 0.01, number)),
        star_fraction=pl.Series(rng.normal(0.01, 0.001, number)),
        central_contrast=pl.Series(rng.normal(30, 5, number)),
        **{f"z_{name}": pl.Series(rng.normal(size=number)) for name in MAPS},
    )


def _channels(rng: np.random.Generator) -> pl.DataFrame:
    edges = np.linspace(0, 14, 71)
    frames = []
    for index, channel in enumerate(("condition", "stars", "large_scale_2")):
        for split, number in (("train", 90_000), ("test", 9_000)):
            values = rng.normal(9 + 0.3 * index, 0.8, number)
            values[: number // 3 if channel == "stars" else 0] = 0
            frames.append(
                pl.DataFrame(
                    {
                        "split": split,
                        "channel": channel,
                        "lower": edges[:-1],
                        "upper": edges[1:],
                        "pixels": np.histogram(values, edges)[0],
                    }
                )
            )
    return pl.concat(frames)
