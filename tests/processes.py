"""Processes that tests start, and stop at the end."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

DASK = [sys.executable, "-m", "dask"]


def until(condition, what, seconds=180):
    """Wait until ``condition()`` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)


@contextmanager
def running(command, log, **environment):
    """Run a command of Dask's, its output in a file, until the end of the context."""
    with open(log, "w") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=output, env={**os.environ, **environment}
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def by_hand(folder, settings, n_workers=2, protocol="tcp"):
    """Start a scheduler and workers with Dask's own commands; yield the scheduler's file."""
    file = folder / "scheduler.json"
    common = {"DASK_CONFIG": str(settings)}
    with ExitStack() as stack:
        scheduler = [*DASK, "scheduler", "--host", "127.0.0.1", "--port", "0", "--protocol", protocol]
        scheduler += ["--dashboard-address", "127.0.0.1:0", "--scheduler-file", file]
        stack.enter_context(running(scheduler, folder / "scheduler.log", **common))
        for number in range(n_workers):
            worker = [*DASK, "worker", "--scheduler-file", file, "--nthreads", "1", "--memory-limit", "1GiB"]
            worker += [
                "--local-directory",
                folder / f"spill-{number}",
                "--no-dashboard",
                "--protocol",
                protocol,
            ]
            stack.enter_context(running(worker, folder / f"worker-{number}.log", **common))
        until(file.exists, "the scheduler's file")
        yield file
