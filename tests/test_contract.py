"""The public interface, called as its documentation says and held against plain NumPy."""

import warnings
from pathlib import Path

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

import daskcurate as dc

N, DIM = 320, 12


def blobs(n: int = N, dim: int = DIM, seed: int = 0, copies: int = 0) -> np.ndarray:
    """Return unit rows around 8 centres; the last ``copies`` rows repeat others exactly."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, dim))[rng.integers(0, 8, n)] * 2 + rng.standard_normal((n, dim))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    if copies:
        x[-copies:] = x[rng.integers(0, n // 3, copies)]
    return x


@pytest.fixture
def counted(monkeypatch):
    """Count the tasks that go to the scheduler."""
    seen = []
    original = Client._graph_to_futures

    def count(self, expr, keys, *args, **kwargs):
        seen.append(list(keys))
        return original(self, expr, keys, *args, **kwargs)

    monkeypatch.setattr(Client, "_graph_to_futures", count)
    return seen


def chain(emb, eps=0.05, **settings):
    """Return the script of the interface, scaled down."""
    flat = dc.kmeans(emb, n_clusters=10, metric="cosine", seed=0)
    dedup = dc.semantic_dedup(emb, flat, eps=eps, keep="hard", scope="cluster")
    prune = dc.density_prune(flat, keep_fraction=0.5, temperature=0.1, within=dedup)
    tree = dc.hierarchical_kmeans(
        emb, n_clusters=[20, 5], sample_sizes=[5, 2], n_resamples=3, n_iters=10, within=prune
    )
    picks = dc.hierarchical_sample(tree, target_size=60, multiplier=1, strategy="random")
    return flat, dedup, prune, tree, picks


def check_rows(array, dtype, n=N):
    assert isinstance(array, da.Array)
    assert array.dtype == dtype
    assert array.shape == (n,)


def test_the_script_of_the_interface(client, tmp_path, monkeypatch):
    x = blobs(copies=50)
    monkeypatch.chdir(tmp_path)
    np.save("embeddings.npy", x)
    pq.write_table(pa.table({"id": [f"row{i}" for i in range(N)]}), "ids.parquet")

    emb = dc.ingest("embeddings.npy", "pool.zarr", ids="ids.parquet")
    flat, dedup, prune, tree, picks = chain(emb)
    result = dc.compute(picks, store="run.zarr")
    dc.export(result, "picks.npy")

    assert isinstance(result, dc.Selection)
    assert len(result) == 60
    indices = np.load("picks.npy")
    assert indices.dtype == np.int64
    assert np.array_equal(indices, result.indices)
    dc.export(result, "picks.rows", format="parquet")
    table = pq.read_table("picks.rows").to_pandas()
    assert len(table) == N
    assert np.array_equal(np.flatnonzero(table["keep"]), indices)
    assert list(table["id"][indices[:2]]) == [f"row{i}" for i in indices[:2]]
    assert set(table["reason"]) == {"kept", "duplicate", "pruned", "not sampled"}

    assert (len(emb), emb.dim, len(emb.fingerprint)) == (N, DIM, 32)
    assert isinstance(emb.array, da.Array)
    assert emb.array.shape == (N, DIM)
    assert np.array_equal(emb.array.compute(), x)
    assert list(emb.ids[:2].compute()) == ["row0", "row1"]
    assert dc.open_embeddings(Path("pool.zarr")) == emb

    flat, dedup, prune, tree = dc.compute(flat, dedup, prune, tree, store=Path("run.zarr"))
    check_clustering(flat, x, np.ones(N, bool), "cosine")
    check_dedup(dedup)
    check_prune(prune, dedup)
    check_tree(tree, x, prune)
    assert set(result.indices) <= set(prune.indices) <= set(dedup.indices)


def check_clustering(flat, x, inside, metric):
    assert isinstance(flat, dc.Clustering)
    assert flat.is_computed
    centroids = flat.centroids
    assert isinstance(centroids, np.ndarray)
    assert centroids.dtype == np.float32
    assert centroids.shape == (flat.n_clusters, x.shape[1])
    check_rows(flat.labels, np.int32)
    check_rows(flat.distances, np.float32)
    labels, distances = flat.labels.compute(), flat.distances.compute()
    assert np.array_equal(labels >= 0, inside)
    assert np.array_equal(np.isnan(distances), ~inside)
    assert np.array_equal(flat.sizes, np.bincount(labels[inside], minlength=flat.n_clusters))
    wide, own = x[inside].astype(float), centroids.astype(float)[labels[inside]]
    if metric == "cosine":  # on the sphere: rows and centroids of unit length
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    squares = ((wide - own) ** 2).sum(axis=1)
    if metric == "cosine":
        np.testing.assert_allclose(distances[inside], 1 - (wide * own).sum(axis=1), atol=1e-6)
    else:
        np.testing.assert_allclose(distances[inside], np.sqrt(squares), rtol=1e-5, atol=1e-6)
    assert isinstance(flat.inertia, float)
    assert flat.inertia == pytest.approx(squares.sum(), rel=1e-5)


def check_selection(found, n=N):
    assert isinstance(found, dc.Selection)
    assert isinstance(found.counts, da.Array)
    assert found.counts.shape == (n,)
    assert found.counts.dtype.kind in "iu"
    check_rows(found.mask, bool, n)
    counts, indices = found.counts.compute(), found.indices
    assert isinstance(indices, np.ndarray)
    assert indices.dtype == np.int64
    assert np.array_equal(indices, np.repeat(np.arange(n), counts))
    assert np.array_equal(found.mask.compute(), counts > 0)
    assert len(found) == counts.sum() == len(indices)
    return counts


def check_dedup(dedup):
    check_selection(dedup)
    check_rows(dedup.max_similarity, np.float32)
    check_rows(dedup.duplicate_of, np.int64)
    similarity, match = dedup.max_similarity.compute(), dedup.duplicate_of.compute()
    assert np.array_equal(match == -1, similarity == -1)
    assert np.array_equal(dedup.mask.compute(), similarity <= np.float32(1 - 0.05))
    assert len(dedup) < N - 40


def check_prune(prune, dedup):
    check_selection(prune)
    assert prune.per_cluster.shape == (10,)
    assert prune.per_cluster.dtype == np.int64
    assert prune.per_cluster.sum() == len(prune) == int(0.5 * len(dedup) + 0.5)


def check_tree(tree, x, within):
    assert isinstance(tree, dc.Hierarchy)
    inside = within.mask.compute()
    first, second = tree.levels
    check_clustering(first, x, inside, "l2")
    assert second.labels.shape == (first.n_clusters,)
    check_rows(tree.flat_labels(1), np.int32)
    check_rows(tree.flat_labels(2), np.int32)
    labels, above = first.labels.compute(), second.labels.compute()
    assert np.array_equal(tree.flat_labels(1).compute(), labels)
    expected = np.where(inside, above[labels], -1)
    assert np.array_equal(tree.flat_labels(2).compute(), expected)
    assert np.array_equal(tree.flat_labels(-1).compute(), expected)
    assert np.array_equal(tree.flat_sizes(2), np.bincount(expected[inside], minlength=second.n_clusters))
    assert np.array_equal(tree.flat_sizes(1), first.sizes)


# --- compute


def test_a_second_run_submits_nothing(client, pool, tmp_path, counted):
    emb = pool(blobs(copies=50))
    first = dc.compute(*chain(emb), store=tmp_path / "run.zarr")
    assert len(first) == 5
    counted.clear()
    again = dc.compute(*chain(dc.open_embeddings(emb.path)), store=str(tmp_path / "run.zarr"))
    assert counted == []
    assert [type(node) for node in again] == [type(node) for node in first]
    assert np.array_equal(again[-1].indices, first[-1].indices)


def test_a_second_store_has_the_same_bits(client, pool, tmp_path):
    emb = pool(blobs(copies=50))
    one = dc.compute(*chain(emb), store=tmp_path / "one.zarr")
    two = dc.compute(*chain(emb), store=tmp_path / "two.zarr")
    assert np.array_equal(one[0].centroids, two[0].centroids)
    assert np.array_equal(one[3].levels[1].centroids, two[3].levels[1].centroids)
    for a, b in zip(one, two, strict=True):
        if isinstance(a, dc.Selection):
            assert np.array_equal(a.counts.compute(), b.counts.compute())


def test_another_eps_runs_dedup_and_what_follows(client, pool, tmp_path, counted):
    emb, store = pool(blobs(copies=50)), tmp_path / "run.zarr"
    dc.compute(*chain(emb), store=store)
    before = {path: path.stat().st_mtime_ns for path in store.glob("kmeans-*/zarr.json")}
    flat, dedup, prune, tree, picks = chain(emb, eps=0.2)
    plan = dc.plan(picks, store=store)
    titles = [stage.stage for stage in plan.stages]
    assert titles[0] == "dedup eps 0.2"
    assert len(titles) == 5
    dc.compute(dedup, store=store)
    names = {str(key).split("-")[0] for keys in counted for key in keys}
    assert names
    assert {path: path.stat().st_mtime_ns for path in before} == before
    counted.clear()
    assert dc.compute(flat, store=store).is_computed
    assert counted == []


def test_results_stand_where_lazy_nodes_could(client, pool, tmp_path):
    """Also results of another store."""
    emb = pool(blobs(copies=50))
    expected = dc.compute(chain(emb)[-1], store=tmp_path / "all.zarr").indices
    a, b = tmp_path / "a.zarr", tmp_path / "b.zarr"
    flat = dc.compute(dc.kmeans(emb, 10, metric="cosine"), store=a)
    dedup = dc.compute(dc.semantic_dedup(emb, flat, eps=0.05), store=b)
    prune = dc.compute(dc.density_prune(flat, keep_fraction=0.5, within=dedup), store=a)
    lazy_tree = dc.hierarchical_kmeans(
        emb, [20, 5], sample_sizes=[5, 2], n_resamples=3, n_iters=10, within=prune
    )
    tree = dc.compute(lazy_tree, store=b)
    picks = dc.compute(dc.hierarchical_sample(tree, 60), store=a)
    assert np.array_equal(picks.indices, expected)
    assert np.array_equal(dc.compute(dc.hierarchical_sample(tree, 60), store=b).indices, expected)
    assert dc.compute(flat, store=b).is_computed
    assert dc.plan(flat, dedup, tree).stages == []


def test_compute_on_a_given_client(cluster, pool, tmp_path):
    emb = pool(blobs())
    with Client(cluster, set_as_default=False) as mine:
        found = dc.compute(dc.kmeans(emb, 4), store=f"file://{tmp_path}/run.zarr", client=mine)
    assert found.sizes.sum() == N


def test_one_node_one_object_several_a_tuple(client, pool, tmp_path):
    emb = pool(blobs())
    flat = dc.kmeans(emb, 4, n_iters=2)
    assert isinstance(dc.compute(flat, store=tmp_path / "r"), dc.Clustering)
    both = dc.compute(flat, flat, store=tmp_path / "r")
    assert isinstance(both, tuple)
    assert [type(node) for node in both] == [dc.Clustering, dc.Clustering]


# --- k-means


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random", "array"])
def test_kmeans_is_a_fixed_point(client, pool, tmp_path, metric, init):
    x = blobs()
    emb = pool(x, chunk_rows=90)
    given = x[:6] * 2 if init == "array" else init
    flat = dc.compute(dc.kmeans(emb, 6, metric=metric, init=given, n_iters=200), store=tmp_path / "r")
    check_clustering(flat, x, np.ones(N, bool), metric)
    centroids, labels = flat.centroids.astype(float), flat.labels.compute()
    if metric == "cosine":
        np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)
    distance = ((x[:, None].astype(float) - centroids) ** 2).sum(axis=2)
    best = np.sqrt(distance.min(axis=1))
    np.testing.assert_allclose(np.sqrt(distance[np.arange(N), labels]), best, atol=1e-6)
    for j in range(6):
        mean = x[labels == j].astype(float).mean(axis=0)
        mean /= np.linalg.norm(mean) if metric == "cosine" else 1
        np.testing.assert_allclose(centroids[j], mean, atol=1e-5)


def test_kmeans_within(client, pool, tmp_path):
    x = blobs()
    emb = pool(x, chunk_rows=100)
    mask = np.random.default_rng(3).random(N) < 0.4
    mask[100:200] = False  # a whole chunk
    flat = dc.compute(dc.kmeans(emb, 5, within=mask), store=tmp_path / "r")
    check_clustering(flat, x, mask, "l2")


def test_a_shrunken_pool_warns(client, pool, tmp_path):
    emb = pool(blobs())
    with pytest.warns(UserWarning, match="only 3 rows to cluster, so 3 clusters instead of 5"):
        flat = dc.compute(dc.kmeans(emb, 5, within=np.arange(N) < 3), store=tmp_path / "r")
    assert sorted(flat.sizes) == [1, 1, 1]
    with pytest.raises(ValueError, match="no row is left to cluster"):
        dc.compute(dc.kmeans(emb, 5, within=np.zeros(N, bool)), store=tmp_path / "r")


# --- made elsewhere


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_from_arrays(client, pool, tmp_path, metric):
    x = blobs()
    emb, rng = pool(x, chunk_rows=90), np.random.default_rng(1)
    labels = rng.integers(-1, 7, N)  # cluster 7 of 8 is empty
    centroids = rng.standard_normal((8, DIM))
    given = dc.Clustering.from_arrays(emb, centroids, labels, metric=metric)
    flat, dedup, prune, picks = dc.compute(
        given,
        dc.semantic_dedup(emb, given, eps=0.3),
        dc.density_prune(given, target_size=101),
        dc.hierarchical_sample(given, 50, strategy="closest"),
        store=tmp_path / "r",
    )
    check_clustering(flat, x, labels >= 0, metric)
    assert flat.n_clusters == 8
    np.testing.assert_array_equal(flat.centroids, centroids.astype(np.float32))
    assert len(prune) == 101
    assert prune.per_cluster[7] == 0
    assert not dedup.mask.compute()[labels < 0].any()
    assert len(picks) == 50


@pytest.mark.parametrize("with_emb", [False, True])
def test_sizes_10_4_1_give_4_4_1(client, pool, tmp_path, with_emb):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, -1], [10, 4, 1, 5]))
    emb = pool(blobs(20)) if with_emb else None
    tree = dc.Hierarchy.from_labels([labels], emb)
    picks = dc.compute(dc.hierarchical_sample(tree, 9), store=tmp_path / "r")
    counts = check_selection(picks, 20)
    assert counts.max() == 1
    assert np.bincount(labels[picks.indices]).tolist() == [4, 4, 1]
    assert picks.targets.tolist() == [4, 4, 1]
    assert (~picks).n_rows == 20
    assert len((~picks).indices) == 11
    dc.export(picks, tmp_path / "picks.parquet")
    table = pq.read_table(tmp_path / "picks.parquet").to_pandas()
    assert np.array_equal(table["cluster_level_1"], labels)


def test_a_tree_of_labels_without_a_pool(client, tmp_path):
    rows, above = np.array([0, 1, 1, 2, 2, 2, 3, -1, 3, 0]), np.array([0, 1, 1, -1])
    tree = dc.compute(dc.Hierarchy.from_labels([rows, above]), store=tmp_path / "r")
    assert tree.flat_labels(1).compute().tolist() == rows.tolist()
    assert tree.flat_labels(2).compute().tolist() == [0, 1, 1, 1, 1, 1, -1, -1, -1, 0]
    assert tree.flat_sizes(1).tolist() == [2, 2, 3, 2]
    assert tree.flat_sizes(2).tolist() == [2, 5]
    picks = dc.compute(dc.hierarchical_sample(tree, 4), store=tmp_path / "r")
    assert picks.n_rows == 10
    assert np.bincount(tree.flat_labels(2).compute()[picks.indices]).tolist() == [2, 2]
    assert len(dc.compute(~picks, store=tmp_path / "r")) == 6
    dc.export(picks, tmp_path / "picks.parquet")
    assert len(pq.read_table(tmp_path / "picks.parquet")) == 10


def test_from_mask_and_indices(client, pool, tmp_path):
    emb = pool(blobs(), chunk_rows=90)
    mask = np.random.default_rng(0).random(N) < 0.3
    found = dc.compute(dc.Selection.from_mask(mask, emb=emb), store=tmp_path / "r")
    assert np.array_equal(check_selection(found) > 0, mask)
    rows = [N - 1, 3, 3, 0, 3]
    for chosen in (
        dc.Selection.from_indices(rows, emb),
        dc.Selection.from_indices(np.array(rows, "u2"), emb),
    ):
        assert chosen.indices.tolist() == sorted(rows)  # readable at once
        assert dc.compute(chosen, store=tmp_path / "r").indices.tolist() == sorted(rows)
    assert dc.Selection.from_indices([], emb).indices.tolist() == []


# --- hierarchical sampling


def cut(capacities, target):
    """Return the level of the cut and the rows left over, one row at a time."""
    x = 0
    while sum(min(x + 1, c) for c in capacities) <= target and x < max(capacities):
        x += 1
    return x, target - sum(min(x, c) for c in capacities)


@pytest.mark.parametrize(("target", "multiplier"), [(1, 1), (60, 1), (233, 1), (N, 1), (7, 3), (N - 1, 3)])
def test_samples_follow_the_cut(client, pool, tmp_path, target, multiplier):
    rng = np.random.default_rng(target)
    labels, above = rng.geometric(0.3, N).clip(1, 12) - 1, rng.integers(0, 3, 12)
    tree = dc.Hierarchy.from_labels([labels, above], pool(blobs(), chunk_rows=90))
    target *= multiplier
    picks = dc.compute(dc.hierarchical_sample(tree, target, multiplier=multiplier), store=tmp_path / "r")
    counts = check_selection(picks)
    assert counts.sum() == target
    assert counts.max() <= multiplier

    def check(parents, sizes, wanted, got):
        x, rest = cut(sizes * multiplier, wanted)
        extra = got - np.minimum(x, sizes * multiplier)
        assert set(extra) <= {0, 1}
        assert extra.sum() == rest
        assert (extra[sizes * multiplier <= x] == 0).all()

    sizes = np.bincount(labels, minlength=12)
    got = np.bincount(labels, counts, 12).astype(int)
    top_sizes = np.bincount(above, sizes, 3).astype(int)
    top_got = np.bincount(above, got, 3).astype(int)
    check(None, top_sizes, target, top_got)
    for parent in range(3):
        check(parent, sizes[above == parent], top_got[parent], got[above == parent])
    for j in range(12):  # whole copies, and distinct rows for the rest
        assert np.ptp(counts[labels == j]) <= 1 if (labels == j).any() else True


def test_more_than_there_is_warns_with_the_number(client, pool, tmp_path):
    tree = dc.Hierarchy.from_labels([np.repeat([0, 1], [30, 20])], pool(blobs(50)))
    with pytest.warns(UserWarning, match="target_size=120 is more than the 100 rows"):
        picks = dc.compute(dc.hierarchical_sample(tree, 120, multiplier=2), store=tmp_path / "r")
    assert (picks.counts.compute() == 2).all()


@pytest.mark.parametrize("strategy", ["closest", "furthest"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_strategies_by_brute_force(client, pool, tmp_path, strategy, metric):
    x = blobs(copies=90)
    emb = pool(x, chunk_rows=90)
    flat = dc.kmeans(emb, 9, metric=metric)
    flat, picks = dc.compute(flat, dc.hierarchical_sample(flat, 200, strategy=strategy), store=tmp_path / "r")
    labels, distance = flat.labels.compute(), flat.distances.compute().astype(float)
    sign = 1 if strategy == "closest" else -1
    wanted = []
    for j, target in enumerate(picks.targets):
        members = np.flatnonzero(labels == j)
        wanted += list(members[np.argsort(sign * distance[members], kind="stable")][:target])
    assert picks.indices.tolist() == sorted(wanted)


# --- semantic dedup


def order_of(keep, cosines, members, scores=None):
    """Return the members of a cluster in the order of ``keep``; ties by row number."""
    keys = -scores if keep == "score" else cosines if keep == "easy" else -cosines
    return members[np.argsort(keys[members], kind="stable")]


def brute_force(x, labels, cosines, keep, eps, rule, scores=None):
    """SemDeDup in float64, pair by pair: similarity, match and kept of every row."""
    unit = x.astype(float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    n = len(x)
    similarity, match, kept = np.full(n, -1.0), np.full(n, -1), np.ones(n, bool)
    for j in range(labels.max() + 1):
        order = order_of(keep, cosines, np.flatnonzero(labels == j), scores)
        leader = {row: row for row in order}  # of its component
        for place, row in enumerate(order):
            sims = {other: float(np.float32(min(1.0, unit[row] @ unit[other]))) for other in order[:place]}
            if rule == "greedy":
                sims = {other: value for other, value in sims.items() if kept[other]}
            for other, value in sims.items():
                if value > similarity[row]:
                    similarity[row], match[row] = value, other
            similar = [other for other, value in sims.items() if value > np.float32(1 - eps)]
            if rule == "connected":
                for other in similar:
                    old, new = sorted((leader[row], leader[other]), key=list(order).index, reverse=True)
                    leader = {a: (new if b == old else b) for a, b in leader.items()}
            else:
                kept[row] = not similar
        if rule == "connected":
            for row in order:
                kept[row] = leader[row] == row
    kept &= labels >= 0
    return similarity, match, kept


def dedup_pool(dtype=np.float32):
    """Return rows with exact copies, near copies, and one cluster of a single row."""
    rng = np.random.default_rng(5)
    x = blobs(160, copies=30)
    near = rng.integers(0, 80, 40)
    x[80:120] = x[near] + 0.03 * rng.standard_normal((40, DIM)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = rng.integers(0, 4, 160)
    labels[80:120], labels[7] = labels[near], 4
    labels[-30:] = 0
    return x.astype(dtype), labels


def cosines_to(x, centroids, labels):
    rows, own = x.astype(float), centroids.astype(np.float32).astype(float)[labels]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    return (((rows - own) ** 2).sum(axis=1) / 2).astype(np.float32).astype(float)


@pytest.mark.parametrize(("keep", "chunk_rows"), [("hard", 160), ("hard", 7), ("easy", 33), ("score", 33)])
@pytest.mark.parametrize("rule", ["earlier", "greedy", "connected"])
def test_dedup_by_brute_force(client, pool, tmp_path, rule, keep, chunk_rows):
    x, labels = dedup_pool()
    emb = pool(x, chunk_rows=chunk_rows)
    rng = np.random.default_rng(2)
    scores, centroids = rng.integers(0, 5, 160).astype(float), rng.standard_normal((5, DIM))
    flat = dc.Clustering.from_arrays(emb, centroids, labels, metric="cosine" if keep == "hard" else "l2")
    found = dc.compute(
        dc.semantic_dedup(emb, flat, eps=0.05, keep=scores if keep == "score" else keep, rule=rule),
        store=tmp_path / "r",
    )
    cosines = cosines_to(x, centroids, labels)
    similarity, match, kept = brute_force(x, labels, cosines, keep, 0.05, rule, scores)
    assert 60 < kept.sum() < 130
    assert np.array_equal(found.mask.compute(), kept)
    if rule != "earlier":
        return
    np.testing.assert_allclose(found.max_similarity.compute(), similarity, atol=2e-7)
    unit = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    own = found.duplicate_of.compute()
    assert np.array_equal(own < 0, match < 0)
    np.testing.assert_allclose((unit[own] * unit).sum(axis=1)[own >= 0], similarity[own >= 0], atol=2e-7)


def test_dedup_of_float16_and_at_random(client, pool, tmp_path):
    x, labels = dedup_pool(np.float16)
    emb = pool(x, chunk_rows=33)
    assert emb.dtype == np.float16
    centroids = np.random.default_rng(2).standard_normal((5, DIM))
    flat = dc.Clustering.from_arrays(emb, centroids, labels, metric="cosine")
    hard, chance, other = dc.compute(
        dc.semantic_dedup(emb, flat, eps=0.05),
        dc.semantic_dedup(emb, flat, eps=0.05, keep="random"),
        dc.semantic_dedup(emb, flat, eps=0.05, keep="random", seed=1),
        store=tmp_path / "r",
    )
    kept = brute_force(x, labels, cosines_to(x, centroids, labels), "hard", 0.05, "earlier")[2]
    assert np.array_equal(hard.mask.compute(), kept)
    unit = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    for found in (chance, other):  # any order: no kept row has an earlier one that is similar
        rows = found.indices
        sims = (unit[rows] @ unit[rows].T) * (labels[rows][:, None] == labels[rows])
        np.fill_diagonal(sims, 0)
        assert sims.max() <= 0.95 + 1e-6
    assert chance.indices.tolist() != other.indices.tolist()


def test_of_identical_rows_the_first_is_kept(client, pool, tmp_path):
    x = np.tile(blobs(1), (9, 1))
    emb = pool(x, chunk_rows=4)
    flat = dc.kmeans(emb, 1, metric="cosine")
    nodes = [
        dc.semantic_dedup(emb, flat, eps=0.01, rule=rule, keep=keep)
        for rule, keep in (("earlier", "hard"), ("greedy", "easy"), ("connected", "hard"))
    ]
    for found in dc.compute(*nodes, store=tmp_path / "r"):
        assert found.indices.tolist() == [0]
        assert found.duplicate_of.compute().tolist() == [-1] + [0] * 8
        assert found.max_similarity.compute().tolist() == [-1] + [1] * 8


@pytest.mark.parametrize("rule", ["earlier", "greedy", "connected"])
def test_eps_is_strict(client, pool, tmp_path, rule):
    emb = pool(np.array([[1, 0], [0.6, 0.8]], np.float32))
    flat = dc.Clustering.from_arrays(emb, np.array([[1.0, 1.0]]), [0, 0], metric="cosine")
    at, above = dc.compute(
        dc.semantic_dedup(emb, flat, eps=0.4, rule=rule),
        dc.semantic_dedup(emb, flat, eps=0.41, rule=rule),
        store=tmp_path / "r",
    )
    assert len(at) == 2
    assert len(above) == 1


def test_eps_0_and_2(client, pool, tmp_path):
    x, labels = dedup_pool()
    emb = pool(x, chunk_rows=33)
    flat = dc.Clustering.from_arrays(emb, np.eye(5, DIM), labels)
    none, most = dc.compute(
        dc.semantic_dedup(emb, flat, eps=0), dc.semantic_dedup(emb, flat, eps=2), store=tmp_path / "r"
    )
    assert len(none) == 160  # nothing is more similar than 1
    assert len(most) == 5  # one row a cluster


@pytest.mark.parametrize("rule", ["earlier", "connected"])
def test_at_is_a_run_at_that_eps(client, pool, tmp_path, rule):
    x, labels = dedup_pool()
    emb = pool(x, chunk_rows=33)
    flat = dc.Clustering.from_arrays(emb, np.random.default_rng(2).standard_normal((5, DIM)), labels)
    within = np.random.default_rng(4).random(160) < 0.9
    grid = [0.0, 0.02, 0.2]
    nodes = [dc.semantic_dedup(emb, flat, eps=eps, rule=rule, within=within) for eps in grid]
    found = dc.compute(*nodes, store=tmp_path / "r")
    for eps, one in zip(grid, found, strict=True):
        assert np.array_equal(found[-1].at(eps).mask.compute(), one.mask.compute())
        assert np.array_equal(found[-1].at(eps).indices, one.indices)
    stored = dc.compute(nodes[-1].at(np.float64(0.02)), store=tmp_path / "r")
    assert np.array_equal(stored.indices, found[1].indices)
    if rule == "earlier":
        assert np.array_equal(found[0].at(0.2).indices, found[-1].indices)
    assert len(found[0]) > len(found[-1])


def test_at_fraction(client, pool, tmp_path, counted):
    x, labels = dedup_pool()
    emb = pool(x, chunk_rows=33)
    flat = dc.Clustering.from_arrays(emb, np.eye(5, DIM), labels)
    found = dc.compute(dc.semantic_dedup(emb, flat, eps=0.05), store=tmp_path / "r")
    counted.clear()
    similarity = found.max_similarity.compute(scheduler="sync")
    for keep in (0.05, 0.3, 0.5, 0.777, 1, 1.0):
        kept = found.at_fraction(keep)
        assert len(kept) >= keep * 160
        limit = similarity[kept.mask.compute(scheduler="sync")].max()
        assert np.array_equal(kept.indices, np.flatnonzero(similarity <= limit))
        assert (similarity < limit).sum() < keep * 160  # the largest eps that does
    assert counted == []
    stored = dc.compute(dc.kmeans(emb, 3, within=found.at_fraction(0.5)), store=tmp_path / "r")
    assert stored.sizes.sum() == len(found.at_fraction(0.5))


# --- pruning


def shares_of(flat, x, labels, sizes, density):
    if density == "size":
        return sizes / sizes.sum()
    if density == "uniform":
        return (sizes > 0) / (sizes > 0).sum()
    centroids = flat.centroids.astype(float)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    wide = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    k = len(sizes)
    intra = np.array([(1 - wide[labels == j] @ centroids[j]).mean() for j in range(k)])
    between = 1 - centroids @ centroids.T
    np.fill_diagonal(between, np.inf)
    inter = np.sort(between, axis=1)[:, : min(20, k - 1)].mean(axis=1)
    weights = np.exp((intra * inter - (intra * inter).max()) / 0.1)
    return weights / weights.sum()


@pytest.mark.parametrize("density", ["intra*inter", "size", "uniform"])
@pytest.mark.parametrize("balance", [0.0, 0.7])
def test_density_prune_by_bisection(client, pool, tmp_path, density, balance):
    x = blobs(copies=50)
    emb = pool(x, chunk_rows=90)
    lazy = dc.kmeans(emb, 12, metric="cosine")
    targets = [1, 101, N - 1]
    settings = {"density": density, "balance": balance}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # targets below one row a cluster
        flat, *found = dc.compute(
            lazy, *(dc.density_prune(lazy, target_size=t, **settings) for t in targets), store=tmp_path / "r"
        )
    labels, sizes = flat.labels.compute(), flat.sizes
    shares = shares_of(flat, x, labels, sizes, density)
    for target, prune in zip(targets, found, strict=True):
        counts = check_selection(prune)
        kept = prune.per_cluster
        assert counts.sum() == kept.sum() == target
        assert np.array_equal(np.bincount(labels, counts, 12), kept)
        lower = np.minimum(sizes, max(1, int(balance * target / 12)))
        if lower.sum() > target:
            continue
        assert (kept >= lower).all()
        low, high = -1e6, 1e6
        for _ in range(200):
            middle = (low + high) / 2
            over = np.clip(shares * target + middle, lower, sizes).sum() > target
            low, high = (low, middle) if over else (middle, high)
        assert np.abs(kept - np.clip(shares * target + low, lower, sizes)).max() < 1 + 1e-3


@pytest.mark.parametrize("keep", ["hard", "easy"])
def test_density_prune_keeps_the_extremes(client, pool, tmp_path, keep):
    x = blobs(copies=50)
    emb = pool(x, chunk_rows=90)
    lazy = dc.kmeans(emb, 12)  # in L2: the order is by cosine all the same
    flat, prune = dc.compute(lazy, dc.density_prune(lazy, keep_fraction=0.3, keep=keep), store=tmp_path / "r")
    labels = flat.labels.compute()
    cosines = cosines_to(x, flat.centroids, labels)
    wanted = []
    for j, target in enumerate(prune.per_cluster):
        wanted += list(order_of(keep, cosines, np.flatnonzero(labels == j))[:target])
    assert prune.indices.tolist() == sorted(wanted)
    assert len(prune) == 96


@pytest.mark.parametrize("keep", ["hard", "easy"])
@pytest.mark.parametrize("class_balance", [0.0, 0.6])
def test_prototype_prune(client, pool, tmp_path, keep, class_balance):
    x = blobs(copies=50)
    emb = pool(x, chunk_rows=90)
    lazy = dc.kmeans(emb, 9, metric="cosine")
    targets = [1, 151]
    flat, *found = dc.compute(
        lazy,
        *(dc.prototype_prune(lazy, target_size=t, keep=keep, class_balance=class_balance) for t in targets),
        store=tmp_path / "r",
    )
    labels, keys = flat.labels.compute(), flat.distances.compute() * (-1 if keep == "hard" else 1)
    for target, prune in zip(targets, found, strict=True):
        assert check_selection(prune).sum() == target
        chosen = np.zeros(N, bool)
        for j in range(9):
            members = np.flatnonzero(labels == j)
            chosen[members[np.argsort(keys[members], kind="stable")][: int(class_balance * target / 9)]] = (
                True
            )
        rest = np.flatnonzero(~chosen)
        chosen[rest[np.argsort(keys[rest], kind="stable")][: target - chosen.sum()]] = True
        assert np.array_equal(prune.mask.compute(), chosen)
        assert np.array_equal(prune.per_cluster, np.bincount(labels[chosen], minlength=9))


def test_random_prune(client, pool, tmp_path):
    emb = pool(blobs(), chunk_rows=90)
    mask = np.arange(N) % 3 > 0
    one, two, three = dc.compute(
        dc.random_prune(emb, target_size=101),
        dc.random_prune(emb, target_size=101, seed=1),
        dc.random_prune(emb, keep_fraction=0.5, within=mask),
        store=tmp_path / "r",
    )
    assert [check_selection(found).sum() for found in (one, two, three)] == [101, 101, (mask.sum() + 1) // 2]
    assert one.indices.tolist() != two.indices.tolist()
    assert not three.mask.compute()[~mask].any()
    with pytest.warns(UserWarning, match="target_size=999 is more than the 320 rows"):
        assert len(dc.compute(dc.random_prune(emb, target_size=999), store=tmp_path / "r")) == N


# --- selections


def test_combinations_are_those_of_numpy(client, pool, tmp_path):
    emb, rng = pool(blobs(), chunk_rows=90), np.random.default_rng(0)
    rows = [rng.integers(0, N, 300), rng.integers(0, N, 300)]
    a, b = (dc.Selection.from_indices(r, emb) for r in rows)
    x, y = (np.bincount(r, minlength=N) for r in rows)
    cases = {
        "and": (a & b, np.minimum(x, y)),
        "or": (a | b, np.maximum(x, y)),
        "not": (~a, x == 0),
        "both": (~(a & b) | a, np.maximum(np.minimum(x, y) == 0, x)),
        "no pool": (a & dc.Selection.from_mask(y > 0), np.minimum(x, y > 0)),
    }
    stored = dc.compute(*(node for node, _ in cases.values()), store=tmp_path / "r")
    for (name, (node, wanted)), found in zip(cases.items(), stored, strict=True):
        assert np.array_equal(node.counts.compute(), wanted), name
        assert np.array_equal(check_selection(found), wanted), name


def test_combined_stages_combine_lazily(client, pool, tmp_path):
    emb = pool(blobs(copies=50))
    flat, dedup, prune, _, _ = chain(emb)
    half = dc.random_prune(emb, keep_fraction=0.5)
    both, d, p, h = dc.compute((dedup & half) | ~prune, dedup, prune, half, store=tmp_path / "r")
    d, p, h = (node.mask.compute() for node in (d, p, h))
    assert np.array_equal(both.mask.compute(), (d & h) | ~p)


def test_what_led_to_a_combination_is_listed_once(pool):
    emb = pool(blobs(copies=50))
    dedup = chain(emb)[1]
    a, b = (dc.random_prune(emb, keep_fraction=0.5, within=dedup, seed=seed) for seed in (1, 2))
    for both, wanted in ((a & b, [dedup, a, b]), ((a & b) & a, [dedup, a, b, a & b]), (a | b, [])):
        assert [step.fingerprint for step in both.history()] == [s.fingerprint for s in [*wanted, both]]


# --- within, of every stage and in several orders

STAGES = {
    "kmeans": lambda emb, flat, within: dc.kmeans(emb, 4, within=within),
    "tree": lambda emb, flat, within: dc.hierarchical_kmeans(
        emb, [8, 3], sample_sizes=3, n_resamples=1, within=within
    ),
    "split": lambda emb, flat, within: dc.hierarchical_kmeans(emb, [4, 3], n_splits=[2, 1], within=within),
    "dedup": lambda emb, flat, within: dc.semantic_dedup(emb, flat, eps=0.1, within=within),
    "greedy": lambda emb, flat, within: dc.semantic_dedup(emb, flat, eps=0.1, rule="greedy", within=within),
    "prune": lambda emb, flat, within: dc.density_prune(flat, keep_fraction=0.5, within=within),
    "prototypes": lambda emb, flat, within: dc.prototype_prune(
        flat, keep_fraction=0.5, class_balance=0.5, within=within
    ),
    "random": lambda emb, flat, within: dc.random_prune(emb, keep_fraction=0.5, within=within),
    "sample": lambda emb, flat, within: dc.hierarchical_sample(flat, 100, multiplier=3, within=within),
}


@pytest.mark.parametrize("stage", STAGES)
def test_within_equals_a_pool_of_its_rows(client, pool, tmp_path, stage):
    """A stage within some rows does what it does with a pool that has no others."""
    x = blobs(copies=50)
    emb = pool(x, chunk_rows=90)
    inside = np.random.default_rng(1).random(N) < 0.6
    inside[90:180] = False
    rng = np.random.default_rng(2)
    centroids, labels = rng.standard_normal((6, DIM)), rng.integers(0, 6, N)
    small = pool(x[inside], chunk_rows=50)
    build = STAGES[stage]
    full = build(emb, dc.Clustering.from_arrays(emb, centroids, labels), inside)
    part = build(small, dc.Clustering.from_arrays(small, centroids, labels[inside]), None)
    full, part = dc.compute(full, part, store=tmp_path / "r")
    if stage in ("tree", "split"):
        full, part = full.levels[0], part.levels[0]
    if isinstance(full, dc.Clustering):
        check_clustering(full, x, inside, "l2")
        return
    counts = check_selection(full)
    assert counts[~inside].sum() == 0
    assert len(full) == len(part)
    if stage == "sample":
        assert np.array_equal(full.targets, part.targets)
    elif stage != "random":
        assert np.array_equal(counts[inside], part.counts.compute())
    if stage in ("dedup", "greedy"):
        assert np.array_equal(np.isnan(full.max_similarity.compute()), ~inside)
        assert np.array_equal(full.max_similarity.compute()[inside], part.max_similarity.compute())
        match, own = full.duplicate_of.compute(), part.duplicate_of.compute()
        numbers = np.append(np.flatnonzero(inside), -1)
        assert np.array_equal(match[inside], numbers[own])
        assert (match[~inside] == -1).all()


ORDERS = [
    ("sample", "dedup", "prune"),
    ("prune", "sample", "kmeans"),
    ("random", "dedup", "tree"),
    ("prototypes", "greedy", "sample"),
    ("dedup", "random", "prune"),
    ("sample", "sample", "split"),
]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_any_order(client, pool, tmp_path, order):
    emb = pool(blobs(copies=50), chunk_rows=90)
    flat = dc.kmeans(emb, 8, metric="cosine")
    nodes, within = [], None
    for stage in order:
        nodes.append(STAGES[stage](emb, flat, within))
        within = nodes[-1]
    found = dc.compute(*nodes, store=tmp_path / "r")
    left = np.ones(N, bool)
    for node in found:
        if isinstance(node, dc.Selection):
            kept = check_selection(node) > 0
            assert not (kept & ~left).any()
            left = kept
        else:
            first = node.levels[0] if isinstance(node, dc.Hierarchy) else node
            assert np.array_equal(first.labels.compute() >= 0, left)
            assert first.sizes.sum() == left.sum()


# --- hierarchies


def test_levels_cluster_the_centroids_below(client, pool, tmp_path):
    x = blobs()
    emb = pool(x, chunk_rows=90)
    tree = dc.compute(dc.hierarchical_kmeans(emb, [30, 10, 3], sample_sizes=None), store=tmp_path / "r")
    for below, level in zip(tree.levels, tree.levels[1:], strict=False):
        points, labels = below.centroids.astype(float), level.labels.compute()
        distance = ((points[:, None] - level.centroids) ** 2).sum(axis=2)
        assert np.array_equal(labels, distance.argmin(axis=1))
        np.testing.assert_allclose(level.distances.compute(), np.sqrt(distance.min(axis=1)), atol=1e-5)
        assert (level.sizes > 0).all()
    assert tree.flat_sizes(3).sum() == N
    assert len(tree) == 3


def test_split_levels(client, pool, tmp_path):
    x = blobs()
    emb = pool(x, chunk_rows=90)
    tree = dc.compute(dc.hierarchical_kmeans(emb, [8, 5], n_splits=[4, 1]), store=tmp_path / "r")
    first = tree.levels[0]
    assert 8 < first.n_clusters <= 32
    assert (first.sizes > 0).all()
    check_clustering(first, x, np.ones(N, bool), "l2")
    assert tree.levels[1].labels.shape == (first.n_clusters,)


# --- paths


def test_paths_are_text_path_or_url(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = blobs(50)
    np.save("x.npy", x)
    for source, dest in (
        (Path("x.npy"), Path("a.zarr")),
        (f"file://{tmp_path}/x.npy", f"file://{tmp_path}/b.zarr"),
    ):
        emb = dc.ingest(source, dest)
        assert np.array_equal(dc.open_embeddings(dest).array.compute(), x)
    for store in ("c.zarr", Path("d.zarr"), f"file://{tmp_path}/e.zarr"):
        picks = dc.compute(dc.random_prune(emb, target_size=5), store=store)
        assert len(picks.indices) == 5
    for number, dest in enumerate((Path("p0.npy"), "p1.npy", f"file://{tmp_path}/p2.npy")):
        dc.export(picks, dest)
        assert len(np.load(f"p{number}.npy")) == 5
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".zarr") == [
        f"{letter}.zarr" for letter in "abcde"
    ]
