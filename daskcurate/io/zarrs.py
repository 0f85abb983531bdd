"""Rows of zarr arrays that others made."""

from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from daskcurate.embeddings import ATTRIBUTE, FORMAT
from daskcurate.io.paths import zarr_store
from daskcurate.io.sources import RowSource


class ZarrRows(RowSource):
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


def rows_of(node: zarr.Array | zarr.Group, column: str | None, name: str) -> RowSource:
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
    if not suitable:
        raise ValueError(f"{name} is a zarr group without a 2-D array of floats; its arrays are {shown}")
    if len(suitable) > 1:
        listed = ", ".join(repr(path) for path in sorted(suitable))
        raise ValueError(f"{name} is a zarr group with several 2-D arrays of floats ({listed}): give column=")
    return ZarrRows(arrays[suitable[0]], f"{name}/{suitable[0]}")
