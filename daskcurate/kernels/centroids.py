"""Distances between centroids."""

import numpy as np

from daskcurate.arrays import Array, namespace_of
from daskcurate.kernels.assign import unit_rows

TILE_ROWS = 256
"""Centroids that are multiplied with all at once."""
PIECE_BYTES = 16 << 20
"""Memory for finding and measuring the nearest of some of these."""


def nearest_bytes(k: int, d: int, n_neighbors: int) -> int:
    """Return the memory that :func:`mean_nearest_cosine` of k centroids of width ``d`` takes besides these."""
    return 4 * k * d + 4 * min(k, TILE_ROWS) * k + max(PIECE_BYTES, _row_bytes(k, d, n_neighbors))


def _row_bytes(k: int, d: int, count: int) -> int:
    """Return the bytes that finding and measuring the ``count`` nearest others of one centroid takes."""
    # scores with the other sign, and the order of their numbers; rows gathered, in float64, gaps, their squares
    return k * (4 + 8) + min(count, k) * d * (4 + 3 * 8)


def mean_nearest_cosine(centroids: Array, start: int, stop: int, n_neighbors: int) -> Array:
    """Return the mean cos distance of centroids [start, stop) to their nearest others.

    Parameters
    ----------
    centroids
        (k, d) float32.
    n_neighbors
        l; min(l, k - 1) others count. A centroid leaves itself out by its number, not as the nearest one:
        a copy of it counts at distance 0.

    Returns
    -------
    array
        (stop - start,) float64; 0 where there is no other centroid.
    """
    xp = namespace_of(centroids)
    k = centroids.shape[0]
    count = min(n_neighbors, k - 1)
    if count < 1:
        return xp.zeros(stop - start)
    unit = unit_rows(centroids)
    out = xp.empty(stop - start)
    step = max(1, PIECE_BYTES // _row_bytes(k, centroids.shape[1], count))
    for first in range(start, stop, TILE_ROWS):
        last = min(first + TILE_ROWS, stop)
        similarity = unit[first:last] @ unit.T
        similarity[xp.arange(last - first), xp.arange(first, last)] = -np.inf
        for at in range(first, last, step):
            end = min(at + step, last)
            near = xp.argpartition(-similarity[at - first : end - first], count - 1, axis=1)[:, :count]
            # the few that count are measured again without the float32 product's rounding
            gap = unit[at:end, None, :].astype(np.float64) - unit[near].astype(np.float64)
            out[at - start : end - start] = (gap * gap).sum(axis=2).mean(axis=1) / 2
    return out
