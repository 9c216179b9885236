"""The pages of the API: one for each public module, found by itself, filled by autodoc from its docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from sphinx.util.inventory import InventoryFile

from sitebuild.pages import MODULES

_NAMED = re.compile(r"\bconfide(?:\.[a-zA-Z_]+)+|\bfrom (confide[.a-z_]*) import")

_OPTIONS = "   :members:\n   :member-order: bysource\n"

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
    """Write a page for each public module and the list of them; return the modules."""
    modules = public_modules(root)
    folder = into / "api"
    folder.mkdir(parents=True, exist_ok=True)
    for module in modules:
        tree = "   :show-inheritance:\n" if module == "confide.errors" else ""
        body = f"{module}\n{'=' * len(module)}\n\n.. automodule:: {module}\n{_OPTIONS}{tree}"
        lazy = [] if module != "confide" else exported(root)  # which autodoc does not see before it is asked for
        body += "".join(f"\n.. auto{_kind(name)}:: {module}.{name}\n{_OPTIONS}" for name in lazy)
        (folder / f"{module}.rst").write_text(body)
    (into / MODULES).write_text("".join(f"* [{one}](../api/{one}.rst): {_summary(one, root)}\n" for one in modules))
    return modules


def exported(root: Path) -> list[str]:
    """Return `confide.__all__`."""
    tree = ast.parse((root / "src" / "confide" / "__init__.py").read_text())
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    return next(ast.literal_eval(one.value) for one in assigned if one.targets[0].id == "__all__")  # type: ignore[attr-defined]


def public_names(module: str, root: Path) -> list[str]:
    """Return the classes and functions that a module defines and means for others."""
    tree = ast.parse(_file(module, root).read_text())
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def absent(site: Path, modules: Sequence[str], root: Path) -> list[str]:
    """Return the public names that the built reference has no entry for."""
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    known = {name for kind, entries in inventory.items() if kind.startswith("py:") for name in entries}
    wanted = [f"confide.{name}" for name in exported(root)]
    wanted += [f"{module}.{name}" for module in modules for name in public_names(module, root)]
    return [f"the reference has no entry for {name}" for name in wanted if name not in known]


def _kind(name: str) -> str:
    return "exception" if name.endswith("Error") else "class"


def _summary(module: str, root: Path) -> str:
    text = ast.get_docstring(ast.parse(_file(module, root).read_text())) or ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("<", "\\<").replace("*", "\\*")


def _file(module: str, root: Path) -> Path:
    path = root.joinpath("src", *module.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
