"""The best match of each row among the rows of blocks, a pair of tiles at a time.

A float32 product of two tiles finds the candidates of each row: those columns that the product's rounding cannot
tell from the best. What is reported of them is computed again (:mod:`daskcurate.kernels.blocks`): no result depends,
in any bit, on how a product was rounded.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from daskcurate.arrays import Array, namespace_of
from daskcurate.kernels.blas import own_products
from daskcurate.kernels.blocks import Block
from daskcurate.kernels.products import choose, unit_margin

_MANY = 8  # candidates a row, from which on another product is less work than one after another
NEVER = -9.0
"""Stands for pairs that are not to be compared; below every similarity and every margin."""
_NONE = -4.0  # the best of a row that has been compared with nothing
_GROUP = 1 << 17  # scores of small tiles that are looked at together: half a MiB, which stays in the cache


class Scores:
    """Float32 products of two tiles, or of several each with itself, all in the one buffer."""

    def __init__(self, x: Block, y: Block):
        self._tiles = x, y
        self._buffer: Array = None

    def _out(self, rows: int, columns: int) -> Array:
        if self._buffer is None:
            widest = [max((hi - lo for lo, hi in block.spans), default=0) for block in self._tiles]
            size = max(widest[0] * widest[1], _GROUP)
            self._buffer = namespace_of(self._tiles[0].raw).empty(size, np.float32)
        return self._buffer[: rows * columns].reshape(rows, columns)

    def __call__(self, a: Array, b: Array) -> Array:
        """Return a @ b.T; until the next call."""
        return namespace_of(a).matmul(a, b.T, out=self._out(len(a), len(b)))

    def earlier(self, rows: Array, sizes: Sequence[int]) -> Array:
        """Return the products of the rows of tiles, one after another, with the earlier ones of their tile.

        (m, c), where c is the size of the largest tile; ``NEVER`` elsewhere. Until the next call.
        """
        if len(sizes) == 1 and namespace_of(rows) is not np:
            mask_later(scores := self(rows, rows))
            return scores
        scores = self._out(len(rows), max(sizes))
        scores.fill(NEVER)
        lo = 0
        for size in sizes:
            if size > 1:
                tile = scores[lo : lo + size, :size]
                own_products(rows[lo : lo + size], tile)
                np.fill_diagonal(tile, NEVER)
            lo += size
        return scores


def grouped(spans: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield tiles, one after another, that :meth:`Scores.earlier` takes together: of about one size, and not many."""
    group: list[tuple[int, int]] = []
    widest = area = 0
    for lo, hi in spans:
        wider, larger = max(widest, hi - lo), area + (hi - lo) ** 2
        padded = wider * (hi - group[0][0]) if group else 0
        if group and (padded > _GROUP or padded > max(1.25 * larger, _GROUP / 8)):
            yield group
            group, wider, larger = [], hi - lo, (hi - lo) ** 2
        group.append((lo, hi))
        widest, area = wider, larger
    if group:
        yield group


def mask_later(scores: Array) -> None:
    """Lower the scores (m, m) of a tile with itself to ``NEVER``, but those of a row with earlier ones."""
    xp = namespace_of(scores)
    xp.copyto(scores, np.float32(NEVER), where=~xp.tri(len(scores), k=-1, dtype=bool))


class Near(NamedTuple):
    """Which columns may be the best of some rows, one after another."""

    lo: int
    """The first of the rows."""
    can: Array
    """bool (m,): rows whose match can change."""
    columns: Array
    """(m,): the only such column of each of them, or the first."""
    open_rows: Array
    """(o,): rows with others, too."""
    others: Array
    """bool (o, c): the others."""
    names: Array
    """(c,): the columns that ``others`` stands for; in each row they start at ``starts``."""
    starts: Array
    """(o,)."""

    def pair(self, i: Array, j: Array) -> tuple[Array, Array]:
        """Return the rows and columns of some of the others."""
        return self.open_rows[i], self.names[j] + self.starts[i]


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
            if len(columns):
                if near := self._near_rounded(lo, hi, columns):
                    self._offer_near([near])
                else:
                    self.update(lo, self.product(self.y.unit[lo:hi], unit), columns)

    def sweep_own(self, spans: Sequence[tuple[int, int]]) -> None:
        """Compare each row of some tiles with those before it in its tile; x and y are one block."""
        xp, found = namespace_of(self.similarity), []
        single = xp is not np or self._low is not None
        ones = [[(lo, hi)] for lo, hi in spans if hi - lo > 1]
        for group in ones if single else grouped(spans):
            (lo, hi), last = group[0], group[-1][1]
            near = self._near_rounded(lo, hi, xp.arange(lo, hi), own=True)
            if near is None:
                sizes = [stop - start for start, stop in group]
                scores = self.product.earlier(self.y.unit[lo:last], sizes)
                starts = xp.repeat(xp.asarray([start for start, _ in group]), sizes)
                near = self._near(lo, scores, xp.arange(scores.shape[1]), starts)
            found.append(near)
        self._offer_near(found)

    def update(self, lo: int, scores: Array, columns: Array) -> None:
        """Take the scores (m, c) of rows lo to lo + m against ``columns`` (c,) of x; they are overwritten."""
        self._offer_near([self._near(lo, scores, columns, namespace_of(scores).zeros(len(scores), np.int64))])

    def _near_rounded(self, lo: int, hi: int, columns: Array, *, own: bool = False) -> Near | None:
        """Compare rows lo to hi with ``columns`` of x in low precision (``own``: with those before each).

        Return None where there is none or it leaves much open. Whether that is too much depends on the tiles
        alone and not on what was found before.
        """
        if self._low is None:
            return None
        scores = self._low.multiply(self.y.rounded[lo:hi], self.x.rounded[columns])
        if own:
            mask_later(scores)
        margin = np.float32(self.x.margin + unit_margin(self.x.unit.shape[1], self._low))
        top = scores.max(axis=1)
        near = scores >= (top - 2 * margin)[:, None]
        xp = namespace_of(near)
        if int(xp.count_nonzero(near)) > _MANY * len(top):
            return None
        can = self._can_change(lo, top, margin)
        near &= can[:, None]
        first = near.argmax(axis=1)
        near[xp.arange(hi - lo), first] = False
        left = xp.flatnonzero(near.any(axis=1))
        return Near(lo, can, columns[first], left + lo, near[left], columns, xp.zeros(len(left), np.int64))

    def _near(self, lo: int, scores: Array, names: Array, starts: Array) -> Near:
        """Return the columns whose scores (m, c) the product's rounding cannot tell from the highest.

        Column j of row i is column ``starts[i] + names[j]`` of x.
        """
        xp, (m, c) = namespace_of(scores), scores.shape
        first, flat = scores.argmax(axis=1), scores.reshape(-1)
        at = first + xp.arange(0, m * c, c)
        top = flat[at]
        flat[at] = NEVER
        margin = np.float32(self.x.margin)
        least, can = top - 2 * margin, self._can_change(lo, top, margin)
        left = xp.flatnonzero((scores.max(axis=1) >= least) & can)
        others = scores[left] >= least[left, None]
        if len(left):
            every = xp.arange(len(left))
            others[every, first[left]] = True
            first[left] = lowest = others.argmax(axis=1)
            others[every, lowest] = False
        return Near(lo, can, names[first] + starts, left + lo, others, names, starts[left])

    def _can_change(self, lo: int, top: Array, margin: np.float32) -> Array:
        """Return whether the best of each row can change; the margin makes sure that this loses none."""
        return top >= self.similarity[lo : lo + len(top)] - margin

    def _offer_near(self, found: Sequence[Near]) -> None:
        """Offer each row the best of the columns that are near its highest score, the first of equals.

        Rows with many of these are compared once more, by a product in float64.
        """
        self._offer_firsts(found)
        found = [near for near in found if len(near.open_rows)]
        if not found:
            return
        xp = namespace_of(self.similarity)
        # nothing is better than a copy, and what is as good comes later
        undecided = self.similarity[_joined(xp, [near.open_rows for near in found])] < 1
        pairs, at = [], 0
        for near in found:
            at, own = at + len(near.open_rows), xp.flatnonzero(undecided[at : at + len(near.open_rows)])
            i, j = near.others[own].nonzero()
            i = own[i]
            rows = near.open_rows[i]
            if (many := rows[_MANY:] == rows[:-_MANY]).any():
                i, j = self._settle_many(near, xp.unique(i[_MANY:][many]), i, j)
            pairs.append(near.pair(i, j))
        rows, columns = (_joined(xp, parts) for parts in zip(*pairs, strict=True))
        if not len(rows):
            return
        exact = self.y.exact(rows, self.x, columns)
        # the rows come in order as they are; of the candidates of each, the best goes first
        keys = [columns.astype(np.float64), -exact.astype(np.float64), rows.astype(np.float64)]
        order = xp.lexsort(xp.stack(keys))
        best = order[xp.append(xp.ones(1, bool), rows[1:] != rows[:-1])]
        self._accept(rows[best], exact[best], columns[best])

    def _offer_firsts(self, found: Sequence[Near]) -> None:
        """Offer each row the first of the columns near its highest score."""
        if not found:
            return
        xp = namespace_of(self.similarity)
        can, columns = (_joined(xp, [near[field] for near in found]) for field in (1, 2))
        lo, last = found[0].lo, found[-1]
        if (hi := last.lo + len(last.can)) - lo == len(can) <= 2 * int(xp.count_nonzero(can)):
            # nearly all rows of a block, so that their float64 values need no gathering
            self._accept(slice(lo, hi), self.y.exact(slice(lo, hi), self.x, columns), columns, can)
            return
        rows = _joined(xp, [near.lo + xp.arange(len(near.can)) for near in found])[can]
        self.offer(rows, columns[can])

    def _settle_many(self, near: Near, many: Array, i: Array, j: Array) -> tuple[Array, Array]:
        """Offer the open rows ``many`` the best of their others; return the pairs (i, j) of the rest."""
        xp = namespace_of(self.similarity)
        for start in xp.unique(near.starts[many]).tolist():  # tile by tile: in each, columns start elsewhere
            own = many[near.starts[many] == start]
            mine, rows = near.others[own], near.open_rows[own]
            used = xp.flatnonzero(mine.any(axis=0))
            columns = near.names[used] + start
            exact = self.y.exact_tile(rows, self.x, columns)
            exact[~mine[:, used]] = NEVER
            self.offer(rows, columns[exact.argmax(axis=1)])
        few = ~xp.isin(i, many)
        return i[few], j[few]

    def offer(self, rows: Array, columns: Array) -> None:
        """Take ``columns`` of x as the match of ``rows``, none of which comes twice, where that is better."""
        if len(rows):
            self._accept(rows, self.y.exact(rows, self.x, columns), columns)

    def _accept(self, rows: Any, similarity: Array, columns: Array, can: Array | None = None) -> None:
        """Take matches of ``rows``, or of those of them that ``can`` marks, where they are better."""
        xp = namespace_of(similarity)
        position, old, before = columns + self.x.start, self.similarity[rows], self.position[rows]
        better = (similarity > old) | ((similarity == old) & (position < before))
        if can is not None:
            better &= can
        self.similarity[rows] = xp.where(better, similarity, old)
        self.position[rows] = xp.where(better, position, before)


def _joined(xp: Any, parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else xp.concatenate(parts)
