"""Programs of graphs: what they compute is the graph, and rounds and openings are those derived by hand."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ModelError, ProtocolError
from confide.model.graph import Graph, Linear, Polynomial, Relu
from confide.model.layers import Residual
from confide.mpc import operations as op
from confide.mpc.architecture import Architecture
from confide.mpc.lowering import architecture_of, check, program_for
from confide.mpc.ranges import by_intervals, by_rows
from confide.mpc.schedule import rounds
from confide.mpc.weights import encoded
from mpc import plain
from mpc.nets import linear, mnist, resnet20, small


def records(graph, count, seed=3):
    return np.random.default_rng(seed).uniform(-1, 1, (count, graph.features))


def predicted(graph, x, ranges=None):
    architecture = architecture_of(graph, ranges)
    done = plain.run(program_for(architecture, len(x)), encoded(graph, architecture) | {"x": x})
    return architecture.finish(done.output())


@pytest.mark.parametrize("name", small())
def test_a_program_computes_its_graph(name):
    graph = small()[name]
    x = records(graph, 3)
    np.testing.assert_allclose(predicted(graph, x), graph.apply(x), atol=1.5e-3)


@pytest.mark.parametrize("name", small())
@pytest.mark.parametrize("source", [by_rows, lambda graph, x, narrow: by_intervals(graph, -1.0, 1.0, narrow=narrow)])
def test_a_program_keeps_the_windows_that_ranges_give(name, source):
    graph = small()[name]
    x = records(graph, 4)
    np.testing.assert_allclose(predicted(graph, x, source(graph, x, narrow=True)), graph.apply(x), atol=2e-3)


def test_a_window_that_is_too_narrow_is_noticed():
    """A negative control of the above: the checks of the clear run have teeth."""
    graph = small()["a residual block"]
    x = records(graph, 4)
    narrow = by_rows(graph, x / 64, margin=1.0, narrow=True)
    with pytest.raises(AssertionError, match="Sign"):
        predicted(graph, x, narrow)


def messages(graph, rows=1):
    """Return rounds, and the bytes of openings, of signs, of the input and of the output."""
    program = program_for(architecture_of(graph), rows)
    sizes = {op.Load: 0, op.Open: 0, op.Sign: 0, op.Reveal: 0}
    schedule = rounds(program)
    for each in schedule.rounds:
        for number in each.sends:
            operation, count = program.operations[number], program.values[number].count
            each_bytes = -(-(64 - operation.bits) // 8) if isinstance(operation, op.Reveal) else 8
            sizes[type(operation)] += -(-count // 8) if isinstance(operation, op.Sign) else each_bytes * count
    return len(schedule.rounds), sizes


def test_the_mnist_network_costs_what_was_derived():
    # conv1 Y, pool1 z twice, ReLU1 x, conv2 Y, pool2 z twice, ReLU2 x, fc1 Y, x; bits of each comparison
    openings = 100_352 + 50_176 + 25_088 + 25_088 + 50_176 + 25_088 + 12_544 + 12_544 + 512 + 512
    signs = 784 + 392 + 392 + 392 + 196 + 196 + 8
    count, sizes = messages(mnist())
    assert count == 19
    assert sizes == {op.Load: 6_272, op.Open: openings, op.Sign: signs, op.Reveal: 60}
    # The prototype's 310,792 B had the output at 80 B in both directions; now 48 of 64 bits, from the server alone.
    assert 6_272 + openings + signs == 310_792 - 80
    assert openings + signs + 60 == 304_500


def test_resnet_20_costs_what_was_derived():
    count, sizes = messages(resnet20())
    relus = 188_416
    assert count == 59
    # The prototype opened the last ReLU's 4,096 numbers; now the 64 sums over its channels, which the matrix takes.
    openings = 16 * relus - 8 * (4_096 - 64)
    assert sizes == {op.Load: 24_576, op.Open: openings, op.Sign: relus // 8, op.Reveal: 60}
    assert 24_576 + openings + relus // 8 == 3_062_864 - 80 - 32_256


def test_the_networks_compute_what_their_graphs_do():
    graph = mnist()
    x = np.random.default_rng(1).uniform(0, 1, (2, 784))
    np.testing.assert_allclose(predicted(graph, x), graph.apply(x), atol=1e-3)


@pytest.mark.slow
def test_resnet_20_computes_what_its_graph_does():
    graph = resnet20()
    x = np.random.default_rng(1).uniform(-1, 1, (1, 3072))
    np.testing.assert_allclose(predicted(graph, x), graph.apply(x), atol=5e-3)


def test_relu_goes_behind_the_pool():
    program = program_for(architecture_of(mnist()), 1)
    counts = [v.count for o, v in zip(program.operations, program.values, strict=True) if isinstance(o, op.Sign)]
    assert counts == [6272, 3136, 3136, 3136, 1568, 1568, 64]  # pool1, ReLU1, pool2, ReLU2, fc1


def test_a_rows_program_holds_no_number_of_the_model():
    one, other = (architecture_of(mnist(seed)) for seed in (1, 2))
    assert one == other
    assert program_for(one, 3).hash == program_for(other, 3).hash


def test_weights_are_rounded_to_their_scale():
    graph = small()["a matrix"]
    found = encoded(graph)
    assert set(found) == {"0.weight", "0.bias"}
    for name, scale, array in (("0.weight", 20, graph.layers[0].weight), ("0.bias", 36, graph.layers[0].bias)):
        assert found[name].dtype == np.uint64
        wanted = [[round(value * 2**scale) % 2**64 for value in row] for row in np.atleast_2d(array).tolist()]
        assert np.atleast_2d(found[name]).tolist() == wanted


def test_an_average_is_divided_by_within_the_weights():
    graph = small()["an average of nine"]
    nine, plainly = encoded(graph)["3.weight"], graph.layers[3].weight
    np.testing.assert_allclose(nine.view(np.int64) / 2**16, plainly * 16 / 9, atol=2**-16)  # the sum is held as 1/16


def test_a_weight_that_is_too_large_is_refused():
    graph = Graph((Linear(np.full((1, 1), 2.0**47), np.zeros(1)),))
    with pytest.raises(ModelError, match=r"0\.weight"):
        encoded(graph)


def test_what_is_not_computed_on_shares_is_listed():
    rng = np.random.default_rng(0)
    graph = Graph(
        (linear(rng, 3, 3), Polynomial(np.ones(40), -1.0, 1.0), Residual((Polynomial(np.ones(40), -1.0, 1.0),)))
    )
    assert [problem.layer for problem in check(graph)] == ["layer 1 (Polynomial)", "layer 2.body.0 (Polynomial)"]
    with pytest.raises(ModelError, match="degree"):
        architecture_of(graph)


def test_values_that_do_not_fit_are_problems():
    wide = Graph((Linear(np.full((1, 1), 2.0**31), np.zeros(1)), Relu()))
    found = check(wide, by_intervals(wide, -1.0, 1.0))
    assert [problem.layer for problem in found] == ["layer 0 (Linear)", "layer 1 (Relu)"]
    assert "scale the weights down" in str(found[0])
    assert not check(wide, by_intervals(wide, -0.01, 0.01))


@given(st.sampled_from(sorted(small())))
@settings(max_examples=10, deadline=None)
def test_an_architecture_is_read_as_it_was_written(name):
    made = architecture_of(small()[name])
    assert Architecture.decode(made.encode()) == made


@given(st.sampled_from(sorted(small())), st.data())
@settings(max_examples=150, deadline=None)
def test_a_spoilt_architecture_is_one_or_a_protocol_error(name, data):
    body = bytearray(architecture_of(small()[name]).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        program_for(Architecture.decode(bytes(body)), 2)
    except ProtocolError:
        return


HOSTILE = [
    {"parts": []},
    {"parts": [["linear", 1 << 40, 1]]},
    {"parts": [["linear", 3, 2]], "outputs": 5},
    {"parts": [["linear", 4, 2]]},
    {"parts": [["relu", 60]]},
    {"parts": [["max", [1, 3, 1], [1 << 20, 1], [1, 1], [0, 0, 0, 0], 12]]},
    {"parts": [["max", [1, 3, 1], [2, 1], [1, 1], [2, 0, 0, 0], 12]]},
    {"parts": [["average", [1, 3, 1], [0, 1], [1, 1]]]},
    {"parts": [["conv", [1, 3, 1], 1, [1, 1], [1, 1], [1 << 40, 0, 0, 0]]]},
    {"parts": [["polynomial", 1000, 0.0, 1]]},
    {"parts": [["polynomial", 2, float("nan"), 1]]},
    {"parts": [["smooth", "sigmoid", 60, [1, 2], [1]]]},
    {"parts": [["residual", [], []]]},
    {"format": 1},
    {"weight_scale": 15},
    {"weight_scale": 21},
]


@pytest.mark.parametrize("change", HOSTILE)
def test_descriptions_of_no_model_are_refused(change):
    good = {"features": 3, "outputs": 2, "parts": [["linear", 3, 2]], "end": "", "weight_scale": 18, "format": 2}
    program_for(Architecture.decode(msgspec.msgpack.encode(good)), 1)
    with pytest.raises(ProtocolError):
        program_for(Architecture.decode(msgspec.msgpack.encode(good | change)), 1)


def test_residual_blocks_within_each_other_are_bounded():
    part = ["relu", 12]
    for _ in range(200):
        part = ["residual", [part], []]
    with pytest.raises(ProtocolError):
        Architecture.decode(msgspec.msgpack.encode({"features": 1, "outputs": 1, "parts": [part]}))


def test_more_rows_than_a_program_holds_are_refused():
    with pytest.raises(ProtocolError):
        program_for(architecture_of(mnist()), 1 << 20)
