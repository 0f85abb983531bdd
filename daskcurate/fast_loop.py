"""K-means in a fraction of Lloyd's work: two-level seeds, restricted over-relaxed passes, exact last passes.

A pass compares each row with the centroids of a list only (:mod:`daskcurate.kernels.restricted`) and moves
each centroid beyond the mean of its rows, which converges in fewer passes. Labels pass from one to the next
in scratch arrays, so that an interrupted run goes on at its last pass. All but the last of these passes, and the
seeding, see the rows in their leading directions only where these hold most of the variance
(:mod:`daskcurate.kernels.leading`). Then (algorithm ``fast``) comes a plain Lloyd update with all centroids compared.
"""

from typing import Any, NamedTuple

import numpy as np

from daskcurate.arrays import namespace_of, to_host
from daskcurate.config import KMeansConfig
from daskcurate.device import left_on_device, on_device
from daskcurate.kernels import lloyd
from daskcurate.kernels.assign import Scorer, nearest, unit_rows
from daskcurate.kernels.draws import derive_seed
from daskcurate.kernels.leading import unproject
from daskcurate.kernels.restricted import Listed, Lists, make_lists, nearest_listed
from daskcurate.lloyd_loop import Assigned, assigned_rows, count_sizes, start_update, table_of
from daskcurate.remembering import Table, read_centroids, read_directions
from daskcurate.rows import Block, Narrow, RowBlocks, drawn_rows, tree
from daskcurate.store import open_array, read_block, write_scratch

SETTLED = 0.015
"""Restricted passes end where at most this share of the rows changed cluster."""
WIDE_PASSES = 1
"""Restricted passes over the whole rows after those in their leading directions."""
EXACT_UPDATES = 1
"""Lloyd updates with all centroids compared, after the restricted ones: a second one lowered the inertia by 0.1 %
(k = 1000), one or two more restricted passes as much for half the time."""
RECALL_ROWS = 4096
"""Rows on which the labels of a two-level assignment are compared with the exact ones."""


class Moved(NamedTuple):
    """What a restricted pass leaves."""

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
        With the rows in their leading directions, if they have them, where the seeds lie too: restricted passes
        compare these until they settle, and then the whole rows.
    state, start
        What the checkpoint keeps besides, and where to go on: as in the exact loop.
    note
        Called with a fraction and a text.
    """
    narrow = blocks.narrow
    last_exact = EXACT_UPDATES if config.algorithm == "fast" else 0
    total = config.n_iters + last_exact
    current, labels = start["current"], start.get("labels")
    iteration, previous, exact = int(start["iteration"]), start["previous"], int(start.get("exact", 0))
    in_narrow = bool(start.get("in_narrow", narrow is not None))
    passes_left = int(start.get("passes_left", config.n_iters))
    while passes_left or in_narrow:
        used = [current] if labels is None else [current, labels]
        if passes_left:
            note(iteration / total, f"pass {iteration + 1}")
            key = f"{name}-{iteration}"
            rows, metric = (narrow.blocks, "l2") if in_narrow and narrow else (blocks, config.metric)
            objective, changed = _restricted(
                run, rows, metric, current, labels, key, derive_seed(seed, iteration), config.tol is not None
            )
            current, labels, iteration = key, f"{key}-labels", iteration + 1
            done = changed <= SETTLED * len(blocks) or lloyd.fits_tol(previous, objective, config.tol)
            previous = objective
            passes_left = 0 if done else passes_left - 1
        else:
            assert narrow is not None
            assert labels is not None
            current = _widened(run, blocks, narrow, config.metric, current, labels, f"{name}-widened")
            in_narrow, previous, used = False, None, used[:1]
            passes_left = min(WIDE_PASSES, config.n_iters - iteration)
        run.save(
            **state, iteration=iteration, current=current, labels=labels, previous=previous,
            in_narrow=in_narrow, passes_left=passes_left,
        )  # fmt: skip
        for scratch in used:
            run.discard(scratch)
    for number in range(exact, last_exact):
        note((config.n_iters + number) / total, f"exact update {number + 1}/{last_exact}")
        before = current
        key = f"{name}-exact-{number}"
        current, _ = start_update(run, blocks, config.metric, before, key, np.float32).finish()
        run.save(
            **state, iteration=iteration, current=current, previous=previous,
            in_narrow=False, passes_left=0, exact=number + 1,
        )  # fmt: skip
        run.discard(before)
    return current


def _widened(
    run: Any, blocks: RowBlocks, narrow: Narrow, metric: str, current: str, labels: str, key: str
) -> str:
    """Return the scratch name of the means of the whole rows that have each label; clusters without any stay."""
    parts = [
        blocks.task(
            run, i, _sums, run.scratch(labels), i, run.scratch(current), name="kmeans-widen", key=f"{key}-{i}"
        )
        for i in range(len(blocks.blocks))
    ]
    total = tree(run, lloyd.combine, parts, name="kmeans-widen-combine", key=key)
    urls = run.scratch(current), narrow.directions, run.scratch(key)
    run.gather([run.task(_write_means, total, *urls, metric, name="kmeans-widen-means", key=key)], "widen")
    return key


@on_device
def _sums(block: Block, labels: str, number: int, centroids: str) -> lloyd.Partial:
    xp, k = namespace_of(block.rows), open_array(centroids).shape[0]
    found = xp.asarray(read_block(f"{labels}/{number}", 0, len(block.rows)))
    return lloyd.Partial(*lloyd.segment_sums(block.rows, found, k, dtype=np.float32), 0.0)


def _write_means(total: lloyd.Partial, centroids: str, directions: str, url: str, metric: str) -> None:
    known = unproject(read_centroids(centroids), read_directions(directions))
    known = unit_rows(known) if metric == "cosine" else known
    write_scratch(url, lloyd.finalize(total, known, metric))


def _restricted(
    run: Any,
    blocks: RowBlocks,
    metric: str,
    current: str,
    labels: str | None,
    key: str,
    seed: int,
    measured: bool,
) -> tuple[float, int]:
    """Do one restricted pass and update; write the labels; return the objective and how many rows changed.

    The objective is 0 where it is not to be ``measured``.
    """
    table = table_of(run, current, metric)
    lists = run.task(_lists, table, seed, 1, name="kmeans-lists", key=key)
    old = None if labels is None else run.scratch(labels)
    passed = [
        blocks.task(
            run,
            i,
            _pass,
            table,
            lists,
            old,
            run.scratch(f"{key}-labels"),
            i,
            measured,
            name="kmeans-pass",
            key=f"{key}-{i}",
        )
        for i in range(len(blocks.blocks))
    ]
    total = tree(run, _combine, passed, name="kmeans-combine", key=key)
    return run.gather(
        [run.task(_finalize, total, table, run.scratch(key), measured, name="kmeans-update", key=key)],
        "pass",
    )[0]


def _lists(table: Table, seed: int, longer: int) -> Lists:
    return on_device(make_lists)(table.scorer().centroids, table.metric, seed, longer=longer)


@left_on_device
def _pass(
    block: Block, table: Table, lists: Lists, old: str | None, new: str, number: int, measured: bool
) -> Moved:
    scorer, xp = table.scorer(), namespace_of(block.rows)
    before = None if old is None else xp.asarray(read_block(f"{old}/{number}", 0, len(block.rows)))
    found = nearest_listed(block.rows, scorer, lists, before)
    write_scratch(f"{new}/{number}", to_host(found.labels))
    sums, counts = lloyd.segment_sums(block.rows, found.labels, len(scorer.centroids), dtype=np.float32)
    changed = len(block.rows) if before is None else int((before != found.labels).sum())
    squares = lloyd.sum_of_squares(block.rows) if measured else 0.0
    return Moved(lloyd.Partial(sums, counts, squares), changed)


@left_on_device
def _combine(parts: list[Moved]) -> Moved:
    return Moved(lloyd.combine([part.partial for part in parts]), sum(part.changed for part in parts))


@on_device
def _finalize(total: Moved, table: Table, url: str, measured: bool) -> tuple[float, int]:
    centroids = table.scorer().centroids
    updated = lloyd.finalize(total.partial, centroids, table.metric, lloyd.OVER_RELAXATION)
    write_scratch(url, to_host(updated))
    return lloyd.objective_of(total.partial, centroids) if measured else 0.0, total.changed


def assign_two_level(
    run: Any, blocks: RowBlocks, centroids: str, k: int, metric: str, seed: int, key: str
) -> tuple[list[Any], np.ndarray, float]:
    """Assign all rows through lists; return (an Assigned a block, sizes (k,), recall on a sample of rows).

    Two rounds with other groups: the first starts from the group whose centre is nearest, the second from
    the group of the first one's label. The recall is the share of sampled rows with the exact label.
    """
    table = table_of(run, centroids, metric)
    lists = [
        run.task(
            _lists, table, derive_seed(seed, "assign", turn), 2, name="kmeans-lists", key=f"{key}-{turn}"
        )
        for turn in range(2)
    ]
    assigned = run.persist(
        blocks.map(run, _assign, table, *lists, name="kmeans-assign", key=key),
        "assign",
    )
    sizes = count_sizes(run, assigned, k, key)
    count = min(len(blocks), RECALL_ROWS)
    sample = drawn_rows(run, blocks, count, derive_seed(seed, "recall"), f"{key}-recall")
    hits = [
        run.task(_hits, rows, table, *lists, name="assign-recall", key=f"{key}-{i}")
        for i, rows in enumerate(sample)
    ]
    return assigned, sizes, sum(run.gather(hits, "recall")) / count


def _listed_twice(rows: np.ndarray, scorer: Scorer, first: Lists, second: Lists) -> np.ndarray:
    one = nearest_listed(rows, scorer, first)
    two: Listed = nearest_listed(rows, scorer, second, one.labels)
    labels = one.labels.copy()
    better = two.scores > one.scores
    labels[better] = two.labels[better]
    return labels


@on_device
def _assign(block: Block, table: Table, first: Lists, second: Lists) -> Assigned:
    scorer = table.scorer()
    labels = _listed_twice(block.rows, scorer, first, second)
    return assigned_rows(block, labels, scorer)


@on_device
def _hits(block: Block, table: Table, first: Lists, second: Lists) -> int:
    scorer = table.scorer()
    labels = _listed_twice(block.rows, scorer, first, second)
    return int((labels == nearest(block.rows, scorer.centroids, scorer.metric)).sum())
