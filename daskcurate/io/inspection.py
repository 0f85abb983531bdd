"""Look at a source before it is ingested: what it was taken for, and what ingesting it would take."""

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskcurate.config import check_int
from daskcurate.embeddings import open_embeddings
from daskcurate.io.chunkwise import chunk_runs
from daskcurate.io.ids import is_text, open_ids
from daskcurate.io.ingest import (
    check_dtype,
    check_flags,
    make_plan,
    read_sample,
    renormalized,
    sampled_norms,
    tolerated,
)
from daskcurate.io.paths import as_url, exists, is_glob
from daskcurate.io.resolve import Opened, Options, open_source
from daskcurate.io.rows import convert_rows, is_unit
from daskcurate.io.sources import BadRow, DaskRows, RowReader, describe_row
from daskcurate.runner import current_client

SAMPLES = 8
SAMPLE_ROWS = 4096
SAMPLE_BYTES = 32 << 20
QUANTILES = (0.0, 0.01, 0.05, 0.5, 0.95, 0.99, 1.0)
WRITE_BYTES_PER_SECOND = 1e9


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect_source` found."""

    name: str
    """The source."""
    format: str
    """What it was recognised as; ``format=`` of :func:`daskcurate.ingest`."""
    n_files: int
    rows: int
    dim: int
    dtype: str
    """Of the source."""
    ids: str
    """Where ids come from, and the first one."""
    norms: tuple[float, ...]
    """Quantiles of the sampled rows' norms at ``QUANTILES``."""
    sampled: int
    """Rows that were read."""
    treatment: str
    """What is done about the norms."""
    stored: str
    """dtype of the pool."""
    nbytes: int
    """Bytes of the pool's rows."""
    n_chunks: int
    threads: int
    seconds: float
    """Estimated time to read, check and convert all rows with ``threads``, from the rows sampled."""
    seconds_to_write: float
    """What writing takes at 1 GB/s; nothing was written to measure it."""

    def as_rows(self) -> list[tuple[str, str]]:
        """Return what was found as lines of a table."""
        names = [f"{q:.0%}" for q in QUANTILES]
        norms = ", ".join(
            f"{name} {value:.5g}"
            for name, value in zip(["least", *names[1:-1], "greatest"], self.norms, strict=True)
        )
        return [
            ("source", self.name),
            ("format", self.format + (f", {self.n_files:,} files" if self.n_files > 1 else "")),
            ("rows", f"{self.rows:,}"),
            ("width", f"{self.dim:,}"),
            ("dtype", self.dtype),
            ("ids", self.ids),
            ("norms", f"{norms} (of {self.sampled:,} rows)"),
            ("normalisation", self.treatment),
            ("pool", f"{self.stored}, {self.nbytes / 2**30:,.2f} GiB in {self.n_chunks:,} chunks"),
            (
                "time",
                f"about {duration(self.seconds)} to read and check with {self.threads} "
                f"thread{'s' if self.threads > 1 else ''}; to write, {duration(self.seconds_to_write)} at 1 GB/s",
            ),
        ]


def duration(seconds: float) -> str:
    """Return a time as it is said: ``0.4 s``, ``12 s``, ``5 min``, ``3.5 h``."""
    if seconds < 1:
        return f"{max(seconds, 0.1):.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def sources_and_dest(paths: list[str]) -> tuple[str | list[str], str | None]:
    """Return the sources of an inspection, and the pool to make, which may be left out.

    The last of several paths is the pool if nothing is there yet, or a pool.
    """
    dest = None
    if len(paths) > 1:
        last = as_url(paths[-1])
        if not is_glob(last) and (not exists(last) or is_pool_at(last)):
            dest = paths[-1]
    sources = paths[:-1] if dest else paths
    return (sources[0] if len(sources) == 1 else sources), dest


def is_pool_at(url: str) -> bool:
    """Tell whether a complete pool is at ``url``."""
    with contextlib.suppress(OSError, ValueError):
        open_embeddings(url)
        return True
    return False


def inspect_source(
    source: Any,
    *,
    ids: Any = None,
    normalize: bool | None = None,
    dtype: Any = None,
    format: str | None = None,
    column: str | None = None,
    shape: tuple[int, int] | None = None,
    source_dtype: Any = None,
    ids_dtype: Any = None,
    chunk_rows: int | None = None,
) -> Inspection:
    """Say what :func:`daskcurate.ingest` would make of a source; nothing is written.

    Takes the arguments of :func:`daskcurate.ingest`. Headers are read, a chunk of rows, from which the time
    is estimated, and up to eight samples of rows, for the norms.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        As :func:`daskcurate.ingest` does before it writes; also for a row among the samples that cannot be used.
    """
    check_flags(normalize, False)
    options = Options(
        format=format, column=column, shape=shape, source_dtype=source_dtype, ids_dtype=ids_dtype
    )
    wanted = check_dtype(dtype)
    if chunk_rows is not None:
        chunk_rows = check_int("chunk_rows", chunk_rows, 1)
    opened = open_source(source, options)
    id_source = open_ids(ids, opened, options)
    rows = opened.rows
    plan = make_plan("", rows, wanted, normalize is True, chunk_rows)
    n, d = rows.shape
    norms, seconds = _measure(rows, plan.dtype, plan.chunk_rows)
    if id_source is not None and not id_source.in_process:
        seconds += _seconds_of(id_source, plan.chunk_rows)
    tasks = (
        len(plan.bounds)
        if isinstance(rows, DaskRows)
        else len(chunk_runs(rows, plan.bounds, plan.chunk_rows))
    )
    threads = 1 if rows.in_process else min(_threads(), tasks)
    nbytes = n * d * np.dtype(plan.dtype).itemsize
    return Inspection(
        name=rows.name,
        format=opened.format,
        n_files=len(rows.files),
        rows=n,
        dim=d,
        dtype=str(rows.dtype),
        ids=_ids_text(id_source),
        norms=tuple(float(value) for value in np.quantile(norms, QUANTILES)),
        sampled=len(norms),
        treatment=_treatment(opened, normalize),
        stored=plan.dtype,
        nbytes=nbytes,
        n_chunks=len(plan.bounds),
        threads=threads,
        seconds=n * seconds / threads,
        seconds_to_write=nbytes / WRITE_BYTES_PER_SECOND,
    )


def _measure(rows: RowReader, dtype: str, chunk_rows: int) -> tuple[np.ndarray, float]:
    """Return the norms of the sampled rows, and the seconds that a row takes where a chunk is read at once."""
    n, d = rows.shape
    size = max(1, min(SAMPLE_ROWS, n, SAMPLE_BYTES // (SAMPLES * d * rows.dtype.itemsize)))
    middle = rows.seek_point(max(0, (n - chunk_rows) // 2))
    spans, last = [], 0
    for start in sorted({rows.seek_point(int(row)) for row in np.linspace(0, n - size, SAMPLES)}):
        stop = min(n, start + size)
        if start >= last and not (start < middle + chunk_rows and stop > middle):  # no row twice
            spans.append((start, stop))
            last = stop
    norms, seconds = [], 0.0
    for start, stop in [(middle, min(n, middle + chunk_rows)), *spans]:
        began = time.perf_counter()
        try:
            block = read_sample(rows, start, stop)
            convert_rows(block, dtype, True)
        except BadRow as bad:
            raise ValueError(f"{describe_row(rows, start + bad.row)} {bad.reason}") from None
        if start == middle:
            seconds = (time.perf_counter() - began) / (stop - start)
        norms.append(_norms(block))
    return np.concatenate(norms), seconds


def _norms(block: np.ndarray) -> np.ndarray:
    """Return the norms of rows, a few at a time: wider copies of a whole chunk are not needed."""
    step = 1024
    parts = (block[start : start + step].astype(np.float64) for start in range(0, len(block), step))
    return np.concatenate([np.linalg.norm(part, axis=1) for part in parts])


def _seconds_of(ids: RowReader, chunk_rows: int) -> float:
    """Return the seconds that an id takes."""
    size, began = min(chunk_rows, len(ids)), time.perf_counter()
    read_sample(ids, 0, size)
    return (time.perf_counter() - began) / size


def _ids_text(ids: RowReader | None) -> str:
    if ids is None:
        return "row numbers"
    first = np.asarray(read_sample(ids, 0, 1))[0]
    first = first.decode() if isinstance(first, bytes) else str(first)
    return f"{'text' if is_text(ids) else 'integers'} of {ids.name}, such as {first!r}"


def _treatment(opened: Opened, normalize: bool | None) -> str:
    if normalize is True:
        return "every row is divided by its norm"
    low, high, _ = sampled_norms(opened.rows)
    unit = is_unit(low, high, tolerated(opened.rows))
    if normalize is None and renormalized(opened, low, high):
        return "unit length up to the rounding of float16: normalised again"
    if unit:
        return "unit length: left as they are"
    return "not of unit length: left as they are" + (
        "" if normalize is False else "; normalize=True changes that"
    )


def _threads() -> int:
    client = current_client()
    if client is not None:
        return max(1, sum(client.nthreads().values()))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
