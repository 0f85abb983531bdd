"""A Dask cluster on this machine's GPUs: a worker process for each, through dask-cuda."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daskcurate.config import Config, check_int, check_number
from daskcurate.local_cluster import (
    LocalClusterConfig,
    free_address,
    made_folder,
    settings_in_force,
    start_local_cluster,
)

NEEDED = ("cupy", "dask_cuda")
"""What the extras gpu-cu12 and gpu-cu13 install."""


class NoGpuError(ValueError):
    """A GPU was asked for, and there is none that could be used."""


def _missing() -> list[str]:
    """Return what is needed and not installed; a module that something else has put in its place does not count."""

    def found(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except ValueError:  # in sys.modules, and not from an installed package
            return False

    return [name for name in NEEDED if not found(name)]


def gpu_names() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none without the extra.

    Asked of the driver's management library: CUDA itself would take memory of the first one for this process.
    """
    if _missing():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        return names[: names.index("-1")] if "-1" in names else [name for name in names if name]
    import pynvml

    try:
        pynvml.nvmlInit()
        return [str(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


@dataclass(frozen=True, kw_only=True)
class LocalCudaConfig(Config):
    """Which GPUs of this machine have a worker, and what each worker may use."""

    n_workers: int | None = None
    """Workers, one a GPU; None: all GPUs. Fewer take the first ones."""
    devices: Sequence[int | str] | None = None
    """GPUs by number or UUID; None: those of CUDA_VISIBLE_DEVICES, else all."""
    threads_per_worker: int = 4
    """Tasks that one worker runs at a time; two of them use the GPU at once, the others read and sort."""
    memory_limit: int | str = "auto"
    """Memory of the host per worker: bytes, text such as ``64GiB``, or ``auto``: 80 % of it, shared equally."""
    device_memory_limit: float = 0.8
    """Fraction of the GPU's memory from which on results that lie there are moved to the host."""
    rmm_pool: float = 0.8
    """Fraction of the GPU's memory that CuPy (and torch, where it is installed) share as one pool, where RMM is
    installed; 0: each library keeps its own."""
    spill_folder: str | os.PathLike[str] | None = None
    """Where workers put results that do not fit in the host's memory; made if missing."""
    dashboard_address: str | None = "127.0.0.1:8787"
    """``host:port`` of the dashboard, on another port if that one is taken; None: no dashboard."""
    scheduler_port: int = 0
    """Port of the scheduler; 0: any free one."""

    def __post_init__(self):
        self._set(
            "device_memory_limit", check_number("device_memory_limit", self.device_memory_limit, 0.05, 1)
        )
        self._set("rmm_pool", check_number("rmm_pool", self.rmm_pool, 0, 0.95))
        if self.devices is not None:
            allowed = f"devices={self.devices!r} is not allowed: give numbers or UUIDs of GPUs, or None"
            if isinstance(self.devices, str) or not isinstance(self.devices, Sequence):
                raise TypeError(allowed)
            for item in self.devices:
                if isinstance(item, bool) or not isinstance(item, int | str):
                    raise TypeError(allowed)
            if not self.devices:
                raise ValueError(allowed)
        host = self.host()
        self._set("n_workers", host.n_workers)
        self._set("threads_per_worker", host.threads_per_worker)
        self._set("memory_limit", host.memory_limit)
        self._set("scheduler_port", check_int("scheduler_port", self.scheduler_port, 0, 65535))

    def host(self) -> LocalClusterConfig:
        """Return what does not concern the GPUs, checked."""
        return LocalClusterConfig(
            n_workers=self.n_workers,
            threads_per_worker=self.threads_per_worker,
            memory_limit=self.memory_limit,
            spill_folder=self.spill_folder,
            dashboard_address=self.dashboard_address,
            scheduler_port=self.scheduler_port,
        )

    def gpus(self) -> list[str]:
        """Return the GPUs that get a worker.

        Raises NoGpuError where there are none, or fewer than workers.
        """
        missing = _missing()
        if missing:
            raise NoGpuError(
                f"a GPU is asked for, but not installed: {', '.join(missing)}; "
                "install daskcurate[gpu-cu12] or daskcurate[gpu-cu13]"
            )
        found = [str(item) for item in self.devices] if self.devices is not None else gpu_names()
        if not found:
            raise NoGpuError(
                "a GPU is asked for, but this machine has none that the NVIDIA driver shows "
                f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})"
            )
        if self.n_workers is not None and self.n_workers > len(found):
            raise NoGpuError(
                f"n_workers={self.n_workers} is not allowed: there are {len(found)} GPUs, one a worker"
            )
        return found[: self.n_workers]


def start_local_cuda(config: LocalCudaConfig) -> Any:
    """Start the cluster that a checked configuration describes; return it, a context manager.

    Raises NoGpuError, before any process is started, where there is no GPU or the extra is not installed.
    """
    gpus = config.gpus()
    folder = made_folder(config.spill_folder)
    from dask_cuda import LocalCUDACluster

    pool: dict[str, Any] = {}
    if config.rmm_pool and importlib.util.find_spec("rmm") is not None:
        shared = [name for name in ("cupy", "torch") if importlib.util.find_spec(name) is not None]
        pool = {"rmm_pool_size": config.rmm_pool, "rmm_allocator_external_lib_list": shared}
    host = dataclasses.replace(config.host(), n_workers=len(gpus))
    with settings_in_force():
        return LocalCUDACluster(
            CUDA_VISIBLE_DEVICES=gpus,
            n_workers=len(gpus),
            threads_per_worker=config.threads_per_worker,
            memory_limit=host.memory(),
            device_memory_limit=config.device_memory_limit,
            local_directory=folder,
            dashboard_address=free_address(config.dashboard_address),
            scheduler_port=config.scheduler_port,
            # given here, because dask-cuda's own take the place of those of Dask's configuration
            preload=["daskcurate.local_cluster"],
            **pool,
        )


def gpu_config(device: str, config: LocalClusterConfig) -> LocalCudaConfig | None:
    """Return the cluster on GPUs to start where ``config`` is asked for on a ``device``; None: it is on the cores.

    ``auto`` takes GPUs where there are some and the extra is installed, and no more workers than GPUs.
    """
    gpus = gpu_names() if device == "auto" else []
    if device == "cpu" or (device == "auto" and not gpus):
        return None
    given = {
        name: value
        for name, value in config.as_dict().items()
        if value != getattr(LocalClusterConfig(), name)
    }
    if gpus and config.n_workers is not None:
        given["n_workers"] = min(config.n_workers, len(gpus))
    return LocalCudaConfig(**given)


def start_on(device: str, config: LocalClusterConfig) -> Any:
    """Start a local cluster on the ``device`` that is asked for: ``cpu``, ``gpu``, or ``auto``."""
    on_gpus = gpu_config(device, config)
    return start_local_cluster(config) if on_gpus is None else start_local_cuda(on_gpus)
