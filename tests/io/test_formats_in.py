"""Every layout that users hold, written as its makers write it: told apart, aligned with its ids, refused."""

import gzip
import json
import pickle
import shutil
import tarfile
from io import BytesIO

import dask
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zarr

from daskcurate.embeddings import open_embeddings
from daskcurate.io import chunkwise, parquet, pool, tars
from daskcurate.io.ingest import ingest
from daskcurate.io.resolve import Options, open_source

N, D = 57, 6
SIZES = [5, 12, 0, 9, 1, 7, 3, 6, 4, 2, 8]  # eleven files: 10 sorts before 2 as text


def unit_rows(n=N, d=D, dtype=np.float32, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)


def pieces(x):
    return np.split(x, np.cumsum(SIZES)[:-1])


def uid(i):
    return f"{i * 2654435761 % 2**64:016x}{(i * 40503 + 2**63) % 2**64:016x}"


@pytest.fixture
def x():
    return unit_rows()


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(emb):
    return dask.compute(emb.array, emb.ids, scheduler="synchronous")


def assert_read(source, rows, wanted, **options):
    """Ingest in chunks that fit no file, and compare every bit."""
    options = {"normalize": False, "chunk_rows": 10, "overwrite": True} | options
    emb = ingest(source, "pool.zarr", **options)
    found_rows, found_ids = read(emb)
    np.testing.assert_array_equal(found_rows, rows)
    assert found_ids.tolist() == list(wanted)
    assert_cut(source, rows, options)
    return emb


def assert_cut(source, rows, options):
    """Read what a task on another machine gets, in several goes."""
    known = {key: options[key] for key in ("format", "column", "shape", "source_dtype") if key in options}
    reader = open_source(source, Options(**known)).rows
    if not reader.in_process and len(reader) > 17:
        part = pickle.loads(pickle.dumps(reader.cut(7, 17)))
        np.testing.assert_array_equal(part.read(1, 9), rows[8:16])
        for block, (start, stop) in zip(part.stream([(0, 4), (6, 10)]), [(7, 11), (13, 17)], strict=True):
            np.testing.assert_array_equal(block, rows[start:stop])


def opened(source, **options):
    return open_source(source, Options(**options))


KEYS = [f"{i:09d}" for i in range(N)]


def write_clip(folder, x, kind="img_emb", *, flat=False, keys="image_path"):
    first = 0
    for number, part in enumerate(pieces(x)):
        sub = folder if flat else folder / kind
        meta = folder if flat else folder / "metadata"
        sub.mkdir(parents=True, exist_ok=True)
        meta.mkdir(parents=True, exist_ok=True)
        np.save(sub / f"{kind}_{number}.npy", part)
        rows = range(first, first + len(part))
        columns = {keys: [KEYS[i] for i in rows], "caption": ["a cat"] * len(part), "n": list(rows)}
        pq.write_table(pa.table(columns), meta / f"metadata_{number}.parquet")
        first += len(part)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("keys", ["image_path", "key"])
def test_clip_retrieval(tmp_path, flat, keys):
    x = unit_rows(dtype=np.float16)
    write_clip(tmp_path / "laion", x, flat=flat, keys=keys)
    assert opened("laion").format == "clip-retrieval"
    assert_read("laion", x, KEYS)
    assert_read("laion", x, KEYS, format="clip-retrieval", column="img_emb")
    assert_read("laion", x, range(N), ids="n")
    assert_read("laion", x, range(N), ids=False)
    assert not ingest("laion", "none.zarr", ids=False, normalize=False).has_ids


def test_clip_retrieval_with_two_kinds_of_embeddings(tmp_path, x):
    write_clip(tmp_path / "laion", x)
    write_clip(tmp_path / "laion", -x, "text_emb")
    assert_read("laion", x, KEYS)
    assert_read("laion", -x, KEYS, column="text_emb")
    with pytest.raises(ValueError, match="column='audio' is not in .*: give one of 'img_emb', 'text_emb'"):
        ingest("laion", "other.zarr", column="audio")


def test_clip_retrieval_misaligned(tmp_path, x):
    write_clip(tmp_path / "laion", x)
    bad = tmp_path / "laion" / "metadata" / "metadata_3.parquet"
    table = pq.read_table(bad)
    pq.write_table(table.slice(1), bad)
    with pytest.raises(ValueError, match="metadata_3.parquet has 8 rows, but .*img_emb_3.npy has 9"):
        ingest("laion", "pool.zarr")
    last = tmp_path / "laion" / "metadata" / "metadata_10.parquet"  # the same sum again
    pq.write_table(pa.concat_tables([pq.read_table(last), table.slice(0, 1)]), last)
    with pytest.raises(ValueError, match="metadata_3.parquet has 8 rows, but .*img_emb_3.npy has 9"):
        ingest("laion", "pool.zarr")
    bad.unlink()
    with pytest.raises(FileNotFoundError, match="img_emb_3.npy has no metadata file of the same number"):
        ingest("laion", "pool.zarr")
    pq.write_table(table, bad)
    (tmp_path / "laion" / "img_emb" / "img_emb_4.npy").unlink()
    with pytest.raises(FileNotFoundError, match="metadata_4.parquet has no img_emb file of the same number"):
        ingest("laion", "pool.zarr")
    assert not (tmp_path / "pool.zarr").exists()


def test_the_same_number_of_rows_in_all_names_the_first_pair_that_differs(tmp_path, x):
    write_clip(tmp_path / "laion", x)
    pq.write_table(pa.table({"k": KEYS[:3]}), tmp_path / "laion" / "metadata" / "metadata_5.parquet")
    phrase = (
        "has 53 ids, but .* has 57 rows: give one id a row: .*metadata_5.parquet has 3, and .*img_emb_5.npy 7"
    )
    for number in range(11):
        path = tmp_path / "laion" / "metadata" / f"metadata_{number}.parquet"
        pq.write_table(pq.read_table(path).rename_columns(["k", *pq.read_table(path).column_names[1:]]), path)
    with pytest.raises(ValueError, match=phrase):
        ingest("laion/img_emb", "pool.zarr", ids="laion/metadata")


def write_datacomp(folder, x, save=np.savez):
    folder.mkdir()
    first = 0
    for number, part in enumerate(pieces(x)):
        arrays = {"l14_img": part, "b32_img": part[:, :2], "dedup": np.zeros(len(part), bool)}
        save(folder / f"{number:08d}.npz", **arrays)
        table = pa.table({"text": ["t"] * len(part), "uid": [uid(first + i) for i in range(len(part))]})
        pq.write_table(table, folder / f"{number:08d}.parquet")
        first += len(part)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_datacomp(tmp_path, save):
    x = unit_rows(dtype=np.float16)
    write_datacomp(tmp_path / "metadata", x, save)
    found = opened("metadata", column="l14_img")
    assert found.format == "datacomp"
    uids = [uid(i) for i in range(N)]
    assert_read("metadata", x, uids, column="l14_img")
    assert_read("metadata", x, uids, column="l14_img", format="datacomp")
    assert_read(sorted(map(str, tmp_path.glob("metadata/*.npz"))), x, uids, column="l14_img")
    assert_read("metadata", x, range(N), column="l14_img", format="npz")
    with pytest.raises(
        ValueError, match="has several 2-D arrays of floats \\('l14_img', 'b32_img'\\): give col"
    ):
        ingest("metadata", "other.zarr")
    with pytest.raises(ValueError, match="column='l14' is not an array of 00000000.npz; its arrays are"):
        ingest("metadata", "other.zarr", column="l14")
    table = pq.read_table("metadata/00000005.parquet")
    pq.write_table(table.slice(2), "metadata/00000005.parquet")
    with pytest.raises(ValueError, match="00000005.parquet has 5 rows, but .*00000005.npz has 7"):
        ingest("metadata", "other.zarr", column="l14_img")
    (tmp_path / "metadata" / "00000005.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="00000005.npz has no metadata"):
        ingest("metadata", "other.zarr", column="l14_img")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, x, save):
    for number, part in enumerate(pieces(x)):
        save(f"part_{number}.npz", emb=part, labels=np.arange(len(part)))
    assert opened("part_*.npz").format == "npz"
    assert_read("part_*.npz", x, range(N))
    save("objects.npz", emb=x.astype(object))
    with pytest.raises(TypeError, match="holds Python objects"):
        ingest("objects.npz", "other.zarr", column="emb")
    save("fortran.npz", emb=np.asfortranarray(x))
    with pytest.raises(ValueError, match="Fortran order: save it in C order"):
        ingest("fortran.npz", "other.zarr")
    save("flat.npz", emb=x[0], i=np.arange(3))
    with pytest.raises(
        ValueError, match="flat.npz has no 2-D array of floats; its arrays are 'emb' \\(6,\\)"
    ):
        ingest("flat.npz", "other.zarr")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(ValueError, match="bad.npz is not a .npz file"):
        ingest("bad.npz", "other.zarr")


def test_large_npz_is_inflated_once_by_one_task(tmp_path, monkeypatch):
    from daskcurate.io import npz

    x = unit_rows(500, 4)
    np.savez_compressed("x.npz", emb=x)
    monkeypatch.setattr(npz, "BATCH_BYTES", 100)
    monkeypatch.setitem(globals(), "assert_cut", lambda *_: None)
    starts, original = [], npz.DeflatedRows._batches
    monkeypatch.setattr(npz.DeflatedRows, "_batches", lambda self: starts.append(1) or original(self))
    assert_read("x.npz", x, range(500), chunk_rows=20)
    assert len(starts) == 2  # the first chunk (row 20 is within a chunk of it), then all others
    starts.clear()


@pytest.mark.parametrize("length", [-1, D])
def test_hugging_face(tmp_path, x, length):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"key": datasets.Value("string"), "emb": datasets.Sequence(datasets.Value("float32"), length=length)}
    )
    data = datasets.Dataset.from_dict({"key": KEYS, "emb": x.tolist()}, features=features)
    data.save_to_disk("saved", num_shards=3)
    assert opened("saved").format == "arrow"
    assert len(opened("saved").urls) == 3
    assert_read("saved", x, range(N))
    assert_read("saved", x, KEYS, ids="key")
    assert_read(data, x, KEYS, ids="key", format="arrow")
    assert_read(datasets.load_from_disk("saved"), x, KEYS, ids="key", column="emb")
    shuffled = data.shuffle(seed=1)
    with pytest.raises(ValueError, match="call its flatten_indices"):
        ingest(shuffled, "other.zarr")
    shuffled = shuffled.flatten_indices()
    assert_read(shuffled, np.asarray(shuffled["emb"], np.float32), shuffled["key"], ids="key")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk("dict")
    with pytest.raises(
        ValueError, match="is a saved DatasetDict of the splits 'train', 'test': give one split"
    ):
        ingest("dict", "other.zarr")
    (tmp_path / "saved" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(FileNotFoundError, match="lacks data-00001-of-00003.arrow"):
        ingest("saved", "other.zarr")


@pytest.mark.parametrize(
    ("state", "phrase"),
    [
        ({"_data_files": []}, "is a saved Dataset without any file of rows"),
        (
            {"_data_files": [{"filename": "x.arrow"}], "_indices_data_files": [{}]},
            "save it after flatten_ind",
        ),
        ({"something": "else"}, "has no file of a known format \\(it holds state.json\\)"),
    ],
)
def test_odd_saved_datasets(tmp_path, state, phrase):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=phrase):
        ingest("saved", "pool.zarr")


def list_array(x, fixed):
    if fixed:
        return pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    return pa.array(list(x), pa.list_(pa.from_numpy_dtype(x.dtype)))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kind", ["file", "stream", "feather", "compressed", "dictionary"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_arrow(tmp_path, fixed, kind, dtype):
    x = unit_rows(dtype=dtype)
    keys = pa.array(KEYS)
    table = pa.table({"key": keys, "n": np.arange(N), "emb": list_array(x, fixed)})
    if kind in ("feather", "compressed"):
        name = "x.feather"
        pyarrow.feather.write_feather(
            table, name, chunksize=13, compression="zstd" if kind == "compressed" else "uncompressed"
        )
    else:
        name = "x.arrow"
        if kind == "dictionary":
            table = table.set_column(0, "key", keys.dictionary_encode())
        make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with make(name, table.schema) as writer:
            writer.write_table(table, max_chunksize=13)
    assert opened(name).format == "arrow"
    assert_read(name, x, KEYS, ids="key")
    assert_read(name, x, range(N), ids="n", format="arrow", column="emb")
    assert_read([name, name], np.r_[x, x], range(2 * N))
    assert_read(table, x, KEYS, ids="key")
    ingest(name, "memory://arrow/p.zarr", normalize=False, overwrite=True)
    with pytest.raises(ValueError, match="column='nope' is not in x\\."):
        ingest(name, "other.zarr", column="nope")


def test_arrow_at_a_url(tmp_path, x):
    import fsspec

    table = pa.table({"key": KEYS, "emb": list_array(x, False)})
    for make, name in ((pa.ipc.new_file, "file"), (pa.ipc.new_stream, "stream")):
        with fsspec.open(f"memory://arrow/{name}.arrow", "wb") as file, make(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=13)
        with dask.config.set(num_workers=1):  # fsspec's files in memory have one position for all readers
            assert_read(f"memory://arrow/{name}.arrow", x, KEYS, ids="key")


def test_arrow_rows_are_refused(tmp_path, x):
    lists = [row.tolist() for row in x]
    lists[31] = lists[31][:2]
    lists[40] = None
    pa.feather.write_feather(pa.table({"emb": lists}), "bad.feather", chunksize=13)
    with pytest.raises(ValueError, match="bad.feather: row 31 has width 2, but the rows before it 6"):
        ingest("bad.feather", "pool.zarr", chunk_rows=7, normalize=False)
    with pytest.raises(ValueError, match="the table: row 31 has width 2"):
        ingest(pa.table({"emb": lists}), "pool.zarr", chunk_rows=7, normalize=False)
    lists[31] = lists[30]
    pa.feather.write_feather(pa.table({"emb": lists}), "bad.feather", chunksize=13)
    with pytest.raises(ValueError, match="bad.feather: row 40 is null in column 'emb'"):
        ingest("bad.feather", "pool.zarr", chunk_rows=7, normalize=False)
    (tmp_path / "cut.arrow").write_bytes((tmp_path / "bad.feather").read_bytes()[:200])
    with pytest.raises(ValueError, match="cut.arrow is not an Arrow file or stream"):
        ingest("cut.arrow", "pool.zarr")


def npy_bytes(row):
    file = BytesIO()
    np.save(file, row)
    return file.getvalue()


def write_tar(name, members, mode="w"):
    with tarfile.open(name, mode) as tar:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))


def write_shards(folder, x, *, field="npy", mode="w", suffix=".tar", shape=(-1,)):
    folder.mkdir(exist_ok=True)
    first = 0
    for number, part in enumerate(pieces(x)):
        if not len(part):
            continue
        members = []
        for i, row in enumerate(part, first):
            members += [
                (f"{KEYS[i]}.jpg", b"jpeg"),
                (f"{KEYS[i]}.{field}", npy_bytes(row.reshape(shape))),
                (f"{KEYS[i]}.json", json.dumps({"i": i}).encode()),
            ]
        write_tar(folder / f"{number}{suffix}", members, mode)
        first += len(part)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
@pytest.mark.parametrize("shape", [(-1,), (1, -1)])
def test_webdataset(tmp_path, suffix, shape):
    x = unit_rows(dtype=np.float16)
    mode = "w" if suffix == ".tar" else "w:gz"
    write_shards(tmp_path / "shards", x, mode=mode, suffix=suffix, shape=shape)
    assert opened("shards").format == "webdataset"
    assert_read("shards", x, KEYS)
    assert_read(f"shards/*{suffix}", x, KEYS, format="webdataset", column="npy")
    assert_read("shards", x, range(N), ids=False)


def test_webdataset_as_its_own_library_reads_it(tmp_path, x):
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter("shard-000.tar") as writer:
        for i, row in enumerate(x):
            names = {"emb.npy": row, "text.npy": -row, "cls": i}
            writer.write({"__key__": f"a.b/c/{KEYS[i]}"} | names)
    (tmp_path / "dots").mkdir()
    names = ["./one.npy", "two.x.npy", "deep/er/three.npy", "deep/.hidden.npy", "UP.NPY"]
    write_tar("dots/0.tar", [(name, npy_bytes(x[i])) for i, name in enumerate(names)])
    samples = list(wds.WebDataset("shard-000.tar", shardshuffle=False).decode())
    assert_read(
        "shard-000.tar", [s["emb.npy"] for s in samples], [s["__key__"] for s in samples], column="emb.npy"
    )
    assert_read("shard-000.tar", -x, [s["__key__"] for s in samples], column="text.npy")
    with pytest.raises(ValueError, match="several kinds of .npy files \\('emb.npy', 'text.npy'\\)"):
        ingest("shard-000.tar", "other.zarr")
    samples = [s for s in wds.WebDataset("dots/0.tar", shardshuffle=False).decode() if "npy" in s]
    keys = [s["__key__"] for s in samples]
    assert keys == ["./one", "deep/er/three", "UP"]
    assert_read("dots/0.tar", [s["npy"] for s in samples], keys, column="npy")


def test_long_tars_are_read_from_marks(tmp_path, monkeypatch):
    x = unit_rows(100, 4)
    long = "k" * 150  # names that need a header of their own
    write_tar("x.tar", [(f"{long}{i}.npy", npy_bytes(row)) for i, row in enumerate(x)])
    monkeypatch.setattr(tars, "STRIDE", 8)
    monkeypatch.setitem(globals(), "assert_cut", lambda *_: None)
    starts, original = [], tars._members
    monkeypatch.setattr(
        tars, "_members", lambda url, offset=0: starts.append(offset) or original(url, offset)
    )
    assert_read("x.tar", x, [f"{long}{i}" for i in range(100)], chunk_rows=20)
    assert len(set(starts)) == 5  # the chunks start at rows 0, 16, 40, 56 and 80
    with gzip.open("x.tar.gz", "wb") as file:
        file.write((tmp_path / "x.tar").read_bytes())
    starts.clear()
    assert_read("x.tar.gz", x, range(100), chunk_rows=20, ids=False)
    assert starts == [0] * 4  # the field, the scan, the first chunk, and all others in one task


@pytest.mark.parametrize(
    ("members", "phrase"),
    [
        ([("a.jpg", b"x")], "holds no .npy files; it holds files of 'jpg'"),
        ([], "holds no .npy files; it holds files of none"),
        ([("a.npy", b"junk")], "is not a .npy file"),
        ([("a.npy", npy_bytes(np.eye(3)))], "holds arrays of shape \\(3, 3\\): give one vector a file"),
        ([("a.npy", npy_bytes(np.ones(3))), ("b.npy", npy_bytes(np.ones(4)))], "row 1 \\(b.npy\\) has shape"),
        (
            [("a.npy", npy_bytes(np.ones(3))), ("b.npy", npy_bytes(np.ones(3, "f4")))],
            "row 1 \\(b.npy\\) holds",
        ),
        (
            [("a.npy", npy_bytes(np.ones(3))), ("b.npy", npy_bytes(np.ones(3))[:-1])],
            "row 1 \\(b.npy\\) is cut",
        ),
        ([("a.npy", npy_bytes(np.ones(3))), ("b.npy", b"")], "row 1 cannot be used: b.npy is not a .npy"),
        ([("a.npy", npy_bytes(np.ones(3))), ("a.npy", npy_bytes(np.ones(3)))], "but 'a' does: .*ids=False"),
    ],
)
def test_bad_tars(tmp_path, members, phrase):
    write_tar("x.tar", members)
    with pytest.raises(ValueError, match=phrase):
        ingest("x.tar", "pool.zarr", normalize=False)
    assert not (tmp_path / "pool.zarr").exists()


def test_pickles_in_tars_are_never_loaded(tmp_path):
    file = BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    write_tar("x.tar", [("a.npy", file.getvalue())])
    with pytest.raises(TypeError, match="holds Python objects"):
        ingest("x.tar", "pool.zarr")


def test_a_tar_cut_short(tmp_path, x):
    write_shards(tmp_path / "shards", x)
    data = (tmp_path / "shards" / "1.tar").read_bytes()
    (tmp_path / "shards" / "1.tar").write_bytes(data[: 3 * 512 + 100])
    with pytest.raises(ValueError, match="1.tar"):
        ingest("shards", "pool.zarr")


def test_img2dataset_shards_beside_their_metadata(tmp_path, x):
    write_shards(tmp_path / "shards", x)
    for path in list((tmp_path / "shards").glob("*.tar")):
        pq.write_table(pa.table({"url": ["u"]}), path.with_suffix(".parquet"))
    assert_read("shards", x, KEYS)


def write_anndata(path, x, zarr_format, *, names=("X_emb",), index="_index"):
    group = zarr.create_group(path, zarr_format=zarr_format)
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    obs = group.create_group("obs")
    obs.attrs.update({"encoding-type": "dataframe", "_index": index, "column-order": ["batch"]})
    obs.create_array(index, shape=(N,), dtype=str, chunks=(20,))[:] = np.array(KEYS, np.dtypes.StringDType())
    obs.create_array("batch", data=np.arange(N) + 1000)
    group.create_group("obsm")
    for sign, name in enumerate(names):
        group["obsm"].create_array(name, shape=x.shape, dtype=x.dtype, chunks=(20, 4))[:] = (-1) ** sign * x
    group.create_array("X", data=np.full(x.shape, 3, "f4"))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_anndata(x, zarr_format):
    write_anndata("cells.zarr", x, zarr_format, index="cell")
    assert opened("cells.zarr").format == "anndata"
    assert_read("cells.zarr", x, KEYS)
    assert_read("cells.zarr", x, KEYS, column="X_emb", format="anndata")
    assert_read("cells.zarr", x, range(1000, 1000 + N), column="obsm/X_emb", ids="batch")
    assert_read("cells.zarr", np.full(x.shape, 3, "f4"), KEYS, column="X")
    assert_read("cells.zarr", x, range(N), format="zarr", column="obsm/X_emb")
    write_anndata("two.zarr", x, zarr_format, names=("X_pca", "X_emb"))
    with pytest.raises(ValueError, match="several 2-D arrays of floats \\('X_emb', 'X_pca'\\): give column="):
        ingest("two.zarr", "other.zarr")
    with pytest.raises(
        ValueError, match="column='X_umap' is not an array of .*; those of its obsm are 'X_emb'"
    ):
        ingest("two.zarr", "other.zarr", column="X_umap")
    assert_read("two.zarr", -x, KEYS, column="X_emb")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_arrays(x, zarr_format):
    made = zarr.create_array("x.zarr", shape=x.shape, chunks=(11, 4), dtype="f4", zarr_format=zarr_format)
    made[:] = x
    assert_read("x.zarr", x, range(N), format="zarr")
    assert_read(["x.zarr", "x.zarr"], np.r_[x, x], range(2 * N))


@pytest.mark.parametrize("kind", ["S24", "U12", "int64"])
@pytest.mark.parametrize("name", ["emb.dat", "emb.npy", "emb"])
def test_semdedup_memmaps(tmp_path, x, kind, name):
    """Headerless, whatever their names say, with headerless ids of a fixed width."""
    x.tofile(name)
    ids = np.array([int(key) for key in KEYS] if kind == "int64" else KEYS).astype(kind)
    ids.tofile("paths.npy")
    memmap = {"shape": (N, D), "source_dtype": "float32"}
    assert opened(name, **memmap).format == "memmap"
    expected = ids.tolist() if kind != "S24" else KEYS
    assert_read(name, x, expected, ids="paths.npy", ids_dtype=kind, **memmap)
    ids[:-1].tofile("short.npy")
    with pytest.raises(ValueError, match="short.npy has 56 ids, but .* has 57 rows"):
        ingest(name, "other.zarr", ids="short.npy", ids_dtype=kind, **memmap)
    (tmp_path / "short.npy").write_bytes(b"abc")
    with pytest.raises(ValueError, match="short.npy has 3 bytes, which is no multiple of the"):
        ingest(name, "other.zarr", ids="short.npy", ids_dtype=kind, **memmap)


def test_several_memmaps(tmp_path, x):
    (tmp_path / "parts").mkdir()
    for number, part in enumerate(pieces(x)):
        part.tofile(f"parts/emb_{number}")
    assert_read("parts/emb_*", x, range(N), shape=(-1, D), source_dtype="float32")
    assert_read("parts", x, range(N), shape=(-1, D), source_dtype="float32", format="memmap")
    with pytest.raises(
        ValueError, match="describes one headerless file: give shape=\\(-1, width\\) for several"
    ):
        ingest("parts/emb_*", "other.zarr", shape=(N, D), source_dtype="float32")


def test_several_folders_and_patterns_at_once(tmp_path, x):
    write_clip(tmp_path / "part_0", x[:N])
    write_clip(tmp_path / "part_1", -x)
    for path in (tmp_path / "part_1" / "metadata").iterdir():
        table = pq.read_table(path)
        other = pa.array([f"b{key}" for key in table["image_path"].to_pylist()], pa.string())
        pq.write_table(table.set_column(0, "image_path", other), path)
    both = np.r_[x, -x]
    assert_read(["part_0", "part_1"], both, [*KEYS, *(f"b{key}" for key in KEYS)])
    assert_read(["part_0/img_emb/*.npy", "part_1/img_emb/*.npy"], both, range(2 * N))
    assert_read(["part_0/img_emb", "part_1/img_emb/*.npy"], both, range(2 * N))
    with pytest.raises(ValueError, match="sources of several formats \\(clip-retrieval, npy\\): give one"):
        ingest(["part_0", "part_1/img_emb"], "other.zarr")
    with pytest.raises(ValueError, match="but '000000000' does"):
        ingest(["part_0", "part_0"], "other.zarr")


def test_urls(tmp_path, x):
    import fsspec

    fs = fsspec.filesystem("memory")
    write_clip(tmp_path / "laion", x)
    write_datacomp(tmp_path / "datacomp", x)
    write_shards(tmp_path / "shards", x)
    for name in ("laion", "datacomp", "shards"):
        fs.put(str(tmp_path / name), f"/formats/{name}", recursive=True)
        shutil.rmtree(tmp_path / name)
    try:
        assert_read("memory://formats/laion", x, KEYS)
        assert_read("memory://formats/datacomp", x, [uid(i) for i in range(N)], column="l14_img")
        assert_read("memory://formats/shards", x, KEYS)
        assert_read([f"memory://formats/shards/{i}.tar" for i in (0, 1)], x[:17], KEYS[:17])
    finally:
        fs.rm("/formats", recursive=True)


def test_content_beats_the_name(x):
    np.save("x.npy", x)
    shutil.move("x.npy", "x.parquet")
    assert opened("x.parquet").format == "npy"
    np.save("y.npy", x)
    shutil.move("y.npy", "y")
    assert_read("y", x, range(N))


@pytest.mark.parametrize(
    ("options", "error", "phrase"),
    [
        ({"format": "laion"}, ValueError, "format='laion' is not allowed: give one of 'array', 'npy', 'npz'"),
        ({"format": "clip_retrieval"}, ValueError, "did you mean 'clip-retrieval'"),
        ({"format": "clip-retrieval"}, ValueError, "is of format 'array'"),
        ({"column": "a"}, ValueError, "column='a' is not allowed: it is for parquet and Arrow files"),
        ({"ids_dtype": "S24"}, ValueError, "ids_dtype='S24' is not allowed with ids=None"),
        ({"ids_dtype": "S24", "ids": KEYS}, ValueError, "not allowed with ids=an object of type list"),
        ({"ids_dtype": "f4", "ids": "x"}, ValueError, "ids_dtype='f4' is not allowed: give a fixed width"),
        ({"ids_dtype": "S", "ids": "x"}, ValueError, "ids_dtype='S' is not allowed: give a fixed width"),
        ({"ids_dtype": "what", "ids": "x"}, TypeError, "ids_dtype='what' is not allowed: give a fixed width"),
        ({"ids": True}, TypeError, "ids of type bool is not allowed"),
    ],
)
def test_options_are_refused(tmp_path, x, options, error, phrase):
    with pytest.raises(error) as caught:
        ingest(x, "pool.zarr", **options)
    assert phrase in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def half(n=400, d=64, seed=1):
    """Rows normalised in float16, as some encoders do: their norms are off by more than the last rounding."""
    x = unit_rows(n, d, np.float32, seed)
    return (x.astype(np.float16) * np.float16(1.002)).astype(np.float16)


def test_float16_of_unit_length_is_normalised_again(tmp_path):
    x = half()
    np.save("x.npy", x)
    before = np.linalg.norm(x.astype(np.float64), axis=1)
    assert np.abs(before - 1).max() > 1.5e-3
    for dtype, bound in ((None, 3e-4), ("float32", 1e-6)):
        emb = ingest("x.npy", "pool.zarr", dtype=dtype, chunk_rows=90, overwrite=True)
        norms = np.linalg.norm(read(emb)[0].astype(np.float64), axis=1)
        assert np.abs(norms - 1).max() < bound
        assert emb.normalized
    assert_read("x.npy", x, range(400))  # normalize=False leaves them


def test_float16_that_is_not_of_unit_length_is_left(tmp_path):
    x = half()
    with pytest.warns(UserWarning, match="not of unit length"):
        emb = ingest(3 * x, "pool.zarr")
    np.testing.assert_array_equal(read(emb)[0], 3 * x)
    x = np.repeat(half(), 10, axis=0)
    x[1500] *= 2  # outside the sample
    with pytest.warns(UserWarning, match="from 1.00.* to 2.00.*: not of unit length"):
        emb = ingest(x, "pool.zarr", overwrite=True)
    assert not emb.normalized
    np.testing.assert_array_equal(read(emb)[0][1500], x[1500])


def test_float16_pools_are_copied_as_they_are(tmp_path):
    emb = ingest(half(), "a.zarr", normalize=False)
    copy = ingest("a.zarr", "b.zarr")
    np.testing.assert_array_equal(read(copy)[0], read(emb)[0])


def test_a_large_row_group_is_decoded_once(tmp_path, monkeypatch):
    x = unit_rows(1000, 4)
    table = pa.table({"emb": list_array(x, False)})
    pq.write_table(table, "x.parquet", row_group_size=700)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 1024)
    decoded, original = [], parquet.ParquetRows._batches

    def batches(self, start, stop):
        for row, values in original(self, start, stop):
            decoded.append(len(values))
            yield row, values

    monkeypatch.setattr(parquet.ParquetRows, "_batches", batches)
    monkeypatch.setitem(globals(), "assert_cut", lambda *_: None)
    assert_read("x.parquet", x, range(1000), chunk_rows=20)
    # once, and for each group the first chunk or two again; a task for each chunk would decode 18 times as much
    assert sum(decoded) < 1300


def test_a_few_rows_of_a_large_row_group_are_read_without_the_rest(tmp_path, monkeypatch):
    x = unit_rows(40_000, 16)
    pq.write_table(
        pa.table({"emb": list_array(x, True)}), "x.parquet", compression=None, use_dictionary=False
    )
    monkeypatch.setattr(parquet, "BATCH_BYTES", 1024)
    monkeypatch.setattr(parquet, "READ_BYTES", 1 << 16)
    rows = opened("x.parquet").rows
    sizes = []

    class Counted:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def read(self, size=-1):
            sizes.append(size)
            return self.file.read(size)

    class Opener:
        def __init__(self, url, mode):
            self.file = open(url, mode)

        def __enter__(self):
            return Counted(self.file)

        def __exit__(self, *_):
            self.file.close()

    monkeypatch.setattr(parquet.fsspec, "open", Opener)
    np.testing.assert_array_equal(rows.read(3, 50), x[3:50])
    assert 0 < sum(sizes) < x.nbytes / 2


def test_runs_against_brute_force():
    class Source:
        def __init__(self, ends):
            self.ends = ends

        def seek_point(self, row):
            return max(end for end in (0, *self.ends) if end <= row)

    rng = np.random.default_rng(0)
    for _ in range(200):
        n, size = int(rng.integers(1, 60)), int(rng.integers(1, 9))
        ends = np.sort(rng.choice(np.arange(1, n + 1), int(rng.integers(0, n)), replace=False)).tolist()
        bounds = [(start, min(start + size, n)) for start in range(0, n, size)]
        runs = chunkwise.chunk_runs(Source(ends), bounds, size)
        assert [item for run in runs for item in run] == bounds
        for run in runs:
            starts = [start - Source(ends).seek_point(start) for start, _ in run]
            assert starts[0] <= size
            assert all(more > size for more in starts[1:])


@pytest.mark.parametrize("where", ["file", "memory"])
def test_ingestion_reports_its_progress(tmp_path, x, where):
    np.save("x.npy", x)
    found = opened("x.npy" if where == "file" else x)
    seen = []
    plan = pool.PoolPlan("p.zarr", found.rows.shape, "float32", 10, False)
    pool.create(plan, False)
    pool.write_rows(plan, found.rows, lambda fraction, text: seen.append((fraction, text)))
    assert sorted(fraction for fraction, _ in seen) == [i / 6 for i in range(1, 7)]
    assert (1.0, "ingest: 6 of 6 chunks") in seen


def test_provenance(tmp_path, x):
    write_clip(tmp_path / "laion", x)
    ingest("laion", "pool.zarr")
    assert open_embeddings("pool.zarr").source == str(tmp_path / "laion")
