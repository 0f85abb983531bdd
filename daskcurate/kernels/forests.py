"""Spanning forests of highest similarity that grow as edges come, and tell which of these are of no use.

Where most pairs of rows are above the threshold, there are many more edges than rows, and nearly all of them
link rows that stronger edges link already: those need not be measured exactly.
"""

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from daskcurate.kernels.similarity import TILE, Edges, merge_forests

SHARES = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Which rows are linked is known by the edges but for these shares of the weakest."""


class Forest:
    """The spanning forest of highest similarity of all edges taken, holding little more than two edges a row."""

    def __init__(self, rows: int):
        self.most = 2 * rows + 4 * TILE
        """Edges that are held at most before the forest of them is found."""
        self._held: list[Edges] = []
        self._size = 0
        self.version = 0
        """Grows where what :meth:`places` returns changes."""
        self._nodes = np.empty(0, np.int64)
        self._levels = np.empty(0, np.float32)
        self._component = np.empty((0, 1), np.int32)

    def add(self, edges: Edges) -> None:
        """Take edges."""
        self._held.append(edges)
        self._size += len(edges.i)
        if self._size > self.most:
            self._held = [merge_forests(*self._held)]
            self._size = len(self._held[0].i)
            self._learn(self._held[0])

    def edges(self) -> Edges:
        """Return the forest."""
        return merge_forests(*self._held)

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Return where :meth:`has_use` looks up some rows, as edges name them."""
        at = np.searchsorted(self._nodes, rows)
        found = np.zeros(len(rows), bool)
        inside = at < len(self._nodes)
        found[inside] = self._nodes[at[inside]] == rows[inside]
        return np.where(found, at, len(self._nodes))

    def has_use(self, i: np.ndarray, j: np.ndarray, most: np.ndarray) -> np.ndarray:
        """Return bool, which edges between ``places`` i and j, ``most`` similar at most, may be of use.

        None between rows that edges of at least that similarity link: with them and without, the same rows
        are linked at every threshold.
        """
        level = np.searchsorted(self._levels, most)
        known = level < len(self._levels)
        if not known.any():
            return np.ones(len(i), bool)
        level = np.minimum(level, len(self._levels) - 1)
        one = self._component[level, i]
        linked = one == self._component[level, j]
        linked &= (one >= 0) & known
        return ~linked

    def _learn(self, forest: Edges) -> None:
        """Look up which rows are linked by the edges of the forest but for the weakest."""
        self.version += 1
        self._nodes, ends = np.unique(np.concatenate([forest.i, forest.j]), return_inverse=True)
        i, j = ends[: len(forest.i)], ends[len(forest.i) :]
        ranked, n = np.sort(forest.similarity), len(self._nodes)
        self._levels = np.unique([ranked[int(share * len(ranked))] for share in SHARES])
        self._component = np.full((len(self._levels), n + 1), -1, np.int32)  # the last: a row without edges
        for own, level in zip(self._component, self._levels, strict=True):
            strong = forest.similarity >= level
            graph = csr_array((np.ones(int(strong.sum())), (i[strong], j[strong])), shape=(n, n))
            own[:-1] = connected_components(graph, directed=False)[1]
