"""Figures from counts against scikit-learn's from the scores themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    roc_auc_score,
)

from confide.crypto.random import SeededRandomness
from confide.train import alerts, evaluate
from confide.train.figures import GROUPS, Evaluation, Figure, wilson
from confide.train.tally import BINS, NOISY_BINS, Tally, bins_of, edges_of

MEMBERS = (frozenset({"a", "b", "c"}), frozenset({"d", "e", "f", "g"}))


def evaluation(scores, y, *, classes=2, bins=BINS):
    tally = Tally(classes, bins, 10**6)
    vector = tally.contribution(scores, y, SeededRandomness("none is drawn"))
    return Evaluation.of(tally, vector.astype(np.float64), MEMBERS)


def within(figure, value):
    return figure.low - 1e-12 <= value <= figure.high + 1e-12 and figure.low <= figure.value <= figure.high


def calibration_error(score, happened):
    """The definition, group by group."""
    total = 0.0
    for group in range(GROUPS):
        inside = (score > group / GROUPS) & (score <= (group + 1) / GROUPS) | ((group == 0) & (score == 0))
        if inside.any():
            total += abs(score[inside].mean() - happened[inside].mean()) * inside.sum()
    return total / len(score)


@settings(max_examples=100, deadline=None)
@given(
    data=st.lists(st.tuples(st.floats(0, 1) | st.sampled_from([0.5, 0.25]), st.booleans()), min_size=1, max_size=60),
    bins=st.sampled_from([NOISY_BINS, BINS]),
)
def test_two_classes(data, bins):
    score, y = np.array([s for s, _ in data]), np.array([int(b) for _, b in data])
    found, chosen = evaluation(score[:, None], y, bins=bins), (score > 0.5).astype(int)
    assert found.records == Figure(len(y), len(y), len(y))
    assert found.accuracy.exact
    assert found.accuracy.value == pytest.approx(accuracy_score(y, chosen), abs=1e-15)
    recalls = [(chosen[y == label] == label).mean() for label in np.unique(y)]
    assert found.balanced_accuracy.value == pytest.approx(np.mean(recalls), abs=1e-12)
    np.testing.assert_array_equal(found.confusion, confusion_matrix(y, chosen, labels=[0, 1]))
    assert within(found.brier, ((score - y) ** 2).mean())
    assert within(found.calibration_error, calibration_error(score, y))
    assert found.brier.high - found.brier.low <= 2 * np.diff(edges_of(bins)).max()
    if len(set(y.tolist())) == 2:
        assert within(found.auc, roc_auc_score(y, score))
        where = bins_of(score, edges_of(bins))  # the bound by hand: pairs that share a bin
        same = sum(int((where[y == 1] == b).sum() * (where[y == 0] == b).sum()) for b in range(bins))
        assert found.auc.high - found.auc.low == pytest.approx(same / ((y == 1).sum() * (y == 0).sum()), abs=1e-12)
    else:
        assert found.auc is None


def test_a_larger_table_agrees_closely():
    draw = np.random.Generator(np.random.PCG64(7))
    y = draw.integers(0, 2, 4000)
    score = 1 / (1 + np.exp(-draw.normal(2 * y - 1, 1.5)))
    found = evaluation(score[:, None], y)
    assert found.auc.value == pytest.approx(roc_auc_score(y, score), abs=1e-4)
    assert found.auc.high - found.auc.low < 0.01
    assert found.brier.value == pytest.approx(brier_score_loss(y, score), abs=1e-3)
    assert found.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(y, score > 0.5), abs=1e-12)
    assert found.calibration_error.value == pytest.approx(calibration_error(score, y), abs=2e-3)
    for point in found.curve:
        inside = (score > point.above) & (score <= point.up_to)
        assert point.records.value == inside.sum()
        assert within(point.score, score[inside].mean())
        assert point.happened.value == pytest.approx(y[inside].mean(), abs=1e-12)


@pytest.mark.parametrize("better", [0, 1])
def test_the_auc_bound_is_reached(better):
    """Both classes in one bin, in either order: the truth is an end of the interval, so no narrower one would do."""
    edges = edges_of(BINS)
    y = np.array([0, 0, 1, 1])
    score = np.linspace(edges[200], edges[201], 6)[1:-1]
    score = score if better else score[::-1]
    found = evaluation(score[:, None], y).auc
    assert (found.low, found.value, found.high) == (0, 0.5, 1)
    assert roc_auc_score(y, score) == better


def test_rare_outcomes_are_told_apart():
    """All scores below 1/64, as of a rare disease: bins of equal width would say nothing at all."""
    draw = np.random.Generator(np.random.PCG64(3))
    y = (np.arange(2000) % 50 == 0).astype(np.int64)
    score = np.clip(0.002 + 0.004 * y + draw.exponential(0.001, 2000), 0, 0.015)
    found = evaluation(score[:, None], y)
    assert found.auc.high - found.auc.low < 0.05
    equal = Tally(2, 32, 10**6)  # the control: with its coarse bins the interval is wide
    coarse = Evaluation.of(equal, equal.contribution(score[:, None], y, SeededRandomness("-")).astype(float), MEMBERS)
    assert coarse.auc.high - coarse.auc.low > 0.3
    assert within(found.auc, roc_auc_score(y, score))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), classes=st.integers(3, 5), records=st.integers(1, 60))
def test_several_classes(seed, classes, records):
    draw = np.random.Generator(np.random.PCG64(seed))
    scores, y = draw.random((records, classes)), draw.integers(0, classes, records)
    found, chosen = evaluation(scores, y, classes=classes), scores.argmax(axis=1)
    right, confidence = (chosen == y).astype(float), scores.max(axis=1)
    assert found.accuracy.value == pytest.approx(accuracy_score(y, chosen), abs=1e-15)
    np.testing.assert_array_equal(found.confusion, confusion_matrix(y, chosen, labels=range(classes)))
    assert within(found.brier, ((confidence - right) ** 2).mean())
    assert within(found.calibration_error, calibration_error(confidence, right))
    assert found.auc is None


@pytest.mark.parametrize(("right", "records"), [(0, 1), (1, 1), (3, 10), (90, 100), (1000, 1000)])
def test_wilson(right, records):
    expected = binomtest(right, records).proportion_ci(method="wilson")
    assert wilson(right / records, records) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_new_records_vary_more_than_those_that_were_counted():
    y = np.array([0, 1] * 10)
    found = evaluation(np.where(y == 1, 0.9, 0.1)[:, None], y)
    assert found.accuracy == Figure(1.0, 1.0, 1.0)
    low, high = wilson(1.0, 20)
    assert found.accuracy_on_new_records() == Figure(1.0, low, high)
    assert 0.8 < low < 0.9
    assert wilson(0.5, 0) == (0.0, 1.0)


def test_what_is_printed():
    y = np.array([0, 1] * 10)
    found = evaluation(np.where(y == 1, 0.9, 0.1)[:, None], y)
    assert found.members == frozenset("abcdefg")
    assert found.smallest == 3
    assert found.sentences()[:2] == [
        "on 20 held-out records of 7 parties, counted in one sum:",
        "accuracy 1.000; for new records 1.000 (0.839 to 1.000)",
    ]
    assert found.sentences()[-1] == "AUC 1.000"
    assert str(Figure(0.5, 0.0, 1.0)) == "cannot tell"


def test_noise_without_records_tells_nothing():
    tally = Tally(2, NOISY_BINS, 100)
    draw = np.random.Generator(np.random.PCG64(5))
    found = Evaluation.of(tally, 5.0 * draw.standard_normal(tally.length), MEMBERS, noise=5.0)
    for figure in (found.accuracy, found.auc, found.brier, found.calibration_error):
        assert figure.high - figure.low > 0.9
    assert found.records.low == 0
    assert found.records.high < 60
    assert found.accuracy_on_new_records() == Figure(found.accuracy.value, 0.0, 1.0)


# --- a rare class -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=60), st.floats(0.01, 1))
def test_what_alerts_are_worth_lies_between_the_ends_of_the_counts(pairs, rate):
    """The oracle is the same figure of the scores themselves; eight scores share a bin here."""
    fine = np.array([score for score, _ in pairs])
    y = np.array([int(label) for _, label in pairs])
    cells = np.zeros((2, 6))
    np.add.at(cells, (y, fine // 8), 1.0)
    shared = (fine // 8).astype(float)
    value, low, high = alerts.precision_at_alert_rate(cells, rate)
    assert low - 1e-12 <= evaluate.precision_at_alert_rate(fine.astype(float), y, rate) <= high + 1e-12
    assert value == pytest.approx(evaluate.precision_at_alert_rate(shared, y, rate), abs=1e-12)
    if y.any():
        value, low, high = alerts.average_precision(cells)
        assert low - 1e-12 <= evaluate.average_precision(fine.astype(float), y) <= high + 1e-12
        assert value == pytest.approx(evaluate.average_precision(shared, y), abs=1e-12)


def test_a_class_is_rare_below_a_tenth():
    assert alerts.is_rare(np.array([[95.0], [5.0]]))
    assert not alerts.is_rare(np.array([[90.0], [10.0]]))
    assert not alerts.is_rare(np.array([[90.0], [0.0]]))
