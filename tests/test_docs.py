"""What the documentation says is true: its links lead somewhere, its examples run, every verb has its page."""

from __future__ import annotations

import csv
import doctest
import importlib
import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer.main

from confide import cli
from confide.data.sets import load_set
from confide.errors import MissingExtra

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "deploy").glob("*.md")), *sorted(DOCS.rglob("*.md"))]
TUTORIALS = [DOCS / "quickstart.md", *sorted((DOCS / "tutorials").glob("*.md"))]  # tests/test_tutorials.py runs them
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
SOURCE = ROOT / "src"
MODULES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in sorted(SOURCE.rglob("*.py"))
    if ">>> " in path.read_text()
]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> Iterator[tuple[list[str], str]]:
    """Yield the flags and the text of each fenced block in `language`; line numbers stay those of the page."""
    text = page.read_text()
    for fence in FENCE.finditer(text):
        named, *flags = fence["info"].split() or [""]
        if named == language:
            yield flags, "\n" * (text[: fence.start("text")].count("\n")) + fence["text"]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return the anchors that the headings of `page` get."""
    headings = re.findall(r"^#+ +(.*?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    dead: list[str] = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            dead.append(link)
    return dead


def changelog_offences(text: str) -> list[str]:
    """Return what breaks the changelog's rules: dated versions, newest first, what touches privacy before the rest."""
    offences: list[str] = []
    releases = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    for release in releases:
        title, _, body = release.partition("\n")
        if not re.fullmatch(r"\[Unreleased\]|\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", title):
            offences.append(f"{title}: neither [Unreleased] nor [version] - date")
        headings = re.findall(r"^### (.*)$", body, re.MULTILINE)
        if headings[:1] != ["Privacy and security"]:
            offences.append(f"{title}: starts with {headings[:1]}")
        known = {"Privacy and security", "Added", "Changed", "Deprecated", "Removed", "Fixed"}
        offences += [f"{title}: unknown heading {heading}" for heading in headings if heading not in known]
    return offences


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path):
    assert not dead_links(page)


def test_a_dead_link_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n[a](#title) [b](#other) [c](absent.md) [d](https://example.org)\n```\n[e](code.md)\n```\n"
    )
    assert dead_links(page) == ["#other", "absent.md"]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_examples_run(page: Path, tmp_path, monkeypatch):
    """Runs a page's blocks from top to bottom in one namespace; `no-run` ones, and a tutorial's, are compiled only."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__docs__"}
    for flags, text in blocks(page, "python"):
        code = compile(text, page.name, "exec", dont_inherit=True)  # as a reader would run it
        if "no-run" not in flags and page not in TUTORIALS:
            exec(code, namespace)


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda script: script.name)
def test_scripts_among_the_examples_run(script: Path, tmp_path):
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.sh")), ids=lambda script: script.name)
def test_shell_scripts_among_the_examples_run(script: Path, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent
    done = subprocess.run(
        ["sh", str(script), str(port)],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{program}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_toml_examples_parse(page: Path):
    for _, text in blocks(page, "toml"):
        assert tomllib.loads(text)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module: str):
    try:
        found = importlib.import_module(module)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    assert not doctest.testmod(found).failed


def test_every_page_is_in_the_index():
    index = DOCS / "README.md"
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in re.findall(r"\]\(([^)\s]+)\)", prose(index))}
    absent = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if page != index and page not in linked]
    assert not absent


def verbs() -> dict[str, object]:
    """Return every verb of the command line: "train", "ledger verify" ..."""
    found: dict[str, object] = {}

    def walk(command, name: str) -> None:
        inner = getattr(command, "commands", None)
        if inner is None:
            found[name] = command
        for part, child in (inner or {}).items():
            walk(child, f"{name} {part}".strip())

    walk(typer.main.get_command(cli.app), "")
    return found


def test_every_verb_has_a_page_and_a_help_text():
    for verb, command in verbs().items():
        page = DOCS / f"{verb.split()[0]}.md"
        assert page.is_file(), f"docs/{page.name} is missing"
        assert f"confide {verb}" in page.read_text()
        assert (command.help or "").strip().splitlines()[0].endswith("."), f"confide {verb} --help says nothing"


def test_every_option_is_explained():
    for verb, command in verbs().items():
        text = (DOCS / f"{verb.split()[0]}.md").read_text()
        for parameter in command.params:
            assert parameter.help, f"confide {verb}: {parameter.name} has no help text"
            for option in parameter.opts:
                assert not option.startswith("--") or option in text, f"docs/{verb.split()[0]}.md leaves out {option}"


def test_changelog_puts_privacy_first():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert not changelog_offences(text)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in text or "## [Unreleased]" in text


@pytest.mark.parametrize(
    "text",
    ["## [0.1.0] - 2026-11-24\n### Added\n- x\n", "## 0.1.0\n### Privacy and security\n", "## [Unreleased]\n"],
    ids=["order", "title", "empty"],
)
def test_a_changelog_that_breaks_the_rules_is_noticed(text):
    assert changelog_offences(text)


def test_tables_that_are_asked_about_are_in_a_fresh_clone():
    """They are rows of the shipped set, in the columns that the model of the README's first example asks for."""
    pages = [page for page in (ROOT / "README.md", *DOCS.rglob("*.md")) if page not in TUTORIALS]
    named = {place for page in pages for place in re.findall(r"confide predict http\S+ (\S+\.csv)", page.read_text())}
    assert "examples/patients.csv" in named
    made = {"data/today.csv", "test.csv"}  # by the steps before, on their pages
    assert all((ROOT / place).is_file() for place in named - made), named
    schema, table = load_set("breast-cancer")
    with (ROOT / "examples" / "patients.csv").open() as file:
        head, *rows = csv.reader(file)
    assert head == [column.name for column in schema.columns if column.name in table.columns]
    last = np.stack([column[-len(rows) :] for column in table.columns.values()], axis=1)
    np.testing.assert_array_equal(np.array(rows, float), last)
