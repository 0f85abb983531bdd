"""Check, normalise and cast a block of rows: arrays in, arrays out."""

from typing import Any

import numpy as np

from daskcurate.io.sources import BadRow

SLAB_BYTES = 1 << 20  # of float32: stays in a core's cache
UNIT_TOLERANCE = {"float16": 1e-2, "float32": 1e-3}
SMALL, LARGE = 1e-15, 1e18  # outside, a squared norm may leave the range of float32
FLOAT16_MAX = 65504.0


def is_unit(low: float, high: float, dtype: Any) -> bool:
    """Tell whether norms from ``low`` to ``high`` count as unit length in ``dtype``."""
    tolerance = UNIT_TOLERANCE[str(np.dtype(dtype))]
    return abs(low - 1) <= tolerance and abs(high - 1) <= tolerance


def convert_rows(
    block: np.ndarray, dtype: Any, normalize: bool, *, near_unit: bool = False
) -> tuple[np.ndarray, float, float]:
    """Return the rows as ``dtype``, of unit length if asked, and their least and greatest norm before.

    Parameters
    ----------
    block
        (n, d) of float16, float32 or float64.
    dtype
        float16 or float32.
    normalize
        Whether each row is divided by its L2 norm, in float32, before the cast.
    near_unit
        Whether that is done to the rows alone whose norm is 1 up to the rounding of float16.

    Raises
    ------
    BadRow
        For the first row that holds NaN or an infinity, is zero, too long, or does not fit ``dtype``.
    """
    out = np.empty(block.shape, dtype)
    low, high = np.inf, 0.0
    step = max(1, SLAB_BYTES // (4 * block.shape[1]))
    for start in range(0, len(block), step):
        rows = slice(start, start + step)
        try:
            norms = _convert_slab(block[rows], out[rows], normalize, near_unit)
        except BadRow as bad:
            raise BadRow(start + bad.row, bad.reason) from None
        low, high = min(low, float(norms.min())), max(high, float(norms.max()))
    return out, low, high


def _convert_slab(raw: np.ndarray, out: np.ndarray, normalize: bool, near_unit: bool) -> np.ndarray:
    with np.errstate(all="ignore"):
        wide = np.ascontiguousarray(raw, np.float32)
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide)).astype(np.float64)
        odd = np.flatnonzero(~((norms > SMALL) & (norms < LARGE)))
        exact = raw[odd].astype(np.float64)
        for position, row in enumerate(odd):
            norms[row] = _checked_norm(int(row), exact[position], wide[row])
        if normalize or near_unit:
            scale = norms
            if not normalize:
                scale = np.where(np.abs(norms - 1) <= UNIT_TOLERANCE["float16"], norms, 1.0)
            own = None if np.may_share_memory(wide, raw) else wide
            wide = np.divide(wide, scale[:, None].astype(np.float32), out=own)
            wide[odd] = exact / scale[odd, None]
        out[...] = wide
    fits = norms.max() < FLOAT16_MAX and norms.min() > 2**-24 * np.sqrt(raw.shape[1])
    if out.dtype == np.float16 and not normalize and not fits:
        _check_float16(wide, out)
    if not normalize and (over := np.flatnonzero(norms > LARGE)).size:
        raise BadRow(
            over[0],
            f"has norm {norms[over[0]]:g}, whose square float32 cannot hold with those of others (at most "
            f"{LARGE:g}): give normalize=True, or scale the rows",
        )
    return norms


def _checked_norm(row: int, exact: np.ndarray, wide: np.ndarray) -> float:
    for test, what in ((np.isnan, "NaN"), (np.isinf, "an infinity")):
        if (found := np.flatnonzero(test(exact))).size:
            raise BadRow(row, f"holds {what} (in column {found[0]})")
    if not np.isfinite(wide).all():
        column = int(np.flatnonzero(~np.isfinite(wide))[0])
        raise BadRow(row, f"holds {exact[column]:g} (in column {column}), which overflows float32")
    if not wide.any():
        raise BadRow(row, "has zero norm" + (" in float32" if exact.any() else ""))
    return float(np.linalg.norm(exact))


def _check_float16(wide: np.ndarray, out: np.ndarray) -> None:
    if (over := np.argwhere(np.isinf(out))).size:
        row, column = over[0]
        raise BadRow(
            row,
            f"holds {wide[row, column]:g} (in column {column}), which overflows float16 (at most "
            f"{FLOAT16_MAX:g}): give dtype='float32', or normalize=True",
        )
    if (zero := np.flatnonzero(~out.any(axis=1))).size:
        raise BadRow(zero[0], "rounds to zero in float16: give dtype='float32', or normalize=True")
