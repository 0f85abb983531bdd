"""Write a pool chunk by chunk by tasks, and after an interruption go on with the chunks that are missing.

A chunk that is written gets a marker: a small file with the digest of what was stored. A later attempt that
writes the same (its place is named after all that decides the content) reads such chunks back, compares them
with their markers, and writes only the others.
"""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dask
import numpy as np

from daskcurate.io.layout import chunk_bounds
from daskcurate.io.paths import exists, filesystem, write_file
from daskcurate.io.sources import ArrayRows, BadRow, DaskRows, RowReader, describe_row
from daskcurate.runner import current_client, run_tasks

Report = Callable[[float, str], None]
"""Takes the fraction of the chunks that are written, and a text to show."""
Bounds = list[tuple[int, int]]

MIN_BATCH = 64


def no_report(fraction: float, text: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out."""

    row: int
    id: int | str | None
    """None: unknown, since the sample could not be read."""
    reason: str


@dataclass(frozen=True)
class Written:
    """What a task tells of the chunk that it wrote."""

    digest: str
    low: float = np.inf
    high: float = 0.0
    hashes: np.ndarray | None = None
    """(rows,) uint64 of the ids, which are not in the marker."""
    ids_digest: str | None = None
    skipped: tuple[Skipped, ...] = ()
    """In the marker; what goes back to the client has their number alone."""
    n_skipped: int = 0

    def told(self) -> "Written":
        """Return what is told of the chunk to the client."""
        return replace(self, skipped=(), n_skipped=len(self.skipped))

    def to_json(self) -> bytes:
        """Return the content of the chunk's marker."""
        found = {name: getattr(self, name) for name in ("digest", "low", "high", "ids_digest")}
        found["skipped"] = [[item.row, item.id, item.reason] for item in self.skipped]
        return json.dumps(found).encode()

    @staticmethod
    def from_json(content: bytes) -> "Written":
        """Return what a marker says."""
        found = json.loads(content)
        return Written(**found | {"skipped": tuple(Skipped(*item) for item in found["skipped"])})


Writer = Callable[[int, Any], Written]
"""Takes a chunk's first row and what its source yields for it, and stores it."""
Recall = Callable[[int, int, Written], Written | None]
"""Takes a chunk's bounds and marker; returns what is known of the chunk, None if what is stored is another."""


@dataclass(frozen=True)
class Markers:
    """The markers of the chunks that are written: a folder with a file for each."""

    folder: str

    def write(self, start: int, written: Written) -> None:
        """Mark the chunk that starts with row ``start``."""
        write_file(f"{self.folder}/{start}.json", written.to_json())

    def read(self, start: int) -> Written | None:
        """Return what the chunk's marker says; None if there is none that can be read."""
        fs, path = filesystem(f"{self.folder}/{start}.json")
        try:
            return Written.from_json(fs.cat_file(path))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def starts(self) -> set[int]:
        """Return the first rows of all chunks that have a marker."""
        fs, path = filesystem(self.folder)
        try:
            names = [str(name).rsplit("/", 1)[-1] for name in fs.ls(path, detail=False)]
        except FileNotFoundError:
            return set()
        stems = [name.removesuffix(".json") for name in names if name.endswith(".json")]
        return {int(stem) for stem in stems if stem.isdigit()}


@dataclass(frozen=True)
class ChunkJob:
    """All chunks of something that is written; small enough to go with every task."""

    label: str
    """Shown, and the name of the tasks in the dashboard."""
    n_rows: int
    chunk_rows: int
    token: str
    """Unique for each attempt: no task of an earlier one has its key."""
    markers: Markers | None = None
    """None: all chunks are written, whatever an earlier attempt did."""
    stop_early: bool = False
    """Whether tasks that wait are not to start after one failed: for chunks that take long."""

    @property
    def bounds(self) -> Bounds:
        """The (start, stop) rows of every chunk."""
        return chunk_bounds(self.n_rows, self.chunk_rows)

    @property
    def _flag(self) -> str | None:
        return f"{self.markers.folder}/stop-{self.token}" if self.markers and self.stop_early else None

    def stop(self) -> None:
        """Let no further task of this attempt start."""
        if self._flag:
            write_file(self._flag, b"")

    def is_stopped(self) -> bool:
        """Tell whether a task of this attempt failed."""
        return bool(self._flag) and exists(self._flag)  # type: ignore[arg-type]


def write_chunks(
    job: ChunkJob, writer: Writer, source: RowReader, report: Report, recall: Recall | None = None
) -> list[Written]:
    """Write every chunk that is not there yet, and return what is known of each, in their order.

    By tasks in bounded batches; in this process if the rows are in its memory.
    """
    bounds = job.bounds
    count, lock = 0, threading.Lock()

    def advance(chunks: int) -> None:
        nonlocal count
        with lock:
            count += chunks
            report(count / len(bounds), f"{job.label}: {count:,} of {len(bounds):,} chunks")

    if source.in_process:
        done = []
        for start, stop in bounds:
            done += _checked([_attempt(job, writer, [(start, stop)], source.cut(start, stop), source.name)])
            advance(1)
        return done
    found = _recalled(job, recall, advance) if recall is not None else {}
    missing = [item for item in bounds if item[0] not in found]
    found |= _write_missing(job, writer, source, missing, advance)
    return [found[start] for start, _ in bounds]


def _recalled(job: ChunkJob, recall: Recall, advance: Callable[[int], None]) -> dict[int, Written]:
    """Return what is known of the chunks that are there, by their first rows."""
    if job.markers is None:
        return {}
    marked = job.markers.starts()
    bounds = [item for item in job.bounds if item[0] in marked]
    found: dict[int, Written] = {}
    size = _batch_size()
    for first in range(0, len(bounds), size):
        part = bounds[first : first + size]
        keys = [f"{job.label}-recall-{start}-{job.token}" for start, _ in part]
        task = dask.delayed(_recall_chunk, pure=False)
        tasks = [
            task(job.markers, recall, *item, dask_key_name=key) for item, key in zip(part, keys, strict=True)
        ]
        for (start, _), written in zip(part, run_tasks(tasks), strict=True):
            if written is not None:
                found[start] = written
                advance(1)
    return found


def _recall_chunk(markers: Markers, recall: Recall, start: int, stop: int) -> Written | None:
    marker = markers.read(start)
    known = None if marker is None else recall(start, stop, marker)
    return None if known is None else known.told()


def _write_missing(
    job: ChunkJob, writer: Writer, source: RowReader, bounds: Bounds, advance: Callable[[int], None]
) -> dict[int, Written]:
    found: dict[int, Written] = {}
    blocks = source.blocks(job.chunk_rows) if isinstance(source, DaskRows) else None
    runs = chunk_runs(source, bounds, job.chunk_rows)
    size = _batch_size()
    for first in range(0, len(runs), size):
        tasks, sizes = [], []
        part = runs[first : first + size]
        for run in part:
            start = run[0][0]
            rows = source.cut(start, run[-1][1]) if blocks is None else blocks[start // job.chunk_rows]
            task = dask.delayed(_attempt, pure=False)
            key = f"{job.label}-{start // job.chunk_rows}-{job.token}"
            tasks.append(task(job, writer, run, rows, source.name, dask_key_name=key))
            sizes.append(len(run))
        written = _checked(run_tasks(tasks, partial(_advance, advance, sizes)))
        starts = [start for run in part for start, _ in run]
        found |= dict(zip(starts, written, strict=True))
    return found


def _advance(advance: Callable[[int], None], sizes: list[int], task: int) -> None:
    advance(sizes[task])


def _batch_size() -> int:
    client = current_client()
    threads = sum(client.nthreads().values()) if client is not None else 0
    return max(MIN_BATCH, 4 * threads)


def chunk_runs(source: RowReader, bounds: Bounds, chunk_rows: int) -> list[Bounds]:
    """Return the chunks that one task writes.

    One each, unless the source cannot be read from near the chunk's first row on (a large row group of a
    parquet file, a compressed file): then the chunks that are decoded together, since every task on its own
    would decode all that comes before.
    """
    runs: list[Bounds] = []
    for start, stop in bounds:
        follows = bool(runs) and runs[-1][-1][1] == start
        if follows and start - source.seek_point(start) > chunk_rows:
            runs[-1].append((start, stop))
        else:
            runs.append([(start, stop)])
    return runs


def _attempt(
    job: ChunkJob, writer: Writer, bounds: Bounds, rows: RowReader | np.ndarray, name: str
) -> list[Any]:
    """Write neighbouring chunks; return what went wrong instead of raising it.

    So a batch always runs to its end: no task still writes while the client clears up.
    """
    if job.is_stopped():
        return []
    source = rows if isinstance(rows, RowReader) else ArrayRows(rows, name)
    origin = bounds[0][0]
    done: list[Any] = []
    try:
        blocks = source.stream([(start - origin, stop - origin) for start, stop in bounds])
        for (start, _), block in zip(bounds, blocks, strict=True):
            written = writer(start, block)
            if job.markers is not None:
                job.markers.write(start, written)
            done.append(written.told())
    except BadRow as bad:
        row = bounds[len(done)][0] - origin + bad.row
        own = isinstance(rows, RowReader)
        place = describe_row(source, row, origin) if own else f"{name}: row {origin + row}"
        return [ValueError(f"{place} {bad.reason}")]
    except Exception as error:  # whatever it is, the client raises it
        job.stop()
        return [error]
    return done


def _checked(results: Sequence[list[Any]]) -> list[Written]:
    written = [item for found in results for item in found]
    for item in written:
        if isinstance(item, BaseException):
            raise item
    return written
