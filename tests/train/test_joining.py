"""Whether joining helped: the interval keeps its promise for every small table, and says so only beyond chance."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial

from confide.errors import DataError
from confide.model.graph import Graph, Linear, Sigmoid
from confide.train import load_data, local_models, parse
from confide.train.evaluate import accuracy
from confide.train.joining import clopper_pearson, compare, paired_gain, trained_alone
from confide.train.local import Silo


@settings(max_examples=60, deadline=None)
@given(trials=st.integers(0, 300), data=st.data())
def test_clopper_pearson(trials, data):
    hits = data.draw(st.integers(0, trials))
    if not trials:
        assert clopper_pearson(0, 0, 0.02) == (0, 1)
        return
    expected = binomtest(hits, trials).proportion_ci(0.96, method="exact")
    assert clopper_pearson(hits, trials, 0.02) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("records", [1, 5, 20, 40])
@pytest.mark.parametrize(
    ("first", "second"), [(0.0, 0.0), (0.1, 0.1), (0.3, 0.05), (0.5, 0.5), (0.02, 0.4), (1.0, 0.0)]
)
def test_the_interval_covers_the_truth_at_every_size(records, first, second):
    """Over all tables that can come out: never below 95 %."""
    covered = 0.0
    law = multinomial(records, [first, second, max(0.0, 1 - first - second)])
    for b in range(records + 1):
        for c in range(records + 1 - b):
            found = paired_gain(b, c, records)
            assert found.low <= found.value <= found.high
            if found.low <= first - second <= found.high:
                covered += law.pmf([b, c, records - b - c])
    assert covered >= 0.95


def test_it_is_above_zero_exactly_when_the_sign_test_says_so():
    for differ in range(40):
        for b in range(differ + 1):
            tail = sum(comb(differ, k) for k in range(b, differ + 1)) / 2**differ
            found = paired_gain(b, differ - b, 100)
            assert (found.low > 0) == (tail < 0.02)
            other = paired_gain(differ - b, b, 100)
            assert (other.high < 0) == (tail < 0.02)
            assert (other.low, other.high) == pytest.approx((-found.high, -found.low), abs=1e-12)


def model(sign):
    return Graph((Linear(np.array([[4.0 * sign]]), np.zeros(1)), Sigmoid()))


@pytest.mark.parametrize(
    ("records", "verdict"), [(1, "cannot tell"), (5, "cannot tell"), (6, "helped"), (40, "helped")]
)
def test_verdicts(records, verdict):
    x = np.linspace(-1, 1, 2 * records)[::2][:, None] + 1e-3
    held = Silo("north", x, (x[:, 0] > 0).astype(np.int64))
    found = compare(model(1), model(-1), held)
    assert (found.only_common, found.only_alone) == (records, 0)
    assert found.verdict == verdict
    assert not found.fall_back
    worse = compare(model(-1), model(1), held)
    assert worse.verdict == {"helped": "hurt"}.get(verdict, verdict)
    assert worse.fall_back == (verdict == "helped")
    assert compare(model(1), model(1), held).verdict == "cannot tell"
    assert verdict.split()[0] in found.sentences()[1]
    assert found.common.accuracy.value == accuracy(model(1), held.x, held.y)


def test_no_records_no_comparison():
    with pytest.raises(DataError, match="at least one held-out record at north"):
        compare(model(1), model(1), Silo("north", np.zeros((0, 1)), np.zeros(0, np.int64)))


def test_a_party_compares_with_the_model_that_it_trains_alone():
    job = parse({"data": {"set": "breast-cancer", "alpha": 100.0}, "train": {"rounds": 3}})
    data = load_data(job)
    alone = local_models(job, data)
    for own, held in zip(data.silos, data.held, strict=True):
        mine = trained_alone(job, data.preprocess, data.start, own.x, own.y)
        np.testing.assert_array_equal(mine.layers[0].weight, alone[own.name].layers[0].weight)
        found = compare(mine, data.start, held)
        assert found.party == held.name
        assert found.common.members == {held.name}
        assert found.common.records.value == len(held.y)
        assert found.common.accuracy.value == accuracy(mine, held.x, held.y)
