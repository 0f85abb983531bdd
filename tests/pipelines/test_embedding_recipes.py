"""The recipes that make a pool by a model."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import daskcurate as dc
from pipelines import embed_images, embed_texts

SHARED = Path("../shared/data")
TEXTS = [f"text {i}, of {'many ' * (i % 7)}words" for i in range(2500)]


def rows_of(emb):
    return emb.array.compute(scheduler="synchronous")


@pytest.fixture
def files(tmp_path):
    pq.write_table(pa.table({"id": range(2500), "text": TEXTS}), tmp_path / "x.parquet", row_group_size=300)
    table = "\n".join(f'{i}{{0}}"{text}"' for i, text in enumerate(TEXTS))
    (tmp_path / "x.csv").write_text("id,text\n" + table.replace("{0}", ","))
    (tmp_path / "x.TSV").write_text("id\ttext\n" + table.replace("{0}", "\t"))
    (tmp_path / "x.txt").write_text("\n".join(TEXTS))
    return tmp_path


@pytest.mark.parametrize("name", ["x.parquet:text", "x.csv:text", "x.TSV:text", "x.txt"])
def test_texts_are_read_in_any_order(files, name):
    texts = embed_texts.open_texts(*embed_texts.parse_source(str(files / name)))
    assert len(texts) == 2500
    order = np.random.default_rng(0).permutation(2500)[:300]
    assert [texts[int(row)] for row in order] == [TEXTS[row] for row in order]
    assert [texts[row] for row in range(2500)] == TEXTS


def test_missing_texts_are_broken_samples(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, " "]}), tmp_path / "x.parquet")
    texts = embed_texts.open_texts(str(tmp_path / "x.parquet"), "text")
    assert texts[0] == "a"
    for row, message in ((1, "None is not a text"), (2, "the text is empty")):
        with pytest.raises(ValueError, match=message):
            texts[row]


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        ("x.parquet", "give a column, as FILE.csv:COLUMN"),
        ("x.txt:text", "give no column"),
        ("x.json:text", "give FILE.parquet:COLUMN, FILE.csv:COLUMN or FILE.txt"),
        ("no.csv:text", "there is no file at no.csv"),
        ("x.parquet:txt", "x.parquet has no column 'txt': it has id, text"),
    ],
)
def test_texts_that_are_not_there(files, monkeypatch, capsys, given, phrase):
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as stop:
        embed_texts.RECIPE.main([given, "pool.zarr"])
    assert stop.value.code == 2
    assert phrase in capsys.readouterr().err
    assert not Path("pool.zarr").exists()


def test_a_missing_package_is_named(files, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "transformers" else found(name, *more),
    )
    with pytest.raises(SystemExit) as stop:
        embed_texts.RECIPE.main([str(files / "x.txt"), str(files / "pool.zarr")])
    assert stop.value.code == 2
    assert "is missing: pip install" in capsys.readouterr().err


def test_texts_against_stored_embeddings(client, tmp_path, capsys):
    for name in ("torch", "transformers", embed_texts.PACKAGE):
        pytest.importorskip(name)
    if not SHARED.exists():
        pytest.skip("the texts are not here")
    pq.write_table(pq.read_table(SHARED / "summaries.parquet").slice(500, 120), tmp_path / "x.parquet")
    arguments = [f"{tmp_path}/x.parquet:text", f"{tmp_path}/pool.zarr", f"--ids={tmp_path}/x.parquet:name"]
    arguments += ["--dtype=float32", f"--scheduler={client.scheduler.address}", "--chunk-rows=50"]
    emb = embed_texts.RECIPE.run(embed_texts.RECIPE._parser().parse_args(arguments))
    wanted = np.load(SHARED / "summaries.npy", mmap_mode="r")[500:620].astype(np.float64)
    similar = (rows_of(emb) * wanted).sum(1) / np.linalg.norm(wanted, axis=1)
    assert similar.min() > 0.999
    assert emb.normalized
    assert emb.has_ids


@pytest.fixture
def embedded(client, tmp_path, capsys):
    """Return a function that runs the recipe of images on the shared cluster."""
    pytest.importorskip("torch")

    def run(images, *more, dest="pool.zarr"):
        arguments = [str(images), str(tmp_path / dest), f"--scheduler={client.scheduler.address}", *more]
        emb = embed_images.RECIPE.run(embed_images.RECIPE._parser().parse_args(arguments))
        return emb, capsys.readouterr().out

    return run


def test_digits(embedded):
    from sklearn.datasets import load_digits

    emb, out = embedded("digits", "--chunk-rows=500")
    assert emb.shape == (1797, 256)
    assert emb.normalized
    assert emb.ids.compute(scheduler="synchronous")[:2].tolist() == ["image-0", "image-1"]
    similar = rows_of(emb) @ rows_of(emb).T
    np.fill_diagonal(similar, -2)
    label = load_digits().target
    assert (label[similar.argmax(1)] == label).mean() > 0.97
    assert "1,797 rows x 256" in out
    again, _ = embedded("digits", "--chunk-rows=500", dest="again.zarr")
    assert again.fingerprint == emb.fingerprint
    other, _ = embedded("digits", "--chunk-rows=500", "--seed=1", dest="other.zarr")
    assert other.fingerprint != emb.fingerprint


def test_images_of_a_folder_and_of_an_array(embedded, tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    for number, one in enumerate(pixels):
        image.fromarray(one).save(tmp_path / "images" / f"{number}.png")
    np.save(tmp_path / "x.npy", pixels)
    whole, _ = embedded(tmp_path / "x.npy", dest="array.zarr")
    (tmp_path / "images" / "7.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"sample 7: dataset\[7\] raised UnidentifiedImageError"):
        embedded(tmp_path / "images")
    with pytest.warns(UserWarning, match="1 of 12 samples were skipped"):
        emb, out = embedded(tmp_path / "images", "--skip-broken")
    assert "Skipped: sample 7 (id unknown): dataset[7] raised UnidentifiedImageError" in out
    kept = [row for row in range(12) if row != 7]
    assert emb.ids.compute(scheduler="synchronous").tolist() == [f"{row}.png" for row in kept]
    np.testing.assert_allclose(rows_of(emb), rows_of(whole)[kept], atol=1e-5)


def test_images_that_are_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        embed_images.RECIPE.main(["no/such", str(tmp_path / "pool.zarr")])
    assert stop.value.code == 2
    assert "give a folder, a file .npy that is there, or 'digits'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_recipe_is_a_command(tmp_path):
    pytest.importorskip("torch")
    command = [
        sys.executable,
        "-m",
        "pipelines.embed_images",
        "digits",
        str(tmp_path / "pool.zarr"),
        "--n-workers=2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(dc.open_embeddings(tmp_path / "pool.zarr")) == 1797
