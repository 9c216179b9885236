"""Sums of clipped outer products: against the sums of the products themselves, and their sensitivity."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.dp.mechanisms import LARGEST_GRID
from confide.dp.outer import OuterSums, Rounded
from confide.errors import UsageError


def drawn(seed, n, rows, columns, *, scale=1.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, rows)) * scale, rng.normal(size=(n, columns)) / math.sqrt(columns)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 31), (3, 7), (10, 65), (2, 1701)])
def test_the_sum_is_that_of_the_clipped_products(rows, columns):
    """Within what rounding both factors may move a record: about 2 % of the clip norm, and far less together."""
    left, right = drawn(rows, 60, rows, columns)
    left *= np.geomspace(0.01, 2, 60)[:, None]
    right[0] *= 50  # longer than the bound
    sums = OuterSums(rows=rows, columns=columns, right_norm=1.5, clip_norm=0.7)
    found = sums.summed(left.T, sums.rounded(right))
    short = right * np.minimum(1, 1.5 / np.linalg.norm(right, axis=1))[:, None]
    products = np.einsum("ij,ik->ijk", left, short).reshape(60, -1)
    norms = np.linalg.norm(products, axis=1)
    products *= np.minimum(1, 0.7 / norms)[:, None]
    distance = np.linalg.norm(found.total * 0.7 / sums.grid - products.sum(axis=0))
    assert (norms > 0.7).any()
    assert (norms < 0.7).any()
    assert distance < 60 * 0.02 * 0.7
    assert (found.sensitivity, found.clip_norm) == (sums.grid, 0.7)


wild = st.floats(allow_nan=True, allow_infinity=True, width=64)


@settings(max_examples=150)
@given(
    st.integers(1, 4).flatmap(
        lambda k: st.integers(1, 5).flatmap(
            lambda d: st.lists(
                st.tuples(st.lists(wild, min_size=k, max_size=k), st.lists(wild, min_size=d, max_size=d)),
                min_size=1,
                max_size=6,
            )
        )
    ),
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1e3),
    st.integers(0, 5),
)
def test_neighbours_differ_by_the_grid_at_most(records, right_norm, clip_norm, place):
    """Whatever the records hold; and the others add the same integers, bit for bit, wherever they stand."""
    left, right = (np.array([record[part] for record in records], float) for part in (0, 1))
    sums = OuterSums(rows=left.shape[1], columns=right.shape[1], right_norm=right_norm, clip_norm=clip_norm)
    place %= len(left)
    whole = sums.summed(left.T, sums.rounded(right)).total
    less = sums.summed(np.delete(left, place, axis=0).T, sums.rounded(np.delete(right, place, axis=0))).total
    alone = sums.summed(left[place : place + 1].T, sums.rounded(right[place : place + 1])).total
    assert (whole - less == alone).all()
    assert sum(int(value) ** 2 for value in alone.tolist()) <= sums.grid**2
    again = sums.summed(left[::-1].T.copy(), sums.rounded(right[::-1].copy())).total
    assert (again == whole).all()


def test_a_record_reaches_the_bound_and_one_that_is_not_clipped_passes_it():
    """The negative control: the same rounding without a clip would move the sum by more than is declared."""
    sums = OuterSums(rows=3, columns=5, right_norm=1.0, clip_norm=0.5)
    left, right = np.full((1, 3), 9.0), np.full((1, 5), 9.0)
    norm = np.linalg.norm(sums.summed(left.T, sums.rounded(right)).total)
    assert 0.97 * sums.grid < norm <= sums.grid
    bare = np.outer(np.rint(left * sums.left_grid / 0.5), np.rint(right * sums.right_grid))
    assert np.linalg.norm(bare) > 100 * sums.grid


def test_sums_beyond_one_exact_product_are_cut_into_several(monkeypatch):
    """With a limit of two records to a block in place of 2^22 the total is the same."""
    sums = OuterSums(rows=2, columns=2, right_norm=1.0, clip_norm=1.0, finer=2**8)
    assert sums.grid == LARGEST_GRID
    monkeypatch.setattr("confide.dp.outer._EXACT", 2.0 * sums.grid)
    right = sums.rounded(np.tile([[0.6, -0.8]], (50, 1)))
    left = np.tile([[0.3, 0.4]], (50, 1))
    one = sums.summed(left[:1].T, Rounded(right.steps[:1], right.squares[:1])).total
    assert (sums.summed(left.T, right).total == 50 * one).all()


def test_zero_and_wild_records_are_ignored_and_counted():
    sums = OuterSums(rows=1, columns=2, right_norm=1.0, clip_norm=1.0)
    right = sums.rounded(np.array([[0.5, 0.5], [0.0, 0.0], [np.nan, 1.0], [0.5, 0.5]]))
    found = sums.summed(np.array([[0.5, 1.0, 1.0, np.inf]]), right)
    assert found.ignored == 3
    assert sums.summed(np.zeros((1, 0)), sums.rounded(np.zeros((0, 2)))).total.tolist() == [0, 0]


@pytest.mark.parametrize(
    "change", [{"right_norm": 0.0}, {"clip_norm": math.inf}, {"rows": 0}, {"columns": 10**9, "rows": 1000}]
)
def test_what_cannot_be_is_refused(change):
    with pytest.raises(UsageError, match="Expected"):
        OuterSums(**({"rows": 1, "columns": 2, "right_norm": 1.0, "clip_norm": 1.0} | change))


def test_shapes_that_do_not_fit_are_refused():
    sums = OuterSums(rows=1, columns=2, right_norm=1.0, clip_norm=1.0)
    with pytest.raises(UsageError, match="length 2"):
        sums.rounded(np.zeros((3, 3)))
    with pytest.raises(UsageError, match=r"shape \(1, 3\)"):
        sums.summed(np.zeros((1, 2)), sums.rounded(np.zeros((3, 2))))


@pytest.mark.parametrize("norms", [(1.0, 1e-60), (1e60, 1e-60), (1e-60, 1e60), (1e60, 1.0)])
def test_norms_at_their_ends_keep_the_bound(norms):
    """Whatever overflows on the way: a column that is no whole number would be cast to -2^63."""
    sums = OuterSums(rows=2, columns=3, right_norm=norms[0], clip_norm=norms[1])
    right = sums.rounded(np.array([[1e300, 1.0, -1.0], [1e-320, 0.0, 0.0], [0.3, 0.1, 0.2]]))
    left = np.array([[1e308, 1e-308, 1.0], [-1e308, 5e-324, 0.5]])
    total = sums.summed(left, right).total
    assert sum(int(value) ** 2 for value in total.tolist()) <= (3 * sums.grid) ** 2


@pytest.mark.parametrize("norm", [1e-61, 1e-310, 1e61, math.nan])
def test_norms_beyond_them_are_refused(norm):
    for change in ({"clip_norm": norm}, {"right_norm": norm}):
        with pytest.raises(UsageError, match="1e-60"):
            OuterSums(**({"rows": 1, "columns": 2, "right_norm": 1.0, "clip_norm": 1.0} | change))
