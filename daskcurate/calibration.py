"""How fast the workers are: a measurement of some two seconds, from which a plan says how long a run takes.

The kernels themselves are timed, on rows of the pool (how evenly they fall into groups decides what seeding takes: of
rows without any structure half as much again): once with every thread of the cluster at work at once, so that what
threads share (memory, caches, clock rate) is in the figures, and once by a task alone with the threads of its host,
as steps run that the cluster cannot share. Then tasks are run that do nothing, read or write: these cost a run what
they cost here. All is repeated, and the least time counts: what else runs only ever adds to it.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from distributed import Client, get_worker

from daskcurate.embeddings import PoolRows
from daskcurate.kernels import lloyd, seeding, similarity
from daskcurate.kernels.assign import Scorer, assign, unit_rows
from daskcurate.kernels.bounded import reassigned
from daskcurate.kernels.lloyd_in_memory import lloyd_in_memory
from daskcurate.kernels.restricted import make_lists, nearest_listed
from daskcurate.kernels.threads import spread
from daskcurate.kmeans_planning import lloyd_passes, lloyd_updates
from daskcurate.regroup import regrouped
from daskcurate.rows import add, tree
from daskcurate.store import RunStore, read_block, write_block, write_scratch
from daskcurate.tasks import task

SECONDS = 0.05
"""How long each kernel is repeated ..."""
LEAST_CALLS = 2
"""... and how often at least."""
BLOCK = 8192
"""Rows of the blocks that are timed ..."""
PIECES, REMOTE_PIECES = 64, 8
"""... from so many places of the pool: a read costs little in a folder, and some time at a URL."""
MADE_UP_GROUP = 64
"""Rows of a group where they are made up, because the pool has too few."""
CENTROIDS = 512
"""What they are compared with."""
SETTLING_ROWS, SETTLING_UPDATES = 64, 25
"""Rows a cluster, and updates at most, of the Lloyd passes that are counted ..."""
FEW_CLUSTERS, LEAST_UPDATES = 0.95, 0.7
"""... which are so few that they settle in this part of the usual work; the end of the loop is longer with more."""
WIDE = 512
"""With more columns than this fewer rows are settled, so that it takes no longer."""
SEEDS = seeding.GROUPED_SEEDS
CLUSTERS = (16, 80)
"""Mean rows of the clusters that are compared."""
TURNS = 3
"""How often each round of tasks is timed ..."""
FEW, MANY = 8, 40
"""... of so many tasks: a task costs what the larger one takes longer."""
SMALL = 4096
"""Labels that a task reads or writes, a chunk: so few that only opening the array counts."""


@dataclass(frozen=True)
class Machine:
    """Rates of one thread with all threads at work, and what tasks cost."""

    assign: float
    """Operations a second: rows scored against all centroids."""
    listed: float
    """Operations a second: rows in half of their directions scored against lists of centroids."""
    seed: float
    """Operations a second: greedy k-means++, as :func:`daskcurate.kernels.seeding.effort` counts them."""
    compare: float
    """Operations a second: rows of a cluster compared with each other, in large clusters."""
    match: float
    """Bytes a second of rows (float32) of small clusters made ready, and matches found, besides the products."""
    cluster: float
    """Clusters a second whose rows are compared, besides what belongs to the rows."""
    stream: float
    """Bytes a second of rows (float32) added up, in float64."""
    regroup: float
    """Bytes a second of rows, as stored, that are put into frames, and these together and cut again."""
    store: float
    """Bytes a second written to an array of a store."""
    read: float
    """Arrays of a store that are opened and read in a second, besides their bytes."""
    write: float
    """Likewise arrays that are opened and written."""
    task: float
    """Seconds that a task takes besides its work, when many are at hand."""
    round: float
    """Seconds that a step of a loop takes besides its tasks."""
    alone: Mapping[str, float] = field(default_factory=dict)
    """Those of the rates by name of a task that runs alone with the threads of its host; as above where it lacks."""
    passes: float = 1.0
    """Passes in which the work of Lloyd's algorithm falls, on the pool's rows, as a multiple of what is usual ..."""
    updates: float = 1.0
    """... and those until nothing changes."""

    def rate(self, name: str, *, alone: bool = False) -> float:
        """Return a rate of one thread, or of a task that runs ``alone``."""
        own = float(getattr(self, name))
        return self.alone.get(name, own) if alone else own


def rates(dim: int, pool: PoolRows | None = None) -> dict[str, float]:
    """Return the rates of this thread for rows of width ``dim``: those of a pool, or made up."""
    raw = sample_rows(dim, pool)
    x = unit_rows(raw)
    centroids = _centroids(x)
    scorer = Scorer(centroids, "l2")
    few, half = x[:2048], x[: BLOCK // 2]
    labels = assign(x, scorer).labels
    narrow, near = x[:, : -(-dim // 2)].copy(), centroids[:, : -(-dim // 2)].copy()
    listing, lists = Scorer(near, "l2"), make_lists(near, "l2", 0)
    homes, length = assign(narrow, listing).labels, lists.members.shape[1]
    stored = raw[: len(few)]
    url = f"{get_worker().local_directory}/calibrate-{uuid.uuid4().hex}"
    found = {
        "assign": 2 * len(half) * CENTROIDS * dim / _seconds(lambda: assign(half, scorer)),
        "listed": 2 * BLOCK * length * narrow.shape[1]
        / _seconds(lambda: nearest_listed(narrow, listing, lists, homes)),
        "seed": seeding.effort(2048, dim, 64)
        / _seconds(lambda: seeding.kmeans_plusplus(few, 64, np.random.default_rng(0))),
        "compare": len(few) ** 2 * dim / _seconds(lambda: similarity.earlier_within(few)),
        "stream": x.nbytes / _seconds(lambda: lloyd.segment_sums(x, labels, CENTROIDS)),
        "regroup": stored.nbytes / _seconds(lambda: regrouped(stored, labels[: len(few)] % 4)),
        "store": x.nbytes / _seconds(lambda: write_scratch(url, x)),
    }  # fmt: skip
    shutil.rmtree(url)
    found |= settling(x[:: 2 if dim <= WIDE else 4])
    return found | _matching([raw[: len(half)]], found["compare"])


def rates_alone(dim: int, pool: PoolRows | None = None) -> dict[str, float]:
    """Return the rates of the threads that this task was given (see :mod:`daskcurate.kernels.threads`) together."""
    raw = sample_rows(dim, pool)
    x = unit_rows(raw)
    scorer, parts = Scorer(_centroids(x), "l2"), np.split(x, 8)
    labels = [assign(part, scorer).labels for part in parts]

    def add_up() -> None:
        spread(lambda part, own: lloyd.segment_sums(part, own, CENTROIDS), parts, labels)

    found = {
        "assign": 2 * BLOCK * CENTROIDS * dim
        / _seconds(lambda: spread(lambda part: assign(part, scorer), parts)),
        "seed": seeding.effort(BLOCK, dim, SEEDS)
        / _seconds(lambda: seeding.kmeans_plusplus(x, SEEDS, np.random.default_rng(0))),
        "stream": x.nbytes / _seconds(add_up),
    }  # fmt: skip
    return found | _matching(np.split(raw, 8), found["assign"])


def sample_rows(dim: int, pool: PoolRows | None = None) -> np.ndarray:
    """Return rows (``BLOCK``, dim) of a pool, as stored, from places evenly over it; made up where it has too few."""
    if pool is None or pool.shape[0] < BLOCK:
        rng = np.random.default_rng(0)
        centres = rng.standard_normal((-(-BLOCK // MADE_UP_GROUP), dim), dtype=np.float32)
        rows = centres[rng.integers(0, len(centres), BLOCK)]
        return unit_rows(rows + rng.standard_normal((BLOCK, dim), dtype=np.float32))
    step = BLOCK // (PIECES if pool.is_local else REMOTE_PIECES)
    starts = np.linspace(0, pool.shape[0] - step, BLOCK // step).astype(np.int64).tolist()
    return np.concatenate([pool.read(start, start + step) for start in starts])


def _centroids(x: np.ndarray) -> np.ndarray:
    """Return centroids to compare rows with: the means of those nearest to some of them."""
    drawn = x[np.sort(np.random.default_rng(0).permutation(len(x))[:CENTROIDS])]
    return lloyd_in_memory([x[: BLOCK // 2]], drawn, "l2", 1).centroids


def settling(x: np.ndarray) -> dict[str, float]:
    """Return how much slower than usual Lloyd's algorithm settles on rows ``x`` (m, d): a count, nothing is timed.

    It is run on few rows for a few clusters. With 64 clusters as with 500, normal rows took half of the work that
    embeddings of texts took, and blobs less.
    """
    k = max(1, len(x) // SETTLING_ROWS)
    centroids = x[np.sort(np.random.default_rng(0).permutation(len(x))[:k])]
    assignment, moves, shares = assign(x, Scorer(centroids, "l2")), None, [1.0]
    while len(shares) < SETTLING_UPDATES:
        if moves is not None:
            assignment, share = reassigned(x, Scorer(centroids, "l2"), assignment, moves)
            shares.append(share)
        sums, counts = lloyd.segment_sums(x, assignment.labels, k)
        before, centroids = centroids, lloyd.finalize(lloyd.Partial(sums, counts, 0.0), centroids, "l2")
        moves = lloyd.moves_of(before, centroids)
        if not moves.any():
            break
    # a pass without bounds comes first
    usual = FEW_CLUSTERS * (lloyd_passes(SETTLING_UPDATES, len(x) / k) - 0.5)
    return {
        "passes": (sum(shares) - 0.5) / usual,
        "updates": max(LEAST_UPDATES, len(shares) / lloyd_updates(SETTLING_UPDATES, len(x) / k)),
    }


def _matching(parts: Sequence[np.ndarray], products: float) -> dict[str, float]:
    """Return what comparing the rows of small clusters takes besides the products, done at the rate ``products``."""

    def match(x: np.ndarray, edges: list[int]) -> None:
        similarity.match_clusters(x, edges, "earlier", 0.05)

    rows, dim = sum(map(len, parts)), parts[0].shape[1]
    rests, counts = list[float](), list[int]()
    for mean in CLUSTERS:
        edges = [_uneven(len(part), mean) for part in parts]
        squares = sum(float((np.diff(each) ** 2).sum()) for each in edges)
        counts.append(sum(map(len, edges)) - len(edges))
        took = _seconds(partial(spread, match, parts, edges))
        rests.append(max(took - squares * dim / products, took / 10))
    each = max((rests[0] - rests[1]) / (counts[0] - counts[1]), 1e-8)
    rest = rests[1] - counts[1] * each
    return {"match": 4 * rows * dim / max(rest, rests[1] / 10), "cluster": 1 / each}


def _uneven(rows: int, mean: int) -> list[int]:
    """Return the edges of clusters of about so many rows, as uneven as those of embeddings are, the largest first."""
    drawn = 1 + np.random.default_rng(0).gamma(1.5, mean / 1.5, 2 * rows // mean + 8).astype(np.int64)
    ends = np.cumsum(drawn)
    sizes = np.sort(np.diff(np.r_[0, ends[ends < rows], rows]))[::-1]
    return [0, *np.cumsum(sizes).tolist()]


def _seconds(call: Callable[[], Any]) -> float:
    started, times = time.perf_counter(), list[float]()
    while len(times) < LEAST_CALLS or time.perf_counter() - started < SECONDS:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return min(times)


def task_costs(client: Client, threads: int) -> dict[str, float]:
    """Return what tasks cost besides their work, how many reads and writes a thread does, and what a round costs.

    The tasks read and write an array, as most do, and are made, combined and waited for as those of a run.
    """
    token = uuid.uuid4().hex
    client.run(_make_store, token)
    few, many = (
        min(_round(client, count, f"{token}-{count}-{turn}", token) for turn in range(TURNS))
        for count in (FEW, MANY)
    )
    client.run(_remove_store, token)
    waits = [item.seconds - item.tasks * (item.read + item.write) / threads for item in (few, many)]
    each = max(0.0, (waits[1] - waits[0]) / (MANY - FEW))
    return {
        "read": 1 / many.read,
        "write": 1 / many.write,
        "task": each,
        "round": max(0.0, waits[0] - FEW * each),
    }


class _Round(NamedTuple):
    """A round of tasks."""

    seconds: float
    tasks: int
    read: float
    """Mean seconds of a read, and of a write."""
    write: float


def _round(client: Client, count: int, key: str, token: str) -> _Round:
    started = time.perf_counter()
    parts = [task(_access, token, i, name="calibrate", key=f"{key}-{i}") for i in range(count)]
    total = client.gather(client.compute([tree(_Tasks, add, parts, name="calibrate-sum", key=key)]))[0]
    return _Round(time.perf_counter() - started, count, *(total / count).tolist())


class _Tasks:
    """What makes tasks that belong to no run."""

    task = staticmethod(task)


def _access(token: str, number: int) -> np.ndarray:
    """Return the seconds that it takes to read a chunk of an array, and to write one, (2,)."""
    url, first = _store(token).stage_url("calibrate", "labels"), number * SMALL
    started = time.perf_counter()
    values = read_block(url, first, first + SMALL)
    between = time.perf_counter()
    write_block(url, first, values)
    return np.array([between - started, time.perf_counter() - between])


def _store(token: str, worker: Any = None) -> RunStore:
    return RunStore(f"{(worker or get_worker()).local_directory}/calibrate-{token}")


def _make_store(token: str, dask_worker: Any) -> None:
    """Make a run store with the labels of as many chunks as there are tasks."""
    store = _store(token, dask_worker)
    store.create()
    url = store.declare("kmeans", "calibrate", "labels", (MANY * SMALL,), SMALL)
    labels = np.random.default_rng(0).integers(0, CENTROIDS, MANY * SMALL, dtype=np.int32)
    write_block(url, 0, labels)


def _remove_store(token: str, dask_worker: Any) -> None:
    shutil.rmtree(_store(token, dask_worker).url)


def least_seconds(call: Callable[[], Any]) -> float:
    """Return the least time of three, for calls of some tenths of a second: what else runs only ever adds to it."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def machine_of(found: list[dict[str, float]], alone: dict[str, float], costs: dict[str, float]) -> Machine:
    """Return the machine from the rates of each thread, of which the means count, and what else was measured."""
    means = {name: float(np.mean([item[name] for item in found])) for name in found[0]}
    return Machine(**means, **costs, alone=alone)
