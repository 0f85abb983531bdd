"""The package's settings: ``daskcurate.yaml``, loaded into Dask's configuration under ``daskcurate``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import yaml
from dask.utils import parse_bytes

from daskcurate.config import check_int

FILE = Path(__file__).with_name("daskcurate.yaml")

with FILE.open(encoding="utf-8") as _file:
    dask.config.update_defaults(yaml.safe_load(_file))


def retries() -> int:
    """Return how often a task is tried again after its worker died."""
    return check_int("daskcurate.retries", dask.config.get("daskcurate.retries"), 0)


def connect_timeout() -> str:
    """Return how long to wait for a scheduler, as text with a unit."""
    return str(dask.config.get("daskcurate.connect-timeout"))


def kept_bytes() -> int:
    """Return how much freed memory a worker process keeps."""
    return parse_bytes(dask.config.get("daskcurate.kept-memory"))


def show_progress() -> bool:
    """Return whether progress is shown where a call does not say."""
    return bool(dask.config.get("daskcurate.progress"))


def worker_environment() -> dict[str, str]:
    """Return the environment variables of worker processes."""
    return {name: str(value) for name, value in dask.config.get("daskcurate.environment").items()}


@dataclass(frozen=True)
class MemoryShares:
    """Parts of a worker's memory limit at which Dask steps in; 1 where it is told not to."""

    target: float
    """Results beyond it, by their own size, go to disk."""
    spill: float
    """Results go to disk where the process holds more."""
    pause: float
    """No task starts where the process holds more, or (if that is less) the worker is ended."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "MemoryShares":
        """Return those of Dask's settings ``distributed.worker.memory``, where false is: never."""
        found = {name: float(settings.get(name) or 1) for name in ("target", "spill", "pause", "terminate")}
        return cls(found["target"], found["spill"], min(found["pause"], found["terminate"]))

    @classmethod
    def configured(cls) -> "MemoryShares":
        """Return those of the clusters that we start."""
        return cls.of(_of_our_clusters("distributed.worker.memory"))


def _of_our_clusters(branch: str) -> dict[str, Any]:
    """Return a branch of Dask's settings, by names with dots, as the clusters that we start have it."""
    ours, at = _dotted(dask.config.get("daskcurate.dask")), f"{branch}."
    return _dotted(dask.config.get(branch)) | {
        name.removeprefix(at): value for name, value in ours.items() if name.startswith(at)
    }


def shuffle_buffers(settings: Mapping[str, Any] | None = None) -> int:
    """Return the bytes that wait in a worker while Dask shuffles: to be sent, and to be written to disk.

    By Dask's settings ``distributed.p2p``; without any, as the clusters that we start have them.
    """
    found = _of_our_clusters("distributed.p2p") if settings is None else _dotted(settings)
    return parse_bytes(found["comm.buffer"]) + parse_bytes(found["storage.buffer"])


def dask_settings() -> dict[str, Any]:
    """Return Dask's settings for the clusters that we start, by dotted name.

    The variables of :func:`worker_environment` are among them, as nannies set them.
    """
    found = _dotted(dask.config.get("daskcurate.dask"))
    variables = worker_environment().items()
    return found | {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in variables}


def dask_file() -> str:
    """Return the text of a Dask configuration file with :func:`dask_settings`."""
    made: dict[str, Any] = {}
    for name, value in dask_settings().items():
        *path, last = name.split(".")
        level = made
        for part in path:
            level = level.setdefault(part, {})
        level[last] = value
    return yaml.safe_dump(made, sort_keys=False)


def _dotted(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested settings with dotted names: Dask would replace whole branches by the nested ones."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _dotted(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found
