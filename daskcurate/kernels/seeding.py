"""Seeds for k-means: greedy k-means++ (Arthur & Vassilvitskii 2007) and k-means|| (Bahmani et al. 2012)."""

import math
from typing import Any, NamedTuple

import numpy as np

from daskcurate.arrays import Array, namespace_of, to_host
from daskcurate.kernels.assign import nearest
from daskcurate.kernels.lloyd import lloyd
from daskcurate.kernels.threads import spread

OVERSAMPLING_ROUNDS = 5
"""Rounds of k-means||; the paper finds five enough."""
BATCH_DISTANCES = 4 << 20
"""Distances of one batch of k-means++ candidates: 16 MiB of float32."""
DEVICE_BATCH_DISTANCES = 1 << 27
"""Likewise on a GPU: 512 MiB."""
PIECE = 8192
"""Rows that one thread works on at a time."""
DEVICE_PIECE = 1 << 20
"""Likewise on a GPU, which starts few large kernels rather than many small ones."""
GROUPED_SEEDS, GROUPED_ROWS = 100, 4096
"""From so many seeds and rows on, candidates are compared with the rows of near groups only."""
NEAR_GROUPS = 8
"""Groups, of sqrt(k), that a candidate is compared with (24 000 rows of texts, k = 2000, ten Lloyd updates: 4 of them
cost 0.2 % of inertia, 6 and more below 0.1 %) ..."""
FIRST_GROUPS = 8
"""... and more while there are few seeds: this many times the groups over the seeds."""
GROUP_ROWS, GROUP_UPDATES = 64, 4
"""Groups are found by so many Lloyd updates on so many rows for each."""


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


def trials(k: int) -> int:
    """Return the candidates that greedy k-means++ draws for each of k seeds."""
    return 2 + int(math.log(max(k, 1)))


def operations(m: int, d: int, k: int) -> float:
    """Return the operations of :func:`kmeans_plusplus` for k seeds of m rows of width d, about."""
    compared = float(trials(k))
    if is_grouped(m, k):
        compared = 1 + compared * min(1.0, NEAR_GROUPS / _group_count(k))
    return 2 * m * d * k * compared


def is_grouped(m: int, k: int) -> bool:
    """Return whether candidates are compared with the rows near them only."""
    return k >= GROUPED_SEEDS and m >= GROUPED_ROWS


def _group_count(k: int) -> int:
    return round(math.sqrt(k))


def kmeans_plusplus(x: Array, k: int, rng: np.random.Generator, weights: Array | None = None) -> np.ndarray:
    """Return the row numbers (k,) of greedy k-means++ seeds.

    Each seed is the best of 2 + int(ln k) candidates, drawn with probability proportional to weight times
    squared distance to the nearest seed so far; best leaves the smallest sum. When no row is left at a
    positive distance, the rest are drawn uniformly from the rows not yet taken.

    Where there are many rows and seeds, what a candidate gains is summed over the groups of rows nearest to
    it only: others gain next to nothing from it. The distances to the seeds themselves, and so the
    probabilities, are those of all rows.

    Parameters
    ----------
    x
        (m, d) float32, m >= k.
    weights
        (m,) non-negative, or None for ones.
    """
    m = x.shape[0]
    field = _Field(x, k, rng, weights)
    count = trials(k)
    seeds = np.empty(k, dtype=np.int64)
    seeds[0] = _draw(field.mass(), 1, rng)[0]
    field.add(seeds[:1])
    candidates = _Candidates(field, rng)
    for i in range(1, k):
        drawn = candidates.draw(count, i)
        if drawn is None:
            seeds[i:] = _fill(m, seeds[:i], k - i, rng)
            break
        best = drawn[int(np.argmax(field.gains(drawn)))]
        seeds[i] = best.row
        field.take(best)
    return seeds if field.order is None else field.order[seeds]


class _Drawn(NamedTuple):
    """A row that was drawn as a candidate, and the scores of the groups of rows near it."""

    row: int
    groups: Array | None
    """None: all rows, in one piece."""
    scores: list[Array]


class _Field:
    """Rows, how near the nearest seed of each is, and groups of rows that lie together.

    A score is x.c - |c|^2 / 2 of a row and a seed, the largest that of the nearest seed: a squared distance is
    |x|^2 less twice the score.
    """

    def __init__(self, x: Array, k: int, rng: np.random.Generator, weights: Array | None):
        xp = self.xp = namespace_of(x)
        m, d = x.shape
        mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.order, self.bounds, self.centers = None, np.array([0, m]), None
        if xp is np and is_grouped(m, k):  # a GPU is faster with large products than with few operations
            self.order, self.bounds, centers = _groups(x, k, rng)
            self.centers = np.concatenate([(centers - mean).T, np.zeros((1, len(centers)), np.float32)])
            self.centers[-1] = -0.5 * (self.centers[:-1] ** 2).sum(axis=0)
        edges = zip(self.bounds[:-1], self.bounds[1:], strict=True)
        self.numbers = [np.arange(*edge) for edge in edges]  # of the rows of each group
        self.rows = xp.ones((m, d + 1), dtype=np.float32)  # the last column adds -|c|^2 / 2 to a product
        step = PIECE if xp is np else DEVICE_PIECE
        self.pieces = [(i, min(i + step, m)) for i in range(0, m, step)]
        self.squares = xp.empty(m, dtype=np.float32)
        spread(lambda piece: self._load(x, mean, *piece), self.pieces)
        self.weights = None
        if weights is not None:
            weights = xp.asarray(weights, dtype=np.float64)
            self.weights = weights if self.order is None else weights[self.order]
        self.best = xp.full(m, -np.inf, dtype=np.float32)
        self.near = xp.ones(m, dtype=np.float32)
        self.pending: list[int] = []

    def _load(self, x: Array, mean: Array, start: int, stop: int) -> None:
        rows = x[start:stop] if self.order is None else x[self.order[start:stop]]
        out = self.rows[start:stop, :-1]
        self.xp.subtract(rows, mean, out=out)
        self.squares[start:stop] = self.xp.einsum("ij,ij->i", out, out)

    def mass(self) -> Array:
        """Return what rows are drawn in proportion to, (m,)."""
        return self.near if self.weights is None else self.weights * self.near

    def masses(self, rows: Any) -> np.ndarray:
        """Return the squared distances (c,) float64 of rows to the nearest seed of each, on the host."""
        return to_host(self.near[self.xp.asarray(rows)]).astype(np.float64)

    def table(self, rows: np.ndarray) -> Array:
        """Return the vectors (c, d + 1) that rows are multiplied with for their scores."""
        at = self.xp.asarray(rows)
        table = self.rows[at]
        table[:, -1] = -0.5 * self.squares[at]
        return table

    def add(self, seeds: np.ndarray) -> None:
        """Compare all rows with new seeds."""
        table = self.table(seeds)

        def piece(bounds: tuple[int, int]) -> None:
            start, stop = bounds
            scores = self.xp.matmul(self.rows[start:stop], table.T).max(axis=1)
            self._raise(slice(start, stop), scores)

        spread(piece, self.pieces)

    def settle(self) -> None:
        """Compare all rows with the seeds that only near ones have been compared with."""
        if self.pending:
            self.add(np.array(self.pending))
            self.pending = []

    def _raise(self, near: Any, scores: Array) -> None:
        best = self.xp.maximum(self.best[near], scores)
        self.best[near] = best
        squares = self.squares[near]
        distance = squares - 2 * best
        # within rounding of zero is zero, so that a copy of a seed is never drawn
        distance *= distance > 8e-7 * squares
        self.near[near] = distance

    def gains(self, drawn: list[_Drawn]) -> np.ndarray:
        """Return half of what the sum of squared distances would fall by with each candidate."""
        if self.xp is not np:  # together: to ask for one number after another would take longer than the work
            gain = self.xp.stack([found.scores[0] for found in drawn])
            gain -= self.best
            self.xp.maximum(gain, 0, out=gain)
            return to_host(gain.sum(axis=1) if self.weights is None else gain @ self.weights)
        if any(found.groups is None for found in drawn):
            return np.array([self._gain(found) for found in drawn])
        # in one go: the calls would take longer than the work
        near = np.concatenate([self.numbers[g] for found in drawn for g in found.groups])  # type: ignore[union-attr]
        gain = np.concatenate([part for found in drawn for part in found.scores])
        lengths = [sum(len(part) for part in found.scores) for found in drawn]
        gain -= self.best.take(near)
        np.maximum(gain, 0, out=gain)
        if self.weights is not None:
            gain = gain * self.weights.take(near)
        return np.add.reduceat(gain, np.cumsum([0, *lengths[:-1]]))

    def _gain(self, found: _Drawn) -> float:
        near, scores = self._compared(found)
        gain = scores - self.best[near]
        np.maximum(gain, 0, out=gain)
        return float(gain.sum() if self.weights is None else gain @ self.weights[near])

    def _compared(self, found: _Drawn) -> tuple[Any, Array]:
        """Return which rows a candidate is compared with, and their scores."""
        if found.groups is None:
            return slice(None), found.scores[0]
        return np.concatenate([self.numbers[g] for g in found.groups]), np.concatenate(found.scores)

    def take(self, found: _Drawn) -> None:
        """Make a candidate a seed."""
        self._raise(*self._compared(found))
        if found.groups is not None:
            self.pending.append(found.row)

    def share(self, seeds: int) -> float:
        """Return the fraction of the rows that candidates are compared with when there are ``seeds`` seeds."""
        return min(1.0, self._reach(seeds) / (len(self.bounds) - 1))

    def _reach(self, seeds: int) -> int:
        n_groups = len(self.bounds) - 1  # a seed of few is near to many rows
        return min(n_groups, max(NEAR_GROUPS, -(-FIRST_GROUPS * n_groups // seeds)))

    def drawn(self, rows: np.ndarray, seeds: int) -> list[_Drawn]:
        """Return rows that were drawn, with their scores."""
        table, reach, n_groups = self.table(rows), self._reach(seeds), len(self.bounds) - 1
        if reach == n_groups:
            out = self.xp.empty((len(rows), self.rows.shape[0]), dtype=np.float32)

            def piece(bounds: tuple[int, int]) -> None:
                out[:, slice(*bounds)] = self.xp.matmul(table, self.rows[slice(*bounds)].T)

            spread(piece, self.pieces)
            return [_Drawn(int(row), None, [out[i]]) for i, row in enumerate(rows)]
        assert self.centers is not None
        closeness = table[:, :-1] @ self.centers[:-1] + self.centers[-1]
        near = np.sort(np.argpartition(-closeness, reach - 1, axis=1)[:, :reach], axis=1)
        scores: list[list[Any]] = [[None] * reach for _ in rows]

        def group(g: int) -> None:
            which, place = np.nonzero(near == g)
            if len(which):
                found = np.matmul(table[which], self.rows[self.bounds[g] : self.bounds[g + 1]].T)
                for i, j, part in zip(which, place, found, strict=True):
                    scores[i][j] = part

        spread(group, range(n_groups))
        return [_Drawn(int(row), *found) for row, *found in zip(rows, near, scores, strict=True)]


def _groups(x: np.ndarray, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (order of the rows by group, first row of each group and the end, centres of the groups)."""
    m, count = x.shape[0], _group_count(k)
    few = x[np.sort(rng.permutation(m)[: min(m, GROUP_ROWS * count)])]
    start = few[np.sort(rng.permutation(len(few))[:count])]
    centers = lloyd([few], start, "l2", GROUP_UPDATES).centroids
    pieces = [slice(i, i + PIECE) for i in range(0, m, PIECE)]
    labels = np.concatenate(spread(lambda piece: nearest(x[piece], centers, "l2"), pieces))
    sizes = np.bincount(labels, minlength=count)
    return np.argsort(labels, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]), centers


class _Candidates:
    """Rows drawn in proportion to a mass that only ever falls, many at a time.

    One matrix product for a batch of candidates is several times faster than one for each seed's few. A
    batch is drawn by the mass of its time; when a candidate is used, it is accepted with the ratio of its
    mass now to its mass then, which makes it an exact draw by the mass of now (rejection sampling).
    """

    def __init__(self, field: _Field, rng: np.random.Generator):
        self.field, self.rng = field, rng
        self.batch: list[_Drawn] = []
        self.used = 0

    def draw(self, count: int, seeds: int) -> list[_Drawn] | None:
        """Return ``count`` candidates for the seed after ``seeds`` ones; None where no mass is left."""
        found: list[_Drawn] = []
        while len(found) < count:
            if self.used == len(self.batch) and not self._refill(count, seeds):
                return None
            first, ahead = self.used, self.batch[self.used : self.used + 2 * count]
            for at, mass in enumerate(self.field.masses([item.row for item in ahead]), first):
                self.used += 1
                if self.chance[at] * self.mass[at] < mass:  # weights are the same then and now
                    found.append(self.batch[at])
                    if len(found) == count:
                        break
        return found

    def _refill(self, count: int, seeds: int) -> bool:
        field = self.field
        field.settle()
        mass = field.mass()
        if not bool((mass > 0).any()):
            return False
        distances = BATCH_DISTANCES if field.xp is np else DEVICE_BATCH_DISTANCES
        most = int(distances / (field.share(seeds) * max(1, mass.shape[0])))
        rows = _draw(mass, max(count, min(count * max(1, seeds // 4), max(16, most))), self.rng)
        self.mass = field.masses(rows)
        self.chance = self.rng.random(len(rows))
        self.batch, self.used = field.drawn(rows, seeds), 0
        return True


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
