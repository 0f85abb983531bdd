"""Workers as SLURM jobs, or as the tasks of one allocation.

:func:`slurm` runs the script where it is started, a login node for instance, and submits jobs of workers,
each with the cores and the memory that it asks for::

    from cluster_setup.slurm import slurm

    if __name__ == "__main__":
        with slurm(n_workers=8, threads_per_worker=4, memory_limit="16GiB", queue="batch") as client:
            result = dc.compute(picks, store="/shared/run.zarr")

:func:`slurm_allocation` runs within a job that has all the resources: ``srun -n 10 python script.py`` starts
the script ten times; one of them becomes the scheduler, one goes on, and the other eight become workers.

Pool and store must be under the same path on all machines, or at a URL.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskcurate.config import Config, check_int
from daskcurate.local_cluster import (
    check_memory,
    check_path,
    check_text,
    dashboard_links,
    free_address,
    host_and_port,
    settings_in_force,
)
from daskcurate.settings import worker_environment

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True, kw_only=True)
class SlurmConfig(Config):
    """The options of :func:`slurm`, checked."""

    n_workers: int = 1
    threads_per_worker: int = 1
    memory_limit: int | str = "4GiB"
    workers_per_job: int = 1
    min_workers: int | None = None
    queue: str | None = None
    account: str | None = None
    walltime: str = "01:00:00"
    interface: str | None = None
    spill_folder: str | os.PathLike[str] | None = None
    log_folder: str | os.PathLike[str] | None = None
    job_options: Sequence[str] = ()
    prologue: Sequence[str] = ()
    python: str | None = None
    dashboard_address: str | None = "127.0.0.1:8787"
    scheduler_port: int = 0

    def __post_init__(self):
        for name in ("n_workers", "threads_per_worker", "workers_per_job"):
            self._set(name, check_int(name, getattr(self, name), 1))
        if self.n_workers % self.workers_per_job:
            raise ValueError(
                f"n_workers={self.n_workers} is not allowed: jobs have {self.workers_per_job} workers each, "
                "give a multiple of that"
            )
        if self.min_workers is not None:
            self._set("min_workers", check_int("min_workers", self.min_workers, 1, self.n_workers))
        if self.memory_limit == "auto":
            raise ValueError(
                "memory_limit='auto' is not allowed: a job asks for a size, give text such as '4GiB'"
            )
        self._set("memory_limit", check_memory(self.memory_limit))
        for name in ("queue", "account", "interface", "python"):
            check_text(name, getattr(self, name))
        if not isinstance(self.walltime, str) or not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.walltime):
            raise ValueError(
                f"walltime={self.walltime!r} is not allowed: give SLURM's days-hours:minutes:seconds in quotes, "
                "such as '01:00:00'"
            )
        for name in ("spill_folder", "log_folder"):
            check_path(name, getattr(self, name))
        for name in ("job_options", "prologue"):
            check_texts(name, getattr(self, name))
        if self.dashboard_address is not None:
            host_and_port(self.dashboard_address)
        self._set("scheduler_port", check_int("scheduler_port", self.scheduler_port, 0, 65535))


def check_texts(name: str, given: Any) -> None:
    """Raise TypeError unless ``given`` is a list of texts."""
    if not isinstance(given, list | tuple) or not all(isinstance(item, str) for item in given):
        raise TypeError(f"{name}={given!r} is not allowed: give a list of texts")


def slurm(
    n_workers: int = 1,
    threads_per_worker: int = 1,
    memory_limit: int | str = "4GiB",
    *,
    workers_per_job: int = 1,
    min_workers: int | None = None,
    queue: str | None = None,
    account: str | None = None,
    walltime: str = "01:00:00",
    interface: str | None = None,
    spill_folder: str | os.PathLike[str] | None = None,
    log_folder: str | os.PathLike[str] | None = None,
    job_options: Sequence[str] = (),
    prologue: Sequence[str] = (),
    python: str | None = None,
    dashboard_address: str | None = "127.0.0.1:8787",
    scheduler_port: int = 0,
) -> AbstractContextManager["Client"]:
    """Yield a client of a scheduler in this process whose workers are SLURM jobs; cancel them at the end.

    What is not given here comes from the site's ``jobqueue.yaml``, if it has one.

    Parameters
    ----------
    n_workers : int
        Worker processes, each under a nanny.
    threads_per_worker : int
        Tasks that one worker runs at a time; a job asks for as many cores as its workers have threads.
    memory_limit : int or str
        Per worker: bytes, or text such as ``"4GiB"``. A job asks for what its workers may use.
    workers_per_job : int
        Workers that share a job; ``n_workers`` is a multiple of it.
    min_workers : int, optional
        Workers to wait for before the run begins; None: all. Others join as their jobs start.
    queue, account : str, optional
        Partition, and account that is charged.
    walltime : str
        Time limit of a job, as SLURM writes it. A job that ends takes its worker's results with it, which
        are then computed again: give more than the run takes, or run again to resume.
    interface : str, optional
        Network interface that scheduler and workers listen on, such as ``ib0``.
    spill_folder : path, optional
        Where workers put results that do not fit in memory: a disk of the node's own.
    log_folder : path, optional
        Where the jobs' output goes; a folder that all nodes see. None: ``slurm-N.out`` in the current one.
    job_options : sequence of str
        Further ``#SBATCH`` options, such as ``"--constraint=avx512"``.
    prologue : sequence of str
        Shell lines before the workers start, such as ``"module load python"``.
    python : str, optional
        Python of the jobs; None: the one that runs this, which all nodes must see under the same path.
    dashboard_address : str or None
        ``host:port`` of the dashboard in this process; None for no dashboard.
    scheduler_port : int
        Port of the scheduler, which the nodes must reach; 0 for any free one.

    Yields
    ------
    distributed.Client
        The current client while the context lasts.

    Raises
    ------
    TypeError, ValueError
        For an option that is not allowed, at once.
    ImportError
        If dask-jobqueue (extra ``slurm``) is not installed.
    """
    return _jobs(SlurmConfig(**{name: value for name, value in locals().items()}))


@contextmanager
def _jobs(config: SlurmConfig) -> Iterator["Client"]:
    import dask
    from distributed import Client

    kind = _jobqueue("SLURMCluster")
    with settings_in_force():
        inherited = dask.config.serialize(dask.config.global_config)
        cluster = kind(
            cores=config.threads_per_worker * config.workers_per_job,
            processes=config.workers_per_job,
            memory=f"{config.memory_limit * config.workers_per_job}B",
            queue=config.queue,
            account=config.account,
            walltime=config.walltime,
            interface=config.interface,
            local_directory=_text(config.spill_folder),
            log_directory=_text(config.log_folder),
            job_extra_directives=list(config.job_options) or None,
            job_script_prologue=[
                *(f"export {name}={shlex.quote(value)}" for name, value in worker_environment().items()),
                f"export DASK_INTERNAL_INHERIT_CONFIG={inherited}",
                *config.prologue,
            ],
            python=config.python or sys.executable,
            scheduler_options={
                "port": config.scheduler_port,
                "dashboard_address": free_address(config.dashboard_address),
                "dashboard": config.dashboard_address is not None,
            },
        )
    with dashboard_links(config.dashboard_address), cluster, Client(cluster) as client:
        _check_job(cluster.job_script())
        cluster.scale(config.n_workers)
        client.wait_for_workers(config.min_workers or config.n_workers)
        yield client


def _check_job(script: str) -> None:
    """Raise ValueError if SLURM refuses a job: Dask would only log that, and the run would wait forever."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        try:
            done = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                "there is no sbatch here: start this where SLURM's commands are"
            ) from error
    if done.returncode:
        raise ValueError(f"SLURM refuses the workers' jobs: {done.stderr.strip()}")


def slurm_allocation(
    threads_per_worker: int | None = None,
    memory_limit: int | str = "auto",
    *,
    spill_folder: str | os.PathLike[str] | None = None,
    shared_folder: str | os.PathLike[str] = ".",
    interface: str | None = None,
    dashboard_address: str | None = "127.0.0.1:8787",
) -> AbstractContextManager["Client"]:
    """Yield a client of a cluster made of the tasks of this SLURM job step, of which this is one.

    Of the tasks that ``srun -n N`` starts, number 0 becomes the scheduler, number 1 goes on with the script,
    and all others become workers: these never leave the call, and their processes end with the context.
    What the script does before it, all tasks do.

    Parameters
    ----------
    threads_per_worker : int, optional
        Tasks that one worker runs at a time; None: what ``srun --cpus-per-task`` says, else 1.
    memory_limit : int or str
        Per worker: bytes, text such as ``"4GiB"``, or ``"auto"``: the worker's part of what the job was
        given on its node.
    spill_folder : path, optional
        Where workers put results that do not fit in memory: a disk of the node's own.
    shared_folder : path
        Folder that all nodes see, in which the tasks find each other.
    interface : str, optional
        Network interface that scheduler and workers listen on, such as ``ib0``.
    dashboard_address : str or None
        ``host:port`` of the dashboard, on the node of task 0; None for no dashboard.

    Yields
    ------
    distributed.Client
        The current client while the context lasts, in task 1 only.

    Raises
    ------
    TypeError, ValueError
        For an option that is not allowed; outside of an allocation, or in one of fewer than 3 tasks.
    ImportError
        If dask-jobqueue (extra ``slurm``) is not installed.
    """
    if threads_per_worker is not None:
        threads_per_worker = check_int("threads_per_worker", threads_per_worker, 1)
    limit = check_memory(memory_limit)
    check_path("spill_folder", spill_folder)
    check_path("shared_folder", shared_folder)
    check_text("interface", interface)
    if dashboard_address is not None:
        host_and_port(dashboard_address)
    worker = {"interface": interface, "local_directory": _text(spill_folder)}
    scheduler = {
        "interface": interface,
        "dashboard_address": dashboard_address,
        "dashboard": dashboard_address is not None,
    }
    return _tasks(threads_per_worker, limit, scheduler, worker, Path(shared_folder).absolute())


slurm_allocation.every_process_opens_it = True  # type: ignore[attr-defined]


@contextmanager
def _tasks(
    threads: int | None, limit: int | str, scheduler: dict[str, Any], worker: dict[str, Any], folder: Path
) -> Iterator["Client"]:
    from distributed import Client

    tasks = os.environ.get("SLURM_NTASKS", "")
    if "SLURM_PROCID" not in os.environ or not tasks.isdigit():
        raise ValueError("slurm-allocation is for tasks that srun started: srun -n 4 ... for two workers")
    if int(tasks) < 3:
        raise ValueError(
            f"srun -n {tasks} is not allowed: give at least 3 tasks, a scheduler, the run, and a worker"
        )
    threads = threads or int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    worker |= {"nthreads": threads, "memory_limit": _share() if limit == "auto" else limit}
    before = signal.getsignal(signal.SIGINT)
    kind = _jobqueue("SLURMRunner")
    # The runner ends the tasks that are no client by SIGINT, and so needs this instead of KeyboardInterrupt.
    signal.signal(signal.SIGINT, lambda *_: sys.exit())
    with settings_in_force():
        runner = kind(
            scheduler_file=str(folder / "scheduler-{job_id}-step.json").replace("step", _step()),
            worker_class="distributed.Nanny",
            scheduler_options=scheduler,
            worker_options=worker,
        )
    signal.signal(signal.SIGINT, before)
    with dashboard_links(scheduler["dashboard_address"]), runner, Client(runner) as client:
        client.wait_for_workers(runner.n_workers)
        yield client


def _step() -> str:
    return os.environ.get("SLURM_STEP_ID", "0")


def _share() -> int:
    """Return the memory of one task in bytes: its part of what the job has on its node."""
    from distributed.system import memory_limit

    if per_cpu := os.environ.get("SLURM_MEM_PER_CPU"):
        return (int(per_cpu) << 20) * int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    node = memory_limit()  # of the machine, its control group, or the limit that SLURM set
    if per_node := os.environ.get("SLURM_MEM_PER_NODE"):
        node = min(node, int(per_node) << 20)
    counts = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE", "1")
    return node // tasks_on_nodes(counts)[int(os.environ.get("SLURM_NODEID", "0"))]


def tasks_on_nodes(text: str) -> list[int]:
    """Return the number of tasks of each node, which SLURM writes as ``4(x2),1``."""
    found: list[int] = []
    for part in text.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        found += [int(count)] * int(times or 1)
    return found


def _jobqueue(name: str) -> Any:
    """Return a class of dask-jobqueue, which replaces the handler of Ctrl-C when it is imported."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue
        import dask_jobqueue.slurm
    except ImportError as error:
        raise ImportError("SLURM needs the package dask-jobqueue: pip install daskcurate[slurm]") from error
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    return getattr(dask_jobqueue.slurm, name)


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())
