"""What is left of the rows of a dataset without the samples that were skipped."""

from collections.abc import Iterator, Sequence

import numpy as np
import zarr

from daskcurate.embeddings import SKIPPED
from daskcurate.io.chunkwise import Skipped
from daskcurate.io.paths import zarr_store
from daskcurate.io.pool import PoolPlan
from daskcurate.io.sources import RowReader

SKIPPED_CHUNK = 1 << 16


class KeptRows(RowReader):
    """Rows (or ids) of a source without some of them, in its order.

    Parameters
    ----------
    values
        The source, n rows.
    dropped
        (m,) int64, ascending: the rows that are left out.
    """

    def __init__(self, values: RowReader, dropped: np.ndarray):
        super().__init__(values.name, (len(values) - len(dropped), *values.shape[1:]), values.dtype)
        self.values = values
        self.dropped = dropped
        self.before = dropped - np.arange(len(dropped))  # kept rows before each dropped one

    def _place(self, row: int) -> int:
        return row + int(np.searchsorted(self.before, row, side="right"))

    def _span(self, start: int, stop: int) -> tuple[int, int, np.ndarray]:
        """Return the range of the source that holds kept rows ``start`` to ``stop``, and what is dropped in it."""
        low, high = self._place(start), self._place(stop - 1) + 1
        first, last = np.searchsorted(self.dropped, (low, high))
        return low, high, self.dropped[first:last] - low

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the kept rows ``start`` to ``stop``."""
        low, high, dropped = self._span(start, stop)
        return np.delete(self.values.read(low, high), dropped, axis=0)

    def cut(self, start: int, stop: int) -> RowReader:
        """Return a source that knows only what is dropped in its range."""
        low, high, dropped = self._span(start, stop)
        return KeptRows(self.values.cut(low, high), dropped)

    def locate(self, row: int) -> tuple[str, int]:
        """Return the place in the source."""
        return self.values.locate(self._place(row))


def write_skipped(plan: PoolPlan, skipped: Sequence[Skipped], ids: Iterator[str]) -> None:
    """Store in a pool on its way what was left out of it."""
    group = zarr.open_group(zarr_store(plan.partial, read_only=False), mode="r+")
    chunks = (min(len(skipped), SKIPPED_CHUNK),)
    columns = (
        np.array([item.row for item in skipped], np.int64),
        np.array(list(ids), np.dtypes.StringDType()),
        np.array([item.reason for item in skipped], np.dtypes.StringDType()),
    )
    for name, values in zip(SKIPPED, columns, strict=True):
        kind = np.int64 if values.dtype.kind == "i" else str
        made = group.create_array(name, shape=values.shape, chunks=chunks, dtype=kind, overwrite=True)
        made[:] = values
