"""Blocks of rows made ready for comparing, and the best match of each row, a pair of tiles at a time.

A float32 product of two tiles finds the candidates of each row: those columns that the product's rounding cannot
tell from the best. What is reported of them is computed again in float64 from the rows as given and then rounded to
float32: no result depends, in any bit, on how a product was rounded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from daskcurate.arrays import Array, namespace_of, row_dots, to_float32
from daskcurate.kernels.products import choose, unit_margin

_MANY = 8  # candidates a row, from which on another product is less work than one after another
NEVER = -9.0
"""Stands for pairs that are not to be compared; below every similarity and every margin."""
_NONE = -4.0  # the best of a row that has been compared with nothing
_MASK_ROWS = 1024  # of the mask that is kept


@dataclass(frozen=True)
class Block:
    """Rows made ready for comparing."""

    raw: Array
    unit: Array
    norm: Array
    start: int
    spans: list[tuple[int, int]]
    rounded: Any
    """The unit rows in a lower precision, where products come first in that; else None."""
    wide: Array | None
    """The rows as given in float64, where they are one tile."""

    @property
    def margin(self) -> float:
        """More than a float32 product of unit rows and the exact similarity can differ by."""
        return 2.0**-23 * (self.raw.shape[1] + 8)

    def take_wide(self, rows: Any) -> Array:
        """Return some rows as given in float64."""
        return self.raw[rows].astype(np.float64) if self.wide is None else self.wide[rows]

    def exact(self, rows: Any, other: "Block", columns: Array) -> Array:
        """Return the similarity of pairs (row here, row of ``other``): float64, rounded to float32."""
        dots = row_dots(self.take_wide(rows), other.take_wide(columns))
        return rounded(namespace_of(self.raw), dots, self.norm[rows] * other.norm[columns])

    def exact_tile(self, rows: Any, other: "Block", columns: Any) -> Array:
        """Return the similarities of all pairs of some rows here and some of ``other``, by one float64 product.

        Its sums are in another order than those of :meth:`exact`: rarely, one rounds to the next float32.
        """
        xp = namespace_of(self.raw)
        dots = self.take_wide(rows) @ other.take_wide(columns).T
        dots *= (1 / self.norm[rows])[:, None]
        dots *= 1 / other.norm[columns]
        return xp.minimum(dots, 1.0, out=dots).astype(np.float32)


def rounded(xp: Any, dots: Array, norms: Array) -> Array:
    """Return similarities in float32, at most 1."""
    return xp.minimum(dots / norms, 1.0).astype(np.float32)


def unit_of(raw: Array, narrow: Array, norm: Array) -> Array:
    """Return rows, of lengths ``norm`` (m,) float64, scaled to length 1 in float32: in ``narrow``, a copy of them."""
    with np.errstate(over="ignore"):
        narrow *= (1.0 / norm).astype(np.float32)[:, None]
    odd = namespace_of(raw).flatnonzero((norm < 1e-30) | (norm > 1e30))  # whose inverse float32 cannot hold
    if len(odd):
        narrow[odd] = raw[odd].astype(np.float64) / norm[odd, None]
    return narrow


def _prepared(x: Array) -> tuple[Array, Array, Array]:
    """Return rows in float64, with length 1 in float32, and their lengths."""
    narrow = to_float32(x)
    wide = narrow.astype(np.float64)
    norm = namespace_of(x).sqrt(row_dots(wide, wide))
    return wide, unit_of(x, narrow, norm), norm


def prepare(x: Array, start: int, tile: int) -> Block:
    """Return a block of rows (m, d), of which the first has place ``start`` in the order of its cluster."""
    xp = namespace_of(x)
    m, d = x.shape
    edges = [0, *range(tile - start % tile, m, tile), m]
    spans = [(lo, hi) for lo, hi in zip(edges[:-1], edges[1:], strict=True) if hi > lo]
    wide = None
    if len(spans) == 1:
        wide, unit, norm = _prepared(x)
    else:
        unit, norm = xp.empty((m, d), np.float32), xp.empty(m, np.float64)
        for lo, hi in spans:
            _, unit[lo:hi], norm[lo:hi] = _prepared(x[lo:hi])
    return Block(x, unit, norm, start, spans, _in_low_precision(unit), wide)


def prepare_each(x: Array, edges: list[int]) -> Iterator[Block]:
    """Yield a block for each of several small clusters, one after another in ``x``: all made ready at once."""
    wide, unit, norm = _prepared(x)
    low = _in_low_precision(unit)
    for lo, hi in zip(edges[:-1], edges[1:], strict=True):
        own = None if low is None else low[lo:hi]
        yield Block(x[lo:hi], unit[lo:hi], norm[lo:hi], 0, [(0, hi - lo)], own, wide[lo:hi])


def _in_low_precision(unit: Array) -> Any:
    product = choose(namespace_of(unit))
    return None if product is None else product.rounded(unit)[0]


class Scores:
    """Float32 products of two tiles, all in the one buffer."""

    def __init__(self, x: Block, y: Block):
        widest = [max((hi - lo for lo, hi in block.spans), default=0) for block in (x, y)]
        self._buffer = namespace_of(x.raw).empty(widest[0] * widest[1], np.float32)

    def __call__(self, a: Array, b: Array) -> Array:
        """Return a @ b.T; until the next call."""
        out = self._buffer[: len(a) * len(b)].reshape(len(a), len(b))
        return namespace_of(out).matmul(a, b.T, out=out)


def mask_later(scores: Array) -> None:
    """Set the scores (m, m) of a tile with itself to ``NEVER``, but those of a row with earlier ones."""
    xp, m = namespace_of(scores), len(scores)
    mask = _not_earlier()[:m, :m] if xp is np and m <= _MASK_ROWS else ~xp.tri(m, k=-1, dtype=bool)
    xp.copyto(scores, np.float32(NEVER), where=mask)


@cache
def _not_earlier() -> np.ndarray:
    return ~np.tri(_MASK_ROWS, k=-1, dtype=bool)


class Best:
    """The best match so far of each row of block y among rows of block x."""

    def __init__(self, x: Block, y: Block):
        xp = namespace_of(y.raw)
        self.x, self.y, self.product = x, y, Scores(x, y)
        self.similarity = xp.full(len(y.raw), _NONE, np.float32)
        self.position = xp.full(len(y.raw), -1, np.int64)
        self._low = choose(xp)

    def sweep(self, lo: int, hi: int, spans: list[tuple[int, int]], of: Array | None = None) -> None:
        """Compare rows lo to hi with those of some tiles of x, or with those of them marked in ``of``."""
        xp, x = namespace_of(self.similarity), self.x
        for first, last in spans:
            columns, unit = xp.arange(first, last), x.unit[first:last]
            if of is not None:
                columns = columns[of[first:last]]
                unit = x.unit[columns]
            if len(columns) and not self._sweep_rounded(lo, hi, columns):
                self.update(lo, hi, self.product(self.y.unit[lo:hi], unit), columns)

    def sweep_own(self, lo: int, hi: int) -> None:
        """Compare each of rows lo to hi, a tile, with those before it; x and y are one block."""
        columns = namespace_of(self.similarity).arange(lo, hi)
        if not self._sweep_rounded(lo, hi, columns, own=True):
            scores = self.product(self.y.unit[lo:hi], self.x.unit[lo:hi])
            mask_later(scores)
            self.update(lo, hi, scores, columns)

    def _sweep_rounded(self, lo: int, hi: int, columns: Array, *, own: bool = False) -> bool:
        """Compare rows lo to hi with ``columns`` of x in low precision (``own``: with those before each).

        Return False, with nothing done, where there is none or it leaves much open. Whether that is too much
        depends on the tiles alone and not on what was found before.
        """
        if self._low is None:
            return False
        scores = self._low.multiply(self.y.rounded[lo:hi], self.x.rounded[columns])
        if own:
            mask_later(scores)
        margin = np.float32(self.x.margin + unit_margin(self.x.unit.shape[1], self._low))
        top = scores.max(axis=1)
        near = scores >= (top - 2 * margin)[:, None]
        if int(namespace_of(near).count_nonzero(near)) > _MANY * len(top):
            return False
        near &= self._can_change(lo, hi, top, margin)[:, None]
        self._offer_near(lo, near, columns)
        return True

    def update(self, lo: int, hi: int, scores: Array, columns: Array) -> None:
        """Take the scores (hi - lo, c) of rows lo to hi against ``columns`` (c,) of x."""
        top = scores.max(axis=1)
        margin = np.float32(self.x.margin)
        least = namespace_of(top).where(
            self._can_change(lo, hi, top, margin), top - 2 * margin, np.float32(np.inf)
        )
        self._offer_near(lo, scores >= least[:, None], columns)

    def _can_change(self, lo: int, hi: int, top: Array, margin: np.float32) -> Array:
        """Return whether the best of each row can change; the margin makes sure that this loses none."""
        return top >= self.similarity[lo:hi] - margin

    def _offer_near(self, lo: int, near: Array, columns: Array) -> None:
        """Offer each row the best of its columns that are ``near`` (m, c) its highest score, the first of equals.

        Rows with many of these are compared once more, by a product in float64.
        """
        xp = namespace_of(near)
        at = xp.flatnonzero(near)
        i = at // near.shape[1]
        many = xp.bincount(i, minlength=len(near)) > _MANY
        if many.any():
            rows = xp.flatnonzero(many)
            mine = near[rows]
            some = xp.flatnonzero(mine.any(axis=0))
            exact = self.y.exact_tile(rows + lo, self.x, columns[some])
            exact[~mine[:, some]] = NEVER
            self.offer(rows + lo, columns[some[exact.argmax(axis=1)]])
            few = ~many[i]
            at, i = at[few], i[few]
        j = at - i * near.shape[1]
        first = xp.ones(len(i), dtype=bool)
        first[1:] = i[1:] != i[:-1]
        self.offer(i[first] + lo, columns[j[first]])
        if first.all():
            return
        rows, others = i[~first] + lo, columns[j[~first]]
        exact = self.y.exact(rows, self.x, others)
        # the rows come in order as they are; of the candidates of each, the best goes first
        keys = [others.astype(np.float64), -exact.astype(np.float64), rows.astype(np.float64)]
        order = xp.lexsort(xp.stack(keys))
        best = order[xp.append(xp.ones(1, bool), rows[1:] != rows[:-1])]
        self._accept(rows[best], exact[best], others[best])

    def offer(self, rows: Array, columns: Array) -> None:
        """Take ``columns`` of x as the match of ``rows``, none of which comes twice, where that is better."""
        if not len(rows):
            return
        # most often these are all rows but the first: their float64 values need no gathering then
        if (count := int(rows[-1] - rows[0]) + 1) == len(rows):
            rows = slice(int(rows[0]), int(rows[0]) + count)
        self._accept(rows, self.y.exact(rows, self.x, columns), columns)

    def _accept(self, rows: Any, similarity: Array, columns: Array) -> None:
        xp = namespace_of(similarity)
        position, old, before = columns + self.x.start, self.similarity[rows], self.position[rows]
        better = (similarity > old) | ((similarity == old) & (position < before))
        self.similarity[rows] = xp.where(better, similarity, old)
        self.position[rows] = xp.where(better, position, before)
