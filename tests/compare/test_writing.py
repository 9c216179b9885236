"""The four files: whole or not at all, the same records in each, names that stay names."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest

from compare.example import HOSTILE, report, result
from confide.compare import document as documents
from confide.compare.charts import Gallery, against_rounds
from confide.compare.published import MARK, PUBLISHED
from confide.compare.quantities import ranged
from confide.compare.result import read_result
from confide.compare.settings import PRIVATE_WARNING
from confide.compare.tables import name
from confide.compare.writing import COLUMNS, table, write_all, write_files
from confide.errors import UsageError

NAMES = {"compare.html", "compare.md", "compare.json", "compare.csv"}
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """What a page holds; elements must close in the order in which they opened."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.texts, self.ids, self._open = [], [], [], [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href") and value]
        self.ids += [value for key, value in attrs if key == "id"]
        assert not [key for key, _ in attrs if key.startswith("on")]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def written():
    return {path.name: path.read_text() for path in report().iterdir()}


def test_four_files_are_written_and_json_is_the_result(written):
    assert set(written) == NAMES
    assert read_result(written["compare.json"].encode()) == result()


def test_the_page_stands_alone_and_is_small(written):
    page = Page(written["compare.html"])
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"@import|url\((?!#)", written["compare.html"])
    assert "default-src 'none'" in written["compare.html"]
    assert len(written["compare.html"]) < 3_000_000
    assert page.tags.count("svg") >= 11
    assert len(page.ids) == len(set(page.ids))


def test_every_record_stands_in_all_four_with_its_figures_and_guarantee(written):
    page = "".join(Page(written["compare.html"]).texts)
    lines = list(csv.DictReader(io.StringIO(written["compare.csv"])))
    plain = json.loads(written["compare.json"])
    for place, record in enumerate(result().records):
        title = name(record)
        assert title in page
        assert re.sub(r"\W", "", title.split("<")[0]) in re.sub(r"\W", "", written["compare.md"])
        mine = [line for line in lines if line["kind"] == "figure" and _same(line, record)]
        assert {line["figure"]: float(line["median"]) for line in mine} == {
            figure: spread.median for figure, spread in record.figures.items()
        }
        assert {figure: spread["low"] for figure, spread in plain["records"][place]["figures"].items()} == {
            figure: spread.low for figure, spread in record.figures.items()
        }
        for sentence in record.guarantee.sentences():
            assert sentence in page
    shown = ranged("latency_seconds", result().records[4].figures["latency_seconds"])
    assert shown in page
    assert shown in written["compare.md"]


def _same(line, record):
    return (line["task"], line["choice"].lstrip("'")) == (record.task, record.choice.replace("\n", " "))


def test_a_line_of_csv_has_machine_commit_repeats_spread_and_guarantee(written):
    lines = list(csv.DictReader(io.StringIO(written["compare.csv"])))
    assert tuple(lines[0]) == COLUMNS
    he = next(line for line in lines if line["choice"] == "he" and line["figure"] == "latency_seconds")
    assert (he["machine"], he["commit"], he["repeats"], he["unit"]) == ("a machine", "confide-of-today", "7", "seconds")
    assert float(he["low"]) < float(he["median"]) < float(he["high"])
    assert (he["trust"], he["security_bits"], he["claims"]) == ("cryptography", "128", "query hidden from server")
    assert {line["simulated"] for line in lines if line["choice"] == "tee"} == {"yes"}
    points = [line for line in lines if line["kind"] == "epsilon"]
    assert [float(line["x"]) for line in points] == [0.5, 1.0, 8.0]


def test_hostile_names_stay_names(written):
    for tag in ("<script", "<img", "</style><"):
        assert tag not in written["compare.html"].partition("</head>")[2]
        assert tag not in _outside_fences(written["compare.md"])
    assert HOSTILE in "".join(Page(written["compare.html"]).texts).replace("\r", "")
    assert "https://" not in _outside_fences(written["compare.md"])
    assert "[a](" not in _outside_fences(written["compare.md"]).replace("\\[", "").replace("\\]", "")
    widths = {line.count("|") - line.count("\\|") for line in _table_of(written["compare.md"], "| technique | phase")}
    assert widths == {11}
    for line in csv.reader(io.StringIO(written["compare.csv"])):
        assert len(line) == len(COLUMNS)
        assert not [
            value for value in line if value[:1] in ("=", "+", "@") or (value[:1] == "-" and value[1:2].isalpha())
        ]


def _outside_fences(text):
    return text.partition("\n## The job")[0]


def _table_of(text, first):
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(first))
    return [line for line in lines[start : start + 40] if line.startswith("|")]


def test_the_job_cannot_leave_its_block(written):
    text = written["compare.md"].partition("## The job")[2]
    fence = re.search(r"`{3,}", text).group()
    assert len(fence) > 3
    assert text.count(fence) == 2
    assert text.rstrip().endswith(fence)


def test_published_figures_are_marked(written):
    page = "".join(Page(written["compare.html"]).texts)
    assert page.count(MARK) == len(PUBLISHED) + 1
    assert all(one.value in page and one.source in page for one in PUBLISHED)
    assert "Llama" not in written["compare.csv"]


def test_private_figures_carry_their_banner(written, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "gallery", lambda *_: Gallery((), {}, ()))  # drawing takes seconds
    private = write_all(result(private=True, data_kind="own table"), tmp_path)
    for path in private:
        assert path.stat().st_mode & 0o077 == 0
        assert PRIVATE_WARNING in path.read_text() or path.suffix == ".json"
    assert read_result((tmp_path / "compare.json").read_bytes()).private
    assert 'class="banner"' in (tmp_path / "compare.html").read_text()
    assert not [name for name, text in written.items() if PRIVATE_WARNING in text]


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("old")
    with pytest.raises(UsageError, match="got a folder"):
        write_files(tmp_path, {"a": b"new", "b": b"new"})
    assert (tmp_path / "a").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    with pytest.raises(UsageError, match="can be written"):
        write_files(tmp_path / "a", {"x": b""})
    with pytest.raises(TypeError):  # the second body fails: the first has no name yet
        write_files(tmp_path, {"a": b"new", "c": None})
    assert (tmp_path / "a").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_the_same_result_gives_the_same_bytes(written):
    assert against_rounds(result()).svg in written["compare.html"]
    assert table(result()) == written["compare.csv"]
