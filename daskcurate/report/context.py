"""What the sections of a report share: the run, its pool, and which stages have pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from daskcurate.embeddings import Embeddings, open_embeddings
from daskcurate.report.items import Items, pool_ids
from daskcurate.report.measures import fold
from daskcurate.report.stages import StoredRun, StoredStage

MAX_CLUSTERINGS = 8


class RunContext:
    """A run whose report is being made."""

    def __init__(self, run: StoredRun, url: str, seed: int):
        self.run, self.url, self.seed = run, url, seed
        self.emb: Embeddings | None = None
        self.notes: list[str] = []
        self.figures: dict[str, Any] = {}
        last = run.last
        self.fingerprint = None if last is None else run.pool(last)
        self.n_rows = None if last is None else run.rows(last)
        self.final = None if last is None or last.is_clustering else last
        of_pool = [stage for stage in run.ranked if self._is_of_pool(stage)]
        if len(of_pool) < len(run.finished):
            self.notes.append(
                "The store also holds stages of other pools, or whose inputs are gone: they are in the table "
                "of stages and nowhere else."
            )
        self.of_pool = of_pool

    def _is_of_pool(self, stage: StoredStage) -> bool:
        return self.run.pool(stage) in (self.fingerprint, None) and self.run.rows(stage) == self.n_rows

    def few(self, stages: list[StoredStage], limit: int, what: str) -> list[StoredStage]:
        """Return the first ``limit`` stages, inputs first, and note that others were left out."""
        if len(stages) > limit:
            self.notes.append(
                f"Of {len(stages)} {what} the {limit} that lead to the last result, or are newest, have pictures."
            )
        names = {stage.name for stage in stages[:limit]}
        return [stage for stage in self.run.stages.values() if stage.name in names]

    def open_pool(self, given: Any) -> None:
        """Find the pool: the one given, or where it was."""
        if given is not None:
            emb = given if isinstance(given, Embeddings) else open_embeddings(given)
            if self.fingerprint is not None and emb.fingerprint != self.fingerprint:
                raise ValueError(
                    f"embeddings: {emb.path} has the fingerprint {emb.fingerprint[:8]}, the run is of the pool "
                    f"{self.fingerprint[:8]}: give the pool of the run"
                )
            if self.n_rows is not None and len(emb) != self.n_rows:
                raise ValueError(
                    f"embeddings: {emb.path} has {len(emb):,} rows, the run covers {self.n_rows:,}: give the "
                    "run's pool"
                )
            self.emb = emb
        elif self.fingerprint is not None:
            recorded = self.run.pool_path(self.fingerprint)
            name = os.path.basename(recorded or "pool.zarr")
            for place in (recorded, os.path.join(os.path.dirname(self.url), name)):
                try:
                    emb = open_embeddings(place or "")
                except (OSError, ValueError):
                    continue
                if emb.fingerprint == self.fingerprint:
                    self.emb = emb
                    break
            else:
                self.notes.append(
                    "The pool is not where it was when the run was made: there is no map, and rows go by "
                    "their number. Name the pool with --embeddings."
                )
        if self.n_rows is None and self.emb is not None:
            self.n_rows = len(self.emb)

    def open_items(self, texts: Any, images: Any) -> Items:
        """Open the user's items; their number is checked."""
        ids = None if self.emb is None else pool_ids(self.emb)
        if self.n_rows is None:
            if texts is not None or images is not None:
                raise ValueError(f"texts and images are of no use: {self.url} has no finished stage yet")
            return Items(0)
        return Items(self.n_rows, texts, images, ids)

    def levels(self) -> Iterator[tuple[StoredStage, list[StoredStage]]]:
        """Yield each clustering of rows with the clusterings that rest on it, itself first."""
        wanted = self.few([s for s in self.of_pool if s.is_clustering], MAX_CLUSTERINGS, "clusterings")
        by_first: dict[str, list[StoredStage]] = {}
        for stage in wanted:
            by_first.setdefault(self.run.chain(stage)[0].name, []).append(stage)
        for name, stages in by_first.items():
            yield self.run.stages[name], stages

    @property
    def selections(self) -> list[StoredStage]:
        """The selections to show, in the order of the run."""
        return [s for s in self.of_pool if not s.is_clustering]

    def up(self, sizes: np.ndarray, stage: StoredStage) -> np.ndarray:
        """Return the sums of the lowest level's sizes over the clusters of a level."""
        for level in self.run.chain(stage)[1:]:
            sizes = fold(sizes, np.asarray(level.array("labels")[...]), int(level.array("sizes").shape[0]))
        return sizes
