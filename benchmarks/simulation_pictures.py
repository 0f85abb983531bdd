"""Pictures of the published simulations, for docs/: ``python benchmarks/simulation_pictures.py``.

One run of each, with seed 0 (``--seed``); the tables over several seeds are those of ``simulations.py``.
Written are ``one_dimension.png``, ``voronoi.png`` and ``rings.png`` in docs/pictures (``--output``), and the
figures that they show are printed.
"""

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial import Voronoi
from simulations import RINGS, mixture_centroids, ring_picks

import daskcurate as dc
from daskcurate.local_cluster import make_local_cluster
from daskcurate.report.drawing import COLOURS, GREY
from daskcurate.testing import kl_to_uniform, mixture, rings

POINTS = 100_000
POWERS = (2, 4, 8)
LEVELS = (1000, 300, 100)
"""More centres on a line than these lie closer than seeding in float32 tells apart."""
HUMPS = ((0.7, -1.2, 0.6), (0.3, 1.5, 0.8))
"""Weight, mean and standard deviation of the one-dimensional density's two normal parts."""


def density(x: np.ndarray) -> np.ndarray:
    """Return the one-dimensional density at ``x``."""
    parts = [w * np.exp(-0.5 * ((x - m) / s) ** 2) / (s * np.sqrt(2 * np.pi)) for w, m, s in HUMPS]
    return np.sum(parts, axis=0)


def line_points(seed: int) -> np.ndarray:
    """Return points drawn from the density, (n,) float64, ascending."""
    rng = np.random.default_rng(seed)
    weights, means, spreads = (np.array(column) for column in zip(*HUMPS, strict=True))
    part = rng.choice(len(HUMPS), POINTS, p=weights)
    return np.sort(means[part] + spreads[part] * rng.standard_normal(POINTS))


def generalised_centres(x: np.ndarray, power: int, seed: int, k: int = 300, n_iters: int = 300) -> np.ndarray:
    """Return ``k`` centres, ascending, that lower the sum of |x - c|^power; ``x`` ascending, an even power.

    Seeds are drawn as k-means++ draws them, with chances of |x - c|^power. Then, as in Lloyd's algorithm, points
    are assigned (cells on a line are intervals) and centres moved by one Newton step of the cell's convex sum,
    which for power 2 goes to the mean.
    """
    rng = np.random.default_rng(seed)
    seeds = [rng.choice(x)]
    nearest = np.abs(x - seeds[0])
    while len(seeds) < k:
        mass = np.cumsum(nearest**power)
        seeds.append(x[np.searchsorted(mass, rng.random() * mass[-1])])
        np.minimum(nearest, np.abs(x - seeds[-1]), out=nearest)
    centres = np.sort(seeds)
    for _ in range(n_iters):
        starts = np.concatenate([[0], np.searchsorted(x, (centres[1:] + centres[:-1]) / 2)])
        gap = x - np.repeat(centres, np.diff(np.append(starts, len(x))))
        bent = gap ** (power - 2)
        slope = np.add.reduceat(bent * gap, starts)
        bend = (power - 1) * np.add.reduceat(bent, starts)
        # a cell of one point has no bend once its centre is there
        centres = np.sort(centres + np.divide(slope, bend, out=np.zeros(k), where=bend > 0))
    return centres


def centre_density(centres: np.ndarray, over: int) -> tuple[np.ndarray, np.ndarray]:
    """Return places and the density of centres there: how many of them a gap of ``over`` intervals holds."""
    centres = np.sort(centres)
    width = centres[over:] - centres[:-over]
    return (centres[over:] + centres[:-over]) / 2, over / (len(centres) * np.maximum(width, 1e-12))


def expected(grid: np.ndarray, exponent: float) -> np.ndarray:
    """Return the density to the power of ``exponent``, normalised over the grid."""
    values = density(grid) ** exponent
    return values / (values.sum() * (grid[1] - grid[0]))


def draw_line(folder: Path, seed: int) -> Figure:
    """Draw the densities of centres on a line: by power of the distance, and by level of the hierarchy."""
    x = line_points(seed)
    low, high = x[0], x[-1]
    grid = np.linspace(low, high, 1000)
    figure, (left, right) = _panels(2, 9.6, 3.4)
    for power, colour in zip(POWERS, COLOURS, strict=False):
        at, value = centre_density(generalised_centres(x, power, seed), 10)
        _compare(left, grid, at, value, 1 / (1 + power), f"power {power}: p^(1/{1 + power})", colour)
    emb = dc.ingest(
        np.stack([x, np.ones_like(x)], axis=1), folder / "line.zarr", normalize=False, dtype="float32"
    )
    tree = dc.hierarchical_kmeans(emb, list(LEVELS), n_iters=100, seed=seed)
    tree = dc.compute(tree, store=folder / "line-run.zarr", progress=False)
    for number, (level, colour) in enumerate(zip(tree.levels, COLOURS, strict=False), 1):
        at, value = centre_density(level.centroids[:, 0], 10)
        _compare(right, grid, at, value, 3.0**-number, f"level {number}: p^(1/{3**number})", colour)
    for axes, title in ((left, "300 centres, |x - c| to a power"), (right, "k-means of k-means: 3 levels")):
        axes.plot(grid, density(grid), color=GREY, linewidth=1, linestyle="--", label="the data: p")
        axes.set_title(title)
        axes.set_ylim(0, 0.5)
        axes.set_xlabel("x")
        axes.legend(frameon=False, fontsize=8)
    left.set_ylabel("density")
    return figure


def _compare(
    axes: Any, grid: np.ndarray, at: np.ndarray, value: np.ndarray, exponent: float, name: str, colour: str
) -> None:
    curve = expected(grid, exponent)
    axes.plot(grid, curve, color=colour, linewidth=1.4, label=name)
    axes.plot(at, value, ".", color=colour, markersize=2.5)
    inside = (at > np.quantile(line_points(0), 0.01)) & (at < np.quantile(line_points(0), 0.99))
    ratio = value[inside] / np.interp(at[inside], grid, curve)
    print(
        f"{name}: measured / expected, median {np.median(ratio):.3f}, 5 % to 95 % {np.quantile(ratio, 0.05):.2f} to "
        f"{np.quantile(ratio, 0.95):.2f}"
    )


def draw_voronoi(folder: Path, seed: int) -> Figure:
    """Draw the cells of the last level's centroids of each run over the 9000 points."""
    points = mixture(seed)
    print(f"the data itself: KL {kl_to_uniform(points):.4f}")
    figure, panels = _panels(4, 9.6, 9.8, rows=2)
    for axes, (name, centroids, _) in zip(panels, mixture_centroids(folder, seed), strict=True):
        kl = kl_to_uniform(centroids)
        print(f"{name}: KL {kl:.4f}")
        axes.plot(*points.T, ".", color=GREY, markersize=1, alpha=0.5)
        axes.add_collection(LineCollection(_cells(centroids), colors=COLOURS[0], linewidths=0.6))
        axes.plot(*centroids.T, ".", color=COLOURS[1], markersize=3.5)
        axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=f"{name}: KL {kl:.3f}")
        axes.set_axis_off()
    return figure


def _cells(centroids: np.ndarray) -> list[np.ndarray]:
    """Return the edges of the Voronoi cells; four far points close those at the rim."""
    far = np.array([[-100, -100], [-100, 100], [100, -100], [100, 100]])
    cells = Voronoi(np.concatenate([centroids, far]))
    return [cells.vertices[edge] for edge in cells.ridge_vertices if min(edge) >= 0]


def draw_rings(folder: Path, seed: int) -> Figure:
    """Draw the five rings, 1000 points drawn at random from them, and 1000 sampled from the hierarchy."""
    points, ring = rings(seed)
    at_random = np.random.default_rng(seed).permutation(len(points))[:1000]
    picked = ring_picks(folder, seed)
    figure, panels = _panels(3, 9.6, 1.9)
    for axes, rows, title in (
        (panels[0], np.arange(len(points)), f"the pool: {len(points):,} points"),
        (panels[1], at_random, "1000 at random"),
        (panels[2], picked, "1000, hierarchical sampling"),
    ):
        for number in range(len(RINGS)):
            members = rows[ring[rows] == number]
            size = 0.6 if len(rows) > 1000 else 2
            axes.plot(*points[members].T, ".", color=COLOURS[number], markersize=size)
        axes.set(aspect="equal", title=title)
        axes.set_axis_off()
        print(f"{title}: of each ring {np.bincount(ring[rows], minlength=len(RINGS)).tolist()}")
    return figure


def _panels(count: int, wide: float, high: float, rows: int = 1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(wide, high), layout="constrained")
    return figure, [figure.add_subplot(rows, count // rows, i + 1) for i in range(count)]


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG of 32 colours: a third of the bytes, and no difference to see."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, facecolor="white")
    Image.open(buffer).convert("RGB").quantize(32, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"wrote {path}, {path.stat().st_size / 1000:.0f} kB", flush=True)


def main() -> None:
    """Run the simulations and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "pictures")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    drawings = {"one_dimension": draw_line, "rings": draw_rings, "voronoi": draw_voronoi}
    with tempfile.TemporaryDirectory() as name, make_local_cluster() as cluster, Client(cluster):
        for picture, draw in drawings.items():
            save(draw(Path(name), given.seed), given.output / f"{picture}.png")


if __name__ == "__main__":
    main()
