"""Three hosts, each a network namespace of this machine; see setup.sh."""

import os
import subprocess
from pathlib import Path

import chain
import pytest
from distributed import Client

import daskcurate as dc

SETUP = Path(__file__).with_name("setup.sh")


@pytest.fixture(scope="session", autouse=True)
def hosts():
    """Make the hosts; remove them at the end."""
    if os.geteuid() != 0:
        pytest.fail("make test-hosts makes network namespaces: run it as root")
    subprocess.run([SETUP, "install"], check=True)
    subprocess.run([SETUP, "stop"], check=True)  # what a killed session may have left
    try:
        subprocess.run([SETUP, "start"], check=True)
        yield
    finally:
        subprocess.run([SETUP, "stop"], check=True)


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
