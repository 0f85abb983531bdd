"""Seconds that a plan foretells beside those that runs take: ``python benchmarks/plan_seconds.py``.

Every stage at several numbers of rows and of clusters, on a local cluster of one worker a core, after the short
calibration that ``dc.plan(..., calibrate=True)`` makes (once here). The exponents are fitted to the measured seconds.
"""

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from common import machine, options, parsed, print_table, seconds_of, unit_rows
from distributed import Client

import daskcurate as dc
from daskcurate.local_cluster import make_local_cluster
from daskcurate.planner import measure


def stages(emb: dc.Embeddings, k: int, store: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and node of each stage; what a stage needs has been run before it."""
    yield "kmeans lloyd", dc.kmeans(emb, k, n_iters=20, init="random")
    yield "kmeans fast", dc.kmeans(emb, k, algorithm="fast", metric="cosine")
    flat = dc.compute(dc.kmeans(emb, k, algorithm="fast", metric="cosine"), store=store, progress=False)
    yield "dedup", dc.semantic_dedup(emb, flat, eps=0.05)
    yield "dedup global", dc.semantic_dedup(emb, flat, eps=0.05, scope="global")
    yield "density prune", dc.density_prune(flat, keep_fraction=0.5)
    yield "sample", dc.hierarchical_sample(flat, len(emb) // 10)


def main() -> None:
    cli = options(__doc__, repeats=None)
    cli.add_argument("--rows", type=int, nargs="+", default=[10_000, 20_000, 40_000, 80_000])
    cli.add_argument("--clusters", type=int, nargs="+", default=[125, 250, 500, 1000])
    args = parsed(cli, rows=[1500, 3000], clusters=[15, 30])
    if len(args.rows) < 2 or len(args.clusters) < 2:
        cli.error("give at least two --rows and two --clusters: the growth is fitted to them")
    print(machine())
    middle_n, middle_k = args.rows[-2], args.clusters[-2]
    sizes = [(n, middle_k) for n in args.rows] + [(middle_n, k) for k in args.clusters if k != middle_k]
    found: dict[str, list[tuple[int, int, float, float]]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        make_local_cluster(n_workers=os.cpu_count()) as cluster,
        Client(cluster) as client,
    ):
        rates = measure(client, unit_rows(args.data, 1).shape[1])
        print(rates)
        for n, k in sizes:
            emb = dc.ingest(unit_rows(args.data, n), f"{folder}/pool-{n}.zarr", overwrite=True)
            store = f"{folder}/run-{n}-{k}.zarr"
            for name, node in stages(emb, k, store):
                foretold = dataclasses.replace(dc.plan(node, client=client, store=store), machine=rates)
                fresh = f"{folder}/{name}-{n}-{k}.zarr"
                seconds, _ = seconds_of(
                    lambda node=node, fresh=fresh: dc.compute(node, store=fresh, progress=False)
                )
                planned = sum(foretold.seconds or ()) if foretold.stages else float("nan")
                found.setdefault(name, []).append((n, k, planned, seconds))
                print(f"{name}, {n} rows, k {k}: planned {planned:.2f} s, took {seconds:.2f} s", flush=True)
    rows = []
    for name, points in found.items():
        values = np.array(points)
        logs = np.log(values[:, [0, 1, 3]])
        fit = np.linalg.lstsq(np.column_stack([logs[:, :2], np.ones(len(logs))]), logs[:, 2], rcond=None)[0]
        ratios = values[:, 2] / values[:, 3]
        rows.append(
            (
                name,
                f"n^{fit[0]:.2f} k^{fit[1]:.2f}",
                f"{np.median(ratios):.2f}",
                f"{ratios.min():.2f} to {ratios.max():.2f}",
            )
        )
    print_table(("stage", "grows as", "planned / measured, median", "range"), rows)


if __name__ == "__main__":
    main()
