"""A selection of a run store, found by name: for those who have the store, and not the script that made it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from daskcurate.io.paths import PathLike
from daskcurate.nodes import NotComputedError
from daskcurate.schema import SCHEMA
from daskcurate.store import RunStore

COUNTS = "counts"
BLOCK_ROWS = 1 << 20


@dataclass(frozen=True)
class StoredSelection:
    """A finished selection of a run store; a pickle of it holds names only."""

    store: str
    """URL of the run store."""
    name: str
    """Name of the stage's group, as ``daskcurate status`` lists it."""
    kind: str
    total: int
    """Rows selected, repeats counted."""
    pool: str | None
    """Fingerprint of the pool whose rows it selects, where the store tells."""

    @property
    def counts(self) -> zarr.Array:
        """(n,) integers: how often each row of the pool is selected."""
        return RunStore(self.store).array(self.kind, self.name, COUNTS)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, counts) of neighbouring rows, some chunks at a time."""
        counts = self.counts
        step = max(counts.chunks[0], BLOCK_ROWS // counts.chunks[0] * counts.chunks[0])
        for start in range(0, counts.shape[0], step):
            yield start, np.asarray(counts[start : start + step])

    def require_pool(self, emb: Any) -> None:
        """Raise ValueError unless the selection is one of the rows of ``emb``."""
        if self.pool is not None and self.pool != emb.fingerprint:
            raise ValueError(
                f"the stage {self.name} selects rows of another pool (fingerprint {self.pool[:8]}) than {emb.path} "
                f"({emb.fingerprint[:8]})"
            )
        if self.counts.shape[0] != len(emb):
            raise ValueError(
                f"the stage {self.name} covers {self.counts.shape[0]:,} rows, and {emb.path} has {len(emb):,}"
            )


def find_selection(store: PathLike, stage: str) -> StoredSelection:
    """Return a finished selection of a run store.

    Parameters
    ----------
    store
        Path or URL of the run store.
    stage
        The stage's name as ``daskcurate status`` lists it, such as ``semantic_dedup-0f3a...``, or as much of
        its beginning as no other selection of the store shares: ``semantic_dedup`` where there is one.

    Raises
    ------
    StoreError
        If there is no run store.
    ValueError
        If no selection, or more than one, is so named.
    NotComputedError
        If the stage has not finished.
    """
    if not isinstance(stage, str) or not stage:
        raise TypeError(
            f"stage={stage!r} is not allowed: give the name of a stage, as 'daskcurate status' lists it"
        )
    run = RunStore(store)
    stages = run.stages()
    selections = {
        name: found
        for name, found in stages.items()
        if any(spec.name == COUNTS for spec in SCHEMA.get(found.get("kind", ""), ()))
    }
    matching = [stage] if stage in selections else [name for name in selections if name.startswith(stage)]
    if len(matching) != 1:
        listed = ", ".join(matching or selections) or "none"
        what = "is no selection" if not matching else "names more than one selection"
        raise ValueError(f"stage={stage!r} {what} of {run.url}: give one of {listed}")
    (name,) = matching
    if not run.is_complete(name):
        raise NotComputedError(
            f"the stage {name} of {run.url} has not finished, or was changed: run it again"
        )
    found = selections[name]
    pool = _pool_of(name, stages)
    return StoredSelection(run.url, name, str(found["kind"]), int(found["total"]), pool)


def _pool_of(name: str, stages: dict[str, dict[str, Any]]) -> str | None:
    """Return the fingerprint of the pool that a stage, or one that it follows from, reads."""
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop()
        if current in seen or current not in stages:
            continue
        seen.add(current)
        inputs = stages[current].get("inputs", {})
        if "emb" in inputs:
            return str(inputs["emb"])
        waiting += map(str, inputs.values())
    return None
