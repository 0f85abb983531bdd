"""Curate training data by embeddings, out of core, on Dask.

From a pool of embeddings to a curated set: hierarchical k-means with resampling and balanced sampling
(Vo et al. 2024), SemDeDup, and density-based pruning. Stages are lazy; :func:`compute` runs what is
missing in a run store.
"""

from daskcurate.choosing import EpsChoice, KChoice, choose_eps, choose_k
from daskcurate.dedup import SemanticDedup, semantic_dedup
from daskcurate.embedding import EmbeddingError, embed
from daskcurate.embeddings import Embeddings, open_embeddings
from daskcurate.hierarchy import Hierarchy, hierarchical_kmeans
from daskcurate.io.export import export
from daskcurate.io.ingest import ingest
from daskcurate.io.inspection import Inspection, inspect_source
from daskcurate.io.subset import subset
from daskcurate.kmeans import Clustering, kmeans
from daskcurate.nodes import NotComputedError
from daskcurate.planner import plan
from daskcurate.planning import Plan, PlanError
from daskcurate.pruning import density_prune, prototype_prune, random_prune
from daskcurate.report import write_report
from daskcurate.runner import compute
from daskcurate.sampling import hierarchical_sample
from daskcurate.selection import Selection
from daskcurate.store import StoreError

__version__ = "0.1.0"

__all__ = [
    "Clustering",
    "EmbeddingError",
    "Embeddings",
    "EpsChoice",
    "Hierarchy",
    "KChoice",
    "Inspection",
    "NotComputedError",
    "Plan",
    "PlanError",
    "Selection",
    "SemanticDedup",
    "StoreError",
    "choose_eps",
    "choose_k",
    "compute",
    "density_prune",
    "embed",
    "export",
    "hierarchical_kmeans",
    "hierarchical_sample",
    "ingest",
    "inspect_source",
    "kmeans",
    "open_embeddings",
    "plan",
    "prototype_prune",
    "random_prune",
    "semantic_dedup",
    "subset",
    "write_report",
]
