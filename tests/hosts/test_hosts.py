"""The same run on hosts with addresses of their own, one of which is lost in the middle."""

import os
import signal
import subprocess
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import chain
import dask
import pytest
import yaml
from distributed import Client
from processes import DASK, running, until

import daskcurate as dc
from cluster_setup.certificates import make_certificates
from cluster_setup.ssh import ssh
from daskcurate import runner
from daskcurate.settings import dask_file

SETUP = Path(__file__).with_name("setup.sh")
ADDRESSES = {"dc-s": "10.77.0.2", "dc-a": "10.77.0.3", "dc-b": "10.77.0.4"}


def on(host, *command):
    """Return a command that runs on a host, as the leader of its processes."""
    return ["setsid", "ip", "netns", "exec", host, *map(str, command)]


@pytest.fixture
def cluster_of_hosts(tmp_path):
    """A scheduler and two workers, each on its host; the client and the workers' processes."""
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "daskcurate.yaml").write_text(dask_file())
    scheduler = f"tcp://{ADDRESSES['dc-s']}:8786"
    with ExitStack() as stack:
        settings = {"DASK_CONFIG": str(tmp_path / "settings")}

        def start(host, *command):
            where = on(host, *DASK, *command, "--host", ADDRESSES[host])
            return stack.enter_context(running(where, tmp_path / f"{host}.log", **settings))

        start("dc-s", "scheduler", "--port", "8786", "--dashboard-address", "127.0.0.1:8787")
        workers = {
            host: start(host, "worker", scheduler, "--nthreads", "1", "--memory-limit", "1GiB", "--no-dashboard",
                        "--local-directory", tmp_path / f"spill-{host}", "--name", host)
            for host in ("dc-a", "dc-b")
        }  # fmt: skip
        client = stack.enter_context(Client(scheduler, timeout="60s"))
        client.wait_for_workers(2, timeout=60)
        yield client, workers


def commands_on(host):
    """Return the command lines of what runs on a host."""
    listed = subprocess.run(["ip", "netns", "pids", host], check=True, capture_output=True, text=True)
    found = []
    for pid in listed.stdout.split():
        with suppress(OSError):  # it has ended since
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
    return found


def names(client):
    return {worker["name"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()}


def lose(process, host):
    """Cut a host off, then kill all that runs on it: nobody is told that its connections are gone."""
    subprocess.run([SETUP, "cut", host], check=True)
    os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.timeout(600)
def test_a_host_is_lost(cluster_of_hosts, emb, reference, tmp_path, monkeypatch):
    client, workers = cluster_of_hosts
    assert names(client) == {"dc-a", "dc-b"}
    addresses = {
        address.split("//")[1].split(":")[0] for address in client.scheduler_info(n_workers=-1)["workers"]
    }
    assert addresses == {ADDRESSES["dc-a"], ADDRESSES["dc-b"]}
    chain.distribute(monkeypatch.setattr)
    saves, lost = [], []
    original = runner.StageRun.save

    def save(run, **checkpoint):
        original(run, **checkpoint)
        saves.append(run.stage.kind)
        if (
            saves.count("kmeans") == 2 and not lost
        ):  # two updates are done, and the next one's tasks to be sent
            lost.append(threading.Timer(0.05, lose, (workers["dc-b"], "dc-b")))
            lost[0].start()

    monkeypatch.setattr(runner.StageRun, "save", save)
    found = dc.compute(chain.whole(emb), store=tmp_path / "run.zarr")
    (timer,) = lost
    timer.join()
    assert workers["dc-b"].wait(timeout=10) == -signal.SIGKILL
    assert names(client) == {"dc-a"}
    chain.same_as(found, reference)


@contextmanager
def logins(folder):
    """Start an SSH server on each host, which lets in one key alone; yield the options of the connection."""
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    config = folder / "sshd_config"
    config.write_text(
        f"HostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'user.pub'}\nPidFile none\nPort 2222\n"
        "StrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nUsePAM no\n"
    )
    key = (folder / "host.pub").read_text().split()[:2]
    known = folder / "known_hosts"
    known.write_text("".join(f"[{address}]:2222 {' '.join(key)}\n" for address in ADDRESSES.values()))
    with ExitStack() as stack:
        for host in ADDRESSES:
            command = on(host, "/usr/sbin/sshd", "-D", "-e", "-f", config)
            stack.enter_context(running(command, folder / f"{host}.log"))
        for host in ADDRESSES:
            until(lambda log=folder / f"{host}.log": "listening" in log.read_text(), "the SSH server")
        yield {
            "port": 2222,
            "username": "root",
            "client_keys": [str(folder / "user")],
            "known_hosts": str(known),
        }


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_over_ssh(emb, reference, tmp_path, monkeypatch, scheme):
    subprocess.run([SETUP, "mend", "dc-b"], check=True)
    chain.distribute(monkeypatch.setattr)
    hosts = [ADDRESSES["dc-a"], ADDRESSES["dc-b"]]
    settings = {}
    if scheme == "tls":
        made = yaml.safe_load(make_certificates(tmp_path / "tls")[-1].read_text())["distributed"]
        settings = {"distributed": dask.config.merge(dask.config.get("distributed"), made)}
    with logins(tmp_path) as connect, dask.config.set(settings):
        cluster = ssh(
            hosts, workers_per_host=2, threads_per_worker=1, memory_limit="768MiB", connect=connect,
            scheduler_host=ADDRESSES["dc-s"], spill_folder=tmp_path / "spill", dashboard_address=None,
            interface="eth0",
        )  # fmt: skip
        with cluster as client:
            workers = client.scheduler_info(n_workers=-1)["workers"]
            assert sorted(a.split("//")[1].split(":")[0] for a in workers) == sorted(hosts * 2)
            assert {address.split("://")[0] for address in workers} == {scheme}
            assert {worker["memory_limit"] for worker in workers.values()} == {768 << 20}
            assert client.scheduler.address.startswith(f"{scheme}://{ADDRESSES['dc-s']}:")
            assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.WORKER_SATURATION) == 1.0
            chain.same_as(dc.compute(chain.whole(emb), store=tmp_path / "run.zarr"), reference)
        # a worker whose host goes first would never hear that its scheduler is gone
        for host in ADDRESSES:
            until(
                lambda host=host: all("sshd" in command for command in commands_on(host)),
                f"the end of {host}",
            )
