"""Which rows are shown, and that what is said of them is so."""

import numpy as np
import pytest

from daskcurate.report.galleries import cluster_gallery, duplicate_gallery, hierarchy_gallery
from daskcurate.report.measures import read_similarities
from daskcurate.report.stages import StoredRun


@pytest.fixture(scope="module")
def run(run_folder):
    return StoredRun.read(run_folder / "run.zarr")


def values(stage, name):
    return np.asarray(stage.array(name)[...])


@pytest.mark.parametrize("rule", ["earlier", "greedy", "connected"])
def test_groups_around_the_threshold(run, rule):
    stage = next(s for s in run.stages.values() if s.kind == "semantic_dedup" and s.config["rule"] == rule)
    eps = stage.config["eps"]
    similarity, match, kept = (values(stage, name) for name in ("max_similarity", "duplicate_of", "counts"))
    above, below, most = duplicate_gallery(stage, read_similarities(stage, eps), eps, "t")
    limit = np.float32(1 - eps)
    for gallery, side in ((above, similarity > limit), (below, (similarity <= limit) & (match >= 0))):
        nearest = []
        for group in gallery.groups:
            ((_, (first, second, *rest)),) = group.strips
            assert first.first
            assert side[second.row]
            assert match[second.row] == first.row
            assert [match[one.row] for one in rest] == [first.row] * len(rest)
            for one in (second, *rest):
                assert one.value == f"similarity {similarity[one.row]:.4f}"
            for one in (first, second, *rest):
                assert one.badge == ("kept" if kept[one.row] else "dropped")
            assert len({one.row for one in (first, second, *rest)}) == 2 + len(rest)
            nearest.append(abs(similarity[second.row] - limit))
        assert nearest == sorted(nearest)
        assert nearest[0] == np.abs(similarity[side] - limit).min()
        firsts = [group.strips[0][1][0].row for group in gallery.groups]
        assert len(set(firsts)) == len(firsts)
    times = np.bincount(match[(similarity > limit)])
    for group in most.groups:
        ((_, (first, *rest)),) = group.strips
        assert f" {times[first.row]:,} dropped rows" in group.title
        assert all(one.badge == "dropped" and match[one.row] == first.row for one in rest)
    assert times[most.groups[0].strips[0][1][0].row] == times.max()


def test_members_of_clusters(run):
    stage = run.chain(run.stages[run.last.inputs["tree"]])[0]
    labels, distances, sizes = (values(stage, name) for name in ("labels", "distances", "sizes"))
    counts = run.last.array("counts")
    gallery = cluster_gallery(stage, sizes, counts, "t", "l2")
    assert len(gallery.groups) == 6
    for group in gallery.groups:
        cluster = int(group.title.split(":")[0].removeprefix("cluster "))
        members = np.flatnonzero(labels == cluster)
        shown = [one for _, strip in group.strips for one in strip]
        assert group.title.endswith(f"{len(members)} rows")
        assert len({one.row for one in shown}) == len(shown) == min(12, len(members))
        assert all(labels[one.row] == cluster for one in shown)
        assert shown[0].row == members[distances[members].argmin()]
        if len(group.strips) == 2:
            assert group.strips[1][1][0].row == members[distances[members].argmax()]
        picked = np.asarray(counts[...])
        assert all(one.badge == ("kept" if picked[one.row] else "dropped") for one in shown)


def test_clusters_of_a_hierarchy(run):
    top = run.stages[run.last.inputs["tree"]]
    labels, *above = [values(stage, "labels") for stage in run.chain(top)]
    flat = above[1][above[0][labels]]
    flat[labels < 0] = -1
    sizes = np.bincount(flat[flat >= 0], minlength=4)
    gallery = hierarchy_gallery(run, top, sizes, None)
    assert len(gallery.groups) == (sizes > 1).sum()
    for group in gallery.groups:
        cluster = int(group.title.split(":")[0].removeprefix("cluster "))
        ((_, strip),) = group.strips
        assert strip
        assert all(flat[one.row] == cluster for one in strip)
        assert [one.value for one in strip] == [f"level-1 cluster {labels[one.row]}" for one in strip]
