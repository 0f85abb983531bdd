"""What the README shows runs, at small size, and what it names is there."""

import dataclasses
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

import daskcurate as dc
from daskcurate import cli
from daskcurate.pipeline_config import load_config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()

SMALLER = {
    "n_clusters=1000,": "n_clusters=20,",
    "n_clusters=[5000, 1000]": "n_clusters=[60, 12]",
    "n_clusters=[500, 50]": "n_clusters=[50, 10]",
    "target_size=20_000": "target_size=300",
    "target_size=1000": "target_size=200",
    '"6GiB", spill_folder="/scratch/spill"': '"1GiB", spill_folder="spill"',
    "n_resamples=10": "n_resamples=2",
    "sample_sizes=[10, 3], within=both": "within=both",
    "n_workers=8": "n_workers=1",
}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.M | re.S)


def small(code):
    for large, less in SMALLER.items():
        code = code.replace(large, less)
    return code


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the README's script reads, in the folder in which it runs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 16))[rng.integers(0, 40, 2000)] + 0.4 * rng.standard_normal((2000, 16))
    rows[1000:1200] = rows[:200]
    np.save("embeddings.npy", rows.astype(np.float32))
    pq.write_table(pa.table({"id": [f"row-{i}" for i in range(2000)]}), "ids.parquet")


def test_the_script_and_what_follows_it(files, client):
    script, *more = blocks("python")
    assert script.count('if __name__ == "__main__":') == 1
    assert all(small(script).count(less) == 1 for less in ("=20,", "[60, 12]", "=300"))
    Path("script.py").write_text(small(script))
    names = runpy.run_path("script.py", run_name="__main__")
    assert len(np.load("picks.npy")) == len(names["result"]) == 300
    lookup, combine, local = more
    exec(small(lookup), names)
    assert len(names["dedup"]) <= len(names["dedup"].at(0.03)) <= 2000 - 200
    assert 1000 <= len(names["half"]) < 1100
    exec(small(combine), names)
    assert len(names["other"]) == 200
    assert (names["other"].indices % 10 != 0).all()
    compile(local, "README.md", "exec")
    assert "run.zarr" in local


@pytest.mark.slow
def test_the_script_makes_its_own_cluster(files):
    Path("script.py").write_text(small(blocks("python")[0]))
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(np.load("picks.npy")) == 300


def test_the_local_cluster(files):
    local = blocks("python")[-1]
    names = {"dc": dc, "emb": dc.ingest("embeddings.npy", "pool.zarr", normalize=True)}
    names["picks"] = dc.random_prune(names["emb"], target_size=100)
    exec(small(local), names)
    assert len(names["result"]) == 100


def test_the_yaml_parses_and_is_the_script(files):
    (text,) = blocks("yaml")
    Path("run.yaml").write_text(text)
    names = {"dc": dc}
    emb = dc.ingest("embeddings.npy", "pool.zarr", ids="ids.parquet", normalize=True)
    emb = dataclasses.replace(emb, shape=(100_000, 16))
    found = load_config("run.yaml").build(emb)
    lines = blocks("python")[0].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    flat ="))
    stop = next(i for i, line in enumerate(lines) if line.startswith("    result ="))
    exec("if True:\n" + "\n".join(lines[start:stop]), names | {"emb": emb}, names)
    assert {name: node.fingerprint for name, node in found.items()} == {
        name: names[name].fingerprint for name in found
    }


def test_the_commands_are_there():
    lines = [line.split("#")[0] for block in blocks("sh") for line in block.splitlines()]
    app = typer.main.get_command(cli.app)
    seen = set()
    for line in lines:
        program, *words = shlex.split(line)
        if program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), flags=re.M)
        if program != "daskcurate":
            continue
        command = app.commands[words[0]]
        seen.add(words[0])
        context = command.make_context(words[0], words[1:], resilient_parsing=False)
        assert context.params
    assert seen == {"ingest", "plan", "run", "status", "export", "subset", "report", "choose-eps", "choose-k"}


def test_the_recipes_and_folders_are_there():
    for name in re.findall(r"python -m pipelines\.(\w+)", TEXT):
        assert (ROOT / "pipelines" / f"{name}.py").exists()
    listed = set(re.findall(r"python -m pipelines\.(\w+)", TEXT))
    assert listed == {p.stem for p in (ROOT / "pipelines").glob("*.py")} - {"__init__", "common"}
    for target in re.findall(
        r"`(demo|test|test-slow|test-gpu|bench-gpu|test-slurm|test-hosts|test-kubernetes|lint|docs|bench|clean)`",
        TEXT,
    ):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M)


def test_the_columns_are_those_of_an_export(files, client):
    emb = dc.ingest("embeddings.npy", "pool.zarr", normalize=True)
    flat = dc.kmeans(emb, 10, metric="cosine", n_iters=5)
    dedup = dc.semantic_dedup(emb, flat, eps=0.05)
    tree = dc.hierarchical_kmeans(emb, [20, 5], within=dedup, n_iters=5)
    result = dc.compute(dc.hierarchical_sample(tree, 100), store="run.zarr")
    table = TEXT[TEXT.index("| column | meaning |") :].split("\n\n")[0]
    named = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert set(result.columns()) == set(named)
