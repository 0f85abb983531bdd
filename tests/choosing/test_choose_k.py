"""What numbers of clusters give and cost, from a sample."""

import numpy as np
import pytest
from oracles import blobs, oracle
from typer.testing import CliRunner

import daskcurate as dc
from daskcurate import cli
from daskcurate.choosing import clusters as module


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_inertia_sizes_and_cost(pool, client, tmp_path, monkeypatch, metric):
    x = blobs(3, n=900, d=6, centres=7)
    emb = pool(x, normalize=False)
    centroids = {k: x[:k] for k in (3, 10)}
    if metric == "cosine":
        centroids = {k: c / np.linalg.norm(c, axis=1, keepdims=True) for k, c in centroids.items()}
    file = tmp_path / "fitted.npy"  # a task's own copy of a list would stay with it
    monkeypatch.setattr(module, "fit_sample", lambda rows, k, *_: np.save(file, rows) or centroids[k])
    found = dc.choose_k(
        emb, [10, 3, 3], sample_size=900, n_iters=10, fit_fraction=0.5, metric=metric, client=client
    )
    assert found.k == (3, 10)
    assert found.sample_size == 900
    held_out = ~_among(x, np.load(file), metric)
    assert held_out.sum() == 450
    for i, k in enumerate(found.k):
        square = oracle(x[held_out], centroids[k], metric)
        assert found.inertia[i] == pytest.approx(square.min(axis=1).mean(), rel=1e-4)
        counts = np.bincount(square.argmin(axis=1), minlength=k)
        m = counts.sum()
        share = (counts * (counts - 1)).sum() / (m * (m - 1))
        assert found.imbalance[i] == pytest.approx(k * share)
        assert found.largest[i] == counts.max() / m
        assert found.kmeans_flops[i] == 2 * 6 * 900 * k * 6
        assert found.dedup_flops[i] == pytest.approx(6 * 900 * 899 * share, abs=1)
    assert found.even_k == round(np.sqrt(900 / (2 * 6)))
    assert found.cheapest == found.k[int(np.argmin(found.total_flops))]
    assert found.kmeans_seconds[0] <= found.kmeans_seconds[1]


def _among(x, some, metric):
    """Whether each row of x is one of ``some`` (scaled for cosine)."""
    wide = x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x
    return (np.abs(wide[:, None] - some[None]).max(axis=2) < 1e-6).any(axis=1)


def test_the_formula_is_the_least_cost():
    """even_k against a search over all numbers, for clusters of one size."""
    n, passes = 10_000_000, 1 + 50 * 0.1
    k = np.arange(1, 20_000)
    cost = n * k * passes + n * n / (2 * k)
    assert k[cost.argmin()] == pytest.approx(np.sqrt(n / (2 * passes)), abs=1)


def test_defaults_lie_around_the_least_cost_and_repeat(pool, client):
    emb = pool(blobs(0, n=3000, d=4, centres=20))
    found = dc.choose_k(emb, sample_size=500, n_iters=5, client=client)
    assert found == dc.choose_k(emb, sample_size=500, n_iters=5, client=client)
    assert found.k[0] < found.even_k < found.k[-1]
    assert list(found.inertia) == sorted(found.inertia, reverse=True)
    assert found != dc.choose_k(emb, sample_size=500, n_iters=5, seed=1, client=client)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"n_clusters": []}, ValueError, r"n_clusters=\[\] is not allowed"),
        ({"n_clusters": 5}, TypeError, "n_clusters=5 is not allowed: give a list"),
        ({"n_clusters": [5, 0]}, ValueError, r"n_clusters\[1\]=0 is not allowed"),
        ({"n_clusters": [500]}, ValueError, "half of a sample of 600 rows fits at most 75 clusters"),
        ({"n_iters": 0}, ValueError, "n_iters=0 is not allowed"),
        ({"fit_fraction": 0}, ValueError, "fit_fraction=0 is not allowed"),
        ({"metric": "ip"}, ValueError, "metric='ip' is not allowed"),
    ],
)
def test_what_is_not_allowed(pool, given, error, message):
    with pytest.raises(error, match=message):
        dc.choose_k(pool(blobs(0)), **given)


def test_a_pool_that_is_too_small(pool):
    with pytest.raises(ValueError, match="a pool of 3 rows is too small"):
        dc.choose_k(pool(np.eye(3)))


def test_the_command(pool, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["choose-k", pool(blobs(0)).path, "--metric", "l2", "--scheduler", cluster.scheduler_address]
    found = CliRunner().invoke(cli.app, [*words, "--clusters", "2,8,30"])
    assert found.exit_code == 0, found.output
    assert "From 600 of 600 rows" in found.output
    assert (tmp_path / "choose-k" / "index.html").read_text().count("<svg") == 3
    found = CliRunner().invoke(cli.app, [*words, "--clusters", "2,x"])
    assert "give whole numbers with commas" in str(found.exception)
