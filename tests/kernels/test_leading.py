"""The leading directions: what they hold, and that looking at them first changes no label."""

import numpy as np
import pytest

from daskcurate.arrays import to_host
from daskcurate.kernels import assign, leading


def rows_like_embeddings(seed, m, d=160, centres=60, decay=0.05, offset=0.0):
    """Rows around centres, with a spread that falls from direction to direction, turned at random."""
    rng = np.random.default_rng(seed)
    spread = np.exp(-decay * np.arange(d))
    turn = np.linalg.qr(np.random.default_rng(7).standard_normal((d, d)))[0]
    near = rng.standard_normal((centres, d)) * 2
    rows = (near[rng.integers(0, centres, m)] + rng.standard_normal((m, d))) * spread
    return (rows @ turn + offset).astype(np.float32)


def directions_of(x, xp=np):
    found = leading.leading_directions(xp.asarray(x))
    assert found.shape[0] > 1
    return leading.Directions.of_table(found)


def oracle(x, centroids, metric):
    x, centroids = x.astype(np.float64), centroids.astype(np.float64)
    squares = (x * x).sum(axis=1)[:, None] - 2 * x @ centroids.T + (centroids * centroids).sum(axis=1)
    return (x @ centroids.T).argmax(axis=1) if metric == "cosine" else squares.argmin(axis=1)


def prepared(x, metric):
    return assign.unit_rows(x) if metric == "cosine" else x


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize(
    ("m", "k", "offset"), [(900, 150, 0.0), (1500, 40, 5.0), (700, 2, 0.0), (641, 640, 0.0)]
)
def test_labels_are_the_oracle_s(xp, metric, m, k, offset):
    x = prepared(rows_like_embeddings(k, m, offset=offset), metric)
    centroids = prepared(rows_like_embeddings(k + 1, k, offset=offset), metric)
    found = directions_of(x, xp)
    scorer = assign.Scorer(xp.asarray(centroids), metric, None, found)
    assert scorer.leading is not None
    labels = assign.nearest_by_leading(xp.asarray(x), scorer, leading.project(xp.asarray(x), found))
    np.testing.assert_array_equal(to_host(labels), oracle(x, centroids, metric))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_ties_go_to_the_first_and_copies_to_the_same(metric):
    x = prepared(rows_like_embeddings(0, 800), metric)
    x = x[np.random.default_rng(0).integers(0, 200, 800)]
    centroids = np.concatenate([x[:60], x[:60][::-1], x[100:130]])  # each centroid twice, or a row itself
    found = directions_of(prepared(rows_like_embeddings(1, 900), metric))
    scorer = assign.Scorer(centroids, metric, directions=found)
    assert scorer.leading is not None
    labels = assign.nearest_by_leading(x, scorer, leading.project(x, found))
    np.testing.assert_array_equal(labels, assign.assign(x, assign.Scorer(centroids, metric)).labels)
    for row in np.unique(x, axis=0):
        assert len(set(labels[(x == row).all(axis=1)].tolist())) == 1


def test_directions_of_other_rows_change_no_label():
    x = rows_like_embeddings(2, 700)
    rng = np.random.default_rng(5)
    wrong = leading.Directions.of_table(
        np.concatenate(
            [rng.standard_normal((1, 160)), np.linalg.qr(rng.standard_normal((160, 32)))[0].T]
        ).astype(np.float32)
    )
    centroids = rows_like_embeddings(3, 90)
    scorer = assign.Scorer(centroids, "l2", directions=wrong)
    labels = assign.nearest_by_leading(x, scorer, leading.project(x, wrong))
    np.testing.assert_array_equal(labels, oracle(x, centroids, "l2"))


def test_bounds_are_above_all_scores():
    x, centroids = rows_like_embeddings(4, 700), rows_like_embeddings(5, 120)
    found = directions_of(x)
    table, own = leading.LeadingTable(centroids, found), leading.project(x, found)
    wide = x.astype(np.float64) - found.shift
    far = centroids.astype(np.float64) - found.shift
    scores = wide @ far.T - (far * far).sum(axis=1) / 2
    bounds, error = table.bounds(own).astype(np.float64), table.error(own)
    assert (bounds + error[:, None] >= scores).all()
    assert np.median(bounds - scores) < 0.5 * np.median((wide * wide).sum(axis=1))
    assert (error < 1e-2 * own.squares).all()


def test_they_hold_the_share_asked_for_and_no_more_than_needed(xp):
    x = rows_like_embeddings(8, 1000)
    found = directions_of(x, xp)
    basis, shift = to_host(found.basis).astype(np.float64), to_host(found.shift)
    variance = np.linalg.eigvalsh(np.cov(x.astype(np.float64), rowvar=False))[::-1]
    held = (((x - shift) @ basis) ** 2).sum() / ((x - shift).astype(np.float64) ** 2).sum()
    width = basis.shape[1]
    assert held >= leading.SHARE
    assert width % leading.MULTIPLE == 0
    assert variance[: width - leading.MULTIPLE].sum() < leading.SHARE * variance.sum()
    gap = basis.T @ basis - np.eye(width)
    assert np.sqrt((gap * gap).sum()) <= found.defect
    own = leading.project(xp.asarray(x), found)
    back = to_host(leading.unproject(own.rows, found))
    left = np.sqrt(((x - back).astype(np.float64) ** 2).sum(axis=1))
    assert (to_host(own.tail) >= left * (1 - 1e-6)).all()
    assert (to_host(own.tail) <= left * 1.2 + 1e-2).all()


def test_a_few_outliers_have_no_direction_of_their_own_and_change_no_label(xp):
    x = rows_like_embeddings(10, 3000)
    plain = directions_of(x, xp).basis.shape[1]
    x[::400] *= 1000
    found = directions_of(x, xp)
    assert found.basis.shape[1] == plain
    centroids = np.concatenate([x[::400], rows_like_embeddings(11, 90)])
    scorer = assign.Scorer(xp.asarray(centroids), "l2", None, found)
    lead = leading.project(xp.asarray(x), found)
    labels = assign.nearest_by_leading(xp.asarray(x), scorer, lead)
    np.testing.assert_array_equal(to_host(labels), oracle(x, centroids, "l2"))
    few = leading.Leading(*(part[1:400] for part in lead))
    assert float(scorer.leading.error(few).max()) < 1e-2 * float(few.squares.max())


@pytest.mark.parametrize(
    "x",
    [
        np.random.default_rng(0).standard_normal((4000, 160)).astype(np.float32),  # as much in all directions
        rows_like_embeddings(9, 2000, d=96),  # narrow
        rows_like_embeddings(9, 600),  # few rows for 160 numbers
    ],
    ids=["even", "narrow", "few"],
)
def test_there_are_none_where_they_would_not_pay(x):
    found = leading.leading_directions(x)
    np.testing.assert_allclose(found, x.mean(axis=0, dtype=np.float64)[None], atol=1e-6)


def test_equal_rows_have_some_direction_or_none():
    x = np.ones((3000, 160), np.float32)
    table = leading.leading_directions(x)
    assert np.isfinite(table).all()
    if len(table) > 1:
        found = leading.Directions.of_table(table)
        scorer = assign.Scorer(x[:5], "l2", directions=found)
        labels = assign.nearest_by_leading(x, scorer, leading.project(x, found))
        assert set(labels.tolist()) == {0}
