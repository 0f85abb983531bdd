"""K-means, dedup and whole runs on an NVIDIA GPU: ``make bench-gpu OUT=folder``, or ``python benchmarks/gpu.py``.

Needs nothing from a network. What must be there: a Python with CuPy 14 (cupy-cuda12x or cupy-cuda13x) and a driver,
this package's dependencies and pytest for ``make test-gpu``; dask-cuda is used where it is installed. Peers that
can be imported (cuvs, faiss with GPUs, flash_kmeans, torch) run on the same rows from the same seeds; others are
named as missing. Rows are made on the GPU.

A line is printed, and added to ``OUT/gpu.jsonl``, as soon as it is measured, and ``OUT/gpu.md`` has the table of
all lines up to then: a run that is cut off leaves what it found. Where a command may run for so long only,
``--minutes 9`` begins nothing after that time, and names what it left out; the peers, some of which are slow, come
last (``--parts limits,peers`` measures them alone).

Effective TFLOP/s count 2 n k d operations a pass, however they were done. ``GEMM`` is the rate of the same product
alone, measured in the same run; ``copy`` the bytes of the rows per second as a share of a copy within the memory of
the GPU.

``--scale 0.01`` shrinks all sizes; ``--stand-in`` runs it on NumPy, to try the script without a GPU.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import daskcurate as dc
from daskcurate import device
from daskcurate.arrays import device_memory, device_module, gpu_count, to_host
from daskcurate.kernels import lloyd, products
from daskcurate.kernels.assign import Scorer, assign, nearest
from daskcurate.kernels.similarity import earlier_within, is_duplicate

SHAPES = ((10_000_000, 768, 10_000), (10_000_000, 128, 65_536), (2_000_000, 1024, 1000))
"""Rows, width and clusters of the k-means."""
DEDUP = (2_000_000, 768, 1000)
RUN = (1_000_000, 768, 1000)
BLOCK_BYTES = 1 << 30
PASSES = 3
PARTS = ("limits", "kmeans", "dedup", "out-of-core", "run", "peers")


class Bench:
    """Where it runs, and what was measured."""

    def __init__(self, out: Path, scale: float, stand_in: bool):
        self.out, self.scale, self.stand_in = out, scale, stand_in
        self.xp: Any = np if stand_in else device_module()
        self.low = None if stand_in else products.Halves()
        self.rows: list[dict[str, Any]] = []
        self.rates: dict[str, float] = {}
        self.deadline = float("inf")
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.jsonl").write_text("")

    def size(self, number: int, least: int = 1) -> int:
        """Return a size shrunk as asked for."""
        return max(least, round(number * self.scale))

    def sync(self) -> None:
        """Wait for the GPU."""
        if not self.stand_in:
            self.xp.cuda.get_current_stream().synchronize()

    def seconds(self, call: Callable[[], Any], times: int = PASSES, warm: int = 1) -> float:
        """Return the median of the seconds that ``call`` takes."""
        for _ in range(warm):
            call()
        found = []
        for _ in range(times):
            self.sync()
            start = time.perf_counter()
            call()
            self.sync()
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    def note(self, what: str, **figures: Any) -> None:
        """Print a line, and keep it."""
        row = {"what": what} | {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in figures.items()
        }
        self.rows.append(row)
        with (self.out / "gpu.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print("  ".join(f"{name}={value}" for name, value in row.items()), flush=True)
        (self.out / "gpu.md").write_text(self.table())

    def table(self) -> str:
        """Return what was measured, in Markdown."""
        lines = [machine(self), "", "| | figures |", "| --- | --- |"]
        for row in self.rows:
            figures = ", ".join(f"{name} {value}" for name, value in row.items() if name != "what")
            lines.append(f"| {row['what']} | {figures} |")
        return "\n".join(lines) + "\n"

    def late(self, what: str) -> bool:
        """Return whether the time is over, and say so of what is then left out."""
        if time.monotonic() < self.deadline:
            return False
        self.note(what, skipped="no time left")
        return True

    def free(self) -> None:
        """Give back what CuPy holds of the GPU's memory without using it."""
        if not self.stand_in:
            self.xp.get_default_memory_pool().free_all_blocks()


def made_rows(bench: Bench, n: int, d: int, centres: int, seed: int = 0) -> Any:
    """Return n unit rows around centres, float32, on the device."""
    xp = bench.xp
    draw = xp.random.default_rng(seed)
    table = draw.standard_normal((centres, d), dtype=np.float32)
    out = xp.empty((n, d), np.float32)
    step = max(1, BLOCK_BYTES // (8 * d))
    for start in range(0, n, step):
        part = out[start : start + step]
        part[...] = table[draw.integers(0, centres, len(part))]
        part += draw.standard_normal(part.shape, dtype=np.float32)
        part /= xp.sqrt((part * part).sum(axis=1))[:, None]
    return out


def blocks_of(x: Any) -> list[Any]:
    step = max(1, BLOCK_BYTES // (4 * x.shape[1]))
    return [x[start : start + step] for start in range(0, len(x), step)]


def limits(bench: Bench) -> None:
    """Rates of products at the shapes of the k-means, and of copies."""
    xp = bench.xp
    for n, d, k in SHAPES:
        m, k = min(bench.size(n, 64), 1 << 15), min(bench.size(k, 8), 1 << 13)
        a, b = (xp.random.default_rng(1).standard_normal((rows, d), dtype=np.float32) for rows in (m, k))
        rate = 2.0 * m * k * d / bench.seconds(lambda a=a, b=b: xp.matmul(a, b.T))
        bench.rates[f"float32 {d}"] = rate
        figures = {"float32_tflops": rate / 1e12}
        if bench.low is not None:
            (held, _), (table, _) = bench.low.rounded(a), bench.low.rounded(b)
            rate = 2.0 * m * k * d / bench.seconds(lambda h=held, t=table: bench.low.multiply(h, t))
            bench.rates[f"float16 {d}"] = rate
            figures["float16_tflops"] = rate / 1e12
        bench.note("GEMM", rows=m, columns=k, width=d, **figures)
    held = xp.ones(bench.size(1 << 29, 1 << 16), np.float32)
    bench.rates["copy"] = 2.0 * held.nbytes / bench.seconds(held.copy)
    host = np.ones(bench.size(1 << 29, 1 << 16), np.float32)
    figures = {"copy_gb_s": bench.rates["copy"] / 1e9}
    if not bench.stand_in:
        figures["to_device_gb_s"] = host.nbytes / bench.seconds(lambda: device.to_device(host)) / 1e9
        figures["to_host_gb_s"] = held.nbytes / bench.seconds(held.get) / 1e9
    bench.note("copies", gib=held.nbytes / 2**30, **figures)


def one_pass(blocks: Iterable[Any], centroids: Any, product: Any, metric: str = "cosine") -> Any:
    """Return the centroids after one exact Lloyd pass."""
    scorer = Scorer(centroids, metric, product)
    parts = [lloyd.step_chunk(block, scorer).partial for block in blocks]
    return lloyd.finalize(lloyd.tree_combine([part for part in parts if part is not None]), centroids, metric)


def kmeans(bench: Bench) -> None:
    """Exact Lloyd passes over rows on the device."""
    for full_n, d, full_k in SHAPES:
        if bench.late(f"k-means {full_n} x {d}, k = {full_k}"):
            continue
        x, centroids, work = _problem(bench, full_n, d, full_k)
        blocks, k = blocks_of(x), len(centroids)
        labels = {"float32": _timed_passes(bench, blocks, centroids, None, work)}
        if bench.low is not None:
            labels["float16"] = _timed_passes(bench, blocks, centroids, bench.low, work)
        bench.note("labels", rows=len(blocks[0]), k=k, **_label_checks(blocks[0], centroids, labels))
        del x, blocks, centroids
        bench.free()


def _problem(bench: Bench, full_n: int, d: int, full_k: int) -> tuple[Any, Any, float]:
    """Return the rows and the centroids of a k-means, and the operations of a pass."""
    n, k = bench.size(full_n, 64), bench.size(full_k, 8)
    x = made_rows(bench, n, d, max(2, k // 2))
    return x, x[:k].copy(), 2.0 * n * k * d


def peers(bench: Bench) -> None:
    """Time passes of the peers over the same rows, from the same seeds."""
    for full_n, d, full_k in SHAPES:
        if bench.late(f"peers {full_n} x {d}, k = {full_k}"):
            continue
        run_peers(bench, *_problem(bench, full_n, d, full_k))
        bench.free()


def _timed_passes(bench: Bench, blocks: list[Any], centroids: Any, product: Any, work: float) -> np.ndarray:
    """Time passes in a precision; return the labels of the first block."""
    name = "float32" if product is None else product.name
    k, d = centroids.shape
    seconds = bench.seconds(lambda: one_pass(blocks, centroids, product), 1 if product is None else PASSES)
    scorer = Scorer(centroids, "cosine", product)
    alone = bench.seconds(lambda: [assign(block, scorer) for block in blocks], 1, 0)
    figures = {}
    if gemm := bench.rates.get(f"{name} {d}"):
        figures["share_of_gemm"] = work / seconds / gemm
    if copy := bench.rates.get("copy"):
        figures["share_of_copy"] = sum(block.nbytes for block in blocks) / seconds / copy
    bench.note(
        "k-means pass", rows=sum(map(len, blocks)), width=d, k=k, precision=name, seconds=seconds,
        of_it_assignment=alone, tflops=work / seconds / 1e12, **figures,
    )  # fmt: skip
    return to_host(assign(blocks[0], scorer).labels)


def _label_checks(block: Any, centroids: Any, labels: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return whether the labels of all precisions are the same, and those of float64 on the host for some rows."""
    some = to_host(block[:200]).astype(np.float64)
    table = to_host(centroids)
    best = np.concatenate(
        [(part @ table.T.astype(np.float64)).argmax(axis=1) for part in np.array_split(some, 4) if len(part)]
    )
    first = next(iter(labels.values()))
    return {
        "same_in_all_precisions": all(bool((found == first).all()) for found in labels.values()),
        "same_as_float64": bool((best == first[:200]).all()),
    }


def run_peers(bench: Bench, x: Any, centroids: Any, work: float) -> None:
    """Time the same number of passes of each peer that can be imported."""
    for name, peer in (("cuvs", _cuvs), ("faiss", _faiss), ("flash_kmeans", _flash), ("torch", _torch)):
        if bench.stand_in:
            bench.note(f"peer {name}", skipped="stand-in")
            continue
        if bench.late(f"peer {name}"):
            continue
        try:
            call = peer(x, centroids)
            seconds = bench.seconds(call, 1) / PASSES
            bench.note(
                f"peer {name}", rows=len(x), width=x.shape[1], k=len(centroids), seconds=seconds,
                tflops=work / seconds / 1e12,
            )  # fmt: skip
        except ImportError as error:
            bench.note(f"peer {name}", missing=str(error).splitlines()[0])
        except Exception as error:  # another version, or too little memory: the others still run
            bench.note(f"peer {name}", failed=f"{type(error).__name__}: {str(error)[:120]}")
        bench.free()


def _cuvs(x: Any, centroids: Any) -> Callable[[], Any]:
    from cuvs.cluster.kmeans import KMeansParams, fit

    settings = KMeansParams(n_clusters=len(centroids), init_method="Array", max_iter=PASSES, tol=0.0)
    return lambda: fit(settings, x, centroids=centroids.copy())


def _faiss(x: Any, centroids: Any) -> Callable[[], Any]:
    import faiss

    if not faiss.get_num_gpus():
        raise ImportError("faiss has no GPUs")
    host, seeds = to_host(x), to_host(centroids)

    def train() -> None:
        model = faiss.Kmeans(
            host.shape[1], len(seeds), niter=PASSES, gpu=True, max_points_per_centroid=10**9,
            min_points_per_centroid=1,
        )  # fmt: skip
        model.train(host, init_centroids=seeds)

    return train


def _flash(x: Any, centroids: Any) -> Callable[[], Any]:
    import torch
    from flash_kmeans import batch_kmeans_Euclid

    rows, seeds = (torch.from_dlpack(part)[None].half() for part in (x, centroids))
    return lambda: batch_kmeans_Euclid(
        rows, n_clusters=len(centroids), max_iters=PASSES, tol=0.0, init_centroids=seeds
    )


def _torch(x: Any, centroids: Any) -> Callable[[], Any]:
    """float16 products and their argmax, which are not exact, and sums by scattered additions."""
    import torch

    rows, seeds = torch.from_dlpack(x), torch.from_dlpack(centroids)
    step = max(1, (1 << 28) // len(centroids))

    def passes() -> None:
        table = seeds
        for _ in range(PASSES):
            sums, half = torch.zeros_like(seeds), table.half()
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                sums.index_add_(0, (part.half() @ half.T).argmax(dim=1), part)
            table = torch.nn.functional.normalize(sums)
        torch.cuda.synchronize()

    return passes


def dedup(bench: Bench) -> None:
    """SemDeDup's comparison within clusters: each row's most similar earlier row."""
    n, d, k = bench.size(DEDUP[0], 256), DEDUP[1], bench.size(DEDUP[2], 4)
    x = made_rows(bench, n, d, k)
    x[1::10] = x[::10][: len(x[1::10])]
    labels = to_host(nearest(x, x[: 2 * k : 2].copy(), "cosine"))
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    members = [bench.xp.asarray(part) for part in np.split(order, np.cumsum(sizes)[:-1]) if len(part) > 1]
    found = []

    def compare() -> None:
        found.clear()
        for part in members:
            found.append(int(is_duplicate(earlier_within(x[part]).similarity, 0.05).sum()))

    seconds = bench.seconds(compare, 1, 0)
    work = float(d * (sizes.astype(np.float64) ** 2).sum())
    bench.note(
        "dedup", rows=n, width=d, k=k, largest=int(sizes.max()), seconds=seconds, rows_per_s=n / seconds,
        tflops=work / seconds / 1e12, duplicates=sum(found),
    )  # fmt: skip


def out_of_core(bench: Bench) -> None:
    """Time passes over blocks on the host, of which the GPU may hold all, or half."""
    n, d, k = bench.size(4_000_000, 64), 768, bench.size(2000, 8)
    x = made_rows(bench, n, d, k)
    centroids = x[:k].copy()
    step = max(1, BLOCK_BYTES // 4 // (4 * d)) if bench.scale == 1 else max(1, n // 8)
    host = [np.ascontiguousarray(to_host(x[start : start + step])) for start in range(0, n, step)]
    del x
    bench.free()
    total = sum(block.nbytes for block in host)
    for share in (2.0, 0.5):
        held = device.Resident(limit=int(total * share))
        place = (lambda block: block) if bench.stand_in else held.get
        seconds = bench.seconds(
            lambda p=place: one_pass((p(block) for block in host), centroids, bench.low), 2
        )
        bench.note(
            "out of core", rows=n, width=d, k=k, pool_gib=total / 2**30, allowed_gib=total * share / 2**30,
            seconds=seconds, tflops=2.0 * n * k * d / seconds / 1e12, rows_gb_s=total / seconds / 1e9,
        )  # fmt: skip


@contextmanager
def a_client(bench: Bench) -> Iterator[Any]:
    """Yield a client of a cluster on the GPU: dask-cuda's where it is installed, else threads of this process."""
    import dask
    from distributed import Client, LocalCluster

    from daskcurate.local_cuda import LocalCudaConfig, gpu_names, start_local_cuda

    if not bench.stand_in and gpu_names():
        with start_local_cuda(LocalCudaConfig(dashboard_address=None)) as cluster, Client(cluster) as client:
            yield client
        return
    where = "cpu" if bench.stand_in else "gpu"
    with (
        dask.config.set({device.SETTING: where}),
        LocalCluster(
            n_workers=1, threads_per_worker=4, processes=False, dashboard_address=None,
            memory_limit="2GiB" if bench.stand_in else "64GiB",
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


def whole_run(bench: Bench) -> None:
    """Ingest, k-means, dedup within and across clusters, through Dask and zarr."""
    n, d, k = bench.size(RUN[0], 400), RUN[1], bench.size(RUN[2], 4)
    x = to_host(made_rows(bench, n, d, k))
    bench.free()
    with tempfile.TemporaryDirectory() as folder, a_client(bench):
        start = time.perf_counter()
        emb = dc.ingest(x, f"{folder}/pool.zarr", normalize=True)
        bench.note("run: ingest", rows=n, width=d, seconds=time.perf_counter() - start)
        flat = dc.kmeans(emb, k, metric="cosine", init="random", n_iters=10)
        fast = dc.kmeans(emb, k, metric="cosine", algorithm="fast", n_iters=10)
        nodes = [
            ("kmeans, 10 updates", flat, 11), ("kmeans, fast", fast, 0),
            ("dedup", dc.semantic_dedup(emb, flat, eps=0.05), 0),
            ("dedup, global", dc.semantic_dedup(emb, flat, eps=0.05, scope="global"), 0),
        ]  # fmt: skip
        for name, node, passes in nodes:
            start = time.perf_counter()
            try:
                dc.compute(node, store=f"{folder}/run.zarr", progress=False)
            except Exception as error:  # the other stages are still to be tried
                bench.note(f"run: {name}", failed=f"{type(error).__name__}: {str(error)[:200]}")
                continue
            seconds = time.perf_counter() - start
            figures = {"tflops": 2.0 * n * k * d * passes / seconds / 1e12} if passes else {}
            bench.note(f"run: {name}", rows=n, width=d, k=k, seconds=seconds, **figures)


def machine(bench: Bench) -> str:
    if bench.stand_in:
        return f"NumPy {np.__version__} in place of a GPU"
    found = bench.xp.cuda.runtime.getDeviceProperties(0)
    name = found["name"].decode() if isinstance(found["name"], bytes) else found["name"]
    return (
        f"{name}, {device_memory() / 2**30:.0f} GiB, CuPy {bench.xp.__version__}, "
        f"CUDA runtime {bench.xp.cuda.runtime.runtimeGetVersion()}, driver {bench.xp.cuda.runtime.driverGetVersion()}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"), help="folder for gpu.jsonl and gpu.md")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of rows and clusters")
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after this time")
    parser.add_argument("--stand-in", action="store_true", help="NumPy in place of a GPU")
    given = parser.parse_args(arguments)
    parts = given.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts {', '.join(sorted(unknown))}: give some of {', '.join(PARTS)}")
    if not given.stand_in and not gpu_count():
        parser.error("there is no GPU, or CuPy is not installed; --stand-in tries the script on NumPy")
    bench = Bench(given.out, given.scale, given.stand_in)
    print(machine(bench), flush=True)
    bench.deadline = time.monotonic() + 60 * given.minutes
    calls = {
        "limits": limits, "kmeans": kmeans, "dedup": dedup, "out-of-core": out_of_core, "run": whole_run,
        "peers": peers,
    }  # fmt: skip
    failed = 0
    for part in parts:
        if bench.late(part):
            continue
        try:
            calls[part](bench)
        except Exception as error:  # a part that fails is a line; the others still run
            failed += 1
            bench.note(part, failed=f"{type(error).__name__}: {str(error)[:300]}")
        bench.free()
    (given.out / "gpu.md").write_text(bench.table())
    print(bench.table(), end="")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
