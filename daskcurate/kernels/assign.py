"""Assigning rows to their nearest centroid: exact labels, by rounded products with a float64 re-check.

A product in float32, or in a lower precision (:mod:`.products`), finds for each row the best and the second
best centroid. Where these lie closer than the product's rounding can tell apart, the candidates are measured
again in float64; exact ties go to the first centroid. So a label depends on the row and the centroids alone:
not on the precision, tiles, blocks, the BLAS in use, or on which centroids a bound allowed to skip.
"""

from typing import Any, NamedTuple

import numpy as np

from daskcurate.arrays import Array, device_memory, namespace_of, row_dots, row_squares
from daskcurate.kernels.leading import Directions, Leading, LeadingTable
from daskcurate.kernels.products import Coarse, Product, Rounded, choose, top_two

SCORE_TILE = 1 << 19
"""Scores held at once where k is small: 2 MiB of float32, which stays in a core's cache."""
DEVICE_TILE = 1 << 28
"""Scores held at once on a GPU: 1 GiB, so that starting its kernels takes less time than they do."""
DEVICE_SHARE = 32
"""A tile of scores on a GPU takes at most this part (1 / n) of its memory."""
UNIT_VALUES = 1 << 18
"""Numbers scaled to unit length at once: 2 MiB of float64. With 24 MiB it takes from 2 to 6 times as long."""
DEVICE_UNIT_VALUES = 1 << 25
"""Numbers scaled at once on a GPU."""
COLUMNS = 16384
"""Centroids scored at once; more are scored in turns."""
DEVICE_COLUMNS = 1 << 17
"""Centroids scored at once on a GPU."""
PAIRS = 4096
"""Pairs of a row and a centroid measured again at once."""
DEVICE_PAIRS = 1 << 16
"""Pairs measured again at once on a GPU."""
FAR = 3.0
"""Centroids that are so many times as far from the others' mean as the median one do not count in it."""
MANY_CANDIDATES = 16
"""From so many candidates a row on, a product of low precision is followed by one in float32."""


def tile_rows(n_clusters: int, xp: Any = np) -> int:
    """Return the rows of one tile of scores, on arrays of ``xp``."""
    if xp is np:
        return max(256, min(1024, SCORE_TILE // max(1, n_clusters)))
    scores = min(DEVICE_TILE, device_memory() // (4 * DEVICE_SHARE))
    # rows themselves take memory as well: several copies of each, float32 and rounded
    return max(256, min(1 << 17, scores // max(1, n_clusters)))


def tile_columns(xp: Any) -> int:
    """Return the centroids scored at once, on arrays of ``xp``."""
    return COLUMNS if xp is np else DEVICE_COLUMNS


def unit_rows(x: Array) -> Array:
    """Return the rows of ``x`` (m, d) scaled to unit length in float32; zero rows stay zero.

    Norms are taken in float64 row by row, so that equal rows stay equal wherever they stand.
    """
    xp = namespace_of(x)
    out = xp.empty(x.shape, dtype=np.float32)
    step = max(1, (UNIT_VALUES if xp is np else DEVICE_UNIT_VALUES) // max(1, x.shape[1]))
    for start in range(0, x.shape[0], step):
        wide = x[start : start + step].astype(np.float64)
        norms = xp.sqrt(row_squares(wide))
        norms[norms == 0] = 1
        out[start : start + step] = wide / norms[:, None]
    return out


class Tile(NamedTuple):
    """Rows made ready for scoring."""

    rows: Array
    """(m, d) or (m, d + 1) float32: what is multiplied with the scorer's table."""
    squares: Array
    """(m,) float32: squared lengths; for the cosine metric plus 1, that of a centroid."""
    error: Array
    """(m,) float32: more than a score can be off by."""
    slack: Array
    """(m,) float32: more than ``squares - 2 score``, a squared distance, can be off by."""

    def of(self, rows: Array) -> "Tile":
        """Return some of the rows."""
        return Tile(*(part[rows] for part in self))


class Best(NamedTuple):
    """The best of all centroids for each row."""

    labels: Array
    """(m,) int64."""
    top: Array
    """(m,) float32: its score."""
    second: Array
    """(m,) float32: the best score of the others."""
    error: Array
    """(m,) float32: more than a score can be off by."""

    def unclear(self, xp: Any) -> Array:
        """Return the numbers of the rows for which another centroid may be as good."""
        return xp.nonzero(~(self.second < self.top - 2 * self.error))[0]


class Scorer:
    """Scores whose largest entry in a row marks the nearest centroid: x.c - |c|^2 / 2.

    For L2 the rows and the centroids are first moved so that the centroids' mean lies at the origin:
    distances do not change, but float32 then rounds relative to the spread of the data and not to its
    distance from the origin. The -|c|^2 / 2 rides along as one more column of the product.

    Some centroids may be far from all others, at rows that are outliers: they are left out of that mean, and
    do not count in the rounding of rows that they are too far from to be the nearest (see :meth:`reach`).
    """

    def __init__(
        self,
        centroids: Array,
        metric: str,
        product: Product | str | None = "choose",
        directions: Directions | None = None,
    ):
        xp = namespace_of(centroids)
        self.xp, self.metric, self.centroids = xp, metric, centroids
        k, d = centroids.shape
        if metric == "cosine":
            self.table = xp.ascontiguousarray(centroids, dtype=np.float32)
            squares = _squares64(self.table)
        else:
            self.table = xp.empty((k, d + 1), dtype=np.float32)
            self.shift, squares = _move_to_mean(centroids, self.table[:, :d])
            self.table[:, d] = -0.5 * squares
        lengths = xp.sqrt(squares) if k else xp.zeros(1)
        # bounds are of distances, which order unit centroids alone as their cosines do
        self.bounded = metric != "cosine" or bool((abs(squares - 1) < 1e-6).all())
        self._rounding = np.float32((self.table.shape[1] + 8) * 2.0**-24)
        self._longest, self._shortest = np.float32(float(lengths.max())), np.float32(float(lengths.min()))
        self._width, self._product = d, product
        self._coarse: Coarse | None = None
        self._directions = directions
        self._leading: LeadingTable | None = None

    @property
    def leading(self) -> LeadingTable | None:
        """The centroids in the leading directions of the rows; None where these are not to be looked at first."""
        fits = 1 < self.table.shape[0] <= COLUMNS
        if self._directions is None or not self.skips or not fits:
            return None
        if self._leading is None:
            self._leading = LeadingTable(self.centroids, self._directions)
        return self._leading

    @property
    def product(self) -> Product | None:
        """The product of low precision that comes first; None: float32 does."""
        return choose(self.xp) if isinstance(self._product, str) else self._product

    @property
    def coarse(self) -> Coarse | None:
        """The centroids in the precision that comes first; None: that is float32. Made when asked for."""
        product = self.product
        if product is None or not self.centroids.shape[0]:
            return None
        if self._coarse is None:
            moved = self.table[:, : self._width]
            halves = self.xp.zeros(len(moved)) if self.metric == "cosine" else -self.table[:, self._width]
            self._coarse = Coarse(moved, halves, self._longest, product)
        return self._coarse

    @property
    def skips(self) -> bool:
        """Whether :func:`.bounded.reassign` may skip what bounds allow to skip, and that pays.

        On a GPU the products with the centroids that moved most, in float32, would take longer than all
        products in float16.
        """
        return self.bounded and (self.xp is np or self.product is None)

    def __getstate__(self) -> dict[str, Any]:
        # each process rounds the centroids itself: that is less work than to send them
        return self.__dict__ | {"_coarse": None, "_leading": None}

    def on(self, move: Any) -> "Scorer":
        """Return this scorer with its centroids where ``move`` (an array to an array) puts them."""
        directions = self._directions
        if directions is not None:
            directions = directions._replace(shift=move(directions.shift), basis=move(directions.basis))
        return Scorer(move(self.centroids), self.metric, self._product, directions)

    def tile(self, x: Array) -> Tile:
        """Return the rows ``x`` (m, d) made ready."""
        xp = self.xp
        if self.metric == "cosine":
            rows = x
            squares = row_dots(rows, rows)
        else:
            rows = xp.empty((x.shape[0], x.shape[1] + 1), dtype=np.float32)
            xp.subtract(x, self.shift, out=rows[:, :-1])
            rows[:, -1] = 1
            squares = row_dots(rows[:, :-1], rows[:, :-1])
        lengths = xp.sqrt(squares)
        if self.metric == "cosine":
            error = self._rounding * lengths * self._longest
        else:
            reach = self.reach(lengths)
            error = self._rounding * (lengths + reach / 2) * reach
        slack = 4 * error + 2 * self._rounding * squares
        if self.metric == "cosine":
            squares = squares + np.float32(1)
            slack = slack + np.float32(4e-6)  # centroids are of unit length but for this
        return Tile(rows, squares, error, slack)

    def reach(self, lengths: Array) -> Array:
        """Return the longest centroids (m,) whose rounding matters to rows of ``lengths`` (m,).

        With s the length of the shortest centroid, a row x is at most |x| + s away from it. So the nearest is
        no longer than 2 |x| + s, and the score of one longer than 3 |x| + 2 s is lower by 1.5 (|x| + s)^2 or
        more than that of the shortest. Rounding, a share of |x| |c| + |c|^2 / 2, does not make up for that,
        and is at most twice that share of |x - c|^2 as well.
        """
        return self.xp.minimum(3 * lengths + 2 * self._shortest, self._longest)

    def lower(self, tile: Tile, score: Array) -> Array:
        """Return a lower bound of the distance that belongs to a score."""
        square = self.xp.maximum(tile.squares - 2 * score - tile.slack, 0)
        return self.xp.sqrt(square) * (np.float32(1 - 1e-6) - 3 * self._rounding)

    def upper(self, tile: Tile, score: Array) -> Array:
        """Return an upper bound of the distance that belongs to a score."""
        square = self.xp.maximum(tile.squares - 2 * score + tile.slack, 0)
        return self.xp.sqrt(square) * (np.float32(1 + 1e-6) + 3 * self._rounding)

    def best_two(self, tile: Tile) -> Best:
        """Return the best centroid of each row of a tile, and the best scores, by float32 products."""
        return self._best(lambda first, last: top_two(self._scores(tile, first, last)), tile.error)

    def _best(self, two: Any, error: Array) -> "Best":
        """Return the best of all centroids, from the best ``two`` of some."""
        xp = self.xp
        best = top = second = None
        for first, last in self._turns():
            at, value, other = two(first, last)
            if best is None:
                best, top, second = at, value, other
                continue
            second = xp.maximum(xp.minimum(top, value), xp.maximum(second, other))
            best = xp.where(value > top, at + first, best)
            top = xp.maximum(top, value)
        return Best(best, top, second, error)

    def _turns(self) -> list[tuple[int, int]]:
        k, step = self.table.shape[0], tile_columns(self.xp)
        return [(first, min(first + step, k)) for first in range(0, k, step)]

    def _scores(self, tile: Tile, first: int, last: int) -> Array:
        return self.xp.matmul(tile.rows, self.table[first:last].T)

    def decide(self, x: Array, tile: Tile) -> Best:
        """Return the nearest centroid of each row of ``x``, of which ``tile`` was made, exactly."""
        xp, coarse = self.xp, self.coarse
        if coarse is None:
            return self._decide_float32(x, tile)
        own, error = coarse.rows(tile.rows[:, : self._width], tile.error)
        found = self._best(lambda first, last: coarse.top_two(own, first, last), error)
        unclear = found.unclear(xp)
        if len(unclear):
            part = Rounded(*(field[unclear] for field in own))
            floor = (found.top - 2 * error)[unclear]
            labels = self._candidates(
                x[unclear], lambda first, last: coarse.scores(part, first, last), floor, MANY_CANDIDATES
            )
            if labels is None:
                labels = self._decide_float32(x[unclear], tile.of(unclear)).labels
            found.labels[unclear] = labels
        return found

    def _decide_float32(self, x: Array, tile: Tile) -> "Best":
        found = self.best_two(tile)
        unclear = found.unclear(self.xp)
        if len(unclear):
            found.labels[unclear] = self.settle(x[unclear], tile.of(unclear), found.top[unclear])
        return found

    def settle(self, x: Array, tile: Tile, top: Array) -> Array:
        """Return the nearest centroids (m,) of rows whose best scores are too close to tell: in float64.

        ``tile`` is made of ``x``, and ``top`` holds its best scores.
        """
        floor = top - 2 * tile.error
        return self._candidates(x, lambda first, last: self._scores(tile, first, last), floor)

    def _candidates(self, x: Array, scores_of: Any, floor: Array, most: int | None = None) -> Any:
        """Return for each row the nearest, in float64, of the centroids with scores from ``floor`` (m,) up.

        None where these are more than ``most`` a row, or a score is no number.
        """
        xp, m = self.xp, x.shape[0]
        best = xp.full(m, -1, dtype=np.int64)
        value = xp.full(m, -np.inf)
        pairs = PAIRS if xp is np else DEVICE_PAIRS
        for first, last in self._turns():
            able = scores_of(first, last) >= floor[:, None]
            if most is not None and int(able.sum()) > most * m:
                return None
            row, column = xp.nonzero(able)
            for start in range(0, len(row), pairs):
                i, j = row[start : start + pairs], column[start : start + pairs] + first
                exact = self._exact(x[i], self.centroids[j])
                order = xp.lexsort(xp.stack([j.astype(np.float64), -exact, i.astype(np.float64)]))
                i, j, exact = i[order], j[order], exact[order]
                lead = xp.ones(len(i), dtype=bool)
                lead[1:] = i[1:] != i[:-1]
                i, j, exact = i[lead], j[lead], exact[lead]
                better = exact > value[i]
                value[i[better]], best[i[better]] = exact[better], j[better]
        if most is not None and bool((best < 0).any()):
            return None
        return best

    def _exact(self, rows: Array, centroids: Array) -> Array:
        rows, centroids = rows.astype(np.float64), centroids.astype(np.float64)
        if self.metric == "cosine":
            return row_dots(rows, centroids)
        gap = rows - centroids
        return -row_dots(gap, gap)


def _move_to_mean(centroids: Array, moved: Array) -> tuple[Array, Array]:
    """Write ``centroids`` less the mean of all but far ones to ``moved``; return it, and squared lengths."""
    xp = namespace_of(centroids)
    near = centroids
    for _ in range(4):  # far ones draw the mean to them: without these, others may be seen to be far as well
        shift = near.mean(axis=0, dtype=np.float64).astype(np.float32)
        xp.subtract(centroids, shift, out=moved)
        squares = _squares64(moved)
        is_near = squares <= FAR * FAR * float(xp.median(squares))
        if int(is_near.sum()) == len(near):
            break
        near = centroids[is_near]
    return shift, squares


def _squares64(x: Array) -> Array:
    """Return the squared lengths of rows in float64, a few at a time."""
    xp = namespace_of(x)
    parts = [xp.zeros(0)]
    for start in range(0, x.shape[0], 4096):
        wide = x[start : start + 4096].astype(np.float64)
        parts.append(row_dots(wide, wide))
    return xp.concatenate(parts)


class Assignment(NamedTuple):
    """The nearest centroid of each row, and how far the others are at least."""

    labels: Array
    """(m,) int32."""
    second: Array
    """(m,) float32: a lower bound of the L2 distance to every other centroid."""


def nearest(x: Array, centroids: Array, metric: str) -> Array:
    """Return the nearest centroid of each row, (m,) int32; among equally near ones the first.

    Parameters
    ----------
    x
        (m, d) float32; unit rows for ``cosine``.
    centroids
        (k, d) float32.
    metric
        ``l2`` or ``cosine``.
    """
    return assign(x, Scorer(centroids, metric)).labels


def assign(x: Array, scorer: Scorer) -> Assignment:
    """Return the nearest centroid of each row, with bounds for the next pass."""
    xp, m = scorer.xp, x.shape[0]
    labels, second = xp.empty(m, dtype=np.int32), xp.empty(m, dtype=np.float32)
    step = tile_rows(scorer.table.shape[0], xp)
    for start in range(0, m, step):
        part = slice(start, start + step)
        tile = scorer.tile(x[part])
        found = scorer.decide(x[part], tile)
        labels[part] = found.labels
        above = found.second if found.error is tile.error else found.second + found.error
        second[part] = scorer.lower(tile, above)
    return Assignment(labels, second)


def nearest_by_leading(x: Array, scorer: Scorer, leading: Leading) -> Array:
    """Return the nearest centroid of each row, (m,) int32: the same as :func:`assign`, for less work.

    Parameters
    ----------
    leading
        The same rows in the scorer's leading directions.
    """
    xp, m, narrow = scorer.xp, x.shape[0], scorer.leading
    if narrow is None:
        return assign(x, scorer).labels
    labels = xp.empty(m, dtype=np.int32)
    step = tile_rows(scorer.table.shape[0], xp)
    for start in range(0, m, step):
        part = slice(start, start + step)
        tile, lead = scorer.tile(x[part]), leading.of(part)
        labels[part] = _nearest_of_tile(x[part], scorer, tile, narrow, lead)
    return labels


def _nearest_of_tile(x: Array, scorer: Scorer, tile: Tile, narrow: LeadingTable, lead: Leading) -> Array:
    """Return the nearest centroids, comparing rows in full with those only that may be it.

    Upper bounds of all scores come from the leading directions. The centroid with the highest is measured in
    full, and then all others whose bound reaches its score.
    """
    xp, m = scorer.xp, x.shape[0]
    above = narrow.bounds(lead)
    every, labels = xp.arange(m), above.argmax(axis=1)
    score = row_dots(tile.rows, scorer.table[labels])
    above[every, labels] = -np.inf
    # a centroid may be as near as that one if its bound is no lower than floor, which must not be rounded up
    reach = scorer.upper(tile, score).astype(np.float64)
    floor = (lead.squares - reach * reach) / 2 - 2 * narrow.error(lead)
    floor = (floor - abs(floor) * 1e-6).astype(np.float32)
    row, column = xp.divmod(xp.flatnonzero(above >= floor[:, None]), above.shape[1])
    if not len(row):
        return labels
    found = xp.empty(len(row), np.float32)
    for start in range(0, len(row), PAIRS // 8):
        some = slice(start, start + PAIRS // 8)
        found[some] = row_dots(tile.rows[row[some]], scorer.table[column[some]])
    # the best of each row's others stands first: row numbers of a tile fit float32
    order = xp.lexsort(xp.stack([-found, row.astype(np.float32)]))
    row, column, found = row[order], column[order], found[order]
    first = xp.ones(len(row), dtype=bool)
    first[1:] = row[1:] != row[:-1]
    best = score.copy()
    best[row[first]] = xp.maximum(score[row[first]], found[first])
    floor = best - 2 * tile.error
    close = (score >= floor).astype(np.int64) + xp.bincount(row[found >= floor[row]], minlength=m)
    wins = first & (found > score[row])
    labels[row[wins]] = column[wins]
    unclear = xp.nonzero(close > 1)[0]
    if len(unclear):
        labels[unclear] = scorer.settle(x[unclear], tile.of(unclear), best[unclear])
    return labels
