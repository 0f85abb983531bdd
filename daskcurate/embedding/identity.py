"""A digest of the content of models, samples and functions: the same in every process, so that runs resume."""

import functools
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xxhash

from daskcurate.embedding import torch_tools

DEEPEST = 8
"""Objects within objects; deeper ones count by their type alone."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def content_digest(value: Any) -> str:
    """Return 32 hexadecimal digits that depend on what ``value`` holds, and not on where or when.

    Numbers, texts, arrays, tensors and collections count by their content; torch modules by their classes,
    structure and weights; functions by their code, defaults and what they close over; other objects by their
    class and attributes. What an extension module hides counts by its type alone.
    """
    hasher = xxhash.xxh3_128()
    for part in _parts(value, frozenset()):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.hexdigest()


def _parts(value: Any, above: frozenset[int]) -> Iterable[Any]:
    yield type(value).__qualname__.encode()
    if value is None or isinstance(value, bool | int | float | complex | str):
        yield repr(value).encode()
    elif isinstance(value, bytes | bytearray):
        yield bytes(value)
    elif isinstance(value, types.CodeType):
        yield from _code(value, above)
    elif id(value) in above or len(above) >= DEEPEST:
        return
    else:
        yield from _compound(value, above | {id(value)})


def _compound(value: Any, above: frozenset[int]) -> Iterable[Any]:
    if torch_tools.is_module(value):
        yield from _module(value, above)
    elif torch_tools.is_tensor(value) or isinstance(value, np.ndarray | np.generic):
        yield from _array(value)
    elif isinstance(value, Mapping):
        pairs = ((_nested(key, above), _nested(item, above)) for key, item in value.items())
        yield from (part for pair in sorted(pairs) for part in pair)
    elif isinstance(value, set | frozenset):
        yield from sorted(_nested(item, above) for item in value)
    elif isinstance(value, list | tuple):
        yield from (_nested(item, above) for item in value)
    elif isinstance(value, functools.partial):
        yield _nested([value.func, value.args, value.keywords], above)
    elif isinstance(value, types.MethodType):
        yield _nested([value.__func__, value.__self__], above)
    elif isinstance(value, types.FunctionType):
        yield from _function(value, above)
    elif isinstance(value, type | types.ModuleType):
        yield f"{getattr(value, '__module__', '')}.{value.__name__}".encode()
    elif hasattr(value, "__array_interface__"):  # pictures of PIL
        yield from _array(np.asarray(value))
    else:
        call = getattr(type(value), "__call__", None)  # noqa: B004 - the function itself, not whether there is one
        yield _nested(getattr(call, "__code__", None), above)
        yield _nested(getattr(value, "__dict__", None), above)


def _nested(value: Any, above: frozenset[int]) -> bytes:
    hasher = xxhash.xxh3_128()
    for part in _parts(value, above):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


def _array(value: Any) -> Iterable[Any]:
    array = np.asarray(torch_tools.to_array(value))
    yield f"{value.dtype} {array.shape}".encode()
    if array.dtype.kind in "OT":
        yield _nested(array.tolist(), frozenset())
    else:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _module(value: Any, above: frozenset[int]) -> Iterable[Any]:
    yield ADDRESS.sub("", repr(value)).encode()
    classes = {f"{type(part).__module__}.{type(part).__qualname__}": type(part) for part in value.modules()}
    for name in sorted(classes):
        yield name.encode()
        yield _nested(getattr(classes[name].forward, "__code__", None), above)
    for name, content in torch_tools.state_of(value):
        yield name.encode()
        yield content.data


def _function(value: types.FunctionType, above: frozenset[int]) -> Iterable[Any]:
    yield value.__qualname__.encode()
    yield _nested(value.__code__, above)
    yield _nested([value.__defaults__, value.__kwdefaults__], above)
    for cell in value.__closure__ or ():
        try:
            yield _nested(cell.cell_contents, above)
        except ValueError:  # not set yet
            yield b"empty"


def _code(value: types.CodeType, above: frozenset[int]) -> Iterable[Any]:
    yield value.co_code
    yield " ".join((*value.co_names, "|", *value.co_varnames)).encode()
    yield from (_nested(item, above) for item in value.co_consts)
