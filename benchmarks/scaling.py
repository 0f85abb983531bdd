"""One worker against two, pools larger than memory, and 100 000 clusters: ``python benchmarks/scaling.py``.

Parts: ``workers`` (k-means through Dask on one worker and on two, and the kernels alone), ``memory`` (a pool of 8
times the workers' memory, against the same rows held in memory), ``clusters`` (100 000 of them, in two levels).
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import psutil
from common import machine, options, parsed, print_table, seconds_of, unit_rows
from distributed import Client
from kmeans import ITERATIONS, kernels_alone

import daskcurate as dc
from daskcurate.local_cluster import make_local_cluster


def run(emb: dc.Embeddings, folder: str, **settings: Any) -> tuple[float, Any]:
    """Return the seconds of a k-means stage, and its result."""
    store = tempfile.mkdtemp(dir=folder)
    return seconds_of(
        lambda: dc.compute(dc.kmeans(emb, **settings), store=f"{store}/run.zarr", progress=False)
    )


class Peaks:
    """The largest resident memory of this process and of each of its children, sampled 10 times a second.

    Of a cluster's workers also how long the one that Dask paused most was paused.
    """

    def __init__(self, cluster: Any = None) -> None:
        self.client, self.workers, self.running = 0, dict[int, int](), True
        self.cluster, self.paused = cluster, Counter[str]()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        own = psutil.Process()
        while self.running:
            self.client = max(self.client, own.memory_info().rss)
            for child in own.children(recursive=True):
                try:
                    rss = child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
                self.workers[child.pid] = max(self.workers.get(child.pid, 0), rss)
            if self.cluster is not None:
                states = list(self.cluster.scheduler.workers.values())
                self.paused.update(state.address for state in states if state.status.name == "paused")
            time.sleep(0.1)

    def stop(self) -> tuple[int, int]:
        """Return the peak of this process and that of the largest child."""
        self.running = False
        self.thread.join()
        return self.client, max(self.workers.values(), default=0)

    @property
    def seconds_paused(self) -> float:
        """How long the worker that was paused most was, about."""
        return max(self.paused.values(), default=0) / 10


def workers(args: argparse.Namespace, folder: str) -> None:
    rows = unit_rows(args.data, args.rows)
    emb = dc.ingest(rows, f"{folder}/workers.zarr")
    settings = {"n_clusters": args.clusters, "init": "random", "n_iters": ITERATIONS}
    times: dict[str, list[float]] = {"two workers": [], "one worker": []}
    # what two cores of this machine gain over one, without Dask: they share caches and memory
    alone = {"kernels alone, two threads": 2, "kernels alone, one thread": 1}
    for _ in range(args.repeats):
        for name, count in (("two workers", 2), ("one worker", 1)):
            with make_local_cluster(n_workers=count) as cluster, Client(cluster):
                times[name].append(run(emb, folder, **settings)[0])
        for name, threads in alone.items():
            call = partial(kernels_alone, rows, args.clusters, ITERATIONS, threads)
            times.setdefault(name, []).append(seconds_of(call)[0])
    middle = {name: statistics.median(found) for name, found in times.items()}
    print_table(
        ("lloyd, 20 updates", "seconds", "of two workers'"),
        [
            (name, f"{seconds:.1f}", f"{seconds / middle['two workers']:.2f}")
            for name, seconds in middle.items()
        ],
    )


WIDTH = 384


def large_pool(folder: str, n: int) -> dc.Embeddings:
    """Return a pool of n unit rows around 2000 centres, made a block at a time."""
    centres = np.random.default_rng(0).standard_normal((2000, WIDTH)).astype(np.float32)

    def made(number: int, count: int) -> np.ndarray:
        rng = np.random.default_rng((1, number))
        rows = rng.standard_normal((count, WIDTH), dtype=np.float32)
        rows += centres[rng.integers(0, len(centres), count)]
        return rows

    counts = [min(65536, n - start) for start in range(0, n, 65536)]
    blocks = [
        da.from_delayed(dask.delayed(made)(i, count), (count, WIDTH), np.float32)
        for i, count in enumerate(counts)
    ]
    return dc.ingest(da.concatenate(blocks), f"{folder}/large.zarr", normalize=True)


def read_rate(emb: dc.Embeddings, *, cold: bool) -> float:
    """Return the bytes a second at which two threads read the pool's rows, out of the page cache or not."""
    if cold:
        for file in Path(emb.path, "embeddings", "c").glob("*/0"):
            with file.open("rb") as open_file:
                os.fsync(open_file.fileno())
                os.posix_fadvise(open_file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    starts = range(0, len(emb), emb.chunk_rows)

    def read(start: int) -> int:
        return emb.rows.read(start, min(start + emb.chunk_rows, len(emb))).nbytes

    with ThreadPoolExecutor(2) as pool:
        seconds, sizes = seconds_of(lambda: sum(pool.map(read, starts)))
    return sizes / seconds


def memory_run(emb: dc.Embeddings, folder: str, limit: int, updates: int) -> tuple[float, float, int, float]:
    """Return seconds, inertia, the largest worker's peak and seconds paused of k-means on workers of ``limit``."""
    with make_local_cluster(n_workers=2, memory_limit=limit) as cluster, Client(cluster):
        peaks = Peaks(cluster)
        seconds, made = run(emb, folder, n_clusters=1000, init="random", n_iters=updates)
        _, worker = peaks.stop()
    return seconds, made.inertia, worker, peaks.seconds_paused


def memory(args: argparse.Namespace, folder: str) -> None:
    limit, updates = args.memory << 20, args.updates
    n = int(args.times * 2 * limit) // (4 * WIDTH)
    emb = large_pool(folder, n) if args.pool is None else dc.open_embeddings(args.pool)
    n = len(emb)
    rates = {name: read_rate(emb, cold=name == "cold") for name in ("cold", "warm")}
    print(f"{n} rows of {emb.dim}, {4 * emb.dim * n >> 20} MiB as float32; workers of {args.memory} MiB")
    print(", ".join(f"read {name} at {rate / 1e9:.2f} GB/s" for name, rate in rates.items()))
    enough = (
        2 * n * emb.dim * 4
    )  # a worker's limit at which half of the pool is far below what Dask spills at
    table, first = [], 0.0
    for name, size in (("held in memory", enough), (f"{args.times:g} times the workers' memory", limit)):
        seconds, inertia, worker, paused = memory_run(emb, folder, size, updates)
        rate = (updates + 1) * n / seconds
        first = first or rate
        table.append(
            (name, f"{seconds:.1f}", f"{rate:.0f}", f"{rate / first:.2f}", f"{worker >> 20} MiB", f"{paused:.1f}",
             f"{inertia:.6f}")
        )  # fmt: skip
    print_table(
        (f"k-means, k = 1000, {updates} updates", "seconds", "rows a second", "of those held",
         "largest worker's peak", "seconds paused", "inertia"),
        table,
    )  # fmt: skip


def clusters(args: argparse.Namespace, folder: str) -> None:
    n, k, d = args.many_rows, args.many_clusters, 64
    rng = np.random.default_rng(0)
    # concepts of concepts, as embeddings have: 300 of them, with 100 each, and rows around those
    tops = rng.standard_normal((300, d)).astype(np.float32)
    centres = np.repeat(tops, 100, axis=0) + 0.5 * rng.standard_normal((30_000, d), dtype=np.float32)
    rows = centres[rng.integers(0, len(centres), n)] + 0.3 * rng.standard_normal((n, d), dtype=np.float32)
    emb = dc.ingest(rows, f"{folder}/many.zarr", normalize=False)
    table = []
    with make_local_cluster(n_workers=os.cpu_count()) as cluster, Client(cluster):
        peaks = Peaks()
        seconds, made = run(emb, folder, n_clusters=k, algorithm="two-level")
        client, worker = peaks.stop()
        empty = made.attributes["n_empty"]
        table.append(
            ("two-level", f"{seconds:.0f}", f"{made.inertia:.0f}", f"{made.recall:.4f}", f"{empty}",
             f"{client >> 20} MiB", f"{worker >> 20} MiB")
        )  # fmt: skip
        tree = dc.hierarchical_kmeans(emb, [max(2, k // 100)], n_splits=100, algorithm="fast", n_iters=20)
        store = f"{folder}/split.zarr"
        seconds, split = seconds_of(lambda: dc.compute(tree, store=store, progress=False))
        level = split.levels[0]
        table.append(
            ("split", f"{seconds:.0f}", f"{level.inertia:.0f}", "", f"{level.n_clusters} made", "", "")
        )
    print(f"{n} rows of {d}, {k} clusters")
    print_table(
        ("way", "seconds", "inertia", "recall", "empty", "client's peak", "largest worker's peak"), table
    )


PARTS = {"workers": workers, "memory": memory, "clusters": clusters}


def main() -> None:
    cli = options(__doc__)
    cli.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    cli.add_argument("--rows", type=int, default=50_000)
    cli.add_argument("--clusters", type=int, default=500)
    cli.add_argument("--memory", type=int, default=704, help="MiB of a worker in the part memory")
    cli.add_argument("--updates", type=int, default=3, help="updates of the part memory")
    cli.add_argument("--pool", help="pool of the part memory; without: one is made")
    cli.add_argument(
        "--times", type=float, default=8.0, help="the size of that pool, of both workers' memory together"
    )
    cli.add_argument("--many-rows", type=int, default=1_000_000)
    cli.add_argument("--many-clusters", type=int, default=100_000)
    args = parsed(cli, rows=4000, clusters=40, memory=600, times=0.6, many_rows=20_000, many_clusters=1000)
    print(machine())
    for part in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[part](args, folder)


if __name__ == "__main__":
    main()
