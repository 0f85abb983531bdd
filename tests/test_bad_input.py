"""What users get wrong: every mistake is refused by name, before anything is submitted or written."""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pytest
import yaml
from distributed import Client

import daskcurate as dc
from daskcurate import cli

ROWS, DIM = 40, 8


def rows(n: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def world(cluster, tmp_path_factory):
    """A pool, stages lazy and computed, and whatever else a wrong path can lead to."""
    path = tmp_path_factory.mktemp("world")
    w = SimpleNamespace(
        path=path, store=str(path / "run.zarr"), pool=str(path / "pool.zarr"), x=rows(ROWS, 1)
    )
    with Client(cluster), dask.config.set({"daskcurate.progress": False}):
        w.emb = dc.ingest(w.x, w.pool, ids=[f"id{i}" for i in range(ROWS)], chunk_rows=16)
        w.other = dc.ingest(rows(ROWS, 2), path / "other.zarr")
        w.small = dc.ingest(rows(10, 3), path / "small.zarr")
        w.flat = dc.kmeans(w.emb, 4, n_iters=2)
        w.dedup = dc.semantic_dedup(w.emb, w.flat, eps=0.1)
        w.tree = dc.hierarchical_kmeans(w.emb, [6, 2], n_iters=2)
        w.picks = dc.hierarchical_sample(w.tree, 5)
        greedy = dc.semantic_dedup(w.emb, w.flat, eps=0.1, rule="greedy")
        connected = dc.semantic_dedup(w.emb, w.flat, eps=0.1, rule="connected")
        given = dc.Hierarchy.from_labels([np.arange(ROWS) % 3])
        w.flat_done, w.done, w.greedy, w.connected, w.tree_done, w.picks_done, w.given_done = dc.compute(
            w.flat, w.dedup, greedy, connected, w.tree, w.picks, given, store=w.store
        )
    w.given = given
    w.foreign = dc.kmeans(w.other, 3)
    w.foreign_selection = dc.random_prune(w.other, keep_fraction=0.5)
    w.short_selection = dc.random_prune(w.small, keep_fraction=0.5)
    w.mask = np.arange(ROWS) % 2 == 0
    (path / "a-file").write_text("not a store")
    (path / "a-folder").mkdir()
    (path / "a-folder" / "notes.txt").write_text("mine")
    (path / "there.npy").write_bytes(b"mine")
    np.save(path / "rows.npy", w.x)
    np.save(path / "ints.npy", np.arange(24).reshape(3, 8))
    bad = w.x.copy()
    bad[7, 2] = np.nan
    np.save(path / "nan.npy", bad)
    stages = {"flat": {"kmeans": {"n_clusters": 4, "n_iters": 2}}}
    stages["dedup"] = {"semantic_dedup": {"clustering": "flat", "eps": 0.1}}
    config = {"embeddings": w.pool, "store": w.store, "stages": stages}
    (path / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (path / "broken.yaml").write_text("stages: [")
    (path / "unknown.yaml").write_text(yaml.safe_dump(config | {"stagse": {}}, sort_keys=False))
    return w


def everything(path: Path) -> dict[str, tuple[int, int]]:
    """Return name, size and time of change of all that is below ``path``."""
    return {str(p): ((s := p.lstat()).st_size, s.st_mtime_ns) for p in sorted(path.rglob("*"))}


@pytest.fixture(scope="module")
def client(cluster):
    """A client that all tests here share: nothing is submitted to it."""
    with Client(cluster) as made:
        yield made


@pytest.fixture
def untouched(world, client, monkeypatch):
    """Yield the world; afterwards nothing has been submitted, started or written."""
    done = []

    def refuse(what):
        def called(*args, **kwargs):
            done.append(what)
            raise AssertionError(f"{what} was called")

        return called

    monkeypatch.setattr(Client, "_graph_to_futures", refuse("the scheduler"))
    monkeypatch.setattr(Client, "scatter", refuse("scatter"))
    monkeypatch.setattr("daskcurate.local_cluster.make_local_cluster", refuse("make_local_cluster"))
    monkeypatch.setattr("daskcurate.clusters.start_on", refuse("start_local_cluster"))
    monkeypatch.setattr("daskcurate.local_cuda.start_local_cluster", refuse("start_local_cluster"))
    monkeypatch.chdir(world.path)
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    before, tasks = everything(world.path), dict(client.cluster.scheduler.tasks)
    with dask.config.set(scheduler=refuse("dask")):
        yield world
    assert done == []
    assert dict(client.cluster.scheduler.tasks) == tasks
    assert everything(world.path) == before


def build_tree(w, n_clusters=(6, 2), **settings):
    return dc.hierarchical_kmeans(w.emb, list(n_clusters), **settings)


def prune(w, **settings):
    return dc.density_prune(w.flat, **({"keep_fraction": 0.5} | settings))


NaN = float("nan")

CASES = [
    # --- ingest and open_embeddings
    ("ingest a number", lambda w: dc.ingest(5, "p"), TypeError, "source of type int is not allowed"),
    ("ingest None", lambda w: dc.ingest(None, "p"), TypeError, "give an array"),
    ("ingest nothing there", lambda w: dc.ingest("gone.npy", "p"), FileNotFoundError, "gone.npy"),
    ("ingest an empty list", lambda w: dc.ingest([], "p"), ValueError, "source=[] is not allowed"),
    ("ingest a glob of nothing", lambda w: dc.ingest("gone-*.npy", "p"), FileNotFoundError, "no file matches"),
    ("ingest rows as lists", lambda w: dc.ingest([[1.0, 2.0]], "p"), TypeError, "NumPy array"),
    ("ingest a flat array", lambda w: dc.ingest(np.ones(5), "p"), ValueError, "shape (5,)"),
    ("ingest integers", lambda w: dc.ingest("ints.npy", "p"), TypeError, "int64: allowed are float16"),
    ("ingest no rows", lambda w: dc.ingest(np.ones((0, 4), "f4"), "p"), ValueError, "0 rows"),
    ("ingest a text file", lambda w: dc.ingest("a-file", "p"), ValueError, "has no known suffix"),
    ("ingest a folder of notes", lambda w: dc.ingest("a-folder", "p"), ValueError, "holds notes.txt"),
    ("ingest to None", lambda w: dc.ingest(w.x, None), TypeError, "dest=None is not allowed"),
    ("ingest to an empty name", lambda w: dc.ingest(w.x, ""), ValueError, "dest='' is not allowed"),
    ("ingest over a pool", lambda w: dc.ingest(w.x, w.pool), FileExistsError, "overwrite=True"),
    ("ingest over a folder", lambda w: dc.ingest(w.x, "a-folder", overwrite=True), ValueError, "is not a pool"),
    ("ingest overwrite as text", lambda w: dc.ingest(w.x, "p", overwrite="yes"), TypeError, "overwrite='yes'"),
    ("ingest normalize as int", lambda w: dc.ingest(w.x, "p", normalize=1), TypeError, "True, False or None"),
    ("ingest as int8", lambda w: dc.ingest(w.x, "p", dtype="int8"), ValueError, "'float16', 'float32' or None"),
    ("ingest as nonsense", lambda w: dc.ingest(w.x, "p", dtype="flaot"), TypeError, "dtype='flaot'"),
    ("ingest chunks of 0", lambda w: dc.ingest(w.x, "p", chunk_rows=0), ValueError, "chunk_rows=0"),
    ("ingest with few ids", lambda w: dc.ingest(w.x, "p", ids=["a"]), ValueError, "1"),
    ("ingest with one id twice", lambda w: dc.ingest(w.x, "p", ids=[0] * ROWS), ValueError, "0"),
    ("ingest with float ids", lambda w: dc.ingest(w.x, "p", ids=np.ones(ROWS)), TypeError, "float64"),
    ("ingest a format misspelt", lambda w: dc.ingest("rows.npy", "p", format="pny"), ValueError, "mean 'npy'"),
    ("open a number", lambda w: dc.open_embeddings(3), TypeError, "path=3 is not allowed"),
    ("open None", lambda w: dc.open_embeddings(None), TypeError, "path=None is not allowed"),
    ("open an empty name", lambda w: dc.open_embeddings(""), ValueError, "path='' is not allowed"),
    ("open nothing", lambda w: dc.open_embeddings("gone"), FileNotFoundError, "daskcurate.ingest"),
    ("open a file", lambda w: dc.open_embeddings("a-file"), ValueError, "not a pool but a file"),
    ("open a folder", lambda w: dc.open_embeddings(Path("a-folder")), ValueError, "not a zarr store"),
    ("open a run store", lambda w: dc.open_embeddings(w.store), ValueError, "is not a pool"),
    ("ingest as what another array has", lambda w: dc.ingest(w.x, "p", dtype=w.emb), TypeError, "dtype=Embeddings"),
    ("ingest to a name that no file can have", lambda w: dc.ingest(w.x, "a\0b"), ValueError, "dest='a\\x00b'"),
    # --- kmeans
    ("cluster an array", lambda w: dc.kmeans(w.x, 4), TypeError, "emb=ndarray is not allowed"),
    ("cluster a path", lambda w: dc.kmeans(w.pool, 4), TypeError, "daskcurate.open_embeddings"),
    ("cluster a clustering", lambda w: dc.kmeans(w.flat, 4), TypeError, "emb=Clustering is not allowed"),
    ("0 clusters", lambda w: dc.kmeans(w.emb, 0), ValueError, "n_clusters=0 is not allowed: give an integer >= 1"),
    ("-3 clusters", lambda w: dc.kmeans(w.emb, -3), ValueError, "n_clusters=-3"),
    ("clusters as text", lambda w: dc.kmeans(w.emb, "4"), TypeError, "n_clusters='4'"),
    ("clusters as float", lambda w: dc.kmeans(w.emb, 4.0), TypeError, "n_clusters=4.0"),
    ("clusters as bool", lambda w: dc.kmeans(w.emb, True), TypeError, "n_clusters=True"),
    ("clusters as list", lambda w: dc.kmeans(w.emb, [4, 2]), TypeError, "n_clusters=[4, 2]"),
    ("clusters as None", lambda w: dc.kmeans(w.emb, None), TypeError, "n_clusters=None"),
    ("more clusters than rows", lambda w: dc.kmeans(w.emb, 41), ValueError, "the pool has 40 rows"),
    ("metric misspelt", lambda w: dc.kmeans(w.emb, 4, metric="cosin"), ValueError, "did you mean 'cosine'"),
    ("metric euclidean", lambda w: dc.kmeans(w.emb, 4, metric="euclidean"), ValueError, "one of 'l2', 'cosine'"),
    ("init misspelt", lambda w: dc.kmeans(w.emb, 4, init="kmeans++"), ValueError, "did you mean 'k-means++'"),
    ("init as the word", lambda w: dc.kmeans(w.emb, 4, init="array"), ValueError, "init='array' is not allowed"),
    ("init as number", lambda w: dc.kmeans(w.emb, 4, init=7), TypeError, "init=7 is not allowed"),
    ("init None", lambda w: dc.kmeans(w.emb, 4, init=None), TypeError, "init=None is not allowed"),
    ("init of objects", lambda w: dc.kmeans(w.emb, 4, init=[{}]), TypeError, "'k-means||', 'random'"),
    ("init of another width", lambda w: dc.kmeans(w.emb, 4, init=np.ones((4, 3))), ValueError, "(n_clusters, 8)"),
    ("init of too few", lambda w: dc.kmeans(w.emb, 4, init=w.x[:3]), ValueError, "init has 3 centroids"),
    ("init with NaN", lambda w: dc.kmeans(w.emb, 1, init=np.full((1, 8), NaN)), ValueError, "NaN or infinity"),
    ("init without direction", lambda w: dc.kmeans(w.emb, 1, metric="cosine", init=np.zeros((1, 8))), ValueError,
     "init with a zero row"),
    ("restarts of an array", lambda w: dc.kmeans(w.emb, 4, init=w.x[:4], n_init=3), ValueError, "n_init=3"),
    ("0 restarts", lambda w: dc.kmeans(w.emb, 4, n_init=0), ValueError, "n_init=0"),
    ("updates as text", lambda w: dc.kmeans(w.emb, 4, n_iters="50"), TypeError, "n_iters='50'"),
    ("updates below 0", lambda w: dc.kmeans(w.emb, 4, n_iters=-1), ValueError, "an integer >= 0"),
    ("tol below 0", lambda w: dc.kmeans(w.emb, 4, tol=-0.1), ValueError, "tol=-0.1"),
    ("tol NaN", lambda w: dc.kmeans(w.emb, 4, tol=NaN), ValueError, "tol=nan"),
    ("seed below 0", lambda w: dc.kmeans(w.emb, 4, seed=-1), ValueError, "seed=-1"),
    ("seed None", lambda w: dc.kmeans(w.emb, 4, seed=None), TypeError, "seed=None"),
    ("seed too large", lambda w: dc.kmeans(w.emb, 4, seed=2**63), ValueError, "seed=9223372036854775808"),
    ("setting unknown", lambda w: dc.kmeans(w.emb, 4, n_iter=3), TypeError, "n_iter"),
    ("restarts without end", lambda w: dc.kmeans(w.emb, 4, n_init=10**9), ValueError, "and <= 10000"),
    ("resampling without end", lambda w: build_tree(w, sample_sizes=2, n_resamples=10**9), ValueError,
     "and <= 10000"),
    # --- within
    ("within a clustering", lambda w: dc.kmeans(w.emb, 4, within=w.flat), TypeError, "give a Selection"),
    ("within text", lambda w: dc.kmeans(w.emb, 4, within="dedup"), TypeError, "within='dedup' is not allowed"),
    ("within row numbers", lambda w: dc.kmeans(w.emb, 4, within=[1, 2, 3]), TypeError, "give a boolean array"),
    ("within a short mask", lambda w: dc.kmeans(w.emb, 4, within=w.mask[:7]), ValueError, "covers 7 rows"),
    ("within a short dask mask", lambda w: dc.kmeans(w.emb, 4, within=da.ones(7, dtype=bool)), ValueError, "7 rows"),
    ("within a mask of 2 dimensions", lambda w: prune(w, within=w.mask[:, None]), TypeError, "shape (40, 1)"),
    ("within another pool", lambda w: dc.kmeans(w.emb, 4, within=w.foreign_selection), ValueError, "other.zarr"),
    ("within a shorter pool", lambda w: prune(w, within=w.short_selection), ValueError, "within covers 10 rows"),
    ("tree within another pool", lambda w: build_tree(w, within=w.foreign_selection), ValueError, "same pool"),
    ("picks within another pool", lambda w: dc.hierarchical_sample(w.tree, 5, within=w.foreign_selection), ValueError,
     "same pool"),
    # --- hierarchical_kmeans
    ("levels as int", lambda w: dc.hierarchical_kmeans(w.emb, 6), TypeError,
     "n_clusters=6 is not allowed: give a list"),
    ("levels as text", lambda w: dc.hierarchical_kmeans(w.emb, "6,2"), TypeError, "n_clusters='6,2'"),
    ("no levels", lambda w: dc.hierarchical_kmeans(w.emb, []), ValueError, "at least one level"),
    ("levels as floats", lambda w: build_tree(w, (6.0, 2)), TypeError, "n_clusters[0]=6.0"),
    ("levels that grow", lambda w: build_tree(w, (6, 9)), ValueError, "level 2 asks for 9 clusters of 6"),
    ("levels over the rows", lambda w: build_tree(w, (60, 9)), ValueError, "60 clusters of 40 rows"),
    ("too few sample sizes", lambda w: build_tree(w, sample_sizes=[3]), ValueError, "sample_sizes=[3] has 1 entries"),
    ("sample size 0", lambda w: build_tree(w, sample_sizes=[3, 0]), ValueError, "sample_sizes[1]=0"),
    ("sample size as float", lambda w: build_tree(w, sample_sizes=2.5), TypeError, "sample_sizes=2.5"),
    ("sample sizes as text", lambda w: build_tree(w, sample_sizes="3"), TypeError, "sample_sizes='3'"),
    ("too many resamplings", lambda w: build_tree(w, n_resamples=[1, 2, 3]), ValueError, "n_resamples=[1, 2, 3]"),
    ("resamplings as bool", lambda w: build_tree(w, n_resamples=True), TypeError, "n_resamples=True"),
    ("split and resampled", lambda w: build_tree(w, n_splits=[2, 1], sample_sizes=3), ValueError, "either split or"),
    ("0 splits", lambda w: build_tree(w, n_splits=0), ValueError, "n_splits=0"),
    ("strategy misspelt", lambda w: build_tree(w, sample_strategy="closets"), ValueError, "did you mean 'closest'"),
    ("tree init as array", lambda w: build_tree(w, init=w.x[:6]), TypeError, "give the name of a seeding"),
    ("tree init as the word", lambda w: build_tree(w, init="array"), ValueError, "init='array' is not allowed"),
    ("level 0", lambda w: w.tree.flat_labels(0), ValueError, "level=0 is not allowed: give 1"),
    ("level 3 of 2", lambda w: w.tree_done.flat_labels(3), ValueError, "level=3"),
    ("level as text", lambda w: w.tree_done.flat_sizes("1"), TypeError, "level='1'"),
    ("n_clusters without dimensions", lambda w: dc.hierarchical_kmeans(w.emb, np.array(6)), TypeError,
     "n_clusters=array(6) is not allowed: give a list"),
    ("sample_sizes without dimensions", lambda w: build_tree(w, sample_sizes=np.array(2)), TypeError,
     "sample_sizes=array(2) is not allowed"),
    # --- semantic_dedup
    ("dedup without eps", lambda w: dc.semantic_dedup(w.emb, w.flat), TypeError, "eps"),
    ("eps 5", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=5), ValueError,
     "eps=5 is not allowed: give a number in [0, 2]"),
    ("eps NaN", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=NaN), ValueError, "eps=nan"),
    ("eps below 0", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=-0.1), ValueError, "eps=-0.1"),
    ("eps as text", lambda w: dc.semantic_dedup(w.emb, w.flat, eps="0.1"), TypeError, "eps='0.1'"),
    ("eps as bool", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=True), TypeError, "eps=True"),
    ("keep in capitals", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=0.1, keep="Hard"), ValueError, "mean 'hard'"),
    ("keep as the word", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=0.1, keep="score"), ValueError,
     "keep='score'"),
    ("keep None", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=0.1, keep=None), TypeError, "keep=None"),
    ("keep as number", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=0.1, keep=3), TypeError, "keep=3"),
    ("keep of texts", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=0.1, keep=["a"]), TypeError, "array of scores"),
    ("too few scores", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=0.1, keep=np.ones(3)), ValueError, "(40,)"),
    ("scores with NaN", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=0.1, keep=np.full(ROWS, NaN)), ValueError,
     "NaN at row 0"),
    ("rule misspelt", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=0.1, rule="eariler"), ValueError,
     "mean 'earlier'"),
    ("scope unknown", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=0.1, scope="clusters"), ValueError, "'cluster'"),
    ("dedup of a selection", lambda w: dc.semantic_dedup(w.emb, w.dedup, eps=0.1), TypeError, "give a Clustering"),
    ("dedup of another pool", lambda w: dc.semantic_dedup(w.emb, w.foreign, eps=0.1), ValueError, "other.zarr"),
    ("dedup of a level above", lambda w: dc.semantic_dedup(w.emb, w.tree.levels[1], eps=0.1), ValueError,
     "levels[0]"),
    ("dedup of labels alone", lambda w: dc.semantic_dedup(w.emb, w.given, eps=0.1), ValueError, "labels alone"),
    ("dedup of an array", lambda w: dc.semantic_dedup(w.x, w.flat, eps=0.1), TypeError, "emb=ndarray"),
    ("at eps 5", lambda w: w.dedup.at(5), ValueError, "eps=5"),
    ("at eps as text", lambda w: w.done.at("0.1"), TypeError, "eps='0.1'"),
    ("another eps of greedy", lambda w: w.greedy.at(0.2), ValueError, "rule='greedy'"),
    ("a larger eps of connected", lambda w: w.connected.at(0.2), ValueError, "give at most 0.1"),
    ("no fraction", lambda w: w.done.at_fraction(0), ValueError, "keep=0 is not allowed: give a number in (0, 1]"),
    ("fraction in percent", lambda w: w.done.at_fraction(50), ValueError, "keep=50"),
    ("fraction as text", lambda w: w.done.at_fraction("0.5"), TypeError, "keep='0.5'"),
    ("scores as text", lambda w: dc.semantic_dedup(w.emb, w.flat, eps=0.1, keep=["1"] * ROWS), TypeError,
     "or an array of scores"),
    # --- pruning
    ("neither fraction nor size", lambda w: dc.density_prune(w.flat), ValueError, "give exactly one"),
    ("fraction and size", lambda w: prune(w, target_size=5), ValueError, "keep_fraction=0.5 with target_size=5"),
    ("keep fraction 0", lambda w: prune(w, keep_fraction=0), ValueError, "keep_fraction=0"),
    ("keep fraction 70", lambda w: prune(w, keep_fraction=70), ValueError, "a number in (0, 1]"),
    ("keep fraction as text", lambda w: prune(w, keep_fraction="half"), TypeError, "keep_fraction='half'"),
    ("target as float", lambda w: dc.density_prune(w.flat, target_size=1e3), TypeError, "target_size=1000.0"),
    ("temperature 0", lambda w: prune(w, temperature=0), ValueError,
     "temperature=0 is not allowed: give a number in (0"),
    ("temperature infinite", lambda w: prune(w, temperature=float("inf")), ValueError, "temperature=inf"),
    ("0 neighbours", lambda w: prune(w, n_neighbors=0), ValueError, "n_neighbors=0"),
    ("balance 2", lambda w: prune(w, balance=2), ValueError, "balance=2"),
    ("density misspelt", lambda w: prune(w, density="intra-inter"), ValueError, "did you mean 'intra*inter'"),
    ("prune keep misspelt", lambda w: prune(w, keep="hrad"), ValueError, "did you mean 'hard'"),
    ("prune by embeddings", lambda w: dc.density_prune(w.emb, keep_fraction=0.5), TypeError, "give a Clustering"),
    ("prune labels alone", lambda w: dc.density_prune(w.given, keep_fraction=0.5), ValueError, "no distances"),
    ("prototypes at random", lambda w: dc.prototype_prune(w.flat, keep_fraction=0.5, keep="random"), ValueError,
     "one of 'hard', 'easy'"),
    ("prototypes without size", lambda w: dc.prototype_prune(w.flat), ValueError, "give exactly one"),
    ("class balance below 0", lambda w: dc.prototype_prune(w.flat, target_size=3, class_balance=-1), ValueError,
     "class_balance=-1"),
    ("random of a clustering", lambda w: dc.random_prune(w.flat, keep_fraction=0.5), TypeError, "emb=Clustering"),
    ("random target 0", lambda w: dc.random_prune(w.emb, target_size=0), ValueError, "target_size=0"),
    # --- hierarchical_sample
    ("sample of a selection", lambda w: dc.hierarchical_sample(w.dedup, 5), TypeError, "give a Hierarchy"),
    ("sample of a list", lambda w: dc.hierarchical_sample([w.flat], 5), TypeError, "give a Hierarchy"),
    ("sample of 0", lambda w: dc.hierarchical_sample(w.tree, 0), ValueError, "target_size=0"),
    ("sample as float", lambda w: dc.hierarchical_sample(w.tree, 2e4), TypeError, "target_size=20000.0"),
    ("sample as text", lambda w: dc.hierarchical_sample(w.tree, "20k"), TypeError, "target_size='20k'"),
    ("multiplier 0", lambda w: dc.hierarchical_sample(w.tree, 5, multiplier=0), ValueError, "multiplier=0"),
    ("multiplier too large", lambda w: dc.hierarchical_sample(w.tree, 5, multiplier=2**31), ValueError, "2147483647"),
    ("target too large", lambda w: dc.hierarchical_sample(w.tree, 10**18), ValueError,
     "target_size=10000000000000000"),
    ("picked misspelt", lambda w: dc.hierarchical_sample(w.tree, 5, strategy="farthest"), ValueError,
     "mean 'furthest'"),
    ("closest of labels alone", lambda w: dc.hierarchical_sample(w.given, 5, strategy="closest"), ValueError,
     "give emb="),
    # --- results of stages that have not run
    ("labels of lazy", lambda w: w.flat.labels, dc.NotComputedError, "daskcurate.compute"),
    ("centroids of lazy", lambda w: w.flat.centroids, dc.NotComputedError, "kmeans stage is lazy"),
    ("inertia of lazy", lambda w: w.flat.inertia, dc.NotComputedError, "compute"),
    ("sizes of lazy", lambda w: w.flat.sizes, dc.NotComputedError, "compute"),
    ("flat labels of lazy", lambda w: w.tree.flat_labels(2), dc.NotComputedError, "compute"),
    ("indices of lazy", lambda w: w.dedup.indices, dc.NotComputedError, "semantic_dedup stage is lazy"),
    ("length of lazy", lambda w: len(w.picks), dc.NotComputedError, "compute"),
    ("length of lazy combination", lambda w: len(w.picks & w.dedup), dc.NotComputedError, "compute"),
    ("mask of lazy", lambda w: w.dedup.mask, dc.NotComputedError, "compute"),
    ("per_cluster of lazy", lambda w: prune(w).per_cluster, dc.NotComputedError, "density_prune stage is lazy"),
    ("fraction of lazy", lambda w: w.dedup.at_fraction(0.5), dc.NotComputedError, "compute"),
    ("centroids of labels alone", lambda w: w.given_done.levels[0].centroids, ValueError, "labels alone"),
    ("distances of labels alone", lambda w: w.given_done.levels[0].distances, ValueError, "labels alone"),
    ("inertia of labels alone", lambda w: w.given_done.levels[0].inertia, ValueError, "labels alone"),
    # --- compute and plan
    ("compute nothing", lambda w: dc.compute(store="s"), ValueError, "at least one"),
    ("compute a number", lambda w: dc.compute(5, store="s"), TypeError, "5 is not allowed"),
    ("compute a list", lambda w: dc.compute([w.flat], store="s"), TypeError, "compute takes"),
    ("compute a pool", lambda w: dc.compute(w.emb, store="s"), TypeError, "compute takes"),
    ("compute without store", lambda w: dc.compute(w.flat), TypeError, "store"),
    ("compute to None", lambda w: dc.compute(w.flat, store=None), TypeError, "store=None is not allowed"),
    ("compute to an empty name", lambda w: dc.compute(w.flat, store=""), ValueError, "store='' is not allowed"),
    ("compute to a number", lambda w: dc.compute(w.flat, store=7), TypeError, "store=7"),
    ("compute to a pool", lambda w: dc.compute(w.flat, store=w.pool), dc.StoreError, "is a pool, not a run store"),
    ("compute to a file", lambda w: dc.compute(w.flat, store="a-file"), dc.StoreError, "is not a run store"),
    ("compute to a folder", lambda w: dc.compute(w.flat, store=Path("a-folder")), dc.StoreError,
     "is not a run store"),
    ("compute on an address", lambda w: dc.compute(w.foreign, store="s", client="tcp://x:1"), TypeError,
     "client='tcp"),
    ("plan nothing", lambda w: dc.plan(), ValueError, "at least one"),
    ("plan a pool", lambda w: dc.plan(w.emb), TypeError, "not allowed"),
    ("plan for little memory", lambda w: dc.plan(w.flat, memory_limit="1MiB"), dc.PlanError,
     "stage 'k-means 4' needs"),
    ("plan for no text", lambda w: dc.plan(w.flat, memory_limit=""), ValueError, "memory_limit='' is not allowed"),
    ("plan for nonsense", lambda w: dc.plan(w.flat, memory_limit="lots"), ValueError, "memory_limit='lots'"),
    ("plan on an address", lambda w: dc.plan(w.flat, client="tcp://x:1"), TypeError, "client='tcp"),
    ("plan for 0 workers", lambda w: dc.plan(w.flat, n_workers=0), ValueError, "n_workers=0"),
    ("plan for a pool as store", lambda w: dc.plan(w.flat, store=w.pool), dc.StoreError, "not a run store"),
    ("compute what has run on an address", lambda w: dc.compute(w.done, store=w.store, client="tcp://x:1"), TypeError,
     "client='tcp://x:1' is not allowed"),
    ("compute with progress as text", lambda w: dc.compute(w.done, store=w.store, progress="no"), TypeError,
     "progress='no' is not allowed: give True or False"),
    ("plan with calibrate as text", lambda w: dc.plan(w.flat, calibrate="no"), TypeError, "calibrate='no'"),
    ("choose eps without dimensions", lambda w: dc.choose_eps(w.emb, np.array(0.1)), TypeError, "eps=array(0.1)"),
    ("choose k without dimensions", lambda w: dc.choose_k(w.emb, np.array(3)), TypeError, "n_clusters=array(3)"),
    # --- export
    ("export to an unknown suffix", lambda w: dc.export(w.done, "rows.csv"), ValueError, "'.npy', '.parquet'"),
    ("export to no suffix", lambda w: dc.export(w.done, "rows"), ValueError, "give format="),
    ("export to a suffix misspelt", lambda w: dc.export(w.done, "rows.parqet"), ValueError,
     "did you mean '.parquet'"),
    ("export a format misspelt", lambda w: dc.export(w.done, "r.npy", "nyp"), ValueError, "did you mean 'npy'"),
    ("export over a file", lambda w: dc.export(w.done, "there.npy"), FileExistsError, "overwrite=True"),
    ("export over a folder", lambda w: dc.export(w.done, w.path, "npy"), FileExistsError, "is a folder"),
    ("export to None", lambda w: dc.export(w.done, None), TypeError, "dest=None"),
    ("export lazy", lambda w: dc.export(w.dedup, "lazy.npy"), dc.NotComputedError, "daskcurate.compute"),
    ("export lazy table", lambda w: dc.export(w.picks, "lazy.parquet"), dc.NotComputedError, "daskcurate.compute"),
    ("export an array", lambda w: dc.export(w.mask, "mask.npy"), TypeError, "result of type ndarray"),
    ("export the rows of a clustering", lambda w: dc.export(w.flat_done, "c.npy"), ValueError, "selects no rows"),
    ("export overwrite as text", lambda w: dc.export(w.done, "there.npy", overwrite="no"), TypeError,
     "overwrite='no'"),
    ("report overwrite as text", lambda w: dc.write_report(w.store, "a-folder", overwrite="no"), TypeError,
     "overwrite='no'"),
    ("report texts without dimensions", lambda w: dc.write_report(w.store, "r", texts=np.array("a")), TypeError,
     "texts of type ndarray is not allowed"),
    # --- made elsewhere
    ("arrays of an array", lambda w: dc.Clustering.from_arrays(w.x, w.x[:3], w.mask * 1), TypeError, "emb=ndarray"),
    ("centroids of another width", lambda w: dc.Clustering.from_arrays(w.emb, np.ones((3, 2)), w.mask * 1),
     ValueError,
     "give floats (k, 8)"),
    ("centroids with NaN", lambda w: dc.Clustering.from_arrays(w.emb, np.full((2, 8), NaN), w.mask * 1), ValueError,
     "NaN or infinity"),
    ("labels too few", lambda w: dc.Clustering.from_arrays(w.emb, w.x[:3], [0, 1]), ValueError,
     "labels cover 2 rows"),
    ("labels as floats", lambda w: dc.Clustering.from_arrays(w.emb, w.x[:3], w.mask * 1.0), TypeError,
     "give integers"),
    ("labels over k", lambda w: dc.Clustering.from_arrays(w.emb, w.x[:3], np.full(ROWS, 3)), ValueError, "to 2"),
    ("labels below -1", lambda w: dc.Clustering.from_arrays(w.emb, w.x[:3], np.full(ROWS, -2)), ValueError,
     "from -2"),
    ("arrays of a metric misspelt", lambda w: dc.Clustering.from_arrays(w.emb, w.x[:2], w.mask * 1, metric="L2"),
     ValueError, "metric='L2'"),
    ("hierarchy of an array", lambda w: dc.Hierarchy.from_labels(w.mask * 1), TypeError, "give a list of integer"),
    ("hierarchy of nothing", lambda w: dc.Hierarchy.from_labels([]), ValueError, "at least one level"),
    ("hierarchy of floats", lambda w: dc.Hierarchy.from_labels([np.ones(4)]), TypeError, "give integers (n,)"),
    ("hierarchy below", lambda w: dc.Hierarchy.from_labels([[0, -2]]), ValueError, "give -1 (outside), 0, 1"),
    ("hierarchy of a number", lambda w: dc.Hierarchy.from_labels([[0, 1], 3]), TypeError, "give integers (n,)"),
    ("hierarchy too short", lambda w: dc.Hierarchy.from_labels([[0, 1, 2], [0, 1]]), ValueError, "2"),
    ("hierarchy too long", lambda w: dc.Hierarchy.from_labels([[0, 1], [0, 1, 1], [0]]), ValueError,
     "level 3 cover 1 clusters"),
    ("hierarchy of another pool", lambda w: dc.Hierarchy.from_labels([[0, 1]], w.emb), ValueError, "the pool has 40"),
    ("hierarchy of a path", lambda w: dc.Hierarchy.from_labels([w.mask * 1], w.pool), TypeError, "emb=str"),
    ("mask of numbers", lambda w: dc.Selection.from_mask(w.mask * 1), TypeError, "mask of dtype int64"),
    ("mask too short", lambda w: dc.Selection.from_mask(w.mask[:5], emb=w.emb), ValueError, "the pool has 40"),
    ("mask of a path", lambda w: dc.Selection.from_mask(w.mask, emb=w.pool), TypeError, "emb=str"),
    ("mask of unknown size", lambda w: dc.Selection.from_mask(unknown_size(w)), ValueError, "compute_chunk_sizes"),
    ("indices as floats", lambda w: dc.Selection.from_indices([0.5], w.emb), TypeError, "give integers (m,)"),
    ("indices as mask", lambda w: dc.Selection.from_indices(w.mask, w.emb), TypeError, "dtype bool"),
    ("indices below 0", lambda w: dc.Selection.from_indices([-1], w.emb), ValueError, "give 0 to 39"),
    ("indices over n", lambda w: dc.Selection.from_indices([40], w.emb), ValueError, "give 0 to 39"),
    ("indices of nothing", lambda w: dc.Selection.from_indices([1], None), TypeError, "emb=NoneType"),
    ("and a mask", lambda w: w.dedup & w.mask, TypeError, "combine two Selections"),
    ("a mask and", lambda w: w.mask & w.dedup, TypeError, "combine two Selections"),
    ("or a clustering", lambda w: w.dedup | w.flat, TypeError, "Selection | Clustering"),
    ("and another pool", lambda w: w.dedup & w.foreign_selection, ValueError, "other.zarr"),
    ("and a shorter pool", lambda w: w.dedup & w.short_selection, ValueError, "10 rows"),
]  # fmt: skip


def unknown_size(w):
    mask = da.from_array(w.mask, chunks=10)
    return mask[mask]


@pytest.mark.parametrize(
    ("call", "error", "phrase"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_refused(untouched, call, error, phrase):
    with pytest.raises(error, match=re.escape(phrase)):
        call(untouched)


COMMANDS = [
    ("an unknown command", ["curate"], 2, "No such command 'curate'"),
    ("an unknown option", ["run", "run.yaml", "--worker", "3"], 2, "No such option: --worker"),
    ("no configuration", ["run"], 2, "Missing argument"),
    ("a configuration that is not there", ["run", "gone.yaml"], 2, "gone.yaml: cannot be read"),
    ("a folder as configuration", ["plan", "a-folder"], 2, "Is a directory; give a run's YAML file"),
    ("broken YAML", ["plan", "broken.yaml"], 2, "broken.yaml, line 1"),
    ("an unknown key", ["plan", "unknown.yaml"], 2, "did you mean 'stages'"),
    ("both schedulers", ["run", "run.yaml", "--scheduler", "tcp://127.0.0.1:1", "--scheduler-file", "s.json"], 2,
     "give one of them"),
    ("a scheduler file that is not there", ["run", "run.yaml", "--scheduler-file", "s.json"], 2,
     "there is no such file"),
    ("a scheduler file that is YAML", ["run", "run.yaml", "--scheduler-file", "run.yaml"], 2,
     "run.yaml: cannot be read as JSON"),
    ("a scheduler file without an address", ["run", "run.yaml", "--scheduler-file", "pool.zarr/zarr.json"], 2,
     "has no 'address'"),
    ("workers of a scheduler", ["run", "run.yaml", "--scheduler", "tcp://127.0.0.1:1", "--n-workers", "2"], 2,
     "for a local cluster"),
    ("workers as text", ["plan", "run.yaml", "--n-workers", "two"], 2, "Invalid value for '--n-workers'"),
    ("0 workers", ["plan", "run.yaml", "--n-workers", "0"], 2, "n_workers=0 is not allowed"),
    ("0 workers of a run", ["run", "run.yaml", "--n-workers", "0", "--set", "store=new.zarr"], 2, "n_workers=0"),
    ("memory of nonsense", ["plan", "run.yaml", "--memory-limit", "lots"], 2, "memory_limit='lots'"),
    ("--set without a value", ["plan", "run.yaml", "--set", "store"], 2, "store"),
    ("--set of an unknown key", ["run", "run.yaml", "--set", "stages.dedup.epps=0.1"], 2, "did you mean 'eps'"),
    ("--set of an unknown stage", ["run", "run.yaml", "--set", "stages.dedpu.eps=0.1"], 2, "did you mean 'dedup'"),
    ("--set of a bad value", ["run", "run.yaml", "--set", "stages.dedup.eps=5"], 2, "eps=5 is not allowed"),
    ("--set of a wrong kind", ["run", "run.yaml", "--set", "stages.flat.n_clusters=few"], 2, "n_clusters='few'"),
    ("more clusters than rows", ["run", "run.yaml", "--set", "stages.flat.n_clusters=41"], 2, "the pool has 40 rows"),
    ("a pool that is not there", ["run", "run.yaml", "--set", "embeddings=gone.zarr"], 2, "there is no pool at"),
    ("a pool as the store", ["run", "run.yaml", "--set", "store=other.zarr"], 2, "is a pool, not a run store"),
    ("a store as the pool", ["plan", "run.yaml", "--set", "embeddings=run.zarr"], 2, "is not a pool"),
    ("a plan that does not fit", ["plan", "run.yaml", "--memory-limit", "200MiB", "--set", "store=new.zarr"], 3,
     "stage 'k-means 4' needs"),
    ("a dry run that does not fit",
     ["run", "run.yaml", "--dry-run", "--memory-limit", "200MiB", "--set", "store=new"], 3, "may use 1677"),
    ("status of nothing", ["status", "gone.zarr"], 2, "is not a run store"),
    ("status of a pool", ["status", "pool.zarr"], 2, "is a pool, not a run store"),
    ("status of a file", ["status", "a-file"], 2, "is not a run store"),
    ("export of an unknown stage", ["export", "run.yaml", "dedpu", "new.npy"], 2, "stage 'dedpu' is not in run.yaml"),
    ("export over a file", ["export", "run.yaml", "dedup", "there.npy"], 2, "exists already"),
    ("export to an unknown suffix", ["export", "run.yaml", "dedup", "new.csv"], 2, "'.csv'"),
    ("export of what has not run", ["export", "run.yaml", "dedup", "new.npy", "--set", "stages.dedup.eps=0.3"], 2,
     "run them first"),
    ("ingest of nothing", ["ingest", "gone.npy", "new.zarr"], 2, "gone.npy"),
    ("ingest over a pool", ["ingest", "rows.npy", "pool.zarr"], 2, "overwrite"),
    ("ingest as int8", ["ingest", "rows.npy", "new.zarr", "--dtype", "int8"], 2, "dtype='int8'"),
    ("demo of negative rows", ["demo", "--rows", "-5", "--output", "new"], 2, "rows=-5"),
    ("demo of nothing", ["demo", "gone.npy", "--output", "new"], 2, "gone.npy"),
    ("demo at eps 5", ["demo", "rows.npy", "--eps", "5", "--output", "new"], 2, "eps=5"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "phrase"), [case[1:] for case in COMMANDS], ids=[case[0] for case in COMMANDS]
)
def test_command_refused(untouched, capsys, monkeypatch, arguments, code, phrase):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() replaces it
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    found = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().err).split())  # usage errors come in a box
    assert phrase in found
    assert raised.value.code == code


def test_a_bad_row_leaves_nothing(world, client):
    before = everything(world.path)
    with pytest.raises(ValueError, match=r"row 7.*NaN"):
        dc.ingest(world.path / "nan.npy", world.path / "new.zarr", normalize=True)
    assert everything(world.path) == before


def test_numpy_numbers_are_numbers(untouched):
    w = untouched
    flat = dc.kmeans(w.emb, np.int64(4), n_iters=np.uint8(3), tol=np.float32(0.5), seed=np.int32(1))
    assert flat.fingerprint == dc.kmeans(w.emb, 4, n_iters=3, tol=0.5, seed=1).fingerprint
    tree = build_tree(w, np.array([6, 2]), sample_sizes=np.array([3, 2]), n_resamples=np.int16(2))
    assert tree.fingerprint == build_tree(w, (6, 2), sample_sizes=(3, 2), n_resamples=2).fingerprint
    dedup = dc.semantic_dedup(w.emb, flat, eps=np.float64(0.1))
    assert dedup.fingerprint == dc.semantic_dedup(w.emb, flat, eps=0.1).fingerprint
    assert prune(w, keep_fraction=np.float32(0.5)).fingerprint == prune(w).fingerprint
    picks = dc.hierarchical_sample(tree, np.int64(5), multiplier=np.int8(2))
    assert picks.fingerprint == dc.hierarchical_sample(tree, 5, multiplier=2).fingerprint
