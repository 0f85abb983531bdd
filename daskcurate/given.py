"""Clusterings that were made elsewhere, wrapped so that every stage takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from daskcurate.clustering_arrays import centroid_chunk, copy_rows
from daskcurate.config import Config
from daskcurate.kernels.distances import own_distances
from daskcurate.kernels.lloyd import inertia_of, segment_sums
from daskcurate.kmeans import Clustering, LabelReader
from daskcurate.nodes import GivenArray
from daskcurate.planning import Limits, StagePlan, combine_memory
from daskcurate.rows import PIECE_BYTES, Block, RowSource, load_block, tree
from daskcurate.stage_plans import ChunkSteps, selection_plan
from daskcurate.store import read_block, write_block, write_scratch

if TYPE_CHECKING:
    from daskcurate.embeddings import Embeddings

LABEL_CHUNK = 1 << 20
"""Labels per chunk where no pool says how its rows are chunked."""


@dataclass(frozen=True, kw_only=True)
class GivenClusteringConfig(Config):
    """What a clustering made elsewhere consists of."""

    n_clusters: int
    metric: str
    n_splits: int = 1


class GivenClustering(Clustering):
    """A clustering that was made elsewhere: labels, and centroids or the means of the members."""

    kind = "clustering"

    @classmethod
    def of(
        cls,
        labels: np.ndarray,
        emb: Embeddings | None,
        parent: Clustering | None,
        k: int | None,
        centroids: np.ndarray | None = None,
        metric: str = "l2",
    ) -> GivenClustering:
        """Return the clustering with the given ``labels`` over ``emb``, or over the clusters of ``parent``."""
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(
                f"labels of dtype {labels.dtype} and shape {labels.shape} are not allowed: give integers (n,)"
            )
        if not len(labels):
            raise ValueError("labels of length 0 are not allowed: give one value a row")
        rows = len(emb) if emb is not None else len(labels)
        if len(labels) != rows:
            raise ValueError(f"labels cover {len(labels)} rows, the pool has {rows}: give one value a row")
        low, high = int(labels.min()), int(labels.max())
        if k is None:
            if low < -1:
                raise ValueError(
                    f"labels from {low} to {high} are not allowed: give -1 (outside), 0, 1, and so on"
                )
            if high == -1:
                raise ValueError(
                    "labels that are all -1 (outside) are not allowed: give one cluster a member"
                )
            k = high + 1
        if low < -1 or high >= k or k < 1:
            raise ValueError(f"labels from {low} to {high} are not allowed: give -1 (outside) to {k - 1}")
        inputs: dict[str, Any] = {"labels": GivenArray(labels.astype(np.int32))}
        if centroids is not None:
            inputs["centroids"] = GivenArray(centroids)
        if parent is not None:
            inputs["parent"] = parent
        elif emb is not None:
            inputs["emb"] = emb
        return cls(GivenClusteringConfig(n_clusters=k, metric=metric), inputs)

    @property
    def title(self) -> str:
        """What progress displays call the stage."""
        return f"given clustering {self.config.n_clusters}"

    @property
    def n_rows(self) -> int:
        """Things clustered."""
        return len(self.inputs["labels"].values)

    @property
    def n_clusters(self) -> int:
        """Clusters."""
        return self.config.n_clusters

    @property
    def labels(self) -> da.Array:
        """(n,) int32 dask array; -1 outside."""
        if self.store is not None:
            return super().labels
        return da.from_array(self.inputs["labels"].values, chunks=max(1, min(self.chunk_rows, self.n_rows)))

    @property
    def sizes(self) -> np.ndarray:
        """(k,) int64: members of each cluster."""
        labels = self.inputs["labels"].values
        return np.bincount(labels[labels >= 0], minlength=self.n_clusters).astype(np.int64)

    @property
    def centroids(self) -> np.ndarray:
        """(k, d) float32: as given, or the members' means."""
        self._check_vectors("centroids")
        given = self.inputs.get("centroids")
        return given.values if given is not None else self.read("centroids")

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk of labels."""
        return super().chunk_rows if "emb" in self.inputs or self.parent is not None else LABEL_CHUNK

    @property
    def distances(self) -> da.Array:
        """(n,) float32 dask array: distance to the own centroid; NaN outside."""
        self._check_vectors("distances")
        return super().distances

    @property
    def inertia(self) -> float:
        """Sum of squared L2 distances to the own centroid."""
        self._check_vectors("inertia")
        return super().inertia

    @property
    def has_vectors(self) -> bool:
        """Whether there are rows to measure distances to centroids with."""
        return self.emb is not None

    def _check_vectors(self, what: str) -> None:
        if not self.has_vectors:
            raise ValueError(
                f"a clustering of labels alone has no {what}: give emb= to Hierarchy.from_labels"
            )

    def plan(self, limits: Limits) -> StagePlan:
        """Return what writing the given clustering takes."""
        emb, k = self.emb, self.n_clusters
        means = 0
        if emb is not None and "centroids" not in self.inputs:
            rows = min(self.n_rows, self.chunk_rows)
            means = max(combine_memory(k, emb.dim), rows * emb.dim * 4 + 2 * PIECE_BYTES + k * emb.dim * 8)
        return selection_plan(
            self.title,
            n=self.n_rows,
            k=k,
            row_bytes=4 if emb is None else 8,  # labels, and distances where there are rows
            chunk_rows=self.chunk_rows,
            limits=limits,
            steps=ChunkSteps(tasks=2, reads=2, rounds=2, kept=2, row_passes=0 if emb is None else 1),
            d=0 if emb is None else emb.dim,
            other_task=means,
        )

    def label_reader(self) -> LabelReader:
        """Return a picklable reader of all labels: small once they are stored."""
        if self.store is not None:
            return super().label_reader()
        return LabelReader(None, self.inputs["labels"].values)

    def source(self) -> RowSource:
        """Return the rows that the labels are for."""
        if self.parent is not None:
            return super().source()
        return RowSource.of_embeddings(self.inputs["emb"])

    def execute(self, run: Any) -> dict[str, Any]:
        """Write labels and sizes and, where there are vectors, centroids and distances."""
        labels, k = self.inputs["labels"].values, self.n_clusters
        url = run.declare("labels", (self.n_rows,), self.chunk_rows)
        for start, stop in self.ranges:
            write_block(url, start, labels[start:stop])
        write_block(run.declare("sizes", (k,), k), 0, self.sizes)
        if not self.has_vectors:
            return {"n_clusters": k, "inertia": None}
        source = self.source()
        parts = [
            (run.task(load_block, source, *r, self.metric, name="load-rows", key=r[0]), r)
            for r in source.ranges
        ]
        name = "given"
        if "centroids" in self.inputs:
            write_scratch(run.scratch(name), self.inputs["centroids"].values)
        else:
            sums = [run.task(_sums_of, part, url, r, k, name="cluster-sums", key=r[0]) for part, r in parts]
            total = tree(run, _add_sums, sums, name="cluster-sums-add", key="sum")
            run.gather(
                [run.task(_write_means, run.scratch(name), total, name="cluster-means", key="mean")], "means"
            )
        far = run.declare("distances", (self.n_rows,), self.chunk_rows)
        writes = [
            run.task(
                _write_distances,
                part,
                url,
                far,
                run.scratch(name),
                r,
                self.metric,
                name="distances",
                key=r[0],
            )
            for part, r in parts
        ]
        inertia = math.fsum(run.gather(writes, "distances"))
        chunk = centroid_chunk(source.dim)
        target = run.declare("centroids", (k, source.dim), chunk)
        for start in range(0, k, chunk):
            copy_rows(run.scratch(name), target, start, min(start + chunk, k))
        return {"n_clusters": k, "inertia": inertia}


def _labels_of(block: Block, url: str, bounds: tuple[int, int]) -> np.ndarray:
    return read_block(url, *bounds)[block.numbers - bounds[0]]


def _sums_of(block: Block, url: str, bounds: tuple[int, int], k: int) -> tuple[np.ndarray, np.ndarray]:
    return segment_sums(block.rows, _labels_of(block, url, bounds), k)


def _add_sums(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    sums, counts = parts[0][0].copy(), parts[0][1].copy()
    for more, count in parts[1:]:
        sums += more
        counts += count
    return sums, counts


def _write_means(url: str, total: tuple[np.ndarray, np.ndarray]) -> None:
    sums, counts = total
    write_scratch(url, (sums / np.maximum(counts, 1)[:, None]).astype(np.float32))


def _write_distances(
    block: Block, labels_url: str, url: str, centroids_url: str, bounds: tuple[int, int], metric: str
) -> float:
    labels = _labels_of(block, labels_url, bounds)
    centroids = read_block(centroids_url, 0, 2**62)
    values = np.full(bounds[1] - bounds[0], np.nan, dtype=np.float32)
    values[block.numbers - bounds[0]] = own_distances(block.rows, centroids, labels, metric)
    write_block(url, bounds[0], values)
    return inertia_of(block.rows, centroids, labels, metric)
