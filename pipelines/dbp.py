"""Density-based pruning of image embeddings, after SemDeDup: 440 million rows.

Source: Abbas et al. 2024, "Effective pruning of web-scale datasets based on complexity of concept clusters"
(arXiv 2401.04578). Duplicates go first, or they decide which clusters look dense. The rest is clustered
anew into 500 concepts, and each keeps rows by its complexity: how spread out it is, times how far it is
from its 20 nearest neighbours.

Change for your data: ``keep_fraction``, of the rows that dedup leaves; the 500 concepts (the paper: 500 for
280 M rows, 100 for DataComp medium); ``eps``, as in ``semdedup_images``. A larger ``temperature`` shares
the rows out more evenly.
"""

from typing import Any

import daskcurate as dc
from pipelines.common import FULL, ExportSpec, Recipe, Scale


def build(emb: dc.Embeddings, scale: Scale = FULL) -> dict[str, Any]:
    """Return the lazy stages."""
    cells = dc.kmeans(emb, n_clusters=scale(50_000), metric="cosine", init="random", n_iters=100, seed=0)
    dedup = dc.semantic_dedup(emb, cells, eps=0.07, keep="hard")
    concepts = dc.kmeans(emb, n_clusters=scale(500), metric="cosine", within=dedup, seed=0)
    prune = dc.density_prune(
        concepts,
        keep_fraction=0.5,
        temperature=0.1,
        n_neighbors=20,
        balance=0.0,
        density="intra*inter",
        keep="hard",
        within=dedup,
    )
    return {"cells": cells, "dedup": dedup, "concepts": concepts, "prune": prune}


RECIPE = Recipe(
    build,
    rows=440_000_000,
    exports=(ExportSpec("kept.npy", "prune"), ExportSpec("rows.parquet", "prune")),
)

if __name__ == "__main__":
    RECIPE.main()
