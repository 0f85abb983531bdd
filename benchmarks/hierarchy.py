"""Hierarchical k-means with resampling, two published settings: ``python benchmarks/hierarchy.py``.

The rings (30 000 points in two dimensions, k = 1000 and 300, r = 15 and 2) and embeddings (k = 2000, 400, 100;
r = 12, 3, 2), both with 10 resampling steps a level: seconds through Dask, and the inertia of each level.
"""

import os
import statistics
import tempfile

from common import machine, options, parsed, print_table, seconds_of, unit_rows
from distributed import Client
from kmeans import ALGORITHMS

import daskcurate as dc
from daskcurate.local_cluster import make_local_cluster
from daskcurate.testing import rings


def main() -> None:
    cli = options(__doc__)
    cli.add_argument("--rows", type=int, default=50_000, help="of the embeddings")
    cli.add_argument("--clusters", type=int, nargs="+", default=[2000, 400, 100], help="of the embeddings")
    cli.add_argument("--sample-sizes", type=int, nargs="+", default=[12, 3, 2], help="of the embeddings")
    cli.add_argument("--resamples", type=int, default=10, help="resampling steps a level")
    cli.add_argument("--algorithms", nargs="+", default=["lloyd", "fast"], choices=ALGORITHMS)
    args = parsed(cli, rows=4000, clusters=[200, 40, 10], sample_sizes=[10, 3, 2], resamples=1)
    print(machine())
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        make_local_cluster(n_workers=os.cpu_count()) as cluster,
        Client(cluster),
    ):
        cases = {
            "rings": (rings(0)[0], {"n_clusters": [1000, 300], "sample_sizes": [15, 2]}),
            "embeddings": (
                unit_rows(args.data, args.rows),
                {"n_clusters": args.clusters, "sample_sizes": args.sample_sizes},
            ),
        }
        for name, (points, settings) in cases.items():
            emb = dc.ingest(points, f"{folder}/{name}.zarr", normalize=False)
            for algorithm in args.algorithms:
                times, tree = [], None
                for repeat in range(args.repeats):
                    node = dc.hierarchical_kmeans(
                        emb, n_resamples=args.resamples, algorithm=algorithm, seed=repeat, **settings
                    )
                    store = f"{folder}/{name}-{algorithm}-{repeat}.zarr"
                    seconds, tree = seconds_of(lambda n=node, s=store: dc.compute(n, store=s, progress=False))
                    times.append(seconds)
                    print(f"{name}, {algorithm}: {seconds:.1f} s", flush=True)
                assert tree is not None
                inertia = ", ".join(f"{level.inertia:.0f}" for level in tree.levels)
                rows.append((name, algorithm, f"{statistics.median(times):.1f}", inertia))
    print_table(("case", "algorithm", "seconds, median", "inertia of the levels"), rows)


if __name__ == "__main__":
    main()
