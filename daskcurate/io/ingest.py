"""Embeddings of any known kind into a pool."""

import sys
import warnings
from dataclasses import replace
from typing import Any

import dask
import numpy as np

from daskcurate.config import check_int, digest
from daskcurate.embeddings import DTYPES, Embeddings, open_embeddings
from daskcurate.io import pool
from daskcurate.io.ids import is_text, open_ids
from daskcurate.io.layout import chunk_rows_for
from daskcurate.io.paths import PathLike, as_url
from daskcurate.io.resolve import Options, open_source
from daskcurate.io.rows import convert_rows, is_unit
from daskcurate.io.sources import BadRow, DaskRows, RowSource, describe_row
from daskcurate.runner import run_tasks

SAMPLE_ROWS = 1024


def ingest(
    source: Any,
    dest: PathLike,
    *,
    ids: Any = None,
    normalize: bool | None = None,
    dtype: Any = None,
    overwrite: bool = False,
    format: str | None = None,
    column: str | None = None,
    shape: tuple[int, int] | None = None,
    source_dtype: Any = None,
    chunk_rows: int | None = None,
) -> Embeddings:
    """Copy embeddings into a pool: a zarr store of checked rows in whole-row chunks.

    Rows are read, checked and written a chunk at a time by tasks of the current Dask client (arrays in
    memory: by this process). The pool appears at ``dest`` when it is whole; after an error, or if the
    process is killed, ``dest`` is as it was before.

    Parameters
    ----------
    source
        Rows of shape (n, d), of float16, float32 or float64: a NumPy, Dask or zarr array; a pool; a path,
        glob, URL or list of paths of ``.npy`` or ``.parquet`` files; a folder of such files; a headerless
        file (with ``shape`` and ``source_dtype``); a zarr array, or a zarr group with one such array.
        Files of a folder or glob are taken in natural order, those of a list in the order given.
    dest
        Path or URL of the pool.
    ids
        An id a row, all integers or all strings, without repeats: a sequence or array (also fixed-width
        bytes, as in ``S24`` memmaps); a path to ``.npy``, ``.parquet`` (first column of integers or
        strings, or ``"file.parquet:column"``) or ``.txt`` (one a line); or the name of a column of a
        parquet source. None: those of a source that is a pool; otherwise row numbers serve as ids.
    normalize
        True: divide every row by its L2 norm. False: leave the rows as they are. None: leave them, and
        warn if they are not of unit length. Whether they are is recorded in the pool either way.
    dtype
        ``"float16"`` or ``"float32"``; None keeps these, and makes float64 float32.
    overwrite
        Whether a pool at ``dest`` may be replaced; it is, once the new one is whole.
    format
        Insist on a format: "array", "npy", "memmap", "parquet", "zarr" or "pool".
    column
        The column of a parquet source, or the array of a zarr group, that holds the rows.
    shape, source_dtype
        Rows and width (rows may be -1), and number type, of a headerless file.
    chunk_rows
        Rows in a chunk; None: chunks of 2 to 64 MiB, by the size of the pool.

    Returns
    -------
    Embeddings
        The open pool.

    Raises
    ------
    FileNotFoundError
        If a file, or any match of a glob, is missing.
    FileExistsError
        If something is at ``dest`` and ``overwrite`` is False.
    TypeError, ValueError
        For arguments or rows that cannot be used; the message names the file and the row.

    Warns
    -----
    UserWarning
        If ``normalize`` is None and the rows are not of unit length.
    """
    _check_flags(normalize, overwrite)
    options = Options(format=format, column=column, shape=shape, source_dtype=source_dtype)
    url = as_url(dest, "dest")
    wanted = _check_dtype(dtype)
    if chunk_rows is not None:
        chunk_rows = check_int("chunk_rows", chunk_rows, 1)
    pool.check_dest(url, overwrite)
    opened = open_source(source, options)
    id_source = open_ids(ids, opened)
    rows = opened.rows
    plan = _make_plan(url, rows, wanted, normalize is True, chunk_rows)
    if id_source is not None:
        plan = replace(plan, text_ids=is_text(id_source))
    warned = normalize is None and _warn_unless_unit(rows, plan.dtype)
    pool.recover(url)
    pool.check_dest(url, overwrite)
    try:
        _write(plan, rows, id_source, quiet=warned or normalize is not None)
    except BaseException:
        pool.give_up(plan)
        raise
    return open_embeddings(url)


def _check_flags(normalize: Any, overwrite: Any) -> None:
    if normalize is not None and not isinstance(normalize, bool):
        raise TypeError(f"normalize={normalize!r} is not allowed: give True, False or None")
    if not isinstance(overwrite, bool):
        raise TypeError(f"overwrite={overwrite!r} is not allowed: give True or False")


def _check_dtype(dtype: Any) -> str | None:
    if dtype is None:
        return None
    allowed = "give 'float16', 'float32' or None"
    try:
        name = str(np.dtype(dtype))
    except TypeError:
        raise TypeError(f"dtype={dtype!r} is not allowed: {allowed}") from None
    if name not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not allowed: {allowed}")
    return name


def _make_plan(
    dest: str, rows: RowSource, dtype: str | None, normalize: bool, chunk_rows: int | None
) -> pool.PoolPlan:
    n, d = rows.shape
    if dtype is None:
        dtype = "float16" if rows.dtype.itemsize == 2 else "float32"
    if chunk_rows is None:
        chunk_rows = chunk_rows_for(n, d, np.dtype(dtype).itemsize)
    return pool.PoolPlan(
        dest=dest, shape=(n, d), dtype=dtype, chunk_rows=min(chunk_rows, n), normalize=normalize
    )


def _write(plan: pool.PoolPlan, rows: RowSource, ids: RowSource | None, *, quiet: bool) -> None:
    """Write the pool and put it in its place; ids first, since they are cheap and may repeat."""
    pool.create(plan, ids is not None)
    ids_digest = None if ids is None else pool.write_ids(plan, ids)
    digests, low, high = pool.write_rows(plan, rows)
    normalized = plan.normalize or is_unit(low, high, plan.dtype)
    if not normalized and not quiet:
        _warn(f"norms of the rows of {rows.name} are from {low:.4g} to {high:.4g}")
    fingerprint = digest(list(plan.shape), plan.dtype, plan.chunk_rows, digests, ids_digest)
    pool.commit(plan, {"normalized": normalized, "fingerprint": fingerprint, "source": rows.name})


def _warn_unless_unit(rows: RowSource, dtype: str) -> bool:
    """Measure the norms of the first, middle and last rows; warn if they are not 1, and return whether."""
    n, size = len(rows), min(SAMPLE_ROWS, len(rows))
    low, high, n_sampled = np.inf, 0.0, 0
    for start in sorted({0, (n - size) // 2, n - size}):
        try:
            _, least, greatest = convert_rows(_sample(rows, start, start + size), "float32", False)
        except BadRow as bad:
            raise ValueError(f"{describe_row(rows, start + bad.row)} {bad.reason}") from None
        low, high, n_sampled = min(low, least), max(high, greatest), n_sampled + size
    if is_unit(low, high, dtype):
        return False
    shown = f"{min(n, n_sampled):,}"
    _warn(f"norms of the rows of {rows.name} are from {low:.4g} to {high:.4g} in a sample of {shown}")
    return True


def _sample(rows: RowSource, start: int, stop: int) -> np.ndarray:
    if isinstance(rows, DaskRows):
        return run_tasks([dask.delayed(np.asarray)(rows.array[start:stop])])[0]
    return rows.read(start, stop)


def _warn(measured: str) -> None:
    warnings.warn(
        f"{measured}: not of unit length, stored as they are. Give normalize=True to make them unit length, "
        "or normalize=False to leave them without this warning",
        UserWarning,
        stacklevel=_outside(),
    )


def _outside() -> int:
    """Return the stack level of the first caller outside this file, to whom a warning is shown."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    return level
