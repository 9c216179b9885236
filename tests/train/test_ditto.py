"""Ditto against its algorithm written out, for graphs and for torch modules."""

import numpy as np
import pytest

from confide.errors import ModelError, UsageError
from confide.ideal import PlainSum
from confide.model.graph import Graph, Linear, Sigmoid
from confide.secagg.masked import Masked
from confide.train import Ditto, Silo, fit, personal_models, train_section
from confide.train.learner import GraphLearner
from confide.train.local import flatten
from confide.wire import MemoryStore, drop

torch = pytest.importorskip("torch", reason="torch comes with the train extra")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from confide.train import TorchLearner  # noqa: E402

PULL = 0.7
COMMON = {"rounds": 4, "local_steps": 3, "learning_rate": 0.3, "expected_records": 20, "fraction_bits": 34}
SETTINGS = train_section(**COMMON)
OWN = train_section(**COMMON, algorithm="fedprox", proximal=PULL)
START = Graph((Linear(np.zeros((1, 4)), np.zeros(1)), Sigmoid()))


def silos(seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for place, size in enumerate((25, 60, 8)):
        x = rng.uniform(-1, 1, size=(size, 4))
        made.append(Silo(f"h{place}", x, (x @ rng.normal(size=4) + rng.normal() > 0).astype(np.int64)))
    return made


def module():
    linear = nn.Linear(4, 1).double()
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.zero_()
    return linear


def loss(logits, y):
    return functional.binary_cross_entropy_with_logits(logits[:, 0], y.double())


def learners(kind, private=()):
    if kind == "graph":
        return GraphLearner(START, SETTINGS), GraphLearner(START, OWN)
    common = TorchLearner(module(), SETTINGS, loss=loss, private=private)
    return common, TorchLearner(module(), OWN, loss=loss)


def slope(silo, weights):
    w = torch.tensor(weights, requires_grad=True)
    loss(torch.tensor(silo.x) @ w[:4, None] + w[4], torch.tensor(silo.y)).backward()
    return w.grad.numpy()


def textbook(parties):
    """Return the common parameters and each silo's own: Li et al. 2021, Algorithm 1, with G = FedAvg."""
    share = np.array([len(s.x) for s in parties]) / sum(len(s.x) for s in parties)
    common, own = np.zeros(5), np.zeros((len(parties), 5))
    for _ in range(SETTINGS.rounds):
        ends = []
        for place, silo in enumerate(parties):
            for _ in range(SETTINGS.local_steps):
                own[place] -= 0.3 * (slope(silo, own[place]) + PULL * (own[place] - common))
            end = common.copy()
            for _ in range(SETTINGS.local_steps):
                end -= 0.3 * slope(silo, end)
            ends.append(end)
        common = share @ np.array(ends)
    return common, own


def parameters(model):
    return flatten(model) if isinstance(model, Graph) else nn.utils.parameters_to_vector(model.parameters()).detach()


def trained(kind, *, aggregator=None):
    parties = silos()
    stores, learner = {silo.name: MemoryStore() for silo in parties}, Ditto(*learners(kind))
    *_, done = fit(learner, parties, SETTINGS, aggregator=aggregator or PlainSum(), stores=stores)
    return done, personal_models(learner, done.parameters, stores)


@pytest.mark.parametrize("kind", ["graph", "torch"])
@pytest.mark.parametrize("aggregator", [PlainSum(), Masked()], ids=["plain", "masked"])
def test_both_models_equal_the_algorithm(kind, aggregator):
    done, own = trained(kind, aggregator=aggregator)
    common, expected = textbook(silos())
    np.testing.assert_allclose(done.parameters, common, atol=1e-8)
    for place in range(3):
        np.testing.assert_allclose(parameters(own[f"h{place}"]), expected[place], atol=1e-8)
    assert np.abs(expected - common).max() > 0.1  # the silos' own models are not the common one


@pytest.mark.parametrize("kind", ["graph", "torch"])
def test_the_common_model_is_the_one_without_ditto(kind):
    done, _ = trained(kind)
    *_, alone = fit(learners(kind)[0], silos(), SETTINGS, aggregator=PlainSum())
    np.testing.assert_array_equal(done.parameters, alone.parameters)
    assert done.bytes_up == alone.bytes_up


def test_a_silo_that_never_counts_uses_the_common_model():
    settings, parties = train_section(**COMMON, quorum=2), silos()
    stores, learner = {silo.name: MemoryStore() for silo in parties}, Ditto(*learners("graph"))
    *_, done = fit(learner, parties, settings, aggregator=PlainSum(), stores=stores, fault=drop(src="h1"))
    own = personal_models(learner, done.parameters, stores)
    np.testing.assert_array_equal(parameters(own["h1"]), done.parameters)
    assert np.abs(parameters(own["h0"]) - done.parameters).max() > 1e-3
    assert stores["h1"].get("ditto/personal") is None
    assert all(store.get("ditto/personal/next") is None for store in stores.values())


def test_personal_models_fit_their_silos_better_than_the_common_one():
    done, own = trained("torch")
    for silo in silos():
        x, y = torch.tensor(silo.x), torch.tensor(silo.y)
        assert loss(own[silo.name](x), y) < loss(done.model(x), y)


def test_learners_that_do_not_fit_each_other_are_refused():
    common, own = learners("torch")
    with pytest.raises(UsageError, match="same"):
        Ditto(common, TorchLearner(nn.Linear(5, 1), OWN, loss=loss))
    with pytest.raises(UsageError, match="private"):
        Ditto(common, TorchLearner(module(), OWN, loss=loss, private=("bias",)))
    store = MemoryStore()
    store.commit({"ditto/personal": b"\0" * 8})
    with pytest.raises(ModelError, match="store"):
        Ditto(common, own).change(common.start, silos()[0], store, number=1)
