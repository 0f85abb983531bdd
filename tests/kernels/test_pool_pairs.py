"""Similar pairs across clusters, against float64 brute force over all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskcurate.arrays import to_host
from daskcurate.kernels import pool_matches, pool_pairs
from daskcurate.kernels.pool_matches import (
    NearestEarlier,
    PairEdges,
    connected_edges,
    greedy_edges,
    join_edges,
    kept_into,
    nearest_into,
    pair_similarity,
)
from daskcurate.kernels.pool_pairs import Bound, PoolBlock, compare, row_norms, sketch_basis, threshold

EPS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.7, 2)


def similarities(x):
    """(m, m) float32, from float64."""
    x = x.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.minimum((x[:, None] * x).sum(axis=2), 1).astype(np.float32)


def make_block(xp, x, labels, ranks, rows, basis=None):
    """The given rows of a pool, sorted as a block has to be."""
    rows = rows[np.lexsort((ranks[rows], labels[rows]))]
    raw = xp.asarray(x[rows])
    return PoolBlock.of(raw, row_norms(raw), labels[rows], ranks[rows], rows, basis)


def cut_rows(labels, parts, rng):
    """Rows by cluster in a few blocks: neighbouring clusters together, and some clusters cut."""
    order = np.argsort(labels, kind="stable")
    edges = np.sort(rng.integers(0, len(order) + 1, parts - 1))
    return [rows for rows in np.split(order, edges) if len(rows)]


def nearest_of(xp, x, labels, ranks, centroids, eps, parts=3, seed=0, sketched=False):
    """What the stage does: every pair of blocks once. Returns similarity, match and the pairs compared."""
    rng = np.random.default_rng(seed)
    basis = sketch_basis(xp.asarray(x)) if sketched else None
    blocks = [make_block(xp, x, labels, ranks, rows, basis) for rows in cut_rows(labels, parts, rng)]
    bound = None if centroids is None else Bound.of(xp.asarray(centroids), eps)
    found = [NearestEarlier(block, eps) for block in blocks]
    pairs = 0
    for a in range(len(blocks)):
        for b in range(a, len(blocks)):
            pairs += compare(blocks[a], blocks[b], bound, eps, nearest_into(found[a], found[b]))
    similarity, match = np.full(len(x), np.nan, np.float32), np.full(len(x), -7)
    for block, best in zip(blocks, found, strict=True):
        similarity[block.numbers], match[block.numbers] = best.similarity, best.number
    return similarity, match, pairs


def expected(x, ranks, eps):
    """Brute force: the earliest of the most similar earlier rows above the threshold."""
    s = similarities(x)
    allowed = (ranks[None, :] < ranks[:, None]) & (s > np.float32(1 - eps))
    best = np.where(allowed, s, -2).max(axis=1)
    tied = allowed & (s == best[:, None])
    match = np.where(tied, ranks[None, :], len(x)).argmin(axis=1)
    return np.where(best > -2, best, -1), np.where(best > -2, match, -1)


def check(found, x, ranks, eps):
    similarity, match, _ = found
    s, limit = similarities(x), np.float32(1 - eps)
    wanted, best = expected(x, ranks, eps)
    clear = np.abs(np.where(ranks[None, :] < ranks[:, None], s, -9) - limit).min(axis=1) > 3e-7
    assert (match >= 0)[clear].tolist() == (best >= 0)[clear].tolist()  # no pair lost, none too many
    some = (match >= 0) & (best >= 0)
    np.testing.assert_allclose(similarity[some], wanted[some], rtol=0, atol=1.3e-7)
    np.testing.assert_array_max_ulp(similarity[some], s[some, match[some]], 1)
    assert (ranks[match[some]] < ranks[some]).all()
    assert (similarity[match < 0] == -1).all()
    # two ways of summing may round a tie to neighbouring values; beyond that it is the earliest row
    near = (s[some] >= wanted[some, None] - 1.3e-7) & (ranks[None, :] < ranks[some, None])
    assert near[np.arange(some.sum()), match[some]].all()
    alone = near.sum(axis=1) == 1
    assert match[some][alone].tolist() == best[some][alone].tolist()


def pool_of(seed, n, d, k, *, nearest, dtype=np.float32, copies=0.2):
    rng = np.random.default_rng(seed)
    centroids = rng.standard_normal((k, d)).astype(np.float32)
    x = centroids[rng.integers(0, k, n)] + 0.4 * rng.standard_normal((n, d))
    some = rng.random(n) < copies
    x[some] = x[rng.integers(0, max(1, n // 4), n)][some]
    x = (x * rng.uniform(0.2, 5, (n, 1))).astype(dtype)
    x[np.asarray(some) & (rng.random(n) < 0.5)] = x[0]
    labels = rng.integers(0, k, n)
    if nearest:
        unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        labels = ((unit[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    return x, labels.astype(np.int32), rng.permutation(n), centroids


@given(
    st.integers(0, 2**32), st.integers(1, 90), st.sampled_from([1, 2, 3, 9, 64]), st.integers(1, 9),
    st.sampled_from(EPS), st.booleans(), st.booleans(), st.integers(1, 4),
)  # fmt: skip
@settings(deadline=None, max_examples=120)
def test_every_pair_is_found_whatever_labels_and_centroids(xp, seed, n, d, k, eps, nearest, half, parts):
    x, labels, ranks, centroids = pool_of(
        seed, n, d, k, nearest=nearest, dtype=np.float16 if half else np.float32
    )
    check(nearest_of(xp, x, labels, ranks, centroids, eps, parts, seed, sketched=True), x, ranks, eps)


@pytest.mark.parametrize("eps", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("scale", [0.3, 1, 40])
def test_the_bound_brute_force_and_any_blocks_give_the_same_bits(eps, scale):
    x, labels, ranks, centroids = pool_of(1, 700, 64, 12, nearest=True)
    centroids = centroids / np.linalg.norm(centroids, axis=1, keepdims=True) * np.float32(scale)
    plain = nearest_of(np, x, labels, ranks, None, eps, 1)
    check(plain, x, ranks, eps)
    assert plain[2] == 700 * 699 // 2
    for parts, sketched in ((1, False), (1, True), (5, False), (5, True)):
        found = nearest_of(np, x, labels, ranks, centroids, eps, parts, parts, sketched)
        for a, b in zip(found[:2], plain[:2], strict=True):
            np.testing.assert_array_equal(a, b)
    if eps == 0.01:
        assert found[2] < plain[2] / 2


@pytest.mark.parametrize("eps", [0.01, 0.05, 0.2])
def test_rows_on_the_planes_between_centroids(eps):
    rng = np.random.default_rng(3)
    centroids = rng.standard_normal((6, 16)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    a, b = rng.integers(0, 6, (2, 300))
    middle = centroids[a] + centroids[b] + 0.01 * rng.standard_normal((300, 16))
    x = np.concatenate([middle, middle + 1e-3 * rng.standard_normal((300, 16))]).astype(np.float32)
    labels = np.concatenate([a, b]).astype(np.int32)  # the near copy is on the other side
    ranks = rng.permutation(600)
    found = nearest_of(np, x, labels, ranks, centroids, eps, 3, sketched=True)
    check(found, x, ranks, eps)
    assert (found[1] >= 0).sum() >= 300


@pytest.mark.parametrize(
    "centroids",
    [
        np.ones((5, 8)),
        np.zeros((5, 8)),
        np.eye(5, 8)[[0, 0, 1, 1, 2]],
        1e-9 * np.eye(5, 8),
        np.eye(5, 8) * 1e4,
    ],
    ids=["all the same", "zero", "pairs", "tiny", "huge"],
)
def test_odd_centroids(centroids):
    x, labels, ranks, _ = pool_of(7, 120, 8, 5, nearest=False)
    check(nearest_of(np, x, labels, ranks, centroids.astype(np.float32), 0.05), x, ranks, 0.05)


def test_the_largest_possible_distance_is_asked_for():
    """Two rows at just under delta, as far from the plane as the bound allows."""
    for eps in (0.01, 0.05, 0.3):
        angle = np.arccos(1 - eps + 1e-6) / 2
        x = np.array([[np.sin(angle), np.cos(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
        found = nearest_of(np, x, np.array([0, 1]), np.array([0, 1]), np.array([[1, 0], [-1, 0.0]]), eps)
        assert found[1].tolist() == [-1, 0]
        wide = np.arccos(1 - eps - 1e-3) / 2
        y = np.array([[np.sin(wide), np.cos(wide)], [-np.sin(wide), np.cos(wide)]], np.float32)
        found = nearest_of(np, y, np.array([0, 1]), np.array([0, 1]), np.array([[1, 0], [-1, 0.0]]), eps)
        assert found[1].tolist() == [-1, -1]


def test_many_ties_go_to_the_earliest_and_nothing_nearer_is_lost():
    """Near-ties closer together than float32 products can tell apart."""
    rng = np.random.default_rng(0)
    rest = rng.standard_normal((399, 299))
    rest *= np.sqrt(1 - 0.81) / np.linalg.norm(rest, axis=1, keepdims=True)
    near = 0.9 + 3e-7 * rng.standard_normal((399, 1))
    x = np.block([[near, rest], [np.ones((1, 1)), np.zeros((1, 299))]])
    x = (x @ np.linalg.qr(rng.standard_normal((300, 300)))[0]).astype(np.float32)
    x = np.concatenate([x[:1], x])  # and one exact copy
    ranks = np.arange(401)
    labels = rng.integers(0, 4, 401).astype(np.int32)
    similarity, match, _ = nearest_of(np, x, labels, ranks, x[::101], 0.2, 3, sketched=True)
    wanted, best = expected(x, ranks, 0.2)
    assert similarity[-1] == pytest.approx(wanted[-1], abs=7e-8)
    assert match[-1] == best[-1]
    assert (similarity[1], match[1]) == (1, 0)


def test_copies_are_matched_with_the_first_in_the_order():
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 12, 500)
    x = rng.standard_normal((12, 64)).astype(np.float16)[groups]
    ranks, labels = rng.permutation(500), rng.integers(0, 7, 500).astype(np.int32)
    similarity, match, _ = nearest_of(np, x, labels, ranks, rng.standard_normal((7, 64)), 0.01, sketched=True)
    first = np.array([min(np.flatnonzero(groups == g), key=lambda i: ranks[i]) for g in groups])
    repeats = first != np.arange(500)
    assert (similarity[repeats] == 1).all()
    assert match[repeats].tolist() == first[repeats].tolist()
    assert (match[~repeats] == -1).all()


def test_rows_of_extreme_length_are_compared_as_unit_vectors():
    x, labels, ranks, centroids = pool_of(11, 60, 64, 4, nearest=True)
    scaled = x * np.repeat(np.float32([1e-41, 1e36, 1]), 20)[:, None]
    found = nearest_of(np, scaled, labels, ranks, centroids, 0.05, sketched=True)
    check(found, scaled, ranks, 0.05)
    assert (found[1] >= 0).sum() > 5


def test_single_rows_empty_clusters_and_no_rows(xp):
    x = np.array([[1, 0], [1, 0.01], [-1, 0]], np.float32)
    labels, ranks = np.array([1, 8, 5], np.int32), np.array([2, 0, 1])
    centroids = np.random.default_rng(0).standard_normal((9, 2))
    assert nearest_of(xp, x, labels, ranks, centroids, 0.05, 3)[1].tolist() == [1, -1, -1]
    block = make_block(xp, x, labels, ranks, np.arange(3))
    none = block.take(np.zeros(3, bool))
    assert len(none) == 0
    bound = Bound.of(xp.asarray(centroids), 0.1)
    for p, q in ((none, none), (none, block), (block, none)):
        assert compare(p, q, bound, 0.1, None) == compare(p, q, None, 0.1, None) == 0
    assert compare(block, block, bound, 0, None) == 0  # nothing is more similar than 1


@pytest.mark.parametrize(("tile_pairs", "ask", "mask"), [(64, 8, 16), (1 << 20, 2048, 1)])
def test_tiles_do_not_matter(monkeypatch, tile_pairs, ask, mask):
    x, labels, ranks, centroids = pool_of(4, 300, 64, 6, nearest=True)
    wanted = nearest_of(np, x, labels, ranks, centroids, 0.1, sketched=True)
    monkeypatch.setattr(pool_pairs, "TILE_PAIRS", tile_pairs)
    monkeypatch.setattr(pool_pairs, "TILE", 8)
    monkeypatch.setattr(pool_pairs, "_ASK_ROWS", ask)
    monkeypatch.setattr(pool_pairs, "_MASK_BYTES", mask)
    monkeypatch.setattr(pool_pairs, "_TRIAL", 0)  # sketches given up where they do not help
    found = nearest_of(np, x, labels, ranks, centroids, 0.1, sketched=True)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_sketches_are_never_below_the_similarity():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((300, 128)) * np.linspace(0.01, 2, 128)
    x[150:] = x[:150] + 1e-3 * rng.standard_normal((150, 128))
    x = x.astype(np.float32)
    basis = sketch_basis(x)
    assert basis.shape == (128, 31)
    block = make_block(np, x, np.zeros(300, np.int32), np.arange(300), np.arange(300), basis)
    assert (block.sketch @ block.sketch.T > similarities(x) - 2e-5).all()
    low = rng.standard_normal((50, 4)) @ rng.standard_normal((4, 128))  # nothing outside the basis
    block = make_block(np, low.astype(np.float32), *[np.arange(50)] * 3, sketch_basis(low))
    np.testing.assert_allclose(block.sketch @ block.sketch.T, similarities(low), atol=1e-5)
    assert sketch_basis(x[:, :63]) is None


def test_pairs_computed_together_have_the_bits_of_single_ones(xp):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((300, 200)).astype(np.float32)
    x[200:] = x[:100]
    block = make_block(xp, x, np.zeros(300, np.int32), np.arange(300), np.arange(300))
    i, j = (part.ravel() for part in np.indices((300, 300)))
    together = pair_similarity(block, i, block, j)
    one = np.concatenate(
        [pair_similarity(block, i[at : at + 1], block, j[at : at + 1]) for at in range(0, 90_000, 37)]
    )
    np.testing.assert_array_equal(together[::37], one)
    assert (together.reshape(300, 300)[200:, :100].diagonal() == 1).all()


def all_edges(x, labels, ranks, centroids, eps, forest=False, **settings):
    rng = np.random.default_rng(0)
    blocks = [make_block(np, x, labels, ranks, rows) for rows in cut_rows(labels, 3, rng)]
    bound, parts = Bound.of(centroids, eps), []
    for a in range(len(blocks)):
        for b in range(a, len(blocks)):
            rows = len(blocks[a]) + len(blocks[b])
            sink = PairEdges(eps, forest_rows=rows if forest else None, n_rows=len(x), **settings)
            compare(blocks[a], blocks[b], bound, eps, sink.take)
            parts.append(sink)
    return parts


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_and_connected_by_edges(eps, seed):
    x, labels, ranks, centroids = pool_of(seed, 250, 5, 6, nearest=seed % 2 == 0)
    s = similarities(x)[np.argsort(ranks)][:, np.argsort(ranks)]  # in order
    s[np.abs(s - np.float32(1 - eps)) < 3e-7] = -1  # too close to call
    kept = np.ones(250, bool)
    for j in range(250):
        kept[j] = not (s[j, :j][kept[:j]] > threshold(eps)).any()
    found = greedy_edges(join_edges([sink.edges() for sink in all_edges(x, labels, ranks, centroids, eps)]))
    assert np.flatnonzero(~kept).tolist() == found.ranks[found.match >= 0].tolist()
    for row, similarity, match in zip(*(values[found.match >= 0] for values in found), strict=True):
        assert kept[match]
        assert match < row
        assert similarity == pytest.approx(s[row, :row][kept[:row]].max(), abs=1.3e-7)
    forests = all_edges(x, labels, ranks, centroids, eps, forest=True)
    linked = connected_edges(join_edges([sink.edges() for sink in forests]))
    component = np.arange(250)
    for _ in range(250):
        component = (
            np.where(s > threshold(eps), component[None, :], 250).min(axis=1, initial=250).clip(max=component)
        )
    first = component == np.arange(250)
    assert np.flatnonzero(~first).tolist() == linked.ranks[linked.match >= 0].tolist()


def test_edges_are_dropped_above_a_number_but_counted():
    x, labels, ranks, centroids = pool_of(1, 200, 4, 3, nearest=True)
    few = all_edges(x, labels, ranks, centroids, 0.1, most=10, bins=20)
    all_of = all_edges(x, labels, ranks, centroids, 0.1, bins=20)
    assert [sink.counts.tolist() for sink in few] == [sink.counts.tolist() for sink in all_of]
    assert any(sink.edges() is None for sink in few)
    for sink in all_of:
        later = np.concatenate([sink.edges().j])
        assert (np.bincount(later // 10, minlength=20) <= sink.counts).all()


def test_only_kept_rows_remove():
    x = np.tile(np.array([[1.0, 0.0]], np.float32), (6, 1))
    block = make_block(np, x, np.zeros(6, np.int32), np.arange(6), np.arange(6))
    kept = block.take(np.array([0, 0, 1, 0, 0, 0], bool))
    near = NearestEarlier(block.take(np.array([1, 1, 0, 1, 1, 1], bool)), 0.1)
    compare(kept, near.block, None, 0.1, kept_into(near))
    assert near.number.tolist() == [-1, -1, 2, 2, 2]
    swapped = NearestEarlier(near.block, 0.1)
    compare(near.block, kept, None, 0.1, kept_into(swapped))
    assert to_host(swapped.number).tolist() == near.number.tolist()


def test_the_share_of_pairs_from_a_sample_is_that_of_the_whole():
    x, labels, ranks, centroids = pool_of(9, 600, 16, 12, nearest=True, copies=0)
    block = make_block(np, x, labels, ranks, np.arange(600))
    bound = Bound.of(centroids, 0.02)
    sizes = np.bincount(labels, minlength=12)
    pairs = compare(block, block, bound, 0.02, nearest_into(*[NearestEarlier(block, 0.02)] * 2))
    assert bound.pairs_of_sample(block, sizes) * 600 == pytest.approx(pairs)
    assert pairs < 600 * 599 // 2


def test_a_forest_measures_few_of_very_many_edges_and_links_the_same_rows(monkeypatch):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((1500, 12)) + 3 * rng.standard_normal((5, 12))[rng.integers(0, 5, 1500)]
    x[1400:] = x[:100]
    block = make_block(
        np, x.astype(np.float32), np.zeros(1500, np.int32), rng.permutation(1500), np.arange(1500)
    )
    every, some = PairEdges(0.9, n_rows=1500), PairEdges(0.9, forest_rows=1500)
    compare(block, block, None, 0.9, every.take)
    measured = []
    plain = pool_matches.pair_similarity
    monkeypatch.setattr(
        pool_matches, "pair_similarity", lambda x, i, *more: measured.append(len(i)) or plain(x, i, *more)
    )
    monkeypatch.setattr("daskcurate.kernels.forests.TILE", 64)
    compare(block, block, None, 0.9, some.take)
    assert 100_000 < len(every.edges().i)
    assert sum(measured) < 0.4 * len(every.edges().i)
    for one, other in zip(connected_edges(some.edges()), connected_edges(every.edges()), strict=True):
        np.testing.assert_array_equal(one, other)
