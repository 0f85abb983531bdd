"""SemDeDup on text embeddings: about 100 million documents.

Source: Abbas et al. 2023, "SemDeDup: Data-efficient learning at web-scale through semantic deduplication"
(arXiv 2303.09540), the clustering of the C4 experiments: spherical k-means with 11 000 clusters and 20
iterations, about the square root of the rows; the rows far from the centroid are kept.

Change for your data: ``eps``, which depends on the text encoder more than on anything else. Run once, read
pairs near the threshold (``max_similarity`` and ``duplicate_of`` in ``rows.parquet``), and look any other
eps up with ``dedup.at(eps)``. The value here is a start, not the paper's.
"""

from typing import Any

import daskcurate as dc
from pipelines.common import FULL, ExportSpec, Recipe, Scale


def build(emb: dc.Embeddings, scale: Scale = FULL) -> dict[str, Any]:
    """Return the lazy stages."""
    cells = dc.kmeans(emb, n_clusters=scale(11_000), metric="cosine", init="random", n_iters=20, seed=0)
    dedup = dc.semantic_dedup(emb, cells, eps=0.05, keep="hard", rule="earlier", scope="cluster")
    return {"cells": cells, "dedup": dedup}


RECIPE = Recipe(
    build,
    rows=100_000_000,
    exports=(
        ExportSpec("kept.txt", "dedup", "ids"),
        ExportSpec("removed.txt", "dedup", "removed-ids"),
        ExportSpec("rows.parquet", "dedup"),
    ),
)

if __name__ == "__main__":
    RECIPE.main()
