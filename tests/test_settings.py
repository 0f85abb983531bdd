"""The settings under ``daskcurate:`` in Dask's configuration: each is read where it counts."""

import os
import subprocess
import sys

import dask
import pytest
import yaml

from daskcurate import runner, settings
from daskcurate.progress import Progress


def test_every_setting_of_the_file_is_there():
    wanted = yaml.safe_load(settings.FILE.read_text())["daskcurate"]
    assert {name: dask.config.get(f"daskcurate.{name}") for name in wanted} == {**wanted, "progress": False}


def test_a_value_of_the_users_stays(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "daskcurate: {retries: 7, dask: {distributed: {worker: {memory: {spill: 0.5}}}}}"
    )
    code = "from daskcurate import settings as s; print(s.retries(), s.kept_bytes(), s.dask_settings())"
    environment = {**os.environ, "DASK_CONFIG": str(tmp_path), "DASK_DASKCURATE__KEPT_MEMORY": "1 MiB"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.startswith("7 1048576 ")
    assert "'distributed.worker.memory.spill': 0.5" in done.stdout
    assert "'distributed.worker.memory.target': 0.6" in done.stdout


def test_the_file_for_hand_started_processes_says_the_same():
    flat = {}

    def visit(level, before):
        for name, value in level.items():
            if isinstance(value, dict):
                visit(value, f"{before}{name}.")
            else:
                flat[before + name] = value

    visit(yaml.safe_load(settings.dask_file()), "")
    assert flat == settings.dask_settings()
    assert flat["distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS"] == "1"


def test_retries_are_those_of_the_setting(client, monkeypatch):
    given = []
    original = client.compute
    monkeypatch.setattr(
        client, "compute", lambda *args, **more: given.append(more["retries"]) or original(*args, **more)
    )
    loose = runner.LooseTasks(client)
    for number in (0, 5):
        with dask.config.set({"daskcurate.retries": number}):
            assert loose.gather([loose.task(abs, -number, name="test", key=number)]) == [number]
    assert given == [0, 5]
    with (
        dask.config.set({"daskcurate.retries": -1}),
        pytest.raises(ValueError, match="daskcurate.retries=-1"),
    ):
        loose.gather([loose.task(abs, 1, name="test", key="none")])


def test_progress_is_that_of_the_setting():
    with dask.config.set({"daskcurate.progress": True}):
        assert Progress([]).lines
    assert not Progress([]).lines


def test_a_local_cluster_takes_the_settings():
    from daskcurate.local_cluster import settings_in_force

    before = dask.config.get("distributed.worker.memory.spill"), os.environ.get("OMP_NUM_THREADS")
    changed = {
        "daskcurate.dask.distributed.worker.memory.spill": 0.65,
        "daskcurate.environment": {"OMP_NUM_THREADS": 3},
    }
    with dask.config.set(changed), settings_in_force():
        assert dask.config.get("distributed.worker.memory.spill") == 0.65
        assert os.environ["OMP_NUM_THREADS"] == "3"
    assert (dask.config.get("distributed.worker.memory.spill"), os.environ.get("OMP_NUM_THREADS")) == before
