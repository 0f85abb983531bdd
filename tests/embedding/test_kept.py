"""Rows without those that were skipped, against NumPy."""

import numpy as np
import pytest

from daskcurate.embedding import kept
from daskcurate.embedding.kept import KeptRows
from daskcurate.io.sources import ArrayRows


class Watched(ArrayRows):
    """Says how many rows were read at once."""

    most = 0

    def read(self, start, stop):
        Watched.most = max(Watched.most, stop - start)
        return super().read(start, stop)


@pytest.mark.parametrize("seed", range(30))
def test_against_numpy(seed, monkeypatch):
    monkeypatch.setattr(kept, "SHORTEST_PIECE", 4)
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    values = rng.normal(size=(n, 2))
    dropped = np.flatnonzero(rng.random(n) < rng.choice([0, 0.1, 0.5, 0.9, 0.99]))[: n - 1]
    wanted = np.delete(values, dropped, axis=0)
    source = KeptRows(Watched(values), dropped)
    assert source.shape == wanted.shape
    for _ in range(20):
        start, stop = sorted(rng.choice(len(wanted) + 1, 2, replace=False)) if len(wanted) > 1 else (0, 1)
        start, stop = int(start), int(stop)
        Watched.most = 0
        np.testing.assert_array_equal(source.read(start, stop), wanted[start:stop])
        assert Watched.most <= max(4, stop - start)  # a long gap is not read at once
        part = source.cut(start, stop)
        np.testing.assert_array_equal(part.read(0, stop - start), wanted[start:stop])
        assert len(part) == stop - start
        assert source.locate(start)[1] == np.setdiff1d(np.arange(n), dropped)[start]
