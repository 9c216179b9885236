"""What the built site promises: every link and anchor leads somewhere inside it, and no page asks the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

#: What a browser fetches by itself, unlike a link that a person follows.
_FETCHED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("video", "src")}


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


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = Found()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.found.ids |= {named[name] for name in ("id", "name") if named.get(name)}
        for name, value in named.items():
            if (tag, name) in _FETCHED and not (tag == "link" and named.get("rel") in ("canonical",)):
                self.found.fetched.append(value)
            elif tag == "a" and name == "href":
                self.found.links.append(value)


def read(site: Path) -> dict[Path, Found]:
    """Return what each page of a site has."""
    pages: dict[Path, Found] = {}
    for page in sorted(site.rglob("*.html")):
        reader = _Reader()
        reader.feed(page.read_text())
        pages[page.resolve()] = reader.found
    return pages


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
