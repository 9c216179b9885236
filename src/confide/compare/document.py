"""A comparison as a document: headings, paragraphs, pictures and tables, before it becomes HTML or Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confide.compare.attacks import attacks
from confide.compare.charts import gallery
from confide.compare.deeper import deeper, published, reached
from confide.compare.plots import Picture
from confide.compare.result import PUBLICATION, Result
from confide.compare.rule_report import measured_table, networks_table, rules_pictures, rules_table
from confide.compare.settings import PRIVATE_WARNING
from confide.compare.tables import (
    TASKS,
    Table,
    costs,
    described,
    every_figure,
    guarantees,
    of_task,
    people,
    roles,
    strategic,
)

_KINDS: Mapping[str, str] = {
    "own table": "private records of one organisation",
    "public": "public records",
    "synthetic": "a synthetic stand-in for records, as the job file declares",
    "real nodes": "records that stayed with their nodes",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a report.

    Args:
        title: of the part.
        key: of links to it.
        paragraphs: below the title.
        pictures, tables: in their order.
        bullets: after the pictures: what is not there, and why.
        folded: whether a page may show it closed.
    """

    title: str
    key: str
    paragraphs: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    bullets: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report.

    Args:
        title, intro: its head.
        banner: what must stand above everything, "" if nothing.
        parts: in their order.
        job: the job in TOML.
    """

    title: str
    intro: tuple[str, ...]
    banner: str
    parts: tuple[Part, ...]
    job: str


def heading(result: Result) -> str:
    """Return the title of a report; figures from private records say so in it."""
    return f"{result.name}: which technique should it be?" + (f" ({PRIVATE_WARNING})" if result.private else "")


def banner(result: Result) -> str:
    """Return what stands above figures from private records, or from real nodes; "" above others."""
    if result.across is not None:
        return PUBLICATION
    return (
        f"{PRIVATE_WARNING}. These figures come from private records; no budget was charged." if result.private else ""
    )


def document(result: Result) -> Document:
    """Return a result as a document. Raises MissingExtra without matplotlib."""
    parts = [_phase(result, task) for task in TASKS if of_task(result, task)]
    tables = tuple(strategic(result, task) for task in TASKS)
    parts += [
        Part("The strategic table", "strategic", tables=tables),
        Part("Deeper", "deeper", tables=tuple(table for table in deeper(result) if len(table.columns) > 1)),
        Part(
            "What it asks of people", "people",
            tables=tuple(one for task in TASKS for one in (people(result, task), roles(result, task)) if one.rows),
        ),
        *([Part("Attacks", "attacks", tables=(found,))] if (found := attacks(result)) else []),
        *_rules(result),
        Part("Published figures", "published", tables=(published(),)),
        _how(result),
        Part("Every figure", "figures", tables=(every_figure(result),), folded=True),
    ]  # fmt: skip
    return Document(heading(result), introduction(result), banner(result), tuple(parts), result.job)


def introduction(result: Result) -> tuple[str, ...]:
    """Return what was measured, on what and where."""
    measured = len(result.records)
    return (
        f"{measured} techniques were measured on {_KINDS[result.data_kind]}, each beside what it promises. "
        f"{len(unfit(result))} did not fit; the reasons are below.",
        f"{result.machine}; confide {result.commit}. Measuring took {result.seconds:,.0f} s.",
        *(result.across.sentences()[:1] if result.across else ()),
    )


def unfit(result: Result, task: str | None = None) -> list[str]:
    """Return what was not measured, with the reason: of one phase, or of both."""
    found: list[str] = []
    for place, why in result.unfit.items():
        at, _, choice = place.partition("/")
        if at in TASKS and task in (None, at):
            found.append(f"{described(at, choice).title}: {why}")
    return found


def _phase(result: Result, task: str) -> Part:
    records, drawn = of_task(result, task), gallery(result, task)
    settings = dict.fromkeys(record.setting for record in records)
    bullets = [f"Not measured: {one}" for one in unfit(result, task)]
    bullets += [
        f"Not measured under load: {described(task, place.partition('/')[2]).title}: {why}"
        for place, why in result.unfit.items()
        if place.startswith("load/") and task == "inference"
    ]
    bullets += [f"No picture of {what}: {why}." for what, why in drawn.left_out.items()]
    tables = [costs(result, task), guarantees(result, task), *drawn.tables]
    if task == "training" and (close := reached(result)).rows:
        tables.insert(1, close)
    return Part(
        task.capitalize(), task, tuple(f"{one}." for one in settings), drawn.pictures, tuple(bullets), tuple(tables)
    )  # fmt: skip


def _rules(result: Result) -> tuple[Part, ...]:
    """Return the field's rules of thumb beside this run."""
    judged = result.rules
    tables = (rules_table(judged), *(one for one in (measured_table(judged), networks_table(result)) if one.rows))
    text = "What people say by rule of thumb, and what this run says of it."
    return (Part("Rules of thumb", "rules", (text,), rules_pictures(judged), (), tables),) if judged else ()


def _how(result: Result) -> Part:
    checks = [check.sentence()[:1].upper() + check.sentence()[1:] for check in result.link_check]
    return Part(
        "How it was measured",
        "how",
        (
            "Seconds here are of this machine, all roles in one process, without HTTP and TLS. Seconds over a link are "
            "modelled from measured work, bytes and the longest chain of messages.",
            "Requests per second, p95 and p99 under load are of real processes: one for each role that serves, and one "
            "for each client; all share this machine's cores, so that clients of their own machines would get more.",
            f"Prices: {result.prices.source}. A client's core hour costs ${result.prices.client_core_hour_dollars:g}, "
            f"a server's ${result.prices.server_core_hour_dollars:g}, a gigabyte ${result.prices.gigabyte_dollars:g}.",
        ),
        bullets=(
            *(f"Link {link.words()}" for link in result.links),
            *(checks or ["The model of links was not checked in this run."]),
        ),
    )
