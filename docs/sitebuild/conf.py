"""Sphinx's settings. Nothing is fetched, here or by the pages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sitebuild import diagrams, docstrings, sidebar

project = "confide"
copyright = "the authors of confide, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["files/**"]
root_doc = "index"
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other packages have no page here
suppress_warnings: list[str] = []
highlight_language = "text"
default_role = "py:obj"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 6
myst_fence_as_directive = ["mermaid"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_mock_imports = ["flwr"]
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Leaks", "Guarantees", "Paper", "Source"]

html_theme = "furo"
html_title = "confide"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": [], "navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"


def _prepared(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = docstrings.prepare(lines)


def _skipped(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    module = getattr(obj, "__module__", None) or ""
    return (
        True if name.startswith("set_") and module.startswith("sklearn") else None
    )  # made by scikit-learn for each class


def _with_sidebar(app: Any, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Hand the theme a small tree in place of Sphinx's whole one, which takes most of the time of writing."""
    listed = sidebar.tree(app.srcdir, app.env.titles, page, context["pathto"])
    context["toctree"] = lambda **_: listed


def setup(app: Any) -> dict[str, bool]:
    """Make docstrings and diagrams readable to Sphinx."""
    app.connect("autodoc-process-docstring", _prepared, priority=400)
    app.connect("autodoc-skip-member", _skipped)
    app.connect("html-page-context", _with_sidebar, priority=400)
    app.add_directive("mermaid", diagrams.Diagram)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
