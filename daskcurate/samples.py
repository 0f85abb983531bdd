"""Samples of a pool's rows: which, and reading them."""

import numpy as np

from daskcurate.embeddings import Embeddings
from daskcurate.io.paths import is_local

REMOTE_CHUNKS = 16
"""Chunks that a picture reads of a pool at a URL, where a single row costs a whole chunk."""


def sample_rows(emb: Embeddings, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return row numbers drawn uniformly without replacement, ascending."""
    n = len(emb)
    return np.sort(rng.choice(n, min(count, n), replace=False)).astype(np.int64)


def sample_few_chunks(emb: Embeddings, count: int, seed: int) -> tuple[np.ndarray, bool]:
    """Return row numbers drawn uniformly, of a few chunks only where others would cost too much, and whether."""
    rng = np.random.default_rng(seed)
    n, chunk = len(emb), emb.chunk_rows
    if is_local(emb.path) or emb.n_chunks <= REMOTE_CHUNKS:
        return sample_rows(emb, count, rng), False
    chunks = rng.choice(emb.n_chunks, REMOTE_CHUNKS, replace=False)
    rows = np.concatenate([np.arange(c * chunk, min((c + 1) * chunk, n)) for c in chunks])
    return np.sort(rng.choice(rows, min(count, len(rows)), replace=False)), True


def read_rows(emb: Embeddings, rows: np.ndarray) -> np.ndarray:
    """Return the given rows (m, d), ascending numbers, in the pool's dtype."""
    found = np.empty((len(rows), emb.dim), emb.dtype)
    source = emb.rows
    if is_local(emb.path) and len(rows) and 8 * len(rows) < rows[-1] - rows[0]:
        for place, row in enumerate(rows):
            found[place] = source[int(row)]
        return found
    for number in np.unique(rows // emb.chunk_rows):
        inside = np.flatnonzero(rows // emb.chunk_rows == number)
        first = int(rows[inside[0]])
        found[inside] = source.read(first, int(rows[inside[-1]]) + 1)[rows[inside] - first]
    return found
