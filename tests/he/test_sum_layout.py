"""How sums of vectors lie in plaintexts: exact at every edge, and within a noise that is bounded."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from confide.crypto.ring import add_words
from confide.errors import UsageError
from confide.he.parameters import LIMIT_BITS
from confide.he.seal import Context, Evaluation, Needs
from confide.he.sum_layout import FAILURE_BITS, RINGS, Layout, noise_bound
from he.oracle import centred, product_at, ternary_secret

#: One of each kind: five, three, two values in a coefficient, one, a limb of one; both rings; dropped bits or none.
KINDS = [(8, 3), (13, 5), (19, 3), (22, 10), (32, 50), (44, 5), (48, 3), (64, 1000)]

layouts = st.builds(Layout.plan, st.integers(1, 64), st.integers(3, 200), st.integers(0, 50))


def test_the_kinds_are_all_there() -> None:
    kinds = {(layout.side_by_side > 1, layout.limbs > 1) for layout in (Layout.plan(*kind, 10**5) for kind in KINDS)}
    assert kinds == {(True, False), (False, False), (False, True)}
    assert {Layout.plan(*kind, 10**5).ring for kind in KINDS} == {0, 1}


def test_the_rings_have_128_bits_of_security() -> None:
    for ring in RINGS:
        assert ring.checked().total_bits <= LIMIT_BITS[ring.degree]


# --- values -----------------------------------------------------------------------------------------------------------


@given(layout=layouts, clients=st.integers(1, 8), data=st.data())
def test_sums_of_packed_vectors_are_sums(layout: Layout, clients: int, data: st.DataObject) -> None:
    """At the edges of what k bits hold; the oracle adds Python's integers."""
    assume(2 * clients < 2**layout.bits)
    most = (2**layout.bits - 1) // 2 // clients
    edges = st.sampled_from([-most, most, 0, 1, -1, most // 3])
    rows = [
        data.draw(st.lists(edges, min_size=layout.length, max_size=layout.length), label="vector")
        for _ in range(clients)
    ]
    total = np.zeros_like(layout.pack(np.zeros(layout.length, np.int64)))
    for row in rows:
        packed = layout.pack(np.array(row, np.int64).reshape(layout.length))
        assert packed.shape == (layout.coefficients,)
        assert not packed.size or int(packed.max()) < 2**layout.payload_bits
        add_words(total, packed)
    assert layout.unpack(total).tolist() == [sum(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(("bits", "clients"), KINDS)
def test_all_clients_at_the_edge(bits: int, clients: int) -> None:
    """As many as the layout is for, all at the same edge: the largest sums, and carries through all limbs."""
    layout = Layout.plan(bits, clients, 30)
    most = (2**bits - 1) // 2 // clients
    for value in (most, -most, 0, min(1, most), -min(1, most)):
        packed = layout.pack(np.full(30, value, np.int64))
        total = np.zeros_like(packed)
        for _ in range(clients):
            add_words(total, packed)
        assert layout.unpack(total).tolist() == [clients * value] * 30


def test_one_bit_too_few_is_noticed() -> None:
    """The control: the same sum in a layout of one bit less wraps."""
    layout = Layout.plan(9, 4, 10)
    packed = layout.pack(np.full(10, 64, np.int64))  # 4 * 64 needs 10 bits
    total = np.zeros_like(packed)
    for _ in range(4):
        add_words(total, packed)
    assert layout.unpack(total).tolist() != [256] * 10


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "clients"), KINDS)
def test_noise_below_the_limit_changes_nothing_and_noise_at_the_limit_does(bits: int, clients: int) -> None:
    layout = Layout.plan(bits, clients, 500)
    rng = np.random.default_rng(1)
    words = rng.integers(0, 2**layout.payload_bits, layout.coefficients, dtype=np.uint64)
    words = words.astype(layout.pack(np.zeros(500, np.int64)).dtype)
    clean, modulus = layout.plaintexts(words), np.uint64(layout.parameters.plain_modulus)
    half = layout.parameters.plain_modulus >> layout.payload_bits >> 1
    for noise in (half - 1, -half, 0):
        noisy = (clean + np.uint64(noise % int(modulus))) % modulus
        np.testing.assert_array_equal(layout.opened(noisy), words)
    for noise in (half, -half - 1):
        noisy = (clean + np.uint64(noise % int(modulus))) % modulus
        assert not (layout.opened(noisy) == words).any()


@given(bits=st.integers(1, 64), clients=st.integers(3, 1000), length=st.integers(1, 10**7))
def test_everything_that_adds_up_stays_below_the_limit(bits: int, clients: int, length: int) -> None:
    """In exact arithmetic: the tail, dropped bits at their worst, SEAL's rounding; and no bit to spare."""
    layout = Layout.plan(bits, clients, length)
    ring, (first, second) = layout.parameters, layout.dropped
    assert layout.coefficients <= max(1, length * layout.limbs)
    tail = Fraction(noise_bound(ring, clients, max(1, length * layout.limbs)))

    def worst(first: int, second: int) -> Fraction:
        return tail + clients * (
            Fraction(1 << first, 2) * (first > 0) + ring.degree * Fraction(1 << second, 2) * (second > 0)
        )

    limit = Fraction(layout.prime, 1 << (layout.payload_bits + 1)) - Fraction(layout.prime, ring.plain_modulus)
    assert worst(first, second) <= limit
    assert worst(first + 1, second) > limit


@pytest.mark.parametrize("ring", RINGS, ids=lambda ring: f"N={ring.degree}")
@pytest.mark.parametrize(("clients", "coefficients"), [(3, 1), (50, 10**5), (1000, 10**7)])
def test_the_tail_has_the_stated_probability(ring, clients: int, coefficients: int) -> None:
    """Chernoff's bound for strictly sub-Gaussian terms in mpmath, and no more than 1 % above what it needs."""
    with mpmath.workdps(30):
        degree, variance = ring.degree, mpmath.mpf(21) / 2
        error_length = variance * degree * mpmath.mpf(4) / 3
        spread = clients * (mpmath.mpf(2) / 3 * error_length + variance * degree + variance)

        def failure(bound: float) -> mpmath.mpf:
            return 2 * coefficients * mpmath.exp(-(mpmath.mpf(bound) ** 2) / (2 * spread))

        bound = noise_bound(ring, clients, coefficients) - clients / 2
        assert failure(bound) <= mpmath.mpf(2) ** -FAILURE_BITS * (1 + mpmath.mpf(10) ** -9)
        assert failure(0.99 * bound) > mpmath.mpf(2) ** -FAILURE_BITS
        excess = mpmath.mpf(1) / 3  # of the squared length of the key's error over its mean
        assert mpmath.exp(-mpmath.mpf(degree) / 2 * (excess - mpmath.log(1 + excess))) < mpmath.mpf(2) ** -FAILURE_BITS
        for t in mpmath.linspace(0.01, 12, 200):  # what makes the terms sub-Gaussian with their own variance
            assert (1 + 2 * mpmath.cosh(t)) / 3 <= mpmath.exp(t**2 / 3)
            assert mpmath.cosh(t / 2) ** 2 <= mpmath.exp(t**2 / 4)


@pytest.mark.parametrize("ring", RINGS, ids=lambda ring: f"N={ring.degree}")
def test_seal_s_noise_is_what_the_bound_assumes(ring) -> None:
    """The phase c0 + c1 s of sums of SEAL's own encryptions, by plain integers, against the variance of the formula.

    300 coefficients, five deviations of the estimate: a false alarm in a million runs.
    """
    context = Context(ring)
    secret, public = context.generate(bytes(16), Needs(encryption=True))
    evaluation = Evaluation(context, public, Needs(encryption=True))
    s, q, form = ternary_secret(context, secret), ring.modulus, context.form(limbs=1, ntt=False)
    clients, total = 10, np.zeros((2, ring.degree), object)
    for _ in range(clients):
        total += context.residues(evaluation.encrypt(context.polynomial(np.zeros(ring.degree, np.uint64))), form)[:, 0]
    c0, c1 = (half % q for half in total)
    places = range(0, ring.degree, ring.degree // 300)
    noise = [centred(int(c0[place]) + product_at(c1.tolist(), s, place), q) for place in places]
    assert max(map(abs, noise)) < noise_bound(ring, clients, ring.degree)
    error = 10.5 * ring.degree  # the mean of the squared length of the key's error; a fifth of it either way
    low, high = (clients * 10.5 * (sum(map(abs, s)) + 1) + clients * 2 / 3 * factor * error for factor in (0.8, 1.2))
    spread = 5 * (2 / len(noise)) ** 0.5
    assert low * (1 - spread) < np.mean(np.square(np.array(noise, float))) < high * (1 + spread)


@given(bits=st.integers(1, 64), clients=st.integers(3, 50), half=st.integers(0, 1), data=st.data())
def test_dropped_bits_are_worth_half_a_step(bits: int, clients: int, half: int, data: st.DataObject) -> None:
    layout = Layout.plan(bits, clients, 10**4)
    value = data.draw(st.integers(0, layout.prime - 1) | st.sampled_from([0, layout.prime - 1]))
    short = layout.shortened(np.array([value], np.uint64), half)
    assert int(short[0]) < 2 ** layout.word_bits[half]
    back = int(layout.restored(short, half)[0])
    assert 0 <= back < layout.prime
    assert abs(centred(back - value, layout.prime)) <= 2 ** layout.dropped[half] // 2


# --- the choice -------------------------------------------------------------------------------------------------------


def test_the_bytes_are_near_the_price_of_two_halves() -> None:
    """Twice the payload, and twice the noise of 50 clients: 2.5 to 3 bits on the wire for one in the sum."""
    for bits, most in ((8, 22), (16, 46), (32, 90), (40, 108)):
        assert 8 * Layout.plan(bits, 50, 10**5).words_bytes / 10**5 <= most


def test_too_many_clients_and_bits_are_refused() -> None:
    with pytest.raises(UsageError, match="noise"):
        Layout.plan(8, 10**18, 10)
    with pytest.raises(UsageError, match="bits=65"):
        Layout.plan(65, 3, 10)
