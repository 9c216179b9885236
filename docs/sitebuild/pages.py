"""The pages of the repository, laid out for the site: where each goes, its links, and the sections they stand in.

A page stays plain Markdown that reads well where it is. Here its links are turned to the places of the site, a file
that it points to is copied beside it, and the sections of docs/README.md become the navigation.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

INDEX = "docs/README.md"

#: Beside the pages: under each section, and under the API, what stands in the sidebar.
NAVIGATION = "navigation.json"

#: Pages whose place on the site does not follow from their own.
_PLACES = {
    INDEX: "index.md",
    "README.md": "overview.md",
    "SECURITY.md": "threat-model.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
#: Where a page stands that docs/README.md does not list.
_BY_FOLDER = {
    "tutorials": "Tutorials",
    "techniques": "Choose a technique",
    "protocols": "Protocols",
    "bench": "Contributing",
}
_ELSE = "Commands"
#: The section whose pages are made from docstrings.
_REFERENCE = "API"

_FENCED = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"(?P<text>\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the navigation.

    Args:
        title: a heading of docs/README.md.
        text: what stands under it there.
        pages: places on the site, in order.
    """

    title: str
    text: str
    pages: list[str] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """Return the title as a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def summary(self) -> str:
        """Return the first paragraph, empty if a table comes first."""
        first = self.text.strip().partition("\n\n")[0]
        return "" if first.startswith("|") else first


def sources(root: Path) -> list[str]:
    """Return every page of the repository, relative to it."""
    folders = [root / name for name in ("bench", "deploy", "docs")]
    found = [*root.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))]
    found = [
        page
        for page in found
        if not any(part.startswith((".", "node_modules")) for part in page.relative_to(root).parts)
    ]
    return sorted(page.relative_to(root).as_posix() for page in found)


def place(page: str) -> str:
    """Return where a page of the repository goes on the site.

    Example:
        >>> place("docs/protocols/masked.md"), place("deploy/nitro/README.md"), place("SECURITY.md")
        ('protocols/masked.md', 'deploy/nitro/index.md', 'threat-model.md')
    """
    if page in _PLACES:
        return _PLACES[page]
    inside = PurePosixPath(page.removeprefix("docs/"))
    return str(inside.with_name("index.md") if inside.name == "README.md" else inside)


def outside_code(text: str) -> Iterator[tuple[bool, str]]:
    """Yield the pieces of a page in order, with whether a piece is prose, not code."""
    at = 0
    for fence in _FENCED.finditer(text):
        yield from _prose(text[at : fence.start()])
        yield False, fence[0]
        at = fence.end()
    yield from _prose(text[at:])


def _prose(text: str) -> Iterator[tuple[bool, str]]:
    """Yield prose and the inline code in it; a link whose text is code stays whole, as prose."""
    at = 0
    for found in re.finditer(
        f"(?:{_LINK.pattern})|(?P<code>{_INLINE_CODE.pattern.replace('1', '4')})", text, re.DOTALL
    ):
        if found["code"] is not None:
            yield True, text[at : found.start()]
            yield False, found[0]
            at = found.end()
    yield True, text[at:]


class Layout:
    """The pages of a repository on their way to the site.

    Args:
        root: of the repository.
        into: a folder for what Sphinx reads.
    """

    def __init__(self, root: Path, into: Path) -> None:
        self.root, self.into = root, into
        self._api = (into / "api" / "index.md").is_file()
        self.pages = {page: place(page) for page in sources(root)}
        self.sections = self._sections()

    def write(self) -> None:
        """Write every page, and the pages of the sections."""
        for page, target in self.pages.items():
            if page != INDEX:
                self._put(target, self.linked(page, (self.root / page).read_text()))
        for section in self.sections:
            body = self.linked(INDEX, section.text, at=f"sections/{section.slug}.md")
            self._put(f"sections/{section.slug}.md", f"# {section.title}\n\n{body}\n{_toctree(section.pages)}")
        self._put("index.md", self._front())
        navigation = {f"sections/{section.slug}": [_name(page) for page in section.pages] for section in self.sections}
        if self._api:
            navigation["api/index"] = sorted(f"api/{page.stem}" for page in (self.into / "api").glob("*.rst"))
        self._put(NAVIGATION, json.dumps(navigation))

    def linked(self, page: str, text: str, *, at: str = "") -> str:
        """Return a page's text with links for the site; a link that leads nowhere is left, for Sphinx to refuse.

        Args:
            page: where the text stands in the repository.
            text: Markdown.
            at: where it will stand on the site; the page's place if empty.
        """
        here = PurePosixPath(at or self.pages[page]).parent

        def turned(match: re.Match[str]) -> str:
            target, _, anchor = match["target"].partition("#")
            if re.match(r"[a-z]+:", match["target"]) or (not target and not at):
                return match[0]
            file = os.path.normpath((PurePosixPath(page).parent / target).as_posix()) if target else page
            if file in self.pages:
                to = self._section(anchor) if file == INDEX and anchor else self.pages[file]
                anchor = "" if file == INDEX else anchor
                return f"{match['text']}({_relative(to, here)}{'#' * bool(anchor)}{anchor})"
            if (self.root / file).is_file():
                self._copy(file)
                return f"{match['text']}({_relative(f'files/{file}', here)})"
            return match["text"][1:-1] if (self.root / file).is_dir() else match[0]

        return "".join(_LINK.sub(turned, piece) if prose else piece for prose, piece in outside_code(text))

    def _put(self, target: str, text: str) -> None:
        path = self.into / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _copy(self, file: str) -> None:
        path = self.into / "files" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / file, path)

    def _section(self, anchor: str) -> str:
        found = [section for section in self.sections if section.slug == anchor]
        return f"sections/{found[0].slug}.md" if found else "index.md"

    def _sections(self) -> list[Section]:
        """Return the sections of docs/README.md; pages that it does not list stand at the end of one."""
        parts = re.split(r"^## +", (self.root / INDEX).read_text(), flags=re.MULTILINE)[1:]
        sections = [Section(title.strip(), text) for title, _, text in (part.partition("\n") for part in parts)]
        named = {section.title: section for section in sections}
        listed: set[str] = {"index.md"}
        for section in sections:
            for link in _LINK.finditer(section.text):
                file = os.path.normpath(f"docs/{link['target'].partition('#')[0]}")
                to = self.pages.get(file)
                if to and to not in listed:
                    listed.add(to)
                    section.pages.append(to)
        if self._api and _REFERENCE in named:
            named[_REFERENCE].pages.append("api/index.md")
        for to in self.pages.values():
            if to not in listed:
                folder = PurePosixPath(to).parts[0]
                named.get(_BY_FOLDER.get(folder, _ELSE), sections[-1]).pages.append(to)
        return sections

    def _front(self) -> str:
        opening = re.split(r"^## +", (self.root / INDEX).read_text(), flags=re.MULTILINE)[0]
        cards = ["::::{container} cards"]
        for section in self.sections:
            summary = self.linked(INDEX, section.summary, at="index.md")
            cards += [":::{container} card", f"[{section.title}](sections/{section.slug}.md)", "", summary, ":::"]
        front = [self.linked(INDEX, opening), *cards, "::::", ""]
        return "\n".join([*front, _toctree([f"sections/{section.slug}.md" for section in self.sections], base="")])


def _relative(target: str, here: PurePosixPath) -> str:
    return os.path.relpath(target, here.as_posix())


def _name(page: str) -> str:
    return page.removesuffix(".md")


def _toctree(pages: Sequence[str], *, base: str = "/") -> str:
    entries = "\n".join(f"{base}{_name(page)}" for page in pages)
    return f"\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"
