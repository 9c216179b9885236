"""Whole networks at three servers: near their graphs, at the rounds, messages and bytes of their shapes."""

from __future__ import annotations

import numpy as np
import pytest

from confide.mpc.lowering import architecture_of, program_for
from confide.mpc.planner import plan
from confide.mpc.ranges import by_rows
from confide.mpc.replicated import Replicated
from mpc import nets
from mpc.sessions import ready


def records(graph, count=2, seed=3):
    return np.random.default_rng(seed).uniform(-1, 1, (count, graph.features))


@pytest.mark.parametrize("name", nets.small())
def test_every_layer_gives_what_its_graph_gives(name):
    graph = nets.small()[name]
    x = records(graph)
    found = ready(Replicated(ranges=by_rows(graph, x)), graph).predict(x).output("client")
    truth = graph.apply(x)
    assert found.shape == truth.shape
    assert np.abs(found - truth).max() < 5e-3 * max(1.0, np.abs(truth).max())


def test_the_mnist_network_takes_27_trips_and_the_bytes_of_its_shapes():
    graph = nets.mnist()
    x = records(graph, 1)
    session = ready(Replicated(), graph)
    transcript = session.predict(x)
    assert np.abs(transcript.output("client") - graph.apply(x)).max() < 2e-3
    assert transcript.depth == 27  # the query, what the third sends first, 24 rounds, the result
    assert len(transcript.messages) < 65
    sent = {(m.src, m.dst): 0 for m in transcript.messages}
    for m in transcript.messages:
        sent[m.src, m.dst] += len(m.body)
    # Openings of the note's schedule but for the input, eleven bits for each of seven signs, and headers of 32 and 16.
    words = 100_352 + 50_176 + 2 * 25_088 + 50_176 + 25_088 + 2 * 12_544 + 2 * 512
    pairs = 6272 + 3136 + 3136 + 3136 + 1568 + 1568 + 64  # of the pools and of the ReLUs
    assert pairs == 18_880
    assert sent["server", "helper"] == words + 11 * pairs // 8 + 32
    assert sent["helper", "server"] == words + 11 * pairs // 8 + 16
    assert sent["third", "server"] == 32
    assert sent["third", "helper"] < 1_150_000
    assert sum(sent.values()) < 1_900_000


@pytest.mark.parametrize("name", ["mnist", *nets.small()])
def test_the_planner_says_what_the_wire_counts(name):
    graph = nets.mnist() if name == "mnist" else nets.small()[name]
    ranges = by_rows(graph, records(graph))
    transcript = ready(Replicated(ranges=ranges), graph).predict(records(graph))
    planned = plan(program_for(architecture_of(graph, ranges), 2), "mpc-3pc").total
    assert planned.rounds == transcript.depth
    headers = {("server", "helper"): 32, ("helper", "server"): 16, ("third", "helper"): 32}
    for link, size in planned.sent.items():
        bodies = [len(m.body) for m in transcript.messages if (m.src, m.dst) == link]
        if link[0] == "client":
            assert size < bodies[0] < size + 512  # names and a hash
        else:
            assert sum(bodies) == size + headers.get(link, 0)


@pytest.mark.slow
def test_resnet_20_runs():
    graph = nets.resnet20()
    x = records(graph, 1)
    transcript = ready(Replicated(ranges=by_rows(graph, x)), graph).predict(x)
    assert np.abs(transcript.output("client") - graph.apply(x)).max() < 1e-2
    assert transcript.depth == 79  # 19 ReLUs of four rounds each
