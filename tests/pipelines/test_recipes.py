"""Every recipe at reduced size, and its full size against the configuration beside it."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster

import daskcurate as dc
from daskcurate import cli, runner
from daskcurate.pipeline_config import load_config
from pipelines.common import FULL, Scale

FOLDER = Path(importlib.import_module("pipelines").__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "common"))
NAMES = [name for name in MODULES if not name.startswith("embed_")]  # those: test_embedding_recipes.py
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe(name):
    return importlib.import_module(f"pipelines.{name}").RECIPE


def clumps(n, seed=0):
    """Rows around 60 centres of unequal weight; the last eighth repeats earlier rows almost exactly."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((60, 32))
    weight = 1 / np.arange(1, 61)
    rows = centres[rng.choice(60, n, p=weight / weight.sum())] + 0.5 * rng.standard_normal((n, 32))
    copies = n // 8
    rows[n - copies :] = rows[:copies] + 1e-3 * rng.standard_normal((copies, 32))
    return rows.astype(np.float32)


@pytest.fixture
def emb(pool):
    return pool(clumps(3000), normalize=True, ids=[f"row-{i}" for i in range(3000)])


@pytest.fixture
def go(client, tmp_path, capsys):
    """Return a function that runs a recipe on the shared cluster and returns its results."""

    def run(name, emb, scale, *more):
        made = recipe(name)
        given = made._parser().parse_args(
            [
                f"--embeddings={emb.path}",
                f"--store={tmp_path / 'run.zarr'}",
                f"--output={tmp_path / 'out'}",
                f"--scale={scale}",
                f"--scheduler={client.scheduler.address}",
                *more,
            ]
        )
        results = made.run(given)
        out = capsys.readouterr().out
        if not given.dry_run:
            for item in made.exports:
                assert (tmp_path / "out" / item.dest).stat().st_size > 0
                assert f"Wrote {tmp_path / 'out' / item.dest}" in out
            with pytest.MonkeyPatch.context() as patch:  # a second run has nothing to run
                patch.setattr(runner, "_run_stage", None)
                made.run(given)
            capsys.readouterr()
        return results, out

    return run


def check_dedup(dedup):
    """The planted copies go, and no row that is like no other."""
    kept = np.asarray(dedup.mask)
    similar = np.asarray(dedup.max_similarity)
    copies = len(kept) // 8
    pairs = ~kept[:copies] | ~kept[-copies:]
    assert pairs.mean() > 0.95
    assert (kept == (similar <= np.float32(1 - dedup.config.eps))).all()


def test_every_recipe_is_tested():
    assert {f"test_{name}" for name in NAMES} <= set(globals())


def test_quickstart(go, emb, tmp_path):
    results, out = go("quickstart", emb, 0.03)
    check_dedup(results["dedup"])
    n_dedup, picks = len(results["dedup"]), results["picks"]
    assert len(results["prune"]) == (n_dedup + 1) // 2
    assert [level.n_clusters for level in results["tree"].levels] == [150, 30]
    assert len(picks) == 600
    assert np.asarray(results["prune"].mask)[picks.indices].all()
    assert (np.load(tmp_path / "out" / "picks.npy") == picks.indices).all()
    table = pq.read_table(tmp_path / "out" / "picks.parquet").to_pandas()
    assert (table["id"][:2] == ["row-0", "row-1"]).all()
    assert table["reason"].value_counts().to_dict() == {
        "duplicate": 3000 - n_dedup,
        "pruned": n_dedup - len(results["prune"]),
        "not sampled": len(results["prune"]) - 600,
        "kept": 600,
    }
    assert "picks: 600 of 3,000 rows" in out
    assert "tree: 150 / 30 clusters" in out


def test_vo_small(go, emb):
    results, _ = go("vo_small", emb, 0.03)
    tree, picks = results["tree"], results["picks"]
    assert [level.n_clusters for level in tree.levels] == [150, 30]
    assert tree.flat_sizes(-1).sum() == 3000
    assert len(picks) == 600
    assert np.asarray(picks.counts).max() == 1
    before = np.bincount(np.asarray(tree.flat_labels(-1)), minlength=30)
    after = np.bincount(np.asarray(tree.flat_labels(-1))[picks.indices], minlength=30)
    assert after.max() / after.sum() < before.max() / before.sum()  # more balanced than the pool


@pytest.mark.slow
def test_vo_web(go, pool):
    results, _ = go("vo_web", pool(clumps(5000), normalize=True), 4e-5)
    counts = [level.n_clusters for level in results["tree"].levels]
    assert 300 < counts[0] <= 4 * 100  # a split drops the parts that win no row
    assert counts[1:] == [20, 2, 1]
    assert len(results["picks"]) == 4000


def test_semdedup_images(go, emb, tmp_path):
    results, _ = go("semdedup_images", emb, 2e-4)
    check_dedup(results["dedup"])
    assert results["cells"].n_clusters == 10
    kept = np.load(tmp_path / "out" / "kept.npy")
    removed = (tmp_path / "out" / "removed.txt").read_text().split()
    assert len(kept) == len(results["dedup"])
    assert sorted([*removed, *(f"row-{i}" for i in kept)]) == sorted(f"row-{i}" for i in range(3000))


def test_semdedup_text(go, emb, tmp_path):
    results, _ = go("semdedup_text", emb, 1e-3)
    check_dedup(results["dedup"])
    kept = (tmp_path / "out" / "kept.txt").read_text().split()
    assert kept == [f"row-{i}" for i in results["dedup"].indices]


def test_dbp(go, emb):
    results, _ = go("dbp", emb, 0.006)
    n_dedup, prune = len(results["dedup"]), results["prune"]
    assert results["concepts"].n_clusters == 3
    assert results["concepts"].sizes.sum() == n_dedup
    assert len(prune) == prune.per_cluster.sum() == (n_dedup + 1) // 2
    assert not (np.asarray(prune.mask) & ~np.asarray(results["dedup"].mask)).any()


def test_full_chain(go, emb):
    results, _ = go("full_chain", emb, 0.006)
    check_dedup(results["dedup"])
    assert results["cells"].n_clusters == 12
    assert len(results["prune"]) == (len(results["dedup"]) + 1) // 2
    assert [level.n_clusters for level in results["tree"].levels] == [60, 6, 1]
    assert len(results["picks"]) == 600
    assert np.asarray(results["prune"].mask)[results["picks"].indices].all()


def test_dry_run_runs_nothing(go, emb, tmp_path):
    results, out = go("full_chain", emb, 0.006, "--dry-run")
    assert "peak memory" in out
    assert "sample 600" in out
    assert not results["picks"].is_computed
    assert not (tmp_path / "run.zarr").exists()


def large(emb):
    """A pool of ten billion rows, of which nothing can be read."""
    return dataclasses.replace(emb, shape=(10**10, 32))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_builds_at_full_size(name, emb):
    made = recipe(name)
    nodes = made.build(large(emb))
    assert {item.stage for item in made.exports} <= set(nodes)
    assert dc.plan(*nodes.values(), memory_limit="256GiB").fits
    assert Path(sys.modules[f"pipelines.{name}"].__file__).read_text().count("Change") == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_its_recipe(name, emb):
    config, made = load_config(FOLDER / f"{name}.yaml"), recipe(name)
    expected, found = made.build(large(emb), FULL), config.build(large(emb))
    assert list(found) == list(expected)
    assert {key: node.fingerprint for key, node in found.items()} == {
        key: node.fingerprint for key, node in expected.items()
    }
    assert config.exports == tuple(made.exports)


SMALL = {
    "quickstart": ["flat.n_clusters=30", "tree.n_clusters=[150, 30]"],
    "vo_small": ["tree.n_clusters=[150, 30]"],
    "full_chain": ["cells.n_clusters=12", "concepts.n_clusters=1", "tree.n_clusters=[60, 6, 1]"],
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_runs(name, client, emb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)  # the command sets its own: put back at the end
    settings = [f"--set=embeddings={emb.path}", *(f"--set=stages.{item}" for item in SMALL[name])]
    settings += ["--set=stages.picks.target_size=600", "--set=stages.tree.n_resamples=2"]
    settings.append(f"--scheduler={client.scheduler.address}")
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", str(FOLDER / f"{name}.yaml"), *settings])
    assert stop.value.code == 0, capsys.readouterr().err
    assert len(np.load("picks.npy")) == 600
    assert pq.read_metadata("picks.parquet").num_rows == 3000


def test_a_recipe_is_a_command(emb, tmp_path):
    arguments = [f"--embeddings={emb.path}", f"--store={tmp_path / 'run.zarr'}", "--scale=0.03"]
    settings = {"threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(2, protocol="tcp", **settings) as cluster, Client(cluster):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pipelines.vo_small",
                *arguments,
                f"--scheduler={cluster.scheduler_address}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert "picks: 600 of 3,000 rows" in done.stdout
    nodes = recipe("vo_small").build(emb, Scale(0.03))
    assert len(runner.finished(nodes["picks"], tmp_path / "run.zarr")) == 600


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--scale=0"], "'0' is not allowed: give a number above 0"),
        (["--scale=small"], "'small' is not allowed: give a number above 0"),
        (["--scale=nan"], "'nan' is not allowed: give a number above 0"),
        ([], "has 3,000: --scale 0.03 is in proportion"),
        (["--embeddings=/no/such/pool.zarr"], "there is no pool at /no/such/pool.zarr"),
        (["--scale=0.03", "--scheduler=tcp://h:1", "--scheduler-file=s.json"], "give one of them"),
        (["--scale=0.03", "--scheduler=tcp://h:1", "--n-workers=2"], "are for a local cluster"),
        (["--scale=0.03", "--scheduler-file=no.json"], "no.json: there is no such file"),
        (["--scale=0.03", "--n-workers=0"], "n_workers=0 is not allowed"),
        (["--device=tpu"], "invalid choice: 'tpu'"),
        (["--scale=0.03", "--device=gpu"], "a GPU is asked for, but"),
        (["--scale=0.03", "--device=gpu", "--cluster=local-cpu"], "--device gpu is for the cluster local"),
    ],
)
def test_bad_arguments_start_nothing(arguments, phrase, emb, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("daskcurate.local_cuda.NEEDED", ("no_such_module",))  # as where there is no GPU
    store = tmp_path / "run.zarr"
    with pytest.raises(SystemExit) as stop:
        recipe("quickstart").main([f"--embeddings={emb.path}", f"--store={store}", *arguments])
    assert stop.value.code == 2
    assert phrase in capsys.readouterr().err
    assert not store.exists()


def test_a_plan_that_does_not_fit_says_so(emb, tmp_path, capsys):
    given = [f"--embeddings={emb.path}", f"--store={tmp_path / 'r'}", "--scale=0.03", "--dry-run"]
    with pytest.raises(SystemExit) as stop:
        recipe("quickstart").main([*given, "--memory-limit=200MiB"])
    assert stop.value.code == 3
    assert "needs" in capsys.readouterr().err


def test_scale():
    assert [Scale(0.5)(count) for count in (1, 2, 3, 100)] == [1, 1, 2, 50]
    assert FULL(743_000_000) == 743_000_000
    assert Scale(1e-9)(5) == 1
