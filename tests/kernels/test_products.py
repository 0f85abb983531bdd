"""Labels are the float64 oracle's whatever the precision of the first product; bounds hold."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import Bfloat16OnHost, CoarseOnHost, HalfOnHost

from daskcurate.kernels import assign, blocks, pool_matches, pool_pairs, products, similarity, tiles

HOST = {"float32": None, "float16": HalfOnHost(), "bfloat16": Bfloat16OnHost(), "3 bits": CoarseOnHost()}
HAS_TORCH = importlib.util.find_spec("torch") is not None
METRICS = ("l2", "cosine")


@pytest.fixture(
    params=[*HOST, pytest.param("torch", marks=pytest.mark.skipif(not HAS_TORCH, reason="torch is missing"))]
)
def product(request):
    return products.TorchBfloat16() if request.param == "torch" else HOST[request.param]


def oracle_labels(x, centroids, metric):
    x, centroids = x.astype(np.float64), centroids.astype(np.float64)
    if metric == "cosine":
        return (x[:, None, :] * centroids).sum(axis=2).argmax(axis=1)
    return ((x[:, None, :] - centroids) ** 2).sum(axis=2).argmin(axis=1)


def cases(metric):
    """Rows and centroids that are hard for low precision, by name."""
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((301, 33)).astype(np.float32)
    table = rng.standard_normal((37, 33)).astype(np.float32)
    found = {
        "plain": (rows, table),
        "one centroid": (rows, table[:1]),
        "one row": (rows[:1], table),
        "one column": (rows[:, :1].copy(), table[:, :1].copy()),
        "duplicates": (rows[rng.integers(0, 40, 301)], rows[rng.integers(0, 40, 90)]),
        "nearly equal centroids": (
            rows,
            np.repeat(table[:9], 5, axis=0) + (1e-6 * rng.standard_normal((45, 33))).astype(np.float32),
        ),
    }
    zeros = rows.copy()
    zeros[::3] = 0
    if metric == "cosine":
        found["zero rows"] = zeros, table
        return {name: tuple(assign.unit_rows(part) for part in parts) for name, parts in found.items()}
    scales = (10.0 ** rng.integers(-6, 7, (301, 1))).astype(np.float32)
    outlier = table.copy()
    outlier[3] *= 1e7
    return found | {
        "zero rows": (zeros, table * np.float32(1e-3)),
        "whole numbers": (np.round(rows), np.round(table)),
        "far from the origin": (rows + np.float32(1000), table + np.float32(1000)),
        "above float16": (rows * np.float32(1e6), table * np.float32(1e6)),
        "huge": (rows * np.float32(1e15), table * np.float32(1e15)),
        "tiny": (rows * np.float32(1e-12), table * np.float32(1e-12)),
        "below the squares of float32": (rows * np.float32(1e-25), table * np.float32(1e-25)),
        "rows of all lengths": (rows * scales, table),
        "an outlier": (rows, outlier),
        "unlike scales": (rows * np.float32(1e-4), table * np.float32(1e4)),
    }


@pytest.mark.parametrize(("metric", "name"), [(metric, name) for metric in METRICS for name in cases(metric)])
def test_labels_are_the_float64_oracle_s(product, metric, name, monkeypatch):
    monkeypatch.setattr(assign, "COLUMNS", 20)
    x, centroids = cases(metric)[name]
    found = assign.assign(x, assign.Scorer(centroids, metric, product))
    np.testing.assert_array_equal(found.labels, oracle_labels(x, centroids, metric))
    gaps = np.sqrt(((x[:, None, :].astype(np.float64) - centroids.astype(np.float64)) ** 2).sum(axis=2))
    gaps[np.arange(len(x)), found.labels] = np.inf
    assert (found.second <= gaps.min(axis=1) * (1 + 1e-7) + 1e-12 * abs(x).max()).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 40), st.integers(1, 20),
    st.sampled_from(METRICS), st.sampled_from(list(HOST)), st.sampled_from([1e-3, 1.0, 1e5]),
)  # fmt: skip
def test_random_shapes(seed, m, k, d, metric, name, scale):
    rng = np.random.default_rng(seed)
    x, centroids = ((scale * rng.standard_normal((n, d))).astype(np.float32) for n in (m, k))
    if metric == "cosine":
        x, centroids = assign.unit_rows(x), assign.unit_rows(centroids)
    found = assign.assign(x, assign.Scorer(centroids, metric, HOST[name]))
    np.testing.assert_array_equal(found.labels, oracle_labels(x, centroids, metric))


@pytest.mark.parametrize("rounding", [name for name in HOST if HOST[name]])
@pytest.mark.parametrize(("metric", "name"), [(metric, name) for metric in METRICS for name in cases(metric)])
def test_scores_are_within_their_bound(rounding, metric, name):
    product = HOST[rounding]
    x, centroids = cases(metric)[name]
    scorer = assign.Scorer(centroids, metric, product)
    tile = scorer.tile(x)
    own, error = scorer.coarse.rows(tile.rows[:, : x.shape[1]], tile.error)
    with np.errstate(over="ignore", invalid="ignore"):
        found = scorer.coarse.scores(own, 0, len(centroids)).astype(np.float64)
    wide, table = x.astype(np.float64), centroids.astype(np.float64)
    exact = wide @ table.T
    if metric == "l2":
        wide, table = wide - scorer.shift, table - scorer.shift
        exact = wide @ table.T - (table * table).sum(axis=1) / 2
    off = abs(found - exact)
    if metric == "l2":  # centroids that are too far from a row do not count
        lengths = (np.sqrt((rows * rows).sum(axis=1)) for rows in (wide, table))
        of_rows, of_centroids = lengths
        off[of_centroids > scorer.reach(of_rows)[:, None] * (1 + 1e-6)] = 0
    known = np.isfinite(error)
    # what float32 cannot hold at all is not told apart, and settled in float64
    assert (off[known] <= error[known, None] + 1e-36).all()


def test_few_rows_of_ordinary_data_are_looked_at_again(monkeypatch):
    rng = np.random.default_rng(0)
    x, centroids = (assign.unit_rows(rng.standard_normal((n, 256))) for n in (2000, 400))
    again = []
    plain = assign.Scorer._candidates
    monkeypatch.setattr(
        assign.Scorer,
        "_candidates",
        lambda self, rows, *rest: again.append(len(rows)) or plain(self, rows, *rest),
    )
    assign.assign(x, assign.Scorer(centroids, "cosine", HalfOnHost()))
    assert 0 < sum(again) < len(x) / 10


def test_top_two_of_ties_and_of_one_column(xp):
    scores = xp.asarray(np.array([[1, 3, 3, 0], [2, 2, 2, 2], [-1, -5, -3, -2]], np.float32))
    best, top, second = products.top_two(scores.copy())
    assert best.tolist() == [1, 0, 0]
    assert top.tolist() == [3, 2, -1]
    assert second.tolist() == [3, 2, -2]
    best, top, second = products.top_two(scores[:, :1].copy())
    assert best.tolist() == [0, 0, 0]
    assert second.tolist() == [-np.inf] * 3
    factors, halves = xp.asarray(np.array([1, 2, 4], np.float32)), xp.asarray(np.arange(4, dtype=np.float32))
    best, top, second = products.top_two(scores.copy(), factors, halves)
    assert best.tolist() == [1, 0, 0]
    assert top.tolist() == [2, 4, -4]
    assert second.tolist() == [1, 3, -11]


def test_the_precision_is_told_by_the_environment(monkeypatch):
    monkeypatch.setenv(products.VARIABLE, "float64")
    with pytest.raises(ValueError, match="DASKCURATE_PRECISION='float64' is not allowed: give auto, float32"):
        products.choose(np)
    monkeypatch.setenv(products.VARIABLE, "float16")
    with pytest.raises(ValueError, match="float16 is not for CPUs: give auto, float32 or bfloat16"):
        products.choose(np)
    monkeypatch.setenv(products.VARIABLE, "bfloat16")
    with pytest.raises(ValueError, match="bfloat16 is not for GPUs"):
        products.choose(None)
    monkeypatch.delenv(products.VARIABLE)
    assert products.choose(np) is None
    assert products.choose(None).name == "float16"


def test_a_scorer_travels_without_its_rounded_centroids():
    import cloudpickle

    centroids = np.random.default_rng(0).standard_normal((500, 40)).astype(np.float32)
    scorer = assign.Scorer(centroids, "l2", HalfOnHost())
    before = len(cloudpickle.dumps(scorer))
    assert scorer.coarse is not None
    assert len(cloudpickle.dumps(scorer)) == before


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize(("m", "d"), [(60, 5), (333, 40), (1300, 24)])
def test_the_most_similar_earlier_rows_are_those_of_brute_force(name, m, d, monkeypatch):
    rng = np.random.default_rng(m)
    x = rng.standard_normal((m, d)).astype(np.float32)
    x[m // 2 :: 3] = x[: len(x[m // 2 :: 3])] * np.float32(2)
    x[5::9] = x[4::9][: len(x[5::9])] + np.float32(1e-4)
    wide = x.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    exact = np.where(np.tri(m, k=-1, dtype=bool), np.minimum(wide @ wide.T, 1), -1).max(axis=1)
    for module in (similarity, blocks, tiles):
        monkeypatch.setattr(module, "choose", lambda xp: HOST[name])
    used = []
    plain = HOST[name].multiply
    monkeypatch.setattr(HOST[name], "multiply", lambda a, b: used.append(len(a)) or plain(a, b))
    found = similarity.earlier_within(x, tile=64)
    np.testing.assert_allclose(found.similarity, exact, atol=2e-7)
    assert used
    halves = [similarity.earlier_within(x[:64], tile=64)]
    parts = similarity.earlier_across(x[:64], 0, x[64:], 64, tile=64)
    halves.append(similarity.merge_earlier(parts, similarity.earlier_within(x[64:], 64, tile=64)))
    for whole, pieces in zip(found, zip(*halves, strict=True), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(pieces))  # however it was cut


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("eps", [1e-3, 0.05, 0.4])
def test_all_pairs_of_a_pool_are_found(name, eps, monkeypatch):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((900, 24)).astype(np.float32)
    x[1::2] = x[::2] + np.float32(0.05) * rng.standard_normal((450, 24)).astype(np.float32)
    labels = np.sort(rng.integers(0, 8, 900))
    number = np.arange(900)
    found = []
    for product in (None, HOST[name]):
        monkeypatch.setattr(pool_pairs, "choose", lambda xp, product=product: product)
        block = pool_pairs.PoolBlock.of(x, pool_pairs.row_norms(x), labels, number, number)
        centroids = np.stack([block.unit[labels == label].mean(axis=0) for label in range(8)])
        near = pool_matches.NearestEarlier(block, eps)
        pool_pairs.compare(
            block, block, pool_pairs.Bound.of(centroids, eps), eps, pool_matches.nearest_into(near, near)
        )
        found.append((near.similarity, near.number))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (found[0][1] >= 0).any()
