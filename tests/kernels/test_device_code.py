"""The CUDA kernels do what NumPy does; on machines without a GPU compiled as C++, with threads for their threads."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from daskcurate.arrays import row_dots, row_squares
from daskcurate.kernels import products
from daskcurate.kernels.device_code import SOURCES
from daskcurate.kernels.lloyd import segment_sums

HOST = r"""
#include <barrier>
#include <cstring>
#include <thread>
#include <vector>
struct Index { int x, y, z; };
static thread_local Index threadIdx;
static Index blockIdx, blockDim;
static std::barrier<>* gate;
static void __syncthreads() { gate->arrive_and_wait(); }
static float __int_as_float(unsigned bits) { float value; std::memcpy(&value, &bits, 4); return value; }
#define __global__
#define __shared__ static
template <typename Body> static void run(int columns, int rows, int threads, Body body) {
    blockDim = {threads, 1, 1};
    for (int y = 0; y < rows; y++) for (int x = 0; x < columns; x++) {
        blockIdx = {x, y, 0};
        std::barrier<> all(threads);
        gate = &all;
        std::vector<std::thread> running;
        for (int i = 0; i < threads; i++) running.emplace_back([&, i] { threadIdx = {i, 0, 0}; body(); });
        for (auto& thread : running) thread.join();
    }
}
"""
CALLS = r"""
extern "C" void call_top_two(int grid, int threads, const float* a, const float* b, const float* c, int scaled,
                             long long columns, long long* best, float* top, float* second) {
    run(grid, 1, threads, [&] { top_two(a, b, c, scaled, columns, best, top, second); });
}
extern "C" void call_segment_sums(int grid, int rows, int threads, const float* x, const long long* order,
                                  const long long* starts, long long width, double* sums) {
    run(grid, rows, threads, [&] { segment_sums(x, order, starts, width, sums); });
}
extern "C" void call_row_dots_float(int grid, const float* a, long long lead_a, const float* b, long long lead_b,
                                    long long width, float* dots) {
    run(grid, 1, 64, [&] { row_dots_float(a, lead_a, b, lead_b, width, dots); });
}
extern "C" void call_row_dots_double(int grid, const double* a, long long lead_a, const double* b, long long lead_b,
                                     long long width, double* dots) {
    run(grid, 1, 64, [&] { row_dots_double(a, lead_a, b, lead_b, width, dots); });
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is missing")
    folder = tmp_path_factory.mktemp("cuda")
    source = folder / "kernels.cpp"
    source.write_text(HOST + "\n".join(SOURCES.values()) + CALLS)
    command = [
        compiler,
        "-std=c++20",
        "-O1",
        "-shared",
        "-fPIC",
        "-pthread",
        "-o",
        folder / "kernels.so",
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "std=c++20" in done.stderr:
        pytest.skip("g++ is too old")
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "kernels.so"))


def at(x):
    return x.ctypes.data_as(ctypes.c_void_p)


@pytest.mark.parametrize("columns", [1, 2, 31, 32, 33, 256, 257, 700])
@pytest.mark.parametrize("scaled", [0, 1])
def test_top_two(library, columns, scaled):
    rng = np.random.default_rng(columns)
    scores = np.round(rng.standard_normal((5, columns)) * 3).astype(np.float32)  # with ties
    scores[1] = 0
    factors, halves = (np.round(rng.random(n) * 4).astype(np.float32) + 1 for n in (5, columns))
    best, top, second = np.empty(5, np.int64), np.empty(5, np.float32), np.empty(5, np.float32)
    threads = min(256, max(32, 1 << (columns - 1).bit_length()))
    library.call_top_two(
        5, threads, at(scores), at(factors), at(halves), scaled, ctypes.c_longlong(columns), at(best), at(top),
        at(second),
    )  # fmt: skip
    given = (factors, halves) if scaled else ()
    for found, expected in zip((best, top, second), products.top_two(scores.copy(), *given), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("m", "k", "d"), [(60, 7, 5), (200, 3, 130), (40, 90, 257), (1, 1, 1)])
def test_segment_sums(library, m, k, d):
    rng = np.random.default_rng(m)
    x, labels = rng.standard_normal((m, d)).astype(np.float32), rng.integers(0, k, m)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(k + 1))
    sums = np.full((k, d), np.nan)
    library.call_segment_sums(
        k, -(-d // 128), 128, at(x), at(order), at(starts), ctypes.c_longlong(d), at(sums)
    )
    np.testing.assert_array_equal(sums, segment_sums(x, labels, k)[0])  # the same order: the same bits


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 3, 63, 64, 65, 200])
def test_row_dots(library, dtype, width):
    rng = np.random.default_rng(width)
    a, b = (rng.standard_normal((7, width + extra)).astype(dtype) for extra in (1, 4))
    a[5, :width], b[5, :width] = a[2, :width], b[2, :width]
    found = np.empty(7, dtype)
    call = library.call_row_dots_float if dtype == np.float32 else library.call_row_dots_double
    leads = [ctypes.c_longlong(x.shape[1]) for x in (a, b)]
    call(7, at(a), leads[0], at(b), leads[1], ctypes.c_longlong(width), at(found))
    expected = (a[:, :width].astype(np.float64) * b[:, :width]).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * width * np.finfo(dtype).eps)
    assert found[5] == found[2]


def test_dots_and_squares_on_a_device(xp):
    x = np.random.default_rng(0).standard_normal((300, 37)).astype(np.float32)
    x[[5, 150, 299]] = x[7]
    for dtype in (np.float32, np.float64):
        wide = xp.asarray(x.astype(dtype))
        found = np.asarray(row_dots(wide[:, :-1], wide[:, 1:]).tolist())
        np.testing.assert_allclose(found, (x[:, :-1].astype(np.float64) * x[:, 1:]).sum(axis=1), atol=1e-4)
        squares = row_squares(wide).tolist()
        assert squares[5] == squares[150] == squares[299] == squares[7]
        np.testing.assert_allclose(squares, (x.astype(np.float64) ** 2).sum(axis=1), rtol=1e-5)
        assert row_dots(wide[:0], wide[:0]).shape == (0,)


@pytest.mark.parametrize(("m", "k", "d"), [(3000, 50, 40), (500, 700, 129), (2, 5, 1)])
def test_sums_on_a_device(xp, m, k, d):
    rng = np.random.default_rng(k)
    x, labels = rng.standard_normal((m, d)).astype(np.float32), rng.integers(-1, k, m).astype(np.int32)
    sums, counts = segment_sums(xp.asarray(x), xp.asarray(labels), k)
    expected, rows = segment_sums(x, labels, k)
    np.testing.assert_allclose(np.asarray(sums.tolist()), expected, rtol=1e-12, atol=1e-12)
    assert counts.tolist() == rows.tolist()


def test_products_of_halves_on_a_device(xp):
    if xp is np:
        pytest.skip("there is no float16 product on the host")
    rng = np.random.default_rng(1)
    for m, k, d in ((5, 7, 3), (129, 65, 48), (1, 1, 1), (300, 2, 100)):
        a, b = (rng.standard_normal((rows, d)).astype(np.float32) for rows in (m, k))
        low = products.Halves()
        (held, back), (table, values) = low.rounded(xp.asarray(a)), low.rounded(xp.asarray(b))
        found = np.asarray(low.multiply(held, table).tolist())
        expected = np.asarray(back.tolist()) @ np.asarray(values.tolist()).T
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert abs(np.asarray(back.tolist()) - a).max() <= abs(a).max() * 2.0**-11
