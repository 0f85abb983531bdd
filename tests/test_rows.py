"""Blocks of rows: read in pieces or whole, held or read by every task, they are the same to the bit."""

import os
import time
from collections import Counter

import numpy as np
import pytest
from oracles import blobs

import daskcurate as dc
from daskcurate import fitting, rows
from daskcurate.embeddings import PoolRows
from daskcurate.kernels.assign import unit_rows
from daskcurate.planning import Limits
from daskcurate.rows import RowSource, load_block
from daskcurate.store import open_array, write_scratch


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_block_read_in_pieces_is_that_read_whole(pool, tmp_path, monkeypatch, dtype, metric, masked):
    rng = np.random.default_rng(0)
    stored = rng.standard_normal((997, 7)).astype(dtype)
    emb = pool(stored, normalize=False, chunk_rows=300)
    mask = np.ones(997, np.int32)
    if masked:
        mask[rng.random(997) < 0.4] = 0
        mask[400:520] = 0  # pieces without a row
    write_scratch(str(tmp_path / "mask"), mask)
    source = RowSource.of_embeddings(emb)
    source = RowSource(**{**source.__dict__, "mask_url": str(tmp_path / "mask") if masked else None})
    elsewhere = RowSource(**{**source.__dict__, "pool": None})  # an array that is not a pool's
    for start, stop in ((0, 300), (0, 997), (300, 900), (250, 700), (400, 520)):
        numbers = np.arange(start, stop)[mask[start:stop] > 0]
        wanted = stored[numbers].astype(np.float32)
        wanted = unit_rows(stored[numbers]) if metric == "cosine" else wanted
        for piece in (1, 100, 1 << 20):
            monkeypatch.setattr(rows, "PIECE_BYTES", piece)
            for one in (source, elsewhere):
                found = load_block(one, start, stop, metric)
                np.testing.assert_array_equal(found.numbers, numbers)
                np.testing.assert_array_equal(found.rows, wanted)
                assert found.rows.dtype == np.float32


def test_the_system_is_asked_for_the_bytes_of_the_rows_that_come_next(pool, monkeypatch):
    emb = pool(np.ones((1000, 50), np.float32), normalize=False, chunk_rows=300)
    monkeypatch.setattr("daskcurate.embeddings.REQUEST_BYTES", 10_000)
    asked = []

    def advise(fd, offset, length, advice):
        assert advice == os.POSIX_FADV_WILLNEED
        asked.append((os.readlink(f"/proc/self/fd/{fd}").split("/")[-2], offset, length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    emb.rows.expect(250, 700)
    deadline = time.monotonic() + 30
    while len(asked) < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    covered = {chunk: set() for chunk in ("0", "1", "2")}
    for chunk, offset, length in asked:
        covered[chunk] |= set(range(offset, offset + length, 200))
    wanted = {"0": (250, 300), "1": (0, 300), "2": (0, 100)}
    for chunk, (first, last) in wanted.items():
        assert covered[chunk] >= set(range(first * 200, last * 200, 200))
        assert len(covered[chunk]) < last - first + 50
    emb.rows.expect(0, 10_000)  # rows that there are not, of files that there are not: a hint fails never
    PoolRows("s3://bucket/pool", (10, 5), "float32", 5).expect(0, 10)


CASES = {
    "lloyd": {"algorithm": "lloyd", "init": "random"},
    "greedy seeds": {"algorithm": "lloyd"},
    "k-means||": {"algorithm": "lloyd", "init": "k-means||"},
    "fast": {"algorithm": "fast"},
    "two-level": {"algorithm": "two-level"},
    "cosine": {"algorithm": "lloyd", "init": "random", "metric": "cosine"},
    "restarts": {"algorithm": "lloyd", "init": "random", "n_init": 2},
}


def small_tasks(monkeypatch):
    """Have small pools take the way of large ones."""
    monkeypatch.setattr(fitting, "LOCAL_BYTES", 0)
    monkeypatch.setattr(fitting, "SMALL_BYTES", 0)


@pytest.mark.parametrize("case", CASES)
def test_held_and_read_by_every_task_rows_cluster_alike(client, pool, tmp_path, monkeypatch, case):
    small_tasks(monkeypatch)
    emb = pool(blobs(3, n=900), normalize=False, chunk_rows=100)
    within = dc.Selection.from_mask(np.arange(900) % 7 != 0, emb=emb)
    node = dc.kmeans(emb, 12, n_iters=4, within=within, **CASES[case])
    held = dc.compute(node, store=tmp_path / "held")
    monkeypatch.setattr(Limits, "holds", lambda *_: False)
    again = dc.compute(node, store=tmp_path / "read")
    for name in ("labels", "distances", "centroids", "sizes"):
        one, other = open_array(held.url(name)), open_array(again.url(name))
        np.testing.assert_array_equal(one[...], other[...], err_msg=name)
    assert held.inertia == again.inertia


def test_held_and_read_by_every_task_rows_make_the_same_hierarchy(client, pool, tmp_path, monkeypatch):
    small_tasks(monkeypatch)
    emb = pool(blobs(4, n=900), normalize=False, chunk_rows=100)
    for name, settings in (
        ("resampled", {"sample_sizes": [10, 2], "n_resamples": 2}),
        ("random", {"sample_sizes": [10, 2], "n_resamples": 1, "sample_strategy": "random"}),
        ("split", {"n_splits": [4, 1]}),
    ):
        tree = dc.hierarchical_kmeans(emb, [20, 5], n_iters=3, **settings)
        with monkeypatch.context() as patched:
            held = dc.compute(tree, store=tmp_path / f"held-{name}")
            patched.setattr(Limits, "holds", lambda *_: False)
            patched.setattr("daskcurate.splitting.PART_BYTES", 4 * 5 * 40)  # giants as well
            again = dc.compute(tree, store=tmp_path / f"read-{name}")
        for one, other in zip(held.levels, again.levels, strict=True):
            if name != "split":
                np.testing.assert_array_equal(one.centroids, other.centroids)
                np.testing.assert_array_equal(np.asarray(one.labels), np.asarray(other.labels))
            assert one.sizes.sum() == other.sizes.sum()


def test_a_pass_reads_each_block_once_and_labels_are_written_without_reading_any(
    client, pool, tmp_path, monkeypatch
):
    small_tasks(monkeypatch)
    monkeypatch.setattr(Limits, "holds", lambda *_: False)
    emb = pool(blobs(5, n=900), normalize=False, chunk_rows=100)
    reads = Counter()

    def counted(source, start, stop, metric):
        reads[start] += 1
        return load_block(source, start, stop, metric)

    monkeypatch.setattr(rows, "load_block", counted)
    seeds = blobs(5, n=900)[:6]
    dc.compute(dc.kmeans(emb, 6, init=seeds, n_iters=3), store=tmp_path / "run.zarr")
    assert set(reads) == set(range(0, 900, 100))
    assert set(reads.values()) == {3 + 1}
