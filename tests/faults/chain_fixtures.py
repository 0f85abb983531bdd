"""A pool for the chain, and what an uninterrupted local run makes of it: imported by the conftests that need them."""

import chain
import pytest
from distributed import Client

import daskcurate as dc

__all__ = ["emb", "finished", "reference", "rows_file"]


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory):
    """The rows of the pool, as a file."""
    return chain.source(tmp_path_factory.mktemp("rows") / "rows.npy")


@pytest.fixture(scope="session")
def emb(rows_file):
    """The pool, of several chunks."""
    return chain.ingest(rows_file, rows_file.parent / "pool.zarr")


@pytest.fixture(scope="session")
def finished(cluster, emb, tmp_path_factory):
    """The result of an uninterrupted run; not to be changed."""
    with pytest.MonkeyPatch.context() as patch, Client(cluster):
        chain.distribute(patch.setattr)
        return dc.compute(chain.whole(emb), store=tmp_path_factory.mktemp("reference") / "run.zarr")


@pytest.fixture(scope="session")
def reference(finished):
    """The arrays of an uninterrupted run."""
    return chain.arrays(finished)
