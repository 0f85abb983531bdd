"""SemDeDup (arXiv 2303.09540): drop the rows of a cluster, or of the pool, that repeat an earlier one."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
from dask.delayed import Delayed

from daskcurate.config import KEEPS, DedupConfig, check_choice, check_number
from daskcurate.global_matching import match_pool
from daskcurate.kernels.draws import derive_seed
from daskcurate.kernels.similarity import TILE, is_duplicate
from daskcurate.kernels.threads import spread
from daskcurate.kmeans import Clustering
from daskcurate.matching import MATCHES, match_clusters
from daskcurate.members import (
    Members,
    SortKey,
    cluster_sizes,
    load_labels,
    pool_ranks,
    write_scores,
)
from daskcurate.nodes import GivenArray, checked_embeddings
from daskcurate.planning import MATCH_BYTES, Limits, StagePlan
from daskcurate.pool_blocks import take_survey
from daskcurate.pruning import rows_clustering
from daskcurate.reading import blocks_of
from daskcurate.regroup import regroup
from daskcurate.selection import Selection, ThresholdSelection, selection_or_none
from daskcurate.small_pools import Share, fits_shares, share_tasks
from daskcurate.stage_plans import dedup_plan
from daskcurate.store import write_block

if TYPE_CHECKING:
    from daskcurate.embeddings import Embeddings
    from daskcurate.hierarchy import Hierarchy


class SemanticDedup(Selection):
    """Rows that repeat no earlier row of their cluster, or, with ``scope="global"``, of the pool.

    ``max_similarity`` is what a row is judged by: the largest cosine similarity to an earlier row (rule
    ``earlier``), to an earlier kept row (``greedy``), or the highest threshold that still connects it to
    an earlier row (``connected``). ``duplicate_of`` is the row that attains it. Across clusters only what is
    above 1 - eps is known: other rows have -1 and -1.
    """

    kind = "semantic_dedup"
    reason = "duplicate"

    @property
    def title(self) -> str:
        """What progress displays call the stage."""
        return f"dedup eps {self.config.eps:g}" + (" (global)" if self.config.scope == "global" else "")

    @property
    def max_similarity(self) -> da.Array:
        """(n,) float32 dask array; -1 where no row is earlier (across clusters: none above 1 - eps), NaN outside."""
        return self.lazy("max_similarity")

    @property
    def duplicate_of(self) -> da.Array:
        """(n,) int64 dask array: row number of the match; -1 where there is none."""
        return self.lazy("duplicate_of")

    def plan(self, limits: Limits) -> StagePlan:
        """Return what running the stage takes.

        The pairs compared are, within clusters, those of the clustering where it is computed, else those of clusters
        of equal size. Across clusters they are estimated from a sample of the rows where the clustering is computed
        (``within`` only if it is computed too), else all n (n - 1) / 2, which are the most.
        """
        emb, clustering, config = self.inputs["emb"], self.inputs["clustering"], self.config
        across = config.scope == "global"
        sizes, pairs = np.full(clustering.n_clusters, len(emb) / max(1, clustering.n_clusters)), None
        if clustering.is_computed:
            sizes = clustering.sizes
            pairs = self._pairs_of_sample(sizes) if across else pairs_within(sizes)
        whole = not across and fits_shares(limits, len(emb), sizes, emb.dim, emb.dtype.itemsize)
        return dedup_plan(
            self.title,
            n=len(emb),
            d=emb.dim,
            itemsize=emb.dtype.itemsize,
            chunk_rows=emb.chunk_rows,
            k=clustering.n_clusters,
            limits=limits,
            tile=TILE,
            scope=config.scope,
            rule=config.rule,
            pairs=pairs,
            whole=whole,
        )

    def _pairs_of_sample(self, sizes: np.ndarray) -> int:
        """Return about how many pairs are compared across the computed clusters, of ``sizes`` (k,)."""
        within = self.within if self.within is not None and self.within.is_computed else None
        return take_survey(Members.of(self.inputs["clustering"], within), sizes, self.config.eps).pairs

    def at(self, eps: float) -> Selection:
        """Return the rows that another ``eps`` keeps: a lookup, nothing is compared again.

        Raises
        ------
        ValueError
            Under the rule ``greedy``, whose result at one eps does not follow from that at another, and
            under ``connected`` or across clusters for an eps above the one that was run.
        """
        eps = check_number("eps", eps, 0, 2)
        self._check_lookup(eps)
        return ThresholdSelection.of(self, float(np.float32(1 - eps)))

    def at_fraction(self, keep: float) -> Selection:
        """Return the rows that the largest eps keeps which leaves at least the fraction ``keep``.

        Rows equally similar are kept or dropped together. The stage must have been computed. Under ``connected``
        or across clusters the fraction must be at least the one that the stage's own eps keeps.
        """
        keep = check_number("keep", keep, 0, 1, open_low=True)
        found = np.sort(np.concatenate([block[~np.isnan(block)] for block in blocks_of(self.max_similarity)]))
        if not len(found):
            raise ValueError(
                "at_fraction() has no rows to choose from: none lies within the stage's selection"
            )
        least = int(np.ceil(keep * len(found) - 1e-9))
        limit = float(found[least - 1])
        run_limit = np.float32(1 - self.config.eps)
        if self._bound and limit <= run_limit:
            kept = int((found <= run_limit).sum())
            if least < kept:
                raise ValueError(
                    f"keep={keep:g} is not allowed: {self._bound} was run at eps={self.config.eps:g}, which keeps "
                    f"{kept / len(found):.6g} of the rows, and knows no weaker matches; give at least that, or run "
                    "semantic_dedup again with a larger eps"
                )
            # exactly those that the run keeps: a larger eps keeps them too, or too few
            limit = float(run_limit)
        self._check_lookup(1 - limit)
        return ThresholdSelection.of(self, limit)

    @property
    def _bound(self) -> str | None:
        """The setting under which nothing weaker than 1 - eps is known; None: every match is."""
        if self.config.scope == "global":
            return "scope='global'"
        return "rule='connected'" if self.config.rule == "connected" else None

    def _check_lookup(self, eps: float) -> None:
        rule, run_eps = self.config.rule, self.config.eps
        if rule == "greedy" and eps != run_eps:
            raise ValueError(
                f"eps={eps:g} is not a lookup under rule='greedy' (run at eps={run_eps:g}), where dropping a row "
                "revives others: run semantic_dedup again with it"
            )
        if self._bound and np.float32(1 - eps) < np.float32(1 - run_eps):
            raise ValueError(
                f"eps={eps:g} is not allowed: {self._bound} was run at eps={run_eps:g} and knows no links "
                f"weaker than that; give at most {run_eps:g}, or run semantic_dedup again"
            )

    def execute(self, run: Any) -> dict[str, Any]:
        """Order the rows of each cluster, compare, and write the matches in row order."""
        config = self.config
        members = Members.of(self.inputs["clustering"], self.within)
        run.note(0.02, "count rows")
        known = members.mask_url is None  # of all rows, the clustering has counted them
        sizes = self.inputs["clustering"].sizes if known else cluster_sizes(run, members)
        scores = self.inputs.get("score")
        score_url = None if scores is None else write_scores(run, members, scores.values)
        key = SortKey.for_keep(config.keep, derive_seed(config.seed, "dedup"), score_url)
        names = ("counts", "max_similarity", "duplicate_of")
        urls = [run.declare(name, (members.n_rows,), members.chunk_rows) for name in names]
        emb, across = self.inputs["emb"], config.scope == "global"
        figures = {"pairs": pairs_within(sizes)}
        if not across and fits_shares(run.limits, members.n_rows, sizes, emb.dim, emb.dtype.itemsize):
            run.note(0.1, "compare rows")
            writes = self._match_shares(run, members, key, urls)
        else:
            run.note(0.05, "order rows")
            if across:
                back, figures = self._match_pool(run, members, key, sizes)
            else:
                back = self._match_clusters(run, members, key, sizes)
            run.note(0.9, "write")
            writes = [
                run.task(_write_chunk, frame, members, r, urls, config.eps, name="write-matches", key=r[0])
                for frame, r in zip(back, members.ranges, strict=True)
            ]
        total, rows_in = sum(run.gather(writes, "write")), int(sizes.sum())
        return {"total": total, "rows_in": rows_in, "duplicates": rows_in - total, **figures}

    def _match_shares(self, run: Any, members: Members, key: SortKey, urls: list[str]) -> list[Delayed]:
        """Return tasks that write the matches within clusters of a pool that every worker can hold."""
        rule, eps = self.config.rule, self.config.eps
        shares = share_tasks(run, members, key, rule, eps)
        # by a task of each worker as well: to write many small chunks is mostly Python's work
        step = members.chunk_rows * -(-len(members.ranges) // len(shares))
        return [
            run.task(_write_shares, members, shares, start, step, urls, eps, name="write-matches", key=start)
            for start in range(0, members.n_rows, step)
        ]

    def _match_clusters(self, run: Any, members: Members, key: SortKey, sizes: np.ndarray) -> list[Delayed]:
        """Return a frame of matches within clusters per chunk."""
        emb, config = self.inputs["emb"], self.config
        matches = match_clusters(run, members, key, sizes, emb.dim, str(emb.dtype), config.rule, config.eps)
        return regroup(run, matches, MATCHES, len(members.ranges), MATCH_BYTES * int(sizes.sum()), "back")

    def _match_pool(
        self, run: Any, members: Members, key: SortKey, sizes: np.ndarray
    ) -> tuple[list[Delayed], dict[str, Any]]:
        """Return a frame of matches across clusters per chunk, and figures."""
        ranks = run.persist(pool_ranks(run, members, key, int(sizes.sum())), "order rows")
        run.note(0.1, "regroup rows")
        emb, config = self.inputs["emb"], self.config
        return match_pool(run, members, ranks, sizes, emb.dim, str(emb.dtype), config.rule, config.eps)


def pairs_within(sizes: np.ndarray) -> int:
    """Return the pairs of rows of clusters of the given sizes."""
    return int((sizes.astype(object) * (sizes.astype(object) - 1) // 2).sum()) if len(sizes) else 0


def _write_shares(
    members: Members, shares: list[Share], start: int, step: int, urls: list[str], eps: float
) -> int:
    """Write what was found of rows from ``start`` on, ``step`` of them at most."""
    stop = min(start + step, members.n_rows)
    similarity = np.full(members.n_rows, np.nan, np.float32)
    match = np.full(members.n_rows, -1, np.int64)
    inside = np.zeros(members.n_rows, bool)
    for share in shares:
        similarity[share.numbers], match[share.numbers] = share.similarity, share.match
        inside[share.numbers] = True
    return _write(inside[start:stop], start, similarity[start:stop], match[start:stop], urls, eps)


def _write_chunk(
    frame: pd.DataFrame, members: Members, bounds: tuple[int, int], urls: list[str], eps: float
) -> int:
    start, stop = bounds
    similarity = np.full(stop - start, -1, dtype=np.float32)
    match = np.full(stop - start, -1, dtype=np.int64)
    at = frame["row"].to_numpy() - start
    similarity[at], match[at] = frame["similarity"].to_numpy(), frame["duplicate_of"].to_numpy()
    inside = load_labels(members, start, stop) >= 0
    return _write(inside, start, similarity, match, urls, eps)


def _write(
    inside: np.ndarray, start: int, similarity: np.ndarray, match: np.ndarray, urls: list[str], eps: float
) -> int:
    """Write what was found of the rows from ``start`` on, whole chunks of them; return how many are kept."""
    similarity = np.where(inside, similarity, np.float32(np.nan))
    kept = inside & ~is_duplicate(similarity, eps)
    spread(write_block, urls, repeat(start), (kept.astype(np.uint8), similarity, match))
    return int(kept.sum())


def semantic_dedup(
    emb: Embeddings,
    clustering: Clustering | Hierarchy,
    *,
    eps: float,
    keep: Any = "hard",
    rule: str = "earlier",
    scope: str = "cluster",
    within: Any = None,
    seed: int = 0,
) -> SemanticDedup:
    """Drop semantic duplicates within clusters, or in the whole pool. Lazy: nothing runs.

    Rows of a cluster (or of the pool) are ordered, and row j is a duplicate if an earlier row i has
    cos(i, j) > 1 - eps, strictly: a larger eps drops more. Of identical rows the first in row order is kept
    (of those in different clusters, the first in the order). The method is SemDeDup (arXiv 2303.09540).

    Parameters
    ----------
    emb
        The pool; rows are compared as unit vectors.
    clustering
        Clustering of the pool's rows (a hierarchy stands for its first level). Rows without a cluster
        are not kept.
    eps
        Threshold in [0, 2].
    keep
        ``hard`` (far from the centroid first, so kept), ``easy``, ``random``, or an array (n,) of scores
        of which the highest are kept.
    rule
        ``earlier``: every earlier row blocks, dropped or not (the paper's). ``greedy``: only kept rows
        block. ``connected``: one row of every connected component is kept.
    scope
        ``cluster``: pairs within a cluster, as published. ``global``: every pair of the pool above the
        threshold, whichever clusters its rows are in, in the same order of the whole pool (distance to the own
        centroid, then row number). The clustering only says which pairs need not be compared; where that
        would save nothing (a large eps, few clusters), all are. Only matches above 1 - eps are stored, so
        ``at`` and ``at_fraction`` go no further than the eps that was run. ``connected`` joins the components
        of the pool in one task, for which the plan counts 250 bytes a row.
    within
        Selection (or boolean mask) of the rows to deduplicate.
    seed
        Keys the random order.

    Raises
    ------
    TypeError, ValueError
        A value that is not allowed; the message quotes it and what is.
    """
    emb = checked_embeddings(emb)
    found = rows_clustering(clustering)
    if found.emb is not None and found.emb.fingerprint != emb.fingerprint:
        raise ValueError(
            f"clustering is of the pool {found.emb.path}, emb is {emb.path}: they must be the same"
        )
    inputs: dict[str, Any] = {"emb": emb, "clustering": found}
    if not isinstance(keep, str):
        inputs["score"], keep = GivenArray(_checked_scores(keep, len(emb))), "score"
    else:
        check_choice("keep", keep, KEEPS)  # the config knows "score" as well, which stands for a real array
    config = DedupConfig(eps=eps, keep=keep, rule=rule, scope=scope, seed=seed)
    selection = selection_or_none(within, emb, len(emb))
    if selection is not None:
        inputs["within"] = selection
    return SemanticDedup(config, inputs)


def _checked_scores(keep: Any, n_rows: int) -> np.ndarray:
    allowed = "give 'hard', 'easy', 'random' or an array of scores"
    if keep is None or np.isscalar(keep):
        raise TypeError(f"keep={keep!r} is not allowed: {allowed}")
    try:
        given = np.asarray(keep)
        if given.dtype.kind in "SU":  # NumPy would read numbers out of text
            raise TypeError("text")
        values = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"keep={type(keep).__name__} is not allowed: {allowed}") from error
    if values.shape != (n_rows,):
        raise ValueError(f"keep of shape {values.shape} is not allowed: give one score a row, ({n_rows},)")
    if np.isnan(values).any():
        raise ValueError(f"keep has NaN at row {int(np.isnan(values).argmax())}: give a score for every row")
    return values
