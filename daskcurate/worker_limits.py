"""What a cluster's workers have, and how much of it they may use: asked of the workers themselves."""

from collections import Counter
from collections.abc import Collection
from typing import Any

import dask
from distributed import Client
from distributed.system_monitor import SystemMonitor

from daskcurate.device import uses_gpu, wanted_device
from daskcurate.planning import Limits
from daskcurate.settings import MemoryShares, shuffle_buffers

LATER_BYTES = 48 << 20
"""What a process holds for good besides what it held when it loaded this module: the worker, Dask's data frames
and shuffle, together 18 to 30 MiB where that was measured; buffers of BLAS and of zarr's threads."""

# by this Dask judges a process
_monitor = SystemMonitor(
    maxlen=1, monitor_disk_io=False, monitor_host_cpu=False, monitor_gil_contention=False
)
_least = _monitor.get_process_memory()


def memory_of_worker() -> tuple[dict[str, Any], int, int]:
    """Return the worker's settings of memory, the bytes that its process holds without any data, and shuffle buffers.

    The second are the fewest that it was seen to hold since it loaded this package.
    """
    global _least
    _least = min(_least, _monitor.get_process_memory())
    return (
        dict(dask.config.get("distributed.worker.memory")),
        _least + LATER_BYTES,
        shuffle_buffers(dask.config.get("distributed.p2p")),
    )


def _asked(client: Client) -> dict[str, Any]:
    """Return the workers' shares and baseline, the worst of all; nothing where none answers."""
    found = client.run(memory_of_worker, on_error="ignore").values()
    if not found:
        return {}
    shares = [MemoryShares.of(settings) for settings, *_ in found]
    worst = MemoryShares(
        target=min(item.target for item in shares),
        spill=min(item.spill for item in shares),
        pause=min(item.pause for item in shares),
    )
    return {
        "shares": worst,
        "process_bytes": max(held for _, held, _ in found),
        "shuffle_buffers": max(buffers for *_, buffers in found),
    }


def _on_gpu(client: Client, workers: Collection[Any]) -> bool:
    """Return whether the workers compute on GPUs; none is asked where their machines show none."""
    if (wanted := wanted_device()) != "auto":
        return wanted == "gpu"
    return any("gpu" in worker["metrics"] for worker in workers) and any(client.run(uses_gpu).values())


def cluster_limits(client: Client) -> Limits:
    """Return the workers' number, threads and memory limits, as they are now, and what they compute on."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    memory = [int(worker["memory_limit"]) for worker in workers if worker["memory_limit"]]
    hosts = Counter[str]()
    for worker in workers:
        hosts[worker["host"]] += int(worker["nthreads"])
    return Limits(
        n_workers=max(1, len(workers)),
        n_threads=max(1, sum(int(worker["nthreads"]) for worker in workers)),
        worker_memory=min(memory) if memory else None,
        threads_per_worker=max((int(worker["nthreads"]) for worker in workers), default=1),
        host_threads=max(1, min(hosts.values(), default=1)),
        on_gpu=_on_gpu(client, workers),
        **_asked(client),
    )
