import logging
import os
import signal
import socket
import subprocess
import sys
import time

import dask
import pytest
from distributed import Client, default_client

from cluster_setup.local_cpu import local_cpu, main
from daskcurate.local_cluster import LocalClusterConfig, dask_setup, make_local_cluster


def _inside_a_worker():
    import threadpoolctl
    import zarr

    return {
        "blas": {pool["num_threads"] for pool in threadpoolctl.threadpool_info()},
        "zarr": zarr.config.get("async.concurrency"),
        "memory": [
            dask.config.get(f"distributed.worker.memory.{name}")
            for name in ("target", "spill", "pause", "terminate")
        ],
    }


def test_workers_are_set_up_and_closed(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        # Warnings are errors here, so that this shows the silent change of port as well.
        spill = tmp_path / "a" / "spill"
        with local_cpu(1, memory_limit="512MiB", spill_folder=spill, dashboard_address=address) as client:
            assert default_client() is client
            (worker,) = client.scheduler_info()["workers"].values()
            assert worker["memory_limit"] == 512 * 2**20
            assert worker["nthreads"] == 1
            assert worker["local_directory"].startswith(str(spill))
            assert client.dashboard_link.startswith("http://127.0.0.1:")
            assert not client.dashboard_link.startswith(f"http://{address}/")
            assert client.cluster.scheduler.WORKER_SATURATION == 1.0
            (inside,) = client.run(_inside_a_worker).values()
            assert inside == {"blas": {1}, "zarr": 4, "memory": [0.6, 0.7, 0.8, 0.95]}
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert client.status == "closed"


@pytest.mark.parametrize(
    ("arguments", "error", "phrase"),
    [
        ({"n_workers": 0}, ValueError, r"n_workers=0 is not allowed: give an integer >= 1"),
        ({"n_workers": "2"}, TypeError, r"n_workers='2' is not allowed"),
        ({"threads_per_worker": 0}, ValueError, r"threads_per_worker=0 is not allowed"),
        ({"memory_limit": "lots"}, ValueError, r"memory_limit='lots' is not allowed: give 'auto'"),
        ({"memory_limit": 0.5}, TypeError, r"memory_limit=0.5 is not allowed"),
        ({"memory_limit": True}, TypeError, r"memory_limit=True is not allowed"),
        ({"memory_limit": "4MiB"}, ValueError, r"limit of each worker, which needs at least 128 MiB"),
        ({"spill_folder": 3}, TypeError, r"spill_folder=3 is not allowed"),
        ({"dashboard_address": 8787}, TypeError, r"dashboard_address=8787 is not allowed: give 'host:port'"),
        ({"dashboard_address": "localhost"}, ValueError, r"dashboard_address='localhost' is not allowed"),
        ({"dashboard_address": "localhost:99999"}, ValueError, r"a port from 0 to 65535"),
        ({"scheduler_port": -1}, ValueError, r"scheduler_port=-1 is not allowed"),
    ],
)
def test_bad_arguments_start_nothing(arguments, error, phrase, monkeypatch):
    monkeypatch.setattr("distributed.LocalCluster", None)
    with pytest.raises(error, match=phrase):
        make_local_cluster(**arguments)


def test_spill_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file' is not a folder"):
        make_local_cluster(n_workers=1, spill_folder=tmp_path / "file")


def test_defaults_share_the_machine():
    config = LocalClusterConfig()
    assert config.workers() == dask.system.cpu_count()
    one, four = LocalClusterConfig(n_workers=1), LocalClusterConfig(n_workers=4)
    assert four.memory() == pytest.approx(one.memory() / 4, abs=1)
    assert LocalClusterConfig(threads_per_worker=10_000).workers() == 1


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_command_runs_until_signalled(tmp_path, number):
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "cluster_setup.local_cpu", "--n-workers=1", "--memory-limit=512MiB"]
    command += ["--dashboard-address=127.0.0.1:0", f"--scheduler-file={file}"]
    # A session of its own, so that the workers get the signal too, as they do from a terminal.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while not file.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        with Client(scheduler_file=str(file)) as client:
            assert client.submit(sum, [1, 2]).result() == 3
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "scheduler  tcp://127.0.0.1:" in out
    assert "dashboard  http://127.0.0.1:" in out
    assert "Traceback" not in err
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--memory-limit", "4"], "memory_limit=4 is not allowed"),
        (["--n-workers", "0"], "n_workers=0 is not allowed"),
        (["--n-workers", "two"], "invalid int value: 'two'"),
        (["--scheduler-file", "/no/such/folder/s.json"], "there is no folder /no/such/folder"),
    ],
)
def test_command_refuses_bad_arguments(arguments, phrase, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert phrase in capsys.readouterr().err


def test_a_worker_does_not_report_heartbeats_that_its_closing_scheduler_missed(caplog, monkeypatch):
    logger, before = logging.getLogger("distributed.worker"), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(logger, "filters", list(logger.filters))
    monkeypatch.setattr(logger, "propagate", True)
    try:
        dask_setup(None)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    logger.error("Failed to communicate with scheduler during heartbeat.")
    logger.error("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
