"""Which array library an array belongs to: the only module that names CuPy.

Kernels take arrays and ask :func:`namespace_of` for the functions to use on them, so one kernel serves
NumPy on the host and CuPy on a GPU. Nothing here imports CuPy unless an array of it was passed in, or
:func:`to_device` was called.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray

PINNED_BYTES = 64 << 20
"""Each of the two page-locked buffers that arrays pass through on their way to a GPU."""
FILLERS = 4
"""Threads that write one buffer: a single one copies memory at a fraction of what the link to the GPU carries."""


def namespace_of(x: Array) -> Any:
    """Return the module (numpy or cupy) that owns ``x``."""
    if type(x).__module__.partition(".")[0] == "cupy":
        return sys.modules["cupy"]
    return np


def to_host(x: Array) -> np.ndarray:
    """Return ``x`` as a NumPy array, copied from the device if it is on one."""
    if namespace_of(x) is not np:
        return x.get()
    return np.asarray(x)


def device_module() -> Any:
    """Return CuPy, imported now; ImportError where it is not installed."""
    import cupy

    return cupy


def gpu_count() -> int:
    """Return how many GPUs this process may use; 0 without CuPy, a driver or a GPU."""
    try:
        return int(device_module().cuda.runtime.getDeviceCount())
    except ImportError:
        return 0
    except Exception as error:  # CUDARuntimeError, whose class only CuPy has: no driver, or no device
        if type(error).__name__ != "CUDARuntimeError":
            raise
        return 0


def device_memory() -> int:
    """Return the bytes of memory of the current GPU."""
    return int(device_module().cuda.runtime.memGetInfo()[1])


def to_device(x: np.ndarray) -> Array:
    """Return a copy of a NumPy array on the current GPU.

    Large arrays go piece by piece through two page-locked buffers: while one is copied to the device, the next
    piece is written into the other. The copy from ordinary memory would wait for each piece twice. The copies
    have a stream of their own, so that kernels of other tasks run meanwhile.
    """
    cupy = device_module()
    flat = np.ascontiguousarray(x).reshape(-1)
    if flat.nbytes <= PINNED_BYTES:
        return cupy.asarray(flat).reshape(x.shape)
    out = cupy.empty(flat.shape, flat.dtype)
    stream = cupy.cuda.Stream(non_blocking=True)
    # what used the memory of ``out`` before is done first
    stream.wait_event(cupy.cuda.get_current_stream().record())
    size = PINNED_BYTES // flat.itemsize
    held = [np.frombuffer(memory, flat.dtype, size) for memory in _pinned(cupy)]
    done: list[Any] = [None, None]
    for number, start in enumerate(range(0, len(flat), size)):
        piece, turn = flat[start : start + size], number % 2
        if done[turn] is not None:
            done[turn].synchronize()
        _fill(held[turn], piece)
        out[start : start + size].set(held[turn][: len(piece)], stream=stream)
        done[turn] = stream.record()
    stream.synchronize()
    return out.reshape(x.shape)


@cache
def _fillers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(FILLERS, thread_name_prefix="to-device")


def _fill(buffer: np.ndarray, piece: np.ndarray) -> None:
    """Write ``piece`` to the beginning of ``buffer``, in several threads."""
    step = -(-len(piece) // FILLERS)

    def part(start: int) -> None:
        buffer[start : min(start + step, len(piece))] = piece[start : start + step]

    list(_fillers().map(part, range(0, len(piece), step)))


def _pinned(cupy: Any) -> list[Any]:
    """Return two page-locked buffers; CuPy's pool of them makes that cheap but for the first time."""
    return [cupy.cuda.alloc_pinned_memory(PINNED_BYTES) for _ in range(2)]


def to_float32(x: Array, out: Array | None = None) -> Array:
    """Return a copy of ``x`` in float32, in ``out`` if given.

    NumPy widens float16 one by one. Here the bits are moved to their places, many at a time: it takes a quarter of
    the time. The exponent is then too small by 112, subnormal or not.
    """
    out = namespace_of(x).empty(x.shape, np.float32) if out is None else out
    if x.dtype != np.float16 or namespace_of(x) is not np or _has_infinite(x):
        namespace_of(x).copyto(out, x)
        return out
    bits = out.view(np.int32)
    np.copyto(bits, x.view(np.int16))
    bits <<= 13
    bits &= _SIGN_AND_REST
    out *= np.float32(2.0**112)
    return out


def _has_infinite(x: Array) -> bool:
    """Return whether float16 values have infinity or NaN among them."""
    least = 0x7C00  # the bits of infinity
    return x.view(np.int16).max(initial=0) >= least or x.view(np.uint16).max(initial=0) >= least + (1 << 15)


_SIGN_AND_REST = np.int32(-0x70002000)
"""0x8fffe000: the sign, the exponent and the fraction, without the three copies of the sign that widening leaves."""


def row_dots(a: Array, b: Array) -> Array:
    """Return the inner products of the rows of ``a`` and ``b`` (m, d), (m,) of their dtype, float32 or float64.

    Each depends on its two rows alone, not on where they stand: equal rows have equal products. CuPy's sums may
    add up in an order that depends on how a row is aligned.
    """
    xp = namespace_of(a)
    if xp is np:  # BLAS adds up in one order, wherever the rows start; in float64 twice as fast as einsum
        return np.vecdot(a, b) if a.dtype == b.dtype == np.float64 else np.einsum("ij,ij->i", a, b)
    out = xp.empty(a.shape[0], a.dtype)
    if not len(out):
        return out
    a, b = (x if x.strides[1] == x.itemsize else xp.ascontiguousarray(x) for x in (a, b))
    leads = [np.int64(x.strides[0] // x.itemsize) for x in (a, b)]
    name = "row_dots_double" if a.dtype == np.float64 else "row_dots_float"
    launch(xp, name, (len(out),), 64, a, leads[0], b, leads[1], np.int64(a.shape[1]), out)
    return out


def row_squares(x: Array) -> Array:
    """Return the squared lengths of the rows of ``x`` (m, d), as exactly as :func:`row_dots` on a device."""
    return (x * x).sum(axis=1) if namespace_of(x) is np else row_dots(x, x)


@cache
def _kernel(xp: Any, name: str) -> Any:
    from daskcurate.kernels.device_code import SOURCES

    return xp.RawKernel(SOURCES[name], name)


def launch(xp: Any, name: str, grid: tuple[int, ...], threads: int, *args: Any) -> None:
    """Run one of the package's own CUDA kernels (:mod:`daskcurate.kernels.device_code`)."""
    _kernel(xp, name)(grid, (threads,), args)


def multiply_halves(a: Array, b: Array, out: Array) -> Array:
    """Write a @ b.T into ``out`` (m, k) float32, for float16 ``a`` (m, d) and ``b`` (k, d) on a GPU; return it.

    The tensor cores add up in float32; CuPy's own matmul of float16 would round the result to float16. All three
    are C-contiguous. cuBLAS counts by columns: it is asked for the transposed product.
    """
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    (m, d), k = a.shape, b.shape[0]
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    handle = device.get_cublas_handle()
    mode = cublas.getPointerMode(handle)
    cublas.setPointerMode(handle, cublas.CUBLAS_POINTER_MODE_HOST)
    try:
        cublas.gemmEx(
            handle, cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, k, m, d,
            one.ctypes.data, b.data.ptr, _REAL_16F, d, a.data.ptr, _REAL_16F, d,
            zero.ctypes.data, out.data.ptr, _REAL_32F, k, _COMPUTE_32F, _GEMM_DEFAULT,
        )  # fmt: skip
    finally:
        cublas.setPointerMode(handle, mode)
    return out


_REAL_32F, _REAL_16F = 0, 2  # cudaDataType
_COMPUTE_32F = 68  # cublasComputeType_t
_GEMM_DEFAULT = -1  # cublasGemmAlgo_t
