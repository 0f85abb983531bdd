"""Where a worker computes: on the GPU, if it has one of its own, and otherwise on its CPU.

What travels between tasks, and what Dask keeps, are NumPy arrays. A function wrapped in :func:`on_device` gets
its arrays on the GPU and gives its results back to the host: stages and kernels know of neither. Blocks of rows
stay on the GPU for the next task that asks for them, as long as there is room and as long as Dask keeps them on
the host; so the passes of a loop copy them once, and a pool larger than the GPU's memory streams through it.
Sums that the next task adds up stay there as well, until another worker or the disk asks for them.
Results do not depend on what was still there.
"""

import functools
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import dask
import numpy as np

from daskcurate.arrays import Array, device_memory, device_module, gpu_count, namespace_of, to_device, to_host
from daskcurate.kernels.assign import Scorer
from daskcurate.rows import Block, NarrowBlock

SETTING = "daskcurate.device"
"""Dask setting of the workers: ``auto`` (workers that dask-cuda started compute on their GPU), ``cpu``, ``gpu``."""
DEVICES = ("auto", "cpu", "gpu")
RESIDENT_SHARE = 0.5
"""Part of the GPU's memory for blocks that stay there."""
LEFT_SHARE = 0.1
"""Part of the GPU's memory for results that stay there, see :class:`Left`."""
SMALL_BYTES = 256 << 10
"""Functions of arrays that are smaller in all stay on the host: to start anything on a GPU takes longer."""
AT_ONCE = 2
"""Tasks of a worker that use its GPU at the same time: one computes while the other's rows are copied."""

_turns = threading.BoundedSemaphore(AT_ONCE)
_inside = threading.local()


def wanted_device() -> str:
    """Return the setting, checked."""
    found = dask.config.get(SETTING, "auto")
    if found not in DEVICES:
        raise ValueError(f"{SETTING}={found!r} is not allowed: give one of {', '.join(DEVICES)}")
    return found


def uses_gpu() -> bool:
    """Return whether tasks of this process compute on a GPU.

    Raises RuntimeError where the setting asks for one and there is none.
    """
    return _uses_gpu(wanted_device(), "dask_cuda" in sys.modules)


@functools.cache
def _uses_gpu(wanted: str, has_own: bool) -> bool:
    if wanted == "cpu" or (wanted == "auto" and not has_own):
        return False
    if gpu_count():
        # products of float32 are exact to its rounding, which TensorFloat-32 is not; read at the first of them
        os.environ["CUPY_TF32"] = "0"
        return True
    if wanted == "gpu":
        raise RuntimeError(f"{SETTING}=gpu, but this worker has no GPU, or CuPy is not installed")
    return False


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` as it is called by tasks: on a worker with a GPU its arrays are there.

    Arrays in arguments, in lists, named tuples and scorers as well, are copied to the GPU, and those of the result
    back to the host. Within such a call the arrays of inner ones are there already.
    """
    return _wrapped(function, to_host)


def left_on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` as :func:`on_device` does, but large arrays of its result stay on the GPU.

    They are :class:`Left` there: only for results that go to functions which one of the two has wrapped.
    """
    return _wrapped(function, _left)


def _wrapped(function: Callable[..., Any], back: Callable[[Array], Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **settings: Any) -> Any:
        if getattr(_inside, "active", False) or not uses_gpu() or _nbytes(args) < SMALL_BYTES:
            return function(*args, **settings)
        with _turns:
            _inside.active = True
            try:
                return _returned(function(*[placed(item) for item in args], **settings), back)
            finally:
                _inside.active = False
                device_module().cuda.get_current_stream().synchronize()  # before any memory is used again

    return wrapped


def place(x: np.ndarray) -> Array:
    """Return ``x`` on the GPU where this worker computes on one, and as it is elsewhere."""
    return to_device(x) if uses_gpu() else x


def at_hand(scorer: Scorer) -> Scorer:
    """Return a scorer with its centroids where the function that asks computes."""
    return _scorer(scorer) if getattr(_inside, "active", False) else scorer


def placed(value: Any) -> Any:
    """Return a value with all its arrays on the GPU."""
    if isinstance(value, np.ndarray):
        return to_device(value)
    if isinstance(value, Block | NarrowBlock):
        return value._replace(
            **{name: placed(item) for name, item in value._asdict().items() if name != "rows"},
            rows=_resident.get(value.rows),
        )
    if isinstance(value, Left):
        return value.array
    if isinstance(value, Scorer):
        return _scorer(value)
    if isinstance(value, list):
        return [placed(item) for item in value]
    if isinstance(value, tuple):
        parts = [placed(item) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _returned(value: Any, back: Callable[[Array], Any]) -> Any:
    """Return a value with ``back`` of all its arrays that are on the GPU."""
    if namespace_of(value) is not np:
        return back(value)
    if isinstance(value, list):
        return [_returned(item, back) for item in value]
    if isinstance(value, tuple):
        parts = [_returned(item, back) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _nbytes(value: Any) -> int:
    if isinstance(value, np.ndarray | Left):
        return value.nbytes
    if isinstance(value, Scorer):
        return value.centroids.nbytes
    return sum(_nbytes(item) for item in value) if isinstance(value, list | tuple) else 0


_scorers: "weakref.WeakKeyDictionary[Scorer, Scorer]" = weakref.WeakKeyDictionary()


def _scorer(scorer: Scorer) -> Scorer:
    """Return a scorer with its centroids on the GPU: made once, for all blocks."""
    found = _scorers.get(scorer)
    if found is None:
        found = _scorers[scorer] = scorer.on(to_device)
    return found


class Left:
    """An array that a task leaves on the GPU; a pickle of it, for another worker or the disk, is a NumPy array."""

    held = 0
    """Bytes of all of them in this process."""

    def __init__(self, array: Array):
        self.array = array
        self.nbytes = int(array.nbytes)
        weakref.finalize(self, _count_left, -self.nbytes).atexit = False
        _count_left(self.nbytes)

    def __sizeof__(self) -> int:
        return self.nbytes  # what Dask reckons with when it chooses where the next task runs

    def __reduce__(self) -> tuple[Any, ...]:
        return np.asarray, (to_host(self.array),)


_counting = threading.RLock()


def _count_left(nbytes: int) -> None:
    with _counting:
        Left.held += nbytes


def _left(x: Array) -> Any:
    """Leave an array on the GPU if that is worth it and there is room."""
    if x.nbytes < max(1, SMALL_BYTES) or Left.held + x.nbytes > device_memory() * LEFT_SHARE:
        return to_host(x)
    return Left(x)


class _Known(NamedTuple):
    """An array that was asked for."""

    array: "weakref.ref[np.ndarray]"
    copy: Array | None
    """None: it was copied, and there was no room to keep the copy."""
    used: int
    """When it was asked for last, counted in questions."""


class Resident:
    """Arrays that are on the GPU as well, for as long as they are on the host and there is room.

    The passes of a loop ask for the same arrays in the same order. Where there is no room for all, the one used
    longest ago is the one that is asked for next: to let it go for the newest would copy every array in every pass.
    So a copy makes room only for an array that is asked for again sooner: whose last two questions were closer
    together than the copy's last one is to now.
    """

    def __init__(self, limit: int | None = None):
        self._limit = limit
        self._lock = threading.RLock()  # an array may be collected, and forgotten, while the lock is held
        self._known: OrderedDict[int, _Known] = OrderedDict()
        """By the arrays' ids, those used longest ago first."""
        self._clock = 0
        self.nbytes = 0

    @property
    def limit(self) -> int:
        """Bytes that may be held."""
        if self._limit is None:
            self._limit = int(device_memory() * RESIDENT_SHARE)
        return self._limit

    def get(self, x: np.ndarray) -> Array:
        """Return ``x`` on the GPU; copied there only if it is not held."""
        key = id(x)
        with self._lock:
            self._clock += 1
            now = self._clock
            found = self._known.get(key)
            if found is not None and found.array() is not x:
                self._drop(key)
                found = None
            if found is not None and found.copy is not None:
                self._known[key] = found._replace(used=now)
                self._known.move_to_end(key)
                return found.copy
        copy = to_device(x)
        if x.nbytes > self.limit:
            return copy
        with self._lock:
            since = None if found is None else now - found.used
            self._drop(key)
            held = copy if self._makes_room(x.nbytes, since, now) else None
            self._known[key] = _Known(weakref.ref(x, lambda _: self._drop(key, _)), held, now)
            self.nbytes += x.nbytes if held is not None else 0
        return copy

    def _makes_room(self, nbytes: int, since: int | None, now: int) -> bool:
        """Let copies go for an array last asked for ``since`` questions ago (None: never); return whether it fits."""
        gone, free = [], self.limit - self.nbytes
        for key, item in self._known.items():
            if free >= nbytes or since is None or now - item.used <= since:
                break
            if item.copy is not None:
                gone.append(key)
                free += item.copy.nbytes
        if free < nbytes:
            return False
        for key in gone:
            item = self._known[key]
            self.nbytes -= item.copy.nbytes  # type: ignore[union-attr]
            self._known[key] = item._replace(copy=None)
        return True

    def _drop(self, key: int, gone: Any = None) -> None:
        """Forget an array; of an array that is ``gone``, only if no other one has its place by now."""
        with self._lock:
            found = self._known.get(key)
            if found is not None and (gone is None or found.array is gone):
                del self._known[key]
                self.nbytes -= found.copy.nbytes if found.copy is not None else 0


_resident = Resident()
