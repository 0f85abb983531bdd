"""A stage that fails is not committed, and runs when it is tried again."""

import sys

import chain
import numpy as np
import pytest

import daskcurate as dc
from daskcurate import clustering_arrays, runner

kmeans_module = sys.modules["daskcurate.kmeans"]  # as an attribute it is the function of that name

pytestmark = pytest.mark.usefixtures("distributed_lloyd")


class BrokenError(Exception):
    """What the tests let fail."""


def test_failing_task(emb, client, reference, tmp_path):
    """The failure is kept, as an interactive session does, and with it all that its frames hold."""
    write = clustering_arrays._write_rows

    def broken(numbers, urls, chunk_rows, n_rows, found):
        if numbers[0] == 2 * chunk_rows:
            raise BrokenError("disk full")
        return write(numbers, urls, chunk_rows, n_rows, found)

    store = tmp_path / "run.zarr"
    stage = chain.start(emb).inputs["clustering"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustering_arrays, "_write_rows", broken)
        with pytest.raises(BrokenError, match="disk full") as kept:
            dc.compute(stage, store=store)
    attributes = runner.RunStore(store).attributes(stage.name)
    assert attributes["complete"] is False
    again = dc.compute(stage, store=store)
    chain.same_as(again, reference)
    assert kept.traceback  # not let go of before


def test_failing_client(emb, client, reference, ran, tmp_path, monkeypatch):
    store = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(runner.StageRun, "declare", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dc.compute(chain.start(emb), store=store)
    assert len(ran) == 1
    chain.same_as(dc.compute(chain.start(emb), store=store), reference)
    assert len(ran) == 3  # k-means, which goes on, and deduplication


def test_interrupted_by_the_user(emb, client, reference, tmp_path, monkeypatch):
    store = tmp_path / "run.zarr"

    def interrupt(self, futures, *_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(client), "gather", interrupt)
        with pytest.raises(KeyboardInterrupt):
            dc.compute(chain.start(emb), store=store)
    chain.same_as(dc.compute(chain.start(emb), store=store), reference)


def test_failed_task_is_tried_again(emb, client, reference, tmp_path, monkeypatch):
    """A fault that passes, of the network or the disk, does not end the run."""
    write = clustering_arrays._write_rows
    marks = tmp_path / "marks"
    marks.mkdir()

    def shaky(numbers, urls, chunk_rows, n_rows, found):
        mark = marks / str(numbers[0])
        if not mark.exists():
            mark.touch()
            raise BrokenError("try again")
        return write(numbers, urls, chunk_rows, n_rows, found)

    monkeypatch.setattr(clustering_arrays, "_write_rows", shaky)
    stage = chain.start(emb).inputs["clustering"]
    chain.same_as(dc.compute(stage, store=tmp_path / "run.zarr"), reference)
    assert len(list(marks.iterdir())) == chain.BLOCKS


@pytest.mark.parametrize("interrupted", [False, True])
def test_warning_is_kept(interrupted, pool, client, tmp_path, monkeypatch):
    emb = pool(np.eye(6, dtype=np.float32))
    few = np.arange(6) < 3
    stage = dc.kmeans(emb, 5, within=few)
    store = tmp_path / "run.zarr"
    text = "only 3 rows to cluster, so 3 clusters instead of 5"
    if interrupted:
        with monkeypatch.context() as patch:
            patch.setattr(kmeans_module, "assign_blocks", lambda *_, **__: 1 / 0)
            with pytest.warns(UserWarning, match=text), pytest.raises(ZeroDivisionError):
                dc.compute(stage, store=store)
    with pytest.warns(UserWarning, match=text):
        found = dc.compute(stage, store=store)
    assert [message for message in found.attributes["warnings"] if text in message] == found.attributes[
        "warnings"
    ]
    assert len(found.attributes["warnings"]) == 1
