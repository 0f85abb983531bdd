import os

import dask.array as da
import numpy as np
import pyarrow.parquet as pq
import pytest

from daskcurate.io import writers
from daskcurate.io.export import export

N = 23
COUNTS = np.arange(N) % 3
NAMES = np.array([f"näme{i}" for i in range(N)], np.dtypes.StringDType())


class Picks:
    """What export needs of a Selection."""

    def __init__(self, ids=NAMES, chunks=5):
        self.counts = da.from_array(COUNTS, chunks=chunks)
        self.ids = da.from_array(ids, chunks=7, meta=np.empty(0, ids.dtype))
        self.chunks = chunks

    @property
    def indices(self):
        return np.repeat(np.arange(N), COUNTS)

    def __len__(self):
        return int(COUNTS.sum())

    def columns(self):
        reason = np.where(COUNTS > 0, "kept", "pruned")
        return {
            "row": da.arange(N, chunks=self.chunks, dtype=np.int64),
            "id": self.ids.rechunk(self.chunks),
            "keep": self.counts > 0,
            "distance": da.arange(N, chunks=self.chunks, dtype=np.float32),
            "reason": da.from_array(reason, chunks=self.chunks),
        }


class Clusters:
    """What export needs of a Clustering."""

    def columns(self):
        return {"row": da.arange(N, chunks=4), "cluster": da.ones(N, chunks=4, dtype=np.int32)}


class Lazy(Picks):
    indices = property(lambda self: self.fail())
    counts = property(lambda self: self.fail(), lambda self, value: None)

    def columns(self):
        return self.fail()

    def fail(self):
        raise RuntimeError("not computed yet")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_npy(tmp_path):
    assert export(Picks(), "out/picks.npy") == str(tmp_path / "out" / "picks.npy")
    found = np.load("out/picks.npy")
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.repeat(np.arange(N), COUNTS))
    assert os.listdir("out") == ["picks.npy"]


@pytest.mark.parametrize("window", [1, 10, 1000])
def test_parquet_is_written_in_windows(monkeypatch, window):
    monkeypatch.setattr(writers, "WINDOW_ROWS", window)
    export(Picks(), "picks.parquet")
    groups = {1: 5, 10: 3, 1000: 1}[window]
    assert pq.ParquetFile("picks.parquet").metadata.num_row_groups == groups
    table = pq.read_table("picks.parquet")
    assert [str(kind) for kind in table.schema.types] == ["int64", "string", "bool", "float", "string"]
    assert table["id"].to_pylist() == NAMES.tolist()
    assert table["row"].to_pylist() == list(range(N))
    np.testing.assert_array_equal(table["keep"], COUNTS > 0)
    assert set(table.filter(table["keep"])["reason"].to_pylist()) == {"kept"}


@pytest.mark.parametrize("ids", [NAMES, np.arange(N) * 10], ids=["text", "int"])
def test_ids(monkeypatch, ids):
    monkeypatch.setattr(writers, "WINDOW_ROWS", 8)
    export(Picks(ids), "kept.txt")
    export(Picks(ids), "removed.txt", format="removed-ids")
    with open("kept.txt", encoding="utf-8") as kept, open("removed.txt", encoding="utf-8") as removed:
        assert kept.read() == "".join(f"{item}\n" for item in ids[COUNTS > 0])
        assert removed.read().split() == [str(item) for item in ids[COUNTS == 0]]


def test_format_wins_over_the_name():
    export(Picks(), "picks.dat", format="npy")
    assert len(np.load("picks.dat")) == len(Picks())


def test_clusters_go_to_parquet_only():
    export(Clusters(), "clusters.parquet")
    assert pq.read_table("clusters.parquet").num_rows == N
    for name in ("clusters.npy", "clusters.txt"):
        with pytest.raises(
            ValueError, match="not allowed for a Clusters, which selects no rows: give format='parq"
        ):
            export(Clusters(), name)


def test_url():
    import fsspec

    assert export(Picks(), "memory://exports/picks.npy") == "memory://exports/picks.npy"
    fs = fsspec.filesystem("memory")
    with fs.open("/exports/picks.npy") as file:
        assert len(np.load(file)) == len(Picks())
    assert fs.ls("/exports", detail=False) == ["/exports/picks.npy"]


def test_existing_files_are_kept():
    export(Picks(), "picks.npy")
    before = os.stat("picks.npy").st_mtime_ns
    with pytest.raises(
        FileExistsError, match="picks.npy exists already: give another dest, or overwrite=True"
    ):
        export(Picks(), "picks.npy")
    assert os.stat("picks.npy").st_mtime_ns == before
    export(Picks(), "picks.npy", overwrite=True)
    os.mkdir("folder.npy")
    with pytest.raises(FileExistsError, match="folder.npy is a folder"):
        export(Picks(), "folder.npy", overwrite=True)


@pytest.mark.parametrize(
    ("result", "dest", "format", "error", "phrase"),
    [
        (Picks(), "picks.parque", None, ValueError, "did you mean '.parquet'?"),
        (
            Picks(),
            "picks",
            None,
            ValueError,
            "has the suffix '': allowed are '.npy', '.parquet', '.txt', '.trie'",
        ),
        (
            Picks(),
            "picks.npy",
            "id",
            ValueError,
            "format='id' is not allowed: give one of 'npy', 'parquet', 'ids'",
        ),
        (Picks(), "picks.npy", 3, TypeError, "format=3 is not allowed"),
        (Picks(), None, None, TypeError, "dest=None is not allowed"),
        (
            COUNTS,
            "picks.npy",
            None,
            TypeError,
            "result of type ndarray is not allowed: give a computed Selection",
        ),
        (Lazy(), "picks.npy", None, RuntimeError, "not computed yet"),
        (Lazy(), "picks.parquet", None, RuntimeError, "not computed yet"),
        (Lazy(), "picks.txt", None, RuntimeError, "not computed yet"),
        (
            Picks(np.array(["a\nb"] * N)),
            "picks.txt",
            None,
            ValueError,
            "row 1 has the id 'a\\nb', which is not one",
        ),
    ],
)
def test_refusals_leave_nothing(tmp_path, result, dest, format, error, phrase):
    with pytest.raises(error) as caught:
        export(result, dest, format)
    assert phrase in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_failing_block_leaves_the_old_file():
    export(Picks(), "picks.parquet")
    with open("picks.parquet", "rb") as file:
        before = file.read()
    picks = Picks()
    picks.counts = picks.counts.map_blocks(lambda block: block if block[0] else 1 // 0, dtype=int)
    with pytest.raises(ZeroDivisionError):
        export(picks, "picks.parquet", overwrite=True)
    with open("picks.parquet", "rb") as file:
        assert file.read() == before
    assert os.listdir() == ["picks.parquet"]
