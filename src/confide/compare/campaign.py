"""A comparison as a loop: what is to be measured, what the cache has, what is measured now, and what it all says.

`campaign` yields an event before and after every cell, so that a caller can draw bars; the last event has the result.
It can be killed at any time and started again: every finished cell is in the cache.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.compare import across, inference, load, validate
from confide.compare import training as trainings
from confide.compare.audited import attacked
from confide.compare.cache import Cache, Outcome, commit, file_hash, name_of, records_hash, where
from confide.compare.cells import ON_SHARES, Cell, Cells, planned, reason, variant
from confide.compare.federation import Federation
from confide.compare.hosted import artifact_bytes
from confide.compare.links import LINKS
from confide.compare.networks import NETWORKS, clear_seconds, inputs, load_network, weight_layers
from confide.compare.passes import passes_of
from confide.compare.peers import measured as peers_measured
from confide.compare.peers.planning import Peers, with_peers
from confide.compare.people import Asks, asks
from confide.compare.record import Record, Spread, machine, summarise, version
from confide.compare.result import Across, Aside, Curve, LinkCheck, Result
from confide.compare.rules import judged_rules
from confide.compare.settings import Comparison
from confide.crypto.random import SystemRandomness
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
    "audit": 5.0,
    "inference": 4.0,
    "load": 8.0,
    "size": 1.0,
    "link": 8.0,
    "network": 8.0,
    "set": 2.0,
}

#: Different rows that clients ask for under load.
_QUERIES_UNDER_LOAD = 64

#: What else is measured against the size of a network.
_SIZED: tuple[str, ...] = (
    "upload_bytes", "download_bytes", "offline_bytes", "key_bytes", "query_total_bytes", "cpu_client_seconds",
    "cpu_server_seconds", "money_dollars",
)  # fmt: skip

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
    peers: Peers = field(default_factory=Peers)
    loader: trainings.Loader = field(default_factory=trainings.Loader)
    unfit: dict[str, str] = field(default_factory=dict[str, str])
    found: list[tuple[Cell, Outcome]] = field(default_factory=list[tuple[Cell, Outcome]])
    model: Outcome | None = None
    graph: Graph | None = None

    def misfits(self, cell: Cell) -> bool:
        """Return whether an earlier cell of the same technique showed that it does not fit."""
        if cell.on:  # another model or other records than the job's
            return place_of(cell) in self.unfit
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
    peers: Peers | None = None,
) -> Iterator[Event]:
    """Measure everything that a comparison asks for.

    Args:
        comparison: from the job file.
        folder: of the cells that are kept; made if it is absent.
        seeds, queries: how many.
        only: techniques of either task, () for those of [compare].
        fresh: measure anew what the cache has.
        federation: of a job with data.nodes; it is closed in the end.
        peers: other people's frameworks to measure beside; None for none.

    Raises:
        UsageError: the folder cannot be written; or as in `Federation.begin`.
        StoreError: the journal of the federation is gone; start again when it is back.
    """
    if comparison.across != (federation is not None):
        raise UsageError("Expected a federation for a job with data.nodes, and none for another; name it: --federation")
    if federation is not None and peers is not None:
        raise UsageError("Expected no peers across real nodes: they would need the nodes' records; leave --peers out")
    with ExitStack() as stack:
        cache = Cache(folder, fresh=fresh)
        others = peers or Peers()
        if federation is None:
            cells = planned(comparison, seeds=seeds, queries=queries, only=only)
            cells = with_peers(cells, comparison, others, seeds=seeds, queries=queries)
        else:
            stack.callback(federation.close)
            cells = federation.begin(comparison, cache, seeds=seeds, queries=queries, only=only)
        state = _State(
            comparison, cells, records_hash(comparison), federation, others, unfit=dict(cells.unfit)
        )  # fmt: skip
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
    if cell.kind == "audit":
        return trainings.seeded(variant(state.comparison.table, state.comparison.base, cell.choice), cell.seed)
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
    if cell.kind == "network" and cell.on not in NETWORKS:
        parts["model"] = file_hash(state.comparison.base / cell.on)
    elif cell.task == "inference" and state.model is not None:
        parts["model"] = hashlib.sha256(state.model.graph).hexdigest()
    if (peer := state.peers.asking(cell.choice)) is not None:
        parts["peer"] = peer.name()
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
    if cell.kind == "audit":
        data, rng = state.loader.load(job), SystemRandomness()
        return Outcome(name=name, attacks=attacked(choice, job, data, shadows=cell.count, rng=rng))
    if (peer := state.peers.asking(choice)) is not None:
        theirs = peers_measured.trained(job, state.loader.load(job), peer, prices=settings.prices)
        setting = f"{_source(job)}; {peer.variant.title}: {peer.variant.how}"
        return Outcome(
            name=name, figures=theirs.figures, curve=theirs.curve, guarantee=theirs.guarantee, setting=setting
        )
    if cell.kind == "model" and job.privacy is not None and choice != ON_SHARES:
        choice = f"{choice}+dp"
    found = trainings.trained(job, choice, state.loader, links=settings.links, prices=settings.prices)
    if cell.kind == "model" and found.graph is None:
        raise JobError("Expected a training that ends with one model, to serve it")
    graph = to_onnx(found.graph) if cell.kind == "model" and found.graph is not None else b""
    title = f"; {inference.SIMULATED_TITLE}" if cell.choice == "tee" else ""
    setting = f"{_source(job)}{title}"
    return Outcome(
        name=name, figures=found.figures, curve=found.curve, guarantee=found.guarantee, graph=graph, setting=setting
    )


def _source(job: Job) -> str:
    source = job.data.set or Path(str(job.data.schema)).name  # where it lies is nobody's business
    return f"{source}, {parties_of(job)} parties, split {job.data.split}, {job.model.kind} model"


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
    settings = state.comparison
    if cell.kind == "network":
        graph = load_network(cell.on, settings.base)
        x = inputs(graph, cell.count)
    else:
        assert state.graph is not None
        graph, x = state.graph, _rows(state, cell.count)
    if cell.kind == "link":
        return Outcome(name=name, figures=_link_check(state, x, cell.choice), repeats=cell.count)
    if cell.kind == "load":
        return _under_load(state, cell, name)
    if cell.kind == "size":
        graph = mlp(graph.features, int(cell.at), graph.outputs, seed="model size")
    if (peer := state.peers.asking(cell.choice)) is not None:
        rows = np.vstack([np.asarray(silo.x, np.float64) for silo in state.loader.load(settings.job).silos])
        done = peers_measured.asked(graph, x, rows, peer, links=settings.links, prices=settings.prices)
        where_ = f"{peer.variant.title}: {peer.variant.how}"
    else:
        size = len(artifact_bytes(graph, _preprocess(state))) if cell.kind == "inference" else 0
        done = inference.asked(
            cell.choice, graph, x, links=settings.links, prices=settings.prices, attack=cell.kind == "inference",
            model_bytes=size,
        )  # fmt: skip
        title = f"; {inference.SIMULATED_TITLE}" if cell.choice == "tee" else ""
        where_ = f"all roles in one process{title}"
    setting = f"{_layers(graph)}, one query at a time, {where_}"
    return Outcome(
        name=name,
        figures=done.figures | _of_network(graph, x),
        samples=done.samples,
        guarantee=done.guarantee,
        setting=setting,
        repeats=done.repeats,
    )


def _under_load(state: _State, cell: Cell, name: str) -> Outcome:
    assert state.graph is not None
    prepared = state.loader.load(state.comparison.job).preprocess
    done = load.loaded(cell.choice, state.graph, prepared, _rows(state, _QUERIES_UNDER_LOAD), clients=cell.count)
    answers = int(done.figures["load_answers_count"])
    return Outcome(
        name=name, figures=done.figures, samples=done.samples, setting=load.words(cell.count), repeats=answers
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
        latencies = ("latency_seconds", *(f"latency_{link.name}_seconds" for link in state.comparison.links))
        for y_name in (*latencies, *_SIZED):
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
