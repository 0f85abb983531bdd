"""Which array library an array belongs to: the only module that names CuPy.

Kernels take arrays and ask :func:`namespace_of` for the functions to use on them, so one kernel serves
NumPy on the host and CuPy on a GPU. Nothing here imports CuPy unless an array of it was passed in.
"""

import sys
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray


def namespace_of(x: Array) -> Any:
    """Return the module (numpy or cupy) that owns ``x``."""
    if type(x).__module__.partition(".")[0] == "cupy":
        return sys.modules["cupy"]
    return np


def sparse_of(x: Array) -> Any:
    """Return the sparse-matrix module (scipy.sparse or cupyx.scipy.sparse) that fits ``x``."""
    if namespace_of(x) is not np:
        import cupyx.scipy.sparse as sparse
    else:
        import scipy.sparse as sparse
    return sparse


def to_host(x: Array) -> np.ndarray:
    """Return ``x`` as a NumPy array, copied from the device if it is on one."""
    if namespace_of(x) is not np:
        return x.get()
    return np.asarray(x)
