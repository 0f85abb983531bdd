"""Tell files apart by what they begin with, and by their names."""

import os
from difflib import get_close_matches

import fsspec

SUFFIXES = {
    ".npy": "npy",
    ".npz": "npz",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".tar": "webdataset",
    ".tar.gz": "webdataset",
    ".tgz": "webdataset",
    ".dat": "memmap",
    ".bin": "memmap",
    ".raw": "memmap",
    ".memmap": "memmap",
}
FOLDER_KINDS = ("npy", "npz", "parquet", "arrow", "webdataset")
"""Kinds of files that are looked for in a folder."""
_MAGIC = ((b"\x93NUMPY", "npy"), (b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"PK\x03\x04", "npz"))
_TAR_MAGIC, _TAR_PLACE = b"ustar", 257


def suffix_of(url: str) -> str:
    """Return the suffix of a file's name in lower case; that of ``a.tar.gz`` is ``.tar.gz``."""
    stem, suffix = os.path.splitext(url.lower())
    return f".tar{suffix}" if stem.endswith(".tar") else suffix


def stem_of(url: str) -> str:
    """Return a file's name without its suffix."""
    base = os.path.basename(url)
    return base[: len(base) - len(suffix_of(base))]


def kind_by_name(url: str) -> str | None:
    """Return the kind of file that the suffix says, or None."""
    return SUFFIXES.get(suffix_of(url))


def kind_by_content(url: str) -> str | None:
    """Return the kind of file that its first bytes say, or None."""
    with fsspec.open(url, "rb") as file:
        head = file.read(_TAR_PLACE + len(_TAR_MAGIC))
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    return "webdataset" if head[_TAR_PLACE:] == _TAR_MAGIC else None


def kinds_of(urls: list[str], has_shape: bool, formats: tuple[str, ...]) -> set[str]:
    """Return the kinds of files, by the content of one for each suffix, else by the suffix.

    Parameters
    ----------
    urls
        The files.
    has_shape
        Whether the user gave the shape of a headerless file: what has no known header is one then.
    formats
        The formats that there are, for the error message.
    """
    samples = {suffix_of(url): url for url in reversed(urls)}
    return {_kind(url, has_shape, formats) for url in samples.values()}


def _kind(url: str, has_shape: bool, formats: tuple[str, ...]) -> str:
    if (kind := kind_by_content(url)) is not None:
        return kind
    if has_shape:
        return "memmap"
    if (kind := kind_by_name(url)) is not None:
        return kind
    near = get_close_matches(suffix_of(url), SUFFIXES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"{url} has no known suffix and no known header: allowed are {', '.join(SUFFIXES)}; or give "
        f"format= (one of {', '.join(map(repr, formats))}){hint}"
    )
