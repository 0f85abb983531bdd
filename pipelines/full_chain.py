"""The full chain: dedup, prune, hierarchical k-means, sample, for about a million rows.

Sources: SemDeDup (arXiv 2303.09540), density-based pruning (arXiv 2401.04578), hierarchical k-means with
resampling and balanced sampling (arXiv 2405.15613), each restricted to the rows that the one before left.
Other than in ``quickstart``, the pruning has a clustering of its own, of the deduplicated rows, with fewer
and broader clusters; and the tree has three levels.

Change for your data: ``eps`` (see ``semdedup_images``), ``keep_fraction``, ``target_size``. Leave a stage
out by handing its ``within`` on: each is a pure function of what it is given.
"""

from typing import Any

import daskcurate as dc
from pipelines.common import FULL, ExportSpec, Recipe, Scale


def build(emb: dc.Embeddings, scale: Scale = FULL) -> dict[str, Any]:
    """Return the lazy stages."""
    cells = dc.kmeans(emb, n_clusters=scale(2000), metric="cosine", seed=0)
    dedup = dc.semantic_dedup(emb, cells, eps=0.05, keep="hard", rule="earlier")
    concepts = dc.kmeans(emb, n_clusters=scale(200), metric="cosine", within=dedup, seed=0)
    prune = dc.density_prune(concepts, keep_fraction=0.5, temperature=0.1, within=dedup)
    tree = dc.hierarchical_kmeans(
        emb,
        n_clusters=[scale(10_000), scale(1000), scale(100)],
        sample_sizes=[20, 5, 5],
        n_resamples=10,
        within=prune,
        seed=0,
    )
    picks = dc.hierarchical_sample(tree, target_size=scale(100_000), strategy="random", seed=0)
    return {
        "cells": cells,
        "dedup": dedup,
        "concepts": concepts,
        "prune": prune,
        "tree": tree,
        "picks": picks,
    }


RECIPE = Recipe(
    build,
    rows=1_000_000,
    exports=(ExportSpec("picks.npy", "picks"), ExportSpec("picks.parquet", "picks")),
)

if __name__ == "__main__":
    RECIPE.main()
