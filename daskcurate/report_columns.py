"""The columns of the native table: what happened to every row of the pool, and why."""

from typing import Any

import dask.array as da
import numpy as np

from daskcurate.hierarchy import Hierarchy
from daskcurate.kmeans import Clustering
from daskcurate.selection import CombinedSelection, Selection, ThresholdSelection

KEPT = "kept"


def selection_columns(selection: Selection) -> dict[str, da.Array]:
    """Return row, id, keep, count, clusters, distance, max_similarity, duplicate_of and reason, (n,) each.

    ``reason`` is ``kept``, or why the first stage that dropped the row did: ``duplicate``, ``pruned``,
    ``not sampled`` or ``excluded`` (by a mask or a combination of selections).
    """
    counts = selection.counts
    columns: dict[str, da.Array] = {
        "row": da.arange(selection.n_rows, chunks=counts.chunks, dtype=np.int64),
        "id": selection.ids,
        "keep": counts > 0,
        "count": counts.astype(np.int32),
    }
    for name, (node, level, _) in selection.clusterings().items():
        columns[name] = Hierarchy(node.chain()).flat_labels(level)
        if "distance" not in columns and node.emb is not None:
            columns["distance"] = node.chain()[0].distances
    dedup = _dedup_of(selection)
    if dedup is not None:
        columns["max_similarity"], columns["duplicate_of"] = dedup.max_similarity, dedup.duplicate_of
    columns["reason"] = _reasons(selection)
    return _aligned(columns, counts.chunks)


def clustering_columns(clustering: Clustering) -> dict[str, da.Array]:
    """Return row, id, cluster and distance, (n,) each."""
    return hierarchy_columns(Hierarchy(clustering.chain()))


def hierarchy_columns(tree: Hierarchy) -> dict[str, da.Array]:
    """Return row, id, distance and the cluster at every level, (n,) each."""
    labels, emb = tree.levels[0].labels, tree.emb
    rows = da.arange(tree.n_rows, chunks=labels.chunks, dtype=np.int64)
    columns: dict[str, da.Array] = {"row": rows, "id": rows if emb is None else emb.ids}
    single = len(tree.levels) == 1
    for level in range(1, len(tree.levels) + 1):
        columns["cluster" if single else f"cluster_level_{level}"] = tree.flat_labels(level)
    if emb is not None:
        columns["distance"] = tree.levels[0].distances
    return _aligned(columns, labels.chunks)


def _aligned(columns: dict[str, da.Array], chunks: Any) -> dict[str, da.Array]:
    return {
        name: column if column.chunks == chunks else column.rechunk(chunks)
        for name, column in columns.items()
    }


def _dedup_of(selection: Selection) -> Any:
    for step in reversed(selection.history()):
        found = step.inputs["of"] if isinstance(step, ThresholdSelection) else step
        if hasattr(found, "max_similarity"):
            return found
    return None


def _reasons(selection: Selection) -> da.Array:
    steps = selection.history()
    words = [step.reason for step in steps]
    if isinstance(selection, CombinedSelection) and len(steps) == 1:
        words = ["excluded"]
    counts = [step.counts.rechunk(selection.counts.chunks) for step in steps]
    return da.map_blocks(_reason, *counts, words=words, dtype=np.dtype("U12"))


def _reason(*counts: np.ndarray, words: list[str]) -> np.ndarray:
    found = np.full(counts[-1].shape, KEPT, dtype="U12")
    dropped = counts[-1] <= 0
    for count, word in zip(reversed(counts), reversed(words), strict=True):
        found[dropped & (count <= 0)] = word  # an earlier stage, seen later here, has the last word
    return found
