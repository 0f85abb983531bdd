"""A cluster of worker processes on this machine's cores.

In a script, under the guard that spawned workers need::

    from cluster_setup.local_cpu import local_cpu

    if __name__ == "__main__":
        with local_cpu(n_workers=8, memory_limit="6GiB", spill_folder="/scratch/spill") as client:
            print(client.dashboard_link)
            result = dc.compute(picks, store="run.zarr")

Or as a command that keeps a cluster up, to which any number of runs connect one after another::

    python -m cluster_setup.local_cpu --n-workers 8 --memory-limit 6GiB --scheduler-file s.json
    daskcurate run config.yaml --scheduler-file s.json
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cluster_setup.keeping import keep_up
from daskcurate.local_cluster import make_local_cluster

if TYPE_CHECKING:
    from distributed import Client


@contextmanager
def local_cpu(
    n_workers: int | None = None,
    threads_per_worker: int = 1,
    memory_limit: int | str = "auto",
    spill_folder: str | os.PathLike[str] | None = None,
    dashboard_address: str | None = "127.0.0.1:8787",
    scheduler_port: int = 0,
) -> Iterator["Client"]:
    """Yield a client of a fresh cluster of worker processes; close both at the end.

    Parameters
    ----------
    n_workers : int, optional
        Worker processes; by default as many as the cores that this process may use. Fewer of them leave
        more memory to each: chunks and blocks are sized by a worker's limit.
    threads_per_worker : int
        Tasks that one worker runs at a time, sharing its memory. BLAS has one thread for each.
    memory_limit : int or str
        Per worker: bytes, text such as ``"4GiB"``, or ``"auto"`` (80 % of the memory of the machine or the
        control group, shared equally).
    spill_folder : path, optional
        Where workers put results that do not fit in memory; a fast local disk, never a network one.
    dashboard_address : str or None
        ``host:port`` of the dashboard; any free port if that one is taken; None for no dashboard. The
        dashboard shows code and data, has no password, and so is for this machine only by default; reach
        it from elsewhere with ``ssh -L 8787:127.0.0.1:8787 machine``.
    scheduler_port : int
        Port of the scheduler on 127.0.0.1; 0 for any free one.

    Yields
    ------
    distributed.Client
        The current client while the context lasts.

    Raises
    ------
    TypeError, ValueError
        For an argument that is not allowed, before any process is started.
    NotADirectoryError
        If ``spill_folder`` is a file.
    """
    from distributed import Client

    with (
        make_local_cluster(
            n_workers=n_workers,
            threads_per_worker=threads_per_worker,
            memory_limit=memory_limit,
            spill_folder=spill_folder,
            dashboard_address=dashboard_address,
            scheduler_port=scheduler_port,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep a cluster up until SIGINT or SIGTERM; return the exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command-line arguments; those of the process by default.

    Returns
    -------
    int
        0 after a clean close, 2 if an argument is not allowed.
    """
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    scheduler_file: Path | None = given.pop("scheduler_file")
    if given["dashboard_address"] == "none":
        given["dashboard_address"] = None
    if given["memory_limit"].isdigit():
        given["memory_limit"] = int(given["memory_limit"])
    return keep_up(lambda: local_cpu(**given), scheduler_file, parser.prog)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster_setup.local_cpu",
        description="Keep a Dask cluster of processes up on this machine until Ctrl-C or SIGTERM.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--n-workers", type=int, help="worker processes (default: the cores)")
    add("--threads-per-worker", type=int, default=1, help="tasks that one worker runs at a time")
    add("--memory-limit", default="auto", help="per worker: bytes, text such as 4GiB, or auto")
    add("--spill-folder", type=Path, help="a fast local disk for results that do not fit in memory")
    add("--dashboard-address", default="127.0.0.1:8787", help="host:port, or none")
    add("--scheduler-port", type=int, default=0, help="0: any free port")
    add("--scheduler-file", type=Path, help="written once the cluster is up, removed when it closes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
