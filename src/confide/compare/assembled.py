"""What the outcomes of cells say together: records with their spread, curves, checks, what was charged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from confide.compare import across
from confide.compare.cache import Outcome, commit
from confide.compare.cells import Cell
from confide.compare.passes import passes_of
from confide.compare.people import Asks, asks
from confide.compare.record import Record, Spread, machine, summarise, version
from confide.compare.result import Across, Aside, Curve, LinkCheck, Result
from confide.compare.rules import judged_rules
from confide.compare.state import CHECKED_LINK, State
from confide.guarantee import nothing_hidden
from confide.train.job import describe
from confide.train.sections import nodes_of, parties_of

#: What else is measured against the size of a network.
_SIZED: tuple[str, ...] = (
    "upload_bytes", "download_bytes", "offline_bytes", "key_bytes", "query_total_bytes", "cpu_client_seconds",
    "cpu_server_seconds", "money_dollars",
)  # fmt: skip


def result_of(state: State) -> Result:
    """Return everything that the cells so far say."""
    settings = state.comparison
    checks = [
        LinkCheck(link=CHECKED_LINK, choice=cell.choice, queries=outcome.repeats, **outcome.figures)
        for cell, outcome in state.found
        if cell.kind == "link"
    ]
    records, people = list[Record](), list[Asks]()
    for record in _records(state):
        if state.peers.asking(record.choice) is not None:  # nobody here says how they are set up over machines
            records.append(record)
            continue
        holders = parties_of(settings.job) if record.task == "training" else 1
        people.append(asks(record.task, record.choice, record.guarantee, holders=holders))
        lines = {"lines_of_user_code_count": _single(float(people[-1].lines))}
        records.append(replace(record, figures={**record.figures, **lines}))
    found = Result(
        name=settings.job.job.name,
        job=describe(settings.job, output=False),
        records=tuple(records),
        people=tuple(people),
        curves=tuple(_curves(state)),
        unfit=state.unfit,
        machine=machine(),
        commit=commit(),
        data_kind=settings.data_kind,
        private=settings.private,
        links=settings.links,
        link_check=tuple(checks),
        prices=settings.prices,
        seconds=sum(outcome.seconds for _, outcome in state.found),
        across=_across(state),
        attacks=tuple(one for _, outcome in state.found for one in outcome.attacks),
        asides=tuple(_asides(state)),
    )
    return msgspec.structs.replace(found, rules=judged_rules(found))


def _across(state: State) -> Across | None:
    """Return what the runs across nodes were charged; None without nodes."""
    if state.federation is None:
        return None
    job = state.comparison.job
    assert job.privacy is not None
    spent = [outcome.figures["epsilon_total"] for cell, outcome in state.found if cell.kind == "training"]
    return Across(
        nodes=nodes_of(job),
        runs=len(spent),
        epsilon=math.fsum(spent),
        delta=math.fsum(job.privacy.delta for _ in spent),
        evaluated=job.data.evaluate == "federated",
        rows=across.rows_words(state.comparison),
    )


def _of(state: State, kind: str, on: str = "") -> dict[str, list[tuple[Cell, Outcome]]]:
    """Return the outcomes of a kind by technique."""
    grouped: dict[str, list[tuple[Cell, Outcome]]] = {}
    for cell, outcome in state.found:
        if cell.kind == kind and cell.on == on:
            grouped.setdefault(cell.choice, []).append((cell, outcome))
    return grouped


def _records(state: State) -> Iterator[Record]:
    for kind in ("training", "inference"):
        plain = _latency(state)
        for choice, rows in _of(state, kind).items():
            loaded = _of(state, "load").get(choice, []) if kind == "inference" else []
            made = _record(kind, choice, rows, [outcome for _, outcome in loaded])
            if kind == "inference" and plain is not None:
                latency = made.figures["latency_seconds"].median
                added = {"added_seconds": _single(latency - plain), "factor_over_plain": _single(latency / plain)}
                made = replace(made, figures={**made.figures, **added})
            yield made


def _record(task: str, choice: str, rows: Sequence[tuple[Cell, Outcome]], under_load: Sequence[Outcome] = ()) -> Record:
    """Return what a technique's cells say; figures under load stand beside those of single questions."""
    last = rows[-1][1]
    outcomes = [*(outcome for _, outcome in rows), *under_load]
    figures = summarise([outcome.figures for outcome in outcomes])
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome.samples):
        figures[name] = Spread.of(value for outcome in outcomes for value in outcome.samples.get(name, ()))
    return Record(
        task=task,
        choice=choice,
        setting="; ".join([last.setting, *(one.setting for one in under_load)]),
        figures=figures,
        guarantee=last.guarantee or nothing_hidden("not stated"),
        machine=machine(),
        version=version(),
        repeats=len(rows) if task == "training" else last.repeats,
    )


def _asides(state: State) -> Iterator[Aside]:
    """Return what was measured on further networks and sets."""
    for on in dict.fromkeys(cell.on for cell, _ in state.found if cell.on):
        for choice, rows in _of(state, "network", on).items():
            yield Aside(kind="network", on=on, record=_record("inference", choice, rows))
        for choice, rows in _of(state, "set", on).items():
            yield Aside(kind="set", on=on, record=_record("training", choice, rows))


def _single(value: float) -> Spread:
    return Spread(value, value, value, value)


def _latency(state: State) -> float | None:
    rows = _of(state, "inference").get("plain", [])
    return float(np.median(rows[0][1].samples["latency_seconds"])) if rows else None


def _curves(state: State) -> Iterator[Curve]:
    for choice, rows in _of(state, "training").items():
        lines = [outcome.curve for _, outcome in rows if outcome.curve]
        if lines:
            points = [Spread.of(many) for many in zip(*lines, strict=False)]
            each = passes_of(state.cells.jobs[choice]) if choice == "pooled" else 1
            yield Curve(
                kind="passes" if choice == "pooled" else "rounds", task="training", choice=choice,
                x_name="passes_count" if choice == "pooled" else "rounds_count", y_name=_quality(rows),
                x=tuple(float(each * number) for number in range(1, len(points) + 1)), y=tuple(points),
            )  # fmt: skip
    for choice, rows in _of(state, "epsilon").items():
        yield _against(rows, "epsilon", "training", choice, "epsilon_total", _quality(rows))
    for choice, rows in _of(state, "size").items():
        latencies = ("latency_seconds", *(f"latency_{link.name}_seconds" for link in state.comparison.links))
        for y_name in (*latencies, *_SIZED):
            yield _against(rows, "size", "inference", choice, "parameters_count", y_name)


def _quality(rows: Sequence[tuple[Cell, Outcome]]) -> str:
    """Return the figure that says how good these models are."""
    return "concordance_share" if "concordance_share" in rows[0][1].figures else "accuracy_share"


def _against(rows: Sequence[tuple[Cell, Outcome]], kind: Any, task: str, choice: str, x: str, y: str) -> Curve:
    points: dict[float, list[float]] = {}
    for cell, outcome in rows:
        place = outcome.figures[x] if kind == "size" else cell.at
        points.setdefault(place, []).extend(outcome.samples.get(y, ()) or [outcome.figures[y]])
    ordered = sorted(points)
    return Curve(
        kind=kind, task=task, choice=choice, x_name=x, y_name=y,
        x=tuple(ordered), y=tuple(Spread.of(points[place]) for place in ordered),
    )  # fmt: skip
