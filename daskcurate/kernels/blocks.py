"""Blocks of rows made ready for comparing, and the similarity of pairs of them, exact but for one rounding.

It is computed in float64 from the rows as given and then rounded to float32: no result depends, in any bit, on how
rows are cut into blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from daskcurate.arrays import Array, namespace_of, row_dots, to_float32
from daskcurate.kernels.products import choose

_PIECE = 128  # pairs measured at a time, whose rows stay in the cache


class Room:
    """Memory that is used again and again; what is not at hand in the cache costs as much as computing with it."""

    def __init__(self, xp: Any):
        self._xp, self._held = xp, dict[str, Array]()

    def take(self, name: str, shape: tuple[int, int], dtype: Any) -> Array:
        """Return an array with any values in it, until the next call with the same name."""
        size = shape[0] * shape[1]
        if name not in self._held or len(self._held[name]) < size:
            self._held[name] = self._xp.empty(size, dtype)
        return self._held[name][:size].reshape(shape)


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
        # adding up in any order, and scaling and rounding the two rows
        return 2.0**-24 * (1.01 * self.raw.shape[1] + 8)

    def each(self) -> Iterator["Block"]:
        """Yield a block for each tile, which starts at place 0 of a cluster of its own."""
        for lo, hi in self.spans:
            own = None if self.rounded is None else self.rounded[lo:hi]
            wide = None if self.wide is None else self.wide[lo:hi]
            yield Block(self.raw[lo:hi], self.unit[lo:hi], self.norm[lo:hi], 0, [(0, hi - lo)], own, wide)

    def take_wide(self, rows: Any, room: Room | None = None) -> Array:
        """Return some rows as given in float64, in the memory of ``room`` if given."""
        if self.wide is None:
            return self.raw[rows].astype(np.float64)
        if isinstance(rows, slice):
            return self.wide[rows]
        if room is None or namespace_of(self.wide) is not np:
            return self.wide[rows]
        # without clipping, which nothing needs, NumPy writes to a copy of ``out`` first
        out = room.take("wide", (len(rows), self.wide.shape[1]), np.float64)
        return np.take(self.wide, rows, axis=0, out=out, mode="clip")

    def exact(self, rows: Any, other: "Block", columns: Array) -> Array:
        """Return the similarity of pairs (row here, row of ``other``): float64, rounded to float32."""
        xp = namespace_of(self.raw)
        rooms, whole = (Room(xp), Room(xp)), isinstance(rows, slice)
        dots, step = xp.empty(len(columns), np.float64), _PIECE if xp is np else max(1, len(columns))
        for at in range(0, len(columns), step):
            stop = min(at + step, len(columns))
            mine = slice(rows.start + at, rows.start + stop) if whole else rows[at:stop]
            dots[at:stop] = row_dots(
                self.take_wide(mine, rooms[0]), other.take_wide(columns[at:stop], rooms[1])
            )
        return rounded(xp, dots, self.norm[rows] * other.norm[columns])

    def exact_tile(self, rows: Array, other: "Block", columns: Array) -> Array:
        """Return the similarities of all pairs of some rows here and some of ``other``: the bits of :meth:`exact`.

        One product in float64 is less work than pair by pair.
        """
        xp = namespace_of(self.raw)
        dots = self.take_wide(rows) @ other.take_wide(columns).T
        dots *= (1 / self.norm[rows])[:, None]
        dots *= 1 / other.norm[columns]
        found, unsure = rounded_surely(xp, dots, self.raw.shape[1])
        i, j = unsure.nonzero()
        if len(i):
            found[i, j] = self.exact(rows[i], other, columns[j])
        return found


def rounded_surely(xp: Any, similarities: Array, width: int) -> tuple[Array, Array]:
    """Return similarities of rows of ``width`` numbers in float32, at most 1, and bool, which are not sure.

    A product of many rows adds up in an order that depends on its shape. Not sure is what sums in another order may
    round to the next float32: about one of a million, to be computed again as a pair. ``similarities``, float64, are
    overwritten.
    """
    away = 2.0**-51 * (width + 8)
    similarities -= away
    low = similarities.astype(np.float32)
    similarities += 2 * away
    high = similarities.astype(np.float32)
    one = np.float32(1)
    return xp.minimum(low, one, out=low), low != xp.minimum(high, one, out=high)


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


def _prepared(x: Array, room: Room) -> tuple[Array, Array, Array]:
    """Return rows in float64, with length 1 in float32, and their lengths."""
    xp = namespace_of(x)
    narrow = to_float32(x, room.take("unit", x.shape, np.float32))
    xp.copyto(wide := room.take("wide", x.shape, np.float64), narrow)
    norm = xp.sqrt(row_dots(wide, wide))
    return wide, unit_of(x, narrow, norm), norm


def prepare(x: Array, start: int, tile: int, room: Room | None = None) -> Block:
    """Return a block of rows (m, d), of which the first has place ``start`` in the order of its cluster.

    With ``room``, the block is good until that is used for the next one.
    """
    xp = namespace_of(x)
    room = room or Room(xp)
    m, d = x.shape
    edges = [0, *range(tile - start % tile, m, tile), m]
    spans = [(lo, hi) for lo, hi in zip(edges[:-1], edges[1:], strict=True) if hi > lo]
    wide = None
    if len(spans) == 1:
        wide, unit, norm = _prepared(x, room)
    else:
        unit, norm = xp.empty((m, d), np.float32), xp.empty(m, np.float64)
        for lo, hi in spans:
            _, unit[lo:hi], norm[lo:hi] = _prepared(x[lo:hi], room)
    return Block(x, unit, norm, start, spans, _in_low_precision(unit), wide)


def prepare_each(x: Array, edges: list[int], room: Room) -> Block:
    """Return one block of several small clusters, one after another in ``x``: each is a tile of it.

    It is good until ``room`` is used for the next one.
    """
    wide, unit, norm = _prepared(x, room)
    return Block(x, unit, norm, 0, list(pairwise(edges)), _in_low_precision(unit), wide)


def _in_low_precision(unit: Array) -> Any:
    product = choose(namespace_of(unit))
    return None if product is None else product.rounded(unit)[0]
