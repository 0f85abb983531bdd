"""The pages of docs/: their Python runs, their commands can be given, and what they name is there."""

import ast
import contextlib
import io
import re
import runpy
import shlex
import warnings
from pathlib import Path

import pytest
import typer
from rich.console import Console

import daskcurate as dc
from daskcurate import cli
from daskcurate.demo import run_demo
from daskcurate.schema import SCHEMA

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
APART = ("index", "tutorial", "formats", "report", "embedding")
"""Pages whose Python is not run on the common pool: two run in other tests, two show a user's own files."""


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), flags=re.M | re.S)


RUN = [path for path in PAGES if blocks(path, "python") and path.stem not in APART]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the pool that the pages start from, made as docs/index.md says."""
    made = tmp_path_factory.mktemp("docs")
    (code,) = blocks(DOCS / "index.md", "python")
    with contextlib.chdir(made):
        exec(code, {})
    return made


@pytest.mark.parametrize("path", RUN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_python_of_a_page_runs(path, folder, client, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names = {}
    for code in blocks(path, "python"):
        exec(compile(code, str(path), "exec"), names)
    assert not [line for line in capsys.readouterr().out.splitlines() if line == "False"]


def test_pages_that_are_not_run_are_python():
    for path in PAGES:
        for code in blocks(path, "python"):
            ast.parse(code)


SMALLER = {
    "n_clusters=200": "n_clusters=20",
    "[400, 80]": "[40, 8]",
    "minlength=80": "minlength=8",
    "target_size=3000": "target_size=300",
    "n_clusters=1000": "n_clusters=100",
}


def tutorial(folder, rows, client, small):
    """Run the demo and the tutorial on it; return what the demo printed, and (expected, printed) of each block."""
    printed = Console(file=io.StringIO(), width=300)
    with contextlib.chdir(folder):
        run_demo(Path("demo-output"), None, 0.05, rows, 0, client, printed)
        before = len(list(Path("demo-output/run.zarr").iterdir()))
        text, names, found = (DOCS / "tutorial.md").read_text(), {}, []
        for code, expected in re.findall(
            r"^```python\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", text, re.M | re.S
        ):
            for large, less in SMALLER.items() if small else ():
                code = code.replace(large, less)
            out = io.StringIO()
            with contextlib.redirect_stdout(out), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                exec(code, names)
            found.append((expected, out.getvalue()))
            if "picks = dc.compute(" in code:
                # the stages are the demo's own, to the last setting: nothing was run
                assert len(list(Path("demo-output/run.zarr").iterdir())) == before
    return printed.file.getvalue(), found


def test_the_tutorial_on_a_small_demo(tmp_path, client):
    _, found = tutorial(tmp_path, 2400, client, small=True)
    assert sum(bool(expected) for expected, _ in found) > 5
    assert all(printed for expected, printed in found if expected)


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def alike(expected, printed):
    """Whether two texts say the same in words and, within 3 %, in numbers: other processors round differently."""
    numbers = [[float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (expected, printed)]
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (expected, printed)]
    return words[0] == words[1] and numbers[0] == pytest.approx(numbers[1], rel=0.03, abs=0.02)


def test_texts_are_compared_by_words_and_numbers():
    assert alike("kept 1,000 (53.1 %)", "kept  1,001 (53.0 %)")
    assert not alike("kept 1,000", "kept 1,100")
    assert not alike("kept 1,000", "dropped 1,000")


@pytest.mark.slow
def test_the_figures_of_the_tutorial(tmp_path, client):
    demo, found = tutorial(tmp_path, 24_000, client, small=False)
    for expected, printed in found:
        assert not expected or alike(expected, printed), printed
    text = (DOCS / "tutorial.md").read_text()
    (quoted,) = re.findall(r"^> (.*)$", text, flags=re.M)
    (line,) = [line.strip(" │|").split("│")[-1] for line in demo.splitlines() if "pairs (" in line]
    assert alike(quoted, line)
    for name in ("before", "after"):
        (row,) = re.findall(rf"^\| {name} \|(.*)\|$", text, flags=re.M)
        (line,) = [line for line in demo.splitlines() if f"class balance {name}" in line]
        assert NUMBER.findall(row) == NUMBER.findall(line)


def test_the_commands_can_be_given():
    app, seen = typer.main.get_command(cli.app), set()
    makefile = (ROOT / "Makefile").read_text()
    for path in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for line in (
            line for block in blocks(path, "sh") for line in block.replace("\\\n", " ").splitlines()
        ):
            program, *words = shlex.split(line.split("  #")[0]) or [""]
            if program == "make":
                assert re.search(rf"^{words[0]}:", makefile, flags=re.M)
            if program == "daskcurate":
                assert app.commands[words[0]].make_context(words[0], words[1:]).params
                seen.add(words[0])
    assert {"plan", "choose-eps", "choose-k", "report", "ingest", "export", "subset"} <= seen


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_a_page_names_is_there(path):
    text = path.read_text()
    for name in re.findall(r"\bdc\.([a-zA-Z]\w*)", text):
        assert hasattr(dc, name), name
    for name in re.findall(r"python -m pipelines\.(\w+)", text):
        assert (ROOT / "pipelines" / f"{name}.py").exists(), name
    for name in re.findall(r"(?:python |`)((?:benchmarks|tests|daskcurate)/[\w/]+\.\w+)", text):
        assert (ROOT / name).exists(), name
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / target).exists(), target


def test_pictures_are_small():
    sizes = {path.name: path.stat().st_size for path in (DOCS / "pictures").iterdir()}
    assert len(sizes) >= 3
    assert max(sizes.values()) < 200_000, sizes


def test_every_page_is_in_the_table_of_contents():
    listed = set("\n".join(blocks(DOCS / "index.md", "{toctree}")).split())
    missing = {str(path.relative_to(DOCS).with_suffix("")) for path in PAGES} - listed - {"index"}
    assert not missing, "name them in a toctree of docs/index.md"


def test_the_page_of_the_stores_has_every_array():
    made = runpy.run_path(str(DOCS / "schema_tables.py"))
    assert (DOCS / "store.md").read_text().count(made["MARK"]) == 1
    tables = made["schema_tables"]().split("### ")[1:]
    for kind, specs in SCHEMA.items():
        (table,) = [table for table in tables if f"`{kind}`" in table.splitlines()[0]]
        rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
        assert [(row[0], row[1]) for row in rows] == [(f"| `{spec.name}`", spec.dtype) for spec in specs]


def test_every_public_name_is_on_the_page_of_the_interface():
    text = (DOCS / "interface.md").read_text()
    for name in dc.__all__:
        assert f":: daskcurate.{name}" in text, name


@pytest.mark.slow
def test_the_site_is_made_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("pydata_sphinx_theme")
    from sphinx.cmd.build import build_main

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert build_main(["--fail-on-warning", "--quiet", str(DOCS), str(tmp_path / "site")]) == 0
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:  # the pages load nothing from elsewhere
        assert not re.search(r"<(?:script|link|img)[^>]* (?:src|href)=\"https?://", page.read_text())
