"""Products in a precision below float32, and how far they can be off.

Rows are scaled by powers of two, so that the largest entry of each lies in [0.5, 1), and rounded: nothing
overflows, and what underflows is far below the rounding of the largest entry. How far each rounded row is from
the row itself is computed, not estimated. With r, c a row and a centroid and r', c' what they are rounded to,

    |r.c - r'.c'| <= |r - r'| |c| + |r'| |c - c'|,

and the products of r' and c' are added up in float32. A result is so known within a bound, and what lies within
it is decided in float32 or float64: labels do not depend on the precision of the first pass.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from daskcurate.arrays import Array, launch, multiply_halves, namespace_of, row_dots

VARIABLE = "DASKCURATE_PRECISION"
"""Environment variable of the workers: ``auto`` (float16 on GPUs, float32 on CPUs), ``float32``, ``float16`` or
``bfloat16`` (CPUs, by torch)."""
_ADDING = 2.0**-22
"""Rounding of one addition of a product, of its own size: float32's with room for units that cut off."""


class Product(Protocol):
    """How rows are rounded and multiplied."""

    name: str
    unit: float
    """Relative rounding of an entry."""
    output: float
    """Relative rounding of a result, besides that of adding up."""

    def rounded(self, x: Array) -> tuple[Array, Array]:
        """Return float32 rows as they are multiplied, and the float32 values of these."""

    def multiply(self, a: Array, b: Array) -> Array:
        """Return a @ b.T in float32, of rows as :meth:`rounded` returns them."""


class Halves:
    """float16 on a GPU's tensor cores, added up in float32."""

    name, unit, output = "float16", 2.0**-11, 0.0

    def rounded(self, x: Array) -> tuple[Array, Array]:
        """Return the rows in float16, with columns of zeros where the tensor cores like more of them."""
        xp = namespace_of(x)
        m, d = x.shape
        held = xp.zeros((m, -(-d // 8) * 8), np.float16)  # tensor cores take rows of multiples of 16 bytes
        held[:, :d] = x
        return held, held[:, :d].astype(np.float32)

    def multiply(self, a: Array, b: Array) -> Array:
        """Return a @ b.T in float32."""
        return multiply_halves(a, b, namespace_of(a).empty((a.shape[0], b.shape[0]), np.float32))


class TorchBfloat16:
    """bfloat16 on a CPU that has instructions for it, by torch; the result is rounded to bfloat16 as well."""

    name, unit, output = "bfloat16", 2.0**-8, 2.0**-8

    def __init__(self) -> None:
        import torch

        self._torch = torch

    def rounded(self, x: Array) -> tuple[Any, Array]:
        """Return the rows as a tensor of bfloat16, and its values."""
        held = self._torch.from_numpy(np.ascontiguousarray(x)).bfloat16()
        return held, held.float().numpy()

    def multiply(self, a: Any, b: Any) -> Array:
        """Return a @ b.T, rounded to bfloat16, as float32."""
        return self._torch.nn.functional.linear(a, b).float().numpy()


def precision() -> str:
    """Return the precision that this process is told to use."""
    name = os.environ.get(VARIABLE, "auto")
    if name not in ("auto", "float32", "float16", "bfloat16"):
        raise ValueError(f"{VARIABLE}={name!r} is not allowed: give auto, float32, float16 or bfloat16")
    return name


def choose(xp: Any) -> Product | None:
    """Return the product to use first on arrays of ``xp``; None: float32 at once."""
    return _choose(xp is np, precision())


@cache
def _choose(on_host: bool, name: str) -> Product | None:
    if name == "float32" or (name == "auto" and on_host):
        return None
    if on_host != (name == "bfloat16"):
        where, other = ("CPUs", "bfloat16") if on_host else ("GPUs", "float16")
        raise ValueError(f"{VARIABLE}={name} is not for {where}: give auto, float32 or {other}")
    return TorchBfloat16() if on_host else Halves()


class Rounded(NamedTuple):
    """Rows rounded for a product. Lengths are of the scaled rows, and upper bounds."""

    held: Any
    """What is multiplied."""
    factors: Array
    """(m,) float32: powers of two that undo the scaling."""
    length: Array
    """(m,) float32: length of each rounded row."""
    gap: Array
    """(m,) float32: distance of each row and what it was rounded to."""


def round_rows(x: Array, product: Product, *, together: bool = False) -> Rounded:
    """Round rows (m, d) float32.

    Parameters
    ----------
    together
        Whether all rows are scaled alike, by the largest entry of all.
    """
    xp, d = namespace_of(x), x.shape[1]
    largest = abs(x).max(axis=1) if d else xp.zeros(x.shape[0], np.float32)
    if together and x.shape[0]:
        largest = xp.broadcast_to(largest.max(), largest.shape)
    exponent = xp.clip(xp.frexp(largest)[1], -100, 100).astype(np.int32)
    one = xp.ones(x.shape[0], np.float32)
    scaled = x * xp.ldexp(one, -exponent)[:, None]
    held, back = product.rounded(scaled)
    gap = scaled - back
    above = np.float32(1 + (d + 8) * 2.0**-23)
    # the squares of what is below 2^-63 are lost in float32
    lost = np.float32(d**0.5 * 2.0**-63)
    length, gap = (xp.sqrt(row_dots(rows, rows)) * above + lost for rows in (back, gap))
    return Rounded(held, xp.ldexp(one, exponent), length, gap)


def unit_margin(width: int, product: Product) -> float:
    """Return more than the product of two rounded rows of length 1 can differ from that of the rows themselves.

    From the precision alone, not from the rows: it does not depend on how these are cut into blocks. Rows of
    length 1 need no scaling; entries below the normal range are rounded by 2^-25 at most.
    """
    gap = 1.0001 * product.unit + width**0.5 * 2.0**-25
    return gap * (2 + gap) + ((width + 32) * _ADDING + product.output) * (1 + gap) ** 2


class Coarse:
    """Scores x.c - |c|^2 / 2 of rows and a table of centroids, rounded first; see :class:`.assign.Scorer`."""

    def __init__(self, table: Array, halves: Array, longest: np.float32, product: Product):
        xp = namespace_of(table)
        self.product, self._halves = product, halves.astype(np.float32)
        self._table = round_rows(table, product, together=True)
        self._factor = self._table.factors[:1]
        none = xp.zeros(1, np.float32)
        self._gap = xp.concatenate([none, self._table.gap]).max()
        self._length = xp.concatenate([none, self._table.length]).max()
        self._size, self._longest = table.shape[0], longest
        self._adding = np.float32((table.shape[1] + 32) * _ADDING + product.output)

    def rows(self, moved: Array, error: Array) -> tuple[Rounded, Array]:
        """Return rows (m, d) rounded, and the bound (m,) of their scores' error; ``error`` is float32's."""
        own = round_rows(moved, self.product)
        factors = own.factors * self._factor
        # scaled, the longest centroid is as long as its rounded self and the rounding make it
        reach = self._length + self._gap
        off = own.gap * reach + own.length * (self._gap + self._adding * reach)
        return own._replace(factors=factors), error + factors * off * np.float32(1 + 1e-5)

    def scores(self, own: Rounded, first: int, last: int) -> Array:
        """Return the scores (m, last - first) float32 of some centroids."""
        found = self.product.multiply(own.held, self._table.held[first:last])
        found *= own.factors[:, None]
        found -= self._halves[first:last]
        return found

    def top_two(self, own: Rounded, first: int, last: int) -> tuple[Array, Array, Array]:
        """Return what :func:`top_two` returns of these scores."""
        found = self.product.multiply(own.held, self._table.held[first:last])
        return top_two(found, own.factors, self._halves[first:last])


def top_two(
    scores: Array, factors: Array | None = None, halves: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return the first of the highest scores of each row, its value, and the highest of the others, (m,) each.

    Parameters
    ----------
    scores
        (m, k) float32, k > 0; overwritten.
    factors, halves
        (m,) and (k,) float32: the scores are ``factors[:, None] * scores - halves``. None: as they are.
    """
    xp = namespace_of(scores)
    m, k = scores.shape
    if xp is not np and m:
        best, top, second = xp.empty(m, np.int64), xp.empty(m, np.float32), xp.empty(m, np.float32)
        scaled = factors is not None
        threads = min(256, max(32, 1 << (k - 1).bit_length()))
        given = (factors, halves) if scaled else (scores, scores)
        launch(xp, "top_two", (m,), threads, scores, *given, np.int32(scaled), np.int64(k), best, top, second)
        return best, top, second
    if factors is not None:
        scores *= factors[:, None]
        scores -= halves
    every, best = xp.arange(m), scores.argmax(axis=1)
    top = scores[every, best]
    scores[every, best] = -np.inf
    return best, top, scores.max(axis=1)
