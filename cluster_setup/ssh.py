"""Workers on machines that SSH reaches.

In a script::

    from cluster_setup.ssh import ssh

    if __name__ == "__main__":
        with ssh(["node1", "node2"], workers_per_host=4, threads_per_worker=4, memory_limit="14GiB") as client:
            result = dc.compute(picks, store="/shared/run.zarr")

Every machine needs the same Python packages, and sees pool and store under the same path or at a URL. You
need to be able to log in without a password: by a key, or an agent.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from daskcurate.config import Config, check_int
from daskcurate.local_cluster import (
    check_memory,
    check_path,
    check_text,
    dashboard_links,
    host_and_port,
    settings_in_force,
)

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True, kw_only=True)
class SshConfig(Config):
    """The options of :func:`ssh`, checked."""

    hosts: Sequence[str] = ()
    scheduler_host: str | None = None
    workers_per_host: int = 1
    threads_per_worker: int | None = None
    memory_limit: int | str = "auto"
    connect: Mapping[str, Any] = field(default_factory=dict)
    python: str | None = None
    interface: str | None = None
    spill_folder: str | os.PathLike[str] | None = None
    dashboard_address: str | None = "127.0.0.1:8787"
    scheduler_port: int = 0

    def __post_init__(self):
        hosts = self.hosts
        if (
            not isinstance(hosts, list | tuple)
            or not hosts
            or not all(isinstance(h, str) and h for h in hosts)
        ):
            raise TypeError(f"hosts={hosts!r} is not allowed: give a list of host names or addresses")
        for name in ("scheduler_host", "python", "interface"):
            check_text(name, getattr(self, name))
        self._set("workers_per_host", check_int("workers_per_host", self.workers_per_host, 1))
        if self.threads_per_worker is not None:
            self._set("threads_per_worker", check_int("threads_per_worker", self.threads_per_worker, 1))
        elif self.workers_per_host > 1:
            raise ValueError(
                f"workers_per_host={self.workers_per_host} is not allowed without threads_per_worker: the workers "
                "of a machine share its cores, give each its number"
            )
        self._set("memory_limit", check_memory(self.memory_limit))
        if not isinstance(self.connect, Mapping):
            raise TypeError(
                f"connect={self.connect!r} is not allowed: give options of asyncssh.connect, such as "
                "{'username': 'me', 'client_keys': ['~/.ssh/id_ed25519']}"
            )
        check_path("spill_folder", self.spill_folder)
        if self.dashboard_address is not None:
            host_and_port(self.dashboard_address)
        self._set("scheduler_port", check_int("scheduler_port", self.scheduler_port, 0, 65535))


def ssh(
    hosts: Sequence[str] = (),
    workers_per_host: int = 1,
    threads_per_worker: int | None = None,
    memory_limit: int | str = "auto",
    *,
    scheduler_host: str | None = None,
    connect: Mapping[str, Any] | None = None,
    python: str | None = None,
    interface: str | None = None,
    spill_folder: str | os.PathLike[str] | None = None,
    dashboard_address: str | None = "127.0.0.1:8787",
    scheduler_port: int = 0,
) -> AbstractContextManager["Client"]:
    """Yield a client of a cluster whose scheduler and workers are started over SSH; stop them at the end.

    Parameters
    ----------
    hosts : sequence of str
        Machines of the workers.
    workers_per_host : int
        Worker processes on each, each under a nanny.
    threads_per_worker : int, optional
        Tasks that one worker runs at a time; None, for one worker a machine: its cores.
    memory_limit : int or str
        Per worker: bytes, text such as ``"4GiB"``, or ``"auto"``: the worker's part of its machine's memory,
        by its share of the cores.
    scheduler_host : str, optional
        Machine of the scheduler; None: the first of ``hosts``.
    connect : mapping, optional
        Options of ``asyncssh.connect``: ``username``, ``port``, ``client_keys``, ``known_hosts`` ...
    python : str, optional
        Python on those machines; None: under the same path as the one that runs this.
    interface : str, optional
        Network interface that scheduler and workers listen on, such as ``ib0``; None: that of the default
        route.
    spill_folder : path, optional
        Where workers put results that do not fit in memory, on each machine.
    dashboard_address : str or None
        ``host:port`` of the dashboard on the scheduler's machine; None for no dashboard. It has no password;
        ``ssh -L 8787:127.0.0.1:8787 node1`` shows it here.
    scheduler_port : int
        Port of the scheduler, which workers and this process must reach; 0 for any free one.

    Yields
    ------
    distributed.Client
        The current client while the context lasts.

    Raises
    ------
    TypeError, ValueError
        For an option that is not allowed, at once.
    ImportError
        If asyncssh (extra ``ssh``) is not installed.
    """
    given = {name: value for name, value in locals().items() if name != "connect"}
    return _started(SshConfig(**given, connect={} if connect is None else connect))


@contextmanager
def _started(config: SshConfig) -> Iterator["Client"]:
    try:
        import asyncssh  # noqa: F401 - Dask would say so only after it has opened a connection
    except ImportError as error:
        raise ImportError("SSH needs the package asyncssh: pip install daskcurate[ssh]") from error
    from distributed import Client, SSHCluster

    scheduler = {
        "interface": config.interface,
        "port": config.scheduler_port,
        "dashboard_address": config.dashboard_address,
        "dashboard": config.dashboard_address is not None,
    }
    worker = {
        "interface": config.interface,
        "n_workers": config.workers_per_host,
        "nthreads": config.threads_per_worker,
        "memory_limit": config.memory_limit,
    }
    if config.spill_folder is not None:
        worker["local_directory"] = os.fspath(config.spill_folder)
    with settings_in_force():
        cluster = SSHCluster(
            [config.scheduler_host or config.hosts[0], *config.hosts],
            connect_options=dict(config.connect),
            worker_options=worker,
            scheduler_options=scheduler,
            remote_python=config.python,
        )
    with dashboard_links(config.dashboard_address), cluster, Client(cluster) as client:
        client.wait_for_workers(len(config.hosts) * config.workers_per_host)
        yield client
