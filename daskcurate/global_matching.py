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
from daskcurate.pool_blocks import PoolBlocks, Survey, scatter, take_survey
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
    blocks = scatter(run, members, ranks, sizes, dim, dtype, eps)
    run.note(0.3, "compare rows")
    match = {"earlier": _earlier, "greedy": match_greedy, "connected": _connected}[rule]
    frames, count, pairs = match(run, blocks, survey) if blocks.urls else ([], 0, 0)
    frames.append(run.task(POOL_MATCHES.copy, name="dedup-no-match"))
    bound = run.gather([run.task(_is_bound, survey, name="dedup-bound")])[0]
    back = regroup(run, frames, POOL_MATCHES, len(members.ranges), 48 * count, "back")
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


def _nearest_frame(blocks: PoolBlocks, parts: Sequence[matches.NearestEarlier]) -> pd.DataFrame:
    frames = [POOL_MATCHES]
    for part in parts:
        at = np.flatnonzero(part.number >= 0)
        values = (part.similarity[at], part.rank[at], part.number[at])
        if len(at):
            frames.append(match_frame(blocks.chunk_rows, part.block.numbers[at], *values))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def _earlier(run: Any, blocks: PoolBlocks, survey: Delayed) -> tuple[list[Delayed], int, int]:
    return run_pairs(run, each_pair(run, blocks, _nearest, survey, name="dedup-compare"), "compare rows")


def _nearest(blocks: PoolBlocks, p: int, qs: tuple[int, ...], survey: Survey) -> Found:
    """Match the rows of block p with those of some others, and the other way round."""
    bound, pairs = blocks.bound(survey), 0
    mine = matches.NearestEarlier(blocks.load(p, survey.basis), blocks.eps)
    frames = []
    for q in qs:
        other = mine if q == p else matches.NearestEarlier(blocks.load(q, survey.basis), blocks.eps)
        take = matches.nearest_into(mine, other)
        pairs += compare(mine.block, other.block, bound, blocks.eps, take)
        if other is not mine:
            frames.append(_nearest_frame(blocks, [other]))
    frame = pd.concat([_nearest_frame(blocks, [mine]), *frames], ignore_index=True)
    return Found(frame, pairs, len(frame))


def _connected(run: Any, blocks: PoolBlocks, survey: Delayed) -> tuple[list[Delayed], int, int]:
    parts, _, pairs = run_pairs(
        run, each_pair(run, blocks, _forest, survey, name="dedup-edges"), "compare rows"
    )
    forest = tree(run, _merge_forests, parts, name="dedup-forest", key="pool")
    linked = run.task(matches.connected_edges, forest, name="dedup-connect")
    frames, count = linked_matches(run, blocks, linked, "connect rows")
    return frames, count, pairs


def _merge_forests(parts: list[Edges]) -> Edges:
    return merge_forests(*parts)


def _forest(blocks: PoolBlocks, p: int, qs: tuple[int, ...], survey: Survey) -> Found:
    bound, pairs = blocks.bound(survey), 0
    sink = matches.PairEdges(blocks.eps, forest_rows=blocks.rows_of(p, qs))
    mine = blocks.load(p, survey.basis)
    for q in qs:
        other = mine if q == p else blocks.load(q, survey.basis)
        pairs += compare(mine, other, bound, blocks.eps, sink.take)
    return Found(sink.edges(), pairs, 0)
