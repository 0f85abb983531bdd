"""Similar pairs of rows of a whole pool, by a bound that says which clusters a row need not be compared with.

For unit rows x of cluster a and y of cluster b, let s(x, c) = x.c - |c|^2 / 2. Then

    [s(x, a) - s(x, b)] + [s(y, b) - s(y, a)] = (x - y).(a - b) <= |x - y| |a - b|,

whatever the labels and the centroids are. Rows more similar than 1 - eps are closer than
delta = sqrt(2 eps), so one of the two brackets is at most |a - b| delta / 2: comparing each row x also with
the clusters b for which s(x, a) - s(x, b) <= |a - b| delta / 2 finds every pair. Divided by |a - b| the bracket
is the signed distance of x to the plane that bisects a and b; undivided, it is safe for equal centroids, which
are always compared. Every float32 quantity gets a margin for its rounding.

What is reported is computed in float64 from the rows as given and rounded to float32, each pair by the same
sum: no result depends, in any bit, on how the rows were cut into blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from daskcurate.arrays import Array, namespace_of, row_dots, to_float32, to_host
from daskcurate.kernels.assign import unit_rows
from daskcurate.kernels.blocks import unit_of
from daskcurate.kernels.products import choose, unit_margin
from daskcurate.kernels.similarity import TILE

TILE_PAIRS = 1 << 20
"""Scores held at once: 4 MiB of float32."""
DEVICE_PAIRS = 1 << 26
"""Scores held at once on a GPU."""
_DEVICE_TILE = 8192  # columns of a tile on a GPU, and rows of one where a cluster is compared with itself
_TILE_ROWS = 8192  # rows gathered at once, where a cluster has few columns
_ASK_ROWS = 2048  # rows scored against centroids at once
_MASK_BYTES = 1 << 24  # held at once of which rows ask for which clusters
_FEW = 64  # a sketched tile is finished pair by pair if fewer than one in this many pairs pass
_TRIAL = 4 << 20  # sketched pairs before sketches that do not help are given up
_SKETCH_MARGIN = 2e-5  # rounding of sketches, beyond that of the rows


@dataclass(frozen=True)
class PoolBlock:
    """Rows of a pool, made ready for comparing: sorted by cluster, then by their place in the order."""

    raw: Array
    """(m, d) as stored."""
    unit: Array
    """(m, d) float32, unit length."""
    norm: Array
    """(m,) float64."""
    labels: np.ndarray
    """(m,) cluster of each row, ascending."""
    ranks: np.ndarray
    """(m,) int64: place of each row in the order of the whole pool."""
    numbers: np.ndarray
    """(m,) int64: row numbers in the pool."""
    sketch: Array | None = None
    """(m, r + 1) float32: coordinates in an orthonormal basis of r vectors, and the length of the rest."""
    rounded: Any = None
    """The unit rows in a lower precision, where products come first in that; there are no sketches then."""

    @classmethod
    def of(
        cls,
        raw: Array,
        norm: Array,
        labels: np.ndarray,
        ranks: np.ndarray,
        numbers: np.ndarray,
        basis: Array | None = None,
    ) -> PoolBlock:
        """Return the block of rows with the given lengths (:func:`row_norms`), sketched in ``basis`` (d, r)."""
        xp = namespace_of(raw)
        unit = unit_of(raw, to_float32(raw), norm)
        sketch = rounded = None
        product = choose(xp)
        if product is not None:
            rounded = product.rounded(unit)[0]
        elif basis is not None:
            sketch = xp.empty((len(unit), basis.shape[1] + 1), np.float32)
            xp.matmul(unit, basis, out=sketch[:, :-1])
            inside = row_dots(sketch[:, :-1], sketch[:, :-1])
            sketch[:, -1] = xp.sqrt(xp.maximum(1 - inside, 0) + np.float32(4e-6))
        return cls(raw, unit, norm, labels, ranks, numbers, sketch, rounded)

    def take(self, mask: np.ndarray) -> PoolBlock:
        """Return the rows where ``mask`` holds."""
        if mask.all():
            return self
        at = np.flatnonzero(mask)
        on = namespace_of(self.raw).asarray(at)
        host = (self.labels[at], self.ranks[at], self.numbers[at])
        sketch = None if self.sketch is None else self.sketch[on]
        rounded = None if self.rounded is None else self.rounded[on]
        return PoolBlock(self.raw[on], self.unit[on], self.norm[on], *host, sketch, rounded)

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def margin(self) -> float:
        """More than a float32 product of unit rows and the exact similarity can differ by."""
        return 2.0**-23 * (self.raw.shape[1] + 8)


def row_norms(raw: Array) -> Array:
    """Return the length of each row, (m,) float64, a few rows at a time."""
    xp = namespace_of(raw)
    norm = xp.empty(len(raw), np.float64)
    for lo in range(0, len(raw), TILE):
        rows = raw[lo : lo + TILE].astype(np.float64)
        norm[lo : lo + TILE] = xp.sqrt(row_dots(rows, rows))
    return norm


def sketch_basis(rows: Array) -> Array | None:
    """Return an orthonormal basis (d, d // 4 - 1) for sketches: the main directions of a sample of rows.

    With x = x1 + x2, x1 in the span of the basis, x.y <= x1.y1 + |x2| |y2|: the product of sketches is never
    below the similarity, and close to it where the basis holds most of the rows. None for narrow rows.
    """
    xp = namespace_of(rows)
    width = rows.shape[1] // 4 - 1
    if width < 15:
        return None
    unit = unit_rows(rows).astype(np.float64)
    return xp.ascontiguousarray(xp.linalg.eigh(unit.T @ unit)[1][:, -width:].astype(np.float32))


def threshold(eps: float) -> np.float32:
    """Return the similarity that a pair must exceed, strictly."""
    return np.float32(1 - eps)


class _Clusters(NamedTuple):
    """The clusters that a block has rows of."""

    labels: np.ndarray
    starts: np.ndarray
    """(c + 1,) first row of each, and the number of rows."""
    centroids: Array
    """(c, d) float32."""
    half_squares: Array
    """(c,) float64: |centroid|^2 / 2."""
    own: Array
    """(m,) float32: s(x, own centroid) of each row."""


@dataclass(frozen=True)
class Bound:
    """Which clusters the rows of each cluster must be compared with."""

    centroids: Array
    """(k, d) float32, of length 1 at most. Any will do; the nearer to the rows, the fewer pairs."""
    half: float
    """Half of the largest distance between two rows of a pair."""

    @classmethod
    def of(cls, centroids: Array, eps: float) -> Bound:
        """Return the bound for pairs above 1 - eps; centroids longer than the (unit) rows are scaled to length 1."""
        xp = namespace_of(centroids)
        if len(centroids) and float(xp.abs(row_norms(centroids)).max()) > 1 + 1e-6:
            centroids = unit_rows(centroids)
        gap = max(0.0, 2 * (1 - float(threshold(eps))))
        return cls(centroids.astype(np.float32, copy=False), (np.sqrt(gap) + 1e-6) / 2)

    def clusters(self, x: PoolBlock) -> _Clusters:
        """Return what the bound needs to know of a block."""
        xp = namespace_of(x.unit)
        change = x.labels[1:] != x.labels[:-1]
        starts = np.flatnonzero(np.r_[True, change, True]) if len(x) else np.zeros(1, np.int64)
        labels = x.labels[starts[:-1]]
        centroids = self.centroids[xp.asarray(labels)]
        wide = centroids.astype(np.float64)
        half_squares = (wide * wide).sum(axis=1) / 2
        own = xp.empty(len(x), np.float32)
        for i, (lo, hi) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
            # not by BLAS, whose product with a vector now and then warns of numbers past the end of short rows
            dots = xp.einsum("ij,j->i", x.unit[lo:hi], centroids[i])
            own[lo:hi] = dots - half_squares[i].astype(np.float32)
        return _Clusters(labels, starts, centroids, half_squares, own)

    def asking(
        self, x: PoolBlock, of_x: _Clusters, of_y: _Clusters, *, own: bool
    ) -> Iterator[tuple[int, int, Array]]:
        """Yield for each cluster of y its first and last row, and the rows of x to compare with it.

        Without ``own``, rows of x that are of that same cluster are left out.
        """
        xp = namespace_of(x.unit)
        if not len(x) or not len(of_y.labels):
            return
        group = max(1, _MASK_BYTES // len(x))
        place = {int(label): i for i, label in enumerate(of_x.labels)}
        for first in range(0, len(of_y.labels), group):
            last = min(first + group, len(of_y.labels))
            near = self._near(x, of_x, of_y, first, last)
            for b in range(first, last):
                row = near[b - first]
                mine = place.get(int(of_y.labels[b]))
                if mine is not None and not own:
                    row[of_x.starts[mine] : of_x.starts[mine + 1]] = False
                rows = xp.flatnonzero(row)
                if len(rows):
                    yield int(of_y.starts[b]), int(of_y.starts[b + 1]), rows

    def _near(self, x: PoolBlock, of_x: _Clusters, of_y: _Clusters, first: int, last: int) -> Array:
        """Return bool (last - first, m): which rows of x ask for some clusters of y."""
        xp = namespace_of(x.unit)
        centroids = of_y.centroids[first:last]
        products = of_x.centroids.astype(np.float64) @ centroids.astype(np.float64).T
        squares = of_x.half_squares[:, None] + of_y.half_squares[first:last] - products
        reach = self.half * (xp.sqrt(2 * xp.maximum(squares, 0)) + 1e-6) + 3 * x.margin
        reach = (reach - of_y.half_squares[first:last]).astype(np.float32)
        cluster = np.repeat(np.arange(len(of_x.labels)), np.diff(of_x.starts))
        near = xp.empty((last - first, len(x)), bool)
        for lo in range(0, len(x), _ASK_ROWS):
            hi = min(lo + _ASK_ROWS, len(x))
            scores = x.unit[lo:hi] @ centroids.T
            one, after = int(cluster[lo]), int(cluster[hi - 1]) + 1
            if 32 * (after - one) > hi - lo:  # small clusters: reach row by row
                scores += reach[xp.asarray(cluster[lo:hi])]
            else:
                for i in range(one, after):
                    scores[max(of_x.starts[i] - lo, 0) : of_x.starts[i + 1] - lo] += reach[i]
            near[:, lo:hi] = (scores >= of_x.own[lo:hi, None]).T
        return near

    def pairs_of_sample(self, x: PoolBlock, sizes: np.ndarray) -> float:
        """Return how many rows a row of a sample is compared with on average, each pair counted once.

        ``sizes`` (k,) are the rows of each cluster in the whole pool.
        """
        every = np.flatnonzero(sizes)
        centroids = self.centroids[every].astype(np.float32)
        wide = centroids.astype(np.float64)
        of_y = _Clusters(
            every,
            np.arange(len(every) + 1),
            centroids,
            (wide * wide).sum(axis=1) / 2,
            np.empty(0, np.float32),
        )
        of_x = self.clusters(x)
        found = float(((sizes[x.labels] - 1) / 2).sum())
        for b, _, rows in self.asking(x, of_x, of_y, own=False):
            found += float(sizes[every[b]]) * len(rows)
        return found / len(x)


Take = Callable[[PoolBlock, np.ndarray, PoolBlock, np.ndarray, np.ndarray], None]
"""What is done with candidates: (block, rows, other block, its rows, float32 scores)."""


def compare(p: PoolBlock, q: PoolBlock, bound: Bound | None, eps: float, take: Take) -> int:
    """Hand all pairs of rows that may be above 1 - eps to ``take``; return how many pairs were compared.

    Parameters
    ----------
    p, q
        Two blocks, or one and the same.
    bound
        None compares all pairs.
    take
        Gets candidates: all pairs above the threshold and some that are below it by at most the margin; a
        pair may come twice.
    """
    if threshold(eps) >= 1 or not len(p) or not len(q):
        return 0
    cut = threshold(eps) - np.float32(p.margin)
    product = _Product(cut, take, namespace_of(p.unit))
    if bound is None:
        if p is q:
            return product.triangle(p, 0, len(p))
        return product(p, None, q, 0, len(q))
    of_p, of_q = bound.clusters(p), None if p is q else bound.clusters(q)
    pairs = 0
    if of_q is None:
        for lo, hi in zip(of_p.starts[:-1], of_p.starts[1:], strict=True):
            pairs += product.triangle(p, int(lo), int(hi))
        for lo, hi, rows in bound.asking(p, of_p, of_p, own=False):
            pairs += product(p, rows, p, lo, hi)
        return pairs
    for lo, hi, rows in bound.asking(p, of_p, of_q, own=True):
        pairs += product(p, rows, q, lo, hi)
    for lo, hi, rows in bound.asking(q, of_q, of_p, own=False):  # a cluster in both is compared by now
        pairs += product(q, rows, p, lo, hi)
    return pairs


class _Product:
    """Float32 products of rows and columns, tile by tile, all in the one buffer.

    With sketches, their product comes first, which is no less than the similarity and takes a quarter of the
    work; with rounded rows, theirs. The few pairs that pass are looked at one by one; where they are not few, the
    rows themselves are multiplied, and the first product given up if that goes on.
    """

    def __init__(self, cut: np.float32, take: Take, xp: Any):
        self.cut, self.take, self._xp = cut, take, xp
        self._sketched = self._repeated = 0
        self._scores: Any = None
        self._above: Any = None

    def __call__(self, x: PoolBlock, rows: Array | None, y: PoolBlock, first: int, last: int) -> int:
        """Compare ``rows`` of x (None: all) with rows first to last of y."""
        m = len(x) if rows is None else len(rows)
        on_host = namespace_of(x.unit) is np
        width = min(last - first, TILE if on_host else _DEVICE_TILE)
        height = min(_TILE_ROWS, TILE_PAIRS // width) if on_host else DEVICE_PAIRS // width
        for at in range(0, m, height):
            chosen = slice(at, min(at + height, m)) if rows is None else rows[at : at + height]
            for lo in range(first, last, width):
                i, j, scores = self._candidates(x, chosen, y, slice(lo, min(lo + width, last)))
                if len(i):
                    i = i + at if rows is None else to_host(chosen)[i]
                    self.take(x, i, y, j + lo, scores)
        return m * (last - first)

    def triangle(self, x: PoolBlock, first: int, last: int) -> int:
        """Compare rows first to last of x with each other."""
        tile = TILE if namespace_of(x.unit) is np else _DEVICE_TILE
        for lo in range(first, last, tile):
            for at in range(lo, last, tile):
                rows, columns = slice(at, min(at + tile, last)), slice(lo, min(lo + tile, last))
                i, j, scores = self._candidates(x, rows, x, columns)
                once = i + at > j + lo
                if once.any():
                    self.take(x, i[once] + at, x, j[once] + lo, scores[once])
        return (last - first) * (last - first - 1) // 2

    def _candidates(
        self, x: PoolBlock, rows: Any, y: PoolBlock, columns: slice
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows and columns of the tile that may be above the threshold, and their scores."""
        xp = namespace_of(x.unit)
        trial = _TRIAL if xp is np else _TRIAL * (DEVICE_PAIRS // TILE_PAIRS)
        if (first := self._first(x, rows, y, columns)) and 2 * self._repeated <= self._sketched + trial:
            i, j, _ = self._hits(*first)
            size = self._last_size
            self._sketched += size
            if not len(i):
                return i, j, np.empty(0, np.float32)
            if _FEW * len(i) <= size:
                near, far = xp.asarray(i), xp.asarray(j)
                near = near + rows.start if isinstance(rows, slice) else rows[near]
                scores = np.empty(len(i), np.float32)
                for at in range(0, len(i), 4 * TILE):
                    a, b = x.unit[near[at : at + 4 * TILE]], y.unit[columns][far[at : at + 4 * TILE]]
                    scores[at : at + 4 * TILE] = to_host(row_dots(a, b))
                above = scores > self.cut
                return i[above], j[above], scores[above]
            self._repeated += size
        return self._hits(x.unit[rows], y.unit[columns], self.cut)

    def _first(self, x: PoolBlock, rows: Any, y: PoolBlock, columns: slice) -> tuple[Any, ...] | None:
        """Return what :meth:`_hits` takes of the product that comes first, and None without one."""
        if (low := choose(self._xp)) is not None:
            margin = np.float32(unit_margin(x.raw.shape[1], low))
            return x.rounded[rows], y.rounded[columns], self.cut - margin, low
        if x.sketch is not None and y.sketch is not None:
            return x.sketch[rows], y.sketch[columns], self.cut - np.float32(_SKETCH_MARGIN)
        return None

    def _hits(
        self, a: Any, b: Any, cut: np.float32, low: Any = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        xp = self._xp
        if self._scores is None:
            most = TILE_PAIRS if xp is np else DEVICE_PAIRS
            self._scores, self._above = xp.empty(most, np.float32), xp.empty(most, bool)
        n = self._last_size = len(a) * len(b)
        scores, above = self._scores[:n], self._above[:n]
        if low is None:
            xp.matmul(a, b.T, out=scores.reshape(len(a), len(b)))
        else:
            scores = low.multiply(a, b).reshape(-1)
        hits = xp.flatnonzero(xp.greater(scores, cut, out=above))
        found = to_host(hits)
        i, j = np.divmod(found, len(b)) if len(found) else (found, found)
        return i, j, to_host(scores[hits])
