"""Probes against all rows of their clusters, and what is estimated from a sample.

The estimates take counts of the host alone, one number a cluster or a threshold.
"""

import numpy as np
import pytest

from daskcurate.arrays import to_host
from daskcurate.kernels import probing
from daskcurate.kernels.probing import Ordered, match_probes, same_cluster_chance, wilson
from daskcurate.kernels.similarity import EarlierMatch, merge_earlier


def brute(probes, block):
    """Similarity of each probe to its most similar earlier row, in float64, and the rows that attain it."""
    similarity, matches = [], []
    for i, row in enumerate(probes.rows.astype(np.float64)):
        before = (block.keys < probes.keys[i]) | (
            (block.keys == probes.keys[i]) & (block.numbers < probes.numbers[i])
        )
        earlier = np.flatnonzero((block.labels == probes.labels[i]) & before)
        others = block.rows[earlier].astype(np.float64)
        cos = others @ row / np.linalg.norm(others, axis=1) / np.linalg.norm(row)
        best = cos.max(initial=-1)
        similarity.append(best)
        matches.append(set(block.numbers[earlier[cos > best - 1e-7]]) or {-1})
    return np.array(similarity), matches


def ordered(numbers, x, labels, keys):
    return Ordered(x[numbers], numbers, labels[numbers], keys[numbers])


def on(xp, rows):
    return Ordered(*map(xp.asarray, rows))


@pytest.mark.parametrize("tile", [3, 1024])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("seed", range(4))
def test_probes_find_their_match_whatever_the_blocks(xp, monkeypatch, seed, dtype, tile):
    monkeypatch.setattr(probing, "TILE", tile)
    rng = np.random.default_rng(seed)
    n = 150
    x = rng.standard_normal((n, 6)).astype(dtype)
    x[60:80] = x[:20]  # copies
    labels = rng.integers(0, 7, n).astype(np.int32)
    labels[labels == 5] = 6  # an empty cluster
    labels[60:80] = labels[:20]
    keys = np.round(rng.random(n), 1)  # many ties
    whole = ordered(np.arange(n), x, labels, keys)
    probes = ordered(np.sort(rng.choice(n, 40, replace=False)), x, labels, keys)
    expected, matches = brute(probes, whole)
    for edges in ([0, n], [0, 1, 50, 51, n]):
        found = None
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            part = match_probes(on(xp, probes), on(xp, ordered(np.arange(start, stop), x, labels, keys)))
            found = part if found is None else merge_earlier(found, part)
        found = EarlierMatch(*map(to_host, found))
        np.testing.assert_allclose(found.similarity, expected, atol=1e-6)
        assert all(one in some for one, some in zip(found.position, matches, strict=True))
    copies = np.isin(probes.numbers, np.arange(60, 80)) & (keys[probes.numbers] >= keys[probes.numbers - 60])
    assert (found.similarity[copies] == 1).all()


def test_no_probe_and_no_row(xp):
    rng = np.random.default_rng(0)
    x, labels, keys = rng.random((9, 3), np.float32), np.zeros(9, np.int32), np.zeros(9)
    none, some = (on(xp, ordered(np.arange(m), x, labels, keys)) for m in (0, 9))
    assert len(match_probes(none, some).similarity) == 0
    assert (to_host(match_probes(some, none).position) == -1).all()


def test_the_chance_of_one_cluster_is_unbiased():
    rng = np.random.default_rng(0)
    labels = rng.choice(5, 400, p=[0.5, 0.2, 0.2, 0.05, 0.05])
    sizes = np.bincount(labels)
    true = (sizes * (sizes - 1)).sum() / (400 * 399)
    found = [
        same_cluster_chance(np.bincount(rng.choice(labels, 30, replace=False), minlength=5))
        for _ in range(4000)
    ]
    assert np.mean(found) == pytest.approx(true, abs=4 * np.std(found) / np.sqrt(4000))
    assert same_cluster_chance(sizes) == pytest.approx(true)
    assert same_cluster_chance(np.array([1])) == 1


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97])
def test_intervals_hold_what_they_promise(kept):
    rng = np.random.default_rng(0)
    rows, sampled = 1000, 300
    good = int(kept * rows)
    drawn = rng.hypergeometric(good, rows - good, sampled, 4000)
    low, high = wilson(drawn, sampled, rows)
    covered = ((low <= kept) & (kept <= high)).mean()
    assert 0.9 < covered < 0.99  # counts are whole numbers: Wilson intervals swing around 95 %
    wide = wilson(drawn, sampled, 10**9)
    assert ((wide[1] - wide[0]) > (high - low)).all()


def test_a_sample_of_everything_is_certain():
    low, high = wilson(np.array([0, 30, 100]), 100, 100)
    assert low.tolist() == high.tolist() == [0, 0.3, 1]
