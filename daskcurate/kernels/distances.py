"""Distances of rows to the centroids of their clusters, in float64."""

from typing import Any

import numpy as np

from daskcurate.arrays import Array, namespace_of, row_squares

DISTANCE_ROWS = 1024
"""Rows that are measured at a time."""


def own_distances(x: Array, centroids: Array, labels: Array, metric: str) -> Array:
    """Return each row's distance to its own centroid, (m,) float64, computed without cancellation.

    ``l2``: the L2 distance. ``cosine``: 1 - cos, as half the squared distance of the unit vectors. Rows
    with label -1 get NaN. The value depends on the row and its centroid alone, not on where it stands.
    """
    xp = namespace_of(x)
    out = xp.full(x.shape[0], np.nan)
    for start in range(0, x.shape[0], DISTANCE_ROWS):
        own = labels[start : start + DISTANCE_ROWS]
        rows = x[start : start + DISTANCE_ROWS].astype(np.float64)
        nearby = centroids[xp.maximum(own, 0)].astype(np.float64)  # all k in float64 may be too many
        if metric == "cosine":
            rows, nearby = _unit64(xp, rows), _unit64(xp, nearby)
        gap = rows - nearby
        square = row_squares(gap)
        value = square / 2 if metric == "cosine" else xp.sqrt(square)
        out[start : start + DISTANCE_ROWS] = xp.where(own >= 0, value, np.nan)
    return out


def squared(distances: Array, metric: str) -> Array:
    """Return squared L2 distances from distances in the metric: of unit vectors |x - c|^2 = 2 (1 - cos)."""
    return 2 * distances if metric == "cosine" else distances * distances


def _unit64(xp: Any, rows: Array) -> Array:
    norms = xp.sqrt(row_squares(rows))
    norms[norms == 0] = 1
    return rows / norms[:, None]
