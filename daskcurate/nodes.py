"""The nouns: what a stage is, and the selections that stages make and combine.

A stage is a pure function of its inputs' fingerprints, its config and its seed. A node is lazy until
:func:`daskcurate.compute` returns the same kind of object bound to a run store; then its arrays can be
read. A bound node stands wherever its lazy one could.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import dask.array as da
import numpy as np
import xxhash

from daskcurate.config import Config, digest
from daskcurate.embeddings import Embeddings
from daskcurate.planning import Limits, StagePlan
from daskcurate.schema import FORMAT_VERSION

if TYPE_CHECKING:
    from daskcurate.store import RunStore


class NotComputedError(RuntimeError):
    """A result was asked of a stage that has not run."""


class GivenArray:
    """An array that the user passed to a stage: known by its content."""

    def __init__(self, values: np.ndarray):
        self.values = np.ascontiguousarray(values)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of dtype, shape and content."""
        content = xxhash.xxh3_128_hexdigest(self.values.view(np.uint8).data if self.values.size else b"")
        return digest("array", str(self.values.dtype), list(self.values.shape), content)


class GivenDaskArray:
    """A dask array that the user passed to a stage: known by its name, computed where the stage runs."""

    def __init__(self, values: da.Array):
        self.values = values

    @property
    def fingerprint(self) -> str:
        """Digest of dtype, shape and name."""
        return digest("dask array", str(self.values.dtype), list(self.values.shape), self.values.name)


class Stage:
    """A lazy stage, or, bound to a store, its result.

    Parameters
    ----------
    config
        Frozen configuration, already checked.
    inputs
        Embeddings, other stages and given arrays, by the name of their role.
    """

    kind: ClassVar[str]

    def __init__(self, config: Config, inputs: Mapping[str, Any], store: RunStore | None = None):
        self.config: Any = config
        self.inputs = dict(inputs)
        self.store = store

    @cached_property
    def fingerprint(self) -> str:
        """Digest of kind, config and the inputs' fingerprints."""
        inputs = {role: node.fingerprint for role, node in self.inputs.items()}
        return digest(self.kind, FORMAT_VERSION, self.config.as_dict(), inputs)

    @property
    def name(self) -> str:
        """Name of the stage's group in a run store."""
        return f"{self.kind}-{self.fingerprint[:16]}"

    @property
    def title(self) -> str:
        """What progress displays call the stage."""
        return self.kind

    @property
    def is_computed(self) -> bool:
        """Whether the node is bound to a store that holds its result."""
        return self.store is not None

    def bound(self, store: RunStore, inputs: Mapping[str, Any]) -> Self:
        """Return this node bound to ``store``, with bound inputs."""
        return type(self)(self.config, inputs, store)

    def stages(self) -> Iterator[Stage]:
        """Yield the stages that this one reads."""
        for node in self.inputs.values():
            if isinstance(node, Stage):
                yield node

    def execute(self, run: Any) -> dict[str, Any]:
        """Run the stage on ``run`` (a :class:`daskcurate.runner.StageRun`); return its attributes."""
        raise NotImplementedError

    def plan(self, limits: Limits) -> StagePlan:
        """Return what running the stage takes."""
        raise NotImplementedError

    @property
    def attributes(self) -> dict[str, Any]:
        """What the stage recorded beside its arrays: figures, timings, versions, warnings."""
        return self._store().attributes(self.name)

    def url(self, array: str) -> str:
        """URL of one of the result's arrays."""
        return self._store().stage_url(self.name, array)

    def read(self, array: str) -> np.ndarray:
        """Read a whole (small) array of the result."""
        return np.asarray(self._store().array(self.kind, self.name, array)[...])

    def lazy(self, array: str) -> da.Array:
        """Return an array of the result as a dask array."""
        return da.from_zarr(
            self._store().array(self.kind, self.name, array), name=f"{array}-{self.fingerprint}"
        )

    def _store(self) -> RunStore:
        if self.store is None:
            raise NotComputedError(
                f"this {self.kind} stage is lazy and has no result yet: pass it to "
                "daskcurate.compute(..., store=...) and use what that returns"
            )
        return self.store

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.config.as_dict().items())
        state = f"computed in {self.store.url}" if self.store else "lazy"
        return f"<{type(self).__name__} {self.kind}({settings}), {state}>"


def checked_embeddings(emb: Any) -> Embeddings:
    """Return ``emb`` if it is a pool of embeddings."""
    if not isinstance(emb, Embeddings):
        raise TypeError(
            f"emb={type(emb).__name__} is not allowed: give what daskcurate.ingest or daskcurate.open_embeddings "
            "returns"
        )
    return emb
