"""Dedup within and across clusters, beside brute force and semhash: ``python benchmarks/dedup.py``.

Prints the rate of matrix products, then a Markdown table: seconds (the median of the repeats), pairs compared,
and the share of the pool's duplicates that each finds. Brute force is the product of every pair of rows, without
bound or sketches; of large pools a part of it is timed and the rest reckoned. What is found is checked against
all pairs (one cluster, so no bound), bit for bit. Of dedup within clusters a second table says how near it comes to
its limits, measured in the same run: the products of clusters of the same sizes, what each row takes whatever it is
compared with (its values in float64, its length, scaling, one similarity in float64), and reading the rows.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, options, parsed
from distributed import Client
from threadpoolctl import threadpool_limits

import daskcurate as dc
from daskcurate.kernels.blas import own_products
from daskcurate.kernels.blocks import Room, prepare_each
from daskcurate.kernels.pool_matches import NearestEarlier, nearest_into
from daskcurate.kernels.pool_pairs import PoolBlock, compare, row_norms
from daskcurate.kernels.similarity import BATCH_ROWS, match_clusters
from daskcurate.local_cluster import make_local_cluster
from daskcurate.tasks import keep_freed_memory, one_blas_thread

BLOCK = 8192
"""Rows of a block of brute force."""


def synthetic(n: int, d: int, k: int) -> np.ndarray:
    """Return unit rows (n, d) float16 around k centres of uneven size; one in ten is a near copy of another."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((k, d)).astype(np.float32)
    rows = centres[(k * rng.random(n) ** 2).astype(int)]
    rows += rng.standard_normal((n, d), dtype=np.float32)
    copies = rng.permutation(n)[: n // 10]
    rows[copies] = rows[rng.integers(0, n, len(copies))]
    rows[copies] += 0.1 * rng.standard_normal((len(copies), d), dtype=np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def median_of(repeats: int, call: Callable[[int], Any]) -> tuple[float, Any]:
    """Return the median seconds of ``call(i)``, and what the last one returned."""
    seconds, result = [], None
    for i in range(repeats):
        started = time.perf_counter()
        result = call(i)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), result


def gemm_rate(m: int, n: int, d: int) -> float:
    """Return the float32 operations a second of an (m, d) by (d, n) product on one thread."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((rows, d), dtype=np.float32) for rows in (m, n))
    out, times = np.empty((m, n), np.float32), []
    with threadpool_limits(1, user_api="blas"):
        for _ in range(5):  # until the library and the buffers are warm
            np.matmul(a, b.T, out=out)
        for _ in range(30):
            started = time.perf_counter()
            np.matmul(a, b.T, out=out)
            times.append(time.perf_counter() - started)
    return 2 * m * n * d / statistics.median(times)


def cluster_products(sizes: list[int], d: int, way: str) -> float:
    """Return the seconds of the products of clusters of these sizes with themselves on one thread, the best of 3.

    ``squares``; ``triangles``: NumPy computes half of the product of an array with itself, and copies it;
    ``halves``: without that copy, as dedup does.
    """
    a = np.random.default_rng(0).standard_normal((max(sizes), d), dtype=np.float32)
    b, out, best = a.copy() if way == "squares" else a, np.empty(max(sizes) ** 2, np.float32), np.inf
    with threadpool_limits(1, user_api="blas"):
        for _ in range(3):
            started = time.perf_counter()
            for m in sizes:
                tile = out[: m * m].reshape(m, m)
                if way == "halves":
                    own_products(a[:m], tile)
                else:
                    np.matmul(a[:m], b[:m].T, out=tile)
            best = min(best, time.perf_counter() - started)
    return best


def row_passes(rows: Any, numbers: list[np.ndarray]) -> float:
    """Return the seconds of what each row costs whatever it is compared with, on one thread, the best of 3.

    Its float32 and float64 values, its length, scaling, and one similarity in float64.
    """
    held, best = rows.read(0, rows.shape[0])[np.concatenate(numbers)], np.inf
    other = np.random.default_rng(0).integers(0, BATCH_ROWS, len(held))
    with one_blas_thread():
        for _ in range(3):
            started, room = time.perf_counter(), Room(np)
            for lo in range(0, len(held), BATCH_ROWS):
                part = held[lo : lo + BATCH_ROWS]
                block = prepare_each(part, [0, len(part)], room)
                block.exact(slice(0, len(part)), block, other[lo : lo + len(part)] % len(part))
            best = min(best, time.perf_counter() - started)
    return best


def read_chunks(rows: Any, spans: list[tuple[int, int]]) -> float:
    """Return the seconds of reading chunks of a pool, the best of 3."""
    best = np.inf
    for _ in range(3):
        started = time.perf_counter()
        for span in spans:
            rows.read(*span)
        best = min(best, time.perf_counter() - started)
    return best


def kernel_seconds(rows: Any, numbers: list[np.ndarray], eps: float) -> float:
    """Return the seconds of comparing clusters (their row numbers, in order) on one thread, the best of 3."""
    held = rows.read(0, rows.shape[0])[np.concatenate(numbers)]
    edges, best = np.cumsum([0, *map(len, numbers)]).tolist(), np.inf
    with one_blas_thread():
        for _ in range(3):
            started = time.perf_counter()
            match_clusters(held, edges, "earlier", eps)
            best = min(best, time.perf_counter() - started)
    return best


def limits_within(client: Client, emb: dc.Embeddings, labels: np.ndarray, eps: float) -> dict[str, float]:
    """Return the seconds of what dedup within clusters cannot do without, and of its kernel: all threads at once."""
    client.run(keep_freed_memory)  # as tasks of the package do
    threads = sum(client.nthreads().values())
    by_cluster = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    members = sorted((numbers for numbers in by_cluster if len(numbers)), key=len, reverse=True)
    shares = [members[i::threads] for i in range(threads)]
    sizes = [[len(numbers) for numbers in share] for share in shares]
    step = emb.chunk_rows
    spans = [(i, min(i + step, len(emb))) for i in range(0, len(emb), step)]

    def slowest(function: Any, *items: Any) -> float:
        return max(client.gather(client.map(function, *items, pure=False)))

    return {
        "products, full squares": slowest(
            cluster_products, sizes, [emb.dim] * threads, ["squares"] * threads
        ),
        "products, triangles": slowest(cluster_products, sizes, [emb.dim] * threads, ["triangles"] * threads),
        "triangles without a copy": slowest(
            cluster_products, sizes, [emb.dim] * threads, ["halves"] * threads
        ),
        "what each row takes": slowest(row_passes, [emb.rows] * threads, shares),
        "reading the rows": slowest(
            read_chunks, [emb.rows] * threads, [spans[i::threads] for i in range(threads)]
        ),
        "the kernel": slowest(kernel_seconds, [emb.rows] * threads, shares, [eps] * threads),
    }


def both_at_once(client: Client, m: int, n: int, d: int) -> float:
    """Return the operations a second of all workers together, each at the same product."""
    threads = sum(client.nthreads().values())
    return sum(client.gather(client.map(gemm_rate, *([value] * threads for value in (m, n, d)), pure=False)))


def brute_pair(rows: Any, a: tuple[int, int], b: tuple[int, int], eps: float) -> int:
    """Compare two blocks of a pool (or one with itself), all pairs of them; return their number."""
    with one_blas_thread():
        made = [_plain_block(rows, *span) for span in dict.fromkeys((a, b))]
        found = [NearestEarlier(block, eps) for block in made]
        return compare(made[0], made[-1], None, eps, nearest_into(found[0], found[-1]))


def _plain_block(rows: Any, start: int, stop: int) -> PoolBlock:
    raw, number = rows.read(start, stop), np.arange(start, stop)
    return PoolBlock.of(raw, row_norms(raw), np.zeros(stop - start, np.int32), number, number)


def brute_force(client: Client, emb: dc.Embeddings, eps: float, fraction: float) -> tuple[float, int]:
    """Return the seconds of all pairs, reckoned from a fraction of the pairs of blocks, and the pairs timed."""
    spans = [(start, min(start + BLOCK, len(emb))) for start in range(0, len(emb), BLOCK)]
    pairs = [(a, b) for i, a in enumerate(spans) for b in spans[i:]]
    order = np.random.default_rng(0).permutation(len(pairs))[: max(1, round(fraction * len(pairs)))]
    started = time.perf_counter()
    futures = [client.submit(brute_pair, emb.rows, *pairs[i], eps, pure=False) for i in order]
    compared = sum(client.gather(futures))
    seconds = time.perf_counter() - started
    return seconds * (len(emb) * (len(emb) - 1) // 2) / compared, compared


def semhash_kept(rows: np.ndarray, eps: float) -> np.ndarray | None:
    """Return the rows that semhash keeps; None if it is not installed."""
    try:
        from semhash import SemHash
    except ImportError:
        return None
    records = [str(i) for i in range(len(rows))]
    found = SemHash.from_embeddings(rows.astype(np.float32), records, model=None)
    return np.array([int(record) for record in found.self_deduplicate(threshold=1 - eps).selected])


def recall(found: dc.Selection, wanted: dc.Selection) -> float:
    """Return the share of the duplicates of ``wanted`` that ``found`` drops with the same similarity and match."""
    arrays = ("max_similarity", "duplicate_of")
    same = np.logical_and.reduce([found.read(name) == wanted.read(name) for name in arrays])
    duplicate = wanted.read("counts") == 0
    return float(same[duplicate].mean()) if duplicate.any() else 1.0


def run(emb: dc.Embeddings, client: Client, folder: Path, args: argparse.Namespace) -> None:
    """Measure everything and print it."""
    n, d, eps, every = len(emb), emb.dim, args.eps, len(emb) * (len(emb) - 1) // 2
    rates = {
        shape: both_at_once(client, *shape, d) for shape in ((1024, 1024), (400, 200), (2048, args.clusters))
    }
    for (a, b), rate in rates.items():
        print(f"({a}, {d}) x ({d}, {b}): {rate / 1e9:.0f} GFLOP/s on all workers", flush=True)
    rate = max(rates.values())
    lazy = dc.kmeans(emb, args.clusters, metric="cosine", init="random", n_iters=args.iterations)
    seconds, flat = median_of(1, lambda _: dc.compute(lazy, store=folder / "flat.zarr", progress=False))
    print(f"k-means, {args.clusters} clusters, {args.iterations} iterations: {seconds:.1f} s", flush=True)
    first = -np.arange(n, dtype=np.float64)  # the order of the rows, which no clustering changes

    def dedup(clustering: Any, name: str, **settings: Any) -> Callable[[int], Any]:
        stage = dc.semantic_dedup(emb, clustering, eps=eps, keep=first, **settings)
        return lambda i: dc.compute(stage, store=folder / f"{name}-{i}.zarr", progress=False)

    table = []
    brute, timed = brute_force(client, emb, eps, args.brute_fraction)
    note = "" if timed == every else f" (from {timed / every:.0%} of it)"
    table.append((f"brute force, all pairs{note}", brute, every, 1.0))
    one = dc.Clustering.from_arrays(emb, np.ones((1, d)), np.zeros(n, int), metric="cosine")
    dc.compute(one, store=folder / "one-0.zarr", progress=False)
    seconds, wanted = median_of(1, dedup(one, "one", scope="global"))
    table.append(("global, 1 cluster: all pairs with sketches", seconds, wanted.attributes["pairs"], 1.0))
    for rule in ("earlier", "greedy", "connected"):
        seconds, found = median_of(args.repeats, dedup(flat, f"global-{rule}", scope="global", rule=rule))
        share = recall(found, wanted) if rule == "earlier" else None
        table.append((f"global, {args.clusters} clusters, {rule}", seconds, found.attributes["pairs"], share))
        if rule == "greedy":
            greedy = found
    seconds, found = median_of(args.repeats, dedup(flat, "within"))
    missed = (found.read("counts") == 0)[wanted.read("counts") == 0].mean()
    pairs = found.attributes["pairs"]
    table.append((f"within clusters, {args.clusters} clusters", seconds, pairs, float(missed)))
    stage = seconds
    limit = 2 * d * pairs / rate
    parts = limits_within(client, emb, np.asarray(flat.labels), eps)
    rows = np.asarray(emb.array)
    peer, kept = median_of(1 if args.peer_once else args.repeats, lambda _: semhash_kept(rows, eps))
    print(f"\n{machine()}; {len(client.nthreads())} workers; {n} x {d} {emb.dtype}, eps {eps:g}, "
          f"medians of {args.repeats}\n")  # fmt: skip
    print(
        "| | seconds | of brute force | pairs compared | of all pairs | recall |\n|---|---|---|---|---|---|"
    )
    for name, seconds, pairs, share in table:
        found_share = "" if share is None else f"{share:.5f}"
        print(
            f"| {name} | {seconds:.1f} | 1/{brute / seconds:.1f} "
            f"| {pairs:.3g} | {pairs / every:.2%} | {found_share} |"
        )
    if kept is None:
        print("| semhash | not installed | | | | |")
    else:
        dropped = np.ones(n, bool)
        dropped[kept] = False
        share = dropped[greedy.read("counts") == 0].mean()
        print(f"| semhash | {peer:.1f} | 1/{brute / peer:.1f} | | | {share:.5f} |")
    print(
        f"\nWithin clusters, the products of the pairs would take {limit:.3f} s at the best of these rates.\n"
    )
    print(
        "| within clusters, on all workers | seconds | of the triangles | of the stage |\n|---|---|---|---|"
    )
    for name, seconds in {**parts, "the stage": stage}.items():
        ratio = seconds / parts["products, triangles"]
        print(f"| {name} | {seconds:.3f} | {ratio:.1f} | {seconds / stage:.0%} |")
    print()
    print("Recall: duplicates found, of those of all pairs; of semhash, of those of the rule greedy.")


def main() -> None:
    """Read the command line, and measure."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--clusters", type=int, default=150)
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument("--dim", type=int, default=384, help="width of synthetic rows")
    parser.add_argument("--iterations", type=int, default=10, help="of k-means")
    parser.add_argument(
        "--brute-fraction", type=float, help="of brute force that is timed; default: as much as 4e8 pairs"
    )
    parser.add_argument("--peer-once", action="store_true", help="run semhash once, not --repeats times")
    args = parsed(parser, rows=4000, clusters=40, iterations=5)
    warnings.simplefilter("ignore")
    if args.data is None:
        rows = synthetic(args.rows, args.dim, args.clusters)
    else:
        rows = np.load(args.data, mmap_mode="r")[: args.rows]
    if args.brute_fraction is None:
        args.brute_fraction = min(1.0, 8e8 / len(rows) ** 2)
    with tempfile.TemporaryDirectory() as name, make_local_cluster() as cluster, Client(cluster) as client:
        emb = dc.ingest(rows, Path(name) / "pool.zarr", normalize=False)
        run(emb, client, Path(name), args)


if __name__ == "__main__":
    main()
