"""Dedup across clusters through Dask: against brute force, in small blocks, on any workers."""

import numpy as np
import pytest
from distributed import Client, LocalCluster

import daskcurate as dc
from daskcurate import global_greedy, planning, pool_blocks, stage_plans
from daskcurate.planning import bound_pays

N, K = 260, 6


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Make several blocks of a few hundred rows."""
    monkeypatch.setattr(pool_blocks, "block_limit", lambda *_: 60)


def rows_of(seed=0, n=N, dim=16, dtype=np.float32):
    """Rows with near and exact copies across clusters, and a cluster that takes several blocks."""
    rng = np.random.default_rng(seed)
    centroids = rng.standard_normal((K, dim)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    x = centroids[rng.integers(0, K - 1, n)] + 0.15 * rng.standard_normal((n, dim))
    x[: n // 3] = centroids[0] + 0.15 * rng.standard_normal((n // 3, dim))
    x[-60:-20] = x[:40] + 0.01 * rng.standard_normal((40, dim))
    x[-20:] = x[30:50]
    x[-25:-20] = centroids[1] + centroids[2]  # on the plane between two clusters
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)
    labels = (x.astype(np.float32) @ centroids.T).argmax(axis=1)
    labels[-20:] = rng.integers(0, K, 20)
    return x, labels.astype(np.int32), centroids


def order_of(x, centroids, labels, keep, scores=None):
    """Places in the order of the whole pool, by the clustering's own distances."""
    rows, own = x.astype(np.float64), centroids.astype(np.float64)[labels]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    cosines = (((rows - own) ** 2).sum(axis=1) / 2).astype(np.float32)
    keys = {"hard": -cosines, "easy": cosines, "score": scores}[keep]
    if keep == "score":
        keys = -scores
    return np.argsort(keys, kind="stable")


def brute_force(x, order, eps, rule):
    """Return bool (n,): the rows kept of those in ``order``, with all pairs in float64."""
    unit = x.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    near = np.minimum(unit @ unit.T, 1).astype(np.float32) > np.float32(1 - eps)
    kept, leader = np.zeros(len(x), bool), {int(row): int(row) for row in order}
    for place, row in enumerate(order):
        before = [int(other) for other in order[:place] if near[row, other]]
        if rule == "connected":
            leaders = {leader[other] for other in before} | {leader[int(row)]}
            first = min(leaders, key=list(order).index)
            leader = {a: first if b in leaders else b for a, b in leader.items()}
        else:
            kept[row] = not any(kept[other] for other in before) if rule == "greedy" else not before
    if rule == "connected":
        kept[[row for row in order if leader[int(row)] == row]] = True
    return kept


def check_matches(found, x, order, eps, rule):
    """Similarity and match are those of an earlier (kept) row, the most similar one."""
    similarity, match = found.max_similarity.compute(), found.duplicate_of.compute()
    inside = np.zeros(len(x), bool)
    inside[order] = True
    assert similarity.dtype == np.float32
    assert match.dtype == np.int64
    assert np.isnan(similarity[~inside]).all()
    assert ((similarity == -1) == (match == -1))[inside].all()
    assert (match[~inside] == -1).all()
    kept = found.mask.compute()
    assert ((similarity > np.float32(1 - eps)) == (inside & ~kept))[inside].all()
    if rule == "connected":
        return
    place = np.empty(len(x), int)
    place[order] = np.arange(len(order))
    unit = x.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for row in np.flatnonzero(match >= 0):
        before = order[: place[row]]
        if rule == "greedy":
            before = before[kept[before]]
        values = np.minimum(unit[before] @ unit[row], 1)
        assert similarity[row] == pytest.approx(values.max(), abs=1e-7)
        assert match[row] in before[values > values.max() - 1e-7]


@pytest.mark.parametrize(
    ("rule", "edges"), [("earlier", 0), ("greedy", 1 << 20), ("greedy", 150), ("connected", 0)]
)
@pytest.mark.parametrize(("keep", "eps"), [("hard", 0.05), ("easy", 0.3), ("score", 0.01)])
def test_every_rule_and_order_by_brute_force(client, pool, tmp_path, monkeypatch, rule, edges, keep, eps):
    monkeypatch.setattr(global_greedy, "GREEDY_EDGES", edges)
    x, labels, centroids = rows_of()
    emb = pool(x, chunk_rows=70)
    scores = np.random.default_rng(1).integers(0, 9, N).astype(float)
    flat = dc.Clustering.from_arrays(emb, centroids, labels, metric="cosine")
    stage = dc.semantic_dedup(
        emb, flat, eps=eps, rule=rule, keep=scores if keep == "score" else keep, scope="global"
    )
    found = dc.compute(stage, store=tmp_path / "r")
    order = order_of(x, centroids, labels, keep, scores)
    assert found.mask.compute().tolist() == brute_force(x, order, eps, rule).tolist()
    check_matches(found, x, order, eps, rule)
    assert found.attributes["duplicates"] == N - len(found)


@pytest.mark.parametrize("rule", ["earlier", "greedy", "connected"])
def test_rows_outside_and_float16(client, pool, tmp_path, rule):
    x, labels, centroids = rows_of(2, dtype=np.float16)
    labels[::17] = -1
    within = np.random.default_rng(3).random(N) < 0.8
    emb = pool(x, chunk_rows=50)
    assert emb.dtype == np.float16
    flat = dc.Clustering.from_arrays(emb, centroids * 3, labels, metric="l2")
    found = dc.compute(
        dc.semantic_dedup(emb, flat, eps=0.05, rule=rule, scope="global", within=within), store=tmp_path / "r"
    )
    order = order_of(x, centroids, labels, "hard")
    order = order[(labels >= 0)[order] & within[order]]
    kept = brute_force(x, order, 0.05, rule)
    assert found.mask.compute().tolist() == kept.tolist()
    check_matches(found, x, order, 0.05, rule)


def test_at_random_no_two_kept_rows_are_similar(client, pool, tmp_path):
    x, labels, centroids = rows_of(4)
    emb = pool(x)
    flat = dc.Clustering.from_arrays(emb, centroids, labels, metric="cosine")
    stages = [
        dc.semantic_dedup(emb, flat, eps=0.05, keep="random", scope="global", seed=seed) for seed in (0, 1)
    ]
    found = dc.compute(*stages, store=tmp_path / "r")
    for one in found:
        s = x[one.indices] @ x[one.indices].T - 2 * np.eye(len(one))
        assert s.max() <= 0.95 + 1e-6
    assert found[0].indices.tolist() != found[1].indices.tolist()


def test_across_finds_what_within_misses_and_one_cluster_is_all_the_same(client, pool, tmp_path):
    x, labels, centroids = rows_of(5)
    emb = pool(x)
    flat = dc.Clustering.from_arrays(emb, centroids, labels, metric="cosine")
    one = dc.Clustering.from_arrays(emb, x.mean(axis=0, keepdims=True), np.zeros(N, int), metric="cosine")
    whole, parted, same, apart = dc.compute(
        dc.semantic_dedup(emb, one, eps=0.05),
        dc.semantic_dedup(emb, flat, eps=0.05),
        dc.semantic_dedup(emb, one, eps=0.05, scope="global"),
        dc.semantic_dedup(emb, flat, eps=0.05, scope="global"),
        store=tmp_path / "r",
    )
    assert len(apart) < len(parted)
    assert whole.indices.tolist() == same.indices.tolist()  # one cluster's order is the pool's
    found = whole.max_similarity.compute() > np.float32(0.95)
    assert (whole.max_similarity.compute() == same.max_similarity.compute())[found].all()
    assert (same.max_similarity.compute()[~found] == -1).all()
    assert (whole.duplicate_of.compute() == same.duplicate_of.compute())[found].all()


@pytest.mark.parametrize("rule", ["earlier", "connected"])
def test_at_is_a_run_at_that_eps_and_no_further(client, pool, tmp_path, rule):
    x, labels, centroids = rows_of(6)
    emb = pool(x, chunk_rows=90)
    flat = dc.Clustering.from_arrays(emb, centroids, labels, metric="cosine")
    wide, narrow = dc.compute(
        *(dc.semantic_dedup(emb, flat, eps=eps, rule=rule, scope="global") for eps in (0.1, 0.02)),
        store=tmp_path / "r",
    )
    assert wide.at(0.02).indices.tolist() == narrow.indices.tolist()
    assert wide.at(0.1).indices.tolist() == wide.indices.tolist()
    with pytest.raises(ValueError, match=r"eps=0.2 is not allowed: scope='global' was run at eps=0.1"):
        wide.at(0.2)
    share = len(wide) / N
    kept = wide.at_fraction(share + 0.05)
    assert share + 0.0499 <= len(kept) / N < 1
    with pytest.raises(
        ValueError, match=r"keep=0.01 is not allowed: scope='global' was run at eps=0.1, which keeps 0\."
    ):
        wide.at_fraction(0.01)
    assert wide.at_fraction(share).indices.tolist() == wide.indices.tolist()
    greedy = dc.semantic_dedup(emb, flat, eps=0.1, rule="greedy", scope="global")
    with pytest.raises(ValueError, match="rule='greedy'"):
        greedy.at(0.05)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"scope": "global"}, "scope='global'"), ({"rule": "connected"}, "rule='connected'")],
)
def test_what_a_run_keeps_is_the_least_fraction(client, pool, tmp_path, options, named):
    emb = pool(np.eye(6), chunk_rows=4)
    flat = dc.Clustering.from_arrays(emb, np.eye(2, 6), np.arange(6) % 2, metric="cosine")
    found = dc.compute(dc.semantic_dedup(emb, flat, eps=0.1, **options), store=tmp_path / "r")
    assert found.at_fraction(1).indices.tolist() == list(range(6))
    with pytest.raises(
        ValueError, match=f"keep=0.5 is not allowed: {named} was .*keeps 1 of .*give at least that"
    ):
        found.at_fraction(0.5)


@pytest.mark.parametrize("rule", ["earlier", "greedy", "connected"])
def test_the_ends_of_eps_and_pools_of_one_row_or_none(client, pool, tmp_path, rule):
    x, labels, centroids = rows_of(7, n=120)
    emb = pool(x)
    flat = dc.Clustering.from_arrays(emb, centroids, labels, metric="cosine")
    one = np.arange(120) == 7
    stages = [
        dc.semantic_dedup(emb, flat, eps=0, rule=rule, scope="global"),
        dc.semantic_dedup(emb, flat, eps=2, rule=rule, scope="global"),
        dc.semantic_dedup(emb, flat, eps=0.1, rule=rule, scope="global", within=one),
        dc.semantic_dedup(emb, flat, eps=0.1, rule=rule, scope="global", within=one & False),
    ]
    none, most, single, empty = dc.compute(*stages, store=tmp_path / "r")
    assert len(none) == 120
    assert len(most) == 1
    assert single.indices.tolist() == [7]
    assert len(empty) == 0


def test_workers_and_blocks_do_not_matter(pool, tmp_path, monkeypatch):
    x, labels, centroids = rows_of(8)
    emb = pool(x, chunk_rows=60)
    flat = dc.Clustering.from_arrays(emb, centroids, labels, metric="cosine")
    rules = ("earlier", "greedy", "connected")
    stages = [dc.semantic_dedup(emb, flat, eps=0.1, rule=rule, scope="global") for rule in rules]
    found = []
    for number, threads, limit, edges in ((1, 1, 1000, 1 << 20), (2, 2, 60, 200)):
        if number == 2:  # and every regrouping through the shuffle
            monkeypatch.setattr(planning.Limits, "small_regroup_bytes", property(lambda _: 0))
        monkeypatch.setattr(pool_blocks, "block_limit", lambda *_, limit=limit: limit)
        monkeypatch.setattr(global_greedy, "GREEDY_EDGES", edges)
        with (
            LocalCluster(
                n_workers=number, threads_per_worker=threads, processes=False, dashboard_address=":0"
            ) as cluster,
            Client(cluster),
        ):
            results = dc.compute(*stages, store=tmp_path / f"{number}-{threads}")
            arrays = ("counts", "max_similarity", "duplicate_of")
            found.append([result.read(name) for result in results for name in arrays])
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            assert a.tobytes() == b.tobytes()
    assert all(0 < found[0][i].sum() < N for i in (0, 3, 6))


def test_the_bound_and_brute_force_have_the_same_bits(client, pool, tmp_path, monkeypatch):
    x, labels, centroids = rows_of(9, n=400, dim=64)
    emb = pool(x)
    flat = dc.Clustering.from_arrays(emb, centroids, labels, metric="cosine")
    found = []
    for pays in (True, False):
        monkeypatch.setattr(pool_blocks, "bound_pays", lambda *_, pays=pays: pays)
        stage = dc.semantic_dedup(emb, flat, eps=0.05, scope="global")
        found.append(dc.compute(stage, store=tmp_path / str(pays)))
    for name in ("counts", "max_similarity", "duplicate_of"):
        assert found[0].read(name).tobytes() == found[1].read(name).tobytes()
    assert [one.attributes["brute_force"] for one in found] == [False, True]
    assert found[0].attributes["pairs"] < found[1].attributes["pairs"] == 400 * 399 // 2


def test_the_plan_says_how_many_pairs(client, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_blocks, "block_limit", lambda *_: 1000)
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((40, 64)).astype(np.float32)
    labels = rng.integers(0, 40, 3000)
    emb = pool(centroids[labels] + 0.05 * rng.standard_normal((3000, 64)), chunk_rows=500, normalize=True)
    lazy = dc.Clustering.from_arrays(emb, centroids, labels, metric="cosine")
    stage = dc.semantic_dedup(emb, lazy, eps=0.02, scope="global")
    assert dc.plan(stage).stages[-1].pairs == 3000 * 2999 // 2
    assert dc.plan(stage).stages[0].pairs is None
    dc.compute(lazy, store=tmp_path / "r")
    planned = dc.plan(stage, store=tmp_path / "r")
    flat = dc.compute(lazy, store=tmp_path / "r")
    again = dc.plan(dc.semantic_dedup(emb, flat, eps=0.02, scope="global"))
    assert planned.stages[0].pairs == again.stages[0].pairs
    assert f"{planned.stages[0].pairs:.2e}" in str(planned)
    found = dc.compute(stage, store=tmp_path / "r")
    assert found.attributes["pairs"] == pytest.approx(planned.stages[0].pairs, rel=0.1)
    assert found.attributes["pairs"] < 3000 * 2999 // 2 / 10
    within = dc.plan(dc.semantic_dedup(emb, flat, eps=0.02)).stages[0]
    assert within.pairs == (flat.sizes * (flat.sizes - 1) // 2).sum()
    assert dc.plan(dc.semantic_dedup(emb, lazy, eps=0.02)).stages[-1].pairs == 3000 * (3000 // 40 - 1) // 2
    large = dc.plan(dc.semantic_dedup(emb, flat, eps=1, scope="global")).stages[0]
    assert large.pairs == 3000 * 2999 // 2  # the bound would ask for nearly all


def test_what_is_too_large_to_connect_is_refused(client, pool):
    x, labels, centroids = rows_of()
    emb = pool(x)
    flat = dc.Clustering.from_arrays(emb, centroids, labels)
    for rule, fits in (("earlier", True), ("connected", False)):
        stage = dc.semantic_dedup(emb, flat, eps=0.1, rule=rule, scope="global")
        peak = [
            stage_plans.dedup_plan(
                "d", n=n, d=384, itemsize=2, chunk_rows=10**5, k=1000, tile=1024, scope="global", rule=rule,
                limits=planning.Limits(4, 4, 8 << 30),
            ).peak_memory
            for n in (10**6, 10**9)
        ]  # fmt: skip
        assert (max(peak) < 8 << 30) == fits
        assert dc.plan(stage).fits


def test_when_the_bound_pays():
    n, k = 200_000, 1000
    every = n * (n - 1) // 2
    assert bound_pays(every // 40, n, k)
    assert not bound_pays(every, n, k)
    assert not bound_pays(every // 40, n, 200 * k)  # scoring rows against so many centroids costs more


def test_the_yaml_takes_it(client, pool, tmp_path):
    from daskcurate.pipeline_config import load_config

    x, labels, _ = rows_of(n=100)
    emb = pool(x)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"embeddings: {emb.path}\nstore: {tmp_path / 'run.zarr'}\nstages:\n"
        "  flat: {kmeans: {n_clusters: 4, metric: cosine}}\n"
        "  dedup: {semantic_dedup: {clustering: flat, eps: 0.05, scope: global}}\n"
    )
    built = load_config(path).build(emb)["dedup"]
    flat = dc.kmeans(emb, 4, metric="cosine")
    assert built.fingerprint == dc.semantic_dedup(emb, flat, eps=0.05, scope="global").fingerprint
