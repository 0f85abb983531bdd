"""Ids or texts of a file, one a line."""

import fsspec
import numpy as np

from daskcurate.io.sources import BadRow, RowReader

STRIDE = 1024
BLOCK_BYTES = 4 << 20


class TextRows(RowReader):
    """Lines of a UTF-8 text file; the place of every 1024th line is kept, so any range can be read.

    Ids must not be empty; texts may be.
    """

    def __init__(self, url: str, *, may_be_empty: bool = False):
        self.url = url
        self.may_be_empty = may_be_empty
        self.starts, n = _index_lines(url)
        super().__init__(url, (n,), object)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return lines ``start`` to ``stop`` without their line ends."""
        lines = np.empty(stop - start, object)
        mark = start // STRIDE
        with fsspec.open(self.url, "rb") as file:
            file.seek(int(self.starts[mark]))
            for row in range(mark * STRIDE, stop):
                line = file.readline()
                if row >= start:
                    lines[row - start] = self._decode(row - start, line)
        return lines

    def _decode(self, row: int, line: bytes) -> str:
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise BadRow(row, "is not UTF-8 text") from None
        if not text and not self.may_be_empty:
            raise BadRow(row, "is empty: give one id a line")
        return text


def _index_lines(url: str) -> tuple[np.ndarray, int]:
    """Return the byte at which every STRIDE-th line starts, and the number of lines."""
    starts, n_ends, position, last = [np.zeros(1, np.int64)], 0, 0, b"\n"
    with fsspec.open(url, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            first = (-n_ends - 1) % STRIDE  # the first line end here after which a STRIDE-th line starts
            starts.append(ends[first::STRIDE] + position + 1)
            n_ends += len(ends)
            position += len(block)
            last = block[-1:]
    return np.concatenate(starts), n_ends + (last != b"\n")
