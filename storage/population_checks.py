"""Audit of samples against each other: masses far from those of their like, pictures that are the same, parameters."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bind_core.findings import Severity
from storage.audit_result import AuditCode
from storage.checklist import SAMPLE_QUERY, Checklist, Offenders, no_offenders

OUTLIER_SCORE = 10.0
"""Robust standard deviations. Log masses in a window have a long tail towards rich surroundings, and simulations differ
in their parameters, so that 5 or 6 do occur."""
SPREAD_FLOOR = 0.05
"""Dex. Below it, a spread is taken for this much: many samples of few haloes hardly differ."""
FEWEST_LIKE = 30
"""Samples of similar halo mass, without which nothing is said of outliers."""
NEIGHBOURS = 201
"""Samples next to each other in halo mass that one is held against."""
DUPLICATE_CORRELATION = 0.9999
"""Of two small pictures of the condition, the mean picture taken off. Different haloes have less than 0.99."""

_HASH_TABLES = 4
_HASH_BITS = 24
_COMPARED = 8
"""Samples of the same bucket, next to each other in it, that one is compared with."""
_FEWEST_PICTURES = 3
_HASH_SEED = 1993
_MAD_TO_SIGMA = 1.4826


def robust_scores(halo_masses: NDArray[np.float64], log_masses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each sample's mass is from that of samples with a similar halo mass.

    Parameters
    ----------
    halo_masses : (n,) array
        M200c, Msun/h.
    log_masses : (n,) array
        log10 of the mass of a map, plus 1, or the level of a further field; 0 where there is none, which is left out.

    Returns
    -------
    (n,) float64 array
        Deviation from the running median in units of 1.4826 times the running median deviation, both over up to
        `NEIGHBOURS` samples; 0 where there are too few to tell.
    """
    scores = np.zeros(len(log_masses))
    chosen = np.flatnonzero(log_masses)
    if len(chosen) < FEWEST_LIKE:
        return scores
    chosen = chosen[np.argsort(halo_masses[chosen], kind="stable")]
    values = log_masses[chosen]
    deviations = values - _running_median(values)
    spread = np.maximum(_MAD_TO_SIGMA * _running_median(np.abs(deviations)), SPREAD_FLOOR)
    scores[chosen] = deviations / spread
    return scores


def _running_median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median over neighbours; at the ends, that over the first and last whole set of them."""
    width = min(NEIGHBOURS, len(values) - 1 + len(values) % 2)
    medians = pl.Series(values).rolling_median(width, center=True).to_numpy()
    known = np.flatnonzero(~np.isnan(medians))
    return np.asarray(medians[np.clip(np.arange(len(values)), known[0], known[-1])])


def check_outliers(rows: pl.DataFrame, scores: dict[str, NDArray[np.float64]], checklist: Checklist) -> None:
    """Name the samples whose maps hold a mass, or a level of a further field, far from that of similar haloes.

    Parameters
    ----------
    rows : DataFrame
        ``sample_id`` and ``simulation`` of the samples that could be read.
    scores : dict
        By map, what `robust_scores` returned.
    checklist : Checklist
        Takes the outcome.
    """
    name = "masses are like those of samples with a similar halo"
    if rows.height < FEWEST_LIKE:
        checklist.skip(name, f"{rows.height} samples are too few to tell; {FEWEST_LIKE} are needed")
        return
    parts = [no_offenders()]
    for channel, values in scores.items():
        far = np.flatnonzero(np.abs(values) > OUTLIER_SCORE)
        parts.append(
            rows[far].select(
                "simulation",
                subject="sample_id",
                expected=pl.lit(f"{channel} within {OUTLIER_SCORE:g} standard deviations of similar haloes"),
                found=pl.Series([f"{value:+.1f} standard deviations" for value in values[far]], dtype=pl.String),
            )
        )
    found = pl.concat([part.select(no_offenders().columns) for part in parts])
    extreme = max((float(np.abs(values).max(initial=0.0)) for values in scores.values()), default=0.0)
    checklist.record(
        name,
        f"{rows.height:,} samples, {len(scores)} maps; the farthest is {extreme:.1f} robust standard deviations away",
        Offenders(
            AuditCode.OUTLIER, Severity.WARNING, found, "Look at the sample with `bind-data show`.", SAMPLE_QUERY
        ),
    )


def check_near_duplicates(rows: pl.DataFrame, pictures: NDArray[np.floating], checklist: Checklist) -> None:
    """Name samples of different haloes whose conditions look the same.

    Parameters
    ----------
    rows : DataFrame
        ``sample_id``, ``simulation``, ``halo`` and ``sha256`` of the samples.
    pictures : (n, pixels) array
        What `storage.content_checks.fingerprint` returned.
    checklist : Checklist
        Takes the outcome.
    """
    name = "no two haloes look the same"
    if len(pictures) < _FEWEST_PICTURES:
        checklist.skip(name, f"{len(pictures)} samples are too few to tell")
        return
    pairs = near_pairs(pictures)
    first, second = rows[pairs[:, 0]], rows[pairs[:, 1]]
    other_halo = (first["simulation"] != second["simulation"]) | (first["halo"] != second["halo"])
    # Files of the same bytes are named already.
    chosen = other_halo & (first["sha256"] != second["sha256"])
    first, second = first.filter(chosen), second.filter(chosen)
    found = first.select("simulation", subject="sample_id", expected=pl.lit("a picture of its own")).with_columns(
        found=pl.format("that of {}", second["sample_id"])
    )
    checklist.record(
        name,
        f"{len(pictures):,} conditions as small pictures",
        Offenders(
            AuditCode.NEAR_DUPLICATE,
            Severity.WARNING,
            found,
            "One may be a copy of the other under another name. Look at both with `bind-data show`.",
            "SELECT * FROM samples WHERE sample_id = '{subject}'",
        ),
    )


def near_pairs(pictures: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return pairs of pictures that are the same but for rounding.

    Not all pairs are compared, of which there are 10^11 for a large data set, but only those that share a bucket in
    one of several hash tables: the signs of projections onto random directions (Charikar 2002). Pictures with a
    correlation of `DUPLICATE_CORRELATION` share one with a probability of 0.99 and more, and the same pictures always.

    Parameters
    ----------
    pictures : (n, pixels) array
        Each of zero mean and unit norm.

    Returns
    -------
    (pairs, 2) int64 array
        Indices, the smaller one first; in order, each pair once.
    """
    # What all haloes have in common, a bright middle, would put them all into the same buckets.
    centred = pictures.astype(np.float32) - pictures.mean(axis=0, dtype=np.float32)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    centred /= np.maximum(norms, np.finfo(np.float32).tiny)
    rng = np.random.default_rng(_HASH_SEED)
    pairs = [np.empty((0, 2), np.int64)]
    weights = 1 << np.arange(_HASH_BITS)
    for _ in range(_HASH_TABLES):
        directions = rng.standard_normal((pictures.shape[1], _HASH_BITS)).astype(np.float32)
        projected = centred @ directions
        buckets = (projected > 0) @ weights
        order = np.lexsort((projected[:, 0], buckets))
        for step in range(1, min(_COMPARED, len(order) - 1) + 1):
            one, other = order[:-step], order[step:]
            together = np.flatnonzero(buckets[one] == buckets[other])
            one, other = one[together], other[together]
            correlation = np.einsum("ij,ij->i", centred[one], centred[other])
            same = correlation > DUPLICATE_CORRELATION
            pairs.append(np.sort(np.stack([one[same], other[same]], axis=1), axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def check_parameters_agree(rows: pl.DataFrame, digests: NDArray[np.uint64], checklist: Checklist) -> None:
    """Name the samples whose parameters are not those that most samples of their simulation have.

    Parameters
    ----------
    rows : DataFrame
        ``sample_id`` and ``simulation``.
    digests : (n,) array
        Of each sample's parameters.
    checklist : Checklist
        Takes the outcome.
    """
    counted = rows.select("sample_id", "simulation").with_columns(digest=pl.Series(digests, dtype=pl.UInt64))
    usual = (
        counted.group_by("simulation", "digest")
        .len()
        .sort("len", "digest", descending=[True, False])
        .unique("simulation", keep="first", maintain_order=True)
        .select("simulation", usual="digest")
    )
    others = counted.join(usual, on="simulation", how="left", maintain_order="left").filter(
        pl.col("digest") != pl.col("usual")
    )
    checklist.record(
        "all samples of a simulation have its parameters",
        f"{rows.height:,} samples of {usual.height:,} simulations",
        Offenders(
            AuditCode.ROW_DISAGREES,
            Severity.ERROR,
            others.select(
                "simulation",
                subject="sample_id",
                expected=pl.lit("params as in the simulation's other samples"),
                found=pl.lit("other ones"),
            ),
            "Make the sample again (`bind-data repair`).",
            SAMPLE_QUERY,
        ),
    )
