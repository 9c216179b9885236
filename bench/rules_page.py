"""Writes docs/rules-of-thumb.json and the figures of docs/rules-of-thumb.md from a finished comparison.

    confide compare examples/rules-of-thumb.toml --out FOLDER
    python bench/rules_page.py FOLDER/compare.json

Without an argument it writes the page again from the file that is there. Nobody types a figure of that page:
tests/compare/test_rules_page.py checks that it is what the JSON file yields, which holds the judged rules, the networks
and where they were measured, and no more.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

import msgspec

from confide.compare.quantities import ranged
from confide.compare.result import Result, RuleJudged, read_result
from confide.compare.rule_report import networks_table, range_words
from confide.compare.rules import RULES

HEAD = """# Rules of thumb

What people say by rule of thumb about private learning, beside what `confide` measures. One command measures all of it:

    confide compare examples/rules-of-thumb.toml

The report of any comparison has the same table for its own job, model and data; what the job does not measure says so
there. This page is written by `python bench/rules_page.py FOLDER/compare.json`, so nobody types its figures; the
verdicts are computed. *Too pessimistic* means that the rule says it costs more than it did here. A verdict compares the
median with the rule's range, and is *undecided* where the spread reaches the range. The figures are of one machine, one
model and public data: run it on yours. Losses and rounds spread over splits of the records, against the median of the
yardstick; latencies spread over queries.

No source was found that states all of these rules with their settings. Each rule names what could be read; a source
that could not be opened says so.
"""

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FILE = DOCS / "rules-of-thumb.md", DOCS / "rules-of-thumb.json"


def kept(result: Result, *, date: str, processor: str) -> dict[str, Any]:
    """Return what of a result stands in the repository."""
    networks = networks_table(result)
    return {
        "about": {
            "machine": f"{processor}; {result.machine}" if processor else result.machine,
            "commit": result.commit,
            "date": date,
            "seconds": round(result.seconds),
        },
        "rules": msgspec.to_builtins(result.rules),
        "networks": [networks.columns, *networks.rows],
    }


def page(body: bytes) -> str:
    """Return the page that the file yields."""
    found = msgspec.json.decode(body)
    rules, about = msgspec.convert(found["rules"], tuple[RuleJudged, ...]), found["about"]
    run = f"Measured on {about['date']}: {about['machine']}; confide {about['commit']}; {about['seconds']:,} s in all."
    brief = [("rule", "taken as", "this run says")]
    brief += [(rule.said, range_words(rule), rule.verdict) for rule in rules]
    parts = [HEAD, f"## In short\n\n{run}\n", table(brief), *(_rule(rule) for rule in rules)]
    networks = "## The networks\n\nKnown shapes with drawn weights: the weights do not change what a layer costs.\n"
    return "\n".join([*parts, networks, table([tuple(row) for row in found["networks"]])])


def _rule(rule: RuleJudged) -> str:
    known = next(one for one in RULES if one.key == rule.key)
    rows = [("technique", "measured", "repeats", "verdict", "setting")]
    rows += [(m.name, ranged(rule.figure, m.value), str(m.repeats), m.verdict, m.what) for m in rule.measured]
    said = "\n".join(
        f"* {_linked(source.title, source.address)}: {source.says}" + ("" if source.read else " (not opened by us)")
        for source in known.sources
    )
    left_out = f"\nNot measured: {text(rule.left_out)}.\n" if rule.left_out else ""
    return (
        f"## {rule.said.removesuffix('.')}\n\n**This run: {rule.verdict}** (taken as {range_words(rule)}).\n\n"
        f"Where it is said:\n\n{said}\n\nUsually measured on: {known.usual}\n\n{known.why}\n\n"
        f"{table(rows) if rule.measured else ''}{left_out}"
    )


def _linked(title: str, address: str) -> str:
    return f"[{title}]({address})" if address else title


def table(rows: list[tuple[str, ...]]) -> str:
    """Return rows as a table, the first as its head."""
    lines = ["| " + " | ".join(text(cell) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""])


def text(cell: str) -> str:
    """Return a cell that stays in its table."""
    return cell.replace("|", "\\|").replace("\n", " ")


def processor() -> str:
    """Return the processor's name, "" where the system does not tell."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def main() -> None:
    """Write both files from a result, or the page alone from the file where none is given."""
    if len(sys.argv) > 1:
        result = read_result(Path(sys.argv[1]).read_bytes())
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        body = msgspec.json.format(msgspec.json.encode(kept(result, date=date, processor=processor())), indent=1)
        FILE.write_bytes(body + b"\n")
    PAGE.write_text(page(FILE.read_bytes()))
    print(f"wrote {FILE.name} and {PAGE.name}")


if __name__ == "__main__":
    main()
