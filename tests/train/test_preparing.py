"""What a job takes from all records before its training, against scikit-learn on the pooled records."""

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from confide.crypto.random import SystemRandomness
from confide.data.sets import load_set
from confide.data.table import Table
from confide.errors import Aborted, DataError, JobError, ModelError
from confide.ideal import PlainSum
from confide.model.preprocess import OneHot, Preprocess, Scale
from confide.model.zoo import logistic
from confide.train import load_data, parse, pooled_model, train
from confide.train.evaluate import decide
from confide.train.local import gradient_sum, record_gradients, unflatten
from confide.train.parts import AGGREGATORS
from confide.train.preparing import Preparing, PreparingSum, prepared, preparing_of
from tee.aggregators import MADE

RULES = Preprocess((
    Scale(name="age", low=0, high=120),
    Scale(name="dose", low=-1e3, high=1e3, missing=2.0),
    OneHot(name="sex", categories=("f", "m")),
    Scale(name="same", low=0, high=1),
))  # fmt: skip


def columns(size, seed):
    rng = np.random.default_rng(seed)
    dose = rng.normal(3, 2, size)
    dose[::7] = np.nan
    age = np.clip(rng.normal(50 + 10 * seed, 9, size), 0, 120)
    return {"age": age, "dose": dose, "sex": np.array(["f", "m"] * size)[:size], "same": np.full(size, 0.5)}


PARTIES = {f"h{seed}": columns(size, seed) for seed, size in enumerate((40, 9, 120))}


def common(aggregator=None, parties=PARTIES, expected_records=50):
    return standardised(RULES, parties, aggregator or PlainSum(), expected_records)


def standardised(rules, parties, aggregator, expected_records):
    tables = {name: Table(columns, np.zeros(len(columns["age"]), np.int64)) for name, columns in parties.items()}
    asked = PreparingSum(Preparing(rules, "standardise"), expected_records)
    return prepared(asked, tables, aggregator=aggregator, quorum=3, rng=SystemRandomness()).preprocess


@pytest.mark.parametrize("aggregator", [kind() for kind in MADE.values()], ids=lambda a: a.name)
def test_it_is_the_pooled_standardisation(aggregator):
    age = np.concatenate([p["age"] for p in PARTIES.values()])
    dose = np.nan_to_num(np.concatenate([p["dose"] for p in PARTIES.values()]), nan=2.0)
    pooled = StandardScaler().fit(np.c_[age, dose])
    prepare = common(aggregator)
    for rule, mean, deviation in zip(prepare.rules, pooled.mean_, pooled.scale_, strict=False):
        assert rule.standard == pytest.approx((mean, deviation), rel=1e-5)
    x = prepare.apply(PARTIES["h1"])
    expected = pooled.transform(np.c_[PARTIES["h1"]["age"], np.nan_to_num(PARTIES["h1"]["dose"], nan=2.0)])
    np.testing.assert_allclose(x[:, :2], np.clip(expected / 4, -1, 1), atol=1e-6)
    own = StandardScaler().fit(PARTIES["h1"]["age"][:, None])
    assert abs(own.mean_[0] - pooled.mean_[0]) > 1  # what each party would have done alone


def test_categories_and_constant_columns_stay():
    assert common().rules[2:] == RULES.rules[2:]
    only = Preprocess((RULES.rules[2],))
    job = parse({"data": {"set": "breast-cancer", "standardise": True}})
    assert preparing_of(job, only, 2) is None  # and no sum is taken
    assert preparing_of(job, RULES, 2).length == 1 + 2 * 3


def test_features_stay_in_the_box_and_bounds_still_refuse():
    prepare = common()
    far = {key: value[:2] for key, value in PARTIES["h0"].items()} | {"dose": np.array([-999.0, 999.0])}
    assert prepare.apply(far)[:, 1].tolist() == [-1.0, 1.0]
    with pytest.raises(DataError, match="'dose' from -1000 to 1000"):
        prepare.apply(far | {"dose": np.array([0.0, 1001.0])})
    assert Preprocess.decode(prepare.encode()) == prepare


@pytest.mark.parametrize("standard", [(0.5, 0.0), (0.5, np.nan), (2.0, 1.0), (np.nan, 1.0), (0.5, np.inf)])
def test_a_standard_that_cannot_be_is_refused(standard):
    with pytest.raises(ModelError, match="Expected a mean within the bounds"):
        Scale(name="a", low=0, high=1, standard=standard)


def test_too_many_records_and_lost_quorum():
    with pytest.raises(DataError, match="train.expected_records"):
        common(expected_records=1)
    with pytest.raises(Aborted):
        common(_Silent())


class _Silent(PlainSum):
    """Clients that never send."""

    def party(self, role, me, session, vector, store, rng):
        return super().party(role, me, session, vector, store, rng) if role == "server" else _gone()


def _gone():
    return
    yield


def test_a_job_standardises_and_the_model_carries_it():
    job = parse({"data": {"set": "breast-cancer", "standardise": True}, "train": {"rounds": 2}})
    data = load_data(job)
    x = np.concatenate([silo.x for silo in data.silos])
    inside = np.abs(x).max(axis=0) < 1  # columns where nothing was clipped
    assert inside.sum() > 3
    np.testing.assert_allclose(x[:, inside].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(x[:, inside].std(axis=0), 0.25, atol=1e-5)
    assert np.abs(x).max() <= 1
    assert len(list(train(job, data))) == 2


def test_a_job_with_two_servers_standardises_too():
    """Their sum is not bounded: moments are no updates, and a norm bound of a job would refuse them."""
    sections = {"data": {"set": "breast-cancer", "standardise": True}}
    masked = load_data(parse(sections))
    shares = load_data(parse(sections | {"train": {"aggregate": "shares", "norm_bound": 1e-3}}))
    assert shares.preprocess == masked.preprocess


def test_a_quorum_above_the_parties_is_refused():
    with pytest.raises(JobError, match="train.quorum=9"):
        load_data(parse({"data": {"set": "breast-cancer", "standardise": True}, "train": {"quorum": 9}}))


@pytest.mark.parametrize("aggregator", [PlainSum(), AGGREGATORS["masked"]()], ids=lambda a: a.name)
def test_class_weights_are_those_of_the_pooled_counts(aggregator):
    """And the loss they weigh is scikit-learn's with sample weights: the same gradient."""
    labels = {name: np.arange(len(party["age"])) % 3 // 2 for name, party in PARTIES.items()}
    tables = {name: Table(PARTIES[name], labels[name].astype(np.int64)) for name in PARTIES}
    asked = PreparingSum(Preparing(RULES, "centre", classes=2), 50)
    done = prepared(asked, tables, aggregator=aggregator, quorum=3, rng=SystemRandomness())
    counts = np.bincount(np.concatenate(list(labels.values())))
    assert done.class_weights == pytest.approx(counts.min() / counts, rel=1e-6)
    assert done.class_weights[1] == 1.0
    features = np.concatenate([RULES.apply(table.columns) for table in tables.values()])
    np.testing.assert_allclose(done.preprocess.centre, features.mean(axis=0), atol=1e-6)


def test_balanced_classes_move_the_model_as_repeated_records_would():
    """Weights 1/2 and 1 on a gradient are the weights 1 and 2 of records that occur twice, halved."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(30, 4)), (np.arange(30) % 3 == 0).astype(np.int64)
    graph = unflatten(logistic(4), rng.normal(size=5))
    twice = np.concatenate([np.arange(30), np.flatnonzero(y == 1)])
    weighed = gradient_sum(graph, x, y, class_weights=(0.5, 1.0))
    np.testing.assert_allclose(2 * weighed, gradient_sum(graph, x[twice], y[twice]), atol=1e-12)
    np.testing.assert_allclose(record_gradients(graph, x, y, class_weights=(0.5, 1.0)).sum(axis=0), weighed, atol=1e-12)


def test_a_job_balances_its_classes():
    """The rarer class is expected more often, and the federation is the pooled records still."""
    sections = {"data": {"set": "breast-cancer", "split": "even"}, "train": {"rounds": 8}}
    expected = []
    for weights in ("none", "balanced"):
        job = parse(sections | {"train": {**sections["train"], "class_weights": weights}})
        data = load_data(job)
        *_, done = train(job, data)
        chosen = decide(done.model.apply(data.test.x))
        second = float(done.model.apply(data.test.x).mean())
        expected.append([1 - second, second])
        pooled = decide(pooled_model(job, data).apply(data.test.x))
        assert (pooled == chosen).mean() > 0.99
    rare = int(np.bincount(np.concatenate([silo.y for silo in data.silos])).argmin())
    assert expected[1][rare] > expected[0][rare] + 0.003


def test_features_that_are_computed_once_are_those_of_the_saved_preparation():
    job = parse({"data": {"set": "breast-cancer", "standardise": "centre"}, "model": {"unit_rows": True}})
    data = load_data(job)
    table = load_set("breast-cancer")[1]
    every = data.preprocess.apply(table.columns)
    known = {row.tobytes() for row in every}
    assert data.preprocess.centre
    for silo in (*data.silos, data.test):
        assert {row.tobytes() for row in silo.x} <= known
