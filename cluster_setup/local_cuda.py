"""A cluster of worker processes on this machine's NVIDIA GPUs, one each.

Needs the extra ``gpu-cu12`` or ``gpu-cu13``. In a script, under the guard that spawned workers need::

    from cluster_setup.local_cuda import local_cuda

    if __name__ == "__main__":
        with local_cuda(spill_folder="/scratch/spill") as client:
            print(client.dashboard_link)
            result = dc.compute(picks, store="run.zarr")

A worker computes on its GPU and reads, sorts and writes on the host. Blocks of rows stay on the GPU between the
passes of a loop where half of its memory holds them; a larger pool is copied there block by block.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from daskcurate.local_cuda import LocalCudaConfig, start_local_cuda

if TYPE_CHECKING:
    from distributed import Client


def local_cuda(
    n_workers: int | None = None,
    devices: Sequence[int | str] | None = None,
    threads_per_worker: int = 4,
    memory_limit: int | str = "auto",
    device_memory_limit: float = 0.8,
    rmm_pool: float = 0.8,
    spill_folder: str | os.PathLike[str] | None = None,
    dashboard_address: str | None = "127.0.0.1:8787",
    scheduler_port: int = 0,
) -> AbstractContextManager["Client"]:
    """Return a context manager that yields a client of a fresh cluster on the GPUs, and closes both at the end.

    Parameters
    ----------
    n_workers : int, optional
        Workers, one a GPU; by default all GPUs. Fewer take the first ones.
    devices : sequence of int or str, optional
        GPUs by number or UUID; by default those of ``CUDA_VISIBLE_DEVICES``, else all.
    threads_per_worker : int
        Tasks that one worker runs at a time. Two of them use the GPU at once.
    memory_limit : int or str
        The host's memory for each worker: bytes, text such as ``"64GiB"``, or ``"auto"`` (80 % of the memory of
        the machine or the control group, shared equally).
    device_memory_limit : float
        Fraction of the GPU's memory from which on results that lie there are moved to the host.
    rmm_pool : float
        Fraction of the GPU's memory that CuPy, and torch where it is installed, share as one pool; it takes RMM.
        0 leaves each library its own.
    spill_folder : path, optional
        Where workers put results that do not fit in the host's memory; a fast local disk, never a network one.
    dashboard_address : str or None
        ``host:port`` of the dashboard, by default for this machine only; any free port if that one is taken; None
        for no dashboard.
    scheduler_port : int
        Port of the scheduler on 127.0.0.1; 0 for any free one.

    Raises
    ------
    TypeError, ValueError
        For an argument that is not allowed, at once.
    daskcurate.local_cuda.NoGpuError
        Where there is no GPU, or what it takes is not installed; a ValueError.
    """
    return _started(
        LocalCudaConfig(
            n_workers=n_workers,
            devices=devices,
            threads_per_worker=threads_per_worker,
            memory_limit=memory_limit,
            device_memory_limit=device_memory_limit,
            rmm_pool=rmm_pool,
            spill_folder=spill_folder,
            dashboard_address=dashboard_address,
            scheduler_port=scheduler_port,
        )
    )


@contextmanager
def _started(config: LocalCudaConfig) -> Iterator["Client"]:
    from distributed import Client

    with start_local_cuda(config) as cluster, Client(cluster) as client:
        yield client
