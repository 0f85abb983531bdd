"""Choosing the number of clusters from a sample, before a run.

k-means on a sample gives the inertia and the clusters' sizes on rows that it has not seen; the cost of a run
follows from counting operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from daskcurate.calibration import least_seconds
from daskcurate.choosing.fitting import (
    FIT_ROWS,
    LEAST_FIT_ROWS,
    check_memory,
    fit_sample,
    most_rows,
    read_task,
    scaled,
)
from daskcurate.config import METRICS, check_choice, check_int, check_number, is_list
from daskcurate.embeddings import Embeddings
from daskcurate.kernels.assign import nearest
from daskcurate.kernels.distances import own_distances, squared
from daskcurate.kernels.draws import derive_seed
from daskcurate.kernels.probing import same_cluster_chance
from daskcurate.kernels.similarity import TILE, earlier_within
from daskcurate.nodes import checked_embeddings
from daskcurate.planning import Limits
from daskcurate.runner import LooseTasks, client_for, given_client
from daskcurate.samples import sample_rows


@dataclass(frozen=True)
class KChoice:
    """What numbers of clusters would give and cost, estimated from a sample of the rows."""

    k: tuple[int, ...]
    """Numbers of clusters, ascending."""
    inertia: tuple[float, ...]
    """Mean squared L2 distance to the nearest centroid of rows that the fit has not seen."""
    imbalance: tuple[float, ...]
    """Pairs within clusters, over those within as many equal ones: 1 is even."""
    largest: tuple[float, ...]
    """Share of the rows in the largest cluster, in the sample."""
    kmeans_flops: tuple[int, ...]
    dedup_flops: tuple[int, ...]
    """Floating-point operations of k-means (all updates and the assignment), and of dedup within its clusters."""
    even_k: int
    """The k of the least total cost if all clusters were of one size."""
    n_rows: int
    sample_size: int
    kmeans_seconds: tuple[float, ...] = field(default=(), compare=False)
    dedup_seconds: tuple[float, ...] = field(default=(), compare=False)
    """Estimates: the operations at rates measured on the sample, on all threads of the cluster."""

    HEADER: ClassVar[tuple[str, ...]] = (
        "clusters", "rows a cluster", "inertia a row", "imbalance", "largest", "k-means", "dedup", "together",
    )  # fmt: skip

    @property
    def total_flops(self) -> tuple[int, ...]:
        """Operations of k-means and dedup together."""
        return tuple(a + b for a, b in zip(self.kmeans_flops, self.dedup_flops, strict=True))

    @property
    def cheapest(self) -> int:
        """Of the numbers tried, the one of the least total cost."""
        return self.k[int(np.argmin(self.total_flops))]

    def as_rows(self) -> list[tuple[str, ...]]:
        """Return the table's cells, a row for each k."""
        return [
            (
                f"{k:,}", f"{self.n_rows / k:,.0f}", f"{self.inertia[i]:.4g}", f"{self.imbalance[i]:.2f}",
                f"{self.largest[i]:.2%}",
                _time(self.kmeans_seconds[i]), _time(self.dedup_seconds[i]),
                _time(self.kmeans_seconds[i] + self.dedup_seconds[i]),
            )
            for i, k in enumerate(self.k)
        ]  # fmt: skip


def _time(seconds: float) -> str:
    return (
        f"{seconds:.2g} s"
        if seconds < 60
        else f"{seconds / 60:.1f} min"
        if seconds < 5400
        else f"{seconds / 3600:,.1f} h"
    )


def choose_k(
    emb: Embeddings,
    n_clusters: Sequence[int] | None = None,
    *,
    sample_size: int = 20_000,
    n_iters: int = 50,
    fit_fraction: float = 1.0,
    metric: str = "cosine",
    seed: int = 0,
    client: Any = None,
) -> KChoice:
    """Estimate what numbers of clusters give and cost: inertia, sizes, and operations of k-means and dedup.

    k-means costs n k (1 + n_iters fit_fraction) distances, dedup within k even clusters n^2 / 2k: the sum is
    least at k = sqrt(n / (2 (1 + n_iters fit_fraction))). Uneven clusters cost more and move it upwards.

    Parameters
    ----------
    emb
        The pool.
    n_clusters
        Numbers to try. None: a quarter to four times the k of least cost.
    sample_size
        Rows of the sample, at least; more are taken for many clusters. Half is fitted, half is measured.
    n_iters
        Updates that the run will do.
    fit_fraction
        Fraction of the rows that it will do them on, in (0, 1].
    metric
        ``cosine`` or ``l2``.
    seed
        Keys the sample and the seeding.
    client
        Dask client; None: as for :func:`daskcurate.compute`.

    Returns
    -------
    KChoice
        A column of figures for each number of clusters.

    Raises
    ------
    TypeError, ValueError
        A value that is not allowed; the message quotes it and what is.
    PlanError
        The workers have too little memory.
    """
    given_client(client)
    estimate = KEstimate.of(
        emb,
        n_clusters,
        sample_size=sample_size,
        n_iters=n_iters,
        fit_fraction=fit_fraction,
        metric=metric,
        seed=seed,
    )
    return estimate.run(client)


@dataclass(frozen=True, kw_only=True)
class KEstimate:
    """An estimate to be made: :func:`choose_k` with its values checked."""

    emb: Embeddings
    k: tuple[int, ...]
    sample_size: int
    passes: float
    """Times that k-means compares all rows with all centroids."""
    even_k: int
    metric: str
    seed: int

    @classmethod
    def of(
        cls,
        emb: Embeddings,
        n_clusters: Any,
        *,
        sample_size: Any,
        n_iters: Any,
        fit_fraction: Any,
        metric: Any,
        seed: Any,
    ) -> KEstimate:
        """Check the values; nothing runs."""
        emb = checked_embeddings(emb)
        sample_size = check_int("sample_size", sample_size, 4)
        n_iters = check_int("n_iters", n_iters, 1)
        fit_fraction = check_number("fit_fraction", fit_fraction, 0, 1, open_low=True)
        if len(emb) < 4:
            raise ValueError(f"a pool of {len(emb)} rows is too small to choose from: give at least 4 rows")
        passes = 1 + n_iters * fit_fraction
        even_k = max(1, round(math.sqrt(len(emb) / (2 * passes))))
        ks = _checked_ks(emb, n_clusters, even_k)
        return cls(
            emb=emb,
            k=ks,
            sample_size=min(most_rows(emb), max(sample_size, 2 * FIT_ROWS * ks[-1])),
            passes=passes,
            even_k=even_k,
            metric=check_choice("metric", metric, METRICS),
            seed=check_int("seed", seed, 0),
        )

    def peak_memory(self, limits: Limits) -> int:
        """Return the bytes that a worker needs at the worst moment."""
        width = 4 * self.emb.dim
        return limits.peak(3 * self.k[-1] * width, 2 * self.sample_size * width)

    def run(self, client: Any = None) -> KChoice:
        """Make the estimate on a client, or where :func:`daskcurate.compute` would run."""
        emb, n, metric = self.emb, len(self.emb), self.metric
        rng = np.random.default_rng(derive_seed(self.seed, "choose k"))
        rows = sample_rows(emb, self.sample_size, rng)
        fitted = rng.random(len(rows)).argsort(kind="stable") < len(rows) // 2
        with client_for(client) as used, used.as_current():
            used.wait_for_workers(1)
            run = LooseTasks(used)
            check_memory("choose_k", self.peak_memory(run.limits), run.limits)
            fit, rest = (
                run.task(scaled, read_task(run, emb, rows[part], key), metric, name="choose-scale", key=key)
                for part, key in ((fitted, "fit"), (~fitted, "rest"))
            )
            measured = []
            for k in self.k:
                centroids = run.task(fit_sample, fit, k, metric, self.seed, name="choose-fit", key=k)
                measured.append(run.task(_measure, centroids, rest, metric, name="choose-measure", key=k))
            *found, pair_seconds = run.gather(
                [*measured, run.task(_seconds_a_pair, rest, name="choose-pairs")]
            )
            threads = run.limits.n_threads
        # fewer clusters never take longer: what was measured longer was something else that the machine did
        row_seconds = np.minimum.accumulate([one[2] for one in reversed(found)])[::-1]
        shared = [same_cluster_chance(counts) for _, counts, _ in found]
        return KChoice(
            k=self.k,
            inertia=tuple(one[0] for one in found),
            imbalance=tuple(k * share for k, share in zip(self.k, shared, strict=True)),
            largest=tuple(float(counts.max() / counts.sum()) for _, counts, _ in found),
            kmeans_flops=tuple(round(2 * emb.dim * n * k * self.passes) for k in self.k),
            dedup_flops=tuple(round(emb.dim * n * (n - 1) * share) for share in shared),
            even_k=self.even_k,
            n_rows=n,
            sample_size=len(rows),
            kmeans_seconds=tuple(float(one) * n * self.passes / threads for one in row_seconds),
            dedup_seconds=tuple(pair_seconds * n * (n - 1) / 2 * share / threads for share in shared),
        )


def _checked_ks(emb: Embeddings, given: Any, even_k: int) -> tuple[int, ...]:
    """Return the numbers of clusters to try, ascending; half of the sample must hold a few rows for each."""
    most = max(1, most_rows(emb) // 2 // LEAST_FIT_ROWS)
    if given is None:
        return tuple(
            sorted({min(most, max(1, _rounded(even_k * factor))) for factor in (0.25, 0.5, 1, 2, 4)})
        )
    if not is_list(given):
        raise TypeError(f"n_clusters={given!r} is not allowed: give a list of integers")
    if not len(given):
        raise ValueError("n_clusters=[] is not allowed: give at least one integer")
    ks = tuple(sorted({check_int(f"n_clusters[{i}]", one, 1) for i, one in enumerate(given)}))
    if ks[-1] > most:
        raise ValueError(
            f"n_clusters={list(ks)} is not allowed: half of a sample of {most_rows(emb):,} rows fits at most "
            f"{most:,} clusters"
        )
    return ks


def _rounded(k: float) -> int:
    """Return a number rounded to two digits."""
    step = 10 ** max(0, math.floor(math.log10(max(1.0, k))) - 1)
    return max(1, round(k / step) * step)


def _measure(centroids: np.ndarray, x: np.ndarray, metric: str) -> tuple[float, np.ndarray, float]:
    """Return the mean squared distance of rows to their centroids, the clusters' counts, and the seconds a row."""
    seconds = least_seconds(lambda: nearest(x, centroids, metric))
    labels = nearest(x, centroids, metric)
    distance = own_distances(x, centroids, labels, metric)
    return (
        float(squared(distance, metric).mean()),
        np.bincount(labels, minlength=len(centroids)).astype(np.int64),
        seconds / len(x),
    )


def _seconds_a_pair(x: np.ndarray) -> float:
    """Return the time that dedup takes to compare a pair of rows."""
    some = x[: 2 * TILE]
    return least_seconds(lambda: earlier_within(some)) / max(1, len(some) * (len(some) - 1) // 2)
