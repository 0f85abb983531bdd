"""What a worker process remembers: the centroids in use, and its last pass over a block, to do less in the next.

These are caches and nothing more: a pass returns the same to the bit whether or not the last one is
remembered, so that it does not matter which worker gets a block, or whether one was lost.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from daskcurate.arrays import Array, namespace_of
from daskcurate.device import at_hand, left_on_device, on_device
from daskcurate.kernels.assign import Assignment, Scorer, assign
from daskcurate.kernels.bounded import reassign
from daskcurate.kernels.leading import Directions
from daskcurate.kernels.lloyd import Last, Partial, moves_of, step_chunk
from daskcurate.store import read_block

LIMIT_BYTES = 96 << 20
"""Memory for it in one worker process. What other rows left goes first; of the rows in work, those that came first
stay: a pass takes blocks in turn, and what was used longest ago is what the next pass begins with."""
DEVICE_LIMIT_BYTES = 2 << 30
"""Likewise where it is memory of a GPU."""
PARTIAL_SHARE = 4
"""Sums are remembered where they take at most this fraction (1 / n) of the block's own bytes."""
MOVES_KEPT = 16
"""Pairs of tables whose centroids' moves are kept: one for each fit under way."""

_lock = threading.Lock()
_reading = threading.Lock()
_moving = threading.Lock()
_making = threading.RLock()
_scorers: "OrderedDict[Table, Scorer]" = OrderedDict()
_made: "dict[tuple[Table, Hashable], Any]" = {}
_moves: "OrderedDict[tuple[int, int], _Moves]" = OrderedDict()
_entries: "OrderedDict[tuple[str, int], _Entry]" = OrderedDict()
_used = 0


@dataclass(frozen=True)
class Table:
    """Centroids in a scratch array: what tasks are handed, so that no copy of them travels with each."""

    url: str
    metric: str
    token: str
    """Tells them from those that another run wrote to the same place."""
    directions: str | None = None
    """Where the leading directions of the rows lie, if they are to be compared first."""

    def scorer(self) -> Scorer:
        """Return their scorer, on the device where this is called: read and made ready once in a worker process."""
        with _reading:
            found = _scorers.get(self)
            if found is None:
                _scorers.clear()  # one at a time: those of a finished pass are not needed any more
                _made.clear()
                directions = None if self.directions is None else read_directions(self.directions)
                found = Scorer(read_centroids(self.url), self.metric, directions=directions)
                _scorers[self] = found
        return at_hand(found)

    def kept(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """Return what ``make()`` returned in this process: called once, as long as no other table comes."""
        with _making:
            key = self, name
            if key not in _made:
                _made[key] = make()
            return _made[key]


def read_centroids(url: str) -> np.ndarray:
    """Read all centroids of a scratch array."""
    return read_block(url, 0, 2**62)


def read_directions(url: str) -> Directions:
    """Read the leading directions of a scratch array."""
    return Directions.of_table(read_block(url, 0, 2**62))


class _Entry(NamedTuple):
    centroids: Array
    assignment: Assignment
    partial: Partial | None
    nbytes: int


class _Moves(NamedTuple):
    before: "weakref.ref[np.ndarray]"
    after: "weakref.ref[np.ndarray]"
    moves: np.ndarray


def _moved(before: Array, after: Array) -> Array:
    """Return how far each centroid has moved: computed once for all blocks of a worker, which share both tables."""
    if namespace_of(after) is not np:
        return moves_of(before, after)  # each task has a stream of its own, which waits for no other's
    key = id(before), id(after)
    with _moving:
        found = _moves.get(key)
        if found is None or found.before() is not before or found.after() is not after:
            found = _moves[key] = _Moves(weakref.ref(before), weakref.ref(after), moves_of(before, after))
        _moves.move_to_end(key)
        if len(_moves) > MOVES_KEPT:
            _moves.popitem(last=False)
        return found.moves


@on_device
def assign_block(block: Any, scorer: Scorer, rows_name: str) -> Assignment:
    """Return the nearest centroids of a block's rows.

    Parameters
    ----------
    block
        A :class:`daskcurate.rows.Block`.
    rows_name
        What the block was cut from: with its first row number it names the block.
    """
    before = _recall(block, scorer, rows_name)
    if before is None:
        found = assign(block.rows, scorer)
    else:
        moves = _moved(before.centroids, scorer.centroids)
        found = reassign(block.rows, scorer, before.assignment, moves)
    _keep(block, scorer, rows_name, found, None)
    return found


@left_on_device
def step_block(block: Any, scorer: Scorer, rows_name: str) -> Partial:
    """Return what a block's rows contribute to the update of the centroids; arguments as above."""
    before = _recall(block, scorer, rows_name)
    last = moves = None
    if before is not None:
        last = Last(before.assignment, before.partial)
        moves = _moved(before.centroids, scorer.centroids)
    found = step_chunk(block.rows, scorer, last, moves)
    _keep(block, scorer, rows_name, found.assignment, found.partial)
    assert found.partial is not None
    return found.partial


def _recall(block: Any, scorer: Scorer, rows_name: str) -> _Entry | None:
    if not len(block.numbers):
        return None
    with _lock:
        entry = _entries.get((rows_name, int(block.numbers[0])))
    if entry is None or entry.centroids.shape != scorer.centroids.shape:
        return None
    return entry if len(entry.assignment.labels) == len(block.rows) else None


def _keep(block: Any, scorer: Scorer, rows_name: str, found: Assignment, partial: Partial | None) -> None:
    global _used
    if not len(block.numbers):
        return
    on_host = namespace_of(block.rows) is np
    if not on_host and not scorer.skips:
        return  # nothing would be skipped by it
    limit = LIMIT_BYTES if on_host else DEVICE_LIMIT_BYTES
    if partial is not None and partial.sums.nbytes * PARTIAL_SHARE > block.rows.nbytes:
        partial = None
    nbytes = found.labels.nbytes + found.second.nbytes
    sums = partial.sums.nbytes if partial else 0
    key = (rows_name, int(block.numbers[0]))
    with _lock:
        if key in _entries:
            _used -= _entries.pop(key).nbytes
        for other in [other for other in _entries if other[0] != rows_name]:
            if _used + nbytes + sums <= limit:
                break
            _used -= _entries.pop(other).nbytes
        if _used + nbytes + sums > limit:  # bounds spare more work than sums, and are smaller
            partial, sums = None, 0
        if _used + nbytes <= limit:
            _entries[key] = _Entry(scorer.centroids, found, partial, nbytes + sums)
            _used += nbytes + sums
