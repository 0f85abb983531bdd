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
from pathlib import Path
from typing import Any

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
    """The largest resident memory of this process and of each of its children, sampled 10 times a second."""

    def __init__(self) -> None:
        self.client, self.workers, self.running = 0, dict[int, int](), True
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
            time.sleep(0.1)

    def stop(self) -> tuple[int, int]:
        """Return the peak of this process and that of the largest child."""
        self.running = False
        self.thread.join()
        return self.client, max(self.workers.values(), default=0)


def workers(args: argparse.Namespace, folder: str) -> None:
    rows = unit_rows(args.data, args.rows)
    emb = dc.ingest(rows, f"{folder}/workers.zarr")
    settings = {"n_clusters": args.clusters, "init": "random", "n_iters": ITERATIONS}
    times: dict[str, list[float]] = {"two workers": [], "one worker": [], "kernels alone, two threads": []}
    for _ in range(args.repeats):
        for name, count in (("two workers", 2), ("one worker", 1)):
            with make_local_cluster(n_workers=count) as cluster, Client(cluster):
                times[name].append(run(emb, folder, **settings)[0])
        alone = seconds_of(lambda: kernels_alone(rows, args.clusters, ITERATIONS, 2))[0]
        times["kernels alone, two threads"].append(alone)
    middle = {name: statistics.median(found) for name, found in times.items()}
    print_table(
        ("lloyd, 20 updates", "seconds", "of two workers'"),
        [
            (name, f"{seconds:.1f}", f"{seconds / middle['two workers']:.2f}")
            for name, seconds in middle.items()
        ],
    )


def memory(args: argparse.Namespace, folder: str) -> None:
    limit = args.memory << 20
    n = int(args.times * 2 * limit) // (4 * 384)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, 384)).astype(np.float32)
    path = Path(folder) / "large.npy"
    large = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, 384))
    for start in range(0, n, 65536):
        count = min(65536, n - start)
        large[start : start + count] = centres[rng.integers(0, 2000, count)] + rng.standard_normal(
            (count, 384), dtype=np.float32
        )
    large.flush()
    del large
    emb = dc.ingest(str(path), f"{folder}/large.zarr", normalize=True)
    path.unlink()
    settings = {"n_clusters": 1000, "init": "random", "n_iters": 3}
    found = []
    for name, share in (("held in memory", None), (f"{args.times:g} times the workers' memory", limit)):
        with make_local_cluster(n_workers=2, memory_limit=share or "auto") as cluster, Client(cluster):
            peaks = Peaks()
            seconds, _ = run(emb, folder, **settings)
            client, worker = peaks.stop()
        found.append((name, seconds, client, worker))
    print(f"{n} rows of 384, {4 * 384 * n >> 20} MiB as float32; workers of {args.memory} MiB")
    print_table(
        (
            "k-means, k = 1000, 3 updates",
            "seconds",
            "rows a second",
            "client's peak",
            "largest worker's peak",
        ),
        [
            (name, f"{seconds:.1f}", f"{5 * n / seconds:.0f}", f"{client >> 20} MiB", f"{worker >> 20} MiB")
            for name, seconds, client, worker in found
        ],
    )


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
    cli.add_argument("--memory", type=int, default=700, help="MiB of a worker in the part memory")
    cli.add_argument(
        "--times", type=float, default=8.0, help="the pool's size, of both workers' memory together"
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
