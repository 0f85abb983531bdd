"""The N smallest of all rows by one key, exactly, without sorting them: counts by leading bits, twice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from dask.delayed import Delayed

from daskcurate.rows import add, tree

_HALF = 16


def float_bits(values: np.ndarray) -> np.ndarray:
    """Return float32 values as uint32 in the same order (NaN sorts last)."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    negative = bits >> np.uint32(31) == 1
    return np.where(negative, ~bits, bits | np.uint32(1 << 31))


def smallest(run: Any, keys: Sequence[Delayed], count: int, key: str) -> list[Delayed]:
    """Return per block which rows are among the ``count`` smallest of all blocks; ties go by row number.

    Parameters
    ----------
    keys
        A (bits uint32 (m,), eligible bool (m,)) pair per block.
    count
        Rows wanted, at most the eligible ones.
    """
    if count <= 0:
        return [run.task(_none, item, name="select", key=f"{key}-{i}") for i, item in enumerate(keys)]
    high = _histogram(run, keys, None, f"{key}-high")
    prefix, below = _bin_of(high, count)
    low = _histogram(run, keys, prefix, f"{key}-low")
    suffix, more = _bin_of(low, count - below)
    limit = (prefix << _HALF) | suffix
    wanted = count - below - more  # rows equal to the limit that are taken, the first ones
    equal = run.gather(
        [run.task(_equal, item, limit, name="select-ties", key=f"{key}-{i}") for i, item in enumerate(keys)]
    )
    before = np.cumsum([0, *equal[:-1]])
    return [
        run.task(_below, item, limit, max(0, wanted - int(before[i])), name="select", key=f"{key}-{i}")
        for i, item in enumerate(keys)
    ]


def _bin_of(histogram: np.ndarray, count: int) -> tuple[int, int]:
    """Return the bin that holds the ``count``-th smallest, and how many lie below the bin."""
    ends = np.cumsum(histogram)
    at = int(np.searchsorted(ends, count))
    return at, int(ends[at] - histogram[at])


def _histogram(run: Any, keys: Sequence[Delayed], prefix: int | None, key: str) -> np.ndarray:
    parts = [
        run.task(_count, item, prefix, name="select-count", key=f"{key}-{i}") for i, item in enumerate(keys)
    ]
    return run.gather([tree(run, add, parts, name="select-add", key=key)], "select")[0]


def _count(item: tuple[np.ndarray, np.ndarray], prefix: int | None) -> np.ndarray:
    bits = item[0][item[1]]
    if prefix is None:
        return np.bincount(bits >> np.uint32(_HALF), minlength=1 << _HALF)
    bits = bits[bits >> np.uint32(_HALF) == prefix]
    return np.bincount(bits & np.uint32((1 << _HALF) - 1), minlength=1 << _HALF)


def _none(item: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return np.zeros(len(item[0]), dtype=bool)


def _equal(item: tuple[np.ndarray, np.ndarray], limit: int) -> int:
    return int(((item[0] == np.uint32(limit)) & item[1]).sum())


def _below(item: tuple[np.ndarray, np.ndarray], limit: int, ties: int) -> np.ndarray:
    bits, eligible = item
    taken = (bits < np.uint32(limit)) & eligible
    taken[np.flatnonzero((bits == np.uint32(limit)) & eligible)[:ties]] = True
    return taken
