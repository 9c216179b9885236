"""Fixed point and layouts, against exact fractions and against products of polynomials."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import DataError, ModelError
from confide.he.encode import Blocks, FixedPoint, exponents_of, in_box, quantise
from confide.model.graph import Linear
from he.oracle import corners, linear, nearest

FIXED = FixedPoint(input_bound=1.0, input_bits=13, weight_bits=17)
SCALES = st.sampled_from([1e-30, 1e-3, 1.0, 77.0, 1e30])


@given(st.integers(0, 1 << 30), st.integers(1, 4), st.integers(1, 9), SCALES, st.sampled_from([0.25, 1.0, 3.0]))
def test_integers_are_the_nearest_and_the_error_bound_holds(seed, outputs, features, scale, bound):
    fixed = FixedPoint(input_bound=bound, input_bits=13, weight_bits=17)
    layer = linear(seed, outputs, features, scale)
    found = quantise(layer, fixed)
    x = corners(4, features, seed) * bound
    integers = fixed.inputs(x)
    for j in range(outputs):
        exponent = int(found.exponents[j])
        unit = Fraction(2) ** exponent
        weights = [Fraction(w) * Fraction(bound) / unit for w in layer.weight[j].tolist()]
        bias = Fraction(layer.bias[j].item()) / unit
        assert sum(map(abs, weights)) + abs(bias) <= 1 + Fraction(1, 1 << 40)
        assert found.weights[j].tolist() == [nearest(w * 2**17) for w in weights]
        assert abs(found.biases[j] - bias * 2**30) <= Fraction(1, 2) + abs(bias) / 2**20
        for row in range(len(x)):
            z = sum(w * v for w, v in zip(found.weights[j].tolist(), integers[row].tolist(), strict=True))
            z += found.biases[j]
            exact = sum(
                Fraction(w) * Fraction(v) for w, v in zip(layer.weight[j].tolist(), x[row].tolist(), strict=True)
            )
            error = abs(Fraction(z) * unit / 2**30 - exact - Fraction(layer.bias[j].item()))
            assert error <= Fraction(float(found.error[j]))


def test_the_error_bound_is_reached_within_a_factor():
    """The bound is worth something: rounding at its worst comes close to it."""
    worst = Linear(np.full((1, 8), (2**-1 + 2**-18 * 0.98) / 8), np.zeros(1))
    found = quantise(worst, FIXED)
    x = np.full((1, 8), 1 - 2**-14 * 1.02)
    z = float((FIXED.inputs(x) @ found.weights[0]).item())
    error = abs(FIXED.outputs(np.array([[z]]), found.exponents) - x @ worst.weight.T).item()
    assert error > found.error.item() / 3


def test_a_row_of_zeros_gets_a_one_and_the_error_says_so():
    found = quantise(Linear(np.zeros((2, 3)), np.array([0.0, 5.0])), FIXED)
    assert (found.weights == [[1, 0, 0], [1, 0, 0]]).all()
    assert found.error[0] >= 2**-17
    assert found.biases == (0, 5 << 27)


def test_weights_are_not_shown():
    assert repr(quantise(linear(1, 2, 3), FIXED)) == "Quantised(3 -> 2)"


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((0, 3)),
        np.zeros((2, 4)),
        np.zeros(3),
        np.full((1, 3), 1.0 + 1e-12),
        np.array([[0.0, np.nan, 0.0]]),
        np.array([[0.0, 0.0, -np.inf]]),
    ],
)
def test_rows_outside_the_box_are_refused(x):
    with pytest.raises(DataError):
        in_box(x, 3, 1.0)


def test_a_refusal_names_the_place_and_no_value():
    with pytest.raises(DataError, match="row 1, feature 2") as caught:
        in_box(np.array([[0.5, 0.5, 0.5], [0.25, 0.25, -1.125]]), 3, 1.0)
    assert "125" not in str(caught.value)


def test_the_corners_are_in_the_box():
    x = np.array([[1.0, -1.0, 0.0]])
    assert in_box(x, 3, 1.0) is x
    assert FIXED.inputs(x).tolist() == [[8192, -8192, 0]]


@given(st.lists(st.floats(0, 1e100), min_size=1, max_size=5))
def test_exponents_are_the_smallest_above(ranges):
    for value, exponent in zip(ranges, exponents_of(np.array(ranges)).tolist(), strict=True):
        assert value < 2.0**exponent or value == 0
        assert value == 0 or value >= 2.0 ** (exponent - 1) or exponent == -512


@pytest.mark.parametrize("value", [2.0**512, np.inf, np.nan])
def test_ranges_that_would_overflow_are_refused(value):
    with pytest.raises(ModelError):
        exponents_of(np.array([1.0, value]))


# --- places of coefficients -------------------------------------------------------------------------------------------


def negacyclic(a: list[int], b: list[int]) -> list[int]:
    """a·b modulo X^N + 1, by hand."""
    degree = len(a)
    whole = [*np.convolve(np.array(a, object), np.array(b, object)).tolist(), 0]
    return [whole[i] - (whole[i + degree] if i + degree < len(whole) else 0) for i in range(degree)]


@given(
    st.integers(0, 1 << 30), st.sampled_from([16, 32, 64]), st.integers(1, 20), st.integers(1, 9), st.integers(1, 12)
)
def test_products_hold_every_dot_product(seed, degree, features, outputs, rows):
    features = min(features, degree)
    stream = np.random.default_rng(seed)
    x = stream.integers(-(2**20), 2**20, size=(rows, features))
    w = stream.integers(-(2**20), 2**20, size=(outputs, features))
    blocks = Blocks(degree=degree, features=features, outputs=outputs)
    packed, weights = blocks.inputs(x), blocks.weights(w)
    assert packed.shape == (blocks.ciphertexts(rows), degree)
    assert weights.shape == (blocks.products, degree)
    found = np.zeros((rows, outputs), object)
    for count, inputs in enumerate(packed.tolist()):
        here = min(blocks.rows, rows - count * blocks.rows)
        for product in range(blocks.products):
            result = np.array(negacyclic(inputs, weights[product].tolist()), object)
            places = blocks.places(here, product)
            columns = slice(product * blocks.width, product * blocks.width + places.shape[1])
            found[count * blocks.rows : count * blocks.rows + here, columns] = result[places]
    assert (found == x.astype(object) @ w.T.astype(object)).all()


def test_a_ciphertext_holds_as_many_rows_as_fit():
    assert Blocks(degree=2048, features=30, outputs=1).rows == 68
    assert Blocks(degree=4096, features=30, outputs=1).rows == 136
    assert Blocks(degree=4096, features=784, outputs=10).products == 2
