"""Selections of a run store in torch datasets and webdataset streams."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

import daskcurate as dc
from daskcurate import loading
from daskcurate.stored import find_selection

N = 83
KEYS = [f"{i:05d}" for i in range(N)]
COUNTS = np.array([0, 1, 3, 0, 2])[np.arange(N) % 5]


@pytest.fixture(scope="module")
def run(cluster, tmp_path_factory):
    """A pool, a store with two selections (one with repeats) and a clustering."""
    from distributed import Client

    folder = tmp_path_factory.mktemp("loading")
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((N, 4)).astype(np.float32)
    with Client(cluster):
        emb = dc.ingest(rows, folder / "pool.zarr", ids=KEYS, normalize=True, chunk_rows=9)
        picks = dc.Selection.from_indices(np.repeat(np.arange(N), COUNTS), emb)
        half = dc.random_prune(emb, keep_fraction=0.5)
        flat = dc.kmeans(emb, 3, n_iters=2)
        thin = dc.density_prune(flat, keep_fraction=0.5, within=half)
        found = dc.compute(picks, half, thin, store=folder / "run.zarr")
    return folder / "run.zarr", emb, found


def test_selections_are_found_by_name(run):
    store, emb, (picks, half, thin) = run
    for selection in (picks, half, thin):
        for name in (selection.name, selection.name[:-3], selection.kind):
            found = find_selection(store, name)
            assert (found.name, found.total) == (selection.name, len(selection))
            assert found.pool == emb.fingerprint
            np.testing.assert_array_equal(loading.selected_indices(store, name), selection.indices)
    assert pickle.loads(pickle.dumps(found)) == found
    np.testing.assert_array_equal(
        loading.selected_indices(store, "given", repeats=False), np.flatnonzero(COUNTS)
    )


@pytest.mark.parametrize(
    ("stage", "error", "phrase"),
    [
        ("kmeans", ValueError, "is no selection of"),
        ("hierarchical_sample", ValueError, "give one of density_prune-"),
        ("", TypeError, "stage='' is not allowed"),
        (None, TypeError, "stage=None is not allowed"),
    ],
)
def test_other_names_are_refused(run, stage, error, phrase):
    with pytest.raises(error) as caught:
        find_selection(run[0], stage)
    assert phrase in str(caught.value)


def test_ambiguous_and_unfinished_stages(run, client, tmp_path):
    _, emb, _ = run
    store = tmp_path / "run.zarr"
    first, second = dc.compute(
        dc.random_prune(emb, keep_fraction=0.5), dc.random_prune(emb, keep_fraction=0.25), store=store
    )
    with pytest.raises(ValueError, match="names more than one selection of .*: give one of random_prune-"):
        find_selection(store, "random_prune")
    first.store.update(first.name, complete=False)
    with pytest.raises(dc.NotComputedError, match="has not finished"):
        find_selection(store, first.name)
    assert find_selection(store, second.name).total == len(second)
    with pytest.raises(dc.StoreError, match="is not a run store"):
        find_selection(tmp_path / "none.zarr", "x")


class Items:
    """A map-style dataset."""

    def __init__(self, n=N):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return {"i": range(self.n)[index]}


def test_dataset(run):
    store, _, _ = run
    data = loading.SelectedDataset(Items(), store, "given")
    assert len(data) == COUNTS.sum()
    assert [data[i]["i"] for i in range(len(data))] == np.repeat(np.arange(N), COUNTS).tolist()
    assert data[-1]["i"] == np.flatnonzero(COUNTS)[-1]
    with pytest.raises(IndexError):
        data[len(data)]
    once = pickle.loads(pickle.dumps(loading.SelectedDataset(Items(), store, "given", repeats=False)))
    assert [item["i"] for item in once] == np.flatnonzero(COUNTS).tolist()
    with pytest.raises(ValueError, match="dataset has 82 items, and the stage given covers 83 rows"):
        loading.SelectedDataset(Items(N - 1), store, "given")


def test_dataset_in_workers(run):
    torch = pytest.importorskip("torch")
    store, _, _ = run
    data = loading.SelectedDataset(Items(), store, "given")
    for workers, context in ((0, None), (2, "spawn")):
        loader = torch.utils.data.DataLoader(
            data, batch_size=7, num_workers=workers, multiprocessing_context=context
        )
        assert (
            torch.cat([batch["i"] for batch in loader]).tolist() == np.repeat(np.arange(N), COUNTS).tolist()
        )


def test_sampler(run, monkeypatch):
    torch = pytest.importorskip("torch")
    store, _, _ = run
    sampler = loading.weighted_sampler(store, "given", generator=torch.Generator().manual_seed(0))
    assert len(list(sampler)) == COUNTS.sum()
    found = np.bincount(list(loading.weighted_sampler(store, "given", num_samples=20_000)), minlength=N)
    assert not found[COUNTS == 0].any()
    np.testing.assert_allclose(found / 20_000, COUNTS / COUNTS.sum(), atol=0.012)


def test_sampler_of_too_many_rows(run, monkeypatch):
    monkeypatch.setattr(loading, "SAMPLER_ROWS", N - 1)
    with pytest.raises(ValueError, match="83 rows are more than the 82 that torch's"):
        loading.weighted_sampler(run[0], "given")


def test_keys(run):
    store, emb, _ = run
    kept = loading.KeyFilter(store, "given", emb)
    assert [kept.count(key) for key in KEYS] == COUNTS.tolist()
    assert [kept({"__key__": key}) for key in KEYS] == (COUNTS > 0).tolist()
    assert not kept("elsewhere")
    assert kept.exact == {}
    again = pickle.loads(pickle.dumps(loading.KeyFilter(store, "density_prune", emb.path)))
    mask = find_selection(store, "density_prune").counts[:] > 0
    assert [again(key) for key in KEYS] == mask.tolist()
    assert again.counts is None


@pytest.mark.parametrize("values", [1, 5, 40])
def test_keys_of_equal_hashes_are_told_apart(run, monkeypatch, values):
    """Hashes of so few values that most keys share one with others."""
    store, emb, _ = run
    original = loading._hashed
    monkeypatch.setattr(loading, "_hashed", lambda ids: original(ids) % np.uint64(values))
    kept = loading.KeyFilter(store, "given", emb)
    assert [kept.count(key) for key in KEYS] == COUNTS.tolist()
    assert kept.exact


def test_keys_that_are_numbers(client, tmp_path):
    emb = dc.ingest(np.eye(5, dtype="f4"), tmp_path / "p.zarr", ids=[10, 20, 30, 40, 50])
    dc.compute(dc.Selection.from_indices([1, 3, 3], emb), store=tmp_path / "run.zarr")
    kept = loading.KeyFilter(tmp_path / "run.zarr", "given", emb)
    assert [kept.count(key) for key in (10, "20", 30, "40", "50", "040")] == [0, 1, 0, 2, 0, 0]


def test_an_empty_selection(client, tmp_path):
    emb = dc.ingest(np.eye(5, dtype="f4"), tmp_path / "p.zarr", ids=list("abcde"))
    dc.compute(dc.Selection.from_indices([], emb), store=tmp_path / "run.zarr")
    kept = loading.KeyFilter(tmp_path / "run.zarr", "given", emb)
    assert not any(kept(key) for key in "abcde")
    assert len(loading.SelectedDataset(Items(5), tmp_path / "run.zarr", "given")) == 0


def test_keys_need_the_pool_of_the_selection(run, tmp_path):
    store, emb, _ = run
    rows = np.asarray(emb.array)
    plain = dc.ingest(rows, tmp_path / "plain.zarr")
    with pytest.raises(ValueError, match="has no ids, so keys cannot be looked up"):
        loading.KeyFilter(store, "given", plain)
    other = dc.ingest(rows, tmp_path / "other.zarr", ids=KEYS[::-1])
    with pytest.raises(ValueError, match="selects rows of another pool"):
        loading.KeyFilter(store, "given", other)


def test_a_webdataset_stream(run, tmp_path):
    wds = pytest.importorskip("webdataset")
    store, emb, _ = run
    for shard in range(3):
        with wds.TarWriter(str(tmp_path / f"{shard}.tar")) as tar:
            for i in range(shard, N, 3):
                tar.write({"__key__": KEYS[i], "cls": i})
    urls = str(tmp_path / "{0..2}.tar")
    kept = pickle.loads(pickle.dumps(loading.KeyFilter(store, "given", emb)))
    stream = wds.WebDataset(urls, shardshuffle=False).select(kept).decode()
    assert sorted(sample["cls"] for sample in stream) == np.flatnonzero(COUNTS).tolist()
    stream = wds.WebDataset(urls, shardshuffle=False).compose(kept.repeated).decode()
    assert sorted(sample["cls"] for sample in stream) == np.repeat(np.arange(N), COUNTS).tolist()


def test_torch_is_not_imported():
    code = "import sys, daskcurate.loading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
