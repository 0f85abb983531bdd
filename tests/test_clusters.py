"""Kinds of clusters by name, in files and in commands; nothing here starts one."""

import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import dask
import numpy as np
import pytest

import daskcurate as dc
from cluster_setup.__main__ import main
from cluster_setup.slurm import tasks_on_nodes
from daskcurate import clusters
from daskcurate.clusters import (
    ClusterSpec,
    Place,
    UsageError,
    cluster_names,
    cluster_section,
    find_cluster,
    read_cluster,
)
from daskcurate.marked_yaml import ConfigError, parse
from daskcurate.pipeline_config import load_config

KINDS = {"local", "local-cpu", "local-cuda", "slurm", "slurm-allocation", "ssh"}


def test_kinds_are_found_by_name_and_not_imported():
    assert set(cluster_names()) >= KINDS
    assert find_cluster("slurm").__module__ == "cluster_setup.slurm"
    code = (
        "import sys, daskcurate.cli, daskcurate.local_cluster, daskcurate.clusters as c; c.cluster_names(); "
        "sys.exit(any(name in sys.modules for name in ('cluster_setup', 'pipelines', 'dask_jobqueue')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(
        ValueError, match=r"cluster='slrm' is not allowed: give one of .*did you mean 'slurm'\?"
    ):
        find_cluster("slrm")


def section(text):
    return cluster_section(parse(text, "run.yaml"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{n_workers: 2}", ClusterSpec("local", {"n_workers": 2})),
        ("{device: cpu}", ClusterSpec("local", {"device": "cpu"})),
        ("local-cpu", ClusterSpec("local-cpu")),
        ("slurm", ClusterSpec("slurm")),
        (
            "{name: slurm, n_workers: 4, queue: batch}",
            ClusterSpec("slurm", {"n_workers": 4, "queue": "batch"}),
        ),
        ("{name: ssh, hosts: [a, b]}", ClusterSpec("ssh", {"hosts": ["a", "b"]})),
    ],
)
def test_sections(text, wanted):
    assert section(text) == wanted


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("slrm", "line 1: name: unknown cluster 'slrm': give one of .*did you mean 'slurm'"),
        ("{name: 3}", "unknown cluster 3"),
        ("[slurm]", "give the name of a cluster, or options"),
        ("{name: slurm, workers: 3}", "workers: unknown key 'workers'.*did you mean 'n_workers'"),
        ("{name: slurm,\nn_workers: 0}", "line 2: n_workers: n_workers=0 is not allowed"),
        (
            "{name: slurm, n_workers: 3, workers_per_job: 2}",
            "n_workers=3 is not allowed: jobs have 2 workers",
        ),
        ("{name: slurm, min_workers: 2}", "min_workers=2 is not allowed"),
        ("{name: slurm, memory_limit: auto}", "memory_limit='auto' is not allowed: a job asks for a size"),
        ("{name: slurm, walltime: 1:00:00}", "walltime=3600 is not allowed.*in quotes"),
        ("{name: slurm, queue: 3}", "queue=3 is not allowed: give text or None"),
        ("{name: slurm, job_options: --exclusive}", "job_options='--exclusive' is not allowed: give a list"),
        ("{name: slurm, dashboard_address: here}", "dashboard_address='here' is not allowed"),
        ("{name: slurm-allocation, memory_limit: 1MiB}", "at least 128 MiB"),
        ("{name: slurm-allocation, threads_per_worker: 0}", "threads_per_worker=0 is not allowed"),
        ("{device: cuda}", "line 1: device: device='cuda' is not allowed: give one of auto, cpu, gpu"),
        ("{name: local-cpu, device: cpu}", "unknown key 'device'"),
        ("ssh", "hosts=.* is not allowed: give a list of host names"),
        ("{name: ssh, hosts: a}", "hosts='a' is not allowed: give a list of host names"),
        ("{name: ssh, hosts: [a], workers_per_host: 2}", "not allowed without threads_per_worker"),
        ("{name: ssh, hosts: [a], connect: key}", "connect='key' is not allowed: give options of asyncssh"),
    ],
)
def test_sections_that_are_refused(text, phrase):
    with pytest.raises(ConfigError, match=f"(?s){phrase}"):
        section(text)


def test_options_come_before_the_section(tmp_path):
    rack = ClusterSpec("slurm", {"n_workers": 8, "queue": "batch"})
    assert Place().spec(rack) == rack
    assert Place().spec() == ClusterSpec()
    for kind in KINDS - {"ssh", "local-cuda"}:  # one needs hosts, the other GPUs
        assert Place(cluster=kind).opened_by_one() == (kind != "slurm-allocation")
    assert Place(cluster="slurm", n_workers=2).spec(rack) == ClusterSpec(
        "slurm", {"n_workers": 2, "queue": "batch"}
    )
    assert Place(cluster="local-cpu", memory_limit="1GiB").spec(rack) == ClusterSpec(
        "local-cpu", {"memory_limit": "1GiB"}
    )
    file = tmp_path / "cluster.yaml"
    file.write_text("cluster: {name: slurm, n_workers: 3}")
    assert Place(cluster_config=file).spec(rack) == ClusterSpec("slurm", {"n_workers": 3})
    with pytest.raises(UsageError, match="which is for slurm"):
        Place(cluster="local-cpu", cluster_config=file).spec(rack)
    file.write_text("{queue: long}")
    assert Place(cluster="slurm", cluster_config=file).spec() == ClusterSpec("slurm", {"queue": "long"})
    with pytest.raises(ConfigError, match="queue: unknown key 'queue'"):
        Place(cluster_config=file).spec()
    with pytest.raises(UsageError, match="none.yaml: there is no such file"):
        Place(cluster_config=tmp_path / "none.yaml").spec()
    with pytest.raises(UsageError, match="--n-workers is not for the cluster ssh"):
        Place(cluster="ssh", n_workers=2).spec()


def test_the_device_of_the_command_comes_before_that_of_the_section():
    ours = section("{device: gpu, n_workers: 2}")
    assert Place().spec(ours) == ours
    assert Place(device="cpu").spec(ours) == ClusterSpec("local", {"n_workers": 2, "device": "cpu"})
    assert Place(device="cpu").spec() == ClusterSpec("local", {"device": "cpu"})
    assert Place(device="auto", cluster="slurm").spec() == ClusterSpec("slurm")
    for name, device in (("local-cpu", "gpu"), ("local-cuda", "cpu"), ("slurm", "gpu")):
        with pytest.raises(UsageError, match=f"--device {device} is for the cluster local, not for {name}"):
            Place(cluster=name, device=device).spec()


def test_a_cluster_that_is_asked_for_comes_before_the_environment(tmp_path):
    with dask.config.set({"scheduler-address": "tcp://127.0.0.1:1"}):
        assert Place().scheduler_at() == {"address": "tcp://127.0.0.1:1"}
        assert Place(cluster="slurm").scheduler_at() is None
    for more in ({"cluster": "slurm"}, {"cluster_config": tmp_path}, {"scheduler_file": tmp_path}):
        with pytest.raises(UsageError, match="do not go together, give one of them"):
            Place(scheduler="tcp://127.0.0.1:1", **more).scheduler_at()


def test_what_a_plan_is_made_for():
    def size(count, memory, threads):
        return {"n_workers": count, "memory_limit": memory, "threads_per_worker": threads}

    assert ClusterSpec("slurm", {"n_workers": 6, "threads_per_worker": 4}).size() == size(6, "4GiB", 4)
    assert ClusterSpec("slurm-allocation", {"threads_per_worker": 4}).size() == size(None, None, None)
    assert ClusterSpec("ssh", {"hosts": ["a"], "memory_limit": "2GiB"}).size() == size(None, "2GiB", None)
    options = {"n_workers": 2, "memory_limit": "1GiB", "threads_per_worker": 3}
    for name in ("local", "local-cpu"):
        assert ClusterSpec(name, options).size() == size(2, 1 << 30, 3)


def test_a_plan_knows_of_threads_that_share_a_workers_memory(pool):
    flat = dc.kmeans(pool(np.ones((100, 4))), 5)
    with pytest.raises(ValueError, match="threads_per_worker=2 is not allowed without n_workers"):
        dc.plan(flat, threads_per_worker=2)
    with pytest.raises(ValueError, match="threads_per_worker=0 is not allowed"):
        dc.plan(flat, n_workers=1, threads_per_worker=0)
    one, four = (dc.plan(flat, n_workers=2, memory_limit="4GiB", threads_per_worker=n) for n in (1, 4))
    peak = [max(stage.peak_memory for stage in found.stages) for found in (one, four)]
    assert peak[1] > peak[0]


@pytest.fixture
def toy(monkeypatch, client):
    """A kind of cluster of someone else's, found as an entry point; the options that it is opened with."""
    opened = []

    @contextmanager
    def start(n_workers=1, colour="red"):
        opened.append((n_workers, colour))
        yield client

    class Entry:
        name = "toy"

        def load(self):
            return start

    monkeypatch.setattr(clusters, "entry_points", lambda group: [Entry()] if group == clusters.GROUP else [])
    return opened


def test_a_run_and_a_recipe_on_a_kind_of_someone_elses(toy, tmp_path, monkeypatch, pool):
    from daskcurate.cli import main as daskcurate
    from pipelines.dbp import RECIPE

    monkeypatch.chdir(tmp_path)
    emb = pool(np.random.default_rng(0).normal(size=(400, 8)), normalize=True)
    (tmp_path / "run.yaml").write_text(
        f"embeddings: {emb.path}\nstore: run.zarr\nstages: {{flat: {{kmeans: {{n_clusters: 4}}}}}}\n"
        "cluster: {name: toy, n_workers: 3}\n"
    )
    for number, (arguments, wanted) in enumerate(
        (
            ([], (3, "red")),
            (["--cluster", "toy", "--n-workers", "5"], (5, "red")),
            (["--set", "cluster.colour=blue"], (3, "blue")),
        )
    ):
        with pytest.raises(SystemExit) as status:
            daskcurate(["run", "run.yaml", "--set", f"store=run-{number}.zarr", *arguments])
        assert status.value.code == 0
        assert toy.pop() == wanted
    for opened_by_each in (False, True):  # nothing is left to run; but it may be for each process to open it
        find_cluster("toy").every_process_opens_it = opened_by_each
        with pytest.raises(SystemExit) as status:
            daskcurate(["run", "run.yaml", "--set", "store=run-0.zarr"])
        assert status.value.code == 0
        assert len(toy) == opened_by_each
    toy.clear()
    given = ["--embeddings", emb.path, "--store", "recipe.zarr", "--scale", "0.0002", "--cluster", "toy"]
    with pytest.raises(SystemExit) as status:
        RECIPE.main(given)
    assert (status.value.code, toy.pop()) == (0, (1, "red"))


def test_the_command_refuses(capsys):
    for arguments, phrase in (
        (["slrm"], "did you mean 'slurm'"),
        (["slurm", "--n-workers", "0"], "n_workers=0 is not allowed"),
        (["ssh"], "hosts=() is not allowed"),
        (["slurm-allocation"], "slurm-allocation is for tasks that srun started"),
        (["local-cpu", "--scheduler-file", "/no/such/folder/s.json"], "there is no folder /no/such/folder"),
    ):
        assert main(arguments) == 2
        assert phrase in capsys.readouterr().err


def test_tasks_on_nodes():
    assert tasks_on_nodes("4,1") == [4, 1]
    assert tasks_on_nodes("16(x3),2") == [16, 16, 16, 2]
    assert tasks_on_nodes("1") == [1]


def test_the_page_about_clusters(tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "clusters.md").read_text()
    run, over_ssh = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "run.yaml").write_text(run)
    found = load_config(tmp_path / "run.yaml").cluster
    assert (found.name, found.options["memory_limit"]) == ("slurm", "16GiB")
    (tmp_path / "rack.yaml").write_text(over_ssh)
    assert read_cluster(tmp_path / "rack.yaml").options["hosts"] == ["node1", "node2"]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) == KINDS
