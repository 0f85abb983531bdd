"""The user's own items: read for a few rows, whatever they come as."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from daskcurate.report.items import LONGEST_TEXT, THUMBNAIL, Items

ROWS = [0, 3, 4, 9]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def encoded(colour, size=(20, 10), format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format)
    return buffer.getvalue()


def texts_of(given, n=10):
    found = Items(n, texts=given).load(ROWS, None)
    return [found[row]["text"] for row in ROWS]


def test_texts_from_every_kind_of_source(folder):
    texts = [f"text {i}" for i in range(10)]
    texts[3], texts[4] = "", "é <b>&"
    expected = [texts[row] for row in ROWS]
    pq.write_table(pa.table({"a": range(10), "body": texts}), "t.parquet", row_group_size=4)
    (folder / "t.txt").write_text("\n".join(texts) + "\n")
    np.save("t.npy", np.array(texts))
    for given in ("t.parquet:body", folder / "t.txt", "t.npy", texts, np.array(texts, dtype=object)):
        assert texts_of(given) == expected, given


def test_texts_over_several_files_with_nulls_and_long_ones(folder):
    pq.write_table(pa.table({"body": ["x" * 1000, "b", "c", None]}), "part-0.parquet", row_group_size=3)
    pq.write_table(pa.table({"body": list("efghij")}), "part-1.parquet")
    found = texts_of("part-*.parquet:body")
    assert len(found[0]) == LONGEST_TEXT
    assert found[0].endswith("…")
    assert found[1:] == ["", "e", "j"]


def test_control_characters_do_not_reach_the_page():
    assert texts_of(["a\x00b\x1bc\nd"] * 10)[0] == "a�b�c\nd"


@pytest.mark.parametrize(
    "pixels",
    [
        np.arange(10 * 8 * 6, dtype=np.uint16).reshape(10, 8, 6).astype(np.uint8),
        np.random.default_rng(0).random((10, 8, 6, 3)),
        np.random.default_rng(0).random((10, 8, 6, 1)).astype(np.float32),
        np.random.default_rng(0).normal(size=(10, 8, 6, 3)),
        np.random.default_rng(0).integers(0, 65535, (10, 8, 6)).astype(np.uint16),
        np.random.default_rng(0).random((10, 8, 6)) > 0.5,
        np.full((10, 8, 6, 4), 200, np.uint8),
    ],
    ids=["grey", "rgb floats", "one channel", "any floats", "uint16", "bool", "rgba"],
)
def test_pictures_from_arrays(folder, pixels):
    np.save("p.npy", pixels)
    zarr.create_array("p.zarr", shape=pixels.shape, dtype=pixels.dtype, chunks=pixels[:3].shape)[...] = pixels
    seen = []
    for i, given in enumerate(("p.npy", "p.zarr", pixels)):
        items = Items(10, images=given)
        found = items.load(ROWS, folder / f"items-{i}")
        assert items.unreadable == 0
        pictures = [np.asarray(Image.open(folder / found[row]["image"])) for row in ROWS]
        assert [picture.shape[:2] for picture in pictures] == [(8, 6)] * 4
        assert found[0]["tiny"]
        seen.append(pictures)
    for other in seen[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(seen[0], other, strict=True))
    if pixels.dtype == np.uint8 and pixels.ndim == 3:
        assert np.array_equal(seen[0][1], pixels[3])


def test_pictures_from_paths_and_bytes(folder):
    (folder / "sub").mkdir()
    names = []
    for i in range(10):
        names.append(f"{i}.jpg")
        (folder / "sub" / names[-1]).write_bytes(encoded((20 * i, 0, 0), (400, 100), "JPEG"))
    (folder / "sub" / "paths.txt").write_text("\n".join(names))
    raw = [encoded((20 * i, 0, 0), (400, 100)) for i in range(10)]
    pq.write_table(
        pa.table({"path": names, "raw": raw, "hf": [{"bytes": one, "path": None} for one in raw]}),
        "sub/p.parquet",
    )
    absolute = [str(folder / "sub" / name) for name in names]
    for i, given in enumerate(
        ("sub/paths.txt", "sub/p.parquet:path", "sub/p.parquet:raw", "sub/p.parquet:hf", absolute)
    ):
        items = Items(10, images=given)
        found = items.load(ROWS, folder / f"items-{i}")
        assert items.unreadable == 0, given
        for row in ROWS:
            picture = Image.open(folder / found[row]["image"])
            assert picture.size == (THUMBNAIL, THUMBNAIL // 4)
            assert abs(np.asarray(picture)[5, 5, 0].astype(int) - 20 * row) < 12


def test_a_picture_that_cannot_be_read_is_said_in_its_place(folder):
    (folder / "bad.png").write_bytes(b"\x89PNG nonsense")
    (folder / "good.png").write_bytes(encoded("blue"))
    (folder / "cut.jpg").write_bytes(encoded("blue", (200, 200), "JPEG")[:300])
    names = ["good.png", "", "", "missing.png", "bad.png", "", "", "", "", "cut.jpg"]
    items = Items(10, images=names)
    found = items.load(ROWS, folder / "items")
    assert items.unreadable == 3
    assert found[0]["image"] == "items/0.png"
    for row in (3, 4, 9):
        assert found[row]["image"] is None
        assert found[row]["note"].startswith("no picture: ")


def test_ids_stand_for_rows_without_items():
    ids = zarr.create_array(store={}, shape=(10,), dtype=str, chunks=(4,))
    ids[...] = np.array([f"id-{i}" + "x" * 200 * (i == 9) for i in range(10)], dtype=object)
    found = Items(10, ids=ids).load(ROWS, None)
    assert [found[row]["id"][:4] for row in ROWS] == ["id-0", "id-3", "id-4", "id-9"]
    assert len(found[9]["id"]) == 80
    assert Items(10).load([7], None)[7]["id"] == "7"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"texts": ["a"] * 9}, ValueError, "texts has 9 entries, but the pool has 10 rows"),
        ({"images": np.zeros((11, 2, 2), np.uint8)}, ValueError, "has 11 entries, but the pool has 10 rows"),
        ({"texts": 5}, TypeError, "texts of type int is not allowed"),
        ({"texts": "nothing.txt"}, FileNotFoundError, "there is no file at"),
        ({"texts": "nothing.parquet:text"}, FileNotFoundError, "there is no file at"),
        ({"texts": "t.parquet"}, ValueError, r"name the column too, as in 't.parquet:column'"),
        ({"texts": "t.parquet:other"}, ValueError, "column 'other' is not in .*: give one of 'body'"),
        ({"texts": "t.csv"}, ValueError, "is of no known kind"),
        ({"texts": np.zeros(10)}, TypeError, "texts holds float64"),
        ({"images": np.zeros((10, 3))}, TypeError, r"holds float64 of shape \(10, 3\)"),
        ({"images": np.zeros((10, 3, 2, 2))}, TypeError, r"shape \(10, 3, 2, 2\)"),
    ],
)
def test_what_is_not_allowed(folder, given, error, message):
    pq.write_table(pa.table({"body": ["x"] * 10}), "t.parquet")
    (folder / "t.csv").write_text("a")
    with pytest.raises(error, match=message):
        Items(10, **given)
