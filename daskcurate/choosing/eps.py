"""Choosing eps from a sample, before a run.

Duplicates come in pairs, and a sample of a tenth of the rows holds a hundredth of the pairs. So only the rows
that are judged are sampled: each is compared with all rows of its cluster in the whole pool, chunk by chunk,
exactly as dedup would, and the fraction of them that is kept is an unbiased estimate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from daskcurate.choosing.fitting import (
    FIT_ROWS,
    check_memory,
    fit_sample,
    most_rows,
    read_task,
    rows_to_fit,
    scaled,
)
from daskcurate.config import KEEPS, METRICS, check_choice, check_int, check_number, is_list
from daskcurate.device import on_device
from daskcurate.embeddings import Embeddings
from daskcurate.io.layout import chunk_bounds
from daskcurate.kernels.assign import nearest, unit_rows
from daskcurate.kernels.distances import own_distances
from daskcurate.kernels.draws import derive_seed, row_uniform
from daskcurate.kernels.probing import Ordered, match_probes, wilson
from daskcurate.kernels.similarity import EarlierMatch, is_duplicate, merge_earlier
from daskcurate.nodes import checked_embeddings
from daskcurate.planning import Limits
from daskcurate.rows import tree
from daskcurate.runner import LooseTasks, client_for, given_client
from daskcurate.samples import sample_rows

DEFAULT_EPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)


@dataclass(frozen=True)
class EpsChoice:
    """What each eps would keep of a pool, estimated from a sample of its rows."""

    eps: tuple[float, ...]
    """Thresholds, ascending."""
    kept: tuple[float, ...]
    """Fraction of the pool's rows that each keeps."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    """95 % interval of the fraction (Wilson, for a sample without replacement)."""
    n_rows: int
    sample_size: int
    n_clusters: int
    pairs: int
    """Pairs of rows that dedup compares with clusters like those used here: the same for every eps."""
    rows: np.ndarray = field(repr=False, compare=False)
    """(m,) int64, the rows of the sample, ascending."""
    similarity: np.ndarray = field(repr=False, compare=False)
    """(m,) float32, of each to its most similar earlier row; -1: none."""
    match: np.ndarray = field(repr=False, compare=False)
    """(m,) int64, the number of that row; -1: none."""
    seconds: float = field(default=0.0, compare=False)
    """Wall time of the estimate."""

    HEADER: ClassVar[tuple[str, ...]] = ("eps", "kept", "95 % interval", "rows kept", "rows dropped")

    def at(self, eps: float) -> tuple[float, float, float]:
        """Return the fraction that another ``eps`` keeps, and its 95 % interval."""
        eps = check_number("eps", eps, 0, 2)
        kept = int((~is_duplicate(self.similarity, eps)).sum())
        low, high = wilson(np.array([kept]), self.sample_size, self.n_rows)
        return kept / self.sample_size, float(low[0]), float(high[0])

    def border(self, eps: float, count: int = 4) -> tuple[np.ndarray, np.ndarray]:
        """Return the places in the sample of the rows next to the threshold: just dropped, and just kept."""
        limit = np.float32(1 - check_number("eps", eps, 0, 2))
        matched = np.flatnonzero(self.match >= 0)
        order = matched[np.lexsort((matched, np.abs(self.similarity[matched] - limit)))]
        dropped = self.similarity[order] > limit
        return order[dropped][:count], order[~dropped][:count]

    def as_rows(self) -> list[tuple[str, ...]]:
        """Return the table's cells, a row for each eps."""
        return [
            (
                f"{eps:g}",
                f"{kept:.2%}",
                f"{low:.2%} to {high:.2%}",
                f"{round(kept * self.n_rows):,}",
                f"{round((1 - kept) * self.n_rows):,}",
            )
            for eps, kept, low, high in zip(self.eps, self.kept, self.low, self.high, strict=True)
        ]


def choose_eps(
    emb: Embeddings,
    eps: Sequence[float] | None = None,
    *,
    sample_size: int = 20_000,
    n_clusters: int | None = None,
    keep: str = "hard",
    metric: str = "cosine",
    seed: int = 0,
    client: Any = None,
) -> EpsChoice:
    """Estimate what each ``eps`` of :func:`daskcurate.semantic_dedup` (rule ``earlier``) would keep.

    The clusters are those of k-means on a sample. Each row of another, uniform sample is compared with all
    earlier rows of its cluster in the whole pool: one pass over the pool, as costly as one k-means iteration.

    Parameters
    ----------
    emb
        The pool.
    eps
        Thresholds in [0, 2]; None: from 0.001 to 0.3.
    sample_size
        Rows that are judged; four times as many halve the interval.
    n_clusters
        Clusters, as many as the run will have. None: the square root of the rows.
    keep
        Order within a cluster: ``hard``, ``easy`` or ``random``.
    metric
        ``cosine`` or ``l2``, of the clustering.
    seed
        Keys both samples and the random order.
    client
        Dask client; None: as for :func:`daskcurate.compute`.

    Returns
    -------
    EpsChoice
        Fractions with intervals, and the sample's similarities for a look at any other eps.

    Raises
    ------
    TypeError, ValueError
        A value that is not allowed; the message quotes it and what is.
    PlanError
        The workers have too little memory.
    """
    given_client(client)
    estimate = EpsEstimate.of(
        emb, eps, sample_size=sample_size, n_clusters=n_clusters, keep=keep, metric=metric, seed=seed
    )
    return estimate.run(client)


@dataclass(frozen=True, kw_only=True)
class EpsEstimate:
    """An estimate to be made: :func:`choose_eps` with its values checked."""

    emb: Embeddings
    eps: tuple[float, ...]
    sample_size: int
    n_clusters: int
    fit_rows: int
    keep: str
    metric: str
    seed: int

    @classmethod
    def of(
        cls,
        emb: Embeddings,
        eps: Any,
        *,
        sample_size: Any,
        n_clusters: Any,
        keep: Any,
        metric: Any,
        seed: Any,
    ) -> EpsEstimate:
        """Check the values; nothing runs."""
        emb = checked_embeddings(emb)
        limits = _checked_eps(DEFAULT_EPS if eps is None else eps)
        sample_size = min(check_int("sample_size", sample_size, 2), len(emb))
        if n_clusters is None:
            n_clusters = max(1, min(round(math.sqrt(len(emb))), most_rows(emb) // FIT_ROWS))
        k = check_int("n_clusters", n_clusters, 1, len(emb))
        return cls(
            emb=emb,
            eps=limits,
            sample_size=sample_size,
            n_clusters=k,
            fit_rows=rows_to_fit(emb, k, sample_size),
            keep=check_choice("keep", keep, KEEPS),
            metric=check_choice("metric", metric, METRICS),
            seed=check_int("seed", seed, 0),
        )

    def peak_memory(self, limits: Limits) -> int:
        """Return the bytes that a worker needs at the worst moment."""
        width, probes = 4 * self.emb.dim, self.sample_size * (self.emb.dim * 4 + 32)
        compare = probes + limits.threads_per_worker * 4 * self.emb.chunk_rows * width
        return limits.process_bytes + self.n_clusters * width + max(compare, 3 * self.fit_rows * width)

    def run(self, client: Any = None) -> EpsChoice:
        """Make the estimate on a client, or where :func:`daskcurate.compute` would run."""
        emb, n = self.emb, len(self.emb)
        rng = np.random.default_rng(derive_seed(self.seed, "choose eps"))
        fit_rows, rows = sample_rows(emb, self.fit_rows, rng), sample_rows(emb, self.sample_size, rng)
        order = (self.metric, self.keep, derive_seed(self.seed, "dedup"))
        started = time.perf_counter()
        with client_for(client) as used, used.as_current():
            used.wait_for_workers(1)
            run = LooseTasks(used)
            check_memory("choose_eps", self.peak_memory(run.limits), run.limits)
            fit = run.task(scaled, read_task(run, emb, fit_rows, "fit"), self.metric, name="choose-scale")
            centroids = run.task(fit_sample, fit, self.n_clusters, self.metric, self.seed, name="choose-fit")
            probes = run.task(
                _ordered, read_task(run, emb, rows, "probes"), rows, centroids, order, name="choose-probes"
            )
            parts = [
                run.task(
                    _probe_chunk, emb, start, stop, centroids, probes, order, name="choose-compare", key=start
                )
                for start, stop in chunk_bounds(n, emb.chunk_rows)
            ]
            found, sizes = run.gather([tree(run, _merged, parts, name="choose-merge", key="all")])[0]
        wide = sizes.astype(object)
        kept = np.array([int((~is_duplicate(found.similarity, one)).sum()) for one in self.eps])
        low, high = wilson(kept, self.sample_size, n)
        return EpsChoice(
            eps=self.eps,
            kept=tuple(float(one) for one in kept / self.sample_size),
            low=tuple(float(one) for one in low),
            high=tuple(float(one) for one in high),
            n_rows=n,
            sample_size=self.sample_size,
            n_clusters=self.n_clusters,
            pairs=int((wide * (wide - 1) // 2).sum()),
            rows=rows,
            similarity=found.similarity,
            match=found.position,
            seconds=time.perf_counter() - started,
        )


def _checked_eps(eps: Any) -> tuple[float, ...]:
    if not is_list(eps):
        raise TypeError(f"eps={eps!r} is not allowed: give a list of numbers in [0, 2]")
    if not len(eps):
        raise ValueError("eps=[] is not allowed: give at least one number in [0, 2]")
    return tuple(sorted({check_number(f"eps[{i}]", one, 0, 2) for i, one in enumerate(eps)}))


def _ordered(
    raw: np.ndarray, numbers: np.ndarray, centroids: np.ndarray, order: tuple[str, str, int]
) -> Ordered:
    """Return rows with their clusters and their keys, as dedup orders them."""
    metric, keep, seed = order
    x = unit_rows(raw) if metric == "cosine" else raw.astype(np.float32, copy=False)
    labels = nearest(x, centroids, metric)
    if keep == "random":
        keys = row_uniform(seed, numbers)
    else:
        # a stored distance is a float32
        keys = own_distances(x, centroids, labels, "cosine").astype(np.float32).astype(np.float64)
    return Ordered(raw, numbers, labels, -keys if keep == "hard" else keys)


def _probe_chunk(
    emb: Embeddings,
    start: int,
    stop: int,
    centroids: np.ndarray,
    probes: Ordered,
    order: tuple[str, str, int],
) -> tuple[EarlierMatch, np.ndarray]:
    """Return the probes' matches among the rows of a chunk, and the chunk's rows of each cluster."""
    block = _ordered(emb.rows.read(start, stop), np.arange(start, stop, dtype=np.int64), centroids, order)
    found = on_device(match_probes)(probes, block)
    return found, np.bincount(block.labels, minlength=len(centroids)).astype(np.int64)


def _merged(parts: list[tuple[EarlierMatch, np.ndarray]]) -> tuple[EarlierMatch, np.ndarray]:
    found, sizes = parts[0]
    for match, more in parts[1:]:
        found, sizes = merge_earlier(found, match), sizes + more
    return found, sizes
