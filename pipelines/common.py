"""What every recipe shares: its command line, where it runs, and ``--scale``."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daskcurate as dc
from daskcurate.clusters import Place, cluster_names, open_client
from daskcurate.config import check_number
from daskcurate.device import DEVICES
from daskcurate.pipeline_config import ExportSpec
from daskcurate.store import RunStore

__all__ = ["FULL", "EmbeddingRecipe", "ExportSpec", "Recipe", "Scale"]


@dataclass(frozen=True)
class Scale:
    """Shrinks the numbers of a recipe in proportion, for a trial on a pool smaller than it is meant for.

    Called with a number of clusters or of rows, it returns that number times ``fraction``, rounded, at
    least 1. Rows taken from a cluster, parts of a split, iterations and thresholds do not depend on the
    size of the pool and are not scaled.
    """

    fraction: float = 1.0

    def __post_init__(self):
        check_number("scale", self.fraction, 0, math.inf, open_low=True)

    def __call__(self, count: int) -> int:
        """Return the scaled ``count``."""
        return max(1, math.floor(count * self.fraction + 0.5))


FULL = Scale()


@dataclass(frozen=True)
class Recipe:
    """A recipe as a command."""

    build: Callable[[dc.Embeddings, Scale], Mapping[str, Any]]
    """Returns the lazy stages by name; nothing runs."""
    rows: int
    """Rows of a pool that the numbers are meant for."""
    exports: Sequence[ExportSpec]
    """Files written to ``--output``."""

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Run the command and exit.

        Status 0: done; 2: an argument or an input is not allowed; 3: the plan does not fit the workers'
        memory; 130: interrupted.

        Parameters
        ----------
        arguments
            Command-line arguments; those of the process by default.
        """
        _exit_after(self.run, self._parser().parse_args(arguments))

    def run(self, given: argparse.Namespace) -> dict[str, Any]:
        """Compute what the store lacks, and export.

        Parameters
        ----------
        given
            Parsed arguments.

        Returns
        -------
        dict of str to result
            The computed stages by name; lazy ones after ``--dry-run``.
        """
        emb = dc.open_embeddings(given.embeddings)
        nodes = self._stages(emb, given.scale)
        if given.dry_run:
            print(_planned(nodes, given))
            return nodes
        with open_client(place_of(given)) as client:
            print(f"Dashboard: {client.dashboard_link or 'none'}", flush=True)
            found = dc.compute(*nodes.values(), store=given.store, client=client)
            results = dict(zip(nodes, found if len(nodes) > 1 else (found,), strict=True))
            for name, result in results.items():
                print(f"{name}: {summary(result)}")
            for item in self.exports if given.output else ():
                dest = given.output / item.dest
                print(f"Wrote {dc.export(results[item.stage], dest, item.format, overwrite=True)}")
        return results

    def _stages(self, emb: dc.Embeddings, scale: Scale) -> dict[str, Any]:
        try:
            return dict(self.build(emb, scale))
        except ValueError as error:
            raise ValueError(
                f"{error}\nThe recipe's numbers are for about {self.rows:,} rows, and this pool has "
                f"{len(emb):,}: --scale {len(emb) / self.rows:.2g} is in proportion"
            ) from error

    def _parser(self) -> argparse.ArgumentParser:
        parser = _parser_of(self.build)
        add = parser.add_argument
        add("--embeddings", required=True, help="the pool: what daskcurate.ingest (or the command) made")
        add("--store", required=True, help="the run store; finished stages in it are kept")
        names = ", ".join(item.dest for item in self.exports)
        add("--output", type=Path, help=f"folder for {names}; without it the result is in the store alone")
        add("--scale", type=_scale, default=FULL, metavar="FRACTION", help=(
            "shrink all numbers of clusters and all target sizes in proportion, for a trial on a small pool; "
            f"the recipe is meant for about {self.rows:,} rows"
        ))  # fmt: skip
        add("--dry-run", action="store_true", help="show the plan and stop")
        add("--device", choices=DEVICES, help=(
            "where local workers compute; auto: on GPUs, where there are some and the extra is installed"
        ))  # fmt: skip
        _add_cluster_arguments(parser)
        return parser


@dataclass(frozen=True)
class EmbeddingRecipe:
    """A recipe that makes a pool by a model, as a command."""

    build: Callable[[argparse.Namespace], Mapping[str, Any]]
    """Returns the arguments of :func:`daskcurate.embed` that are the recipe's own; reads no sample."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Adds the recipe's own options."""
    batch_size: int = 256

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Run the command and exit, with the status that :meth:`Recipe.main` says.

        Parameters
        ----------
        arguments
            Command-line arguments; those of the process by default.
        """
        _exit_after(self.run, self._parser().parse_args(arguments))

    def run(self, given: argparse.Namespace) -> dc.Embeddings:
        """Embed what is not embedded yet.

        Parameters
        ----------
        given
            Parsed arguments.

        Returns
        -------
        daskcurate.Embeddings
            The pool.
        """
        settings = dict(self.build(given))
        with open_client(place_of(given)) as client:
            print(f"Dashboard: {client.dashboard_link or 'none'}", flush=True)
            emb = dc.embed(
                dest=given.dest, batch_size=given.batch_size, device=given.device, autocast=given.autocast,
                on_error="skip" if given.skip_broken else "raise", overwrite=given.overwrite,
                chunk_rows=given.chunk_rows, **settings,
            )  # fmt: skip
        print(emb)
        for row, name, reason in zip(*emb.skipped, strict=True):
            print(f"Skipped: sample {row} (id {name or 'unknown'}): {reason}")
        return emb

    def _parser(self) -> argparse.ArgumentParser:
        parser = _parser_of(self.build)
        self.add_arguments(parser)
        add = parser.add_argument
        add("--batch-size", type=int, default=self.batch_size, metavar="N", help="samples in a batch")
        add(
            "--chunk-rows", type=int, metavar="N", help="rows that are embedded by one task, and kept at once"
        )
        add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the model runs")
        add("--autocast", choices=("bfloat16", "float16"), help="compute in this type where torch may")
        add("--skip-broken", action="store_true", help="leave out what cannot be read instead of stopping")
        add("--overwrite", action="store_true", help="replace an existing pool")
        _add_cluster_arguments(parser)
        return parser


def _parser_of(build: Callable[..., Any]) -> argparse.ArgumentParser:
    """Return a parser that is described as the recipe's module is."""
    module = sys.modules[build.__module__]
    spec = getattr(module, "__spec__", None)
    return argparse.ArgumentParser(
        prog=f"python -m {spec.name}" if spec else None,
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--scheduler", metavar="ADDRESS", help="address of a running Dask scheduler")
    add("--scheduler-file", type=Path, metavar="FILE", help="JSON file that a running scheduler wrote")
    add("--cluster", metavar="NAME", help=f"kind of cluster to start: {', '.join(cluster_names())}")
    add("--cluster-config", type=Path, metavar="FILE", help="YAML file of the cluster's options")
    add("--n-workers", type=int, metavar="N", help="worker processes of the cluster that is started")
    add("--memory-limit", metavar="SIZE", help="memory limit of each of its workers, such as 4GiB")


def _exit_after(run: Callable[[argparse.Namespace], Any], given: argparse.Namespace) -> None:
    """Run a recipe and exit with its status."""
    try:
        run(given)
    except dc.PlanError as error:
        _fail(error, 3)
    except (TypeError, ValueError, OSError, ImportError) as error:
        _fail(error, 2)
    except KeyboardInterrupt:
        _fail("interrupted: what is finished is kept; run the same command again to go on", 130)
    sys.exit(0)


def summary(result: Any) -> str:
    """Return in a few words what a stage made."""
    if isinstance(result, dc.Selection):
        return f"{len(result):,} of {result.n_rows:,} rows"
    levels = result.levels if isinstance(result, dc.Hierarchy) else [result]
    return " / ".join(f"{level.n_clusters:,}" for level in levels) + " clusters"


def place_of(given: argparse.Namespace) -> Place:
    """Return where a recipe runs, by its parsed arguments."""
    found = {entry.name: getattr(given, entry.name) for entry in dataclasses.fields(Place)}
    if found["device"] == "cuda":  # of a model: the workers need not be dask-cuda's
        found["device"] = "auto"
    return Place(**found)


def _planned(nodes: Mapping[str, Any], given: argparse.Namespace) -> dc.Plan:
    """Return the plan for the scheduler's workers, or for the cluster that would be started."""
    store = given.store if RunStore(given.store).exists() else None
    place = place_of(given)
    if place.scheduler_at() is not None:
        with open_client(place) as client:
            return dc.plan(*nodes.values(), client=client, store=store)
    return dc.plan(*nodes.values(), store=store, **place.spec().size())


def _scale(text: str) -> Scale:
    try:
        return Scale(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed: give a number above 0, such as 0.03"
        ) from error


def _fail(error: BaseException | str, status: int) -> None:
    print(f"error: {error}" if isinstance(error, BaseException) else error, file=sys.stderr)
    sys.exit(status)
