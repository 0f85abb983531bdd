"""Distances between centroids."""

import numpy as np

from daskcurate.arrays import Array, namespace_of
from daskcurate.kernels.assign import unit_rows


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
    for first in range(start, stop, 256):
        last = min(first + 256, stop)
        similarity = unit[first:last] @ unit.T
        similarity[xp.arange(last - first), xp.arange(first, last)] = -np.inf
        near = xp.argpartition(-similarity, count - 1, axis=1)[:, :count]
        # the few that count are measured again without the float32 product's rounding
        gap = unit[first:last, None, :].astype(np.float64) - unit[near].astype(np.float64)
        out[first - start : last - start] = (gap * gap).sum(axis=2).mean(axis=1) / 2
    return out
