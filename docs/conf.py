"""How the pages of docs/ become a site: ``make docs`` writes it to docs/_build, without a network."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from schema_tables import MARK, schema_tables  # noqa: E402  (a file beside this one)

project = "daskcurate"
author = "The daskcurate developers"
project_copyright = f"2026, {author}"
release = version = installed_version("daskcurate")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = False

myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = f"daskcurate {release}"
html_show_sourcelink = False
html_theme_options = {
    "navbar_center": [],  # all pages are in the side bar, in their groups
    "navbar_persistent": ["search-button"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "collapse_navigation": False,
}
html_sidebars = {"**": ["globaltoc.html"]}


def _math(self: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers draw by themselves: the pages load nothing from elsewhere."""
    self.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def _fill_in(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the schema's tables where the page of the stores wants them."""
    if page == "store":
        source[0] = source[0].replace(MARK, schema_tables())


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer of formulas and the tables of the schema."""
    app.connect("source-read", _fill_in)
    app.add_html_math_renderer("mathml", (_math, None), (_math, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
