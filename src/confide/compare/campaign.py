"""A comparison as a loop: what is to be measured, what the cache has, what is measured now, and what it all says.

`campaign` yields an event before and after every cell, so that a caller can draw bars; the last event has the result.
It can be killed at any time and started again: every finished cell is in the cache.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.compare import across, inference, validate
from confide.compare import training as trainings
from confide.compare.cache import Cache, Outcome, commit, name_of, records_hash, where
from confide.compare.cells import ON_SHARES, Cell, Cells, planned, reason, variant
from confide.compare.federation import Federation
from confide.compare.links import LINKS
from confide.compare.people import Asks, asks
from confide.compare.record import Record, Spread, machine, summarise, version
from confide.compare.result import Across, Curve, LinkCheck, Result
from confide.compare.settings import Comparison
from confide.errors import ConfideError, JobError, StoreError, UsageError
from confide.guarantee import nothing_hidden
from confide.model import artifact as artifacts
from confide.model.graph import Graph
from confide.model.onnx import from_onnx, to_onnx
from confide.model.preprocess import Preprocess
from confide.model.zoo import mlp
from confide.train.job import describe
from confide.train.sections import Job, nodes_of, parties_of

__all__ = ["Curve", "Event", "LinkCheck", "Result", "campaign"]

Matrix = NDArray[np.float64]

#: Seconds that a cell is taken to need before any of its kind was measured.
_GUESS: Mapping[str, float] = {
    "model": 1.0,
    "training": 1.0,
    "epsilon": 1.0,
    "inference": 4.0,
    "size": 1.0,
    "link": 8.0,
}

#: Over which link the model of links is checked.
_CHECKED = "wan"


@dataclass(frozen=True, slots=True)
class Event:
    """A step of a campaign.

    Args:
        done, steps: cells that are finished, and all of them.
        words: what is being done.
        left_seconds: an estimate of the time that is left, from the cells so far.
        cached: whether the cell that was just finished came from the cache.
        result: at the end.
        so_far: returns what the finished cells say; valid until the next event.
    """

    done: int
    steps: int
    words: str
    left_seconds: float
    cached: bool = False
    result: Result | None = None
    so_far: Callable[[], Result] | None = None


@dataclass(slots=True)
class _State:
    """What a campaign has so far."""

    comparison: Comparison
    cells: Cells
    records: str
    federation: Federation | None = None
    loader: trainings.Loader = field(default_factory=trainings.Loader)
    unfit: dict[str, str] = field(default_factory=dict[str, str])
    found: list[tuple[Cell, Outcome]] = field(default_factory=list[tuple[Cell, Outcome]])
    model: Outcome | None = None
    graph: Graph | None = None

    def misfits(self, cell: Cell) -> bool:
        """Return whether an earlier cell of the same technique showed that it does not fit."""
        if f"{cell.task}/{cell.choice}" in self.unfit:
            return True
        if cell.task == "training" or self.model is not None:
            return False
        if self.federation is not None and cell.kind == "inference":
            self.unfit[f"inference/{cell.choice}"] = "no model to serve: no run across the nodes was finished"
        return True


def campaign(
    comparison: Comparison,
    folder: Path,
    *,
    seeds: int,
    queries: int,
    only: tuple[str, ...] = (),
    fresh: bool = False,
    federation: Federation | None = None,
) -> Iterator[Event]:
    """Measure everything that a comparison asks for.

    Args:
        comparison: from the job file.
        folder: of the cells that are kept; made if it is absent.
        seeds, queries: how many.
        only: techniques of either task, () for those of [compare].
        fresh: measure anew what the cache has.
        federation: of a job with data.nodes; it is closed in the end.

    Raises:
        UsageError: the folder cannot be written; or as in `Federation.begin`.
        StoreError: the journal of the federation is gone; start again when it is back.
    """
    if comparison.across != (federation is not None):
        raise UsageError("Expected a federation for a job with data.nodes, and none for another; name it: --federation")
    with ExitStack() as stack:
        cache = Cache(folder, fresh=fresh)
        if federation is None:
            cells = planned(comparison, seeds=seeds, queries=queries, only=only)
        else:
            stack.callback(federation.close)
            cells = federation.begin(comparison, cache, seeds=seeds, queries=queries, only=only)
        state = _State(comparison, cells, records_hash(comparison), unfit=dict(cells.unfit), federation=federation)
        yield from _measuring(state, cache)


def _measuring(state: _State, cache: Cache) -> Iterator[Event]:
    cells = state.cells
    took: dict[tuple[str, str], list[float]] = {}
    for done, cell in enumerate(cells.cells):
        rest = cells.cells[done:]
        yield Event(done, len(cells.cells), cell.words(), _left(rest, took))
        if state.misfits(cell):
            continue
        name = _name(state, cell)
        outcome = cache.get(name) if not _goes_on(state, cell, cache) else None
        cached = outcome is not None
        if outcome is None:
            outcome = _measured(state, cell, name, cache)
            if outcome is None:
                continue
            cache.put(outcome)
            took.setdefault((cell.kind, cell.choice), []).append(outcome.seconds)
        _keep(state, cell, outcome)
        yield Event(
            done + 1, len(cells.cells), cell.words(), _left(rest[1:], took), cached, so_far=lambda: _result(state)
        )
    yield Event(len(cells.cells), len(cells.cells), "done", 0.0, result=_result(state))


def _left(cells: Sequence[Cell], took: Mapping[tuple[str, str], Sequence[float]]) -> float:
    """Return an estimate for the rest: what the same technique took, else others of its kind, else a guess."""
    total = 0.0
    for cell in cells:
        same = took.get((cell.kind, cell.choice), ())
        kind = [seconds for (kind, _), many in took.items() if kind == cell.kind for seconds in many]
        total += float(np.mean(same)) if same else float(np.mean(kind)) if kind else _GUESS[cell.kind]
    return total


def _job(state: _State, cell: Cell) -> Job:
    """Return the job that a training cell runs."""
    if cell.kind == "model":
        return _model_job(state)
    if cell.kind == "epsilon":
        made = variant(state.comparison.table, state.comparison.base, cell.choice, epsilon=cell.at)
        return trainings.seeded(made, cell.seed)
    return trainings.seeded(state.cells.jobs[cell.choice], cell.seed)


def _model_job(state: _State) -> Job:
    """Return the job as it stands, whose model is served: on shares it is opened in the end."""
    job = state.comparison.job
    opened = None if job.shares is None else msgspec.structs.replace(job.shares, folder=None)
    return msgspec.structs.replace(job, shares=opened)


def _goes_on(state: _State, cell: Cell, cache: Cache) -> bool:
    """Return whether a cell's run across nodes is not over, although its outcome may be there."""
    return state.federation is not None and cell.kind == "training" and state.federation.interrupted(cell, cache)


def _name(state: _State, cell: Cell) -> str:
    if state.federation is not None and cell.kind == "training":
        return state.federation.name(cell)
    links = list(state.comparison.links) if cell.kind != "link" else [LINKS[_CHECKED]]
    parts: dict[str, Any] = {
        "cell": cell,
        "records": state.records,
        "links": links,
        "prices": state.comparison.prices,
        **where(),
    }
    parts["job"] = describe(_job(state, cell) if cell.task == "training" else _model_job(state), output=False)
    if cell.task == "inference" and state.model is not None:
        parts["model"] = hashlib.sha256(state.model.graph).hexdigest()
    return name_of(parts)


def _keep(state: _State, cell: Cell, outcome: Outcome) -> None:
    if cell.kind == "model" or (state.federation is not None and cell.kind == "training" and state.model is None):
        state.model = outcome
        state.graph = from_onnx(outcome.graph)
    state.found.append((cell, outcome))


def _measured(state: _State, cell: Cell, name: str, cache: Cache) -> Outcome | None:
    """Measure a cell; one that fails leaves its reason with what does not fit, and the others go on."""
    begin = time.perf_counter()
    try:
        if state.federation is not None and cell.task == "training":
            outcome = state.federation.trained(cell, cache)
        else:
            outcome = _trained(state, cell, name) if cell.task == "training" else _asked(state, cell, name)
    except StoreError:
        raise  # what was done is not safe: it goes on from there
    except (ConfideError, ModuleNotFoundError) as error:
        where_ = (
            f"{cell.task}/{cell.choice}" if cell.kind in ("training", "inference") else f"{cell.kind}/{cell.choice}"
        )
        state.unfit[where_] = reason(error)
        if cell.kind == "model":  # then there is nothing to ask
            asked = {one.choice for one in state.cells.cells if one.kind == "inference"}
            state.unfit |= {f"inference/{choice}": f"no model to serve: {reason(error)}" for choice in asked}
        return None
    return msgspec.structs.replace(outcome, seconds=time.perf_counter() - begin)


def _trained(state: _State, cell: Cell, name: str) -> Outcome:
    job, settings = _job(state, cell), state.comparison
    choice = cell.choice
    if cell.kind == "model" and job.privacy is not None and choice != ON_SHARES:
        choice = f"{choice}+dp"
    found = trainings.trained(job, choice, state.loader, links=settings.links, prices=settings.prices)
    if cell.kind == "model" and found.graph is None:
        raise JobError("Expected a training that ends with one model, to serve it")
    graph = to_onnx(found.graph) if cell.kind == "model" and found.graph is not None else b""
    title = f"; {inference.SIMULATED_TITLE}" if cell.choice == "tee" else ""
    source = job.data.set or Path(str(job.data.schema)).name  # where it lies is nobody's business
    parted = "a table each" if job.data.tables else f"split {job.data.split}"
    setting = f"{source}, {parties_of(job)} parties, {parted}, {job.model.kind} model{title}"
    return Outcome(
        name=name, figures=found.figures, curve=found.curve, guarantee=found.guarantee, graph=graph, setting=setting
    )


def _rows(state: _State, count: int) -> Matrix:
    """Return test records as queries, repeated if they are too few; across nodes, rows that are none of theirs."""
    if state.federation is not None:
        return across.rows_of(state.comparison, _preprocess(state), count)
    x = np.asarray(state.loader.load(state.comparison.job).test.x, np.float64)
    return np.resize(x, (count, x.shape[1]))


def _preprocess(state: _State) -> Preprocess:
    """Return how the served model takes rows."""
    if state.federation is None:
        return state.loader.load(state.comparison.job).preprocess
    assert state.model is not None
    return artifacts.decode(state.model.model, trust=state.federation.signer).preprocess


def _asked(state: _State, cell: Cell, name: str) -> Outcome:
    assert state.graph is not None
    settings, graph, x = state.comparison, state.graph, _rows(state, cell.count)
    if cell.kind == "link":
        return Outcome(name=name, figures=_link_check(state, x, cell.choice), repeats=cell.count)
    if cell.kind == "size":
        graph = mlp(graph.features, int(cell.at), graph.outputs, seed="model size")
    done = inference.asked(
        cell.choice, graph, x, links=settings.links, prices=settings.prices, attack=cell.kind == "inference"
    )
    title = f"; {inference.SIMULATED_TITLE}" if cell.choice == "tee" else ""
    setting = f"{_layers(graph)}, one query at a time, all roles in one process{title}"
    return Outcome(
        name=name,
        figures=done.figures | {"parameters_count": float(graph.parameters)},
        samples=done.samples,
        guarantee=done.guarantee,
        setting=setting,
        repeats=done.repeats,
    )


def _layers(graph: Graph) -> str:
    kinds = [type(layer).__name__ for layer in graph.layers]
    return f"{graph.features} features, {', '.join(kinds)}, {graph.parameters} parameters"


def _link_check(state: _State, x: Matrix, choice: str) -> dict[str, float]:
    assert state.graph is not None
    return validate.validated(state.graph, _preprocess(state), choice, x, LINKS[_CHECKED])


# --- what it says -----------------------------------------------------------------------------------------------------


def _result(state: _State) -> Result:
    settings = state.comparison
    checks = [
        LinkCheck(link=_CHECKED, choice=cell.choice, queries=outcome.repeats, **outcome.figures)
        for cell, outcome in state.found
        if cell.kind == "link"
    ]
    records, people = list[Record](), list[Asks]()
    for record in _records(state):
        holders = parties_of(settings.job) if record.task == "training" else 1
        people.append(asks(record.task, record.choice, record.guarantee, holders=holders))
        lines = {"lines_of_user_code_count": _single(float(people[-1].lines))}
        records.append(replace(record, figures={**record.figures, **lines}))
    return Result(
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
    )


def _across(state: _State) -> Across | None:
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


def _of(state: _State, kind: str) -> dict[str, list[tuple[Cell, Outcome]]]:
    """Return the outcomes of a kind by technique."""
    grouped: dict[str, list[tuple[Cell, Outcome]]] = {}
    for cell, outcome in state.found:
        if cell.kind == kind:
            grouped.setdefault(cell.choice, []).append((cell, outcome))
    return grouped


def _records(state: _State) -> Iterator[Record]:
    for kind in ("training", "inference"):
        plain = _latency(state)
        for choice, rows in _of(state, kind).items():
            outcomes = [outcome for _, outcome in rows]
            figures = summarise([outcome.figures for outcome in outcomes])
            for name in dict.fromkeys(name for outcome in outcomes for name in outcome.samples):
                figures[name] = Spread.of(value for outcome in outcomes for value in outcome.samples.get(name, ()))
            if kind == "inference" and plain is not None:
                latency = figures["latency_seconds"].median
                figures["added_seconds"] = _single(latency - plain)
                figures["factor_over_plain"] = _single(latency / plain)
            last = outcomes[-1]
            yield Record(
                task=kind,
                choice=choice,
                setting=last.setting,
                figures=figures,
                guarantee=last.guarantee or nothing_hidden("not stated"),
                machine=machine(),
                version=version(),
                repeats=len(rows) if kind == "training" else last.repeats,
            )


def _single(value: float) -> Spread:
    return Spread(value, value, value, value)


def _latency(state: _State) -> float | None:
    rows = _of(state, "inference").get("plain", [])
    return float(np.median(rows[0][1].samples["latency_seconds"])) if rows else None


def _curves(state: _State) -> Iterator[Curve]:
    for choice, rows in _of(state, "training").items():
        lines = [outcome.curve for _, outcome in rows if outcome.curve]
        if lines:
            points = [Spread.of(many) for many in zip(*lines, strict=False)]
            yield Curve(
                kind="rounds", task="training", choice=choice, x_name="rounds_count", y_name=_quality(rows),
                x=tuple(float(number) for number in range(1, len(points) + 1)), y=tuple(points),
            )  # fmt: skip
    for choice, rows in _of(state, "epsilon").items():
        yield _against(rows, "epsilon", "training", choice, "epsilon_total", _quality(rows))
    for choice, rows in _of(state, "size").items():
        for y_name in ("latency_seconds", *(f"latency_{link.name}_seconds" for link in state.comparison.links)):
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
