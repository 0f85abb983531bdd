"""A map of the pool: the first two principal components of a sample of its rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from daskcurate.embeddings import Embeddings
from daskcurate.kernels.assign import unit_rows
from daskcurate.samples import read_rows, sample_few_chunks

MAP_ROWS = 20_000
MAP_BYTES = 256 << 20


@dataclass(frozen=True)
class PoolMap:
    """Where rows lie on the map."""

    rows: np.ndarray
    """(m,) row numbers, ascending."""
    places: np.ndarray
    """(m, 2) float64."""
    explained: tuple[float, float]
    """Share of the variance of each axis."""
    whole_chunks: bool
    """Whether the sample is of a few chunks only."""


def map_pool(emb: Embeddings, seed: int = 0, count: int = MAP_ROWS) -> PoolMap:
    """Return the map of a sample of at most ``count`` rows, scaled to unit length as cosine compares them."""
    count = max(2, min(count, MAP_BYTES // (4 * emb.dim)))
    rows, whole_chunks = sample_few_chunks(emb, count, seed)
    points = unit_rows(read_rows(emb, rows)) if emb.normalized else read_rows(emb, rows).astype(np.float32)
    mean = points.mean(axis=0, dtype=np.float64)
    points -= mean.astype(np.float32)
    covariance = (points.T @ points).astype(np.float64)
    d = emb.dim
    values, axes = eigh(covariance, subset_by_index=[max(0, d - 2), d - 1])
    order = np.argsort(-values)
    values, axes = np.maximum(values[order], 0), axes[:, order]
    axes *= np.sign(
        axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    )  # which way is up is arbitrary
    places = np.zeros((len(rows), 2))
    places[:, : axes.shape[1]] = points @ axes.astype(np.float32)
    total = max(float(np.trace(covariance)), np.finfo(float).tiny)
    shares = [*(values / total), 0.0][:2]
    return PoolMap(rows, places, (float(shares[0]), float(shares[1])), whole_chunks)
