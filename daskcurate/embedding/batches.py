"""Samples into rows, a range at a time: batches that depend on the range alone, broken samples told apart."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daskcurate.embedding.settings import WINDOW_BATCHES
from daskcurate.io.chunkwise import Skipped
from daskcurate.io.rows import convert_rows
from daskcurate.io.sources import BadRow

LONGEST_REASON = 300


class BrokenSample(ValueError):
    """A sample that no row can be made of."""

    def __init__(self, row: int, id: int | str | None, reason: str):
        super().__init__(row, id, reason)
        self.row, self.id, self.reason = row, id, reason


class EmbeddingError(RuntimeError):
    """The model failed in a way that no single sample is to blame for."""


class _Broken(Exception):  # noqa: N818 - not an error of the run: what is wrong with one sample
    """Why a sample, or one of a batch, cannot be used."""


@dataclass
class Block:
    """The rows of a range of the dataset."""

    rows: np.ndarray
    """(n, d) in the dtype of the pool; zeros where the sample was left out."""
    low: float = np.inf
    """Least norm before rows were normalised."""
    high: float = 0.0
    ids: list[Any] = field(default_factory=list)
    """One a row where samples have ids; None where the sample was left out."""
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True)
class Embedder:
    """A model with all that turns samples of a dataset into its rows."""

    dataset: Any
    run: Callable[[Any], Any]
    """Takes what ``collate`` returns; returns (n, d) of floats."""
    collate: Callable[[list[Any]], Any]
    sort_by: Callable[[Any], Any] | None
    id_of: Callable[[Any], Any] | None
    batch_size: int
    dtype: str
    normalize: bool
    skip: bool
    width: int | None = None
    """None: whatever the model returns."""
    text_ids: bool = False

    def embed_range(self, start: int, stop: int) -> Block:
        """Return the rows of samples ``start`` to ``stop``.

        Without ``sort_by`` one batch is in memory at a time, otherwise the samples of a window of batches.
        The batches are those of the range's own samples: the same whoever embeds it.

        Raises
        ------
        BrokenSample
            For the first broken sample of a window, unless they are skipped.
        EmbeddingError
            If a batch fails that each of its samples passes alone.
        """
        assert self.width is not None
        block = Block(np.zeros((stop - start, self.width), self.dtype))
        if self.id_of is not None:
            block.ids = [None] * (stop - start)
        step = self.batch_size * (WINDOW_BATCHES if self.sort_by is not None else 1)
        for low in range(start, stop, step):
            broken: dict[int, str] = {}
            samples, ids = self._read(range(low, min(stop, low + step)), broken)
            for rows in self._batches(samples, broken):
                self._embed(block, start, rows, samples, broken)
            found = [Skipped(row, ids.get(row), broken[row]) for row in sorted(broken)]
            if found and not self.skip:
                raise BrokenSample(found[0].row, found[0].id, found[0].reason)
            block.skipped += found
            for row in samples.keys() - broken.keys() if self.id_of is not None else ():
                block.ids[row - start] = ids[row]
        return block

    def _read(self, rows: range, broken: dict[int, str]) -> tuple[dict[int, Any], dict[int, Any]]:
        """Return the samples of ``rows`` and their ids; say in ``broken`` which have none."""
        samples, ids = {}, {}
        for row in rows:
            try:
                sample = self._sample(row)
                if self.id_of is not None:
                    ids[row] = self.checked_id(sample)
                samples[row] = sample
            except _Broken as error:
                broken[row] = str(error)
        return samples, ids

    def _sample(self, row: int) -> Any:
        try:
            return self.dataset[row]
        except Exception as error:
            raise _fault(error, "dataset[{}] raised", row) from error

    def checked_id(self, sample: Any) -> int | str:
        """Return the id of a sample; raise if it is neither an integer nor a text, or of the other kind."""
        assert self.id_of is not None
        try:
            found = self.id_of(sample)
        except Exception as error:
            raise _fault(error, "id_of raised") from error
        if isinstance(found, np.generic) or (hasattr(found, "ndim") and found.ndim == 0):
            found = found.item()
        fits = isinstance(found, str) if self.text_ids else type(found) is int and abs(found) < 2**63
        if not fits:
            raise _Broken(f"has the id {found!r}: ids must be all strings, or all integers of 64 bits")
        return found

    def _batches(self, samples: dict[int, Any], broken: dict[int, str]) -> Iterator[list[int]]:
        """Yield the rows of each batch: in the order of the dataset, or of ``sort_by``."""
        rows = list(samples)
        if self.sort_by is not None:
            keys = {}
            for row in rows:
                try:
                    keys[row] = self._key(samples[row])
                except _Broken as error:
                    broken[row] = str(error)
            rows = sorted(keys, key=keys.__getitem__)
        for first in range(0, len(rows), self.batch_size):
            yield rows[first : first + self.batch_size]

    def _key(self, sample: Any) -> Any:
        assert self.sort_by is not None
        try:
            return self.sort_by(sample)
        except Exception as error:
            raise _fault(error, "sort_by raised") from error

    def _embed(
        self, block: Block, start: int, rows: list[int], samples: dict[int, Any], broken: dict[int, str]
    ) -> None:
        """Put the rows of a batch into the block; say in ``broken`` which samples have none."""
        values, good = self._values(rows, samples, broken)
        while good:
            try:
                out, low, high = convert_rows(values, self.dtype, self.normalize)
            except BadRow as bad:
                broken[good.pop(bad.row)] = f"its row {bad.reason}"
                values = np.delete(values, bad.row, axis=0)
                continue
            block.rows[np.array(good) - start] = out
            block.low, block.high = min(block.low, low), max(block.high, high)
            return

    def _values(
        self, rows: list[int], samples: dict[int, Any], broken: dict[int, str]
    ) -> tuple[np.ndarray, list[int]]:
        """Return what the model makes of a batch and the rows that it is of; one by one where it fails."""
        try:
            return self.values_of([samples[row] for row in rows]), rows
        except _Broken as error:
            if len(rows) == 1:
                broken[rows[0]] = str(error)
                return np.empty((0, 0), self.dtype), []
            first = error
        good = []
        for row in rows:
            try:
                self.values_of([samples[row]])
            except _Broken as error:
                broken[row] = str(error)
            else:
                good.append(row)
        if len(good) == len(rows):
            raise EmbeddingError(
                f"samples {min(rows)} to {max(rows)} cannot be embedded together, although each can alone: {first}"
            ) from first
        if not good:
            return np.empty((0, 0), self.dtype), []
        try:
            return self.values_of([samples[row] for row in good]), good
        except _Broken as error:
            raise EmbeddingError(
                f"samples {min(good)} to {max(good)} cannot be embedded together, although each can alone: {error}"
            ) from error

    def values_of(self, samples: Sequence[Any]) -> np.ndarray:
        """Return (len(samples), d): what the model makes of samples."""
        try:
            batch = self.collate(list(samples))
        except Exception as error:
            raise _fault(error, "collate raised") from error
        try:
            values = self.run(batch)
        except Exception as error:
            raise _fault(error, "the model raised") from error
        found = getattr(values, "shape", None)
        if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != "f":
            what = type(values).__name__ if found is None else f"{values.dtype} of shape {tuple(found)}"
            raise _Broken(f"the model returned {what}, not floats of shape ({len(samples)}, width)")
        width = values.shape[1] if self.width is None else self.width
        if values.shape != (len(samples), width) or not width:
            raise _Broken(
                f"the model returned shape {values.shape}, not ({len(samples)}, {width or 'width'})"
            )
        return values


def _fault(error: Exception, what: str, *details: Any) -> Exception:
    """Return what is wrong with the sample; or, if the machine is at fault, an error that stops the run."""
    kind = type(error).__name__
    text = f"{what.format(*details)} {kind}: {error}".strip()
    text = text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."
    # A GPU that failed once fails for every sample that follows; without memory nothing is known of a sample.
    if (
        isinstance(error, MemoryError)
        or kind in ("OutOfMemoryError", "AcceleratorError")
        or "CUDA" in str(error)
    ):
        stop = EmbeddingError(text)
        stop.add_note("".join(traceback.format_exception(error)))
        return stop
    return _Broken(text)
