"""Hierarchical k-means and balanced sampling on a small pool: 100 000 rows of width 256.

Source: Vo et al. 2024, "Automatic Data Curation for Self-Supervised Learning" (arXiv 2405.15613), the
two-level setting for a small pool: 5000 and 1000 clusters, each level fitted again 10 times on the 10 (3)
rows of every cluster closest to its centroid, and 20 000 rows sampled from the tree.

Change for your data: ``n_clusters``, the first level about a twentieth of the rows; ``sample_sizes``, half
the mean cluster size of each level; ``target_size``. Drop duplicates first (see ``full_chain``) where the
pool has many.
"""

from typing import Any

import daskcurate as dc
from pipelines.common import FULL, ExportSpec, Recipe, Scale


def build(emb: dc.Embeddings, scale: Scale = FULL) -> dict[str, Any]:
    """Return the lazy stages."""
    tree = dc.hierarchical_kmeans(
        emb,
        n_clusters=[scale(5000), scale(1000)],
        sample_sizes=[10, 3],
        n_resamples=10,
        sample_strategy="closest",
        metric="l2",
        init="k-means++",
        n_iters=50,
        seed=0,
    )
    picks = dc.hierarchical_sample(tree, target_size=scale(20_000), multiplier=1, strategy="random", seed=0)
    return {"tree": tree, "picks": picks}


RECIPE = Recipe(
    build,
    rows=100_000,
    exports=(ExportSpec("picks.npy", "picks"), ExportSpec("picks.parquet", "picks")),
)

if __name__ == "__main__":
    RECIPE.main()
