"""Lazy tasks with names that read well in the dashboard, one BLAS thread each."""

import ctypes
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import dask
import numpy as np
from dask.delayed import Delayed
from distributed import Status, get_worker
from threadpoolctl import ThreadpoolController

from daskcurate.kernels.threads import using_threads
from daskcurate.settings import kept_bytes

_lock = threading.Lock()
_running = 0
_limit: Any = None

WATCH_SECONDS = 0.1
"""How often a worker's memory is looked at: as often as Dask does."""


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # a scan of the loaded libraries: milliseconds, so once a process


@cache
def keep_freed_memory() -> bool:
    """Let a worker process use freed memory again; return whether that was needed and possible.

    Dask starts workers with MALLOC_TRIM_THRESHOLD_=65536: every array of more than 128 KiB is then mapped
    anew from the system and faulted in page by page. That made the kernels here, which reuse tiles of a few
    MiB, take from 1.3 to 13 times as long. The setting ``daskcurate.kept-memory`` says how much is kept
    instead; a threshold of the user's own choice is left as it is.
    """
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") != "65536" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    size = kept_bytes()
    return bool(mallopt(trim, size)) and bool(mallopt(mmap, size))


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim if sys.platform.startswith("linux") else None
    except (OSError, AttributeError):
        return None


def give_back_memory(worker: Any) -> bool:
    """Give freed memory back to the system where the process of ``worker`` holds much; return whether that was so.

    Much is half way between the shares at which Dask's workers store results and pause.
    """
    manager = worker.memory_manager
    shares = [share for share in (manager.memory_target_fraction, manager.memory_pause_fraction) if share]
    trim = _trim()
    if trim is None or not manager.memory_limit or not shares:
        return False
    if worker.monitor.get_process_memory() < manager.memory_limit * sum(shares) / len(shares):
        return False
    trim(0)
    return True


_watched: weakref.WeakSet[Any] = weakref.WeakSet()


def watch_memory() -> None:
    """Start to give back freed memory of the worker that runs this task, from a thread of its own, until it closes.

    Dask pauses a worker by what its process holds, freed or not. A paused worker starts no task, and so frees nothing
    any more: where two wait for each other's results in a shuffle, they would stay so for ever. Tasks that are not
    ours, and what a worker does beside its tasks, leave as much freed memory as ours.
    """
    try:
        worker = get_worker()
    except ValueError:  # not in a task
        return
    with _lock:
        if worker in _watched:
            return
        _watched.add(worker)
    threading.Thread(target=_watch, args=(weakref.ref(worker),), name="give-back-memory", daemon=True).start()


def _watch(reference: Callable[[], Any]) -> None:
    while (worker := reference()) is not None and worker.status not in (Status.closed, Status.failed):
        gave = give_back_memory(worker)
        del worker  # not held while this thread sleeps
        time.sleep(WATCH_SECONDS * (5 if gave else 1))


class one_blas_thread:  # noqa: N801 - used as a context manager
    """Hold BLAS to one thread while any task runs in this process.

    Dask runs a task per thread; BLAS threads on top of that would fight for the same cores, and the
    number of them would decide in which order sums are rounded. The limit is process-wide, so the first
    task in sets it and the last one out lifts it.
    """

    def __enter__(self):
        global _running, _limit
        with _lock:
            if _running == 0:
                _limit = _controller().limit(limits=1, user_api="blas")
            _running += 1

    def __exit__(self, *_):
        global _running, _limit
        with _lock:
            _running -= 1
            if _running == 0:
                _limit.restore_original_limits()
                _limit = None


class Open(NamedTuple):
    """The place of an argument that is the result of another task, or a list with such results."""

    length: int | None
    """Of the list; None: a single result."""

    def filled(self, results: Iterator[Any]) -> Any:
        """Return the argument, from the next of ``results``."""
        return next(results) if self.length is None else list(itertools.islice(results, self.length))


class Work:
    """A function, its arguments, with places for those that are results of other tasks, and threads for kernels.

    Dask knows nothing of this class. In tuples and dataclasses, and all that they hold, it looks for other tasks,
    which would take longer than everything else about making one.
    """

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any], threads: int = 1):
        self.function, self.arguments, self.threads = function, arguments, threads


def call(work: Work, *results: Any) -> Any:
    """Do some work with the results of other tasks, with BLAS held to one thread."""
    rest = iter(results)
    arguments = [item.filled(rest) if isinstance(item, Open) else item for item in work.arguments]
    keep_freed_memory()
    watch_memory()
    # OpenBLAS now and then looks at numbers beyond the last column of a single row; the product is right
    with one_blas_thread(), using_threads(work.threads), np.errstate(invalid="ignore"):
        return work.function(*arguments)


_lazy_call = dask.delayed(call, pure=False)


def task(function: Callable[..., Any], *args: Any, name: str, key: str, threads: int = 1) -> Delayed:
    """Return ``function(*args)`` as a lazy task; the dashboard groups tasks by ``name``.

    ``threads`` are what kernels may use within it; more than 1 only for a task that runs alone.

    An argument may be a task or a list of tasks; within anything else tasks are not found. A list is passed as single
    arguments and put together where the task runs: within a list Dask would keep the keys of persisted results, but
    no hold on the results.
    """
    arguments: list[Any] = []
    results: list[Any] = []
    for item in args:
        is_list = isinstance(item, list) and any(isinstance(part, Delayed) for part in item)
        if is_list or isinstance(item, Delayed):
            arguments.append(Open(len(item) if is_list else None))
            results.extend(item if is_list else [item])
        else:
            arguments.append(item)
    return _lazy_call(Work(function, arguments, threads), *results, dask_key_name=f"{name}-{key}")
