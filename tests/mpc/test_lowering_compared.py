"""Layers that compare numbers, in programs in the clear and with the real parties: they give what the graphs give."""

from __future__ import annotations

import numpy as np
import pytest

from confide.mpc.architecture import Architecture
from confide.mpc.lowering import architecture_of, program_for
from confide.mpc.outsourced import Outsourced
from confide.mpc.ranges import by_rows
from confide.mpc.replicated import Replicated
from confide.mpc.two_party import WithDealer
from confide.mpc.weights import encoded
from mpc import plain
from mpc.compared_nets import compared
from mpc.sessions import ready


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
    print(name, np.abs(found - truth).max())
    np.testing.assert_allclose(found, truth, atol=1.5e-3)


# --- with the real parties --------------------------------------------------------------------------------------------

BACKENDS = {"mpc-dealer": WithDealer, "mpc-outsourced": Outsourced, "mpc-3pc": Replicated}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", compared())
def test_parties_give_what_the_graph_gives(backend, name):
    graph = compared()[name]
    x = records(graph, 3)
    session = ready(BACKENDS[backend](ranges=by_rows(graph, records(graph, 50, seed=4))), graph)
    transcript = session.predict(x)
    found, truth = transcript.output("client"), graph.apply(x)
    assert found.shape == truth.shape
    print(backend, name, np.abs(found - truth).max(), transcript.depth)
    assert np.abs(found - truth).max() < 2e-3
