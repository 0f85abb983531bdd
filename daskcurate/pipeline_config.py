"""A run as a YAML file: the pool, the store, the stages and the exports; checked before anything is opened.

Names are those of the Python interface::

    embeddings: pool.zarr
    store: run.zarr
    stages:
      flat:  {kmeans: {n_clusters: 1000, metric: cosine}}
      dedup: {semantic_dedup: {clustering: flat, eps: 0.05}}
      prune: {density_prune: {clustering: flat, keep_fraction: 0.5, within: dedup}}
      tree:  {hierarchical_kmeans: {n_clusters: [5000, 1000], sample_sizes: [10, 3], within: prune}}
      picks: {hierarchical_sample: {tree: tree, target_size: 20000}}
    exports:
      picks.npy: picks
    cluster: {name: slurm, n_workers: 8, memory_limit: 16GiB}   # where; without: this machine's cores
"""

import keyword
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daskcurate.clusters import ClusterSpec, cluster_section
from daskcurate.config import check_choice
from daskcurate.expressions import evaluate, names_in
from daskcurate.marked_yaml import ConfigError, Marked, blame, choices, override, parse
from daskcurate.verbs import VERBS, check_values

__all__ = ["ConfigError", "ExportSpec", "PoolSpec", "RunConfig", "StageSpec", "load_config"]


@dataclass(frozen=True)
class PoolSpec:
    """The pool: where it is, and what to ingest it from where it is to be made."""

    path: str
    ingest: Mapping[str, Any] | None = None
    """Arguments of :func:`daskcurate.ingest`, ``dest`` among them; None: the pool is there already."""


@dataclass(frozen=True)
class StageSpec:
    """One stage: its verb, its parameters as given, and the stages that it refers to."""

    name: str
    verb: str
    parameters: Mapping[str, Any]
    clustering: str | None
    within: str | None
    """Name of a selection, or an expression of names with ``&``, ``|``, ``~`` and parentheses."""
    where: str
    """File and line."""


@dataclass(frozen=True)
class ExportSpec:
    """One exported file."""

    dest: str
    stage: str
    format: str | None = None
    """None: by the name of the file."""


@dataclass(frozen=True)
class RunConfig:
    """A checked run; see :func:`load_config`."""

    path: str
    embeddings: PoolSpec
    store: str
    stages: tuple[StageSpec, ...]
    """In an order in which each comes after those that it refers to."""
    exports: tuple[ExportSpec, ...] = ()
    cluster: ClusterSpec | None = None
    """Where to run, unless the command's options say."""

    def build(self, emb: Any) -> dict[str, Any]:
        """Return the lazy stages over a pool, by name; nothing runs.

        Parameters
        ----------
        emb : Embeddings
            The pool.

        Returns
        -------
        dict of str to stage
            In the order of ``stages``.

        Raises
        ------
        ConfigError
            If a builder refuses a value for this pool, such as more clusters than rows.
        """
        import daskcurate

        nodes: dict[str, Any] = {}
        for stage in self.stages:
            verb = VERBS[stage.verb]
            arguments = dict(stage.parameters)
            if verb.clustering is not None and stage.clustering is not None:
                arguments[verb.clustering] = nodes[stage.clustering]
            builder = getattr(daskcurate, stage.verb)
            try:
                if stage.within is not None:
                    arguments["within"] = evaluate(stage.within, nodes)
                nodes[stage.name] = builder(*([emb] if verb.reads_pool else []), **arguments)
            except (TypeError, ValueError) as error:
                key = f"stages.{stage.name}.{stage.verb}"
                raise ConfigError(f"{stage.where}: {key}: {error}") from error
        return nodes


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a run's YAML file.

    Parameters
    ----------
    path : path
        The file. Paths in it are relative to the folder in which the command is run.
    overrides : sequence of str
        Values to put in place of the file's, ``key=value`` with a dotted key and a value in YAML:
        ``store=other.zarr``, ``stages.dedup.eps=0.1``. The verb may be left out of the key, or given.

    Returns
    -------
    RunConfig
        The run; nothing has been opened.

    Raises
    ------
    ConfigError
        If the file cannot be read or something in it is not allowed. The message names file, line and key,
        what was given, what is allowed, and the nearest valid name.
    """
    file = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        hint = "; give a run's YAML file" if isinstance(error, IsADirectoryError) else ""
        raise ConfigError(f"{file}: cannot be read: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: cannot be read: byte {error.start} is not UTF-8 text") from error
    root = parse(text, file)
    if not isinstance(root.value, dict):
        root.fail(f"{root.value!r} is not a run: give 'embeddings', 'store' and 'stages', one a line")
    for item in overrides:
        override(root, item, file, _with_verb)
    top = root.section(
        ("embeddings", "store", "stages", "exports", "cluster"), ("embeddings", "store", "stages"), "key"
    )
    stages = _stages(top["stages"])
    config = RunConfig(
        path=file,
        embeddings=_pool(top["embeddings"]),
        store=_text(top["store"], "the path or URL of a run store"),
        stages=stages,
        exports=_exports(top["exports"], stages) if "exports" in top else (),
        cluster=cluster_section(top["cluster"]) if "cluster" in top else None,
    )
    if config.store.rstrip("/") == config.embeddings.path.rstrip("/"):
        top["store"].fail(f"{config.store!r} is the pool itself: give another path")
    return config


def _with_verb(parts: list[str], root: Marked) -> list[str]:
    """Return the parts of an override's key with the stage's verb, where it was left out."""
    if parts[0] == "exports" and len(parts) > 2:
        return ["exports", ".".join(parts[1:])]  # the name of a file has dots of its own
    stages = root.value.get("stages")
    if parts[0] != "stages" or len(parts) < 3 or stages is None or not isinstance(stages.value, dict):
        return parts
    stage = stages.value.get(parts[1])
    if parts[2] in VERBS:
        return parts
    if stage is None:
        root.fail(f"unknown stage {parts[1]!r}: {choices(parts[1], stages.value)}")
    verbs = list(stage.value) if isinstance(stage.value, dict) else []
    return [*parts[:2], verbs[0], *parts[2:]] if len(verbs) == 1 else parts


def _text(item: Marked, what: str) -> str:
    if not isinstance(item.value, str) or not item.value:
        item.fail(f"{item.plain!r} is not allowed: give {what}")
    return item.value


# Arguments of `ingest` that a file can give, with a check and what is allowed.
_INGEST: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "source": (
        lambda v: bool(v) and (_is_text(v) or _is_list(v, str)),
        "a path, glob or URL, or a list of paths",
    ),
    "dest": (lambda v: _is_text(v), "the path or URL of the pool"),
    "ids": (
        lambda v: v is None or v is False or _is_text(v),
        "the path of a file, the name of a column, or false",
    ),
    "normalize": (lambda v: v is None or isinstance(v, bool), "true, false or null"),
    "dtype": (lambda v: v in (None, "float16", "float32"), "float16, float32 or null"),
    "overwrite": (lambda v: isinstance(v, bool), "true or false"),
    "format": (lambda v: v is None or _is_text(v), "the name of a format, or null"),
    "column": (lambda v: v is None or _is_text(v), "the name of a column, or null"),
    "shape": (lambda v: v is None or (_is_list(v, int) and len(v) == 2), "[rows, width]"),
    "source_dtype": (lambda v: v is None or _is_text(v), "the name of a number type, such as float16"),
    "ids_dtype": (lambda v: v is None or _is_text(v), "the type of a headerless file of ids, such as S24"),
    "chunk_rows": (lambda v: v is None or (_is_list([v], int) and v > 0), "an integer >= 1, or null"),
}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(i, kind) and not isinstance(i, bool) for i in value)


def _pool(item: Marked) -> PoolSpec:
    if not isinstance(item.value, dict):
        return PoolSpec(_text(item, "the path of a pool, or {source: ..., dest: ...} to ingest one"))
    given = item.section(_INGEST, ("source", "dest"), "key")
    for name, value in given.items():
        allowed, what = _INGEST[name]
        if not allowed(value.plain):
            value.fail(f"{name}={value.plain!r} is not allowed: give {what}")
    return PoolSpec(given["dest"].value, {name: value.plain for name, value in given.items()})


def _exports(item: Marked, stages: Sequence[StageSpec]) -> tuple[ExportSpec, ...]:
    if item.value is None:
        return ()
    if not isinstance(item.value, dict):
        item.fail(f"{item.value!r} is not allowed: give `file: stage`, one a line")
    kinds = {stage.name: VERBS[stage.verb].makes for stage in stages}
    return tuple(_export(dest, entry, kinds) for dest, entry in item.value.items())


def _export(dest: str, entry: Marked, kinds: Mapping[str, str]) -> ExportSpec:
    from daskcurate.io.export import FORMATS, SUFFIXES

    given = {"stage": entry}
    if isinstance(entry.value, dict):
        given = entry.section(("stage", "format"), ("stage",), "key")
    name = _stage_name(given["stage"], kinds)
    format = given["format"].plain if "format" in given else None
    if format is not None:
        try:
            check_choice("format", format, FORMATS)
        except (TypeError, ValueError) as error:
            given["format"].fail(str(error), error)
    suffix = os.path.splitext(dest)[1].lower()
    if format is None and suffix not in SUFFIXES:
        entry.fail(
            f"the suffix {suffix!r} does not say the format: {choices(suffix, SUFFIXES)}; or give "
            f"{{stage: {name}, format: ...}} with one of {', '.join(FORMATS)}"
        )
    kind = format or SUFFIXES[suffix]
    if kinds[name] != "selection" and kind != "parquet":
        entry.fail(f"{name!r} is a clustering, which selects no rows to write as {kind!r}: give 'parquet'")
    return ExportSpec(dest, name, format)


def _stage_name(item: Marked, kinds: Mapping[str, str]) -> str:
    name = _text(item, "the name of a stage")
    if name not in kinds:
        item.fail(f"unknown stage {name!r}: {choices(name, kinds)}")
    return name


def _stages(item: Marked) -> tuple[StageSpec, ...]:
    """Return the checked stages, each after those that it refers to."""
    if not isinstance(item.value, dict) or not item.value:
        item.fail(f"{item.plain!r} is not allowed: give `name: {{verb: {{parameter: value}}}}`, one a line")
    bodies: dict[str, tuple[str, Marked]] = {}
    for name, stage in item.value.items():
        if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
            stage.fail(f"{name!r} is not allowed as a stage's name: give letters, digits and underscores")
        bodies[name] = _verb_of(stage)
    kinds = {name: VERBS[verb].makes for name, (verb, _) in bodies.items()}
    specs = {name: _stage(name, verb, body, kinds) for name, (verb, body) in bodies.items()}
    order: list[str] = []
    for name in specs:
        _visit(name, specs, item.value, (), order)
    return tuple(specs[name] for name in order)


def _verb_of(stage: Marked) -> tuple[str, Marked]:
    if not isinstance(stage.value, dict) or not stage.value:
        stage.fail(f"{stage.plain!r} is not allowed: give one verb, such as {{kmeans: {{n_clusters: 1000}}}}")
    for verb, body in stage.value.items():
        if verb not in VERBS:
            body.fail(f"unknown verb {verb!r}: {choices(verb, VERBS)}")
    if len(stage.value) > 1:
        body.fail(f"two verbs in one stage: {' and '.join(stage.value)}; give each a stage of its own")
    if body.value is None:
        body.value = {}
    return verb, body


def _stage(name: str, verb_name: str, body: Marked, kinds: Mapping[str, str]) -> StageSpec:
    """Return a stage whose keys, references and values are checked."""
    verb = VERBS[verb_name]
    given = body.section(verb.parameters, verb.required, "parameter")
    clustering = within = None
    if verb.clustering is not None:
        reference = given[verb.clustering]
        clustering = _stage_name(reference, kinds)
        if kinds[clustering] != "clustering":
            reference.fail(
                f"{clustering!r} is a selection, where a clustering is needed: "
                + _others(kinds, "clustering", name)
            )
    if "within" in given and given["within"].value is not None:
        within = _within(given["within"], kinds, name)
    values = {key: item.plain for key, item in given.items() if key not in verb.references}
    try:
        check_values(verb, values)
    except (TypeError, ValueError) as error:
        blame(body, given, error)
    return StageSpec(name, verb_name, values, clustering, within, body.where)


def _within(item: Marked, kinds: Mapping[str, str], stage: str) -> str:
    text = _text(item, "a selection: the name of a stage, or names with & | ~")
    try:
        names = names_in(text)
    except ValueError as error:
        item.fail(str(error), error)
    for name in names:
        if name not in kinds:
            item.fail(f"unknown stage {name!r}: {choices(name, kinds)}")
        if kinds[name] != "selection":
            others = _others(kinds, "selection", stage)
            item.fail(f"{name!r} is a clustering, where a selection is needed: {others}")
    return text


def _others(kinds: Mapping[str, str], kind: str, stage: str) -> str:
    found = [repr(name) for name, made in kinds.items() if made == kind and name != stage]
    return f"give one of {', '.join(found)}" if found else "there is none"


def _visit(
    name: str,
    specs: Mapping[str, StageSpec],
    marks: Mapping[str, Marked],
    path: tuple[str, ...],
    order: list[str],
) -> None:
    """Append a stage to ``order``, after those that it refers to."""
    if name in order:
        return
    if name in path:
        circle = (*path[path.index(name) :], name)
        marks[name].fail(f"the stages refer to each other in a circle: {' -> '.join(circle)}")
    stage = specs[name]
    needed = [] if stage.clustering is None else [stage.clustering]
    if stage.within is not None:
        needed += names_in(stage.within)
    for other in needed:
        _visit(other, specs, marks, (*path, name), order)
    order.append(name)
