"""The Lloyd step and its loop against float64 oracles written plainly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskcurate.arrays import to_host
from daskcurate.kernels import assign, lloyd
from daskcurate.kernels.distances import own_distances
from daskcurate.kernels.lloyd_in_memory import lloyd_in_memory

METRICS = ("l2", "cosine")


def oracle_distances(x, centroids, metric):
    """(m, k) float64: squared L2 distance, of unit vectors for the cosine metric."""
    x, centroids = x.astype(np.float64), centroids.astype(np.float64)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        centroids = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    return ((x[:, None, :] - centroids[None, :, :]) ** 2).sum(axis=2)


def make(rng, m, d, metric, offset=0.0):
    x = (rng.standard_normal((m, d)) + offset).astype(np.float32)
    return assign.unit_rows(x) if metric == "cosine" and m else x


@st.composite
def problems(draw):
    m, k, d = draw(st.integers(1, 70)), draw(st.integers(1, 12)), draw(st.integers(1, 9))
    metric = draw(st.sampled_from(METRICS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = make(rng, m, d, metric)
    if draw(st.booleans()):  # ties and duplicates: rows repeat, and some are centroids
        x = x[rng.integers(0, max(1, m // 3), m)]
    centroids = make(rng, k, d, metric)
    if draw(st.booleans()):
        centroids[rng.integers(0, k)] = x[rng.integers(0, m)]
    return x, centroids, metric


@settings(max_examples=150, deadline=None)
@given(problems())
def test_nearest_finds_the_nearest_centroid(problem):
    x, centroids, metric = problem
    distances = oracle_distances(x, centroids, metric)
    labels = assign.nearest(x, centroids, metric)
    found = distances[np.arange(len(x)), labels]
    assert labels.dtype == np.int32
    np.testing.assert_allclose(found, distances.min(axis=1), atol=1e-6, rtol=1e-6)
    total = lloyd.step_chunk(x, assign.Scorer(centroids, metric)).partial
    np.testing.assert_allclose(lloyd.objective_of(total, centroids), found.sum(), atol=1e-5, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_own_distances_are_exact(xp, problem):
    x, centroids, metric = problem
    on = [xp.asarray(part) for part in (x, centroids)]
    found = assign.nearest(*on, metric)
    labels = to_host(found)
    square = oracle_distances(x, centroids, metric)[np.arange(len(x)), labels]
    expected = square / 2 if metric == "cosine" else np.sqrt(square)
    np.testing.assert_allclose(to_host(own_distances(*on, found, metric)), expected, atol=1e-12, rtol=1e-9)
    inertia = lloyd.inertia_of(*on, found, metric)
    np.testing.assert_allclose(inertia, square.sum(), atol=1e-12, rtol=1e-9)


@settings(max_examples=100, deadline=None)
@given(problems(), st.lists(st.integers(0, 70), max_size=4))
def test_one_update_is_the_means_whatever_the_chunks(problem, cuts):
    x, centroids, metric = problem
    edges = sorted({0, len(x), *(min(c, len(x)) for c in cuts)})
    scorer = assign.Scorer(centroids, metric)
    spans = zip(edges[:-1], edges[1:], strict=True)
    total = lloyd.tree_combine([lloyd.step_chunk(x[a:b], scorer).partial for a, b in spans])
    labels = assign.nearest(x, centroids, metric)
    assert total.counts.tolist() == np.bincount(labels, minlength=len(centroids)).tolist()
    updated = lloyd.finalize(total, centroids, metric)
    for j in range(len(centroids)):
        members = x[labels == j].astype(np.float64)
        if not len(members):
            np.testing.assert_array_equal(updated[j], centroids[j])
            continue
        mean = members.sum(axis=0)
        length = np.linalg.norm(mean) if metric == "cosine" else len(members)
        if length > 1e-6:
            np.testing.assert_allclose(updated[j], mean / length, atol=1e-6, rtol=1e-5)


def test_rows_far_from_the_origin_are_told_apart():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((500, 8)) + 5000).astype(np.float32)
    centroids = x[:20]
    labels = assign.nearest(x, centroids, "l2")
    distances = oracle_distances(x, centroids, "l2")
    np.testing.assert_allclose(distances[np.arange(500), labels], distances.min(axis=1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_get_equal_distances_wherever_they_stand(xp, metric):
    rng = np.random.default_rng(1)
    x = make(rng, 4001, 33, metric)
    x[[0, 1023, 1024, 1500, 4000]] = x[7]
    centroids = make(rng, 5, 33, metric)
    on = xp.asarray(x), xp.asarray(centroids)
    found = to_host(own_distances(*on, assign.nearest(*on, metric), metric))[[0, 7, 1023, 1024, 1500, 4000]]
    assert len(set(found.tolist())) == 1


def test_label_minus_one_is_left_out():
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    labels = np.array([0, -1, 1, 1, -1, 0], dtype=np.int32)
    sums, counts = lloyd.segment_sums(x, labels, 3)
    assert counts.tolist() == [2, 2, 0]
    np.testing.assert_array_equal(sums, [x[[0, 5]].sum(0), x[[2, 3]].sum(0), [0, 0]])
    distances = own_distances(x, x[:3], labels, "l2")
    assert np.isnan(distances[[1, 4]]).all()
    assert distances[0] == 0


@pytest.mark.parametrize("metric", METRICS)
def test_the_loop_never_raises_the_objective(metric):
    rng = np.random.default_rng(2)
    x = make(rng, 400, 6, metric)
    centroids = x[:15]
    last = np.inf
    for _ in range(8):
        labels = assign.nearest(x, centroids, metric)
        inertia = lloyd.inertia_of(x, centroids, labels, metric)
        assert inertia <= last * (1 + 1e-6)
        last = inertia
        centroids = lloyd_in_memory([x], centroids, metric, 1).centroids


def test_the_loop_stops_where_nothing_changes_any_more(xp):
    x = xp.asarray(np.array([[0, 0], [0, 1], [10, 0], [10, 1]], dtype=np.float32))
    fit = lloyd_in_memory([x], x[::2], "l2", 50)
    np.testing.assert_array_equal(to_host(fit.centroids), [[0, 0.5], [10, 0.5]])
    assert fit.n_updates == 2
    exact = lloyd_in_memory([x], x[::2], "l2", 1)
    assert exact.n_updates == 1
    assert lloyd_in_memory([x], x[::2], "l2", 0).n_updates == 0


def test_tol_stops_early():
    rng = np.random.default_rng(3)
    x = make(rng, 2000, 4, "l2")
    full = lloyd_in_memory([x], x[:30], "l2", 100)
    early = lloyd_in_memory([x], x[:30], "l2", 100, tol=0.01)
    assert 2 <= early.n_updates < full.n_updates


def test_empty_clusters_move_to_the_farthest_rows(xp):
    x = xp.asarray(np.array([[0, 0], [1, 0], [0, 1], [30, 0], [0, 50]], dtype=np.float32))
    far_away = xp.asarray(np.array([[0, 0], [1e4, 1e4], [-1e4, 1e4]], dtype=np.float32))
    fit = lloyd_in_memory([x], far_away, "l2", 20)
    labels = to_host(assign.nearest(x, fit.centroids, "l2"))
    assert np.bincount(labels, minlength=3).tolist() == [3, 1, 1]


def test_more_clusters_than_distinct_rows_leave_some_empty():
    x = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    fit = lloyd_in_memory([x], np.zeros((4, 2), np.float32), "l2", 20)
    labels = assign.nearest(x, fit.centroids, "l2")
    assert len(set(labels.tolist())) == 2
    assert np.isfinite(fit.centroids).all()


def test_blocks_may_be_empty_and_single_rows(xp):
    x = xp.asarray(np.array([[1, 2], [3, 4], [5, 9]], dtype=np.float32))
    whole = lloyd_in_memory([x], x[:2], "l2", 5)
    pieces = lloyd_in_memory([x[:0], x[:1], x[1:1], x[1:]], x[:2], "l2", 5)
    np.testing.assert_array_equal(to_host(whole.centroids), to_host(pieces.centroids))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_blocks_assigned_together_are_added_up_one_by_one(monkeypatch, metric):
    rng = np.random.default_rng(4)
    x = make(rng, 1000, 6, metric)
    blocks = np.split(x, [0, 150, 151, 500, 500, 700])
    found = []
    for rows in (1, 300, 10_000):
        monkeypatch.setattr("daskcurate.kernels.lloyd_in_memory.RUN_ROWS", rows)
        found.append(lloyd_in_memory(blocks, x[:40], metric, 100))
        labels = np.concatenate(found[-1].labels)
        np.testing.assert_array_equal(labels, assign.nearest(x, found[-1].centroids, metric))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].centroids, other.centroids)
        assert found[0].n_updates == other.n_updates
    assert lloyd_in_memory(blocks, x[:40], metric, 2).labels is None


@pytest.mark.parametrize("metric", METRICS)
def test_sums_of_clusters_that_changed_alone_make_the_bits_of_all_sums(xp, metric):
    rng = np.random.default_rng(5)
    x = xp.asarray(make(rng, 900, 7, metric))
    blocks = [x[:200], x[200:200], x[200:201], x[201:600], x[600:]]
    centroids = seeds = x[:300]  # more clusters than are added up at a time, and few rows in each
    for updates in range(1, 13):
        scorer = assign.Scorer(centroids, metric)
        total = lloyd.tree_combine([lloyd.step_chunk(block, scorer).partial for block in blocks])
        centroids = lloyd.finalize(total, centroids, metric)
        found = lloyd_in_memory(blocks, seeds, metric, updates)
        assert found.objective == lloyd.objective_of(total, scorer.centroids)
        np.testing.assert_array_equal(to_host(found.centroids), to_host(centroids))
    assert found.n_updates > 3  # the later ones changed few clusters


def test_farthest_rows_are_distinct_and_ordered():
    x = np.array([[5, 0], [9, 0], [9, 0], [0, 0], [7, 0]], dtype=np.float32)
    rows = np.array([10, 11, 12, 13, 14])
    far = lloyd.farthest_rows(np.array([5.0, 9, 9, 0, 7]), rows, x, 10)
    assert far.row.tolist() == [11, 14, 10]  # 12 repeats 11; 13 lies on the centroid
    assert far.distance.tolist() == [9, 7, 5]


def test_float16_rows_are_summed_in_float64():
    x = np.full((5000, 3), 1000.25, dtype=np.float16)
    sums, counts = lloyd.segment_sums(x, np.zeros(5000, np.int32), 1)
    assert counts[0] == 5000
    np.testing.assert_array_equal(sums[0], x.astype(np.float64).sum(axis=0))


def test_unit_rows_keep_zero_rows_and_equal_rows():
    x = np.array([[3, 4], [0, 0], [3, 4]], dtype=np.float16)
    unit = assign.unit_rows(x)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0], [0.6, 0.8]], rtol=1e-7)


def test_tile_rows_depend_on_k_alone():
    assert assign.tile_rows(1) == 1024
    assert assign.tile_rows(10**7) == 256
    assert assign.tile_rows(0) == 1024


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_accelerated_updates_go_beyond_the_means_and_on_as_before(xp, metric):
    rng = np.random.default_rng(0)
    x, centroids, before = (assign.unit_rows(rng.standard_normal((m, 4))) for m in (60, 5, 5))
    labels = rng.integers(0, 4, 60).astype(np.int32)  # the last cluster has no rows
    sums, counts = lloyd.segment_sums(xp.asarray(x), xp.asarray(labels), 5)
    total = lloyd.Partial(sums, counts, 0.0)
    found = to_host(lloyd.accelerated(total, *map(xp.asarray, (centroids, before)), metric)).astype(
        np.float64
    )
    for j in range(5):
        mean = x[labels == j].astype(np.float64).mean(axis=0) if j < 4 else centroids[j].astype(np.float64)
        mean = mean / np.linalg.norm(mean) if metric == "cosine" else mean
        moved = centroids[j] + lloyd.OVER_RELAXATION * (mean - centroids[j])
        moved = moved / np.linalg.norm(moved) if metric == "cosine" else moved
        if j < 4:
            moved = moved + lloyd.MOMENTUM * (centroids[j].astype(np.float64) - before[j])
        moved = moved / np.linalg.norm(moved) if metric == "cosine" else moved
        np.testing.assert_allclose(found[j], moved, atol=1e-5)
