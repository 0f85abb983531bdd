"""The whole chain on real text embeddings, where they are at hand."""

from pathlib import Path

import numpy as np
import pytest

import daskcurate as dc

DATA = Path(__file__).parents[2] / "shared" / "data" / "summaries.npy"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared embeddings are not here")


@pytest.fixture(scope="module")
def chain(cluster, tmp_path_factory):
    from distributed import Client

    folder = tmp_path_factory.mktemp("shared")
    with Client(cluster):
        emb = dc.ingest(DATA, folder / "pool.zarr")
        flat = dc.kmeans(emb, n_clusters=150, metric="cosine", init="k-means||", n_iters=10)
        dedup = dc.semantic_dedup(emb, flat, eps=0.05)
        prune = dc.density_prune(flat, keep_fraction=0.5, within=dedup)
        tree = dc.hierarchical_kmeans(
            emb, [300, 60], sample_sizes=[10, 3], n_resamples=1, n_iters=10, init="k-means||", within=prune
        )
        picks = dc.hierarchical_sample(tree, target_size=2000)
        nodes = {"flat": flat, "dedup": dedup, "prune": prune, "tree": tree, "picks": picks}
        found = dc.compute(*nodes.values(), store=folder / "run.zarr")
        yield emb, dict(zip(nodes, found, strict=True)), folder


def test_the_duplicates_are_those_of_brute_force_within_clusters(chain):
    emb, found, _ = chain
    x = np.asarray(emb.array).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels, distances = np.asarray(found["flat"].labels), np.asarray(found["flat"].distances)
    similarity = np.asarray(found["dedup"].max_similarity)
    kept = np.asarray(found["dedup"].mask)
    for cluster in range(found["flat"].n_clusters):
        members = np.flatnonzero(labels == cluster)
        order = members[np.lexsort((members, -distances[members]))]
        pairs = x[order] @ x[order].T
        best = np.where(np.tri(len(order), k=-1, dtype=bool), pairs, -1).max(axis=1, initial=-1)
        np.testing.assert_allclose(similarity[order], best, atol=2e-6)
        clear = np.abs(best - 0.95) > 2e-6
        np.testing.assert_array_equal(kept[order][clear], best[clear] <= 0.95)


def test_the_best_match_is_an_earlier_row_of_the_cluster(chain):
    emb, found, _ = chain
    x = np.asarray(emb.array).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels, distances = np.asarray(found["flat"].labels), np.asarray(found["flat"].distances)
    match, similarity = np.asarray(found["dedup"].duplicate_of), np.asarray(found["dedup"].max_similarity)
    rows = np.flatnonzero(match >= 0)
    other = match[rows]
    np.testing.assert_array_equal(labels[rows], labels[other])
    earlier = (distances[other] > distances[rows]) | ((distances[other] == distances[rows]) & (other < rows))
    assert earlier.all()
    np.testing.assert_allclose((x[rows] * x[other]).sum(axis=1), similarity[rows], atol=1e-6)


def test_the_chain_keeps_exactly_what_it_should(chain):
    _, found, _ = chain
    dedup, prune, picks = (np.asarray(found[name].mask) for name in ("dedup", "prune", "picks"))
    assert not (prune & ~dedup).any()
    assert not (picks & ~prune).any()
    assert prune.sum() == int(np.floor(0.5 * dedup.sum() + 0.5)) == found["prune"].per_cluster.sum()
    assert len(found["picks"]) == 2000 == len(found["picks"].indices)


def test_another_eps_is_a_lookup(chain):
    _, found, _ = chain
    dedup = found["dedup"]
    similarity = np.asarray(dedup.max_similarity)
    for eps in (0.01, 0.1, 0.2):
        np.testing.assert_array_equal(np.asarray(dedup.at(eps).mask), ~(similarity > np.float32(1 - eps)))
    kept = len(dedup.at_fraction(0.6)) / len(similarity)
    assert 0.6 <= kept < 0.61


def test_the_table_says_what_happened_to_every_row(chain):
    import pyarrow.parquet as pq

    emb, found, folder = chain
    table = pq.read_table(dc.export(found["picks"], folder / "picks.parquet")).to_pandas()
    assert len(table) == len(emb)
    assert (table["reason"] == "kept").sum() == table["keep"].sum() == 2000
    dropped = ~np.asarray(found["dedup"].mask)
    assert (table["reason"][dropped] == "duplicate").all()
    pruned = np.asarray(found["dedup"].mask) & ~np.asarray(found["prune"].mask)
    assert (table["reason"][pruned] == "pruned").all()
    np.testing.assert_array_equal(table["cluster"], np.asarray(found["flat"].labels))
    np.testing.assert_array_equal(table["cluster_level_2"], np.asarray(found["tree"].flat_labels(2)))


@pytest.fixture(scope="module")
def similar_pairs():
    """All pairs (i < j) above 0.8 - 1e-5 and their similarity, by brute force: float64 of what float32 finds."""
    x = np.load(DATA).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    narrow, found = x.astype(np.float32), []
    for start in range(0, len(x), 1000):
        i, j = np.nonzero(narrow[start : start + 1000] @ narrow.T > 0.8 - 1e-5)
        later = j > i + start
        found.append(np.stack([i[later] + start, j[later]]))
    i, j = np.concatenate(found, axis=1)
    parts = np.array_split(np.arange(len(i)), 50)
    similarity = np.concatenate([np.einsum("ij,ij->i", x[i[part]], x[j[part]]) for part in parts])
    return i, j, np.minimum(similarity, 1)


@pytest.mark.parametrize(
    "eps", [*(pytest.param(eps, marks=pytest.mark.slow) for eps in (0.01, 0.1)), 0.05, 0.2]
)
def test_across_clusters_the_duplicates_are_those_of_brute_force(chain, similar_pairs, eps):
    emb, found, folder = chain
    stage = dc.semantic_dedup(emb, found["flat"], eps=eps, scope="global")
    dedup = dc.compute(stage, store=folder / "global.zarr")
    distances = np.asarray(found["flat"].distances)
    place = np.empty(len(emb), int)
    place[np.lexsort((np.arange(len(emb)), -distances))] = np.arange(len(emb))
    i, j, similarity = similar_pairs
    i, j = np.where(place[i] < place[j], i, j), np.where(place[i] < place[j], j, i)
    best = np.full(len(emb), -1.0)
    np.maximum.at(best, j, similarity)
    limit = np.float32(1 - eps)
    duplicate = best.astype(np.float32) > limit
    clear = np.abs(best - limit) > 1e-12
    mine, match = np.asarray(dedup.max_similarity), np.asarray(dedup.duplicate_of)
    np.testing.assert_array_equal(np.asarray(dedup.mask)[clear], ~duplicate[clear])
    np.testing.assert_allclose(mine[duplicate], best[duplicate], rtol=0, atol=1e-7)
    assert (mine[~duplicate] == -1).all()
    rows = np.flatnonzero(duplicate)
    assert (place[match[rows]] < place[rows]).all()
    x = np.asarray(emb.array)[rows].astype(np.float64), np.asarray(emb.array)[match[rows]].astype(np.float64)
    norms = np.linalg.norm(x[0], axis=1) * np.linalg.norm(x[1], axis=1)
    np.testing.assert_allclose((x[0] * x[1]).sum(axis=1) / norms, best[rows], rtol=0, atol=1e-7)
    assert duplicate.sum() >= len(emb) - len(found["dedup"].at(eps))  # within clusters some are missed
    assert dedup.attributes["pairs"] <= len(emb) * (len(emb) - 1) // 2
