"""Seconds that a plan foretells beside those that runs take: ``python benchmarks/plan_seconds.py``.

Every stage at several numbers of rows and of clusters, on a local cluster of one worker a core, after the short
calibration that ``dc.plan(..., calibrate=True)`` makes: once here, or at every size with ``--calibrate-each``. What a
run takes is the least of its repeats. The exponents are fitted to the measured seconds. ``--stages "kmeans fast"
sample`` measures some of them.
"""

import dataclasses
import os
import shutil
import tempfile
from functools import cache
from typing import Any

import numpy as np
from common import machine, options, parsed, print_table, seconds_of, unit_rows
from distributed import Client

import daskcurate as dc
from daskcurate.local_cluster import make_local_cluster
from daskcurate.planner import measure

STAGES = {
    "kmeans lloyd": lambda emb, k, flat: dc.kmeans(emb, k, n_iters=20, init="random"),
    "kmeans fast": lambda emb, k, flat: _fast(emb, k),
    "hierarchy": lambda emb, k, flat: dc.hierarchical_kmeans(emb, [k, k // 5], n_resamples=0),
    "hierarchy resampled": lambda emb, k, flat: dc.hierarchical_kmeans(
        emb, [k, k // 5], n_resamples=3, sample_sizes=[12, 3]
    ),
    "dedup": lambda emb, k, flat: dc.semantic_dedup(emb, flat(), eps=0.05),
    "dedup global": lambda emb, k, flat: dc.semantic_dedup(emb, flat(), eps=0.05, scope="global"),
    "density prune": lambda emb, k, flat: dc.density_prune(flat(), keep_fraction=0.5),
    "sample": lambda emb, k, flat: dc.hierarchical_sample(flat(), len(emb) // 10),
}
"""The stages by name; ``flat`` runs, once, the clustering that a stage reads."""


def _fast(emb: dc.Embeddings, k: int) -> Any:
    return dc.kmeans(emb, k, algorithm="fast", metric="cosine")


def main() -> None:
    cli = options(__doc__, repeats=2)
    cli.add_argument("--rows", type=int, nargs="+", default=[20_000, 40_000, 80_000, 160_000])
    cli.add_argument("--clusters", type=int, nargs="+", default=[125, 250, 500, 1000])
    cli.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="STAGE")
    cli.add_argument("--calibrate-each", action="store_true", help="calibrate before each size, not once")
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
        for n, k in sizes:
            pool = f"{folder}/pool-{n}.zarr"
            emb = (
                dc.open_embeddings(pool) if os.path.exists(pool) else dc.ingest(unit_rows(args.data, n), pool)
            )
            if (n, k) == sizes[0] or args.calibrate_each:
                seconds, rates = seconds_of(lambda emb=emb: measure(client, emb.dim, emb.rows))
                print(f"calibrated in {seconds:.1f} s: {rates}", flush=True)
            store = f"{folder}/run-{n}-{k}.zarr"
            flat = cache(
                lambda emb=emb, k=k, store=store: dc.compute(_fast(emb, k), store=store, progress=False)
            )
            for name in args.stages:
                node = STAGES[name](emb, k, flat)
                foretold = dataclasses.replace(dc.plan(node, client=client), machine=rates)
                runs = []
                for turn in range(args.repeats):
                    fresh = f"{folder}/{name}-{n}-{k}-{turn}.zarr".replace(" ", "-")
                    runs.append(seconds_of(lambda: dc.compute(node, store=fresh, progress=False))[0])  # noqa: B023
                    shutil.rmtree(fresh)
                planned, took = sum(foretold.seconds or ()), min(runs)
                found.setdefault(name, []).append((n, k, planned, took))
                print(f"{name}, {n} rows, k {k}: planned {planned:.2f} s, took {took:.2f} s", flush=True)
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
