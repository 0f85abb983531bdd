"""Distances of rows to the centroids of their clusters, in float64."""

from typing import Any

import numpy as np

from daskcurate.arrays import Array, namespace_of, row_squares

DISTANCE_VALUES = 1 << 17
"""Numbers of rows that are measured at a time: 1 MiB of float64, which stays in a core's cache."""
DEVICE_DISTANCE_VALUES = 1 << 25
"""Likewise on a GPU, which starts few large kernels rather than many small ones."""


def own_distances(x: Array, centroids: Array, labels: Array, metric: str) -> Array:
    """Return each row's distance to its own centroid, (m,) float64, computed without cancellation.

    ``l2``: the L2 distance. ``cosine``: 1 - cos, as half the squared distance of the unit vectors. Rows
    with label -1 get NaN. The value depends on the row and its centroid alone, not on where it stands.
    """
    xp = namespace_of(x)
    out = xp.full(x.shape[0], np.nan)
    step = max(1, (DISTANCE_VALUES if xp is np else DEVICE_DISTANCE_VALUES) // max(1, x.shape[1]))
    for start in range(0, x.shape[0], step):
        own = labels[start : start + step]
        gap = x[start : start + step].astype(np.float64)
        nearby = centroids[xp.maximum(own, 0)]  # all k in float64 may be too many
        if metric == "cosine":
            gap, nearby = _scaled(xp, gap), _scaled(xp, nearby.astype(np.float64))
        gap -= nearby
        square = row_squares(gap)
        value = square / 2 if metric == "cosine" else xp.sqrt(square)
        out[start : start + step] = xp.where(own >= 0, value, np.nan)
    return out


def squared(distances: Array, metric: str) -> Array:
    """Return squared L2 distances from distances in the metric: of unit vectors |x - c|^2 = 2 (1 - cos)."""
    return 2 * distances if metric == "cosine" else distances * distances


def _scaled(xp: Any, rows: Array) -> Array:
    """Scale rows to unit length in place, and return them; zero rows stay zero."""
    norms = xp.sqrt(row_squares(rows))
    norms[norms == 0] = 1
    rows /= norms[:, None]
    return rows
