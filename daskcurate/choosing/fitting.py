"""K-means on a sample of a pool's rows, as a task: what choosing from a sample starts with."""

import numpy as np

from daskcurate.embeddings import Embeddings
from daskcurate.kernels.draws import derive_seed
from daskcurate.kernels.lloyd import lloyd, unit_rows
from daskcurate.planning import human
from daskcurate.samples import read_rows

FIT_ROWS = 20
"""Rows of the sample for each cluster that is fitted on it, where there are as many."""
LEAST_FIT_ROWS = 4
SAMPLE_BYTES = 1 << 30
"""Float32 rows of the sample that one task holds, at most."""
FIT_ITERATIONS = 15


def most_rows(emb: Embeddings) -> int:
    """Return how many rows a sample may have."""
    return max(2, min(len(emb), SAMPLE_BYTES // (4 * emb.dim)))


def rows_to_fit(emb: Embeddings, k: int, sample_size: int) -> int:
    """Return how many rows to fit ``k`` clusters on; ValueError where memory holds too few."""
    most = most_rows(emb)
    count = min(most, max(sample_size, FIT_ROWS * k))
    if count < min(LEAST_FIT_ROWS * k, len(emb)):
        raise ValueError(
            f"n_clusters={k} is not allowed: a sample of at most {human(SAMPLE_BYTES)} has {most:,} rows of width "
            f"{emb.dim}; give at most {most // LEAST_FIT_ROWS:,} clusters"
        )
    return count


def read_sample(emb: Embeddings, rows: np.ndarray, metric: str) -> np.ndarray:
    """Return rows (m, d) float32, of unit length for the cosine metric."""
    found = read_rows(emb, rows)
    return unit_rows(found) if metric == "cosine" else found.astype(np.float32, copy=False)


def fit_sample(x: np.ndarray, k: int, metric: str, seed: int) -> np.ndarray:
    """Return centroids (k, d) of k-means on the rows of a sample, seeded with random ones."""
    rng = np.random.default_rng(derive_seed(seed, "choose fit", k))
    seeds = x[np.sort(rng.choice(len(x), min(k, len(x)), replace=False))]
    return lloyd([x], seeds, metric, FIT_ITERATIONS).centroids
