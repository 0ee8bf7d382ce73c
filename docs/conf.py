"""Settings of the documentation site: ``sphinx-build -W docs build/docs`` writes it, without a network."""

import os
import sys
from pathlib import Path

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

os.environ["PYTHONPATH"] = str(ROOT)  # of the notebooks, each of which runs in a folder of its own

import make_commands  # noqa: E402 (in the path that was just added)

import cxlp  # noqa: E402

project = "cxlp"
release = version = cxlp.__version__
extensions = [
    "myst_nb",  # Markdown, and notebooks, which are executed
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax within the site: formulae are drawn without a network, too
    "sphinx_copybutton",
]
highlight_language = "bash"  # of blocks that name no language

html_theme = "furo"
html_title = "cxlp" if "source" in version else f"cxlp {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "cache"  # once, until the notebook changes
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = "remove"  # bars of progress

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # else attributes would be described twice

#: Where the names of the API are defined, which docstrings refer to, and what the site calls them.
PUBLIC = {
    f"{found.__module__}.{found.__qualname__}": f"cxlp.{name}"
    for name in cxlp.__all__
    if callable(found := getattr(cxlp, name))
}


def _find_public(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: Element) -> Element | None:
    """Lead a reference to where a name is defined to its place on the site."""
    target = node.get("reftarget", "")
    for home, name in PUBLIC.items():
        if target == home or target.startswith(f"{home}."):
            place = name + target.removeprefix(home)
            return env.get_domain("py").resolve_xref(
                env, node["refdoc"], app.builder, node["reftype"], place, node, shown
            )
    return None


def _add_commands(_app: Sphinx, page: str, text: list[str]) -> None:
    """Put the commands' own help at the end of their page."""
    if page == "commands":
        text[0] += make_commands.reference()


def setup(app: Sphinx) -> None:
    """Connect the generated page, and the references."""
    app.connect("source-read", _add_commands)
    app.connect("missing-reference", _find_public)
