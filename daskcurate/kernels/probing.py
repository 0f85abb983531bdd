"""The most similar earlier row of a few rows (probes) among all rows of their clusters, a block at a time.

What SemDeDup computes for every row, for a sample of the rows: the matches of a probe in all blocks
together, merged, are its exact match.
"""

from typing import NamedTuple

import numpy as np

from daskcurate.arrays import Array, namespace_of, to_host
from daskcurate.kernels.similarity import EarlierMatch

TILE = 1024


class Ordered(NamedTuple):
    """Rows with what decides their order within their cluster."""

    rows: Array
    """(m, d) float32 or float16."""
    numbers: Array
    """(m,) int64 row numbers, ascending."""
    labels: Array
    """(m,) int32 clusters."""
    keys: Array
    """(m,) float64; the row with the smaller key is earlier, of equals that with the smaller number."""


def match_probes(probes: Ordered, block: Ordered) -> EarlierMatch:
    """Return for each probe the most similar row of ``block`` that is earlier in the same cluster.

    The arrays of both are the host's, or the device's.

    Returns
    -------
    EarlierMatch
        similarity (m,) float32, -1 where there is none; position (m,) int64 is a row number, -1 where none.
    """
    xp = namespace_of(probes.rows)
    similarity = xp.full(len(probes.numbers), -1, dtype=np.float32)
    match = xp.full(len(probes.numbers), -1, dtype=np.int64)
    by_probe = xp.argsort(probes.labels, kind="stable")
    by_row = xp.argsort(block.labels, kind="stable")
    probe_labels, row_labels = to_host(probes.labels[by_probe]), to_host(block.labels[by_row])
    for label in np.intersect1d(probe_labels, row_labels):
        ours = by_probe[slice(*np.searchsorted(probe_labels, [label, label + 1]))]
        theirs = by_row[slice(*np.searchsorted(row_labels, [label, label + 1]))]
        for i in range(0, len(ours), TILE):
            for j in range(0, len(theirs), TILE):
                _match_tile(probes, ours[i : i + TILE], block, theirs[j : j + TILE], similarity, match)
    return EarlierMatch(similarity, match)


def _match_tile(
    probes: Ordered,
    ours: Array,
    block: Ordered,
    theirs: Array,
    similarity: Array,
    match: Array,
) -> None:
    """Compare some probes with some rows of one cluster, and keep what is better than before."""
    xp = namespace_of(probes.rows)
    a, b = _unit(probes.rows[ours]), _unit(block.rows[theirs])
    key, number = probes.keys[ours][:, None], probes.numbers[ours][:, None]
    earlier = (block.keys[theirs] < key) | ((block.keys[theirs] == key) & (block.numbers[theirs] < number))
    scores = xp.where(earlier, a @ b.T, -9.0)
    # the product is rounded: what is within its rounding of the best may be the best, of equals the first row
    margin = 2.0**-48 * (a.shape[1] + 8)
    best = (scores >= scores.max(axis=1, keepdims=True) - margin).argmax(axis=1)
    exact = xp.minimum(scores[xp.arange(len(ours)), best], 1).astype(np.float32)
    some = earlier.any(axis=1)
    found = block.numbers[theirs[best]]
    old, old_match = similarity[ours], match[ours]
    better = some & ((old_match < 0) | (exact > old) | ((exact == old) & (found < old_match)))
    similarity[ours] = xp.where(better, xp.maximum(exact, np.float32(-1)), old)
    match[ours] = xp.where(better, found, old_match)


def _unit(rows: Array) -> Array:
    """Return rows (m, d) as float64 of unit length."""
    wide = rows.astype(np.float64)
    norms = namespace_of(wide).sqrt((wide * wide).sum(axis=1, keepdims=True))
    norms[norms == 0] = 1
    return wide / norms


def same_cluster_chance(counts: np.ndarray) -> float:
    """Return the unbiased estimate of the chance that two rows share a cluster, from a sample's counts (k,).

    The counts, and those of :func:`wilson`, are the host's: there is one number a cluster, or a threshold.
    """
    m = int(counts.sum())
    if m < 2:
        return 1.0
    wide = counts.astype(np.float64)
    return float((wide * (wide - 1)).sum() / (m * (m - 1.0)))


def wilson(kept: np.ndarray, sampled: int, rows: int, z: float = 1.959964) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % Wilson interval of fractions ``kept`` / ``sampled``, for a sample without replacement.

    The finite pool counts: a sample of all rows leaves no uncertainty.
    """
    share = np.asarray(kept, dtype=np.float64) / sampled
    if sampled >= rows:
        return share, share
    size = sampled * (rows - 1) / (rows - sampled)  # as many independent rows would be as exact
    centre = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * np.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return np.maximum(centre - half, 0), np.minimum(centre + half, 1)
