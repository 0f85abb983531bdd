"""A stand-in for CuPy: arrays of NumPy that refuse what CuPy's refuse, for tests on machines without a GPU.

It has the functions that CuPy 14 has and no others, and never turns an array of its own into one of NumPy, or the
other way round, unless asked: a kernel that mixes the host's arrays with the device's fails here as it would on
a GPU. Kernels written in CUDA are replaced by their meaning in NumPy; the types of their arguments are checked
against the source. Nothing is said about speed, rounding or memory.
"""

import contextlib
import ctypes
import re
import sys
import types

import numpy as np

NAMES = set(
    """
    abs absolute add all allclose amax amin angle any append apply_along_axis apply_over_axes arange arccos
    arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argpartition argsort argwhere around array
    array2string array_equal array_equiv array_repr array_split array_str asanyarray asarray
    asarray_chkfinite ascontiguousarray asfarray asfortranarray astype atleast_1d atleast_2d atleast_3d
    average bartlett bincount bitwise_and bitwise_count bitwise_not bitwise_or bitwise_xor blackman
    broadcast_arrays broadcast_to byte_bounds c_ cbrt ceil choose clip column_stack compress concatenate
    conjugate convolve copy copysign copyto corrcoef correlate cos cosh count_nonzero cov cross cumprod
    cumproduct cumsum cumulative_prod cumulative_sum deg2rad degrees delete diag diag_indices
    diag_indices_from diagflat diagonal diff digitize divide divmod dot dsplit dstack ediff1d einsum empty
    empty_like equal exp exp2 expand_dims expm1 extract eye fabs fill_diagonal fix flatnonzero flip fliplr
    flipud float_power floor floor_divide fmax fmin fmod format_float_positional format_float_scientific
    frexp from_dlpack fromfunction fromiter full full_like gcd gradient greater greater_equal hamming
    hanning heaviside histogram histogram2d histogramdd hsplit hstack hypot i0 identity in1d indices inner
    interp intersect1d invert isclose iscomplex iscomplexobj isfinite isfortran isin isinf isnan isneginf
    isposinf isreal isrealobj ix_ kaiser kron lcm ldexp left_shift less less_equal lexsort linspace log
    log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logspace
    make_aligned_dtype mask_indices matmul matrix_transpose maximum may_share_memory mean median meshgrid
    mgrid min_scalar_type minimum modf moveaxis msort multiply nan_to_num nanargmax nanargmin nancumprod
    nancumsum nanmax nanmean nanmedian nanmin nanprod nanstd nansum nanvar negative nextafter nonzero
    not_equal ogrid ones ones_like outer packbits pad partition percentile piecewise place positive power
    prod product ptp put put_along_axis putmask quantile r_ rad2deg radians ravel ravel_multi_index real
    real_if_close reciprocal remainder repeat require reshape resize right_shift rint roll rollaxis rot90
    round round_ row_stack searchsorted select setdiff1d setxor1d shape shares_memory sign signbit sin sinc
    sinh size sort sort_complex split sqrt square squeeze stack std subtract sum swapaxes take
    take_along_axis tan tanh tensordot tile trace transpose trapezoid tri tril tril_indices
    tril_indices_from trim_zeros triu triu_indices triu_indices_from true_divide trunc union1d unique
    unique_all unique_counts unique_inverse unique_values unpackbits unravel_index unwrap vander var vdot
    vsplit vstack where zeros zeros_like
    """.split()
)
"""The functions of CuPy 14.2."""
FROM_HOST = {"asarray", "array", "ascontiguousarray", "asanyarray"}
"""Those that take arrays of NumPy."""


class Memory:
    def __init__(self, held):
        self.ptr = held.ctypes.data


class ndarray:  # noqa: N801 - as CuPy calls it
    """An array on the device."""

    __module__ = "cupy"

    def __init__(self, held):
        self._held = held

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_function__(self, function, *_):
        raise TypeError(f"numpy.{function.__name__} of a device array")

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        return _wrapped(getattr(ufunc, method)(*_held(inputs), **_held(settings)))

    def __getitem__(self, index):
        return _wrapped(self._held[_held(index)])

    def __setitem__(self, index, value):
        self._held[_held(index)] = _held(value)

    def __len__(self):
        return len(self._held)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __float__(self):
        return float(self._held)

    def __int__(self):
        return int(self._held)

    def __bool__(self):
        return bool(self._held)

    def __index__(self):
        return self._held.__index__()

    def __matmul__(self, other):
        return _wrapped(self._held @ _held(other))

    __hash__ = None

    @property
    def T(self):  # noqa: N802 - as in NumPy
        return ndarray(self._held.T)

    @property
    def data(self):
        return Memory(self._held)

    @property
    def flags(self):
        return self._held.flags

    def get(self):
        return self._held.copy()

    def set(self, host, stream=None):
        assert isinstance(host, np.ndarray)
        assert host.shape == self.shape
        assert host.dtype == self.dtype
        assert self._held.flags.c_contiguous
        self._held[...] = host

    def astype(self, dtype, copy=True):
        return ndarray(self._held.astype(dtype, copy=copy))

    def argsort(self, axis=-1, kind=None):
        assert kind in (None, "stable")
        return ndarray(self._held.argsort(axis=axis, kind="stable"))


for _name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides"):
    setattr(ndarray, _name, property(lambda self, name=_name: getattr(self._held, name)))
METHODS = (
    "all any argmax argmin copy cumsum item max mean min nonzero ravel reshape sum tolist transpose view"
)
for _name in METHODS.split():

    def _method(self, *args, _name=_name, **settings):
        return _wrapped(getattr(self._held, _name)(*_held(args), **_held(settings)))

    setattr(ndarray, _name, _method)
for _name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split():
    for _full in (f"__{_name}__", f"__r{_name}__"):

        def _operator(self, other, _name=_full):
            return _wrapped(getattr(self._held, _name)(_held(other)))

        setattr(ndarray, _full, _operator)

    def _in_place(self, other, _name=f"__i{_name}__"):
        getattr(self._held, _name)(_held(other))
        return self

    setattr(ndarray, f"__i{_name}__", _in_place)
for _name in "lt le eq ne gt ge".split():

    def _compare(self, other, _name=f"__{_name}__"):
        return _wrapped(getattr(self._held, _name)(_held(other)))

    setattr(ndarray, f"__{_name}__", _compare)
for _name in "neg pos abs invert".split():
    setattr(
        ndarray, f"__{_name}__", lambda self, _name=f"__{_name}__": _wrapped(getattr(self._held, _name)())
    )


def _held(value):
    """What the stand-in computes with; arrays of NumPy are refused."""
    if isinstance(value, ndarray):
        return value._held
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, list | tuple):
        return type(value)(_held(item) for item in value)
    if isinstance(value, dict):
        return {key: _held(item) for key, item in value.items()}
    return value


def _wrapped(value):
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    return tuple(_wrapped(item) for item in value) if isinstance(value, tuple) else value


def _function(name):
    plain = getattr(np, name)

    def function(*args, **settings):
        if name in FROM_HOST and isinstance(args[0], np.ndarray):
            args = (ndarray(args[0].copy()), *args[1:])
        if name == "lexsort" and not isinstance(args[0], ndarray):
            raise TypeError("lexsort takes one array of keys")
        if name in ("sort", "argsort"):
            assert settings.get("kind") in (None, "stable")
        out = settings.get("out")
        found = plain(*_held(args), **_held(settings))
        return out if out is not None else _wrapped(found)

    return function


def _top_two(grid, block, scores, factors, halves, scaled, columns, best, top, second):
    assert grid == (len(scores._held),)
    assert block[0] in (32, 64, 128, 256)
    assert scores.shape[1] == columns
    values = scores._held.copy()
    if scaled:
        values = values * factors._held[:, None] - halves._held
    every, at = np.arange(len(values)), values.argmax(axis=1)
    best._held[:], top._held[:] = at, values[every, at]
    values[every, at] = -np.inf
    second._held[:] = values.max(axis=1)


def _segment_sums(grid, block, rows, order, starts, width, sums):
    assert grid[1] * block[0] >= width == rows.shape[1]
    for segment in range(grid[0]):
        own = order._held[starts._held[segment] : starts._held[segment + 1]]
        sums._held[segment] = rows._held[own].astype(np.float64).sum(axis=0)


def _row_dots(grid, block, a, lead_a, b, lead_b, width, dots):
    assert block == (64,)
    for x, lead in ((a, lead_a), (b, lead_b)):
        assert x.dtype == dots.dtype
        assert x.shape == (grid[0], width)
        assert x.strides == (lead * x.itemsize, x.itemsize) or 0 in x.shape
    dots._held[:] = np.einsum("ij,ij->i", a._held, b._held)


MEANING = {
    "top_two": _top_two, "segment_sums": _segment_sums, "row_dots_float": _row_dots, "row_dots_double": _row_dots,
}  # fmt: skip
TYPES = {
    "float*": np.float32, "double*": np.float64, "long long*": np.int64, "long long": np.int64, "int": np.int32,
}  # fmt: skip


class RawKernel:
    """A kernel in CUDA, of which only the types are looked at."""

    def __init__(self, source, name):
        declared = re.search(rf"__global__ void {name}\((.*?)\)", source, re.S).group(1)
        self.types = [re.sub(r"^const | ?\w+$", "", item.strip()) for item in declared.split(",")]
        self.name = name

    def __call__(self, grid, block, args):
        for wanted, given in zip(self.types, args, strict=True):
            assert given.dtype == TYPES[wanted], (self.name, wanted, given.dtype)
            if wanted.endswith("*"):
                assert isinstance(given, ndarray)
                assert given._held.flags.c_contiguous or self.name.startswith("row_dots")
            else:
                assert isinstance(given, np.generic)
        MEANING[self.name](grid, block, *args)


class Stream:
    def __init__(self, non_blocking=False):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def synchronize(self):
        pass

    def record(self):
        return self

    def wait_event(self, event):
        assert isinstance(event, Stream)


def _matrix(pointer, kind, rows, columns, lead):
    """A matrix (rows, columns) as cuBLAS sees it: column after column, ``lead`` apart."""
    dtype = {2: np.float16, 0: np.float32}[kind]
    held = (ctypes.c_char * (columns * lead * np.dtype(dtype).itemsize)).from_address(pointer)
    return np.frombuffer(held, dtype).reshape(columns, lead)[:, :rows].T


def _gemm_ex(_, trans_a, trans_b, m, n, k, alpha, a, kind_a, lead_a, b, kind_b, lead_b, beta, c, kind_c, lead_c,
             compute, algorithm):  # fmt: skip
    assert (compute, algorithm) == (68, -1)
    assert ctypes.c_float.from_address(alpha).value == 1
    assert ctypes.c_float.from_address(beta).value == 0
    left = _matrix(a, kind_a, *((k, m) if trans_a else (m, k)), lead_a).astype(np.float32)
    right = _matrix(b, kind_b, *((n, k) if trans_b else (k, n)), lead_b).astype(np.float32)
    _matrix(c, kind_c, m, n, lead_c)[...] = (left.T if trans_a else left) @ (right.T if trans_b else right)


class Generator:
    """CuPy's random numbers, by NumPy's."""

    def __init__(self, seed):
        self._draw = np.random.default_rng(seed)

    def standard_normal(self, size=None, dtype=np.float64):
        return _wrapped(self._draw.standard_normal(size, dtype))

    def integers(self, low, high=None, size=None):
        return _wrapped(self._draw.integers(low, high, size))


def _modules():
    """The stand-in's modules by name."""
    cupy = types.ModuleType("cupy")
    cupy.__getattr__ = lambda name: _function(name) if name in NAMES else _missing(name)
    cupy.ndarray, cupy.RawKernel = ndarray, RawKernel
    for name in ("bool_", "float16", "float32", "float64", "int32", "int64", "uint64"):
        setattr(cupy, name, getattr(np, name))
    cupy.linalg = types.SimpleNamespace(
        eigh=lambda x: tuple(ndarray(np.ascontiguousarray(part)) for part in np.linalg.eigh(_held(x)))
    )
    cupy.random = types.SimpleNamespace(default_rng=Generator)
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_all_blocks=lambda: None)
    cupy.__version__ = "0"
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1, memGetInfo=lambda: (1 << 30, 1 << 30), runtimeGetVersion=lambda: 0,
        driverGetVersion=lambda: 0, getDeviceProperties=lambda _: {"name": b"stand-in"},
    )  # fmt: skip
    device = types.ModuleType("cupy.cuda.device")
    device.get_cublas_handle = lambda: 1
    cupy.cuda = types.ModuleType("cupy.cuda")
    cupy.cuda.runtime, cupy.cuda.Stream, cupy.cuda.device = runtime, Stream, device
    cupy.cuda.get_current_stream = Stream
    cupy.cuda.alloc_pinned_memory = bytearray
    cublas = types.ModuleType("cupy_backends.cuda.libs.cublas")
    cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_T, cublas.CUBLAS_POINTER_MODE_HOST = 0, 1, 0
    cublas.getPointerMode, cublas.setPointerMode = lambda _: 0, lambda *_: None
    cublas.gemmEx = _gemm_ex
    libs = types.ModuleType("cupy_backends.cuda.libs")
    libs.cublas = cublas
    return {
        "cupy": cupy, "cupy.cuda": cupy.cuda, "cupy.cuda.device": device,
        "cupy_backends": types.ModuleType("cupy_backends"),
        "cupy_backends.cuda": types.ModuleType("cupy_backends.cuda"),
        "cupy_backends.cuda.libs": libs, "cupy_backends.cuda.libs.cublas": cublas,
    }  # fmt: skip


def _missing(name):
    raise AttributeError(f"module 'cupy' has no attribute {name!r}")


@contextlib.contextmanager
def installed():
    """Put the stand-in in CuPy's place; yield it."""
    found = _modules()
    before = {name: sys.modules.get(name) for name in found}
    sys.modules.update(found)
    try:
        yield found["cupy"]
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
