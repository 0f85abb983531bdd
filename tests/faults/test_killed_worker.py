"""A worker process killed in the middle of a task: the run goes on by itself and ends with the same result."""

import chain
import pytest
from distributed import Client, wait
from lost_worker import LostWorker

import daskcurate as dc

pytestmark = pytest.mark.usefixtures("distributed_lloyd")


@pytest.fixture
def lose(remote, tmp_path):
    """Return a function that has a worker die when it starts its n-th task of a kind."""

    def arrange(text, number):
        remote.register_plugin(LostWorker(text, number, tmp_path / "lost"))

    yield arrange
    remote.unregister_worker_plugin(LostWorker.name)
    assert (tmp_path / "lost").exists()  # a worker did die
    remote.wait_for_workers(2, timeout=20)  # and was started again
    wait(remote.submit(abs, 1))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("kmeans-step", 5),
        pytest.param("kmeans-update", 2, marks=pytest.mark.slow),
        pytest.param("load-rows", 2, marks=pytest.mark.slow),
        pytest.param("kmeans-assign", 2, marks=pytest.mark.slow),
        pytest.param("write-labels", 2, marks=pytest.mark.slow),
        pytest.param("dedup-compare", 2, marks=pytest.mark.slow),
        ("write-matches", 2),
    ],
)
def test_worker_lost(text, number, lose, emb, reference, tmp_path):
    lose(text, number)
    chain.same_as(dc.compute(chain.start(emb), store=tmp_path / "run.zarr"), reference)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("shuffle-transfer", 3),
        pytest.param("p2pshuffle", 5, marks=pytest.mark.slow),
        pytest.param("shuffle-barrier", 1, marks=pytest.mark.slow),
        pytest.param("shuffle-barrier", 2, marks=pytest.mark.slow),
        pytest.param("p2pshuffle", 1, marks=pytest.mark.slow),
        pytest.param("p2pshuffle", 9, marks=pytest.mark.slow),
        pytest.param("dedup-compare", 2, marks=pytest.mark.slow),
        pytest.param("write-matches", 2, marks=pytest.mark.slow),
    ],
)
def test_worker_lost_during_a_shuffle(text, number, lose, emb, reference, tmp_path, monkeypatch):
    store = tmp_path / "run.zarr"
    dc.compute(chain.start(emb).inputs["clustering"], store=store)
    chain.shuffle(monkeypatch.setattr)
    lose(text, number)
    chain.same_as(dc.compute(chain.start(emb), store=store), reference)


@pytest.fixture(scope="module")
def across_reference(cluster, emb, tmp_path_factory):
    """The arrays of an uninterrupted local run across clusters, by rule."""
    found = {}
    with pytest.MonkeyPatch.context() as patch, Client(cluster):
        chain.distribute(patch.setattr)
        store = tmp_path_factory.mktemp("across") / "run.zarr"
        for rule in ("earlier", "greedy", "connected"):
            found[rule] = chain.arrays(dc.compute(chain.across(emb, rule), store=store))
    return found


@pytest.mark.parametrize(
    ("rule", "text", "number"),
    [
        ("earlier", "dedup-compare", 1),
        ("greedy", "dedup-edges", 1),
        pytest.param("earlier", "dedup-block", 1, marks=pytest.mark.slow),
        pytest.param("greedy", "dedup-greedy", 1, marks=pytest.mark.slow),
        pytest.param("connected", "dedup-edges", 1, marks=pytest.mark.slow),
        pytest.param("connected", "dedup-connect", 1, marks=pytest.mark.slow),
    ],
)
def test_worker_lost_across_clusters(rule, text, number, lose, emb, across_reference, tmp_path):
    store = tmp_path / "run.zarr"
    dc.compute(chain.start(emb).inputs["clustering"], store=store)
    lose(text, number)
    chain.same_as(dc.compute(chain.across(emb, rule), store=store), across_reference[rule])
