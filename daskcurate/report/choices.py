"""Pages of what :mod:`daskcurate.choosing` finds: a table, pictures, and examples at the border."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from daskcurate.choosing import EpsChoice, KChoice
from daskcurate.embeddings import Embeddings
from daskcurate.report import drawing
from daskcurate.report.items import Items, pool_ids
from daskcurate.report.page import (
    Gallery,
    Group,
    Page,
    Picture,
    Section,
    Shown,
    Table,
    checked_dest,
    require_extra,
    write_page,
)

MAX_BORDERS = 16
"""Thresholds with examples."""
PAIRS = 4
"""Pairs on each side of a threshold."""


class EpsPage:
    """The page of an :class:`EpsChoice`; all that can be refused is refused when it is made.

    Parameters
    ----------
    emb
        The pool.
    dest, texts, images, overwrite
        As for :func:`daskcurate.write_report`.
    """

    def __init__(
        self, emb: Embeddings, dest: Any, texts: Any = None, images: Any = None, overwrite: bool = False
    ):
        require_extra()
        self.emb, self.dest = emb, checked_dest(dest, overwrite)
        self.items = Items(len(emb), texts, images, pool_ids(emb))

    def write(self, found: EpsChoice) -> Path:
        """Write the page; return its path."""
        eps = np.array(found.eps)
        cost = (
            f"Dedup compares {found.pairs:,} pairs of rows with clusters like these, "
            f"{2 * self.emb.dim * found.pairs:.3g} "
            f"operations, whatever eps is. This estimate took {found.seconds:.1f} seconds."
        )
        section = Section("Kept fraction", lines=[cost], tables=[Table(found.HEADER, found.as_rows())])
        low, high = np.array(found.low), np.array(found.high)
        if len(eps) > 1:
            section.pictures = [
                Picture(
                    "Fraction of rows kept",
                    drawing.kept_curve(
                        eps, np.array(found.kept), None, 0.0,
                        f"Fraction of rows kept, from {found.kept[0]:.1%} at eps {eps[0]:g} to "
                        f"{found.kept[-1]:.1%} at eps {eps[-1]:g}.",
                        band=(low, high),
                    ),
                    "The band is the 95 % interval. Where the curve is flat, the exact eps does not matter: "
                    "such a place lies between true duplicates and rows that are merely alike.",
                )
            ]  # fmt: skip
        page = Page(
            title="Choosing eps",
            subtitle=f"{self.emb.path}: {found.n_rows:,} rows, {found.n_clusters:,} clusters",
            notes=[
                f"{found.sample_size:,} rows drawn at random, each compared with all earlier rows of its "
                "cluster in the whole pool."
            ],
            sections=[section, Section("Examples", galleries=self._borders(found))],
            figures={"eps": found.eps, "kept": found.kept, "low": found.low, "high": found.high, "pairs": found.pairs,
                     "rows": found.n_rows, "sample": found.sample_size, "clusters": found.n_clusters},
        )  # fmt: skip
        return write_page(page, self.items, self.dest)

    def _borders(self, found: EpsChoice) -> list[Gallery]:
        galleries = []
        for eps in found.eps[:MAX_BORDERS]:
            groups = []
            for badge, places in zip(("dropped", "kept"), found.border(eps, PAIRS), strict=True):
                groups += [
                    Group(
                        f"similarity {found.similarity[place]:.4f}",
                        [("", [Shown(int(found.match[place]), "earlier row", first=True),
                               Shown(int(found.rows[place]), "", badge)])],
                    )
                    for place in places
                ]  # fmt: skip
            if groups:
                galleries.append(
                    Gallery(
                        f"eps {eps:g}: rows next to the threshold {1 - eps:.4g}",
                        "Pairs on both sides, those nearest to it. Dropped pairs should be repeats to your "
                        "eyes, kept ones should not.",
                        groups,
                        pairs=True,
                    )
                )
        return galleries


class KPage:
    """The page of a :class:`KChoice`; a folder that may not be written is refused when it is made."""

    def __init__(self, emb: Embeddings, dest: Any, overwrite: bool = False):
        require_extra()
        self.emb, self.dest = emb, checked_dest(dest, overwrite)

    def write(self, found: KChoice) -> Path:
        """Write the page; return its path."""
        k = np.array(found.k)
        together = np.array(found.kmeans_seconds) + np.array(found.dedup_seconds)
        section = Section(
            "Numbers of clusters",
            lines=[
                f"Of the numbers tried, {found.cheapest:,} needs the fewest operations for k-means and dedup "
                "together; "
                f"with clusters of one size it would be {found.even_k:,}. Times are estimates at rates measured here."
            ],
            tables=[Table(found.HEADER, found.as_rows())],
        )
        section.pictures = [
            Picture(
                "Inertia",
                drawing.curves(k, [("inertia", np.array(found.inertia))], "clusters", "mean squared distance",
                               f"Mean squared distance, from {found.inertia[0]:.3g} to {found.inertia[-1]:.3g}."),
                "Mean squared distance of rows that the fit has not seen to their centroid. It always falls; "
                "where it starts to fall slowly, more clusters divide what belongs together.",
            ),
            Picture(
                "Cost",
                drawing.curves(
                    k, [("together", together), ("k-means", np.array(found.kmeans_seconds)),
                        ("dedup", np.array(found.dedup_seconds))],
                    "clusters", "seconds", f"Predicted seconds; the least is {together.min():.3g}.", log_y=True,
                ),
                "k-means costs more with more clusters, dedup less, since it compares the rows of a cluster "
                "with each other.",
            ),
            Picture(
                "Imbalance",
                drawing.curves(k, [("imbalance", np.array(found.imbalance))], "clusters", "imbalance",
                               f"Imbalance, from {found.imbalance[0]:.2f} to {found.imbalance[-1]:.2f}.",
                               y_range=(0.9, 1.1 * max(1.5, *found.imbalance))),
                "Pairs of rows within clusters, over those within equal clusters: 1 is even, 2 makes dedup "
                "twice as dear.",
            ),
        ]  # fmt: skip
        page = Page(
            title="Choosing the number of clusters",
            subtitle=f"{self.emb.path}: {found.n_rows:,} rows",
            notes=[f"From {found.sample_size:,} rows drawn at random: half to fit, half to measure."],
            sections=[section],
            figures={"k": found.k, "inertia": found.inertia, "imbalance": found.imbalance, "largest": found.largest,
                     "kmeans_flops": found.kmeans_flops, "dedup_flops": found.dedup_flops, "rows": found.n_rows},
        )  # fmt: skip
        return write_page(page, Items(found.n_rows), self.dest)
