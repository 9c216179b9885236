"""The extraction attack really finds a model, and does not find one that answers with noise."""

import numpy as np

from confide.compare.attack import extract_linear, extraction
from confide.model.graph import Graph, Linear, Sigmoid


def logistic(seed, features=30):
    rng = np.random.default_rng(seed)
    return Graph((Linear(rng.normal(size=(1, features)), rng.normal(size=1)), Sigmoid()))


def test_features_plus_one_answers_give_the_model():
    truth, asked = logistic(1), []

    def predict(x):
        asked.extend(x)
        return truth.apply(x)

    found = extraction(predict, truth, np.random.default_rng(2).random((500, 30)))
    assert len(asked) == found.queries == 31
    assert found.largest_error < 1e-9
    assert found.agreement == 1.0


def test_it_fails_against_answers_that_do_not_depend_on_the_model():
    truth = logistic(1)
    noise = np.random.default_rng(3)
    found = extraction(lambda x: noise.random((len(x), 1)), truth, noise.random((500, 30)))
    assert found.largest_error > 0.1
    assert found.agreement < 0.95


def test_saturated_answers_stay_finite():
    truth = Graph((Linear(np.full((1, 3), 1e4), np.zeros(1)), Sigmoid()))
    stolen = extract_linear(truth.apply, 3)
    assert np.isfinite(stolen.apply(np.ones((1, 3)))).all()
