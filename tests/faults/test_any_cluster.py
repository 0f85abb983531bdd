"""The same bits whatever runs the tasks: workers, threads, processes, and both ways to regroup rows."""

from contextlib import contextmanager

import chain
import numpy as np
import pytest
from distributed import Client, LocalCluster

import daskcurate as dc

SLOW = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("distributed_lloyd")


@contextmanager
def workers(number, threads):
    with (
        LocalCluster(
            n_workers=number,
            threads_per_worker=threads,
            processes=False,
            dashboard_address=":0",
            memory_limit="2GiB",
        ) as cluster,
        Client(cluster),
    ):
        yield


@pytest.mark.parametrize(
    ("number", "threads", "shuffled"),
    [
        pytest.param(1, 1, False, marks=SLOW),
        pytest.param(1, 3, False, marks=SLOW),
        (3, 1, False),
        pytest.param(1, 1, True, marks=SLOW),
        (1, 3, True),
    ],
)
def test_workers_and_threads(number, threads, shuffled, emb, reference, tmp_path, monkeypatch):
    if shuffled:
        chain.shuffle(monkeypatch.setattr)
    with workers(number, threads):
        chain.same_as(dc.compute(chain.whole(emb), store=tmp_path / "run.zarr"), reference)


@pytest.mark.parametrize("shuffled", [pytest.param(False, marks=SLOW), True])
def test_processes(shuffled, emb, remote, reference, tmp_path, monkeypatch):
    if shuffled:
        chain.shuffle(monkeypatch.setattr)
    chain.same_as(dc.compute(chain.whole(emb), store=tmp_path / "run.zarr"), reference)


@pytest.mark.parametrize(
    "rule", ["greedy", *(pytest.param(rule, marks=SLOW) for rule in ("earlier", "connected"))]
)
def test_clusters_of_several_tasks(rule, pool, tmp_path):
    rng = np.random.default_rng(0)
    emb = pool(rng.normal(size=(9000, 3)), chunk_rows=1000)
    labels = (np.arange(9000) % 10 == 0).astype(np.int32)  # 8100 and 900 rows
    clustering = dc.Clustering.from_arrays(emb, np.eye(3)[:2], labels, metric="cosine")
    found = []
    for number, threads in ((1, 1), (1, 3), (2, 1)):  # blocks of 2048, of 1024, and of 1024 rows
        with workers(number, threads):
            stage = dc.semantic_dedup(emb, clustering, eps=1e-4, rule=rule)
            found.append(dc.compute(stage, store=tmp_path / f"{number}-{threads}.zarr"))
    for other in found[1:]:
        chain.same_as(other, chain.arrays(found[0]))
    assert 0 < len(found[0]) < 9000
