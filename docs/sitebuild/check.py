"""What the built site promises: every link and anchor leads somewhere inside it, and no page asks the network."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

#: What a browser fetches by itself, unlike a link that a person follows.
_FETCHED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("video", "src")}

_TAG = re.compile(r"<([a-z]+[1-6]?)(\s[^>]*)>")
_ATTRIBUTE = re.compile(r'([a-z-]+)="([^"]*)"')


@dataclass
class Found:
    """What one page has.

    Args:
        ids: anchors.
        links: targets of its links.
        fetched: what a browser loads with it.
    """

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)


def scan(text: str) -> Found:
    """Return what a page has; the site's own generator writes well-formed tags, so a pattern reads them."""
    found = Found()
    for tag in _TAG.finditer(text):
        named = {name: unescape(value) for name, value in _ATTRIBUTE.findall(tag[2])}
        found.ids |= {named[name] for name in ("id", "name") if named.get(name)}
        for name, value in named.items():
            if (tag[1], name) in _FETCHED and named.get("rel") != "canonical":
                found.fetched.append(value)
            elif tag[1] == "a" and name == "href":
                found.links.append(value)
    return found


def read(site: Path) -> dict[Path, Found]:
    """Return what each page of a site has."""
    return {page.resolve(): scan(page.read_text()) for page in sorted(site.rglob("*.html"))}


def faults(site: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Return what is wrong with a site, and its links to other sites with the pages that have them."""
    pages = read(site)
    wrong: list[str] = []
    outside: dict[str, list[str]] = {}
    for page, found in pages.items():
        name = page.relative_to(site.resolve()).as_posix()
        for target in found.fetched:
            if urlsplit(target).scheme not in ("", "data") or target.startswith("//"):
                wrong.append(f"{name}: asks the network for {target}")
            elif not target.startswith("data:") and not _file(page, target).exists():
                wrong.append(f"{name}: {target} is not there")
        for target in found.links:
            parts = urlsplit(target)
            if parts.scheme or target.startswith("//"):
                outside.setdefault(target, []).append(name)
                continue
            file, anchor = _file(page, target), unquote(urldefrag(target).fragment)
            if not file.is_file():
                wrong.append(f"{name}: {target} leads nowhere")
            elif anchor and file in pages and anchor not in pages[file].ids:
                wrong.append(f"{name}: {target} names no anchor of its page")
    for sheet in sorted(site.rglob("*.css")):
        text = sheet.read_text()
        if "url(http" in text or "url(//" in text or "@import url(http" in text:
            wrong.append(f"{sheet.relative_to(site)}: asks the network")
    return wrong, outside


def _file(page: Path, target: str) -> Path:
    path = unquote(urlsplit(target).path)
    return (page.parent / path).resolve() if path else page
