"""A pool and runs over it that the tests of the report share."""

import numpy as np
import pytest
from distributed import Client

import daskcurate as dc

N, DIM = 900, 12
NASTY = "<script>alert(1)</script> & \"quotes\" 'too' $x^2$"


@pytest.fixture(scope="session")
def run_folder(cluster, tmp_path_factory):
    """A folder with pool.zarr (ids that need escaping), run.zarr of all kinds of stages, texts and images."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((12, DIM))
    x = (centres[rng.choice(12, N, p=np.arange(1, 13) / 78)] + 0.2 * rng.standard_normal((N, DIM))).astype(
        "f4"
    )
    copies = rng.permutation(N)[:200]
    x[copies[:100]] = x[copies[100:]] + 0.01 * rng.standard_normal((100, DIM)).astype("f4")
    ids = [f"<i>{i}</i>&" for i in range(N)]
    emb = dc.ingest(x, folder / "pool.zarr", ids=ids, normalize=True)
    flat = dc.kmeans(emb, n_clusters=15, metric="cosine", n_iters=5)
    dedup = dc.semantic_dedup(emb, flat, eps=0.02)
    prune = dc.density_prune(flat, keep_fraction=0.7, within=dedup)
    tree = dc.hierarchical_kmeans(
        emb, [30, 10, 4], sample_sizes=[5, 2, 1], n_resamples=1, n_iters=5, within=prune
    )
    picks = dc.hierarchical_sample(tree, target_size=200)
    more = [
        dc.semantic_dedup(emb, flat, eps=0.05, rule="greedy"),
        dc.semantic_dedup(emb, flat, eps=0.05, rule="connected"),
        dc.prototype_prune(flat, target_size=100),
        dc.random_prune(emb, keep_fraction=0.5),
        dc.Selection.from_mask(np.arange(N) % 3 > 0, emb=emb) & dedup,
        dedup.at(0.1),
    ]
    with Client(cluster) as client:
        dc.compute(*more, store=folder / "run.zarr", client=client)
        dc.compute(flat, tree, picks, store=folder / "run.zarr", client=client)
    (folder / "texts.txt").write_text("\n".join(f"{NASTY} row {i}" for i in range(N)))
    np.save(folder / "images.npy", rng.integers(0, 255, (N, 9, 7, 3)).astype(np.uint8))
    return folder


@pytest.fixture(scope="session")
def written(run_folder, tmp_path_factory):
    """The page of that run, with texts and images; not to be changed."""
    dest = tmp_path_factory.mktemp("out") / "page"
    return dc.write_report(
        run_folder / "run.zarr", dest, texts=run_folder / "texts.txt", images=run_folder / "images.npy"
    )


@pytest.fixture(scope="session")
def small_run(cluster, tmp_path_factory):
    """A folder with pool.zarr and a run.zarr of two stages: where any report will do."""
    folder = tmp_path_factory.mktemp("small")
    emb = dc.ingest(np.random.default_rng(0).standard_normal((60, 4)), folder / "pool.zarr", normalize=True)
    with Client(cluster) as client:
        picks = dc.hierarchical_sample(dc.kmeans(emb, n_clusters=3, n_iters=2), target_size=20)
        dc.compute(picks, store=folder / "run.zarr", client=client)
    return folder
