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
from daskcurate.kernels.threads import spread
from daskcurate.members import Members, SortKey, load_labels, member_ranks, read_small, write_small
from daskcurate.planning import Limits
from daskcurate.regroup import contiguous_partitions, from_cells, regroup, to_cells
from daskcurate.rows import tree

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


WHOLE_OPERATIONS = 50_000_000_000
"""Work of each thread, some tenths of a second to a second, up to which the rows of a small pool are not regrouped
over the cluster, which would take longer: a task of each worker reads all of them, and compares its share."""
SHARES = 8
"""Such tasks, at most: each reads the whole pool."""


def fits_shares(limits: Limits, n_rows: int, sizes: np.ndarray, dim: int, itemsize: int) -> bool:
    """Return whether :func:`match_share` compares the rows of a pool of ``n_rows``, rather than many tasks.

    The result is the same to the bit. No cluster may be so large that one thread is left with it.
    """
    work = dim * (sizes.astype(np.float64) ** 2)
    return (
        n_rows * (dim * itemsize + 28) <= limits.small_regroup_bytes
        and work.sum() <= WHOLE_OPERATIONS * limits.host_threads
        and work.max(initial=0) * limits.host_threads <= max(work.sum(), WHOLE_OPERATIONS / 10)
    )


_TURN_ROWS = 2048
"""Rows of the clusters that a thread compares in turn: enough that turns cost nothing, few beside a small pool."""


class Share(NamedTuple):
    """The matches of some rows of a pool."""

    numbers: np.ndarray
    """(m,) the rows."""
    similarity: np.ndarray
    match: np.ndarray
    """(m,) row numbers; -1 where there is no earlier row."""


def share_tasks(run: Any, members: Members, key: SortKey, rule: str, eps: float) -> list[Delayed]:
    """Return lazy tasks, one a worker, that match the rows of all clusters (see :func:`match_share`)."""
    limits = run.limits
    parts = 1 if limits.on_gpu else min(limits.n_workers, SHARES)
    threads = 1 if limits.on_gpu else max(limits.threads_per_worker, limits.host_threads // parts)
    return [
        run.task_on(
            i, match_share, members, key, rule, eps, i, parts, name="dedup-compare", key=i, threads=threads
        )
        for i in range(parts)
    ]


def match_share(members: Members, key: SortKey, rule: str, eps: float, part: int, parts: int) -> Share:
    """Return the match of every row of some clusters, one of ``parts`` shares of about equal work.

    A worker process each: threads of one would wait for each other wherever NumPy is called.
    """
    labels = load_labels(members, 0, members.n_rows)
    place, owner = _places(labels, members.n_clusters, parts)
    inside = np.flatnonzero((owner == part)[labels] & (labels >= 0))
    place = place[labels[inside]]
    order = np.lexsort((key.load_all(members)[inside], place))
    place, order = place[order], inside[order]
    rows = _read_in_order(members, order)
    edges = _edges_of(place)
    found = EarlierMatch(np.empty(len(order), np.float32), np.empty(len(order), np.int64))

    def compare(first: int, last: int) -> None:
        start, stop = edges[first], edges[last]
        own = on_device(kernel.match_clusters)(
            rows[start:stop], [edge - start for edge in edges[first : last + 1]], rule, eps
        )
        found.similarity[start:stop], found.position[start:stop] = own

    turns = kernel.batches(edges, _TURN_ROWS)
    spread(compare, [first for first, _ in turns], [last for _, last in turns])
    return Share(order, found.similarity, _row_numbers(found, order, edges))


def _places(labels: np.ndarray, n_clusters: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each cluster's place among them, the largest first, and the part that compares its rows, (k,) each.

    Clusters of about one size are neighbours, which the kernel looks at together. Parts take turns, to and fro.
    """
    sizes = np.bincount(labels[labels >= 0], minlength=n_clusters)
    order = np.argsort(-sizes, kind="stable")
    place, owner = np.empty_like(order), np.empty_like(order)
    turn = np.arange(len(order))
    place[order] = turn
    owner[order] = np.minimum(turn % (2 * parts), 2 * parts - 1 - turn % (2 * parts))
    return place, owner


def _read_in_order(members: Members, order: np.ndarray) -> np.ndarray:
    """Return the rows with numbers ``order``, each written to its place as its chunk is read."""
    source = members.source
    assert source is not None
    place = np.full(members.n_rows, -1, np.int64)
    place[order] = np.arange(len(order))
    rows = np.empty((len(order), source.dim), f"f{source.itemsize}")

    def read(start: int, stop: int) -> None:
        at = place[start:stop]
        wanted = at >= 0
        chunk = source.read(start, stop)
        rows[at if wanted.all() else at[wanted]] = chunk if wanted.all() else chunk[wanted]

    spread(read, *zip(*members.ranges, strict=True))
    return rows


def _edges_of(labels: np.ndarray) -> list[int]:
    """Return where each cluster starts, of ascending labels, and their number."""
    change = labels[1:] != labels[:-1]
    return np.flatnonzero(np.r_[True, change, True]).tolist() if len(labels) else [0]


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
    grouped = regroup(run, frames, ROWS, cuts.n_partitions, (row_bytes + 28) * int(sizes.sum()), "clusters")
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
    numbers: np.ndarray
    rows: np.ndarray


def _block(frame: pd.DataFrame, dim: int, dtype: str) -> RankedBlock:
    order = np.lexsort([frame[name].to_numpy() for name in ("row", "place", "label")])
    rows = from_cells(frame["cells"], dim, np.dtype(dtype))[order]
    return RankedBlock(frame["label"].to_numpy()[order], frame["row"].to_numpy()[order], rows)


def _match_whole(
    frame: pd.DataFrame, dim: int, dtype: str, chunk_rows: int, rule: str, eps: float
) -> pd.DataFrame:
    """Match the rows of every cluster of a partition."""
    block = _block(frame, dim, dtype)
    edges = _edges_of(block.labels)
    found = on_device(kernel.match_clusters)(block.rows, edges, rule, eps)
    return _frame(block.numbers, found.similarity, _row_numbers(found, block.numbers, edges), chunk_rows)


def _row_numbers(found: EarlierMatch, numbers: np.ndarray, edges: Sequence[int] | None = None) -> np.ndarray:
    """Return the row numbers of matches, whose positions count from the start of one cluster, or of each."""
    position = np.maximum(found.position, 0)
    if edges is not None:
        position += np.repeat(np.array(edges[:-1], np.int64), np.diff(edges))
    return np.where(found.position >= 0, numbers[position], -1)


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
    return _frame(block.numbers, found.similarity, _row_numbers(found, numbers), chunk_rows)
