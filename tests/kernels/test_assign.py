"""Labels equal the float64 oracle's, and passes that skip work equal passes that do not, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskcurate.arrays import to_host
from daskcurate.kernels import assign, bounded, lloyd

METRICS = ("l2", "cosine")


def oracle_labels(x, centroids, metric):
    x, centroids = x.astype(np.float64), centroids.astype(np.float64)
    if metric == "cosine":
        return (x[:, None, :] * centroids).sum(axis=2).argmax(axis=1)
    return ((x[:, None, :] - centroids) ** 2).sum(axis=2).argmin(axis=1)


def make(rng, m, d, metric, offset=0.0):
    x = (rng.standard_normal((m, d)) + offset).astype(np.float32)
    return assign.unit_rows(x) if metric == "cosine" else x


@st.composite
def problems(draw):
    m, k, d = draw(st.integers(1, 90)), draw(st.integers(1, 20)), draw(st.integers(1, 9))
    metric = draw(st.sampled_from(METRICS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = make(rng, m, d, metric, draw(st.sampled_from([0.0, 30.0])) if metric == "l2" else 0.0)
    centroids = make(rng, k, d, metric)
    if draw(st.booleans()):  # duplicates, and rows at the same distance from several centroids
        x = x[rng.integers(0, max(1, m // 3), m)]
        centroids = x[rng.integers(0, m, k)]
    if draw(st.booleans()) and metric == "l2":
        x, centroids = np.round(x), np.round(centroids)
    if draw(st.booleans()) and metric == "l2":  # a few far rows and centroids
        factor = draw(st.sampled_from([10.0, 1e3, 1e6]))
        for far in (x, centroids):
            far[rng.random(len(far)) < 0.1] *= np.float32(factor)
    return x, centroids, metric


@settings(max_examples=200, deadline=None)
@given(problems(), st.sampled_from([1, 3, 16384]))
def test_labels_are_the_float64_oracle_s(xp, problem, columns):
    x, centroids, metric = problem
    before = assign.COLUMNS, assign.DEVICE_COLUMNS
    assign.COLUMNS = assign.DEVICE_COLUMNS = columns
    try:
        found = assign.assign(xp.asarray(x), assign.Scorer(xp.asarray(centroids), metric))
    finally:
        assign.COLUMNS, assign.DEVICE_COLUMNS = before
    found = assign.Assignment(*map(to_host, found))
    np.testing.assert_array_equal(found.labels, oracle_labels(x, centroids, metric))
    gaps = np.sqrt(((x[:, None, :].astype(np.float64) - centroids.astype(np.float64)) ** 2).sum(axis=2))
    gaps[np.arange(len(x)), found.labels] = np.inf
    assert (found.second <= gaps.min(axis=1) * (1 + 1e-7) + 1e-12).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("m", "k", "d"), [(900, 12, 4), (700, 150, 6), (300, 300, 3), (1, 1, 2)])
def test_bounded_passes_equal_plain_ones_to_the_bit(xp, metric, m, k, d):
    rng = np.random.default_rng(m)
    x = make(rng, m, d, metric)
    x[: m // 5] = x[m // 2]
    centroids, last, moves = x[rng.permutation(m)[:k]].copy(), None, None
    rows = xp.asarray(x)
    for number in range(12):
        scorer = assign.Scorer(xp.asarray(centroids), metric)
        plain = lloyd.step_chunk(rows, scorer)
        bounded = lloyd.step_chunk(rows, scorer, last, moves)
        for one, other in zip(
            (plain.assignment.labels, *plain.partial),
            (bounded.assignment.labels, *bounded.partial),
            strict=True,
        ):
            assert bool((xp.asarray(one) == xp.asarray(other)).all())
        updated = lloyd.finalize(plain.partial, scorer.centroids, metric, 1.6 if number % 3 else 1.0)
        if number == 5:  # a jump, as when an empty cluster is moved
            updated[0] = xp.asarray(x[m // 3])
        moves, last = lloyd.moves_of(scorer.centroids, updated), bounded
        centroids = updated


def test_bounds_do_skip_work(monkeypatch):
    rng = np.random.default_rng(0)
    x = make(rng, 4000, 8, "l2")
    seen = []
    plain = assign.assign
    monkeypatch.setattr(bounded, "assign", lambda rows, *more: seen.append(len(rows)) or plain(rows, *more))
    centroids = x[:400]
    scorer = assign.Scorer(centroids, "l2")
    before = plain(x, scorer)
    moved = centroids.copy()
    moved[:20] += 0.05
    found = bounded.reassign(x, assign.Scorer(moved, "l2"), before, lloyd.moves_of(centroids, moved))
    assert sum(seen) < len(x) / 4
    np.testing.assert_array_equal(found.labels, plain(x, assign.Scorer(moved, "l2")).labels)


@pytest.mark.parametrize("side", ["around", "one side"])
def test_far_centroids_leave_the_other_rows_decided_by_float32(side):
    rng = np.random.default_rng(1)
    x = make(rng, 3000, 64, "l2")
    far = 1000 * (x[:20] if side == "around" else 1 + 0.01 * x[:20])
    centroids = np.concatenate([far, x[20:150]])
    scorer = assign.Scorer(centroids, "l2")
    assert len(scorer.best_two(scorer.tile(x)).unclear(np)) < 0.02 * len(x)
    before = assign.assign(x, scorer)
    np.testing.assert_array_equal(before.labels, oracle_labels(x, centroids, "l2"))
    gaps = np.sqrt(
        ((x[:, None] - centroids[before.labels][:, None]).astype(np.float64) ** 2).sum(axis=(1, 2))
    )
    assert np.median(before.second - gaps) > 0  # bounds are of use


@pytest.mark.parametrize("factor", [10.0, 1e3, 1e6])
def test_bounded_passes_with_far_centroids_equal_plain_ones(xp, factor):
    rng = np.random.default_rng(3)
    x = make(rng, 1200, 6, "l2")
    x[::100] *= np.float32(factor)
    centroids, last, moves = x[rng.permutation(len(x))[:60]].copy(), None, None
    centroids[:12] = x[::100]
    for number in range(8):
        scorer = assign.Scorer(xp.asarray(centroids), "l2")
        bounded_pass = lloyd.step_chunk(xp.asarray(x), scorer, last, moves)
        labels = to_host(bounded_pass.assignment.labels)
        np.testing.assert_array_equal(labels, oracle_labels(x, centroids, "l2"))
        updated = to_host(lloyd.finalize(bounded_pass.partial, scorer.centroids, "l2"))
        if number % 2:  # near ones go far, and far ones come back
            updated[[5, 30]] = updated[[30, 5]]
        moves = lloyd.moves_of(scorer.centroids, xp.asarray(updated))
        last, centroids = bounded_pass, updated


def test_the_count_of_loud_centroids_makes_the_least_work():
    quiet = np.zeros(100)
    assert bounded.loud_count(np.ones(50), quiet) == 0
    one = quiet.copy()
    one[7] = 5.0
    assert bounded.loud_count(np.ones(50), one) == 1
    assert bounded.loud_count(np.full(50, -1.0), one) is None  # every row is in doubt anyhow
    assert bounded.loud_count(np.ones(50), np.full(100, 5.0)) is None
    assert bounded.loud_count(np.empty(0), one) == 0


def test_a_centroid_that_is_no_unit_vector_switches_bounds_off():
    x = assign.unit_rows(np.random.default_rng(0).standard_normal((40, 5)))
    centroids = x[:4].copy()
    centroids[2] = 0
    scorer = assign.Scorer(centroids, "cosine")
    assert not scorer.bounded
    before = assign.assign(x, scorer)
    again = bounded.reassign(x, scorer, before, np.zeros(4))
    np.testing.assert_array_equal(again.labels, oracle_labels(x, centroids, "cosine"))


def test_sums_of_clusters_whose_members_changed_are_added_up_again_and_no_others():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((500, 7)).astype(np.float32)
    old = rng.integers(-1, 30, 500).astype(np.int32)
    new = old.copy()
    new[rng.permutation(500)[:9]] = rng.integers(-1, 30, 9)
    sums, counts = lloyd.segment_sums(x, old, 30)
    expected = lloyd.segment_sums(x, new, 30)
    found = lloyd.segment_sums(x, new, 30, (old, lloyd.Partial(sums, counts, 0.0)))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
    sums[:] = -1  # what has not changed is taken from before
    kept = lloyd.segment_sums(x, old, 30, (old, lloyd.Partial(sums, counts, 0.0)))
    assert (kept[0] == -1).all()


@pytest.mark.parametrize("step", [1.2, 1.7, 1.95])
def test_over_relaxation_lowers_the_objective_every_time(step):
    rng = np.random.default_rng(5)
    x = make(rng, 800, 5, "l2")
    centroids, last = x[:40], np.inf
    for _ in range(10):
        total = lloyd.step_chunk(x, assign.Scorer(centroids, "l2")).partial
        objective = lloyd.objective_of(total, centroids)
        assert objective <= last * (1 + 1e-6)
        last = objective
        centroids = lloyd.finalize(total, centroids, "l2", step)
