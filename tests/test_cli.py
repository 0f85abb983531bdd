"""The command line, as a user calls it: demo, ingest, plan, run, status and export."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import daskcurate as dc
from daskcurate import cli, demo
from daskcurate.store import RunStore

N, DIM = 300, 8


@pytest.fixture
def scheduler_file(cluster, tmp_path):
    """The file that a scheduler started with --scheduler-file writes."""
    path = tmp_path / "scheduler.json"
    path.write_text(json.dumps({"type": "Scheduler", "address": cluster.scheduler_address}))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder in which the commands run: embeddings, ids, and a run's configuration."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, DIM)).astype(np.float32)
    x[-40:] = x[:40]
    np.save("rows.npy", x)
    np.savetxt("ids.txt", [f"image-{i}" for i in range(N)], fmt="%s")
    config = {
        "embeddings": "pool.zarr",
        "store": "run.zarr",
        "stages": {
            "flat": {"kmeans": {"n_clusters": 4, "metric": "cosine", "n_iters": 5}},
            "dedup": {"semantic_dedup": {"clustering": "flat", "eps": 0.01}},
            "picks": {"hierarchical_sample": {"tree": "flat", "target_size": 50, "within": "dedup"}},
        },
        "exports": {"picks.npy": "picks", "picks.parquet": "picks", "kept.txt": "dedup"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    config["embeddings"] = {"source": "rows.npy", "dest": "pool.zarr", "ids": "ids.txt", "normalize": True}
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return tmp_path


@pytest.fixture
def call(capsys, monkeypatch):
    """Return a function that runs a command and returns its exit code, output and errors."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() replaces it

    def run(*arguments):
        with pytest.raises(SystemExit) as raised:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=raised.value.code or 0, out=out, err=err)

    return run


def ingest(call, *options):
    return call("ingest", "rows.npy", "pool.zarr", "--ids", "ids.txt", "--normalize", *options)


def test_help_lists_the_commands(call):
    found = call("--help")
    assert found.code == 0
    for name in ("demo", "ingest", "plan", "run", "status", "export", "report", "choose-eps", "choose-k"):
        assert name in found.out


def test_ingest(folder, call):
    found = ingest(call)
    assert found.code == 0
    assert "300 rows x 8 float32, unit length, with ids" in found.out
    assert list(dc.open_embeddings("pool.zarr").ids[:2].compute()) == ["image-0", "image-1"]
    assert ingest(call).code == 2
    assert ingest(call, "--overwrite", "--dtype", "float16").code == 0
    assert dc.open_embeddings("pool.zarr").dtype == np.float16


def test_inspection_writes_nothing(folder, call):
    before = sorted(folder.iterdir())
    for dest in ((), ("pool.zarr",)):
        found = call("ingest", "rows.npy", *dest, "--inspect", "--ids", "ids.txt")
        assert (found.code, found.err) == (0, "")
        for text in (
            "npy",
            "300",
            "8",
            "float32",
            "text of",
            "'image-0'",
            "not of unit length",
            "to read and check",
        ):
            assert text in found.out
        assert ("pool.zarr: nothing is there yet" in found.out) == bool(dest)
    assert sorted(folder.iterdir()) == before
    assert "600" in call("ingest", "--inspect", "rows.npy", "rows.npy").out
    ingest(call)
    assert "pool.zarr: a pool is there" in call("ingest", "rows.npy", "pool.zarr", "--inspect").out
    assert call("ingest", "--inspect", "pool.zarr", "--no-ids").out.count("row numbers") == 1


def test_what_ingest_cannot_use(folder, call):
    for arguments, text in (
        (("rows.npy",), "rows.npy alone is not enough: give the source, and the pool to make"),
        (("rows.npy", "p.zarr", "--format", "npyy"), "did you mean 'npy'"),
        (
            ("rows.npy", "p.zarr", "--ids", "ids.txt", "--no-ids"),
            "--ids ids.txt with --no-ids: give one of them",
        ),
        (("rows.npy", "p.zarr", "--ids-dtype", "S4"), "ids_dtype='S4' is not allowed with ids=None"),
        (("nothing.npy", "--inspect"), "there is no file or folder at"),
    ):
        found = call("ingest", *arguments)
        assert found.code == 2
        assert text in found.err
    assert not (folder / "p.zarr").exists()


def test_headerless_files_and_several_sources(folder, call):
    x = np.load("rows.npy")
    x.tofile("rows.dat")
    np.array([f"k{i}" for i in range(N)], "S8").tofile("paths.dat")
    found = call(
        "ingest", "rows.dat", "p.zarr", "--shape", N, DIM, "--source-dtype", "float32", "--normalize",
        "--ids", "paths.dat", "--ids-dtype", "S8",
    )  # fmt: skip
    assert found.code == 0
    assert list(dc.open_embeddings("p.zarr").ids[-1:].compute()) == [f"k{N - 1}"]
    assert call("ingest", "rows.npy", "rows.npy", "two.zarr", "--no-normalize").code == 0
    assert len(dc.open_embeddings("two.zarr")) == 2 * N


def test_plan_and_dry_run(folder, call):
    ingest(call)
    for command in (("plan", "run.yaml"), ("run", "run.yaml", "--dry-run")):
        found = call(*command, "--n-workers", "2", "--memory-limit", "1GiB", "--set", "stages.dedup.eps=0.2")
        assert found.code == 0
        for text in ("k-means 4", "dedup eps 0.2", "sample 50", "peak memory"):
            assert text in found.out
        assert not (folder / "run.zarr").exists()
    assert call("plan", "run.yaml", "--memory-limit", "200MiB").code == 3


def test_a_run_its_status_and_its_exports(folder, call, scheduler_file, cluster):
    ingest(call)
    on_cluster = ("--scheduler-file", scheduler_file)
    found = call("run", "run.yaml", *on_cluster)
    assert (found.code, found.err) == (0, "")
    assert "picks: 50 rows" in found.out
    assert "Wrote picks.npy" in found.out
    picks = np.load("picks.npy")
    assert len(picks) == 50
    table = pq.read_table("picks.parquet").to_pandas()
    assert np.array_equal(np.flatnonzero(table["keep"]), picks)
    kept = (folder / "kept.txt").read_text().split()
    assert len(kept) == N - 40
    assert call("plan", "run.yaml", *on_cluster).out.endswith("to run: run.zarr holds every stage.\n")
    again = call("export", "run.yaml", "dedup", "kept.txt")
    assert again.code == 2
    assert "kept.txt exists already: give another dest, or overwrite=True (--overwrite)" in again.err
    assert kept[0].startswith("image-")

    found = call("status", "run.zarr")
    assert found.code == 0
    assert found.out.count("finished") == 3
    for text in ("kmeans-", "semantic_dedup-", "hierarchical_sample-", "260", "eps=0.01"):
        assert text in found.out

    before = {path.name: path.stat().st_mtime_ns for path in (folder / "run.zarr").iterdir()}
    again = call("run", "run.yaml", *on_cluster)
    assert again.code == 0
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "run.zarr").iterdir()} == before
    assert np.array_equal(np.load("picks.npy"), picks)

    found = call("run", "run.yaml", "--set", "stages.picks.target_size=7", *on_cluster)
    assert "picks: 7 rows" in found.out
    assert len(list((folder / "run.zarr").glob("*-*"))) == len(
        before
    )  # one more stage; the store's own file is no stage

    found = call("export", "run.yaml", "dedup", "removed.txt", "--format", "removed-ids")
    assert found.code == 0
    assert len((folder / "removed.txt").read_text().split()) == 40
    assert call("export", "run.yaml", "dedup", "removed.txt").code == 2
    assert call("export", "run.yaml", "dedup", "removed.txt", "--overwrite").code == 0
    assert call("export", "run.yaml", "flat", "flat.parquet").code == 0
    assert len(pq.read_table("flat.parquet")) == N


def test_subsets(folder, call, scheduler_file):
    ingest(call)
    assert call("run", "run.yaml", "--scheduler-file", scheduler_file).code == 0
    picks = np.load("picks.npy")
    for arguments in (
        ("run.yaml", "picks", "a.zarr"),
        ("pool.zarr", "picks.npy", "b.zarr"),
        ("pool.zarr", "picks.parquet", "c.zarr", "--repeats"),
        ("pool.zarr", "hierarchical_sample", "d.zarr", "--store", "run.zarr"),
    ):
        found = call("subset", *arguments)
        assert (found.code, found.err) == (0, "")
        assert "50 rows x 8 float32, unit length, with ids" in found.out
        kept = dc.open_embeddings(arguments[2])
        assert list(kept.ids.compute()) == [f"image-{i}" for i in picks]
    for arguments, text in (
        (("run.yaml", "picks", "a.zarr"), "a.zarr exists already"),
        (("run.yaml", "pick", "e.zarr"), "stage 'pick' is not in run.yaml: it has flat, dedup, picks"),
        (("run.yaml", "flat", "e.zarr"), "is not allowed: give a computed Selection"),
        (("run.yaml", "picks", "e.zarr", "--store", "run.zarr"), "--store run.zarr is for a pool"),
        (("run.yaml", "picks", "e.zarr", "--set", "stages.dedup.eps=0.2"), "lacks the stages"),
        (("pool.zarr", "picks.npy", "e.zarr", "--set", "store=x"), "--set is for a run's YAML file"),
        (("pool.zarr", "kept.txt", "e.zarr"), "allowed are '.npy' and '.parquet'"),
        (("pool.zarr", "kmeans", "e.zarr", "--store", "run.zarr"), "is no selection of"),
    ):
        found = call("subset", *arguments)
        assert found.code == 2
        assert text in found.err
    assert call("subset", "run.yaml", "dedup", "a.zarr", "--overwrite").code == 0
    assert len(dc.open_embeddings("a.zarr")) == N - 40
    assert not (folder / "e.zarr").exists()


def test_every_format_of_export(folder, call, scheduler_file):
    ingest(call)
    assert call("run", "run.yaml", "--scheduler-file", scheduler_file).code == 0
    for number, format in enumerate(("npy", "parquet", "ids", "removed-ids", "trie", "curator", "weights")):
        assert call("export", "run.yaml", "picks", f"out-{number}", "--format", format).code == 0
        assert (folder / f"out-{number}").stat().st_size
    found = call("export", "run.yaml", "picks", "out.npy", "--format", "datacomp")
    assert found.code == 2
    assert "which is not a uid of DataComp" in found.err


def test_a_run_that_ingests(folder, call, cluster):
    found = call("run", "whole.yaml", "--scheduler", cluster.scheduler_address)
    assert (found.code, found.err) == (0, "")
    assert len(np.load("picks.npy")) == 50
    assert dc.open_embeddings("pool.zarr").normalized


def test_warnings_are_shown(folder, call, scheduler_file):
    ingest(call)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = cli._show_warning
        found = call(
            "run", "run.yaml", "--scheduler-file", scheduler_file, "--set", "stages.picks.target_size=290"
        )
    assert found.code == 0
    assert "daskcurate: warning: target_size=290 is more than the 260 rows" in found.err


def test_a_stage_that_fails_is_exit_code_1_or_2(folder, call, scheduler_file):
    ingest(call)
    (folder / "pool.zarr" / "embeddings" / "c" / "0" / "0").unlink()
    found = call("run", "run.yaml", "--scheduler-file", scheduler_file)
    assert found.code in (1, 2)
    assert found.err.startswith("daskcurate: ")
    assert "Traceback" not in found.err


def test_the_demo(folder, call, scheduler_file):
    found = call("demo", "--rows", "1500", "--output", "out", "--scheduler-file", scheduler_file)
    assert found.code == 0
    for text in (
        "Dashboard:",
        "Stages",
        "Summary",
        "planted duplicates found",
        "class balance after",
        "picks.npy",
    ):
        assert text in found.out
    pool, picks = dc.open_embeddings("out/pool.zarr"), np.load("out/picks.npy")
    assert len(pool) == 1500
    assert len(picks) == 187
    table = pq.read_table("out/picks.parquet").to_pandas()
    assert np.array_equal(np.flatnonzero(table["keep"]), picks)
    assert table["id"][0].startswith("digit-")
    assert call("status", "out/run.zarr").out.count("finished") == 6
    command = found.out.partition("Look at it: daskcurate ")[2].split()
    assert command == ["report", "out/run.zarr", "--images", "out/images.npy"]
    assert call(*command).code == 0
    assert "digit-0-" in (folder / "out" / "run-report" / "index.html").read_text()


def test_a_folder_of_a_run_store_is_told_from_the_store(folder, call):
    (folder / "out" / "other.zarr").mkdir(parents=True)
    RunStore(folder / "out" / "run.zarr").create()
    for command in ("status", "report"):
        found = call(command, "out")
        assert found.code == 2
        assert f"{folder}/out exists and is not a run store" in found.err
        assert found.err.strip().endswith(f"there is one at {folder}/out/run.zarr")
    assert "there is one" not in call("status", str(folder)).err


def test_the_demo_names_a_command_that_works_where_it_stands(monkeypatch):
    monkeypatch.setattr("sys.argv", [".venv/bin/daskcurate", "demo"])
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert demo.program() == ".venv/bin/daskcurate"
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    assert demo.program() == "daskcurate"
    assert demo.report_hint() == "Look at it: "
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert demo.report_hint() == 'Look at it, after pip install "daskcurate[report]": '


def test_the_demo_of_own_embeddings(folder, call, scheduler_file):
    found = call("demo", "rows.npy", "--eps", "0.01", "--output", "out", "--scheduler-file", scheduler_file)
    assert found.code == 0
    assert "duplicates dropped" in found.out
    assert len(np.load("out/picks.npy")) == N // 8


def test_a_local_cluster_is_started_where_something_is_left_to_run(folder, call, monkeypatch):
    """Worker processes of its own: what a run does without a scheduler."""
    ingest(call)
    found = call("run", "run.yaml", "--n-workers", "1", "--memory-limit", "1GiB")
    assert found.code == 0
    assert "Dashboard: http://127.0.0.1" in found.out
    assert len(np.load("picks.npy")) == 50
    (folder / "picks.npy").unlink()
    monkeypatch.setattr("daskcurate.clusters.start_on", lambda *_: pytest.fail("nothing is left to run"))
    found = call("run", "run.yaml", "--n-workers", "1")
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("Nothing is left to run: run.zarr holds every stage.\nWrote picks.npy\n")
    assert found.out.endswith("picks: 50 rows\n")
    assert "Dashboard" not in found.out
    assert len(np.load("picks.npy")) == 50
    for refused in (("--n-workers", "0"), ("--cluster", "slrum"), ("--scheduler-file", "nowhere.json")):
        assert call("run", "run.yaml", *refused).code == 2


def test_a_dry_run_plans_for_the_scheduler_that_is_named(folder, call, scheduler_file, monkeypatch):
    dc.ingest("rows.npy", "pool.zarr", normalize=True)
    monkeypatch.setattr("daskcurate.clusters.start_on", lambda *_: pytest.fail("a plan starts no cluster"))
    seen, original = [], dc.plan
    monkeypatch.setattr(dc, "plan", lambda *nodes, **more: seen.append(more) or original(*nodes, **more))
    for command in (("plan", "run.yaml"), ("run", "run.yaml", "--dry-run")):
        assert call(*command, "--scheduler-file", scheduler_file).code == 0
        assert seen.pop()["client"] is not None
    assert not (folder / "run.zarr").exists()
