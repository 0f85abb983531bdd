"""The layout keeps its promises: which module may import what."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "daskcurate"


def imported(path):
    """Names of all modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{item.name}" for item in node.names}
    return found


@pytest.mark.parametrize("path", sorted((PACKAGE / "kernels").glob("*.py")), ids=lambda path: path.stem)
def test_kernels_import_arrays_alone(path):
    own = {name for name in imported(path) if name.startswith("daskcurate")}
    assert all(name.startswith(("daskcurate.arrays", "daskcurate.kernels")) for name in own)
    assert not {name.split(".")[0] for name in imported(path)} & {"dask", "distributed", "zarr", "fsspec"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_only_arrays_names_cupy(path):
    if path.name != "arrays.py":
        assert not any(name.split(".")[0] in ("cupy", "cupyx") for name in imported(path))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_the_package_imports_neither_recipes_nor_clusters(path):
    assert not any(name.split(".")[0] in ("pipelines", "cluster_setup") for name in imported(path))


@pytest.mark.parametrize("name", ["config", "planning", "schema"])
def test_plain_modules_know_no_stage(name):
    own = {item for item in imported(PACKAGE / f"{name}.py") if item.startswith("daskcurate.")}
    assert not any("runner" in item or "store" in item or "kernels" in item for item in own)


def test_builders_do_not_import_the_runner():
    for name in ("kmeans", "hierarchy", "sampling", "dedup", "pruning", "nodes"):
        assert not any("runner" in item for item in imported(PACKAGE / f"{name}.py"))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_files_fit_a_reader(path):
    assert len(path.read_text().splitlines()) <= 450
