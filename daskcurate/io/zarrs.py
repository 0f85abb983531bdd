"""Rows of zarr arrays that others made."""

from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from daskcurate.embeddings import ATTRIBUTE, FORMAT
from daskcurate.io.paths import zarr_store
from daskcurate.io.sources import RowReader


class ZarrRows(RowReader):
    """Rows of a zarr array, format 2 or 3."""

    def __init__(self, array: zarr.Array, name: str):
        super().__init__(name, array.shape, array.dtype)
        self.array = array
        self.in_process = isinstance(array.store, MemoryStore)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``."""
        return np.asarray(self.array[start:stop])


def open_zarr(url: str) -> zarr.Array | zarr.Group:
    """Open the zarr array or group at ``url`` for reading."""
    return zarr.open(zarr_store(url, read_only=True), mode="r")


def is_pool(node: Any) -> bool:
    """Tell whether an open zarr node is a pool of this package, complete or not."""
    metadata = node.attrs.asdict().get(ATTRIBUTE)
    return isinstance(node, zarr.Group) and isinstance(metadata, dict) and metadata.get("format") == FORMAT


def rows_of(node: zarr.Array | zarr.Group, column: str | None, name: str) -> RowReader:
    """Return the rows of an array, or of a group's only (or chosen) 2-D array of floats."""
    if isinstance(node, zarr.Array):
        if column is not None:
            raise ValueError(f"column={column!r} is not allowed: {name} is a single zarr array, not a group")
        return ZarrRows(node, name)
    arrays = {path: item for path, item in node.members(max_depth=None) if isinstance(item, zarr.Array)}
    shown = (
        ", ".join(f"{path!r} {item.shape} {item.dtype}" for path, item in sorted(arrays.items())) or "none"
    )
    if column is not None:
        if column not in arrays:
            raise ValueError(f"column={column!r} is not an array of {name}; its arrays are {shown}")
        return ZarrRows(arrays[column], f"{name}/{column}")
    suitable = [path for path, item in arrays.items() if item.ndim == 2 and item.dtype.kind == "f"]
    return ZarrRows(arrays[_only(suitable, name, shown)], f"{name}/{suitable[0]}")


def _only(suitable: list[str], name: str, shown: str) -> str:
    if not suitable:
        raise ValueError(f"{name} is a zarr group without a 2-D array of floats; its arrays are {shown}")
    if len(suitable) > 1:
        listed = ", ".join(repr(path) for path in sorted(suitable))
        raise ValueError(f"{name} is a zarr group with several 2-D arrays of floats ({listed}): give column=")
    return suitable[0]


def is_anndata(node: Any) -> bool:
    """Tell whether an open zarr node is an AnnData object."""
    if not isinstance(node, zarr.Group):
        return False
    return node.attrs.asdict().get("encoding-type") == "anndata" or {"obs", "obsm"} <= set(node.group_keys())


def anndata_rows(node: zarr.Group, column: str | None, name: str) -> RowReader:
    """Return an array of ``obsm`` (the only one, or ``column``), or another one by its whole path, as ``X``."""
    if column is not None:
        for path in (f"obsm/{column}", column):
            if isinstance(found := node.get(path), zarr.Array):
                return ZarrRows(found, f"{name}/{path}")
    obsm = node.get("obsm")
    items = obsm.members() if isinstance(obsm, zarr.Group) else ()
    arrays = {key: item for key, item in items if isinstance(item, zarr.Array)}
    shown = ", ".join(f"{key!r} {item.shape} {item.dtype}" for key, item in sorted(arrays.items())) or "none"
    if column is not None:
        raise ValueError(f"column={column!r} is not an array of {name}; those of its obsm are {shown}")
    suitable = [key for key, item in sorted(arrays.items()) if item.ndim == 2 and item.dtype.kind == "f"]
    key = _only(suitable, f"{name}/obsm", shown)
    return ZarrRows(arrays[key], f"{name}/obsm/{key}")


def anndata_columns(node: zarr.Group) -> tuple[str, ...]:
    """Return the names of the columns of ``obs`` that are plain arrays."""
    obs = node.get("obs")
    items = obs.members() if isinstance(obs, zarr.Group) else ()
    return tuple(sorted(key for key, item in items if isinstance(item, zarr.Array)))


def anndata_ids(node: zarr.Group, column: str | None, name: str) -> RowReader | None:
    """Return a column of ``obs`` (None: its index, if there is one)."""
    obs = node.get("obs")
    if not isinstance(obs, zarr.Group):
        return None
    key = str(obs.attrs.asdict().get("_index", "_index")) if column is None else column
    found = obs.get(key)
    if isinstance(found, zarr.Group) and isinstance(found.get("values"), zarr.Array):
        found = found["values"]  # strings that may be null: written with a mask beside them
    return ZarrRows(found, f"{name}/obs/{key}") if isinstance(found, zarr.Array) else None
