"""Federated standardisation against scikit-learn's on the pooled records."""

import numpy as np
import pytest
from confide.train.standardise import standardised
from sklearn.preprocessing import StandardScaler

from confide.crypto.random import SystemRandomness
from confide.errors import Aborted, DataError, JobError, ModelError
from confide.ideal import PlainSum
from confide.model.preprocess import OneHot, Preprocess, Scale
from confide.train import load_data, parse, train
from confide.train.parts import AGGREGATORS

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
    return standardised(
        RULES, parties, aggregator=aggregator or PlainSum(), quorum=3, expected_records=expected_records,
        rng=SystemRandomness(),
    )  # fmt: skip


@pytest.mark.parametrize("aggregator", [kind() for kind in AGGREGATORS.values()], ids=lambda a: a.name)
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
    assert (
        standardised(only, PARTIES, aggregator=PlainSum(), quorum=3, expected_records=9, rng=SystemRandomness()) == only
    )


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
        standardised(
            RULES, PARTIES, aggregator=_Silent(), quorum=3, expected_records=50, rng=SystemRandomness()
        )  # fmt: skip


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
