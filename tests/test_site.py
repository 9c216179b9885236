"""The documentation site: techniques have pages, which say what the code says; no link is dead."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser
from pathlib import Path

import docutils.core
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.compare import techniques
from confide.serve import BACKENDS
from confide.train.parts import AGGREGATORS
from net.chromium import PROGRAM, browser
from sitebuild import build, check, diagrams, docstrings, facts, pages, reference

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copied(tmp_path) -> Path:
    """Return a copy of the pages, to be spoilt."""
    for name in ("SECURITY.md", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("sitebuild"))
    return tmp_path


# --- techniques -------------------------------------------------------------------------------------------------------


def test_every_technique_has_a_page_that_says_what_the_code_says():
    assert not facts.faults(ROOT)


def test_the_pages_are_those_of_the_strategic_table_and_of_the_registries():
    told = {(fact.task, fact.choice) for fact in facts.every()}
    table = {("training", name) for name in techniques.TRAINING} | {
        ("inference", name) for name in techniques.INFERENCE
    }
    registered = {("training", name) for name in AGGREGATORS} | {("inference", name) for name in BACKENDS}
    assert told == table | registered | {("inference", "he-outsourced")}


def test_a_technique_without_a_page_is_noticed(copied):
    (copied / "docs" / "techniques" / "training-masked.md").unlink()
    assert facts.faults(copied) == ["docs/techniques/training-masked.md is missing: every technique has its page"]


def test_a_new_aggregator_needs_a_page(copied, monkeypatch):
    made = facts.every()
    new = facts.Fact("training", "new", made[0].technique, made[0].guarantee, (), made[0].asked)
    monkeypatch.setattr(facts, "every", lambda: (*made, new))
    assert "docs/techniques/training-new.md is missing: every technique has its page" in facts.faults(copied)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("update hidden from server", "record hidden from server"),
        ("8", "9"),
        ("| open ports | 1", "| open ports | 0"),
        ("## When not to use it", "## When to use it"),
        ("```mermaid", "```text"),
        ("<!-- generated: guarantee -->", ""),
    ],
)
def test_a_page_that_says_something_else_is_noticed(copied, old, new):
    page = copied / "docs" / "techniques" / "training-masked.md"
    text = page.read_text()
    head, _, tail = text.partition("<!-- generated: facts -->") if old == "8" else ("", "", text)
    assert old in tail
    page.write_text(head + (_ + tail.replace(old, new, 1)))
    assert any("training-masked.md" in fault for fault in facts.faults(copied))
    facts.write(copied)
    if old in ("8", "update hidden from server", "| open ports | 1"):
        assert page.read_text() == text


def test_a_page_about_no_technique_is_noticed(copied):
    (copied / "docs" / "techniques" / "training-magic.md").write_text("# Magic\n")
    assert facts.faults(copied) == ["docs/techniques/training-magic.md is about no technique"]


def test_pages_of_techniques_begin_to_say_no_with_a_named_alternative():
    """Every "when not" has reasons, and all pages but the plain ones send somewhere else."""
    for fact in facts.every():
        text = (ROOT / "docs" / "techniques" / fact.page).read_text().partition("## When not to use it\n")[2]
        assert text.count("\n* **") >= 2, fact.page
        assert "](" in text, fact.page


# --- a small site -----------------------------------------------------------------------------------------------------

INDEX = "# Small\n\n## Start here\n\nFirst.\n\n| | |\n|---|---|\n| [one](one.md) | 1 |\n\n## Commands\n\n-\n"
ONE = """# One

[two](two.md#second-part), [the same](#one), [a file](../data.toml), [a folder](../folder),
[start](README.md#start-here), `[code](absent.md)`, [other](https://example.org/x).

    [code](absent.md)

```text
[code](absent.md)
```

```mermaid
sequenceDiagram
    participant A as party
    A->>A: thinks
```
"""
TWO = "# Two\n\n## Second part\n\nText.\n"


def repository(root: Path, **changed: str) -> Path:
    """Write a repository of three pages; `changed` replaces or adds some."""
    for folder in ("docs", "folder"):
        (root / folder).mkdir(parents=True)
    (root / "data.toml").write_text("x = 1\n")
    (root / "SECURITY.md").write_text("# Security\n\n[one](docs/one.md)\n")
    for name, text in ({"README": INDEX, "one": ONE, "two": TWO} | changed).items():
        (root / "docs" / f"{name}.md").write_text(text)
    return root


def built(root: Path, out: Path) -> list[str]:
    return build.build(root, out, api=False, jobs=1)[0]


class Reader(HTMLParser):
    """The standard library's reader of HTML, as an oracle of `check.scan`."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.ids |= {named[name] for name in ("id", "name") if named.get(name)}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])


def test_a_good_site_is_built_and_asks_nothing_of_the_network(tmp_path):
    wrong, outside = build.build(repository(tmp_path / "pages"), tmp_path / "site", api=False, jobs=1)
    assert not wrong
    assert outside["https://example.org/x"] == ["one.html"]
    page = (tmp_path / "site" / "one.html").read_text()
    assert 'href="two.html#second-part"' in page
    assert 'href="sections/start-here.html"' in page
    assert "data.toml" in page
    assert "<svg" in page
    assert page.count("[code](absent.md)") == 3
    assert (tmp_path / "site" / "threat-model.html").is_file()
    for file, found in check.read(tmp_path / "site").items():
        reader = Reader()
        reader.feed(file.read_text())
        assert (found.ids, found.links) == (reader.ids, reader.links)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# Two\n\n## Second part\n\n[gone](gone.md)\n", "gone.md"),
        ("# Two\n\n## Second part\n\n[gone](one.md#no-such-part)\n", "no-such-part"),
        ("# Two\n\n## Another part\n", "second-part"),
        ('# Two\n\n## Second part\n\n<script src="https://example.org/x.js"></script>\n', "https://example.org/x.js"),
        ("# Two\n\n## Second part\n\n```mermaid\nflowchart LR\n```\n", "sequenceDiagram"),
    ],
    ids=["dead link", "missing anchor", "anchor that went away", "script from elsewhere", "diagram of another kind"],
)
def test_what_is_wrong_with_a_site_is_named(tmp_path, text, said):
    wrong = built(repository(tmp_path / "pages", two=text), tmp_path / "site")
    assert any(said in line for line in wrong), wrong


def test_dead_links_and_anchors_are_found_in_the_built_pages_too(tmp_path):
    """Without Sphinx: what a theme or raw HTML puts in."""
    links = '<a href="b.html#x">x</a><a href="b.html#y">y</a><a href="c.html">c</a>'
    (tmp_path / "a.html").write_text(f'{links}<img src="d.png">')
    (tmp_path / "b.html").write_text(
        '<p id="x">x</p><a href="https://example.org">e</a><link rel="stylesheet" href="//e.org/f">'
    )
    (tmp_path / "s.css").write_text("@font-face { src: url(https://example.org/font) }")
    wrong, outside = check.faults(tmp_path)
    assert wrong == [
        "a.html: d.png is not there",
        "a.html: b.html#y names no anchor of its page",
        "a.html: c.html leads nowhere",
        "b.html: asks the network for //e.org/f",
        "s.css: asks the network",
    ]
    assert list(outside) == ["https://example.org"]


# --- parts ------------------------------------------------------------------------------------------------------------


def test_public_modules_are_what_is_exported_and_what_pages_name():
    modules = reference.public_modules(ROOT)
    assert {"confide", "confide.errors", "confide.guarantee", "confide.serve.client", "confide.dp.bounds"} <= set(
        modules
    )
    assert not any("._" in module for module in modules)
    assert set(reference.exported(ROOT)) == set(__import__("confide").__all__)


def test_a_public_name_without_an_entry_is_noticed(tmp_path):
    empty = b"# Sphinx inventory version 1\n# Project: confide\n# Version: 1\nconfide.Client class api.html\n"
    (tmp_path / "objects.inv").write_bytes(empty)
    absent = reference.absent(tmp_path, ["confide.errors"], ROOT)
    assert "the reference has no entry for confide.errors.UsageError" in absent
    assert "the reference has no entry for confide.KeyStore" in absent
    assert "the reference has no entry for confide.Client" not in absent


def test_pages_that_the_index_leaves_out_are_in_the_navigation(tmp_path):
    root = repository(tmp_path / "pages")
    (root / "docs" / "tutorials").mkdir()
    (root / "docs" / "tutorials" / "four.md").write_text("# Four\n")
    layout = pages.Layout(root, tmp_path / "into")
    assert [page for section in layout.sections for page in section.pages].count("tutorials/four.md") == 1


@given(st.text(st.sampled_from("ab _*|`\\<>:."), max_size=30))
def test_escaped_text_reads_as_it_was_written(text):
    """Against docutils: plain text of a docstring has no markup, whatever stands in it."""
    plain = " ".join(text.replace("`", "").replace("::", ":").split())
    if not plain or not plain[0].isalpha():
        return
    tree = docutils.core.publish_doctree(docstrings.escaped(plain), settings_overrides={"report_level": 5})
    assert tree.astext() == plain


@pytest.mark.parametrize(
    "text", ["flowchart LR", "sequenceDiagram\nA->>B: x", "sequenceDiagram\nparticipant A\nloop x"]
)
def test_a_diagram_of_unknown_words_is_refused(text):
    with pytest.raises(ValueError, match="Expected"):
        diagrams.draw(text)


def test_a_diagram_shows_all_that_is_said():
    drawn = diagrams.draw(
        "sequenceDiagram\nparticipant A as <one>\nparticipant B\nA->>B: a & b\nB-->>A: back\nNote over A,B: both"
    )
    for piece in ("&lt;one&gt;", "a &amp; b", "back", "both"):
        assert piece in drawn
    assert drawn.count('class="tip"') == 2
    assert drawn.count("arrow back") == 1


# --- the whole site ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "site"
    wrong, _ = build.build(ROOT, out)
    assert not wrong
    return out


@pytest.mark.slow  # `make docs` builds it in CI
def test_the_site_is_built_with_an_entry_for_each_public_name(site):
    assert len(list((site / "api").glob("*.html"))) == len(reference.public_modules(ROOT))
    assert all((site / "techniques" / fact.page).with_suffix(".html").is_file() for fact in facts.every())


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed; .ci/run installs it")
def test_the_search_works_from_a_folder(site, tmp_path):
    with browser(tmp_path) as tab:
        tab.open(f"{(site / 'search.html').as_uri()}?q=dealer", dark=True)
        tab.wait_for("document.querySelectorAll('ul.search li').length > 5")
        assert "mpc-dealer" in tab.text()
        assert tab.evaluate("performance.getEntriesByType('resource').every(r => r.name.startsWith('file:'))")
