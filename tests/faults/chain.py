"""The chain of stages that the fault tests run, on a pool small enough for a second or two.

Imported by the tests, and run by them as a script in a process that kills itself:
``python chain.py SCHEDULER POOL STORE KILL``. KILL says when, for instance ``save:kmeans:3``.
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
from daskcurate import lloyd_loop, planning, runner
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


def nodes(emb):
    """Return the last stage of the whole chain; the others are its inputs."""
    flat = dc.kmeans(emb, CLUSTERS, metric="cosine", n_iters=ITERATIONS, seed=1)
    dedup = dc.semantic_dedup(emb, flat, eps=0.02)
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


def same(found, wanted):
    """Assert that two results are the same, bit for bit."""
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype, name
        assert found[name].tobytes() == values.tobytes(), name


def distribute(patch):
    """Make k-means run Lloyd's loop over the cluster although the rows are few."""
    patch(lloyd_loop, "LOCAL_BYTES", 0)


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


def kill_at(point):
    """Arrange that this process is killed at a point of the run.

    ``rows``, ``pool``: when the tasks that write the pool run; when it is about to be put in its place.
    ``start:KIND``, ``saving:KIND:N``, ``saved:KIND:N``, ``tasks:KIND:STEP``, ``marker:KIND``: when a stage
    starts; before and after its N-th checkpoint; when the tasks of a step run; before it is committed.
    """
    what, kind, detail = (point + "::").split(":")[:3]
    saves = 0

    def before(owner, name, condition):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            if condition(*args, **kwargs):
                die()
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    def counted(run, **_):
        nonlocal saves
        saves += run.stage.kind == kind
        return saves == int(detail)

    def running(client, futures, *_, **__):
        # the first task is done, others are not: some wait, some run
        next(iter(as_completed(futures)))
        return True

    if what == "rows":
        before(Client, "gather", running)
    elif what == "pool":
        before(pool_io, "commit", lambda *_: True)
    elif what == "start":
        before(runner.StageRun, "__init__", lambda run, stage, *_: stage.kind == kind)
    elif what == "saving":
        before(runner.StageRun, "save", counted)
    elif what == "saved":
        original = runner.StageRun.save

        def save(run, **checkpoint):
            original(run, **checkpoint)
            if counted(run):
                die()

        runner.StageRun.save = save
    elif what == "tasks":
        original_gather = runner.StageRun.gather

        def gather(run, tasks, step=""):
            if run.stage.kind == kind and step == detail:
                before(Client, "gather", running)
            return original_gather(run, tasks, step)

        runner.StageRun.gather = gather
    elif what == "marker":
        before(
            runner.RunStore, "update", lambda store, name, **changes: name.startswith(kind) and changes.get("complete")
        )
    else:
        raise ValueError(point)


def main(scheduler, path, dest, store, point):
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
        dc.compute(nodes(emb), store=store)


if __name__ == "__main__":
    main(*sys.argv[1:])
