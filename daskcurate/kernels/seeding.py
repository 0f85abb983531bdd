"""Seeds for k-means: greedy k-means++ (Arthur & Vassilvitskii 2007) and k-means|| (Bahmani et al. 2012)."""

import math

import numpy as np

from daskcurate.arrays import Array, namespace_of, to_host

OVERSAMPLING_ROUNDS = 5
"""Rounds of k-means||; the paper finds five enough."""
BATCH_DISTANCES = 4 << 20
"""Distances of one batch of k-means++ candidates to all rows: 16 MiB of float32."""


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


def centered(x: Array) -> Array:
    """Return the rows moved to their mean, float32: distances stay, rounding shrinks."""
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    return x - mean


def trials(k: int) -> int:
    """Return the candidates that greedy k-means++ draws for each of k seeds."""
    return 2 + int(math.log(max(k, 1)))


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
    count = trials(k)
    candidates = _Candidates(x, squares, rng)
    seeds = np.empty(k, dtype=np.int64)
    seeds[0] = _draw(weight, 1, rng)[0]
    near = squared_distances(x, squares, x[int(seeds[0])][None])[0]
    for i in range(1, k):
        mass = near if weights is None else weight * near
        drawn = candidates.draw(mass, count, batch=count * max(1, i // 4))
        if drawn is None:
            seeds[i:] = _fill(m, seeds[:i], k - i, rng)
            break
        rows, distances = drawn
        options = xp.minimum(distances, near)
        best = int((options @ weight).argmin())
        seeds[i], near = rows[best], options[best]
    return seeds


class _Candidates:
    """Rows drawn in proportion to a mass that only ever falls, many at a time.

    One matrix product for a batch of candidates is several times faster than one for each seed's few. A
    batch is drawn by the mass of its time; when a candidate is used, it is accepted with the ratio of its
    mass now to its mass then, which makes it an exact draw by the mass of now (rejection sampling).
    """

    def __init__(self, x: Array, squares: Array, rng: np.random.Generator):
        self.x, self.squares, self.rng = x, squares, rng
        self.limit = max(16, BATCH_DISTANCES // max(1, x.shape[0]))
        self.rows = np.empty(0, dtype=np.int64)
        self.used = 0

    def draw(self, mass: Array, count: int, batch: int) -> tuple[list[int], Array] | None:
        """Return ``count`` rows and their squared distances (count, m) to all; None where no mass is left."""
        rows: list[int] = []
        distances: list[Array] = []
        while len(rows) < count:
            if self.used == len(self.rows):
                if not bool((mass > 0).any()):
                    return None
                self._refill(mass, max(count, min(batch, self.limit)))
            at = self.used
            self.used += 1
            row = int(self.rows[at])
            if self.chance[at] * self.mass[at] < float(mass[row]):
                rows.append(row)
                distances.append(self.distances[at])
        return rows, namespace_of(mass).stack(distances)

    def _refill(self, mass: Array, size: int) -> None:
        self.rows = _draw(mass, size, self.rng)
        rows = namespace_of(mass).asarray(self.rows)
        self.mass = to_host(mass[rows]).astype(np.float64)
        self.chance = self.rng.random(size)
        self.distances = squared_distances(self.x, self.squares, self.x[rows])
        self.used = 0


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
