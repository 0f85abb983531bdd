import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daskcurate.arrays import namespace_of, to_host
from daskcurate.kernels import tiles
from daskcurate.kernels.blocks import prepare
from daskcurate.kernels.similarity import (
    TILE,
    EarlierMatch,
    Edges,
    connected_matches,
    earlier_across,
    earlier_within,
    edges_across,
    edges_within,
    greedy_within,
    is_duplicate,
    match_clusters,
    merge_earlier,
    merge_forests,
)

# Cosines of short rows of small whole numbers are equal or far apart, so ties are real and can be checked.
EPS = st.sampled_from([0, 1e-6, 0.05, 1 - np.sqrt(0.5), 0.3, 0.5, 1, 1.5, 2])


@st.composite
def grid_rows(draw, max_rows=40):
    m, d = draw(st.integers(0, max_rows)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.integers(-1, 2, (m, d)).astype(draw(st.sampled_from([np.float32, np.float16])))
    x[~x.any(axis=1), 0] = 1
    return x * x.dtype.type(draw(st.sampled_from([1, 0.5, 16])))


TILES = st.sampled_from([1, 3, 8, TILE])


def gaussians(m, d, seed=0, copies=True):
    """Rows with many exact copies and many near ones among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((m, d)).astype(np.float32)
    if copies and m:
        x[rng.random(m) < 0.4] = x[m // 2]
        near = rng.random(m) < 0.3
        x[near] = x[rng.integers(0, m, near.sum())] + 1e-3 * x[near]
    return x


def similarities(x):
    """Float64 brute force; float32 (m, m)."""
    x = x.astype(np.float64)
    norm = np.sqrt((x * x).sum(axis=1))
    return np.minimum((x[:, None] * x).sum(axis=2) / np.outer(norm, norm), 1).astype(np.float32)


def best_earlier(s, counted=None):
    """Brute force over a matrix of similarities: the first of the best among earlier (counted) rows."""
    m = len(s)
    counted = np.ones(m, bool) if counted is None else counted
    allowed = np.tri(m, k=-1, dtype=bool) & counted
    best = np.where(allowed, s, -2).max(axis=1, initial=-2)
    position = np.argmax(allowed & (s >= best[:, None] - 1e-6), axis=1) if m else np.empty(0, int)
    found = allowed.any(axis=1)
    return np.where(found, best, -1), np.where(found, position, -1)


def host(match):
    return EarlierMatch(*map(to_host, match))


def check(match, expected):
    similarity, position = host(match)
    assert similarity.dtype == np.float32
    assert position.dtype == np.int64
    np.testing.assert_allclose(similarity, expected[0], rtol=0, atol=1.3e-7)
    assert position.tolist() == expected[1].tolist()


def same(a, b):
    for left, right in zip(host(a), host(b), strict=True):
        np.testing.assert_array_equal(left, right)


def blocks(m, cuts, tile):
    """Cut m rows at the multiples of the tile that are in ``cuts``."""
    edges = sorted({0, m, *(c * tile for c in cuts if c * tile < m)})
    return list(zip(edges[:-1], edges[1:], strict=True))


# The published rule.


@given(grid_rows(), TILES)
@settings(deadline=None)
def test_earlier_matches_brute_force(xp, x, tile):
    check(earlier_within(xp.asarray(x), tile=tile), best_earlier(similarities(x)))


@given(grid_rows(), TILES, st.sets(st.integers(1, 12)))
@settings(deadline=None)
def test_across_and_within_merge_to_the_whole(xp, x, tile, cuts):
    found = by_blocks(xp.asarray(x), blocks(len(x), cuts, tile), tile)
    check(found, best_earlier(similarities(x)))


def by_blocks(x, spans, tile=TILE):
    """What a stage does: each block within itself, then with each earlier one."""
    parts = [earlier_within(x[:0])]
    for b, (lo, hi) in enumerate(spans):
        part = earlier_within(x[lo:hi], lo, tile=tile)
        for first, last in spans[:b]:
            part = merge_earlier(earlier_across(x[first:last], first, x[lo:hi], lo, tile=tile), part)
        parts.append(part)
    return EarlierMatch(*(namespace_of(x).concatenate(field) for field in zip(*parts, strict=True)))


@given(st.integers(0, 70), st.integers(1, 50), st.sets(st.integers(1, 20)), st.integers(0, 99), st.booleans())
@settings(deadline=None)
def test_any_division_gives_the_same_bits(m, d, cuts, seed, half):
    x = gaussians(m, d, seed).astype(np.float16 if half else np.float32)
    same(by_blocks(x, blocks(m, cuts, 8), 8), earlier_within(x, tile=8))


@pytest.mark.parametrize("m", [TILE - 1, TILE, TILE + 1, 2 * TILE + 300])
def test_sizes_around_the_tile(xp, m):
    x = xp.asarray(gaussians(m, 24))
    whole = earlier_within(x, tile=TILE)
    same(by_blocks(x, blocks(m, [1, 2], TILE)), whole)
    similarity, position = host(whole)
    expected, _ = best_earlier(similarities_of_many(to_host(x)))
    np.testing.assert_allclose(similarity, expected, rtol=0, atol=3e-7)
    assert (position[1:] >= 0).all()
    assert (position < np.arange(m)).all()


@pytest.mark.parametrize("seed", range(4))
def test_one_tile_of_a_device_agrees_with_brute_force(xp, seed, monkeypatch):
    rows = np.random.default_rng(seed).standard_normal((300, 24)).astype(np.float32)
    rows[200:] = rows[:100] + np.float32(0.01) * rows[100:200]
    if xp is not np:  # the rows of a tile among themselves as well are compared in low precision first
        monkeypatch.setattr(tiles.Scores, "__call__", lambda *_: pytest.fail("in float32"))
    found = host(earlier_within(xp.asarray(rows)))
    expected = best_earlier(similarities(rows))
    np.testing.assert_allclose(found.similarity, expected[0], rtol=0, atol=1.3e-7)
    assert found.position.tolist() == expected[1].tolist()
    edges = edges_within(xp.asarray(rows), 0, 0.9)
    assert sorted(zip(edges.i.tolist(), edges.j.tolist(), strict=True)) == [(i, i + 200) for i in range(100)]


def similarities_of_many(x):
    x = x.astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.minimum(unit @ unit.T, 1)


def test_reported_similarity_is_that_of_the_reported_row():
    x = gaussians(300, 100, 3)
    similarity, position = earlier_within(x, tile=64)
    np.testing.assert_array_max_ulp(similarity[1:], similarities(x)[np.arange(1, 300), position[1:]], 1)


@pytest.mark.parametrize("d", [1, 3, 384, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_copies_have_similarity_one_and_the_first_is_named(xp, d, dtype):
    rng = np.random.default_rng(d)
    groups = rng.integers(0, 10, 200)
    x = rng.standard_normal((10, d)).astype(dtype)[groups]
    if d == 1:
        x = np.abs(x)
        groups[:] = 0  # all rows point the same way
    seen = {}
    first = [seen.setdefault(g, i) for i, g in enumerate(groups)]
    similarity, position = host(earlier_within(xp.asarray(x), tile=64))
    repeats = np.array(first) != np.arange(200)
    assert (similarity[repeats] == 1).all()
    assert (position[repeats] == np.array(first)[repeats]).all()
    assert (similarity[~repeats] < 0.999).all()


def test_start_moves_positions_and_not_similarities(xp):
    x = xp.asarray(gaussians(50, 6))
    near, far = host(earlier_within(x, tile=8)), host(earlier_within(x, 80, tile=8))
    np.testing.assert_array_equal(near.similarity, far.similarity)
    assert (far.position[1:] == near.position[1:] + 80).all()
    assert far.position[0] == -1
    check(earlier_within(xp.asarray(gaussians(50, 6)), 5, tile=8), unaligned_expected())


def unaligned_expected():
    similarity, position = earlier_within(gaussians(50, 6), tile=64)
    return similarity, np.where(position >= 0, position + 5, -1)


@pytest.mark.parametrize("first", [16, 21])
def test_tiles_start_at_multiples_wherever_the_block_does(first):
    x = gaussians(60, 30, copies=False)
    whole = earlier_within(x, first, tile=8)
    part = earlier_within(x[24 - first :], 24, tile=8)
    across = earlier_across(x[: 24 - first], first, x[24 - first :], 24, tile=8)
    same(merge_earlier(across, part), EarlierMatch(*(field[24 - first :] for field in whole)))
    assert prepare(x, first, 8).spans[0] == (0, 24 - first if first > 16 else 8)


def near_copies(m, dtype):
    """Rows whose similarities lie nearer to each other than a float32 product can tell, and copies of some."""
    rng = np.random.default_rng(m)
    x = rng.standard_normal((5, 384))[rng.integers(0, 5, m)] + 1e-3 * rng.standard_normal((m, 384))
    x[: m // 3] = rng.standard_normal((m // 3, 384))
    x[m // 2 :: 7] = x[m // 2]
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("tile", [16, TILE])
def test_the_match_is_that_of_float64(xp, dtype, tile):
    x = near_copies(250, dtype)
    wide = x.astype(np.float64)
    norm = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    dots = np.stack([np.einsum("ij,j->i", wide, row) for row in wide])
    s = np.where(np.tri(250, k=-1, dtype=bool), np.minimum(dots / np.outer(norm, norm), 1), -2).astype(
        np.float32
    )
    similarity, position = host(earlier_within(xp.asarray(x), tile=tile))
    # sums in another order round to the other float32 now and then: rows that are equal but for that
    np.testing.assert_array_max_ulp(similarity[1:], s.max(axis=1)[1:], 1)
    named = s[np.arange(1, 250), position[1:]]
    np.testing.assert_array_max_ulp(named, s.max(axis=1)[1:], 1)
    sure = (s >= (s.max(axis=1) - np.float32(1.3e-7))[:, None]).sum(axis=1) == 1
    assert 50 < sure.sum() < 250
    assert (position[sure] == s.argmax(axis=1)[sure])[1:].all()


def rows_at_a_rounding_edge(m, d=300):
    """Return a row (1, d), and m rows whose similarity to it is the middle of two float32 values, but for 1e-15."""
    a, b = np.random.default_rng(0).standard_normal((2, d)).astype(np.float32)
    a[:2], b[:2] = 1, 0

    def dot(x, y):
        return math.fsum(x.astype(np.float64) * y)

    length = math.sqrt(dot(a, a) * dot(b, b))
    below = np.float32(dot(a, b) / length)
    middle = (float(below) + float(np.nextafter(below, np.float32(2)))) / 2
    rows = np.repeat(b[None], m, axis=0)
    # two small numbers that the other row has a 1 for: the second goes where the first is too coarse
    rows[:, 0] = middle * length - dot(a, b)
    rows[:, 1] = middle * length - dot(a, rows[0]) + length * np.linspace(-1e-15, 1e-15, m)
    return a[None], rows


def test_a_match_does_not_depend_on_how_many_rows_come_near(xp):
    one, rows = map(xp.asarray, rows_at_a_rounding_edge(200))
    alone = [float(earlier_across(rows[i : i + 1], 0, one, 200).similarity[0]) for i in range(200)]
    assert len(set(alone)) == 2
    assert 10 < alone.index(max(alone)) < 190
    for first in range(0, 192, 3):
        for last in (first + 3, first + 9, 200):
            similarity, position = host(earlier_across(rows[first:last], first, one, 200))
            best = max(alone[first:last])
            assert similarity.tolist() == [best]
            assert position.tolist() == [alone.index(best, first)]
    # nor does the similarity of a pair on how many others there are
    edges = edges_across(rows, 0, one, 200, 0)
    assert edges.similarity[np.argsort(edges.i)].tolist() == alone
    left, right = prepare(rows, 0, TILE), prepare(one, 200, TILE)
    tile = to_host(left.exact_tile(xp.arange(200), right, xp.arange(1)))
    assert tile[:, 0].tolist() == alone


@pytest.mark.parametrize("rule", ["earlier", "greedy", "connected"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_clusters_together_match_as_each_alone(xp, rule, dtype):
    sizes = [3, 0, 1, 200, 1, 90, 2, 300, 0, 1100, 1, 40]
    x = gaussians(sum(sizes), 20).astype(dtype)
    edges = np.cumsum([0, *sizes]).tolist()
    found = match_clusters(xp.asarray(x), edges, rule, 0.01)
    assert found.position.dtype == np.int64
    for lo, hi in zip(edges[:-1], edges[1:], strict=True):
        part = xp.asarray(x[lo:hi])
        if rule == "greedy":
            _, alone = greedy_within(part, 0, xp.ones(hi - lo, bool), 0.01)
        else:
            alone = earlier_within(part)
        alone = host(alone)
        if rule == "connected":
            linked = connected_matches(edges_within(part, 0, float(np.float32(0.99))), hi - lo)
            some = linked.position >= 0
            alone = EarlierMatch(*(np.where(some, a, b) for a, b in zip(linked, alone, strict=True)))
        same(EarlierMatch(found.similarity[lo:hi], found.position[lo:hi]), alone)
    none = match_clusters(xp.asarray(x[:0]), [0], rule, 0.01)
    assert len(none.similarity) == len(none.position) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("ordered", [False, True])
def test_tiles_looked_at_together_match_as_each_alone(monkeypatch, ordered, dtype):
    monkeypatch.setattr(tiles, "_GROUP", 1 << 14)
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 60, 70)
    sizes = np.sort(sizes)[::-1] if ordered else sizes
    edges = np.cumsum([0, *sizes]).tolist()
    x = np.concatenate([near_copies(max(m, 1), dtype)[rng.permutation(max(m, 1))][:m] for m in sizes])
    groups = list(tiles.grouped(list(zip(edges[:-1], edges[1:], strict=True))))
    assert len(groups) < len(sizes) / 2
    found = match_clusters(x, edges, "earlier", 0.01)
    for lo, hi in zip(edges[:-1], edges[1:], strict=True):
        same(EarlierMatch(found.similarity[lo:hi], found.position[lo:hi]), earlier_within(x[lo:hi]))


@given(st.lists(st.integers(0, 300), max_size=40))
@settings(deadline=None)
def test_groups_of_tiles_are_all_tiles_in_order_and_small(sizes):
    edges = np.cumsum([0, *sizes]).tolist()
    spans = list(zip(edges[:-1], edges[1:], strict=True))
    groups = list(tiles.grouped(spans))
    assert [span for group in groups for span in group] == spans
    for group in groups:
        widths = [hi - lo for lo, hi in group]
        padded = sum(widths) * max(widths)
        assert len(group) == 1 or padded <= tiles._GROUP
        assert len(group) == 1 or padded <= max(1.25 * sum(w * w for w in widths), tiles._GROUP / 8)


@pytest.mark.parametrize("scale", [1e-35, 1e35])
def test_rows_whose_length_float32_cannot_invert(xp, scale):
    x = gaussians(80, 12) * np.float32(scale)
    similarity, position = host(earlier_within(xp.asarray(x)))
    expected, named = host(earlier_within(xp.asarray(x.astype(np.float64) / scale).astype(np.float32)))
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    assert (similarity[position >= 0] > -1).all()
    assert len(named) == len(position)


def test_opposite_rows_are_a_match_of_minus_one(xp):
    x = xp.asarray([[1.0], [-2.0]], dtype=np.float32)
    similarity, position = host(earlier_within(x, tile=1))
    assert similarity.tolist() == [-1, -1]
    assert position.tolist() == [-1, 0]
    none = earlier_within(x[1:], tile=1)
    _, position = host(merge_earlier(none, earlier_across(x[:1], 0, x[1:], 1, tile=1)))
    assert position.tolist() == [0]


def test_merge_prefers_similar_then_early():
    a = EarlierMatch(np.float32([0.5, 0.5, 0.5, -1]), np.array([4, 4, 4, -1]))
    b = EarlierMatch(np.float32([0.6, 0.5, -1, -1]), np.array([7, 2, -1, -1]))
    for match in (merge_earlier(a, b), merge_earlier(b, a)):
        assert match.position.tolist() == [7, 2, 4, -1]
        assert match.similarity.tolist() == np.float32([0.6, 0.5, 0.5, -1]).tolist()


@given(grid_rows(), TILES, st.integers(0, 2**32))
@settings(deadline=None)
def test_only_marked_rows_count(xp, x, tile, seed):
    m = len(x) // 2
    of = np.random.default_rng(seed).random(m) < 0.5
    counted = np.concatenate([of, np.zeros(len(x) - m, bool)])
    similarity, position = best_earlier(similarities(x), counted)
    found = earlier_across(xp.asarray(x[:m]), 0, xp.asarray(x[m:]), m, of=xp.asarray(of), tile=tile)
    check(found, (similarity[m:], position[m:]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_no_rows(xp, dtype):
    x = xp.empty((0, 4), dtype)
    one = xp.ones((1, 4), dtype)
    assert len(earlier_within(x).similarity) == 0
    assert len(earlier_across(one, 0, x, 1).position) == 0
    assert host(earlier_across(x, 0, one, 0)).position.tolist() == [-1]
    kept, match = greedy_within(x, 0, xp.empty(0, bool), 0.1)
    assert len(kept) == len(match.position) == 0
    assert len(edges_within(x, 0, 0.5).i) == len(edges_across(x, 0, one, 0, 0.5).i) == 0
    assert host(earlier_within(one)).similarity.tolist() == [-1]


def test_threshold_is_strict(xp):
    x = xp.asarray([[1, 0], [0.6, 0.8]], dtype=np.float32)
    similarity = earlier_within(x).similarity
    assert to_host(is_duplicate(similarity, 0.4)).tolist() == [False, False]
    assert to_host(is_duplicate(similarity, 0.400001)).tolist() == [False, True]
    for eps, kept in [(0.4, [True, True]), (0.400001, [True, False])]:
        got, _ = greedy_within(x, 0, xp.ones(2, bool), eps)
        assert to_host(got).tolist() == kept
        assert len(edges_within(x, 0, 1 - eps).i) == 2 - sum(kept)


def test_no_eps_keeps_copies(xp):
    x = xp.ones((5, 3), np.float32)
    similarity = earlier_within(x).similarity
    assert not to_host(is_duplicate(similarity, 0)).any()
    assert to_host(is_duplicate(similarity, 1e-6)).tolist() == [False, True, True, True, True]
    for eps, kept in [(0, 5), (1e-6, 1)]:
        assert to_host(greedy_within(x, 0, xp.ones(5, bool), eps)[0]).sum() == kept
        assert len(edges_within(x, 0, 1 - eps).i) == 5 - kept


def test_memory_is_a_few_tiles():
    x = np.random.default_rng(0).standard_normal((4096, 4)).astype(np.float32)
    x[1000:3000] = x[0]  # and that many pairs are found
    for call in (
        lambda: earlier_within(x, tile=128),
        lambda: greedy_within(x, 0, np.ones(4096, bool), 0.1, tile=128),
        lambda: edges_within(x, 0, 0.9, tile=128),
    ):
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 * 2**20  # all pairs would be 64 MiB


# Greedy: only kept rows remove others.


def greedy(s, eps):
    kept = np.ones(len(s), bool)
    for j in range(len(s)):
        kept[j] = not is_duplicate(s[j, :j][kept[:j]], eps).any()
    return kept


def greedy_by_blocks(xp, x, spans, eps, tile):
    kept, parts = [], []
    for b, (lo, hi) in enumerate(spans):
        before = EarlierMatch(xp.full(hi - lo, -1, np.float32), xp.full(hi - lo, -1, np.int64))
        for (first, last), of in zip(spans[:b], kept, strict=True):
            part = earlier_across(x[first:last], first, x[lo:hi], lo, of=of, tile=tile)
            before = merge_earlier(before, part)
        alive = ~is_duplicate(before.similarity, eps)
        mine, within = greedy_within(x[lo:hi], lo, alive, eps, tile=tile)
        kept.append(mine)
        parts.append(merge_earlier(before, within))
    kept = np.concatenate([np.empty(0, bool), *map(to_host, kept)])
    match = EarlierMatch(*(np.concatenate(field) for field in zip(*map(host, parts), strict=True)))
    return kept, match


@given(grid_rows().filter(len), TILES, st.sets(st.integers(1, 12)), EPS)
@settings(deadline=None)
def test_greedy_matches_brute_force(xp, x, tile, cuts, eps):
    s = similarities(x)
    kept, match = greedy_by_blocks(xp, xp.asarray(x), blocks(len(x), cuts, tile), eps, tile)
    assert kept.tolist() == greedy(s, eps).tolist()
    check(match, best_earlier(s, kept))
    assert (kept == ~is_duplicate(match.similarity, eps)).all()


@given(st.integers(1, 70), st.integers(1, 30), st.sets(st.integers(1, 20)), st.integers(0, 99), EPS)
@settings(deadline=None)
def test_greedy_division_gives_the_same_bits(m, d, cuts, seed, eps):
    x = gaussians(m, d, seed)
    kept, match = greedy_by_blocks(np, x, blocks(m, cuts, 8), eps, 8)
    whole, whole_match = greedy_within(x, 0, np.ones(m, bool), eps, tile=8)
    assert (kept == whole).all()
    same(match, whole_match)
    assert (kept == ~is_duplicate(match.similarity, eps)).all()


def rows_at_one_similarity():
    """Rows at almost one similarity, 0.9, to the first: float32 products cannot order them."""
    rng = np.random.default_rng(0)
    rest = rng.standard_normal((399, 299))
    rest *= np.sqrt(1 - 0.81) / np.linalg.norm(rest, axis=1, keepdims=True)
    near = 0.9 + 3e-7 * rng.standard_normal((399, 1))
    x = np.block([[np.ones((1, 1)), np.zeros((1, 299))], [near, rest]])
    return (x @ np.linalg.qr(rng.standard_normal((300, 300)))[0]).astype(np.float32)


@pytest.mark.parametrize("first", [True, False])
def test_greedy_decides_pairs_at_the_threshold_exactly(first):
    x = rows_at_one_similarity()[:: 1 if first else -1]
    s = similarities(x)
    for level in np.unique(s[0 if first else -1])[:-1]:
        eps = 1 - float(level)
        kept, match = greedy_within(x, 0, np.ones(400, bool), eps)
        assert kept.tolist() == greedy(s, eps).tolist()
        assert (kept == ~is_duplicate(match.similarity, eps)).all()


def test_edges_at_the_threshold_are_exact():
    x = rows_at_one_similarity()
    s = similarities(x)[0, 1:]
    for level in np.unique(s):
        edges = edges_within(x, 0, float(level))
        assert sorted(edges.j.tolist()) == (1 + np.flatnonzero(s > level)).tolist()


def test_rows_not_alive_are_neither_kept_nor_block(xp):
    x = xp.ones((3, 2), np.float32)
    kept, match = greedy_within(x, 0, xp.asarray([False, True, True]), 0.1)
    assert to_host(kept).tolist() == [False, True, False]
    assert host(match).position.tolist() == [-1, -1, 1]


# Connected components.


def chains(s, floor):
    """Brute force: weakest link of the best chain between all rows, then the first row of each component."""
    m = len(s)
    link = np.where(s > np.float32(floor), s, -2)
    np.fill_diagonal(link, 3)
    for k in range(m):
        link = np.maximum(link, np.minimum(link[:, k, None], link[k]))
    similarity, position = np.full(m, -1, np.float32), np.full(m, -1)
    for j in range(1, m):
        strongest = link[j, :j].max()
        if strongest > np.float32(floor):
            similarity[j], position[j] = strongest, np.flatnonzero(link[j] >= strongest)[0]
    return similarity, position


def edges_by_blocks(x, spans, floor, tile):
    parts = []
    for b, (lo, hi) in enumerate(spans):
        parts.append(edges_within(x[lo:hi], lo, floor, tile=tile))
        for first, last in spans[:b]:
            parts.append(edges_across(x[first:last], first, x[lo:hi], lo, floor, tile=tile))
    return merge_forests(*parts)


@given(grid_rows(24), TILES, st.sets(st.integers(1, 12)), EPS)
@example(np.ones((1, 1), np.float32), 1, set(), 2)
@settings(deadline=None)
def test_connected_matches_brute_force(xp, x, tile, cuts, eps):
    floor = 1 - eps
    # The same pair of rows may round to two neighbouring float32 values in two ways of summing.
    s = np.round(similarities(x), 6)
    edges = edges_by_blocks(xp.asarray(x), blocks(len(x), cuts, tile), floor, tile)
    assert len(edges.i) <= max(len(x) - 1, 0)
    assert (edges.i < edges.j).all()
    if (np.abs(s - floor) < 1e-5).any():
        return  # left to the tests of the threshold
    found = connected_matches(edges._replace(similarity=np.round(edges.similarity, 6)), len(x))
    check(found, chains(s, floor))


@given(st.integers(0, 70), st.integers(1, 30), st.sets(st.integers(1, 20)), st.integers(0, 99), EPS)
@settings(deadline=None)
def test_connected_division_gives_the_same_bits(m, d, cuts, seed, eps):
    x = gaussians(m, d, seed)
    whole = connected_matches(edges_within(x, 0, 1 - eps, tile=8), m)
    same(connected_matches(edges_by_blocks(x, blocks(m, cuts, 8), 1 - eps, 8), m), whole)


def test_one_forest_serves_every_smaller_eps():
    x = gaussians(60, 5)
    wide = connected_matches(edges_within(x, 0, 0.2, tile=16), 60)
    for eps in (0.5, 0.1, 1e-5):
        narrow = connected_matches(edges_within(x, 0, 1 - eps, tile=16), 60)
        removed = is_duplicate(wide.similarity, eps)
        assert (removed == is_duplicate(narrow.similarity, eps)).all()
        np.testing.assert_array_equal(wide.similarity[removed], narrow.similarity[removed])
        np.testing.assert_array_equal(wide.position[removed], narrow.position[removed])


def test_a_chain_is_one_component():
    angles = np.radians([0, 40, 20, 90])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    match = connected_matches(edges_within(x, 0, 0.9), 4)
    assert match.position.tolist() == [-1, 0, 0, -1]
    np.testing.assert_allclose(match.similarity, [-1, np.cos(np.pi / 9), np.cos(np.pi / 9), -1], atol=1e-6)


def test_few_pairs_in_a_large_tile_are_computed_one_by_one():
    x = gaussians(400, 64, copies=False)
    x[350:] = x[:50]
    edges = edges_within(x, 0, 0.9)
    assert edges.i.tolist() == list(range(50))
    assert edges.j.tolist() == list(range(350, 400))
    assert (edges.similarity == 1).all()


def test_merging_a_forest_with_itself_changes_nothing():
    x = gaussians(40, 4)
    edges = edges_within(x, 0, 0.5)
    again = merge_forests(edges, edges, merge_forests())
    same(connected_matches(again, 40), connected_matches(edges, 40))
    assert len(again.i) == len(edges.i)


def test_weak_links_keep_their_similarity():
    edges = Edges(np.array([0, 1]), np.array([1, 2]), np.float32([1e-12, -1e-13]))
    merged = merge_forests(edges)
    assert sorted(merged.similarity.tolist()) == sorted(edges.similarity.tolist())


def test_many_edges_are_thinned_on_the_way(monkeypatch):
    monkeypatch.setattr("daskcurate.kernels.similarity.TILE", 4)
    x = gaussians(60, 3)
    thinned = connected_matches(edges_within(x, 0, -1, tile=8), 60)
    monkeypatch.undo()
    same(thinned, connected_matches(edges_within(x, 0, -1, tile=8), 60))
