"""Compute embeddings into a pool: a model over a dataset, by Dask workers, resumable by chunk."""

from daskcurate.embedding.batches import EmbeddingError
from daskcurate.embedding.embed import embed

__all__ = ["EmbeddingError", "embed"]
