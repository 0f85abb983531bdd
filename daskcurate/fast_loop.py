"""K-means in a fraction of Lloyd's work: seeds of a sample, and passes that compare little and move far.

Most passes compare a row with the centroids of a list only (:mod:`daskcurate.kernels.restricted`), and centroids go
on in the direction of their last moves, which takes fewer passes. Labels pass from one to the next in scratch files,
so that an interrupted run goes on at its last pass. Passes, and the seeding, see the rows in their leading directions
only where these hold most of the variance (:mod:`daskcurate.kernels.leading`). The last update is to the means of the
whole rows.
"""

from typing import Any, NamedTuple

import numpy as np

from daskcurate.arrays import Array, namespace_of, to_host
from daskcurate.config import KMeansConfig
from daskcurate.device import left_on_device, on_device
from daskcurate.kernels import lloyd
from daskcurate.kernels.assign import nearest, unit_rows
from daskcurate.kernels.draws import derive_seed
from daskcurate.kernels.leading import unproject
from daskcurate.kernels.restricted import Listed, Lists, list_of_all, make_lists, nearest_listed
from daskcurate.lloyd_loop import Assigned, assigned_rows, count_sizes, table_of
from daskcurate.remembering import Table, read_centroids, read_directions
from daskcurate.rows import Block, RowBlocks, drawn_rows, tree
from daskcurate.store import read_file, write_file, write_scratch

SETTLED = {"fast": 0.1, "two-level": 0.02}
"""Passes over lists end where at most this share of the rows changed cluster ..."""
TAILS = {"fast": (False, True, False, False), "two-level": (False,)}
"""... and these come after them; True: rows are compared with all centroids."""
RECALL_ROWS = 4096
"""Rows on which the labels of a two-level assignment are compared with the exact ones."""


class How(NamedTuple):
    """What kind of pass it is."""

    seed: int
    """Of the lists."""
    every: bool
    """Whether rows are compared with all centroids, not with lists."""
    goes_on: bool
    """Whether centroids go on in the direction of their last move."""
    plain: bool
    """Whether the update is to the means, and the last."""
    measured: bool
    """Whether the objective is asked for; else it is 0."""


class Moved(NamedTuple):
    """What a pass leaves."""

    partial: lloyd.Partial
    changed: int


def iterate_fast(
    run: Any,
    blocks: RowBlocks,
    config: KMeansConfig,
    name: str,
    state: dict[str, Any],
    start: dict[str, Any],
    seed: int,
    note: Any,
) -> str:
    """Run the passes from a saved one; return the scratch name of the last centroids.

    Parameters
    ----------
    blocks
        With the rows in their leading directions, if they have them, where the seeds lie too: passes compare these.
    state, start
        What the checkpoint keeps besides, and where to go on: as in the exact loop.
    note
        Called with a fraction and a text.
    """
    tail, settled = TAILS[config.algorithm], SETTLED[config.algorithm]
    iteration, current, before = int(start["iteration"]), start["current"], start.get("before")
    previous, end = start["previous"], int(start.get("end", config.n_iters))
    # from rows that are seeds to means centroids move far, and once; those of k-means++ were moved on a sample
    first_move = 0 if config.init == "k-means++" else 1

    def begin() -> list[Any]:
        left = end - iteration
        every = left <= len(tail) and tail[-left]
        how = How(
            derive_seed(seed, iteration), every, iteration > first_move, left == 1, config.tol is not None
        )
        note(iteration / end, f"pass {iteration + 1}")
        return _start_pass(run, blocks, config.metric, before, current, f"{name}-{iteration}", how)

    under_way = begin() if iteration < end else []
    while under_way:
        objective, changed = run.finish(under_way, "pass")[0]
        unused, before, current, iteration = before, current, f"{name}-{iteration}", iteration + 1
        if changed <= settled * len(blocks) or lloyd.fits_tol(previous, objective, config.tol):
            end = min(end, iteration + len(tail))
        previous = objective
        under_way = begin() if iteration < end else []  # the workers go on while this process keeps the books
        run.save(**state, iteration=iteration, current=current, before=before, previous=previous, end=end)
        run.discard(_labels(before))
        if unused is not None:
            run.discard(unused)
    for unused in (_labels(current), before):
        if unused is not None:
            run.discard(unused)
    return current


def _labels(name: str) -> str:
    """Return the scratch name of the labels of the pass that left centroids of a name."""
    return f"{name}-labels"


def _start_pass(
    run: Any, blocks: RowBlocks, metric: str, before: str | None, current: str, key: str, how: How
) -> list[Any]:
    """Start one pass and update, to scratch array ``key``; return the futures of its objective and changed rows.

    ``before`` has the centroids that were moved to ``current``, in the last pass; None: this is the first.
    """
    narrow = blocks.narrow
    rows = blocks if narrow is None else narrow.blocks
    table = table_of(run, current, metric if narrow is None else "l2")
    old, new = None if before is None else run.scratch(_labels(current)), run.scratch(_labels(key))

    def each(function: Any, name: str) -> list[Any]:
        return rows.zip_map(run, function, range(len(rows.blocks)), table, old, new, how, name=name, key=key)

    if narrow is None or not how.plain:
        total = tree(run, _combine, each(_pass, "kmeans-pass"), name="kmeans-combine", key=key)
        urls = run.scratch(before) if before is not None and how.goes_on else None, run.scratch(key)
        return run.start([run.task(_finalize, total, table, *urls, how, name="kmeans-update", key=key)])
    # the means of the whole rows
    labelled = each(_label, "kmeans-last-pass")
    sums = blocks.zip_map(run, _sums, labelled, new, table, name="kmeans-widen", key=key)
    total = tree(run, _combine, sums, name="kmeans-widen-combine", key=key)
    urls = narrow.directions, run.scratch(key)
    return run.start([run.task(_write_means, total, table, *urls, metric, name="kmeans-means", key=key)])


def lists_of(table: Table, seed: int, longer: int = 1) -> Lists:
    """Return lists of a table's centroids, where this is called: made once in a worker process."""
    centroids = table.scorer().centroids
    key = ("lists", seed, longer, namespace_of(centroids) is np)
    return table.kept(key, lambda: make_lists(centroids, table.metric, seed, longer=longer))


def _labelled(
    block: Block, number: int, table: Table, old: str | None, new: str, how: How
) -> tuple[Array, int]:
    """Write the labels of a block's rows; return them, and how many changed."""
    scorer, xp = table.scorer(), namespace_of(block.rows)
    before = None if old is None else xp.asarray(read_file(f"{old}/{number}"))
    lists = list_of_all(scorer.centroids) if how.every else lists_of(table, how.seed)
    labels = nearest_listed(block.rows, scorer, lists, before).labels
    write_file(f"{new}/{number}", to_host(labels))
    return labels, len(labels) if before is None else int((before != labels).sum())


@on_device
def _label(block: Block, number: int, *args: Any) -> tuple[int, int]:
    """Write the labels of a block's rows; return the number of their file, and how many changed."""
    return number, _labelled(block, number, *args)[1]


@left_on_device
def _pass(block: Block, number: int, table: Table, old: str | None, new: str, how: How) -> Moved:
    labels, changed = _labelled(block, number, table, old, new, how)
    sums = lloyd.segment_sums(block.rows, labels, len(table.scorer().centroids), dtype=np.float32)
    squares = lloyd.sum_of_squares(block.rows) if how.measured else 0.0
    return Moved(lloyd.Partial(*sums, squares), changed)


@on_device
def _sums(block: Block, labelled: tuple[int, int], labels: str, table: Table) -> Moved:
    number, changed = labelled
    found = namespace_of(block.rows).asarray(read_file(f"{labels}/{number}"))
    sums = lloyd.segment_sums(block.rows, found, len(table.scorer().centroids), dtype=np.float32)
    return Moved(lloyd.Partial(*sums, 0.0), changed)


@left_on_device
def _combine(parts: list[Moved]) -> Moved:
    return Moved(lloyd.combine([part.partial for part in parts]), sum(part.changed for part in parts))


@on_device
def _finalize(total: Moved, table: Table, before: str | None, url: str, how: How) -> tuple[float, int]:
    centroids = table.scorer().centroids
    if how.plain:
        updated = lloyd.finalize(total.partial, centroids, table.metric)
    else:
        last = centroids if before is None else namespace_of(centroids).asarray(read_centroids(before))
        updated = lloyd.accelerated(total.partial, centroids, last, table.metric)
    write_scratch(url, to_host(updated))
    return lloyd.objective_of(total.partial, centroids) if how.measured else 0.0, total.changed


def _write_means(total: Moved, table: Table, directions: str, url: str, metric: str) -> tuple[float, int]:
    known = unproject(read_centroids(table.url), read_directions(directions))
    known = unit_rows(known) if metric == "cosine" else known
    write_scratch(url, lloyd.finalize(total.partial, known, metric))
    return 0.0, total.changed


def assign_two_level(
    run: Any, blocks: RowBlocks, centroids: str, k: int, metric: str, seed: int, key: str
) -> tuple[list[Any], np.ndarray, float]:
    """Assign all rows through lists; return (an Assigned a block, sizes (k,), recall on a sample of rows).

    Two rounds with other groups: the first starts from the group whose centre is nearest, the second from
    the group of the first one's label. The recall is the share of sampled rows with the exact label.
    """
    table = table_of(run, centroids, metric)
    seeds = [derive_seed(seed, "assign", turn) for turn in range(2)]
    assigned = run.persist(
        blocks.map(run, _assign, table, seeds, name="kmeans-assign", key=key),
        "assign",
    )
    sizes = count_sizes(run, assigned, k, key)
    count = min(len(blocks), RECALL_ROWS)
    sample = drawn_rows(run, blocks, count, derive_seed(seed, "recall"), f"{key}-recall")
    hits = [
        run.task(_hits, rows, table, seeds, name="assign-recall", key=f"{key}-{i}")
        for i, rows in enumerate(sample)
    ]
    return assigned, sizes, sum(run.gather(hits, "recall")) / count


def _listed_twice(rows: np.ndarray, table: Table, seeds: list[int]) -> np.ndarray:
    scorer = table.scorer()
    first, second = (lists_of(table, seed, 2) for seed in seeds)
    one = nearest_listed(rows, scorer, first)
    two: Listed = nearest_listed(rows, scorer, second, one.labels)
    labels = one.labels.copy()
    better = two.scores > one.scores
    labels[better] = two.labels[better]
    return labels


@on_device
def _assign(block: Block, table: Table, seeds: list[int]) -> Assigned:
    return assigned_rows(block, _listed_twice(block.rows, table, seeds), table.scorer())


@on_device
def _hits(block: Block, table: Table, seeds: list[int]) -> int:
    scorer = table.scorer()
    labels = _listed_twice(block.rows, table, seeds)
    return int((labels == nearest(block.rows, scorer.centroids, scorer.metric)).sum())
