"""Embeddings in (``ingest``) and rows out (``export``): a module per format family."""
