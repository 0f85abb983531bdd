"""Curate training data by embeddings, out of core, on Dask."""
