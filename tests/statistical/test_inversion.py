"""Gradient inversion: records read out of an update in closed form, and out of a secure sum by a crafted model.

The gradient of a linear layer is an outer product: that of one record gives the record by a division, dW_i / db_i
(Phong et al., IEEE TIFS 13(5), 2018). A sum over several silos mixes records, unless the server chooses the weights so
that of all records only one activates a unit: secure aggregation then adds zeros to it (Fowl et al., arXiv 2110.13057;
Boenisch et al., arXiv 2112.02918). Noise ends that, clipping alone does not.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from confide.crypto.random import SeededRandomness
from confide.dp.plan import PrivacyPlan
from confide.ideal import Cohort, PlainSum, Session
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.zoo import logistic
from confide.secagg.amortised import Amortised
from confide.secagg.masked import Masked
from confide.train.encodings import Encoding, PrivateGradients, WeightedUpdates
from confide.train.learner import GraphLearner
from confide.train.local import Silo
from confide.train.sections import TrainSection
from confide.train.single_sum import SingleSum
from confide.wire import MemoryStore

SILOS = ("north", "east", "south", "west")
TRAIN = TrainSection(local_steps=1, learning_rate=1.0, weight_decay=0.0, expected_records=25)
UNITS = 64
FOUND, LOST = 0.05, 0.3  # relative error of a record that is read out, and of one that is not


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return 8 by 8 images with values from 0 to 1 in a fixed order, and whether each shows an odd digit."""
    found = load_digits()
    order = np.random.Generator(np.random.PCG64(5)).permutation(len(found.data))
    return found.data[order] / 16, found.target[order].astype(np.int64)


def silos_of(each: int, *, odd: bool = False) -> dict[str, Silo]:
    x, y = digits()
    y = y % 2 if odd else y
    parts = {name: slice(number * each, (number + 1) * each) for number, name in enumerate(SILOS)}
    return {name: Silo(name, x[part], y[part]) for name, part in parts.items()}


def weighted(graph: Graph) -> Encoding:
    return WeightedUpdates(GraphLearner(graph, TRAIN), TRAIN)


def private(graph: Graph) -> Encoding:
    """The same model under epsilon = 1, spent on this one sum: the least noise that a job can have."""
    plan = PrivacyPlan.calibrate(
        epsilon=1.0, delta=1e-5, clip_norm=0.5, rounds=1, length=graph.parameters,
        silos=4, quorum=3, colluding=1, expected_records=100,
    )  # fmt: skip
    return PrivateGradients(GraphLearner(graph, TRAIN), plan, TRAIN)


class ClippedOnly(PrivateGradients):
    """Private training that forgets its noise."""

    def contribution(self, parameters, silo, number, rng, store):
        return self._plan.clipped_sum(self._gradients(parameters, silo)).total


def clipped_only(graph: Graph) -> Encoding:
    made = private(graph)
    return ClippedOnly(made.learner, made._plan, TRAIN)


def alone(encoding: Encoding, silo: Silo) -> np.ndarray:
    """Return the change of the parameters that a server reads out of one silo's own vector."""
    start = encoding.learner.start
    vector = encoding.contribution(start, silo, 1, SeededRandomness("alone"), MemoryStore())
    return encoding.update(start, vector, frozenset("a"), 1)


def together(encoding: Encoding, silos: dict[str, Silo], aggregator) -> np.ndarray:
    """Return the change of the parameters that the server reads out of the sum which `aggregator` opens."""
    cohort, start = Cohort(SILOS, 3), encoding.learner.start
    session = Session("inversion", 1, cohort, encoding.length, encoding.bound)
    vectors = {
        name: encoding.contribution(start, silo, 1, SeededRandomness(name), MemoryStore())
        for name, silo in silos.items()
    }
    opened = SingleSum(aggregator, session, SeededRandomness("parties")).take(session, vectors).output("server")
    assert opened.members[0] == frozenset(SILOS)
    return encoding.update(start, opened.values[0], opened.members[0], 1)


def quotients(graph: Graph, change: np.ndarray) -> np.ndarray:
    """Return dW_i / db_i of each unit of the first layer whose bias has moved, shape (units, features)."""
    outputs, features = graph.layers[0].weight.shape
    weights = change[: outputs * features].reshape(outputs, features)
    biases = change[outputs * features : outputs * features + outputs]
    moved = np.abs(biases) > 0
    return weights[moved] / biases[moved, None]


def errors(graph: Graph, change: np.ndarray, silos: dict[str, Silo]) -> np.ndarray:
    """Return for each record the relative distance of the nearest quotient."""
    guesses = quotients(graph, change)
    x = np.concatenate([silo.x for silo in silos.values()])
    if not len(guesses):
        return np.full(len(x), np.inf)
    distances = np.linalg.norm(guesses[None, :, :] - x[:, None, :], axis=2)
    return distances.min(axis=1) / np.linalg.norm(x, axis=1)


# --- an ordinary model ------------------------------------------------------------------------------------------------

START = logistic(64, 10)


def test_a_raw_update_of_one_record_is_the_record():
    silos = silos_of(1)
    for silo in silos.values():
        assert errors(START, alone(weighted(START), silo), {"": silo}).max() < 1e-3


@pytest.mark.parametrize("aggregator", [Masked, PlainSum])
def test_the_sum_of_several_silos_is_no_record_of_theirs(aggregator):
    silos = silos_of(1)
    assert errors(START, together(weighted(START), silos, aggregator()), silos).min() > LOST


def test_a_raw_update_with_a_clip_and_noise_is_no_record():
    for silo in silos_of(1).values():
        assert errors(START, alone(clipped_only(START), silo), {"": silo}).max() < FOUND  # the noise does it
        assert errors(START, alone(private(START), silo), {"": silo}).min() > LOST


# --- a crafted model --------------------------------------------------------------------------------------------------


def crafted() -> Graph:
    """Return a network whose hidden units each answer to a narrow band of brightness and to nothing else.

    A sigmoid of steepness K moves only within some 1 / K of its centre, so the gradient of its weights is that of the
    records in this band. Where the bands must lie is known in public: from other images of the kind.
    """
    others = digits()[0][-1000:]
    centres = np.quantile(others.mean(axis=1), (np.arange(UNITS) + 0.5) / UNITS)
    steepness = 10_000.0
    first = Linear(np.full((UNITS, 64), steepness / 64), -steepness * centres)
    second = Linear(np.where(np.arange(UNITS) % 2, 1.0, -1.0)[None, :], np.zeros(1))
    return Graph((first, Sigmoid(), second, Sigmoid()))


def ordinary() -> Graph:
    draw = np.random.Generator(np.random.PCG64(6))
    first = Linear(draw.normal(0, 1 / 8, (UNITS, 64)), np.zeros(UNITS))
    return Graph((first, Sigmoid(), Linear(draw.normal(0, 1 / 8, (1, UNITS)), np.zeros(1)), Sigmoid()))


def read_out(graph: Graph, encoding: Encoding, aggregator) -> np.ndarray:
    silos = silos_of(25, odd=True)
    return errors(graph, together(encoding, silos, aggregator), silos)


@pytest.mark.parametrize("aggregator", [Masked, lambda: Amortised(hybrid=False)], ids=["masked", "amortised"])
def test_a_crafted_model_reads_records_out_of_a_secure_sum(aggregator):
    graph = crafted()
    assert (read_out(graph, weighted(graph), aggregator()) < FOUND).sum() >= 10


def test_an_ordinary_model_does_not():
    graph = ordinary()
    assert read_out(graph, weighted(graph), Masked()).min() > LOST


def test_a_crafted_model_reads_nothing_out_of_a_sum_with_noise():
    graph = crafted()
    assert (read_out(graph, clipped_only(graph), Masked()) < FOUND).sum() >= 10  # clipping alone does not help
    assert read_out(graph, private(graph), Masked()).min() > LOST


def test_what_is_read_under_noise_is_no_nearer_than_a_guess_that_has_not_seen_the_sum():
    """Whatever quotients noise gives, they are as near to images that were not in the sum."""
    graph, silos = crafted(), silos_of(25, odd=True)
    change = together(private(graph), silos, Masked())
    x, _ = digits()
    absent = {"": Silo("absent", x[500:600], np.zeros(100, np.int64))}
    present, others = errors(graph, change, silos), errors(graph, change, absent)
    assert stats.ks_2samp(present, others).pvalue > 1e-6
