import json
import os
import pickle
import shutil

import dask
import numpy as np
import pytest
import zarr
from dask.base import tokenize

from daskcurate.embeddings import Embeddings, PoolRows, open_embeddings
from daskcurate.io.ingest import ingest

X = np.eye(5, dtype=np.float32)[np.arange(53) % 5] * np.float32(1)
X[:, 0] += np.arange(53)
X /= np.linalg.norm(X, axis=1, keepdims=True)
IDS = [f"id{i}" for i in range(53)]


@pytest.fixture
def emb(tmp_path):
    return ingest(X, tmp_path / "pool.zarr", ids=IDS, chunk_rows=10)


def test_facts(emb, tmp_path):
    assert emb.path == str(tmp_path / "pool.zarr")
    assert (len(emb), emb.dim, emb.n_chunks, emb.chunk_rows) == (53, 5, 6, 10)
    assert emb.array.chunks == ((10,) * 5 + (3,), (5,))
    assert emb.ids.chunks == ((10,) * 5 + (3,),)
    assert emb.array.dtype == np.float32
    assert emb.source == "the array"
    assert repr(emb).startswith(
        f"Embeddings('{tmp_path}/pool.zarr': 53 rows x 5 float32, unit length, with ids"
    )


def test_pickles_hold_no_data(emb):
    assert len(pickle.dumps(emb)) < 600
    assert pickle.loads(pickle.dumps(emb)) == emb
    assert tokenize(pickle.loads(pickle.dumps(emb))) == tokenize(emb)
    array, ids = pickle.loads(pickle.dumps((emb.array, emb.ids)))
    np.testing.assert_array_equal(array.compute(scheduler="synchronous"), X)
    assert ids.compute(scheduler="synchronous").tolist() == IDS


def test_making_arrays_computes_nothing(emb):
    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        assert emb.array.name == open_embeddings(emb.path).array.name
        assert emb.ids.shape == (53,)


KEYS = [
    np.s_[:],
    np.s_[7:31],
    np.s_[10:20],
    np.s_[5:5],
    np.s_[::7],
    np.s_[::-1],
    np.s_[40:3:-9, 1:3],
    np.s_[-1],
    np.s_[12, 2],
    np.s_[:, ::2],
    np.s_[[3, 52, 9]],
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_slices(emb, key):
    np.testing.assert_array_equal(emb.array[key].compute(scheduler="synchronous"), X[key])


@pytest.mark.parametrize("key", KEYS[:-1], ids=str)
def test_slices_of_the_reader(emb, key):
    rows = PoolRows(emb.path, emb.shape, emb.dtype, emb.chunk_rows)
    np.testing.assert_array_equal(rows[key], X[key])


def test_any_zarr_reader_opens_it(emb):
    group = zarr.open_group(emb.path, mode="r")
    np.testing.assert_array_equal(group["embeddings"][:], X)
    assert group["ids"][:].tolist() == IDS
    assert group["embeddings"].compressors == ()
    assert group.attrs["daskcurate"] == {
        "format": "pool",
        "version": 1,
        "complete": True,
        "normalized": True,
        "fingerprint": emb.fingerprint,
        "source": "the array",
    }


def test_a_lost_chunk_is_an_error(emb):
    chunk = os.path.join(emb.path, "embeddings", "c", "2", "0")
    os.truncate(chunk, 100)
    with pytest.raises(ValueError, match=r"c/2/0 is cut short: the pool .* is damaged"):
        emb.array.compute(scheduler="synchronous")
    os.remove(chunk)
    with pytest.raises(FileNotFoundError):
        emb.array.compute(scheduler="synchronous")


def edit(**changes):
    def apply(path):
        group = zarr.open_group(path, mode="r+")
        group.attrs["daskcurate"] = {**group.attrs["daskcurate"], **changes}

    return apply


def replace_array(name, shape, **options):
    def apply(path):
        group = zarr.open_group(path, mode="r+")
        options.setdefault("dtype", "f4")
        group.create_array(name, shape=shape, overwrite=True, **options)

    return apply


def remake(maker):
    def apply(path):
        shutil.rmtree(path)
        maker(path)

    return apply


DAMAGES = {
    "incomplete": (edit(complete=False), "the remains of an ingestion that did not finish"),
    "version": (edit(version=2), "a pool of version 2, and this release reads 1"),
    "format": (edit(format="run"), r"a zarr group of another kind \(it holds embeddings, ids\)"),
    "no rows": (lambda path: shutil.rmtree(path / "embeddings"), "damaged pool: its array 'embeddings'"),
    "flat rows": (replace_array("embeddings", (53,)), "damaged pool: its array 'embeddings'"),
    "columns": (
        replace_array("embeddings", (53, 5), chunks=(10, 2), compressors=None),
        "plain chunks of whole rows",
    ),
    "compressed": (replace_array("embeddings", (53, 5), chunks=(10, 5)), "plain chunks of whole rows"),
    "ids": (replace_array("ids", (52,), dtype="i8"), "damaged pool: its array 'ids'"),
    "file": (remake(lambda path: path.write_text("")), "not a pool but a file"),
    "folder": (remake(lambda path: path.mkdir()), "a folder that is not a zarr store"),
    "array": (remake(lambda path: zarr.create_array(path, shape=(3, 3), dtype="f4")), "a single zarr array"),
    "group": (remake(lambda path: zarr.create_group(path)), r"of another kind \(it holds nothing\)"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_other_things_are_refused(emb, tmp_path, case):
    damage, phrase = DAMAGES[case]
    damage(tmp_path / "pool.zarr")
    with pytest.raises(ValueError, match=phrase) as caught:
        open_embeddings(emb.path)
    assert "daskcurate.ingest" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "error", "phrase"),
    [
        (
            "/nope/pool.zarr",
            FileNotFoundError,
            "there is no pool at /nope/pool.zarr: make one with daskcurate.ingest",
        ),
        ("", ValueError, "path='' is not allowed"),
        (None, TypeError, "path=None is not allowed: give a path"),
        (b"pool", TypeError, "is not allowed"),
    ],
)
def test_bad_paths(path, error, phrase):
    with pytest.raises(error, match=phrase):
        open_embeddings(path)


def test_relative_and_user_paths(emb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (
        "pool.zarr",
        "./pool.zarr/",
        "~/pool.zarr",
        f"file://{tmp_path}/pool.zarr",
        tmp_path / "pool.zarr",
    ):
        assert open_embeddings(path) == emb


def test_it_is_frozen(emb):
    with pytest.raises(AttributeError):
        emb.path = "elsewhere"
    assert isinstance(emb, Embeddings)
    with open(os.path.join(emb.path, "zarr.json")) as file:
        assert json.load(file)["zarr_format"] == 3
