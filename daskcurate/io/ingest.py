"""Embeddings of any known kind into a pool."""

import os
import sys
import warnings
from dataclasses import replace
from typing import Any

import dask
import numpy as np

import daskcurate.config
from daskcurate.config import check_flag, check_int, digest
from daskcurate.embeddings import DTYPES, Embeddings, open_embeddings
from daskcurate.io import pool
from daskcurate.io.chunkwise import Report
from daskcurate.io.ids import is_text, open_ids
from daskcurate.io.layout import chunk_rows_for
from daskcurate.io.paths import PathLike, as_url
from daskcurate.io.resolve import Opened, Options, open_source
from daskcurate.io.rows import convert_rows, is_unit
from daskcurate.io.source_states import run_digest
from daskcurate.io.sources import BadRow, DaskRows, RowReader, describe_row
from daskcurate.progress import job_progress
from daskcurate.runner import run_tasks

SAMPLE_ROWS = 1024
PACKAGE = os.path.dirname(daskcurate.config.__file__) + os.sep


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
    ids_dtype: Any = None,
    chunk_rows: int | None = None,
) -> Embeddings:
    """Copy embeddings into a pool: a zarr store of checked rows in whole-row chunks.

    Rows are read, checked and written a chunk at a time by tasks of the current Dask client (arrays in memory: by
    this process), and progress is shown unless the Dask setting ``daskcurate.progress`` is false. The pool
    appears at ``dest`` when it is whole; after an error, or if the process is killed, ``dest`` is as it was
    before.

    After an interruption (Ctrl-C, a killed process, a full disk) the chunks that were written wait in
    ``DEST.partial``, and the same call goes on with those that are missing: where the source is files and has
    not changed (name, size and time of change of each), and ids and settings are the same. Otherwise, and for
    arrays and tables in memory, it starts anew. The next call for ``dest`` removes what it does not use.

    Parameters
    ----------
    source
        Rows of shape (n, d), of float16, float32 or float64: a NumPy, Dask or zarr array; an Arrow table or a
        Hugging Face ``Dataset``; a pool; a path, glob, URL or list of them: ``.npy``, ``.npz``, ``.parquet``
        and Arrow files, webdataset tars, headerless files (with ``shape`` and ``source_dtype``), folders of
        such files, what ``Dataset.save_to_disk`` wrote, folders of clip-retrieval (LAION) and DataComp, zarr
        arrays and groups, AnnData. They are told apart by their first bytes, names and layout; docs/formats.md
        says how. Files of a folder or glob are taken in natural order, those of a list in the order given.
    dest
        Path or URL of the pool.
    ids
        An id a row, all integers or all strings, without repeats: a sequence or array (also fixed-width
        bytes, as in ``S24`` memmaps); a path to ``.npy``, ``.parquet`` (first column of integers or
        strings, or ``"file.parquet:column"``), ``.txt`` (one a line) or, with ``ids_dtype``, a headerless
        file; or the name of a column of a source with columns. None: the ids that the source comes with (a
        pool, a tar's keys, the metadata of clip-retrieval and DataComp, an AnnData index), otherwise row
        numbers. False: row numbers.
    normalize
        True: divide every row by its L2 norm. False: leave the rows as they are. None: leave them, and warn if
        they are not of unit length; but a float16 source whose rows are of unit length up to the rounding of
        float16 is normalised again. Whether the rows are of unit length is recorded in the pool.
    dtype
        ``"float16"`` or ``"float32"``; None keeps these, and makes float64 float32.
    overwrite
        Whether a pool at ``dest`` may be replaced; it is, once the new one is whole.
    format
        Insist on a format: "array", "npy", "npz", "memmap", "parquet", "arrow", "webdataset", "datacomp",
        "clip-retrieval", "zarr", "anndata" or "pool".
    column
        What holds the rows, where a source has several: the column of a parquet or Arrow file, the array of an
        ``.npz`` file or zarr group, the name in AnnData's ``obsm``, the extension in a tar (``"emb.npy"``), or
        ``"text_emb"`` of clip-retrieval.
    shape, source_dtype
        Rows and width (rows may be -1, and must be for several files), and number type, of a headerless file.
    ids_dtype
        Type of a headerless file of ids, such as ``"S24"``.
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
    check_flags(normalize, overwrite)
    options = Options(
        format=format, column=column, shape=shape, source_dtype=source_dtype, ids_dtype=ids_dtype
    )
    url = as_url(dest, "dest")
    wanted = check_dtype(dtype)
    if chunk_rows is not None:
        chunk_rows = check_int("chunk_rows", chunk_rows, 1)
    pool.check_dest(url, overwrite)
    opened = open_source(source, options)
    id_source = open_ids(ids, opened, options)
    rows = opened.rows
    plan = make_plan(url, rows, wanted, normalize is True, chunk_rows)
    if id_source is not None:
        plan = replace(plan, text_ids=is_text(id_source))
    warned = False
    if normalize is None:
        low, high, sampled = sampled_norms(rows)
        plan = replace(plan, near_unit=renormalized(opened, low, high))
        if not is_unit(low, high, tolerated(rows)):
            warned = True
            warn_of_norms(
                f"norms of the rows of {rows.name} are from {low:.4g} to {high:.4g} in a sample of {sampled:,}"
            )
    plan = replace(plan, run=run_digest(plan, opened, options, ids, id_source))
    pool.recover(url, (plan.place,))
    pool.check_dest(url, overwrite)
    hint = ""
    if ids is None and id_source is not None:
        hint = "; these ids came with the source: give others as ids=, or ids=False for row numbers"
    try:
        with job_progress("ingest") as report:
            _write(plan, rows, id_source, report, hint, quiet=warned or normalize is not None)
    except BaseException as error:
        # What is wrong with the input is still wrong the next time; after anything else the next call goes on.
        if plan.run is None or isinstance(error, ValueError | TypeError):
            pool.give_up(plan)
        raise
    return open_embeddings(url)


def check_flags(normalize: Any, overwrite: Any) -> None:
    """Raise unless both are what is allowed."""
    if normalize is not None and not isinstance(normalize, bool):
        raise TypeError(f"normalize={normalize!r} is not allowed: give True, False or None")
    check_flag("overwrite", overwrite)


def check_dtype(dtype: Any) -> str | None:
    """Return the name of the dtype that the pool is to have, or None."""
    if dtype is None:
        return None
    allowed = "give 'float16', 'float32' or None"
    if not isinstance(dtype, str | type | np.dtype):  # NumPy asks any object for its own dtype
        raise TypeError(f"dtype={dtype!r} is not allowed: {allowed}")
    try:
        name = str(np.dtype(dtype))
    except TypeError:
        raise TypeError(f"dtype={dtype!r} is not allowed: {allowed}") from None
    if name not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not allowed: {allowed}")
    return name


def make_plan(
    dest: str, rows: RowReader, dtype: str | None, normalize: bool, chunk_rows: int | None
) -> pool.PoolPlan:
    """Return what an ingestion would write."""
    n, d = rows.shape
    if dtype is None:
        dtype = "float16" if rows.dtype.itemsize == 2 else "float32"
    if chunk_rows is None:
        chunk_rows = chunk_rows_for(n, d, np.dtype(dtype).itemsize)
    return pool.PoolPlan(
        dest=dest, shape=(n, d), dtype=dtype, chunk_rows=min(chunk_rows, n), normalize=normalize
    )


def _write(
    plan: pool.PoolPlan,
    rows: RowReader,
    ids: RowReader | None,
    report: Report,
    hint: str,
    *,
    quiet: bool,
) -> None:
    """Write the pool and put it in its place; ids first, since they are cheap and may repeat."""
    pool.create(plan, ids is not None)
    ids_digest = None if ids is None else pool.write_ids(plan, ids, hint=hint)
    digests, low, high = pool.write_rows(plan, rows, report)
    normalized = plan.normalize or is_unit(low, high, tolerated(rows) if plan.near_unit else plan.dtype)
    if not normalized and not quiet:
        warn_of_norms(f"norms of the rows of {rows.name} are from {low:.4g} to {high:.4g}")
    fingerprint = digest(list(plan.shape), plan.dtype, plan.chunk_rows, digests, ids_digest)
    pool.commit(plan, {"normalized": normalized, "fingerprint": fingerprint, "source": rows.name})


def tolerated(rows: RowReader) -> str:
    """Return the dtype whose rounding says how far from 1 the norms of a source may be."""
    return "float16" if rows.dtype.itemsize == 2 else "float32"


def renormalized(opened: Opened, low: float, high: float) -> bool:
    """Tell whether rows with norms from ``low`` to ``high`` were normalised and then rounded to float16.

    The norms are no longer 1, by up to a thousandth: such rows are normalised again. Those of a pool are not:
    what was done to them is recorded there.
    """
    return opened.rows.dtype.itemsize == 2 and opened.format != "pool" and is_unit(low, high, "float16")


def sampled_norms(rows: RowReader) -> tuple[float, float, int]:
    """Return the least and greatest norm of the first, middle and last rows, and how many they are.

    Where a source cannot be read from any row on, those that can be had without reading on to them.
    """
    n, size = len(rows), min(SAMPLE_ROWS, len(rows))
    low, high, n_sampled = np.inf, 0.0, 0
    for start in sorted({rows.seek_point(row) for row in (0, (n - size) // 2, n - size)}):
        stop = min(n, start + size)
        try:
            _, least, greatest = convert_rows(read_sample(rows, start, stop), "float32", False)
        except BadRow as bad:
            raise ValueError(f"{describe_row(rows, start + bad.row)} {bad.reason}") from None
        low, high, n_sampled = min(low, least), max(high, greatest), n_sampled + stop - start
    return low, high, min(n, n_sampled)


def read_sample(rows: RowReader, start: int, stop: int) -> np.ndarray:
    """Return some rows of any source."""
    if isinstance(rows, DaskRows):
        return run_tasks([dask.delayed(np.asarray)(rows.array[start:stop])])[0]
    return rows.read(start, stop)


def warn_of_norms(measured: str) -> None:
    """Warn that rows are not of unit length, and say what to do."""
    warn_user(
        f"{measured}: not of unit length, stored as they are. Give normalize=True to make them unit length, "
        "or normalize=False to leave them without this warning"
    )


def warn_user(message: str) -> None:
    """Warn, as if from the first caller outside the package."""
    warnings.warn(message, UserWarning, stacklevel=_outside())


def _outside() -> int:
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    return level
