"""The pages of the API: one for each public module, found by itself, filled by autodoc from its docstrings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

_NAMED = re.compile(r"\bconfide(?:\.[a-zA-Z_]+)+|\bfrom (confide[.a-z_]*) import")

#: What somebody who adds a technique, or drives parties, imports beside what the pages name.
_GROUND = ("confide.ideal", "confide.wire", "confide.guarantee", "confide.errors")


def public_modules(root: Path) -> list[str]:
    """Return what `confide` exports from, what the pages name, and what techniques are made of; sorted."""
    source = root / "src"
    named = {*_GROUND, "confide", *homes(root)}
    for page in [*root.glob("*.md"), *(root / "docs").rglob("*.md")]:
        for match in _NAMED.finditer(page.read_text()):
            if found := module_of(match[1] or match[0], source):
                named.add(found)
    return sorted(named)


def homes(root: Path) -> list[str]:
    """Return the modules in which the names of `confide.__all__` live."""
    tree = ast.parse((root / "src" / "confide" / "__init__.py").read_text())
    tables = [node for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)]
    return [ast.literal_eval(value) for table in tables for value in table.value.values]  # type: ignore[union-attr]


def module_of(name: str, source: Path) -> str | None:
    """Return the longest part of a dotted name that is a module with a docstring; None if no part below confide is.

    Args:
        name: as a page has it, "confide.dp.bounds.bounds".
        source: the folder that has `confide`.
    """
    parts = name.rstrip(".").split(".")
    while len(parts) > 1:
        path = source.joinpath(*parts)
        file = next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)
        if file and not any(part.startswith("_") for part in parts):
            return ".".join(parts)
        parts.pop()
    return None


def write(root: Path, into: Path) -> list[str]:
    """Write a page for each public module and the index of them; return the modules."""
    modules = public_modules(root)
    folder = into / "api"
    folder.mkdir(parents=True, exist_ok=True)
    for module in modules:
        options = "   :members:\n   :show-inheritance:\n   :member-order: bysource\n"
        (folder / f"{module}.rst").write_text(f"{module}\n{'=' * len(module)}\n\n.. automodule:: {module}\n{options}")
    rows = "\n".join(f"* [{module}]({module}.rst): {_summary(module, root)}" for module in modules)
    entries = "\n".join(modules)
    text = (
        "# API reference\n\nFrom the docstrings of what `confide` exports, and of the modules that these pages name. "
        f"Anything else may change without notice.\n\n{rows}\n\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"
    )
    (folder / "index.md").write_text(text)
    return modules


def _summary(module: str, root: Path) -> str:
    path = root.joinpath("src", *module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("<", "\\<").replace("*", "\\*")
