"""K-means of a pool, or of the centroids of another clustering: builder, results, and the stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from daskcurate.clustering_arrays import centroid_chunk, write_clustering
from daskcurate.config import INITS, METRICS, KMeansConfig, check_choice
from daskcurate.fast_loop import assign_two_level
from daskcurate.fitting import fit, fit_resampled, is_lloyds, resamples_whole
from daskcurate.kernels.draws import derive_seed
from daskcurate.kmeans_planning import kmeans_plan, working_memory
from daskcurate.lloyd_loop import assign_blocks
from daskcurate.narrowing import NAME, narrowed, with_directions
from daskcurate.nodes import GivenArray, Stage, checked_embeddings
from daskcurate.planning import Limits, StagePlan
from daskcurate.resampling import resample
from daskcurate.rows import RowBlocks, RowSource, open_blocks
from daskcurate.selection import Selection, selection_or_none
from daskcurate.splitting import PART_BYTES, split_clusters
from daskcurate.store import read_block

if TYPE_CHECKING:
    from daskcurate.embeddings import Embeddings


@dataclass(frozen=True)
class LabelReader:
    """Reads the whole label array of a (small) level where it is called."""

    url: str | None
    values: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        """Return the labels."""
        if self.values is not None:
            return self.values
        assert self.url is not None
        return read_block(self.url, 0, 2**62)


class Clustering(Stage):
    """Clusters of a pool's rows, or of the clusters of the level below.

    Bound to a store it has ``centroids`` (k, d) float32, ``labels`` dask (n,) int32, ``distances`` dask
    (n,) float32 to the own centroid (L2, or 1 - cos for the cosine metric), ``sizes`` (k,) int64 and
    ``inertia``: the sum of squared L2 distances. Rows outside ``within`` have label -1 and distance NaN.
    """

    kind = "kmeans"

    @staticmethod
    def from_arrays(emb: Embeddings, centroids: Any, labels: Any, *, metric: str = "l2") -> Clustering:
        """Wrap a clustering of ``emb`` made elsewhere.

        Parameters
        ----------
        emb
            The pool.
        centroids
            (k, d) floats.
        labels
            (n,) integers in [-1, k); -1 marks rows outside.
        metric
            ``l2`` or ``cosine``: what ``distances`` will be.
        """
        emb = checked_embeddings(emb)
        check_choice("metric", metric, METRICS)
        values = np.asarray(centroids)
        if values.ndim != 2 or values.shape[1] != emb.dim or not np.issubdtype(values.dtype, np.floating):
            raise ValueError(
                f"centroids of shape {values.shape} and dtype {values.dtype} are not allowed: give floats "
                f"(k, {emb.dim})"
            )
        if not np.isfinite(values).all():
            raise ValueError("centroids with NaN or infinity are not allowed: give finite values")
        from daskcurate.given import GivenClustering  # a subclass: it imports this module

        return GivenClustering.of(
            np.asarray(labels), emb, None, len(values), values.astype(np.float32), metric
        )

    @property
    def emb(self) -> Embeddings | None:
        """The pool below, where it is known."""
        parent = self.parent
        return self.inputs.get("emb") if parent is None else parent.emb

    @property
    def parent(self) -> Clustering | None:
        """The clustering whose clusters this one clusters; None where it clusters rows."""
        return self.inputs.get("parent")

    @property
    def within(self) -> Selection | None:
        """The selection of rows that was clustered."""
        return self.inputs.get("within")

    @property
    def title(self) -> str:
        """What progress displays call the stage."""
        level = len(self.chain())
        asked = self.config.n_clusters * self.config.n_splits
        return f"k-means {asked}" if level == 1 else f"k-means {asked} (level {level})"

    @property
    def n_rows(self) -> int:
        """Things clustered: rows of the pool, or clusters of the level below."""
        parent = self.parent
        return len(self.inputs["emb"]) if parent is None else parent.n_clusters

    @property
    def n_clusters(self) -> int:
        """Clusters; before the stage has run, the number asked for."""
        if self.store is not None:
            return int(self.attributes["n_clusters"])
        return min(self.config.n_clusters * self.config.n_splits, self.n_rows)

    @property
    def metric(self) -> str:
        """``l2`` or ``cosine``."""
        return self.config.metric

    @property
    def centroids(self) -> np.ndarray:
        """(k, d) float32."""
        return self.read("centroids")

    @property
    def labels(self) -> da.Array:
        """(n,) int32 dask array; -1 outside."""
        return self.lazy("labels")

    @property
    def distances(self) -> da.Array:
        """(n,) float32 dask array: distance to the own centroid; NaN outside."""
        return self.lazy("distances")

    @property
    def sizes(self) -> np.ndarray:
        """(k,) int64: members of each cluster."""
        return self.read("sizes")

    @property
    def inertia(self) -> float:
        """Sum of squared L2 distances to the own centroid."""
        return float(self.attributes["inertia"])

    @property
    def recall(self) -> float:
        """Share of a sample of rows whose label is the nearest centroid; 1 but for ``two-level``."""
        return float(self.attributes.get("recall", 1.0))

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk of labels."""
        parent = self.parent
        if parent is None:
            return self.inputs["emb"].chunk_rows
        emb = self.emb
        return centroid_chunk(emb.dim if emb is not None else 1)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and last (exclusive) row of each chunk of labels."""
        return [(i, min(i + self.chunk_rows, self.n_rows)) for i in range(0, self.n_rows, self.chunk_rows)]

    def label_reader(self) -> LabelReader:
        """Return a small, picklable reader of all labels."""
        return LabelReader(self.url("labels"))

    def chain(self) -> list[Clustering]:
        """Return the levels that lead here, that of the rows first."""
        parent = self.parent
        return [self] if parent is None else [*parent.chain(), self]

    def history(self) -> list[Selection]:
        """Return the selections that led here."""
        parent = self.parent
        if parent is not None:
            return parent.history()
        return [] if self.within is None else self.within.history()

    def columns(self) -> dict[str, da.Array]:
        """Return row, id, cluster and distance of every row, (n,) each."""
        from daskcurate.report_columns import clustering_columns

        return clustering_columns(self)

    def source(self) -> RowSource:
        """Return the rows that this stage clusters; its inputs must be computed."""
        parent = self.parent
        if parent is None:
            return RowSource.of_embeddings(self.inputs["emb"], self.within)
        emb = self.emb
        assert emb is not None
        return RowSource(
            url=parent.url("centroids"),
            n_rows=parent.n_clusters,
            dim=emb.dim,
            itemsize=4,
            chunk_rows=self.chunk_rows,
            mask_url=parent.url("sizes"),  # an empty cluster is not handed up
        )

    def plan(self, limits: Limits) -> StagePlan:
        """Return what running the stage takes."""
        return kmeans_plan(self.title, **self._sizes(), limits=limits)

    def _sizes(self) -> dict[str, Any]:
        """Return what plans of the stage go by."""
        emb = self.emb
        assert emb is not None
        of_rows = self.parent is None
        return {
            "n": self.n_rows,
            "d": emb.dim,
            "itemsize": emb.dtype.itemsize if of_rows else 4,
            "chunk_rows": self.chunk_rows,
            "config": self.config,
            "split_bytes": PART_BYTES,
            "local": of_rows and emb.rows.is_local,
        }

    def execute(self, run: Any) -> dict[str, Any]:
        """Fit, resample, split or assign, and write the result."""
        config = self.config
        source = self.source()
        working = working_memory(**self._sizes(), limits=run.limits)
        blocks = open_blocks(run, source, config.metric, "rows", working)
        k = config.n_clusters
        if not len(blocks):
            raise ValueError(f"{self.title}: no row is left to cluster; loosen within")
        if len(blocks) < k:
            run.warn(
                f"{self.title}: only {len(blocks)} rows to cluster, so {len(blocks)} clusters instead of {k}"
            )
            k = len(blocks)
        given = self.inputs["init"].values if config.init == "array" else None
        saved = run.checkpoint
        centroids = saved.get("base")
        width, known = saved.get("width", 0), None
        if config.init == "k-means++" and not is_lloyds(config.algorithm, len(blocks), blocks.dim, k):
            run.note(0, "directions")
            blocks = with_directions(run, blocks, config.seed, saved.get("width"))
            width = 0 if blocks.narrow is None else blocks.narrow.blocks.dim
        for step in range(int(saved.get("step", 0)), config.resamples + 1):
            what = f"resampling {step}/{config.resamples}: " if step else ""
            share = (step / (config.resamples + 1), 0.95 / (config.resamples + 1))
            subset = blocks
            if step and resamples_whole(run, blocks, k, config):
                run.note(share[0], what.removesuffix(": "))
                name, count, known = fit_resampled(run, blocks, k, config, step, centroids, known)
            elif step:
                subset = resample(run, blocks, centroids, k, config, step)
                if width and not is_lloyds(config.algorithm, len(subset), subset.dim, k):
                    subset = narrowed(run, subset, run.scratch(NAME), width, f"resample-{step}")
                name, count = "", len(subset)
            else:
                name, count = "", len(blocks)
            if count < k:
                run.warn(f"{self.title}: a resampled subset has {count} rows for {k} clusters; skipped")
                continue
            centroids = name or fit(run, subset, k, config, step, centroids, given, share, what, width)
            run.save(step=step + 1, base=centroids, width=width)
        run.note(0.95, "assign")
        if config.n_splits > 1:
            return split_clusters(run, blocks, centroids, k, config, source, centroid_chunk(source.dim))
        return self._finish(run, blocks, centroids, k, source)

    def _finish(
        self, run: Any, blocks: RowBlocks, centroids: str, k: int, source: RowSource
    ) -> dict[str, Any]:
        """Assign every row to the final centroids and write all arrays."""
        config = self.config
        lloyds = is_lloyds(config.algorithm, len(blocks), blocks.dim, k)
        if config.algorithm == "two-level" and not lloyds:
            seed = derive_seed(config.seed, "assign", k)
            assigned, sizes, recall = assign_two_level(
                run, blocks, centroids, k, config.metric, seed, "final"
            )
            figures = write_clustering(run, blocks, assigned, centroids, sizes, source)
            return {**figures, "recall": recall}
        assigned, centroids, sizes = assign_blocks(
            run, blocks, centroids, k, config.metric, "final", reseed=True
        )
        return write_clustering(run, blocks, assigned, centroids, sizes, source)


def kmeans(
    emb: Embeddings,
    n_clusters: int,
    *,
    metric: str = "l2",
    init: Any = "k-means++",
    algorithm: str = "lloyd",
    n_iters: int = 50,
    tol: float | None = None,
    n_init: int = 1,
    within: Any = None,
    seed: int = 0,
) -> Clustering:
    """Cluster the rows of a pool by k-means (Lloyd's algorithm). Lazy: nothing runs.

    Parameters
    ----------
    emb
        The pool.
    n_clusters
        Clusters, at most the number of rows.
    metric
        ``l2``, or ``cosine`` for spherical k-means (unit rows, centroids re-normalised).
    init
        ``k-means++`` (greedy; on a uniform sample where all rows would take long or exceed 128 MiB),
        ``k-means||`` (out of core), ``random``, or an array of centroids (n_clusters, d).
    algorithm
        ``lloyd``: each update compares every row with every centroid. ``fast``: seeds from a sample (in two
        levels where there are many), then passes that compare a row with a few hundred near centroids and
        move these beyond the means, with momentum, until at most 10 % of the rows change cluster; then four more,
        one of them with all centroids. Seeds and passes see the rows in the directions that hold 90 % of their
        variance, where those are few. Labels are exact as with ``lloyd``; on embeddings of texts the inertia is
        below that of 20 Lloyd updates, for a third of the work and less the larger n_clusters is.
        ``two-level``: the same without passes over all centroids, for 100 000 clusters and more; labels are the
        nearest of those compared, and ``recall`` says how many of a sample of rows have the exact one.
        Problems so small that there is nothing to gain are solved by ``lloyd`` whatever is given.
    n_iters
        Lloyd updates; fewer only where an update changes nothing, or ``tol`` is reached. For the other
        algorithms the passes at most.
    tol
        Stop when the objective falls by less than this fraction of itself.
    n_init
        Restarts; the one with the smallest inertia is kept.
    within
        Selection (or boolean mask) of the rows to cluster.
    seed
        Same store, settings and seed: the same result, bit for bit.

    Raises
    ------
    TypeError, ValueError
        A value that is not allowed; the message quotes it and what is.
    """
    emb = checked_embeddings(emb)
    inputs: dict[str, Any] = {"emb": emb}
    name = init
    if not isinstance(init, str):
        name, inputs["init"] = "array", GivenArray(_checked_centroids(init, emb.dim, metric))
    else:
        check_choice("init", init, INITS)  # the config knows "array" as well, which stands for a real one
    config = KMeansConfig(
        n_clusters=n_clusters,
        metric=metric,
        init=name,
        algorithm=algorithm,
        n_iters=n_iters,
        tol=tol,
        n_init=n_init,
        seed=seed,
    )
    if config.n_clusters > len(emb):
        raise ValueError(
            f"n_clusters={n_clusters} is not allowed: the pool has {len(emb)} rows; give at most that"
        )
    if name == "array" and len(inputs["init"].values) != config.n_clusters:
        raise ValueError(
            f"init has {len(inputs['init'].values)} centroids, n_clusters={n_clusters}: give as many centroids"
        )
    selection = selection_or_none(within, emb, len(emb))
    if selection is not None:
        inputs["within"] = selection
    return Clustering(config, inputs)


def _checked_centroids(init: Any, dim: int, metric: str) -> np.ndarray:
    allowed = "give one of 'k-means++', 'k-means||', 'random', or an array"
    if init is None or np.isscalar(init):
        raise TypeError(f"init={init!r} is not allowed: {allowed}")
    try:
        values = np.asarray(init, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(f"init={type(init).__name__} is not allowed: {allowed}") from error
    if values.ndim != 2 or values.shape[1] != dim:
        raise ValueError(
            f"init of shape {values.shape} is not allowed: give centroids of shape (n_clusters, {dim})"
        )
    if not np.isfinite(values).all():
        raise ValueError("init with NaN or infinity is not allowed: give finite centroids")
    if metric == "cosine" and not (values != 0).any(axis=1).all():
        raise ValueError("init with a zero row is not allowed for metric='cosine': it has no direction")
    return values
