"""Fixed point against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from confide.crypto.fixed import FixedPoint
from confide.errors import UsageError
from confide.ideal import Cohort, Session


@st.composite
def grids(draw):
    bits = draw(st.integers(0, 62))
    low = max(-bits, -20)
    bound = draw(st.floats(2.0**low, 2.0 ** (62 - bits)))
    return FixedPoint(fraction_bits=bits, bound=bound)


@st.composite
def grids_and_values(draw):
    grid = draw(grids())
    values = draw(st.lists(st.floats(-grid.bound, grid.bound), min_size=1, max_size=20))
    return grid, np.array(values)


@given(grids_and_values())
@settings(deadline=None)
def test_encode_is_the_nearest_grid_point_with_ties_to_even(case):
    grid, values = case
    for value, integer in zip(values.tolist(), grid.encode(values).tolist(), strict=True):
        assert integer == round(Fraction(value) * 2**grid.fraction_bits)  # Fraction rounds half to even, exactly
        assert abs(integer) <= grid.largest


@pytest.mark.parametrize("shape", [(0,), (), (1 << 15,), ((1 << 15) + 1,), (3, 25_000)])
def test_any_length_and_layout_encodes_like_its_values_one_by_one(shape):
    grid = FixedPoint(fraction_bits=20, bound=8.0)
    values = np.asarray(np.random.default_rng(0).uniform(-8, 8, shape))
    kept = values.copy()
    expected = [round(Fraction(value) * 2**20) for value in values.ravel().tolist()]
    for laid in (values, np.asfortranarray(values), np.repeat(values, 2, axis=-1)[..., ::2] if shape else values):
        encoded = grid.encode(laid)
        assert (encoded.shape, encoded.dtype) == (laid.shape, np.int64)
        assert encoded.ravel().tolist() == expected
    np.testing.assert_array_equal(values, kept)


@given(grids_and_values())
@settings(deadline=None)
def test_a_decoded_sum_is_within_the_stated_error(case):
    grid, values = case
    total = sum(grid.encode(values).tolist())
    if abs(total) >= 2**63:
        return
    decoded = Fraction(float(grid.decode(np.array([total]))[0]))
    exact = sum(Fraction(value) for value in values.tolist())
    assert abs(decoded - exact) <= Fraction(grid.error(values=len(values)))


@given(grids())
def test_the_bounds_themselves_encode_to_the_largest_integer(grid):
    np.testing.assert_array_equal(grid.encode(np.array([grid.bound, -grid.bound])), [grid.largest, -grid.largest])


def test_the_error_is_reached_so_no_smaller_bound_is_true():
    grid = FixedPoint(fraction_bits=10, bound=8.0)
    halves = np.array([2.5 * 2**-10, 4.5 * 2**-10, 6.5 * 2**-10])  # ties: each loses exactly half a step
    lost = halves.sum() - grid.decode(grid.encode(halves).sum(keepdims=True))[0]
    assert abs(lost) == grid.error(values=3)


@given(grids(), st.integers(1, 1000))
@example(FixedPoint(fraction_bits=0, bound=1.0), 2)
def test_ring_bits_are_the_smallest_that_do_not_wrap(grid, values):
    span = 2 * values * grid.largest
    needed = next(k for k in range(1, 200) if 2**k > span)
    if needed > 64:
        with pytest.raises(UsageError, match="fewer fraction_bits"):
            grid.ring_bits(values=values)
    else:
        assert grid.ring_bits(values=values) == needed


def test_ring_bits_agree_with_the_session_that_sums():
    grid = FixedPoint(fraction_bits=22, bound=32.0)
    session = Session("run", 1, Cohort(("a", "b", "c"), 2), 1, grid.largest)
    assert session.ring_bits == grid.ring_bits(values=3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 4.000001, -5.0])
def test_values_off_the_grid_are_refused_without_naming_them(value):
    with pytest.raises(UsageError) as refusal:
        FixedPoint(fraction_bits=8, bound=4.0).encode(np.array([0.0, value]))
    assert str(value) not in str(refusal.value).replace("NaN;", "")


def test_clip_takes_the_nearest_bound_but_never_a_missing_value():
    grid = FixedPoint(fraction_bits=1, bound=4.0)
    clipped = grid.encode(np.array([math.inf, -math.inf, 9.0, 1.0]), clip=True)
    np.testing.assert_array_equal(clipped, [8, -8, 8, 2])
    with pytest.raises(UsageError, match="NaN"):
        grid.encode(np.array([math.nan]), clip=True)


@pytest.mark.parametrize(
    ("bits", "bound"),
    [(-1, 1.0), (63, 1.0), (8, 0.0), (8, -1.0), (8, math.nan), (8, math.inf), (62, 1.5), (0, 0.25), (40, 2.0**23)],
)
def test_grids_that_cannot_work_are_refused(bits, bound):
    with pytest.raises(UsageError, match=r"Expected (fraction_bits|bound)="):
        FixedPoint(fraction_bits=bits, bound=bound)


def test_shapes_are_kept_and_empty_arrays_pass():
    grid = FixedPoint(fraction_bits=8, bound=1.0)
    assert grid.encode(np.zeros((2, 3))).shape == (2, 3)
    assert grid.decode(grid.encode(np.zeros(0))).shape == (0,)
