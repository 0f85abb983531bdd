"""The members of a clustering's clusters, chunk by chunk: what selection stages map over."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.delayed import Delayed

from daskcurate.kernels.distances import own_distances
from daskcurate.kernels.draws import row_uniform
from daskcurate.kernels.threads import spread
from daskcurate.planning import counted_chunks
from daskcurate.regroup import Labelled, rank_in_cluster
from daskcurate.rows import RowSource, add, tree
from daskcurate.store import open_array, read_block, write_block, write_scratch

if TYPE_CHECKING:
    from daskcurate.kmeans import Clustering
    from daskcurate.selection import Selection


@dataclass(frozen=True)
class Members:
    """A computed clustering of a pool's rows, restricted to a computed selection."""

    labels_url: str
    """(n,) int32; -1: no cluster."""
    distances_url: str
    """(n,) float32 to the own centroid, in the clustering's metric."""
    centroids_url: str
    """(k, d) float32."""
    metric: str
    mask_url: str | None
    """(n,): the selection's counts, which leave rows above 0; None: all rows."""
    n_rows: int
    n_clusters: int
    chunk_rows: int
    """Rows of a chunk of labels, and of what the stages write."""
    source: RowSource | None
    """The rows themselves; None where they are not to be read."""

    @classmethod
    def of(cls, clustering: Clustering, within: Selection | None, *, rows: bool = True) -> Members:
        """Return the members of ``clustering`` that ``within`` leaves, with or without their embeddings.

        Both must be computed.
        """
        emb = clustering.emb if rows else None
        return cls(
            labels_url=clustering.url("labels"),
            distances_url=clustering.url("distances"),
            centroids_url=clustering.url("centroids"),
            metric=clustering.metric,
            mask_url=None if within is None else within.url("counts"),
            n_rows=clustering.n_rows,
            n_clusters=clustering.n_clusters,
            chunk_rows=clustering.chunk_rows,
            source=None if emb is None else RowSource.of_embeddings(emb),
        )

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and last (exclusive) row of each chunk."""
        return [(i, min(i + self.chunk_rows, self.n_rows)) for i in range(0, self.n_rows, self.chunk_rows)]

    @property
    def counts(self) -> list[int]:
        """Rows of each chunk."""
        return [stop - start for start, stop in self.ranges]


def load_labels(members: Members, start: int, stop: int) -> np.ndarray:
    """Read the labels of rows [start, stop); -1 outside the selection."""
    labels = read_block(members.labels_url, start, stop)
    if members.mask_url is not None:
        labels[read_block(members.mask_url, start, stop) <= 0] = -1
    return labels


def load_distances(members: Members, start: int, stop: int) -> np.ndarray:
    """Read the distances of rows [start, stop) to their centroids, in the clustering's metric."""
    return read_block(members.distances_url, start, stop).astype(np.float64)


def load_cosines(members: Members, start: int, stop: int) -> np.ndarray:
    """Return the cos distances of rows [start, stop) to their centroids, (m,) float64.

    A clustering in L2 stores other distances: then they are computed from the rows.
    """
    if members.metric == "cosine":
        return load_distances(members, start, stop)
    assert members.source is not None
    labels = load_labels(members, start, stop)
    rows = members.source.read(start, stop)
    centroids = read_small(members.centroids_url)
    return own_distances(rows, centroids, labels, "cosine").astype(np.float32).astype(np.float64)


@dataclass(frozen=True)
class SortKey:
    """What orders the rows of a cluster; the smallest comes first, ties go by row number.

    ``by`` is ``distance`` (the clustering's own), ``cosine`` (distance), ``random`` or ``score``.
    """

    by: str
    descending: bool = False
    seed: int = 0
    score_url: str | None = None

    @classmethod
    def for_keep(cls, keep: str, seed: int, score_url: str | None = None) -> SortKey:
        """Return the order that puts first what ``hard``, ``easy``, ``random`` or ``score`` keeps."""
        if keep == "random":
            return cls("random", seed=seed)
        if keep == "score":
            return cls("score", descending=True, score_url=score_url)
        return cls("cosine", descending=keep == "hard")

    def load(self, members: Members, start: int, stop: int) -> np.ndarray:
        """Return the keys of rows [start, stop), (m,) float64."""
        if self.by == "random":
            return row_uniform(self.seed, np.arange(start, stop, dtype=np.int64))
        if self.by == "score":
            assert self.score_url is not None
            keys = read_block(self.score_url, start, stop)
        else:
            keys = (load_cosines if self.by == "cosine" else load_distances)(members, start, stop)
        return -keys if self.descending else keys

    def load_all(self, members: Members) -> np.ndarray:
        """Return the keys of all rows, (n,) float64; those computed from the rows, chunk by chunk."""
        if self.by != "cosine" or members.metric == "cosine":
            return self.load(members, 0, members.n_rows)
        return np.concatenate(spread(self.load, repeat(members), *zip(*members.ranges, strict=True)))


def _sizes(members: Members, start: int, stop: int) -> np.ndarray:
    labels = load_labels(members, start, stop)
    return np.bincount(labels[labels >= 0], minlength=members.n_clusters).astype(np.int64)


def _cosine_sums(members: Members, start: int, stop: int) -> np.ndarray:
    labels = load_labels(members, start, stop)
    inside = labels >= 0
    return np.bincount(
        labels[inside], load_cosines(members, start, stop)[inside], minlength=members.n_clusters
    )


def cluster_sizes(run: Any, members: Members, key: str = "within") -> np.ndarray:
    """Return the rows of each cluster within the selection, (k,) int64.

    A stage that asks twice, with other masks, gives each a ``key``: tasks of one key are one result to Dask.
    """
    chunks = counted_chunks(len(members.ranges), members.chunk_rows, run.limits.n_threads)
    step = members.chunk_rows * chunks
    ranges = [(i, min(i + step, members.n_rows)) for i in range(0, members.n_rows, step)]
    return _reduced(run, members, _sizes, "cluster-sizes", key, ranges)


def cluster_cosines(run: Any, members: Members) -> np.ndarray:
    """Return the sum of the members' cos distances to their centroid, (k,) float64."""
    return _reduced(run, members, _cosine_sums, "cluster-cosines", "within", members.ranges)


def _reduced(
    run: Any, members: Members, function: Any, name: str, key: str, ranges: Sequence[tuple[int, int]]
) -> np.ndarray:
    parts = [run.task(function, members, *r, name=name, key=f"{key}-{r[0]}") for r in ranges]
    return run.gather([tree(run, add, parts, name=f"{name}-add", key=key)], name.replace("-", " "))[0]


def _labelled(
    members: Members, key: SortKey, start: int, stop: int, among_url: str | None = None
) -> Labelled:
    labels = load_labels(members, start, stop)
    if among_url is not None:
        labels[~read_small(among_url)[labels]] = -1
    return Labelled(labels, key.load(members, start, stop))


def member_ranks(
    run: Any, members: Members, key: SortKey, sizes: np.ndarray, among_url: str | None = None
) -> list[Delayed]:
    """Return each row's rank within its cluster by ``key``, per chunk (m,) int64; -1 outside.

    ``among_url`` names an array (k,) of bool: the clusters whose rows are ranked, if not all; ``sizes`` are
    (k,) theirs, 0 of others.
    """
    labelled = [
        run.task(_labelled, members, key, *r, among_url, name="sort-keys", key=r[0]) for r in members.ranges
    ]
    return rank_in_cluster(run, labelled, members.counts, sizes, "members")


def _labelled_alike(members: Members, key: SortKey, start: int, stop: int) -> Labelled:
    labels, keys = _labelled(members, key, start, stop)
    return Labelled(np.minimum(labels, 0), keys)


def pool_ranks(run: Any, members: Members, key: SortKey, total: int) -> list[Delayed]:
    """Return each row's rank among all ``total`` rows by ``key``, per chunk (m,) int64; -1 outside."""
    labelled = [
        run.task(_labelled_alike, members, key, *r, name="sort-keys", key=r[0]) for r in members.ranges
    ]
    return rank_in_cluster(run, labelled, members.counts, np.array([total]), "pool")


_WRITTEN = 1 << 22
"""Scores written at a time, at most."""


def write_scores(run: Any, members: Members, values: np.ndarray) -> str:
    """Write a user's score column to a scratch array in the chunks of the labels; return its URL."""
    import zarr

    url = run.scratch("score")
    chunk = min(members.chunk_rows, len(values))
    zarr.create_array(store=url, shape=values.shape, dtype="float64", chunks=(chunk,), overwrite=True)
    step = chunk * max(1, _WRITTEN // chunk)  # to write one chunk after another takes several times as long
    for start in range(0, len(values), step):
        write_block(url, start, values[start : start + step].astype(np.float64))
    return url


def write_small(run: Any, name: str, values: np.ndarray) -> str:
    """Write a per-cluster array that tasks need to a scratch array; return its URL."""
    url = run.scratch(name)
    write_scratch(url, values)
    return url


def read_small(url: str) -> np.ndarray:
    """Read a whole per-cluster array."""
    return np.asarray(open_array(url)[...])


def write_counts(run: Any, members: Members, counts: Sequence[Delayed], dtype: str) -> int:
    """Write the counts of each chunk; return their sum."""
    url = run.declare("counts", (members.n_rows,), members.chunk_rows)
    writes = [
        run.task(_write, url, start, block, dtype, name="write-counts", key=start)
        for (start, _), block in zip(members.ranges, counts, strict=True)
    ]
    return sum(run.gather(writes, "write"))


def _write(url: str, start: int, counts: np.ndarray, dtype: str) -> int:
    write_block(url, start, counts.astype(dtype))
    return int(counts.sum(dtype=np.int64))


def restricted(members: Members, mask_url: str | None) -> Members:
    """Return the members that another mask leaves."""
    return dataclasses.replace(members, mask_url=mask_url)
