"""Density-based pruning: the table of its clusters, by a float64 oracle. What is kept is in test_contract.py."""

import numpy as np
from oracles import blobs

import daskcurate as dc


def test_the_table_says_what_the_allocation_went_by(client, pool, tmp_path):
    x, labels = blobs(3, n=120, d=4), np.arange(120) % 6
    centroids = np.stack([x[labels == j].mean(axis=0) for j in range(6)])
    emb, mask = pool(x, chunk_rows=50), labels != 2  # which leaves a cluster without rows
    flat = dc.Clustering.from_arrays(emb, centroids, labels)
    node = dc.density_prune(flat, target_size=40, temperature=0.2, n_neighbors=3, within=mask)
    prune = dc.compute(node, store=tmp_path / "run.zarr")
    table = prune.cluster_table
    assert set(table) == {"cluster_sizes", "per_cluster", "intra", "inter", "complexity", "share"}
    assert table["cluster_sizes"].tolist() == [20, 20, 0, 20, 20, 20]
    assert table["per_cluster"].tolist() == np.bincount(labels, np.asarray(prune.counts), 6).tolist()
    unit, middle = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x.astype(float), centroids)
    )
    intra = np.array([(1 - unit[labels == j] @ middle[j]).mean() for j in range(6)])
    between = 1 - middle @ middle.T
    np.fill_diagonal(between, np.inf)
    between[:, 2] = np.inf
    inter = np.sort(between, axis=1)[:, :3].mean(axis=1)
    intra[2] = inter[2] = np.nan
    weight = np.nan_to_num(np.exp(intra * inter / 0.2))
    expected = {"intra": intra, "inter": inter, "complexity": intra * inter, "share": weight / weight.sum()}
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
