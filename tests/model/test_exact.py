"""Products on grids against whole numbers of any size, and what happens without a grid."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from confide.model.exact import DIGITS, exact_product, on_grid

seeds = st.integers(0, 2**32)


@given(seeds, st.integers(1, 60), st.integers(1, 12), st.integers(1, 26))
def test_products_are_those_of_whole_numbers(seed, inner, a_bits, b_bits):
    rng = np.random.default_rng(seed)
    a = on_grid(rng.uniform(-1, 1, (3, inner)), a_bits)
    b = on_grid(rng.uniform(-1, 1, (inner, 4)), b_bits)
    wide = lambda x, bits: np.array([[int(v * 2**bits) for v in row] for row in x], dtype=object)  # noqa: E731
    expected = wide(a, a_bits) @ wide(b, b_bits)
    found = exact_product(a, a_bits, b, b_bits)
    assert [[int(v) for v in row] for row in np.ldexp(found, a_bits + b_bits)] == expected.tolist()


@given(seeds, st.floats(1e-6, 1e3))
def test_the_grid_moves_a_number_by_half_a_step_at_most(seed, scale):
    x = scale * np.random.default_rng(seed).normal(size=(5, 5))
    assert (np.abs(on_grid(x, 20) - x) <= 2.0**-21).all()
    np.testing.assert_array_equal(on_grid(on_grid(x, 20), 20), on_grid(x, 20))


def test_any_order_of_summation_gives_the_same_bits_and_without_a_grid_it_does_not():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(40, 300)), rng.normal(size=(300, 50))
    order = rng.permutation(300)
    gridded = on_grid(b, 20)
    assert np.array_equal(exact_product(a, 20, gridded, 20), exact_product(a[:, order], 20, gridded[order], 20))
    assert not np.array_equal(a @ b, a[:, order] @ b[order])


def test_a_sum_beyond_the_digits_is_no_longer_exact():
    ones = np.full((1, 2), 2.0 ** (DIGITS - 1))
    assert float(exact_product(ones, 0, np.ones((2, 1)), 0)[0, 0]) == 2.0**DIGITS
    odd = np.array([[2.0**DIGITS, 1.0]])
    assert float(exact_product(odd, 0, np.ones((2, 1)), 0)[0, 0]) == 2.0**DIGITS  # one is lost
