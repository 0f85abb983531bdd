"""Kinds of clusters by name: ``--cluster NAME``, and ``cluster:`` in a run's YAML file.

A kind is a function that checks its options and returns a context manager that yields a Dask client. All but
``local`` and ``local-cpu`` are found among the entry points of the group ``daskcurate.clusters`` of whatever
is installed, so that nothing here imports them, and others can add their own.
"""

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskcurate.device import DEVICES
from daskcurate.local_cluster import LocalClusterConfig
from daskcurate.local_cuda import gpu_config, start_on
from daskcurate.marked_yaml import Marked, blame, choices, parse
from daskcurate.settings import connect_timeout

if TYPE_CHECKING:
    from distributed import Client

GROUP = "daskcurate.clusters"
LOCAL = "local"
"""This machine: its GPUs where there are some and the extra is installed, else its cores."""
LOCAL_CPU = "local-cpu"
NAME = "name"
"""The key of a ``cluster:`` section that says which kind it is; all others are options."""
DEVICE_OF = {LOCAL_CPU: "cpu", "local-cuda": "gpu"}
"""What the kinds of clusters that leave no choice compute on."""


class UsageError(ValueError):
    """Options that do not go together."""


@dataclass(frozen=True, kw_only=True)
class LocalConfig(LocalClusterConfig):
    """Workers on this machine, and on what they compute."""

    device: str = "auto"
    """``cpu``, ``gpu``, or ``auto``: on GPUs if there are any; then no more workers than GPUs."""

    def __post_init__(self):
        if self.device not in DEVICES:
            raise ValueError(f"device={self.device!r} is not allowed: give one of {', '.join(DEVICES)}")
        super().__post_init__()

    def host(self) -> LocalClusterConfig:
        """Return what does not concern the device."""
        given = {item.name: getattr(self, item.name) for item in fields(LocalClusterConfig)}
        return LocalClusterConfig(**given)

    def size(self) -> dict[str, Any]:
        """Return workers, their memory and their threads."""
        gpus = gpu_config(self.device, self.host())
        host = self.host() if gpus is None else replace(gpus.host(), n_workers=len(gpus.gpus()))
        return {
            "n_workers": host.workers(),
            "memory_limit": host.memory(),
            "threads_per_worker": host.threads_per_worker,
        }


@contextlib.contextmanager
def _started(config: LocalConfig) -> Iterator["Client"]:
    from distributed import Client

    with start_on(config.device, config.host()) as cluster, Client(cluster) as client:
        yield client


def _local(**options: Any) -> AbstractContextManager["Client"]:
    return _started(LocalConfig(**options))


def _local_cpu(**options: Any) -> AbstractContextManager["Client"]:
    return _started(LocalConfig(**LocalClusterConfig(**options).as_dict(), device="cpu"))


BUILT_IN = {LOCAL: (_local, LocalConfig), LOCAL_CPU: (_local_cpu, LocalClusterConfig)}


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def cluster_names() -> tuple[str, ...]:
    """Return the names of the kinds of clusters that are installed."""
    return tuple(sorted({*BUILT_IN, *_entries()}))


def find_cluster(name: str) -> Callable[..., AbstractContextManager["Client"]]:
    """Return the kind of cluster called ``name``.

    Raises
    ------
    ValueError
        If there is none of that name.
    ImportError
        If it needs something that is not installed.
    """
    if name in BUILT_IN:
        return BUILT_IN[name][0]
    entry = _entries().get(name)
    if entry is None:
        near = get_close_matches(str(name), cluster_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"cluster={name!r} is not allowed: give one of {', '.join(cluster_names())}{hint}")
    return entry.load()


@dataclass(frozen=True)
class ClusterSpec:
    """A kind of cluster, and its options; nothing is started before :meth:`open`."""

    name: str = LOCAL
    options: Mapping[str, Any] = field(default_factory=dict)

    def defaults(self) -> dict[str, Any]:
        """Return the options that the kind has, with their defaults."""
        start = find_cluster(self.name)
        found = inspect.signature(BUILT_IN[self.name][1] if self.name in BUILT_IN else start)
        return {
            name: None if option.default is option.empty else option.default
            for name, option in found.parameters.items()
        }

    def open(self) -> AbstractContextManager["Client"]:
        """Check the options, and return the context manager that starts the cluster and yields a client."""
        known = self.defaults()
        for name in self.options:
            if name not in known:
                raise ValueError(
                    f"unknown option {name!r} of the cluster {self.name}: {choices(name, known)}"
                )
        return find_cluster(self.name)(**self.options)

    def size(self) -> dict[str, Any]:
        """Return what the options tell of the workers, as arguments of :func:`daskcurate.plan`."""
        if self.name in BUILT_IN:
            given = dict(self.options)
            return LocalConfig(**given if self.name == LOCAL else given | {"device": "cpu"}).size()
        options = self.defaults() | dict(self.options)
        found = {name: options.get(name) for name in ("n_workers", "memory_limit", "threads_per_worker")}
        if found["memory_limit"] == "auto":
            found["memory_limit"] = None
        if found["n_workers"] is None:
            found["threads_per_worker"] = None
        return found


def cluster_section(item: Marked, name: str | None = None) -> ClusterSpec:
    """Return the checked content of a ``cluster:`` section: a mapping, or the name alone.

    Parameters
    ----------
    item
        The section.
    name
        The kind of cluster where the section does not say; None: ``local``.
    """
    if isinstance(item.value, str):
        item = Marked({NAME: Marked(item.value, item.below(NAME), item.where)}, item.key, item.where)
    elif item.value is None:
        item = Marked({}, item.key, item.where)
    elif not isinstance(item.value, dict):
        item.fail(f"{item.value!r} is not allowed: give the name of a cluster, or options, one a line")
    given = dict(item.value)
    kind = given.pop(NAME, Marked(name or LOCAL, item.key, item.where))
    if kind.plain not in cluster_names():
        kind.fail(f"unknown cluster {kind.plain!r}: {choices(str(kind.plain), cluster_names())}")
    spec = ClusterSpec(kind.plain, {key: value.plain for key, value in given.items()})
    Marked(given, item.key, item.where).section(spec.defaults(), (), "key")
    try:
        spec.open()
    except (TypeError, ValueError) as error:
        blame(item, given, error)
    return spec


def read_cluster(path: Path, name: str | None = None) -> ClusterSpec:
    """Return the cluster that a YAML file describes: the keys of a ``cluster:`` section, or one such section."""
    if not path.is_file():
        raise UsageError(f"--cluster-config {path}: there is no such file")
    root = parse(path.read_text(encoding="utf-8"), str(path))
    if isinstance(root.value, dict) and list(root.value) == ["cluster"]:
        root = root.value["cluster"]
    return cluster_section(root, name)


def _check_scheduler_file(path: Path) -> None:
    """Raise UsageError unless ``path`` is what a scheduler wrote: Dask fails on others without a message."""
    if not path.exists():
        raise UsageError(f"--scheduler-file {path}: there is no such file")
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--scheduler-file {path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("address"), str):
        raise UsageError(f"--scheduler-file {path}: has no 'address': give the file that a scheduler wrote")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a command is to run, as its options say."""

    scheduler: str | None = None
    scheduler_file: Path | None = None
    cluster: str | None = None
    cluster_config: Path | None = None
    n_workers: int | None = None
    memory_limit: str | None = None
    device: str | None = None
    """Where the workers of a local cluster compute: ``cpu``, ``gpu``, or ``auto``: on GPUs if there are any;
    None: what the section says."""

    def scheduler_at(self) -> dict[str, Any] | None:
        """Return the arguments with which a client finds its scheduler; None: a cluster is to be started.

        Options come before DASK_SCHEDULER_ADDRESS, and that before a ``cluster:`` section.

        Raises
        ------
        UsageError
            For options that do not go together.
        """
        import dask

        given = self._given("scheduler", "scheduler_file", "cluster", "cluster_config")
        for first, second in (("--scheduler", "--scheduler-file"), ("--scheduler", "--cluster"),
                              ("--scheduler", "--cluster-config"), ("--scheduler-file", "--cluster"),
                              ("--scheduler-file", "--cluster-config")):  # fmt: skip
            if first in given and second in given:
                raise UsageError(
                    f"{first} {given[first]} with {second} {given[second]}: they do not go together, give one of them"
                )
        if self.device not in (None, *DEVICES):
            raise UsageError(f"--device {self.device!r} is not one of {', '.join(DEVICES)}")
        address = None if self.cluster or self.cluster_config else dask.config.get("scheduler-address", None)
        if not (self.scheduler or self.scheduler_file or address):
            return None
        if self._given("n_workers", "memory_limit"):
            raise UsageError("--n-workers and --memory-limit are for a local cluster, not with a scheduler")
        if self.device == "gpu":
            raise UsageError("--device is for a local cluster, not with a scheduler, whose workers are there")
        if self.scheduler_file:
            _check_scheduler_file(self.scheduler_file)
            return {"scheduler_file": str(self.scheduler_file)}
        return {"address": self.scheduler or address}

    def spec(self, section: ClusterSpec | None = None) -> ClusterSpec:
        """Return the cluster to start; ``section`` is the one that a run's file describes.

        A section's options are for the kind of cluster that it names, and do not count for another one.
        """
        if self.cluster is not None:
            find_cluster(self.cluster)
        found = read_cluster(self.cluster_config, self.cluster) if self.cluster_config else section
        if found is None or (self.cluster is not None and found.name != self.cluster):
            if self.cluster_config and found is not None:
                raise UsageError(
                    f"--cluster {self.cluster} with --cluster-config {self.cluster_config}, which is for {found.name}"
                )
            found = ClusterSpec(self.cluster or LOCAL)
        given = {"n_workers": self.n_workers, "memory_limit": self.memory_limit}
        if found.name == LOCAL:
            given["device"] = self.device
        elif self.device not in (None, "auto", DEVICE_OF.get(found.name)):
            raise UsageError(f"--device {self.device} is for the cluster {LOCAL}, not for {found.name}")
        known = found.defaults()
        for name, value in given.items():
            if value is not None and name not in known:
                raise UsageError(f"--{name.replace('_', '-')} is not for the cluster {found.name}")
        return ClusterSpec(
            found.name, {**found.options, **{key: value for key, value in given.items() if value is not None}}
        )

    def open(self, section: ClusterSpec | None = None) -> AbstractContextManager["Client"]:
        """Return the cluster to start, as a context manager that yields its client."""
        return self.spec(section).open()

    def opened_by_one(self, section: ClusterSpec | None = None) -> bool:
        """Return whether one process runs the command, not every process of the cluster; nothing is started.

        Raises what :func:`open_client` does for options that are not allowed.
        """
        if self.scheduler_at() is not None:
            return True
        self.open(section)
        return not getattr(find_cluster(self.spec(section).name), "every_process_opens_it", False)

    def _given(self, *names: str) -> dict[str, Any]:
        found = {f"--{name.replace('_', '-')}": getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value not in (None, "")}


@contextlib.contextmanager
def open_client(place: Place, section: ClusterSpec | None = None) -> Iterator["Client"]:
    """Yield a client of the scheduler that ``place`` names, or of a cluster that is closed at the end."""
    from distributed import Client

    where = place.scheduler_at()
    opened = place.open(section) if where is None else Client(**where, timeout=connect_timeout())
    with opened as client:
        yield client
