"""Comparing the rows of clusters out of core: whole clusters in a task, giant ones by pairs of blocks.

Blocks are cut by a row's rank in the order of its cluster, at multiples of the kernels' tile, so the
result is the same wherever a cluster is cut, and no pair is missed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from dask.delayed import Delayed

from daskcurate.arrays import namespace_of
from daskcurate.device import on_device
from daskcurate.kernels import similarity as kernel
from daskcurate.kernels.similarity import EarlierMatch, tile_of
from daskcurate.members import Members, SortKey, load_labels, member_ranks, read_small, write_small
from daskcurate.planning import REGROUPED_ROW_BYTES, Limits
from daskcurate.regroup import contiguous_partitions, from_cells, regroup, to_cells
from daskcurate.rows import tree
from daskcurate.small_pools import edges_of, row_numbers

ROWS = pd.DataFrame(
    {"partition": np.empty(0, "i8"), "label": np.empty(0, "i4"), "place": np.empty(0, "f8"), "row": np.empty(0, "i8"),
     "cells": to_cells(np.empty((0, 1), "f4"))}
)  # fmt: skip
MATCHES = pd.DataFrame(
    {"partition": np.empty(0, "i8"), "row": np.empty(0, "i8"), "similarity": np.empty(0, "f4"),
     "duplicate_of": np.empty(0, "i8")}
)  # fmt: skip


class Cuts(NamedTuple):
    """Which partition the rows of each cluster go to."""

    first: np.ndarray
    """(k,) first partition of each cluster."""
    giant: np.ndarray
    """(k,) whether the cluster takes several partitions, ``limit`` rows each."""
    limit: int
    n_partitions: int


def block_rows(n_rows: int, row_bytes: int, limits: Limits) -> int:
    """Return the rows of a partition: bounded in bytes, and several for each thread; whole tiles."""
    tile = tile_of(limits.on_gpu)
    limit = min(limits.part_bytes // row_bytes, n_rows // (4 * limits.n_threads))
    return max(1, limit // tile) * tile


def cut(sizes: np.ndarray, limit: int) -> Cuts:
    """Return how clusters of the given sizes are laid out in partitions of at most ``limit`` rows."""
    shared = contiguous_partitions(sizes, limit)
    giant = sizes > limit
    pieces = np.where(giant, -(-sizes // limit), 1)
    extra = np.cumsum(np.where(giant, pieces - 1, 0)) - np.where(giant, pieces - 1, 0)
    first = shared + extra
    return Cuts(first, giant, limit, int(first[-1] + pieces[-1]) if len(sizes) else 1)


def match_clusters(
    run: Any,
    members: Members,
    key: SortKey,
    sizes: np.ndarray,
    dim: int,
    dtype: str,
    rule: str,
    eps: float,
) -> list[Delayed]:
    """Return lazy frames of every row's match: partition (its chunk), row, similarity, duplicate_of.

    A cluster that a task takes whole is put in order there; only the rows of giants are ranked beforehand.
    """
    row_bytes = dim * np.dtype(dtype).itemsize
    cuts = cut(sizes, block_rows(int(sizes.sum()), row_bytes, run.limits))
    urls = (write_small(run, "cut-first", cuts.first), write_small(run, "cut-giant", cuts.giant))
    ranks: Sequence[Delayed | None] = [None] * len(members.ranges)
    if cuts.giant.any():
        among = np.where(cuts.giant, sizes, 0)
        ranks = run.persist(member_ranks(run, members, key, among, urls[1]), "order rows")
    run.note(0.1, "compare rows")
    frames = [
        run.task(_row_frame, members, key, rank, urls, cuts.limit, *r, name="dedup-rows", key=r[0])
        for rank, r in zip(ranks, members.ranges, strict=True)
    ]
    nbytes = (row_bytes + REGROUPED_ROW_BYTES) * int(sizes.sum())
    grouped = regroup(run, frames, ROWS, cuts.n_partitions, nbytes, "clusters")
    whole = np.ones(cuts.n_partitions, dtype=bool)
    lazy: list[Delayed] = []
    for cluster in np.flatnonzero(cuts.giant):
        first, pieces = int(cuts.first[cluster]), -(-int(sizes[cluster]) // cuts.limit)
        whole[first : first + pieces] = False
        blocks = [
            run.task(_block, frame, dim, dtype, name="dedup-block", key=first + i)
            for i, frame in enumerate(grouped[first : first + pieces])
        ]
        lazy.extend(
            _match_giant(run, blocks, cuts.limit, int(sizes[cluster]), members.chunk_rows, rule, eps, first)
        )
    lazy.extend(
        run.task(
            _match_whole,
            grouped[i],
            dim,
            dtype,
            members.chunk_rows,
            rule,
            eps,
            name="dedup-compare",
            key=int(i),
        )
        for i in np.flatnonzero(whole)
    )
    return run.persist(lazy, "compare rows")


def _row_frame(
    members: Members,
    key: SortKey,
    ranks: np.ndarray | None,
    urls: tuple[str, str],
    limit: int,
    start: int,
    stop: int,
) -> pd.DataFrame:
    """Return the rows of a chunk, and what orders them in their clusters: the rank in giants, the key in others."""
    labels = load_labels(members, start, stop)
    at = np.flatnonzero(labels >= 0)
    label, place = labels[at], key.load(members, start, stop)[at].astype(np.float64)
    first, giant = (read_small(url) for url in urls)
    partition = first[label]
    if ranks is not None:
        inside = giant[label]
        rank = ranks[at][inside]
        place[inside] = rank
        partition[inside] += rank // limit
    assert members.source is not None
    rows = members.source.read(start, stop)[at]
    return pd.DataFrame(
        {
            "partition": partition.astype(np.int64),
            "label": label,
            "place": place,
            "row": at + start,
            "cells": to_cells(rows),
        }
    )


class RankedBlock(NamedTuple):
    """Rows of one cluster, or of several, in order."""

    labels: np.ndarray
    """(m,) clusters, ascending."""
    numbers: np.ndarray
    """(m,) row numbers in the pool."""
    rows: np.ndarray
    """(m, d), as stored."""


def _block(frame: pd.DataFrame, dim: int, dtype: str) -> RankedBlock:
    order = np.lexsort([frame[name].to_numpy() for name in ("row", "place", "label")])
    rows = from_cells(frame["cells"], dim, np.dtype(dtype))[order]
    return RankedBlock(frame["label"].to_numpy()[order], frame["row"].to_numpy()[order], rows)


def _match_whole(
    frame: pd.DataFrame, dim: int, dtype: str, chunk_rows: int, rule: str, eps: float
) -> pd.DataFrame:
    """Match the rows of every cluster of a partition."""
    block = _block(frame, dim, dtype)
    edges = edges_of(block.labels)
    found = on_device(kernel.match_clusters)(block.rows, edges, rule, eps)
    return _frame(block.numbers, found.similarity, row_numbers(found, block.numbers, edges), chunk_rows)


def _frame(numbers: np.ndarray, similarity: np.ndarray, match: np.ndarray, chunk_rows: int) -> pd.DataFrame:
    return pd.DataFrame(
        {"partition": numbers // chunk_rows, "row": numbers, "similarity": similarity, "duplicate_of": match}
    )


def _match_giant(
    run: Any, blocks: list[Delayed], limit: int, size: int, chunk_rows: int, rule: str, eps: float, key: int
) -> list[Delayed]:
    """Return a frame of matches per block of a cluster that takes several."""
    found = (
        _giant_greedy(run, blocks, limit, eps, key)
        if rule == "greedy"
        else _giant_earlier(run, blocks, limit, key)
    )
    # block by block first: a task that took the blocks for their numbers would hold the whole cluster
    pieces = [
        run.task(_numbers, block, name="dedup-numbers", key=f"{key}-{b}") for b, block in enumerate(blocks)
    ]
    numbers = run.task(np.concatenate, pieces, name="dedup-numbers", key=key)
    if rule == "connected":
        floor = float(np.float32(1 - eps))
        parts = []
        for b, block in enumerate(blocks):
            parts.append(
                run.task(_edges_within, block, b * limit, floor, name="dedup-edges", key=f"{key}-{b}-{b}")
            )
            parts.extend(
                run.task(
                    _edges_across,
                    blocks[a],
                    a * limit,
                    block,
                    b * limit,
                    floor,
                    name="dedup-edges",
                    key=f"{key}-{a}-{b}",
                )
                for a in range(b)
            )
        forest = tree(run, _merge_forests, parts, name="dedup-forest", key=f"{key}-forest")
        linked = run.task(kernel.connected_matches, forest, size, name="dedup-connect", key=key)
        found = [
            run.task(_linked_part, item, linked, b * limit, name="dedup-linked", key=f"{key}-{b}")
            for b, item in enumerate(found)
        ]
    return [
        run.task(_giant_frame, block, item, numbers, chunk_rows, name="dedup-frame", key=f"{key}-{b}")
        for b, (block, item) in enumerate(zip(blocks, found, strict=True))
    ]


def _giant_earlier(run: Any, blocks: list[Delayed], limit: int, key: int) -> list[Delayed]:
    found = []
    for b, block in enumerate(blocks):
        parts = [run.task(_within, block, b * limit, name="dedup-compare", key=f"{key}-{b}-{b}")]
        parts.extend(
            run.task(
                _across, blocks[a], a * limit, block, b * limit, name="dedup-compare", key=f"{key}-{a}-{b}"
            )
            for a in range(b)
        )
        found.append(tree(run, _merge_all, parts, name="dedup-merge", key=f"{key}-{b}"))
    return found


def _giant_greedy(run: Any, blocks: list[Delayed], limit: int, eps: float, key: int) -> list[Delayed]:
    """Settle block after block: a block is compared with the kept rows of each earlier one as these are known."""
    kept: list[Delayed] = []
    found = []
    for b, block in enumerate(blocks):
        parts = [
            run.task(
                _across_kept,
                blocks[a],
                a * limit,
                kept[a],
                block,
                b * limit,
                name="dedup-compare",
                key=f"{key}-{a}-{b}",
            )
            for a in range(b)
        ]
        earlier = tree(run, _merge_all, parts, name="dedup-merge", key=f"{key}-{b}") if parts else None
        settled = run.task(_settle, block, b * limit, earlier, eps, name="dedup-settle", key=f"{key}-{b}")
        kept.append(run.task(_first, settled, name="dedup-kept", key=f"{key}-{b}"))
        found.append(run.task(_second, settled, name="dedup-match", key=f"{key}-{b}"))
    return found


@on_device
def _within(block: RankedBlock, start: int) -> EarlierMatch:
    return kernel.earlier_within(block.rows, start)


@on_device
def _across(x: RankedBlock, start_x: int, y: RankedBlock, start_y: int) -> EarlierMatch:
    return kernel.earlier_across(x.rows, start_x, y.rows, start_y)


@on_device
def _across_kept(
    x: RankedBlock, start_x: int, kept: np.ndarray, y: RankedBlock, start_y: int
) -> EarlierMatch:
    return kernel.earlier_across(x.rows, start_x, y.rows, start_y, of=kept)


def _merge_all(parts: list[EarlierMatch]) -> EarlierMatch:
    merged = parts[0]
    for part in parts[1:]:
        merged = kernel.merge_earlier(merged, part)
    return merged


@on_device
def _settle(
    block: RankedBlock, start: int, earlier: EarlierMatch | None, eps: float
) -> tuple[np.ndarray, EarlierMatch]:
    alive = namespace_of(block.rows).ones(len(block.rows), dtype=bool)
    if earlier is not None:
        alive = ~kernel.is_duplicate(earlier.similarity, eps)
    kept, own = kernel.greedy_within(block.rows, start, alive, eps)
    return kept, own if earlier is None else kernel.merge_earlier(earlier, own)


def _first(pair: tuple[Any, Any]) -> Any:
    return pair[0]


def _second(pair: tuple[Any, Any]) -> Any:
    return pair[1]


@on_device
def _edges_within(block: RankedBlock, start: int, floor: float) -> Any:
    return kernel.edges_within(block.rows, start, floor)


@on_device
def _edges_across(x: RankedBlock, start_x: int, y: RankedBlock, start_y: int, floor: float) -> Any:
    return kernel.edges_across(x.rows, start_x, y.rows, start_y, floor)


def _merge_forests(parts: list[Any]) -> Any:
    return kernel.merge_forests(*parts)


def _linked_part(nearest: EarlierMatch, linked: EarlierMatch, start: int) -> EarlierMatch:
    stop = start + len(nearest.position)
    part = EarlierMatch(linked.similarity[start:stop], linked.position[start:stop])
    return kernel.linked_or_nearest(part, nearest)


def _numbers(block: RankedBlock) -> np.ndarray:
    return block.numbers


def _giant_frame(
    block: RankedBlock, found: EarlierMatch, numbers: np.ndarray, chunk_rows: int
) -> pd.DataFrame:
    return _frame(block.numbers, found.similarity, row_numbers(found, numbers), chunk_rows)
