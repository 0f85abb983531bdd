"""The run store: a zarr group per stage, its arrays checked against the schema, its marker set last.

Workers write with :func:`write_block`, one task owning whole chunks; only the runner makes groups and
marks them complete. A missing chunk reads as the fill value, so nothing counts before its marker.
"""

import contextlib
import io
import json
import os
import platform
import re
import uuid
from importlib.metadata import version
from typing import Any

import fsspec
import numpy as np
import zarr

from daskcurate.io.paths import PathLike, as_url, is_local
from daskcurate.schema import FORMAT_VERSION, spec_of

ATTRIBUTE = "daskcurate"
_ARRAY_FILE = re.compile(r"zarr\.json|c(/\d+)*")


class StoreError(ValueError):
    """A store that is not what its schema says."""


def open_array(url: str, mode: Any = "r") -> zarr.Array:
    """Open the zarr array at ``url``."""
    return zarr.open_array(store=url, mode=mode)


def read_block(url: str, start: int, stop: int) -> np.ndarray:
    """Read rows [start, stop) of the array at ``url``."""
    return np.asarray(open_array(url)[start:stop])


def write_block(url: str, start: int, values: np.ndarray) -> None:
    """Write ``values`` at row ``start`` of the array at ``url``; the rows must be whole chunks."""
    array = open_array(url, "r+")
    if values.dtype != array.dtype:
        raise StoreError(f"{url} holds {array.dtype}, not {values.dtype}")
    stop = start + len(values)
    step = array.chunks[0]
    if start % step or (stop % step and stop != array.shape[0]):
        raise StoreError(f"rows {start}:{stop} of {url} are not whole chunks of {step} rows")
    array[start:stop] = values


def write_scratch(url: str, values: np.ndarray) -> None:
    """Write a whole small array at ``url``, replacing what is there."""
    _made_array(url, values.shape, values.dtype, _scratch_chunks(values), compressors=None)[...] = values


def write_file(url: str, values: np.ndarray) -> None:
    """Write an array to one file at ``url``, whole or not at all: a tenth of the work of a zarr array."""
    held = io.BytesIO()
    np.save(held, values)
    if not is_local(url):
        fs, path = fsspec.core.url_to_fs(url)
        fs.pipe_file(path, held.getvalue())
        return
    partial = f"{url}.{uuid.uuid4().hex}.partial"
    os.makedirs(os.path.dirname(url), exist_ok=True)
    with open(partial, "wb") as file:
        file.write(held.getbuffer())
    os.replace(partial, url)


def read_file(url: str) -> np.ndarray:
    """Read the array that :func:`write_file` wrote."""
    fs, path = fsspec.core.url_to_fs(url)
    return np.load(io.BytesIO(fs.cat_file(path)))


def _made_array(
    url: str, shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...], **more: Any
) -> zarr.Array:
    """Return an array to be written in full: the one at ``url`` if it is alike, else a new one.

    An array is not made anew without need: a task that a lost worker or a killed client left behind may be
    writing the same values to it, or one that such a task wrote may be in use.
    """
    try:
        found = open_array(url, "r+")
    except (FileNotFoundError, ValueError):  # nothing, something else, or a damaged array
        found = None
    if found is not None and (found.shape, found.dtype, found.chunks) == (shape, np.dtype(dtype), chunks):
        return found
    return zarr.create_array(store=url, shape=shape, dtype=dtype, chunks=chunks, overwrite=True, **more)


def _scratch_chunks(values: np.ndarray) -> tuple[int, ...]:
    row_bytes = max(1, values[:1].nbytes)
    return (max(1, min(len(values), (64 << 20) // row_bytes)), *(max(1, n) for n in values.shape[1:]))


def versions() -> dict[str, str]:
    """Return the versions that a stage ran with."""
    from daskcurate import __version__  # a checkout that is not installed has one as well

    found = {name: version(name) for name in ("numpy", "dask", "zarr")}
    return {"python": platform.python_version(), "daskcurate": __version__, **found}


class RunStore:
    """A zarr group at a path or URL that holds a group per stage."""

    def __init__(self, path: PathLike):
        self.url = as_url(path, "store")

    def __repr__(self) -> str:
        return f"RunStore({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunStore) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def check(self) -> None:
        """Raise StoreError if the path holds something else than a run store (or nothing)."""
        found = self._attributes()
        if found is None:
            if not _occupied(self.url):
                return
            found = self._attributes()  # another run may just have made it
        if found is None:
            near = [f"{self.url}/{name}" for name in _run_stores_in(self.url)]
            hint = f"; there is one at {' and at '.join(near)}" if near else ""
            raise StoreError(
                f"{self.url} exists and is not a run store: give a new path or a run store's{hint}"
            )
        if found.get("format") != "run":
            raise StoreError(f"{self.url} is a {found.get('format', 'zarr group')!s}, not a run store")
        if found.get("version") != FORMAT_VERSION:
            raise StoreError(
                f"{self.url} has format version {found.get('version')}, this reads {FORMAT_VERSION}"
            )

    def exists(self) -> bool:
        """Return whether there is a run store at the path."""
        return self._attributes() is not None

    def create(self) -> None:
        """Make the store if it is not there."""
        self.check()
        if self._attributes() is None:
            # one write makes it a group and a run store: killed before or after, it can be used
            with contextlib.suppress(zarr.errors.ContainsGroupError):  # another run was faster
                zarr.create_group(
                    store=self.url, attributes={ATTRIBUTE: {"format": "run", "version": FORMAT_VERSION}}
                )

    def stage_url(self, name: str, *parts: str) -> str:
        """Return the URL of a stage's group, or of something in it."""
        return "/".join((self.url, name, *parts))

    def attributes(self, name: str) -> dict[str, Any]:
        """Return the attributes of a stage's group; empty where there is none."""
        return self._attributes(name) or {}

    def is_complete(self, name: str) -> bool:
        """Return whether the stage's marker is set and its arrays' files are those that it was set for."""
        return self.is_marked(name) and self.attributes(name).get("contents") == self.contents(name)

    def is_marked(self, name: str) -> bool:
        """Return whether the stage's marker is set."""
        return self.attributes(name).get("complete") is True

    def contents(self, name: str) -> dict[str, list[int]]:
        """Return the number of files, and of bytes in them, of each array of a stage."""
        fs, path = fsspec.core.url_to_fs(self.stage_url(name))
        fs.invalidate_cache(path)
        found: dict[str, list[int]] = {}
        for file, details in fs.find(path, detail=True).items():
            array, _, rest = file[len(path) + 1 :].partition("/")
            if _ARRAY_FILE.fullmatch(rest):
                count, size = found.get(array, (0, 0))
                found[array] = [count + 1, size + int(details["size"])]
        return found

    def tidy(self, name: str) -> None:
        """Remove the files of a stage that killed workers left half written."""
        fs, path = fsspec.core.url_to_fs(self.stage_url(name))
        for file in fs.find(path):
            if file.endswith(".partial"):
                with contextlib.suppress(OSError):
                    fs.rm_file(file)

    def stages(self) -> dict[str, dict[str, Any]]:
        """Return the attributes of every stage in the store, by group name."""
        self.check()
        if self._attributes() is None:
            raise StoreError(f"{self.url} is not a run store: there is nothing at that path")
        root = zarr.open_group(store=self.url, mode="r")
        return {name: self.attributes(name) for name in sorted(root.group_keys())}

    def update(self, name: str, **changes: Any) -> None:
        """Set attributes of a stage's group in one atomic write; a group without any is made anew."""
        found = self._attributes(name)
        if found is None:
            zarr.create_group(store=self.url, path=name, attributes={ATTRIBUTE: changes}, overwrite=True)
        else:
            zarr.open_group(store=self.url, path=name, mode="r+").attrs[ATTRIBUTE] = {**found, **changes}

    def declare(self, kind: str, name: str, array: str, shape: tuple[int, ...], chunk: int) -> str:
        """Make (or make anew) a declared array of a stage, and return its URL."""
        spec = spec_of(kind, array)
        if len(shape) != len(spec.dims):
            raise StoreError(f"{kind}.{array} has dimensions {spec.dims}, got the shape {shape}")
        url = self.stage_url(name, array)
        chunks = (max(1, min(chunk, max(1, shape[0]))), *shape[1:])
        _made_array(
            url, shape, spec.dtype, chunks, fill_value=spec.fill, dimension_names=spec.dims,
            attributes={"meaning": spec.meaning},
        )  # fmt: skip
        return url

    def array(self, kind: str, name: str, array: str) -> zarr.Array:
        """Open a declared array of a complete stage, checked against the schema."""
        spec = spec_of(kind, array)
        found = open_array(self.stage_url(name, array))
        if str(found.dtype) != spec.dtype or found.ndim != len(spec.dims):
            raise StoreError(
                f"{self.stage_url(name, array)} is {found.dtype} with {found.ndim} dimensions; "
                f"the schema says {spec.dtype} with {spec.dims}"
            )
        return found

    def remove(self, name: str, *parts: str) -> None:
        """Remove a stage's group, or something in it that nothing reads any more, if it is there."""
        fs, path = fsspec.core.url_to_fs(self.stage_url(name, *parts))
        if fs.exists(path):
            # a task left behind by a killed client may be writing there: what it writes stays, unused
            with contextlib.suppress(OSError):
                fs.rm(path, recursive=True)

    def _attributes(self, name: str | None = None) -> dict[str, Any] | None:
        try:
            group = zarr.open_group(store=self.url, path=name, mode="r")
        except (FileNotFoundError, zarr.errors.GroupNotFoundError, zarr.errors.ContainsArrayError):
            return None
        except json.JSONDecodeError:
            if name is None:
                raise StoreError(f"{self.url} is damaged: its zarr.json cannot be read") from None
            return None
        found = group.attrs.asdict().get(ATTRIBUTE)
        return found if isinstance(found, dict) else ({} if name is None and group.attrs else None)


def _run_stores_in(url: str) -> list[str]:
    """Return the names of the run stores in a folder, of which the folder may have been given for one."""
    fs, path = fsspec.core.url_to_fs(url)
    names = [name.rpartition("/")[2] for name in fs.ls(path, detail=False)] if fs.isdir(path) else []
    zarrs = sorted(name for name in names if name.endswith(".zarr"))[:8]
    found = []
    for name in zarrs:
        with contextlib.suppress(ValueError, OSError):  # damaged, or of another kind
            if (RunStore(f"{url}/{name}")._attributes() or {}).get("format") == "run":
                found.append(name)
    return found


def _occupied(url: str) -> bool:
    fs, path = fsspec.core.url_to_fs(url)
    if not fs.exists(path):
        return False
    # a half-written file is that of a run which is about to make the store, or was killed then
    return not fs.isdir(path) or any(not name.endswith(".partial") for name in fs.ls(path, detail=False))
