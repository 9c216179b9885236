"""Whole networks by client, server and dealer: near their graphs, at the rounds and bytes that were derived by hand."""

from __future__ import annotations

import numpy as np
import pytest

from confide.mpc.outsourced import Outsourced
from confide.mpc.ranges import by_rows
from confide.mpc.two_party import WithDealer
from mpc import nets
from mpc.sessions import ready


def records(graph, count=2, seed=3):
    return np.random.default_rng(seed).uniform(-1, 1, (count, graph.features))


@pytest.mark.parametrize("backend", [WithDealer, Outsourced])
@pytest.mark.parametrize("name", nets.small())
def test_every_layer_gives_what_its_graph_gives(backend, name):
    graph = nets.small()[name]
    x = records(graph)
    session = ready(backend(ranges=by_rows(graph, x)), graph)
    found, truth = session.predict(x).output("client"), graph.apply(x)
    assert found.shape == truth.shape
    assert np.abs(found - truth).max() < 5e-3 * max(1.0, np.abs(truth).max())


def run_bytes(transcript, src):
    return sum(len(m.body) for m in transcript.messages if m.src == src and "/run/" in m.tag)


def test_the_mnist_network_takes_19_rounds_and_the_bytes_of_its_schedule():
    graph = nets.mnist()
    x = records(graph, 1)
    session = ready(WithDealer(), graph)
    session.deal(rows=1, count=1)
    transcript = session.predict(x)
    assert np.abs(transcript.output("client") - graph.apply(x)).max() < 2e-3
    assert transcript.depth == 18  # 19 rounds: the client's first two messages wait for nothing
    assert run_bytes(transcript, "client") == 310_712  # the note's 310,792, but the logits go one way
    assert run_bytes(transcript, "server") == 310_792 - 6_272
    keys = [len(m.body) for m in session.predict(x).messages if "/corrections/" in m.tag and m.dst == "client"]
    assert sum(keys) < 19_000 * 368  # 6.9 MB; 8.7 without early termination


@pytest.mark.slow
def test_resnet_20_takes_59_rounds():
    graph = nets.resnet20()
    x = records(graph, 1)
    session = ready(WithDealer(ranges=by_rows(graph, x)), graph)
    session.deal(rows=1, count=1)
    transcript = session.predict(x)
    assert np.abs(transcript.output("client") - graph.apply(x)).max() < 1e-2
    assert transcript.depth == 58
    # the note's figure, but the last images are not opened before their average: 4,096 words fewer, 64 more
    assert run_bytes(transcript, "client") + 80 == 3_062_864 - 8 * 4096 + 8 * 64
