"""A client killed at any moment, and started again on the same cluster: nothing is done twice."""

import chain
import pytest
import zarr
from distributed import Client

import daskcurate as dc

pytestmark = pytest.mark.usefixtures("distributed_lloyd")


def groups(store):
    """Return the attributes of every stage in a store, by name."""
    root = zarr.open_group(store, mode="r")
    return {name: root[name].attrs["daskcurate"] for name in root.group_keys()}


def complete(store):
    return {name: found for name, found in groups(store).items() if found["complete"]}


SLOW = pytest.mark.slow
POINTS = [
    # where it is killed, the stages finished by then, the Lloyd iterations of the first stage still to do
    pytest.param("start:kmeans", 0, chain.ITERATIONS, marks=SLOW),
    ("tasks:kmeans:iteration", 0, chain.ITERATIONS),
    pytest.param("saving:kmeans:3", 0, chain.ITERATIONS - 2, marks=SLOW),
    ("saved:kmeans:3", 0, chain.ITERATIONS - 3),
    pytest.param(f"saved:kmeans:{chain.ITERATIONS + 1}", 0, 0, marks=SLOW),
    pytest.param("tasks:kmeans:write labels", 0, 0, marks=SLOW),
    pytest.param("marker:kmeans", 0, 0, marks=SLOW),
    pytest.param("start:semantic_dedup", 1, 0, marks=SLOW),
    ("tasks:semantic_dedup:write", 1, 0),
    pytest.param("marker:semantic_dedup", 1, 0, marks=SLOW),
    pytest.param("tasks:hierarchical_sample:write", 5, 0, marks=SLOW),
    ("marker:hierarchical_sample", 5, 0),
]


@pytest.mark.parametrize(("point", "n_done", "left"), POINTS)
def test_run_goes_on_where_the_client_was_killed(
    point, n_done, left, emb, killed, tally, processes, reference, tmp_path
):
    store = tmp_path / "run.zarr"
    part = chain.whole if "sample" in point else chain.start
    killed(emb.path, store, part.__name__, point)
    before = complete(store)
    assert len(before) == n_done

    with Client(processes):
        result = dc.compute(part(emb), store=store)

    chain.same_as(result, reference)
    names = [stage.name for stage in chain.stages(result)]
    counts = tally.counts
    assert sorted(counts) == sorted(set(names) - set(before))  # no task of a finished stage ran
    assert {name: found for name, found in groups(store).items() if name in before} == before
    assert counts.get(names[0], {}).get("kmeans-step", 0) == left * chain.BLOCKS
    assert not list(store.rglob("checkpoint"))
    assert not list(store.rglob("*.partial"))


def test_finished_run_runs_nothing(emb, tally, remote, reference, tmp_path):
    store = tmp_path / "run.zarr"
    dc.compute(chain.whole(emb), store=store)
    assert tally.counts
    tally.keys.clear()
    again = dc.compute(chain.whole(emb), store=store)
    assert not tally.keys
    chain.same_as(again, reference)


@pytest.mark.parametrize("point", ["rows", "pool"])
def test_ingest_goes_on_where_the_client_was_killed(point, emb, killed, remote, rows_file, tmp_path):
    pool = tmp_path / "pool.zarr"
    killed(pool, tmp_path / "run.zarr", "start", point)
    assert not pool.exists()
    with pytest.raises(FileNotFoundError):
        dc.open_embeddings(pool)
    again = chain.ingest(rows_file, pool)
    assert again.fingerprint == emb.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["pool.zarr"]


@SLOW
def test_client_killed_again_and_again(emb, killed, processes, reference, tmp_path):
    store = tmp_path / "run.zarr"
    for point in (
        "saved:kmeans:2",
        "saved:kmeans:2",
        "marker:kmeans",
        "tasks:semantic_dedup:write",
        "marker:hier",
    ):
        killed(emb.path, store, "whole", point)
    with Client(processes):
        chain.same_as(dc.compute(chain.whole(emb), store=store), reference)
