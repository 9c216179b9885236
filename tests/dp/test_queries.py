from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.dp import quantiles, queries, values
from confide.dp.queries import GRID
from confide.dp.spending import Allowance, Budget
from confide.errors import DataError, PrivacyError, UsageError
from confide.guarantee import NOISE_FROM_SYSTEM

TIGHT = {"epsilon": 32.0, "delta": 1e-2}  # hardly any noise: what is left is the query
LOOSE = {"epsilon": 1.0, "delta": 1e-5}


def records(count=4000, seed=0):
    return np.random.Generator(np.random.PCG64(seed)).normal(40.0, 15.0, count)


CLOSE = 6.5  # deviations: beyond it once in 10^10


def near(found, true):
    wanted = np.asarray(true, np.float64)
    return bool((np.abs(np.asarray(found.value) - wanted) <= CLOSE * np.asarray(found.standard_error) + 1).all())


# --- each is what it says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spending", [TIGHT, LOOSE])
def test_every_query_is_numpy_s_up_to_its_noise(spending):
    x = records()
    low, high = 0.0, 100.0
    cut = np.clip(x, low, high)
    bounds = {"bounds": (low, high), **spending}
    assert near(queries.count(x, **spending), len(x))
    assert near(queries.sum(x, **bounds), cut.sum())
    assert abs(queries.mean(x, **bounds).value - cut.mean()) < CLOSE * queries.mean(x, **bounds).standard_error
    assert abs(queries.variance(x, **bounds).value - cut.var()) < CLOSE * queries.variance(x, **bounds).standard_error
    assert abs(queries.std(x, **bounds).value - cut.std()) < CLOSE * queries.std(x, **bounds).standard_error
    edges = np.linspace(0, 100, 9)
    assert near(queries.histogram(x, edges=edges, **spending), np.histogram(x, edges)[0])
    found = queries.histogram2d(x, x[::-1], edges=(edges, [0, 50, 100]), **spending)
    assert near(found, np.histogram2d(x, x[::-1], (edges, [0, 50, 100]))[0])
    keys = np.where(x > 40, "old", "young")
    groups = {"groups": ["young", "old", "nobody"], **spending}
    assert near(queries.group_by(keys, **groups), [(x <= 40).sum(), (x > 40).sum(), 0])
    assert near(
        queries.group_by(keys, of="sum", values=x, bounds=(low, high), **groups),
        [cut[x <= 40].sum(), cut[x > 40].sum(), 0],
    )
    means = queries.group_by(keys, of="mean", values=x, bounds=(low, high), **groups)
    assert abs(means.value[0] - cut[x <= 40].mean()) < CLOSE * means.standard_error[0]
    assert means.standard_error[2] == math.inf
    assert means.value[2] == 50


@pytest.mark.parametrize("levels", [1, 2, 4, 6])
def test_quantiles_are_numpy_s_up_to_the_last_cell_without_noise_to_speak_of(levels):
    x = np.clip(np.random.Generator(np.random.PCG64(1)).exponential(20.0, 200_000), 0, 100)
    asked = [0.0, 0.01, 0.25, 0.5, 0.9, 1.0]
    found = quantiles.quantile(x, asked, bounds=(0, 100), levels=levels, **TIGHT)
    assert np.abs(found.value - np.quantile(x, asked))[1:5].max() < 0.1 + 100 / 16**levels
    assert (np.diff(found.value) >= 0).all()
    one = quantiles.median(x, bounds=(0, 100), levels=levels, **TIGHT)
    assert isinstance(one.value, float)
    assert abs(one.value - np.median(x)) < 0.1 + 100 / 16**levels


def test_intervals_hold_the_figure_without_noise_as_often_as_they_say():
    """400 draws each: a true coverage of 95 % is below 0.89 once in 10^6; intervals half as wide are caught."""
    x = np.clip(records(500), 0, 100)
    for query, true in ((queries.count, 500), (queries.mean, x.mean()), (queries.variance, x.var())):
        arguments = {} if query is queries.count else {"bounds": (0, 100)}
        inside = narrow = 0
        for seed in range(400):
            found = query(x, rng=SeededRandomness(f"{seed}"), **arguments, **LOOSE)
            low, high = found.interval(0.95)
            inside += low <= true <= high
            half = (high - low) / 4
            narrow += low + half <= true <= high - half
        assert inside / 400 > 0.89
        assert narrow / 400 < 0.85


def test_intervals_of_quantiles_are_wide_enough():
    x = records(2000)
    true = np.quantile(x, [0.1, 0.5, 0.9])
    inside = np.zeros(3)
    for seed in range(100):
        found = quantiles.quantile(x, [0.1, 0.5, 0.9], bounds=(0, 100), rng=SeededRandomness(f"{seed}"), **LOOSE)
        low, high = found.interval(0.95)
        inside += (low <= true) & (true <= high)
    assert (inside >= 90).all()


# --- what comes in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8, np.uint16, np.int64, np.bool_, list, tuple])
def test_numbers_of_every_kind_are_taken(kind):
    values = np.array([0, 1, 1, 0, 1] * 200)
    given = kind(values) if kind in (list, tuple) else values.astype(kind)
    assert abs(queries.sum(given, bounds=(0, 1), **TIGHT).value - 600) < 3


class Series:
    """What pandas and polars columns are to numpy."""

    def __init__(self, values):
        self._values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._values, dtype)


def test_a_data_frame_s_column_is_taken():
    assert abs(queries.count(Series([1.0, np.nan, 2.0] * 100), **TIGHT).value - 200) < 3


def test_missing_numbers_of_a_data_frame_count_for_nothing():
    """Nullable columns come as objects; whether there is a missing one must not decide between answer and error."""
    huge = 10**400
    for given in ([1.0, None, 2] * 100, [True, None, False] * 100, [1, huge, 2] * 100):
        assert abs(queries.count(np.array(given, object), **TIGHT).value - 200) < 3


def test_values_that_are_not_finite_count_for_nothing_and_values_beyond_the_bounds_as_the_bound():
    x = np.array([np.nan, np.inf, -np.inf, 1e308, -1e308, 0.5] * 100)
    assert abs(queries.count(x, **TIGHT).value - 300) < 3
    assert abs(queries.sum(x, bounds=(-1, 1), **TIGHT).value - 50) < 3
    assert abs(queries.mean(x, bounds=(-1, 1), **TIGHT).value - 1 / 6) < 0.02
    assert abs(queries.histogram(x, edges=[0, 1, 2], **TIGHT).value - [100, 0]).max() < 3
    assert abs(quantiles.median(x, bounds=(-1, 1), **TIGHT).value - 0.5) < 0.01


@pytest.mark.parametrize("x", [[], [0.25]])
def test_no_record_and_one_record_are_answered_like_any_other(x):
    for query in (queries.mean, queries.variance, queries.std, queries.sum, quantiles.median):
        found = query(x, bounds=(0, 1), **LOOSE)
        assert found.epsilon <= 1.0
        low, high = found.interval()
        assert low <= high
    assert queries.mean(x, bounds=(0, 1), **LOOSE).standard_error == math.inf
    assert queries.mean(x, bounds=(0, 1), **LOOSE).interval() == (0.0, 1.0)
    assert queries.histogram(x, edges=[0, 1], **LOOSE).value.shape == (1,)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        (lambda: queries.mean([1.0], bounds=None, **LOOSE), "they are public"),
        (lambda: queries.mean([1.0], bounds=(1, 1), **LOOSE), "below"),
        (lambda: queries.mean([1.0], bounds=(0, math.inf), **LOOSE), "finite"),
        (lambda: queries.mean([1.0], bounds=(math.nan, 1), **LOOSE), "below"),
        (lambda: queries.mean([1.0], bounds=(-1e308, 1.1e308), **LOOSE), "finite"),
        (lambda: queries.mean([1.0], bounds=5, **LOOSE), "two numbers"),
        (lambda: queries.histogram([1.0], edges=10, **LOOSE), "would take the ends from the records"),
        (lambda: queries.histogram([1.0], edges=[1, 0], **LOOSE), "rising"),
        (lambda: queries.group_by(["a"], groups=[], **LOOSE), "groups"),
        (lambda: queries.group_by(["a"], groups=["a", "a"], **LOOSE), "different"),
        (lambda: queries.group_by(["a"], groups=["a"], of="sum", **LOOSE), "values and bounds"),
        (lambda: quantiles.quantile([1.0], 1.5, bounds=(0, 1), **LOOSE), "from 0 to 1"),
        (lambda: quantiles.quantile([1.0], 0.5, bounds=(0, 1), levels=9, **LOOSE), "levels"),
        (lambda: queries.count([1.0], seed=1, **LOOSE), "Unknown argument"),
    ],
)
def test_public_arguments_that_are_missing_or_wrong_are_refused(wrong, names):
    with pytest.raises(UsageError, match=names):
        wrong()


@pytest.mark.parametrize("wrong", [np.array(["secret 123"]), np.array([["x"]]), np.array([1 + 2j]), 5.0, "secret"])
def test_what_is_no_number_by_its_type_is_refused_without_a_value_in_the_text_or_a_charge(wrong):
    budget = Budget(1.0)
    with pytest.raises(DataError) as refused:
        queries.mean(wrong, bounds=(0, 1), budget=budget, share=0.5)
    assert not budget.releases
    assert "123" not in str(refused.value)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


ODD = ("x", b"x", None, math.nan, 10**400, 1 + 2j, [1.0], {"a": 1}, np.datetime64("2020-01-01"), Decimal("sNaN"))


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_one_odd_record_is_no_number_and_leaves_every_other_as_it_is(odd):
    """One type for all of a list would turn 1, True and 2^53 + 1 into text or another number."""
    for one in (2**53 + 1, True, b"a", "a", 1.5, (1, "a")):
        keys = [one] * 1000
        assert (values.places(values.column_of([*keys, odd]), [one])[:1000] == 0).all()
        assert values.places(values.column_of([odd]), [one])[0] == -1
        assert abs(queries.group_by([*keys, odd], groups=[one], **TIGHT).value[0] - 1000) < 50
    for given in ([*[2.0] * 1000, odd], np.array([*[2.0] * 1000, None], object)):
        assert np.array_equal(values.numbers(given), [*[2.0] * 1000, math.nan], equal_nan=True)
        assert abs(queries.count(given, **TIGHT).value - 1000) < 50


def test_bounds_closer_than_normal_numbers_are_refused_and_no_sum_is_beyond_its_sensitivity():
    for bounds in ((0, 5e-324), (0, 1e-308), (-5e-324, 5e-324)):
        with pytest.raises(UsageError, match="wider"):
            queries.mean([0.0], bounds=bounds, **LOOSE)
    assert (np.abs(queries.within(np.array([0.0, 5e-324]), 0.0, 5e-324)) <= 1).all()


@pytest.mark.filterwarnings("error")
def test_values_far_out_are_cut_without_a_warning():
    assert queries.mean([1e308] * 1000, bounds=(-8e307, 8e307), **TIGHT).value > 7e307


@pytest.mark.parametrize(
    "wrong",
    [
        lambda budget: queries.group_by(["a"], groups=["a"], of="foo", budget=budget, share=0.5),
        lambda budget: queries.group_by(["a"], groups=[["a"]], budget=budget, share=0.5),
        lambda budget: queries.count([1.0], budget=budget, share="a"),
        lambda budget: queries.count([1.0], budget=1, share=0.5),
        lambda budget: quantiles.quantile([1.0], 0.5, bounds=(0, 1), levels=2.5, budget=budget, share=0.5),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_charged(wrong):
    budget = Budget(1.0)
    with pytest.raises(UsageError):
        wrong(budget)
    assert not budget.releases


def test_masked_arrays_are_refused_because_numpy_would_show_what_they_hide():
    with pytest.raises(DataError, match="masked"):
        queries.mean(np.ma.masked_array([1.0, 2.0], [True, False]), bounds=(0, 3), **LOOSE)


# --- what is said ----------------------------------------------------------------------------------------------------


def test_a_label_says_unit_relation_and_noise_and_a_seed_voids_it():
    found = queries.mean([1.0] * 100, bounds=(0, 2), **LOOSE)
    label = found.label
    assert (label.unit, label.relation, label.seed) == ("record", "add or remove one", NOISE_FROM_SYSTEM)
    assert 0.999 < found.epsilon <= 1.0
    assert found.delta == 1e-5
    assert not label.voided
    assert "discrete Gaussian" in label.mechanism
    seeded = queries.mean([1.0] * 100, bounds=(0, 2), rng=SeededRandomness("test"), **LOOSE)
    assert seeded.label.voided
    assert "no privacy claim" in seeded.label.seed


def test_two_answers_have_different_noise():
    assert queries.sum([0.5], bounds=(0, 1), **LOOSE).value != queries.sum([0.5], bounds=(0, 1), **LOOSE).value


def test_sums_are_exact_integers_before_their_noise():
    x = records(1000)
    cut = np.clip(x, 0, 100)
    steps = [round(float(one) / 100 * GRID) for one in cut]
    seeded = {"rng": SeededRandomness("same"), **LOOSE}
    empty = queries.sum([], bounds=(0, 100), **seeded | {"rng": SeededRandomness("same")}).value
    assert queries.sum(x, bounds=(0, 100), **seeded).value - empty == pytest.approx(sum(steps) * 100 / GRID, rel=1e-14)


@pytest.mark.parametrize("factor", [1.0, 2 / 3, 3 / 2])
def test_the_noise_has_the_deviation_that_was_charged(factor):
    """4,000 draws: the true deviation is within 7 % but once in 10^9, two thirds and three halves of it never are."""
    charged = []
    budget = Budget(1.0, 1e-5)
    budget.charge = lambda *events, of: charged.extend(events)
    asked = queries.Asked("test", Allowance(budget, budget.mu), SeededRandomness("noise"))
    asked.charge([4000], sensitivity=GRID)
    noise = asked.noisy(np.zeros(4000, np.int64)) * factor
    ratio = noise.std() / math.sqrt(charged[0].share_variance)
    assert (0.93 < ratio < 1.07) == (factor == 1.0)


def test_what_was_charged_is_released_once_and_in_its_length():
    asked = queries.asked_for("test", {**LOOSE})
    with pytest.raises(PrivacyError, match="charged"):
        asked.noisy(np.zeros(3, np.int64))
    asked.charge([3], sensitivity=GRID)
    asked.noisy(np.zeros(3, np.int64))
    with pytest.raises(PrivacyError, match="once"):
        asked.noisy(np.zeros(3, np.int64))
    other = queries.asked_for("test", {**LOOSE})
    other.charge([3], sensitivity=GRID)
    with pytest.raises(PrivacyError, match="length"):
        other.noisy(np.zeros(4, np.int64))
