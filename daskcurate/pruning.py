"""Pruning by clusters: density-based (arXiv 2401.04578), by prototypes (SSP, Sorscher 2022), and at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskcurate.config import BudgetConfig, DensityPruneConfig, PrototypePruneConfig, RandomPruneConfig
from daskcurate.extremes import float_bits, smallest
from daskcurate.given import GivenClustering
from daskcurate.hierarchy import Hierarchy
from daskcurate.kernels.allocation import bounded_allocation, softmax_shares
from daskcurate.kernels.centroids import mean_nearest_cosine, nearest_bytes
from daskcurate.kernels.draws import derive_seed, row_hash
from daskcurate.kmeans import Clustering
from daskcurate.members import (
    Members,
    SortKey,
    cluster_cosines,
    cluster_sizes,
    load_cosines,
    load_labels,
    member_ranks,
    read_small,
    restricted,
    write_counts,
    write_small,
)
from daskcurate.nodes import checked_embeddings
from daskcurate.rows import RowSource, block_numbers
from daskcurate.selection import Selection, selection_or_none
from daskcurate.stage_plans import ChunkSteps
from daskcurate.store import write_block

if TYPE_CHECKING:
    from daskcurate.embeddings import Embeddings

INTER_TILE = 2048
"""Centroids whose nearest others one task finds."""


def rows_clustering(clustering: Any) -> Clustering:
    """Return the clustering of the rows: the one given, or the first level of a hierarchy."""
    found = clustering.levels[0] if isinstance(clustering, Hierarchy) else clustering
    if not isinstance(found, Clustering):
        raise TypeError(f"clustering={clustering!r} is not allowed: give a Clustering or a Hierarchy")
    if found.parent is not None:
        raise ValueError(
            f"clustering clusters the {found.n_rows} clusters of a level below, not rows: give levels[0] of the tree"
        )
    if isinstance(found, GivenClustering) and not found.has_vectors:
        raise ValueError("clustering has labels alone and no distances: give emb= to Hierarchy.from_labels")
    return found


def _target(run: Any, config: BudgetConfig, rows_in: int) -> int:
    """Return how many rows are kept, with a warning where more are asked for than there are."""
    if config.target_size is not None and config.target_size > rows_in:
        run.warn(f"target_size={config.target_size} is more than the {rows_in} rows there are: all are kept")
    return config.rows_kept(rows_in)


class DensityPrune(Selection):
    """Rows kept by density-based pruning; ``per_cluster`` says how many of each cluster."""

    kind = "density_prune"
    reason = "pruned"
    chunk_steps = ChunkSteps(tasks=5, reads=6, rounds=4, kept=6, cosines=2)

    @property
    def title(self) -> str:
        """What progress displays call the stage."""
        return f"prune by {self.config.density}"

    def _other_task(self, k: int, d: int) -> int:
        """Return the bytes of a task that finds the nearest others of centroids."""
        # all as read, and those of clusters with rows
        return 2 * 4 * k * d + nearest_bytes(k, d, self.config.n_neighbors)

    @property
    def per_cluster(self) -> np.ndarray:
        """(k,) int64: rows kept of each cluster."""
        return self.read("per_cluster")

    @property
    def cluster_table(self) -> dict[str, np.ndarray]:
        """What the allocation went by, a column (k,) a name, in the order of the clusters.

        ``cluster_sizes`` and ``per_cluster``: rows to prune and rows kept, int64. ``intra``: mean cos distance of
        these rows to their centroid; ``inter``: of the centroid to its nearest others; ``complexity``: their product;
        float64, NaN for a cluster without rows. ``share``: of the target before bounds, float64.
        """
        table = {
            name: self.read(name) for name in ("cluster_sizes", "per_cluster", "intra", "inter", "share")
        }
        return {**table, "complexity": table["intra"] * table["inter"]}

    def execute(self, run: Any) -> dict[str, Any]:
        """Measure the clusters, share the target out, and keep the first rows of each."""
        config = self.config
        members = Members.of(self.inputs["clustering"], self.within)
        run.note(0.1, "measure clusters")
        sizes = cluster_sizes(run, members)
        rows_in = int(sizes.sum())
        intra = cluster_cosines(run, members) / np.maximum(sizes, 1)
        intra[sizes == 0] = np.nan
        inter = _inter(run, members, sizes, config.n_neighbors)
        target = _target(run, config, rows_in)
        shares = _shares(config, sizes, intra * inter)
        kept = self._allocate(run, shares, target, sizes)
        for name, values in (
            ("per_cluster", kept), ("cluster_sizes", sizes), ("intra", intra), ("inter", inter), ("share", shares),
        ):  # fmt: skip
            write_block(run.declare(name, values.shape, len(values)), 0, values)
        run.note(0.4, "rank rows")
        key = SortKey.for_keep(config.keep, derive_seed(config.seed, "prune"))
        ranks = member_ranks(run, members, key, sizes)
        quota = run.store.stage_url(self.name, "per_cluster")
        counts = [
            run.task(_within_quota, members, rank, quota, *r, name="keep-rows", key=r[0])
            for rank, r in zip(ranks, members.ranges, strict=True)
        ]
        return {"total": write_counts(run, members, counts, "uint8"), "rows_in": rows_in}

    def _allocate(self, run: Any, shares: np.ndarray, target: int, sizes: np.ndarray) -> np.ndarray:
        equal = int(self.config.balance * target / len(sizes))
        lower = np.minimum(sizes, max(1, equal))
        if lower.sum() > target:
            run.warn(
                f"{int(lower.sum())} rows would be needed for every cluster to keep its least, of a target of "
                f"{target}: clusters may keep none"
            )
            lower = np.zeros_like(sizes)
        return bounded_allocation(shares, target, sizes, lower)


def _shares(config: DensityPruneConfig, sizes: np.ndarray, complexity: np.ndarray) -> np.ndarray:
    if config.density == "size":
        return sizes / max(1, sizes.sum())
    if config.density == "uniform":
        return (sizes > 0) / max(1, (sizes > 0).sum())
    return softmax_shares(complexity, config.temperature, sizes)


def _inter(run: Any, members: Members, sizes: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Return each cluster's mean cos distance to its nearest others, (k,); NaN for empty ones."""
    alive = np.flatnonzero(sizes > 0)
    urls = members.centroids_url, write_small(run, "alive", alive)
    parts = [
        run.task(_inter_tile, urls, i, n_neighbors, name="inter-cluster", key=i)
        for i in range(0, len(alive), INTER_TILE)
    ]
    inter = np.full(members.n_clusters, np.nan)
    if parts:
        inter[alive] = np.concatenate(run.gather(parts, "nearest centroids"))
    return inter


def _inter_tile(urls: tuple[str, str], start: int, n_neighbors: int) -> np.ndarray:
    centroids, alive = (read_small(url) for url in urls)
    if len(alive) < len(centroids):
        centroids = centroids[alive]
    return mean_nearest_cosine(centroids, start, min(start + INTER_TILE, len(alive)), n_neighbors)


def _within_quota(members: Members, ranks: np.ndarray, quota_url: str, start: int, stop: int) -> np.ndarray:
    labels = load_labels(members, start, stop)
    return (labels >= 0) & (ranks < read_small(quota_url)[np.maximum(labels, 0)])


def density_prune(
    clustering: Clustering | Hierarchy,
    *,
    keep_fraction: float | None = None,
    target_size: int | None = None,
    temperature: float = 0.1,
    n_neighbors: int = 20,
    balance: float = 0.0,
    density: str = "intra*inter",
    keep: str = "hard",
    within: Any = None,
    seed: int = 0,
) -> DensityPrune:
    """Keep more rows of complex clusters, fewer of simple ones (arXiv 2401.04578). Lazy.

    A cluster's complexity is its members' mean cos distance to the centroid times the centroid's mean cos
    distance to its nearest others; shares are the softmax of complexity / temperature, fitted exactly
    to the cluster sizes. The kept rows add up to the target exactly. Deduplicate first.

    Parameters
    ----------
    clustering
        Clustering of a pool's rows (a hierarchy stands for its first level).
    keep_fraction, target_size
        Rows kept: a fraction of those within (half rows rounded up), or a number. Give one.
    temperature
        tau of the softmax.
    n_neighbors
        Nearest other centroids that the distance between clusters is averaged over.
    balance
        Every cluster keeps at least this fraction of an equal share (and one row).
    density
        ``intra*inter``, ``size`` (in proportion) or ``uniform`` (equal shares).
    keep
        Rows kept of a cluster: ``hard`` (farthest from the centroid first), ``easy`` or ``random``.
    within
        Selection (or boolean mask) of the rows to prune; sizes and distances count those alone.
    seed
        Keys the random order.
    """
    found = rows_clustering(clustering)
    config = DensityPruneConfig(
        keep_fraction=keep_fraction,
        target_size=target_size,
        temperature=temperature,
        n_neighbors=n_neighbors,
        balance=balance,
        density=density,
        keep=keep,
        seed=seed,
    )
    return DensityPrune(config, _inputs(found, within))


def _inputs(clustering: Clustering, within: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"clustering": clustering}
    selection = selection_or_none(within, clustering.emb, clustering.n_rows)
    if selection is not None:
        inputs["within"] = selection
    return inputs


class PrototypePrune(Selection):
    """Rows kept by one ranking of all rows by distance to the nearest centroid."""

    kind = "prototype_prune"
    reason = "pruned"
    chunk_steps = ChunkSteps(tasks=7, reads=3, rounds=8, kept=2, cosines=1)

    @property
    def per_cluster(self) -> np.ndarray:
        """(k,) int64: rows kept of each cluster."""
        return self.read("per_cluster")

    def execute(self, run: Any) -> dict[str, Any]:
        """Keep each cluster's share of extreme rows, then the most extreme of the rest."""
        config = self.config
        members = Members.of(self.inputs["clustering"], self.within)
        sizes = cluster_sizes(run, members)
        target = _target(run, config, int(sizes.sum()))
        floor = int(config.class_balance * target / max(1, int((sizes > 0).sum())))
        least = np.minimum(sizes, floor)
        ranks: list[Any] = [None] * len(members.ranges)
        if floor:
            ranks = run.persist(
                member_ranks(run, members, SortKey.for_keep(config.keep, 0), sizes), "rank rows"
            )
        hard = config.keep == "hard"
        keys = run.persist(
            [
                run.task(_extreme_keys, members, rank, floor, hard, *r, name="extreme-keys", key=r[0])
                for rank, r in zip(ranks, members.ranges, strict=True)
            ],
            "sort keys",
        )
        chosen = smallest(run, keys, target - int(least.sum()), "extreme")
        counts = run.persist(
            [
                run.task(_chosen, members, rank, floor, picked, *r, name="keep-rows", key=r[0])
                for rank, picked, r in zip(ranks, chosen, members.ranges, strict=True)
            ],
            "select",
        )
        total = write_counts(run, members, counts, "uint8")
        kept = cluster_sizes(run, restricted(members, run.store.stage_url(self.name, "counts")), "kept")
        write_block(run.declare("per_cluster", kept.shape, len(kept)), 0, kept)
        write_block(run.declare("cluster_sizes", sizes.shape, len(sizes)), 0, sizes)
        return {"total": total, "rows_in": int(sizes.sum())}


def _extreme_keys(
    members: Members, ranks: np.ndarray | None, floor: int, hard: bool, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    distances = load_cosines(members, start, stop).astype(np.float32)
    eligible = load_labels(members, start, stop) >= 0
    if ranks is not None:
        eligible &= ranks >= floor
    return float_bits(-distances if hard else distances), eligible


def _chosen(
    members: Members, ranks: np.ndarray | None, floor: int, picked: np.ndarray, start: int, stop: int
) -> np.ndarray:
    if ranks is None:
        return picked
    return picked | ((load_labels(members, start, stop) >= 0) & (ranks < floor))


def prototype_prune(
    clustering: Clustering | Hierarchy,
    *,
    keep_fraction: float | None = None,
    target_size: int | None = None,
    keep: str = "hard",
    class_balance: float = 0.0,
    within: Any = None,
    seed: int = 0,
) -> PrototypePrune:
    """Keep the rows farthest from (or closest to) their prototypes: SSP, Sorscher et al. 2022. Lazy.

    Parameters
    ----------
    clustering
        Clustering of a pool's rows; its centroids are the prototypes.
    keep_fraction, target_size
        Rows kept: a fraction of those within, or a number. Give one.
    keep
        ``hard`` keeps the farthest rows by cos distance, ``easy`` the closest.
    class_balance
        Every cluster keeps at least this fraction of an equal share, of its own most extreme rows.
    within
        Selection (or boolean mask) of the rows to prune.
    seed
        Part of the stage's name; nothing is drawn.
    """
    found = rows_clustering(clustering)
    config = PrototypePruneConfig(
        keep_fraction=keep_fraction,
        target_size=target_size,
        keep=keep,
        class_balance=class_balance,
        seed=seed,
    )
    return PrototypePrune(config, _inputs(found, within))


class RandomPrune(Selection):
    """A uniform random subset."""

    kind = "random_prune"
    reason = "pruned"
    chunk_steps = ChunkSteps(tasks=7, reads=0, rounds=6, kept=1)

    def execute(self, run: Any) -> dict[str, Any]:
        """Keep the rows with the smallest hashes."""
        emb = self.inputs["emb"]
        source = RowSource.of_embeddings(emb, self.within)
        seed = derive_seed(self.config.seed, "random prune")
        keys = run.persist(
            [run.task(_hash_keys, source, seed, *r, name="random-keys", key=r[0]) for r in source.ranges],
            "draw",
        )
        rows_in = sum(
            run.gather([run.task(_eligible, item, name="count-rows", key=i) for i, item in enumerate(keys)])
        )
        target = _target(run, self.config, rows_in)
        chosen = smallest(run, keys, target, "random")
        url = run.declare("counts", (source.n_rows,), source.chunk_rows)
        writes = [
            run.task(_write_chosen, url, r[0], picked, name="write-counts", key=r[0])
            for picked, r in zip(chosen, source.ranges, strict=True)
        ]
        return {"total": sum(run.gather(writes, "write")), "rows_in": rows_in}


def _hash_keys(source: RowSource, seed: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(start, stop, dtype=np.int64)
    bits = (row_hash(seed, rows) >> np.uint64(32)).astype(np.uint32)
    return bits, np.isin(rows, block_numbers(source, start, stop), assume_unique=True)


def _eligible(item: tuple[np.ndarray, np.ndarray]) -> int:
    return int(item[1].sum())


def _write_chosen(url: str, start: int, picked: np.ndarray) -> int:
    write_block(url, start, picked.astype(np.uint8))
    return int(picked.sum())


def random_prune(
    emb: Embeddings,
    *,
    keep_fraction: float | None = None,
    target_size: int | None = None,
    within: Any = None,
    seed: int = 0,
) -> RandomPrune:
    """Keep a uniform random subset of exactly the size asked for: the baseline of the others. Lazy.

    Parameters
    ----------
    emb
        The pool.
    keep_fraction, target_size
        Rows kept: a fraction of those within, or a number. Give one.
    within
        Selection (or boolean mask) of the rows to draw from.
    seed
        Keys the draw.
    """
    emb = checked_embeddings(emb)
    config = RandomPruneConfig(keep_fraction=keep_fraction, target_size=target_size, seed=seed)
    inputs: dict[str, Any] = {"emb": emb}
    selection = selection_or_none(within, emb, len(emb))
    if selection is not None:
        inputs["within"] = selection
    return RandomPrune(config, inputs)
