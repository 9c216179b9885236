"""Composed functions against numpy, on programs in the clear; the parties' own tests show that shares give the same."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.model.attention import Attention, LayerNorm
from confide.model.attention import softmax as ideal_softmax
from confide.model.trees import perfect
from confide.mpc import functions as fn
from confide.mpc import schedule
from confide.mpc.operations import AnyOperation, Kind, Load, Program, Reveal, Value
from confide.mpc.series import power_series, reciprocal_series, root_series
from mpc import plain


@dataclass
class Writer:
    operations: list[AnyOperation] = field(default_factory=list)

    def __call__(self, operation: AnyOperation) -> int:
        self.operations.append(operation)
        return len(self.operations) - 1

    def value(self, number: int) -> Value:
        return Program(tuple(self.operations)).values[number]


def run(shape, make, x, scale=16):
    """Return what `make(builder, number of x)` gives for x, real numbers, and the rounds from an OPEN x on."""
    write = Writer()
    result = make(write, write(Load("x", shape, scale, Kind.OPEN, "input")))
    write(Reveal(result))
    program = Program(tuple(write.operations))
    done = plain.run(program, {"x": np.asarray(x, np.float64)})
    return done.output(), len(schedule.rounds(program).rounds) - 2  # the input's and the output's


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


@given(st.integers(2, 9), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_maximum_and_argmax_are_numpys(count, seed):
    x = drawn(3, count, seed=seed).round(2)  # rounded, so that some are equal
    found, rounds = run(x.shape, lambda b, a: fn.truncated(b, fn.maximum(b, a, 44, 8), 15), x)
    halvings = int(np.ceil(np.log2(count)))
    assert np.abs(found[:, 0] - x.max(axis=1)).max() < 1e-4
    assert rounds == 2 * halvings
    place, _ = run(x.shape, lambda b, a: fn.argmax(b, a, 44, 8), x)
    assert place[:, 0].tolist() == np.argmax(np.rint(x * 2**16), axis=1).tolist()


@pytest.mark.parametrize("count", [2, 10, 33])
def test_softmax_is_numpys(count):
    x = 3 * drawn(20, count)
    powers, inverse = power_series(24.0, scale=16), reciprocal_series(count)
    found, rounds = run(x.shape, lambda b, a: fn.softmax(b, a, powers=powers, inverse=inverse, window=40, drop=8), x)
    assert np.abs(found - ideal_softmax(x, 1)).max() < 4e-4
    assert rounds == 2 * int(np.ceil(np.log2(count))) + 3


@pytest.mark.parametrize("count", [2, 8, 48, 64, 200])
def test_layer_norm_is_the_layers(count):
    x = drawn(40, count) * np.random.default_rng(1).uniform(0.7, 2, (40, 1)) + drawn(40, 1)
    variance = x.var(axis=1)
    low, high = variance.min() * 0.9, variance.max() * 1.1
    if high / low > 60:
        x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(variance)[:, None]
        low, high = 0.9, 1.1
    root, scale, shift = root_series(count, low, high, 1e-5)
    found, _ = run(x.shape, lambda b, a: fn.normalised(b, a, root=root, scale=scale, shift=shift), x)
    wanted = LayerNorm(np.ones(count), np.zeros(count), 1).apply(x)
    assert np.abs(found - wanted).max() < 2e-3


def test_attention_is_the_layers():
    rows, heads, size, positions = 3, 2, 4, 5
    x = drawn(rows, 3 * heads * size * positions)

    powers, inverse = power_series(40.0, 0.5), reciprocal_series(positions)

    def make(build, a):
        parts = build(fn.Reshape(a, (rows, 3, heads * size * positions)))
        found = []
        for part in range(3):
            one = build(fn.Slice(parts, (0, part, 0), (rows, part + 1, heads * size * positions), (1, 1, 1)))
            found.append(build(fn.Reshape(one, (rows, heads, size, positions))))
        return fn.attention(build, *found, powers=powers, inverse=inverse, window=44, drop=16)

    found, _ = run(x.shape, make, x)
    wanted = Attention(heads * size, positions, heads).apply(x)
    assert np.abs(found.reshape(rows, -1) - wanted).max() < 1e-3


@pytest.mark.parametrize(("count", "depth"), [(1, 1), (3, 2), (2, 4)])
def test_trees_are_the_layers(count, depth):
    rng = np.random.default_rng(depth)
    features = 5
    ideal = perfect(count, depth, features=features)
    nodes, inner = len(ideal.feature), (1 << depth) - 1
    feature, threshold = rng.integers(0, features, nodes), rng.normal(size=nodes).round(3)
    value = rng.normal(size=len(ideal.value)).round(3)
    whole = type(ideal)(
        features, ideal.roots, ideal.outputs, feature, threshold, ideal.left, ideal.right, value, ideal.offset
    )
    order = [
        t * inner + (1 << level) - 1 + k for level in range(depth) for t in range(count) for k in range(1 << level)
    ]
    selection = np.zeros((features, nodes))
    selection[feature[order], np.arange(nodes)] = 1.0
    x = rng.normal(size=(50, features)).round(3)
    write = Writer()
    loads = [
        write(Load("x", x.shape, 16, Kind.OPEN, "input")),
        write(Load("s", selection.shape, 16, Kind.OPEN, "model")),
        write(Load("t", (nodes,), 32, Kind.SHARED, "model")),
        write(Load("v", (len(value), 1), 16, Kind.OPEN, "model")),
    ]
    result = fn.trees(
        write, loads[0], selection=loads[1], thresholds=loads[2], leaves=loads[3], count=count, depth=depth
    )
    write(Reveal(result))
    program = Program(tuple(write.operations))
    held = np.rint(x * 2**16) / 2**16
    # A threshold is put half a unit above a rounded input that equals it in decimals.
    inputs = {"x": x, "s": selection, "t": (np.rint(threshold[order] * 2**16) + 0.5) / 2**16, "v": value[:, None]}
    found = plain.run(program, inputs).output()
    rounded = type(ideal)(
        features,
        ideal.roots,
        ideal.outputs,
        feature,
        np.rint(threshold * 2**16) / 2**16,
        ideal.left,
        ideal.right,
        value,
        ideal.offset,
    )
    assert np.abs(found - rounded.apply(held)).max() < 1e-4
    assert whole.features == features
    assert len(schedule.rounds(program).rounds) == 2 + 2 + depth
