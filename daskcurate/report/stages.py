"""The stages of a run store as a report shows them: titles, order, and what belongs together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import zarr

from daskcurate.schema import SCHEMA
from daskcurate.store import RunStore

CLUSTERINGS = ("kmeans", "clustering")
ALLOCATIONS = ("density_prune", "prototype_prune")


@dataclass(frozen=True)
class StoredStage:
    """One stage's group in a run store."""

    store: RunStore
    name: str
    attributes: dict[str, Any]
    complete: bool
    """Whether its marker is set and its files are those that it was set for."""

    @property
    def kind(self) -> str:
        """Kind of the stage."""
        return str(self.attributes.get("kind", self.name.rpartition("-")[0]))

    @property
    def config(self) -> dict[str, Any]:
        """Settings that it ran with."""
        return self.attributes.get("config") or {}

    @property
    def inputs(self) -> dict[str, str]:
        """Names of the stages that it read, and fingerprints of its other inputs, by role."""
        return self.attributes.get("inputs") or {}

    @property
    def is_clustering(self) -> bool:
        """Whether the stage makes clusters; any other makes a selection."""
        return self.kind in CLUSTERINGS

    @property
    def is_known(self) -> bool:
        """Whether it is of a kind that has rows to show: clusters, or counts."""
        return any(spec.name in ("labels", "counts") for spec in SCHEMA.get(self.kind, ()))

    @property
    def state(self) -> str:
        """Where the stage has got to."""
        if self.complete:
            return (
                "finished" if self.is_known else f"of the kind {self.kind!r}, which this report does not know"
            )
        if self.attributes.get("complete"):
            return "damaged: files are missing or were changed"
        saved = self.attributes.get("checkpoint") or {}
        where = f" (step {saved.get('step', 0)}, iteration {saved.get('iteration', 0)})" if saved else ""
        return f"unfinished{where}"

    def array(self, name: str) -> zarr.Array:
        """Open one of its arrays, checked against the schema."""
        return self.store.array(self.kind, self.name, name)


def _title(stage: StoredStage, level: int) -> str:
    config, kind = stage.config, stage.kind
    if kind in CLUSTERINGS:
        asked = int(config.get("n_clusters", 0)) * int(config.get("n_splits", 1))
        what = "k-means" if kind == "kmeans" else "clusters given,"
        return f"{what} {asked:,}" + (f" (level {level})" if level > 1 else "")
    if kind == "semantic_dedup":
        more = [
            config[key] for key in ("rule", "scope") if config.get(key) not in (None, "earlier", "cluster")
        ]
        return " ".join([f"dedup eps {config.get('eps', 0):g}", *more])
    if kind == "threshold":
        return f"dedup at eps {1 - float(config.get('limit', 0)):.4g}"
    if kind == "combine":
        return f"selections combined by {config.get('operation')}"
    if kind == "given":
        return "selection given"
    if kind == "hierarchical_sample":
        return f"sample {int(config.get('target_size', 0)):,}"
    words = {
        "density_prune": "density prune",
        "prototype_prune": "prototype prune",
        "random_prune": "random prune",
    }
    if config.get("target_size"):
        return f"{words.get(kind, kind)} to {int(config['target_size']):,}"
    if config.get("keep_fraction"):
        return f"{words.get(kind, kind)} to {100 * float(config['keep_fraction']):.3g}%"
    return words.get(kind, kind)


@dataclass
class StoredRun:
    """All stages of a store, inputs first."""

    stages: dict[str, StoredStage]
    titles: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Any) -> StoredRun:
        """Read the attributes of every stage; StoreError where there is no run store."""
        store = RunStore(path)
        found = {
            name: StoredStage(store, name, attributes, store.is_complete(name))
            for name, attributes in store.stages().items()
        }
        order: dict[str, StoredStage] = {}

        def visit(stage: StoredStage) -> None:
            if stage.name not in order:
                for needed in stage.inputs.values():
                    if needed in found and needed != stage.name:
                        visit(found[needed])
                order[stage.name] = stage

        for stage in sorted(
            found.values(), key=lambda item: (str(item.attributes.get("started")), item.name)
        ):
            visit(stage)
        run = cls(order)
        titles = {name: _title(stage, len(run.chain(stage))) for name, stage in order.items()}
        repeated = {title for title in titles.values() if list(titles.values()).count(title) > 1}
        run.titles = {
            name: f"{title} [{name[-16:][:4]}]" if title in repeated else title
            for name, title in titles.items()
        }
        return run

    def title(self, stage: StoredStage) -> str:
        """Return what the page calls a stage: no two alike."""
        return self.titles[stage.name]

    def needs(self, stage: StoredStage) -> Iterator[StoredStage]:
        """Yield the stages that one reads and that are there."""
        for name in stage.inputs.values():
            if name in self.stages:
                yield self.stages[name]

    def before(self, stage: StoredStage) -> dict[str, StoredStage]:
        """Return a stage and all that led to it, by name, each once however often it is used."""
        found: dict[str, StoredStage] = {}
        waiting = [stage]
        while waiting:
            one = waiting.pop()
            if one.name not in found:
                found[one.name] = one
                waiting.extend(self.needs(one))
        return found

    def chain(self, stage: StoredStage) -> list[StoredStage]:
        """Return the levels that lead to a clustering, that of the rows first."""
        parent = self.stages.get(stage.inputs.get("parent", ""))
        return [stage] if parent is None else [*self.chain(parent), stage]

    def pool(self, stage: StoredStage) -> str | None:
        """Return the fingerprint of the pool that a stage is of, where it is known."""
        for one in self.before(stage).values():
            if "emb" in one.inputs:
                return one.inputs["emb"]
        return None

    def pool_path(self, fingerprint: str) -> str | None:
        """Return where that pool was when the latest stage ran."""
        for stage in reversed(self.stages.values()):
            if stage.inputs.get("emb") == fingerprint and stage.attributes.get("pool"):
                return str(stage.attributes["pool"])
        return None

    @cached_property
    def finished(self) -> list[StoredStage]:
        """Stages whose results can be read."""
        return [stage for stage in self.stages.values() if stage.complete and stage.is_known]

    @cached_property
    def last(self) -> StoredStage | None:
        """The stage that the newest chain ends in: of the selections that nothing else used, the newest."""
        used = {needed.name for stage in self.finished for needed in self.needs(stage)}
        leaves = [stage for stage in self.finished if stage.name not in used]
        selections = [stage for stage in leaves if not stage.is_clustering]
        return max(
            selections or leaves,
            # times are in seconds: of stages started in the same one, that of the longest chain
            key=lambda stage: (str(stage.attributes.get("started")), len(self.before(stage)), stage.name),
            default=None,
        )

    @cached_property
    def ranked(self) -> list[StoredStage]:
        """Finished stages, those that led to the last one first, then from new to old."""
        if self.last is None:
            return []
        chain = self.before(self.last)
        rest = [stage for stage in reversed(self.finished) if stage.name not in chain]
        return [stage for stage in self.finished if stage.name in chain] + rest

    def rows(self, stage: StoredStage) -> int:
        """Return the rows of the pool that a finished stage is of."""
        if stage.is_clustering:
            return int(self.chain(stage)[0].array("labels").shape[0])
        return int(stage.array("counts").shape[0])
