"""Stores that are damaged, unfinished, shared, or no run stores at all."""

import json
import shutil
import threading
from pathlib import Path

import chain
import numpy as np
import pytest
import zarr
from distributed import Client

import daskcurate as dc
from daskcurate.store import StoreError

pytestmark = pytest.mark.usefixtures("distributed_lloyd")


def chunk(group):
    return group / "labels" / "c" / "3"


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def unmark(group):
    file = group / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"]["daskcurate"]["complete"] = False
    file.write_text(json.dumps(content))


DAMAGES = {
    "chunk missing": (lambda group: chunk(group).unlink(), True),
    "chunk cut short": (lambda group: halve(chunk(group)), True),
    "chunks of an array missing": (lambda group: shutil.rmtree(group / "distances" / "c"), True),
    "array missing": (lambda group: shutil.rmtree(group / "centroids"), True),
    "array's metadata cut short": (lambda group: halve(group / "labels" / "zarr.json"), True),
    "group's metadata missing": (lambda group: (group / "zarr.json").unlink(), False),
    "group's metadata cut short": (lambda group: halve(group / "zarr.json"), False),
    "group's metadata empty": (lambda group: (group / "zarr.json").write_bytes(b""), False),
    "marker not set": (unmark, False),
    "group missing": (shutil.rmtree, False),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_stage_alone_is_run_again(damage, emb, finished, reference, client, ran, tmp_path):
    store = tmp_path / "run.zarr"
    shutil.copytree(finished.store.url, store)
    first = chain.stages(finished)[0].name
    spoil, noticed = DAMAGES[damage]
    spoil(store / first)
    if noticed:
        with pytest.warns(UserWarning, match=rf"k-means 12 is run again: files of .*{first} are missing"):
            again = dc.compute(chain.whole(emb), store=store)
    else:
        again = dc.compute(chain.whole(emb), store=store)
    assert ran == [first]
    chain.same_as(again, reference)
    dc.compute(chain.whole(emb), store=store)
    assert ran == [first]


def test_left_over_files_do_not_matter(emb, finished, client, ran, tmp_path):
    store = tmp_path / "run.zarr"
    shutil.copytree(finished.store.url, store)
    first = store / chain.stages(finished)[0].name
    (first / ".DS_Store").write_bytes(b"x")
    (first / "labels" / "c" / ".DS_Store").write_bytes(b"x")
    (first / "checkpoint" / "s0").mkdir(parents=True)
    (first / "checkpoint" / "s0" / "zarr.json").write_bytes(b"")
    dc.compute(chain.whole(emb), store=store)
    assert not ran


def other_version(path):
    zarr.create_group(path, attributes={"daskcurate": {"format": "run", "version": 999}})


def foreign_group(path):
    zarr.create_group(path, attributes={"made by": "another program"}).create_array("x", shape=3, dtype="f4")


def bare_group(path):
    zarr.create_group(path).create_array("x", shape=3, dtype="f4")


def old_group(path):
    zarr.create_group(path, zarr_format=2)


def lone_array(path):
    zarr.create_array(path, shape=3, dtype="f4")


def pool_of_rows(path):
    dc.ingest(np.eye(4, dtype=np.float32), path)


def plain_file(path):
    path.write_text("not a store")


def full_folder(path):
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def damaged_root(path):
    zarr.create_group(path)
    (path / "zarr.json").write_bytes(b"")


REFUSED = {
    other_version: "has format version 999, this reads 1",
    foreign_group: "is a zarr group, not a run store",
    bare_group: "exists and is not a run store",
    old_group: "exists and is not a run store",
    lone_array: "exists and is not a run store",
    pool_of_rows: "is a pool, not a run store",
    plain_file: "exists and is not a run store",
    full_folder: "exists and is not a run store",
    damaged_root: "is damaged: its zarr.json cannot be read",
}


def content(path):
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_is_no_run_store_is_refused_and_left_alone(make, emb, client, ran, tmp_path):
    path = tmp_path / "store"
    make(path)
    before = content(path)
    with pytest.raises(StoreError, match=REFUSED[make]):
        dc.compute(chain.start(emb), store=path)
    assert content(path) == before
    assert not ran


def test_store_whose_maker_was_killed_can_be_made(emb, client, finished, tmp_path):
    (tmp_path / "zarr.0123456789abcdef.partial").write_bytes(b"{")
    assert dc.compute(chain.start(emb).inputs["clustering"], store=tmp_path).is_computed


def test_empty_folder_becomes_a_store(emb, client, finished, tmp_path):
    found = dc.compute(chain.start(emb).inputs["clustering"], store=tmp_path)
    assert Path(found.store.url) == tmp_path


def at_once(*functions):
    """Run functions in threads; return what they raised."""
    failures = []

    def guarded(function):
        try:
            function()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


@pytest.mark.parametrize("other", [2, 1])
def test_two_runs_at_once_into_one_store(other, emb, cluster, reference, tmp_path):
    def run(seed, store):
        stage = dc.kmeans(emb, chain.CLUSTERS, metric="cosine", n_iters=chain.ITERATIONS, seed=seed)
        with Client(cluster, set_as_default=False) as client:
            return dc.compute(stage, store=store, client=client)

    shared = tmp_path / "shared.zarr"
    failures = at_once(lambda: run(1, shared), lambda: run(other, shared))
    if other == 1:  # the same stage twice: one may find that the other has cleared the checkpoint away
        assert len(failures) < 2
        assert all(isinstance(error, FileNotFoundError) for error in failures)
    else:
        assert not failures
        chain.same_as(run(other, shared), chain.arrays(run(other, tmp_path / "other.zarr")))
    chain.same_as(run(1, shared), reference)
