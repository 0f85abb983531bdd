"""K-means on a sample of a pool's rows, as a task: what choosing from a sample starts with."""

from typing import Any

import numpy as np
from dask.delayed import Delayed

from daskcurate.embeddings import Embeddings
from daskcurate.kernels.assign import unit_rows
from daskcurate.kernels.draws import derive_seed
from daskcurate.kernels.lloyd_in_memory import lloyd_in_memory
from daskcurate.planning import Limits, PlanError, human
from daskcurate.samples import read_rows

FIT_ROWS = 20
"""Rows of the sample for each cluster that is fitted on it, where there are as many."""
LEAST_FIT_ROWS = 4
SAMPLE_BYTES = 1 << 30
"""Float32 rows of the sample that one task holds, at most."""
FIT_ITERATIONS = 15
READERS = 64
"""Tasks that read a sample, which costs a pool at a URL its whole chunks."""


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


def read_task(run: Any, emb: Embeddings, rows: np.ndarray, key: str) -> Delayed:
    """Return the task that has the given rows (m, d), ascending, as stored; pieces of them are read in parallel."""
    pieces = np.array_split(rows, max(1, min(READERS, emb.n_chunks, len(rows))))
    parts = [
        run.task(read_rows, emb, piece, name="choose-read", key=f"{key}-{i}")
        for i, piece in enumerate(pieces)
    ]
    return run.task(np.concatenate, parts, name="choose-read", key=key)


def scaled(rows: np.ndarray, metric: str) -> np.ndarray:
    """Return rows (m, d) as float32, of unit length for the cosine metric."""
    return unit_rows(rows) if metric == "cosine" else rows.astype(np.float32, copy=False)


def check_memory(what: str, needed: int, limits: Limits) -> None:
    """Raise PlanError if a worker may not use ``needed`` bytes."""
    if limits.usable_memory is not None and needed > limits.usable_memory:
        raise PlanError(
            f"{what} needs {limits.against(needed)}: "
            "give fewer clusters, a smaller sample, or the workers more memory"
        )


def fit_sample(x: np.ndarray, k: int, metric: str, seed: int) -> np.ndarray:
    """Return centroids (k, d) of k-means on the rows of a sample, seeded with random ones."""
    rng = np.random.default_rng(derive_seed(seed, "choose fit", k))
    seeds = x[np.sort(rng.choice(len(x), min(k, len(x)), replace=False))]
    return lloyd_in_memory([x], seeds, metric, FIT_ITERATIONS).centroids
