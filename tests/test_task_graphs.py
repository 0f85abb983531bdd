"""What holds for the tasks of every stage: keys of their own, and no task that is handed all rows."""

import cloudpickle
import numpy as np
import pytest
from dask.delayed import Delayed
from oracles import blobs

import daskcurate as dc
from daskcurate import fitting, runner, small_pools, splitting

N = 2250


@pytest.fixture
def tasks(monkeypatch):
    """Record every task that stages make: its function's name and its arguments, by key."""
    made, contents, original = {}, {}, runner.task

    def content_of(value):
        if isinstance(value, Delayed):
            return value.key
        if isinstance(value, list):
            return [content_of(item) for item in value]
        return cloudpickle.dumps(value)

    def record(function, *args, name, key, threads=1):
        task = original(function, *args, name=name, key=key, threads=threads)
        content = content_of([function, *args])
        assert contents.setdefault(task.key, content) == content, f"two tasks have the key {task.key}"
        made[task.key] = (getattr(function, "__name__", repr(function)), args)
        return task

    monkeypatch.setattr(runner, "task", record)
    return made


@pytest.fixture
def emb(pool, monkeypatch):
    """A pool in nine chunks with clusters too large for one task, none of which is small enough for short cuts."""
    monkeypatch.setattr(fitting, "LOCAL_BYTES", 0)
    monkeypatch.setattr(splitting, "PART_BYTES", 4 * 5 * 60)
    monkeypatch.setattr(small_pools, "WHOLE_OPERATIONS", 0)
    return pool(blobs(4, n=N, centres=3), chunk_rows=N // 9)


def test_no_two_tasks_of_a_stage_share_a_key(client, emb, tmp_path, tasks):
    flat = dc.kmeans(emb, 3, metric="cosine", init="k-means||", n_init=2, n_iters=3)
    tree = dc.hierarchical_kmeans(emb, [30, 6], sample_sizes=[4, 2], n_resamples=2, n_iters=3)
    split = dc.hierarchical_kmeans(emb, [3], n_splits=[4], n_iters=3)
    given = dc.Clustering.from_arrays(emb, np.eye(3, emb.dim, dtype=np.float32), np.arange(N) % 3)
    stages = [
        *(dc.semantic_dedup(emb, flat, eps=0.01, rule=rule) for rule in ("earlier", "greedy", "connected")),
        dc.semantic_dedup(emb, flat, eps=0.01, keep=np.arange(float(N))),
        *(
            dc.semantic_dedup(emb, flat, eps=0.01, rule=rule, scope="global")
            for rule in ("earlier", "greedy", "connected")
        ),
        dc.density_prune(flat, keep_fraction=0.5),
        dc.prototype_prune(tree, keep_fraction=0.5, class_balance=0.5),
        dc.random_prune(emb, target_size=100, within=np.arange(N) % 2 == 0),
        dc.hierarchical_sample(tree, 500, strategy="closest"),
        dc.hierarchical_sample(split, 500),
        ~dc.density_prune(given, keep_fraction=0.5),
    ]
    dc.compute(*stages, store=tmp_path / "run.zarr", client=client)
    assert len(tasks) > 1000


@pytest.mark.parametrize("rule", ["earlier", "greedy", "connected"])
def test_no_task_is_handed_a_whole_giant_cluster(client, emb, tmp_path, tasks, rule):
    flat = dc.hierarchical_kmeans(emb, [2], n_splits=[4], n_iters=3).levels[0]
    one = dc.Clustering.from_arrays(emb, np.ones((1, emb.dim), np.float32), np.zeros(N, int))
    dc.compute(flat, dc.semantic_dedup(emb, one, eps=0.01, rule=rule), store=tmp_path / "run.zarr")
    blocks = ("dedup-block-", "split-giant-rows-")
    handed = {}
    for function, args in tasks.values():
        parts = [part for arg in args for part in (arg if isinstance(arg, list) else [arg])]
        held = sum(isinstance(part, Delayed) and part.key.startswith(blocks) for part in parts)
        handed[function] = max(held, handed.get(function, 0))
    seeds_of_few_rows = handed.pop("_plusplus")
    assert seeds_of_few_rows > 2
    assert max(handed.values()) == 2


def test_a_mask_in_memory_passes_through_no_graph(client, emb, tmp_path, tasks):
    dc.compute(dc.Selection.from_mask(np.ones(N, bool), emb=emb), store=tmp_path / "run.zarr")
    assert not tasks
