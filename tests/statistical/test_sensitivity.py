"""Grey-box sensitivity: neighbouring data sets through the real gradients, clipping and release, with the noise frozen.

Two silos that differ in one record draw the same noise, so what they submit differs by what the record moves, exactly:
an integer vector whose L2 norm must be at most the plan's grid, whatever the record, the others and the model. Nothing
is random in the verdict; each wrong mechanism beside the real one must be caught by the same replay.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.data.sets import load_set
from confide.dp.plan import PrivacyPlan
from confide.errors import DataError
from confide.model.graph import Graph, Linear, Sigmoid, Square
from confide.train import load_data, parse
from confide.train.encodings import PrivateGradients
from confide.train.learner import GraphLearner
from confide.train.linear_head import LinearHead, is_head
from confide.train.local import Silo, flatten, gradient_sum, record_gradients
from confide.train.parts import encoding_of
from confide.train.sections import TrainSection
from confide.wire import MemoryStore

CLIP, SILOS, EXPECTED = 0.5, 4, 30
HUGE = (1e308, -1e308, 1e155, 5e-324, 0.0, 1e-200, 1.0)
WILD = (*HUGE, np.nan, np.inf, -np.inf)


def dense(draw: np.random.Generator, inputs: int, outputs: int, scale: float = 1.0) -> Linear:
    return Linear(scale * draw.normal(0, 1, (outputs, inputs)), draw.normal(0, 1, outputs))


def models(draw: np.random.Generator) -> Iterator[Graph]:
    """Yield a model of each kind: none, ordinary, and absurd weights, as a malicious server might send."""
    while True:
        yield Graph((Linear(np.zeros((1, 5)), np.zeros(1)), Sigmoid()))
        yield Graph((dense(draw, 5, 3), Sigmoid()))
        yield Graph((dense(draw, 5, 4), Square(), dense(draw, 4, 1), Sigmoid()))
        yield Graph((dense(draw, 5, 4, 1e3), Sigmoid(), dense(draw, 4, 2), Sigmoid()))
        yield Graph((dense(draw, 5, 3, 1e200), Square(), dense(draw, 3, 1), Sigmoid()))


def neighbours(draw: np.random.Generator, number: int, values: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return features and classes; the data set without its last record is the neighbour. Sizes 1, 2, 7, 40."""
    count = (1, 2, 7, 40)[number % 4]
    x = draw.normal(0, 1, (count, 5)) * 10.0 ** draw.uniform(-3, 3, (count, 1))
    y = draw.integers(0, 2, count)
    kind = number // 4 % 4
    if kind == 1:  # wild values in a third of the places
        where = draw.random(x.shape) < 0.3
        x[where] = draw.choice(values, int(where.sum()))
    elif kind == 2:  # the record is there already
        x[:], y[:] = x[-1], y[-1]
    elif kind == 3:  # one record is wild altogether
        x[-1] = draw.choice(values)
    return x, y


@dataclass(frozen=True)
class Case:
    """One pair of neighbours under one model."""

    graph: Graph
    plan: PrivacyPlan
    x: np.ndarray
    y: np.ndarray


@cache
def cases(pairs: int, values: tuple[float, ...] = HUGE) -> tuple[Case, ...]:
    draw = np.random.Generator(np.random.PCG64(17))
    found = []
    for number, graph in zip(range(pairs), models(draw), strict=False):
        plan = PrivacyPlan.calibrate(
            epsilon=1.0, clip_norm=CLIP, rounds=3, length=graph.parameters, silos=SILOS, expected_records=EXPECTED
        )
        found.append(Case(graph, plan, *neighbours(draw, number, values)))
    return tuple(found)


Mechanism = Callable[[Case, np.ndarray, np.ndarray], np.ndarray]


def training(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return what a silo of a private job submits: the code under audit."""
    encoding = PrivateGradients(GraphLearner(case.graph, TrainSection()), case.plan, TrainSection())
    store = MemoryStore()
    return encoding.contribution(flatten(case.graph), Silo("north", x, y), 1, SeededRandomness("frozen"), store)


def as_a_head(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same where gradients are summed by one product, as jobs do for linear heads; in steps of the plan."""
    if not is_head(case.graph):
        return training(case, x, y)
    head = LinearHead(case.graph, row_norm=case.graph.features**0.5, clip_norm=CLIP)
    plan = replace(case.plan, grid=head.sums.grid, share_variance=case.plan.share_variance * 2.0**40)
    encoding = PrivateGradients(GraphLearner(case.graph, TrainSection()), plan, TrainSection(), head=head)
    silo, rng = Silo("north", x, y), SeededRandomness("frozen")
    left = encoding.contribution(flatten(case.graph), silo, 1, rng, MemoryStore())
    return left / (plan.grid / case.plan.grid)


def noise(case: Case) -> np.ndarray:
    return case.plan.noise(SeededRandomness("frozen"))


def clipped(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return case.plan.clipped_sum(record_gradients(case.graph, x, y)).total


def sum_of(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the sum of the gradients as ordinary training takes it, in grid steps; no value beyond 1e100."""
    with np.errstate(all="ignore"):
        total = np.nan_to_num(gradient_sum(case.graph, x, y)) * (case.plan.grid / CLIP)
    return np.clip(total, -1e100, 1e100)


def length_of(vector: np.ndarray) -> float:
    """Return the L2 norm, where squares may overflow; infinite if an entry is not finite."""
    peak = float(np.abs(vector).max())
    if not 0 < peak < np.inf:
        return 0.0 if peak == 0 else np.inf
    with np.errstate(over="ignore"):
        return float(peak * np.linalg.norm(vector / peak))


def without_clipping(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.rint(sum_of(case, x, y)) + noise(case)


def batch_clipped(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The sum is clipped and not the records: one record can turn it round."""
    total = sum_of(case, x, y)
    norm = length_of(total)
    return np.rint(total * (min(1.0, case.plan.grid / norm) if norm else 0.0)) + noise(case)


def sensitivity_halved(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Records reach twice as far as the noise is made for."""
    return 2 * clipped(case, x, y) + noise(case)


def mean_by_own_count(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.rint(clipped(case, x, y) * (EXPECTED / max(1, len(x)))) + noise(case)


def norm_by_own_data(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The clip norm is the median of the records' norms, as adaptive clipping without a budget takes it."""
    rows = np.nan_to_num(record_gradients(case.graph, x, y), posinf=0, neginf=0)
    norms = np.array([length_of(row) for row in rows])
    if not len(rows) or not 0 < np.median(norms) < 1e100:
        return noise(case)
    shrunk = rows * np.minimum(1, np.median(norms) / np.maximum(norms, 1e-300))[:, None]
    return np.rint(shrunk.sum(axis=0) * (case.plan.grid / CLIP)) + noise(case)


def standardised_by_own_data(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Every record is measured against the mean and deviation of all: one more moves all the others."""
    with np.errstate(all="ignore"):
        centred = np.nan_to_num((x - x.mean(axis=0)) / x.std(axis=0), posinf=0, neginf=0) if len(x) else x
    return clipped(case, centred, y) + noise(case)


def wild_rows_as_they_are(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The norm is clipped by a plain division: infinity over infinity, and squares that overflow."""
    with np.errstate(all="ignore"):
        rows = record_gradients(case.graph, x, y)
        rows = rows * np.minimum(1, CLIP / np.sqrt((rows * rows).sum(axis=1, keepdims=True)))
        total = rows.sum(axis=0) * (case.plan.grid / CLIP)
    return np.where(np.isfinite(total), np.rint(np.nan_to_num(total)), 1e300) + noise(case)


def excess(mechanism: Mechanism, pairs: int = 200) -> float:
    """Return the largest distance between what neighbours submit, over the distance that the plan accounts for."""
    worst = 0.0
    for case in cases(pairs):
        with_it, without = (mechanism(case, case.x[:end], case.y[:end]) for end in (len(case.x), len(case.x) - 1))
        with np.errstate(all="ignore"):
            worst = max(worst, length_of(with_it - without) / case.plan.grid)
    return worst


@pytest.mark.parametrize("mechanism", [training, as_a_head])
def test_no_record_moves_what_a_silo_submits_by_more_than_is_accounted_for(mechanism):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would tell of a record, too
        assert 0.9 < excess(mechanism) <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        without_clipping,
        batch_clipped,
        sensitivity_halved,
        mean_by_own_count,
        norm_by_own_data,
        standardised_by_own_data,
        wild_rows_as_they_are,
    ],
)
def test_wrong_mechanisms_are_caught(wrong):
    assert excess(wrong) > 1.05


#: Kinds of private jobs, each audited from the raw table to what leaves the silo.
JOBS = {
    "logistic": {},
    "rows of length 1": {"model": {"unit_rows": True}},
    "mlp": {"model": {"kind": "mlp", "hidden": 4}},
    "statistics": {"model": {"unit_rows": True}, "train": {"algorithm": "statistics"}},
    "newton": {"model": {"unit_rows": True}, "train": {"algorithm": "newton"}},
    "projected": {"model": {"unit_rows": True, "project": 10}},
}


@pytest.mark.parametrize("settings", JOBS.values(), ids=JOBS)
def test_no_row_of_a_raw_table_moves_what_leaves_by_more_than_is_accounted_for(settings):
    """A row may reach others through the preparation of features, too."""
    privacy = {"epsilon": 1.0, "expected_records": 455}
    job = parse({"data": {"set": "breast-cancer", "parties": 4}, "privacy": privacy} | settings)
    prepared = load_data(job)
    _, table = load_set("breast-cancer")
    draw, worst = np.random.Generator(np.random.PCG64(19)), 0.0
    for number in range(48):
        rows = draw.integers(0, len(table.labels), (1, 2, 7, 40)[number % 4])
        columns = {name: values[rows].copy() for name, values in table.columns.items()}
        for rule in prepared.preprocess.rules if number % 3 == 1 else ():
            columns[rule.name][-1] = draw.choice([rule.low, rule.high])  # a row at the ends of the schema's bounds
        encoding = encoding_of(job, prepared.start, 4)
        parameters = encoding.learner.start + draw.normal(0, 10.0 ** draw.uniform(-3, 2), encoding.learner.start.shape)
        left = []
        for end in (len(rows), len(rows) - 1):
            x = prepared.preprocess.apply({name: values[:end] for name, values in columns.items()})
            silo, rng = Silo("north", x, table.labels[rows[:end]]), SeededRandomness("frozen")
            left.append(encoding.contribution(parameters, silo, 1, rng, MemoryStore()))
        worst = max(worst, length_of(left[0] - left[1]) / encoding._plan.kind(0).grid)
    assert 0.5 < worst <= 1


def test_records_that_are_not_numbers_count_as_zero_wherever_they_come_from():
    """A silo refuses such features; if they came in all the same, gradients and clipping would hold."""
    for case in cases(80, WILD):
        with_it, without = clipped(case, case.x, case.y), clipped(case, case.x[:-1], case.y[:-1])
        assert sum(int(value) ** 2 for value in with_it - without) <= case.plan.grid**2


def test_a_silo_refuses_features_that_are_not_finite_and_shows_none():
    with pytest.raises(DataError, match="finite") as refused:
        Silo("north", np.array([[123.25, np.nan]]), np.array([1]))
    assert "123" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", [training, as_a_head])
def test_two_thousand_more_neighbours(mechanism):
    assert 0.9 < excess(mechanism, 2000) <= 1
