"""The audit of orientations and parameters: sound generators pass, broken ones do not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from bind_core.config import DatasetConfig, RotationPolicy
from bind_core.findings import Severity
from bind_core.rotations import euler_matrix, matrix_quaternion, quaternion_matrix, rotation_matrix, seed_entropy
from storage.audit_result import AuditCode
from storage.checklist import Checklist
from storage.distribution_checks import (
    MOST_RECOMPUTED,
    check_orientations,
    check_parameters,
    check_seeds,
    line_of_sight_pixels,
    rotation_matrices,
    turn_pixels,
)
from storage.evidence import Evidence, SuiteRecord
from storage.layout import DatasetLayout

RNG = np.random.default_rng(5)


def evidence_of(
    quaternions: NDArray[np.float64], rotations: RotationPolicy = RotationPolicy.HAAR, **columns: object
) -> Evidence:
    """Return what an audit knows of samples with these orientations, ten of each halo of one simulation."""
    count = len(quaternions)
    root = Path("nowhere")
    config = DatasetConfig(dmo_base=root, hydro_base=root, catalogue_base=root, output_root=root, rotations=rotations)
    halo, rotation = np.divmod(np.arange(count), 10)
    rows = pl.DataFrame(
        {
            "simulation": ["SB35_7"] * count,
            "halo": halo,
            "rotation": rotation,
            "stratum": ["(1e+13, inf]"] * count,
            "seed_entropy": ["1"] * count,
            **{f"quaternion_{part}": quaternions[:, index] for index, part in enumerate("wxyz")},
        }
    ).with_columns(
        sample_id=pl.format("{}_halo_{}_rot_{}", "simulation", "halo", "rotation"), config_digest=pl.lit(config.digest)
    )
    rows = rows.with_columns(**columns)  # type: ignore[arg-type]
    return Evidence(
        layout=DatasetLayout(root, "SB35"),
        config=config,
        samples=rows,
        attempts=pl.DataFrame(schema={"simulation": pl.String}),
        is_latest=True,
        latest_paths=pl.Series([], dtype=pl.String),
        suite=None,
        no_suite="the suite is away",
        parameters=None,
        no_parameters="",
    )


def haar(count: int) -> NDArray[np.float64]:
    quaternions = RNG.normal(size=(count, 4))
    return quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)


def euler(count: int) -> NDArray[np.float64]:
    return np.array([matrix_quaternion(euler_matrix(angles)) for angles in RNG.uniform(0, 2 * np.pi, (count, 3))])


def about_the_line_of_sight(count: int) -> NDArray[np.float64]:
    """Return uniform lines of sight, each turned to the same side."""
    turned = []
    for quaternion in haar(count):
        rotation = quaternion_matrix(quaternion)
        angle = np.arctan2(rotation[1, 2], rotation[0, 2])
        turned.append(matrix_quaternion(euler_matrix(np.array([0, 0, -angle])) @ rotation))
    return np.array(turned)


def outcome(evidence: Evidence) -> tuple[list[bool | None], list]:
    checklist = Checklist()
    check_orientations(evidence, checklist)
    return [check.passed for check in checklist.outcomes], checklist.findings


@pytest.mark.parametrize("count", [90, 250, 490, 5000])
def test_uniform_rotations_pass(count: int) -> None:
    """Rotations uniform on SO(3) pass both tests, whatever their number."""
    assert outcome(evidence_of(haar(count)))[0] == [True, True]


@pytest.mark.parametrize("policy", RotationPolicy)
def test_uniform_euler_angles_fail(policy: RotationPolicy) -> None:
    """Three uniform Euler angles favour two directions: an error, but where it was asked for only a warning."""
    passed, findings = outcome(evidence_of(euler(3000), policy))
    assert passed[0] is False
    assert findings[0].code is AuditCode.UNEVEN_ORIENTATIONS
    expected = Severity.WARNING if policy is RotationPolicy.EULER else Severity.ERROR
    assert findings[0].severity is expected
    assert ("rotations: haar" in findings[0].advice) == (policy is RotationPolicy.EULER)


def test_equal_turns_fail_the_second_test_alone() -> None:
    """Uniform lines of sight with the same turn about them are found by the test of the turn."""
    assert outcome(evidence_of(about_the_line_of_sight(1000)))[0] == [True, False]


def test_too_few_rotations_are_not_judged() -> None:
    """With fewer orientations than pixels need, no statement is made, and the detail says how many it takes."""
    checklist = Checklist()
    check_orientations(evidence_of(np.tile(haar(1), (89, 1))), checklist)
    assert [check.passed for check in checklist.outcomes] == [None, None]
    assert "90 are needed" in checklist.outcomes[0].detail


def test_an_orientation_counts_once_however_often_it_is_listed() -> None:
    """Rows that are listed many times do not make the orientations uneven."""
    evidence = evidence_of(haar(200))
    rows = pl.concat([evidence.samples, *[evidence.samples.head(5)] * 200])
    repeated = Evidence(**{**{name: getattr(evidence, name) for name in Evidence.__annotations__}, "samples": rows})
    assert outcome(repeated)[0] == [True, True]


@pytest.mark.parametrize("bands", [3, 5, 7])
def test_pixels_have_equal_areas(bands: int) -> None:
    """A dense and even covering of the sphere, and of the circle, fills every pixel alike."""
    heights, turns = np.meshgrid(np.linspace(-1, 1, 2001), np.linspace(0, 2 * np.pi, 700, endpoint=False))
    z, angle = heights.ravel(), turns.ravel()
    matrices = np.zeros((z.size, 3, 3))
    matrices[:, 2] = np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=1)
    matrices[:, 0, 2], matrices[:, 1, 2] = np.cos(angle), np.sin(angle)
    for pixels in (line_of_sight_pixels, turn_pixels):
        counts = np.bincount(pixels(matrices, bands), minlength=bands**2)
        assert len(counts) == bands**2
        np.testing.assert_allclose(counts, z.size / bands**2, rtol=0.05)


def test_the_line_of_sight_is_what_the_rotation_takes_to_the_third_axis() -> None:
    """The recorded quaternions give the matrices that they were made from, all at once."""
    quaternions = haar(50)
    matrices = rotation_matrices(evidence_of(quaternions).samples)
    np.testing.assert_allclose(matrices, [quaternion_matrix(each) for each in quaternions], atol=1e-15)


def seeded(count: int, policy: RotationPolicy = RotationPolicy.HAAR) -> Evidence:
    """Return samples as the generator makes them."""
    entropies = [
        seed_entropy(policy, 1993, "SB35_7", 7, halo, halo, rotation)
        for halo, rotation in zip(*np.divmod(np.arange(count), 10), strict=True)
    ]
    quaternions = np.array([matrix_quaternion(rotation_matrix(policy, tuple(map(int, e)))) for e in entropies])
    texts = pl.Series([",".join(map(str, entropy)) for entropy in entropies])
    return evidence_of(quaternions, policy, seed_entropy=texts)


def seeds_checked(evidence: Evidence) -> Checklist:
    checklist = Checklist()
    check_seeds(evidence, checklist)
    return checklist


def test_seeds_and_orientations_of_the_generator_pass() -> None:
    """What the generator draws is what the audit expects; a deviation of 1e-8 is none of it."""
    assert [check.passed for check in seeds_checked(seeded(200)).outcomes] == [True, True]
    evidence = seeded(200)
    off = pl.when(pl.col("rotation") == 3).then(1e-8).otherwise(0.0)
    changed = evidence.samples.with_columns(pl.col("quaternion_x") + off)
    moved = Evidence(**{**{name: getattr(evidence, name) for name in Evidence.__annotations__}, "samples": changed})
    checklist = seeds_checked(moved)
    assert checklist.counts == {AuditCode.WRONG_ORIENTATION: 20}


def test_euler_seeds_need_the_haloes_of_the_stratum() -> None:
    """The older generator's seed counts haloes in their stratum: held against the plan, or said not to be."""
    evidence = seeded(100, RotationPolicy.EULER)
    without = seeds_checked(evidence)
    assert "none of 100 samples: the suite is away" in without.outcomes[0].detail
    planned = pl.DataFrame({"halo": np.arange(10), "ordinal": np.arange(10), "rotations": [10] * 10}).with_columns(
        simulation=pl.lit("SB35_7"), stratum=pl.lit("(1e+13, inf]")
    )
    suite = SuiteRecord(frozenset({"SB35_7"}), {}, planned, pl.DataFrame())
    fields = {name: getattr(evidence, name) for name in Evidence.__annotations__}
    assert [check.passed for check in seeds_checked(Evidence(**{**fields, "suite": suite})).outcomes] == [True, True]
    shifted = SuiteRecord(frozenset({"SB35_7"}), {}, planned.with_columns(pl.col("ordinal") + 1), pl.DataFrame())
    assert seeds_checked(Evidence(**{**fields, "suite": shifted})).counts == {AuditCode.WRONG_SEED: 100}


def test_of_very_many_samples_every_so_manyth_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit, orientations are drawn again for samples evenly spread over the table, and this is said."""
    monkeypatch.setattr("storage.distribution_checks.MOST_RECOMPUTED", 50)
    assert MOST_RECOMPUTED >= 10_000
    detail = seeds_checked(seeded(200)).outcomes[1].detail
    assert detail == "50 samples, every 4th of them in order"


def parameters(train: NDArray[np.float64], test: NDArray[np.float64]) -> pl.DataFrame:
    values = np.concatenate([train, test])
    names = [f"SB35_{number}" for number in range(len(values))]
    splits = ["train"] * len(train) + ["test"] * len(test)
    columns = {f"p{index}": values[:, index] for index in range(values.shape[1])}
    return pl.DataFrame({"simulation": names, "split": splits, **columns})


def covered(frame: pl.DataFrame, why: str = "") -> Checklist:
    checklist = Checklist()
    check_parameters(frame, why, checklist)
    return checklist


def test_parameters_of_a_random_split_are_covered() -> None:
    """Simulations divided at random pass in each of 35 parameters, though some test ones lie beyond all train ones."""
    checklist = covered(parameters(RNG.uniform(size=(920, 35)), RNG.uniform(size=(104, 35))))
    assert checklist.outcomes[0].passed
    assert "35 parameters of 920 train and 104 test simulations" in checklist.outcomes[0].detail


@pytest.mark.parametrize("change", [lambda x: x + 0.9, lambda x: 0.3 * x, lambda x: x * 0 + 0.5])
def test_other_parameters_in_test_are_named(change: Callable) -> None:
    """A parameter that is shifted, narrowed or constant in test is named, and the other one is not."""
    test = RNG.uniform(size=(100, 2))
    test[:, 1] = change(test[:, 1])
    checklist = covered(parameters(RNG.uniform(size=(900, 2)), test))
    assert [(f.code, f.subject, f.severity) for f in checklist.findings] == [
        (AuditCode.PARAMETER_COVERAGE, "p1", Severity.WARNING)
    ]


def test_a_tail_that_only_test_has_is_named() -> None:
    """If the ten most extreme simulations of 200 are all test ones, train does not cover them."""
    values = np.sort(RNG.uniform(size=200))[:, None]
    checklist = covered(parameters(values[:-10], np.concatenate([RNG.uniform(size=(10, 1)) * 0.9, values[-10:]])))
    assert [finding.subject for finding in checklist.findings] == ["p0"]


def test_without_parameters_or_test_simulations_nothing_is_said() -> None:
    """A set of few simulations, or without its table, is not judged, and the reason is given."""
    few = covered(parameters(RNG.uniform(size=(3, 2)), RNG.uniform(size=(1, 2))))
    assert (few.outcomes[0].passed, few.findings) == (None, [])
    assert "3 train and 1 test" in few.outcomes[0].detail
    assert covered(pl.DataFrame(), "the table is away").outcomes[0].detail == "the table is away"
