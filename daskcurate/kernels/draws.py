"""Random draws keyed by what they are for (a seed and a row number), never by the order of execution."""

import hashlib
import json

import numpy as np

from daskcurate.arrays import Array

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = 2**64 - 1


def row_hash(seed: int, rows: Array) -> Array:
    """Return 64 random bits for every row number: splitmix64 of the row XORed with the mixed seed.

    Parameters
    ----------
    seed
        Seeds far apart or next to each other give unrelated hashes.
    rows
        int64, any shape, NumPy or CuPy.

    Returns
    -------
    array
        uint64, the shape of ``rows``; different rows have different hashes.
    """
    state = (seed + _GOLDEN) & _MASK
    state = ((state ^ (state >> 30)) * _MIX_1) & _MASK
    state = ((state ^ (state >> 27)) * _MIX_2) & _MASK
    key = np.uint64(state ^ (state >> 31))
    # One dimension at least: arrays wrap silently, scalars warn.
    z = (rows.astype(np.uint64).reshape(-1) ^ key) + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return (z ^ (z >> np.uint64(31))).reshape(rows.shape)


def row_uniform(seed: int, rows: Array) -> Array:
    """Return a float64 in [0, 1) for every row number: the top 53 bits of :func:`row_hash`."""
    return (row_hash(seed, rows) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def derive_seed(seed: int, *names: str | int) -> int:
    """Return the 63-bit seed of the part called ``names`` of whatever ``seed`` seeds.

    Numbers and strings are told apart (``1`` is not ``"1"``), and so are ("ab", "c") and ("a", "bc").
    """
    parts = [int(seed), *(name if isinstance(name, str) else int(name) for name in names)]
    text = json.dumps(parts, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
