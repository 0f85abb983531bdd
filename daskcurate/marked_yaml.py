"""YAML that remembers where each value was written, so that an error can say so."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

import yaml

# YAML 1.1, which PyYAML reads, takes 1e-3 for text since it has no point.
POINTLESS_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+")


class ConfigError(ValueError):
    """A run configuration that is not allowed; the message names the file, the line and the key."""


@dataclass
class Marked:
    """A value with its dotted key and the place where it was written.

    ``value`` is a dict of further marked values for a mapping, and the plain value for anything else.
    """

    value: Any
    key: str
    where: str

    def fail(self, message: str, cause: Exception | None = None) -> NoReturn:
        """Raise a :class:`ConfigError` about this value."""
        key = f"{self.key}: " if self.key else ""
        raise ConfigError(f"{self.where}: {key}{message}") from cause

    @property
    def plain(self) -> Any:
        """The value without marks."""
        if isinstance(self.value, dict):
            return {key: child.plain for key, child in self.value.items()}
        return self.value

    def below(self, name: str) -> str:
        """Return the dotted key of an entry."""
        return f"{self.key}.{name}" if self.key else name

    def section(self, allowed: Iterable[str], required: Sequence[str], kind: str) -> dict[str, "Marked"]:
        """Return the entries of a mapping whose keys are all allowed, and the required ones there."""
        allowed = tuple(allowed)
        if not isinstance(self.value, dict):
            self.fail(
                f"{self.value!r} is not allowed: give {kind}s, one `key: value` a line, of {_listed(allowed)}"
            )
        for name, child in self.value.items():
            if name not in allowed:
                child.fail(f"unknown {kind} {name!r}: {choices(name, allowed)}")
        missing = [name for name in required if name not in self.value]
        if missing:
            given = _listed(self.value) or "none"
            self.fail(f"missing {kind} {_listed(missing)}; given: {given}")
        return self.value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def choices(name: str, allowed: Iterable[str]) -> str:
    """Return what is allowed in place of ``name``, with the nearest of it."""
    allowed = tuple(allowed)
    near = get_close_matches(name, allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"give one of {_listed(allowed)}{hint}" if allowed else "there is none"


def blame(item: Marked, given: Mapping[str, Marked], error: Exception) -> NoReturn:
    """Raise a check's error at the parameter that its message begins with, or else at ``item``."""
    name = re.match(r"\w+", str(error))
    culprit = given.get(name.group(), item) if name is not None else item
    culprit.fail(str(error), error)


def parse(text: str, file: str) -> Marked:
    """Return the one document of ``text``, whose places are lines of ``file``.

    Raises
    ------
    ConfigError
        For text that is not YAML, a key given twice, a tag that is not YAML's own, or an empty document.
    """

    def place(mark: Any) -> str:
        return f"{file}, line {mark.line + 1}"

    node = _compose(text, file, place)
    if node is None:
        raise ConfigError(f"{file}: the file is empty: a run needs 'embeddings', 'store' and 'stages'")
    return _marked(node, "", place(node.start_mark), place, ())


def override(root: Marked, text: str, file: str, route: Callable[[list[str], Marked], list[str]]) -> None:
    """Put the value of ``key.key=value``, which is YAML, into ``root``.

    Parameters
    ----------
    root
        The document; changed in place.
    text
        The override as it was given.
    file
        The document's file, for messages.
    route
        Gets the parts of the dotted key and the document, and returns the parts to follow.
    """
    where = f"{file}, --set {text}"
    dotted, equals, raw = text.partition("=")
    dotted = dotted.strip()
    if not equals or not all(dotted.split(".")):
        raise ConfigError(f"{where}: not allowed: give key=value, such as stages.dedup.eps=0.1")
    *path, last = route(dotted.split("."), Marked(root.value, dotted, where))
    node = _compose(raw, where, lambda mark: where)
    parent = root
    for part in path:
        _enter(parent, where)
        parent = parent.value.setdefault(part, Marked({}, parent.below(part), where))
    _enter(parent, where)
    key = parent.below(last)
    given = Marked(None, key, where) if node is None else _marked(node, key, where, lambda mark: where, ())
    parent.value[last] = given


def _enter(parent: Marked, where: str) -> None:
    if parent.value is None:
        parent.value = {}
    if not isinstance(parent.value, dict):
        Marked(None, parent.key, where).fail(f"is {parent.value!r}, which has no keys: replace it as a whole")


def _compose(text: str, source: str, place: Callable[[Any], str]) -> Any:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        parts = (error.context, error.problem)
        problem = ": ".join(part for part in parts if part)
        raise ConfigError(f"{place(mark) if mark else source}: not valid YAML: {problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: not allowed: it is nested too deeply") from error


def _marked(node: Any, key: str, where: str, place: Callable[[Any], str], inside: tuple[Any, ...]) -> Marked:
    marked = Marked(None, key, where)
    if node in inside:
        marked.fail("an alias (*name) refers to the mapping that it is in: write the value out")
    if not isinstance(node, yaml.MappingNode):
        marked.value = _plain(node, marked)
        return marked
    marked.value = {}
    for key_node, value_node in node.value:
        line = place(key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            Marked(None, key, line).fail("a list or mapping is not allowed as a key: give text")
        name = key_node.value
        child = _marked(value_node, marked.below(name), line, place, (*inside, node))
        if name in marked.value:
            child.fail(f"{name!r} is given twice, first at {marked.value[name].where.rpartition(', ')[2]}")
        marked.value[name] = child
    return marked


def _plain(node: Any, marked: Marked) -> Any:
    if isinstance(node, yaml.ScalarNode) and node.style is None and POINTLESS_FLOAT.fullmatch(node.value):
        return float(node.value)
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.MarkedYAMLError as error:
        marked.fail(f"not allowed: {error.problem}", error)
    except (ValueError, RecursionError) as error:
        marked.fail(f"not allowed: {error}", error)
    finally:
        loader.dispose()
