"""Hierarchical k-means (Vo et al. 2024): clusters of clusters, each level fitted on the one below.

Level 1 clusters the rows; level t > 1 clusters the centroids of level t - 1, unweighted. Every level is a
stage of its own, so a change at the top re-runs the top alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from daskcurate.config import INITS, KMeansConfig, check_choice, check_int, is_list
from daskcurate.given import GivenClustering
from daskcurate.kmeans import Clustering
from daskcurate.nodes import checked_embeddings
from daskcurate.selection import Selection, selection_or_none

if TYPE_CHECKING:
    from daskcurate.embeddings import Embeddings


class Hierarchy:
    """Clusterings, the one of the rows first; level t's labels run over the clusters of level t - 1.

    Attributes
    ----------
    levels : list of Clustering
        One a level, the finest first.
    """

    def __init__(self, levels: Sequence[Clustering]):
        self.levels = list(levels)

    @staticmethod
    def from_labels(labels: Sequence[Any], emb: Embeddings | None = None) -> Hierarchy:
        """Wrap a hierarchy made elsewhere.

        Parameters
        ----------
        labels
            Integer arrays: (n,) clusters of the rows, then (k_1,) clusters of those clusters, and so on.
            -1 marks what belongs nowhere.
        emb
            The pool. Without it rows can be sampled at random, not by their distance to a centroid.
        """
        if not isinstance(labels, Sequence) or isinstance(labels, str | bytes):
            raise TypeError(f"labels={labels!r} is not allowed: give a list of integer arrays, one a level")
        if not len(labels):
            raise ValueError("labels=[] is not allowed: give at least one level")
        emb = None if emb is None else checked_embeddings(emb)
        found = [np.asarray(values) for values in labels]
        levels: list[Clustering] = []
        for number, values in enumerate(found, 1):
            # the clusters of a level are as many as the next level has labels
            above = found[number] if number < len(found) else None
            k = len(above) if above is not None and above.ndim == 1 else None
            if k is not None and values.dtype.kind in "iu" and values.size and values.max() >= k:
                raise ValueError(
                    f"labels of level {number} go up to {values.max()}, those of level {number + 1} cover {k} "
                    "clusters: give one value for each"
                )
            levels.append(
                GivenClustering.of(values, emb if number == 1 else None, levels[-1] if levels else None, k)
            )
        return Hierarchy(levels)

    def with_levels(self, levels: Sequence[Any]) -> Hierarchy:
        """Return the hierarchy with its levels replaced, by their computed counterparts."""
        return Hierarchy(levels)

    def __repr__(self) -> str:
        counts = " / ".join(str(level.n_clusters) for level in self.levels)
        return f"<Hierarchy of {counts} clusters, {'computed' if self.is_computed else 'lazy'}>"

    def __len__(self) -> int:
        """Return the number of levels."""
        return len(self.levels)

    @property
    def is_computed(self) -> bool:
        """Whether every level is bound to a store."""
        return all(level.is_computed for level in self.levels)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the last level, which all others lead to."""
        return self.levels[-1].fingerprint

    @property
    def emb(self) -> Embeddings | None:
        """The pool, where it is known."""
        return self.levels[0].emb

    @property
    def n_rows(self) -> int:
        """Rows of the pool."""
        return self.levels[0].n_rows

    @property
    def within(self) -> Selection | None:
        """The selection of rows that was clustered."""
        return self.levels[0].within

    def _level(self, level: int) -> int:
        number = check_int("level", level, -len(self.levels), len(self.levels))
        if number == 0:
            raise ValueError(f"level=0 is not allowed: give 1 (the rows' clusters) to {len(self.levels)}")
        return number if number > 0 else len(self.levels) + 1 + number

    def flat_labels(self, level: int) -> da.Array:
        """Return the cluster of each row at ``level`` (1 is the finest; -1 the last), (n,) int32; -1 outside."""
        last = self._level(level)
        labels = self.levels[0].labels
        for above in self.levels[1:last]:
            labels = da.map_blocks(_look_up, labels, above.label_reader(), dtype=np.int32)
        return labels

    def flat_sizes(self, level: int) -> np.ndarray:
        """Return the rows below each cluster of ``level`` (1 is the finest; -1 the last), (k,) int64."""
        last = self._level(level)
        sizes = self.levels[0].sizes
        for above in self.levels[1:last]:
            labels = above.label_reader()()
            inside = labels >= 0
            flat = np.zeros(above.n_clusters, dtype=np.int64)
            np.add.at(flat, labels[inside], sizes[inside])
            sizes = flat
        return sizes

    def columns(self) -> dict[str, da.Array]:
        """Return row, id and the cluster of every row at every level, (n,) each."""
        from daskcurate.report_columns import hierarchy_columns

        return hierarchy_columns(self)


def _look_up(labels: np.ndarray, reader: Any) -> np.ndarray:
    table = np.append(reader(), np.int32(-1))  # label -1 finds the last entry
    return table[labels].astype(np.int32)


def _per_level(name: str, value: Any, n_levels: int, default: int, minimum: int) -> list[int]:
    """Return one integer a level from None, one integer for all, or a sequence."""
    if value is None:
        return [default] * n_levels
    if is_list(value):
        if len(value) != n_levels:
            raise ValueError(
                f"{name}={list(value)!r} has {len(value)} entries, n_clusters {n_levels}: give one a level"
            )
        return [check_int(f"{name}[{i}]", item, minimum) for i, item in enumerate(value)]
    return [check_int(name, value, minimum)] * n_levels


def hierarchical_kmeans(
    emb: Embeddings,
    n_clusters: Sequence[int],
    *,
    sample_sizes: Sequence[int] | int | None = None,
    n_resamples: Sequence[int] | int = 10,
    n_splits: Sequence[int] | int | None = None,
    sample_strategy: str = "closest",
    metric: str = "l2",
    init: Any = "k-means++",
    algorithm: str = "lloyd",
    n_iters: int = 50,
    tol: float | None = None,
    n_init: int = 1,
    within: Any = None,
    seed: int = 0,
) -> Hierarchy:
    """Cluster the pool level by level, with resampling or splits (Vo et al. 2024, arXiv 2405.15613).

    Parameters
    ----------
    emb
        The pool.
    n_clusters
        Clusters of each level, the rows' first; each at most the number below it.
    sample_sizes
        Rows taken from each cluster in a resampling step, a value a level or one for all; 1 or None: no
        resampling at that level. Half the mean cluster size of the level is a good choice.
    n_resamples
        Resampling steps *after* the initial k-means (a value a level or one for all).
    n_splits
        Parts into which each cluster of a level is split by a k-means of its own; 1 or None: no split.
    sample_strategy
        ``closest`` rows to the centroid, or ``random`` ones.
    metric, init, algorithm, n_iters, tol, n_init, seed
        See :func:`daskcurate.kmeans`; ``init`` is a name.
    within
        Selection (or boolean mask) of the rows to cluster.

    Raises
    ------
    TypeError, ValueError
        A value that is not allowed; the message quotes it and what is.
    """
    emb = checked_embeddings(emb)
    if not is_list(n_clusters):
        raise TypeError(f"n_clusters={n_clusters!r} is not allowed: give a list of integers, one a level")
    if not len(n_clusters):
        raise ValueError("n_clusters=[] is not allowed: give at least one level")
    if not isinstance(init, str):
        raise TypeError(f"init={type(init).__name__} is not allowed here: give the name of a seeding")
    check_choice("init", init, INITS)  # the config knows "array" as well, which stands for a real one
    count = len(n_clusters)
    ks = _per_level("n_clusters", n_clusters, count, 1, 1)
    sizes = _per_level("sample_sizes", sample_sizes, count, 1, 1)
    resamples = _per_level("n_resamples", n_resamples, count, 10, 0)
    splits = _per_level("n_splits", n_splits, count, 1, 1)
    selection = selection_or_none(within, emb, len(emb))
    below, levels = len(emb), list[Clustering]()
    for number, k in enumerate(ks, 1):
        if k > below:
            what = "rows" if number == 1 else f"clusters of level {number - 1}"
            raise ValueError(
                f"n_clusters={ks}: level {number} asks for {k} clusters of {below} {what}; give fewer"
            )
        config = KMeansConfig(
            n_clusters=k,
            metric=metric,
            init=init,
            algorithm=algorithm,
            n_iters=n_iters,
            tol=tol,
            n_init=n_init,
            sample_size=sizes[number - 1],
            n_resamples=resamples[number - 1],
            n_splits=splits[number - 1],
            sample_strategy=sample_strategy,
            seed=seed,
        )
        inputs: dict[str, Any] = {"parent": levels[-1]} if levels else {"emb": emb}
        if not levels and selection is not None:
            inputs["within"] = selection
        levels.append(Clustering(config, inputs))
        below = k * splits[number - 1]
    return Hierarchy(levels)
