"""The arrays of a clustering in the run store: their chunks, and the tasks that write them."""

import math
from typing import Any

import numpy as np

from daskcurate.lloyd_loop import Assigned
from daskcurate.rows import RowBlocks, RowSource
from daskcurate.store import read_block, write_block

CENTROID_CHUNK_BYTES = 32 << 20


def centroid_chunk(dim: int) -> int:
    """Return the rows of a chunk of centroids."""
    return max(1, CENTROID_CHUNK_BYTES // (4 * max(1, dim)))


def write_clustering(
    run: Any, blocks: RowBlocks, assigned: list[Any], centroids: str, sizes: np.ndarray, source: RowSource
) -> dict[str, Any]:
    """Write labels, distances, sizes and centroids; return the figures to record."""
    urls = [run.declare(name, (source.n_rows,), source.chunk_rows) for name in ("labels", "distances")]
    writes = [
        blocks.numbers_task(
            run,
            i,
            _write_rows,
            urls,
            source.chunk_rows,
            source.n_rows,
            found,
            name="write-labels",
            key=str(i),
        )
        for i, found in enumerate(assigned)
    ]
    inertia = math.fsum(run.gather(writes, "write labels"))
    k, chunk = len(sizes), centroid_chunk(source.dim)
    url = run.declare("centroids", (k, source.dim), chunk)
    run.gather(
        [
            run.task(
                copy_rows, run.scratch(centroids), url, i, min(i + chunk, k), name="write-centroids", key=i
            )
            for i in range(0, k, chunk)
        ]
    )
    write_block(run.declare("sizes", (k,), chunk), 0, sizes)
    return {"n_clusters": k, "rows_in": len(blocks), "inertia": inertia, "n_empty": int((sizes == 0).sum())}


def copy_rows(source: str, target: str, start: int, stop: int) -> None:
    """Copy rows [start, stop) from one array to another."""
    write_block(target, start, read_block(source, start, stop))


def _write_rows(numbers: np.ndarray, urls: list[str], chunk_rows: int, n_rows: int, found: Assigned) -> float:
    """Write the labels and distances of a block's chunks, full length; return its inertia."""
    start = int(numbers[0]) // chunk_rows * chunk_rows
    stop = (int(numbers[-1]) // chunk_rows + 1) * chunk_rows
    length = min(stop, n_rows) - start
    labels, distances = np.full(length, -1, np.int32), np.full(length, np.nan, np.float32)
    labels[numbers - start] = found.labels
    distances[numbers - start] = found.distances
    write_block(urls[0], start, labels)
    write_block(urls[1], start, distances)
    return found.inertia
