"""Configuration of the documentation: pages in MyST markdown, API pages from docstrings.

Formulas are turned into MathML when the site is built, so that it needs no script and no network.
The notebook of the castle study is executed when the site is built.
"""

import shutil
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

project = "captum-lrp-stab"
version = release = installed("captum-lrp-stab")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]

html_theme = "furo"
html_title = "captum-lrp-stab"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"

autodoc_typehints = "description"
autodoc_member_order = "bysource"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3  # as on GitHub: a heading is linked by its words
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # warnings of other packages, with paths of the machine

# Sphinx reads nothing outside this folder, and the notebook is an example.
_notebook = Path(__file__).parent.parent / "examples" / "castle_study.ipynb"
if _notebook.exists():
    shutil.copy(_notebook, Path(__file__).parent / "castle_study_notebook.ipynb")


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display(self: Any, node: nodes.math_block) -> None:
    self.body.append('<div class="math-wrapper">')
    self.body.append(convert(node.astext(), display="block"))
    self.body.append("</div>")
    raise nodes.SkipNode


def _without_blank_end(app: Sphinx, doctree: nodes.document) -> None:
    """Take the blank line off the end of code, which doctest needs before the closing fence."""
    for block in doctree.findall(nodes.literal_block):
        text = block.astext().rstrip()
        if block.rawsource.rstrip() == text:
            block.rawsource, block.children = text, [nodes.Text(text)]


def setup(app: Sphinx) -> None:
    """Register the renderer of formulas, and what is done with code."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    app.connect("doctree-read", _without_blank_end)
