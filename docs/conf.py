"""Sphinx: the pages of this directory, and the API reference from the docstrings."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import tamherd_jax

project = "tamherd_jax"
author = "the authors of tamherd_jax"
version = release = tamherd_jax.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
html_theme = "furo"
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_custom_sections = [("Source", "notes_style")]
default_role = "code"
"""Single backquotes in docstrings are code."""


def setup(app):
    """Docstrings are written for readers of the source: tables and formulas in them are shown as they stand."""
    app.connect("autodoc-process-docstring", _as_written, priority=10)


def _as_written(app, what, name, obj, options, lines):
    """Markdown tables in docstrings become literal blocks; reST would take their bars for substitutions."""
    result, inside = [], False
    for line in lines:
        table = line.startswith("| ")
        if table and not inside:
            result += ["::", ""]
        if inside and not table:
            result.append("")
        result.append("    " + line if table else line)
        inside = table
    lines[:] = result
