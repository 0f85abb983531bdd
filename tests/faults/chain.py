"""The chain of stages that the fault tests run, on a pool small enough for a second or two.

Imported by the tests, and run by them as a script in a process that kills itself:
``python chain.py SCHEDULER ROWS POOL STORE PART KILL``. PART is ``start`` or ``whole``; KILL says when, for
instance ``saved:kmeans:3``.
"""

import os
import signal
import sys
import warnings
from pathlib import Path

import dask
import numpy as np
from distributed import Client, as_completed

import daskcurate as dc
from daskcurate import fitting, planning, runner, small_pools
from daskcurate.io import pool as pool_io

ROWS, DIM, CHUNK = 2400, 12, 300
BLOCKS = ROWS // CHUNK
ITERATIONS = 6
CLUSTERS = 12


def source(path):
    """Write the rows of the pool as a file: unit vectors without structure, and near copies of some."""
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    rows[1::10] = rows[::10] + 0.02 * rng.normal(size=(ROWS // 10, DIM)).astype(np.float32)
    np.save(path, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return path


def ingest(path, dest):
    """Ingest that file in several chunks."""
    return dc.ingest(path, dest, normalize=True, chunk_rows=CHUNK)


def start(emb):
    """Return the first stages of the chain: k-means and deduplication."""
    flat = dc.kmeans(emb, CLUSTERS, metric="cosine", n_iters=ITERATIONS, seed=1)
    return dc.semantic_dedup(emb, flat, eps=0.02)


def across(emb, rule):
    """Return k-means and deduplication of the whole pool."""
    flat = start(emb).inputs["clustering"]
    return dc.semantic_dedup(emb, flat, eps=0.02, scope="global", rule=rule)


def whole(emb):
    """Return the last stage of the whole chain; the others are its inputs."""
    dedup = start(emb)
    flat = dedup.inputs["clustering"]
    prune = dc.density_prune(flat, keep_fraction=0.8, n_neighbors=5, within=dedup)
    tree = dc.hierarchical_kmeans(
        emb, [30, 8], sample_sizes=[1, 3], n_resamples=1, n_splits=[2, 1], n_iters=4, within=prune, seed=2
    )
    return dc.hierarchical_sample(tree, 300, seed=3)


def stages(result):
    """Return every stage that led to ``result``, inputs first."""
    found = {}

    def visit(stage):
        for needed in stage.stages():
            visit(needed)
        found[stage.name] = stage

    visit(result)
    return list(found.values())


def arrays(result):
    """Return the content of every array of every stage, by name."""
    found = {}
    for stage in stages(result):
        for array in sorted(p.name for p in Path(stage.store.stage_url(stage.name)).iterdir() if p.is_dir()):
            found[stage.name, array] = stage.read(array)
    return found


def same_as(result, wanted):
    """Assert that all arrays of a result, and of the stages before it, are those wanted, bit for bit."""
    found = arrays(result)
    names = {stage.name for stage in stages(result)}
    assert found.keys() == {key for key in wanted if key[0] in names}
    for name, values in ((key, wanted[key]) for key in found):
        assert found[name].dtype == values.dtype, name
        assert found[name].tobytes() == values.tobytes(), name


def distribute(patch):
    """Make k-means run Lloyd's loop, and dedup its tasks, over the cluster although the rows are few."""
    patch(fitting, "LOCAL_BYTES", 0)
    patch(small_pools, "WHOLE_OPERATIONS", 0)


def shuffle(patch):
    """Make every regrouping take the peer-to-peer shuffle although the frames are small."""
    patch(planning.Limits, "small_regroup_bytes", property(lambda limits: 0))
    patch(planning.Limits, "rank_rows", property(lambda limits: 100))
    patch(planning, "PART_BYTES", DIM * 4 * 1024)
    import daskcurate.splitting

    patch(daskcurate.splitting, "PART_BYTES", DIM * 4 * 200)


def die():
    """End this process as a power failure would."""
    os.kill(os.getpid(), signal.SIGKILL)


def _before(owner, name, condition):
    """Kill this process when ``owner.name`` is called with arguments for which ``condition`` holds."""
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
        if condition(*args, **kwargs):
            die()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _first_done(client, futures, *_, **__):
    """Wait until the first task is done; others wait or run."""
    next(iter(as_completed(futures)))
    return True


def _at_save(kind, number, after):
    original = runner.StageRun.save
    saves = 0

    def save(run, **checkpoint):
        nonlocal saves
        saves += run.stage.kind == kind
        if after:
            original(run, **checkpoint)
        if saves == int(number):
            die()
        if not after:
            original(run, **checkpoint)

    runner.StageRun.save = save


def _at_step(kind, wanted):
    original = runner.StageRun.finish

    def finish(run, started, step=""):
        if run.stage.kind == kind and step == wanted:
            _before(Client, "gather", _first_done)
        return original(run, started, step)

    runner.StageRun.finish = finish


def _at_marker(kind):
    def ends(store, name, **changes):
        return name.startswith(kind) and changes.get("complete")

    _before(runner.RunStore, "update", ends)


POINTS = {
    "rows": lambda *_: _before(Client, "gather", _first_done),
    "pool": lambda *_: _before(pool_io, "commit", lambda *_: True),
    "start": lambda kind, _: _before(runner.StageRun, "__init__", lambda run, stage, *_: stage.kind == kind),
    "saving": lambda kind, number: _at_save(kind, number, after=False),
    "saved": lambda kind, number: _at_save(kind, number, after=True),
    "tasks": _at_step,
    "marker": lambda kind, _: _at_marker(kind),
}


def kill_at(point):
    """Arrange that this process is killed at a point of the run.

    ``rows``, ``pool``: while tasks write the pool; when it is about to be put in its place. ``start:KIND``,
    ``saving:KIND:N``, ``saved:KIND:N``, ``tasks:KIND:STEP``, ``marker:KIND``: when a stage starts; before and
    after its N-th checkpoint; while the tasks of a step run; before it is committed.
    """
    what, kind, detail = (point + "::").split(":")[:3]
    POINTS[what](kind, detail)


def main(scheduler, path, dest, store, part, point):
    """Run everything, up to the point at which this process is killed."""
    dask.config.set({"daskcurate.progress": False})
    warnings.simplefilter("ignore")
    distribute(setattr)
    with Client(scheduler):
        if not point.startswith(("rows", "pool")):
            emb = dc.open_embeddings(dest)
            kill_at(point)
        else:
            kill_at(point)
            emb = ingest(path, dest)
        dc.compute(globals()[part](emb), store=store)


if __name__ == "__main__":
    main(*sys.argv[1:])
