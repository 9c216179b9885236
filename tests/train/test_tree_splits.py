"""Columns, codes and splits: what a node compares is what its histogram promised, and the best split is the best."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import DataError, JobError
from confide.model.preprocess import OneHot, Preprocess, Scale
from confide.train import tree_splits
from confide.train.tree_columns import Candidates, candidates_of, codes_of, columns_of, starts_of
from confide.train.tree_splits import Penalty, best

AGE = Scale(name="age", low=0.0, high=100.0, bins=(18.0, 30.0, 65.0), ordinal=True)
PULSE = Scale(name="pulse", low=20.0, high=220.0, bins=(60.0, 100.0), ordinal=True, missing="level", outside="clip")
WARD = OneHot(name="ward", categories=("a", "b", "c"), missing="level")
RULES = Preprocess((AGE, PULSE, WARD))
RAW = {
    "age": np.array([0.0, 17.9, 18.0, 29.0, 30.0, 64.9, 65.0, 100.0]),
    "pulse": np.array([20.0, np.nan, 59.9, 60.0, np.nan, 99.0, 100.0, 400.0]),
    "ward": np.array(["a", "b", "c", "", "a", "b", "c", ""], object),
}
WIDE = np.array([[-9.0, 9.0]])
FREE = Penalty(ridge=0.0, least_hessian=1.0, least_gain=0.0)
RIDGE = Penalty(ridge=1.0, least_hessian=1.0, least_gain=0.0)
CODES = [[0, 1, 0], [0, 0, 1], [1, 1, 2], [1, 2, 3], [2, 0, 0], [2, 2, 1], [3, 3, 2], [3, 3, 3]]


def test_codes_are_intervals_and_categories():
    columns = columns_of(RULES)
    assert [(one.name, one.kind, one.levels, one.first) for one in columns] == [
        ("age", "number", 4, 0),
        ("pulse", "missing", 4, 1),
        ("ward", "category", 4, 3),
    ]
    assert codes_of(columns, RULES.apply(RAW)).tolist() == CODES


def test_a_missing_number_lies_below_all_others_and_above_all_others():
    x = RULES.apply(RAW)[:, 1:3]
    absent = np.isnan(RAW["pulse"])
    assert (x[absent] == [-1.0, 1.0]).all()
    assert (x[~absent, 0] > -1).all()
    assert (x[~absent, 1] < 1).all()
    assert RULES.names[1:3] == ("pulse (missing below)", "pulse (missing above)")


@given(bins=st.integers(1, 255), missing=st.booleans())
def test_each_interval_has_a_code_of_its_own_up_to_255(bins, missing):
    edges = tuple(float(edge) for edge in range(1, bins))
    rule = Scale(name="n", low=0.0, high=300.0, bins=edges, ordinal=True, missing="level" if missing else None)
    values = np.append(np.arange(bins) + 0.5, [np.nan] if missing else [])
    found = codes_of(columns_of(Preprocess((rule,))), rule.apply(values)).ravel()
    assert sorted(found.tolist()) == list(range(bins + missing))


def test_a_node_sends_left_what_its_split_says():
    columns, x = columns_of(RULES), RULES.apply(RAW)
    flat = codes_of(columns, x).astype(np.int64) + starts_of(columns)[:-1]
    found = candidates_of(columns)
    for place in range(len(found.low)):
        own = flat[:, found.column[place]]
        inside = (found.low[place] <= own) & (own < found.high[place])
        left = x[:, found.feature[place]] <= found.threshold[place]
        assert (left == (inside != found.right[place])).all()


def test_every_split_of_a_number_is_there_with_missing_ones_on_either_side():
    columns = columns_of(Preprocess((PULSE,)))
    found = candidates_of(columns)
    sides = set()
    for low, high in zip(found.low.tolist(), found.high.tolist(), strict=True):
        side = frozenset(range(low, high))
        sides.add(min(side, frozenset(range(4)) - side, key=sorted))
    below = [{0}, {0, 1}, {0, 1, 2}]
    either = [set(range(1, cut)) for cut in (2, 3)]  # and missing ones above
    assert sides == {min(frozenset(s), frozenset(range(4)) - frozenset(s), key=sorted) for s in [*below, *either]}


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (Preprocess((AGE,), unit_rows=True), "columns as they are"),
        (Preprocess((AGE,), centre=(0.1,)), "columns as they are"),
        (Preprocess((msgspec.structs.replace(AGE, ordinal=False),)), "got column 'age'"),
        (
            Preprocess((OneHot(name="shop", categories=tuple(map(str, range(257)))),)),
            "at most 256 levels",
        ),
    ],
)
def test_what_trees_do_not_take_is_refused(rules, text):
    with pytest.raises(JobError, match=text):
        columns_of(rules)


def test_monotone_columns_are_numbers_that_there_are():
    with pytest.raises(JobError, match="got the category 'ward'"):
        columns_of(RULES, {"ward": 1})
    with pytest.raises(JobError, match="got 'weight'"):
        columns_of(RULES, {"weight": 1})


@pytest.mark.parametrize("wrong", [np.full((2, 7), 1.5), np.full((2, 7), np.nan), np.zeros((2, 6))])
def test_features_that_no_preparation_gives_are_refused(wrong):
    with pytest.raises(DataError, match="features from -1 to 1"):
        codes_of(columns_of(RULES), wrong)


# --- the best split ---------------------------------------------------------------------------------------------------


def loss(sums: tuple[float, float], ridge: float, low: float, high: float) -> tuple[float, float]:
    """Return (value, change of the loss) of a leaf, by the definition."""
    value = min(max(-sums[0] / (sums[1] + ridge), low), high)
    return value, sums[0] * value + (sums[1] + ridge) * value**2 / 2


def by_hand(columns, sums, ridge, least, low, high):
    """Return the gain of every way to part the codes of one column that a node can compare, best first."""
    whole = sums[: columns[0].levels].sum(axis=0)
    found = []
    for column, start in zip(columns, starts_of(columns).tolist(), strict=False):
        own = sums[start : start + column.levels]
        if column.kind == "category":
            lefts = [set(range(column.levels)) - {code} for code in range(column.levels)]
        else:
            lefts = [set(range(cut)) for cut in range(1, column.levels)]
            if column.kind == "missing":
                lefts += [set(range(1, cut)) for cut in range(2, column.levels)]
        for left in lefts:
            one = own[sorted(left)].sum(axis=0)
            other = whole - one
            if min(one[1], other[1]) < least:
                continue
            (value, first), (upper, second) = (loss(tuple(side), ridge, low, high) for side in (one, other))
            if column.rises * (upper - value) < 0:
                continue
            found.append(loss(tuple(whole), ridge, low, high)[1] - first - second)
    return max(found, default=-math.inf)


@st.composite
def nodes(draw):
    """Draw sums whose columns agree on the node's own."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    columns = columns_of(RULES, draw(st.sampled_from([{}, {"age": 1}, {"age": -1, "pulse": 1}])))
    n = draw(st.integers(0, 30))
    g = rng.integers(-(2**20), 2**20, n)
    h = rng.integers(1, 2**18, n)
    sums = np.zeros((12, 2))
    for column, start in zip(columns, starts_of(columns).tolist(), strict=False):
        np.add.at(sums, start + rng.integers(0, column.levels, n), np.stack([g, h], axis=1) / 2**20)
    return columns, sums


@pytest.mark.parametrize("native", [False, True])
@given(drawn=nodes(), ridge=st.sampled_from([0.0, 1.0, 10.0]), least=st.sampled_from([1e-6, 0.1, 1.0]))
def test_no_split_gains_more_than_the_best(native, drawn, ridge, least):
    columns, sums = drawn
    bounds = np.array([[-math.inf, math.inf]])
    penalty = Penalty(ridge=ridge, least_hessian=least, least_gain=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_splits, "_native", tree_splits._native if native else None)
        found = best(candidates_of(columns), sums[None], columns[0].levels, bounds, penalty)
    expected = by_hand(columns, sums, ridge, least, -math.inf, math.inf)
    if found.split[0] < 0:
        assert expected <= 1e-9
    else:
        assert found.gain[0] == pytest.approx(expected, abs=1e-9)
        whole = sums[: columns[0].levels].sum(axis=0)
        gained = loss(tuple(whole), ridge, -math.inf, math.inf)[1]
        rises = candidates_of(columns).rises[found.split[0]]
        assert rises * (found.sides[0, 1] - found.sides[0, 0]) >= 0
        assert gained >= expected - 1e-9 or expected > 0


@given(drawn=nodes())
def test_both_engines_choose_the_same_to_the_bit(drawn):
    _, sums = drawn
    if tree_splits._native is None:
        pytest.skip("installed without a C++ compiler")
    bounds, penalty = np.array([[-math.inf, math.inf]]), Penalty(ridge=1.0, least_hessian=0.1, least_gain=0.0)
    candidates = candidates_of(columns_of(RULES))
    chosen = [best(candidates, sums[None], 4, bounds, penalty)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_splits, "_native", None)
        chosen.append(best(candidates, sums[None], 4, bounds, penalty))
    for name in ("split", "gain", "value", "sides", "weights", "bounds"):
        one, other = (getattr(found, name) for found in chosen)
        assert (one == other).all(), name


def test_what_lies_below_a_rising_split_stays_on_its_side():
    columns = columns_of(Preprocess((AGE,)), {"age": 1})
    sums = np.array([[[3.0, 2.0], [1.0, 2.0], [-1.0, 2.0], [-2.0, 2.0]]])
    found = best(
        candidates_of(columns),
        sums,
        4,
        np.array([[-math.inf, math.inf]]),
        FREE,
    )
    middle = found.sides[0].mean()
    assert found.bounds[0].tolist() == [[-math.inf, middle], [middle, math.inf]]
    low, high = -0.1, 0.2
    bounded = best(candidates_of(columns), sums, 4, np.array([[low, high]]), FREE)
    assert low <= bounded.sides[0, 0] <= bounded.sides[0, 1] <= high


def test_a_node_of_one_kind_is_a_leaf():
    columns = columns_of(Preprocess((Scale(name="n", low=0.0, high=1.0, ordinal=True),)))
    candidates = candidates_of(columns)
    assert isinstance(candidates, Candidates)
    assert not len(candidates.low)
    found = best(
        candidates,
        np.array([[[2.0, 3.0]]]),
        1,
        WIDE,
        RIDGE,
    )
    assert (found.split[0], found.value[0]) == (-1, -0.5)


def test_equally_good_splits_are_decided_by_their_order():
    twin = msgspec.structs.replace(AGE, name="twin")
    columns = columns_of(Preprocess((AGE, twin)))
    own = [[3.0, 2.0], [1.0, 2.0], [-1.0, 2.0], [-2.0, 2.0]]
    for engine in (tree_splits._native, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tree_splits, "_native", engine)
            found = best(
                candidates_of(columns),
                np.array([own * 2]),
                4,
                WIDE,
                RIDGE,
            )
        assert candidates_of(columns).column[found.split[0]] == 0
