"""The selected rows as a new pool, against NumPy on the whole array."""

import dask
import numpy as np
import pytest

import daskcurate as dc
from daskcurate.io import subset as subset_module
from daskcurate.stored import find_selection

N = 103


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(emb):
    return dask.compute(emb.array, emb.ids, scheduler="synchronous")


def random_pool(pool, n=N, dtype=np.float32, **settings):
    rng = np.random.default_rng(n)
    rows = rng.standard_normal((n, 5)).astype(dtype)
    return pool(rows, normalize=True, **settings), [f"é{i}" for i in range(n)]


def assert_subset(found, emb, numbers, ids):
    rows, found_ids = read(found)
    np.testing.assert_array_equal(rows, read(emb)[0][numbers])
    assert rows.dtype == emb.dtype == found.dtype
    assert found_ids.tolist() == [ids[number] for number in numbers]
    assert found.normalized == emb.normalized


COUNTS = {
    "some": lambda rng: rng.integers(0, 2, N),
    "repeats": lambda rng: rng.integers(-1, 5, N).clip(0),
    "one": lambda rng: np.eye(N, dtype=int)[50],
    "first": lambda rng: np.eye(N, dtype=int)[0],
    "last": lambda rng: np.eye(N, dtype=int)[-1],
    "all": lambda rng: np.ones(N, int),
    "a run": lambda rng: (np.arange(N) // 20 == 2).astype(int),
    "many of one": lambda rng: 40 * np.eye(N, dtype=int)[7],
}


@pytest.mark.parametrize("case", COUNTS)
@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("chunk_rows", [3, None])
def test_against_numpy(pool, case, repeats, chunk_rows):
    counts = COUNTS[case](np.random.default_rng(1))
    emb, ids = random_pool(pool, dtype=np.float16, ids=[f"é{i}" for i in range(N)], chunk_rows=10)
    selection = dc.Selection.from_indices(np.repeat(np.arange(N), counts), emb)
    found = dc.subset(selection, "kept.zarr", repeats=repeats, chunk_rows=chunk_rows)
    numbers = np.repeat(np.arange(N), counts) if repeats else np.flatnonzero(counts)
    assert_subset(found, emb, numbers, ids)


def test_rows_of_a_pool_without_ids_keep_their_numbers(pool):
    emb, _ = random_pool(pool, chunk_rows=10)
    mask = np.arange(N) % 3 == 1
    found = dc.subset(dc.Selection.from_mask(mask, emb=emb), "kept.zarr")
    assert found.has_ids
    assert_subset(found, emb, np.flatnonzero(mask), range(N))


def test_every_way_to_name_a_selection_gives_the_same_pool(pool, client):
    emb, ids = random_pool(pool, ids=[f"é{i}" for i in range(N)], chunk_rows=10)
    picks = dc.hierarchical_sample(dc.kmeans(emb, 4, n_iters=3), target_size=150, multiplier=3)
    picks = dc.compute(picks, store="run.zarr")
    dc.export(picks, "picks.npy")
    dc.export(picks, "picks.parquet")
    stored = find_selection("run.zarr", "hierarchical_sample")
    names = (picks, "picks.npy", "picks.parquet", stored)
    for repeats in (False, True):
        numbers = picks.indices if repeats else np.unique(picks.indices)
        found = [
            dc.subset(item, f"kept-{i}-{repeats}.zarr", emb=emb, repeats=repeats)
            for i, item in enumerate(names)
        ]
        assert len({item.fingerprint for item in found}) == 1
        assert_subset(found[0], emb, numbers, ids)
    assert len(picks) == 150 > len(np.unique(picks.indices))


def test_the_new_pool_can_be_curated_again(pool, client):
    emb, _ = random_pool(pool, ids=[f"é{i}" for i in range(N)], chunk_rows=10)
    kept = dc.subset(dc.Selection.from_mask(np.arange(N) < 60, emb=emb), "kept.zarr")
    again = dc.compute(dc.hierarchical_sample(dc.kmeans(kept, 3, n_iters=2), target_size=9), store="run.zarr")
    assert_subset(dc.subset(again, "fewer.zarr"), kept, again.indices, [f"é{i}" for i in range(60)])


def test_each_task_reads_the_counts_of_its_own_chunks(pool):
    emb, _ = random_pool(pool, chunk_rows=10)
    counts = subset_module.ArrayRows(np.arange(N) % 2, "counts")
    ends = subset_module._ends(counts, 10, False)
    rows = subset_module.SelectedRows(
        subset_module.PoolReader(emb.rows, emb.path), counts, 10, ends, repeats=False
    )
    part = rows.cut(7, 13)
    assert len(part) == 6
    assert len(part.source.counts) == 20
    np.testing.assert_array_equal(part.read(1, 6), read(emb)[0][np.flatnonzero(np.arange(N) % 2)[8:13]])


def refusals(emb, other):
    mask = np.arange(N) % 2 == 0
    some = dc.Selection.from_mask(mask, emb=emb)
    np.save("floats.npy", np.ones(3))
    np.save("outside.npy", np.array([0, N]))
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    return [
        ((dc.Selection.from_mask(mask & False, emb=emb),), {}, ValueError, "selects no row of"),
        ((some,), {"emb": other}, ValueError, "the selection is one of the pool"),
        ((dc.Selection.from_mask(mask),), {}, ValueError, "does not know its pool: give emb="),
        ((some,), {"repeats": 1}, TypeError, "repeats=1 is not allowed"),
        ((some,), {"overwrite": "yes"}, TypeError, "overwrite='yes' is not allowed"),
        ((some,), {"chunk_rows": 0}, ValueError, "chunk_rows=0 is not allowed"),
        ((mask,), {}, TypeError, "selection of type ndarray is not allowed"),
        (("floats.npy",), {}, ValueError, "needs the pool whose rows it selects: give emb="),
        (("floats.npy",), {"emb": emb}, ValueError, "holds float64 of shape (3,): give row numbers"),
        (("outside.npy",), {"emb": emb}, ValueError, f"holds rows 0 to {N}: those of"),
        (("objects.npy",), {"emb": emb}, TypeError, "holds Python objects"),
        (("nothing.npy",), {"emb": emb}, FileNotFoundError, "there is no file at"),
        (("kept.txt",), {"emb": emb}, ValueError, "allowed are '.npy' and '.parquet'"),
        (("floats.npy",), {"emb": emb.path}, TypeError, "give what daskcurate.open_embeddings returns"),
        ((dc.kmeans(emb, 3),), {}, TypeError, "selection of type"),
        (
            (dc.random_prune(emb, keep_fraction=0.5),),
            {},
            dc.NotComputedError,
            "is lazy and has no result yet",
        ),
    ]


@pytest.mark.parametrize("case", range(16))
def test_refusals_leave_nothing(pool, tmp_path, case):
    emb, _ = random_pool(pool, chunk_rows=10)
    other, _ = random_pool(pool, n=N + 1)
    arguments, options, error, phrase = refusals(emb, other)[case]
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(error) as caught:
        dc.subset(*arguments, "kept.zarr", **options)
    assert phrase in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_dest(pool, tmp_path):
    emb, _ = random_pool(pool, chunk_rows=10)
    some = dc.Selection.from_mask(np.arange(N) % 2 == 0, emb=emb)
    other = dc.Selection.from_mask(np.arange(N) % 2 == 1, emb=emb)
    first = dc.subset(some, "kept.zarr")
    with pytest.raises(FileExistsError, match="kept.zarr exists already"):
        dc.subset(other, "kept.zarr")
    assert dc.open_embeddings("kept.zarr") == first
    assert len(dc.subset(other, "kept.zarr", overwrite=True)) == N // 2
    with pytest.raises(ValueError, match="is the pool that the rows come from"):
        dc.subset(some, emb.path, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not a pool, so overwrite=True does not replace it"):
        dc.subset(some, "file", overwrite=True)
    assert not list(tmp_path.glob("*.partial"))


def test_urls(pool):
    emb, ids = random_pool(pool, ids=[f"é{i}" for i in range(N)], chunk_rows=10)
    some = dc.Selection.from_mask(np.arange(N) % 2 == 0, emb=emb)
    found = dc.subset(some, "memory://subsets/kept.zarr", overwrite=True)
    assert_subset(found, emb, np.arange(0, N, 2), ids)
