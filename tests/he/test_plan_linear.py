"""Plans of linear models: noise, exactness, flooding; against the formulas written out in fractions."""

import math
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.he.parameters import LIMIT_BITS
from confide.he.plan_linear import LinearPlan, plan_linear


def plan(outputs: int = 1, features: int = 30, *, protected: bool = True, precision_bits: int = 10) -> LinearPlan:
    found = plan_linear(
        (outputs, features), sigmoid=True, protected=protected, input_bound=1.0, precision_bits=precision_bits
    )
    assert found is not None
    return found


def test_thirty_features_get_the_parameters_of_the_documentation():
    open_plan, protected = plan(protected=False), plan()
    assert str(open_plan) == (
        "BFV, N=2048, q=54 bits, t=32 bits; 68 rows of 30 features in a ciphertext; inputs 13 bits, weights 17 bits"
    )
    assert str(protected) == (
        "BFV, N=4096, q=47+46+16 bits, t=34 bits; 136 rows of 30 features in a ciphertext; "
        "inputs 14 bits, weights 18 bits"
    )
    assert open_plan.parameters.total_bits == LIMIT_BITS[2048] == 54
    assert protected.parameters.total_bits == LIMIT_BITS[4096] == 109
    assert not open_plan.needs.encryption
    assert protected.needs.encryption
    assert not protected.needs.steps


@given(st.integers(1, 12), st.integers(1, 900), st.booleans(), st.integers(4, 20))
def test_every_plan_is_exact_secure_and_as_precise_as_asked(outputs, features, protected, precision_bits):
    found = plan_linear(
        (outputs, features), sigmoid=False, protected=protected, input_bound=1.0, precision_bits=precision_bits
    )
    if found is None:
        return
    parameters, a, f = found.parameters, found.fixed.weight_bits, found.fixed.input_bits
    assert parameters.total_bits <= LIMIT_BITS[parameters.degree]
    assert Fraction(1, 2 ** (f + 1)) + Fraction(max(features, 2), 2 ** (a + 1)) <= Fraction(1, 2**precision_bits)
    # Written out again: the largest noise of a reply, and twice that beside t must stay below q.
    degree, t = parameters.degree, parameters.plain_modulus
    row = 2**a + Fraction(max(features, 2), 2)
    noise = found.blocks.width * row * Fraction(43, 2) + 1
    if protected:
        zero = Fraction((2 * degree + 1) * 21, parameters.special) + Fraction(degree + 1, 2)
        noise += zero + found.flooding_bound
    assert 2 * t * noise < parameters.modulus
    assert 2 * (row * 2**f + 1) < t
    assert found.checked() is found


def test_the_flooding_is_2_to_the_40_times_the_mean_noise():
    found = plan()
    row = 2**18 + 30
    mean = (math.sqrt(10.5) + 0.5) * row + found.zero_noise
    assert mean / (2 * found.flooding_bound + 1) <= 2.0**-40
    assert mean / (2 * found.flooding_bound + 1) > 2.0**-40 / 1.001
    assert plan(protected=False).flooding_bound == 0


def test_the_planner_takes_the_best_precision_that_the_parameters_allow():
    found = plan()
    better = msgspec.structs.replace(
        found.fixed, input_bits=found.fixed.input_bits + 1, weight_bits=found.fixed.weight_bits
    )
    t = 2 * ((((1 << better.weight_bits) + 30) << better.input_bits) + 2) + 1
    parameters = msgspec.structs.replace(found.parameters, plain_modulus=t)
    assert not msgspec.structs.replace(found, fixed=better, parameters=parameters).exact


def test_more_precision_takes_larger_parameters():
    assert plan(protected=False, precision_bits=20).parameters.degree == 4096
    assert plan(precision_bits=20).parameters.degree == 8192
    assert plan_linear((1, 30), sigmoid=False, protected=True, input_bound=1.0, precision_bits=35) is None
    assert plan_linear((1, 9000), sigmoid=False, protected=True, input_bound=1.0, precision_bits=10) is None


@pytest.mark.parametrize(
    "change",
    [
        {"fixed": {"input_bound": math.inf}},
        {"fixed": {"input_bound": 0.0}},
        {"fixed": {"input_bound": math.nan}},
        {"fixed": {"input_bits": 41}},
        {"fixed": {"input_bits": 15}},  # results would not fit t
        {"fixed": {"weight_bits": 19}},
        {"fixed": {"weight_bits": -1}},
        {"blocks": {"features": 0}},
        {"blocks": {"features": 4097}},
        {"blocks": {"degree": 2048}},
        {"blocks": {"outputs": 0}},
        {"blocks": {"outputs": 1 << 20}},
        {"parameters": {"plain_modulus": (1 << 40) + 1}},  # noise would not fit
        {"parameters": {"degree": 2048}},
        {"parameters": {"scheme": "ckks", "plain_modulus": 0}},
    ],
)
def test_a_strangers_plan_is_checked(change):
    found = plan()
    for part, values in change.items():
        found = msgspec.structs.replace(found, **{part: msgspec.structs.replace(getattr(found, part), **values)})
    with pytest.raises(ProtocolError):
        found.checked()
