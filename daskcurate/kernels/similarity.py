"""Cosine similarity of rows to earlier rows of one cluster, in the order that decides which are kept.

A cluster comes as blocks of rows, in order. Tiles start at multiples of ``TILE`` of the place in that order,
and whatever is found is found a pair of tiles at a time: so no result depends, in any bit, on how a cluster
was cut into blocks (at multiples of ``TILE``), and memory stays at a float32 copy of the blocks and a few
arrays of ``TILE`` x ``TILE``.

A float32 matrix product finds candidates, on GPUs one of float16. Which of them is the best, and how similar it
is, is computed again in float64 from the rows as given and then rounded to float32: copies have similarity 1
exactly (:mod:`daskcurate.kernels.blocks`).

Method: SemDeDup, Abbas et al. 2023 (arXiv 2303.09540), without its limit to parts of large clusters.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree

from daskcurate.arrays import Array, namespace_of, to_host
from daskcurate.kernels.blocks import Block, Room, prepare, prepare_each, rounded_surely
from daskcurate.kernels.products import choose, unit_margin
from daskcurate.kernels.tiles import NEVER, Best, Scores

TILE = 1024
"""Rows of a tile: large enough for the matrix product to run at full speed, 4 MiB of float32 a pair."""


DEVICE_TILE = 8192
"""Likewise on a GPU, which does a product of ``TILE`` rows in the time that it takes to start it: 256 MiB a pair."""


def tile_of(on_gpu: bool) -> int:
    """Return the rows of a tile; blocks of a cluster are to be cut at multiples of it."""
    return DEVICE_TILE if on_gpu else TILE


def _tile(x: Array) -> int:
    return tile_of(namespace_of(x) is not np)


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


def earlier_within(x: Array, start: int = 0, *, tile: int | None = None) -> EarlierMatch:
    """Return the most similar earlier row for each row of one block.

    Parameters
    ----------
    x
        float32 or float16 (m, d), rows in order, of any length but zero.
    start
        Place of the first row in the order of the cluster.
    tile
        Rows compared at a time; None: ``TILE``, on a GPU ``DEVICE_TILE``.

    Returns
    -------
    EarlierMatch
        float32 (m,) and int64 (m,); position counts from the start of the cluster.
    """
    return _earlier(prepare(x, start, tile or _tile(x)))


def _earlier(block: Block) -> EarlierMatch:
    best = Best(block, block)
    for b, (lo, hi) in enumerate(block.spans):
        best.sweep(lo, hi, block.spans[:b])
        best.sweep_own([(lo, hi)])
    return _match(best)


def _earlier_of_each(block: Block) -> EarlierMatch:
    """Return the matches within each tile of a block, in place of its cluster; host arrays."""
    best = Best(block, block)
    best.sweep_own(block.spans)
    similarity, position = map(to_host, _match(best))
    starts, stops = np.array(block.spans).T
    return EarlierMatch(similarity, np.where(position < 0, -1, position - np.repeat(starts, stops - starts)))


def _match(best: Best) -> EarlierMatch:
    xp = namespace_of(best.similarity)
    return EarlierMatch(xp.maximum(best.similarity, np.float32(-1)), best.position)


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
    earlier, later = (
        prepare(x, start_x, tile or _tile(x)),
        prepare(y, start_y, tile or _tile(y)),
    )
    best = Best(earlier, later)
    for lo, hi in later.spans:
        best.sweep(lo, hi, earlier.spans, of)
    return _match(best)


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
    x: Array, start: int, alive: Array, eps: float, *, tile: int | None = None
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
    return _greedy(prepare(x, start, tile or _tile(x)), alive, eps)


def _greedy(block: Block, alive: Array, eps: float) -> tuple[Array, EarlierMatch]:
    xp, best = namespace_of(block.raw), Best(block, block)
    kept = alive.copy()
    for b, (lo, hi) in enumerate(block.spans):
        best.sweep(lo, hi, block.spans[:b], kept)
        scores = best.product(block.unit[lo:hi], block.unit[lo:hi])
        alive = to_host(kept[lo:hi] & ~is_duplicate(best.similarity[lo:hi], eps))
        kept[lo:hi] = xp.asarray(_resolve(block, lo, scores, alive, eps))
        scores[~(xp.tri(hi - lo, k=-1, dtype=bool) & kept[None, lo:hi])] = NEVER
        best.update(lo, scores, xp.arange(lo, hi))
    return kept, _match(best)


def _resolve(block: Block, lo: int, scores: Array, alive: np.ndarray, eps: float) -> np.ndarray:
    """Let each row of a tile that is alive, in order, remove the later ones that repeat it; bool (n,), those kept."""
    xp, kept = namespace_of(scores), alive.copy()
    if (threshold := np.float32(1 - eps)) >= 1:
        return kept
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
    return kept


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
    return _edges(prepare(x, start, tile or _tile(x)), floor)


def _edges(block: Block, floor: float) -> Edges:
    product = Scores(block, block)
    pairs = ((columns, rows) for b, rows in enumerate(block.spans) for columns in block.spans[: b + 1])
    return _forest((_tile_edges(product, block, *pair, block, floor) for pair in pairs), len(block.raw))


def edges_across(
    x: Array, start_x: int, y: Array, start_y: int, floor: float, *, tile: int | None = None
) -> Edges:
    """Return a spanning forest of the pairs (row of x, row of y) with similarity strictly above ``floor``.

    Parameters and result as in :func:`edges_within`; all of x is earlier than all of y.
    """
    earlier, later = (
        prepare(x, start_x, tile or _tile(x)),
        prepare(y, start_y, tile or _tile(y)),
    )
    product = Scores(earlier, later)
    pairs = ((columns, rows) for rows in later.spans for columns in earlier.spans)
    edges = (_tile_edges(product, earlier, *pair, later, floor) for pair in pairs)
    return _forest(edges, len(x) + len(y))


def _tile_edges(
    product: Scores, x: Block, columns: tuple[int, int], rows: tuple[int, int], y: Block, floor: float
) -> Edges:
    """Return all pairs of two tiles above the floor, with their exact similarity."""
    xp = namespace_of(x.raw)
    (first, last), (lo, hi) = columns, rows
    low = choose(xp)
    if low is None:
        near = product(y.unit[lo:hi], x.unit[first:last]) > np.float32(floor - x.margin)
    else:
        scores = low.multiply(y.rounded[lo:hi], x.rounded[first:last])
        near = scores > np.float32(floor - x.margin - unit_margin(x.unit.shape[1], low))
    if x is y and first == lo:
        near &= xp.tri(hi - lo, k=-1, dtype=bool)
    j, i = xp.nonzero(near)
    if len(j) > near.size // 64:  # then one product of the tiles in float64 is less work than pair by pair
        dots = y.take_wide(slice(lo, hi)) @ x.take_wide(slice(first, last)).T
        dots = dots[j, i] / (y.norm[j + lo] * x.norm[i + first])
        exact, unsure = rounded_surely(xp, dots, x.raw.shape[1])
        again = xp.flatnonzero(unsure)
        exact[again] = y.exact(j[again] + lo, x, i[again] + first)
    else:
        cuts = range(0, len(j), TILE)
        parts = [y.exact(j[at : at + TILE] + lo, x, i[at : at + TILE] + first) for at in cuts]
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


RULES = ("earlier", "greedy", "connected")
"""Which earlier rows of a cluster count: all, those kept, or all that a chain of similar rows leads to."""
BATCH_ROWS = 1024
"""Rows of small clusters that are made ready together: calls cost little, and what they make stays in the cache."""


def match_clusters(x: Array, edges: Sequence[int], rule: str, eps: float) -> EarlierMatch:
    """Return the match of each row of several clusters by one of the ``RULES``; host arrays.

    Parameters
    ----------
    x
        float32 or float16 (m, d): the rows of the clusters, one after another, each in order.
    edges
        (c + 1,), ascending: the first row of each cluster, and m.
    rule, eps
        The match is the most similar earlier row; that among kept rows (:func:`greedy_within`); or the first row
        of those that a chain of pairs above 1 - eps leads to, and the most similar earlier row where none does.

    Returns
    -------
    EarlierMatch
        float32 (m,) and int64 (m,); position counts from the start of the cluster.
    """
    similarity, position = np.full(len(x), -1, np.float32), np.full(len(x), -1, np.int64)
    room = Room(namespace_of(x))
    for first, last in batches(edges, BATCH_ROWS):
        lo, hi = edges[first], edges[last]
        if last - first == 1:
            blocks: Iterable[Block] = [prepare(x[lo:hi], 0, TILE, room)]
        else:
            batch = prepare_each(x[lo:hi], [edge - lo for edge in edges[first : last + 1]], room)
            if rule == "earlier":
                similarity[lo:hi], position[lo:hi] = _earlier_of_each(batch)
                continue
            blocks = batch.each()
        for block in blocks:
            hi = lo + len(block.raw)
            if hi - lo > 1:
                found = _match_block(block, rule, eps)
                similarity[lo:hi], position[lo:hi] = map(to_host, found)
            lo = hi
    return EarlierMatch(similarity, position)


def batches(edges: Sequence[int], rows: int) -> list[tuple[int, int]]:
    """Return the first and last (exclusive) of clusters of ``rows`` rows at most together, or of one larger."""
    found, first = [], 0
    for at in range(1, len(edges)):
        if edges[at] - edges[first] > rows and at - first > 1:
            found.append((first, at - 1))
            first = at - 1
    return [*found, (first, len(edges) - 1)] if len(edges) > 1 else []


def _match_block(block: Block, rule: str, eps: float) -> EarlierMatch:
    if rule == "greedy":
        return _greedy(block, namespace_of(block.raw).ones(len(block.raw), dtype=bool), eps)[1]
    nearest = _earlier(block)
    if rule == "earlier":
        return nearest
    linked = connected_matches(_edges(block, float(np.float32(1 - eps))), len(block.raw))
    return linked_or_nearest(linked, EarlierMatch(*map(to_host, nearest)))


def linked_or_nearest(linked: EarlierMatch, nearest: EarlierMatch) -> EarlierMatch:
    """Return the linked matches, and the nearest earlier row where there is no link; host arrays."""
    some = linked.position >= 0
    return EarlierMatch(
        np.where(some, linked.similarity, nearest.similarity),
        np.where(some, linked.position, nearest.position),
    )
