"""docs/rules-of-thumb.md is what its result file yields: nobody typed a figure."""

from __future__ import annotations

from pathlib import Path

import msgspec

import bench
from compare.example import result
from compare.test_rules import full
from confide.compare.result import RuleJudged
from confide.compare.rules import RULES, overall, verdict

DOCS = Path(__file__).parents[2] / "docs"
FILE, PAGE = DOCS / "rules-of-thumb.json", DOCS / "rules-of-thumb.md"


def kept() -> tuple[RuleJudged, ...]:
    return msgspec.convert(msgspec.json.decode(FILE.read_bytes())["rules"], tuple[RuleJudged, ...])


def test_the_page_is_what_the_file_yields():
    assert PAGE.read_text() == bench.script("rules_page").page(FILE.read_bytes())


def test_a_figure_that_was_changed_shows():
    found = msgspec.json.decode(FILE.read_bytes())
    found["rules"][0]["measured"][0]["value"]["median"] += 0.1
    assert PAGE.read_text() != bench.script("rules_page").page(msgspec.json.encode(found))


def test_the_file_holds_every_rule_as_it_is_today_with_verdicts_that_follow():
    rules = kept()
    assert [rule.key for rule in rules] == [rule.key for rule in RULES]
    for rule, known in zip(rules, RULES, strict=True):
        assert (rule.said, rule.low, rule.high, rule.figure) == (known.said, known.low, known.high, known.figure)
        assert rule.measured, rule.key
        for one in rule.measured:
            assert one.verdict == verdict(one.value, rule.low, rule.high, rule.figure)
        assert rule.verdict == overall([one.verdict for one in rule.measured])


def test_what_is_kept_is_what_a_result_says():
    page = bench.script("rules_page")
    body = msgspec.json.encode(page.kept(full(), date="2026-01-02", processor="a processor"))
    text = page.page(body)
    assert "2026-01-02: a processor; a machine" in text
    assert len([line for line in text.splitlines() if line.startswith("## ")]) == len(RULES) + 2
    nothing = page.page(msgspec.json.encode(page.kept(result(), date="2026-01-02", processor="")))
    assert "2026-01-02: a machine" in nothing
