"""Polynomials in place of activations: the best errors of the literature, and nothing of the box outside."""

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ModelError
from confide.model.fitted import approximated, fit
from confide.model.graph import Conv, Gelu, Graph, Linear, Polynomial, Relu, Residual, Sigmoid, Square, Tanh, applied
from confide.model.intervals import intervals

ACTIVATIONS = (Relu(), Sigmoid(), Tanh(), Gelu())


def best_error(activation, low, high, degree):
    """Return the least largest error of any polynomial, by a linear programme on a grid."""
    u = np.cos(np.linspace(np.pi, 0, 401))
    basis = np.polynomial.chebyshev.chebvander(u, degree)
    wanted = applied(activation, (low + high) / 2 + u * (high - low) / 2)
    column = np.ones((len(u), 1))
    found = scipy.optimize.linprog(
        [*np.zeros(degree + 1), 1.0],
        A_ub=np.block([[basis, -column], [-basis, -column]]),
        b_ub=np.concatenate([wanted, -wanted]),
        bounds=[(None, None)] * (degree + 1) + [(0, None)],
    )
    return found.fun


@given(st.sampled_from(ACTIVATIONS), st.floats(-12, 2), st.floats(0.5, 16), st.integers(1, 15))
@settings(max_examples=40, deadline=None)
def test_no_polynomial_of_the_degree_is_much_nearer(activation, low, size, degree):
    made, error = fit(activation, low, low + size, degree)
    assert made.degree == degree
    best = best_error(activation, low, low + size, degree)
    assert best - 1e-6 <= error <= 1.03 * best + 1e-6  # the programme's grid is the coarser one
    x = np.random.default_rng(0).uniform(low, low + size, 2000)
    assert np.abs(applied(made, x) - applied(activation, x)).max() <= 1.001 * error + 1e-12


def test_the_error_of_relu_is_bernsteins():
    """relu(x) = (x + |x|) / 2, and n times the best error of |x| tends to 0.28017 (Varga and Carpenter, 1985)."""
    assert fit(Relu(), -1.0, 1.0, 2)[1] == pytest.approx(1 / 16, rel=1e-6)
    for degree, near in ((20, 3e-3), (60, 1e-3)):
        assert 2 * degree * fit(Relu(), -1.0, 1.0, degree)[1] == pytest.approx(0.2801694990, rel=near)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_high_degrees_are_fitted_too(activation):
    errors = [fit(activation, -10.0, 10.0, degree)[1] for degree in (15, 31, 63)]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


@pytest.mark.parametrize(("low", "high"), [(0.0, 4.0), (-4.0, 0.0), (2.0, 2.0), (1e-9, 1e-9), (-1e6, -1e6)])
def test_what_a_polynomial_gives_exactly_it_gives(low, high):
    made, error = fit(Relu(), low, high, 5)
    assert error < 1e-7
    assert made.low <= low <= high <= made.high


def drawn(*shape):
    return np.random.default_rng(shape).normal(size=shape) / 3


NET = Graph(
    (
        Conv(drawn(2, 1, 3, 3), drawn(2), 5, 5, padding=(1, 1, 1, 1)),
        Relu(),
        Residual((Conv(drawn(2, 2, 3, 3), drawn(2), 5, 5, padding=(1, 1, 1, 1)), Tanh()), (Gelu(),)),
        Square(),
        Linear(drawn(3, 50), drawn(3)),
        Sigmoid(),
        Linear(drawn(2, 3), drawn(2)),
        Sigmoid(),
    ),
    ("a", "b"),
)


def kinds(layers):
    return [
        (kinds(layer.body), kinds(layer.shortcut)) if isinstance(layer, Residual) else type(layer).__name__
        for layer in layers
    ]


def test_a_graph_of_polynomials_takes_each_interval_from_the_box():
    made, fits = approximated(NET, -1.0, 1.0, 15)
    block = (["Conv", "Polynomial"], ["Polynomial"])
    assert kinds(made.layers) == ["Conv", "Polynomial", block, "Square", "Linear", "Polynomial", "Linear", "Sigmoid"]
    assert [(one.layer, one.activation) for one in fits] == [
        ("1", "Relu"),
        ("2.body.1", "Tanh"),
        ("2.shortcut.0", "Gelu"),
        ("5", "Sigmoid"),
    ]
    assert made.classes == NET.classes
    ranges = intervals(made, -1.0, 1.0)
    assert (fits[0].low, fits[0].high) == ranges[1].ends
    assert (fits[3].low, fits[3].high) == ranges[5].ends
    assert all(one.degree == 15 and 0 < one.largest_error < 1 for one in fits)
    assert str(fits[0]).startswith("layer 1: Relu on [-")


def test_errors_shrink_with_the_degree():
    x = np.random.default_rng(1).uniform(-1, 1, (50, 25))
    small = Graph((*NET.layers[:2], Linear(drawn(2, 50), drawn(2))))
    errors = [
        np.abs(approximated(small, -1.0, 1.0, degree)[0].apply(x) - small.apply(x)).max() for degree in (3, 9, 27)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_no_input_of_the_box_leaves_a_polynomials_interval(seed):
    made, _ = approximated(NET, -1.0, 1.0, 7)
    rng = np.random.default_rng(seed)
    x = np.where(rng.random((20, 25)) < 0.7, np.sign(rng.normal(size=(20, 25))), rng.uniform(-1, 1, (20, 25)))
    for layer in made.layers:
        if isinstance(layer, Polynomial):
            assert x.min() >= layer.low
            assert x.max() <= layer.high
        x = applied(layer, x)


@pytest.mark.parametrize(("low", "high", "degree"), [(0, 1, 0), (0, 1, 64), (1, 0, 3), (0, np.inf, 3), (np.nan, 1, 3)])
def test_arguments_out_of_range_are_refused(low, high, degree):
    with pytest.raises(ModelError, match="Expected"):
        fit(Relu(), low, high, degree)
