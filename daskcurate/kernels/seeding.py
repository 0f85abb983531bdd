"""Seeds for k-means: greedy k-means++ (Arthur & Vassilvitskii 2007) and k-means|| (Bahmani et al. 2012)."""

import math

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
    out *= -2
    out += squares[None, :]
    out += lengths[:, None]
    floor = 4e-7 * (squares[None, :] + lengths[:, None])
    out[out < floor] = 0
    return out


def centered(x: Array) -> Array:
    """Return the rows moved to their mean, float32: distances stay, rounding shrinks."""
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    return x - mean


def kmeans_plusplus(x: Array, k: int, rng: np.random.Generator, weights: Array | None = None) -> np.ndarray:
    """Return the row numbers (k,) of greedy k-means++ seeds.

    Each seed is the best of 2 + int(ln k) candidates, drawn with probability proportional to weight times
    squared distance to the nearest seed so far; best leaves the smallest sum. When no row is left at a
    positive distance, the rest are drawn uniformly from the rows not yet taken.

    Parameters
    ----------
    x
        (m, d) float32, m >= k.
    weights
        (m,) non-negative, or None for ones.
    """
    xp = namespace_of(x)
    m = x.shape[0]
    x = centered(x)
    squares = (x * x).sum(axis=1)
    weight = xp.ones(m, dtype=np.float32) if weights is None else xp.asarray(weights, dtype=np.float64)
    trials = 2 + int(math.log(k))
    seeds = np.empty(k, dtype=np.int64)
    seeds[0] = _draw(weight, 1, rng)[0]
    near = squared_distances(x, squares, x[seeds[:1]])[0]
    for i in range(1, k):
        mass = weight * near
        if not bool((mass > 0).any()):
            seeds[i:] = _fill(m, seeds[:i], k - i, rng)
            break
        candidates = _draw(mass, trials, rng)
        options = xp.minimum(squared_distances(x, squares, x[candidates]), near)
        best = int((options @ weight).argmin())
        seeds[i], near = candidates[best], options[best]
    return seeds


def _draw(mass: Array, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``count`` indices with probability proportional to ``mass``."""
    total = mass.cumsum(dtype=np.float64)
    at = rng.random(count) * float(total[-1])
    xp = namespace_of(mass)
    found = to_host(xp.searchsorted(total, xp.asarray(at), side="right"))
    last = int(to_host(mass.nonzero()[0][-1]))  # rounding may put a draw behind the last positive mass
    return np.minimum(found, last)


def _fill(m: int, taken: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    left = np.setdiff1d(np.arange(m), taken)
    return rng.permutation(left)[:count]


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
