"""An interrupted ingestion goes on with the chunks that are missing, and notices what has changed."""

import os
import signal
import subprocess
import sys
import textwrap
import uuid

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daskcurate.embeddings import open_embeddings
from daskcurate.io import pool
from daskcurate.io.chunkwise import ChunkJob, Markers, Skipped, Written, write_chunks
from daskcurate.io.ingest import ingest
from daskcurate.io.layout import chunk_bounds

N, D, CHUNK = 53, 5, 8
STARTS = list(range(0, N, CHUNK))


def rows(seed=0):
    return np.random.default_rng(seed).normal(size=(N, D)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", rows())
    return tmp_path


@pytest.fixture
def written(monkeypatch):
    """The first rows of the chunks that are written, in any order."""
    starts = []
    original = pool._write_rows

    def write(plan, start, block):
        starts.append(start)
        return original(plan, start, block)

    monkeypatch.setattr(pool, "_write_rows", write)
    return starts


def interrupt(monkeypatch, source, dest, error, **settings):
    """Fail at the fourth chunk; the threads write the others before or after."""
    original = pool._write_rows

    def write(plan, start, block):
        if start == 3 * CHUNK:
            raise error
        return original(plan, start, block)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "_write_rows", write)
        with pytest.raises(type(error)):
            ingest(source, dest, chunk_rows=CHUNK, normalize=True, **settings)


def content(emb):
    ids = emb.ids.compute(scheduler="synchronous")
    return np.asarray(emb.array.compute(scheduler="synchronous")).tobytes(), ids.tolist(), emb.fingerprint


IDS = [f"id-{i}" for i in range(N)]


@pytest.mark.parametrize("ids", [None, IDS, list(range(N))], ids=["none", "text", "int"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_only_missing_chunks_are_written(folder, monkeypatch, written, ids, overwrite):
    whole = ingest("x.npy", "whole.zarr", chunk_rows=CHUNK, normalize=True, ids=ids)
    old = ingest(rows(1), "pool.zarr", normalize=True) if overwrite else None
    interrupt(monkeypatch, "x.npy", "pool.zarr", OSError("disk full"), ids=ids, overwrite=overwrite)
    if overwrite:
        assert open_embeddings("pool.zarr") == old
    else:
        assert not os.path.exists("pool.zarr")
    written.clear()
    emb = ingest("x.npy", "pool.zarr", chunk_rows=CHUNK, normalize=True, ids=ids, overwrite=overwrite)
    assert written == [3 * CHUNK]
    assert content(emb) == content(whole)
    assert not list(folder.glob("pool.zarr.*"))


def test_url(folder, monkeypatch, written):
    base = f"memory://{uuid.uuid4().hex}"
    with fsspec.open(f"{base}/x.npy", "wb") as file:
        np.save(file, rows())
    interrupt(monkeypatch, f"{base}/x.npy", f"{base}/pool.zarr", OSError("gone"))
    written.clear()
    emb = ingest(f"{base}/x.npy", f"{base}/pool.zarr", chunk_rows=CHUNK, normalize=True)
    assert written == [3 * CHUNK]
    assert content(emb) == content(ingest("x.npy", "whole.zarr", chunk_rows=CHUNK, normalize=True))
    fs, path = fsspec.core.url_to_fs(base)
    assert {name.rsplit("/", 1)[-1] for name in fs.ls(path, detail=False)} == {"x.npy", "pool.zarr"}


def test_large_row_groups_are_decoded_from_the_missing_chunk_on(folder, monkeypatch, written):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows().ravel()), D)
    pq.write_table(pa.table({"emb": lists}), "x.parquet", row_group_size=40)
    interrupt(monkeypatch, "x.parquet", "pool.zarr", OSError("disk full"))
    written.clear()
    emb = ingest("x.parquet", "pool.zarr", chunk_rows=CHUNK, normalize=True)
    assert 3 * CHUNK in written
    assert len(written) < len(STARTS)
    assert content(emb) == content(ingest("x.npy", "whole.zarr", chunk_rows=CHUNK, normalize=True))


def newer(name):
    state = os.stat(name)
    os.utime(name, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))


def other_rows():
    np.save("x.npy", rows(1))
    newer("x.npy")


CHANGES = {
    "rows": (other_rows, {}),
    "time": (lambda: newer("x.npy"), {}),
    "dtype": (lambda: None, {"dtype": "float16"}),
    "normalize": (lambda: None, {"normalize": False}),
    "chunk_rows": (lambda: None, {"chunk_rows": CHUNK - 1}),
    "ids": (lambda: None, {"ids": IDS[::-1]}),
    "no ids": (lambda: None, {"ids": None}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_starts_anew(folder, monkeypatch, written, change):
    interrupt(monkeypatch, "x.npy", "pool.zarr", OSError("disk full"), ids=IDS)
    act, more = CHANGES[change]
    act()
    written.clear()
    settings = {"chunk_rows": CHUNK, "normalize": True, "ids": IDS} | more
    emb = ingest("x.npy", "pool.zarr", **settings)
    assert sorted(written) == [start for start, _ in chunk_bounds(N, settings["chunk_rows"])]
    assert content(emb) == content(ingest("x.npy", "whole.zarr", **settings))
    assert not list(folder.glob("pool.zarr.*"))


def test_ids_in_a_file_that_has_changed(folder, monkeypatch, written):
    np.save("ids.npy", np.arange(N))
    interrupt(monkeypatch, "x.npy", "pool.zarr", OSError("disk full"), ids="ids.npy")
    np.save("ids.npy", np.arange(N) + 1)
    newer("ids.npy")
    written.clear()
    emb = ingest("x.npy", "pool.zarr", chunk_rows=CHUNK, normalize=True, ids="ids.npy")
    assert len(written) == len(STARTS)
    assert emb.ids.compute(scheduler="synchronous").tolist() == list(range(1, N + 1))


def flip(path):
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a bit": ("{}/embeddings/c/1/0", flip),
    "cut short": ("{}/embeddings/c/1/0", lambda path: path.write_bytes(path.read_bytes()[:-7])),
    "empty": ("{}/embeddings/c/1/0", lambda path: path.write_bytes(b"")),
    "missing": ("{}/embeddings/c/1/0", os.remove),
    "marker cut": ("{}.done/8.json", lambda path: path.write_bytes(path.read_bytes()[:20])),
    "marker missing": ("{}.done/8.json", os.remove),
    "marker of another kind": ("{}.done/8.json", lambda path: path.write_text("[1]")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_chunks_are_written_again(folder, monkeypatch, written, damage):
    interrupt(monkeypatch, "x.npy", "pool.zarr", OSError("disk full"))
    (done,) = (folder / "pool.zarr.partial").glob("*.done")
    where, act = DAMAGES[damage]
    act(folder / "pool.zarr.partial" / where.format(done.stem))
    written.clear()
    emb = ingest("x.npy", "pool.zarr", chunk_rows=CHUNK, normalize=True)
    assert sorted(written) == [CHUNK, 3 * CHUNK]
    assert content(emb) == content(ingest("x.npy", "whole.zarr", chunk_rows=CHUNK, normalize=True))


@pytest.mark.parametrize("what", ["/zarr.json", "/embeddings/zarr.json"])
def test_a_damaged_start_is_made_anew(folder, monkeypatch, written, what):
    interrupt(monkeypatch, "x.npy", "pool.zarr", OSError("disk full"))
    (done,) = (folder / "pool.zarr.partial").glob("*.done")
    os.remove(str(done).removesuffix(".done") + what)
    emb = ingest("x.npy", "pool.zarr", chunk_rows=CHUNK, normalize=True)
    assert content(emb) == content(ingest("x.npy", "whole.zarr", chunk_rows=CHUNK, normalize=True))
    assert not list(folder.glob("pool.zarr.*"))


def test_bad_rows_leave_nothing_to_go_on_with(folder):
    bad = rows()
    bad[40, 1] = np.nan
    np.save("x.npy", bad)
    with pytest.raises(ValueError, match=r"x.npy: row 40 holds NaN \(in column 1\)"):
        ingest("x.npy", "pool.zarr", chunk_rows=CHUNK, normalize=True)
    assert sorted(os.listdir(folder)) == ["x.npy"]


def test_what_another_call_left_is_removed(folder, monkeypatch):
    interrupt(monkeypatch, "x.npy", "pool.zarr", OSError("disk full"))
    assert (folder / "pool.zarr.partial").exists()
    ingest(rows(3), "pool.zarr", normalize=True)
    assert not list(folder.glob("pool.zarr.*"))


KILLED = """
    import os, signal, sys, numpy as np
    from daskcurate.io import pool
    from daskcurate.io.ingest import ingest
    where, original = sys.argv[1], getattr(pool, sys.argv[1])
    calls = []
    def kill(*args):
        calls.append(args)
        if where != "_write_rows" or len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)
    setattr(pool, where, kill)
    import dask
    dask.config.set(num_workers=1)
    ingest("x.npy", "pool.zarr", ids=list(range(53)), chunk_rows=8, normalize=True)
"""


@pytest.mark.parametrize(
    "where", ["_write_rows", "commit", pytest.param("move_store", marks=pytest.mark.slow)]
)
def test_killed(folder, written, where):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), where], check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError):
        open_embeddings("pool.zarr")
    settings = {"chunk_rows": CHUNK, "normalize": True, "ids": list(range(N))}
    emb = ingest("x.npy", "pool.zarr", **settings)
    assert len(written) == (len(STARTS) - 3 if where == "_write_rows" else 0)
    assert content(emb) == content(ingest("x.npy", "whole.zarr", **settings))
    assert not list(folder.glob("pool.zarr.*"))


def test_markers(tmp_path):
    markers = Markers(str(tmp_path))
    skipped = (Skipped(3, "a", "raised é"), Skipped(4, None, ""), Skipped(5, 2**62, "x"))
    for start, found in {
        0: Written("ab"),
        8: Written("cd", 0.1, 1 / 3, ids_digest="e", skipped=skipped),
    }.items():
        markers.write(start, found)
        assert markers.read(start) == found
    (tmp_path / "stop-12").write_text("")
    (tmp_path / "9.json.ab12").write_text("")
    assert markers.starts() == {0, 8}
    assert Markers(str(tmp_path / "none")).starts() == set()
    assert markers.read(16) is None


def test_a_failure_stops_what_has_not_started(tmp_path):
    """Chunks that take long are not all written before an error is shown."""
    from daskcurate.io.sources import ArrayRows

    class Rows(ArrayRows):
        in_process = False

    started = []

    def write(start, block):
        started.append(start)
        raise OSError("no disk")

    import dask

    job = ChunkJob("slow", 100, 5, "token", Markers(str(tmp_path)), stop_early=True)
    with dask.config.set(num_workers=1), pytest.raises(OSError, match="no disk"):
        write_chunks(job, write, Rows(np.zeros((100, 1))), lambda *_: None)
    assert len(started) == 1
