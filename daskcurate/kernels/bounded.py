"""Assigning rows again after the centroids moved, skipping what bounds allow to skip.

A row whose distance to its own centroid is below a lower bound of the distance to all others keeps its label.
From pass to pass the bound falls by the largest move of a centroid (Hamerly 2010); here the centroids that
moved most are compared with every row instead, in one product, so that the bound falls by the largest move of
the rest only.
"""

import numpy as np

from daskcurate.arrays import Array, row_dots, to_host
from daskcurate.kernels.assign import Assignment, Scorer, assign, tile_rows

LOUD_SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of the centroids tried as those that are compared with every row."""
OWN_TILE = 1 << 18
"""Numbers of rows compared with their own centroids at once: 1 MiB of float32."""
OWN_COST = 0.1
"""Work of a bounded pass besides its products, as a share of a pass without bounds."""


def reassign(x: Array, scorer: Scorer, before: Assignment, moves: Array) -> Assignment:
    """Return what :func:`assign` returns, skipping what the bounds of the last pass allow to skip.

    Parameters
    ----------
    x
        (m, d) float32, the rows of ``before``.
    before
        Labels and bounds by the centroids of the last pass.
    moves
        (k,) float64: how far each centroid has moved since.
    """
    return reassigned(x, scorer, before, moves)[0]


def reassigned(x: Array, scorer: Scorer, before: Assignment, moves: Array) -> tuple[Assignment, float]:
    """Return what :func:`reassign` does, and its products as a share of those of a pass without bounds."""
    if not scorer.skips:
        return assign(x, scorer), 1.0
    xp, m = scorer.xp, x.shape[0]
    labels, second = before.labels.copy(), before.second.copy()
    # no scores of all centroids are held here: narrow rows may be many at once
    step = max(tile_rows(scorer.table.shape[0], xp), OWN_TILE // scorer.table.shape[1])
    own, upper = xp.empty(m, dtype=np.float32), xp.empty(m, dtype=np.float32)
    for start in range(0, m, step):
        tile = scorer.tile(x[start : start + step])
        score = row_dots(tile.rows, scorer.table[labels[start : start + step]])
        own[start : start + step], upper[start : start + step] = score, scorer.upper(tile, score)
    count = loud_count(to_host(second - upper), to_host(moves))
    if count is None:
        return assign(x, scorer), 1.0
    order = xp.argsort(moves, kind="stable")
    loud = xp.sort(order[len(order) - count :])
    quiet = order[: len(order) - count]
    if len(quiet):
        second -= np.float32(float(moves[quiet[-1]]) * (1 + 1e-6))
    doubtful = upper >= second
    settled = xp.nonzero(~doubtful)[0]
    if count:
        table = scorer.table[loud]
        place = xp.full(scorer.table.shape[0], -1, dtype=np.int64)
        place[loud] = xp.arange(count)
        step = tile_rows(count, xp)
        for start in range(0, len(settled), step):
            i = settled[start : start + step]
            tile = scorer.tile(x[i])
            scores = xp.matmul(tile.rows, table.T)
            mine = place[labels[i]]
            has = xp.nonzero(mine >= 0)[0]
            scores[has, mine[has]] = -np.inf
            top = scores.max(axis=1)
            doubtful[i] = top >= own[i] - 2 * tile.error
            second[i] = xp.minimum(second[i], scorer.lower(tile, top))
    again = xp.nonzero(doubtful)[0]
    if len(again):
        labels[again], second[again] = assign(x[again], scorer)
    share = (len(again) + len(settled) * count / len(order)) / max(1, m)
    return Assignment(labels, second), share


def loud_count(gaps: np.ndarray, moves: np.ndarray) -> int | None:
    """Return how many centroids, those that moved most, to compare with every row; None: all.

    The count that makes the least work: products with those centroids for every row, and with all
    centroids for the rows whose gap the largest move of the others exceeds.

    Parameters
    ----------
    gaps
        (m,) for each row how much closer its own centroid is than the others at least.
    moves
        (k,) how far each centroid has moved.
    """
    k, m = len(moves), len(gaps)
    if not m:
        return 0
    moves, gaps = np.sort(moves), np.sort(gaps)
    counts = {int(np.ceil(share * k)) for share in LOUD_SHARES} | {int((moves > 0).sum())}
    best, work = None, 1.0 - OWN_COST
    for count in sorted(counts):
        largest = moves[k - 1 - count] * (1 + 1e-6) if count < k else 0.0
        failing = np.searchsorted(gaps, largest, side="right") / m
        if (needed := failing + (1 - failing) * count / k) < work:
            best, work = count, needed
    return best
