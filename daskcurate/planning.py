"""What a run takes, before it runs: rows, bytes, operations, tasks, memory and disk, in integers.

Row counts are upper bounds: what an earlier stage will drop is not known yet. Peak memory is one
worker's, with as many tasks at once as it has threads.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import dask.utils

from daskcurate.local_cluster import LocalClusterConfig

PROCESS_BYTES = 260 << 20
"""Python, Dask and the libraries of a worker process before it holds any data."""
SMALL_REGROUP_BYTES = 256 << 20
"""Frames up to this size (less where workers are small) are regrouped in one task."""
PART_BYTES = 64 << 20
"""Rows (as stored) that a dedup task holds of each of its two blocks; less where workers are small."""
SHUFFLE_BYTES = 192 << 20
"""Buffers of Dask's shuffle in a worker: what waits to be sent and to be written (64 MiB each), and its own."""
RANK_ROWS = 4 << 20
"""Rows that one task ranks; less where workers are small."""
RANK_ROW_BYTES = 160
"""Memory for a row while it is ranked: columns, sort buffers, result."""


class PlanError(MemoryError, ValueError):
    """A stage that cannot fit the memory there is."""


@dataclass(frozen=True)
class Limits:
    """What there is to run on."""

    n_workers: int
    n_threads: int
    worker_memory: int | None
    """Memory limit of one worker in bytes; None: not limited."""
    threads_per_worker: int = 1

    @classmethod
    def local(cls) -> "Limits":
        """Return the limits of the local cluster that a run without a client starts."""
        config = LocalClusterConfig()
        return cls(config.workers(), config.workers(), config.memory())

    def with_memory(self, memory_limit: Any) -> "Limits":
        """Return the limits with another memory per worker: bytes, or text such as ``"4GiB"``."""
        if isinstance(memory_limit, bool) or not isinstance(memory_limit, int | str):
            raise TypeError(
                f"memory_limit={memory_limit!r} is not allowed: give bytes or text such as '4GiB'"
            )
        try:
            found = int(dask.utils.parse_bytes(memory_limit))
        except ValueError as error:
            raise ValueError(
                f"memory_limit={memory_limit!r} is not allowed: give bytes or text such as '4GiB'"
            ) from error
        if found <= 0:
            raise ValueError(f"memory_limit={memory_limit!r} is not allowed: give more than 0 bytes")
        return dataclasses.replace(self, worker_memory=found)

    @property
    def total_memory(self) -> int | None:
        """Memory of all workers; None: not limited."""
        return None if self.worker_memory is None else self.worker_memory * self.n_workers

    @property
    def thread_memory(self) -> int:
        """Memory for the data of one task."""
        if self.worker_memory is None:
            return 1 << 62
        return max(1 << 20, (self.worker_memory - PROCESS_BYTES) // self.threads_per_worker)

    @property
    def small_regroup_bytes(self) -> int:
        """Frames up to this size are regrouped in one task."""
        return min(SMALL_REGROUP_BYTES, self.thread_memory // 4)

    @property
    def part_bytes(self) -> int:
        """Rows (as stored) in one of the two blocks of a dedup task."""
        return min(PART_BYTES, self.thread_memory // 16)

    @property
    def rank_rows(self) -> int:
        """Rows that one task ranks."""
        return max(1 << 10, min(RANK_ROWS, self.thread_memory // (2 * RANK_ROW_BYTES)))


@dataclass(frozen=True)
class StagePlan:
    """What one stage takes."""

    stage: str
    rows: int
    """Rows read, at most."""
    bytes_read: int
    """Bytes of rows read from the pool over the whole stage, if the workers cannot keep them."""
    flops: int
    """Floating-point operations of the distance computations."""
    tasks: int
    peak_memory: int
    """Bytes of one worker at the worst moment."""
    disk: int
    """Bytes of the stage's arrays in the run store."""
    advice: str = ""
    """What to change if the memory is too little."""
    pairs: int | None = None
    """Pairs of rows compared with each other, about or at most; None where the stage compares none."""


@dataclass(frozen=True)
class Plan:
    """What a run takes, stage by stage."""

    stages: Sequence[StagePlan]
    limits: Limits

    @property
    def fits(self) -> bool:
        """Whether every stage fits the workers' memory."""
        return not any(self._too_large())

    def _too_large(self) -> Iterable[StagePlan]:
        limit = self.limits.worker_memory
        return [] if limit is None else [stage for stage in self.stages if stage.peak_memory > limit]

    def check(self) -> None:
        """Raise PlanError if a stage does not fit, naming it and the bytes."""
        for stage in self._too_large():
            raise PlanError(
                f"stage '{stage.stage}' needs {stage.peak_memory} bytes ({human(stage.peak_memory)}) in one worker, "
                f"whose limit is {self.limits.worker_memory} bytes ({human(self.limits.worker_memory or 0)}): "
                f"{stage.advice or 'give the workers more memory or fewer threads each'}"
            )

    def as_rows(self) -> list[tuple[str, ...]]:
        """Return the plan as text, a row a stage."""
        return [
            (
                stage.stage,
                f"{stage.rows:,}",
                human(stage.bytes_read),
                f"{stage.flops:.2e}",
                f"{stage.tasks:,}",
                human(stage.peak_memory),
                human(stage.disk),
                "" if stage.pairs is None else f"{stage.pairs:.2e}",
            )
            for stage in self.stages
        ]

    HEADER = ("stage", "rows", "read", "flops", "tasks", "peak memory", "disk", "pairs")

    def __str__(self) -> str:
        rows = [self.HEADER, *self.as_rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.HEADER))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        memory = "no limit" if self.limits.worker_memory is None else human(self.limits.worker_memory)
        lines.append(f"{self.limits.n_workers} workers, {self.limits.n_threads} threads, {memory} a worker")
        return "\n".join(lines)

    __repr__ = __str__


def human(n_bytes: int) -> str:
    """Return bytes as text."""
    return dask.utils.format_bytes(int(n_bytes))


def plan_stages(stages: Sequence[Any], limits: Limits) -> Plan:
    """Return the plan of lazy stages."""
    return Plan([stage.plan(limits) for stage in stages], limits)


def seed_memory(init: str, n: int, d: int, k: int, whole_bytes: int, block: int) -> int:
    """Return the bytes of the largest seeding task, for k seeds of n rows of width d in blocks of ``block`` items."""
    if init == "k-means++":
        return 3 * min(n * d * 4, max(whole_bytes, 4 * k * d * 4))
    if init == "k-means||":  # five rounds of 2k candidates, made ready (float64) to score a block with
        return 4 * block + 7 * min(n, 10 * k) * d * 4
    return k * d * 8  # drawn in parts, then put together


def tree_tasks(parts: int) -> int:
    """Return the tasks that combine ``parts`` in groups of 8."""
    total = 0
    while parts > 1:
        parts = -(-parts // 8)
        total += parts
    return total


def kmeans_plan(
    title: str,
    *,
    n: int,
    d: int,
    itemsize: int,
    chunk_rows: int,
    config: Any,
    limits: Limits,
    whole_bytes: int,
    split_bytes: int,
) -> StagePlan:
    """Return the plan of one k-means level over n rows of width d (``config``: a KMeansConfig)."""
    k = min(config.n_clusters, n)
    chunks = -(-n // chunk_rows)
    trials = 2 + int(math.log(max(k, 1)))
    seeding_rows = min(n, max(whole_bytes // (4 * d), 4 * k)) if config.init == "k-means++" else 0
    subset = min(n, config.sample_size * k)
    fits = config.n_init * (n + config.resamples * subset)
    flops = 2 * k * d * (fits * config.n_iters + n * (1 + config.resamples))
    flops += (
        2 * k * d * trials * config.n_init * (seeding_rows + config.resamples * min(subset, seeding_rows))
    )
    passes = config.n_init * config.n_iters * (1 + config.resamples) + 2 + config.resamples
    per_pass = chunks + tree_tasks(chunks) + 2
    block = min(n, chunk_rows) * d
    kept = 0
    if limits.total_memory is None or n * d * 4 <= limits.total_memory // 2:
        kept = n * d * 4 // limits.n_workers
    centroids = k * d * 4
    tasks_memory = {
        "step": block * (itemsize + 4) + 2 * centroids + k * d * 8 + (4 << 20),
        "combine": 9 * k * (d + 1) * 8,
        "seed": seed_memory(config.init, n, d, k, whole_bytes, block),
        "split": 5 * min(n * d * 4, split_bytes) + SHUFFLE_BYTES if config.n_splits > 1 else 0,
    }
    worst = max(tasks_memory, key=lambda name: tasks_memory[name])
    advice = {
        "step": "lower n_clusters, or give the workers more memory or fewer threads each",
        "combine": "lower n_clusters, or give the workers more memory or fewer threads each",
        "seed": "use init='random', or give the workers more memory",
        "split": "give the workers more memory or fewer threads each",
    }[worst]
    made = k * config.n_splits
    return StagePlan(
        stage=title,
        rows=n,
        bytes_read=n * d * itemsize * (1 if kept else passes),
        flops=flops,
        tasks=passes * per_pass,
        peak_memory=PROCESS_BYTES + limits.threads_per_worker * tasks_memory[worst] + kept,
        disk=n * 8 + made * (d * 4 + 8),
        advice=advice,
    )


PAIRS_PER_ROW_AND_CLUSTER = 4
"""Pairs of rows that are compared in the time that one row is scored against one centroid."""
POOL_ROW_BYTES = 250
"""Memory for a row that has a match, where the rows of a whole pool are connected."""


def bound_pays(pairs: int, n: int, k: int) -> bool:
    """Whether comparing ``pairs`` pairs that a bound asks for is less work than comparing all of n rows.

    The pairs asked for come in smaller products, a third slower, and each row is scored against k centroids.
    """
    return 4 * pairs + 3 * PAIRS_PER_ROW_AND_CLUSTER * n * k < 3 * (n * (n - 1) // 2)


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
) -> StagePlan:
    """Return the plan of a dedup within k clusters of equal size, or across them.

    Across clusters ``pairs`` is an estimate from the clustering; without one it is all pairs, which are
    never exceeded.
    """
    across = scope == "global"
    chunks = -(-n // chunk_rows)
    if pairs is None:
        pairs = n * (n - 1) // 2 if across else n * max(0, n // max(1, k) - 1) // 2
    part_rows = max(tile, limits.part_bytes // (d * itemsize))
    parts = -(-n // part_rows)
    compare = 2 * min(n, part_rows) * d * (2 * itemsize + 4) + 3 * tile * tile * 4
    moved = n * (d * itemsize + 28)
    regroup = 3 * moved
    if moved > limits.small_regroup_bytes:
        regroup = 3 * chunk_rows * (d * itemsize + 28) + SHUFFLE_BYTES
    rank = min(n, limits.rank_rows) * RANK_ROW_BYTES
    worst = max(compare, regroup, rank)
    disk, tasks, flops = n * 13, 12 * chunks + 4 * parts, 2 * d * pairs
    if across:
        # rows as stored, as float32 and as sketches, of two blocks; a mask, the scores of a tile, the centroids
        worst = max(worst, 2 * min(n, part_rows) * d * (itemsize + 5) + k * d * 16 + (64 << 20))
        if rule == "connected":
            worst = max(worst, n * POOL_ROW_BYTES)
        disk += n * (d * itemsize + 32)  # the rows by cluster, until the stage is done
        tasks += 4 * parts * parts // 16
        flops += 2 * d * n * k
    return StagePlan(
        stage=title,
        rows=n,
        bytes_read=n * d * itemsize,
        flops=flops,
        tasks=tasks,
        peak_memory=PROCESS_BYTES + limits.threads_per_worker * worst,
        disk=disk,
        advice="give the workers more memory, or take rule='earlier'"
        if across and rule == "connected"
        else "",
        pairs=pairs,
    )


def selection_plan(
    title: str, *, n: int, k: int, row_bytes: int, chunk_rows: int, limits: Limits
) -> StagePlan:
    """Return the plan of a stage that ranks rows within k clusters and keeps the first ones."""
    chunks = -(-n // chunk_rows)
    rank = min(n, limits.rank_rows) * RANK_ROW_BYTES
    return StagePlan(
        stage=title,
        rows=n,
        bytes_read=0,
        flops=0,
        tasks=10 * chunks + 8,
        peak_memory=PROCESS_BYTES + limits.threads_per_worker * (rank + min(n, chunk_rows) * 40 + k * 48),
        disk=n * row_bytes + k * 40,
    )
