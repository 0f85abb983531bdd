"""Bugs that were found from outside, through the public interface, each with the test that shows it."""

import numpy as np
import pytest

import daskcurate as dc


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)


@pytest.mark.parametrize("width", [4, 2])
def test_a_replaced_pool_is_not_computed_under_the_old_ones_fingerprint(client, tmp_path, rows, width):
    dest, store = tmp_path / "pool.zarr", tmp_path / "run.zarr"
    old = dc.ingest(rows, dest, normalize=False)
    flat, computed = dc.kmeans(old, 3), dc.compute(dc.kmeans(old, 3, seed=1), store=store)
    dc.ingest(rows[:, :width] + 100, dest, normalize=False, overwrite=True)
    stages = [
        flat,
        dc.semantic_dedup(old, computed, eps=0.1),
        dc.density_prune(computed, keep_fraction=0.5),
        dc.Clustering.from_arrays(old, rows[:3], np.zeros(200, dtype=int)),
    ]
    for stage in stages:
        with pytest.raises(ValueError, match="was replaced after it was opened"):
            dc.compute(stage, store=store)
    again = dc.ingest(rows, dest, normalize=False, overwrite=True)
    found = dc.compute(dc.kmeans(again, 3), store=store)
    assert found.fingerprint == flat.fingerprint
    assert abs(found.centroids).max() < 10


def test_sampling_needs_no_pool_once_its_tree_is_computed(client, tmp_path, rows):
    dest, store = tmp_path / "pool.zarr", tmp_path / "run.zarr"
    tree = dc.compute(dc.hierarchical_kmeans(dc.ingest(rows, dest, normalize=False), [20, 4]), store=store)
    dc.ingest(rows + 100, dest, normalize=False, overwrite=True)
    for strategy in ("random", "closest", "furthest"):
        assert len(dc.compute(dc.hierarchical_sample(tree, 50, strategy=strategy), store=store)) == 50


def test_labels_without_a_single_member_are_refused_clearly():
    with pytest.raises(ValueError, match="all -1"):
        dc.Hierarchy.from_labels([np.full(10, -1)])


def test_a_lost_chunk_of_the_pool_is_an_error_in_every_stage_and_not_zeros(client, tmp_path, rows):
    dest, store = tmp_path / "pool.zarr", tmp_path / "run.zarr"
    emb = dc.ingest(rows, dest, normalize=False, chunk_rows=50)
    flat = dc.compute(dc.kmeans(emb, 3), store=store)
    (dest / "embeddings" / "c" / "2" / "0").unlink()
    for stage in (
        dc.kmeans(emb, 4),
        dc.semantic_dedup(emb, flat, eps=0.1),
        dc.density_prune(flat, keep_fraction=0.5),
    ):
        with pytest.raises(FileNotFoundError, match="c/2/0 is missing: the pool .* is damaged"):
            dc.compute(stage, store=store)
