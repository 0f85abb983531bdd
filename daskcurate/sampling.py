"""Balanced hierarchical sampling (Vo et al. 2024): as many rows of every concept as there are, up to a cut."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskcurate.config import SampleConfig
from daskcurate.given import GivenClustering
from daskcurate.hierarchy import Hierarchy
from daskcurate.kernels.allocation import copies, hierarchical_targets
from daskcurate.kernels.draws import derive_seed
from daskcurate.kmeans import Clustering
from daskcurate.members import (
    Members,
    SortKey,
    cluster_sizes,
    load_labels,
    member_ranks,
    read_small,
    write_counts,
    write_small,
)
from daskcurate.selection import Selection, selection_or_none
from daskcurate.stage_plans import ChunkSteps
from daskcurate.store import write_block


class HierarchicalSample(Selection):
    """Rows picked from a hierarchy; ``counts`` says how often each."""

    kind = "hierarchical_sample"
    reason = "not sampled"
    chunk_steps = ChunkSteps(tasks=4, reads=4, rounds=2, kept=2)

    @property
    def title(self) -> str:
        """What progress displays call the stage."""
        return f"sample {self.config.target_size}"

    @property
    def n_rows(self) -> int:
        """Rows of the pool."""
        return self.inputs["tree"].chain()[0].n_rows

    @property
    def targets(self) -> np.ndarray:
        """(k,) int64: rows asked of each level-1 cluster."""
        return self.read("targets")

    def execute(self, run: Any) -> dict[str, Any]:
        """Share the target out down the tree, then pick in every level-1 cluster."""
        config = self.config
        levels = self.inputs["tree"].chain()
        members = Members.of(levels[0], self.within, rows=False)
        run.note(0.1, "count rows")
        sizes = cluster_sizes(run, members)
        parents = [level.label_reader()() for level in levels[1:]]
        targets = hierarchical_targets(parents, sizes, config.target_size, config.multiplier, config.seed)
        total = int(targets.sum())
        if total < config.target_size:
            run.warn(
                f"target_size={config.target_size} is more than the {total} rows that "
                f"multiplier={config.multiplier} allows: {total} come back"
            )
        run.note(0.3, "rank rows")
        keys = {
            "random": SortKey("random", seed=derive_seed(config.seed, "pick")),
            "closest": SortKey("distance"),
            "furthest": SortKey("distance", descending=True),
        }
        ranks = member_ranks(run, members, keys[config.strategy], sizes)
        sizes_url = write_small(run, "sizes", sizes)
        targets_url = run.declare("targets", targets.shape, len(targets))
        write_block(targets_url, 0, targets)
        counts = [
            run.task(_copies, members, rank, sizes_url, targets_url, *r, name="pick-rows", key=r[0])
            for rank, r in zip(ranks, members.ranges, strict=True)
        ]
        written = write_counts(run, members, counts, "int32")
        return {"total": written, "rows_in": int(sizes.sum()), "clusters_sampled": int((targets > 0).sum())}


def _copies(
    members: Members, ranks: np.ndarray, sizes: str, targets: str, start: int, stop: int
) -> np.ndarray:
    return copies(ranks, read_small(sizes), read_small(targets), load_labels(members, start, stop))


def hierarchical_sample(
    tree: Hierarchy | Clustering,
    target_size: int,
    *,
    multiplier: int = 1,
    strategy: str = "random",
    within: Any = None,
    seed: int = 0,
) -> HierarchicalSample:
    """Pick ``target_size`` rows, shared evenly over the clusters of every level (arXiv 2405.15613). Lazy.

    Parameters
    ----------
    tree
        Hierarchy, or a flat clustering as a hierarchy of one level.
    target_size
        Rows to pick, repeats counted. More than ``multiplier`` times the rows there are is a warning that
        says how many come back.
    multiplier
        How often a row may be picked at most.
    strategy
        Rows taken within a level-1 cluster: ``random`` (the paper's best), ``closest`` or ``furthest``.
    within
        Selection (or boolean mask) of the rows to pick from.
    seed
        Keys every draw.

    Raises
    ------
    TypeError, ValueError
        A value that is not allowed; the message quotes it and what is.
    """
    if isinstance(tree, Clustering):
        tree = Hierarchy(tree.chain())
    if not isinstance(tree, Hierarchy):
        raise TypeError(f"tree={tree!r} is not allowed: give a Hierarchy (or a Clustering)")
    config = SampleConfig(target_size=target_size, multiplier=multiplier, strategy=strategy, seed=seed)
    first = tree.levels[0]
    if config.strategy != "random" and isinstance(first, GivenClustering) and not first.has_vectors:
        raise ValueError(
            f"strategy={strategy!r} needs distances, which a hierarchy of labels alone lacks: "
            "give emb= to Hierarchy.from_labels, or strategy='random'"
        )
    selection = selection_or_none(within, tree.emb, tree.n_rows)
    inputs: dict[str, Any] = {"tree": tree.levels[-1]}
    if selection is not None:
        inputs["within"] = selection
    return HierarchicalSample(config, inputs)
