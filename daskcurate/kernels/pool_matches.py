"""What is made of the similar pairs of a pool: each row's best match, spanning forests, greedy removal.

Candidates come from :func:`daskcurate.kernels.pool_pairs.compare`; what is reported of them is computed in
float64 from the rows as given and rounded to float32, each pair by the same sum: no result depends, in any bit,
on how the rows were cut into blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from daskcurate.arrays import namespace_of, row_dots, to_host
from daskcurate.kernels.blocks import rounded, rounded_surely
from daskcurate.kernels.forests import Forest
from daskcurate.kernels.pool_pairs import PoolBlock, Take, threshold
from daskcurate.kernels.similarity import TILE, Edges, connected_matches

LAST = np.iinfo(np.int64).max
"""Rank of a match that is not there: after every row."""
STRONGEST = 8
"""Of many edges one in so many, the strongest, goes to a forest before the others are looked at."""


def pair_similarity(x: PoolBlock, i: np.ndarray, y: PoolBlock, j: np.ndarray) -> np.ndarray:
    """Return the similarity of pairs (row i of x, row j of y): float64, rounded to float32; a host array.

    Where the pairs are most of what their rows and columns make, one product in float64 is less work than
    pair by pair. It adds up in another order, so pairs that it leaves next to a rounding edge of float32 are
    computed again one by one: the bits are the same either way.
    """
    xp = namespace_of(x.raw)
    out = np.empty(len(i), np.float32)
    rows, columns = np.unique(i), np.unique(j)
    if len(i) < 64 or 16 * len(i) < len(rows) * len(columns):
        single = np.arange(len(i))
    else:
        on_x, on_y = xp.asarray(rows), xp.asarray(columns)
        dots = x.raw[on_x].astype(np.float64) @ y.raw[on_y].astype(np.float64).T
        dots /= x.norm[on_x][:, None] * y.norm[on_y]
        found = to_host(dots)[np.searchsorted(rows, i), np.searchsorted(columns, j)]
        out, unsure = rounded_surely(np, found, x.raw.shape[1])
        single = np.flatnonzero(unsure)
    for at in range(0, len(single), TILE):
        part = single[at : at + TILE]
        on_x, on_y = xp.asarray(i[part]), xp.asarray(j[part])
        dots = row_dots(x.raw[on_x].astype(np.float64), y.raw[on_y].astype(np.float64))
        out[part] = to_host(rounded(xp, dots, x.norm[on_x] * y.norm[on_y]))
    return out


class NearestEarlier:
    """The most similar row above the threshold, among rows earlier in the pool's order, of each row of a block."""

    def __init__(self, block: PoolBlock, eps: float):
        self.block, self.limit, self.margin = block, threshold(eps), np.float32(block.margin)
        self._top = np.full(len(block), self.limit - self.margin, np.float32)
        self.similarity = np.full(len(block), -1, np.float32)
        self.rank = np.full(len(block), LAST, np.int64)
        self.number = np.full(len(block), -1, np.int64)

    def offer(self, later: np.ndarray, other: PoolBlock, earlier: np.ndarray, scores: np.ndarray) -> None:
        """Take candidates: rows ``later`` here, rows ``earlier`` of ``other``, each earlier than its partner.

        Of each row's candidates, only those are computed exactly that can be the best: within the rounding of
        the highest score seen. Nothing is above 1, so what has that is only beaten by an earlier row.
        """
        np.maximum.at(self._top, later, scores)
        ranks = other.ranks[earlier]
        able = (self.similarity[later] < 1) | (ranks < self.rank[later])
        able &= scores >= self._top[later] - 2 * self.margin
        later, earlier, ranks = later[able], earlier[able], ranks[able]
        if not len(later):
            return
        exact = pair_similarity(self.block, later, other, earlier)
        order = np.lexsort((ranks, -exact, later))
        later, earlier, ranks, exact = (values[order] for values in (later, earlier, ranks, exact))
        best = np.r_[True, later[1:] != later[:-1]] & (exact > self.limit)
        later, earlier, ranks, exact = (values[best] for values in (later, earlier, ranks, exact))
        old = self.similarity[later]
        better = (exact > old) | ((exact == old) & (ranks < self.rank[later]))
        at = later[better]
        self.similarity[at], self.rank[at] = exact[better], ranks[better]
        self.number[at] = other.numbers[earlier[better]]


def nearest_into(p: NearestEarlier, q: NearestEarlier) -> Take:
    """Return what hands each candidate of two blocks (or of one) to the later row's block."""
    sinks = {id(p.block): p, id(q.block): q}

    def take(x: PoolBlock, i: np.ndarray, y: PoolBlock, j: np.ndarray, scores: np.ndarray) -> None:
        after = x.ranks[i] > y.ranks[j]
        if after.any():
            sinks[id(x)].offer(i[after], y, j[after], scores[after])
        if not after.all():
            sinks[id(y)].offer(j[~after], x, i[~after], scores[~after])

    return take


def kept_into(near: NearestEarlier) -> Take:
    """Return what hands the candidates of a block of kept rows and another one to the later rows of the other."""

    def take(x: PoolBlock, i: np.ndarray, y: PoolBlock, j: np.ndarray, scores: np.ndarray) -> None:
        if x is near.block:
            x, i, y, j = y, j, x, i
        after = x.ranks[i] < y.ranks[j]
        if after.any():
            near.offer(j[after], x, i[after], scores[after])

    return take


class PairEdges:
    """Pairs above the threshold, as edges between places in the pool's order.

    Parameters
    ----------
    forest_rows
        Rows that edges can be between: then a spanning forest is kept, and little more than an edge a row.
        None keeps all edges, up to ``most``.
    most
        Above this number of candidates no edges are kept any more.
    bins
        Number of equal parts of the order (of ``n_rows`` places) that the candidates are counted in, by
        the later row.
    """

    def __init__(
        self, eps: float, *, forest_rows: int | None = None, most: int = LAST, bins: int = 1, n_rows: int = 1
    ):
        self.limit, self.most = threshold(eps), most
        self.counts = np.zeros(bins, np.int64)
        self._bin_rows = max(1, -(-n_rows // bins))
        self._held: list[Edges] = []
        self._forest = None if forest_rows is None else Forest(forest_rows)
        self._places: dict[int, tuple[weakref.ref[PoolBlock], int, np.ndarray]] = {}

    def take(self, x: PoolBlock, i: np.ndarray, y: PoolBlock, j: np.ndarray, scores: np.ndarray) -> None:
        """Take candidates."""
        if self._forest is not None:
            self._take_useful(self._forest, x, i, y, j, scores)
            return
        later = np.maximum(x.ranks[i], y.ranks[j])
        self.counts += np.bincount(later // self._bin_rows, minlength=len(self.counts))
        if self.counts.sum() > self.most:
            self._held.clear()
        else:
            self._held.append(self._measured(x, i, y, j))

    def _take_useful(
        self, forest: Forest, x: PoolBlock, i: np.ndarray, y: PoolBlock, j: np.ndarray, scores: np.ndarray
    ) -> None:
        """Add candidates to the forest, the strongest first, after which few of the others are of use."""
        while len(i):
            most = np.minimum(scores + np.float32(x.margin), np.float32(1))
            useful = forest.has_use(self._places_of(forest, x)[i], self._places_of(forest, y)[j], most)
            i, j, scores = i[useful], j[useful], scores[useful]
            first = np.ones(len(i), bool)
            if len(i) > forest.most:
                cut = len(i) - len(i) // STRONGEST
                first = scores >= np.partition(scores, cut)[cut]
            forest.add(self._measured(x, i[first], y, j[first]))
            i, j, scores = i[~first], j[~first], scores[~first]

    def _measured(self, x: PoolBlock, i: np.ndarray, y: PoolBlock, j: np.ndarray) -> Edges:
        first, second = x.ranks[i], y.ranks[j]
        exact = pair_similarity(x, i, y, j)
        above = exact > self.limit
        return Edges(np.minimum(first, second)[above], np.maximum(first, second)[above], exact[above])

    def _places_of(self, forest: Forest, x: PoolBlock) -> np.ndarray:
        """Return where the forest looks up the rows of a block."""
        known = self._places.get(id(x))
        if known is None or known[0]() is not x or known[1] != forest.version:
            known = weakref.ref(x), forest.version, forest.places(x.ranks)
            self._places[id(x)] = known
        return known[2]

    def edges(self) -> Edges | None:
        """Return the forest, or all edges; None if they were too many."""
        if self._forest is not None:
            return self._forest.edges()
        return None if self.counts.sum() > self.most else join_edges(self._held)


def join_edges(parts: Sequence[Edges]) -> Edges:
    """Return the edges of all parts."""
    none = Edges(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    return Edges(*(np.concatenate(field) for field in zip(none, *parts, strict=True)))


class Linked(NamedTuple):
    """Matches of rows known by their places in the order, ascending."""

    ranks: np.ndarray
    similarity: np.ndarray
    match: np.ndarray
    """int64: the matching row's place; -1 where there is none."""


def greedy_edges(edges: Edges) -> Linked:
    """Let each kept row, in order, remove the later rows that it has an edge to.

    Returns
    -------
    Linked
        For every row that has an edge, its most similar earlier kept row; -1 and -1 for kept rows.
    """
    nodes, ends = np.unique(np.concatenate([edges.i, edges.j]), return_inverse=True)
    i, j = ends[: len(edges.i)], ends[len(edges.i) :]
    order = np.argsort(i, kind="stable")
    after = j[order]
    starts = np.searchsorted(i[order], np.arange(len(nodes) + 1)).tolist()
    kept = np.ones(len(nodes), bool)
    for node in range(len(nodes)):
        if starts[node] < starts[node + 1] and kept[node]:
            kept[after[starts[node] : starts[node + 1]]] = False
    counted = kept[i]
    i, j, similarity = i[counted], j[counted], edges.similarity[counted]
    order = np.lexsort((i, -similarity, j))
    i, j, similarity = i[order], j[order], similarity[order]
    best = np.r_[True, j[1:] != j[:-1]][: len(j)]
    out = Linked(nodes, np.full(len(nodes), -1, np.float32), np.full(len(nodes), -1, np.int64))
    out.similarity[j[best]], out.match[j[best]] = similarity[best], nodes[i[best]]
    return out


def connected_edges(edges: Edges) -> Linked:
    """Return for every row that has an edge how similar a chain links it to an earlier row, and to which.

    As :func:`daskcurate.kernels.similarity.connected_matches`, but for rows of a large pool of which few have edges.
    """
    nodes, ends = np.unique(np.concatenate([edges.i, edges.j]), return_inverse=True)
    i, j = ends[: len(edges.i)], ends[len(edges.i) :]
    found = connected_matches(Edges(i, j, edges.similarity), len(nodes))
    match = np.where(found.position >= 0, nodes[found.position], -1) if len(nodes) else found.position
    return Linked(nodes, found.similarity, match)
