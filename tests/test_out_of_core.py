"""Pools of several times the workers' memory: the chain ends within the limits, as on workers that hold them."""

import contextlib
import dataclasses
import os
import threading
import time

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
from distributed import Client

import daskcurate as dc
from daskcurate.local_cluster import make_local_cluster
from daskcurate.store import open_array

WIDTH = 256
CHUNK_ROWS = 8192
MIB = 1 << 20
TIMES = 4
"""The bytes of the pool, of all workers' limits together."""


def rows_of(number, count):
    """Rows around 300 centres, a tenth of them followed by a copy of themselves."""
    rng = np.random.default_rng((5, number))
    centres = np.random.default_rng(6).standard_normal((300, WIDTH)).astype(np.float32)
    rows = centres[rng.integers(0, 300, count)] + rng.standard_normal((count, WIDTH), dtype=np.float32)
    rows[1::10] = rows[::10][: len(rows[1::10])]
    return rows


def made_pool(path, n):
    counts = [min(CHUNK_ROWS, n - start) for start in range(0, n, CHUNK_ROWS)]
    parts = [
        da.from_delayed(dask.delayed(rows_of)(i, count), (count, WIDTH), np.float32)
        for i, count in enumerate(counts)
    ]
    return dc.ingest(da.concatenate(parts), path, normalize=True, chunk_rows=CHUNK_ROWS)


def chain(emb):
    flat = dc.kmeans(emb, 600, init="random", n_iters=2, metric="cosine")
    dedup = dc.semantic_dedup(emb, flat, eps=0.05)
    prune = dc.density_prune(flat, keep_fraction=0.5, within=dedup)
    tree = dc.hierarchical_kmeans(
        emb, [500, 20], sample_sizes=[50, 3], n_resamples=1, n_iters=2, init="random", within=prune
    )
    return dc.hierarchical_sample(tree, 5000)


def sizes_of(emb):
    """Return the least memory of each of two workers that the plan of the chain accepts, and the rows of the pool.

    Plans go by the shape of ``emb``, not by what is in it.
    """
    for limit in range(256 * MIB, 4096 * MIB, 16 * MIB):
        n = TIMES * 2 * limit // (4 * WIDTH)
        with contextlib.suppress(dc.PlanError):
            dc.plan(chain(dataclasses.replace(emb, shape=(n, WIDTH))), memory_limit=limit, n_workers=2)
            return limit, n
    raise AssertionError("no limit is enough")


class Peaks(threading.Thread):
    """The most that each process was seen to hold."""

    def __init__(self, pids):
        super().__init__(daemon=True)
        self.processes = [psutil.Process(pid) for pid in pids]
        self.peaks, self.running = dict.fromkeys(pids, 0), True

    def run(self):
        while self.running:
            for process in self.processes:
                if process.is_running():
                    self.peaks[process.pid] = max(self.peaks[process.pid], process.memory_info().rss)
            time.sleep(0.05)


def run_chain(emb, store, limit, spill):
    """Run the chain on two workers of ``limit``; return the result, the processes and what they held at most."""
    settings = {
        "n_workers": 2,
        "memory_limit": limit,
        "dashboard_address": "127.0.0.1:0",
        "spill_folder": spill,
    }
    with make_local_cluster(**settings) as cluster, Client(cluster) as client:
        before = set(client.run(os.getpid).values())
        peaks = Peaks(before)
        peaks.start()
        found = dc.compute(chain(emb), store=store)
        peaks.running = False
        peaks.join()
        assert set(client.run(os.getpid).values()) == before  # no worker was lost
    return found, peaks.peaks


def arrays(store):
    """Yield the arrays of all stages by name."""
    for stage in sorted(store.iterdir()):
        if stage.is_dir():
            for array in sorted(stage.iterdir()):
                if (array / "zarr.json").exists() and array.name != "checkpoint":
                    yield f"{stage.name}/{array.name}", str(array)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_chain_on_workers_that_hold_a_fraction_of_the_pool(tmp_path):
    limit, n = sizes_of(made_pool(tmp_path / "probe.zarr", 4 * CHUNK_ROWS))
    emb = made_pool(tmp_path / "pool.zarr", n)
    small, peaks = run_chain(emb, tmp_path / "small", limit, tmp_path / "spill")
    held = [peak >> 20 for peak in peaks.values()]
    print(f"workers of {limit >> 20} MiB, pool of {4 * WIDTH * n >> 20} MiB, peaks {held} MiB")
    assert max(peaks.values()) < limit
    large, _ = run_chain(emb, tmp_path / "large", 8 << 30, tmp_path / "spill")
    assert small.indices.tolist() == large.indices.tolist()
    names = dict(arrays(tmp_path / "small"))
    assert names.keys() == dict(arrays(tmp_path / "large")).keys()
    assert len(names) > 12
    for name, url in names.items():
        one, other = open_array(url), open_array(url.replace("/small/", "/large/"))
        np.testing.assert_array_equal(one[...], other[...], err_msg=name)
