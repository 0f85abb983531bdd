"""What the benchmarks share: options, rows, the machine's name and its limits, medians, tables."""

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits


def options(doc: str | None, *, data: bool = True, repeats: int | None = 3) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark takes, so that one command line does for all of them.

    ``data`` and ``repeats``: whether there are rows to be given, and how often is measured; where not, the option
    is taken and does nothing.
    """
    cli = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    unused = "taken, as every benchmark does; nothing here depends on it"
    cli.add_argument("--data", help=".npy file of rows; without: synthetic ones" if data else unused)
    cli.add_argument("--repeats", type=int, default=repeats, help="medians of so many" if repeats else unused)
    cli.add_argument(
        "--quick", action="store_true", help="small sizes, once: to see that it runs; no figures"
    )
    return cli


def parsed(cli: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """Return the options given; with ``--quick`` the defaults of the others are those of ``quick``."""
    if cli.parse_known_args()[0].quick:
        cli.set_defaults(repeats=1, **quick)
    args = cli.parse_args()
    if args.repeats is not None and args.repeats < 1:
        cli.error(f"--repeats {args.repeats}: give 1 or more")
    if args.data is not None and not Path(args.data).is_file():
        cli.error(f"--data {args.data}: there is no such file")
    return args


def unit_rows(path: str | None, n: int, d: int = 384, seed: int = 0) -> np.ndarray:
    """Return n unit rows, float32: of an .npy file (drawn from it), or around centres of uneven size."""
    rng = np.random.default_rng(seed)
    if path is not None:
        held = np.load(path, mmap_mode="r")
        if len(held) < n:
            raise SystemExit(f"{path} holds {len(held)} rows, {n} are asked for")
        rows = held[np.sort(rng.permutation(len(held))[:n])].astype(np.float32)
    else:
        centres = rng.standard_normal((max(2, n // 100), d)).astype(np.float32)
        rows = centres[(len(centres) * rng.random(n) ** 2).astype(int)]
        rows += rng.standard_normal((n, d), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[rng.permutation(n)]


def machine() -> str:
    """Return what the figures were measured on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{os.cpu_count()} cores ({name}), Python {platform.python_version()}, NumPy {np.__version__}"


def seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that ``call`` took, and what it returned."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def gemm_rate(m: int, k: int, d: int, threads: int, dtype: str = "float32") -> float | None:
    """Return the operations a second of (m, d) by (d, k) products on ``threads`` threads, one product each.

    None for bfloat16 where torch is not installed. Measured in a process of its own: torch's number of threads
    would become that of every other library here.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_gemm_rate, (m, k, d, threads, dtype))


def _gemm_rate(m: int, k: int, d: int, threads: int, dtype: str) -> float | None:
    if dtype == "bfloat16":
        try:
            import torch
        except ImportError:
            return None
        torch.set_num_threads(1)

        def product() -> None:
            a, b = (torch.ones(rows, d, dtype=torch.bfloat16) for rows in (m, k))
            times = [seconds_of(lambda: torch.nn.functional.linear(a, b))[0] for _ in range(20)]
            found.append(statistics.median(times))
    else:

        def product() -> None:
            a, b = (np.ones((rows, d), np.float32) for rows in (m, k))
            out = np.empty((m, k), np.float32)
            times = [seconds_of(lambda: np.matmul(a, b.T, out=out))[0] for _ in range(20)]
            found.append(statistics.median(times))

    found: list[float] = []
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        for _ in [pool.submit(product) for _ in range(threads)]:
            _.result()
    return sum(2 * m * k * d / seconds for seconds in found)


def read_rate(threads: int) -> float:
    """Return the bytes a second at which ``threads`` threads together read from memory."""
    held = [np.ones(1 << 26, np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        best = min(seconds_of(lambda: list(pool.map(np.sum, held)))[0] for _ in range(5))
    return sum(item.nbytes for item in held) / best


def inertia(rows: np.ndarray, centroids: np.ndarray) -> float:
    """Return the sum of squared distances of unit rows to their nearest centroid."""
    centroids = np.asarray(centroids, dtype=np.float32)
    halves = 0.5 * np.einsum("ij,ij->i", centroids.astype(np.float64), centroids.astype(np.float64))
    total = 0.0
    for start in range(0, len(rows), 1024):
        part = rows[start : start + 1024]
        best = (part @ centroids.T - halves.astype(np.float32)).argmax(axis=1)
        gap = part.astype(np.float64) - centroids[best]
        total += float((gap * gap).sum())
    return total


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for cells in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(cells) + " |")
