"""A pool and a run store in a bucket of an S3 service on this machine: ingest, run, resume, and damage."""

import chain
import fsspec
import numpy as np
import pytest
from distributed import Client
from moto.server import ThreadedMotoServer

import daskcurate as dc
from daskcurate import runner

BUCKET = "s3://curation"


@pytest.fixture(scope="module")
def bucket(cluster):
    """An empty bucket, and the environment that leads to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield fsspec.filesystem("s3")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def remote_pool(bucket, cluster, tmp_path_factory):
    source = chain.source(tmp_path_factory.mktemp("rows") / "rows.npy")
    bucket.put(str(source), f"{BUCKET}/rows.npy")
    with Client(cluster):
        return chain.ingest(f"{BUCKET}/rows.npy", f"{BUCKET}/pool.zarr")


def same(result, wanted):
    """Assert that all arrays of all stages are those wanted, bit for bit."""
    found = {stage.name: stage for stage in chain.stages(result)}
    assert {name for name, _ in wanted} == set(found)
    for (name, array), values in wanted.items():
        assert found[name].read(array).tobytes() == values.tobytes(), (name, array)


def test_the_pool_is_that_of_a_local_file(remote_pool, emb):
    assert remote_pool.path == f"{BUCKET}/pool.zarr"
    assert remote_pool.fingerprint == emb.fingerprint
    assert np.array_equal(remote_pool.rows[:], emb.rows[:])
    assert np.array_equal(remote_pool.rows[295:610:7], emb.rows[295:610:7])
    opened = dc.open_embeddings(f"{BUCKET}/pool.zarr/")
    assert (opened.fingerprint, len(opened)) == (emb.fingerprint, len(emb))


class Stopped(RuntimeError):
    """What stops a run in this test."""


@pytest.mark.slow  # some 10 000 requests to a service written in Python
def test_run_and_resume(remote_pool, reference, client, bucket, tmp_path, monkeypatch):
    chain.distribute(monkeypatch.setattr)
    store = f"{BUCKET}/run.zarr"
    original = runner.StageRun.save
    saves = []

    def save(run, **checkpoint):
        original(run, **checkpoint)
        saves.append(run.stage.kind)
        if len(saves) == 3:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(runner.StageRun, "save", save)
        with pytest.raises(Stopped):
            dc.compute(chain.whole(remote_pool), store=store)
    found = dc.compute(chain.whole(remote_pool), store=store)
    same(found, reference)
    assert not [name for name in bucket.find(store) if "checkpoint" in name]

    # all is there now: nothing runs
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_run_stage", lambda stage, run: pytest.fail(f"{stage.title} ran again"))
        same(dc.compute(chain.whole(remote_pool), store=store), reference)
    dc.export(found, f"{BUCKET}/picks.npy")
    with fsspec.open(f"{BUCKET}/picks.npy", "rb") as file:
        assert np.array_equal(np.load(file), found.indices)

    # a result whose file is gone is computed again, and not read as zeros
    stage = next(stage for stage in chain.stages(found) if stage.name.startswith("semantic_dedup"))
    (lost, *_) = sorted(name for name in bucket.find(f"{store}/{stage.name}") if "/c/" in name)
    bucket.rm_file(lost)
    with pytest.warns(UserWarning, match="is run again: files of .* are missing or were changed"):
        same(dc.compute(chain.whole(remote_pool), store=store), reference)


def test_a_damaged_pool(remote_pool, client, bucket, tmp_path):
    copy = f"{BUCKET}/damaged.zarr"
    bucket.copy(remote_pool.path, copy, recursive=True)
    emb = dc.open_embeddings(copy)
    chunk = f"{copy}/embeddings/c/3/0"
    whole = bucket.cat_file(chunk)
    row = chain.DIM * 4

    bucket.rm_file(chunk)
    with pytest.raises(FileNotFoundError, match=r"c/3/0 is missing: the pool s3://.* is damaged"):
        emb.rows[chain.CHUNK * 3 : chain.CHUNK * 3 + 1]
    with pytest.raises(FileNotFoundError, match=r"c/3/0 is missing"):
        dc.compute(chain.start(emb), store=tmp_path / "run.zarr")
    for length in (0, 5, row * 10 + 3):
        bucket.pipe_file(chunk, whole[:length])
        with pytest.raises(ValueError, match=r"c/3/0 is cut short: the pool s3://.* is damaged"):
            emb.rows[chain.CHUNK * 3 + 9 : chain.CHUNK * 3 + 20]
    bucket.pipe_file(chunk, whole)
    assert np.array_equal(emb.rows[:], remote_pool.rows[:])


def test_a_bucket_that_there_is_not(bucket):
    with pytest.raises(FileNotFoundError, match="there is no pool at s3://nobody/pool.zarr"):
        dc.open_embeddings("s3://nobody/pool.zarr")
