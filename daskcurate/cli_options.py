"""What the commands share: options, how they print, and the cluster that they run on."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from daskcurate.clusters import ClusterSpec, Place, UsageError, open_client

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)
WIDE = 400

__all__ = ["UsageError", "a_client", "console", "errors", "place", "show"]

Scheduler = Annotated[str | None, typer.Option(help="Address of a running Dask scheduler.")]
SchedulerFile = Annotated[Path | None, typer.Option(help="JSON file that a running scheduler wrote.")]
Cluster = Annotated[
    str | None, typer.Option(help="Kind of cluster to start, such as local or slurm; docs/clusters.md.")
]
ClusterConfig = Annotated[
    Path | None, typer.Option(help="YAML file of that cluster's options, in place of the run's own.")
]
Workers = Annotated[int | None, typer.Option(help="Worker processes of the cluster that is started.")]
Memory = Annotated[str | None, typer.Option(help="Memory limit of each of its workers, such as 4GiB.")]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="auto|cpu|gpu",
        help="Where local workers compute; auto: on GPUs, where there are some and the extra is installed.",
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="key=value in place of the file's; repeatable.")
]
Config = Annotated[Path, typer.Argument(help="The run's YAML file.")]


def place(
    scheduler: str | None, scheduler_file: Path | None, cluster: str | None, cluster_config: Path | None,
    n_workers: int | None, memory_limit: str | None, device: str | None,
) -> Place:  # fmt: skip
    """Return where a command runs, by its options."""
    return Place(
        scheduler=scheduler, scheduler_file=scheduler_file, cluster=cluster, cluster_config=cluster_config,
        n_workers=n_workers, memory_limit=memory_limit, device=device,
    )  # fmt: skip


@contextlib.contextmanager
def a_client(place: Place, section: ClusterSpec | None = None) -> Iterator[Any]:
    """Yield a client of the cluster that the options name; say where its dashboard is."""
    with open_client(place, section) as client:
        console.print(f"Dashboard: {client.dashboard_link}")
        yield client


def show(table: Table) -> None:
    """Print a table; into a pipe or a file as wide as it is, with nothing cut off."""
    (console if console.is_terminal else Console(highlight=False, width=WIDE)).print(table)
