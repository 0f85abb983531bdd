"""What every test shares: one small cluster in this process, and pools made of arrays."""

import warnings

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

import daskcurate as dc
from daskcurate.runner import current_client

SHARED = "../shared/data/summaries.npy"


@pytest.fixture(scope="session", autouse=True)
def quiet():
    """No progress lines in the tests' output."""
    with dask.config.set({"daskcurate.progress": False}):
        yield


@pytest.fixture(autouse=True)
def no_scheduler_left_behind():
    """Forget the scheduler of clients that a test closed in another order than it opened them."""
    yield
    if current_client() is None:
        dask.config.config.pop("scheduler", None)


@pytest.fixture(scope="session")
def cluster():
    """A cluster of two workers in this process: as Dask schedules, without the start-up of processes."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0", memory_limit="2GiB"
    ) as made:
        yield made


@pytest.fixture
def client(cluster):
    """A client of the shared cluster."""
    with Client(cluster) as made:
        yield made


@pytest.fixture
def pool(tmp_path):
    """Return a function that ingests an array into a pool of its own."""
    made = 0

    def make(rows, **settings):
        nonlocal made
        made += 1
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # rows that are not unit length: the tests' own choice
            return dc.ingest(np.asarray(rows), tmp_path / f"pool-{made}.zarr", **settings)

    return make
