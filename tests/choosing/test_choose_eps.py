"""What an eps would keep, from a sample, against the dedup itself."""

import numpy as np
import pytest
from typer.testing import CliRunner

import daskcurate as dc
from daskcurate import cli
from daskcurate.choosing import eps as module
from daskcurate.samples import read_rows

EPS = (0.001, 0.01, 0.05, 0.2)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 10))[rng.integers(0, 12, 700)] + 0.3 * rng.standard_normal((700, 10))
    x[500:650] = x[:150] + 0.02 * rng.standard_normal((150, 10))
    x[650:] = x[50:100]
    return x.astype(np.float32)


@pytest.mark.parametrize(
    ("metric", "keep", "dtype"),
    [("cosine", "hard", "float32"), ("l2", "easy", "float32"), ("cosine", "random", "float16")],
)
def test_a_sample_of_all_rows_is_the_dedup(pool, client, tmp_path, rows, monkeypatch, metric, keep, dtype):
    emb = pool(rows, normalize=metric == "cosine", dtype=dtype)
    flat = dc.kmeans(emb, n_clusters=9, metric=metric, n_iters=4)
    dedup = dc.semantic_dedup(emb, flat, eps=0.1, keep=keep, seed=3)
    flat, dedup = dc.compute(flat, dedup, store=tmp_path / "run.zarr", client=client)
    monkeypatch.setattr(module, "fit_sample", lambda *_: flat.centroids)
    found = dc.choose_eps(
        emb, EPS, sample_size=10**6, n_clusters=9, keep=keep, metric=metric, seed=3, client=client
    )
    assert found.sample_size == len(emb)
    assert np.array_equal(found.rows, np.arange(len(emb)))
    np.testing.assert_allclose(found.similarity, np.asarray(dedup.max_similarity), atol=1e-7)
    assert found.kept == found.low == found.high
    for eps, kept in zip(EPS, found.kept, strict=True):
        assert kept * len(emb) == pytest.approx(len(dedup.at(eps)))
    assert found.pairs == dedup.attributes["pairs"]


def test_samples_are_unbiased(pool, client, rows, monkeypatch):
    emb = pool(rows, normalize=True)
    centroids = rows[:8] / np.linalg.norm(rows[:8], axis=1, keepdims=True)
    monkeypatch.setattr(module, "fit_sample", lambda *_: centroids)
    whole = dc.choose_eps(emb, EPS, sample_size=700, n_clusters=8, client=client)
    some = [
        dc.choose_eps(emb, EPS, sample_size=70, n_clusters=8, seed=seed, client=client) for seed in range(20)
    ]
    for i in range(len(EPS)):
        kept = np.array([one.kept[i] for one in some])
        assert abs(kept.mean() - whole.kept[i]) < 4 * max(kept.std(), 0.01) / np.sqrt(20)
    covered = np.mean([[one.low[i] <= whole.kept[i] <= one.high[i] for i in range(len(EPS))] for one in some])
    assert covered > 0.85
    naive = np.mean([pairs_in_sample(rows[one.rows], centroids) for one in some])
    assert naive > whole.kept[1] + 0.1  # what comparing the sample's rows with each other would say


def pairs_in_sample(x, centroids):
    """Fraction that dedup would keep of a sample on its own, at eps 0.01."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    same = (x @ centroids.T).argmax(1)
    similar = (x @ x.T > 0.99) & (same[:, None] == same[None])
    return 1 - np.tril(similar, -1).any(axis=1).mean()


def test_other_thresholds_and_examples(pool, client, rows):
    emb = pool(rows, normalize=True)
    found = dc.choose_eps(emb, [0.01], sample_size=300, n_clusters=9, client=client)
    again = dc.choose_eps(emb, [0.01], sample_size=300, n_clusters=9, client=client)
    assert found == again
    assert np.array_equal(found.similarity, again.similarity)
    assert found.at(0.01) == (found.kept[0], found.low[0], found.high[0])
    kept = [found.at(eps)[0] for eps in (0, 0.01, 0.1, 2)]
    assert kept == sorted(kept, reverse=True)
    dropped, below = found.border(0.01, 3)
    limit = np.float32(0.99)
    assert len(dropped) == len(below) == 3
    assert (found.similarity[dropped] > limit).all()
    assert (found.similarity[below] <= limit).all()
    rest = found.similarity[(found.similarity > limit)]
    assert found.similarity[dropped[0]] == rest.min()
    x = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for place in (*dropped, *below):
        assert x[found.rows[place]] @ x[found.match[place]] == pytest.approx(
            found.similarity[place], abs=1e-6
        )


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"eps": []}, ValueError, r"eps=\[\] is not allowed"),
        ({"eps": 0.1}, TypeError, "eps=0.1 is not allowed: give a list"),
        ({"eps": [0.1, 3]}, ValueError, r"eps\[1\]=3 is not allowed"),
        ({"sample_size": 1}, ValueError, "sample_size=1 is not allowed"),
        ({"n_clusters": 701}, ValueError, "n_clusters=701 is not allowed"),
        ({"keep": "best"}, ValueError, "keep='best' is not allowed"),
        ({"metric": "ip"}, ValueError, "metric='ip' is not allowed"),
        ({"client": 3}, TypeError, "client=3 is not allowed"),
    ],
)
def test_what_is_not_allowed(pool, rows, given, error, message):
    with pytest.raises(error, match=message):
        dc.choose_eps(pool(rows, normalize=True), **{"eps": [0.1], **given})


def test_more_clusters_than_a_sample_in_memory_can_fit(pool, rows, monkeypatch):
    monkeypatch.setattr("daskcurate.choosing.fitting.SAMPLE_BYTES", 40 * 100)
    with pytest.raises(
        ValueError, match="a sample of at most .* has 100 rows of width 10; give at most 25 clusters"
    ):
        dc.choose_eps(pool(rows, normalize=True), n_clusters=26)


def test_the_command(pool, rows, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    emb = pool(rows, normalize=True)
    words = [
        "choose-eps",
        emb.path,
        "--sample",
        "200",
        "--clusters",
        "9",
        "--scheduler",
        cluster.scheduler_address,
    ]
    found = CliRunner().invoke(cli.app, [*words, "--eps", "0.02,0.1"])
    assert found.exit_code == 0, found.output
    assert "From 200 of 700 rows" in found.output
    page = (tmp_path / "choose-eps" / "index.html").read_text()
    assert "eps 0.02: rows next to the threshold 0.98" in page
    assert page.count("<svg") == 1
    found = CliRunner().invoke(cli.app, [*words, "--eps", "0.02;0.1"])
    assert "give numbers with commas" in str(found.exception)
    (tmp_path / "texts.txt").write_text("too few\n")
    found = CliRunner().invoke(cli.app, [*words, "--texts", "texts.txt"])
    assert "has 1 entries, but the pool has 700 rows" in str(found.exception)


def test_workers_with_too_little_memory_are_refused(pool, rows, client, monkeypatch):
    emb = pool(rows, normalize=True)
    monkeypatch.setattr(
        "daskcurate.worker_limits.LATER_BYTES", 3 << 30
    )  # the workers are threads of this process
    for call in (dc.choose_eps, dc.choose_k):
        with pytest.raises(dc.PlanError, match=r"choose_.* needs \d+ bytes .* which is 2147483648 bytes"):
            call(emb, client=client)


def test_the_sample_is_read_alike_in_pieces_and_whole(pool, rows):
    emb = pool(rows)
    for wanted in (np.arange(700), np.array([0, 3, 699]), np.array([5]), np.empty(0, np.int64)):
        assert np.array_equal(read_rows(emb, wanted), rows[wanted])
