"""One Lloyd step of k-means as a (chunk, combine, finalize) triple, and the loop over it in memory.

The objective is the sum over rows of the squared L2 distance to the nearest centroid. Spherical k-means
(metric ``cosine``) is the same on unit rows with centroids re-normalised after every update. Sums are
accumulated in float64 whatever the dtype of the rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from daskcurate.arrays import Array, namespace_of, sparse_of, to_host

SCORE_TILE = 1 << 18
"""Scores held at once (rows of a tile times centroids): 1 MiB of float32, which stays in a core's cache."""


class Partial(NamedTuple):
    """What one chunk contributes to a Lloyd update."""

    sums: Array
    """(k, d) float64: sum of the rows of each cluster."""
    counts: Array
    """(k,) int64: rows of each cluster."""
    objective: float
    """Sum of squared distances to the nearest centroid, from float32 scores."""


def tile_rows(n_clusters: int) -> int:
    """Return the rows of one tile of scores: a function of k alone, so that results repeat bit for bit."""
    return max(32, min(1024, SCORE_TILE // max(1, n_clusters)))


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


class _Scorer:
    """Scores whose largest entry in a row marks the nearest centroid: x.c - |c|^2 / 2.

    For L2 the rows and the centroids are first moved so that the centroids' mean lies at the origin:
    distances do not change, but float32 then rounds relative to the spread of the data and not to its
    distance from the origin. The -|c|^2 / 2 rides along as one more column of the product.
    """

    def __init__(self, centroids: Array, metric: str):
        xp = namespace_of(centroids)
        self.xp, self.metric = xp, metric
        k, d = centroids.shape
        if metric == "cosine":
            self.table = xp.ascontiguousarray(centroids, dtype=np.float32)
            return
        wide = centroids.astype(np.float64)
        self.shift = wide.mean(axis=0).astype(np.float32)
        moved = centroids.astype(np.float32) - self.shift
        wide = moved.astype(np.float64)
        self.table = xp.empty((k, d + 1), dtype=np.float32)
        self.table[:, :d] = moved
        self.table[:, d] = -0.5 * (wide * wide).sum(axis=1)

    def scores(self, x: Array) -> tuple[Array, Array]:
        """Return (scores (m, k), moved rows (m, d)) of one tile of rows."""
        if self.metric == "cosine":
            return self.xp.matmul(x, self.table.T), x
        rows = self.xp.empty((x.shape[0], x.shape[1] + 1), dtype=np.float32)
        self.xp.subtract(x, self.shift, out=rows[:, :-1])
        rows[:, -1] = 1
        return self.xp.matmul(rows, self.table.T), rows[:, :-1]


def nearest(x: Array, centroids: Array, metric: str) -> tuple[Array, float]:
    """Return the nearest centroid of each row and the sum of squared distances to them.

    Parameters
    ----------
    x
        (m, d) float32; unit rows for ``cosine``.
    centroids
        (k, d) float32.
    metric
        ``l2`` or ``cosine``.

    Returns
    -------
    labels
        (m,) int32; among equally near centroids the first.
    objective
        The sum of squared L2 distances, accurate to float32 scores; for reporting use
        :func:`own_distances`.
    """
    xp = namespace_of(x)
    scorer = _Scorer(centroids, metric)
    labels = xp.empty(x.shape[0], dtype=np.int32)
    objective = 0.0
    step = tile_rows(centroids.shape[0])
    for start in range(0, x.shape[0], step):
        scores, rows = scorer.scores(x[start : start + step])
        best = scores.argmax(axis=1)
        labels[start : start + step] = best
        top = xp.take_along_axis(scores, best[:, None], axis=1)
        square = (rows * rows).sum(dtype=np.float64)
        bias = scores.shape[0] if metric == "cosine" else 0.0  # |c|^2 = 1 is not in the cosine scores
        objective += float(square + bias - 2 * top.sum(dtype=np.float64))
    return labels, max(objective, 0.0)


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


def segment_sums(x: Array, labels: Array, n_clusters: int) -> tuple[Array, Array]:
    """Return (sums (k, d) float64, counts (k,) int64) of the rows of each cluster; label -1 is left out.

    A product with the sparse (k, m) indicator matrix whose rows list their members in ascending order:
    the order of every sum is fixed, on the host and on a GPU.
    """
    xp, sparse = namespace_of(x), sparse_of(x)
    order = xp.argsort(labels, kind="stable")
    outside = int((labels < 0).sum())
    order = order[outside:]
    counts = xp.bincount(labels[order], minlength=n_clusters).astype(np.int64)
    starts = xp.zeros(n_clusters + 1, dtype=np.int64)
    xp.cumsum(counts, out=starts[1:])
    members = sparse.csr_matrix((xp.ones(order.shape[0]), order, starts), shape=(n_clusters, x.shape[0]))
    sums = xp.zeros((n_clusters, x.shape[1]))
    width = max(1, (1 << 22) // max(1, x.shape[0]))  # float64 copies of a few columns at a time
    for start in range(0, x.shape[1], width):
        sums[:, start : start + width] = members @ x[:, start : start + width].astype(np.float64)
    return sums, counts


def step_chunk(x: Array, centroids: Array, metric: str) -> Partial:
    """Return what the rows ``x`` (m, d) contribute to the update of ``centroids`` (k, d)."""
    labels, objective = nearest(x, centroids, metric)
    sums, counts = segment_sums(x, labels, centroids.shape[0])
    return Partial(sums, counts, objective)


def combine(partials: Sequence[Partial]) -> Partial:
    """Add partials up, in the order given."""
    sums, counts, objective = partials[0].sums.copy(), partials[0].counts.copy(), partials[0].objective
    for part in partials[1:]:
        sums += part.sums
        counts += part.counts
        objective += part.objective
    return Partial(sums, counts, objective)


def finalize(total: Partial, centroids: Array, metric: str) -> Array:
    """Return the updated centroids (k, d) float32; those of empty clusters are left as they were."""
    xp = namespace_of(centroids)
    weight = total.counts
    if metric == "cosine":
        weight = xp.sqrt((total.sums * total.sums).sum(axis=1))
    alive = (total.counts > 0) & (weight > 0)
    updated = total.sums / xp.where(alive, weight, 1)[:, None]
    return xp.where(alive[:, None], updated, centroids).astype(np.float32)


class Farthest(NamedTuple):
    """The rows of a chunk (or of all) that lie farthest from their centroids, farthest first."""

    distance: Array
    row: Array
    vectors: Array


def farthest_rows(x: Array, rows: Array, centroids: Array, metric: str, count: int) -> Farthest:
    """Return the ``count`` rows farthest from their nearest centroid, ties by row number."""
    labels, _ = nearest(x, centroids, metric)
    distance = own_distances(x, centroids, labels, metric)
    return merge_farthest([Farthest(distance, rows, x)], count)


def merge_farthest(parts: Sequence[Farthest], count: int) -> Farthest:
    """Return the ``count`` farthest of several, each distinct vector once and none at distance 0.

    A row at distance 0, or a second copy of a row, would make a centroid that wins no row of its own.
    """
    xp = namespace_of(parts[0].vectors)
    distance = xp.concatenate([part.distance for part in parts])
    row = xp.concatenate([part.row for part in parts])
    vectors = xp.concatenate([part.vectors for part in parts])
    order = xp.lexsort(xp.stack([row, -distance]))
    order = to_host(order[to_host(distance[order]) > 0])
    seen: set[bytes] = set()
    chosen: list[int] = []
    for i in order:
        if len(chosen) == count:
            break
        key = to_host(vectors[i]).tobytes()
        if key not in seen:
            seen.add(key)
            chosen.append(int(i))
    picked = xp.asarray(chosen, dtype=np.int64)
    return Farthest(distance[picked], row[picked], vectors[picked])


def reseed(centroids: Array, empty: Array, far: Farthest) -> Array:
    """Return the centroids with the empty clusters, in order, moved to the farthest rows."""
    moved = centroids.copy()
    used = empty[: far.vectors.shape[0]]
    moved[used] = far.vectors[: used.shape[0]]
    return moved


class Fit(NamedTuple):
    """Centroids found by Lloyd's algorithm."""

    centroids: Array
    n_updates: int
    objective: float


def fits_tol(previous: float | None, objective: float, tol: float | None) -> bool:
    """Return whether the relative fall of the objective is within ``tol``."""
    if tol is None or previous is None:
        return False
    return previous - objective <= tol * previous


def tree_combine(parts: Sequence[Partial], fan_in: int = 8) -> Partial:
    """Combine partials in the tree that the chunk numbers fix: groups of ``fan_in`` neighbours."""
    parts = list(parts)
    while len(parts) > 1:
        parts = [combine(parts[i : i + fan_in]) for i in range(0, len(parts), fan_in)]
    return parts[0]


def lloyd(
    blocks: Sequence[Array], centroids: Array, metric: str, n_iters: int, tol: float | None = None
) -> Fit:
    """Run Lloyd's algorithm on row blocks in memory, exactly as the distributed loop does.

    Parameters
    ----------
    blocks
        Arrays (m_i, d) float32; a block may be empty.
    centroids
        (k, d) float32, the seeds.
    metric, n_iters, tol
        See :class:`daskcurate.config.KMeansConfig`. The loop ends early where an update changes nothing:
        all later ones would change nothing either.
    """
    previous: float | None = None
    first_rows = np.cumsum([0] + [block.shape[0] for block in blocks])
    updates = 0
    for _ in range(n_iters):
        total = tree_combine([step_chunk(block, centroids, metric) for block in blocks])
        updated = finalize(total, centroids, metric)
        empty = to_host(total.counts == 0).nonzero()[0]
        if empty.size:
            far = merge_farthest(
                [
                    farthest_rows(block, _numbers(block, first), centroids, metric, empty.size)
                    for block, first in zip(blocks, first_rows[:-1], strict=True)
                ],
                empty.size,
            )
            updated = reseed(updated, empty, far)
        updates += 1
        same = bool((updated == centroids).all())
        centroids = updated
        if same or fits_tol(previous, total.objective, tol):
            break
        previous = total.objective
    return Fit(centroids, updates, previous if previous is not None else 0.0)


def _numbers(block: Array, first: int) -> Array:
    return namespace_of(block).arange(first, first + block.shape[0], dtype=np.int64)


def inertia_of(x: Array, centroids: Array, labels: Array, metric: str) -> float:
    """Return the sum of squared L2 distances to the own centroid, in float64 without cancellation."""
    distance = own_distances(x, centroids, labels, metric)
    distance = distance[labels >= 0]
    square = 2 * distance if metric == "cosine" else distance * distance
    return float(square.sum())
