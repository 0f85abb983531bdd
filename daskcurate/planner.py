"""Planning a run before it starts, and measuring the workers for it.

Nothing of a run is computed here: what is measured are the kernels' rates, on some rows of the pool.
"""

import uuid
from typing import Any

from distributed import Client

from daskcurate.calibration import Machine, machine_of, rates, rates_alone, task_costs
from daskcurate.config import check_flag, check_int
from daskcurate.embeddings import PoolRows
from daskcurate.nodes import Stage
from daskcurate.planning import Limits, Plan, plan_stages
from daskcurate.runner import current_client, flatten, given_client, worker_threads
from daskcurate.store import RunStore
from daskcurate.tasks import Work, call, task
from daskcurate.worker_limits import cluster_limits


def _with_stored_inputs(stage: Stage, store: RunStore) -> Stage:
    """Return the stage with those inputs bound that the store holds: what they say makes its plan sharper."""
    inputs = {
        role: node.bound(store, node.inputs)
        if isinstance(node, Stage) and not node.is_computed and store.is_complete(node.name)
        else node
        for role, node in stage.inputs.items()
    }
    return type(stage)(stage.config, inputs)


def plan(
    *nodes: Any,
    memory_limit: Any = None,
    n_workers: int | None = None,
    threads_per_worker: int | None = None,
    client: Client | None = None,
    store: Any = None,
    calibrate: bool = False,
) -> Plan:
    """Say what running ``nodes`` would take, without running anything.

    Parameters
    ----------
    nodes
        Lazy stages (computed ones cost nothing).
    memory_limit
        Memory of one worker: bytes, or text such as ``"4GiB"``. None: the current client's workers', or
        what a local cluster would give.
    n_workers
        Worker processes, in place of the client's.
    threads_per_worker
        Tasks that each of ``n_workers`` runs at a time, sharing its memory; None: 1.
    client
        Dask client whose workers to plan for; None: the current one, if any.
    store
        A run store whose finished stages are left out, and inform the plans of those that read them.
    calibrate
        Whether to measure the workers first, for some two seconds, so that the plan says how long each stage
        takes: within about a quarter on an idle machine. It needs a client, whose workers read some thousand rows
        of the (first) pool for it.

    Raises
    ------
    PlanError
        A stage cannot fit; the message names it and the bytes.
    """
    if not nodes:
        raise ValueError("plan() got no stage: give at least one")
    check_flag("calibrate", calibrate)
    found = given_client(client) or current_client()
    stages = [stage for stage in flatten(nodes) if not stage.is_computed]
    if store is not None:
        kept = RunStore(store)
        kept.check()
        stages = [_with_stored_inputs(stage, kept) for stage in stages if not kept.is_complete(stage.name)]
    limits = cluster_limits(found) if found is not None else Limits.local()
    if n_workers is not None:
        count = check_int("n_workers", n_workers, 1)
        threads = check_int("threads_per_worker", 1 if threads_per_worker is None else threads_per_worker, 1)
        limits = Limits(
            count, count * threads, limits.worker_memory, threads,
            shares=limits.shares, process_bytes=limits.process_bytes,
        )  # fmt: skip
    elif threads_per_worker is not None:
        raise ValueError(f"threads_per_worker={threads_per_worker!r} is not allowed without n_workers")
    if memory_limit is not None:
        limits = limits.with_memory(memory_limit)
    machine = None
    if calibrate:
        if found is None:
            raise ValueError(
                "calibrate=True measures workers, and there is no client: give one, or start a cluster"
            )
        pools: list[Any] = [emb for stage in stages if (emb := getattr(stage, "emb", None)) is not None]
        machine = measure(found, pools[0].dim, pools[0].rows) if pools else measure(found, 256)
    planned = plan_stages(stages, limits, machine)
    planned.check()
    return planned


def measure(client: Client, dim: int, rows: PoolRows | None = None) -> Machine:
    """Return the rates of the client's workers for rows of width ``dim``: some two seconds on every thread.

    ``rows`` are those of a pool, of which some thousands are read and worked on; None: rows made up.
    """
    threads = worker_threads(client)
    limits = cluster_limits(client)
    tasks = [
        client.submit(call, Work(rates, (dim, rows)), key=f"calibrate-{uuid.uuid4().hex}", workers=[address])
        for address in threads
    ]
    found = client.gather(tasks)
    alone: dict[str, float] = {}
    if limits.host_threads > 1 and not limits.on_gpu:
        own = task(
            rates_alone, dim, rows, name="calibrate", key=uuid.uuid4().hex, threads=limits.host_threads
        )
        alone = client.compute(own).result()
    return machine_of(found, alone, task_costs(client, len(threads)))
