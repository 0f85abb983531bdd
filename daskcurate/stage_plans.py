"""What the stages that read a clustering take: dedup within clusters and across, and selections of rows."""

from dataclasses import dataclass

from daskcurate.kernels.distances import DISTANCE_VALUES
from daskcurate.planning import (
    POOL_ROW_BYTES,
    RANK_ROW_BYTES,
    REGROUP_COPIES,
    REGROUPED_ROW_BYTES,
    SORT_KEY_BYTES,
    Limits,
    StagePlan,
    counted_chunks,
    tree_tasks,
)
from daskcurate.small_pools import share_count

CHUNK_READ = 0.2
"""What each chunk of an array takes to read or write, beside the first, in arrays that are opened for it."""
STAGE_WRITES = 10
"""Writes of the client at the start and end of a stage: its attributes, and the list of its files."""
SURVEY_READS = 32
"""Arrays read for a sample of the pool, by the plan and by the stage itself."""
SKETCH_SHARE = 0.25
"""Work of a product of sketches, which comes first across clusters, beside that of the rows."""
LEAST_SKETCHED = 64
"""Narrower rows have no sketches."""
ASK_PASSES = 6
"""Times that the scores of rows and centroids are gone through, besides their product, to see which rows ask."""
NEW_MEMORY = 2
"""Times as long as the calibration's small frames that large ones take: each copy is memory that is new."""


@dataclass(frozen=True)
class ChunkSteps:
    """What a selection stage does for each chunk of the pool's rows, and besides."""

    tasks: int = 5
    reads: int = 6
    """Arrays opened."""
    rounds: int = 4
    """Steps that wait for one another."""
    kept: int = 6
    """Arrays of the clusters that the client makes and writes."""
    cosines: int = 0
    """Times that it goes by the rows' cos distances to their centroids, which a clustering in L2 does not store."""
    row_passes: int = 0
    """Times that the rows themselves are read."""


def counting_tasks(chunks: int, chunk_rows: int, n_threads: int) -> int:
    """Return the tasks that count the rows of each cluster: see :func:`daskcurate.members.cluster_sizes`."""
    return -(-chunks // counted_chunks(chunks, chunk_rows, n_threads))


def dedup_plan(
    title: str,
    *,
    n: int,
    d: int,
    itemsize: int,
    chunk_rows: int,
    k: int,
    limits: Limits,
    tile: int,
    scope: str = "cluster",
    rule: str = "earlier",
    pairs: int | None = None,
    whole: bool = False,
) -> StagePlan:
    """Return the plan of a dedup within k clusters, or across them.

    ``whole``: by a task of each worker, which reads all rows, and not regrouped. Within clusters ``pairs`` are those
    of the clusters, if they are known; without, these are of equal size. Across clusters it is an estimate from the
    clustering; without one it is all pairs, which are never exceeded.
    """
    across = scope == "global"
    if pairs is None:
        pairs = n * (n - 1) // 2 if across else n * max(0, n // max(1, k) - 1) // 2
    part_rows = max(tile, limits.part_bytes // (d * itemsize))
    compare = 2 * min(n, part_rows) * d * (2 * itemsize + 4) + 3 * tile * tile * 4
    moved = n * (d * itemsize + REGROUPED_ROW_BYTES)
    regroup = REGROUP_COPIES * moved
    if moved > limits.small_regroup_bytes:
        regroup = 3 * chunk_rows * (d * itemsize + REGROUPED_ROW_BYTES) + limits.shuffle_memory(moved)
    worst = max(compare, regroup, rank_memory(n, limits))
    disk, flops = n * 13, 2 * d * pairs
    if across:
        # rows as stored, as float32 and as sketches, of two blocks; a mask, the scores of a tile, the centroids
        worst = max(worst, 2 * min(n, part_rows) * d * (itemsize + 5) + k * d * 16 + (64 << 20))
        if rule == "connected":
            worst = max(worst, n * POOL_ROW_BYTES)
        disk += n * (d * itemsize + 32)  # the rows by cluster, until the stage is done
        flops += 2 * d * n * k
    sizes = _Sizes(n, d, itemsize, chunk_rows, k, pairs, limits)
    tasks, work, parts = _across(sizes) if across else _whole(sizes) if whole else _within(sizes, part_rows)
    return StagePlan(
        stage=title,
        rows=n,
        bytes_read=n * d * itemsize,
        flops=flops,
        tasks=tasks,
        peak_memory=limits.peak(worst),
        disk=disk,
        advice="give the workers more memory, or take rule='earlier'"
        if across and rule == "connected"
        else "",
        pairs=pairs,
        work=work,
        parts=parts,
    )


@dataclass(frozen=True)
class _Sizes:
    """What the work of a dedup follows from."""

    n: int
    d: int
    itemsize: int
    chunk_rows: int
    k: int
    pairs: int
    limits: Limits

    @property
    def chunks(self) -> int:
        return -(-self.n // self.chunk_rows)

    @property
    def float32_bytes(self) -> float:
        """Bytes of the rows in float32."""
        return 4.0 * self.n * self.d

    @property
    def stored_bytes(self) -> int:
        """Bytes of the rows as they are stored."""
        return self.n * self.d * self.itemsize

    def regrouped(self) -> dict[str, float]:
        """Return the work of bringing the rows of each cluster together; see :func:`daskcurate.regroup.regroup`."""
        moved = float(NEW_MEMORY * self.stored_bytes)
        one_task = self.stored_bytes <= self.limits.small_regroup_bytes
        # sent to other workers and put in order; and shuffled, where one task cannot hold them
        return {"serial-regroup": moved if one_task else 0.0, "regroup": moved * (2 if one_task else 3)}

    def counted(self) -> tuple[int, float]:
        """Return the tasks and arrays read (or their like) that counting the rows of clusters takes."""
        tasks = counting_tasks(self.chunks, self.chunk_rows, self.limits.n_threads)
        return tasks + tree_tasks(tasks), tasks + CHUNK_READ * (self.chunks - tasks)


def _whole(sizes: _Sizes) -> tuple[int, dict[str, float], int]:
    """Return tasks, work and parts of a dedup within clusters by a task a worker: see ``small_pools.match_share``."""
    limits = sizes.limits
    parts = share_count(limits)
    chunks = CHUNK_READ * sizes.chunks
    work = {
        "serial-read": 2 + 2 * chunks,  # labels and distances, by all at the same time
        "serial-write": STAGE_WRITES + 3 + 3 * (1 + chunks / parts),  # three arrays, which are made first
        # read by all and put in order, the rows as well as the labels and distances
        "serial-stream": 0.5 * sizes.float32_bytes + RANK_ROW_BYTES * sizes.n,
        "match": sizes.float32_bytes,
        "cluster": float(sizes.k),
        "compare": 2.0 * sizes.d * sizes.pairs,
        "rounds": 2,
    }
    return 2 * parts, work, limits.n_threads


def _within(sizes: _Sizes, part_rows: int) -> tuple[int, dict[str, float], int]:
    """Return tasks, work and parts of a dedup within clusters in many tasks: see ``matching.match_clusters``."""
    chunks, limits = sizes.chunks, sizes.limits
    counted, reads = sizes.counted()
    parts = max(1, -(-sizes.n // min(part_rows, max(1, sizes.n // (4 * limits.n_threads)))))
    work = {
        "read": reads + chunks * (2 + 2 + 1),
        "write": 3.0 * chunks,
        "serial-write": STAGE_WRITES + 3 + 2,
        **sizes.regrouped(),
        "match": sizes.float32_bytes,
        "cluster": float(sizes.k),
        "compare": 2.0 * sizes.d * sizes.pairs,
        "rounds": 4,
    }
    return counted + 3 * chunks + 2 * parts + 4, work, max(parts, limits.n_threads)


def _across(sizes: _Sizes) -> tuple[int, dict[str, float], int]:
    """Return tasks, work and parts of a dedup across clusters: see ``global_matching.match_pool``."""
    n, d, k, chunks, limits = sizes.n, sizes.d, sizes.k, sizes.chunks, sizes.limits
    counted, reads = sizes.counted()
    block = max(1024, min(limits.part_bytes // (d * sizes.itemsize), n // (2 * limits.n_threads)))
    blocks = -(-n // block) + 1  # of whole clusters, which do not fill them
    width = max(1, min(16, blocks * blocks // (4 * limits.n_threads)))
    groups = sum(-(-(blocks - i) // width) for i in range(blocks))
    loads = groups + blocks * (blocks - 1) // 2  # of blocks, by the tasks that compare them
    share = SKETCH_SHARE if d >= LEAST_SKETCHED else 1.0
    work = {
        "read": reads + chunks * (2 + 4 + 1) + 4 * loads,
        "write": 3.0 * chunks + 3 * blocks,
        "serial-read": 2.0 * SURVEY_READS,
        "serial-write": STAGE_WRITES + 3 + 2,
        "stream": sizes.float32_bytes * loads / blocks + ASK_PASSES * 4.0 * n * k,
        **sizes.regrouped(),
        "store": float(sizes.stored_bytes),
        "assign": 2.0 * d * n * k + 2.0 * d * n * d * share * loads / blocks,
        "listed": 2.0 * d * sizes.pairs * share,
        "rounds": 8,
    }
    return counted + 6 * chunks + 2 * blocks + 3 * groups + 8, work, max(groups, limits.n_threads)


def rank_memory(n: int, limits: Limits) -> int:
    """Return the bytes of a task that ranks some of n rows, and of the shuffle that brings them there."""
    shuffle = limits.shuffle_memory(SORT_KEY_BYTES * n) if n > limits.rank_rows else 0
    return min(n, limits.rank_rows) * RANK_ROW_BYTES + shuffle


def selection_plan(
    title: str,
    *,
    n: int,
    k: int,
    row_bytes: int,
    chunk_rows: int,
    limits: Limits,
    steps: ChunkSteps | None = None,
    d: int = 0,
    itemsize: int = 4,
    other_task: int = 0,
) -> StagePlan:
    """Return the plan of a stage that ranks rows within k clusters and keeps the first ones.

    ``steps`` is what it does for each chunk, ``d`` the width of the rows where it reads these, ``itemsize`` the bytes
    of their numbers; ``other_task`` are the bytes of its largest task that does neither.
    """
    steps = steps or ChunkSteps()
    chunks = -(-n // chunk_rows)
    counted = counting_tasks(chunks, chunk_rows, limits.n_threads)
    # rows that one task cannot rank are regrouped, and back
    per_chunk = steps.tasks + (0 if n <= limits.rank_rows else 3)
    chunk_bytes = min(n, chunk_rows) * 40 + k * 48
    if steps.row_passes:  # rows as stored, all centroids, and some rows at a time in float64
        chunk_bytes += min(n, chunk_rows) * d * itemsize + k * d * 4 + max(DISTANCE_VALUES, d) * 8 * 5
    return StagePlan(
        stage=title,
        rows=n,
        bytes_read=0,
        flops=0,
        tasks=per_chunk * chunks + counted + tree_tasks(counted) + tree_tasks(chunks) + 2,
        peak_memory=limits.peak(max(rank_memory(n, limits) + chunk_bytes, other_task)),
        disk=n * row_bytes + k * 40,
        work={
            "read": float(steps.reads * chunks + counted + CHUNK_READ * (chunks - counted)),
            "write": float(chunks),
            "stream": steps.row_passes * 4.0 * n * d * 2,
            "serial-stream": float(n * RANK_ROW_BYTES),
            "serial-write": float(STAGE_WRITES + 2 * steps.kept),
            "rounds": steps.rounds,
        },
        parts=limits.n_threads,
    )
