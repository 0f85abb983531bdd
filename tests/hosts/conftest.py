"""Three hosts, each a network namespace of this machine; see setup.sh."""

import os
import subprocess
from pathlib import Path

import pytest
from chain_fixtures import emb, finished, reference, rows_file  # noqa: F401

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
