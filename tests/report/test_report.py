"""The report of a run, from its store to its folder."""

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

import daskcurate as dc
from daskcurate import cli
from daskcurate.report import context, page, sections
from daskcurate.report.stages import StoredRun, StoredStage
from daskcurate.store import RunStore

N = 900


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.sources = [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag == "img":
            assert dict(attrs)["alt"]
        if tag == "svg":
            assert dict(attrs)["aria-label"]

    def handle_data(self, data):
        self.text.append(data)


def words(path):
    return " ".join(" ".join(Page(path).text).split())


def test_the_page_has_all_its_parts(written):
    found = Page(written)
    text = words(written)
    for part in ("Stages", "Cluster sizes", "Balance", "Duplicates", "Pruning", "Map", "Clusters to look at"):
        assert part in text
    assert found.tags.count("svg") >= 15
    assert "dropped, just above the threshold" in text
    assert "kept, just below the threshold" in text
    assert "farthest from the centroid" in text
    assert "k-means 4 (level 3): what its clusters hold" in text
    assert "under the rule 'greedy' other thresholds are not a lookup" in text
    assert "knows no links beyond the eps that was run" in text


def test_the_folder_is_whole(written):
    """Every picture is in the folder, and nothing is asked of a network."""
    folder = written.parent
    assert {path.name for path in folder.iterdir()} == {"index.html", "report.json", "items"}
    sources = Page(written).sources
    pictures = {source for source in sources if source.startswith("items/")}
    assert pictures == {f"items/{path.name}" for path in (folder / "items").iterdir()}
    assert all(source.startswith(("items/", "data:", "#")) for source in sources)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 5 << 20


def test_what_the_user_wrote_is_text(run_folder, written):
    found = Page(written)
    nasty = (run_folder / "texts.txt").read_text().split(" row 0")[0]
    assert nasty.startswith("<script>")
    assert "script" not in found.tags
    assert "i" not in found.tags
    assert nasty in "".join(found.text)
    assert any(text.startswith("<i>") for text in found.text)


def test_the_figures_are_those_of_the_run(run_folder, written):
    figures = json.loads((written.parent / "report.json").read_text())
    assert figures["rows"] == N
    run = StoredRun.read(run_folder / "run.zarr")
    assert set(figures["stages"]) == set(run.stages)
    picks = run.last
    assert picks.kind == "hierarchical_sample"
    assert figures["stages"][picks.name]["total"] == 200
    level = run.chain(run.stages[picks.inputs["tree"]])
    labels, *above = [np.asarray(stage.array("labels")[...]) for stage in level]
    counts = np.asarray(picks.array("counts")[...])
    for number, stage in enumerate(level):
        flat = labels
        for table in above[:number]:
            flat = np.where(flat >= 0, table[flat], -1)
        p = np.bincount(flat[flat >= 0], counts[flat >= 0])
        p = p[p > 0] / p.sum()
        after = figures["balance"][run.title(stage)]["after sample 200"]
        assert after["rows"] == 200
        assert after["effective"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_the_last_stage_where_all_started_at_once(run_folder):
    run = StoredRun.read(run_folder / "run.zarr")
    for stage in run.stages.values():
        stage.attributes["started"] = "2026-01-01T00:00:00+00:00"
    assert run.last.kind == "hierarchical_sample"
    assert [stage.kind for stage in run.ranked[:3]] == ["kmeans", "semantic_dedup", "density_prune"]
    assert len(run.ranked) == len(run.stages)


def test_a_stage_used_many_times_is_met_once(run_folder):
    run = StoredRun.read(run_folder / "run.zarr")
    first = run.last
    for number in range(60):  # each takes the one before twice: 2^60 ways lead back
        inputs = {"a": first.name, "b": first.name}
        first = StoredStage(first.store, f"combine-{number}", {"kind": "combine", "inputs": inputs}, True)
        run.stages[first.name] = first
    assert len(run.before(first)) == 60 + len(run.before(run.stages[run.stages["combine-0"].inputs["a"]]))


def test_stages_of_kinds_from_a_later_version(small_run, tmp_path):
    shutil.copytree(small_run / "run.zarr", tmp_path / "run.zarr")
    RunStore(tmp_path / "run.zarr").update(
        "novelty-01", kind="novelty", complete=True, contents={}, config={}
    )
    text = words(dc.write_report(tmp_path / "run.zarr"))
    assert "of the kind 'novelty', which this report does not know" in text
    assert "rows in the result: sample 20" in text


def test_the_package_needs_no_extra_to_be_imported():
    modules = ("matplotlib", "PIL", "markupsafe", "jinja2")
    code = f"import sys\nsys.modules.update(dict.fromkeys({modules}))\nimport daskcurate"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_titles_differ(run_folder):
    run = StoredRun.read(run_folder / "run.zarr")
    assert len(set(run.titles.values())) == len(run.stages)
    assert "dedup eps 0.05 connected" in run.titles.values()
    assert "density prune to 70%" in run.titles.values()


def test_the_same_run_gives_the_same_page(run_folder, written, tmp_path):
    again = dc.write_report(
        run_folder / "run.zarr",
        tmp_path / "again",
        texts=run_folder / "texts.txt",
        images=run_folder / "images.npy",
    )
    assert again.read_bytes() == written.read_bytes()


def test_a_moved_pool_is_found_beside_the_store_or_by_name(small_run, tmp_path):
    shutil.copytree(small_run / "run.zarr", tmp_path / "a" / "run.zarr")
    shutil.copytree(small_run / "pool.zarr", tmp_path / "a" / "pool.zarr")
    run = StoredRun.read(tmp_path / "a" / "run.zarr")
    for stage in run.stages.values():  # as if the run had been made elsewhere
        RunStore(tmp_path / "a" / "run.zarr").update(stage.name, pool="/nowhere/pool.zarr")
    text = words(dc.write_report(tmp_path / "a" / "run.zarr"))
    assert "Map" in text
    assert (tmp_path / "a" / "run-report" / "index.html").exists()
    (tmp_path / "a" / "pool.zarr").rename(tmp_path / "elsewhere.zarr")
    text = words(dc.write_report(tmp_path / "a" / "run.zarr"))
    assert "The pool is not where it was" in text
    assert "principal components" not in text
    text = words(dc.write_report(tmp_path / "a" / "run.zarr", embeddings=tmp_path / "elsewhere.zarr"))
    assert "principal components" in text


def test_another_pool_is_refused(small_run, pool, tmp_path):
    other = pool(np.random.default_rng(1).standard_normal((60, 4)) + 1)
    with pytest.raises(ValueError, match="give the pool of the run"):
        dc.write_report(small_run / "run.zarr", tmp_path / "page", embeddings=other)
    assert not (tmp_path / "page").exists()


def test_numbers_that_do_not_fit_are_said_before_anything_is_written(small_run, tmp_path):
    with pytest.raises(ValueError, match="has 3 entries, but the pool has 60 rows"):
        dc.write_report(small_run / "run.zarr", tmp_path / "page", texts=["a", "b", "c"])
    assert list(tmp_path.iterdir()) == []


def test_unfinished_and_damaged_stages_are_named(run_folder, tmp_path):
    shutil.copytree(run_folder / "run.zarr", tmp_path / "run.zarr")
    store = RunStore(tmp_path / "run.zarr")
    picks = StoredRun.read(store.url).last
    prune = next(name for name in store.stages() if name.startswith("density_prune"))
    store.update(picks.name, complete=False, checkpoint={"step": 2, "iteration": 7})
    next((tmp_path / "run.zarr" / prune / "counts" / "c").iterdir()).unlink()
    text = words(dc.write_report(tmp_path / "run.zarr", embeddings=run_folder / "pool.zarr"))
    assert "unfinished (step 2, iteration 7)" in text
    assert "damaged: files are missing or were changed" in text
    assert "after sample 200" not in text


def test_a_store_without_a_finished_stage(run_folder, tmp_path):
    store = RunStore(tmp_path / "run.zarr")
    store.create()
    store.update("kmeans-0123", kind="kmeans", config={"n_clusters": 7}, complete=False)
    text = words(dc.write_report(store.url))
    assert "No stage has finished yet." in text
    assert "k-means 7" in text
    with pytest.raises(ValueError, match="has no finished stage yet"):
        dc.write_report(store.url, texts=["a"])


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_tiny_pools(pool, client, tmp_path, metric, rows):
    emb = pool(np.ones((rows, 1)), dtype="float16")
    flat = dc.kmeans(emb, n_clusters=1, metric=metric)
    dedup = dc.semantic_dedup(emb, flat, eps=0.1)
    picks = dc.hierarchical_sample(flat, target_size=1, within=dedup)
    dc.compute(picks, dc.density_prune(flat, keep_fraction=1.0), store=tmp_path / "run.zarr", client=client)
    assert "rows in the result" in words(dc.write_report(tmp_path / "run.zarr"))


def test_labels_given_without_a_pool(client, tmp_path):
    tree = dc.Hierarchy.from_labels([np.array([0, 1, 1, 2, -1, 0]), np.array([0, 0, 1])])
    dc.compute(dc.hierarchical_sample(tree, target_size=3), store=tmp_path / "run.zarr", client=client)
    text = words(dc.write_report(tmp_path / "run.zarr", texts=list("abcdef")))
    assert "clusters given, 3" in text
    assert "principal components" not in text


def test_stages_of_two_pools(pool, client, tmp_path):
    rng = np.random.default_rng(0)
    one, other = pool(rng.standard_normal((50, 4))), pool(rng.standard_normal((70, 4)))
    dc.compute(dc.kmeans(one, n_clusters=3), store=tmp_path / "run.zarr", client=client)
    picks = dc.hierarchical_sample(dc.kmeans(other, n_clusters=4), target_size=9)
    dc.compute(picks, store=tmp_path / "run.zarr", client=client)
    found = dc.write_report(tmp_path / "run.zarr")
    assert "stages of other pools" in words(found)
    assert json.loads((found.parent / "report.json").read_text())["rows"] == 70


def test_many_stages_leave_the_page_small(pool, client, tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "MAX_LISTED", 5)
    monkeypatch.setattr(sections, "MAX_SELECTIONS", 2)
    monkeypatch.setattr(context, "MAX_CLUSTERINGS", 1)
    emb = pool(np.random.default_rng(0).standard_normal((80, 4)))
    nodes = [dc.random_prune(emb, target_size=40, seed=seed) for seed in range(4)]
    flat = [dc.kmeans(emb, n_clusters=k, n_iters=1) for k in (2, 3, 4)]
    dc.compute(*flat, *nodes, store=tmp_path / "run.zarr", client=client)
    text = words(dc.write_report(tmp_path / "run.zarr"))
    assert "The table shows 5 of 7 stages." in text
    assert "Of 4 selections the 2" in text
    assert "Of 3 clusterings the 1" in text


def test_an_existing_folder(small_run, tmp_path):
    dest = tmp_path / "page"
    dest.mkdir()
    dc.write_report(small_run / "run.zarr", dest)  # an empty one
    first = (dest / "index.html").read_bytes()
    (dest / "index.html").write_text("old")
    dc.write_report(small_run / "run.zarr", dest)  # a report
    assert (dest / "index.html").read_bytes() == first
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a report of daskcurate"):
        dc.write_report(small_run / "run.zarr", other)
    assert [path.name for path in other.iterdir()] == ["mine.txt"]
    dc.write_report(small_run / "run.zarr", other, overwrite=True)
    assert (other / "mine.txt").read_text() == "mine"
    assert (other / "index.html").read_bytes() == first
    with pytest.raises(FileExistsError, match="is a file"):
        dc.write_report(small_run / "run.zarr", other / "mine.txt", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "page"]  # nothing temporary is left


def test_a_page_that_fails_leaves_the_old_one(small_run, tmp_path, monkeypatch):
    dest = tmp_path / "page"
    dc.write_report(small_run / "run.zarr", dest)
    before = {path.name: path.stat().st_mtime_ns for path in dest.iterdir()}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(page, "render", fail)
    with pytest.raises(OSError, match="disk full"):
        dc.write_report(small_run / "run.zarr", dest)
    assert {path.name: path.stat().st_mtime_ns for path in dest.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


@pytest.mark.parametrize("dest", ["", 5, "s3://bucket/page"])
def test_destinations_that_are_not_allowed(small_run, dest):
    with pytest.raises((TypeError, ValueError), match="is not allowed"):
        dc.write_report(small_run / "run.zarr", dest)


def test_a_missing_library_is_named_with_its_extra(small_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(ImportError, match=r'needs matplotlib, .*: pip install "daskcurate\[report\]"'):
        dc.write_report(small_run / "run.zarr", tmp_path / "page")


def test_the_command(small_run, tmp_path):
    runner = CliRunner()
    found = runner.invoke(
        cli.app, ["report", str(small_run / "run.zarr"), "--output", str(tmp_path / "page"), "--seed", "1"]
    )
    assert found.exit_code == 0, found.output
    assert (tmp_path / "page" / "index.html").exists()
    found = runner.invoke(cli.app, ["report", str(tmp_path / "nothing.zarr")])
    assert isinstance(found.exception, dc.StoreError)
