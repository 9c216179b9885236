"""Noise inside the shares: as much as the plan says, bounded contributions, and an epsilon that others compute too."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import get_sigma_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.crypto.random import SeededRandomness
from confide.errors import PrivacyError, UsageError
from confide.mpc.training import step
from confide.mpc.training_plan import Rates, Task
from confide.train.shares.course import Course, Piece
from confide.train.shares.privacy import NoisePlan
from confide.train.shares.simulate import simulate

from ..mpc import plain


def plan_of(**given) -> NoisePlan:
    asked = {
        "epsilon": 1.0,
        "delta": 1e-4,
        "clip_norm": math.sqrt(2),
        "passes": 1,
        "features": 4,
        "colluding": 1,
        "expected_records": 500,
    }
    return NoisePlan.calibrate(**(asked | given))


@pytest.mark.parametrize(("passes", "outputs"), [(1, 1), (30, 1), (10, 4)])
def test_the_honest_servers_noise_alone_is_that_of_a_gaussian_mechanism(passes: int, outputs: int):
    plan = plan_of(passes=passes, outputs=outputs).plan
    wanted = get_sigma_gaussian(1.0, 1e-4) * math.sqrt(passes)
    alone = math.sqrt(plan.share_variance) / plan.grid
    assert wanted * 0.999 < alone < wanted * 1.01
    both = plan_of(passes=passes, outputs=outputs, colluding=0).plan
    assert math.isclose(both.share_variance, plan.share_variance / 2, rel_tol=1e-3)


def test_the_opened_weights_carry_the_noise_of_both_servers():
    features, outputs = 120, 10
    noise = plan_of(features=features, outputs=outputs)
    rates = Rates.of(learning_rate=1.0, batch=4)
    task = Task(features=features + 1, outputs=outputs, rates=rates, noise=True, window=52)
    pieces = {"one": Piece(np.arange(4), np.arange(features + 1), targets=True)}
    course = Course(task=task, pieces=pieces, rows=4, batch=4, passes=1, opened=True)
    nothing = {"one": (np.zeros((4, features + 1)), np.zeros((4, outputs)))}  # rows that add nothing to any sum
    found = simulate(course, nothing, SeededRandomness("noise"), noise=noise.noise)
    assert found.opened is not None
    drawn = np.concatenate([found.opened.weights[0].ravel(), found.opened.biases[0]]) * 2.0**rates.shift / rates.factor
    assert drawn.size == 1210
    unit = noise.plan.clip_norm / noise.plan.grid
    expected = 2 * noise.plan.share_variance * unit**2
    ratio = float(np.mean(drawn**2)) / expected
    assert 0.8 < ratio < 1.25  # the deviation of a mean of 1,210 squares is 0.041
    assert not 0.8 < 2 / 3 * ratio < 1.25
    assert not 0.8 < 3 / 2 * ratio < 1.25
    steps = drawn * 2.0 ** (16 + noise.row_bits)  # of the grid that sums lie on
    assert np.abs(steps - np.rint(steps)).max() == 0


def test_noise_is_fresh_in_every_step():
    source = plan_of().noise(SeededRandomness("fresh"))
    first, second = source(), source()
    assert not np.any(first["n1"] == second["n1"])


@settings(max_examples=40)
@given(
    row=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    weights=st.lists(st.floats(-200, 200), min_size=4, max_size=4),
    label=st.sampled_from([0.0, 1.0]),
)
def test_no_record_adds_more_than_the_clip_whatever_the_weights_are(row, weights, label):
    noise = plan_of(features=3)
    task = Task(features=4, rates=Rates(factor=1, shift=0), noise=True)
    x = np.append(noise.clipped(np.array([row])), [[1.0]], axis=1)
    weight = np.array(weights)[:, None]
    state = {"x": x, "y": np.array([[label]]), "w1": weight, "sum1": weight, "n1": np.zeros((4, 1))}
    done = plain.run(step(task, 1), state)
    moved = done.kept["sum1"] - plain.encoded(weight, 32)
    assert np.linalg.norm(moved.astype(float)) / 2.0 ** (16 - noise.row_bits) <= noise.plan.grid
    assert not np.any(moved % (1 << (16 - noise.row_bits)))  # on the grid that the noise lies on


@given(
    rows=st.lists(st.lists(st.floats(-50, 50), min_size=5, max_size=5), min_size=1, max_size=6),
    clip=st.floats(1.05, 6.0),
    parts=st.integers(1, 2),
)
def test_clipped_rows_are_within_the_norm_and_on_the_grid(rows, clip, parts):
    noise = plan_of(clip_norm=clip, features=5)
    found = noise.clipped(np.array(rows), parts=parts)
    # exactly, in whole numbers: the squares of a row's part against its share of the square of the norm
    units = found * 2.0**noise.row_bits
    assert np.array_equal(units, np.rint(units))
    squares = (units.astype(np.int64) ** 2).sum(1)
    assert (squares <= (clip**2 - 1) / parts * 4.0**noise.row_bits * (1 + 1e-9)).all()
    short = np.linalg.norm(rows, axis=1) < noise.row_norm / math.sqrt(parts) * 0.99
    assert np.abs(found[short] - np.array(rows)[short]).max(initial=0.0) <= 2.0**-noise.row_bits


def test_windows_hold_the_largest_noise_or_the_plan_is_refused():
    noise = plan_of(passes=40, features=30)
    rates = Rates.of(learning_rate=1.0, batch=400)
    window = noise.window(rates, rows=400, steps=40)
    assert 44 <= window < noise.window(Rates.of(learning_rate=64.0, batch=400), rows=400, steps=40)
    with pytest.raises(PrivacyError, match="lower the learning rate"):
        noise.window(Rates.of(learning_rate=1000.0, batch=400, momentum=0.96), rows=400, steps=40_000)


@pytest.mark.parametrize("wrong", [{"clip_norm": 1.0}, {"colluding": 2}, {"epsilon": 0.0}, {"outputs": 1 << 26}])
def test_plans_that_promise_nothing_are_refused(wrong: dict):
    with pytest.raises((PrivacyError, UsageError)):
        plan_of(**wrong)
