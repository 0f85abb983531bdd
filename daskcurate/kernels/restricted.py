"""Assignment restricted to near centroids: each row is compared with a list of a few hundred, not with all k.

Centroids are put into groups, and each group has a list: its members and the other centroids nearest to
it. A row is compared with the list of its home, the group of the centroid that it had in the last pass (or
the group whose centre is nearest). With about 4 sqrt(k) groups and lists as long, a pass costs 4 sqrt(k)
products a row in place of k, and finds the nearest centroid of nine rows in ten; other groups in the next
pass find most of the others.
"""

import math
from typing import NamedTuple

import numpy as np

from daskcurate.arrays import Array, namespace_of, to_host
from daskcurate.kernels.assign import Scorer, nearest, tile_rows
from daskcurate.kernels.lloyd_in_memory import lloyd_in_memory

SHORTEST_LIST = 128
"""A list has at least this many centroids: below, more of them cost little."""


class Lists(NamedTuple):
    """Groups of centroids, and the centroids that the rows of each are compared with."""

    group: Array
    """(k,) int32: the group of each centroid."""
    centers: Array
    """(g, d) float32: the centres of the groups."""
    members: Array
    """(g, t) int32: the centroids of each group's list, ascending."""


def list_size(k: int) -> int:
    """Return the length of the lists for k centroids; the whole of them where they are few."""
    return min(k, max(SHORTEST_LIST, math.ceil(4 * math.sqrt(k))))


def make_lists(centroids: Array, metric: str, seed: int, *, longer: int = 1) -> Lists:
    """Return groups and lists of ``centroids`` (k, d) float32.

    Parameters
    ----------
    seed
        Other seeds give other groups, with borders elsewhere.
    longer
        Lists of this many times the usual length.
    """
    xp = namespace_of(centroids)
    k = centroids.shape[0]
    n_groups = min(max(1, k // 4), math.ceil(4 * math.sqrt(k)))
    drawn = np.sort(np.random.default_rng(seed).permutation(k)[:n_groups])
    centers = lloyd_in_memory([centroids], centroids[xp.asarray(drawn)], metric, 1).centroids
    group = nearest(centroids, centers, metric)
    largest = int(to_host(xp.bincount(group, minlength=n_groups).max()))
    length = min(k, max(list_size(k) * longer, largest))
    scorer = Scorer(centroids, metric)
    members = xp.empty((n_groups, length), dtype=np.int32)
    step = tile_rows(k)
    for start in range(0, n_groups, step):
        scores = xp.matmul(scorer.tile(centers[start : start + step]).rows, scorer.table.T)
        own = xp.nonzero((group >= start) & (group < start + step))[0]
        scores[group[own] - start, own] = np.inf  # members come first, however far from the centre
        near = xp.argpartition(-scores, length - 1, axis=1)[:, :length]
        members[start : start + step] = xp.sort(near, axis=1)
    return Lists(group, centers, members)


def list_of_all(centroids: Array) -> Lists:
    """Return one list that has all ``centroids`` (k, d) float32."""
    xp, k = namespace_of(centroids), centroids.shape[0]
    return Lists(xp.zeros(k, np.int32), centroids[:1], xp.arange(k, dtype=np.int32)[None])


class Listed(NamedTuple):
    """The best centroid that each row's list holds."""

    labels: Array
    """(m,) int32."""
    scores: Array
    """(m,) float32."""


def nearest_listed(x: Array, scorer: Scorer, lists: Lists, before: Array | None = None) -> Listed:
    """Return the nearest centroid of each row among those of its list.

    Parameters
    ----------
    x
        (m, d) float32.
    before
        (m,) labels of the last pass; None: the home of a row is the group whose centre is nearest.
    """
    xp, (m, d), n_groups = scorer.xp, x.shape, lists.members.shape[0]
    home = nearest(x, lists.centers, scorer.metric) if before is None else lists.group[before]
    order = xp.argsort(home, kind="stable")
    bounds = to_host(xp.searchsorted(home[order], xp.arange(n_groups + 1)))
    found = Listed(xp.empty(m, np.int32), xp.empty(m, np.float32))
    length = lists.members.shape[1]
    step = min(m, tile_rows(length, xp))
    # one of each for all groups: new ones for each would cost as much as the product
    held, scored = xp.empty((step, d), np.float32), xp.empty((step, length), np.float32)
    for group in np.flatnonzero(bounds[1:] > bounds[:-1]):
        members = lists.members[int(group)]
        table = scorer.table[members]
        for start in range(int(bounds[group]), int(bounds[group + 1]), step):
            at = order[start : min(start + step, int(bounds[group + 1]))]
            rows, scores = _gathered(x, at, scorer, held), scored[: len(at)]
            xp.matmul(rows, table[:, :d].T, out=scores)
            if table.shape[1] > d:  # a column more in the product would lengthen the rows as well
                scores += table[:, d]
            best = scores.argmax(axis=1)
            found.labels[at] = members[best]
            found.scores[at] = scores[xp.arange(len(at)), best]
    return found


def _gathered(x: Array, rows: Array, scorer: Scorer, held: Array) -> Array:
    """Return rows of ``x``, moved as those of the scorer's table are, in ``held``."""
    xp, out = scorer.xp, held[: len(rows)]
    # with a mode that checks nothing NumPy writes straight to out: half the time
    xp.take(x, rows, axis=0, out=out, **({"mode": "clip"} if xp is np else {}))
    if scorer.metric != "cosine":
        out -= scorer.shift
    return out
