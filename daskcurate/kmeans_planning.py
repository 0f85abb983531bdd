"""What a level of k-means takes, before it runs: memory, operations, tasks, and how the work grows.

How much of a Lloyd pass the bounds skip depends on the data; here it follows from the rows for each cluster, by
measurement of embeddings of texts, 10 to 2500 rows a cluster: nothing at first, then ever more. The calibration finds
how much faster or slower it is on the pool's own rows (:func:`daskcurate.calibration.settling`).
"""

import math
from collections import defaultdict
from typing import Any, NamedTuple

from daskcurate.fast_loop import TAILS
from daskcurate.fitting import is_lloyds, lloyd_fits_one_task, one_task_bytes
from daskcurate.kernels.leading import LEAST_WIDTH, MOST
from daskcurate.kernels.leading import SAMPLE_ROWS as DIRECTION_ROWS
from daskcurate.kernels.oversampling import OVERSAMPLING_ROUNDS
from daskcurate.kernels.restricted import list_size
from daskcurate.kernels.seeding import effort, operations
from daskcurate.planning import RANK_ROW_BYTES, Limits, StagePlan, combine_memory, tree_tasks
from daskcurate.remembering import LIMIT_BYTES, PARTIAL_SHARE
from daskcurate.rows import BLOCKS, PIECE_BYTES, chunks_per_block
from daskcurate.seeds import SAMPLE_ROWS, SAMPLE_UPDATES, greedy_rows, seeds_at_once
from daskcurate.two_level import COARSE_ROWS, PARTITIONS, SEED_ROWS, UPDATES

PASSES, PASSES_MORE, PASSES_TWO_LEVEL = 7, 1.0, 5
"""Passes through lists until rows settle with 80 rows a cluster, more with twice as many, and of ``two-level``."""
NARROW_SHARE = 0.5
"""Share of all directions that rows of embeddings take in their leading ones, about."""
SUMS_BYTES = 48 << 20
"""What adding up the rows of a block takes besides: float64 copies of a few columns (32 MiB), their sums, scores."""
# Reading, adding up and measuring rows, in passes over them that add them up in float64
LOADED = 2.0
ASSIGNED, MEASURED = 0.7, 0.7
"""Made ready to be compared; the distance to the own centroid, and its check in float64."""
SUMMED = 0.4
"""Added up in float32."""
BOUNDED = 2.0
"""Made ready, compared with the own centroid, and bounds brought up to date; the sums of clusters that changed."""
AGAIN = 1.0
"""Rows that the bounds leave, and those compared with the centroids that moved most: gathered, made ready."""
SLOW_END = 100
"""Rows a cluster from which on the work of bounded passes falls slowly in the end."""
COUNTED_FALLS = 40
"""Passes that are counted, in falls of a pass's work to 1 / e: what comes later adds less than is lost in rounding,
and a run until ``tol`` may allow any number of passes."""
STAGE_WRITES = 12
"""Arrays and attributes that the client makes at the start and end of a stage."""
PASS_WRITES = 3
"""Arrays that the client and one task write and remove in a pass while all wait: centroids, the checkpoint."""


def narrow_bytes(n: int, d: int) -> int:
    """Return the bytes of n rows of width d in their leading directions, at most."""
    return int(n * (MOST * d + 4) * 4) if d >= LEAST_WIDTH else 0


def seed_memory(config: Any, n: int, d: int, k: int, block: int, limits: Limits) -> int:
    """Return the bytes of the largest seeding task, for k seeds of n rows of width d in blocks of ``block`` items."""
    if config.init == "k-means++":
        lloyds = is_lloyds(config.algorithm, n, d, k)
        if not lloyds and seeds_at_once(n, d, k):
            return 3 * min(n, SAMPLE_ROWS * k) * d * 4 + 2 * BLOCKS * k * d * 8
        if not lloyds:
            sample = min(n, SEED_ROWS * k) * d * 4
            return (
                3 * sample // max(1, min(PARTITIONS, math.isqrt(k)))
                + k * d * 8
                + limits.shuffle_memory(sample)
            )
        return 3 * greedy_rows(n, d, k) * d * 4
    if config.init == "k-means||":  # five rounds of 2k candidates, made ready to score a block with
        return 4 * block + 7 * min(n, 10 * k) * d * 4
    return k * d * 8  # drawn in parts, then put together


def _blocks(n: int, chunk_rows: int, d: int, limits: Limits) -> tuple[int, int]:
    """Return the rows of a block of n rows of width d, and how many blocks there are."""
    rows = min(n, chunk_rows * chunks_per_block(n, chunk_rows, d, limits.on_gpu))
    return rows, -(-n // rows)


def tasks_memory(
    *,
    n: int,
    d: int,
    itemsize: int,
    chunk_rows: int,
    config: Any,
    limits: Limits,
    split_bytes: int,
    local: bool,
) -> dict[str, int]:
    """Return the bytes of the largest task of each kind; arguments as of :func:`kmeans_plan`."""
    k = min(config.n_clusters, n)
    block_rows, blocks = _blocks(n, chunk_rows, d, limits)
    items = block_rows * d
    whole = 0
    for rows in {n, *([min(n, config.sample_size * k)] if config.resamples else [])}:
        parts = min(blocks, rows)
        if is_lloyds(config.algorithm, rows, d, k) and lloyd_fits_one_task(limits, rows, d, k, parts):
            whole = max(whole, one_task_bytes(rows, d, k, parts))
    reading = 2 * PIECE_BYTES if local else items * itemsize
    return {
        "step": items * 4 + reading + 4 * k * d * 4 + k * d * 8 + SUMS_BYTES + 32 * block_rows,
        "combine": combine_memory(k, d),
        "seed": seed_memory(config, n, d, k, items, limits),
        "whole": whole,
        "split": 5 * min(n * d * 4, split_bytes) + limits.shuffle_memory(n * d * 4)
        if config.n_splits > 1
        else 0,
    }


def working_memory(*, n: int, d: int, chunk_rows: int, config: Any, limits: Limits, **more: Any) -> int:
    """Return what a worker needs at the worst moment, besides blocks that it holds; arguments as below."""
    tasks = tasks_memory(n=n, d=d, chunk_rows=chunk_rows, config=config, limits=limits, **more)
    k = min(config.n_clusters, n)
    block_rows, blocks = _blocks(n, chunk_rows, d, limits)
    partial = k * d * 8
    sums = partial * blocks if partial * PARTIAL_SHARE <= block_rows * d * 4 else 0
    # labels, bounds and sums of the last pass; labels and distances until they are written
    remembered = min(LIMIT_BYTES, (n * 8 + sums) // limits.n_workers)
    return limits.peak(max(tasks.values()), remembered + n * 12 // limits.n_workers)


def lloyd_passes(n_iters: int, rows_per_cluster: float, slower: float = 1.0) -> float:
    """Return the work of ``n_iters`` bounded passes, in passes without bounds.

    ``slower``: how much slower than usual it falls.
    """
    fall = _fall(rows_per_cluster) * slower
    power = 1 + 1 / (1 + (rows_per_cluster / SLOW_END) ** 2)  # many rows a cluster: a slow end
    counted = min(n_iters, math.ceil(COUNTED_FALLS * fall) + 1)
    return sum(math.exp(-((t / fall) ** power)) for t in range(counted))


def lloyd_updates(n_iters: int, rows_per_cluster: float, slower: float = 1.0) -> int:
    """Return the passes that Lloyd's algorithm makes before nothing changes, ``n_iters`` at most."""
    return min(n_iters, 1 + math.ceil(2.4 * _fall(rows_per_cluster) * slower))


def restricted_passes(rows_per_cluster: float) -> int:
    """Return the passes through lists that rows take to settle, about."""
    return max(3, round(PASSES + PASSES_MORE * math.log2(max(1.0, rows_per_cluster) / 80)))


def _fall(rows_per_cluster: float) -> float:
    """Return the passes in which the work of a bounded pass falls to 1 / e."""
    return 25 * (1 - math.exp(-max(1.0, rows_per_cluster) / 65))


def kmeans_plan(
    title: str,
    *,
    n: int,
    d: int,
    itemsize: int,
    chunk_rows: int,
    config: Any,
    limits: Limits,
    split_bytes: int,
    local: bool = True,
) -> StagePlan:
    """Return the plan of one k-means level over n rows of width d (``config``: a KMeansConfig).

    ``split_bytes`` are the rows (float32) that one task splits at most. ``local``: whether the rows are read piece by
    piece, as those of a pool in a folder are.
    """
    k = min(config.n_clusters, n)
    fast = not is_lloyds(config.algorithm, n, d, k)
    block_rows, blocks = _blocks(n, chunk_rows, d, limits)
    sizes = {"n": n, "d": d, "itemsize": itemsize, "chunk_rows": chunk_rows, "config": config}
    tasks = tasks_memory(**sizes, limits=limits, split_bytes=split_bytes, local=local)
    working = working_memory(**sizes, limits=limits, split_bytes=split_bytes, local=local)
    rows_held = limits.holds(n * d * 4, block_rows * d * 4, working)
    held = n * d * 4 if rows_held else 0
    if fast and limits.holds(held + narrow_bytes(n, d), block_rows * d * 4, working):
        held += narrow_bytes(n, d)
    made = _Made(n, d, k, blocks, config, limits)
    made.whole()
    reads = 1 if rows_held else made.passes
    made.work["stream"] += LOADED * 4 * n * d * reads
    worst = max(tasks, key=lambda name: tasks[name])
    advice = {
        "step": "lower n_clusters, or give the workers more memory or fewer threads each",
        "combine": "lower n_clusters, or give the workers more memory or fewer threads each",
        "seed": "use init='random', or give the workers more memory",
        "whole": "give the workers more memory or fewer threads each",
        "split": "give the workers more memory or fewer threads each",
    }[worst]
    products = ("assign", "listed")
    return StagePlan(
        stage=title,
        rows=n,
        bytes_read=int(n * d * itemsize * reads),
        flops=int(
            sum(v for name, v in made.work.items() if name.rpartition("-")[2] in products)
            + made.seed_operations
        ),
        tasks=int(made.tasks),
        peak_memory=working + held // limits.n_workers,
        disk=n * 8 + k * config.n_splits * (d * 4 + 8),
        advice=advice,
        work=dict(made.work),
        parts=blocks,
        loops=made.loops,
    )


class LloydLoop(NamedTuple):
    """The bounded passes of one fit by Lloyd's algorithm, which are as many as the rows make them."""

    n_iters: int
    rows_per_cluster: float
    prefix: str
    """``alone-`` in one task, else empty."""
    pass_operations: float
    """Of a pass without bounds."""
    pass_bytes: float
    """Of the rows that are compared again in such a pass; the bounds save of these what they save of operations."""
    update_bytes: float
    """Of the rows and sums that every pass goes through, whatever the bounds save."""
    update_tasks: int
    """Of a pass; 0 in one task."""

    def amounts(self, passes: float = 1.0, updates: float = 1.0) -> dict[str, float]:
        """Return the work by the rate it goes at, and ``tasks``; with the factors that the calibration found."""
        done = lloyd_passes(self.n_iters, self.rows_per_cluster, passes)
        made = lloyd_updates(self.n_iters, self.rows_per_cluster, updates)
        found = {
            f"{self.prefix}assign": self.pass_operations * done,
            f"{self.prefix}stream": self.pass_bytes * done + self.update_bytes * made,
        }
        if self.update_tasks:
            found |= {"tasks": made * self.update_tasks, "rounds": made, "serial-read": made}
            found["serial-write"] = made * PASS_WRITES
        return found


class _Made:
    """What a level makes: its work, its tasks, and the passes over the rows of the pool."""

    def __init__(self, n: int, d: int, k: int, blocks: int, config: Any, limits: Limits):
        self.n, self.d, self.k, self.blocks, self.config, self.limits = n, d, k, blocks, config, limits
        self.work: dict[str, float] = defaultdict(float)
        self.tasks = self.passes = 0
        self.seed_operations = 0.0
        self.loops: list[LloydLoop] = []

    def whole(self) -> None:
        """Count all that the stage does."""
        config, n, d, k = self.config, self.n, self.d, self.k
        lloyds = is_lloyds(config.algorithm, n, d, k)
        self.step(self.blocks, rounds=1)  # the rows are read
        for _ in range(config.n_init):
            self.fit(n)
        simple = config.init == "k-means++" and config.n_init == 1
        subset = min(n, config.sample_size * k)
        in_one = lloyds and simple and lloyd_fits_one_task(self.limits, n, d, k, self.blocks)
        for step in range(config.resamples):
            if in_one:
                self._resample_in_memory(subset, known=bool(step) * subset)
            else:
                self._assign()
                self.step(4 * self.blocks, rounds=3)
                for _ in range(config.n_init):
                    self.fit(subset)
        if config.algorithm == "two-level" and not lloyds:
            self.work["listed"] += 2 * n * d * (4 * list_size(k) + 4 * math.sqrt(k))
            self._rows("stream", n, ASSIGNED + MEASURED)
            self.step(2 * self.blocks + tree_tasks(self.blocks) + 2, rounds=2)
            self.passes += 1
        else:
            self._assign()
        self.step(self.blocks + 1, rounds=2)  # labels and centroids are written
        self.work["write"] += 2 * self.blocks
        self.work["serial-write"] += STAGE_WRITES

    def step(self, tasks: int, rounds: int) -> None:
        """Count tasks, and rounds in which the client waits for them."""
        self.tasks += tasks
        self.work["rounds"] += rounds

    def _rows(self, how: str, n: int, passes: float, width: float | None = None) -> None:
        """Count passes over n rows."""
        self.work[how] += passes * 4 * n * (self.d if width is None else width)

    def _assign(self) -> None:
        """Count an assignment of all rows to all centroids, and the sizes of the clusters."""
        self.work["assign"] += 2 * self.n * self.k * self.d
        self._rows("stream", self.n, ASSIGNED + MEASURED)
        self.step(2 * self.blocks + tree_tasks(self.blocks), rounds=2)
        self.passes += 1

    def fit(self, n: int) -> None:
        """Count seeding and the passes of one fit of n rows; see :func:`daskcurate.fitting.fit`."""
        config, d, k = self.config, self.d, self.k
        blocks = min(self.blocks, n)
        if not is_lloyds(config.algorithm, n, d, k):
            narrow = config.init == "k-means++" and d >= LEAST_WIDTH
            width = round(d * NARROW_SHARE) if narrow else d
            if narrow:
                self._directions(n, width, blocks)
            self._seeds(n, width, blocks, lloyds=False)
            self._fast(n, width, blocks, narrow)
            return
        alone = lloyd_fits_one_task(self.limits, n, d, k, blocks)
        self._seeds(n, d, blocks, lloyds=True)
        if alone:
            self._lloyd(n, blocks, alone=True)
            # what other workers hold goes to one
            self._rows("serial-stream", n, 1 - 1 / self.limits.n_workers)
            self.step(1, rounds=1)
            self.passes += 1
            self.work["serial-write"] += 1
            return
        self._lloyd(n, blocks, alone=False)
        self.passes += lloyd_updates(config.n_iters, n / k)

    def _lloyd(self, n: int, blocks: int, *, alone: bool) -> None:
        """Count the bounded passes of Lloyd's algorithm."""
        d, k = self.d, self.k
        loop = LloydLoop(
            n_iters=self.config.n_iters,
            rows_per_cluster=n / k,
            prefix="alone-" if alone else "",
            pass_operations=2.0 * n * k * d,
            pass_bytes=AGAIN * 4 * n * d,
            update_bytes=BOUNDED * 4 * n * d + 4.0 * k * d * blocks,  # and sums of the blocks, combined
            update_tasks=0 if alone else blocks + tree_tasks(blocks) + 1,
        )
        self.loops.append(loop)
        amounts = loop.amounts()
        self.tasks += int(amounts.pop("tasks", 0))
        for name, amount in amounts.items():
            self.work[name] += amount

    def _seed(self, rate: str, m: int, d: int, k: int, times: float = 1.0) -> None:
        """Count greedy k-means++ of k seeds among m rows of width d."""
        self.work[rate] += times * effort(m, d, k)
        self.seed_operations += times * operations(m, d, k)

    def _resample_in_memory(self, subset: int, known: int) -> None:
        """Count a resampling step in one task; see :func:`daskcurate.fitting.fit_resampled`."""
        n, d, k = self.n, self.d, self.k
        self.work["alone-assign"] += 2 * (n - known) * k * d
        self._rows("alone-stream", n, ASSIGNED + MEASURED)
        self.work["serial-stream"] += n * RANK_ROW_BYTES
        self._seed("alone-seed", greedy_rows(subset, d, k), d, k)
        self._lloyd(subset, min(self.blocks, subset), alone=True)
        self.work["serial-write"] += 2 + PASS_WRITES
        self.step(1, rounds=1)
        self.passes += 1

    def _directions(self, n: int, width: int, blocks: int) -> None:
        """Count finding the leading directions, and bringing the rows there."""
        d = self.d
        sample = min(n, DIRECTION_ROWS * d)
        self.work["serial-assign"] += 4 * sample * d * d + 10 * d**3  # float64: half as fast
        self.work["assign"] += 2 * n * d * width
        self._rows("stream", n, ASSIGNED + MEASURED)
        self.step(2 * blocks + 1, rounds=2)
        self.passes += 1

    def _fast(self, n: int, width: int, blocks: int, narrow: bool) -> None:
        """Count the passes of the algorithms besides Lloyd's; see :func:`daskcurate.fast_loop.iterate_fast`."""
        k, config = self.k, self.config
        tail = TAILS[config.algorithm]
        more = PASSES_TWO_LEVEL if config.algorithm == "two-level" else 0
        passes = min(restricted_passes(n / k) + more + len(tail), config.n_iters)
        over_all = min(sum(tail), passes)
        groups = min(k / 4, 4 * math.sqrt(k))
        self.work["listed"] += 2 * n * width * list_size(k) * (passes - over_all)
        self.work["assign"] += 2 * n * width * (k * over_all + groups)  # and homes of the first pass
        self.work["serial-assign"] += (
            (passes - over_all) * 6 * k * width * groups
        )  # groups and lists, by each worker
        self._rows("stream", n, SUMMED * passes, width)
        self.work["serial-read"] += passes
        self.work["serial-write"] += PASS_WRITES * passes
        in_turn = blocks + tree_tasks(blocks)
        self.step(passes * (in_turn + 1), rounds=passes)
        self.passes += passes
        if narrow:  # the means of the whole rows
            self._rows("stream", n, SUMMED)
            self.step(blocks, rounds=0)

    def _seeds(self, n: int, d: int, blocks: int, *, lloyds: bool) -> None:
        """Count seeding k clusters among n rows of width d; see :func:`daskcurate.seeds.seed_centroids`."""
        config, k, work = self.config, self.k, self.work
        drawn = blocks  # tasks that take rows of the blocks
        if config.init == "array":
            return
        work["serial-write"] += 1
        if config.init == "k-means||":
            rounds = OVERSAMPLING_ROUNDS
            work["assign"] += 2 * n * d * 4 * k * rounds
            self._seed("alone-seed", min(n, 10 * k), d, k)
            self.step(rounds * 3 * blocks, rounds=3 * rounds)
            self.passes += 2 * rounds
        elif config.init == "k-means++" and not lloyds and seeds_at_once(n, self.d, k):
            rows = min(n, SAMPLE_ROWS * k)
            self._seed("alone-seed", rows, d, k)
            work["alone-assign"] += 2 * rows * d * k * SAMPLE_UPDATES
        elif config.init == "k-means++" and not lloyds:
            h = max(1, round(math.sqrt(k)))
            rows, coarse = min(n, SEED_ROWS * k), min(n, COARSE_ROWS * h)
            self._seed("alone-seed", coarse, d, h)
            self._seed("seed", rows // h, d, k // h, h)
            work["assign"] += 2 * rows * d * ((k / h) * UPDATES + h)
            work["serial-stream"] += 2 * rows * d * 4
            self.step(4 * blocks + 2 * PARTITIONS, rounds=5)
        elif config.init == "k-means++":
            rows = greedy_rows(n, d, k)
            self._seed("alone-seed", rows, d, k)
            drawn = blocks if rows < n else 0
        self.step(drawn + 1, rounds=1)
        self.passes += 1
