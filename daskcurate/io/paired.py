"""Folders of embeddings with the metadata of their rows beside them: clip-retrieval (LAION) and DataComp."""

import re
from collections.abc import Sequence

from daskcurate.io import columns, npy, npz, parquet
from daskcurate.io.paths import exists, list_folder, subfolders
from daskcurate.io.sniff import stem_of, suffix_of
from daskcurate.io.sources import RowReader, open_all

KINDS = ("img_emb", "text_emb")
CLIP_IDS = ("image_path", "key")
"""What clip-retrieval calls a sample's key, and what img2dataset does."""
UID = "uid"


def is_clip_folder(folder: str) -> bool:
    """Tell whether a folder has the layout of clip-retrieval: img_emb/ or text_emb/, or their files."""
    return bool(set(KINDS) & set(subfolders(folder))) or bool(_flat(folder))


def _flat(folder: str) -> dict[str, list[str]]:
    """Return the files of a folder that holds embeddings and metadata together, by kind of embedding."""
    files = list_folder(folder)
    if not any(_number(url, "metadata", ".parquet") is not None for url in files):
        return {}
    found = {kind: [url for url in files if _number(url, kind, ".npy") is not None] for kind in KINDS}
    return {kind: urls for kind, urls in found.items() if urls}


def _number(url: str, kind: str, suffix: str) -> int | None:
    match = re.fullmatch(rf"{kind}_(\d+)", stem_of(url))
    return int(match[1]) if match and suffix_of(url) == suffix else None


def clip_files(folder: str, kind: str | None) -> tuple[list[str], list[str]]:
    """Return the .npy files and the metadata files of a clip-retrieval folder, paired by their numbers.

    Parameters
    ----------
    folder
        The folder that clip-retrieval wrote.
    kind
        ``img_emb`` or ``text_emb``; None: ``img_emb`` where there is one.

    Returns
    -------
    tuple
        Both in order; the second one is empty where the folder has no metadata.
    """
    below = subfolders(folder)
    found = {name: list_folder(f"{folder}/{name}") for name in KINDS if name in below} or _flat(folder)
    if kind is None:
        kind = next((name for name in KINDS if name in found), KINDS[0])
    if kind not in found:
        raise ValueError(f"column={kind!r} is not in {folder}: give one of {columns.listed(found)}")
    rows = {number: url for url in found[kind] if (number := _number(url, kind, ".npy")) is not None}
    if not rows:
        raise ValueError(f"{folder}/{kind} has no file {kind}_0.npy or the like")
    beside = list_folder(f"{folder}/metadata") if "metadata" in below else list_folder(folder)
    metadata = {number: url for url in beside if (number := _number(url, "metadata", ".parquet")) is not None}
    if not metadata:
        return [rows[number] for number in sorted(rows)], []
    _require_partners(
        {str(number): url for number, url in rows.items()}, set(map(str, metadata)), "metadata file"
    )
    _require_partners(
        {str(number): url for number, url in metadata.items()}, set(map(str, rows)), f"{kind} file"
    )
    return [rows[number] for number in sorted(rows)], [metadata[number] for number in sorted(rows)]


def _require_partners(files: dict[str, str], partners: set[str], what: str) -> None:
    for key, url in files.items():
        if key not in partners:
            raise FileNotFoundError(f"{url} has no {what} of the same number")


def open_clip(folder: str, kind: str | None) -> tuple[RowReader, list[str]]:
    """Return the embeddings of a clip-retrieval folder, and its metadata files, in order."""
    rows, metadata = clip_files(folder, kind)
    return open_all(npy.open_npy, rows, folder), metadata


def clip_id_column(metadata: list[str]) -> str | None:
    """Return the column of the metadata that holds a sample's key."""
    names = parquet.column_names(metadata[0])
    return next((name for name in CLIP_IDS if name in names), None)


def is_datacomp(urls: Sequence[str]) -> bool:
    """Tell whether .npz files have parquet files of the same names beside them, with DataComp's ``uid``."""
    partner = _partner(urls[0])
    return exists(partner) and UID in parquet.column_names(partner)


def _partner(url: str) -> str:
    return url[: len(url) - len(suffix_of(url))] + ".parquet"


def open_datacomp(urls: list[str], key: str | None, name: str) -> tuple[RowReader, list[str]]:
    """Return the array ``key`` of DataComp's .npz files, and their metadata files, in order."""
    metadata = [_partner(url) for url in urls]
    for url, partner in zip(urls, metadata, strict=True):
        if not exists(partner):
            raise FileNotFoundError(f"{url} has no metadata: there is no {partner}")
    return npz.open_npz(urls, key, name), metadata


def require_aligned(rows: RowReader, ids: RowReader) -> None:
    """Raise unless every file of ``rows`` has as many rows as its file of ``ids``."""
    for (name, n), (partner, m) in zip(rows.files, ids.files, strict=True):
        if n != m:
            raise ValueError(
                f"{partner} has {m:,} rows, but {name} has {n:,}: a row of one belongs to a row of the other"
            )
