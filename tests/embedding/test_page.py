"""docs/embedding.md: what it names is there."""

import inspect
import re
import shlex
from pathlib import Path

import daskcurate as dc
from pipelines import embed_images, embed_texts

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "embedding.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.M | re.S)


def test_the_script_is_python_and_its_arguments_are_there():
    script, loop = blocks("python")
    compile(script, "embedding.md", "exec")
    compile(loop, "embedding.md", "exec")
    parameters = set(inspect.signature(dc.embed).parameters)
    named = set(re.findall(r"`(\w+)=", TEXT))
    assert named <= parameters
    assert set(re.findall(r"(\w+)=", script)) <= parameters | {"__name__"}


def test_the_commands_can_be_given():
    recipes = {"pipelines.embed_texts": embed_texts.RECIPE, "pipelines.embed_images": embed_images.RECIPE}
    seen = set()
    for line in "".join(blocks("sh")).splitlines():
        program, *words = shlex.split(line)
        if program == "python":
            assert recipes[words[1]]._parser().parse_args(words[2:])
            seen.add(words[1])
    assert seen == set(recipes)


def test_the_links_lead_somewhere():
    for link in re.findall(r"\]\((\.\.?/[^)#]+)\)", TEXT):
        assert (ROOT / "docs" / link).exists(), link
