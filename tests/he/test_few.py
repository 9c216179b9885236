"""Rows scaled and results read off without SEAL's transforms: against integers of Python, and against SEAL."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.he import few
from confide.he.packed import unpack
from confide.he.parameters import Parameters
from confide.he.plan_linear import plan_linear
from confide.he.seal import Context, Needs, ntt_primes
from he.oracle import centred, compose, product_at, ternary_secret


def parameters(degree: int, bits: tuple[int, ...], t: int) -> Parameters:
    return Parameters(scheme="bfv", degree=degree, primes=ntt_primes(degree, bits), plain_modulus=t)


SETS = [
    parameters(2048, (54,), (1 << 32) - 5),
    parameters(4096, (47, 46, 16), (1 << 34) + 3),
    parameters(8192, (50, 50, 50, 17), (1 << 60) - 93),  # the largest t
    parameters(8192, (59, 59, 59, 18), (1 << 42) - 2),  # the largest primes, an even t
]


@pytest.mark.parametrize("chosen", SETS, ids=["open", "protected", "large t", "large primes"])
@given(st.lists(st.integers(-(1 << 40), 1 << 40), max_size=8))
@settings(max_examples=60, deadline=None)
def test_scaled_values_are_the_nearest_integers_of_q_x_over_t(chosen, values):
    q, t, values = chosen.modulus, chosen.plain_modulus, [*values, 0, 1, -1, 1 << 40, -(1 << 40)]
    found = few.scaled(np.array(values, np.int64), chosen)
    assert found.shape == (len(chosen.data_primes), chosen.degree)
    assert not found[:, len(values) :].any()
    expected = [(2 * q * x + t) // (2 * t) % q for x in values]
    assert compose(found[:, : len(values)], chosen.data_primes) == expected


class Held:
    """A key and its context."""

    def __init__(self, *, protected: bool) -> None:
        plan = plan_linear((1, 30), sigmoid=False, protected=protected, input_bound=1.0, precision_bits=10)
        assert plan is not None
        self.parameters = plan.parameters
        self.context = Context(plan.parameters)
        self.secret, _ = self.context.generate(bytes(16), Needs(encryption=protected))
        self.form = self.context.form(limbs=len(self.parameters.data_primes), ntt=False)

    def drawn(self, seed: int) -> np.ndarray:
        """Any ciphertext, uniform, shape (2, primes, N)."""
        rng = np.random.default_rng(seed)
        rows = [rng.integers(0, prime, (2, self.parameters.degree), np.uint64) for prime in self.parameters.data_primes]
        return np.stack(rows, axis=1)

    def coefficient(self, words: np.ndarray, place: int) -> int:
        return self.secret.coefficient(words[0, :, place].tolist(), words[1], place)


HELD = [Held(protected=False), Held(protected=True)]


@pytest.mark.parametrize("held", HELD, ids=["open", "protected"])
def test_coefficients_are_the_rounded_phase_in_integers(held):
    s = ternary_secret(held.context, held.secret)
    assert set(s) == {-1, 0, 1}
    words, (q, t) = held.drawn(1), (held.parameters.modulus, held.parameters.plain_modulus)
    c0, c1 = (compose(half, held.parameters.data_primes) for half in words)
    places = (0, 1, 29, held.parameters.degree // 2, held.parameters.degree - 1)
    expected = [(2 * t * ((c0[k] + product_at(c1, s, k)) % q) + q) // (2 * q) % t for k in places]
    assert [held.coefficient(words, place) for place in places] == expected


@pytest.mark.parametrize("held", HELD, ids=["open", "protected"])
def test_coefficients_are_those_of_seals_decryption(held):
    values = np.arange(-40, 40)
    body = held.secret.encrypt_packed(values)
    primes, ntt = held.parameters.data_primes, held.context.form(limbs=len(held.parameters.data_primes), ntt=True)
    cipher = held.context.load(body, ntt)
    held.context.from_ntt(cipher)
    words, plain = held.context.residues(cipher, held.form), held.context.coefficients(held.secret.decrypt(cipher))
    found = [held.coefficient(words, place) for place in range(100)]
    assert found == plain[:100].tolist()
    assert [centred(value, held.parameters.plain_modulus) for value in found] == [*values.tolist(), *[0] * 20]
    other = Held(protected=len(primes) > 1)  # the control: another key reads nothing
    assert [other.coefficient(words, place) for place in range(3)] != found[:3]


@pytest.mark.parametrize("held", HELD, ids=["open", "protected"])
def test_transforms_by_seal_and_by_the_native_loops_agree(held):
    polynomial = held.drawn(2)[0]
    there = held.context.forward(polynomial)
    assert (held.context._moved(polynomial, ntt=True) == there).all()
    assert (held.context.inverse(there) == polynomial).all()
    assert (there != polynomial).any()


def test_a_row_of_zeros_is_encrypted_like_any_other():
    held = HELD[1]
    form = held.context.form(limbs=2, ntt=True)
    first, second = (unpack(held.secret.encrypt_packed(np.zeros(30, np.int64)), form.shape, form.primes) for _ in "ab")
    assert (first != second).mean() > 0.99
