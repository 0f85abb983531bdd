"""Several fits at once: they overlap, within memory, and each goes on where it had got to."""

import threading
import time

import numpy as np
import pytest
from oracles import blobs

import daskcurate as dc
from daskcurate import fitting, runner, side_by_side, splitting
from daskcurate.planning import Limits
from daskcurate.side_by_side import Fit


class Run:
    """What fits need of a stage's run."""

    def __init__(self, n_threads=4, **checkpoint):
        self.limits, self.lock, self.checkpoint = Limits(1, n_threads, None), threading.RLock(), checkpoint

    def save(self, **checkpoint):
        self.checkpoint = checkpoint

    def start(self, tasks):
        return tasks

    def finish(self, started, step=""):
        return [task() for task in started]


def test_fits_run_at_once_and_return_in_order():
    together = threading.Barrier(3)

    def fit(side):
        return together.wait(timeout=30) in range(3) and side.gather([lambda: threading.get_ident()])

    fits = [Fit(str(i), i, lambda side, i=i: (i, fit(side))) for i in range(3)]
    found = side_by_side.side_by_side(Run(), fits, None)
    assert [number for number, _ in found] == [0, 1, 2]
    assert len({thread for _, (thread,) in found}) == 3


@pytest.mark.parametrize(("n_threads", "room", "most"), [(4, 250, 250), (4, 10, 100), (1, None, 200)])
def test_rows_kept_are_bounded(n_threads, room, most):
    lock, held, seen = threading.Lock(), [0], []

    def fit(side, nbytes):
        with lock:
            held[0] += nbytes
            seen.append(held[0])
        time.sleep(0.02)
        with lock:
            held[0] -= nbytes

    sizes = [100, 50, 100, 100, 25, 100]
    fits = [Fit(str(i), size, lambda side, size=size: fit(side, size)) for i, size in enumerate(sizes)]
    side_by_side.side_by_side(Run(n_threads), fits, room)
    assert len(seen) == len(sizes)
    assert max(seen) <= most


def test_where_one_fails_the_others_end_with_their_step():
    failed, steps = threading.Event(), []

    def fails(side):
        raise OSError("disk full")

    def goes_on(side):
        failed.wait(30)
        for step in range(10_000):
            steps.append(step)
            side.gather([lambda: time.sleep(0.01)])

    def fail_late(side):
        failed.set()
        fails(side)

    with pytest.raises(OSError, match="disk full"):
        side_by_side.side_by_side(Run(), [Fit("0", 0, goes_on), Fit("1", 0, fail_late)], None)
    assert len(steps) < 10_000


def test_every_fit_has_a_checkpoint_within_the_stage_s():
    run = Run(step=3, base="b", sides={"1": {"iteration": 7}})
    found = side_by_side.side_by_side(
        run, [Fit(key, 0, lambda side: (side.checkpoint, side.save(done=True))) for key in ("0", "1")], None
    )
    assert [before for before, _ in found] == [{}, {"iteration": 7}]
    assert run.checkpoint == {"step": 3, "base": "b", "sides": {"0": {"done": True}, "1": {"done": True}}}


@pytest.fixture
def giants(pool, monkeypatch):
    """A level of which every cluster is split through the distributed loop."""
    monkeypatch.setattr(fitting, "LOCAL_BYTES", 0)
    monkeypatch.setattr(splitting, "PART_BYTES", 4 * 5 * 60)
    emb = pool(blobs(4, n=600, centres=5), chunk_rows=200)
    return dc.hierarchical_kmeans(emb, [5], n_splits=[4], n_iters=3).levels[0]


def arrays(found):
    return {name: found.read(name) for name in ("labels", "distances", "centroids", "sizes")}


def same(found, wanted):
    for name, values in arrays(wanted).items():
        np.testing.assert_array_equal(found.read(name), values)
    assert found.attributes["inertia"] == wanted.attributes["inertia"]


def test_splits_are_the_same_one_by_one_and_at_once(client, giants, tmp_path, monkeypatch):
    at_once = dc.compute(giants, store=tmp_path / "a.zarr")
    monkeypatch.setattr(side_by_side, "AT_ONCE", 1)
    same(dc.compute(giants, store=tmp_path / "b.zarr"), at_once)
    # rows that no room is left for are read again by every pass
    monkeypatch.setattr(
        splitting, "side_by_side", lambda run, fits, room: side_by_side.side_by_side(run, fits, 0)
    )
    monkeypatch.setattr(splitting, "hold", lambda run, rows: rows)
    same(dc.compute(giants, store=tmp_path / "c.zarr"), at_once)


def test_clusters_that_are_split_are_not_split_again(client, giants, tmp_path, monkeypatch):
    wanted = dc.compute(giants, store=tmp_path / "whole.zarr")
    save, finished = side_by_side.Side.save, []

    def fail_at_the_third(side, **checkpoint):
        save(side, **checkpoint)
        if "found" in checkpoint:
            finished.append(side._key)
            if len(finished) == 3:
                raise OSError("power failure")

    with monkeypatch.context() as patch:
        patch.setattr(side_by_side.Side, "save", fail_at_the_third)
        with pytest.raises(OSError, match="power failure"):
            dc.compute(giants, store=tmp_path / "run.zarr")
    made, original = [], runner.task

    def record(function, *args, name, key, threads=1):
        made.append(f"{name}-{key}")
        return original(function, *args, name=name, key=key, threads=threads)

    monkeypatch.setattr(runner, "task", record)
    same(dc.compute(giants, store=tmp_path / "run.zarr"), wanted)
    steps = [key for key in made if key.startswith("kmeans-step-")]
    fitted = {key.split("-s")[-1].split("-")[0] for key in steps}
    assert 3 <= len(finished) < 5
    assert fitted == {f"{10**6 + cluster}" for cluster in range(5) if str(cluster) not in finished}
