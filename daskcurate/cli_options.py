"""What the commands share: options, how they print, and the cluster that they run on."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from daskcurate.device import DEVICES
from daskcurate.local_cluster import LocalClusterConfig
from daskcurate.local_cuda import start_on

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)
WIDE = 400

_device = "cpu"


def _choose_device(given: str) -> str:
    """Keep ``--device`` of the command that runs for the cluster that it starts."""
    global _device
    if given not in DEVICES:
        raise typer.BadParameter(f"{given!r} is not one of {', '.join(DEVICES)}")
    _device = given
    return given


Scheduler = Annotated[str | None, typer.Option(help="Address of a running Dask scheduler.")]
SchedulerFile = Annotated[Path | None, typer.Option(help="JSON file that a running scheduler wrote.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes of the local cluster.")]
Memory = Annotated[str | None, typer.Option(help="Memory limit of each local worker, such as 4GiB.")]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|gpu",
        callback=_choose_device,
        help="Where local workers compute; auto: on GPUs, where there are some and the extra is installed.",
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="key=value in place of the file's; repeatable.")
]
Config = Annotated[Path, typer.Argument(help="The run's YAML file.")]


class UsageError(ValueError):
    """Options that do not go together."""


@contextlib.contextmanager
def a_client(
    scheduler: str | None, scheduler_file: Path | None, n_workers: int | None, memory: str | None,
    local: LocalClusterConfig | None = None,
) -> Iterator[Any]:  # fmt: skip
    """Yield a client of the cluster that the options name, or of a local one; say where its dashboard is."""
    import dask
    from distributed import Client

    if scheduler and scheduler_file:
        raise UsageError(f"--scheduler {scheduler} with --scheduler-file {scheduler_file}: give one of them")
    address = scheduler or dask.config.get("scheduler-address", None)
    with contextlib.ExitStack() as stack:
        if scheduler_file or address:
            if n_workers or memory:
                raise UsageError(
                    "--n-workers and --memory-limit are for a local cluster, not with a scheduler"
                )
            if _device == "gpu":
                raise UsageError(
                    "--device is for a local cluster, not with a scheduler, whose workers are there"
                )
            if scheduler_file and not scheduler_file.exists():
                raise UsageError(f"--scheduler-file {scheduler_file}: there is no such file")
            where = {"scheduler_file": str(scheduler_file)} if scheduler_file else {"address": address}
            client = stack.enter_context(Client(**where, timeout="20s"))
        else:
            settings = dict(local.as_dict()) if local is not None else {}
            if n_workers is not None:
                settings["n_workers"] = n_workers
            if memory is not None:
                settings["memory_limit"] = memory
            cluster = stack.enter_context(start_on(_device, LocalClusterConfig(**settings)))
            client = stack.enter_context(Client(cluster))
        console.print(f"Dashboard: {client.dashboard_link}")
        yield client


def show(table: Table) -> None:
    """Print a table; into a pipe or a file as wide as it is, with nothing cut off."""
    (console if console.is_terminal else Console(highlight=False, width=WIDE)).print(table)
