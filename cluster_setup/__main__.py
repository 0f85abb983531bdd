"""Keep a cluster up until Ctrl-C; write settings and certificates for clusters started by hand.

``python -m cluster_setup NAME``: start the kind of cluster called NAME, to which any number of runs connect
one after another. ``python -m cluster_setup settings``: print a Dask configuration file for schedulers and
workers that are started by hand. ``python -m cluster_setup certificates FOLDER``: make certificates for TLS.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster_setup.certificates import make_certificates
from cluster_setup.keeping import keep_up
from daskcurate.clusters import ClusterSpec, Place, cluster_names
from daskcurate.settings import dask_file

PROGRAM = "python -m cluster_setup"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command-line arguments; those of the process by default.

    Returns
    -------
    int
        0 for success, 2 if something given is not allowed.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["settings"]:
            return _settings(given[1:])
        if given[:1] == ["certificates"]:
            return _certificates(given[1:])
        if given and not given[0].startswith("-"):
            return _cluster(given[0], given[1:])
        parser = argparse.ArgumentParser(
            PROGRAM, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
        )
        parser.add_argument("NAME", help=f"one of {', '.join(cluster_names())}; or settings, or certificates")
        parser.parse_args(given)
    except (TypeError, ValueError, OSError, ImportError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
    return 2


def _cluster(name: str, arguments: list[str]) -> int:
    known = ClusterSpec(name).defaults()
    parser = argparse.ArgumentParser(
        f"{PROGRAM} {name}", description="Keep a Dask cluster up until Ctrl-C or SIGTERM. Values are YAML."
    )
    for option, default in known.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=_value, help=f"default: {default}")
    parser.add_argument("--cluster-config", type=Path, help="YAML file of these options")
    parser.add_argument(
        "--scheduler-file", type=Path, help="written once the cluster is up, removed at the end"
    )
    given = vars(parser.parse_args(arguments))
    spec = Place(cluster=name, cluster_config=given.pop("cluster_config")).spec()
    file = given.pop("scheduler_file")
    options = {**spec.options, **{option: value[0] for option, value in given.items() if value is not None}}
    return keep_up(ClusterSpec(name, options).open, file, parser.prog)


def _value(text: str) -> tuple[Any]:
    """Return the value of an option, in a tuple: None is one as well."""
    try:
        return (yaml.safe_load(text),)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: give a value in YAML") from error


def _settings(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(f"{PROGRAM} settings", description="Print a Dask configuration file.")
    parser.parse_args(arguments)
    print("# Dask's settings for daskcurate. Put the file into a folder, and DASK_CONFIG=that folder before")
    print("# every dask scheduler and dask worker. They are explained in daskcurate/daskcurate.yaml.")
    print(dask_file(), end="")
    return 0


def _certificates(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        f"{PROGRAM} certificates",
        description="Make an authority, one certificate for scheduler, workers and clients, and the Dask "
        "configuration file that uses them.",
    )
    parser.add_argument("folder", type=Path, help="made if missing; keep it readable for yourself alone")
    parser.add_argument("--days", type=int, default=365, help="how long they are valid")
    given = parser.parse_args(arguments)
    for file in make_certificates(given.folder, given.days):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
