"""Rows to be clustered, block by block: where they come from, and how tasks load them.

A block is the rows of one chunk of a zarr array that a mask leaves. Blocks are what every map-reduce in
this package maps over, and their numbers fix the order of every sum.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dask.delayed import Delayed

from daskcurate.kernels.assign import unit_rows
from daskcurate.kernels.leading import Leading
from daskcurate.store import read_block

if TYPE_CHECKING:
    from daskcurate.embeddings import Embeddings, PoolRows


@dataclass(frozen=True)
class RowSource:
    """A chunked zarr array of rows, restricted to those whose ``mask`` is positive."""

    url: str
    n_rows: int
    dim: int
    itemsize: int
    chunk_rows: int
    mask_url: str | None = None
    pool: "PoolRows | None" = None
    """Reader of a pool's rows: of a local pool it reads files, and a missing one is an error, not zeros."""

    @classmethod
    def of_embeddings(cls, emb: "Embeddings", within: Any = None) -> "RowSource":
        """Return the rows of a pool, or those that a computed selection holds.

        Raises ValueError if the pool was replaced since: its rows would be stored under another's fingerprint.
        """
        emb.check_unchanged()
        return cls(
            url=f"{emb.path}/embeddings",
            n_rows=len(emb),
            dim=emb.dim,
            itemsize=emb.dtype.itemsize,
            chunk_rows=emb.chunk_rows,
            mask_url=None if within is None else within.url("counts"),
            pool=emb.rows,
        )

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop), masked or not, in the dtype that they are stored in."""
        return read_block(self.url, start, stop) if self.pool is None else self.pool.read(start, stop)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and last (exclusive) row of each chunk."""
        return [(i, min(i + self.chunk_rows, self.n_rows)) for i in range(0, self.n_rows, self.chunk_rows)]

    def block_ranges(self, on_gpu: bool) -> list[tuple[int, int]]:
        """Return the first and last (exclusive) row of each block: whole chunks, fewer and larger than these.

        A function of the array and the kind of device alone, because the blocks fix the order of sums.
        """
        step = self.chunk_rows * chunks_per_block(self.n_rows, self.chunk_rows, self.dim, on_gpu)
        return [(i, min(i + step, self.n_rows)) for i in range(0, self.n_rows, step)]


BLOCKS = 8
"""Blocks of a small pool: several for each worker, few enough that tasks cost little."""
BLOCK_BYTES = 48 << 20
"""Largest block (rows as float32) of several chunks; a block is one chunk at least."""
DEVICE_BLOCK_BYTES = 512 << 20
"""Likewise on GPUs, where a task takes milliseconds, and a block's sums are to be few beside its rows."""


def chunks_per_block(n_rows: int, chunk_rows: int, dim: int, on_gpu: bool = False) -> int:
    """Return how many chunks of ``chunk_rows`` rows a block has."""
    most = DEVICE_BLOCK_BYTES if on_gpu else BLOCK_BYTES
    wanted = min(-(-n_rows // BLOCKS), most // (4 * max(1, dim)))
    return max(1, wanted // chunk_rows)


class Block(NamedTuple):
    """The rows of one block that the mask leaves."""

    numbers: np.ndarray
    """(m,) int64 row numbers, ascending."""
    rows: np.ndarray
    """(m, d) float32; unit length for the cosine metric."""


class NarrowBlock(NamedTuple):
    """The rows of a block in their leading directions (:mod:`daskcurate.kernels.leading`)."""

    numbers: np.ndarray
    """(m,) int64 row numbers, as the block has them."""
    rows: np.ndarray
    """(m, D) float32."""
    tail: np.ndarray
    """(m,) float32: more than the length of what is left of each row."""
    squares: np.ndarray
    """(m,) float32: squared length of each whole row, from the mean row."""

    @property
    def leading(self) -> Leading:
        """What kernels are given."""
        return Leading(self.rows, self.tail, self.squares)


def block_numbers(source: RowSource, start: int, stop: int) -> np.ndarray:
    """Return the row numbers of a block that the mask leaves."""
    numbers = np.arange(start, stop, dtype=np.int64)
    if source.mask_url is None:
        return numbers
    return numbers[read_block(source.mask_url, start, stop) > 0]


PIECE_BYTES = 1 << 20
"""Rows of a local pool that are read at once where they are widened: few enough to stay in a core's cache."""


def load_block(source: RowSource, start: int, stop: int, metric: str) -> Block:
    """Read a block, widened to float32 and, for the cosine metric, scaled to unit length."""
    numbers = block_numbers(source, start, stop)
    rows = np.empty((len(numbers), source.dim), dtype=np.float32)
    pool = source.pool if source.pool is not None and source.pool.is_local else None
    if pool is not None and metric != "cosine" and len(rows) == stop - start and pool.dtype == rows.dtype:
        pool.read_into(start, rows)
        return Block(numbers, rows)
    # what is neither a local file nor small is read whole: each read costs a chunk
    step = stop - start if pool is None else max(1, PIECE_BYTES // (source.dim * source.itemsize))
    for first in range(start, stop, step):
        last = min(first + step, stop)
        low, high = np.searchsorted(numbers, (first, last))
        if low < high:
            raw = source.read(first, last)
            raw = raw if high - low == len(raw) else raw[numbers[low:high] - first]
            rows[low:high] = unit_rows(raw) if metric == "cosine" else raw
    return Block(numbers, rows)


def count_block(source: RowSource, start: int, stop: int) -> int:
    """Return how many rows of a block the mask leaves."""
    return len(block_numbers(source, start, stop))


class Reading(NamedTuple):
    """How tasks read their blocks."""

    source: RowSource
    metric: str
    ranges: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class RowBlocks:
    """Blocks of rows as lazy tasks, with the number of rows of each known."""

    blocks: Sequence[Delayed]
    counts: Sequence[int]
    dim: int
    name: str
    """Tells these rows from any others: what workers remember of a block goes by it."""
    narrow: "Narrow | None" = None
    """The same rows in their leading directions, where these are made use of."""
    working_bytes: int = 0
    """What a worker needs besides held blocks; see :meth:`daskcurate.planning.Limits.peak`."""
    held: int = 0
    """Bytes of blocks that the workers hold, these and those that they were made of."""
    reading: Reading | None = None
    """Where blocks are not held: every task reads its own, and no block is ever a result of its own."""

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in float32."""
        return len(self) * self.dim * 4

    def task(
        self, run: Any, i: int, function: Callable[..., Any], *args: Any, name: str, key: str
    ) -> Delayed:
        """Return the task ``function(block i, *args)``.

        A block goes to the same worker in every pass: that remembers its last pass over it. Where blocks are held,
        Dask would go by where they lie, which is one worker after a step that had them all; where they are not, it
        can have the system read the next block while it computes.
        """
        if self.reading is None:
            return run.task_on(i, function, self.blocks[i], *args, name=name, key=key)
        source, metric, ranges = self.reading
        following = ranges[i + run.limits.n_threads : i + run.limits.n_threads + 1]
        return run.task_on(
            i, _read_then, source, metric, ranges[i], following, function, *args, name=name, key=key
        )

    def map(self, run: Any, function: Callable[..., Any], *args: Any, name: str, key: str) -> list[Delayed]:
        """Return one task per block: ``function(block, *args)``."""
        return [
            self.task(run, i, function, *args, name=name, key=f"{key}-{i}") for i in range(len(self.blocks))
        ]

    def zip_map(
        self, run: Any, function: Callable[..., Any], items: Iterable[Any], *args: Any, name: str, key: str
    ) -> list[Delayed]:
        """Return one task per block: ``function(block, its item, *args)``; ``items`` are as many as blocks."""
        return [
            self.task(run, i, function, item, *args, name=name, key=f"{key}-{i}")
            for i, (_, item) in enumerate(zip(self.blocks, items, strict=True))
        ]

    def map_both(
        self, run: Any, function: Callable[..., Any], *args: Any, name: str, key: str
    ) -> list[Delayed]:
        """Return one task per block: ``function(block, narrow block or None, *args)``.

        None where narrow blocks are not held: to make them would take as long as they save. And on GPUs: there
        products of all numbers in float16 are faster than narrow ones in float32.
        """
        narrow: Sequence[Delayed | None] = [None] * len(self.blocks)
        if self.narrow is not None and self.narrow.held and not run.limits.on_gpu:
            narrow = self.narrow.blocks.blocks
        return self.zip_map(run, _with_narrow, narrow, function, *args, name=name, key=key)

    def numbers_task(
        self, run: Any, i: int, function: Callable[..., Any], *args: Any, name: str, key: str
    ) -> Delayed:
        """Return the task ``function(row numbers of block i, *args)``, which reads no rows."""
        if self.reading is None:
            return run.task(_numbers_then, self.blocks[i], function, *args, name=name, key=key)
        source, _, ranges = self.reading
        return run.task(_find_numbers_then, source, ranges[i], function, *args, name=name, key=key)


@dataclass(frozen=True)
class Narrow:
    """The rows of :class:`RowBlocks` in fewer numbers, in the same blocks."""

    blocks: RowBlocks
    """Of :class:`NarrowBlock`."""
    directions: str
    """URL of the directions, as :func:`daskcurate.kernels.leading.leading_directions` finds them."""
    held: bool
    """Whether the workers hold them."""


def _read_then(
    source: RowSource,
    metric: str,
    own: tuple[int, int],
    following: Sequence[tuple[int, int]],
    function: Callable[..., Any],
    *args: Any,
) -> Any:
    block = load_block(source, *own, metric)
    if source.pool is not None:
        for rows in following:
            source.pool.expect(*rows)
    return function(block, *args)


def _with_narrow(block: Block, narrow: NarrowBlock | None, function: Callable[..., Any], *args: Any) -> Any:
    return function(block, narrow, *args)


def _numbers_then(block: Block, function: Callable[..., Any], *args: Any) -> Any:
    return function(block.numbers, *args)


def _find_numbers_then(
    source: RowSource, own: tuple[int, int], function: Callable[..., Any], *args: Any
) -> Any:
    return function(block_numbers(source, *own), *args)


def open_blocks(run: Any, source: RowSource, metric: str, key: str, working_bytes: int) -> RowBlocks:
    """Return the blocks of ``source``; kept on the workers where these have the memory beside their tasks.

    Blocks that do not fit are read again by every pass, which bounds memory by the blocks in work.

    Parameters
    ----------
    working_bytes
        What a worker needs besides; see :meth:`daskcurate.planning.Limits.peak`.
    """
    ranges = source.block_ranges(run.limits.on_gpu)
    counts = [stop - start for start, stop in ranges]
    if source.mask_url is not None:
        counts = run.gather(
            [run.task(count_block, source, *r, name="count-rows", key=f"{key}-{r[0]}") for r in ranges],
            "count rows",
        )
    # a block is of more than half a chunk on average where nothing is masked; empty ones cost a task each
    kept = [(r, n) for r, n in zip(ranges, counts, strict=True) if n]
    lazy = [
        run.task_on(i, load_block, source, *r, metric, name="load-rows", key=f"{key}-{r[0]}")
        for i, (r, _) in enumerate(kept)
    ]
    reading = Reading(source, metric, [r for r, _ in kept])
    blocks = RowBlocks(
        lazy, [n for _, n in kept], source.dim, run.scratch(key), working_bytes=working_bytes, reading=reading
    )
    return keep_if_small(run, blocks)


def keep_if_small(run: Any, blocks: RowBlocks) -> RowBlocks:
    """Return the blocks, held on the workers where these have the memory for all beside their tasks."""
    largest = max(blocks.counts, default=0) * blocks.dim * 4
    if not run.limits.holds(blocks.held + blocks.nbytes, largest, blocks.working_bytes):
        return blocks
    kept = run.persist(blocks.blocks, "read rows")
    return dataclasses.replace(blocks, blocks=kept, held=blocks.held + blocks.nbytes, reading=None)


def made_of(
    run: Any, blocks: RowBlocks, made: Sequence[Delayed], counts: Sequence[int], key: str
) -> RowBlocks:
    """Return the blocks that tasks ``made`` make of ``blocks``, with ``counts`` rows; empty ones are left out."""
    kept = [(block, count) for block, count in zip(made, counts, strict=True) if count]
    parts = RowBlocks(
        [block for block, _ in kept],
        [count for _, count in kept],
        blocks.dim,
        run.scratch(key),
        working_bytes=blocks.working_bytes,
        held=blocks.held,
    )
    return keep_if_small(run, parts)


def drawn_rows(run: Any, blocks: RowBlocks, count: int, seed: int, key: str) -> list[Any]:
    """Return tasks that yield ``count`` distinct rows, drawn uniformly, block by block."""
    drawn = drawn_positions(len(blocks), count, seed)
    edges = np.cumsum([0, *blocks.counts])
    cuts = np.searchsorted(drawn, edges)
    return [
        blocks.task(
            run, i, _taken, drawn[cuts[i] : cuts[i + 1]] - edges[i], name="seed-rows", key=f"{key}-{i}"
        )
        for i in range(len(blocks.blocks))
        if cuts[i] < cuts[i + 1]
    ]


def drawn_positions(n: int, count: int, seed: int) -> np.ndarray:
    """Return ``count`` of n positions, drawn uniformly, ascending."""
    return np.sort(np.random.default_rng(seed).choice(n, size=count, replace=False))


def _taken(block: Block, positions: np.ndarray) -> Block:
    return Block(block.numbers[positions], block.rows[positions])


def add(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of arrays of one shape, in the order given: what a :func:`tree` of sums combines with."""
    return np.sum(parts, axis=0)


def tree(
    run: Any, combine: Callable[[list[Any]], Any], parts: Sequence[Delayed], *, name: str, key: str
) -> Delayed:
    """Return the combination of ``parts`` in the tree that their numbers fix (groups of 8 neighbours)."""
    level, parts = 0, list(parts)
    while len(parts) > 1:
        parts = [
            run.task(combine, parts[i : i + 8], name=name, key=f"{key}-{level}-{i}")
            for i in range(0, len(parts), 8)
        ]
        level += 1
    return parts[0]
