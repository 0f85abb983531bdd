"""What counts as the same content."""

import functools
from collections import OrderedDict

import numpy as np
import pytest

from daskcurate.embedding.identity import content_digest


def adder(amount):
    def add(x):
        return x + amount

    return add


class Holder:
    """An object that counts by its attributes."""

    def __init__(self, value):
        self.value = value


class Caller(Holder):
    def __call__(self, batch):
        return batch


DIFFERENT = [
    None, True, False, 1, 1.0, "1", b"1", 0, -0.0, 0.0, (), [], {}, set(), frozenset(), [1], (1,), [[1]], [1, 1],
    ["ab", "c"], ["a", "bc"], {"a": 1}, {"a": 2}, {"b": 1}, {1, 2}, {1, 3}, np.float32(1), np.float64(1),
    np.ones(2), np.ones(2, "f4"), np.ones((2, 1)), np.ones((1, 2)), np.array(["a"]), np.array(["b"]),
    np.array(["a"], object), np.array(["ab"], np.dtypes.StringDType()), adder(1), adder(2), lambda x: x + 1,
    lambda x: x + 2, lambda x, y=1: x + 1, functools.partial(adder, 1), functools.partial(adder, 2), Holder(1),
    Holder(2), Caller(1), Caller(2), Holder, Caller, len, max, np.sqrt, Holder(Holder(1)), Holder([1]),
]  # fmt: skip


def test_different_contents_differ():
    found = [content_digest(item) for item in DIFFERENT]
    clashes = {
        (type(a), type(b))
        for i, a in enumerate(DIFFERENT)
        for j, b in enumerate(DIFFERENT[:i])
        if found[i] == found[j]
    }
    assert clashes == {(type(max), type(len))}  # what an extension hides counts by its type


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (OrderedDict(a=1), OrderedDict(a=1)),
        ({"x", "y", "z"}, {"z", "y", "x"}),
        (adder(5), adder(5)),
        (np.arange(6).reshape(2, 3).T, np.arange(6).reshape(2, 3).T.copy()),
        (Holder({"a": np.ones(3)}), Holder({"a": np.ones(3)})),
        (Caller(functools.partial(adder, 1)), Caller(functools.partial(adder, 1))),
    ],
)
def test_equal_contents_are_equal(one, other):
    assert content_digest(one) == content_digest(other)


def test_circles_and_depths_end():
    loop = [1]
    loop.append(loop)
    assert len(content_digest(loop)) == 32
    deep = Holder(None)
    for _ in range(100):
        deep = Holder(deep)
    assert len(content_digest(deep)) == 32
