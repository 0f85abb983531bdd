"""What an inspection says of a source, and that it writes nothing."""

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daskcurate.io import inspection
from daskcurate.io.ingest import ingest
from daskcurate.io.inspection import QUANTILES, duration, inspect_source


def rows(n=5000, d=16, dtype=np.float32):
    x = np.random.default_rng(0).standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(folder, x):
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for number, part in enumerate(np.array_split(x, 3)):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", part)
        keys = [f"{number}-{i}" for i in range(len(part))]
        pq.write_table(pa.table({"image_path": keys}), folder / "metadata" / f"metadata_{number}.parquet")


def test_what_is_said_is_what_is_ingested(tmp_path):
    x = rows(dtype=np.float16)
    write(tmp_path / "laion", x)
    before = sorted(tmp_path.rglob("*"))
    found = inspect_source("laion")
    assert sorted(tmp_path.rglob("*")) == before
    emb = ingest("laion", "pool.zarr")
    assert (found.format, found.n_files, found.dtype) == ("clip-retrieval", 3, "float16")
    assert (found.rows, found.dim) == (len(emb), emb.dim)
    assert (found.stored, found.nbytes, found.n_chunks) == (str(emb.dtype), emb.nbytes, emb.n_chunks)
    assert found.treatment == "unit length up to the rounding of float16: normalised again"
    assert "text of" in found.ids
    assert "such as '0-0'" in found.ids
    assert found.seconds > 0
    lines = dict(found.as_rows())
    assert lines["format"] == "clip-retrieval, 3 files"
    assert lines["rows"] == "5,000"
    assert lines["time"].startswith("about ")
    assert "GB/s" in lines["time"]


@pytest.mark.parametrize("kind", ["array", "dask", "npy", "parquet", "row groups"])
def test_norms_are_those_of_rows_that_are_read_once(monkeypatch, kind):
    x = rows() * np.linspace(1, 9, 5000, dtype=np.float32)[:, None]
    source = x
    if kind == "dask":
        source = da.from_array(x, chunks=700)
    elif kind == "npy":
        source = "x.npy"
        np.save(source, x)
    elif kind != "array":
        source = "x.parquet"
        groups = 5000 if kind == "parquet" else 300
        pq.write_table(pa.table({"e": list(x)}), source, row_group_size=groups)
    monkeypatch.setattr(inspection, "SAMPLE_ROWS", 200)
    found = inspect_source(source, chunk_rows=1000)
    assert 1000 <= found.sampled <= 2600
    whole = np.linalg.norm(x, axis=1)
    assert whole.min() <= found.norms[0] <= found.norms[-1] <= whole.max() * (1 + 1e-6)
    assert list(found.norms) == sorted(found.norms)
    if kind in ("array", "dask", "npy", "row groups"):
        np.testing.assert_allclose(found.norms[len(QUANTILES) // 2], 5, atol=0.5)
    assert found.treatment == "not of unit length: left as they are; normalize=True changes that"
    full = inspect_source(source, chunk_rows=5000)
    assert full.sampled == 5000
    np.testing.assert_allclose(full.norms, np.quantile(whole.astype(float), QUANTILES), rtol=1e-6)


@pytest.mark.parametrize(
    ("normalize", "scale", "expected"),
    [
        (True, 3, "every row is divided by its norm"),
        (False, 3, "not of unit length: left as they are"),
        (False, 1, "unit length: left as they are"),
        (None, 1, "unit length: left as they are"),
    ],
)
def test_treatment(normalize, scale, expected):
    found = inspect_source(scale * rows(50), normalize=normalize, dtype="float16")
    assert found.treatment == expected
    assert found.ids == "row numbers"
    assert found.stored == "float16"
    assert found.threads == 1  # rows in memory are written by this process


def test_integer_and_byte_ids():
    x = rows(20)
    assert "integers of ids, such as '7'" in inspect_source(x, ids=np.arange(7, 27)).ids
    np.arange(20).astype("S4").tofile("ids.dat")
    assert "ids.dat, such as '0'" in inspect_source(x, ids="ids.dat", ids_dtype="S4").ids


def test_refusals_are_those_of_ingest():
    x = rows(20)
    x[13] = np.nan
    with pytest.raises(ValueError, match="the array: row 13 holds NaN"):
        inspect_source(x)
    with pytest.raises(FileNotFoundError, match="there is no file or folder at"):
        inspect_source("nothing.npy")
    with pytest.raises(ValueError, match="format='npyy' is not allowed"):
        inspect_source(x, format="npyy")
    with pytest.raises(ValueError, match="has 19 ids, but the array has 20 rows"):
        inspect_source(rows(20), ids=np.arange(19))


def test_durations():
    said = [duration(seconds) for seconds in (0, 0.44, 12.3, 99, 300, 5999, 3.5 * 3600, 1e6)]
    assert said == ["0.1 s", "0.4 s", "12 s", "99 s", "5 min", "100 min", "3.5 h", "277.8 h"]
