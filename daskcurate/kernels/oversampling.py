"""Candidates for seeds, many at a time: the kernels of k-means|| (Bahmani et al. 2012)."""

import numpy as np

from daskcurate.arrays import Array, namespace_of, to_host

OVERSAMPLING_ROUNDS = 5
"""Rounds of k-means||; the paper finds five enough."""


def squared_distances(x: Array, squares: Array, centers: Array) -> Array:
    """Return (c, m) float32 squared distances of the rows ``x`` (m, d) to ``centers`` (c, d).

    ``squares`` are the rows' squared lengths. What lies within float32's rounding of zero is zero, so
    that a copy of a center is never drawn as another one.
    """
    xp = namespace_of(x)
    lengths = (centers * centers).sum(axis=1)
    out = xp.matmul(centers, x.T)
    floor = 4e-7 * squares
    for row, length in zip(out, lengths, strict=True):  # row by row: the passes then stay in cache
        row *= -2
        row += squares
        row += length
        row *= row > floor + 4e-7 * length
    return out


def oversample(near: Array, uniform: Array, total: float, rate: float) -> np.ndarray:
    """Return the positions that a round of k-means|| takes: each with probability rate * near / total.

    Parameters
    ----------
    near
        (m,) squared distances to the nearest candidate so far.
    uniform
        (m,) draws in [0, 1), keyed by row.
    """
    return to_host((uniform * total < rate * near.astype(np.float64)).nonzero()[0])


def nearer(x: Array, near: Array | None, centers: Array) -> Array:
    """Return (m,) squared distances to the nearest of ``centers`` and of those before (``near``)."""
    xp = namespace_of(x)
    squares = (x * x).sum(axis=1)
    best = xp.full(x.shape[0], np.inf, dtype=np.float32) if near is None else near
    for start in range(0, centers.shape[0], 64):
        step = squared_distances(x, squares, centers[start : start + 64]).min(axis=0)
        best = xp.minimum(best, step)
    return best
