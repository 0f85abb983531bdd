"""Quickstart: every stage once, for about 100 000 rows.

Cluster, drop semantic duplicates, prune simple clusters, cluster what is left in two levels, and pick a
balanced set of 20 000 rows.

Change first: ``eps``, the dedup threshold. It depends on the model that made the embeddings: look at pairs
in ``picks.parquet`` (``max_similarity``, ``duplicate_of``) and take the largest at which they are still
duplicates. Then ``keep_fraction`` and ``target_size``, the budget. As clusters, about the square root of
the rows to three times that for ``flat``; for ``tree`` a first level of about 20 rows a cluster.
"""

from typing import Any

import daskcurate as dc
from pipelines.common import FULL, ExportSpec, Recipe, Scale


def build(emb: dc.Embeddings, scale: Scale = FULL) -> dict[str, Any]:
    """Return the lazy stages."""
    flat = dc.kmeans(emb, n_clusters=scale(1000), metric="cosine", seed=0)
    dedup = dc.semantic_dedup(emb, flat, eps=0.05, keep="hard", scope="cluster")
    prune = dc.density_prune(flat, keep_fraction=0.5, temperature=0.1, within=dedup)
    tree = dc.hierarchical_kmeans(
        emb,
        n_clusters=[scale(5000), scale(1000)],
        sample_sizes=[10, 3],
        n_resamples=10,
        within=prune,
    )
    picks = dc.hierarchical_sample(tree, target_size=scale(20_000), multiplier=1, strategy="random")
    return {"flat": flat, "dedup": dedup, "prune": prune, "tree": tree, "picks": picks}


RECIPE = Recipe(
    build,
    rows=100_000,
    exports=(ExportSpec("picks.npy", "picks"), ExportSpec("picks.parquet", "picks")),
)

if __name__ == "__main__":
    RECIPE.main()
