"""Assigning rows to their nearest centroid: exact labels, by float32 products with a float64 re-check.

A float32 product finds for each row the best and the second best centroid. Where these lie closer than
the product's rounding can tell apart, the candidates are measured again in float64; exact ties go to the
first centroid. So a label depends on the row and the centroids alone: not on tiles, blocks, the BLAS in
use, or on which centroids a bound allowed to skip.

Bounds: a row whose distance to its own centroid is below a lower bound of the distance to all others
keeps its label. From pass to pass the bound falls by the largest move of a centroid (Hamerly 2010); here
the centroids that moved most are compared with every row instead, in one product, so that the bound falls
by the largest move of the rest only.
"""

from typing import Any, NamedTuple

import numpy as np

from daskcurate.arrays import Array, namespace_of, to_host

SCORE_TILE = 1 << 19
"""Scores held at once where k is small: 2 MiB of float32, which stays in a core's cache."""
COLUMNS = 16384
"""Centroids scored at once; more are scored in turns."""
PAIRS = 4096
"""Pairs of a row and a centroid measured again at once."""
LOUD_SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of the centroids tried as those that are compared with every row."""
OWN_COST = 0.1
"""Work of a bounded pass besides its products, as a share of a pass without bounds."""


def tile_rows(n_clusters: int) -> int:
    """Return the rows of one tile of scores."""
    return max(256, min(1024, SCORE_TILE // max(1, n_clusters)))


def unit_rows(x: Array) -> Array:
    """Return the rows of ``x`` (m, d) scaled to unit length in float32; zero rows stay zero.

    Norms are taken in float64 row by row, so that equal rows stay equal wherever they stand.
    """
    xp = namespace_of(x)
    out = xp.empty(x.shape, dtype=np.float32)
    for start in range(0, x.shape[0], 4096):
        wide = x[start : start + 4096].astype(np.float64)
        norms = xp.sqrt((wide * wide).sum(axis=1))
        norms[norms == 0] = 1
        out[start : start + 4096] = wide / norms[:, None]
    return out


class Tile(NamedTuple):
    """Rows made ready for scoring."""

    rows: Array
    """(m, d) or (m, d + 1) float32: what is multiplied with the scorer's table."""
    squares: Array
    """(m,) float32: squared lengths; for the cosine metric plus 1, that of a centroid."""
    error: Array
    """(m,) float32: more than a score can be off by."""
    slack: Array
    """(m,) float32: more than ``squares - 2 score``, a squared distance, can be off by."""


class Scorer:
    """Scores whose largest entry in a row marks the nearest centroid: x.c - |c|^2 / 2.

    For L2 the rows and the centroids are first moved so that the centroids' mean lies at the origin:
    distances do not change, but float32 then rounds relative to the spread of the data and not to its
    distance from the origin. The -|c|^2 / 2 rides along as one more column of the product.
    """

    def __init__(self, centroids: Array, metric: str):
        xp = namespace_of(centroids)
        self.xp, self.metric, self.centroids = xp, metric, centroids
        k, d = centroids.shape
        halves = xp.zeros(1)
        if metric == "cosine":
            moved = self.table = xp.ascontiguousarray(centroids, dtype=np.float32)
        else:
            self.shift = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
            self.table = xp.empty((k, d + 1), dtype=np.float32)
            moved = self.table[:, :d]
            xp.subtract(centroids, self.shift, out=moved)
            halves = 0.5 * _squares64(moved)
            self.table[:, d] = -halves
        longest = float(xp.sqrt(_squares64(moved).max())) if k else 0.0
        # bounds are of distances, which order unit centroids alone as their cosines do
        self.bounded = metric != "cosine" or bool((abs(_squares64(moved) - 1) < 1e-6).all())
        self._rounding = np.float32((self.table.shape[1] + 8) * 2.0**-24)
        self._longest, self._largest = np.float32(longest), np.float32(halves.max() if k else 0.0)

    def tile(self, x: Array) -> Tile:
        """Return the rows ``x`` (m, d) made ready."""
        xp = self.xp
        if self.metric == "cosine":
            rows = x
            squares = xp.einsum("ij,ij->i", rows, rows)
        else:
            rows = xp.empty((x.shape[0], x.shape[1] + 1), dtype=np.float32)
            xp.subtract(x, self.shift, out=rows[:, :-1])
            rows[:, -1] = 1
            squares = xp.einsum("ij,ij->i", rows[:, :-1], rows[:, :-1])
        error = self._rounding * (xp.sqrt(squares) * self._longest + self._largest)
        slack = 4 * error + 2 * self._rounding * squares
        if self.metric == "cosine":
            squares = squares + np.float32(1)
            slack = slack + np.float32(4e-6)  # centroids are of unit length but for this
        return Tile(rows, squares, error, slack)

    def buffer(self, count: int) -> Array:
        """Return room for ``count`` rows made ready, for :meth:`gather`."""
        held = self.xp.empty((count, self.table.shape[1]), dtype=np.float32)
        if self.metric != "cosine":
            held[:, -1] = 1
        return held

    def gather(self, x: Array, rows: Array, held: Array) -> Array:
        """Return the given rows of ``x`` made ready for a product with the table, in ``held``."""
        out = held[: len(rows)]
        if self.metric == "cosine":
            self.xp.take(x, rows, axis=0, out=out)
        else:
            self.xp.subtract(x[rows], self.shift, out=out[:, :-1])
        return out

    def lower(self, tile: Tile, score: Array) -> Array:
        """Return a lower bound of the distance that belongs to a score."""
        square = self.xp.maximum(tile.squares - 2 * score - tile.slack, 0)
        return self.xp.sqrt(square) * np.float32(1 - 1e-6)

    def upper(self, tile: Tile, score: Array) -> Array:
        """Return an upper bound of the distance that belongs to a score."""
        square = self.xp.maximum(tile.squares - 2 * score + tile.slack, 0)
        return self.xp.sqrt(square) * np.float32(1 + 1e-6)

    def best_two(self, tile: Tile) -> tuple[Array, Array, Array]:
        """Return the best centroid of each row, its score, and the second best score, (m,) each."""
        xp, every = self.xp, self.xp.arange(tile.rows.shape[0])
        best = top = second = None
        for first in range(0, self.table.shape[0], COLUMNS):
            scores = xp.matmul(tile.rows, self.table[first : first + COLUMNS].T)
            at = scores.argmax(axis=1)
            value = scores[every, at]
            scores[every, at] = -np.inf
            other = scores.max(axis=1)
            if best is None:
                best, top, second = at, value, other
                continue
            second = xp.maximum(xp.minimum(top, value), xp.maximum(second, other))
            best = xp.where(value > top, at + first, best)
            top = xp.maximum(top, value)
        return best, top, second

    def settle(self, x: Array, tile: Tile, top: Array) -> Array:
        """Return the nearest centroids (m,) of rows whose best scores are too close to tell: in float64.

        ``tile`` is made of ``x``, and ``top`` holds its best scores.
        """
        xp, m = self.xp, x.shape[0]
        best = xp.full(m, -1, dtype=np.int64)
        value = xp.full(m, -np.inf)
        floor = (top - 2 * tile.error)[:, None]
        for first in range(0, self.table.shape[0], COLUMNS):
            scores = xp.matmul(tile.rows, self.table[first : first + COLUMNS].T)
            row, column = xp.nonzero(scores >= floor)
            for start in range(0, len(row), PAIRS):
                i, j = row[start : start + PAIRS], column[start : start + PAIRS] + first
                exact = self._exact(x[i], self.centroids[j])
                order = xp.lexsort(xp.stack([j.astype(np.float64), -exact, i.astype(np.float64)]))
                i, j, exact = i[order], j[order], exact[order]
                lead = xp.ones(len(i), dtype=bool)
                lead[1:] = i[1:] != i[:-1]
                i, j, exact = i[lead], j[lead], exact[lead]
                better = exact > value[i]
                value[i[better]], best[i[better]] = exact[better], j[better]
        return best

    def _exact(self, rows: Array, centroids: Array) -> Array:
        rows, centroids = rows.astype(np.float64), centroids.astype(np.float64)
        if self.metric == "cosine":
            return self.xp.einsum("ij,ij->i", rows, centroids)
        gap = rows - centroids
        return -self.xp.einsum("ij,ij->i", gap, gap)


def _squares64(x: Array) -> Array:
    """Return the squared lengths of rows in float64, a few at a time."""
    xp = namespace_of(x)
    parts = [xp.zeros(0)]
    for start in range(0, x.shape[0], 4096):
        wide = x[start : start + 4096].astype(np.float64)
        parts.append(xp.einsum("ij,ij->i", wide, wide))
    return xp.concatenate(parts)


class Assignment(NamedTuple):
    """The nearest centroid of each row, and how far the others are at least."""

    labels: Array
    """(m,) int32."""
    second: Array
    """(m,) float32: a lower bound of the L2 distance to every other centroid."""


def nearest(x: Array, centroids: Array, metric: str) -> Array:
    """Return the nearest centroid of each row, (m,) int32; among equally near ones the first.

    Parameters
    ----------
    x
        (m, d) float32; unit rows for ``cosine``.
    centroids
        (k, d) float32.
    metric
        ``l2`` or ``cosine``.
    """
    return assign(x, Scorer(centroids, metric)).labels


def assign(x: Array, scorer: Scorer) -> Assignment:
    """Return the nearest centroid of each row, with bounds for the next pass."""
    xp, m = scorer.xp, x.shape[0]
    labels, second = xp.empty(m, dtype=np.int32), xp.empty(m, dtype=np.float32)
    step = tile_rows(scorer.table.shape[0])
    for start in range(0, m, step):
        rows = x[start : start + step]
        tile = scorer.tile(rows)
        best, top, other = scorer.best_two(tile)
        close = xp.nonzero(other >= top - 2 * tile.error)[0]
        if len(close):
            best[close] = scorer.settle(rows[close], Tile(*(part[close] for part in tile)), top[close])
        labels[start : start + step] = best
        second[start : start + step] = scorer.lower(tile, other)
    return Assignment(labels, second)


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
    if not scorer.bounded:
        return assign(x, scorer)
    xp, m = scorer.xp, x.shape[0]
    step = tile_rows(scorer.table.shape[0])
    labels, second = before.labels.copy(), before.second.copy()
    own, upper = xp.empty(m, dtype=np.float32), xp.empty(m, dtype=np.float32)
    for start in range(0, m, step):
        tile = scorer.tile(x[start : start + step])
        score = xp.einsum("ij,ij->i", tile.rows, scorer.table[labels[start : start + step]])
        own[start : start + step], upper[start : start + step] = score, scorer.upper(tile, score)
    count = loud_count(to_host(second - upper), to_host(moves))
    if count is None:
        return assign(x, scorer)
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
        step = tile_rows(count)
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
    return Assignment(labels, second)


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


def own_distances(x: Array, centroids: Array, labels: Array, metric: str) -> Array:
    """Return each row's distance to its own centroid, (m,) float64, computed without cancellation.

    ``l2``: the L2 distance. ``cosine``: 1 - cos, as half the squared distance of the unit vectors. Rows
    with label -1 get NaN. The value depends on the row and its centroid alone, not on where it stands.
    """
    xp = namespace_of(x)
    out = xp.full(x.shape[0], np.nan)
    for start in range(0, x.shape[0], 1024):
        own = labels[start : start + 1024]
        rows = x[start : start + 1024].astype(np.float64)
        nearby = centroids[xp.maximum(own, 0)].astype(np.float64)  # all k in float64 may be too many
        if metric == "cosine":
            rows, nearby = _unit64(xp, rows), _unit64(xp, nearby)
        gap = rows - nearby
        square = (gap * gap).sum(axis=1)
        value = square / 2 if metric == "cosine" else xp.sqrt(square)
        out[start : start + 1024] = xp.where(own >= 0, value, np.nan)
    return out


def _unit64(xp: Any, rows: Array) -> Array:
    norms = xp.sqrt((rows * rows).sum(axis=1))
    norms[norms == 0] = 1
    return rows / norms[:, None]
