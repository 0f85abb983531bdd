"""How many rows each cluster gives, against counting up. Arrays of the host alone, as the kernel takes by design."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daskcurate.kernels.allocation import (
    bounded_allocation,
    copies,
    hierarchical_targets,
    softmax_shares,
    water_level_cut,
)
from daskcurate.kernels.draws import row_hash

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=8)


def keys(k, seed=0):
    return row_hash(seed, np.arange(k))


def level(capacities, target):
    """The largest whole cut, by counting up."""
    x = 0
    while x < max(capacities, default=0) and sum(min(x + 1, c) for c in capacities) <= target:
        x += 1
    return x


@given(COUNTS, st.integers(0, 100), st.integers(0, 5))
@example([10, 4, 1], 9, 0)
@example([0], 3, 0)
def test_cut_matches_counting(capacities, target, seed):
    caps = np.array(capacities, np.int64)
    given_rows = water_level_cut(caps, target, keys(len(caps), seed))
    x = level(capacities, target)
    assert given_rows.sum() == min(target, caps.sum())
    extra = given_rows - np.minimum(caps, x)
    assert set(extra.tolist()) <= {0, 1}
    eligible = np.flatnonzero(caps > x)
    assert set(np.flatnonzero(extra)) <= set(eligible)
    ranked = eligible[np.argsort(keys(len(caps), seed)[eligible])]
    assert set(np.flatnonzero(extra)) == set(ranked[: int(extra.sum())])


def test_published_example():
    assert water_level_cut(np.array([10, 4, 1]), 9, keys(3)).tolist() == [4, 4, 1]


def test_no_clusters():
    assert water_level_cut(np.empty(0, np.int64), 5, keys(0)).tolist() == []


def test_remainder_moves_with_the_keys():
    got = {tuple(water_level_cut(np.array([5, 5, 5]), 4, keys(3, seed))) for seed in range(40)}
    assert got == {(2, 1, 1), (1, 2, 1), (1, 1, 2)}


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6), st.integers(0, 2**58))
@example([2**63 - 1] * 6, 2**58)
@example([2**57, 2**57, 2**57, 1], 2**58)
def test_big_numbers_do_not_overflow(capacities, target):
    got = water_level_cut(np.array(capacities, np.int64), target, keys(len(capacities))).tolist()
    assert sum(got) == min(target, sum(capacities))
    assert all(0 <= g <= c for g, c in zip(got, capacities, strict=True))
    open_ones = [g for g, c in zip(got, capacities, strict=True) if g < c]
    if open_ones:  # a water level: nobody who could take more is more than one below anyone
        assert max(got) <= min(open_ones) + 1


@pytest.mark.parametrize("target", [-1, 2**58 + 1])
def test_target_out_of_range(target):
    with pytest.raises(ValueError, match="targets from"):
        water_level_cut(np.array([1]), target, keys(1))


def flat_sizes(parents, sizes):
    levels = [np.asarray(sizes)]
    for t, parent in enumerate(parents):
        k = len(parents[t + 1]) if t + 1 < len(parents) else max(parent, default=-1) + 1
        levels.append(np.array([sum(levels[-1][parent == p]) for p in range(k)], np.int64))
    return levels


@st.composite
def trees(draw):
    counts = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    counts.sort(reverse=True)
    parents = [
        np.array(draw(st.lists(st.integers(-1, up - 1), min_size=k, max_size=k)), np.int32)
        for k, up in itertools.pairwise(counts)
    ]
    sizes = draw(st.lists(st.integers(0, 15), min_size=counts[0], max_size=counts[0]))
    return parents, np.array(sizes, np.int64)


@given(trees(), st.integers(1, 120), st.integers(1, 3), st.integers(0, 3))
def test_hierarchy_matches_recursion(tree, target, multiplier, seed):
    parents, sizes = tree
    got = hierarchical_targets(parents, sizes, target, multiplier, seed)
    levels = flat_sizes(parents, sizes)
    assert (got <= multiplier * sizes).all()
    # Only rows that hang on the tree's top can be taken.
    reachable = levels[-1].sum()
    assert got.sum() == min(target, multiplier * reachable)
    # Each parent's share is cut as a flat problem: same level, same number of clusters one above it.
    wanted = [got]
    for t, parent in enumerate(parents):
        k = len(levels[t + 1])
        wanted.append(np.array([wanted[-1][parent == p].sum() for p in range(k)], np.int64))
    for t, parent in enumerate(parents):
        assert (wanted[t][parent < 0] == 0).all()
        for p in range(len(levels[t + 1])):
            caps = (multiplier * levels[t][parent == p]).tolist()
            x = level(caps, wanted[t + 1][p])
            extra = wanted[t][parent == p] - np.minimum(caps, x)
            assert set(extra.tolist()) <= {0, 1}
            assert (extra[np.asarray(caps, np.int64) <= x] == 0).all()
    x = level((multiplier * levels[-1]).tolist(), target)
    assert set((wanted[-1] - np.minimum(multiplier * levels[-1], x)).tolist()) <= {0, 1}


def test_hierarchy_of_one_level_and_a_huge_multiplier():
    got = hierarchical_targets([], np.array([10, 0, 4, 1]), 9, 2**62, 0)
    assert got.sum() == 9
    assert got[1] == 0
    assert got.max() == 3


def test_half_a_million_parents_are_quick():
    rng = np.random.default_rng(0)
    parents = [rng.integers(0, 500_000, 1_000_000), rng.integers(0, 1000, 500_000)]
    sizes = rng.integers(0, 20, 1_000_000)
    start = time.perf_counter()
    got = hierarchical_targets(parents, sizes, 2_000_000, 1, 0)
    assert time.perf_counter() - start < 10
    assert got.sum() == 2_000_000


def test_softmax_leaves_out_empty_clusters():
    got = softmax_shares(np.array([0.2, np.nan, 0.4]), 0.1, np.array([3, 0, 1]))
    assert got[1] == 0
    np.testing.assert_allclose(got[[0, 2]], np.array([1, np.e**2]) / (1 + np.e**2))


def test_softmax_is_stable_and_empty_input_is_fine():
    assert softmax_shares(np.array([1e6, 1e6 - 1]), 1e-3, np.array([1, 1])).tolist() == [1, 0]
    assert softmax_shares(np.array([np.nan]), 0.1, np.array([0])).tolist() == [0]


@st.composite
def programs(draw):
    k = draw(st.integers(1, 5))
    sizes = np.array(draw(st.lists(st.integers(0, 6), min_size=k, max_size=k)), np.int64)
    lower = np.array([draw(st.integers(0, int(s))) for s in sizes], np.int64)
    weights = np.array(draw(st.lists(st.integers(0, 9), min_size=k, max_size=k)), np.float64)
    shares = weights / max(weights.sum(), 1)
    return shares, draw(st.integers(int(lower.sum()), int(sizes.sum()))), sizes, lower


@given(programs())
@settings(max_examples=200)
def test_allocation_is_the_best_of_all_whole_solutions(program):
    shares, target, sizes, lower = program
    got = bounded_allocation(*program)
    assert got.sum() == target
    assert (lower <= got).all()
    assert (got <= sizes).all()
    allowed = itertools.product(*(range(lo, hi + 1) for lo, hi in zip(lower, sizes, strict=True)))
    best = min(((np.array(x) - shares * target) ** 2).sum() for x in allowed if sum(x) == target)
    assert ((got - shares * target) ** 2).sum() <= best + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_allocation_meets_the_optimality_conditions(seed):
    rng = np.random.default_rng(seed)
    k = 2000
    sizes = rng.integers(0, 500, k)
    lower = np.minimum(sizes, rng.integers(0, 20, k))
    shares = rng.dirichlet(np.full(k, 0.2))
    target = int(rng.integers(lower.sum(), sizes.sum() + 1))
    got = bounded_allocation(shares, target, sizes, lower)
    assert got.sum() == target
    # KKT: one multiplier, the gradient of rows inside the bounds; rounding moves it by less than one row.
    gradient = got - shares * target
    inside = (got > lower) & (got < sizes)
    assert np.ptp(gradient[inside]) <= 1 + 1e-6
    assert gradient[got > lower].max() - gradient[got < sizes].min() <= 1 + 1e-6


def test_ties_go_to_the_lower_number():
    got = bounded_allocation(np.full(3, 1 / 3), 10, np.full(3, 9), np.zeros(3, np.int64))
    assert got.tolist() == [4, 3, 3]


def test_allocation_at_the_ends_and_without_clusters():
    sizes, lower = np.array([3, 5, 0]), np.array([1, 2, 0])
    shares = np.array([0.9, 0.1, 0.0])
    assert bounded_allocation(shares, 8, sizes, lower).tolist() == [3, 5, 0]
    assert bounded_allocation(shares, 3, sizes, lower).tolist() == [1, 2, 0]
    none = np.empty(0, np.int64)
    assert bounded_allocation(np.empty(0), 0, none, none).tolist() == []


def test_allocation_of_billions_sums_exactly():
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 10**7, 3000)
    shares = softmax_shares(rng.random(3000), 0.1, sizes)
    for target in (1, 999_999_937, int(sizes.sum()) - 1):
        assert bounded_allocation(shares, target, sizes, np.zeros(3000, np.int64)).sum() == target


@pytest.mark.parametrize(
    ("target", "lower", "message"),
    [(9, [1, 2], "give 3 .* to 8"), (2, [1, 2], "give 3 .* to 8"), (5, [4, 2], "lower bound 4 of cluster 0")],
)
def test_infeasible_allocation(target, lower, message):
    with pytest.raises(ValueError, match=message):
        bounded_allocation(np.array([0.5, 0.5]), target, np.array([3, 5]), np.array(lower))


@given(COUNTS, st.integers(0, 40), st.integers(0, 5))
def test_copies_sum_to_the_targets(sizes, most, seed):
    rng = np.random.default_rng(seed)
    sizes = np.array(sizes, np.int64)
    targets = np.where(sizes > 0, rng.integers(0, most + 1, len(sizes)), 0)
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    rank = np.concatenate([np.arange(s) for s in sizes])
    labels, rank = np.append(labels, np.int32(-1)), np.append(rank, 0)
    got = copies(rank, sizes, targets, labels)
    assert got.dtype == np.int32
    assert got[-1] == 0
    assert np.bincount(labels[:-1], got[:-1], minlength=len(sizes)).tolist() == targets.tolist()
    for c, (size, target) in enumerate(zip(sizes, targets, strict=True)):
        mine = got[labels == c]
        assert mine.tolist() == [target // size + (r < target % size) for r in range(size)]
