"""A Dask cluster of processes on this machine, set up for out-of-core work on arrays."""

import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskcurate.config import Config, check_int
from daskcurate.settings import dask_settings, worker_environment

if TYPE_CHECKING:
    from distributed import LocalCluster

SMALLEST_LIMIT = 128 * 2**20
"""A worker that has only imported NumPy, SciPy and Dask holds about this much."""

LOST_WORKER_TIMEOUT = "distributed.deploy.lost-worker-timeout"


@dataclass(frozen=True, kw_only=True)
class LocalClusterConfig(Config):
    """How many workers run on this machine, and what each may use."""

    n_workers: int | None = None
    """Worker processes; None: as many as the cores that this process may use, by ``threads_per_worker``."""
    threads_per_worker: int = 1
    """Tasks that one worker runs at a time."""
    memory_limit: int | str = "auto"
    """Per worker: bytes, text such as ``4GiB``, or ``auto``: 80 % of the machine's (or control group's)
    memory, shared equally."""
    spill_folder: str | os.PathLike[str] | None = None
    """Where workers put results that do not fit in memory; made if missing. None: Dask's own choice."""
    dashboard_address: str | None = "127.0.0.1:8787"
    """``host:port`` of the dashboard, on another port if that one is taken; None: no dashboard."""
    scheduler_port: int = 0
    """Port of the scheduler; 0: any free one."""

    def __post_init__(self):
        if self.n_workers is not None:
            self._set("n_workers", check_int("n_workers", self.n_workers, 1))
        self._set("threads_per_worker", check_int("threads_per_worker", self.threads_per_worker, 1))
        self._set("memory_limit", check_memory(self.memory_limit))
        check_path("spill_folder", self.spill_folder)
        if self.dashboard_address is not None:
            host_and_port(self.dashboard_address)
        self._set("scheduler_port", check_int("scheduler_port", self.scheduler_port, 0, 65535))

    def workers(self) -> int:
        """Return the number of worker processes."""
        if self.n_workers is not None:
            return self.n_workers
        from dask.system import cpu_count

        return max(1, cpu_count() // self.threads_per_worker)

    def memory(self) -> int:
        """Return the memory limit of one worker in bytes."""
        if not isinstance(self.memory_limit, str):
            return self.memory_limit
        from distributed.system import memory_limit

        # Not all of it: this process, the scheduler and the page cache need room as well.
        return max(SMALLEST_LIMIT, memory_limit() * 4 // 5 // self.workers())


def check_memory(given: int | str) -> int | str:
    """Return a worker's ``memory_limit`` in bytes, or ``auto``, if it is one."""
    refused = f"memory_limit={given!r} is not allowed: give 'auto', a number of bytes, or text such as '4GiB'"
    if given == "auto":
        return given
    if isinstance(given, str):
        from dask.utils import parse_bytes

        try:
            size = parse_bytes(given)
        except ValueError as error:
            raise ValueError(refused) from error
    elif isinstance(given, int) and not isinstance(given, bool):
        size = given
    else:
        raise TypeError(refused)
    if size < SMALLEST_LIMIT:
        raise ValueError(
            f"memory_limit={given!r} is not allowed: it is the limit of each worker, which needs "
            f"at least {SMALLEST_LIMIT >> 20} MiB before it holds any data"
        )
    return size


def check_path(name: str, given: str | os.PathLike[str] | None) -> None:
    """Raise TypeError unless ``given`` is a path or None."""
    if given is not None and not isinstance(given, str | os.PathLike):
        raise TypeError(f"{name}={given!r} is not allowed: give a path or None")


def check_text(name: str, given: Any) -> None:
    """Raise TypeError unless ``given`` is text or None."""
    if given is not None and (not isinstance(given, str) or not given):
        raise TypeError(f"{name}={given!r} is not allowed: give text or None")


def host_and_port(address: str) -> tuple[str, int]:
    """Return the host and port of a ``host:port`` text; no host means all interfaces, as in Dask."""
    if not isinstance(address, str):
        raise TypeError(f"dashboard_address={address!r} is not allowed: give 'host:port' or None")
    host, _, port = address.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(
            f"dashboard_address={address!r} is not allowed: give 'host:port' with a port from 0 to 65535, "
            "such as '127.0.0.1:8787'"
        )
    return host, int(port)


def make_local_cluster(
    n_workers: int | None = None,
    threads_per_worker: int = 1,
    memory_limit: int | str = "auto",
    spill_folder: str | os.PathLike[str] | None = None,
    dashboard_address: str | None = "127.0.0.1:8787",
    scheduler_port: int = 0,
) -> "LocalCluster":
    """Start a cluster of worker processes, each under a nanny, on this machine.

    Workers are processes because only for them do memory limits hold. The call returns when all workers are
    connected. Scripts need an ``if __name__ == "__main__":`` guard, since workers are spawned.

    Parameters
    ----------
    n_workers : int, optional
        Worker processes; by default as many as the cores that this process may use, divided by
        ``threads_per_worker``.
    threads_per_worker : int
        Tasks that one worker runs at a time.
    memory_limit : int or str
        Per worker: bytes, text such as ``"4GiB"``, or ``"auto"`` (80 % of the memory of the machine or the
        control group, shared equally).
    spill_folder : path, optional
        Where workers put results that do not fit in memory; made if missing.
    dashboard_address : str or None
        ``host:port`` of the dashboard; any free port if that one is taken; None for no dashboard.
    scheduler_port : int
        Port of the scheduler on 127.0.0.1; 0 for any free one.

    Returns
    -------
    distributed.LocalCluster
        A context manager; close it to stop the workers.

    Raises
    ------
    TypeError, ValueError
        For an argument that is not allowed, before any process is started.
    NotADirectoryError
        If ``spill_folder`` is a file.
    """
    config = LocalClusterConfig(
        n_workers=n_workers,
        threads_per_worker=threads_per_worker,
        memory_limit=memory_limit,
        spill_folder=spill_folder,
        dashboard_address=dashboard_address,
        scheduler_port=scheduler_port,
    )
    return start_local_cluster(config)


def start_local_cluster(config: LocalClusterConfig) -> "LocalCluster":
    """Start the cluster that a checked configuration describes; see :func:`make_local_cluster`."""
    folder = made_folder(config.spill_folder)
    import dask
    from distributed import LocalCluster

    # The nannies keep a copy of both for the workers that they start later in place of lost ones.
    preload = {"distributed.worker.preload": [*dask.config.get("distributed.worker.preload"), __name__]}
    with settings_in_force(), dask.config.set(preload):
        return LocalCluster(
            n_workers=config.workers(),
            threads_per_worker=config.threads_per_worker,
            memory_limit=config.memory(),
            local_directory=folder,
            dashboard_address=free_address(config.dashboard_address),
            scheduler_port=config.scheduler_port,
            processes=True,
        )


@contextmanager
def settings_in_force() -> Iterator[None]:
    """Put ``daskcurate.dask`` and ``daskcurate.environment`` in force for what is started meanwhile."""
    import dask

    quieten_shuffles()
    settings = dask_settings()
    # Read when a worker is lost, so it is set for the whole process.
    dask.config.set({name: settings[name] for name in (LOST_WORKER_TIMEOUT,) if name in settings})
    with dask.config.set(settings), _environment(worker_environment()):
        yield


def dask_setup(worker: object) -> None:
    """Make a worker ignore Ctrl-C: called by Dask in each, since it loads this module first.

    A terminal sends Ctrl-C to all processes at once. The workers are to be closed by the one that started
    them, rather than to print a traceback each. Nor is a heartbeat worth one that is on its way when the
    scheduler closes: that is of the same process, so that nothing else can have happened to it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("distributed.worker").addFilter(_is_no_lost_heartbeat)


def _is_no_lost_heartbeat(record: logging.LogRecord) -> bool:
    """Tell which of a worker's messages are printed."""
    return "Failed to communicate with scheduler during heartbeat" not in record.getMessage()


def made_folder(folder: str | os.PathLike[str] | None) -> str | None:
    """Return the absolute path of a ``spill_folder``, made if it is missing; OSError if that cannot be."""
    if folder is None:
        return None
    path = Path(folder).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"spill_folder={str(folder)!r} is not a folder") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"spill_folder={str(folder)!r} is not writable")
    return str(path)


def free_address(address: str | None) -> str | None:
    """Return ``address``, with port 0 (any) if its port is taken: Dask would do the same, but warn."""
    if address is None:
        return None
    host, port = host_and_port(address)
    with socket.socket() as probe:
        # As Dask's server does: a port of which only old connections remain is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return f"{host}:0"
    return address


@contextmanager
def dashboard_links(address: str | None) -> Iterator[None]:
    """Have links to a dashboard that listens for its machine alone say so; Dask puts the scheduler's host in."""
    import dask

    host = host_and_port(address)[0] if address is not None else ""
    local = {"distributed.dashboard.link": f"{{scheme}}://{host}:{{port}}/status"}
    with dask.config.set(local if host in ("127.0.0.1", "localhost") else {}):
        yield


def quieten_shuffles() -> None:
    """Drop the warnings that Dask's shuffle logs whenever one is finished; leave a level set by the user."""
    logger = logging.getLogger("distributed.shuffle")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and put back what was there.

    A variable of the shell takes precedence over Dask's configuration; one that says OMP_NUM_THREADS=16
    would start 16 threads in every worker.
    """
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
