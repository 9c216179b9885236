"""Layers that compare numbers, in programs in the clear and with the real parties: they give what the graphs give."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.model.graph import Graph
from confide.mpc import operations as op
from confide.mpc.architecture import Architecture
from confide.mpc.lowering import architecture_of, check, program_for
from confide.mpc.outsourced import Outsourced
from confide.mpc.planner import plan
from confide.mpc.ranges import by_intervals, by_rows
from confide.mpc.replicated import Replicated
from confide.mpc.two_party import WithDealer
from confide.mpc.weights import encoded
from mpc import plain
from mpc.compared_nets import compared, forest
from mpc.sessions import ready
from mpc.test_planner import on_the_wire


def records(graph, count, seed=3):
    """Inputs that the ring holds as they are."""
    x = np.random.default_rng(seed).normal(size=(count, graph.features))
    return np.rint(x * 2**16) / 2**16


def predicted(graph, x, ranges):
    architecture = Architecture.decode(architecture_of(graph, ranges).encode())
    done = plain.run(program_for(architecture, len(x)), encoded(graph, architecture) | {"x": x})
    return architecture.finish(done.output())


@pytest.mark.parametrize("name", compared())
def test_a_program_computes_its_graph(name):
    graph = compared()[name]
    x = records(graph, 4)
    ranges = by_rows(graph, records(graph, 50, seed=4))
    found, truth = predicted(graph, x, ranges), graph.apply(x)
    np.testing.assert_allclose(found, truth, atol=1.5e-3)


# --- with the real parties --------------------------------------------------------------------------------------------

BACKENDS = {"mpc-dealer": WithDealer, "mpc-outsourced": Outsourced, "mpc-3pc": Replicated}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", compared())
def test_parties_give_what_the_graph_gives(backend, name):
    graph = compared()[name]
    x = records(graph, 3)
    session = ready(BACKENDS[backend](ranges=by_rows(graph, records(graph, 50, seed=4))), graph)
    found, truth = session.predict(x).output("client"), graph.apply(x)
    assert found.shape == truth.shape
    assert np.abs(found - truth).max() < 2e-3


@pytest.mark.parametrize("backend", ["mpc-dealer", "mpc-outsourced"])
@pytest.mark.parametrize("name", ["a transformer", "trees of classes", "an argmax"])
def test_the_wire_counts_what_was_planned(backend, name):
    graph = compared()[name]
    ranges = by_rows(graph, records(graph, 50, seed=4))
    planned = plan(program_for(architecture_of(graph, ranges), 3), backend)
    assert on_the_wire(BACKENDS[backend](ranges=ranges), graph, 3) == planned.total.sent
    assert sum(layer.rounds for layer in planned.layers) == planned.total.rounds


def test_of_an_argmax_the_client_is_told_the_class_alone():
    graph = compared()["an argmax"]
    x = records(graph, 2)
    program = program_for(architecture_of(graph), 2)
    reveals = [operation for operation in program.operations if isinstance(operation, op.Reveal)]
    assert [program.values[one.a].shape for one in reveals] == [(2, 1)]
    session = ready(WithDealer(), graph)
    session.deal(rows=2)
    transcript = session.predict(x)
    last = [len(message.body) for message in transcript.messages if message.dst == "client"][-1]
    assert last == 2 * 8  # one word a row
    # Everything else that comes to the client is masked: the same rows again look different throughout.
    session.deal(rows=2)
    again = session.predict(x)
    assert transcript.output("client").tolist() == again.output("client").tolist()
    long = [[m.body for m in one.messages if m.dst == "client" and len(m.body) > 16] for one in (transcript, again)]
    assert len(long[0]) > 3
    assert all(one != other for one, other in zip(*long, strict=True))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a transformer", "gelu and softmax inside", "a norm at the end"])
def test_without_ranges_a_problem_says_that_rows_are_needed(name):
    problems = WithDealer().check(compared()[name])
    assert problems
    assert all("calibrate with rows" in str(problem) for problem in problems)


def test_intervals_are_enough_for_a_softmax_of_bounded_inputs():
    graph = compared()["gelu and softmax inside"]
    x = np.clip(records(graph, 4), -1, 1)
    np.testing.assert_allclose(predicted(graph, x, by_intervals(graph, -1.0, 1.0)), graph.apply(x), atol=5e-4)
    assert WithDealer(ranges=by_intervals(graph, -1e6, 1e6)).check(graph)


def test_rows_beyond_their_ranges_are_noticed():
    """A negative control: with too small a spread a softmax is wrong."""
    graph = compared()["a softmax of positions"]
    x = records(graph, 4)
    ranges = by_rows(graph, x / 16, margin=1.0)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(predicted(graph, x, ranges), graph.apply(x), atol=1e-2)


def test_deep_trees_and_thresholds_too_large_are_problems():
    rng = np.random.default_rng(0)
    deep = Graph((forest(rng, 3, 2, 9),))
    assert "depth=9" in str(check(deep)[0])
    shallow = forest(rng, 3, 2, 2)
    large = replace(shallow, threshold=shallow.threshold * 2.0**40)
    assert "thresholds below" in str(check(Graph((large,)))[0])


def test_an_input_at_a_threshold_goes_as_in_floating_point():
    trees = forest(np.random.default_rng(5), 3, 5, 4)
    graph = Graph((trees,))
    x = np.full((60, 3), 7.0)
    for row, threshold in enumerate(trees.threshold[:20].tolist()):
        for place, step in enumerate((-1, 0, 1)):
            x[3 * row + place] = (np.floor(threshold * 2**16) + step) / 2**16
    rows = np.rint(trees.threshold * 2**16) / 2**16  # thresholds that are inputs
    at = Graph((replace(trees, threshold=rows),))
    for one in (graph, at):
        np.testing.assert_allclose(predicted(one, x, None), one.apply(x), atol=2e-5)  # told at 2^-16
    found = ready(WithDealer(), at).predict(x).output("client")
    np.testing.assert_allclose(found, at.apply(x), atol=1e-4)


def test_gains_go_into_what_follows_a_norm():
    graph = compared()["a transformer"]
    ranges = by_rows(graph, records(graph, 50))
    loads = {o.name for o in program_for(architecture_of(graph, ranges), 1).operations if isinstance(o, op.Load)}
    assert not any(name.endswith(".gain") for name in loads)
    behind = compared()["a norm at the end"]
    loads = encoded(behind, architecture_of(behind, by_rows(behind, records(behind, 50))))
    assert {"1.gain", "1.bias"} <= set(loads)


# --- descriptions from bytes ------------------------------------------------------------------------------------------

WAVES = [20, [1, 2], [1]]
HOSTILE = [
    ["softmax", 3, 1, 12, [60, [1, 2], [1]], WAVES],
    ["softmax", 3, 1, 12, [20, [1] * 200, [1] * 199], WAVES],
    ["softmax", 3, 1, 12, [20, [1 << 40, 2], [1]], WAVES],
    ["softmax", 3, 1, 12, [20, [1, 2], []], WAVES],
    ["softmax", 3, 1, 60, WAVES, WAVES],
    ["softmax", 3, 1 << 40, 12, WAVES, WAVES],
    ["softmax", -3, -1, 12, WAVES, WAVES],
    ["softmax", 2, 1, 12, WAVES, WAVES],
    ["norm", 3, 1, True, 32 + 70, 0, WAVES],
    ["norm", 3, 1, True, 38, 200, WAVES],
    ["norm", 1 << 20, 1, True, 38, 0, WAVES],
    ["norm", 3, 0, True, 38, 0, WAVES],
    ["attention", 1, 1, 2, 12, WAVES, WAVES],
    ["attention", 1, 1, 0, 12, WAVES, WAVES],
    ["attention", 3, 1 << 30, 1, 12, WAVES, WAVES],
    ["argmax", 3, 40],
    ["argmax", 0, 12],
    ["trees", 3, 1, 9, 1, 12],
    ["trees", 3, 1 << 50, 2, 1, 12],
    ["trees", 3, 1, 0, 1, 12],
    ["trees", 2, 1, 2, 1, 12],
    ["trees", 3, 1, 2, 1, 29],
]


@pytest.mark.parametrize("part", HOSTILE)
def test_parts_of_no_layer_are_refused(part):
    body = msgspec.msgpack.encode({"features": 3, "outputs": 3, "parts": [part], "end": "", "format": 2})
    with pytest.raises(ProtocolError):
        program_for(Architecture.decode(body), 1)


@cache
def described(name):
    graph = compared()[name]
    return architecture_of(graph, by_rows(graph, records(graph, 20))).encode()


@given(st.sampled_from(sorted(compared())), st.data())
@settings(max_examples=60, deadline=None)
def test_a_spoilt_description_is_one_or_a_protocol_error(name, data):
    body = bytearray(described(name))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        program_for(Architecture.decode(bytes(body)), 2)
    except ProtocolError:
        return
