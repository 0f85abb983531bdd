"""Which rows a person looks at: duplicates around the threshold, and what clusters hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskcurate.report.measures import (
    Similarities,
    extreme_members,
    pick_clusters,
    rows_matching,
    values_at,
)
from daskcurate.report.page import Gallery, Group, Shown
from daskcurate.report.stages import StoredRun, StoredStage

BORDER_GROUPS = 6
"""Groups on each side of the threshold."""
LARGE_GROUPS = 4
GROUP_ROWS = 7
CLUSTERS = 6
MEMBERS = 6
SUBCLUSTERS = 12


def badges(counts: Any, rows: np.ndarray) -> dict[int, str]:
    """Return ``kept`` or ``dropped`` for each row."""
    wanted = np.unique(np.asarray(rows, dtype=np.int64))
    kept = values_at(counts, wanted) > 0
    return {int(row): "kept" if one else "dropped" for row, one in zip(wanted, kept, strict=True)}


def _one_a_match(table: np.ndarray, count: int) -> np.ndarray:
    """Return the first rows of ``table`` (similarity, row, match) whose matches differ."""
    first = np.sort(np.unique(table[:, 2], return_index=True)[1])
    return table[first[:count]]


def duplicate_gallery(stage: StoredStage, found: Similarities, eps: float, title: str) -> list[Gallery]:
    """Return the groups around the threshold of a dedup stage, and its largest ones."""
    limit = float(np.float32(1 - eps))
    border = [
        ("dropped, just above the threshold", _one_a_match(found.above, BORDER_GROUPS)),
        ("kept, just below the threshold", _one_a_match(found.below, BORDER_GROUPS)),
    ]
    large = found.groups[:LARGE_GROUPS]
    near = rows_matching(stage, np.concatenate([part[:, 2] for _, part in border]), limit, GROUP_ROWS)
    most = rows_matching(stage, large, 1.0, GROUP_ROWS, floor=limit)
    shown = [part[:, 1:].ravel() for _, part in border] + [
        large,
        *(one.rows for one in (*near.values(), *most.values())),
    ]
    kept = badges(stage.array("counts"), np.concatenate(shown))
    galleries = []
    for side, part in border:
        groups = []
        for similarity, row, match in part:
            others = [
                (int(r), float(s)) for r, s in zip(near[int(match)].rows, near[int(match)].similarity, strict=True)
                if r != row
            ][: GROUP_ROWS - 2]  # fmt: skip
            strip = [Shown(int(match), "closest earlier row", kept[int(match)], first=True)]
            strip += [Shown(r, f"similarity {s:.4f}", kept[r]) for r, s in [(int(row), similarity), *others]]
            groups.append(Group(f"similarity {similarity:.4f}", [("", strip)]))
        if groups:
            galleries.append(
                Gallery(
                    f"{title}: {side}",
                    "Each group starts with a row (outlined) and the row next to the threshold that it is "
                    "the closest "
                    "earlier one of; then other rows of which the same holds. If those just above the "
                    "threshold are no "
                    "repeats to your eyes, eps is too large; if those just below it are, eps is too small.",
                    groups,
                )
            )
    groups = []
    for match in large:
        one = most[int(match)]
        strip = [Shown(int(match), "closest earlier row", kept[int(match)], first=True)]
        strip += [
            Shown(int(r), f"similarity {s:.4f}", kept[int(r)])
            for r, s in zip(one.rows, one.similarity, strict=True)
        ]
        groups.append(Group(f"the closest earlier row of {one.total:,} dropped rows", [("", strip)]))
    if groups:
        galleries.append(
            Gallery(
                f"{title}: the most repeated rows",
                "Rows that most dropped rows are closest to, as found in a sample of the dropped rows.",
                groups,
            )
        )
    return galleries


def cluster_gallery(
    stage: StoredStage, sizes: np.ndarray, counts: Any, title: str, metric: str
) -> Gallery | None:
    """Return some clusters with the members nearest to the centroid and farthest from it."""
    if not has_distances(stage):
        return None
    clusters = pick_clusters(sizes, CLUSTERS)
    found = extreme_members(stage, clusters, len(sizes), MEMBERS)
    rows = np.concatenate([np.r_[one.near, one.far] for one in found.values()])
    kept = badges(counts, rows) if counts is not None else {}
    unit = "cos distance" if metric == "cosine" else "distance"
    groups = []
    for cluster in clusters:
        one, strips = found[cluster], []
        rest = ~np.isin(one.far, one.near)  # a small cluster's farthest members are among its nearest
        for name, members, distances in (
            (
                "nearest to the centroid" if rest.any() else "all members, the nearest first",
                one.near,
                one.near_distance,
            ),
            ("farthest from the centroid", one.far[rest], one.far_distance[rest]),
        ):
            if not len(members):
                continue
            pairs = zip(members, distances, strict=True)
            strips.append((name, [Shown(int(r), f"{unit} {d:.4g}", kept.get(int(r), "")) for r, d in pairs]))
        groups.append(Group(f"cluster {cluster}: {int(sizes[cluster]):,} rows", strips))
    return Gallery(
        f"{title}: nearest and farthest members",
        "The largest clusters, some of middling size and the smallest. A good cluster shows one concept; farthest "
        "members of another concept mean that there are too few clusters.",
        groups,
    )


def has_distances(stage: StoredStage) -> bool:
    """Return whether a clustering has distances: one of labels alone, given without a pool, has none."""
    try:
        return bool(stage.array("distances").shape)
    except FileNotFoundError:
        return False


def hierarchy_gallery(
    run: StoredRun, top: StoredStage, sizes: np.ndarray, counts: Any, seed: int = 0
) -> Gallery | None:
    """Return some clusters of a hierarchy's last level, a row of each of some clusters at the lowest."""
    chain = run.chain(top)
    if not has_distances(chain[0]):
        return None
    rng = np.random.default_rng(seed)
    lowest: dict[int, np.ndarray] = {}
    clusters = pick_clusters(sizes, CLUSTERS)
    for cluster in clusters:
        inside = np.array([cluster])
        for level in reversed(chain[1:]):
            inside = np.flatnonzero(np.isin(np.asarray(level.array("labels")[...]), inside))
            inside = np.sort(rng.choice(inside, min(SUBCLUSTERS, len(inside)), replace=False))
        lowest[cluster] = inside
    k = int(chain[0].array("sizes").shape[0])
    found = extreme_members(chain[0], np.concatenate(list(lowest.values())), k, 1)
    rows = np.concatenate([one.near for one in found.values()])
    kept = badges(counts, rows) if counts is not None else {}
    groups = []
    for cluster in clusters:
        strip = [
            Shown(
                int(found[int(sub)].near[0]),
                f"level-1 cluster {sub}",
                kept.get(int(found[int(sub)].near[0]), ""),
            )
            for sub in lowest[cluster]
            if len(found[int(sub)].near)
        ]
        groups.append(Group(f"cluster {cluster}: {int(sizes[cluster]):,} rows", [("", strip)]))
    return Gallery(
        f"{run.title(top)}: what its clusters hold",
        f"For some clusters of the last level, the central row of up to {SUBCLUSTERS} of the level-1 clusters below.",
        groups,
    )
