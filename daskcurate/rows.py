"""Rows to be clustered, block by block: where they come from, and how tasks load them.

A block is the rows of one chunk of a zarr array that a mask leaves. Blocks are what every map-reduce in
this package maps over, and their numbers fix the order of every sum.
"""

from collections.abc import Callable, Sequence
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


def load_raw(source: RowSource, start: int, stop: int) -> Block:
    """Read a block in the dtype that it is stored in."""
    numbers = block_numbers(source, start, stop)
    if not len(numbers):
        return Block(numbers, np.empty((0, source.dim), dtype=np.float32))
    rows = source.read(start, stop)
    if len(numbers) != len(rows):
        rows = rows[numbers - start]
    return Block(numbers, rows)


def load_block(source: RowSource, start: int, stop: int, metric: str) -> Block:
    """Read a block, widened to float32 and, for the cosine metric, scaled to unit length."""
    numbers, rows = load_raw(source, start, stop)
    return Block(numbers, unit_rows(rows) if metric == "cosine" else rows.astype(np.float32, copy=False))


def count_block(source: RowSource, start: int, stop: int) -> int:
    """Return how many rows of a block the mask leaves."""
    return len(block_numbers(source, start, stop))


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

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in float32."""
        return len(self) * self.dim * 4

    def map(self, run: Any, function: Callable[..., Any], *args: Any, name: str, key: str) -> list[Delayed]:
        """Return one task per block: ``function(block, *args)``."""
        return [
            run.task(function, block, *args, name=name, key=f"{key}-{i}")
            for i, block in enumerate(self.blocks)
        ]

    def map_both(
        self, run: Any, function: Callable[..., Any], *args: Any, name: str, key: str
    ) -> list[Delayed]:
        """Return one task per block: ``function(block, narrow block or None, *args)``.

        On GPUs always None: there products of all numbers in float16 are faster than narrow ones in float32.
        """
        without = self.narrow is None or run.limits.on_gpu
        narrow = [None] * len(self.blocks) if self.narrow is None or without else self.narrow.blocks.blocks
        return [
            run.task(function, block, other, *args, name=name, key=f"{key}-{i}")
            for i, (block, other) in enumerate(zip(self.blocks, narrow, strict=True))
        ]


@dataclass(frozen=True)
class Narrow:
    """The rows of :class:`RowBlocks` in fewer numbers, in the same blocks."""

    blocks: RowBlocks
    """Of :class:`NarrowBlock`."""
    directions: str
    """URL of the directions, as :func:`daskcurate.kernels.leading.leading_directions` finds them."""


def open_blocks(run: Any, source: RowSource, metric: str, key: str) -> RowBlocks:
    """Return the blocks of ``source``; kept on the workers where half their memory holds them all.

    Blocks that do not fit are read again by every pass, which bounds memory by the blocks in work.
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
    keeps = fits_workers(run, sum(n for _, n in kept) * source.dim * 4)
    lazy = [
        run.task_on(i, load_block, source, *r, metric, name="load-rows", key=f"{key}-{r[0]}")
        if keeps
        else run.task(load_block, source, *r, metric, name="load-rows", key=f"{key}-{r[0]}")
        for i, (r, _) in enumerate(kept)
    ]
    blocks = RowBlocks(lazy, [n for _, n in kept], source.dim, run.scratch(key))
    return hold(run, blocks) if keeps else blocks


def hold(run: Any, blocks: RowBlocks) -> RowBlocks:
    """Return the blocks, held on the workers."""
    return RowBlocks(run.persist(blocks.blocks, "read rows"), blocks.counts, blocks.dim, blocks.name)


def keep_if_small(run: Any, blocks: RowBlocks) -> RowBlocks:
    """Return the blocks, held on the workers where half of their memory is enough for all."""
    return hold(run, blocks) if fits_workers(run, blocks.nbytes) else blocks


def drawn_rows(run: Any, blocks: RowBlocks, count: int, seed: int, key: str) -> list[Any]:
    """Return tasks that yield ``count`` distinct rows, drawn uniformly, block by block."""
    drawn = drawn_positions(len(blocks), count, seed)
    edges = np.cumsum([0, *blocks.counts])
    cuts = np.searchsorted(drawn, edges)
    return [
        run.task(_taken, block, drawn[cuts[i] : cuts[i + 1]] - edges[i], name="seed-rows", key=f"{key}-{i}")
        for i, block in enumerate(blocks.blocks)
        if cuts[i] < cuts[i + 1]
    ]


def drawn_positions(n: int, count: int, seed: int) -> np.ndarray:
    """Return ``count`` of n positions, drawn uniformly, ascending."""
    return np.sort(np.random.default_rng(seed).choice(n, size=count, replace=False))


def _taken(block: Block, positions: np.ndarray) -> Block:
    return Block(block.numbers[positions], block.rows[positions])


def fits_workers(run: Any, nbytes: int) -> bool:
    """Return whether half of the workers' memory holds ``nbytes``."""
    limit = run.limits.total_memory
    return limit is None or nbytes <= limit // 2


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
