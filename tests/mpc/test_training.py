"""Training programs against float64 with the same batches, in the clear; on shares in test_training_shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import UsageError
from confide.mpc import operations as op
from confide.mpc.operations import Kind
from confide.mpc.training import admission, beginning, revelation, step
from confide.mpc.training_plan import Rates, Task

from .float_training import sigmoid, start_of, train_in_float, train_in_the_clear

BATCH = 32
TASKS = {
    "logistic": Task(features=10, rates=Rates.of(learning_rate=1.0, batch=BATCH)),
    "logistic, momentum and decay": Task(
        features=10, rates=Rates.of(learning_rate=0.5, batch=BATCH, momentum=0.9, weight_decay=1e-2)
    ),
    "linear": Task(features=10, loss="squared", rates=Rates.of(learning_rate=0.125, batch=BATCH)),
    "two outputs": Task(features=10, outputs=2, rates=Rates.of(learning_rate=1.0, batch=BATCH)),
    "network": Task(
        features=10, hidden=(16, 8), outputs=2, rates=Rates.of(learning_rate=0.25, batch=BATCH, momentum=0.75)
    ),
}


def batches_of(task: Task, *, count: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (count * BATCH, task.features))
    y = (x @ rng.normal(size=(task.features, task.outputs)) + rng.normal(size=(len(x), task.outputs)) / 4 > 0) * 1.0
    return [(x[at : at + BATCH], y[at : at + BATCH]) for at in range(0, len(x), BATCH)]


def distance(found: tuple, model) -> float:
    pairs = [*zip(found[0], model.weights, strict=True), *zip(found[1], model.biases, strict=True)]
    return max(float(np.abs(a - b).max()) for a, b in pairs)


@pytest.mark.parametrize("name", TASKS)
def test_training_equals_float_training_with_the_same_batches(name: str):
    task, batches = TASKS[name], batches_of(TASKS[name], count=24)
    start = start_of(task)
    model = train_in_float(task, start, batches, batch=BATCH)
    # a step rounds activations, errors and weights to 2^-16, and a network multiplies what that moves; sums are exact
    bound = 5e-3 if task.hidden else 1e-3
    assert distance(train_in_the_clear(task, start, batches), model) < bound
    assert max(float(np.abs(weight - first).max()) for weight, first in zip(model.weights, start, strict=True)) > 0.1


def test_another_rate_momentum_or_decay_is_told_apart():
    task = TASKS["logistic, momentum and decay"]
    batches, start = batches_of(task, count=24), start_of(task)
    found = train_in_the_clear(task, start, batches)
    for other in (
        Rates.of(learning_rate=0.55, batch=BATCH, momentum=0.9, weight_decay=1e-2),
        Rates.of(learning_rate=0.5, batch=BATCH, momentum=0.8, weight_decay=1e-2),
        Rates.of(learning_rate=0.5, batch=BATCH, momentum=0.9),
    ):
        wrong = Task(features=10, rates=other)
        assert distance(found, train_in_float(wrong, start, batches, batch=BATCH)) > 1e-2


def test_the_cut_line_costs_little_against_the_real_sigmoid():
    task = TASKS["logistic"]
    batches, start = batches_of(task, count=40, seed=3), start_of(task)
    x, y = np.concatenate([one[0] for one in batches]), np.concatenate([one[1] for one in batches])
    right = []
    for activation in (None, sigmoid):
        chosen = {} if activation is None else {"activation": activation}
        model = train_in_float(task, start, batches, batch=BATCH, **chosen)
        right.append(float(np.mean((model.scores(x) > 0) == y)))
    assert min(right) > 0.9
    assert abs(right[0] - right[1]) < 0.02


def test_nothing_but_masked_values_shares_and_bits_is_ever_sent():
    for task in TASKS.values():
        for program in (admission(task, 8), beginning(task), step(task, 8)):
            assert not any(isinstance(one, op.Reveal) for one in program.operations)
            shown = [one for one in program.operations if isinstance(one, op.Load) and one.kind is Kind.OPEN]
            assert all(one.origin == "state" for one in shown)
        assert {one.name for one in revelation(task).operations if isinstance(one, op.Reveal)} == {
            f"{kind}{layer}" for layer in range(1, len(task.widths)) for kind in ("sum", "b")
        }


def test_a_step_loads_and_keeps_the_same_state_in_the_same_form():
    for task in TASKS.values():
        program = step(task, 8)
        loaded = {
            one.name: program.values[number]
            for number, one in enumerate(program.operations)
            if isinstance(one, op.Load)
        }
        kept = {
            one.name: program.values[number]
            for number, one in enumerate(program.operations)
            if isinstance(one, op.Keep)
        }
        assert kept == {name: value for name, value in loaded.items() if name not in ("x", "y")}
        admitted = admission(task, 8)
        for number, one in enumerate(admitted.operations):
            if isinstance(one, op.Keep):
                assert admitted.values[number] == loaded[one.name]
        begun = beginning(task)
        for number, one in enumerate(begun.operations):
            if isinstance(one, op.Keep):
                assert begun.values[number] == loaded[one.name]


@given(rate=st.floats(1e-3, 4.0), batch=st.integers(1, 512), momentum=st.floats(0, 0.96), decay=st.floats(0, 0.1))
def test_rates_are_near_what_was_asked_for(rate: float, batch: int, momentum: float, decay: float):
    if rate < batch / 2**16 or 0 < decay * rate < 2**-16:
        return
    found = Rates.of(learning_rate=rate, batch=batch, momentum=momentum, weight_decay=decay)
    assert abs(found.learning_rate(batch) - rate) <= max(rate / 128, batch / 2**17)
    assert abs(found.inertia - momentum) <= 1 / 64
    assert abs(found.pull - rate * decay) <= 2**-17
    assert 0 <= found.shift <= 16


@pytest.mark.parametrize(
    "given_wrong",
    [{"learning_rate": 0.0}, {"learning_rate": 1e-9}, {"momentum": 1.0}, {"momentum": -0.1}, {"weight_decay": -1.0}],
)
def test_rates_that_cannot_be_are_refused(given_wrong: dict):
    with pytest.raises(UsageError):
        Rates.of(**({"learning_rate": 1.0, "batch": 64} | given_wrong))


@pytest.mark.parametrize(
    "given_wrong",
    [
        {"features": 0},
        {"hidden": (0,)},
        {"hidden": (4,) * 8},
        {"loss": "hinge"},
        {"hidden": (4,), "noise": True},
        {"features": 1 << 16, "hidden": (1 << 16,)},
    ],
)
def test_tasks_that_cannot_be_are_refused(given_wrong: dict):
    with pytest.raises(UsageError):
        Task(**({"features": 4, "rates": Rates(factor=1, shift=4)} | given_wrong))
