"""A pool, the result of a local run to compare with, and Dask settings."""

import subprocess
import sys

import pytest
from chain_fixtures import emb, finished, reference, rows_file  # noqa: F401


@pytest.fixture
def settings(tmp_path):
    """A folder of Dask configuration files, with what ``python -m cluster_setup settings`` prints."""
    folder = tmp_path / "settings"
    folder.mkdir()
    command = [sys.executable, "-m", "cluster_setup", "settings"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (folder / "daskcurate.yaml").write_text(text)
    return folder
