"""The report: one file, no request to anywhere, every technique in it, nothing printed that was not measured."""

import re
from html.parser import HTMLParser

import pytest

from confide.compare.advise import Advice
from confide.compare.plots import curves, dots, stacked
from confide.compare.record import Record, Spread
from confide.compare.report import Section, strategic, write
from confide.compare.techniques import INFERENCE, TRAINING
from confide.errors import UsageError
from confide.guarantee import Adversary, Claim, Guarantee, Trust

GUARANTEE = Guarantee(
    claims=frozenset({Claim("query", "server", ("nobody <else>",))}),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.CRYPTOGRAPHY,
    security_bits=128,
    post_quantum=True,
    verified_result=False,
    leaks="the <b>answer</b> & its time",
    primary="BFV",
    paper="a paper",
)


def spread(value):
    return Spread(value, value * 0.9, value * 1.1, value)


HE = Record("inference", "he", "one <setting>", {"latency_seconds": spread(0.0042)}, GUARANTEE, "a machine", "1", 7)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href") and value]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(tmp_path):
    pictures = (
        dots({"a": spread(1.0), "b": spread(30.0)}, label="ms", caption="c", log=True),
        curves({"a": [1.0, 2.0], "b": [2.0, 1.0]}, across="round", label="%", caption="c"),
        stacked({"h": {"x": 1.0, "y": 2.0}}, label="patients", caption="c"),
    )
    advice = {
        "Which?": Advice("inference", "he", ("because <it> fits",), (("plain", "shows the query"),)),
        "And?": Advice("training", None, (), ()),
    }
    path = tmp_path / "r.html"
    write(path, heading="H <1>", intro="I", sections=[Section("S", "T", pictures, (HE,))], advice=advice)
    return path.read_text()


def test_the_page_stands_alone(page):
    found = Page(page)
    assert "script" not in found.tags
    assert not [link for link in found.links if not link.startswith("#")]
    assert not re.search(r"@import|url\((?!#)", page)
    assert found.tags.count("svg") == 3


def test_text_is_escaped(page):
    assert "<else>" not in page
    assert "the <b>answer" not in page
    assert "nobody &lt;else&gt;" in page


def test_every_technique_is_in_the_strategic_table_and_only_measured_ones_have_figures(page):
    text = "".join(Page(page).text)
    for technique in [*TRAINING.values(), *INFERENCE.values()]:
        assert technique.title in text
    rows = {row.title: row for row in strategic([HE], "inference")}
    assert rows[INFERENCE["he"].title].latency == "4.20 ms per query"
    assert rows[INFERENCE["he"].title].cryptography == "BFV, 128 bits"
    others = [row for title, row in rows.items() if title != INFERENCE["he"].title]
    assert others
    assert all(row.latency == row.communication == row.cryptography == "not measured" for row in others)
    assert all(not re.search(r"\d", row.latency) for row in strategic([], "training"))


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="folder that can be written"):
        write(tmp_path / "absent" / "r.html", heading="", intro="", sections=[], advice={})
    path = tmp_path / "r.html"
    path.write_text("old")
    broken = [Section("S", "T", (), (Record("inference", "unheard-of", "", {}, GUARANTEE, "", "", 1),))]
    with pytest.raises(KeyError):
        write(path, heading="", intro="", sections=broken, advice={})
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
