"""How fast the workers are: a measurement of some two seconds, from which a plan says how long a run takes.

The kernels themselves are timed, on random rows of the pool's width: once with every thread of the cluster at work
at once, so that what threads share (memory, caches, clock rate) is in the figures, and once by a task alone with the
threads of its host, as steps run that the cluster cannot share. Then tasks are run that do nothing, read or write:
these cost a run what they cost here. All is repeated, and the least time counts: what else runs only ever adds to it.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from distributed import Client, get_worker

from daskcurate.kernels import lloyd, seeding, similarity
from daskcurate.kernels.assign import Scorer, assign, unit_rows
from daskcurate.kernels.restricted import make_lists, nearest_listed
from daskcurate.kernels.threads import spread
from daskcurate.regroup import regrouped
from daskcurate.rows import add, tree
from daskcurate.store import RunStore, read_block, write_block, write_scratch
from daskcurate.tasks import task

SECONDS = 0.05
"""How long each kernel is repeated ..."""
LEAST_CALLS = 2
"""... and how often at least."""
BLOCK = 8192
"""Rows of the blocks that are timed."""
CENTROIDS = 512
"""What they are compared with."""
SEEDS = seeding.GROUPED_SEEDS
CLUSTERS = (32, 128)
"""Rows of the clusters that are compared."""
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
    """Operations a second: greedy k-means++."""
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

    def rate(self, name: str, *, alone: bool = False) -> float:
        """Return a rate of one thread, or of a task that runs ``alone``."""
        own = float(getattr(self, name))
        return self.alone.get(name, own) if alone else own


def rates(dim: int) -> dict[str, float]:
    """Return the rates of this thread for rows of width ``dim``."""
    rng, x = _rows(dim)
    centroids = unit_rows(rng.standard_normal((CENTROIDS, dim), dtype=np.float32))
    scorer = Scorer(centroids, "l2")
    few, half = x[:2048], x[: BLOCK // 2]
    labels = assign(x, scorer).labels
    narrow, near = x[:, : -(-dim // 2)].copy(), centroids[:, : -(-dim // 2)].copy()
    listing, lists = Scorer(near, "l2"), make_lists(near, "l2", 0)
    homes, length = assign(narrow, listing).labels, lists.members.shape[1]
    stored = few.astype(np.float16)
    url = f"{get_worker().local_directory}/calibrate-{uuid.uuid4().hex}"
    found = {
        "assign": 2 * len(half) * CENTROIDS * dim / _seconds(lambda: assign(half, scorer)),
        "listed": 2 * BLOCK * length * narrow.shape[1]
        / _seconds(lambda: nearest_listed(narrow, listing, lists, homes)),
        "seed": seeding.operations(2048, dim, 64)
        / _seconds(lambda: seeding.kmeans_plusplus(few, 64, np.random.default_rng(0))),
        "compare": len(few) ** 2 * dim / _seconds(lambda: similarity.earlier_within(few)),
        "stream": x.nbytes / _seconds(lambda: lloyd.segment_sums(x, labels, CENTROIDS)),
        "regroup": stored.nbytes / _seconds(lambda: regrouped(stored, labels[: len(few)] % 4)),
        "store": x.nbytes / _seconds(lambda: write_scratch(url, x)),
    }  # fmt: skip
    shutil.rmtree(url)
    return found | _matching([half], found["compare"])


def rates_alone(dim: int) -> dict[str, float]:
    """Return the rates of the threads that this task was given (see :mod:`daskcurate.kernels.threads`) together."""
    rng, x = _rows(dim)
    centroids = unit_rows(rng.standard_normal((CENTROIDS, dim), dtype=np.float32))
    scorer, parts = Scorer(centroids, "l2"), np.split(x, 8)
    labels = [assign(part, scorer).labels for part in parts]

    def add_up() -> None:
        spread(lambda part, own: lloyd.segment_sums(part, own, CENTROIDS), parts, labels)

    found = {
        "assign": 2 * BLOCK * CENTROIDS * dim
        / _seconds(lambda: spread(lambda part: assign(part, scorer), parts)),
        "seed": seeding.operations(BLOCK, dim, SEEDS)
        / _seconds(lambda: seeding.kmeans_plusplus(x, SEEDS, np.random.default_rng(0))),
        "stream": x.nbytes / _seconds(add_up),
    }  # fmt: skip
    return found | _matching(parts, found["assign"])


def _rows(dim: int) -> tuple[np.random.Generator, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng, unit_rows(rng.standard_normal((BLOCK, dim), dtype=np.float32))


def _matching(parts: Sequence[np.ndarray], products: float) -> dict[str, float]:
    """Return what comparing the rows of small clusters takes besides the products, done at the rate ``products``."""

    def match(x: np.ndarray, size: int) -> None:
        similarity.match_clusters(x, range(0, len(x) + 1, size), "earlier", 0.05)

    rows, dim = sum(map(len, parts)), parts[0].shape[1]
    times = [_seconds(partial(spread, match, parts, repeat(size))) for size in CLUSTERS]
    fewer = rows // CLUSTERS[1]
    each = max(times[0] - times[1], 1e-6) / (rows // CLUSTERS[0] - fewer)
    rest = times[1] - fewer * each - rows * CLUSTERS[1] * dim / products
    return {"match": 4 * rows * dim / max(rest, times[1] / 10), "cluster": 1 / each}


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
