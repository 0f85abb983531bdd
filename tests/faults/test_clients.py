"""Which Dask client ``compute`` uses, and what it leaves behind."""

import chain
import psutil
import pytest
from distributed import Client, LocalCluster

import daskcurate as dc
from daskcurate.runner import current_client


@pytest.fixture
def stage(emb):
    """A stage of a second."""
    return chain.start(emb).inputs["clustering"]


@pytest.fixture
def clients(monkeypatch):
    """The schedulers of the clients that stages run on."""
    found = []
    original = dc.runner.StageRun.__init__

    def init(run, stage, store, client, *args):
        original(run, stage, store, client, *args)
        found.append(client.scheduler.address)

    monkeypatch.setattr(dc.runner.StageRun, "__init__", init)
    return found


def children():
    return {
        process.pid
        for process in psutil.Process().children(recursive=True)
        if "tracker" not in str(process.cmdline())
    }


def test_local_cluster_is_started_and_closed(stage, clients, tmp_path, monkeypatch):
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    assert current_client() is None
    before = children()
    result = dc.compute(stage, store=tmp_path / "run.zarr")
    assert len(result.sizes) == chain.CLUSTERS
    assert len(clients) == 1
    assert current_client() is None
    psutil.wait_procs([psutil.Process(pid) for pid in children() - before], timeout=5)
    assert children() <= before


def test_local_cluster_is_closed_after_a_failure(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(dc.runner, "_run_stage", lambda *_: 1 / 0)
    before = children()
    with pytest.raises(ZeroDivisionError):
        dc.compute(stage, store=tmp_path / "run.zarr")
    assert current_client() is None
    psutil.wait_procs([psutil.Process(pid) for pid in children() - before], timeout=5)
    assert children() <= before


def test_nothing_is_started_where_nothing_is_missing(stage, clients, client, tmp_path, monkeypatch):
    dc.compute(stage, store=tmp_path / "run.zarr")
    client.close()
    monkeypatch.setattr("daskcurate.local_cluster.make_local_cluster", lambda: 1 / 0)
    dc.compute(stage, store=tmp_path / "run.zarr")
    assert len(clients) == 1


def test_scheduler_of_the_environment(stage, clients, cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
    dc.compute(stage, store=tmp_path / "run.zarr")
    assert clients == [cluster.scheduler_address]
    assert current_client() is None


def test_current_client_before_the_environment(stage, clients, client, tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:1")
    dc.compute(stage, store=tmp_path / "run.zarr")
    assert clients == [client.scheduler.address]
    assert current_client() is client


def test_given_client_before_the_current_one(stage, clients, client, tmp_path):
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=":0", memory_limit="1GiB") as other,
        Client(other, set_as_default=False) as given,
    ):
        dc.compute(stage, store=tmp_path / "run.zarr", client=given)
        assert clients == [other.scheduler_address]
    assert current_client() is client


def test_given_client_where_none_is_current(stage, clients, cluster, tmp_path):
    with Client(cluster, set_as_default=False) as given:
        dc.compute(stage, store=tmp_path / "run.zarr", client=given)
    assert clients == [cluster.scheduler_address]
    assert current_client() is None
