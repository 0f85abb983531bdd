"""The command line: ``daskcurate demo | ingest | plan | run | status | export | subset | report | choose-...``.

Exit codes: 0 done; 1 the run failed; 2 the command line, the configuration or an input is not allowed;
3 the plan does not fit the workers' memory; 130 interrupted.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

import daskcurate
from daskcurate import cli_judging
from daskcurate.cli_options import (
    Cluster,
    ClusterConfig,
    Config,
    Device,
    Memory,
    Overrides,
    Scheduler,
    SchedulerFile,
    UsageError,
    Workers,
    a_client,
    console,
    errors,
    place,
    show,
)
from daskcurate.clusters import Place
from daskcurate.config import check_int, check_number
from daskcurate.digits import DEMO_ROWS
from daskcurate.io.export import FORMATS as EXPORT_FORMATS
from daskcurate.io.export import format_of
from daskcurate.io.inspection import Inspection, is_pool_at, sources_and_dest
from daskcurate.io.paths import as_url
from daskcurate.io.resolve import FORMATS, Options, open_source
from daskcurate.io.sniff import suffix_of
from daskcurate.pipeline_config import RunConfig, load_config
from daskcurate.planning import Plan, PlanError
from daskcurate.runner import finished, missing_stages
from daskcurate.store import RunStore
from daskcurate.stored import find_selection

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Curate training data by its embeddings, out of core, on Dask. 'daskcurate demo' shows what it does.",
)


@app.command()
def demo(
    source: Annotated[
        str | None, typer.Argument(help="Your embeddings; without: handwritten digits.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo-output"),
    eps: Annotated[float, typer.Option(help="Dedup threshold for your own embeddings.")] = 0.05,
    rows: Annotated[int, typer.Option(help="Rows of the digits pool.")] = DEMO_ROWS,
    seed: Annotated[int, typer.Option(help="Seed of the digits pool.")] = 0,
    fresh: Annotated[bool, typer.Option(help="Start over instead of keeping finished stages.")] = False,
    scheduler: Scheduler = None,
    scheduler_file: SchedulerFile = None,
    cluster: Cluster = None,
    cluster_config: ClusterConfig = None,
    n_workers: Workers = None,
    memory_limit: Memory = None,
    device: Device = None,
) -> None:
    """Curate a pool end to end and show what happened."""
    from daskcurate.demo import clear, run_demo

    check_number("eps", eps, 0, 2)
    check_int("rows", rows, 1)
    check_int("seed", seed, 0)
    if source is not None:
        open_source(source, Options())  # its headers: what is not there is said before a cluster is started
    if fresh:
        clear(output)
    where = place(scheduler, scheduler_file, cluster, cluster_config, n_workers, memory_limit, device)
    with a_client(where) as client:
        run_demo(output, source, eps, rows, seed, client, console)


@app.command()
def ingest(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... DEST", help="Files, folders, globs or URLs; last, the pool to make."
        ),
    ],
    ids: Annotated[str | None, typer.Option(help="File or column of ids.")] = None,
    no_ids: Annotated[bool, typer.Option("--no-ids", help="Leave the source's own ids out.")] = False,
    normalize: Annotated[bool | None, typer.Option(help="Scale rows to unit length, or leave them.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float16 or float32; default: as found.")] = None,
    format: Annotated[str | None, typer.Option(help=f"Insist on a format: {', '.join(FORMATS)}.")] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Column, array, .npz key, obsm name or tar extension of the embeddings."),
    ] = None,
    shape: Annotated[
        tuple[int, int] | None, typer.Option(help="Rows (or -1) and width of a headerless file.")
    ] = None,
    source_dtype: Annotated[str | None, typer.Option(help="Number type of a headerless file.")] = None,
    ids_dtype: Annotated[str | None, typer.Option(help="Type of a headerless file of ids, as S24.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing pool.")] = False,
    inspect: Annotated[
        bool,
        typer.Option("--inspect", help="Say what would be ingested; write nothing. DEST may be left out."),
    ] = False,
) -> None:
    """Bring embeddings into a pool."""
    if ids is not None and no_ids:
        raise UsageError(f"--ids {ids} with --no-ids: give one of them")
    options: dict[str, Any] = {
        "ids": False if no_ids else ids, "normalize": normalize, "dtype": dtype, "format": format, "column": column,
        "shape": shape, "source_dtype": source_dtype, "ids_dtype": ids_dtype,
    }  # fmt: skip
    if inspect:
        source, dest = sources_and_dest(paths)
        _show_inspection(daskcurate.inspect_source(source, **options), dest)
        return
    if len(paths) < 2:
        raise UsageError(
            f"{paths[0]} alone is not enough: give the source, and the pool to make (or --inspect)"
        )
    source = paths[:-1] if len(paths) > 2 else paths[0]
    emb = daskcurate.ingest(source, paths[-1], **options, overwrite=overwrite)
    console.print(str(emb))


def _show_inspection(found: Inspection, dest: str | None) -> None:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in found.as_rows():
        table.add_row(name, Text(text))
    if dest is not None:
        there = (
            "a pool is there: --overwrite replaces it" if is_pool_at(as_url(dest)) else "nothing is there yet"
        )
        table.add_row("dest", Text(f"{dest}: {there}"))
    show(table)


def _pool_if_there(config: RunConfig) -> Any:
    """Return the run's pool; None where the file says how to ingest it and that is still to be done."""
    spec = config.embeddings
    if spec.ingest is None:
        return daskcurate.open_embeddings(spec.path)
    if not spec.ingest.get("overwrite"):
        with contextlib.suppress(FileNotFoundError):
            return daskcurate.open_embeddings(spec.path)
    return None


def _ingest_pool(config: RunConfig) -> Any:
    """Ingest the run's pool as the file says."""
    arguments = dict(config.embeddings.ingest or {})
    return daskcurate.ingest(arguments.pop("source"), arguments.pop("dest"), **arguments)


def plan_table(found: Plan) -> Table:
    """Return a plan as a table."""
    table = Table(title="Plan", title_justify="left")
    for i, name in enumerate(found.header):
        table.add_column(name, justify="right" if i else "left")
    for row in found.as_rows():
        table.add_row(*row)
    return table


def _show_plan(found: Plan, config: RunConfig) -> None:
    if found.stages:
        show(plan_table(found))
    else:
        _say_finished(config)


def _say_finished(config: RunConfig) -> None:
    console.print(f"Nothing is left to run: {config.store} holds every stage.")


@contextlib.contextmanager
def _client_to_run(nodes: dict[str, Any], config: RunConfig, where: Place) -> Iterator[Any]:
    """Yield a client for the stages; None, and no cluster is started, where the store holds all of them.

    Without ``nodes`` the pool is still to be made. Where every process of a cluster runs the command, its start tells
    which of them goes on.
    """
    nothing_left = nodes and not missing_stages(list(nodes.values()), RunStore(config.store))
    if nothing_left and where.opened_by_one(config.cluster):
        _say_finished(config)
        yield None
        return
    with a_client(where, config.cluster) as client:
        yield client


def _planned(config: RunConfig, where: Place, calibrate: bool = False) -> Plan:
    """Return the plan for the scheduler's workers, or for the cluster that would be started."""
    spec = config.embeddings
    if spec.ingest is not None:
        try:
            emb = daskcurate.open_embeddings(spec.path)
        except FileNotFoundError as error:
            raise UsageError(
                f"{spec.path} is not there yet and a plan ingests nothing: run 'daskcurate ingest' or the run itself"
            ) from error
    else:
        emb = daskcurate.open_embeddings(spec.path)
    nodes = config.build(emb)
    store = config.store if RunStore(config.store).exists() else None
    if calibrate or where.scheduler_at() is not None:
        with a_client(where, config.cluster) as client:
            return daskcurate.plan(*nodes.values(), client=client, store=store, calibrate=calibrate)
    return daskcurate.plan(*nodes.values(), store=store, **where.spec(config.cluster).size())


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    scheduler: Scheduler = None,
    scheduler_file: SchedulerFile = None,
    cluster: Cluster = None,
    cluster_config: ClusterConfig = None,
    n_workers: Workers = None,
    memory_limit: Memory = None,
    device: Device = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Measure the workers for some seconds, and say how long it takes."),
    ] = False,
) -> None:
    """Say what a run would take, and run nothing."""
    loaded = load_config(config, overrides or ())
    where = place(scheduler, scheduler_file, cluster, cluster_config, n_workers, memory_limit, device)
    _show_plan(_planned(loaded, where, calibrate), loaded)


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option(help="Show the plan and stop.")] = False,
    scheduler: Scheduler = None,
    scheduler_file: SchedulerFile = None,
    cluster: Cluster = None,
    cluster_config: ClusterConfig = None,
    n_workers: Workers = None,
    memory_limit: Memory = None,
    device: Device = None,
) -> None:
    """Run what a YAML file describes; finished stages of its store are kept."""
    loaded = load_config(config, overrides or ())
    where = place(scheduler, scheduler_file, cluster, cluster_config, n_workers, memory_limit, device)
    if dry_run:
        _show_plan(_planned(loaded, where), loaded)
        return
    for item in loaded.exports:
        format_of(item.dest, item.format)
    RunStore(loaded.store).check()
    emb = _pool_if_there(loaded)
    nodes = (
        loaded.build(emb) if emb is not None else {}
    )  # what is not allowed is said before a cluster is started
    with _client_to_run(nodes, loaded, where) as client:
        nodes = nodes or loaded.build(_ingest_pool(loaded))
        found = daskcurate.compute(*nodes.values(), store=loaded.store, client=client)
        results = dict(zip(nodes, found if len(nodes) > 1 else (found,), strict=True))
        for item in loaded.exports:
            daskcurate.export(results[item.stage], item.dest, item.format, overwrite=True)
            console.print(f"Wrote {item.dest}")
    for name, result in results.items():
        rows = f"{len(result):,} rows" if isinstance(result, daskcurate.Selection) else repr(result)
        console.print(f"{name}: {rows}")


@app.command()
def status(store: Annotated[str, typer.Argument(help="The run store.")]) -> None:
    """Show the stages of a run store: finished, or where they have got to."""
    table = Table(title=store, title_justify="left")
    for column in ("stage", "state", "rows out", "clusters", "seconds", "settings"):
        table.add_column(column, overflow="fold")
    for name, found in RunStore(store).stages().items():
        saved = found.get("checkpoint") or {}
        done = "finished" if found.get("complete") else "unfinished"
        if saved and not found.get("complete"):
            done += f" (step {saved.get('step', 0)}, iteration {saved.get('iteration', 0)})"
        settings = ", ".join(f"{key}={value}" for key, value in found.get("config", {}).items())
        seconds = f"{found['seconds']:.1f}" if "seconds" in found else ""
        table.add_row(
            name, done, str(found.get("total", "")), str(found.get("n_clusters", "")), seconds, settings
        )
    show(table)


@app.command()
def export(
    config: Config,
    stage: Annotated[str, typer.Argument(help="Name of the stage in the file.")],
    dest: Annotated[str, typer.Argument(help="File to write.")],
    format: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(EXPORT_FORMATS)}; default: by name.")
    ] = None,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Write a finished stage of a run to a file."""
    loaded = load_config(config, overrides or ())
    nodes = loaded.build(daskcurate.open_embeddings(loaded.embeddings.path))
    if stage not in nodes:
        raise UsageError(f"stage {stage!r} is not in {config}: it has {', '.join(nodes)}")
    found = finished(nodes[stage], store=loaded.store)
    console.print(f"Wrote {daskcurate.export(found, dest, format, overwrite=overwrite)}")


@app.command()
def subset(
    source: Annotated[str, typer.Argument(help="The run's YAML file, or a pool.")],
    selection: Annotated[
        str,
        typer.Argument(
            help="A stage of the YAML file; for a pool, an exported .npy or .parquet, or (--store) a stage's name."
        ),
    ],
    dest: Annotated[str, typer.Argument(help="Pool to make of the selected rows.")],
    store: Annotated[str | None, typer.Option(help="Run store that holds the selection of a pool.")] = None,
    repeats: Annotated[
        bool, typer.Option("--repeats", help="Rows as often as they are selected; default: once.")
    ] = False,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing pool.")] = False,
) -> None:
    """Write the selected rows of a pool as a new pool."""
    found: Any
    if suffix_of(source) in (".yaml", ".yml"):
        if store is not None:
            raise UsageError(f"--store {store} is for a pool: {source} names its own store")
        loaded = load_config(source, overrides or ())
        emb = daskcurate.open_embeddings(loaded.embeddings.path)
        nodes = loaded.build(emb)
        if selection not in nodes:
            raise UsageError(f"stage {selection!r} is not in {source}: it has {', '.join(nodes)}")
        found = finished(nodes[selection], store=loaded.store)
    else:
        if overrides:
            raise UsageError("--set is for a run's YAML file, not for a pool")
        emb = daskcurate.open_embeddings(source)
        found = selection if store is None else find_selection(store, selection)
    console.print(str(daskcurate.subset(found, dest, emb=emb, repeats=repeats, overwrite=overwrite)))


for judging in (cli_judging.report, cli_judging.choose_eps, cli_judging.choose_k):
    app.command()(judging)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors are one line on standard error."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        sys.exit(app(args=arguments, standalone_mode=True))
    except PlanError as error:
        _fail(error, 3)
    except (ValueError, TypeError, OSError, ImportError, daskcurate.NotComputedError) as error:
        _fail(error, 2)
    except KeyboardInterrupt:
        errors.print("interrupted: finished stages are kept; run the same command again to go on")
        sys.exit(130)
    except Exception as error:  # the command's last resort: the kind of error is part of the message
        errors.print(f"daskcurate: {type(error).__name__}: {error}", markup=False)
        sys.exit(1)


def _fail(error: BaseException, code: int) -> None:
    errors.print(f"daskcurate: {error}", markup=False)
    sys.exit(code)


def _show_warning(message: Any, category: Any, *_: Any) -> None:
    errors.print(f"daskcurate: warning: {message}", markup=False)
