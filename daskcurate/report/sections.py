"""The sections of a report, each from the stages that it is about; one without such stages stays empty."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskcurate.report import drawing
from daskcurate.report.context import RunContext
from daskcurate.report.galleries import cluster_gallery, duplicate_gallery, has_distances, hierarchy_gallery
from daskcurate.report.map2d import map_pool
from daskcurate.report.measures import (
    EPS_GRID,
    SIMILARITY_BINS,
    Balance,
    balance,
    kept_per_cluster,
    ranked_sizes,
    read_similarities,
    values_at,
)
from daskcurate.report.page import Picture, Section, Table
from daskcurate.report.stages import ALLOCATIONS, StoredStage

MAX_LISTED = 200
"""Stages in the table."""
MAX_SELECTIONS = 7
MAX_OF_A_KIND = 3
"""Dedup stages, pruning stages, and clusterings with a gallery."""
MAX_TIMED = 12
MAX_POINTS = 4000
"""Clusters in a scatter plot."""


def stages_section(context: RunContext) -> Section:
    """Return the table of stages, and the picture of their timings."""
    rows, stages = [], list(context.run.stages.values())
    for stage in stages[:MAX_LISTED]:
        found = stage.attributes
        remarks = [] if stage.complete and stage.is_known else [stage.state]
        remarks += [str(message) for message in found.get("warnings") or ()]
        rows.append([
            context.run.title(stage), _number(found.get("rows_in")), _number(found.get("total")),
            _number(found.get("n_clusters")), f"{found['inertia']:.6g}" if found.get("inertia") is not None else "",
            duration(found["seconds"]) if "seconds" in found else "", _number(found.get("tasks")),
            "; ".join(remarks),
        ])  # fmt: skip
    if len(stages) > MAX_LISTED:
        context.notes.append(f"The table shows {MAX_LISTED} of {len(stages)} stages.")
    context.figures["stages"] = {
        stage.name: {
            "title": context.run.title(stage), "finished": stage.complete,
            **{key: stage.attributes[key] for key in ("rows_in", "total", "n_clusters", "inertia", "seconds")
               if isinstance(stage.attributes.get(key), int | float)},
        }
        for stage in stages[:MAX_LISTED]
    }  # fmt: skip
    header = ["stage", "rows in", "rows out", "clusters", "inertia", "time", "tasks", "remarks"]
    if not any(row[7] for row in rows):
        header, rows = header[:7], [row[:7] for row in rows]
    section = Section("Stages", tables=[Table(header, rows, texts=(7,))])
    timed = context.few([s for s in context.run.ranked if "seconds" in s.attributes], MAX_TIMED, "timings")
    if timed:
        names = [context.run.title(stage) for stage in timed]
        values = [float(stage.attributes["seconds"]) for stage in timed]
        longest = names[int(np.argmax(values))]
        section.pictures.append(
            Picture(
                "Timings",
                drawing.bars(names, values, "seconds", f"Seconds of each stage; the longest is {longest}."),
                "Seconds from a stage's start to its last array written. A stage that was interrupted counts from "
                "its last start.",
            )
        )
    return section


def cluster_sections(context: RunContext) -> list[Section]:
    """Return the cluster sizes before and after, and the balance."""
    shapes, even = Section("Cluster sizes"), Section("Balance")
    shapes.lines.append(
        "Each cluster's rows against its rank, both logarithmic. A long steep line: few clusters hold most rows. "
        "Curation flattens it; a line that is flat up to its end is perfectly balanced."
    )
    even.lines.append(
        "How evenly the rows are spread over the clusters. Effective: as many equal clusters would be as even. "
        "Gini: 0 is even, 1 is all in one. KL: divergence from equal shares over all clusters, in nats; 0 is even."
    )
    selections = context.few(context.selections, MAX_SELECTIONS, "selections")
    for first, levels in context.levels():
        sizes = np.asarray(first.array("sizes")[...])
        labels = first.array("labels")
        before = {stage.name: context.up(sizes, stage) for stage in levels}
        found: dict[str, list[tuple[str, Any, Any, Balance]]] = {
            stage.name: [("before", *ranked_sizes(before[stage.name]), balance(before[stage.name]))]
            for stage in levels
        }
        for selection in selections:
            kept = kept_per_cluster(labels, selection.array("counts"), len(sizes))
            for stage in levels:
                after = context.up(kept, stage)
                if not np.array_equal(after, before[stage.name]):  # what came before changes nothing
                    name = f"after {context.run.title(selection)}"
                    found[stage.name].append((name, *ranked_sizes(after), balance(after)))
        for stage in levels:
            _clustering(context, stage, found[stage.name], len(before[stage.name]), shapes, even)
    return [shapes, even]


def _clustering(
    context: RunContext,
    stage: StoredStage,
    found: list[tuple[str, Any, Any, Balance]],
    k: int,
    shapes: Section,
    even: Section,
) -> None:
    title = context.run.title(stage)
    first, last = found[0][3], found[-1][3]
    shapes.pictures.append(
        Picture(
            title,
            drawing.sizes(
                [(name, ranks, values) for name, ranks, values, _ in found],
                f"Cluster sizes by rank of {title}: the largest of {k} clusters has "
                f"{found[0][2].max(initial=0)} rows.",
            ),
            f"{k:,} clusters; the largest holds {int(found[0][2].max(initial=0)):,} rows before"
            + (f" and {int(found[-1][2].max(initial=0)):,} {found[-1][0]}." if len(found) > 1 else "."),
        )
    )
    rows = [
        [
            name,
            f"{one.rows:,}",
            f"{one.clusters:,}",
            f"{one.effective:,.1f}",
            f"{one.gini:.3f}",
            f"{one.kl:.3f}",
        ]
        for name, _, _, one in found
    ]
    even.tables.append(
        Table(("", "rows", "clusters with rows", "effective clusters", "Gini", "KL to uniform"), rows, title)
    )
    context.figures.setdefault("balance", {})[title] = {
        name: {"rows": one.rows, "effective": one.effective, "gini": one.gini, "kl": one.kl}
        for name, _, _, one in found
    }
    if len(found) > 1:
        even.pictures.append(
            Picture(
                title,
                drawing.bars(
                    [name.removeprefix("after ") for name, *_ in found],
                    [one.effective for *_, one in found],
                    f"effective clusters, of {k:,}",
                    f"Effective clusters of {title}: {first.effective:.0f} before, {last.effective:.0f} "
                    f"{found[-1][0]}.",
                ),
                f"Longer is more even; {k:,} is the most there can be.",
            )
        )


def dedup_sections(context: RunContext) -> list[Section]:
    """Return the similarities of each dedup stage; and rows around its threshold."""
    section, looks = Section("Duplicates"), Section("Duplicates to look at")
    section.lines.append(
        "How similar rows are to their closest earlier row: those right of the dashed line were dropped, and "
        "a valley is a good place for the line. Then the fraction of rows that other thresholds would keep."
    )
    for stage in context.few(
        [s for s in context.of_pool if s.kind == "semantic_dedup"], MAX_OF_A_KIND, "dedup stages"
    ):
        eps, rule = float(stage.config["eps"]), stage.config.get("rule", "earlier")
        found, title = read_similarities(stage, eps), context.run.title(stage)
        kept = int(stage.attributes.get("total", 0)) / max(1, found.rows)
        limit = float(np.float32(1 - eps))
        section.pictures.append(
            Picture(
                f"{title}: similarities",
                drawing.histogram(
                    found.histogram, SIMILARITY_BINS, limit,
                    f"Histogram of similarities; {1 - kept:.1%} of the rows lie above 1 - eps = {limit:.4g}.",
                ),
                f"{found.rows:,} rows compared; {found.unmatched:,} of them have no earlier row in their cluster and "
                "are not in the picture, nor is the lowest hundredth of the others.",
            )
        )  # fmt: skip
        valid = EPS_GRID <= eps if rule == "connected" else np.ones(len(EPS_GRID), dtype=bool)
        if rule != "greedy":
            caption = "A lookup in the stored similarities: the same rows would be kept by dedup.at(eps)."
            if rule == "connected":
                caption += " The rule 'connected' knows no links beyond the eps that was run."
            section.pictures.append(
                Picture(
                    f"{title}: kept fraction",
                    drawing.kept_curve(
                        EPS_GRID[valid], found.kept_fraction[valid], eps, kept,
                        f"Fraction of rows kept as eps moves; {kept:.1%} at the chosen eps {eps:g}.",
                    ),
                    caption,
                )
            )  # fmt: skip
        else:
            section.lines.append(
                f"{title}: under the rule 'greedy' other thresholds are not a lookup, so that there is no "
                f"such curve; {kept:.1%} of the rows were kept."
            )
        looks.galleries += duplicate_gallery(stage, found, eps, title)
    return [section, looks]


def prune_section(context: RunContext) -> Section:
    """Return the fraction kept of each cluster against its complexity, or its size."""
    section = Section("Pruning")
    section.lines.append("A point is a cluster, larger where it has more rows: the fraction kept of it.")
    for stage in context.few(
        [s for s in context.of_pool if s.kind in ALLOCATIONS], MAX_OF_A_KIND, "pruning stages"
    ):
        sizes, kept = (np.asarray(stage.array(name)[...]) for name in ("cluster_sizes", "per_cluster"))
        at = np.flatnonzero(sizes > 0)
        if len(at) > MAX_POINTS:
            at = np.sort(np.random.default_rng(context.seed).choice(at, MAX_POINTS, replace=False))
        drawn = (
            ""
            if len(at) == (sizes > 0).sum()
            else f" {len(at):,} of {(sizes > 0).sum():,} clusters are shown."
        )
        title = context.run.title(stage)
        if stage.kind == "density_prune":
            x = (np.asarray(stage.array("intra")[...]) * np.asarray(stage.array("inter")[...]))[at]
            label, caption = "complexity of the cluster (intra × inter cos distance)", (
                "To the right are complex clusters (spread out, far from others), of which more is kept; to the left "
                "simple ones, which are thinned."
            )  # fmt: skip
        else:
            x, label = np.log10(sizes[at]), "rows in the cluster (powers of ten)"
            caption = "Clusters low in the picture hold mostly rows that the ranking took for redundant."
        section.pictures.append(
            Picture(
                title,
                drawing.scatter(x, kept[at] / sizes[at], sizes[at], label, "fraction kept",
                                f"Fraction kept of each cluster against {label}."),
                caption + drawn,
            )
        )  # fmt: skip
    return section


def map_section(context: RunContext) -> Section:
    """Return the map of a sample of the pool, for the last selections."""
    section = Section("Map")
    shown = context.few(context.selections, 4, "selections with a map") if context.emb is not None else []
    if not shown:
        return section
    assert context.emb is not None
    found = map_pool(context.emb, context.seed)
    where = " of a few chunks of the pool" if found.whole_chunks else ""
    section.lines.append(
        f"{len(found.rows):,} rows{where}, drawn at random, on the first two principal components of their "
        "embeddings. Kept rows should cover every part of the cloud that dropped rows are in: an area of orange "
        "alone is a concept that was lost. What two components do not show lies on top of each other here."
    )
    for stage in shown:
        kept = values_at(stage.array("counts"), found.rows) > 0
        title = context.run.title(stage)
        section.pictures.append(
            Picture(
                f"after {title}",
                drawing.pool_map(
                    found.places, kept, found.explained, f"Map of the pool; {kept.mean():.1%} of the rows are kept."
                ),
                f"{int(kept.sum()):,} of the {len(kept):,} rows on the map are kept ({kept.mean():.1%}).",
            )
        )  # fmt: skip
    return section


def members_section(context: RunContext) -> Section:
    """Return members of some clusters."""
    members = Section("Clusters to look at")
    counts = context.final.array("counts") if context.final is not None else None
    clusterings = [s for s in context.of_pool if s.is_clustering]
    flat = [s for s in clusterings if "parent" not in s.inputs and has_distances(s)]
    parents = {s.inputs.get("parent") for s in clusterings}
    tops = [s for s in clusterings if "parent" in s.inputs and s.name not in parents]
    for stage in context.few(flat, MAX_OF_A_KIND, "clusterings of rows"):
        sizes = np.asarray(stage.array("sizes")[...])
        found = cluster_gallery(
            stage, sizes, counts, context.run.title(stage), stage.config.get("metric", "l2")
        )
        members.galleries += [] if found is None else [found]
    for stage in context.few(tops, MAX_OF_A_KIND, "hierarchies"):
        below = np.asarray(context.run.chain(stage)[0].array("sizes")[...])
        found = hierarchy_gallery(context.run, stage, context.up(below, stage), counts, context.seed)
        members.galleries += [] if found is None else [found]
    if counts is not None and members.galleries:
        assert context.final is not None
        members.lines.append(f"Kept and dropped: by {context.run.title(context.final)}.")
    return members


def _number(value: Any) -> str:
    return "" if value is None else f"{int(value):,}"


def duration(seconds: float) -> str:
    """Return seconds as text: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
