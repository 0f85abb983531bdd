"""The same run on SLURM: workers as jobs, and as the tasks of one allocation."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import chain
import dask
import numpy as np
import pytest
from conftest import jobs
from processes import until

import daskcurate as dc
from cluster_setup.slurm import slurm
from daskcurate.cli import main

RUN = """
embeddings: {pool}
store: {store}
stages:
  flat: {{kmeans: {{n_clusters: 12, metric: cosine, n_iters: 6, seed: 1}}}}
  dedup: {{semantic_dedup: {{clustering: flat, eps: 0.02}}}}
  prune: {{density_prune: {{clustering: flat, keep_fraction: 0.8, n_neighbors: 5, within: dedup}}}}
  tree:
    hierarchical_kmeans: {{n_clusters: [30, 8], sample_sizes: [1, 3], n_resamples: 1, within: prune, seed: 2}}
  picks: {{hierarchical_sample: {{tree: tree, target_size: 300, seed: 3}}}}
exports: {{{picks}: picks}}
cluster: {{name: slurm, n_workers: 2, memory_limit: 768MiB, queue: batch}}
"""
DASKCURATE = Path(sys.executable).with_name("daskcurate")
OPTIONS = {"memory_limit": "768MiB", "queue": "batch", "walltime": "00:10:00", "dashboard_address": None}


@pytest.fixture
def run_on(emb, tmp_path, monkeypatch):
    """Return a function that writes the run's file for a kind of cluster; the picks' file."""
    monkeypatch.chdir(tmp_path)

    def write(name):
        picks = tmp_path / f"{name}.npy"
        Path("run.yaml").write_text(RUN.format(pool=emb.path, store=tmp_path / f"{name}.zarr", picks=picks))
        return picks

    return write


@pytest.fixture
def wanted(run_on):
    """The picks of a run on this machine's cores."""
    picks = run_on("local-cpu")
    command = ["run", "run.yaml", "--cluster", "local-cpu", "--n-workers", "2", "--memory-limit", "768MiB"]
    with pytest.raises(SystemExit) as status:
        main(command)
    assert status.value.code == 0
    return np.load(picks)


def test_jobs(emb, reference, tmp_path, monkeypatch):
    def inside():
        names = ("SLURM_JOB_ID", "SLURMD_NODENAME", "OMP_NUM_THREADS")
        return [os.environ.get(name) for name in names] + [dask.config.get("distributed.p2p.comm.buffer")]

    chain.distribute(monkeypatch.setattr)
    logs = tmp_path / "logs"
    shown = OPTIONS | {"dashboard_address": "127.0.0.1:8787"}
    with slurm(
        n_workers=4, workers_per_job=2, log_folder=logs, spill_folder=tmp_path / "spill", **shown
    ) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        assert {worker["memory_limit"] for worker in workers} == {768 << 20}
        assert {worker["nthreads"] for worker in workers} == {1}
        found = list(client.run(inside).values())
        assert {job for job, *_ in found} == set(jobs())
        assert len(found) == 4
        assert {tuple(rest[1:]) for _, *rest in found} == {("1", "32 MiB")}
        asked = subprocess.run(
            ["squeue", "--noheader", "--format=%C %m %P %l"], capture_output=True, text=True
        )
        assert set(asked.stdout.splitlines()) == {"2 2G batch 10:00"}
        chain.same_as(dc.compute(chain.whole(emb), store=tmp_path / "run.zarr"), reference)
        link = urlsplit(client.dashboard_link)
        assert link.hostname == "127.0.0.1"
        with socket.create_connection((link.hostname, link.port), timeout=10):
            pass
        other = client.scheduler.address.removeprefix("tcp://").split(":")[0]
        assert other != link.hostname
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((other, link.port), timeout=10)
    until(lambda: not jobs(), "the jobs' end")
    assert len(list(logs.iterdir())) == 4


def test_a_job_that_is_cancelled(emb, reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where SLURM puts the output of jobs
    chain.distribute(monkeypatch.setattr)
    with slurm(n_workers=2, **OPTIONS) as client:
        first = min(jobs(), key=int)

        def cancel():
            until(lambda: dc.store.RunStore(tmp_path / "run.zarr").exists(), "the run's start")
            subprocess.run(["scancel", first], check=True)

        other = threading.Thread(target=cancel)
        other.start()
        chain.same_as(dc.compute(chain.whole(emb), store=tmp_path / "run.zarr"), reference)
        other.join()
        until(lambda: first not in jobs(), "the job's end")
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 1, "the worker's end")
    until(lambda: not jobs(), "the jobs' end")


def test_the_file_of_a_run(run_on, wanted):
    picks = run_on("slurm")
    done = subprocess.run([DASKCURATE, "run", "run.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(picks), wanted)
    until(lambda: not jobs(), "the jobs' end")


@pytest.mark.parametrize("tasks", [3, 5])
def test_the_tasks_of_an_allocation(tasks, run_on, wanted):
    picks = run_on("slurm-allocation")
    command = ["srun", "-n", tasks, "--mem-per-cpu=512M", DASKCURATE, "run", "run.yaml"]
    command += ["--cluster", "slurm-allocation"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(picks), wanted)
    assert done.stdout.count("Wrote") == 1
    until(lambda: not jobs(), "the job's end")
    assert not list(Path.cwd().glob("scheduler-*.json"))


def test_the_memory_of_a_task(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from cluster_setup.slurm import slurm_allocation\n"
        "if __name__ == '__main__':\n"
        "    with slurm_allocation(threads_per_worker=2, dashboard_address=None) as client:\n"
        "        for worker in client.scheduler_info(n_workers=-1)['workers'].values():\n"
        "            print(worker['nthreads'], worker['memory_limit'] >> 20, flush=True)\n"
    )
    command = ["srun", "-n", "5", "--mem-per-cpu=512M", sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2 512"] * 3


def test_an_allocation_that_is_too_small(run_on):
    run_on("slurm-allocation")
    command = ["srun", "-n", "2", DASKCURATE, "run", "run.yaml"]
    done = subprocess.run(
        [*command, "--cluster", "slurm-allocation"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 2
    assert "srun -n 2 is not allowed: give at least 3 tasks" in done.stderr


def test_a_queue_that_there_is_not(run_on):
    run_on("slurm")
    command = [DASKCURATE, "run", "run.yaml", "--set", "cluster.queue=night"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "SLURM refuses the workers' jobs" in done.stderr
    assert "invalid partition specified: night" in done.stderr
    assert not jobs()
