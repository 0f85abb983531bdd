"""Local paths and URLs, told apart in one place."""

import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import fsspec
from natsort import natsorted, ns
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

PathLike = str | os.PathLike[str]
GLOB_CHARACTERS = frozenset("*?[")


def as_url(path: Any, name: str = "path") -> str:
    """Return ``path`` as an absolute local path or a URL, without a trailing slash."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name}={path!r} is not allowed: give a path (str or Path) or a URL")
    text = os.fspath(path)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ValueError(f"{name}={path!r} is not allowed: give a path (str or Path) or a URL")
    text = text.removeprefix("file://")
    if "://" in text:
        return text.rstrip("/")
    return os.path.abspath(os.path.expanduser(text))


def is_local(url: str) -> bool:
    """Tell whether a path made by :func:`as_url` is on this machine's file system."""
    return "://" not in url


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of ``url`` and the path within it, with no stale listings."""
    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return fs, path


def read_bytes(url: str, start: int, stop: int) -> bytes:
    """Return bytes ``start`` to ``stop`` of the file or object at ``url``; fewer where it ends before.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    fs, path = fsspec.core.url_to_fs(url)
    try:
        return fs.cat_file(path, start=start, end=stop)
    except FileNotFoundError:
        raise
    except Exception:
        # Stores differ in what they say of a range that begins after the end; the size tells it from others.
        if fs.info(path)["size"] > start:
            raise
        return b""


def zarr_store(url: str, *, read_only: bool) -> Store:
    """Return the zarr store at ``url``."""
    if is_local(url):
        return LocalStore(url, read_only=read_only)
    return FsspecStore.from_url(url, read_only=read_only)


def exists(url: str) -> bool:
    """Tell whether a file or folder is at ``url``."""
    if is_local(url):
        return os.path.lexists(url)
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def is_folder(url: str) -> bool:
    """Tell whether a folder is at ``url``."""
    if is_local(url):
        return os.path.isdir(url)
    fs, path = filesystem(url)
    return bool(fs.isdir(path))


def is_zarr(url: str) -> bool:
    """Tell whether a zarr array or group, of format 2 or 3, is at ``url``."""
    return any(exists(f"{url}/{marker}") for marker in ("zarr.json", ".zarray", ".zgroup"))


def list_folder(url: str) -> list[str]:
    """Return the visible files directly in the folder at ``url``, in natural order."""
    fs, path = filesystem(url)
    files = [entry["name"] for entry in fs.ls(path, detail=True) if entry["type"] == "file"]
    shown = [name for name in files if not os.path.basename(name).startswith((".", "_"))]
    return [_with_protocol(fs, url, name) for name in natsorted(shown, alg=ns.PATH)]


def subfolders(url: str) -> list[str]:
    """Return the names of the visible folders directly in the folder at ``url``."""
    fs, path = filesystem(url)
    names = [entry["name"] for entry in fs.ls(path, detail=True) if entry["type"] == "directory"]
    shown = (os.path.basename(name.rstrip("/")) for name in names)
    return sorted(name for name in shown if not name.startswith((".", "_")))


def expand_glob(url: str) -> list[str]:
    """Return the files that match the pattern ``url``, in natural order."""
    fs, path = filesystem(url)
    found = [name for name in fs.glob(path) if fs.isfile(name)]
    return [_with_protocol(fs, url, name) for name in natsorted(found, alg=ns.PATH)]


def is_glob(url: str) -> bool:
    """Tell whether ``url`` is a pattern rather than the name of something that exists."""
    return not GLOB_CHARACTERS.isdisjoint(url) and not exists(url)


def _with_protocol(fs: Any, url: str, name: str) -> str:
    return name if is_local(url) else fs.unstrip_protocol(name)


def remove(url: str) -> None:
    """Remove the file or folder at ``url``, if there is one."""
    if is_local(url):
        if os.path.isdir(url) and not os.path.islink(url):
            shutil.rmtree(url)
        elif os.path.lexists(url):
            os.remove(url)
        return
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def discard(url: str) -> None:
    """Remove the folder at ``url``, into which a task that is not to be stopped may still be writing.

    Gives up after a second without an error: the error that led here matters more.
    """
    for _ in range(10):
        try:
            return remove(url)
        except OSError:  # something new in a folder that was just emptied
            time.sleep(0.1)


def list_names(url: str) -> set[str]:
    """Return the names of all files and folders in the folder at ``url``; none if there is no such folder."""
    fs, path = filesystem(url)
    try:
        return {str(name).rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(path, detail=False)}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def make_folder(url: str) -> None:
    """Make the folder at ``url`` and those that hold it, where they are missing."""
    fs, path = filesystem(url)
    fs.makedirs(path, exist_ok=True)


def write_file(url: str, content: bytes) -> None:
    """Write a file of which nobody sees a part; its folder must be there."""
    if not is_local(url):
        fs, path = filesystem(url)
        fs.pipe_file(path, content)
        return
    unfinished = f"{url}.{os.urandom(4).hex()}"
    with open(unfinished, "wb") as file:
        file.write(content)
    os.replace(unfinished, url)


def file_states(url: str) -> list[list[str]] | None:
    """Return what tells one content of the file, or of all files of the folder, at ``url`` from another.

    That is size and time of change (of a URL: all that its file system says). None if nothing is there.
    """
    if not exists(url):
        return None
    if not is_local(url):
        fs, path = filesystem(url)
        found = fs.find(path, detail=True)
        return [
            [name, str(sorted((key, str(found[name][key])) for key in found[name]))] for name in sorted(found)
        ]
    states = []
    for name in sorted(_files_below(url)) if os.path.isdir(url) else [url]:
        info = os.stat(name)
        states.append([name, f"{info.st_size} {info.st_mtime_ns}"])
    return states


def _files_below(folder: str) -> Iterator[str]:
    for root, _, names in os.walk(folder):
        yield from (os.path.join(root, name) for name in names)


def make_parent(url: str) -> None:
    """Make the folder that holds ``url``."""
    fs, path = filesystem(url)
    fs.makedirs(os.path.dirname(path) or "/", exist_ok=True)


def move_store(source: str, dest: str) -> None:
    """Move the zarr store at ``source`` to ``dest``, where nothing is yet.

    Local stores are renamed. Object stores cannot rename: files are copied, the root's metadata (which
    holds the marker that makes a store valid) last of all.
    """
    if is_local(source):
        os.rename(source, dest)
        return
    fs, origin = filesystem(source)
    _, target = fsspec.core.url_to_fs(dest)
    names = [name[len(origin) :] for name in fs.find(origin)]
    first = [name for name in names if name != "/zarr.json"]
    fs.copy([origin + name for name in first], [target + name for name in first])
    fs.cp_file(origin + "/zarr.json", target + "/zarr.json")
    fs.rm(origin, recursive=True)


def replace_file(source: str, dest: str) -> None:
    """Move the file at ``source`` to ``dest``, over what is there."""
    if is_local(source):
        os.replace(source, dest)
        return
    fs, origin = filesystem(source)
    fs.mv(origin, fsspec.core.url_to_fs(dest)[1])
