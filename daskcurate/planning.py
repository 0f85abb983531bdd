"""What a run takes, before it runs: rows, bytes, operations, tasks, memory and disk, in integers.

Row counts are upper bounds: what an earlier stage will drop is not known yet. Peak memory is one
worker's, with as many tasks at once as it has threads. It may be as much as Dask lets a worker use: above a part of
its limit (the setting ``distributed.worker.memory.pause``) a worker starts no task, so that a run would stand still.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask.utils

from daskcurate.local_cluster import LocalClusterConfig
from daskcurate.settings import MemoryShares, shuffle_buffers

PROCESS_BYTES = 260 << 20
"""Python, Dask and the libraries of a worker process before it holds any data, where no worker can be asked."""
SMALL_REGROUP_BYTES = 256 << 20
"""Frames up to this size (less where workers are small) are regrouped in one task."""
REGROUP_COPIES = 5
"""Times that frames are held where one task regroups them: what came, together, in order, cut, and as results."""
PART_BYTES = 64 << 20
"""Rows (as stored) that a dedup task holds of each of its two blocks; less where workers are small."""
DEVICE_PART_BYTES = 512 << 20
"""Likewise on GPUs, where the work of smaller blocks would take less time than the task around it."""
REGROUPED_ROW_BYTES = 28
"""What a dedup sends with each embedding to where the rows of its cluster meet: partition, cluster, place, row."""
MATCH_BYTES = 28
"""What it sends back for each row: partition, row, similarity, match."""
POOL_MATCH_BYTES = 36
"""What it sends back for each match across clusters: besides, the match's place in the order of the pool."""
SHUFFLE_BYTES = 96 << 20
"""What Dask's shuffle takes in a worker besides what waits in its buffers: parts of chunks received, each copied a
few times, and partitions that are read before their turn."""
RANK_ROWS = 4 << 20
"""Rows that one task ranks; less where workers are small."""
COUNTED_ROWS = 4 << 20
"""Rows whose clusters one task counts, at most."""
SORT_KEY_BYTES = 40
"""What goes to the task that ranks a row: cluster, key, place in the pool."""
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
    host_threads: int = 1
    """Threads of the workers of one host, the least where hosts differ: for a task that runs alone."""
    on_gpu: bool = False
    """Whether the workers compute on GPUs."""
    shares: MemoryShares = field(default_factory=MemoryShares.configured)
    """How much of their memory Dask lets the workers use."""
    process_bytes: int = PROCESS_BYTES
    """What a worker process holds before any data."""
    shuffle_buffers: int = field(default_factory=shuffle_buffers)
    """What may wait in a worker while rows are shuffled: to be sent, and to be written."""

    @classmethod
    def local(cls) -> "Limits":
        """Return the limits of the local cluster that a run without a client starts."""
        config = LocalClusterConfig()
        return cls(config.workers(), config.workers(), config.memory(), host_threads=config.workers())

    def with_memory(self, memory_limit: Any) -> "Limits":
        """Return the limits with another memory per worker: bytes, or text such as ``"4GiB"``."""
        if isinstance(memory_limit, bool) or not isinstance(memory_limit, int | str):
            raise TypeError(
                f"memory_limit={memory_limit!r} is not allowed: give bytes or text such as '4GiB'"
            )
        try:
            # Dask takes text without a number, such as "" or "GiB", for one unit
            if isinstance(memory_limit, str) and not any(letter.isdigit() for letter in memory_limit):
                raise ValueError("no number")
            found = int(dask.utils.parse_bytes(memory_limit))
        except ValueError as error:
            raise ValueError(
                f"memory_limit={memory_limit!r} is not allowed: give bytes or text such as '4GiB'"
            ) from error
        if found <= 0:
            raise ValueError(f"memory_limit={memory_limit!r} is not allowed: give more than 0 bytes")
        return dataclasses.replace(self, worker_memory=found)

    @property
    def usable_memory(self) -> int | None:
        """What one worker may use before Dask pauses it; None: not limited."""
        return None if self.worker_memory is None else int(self.worker_memory * self.shares.pause)

    @property
    def thread_memory(self) -> int:
        """Memory for the data of one task."""
        if self.usable_memory is None:
            return 1 << 62
        return max(1 << 20, (self.usable_memory - self.process_bytes) // self.threads_per_worker)

    def holds(self, nbytes: int, part_bytes: int, working_bytes: int) -> bool:
        """Return whether the workers hold results of ``nbytes`` in all while they work, without going to disk.

        Parameters
        ----------
        part_bytes
            The largest of the results: workers share them out that evenly.
        working_bytes
            What a worker needs besides; see :meth:`peak`.
        """
        if self.worker_memory is None:
            return True
        each = nbytes // self.n_workers + part_bytes
        return (
            each <= self.worker_memory * self.shares.target
            and each + working_bytes <= self.worker_memory * self.shares.spill
        )

    def against(self, needed: int) -> str:
        """Return the text of an error that sets the bytes that a worker needs against those that it may use."""
        limit, usable = self.worker_memory or 0, self.usable_memory or 0
        return (
            f"{needed} bytes ({human(needed)}) in one worker, which may use {usable} bytes ({human(usable)}): Dask "
            f"pauses workers at {self.shares.pause:.0%} of their limit, which is {limit} bytes ({human(limit)})"
        )

    def peak(self, task_bytes: int, kept: int = 0) -> int:
        """Return what a worker holds with a task of ``task_bytes`` in each thread, and ``kept`` beside them."""
        return self.process_bytes + self.threads_per_worker * task_bytes + kept

    @property
    def small_regroup_bytes(self) -> int:
        """Frames up to this size are regrouped in one task."""
        return min(SMALL_REGROUP_BYTES, self.thread_memory // (REGROUP_COPIES + 1))

    def shuffle_memory(self, nbytes: int) -> int:
        """Return what regrouping ``nbytes`` takes in a worker besides the frames at hand, if it is a shuffle."""
        if nbytes <= self.small_regroup_bytes:
            return 0
        return min(self.shuffle_buffers, nbytes) + SHUFFLE_BYTES

    @property
    def part_bytes(self) -> int:
        """Rows (as stored) in one of the two blocks of a dedup task."""
        return min(DEVICE_PART_BYTES if self.on_gpu else PART_BYTES, self.thread_memory // 16)

    @property
    def rank_rows(self) -> int:
        """Rows that one task ranks, in an eighth of its memory: a shuffle brings rows before their turn."""
        return max(1 << 10, min(RANK_ROWS, self.thread_memory // (8 * RANK_ROW_BYTES)))


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
    work: Mapping[str, float] = field(default_factory=dict)
    """What takes time, by the name of the rate it goes at (see :class:`daskcurate.calibration.Machine`): operations,
    bytes or arrays shared by all threads; with the prefix ``serial-``, done by one thread while the others wait, or
    ``alone-``, by one task with the threads of its host; and ``rounds``, steps that wait for one another."""
    parts: int = 1
    """Equal parts that the work comes in; threads without a part wait."""
    loops: Sequence[Any] = ()
    """Loops in ``work`` and ``tasks`` whose passes depend on the rows (see
    :class:`daskcurate.kmeans_planning.LloydLoop`)."""

    def seconds(self, machine: Any, limits: Limits) -> float:
        """Return how long the stage takes on ``limits.n_threads`` threads of a calibrated machine."""
        turns = -(-self.parts // limits.n_threads)
        threads = self.parts / turns
        work = Counter({**self.work, "tasks": self.tasks})
        for loop in self.loops:
            work.update(loop.amounts(machine.passes, machine.updates))
            work.subtract(loop.amounts())
        total = work.pop("tasks") * machine.task
        for name, amount in work.items():
            how, _, rate = name.rpartition("-")
            if rate == "rounds":
                total += amount * machine.round
            elif how == "serial":
                total += amount / machine.rate(rate)
            elif how == "alone":
                total += amount / machine.rate(rate, alone=limits.host_threads > 1)
            else:
                total += amount / (machine.rate(rate) * threads)
        return total


@dataclass(frozen=True)
class Plan:
    """What a run takes, stage by stage."""

    stages: Sequence[StagePlan]
    limits: Limits
    machine: Any = None
    """Rates of the workers (:class:`daskcurate.calibration.Machine`), where they were measured."""

    @property
    def seconds(self) -> tuple[float, ...] | None:
        """Seconds that each stage takes, about; None where the workers were not measured."""
        if self.machine is None:
            return None
        return tuple(stage.seconds(self.machine, self.limits) for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether every stage fits the workers' memory."""
        return not any(self._too_large())

    def _too_large(self) -> Iterable[StagePlan]:
        usable = self.limits.usable_memory
        return [] if usable is None else [stage for stage in self.stages if stage.peak_memory > usable]

    def check(self) -> None:
        """Raise PlanError if a stage does not fit, naming it and the bytes."""
        for stage in self._too_large():
            advice = stage.advice or "give the workers more memory or fewer threads each"
            if self.limits.process_bytes > (self.limits.usable_memory or 0):
                advice = (
                    f"the process and its libraries alone take {human(self.limits.process_bytes)}; "
                    "give the workers more memory"
                )
            raise PlanError(f"stage '{stage.stage}' needs {self.limits.against(stage.peak_memory)}: {advice}")

    @property
    def header(self) -> tuple[str, ...]:
        """The columns of :meth:`as_rows`."""
        return self.HEADER if self.machine is None else (*self.HEADER, "seconds")

    def as_rows(self) -> list[tuple[str, ...]]:
        """Return the plan as text, a row a stage."""
        seconds = self.seconds
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
                *(() if seconds is None else (f"{seconds[i]:.3g}",)),
            )
            for i, stage in enumerate(self.stages)
        ]

    HEADER = ("stage", "rows", "read", "flops", "tasks", "peak memory", "disk", "pairs")

    def __str__(self) -> str:
        rows = [self.header, *self.as_rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        limit, usable = self.limits.worker_memory, self.limits.usable_memory
        memory = "no limit"
        if limit is not None and usable is not None:
            memory = f"{human(limit)} ({human(usable)} usable)"
        lines.append(f"{self.limits.n_workers} workers, {self.limits.n_threads} threads, {memory} a worker")
        return "\n".join(lines)

    __repr__ = __str__


def human(n_bytes: int) -> str:
    """Return bytes as text."""
    return dask.utils.format_bytes(int(n_bytes))


def plan_stages(stages: Sequence[Any], limits: Limits, machine: Any = None) -> Plan:
    """Return the plan of lazy stages, with seconds where ``machine`` is given."""
    return Plan([stage.plan(limits) for stage in stages], limits, machine)


def counted_chunks(chunks: int, chunk_rows: int, n_threads: int) -> int:
    """Return how many chunks of labels one task counts: several, for counting is quick beside a task."""
    return max(1, min(chunks // (2 * n_threads), COUNTED_ROWS // chunk_rows))


def tree_tasks(parts: int) -> int:
    """Return the tasks that combine ``parts`` in groups of 8."""
    total = 0
    while parts > 1:
        parts = -(-parts // 8)
        total += parts
    return total


def combine_memory(k: int, d: int) -> int:
    """Return the bytes of a task that adds up the sums and counts per cluster of 8 blocks of rows."""
    return 9 * k * (d + 1) * 8


PAIRS_PER_ROW_AND_CLUSTER = 4
"""Pairs of rows that are compared in the time that one row is scored against one centroid."""
POOL_ROW_BYTES = 250
"""Memory for a row that has a match, where the rows of a whole pool are connected."""


def bound_pays(pairs: int, n: int, k: int) -> bool:
    """Whether comparing ``pairs`` pairs that a bound asks for is less work than comparing all of n rows.

    The pairs asked for come in smaller products, a third slower, and each row is scored against k centroids.
    """
    return 4 * pairs + 3 * PAIRS_PER_ROW_AND_CLUSTER * n * k < 3 * (n * (n - 1) // 2)
