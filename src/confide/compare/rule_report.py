"""The rules of thumb on paper: a table, a small picture for each rule, and the networks that they were measured on."""

from __future__ import annotations

from confide.compare.deeper import on_shares, scheme
from confide.compare.plots import Picture, against_range
from confide.compare.quantities import NOT_MEASURED, median_of, of, ranged, shown, words
from confide.compare.record import Record
from confide.compare.result import Result, RuleJudged
from confide.compare.rule_figures import shortened
from confide.compare.rules import RULES, Rule
from confide.compare.tables import Entry, Table, name

_FIGURES: tuple[str, ...] = ("latency_seconds", "latency_lan_seconds", "latency_wan_seconds", "setup_seconds")


def range_words(rule: RuleJudged) -> str:
    """Return the range that a rule gives."""
    return f"{shown(rule.figure, rule.low)} to {shown(rule.figure, rule.high)}"


def rules_table(judged: tuple[RuleJudged, ...]) -> Table:
    """Return each rule, what this run says of it, where it is said, and why ours differs."""
    known = {rule.key: rule for rule in RULES}
    return Table(
        "The rules",
        "Too pessimistic: the rule says that it costs more than it did here. Too optimistic: less.",
        ("rule", "taken as", "this run says", "where it is said", "usually measured on", "why ours differs"),
        tuple(_row(rule, known.get(rule.key)) for rule in judged),
    )


def _row(rule: RuleJudged, known: Rule | None) -> tuple[Entry, ...]:
    return (
        rule.said,
        range_words(rule),
        (rule.verdict, f"{NOT_MEASURED}: {rule.left_out}") if rule.left_out else rule.verdict,
        tuple(source.words() for source in known.sources) if known else "not stated",
        known.usual if known else "not stated",
        known.why if known else "not stated",
    )


def measured_table(judged: tuple[RuleJudged, ...]) -> Table:
    """Return every measurement beside its rule, a line each."""
    return Table(
        "What was measured for them",
        "Medians, with the 5th to the 95th percentile over the repeats. A verdict compares the median with the rule. "
        "Losses and rounds spread over splits of the records, against the median of the yardstick.",
        ("rule", "technique", "measured", "repeats", "verdict", "setting"),
        tuple(
            (rule.said, one.name, ranged(rule.figure, one.value), f"{one.repeats:,}", one.verdict, one.what)
            for rule in judged
            for one in rule.measured
        ),
    )


def rules_pictures(judged: tuple[RuleJudged, ...]) -> tuple[Picture, ...]:
    """Return a picture for each rule that something was measured for. Raises MissingExtra without matplotlib."""
    return tuple(_picture(rule) for rule in judged if rule.measured)


def _picture(rule: RuleJudged) -> Picture:
    share, seconds = rule.figure.endswith("_share"), rule.figure.endswith("_seconds")
    return against_range(
        {one.name: one.value for one in rule.measured},
        low=rule.low,
        high=rule.high,
        label="lost, %" if share else "seconds" if seconds else "times",
        factor=100 if share else 1,
        log=not share,
        caption=f"{rule.said} Shaded: the rule. Points: medians, 5th to 95th percentile. This run: {rule.verdict}.",
    )


def networks_table(result: Result) -> Table:
    """Return what each technique takes on each further network, and who does not run it."""
    rows = [_network(aside.on, aside.record) for aside in result.asides if aside.kind == "network"]
    for place, why in result.unfit.items():
        kind, _, rest = place.partition("/")
        on, _, choice = rest.rpartition("/")
        if kind == "network":
            rows.append((on, choice, f"{NOT_MEASURED}: {shortened(why)}", *("–" for _ in range(len(_FIGURES) + 3))))
    return Table(
        "Networks",
        "Known shapes with drawn weights, or files that the job names; one image at a time. The clear is onnxruntime "
        "on this machine; times clear is the work of a technique over it, with dealing.",
        (
            "network", "technique", "repeats", "parameters", *(words(one) for one in _FIGURES), "in the clear",
            "times clear",
        ),
        tuple(rows),
    )  # fmt: skip


def _network(on: str, record: Record) -> tuple[Entry, ...]:
    clear = record.figure("clear_seconds")
    work = record.figure("latency_loopback_seconds") or record.figure("latency_seconds")
    ahead = record.figure("offline_loopback_seconds") or 0.0
    protected = scheme(record) or on_shares(record)
    times = shown("clear_factor", (work + ahead) / clear) if clear and work and protected else "–"
    return (
        on, name(record), f"{record.repeats:,}", median_of(record, "parameters_count"),
        *(of(record, one) for one in _FIGURES), median_of(record, "clear_seconds"), times,
    )  # fmt: skip
