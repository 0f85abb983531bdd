"""Where tasks compute, and that whole runs work where every array of a kernel is on a device: the stand-in's."""

import contextlib
import gc
import pickle
import subprocess
import sys

import dask
import numpy as np
import pytest
import stand_in
from oracles import blobs, check_result

import daskcurate as dc
from daskcurate import arrays, device
from daskcurate.embeddings import PoolRows
from daskcurate.kernels.assign import Scorer, unit_rows
from daskcurate.kernels.lloyd import Partial
from daskcurate.rows import BLOCK_BYTES, DEVICE_BLOCK_BYTES, Block, RowSource
from daskcurate.worker_limits import cluster_limits


@pytest.fixture(params=["stand-in", pytest.param("cupy", marks=pytest.mark.gpu)])
def gpu(request, monkeypatch):
    """A worker with a GPU: the stand-in, or a real one."""
    monkeypatch.setattr(device, "SMALL_BYTES", 0)
    if request.param == "cupy" and not arrays.gpu_count():
        pytest.skip("cupy or a GPU is missing")
    device._uses_gpu.cache_clear()
    where = stand_in.installed() if request.param == "stand-in" else contextlib.nullcontext()
    with where, dask.config.set({device.SETTING: "gpu"}):
        yield arrays.device_module()
    device._uses_gpu.cache_clear()


def test_nothing_of_a_gpu_is_imported():
    code = (
        "import sys, daskcurate, daskcurate.cli, daskcurate.device, cluster_setup.local_cuda; "
        "found = {name.partition('.')[0] for name in sys.modules}; "
        "sys.exit(' '.join(found & {'cupy', 'cupyx', 'dask_cuda', 'rmm', 'cuda', 'pynvml', 'torch', 'kvikio'}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize(
    ("algorithm", "init"),
    [("lloyd", "k-means++"), ("lloyd", "k-means||"), ("fast", "k-means++"), ("two-level", "k-means++")],
)
def test_kmeans_on_a_device(gpu, client, pool, tmp_path, monkeypatch, metric, algorithm, init):
    monkeypatch.setattr("daskcurate.fitting.LOCAL_BYTES", 0)
    calls = _counted(monkeypatch)
    x = blobs(3, n=900, centres=12)
    emb = pool(x)
    found = dc.compute(
        dc.kmeans(emb, 20, metric=metric, algorithm=algorithm, init=init, n_iters=6),
        store=tmp_path / "run.zarr",
    )
    assert calls["top_two"] > 0
    if algorithm == "two-level":
        assert found.labels.compute().min() >= 0
        assert len(np.unique(np.asarray(found.labels))) <= 20
    else:
        check_result(np.asarray(x), found, metric)


def _counted(monkeypatch):
    """Count our kernels that run."""
    calls = dict.fromkeys(stand_in.MEANING, 0)
    plain = arrays._kernel

    def counted(xp, name):
        calls[name] += 1
        return plain(xp, name)

    monkeypatch.setattr(arrays, "_kernel", counted)
    return calls


def test_what_is_held_or_remembered_changes_nothing(gpu, client, pool, tmp_path, monkeypatch):
    monkeypatch.setattr("daskcurate.fitting.LOCAL_BYTES", 0)
    emb = pool(blobs(4, n=1500, d=7, centres=20))
    node = dc.kmeans(emb, 30, init="random", n_iters=8)
    plain = dc.compute(node, store=tmp_path / "plain.zarr")
    monkeypatch.setattr(device, "_resident", device.Resident(limit=0))  # every block is copied in every pass
    copied = dc.compute(node, store=tmp_path / "copied.zarr")
    monkeypatch.setenv("DASKCURATE_PRECISION", "float32")  # bounds are used, and remembered
    remembered = dc.compute(node, store=tmp_path / "float32.zarr")
    for other in (copied, remembered):
        np.testing.assert_array_equal(plain.centroids, other.centroids)
        np.testing.assert_array_equal(plain.labels, other.labels)


def test_labels_and_duplicates_are_those_of_the_host(gpu, client, pool, tmp_path):
    x = unit_rows(blobs(5, n=700, d=16, centres=9))
    x[1::7] = x[::7][: len(x[1::7])]
    emb, given = pool(x, normalize=True), unit_rows(blobs(6, n=9, d=16))

    def run(where, **settings):
        with dask.config.set({device.SETTING: where}):
            flat = dc.kmeans(emb, 9, metric="cosine", init=given, n_iters=1)
            nodes = [
                dc.semantic_dedup(emb, flat, eps=0.05, rule=rule, scope=scope)
                for scope in ("cluster", "global")
                for rule in ("earlier", "greedy", "connected")
            ]
            return dc.compute(flat, *nodes, store=tmp_path / f"{where}.zarr")

    host, there = run("cpu"), run("gpu")
    np.testing.assert_array_equal(host[0].labels, there[0].labels)
    for one, other in zip(host[1:], there[1:], strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_allclose(one.max_similarity, other.max_similarity, atol=1e-6)
        assert 0 < len(one) < len(x)


def test_clusters_of_several_blocks(gpu, client, pool, tmp_path, monkeypatch):
    for name in ("PART_BYTES", "DEVICE_PART_BYTES"):
        monkeypatch.setattr(f"daskcurate.planning.{name}", 1 << 16)
    monkeypatch.setattr("daskcurate.kernels.similarity.DEVICE_TILE", 1024)
    x = unit_rows(blobs(7, n=5000, d=16, centres=700, spread=0.02))
    emb = pool(x, normalize=True)
    flat = dc.Clustering.from_arrays(emb, x[:1], np.zeros(len(x), np.int32), metric="cosine")
    masks = {}
    for where in ("cpu", "gpu"):
        with dask.config.set({device.SETTING: where}):
            nodes = [
                dc.semantic_dedup(emb, flat, eps=0.01, rule=rule)
                for rule in ("earlier", "greedy", "connected")
            ]
            masks[where] = [
                np.asarray(node.mask) for node in dc.compute(*nodes, store=tmp_path / f"{where}.zarr")
            ]
    np.testing.assert_array_equal(masks["cpu"], masks["gpu"])


def test_a_hierarchy_with_resampling_and_splits(gpu, client, pool, tmp_path):
    x = blobs(8, n=800, d=6, centres=30)
    emb = pool(x)
    tree = dc.hierarchical_kmeans(emb, [60, 12], sample_sizes=[8, 3], n_resamples=2, n_iters=5)
    split = dc.hierarchical_kmeans(emb, [10, 12], n_splits=[6, 1], n_iters=5)
    for node in dc.compute(tree, split, store=tmp_path / "run.zarr"):
        assert int(node.flat_sizes(2).sum()) == len(x)


def test_workers_of_dask_cuda_use_their_gpu_and_no_others(gpu, monkeypatch):
    with dask.config.set({device.SETTING: "auto"}):
        monkeypatch.delitem(sys.modules, "dask_cuda", raising=False)
        assert not device.uses_gpu()
        monkeypatch.setitem(sys.modules, "dask_cuda", object())
        assert device.uses_gpu()
    with dask.config.set({device.SETTING: "cpu"}):
        assert not device.uses_gpu()
    with (
        dask.config.set({device.SETTING: "cuda"}),
        pytest.raises(ValueError, match="'cuda' is not allowed: give one of"),
    ):
        device.uses_gpu()


def test_a_gpu_that_is_asked_for_and_not_there(monkeypatch):
    monkeypatch.setattr(device, "gpu_count", lambda: 0)
    device._uses_gpu.cache_clear()
    with (
        dask.config.set({device.SETTING: "gpu"}),
        pytest.raises(RuntimeError, match="has no GPU, or CuPy is not"),
    ):
        device.uses_gpu()
    device._uses_gpu.cache_clear()


def test_what_is_given_and_returned_is_on_the_host(gpu):
    @device.on_device
    def outer(block, parts, scorer, number):
        assert type(block.rows) is gpu.ndarray
        assert type(block.numbers) is gpu.ndarray
        assert type(parts[1]) is gpu.ndarray
        assert type(scorer.table) is gpu.ndarray
        inner = device.on_device(lambda rows: (rows, number))(block.rows)
        assert type(inner[0]) is gpu.ndarray
        return Block(block.numbers, inner[0] + 1), [parts[0]], number

    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    block = Block(np.arange(4), rows)
    found, parts, number = outer(block, [rows, rows[0]], Scorer(rows, "l2"), 7)
    assert number == 7
    np.testing.assert_array_equal(found.rows, rows + 1)
    assert type(found.rows) is type(parts[0]) is np.ndarray


def test_small_arrays_stay_on_the_host(gpu, monkeypatch):
    monkeypatch.setattr(device, "SMALL_BYTES", 1000)
    seen = device.on_device(lambda rows: type(rows) is np.ndarray)
    assert seen(np.zeros(100, np.float32))
    assert not seen(np.zeros(1000, np.float32))


def test_an_error_leaves_the_wrapper_as_it_was(gpu):
    failing = device.on_device(lambda rows: rows.no_such_attribute)
    for _ in range(device.AT_ONCE + 1):
        with pytest.raises(AttributeError):
            failing(np.zeros(3))
    assert type(device.on_device(lambda rows: rows)(np.zeros(3))) is np.ndarray


@pytest.fixture
def copies(monkeypatch):
    """The lengths of what is copied to the device."""
    found = []
    plain = device.to_device
    monkeypatch.setattr(device, "to_device", lambda x: found.append(len(x)) or plain(x))
    return found


def test_blocks_stay_as_long_as_there_is_room_and_the_host_holds_them(gpu, copies):
    held = device.Resident(limit=3000)
    one, two, three = (np.full(200 + i, i, np.float64) for i in range(3))
    for _ in range(3):
        assert float(held.get(one)[0]) == 0
    assert copies == [200]
    held.get(two)
    held.get(one)
    assert copies == [200, 201]  # there was no room for both, and the first is asked for as often
    for _ in range(3):
        held.get(two)
    assert copies == [200, 201, 201, 201]  # asked for a second time before the first was: it takes its place
    assert held.nbytes == two.nbytes
    del two
    gc.collect()
    assert held.nbytes == 0
    held.get(three)
    assert held.nbytes == three.nbytes
    large = np.zeros(1000)
    held.get(large)
    held.get(large)
    assert copies[-2:] == [1000, 1000]
    assert held.nbytes == three.nbytes


def test_of_blocks_with_too_little_room_as_many_stay_as_fit(gpu, copies):
    held = device.Resident(limit=4 * 800)
    pool = [np.full(100, i, np.float64) for i in range(10)]
    for passes in range(5):
        copies.clear()
        for block in pool:
            assert float(held.get(block)[0]) == block[0]
        assert len(copies) == (6 if passes else 10)
        assert held.nbytes == 4 * 800
    others = [
        np.full(100, i, np.float64) for i in range(3)
    ]  # the loop of another stage, while the pool is held
    for passes in range(5):
        copies.clear()
        for block in others:
            held.get(block)
        assert passes < 2 or not copies
    assert held.nbytes == 4 * 800


@pytest.mark.parametrize("seed", range(3))
def test_what_is_held_is_what_is_given_and_never_too_much(gpu, copies, seed):
    rng = np.random.default_rng(seed)
    held, pool = device.Resident(limit=2000), {}
    for turn in range(600):
        name = int(rng.integers(12))
        if rng.random() < 0.1:
            pool.pop(name, None)
        if name not in pool:
            pool[name] = np.full(int(rng.integers(0, 120)), turn, np.float64)
        np.testing.assert_array_equal(held.get(pool[name]).get(), pool[name])
        assert held.nbytes == sum(item.copy.nbytes for item in held._known.values() if item.copy is not None)
        assert held.nbytes <= 2000
        assert len(held._known) <= len(pool)


def test_sums_stay_on_the_device_from_task_to_task(gpu, monkeypatch, copies):
    @device.left_on_device
    def made(x):
        return Partial(x + 1, np.arange(3), 2.5)

    @device.on_device
    def used(partials):
        assert type(partials[0].sums) is gpu.ndarray
        return partials[0].sums + partials[1].sums

    x = np.arange(6, dtype=np.float64).reshape(3, 2)
    before = device.Left.held
    one = made(x)
    assert type(one.sums) is device.Left
    assert device.Left.held - before == one.sums.nbytes == one.sums.__sizeof__() == x.nbytes
    copies.clear()
    np.testing.assert_array_equal(used([one, one]), 2 * (x + 1))
    assert copies == [3, 3]  # the counts alone
    elsewhere = pickle.loads(pickle.dumps(one))
    assert type(elsewhere.sums) is np.ndarray
    np.testing.assert_array_equal(elsewhere.sums, x + 1)
    np.testing.assert_array_equal(used([one, elsewhere]), 2 * (x + 1))
    monkeypatch.setattr(device, "LEFT_SHARE", 0)
    assert type(made(x).sums) is np.ndarray
    del one
    gc.collect()
    assert device.Left.held == before


@pytest.mark.parametrize("algorithm", ["lloyd", "fast"])
def test_sums_that_stay_change_no_bit(gpu, client, pool, tmp_path, monkeypatch, algorithm):
    monkeypatch.setattr("daskcurate.fitting.LOCAL_BYTES", 0)
    emb = pool(blobs(9, n=1200, d=9, centres=15), chunk_rows=100)
    node = dc.kmeans(emb, 25, metric="cosine", algorithm=algorithm, init="random", n_iters=6)
    left = []
    plain = device.Left.__init__
    monkeypatch.setattr(device.Left, "__init__", lambda self, array: left.append(1) or plain(self, array))
    stayed = dc.compute(node, store=tmp_path / "stayed.zarr")
    assert left
    left.clear()
    monkeypatch.setattr(device, "LEFT_SHARE", 0)
    went = dc.compute(node, store=tmp_path / "went.zarr")
    assert not left
    np.testing.assert_array_equal(stayed.centroids, went.centroids)
    np.testing.assert_array_equal(stayed.labels, went.labels)


def test_a_pool_larger_than_what_the_device_and_the_workers_hold(gpu, client, pool, tmp_path, monkeypatch):
    monkeypatch.setattr("daskcurate.fitting.LOCAL_BYTES", 0)
    x = blobs(10, n=1600, d=8, centres=20)
    emb = pool(x, chunk_rows=100)
    node = dc.kmeans(emb, 12, init="random", n_iters=5)
    plain = dc.compute(node, store=tmp_path / "plain.zarr")
    monkeypatch.setattr("daskcurate.planning.Limits.holds", lambda *_: False)
    monkeypatch.setattr(device, "_resident", device.Resident(limit=x.nbytes // 4))
    read = []
    plain_read = PoolRows._read_chunk
    monkeypatch.setattr(PoolRows, "_read_chunk", lambda *args: read.append(args[1]) or plain_read(*args))
    streamed = dc.compute(node, store=tmp_path / "streamed.zarr")
    assert len(read) > 5 * len(set(read))  # in every pass again
    np.testing.assert_array_equal(plain.centroids, streamed.centroids)
    np.testing.assert_array_equal(plain.labels, streamed.labels)


def test_large_arrays_go_piece_by_piece(gpu, monkeypatch):
    monkeypatch.setattr("daskcurate.arrays.PINNED_BYTES", 128)
    for dtype in (np.float32, np.float16, np.int64, bool):
        x = np.random.default_rng(0).integers(0, 2, (37, 11)).astype(dtype)
        np.testing.assert_array_equal(device.to_device(x).get(), x)
    np.testing.assert_array_equal(device.to_device(x.T).get(), x.T)
    assert device.to_device(np.empty((0, 3), np.float32)).shape == (0, 3)


def test_blocks_are_larger_on_gpus(gpu, client, pool, monkeypatch):
    limits = cluster_limits(client)
    assert limits.on_gpu
    source = RowSource(url="", n_rows=10**7, dim=768, itemsize=4, chunk_rows=10_000)
    large, small = source.block_ranges(True), source.block_ranges(False)
    assert (large[0][0], large[-1][1]) == (small[0][0], small[-1][1]) == (0, 10**7)
    assert large[0][1] * 768 * 4 <= DEVICE_BLOCK_BYTES < (large[0][1] + 10_000) * 768 * 4
    assert small[0][1] * 768 * 4 <= BLOCK_BYTES
    few = RowSource(url="", n_rows=1000, dim=4, itemsize=4, chunk_rows=100)
    assert few.block_ranges(True) == few.block_ranges(False)


def test_workers_are_asked_for_gpus_only_where_their_machines_show_some(client, monkeypatch):
    assert not cluster_limits(client).on_gpu
    asked = []
    monkeypatch.setattr(client, "run", lambda function, **_: asked.append(function) or {})
    assert not cluster_limits(client).on_gpu
    assert device.uses_gpu not in asked
    info = client.scheduler_info(n_workers=-1)
    for worker in info["workers"].values():
        worker["metrics"]["gpu"] = {}
    monkeypatch.setattr(client, "scheduler_info", lambda **_: info)
    for answer in (True, False):
        monkeypatch.setattr(
            client,
            "run",
            lambda function, answer=answer, **_: {"a": answer} if function is device.uses_gpu else {},
        )
        assert cluster_limits(client).on_gpu is answer
