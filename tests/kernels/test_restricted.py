"""Assignment through lists: what a list holds, and how often it holds the nearest centroid."""

import numpy as np
import pytest

from daskcurate.arrays import to_host
from daskcurate.kernels import assign
from daskcurate.kernels.restricted import Listed, Lists, list_of_all, list_size, make_lists, nearest_listed


def blobs(seed, n, d, centres):
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((centres, d)) * 2
    return (means[rng.integers(0, centres, n)] + rng.standard_normal((n, d)) * 0.5).astype(np.float32)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("k", [1, 3, 130, 700])
def test_a_list_holds_its_group_and_no_centroid_twice(xp, metric, k):
    centroids = blobs(k, k, 6, 40)
    if metric == "cosine":
        centroids = assign.unit_rows(centroids)
    lists = make_lists(xp.asarray(centroids), metric, seed=1)
    group, members = (
        np.asarray(part.get() if xp is not np else part) for part in (lists.group, lists.members)
    )
    assert members.shape[1] >= list_size(k)
    for number in range(len(members)):
        assert len(set(members[number].tolist())) == members.shape[1]
        assert set(np.flatnonzero(group == number)) <= set(members[number].tolist())


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_labels_are_the_best_of_the_home_s_list(xp, metric):
    x, centroids = blobs(0, 500, 6, 30), blobs(1, 600, 6, 30)
    if metric == "cosine":
        x, centroids = assign.unit_rows(x), assign.unit_rows(centroids)
    lists = make_lists(xp.asarray(centroids), metric, seed=0)
    scorer = assign.Scorer(xp.asarray(centroids), metric)
    before = np.random.default_rng(0).integers(0, 600, 500).astype(np.int32)
    found = Listed(*map(to_host, nearest_listed(xp.asarray(x), scorer, lists, xp.asarray(before))))
    lists = Lists(*map(to_host, lists))
    for row in range(500):
        held = lists.members[lists.group[before[row]]]
        gap = ((x[row].astype(np.float64) - centroids[held].astype(np.float64)) ** 2).sum(axis=1)
        own = ((x[row].astype(np.float64) - centroids[found.labels[row]].astype(np.float64)) ** 2).sum()
        assert own <= gap.min() + 1e-5


def test_lists_of_all_centroids_are_exact():
    x, centroids = blobs(2, 400, 5, 20), blobs(3, 100, 5, 20)
    lists = make_lists(centroids, "l2", seed=0)
    assert lists.members.shape[1] == 100
    found = nearest_listed(x, assign.Scorer(centroids, "l2"), lists)
    np.testing.assert_array_equal(found.labels, assign.nearest(x, centroids, "l2"))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_one_list_of_all_compares_each_row_with_every_centroid(xp, metric):
    x, centroids = blobs(6, 700, 5, 20), blobs(7, 90, 5, 20)
    if metric == "cosine":
        x, centroids = assign.unit_rows(x), assign.unit_rows(centroids)
    lists, scorer = list_of_all(xp.asarray(centroids)), assign.Scorer(xp.asarray(centroids), metric)
    before = np.random.default_rng(0).integers(0, 90, 700).astype(np.int32)
    exact = assign.nearest(x, centroids, metric)
    for labels in (None, xp.asarray(before)):
        found = nearest_listed(xp.asarray(x), scorer, lists, labels)
        np.testing.assert_array_equal(to_host(found.labels), exact)


def test_rows_far_from_the_origin_are_compared_as_near_it():
    x, centroids = blobs(8, 500, 5, 20), blobs(9, 200, 5, 20)
    far = np.float32(3000)
    near, moved = (
        nearest_listed(x + shift, assign.Scorer(centroids + shift, "l2"), list_of_all(centroids)).labels
        for shift in (0 * far, far)
    )
    assert (near == moved).mean() > 0.98  # float32 rounds the numbers themselves to 1e-4


def test_most_rows_find_their_nearest_centroid():
    x = blobs(4, 20_000, 16, 300)
    centroids = x[:2000]
    lists = make_lists(centroids, "l2", seed=0)
    exact = assign.nearest(x, centroids, "l2")
    start = nearest_listed(x, assign.Scorer(centroids, "l2"), lists)
    assert (start.labels == exact).mean() > 0.85
    again = nearest_listed(
        x, assign.Scorer(centroids, "l2"), make_lists(centroids, "l2", seed=1), start.labels
    )
    assert (again.labels == exact).mean() > (start.labels == exact).mean()


def test_no_rows_and_an_empty_group():
    centroids = blobs(5, 300, 4, 5)
    lists = make_lists(centroids, "l2", seed=0)
    found = nearest_listed(centroids[:0], assign.Scorer(centroids, "l2"), lists)
    assert found.labels.shape == (0,)
