"""How fast the workers are: a measurement of a few seconds, from which a plan says how long a run takes.

The kernels themselves are timed, on random rows of the pool's width and with every thread of the cluster at
work at once, so that what threads share (memory, caches, clock rate) is in the figures.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskcurate.kernels import lloyd, seeding, similarity
from daskcurate.kernels.assign import Scorer, assign, unit_rows
from daskcurate.kernels.restricted import make_lists, nearest_listed

SECONDS = 0.4
"""How long each kernel is repeated."""
BLOCK = 4096
"""Rows of the blocks that are timed."""


@dataclass(frozen=True)
class Machine:
    """Rates of one thread with all threads at work, and what tasks cost."""

    assign: float
    """Operations a second: rows scored against all centroids."""
    listed: float
    """Operations a second: rows scored against lists of centroids."""
    seed: float
    """Operations a second: greedy k-means++."""
    compare: float
    """Operations a second: rows of a cluster compared with each other."""
    stream: float
    """Bytes a second of rows (float32) added up and measured."""
    task: float
    """Seconds that a task takes besides its work, when many are at hand."""
    round: float
    """Seconds that a step of a loop takes besides its tasks' work."""


def rates(dim: int) -> dict[str, float]:
    """Return the rates of this thread for rows of width ``dim``."""
    rng = np.random.default_rng(0)
    x = unit_rows(rng.standard_normal((BLOCK, dim), dtype=np.float32))
    centroids = unit_rows(rng.standard_normal((1024, dim), dtype=np.float32))
    scorer, lists = Scorer(centroids, "l2"), make_lists(centroids, "l2", 0)
    labels = assign(x, scorer).labels
    length = lists.members.shape[1]
    few = x[:2048]
    return {
        "assign": 2 * BLOCK * 1024 * dim / _seconds(lambda: assign(x, scorer)),
        "listed": 2 * BLOCK * length * dim / _seconds(lambda: nearest_listed(x, scorer, lists, labels)),
        "seed": 2 * 2048 * 64 * 6 * dim / _seconds(lambda: seeding.kmeans_plusplus(few, 64, rng)),
        "compare": BLOCK * BLOCK * dim / _seconds(lambda: similarity.earlier_within(x)),
        "stream": x.nbytes / _seconds(lambda: lloyd.segment_sums(x, labels, 1024)),
    }


def _seconds(call: Callable[[], Any]) -> float:
    call()
    started, times = time.perf_counter(), list[float]()
    while not times or time.perf_counter() - started < SECONDS:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return float(np.median(times))


def least_seconds(call: Callable[[], Any]) -> float:
    """Return the least time of three, for calls of some tenths of a second: what else runs only ever adds to it."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def machine_of(found: list[dict[str, float]], task: float, round_: float) -> Machine:
    """Return the machine from the rates of each thread: their means."""
    means = {name: float(np.mean([item[name] for item in found])) for name in found[0]}
    return Machine(**means, task=task, round=round_)
