"""One routine of BLAS that NumPy does not offer: products of rows with themselves, of which one half is computed.

NumPy asks for the same half, and copies it to the other one. SciPy has the routine, too, but holds Python's lock
meanwhile, so that threads wait for each other; the address that it offers to compiled code has no such limit.
"""

import ctypes

import numpy as np
from scipy.linalg import cython_blas


def _address(name: str) -> int:
    """Return where a routine of SciPy's BLAS is, by what SciPy publishes for compiled code."""
    capsule = cython_blas.__pyx_capi__[name]
    api = ctypes.pythonapi
    name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", api)
    )
    return pointer(capsule, name_of(capsule))


_syrk = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 10)(_address("ssyrk"))


def own_products(x: np.ndarray, out: np.ndarray) -> None:
    """Write x @ x.T to the diagonal and below it in ``out``, and leave what is above.

    Parameters
    ----------
    x
        float32 (m, d).
    out
        float32 (m, m). In both, rows may be apart, but not the numbers of a row.
    """
    (m, d), size = x.shape, x.itemsize
    if x.dtype != np.float32 or out.dtype != np.float32 or out.shape != (m, m):
        raise ValueError(f"{x.dtype} {x.shape} into {out.dtype} {out.shape}: give float32 (m, d), (m, m)")
    if not m:
        return
    leads = [each.strides[0] // size if m > 1 else max(1, each.shape[1]) for each in (x, out)]
    if (
        leads[0] < d
        or leads[1] < m
        or any(size != each.strides[1] and each.shape[1] > 1 for each in (x, out))
    ):
        raise ValueError(f"strides {x.strides} into {out.strides}: the numbers of a row must be side by side")
    # by columns, as Fortran counts: the upper half of a^T a, where a (d, m) is x
    sizes, factors = (ctypes.c_int * 4)(m, d, max(1, leads[0]), leads[1]), (ctypes.c_float * 2)(1, 0)
    at, one = ctypes.addressof(sizes), ctypes.addressof(factors)
    _syrk(b"U", b"T", at, at + 4, one, x.ctypes.data, at + 8, one + 4, out.ctypes.data, at + 12)
