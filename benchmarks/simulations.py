"""The published simulations of hierarchical k-means, over several seeds: ``python benchmarks/simulations.py``.

Prints the table of KL divergences to the uniform density (Vo et al. 2024, Fig. 3) and the rows picked of
each ring, beside the published figures, which are of one unseeded run each.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import options, parsed
from distributed import Client

import daskcurate as dc
from daskcurate.local_cluster import make_local_cluster
from daskcurate.testing import kl_to_uniform, mixture, rings

RUNS = {
    "flat k-means": ({"n_clusters": [300], "n_init": 10}, 0.340),
    "2 levels": ({"n_clusters": [1500, 300], "n_init": 10}, 0.132),
    "3 levels": ({"n_clusters": [3000, 1000, 300], "n_init": 10}, 0.081),
    "3 levels, resampled": (
        {"n_clusters": [3000, 1000, 300], "sample_sizes": [2, 2, 2], "n_resamples": 10},
        0.042,
    ),
}
RINGS = ((20_000, 247), (200, 110), (1_000, 227), (500, 198), (8_000, 218))


def mixture_centroids(folder: Path, seed: int) -> Iterator[tuple[str, np.ndarray, float]]:
    """Yield the name of each run, its last level's centroids (300, 2), and its seconds."""
    emb = dc.ingest(mixture(seed), folder / f"mixture-{seed}.zarr", normalize=False)
    for name, (settings, _) in RUNS.items():
        started = time.perf_counter()
        tree = dc.hierarchical_kmeans(emb, seed=seed, **settings)
        # a store for each run: its time is to hold every level
        result = dc.compute(tree, store=folder / f"run-{seed}-{len(settings)}-{name}.zarr", progress=False)
        yield name, result.levels[-1].centroids, time.perf_counter() - started


def kl_rows(folder: Path, seeds: int) -> dict[str, list[tuple[float, float]]]:
    """Return (KL, seconds) of every run for every seed."""
    found: dict[str, list[tuple[float, float]]] = {"the data itself": [], **{name: [] for name in RUNS}}
    for seed in range(seeds):
        found["the data itself"].append((kl_to_uniform(mixture(seed)), 0.0))
        for name, centroids, seconds in mixture_centroids(folder, seed):
            found[name].append((kl_to_uniform(centroids), seconds))
            print(f"seed {seed}, {name}: KL {found[name][-1][0]:.4f}, {seconds:.1f} s", flush=True)
    return found


def ring_picks(folder: Path, seed: int) -> np.ndarray:
    """Return the numbers of the 1000 points picked of the rings."""
    emb = dc.ingest(rings(seed)[0], folder / f"rings-{seed}.zarr", normalize=False)
    tree = dc.hierarchical_kmeans(emb, [1000, 300], sample_sizes=[15, 2], n_resamples=10, seed=seed)
    picks = dc.hierarchical_sample(tree, 1000, seed=seed)
    return dc.compute(picks, store=folder / f"rings-run-{seed}.zarr", progress=False).indices


def ring_counts(folder: Path, seeds: int) -> np.ndarray:
    """Return the rows picked of each ring, (seeds, 5)."""
    counts = []
    for seed in range(seeds):
        started = time.perf_counter()
        counts.append(np.bincount(rings(seed)[1][ring_picks(folder, seed)], minlength=5))
        print(f"rings, seed {seed}: {counts[-1]}, {time.perf_counter() - started:.1f} s", flush=True)
    return np.array(counts)


def main() -> None:
    """Run the simulations and print both tables as Markdown."""
    cli = options(__doc__, data=False, repeats=None)
    cli.add_argument("--seeds", type=int, default=5)
    seeds = parsed(cli, seeds=1).seeds
    with tempfile.TemporaryDirectory() as name, make_local_cluster() as cluster, Client(cluster):
        folder = Path(name)
        found, counts = kl_rows(folder, seeds), ring_counts(folder, seeds)
    rng = np.random.default_rng(0)
    bound = [kl_to_uniform(rng.uniform(-3, 3, (300, 2))) for _ in range(20)]
    print(f"\n| run | mean KL of {seeds} seeds | lowest to highest | published | seconds, median |")
    print("|---|---|---|---|---|")
    published = {"the data itself": 0.942, **{name: value for name, (_, value) in RUNS.items()}}
    for run, values in found.items():
        kl, seconds = (np.array(column) for column in zip(*values, strict=True))
        print(
            f"| {run} | {kl.mean():.4f} | {kl.min():.4f} to {kl.max():.4f} | {published[run]:.3f} "
            f"| {np.median(seconds):.1f} |"
        )
    print(
        f"| 300 uniform points | {np.mean(bound):.4f} | {min(bound):.4f} to {max(bound):.4f} | 0.040 +- 0.007 | |"
    )
    print("\n| ring | rows | picked, mean | lowest to highest | published |\n|---|---|---|---|---|")
    for i, (size, value) in enumerate(RINGS):
        column = counts[:, i]
        print(f"| {i + 1} | {size} | {column.mean():.0f} | {column.min()} to {column.max()} | {value} |")


if __name__ == "__main__":
    main()
