"""A comparison as a loop: what is to be measured, what the cache has, what is measured now, and what it all says.

`campaign` yields an event before and after every cell, so that a caller can draw bars; the last event has the result.
It can be killed at any time and started again: every finished cell is in the cache.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.compare import inference, validate
from confide.compare import training as trainings
from confide.compare.cache import Cache, Outcome, commit, file_hash, name_of, records_hash, where
from confide.compare.cells import ON_SHARES, Cell, Cells, planned, reason, variant
from confide.compare.links import LINKS
from confide.compare.networks import NETWORKS, clear_seconds, inputs, load_network, weight_layers
from confide.compare.passes import passes_of
from confide.compare.people import Asks, asks
from confide.compare.record import Record, Spread, machine, summarise, version
from confide.compare.result import Aside, Curve, LinkCheck, Result
from confide.compare.rules import judged_rules
from confide.compare.settings import Comparison
from confide.errors import ConfideError, JobError
from confide.guarantee import nothing_hidden
from confide.model.graph import Graph
from confide.model.onnx import from_onnx, to_onnx
from confide.model.zoo import mlp
from confide.train.job import describe
from confide.train.sections import Job, parties_of

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
    "network": 8.0,
    "set": 2.0,
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
    loader: trainings.Loader = field(default_factory=trainings.Loader)
    unfit: dict[str, str] = field(default_factory=dict[str, str])
    found: list[tuple[Cell, Outcome]] = field(default_factory=list[tuple[Cell, Outcome]])
    model: Outcome | None = None
    graph: Graph | None = None

    def misfits(self, cell: Cell) -> bool:
        """Return whether an earlier cell of the same technique showed that it does not fit."""
        if cell.on:  # another model or other records than the job's
            return place_of(cell) in self.unfit
        return f"{cell.task}/{cell.choice}" in self.unfit or (cell.task == "inference" and self.model is None)


def campaign(
    comparison: Comparison, folder: Path, *, seeds: int, queries: int, only: tuple[str, ...] = (), fresh: bool = False
) -> Iterator[Event]:
    """Measure everything that a comparison asks for.

    Args:
        comparison: from the job file.
        folder: of the cells that are kept; made if it is absent.
        seeds, queries: how many.
        only: techniques of either task, () for those of [compare].
        fresh: measure anew what the cache has.

    Raises:
        UsageError: the folder cannot be written.
    """
    cache = Cache(folder, fresh=fresh)
    cells = planned(comparison, seeds=seeds, queries=queries, only=only)
    state = _State(comparison, cells, records_hash(comparison), unfit=dict(cells.unfit))
    took: dict[tuple[str, str], list[float]] = {}
    for done, cell in enumerate(cells.cells):
        rest = cells.cells[done:]
        yield Event(done, len(cells.cells), cell.words(), _left(rest, took))
        if state.misfits(cell):
            continue
        name = _name(state, cell)
        outcome = cache.get(name)
        cached = outcome is not None
        if outcome is None:
            outcome = _measured(state, cell, name)
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
    if cell.kind == "set":
        made = variant(state.comparison.table, state.comparison.base, cell.choice, on=cell.on)
        return trainings.seeded(made, cell.seed)
    if cell.kind == "epsilon":
        made = variant(state.comparison.table, state.comparison.base, cell.choice, epsilon=cell.at)
        return trainings.seeded(made, cell.seed)
    return trainings.seeded(state.cells.jobs[cell.choice], cell.seed)


def _model_job(state: _State) -> Job:
    """Return the job as it stands, whose model is served: on shares it is opened in the end."""
    job = state.comparison.job
    opened = None if job.shares is None else msgspec.structs.replace(job.shares, folder=None)
    return msgspec.structs.replace(job, shares=opened)


def _name(state: _State, cell: Cell) -> str:
    links = list(state.comparison.links) if cell.kind != "link" else [LINKS[_CHECKED]]
    parts: dict[str, Any] = {
        "cell": cell,
        "records": state.records,
        "links": links,
        "prices": state.comparison.prices,
        **where(),
    }
    parts["job"] = describe(_job(state, cell) if cell.task == "training" else _model_job(state), output=False)
    if cell.kind == "network" and cell.on not in NETWORKS:
        parts["model"] = file_hash(state.comparison.base / cell.on)
    elif cell.task == "inference" and state.model is not None:
        parts["model"] = hashlib.sha256(state.model.graph).hexdigest()
    return name_of(parts)


def _keep(state: _State, cell: Cell, outcome: Outcome) -> None:
    if cell.kind == "model":
        state.model = outcome
        state.graph = from_onnx(outcome.graph)
    state.found.append((cell, outcome))


def _measured(state: _State, cell: Cell, name: str) -> Outcome | None:
    """Measure a cell; one that fails leaves its reason with what does not fit, and the others go on."""
    begin = time.perf_counter()
    try:
        outcome = _trained(state, cell, name) if cell.task == "training" else _asked(state, cell, name)
    except (ConfideError, ModuleNotFoundError) as error:
        state.unfit[place_of(cell)] = reason(error)
        if cell.kind == "model":  # then there is nothing to ask
            asked = {one.choice for one in state.cells.cells if one.kind == "inference"}
            state.unfit |= {f"inference/{choice}": f"no model to serve: {reason(error)}" for choice in asked}
        return None
    return msgspec.structs.replace(outcome, seconds=time.perf_counter() - begin)


def place_of(cell: Cell) -> str:
    """Return where a cell's failure stands in `Result.unfit`."""
    if cell.on:
        return f"{cell.kind}/{cell.on}/{cell.choice}"
    return f"{cell.task}/{cell.choice}" if cell.kind in ("training", "inference") else f"{cell.kind}/{cell.choice}"


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
    setting = f"{source}, {parties_of(job)} parties, split {job.data.split}, {job.model.kind} model{title}"
    return Outcome(
        name=name, figures=found.figures, curve=found.curve, guarantee=found.guarantee, graph=graph, setting=setting
    )


def _rows(state: _State, count: int) -> Matrix:
    """Return test records as queries, repeated if they are too few."""
    x = np.asarray(state.loader.load(state.comparison.job).test.x, np.float64)
    return np.resize(x, (count, x.shape[1]))


def _asked(state: _State, cell: Cell, name: str) -> Outcome:
    settings = state.comparison
    if cell.kind == "network":
        graph = load_network(cell.on, settings.base)
        x = inputs(graph, cell.count)
    else:
        assert state.graph is not None
        graph, x = state.graph, _rows(state, cell.count)
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
        figures=done.figures | _of_network(graph, x),
        samples=done.samples,
        guarantee=done.guarantee,
        setting=setting,
        repeats=done.repeats,
    )


def _of_network(graph: Graph, x: Matrix) -> dict[str, float]:
    """Return how large and deep a network is, and what it costs in the clear."""
    found = {"parameters_count": float(graph.parameters), "weight_layers_count": float(weight_layers(graph.layers))}
    seconds = clear_seconds(graph, x)
    return found if seconds is None else found | {"clear_seconds": seconds}


def _layers(graph: Graph) -> str:
    kinds = Counter(type(layer).__name__ for layer in graph.layers)
    named = ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in kinds.items())
    return f"{graph.features} features, {named}, {graph.parameters} parameters"


def _link_check(state: _State, x: Matrix, choice: str) -> dict[str, float]:
    assert state.graph is not None
    data = state.loader.load(state.comparison.job)
    return validate.validated(state.graph, data.preprocess, choice, x, LINKS[_CHECKED])


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
        asides=tuple(_asides(state)),
    )
    return msgspec.structs.replace(found, rules=judged_rules(found))


def _of(state: _State, kind: str, on: str = "") -> dict[str, list[tuple[Cell, Outcome]]]:
    """Return the outcomes of a kind by technique."""
    grouped: dict[str, list[tuple[Cell, Outcome]]] = {}
    for cell, outcome in state.found:
        if cell.kind == kind and cell.on == on:
            grouped.setdefault(cell.choice, []).append((cell, outcome))
    return grouped


def _records(state: _State) -> Iterator[Record]:
    for kind in ("training", "inference"):
        plain = _latency(state)
        for choice, rows in _of(state, kind).items():
            made = _record(kind, choice, rows)
            if kind == "inference" and plain is not None:
                latency = made.figures["latency_seconds"].median
                added = {"added_seconds": _single(latency - plain), "factor_over_plain": _single(latency / plain)}
                made = replace(made, figures={**made.figures, **added})
            yield made


def _record(task: str, choice: str, rows: Sequence[tuple[Cell, Outcome]]) -> Record:
    outcomes = [outcome for _, outcome in rows]
    figures = summarise([outcome.figures for outcome in outcomes])
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome.samples):
        figures[name] = Spread.of(value for outcome in outcomes for value in outcome.samples.get(name, ()))
    last = outcomes[-1]
    return Record(
        task=task,
        choice=choice,
        setting=last.setting,
        figures=figures,
        guarantee=last.guarantee or nothing_hidden("not stated"),
        machine=machine(),
        version=version(),
        repeats=len(rows) if task == "training" else last.repeats,
    )


def _asides(state: _State) -> Iterator[Aside]:
    """Return what was measured on further networks and sets."""
    for on in dict.fromkeys(cell.on for cell, _ in state.found if cell.on):
        for choice, rows in _of(state, "network", on).items():
            yield Aside(kind="network", on=on, record=_record("inference", choice, rows))
        for choice, rows in _of(state, "set", on).items():
            yield Aside(kind="set", on=on, record=_record("training", choice, rows))


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
            each = passes_of(state.cells.jobs[choice]) if choice == "pooled" else 1
            yield Curve(
                kind="passes" if choice == "pooled" else "rounds", task="training", choice=choice,
                x_name="passes_count" if choice == "pooled" else "rounds_count", y_name="accuracy_share",
                x=tuple(float(each * number) for number in range(1, len(points) + 1)), y=tuple(points),
            )  # fmt: skip
    for choice, rows in _of(state, "epsilon").items():
        yield _against(rows, "epsilon", "training", choice, "epsilon_total", "accuracy_share")
    for choice, rows in _of(state, "size").items():
        for y_name in ("latency_seconds", *(f"latency_{link.name}_seconds" for link in state.comparison.links)):
            yield _against(rows, "size", "inference", choice, "parameters_count", y_name)


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
