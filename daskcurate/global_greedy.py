"""The rule ``greedy`` across clusters: rows removed by kept rows only, in the order of the whole pool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from dask.delayed import Delayed

from daskcurate.kernels import pool_matches as matches
from daskcurate.kernels.pool_pairs import PoolBlock, compare
from daskcurate.kernels.similarity import Edges
from daskcurate.pool_blocks import Layout, PoolBlocks, Survey
from daskcurate.pool_tasks import Found, linked_matches, match_frame, run_pairs
from daskcurate.rows import tree

GREEDY_EDGES = 1 << 24
"""Edges that one task removes rows by; less where workers are small."""
GREEDY_EDGE_BYTES = 256
"""Memory for an edge there."""
_BINS = 4096


class _Removed(NamedTuple):
    """What is known of the rows of a block while rows are removed, in the order of the pool."""

    similarity: np.ndarray
    rank: np.ndarray
    number: np.ndarray
    """The best kept earlier row so far; -1: the row is kept, or not yet decided."""


def match_greedy(run: Any, layout: Layout, survey: Delayed) -> tuple[list[Delayed], int, int]:
    """Remove the rows that repeat a kept one: a part of the order at a time, as many edges as a task holds.

    The rows of a part that nothing earlier removed are settled by the edges among them, in one task. Those
    that it keeps then remove later rows of the whole pool.
    """
    most = max(1, min(GREEDY_EDGES, run.limits.thread_memory // GREEDY_EDGE_BYTES))
    states: dict[int, Delayed] = {}
    first, pairs, n_rows = 0, 0, layout.blocks.n_rows
    while first < n_rows:
        edges, last, more = _edges_of_part(run, layout, survey, states, first, most)
        pairs += more
        linked = run.task(_greedy_linked, edges, name="dedup-greedy", key=first)
        if first == 0 and last == n_rows:
            frames, count = linked_matches(run, layout, linked, "remove rows")
            return frames, count, pairs
        (linked,) = run.persist([linked], "remove rows")
        states, more = _remove(run, layout, survey, states, linked, first, last)
        pairs += more
        run.note(0.3 + 0.6 * last / n_rows, "remove rows")
        first = last
    frames = [
        run.task(_state_frame, layout.blocks, i, state, name="dedup-frame", key=i)
        for i, state in states.items()
    ]
    return frames, n_rows, pairs


def _edges_of_part(
    run: Any, layout: Layout, survey: Delayed, states: dict[int, Delayed], first: int, most: int
) -> tuple[list[Delayed], int, int]:
    """Return the edges among the undecided rows from place ``first`` on, up to which, and the pairs compared."""
    groups, n_rows = list(layout.groups(run.limits.n_threads)), layout.blocks.n_rows
    each = max(1 << 12, 4 * most // len(groups))

    def tasks(last: int, limit: int, key: str) -> list[Delayed]:
        return [
            run.task(
                _edges,
                layout.blocks,
                p,
                qs,
                survey,
                _states_of(states, p, qs),
                (first, last),
                limit,
                name="dedup-edges",
                key=f"{key}-{first}-{p}-{qs[0]}",
            )
            for p, qs in groups
        ]

    parts, total, pairs = run_pairs(run, tasks(n_rows, min(each, most), "try"), "compare rows")
    counts = [run.task(_counts, part, name="dedup-counts", key=part.key) for part in parts]
    counted = run.gather([tree(run, _add_counts, counts, name="dedup-counts-add", key=f"{first}")])[0]
    last = n_rows
    if total > most or not counted.whole:
        bin_rows = max(1, -(-n_rows // _BINS))
        bins = int(np.searchsorted(np.cumsum(counted.counts), most, side="right"))
        last = min(n_rows, max(bins * bin_rows, first + math.isqrt(2 * most)))
        parts, _, more = run_pairs(run, tasks(last, matches.LAST, "part"), "compare rows")
        pairs += more
    kept = [run.task(_only_edges, part, name="dedup-some-edges", key=part.key) for part in parts]
    return kept, last, pairs


class _Counted(NamedTuple):
    counts: np.ndarray
    whole: bool
    """Whether all edges were kept."""


def _counts(item: tuple[Edges | None, np.ndarray]) -> _Counted:
    return _Counted(item[1], item[0] is not None)


def _add_counts(parts: list[_Counted]) -> _Counted:
    return _Counted(np.sum([part.counts for part in parts], axis=0), all(part.whole for part in parts))


def _only_edges(item: tuple[Edges | None, np.ndarray]) -> Edges | None:
    return item[0]


def _greedy_linked(edges: list[Edges]) -> matches.Linked:
    return matches.greedy_edges(matches.join_edges(edges))


def _states_of(states: dict[int, Delayed], p: int, qs: Sequence[int]) -> list[Delayed]:
    return [] if not states else [states[p], *(states[q] for q in qs)]


def _edges(
    blocks: PoolBlocks,
    p: int,
    qs: tuple[int, ...],
    survey: Survey,
    states: list[_Removed],
    part: tuple[int, int],
    most: int,
) -> Found:
    """Return the edges among the rows of a part of the order that are not removed, and their candidates' number."""
    sink = matches.PairEdges(blocks.eps, most=most, bins=_BINS, n_rows=blocks.n_rows)

    def undecided(b: int, i: int) -> PoolBlock:
        block = blocks.load(b, survey.basis)
        mask = (block.ranks >= part[0]) & (block.ranks < part[1])
        return block.take(mask & (states[i].number < 0) if states else mask)

    bound, pairs, mine = blocks.bound(survey), 0, undecided(p, 0)
    for i, q in enumerate(qs, 1):
        pairs += compare(mine, mine if q == p else undecided(q, i), bound, blocks.eps, sink.take)
    return Found((sink.edges(), sink.counts), pairs, int(sink.counts.sum()))


def _remove(
    run: Any,
    layout: Layout,
    survey: Delayed,
    states: dict[int, Delayed],
    linked: Delayed,
    first: int,
    last: int,
) -> tuple[dict[int, Delayed], int]:
    """Return the states after the rows kept in a part have removed later ones, and the pairs compared."""
    groups = list(layout.groups(run.limits.n_threads))
    tasks = [
        run.task(
            _removals,
            layout.blocks,
            p,
            qs,
            survey,
            _states_of(states, p, qs),
            linked,
            (first, last),
            name="dedup-remove",
            key=f"{first}-{p}-{qs[0]}",
        )
        for p, qs in groups
    ]
    parts, _, pairs = run_pairs(run, tasks, "remove rows")
    made = [
        run.task(
            _merge_removals,
            i,
            length,
            _states_of(states, i, ()),
            [part for part, (p, qs) in zip(parts, groups, strict=True) if i == p or i in qs],
            name="dedup-state",
            key=f"{first}-{i}",
        )
        for i, length in layout.lengths.items()
    ]
    return dict(zip(layout.lengths, run.persist(made, "remove rows"), strict=True)), pairs


class _Removal(NamedTuple):
    """Rows of a block, by their places in it, and a kept row that each of them repeats."""

    block: int
    position: np.ndarray
    values: _Removed


def _removals(
    blocks: PoolBlocks,
    p: int,
    qs: tuple[int, ...],
    survey: Survey,
    states: list[_Removed],
    linked: matches.Linked,
    part: tuple[int, int],
) -> Found:
    """Return which rows repeat a row that is kept in a part of the order."""
    removed = linked.ranks[linked.match >= 0]

    def split(b: int, i: int) -> tuple[PoolBlock, matches.NearestEarlier, np.ndarray]:
        block = blocks.load(b, survey.basis)
        kept = (block.ranks >= part[0]) & (block.ranks < part[1]) & ~np.isin(block.ranks, removed)
        if states:
            kept &= states[i].number < 0
        other = (block.ranks > part[0]) & ~kept
        return block.take(kept), matches.NearestEarlier(block.take(other), blocks.eps), np.flatnonzero(other)

    def removal(b: int, near: matches.NearestEarlier, position: np.ndarray) -> _Removal:
        some = near.number >= 0
        return _Removal(
            b, position[some], _Removed(near.similarity[some], near.rank[some], near.number[some])
        )

    bound, found = blocks.bound(survey), []
    kept, near, position = split(p, 0)

    def remove_with(q: int, i: int) -> int:  # a function: two blocks are held at a time
        kept_q, near_q, position_q = split(q, i)
        pairs = compare(kept, near_q.block, bound, blocks.eps, matches.kept_into(near_q))
        pairs += compare(kept_q, near.block, bound, blocks.eps, matches.kept_into(near))
        found.append(removal(q, near_q, position_q))
        return pairs

    pairs = 0
    for i, q in enumerate(qs, 1):
        if q == p:
            pairs += compare(kept, near.block, bound, blocks.eps, matches.kept_into(near))
        else:
            pairs += remove_with(q, i)
    found.append(removal(p, near, position))
    return Found(found, pairs, 0)


def _merge_removals(i: int, length: int, before: list[_Removed], parts: list[list[_Removal]]) -> _Removed:
    """Return the state of block i: the best of what was known and of what was found now."""
    state = _Removed(
        np.full(length, -1, np.float32),
        np.full(length, matches.LAST, np.int64),
        np.full(length, -1, np.int64),
    )
    found = [(np.arange(length), old) for old in before]
    found += [(item.position, item.values) for part in parts for item in part if item.block == i]
    for position, values in found:
        better = values.similarity > state.similarity[position]
        better |= (values.similarity == state.similarity[position]) & (values.rank < state.rank[position])
        for target, new in zip(state, values, strict=True):
            target[position[better]] = new[better]
    return state


def _state_frame(blocks: PoolBlocks, i: int, state: _Removed) -> pd.DataFrame:
    some = np.flatnonzero(state.number >= 0)
    numbers = blocks.index(i)[1][some]
    return match_frame(blocks.chunk_rows, numbers, *(values[some] for values in state))
