"""docs/formats.md names the formats that there are, and its commands can be given."""

import ast
import re
import shlex
from pathlib import Path

import typer

from daskcurate import cli, loading
from daskcurate.io.export import FORMATS as OUT
from daskcurate.io.export import SUFFIXES
from daskcurate.io.resolve import FORMATS as IN

TEXT = (Path(__file__).parents[1] / "docs" / "formats.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.M | re.S)


def test_every_format_has_its_line():
    into, out = TEXT.split("## Out")
    assert set(re.findall(r"^\| `([\w-]+)` \|", into, flags=re.M)) - {"format"} == set(IN)
    lines = dict(re.findall(r"^\| `([\w-]+)` \|([^|]*)\|", out, flags=re.M))
    assert set(lines) - {"format"} == set(OUT)
    for suffix, format in SUFFIXES.items():
        assert f"`{suffix}`" in lines[format]


def test_the_commands_can_be_given():
    app, seen = typer.main.get_command(cli.app), set()
    for block in blocks("sh"):
        for line in block.splitlines():
            program, name, *words = shlex.split(line.split("  #")[0])
            assert program == "daskcurate"
            assert app.commands[name].make_context(name, words).params
            seen.add(name)
    assert seen == {"ingest", "export", "subset"}


def test_the_code_is_python_and_its_names_are_there():
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "daskcurate.loading":
                assert all(hasattr(loading, item.name) for item in node.names)
