"""Every kernel that takes arrays is tested on the host's and on a device's."""

import ast
from functools import cache
from pathlib import Path

import pytest

import daskcurate

KERNELS = Path(daskcurate.__file__).parent / "kernels"
TESTS = Path(__file__).parent
HOST_ONLY = {
    "allocation": "one number a cluster: it takes arrays of the host by design",
    "blas": "a routine of the BLAS of NumPy and SciPy: devices ask their own library",
    "forests": "edges, which the host holds: what finds and measures them runs on the device",
    "threads": "calls, no arrays",
    "device_code": "text: the source of the device's own kernels, which test_device_code.py runs",
}
"""Modules without anything for a device to do, and why."""


def functions(tree):
    """The functions of a test module, by name."""
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def kernels_named(tree):
    """Names in a test module that stand for a kernel's module or its functions, with the module's own name."""
    found = {}
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom):
            continue
        for item in node.names:
            if node.module == "daskcurate.kernels":
                found[item.asname or item.name] = item.name
            elif (node.module or "").startswith("daskcurate.kernels."):
                found[item.asname or item.name] = node.module.rpartition(".")[2]
    return found


def names_in(node, helpers, seen):
    """All names that a function uses, those of the module's own functions that it calls included."""
    used = {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}
    for name in used & helpers.keys() - seen:
        used |= names_in(helpers[name], helpers, seen | used)
    return used


@cache
def on_devices():
    """The kernels that a test with the fixture ``xp`` uses."""
    covered = set()
    for path in TESTS.glob("test_*.py"):
        tree = ast.parse(path.read_text())
        helpers, kernels = functions(tree), kernels_named(tree)
        for name, node in helpers.items():
            if name.startswith("test_") and "xp" in {item.arg for item in node.args.args}:
                covered |= {kernels[used] for used in names_in(node, helpers, {name}) & kernels.keys()}
    return covered


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in KERNELS.glob("*.py") if path.stem != "__init__")
)
def test_each_kernel_is_tested_on_a_device_or_has_a_reason_not_to(name):
    assert (name in on_devices()) != (name in HOST_ONLY)


def test_the_reasons_are_for_modules_that_there_are():
    assert {path.stem for path in KERNELS.glob("*.py")} >= HOST_ONLY.keys()
