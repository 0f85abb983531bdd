"""Results into the files that data loaders read."""

import os
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

import fsspec

from daskcurate.config import check_choice, check_flag
from daskcurate.io import writers
from daskcurate.io.paths import PathLike, as_url, exists, is_folder, make_parent, remove, replace_file

WRITERS: dict[str, Callable[[Any], writers.Write]] = {
    "npy": writers.write_indices,
    "parquet": writers.write_table,
    "ids": partial(writers.write_ids, kept=True),
    "removed-ids": partial(writers.write_ids, kept=False),
    "trie": writers.write_trie,
    "datacomp": writers.write_datacomp,
    "curator": writers.write_curator,
    "weights": writers.write_weights,
}
FORMATS = tuple(WRITERS)
SUFFIXES = {".npy": "npy", ".parquet": "parquet", ".txt": "ids", ".trie": "trie"}
PARTIAL = ".partial"


def export(result: Any, dest: PathLike, format: str | None = None, *, overwrite: bool = False) -> str:
    """Write a computed result to a file.

    Parameters
    ----------
    result
        A computed Selection; for ``"parquet"`` also a computed Clustering or Hierarchy.
    dest
        Path or URL of the file.
    format
        ``"npy"``: the selected row numbers, int64, ascending, a row repeated as often as it is selected.
        ``"parquet"``: the native table, a row for every row of the pool (row, id, keep, count, clusters,
        distance, max_similarity, duplicate_of, reason, as far as they exist).
        ``"ids"``: text, the id of every selected row once, one a line.
        ``"removed-ids"``: text, the id of every other row.
        ``"trie"``: the ids of the selected rows as a marisa trie, for webdataset filters (needs the extra
        ``export``; the trie is built in this process's memory).
        ``"datacomp"``: .npy of dtype "u8,u8", the halves of the selected uids, sorted, repeats kept (16 bytes for
        each in this process's memory).
        ``"curator"``: parquet with the column ``id``, of every other row, in the pool's order.
        ``"weights"``: .npy, float64, how often each row of the pool is selected, for torch's samplers.
        None: by the name: ``.npy``, ``.parquet``, ``.trie``, or ``.txt`` for ``"ids"``.
    overwrite
        Whether a file at ``dest`` may be replaced.

    Returns
    -------
    str
        The absolute path, or the URL, of the file.

    Raises
    ------
    FileExistsError
        If a file is at ``dest`` and ``overwrite`` is False.
    TypeError, ValueError
        If the result or the format is of another kind than allowed, or an id does not suit the format.
    ImportError
        If the format needs a package that is not installed.
    """
    check_flag("overwrite", overwrite)
    url = as_url(dest, "dest")
    kind = format_of(url, format)
    writer = _writer_for(result, kind)
    if exists(url):
        if is_folder(url):
            raise FileExistsError(f"{url} is a folder: give the name of a file")
        if not overwrite:
            raise FileExistsError(f"{url} exists already: give another dest, or overwrite=True (--overwrite)")
    write = writer(result)
    partial_url = url + PARTIAL
    make_parent(url)
    try:
        with fsspec.open(partial_url, "wb") as file:
            write(file)
        replace_file(partial_url, url)
    except BaseException:
        remove(partial_url)
        raise
    return url


def format_of(url: str, format: str | None) -> str:
    """Return the format to write to ``url``, the one given or by the name; what it needs is installed."""
    kind = _format_of(url, format)
    if kind == "trie":
        writers.trie_library()
    return kind


def _format_of(url: str, format: str | None) -> str:
    if format is not None:
        return check_choice("format", format, FORMATS)
    suffix = os.path.splitext(url)[1].lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    near = get_close_matches(suffix, SUFFIXES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"dest={url!r} has the suffix {suffix!r}: allowed are {', '.join(map(repr, SUFFIXES))}, or give "
        f"format= (one of {', '.join(map(repr, FORMATS))}){hint}"
    )


def _writer_for(result: Any, kind: str) -> Callable[[Any], writers.Write]:
    """Return the function that reads what it can of a result, and returns one that writes to a file."""
    name = type(result).__name__
    if not hasattr(result, "columns"):
        raise TypeError(
            f"result of type {name} is not allowed: give a computed Selection, Clustering or Hierarchy"
        )
    # hasattr() on the class: on a lazy result, the property itself would raise
    selects = hasattr(type(result), "indices") or "indices" in vars(result)
    if kind != "parquet" and not selects:
        raise ValueError(
            f"format={kind!r} is not allowed for a {name}, which selects no rows: give format='parquet'"
        )
    return WRITERS[kind]
