"""Selections: which rows of a pool, and how often; their combinations, and what follows row by row from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import dask.array as da
import numpy as np

from daskcurate.config import Config
from daskcurate.embeddings import Embeddings
from daskcurate.nodes import GivenArray, GivenDaskArray, Stage, checked_embeddings
from daskcurate.planning import Limits, StagePlan
from daskcurate.reading import blocks_of
from daskcurate.stage_plans import ChunkSteps, selection_plan
from daskcurate.store import write_block


def selection_or_none(
    within: Any, emb: Embeddings | None, n_rows: int, name: str = "within"
) -> Selection | None:
    """Return ``within`` as a Selection over ``n_rows`` rows: a Selection, a boolean mask, or None."""
    if within is None:
        return None
    if isinstance(within, np.ndarray | da.Array | list):
        within = Selection.from_mask(within, emb=emb)
    if not isinstance(within, Selection):
        raise TypeError(f"{name}={within!r} is not allowed: give a Selection, a boolean mask or None")
    if within.n_rows != n_rows:
        raise ValueError(
            f"{name} covers {within.n_rows} rows, the pool has {n_rows}: they must be the same pool's"
        )
    if emb is not None and within.emb is not None and within.emb.fingerprint != emb.fingerprint:
        raise ValueError(
            f"{name} belongs to the pool {within.emb.path}, the stage to {emb.path}: they must be the same pool's"
        )
    return within


class Selection(Stage):
    """Which rows of a pool, and how often: a full-length count per row.

    Selections combine: ``a & b`` (the smaller count), ``a | b`` (the larger), ``~a`` (1 where a has 0),
    and restrict a later stage through ``within=``.
    """

    reason: ClassVar[str] = "not selected"
    """Why a row that this stage drops is not in the end result."""
    chunk_steps: ClassVar[ChunkSteps] = ChunkSteps()
    """What the stage does for each chunk, about."""

    @staticmethod
    def from_mask(mask: Any, *, emb: Embeddings | None = None) -> Selection:
        """Return the selection of the rows where ``mask`` (n,) is True; a dask array stays lazy."""
        emb = None if emb is None else checked_embeddings(emb)
        values = mask if isinstance(mask, da.Array) else np.asarray(mask)
        if values.dtype != bool or values.ndim != 1:
            raise TypeError(
                f"mask of dtype {values.dtype} and shape {values.shape} is not allowed: give a boolean array (n,)"
            )
        if np.isnan(values.shape[0]):
            raise ValueError("mask has chunks of unknown size: call its compute_chunk_sizes() first")
        return GivenSelection.of(values.astype(np.int32), emb)

    @staticmethod
    def from_indices(indices: Any, emb: Embeddings) -> Selection:
        """Return the selection of the given row numbers of ``emb``; a row given twice counts twice."""
        emb = checked_embeddings(emb)
        rows = np.asarray(indices)
        if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
            raise TypeError(
                f"indices of dtype {rows.dtype} and shape {rows.shape} are not allowed: give integers (m,)"
            )
        if rows.size and (rows.min() < 0 or rows.max() >= len(emb)):
            raise ValueError(
                f"indices from {rows.min()} to {rows.max()} are not allowed: give 0 to {len(emb) - 1}"
            )
        counts = np.bincount(rows.astype(np.int64), minlength=len(emb)).astype(np.int32)
        return GivenSelection.of(counts, emb)

    @property
    def emb(self) -> Embeddings | None:
        """The pool, where it is known."""
        for node in self.inputs.values():
            found = node.emb if isinstance(node, Stage) and hasattr(node, "emb") else node
            if isinstance(found, Embeddings):
                return found
        return None

    @property
    def n_rows(self) -> int:
        """Rows of the pool."""
        emb = self.emb
        if emb is not None:
            return len(emb)
        return next(node.n_rows for node in self.inputs.values() if hasattr(node, "n_rows"))

    def plan(self, limits: Limits) -> StagePlan:
        """Return what running the stage takes."""
        clustering = self.inputs.get("clustering") or self.inputs.get("tree")
        k = clustering.chain()[0].n_clusters if clustering is not None else 1
        emb = self.emb
        chunk = emb.chunk_rows if emb is not None else 1 << 20
        return selection_plan(
            self.title,
            n=self.n_rows,
            k=k,
            row_bytes=4,
            chunk_rows=chunk,
            limits=limits,
            steps=self._steps(),
            d=0 if emb is None else emb.dim,
            itemsize=0 if emb is None else emb.dtype.itemsize,
            other_task=0 if emb is None else self._other_task(k, emb.dim),
        )

    def _other_task(self, k: int, d: int) -> int:
        """Return the bytes of the largest task that handles no chunk of rows, for k clusters of width ``d``."""
        return 0

    def _steps(self) -> ChunkSteps:
        """Return what the stage does for each chunk, with these inputs."""
        steps = self.chunk_steps
        if self.within is not None:  # a mask with the labels, where these are read
            steps = dataclasses.replace(steps, reads=steps.reads + 2)
        clustering = self.inputs.get("clustering")
        if clustering is not None and clustering.metric != "cosine":
            more = steps.cosines
            steps = dataclasses.replace(steps, reads=steps.reads + 2 * more, row_passes=more)
        return steps

    @property
    def within(self) -> Selection | None:
        """The selection that this stage was restricted to."""
        return self.inputs.get("within")

    @property
    def counts(self) -> da.Array:
        """(n,) integer dask array: how often each row is selected."""
        return self.lazy("counts")

    @property
    def mask(self) -> da.Array:
        """(n,) boolean dask array: whether each row is selected."""
        return self.counts > 0

    @property
    def ids(self) -> da.Array:
        """(n,) the pool's ids; row numbers where there are none."""
        emb = self.emb
        return emb.ids if emb is not None else da.arange(self.n_rows, dtype=np.int64)

    @property
    def indices(self) -> np.ndarray:
        """(m,) int64 row numbers, ascending, each repeated as often as it is selected."""
        found, first = [np.empty(0, dtype=np.int64)], 0
        for counts in blocks_of(self.counts):
            rows = np.arange(first, first + len(counts), dtype=np.int64)
            found.append(np.repeat(rows, counts))
            first += len(counts)
        return np.concatenate(found)

    def __len__(self) -> int:
        """Return the number of rows selected, repeats counted."""
        if self.store is not None:
            return int(self.attributes["total"])
        return sum(int(counts.sum(dtype=np.int64)) for counts in blocks_of(self.counts))

    def __bool__(self) -> bool:
        """Be true: a lazy selection has no length yet, and an empty one is still a selection."""
        return True

    __array_ufunc__ = None  # NumPy arrays leave operators to this class, which refuses them by name

    def __and__(self, other: Selection) -> Selection:
        return CombinedSelection.of("&", self, other)

    def __or__(self, other: Selection) -> Selection:
        return CombinedSelection.of("|", self, other)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Selection:
        return CombinedSelection.of("~", self)

    def history(self) -> list[Selection]:
        """Return the selections that led here, the first one first, this one last."""
        return self._after("within", "tree", "clustering", "of")

    def _after(self, *roles: str) -> list[Selection]:
        """Return what led to the inputs of these roles, each stage once, then this one."""
        before: dict[str, Selection] = {}
        for node in (self.inputs.get(role) for role in roles):
            for step in [] if node is None else node.history():
                before.setdefault(step.fingerprint, step)
        return [*before.values(), self]

    def clusterings(self) -> dict[str, Any]:
        """Return the clusterings that led here, by the name of their column in an export."""
        found: dict[str, Any] = {}
        for step in self.history():
            for role, node in step.inputs.items():
                if role == "tree":
                    for level, clustering in enumerate(node.chain(), 1):
                        found[f"cluster_level_{level}"] = (node, level, clustering)
                elif role == "clustering":
                    if any(node.fingerprint == known.fingerprint for _, _, known in found.values()):
                        continue
                    flat = sum(name.startswith("cluster") and "level" not in name for name in found)
                    found["cluster" if not flat else f"cluster_{flat + 1}"] = (node, 1, node)
        return found

    def columns(self) -> dict[str, da.Array]:
        """Return the columns of the native table, (n,) each: what happened to every row, and why."""
        from daskcurate.report_columns import selection_columns

        return selection_columns(self)


@dataclass(frozen=True, kw_only=True)
class CombineConfig(Config):
    """How two selections are combined."""

    operation: str
    """``&``, ``|`` or ``~``."""


@dataclass(frozen=True, kw_only=True)
class GivenConfig(Config):
    """What a user's own selection covers."""

    rows: int


@dataclass(frozen=True, kw_only=True)
class ThresholdConfig(Config):
    """Which rows of a dedup result are kept."""

    limit: float
    """Largest similarity kept, a float32 value."""


class DerivedSelection(Selection):
    """A selection that follows row by row from computed ones: readable at once, stored when computed."""

    def derive(self) -> da.Array:
        """Return the counts as a dask array over the inputs' arrays."""
        raise NotImplementedError

    @property
    def counts(self) -> da.Array:
        """(n,) integer dask array: how often each row is selected."""
        return self.lazy("counts") if self.store is not None else self.derive()

    def execute(self, run: Any) -> dict[str, Any]:
        """Write the derived counts."""
        return run.write_counts(self.derive())


class CombinedSelection(DerivedSelection):
    """``a & b``, ``a | b`` or ``~a``."""

    kind = "combine"
    reason = "excluded"

    @classmethod
    def of(cls, operation: str, a: Selection, b: Any = None) -> CombinedSelection:
        """Return the combination of ``a`` and ``b`` (None for ``~``)."""
        inputs = {"a": a}
        if operation != "~":
            if not isinstance(b, Selection):
                raise TypeError(
                    f"Selection {operation} {type(b).__name__} is not allowed: combine two Selections"
                )
            inputs["b"] = selection_or_none(b, a.emb, a.n_rows, f"Selection after {operation}")  # type: ignore[assignment]
        return cls(CombineConfig(operation=operation), inputs)

    def derive(self) -> da.Array:
        """Return the smaller, the larger or the inverted counts."""
        a = self.inputs["a"].counts
        if self.config.operation == "~":
            return (a == 0).astype(np.int32)
        b = self.inputs["b"].counts.rechunk(a.chunks)
        join = da.minimum if self.config.operation == "&" else da.maximum
        return join(a, b).astype(np.int32)

    def history(self) -> list[Selection]:
        """Return what led to the operands of ``&``, then this one; ``|`` and ``~`` start anew."""
        if self.config.operation != "&":
            return [self]
        return self._after("a", "b")


class GivenSelection(DerivedSelection):
    """Counts that the user passed."""

    kind = "given"
    reason = "excluded"

    @classmethod
    def of(cls, counts: np.ndarray | da.Array, emb: Embeddings | None) -> GivenSelection:
        """Return the selection with the given ``counts`` (n,) int32."""
        if emb is not None and len(counts) != len(emb):
            raise ValueError(
                f"the mask covers {len(counts)} rows, the pool has {len(emb)}: give one value a row"
            )
        given = GivenDaskArray(counts) if isinstance(counts, da.Array) else GivenArray(counts)
        inputs: dict[str, Any] = {"values": given}
        if emb is not None:
            inputs["emb"] = emb
        return cls(GivenConfig(rows=len(counts)), inputs)

    @property
    def n_rows(self) -> int:
        """Rows of the pool."""
        return self.config.rows

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk of counts: those of the pool's chunks, where it is known."""
        emb = self.emb
        return max(1, min(emb.chunk_rows if emb is not None else 1 << 20, self.n_rows))

    def derive(self) -> da.Array:
        """Return the given counts, in the pool's chunks."""
        values, rows = self.inputs["values"].values, self.chunk_rows
        return values.rechunk(rows) if isinstance(values, da.Array) else da.from_array(values, chunks=rows)

    def execute(self, run: Any) -> dict[str, Any]:
        """Write the counts; those in memory from here, since a graph is no place for a number a row."""
        values = self.inputs["values"].values
        if isinstance(values, da.Array):
            return super().execute(run)
        url = run.declare("counts", values.shape, self.chunk_rows)
        for start in range(0, len(values), self.chunk_rows):
            write_block(url, start, values[start : start + self.chunk_rows])
        return {"total": int(values.sum(dtype=np.int64))}


class ThresholdSelection(DerivedSelection):
    """The rows of a dedup result that another eps keeps: a lookup in the stored similarities."""

    kind = "threshold"
    reason = "duplicate"

    @classmethod
    def of(cls, dedup: Selection, limit: float) -> ThresholdSelection:
        """Keep the rows whose similarity is not above ``limit``."""
        return cls(ThresholdConfig(limit=limit), {"of": dedup})

    @property
    def eps(self) -> float:
        """The threshold, as an eps."""
        return 1 - self.config.limit

    @property
    def within(self) -> Selection | None:
        """The selection that the dedup was restricted to."""
        return self.inputs["of"].within

    def derive(self) -> da.Array:
        """Look the rows up."""
        similarity = self.inputs["of"].max_similarity
        # NaN marks rows outside: no comparison with it holds, so they are not kept
        return (similarity <= np.float32(self.config.limit)).astype(np.uint8)

    def history(self) -> list[Selection]:
        """Return what led to the dedup, then this one in its place."""
        return [*self.inputs["of"].history()[:-1], self]

    def clusterings(self) -> dict[str, Any]:
        """Return the clusterings that the dedup used."""
        return self.inputs["of"].clusterings()
