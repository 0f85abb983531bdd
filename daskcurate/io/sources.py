"""Row readers: where rows (or ids) come from, read a range at a time.

A reader has a ``shape``, a ``dtype``, ``read(start, stop)``, and ``locate(row)`` for error messages. It is
small and picklable, so a task can be given exactly the part that it reads (``cut``).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np


class BadRow(ValueError):
    """A row that cannot be used; ``row`` counts from the start of what was read."""

    def __init__(self, row: int, reason: str):
        super().__init__(row, reason)
        self.row = int(row)
        self.reason = reason


class RowReader:
    """Base of the row readers; ``shape[0]`` rows."""

    in_process = False
    """Whether the rows are in this process's memory, and must not be sent to workers."""

    def __init__(self, name: str, shape: Sequence[int], dtype: Any):
        self.name = name
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``; raise :class:`BadRow` counted from ``start``."""
        raise NotImplementedError

    def stream(self, ranges: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Yield the rows of ascending ranges one after another, reading nothing twice where it can."""
        for start, stop in ranges:
            yield self.read(start, stop)

    def seek_point(self, row: int) -> int:
        """Return the row at which reading must start to get at ``row``: less where there is no way to skip."""
        return row

    @property
    def files(self) -> list[tuple[str, int]]:
        """The files (or the array) that it consists of, and the rows of each."""
        return [(self.name, len(self))]

    def locate(self, row: int) -> tuple[str, int]:
        """Return the file (or the array) that holds ``row``, and the row's number in it."""
        return self.name, row

    def cut(self, start: int, stop: int) -> "RowReader":
        """Return a source of rows ``start`` to ``stop`` only."""
        return CutRows(self, start, stop)


class CutRows(RowReader):
    """A range of another source's rows."""

    def __init__(self, source: RowReader, start: int, stop: int):
        super().__init__(source.name, (stop - start, *source.shape[1:]), source.dtype)
        self.source = source
        self.start = start

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop`` of the range."""
        return self.source.read(self.start + start, self.start + stop)

    def stream(self, ranges: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Yield rows of the range."""
        return self.source.stream([(self.start + start, self.start + stop) for start, stop in ranges])

    def locate(self, row: int) -> tuple[str, int]:
        """Return the place in the whole source."""
        return self.source.locate(self.start + row)


class SequentialRows(RowReader):
    """Base of readers of files that are decoded from a seek point on: they implement ``stream``."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``."""
        return next(iter(self.stream([(start, stop)])))

    def assemble(
        self,
        ranges: Iterable[tuple[int, int]],
        batches: Iterator[tuple[int, Any]],
        convert: Callable[[Any], np.ndarray],
    ) -> Iterator[np.ndarray]:
        """Yield the rows of ``ranges``, ascending, from batches (first row, values) in the order of the rows."""
        row, values = 0, ()
        for start, stop in ranges:
            block = np.empty((stop - start, *self.shape[1:]), self.dtype)
            done = start
            while done < stop:
                if done >= row + len(values):
                    if (batch := next(batches, None)) is None:
                        raise ValueError(f"{self.name} became shorter while it was read")
                    row, values = batch
                    continue
                high = min(stop - row, len(values))
                try:
                    block[done - start : row + high - start] = convert(values[done - row : high])
                except BadRow as bad:
                    raise BadRow(done - start + bad.row, bad.reason) from None
                done = row + high
            yield block


class ArrayRows(RowReader):
    """Rows of an array in memory."""

    in_process = True

    def __init__(self, array: np.ndarray, name: str = "the array"):
        super().__init__(name, array.shape, array.dtype)
        self.array = array

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``, not copied."""
        return self.array[start:stop]


class NumberRows(RowReader):
    """The numbers of rows, which are the ids of a pool without others."""

    def __init__(self, name: str, n: int):
        super().__init__(name, (n,), np.int64)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers from ``start`` to ``stop``."""
        return np.arange(start, stop, dtype=np.int64)


class PoolReader(RowReader):
    """Rows of a pool; a missing chunk is an error."""

    def __init__(self, rows: Any, name: str):
        super().__init__(name, rows.shape, rows.dtype)
        self.rows = rows

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``."""
        return self.rows.read(start, stop)


class DaskRows(RowReader):
    """Rows of a Dask array; its chunks are made by the tasks that write them."""

    def __init__(self, array: Any, name: str = "the Dask array"):
        super().__init__(name, array.shape, array.dtype)
        self.array = array

    def blocks(self, chunk_rows: int) -> list[Any]:
        """Return a delayed array for each range of ``chunk_rows`` rows."""
        chunks = {0: chunk_rows} | dict.fromkeys(range(1, self.array.ndim), -1)
        return list(self.array.rechunk(chunks).to_delayed().ravel())


class ConcatRows(RowReader):
    """Rows of several sources, one after another."""

    def __init__(self, parts: Sequence[RowReader], name: str):
        first = parts[0]
        for part in parts[1:]:
            if len(part.shape) != len(first.shape):
                raise ValueError(f"{part.name} has shape {part.shape}, but {first.name} {first.shape}")
            if part.shape[1:] != first.shape[1:]:
                raise ValueError(
                    f"{part.name} has rows of width {part.shape[1]}, but {first.name} of width "
                    f"{first.shape[1]}: all files of a pool must have the same width"
                )
        kept = [part for part in parts if len(part)] or [first]
        dtype = kept[0].dtype
        for part in kept[1:]:
            dtype = dtype if part.dtype == dtype else _common_dtype(dtype, part, kept[0])
        self.parts = kept
        self._files = [item for part in parts for item in part.files]
        self.ends = np.cumsum([len(part) for part in kept])
        super().__init__(name, (int(self.ends[-1]), *first.shape[1:]), dtype)

    def _spans(self, start: int, stop: int) -> list[tuple[RowReader, int, int, int]]:
        """Return (part, first row in all, start in part, stop in part) of all parts that overlap."""
        spans = []
        index = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            part, end = self.parts[index], int(self.ends[index])
            origin = end - len(part)
            spans.append((part, origin, start - origin, min(stop, end) - origin))
            start, index = end, index + 1
        return spans

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``, of one part or across several."""
        blocks = []
        for part, origin, low, high in self._spans(start, stop):
            try:
                blocks.append(part.read(low, high))
            except BadRow as bad:
                raise BadRow(origin + low + bad.row - start, bad.reason) from None
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def stream(self, ranges: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Yield the rows of ascending ranges; each part is streamed once."""
        ranges = list(ranges)
        spans = [self._spans(*item) for item in ranges]
        wanted: dict[int, list[tuple[int, int]]] = {}
        for _, origin, low, high in chain.from_iterable(spans):
            wanted.setdefault(origin, []).append((low, high))
        current = -1
        stream: Iterator[np.ndarray] = iter(())
        for (start, _), parts in zip(ranges, spans, strict=True):
            blocks = []
            for part, origin, low, _ in parts:
                if origin != current:
                    current, stream = origin, iter(part.stream(wanted[origin]))
                try:
                    blocks.append(next(stream))
                except BadRow as bad:
                    raise BadRow(origin + low + bad.row - start, bad.reason) from None
            yield blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def seek_point(self, row: int) -> int:
        """Return where reading must start in the file that holds ``row``."""
        ((part, origin, low, _),) = self._spans(row, row + 1)
        return origin + part.seek_point(low)

    @property
    def files(self) -> list[tuple[str, int]]:
        """Every file and its rows, also those without any."""
        return self._files

    def locate(self, row: int) -> tuple[str, int]:
        """Return the file that holds ``row``, and the row's number in it."""
        ((part, _, low, _),) = self._spans(row, row + 1)
        return part.locate(low)

    def cut(self, start: int, stop: int) -> RowReader:
        """Return a source of only those parts that hold rows ``start`` to ``stop``."""
        cuts = [part.cut(low, high) for part, _, low, high in self._spans(start, stop)]
        return cuts[0] if len(cuts) == 1 else ConcatRows(cuts, self.name)


def _common_dtype(dtype: np.dtype, one: RowReader, other: RowReader) -> np.dtype:
    whole = [kind in "iu" for kind in (dtype.kind, one.dtype.kind)]
    common = None if any(whole) and not all(whole) else np.result_type(dtype, one.dtype)
    if common is None or (all(whole) and common.kind == "f"):  # int64 with uint64
        raise TypeError(f"{one.name} holds {one.dtype}, but {other.name} {other.dtype}: give one kind")
    return common


def open_all(opener: Any, urls: Sequence[str], name: str) -> RowReader:
    """Open every file of ``urls`` with ``opener`` (headers only), and return their rows as one source."""
    if len(urls) == 1:
        return opener(urls[0])
    with ThreadPoolExecutor(max_workers=16) as pool:
        parts = list(pool.map(opener, urls))
    return ConcatRows(parts, name)


def describe_row(source: RowReader, row: int, origin: int = 0) -> str:
    """Return "FILE: row 3 (row 13 of the pool)", where row 13 of the pool is ``origin`` + ``row``."""
    name, local = source.locate(row)
    place = f"{name}: row {local}"
    return place if local == origin + row else f"{place} (row {origin + row} of the pool)"
