"""Cosine similarity of rows to earlier rows of one cluster, in the order that decides which are kept.

A cluster comes as blocks of rows, in order. Tiles start at multiples of ``TILE`` of the place in that order,
and whatever is found is found a pair of tiles at a time: so no result depends, in any bit, on how a cluster
was cut into blocks (at multiples of ``TILE``), and memory stays at a float32 copy of the blocks and a few
arrays of ``TILE`` x ``TILE``.

A float32 matrix product finds candidates; on GPUs one of float16 comes before it, where rows of two tiles are
compared. What is reported of them is computed again in float64 from the
rows as given and then rounded to float32, so that copies have similarity 1 exactly.

Method: SemDeDup, Abbas et al. 2023 (arXiv 2303.09540), without its limit to parts of large clusters.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree

from daskcurate.arrays import Array, namespace_of, row_dots, to_host
from daskcurate.kernels.products import choose, unit_margin

TILE = 1024
"""Rows of a tile: large enough for the matrix product to run at full speed, 4 MiB of float32 a pair."""
DEVICE_TILE = 8192
"""Likewise on a GPU, which does a product of ``TILE`` rows in the time that it takes to start it: 256 MiB a pair."""
_MANY = 8  # candidates of low precision a row, from which on a product in float32 is less work
_TIE = 1e-6  # copies of one row may differ by this in the float32 product
_NEVER = -9.0  # stands for pairs that are not to be compared; below every similarity and every margin
_NONE = -4.0  # the best of a row that has been compared with nothing


def tile_of(on_gpu: bool) -> int:
    """Return the rows of a tile; blocks of a cluster are to be cut at multiples of it."""
    return DEVICE_TILE if on_gpu else TILE


class EarlierMatch(NamedTuple):
    """The most similar earlier row of each of m rows."""

    similarity: Array
    """float32 (m,), its cosine similarity; -1 where there is no earlier row."""
    position: Array
    """int64 (m,), its place in the order of the cluster (the first of equals); -1 where there is none."""


class Edges(NamedTuple):
    """Similar pairs of rows of a cluster; host arrays."""

    i: np.ndarray
    j: np.ndarray
    """int64 (e,), places in the order of the cluster, i < j."""
    similarity: np.ndarray
    """float32 (e,), cosine similarity."""


@dataclass(frozen=True)
class _Block:
    """Rows made ready for comparing."""

    raw: Array
    unit: Array
    norm: Array
    start: int
    spans: list[tuple[int, int]]
    margin: float
    """More than a float32 product of unit rows and the exact similarity can differ by."""
    low_margin: np.float32
    """More than a product of the rounded rows and the exact similarity can differ by."""
    rounded: Any
    """The unit rows in a lower precision, where products come first in that; else None."""

    def exact(self, rows: Array, other: "_Block", columns: Array) -> Array:
        """Return the similarity of pairs (row here, row of ``other``): float64, rounded to float32."""
        xp = namespace_of(self.raw)
        dots = row_dots(self.raw[rows].astype(np.float64), other.raw[columns].astype(np.float64))
        return _rounded(xp, dots, self.norm[rows] * other.norm[columns])


def _rounded(xp: Any, dots: Array, norms: Array) -> Array:
    return xp.minimum(dots / norms, 1.0).astype(np.float32)


def _block(x: Array, start: int, tile: int | None) -> _Block:
    xp = namespace_of(x)
    m, d = x.shape
    tile = tile or tile_of(xp is not np)
    product = choose(xp)
    edges = [0, *range(tile - start % tile, m, tile), m]
    spans = [(lo, hi) for lo, hi in zip(edges[:-1], edges[1:], strict=True) if hi > lo]
    unit, norm = xp.empty((m, d), np.float32), xp.empty(m, np.float64)
    for lo, hi in spans:
        rows = x[lo:hi].astype(np.float64)
        norm[lo:hi] = xp.sqrt(row_dots(rows, rows))
        unit[lo:hi] = rows / norm[lo:hi, None]
    rounded = None if product is None else product.rounded(unit)[0]
    margin = 2.0**-23 * (d + 8)
    low = np.float32(1.001 * (margin + (0 if product is None else unit_margin(d, product))))
    return _Block(x, unit, norm, start, spans, margin, low, rounded)


class _Scores:
    """Float32 products of two tiles, all in the one buffer."""

    def __init__(self, x: _Block, y: _Block):
        widest = [max((hi - lo for lo, hi in block.spans), default=0) for block in (x, y)]
        self._buffer = namespace_of(x.raw).empty(widest[0] * widest[1], np.float32)

    def __call__(self, a: Array, b: Array) -> Array:
        out = self._buffer[: len(a) * len(b)].reshape(len(a), len(b))
        return namespace_of(out).matmul(a, b.T, out=out)


class _Best:
    """The best match so far of each row of block y among rows of block x."""

    def __init__(self, x: _Block, y: _Block):
        xp = namespace_of(y.raw)
        self.x, self.y, self.product = x, y, _Scores(x, y)
        self.similarity = xp.full(len(y.raw), _NONE, np.float32)
        self.position = xp.full(len(y.raw), -1, np.int64)
        self._low = choose(xp)

    def sweep(self, lo: int, hi: int, spans: list[tuple[int, int]], of: Array | None = None) -> None:
        """Compare rows lo to hi with those of some tiles of x, or with those of them marked in ``of``."""
        xp, x = namespace_of(self.similarity), self.x
        for first, last in spans:
            columns, unit = xp.arange(first, last), x.unit[first:last]
            if of is not None:
                columns = columns[of[first:last]]
                unit = x.unit[columns]
            if len(columns):
                self._compare(lo, hi, unit, columns)

    def sweep_own(self, lo: int, hi: int) -> None:
        """Compare each of rows lo to hi with those before it, x and y being one block."""
        xp = namespace_of(self.similarity)
        earlier = xp.tri(hi - lo, k=-1, dtype=bool)
        self._compare(lo, hi, self.x.unit[lo:hi], xp.arange(lo, hi), earlier)

    def _compare(self, lo: int, hi: int, unit: Array, columns: Array, allowed: Array | None = None) -> None:
        """Compare rows lo to hi with ``columns`` of x, those ``allowed`` (hi - lo, c); None: all.

        In low precision first, where there is one, and exactly what that leaves open. Whether that is too much, and
        float32 is used, depends on the tiles alone and not on what was found before.
        """
        if self._low is None or not self._compare_rounded(lo, hi, columns, allowed):
            scores = self.product(self.y.unit[lo:hi], unit)
            if allowed is not None:
                scores[~allowed] = _NEVER
            self.update(lo, hi, scores, columns)

    def _compare_rounded(self, lo: int, hi: int, columns: Array, allowed: Array | None) -> bool:
        """Compare as above; return False, with nothing done, if that leaves too much open."""
        assert self._low is not None
        xp = namespace_of(columns)
        scores = self._low.multiply(self.y.rounded[lo:hi], self.x.rounded[columns])
        if allowed is not None:
            scores[~allowed] = _NEVER
        top = scores.max(axis=1)
        margin = self.x.low_margin
        near = scores >= (top - 2 * margin)[:, None]
        if allowed is not None:
            near &= allowed
        if int(near.sum()) > _MANY * len(top):
            return False
        rows = xp.nonzero(top >= self.similarity[lo:hi] - margin)[0]
        i, j = xp.nonzero(near[rows])
        if not len(i):
            return True
        rows, found = rows[i] + lo, columns[j]
        exact = self.y.exact(rows, self.x, found)
        keys = [found.astype(np.float64), -exact.astype(np.float64), rows.astype(np.float64)]
        order = xp.lexsort(xp.stack(keys))
        rows, found = rows[order], found[order]
        first = xp.ones(len(rows), dtype=bool)
        first[1:] = rows[1:] != rows[:-1]
        self.offer(rows[first], found[first])
        return True

    def update(self, lo: int, hi: int, scores: Array, columns: Array) -> None:
        """Take the scores (hi - lo, c) of rows lo to hi against ``columns`` (c,) of x.

        Two candidates a row: the first with the highest score, and the first within ``_TIE`` of it, which
        of many copies of a row is the earliest.
        """
        xp = namespace_of(scores)
        top = scores.max(axis=1)
        # Only rows whose best can change; the margin makes sure that this loses none.
        rows = xp.nonzero(top >= self.similarity[lo:hi] - np.float32(self.x.margin))[0]
        if not len(rows):
            return
        if len(rows) < len(top):
            scores, top = scores[rows], top[rows]
        first = columns[(scores >= (top - np.float32(_TIE))[:, None]).argmax(axis=1)]
        highest = columns[scores.argmax(axis=1)]
        rows = rows + lo
        self.offer(rows, first)
        if len(other := xp.nonzero(first != highest)[0]):
            self.offer(rows[other], highest[other])

    def offer(self, rows: Array, columns: Array) -> None:
        """Take ``columns`` of x as the match of ``rows`` where that is better."""
        xp = namespace_of(rows)
        similarity, position = self.y.exact(rows, self.x, columns), columns + self.x.start
        old = self.similarity[rows]
        better = (similarity > old) | ((similarity == old) & (position < self.position[rows]))
        self.similarity[rows] = xp.where(better, similarity, old)
        self.position[rows] = xp.where(better, position, self.position[rows])

    def match(self) -> EarlierMatch:
        xp = namespace_of(self.similarity)
        return EarlierMatch(xp.maximum(self.similarity, np.float32(-1)), self.position)


def earlier_within(x: Array, start: int = 0, *, tile: int | None = None) -> EarlierMatch:
    """Return the most similar earlier row for each row of one block.

    Parameters
    ----------
    x
        float32 or float16 (m, d), rows in order, of any length but zero.
    start
        Place of the first row in the order of the cluster.
    tile
        Rows compared at a time; results may differ in the last bit between tile sizes. None: what suits the device.

    Returns
    -------
    EarlierMatch
        float32 (m,) and int64 (m,); position counts from the start of the cluster.
    """
    block = _block(x, start, tile)
    best = _Best(block, block)
    for b, (lo, hi) in enumerate(block.spans):
        best.sweep(lo, hi, block.spans[:b])
        best.sweep_own(lo, hi)
    return best.match()


def earlier_across(
    x: Array, start_x: int, y: Array, start_y: int, *, of: Array | None = None, tile: int | None = None
) -> EarlierMatch:
    """Return for each row of block y the most similar row of block x, all of which is earlier.

    Parameters
    ----------
    x, start_x, y, start_y, tile
        Two blocks, (m_x, d) and (m_y, d), each as in :func:`earlier_within`.
    of
        bool (m_x,), rows of x that count (the kept ones, for :func:`greedy_within`); None: all.

    Returns
    -------
    EarlierMatch
        float32 (m_y,) and int64 (m_y,).
    """
    earlier, later = _block(x, start_x, tile), _block(y, start_y, tile)
    best = _Best(earlier, later)
    for lo, hi in later.spans:
        best.sweep(lo, hi, earlier.spans, of)
    return best.match()


def merge_earlier(a: EarlierMatch, b: EarlierMatch) -> EarlierMatch:
    """Return the better of two matches for each row: the more similar, of equals the earlier."""
    xp = namespace_of(a.similarity)
    better = (b.similarity > a.similarity) | ((b.similarity == a.similarity) & (b.position < a.position))
    take = (b.position >= 0) & ((a.position < 0) | better)
    return EarlierMatch(xp.where(take, b.similarity, a.similarity), xp.where(take, b.position, a.position))


def is_duplicate(similarity: Array, eps: float) -> Array:
    """Return bool, whether a similarity (float32) is strictly above 1 - eps, taken in float32."""
    return similarity > np.float32(1 - eps)


def greedy_within(
    x: Array, start: int, alive: Array, eps: float, *, tile: int = TILE
) -> tuple[Array, EarlierMatch]:
    """Remove the rows of one block that repeat an earlier row which is itself kept.

    Parameters
    ----------
    x, start, tile
        A block, (m, d), as in :func:`earlier_within`.
    alive
        bool (m,), rows that repeat no kept row of an earlier block
        (:func:`earlier_across` with ``of``, then :func:`is_duplicate`).
    eps
        A row repeats another if their similarity is strictly above 1 - eps.

    Returns
    -------
    kept : array
        bool (m,).
    match : EarlierMatch
        The most similar kept row earlier in this block: a duplicate for just the rows removed here.
    """
    xp = namespace_of(x)
    block = _block(x, start, tile)
    best = _Best(block, block)
    kept = alive.copy()
    for b, (lo, hi) in enumerate(block.spans):
        best.sweep(lo, hi, block.spans[:b], kept)
        scores = best.product(block.unit[lo:hi], block.unit[lo:hi])
        alive = to_host(kept[lo:hi] & ~is_duplicate(best.similarity[lo:hi], eps))
        kept_here, blocker = _resolve(block, lo, scores, alive, eps)
        kept[lo:hi] = xp.asarray(kept_here)
        scores[~(xp.tri(hi - lo, k=-1, dtype=bool) & kept[None, lo:hi])] = _NEVER
        best.update(lo, hi, scores, xp.arange(lo, hi))
        # The two candidates of a row removed by a hair may miss the row that removed it.
        if len(removed := np.flatnonzero(blocker >= 0)):
            best.offer(xp.asarray(removed + lo), xp.asarray(blocker[removed] + lo))
    return kept, best.match()


def _resolve(
    block: _Block, lo: int, scores: Array, kept: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Let each kept row of a tile, in order, remove the later ones that repeat it.

    Returns bool (n,), the rows kept, and int64 (n,), the row of the tile that removed each, or -1.
    """
    xp = namespace_of(scores)
    kept, blocker = kept.copy(), np.full(len(kept), -1, np.int64)
    if (threshold := np.float32(1 - eps)) >= 1:
        return kept, blocker
    margin = np.float32(max(1e-5, block.margin))
    later = xp.tri(len(kept), k=-1, dtype=bool).T
    maybe = to_host(later & (scores >= threshold - margin))
    sure = to_host(scores > threshold + margin)
    for i in np.flatnonzero(maybe.any(axis=1)):
        if not kept[i]:
            continue
        rows = np.flatnonzero(maybe[i] & kept)
        hit = sure[i, rows]
        if not hit.all():
            unsure = xp.asarray(rows[~hit] + lo)
            exact = block.exact(unsure, block, xp.full_like(unsure, i + lo))
            hit[~hit] = to_host(is_duplicate(exact, eps))
        kept[rows[hit]] = False
        blocker[rows[hit]] = i
    return kept, blocker


def _forest(parts: Iterable[Edges], rows: int) -> Edges:
    """Return the spanning forest of all parts, holding little more than one edge a row at any time."""
    held: list[Edges] = []
    for part in parts:
        held.append(part)
        if sum(len(each.i) for each in held) > rows + 4 * TILE:
            held = [merge_forests(*held)]
    return merge_forests(*held)


def edges_within(x: Array, start: int, floor: float, *, tile: int | None = None) -> Edges:
    """Return a spanning forest of the pairs of one block with similarity strictly above ``floor``.

    The block is given as to :func:`earlier_within`; ``floor`` is 1 - eps for the largest eps that will be
    asked for. The forest of highest similarity, of m - 1 edges at most, connects the same rows as all
    pairs do at every threshold from ``floor`` up.
    """
    block = _block(x, start, tile)
    product = _Scores(block, block)
    pairs = ((columns, rows) for b, rows in enumerate(block.spans) for columns in block.spans[: b + 1])
    return _forest((_tile_edges(product, block, *pair, block, floor) for pair in pairs), len(x))


def edges_across(
    x: Array, start_x: int, y: Array, start_y: int, floor: float, *, tile: int | None = None
) -> Edges:
    """Return a spanning forest of the pairs (row of x, row of y) with similarity strictly above ``floor``.

    Parameters and result as in :func:`edges_within`; all of x is earlier than all of y.
    """
    earlier, later = _block(x, start_x, tile), _block(y, start_y, tile)
    product = _Scores(earlier, later)
    pairs = ((columns, rows) for rows in later.spans for columns in earlier.spans)
    edges = (_tile_edges(product, earlier, *pair, later, floor) for pair in pairs)
    return _forest(edges, len(x) + len(y))


def _tile_edges(
    product: _Scores, x: _Block, columns: tuple[int, int], rows: tuple[int, int], y: _Block, floor: float
) -> Edges:
    """Return all pairs of two tiles above the floor, with their exact similarity."""
    xp = namespace_of(x.raw)
    (first, last), (lo, hi) = columns, rows
    low = choose(xp)
    if low is None:
        near = product(y.unit[lo:hi], x.unit[first:last]) > np.float32(floor - x.margin)
    else:
        near = low.multiply(y.rounded[lo:hi], x.rounded[first:last]) > np.float32(floor) - x.low_margin
    if x is y and first == lo:
        near &= xp.tri(hi - lo, k=-1, dtype=bool)
    j, i = xp.nonzero(near)
    if len(j) > near.size // 64:  # then one product of the tiles in float64 is less work than pair by pair
        dots = y.raw[lo:hi].astype(np.float64) @ x.raw[first:last].astype(np.float64).T
        exact = _rounded(xp, dots[j, i], y.norm[j + lo] * x.norm[i + first])
    else:
        step = tile_of(xp is not np)
        cuts = range(0, len(j), step)
        parts = [y.exact(j[at : at + step] + lo, x, i[at : at + step] + first) for at in cuts]
        exact = xp.concatenate([xp.empty(0, np.float32), *parts])
    above = exact > np.float32(floor)
    i, j = i[above] + (first + x.start), j[above] + (lo + y.start)
    return Edges(to_host(i), to_host(j), to_host(exact[above]))


def merge_forests(*forests: Edges) -> Edges:
    """Return the spanning forest of highest similarity of the edges of all ``forests``.

    An edge that is the weakest of a cycle of some of the edges is so among all of them: forests of parts
    merge to a forest of the whole.
    """
    if not forests:
        return Edges(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    i, j, similarity = (np.concatenate(parts) for parts in zip(*forests, strict=True))
    rows, nodes = np.unique(np.concatenate([i, j]), return_inverse=True)
    key = nodes[: len(i)] * len(rows) + nodes[len(i) :]
    key, only = np.unique(key, return_index=True)  # entries given twice would be added up
    # Ranks from 1, not similarities, as weights: zero would be no edge, and they come back exactly.
    levels, rank = np.unique(-similarity[only], return_inverse=True)
    n = len(rows)
    starts = np.searchsorted(key, np.arange(n + 1) * n)
    graph = csr_array((rank + 1.0, key % max(n, 1), starts), shape=(n, n))
    tree = minimum_spanning_tree(graph).tocoo() if n else graph.tocoo()
    return Edges(rows[tree.row], rows[tree.col], -levels[tree.data.astype(np.int64) - 1])


def connected_matches(edges: Edges, m: int) -> EarlierMatch:
    """Return how similar a chain of ``edges`` links each of m rows of a cluster to an earlier row.

    Returns
    -------
    EarlierMatch
        float32 (m,), the highest threshold at which the row is in one component with an earlier row, and
        int64 (m,), the first row of that component; host arrays. The rows for which
        :func:`is_duplicate` does not hold are the first of each component, at every eps.
    """
    similarity, position = np.full(m, -1, np.float32), np.full(m, -1, np.int64)
    head = list(range(m))

    def find(row: int) -> int:
        while head[row] != row:
            head[row] = head[head[row]]
            row = head[row]
        return row

    order = np.argsort(-edges.similarity)
    ranked = edges.similarity[order].tolist()
    joined: list[int] = []
    for k, (i, j) in enumerate(zip(edges.i[order].tolist(), edges.j[order].tolist(), strict=True), 1):
        first, second = sorted((find(i), find(j)))
        if first != second:
            head[second] = first
            similarity[second] = ranked[k - 1]
            joined.append(second)
        # Equal edges join at once, so that the order among them does not matter.
        if k == len(ranked) or ranked[k] != ranked[k - 1]:
            for row in joined:
                position[row] = find(row)
            joined.clear()
    return EarlierMatch(similarity, position)
