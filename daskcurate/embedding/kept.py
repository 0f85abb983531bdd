"""What is left of the rows of a dataset without the samples that were skipped."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import zarr

from daskcurate.embeddings import SKIPPED
from daskcurate.io.chunkwise import Skipped, Written
from daskcurate.io.ids import TEXT
from daskcurate.io.paths import zarr_store
from daskcurate.io.pool import PoolPlan
from daskcurate.io.sources import RowReader

SKIPPED_CHUNK = 1 << 16
SHORTEST_PIECE = 1024


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
        """Return the kept rows ``start`` to ``stop``; however many are left out between them, in pieces."""
        low, high, dropped = self._span(start, stop)
        parts, step = [], max(SHORTEST_PIECE, stop - start)
        for first in range(0, high - low, step):
            last = min(first + step, high - low)
            here = dropped[slice(*np.searchsorted(dropped, (first, last)))] - first
            if len(here) < last - first:
                parts.append(np.delete(self.values.read(low + first, low + last), here, axis=0))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def cut(self, start: int, stop: int) -> RowReader:
        """Return a source that knows only what is dropped in its range."""
        low, high, dropped = self._span(start, stop)
        return KeptRows(self.values.cut(low, high), dropped)

    def locate(self, row: int) -> tuple[str, int]:
        """Return the place in the source."""
        return self.values.locate(self._place(row))


def chunks_with_skipped(plan: PoolPlan, written: Sequence[Written]) -> Iterator[tuple[Skipped, ...]]:
    """Yield what was skipped of each chunk of which something was: one chunk's is in memory at a time."""
    assert plan.markers is not None
    for (start, _), item in zip(plan.bounds, written, strict=True):
        if item.n_skipped:
            marker = plan.markers.read(start)
            if marker is None:
                raise FileNotFoundError(
                    f"{plan.markers.folder}/{start}.json is missing: run the same call again"
                )
            yield marker.skipped


def dropped_rows(plan: PoolPlan, written: Sequence[Written]) -> np.ndarray:
    """Return the rows of all samples that were skipped: (m,) int64, ascending."""
    rows = [np.array([item.row for item in chunk], np.int64) for chunk in chunks_with_skipped(plan, written)]
    return np.concatenate([np.empty(0, np.int64), *rows])


def write_skipped(
    plan: PoolPlan, n: int, chunks: Iterable[tuple[Skipped, ...]], id_text: Callable[[Skipped], str]
) -> None:
    """Store in a pool on its way the ``n`` samples that were left out of it."""
    group = zarr.open_group(zarr_store(plan.partial, read_only=False), mode="r+")
    made = [
        group.create_array(name, shape=(n,), chunks=(min(n, SKIPPED_CHUNK),), dtype=kind, overwrite=True)
        for name, kind in zip(SKIPPED, (np.int64, str, str), strict=True)
    ]
    stop = 0
    for chunk in chunks:
        start, stop = stop, stop + len(chunk)
        made[0][start:stop] = np.array([item.row for item in chunk], np.int64)
        made[1][start:stop] = np.array([id_text(item) for item in chunk], TEXT)
        made[2][start:stop] = np.array([item.reason for item in chunk], TEXT)
