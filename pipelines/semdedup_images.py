"""SemDeDup on image embeddings: 440 million rows.

Source: Abbas et al. 2023, "SemDeDup: Data-efficient learning at web-scale through semantic deduplication"
(arXiv 2303.09540), the setting for LAION-440M: spherical k-means with 50 000 clusters and 100 iterations;
of rows more similar than 1 - eps within a cluster, those far from the centroid are kept.

Change for your data: ``eps``. On CLIP embeddings of LAION-440M the paper kept 72 % of the rows at 0.03,
63 % at 0.07, 50 % at 0.124 and 40 % at 0.165; other models and pools differ. One run answers for every
eps: ``dedup.at(0.03)`` and ``dedup.at_fraction(0.5)`` look the stored similarities up.
"""

from typing import Any

import daskcurate as dc
from pipelines.common import FULL, ExportSpec, Recipe, Scale


def build(emb: dc.Embeddings, scale: Scale = FULL) -> dict[str, Any]:
    """Return the lazy stages."""
    cells = dc.kmeans(emb, n_clusters=scale(50_000), metric="cosine", init="random", n_iters=100, seed=0)
    dedup = dc.semantic_dedup(emb, cells, eps=0.07, keep="hard", rule="earlier", scope="cluster")
    return {"cells": cells, "dedup": dedup}


RECIPE = Recipe(
    build,
    rows=440_000_000,
    exports=(
        ExportSpec("kept.npy", "dedup"),
        ExportSpec("removed.txt", "dedup", "removed-ids"),
        ExportSpec("rows.parquet", "dedup"),
    ),
)

if __name__ == "__main__":
    RECIPE.main()
