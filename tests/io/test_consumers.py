"""Exports read back by those whom they are for: webdataset, datasets, DataComp, marisa, Curator, torch."""

import sys

import dask.array as da
import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import daskcurate as dc
from daskcurate.io import writers
from daskcurate.io.export import export

N = 61
COUNTS = np.array([0, 1, 3, 0, 2], np.int32)[np.arange(N) % 5]
KEYS = np.array([f"shard/{i:06d}é" for i in range(N)], np.dtypes.StringDType())
UIDS = np.array(
    [f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}{2**64 - 1 - i:016x}" for i in range(N)], np.dtypes.StringDType()
)


class Picks:
    """What export needs of a Selection."""

    def __init__(self, ids=KEYS, counts=COUNTS):
        self.counts = da.from_array(counts, chunks=7)
        self.ids = da.from_array(ids, chunks=11, meta=np.empty(0, ids.dtype))
        self.total = int(counts.sum())

    indices = property(lambda self: np.repeat(np.arange(N), self.counts.compute()))

    def __len__(self):
        return self.total

    def columns(self):
        return {"row": da.arange(N, chunks=7)}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writers, "WINDOW_ROWS", 16)


def test_trie_filters_a_webdataset_stream():
    marisa_trie = pytest.importorskip("marisa_trie")
    wds = pytest.importorskip("webdataset")
    export(Picks(), "kept.trie")
    trie = marisa_trie.Trie()
    trie.load("kept.trie")
    assert sorted(trie) == sorted(KEYS[COUNTS > 0])
    mapped = marisa_trie.Trie()
    mapped.mmap("kept.trie")
    with wds.TarWriter("shard.tar") as tar:
        for i, key in enumerate(KEYS):
            tar.write({"__key__": str(key), "cls": i})
    for found in (trie, mapped):
        stream = wds.WebDataset("shard.tar", shardshuffle=False).select(
            lambda s, found=found: s["__key__"] in found
        )
        assert [int(sample["cls"]) for sample in stream] == np.flatnonzero(COUNTS).tolist()
    export(Picks(np.arange(N) * 10), "numbers.out", format="trie")
    trie.load("numbers.out")
    assert sorted(map(int, trie)) == (np.flatnonzero(COUNTS) * 10).tolist()
    assert "0" not in trie


def test_trie_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "marisa_trie", None)
    with pytest.raises(ImportError, match=r"pip install 'daskcurate\[export\]'"):
        export(Picks(), "kept.trie")
    assert list(tmp_path.iterdir()) == []


def test_datacomp():
    """As DataComp makes and reads its subset files: tuples of 64-bit halves, sorted by NumPy."""
    export(Picks(UIDS), "subset.npy", format="datacomp")
    found = np.load("subset.npy", mmap_mode="r")
    kept = np.repeat(UIDS, COUNTS)
    expected = np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in kept], np.dtype("u8,u8"))
    expected.sort()
    assert found.dtype == np.dtype("u8,u8")
    np.testing.assert_array_equal(found, expected)
    assert len(found) == COUNTS.sum()
    upper = np.array([uid.upper() for uid in UIDS], np.dtypes.StringDType())
    export(Picks(upper), "upper.npy", format="datacomp")
    np.testing.assert_array_equal(np.load("upper.npy"), expected)
    export(Picks(UIDS, np.zeros(N, np.int32)), "none.npy", format="datacomp")
    assert np.load("none.npy").shape == (0,)


@pytest.mark.parametrize("bad", ["0" * 31, "g" * 32, "0" * 33, "", " " * 32, "é" * 32])
def test_datacomp_needs_uids(tmp_path, bad):
    ids = UIDS.copy()
    ids[32] = bad
    with pytest.raises(
        ValueError, match="row 32 has the id .*, which is not a uid of DataComp, 32 hexadecimal"
    ):
        export(Picks(ids), "subset.npy", format="datacomp")
    with pytest.raises(ValueError, match="row 1 has the id 1, which"):
        export(Picks(np.arange(N)), "subset.npy", format="datacomp")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ids", [KEYS, np.arange(N) + 100], ids=["text", "int"])
def test_curator(ids):
    """As Curator reads it: the ids within the range of a batch, from the file or from its folder."""
    export(Picks(ids), "remove/ids.parquet", format="curator")
    table = pq.read_table("remove/ids.parquet")
    assert table.column_names == ["id"]
    assert table["id"].to_pylist() == ids[COUNTS == 0].tolist()
    assert pq.ParquetFile("remove/ids.parquet").metadata.num_row_groups > 1
    low, high = ids[10], ids[30]
    batch = pads.dataset("remove").to_table(filter=(pads.field("id") >= low) & (pads.field("id") <= high))
    expected = [ids[i] for i in range(10, 31) if COUNTS[i] == 0]
    assert batch["id"].to_pylist() == expected
    export(Picks(ids, COUNTS + 1), "all.parquet", format="curator")
    assert pq.read_table("all.parquet").num_rows == 0


def test_weights():
    export(Picks(), "weights.npy", format="weights")
    found = np.load("weights.npy")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, COUNTS)


def test_many_weights_are_warned_of(monkeypatch):
    monkeypatch.setattr(writers, "SAMPLER_ROWS", N - 1)
    with pytest.warns(
        UserWarning, match="61 weights are more than the 60 that torch's WeightedRandomSampler"
    ):
        export(Picks(), "weights.npy", format="weights")
    assert len(np.load("weights.npy")) == N


def test_torch_samplers():
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, Subset, WeightedRandomSampler

    export(Picks(), "weights.npy", format="weights")
    export(Picks(), "picks.npy")
    weights, picks = np.load("weights.npy"), np.load("picks.npy")
    draws = list(WeightedRandomSampler(weights, 20_000, generator=torch.Generator().manual_seed(0)))
    found = np.bincount(draws, minlength=N) / len(draws)
    assert not found[COUNTS == 0].any()
    np.testing.assert_allclose(found, COUNTS / COUNTS.sum(), atol=0.01)
    loader = DataLoader(Subset(torch.arange(N), picks), batch_size=8)
    assert torch.cat(list(loader)).tolist() == np.repeat(np.arange(N), COUNTS).tolist()


def test_datasets_select():
    datasets = pytest.importorskip("datasets")
    export(Picks(), "picks.npy")
    data = datasets.Dataset.from_dict({"i": np.arange(N)})
    assert data.select(np.load("picks.npy"))["i"][:] == np.repeat(np.arange(N), COUNTS).tolist()


def test_datasets_reads_the_native_table(pool, client, tmp_path):
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    emb = pool(rng.standard_normal((200, 4)), ids=[f"k{i}" for i in range(200)])
    picks = dc.hierarchical_sample(dc.kmeans(emb, 3, n_iters=3), target_size=50)
    export(dc.compute(picks, store="run.zarr"), "picks.parquet")
    data = datasets.Dataset.from_parquet("picks.parquet", cache_dir=str(tmp_path / "cache"))
    kept = data.filter(lambda row: row["keep"], load_from_cache_file=False)
    assert len(kept) == 50
    assert {"row", "id", "keep", "count", "cluster_level_1", "distance", "reason"} <= set(data.column_names)
    assert [f"k{i}" for i in kept["row"]] == kept["id"][:]


def test_npy_of_a_damaged_count_is_refused(tmp_path):
    picks = Picks()
    picks.total += 1
    with pytest.raises(ValueError, match="the selection has 72 rows where its store says 73"):
        export(picks, "picks.npy")
    assert list(tmp_path.iterdir()) == []
