"""The sidebar: every section, and under the one that a page stands in what else stands there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from sitebuild.pages import NAVIGATION


def tree(source: Path, titles: Mapping[str, Any], page: str, pathto: Callable[[str], str]) -> str:
    """Return the sidebar of a page as nested lists, in the classes that the theme knows.

    Args:
        source: the folder that Sphinx reads.
        titles: of every page.
        page: that is being written.
        pathto: gives the way from it to another.
    """
    navigation = _navigation(str(source))
    titled = {name: titles[name].astext() for pages in navigation.values() for name in pages if name in titles}
    titled |= {name: titles[name].astext() for name in navigation if name in titles}

    def entry(name: str, level: int) -> str:
        inside = navigation.get(name, [])
        here = page == name or page in inside or any(page in navigation.get(one, []) for one in inside)
        below = "".join(entry(one, level + 1) for one in inside) if here and inside else ""
        current = " current" if here else ""
        link = f'<a class="{"current " if page == name else ""}reference internal" href="{escape(pathto(name))}">'
        children = f'<ul class="current">{below}</ul>' if below else ""
        return f'<li class="toctree-l{level}{current}">{link}{escape(titled.get(name, name))}</a>{children}</li>'

    return "<ul>" + "".join(entry(name, 1) for name in navigation if name.startswith("sections/")) + "</ul>"


@cache
def _navigation(source: str) -> dict[str, list[str]]:
    return json.loads((Path(source) / NAVIGATION).read_text())
