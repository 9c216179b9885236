"""What fixed point costs in accuracy: a rehearsal says it before, and predictions on shares keep to it."""

from __future__ import annotations

import numpy as np
import pytest

from confide.model.graph import AveragePool, Graph, Linear, Relu, Residual
from confide.mpc import operations as op
from confide.mpc.lowering import architecture_of, program_for
from confide.mpc.predictions import LARGEST_INPUT
from confide.mpc.ranges import Ranges, by_rows
from confide.mpc.rehearsal import MOST_ROWS, largest_error, rehearsed
from confide.mpc.replicated import Replicated
from confide.mpc.two_party import WithDealer
from confide.mpc.weights import encoded
from mpc import plain
from mpc.compared_nets import compared
from mpc.nets import conv, linear, small
from mpc.sessions import ready


def records(graph, count, seed=3, low=-1.0, high=1.0):
    return np.random.default_rng(seed).uniform(low, high, (count, graph.features))


def deep(blocks=9, size=6, channels=4):
    """A chain of residual blocks of convolutions, an average pool and a matrix: errors of weights add up in it."""
    rng = np.random.default_rng(8)
    layers = [conv(rng, channels, 2, size), Relu()]
    for _ in range(blocks):
        layers += [Residual((conv(rng, channels, channels, size), Relu(), conv(rng, channels, channels, size))), Relu()]
    pool = AveragePool(channels, size, size, (size, size), (size, size))
    return Graph((*layers, pool, linear(rng, 3, channels)))


def test_a_deep_stack_on_shares_errs_by_no_more_than_was_stated():
    """The rehearsal's rows are others than those that are asked; 16 bits of fraction are the negative control."""
    graph = deep()
    stated, count = largest_error(graph, architecture_of(graph), records(graph, 32, seed=1, high=16))
    assert count == 32
    asked = records(graph, 8, seed=2, high=16)
    truth = graph.apply(asked)
    for backend in (WithDealer(), Replicated()):
        found = ready(backend, graph).predict(asked).output("client")
        assert stated / 4 < np.abs(found - truth).max() < 1.25 * stated
    coarse = rehearsed(graph, architecture_of(graph, weight_scale=op.SCALE), asked)
    assert np.abs(coarse - truth).max() > 5 * stated


@pytest.mark.parametrize("name", small())
def test_a_rehearsal_is_the_program_but_for_rounding(name):
    graph = small()[name]
    x = records(graph, 3)
    architecture = architecture_of(graph)
    run = plain.run(program_for(architecture, len(x)), encoded(graph, architecture) | {"x": x})
    found = rehearsed(graph, architecture, x)
    np.testing.assert_allclose(found, architecture.finish(run.output()), atol=1e-3)
    np.testing.assert_allclose(found, graph.apply(x), atol=1e-3)


@pytest.mark.parametrize("name", ["a transformer", "trees of classes", "an argmax"])
def test_a_rehearsal_has_every_layer(name):
    graph = compared()[name]
    x = np.rint(records(graph, 4) * 2**16) / 2**16
    architecture = architecture_of(graph, by_rows(graph, records(graph, 50)))
    np.testing.assert_allclose(rehearsed(graph, architecture, x), graph.apply(x), atol=2e-3)


def test_rows_that_no_client_could_ask_are_not_rehearsed():
    graph = small()["a matrix"]
    x = records(graph, 50)
    architecture = architecture_of(graph)
    assert largest_error(graph, architecture, x)[1] == MOST_ROWS
    assert largest_error(graph, architecture, x[:3] + 2 * LARGEST_INPUT) == (0.0, 0)


# --- how many bits weights have ---------------------------------------------------------------------------------------


def scaled(graph, *, after):
    return architecture_of(graph, Ranges(after={"0": (-after, after)}))


def test_weights_have_the_bits_that_ranges_leave():
    graph = Graph((Linear(np.ones((1, 1)), np.zeros(1)),))
    assert architecture_of(graph).weight_scale == 20
    for bits, scale in ((25, 20), (26, 19), (27, 18), (28, 17), (29, 16)):
        assert scaled(graph, after=2.0**bits - 1).weight_scale == scale
        assert scaled(graph, after=2.0**bits - 1) == scaled(graph, after=2.0 ** (bits - 1) + 1)  # whole bits are told


def test_windows_and_pools_take_their_room_first():
    rng = np.random.default_rng(0)
    wide = Graph((linear(rng, 4, 4), Relu(), linear(rng, 2, 4)))
    ranges = Ranges(before={"1": (-(2.0**28), 2.0**28)}, after={"0": (-(2.0**28), 2.0**28)})
    made = architecture_of(wide, ranges)
    assert made.weight_scale == 17  # a window of 29 bits
    program_for(made, 1)
    # 2^6 of a pool's 49 numbers and 12 bits of its factor are in the scale of what is told: 36 + 18 + 12 > 61
    pooled = Graph((conv(rng, 2, 1, 7), AveragePool(2, 7, 7, (7, 7), (1, 1))))
    assert architecture_of(pooled).weight_scale < 20
    x = records(pooled, 2)
    np.testing.assert_allclose(rehearsed(pooled, architecture_of(pooled), x), pooled.apply(x), atol=1e-3)


@pytest.mark.parametrize("largest", [2.0**24, 2.0**27])
def test_values_at_the_edge_of_their_ranges_are_right_on_shares(largest):
    graph = Graph((Linear(np.full((1, 1), largest / 16), np.zeros(1)), Linear(np.full((1, 1), 2.0**-14), np.zeros(1))))
    x = np.array([[16.0], [-16.0], [15.99]])
    backend = WithDealer(ranges=by_rows(graph, x, margin=1.0))
    found = ready(backend, graph).predict(x).output("client")
    np.testing.assert_allclose(found, graph.apply(x), atol=2e-3)


def test_a_product_of_a_finer_value_has_coarser_weights():
    graph = deep(1)
    program = program_for(architecture_of(graph), 1)
    scales = {o.name: o.scale for o in program.operations if isinstance(o, op.Load) and o.name.endswith("weight")}
    # the pool's sums of 36 numbers have 6 bits more than activations
    assert scales.pop("5.weight") == 16
    assert set(scales.values()) == {20}


def test_finer_weights_take_no_round_and_no_byte_online():
    nets = compared()
    for graph in (deep(2), nets["a transformer"], nets["a softmax of positions"], nets["an argmax"]):
        ranges = by_rows(graph, records(graph, 50))
        fine, coarse = (program_for(architecture_of(graph, ranges, weight_scale=s), 2) for s in (20, 16))
        sends = [
            [(type(o), v.shape, getattr(o, "window", 0) - getattr(o, "drop", 0))
             for o, v in zip(one.operations, one.values, strict=True) if isinstance(o, op.Load | op.Open | op.Sign)]
            for one in (fine, coarse)
        ]  # fmt: skip
        assert sends[0] == sends[1]
