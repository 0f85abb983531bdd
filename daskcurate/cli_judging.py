"""Commands for looking and choosing: ``daskcurate report | choose-eps | choose-k``."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import daskcurate
from daskcurate.cli_options import (
    Cluster,
    ClusterConfig,
    Device,
    Memory,
    Scheduler,
    SchedulerFile,
    UsageError,
    Workers,
    a_client,
    console,
    place,
    show,
)

Output = Annotated[Path | None, typer.Option(help="Folder to write.")]
Texts = Annotated[str | None, typer.Option(help="Texts of the rows: file.parquet:column, .txt or .npy.")]
Images = Annotated[
    str | None, typer.Option(help="Images of the rows: file.parquet:column, .txt of paths, .npy or zarr.")
]
Overwrite = Annotated[bool, typer.Option(help="Write into a folder that is not a report.")]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn.")]
Metric = Annotated[str, typer.Option(help="Metric of the clustering: cosine or l2.")]


def report(
    store: Annotated[str, typer.Argument(help="The run store.")],
    output: Output = None,
    embeddings: Annotated[str | None, typer.Option(help="The pool, if it was moved since.")] = None,
    texts: Texts = None,
    images: Images = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write a page about a run: figures, pictures, and your own items to judge it by."""
    page = daskcurate.write_report(
        store, output, embeddings=embeddings, texts=texts, images=images, seed=seed, overwrite=overwrite
    )
    console.print(f"Wrote {page}")


def choose_eps(
    pool: Annotated[str, typer.Argument(help="The pool.")],
    eps: Annotated[str | None, typer.Option(help="Thresholds to try, as in 0.01,0.02,0.05.")] = None,
    sample: Annotated[int, typer.Option(help="Rows that are judged.")] = 20_000,
    clusters: Annotated[
        int | None, typer.Option(help="Clusters; default: the square root of the rows.")
    ] = None,
    keep: Annotated[str, typer.Option(help="Which of similar rows stays: hard, easy or random.")] = "hard",
    metric: Metric = "cosine",
    output: Output = Path("choose-eps"),
    texts: Texts = None,
    images: Images = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
    scheduler_file: SchedulerFile = None,
    cluster: Cluster = None,
    cluster_config: ClusterConfig = None,
    n_workers: Workers = None,
    memory_limit: Memory = None,
    device: Device = None,
) -> None:
    """Estimate what thresholds of dedup would keep; write pictures and examples at each border."""
    from daskcurate.choosing.eps import EpsEstimate
    from daskcurate.report.choices import EpsPage

    asked = None if eps is None else _numbers("eps", eps, float)
    emb = daskcurate.open_embeddings(pool)
    estimate = EpsEstimate.of(
        emb, asked, sample_size=sample, n_clusters=clusters, keep=keep, metric=metric, seed=seed
    )
    page = EpsPage(emb, output, texts, images, overwrite)
    where = place(scheduler, scheduler_file, cluster, cluster_config, n_workers, memory_limit, device)
    with a_client(where) as client:
        found = estimate.run(client)
    show(_choice_table(found))
    console.print(f"Wrote {page.write(found)}")


def choose_k(
    pool: Annotated[str, typer.Argument(help="The pool.")],
    clusters: Annotated[str | None, typer.Option(help="Numbers of clusters to try, as in 100,1000.")] = None,
    sample: Annotated[int, typer.Option(help="Rows of the sample, at least.")] = 20_000,
    n_iters: Annotated[int, typer.Option(help="Updates of k-means in the run.")] = 50,
    fit_fraction: Annotated[float, typer.Option(help="Fraction of the rows that they are done on.")] = 1.0,
    metric: Metric = "cosine",
    output: Output = Path("choose-k"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
    scheduler_file: SchedulerFile = None,
    cluster: Cluster = None,
    cluster_config: ClusterConfig = None,
    n_workers: Workers = None,
    memory_limit: Memory = None,
    device: Device = None,
) -> None:
    """Estimate inertia, cluster sizes and cost of numbers of clusters; write pictures of them."""
    from daskcurate.choosing.clusters import KEstimate
    from daskcurate.report.choices import KPage

    asked = None if clusters is None else _numbers("clusters", clusters, int)
    emb = daskcurate.open_embeddings(pool)
    estimate = KEstimate.of(
        emb, asked, sample_size=sample, n_iters=n_iters, fit_fraction=fit_fraction, metric=metric, seed=seed
    )
    page = KPage(emb, output, overwrite)
    where = place(scheduler, scheduler_file, cluster, cluster_config, n_workers, memory_limit, device)
    with a_client(where) as client:
        found = estimate.run(client)
    show(_choice_table(found))
    console.print(f"Wrote {page.write(found)}")


def _numbers(name: str, text: str, kind: type) -> list[Any]:
    """Return the numbers of a list such as 0.01,0.02."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"--{name} {text} is not allowed: give {what} with commas between them") from None


def _choice_table(found: Any) -> Table:
    table = Table(title=f"From {found.sample_size:,} of {found.n_rows:,} rows", title_justify="left")
    for name in found.HEADER:
        table.add_column(name, justify="right")
    for row in found.as_rows():
        table.add_row(*row)
    return table
