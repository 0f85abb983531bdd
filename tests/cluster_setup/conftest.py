"""A pool, the result of a local run to compare with, and Dask settings."""

import contextlib

import pytest
from chain_fixtures import emb, finished, reference, rows_file  # noqa: F401

from cluster_setup.__main__ import main


@pytest.fixture
def settings(tmp_path):
    """A folder of Dask configuration files, with what ``python -m cluster_setup settings`` prints."""
    folder = tmp_path / "settings"
    folder.mkdir()
    with open(folder / "daskcurate.yaml", "w") as file, contextlib.redirect_stdout(file):
        assert main(["settings"]) == 0
    return folder
