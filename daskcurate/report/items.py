"""The user's own items, of the few rows that a page shows: texts, images, or ids."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from daskcurate.config import is_list
from daskcurate.embeddings import IDS, Embeddings
from daskcurate.io.npy import open_npy
from daskcurate.io.paths import as_url, exists, expand_glob, is_glob, is_zarr, zarr_store
from daskcurate.io.sources import ArrayRows, RowReader
from daskcurate.io.text import TextRows
from daskcurate.io.zarrs import ZarrRows, open_zarr

THUMBNAIL = 160
"""Longest side of a picture in pixels: twice what a page shows it at."""
TINY = 48
"""Pictures up to this size are shown with their pixels enlarged, not smoothed."""
LONGEST_TEXT = 400
LONGEST_ID = 80
BATCH_ROWS = 1024
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
TEXTS = "'file.parquet:column', a .txt file (one text a line), a .npy file, or a list or array of strings"
IMAGES = (
    "'file.parquet:column' (paths or encoded images), a .txt file of paths, a .npy or zarr array of pixels "
    "(n, height, width[, 1, 3 or 4]), or an array of pixels or a list of paths"
)


class Column(Protocol):
    """A value for every row of the pool, of which a few are read."""

    name: str

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> list[Any]:
        """Return the values of ``rows``, ascending."""


class SourceColumn:
    """Values of a row source."""

    def __init__(self, source: RowReader):
        self.source, self.name = source, source.name

    def __len__(self) -> int:
        return len(self.source)

    def take(self, rows: np.ndarray) -> list[Any]:
        """Return the values of ``rows``."""
        return [self.source.read(int(row), int(row) + 1)[0] for row in rows]


class ParquetColumn:
    """A column of parquet files; the row groups that hold a wanted row are decoded, a batch at a time."""

    def __init__(self, urls: Sequence[str], column: str, name: str):
        self.column, self.name = column, f"{name}:{column}"
        self.groups: list[tuple[str, int, int]] = []
        for url in urls:
            with fsspec.open(url, "rb") as file:
                parquet = _parquet(url, file)
                names = parquet.schema_arrow.names
                if column not in names:
                    raise ValueError(
                        f"column {column!r} is not in {url}: give one of {', '.join(map(repr, names))}"
                    )
                metadata = parquet.metadata
                self.groups += [
                    (url, i, metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)
                ]
        self.ends = np.cumsum([rows for _, _, rows in self.groups] or [0], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def take(self, rows: np.ndarray) -> list[Any]:
        """Return the values of ``rows``; None where the column is null."""
        found: list[Any] = []
        group_of = np.searchsorted(self.ends, rows, side="right")
        for number in np.unique(group_of):
            url, group, size = self.groups[number]
            wanted = rows[group_of == number] - (self.ends[number] - size)
            with fsspec.open(url, "rb") as file:
                start = 0
                for batch in _parquet(url, file).iter_batches(
                    BATCH_ROWS, row_groups=[group], columns=[self.column], use_threads=False
                ):
                    here = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
                    found += batch.column(0).take(pa.array(here)).to_pylist()
                    start += batch.num_rows
                    if start > wanted[-1]:
                        break
        return found


def _parquet(url: str, file: Any) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{url} is not a parquet file that can be read: {error}") from error


def _open(given: Any, name: str, allowed: str) -> tuple[Column, str]:
    """Return the column that the user gave, and the folder that paths in it start from."""
    if isinstance(given, str | os.PathLike):
        text = os.fspath(given)
        stem, colon, column = text.rpartition(":")
        if colon and os.path.splitext(stem)[1].lower() in (".parquet", ".pq"):
            url = as_url(stem, name)
            urls = expand_glob(url) if is_glob(url) else [url]
            if not urls or not exists(urls[0]):
                raise FileNotFoundError(f"{name}: there is no file at {url}")
            return ParquetColumn(urls, column, stem), os.path.dirname(url)
        return _open_file(text, name, allowed)
    if isinstance(given, zarr.Array):
        return SourceColumn(ZarrRows(given, f"the zarr array of {name}")), ""
    if isinstance(given, np.ndarray | list | tuple) and is_list(given):
        return SourceColumn(ArrayRows(_as_array(given), name)), os.getcwd()
    raise TypeError(f"{name} of type {type(given).__name__} is not allowed: give {allowed}")


def _as_array(given: Any) -> np.ndarray:
    if isinstance(given, np.ndarray):
        return given
    values = np.empty(len(given), dtype=object)
    values[:] = given
    return values


def _open_file(text: str, name: str, allowed: str) -> tuple[Column, str]:
    url = as_url(text, name)
    if not exists(url):
        raise FileNotFoundError(f"{name}: there is no file at {url}")
    suffix = os.path.splitext(url)[1].lower()
    if suffix in (".parquet", ".pq"):
        raise ValueError(f"{name}={text!r} is not allowed: name the column too, as in '{text}:column'")
    if suffix == ".txt":
        return SourceColumn(TextRows(url, may_be_empty=True)), os.path.dirname(url)
    if suffix == ".npy":
        return SourceColumn(open_npy(url)), os.path.dirname(url)
    if is_zarr(url):
        node = open_zarr(url)
        if isinstance(node, zarr.Array):
            return SourceColumn(ZarrRows(node, url)), os.path.dirname(url)
    raise ValueError(f"{name}={text!r} is of no known kind: give {allowed}")


def _of_rows(column: Column, name: str, n_rows: int) -> Column:
    if len(column) != n_rows:
        raise ValueError(
            f"{name}: {column.name} has {len(column):,} entries, but the pool has {n_rows:,} rows: give one a row"
        )
    return column


class Items:
    """What stands for a row on the page: its image, its text, and its id.

    Parameters
    ----------
    n_rows
        Rows of the pool.
    texts, images
        What the user gave; None: nothing.
    ids
        Array of the pool's ids; None: row numbers.
    """

    def __init__(self, n_rows: int, texts: Any = None, images: Any = None, ids: Any = None):
        self.ids, self.unreadable = ids, 0
        self.texts: Column | None = None
        self.images: Column | None = None
        self.folder = ""
        if texts is not None:
            self.texts = _of_rows(_open(texts, "texts", TEXTS)[0], "texts", n_rows)
            _check_texts(self.texts)
        if images is not None:
            found, self.folder = _open(images, "images", IMAGES)
            self.images = _of_rows(found, "images", n_rows)
            _check_images(self.images)

    def load(self, rows: Sequence[int], folder: Path) -> dict[int, dict[str, Any]]:
        """Return what the page shows of ``rows``, with the pictures written into ``folder``."""
        from daskcurate.report.measures import values_at

        wanted = np.unique(np.asarray(rows, dtype=np.int64))
        ids = wanted if self.ids is None else values_at(self.ids, wanted)
        found = {
            int(row): {"row": int(row), "id": _shortened(str(one), LONGEST_ID), "text": None, "image": None}
            for row, one in zip(wanted, ids, strict=True)
        }
        if self.texts is not None:
            for row, text in zip(wanted, self.texts.take(wanted), strict=True):
                found[int(row)]["text"] = _shortened(_as_text(text), LONGEST_TEXT)
        if self.images is not None and len(wanted):
            folder.mkdir(parents=True, exist_ok=True)
            for row, value in zip(wanted, self.images.take(wanted), strict=True):
                found[int(row)].update(self._picture(int(row), value, folder))
        return found

    def _picture(self, row: int, value: Any, folder: Path) -> dict[str, Any]:
        """Write a row's thumbnail; what cannot be read is said in its place."""
        from PIL import Image

        try:
            with _image(value, self.folder) as image:
                image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))  # JPEG: decoded at a fraction of its size
                small = _plain(image)
        except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
            self.unreadable += 1
            return {"note": _shortened(f"no picture: {error}", 120)}
        tiny = max(small.size) <= TINY
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        name = f"{row}.png" if tiny else f"{row}.jpg"
        small.save(folder / name, **({} if tiny else {"quality": 80}))
        return {"image": f"{folder.name}/{name}", "tiny": tiny}


def pool_ids(emb: Embeddings) -> Any:
    """Return the array of a pool's ids, or None."""
    return zarr.open_array(zarr_store(emb.path, read_only=True), path=IDS, mode="r") if emb.has_ids else None


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return "" if value is None else CONTROLS.sub("\ufffd", str(value))


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _check_texts(column: Column) -> None:
    if isinstance(column, SourceColumn) and (
        column.source.dtype.kind not in "OUST" or len(column.source.shape) != 1
    ):
        source = column.source
        raise TypeError(f"texts: {column.name} holds {source.dtype} of shape {source.shape}: give {TEXTS}")


def _check_images(column: Column) -> None:
    if not isinstance(column, SourceColumn):
        return
    shape, kind = column.source.shape, column.source.dtype.kind
    paths = len(shape) == 1 and kind in "OUST"
    pixels = len(shape) in (3, 4) and kind in "buif" and (len(shape) == 3 or shape[3] in (1, 3, 4))
    if not (paths or pixels):
        raise TypeError(f"images: {column.name} holds {column.source.dtype} of shape {shape}: give {IMAGES}")


def _image(value: Any, folder: str) -> Any:
    """Open what stands for an image: pixels, encoded bytes, or a path."""
    from PIL import Image

    if isinstance(value, dict):  # an image as Hugging Face datasets store it
        value = value.get("bytes") or value.get("path")
    if isinstance(value, np.ndarray) and value.ndim:
        return Image.fromarray(_pixels(value))
    if isinstance(value, bytes):
        if value[:4] in (b"\x89PNG", b"RIFF", b"GIF8") or value[:2] in (b"\xff\xd8", b"BM", b"II", b"MM"):
            return Image.open(io.BytesIO(value))
        value = value.decode("utf-8")
    path = str(value or "")
    if not path:
        raise ValueError("empty")
    if "://" not in path:
        return Image.open(os.path.join(folder, path))
    with fsspec.open(path, "rb") as file:
        return Image.open(io.BytesIO(file.read()))


def _pixels(values: np.ndarray) -> np.ndarray:
    """Return pixels as uint8, without a channel axis of length 1."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    wide = np.nan_to_num(values.astype(np.float64))
    if values.dtype.kind == "f" and wide.max(initial=0) <= 1 and wide.min(initial=0) >= 0:
        wide = wide * 255
    elif wide.min(initial=0) < 0 or wide.max(initial=0) > 255:
        wide = (wide - wide.min()) * (255 / max(float(np.ptp(wide)), np.finfo(float).tiny))
    return np.rint(wide).astype(np.uint8)


def _plain(image: Any) -> Any:
    """Return an image as grey or RGB, transparency over white."""
    from PIL import Image

    if image.mode in ("L", "RGB"):
        image.load()
        return image.copy()
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_pixels(np.asarray(image)))
    wide = image.convert("RGBA")
    ground = Image.new("RGBA", wide.size, "white")
    return Image.alpha_composite(ground, wide).convert("RGB")
