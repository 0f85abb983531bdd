"""Hierarchical k-means with resampling, two published settings: ``python benchmarks/hierarchy.py``.

The rings (30 000 points in two dimensions, k = 1000 and 300, r = 15 and 2) and embeddings (k = 2000, 400, 100;
r = 12, 3, 2), both with 10 resampling steps a level: seconds through Dask, and the inertia of each level.
"""

import argparse
import os
import statistics
import tempfile

from common import machine, print_table, seconds_of, unit_rows
from distributed import Client

import daskcurate as dc
from daskcurate.local_cluster import make_local_cluster
from daskcurate.testing import rings


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--data", help=".npy file of rows; without: synthetic ones")
    cli.add_argument("--rows", type=int, default=50_000)
    cli.add_argument("--repeats", type=int, default=3)
    cli.add_argument("--algorithms", nargs="+", default=["lloyd", "fast"])
    args = cli.parse_args()
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
                {"n_clusters": [2000, 400, 100], "sample_sizes": [12, 3, 2]},
            ),
        }
        for name, (points, settings) in cases.items():
            emb = dc.ingest(points, f"{folder}/{name}.zarr", normalize=False)
            for algorithm in args.algorithms:
                times, tree = [], None
                for repeat in range(args.repeats):
                    node = dc.hierarchical_kmeans(
                        emb, n_resamples=10, algorithm=algorithm, seed=repeat, **settings
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
