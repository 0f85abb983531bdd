import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from daskcurate.embeddings import open_embeddings
from daskcurate.io import ids as id_tools
from daskcurate.io import pool
from daskcurate.io.ingest import ingest

N, D = 30, 4
X = np.eye(D, dtype=np.float32)[np.arange(N) % D]
IDS = [f"id{i}" for i in range(N)]


def changed(row, value):
    x = X.copy()
    x[row] = value
    return x


def floats(x):
    offsets = pa.array(np.arange(0, x.size + 1, x.shape[1]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(x.ravel()))


@pytest.fixture
def files(templates, tmp_path, monkeypatch):
    """Copy one of each file that the cases name into the current folder."""
    shutil.copytree(templates, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("templates")
    with contextlib.chdir(folder):
        write_templates(folder)
    return folder


def write_templates(tmp_path):
    arrays = {
        "x": X,
        "ints": X.astype(int),
        "complex": X.astype(complex),
        "flat": X.ravel(),
        "cube": X[None],
        "rowless": X[:0],
        "thin": X[:, :0],
        "longdouble": X.astype(np.longdouble),
    }
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    np.save("objects.npy", X.astype(object), allow_pickle=True)
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(content[:-1])
    (tmp_path / "junk.npy").write_bytes(b"junk")
    (tmp_path / "junk.parquet").write_bytes(b"junk" * 10)
    (tmp_path / "x.feather").write_bytes(b"junk")
    X.tofile("x.dat")
    for folder in ("empty", "texts", "mixed", "widths", "nan"):
        (tmp_path / folder).mkdir()
    (tmp_path / "texts" / "readme.md").write_text("")
    np.save("mixed/a.npy", X)
    np.save("widths/a_2.npy", X)
    np.save("widths/a_10.npy", X[:, :3])
    np.save("nan/a_2.npy", X)
    np.save("nan/a_10.npy", changed(7, [1, np.nan, 0, 0]))
    table = pa.table(
        {"emb": floats(X), "key": IDS, "score": X[:, 0], "none": pa.array([None] * N, pa.string())}
    )
    pq.write_table(table, "x.parquet")
    pq.write_table(table, "mixed/b.parquet")
    pq.write_table(table.select(["key", "score"]), "ids_only.parquet")
    pq.write_table(table.select(["score"]), "scores.parquet")
    ragged = [row.tolist() for row in X]
    ragged[9] = ragged[9][:3]
    pq.write_table(pa.table({"emb": ragged}), "ragged.parquet", row_group_size=4)
    holes = [row.tolist() for row in X]
    holes[11] = None
    pq.write_table(pa.table({"emb": holes}), "holes.parquet", row_group_size=4)
    group = zarr.create_group("group.zarr")
    for name in ("a", "b"):
        group.create_array(name, shape=X.shape, dtype="f4", chunks=(9, 4))[:] = X
    zarr.create_group("nothing.zarr").create_array("obs", shape=(3,), dtype="i8", chunks=(3,))
    (tmp_path / "blank.txt").write_text("".join(f"{i}\n" if i != 4 else "\n" for i in range(N)))
    (tmp_path / "latin.txt").write_bytes(b"".join(b"%d\xe9\n" % i for i in range(N)))


def no_floats(name, kind):
    return TypeError, f"{name} holds {kind}: allowed are float16, float32 and float64"


SOURCES = {
    "ints": (X.astype(int), {}, *no_floats("the array", "int64")),
    "bools": (X > 0, {}, *no_floats("the array", "bool")),
    "objects": (X.astype(object), {}, *no_floats("the array", "object")),
    "dask ints": (da.ones((5, 5), dtype="i4"), {}, *no_floats("the Dask array", "int32")),
    "npy ints": ("ints.npy", {}, *no_floats("/ints.npy", "int64")),
    "npy complex": ("complex.npy", {}, *no_floats("/complex.npy", "complex128")),
    "npy longdouble": ("longdouble.npy", {}, *no_floats("/longdouble.npy", "float128")),
    "npy objects": ("objects.npy", {}, TypeError, "objects.npy holds Python objects"),
    "memmap ints": ("x.dat", {"shape": (30, 4), "source_dtype": "i4"}, *no_floats("x.dat", "int32")),
    "1-D": (X[0], {}, ValueError, "the array has shape (4,): give a 2-D array"),
    "1-D npy": ("flat.npy", {}, ValueError, "flat.npy has shape (120,)"),
    "3-D npy": ("cube.npy", {}, ValueError, "cube.npy has shape (1, 30, 4)"),
    "no rows": (X[:0], {}, ValueError, "the array is empty: it has 0 rows"),
    "no rows npy": ("rowless.npy", {}, ValueError, "rowless.npy is empty"),
    "no rows list": (["rowless.npy", "rowless.npy"], {}, ValueError, "2 files is empty"),
    "width 0": ("thin.npy", {}, ValueError, "thin.npy has rows of width 0"),
    "unknown chunks": (da.from_array(X)[da.ones(N) > 0], {}, ValueError, "compute_chunk_sizes()"),
    "missing": ("nope.npy", {}, FileNotFoundError, "there is no file or folder at"),
    "missing in list": (["x.npy", "nope.npy"], {}, FileNotFoundError, "there is no file at"),
    "empty glob": ("nope_*.npy", {}, FileNotFoundError, "no file matches"),
    "empty list": ([], {}, ValueError, "give at least one path"),
    "list of rows": (
        X.tolist(),
        {},
        TypeError,
        "which is not a path: give a list of paths, or rows as a NumPy",
    ),
    "empty folder": ("empty", {}, ValueError, "has no file of a known format (it holds nothing)"),
    "other folder": ("texts", {}, ValueError, "it holds readme.md"),
    "mixed folder": ("mixed", {}, ValueError, "give format='npy' or format='parquet'"),
    "mixed list": (["x.npy", "x.parquet"], {}, ValueError, "files of several formats (npy, parquet)"),
    "folder in list": (["x.npy", "mixed"], {}, ValueError, "mixed has files of several formats"),
    "no source": (None, {}, TypeError, "source of type NoneType is not allowed: give an array"),
    "empty path": ("", {}, ValueError, "source='' is not allowed"),
    "suffix": ("x.feather", {}, ValueError, "x.feather is not an Arrow file or stream that can be read"),
    "short npy": (
        "short.npy",
        {},
        ValueError,
        "short.npy is cut short: its header asks for 608 bytes, and it has 607",
    ),
    "junk npy": ("junk.npy", {}, ValueError, "junk.npy is not a .npy file"),
    "junk parquet": ("junk.parquet", {}, ValueError, "junk.parquet is not a parquet file"),
    "widths": ("widths", {}, ValueError, "a_10.npy has rows of width 3, but "),
    "no shape": ("x.dat", {}, ValueError, "x.dat has no header: give shape=(rows, width) and source_dtype="),
    "shape": (
        "x.dat",
        {"shape": (30, 5), "source_dtype": "f4"},
        ValueError,
        "has 480 bytes, but shape=(30, 5)",
    ),
    "shape -1": (
        "x.dat",
        {"shape": (-1, 7), "source_dtype": "f4"},
        ValueError,
        "shape=(17, 7) of float32 is 476",
    ),
    "shape kind": ("x.dat", {"shape": 30, "source_dtype": "f4"}, TypeError, "shape=30 is not allowed"),
    "shape zero": (
        "x.dat",
        {"shape": (0, 4), "source_dtype": "f4"},
        ValueError,
        "shape=(0, 4) is not allowed",
    ),
    "source_dtype": (
        "x.dat",
        {"shape": (30, 4), "source_dtype": "f5"},
        TypeError,
        "source_dtype='f5' is not allowed",
    ),
    "shape for npy": (
        "x.npy",
        {"shape": (30, 4)},
        ValueError,
        "shape=(30, 4) is not allowed: it is for headerless",
    ),
    "column for npy": ("x.npy", {"column": "a"}, ValueError, "column='a' is not allowed: it is for parquet"),
    "column kind": ("x.parquet", {"column": 3}, TypeError, "column=3 is not allowed"),
    "column missing": (
        "x.parquet",
        {"column": "embb"},
        ValueError,
        "column='embb' is not in x.parquet: give one of",
    ),
    "column no list": (
        "x.parquet",
        {"column": "score"},
        TypeError,
        "column='score' of x.parquet holds float",
    ),
    "no list column": ("scores.parquet", {}, ValueError, "scores.parquet has no column of lists of floats"),
    "group of two": ("group.zarr", {}, ValueError, "several 2-D arrays of floats ('a', 'b'): give column="),
    "group of none": (
        "nothing.zarr",
        {},
        ValueError,
        "without a 2-D array of floats; its arrays are 'obs' (3,)",
    ),
    "group column": ("group.zarr", {"column": "c"}, ValueError, "column='c' is not an array of"),
    "format unknown": (
        X,
        {"format": "npyy"},
        ValueError,
        "format='npyy' is not allowed: give one of 'array', 'npy'",
    ),
    "format near": (X, {"format": "npyy"}, ValueError, "did you mean 'npy'?"),
    "format other": (
        X,
        {"format": "npy"},
        ValueError,
        "format='npy' is not allowed: the array is of format 'array'",
    ),
    "format pool": ("group.zarr", {"format": "pool"}, ValueError, "format='pool' is not allowed"),
    "normalize": (
        X,
        {"normalize": "yes"},
        TypeError,
        "normalize='yes' is not allowed: give True, False or None",
    ),
    "overwrite": (X, {"overwrite": 1}, TypeError, "overwrite=1 is not allowed: give True or False"),
    "dtype": (
        X,
        {"dtype": "float64"},
        ValueError,
        "dtype='float64' is not allowed: give 'float16', 'float32' or",
    ),
    "dtype int": (X, {"dtype": int}, ValueError, "give 'float16', 'float32' or None"),
    "dtype kind": (X, {"dtype": "float33"}, TypeError, "dtype='float33' is not allowed"),
    "chunk_rows": (X, {"chunk_rows": 0}, ValueError, "chunk_rows=0 is not allowed"),
    "chunk_rows kind": (X, {"chunk_rows": 1.5}, TypeError, "chunk_rows=1.5 is not allowed"),
}

ROWS = {
    "nan": (changed(17, [0, np.nan, 0, 1]), {}, "the array: row 17 holds NaN (in column 1)"),
    "nan first": (changed([17, 29], np.nan), {}, "the array: row 17 holds NaN"),
    "infinity": (changed(29, [0, 0, -np.inf, 1]), {}, "the array: row 29 holds an infinity (in column 2)"),
    "zero": (changed(0, 0), {}, "the array: row 0 has zero norm"),
    "zero, float16": (changed(3, 0).astype(np.float16), {}, "the array: row 3 has zero norm"),
    "dask": (da.from_array(changed(17, 0), chunks=(4, 3)), {}, "the Dask array: row 17 has zero norm"),
    "file": ("nan", {}, "a_10.npy: row 7 (row 37 of the pool) holds NaN (in column 1)"),
    "ragged": ("ragged.parquet", {}, "ragged.parquet: row 9 has width 3, but the rows before it 4"),
    "null": ("holes.parquet", {}, "holes.parquet: row 11 is null in column 'emb'"),
    "over float32": (
        X * np.where(np.arange(N) == 5, 1e300, 1)[:, None],
        {},
        "row 5 holds 1e+300 (in column 1), which",
    ),
    "under float32": (
        X * np.where(np.arange(N) == 5, 1e-300, 1)[:, None],
        {},
        "row 5 has zero norm in float32",
    ),
    "too long": (changed(5, [0, 3e38, 0, 0]), {}, "row 5 has norm 3e+38, whose square float32 cannot hold"),
    "float16": (
        changed(5, [0, 70000, 0, 0]),
        {"dtype": "float16"},
        "row 5 holds 70000 (in column 1), which overflows",
    ),
    "under float16": (changed(5, 1e-9), {"dtype": "float16"}, "row 5 rounds to zero in float16"),
}

SHORT = "has 29 ids, but the array has 30 rows: give one id a row"
ID_CASES = {
    "short": (IDS[:-1], ValueError, SHORT),
    "2-D": (np.ones((N, 1), int), ValueError, "ids have shape (30, 1)"),
    "floats": (np.arange(N) + 0.5, TypeError, "ids of float64 are not allowed: give integers or strings"),
    "bools": (np.ones(N, bool), TypeError, "ids of bool are not allowed"),
    "list of bools": ([True] * N, TypeError, "ids of object are not allowed"),
    "dict": ({}, TypeError, "ids of type dict is not allowed: give None, an array"),
    "number": (3, TypeError, "ids of type int is not allowed"),
    "mixed": (
        [*IDS[:-1], 3],
        ValueError,
        "ids: row 29 has the id 3: ids must be all strings, or all integers",
    ),
    "mixed ints": ([*range(N - 1), "3"], ValueError, "ids: row 29 has the id '3': ids must be all"),
    "none": ([*IDS[:4], None, *IDS[5:]], ValueError, "ids: row 4 has the id None"),
    "large": (
        np.arange(N, dtype=np.uint64) + 2**63 - 2,
        ValueError,
        "row 2 has the id 9223372036854775808, which",
    ),
    "large list": (
        [2**70, *range(N - 1)],
        ValueError,
        "ids: row 0 has the id 1180591620717411303424, which is",
    ),
    "bytes": (
        np.array([b"a%d" % i if i != 3 else b"\xff" for i in range(N)]),
        ValueError,
        "row 3 has the id b'\\xff'",
    ),
    "repeat": (
        [*range(N - 2), 11, 12],
        ValueError,
        "ids must not repeat, but 11 does: ids: row 11, and again ids: row 28",
    ),
    "repeat text": ([*IDS[:20], *IDS[:10]], ValueError, "but 'id0' does: ids: row 0, and again ids: row 20"),
    "missing file": ("nope.npy", FileNotFoundError, "ids: there is no file at"),
    "empty glob": ("nope*.npy", FileNotFoundError, "ids: no file matches"),
    "no file": ("key", ValueError, "ids='key' is neither a file nor a column of the array"),
    "unknown file": ("x.feather", ValueError, "ids='x.feather' is not of a known kind: give None, an array"),
    "npy of floats": ("flat.npy", ValueError, "has 120 ids, but the array has 30 rows"),
    "no id column": ("scores.parquet", ValueError, "scores.parquet has no column of integers or strings"),
    "float column": ("x.parquet:score", TypeError, "ids: column 'score' of"),
    "missing column": ("x.parquet:nope", ValueError, "column='nope' is not in x.parquet: give one of"),
    "null ids": ("x.parquet:none", ValueError, "x.parquet: row 0 is null in column 'none'"),
    "blank line": ("blank.txt", ValueError, "blank.txt: row 4 is empty: give one id a line"),
    "latin-1": ("latin.txt", ValueError, "latin.txt: row 0 is not UTF-8 text"),
}


def snapshot(folder):
    return {
        os.path.join(root, name): os.stat(os.path.join(root, name)).st_mtime_ns
        for root, _, names in os.walk(folder)
        for name in names
    }


def assert_refused(folder, error, phrase, *args, **options):
    before = snapshot(folder)
    with pytest.raises(error) as caught:
        ingest(*args, **options)
    assert phrase in str(caught.value)
    assert snapshot(folder) == before
    assert not [name for name in os.listdir(folder) if name.endswith((".partial", ".replaced"))]


@pytest.mark.parametrize("case", SOURCES)
def test_source_is_refused(files, case, monkeypatch):
    source, options, error, phrase = SOURCES[case]
    monkeypatch.setattr(pool, "create", lambda *args: pytest.fail("something was written"))
    assert_refused(files, error, phrase, source, "pool.zarr", **options)
    assert not (files / "pool.zarr").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("case", ROWS)
def test_row_is_refused(files, case, overwrite):
    source, options, phrase = ROWS[case]
    if overwrite:
        old = ingest(X, "pool.zarr", ids=IDS)
    assert_refused(
        files,
        ValueError,
        phrase,
        source,
        "pool.zarr",
        normalize=False,
        chunk_rows=8,
        overwrite=overwrite,
        **options,
    )
    assert (files / "pool.zarr").exists() == overwrite
    if overwrite:
        assert open_embeddings("pool.zarr") == old


def test_row_of_the_sample_is_refused_before_writing(files, monkeypatch):
    monkeypatch.setattr(pool, "create", lambda *args: pytest.fail("something was written"))
    assert_refused(files, ValueError, "a_10.npy: row 7 (row 37 of the pool) holds NaN", "nan", "pool.zarr")


@pytest.mark.parametrize("case", ID_CASES)
def test_ids_are_refused(files, case):
    ids, error, phrase = ID_CASES[case]
    assert_refused(files, error, phrase, X, "pool.zarr", ids=ids, chunk_rows=7)
    assert not (files / "pool.zarr").exists()


def test_id_column_is_refused(files):
    assert_refused(files, ValueError, "its columns are 'emb', 'key'", "x.parquet", "pool.zarr", ids="keyy")


def test_repeat_names_the_files(files):
    for i in range(3):
        np.save(f"key_{i}.npy", np.array(IDS[:10]) if i != 1 else np.array(["a", "b", *IDS[12:20]]))
    phrase = (
        "but 'id0' does: "
        + str(files / "key_0.npy")
        + ": row 0, and again "
        + str(files / "key_2.npy")
        + ": row 0"
    )
    assert_refused(files, ValueError, phrase, X, "pool.zarr", ids="key_*.npy")


def test_equal_hashes_are_no_repeat(monkeypatch):
    values = ["a", "b", "c", "d", "b"]
    hashes = np.array([7, 7, 9, 7, 7], np.uint64)
    assert id_tools.find_repeat(hashes, values.__getitem__) == ("b", 1, 4)
    assert id_tools.find_repeat(hashes[:4], values.__getitem__) is None


@pytest.mark.parametrize("seed", range(5))
def test_first_repeat_against_brute_force(seed):
    values = np.random.default_rng(seed).integers(0, 400, 40)
    seen, expected = {}, None
    for row, value in enumerate(values.tolist()):
        if value in seen:
            expected = (value, seen[value], row)
            break
        seen[value] = row
    assert id_tools.find_repeat(id_tools.hash_ids(values), values.tolist().__getitem__) == expected


def test_dest_must_be_free(files):
    old = ingest(X, "pool.zarr")
    assert_refused(files, FileExistsError, "pool.zarr exists already: give another dest, or", -X, "pool.zarr")
    assert_refused(files, FileExistsError, "exists already", -X, "x.npy")
    for other in ("x.npy", "mixed", "group.zarr"):
        assert_refused(files, ValueError, "so overwrite=True does not replace it", -X, other, overwrite=True)
    assert_refused(files, TypeError, "dest=3 is not allowed", X, 3)
    assert open_embeddings("pool.zarr") == old
    new = ingest(-X, "pool.zarr", overwrite=True)
    np.testing.assert_array_equal(new.array.compute(scheduler="synchronous"), -X)
    assert not list(files.glob("pool.zarr.*"))


def test_a_pool_may_replace_itself(files):
    ingest(X, "pool.zarr", ids=IDS)
    emb = ingest("pool.zarr", "pool.zarr", dtype="float16", chunk_rows=3, overwrite=True)
    assert emb.ids.compute(scheduler="synchronous").tolist() == IDS
    np.testing.assert_array_equal(emb.array.compute(scheduler="synchronous"), X)


@pytest.mark.parametrize("source", [X, da.from_array(X, chunks=8)], ids=["array", "dask"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failing_write_leaves_nothing(files, monkeypatch, source, error):
    old = ingest(X, "old.zarr")

    def write(plan, start, rows):
        if start == 16:
            raise error
        return written(plan, start, rows)

    written = pool._write_rows
    monkeypatch.setattr(pool, "_write_rows", write)
    for dest, overwrite in (("pool.zarr", False), ("old.zarr", True)):
        before = snapshot(files)
        with pytest.raises(type(error)):
            ingest(source, dest, chunk_rows=8, overwrite=overwrite)
        for _ in range(100):  # an interrupt does not wait for the other threads' tasks
            if snapshot(files) == before and not list(files.glob("*.partial")):
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"left behind: {set(snapshot(files)) - set(before)}")
    assert open_embeddings("old.zarr") == old


@pytest.mark.parametrize("step", ["rename", "update"])
def test_failing_commit_leaves_the_old_pool(files, monkeypatch, step):
    old = ingest(X, "pool.zarr")
    rename = os.rename

    def fail(source, dest):
        if ".partial" in str(source):
            raise OSError("no rename")
        rename(source, dest)

    if step == "rename":
        monkeypatch.setattr(os, "rename", fail)
    else:
        monkeypatch.setattr(zarr.Group, "update_attributes", lambda *args: fail("x.partial", ""))
    with pytest.raises(OSError, match="no rename"):
        ingest(-X, "pool.zarr", overwrite=True)
    assert open_embeddings("pool.zarr") == old
    assert not list(files.glob("pool.zarr.*"))


def test_leftovers_of_a_killed_run_are_cleared(files):
    old = ingest(X, "pool.zarr", ids=IDS)
    os.rename("pool.zarr", "pool.zarr.replaced")  # killed between the two renames
    ingest(-X, "pool.zarr.partial")
    with pytest.raises(FileExistsError):
        ingest(-X, "pool.zarr")
    assert open_embeddings("pool.zarr") == old
    assert not list(files.glob("pool.zarr.*"))
    ingest(-X, "pool.zarr.replaced")  # killed before the old pool was deleted
    new = ingest(-X, "pool.zarr", overwrite=True)
    assert new.fingerprint != old.fingerprint
    assert not list(files.glob("pool.zarr.*"))


KILLED = """
    import os, signal, sys, numpy as np
    from daskcurate.io import pool
    from daskcurate.io.ingest import ingest
    where, original = sys.argv[1], getattr(pool, sys.argv[1])
    def kill(*args):
        if where != "_write_rows" or args[1] == 16:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)
    setattr(pool, where, kill)
    ingest(np.eye(30, dtype="f4"), "pool.zarr", ids=list(range(30)), chunk_rows=8)
"""


@pytest.mark.parametrize(
    "where",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("_write_rows", "commit")), "move_store"],
)
def test_sigkill(files, where):
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), where], cwd=files, check=False)
    assert run.returncode == -signal.SIGKILL
    (partial,) = (files / "pool.zarr.partial").iterdir()
    with pytest.raises(FileNotFoundError):
        open_embeddings("pool.zarr")
    if where != "move_store":
        with pytest.raises(ValueError, match="remains of an ingestion that did not finish"):
            open_embeddings(partial)
    emb = ingest(np.eye(30, dtype="f4"), "pool.zarr", chunk_rows=8)
    assert len(emb) == 30
    assert not emb.has_ids
    assert not list(files.glob("pool.zarr.*"))
