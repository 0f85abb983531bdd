import os
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from daskcurate.embeddings import open_embeddings
from daskcurate.io import chunkwise, pool
from daskcurate.io.ingest import ingest
from daskcurate.io.layout import FLOOR_BYTES, MIN_CHUNKS, TARGET_BYTES, chunk_bounds, chunk_rows_for
from daskcurate.io.sources import RowReader


def unit_rows(n, d=7, dtype=np.float32, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)


def list_array(x, *, fixed=False, large=False):
    values = pa.array(x.ravel())
    if fixed:
        return pa.FixedSizeListArray.from_arrays(values, x.shape[1])
    offsets = np.arange(0, x.size + 1, x.shape[1])
    if large:
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


@pytest.fixture
def x():
    return unit_rows(103)


@pytest.fixture
def parts(x, tmp_path):
    """Eleven .npy files of uneven size, in a folder; 10 sorts before 2 as text."""
    folder = tmp_path / "parts"
    folder.mkdir()
    ends = [0, 5, 5, 17, 20, 31, 40, 41, 60, 80, 99, 103]
    for i in range(11):
        np.save(folder / f"img_emb_{i}.npy", x[ends[i] : ends[i + 1]])
    return folder


def rows_and_ids(emb):
    return dask.compute(emb.array, emb.ids, scheduler="synchronous")


@pytest.mark.parametrize("chunk_rows", [1, 10, 102, 103, 1000, None])
def test_array(x, tmp_path, chunk_rows):
    emb = ingest(x, tmp_path / "pool.zarr", chunk_rows=chunk_rows)
    assert emb == open_embeddings(tmp_path / "pool.zarr")
    assert (len(emb), emb.dim, emb.dtype, emb.normalized, emb.has_ids) == (103, 7, np.float32, True, False)
    assert emb.chunk_rows == min(chunk_rows or 103, 103)
    assert emb.n_chunks == len(emb.array.chunks[0]) == len(emb.ids.chunks[0])
    rows, ids = rows_and_ids(emb)
    np.testing.assert_array_equal(rows, x)
    np.testing.assert_array_equal(ids, np.arange(103))


def test_every_source_gives_the_same_pool(x, parts, tmp_path):
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(x))
    x.tofile(tmp_path / "x.dat")
    x.tofile(tmp_path / "x.unknown")
    pq.write_table(pa.table({"e": list_array(x)}), tmp_path / "x.parquet", row_group_size=13)
    z2 = zarr.create_array(tmp_path / "v2.zarr", shape=x.shape, chunks=(11, 3), dtype="f4", zarr_format=2)
    z2[:] = x
    group = zarr.create_group(tmp_path / "group.zarr")
    group.create_array("obsm/X", shape=x.shape, chunks=(50, 7), dtype="f4")[:] = x
    group.create_array("obs", shape=(103,), dtype="i8")
    memory = zarr.create_array({}, shape=x.shape, chunks=(50, 7), dtype="f4")
    memory[:] = x
    memmap = {"shape": (103, 7), "source_dtype": "float32"}
    first = ingest(x, tmp_path / "first.zarr", chunk_rows=10)
    sources = [
        (da.from_array(x, chunks=(31, 3)), {}),
        (memory, {}),
        (z2, {}),
        (first, {}),
        (str(tmp_path / "x.npy"), {"format": "npy"}),
        (f"file://{tmp_path}/x.npy", {}),
        (tmp_path / "fortran.npy", {}),
        (parts, {}),
        (parts / "img_emb_*.npy", {}),
        ([parts / f"img_emb_{i}.npy" for i in range(11)], {}),
        (tmp_path / "x.dat", memmap),
        (tmp_path / "x.dat", memmap | {"shape": (-1, 7)}),
        (tmp_path / "x.unknown", memmap),
        (tmp_path / "x.unknown", memmap | {"format": "memmap"}),
        (tmp_path / "x.parquet", {}),
        (tmp_path / "v2.zarr", {}),
        (tmp_path / "group.zarr", {}),
        (tmp_path / "group.zarr", {"column": "obsm/X"}),
        (tmp_path / "group.zarr" / "obsm" / "X", {}),
        (tmp_path / "first.zarr", {"format": "pool"}),
    ]
    for source, options in sources:
        emb = ingest(source, tmp_path / "pool.zarr", chunk_rows=10, overwrite=True, **options)
        assert emb.fingerprint == first.fingerprint, (source, options)
    np.testing.assert_array_equal(rows_and_ids(emb)[0], x)


def test_a_list_keeps_its_order(parts, x, tmp_path):
    emb = ingest([parts / "img_emb_10.npy", parts / "img_emb_0.npy"], tmp_path / "pool.zarr")
    np.testing.assert_array_equal(rows_and_ids(emb)[0], np.r_[x[99:], x[:5]])


@pytest.mark.parametrize("kind", ["list", "large", "fixed"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_parquet(tmp_path, kind, dtype):
    x = unit_rows(90, dtype=dtype)
    column = list_array(x, fixed=kind == "fixed", large=kind == "large")
    keys = pa.array([f"k{i}é" for i in range(90)])
    table = pa.table({"key": keys, "n": np.arange(90), "emb": column, "tag": keys.dictionary_encode()})
    (tmp_path / "in").mkdir()
    for i, start in enumerate(range(0, 90, 40)):
        pq.write_table(table.slice(start, 40), tmp_path / "in" / f"part_{i}.parquet", row_group_size=7)
    for column_name in ("key", "tag", "n"):
        emb = ingest(
            tmp_path / "in",
            tmp_path / "p.zarr",
            ids=column_name,
            chunk_rows=11,
            overwrite=True,
            normalize=False,
        )
        rows, ids = rows_and_ids(emb)
        np.testing.assert_array_equal(rows, x.astype(emb.dtype))
        assert ids.tolist() == (list(range(90)) if column_name == "n" else keys.to_pylist())
    assert emb.dtype == (np.float16 if dtype == np.float16 else np.float32)


def test_parquet_column_is_chosen(tmp_path, x):
    table = pa.table({"a": list_array(x), "b": list_array(-x), "id": np.arange(103)})
    pq.write_table(table, tmp_path / "x.parquet")
    emb = ingest(tmp_path / "x.parquet", tmp_path / "p.zarr", column="b")
    np.testing.assert_array_equal(rows_and_ids(emb)[0], -x)
    with pytest.raises(ValueError, match="several columns of embeddings \\('a', 'b'\\)"):
        ingest(tmp_path / "x.parquet", tmp_path / "q.zarr")


STRINGS = [f"id-{i}-é" for i in range(103)]
NUMBERS = list(range(1000, 1103))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (STRINGS, STRINGS),
        (tuple(NUMBERS), NUMBERS),
        (np.array(STRINGS), STRINGS),
        (np.array(STRINGS, object), STRINGS),
        (np.array(STRINGS, np.dtypes.StringDType()), STRINGS),
        (np.array([s.encode() for s in STRINGS], "S24"), STRINGS),
        (np.array([s.encode() for s in STRINGS], object), STRINGS),
        (pa.array(STRINGS), STRINGS),
        (np.array(NUMBERS, np.uint16), NUMBERS),
        (np.array(NUMBERS, ">i4"), NUMBERS),
        (-np.array(NUMBERS), [-i for i in NUMBERS]),
        (da.from_array(np.array(NUMBERS), chunks=9), NUMBERS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_ids_in_memory(x, tmp_path, ids, expected):
    emb = ingest(x, tmp_path / "pool.zarr", ids=ids, chunk_rows=10)
    found = rows_and_ids(emb)[1]
    assert emb.has_ids
    assert found.dtype == (np.int64 if isinstance(expected[0], int) else np.dtypes.StringDType())
    assert found.tolist() == expected
    copy = ingest(emb, tmp_path / "copy.zarr", chunk_rows=10)
    assert copy.fingerprint == emb.fingerprint
    assert rows_and_ids(copy)[1].tolist() == expected


def test_ids_in_files(parts, tmp_path):
    np.save(tmp_path / "ids.npy", np.array(STRINGS))
    (tmp_path / "ids.txt").write_text("\r\n".join(STRINGS), newline="")
    table = pa.table({"score": np.ones(103), "key": STRINGS, "uid": NUMBERS})
    pq.write_table(table, tmp_path / "ids.parquet", row_group_size=9)
    (tmp_path / "meta").mkdir()
    pq.write_table(table.slice(0, 50), tmp_path / "meta" / "m_2.parquet")
    pq.write_table(table.slice(50), tmp_path / "meta" / "m_10.parquet")
    plain = ingest(parts, tmp_path / "plain.zarr", chunk_rows=10)
    cases = [
        (tmp_path / "ids.npy", STRINGS),
        (str(tmp_path / "ids.txt"), STRINGS),
        (tmp_path / "ids.parquet", STRINGS),
        (f"{tmp_path}/ids.parquet:uid", NUMBERS),
        (tmp_path / "meta", STRINGS),
        (f"{tmp_path}/meta/*.parquet:uid", NUMBERS),
    ]
    fingerprints = {plain.fingerprint}
    for ids, expected in cases:
        emb = ingest(parts, tmp_path / "pool.zarr", ids=ids, chunk_rows=10, overwrite=True)
        assert rows_and_ids(emb)[1].tolist() == expected
        fingerprints.add(emb.fingerprint)
    assert len(fingerprints) == 3


@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("end", ["", "\n"])
def test_text_ids_of_any_number(tmp_path, n, end, monkeypatch):
    monkeypatch.setattr("daskcurate.io.text.BLOCK_BYTES", 1000)
    (tmp_path / "ids.txt").write_text("\n".join(f"{i}x" * (i % 5 + 1) for i in range(n)) + end)
    emb = ingest(unit_rows(n, 2), tmp_path / "pool.zarr", ids=tmp_path / "ids.txt", chunk_rows=700)
    assert rows_and_ids(emb)[1].tolist() == [f"{i}x" * (i % 5 + 1) for i in range(n)]


@pytest.mark.parametrize(
    ("found", "given", "stored"),
    [
        ("float16", None, "float16"),
        ("float16", "float32", "float32"),
        ("float32", None, "float32"),
        ("float32", np.float16, "float16"),
        ("float64", None, "float32"),
        ("float64", np.dtype("float16"), "float16"),
        (">f4", None, "float32"),
    ],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_dtypes(tmp_path, found, given, stored, normalize):
    x = (3 * unit_rows(40)).astype(found)
    np.save(tmp_path / "x.npy", x)
    emb = ingest(tmp_path / "x.npy", tmp_path / "p.zarr", dtype=given, normalize=normalize, chunk_rows=9)
    rows = rows_and_ids(emb)[0]
    assert emb.dtype == rows.dtype == stored
    assert emb.normalized is normalize
    wide = x.astype(np.float64)
    expected = wide / np.linalg.norm(wide, axis=1, keepdims=True) if normalize else wide
    np.testing.assert_allclose(rows, expected, rtol=1e-3 if stored == "float16" else 3e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_source_arrays_are_left_as_they_are(tmp_path, dtype):
    x = np.memmap(tmp_path / "x.dat", dtype, "w+", shape=(40, 7))
    x[:] = 3 * unit_rows(40)
    for source in (x, np.asarray(x), da.from_array(np.asarray(x), chunks=9)):
        before = np.array(x)
        ingest(source, tmp_path / "p.zarr", normalize=True, overwrite=True, chunk_rows=9)
        np.testing.assert_array_equal(x, before)


def test_extreme_rows_are_normalised(tmp_path):
    x = np.array([[3e-42, 4e-42], [3e38, 3e38], [3e-30, 4e-30], [1e20, 0]], np.float32)
    rows = rows_and_ids(ingest(x, tmp_path / "p.zarr", normalize=True))[0]
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.5**0.5] * 2, [0.6, 0.8], [1, 0]], rtol=1e-3)


def test_normalize_none_measures_and_warns(tmp_path):
    x = unit_rows(50)
    assert ingest(x, tmp_path / "unit.zarr").normalized
    with pytest.warns(UserWarning, match="norms of the rows of the array are from 2 to 2 .*normalize=True"):
        emb = ingest(2 * x, tmp_path / "long.zarr")
    assert not emb.normalized
    np.testing.assert_array_equal(rows_and_ids(emb)[0], 2 * x)
    assert ingest(x, tmp_path / "false.zarr", normalize=False).normalized


def test_a_long_row_outside_the_sample_is_noticed(tmp_path):
    x = unit_rows(8000, 2)
    x[1500] *= 2
    with pytest.warns(UserWarning, match="from 1 to 2: not of unit length"):
        assert not ingest(x, tmp_path / "pool.zarr").normalized


def test_warning_points_at_the_caller(tmp_path):
    with pytest.warns(UserWarning, match="unit length") as caught:
        ingest(2 * unit_rows(5), tmp_path / "pool.zarr")
    assert Path(caught[0].filename).name == os.path.basename(__file__)


def test_fingerprint_follows_content(tmp_path, x):
    def fingerprint(rows, **options):
        return ingest(rows, tmp_path / "p.zarr", overwrite=True, **options).fingerprint

    base = fingerprint(x, chunk_rows=10)
    changed = x.copy()
    changed[50, 3] = np.nextafter(changed[50, 3], 1)
    assert fingerprint(x.copy(), chunk_rows=10) == base
    others = [
        fingerprint(changed, chunk_rows=10),
        fingerprint(x, chunk_rows=11),
        fingerprint(x[:-1], chunk_rows=10),
        fingerprint(x, chunk_rows=10, dtype="float16"),
        fingerprint(x, chunk_rows=10, ids=np.arange(103)),
        fingerprint(x, chunk_rows=10, ids=np.arange(103)[::-1]),
    ]
    assert len({base, *others}) == 7
    assert all(len(item) == 32 and int(item, 16) >= 0 for item in others)


class CountingRows(RowReader):
    def __init__(self, n, d):
        super().__init__("counted", (n, d), np.float32)
        self.reads = []

    def read(self, start, stop):
        self.reads.append((start, stop))
        return np.ones((stop - start, self.shape[1]), np.float32)


def test_each_task_reads_its_own_chunk_once(tmp_path, monkeypatch):
    source = CountingRows(1003, 4)
    plan = pool.PoolPlan(str(tmp_path / "p.zarr"), source.shape, "float32", 100, False)
    pool.create(plan, False)
    batches = []

    def run_tasks(tasks, finished):
        batches.append(len(tasks))
        return list(dask.compute(*tasks, scheduler="threads"))

    monkeypatch.setattr(chunkwise, "run_tasks", run_tasks)
    monkeypatch.setattr(chunkwise, "MIN_BATCH", 4)
    pool.write_rows(plan, source)
    assert sorted(source.reads) == chunk_bounds(1003, 100)
    assert batches == [4, 4, 3]


def test_tasks_run_on_the_workers(x, parts, tmp_path):
    from distributed import Client

    alone = ingest(parts, tmp_path / "alone.zarr", chunk_rows=10)
    ran = set()
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        emb = ingest(parts, tmp_path / "pool.zarr", ids=STRINGS, chunk_rows=10)
        ran = set(client.run_on_scheduler(lambda dask_scheduler: {e[0] for e in _stories(dask_scheduler)}))
        assert rows_and_ids(emb)[1].tolist() == STRINGS
        x[50, 2] = np.inf
        np.save(parts / "img_emb_7.npy", x[41:60])
        with pytest.raises(
            ValueError, match=r"img_emb_7.npy: row 9 \(row 50 of the pool\) holds an infinity"
        ):
            ingest(parts, tmp_path / "bad.zarr", chunk_rows=10)
    assert len([key for key in ran if key.startswith("ingest-")]) == 11
    assert not any(key.startswith("ids-") for key in ran)  # ids in memory are not sent
    assert alone.fingerprint != emb.fingerprint
    assert not (tmp_path / "bad.zarr").exists()
    assert not (tmp_path / "bad.zarr.partial").exists()


def _stories(scheduler):
    return [(str(transition[0]),) for transition in scheduler.transition_log]


def test_urls(parts, x, tmp_path):
    emb = ingest(parts, "memory://pools/p.zarr", ids=STRINGS, chunk_rows=10)
    assert emb.path == "memory://pools/p.zarr"
    assert emb == open_embeddings("memory://pools/p.zarr")
    rows, ids = rows_and_ids(emb)
    np.testing.assert_array_equal(rows, x)
    assert ids.tolist() == STRINGS
    again = ingest(x, "memory://pools/p.zarr", chunk_rows=10, overwrite=True)
    assert (
        again.fingerprint == ingest("memory://pools/p.zarr", tmp_path / "c.zarr", chunk_rows=10).fingerprint
    )
    assert not again.has_ids
    with pytest.raises(FileNotFoundError, match="memory://pools/none.zarr"):
        open_embeddings("memory://pools/none.zarr")


def test_layout_against_brute_force():
    for n in (1, 2, 31, 33, 1000, 12345, 10**6, 10**8):
        for d, size in ((1, 2), (384, 4), (1536, 4), (10**6, 4), (10**8, 4)):
            rows = chunk_rows_for(n, d, size)
            assert 1 <= rows <= n
            assert rows == 1 or rows * d * size <= TARGET_BYTES
            if n * d * size >= MIN_CHUNKS * TARGET_BYTES and d * size <= TARGET_BYTES:
                assert (rows + 1) * d * size > TARGET_BYTES
            elif rows * d * size > FLOOR_BYTES:
                assert rows == 1 or -(-n // rows) >= MIN_CHUNKS
            bounds = chunk_bounds(min(n, 5000), rows)
            assert [b - a for a, b in bounds[:-1]] == [rows] * (len(bounds) - 1)
            assert bounds[-1][1] == min(n, 5000)
