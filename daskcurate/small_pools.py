"""Comparing the rows of clusters of a pool that every worker can hold: each worker takes some clusters whole."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from dask.delayed import Delayed

from daskcurate.device import on_device
from daskcurate.kernels import similarity as kernel
from daskcurate.kernels.similarity import EarlierMatch
from daskcurate.kernels.threads import spread
from daskcurate.members import Members, SortKey, load_labels
from daskcurate.planning import REGROUPED_ROW_BYTES, Limits

WHOLE_OPERATIONS = 50_000_000_000
"""Work of each thread, some tenths of a second to a second, up to which the rows of a small pool are not regrouped
over the cluster, which would take longer: a task of each worker reads all of them, and compares its share."""
SHARES = 8
"""Such tasks, at most: each reads the whole pool."""


def fits_shares(limits: Limits, n_rows: int, sizes: np.ndarray, dim: int, itemsize: int) -> bool:
    """Return whether :func:`match_share` compares the rows of a pool of ``n_rows``, rather than many tasks.

    ``sizes`` (k,) are the rows of each cluster, ``itemsize`` the bytes of a number as stored. The result is the same
    to the bit. No cluster may be so large that one thread is left with it.
    """
    work = dim * (sizes.astype(np.float64) ** 2)
    return (
        n_rows * (dim * itemsize + REGROUPED_ROW_BYTES) <= limits.small_regroup_bytes
        and work.sum() <= WHOLE_OPERATIONS * limits.host_threads
        and work.max(initial=0) * limits.host_threads <= max(work.sum(), WHOLE_OPERATIONS / 10)
    )


def share_count(limits: Limits) -> int:
    """Return how many tasks share a small pool: one a worker; on GPUs one, whose products need no help."""
    return 1 if limits.on_gpu else min(limits.n_workers, SHARES)


_TURN_ROWS = 2048
"""Rows of the clusters that a thread compares in turn: enough that turns cost nothing, few beside a small pool."""


class Share(NamedTuple):
    """The matches of some rows of a pool."""

    numbers: np.ndarray
    """(m,) the rows."""
    similarity: np.ndarray
    """(m,) float32, of each to its match; -1 where there is no earlier row."""
    match: np.ndarray
    """(m,) row numbers; -1 where there is no earlier row."""


def share_tasks(run: Any, members: Members, key: SortKey, rule: str, eps: float) -> list[Delayed]:
    """Return lazy tasks, one a worker, that match the rows of all clusters (see :func:`match_share`)."""
    limits = run.limits
    parts = share_count(limits)
    threads = 1 if limits.on_gpu else max(limits.threads_per_worker, limits.host_threads // parts)
    return [
        run.task_on(
            i, match_share, members, key, rule, eps, i, parts, name="dedup-compare", key=i, threads=threads
        )
        for i in range(parts)
    ]


def match_share(members: Members, key: SortKey, rule: str, eps: float, part: int, parts: int) -> Share:
    """Return the match of every row of some clusters, one of ``parts`` shares of about equal work.

    A worker process each: threads of one would wait for each other wherever NumPy is called.
    """
    labels = load_labels(members, 0, members.n_rows)
    place, owner = _places(labels, members.n_clusters, parts)
    inside = np.flatnonzero((owner == part)[labels] & (labels >= 0))
    place = place[labels[inside]]
    order = np.lexsort((key.load_all(members)[inside], place))
    place, order = place[order], inside[order]
    rows = _read_in_order(members, order)
    edges = edges_of(place)
    found = EarlierMatch(np.empty(len(order), np.float32), np.empty(len(order), np.int64))

    def compare(first: int, last: int) -> None:
        start, stop = edges[first], edges[last]
        own = on_device(kernel.match_clusters)(
            rows[start:stop], [edge - start for edge in edges[first : last + 1]], rule, eps
        )
        found.similarity[start:stop], found.position[start:stop] = own

    turns = kernel.batches(edges, _TURN_ROWS)
    spread(compare, [first for first, _ in turns], [last for _, last in turns])
    return Share(order, found.similarity, row_numbers(found, order, edges))


def _places(labels: np.ndarray, n_clusters: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each cluster's place among them, the largest first, and the part that compares its rows, (k,) each.

    Clusters of about one size are neighbours, which the kernel looks at together. Parts take turns, to and fro.
    """
    sizes = np.bincount(labels[labels >= 0], minlength=n_clusters)
    order = np.argsort(-sizes, kind="stable")
    place, owner = np.empty_like(order), np.empty_like(order)
    turn = np.arange(len(order))
    place[order] = turn
    owner[order] = np.minimum(turn % (2 * parts), 2 * parts - 1 - turn % (2 * parts))
    return place, owner


def _read_in_order(members: Members, order: np.ndarray) -> np.ndarray:
    """Return the rows with numbers ``order``, each written to its place as its chunk is read."""
    source = members.source
    assert source is not None
    place = np.full(members.n_rows, -1, np.int64)
    place[order] = np.arange(len(order))
    rows = np.empty((len(order), source.dim), f"f{source.itemsize}")

    def read(start: int, stop: int) -> None:
        at = place[start:stop]
        wanted = at >= 0
        chunk = source.read(start, stop)
        rows[at if wanted.all() else at[wanted]] = chunk if wanted.all() else chunk[wanted]

    spread(read, *zip(*members.ranges, strict=True))
    return rows


def edges_of(labels: np.ndarray) -> list[int]:
    """Return where each cluster starts, of ascending labels, and their number."""
    change = labels[1:] != labels[:-1]
    return np.flatnonzero(np.r_[True, change, True]).tolist() if len(labels) else [0]


def row_numbers(found: EarlierMatch, numbers: np.ndarray, edges: Sequence[int] | None = None) -> np.ndarray:
    """Return the row numbers of matches, whose positions count from the start of one cluster, or of each."""
    position = np.maximum(found.position, 0)
    if edges is not None:
        position += np.repeat(np.array(edges[:-1], np.int64), np.diff(edges))
    return np.where(found.position >= 0, numbers[position], -1)
