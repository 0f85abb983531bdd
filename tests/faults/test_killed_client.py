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


def iterations(counts, name):
    return counts.get(name, {}).get("kmeans-step", 0) / chain.BLOCKS


# where it is killed, the stages finished by then, the Lloyd iterations of the first stage still to do
POINTS = [
    ("start:kmeans", 0, chain.ITERATIONS),
    ("tasks:kmeans:iteration", 0, chain.ITERATIONS),
    ("saving:kmeans:3", 0, chain.ITERATIONS - 2),
    ("saved:kmeans:3", 0, chain.ITERATIONS - 3),
    (f"saved:kmeans:{chain.ITERATIONS + 1}", 0, 0),
    ("tasks:kmeans:write labels", 0, 0),
    ("marker:kmeans", 0, 0),
    ("start:semantic_dedup", 1, 0),
    ("tasks:semantic_dedup:write", 1, 0),
    ("marker:semantic_dedup", 1, 0),
    ("tasks:hierarchical_sample:write", 5, 0),
    ("marker:hierarchical_sample", 5, 0),
]


@pytest.mark.parametrize(("point", "finished", "left"), POINTS)
def test_run_goes_on_where_the_client_was_killed(
    point, finished, left, emb, killed, tally, processes, reference, tmp_path
):
    store = tmp_path / "run.zarr"
    killed(emb.path, store, point)
    before = complete(store)
    assert len(before) == finished

    with Client(processes):
        result = dc.compute(chain.nodes(emb), store=store)

    chain.same(chain.arrays(result), reference)
    names = [stage.name for stage in chain.stages(result)]
    counts = tally.counts
    assert sorted(counts) == sorted(set(names) - set(before))  # no task of a finished stage ran
    assert {name: found for name, found in groups(store).items() if name in before} == before
    assert iterations(counts, names[0]) == left
    assert not list(store.rglob("checkpoint"))
    assert not list(store.rglob("*.partial"))


def test_finished_run_runs_nothing(emb, tally, remote, reference, tmp_path):
    store = tmp_path / "run.zarr"
    dc.compute(chain.nodes(emb), store=store)
    assert tally.counts
    tally.keys.clear()
    again = dc.compute(chain.nodes(emb), store=store)
    assert not tally.keys
    chain.same(chain.arrays(again), reference)


@pytest.mark.parametrize("point", ["rows", "pool"])
def test_ingest_starts_clean_where_the_client_was_killed(point, emb, killed, remote, rows_file, tmp_path):
    pool = tmp_path / "pool.zarr"
    killed(pool, tmp_path / "run.zarr", point)
    assert not pool.exists()
    with pytest.raises(FileNotFoundError):
        dc.open_embeddings(pool)
    again = chain.ingest(rows_file, pool)
    assert again.fingerprint == emb.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["pool.zarr"]


@pytest.mark.slow
def test_client_killed_again_and_again(emb, killed, processes, reference, tmp_path):
    store = tmp_path / "run.zarr"
    for point, *_ in POINTS:
        killed(emb.path, store, point.replace(f"saved:kmeans:{chain.ITERATIONS + 1}", "saved:kmeans:2"))
    with Client(processes):
        chain.same(chain.arrays(dc.compute(chain.nodes(emb), store=store)), reference)
