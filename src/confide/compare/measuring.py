"""How one cell is measured: a training, predictions of one technique, attacks, a link."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.compare import across, inference, load, validate
from confide.compare import training as trainings
from confide.compare.audited import attacked
from confide.compare.cache import Cache, Outcome
from confide.compare.cells import ON_SHARES, Cell, reason
from confide.compare.hosted import artifact_bytes
from confide.compare.links import LINKS
from confide.compare.networks import clear_seconds, inputs, load_network, weight_layers
from confide.compare.peers import measured as peers_measured
from confide.compare.state import CHECKED_LINK, State, job_of, place_of
from confide.crypto.random import SystemRandomness
from confide.errors import ConfideError, JobError, StoreError
from confide.model import artifact as artifacts
from confide.model.graph import Graph
from confide.model.onnx import to_onnx
from confide.model.preprocess import Preprocess
from confide.model.zoo import mlp
from confide.train.sections import Job, parties_of

Matrix = NDArray[np.float64]

#: Different rows that clients ask for under load.
_QUERIES_UNDER_LOAD = 64


def measured(state: State, cell: Cell, name: str, cache: Cache) -> Outcome | None:
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


def _trained(state: State, cell: Cell, name: str) -> Outcome:
    job, settings = job_of(state, cell), state.comparison
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
    parted = "a table each" if job.data.tables else f"split {job.data.split}"
    return f"{source}, {parties_of(job)} parties, {parted}, {job.model.kind} model"


def _rows(state: State, count: int) -> Matrix:
    """Return test records as queries, repeated if they are too few; across nodes, rows that are none of theirs."""
    if state.federation is not None:
        return across.rows_of(state.comparison, _preprocess(state), count)
    x = np.asarray(state.loader.load(state.comparison.job).test.x, np.float64)
    return np.resize(x, (count, x.shape[1]))


def _preprocess(state: State) -> Preprocess:
    """Return how the served model takes rows."""
    if state.federation is None:
        return state.loader.load(state.comparison.job).preprocess
    assert state.model is not None
    return artifacts.decode(state.model.model, trust=state.federation.signer).preprocess


def _asked(state: State, cell: Cell, name: str) -> Outcome:
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


def _under_load(state: State, cell: Cell, name: str) -> Outcome:
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


def _link_check(state: State, x: Matrix, choice: str) -> dict[str, float]:
    assert state.graph is not None
    return validate.validated(state.graph, _preprocess(state), choice, x, LINKS[CHECKED_LINK])
