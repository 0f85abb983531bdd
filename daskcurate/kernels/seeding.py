"""Seeds for k-means: greedy k-means++ (Arthur & Vassilvitskii 2007)."""

import math
from typing import Any, NamedTuple

import numpy as np

from daskcurate.arrays import Array, namespace_of, to_host
from daskcurate.kernels.assign import nearest
from daskcurate.kernels.lloyd_in_memory import lloyd_in_memory
from daskcurate.kernels.threads import spread

BATCH_DISTANCES = 4 << 20
"""Distances of one batch of k-means++ candidates: 16 MiB of float32."""
DEVICE_BATCH_DISTANCES = 1 << 27
"""Likewise on a GPU: 512 MiB."""
PIECE = 2048
"""Rows that one thread works on at a time."""
DEVICE_PIECE = 1 << 20
"""Likewise on a GPU, which starts few large kernels rather than many small ones."""
TILE = 32
"""Rows of a group that are gathered together."""
NEAR_ROWS, SHARED_GROUPS = 512, 16
"""Candidates, and groups, that a thread compares in turn: less would be lost in handing them out."""
GROUPED_SEEDS, GROUPED_ROWS = 100, 4096
"""From so many seeds and rows on, candidates are compared with the rows of near groups only."""
GROUPS = 4
"""There are this many times sqrt(k) groups."""
NEAR_GROUPS = 12
"""Groups that a candidate is compared with ..."""
LOW_WIDTH, LOW_NEAR_GROUPS = 3, 8
"""... and so many up to this width, where a group has fewer neighbours ..."""
FIRST_GROUPS = 8
"""... and more while there are few seeds: this many times the groups over the seeds."""
SCORE_COLUMNS, START, GROUPED_START = 64, 150, 500
"""What seeding takes besides its products (see :func:`effort`): of 4000 to 32 000 rows of 64 to 768 columns, for 100
to 1000 seeds."""
GROUP_ROWS, GROUP_UPDATES = 64, 4
"""Groups are found by so many Lloyd updates on so many rows for each."""


def trials(k: int) -> int:
    """Return the candidates that greedy k-means++ draws for each of k seeds."""
    return 2 + int(math.log(max(k, 1)))


def operations(m: int, d: int, k: int) -> float:
    """Return the operations of :func:`kmeans_plusplus` for k seeds of m rows of width d, about."""
    compared = float(trials(k))
    if is_grouped(m, k):
        compared = 1 + compared * min(1.0, _near_groups(d) / _group_count(k))
    return 2 * m * d * k * compared


def effort(m: int, d: int, k: int) -> float:
    """Return the operations of large products that :func:`kmeans_plusplus` takes as long as, for k seeds of m rows.

    To look at a score, and to gather it, takes as long as ``SCORE_COLUMNS`` columns of the product; the groups, and
    the first batches, which are small, as long as ``START`` comparisons of all rows with a candidate.
    """
    start = GROUPED_START if is_grouped(m, k) else START
    return operations(m, d, k) * (1 + SCORE_COLUMNS / d) + 2.0 * m * (d + SCORE_COLUMNS) * start


def is_grouped(m: int, k: int) -> bool:
    """Return whether candidates are compared with the rows near them only."""
    return k >= GROUPED_SEEDS and m >= GROUPED_ROWS


def _group_count(k: int) -> int:
    return round(GROUPS * math.sqrt(k))


def _near_groups(d: int) -> int:
    return LOW_NEAR_GROUPS if d <= LOW_WIDTH else NEAR_GROUPS


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
    first = _draw(field.mass(), 1, rng)
    seeds[:1] = field.numbers(first)
    field.add(first)
    candidates = _Candidates(field, rng)
    for i in range(1, k):
        accepted = candidates.draw(count, i)
        if accepted is None:
            seeds[i:] = _fill(m, seeds[:i], k - i, rng)
            break
        start = int(accepted[0])
        gains = field.gains(candidates.batch, start, int(accepted[-1]) + 1)
        best = int(accepted[np.argmax(gains[accepted - start])])
        seeds[i] = field.numbers(candidates.batch.rows[best])
        field.take(candidates.batch, best)
    return seeds


class _Drawn(NamedTuple):
    """Rows that were drawn as candidates, and the scores of the rows near each."""

    rows: np.ndarray
    """(c,) where they stand in the field."""
    scores: Array
    """(t, TILE) scores of a candidate and a tile of rows each; or (c, m)."""
    tiles: Array | None = None
    """(t,) the tiles near the first candidate, then those near the next; None: each was compared with all rows."""
    places: Any = None
    """(t,) where their scores stand; None: in the same order."""
    edges: Any = None
    """(c + 1,) the first of the t tiles of each candidate, and the end."""

    def near(self, start: int, stop: int) -> tuple[Array, Array]:
        """Return the tiles near some candidates, one candidate's after the other, and their scores."""
        assert self.tiles is not None
        own = slice(self.edges[start], self.edges[stop])
        tiles = self.tiles[own]
        return tiles, self.scores[own] if self.places is None else self.scores.take(self.places[own], axis=0)


class _Field:
    """Rows, how near the nearest seed of each is, and groups of rows that lie together.

    A score is x.c - |c|^2 / 2 of a row and a seed, the largest that of the nearest seed: a squared distance is
    |x|^2 less twice the score.

    Groups stand one after the other, each filled up to whole tiles with rows of zeros that nothing draws and that
    gain nothing: what belongs to a candidate is then gathered by tiles, in one go.
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
            m = len(self.order)
        self.rows = xp.zeros((m, d + 1), dtype=np.float32)  # the last column adds -|c|^2 / 2 to a product
        step = PIECE if xp is np else DEVICE_PIECE
        self.pieces = [(i, min(i + step, m)) for i in range(0, m, step)]
        self.squares = xp.empty(m, dtype=np.float32)
        spread(lambda piece: self._load(x, mean, *piece), self.pieces)
        self.weights = None if weights is None else xp.asarray(weights, dtype=np.float64)
        self.best = xp.full(m, -np.inf, dtype=np.float32)
        self.near = xp.ones(m, dtype=np.float32)
        if self.order is not None:
            self.near[self.order < 0] = 0
            if self.weights is not None:
                self.weights = self.weights[self.order]  # whatever at zeros: their distance is 0
        self.state = (self.best, self.near, self.squares)
        self.tiled: tuple[Array, ...] = ()
        self.columns: list[Array] = []
        if self.order is not None:
            self.tiled = tuple(part.reshape(-1, TILE) for part in self.state)
            if d <= LOW_WIDTH:
                self.columns = [np.ascontiguousarray(part).reshape(-1, TILE) for part in self.rows.T]
        self.pending: list[int] = []

    def _load(self, x: Array, mean: Array, start: int, stop: int) -> None:
        out = self.rows[start:stop, :-1]
        if self.order is None:
            self.xp.subtract(x[start:stop], mean, out=out)
            self.rows[start:stop, -1] = 1
        else:
            real = np.flatnonzero(self.order[start:stop] >= 0)
            out[real] = x[self.order[start:stop][real]] - mean
            self.rows[start:stop, -1][real] = 1
        self.squares[start:stop] = self.xp.einsum("ij,ij->i", out, out)

    def numbers(self, rows: Any) -> Any:
        """Return the row numbers in ``x`` of rows of the field."""
        return rows if self.order is None else self.order[rows]

    def mass(self) -> Array:
        """Return what rows are drawn in proportion to, (m,)."""
        return self.near if self.weights is None else self.weights * self.near

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
            self._raise(self.state, slice(start, stop), scores)

        spread(piece, self.pieces)

    def settle(self) -> None:
        """Compare all rows with the seeds that only near ones have been compared with."""
        if self.pending:
            self.add(np.array(self.pending))
            self.pending = []

    def _raise(self, state: tuple[Array, ...], which: Any, scores: Array) -> None:
        """Let the rows (or tiles, where ``state`` is of tiles) have what scores are better than theirs."""
        best, near, squares = state
        raised = self.xp.maximum(best[which], scores)
        best[which] = raised
        lengths = squares[which]
        distance = lengths - 2 * raised
        # within rounding of zero is zero, so that a copy of a seed is never drawn
        distance *= distance > 8e-7 * lengths
        near[which] = distance

    def gains(self, drawn: _Drawn, start: int, stop: int) -> np.ndarray:
        """Return half of what the sum of squared distances would fall by with each of some candidates."""
        if drawn.tiles is None and self.xp is np:
            return np.array([self._gain(drawn.scores[i]) for i in range(start, stop)])
        if (
            drawn.tiles is None
        ):  # together: to ask for one number after another would take longer than the work
            gain = self.xp.maximum(drawn.scores[start:stop] - self.best, 0)
            return to_host(gain.sum(axis=1) if self.weights is None else gain @ self.weights)
        tiles, scores = drawn.near(start, stop)  # in one go: the calls would take longer than the work
        gain = self.tiled[0].take(tiles, axis=0)
        np.subtract(scores, gain, out=gain)
        np.maximum(gain, 0, out=gain)
        if self.weights is None:
            sums = gain.sum(axis=1)
        else:
            sums = np.einsum("ij,ij->i", gain, self.weights.reshape(-1, TILE).take(tiles, axis=0))
        return np.add.reduceat(sums, drawn.edges[start:stop] - drawn.edges[start])

    def _gain(self, scores: Array) -> float:
        gain = scores - self.best
        np.maximum(gain, 0, out=gain)
        return float(gain.sum() if self.weights is None else gain @ self.weights)

    def take(self, drawn: _Drawn, i: int) -> None:
        """Make candidate ``i`` a seed."""
        if drawn.tiles is None:
            return self._raise(self.state, slice(None), drawn.scores[i])
        self._raise(self.tiled, *drawn.near(i, i + 1))
        self.pending.append(int(drawn.rows[i]))

    def share(self, seeds: int) -> float:
        """Return the fraction of the rows that candidates are compared with when there are ``seeds`` seeds."""
        return min(1.0, self._reach(seeds) / (len(self.bounds) - 1))

    def _reach(self, seeds: int) -> int:
        n_groups = len(self.bounds) - 1  # a seed of few is near to many rows
        return min(n_groups, max(_near_groups(self.rows.shape[1] - 1), -(-FIRST_GROUPS * n_groups // seeds)))

    def drawn(self, rows: np.ndarray, seeds: int) -> _Drawn:
        """Return rows that were drawn, with their scores."""
        table, reach, n_groups = self.table(rows), self._reach(seeds), len(self.bounds) - 1
        if reach == n_groups:
            out = self.xp.empty((len(rows), self.rows.shape[0]), dtype=np.float32)

            def piece(bounds: tuple[int, int]) -> None:
                out[:, slice(*bounds)] = self.xp.matmul(table, self.rows[slice(*bounds)].T)

            spread(piece, self.pieces)
            return _Drawn(rows, out)
        parts = [table[i : i + NEAR_ROWS] for i in range(0, len(table), NEAR_ROWS)]
        near = np.concatenate(spread(lambda part: self._near_groups(part, reach), parts)).ravel()
        first = self.bounds // TILE
        lengths = np.diff(first)[near]
        ends = np.cumsum(lengths)
        starts = ends - lengths
        running = np.arange(ends[-1])
        tiles = np.repeat(first[near] - starts, lengths) + running
        edges = np.append(starts[::reach], ends[-1])
        if table.shape[1] <= LOW_WIDTH + 1:
            return _Drawn(rows, self._narrow_scores(table, tiles, np.diff(edges)), tiles, None, edges)
        # products stand group by group, as they are made
        by_group = np.argsort(near, kind="stable")
        cuts = np.searchsorted(near[by_group], np.arange(n_groups + 1))
        made = np.cumsum(lengths[by_group])
        made -= lengths[by_group]
        stands = np.empty_like(starts)
        stands[by_group] = made
        places = np.repeat(stands - starts, lengths) + running
        scores = np.empty((ends[-1], TILE), dtype=np.float32)

        def compare(groups: range) -> None:
            for g in groups:
                own, count = by_group[cuts[g] : cuts[g + 1]], int(first[g + 1] - first[g])
                if len(own) and count:
                    out = scores[made[cuts[g]] :][: len(own) * count].reshape(len(own), count * TILE)
                    np.matmul(table[own // reach], self.rows[self.bounds[g] : self.bounds[g + 1]].T, out=out)

        spread(
            compare, [range(g, min(g + SHARED_GROUPS, n_groups)) for g in range(0, n_groups, SHARED_GROUPS)]
        )
        return _Drawn(rows, scores, tiles, places, edges)

    def _near_groups(self, table: np.ndarray, reach: int) -> np.ndarray:
        """Return the ``reach`` groups nearest to each candidate, ascending, (c, reach)."""
        assert self.centers is not None
        closeness = table[:, :-1] @ self.centers[:-1] + self.centers[-1]
        return np.sort(np.argpartition(-closeness, reach - 1, axis=1)[:, :reach], axis=1)

    def _narrow_scores(self, table: np.ndarray, tiles: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the scores (t, TILE) of few columns without a product for each group, which would take longer."""
        scores = np.zeros((len(tiles), TILE), dtype=np.float32)
        for column, factors in zip(self.columns, np.repeat(table, counts, axis=0).T, strict=True):
            part = column.take(tiles, axis=0)
            part *= factors[:, None]
            scores += part
        return scores


def _groups(x: np.ndarray, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (the rows by group, first of each group and the end, centres of the groups).

    Each group is filled up to whole tiles with -1, which is no row.
    """
    m, count = x.shape[0], _group_count(k)
    few = x[np.sort(rng.permutation(m)[: min(m, GROUP_ROWS * count)])]
    start = few[np.sort(rng.permutation(len(few))[:count])]
    pieces = [few[i : i + PIECE] for i in range(0, len(few), PIECE)]
    centers = lloyd_in_memory(pieces, start, "l2", GROUP_UPDATES).centroids
    pieces = [x[i : i + PIECE] for i in range(0, m, PIECE)]
    labels = np.concatenate(spread(lambda piece: nearest(piece, centers, "l2"), pieces))
    sizes = np.bincount(labels, minlength=count)
    bounds = np.concatenate([[0], np.cumsum(-(-sizes // TILE) * TILE)])
    by_group = np.argsort(labels, kind="stable")
    order = np.full(bounds[-1], -1)
    order[np.arange(m) + np.repeat(bounds[:-1] - (np.cumsum(sizes) - sizes), sizes)] = by_group
    return order, bounds, centers


class _Candidates:
    """Rows drawn in proportion to a mass that only ever falls, many at a time.

    One matrix product for a batch of candidates is several times faster than one for each seed's few. A
    batch is drawn by the mass of its time; when a candidate is used, it is accepted with the ratio of its
    mass now to its mass then, which makes it an exact draw by the mass of now (rejection sampling).
    """

    def __init__(self, field: _Field, rng: np.random.Generator):
        self.field, self.rng = field, rng
        self.batch = _Drawn(np.empty(0, np.int64), np.empty((0, 0), np.float32))
        self.used = 0

    def draw(self, count: int, seeds: int) -> np.ndarray | None:
        """Return the places in ``batch`` (count,) of the candidates for the seed after ``seeds`` ones.

        They are of one batch: what is left of a batch in which too few are accepted is not used. None where no
        mass is left.
        """
        while True:
            if self.used < len(self.batch.rows):
                left = self.field.xp.asarray(self.batch.rows[self.used :])
                mass = to_host(self.field.near[left])  # weights are the same then and now
                accepted = self.used + np.flatnonzero(self.lowest[self.used :] < mass)[:count]
                if len(accepted) == count:
                    self.used = int(accepted[-1]) + 1
                    return accepted
            if not self._refill(count, seeds):
                return None

    def _refill(self, count: int, seeds: int) -> bool:
        field = self.field
        field.settle()
        mass = field.mass()
        if not bool((mass > 0).any()):
            return False
        distances = BATCH_DISTANCES if field.xp is np else DEVICE_BATCH_DISTANCES
        most = int(distances / (field.share(seeds) * max(1, mass.shape[0])))
        rows = _draw(mass, max(count, min(count * max(1, seeds // 4), max(16, most))), self.rng)
        mass = to_host(field.near[field.xp.asarray(rows)]).astype(np.float64)
        self.lowest = self.rng.random(len(rows)) * mass
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
