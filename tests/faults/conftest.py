"""A cluster of processes that outlives the clients that are killed, and the result to compare with."""

import re
import subprocess
import sys
from collections import Counter, defaultdict, deque
from pathlib import Path

import chain
import dask
import pytest
from chain_fixtures import emb, finished, reference, rows_file  # noqa: F401
from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin

from daskcurate import runner

CHILD = Path(chain.__file__)


class Tally(SchedulerPlugin):
    """Counts the tasks that finish, by stage and name, of the stages that this process runs."""

    name = "tally"

    def __init__(self):
        self.keys = deque()
        self.stages = {}

    def transition(self, key, start, finish, *_, **__):
        if (start, finish) == ("processing", "memory"):
            self.keys.append(str(key))

    @property
    def counts(self):
        """Return the number of finished tasks as {stage: {name of the task: number}}."""
        found = defaultdict(Counter)
        for key in self.keys:
            name, token = re.match(r"(.*?)-([0-9a-f]{12})-|", key).groups()
            if token in self.stages:
                found[self.stages[token]][name] += 1
        return dict(found)


@pytest.fixture
def tally(processes, monkeypatch):
    """The tasks that stages run by this process run on the cluster of processes."""
    made = Tally()
    original = runner.StageRun.__init__

    def init(run, stage, *args):
        original(run, stage, *args)
        made.stages[run.token] = stage.name

    monkeypatch.setattr(runner.StageRun, "__init__", init)
    processes.scheduler.add_plugin(made, name="tally")
    yield made
    processes.scheduler.remove_plugin("tally")


@pytest.fixture(scope="module")
def processes():
    """A cluster of two worker processes, each under a nanny."""
    # Dask closes a worker's place for good when, this long after a loss, no worker is in it: even if that is
    # because another one was just lost there. Here workers are lost every few seconds.
    forever = {"distributed.deploy.lost-worker-timeout": "1 hour"}
    with (
        dask.config.set(forever),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            memory_limit="1GiB",
            silence_logs="CRITICAL",
        ) as made,
    ):
        yield made


@pytest.fixture
def remote(processes):
    """A client of the cluster of processes."""
    with Client(processes) as made:
        yield made


@pytest.fixture
def ran(monkeypatch):
    """The names of the stages that are run, as they start."""
    names = []
    original = runner.StageRun.__init__

    def init(run, stage, *args):
        original(run, stage, *args)
        names.append(stage.name)

    monkeypatch.setattr(runner.StageRun, "__init__", init)
    return names


@pytest.fixture
def distributed_lloyd(monkeypatch):
    """Lloyd's loop runs over the cluster."""
    chain.distribute(monkeypatch.setattr)


@pytest.fixture
def killed(processes, rows_file):  # noqa: F811 - a fixture, imported above
    """Return a function that runs the chain in a process of its own, which is killed at a point."""

    def run(pool, store, part, point):
        command = [sys.executable, CHILD, processes.scheduler_address, rows_file, pool, store, part, point]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
        assert done.returncode == -9, done.stderr

    return run
