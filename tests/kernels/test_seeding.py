"""Seeding: distinct rows, spread out, and drawn with the probabilities that the papers give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskcurate.arrays import to_host
from daskcurate.kernels import oversampling, seeding
from daskcurate.kernels.threads import using_threads


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 2**32 - 1), st.booleans())
def test_seeds_are_distinct_rows(xp, m, d, seed, duplicates):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((m, d)).astype(np.float32)
    if duplicates:
        x = x[rng.integers(0, max(1, m // 4), m)]
    k = int(rng.integers(1, m + 1))
    seeds = seeding.kmeans_plusplus(xp.asarray(x), k, np.random.default_rng(seed))
    assert len(set(seeds.tolist())) == k
    assert seeds.min() >= 0
    assert seeds.max() < m


def test_every_distinct_point_is_taken_before_a_copy():
    x = np.repeat(np.eye(6, dtype=np.float32) * 3 + 100, 7, axis=0)
    seeds = seeding.kmeans_plusplus(x, 6, np.random.default_rng(0))
    assert len({tuple(x[i]) for i in seeds}) == 6


def test_greedy_seeds_are_better_than_random_ones():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 5)) * 20
    x = (centres[rng.integers(0, 40, 3000)] + rng.standard_normal((3000, 5))).astype(np.float32)
    seeds = seeding.kmeans_plusplus(x, 40, np.random.default_rng(1))

    def potential(chosen):
        return ((x[:, None] - x[chosen][None]) ** 2).sum(axis=2).min(axis=1).sum()

    assert potential(seeds) < 0.5 * potential(rng.permutation(3000)[:40])


def test_rows_without_weight_are_never_drawn(xp):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 3)).astype(np.float32)
    weights = np.zeros(50)
    weights[10:20] = 1
    seeds = seeding.kmeans_plusplus(xp.asarray(x), 10, np.random.default_rng(0), xp.asarray(weights))
    assert sorted(seeds.tolist()) == list(range(10, 20))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_device_is_asked_a_few_times_a_seed(xp, weighted, monkeypatch):
    if xp is np:
        pytest.skip("the host is not asked")
    asked = []
    monkeypatch.setattr(seeding, "to_host", lambda x: asked.append(1) or to_host(x))
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((4000, 6)).astype(np.float32), rng.random(4000)
    k = 60
    seeds = seeding.kmeans_plusplus(
        xp.asarray(x), k, np.random.default_rng(0), xp.asarray(weights) if weighted else None
    )
    assert len(set(seeds.tolist())) == k
    assert len(asked) < 5 * k


def test_draws_follow_the_mass():
    mass = np.array([0, 1, 0, 3, 0], dtype=np.float32)
    drawn = seeding._draw(mass, 40_000, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=5)
    assert counts[[0, 2, 4]].sum() == 0
    assert counts[3] / 40_000 == pytest.approx(0.75, abs=0.01)


def test_copies_of_a_center_are_at_distance_zero():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((200, 30)) + 50).astype(np.float32)
    x -= x.mean(axis=0)
    squares = (x * x).sum(axis=1)
    found = oversampling.squared_distances(x, squares, x[:5])
    np.testing.assert_array_equal(found[np.arange(5), np.arange(5)], 0)
    expected = ((x[None].astype(np.float64) - x[:5, None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_nearer_takes_the_smaller_distance(xp):
    rng = np.random.default_rng(0)
    x, centers = (rng.standard_normal((m, 4)).astype(np.float32) for m in (100, 130))
    expected = ((x[:, None].astype(np.float64) - centers[None]) ** 2).sum(axis=2).min(axis=1)
    x, centers = xp.asarray(x), xp.asarray(centers)
    np.testing.assert_allclose(to_host(oversampling.nearer(x, None, centers)), expected, rtol=1e-3, atol=1e-4)
    first = oversampling.nearer(x, None, centers[:60])
    np.testing.assert_allclose(
        to_host(oversampling.nearer(x, first, centers[60:])), expected, rtol=1e-3, atol=1e-4
    )


def test_oversampling_takes_rows_in_proportion():
    near = np.array([0, 1, 3, 100], dtype=np.float32)
    uniform = np.array([0.0, 0.0195, 0.029, 0.999])
    assert oversampling.oversample(near, uniform, 104.0, 2.0).tolist() == [2, 3]


def potential_of(x, seeds):
    chosen = x[seeds].astype(np.float64)
    square = (x.astype(np.float64) ** 2).sum(axis=1)[:, None] + (chosen**2).sum(axis=1) - 2 * x @ chosen.T
    return square.min(axis=1).sum()


def grouped_rows(seed, m=5000, d=12, centres=300):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((centres, d)) * 3
    return (points[rng.integers(0, centres, m)] + rng.standard_normal((m, d))).astype(np.float32)


@pytest.mark.parametrize("d", [2, 12])
def test_comparing_candidates_with_near_rows_only_is_as_good(monkeypatch, d):
    assert seeding.is_grouped(5000, 200)
    grouped, full = [], []
    for seed in range(4):
        x = grouped_rows(seed, d=d)
        grouped.append(potential_of(x, seeding.kmeans_plusplus(x, 200, np.random.default_rng(seed))))
        with monkeypatch.context() as patch:
            patch.setattr(seeding, "GROUPED_SEEDS", 10**9)
            full.append(potential_of(x, seeding.kmeans_plusplus(x, 200, np.random.default_rng(seed))))
    assert np.mean(grouped) < 1.01 * np.mean(full)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("d", [2, 12])
def test_the_distances_that_draws_follow_are_those_to_all_seeds(d, weighted):
    x = grouped_rows(9, d=d)
    rng = np.random.default_rng(1)
    weights = rng.random(len(x)) if weighted else None
    field = seeding._Field(x, 200, np.random.default_rng(0), weights)
    real = np.flatnonzero(field.order >= 0)
    assert sorted(field.order[real]) == list(range(len(x)))
    first = real[rng.integers(0, len(real), 1)]
    field.add(first)
    seeds = list(field.numbers(first))
    for turn in range(40):
        drawn = field.drawn(real[rng.integers(0, len(real), 3)], len(seeds) + 100)
        gains = field.gains(drawn, 1, 3)
        for i, gain in zip((1, 2), gains, strict=True):
            tiles = drawn.tiles[drawn.edges[i] : drawn.edges[i + 1]]
            at = (tiles[:, None] * seeding.TILE + np.arange(seeding.TILE)).ravel()
            near = at[field.order[at] >= 0]
            fallen = near_squares(x[field.order[near]], x[[field.numbers(drawn.rows[i])]])
            held = field.squares[near] - 2 * field.best[near].astype(np.float64)
            lower = np.maximum(held - fallen, 0) * (1 if weights is None else weights[field.order[near]])
            np.testing.assert_allclose(gain, lower.sum() / 2, rtol=1e-3, atol=1e-3)
        field.take(drawn, 1)
        seeds.append(int(field.numbers(drawn.rows[1])))
        if turn % 10 == 9:
            field.settle()
            expected = near_squares(x[field.order[real]], x[seeds])
            np.testing.assert_allclose(field.near[real], expected, rtol=1e-3, atol=1e-3)
            assert (field.near[field.order < 0] == 0).all()


def near_squares(x, seeds):
    return ((x[:, None].astype(np.float64) - seeds[None]) ** 2).sum(axis=2).min(axis=1)


def test_a_candidate_is_compared_with_its_near_groups():
    x = grouped_rows(4)
    field = seeding._Field(x, 200, np.random.default_rng(0), None)
    field.add(np.array([17]))
    drawn = field.drawn(np.array([40, 17, 333]), 200)
    group_of = np.searchsorted(
        field.bounds // seeding.TILE, np.arange(len(field.near) // seeding.TILE), "right"
    )
    centers = field.centers[:-1].T
    for i, row in enumerate(drawn.rows):
        groups = set(group_of[drawn.tiles[drawn.edges[i] : drawn.edges[i + 1]]] - 1)
        gaps = ((field.rows[row, :-1] - centers) ** 2).sum(axis=1)
        assert groups <= set(np.argsort(gaps)[: seeding.NEAR_GROUPS].tolist())
        assert int(gaps.argmin()) in groups


@pytest.mark.parametrize("weighted", [False, True])
def test_threads_change_no_seed(weighted):
    x = grouped_rows(5, m=9_000)
    weights = np.random.default_rng(2).integers(0, 5, len(x)).astype(float) if weighted else None
    plain = seeding.kmeans_plusplus(x, 150, np.random.default_rng(3), weights)
    with using_threads(3):
        shared = seeding.kmeans_plusplus(x, 150, np.random.default_rng(3), weights)
    np.testing.assert_array_equal(plain, shared)
    assert len(set(plain.tolist())) == 150
    if weights is not None:
        assert (weights[plain] > 0).all()


def test_many_copies_among_many_rows():
    x = np.repeat(grouped_rows(6, m=120), 60, axis=0)
    seeds = seeding.kmeans_plusplus(x, 130, np.random.default_rng(0))
    assert len(set(seeds.tolist())) == 130
    assert len({x[i].tobytes() for i in seeds}) == 120
