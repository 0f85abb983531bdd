"""The matches of the rows of a whole pool, by each of the three rules, from its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from dask.delayed import Delayed

from daskcurate.global_greedy import match_greedy
from daskcurate.kernels import pool_matches as matches
from daskcurate.kernels.pool_pairs import compare
from daskcurate.kernels.similarity import Edges, merge_forests
from daskcurate.members import Members
from daskcurate.planning import POOL_MATCH_BYTES
from daskcurate.pool_blocks import Layout, PoolBlocks, Survey, scatter, take_survey
from daskcurate.pool_tasks import POOL_MATCHES, Found, each_pair, linked_matches, match_frame, run_pairs
from daskcurate.regroup import regroup
from daskcurate.rows import tree


def match_pool(
    run: Any,
    members: Members,
    ranks: Sequence[Delayed],
    sizes: np.ndarray,
    dim: int,
    dtype: str,
    rule: str,
    eps: float,
) -> tuple[list[Delayed], dict[str, Any]]:
    """Return lazy frames of the rows' matches above the threshold, one a chunk, and the figures of the stage.

    ``ranks`` are the rows' places in the order of the whole pool, an array a chunk.
    """
    (survey,) = run.persist([run.task(take_survey, members, sizes, eps, name="dedup-survey")], "sample pairs")
    layout = scatter(run, members, ranks, sizes, dim, dtype, eps)
    run.note(0.3, "compare rows")
    match = {"earlier": _earlier, "greedy": match_greedy, "connected": _connected}[rule]
    frames, count, pairs = match(run, layout, survey) if layout.lengths else ([], 0, 0)
    frames.append(run.task(POOL_MATCHES.copy, name="dedup-no-match"))
    bound = run.gather([run.task(_is_bound, survey, name="dedup-bound")])[0]
    back = regroup(run, frames, POOL_MATCHES, len(members.ranges), POOL_MATCH_BYTES * count, "back")
    best = [run.task(best_matches, frame, name="dedup-best", key=i) for i, frame in enumerate(back)]
    return best, {"pairs": pairs, "brute_force": not bound}


def _is_bound(survey: Survey) -> bool:
    return survey.bound


def best_matches(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the best of the matches of each row: the most similar, of equals the earliest in the order."""
    row, similarity, rank = (frame[name].to_numpy() for name in ("row", "similarity", "rank"))
    order = np.lexsort((rank, -similarity, row))
    first = np.r_[True, row[order][1:] != row[order][:-1]][: len(order)]
    return frame.iloc[order[first]]


def _nearest_frame(blocks: PoolBlocks, found: matches.NearestEarlier) -> pd.DataFrame:
    at = np.flatnonzero(found.number >= 0)
    values = (found.similarity[at], found.rank[at], found.number[at])
    return match_frame(blocks.chunk_rows, found.block.numbers[at], *values)


def _earlier(run: Any, layout: Layout, survey: Delayed) -> tuple[list[Delayed], int, int]:
    return run_pairs(run, each_pair(run, layout, _nearest, survey, name="dedup-compare"), "compare rows")


def _nearest(blocks: PoolBlocks, p: int, qs: tuple[int, ...], survey: Survey) -> Found:
    """Match the rows of block p with those of some others, and the other way round."""
    bound, frames = blocks.bound(survey), []
    mine = matches.NearestEarlier(blocks.load(p, survey.basis), blocks.eps)

    def match_with(q: int) -> int:  # a function: two blocks are held at a time
        other = mine if q == p else matches.NearestEarlier(blocks.load(q, survey.basis), blocks.eps)
        pairs = compare(mine.block, other.block, bound, blocks.eps, matches.nearest_into(mine, other))
        if other is not mine:
            frames.append(_nearest_frame(blocks, other))
        return pairs

    pairs = sum(match_with(q) for q in qs)
    frame = pd.concat([_nearest_frame(blocks, mine), *frames], ignore_index=True)
    return Found(frame, pairs, len(frame))


def _connected(run: Any, layout: Layout, survey: Delayed) -> tuple[list[Delayed], int, int]:
    parts, _, pairs = run_pairs(
        run, each_pair(run, layout, _forest, survey, name="dedup-edges"), "compare rows"
    )
    forest = tree(run, _merge_forests, parts, name="dedup-forest", key="pool")
    linked = run.task(matches.connected_edges, forest, name="dedup-connect")
    frames, count = linked_matches(run, layout, linked, "connect rows")
    return frames, count, pairs


def _merge_forests(parts: list[Edges]) -> Edges:
    return merge_forests(*parts)


def _forest(blocks: PoolBlocks, p: int, qs: tuple[int, ...], survey: Survey) -> Found:
    bound, pairs = blocks.bound(survey), 0
    mine = blocks.load(p, survey.basis)
    sink = matches.PairEdges(blocks.eps, forest_rows=len(mine))
    for q in qs:
        pairs += compare(mine, mine if q == p else blocks.load(q, survey.basis), bound, blocks.eps, sink.take)
    return Found(sink.edges(), pairs, 0)
