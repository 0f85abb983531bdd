"""The demonstration: a real pool curated end to end, with a table of what happened."""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import daskcurate
from daskcurate.digits import DEMO_EPS, make_digits
from daskcurate.embeddings import Embeddings
from daskcurate.io.ingest import ingest
from daskcurate.report.page import require_extra


@dataclass
class DemoPool:
    """A pool to curate, and what is known about it beforehand."""

    emb: Embeddings
    eps: float
    labels: np.ndarray | None = None
    planted: np.ndarray | None = None
    """Row that each planted duplicate repeats; -1 for originals."""


def digits_pool(output: Path, rows: int, seed: int) -> DemoPool:
    """Make the handwritten digits and ingest them."""
    pool = make_digits(rows, seed=seed)
    emb = ingest(pool.embeddings, output / "pool.zarr", ids=pool.ids, normalize=True, overwrite=True)
    np.save(output / "images.npy", pool.images)
    return DemoPool(emb, DEMO_EPS, pool.label, pool.planted_duplicate_of)


def own_pool(output: Path, source: str, eps: float) -> DemoPool:
    """Open the user's pool, or ingest the user's embeddings."""
    try:
        return DemoPool(daskcurate.open_embeddings(source), eps)
    except (FileNotFoundError, ValueError):
        return DemoPool(ingest(source, output / "pool.zarr", normalize=True, overwrite=True), eps)


def pipeline(pool: DemoPool) -> dict[str, Any]:
    """Return the demo's lazy stages: cluster, deduplicate, prune, cluster again in two levels, sample."""
    n = len(pool.emb)
    k = max(1, min(1000, n // 120))
    fine, coarse = max(1, min(5000, n // 60)), max(1, min(1000, n // 300))
    flat = daskcurate.kmeans(pool.emb, n_clusters=k, metric="cosine", n_iters=25)
    dedup = daskcurate.semantic_dedup(pool.emb, flat, eps=pool.eps)
    prune = daskcurate.density_prune(flat, keep_fraction=0.7, within=dedup)
    tree = daskcurate.hierarchical_kmeans(
        pool.emb, n_clusters=[fine, coarse], sample_sizes=[10, 3], n_resamples=10, n_iters=25, within=prune
    )
    picks = daskcurate.hierarchical_sample(tree, target_size=max(1, n // 8))
    return {"flat": flat, "dedup": dedup, "prune": prune, "tree": tree, "picks": picks}


def run_demo(
    output: Path, source: str | None, eps: float, rows: int, seed: int, client: Any, console: Console
) -> None:
    """Curate a pool into ``output`` and print the summary."""
    output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    console.print("Making the pool ..." if source is None else f"Reading {source} ...")
    pool = digits_pool(output, rows, seed) if source is None else own_pool(output, source, eps)
    console.print(f"Pool: {pool.emb}")
    nodes = pipeline(pool)
    store = output / "run.zarr"
    results = dict(zip(nodes, daskcurate.compute(*nodes.values(), store=store, client=client), strict=True))
    for name in ("picks.npy", "picks.parquet"):
        daskcurate.export(results["picks"], output / name, overwrite=True)
    console.print(stage_table(results))
    console.print(summary_table(pool, results))
    console.print(f"{time.perf_counter() - started:.0f} seconds in all. Left behind, in {output}/:")
    console.print(
        f"  run.zarr       every stage's result ({program()} status shows it; delete it to start over)"
    )
    console.print("  picks.npy      row numbers of the picked rows")
    console.print("  picks.parquet  a line for every row of the pool: kept or not, and why")
    images = ""
    if source is None:
        console.print("  images.npy     the digits")
        images = f" --images {output}/images.npy"
    console.print(f"{report_hint()}{program()} report {output}/run.zarr{images}")


def program() -> str:
    """Return how the command line is called from here: by its name, or by its path if that is not enough."""
    name = "daskcurate"
    return sys.argv[0] if shutil.which(name) is None and Path(sys.argv[0]).name == name else name


def report_hint() -> str:
    """Return what comes before the command that makes a report: what to install first, where it is needed."""
    try:
        require_extra()
    except ImportError:
        return 'Look at it, after pip install "daskcurate[report]": '
    return "Look at it: "


def stage_table(results: dict[str, Any]) -> Table:
    """Return seconds and rows of each stage."""
    table = Table(title="Stages", title_justify="left")
    for column in ("stage", "rows in", "rows out", "clusters", "seconds"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for result in results.values():
        for stage in getattr(result, "levels", [result]):
            found = stage.attributes
            rows_in = found.get("rows_in", stage.n_rows)
            out = "" if "total" not in found else f"{found['total']:,}"
            clusters = "" if "n_clusters" not in found else f"{found['n_clusters']:,}"
            table.add_row(stage.title, f"{rows_in:,}", out, clusters, f"{found['seconds']:.1f}")
    return table


def summary_table(pool: DemoPool, results: dict[str, Any]) -> Table:
    """Return what came of the pool."""
    table = Table(title="Summary", title_justify="left", show_header=False)
    dedup, prune, picks = results["dedup"], results["prune"], results["picks"]
    total = len(pool.emb)
    table.add_row("rows in the pool", f"{total:,}")
    table.add_row("clusters", f"{results['flat'].n_clusters:,} flat; " + _levels(results["tree"]))
    table.add_row("duplicates dropped", f"{total - len(dedup):,} ({(total - len(dedup)) / total:.1%})")
    if pool.planted is not None:
        table.add_row("planted duplicates found", _found(pool.planted, results))
    table.add_row("rows pruned", f"{len(dedup) - len(prune):,}")
    table.add_row("rows picked", f"{len(picks):,}")
    if pool.labels is not None:
        table.add_row("class balance before", balance(pool.labels))
        table.add_row("class balance after", balance(pool.labels[picks.indices]))
    return table


def _levels(tree: Any) -> str:
    return " / ".join(f"{level.n_clusters:,}" for level in tree.levels) + " in levels"


def _found(planted: np.ndarray, results: dict[str, Any]) -> str:
    """Say how many planted pairs are no longer both kept, and how many lay in one cluster at all."""
    copies = np.flatnonzero(planted >= 0)
    kept = np.asarray(results["dedup"].mask)
    labels = np.asarray(results["flat"].labels)
    gone = ~(kept[copies] & kept[planted[copies]])
    together = labels[copies] == labels[planted[copies]]
    return (
        f"{gone.sum():,} of {len(copies):,} pairs ({gone.mean():.1%}); {together.sum():,} lie within one cluster, "
        f"of which {gone[together].mean():.1%} found"
    )


def balance(labels: np.ndarray) -> str:
    """Say how evenly rows are spread over classes: largest and smallest share, effective number."""
    shares = np.bincount(labels, minlength=int(labels.max()) + 1) / len(labels)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    return (
        f"{shares.max():.1%} in the largest class, {shares.min():.1%} in the smallest; "
        f"{np.exp(entropy):.1f} of {len(shares)} classes effectively"
    )


def clear(output: Path) -> None:
    """Remove what an earlier demo left."""
    for name in ("pool.zarr", "run.zarr"):
        shutil.rmtree(output / name, ignore_errors=True)
    for name in ("picks.npy", "picks.parquet", "images.npy"):
        (output / name).unlink(missing_ok=True)
