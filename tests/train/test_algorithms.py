"""Every algorithm's rounds against the textbook in float, written out here with the gradients of torch."""

import numpy as np
import pytest
import torch

from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.errors import ModelError
from confide.ideal import PlainSum
from confide.model.graph import Graph, Linear, Sigmoid
from confide.secagg.masked import Masked
from confide.train import load_data, parse, train
from confide.train.encodings import Scaffold, WeightedUpdates
from confide.train.learner import GraphLearner
from confide.train.local import Silo, flatten
from confide.train.rounds import federate
from confide.train.sections import TrainSection
from confide.wire import MemoryStore, drop

START = Graph((Linear(np.zeros((1, 4)), np.zeros(1)), Sigmoid()))
COMMON = {
    "average": 0.0, "rounds": 5, "local_steps": 4, "learning_rate": 0.7, "momentum": 0.0, "weight_decay": 0.02,
    "expected_records": 40, "quorum": 3, "fraction_bits": 30,
}  # fmt: skip


def silos(seed):
    rng = np.random.default_rng(seed)
    made = []
    for number, size in enumerate((25, 60, 8)):
        x = rng.uniform(-1, 1, size=(size, 4))
        made.append(Silo(f"h{number}", x, (x @ rng.normal(size=4) + rng.normal() > 0).astype(np.int64)))
    return made


def rounds(settings, parties, *, aggregator=None, encoding=None, start=START, **more):
    learner = GraphLearner(start, settings)
    if encoding is None and settings.algorithm == "scaffold":
        encoding = Scaffold(learner, settings, parties=len(parties))
    return federate(
        parties, encoding or WeightedUpdates(learner, settings), settings,
        aggregator=aggregator or PlainSum(), rng=SystemRandomness(), **more,
    )  # fmt: skip


def gradient(silo, weights, decay):
    """Return the gradient of the mean logistic loss with ridge, by torch's autograd."""
    w = torch.tensor(weights, requires_grad=True)
    logits = torch.tensor(silo.x) @ w[:-1] + w[-1]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(silo.y, dtype=torch.float64))
    (loss + decay / 2 * (w * w).sum()).backward()
    return w.grad.numpy()


def textbook(settings, parties):
    """Return the weights after each round: FedAvg, FedProx (Li et al. 2020), SCAFFOLD (Karimireddy et al. 2020)."""
    rate, steps = settings.learning_rate, settings.local_steps
    mu = settings.proximal if settings.algorithm == "fedprox" else 0.0
    share = np.array([len(s.x) for s in parties], float)
    share /= share.sum()
    weights, c, own, places = np.zeros(5), np.zeros(5), np.zeros((len(parties), 5)), []
    for _ in range(settings.rounds):
        ends, fresh = [], own.copy()
        for place, silo in enumerate(parties):
            y = weights.copy()
            correction = c - own[place] if settings.algorithm == "scaffold" else 0.0
            for _ in range(steps):
                y = y - rate * (gradient(silo, y, settings.weight_decay) + mu * (y - weights) + correction)
            fresh[place] = own[place] - c + (weights - y) / (steps * rate)
            ends.append(y)
        c = c + share @ (fresh - own)
        own = fresh
        weights = weights + settings.server_learning_rate * (share @ np.array(ends) - weights)
        places.append(weights)
    return places


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "scaffold"])
def test_rounds_equal_the_textbook(algorithm, seed):
    settings = TrainSection(**COMMON, algorithm=algorithm, server_learning_rate=0.9)
    parties = silos(seed)
    for done, expected in zip(rounds(settings, parties), textbook(settings, parties), strict=True):
        np.testing.assert_allclose(flatten(done.model), expected, atol=1e-7)


def test_the_algorithms_differ():
    """The negative control of the tolerance above."""
    ends = [
        textbook(TrainSection(**COMMON, algorithm=name), silos(0))[-1] for name in ("fedavg", "fedprox", "scaffold")
    ]
    gaps = [np.abs(a - b).max() for a, b in zip(ends, ends[1:] + ends[:1], strict=True)]
    assert min(gaps) > 1e-3


@pytest.mark.parametrize("algorithm", ["fedprox", "scaffold", "fedadam", "fedyogi", "fedadagrad"])
def test_masked_equals_plain_bit_for_bit(algorithm):
    settings = TrainSection(**{**COMMON, "rounds": 3}, algorithm=algorithm)
    ends = [list(rounds(settings, silos(1), aggregator=each))[-1].model for each in (PlainSum(), Masked())]
    np.testing.assert_array_equal(flatten(ends[0]), flatten(ends[1]))


def test_scaffold_ends_at_the_pooled_optimum_where_averaging_does_not():
    parties = silos(2)
    many = {**COMMON, "rounds": 400}
    pooled = Silo("all", np.vstack([s.x for s in parties]), np.concatenate([s.y for s in parties]))
    slope = {
        name: np.abs(
            gradient(pooled, flatten(list(rounds(TrainSection(**many, algorithm=name), parties))[-1].model), 0.02)
        ).max()
        for name in ("fedavg", "scaffold")
    }
    assert slope["scaffold"] < 1e-6
    assert slope["fedavg"] > 1e-3


def test_control_variates_survive_rebuilt_silos():
    settings, parties = TrainSection(**COMMON, algorithm="scaffold"), silos(0)
    whole = list(rounds(settings, parties))
    half = TrainSection(**{**COMMON, "rounds": 2}, algorithm="scaffold")
    rest = TrainSection(**{**COMMON, "rounds": 3}, algorithm="scaffold")
    stores = {silo.name: MemoryStore() for silo in parties}
    first = Scaffold(GraphLearner(START, half), half, parties=3)
    middle = list(rounds(half, parties, encoding=first, stores=stores))[-1].model
    again = Scaffold(GraphLearner(middle, rest), rest, parties=3, control=first.control)
    end = list(rounds(rest, silos(0), encoding=again, stores=stores, run_id="again"))[-1].model
    np.testing.assert_array_equal(flatten(end), flatten(whole[-1].model))
    lost = Scaffold(GraphLearner(middle, rest), rest, parties=3, control=first.control)
    wrong = list(rounds(rest, silos(0), encoding=lost))[-1].model
    assert np.abs(flatten(wrong) - flatten(end)).max() > 1e-3


def test_a_dropout_keeps_its_old_variate():
    """c stays the mean of the parties' own variates only if whoever is not in the sum does not move its own."""
    settings, parties = TrainSection(**(COMMON | {"quorum": 2}), algorithm="scaffold"), silos(0)
    stores = {silo.name: MemoryStore() for silo in parties}
    list(rounds(settings, parties, stores=stores, fault=drop(src="h1")))
    assert stores["h1"].get("scaffold/control") is None
    assert stores["h0"].get("scaffold/control") is not None
    assert all(store.get("scaffold/control/next") is None for store in stores.values())


def test_the_common_variate_is_part_of_the_session():
    settings = TrainSection(**COMMON, algorithm="scaffold")
    learner = GraphLearner(START, settings)
    zero, other = Scaffold(learner, settings, parties=3), Scaffold(learner, settings, parties=3, control=np.ones(5))
    assert zero.broadcast(learner.start).tobytes() != other.broadcast(learner.start).tobytes()


@pytest.mark.parametrize("algorithm", ["fedadam", "fedyogi", "fedadagrad"])
def test_adaptive_servers_are_post_processing_under_privacy(algorithm):
    def last(name):
        private = {"expected_records": 455, "epsilon": 2.0}
        job = parse({"data": {"set": "breast-cancer"}, "privacy": private, "train": {"rounds": 2, "algorithm": name}})
        return list(train(job, load_data(job), rng=SeededRandomness("noise")))[-1]

    adaptive, plain = last(algorithm), last("fedavg")
    assert adaptive.epsilon == plain.epsilon
    assert np.abs(flatten(adaptive.model) - flatten(plain.model)).max() > 0


@pytest.mark.parametrize("body", [b"", b"123", bytes(8)])
def test_a_store_of_another_model_is_refused_by_name(body):
    chosen = TrainSection(**COMMON, algorithm="scaffold")
    store, silo = MemoryStore(), silos(0)[0]
    store.commit({"scaffold/control": body})
    encoding = Scaffold(GraphLearner(START, chosen), chosen, parties=4)
    with pytest.raises(ModelError, match=f"control variate of this model at {silo.name}"):
        encoding.contribution(encoding.learner.start, silo, 1, SystemRandomness(), store)
