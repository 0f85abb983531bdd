"""A cluster kept up for others to connect to, until a signal ends it."""

import json
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client


def keep_up(
    start: Callable[[], AbstractContextManager["Client"]], scheduler_file: Path | None, program: str
) -> int:
    """Keep a cluster up until SIGINT or SIGTERM; return the exit status.

    Parameters
    ----------
    start
        Returns the context manager of the cluster.
    scheduler_file
        Written once the cluster is up, and removed when it closes.
    program
        Name of the command, for messages.

    Returns
    -------
    int
        0 after a clean close, 2 if something given is not allowed.
    """
    written = False
    stop = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        if scheduler_file is not None and not scheduler_file.absolute().parent.is_dir():
            raise NotADirectoryError(
                f"--scheduler-file {scheduler_file}: there is no folder {scheduler_file.absolute().parent}"
            )
        with start() as client:
            _announce(client)
            if scheduler_file is not None:
                _write_scheduler_file(client, scheduler_file)
                written = True
            print("Ctrl-C to stop", flush=True)
            stop.wait()
            print("closing", flush=True)
    except (TypeError, ValueError, OSError, ImportError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if scheduler_file is not None and written:
            # A file that outlives its scheduler makes the next run wait for a machine that is not there.
            scheduler_file.unlink(missing_ok=True)
    return 0


def _announce(client: "Client") -> None:
    """Print where scheduler and dashboard are, and what the workers have."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limit = min((worker["memory_limit"] for worker in workers), default=0)
    threads = sum(worker["nthreads"] for worker in workers)
    print(f"scheduler  {client.scheduler_info(n_workers=0)['address']}")
    print(f"dashboard  {client.dashboard_link or 'none'}")
    print(f"workers    {len(workers)} ({threads} threads, {limit / 2**30:.2f} GiB each)")


def _write_scheduler_file(client: "Client", path: Path) -> None:
    """Write what ``Client(scheduler_file=...)`` reads; renamed into place, so that nobody sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(client.scheduler_info(n_workers=0) | {"workers": {}}, default=str))
    partial.replace(path)
    print(f"file       {path}")
