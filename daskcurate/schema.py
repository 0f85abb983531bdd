"""Every array of a run store, declared once: name, dtype, dimensions and meaning.

The store checks each array against its declaration when it is made and when it is read.
"""

from dataclasses import dataclass

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ArraySpec:
    """One declared array."""

    name: str
    dtype: str
    dims: tuple[str, ...]
    meaning: str
    fill: float | int


def _spec(name: str, dtype: str, dims: str, meaning: str, fill: float | int = 0) -> ArraySpec:
    return ArraySpec(name, dtype, tuple(dims.split()), meaning, fill)


_CLUSTERING = (
    _spec("centroids", "float32", "clusters dim", "centre of each cluster"),
    _spec("labels", "int32", "rows", "cluster of each row; -1 outside the rows clustered", -1),
    _spec(
        "distances",
        "float32",
        "rows",
        "distance to the own centroid: L2, or 1 - cos; NaN outside",
        float("nan"),
    ),
    _spec("sizes", "int64", "clusters", "rows of each cluster"),
)
_KEPT = _spec("counts", "uint8", "rows", "1 where the row is kept")
_ALLOCATION = (
    _KEPT,
    _spec("per_cluster", "int64", "clusters", "rows kept of each cluster"),
    _spec("cluster_sizes", "int64", "clusters", "rows of each cluster before"),
)

SCHEMA: dict[str, tuple[ArraySpec, ...]] = {
    "kmeans": _CLUSTERING,
    "clustering": _CLUSTERING,
    "semantic_dedup": (
        _KEPT,
        _spec(
            "max_similarity",
            "float32",
            "rows",
            "largest cos to an earlier row; -1: none (scope global: none above 1 - eps), NaN: outside",
            float("nan"),
        ),
        _spec("duplicate_of", "int64", "rows", "the row that attains it; -1: none", -1),
    ),
    "density_prune": (
        *_ALLOCATION,
        _spec("intra", "float64", "clusters", "mean cos distance of the members to their centroid"),
        _spec("inter", "float64", "clusters", "mean cos distance to the nearest other centroids"),
        _spec("share", "float64", "clusters", "share of the target before bounds"),
    ),
    "prototype_prune": _ALLOCATION,
    "random_prune": (_KEPT,),
    "hierarchical_sample": (
        _spec("counts", "int32", "rows", "how often the row is picked"),
        _spec("targets", "int64", "clusters", "rows asked of each level-1 cluster"),
    ),
    "combine": (_spec("counts", "int32", "rows", "how often the row is kept"),),
    "threshold": (_KEPT,),
    "given": (_spec("counts", "int32", "rows", "how often the row is kept"),),
}


def spec_of(kind: str, name: str) -> ArraySpec:
    """Return the declaration of array ``name`` of a stage kind."""
    for spec in SCHEMA[kind]:
        if spec.name == name:
            return spec
    raise KeyError(f"stage kind {kind!r} declares no array {name!r}: {[s.name for s in SCHEMA[kind]]}")
