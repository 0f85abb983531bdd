"""Hierarchical k-means and balanced sampling on a web-scale image pool: 743 million rows.

Source: Vo et al. 2024, "Automatic Data Curation for Self-Supervised Learning" (arXiv 2405.15613). Four
levels of 10 M, 500 k, 50 k and 10 k clusters. The first is made in two steps, 100 000 clusters of which
each is split into 100; the others are resampled 10 times with 10, 5 and 3 rows of every cluster.

This is a job for a large cluster: run it with ``--dry-run`` first, against the scheduler that it will use.
The second level, whose 500 000 centroids every worker holds, asks for the most memory. Seeding is
``random``, because k-means++ picks its seeds one after another and would take longer than all else at
these numbers of clusters.

Change for your data: the numbers of clusters in proportion to the rows (``--scale`` does that), and
``target_size``, the rows that you can train on.
"""

from typing import Any

import daskcurate as dc
from pipelines.common import FULL, ExportSpec, Recipe, Scale


def build(emb: dc.Embeddings, scale: Scale = FULL) -> dict[str, Any]:
    """Return the lazy stages."""
    tree = dc.hierarchical_kmeans(
        emb,
        n_clusters=[scale(100_000), scale(500_000), scale(50_000), scale(10_000)],
        n_splits=[100, 1, 1, 1],
        sample_sizes=[1, 10, 5, 3],
        n_resamples=[0, 10, 10, 10],
        sample_strategy="closest",
        metric="l2",
        init="random",
        n_iters=50,
        seed=0,
    )
    picks = dc.hierarchical_sample(
        tree, target_size=scale(100_000_000), multiplier=1, strategy="random", seed=0
    )
    return {"tree": tree, "picks": picks}


RECIPE = Recipe(
    build,
    rows=743_000_000,
    exports=(ExportSpec("picks.npy", "picks"), ExportSpec("picks.parquet", "picks")),
)

if __name__ == "__main__":
    RECIPE.main()
