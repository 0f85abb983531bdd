"""A SLURM of this machine, started for the session; see setup.sh."""

import os
import subprocess
from pathlib import Path

import pytest
from chain_fixtures import emb, finished, reference, rows_file  # noqa: F401

SETUP = Path(__file__).with_name("setup.sh")
OURS = ("SLURM_", "SLURMD_", "SBATCH_")


@pytest.fixture(scope="session", autouse=True)
def slurm_here(tmp_path_factory):
    """Start the daemons, and point SLURM's commands to them; stop them at the end."""
    if os.geteuid() != 0:
        pytest.fail("make test-slurm installs packages and starts daemons: run it as root")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # munge wants folders that others cannot write, and can enter
    subprocess.run([SETUP, "install"], check=True)
    try:
        subprocess.run([SETUP, "start", folder], check=True, timeout=120)
        with pytest.MonkeyPatch.context() as patch:
            for name in list(os.environ):
                if name.startswith(OURS):
                    patch.delenv(name)
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            yield folder
    finally:
        subprocess.run([SETUP, "stop", folder], check=True, timeout=60)


def jobs():
    """Return the states of the jobs that SLURM has."""
    listed = subprocess.run(
        ["squeue", "--noheader", "--format=%i %t"], check=True, capture_output=True, text=True
    )
    return dict(line.split() for line in listed.stdout.splitlines())
