"""A pool, the result of a local run to compare with, and Dask settings."""

import subprocess
import sys

import chain
import pytest
from distributed import Client

import daskcurate as dc


@pytest.fixture(scope="session")
def emb(tmp_path_factory):
    """A pool of several chunks."""
    folder = tmp_path_factory.mktemp("pool")
    return chain.ingest(chain.source(folder / "rows.npy"), folder / "pool.zarr")


@pytest.fixture(scope="session")
def reference(cluster, emb, tmp_path_factory):
    """The arrays of the whole chain, run on the cluster in this process."""
    with pytest.MonkeyPatch.context() as patch, Client(cluster):
        chain.distribute(patch.setattr)
        found = dc.compute(chain.whole(emb), store=tmp_path_factory.mktemp("reference") / "run.zarr")
        return chain.arrays(found)


@pytest.fixture
def settings(tmp_path):
    """A folder of Dask configuration files, with what ``python -m cluster_setup settings`` prints."""
    folder = tmp_path / "settings"
    folder.mkdir()
    command = [sys.executable, "-m", "cluster_setup", "settings"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (folder / "daskcurate.yaml").write_text(text)
    return folder
