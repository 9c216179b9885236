"""Robust rules against brute force from scipy and from their definitions, and where they must refuse or fail."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from confide.cohort import robust
from confide.crypto.random import public_stream
from confide.errors import UsageError

ROWS = st.integers(5, 9).flatmap(
    lambda count: arrays(np.float64, (count, 3), elements=st.integers(-1000, 1000).map(float))
)


@given(rows=ROWS)
@settings(max_examples=60, deadline=None)
def test_median_and_trimmed_mean_are_those_of_sorted_lists_and_scipy(rows: np.ndarray) -> None:
    for column, found in zip(rows.T, robust.median(rows, liars=1), strict=True):
        ordered = sorted(column)
        assert found == (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    for liars in (0, 1, 2):
        expected = stats.trim_mean(rows, liars / len(rows) + 1e-9, axis=0)
        np.testing.assert_allclose(robust.trimmed_mean(rows, liars=liars), expected, rtol=1e-12, atol=1e-9)


def krum_by_definition(rows: list[list[float]], liars: int) -> list[float]:
    """The scores as minima over all subsets of m - f - 2 others, in Python's integers."""
    count = len(rows)
    near = count - liars - 2
    scores = []
    for one in range(count):
        distances = [
            sum(int(a - b) ** 2 for a, b in zip(rows[one], rows[k], strict=True)) for k in range(count) if k != one
        ]
        scores.append(min(sum(chosen) for chosen in combinations(distances, near)))
    best = sorted(range(count), key=lambda index: (scores[index], index))[:near]
    return [sum(rows[index][axis] for index in best) / near for axis in range(len(rows[0]))]


@given(rows=ROWS)
@settings(max_examples=60, deadline=None)
def test_multi_krum_is_its_definition(rows: np.ndarray) -> None:
    np.testing.assert_allclose(robust.multi_krum(rows, liars=1), krum_by_definition(rows.tolist(), 1), atol=1e-9)


@pytest.mark.parametrize("liars", [1, 2, 3])
def test_liars_cannot_leave_the_honest_range_and_one_more_can(liars: int) -> None:
    """The breakdown point from both sides."""
    honest = public_stream(liars, "honest").normal(size=(liars + 1, 4))
    for far in (1e9, -1e9):
        rows = np.concatenate([np.full((liars, 4), far), honest])
        for rule in (robust.median, robust.trimmed_mean):
            found = rule(rows, liars=liars)
            assert (honest.min(axis=0) <= found).all()
            assert (found <= honest.max(axis=0)).all()
            broken = np.concatenate([np.full((liars + 1, 4), far), honest[1:]])
            assert np.abs(rule(broken, liars=liars)).min() > 1e8


@pytest.mark.parametrize(("rule", "fewest"), [(robust.median, 3), (robust.trimmed_mean, 3), (robust.multi_krum, 5)])
def test_too_few_rows_and_what_is_not_finite_are_refused(rule, fewest: int) -> None:
    rule(np.zeros((fewest, 2)), liars=1)
    for wrong in (np.zeros((fewest - 1, 2)), np.full((fewest, 2), np.nan), np.full((fewest, 2), np.inf), np.zeros(9)):
        with pytest.raises(UsageError, match="liars=1"):
            rule(wrong, liars=1)
    with pytest.raises(UsageError):
        rule(np.zeros((9, 2)), liars=-1)


def test_the_mean_is_the_mean() -> None:
    np.testing.assert_array_equal(robust.mean(np.array([[1.0, 2.0], [3.0, 6.0]])), [2.0, 4.0])
    with pytest.raises(UsageError):
        robust.mean(np.zeros((0, 2)))


@pytest.mark.parametrize("liars", [0, 1, 4])
@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "multi-krum", "mean"])
def test_rules_by_name_need_what_they_say(rule: str, liars: int) -> None:
    liars = 0 if rule == "mean" else liars
    enough = robust.fewest(rule, liars)
    rows = public_stream(liars, rule).normal(size=(enough, 3))
    functions = {"median": robust.median, "trimmed-mean": robust.trimmed_mean, "multi-krum": robust.multi_krum}
    expected = rows.mean(axis=0) if rule == "mean" else functions[rule](rows, liars=liars)
    np.testing.assert_array_equal(robust.combine(rule, rows, liars=liars), expected)
    with pytest.raises(UsageError):
        robust.combine(rule, rows[1:], liars=liars)
