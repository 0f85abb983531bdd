"""K-means beside other packages: ``python benchmarks/kmeans.py``.

Every tool runs in this process tree on the same rows in the same run, in turns; the table has medians. A peer's
seconds are those until it has centroids; ours are those of the whole stage: read from zarr, seed, fit, label
every row, write, each time with another seed. Inertia is measured alike for all. Peers that are not installed are
named (extra ``bench``), and so are those that would take minutes at a size; naming them in ``--peers`` runs them
nevertheless.

Pictures: ``--rows 25000 50000 100000 200000 --clusters 1000 --figure rows.svg`` draws seconds against rows,
``--rows 100000 --clusters 250 1000 4000 --figure clusters.svg`` against clusters; with several of both, both.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from common import (
    gemm_rate,
    inertia,
    machine,
    options,
    parsed,
    print_table,
    read_rate,
    seconds_of,
    unit_rows,
)
from distributed import Client

import daskcurate as dc
from daskcurate.kernels import lloyd
from daskcurate.kernels.assign import Scorer
from daskcurate.local_cluster import make_local_cluster
from daskcurate.tasks import one_blas_thread

ITERATIONS = 20
ALGORITHMS = ("fast", "two-level", "lloyd")


def superkmeans(rows: np.ndarray, k: int) -> np.ndarray:
    from superkmeans import SuperKMeans

    model = SuperKMeans(
        k, rows.shape[1], hierarchical=False, iters=ITERATIONS, sampling_fraction=1.0,
        max_points_per_cluster=10**9, early_termination=False, tol=0.0,
    )  # fmt: skip
    return np.asarray(model.train(rows))


def faiss_kmeans(rows: np.ndarray, k: int) -> np.ndarray:
    import faiss

    model = faiss.Kmeans(
        rows.shape[1], k, niter=ITERATIONS, max_points_per_centroid=10**9, min_points_per_centroid=1, seed=1
    )
    model.train(rows)
    return model.centroids


def faiss_superkmeans(rows: np.ndarray, k: int) -> np.ndarray:
    import faiss

    model = faiss.SuperKMeans(rows.shape[1], k)
    model.niter, model.max_points_per_centroid = ITERATIONS, 10**9
    model.train(rows)
    return faiss.vector_to_array(model.centroids).reshape(k, -1)


def sklearn_kmeans(rows: np.ndarray, k: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    model = KMeans(k, init="random", n_init=1, max_iter=ITERATIONS, tol=0, algorithm="lloyd", random_state=0)
    return model.fit(rows).cluster_centers_


def sklearn_minibatch(rows: np.ndarray, k: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    return (
        MiniBatchKMeans(k, init="random", n_init=1, batch_size=4096, random_state=0)
        .fit(rows)
        .cluster_centers_
    )


def dask_ml(rows: np.ndarray, k: int) -> np.ndarray:
    """Run it on the cluster that ours runs on."""
    import dask.array as da
    from dask_ml.cluster import KMeans

    model = KMeans(k, init="random", max_iter=ITERATIONS, random_state=0)
    return np.asarray(model.fit(da.from_array(rows, chunks=(len(rows) // 8 + 1, -1))).cluster_centers_)


PEERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "superkmeans": superkmeans,
    "faiss Kmeans": faiss_kmeans,
    "faiss SuperKmeans": faiss_superkmeans,
    "scikit-learn KMeans": sklearn_kmeans,
    "scikit-learn MiniBatchKMeans": sklearn_minibatch,
    "dask-ml KMeans": dask_ml,
}


MOST_PAIRS = {"dask-ml KMeans": 25_000 * 1000}
"""Rows times clusters up to which a slow peer runs unasked."""


def ours(emb: dc.Embeddings, k: int, folder: str, **settings: object) -> np.ndarray:
    """Run the whole stage into a new store; return the centroids."""
    with tempfile.TemporaryDirectory(dir=folder) as store:
        return dc.compute(dc.kmeans(emb, k, **settings), store=f"{store}/run.zarr", progress=False).centroids


def kernels_alone(rows: np.ndarray, k: int, n_iters: int, threads: int) -> np.ndarray:
    """Run Lloyd's loop from random seeds on blocks in this process's threads, and label the rows."""
    from concurrent.futures import ThreadPoolExecutor

    blocks = np.array_split(rows, 16)
    centroids, moves = rows[np.random.default_rng(0).permutation(len(rows))[:k]], None
    last: list[lloyd.Last | None] = [None] * len(blocks)
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        for number in range(n_iters + 1):
            scorer = Scorer(centroids, "l2")
            last = list(pool.map(lambda pair, s=scorer, m=moves: lloyd.step_chunk(pair[0], s, pair[1], m),
                                 zip(blocks, last, strict=True)))  # fmt: skip
            if number < n_iters:
                total = lloyd.tree_combine([item.partial for item in last if item and item.partial])
                updated = lloyd.finalize(total, centroids, "l2")
                centroids, moves = updated, lloyd.moves_of(centroids, updated)
    return centroids


def measure(
    rows: np.ndarray, k: int, args: argparse.Namespace, folder: str
) -> list[tuple[str, float, float]]:
    """Return (tool, median seconds, median inertia) of every tool for one k."""
    calls: dict[str, Callable[[int], np.ndarray]] = {}
    for name, peer in PEERS.items():
        if args.peers is None and len(rows) * k > MOST_PAIRS.get(name, len(rows) * k):
            print(f"{name}: left out of {len(rows)} rows and k {k}; --peers {name!r} runs it", flush=True)
        elif args.peers is None or name in args.peers:
            calls[name] = lambda _, peer=peer: peer(rows, k)
    emb = dc.ingest(rows, f"{folder}/pool-{k}-{len(rows)}.zarr", overwrite=True)
    workers = os.cpu_count() or 1
    with make_local_cluster(n_workers=workers) as cluster, Client(cluster):
        for algorithm in args.algorithms:
            plain = {"init": "random", "n_iters": ITERATIONS} if algorithm == "lloyd" else {}
            calls[f"daskcurate, {algorithm}"] = lambda seed, a=algorithm, p=plain: ours(
                emb, k, folder, algorithm=a, seed=seed, **p
            )
        if "lloyd" in args.algorithms:
            calls["daskcurate's kernels alone, lloyd"] = lambda _: kernels_alone(rows, k, ITERATIONS, workers)
        times: dict[str, list[float]] = {name: [] for name in calls}
        quality: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(args.repeats):
            for name, call in calls.items():
                if name in times:
                    try:
                        seconds, centroids = seconds_of(partial(call, turn))
                    except ImportError as error:
                        print(f"{name}: not installed ({error.name})", flush=True)
                        del times[name]
                        continue
                    except Exception as error:
                        if name not in PEERS:
                            raise
                        print(f"{name}: failed ({error!r})", flush=True)
                        del times[name]
                        continue
                    times[name].append(seconds)
                    quality[name].append(inertia(rows, centroids))
                    print(
                        f"{len(rows)} rows, k {k}, {name}: {seconds:.2f} s, {quality[name][-1]:.0f}",
                        flush=True,
                    )
    return [
        (name, statistics.median(found), statistics.median(quality[name])) for name, found in times.items()
    ]


def main() -> None:
    cli = options(__doc__)
    cli.add_argument("--rows", type=int, nargs="+", default=[50_000])
    cli.add_argument("--clusters", type=int, nargs="+", default=[500])
    cli.add_argument("--peers", nargs="*", choices=list(PEERS), help="default: all")
    cli.add_argument("--algorithms", nargs="*", default=list(ALGORITHMS), choices=ALGORITHMS)
    cli.add_argument("--figure", type=Path, help="SVG of seconds against rows, clusters, or both")
    args = parsed(cli, rows=[3000], clusters=[30, 60])
    if args.figure is not None and len(args.rows) == len(args.clusters) == 1:
        cli.error("--figure needs several --rows or --clusters")
    print(machine())
    drawn: dict[str, list[tuple[int, int, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in args.rows:
            rows = unit_rows(args.data, n)
            for k in args.clusters:
                threads = os.cpu_count() or 1
                rates = {
                    name: gemm_rate(1024, k, rows.shape[1], threads, name) for name in ("float32", "bfloat16")
                }
                told = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items() if rate)
                print(
                    f"products of these shapes, GFLOP/s: {told}; memory {read_rate(threads) / 1e9:.1f} GB/s"
                )
                found = measure(rows, k, args, folder)
                first_time, first_inertia = found[0][1], found[0][2]
                dense = 2 * n * k * rows.shape[1] / (rates["float32"] or 1)
                print_table(
                    ("tool", "seconds", f"of {found[0][0]}'s", "in dense passes", "inertia", "ratio"),
                    [
                        (name, f"{seconds:.2f}", f"{seconds / first_time:.2f}", f"{seconds / dense:.1f}",
                         f"{value:.0f}", f"{value / first_inertia:.4f}")
                        for name, seconds, value in found
                    ],
                )  # fmt: skip
                for name, seconds, _ in found:
                    drawn.setdefault(name, []).append((n, k, seconds))
    if args.figure is not None:
        draw(drawn, args.figure, args.rows, args.clusters)


def draw(
    found: dict[str, list[tuple[int, int, float]]], path: Path, rows: list[int], clusters: list[int]
) -> None:
    """Draw seconds against rows (at the first k), against clusters (of the most rows), or both."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    panels = []
    if len(rows) > 1:
        panels.append((0, "rows", f"{clusters[0]} clusters", lambda point: point[1] == clusters[0]))
    if len(clusters) > 1:
        panels.append((1, "clusters", f"{max(rows)} rows", lambda point: point[0] == max(rows)))
    with plt.rc_context({"svg.hashsalt": "seconds"}):  # the same file from the same figures
        figure, all_axes = plt.subplots(1, len(panels), figsize=(7 * len(panels), 4.5), squeeze=False)
        for axes, (column, what, title, belongs) in zip(all_axes[0], panels, strict=True):
            for name, measured in found.items():
                points = sorted((point[column], point[2]) for point in measured if belongs(point))
                if points:
                    width = 2.5 if name.startswith("daskcurate,") else 1.2
                    axes.plot(*zip(*points, strict=True), marker="o", lw=width, label=name)
            axes.set(xscale="log", yscale="log", xlabel=what, ylabel="seconds", title=title)
            axes.grid(alpha=0.3, which="both")
            axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
