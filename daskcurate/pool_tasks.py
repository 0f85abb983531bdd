"""Tasks over pairs of blocks of a pool, and the frames of matches that come of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from dask.delayed import Delayed

from daskcurate.kernels import pool_matches as matches
from daskcurate.pool_blocks import Layout, PoolBlocks

POOL_MATCHES = pd.DataFrame(
    {"partition": np.empty(0, "i8"), "row": np.empty(0, "i8"), "similarity": np.empty(0, "f4"),
     "rank": np.empty(0, "i8"), "duplicate_of": np.empty(0, "i8")}
)  # fmt: skip


class Found(NamedTuple):
    """What a task over pairs of blocks returns."""

    result: Any
    pairs: int
    """Pairs compared."""
    size: int
    """Matches, or candidates for edges."""


def each_pair(
    run: Any, layout: Layout, function: Callable[..., Any], *args: Any, name: str, key: str = "pool"
) -> list[Delayed]:
    """Return one lazy task a group of pairs of blocks: ``function(blocks, p, qs, *args)``."""
    return [
        run.task(function, layout.blocks, p, qs, *args, name=name, key=f"{key}-{p}-{qs[0]}")
        for p, qs in layout.groups(run.limits.n_threads)
    ]


def match_frame(
    chunk_rows: int, row: np.ndarray, similarity: np.ndarray, rank: np.ndarray, match: np.ndarray
) -> pd.DataFrame:
    """Return matches as a frame: row numbers, similarity, place and row number of the match, (m,) each."""
    columns = {"partition": row // chunk_rows, "row": row, "similarity": similarity}
    return pd.DataFrame({**columns, "rank": rank, "duplicate_of": match})


def run_pairs(run: Any, tasks: list[Delayed], step: str) -> tuple[list[Delayed], int, int]:
    """Run tasks that return :class:`Found`; return handles to the results, and the sums of sizes and pairs."""
    kept = run.persist(tasks, step)
    sums = run.gather(
        [run.task(_figures, item, name="dedup-figures", key=item.key) for item in kept], "count pairs"
    )
    results = [run.task(_result, item, name="dedup-result", key=item.key) for item in kept]
    return results, sum(size for size, _ in sums), sum(pairs for _, pairs in sums)


def _figures(found: Found) -> tuple[int, int]:
    return found.size, found.pairs


def _result(found: Found) -> Any:
    return found.result


def linked_matches(run: Any, layout: Layout, linked: Delayed, step: str) -> tuple[list[Delayed], int]:
    """Return a lazy frame of matches that are known by their places in the order, and the rows in it."""
    (linked,) = run.persist([linked], step)
    count = run.gather([run.task(_rows_linked, linked, name="dedup-count")])[0]
    numbers = [
        run.task(_numbers_of, layout.blocks, i, linked, name="dedup-numbers", key=i) for i in layout.lengths
    ]
    return [run.task(_linked_frame, layout.blocks, linked, numbers, name="dedup-frame")], count


def _rows_linked(linked: matches.Linked) -> int:
    return len(linked.ranks)


def _numbers_of(blocks: PoolBlocks, i: int, linked: matches.Linked) -> tuple[np.ndarray, np.ndarray]:
    """Return place and row number of the rows of a block that have a match, or are one."""
    ranks, numbers = blocks.index(i)
    some = np.isin(ranks, linked.ranks, assume_unique=True)
    return ranks[some], numbers[some]


def _linked_frame(
    blocks: PoolBlocks, linked: matches.Linked, parts: list[tuple[np.ndarray, np.ndarray]]
) -> pd.DataFrame:
    none = np.empty(0, np.int64)
    ranks, numbers = (np.concatenate([none, *columns]) for columns in zip(*parts, strict=True))
    row_of = numbers[np.argsort(ranks)]  # all rows of ``linked``, in its order
    some = linked.match >= 0
    match = row_of[np.searchsorted(linked.ranks, linked.match[some])]
    return match_frame(blocks.chunk_rows, row_of[some], linked.similarity[some], linked.match[some], match)
