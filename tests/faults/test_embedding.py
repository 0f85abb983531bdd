"""An embedding run whose worker or client is killed gives the pool of one that was not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributed import Client, wait
from lost_worker import LostWorker

sys.path.insert(0, str(Path(__file__).parents[1] / "embedding"))

import made  # noqa: E402

import daskcurate as dc  # noqa: E402


def rows_of(emb):
    return emb.array.compute(scheduler="synchronous")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (folder / "marks").mkdir()
    return made.slow_run(folder / "pool.zarr", folder / "marks")


@pytest.fixture
def marks(tmp_path):
    """Where each process leaves a file when it makes the model."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def same(emb, whole):
    assert emb.fingerprint == whole.fingerprint
    assert rows_of(emb).tobytes() == rows_of(whole).tobytes()


def by_process(marks):
    return [name.split("-")[0] for name in os.listdir(marks)]


def test_every_worker_makes_the_model_once(remote, whole, marks, tmp_path):
    same(made.slow_run(tmp_path / "pool.zarr", marks), whole)
    pids = by_process(marks)
    assert len(pids) == len(set(pids)) <= 2


def test_killed_worker(remote, whole, marks, tmp_path):
    remote.register_plugin(LostWorker("embed-", 3, tmp_path / "lost"))
    try:
        emb = made.slow_run(tmp_path / "pool.zarr", marks)
    finally:
        remote.unregister_worker_plugin(LostWorker.name)
    assert (tmp_path / "lost").exists()
    remote.wait_for_workers(2, timeout=20)
    wait(remote.submit(abs, 1))
    same(emb, whole)


def test_killed_client(processes, whole, marks, tmp_path):
    dest = tmp_path / "pool.zarr"
    code = "import sys, made; made.main(*sys.argv[1:])"  # not as a script: classes would be those of __main__
    command = [sys.executable, "-c", code, processes.scheduler_address, dest, marks]
    folder = Path(made.__file__).parent
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == -9, done.stderr
    assert not dest.exists()
    with pytest.raises(FileNotFoundError):
        dc.open_embeddings(dest)
    written = [path.stem for path in (tmp_path / "pool.zarr.partial").glob("*.done/*.json")]
    assert written
    kept = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "pool.zarr.partial").glob("*/embeddings/c/*/0")
    }
    with Client(processes):
        emb = made.slow_run(dest, marks)
    same(emb, whole)
    again = {path.stat().st_mtime_ns for path in (dest / "embeddings").glob("c/*/0")}
    assert len(again & set(kept.values())) >= len(written)  # moved into place, not written again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["marks", "pool.zarr"]
