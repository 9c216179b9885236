"""A comparison as a loop: what is to be measured, what the cache has, what is measured now, and what the cells say.

`campaign` yields an event before and after every cell, so that a caller can draw bars; the last event has the result.
It can be killed at any time and started again: every finished cell is in the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from confide.compare.assembled import result_of
from confide.compare.cache import Cache, Outcome, file_hash, name_of, records_hash, where
from confide.compare.cells import Cell, planned
from confide.compare.federation import Federation
from confide.compare.links import LINKS
from confide.compare.measuring import measured
from confide.compare.networks import NETWORKS
from confide.compare.peers.planning import Peers, with_peers
from confide.compare.result import Curve, LinkCheck, Result
from confide.compare.settings import Comparison
from confide.compare.state import CHECKED_LINK, State, job_of, model_job
from confide.compare.training import Loader
from confide.errors import ConfideError, JobError, UsageError
from confide.model.onnx import from_onnx
from confide.train.job import describe

__all__ = ["Curve", "Event", "LinkCheck", "Result", "campaign"]

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
        DataError: the schema or a table cannot be read.
        StoreError: the journal of the federation is gone; start again when it is back.
    """
    if comparison.across != (federation is not None):
        raise UsageError("Expected a federation for a job with data.nodes, and none for another; name it: --federation")
    if federation is not None and peers is not None:
        raise UsageError("Expected no peers across real nodes: they would need the nodes' records; leave --peers out")
    with ExitStack() as stack:
        cache = Cache(folder, fresh=fresh)
        others, loader = peers or Peers(), Loader()
        if federation is None:
            with suppress(JobError):  # how the job stands may contradict this machine; then its other trainings run
                loader.load(comparison.job)  # a schema or a table that cannot be read ends it here
            cells = planned(comparison, seeds=seeds, queries=queries, only=only)
            cells = with_peers(cells, comparison, others, seeds=seeds, queries=queries)
        else:
            stack.callback(federation.close)
            cells = federation.begin(comparison, cache, seeds=seeds, queries=queries, only=only)
        state = State(
            comparison, cells, records_hash(comparison), federation, others, loader, dict(cells.unfit)
        )  # fmt: skip
        yield from _measuring(state, cache)


def _measuring(state: State, cache: Cache) -> Iterator[Event]:
    cells = state.cells
    took: dict[tuple[str, str], list[float]] = {}
    for done, cell in enumerate(cells.cells):
        rest = cells.cells[done:]
        yield Event(done, len(cells.cells), cell.words(), _left(rest, took))
        if state.misfits(cell):
            continue
        name = _name(state, cell)
        outcome = cache.get(name) if not _goes_on(state, cell, cache) else None
        if outcome is not None and cell.kind == "model" and not _has_model(outcome):
            outcome = None  # damaged: it is measured again
        cached = outcome is not None
        if outcome is None:
            outcome = measured(state, cell, name, cache)
            if outcome is None:
                continue
            cache.put(outcome)
            took.setdefault((cell.kind, cell.choice), []).append(outcome.seconds)
        _keep(state, cell, outcome)
        yield Event(
            done + 1, len(cells.cells), cell.words(), _left(rest[1:], took), cached, so_far=lambda: result_of(state)
        )
    yield Event(len(cells.cells), len(cells.cells), "done", 0.0, result=result_of(state))


def _left(cells: Sequence[Cell], took: Mapping[tuple[str, str], Sequence[float]]) -> float:
    """Return an estimate for the rest: what the same technique took, else others of its kind, else a guess."""
    total = 0.0
    for cell in cells:
        same = took.get((cell.kind, cell.choice), ())
        kind = [seconds for (kind, _), many in took.items() if kind == cell.kind for seconds in many]
        total += float(np.mean(same)) if same else float(np.mean(kind)) if kind else _GUESS[cell.kind]
    return total


def _goes_on(state: State, cell: Cell, cache: Cache) -> bool:
    """Return whether a cell's run across nodes is not over, although its outcome may be there."""
    return state.federation is not None and cell.kind == "training" and state.federation.interrupted(cell, cache)


def _name(state: State, cell: Cell) -> str:
    if state.federation is not None and cell.kind == "training":
        return state.federation.name(cell)
    links = list(state.comparison.links) if cell.kind != "link" else [LINKS[CHECKED_LINK]]
    parts: dict[str, Any] = {
        "cell": cell,
        "records": state.records,
        "links": links,
        "prices": state.comparison.prices,
        **where(),
    }
    parts["job"] = describe(job_of(state, cell) if cell.task == "training" else model_job(state), output=False)
    if cell.kind == "network" and cell.on not in NETWORKS:
        parts["model"] = file_hash(state.comparison.base / cell.on)
    elif cell.task == "inference" and state.model is not None:
        parts["model"] = hashlib.sha256(state.model.graph).hexdigest()
    if (peer := state.peers.asking(cell.choice)) is not None:
        parts["peer"] = peer.name()
    return name_of(parts)


def _has_model(outcome: Outcome) -> bool:
    try:
        return bool(from_onnx(outcome.graph).layers)
    except ConfideError:
        return False


def _keep(state: State, cell: Cell, outcome: Outcome) -> None:
    if cell.kind == "model" or (state.federation is not None and cell.kind == "training" and state.model is None):
        state.model = outcome
        state.graph = from_onnx(outcome.graph)
    state.found.append((cell, outcome))
