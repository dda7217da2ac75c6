"""Configuration of the documentation: the README and the API pages made from docstrings."""

from importlib.metadata import version as installed

project = "captum-lrp-stab"
version = release = installed("captum-lrp-stab")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
html_theme = "alabaster"
html_theme_options = {"page_width": "1200px", "sidebar_width": "280px"}
autodoc_typehints = "description"
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing"]  # the README's links into the repository
