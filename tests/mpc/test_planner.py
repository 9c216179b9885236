"""The planner's figures are those of the wire, to the byte, and those that were derived by hand."""

from __future__ import annotations

import numpy as np
import pytest

from confide.mpc.agreed import AGREEMENT_BYTES
from confide.mpc.lowering import architecture_of, program_for
from confide.mpc.outsourced import Outsourced
from confide.mpc.planner import plan
from confide.mpc.two_party import WithDealer
from confide.wire import decode
from mpc.nets import mnist, resnet20, small
from mpc.sessions import ready


def on_the_wire(backend, graph, rows):
    """Return bytes by (from, to) of a prediction's messages without its first one to each, and with their bodies' x."""
    session = ready(backend, graph)
    session.deal(rows=rows)
    x = np.random.default_rng(0).uniform(-1, 1, (rows, graph.features))
    found, headers = {}, 0
    for message in session.predict(x).messages:
        size = len(message.body)
        if message.tag.endswith("/ask"):
            share = decode(message.body, dict, max_bytes=1 << 24).get("share", b"")
            size, headers = len(share), headers + 1
        elif backend.name == "mpc-outsourced" and message.tag.endswith("/run/2"):
            size -= AGREEMENT_BYTES
        if size:
            found[message.src, message.dst] = found.get((message.src, message.dst), 0) + size
    assert headers >= 1
    return found


@pytest.mark.parametrize("backend", [WithDealer(), Outsourced()], ids=lambda backend: backend.name)
@pytest.mark.parametrize("name", ["a residual block", "a pool with an edge", "a polynomial", "a matrix", "a tangent"])
def test_the_wire_counts_what_was_planned(backend, name):
    graph = small()[name]
    planned = plan(program_for(architecture_of(graph), 3), backend.name)
    assert on_the_wire(backend, graph, 3) == planned.total.sent


def test_the_mnist_network():
    found = plan(program_for(architecture_of(mnist()), 1))
    assert found.total.rounds == 19
    assert found.total.sent == {("client", "server"): 310_712, ("server", "client"): 304_520}
    assert found.total.comparisons == 14_112 + 4_768
    assert found.total.products == 28 * 28 * 16 * 9 + 14 * 14 * 32 * 16 * 9 + 1568 * 64 + 64 * 10
    assert sum(layer.rounds for layer in found.layers) == 19
    labels = [layer.label for layer in found.layers]
    assert labels == [
        "input",
        "0 conv",
        "1 max",
        "2 relu",
        "3 conv",
        "4 max",
        "5 relu",
        "6 linear",
        "7 relu",
        "8 linear",
        "output",
    ]


def test_resnet_20_and_its_time():
    found = plan(program_for(architecture_of(resnet20()), 1))
    assert found.total.rounds == 59
    assert found.total.sent == {("client", "server"): 3_030_528, ("server", "client"): 3_006_032}
    seconds = found.seconds(one_way_seconds=0.02, bits_per_second=2e8)
    assert seconds == pytest.approx(59 * 0.02 + 8 * 3_030_528 / 2e8)


def test_two_servers_open_the_input_and_answer_the_client():
    found = plan(program_for(architecture_of(small()["a matrix"]), 2), "mpc-outsourced")
    assert found.total.sent == {
        ("client", "server"): 16,
        ("client", "helper"): 80,
        ("server", "helper"): 80,
        ("helper", "server"): 80,
        ("server", "client"): 48,
        ("helper", "client"): 48,
    }
    assert found.total.rounds == 3
