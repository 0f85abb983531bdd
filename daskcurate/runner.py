"""The only module that computes: it runs what is missing in a store, stage by stage, and commits it.

A stage's ``execute`` builds tasks and hands them to its :class:`StageRun`, which runs them on the Dask
client, keeps the stage's checkpoint and reports progress. The completion marker is written last, in one
atomic write of the group's attributes.
"""

import contextlib
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.callbacks import Callback
from dask.delayed import Delayed
from distributed import Client, default_client, wait

from daskcurate.config import check_flag
from daskcurate.embeddings import Embeddings
from daskcurate.hierarchy import Hierarchy
from daskcurate.nodes import NotComputedError, Stage
from daskcurate.planning import plan_stages
from daskcurate.progress import Progress
from daskcurate.settings import retries
from daskcurate.store import RunStore, versions, write_block
from daskcurate.tasks import task
from daskcurate.worker_limits import cluster_limits


def current_client() -> Client | None:
    """Return the Dask client in force in this process, or None."""
    try:
        return default_client()
    except ValueError:
        return None


def run_tasks(tasks: Sequence[Any], finished: Callable[[int], None] | None = None) -> list[Any]:
    """Compute delayed ``tasks`` on the current client, or on this process's threads without one.

    ``finished`` is called, from any thread, with the number of each task that is done.
    """
    client = current_client()
    if client is None:
        numbers = {item.key: number for number, item in enumerate(tasks)} if finished is not None else {}

        def done(key: Any, *_: Any) -> None:
            if finished is not None and key in numbers:
                finished(numbers[key])

        with Callback(posttask=done) if finished is not None else contextlib.nullcontext():
            return list(dask.compute(*tasks, scheduler="threads"))
    futures = client.compute(list(tasks))
    if finished is not None:
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: finished(number))
    return client.gather(futures)


def given_client(client: Any) -> Client | None:
    """Return the ``client`` that the user gave, if it is one; None where none was."""
    if client is not None and not isinstance(client, Client):
        raise TypeError(f"client={client!r} is not allowed: give a distributed.Client or None")
    return client


@contextlib.contextmanager
def client_for(client: Client | None) -> Iterator[Client]:
    """Yield the client to use: the one given, the current one, DASK_SCHEDULER_ADDRESS's, or a local one's."""
    found = given_client(client) or current_client()
    if found is not None:
        yield found
        return
    address = os.environ.get("DASK_SCHEDULER_ADDRESS") or dask.config.get("scheduler-address", None)
    if address:
        with Client(address) as made:
            yield made
        return
    from daskcurate.local_cluster import make_local_cluster

    with make_local_cluster() as cluster, Client(cluster) as made:
        yield made


class StageRun:
    """What a stage sees while it runs: tasks, arrays, a checkpoint, progress."""

    def __init__(self, stage: Stage, store: RunStore, client: Client, progress: Progress):
        self.stage, self.store, self.client, self.progress = stage, store, client, progress
        # Keys of this attempt alone. The scheduler may still hold what the tasks of an earlier one returned,
        # one that failed or whose client was lost; tasks of the same name would then not run, nor write.
        self.token = uuid.uuid4().hex[:12]
        self.warnings: list[str] = list(store.attributes(stage.name).get("warnings") or ())
        self.tasks = 0  # that the stage made
        self.limits = cluster_limits(client)
        self._threads = worker_threads(client)

    def task(
        self, function: Callable[..., Any], *args: Any, name: str, key: Any = 0, threads: int = 1
    ) -> Delayed:
        """Return a lazy task called ``name`` in the dashboard; ``key`` tells it from its siblings."""
        self.tasks += 1
        return task(function, *args, name=name, key=f"{self.token}-{key}", threads=threads)

    def task_alone(self, function: Callable[..., Any], *args: Any, name: str, key: Any = 0) -> Delayed:
        """Return a task as :meth:`task` does, for a step in which no other runs: it may use its host's cores."""
        threads = 1 if self.limits.on_gpu else self.limits.host_threads
        return self.task(function, *args, name=name, key=key, threads=threads)

    def gather(self, tasks: Sequence[Delayed], step: str = "") -> list[Any]:
        """Run tasks and return their results, which must be small."""
        return self.finish(self.start(tasks), step)

    def start(self, tasks: Sequence[Delayed]) -> list[Any]:
        """Run tasks and return at once; :meth:`finish` waits for them. They go on only while that is held."""
        return self.client.compute(list(tasks), retries=retries()) if tasks else []

    def finish(self, started: Sequence[Any], step: str = "") -> list[Any]:
        """Return the results of tasks that :meth:`start` started, which must be small."""
        if not started:
            return []
        with self._watched(started, step):
            return self.client.gather(list(started))

    def task_on(
        self,
        place: int,
        function: Callable[..., Any],
        *args: Any,
        name: str,
        key: Any = 0,
        threads: int = 1,
    ) -> Delayed:
        """Return a task as :meth:`task` does, for the worker thread that is number ``place`` in turn.

        Results that later tasks follow are so shared out evenly; another worker takes over where that one is
        lost.
        """
        chosen = self._threads[place % len(self._threads)]
        with dask.annotate(workers=[chosen], allow_other_workers=True):
            return self.task(function, *args, name=name, key=key, threads=threads)

    def persist(self, tasks: Sequence[Delayed], step: str = "") -> list[Delayed]:
        """Run tasks, leave their results on the workers, and return handles to them."""
        if not tasks:
            return []
        kept = list(self.client.persist(list(tasks), retries=retries()))
        futures = [
            future for item in kept for future in item.dask.values() if hasattr(future, "add_done_callback")
        ]
        with self._watched(futures, step):
            wait(futures)
            for future in futures:
                if future.status == "error":
                    future.result()  # raises here what would otherwise only show at a later step
        return kept

    @contextlib.contextmanager
    def _watched(self, futures: Sequence[Any], step: str) -> Iterator[None]:
        """Show the progress of ``futures``; if one fails, or the user interrupts, cancel the others."""
        self.progress.watch(self.stage, step, futures)
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # no connection any more: the scheduler cancels them itself
                self.client.cancel(futures)
            raise

    def declare(self, array: str, shape: tuple[int, ...], chunk: int) -> str:
        """Make a declared array of the stage; return its URL for the tasks that write it."""
        return self.store.declare(self.stage.kind, self.stage.name, array, shape, chunk)

    def scratch(self, name: str) -> str:
        """URL of a checkpoint array; the checkpoint is removed when the stage commits."""
        return self.store.stage_url(self.stage.name, "checkpoint", name)

    def discard(self, name: str) -> None:
        """Remove a checkpoint array that is not needed any more."""
        self.store.remove(self.stage.name, "checkpoint", name)

    @property
    def checkpoint(self) -> dict[str, Any]:
        """What an earlier, interrupted run of the stage saved last."""
        return self.store.attributes(self.stage.name).get("checkpoint") or {}

    def save(self, **checkpoint: Any) -> None:
        """Save where the stage has got to, in one atomic write."""
        self.store.update(self.stage.name, checkpoint=checkpoint)

    def note(self, fraction: float, text: str) -> None:
        """Show how far the stage has got."""
        self.progress.note(self.stage, fraction, text)

    def warn(self, message: str) -> None:
        """Warn the user, and keep the message with the result."""
        if message not in self.warnings:
            self.warnings.append(message)
            self.store.update(self.stage.name, warnings=self.warnings)  # not lost with this process
        warnings.warn(message, stacklevel=2)

    def write_counts(self, counts: da.Array) -> dict[str, Any]:
        """Write the counts of a derived selection, chunk by chunk."""
        size = counts.chunks[0][0] if counts.shape[0] else 1
        url = self.declare("counts", counts.shape, size)
        starts = np.cumsum((0, *counts.chunks[0]))
        writes = [
            self.task(_write_counts, url, int(starts[i]), block, name="write-counts", key=i)
            for i, block in enumerate(counts.to_delayed())
        ]
        return {"total": sum(self.gather(writes, "write"))}


class LooseTasks:
    """Tasks of no stage: those of an estimate, which leaves nothing in a store."""

    def __init__(self, client: Client):
        self.client, self.token, self.limits = client, uuid.uuid4().hex[:12], cluster_limits(client)

    def task(
        self, function: Callable[..., Any], *args: Any, name: str, key: Any = 0, threads: int = 1
    ) -> Delayed:
        """Return a lazy task called ``name`` in the dashboard; ``key`` tells it from its siblings."""
        return task(function, *args, name=name, key=f"{self.token}-{key}", threads=threads)

    def gather(self, tasks: Sequence[Delayed]) -> list[Any]:
        """Run tasks and return their results, which must be small; cancel the others where one fails."""
        futures = self.client.compute(list(tasks), retries=retries())
        try:
            return self.client.gather(futures)
        except BaseException:
            with contextlib.suppress(Exception):
                self.client.cancel(futures)
            raise


def _write_counts(url: str, start: int, counts: np.ndarray) -> int:
    write_block(url, start, counts)
    return int(counts.sum(dtype=np.int64))


def worker_threads(client: Client) -> list[str]:
    """Return the workers' addresses, one a thread, in turns."""
    counts = {
        address: int(worker["nthreads"])
        for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()
    }
    most = max(counts.values(), default=0)
    return [address for turn in range(most) for address in sorted(counts) if counts[address] > turn]


def flatten(nodes: Sequence[Any]) -> list[Stage]:
    """Return the stages of ``nodes`` and all that they need, inputs first, each once."""
    ordered: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.fingerprint not in ordered:
            if not stage.is_computed:
                for needed in stage.stages():
                    visit(needed)
            ordered[stage.fingerprint] = stage

    for node in nodes:
        stages: Sequence[Any] = node.levels if isinstance(node, Hierarchy) else (node,)
        for stage in stages:
            if not isinstance(stage, Stage):
                raise TypeError(
                    f"{node!r} is not allowed: compute takes what kmeans, hierarchical_kmeans, semantic_dedup, "
                    "density_prune and hierarchical_sample return"
                )
            visit(stage)
    return list(ordered.values())


def compute(*nodes: Any, store: Any, client: Client | None = None, progress: bool | None = None) -> Any:
    """Run what ``nodes`` need and the store lacks; return the same kinds of object, bound to the store.

    Parameters
    ----------
    nodes
        Clusterings, hierarchies and selections, lazy or computed.
    store
        Path or URL of the run store; made if it is not there.
    client
        Dask client. None: the current one, else the scheduler that DASK_SCHEDULER_ADDRESS names, else a
        local cluster that is closed afterwards.
    progress
        Whether progress is shown. None: as the Dask setting ``daskcurate.progress`` says (true).

    Returns
    -------
    object or tuple
        One object for one node, a tuple for several.

    Raises
    ------
    PlanError
        A stage cannot fit the workers' memory.
    StoreError
        ``store`` holds something else.
    """
    if not nodes:
        raise ValueError("compute() got no stage: give at least one")
    given_client(client)
    if progress is not None:
        check_flag("progress", progress)
    run_store = RunStore(store)
    run_store.check()
    stages = flatten(nodes)
    done: dict[str, Stage] = {}

    def bind(stage: Stage) -> Stage:
        if stage.is_computed:
            return stage
        inputs = {
            role: done.get(node.fingerprint, node) if isinstance(node, Stage) else node
            for role, node in stage.inputs.items()
        }
        return stage.bound(run_store, inputs)

    missing = missing_stages(nodes, run_store)
    for stage in missing:
        if run_store.is_marked(stage.name):
            warnings.warn(
                f"{stage.title} is run again: files of {run_store.stage_url(stage.name)} are missing or were changed",
                stacklevel=2,
            )
    if missing:
        with client_for(client) as used, used.as_current(), Progress(missing, progress) as shown:
            used.wait_for_workers(1)  # without any there is no memory limit to plan for
            plan_stages(missing, cluster_limits(used)).check()
            run_store.create()
            for stage in stages:
                bound = bind(stage)
                if any(stage is lacking for lacking in missing):
                    _run_stage(bound, StageRun(bound, run_store, used, shown))
                done[stage.fingerprint] = bound
    else:
        for stage in stages:
            done[stage.fingerprint] = bind(stage)
    results = tuple(
        node.with_levels([done[level.fingerprint] for level in node.levels])
        if isinstance(node, Hierarchy)
        else done[node.fingerprint]
        for node in nodes
    )
    return results[0] if len(results) == 1 else results


def _run_stage(stage: Stage, run: StageRun) -> None:
    """Run one stage and commit it: its marker is the last thing written."""
    started = time.perf_counter()
    run.progress.start(stage)
    run.store.update(
        stage.name,
        kind=stage.kind,
        config=stage.config.as_dict(),
        inputs={role: getattr(node, "name", node.fingerprint) for role, node in stage.inputs.items()},
        pool=next((node.path for node in stage.inputs.values() if isinstance(node, Embeddings)), None),
        fingerprint=stage.fingerprint,
        versions=versions(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        complete=False,
    )
    figures = stage.execute(run)
    seconds = time.perf_counter() - started
    run.store.tidy(stage.name)
    run.store.update(
        stage.name,
        **figures,
        contents=run.store.contents(stage.name),
        seconds=seconds,
        tasks=run.tasks,
        warnings=run.warnings,
        checkpoint=None,
        complete=True,
    )
    run.store.remove(stage.name, "checkpoint")
    run.progress.finish(stage, seconds)


def missing_stages(nodes: Sequence[Any], store: RunStore) -> list[Stage]:
    """Return the stages that :func:`compute` of ``nodes`` would run, and needs a client for; inputs first."""
    return [s for s in flatten(nodes) if not s.is_computed and not store.is_complete(s.name)]


def finished(node: Any, store: Any) -> Any:
    """Return ``node`` bound to a store that holds its result; NotComputedError where it does not."""
    run_store = RunStore(store)
    run_store.check()
    missing = [stage.title for stage in missing_stages([node], run_store)]
    if missing:
        raise NotComputedError(f"{run_store.url} lacks the stages {', '.join(missing)}: run them first")
    return compute(node, store=store)
