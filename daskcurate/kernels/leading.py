"""The leading directions of a pool: most of the spread of its rows in half of their numbers, or fewer.

Rows of embeddings vary little in most directions. With x', c' a row and a centroid in the D directions in which
rows vary most (the eigenvectors of a sample's covariance with the largest eigenvalues: principal component
analysis), and x", c" what is left of them, Cauchy and Schwarz give

    x.c <= x'.c' + |x"| |c"|,

which one product of width D + 2 computes for all pairs. So the few centroids that can be the nearest to a row
are found with about half of the work, and only these are compared in full; labels are the same as without.
What need not be exact, such as finding seeds and restricted passes, does with x' and c' alone.
"""

from typing import Any, NamedTuple

import numpy as np

from daskcurate.arrays import Array, namespace_of, row_dots, to_host

SHARE = 0.9
"""Share of the variance that the directions must hold ..."""
MOST = 0.6
"""... and the share of all directions that they may be at most: else they are not worth it."""
MULTIPLE = 32
"""Their number is a multiple of it."""
LEAST_WIDTH = 128
"""Narrower rows are compared as they are."""
FAR, FEW = 3.0, 0.01
"""Rows so many times as far from the mean as all but this share of the rows are outliers, and do not count:
each of a few could have a direction of its own."""
SAMPLE_ROWS = 16
"""Rows of the sample for each number of a row; from fewer than a quarter of it nothing is learnt."""
PROJECTED_ROWS = 512
"""Rows that are projected at a time."""
_UNIT = 2.0**-24


class Directions(NamedTuple):
    """The directions in which rows vary most."""

    shift: Array
    """(d,) float32: the mean row, which is taken off first."""
    basis: Array
    """(d, D) float32: unit columns at right angles to each other."""
    defect: float
    """How far ``basis.T @ basis`` is from the identity at most (Frobenius norm)."""

    @classmethod
    def of_table(cls, table: Array) -> "Directions":
        """Return the directions that :func:`leading_directions` found."""
        xp = namespace_of(table)
        wide = table[1:].astype(np.float64)
        gap = wide @ wide.T - xp.eye(len(wide))
        return cls(table[0], xp.ascontiguousarray(table[1:].T), float(xp.sqrt((gap * gap).sum())) * 1.01)


def leading_directions(sample: Array) -> Array:
    """Return the mean row and the leading directions of the rows ``sample`` (m, d) float32, (1 + D, d) float32.

    D is 0 where they would not pay: rows are narrow or few, or vary in too many directions.
    """
    xp = namespace_of(sample)
    m, d = sample.shape
    shift = sample.mean(axis=0, dtype=np.float64).astype(np.float32)[None]
    if d < LEAST_WIDTH or 4 * m < SAMPLE_ROWS * d:
        return shift
    near = _without_outliers(sample, shift)
    if len(near) < m:
        sample, m = near, len(near)
        shift = sample.mean(axis=0, dtype=np.float64).astype(np.float32)[None]
    covariance = xp.zeros((d, d))
    for start in range(0, m, 4096):
        part = (sample[start : start + 4096] - shift).astype(np.float64)
        covariance += part.T @ part
    variance, vectors = xp.linalg.eigh(covariance)
    held = np.cumsum(np.maximum(to_host(variance)[::-1], 0))
    count = int(np.searchsorted(held, SHARE * held[-1])) + 1
    count = -(-count // MULTIPLE) * MULTIPLE
    if count > MOST * d:
        return shift
    return xp.concatenate([shift, vectors[:, ::-1][:, :count].T.astype(np.float32)])


def _without_outliers(sample: Array, shift: Array) -> Array:
    """Return the rows (m, d) but for those that are far from ``shift`` (1, d) beside nearly all others."""
    xp, m = namespace_of(sample), len(sample)
    squares = xp.empty(m, np.float32)
    for start in range(0, m, 4096):
        moved = sample[start : start + 4096] - shift
        squares[start : start + 4096] = row_dots(moved, moved)
    rank = int((1 - FEW) * (m - 1))
    is_near = squares <= FAR * FAR * float(np.partition(to_host(squares), rank)[rank])
    return sample if bool(is_near.all()) else sample[is_near]


class Leading(NamedTuple):
    """Rows in the leading directions."""

    rows: Array
    """(m, D) float32."""
    tail: Array
    """(m,) float32: more than the length of what is left of each row."""
    squares: Array
    """(m,) float32: squared length of each whole row, from the mean row."""

    def of(self, rows: Any) -> "Leading":
        """Return some of the rows."""
        return Leading(self.rows[rows], self.tail[rows], self.squares[rows])


def rounding_of(directions: Directions) -> float:
    """Return how much the product of two projected rows can be off, as a share of the product of their lengths.

    Each number of a projected row is off by (d + 8) 2^-24 of the row's length at most, and there are D of them.
    """
    d, count = directions.basis.shape
    each = (d + 8) * _UNIT * count**0.5
    return 2 * each + each * each + directions.defect + (count + 16) * _UNIT


def project(x: Array, directions: Directions) -> Leading:
    """Return the rows ``x`` (m, d) float32 in the leading directions."""
    xp = namespace_of(x)
    m, count = x.shape[0], directions.basis.shape[1]
    rows = xp.empty((m, count), np.float32)
    tail, squares = xp.empty(m, np.float32), xp.empty(m, np.float32)
    spare = np.float32(2 * rounding_of(directions) + 4 * (x.shape[1] + 8) * _UNIT)
    for start in range(0, m, PROJECTED_ROWS):
        stop = start + PROJECTED_ROWS
        moved = x[start:stop] - directions.shift
        rows[start:stop] = xp.matmul(moved, directions.basis)
        square = row_dots(moved, moved)
        left = square - row_dots(rows[start:stop], rows[start:stop])
        tail[start:stop] = xp.sqrt(xp.maximum(left, 0) + spare * square) * np.float32(1 + 1e-6)
        squares[start:stop] = square
    return Leading(rows, tail, squares)


def unproject(x: Array, directions: Directions) -> Array:
    """Return the rows (m, d) float32 that lie nowhere but in the directions, and are ``x`` (m, D) there."""
    return namespace_of(x).matmul(x, directions.basis.T) + directions.shift


class LeadingTable:
    """Centroids in the leading directions, to be compared with rows in them."""

    def __init__(self, centroids: Array, directions: Directions):
        xp = namespace_of(centroids)
        k, d = centroids.shape
        own = project(centroids, directions)
        self.table = xp.empty((k, own.rows.shape[1] + 2), np.float32)
        self.table[:, :-2] = own.rows
        self.table[:, -2] = own.tail
        self.table[:, -1] = -0.5 * own.squares
        lengths = np.sqrt(to_host(own.squares).astype(np.float64)) if k else np.zeros(1)
        self._shortest, self._longest = lengths.min(), lengths.max() * (1 + 1e-6)
        self._share = np.float64(rounding_of(directions))
        self._rounding = np.float64((d + 32) * _UNIT)

    def bounds(self, lead: Leading) -> Array:
        """Return upper bounds (m, k) float32 of x.c - |c|^2 / 2, from the mean row, but for :meth:`error`."""
        xp = namespace_of(lead.rows)
        made = xp.empty((lead.rows.shape[0], self.table.shape[1]), np.float32)
        made[:, :-2] = lead.rows
        made[:, -2] = lead.tail
        made[:, -1] = 1
        return xp.matmul(made, self.table.T)

    def error(self, lead: Leading) -> Array:
        """Return more than :meth:`bounds`, and half of a row's squared length, can be off by, (m,) float64.

        Of centroids that can be the nearest to a row: no longer than :meth:`.assign.Scorer.reach` says.
        """
        xp = namespace_of(lead.rows)
        length = xp.sqrt(lead.squares.astype(np.float64))
        reach = xp.minimum(3 * length + 2 * self._shortest, self._longest)
        return 1.1 * (self._share + 3 * self._rounding) * length * reach + self._rounding * (
            reach * reach + lead.squares
        )
