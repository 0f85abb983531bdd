"""Progress of a run: bars in a terminal, plain lines elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from daskcurate.settings import show_progress

SECONDS_BETWEEN_LINES = 5.0
logger = logging.getLogger("daskcurate")


class Progress:
    """Shows a line per stage: how far it is, and what it is doing.

    Parameters
    ----------
    stages
        The stages that will run.
    show
        None: as the Dask setting ``daskcurate.progress`` says, true by default.
    """

    def __init__(self, stages: Sequence[Any], show: bool | None = None):
        shown = show_progress() if show is None else show
        self.stages = list(stages)
        self.bars: Bars | None = None
        self.ids: dict[str, TaskID] = {}
        self.lines = bool(shown)
        self.last_line = 0.0
        if shown and sys.stderr.isatty():
            self.lines = False
            self.bars = Bars(
                TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(), TextColumn("{task.fields[doing]}"), console=Console(stderr=True),
            )  # fmt: skip

    def __enter__(self) -> "Progress":
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bars is not None:
            self.bars.stop()

    def start(self, stage: Any, *, quiet: bool = False) -> None:
        """Show that a stage starts; ``quiet``: only as a bar."""
        if self.bars is not None:
            self.ids[stage.name] = self.bars.add_task(stage.title, total=1.0, doing="")
        if quiet:
            self.last_line = time.monotonic()
        else:
            self._line(stage, "started", force=True)

    def note(self, stage: Any, fraction: float, text: str) -> None:
        """Show how far a stage has got, and what it does now."""
        if self.bars is not None:
            self.bars.update(self.ids[stage.name], completed=min(1.0, fraction), doing=text)
        self._line(stage, f"{fraction:4.0%} {text}")

    def watch(self, stage: Any, step: str, futures: Sequence[Any]) -> None:
        """Show the tasks of a step as they finish."""
        if self.bars is None or not step:
            return
        bars, shown, total = self.bars, self.ids[stage.name], len(futures)
        done = 0

        def finished(_: Any) -> None:
            nonlocal done
            done += 1
            bars.update(shown, doing=f"{step}: {done}/{total} tasks")

        for future in futures:
            future.add_done_callback(finished)

    def finish(self, stage: Any, seconds: float) -> None:
        """Show that a stage is committed."""
        if self.bars is not None:
            self.bars.update(self.ids[stage.name], completed=1.0, doing="done")
        self._line(stage, f"done in {seconds:.1f} s", force=True)

    def _line(self, stage: Any, text: str, force: bool = False) -> None:
        logger.info("%s: %s", stage.title, text)
        now = time.monotonic()
        if self.lines and (force or now - self.last_line >= SECONDS_BETWEEN_LINES):
            self.last_line = now
            print(f"daskcurate: {stage.title}: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Job:
    """Something shown like a stage."""

    title: str

    @property
    def name(self) -> str:
        return self.title


@contextlib.contextmanager
def job_progress(title: str, show: bool | None = None) -> Iterator[Callable[[float, str], None]]:
    """Show one job that is no stage; yield a function that takes the fraction done and what it is doing.

    Lines (where there is no terminal) come only from jobs that take longer than a few seconds.
    """
    job = _Job(title)
    with Progress([job], show) as shown:
        shown.start(job, quiet=True)
        yield lambda fraction, text: shown.note(job, fraction, text)
