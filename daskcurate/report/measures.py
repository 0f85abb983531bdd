"""Figures of a run, read chunk by chunk: counts, histograms and the few rows that a page shows.

Nothing here holds a number a row: the largest arrays are a number a cluster, and the rows of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskcurate.kernels.draws import row_hash

BLOCK_ROWS = 1 << 20


def blocks(*arrays: Any) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield the first row and the values of blocks of arrays of one length, whole chunks of the first."""
    n, chunk = int(arrays[0].shape[0]), int(arrays[0].chunks[0])
    step = max(1, BLOCK_ROWS // chunk) * chunk
    for start in range(0, n, step):
        yield start, [np.asarray(array[start : start + step]) for array in arrays]


def values_at(array: Any, rows: np.ndarray) -> np.ndarray:
    """Return the values of ``rows`` (m,), ascending, reading each chunk that holds some of them once."""
    rows = np.asarray(rows, dtype=np.int64)
    chunk = int(array.chunks[0])
    parts = [np.asarray(array[0:0])]
    for number in np.unique(rows // chunk):
        inside = rows[rows // chunk == number]
        parts.append(np.asarray(array[inside[0] : inside[-1] + 1])[inside - inside[0]])
    return np.concatenate(parts)


def kept_per_cluster(labels: Any, counts: Any, k: int) -> np.ndarray:
    """Return how many rows of each cluster a selection holds, repeats counted, (k,) int64."""
    kept = np.zeros(k, dtype=np.int64)
    for _, (label, count) in blocks(labels, counts):
        inside = (label >= 0) & (count > 0)
        kept += np.bincount(label[inside], count[inside], minlength=k).astype(np.int64)
    return kept


def fold(sizes: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Return the sums of ``sizes`` over the clusters of the level above, (k,) int64."""
    inside = labels >= 0
    return np.bincount(labels[inside], sizes[inside], minlength=k).astype(np.int64)


@dataclass(frozen=True)
class Balance:
    """How evenly rows are spread over clusters."""

    rows: int
    clusters: int
    """Clusters that have a row."""
    effective: float
    """exp of the entropy of the shares: as many equal clusters would be as even."""
    gini: float
    """0: all clusters alike; towards 1: one has everything."""
    kl: float
    """Divergence of the shares from equal ones over all clusters, in nats."""


def balance(sizes: np.ndarray) -> Balance:
    """Return how evenly ``sizes`` (k,) are spread; empty clusters count."""
    total, k = int(sizes.sum()), len(sizes)
    if not total:
        return Balance(0, 0, 0.0, 0.0, 0.0)
    share = np.sort(sizes) / total
    some = share[share > 0]
    entropy = float(-(some * np.log(some)).sum())
    # mean absolute difference of all pairs over twice the mean, from the sorted shares
    gini = float(((2 * np.arange(1, k + 1) - k - 1) * share).sum() / k)
    return Balance(
        total, len(some), float(np.exp(entropy)), max(0.0, gini), max(0.0, float(np.log(k)) - entropy)
    )


def ranked_sizes(sizes: np.ndarray, points: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return ranks and sizes, largest first, thinned to ``points`` spread evenly over the logarithm."""
    ordered = np.sort(sizes[sizes > 0])[::-1]
    if not len(ordered):
        return np.empty(0, np.int64), ordered
    ranks = np.unique(np.geomspace(1, len(ordered), points).round().astype(np.int64))
    return ranks, ordered[ranks - 1]


EPS_GRID = np.unique(np.concatenate([[0.0], np.geomspace(1e-4, 2, 200)]))
SIMILARITY_BINS = np.linspace(-1, 1, 801)


@dataclass(frozen=True)
class Similarities:
    """What a dedup result looks like as a whole, and its rows next to the threshold."""

    rows: int
    """Rows compared."""
    histogram: np.ndarray
    """(800,) rows by similarity to the match, in equal bins from -1 to 1."""
    unmatched: int
    """Rows that no earlier row shares a cluster with."""
    dropped: np.ndarray
    """Rows more similar than 1 - eps, for each eps of EPS_GRID."""
    above: np.ndarray
    below: np.ndarray
    """(m, 3) float64: similarity, row, match of the rows next to the threshold, the nearest first."""
    groups: np.ndarray
    """Rows that are the match of many dropped ones, the most frequent first, by a sample of the dropped."""

    @property
    def kept_fraction(self) -> np.ndarray:
        """Fraction kept at each eps of EPS_GRID."""
        return 1 - self.dropped / max(1, self.rows)


def read_similarities(stage: Any, eps: float, border: int = 400, sample: int = 20_000) -> Similarities:
    """Read the similarities of a dedup stage once."""
    limits = (1 - EPS_GRID).astype(np.float32)[::-1]
    limit = np.float32(1 - eps)
    rows = unmatched = 0
    histogram, above_limit = np.zeros(len(SIMILARITY_BINS) - 1, np.int64), np.zeros(len(limits) + 1, np.int64)
    above, below = np.empty((0, 3)), np.empty((0, 3))
    drawn, drawn_match = np.empty(0, np.uint64), np.empty(0, np.int64)
    for start, (similarity, match) in blocks(stage.array("max_similarity"), stage.array("duplicate_of")):
        at = np.flatnonzero(~np.isnan(similarity))
        similarity, match = similarity[at], match[at]
        rows += len(at)
        matched = match >= 0
        unmatched += int((~matched).sum())
        histogram += np.histogram(similarity[matched], SIMILARITY_BINS)[0]
        # side="left": a similarity equal to a limit is not above it
        above_limit += np.bincount(
            np.searchsorted(limits, similarity, side="left"), minlength=len(limits) + 1
        )
        table = np.stack([similarity, at + start, match], axis=1, dtype=np.float64)
        over = similarity > limit
        above = _nearest(np.concatenate([above, table[over]]), limit, border)
        below = _nearest(np.concatenate([below, table[matched & ~over]]), limit, border)
        drawn = np.concatenate([drawn, row_hash(0, at[over] + start)])
        drawn_match = np.concatenate([drawn_match, match[over]])
        if len(drawn) > sample:
            keep = np.argpartition(drawn, sample)[:sample]
            drawn, drawn_match = drawn[keep], drawn_match[keep]
    found, times = np.unique(drawn_match, return_counts=True)
    order = np.lexsort((found, -times))
    frequent = found[order][times[order] > 1][:40]
    dropped = np.cumsum(above_limit[::-1])[: len(limits)]
    return Similarities(rows, histogram, unmatched, dropped, above, below, frequent)


def _nearest(table: np.ndarray, limit: np.float32, count: int) -> np.ndarray:
    order = np.lexsort((table[:, 1], np.abs(table[:, 0] - limit)))
    return table[order[:count]]


@dataclass(frozen=True)
class Matched:
    """Rows whose match is one given row."""

    total: int
    rows: np.ndarray
    similarity: np.ndarray


def rows_matching(
    stage: Any, matches: np.ndarray, limit: float, count: int, floor: float = -2.0
) -> dict[int, Matched]:
    """Return for each of a few rows those that it is the match of: the ``count`` nearest to ``limit``.

    Only rows more similar than ``floor`` count.
    """
    wanted = np.unique(np.asarray(matches, dtype=np.int64))
    found = {int(match): Matched(0, np.empty(0, np.int64), np.empty(0, np.float32)) for match in wanted}
    if not len(wanted):
        return found
    for start, (similarity, match) in blocks(stage.array("max_similarity"), stage.array("duplicate_of")):
        place = np.minimum(np.searchsorted(wanted, match), len(wanted) - 1)
        hits = np.flatnonzero((wanted[place] == match) & (similarity > np.float32(floor)))
        hits = hits[np.argsort(match[hits], kind="stable")]
        bounds = _runs(match[hits])
        for first, stop in zip(bounds[:-1], bounds[1:], strict=True):
            one = hits[first:stop]
            old = found[int(match[one[0]])]
            rows = np.concatenate([old.rows, one + start])
            values = np.concatenate([old.similarity, similarity[one]])
            order = np.lexsort((rows, np.abs(values - np.float32(limit))))[:count]
            found[int(match[one[0]])] = Matched(old.total + len(one), rows[order], values[order])
    return found


@dataclass(frozen=True)
class Extremes:
    """The members of a cluster nearest to its centroid and farthest from it."""

    near: np.ndarray
    near_distance: np.ndarray
    far: np.ndarray
    far_distance: np.ndarray


def extreme_members(stage: Any, clusters: Any, k: int, count: int) -> dict[int, Extremes]:
    """Return the extreme members of a few clusters of a clustering of rows."""
    chosen = np.zeros(k, dtype=bool)
    chosen[np.asarray(clusters, dtype=np.int64)] = True
    none = (np.empty(0, np.int64), np.empty(0, np.float32))
    found = {int(cluster): Extremes(*none, *none) for cluster in clusters}
    for start, (labels, distances) in blocks(stage.array("labels"), stage.array("distances")):
        at = np.flatnonzero((labels >= 0) & chosen[np.maximum(labels, 0)])
        at = at[np.argsort(labels[at], kind="stable")]
        bounds = _runs(labels[at])
        for first, stop in zip(bounds[:-1], bounds[1:], strict=True):
            one = at[first:stop]
            old = found[int(labels[one[0]])]
            near = _first(np.r_[old.near, one + start], np.r_[old.near_distance, distances[one]], count, 1)
            far = _first(np.r_[old.far, one + start], np.r_[old.far_distance, distances[one]], count, -1)
            found[int(labels[one[0]])] = Extremes(*near, *far)
    return found


def _runs(values: np.ndarray) -> np.ndarray:
    """Return where runs of equal values start, and where the last one ends."""
    return np.flatnonzero(np.r_[True, np.diff(values) != 0, True]) if len(values) else np.empty(0, np.int64)


def _first(rows: np.ndarray, keys: np.ndarray, count: int, sign: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((rows, sign * keys))[:count]
    return rows[order], keys[order]


def pick_clusters(sizes: np.ndarray, count: int) -> list[int]:
    """Return some clusters to look at: the largest, those of middling size, and the smallest with a pair."""
    alive = np.flatnonzero(sizes > 1) if (sizes > 1).any() else np.flatnonzero(sizes > 0)
    order = alive[np.lexsort((alive, -sizes[alive]))]
    if len(order) <= count:
        return [int(cluster) for cluster in order]
    third = max(1, count // 3)
    middle = (len(order) - third) // 2
    chosen = [*order[: count - 2 * third], *order[middle : middle + third], *order[-third:]]
    return [int(cluster) for cluster in dict.fromkeys(chosen)]
