"""Pictures of figures: SVG that is part of the page and takes its text colour from it.

Lines and bars are vectors, clouds of points one bitmap inside, so that a picture's size does not grow with
what it shows.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

INK = "#123456"
"""Stands for the colour of the page's text."""
GREY = "#8b929c"
COLOURS = ("#3b7fd1", "#d9772b", "#3a9a66", "#c74f5d", "#8a68c9", "#a08a1f", "#2f9aa8", "#b0619c")
KEPT, DROPPED = COLOURS[:2]
DASHES = ("-", "--", "-.", ":")
WIDE, HIGH = 4.8, 3.4
"""Inches: small enough for its text to stay readable at a phone's width."""


@contextmanager
def axes(x: str, y: str, *, high: float = HIGH) -> Iterator[tuple[Any, Any]]:
    """Yield (figure, axes) with labelled axes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "daskcurate", "font.family": "sans-serif", "font.size": 11,
        "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "grid.color": GREY, "grid.alpha": 0.25,
        "axes.grid": True, "text.parse_math": False, "axes.axisbelow": True, "legend.frameon": False,
        "legend.fontsize": 9.5, "lines.linewidth": 1.8, "axes.formatter.useoffset": False,
    }  # fmt: skip
    with mpl.rc_context(settings):
        figure = Figure(figsize=(WIDE, high), layout="constrained")
        one = figure.add_subplot()
        one.set_xlabel(x)
        one.set_ylabel(y)
        yield figure, one


def as_svg(figure: Any, alt: str) -> str:
    """Return a figure as an ``svg`` element with a text alternative."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "daskcurate"}):
        figure.savefig(buffer, format="svg", transparent=True, dpi=130, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)  # the same in every picture, and referred to by nothing
    text = text.replace(INK, "currentColor")
    text = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf"<svg \1 {_NAMES}>", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)


_NAMES = 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg"'


def _legend(one: Any) -> None:
    if len(one.get_legend_handles_labels()[0]) > 1:
        one.legend(loc="best")


def _plain_log(axis: Any) -> None:
    """Label a logarithmic axis with numbers instead of powers, where they are short."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_formatter(NullFormatter())


def short(value: float) -> str:
    """Return a number in few characters: 1500000 as 1.5M."""
    for step, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= step * 0.9999:
            return f"{value / step:.3g}{suffix}"
    return f"{value:.3g}"


def sizes(lines: Sequence[tuple[str, np.ndarray, np.ndarray]], alt: str) -> str:
    """Draw cluster sizes by rank, log-log: a line (name, ranks, sizes) for before and each after."""
    with axes("rank of the cluster, largest first", "rows in the cluster") as (figure, one):
        for i, (name, ranks, values) in enumerate(lines):
            one.loglog(ranks, values, DASHES[i % 4], color=INK if not i else COLOURS[(i - 1) % 8], label=name,
                       marker="o" if len(ranks) == 1 else None)  # fmt: skip
        _plain_log(one.xaxis)
        _plain_log(one.yaxis)
        one.legend(loc="lower left")
        return as_svg(figure, alt)


def histogram(counts: np.ndarray, edges: np.ndarray, limit: float, alt: str) -> str:
    """Draw a histogram of similarities (equal bins) with the threshold; the lowest hundredth is cut off."""
    counts, edges = _cut_tail(counts, edges, limit)
    with axes("similarity to the closest earlier row", "rows") as (figure, one):
        over = edges[:-1] >= limit - 1e-6  # the threshold is a float32, the edges are not
        for part, colour, name in ((~over, KEPT, "kept"), (over, DROPPED, "dropped")):
            if counts[part].any():
                one.bar(
                    edges[:-1][part],
                    counts[part],
                    np.diff(edges)[part],
                    align="edge",
                    color=colour,
                    label=name,
                )
        one.axvline(limit, color=INK, linestyle="--", linewidth=1.4, label=f"1 − eps = {limit:.4g}")
        one.yaxis.set_major_formatter(lambda value, _: short(value))
        one.legend(loc="upper left")
        return as_svg(figure, alt)


def _cut_tail(counts: np.ndarray, edges: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the bins from the first hundredth of the rows on, at most 120 of them, merged if need be."""
    first = int(np.searchsorted(np.cumsum(counts), 0.01 * counts.sum())) if counts.any() else 0
    first = max(0, min(first, int(np.searchsorted(edges, limit)) - 10, len(counts) - 20))
    step = -(-(len(counts) - first) // 120)
    n_bars = min(-(-(len(counts) - first) // step), len(counts) // step)
    first = len(counts) - n_bars * step  # counted from the right, where the duplicates are
    return counts[first:].reshape(n_bars, step).sum(axis=1), edges[first::step]


def kept_curve(
    eps: np.ndarray, kept: np.ndarray, chosen: float | None, chosen_kept: float, alt: str,
    band: tuple[np.ndarray, np.ndarray] | None = None,
) -> str:  # fmt: skip
    """Draw the kept fraction as eps moves, with the chosen one, or with an interval and its points."""
    with axes("eps", "fraction of rows kept") as (figure, one):
        some = eps > 0
        one.semilogx(
            eps[some], kept[some], color=COLOURS[0], marker=None if band is None else "o", markersize=4
        )
        if band is not None:
            one.fill_between(
                eps[some], band[0][some], band[1][some], color=COLOURS[0], alpha=0.25, linewidth=0
            )
        if chosen is not None:
            one.axvline(max(chosen, 1e-4), color=INK, linestyle="--", linewidth=1.4)
            one.plot([max(chosen, 1e-4)], [chosen_kept], "o", color=COLOURS[1], markersize=8)
            # the curve falls: below it, to the left, is room, unless that is the edge
            aside = (-8, -18, "right") if chosen > 0.002 else (8, 8, "left")
            one.annotate(
                f"eps {chosen:g}: {chosen_kept:.1%} kept", (max(chosen, 1e-4), chosen_kept), aside[:2],
                textcoords="offset points", ha=aside[2],
            )  # fmt: skip
        low = float(kept.min()) if band is None else float(band[0].min())
        one.set_ylim(max(-0.02, low - 0.05), 1.05)
        _plain_log(one.xaxis)
        return as_svg(figure, alt)


def scatter(x: np.ndarray, y: np.ndarray, size: np.ndarray, x_label: str, y_label: str, alt: str) -> str:
    """Draw a point a cluster, larger clusters larger."""
    with axes(x_label, y_label) as (figure, one):
        area = 6 + 60 * np.sqrt(size / max(1, size.max(initial=1)))
        one.scatter(x, y, area, color=COLOURS[0], alpha=0.45, linewidths=0, rasterized=True)
        one.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        return as_svg(figure, alt)


def pool_map(places: np.ndarray, kept: np.ndarray, explained: tuple[float, float], alt: str) -> str:
    """Draw the map with the kept and the dropped rows."""
    names = [f"component {i + 1} ({share:.0%} of the variance)" for i, share in enumerate(explained)]
    with axes(*names, high=4.2) as (figure, one):
        area = float(np.clip(20_000 / max(1, len(places)), 1.5, 20))
        parts = [(kept, KEPT, "kept"), (~kept, DROPPED, "dropped")]
        for part, colour, name in sorted(parts, key=lambda one: -one[0].sum()):  # the fewer ones on top
            if part.any():
                one.scatter(places[part, 0], places[part, 1], area, color=colour, linewidths=0, rasterized=True,
                            label=name, alpha=0.6)  # fmt: skip
        one.set_xticks([])
        one.set_yticks([])
        figure.legend(loc="outside upper right", ncols=2, markerscale=4, frameon=False)
        return as_svg(figure, alt)


def bars(names: Sequence[str], values: Sequence[float], x_label: str, alt: str) -> str:
    """Draw a horizontal bar for each name, the first on top, with its value beside it."""
    with axes(x_label, "", high=0.9 + 0.34 * len(names)) as (figure, one):
        places = np.arange(len(names))[::-1]
        one.barh(places, values, color=COLOURS[0], height=0.7)
        one.set_yticks(places, [_clipped(name) for name in names])
        one.grid(visible=False, axis="y")
        one.margins(x=0.14)
        for place, value in zip(places, values, strict=True):
            one.annotate(
                short(value), (value, place), (4, 0), textcoords="offset points", va="center", fontsize=9.5
            )
        one.xaxis.set_major_formatter(lambda value, _: short(value))
        one.xaxis.get_major_locator().set_params(nbins=5)
        return as_svg(figure, alt)


def _clipped(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def curves(
    x: np.ndarray, lines: Sequence[tuple[str, np.ndarray]], x_label: str, y_label: str, alt: str, *,
    log_y: bool = False, y_range: tuple[float, float] | None = None,
) -> str:  # fmt: skip
    """Draw lines over a logarithmic x, with a point a value."""
    with axes(x_label, y_label) as (figure, one):
        for i, (name, values) in enumerate(lines):
            one.plot(x, values, DASHES[i % 4], color=COLOURS[i % 8], marker="o", markersize=5, label=name)
        one.set_xscale("log")
        if log_y:
            one.set_yscale("log")
            _plain_log(one.yaxis)
        if y_range is not None:
            one.set_ylim(*y_range)
        one.set_xticks(x, [short(value) for value in x], minor=False)
        one.xaxis.set_minor_formatter(lambda value, _: "")
        _legend(one)
        return as_svg(figure, alt)
