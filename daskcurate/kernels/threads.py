"""Threads within a kernel, for the steps that run while no other task does.

A step that cannot be shared out over the cluster (drawing seeds one after another, a small fit that is not
worth the rounds) would use one core of many. Such a task is given the cores of its host here. Pieces are
cut by size alone and put together in their order, so that the number of threads changes no bit.

It handles calls, not arrays, and on a GPU tasks are given one thread: there is nothing for a device here.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

_local = threading.local()


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let :func:`spread` use ``count`` threads within the block, called from this thread."""
    if count <= 1:
        yield
        return
    with ThreadPoolExecutor(count) as pool:
        _local.pool = pool
        try:
            yield
        finally:
            _local.pool = None


def spread(function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
    """Return ``list(map(function, *items))``, made by the threads that the task was given, if any.

    What is called from within ``function`` runs in one thread.
    """
    pool = getattr(_local, "pool", None)
    return list(map(function, *items)) if pool is None else list(pool.map(function, *items))
