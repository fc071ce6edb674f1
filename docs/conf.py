"""Sphinx: pages of this directory, tables made from committed results by generate.py, and the API from docstrings."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate

import tamherd_jax

generate.write_pages()

project = "tamherd_jax"
author = "the authors of tamherd_jax"
version = release = tamherd_jax.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"tamherd_jax {release}"
html_show_copyright = False
exclude_patterns = ["_build", "generated"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_custom_sections = [("Source", "notes_style")]
default_role = "code"
"""Single backquotes in docstrings are code."""


def setup(app):
    """Show tables and formulas in docstrings as they stand; they are written for readers of the source."""
    app.connect("autodoc-process-docstring", _as_written, priority=10)


def _as_written(app, what, name, obj, options, lines):
    """Turn Markdown tables in docstrings into literal blocks; reST would take their bars for substitutions."""
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
