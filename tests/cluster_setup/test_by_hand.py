"""Schedulers and workers started with Dask's own commands, over TCP and over TLS."""

import os
import socket
import ssl
import subprocess
import sys

import chain
import pytest
from distributed import Client, Security
from processes import by_hand

import daskcurate as dc
from cluster_setup.__main__ import main
from cluster_setup.certificates import make_certificates


def test_the_settings_and_the_whole_chain(settings, emb, reference, tmp_path, monkeypatch):
    chain.distribute(monkeypatch.setattr)

    def inside_a_worker():
        import dask
        import threadpoolctl
        import zarr

        from daskcurate import settings, tasks

        return {
            "pid": os.getpid(),
            "blas": {pool["num_threads"] for pool in threadpoolctl.threadpool_info()},
            "zarr": zarr.config.get("async.concurrency"),
            "terminate": dask.config.get("distributed.worker.memory.terminate"),
            "shuffle": dask.config.get("distributed.p2p.comm.buffer"),
            "malloc": (tasks.keep_freed_memory(), settings.kept_bytes()),
        }

    with by_hand(tmp_path, settings) as file, Client(scheduler_file=str(file)) as client:
        client.wait_for_workers(2, timeout=60)
        found = list(client.run(inside_a_worker).values())
        assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.WORKER_SATURATION) == 1.0
        chain.same_as(dc.compute(chain.whole(emb), store=tmp_path / "run.zarr"), reference)
    assert os.getpid() not in [one.pop("pid") for one in found]
    wanted = {"blas": {1}, "zarr": 4, "terminate": 0.95, "shuffle": "32 MiB"}
    malloc = (sys.platform.startswith("linux"), 32 << 20)
    assert found == [{**wanted, "malloc": malloc}] * 2


@pytest.mark.slow
def test_the_whole_chain_over_tls(settings, emb, reference, tmp_path, monkeypatch):
    *pems, file = make_certificates(tmp_path / "tls")
    (settings / "tls.yaml").write_text(file.read_text())
    chain.distribute(monkeypatch.setattr)
    with by_hand(tmp_path, settings, protocol="tls") as scheduler_file:
        with pytest.raises((OSError, RuntimeError, TypeError), match=r"(?i)tls|ssl|security"):
            Client(scheduler_file=str(scheduler_file), timeout="5s")
        ca, cert, key = map(str, pems)
        security = Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)
        with Client(scheduler_file=str(scheduler_file), security=security) as client:
            client.wait_for_workers(2, timeout=60)
            workers = client.scheduler_info(n_workers=-1)["workers"]
            assert [address.partition(":")[0] for address in workers] == ["tls", "tls"]
            host, port = client.scheduler.address.removeprefix("tls://").split(":")
            assert "certificate verify failed" in _refusal(host, port)
            chain.same_as(dc.compute(chain.whole(emb), store=tmp_path / "run.zarr"), reference)
    assert {file.stat().st_mode & 0o777 for file in pems} == {0o600}


def _refusal(host, port):
    """Return what a client that does not know the authority says of the scheduler's certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        with pytest.raises(ssl.SSLCertVerificationError) as error:
            context.wrap_socket(plain)
    return str(error.value)


def test_certificates_are_checked_by_openssl(tmp_path):
    ca, cert, key, _ = make_certificates(tmp_path / "tls", days=3)
    found = subprocess.run(["openssl", "verify", "-CAfile", ca, cert], capture_output=True, text=True)
    assert found.stdout.strip() == f"{cert}: OK", found.stderr
    assert "PRIVATE KEY" in key.read_text()
    assert "PRIVATE" not in ca.read_text() + cert.read_text()


def test_certificates_are_not_written_over(tmp_path, capsys):
    assert main(["certificates", str(tmp_path / "tls")]) == 0
    before = {file: file.read_bytes() for file in (tmp_path / "tls").iterdir()}
    assert len(before) == 4
    assert main(["certificates", str(tmp_path / "tls")]) == 2
    assert "ca.pem is there already" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (tmp_path / "tls").iterdir()} == before
    assert main(["certificates", str(tmp_path / "new"), "--days=0"]) == 2
    assert "days=0 is not allowed" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
