"""One Lloyd step of k-means as a (chunk, combine, finalize) triple.

The objective is the sum over rows of the squared L2 distance to the nearest centroid. Spherical k-means
(metric ``cosine``) is the same on unit rows with centroids re-normalised after every update. Sums are
accumulated in float64 whatever the dtype of the rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sparse

from daskcurate.arrays import Array, launch, namespace_of, row_dots, row_squares, to_host
from daskcurate.kernels.assign import Assignment, Scorer, assign, unit_rows
from daskcurate.kernels.bounded import reassign
from daskcurate.kernels.distances import own_distances, squared

OVER_RELAXATION = 1.7
"""How far updates go that are not to be Lloyd's: 1 is to the mean, further converges in fewer passes; below 2 the
objective of the given assignment falls all the same."""

MOMENTUM = 0.8
"""Share of its last move that a centroid goes on, where updates are accelerated."""


class Partial(NamedTuple):
    """What one chunk contributes to a Lloyd update."""

    sums: Array
    """(k, d) float64: sum of the rows of each cluster."""
    counts: Array
    """(k,) int64: rows of each cluster."""
    squares: float
    """Sum of the squared lengths of the rows."""


class Last(NamedTuple):
    """What a chunk remembers of a pass, to do less in the next."""

    assignment: Assignment
    partial: Partial | None
    """None where the sums were not worth remembering."""


def segment_sums(
    x: Array,
    labels: Array,
    n_clusters: int,
    before: tuple[Array, Partial] | None = None,
    dtype: Any = np.float64,
    *,
    reuse: bool = False,
) -> tuple[Array, Array]:
    """Return (sums (k, d) float64, counts (k,) int64) of the rows of each cluster; label -1 is left out.

    A product with the sparse (k, m) indicator matrix whose rows list their members in ascending order; on a GPU
    a kernel of our own, because that of cuSPARSE does not promise an order. So the order of every sum is fixed.

    Parameters
    ----------
    before
        Other labels of the same rows with their sums: only clusters whose members changed are added up
        again, to the same bits.
    dtype
        What the rows of a cluster are added up in; float32 is enough for a pass that is not exact anyhow,
        where a block has some tens of rows a cluster.
    reuse
        Whether the sums of ``before`` are overwritten, not copied.
    """
    xp = namespace_of(x)
    order = xp.argsort(labels, kind="stable")
    order = order[int((labels < 0).sum()) :]
    counts = xp.bincount(labels[order], minlength=n_clusters).astype(np.int64)
    if xp is not np:
        return _device_sums(x, order, counts), counts
    if before is None:
        sums = xp.zeros((n_clusters, x.shape[1]))
        touched = slice(None)
        ends = xp.cumsum(counts)
    else:
        old_labels, old = before
        sums = old.sums if reuse else old.sums.copy()
        moved = xp.nonzero(labels != old_labels)[0]
        touched = xp.unique(xp.concatenate([labels[moved], old_labels[moved]]))
        touched = touched[touched >= 0]
        if not len(touched):
            return sums, counts
        is_touched = xp.zeros(n_clusters + 1, dtype=bool)
        is_touched[touched] = True
        order = order[is_touched[labels[order]]]
        ends = xp.cumsum(counts[touched])
    starts = xp.concatenate([xp.zeros(1, dtype=np.int64), ends])
    if 2 * len(order) < x.shape[0]:  # few rows: those alone are widened
        x, order = x[order], xp.arange(len(order))
    shape = (len(starts) - 1, x.shape[0])
    members = sparse.csr_matrix((xp.ones(order.shape[0], dtype=dtype), order, starts), shape=shape)
    width = max(1, (1 << 22) // max(1, x.shape[0]))  # float64 copies of a few columns at a time
    width = x.shape[1] if x.dtype == dtype else width
    for start in range(0, x.shape[1], width):
        columns = slice(start, start + width)
        sums[touched, columns] = members @ x[:, columns].astype(dtype, copy=False)
    return sums, counts


def _device_sums(x: Array, order: Array, counts: Array) -> Array:
    """Return the sums (k, d) float64 of the rows that ``order`` lists, ``counts`` (k,) of them a cluster."""
    xp = namespace_of(x)
    rows = xp.ascontiguousarray(x, dtype=np.float32)
    starts = xp.concatenate([xp.zeros(1, dtype=np.int64), xp.cumsum(counts)])
    k, d = len(counts), rows.shape[1]
    sums = xp.zeros((k, d))
    if k and d:
        launch(xp, "segment_sums", (k, -(-d // 128)), 128, rows, order, starts, np.int64(d), sums)
    return sums


def step_chunk(
    x: Array,
    scorer: Scorer,
    last: Last | None = None,
    moves: Array | None = None,
) -> Last:
    """Return what the rows ``x`` (m, d) contribute to the update of the scorer's centroids.

    Parameters
    ----------
    last
        What the call of the last pass returned for the same rows; None: everything is computed anew. The
        result is the same to the bit.
    moves
        (k,) float64: how far each centroid has moved since.
    """
    k = scorer.centroids.shape[0]
    if last is None or moves is None:
        assignment = assign(x, scorer)
        sums, counts = segment_sums(x, assignment.labels, k)
        return Last(assignment, Partial(sums, counts, sum_of_squares(x)))
    assignment = reassign(x, scorer, last.assignment, moves)
    if last.partial is None:
        sums, counts = segment_sums(x, assignment.labels, k)
        return Last(assignment, Partial(sums, counts, sum_of_squares(x)))
    sums, counts = segment_sums(x, assignment.labels, k, (last.assignment.labels, last.partial))
    return Last(assignment, Partial(sums, counts, last.partial.squares))


def sum_of_squares(x: Array) -> float:
    """Return the sum of the squared lengths of rows, in float64."""
    total = 0.0
    for start in range(0, x.shape[0], 4096):
        wide = x[start : start + 4096].astype(np.float64).ravel()
        total += float(wide @ wide)
    return total


def combine(partials: Sequence[Partial]) -> Partial:
    """Add partials up, in the order given."""
    sums, counts, squares = partials[0].sums.copy(), partials[0].counts.copy(), partials[0].squares
    for part in partials[1:]:
        sums += part.sums
        counts += part.counts
        squares += part.squares
    return Partial(sums, counts, squares)


def objective_of(total: Partial, centroids: Array) -> float:
    """Return the sum of squared L2 distances of rows to ``centroids`` (k, d), from the sums of the rows."""
    objective = total.squares
    for start in range(0, centroids.shape[0], 4096):
        wide = centroids[start : start + 4096].astype(np.float64)
        lengths = row_dots(wide, wide)
        cross = row_dots(wide, total.sums[start : start + 4096])
        objective += float((total.counts[start : start + 4096] * lengths - 2 * cross).sum())
    return max(objective, 0.0)


def moves_of(before: Array, after: Array) -> Array:
    """Return how far each centroid has moved, (k,) float64."""
    xp = namespace_of(after)
    out = xp.empty(after.shape[0])
    for start in range(0, after.shape[0], 4096):
        stop = start + 4096
        gap = after[start:stop].astype(np.float64) - before[start:stop].astype(np.float64)
        out[start:stop] = xp.sqrt(row_dots(gap, gap))
    return out


def finalize(total: Partial, centroids: Array, metric: str, step: float = 1.0) -> Array:
    """Return the updated centroids (k, d) float32; those of empty clusters are left as they were.

    Parameters
    ----------
    step
        1: the means. In (1, 2): as many times as far (over-relaxation); for L2 the objective of the
        given assignment falls all the same.
    """
    xp = namespace_of(centroids)
    weight = total.counts
    if metric == "cosine":
        weight = xp.sqrt(row_squares(total.sums))
    alive = (total.counts > 0) & (weight > 0)
    updated = total.sums / xp.where(alive, weight, 1)[:, None]
    if step != 1:
        updated = centroids + step * (updated - centroids)
        if metric == "cosine":
            length = xp.sqrt(row_squares(updated))
            alive &= length > 0
            updated /= xp.where(alive, length, 1)[:, None]
    return xp.where(alive[:, None], updated, centroids).astype(np.float32)


def accelerated(total: Partial, centroids: Array, before: Array, metric: str) -> Array:
    """Return centroids (k, d) float32 that moved beyond the means of their rows, with a share of their last move.

    That is the heavy-ball method (Polyak 1964). In passes over embeddings it does not only converge faster, it gets
    past poor solutions as well.

    Parameters
    ----------
    before
        (k, d) float32: the centroids of the last pass.
    """
    updated = finalize(total, centroids, metric, OVER_RELAXATION)
    alive = (total.counts > 0)[:, None]
    updated += namespace_of(centroids).where(
        alive, np.float32(MOMENTUM) * (centroids - before), np.float32(0)
    )
    return unit_rows(updated) if metric == "cosine" else updated


class Farthest(NamedTuple):
    """The rows of a chunk (or of all) that lie farthest from their centroids, farthest first."""

    distance: Array
    row: Array
    vectors: Array


def farthest_rows(distances: Array, numbers: Array, x: Array, count: int) -> Farthest:
    """Return the ``count`` farthest of the rows ``x`` (m, d), as :func:`merge_farthest` does: little of a block."""
    return merge_farthest([Farthest(distances, numbers, x)], count)


def merge_farthest(parts: Sequence[Farthest], count: int) -> Farthest:
    """Return the ``count`` farthest of several, ties by row, each distinct vector once and none at distance 0.

    A row at distance 0, or a second copy of a row, would make a centroid that wins no row of its own.
    """
    xp = namespace_of(parts[0].vectors)
    distance = xp.concatenate([part.distance for part in parts])
    row = xp.concatenate([part.row for part in parts])
    vectors = xp.concatenate([part.vectors for part in parts])
    order = xp.lexsort(xp.stack([row, -distance]))
    order = to_host(order)[to_host(distance[order]) > 0]
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
    used = namespace_of(centroids).asarray(empty[: far.vectors.shape[0]])
    moved[used] = far.vectors[: used.shape[0]]
    return moved


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


def inertia_of(x: Array, centroids: Array, labels: Array, metric: str) -> float:
    """Return the sum of squared L2 distances to the own centroid, in float64 without cancellation."""
    distance = own_distances(x, centroids, labels, metric)
    return float(squared(distance[labels >= 0], metric).sum())
