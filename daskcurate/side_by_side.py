"""Several fits of a stage at once: each in a thread of the client, with a checkpoint of its own.

A fit is a chain of steps that wait for each other. Where its steps are short, or of one task, the workers have
time for the steps of another. What a fit returns does not depend on what runs beside it.
"""

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from dask.delayed import Delayed

AT_ONCE = 16
"""Fits at once, at most: one process keeps the books of all of them."""


class Fit(NamedTuple):
    """A fit to be run beside others."""

    key: str
    """Names its checkpoint: the same whenever the stage is run again."""
    nbytes: int
    """Rows that it keeps on the workers."""
    run: Callable[["Side"], Any]


class _StoppedError(Exception):
    """Another fit has failed."""


class _Sides:
    """What the fits have in common."""

    def __init__(self, run: Any, at_once: int):
        self.run, self.at_once, self.stopped = run, at_once, threading.Event()
        found = run.checkpoint
        self.saved: dict[str, dict[str, Any]] = found.pop("sides", {})
        self.stage_checkpoint = found


class Side:
    """What one of several fits sees of its stage's run: its own checkpoint, its share of cores, all else as it is."""

    def __init__(self, sides: _Sides, key: str):
        self._sides, self._run, self._key = sides, sides.run, key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    @property
    def checkpoint(self) -> dict[str, Any]:
        """What an earlier, interrupted run of this fit saved last."""
        return self._sides.saved.get(self._key, {})

    def save(self, **checkpoint: Any) -> None:
        """Save where this fit has got to."""
        with self._run.lock:
            self._sides.saved[self._key] = checkpoint
            self._run.save(**self._sides.stage_checkpoint, sides=self._sides.saved)

    def task_alone(self, function: Callable[..., Any], *args: Any, name: str, key: Any = 0) -> Delayed:
        """Return a task for a step in which this fit has no other: it may use this fit's share of the cores."""
        return self._run.task_alone(function, *args, name=name, key=key, share=self._sides.at_once)

    def gather(self, tasks: Sequence[Delayed], step: str = "") -> list[Any]:
        """Run tasks and return their results, which must be small."""
        return self._run.finish(self.start(tasks), step)

    def start(self, tasks: Sequence[Delayed]) -> list[Any]:
        """Run tasks and return at once; not where another fit has failed."""
        self._go_on()
        return self._run.start(tasks)

    def persist(self, tasks: Sequence[Delayed], step: str = "") -> list[Delayed]:
        """Run tasks and leave their results on the workers; not where another fit has failed."""
        self._go_on()
        return self._run.persist(tasks, step)

    def _go_on(self) -> None:
        if self._sides.stopped.is_set():
            raise _StoppedError


def side_by_side(run: Any, fits: Sequence[Fit], room: int | None) -> list[Any]:
    """Run fits, as many at once as there are threads for and memory; return what they return, in their order.

    Where one fails, the others end with the step that they are at, and its error is raised.

    Parameters
    ----------
    room
        Bytes that all fits at work may keep on the workers; a fit that needs more runs alone. None: any.
    """
    at_once = max(1, min(AT_ONCE, len(fits), max(2, run.limits.n_threads)))
    sides = _Sides(run, at_once)
    waiting = deque(sorted(range(len(fits)), key=lambda i: -fits[i].nbytes))  # the longest first
    running: dict[Future[Any], int] = {}
    results: list[Any] = [None] * len(fits)
    with ThreadPoolExecutor(at_once, thread_name_prefix="fit") as pool:
        try:
            while waiting or running:
                held = sum(fits[i].nbytes for i in running.values())
                while waiting and len(running) < at_once:
                    fit = fits[waiting[0]]
                    if running and room is not None and held + fit.nbytes > room:
                        break
                    # a copy of the context each: the client in force is in it
                    future = pool.submit(contextvars.copy_context().run, fit.run, Side(sides, fit.key))
                    running[future], held = waiting.popleft(), held + fit.nbytes
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    results[running.pop(future)] = future.result()
        except BaseException:
            sides.stopped.set()
            raise
    return results
