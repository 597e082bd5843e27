"""Audit of what a data set is made of as a whole: its orientations, and the parameters of train against test."""

import math
from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from bind_core.config import RotationPolicy
from bind_core.findings import Severity
from bind_core.rotations import rotation_matrix, seed_entropy
from storage.audit_result import WHOLE_DATASET, AuditCode
from storage.checklist import SAMPLE_QUERY, Checklist, Offenders, no_offenders, one_offender
from storage.evidence import Evidence

LEAST_PROBABILITY = 1e-6
"""A sound data set falls below this once in a million audits, and one of a broken generator by far."""
FEWEST_PER_PIXEL = 10
"""Orientations expected in each pixel: so many make the chi-square distribution hold far into its tail."""
BANDS = (7, 5, 3)
"""Pixels are so many bands of equal height on the sphere, each cut into as many sectors: equal areas (Archimedes)."""
MOST_RECOMPUTED = 20_000
"""Orientations that are drawn again from their seeds: a generator has to be set up for each."""
ORIENTATION_TOLERANCE = 1e-9

_QUATERNION = [f"quaternion_{part}" for part in "wxyz"]
_REMAKE = "Make the sample again (`bind-data repair`)."
_FEWEST_SIMULATIONS = 2


def check_seeds(evidence: Evidence, checklist: Checklist) -> None:
    """Hold the seeds against what the configuration gives, and orientations against their seeds."""
    expected = _haar_seeds if evidence.config.rotations is RotationPolicy.HAAR else _euler_seeds
    held, detail = expected(evidence)
    wrong = held.filter((pl.col("seed_entropy") != pl.col("expected")).fill_null(value=False))
    checklist.record(
        "seeds are those that the configuration gives",
        detail,
        Offenders(
            AuditCode.WRONG_SEED,
            Severity.ERROR,
            wrong.select("simulation", "expected", subject="sample_id", found="seed_entropy"),
            _REMAKE,
            SAMPLE_QUERY,
        ),
    )
    usable = evidence.samples_of_config.filter(pl.col("seed_entropy").str.contains(r"^\d+(,\d+)*$")).drop_nulls(
        _QUATERNION
    )
    every = max(1, math.ceil(usable.height / MOST_RECOMPUTED))
    checked = usable.gather_every(every)
    checklist.record(
        "orientations are those that their seeds give",
        f"{checked.height:,} samples" + (f", every {every}th of them in order" if every > 1 else ""),
        Offenders(
            AuditCode.WRONG_ORIENTATION, Severity.ERROR, _other_orientations(evidence, checked), _REMAKE, SAMPLE_QUERY
        ),
    )


def _haar_seeds(evidence: Evidence) -> tuple[pl.DataFrame, str]:
    """Return the rows with the seed ``expected`` of each."""
    samples = evidence.samples_of_config
    names = samples["simulation"].drop_nulls().unique()
    of_simulation = {
        name: seed_entropy(RotationPolicy.HAAR, evidence.config.root_seed, name, None, 0, 0, 0)[:-2] for name in names
    }
    leading = pl.DataFrame(
        {"simulation": names, "leading": [",".join(map(str, of_simulation[name])) for name in names]},
        schema={"simulation": pl.String, "leading": pl.String},
    )
    rows = samples.join(leading, on="simulation", how="left", maintain_order="left")
    return rows.with_columns(expected=pl.format("{},{},{}", "leading", "halo", "rotation")), f"{rows.height:,} samples"


def _euler_seeds(evidence: Evidence) -> tuple[pl.DataFrame, str]:
    """Return the rows with the seed ``expected`` of each, which depends on the haloes of the stratum."""
    samples = evidence.samples_of_config
    if evidence.suite is None:
        return samples.head(0).with_columns(expected="seed_entropy"), (
            f"none of {samples.height:,} samples: {evidence.no_suite}"
        )
    planned = evidence.suite.planned.select("simulation", "halo", "stratum", "ordinal")
    numbers = evidence.expected.select("simulation", "number")
    rows = samples.join(planned, on=["simulation", "halo", "stratum"], how="inner", maintain_order="left").join(
        numbers, on="simulation", how="inner", maintain_order="left"
    )
    seed = 1000 * pl.col("number") + 100 * pl.col("ordinal") + pl.col("rotation")
    return rows.with_columns(expected=seed.cast(pl.String)), f"{rows.height:,} samples of planned haloes"


def _other_orientations(evidence: Evidence, rows: pl.DataFrame) -> pl.DataFrame:
    if rows.is_empty():
        return no_offenders()
    policy = evidence.config.rotations
    drawn = np.array(
        [
            rotation_matrix(policy, tuple(int(number) for number in entropy.split(",")))
            for entropy in rows["seed_entropy"]
        ]
    )
    deviation = np.abs(drawn - rotation_matrices(rows)).max(axis=(1, 2))
    wrong = rows.with_columns(deviation=pl.Series(deviation)).filter(pl.col("deviation") > ORIENTATION_TOLERANCE)
    return wrong.select(
        "simulation",
        subject="sample_id",
        expected=pl.lit("the rotation that its seed gives"),
        found=pl.col("deviation").map_elements(lambda value: f"one whose matrix differs by {value:.3g}", pl.String),
    )


def rotation_matrices(rows: pl.DataFrame) -> NDArray[np.float64]:
    """Return the rotation matrices, shape (n, 3, 3), of the quaternions that rows record."""
    w, x, y, z = rows.select(_QUATERNION).to_numpy().T
    matrices = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    return np.moveaxis(matrices, -1, 0)


def check_orientations(evidence: Evidence, checklist: Checklist) -> None:
    """Test whether lines of sight are uniform on the sphere, and the turns about them on the circle."""
    rows = evidence.samples.unique(["simulation", "halo", "rotation"], keep="first", maintain_order=True)
    matrices = rotation_matrices(rows.drop_nulls(_QUATERNION).drop_nans(_QUATERNION))
    euler = evidence.config.rotations is RotationPolicy.EULER
    severity = Severity.WARNING if euler else Severity.ERROR
    advice = (
        "Expected with `rotations: euler`, the older generator's: three uniform Euler angles favour two directions, "
        "and its seeds repeat. Use `rotations: haar` for a data set that need not continue an older one."
        if euler
        else "A sound set fails this once in a million. Look for rows that are missing or were changed."
    )
    tests: tuple[tuple[str, Callable[[NDArray[np.float64], int], NDArray[np.int64]]], ...] = (
        ("lines of sight are uniform on the sphere", line_of_sight_pixels),
        ("turns about the line of sight are uniform", turn_pixels),
    )
    for name, pixels in tests:
        bands = next((n for n in BANDS if len(matrices) >= FEWEST_PER_PIXEL * n * n), None)
        if bands is None:
            fewest = FEWEST_PER_PIXEL * BANDS[-1] ** 2
            checklist.skip(name, f"{len(matrices):,} orientations are too few to tell; {fewest} are needed")
            continue
        counts = np.bincount(pixels(matrices, bands), minlength=bands**2)
        expected = len(matrices) / bands**2
        chi_square = float(((counts - expected) ** 2).sum() / expected)
        probability = float(stats.chi2.sf(chi_square, bands**2 - 1))
        detail = (
            f"{len(matrices):,} orientations: chi-square {chi_square:.1f} for {bands**2 - 1} degrees of freedom, "
            f"p = {probability:.2g}"
        )
        offenders = no_offenders()
        if probability < LEAST_PROBABILITY:
            offenders = one_offender(
                WHOLE_DATASET,
                "",
                f"{expected:.1f} in each of {bands**2} pixels",
                f"{counts.min()} to {counts.max()}; {detail}",
            )
        checklist.record(
            name,
            detail,
            Offenders(
                AuditCode.UNEVEN_ORIENTATIONS,
                severity,
                offenders,
                advice,
                "SELECT 2 * (quaternion_x * quaternion_z - quaternion_w * quaternion_y) AS x, "
                "2 * (quaternion_y * quaternion_z + quaternion_w * quaternion_x) AS y, "
                "1 - 2 * (quaternion_x ** 2 + quaternion_y ** 2) AS z FROM samples",
            ),
        )


def line_of_sight_pixels(matrices: NDArray[np.float64], bands: int) -> NDArray[np.int64]:
    """Return the pixel of each line of sight on a sphere of ``bands**2`` pixels of equal area.

    The line of sight, in the box frame, is the third row of a rotation from the box frame to the projected one.
    """
    x, y, z = matrices[:, 2, :].T
    band = np.minimum((0.5 * (np.clip(z, -1, 1) + 1) * bands).astype(np.int64), bands - 1)
    return band * bands + _sector(np.arctan2(y, x), bands)


def turn_pixels(matrices: NDArray[np.float64], bands: int) -> NDArray[np.int64]:
    """Return the sector, of ``bands**2``, in which the box's third axis appears in the projection."""
    return _sector(np.arctan2(matrices[:, 1, 2], matrices[:, 0, 2]), bands**2)


def _sector(angle: NDArray[np.float64], sectors: int) -> NDArray[np.int64]:
    return np.minimum(((angle / (2 * np.pi)) % 1.0 * sectors).astype(np.int64), sectors - 1)


def check_parameters(parameters: pl.DataFrame, why_none: str, checklist: Checklist) -> None:
    """Test whether the test simulations have parameters like those of the train simulations.

    Two tests for each parameter, without assumptions on its distribution: the Kolmogorov-Smirnov test of two samples,
    and how improbable it is that the lowest, or the highest, of all simulations are all test ones.

    Parameters
    ----------
    parameters : DataFrame
        ``simulation``, ``split`` and a column per parameter.
    why_none : str
        Why it is empty, if it is.
    checklist : Checklist
        Takes the outcome.
    """
    name = "the train simulations' parameters cover those of the test simulations"
    splits = parameters.partition_by("split", as_dict=True) if parameters.height else {}
    train, test = (splits.get((split,), parameters.head(0)) for split in ("train", "test"))
    if min(train.height, test.height) < _FEWEST_SIMULATIONS:
        found = f"{train.height} train and {test.height} test simulations are too few to compare"
        checklist.skip(name, why_none or found)
        return
    rows, beyond = [], 0
    for parameter in parameters.columns[2:]:
        a, b = train[parameter].to_numpy(), test[parameter].to_numpy()
        if np.ptp(np.concatenate([a, b])) == 0:
            continue
        outside = int(((b < a.min()) | (b > a.max())).sum())
        beyond += outside > 0
        probability = min(float(stats.ks_2samp(a, b).pvalue), _beyond_probability(a, b), _beyond_probability(-a, -b))
        if probability < LEAST_PROBABILITY:
            rows.append(
                (
                    parameter,
                    "",
                    f"a distribution as in train, {a.min():g} to {a.max():g}",
                    f"{b.min():g} to {b.max():g} in test, {outside} of {len(b)} beyond train's, p = {probability:.2g}",
                )
            )
    checklist.record(
        name,
        f"{len(parameters.columns) - 2} parameters of {train.height:,} train and {test.height:,} test simulations; in "
        f"{beyond} of them a test simulation lies beyond all train simulations",
        Offenders(
            AuditCode.PARAMETER_COVERAGE,
            Severity.WARNING,
            pl.DataFrame(rows, schema=no_offenders().schema, orient="row"),
            "What the model is tested on is not what it was trained on. Check which simulations were made.",
            "SELECT simulation, split FROM current_simulations",
        ),
    )


def _beyond_probability(train: NDArray[np.float64], test: NDArray[np.float64]) -> float:
    """Return the probability that at least so many of the highest values are all test ones by chance."""
    count = int((test > train.max()).sum())
    ranks = np.arange(count)
    return float(np.prod((len(test) - ranks) / (len(train) + len(test) - ranks)))
