"""The sampler against the exact law (mpmath), its comparisons against exact rationals, and every refusal.

Everything is seeded, so nothing flakes. False-alarm budget, had the seeds been drawn afresh: 8 tests at 1e-6 each.
"""

from __future__ import annotations

import decimal
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from confide.crypto import noise
from confide.crypto.noise import REACH, TAIL, discrete_gaussian, largest_draw
from confide.crypto.random import SeededRandomness, SystemRandomness

ALARM = 1e-6


class Script:
    """Randomness that returns what it was told to."""

    origin = "script"

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = list(chunks)

    def bytes(self, count: int) -> bytes:
        chunk = self.chunks.pop(0)
        assert len(chunk) == count
        return chunk

    def below(self, bound: int) -> int:
        raise AssertionError(bound)


def words(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


def probabilities(variance: Fraction) -> dict[int, float]:
    reach = 2 + int(13 * float(variance) ** 0.5)
    with mpmath.workdps(40):
        v = mpmath.mpf(variance.numerator) / variance.denominator
        weight = {k: mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * v)) for k in range(-reach, reach + 1)}
        total = mpmath.fsum(weight.values())
        return {k: float(w / total) for k, w in weight.items()}


def p_value(draws: np.ndarray, variance: Fraction) -> float:
    """Chi-square of the draws against the exact probabilities; cells with fewer than 10 expected are joined."""
    law = probabilities(variance)
    cells = [k for k, p in law.items() if p * len(draws) >= 10]
    observed = np.array([np.count_nonzero(draws == k) for k in cells])
    expected = np.array([law[k] for k in cells]) * len(draws)
    rest = len(draws) - expected.sum()
    observed, expected = np.append(observed, len(draws) - observed.sum()), np.append(expected, rest)
    return float(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(cells)))


@pytest.mark.parametrize("variance", [1.0, Fraction(9, 2), 9.0, 123.4])
def test_draws_have_the_exact_law_and_not_a_neighbouring_one(variance):
    draws = discrete_gaussian(variance, 200_000, SeededRandomness(f"law {variance}"))
    exact = Fraction(variance)
    assert p_value(draws, exact) > ALARM
    assert p_value(draws, exact * Fraction(11, 10)) < ALARM
    assert p_value(draws, exact * Fraction(9, 10)) < ALARM


def test_a_rounded_continuous_gaussian_would_be_told_apart():
    normal = np.random.Generator(np.random.PCG64(1)).normal(0, 1, 200_000)
    assert p_value(np.rint(normal).astype(np.int64), Fraction(1)) < ALARM


@pytest.mark.parametrize("exponent", [10, 30, 40])
def test_wide_draws_follow_the_normal_law_that_the_exact_one_tends_to(exponent):
    draws = discrete_gaussian(4.0**exponent, 100_000, SeededRandomness(f"wide {exponent}")) / 2.0**exponent
    assert stats.kstest(draws, "norm").pvalue > ALARM  # steps of 2^-10 or less are far below what this can see
    assert stats.kstest(draws * 1.1, "norm").pvalue < ALARM
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 5 / np.sqrt(len(draws))


def test_the_low_bits_of_wide_draws_are_uniform():
    draws = discrete_gaussian(4.0**40, 64_000, SeededRandomness("low bits"))
    assert stats.chisquare(np.bincount(draws % 64, minlength=64)).pvalue > ALARM


@given(st.fractions(1, 10**6), st.integers(0, 300), st.integers(0, 2**32))
def test_every_draw_is_an_integer_within_reach(variance, count, seed):
    draws = discrete_gaussian(variance, count, SeededRandomness(str(seed)))
    assert draws.dtype == np.int64
    assert draws.shape == (count,)
    assert int(np.abs(draws).max(initial=0)) <= largest_draw(variance)


def test_the_operating_system_serves_and_a_seed_repeats():
    assert len(discrete_gaussian(9.0, 1000, SystemRandomness())) == 1000
    first, second = (discrete_gaussian(9.0, 1000, SeededRandomness("same")) for _ in range(2))
    assert np.array_equal(first, second)


@given(st.fractions(1, 2**80))
def test_reach_is_the_least_integer_beyond_twelve_deviations(variance):
    reach = largest_draw(variance)
    assert (reach - 1) ** 2 <= REACH**2 * variance < reach**2


@pytest.mark.parametrize("variance", [1, Fraction(5, 2), 9, 100])
def test_the_stated_tail_bounds_the_true_one(variance):
    with mpmath.workdps(60):
        v, reach = mpmath.mpf(Fraction(variance).numerator) / Fraction(variance).denominator, largest_draw(variance)
        weight = [mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * v)) for k in range(3 * reach)]
        tail = 2 * mpmath.fsum(weight[reach + 1 :]) / (2 * mpmath.fsum(weight) - 1)
        assert 0 < tail < TAIL < 1.1e-31


@pytest.mark.parametrize("variance", [0, 0.99, float("nan"), float("inf"), 2.0**81, -4.0])
def test_a_variance_out_of_range_is_refused(variance):
    with pytest.raises(ValueError, match="Expected variance"):
        discrete_gaussian(variance, 1, SystemRandomness())


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="Expected count=-1"):
        discrete_gaussian(9.0, -1, SystemRandomness())


def test_the_float_exponential_is_as_good_as_the_margin_assumes():
    exponents = -np.random.Generator(np.random.PCG64(2)).uniform(0, 85, 20_000)
    ours = np.exp(exponents)
    context = decimal.Context(prec=40)
    for x, y in zip(exponents[::20].tolist(), ours[::20].tolist(), strict=True):
        exact = Fraction(context.exp(decimal.Decimal(x)))
        assert abs(Fraction(y) - exact) <= 4 * Fraction(float(np.spacing(y)))


@pytest.mark.parametrize("variance", [Fraction(1), Fraction(1000, 7), Fraction(2**80)])
def test_certain_comparisons_are_right_and_uncertain_ones_are_rare(variance):
    reach = largest_draw(variance)
    generator = np.random.Generator(np.random.PCG64(3))
    chosen = [0, 1, reach, *generator.integers(-reach, reach + 1, 40).tolist()]
    values, tried, powers = [], [], []
    for value in chosen:
        with mpmath.workdps(60):
            power = mpmath.exp(-(mpmath.mpf(value) ** 2) * variance.denominator / (2 * variance.numerator))
            edge = int(mpmath.floor(power * 2**64))
        for offset in (-(2**26), -(2**20), -9, -1, 0, 1, 9, 2**20, 2**26):
            if 0 <= edge + offset < 2**64:
                values.append(value)
                tried.append(edge + offset)
                powers.append(power)
    below, unsure = noise._compare(np.array(values), np.array(tried, np.uint64), variance)
    for word, power, is_below, is_unsure in zip(tried, powers, below, unsure, strict=True):
        if not is_unsure and is_below:
            assert mpmath.mpf(word + 1) / 2**64 <= power
        if not is_unsure and not is_below:
            assert mpmath.mpf(word) / 2**64 >= power
        if abs(mpmath.mpf(word) / 2**64 - power) > 2.0**-40:
            assert not is_unsure
        if word == int(mpmath.floor(power * 2**64)):
            assert is_unsure


@pytest.mark.parametrize("value", [1, 5, 18, -18])
@pytest.mark.parametrize("agreeing", [1, 3, 6])
def test_a_tie_is_broken_by_as_many_bits_as_it_takes(value, agreeing):
    variance = Fraction(9)
    with mpmath.workdps(400):
        digits = int(mpmath.floor(mpmath.exp(-(mpmath.mpf(value) ** 2) / 18) * 2 ** (64 * (agreeing + 1))))
    chain = [digits >> (64 * place) & (2**64 - 1) for place in reversed(range(agreeing + 1))]
    for last, expected in ((chain[-1] - 2**40, True), (chain[-1] + 2**40, False)):
        script = Script(*(words(word) for word in (*chain[1:-1], last)), words(7), words(7))
        assert noise._below_exactly(value, chain[0], variance, script) is expected


def test_zero_is_always_accepted():
    assert noise._below_exactly(0, 2**64 - 1, Fraction(9), Script())


def proposing(stairs: noise._Staircase, magnitude: int, *, negative: bool = False) -> int:
    """Return a word that proposes this value."""
    entry = int(np.flatnonzero(stairs.table == magnitude // stairs.width)[0])
    return entry * 2 * stairs.width + 2 * (magnitude % stairs.width) + negative


@pytest.mark.parametrize("variance", [Fraction(1), Fraction(1000, 7), Fraction(4**20)])
def test_ceilings_are_never_below_the_law_and_the_strips_cover_it(variance):
    reach = largest_draw(variance)
    stairs = noise._staircase(variance, reach)
    assert len(stairs.ceilings) * stairs.width > reach
    assert np.array_equal(np.bincount(stairs.table), stairs.ceilings * 256)
    with mpmath.workdps(40):
        for strip, ceiling in enumerate(stairs.ceilings.tolist()):
            least = mpmath.mpf(strip * stairs.width)
            assert ceiling >= mpmath.exp(-least * least * variance.denominator / (2 * variance.numerator))


def test_uncertain_proposals_are_decided_exactly():
    variance, reach = Fraction(9), 37
    stairs = noise._staircase(variance, reach)
    ceiling = Fraction(float(stairs.ceilings[5 // stairs.width]))
    with mpmath.workdps(60):
        ratio = mpmath.exp(-mpmath.mpf(25) / 18) * ceiling.denominator / ceiling.numerator
        edge = int(mpmath.floor(ratio * 2**64))
    proposals, uniforms = words(*[proposing(stairs, 5, negative=True)] * 2), words(edge, edge)
    script = Script(proposals + uniforms, words(0), words(2**64 - 1))
    assert noise._accepted(variance, reach, stairs, 2, script).tolist() == [-5]


def test_what_is_no_proposal_is_never_accepted():
    """A word in the last incomplete run, minus zero, and magnitudes beyond the reach; U near 0 accepts all others."""
    variance, reach = Fraction(9), 37
    stairs = noise._staircase(variance, reach)
    choices = 2 * stairs.width * len(stairs.table)
    first_beyond = 2**64 // choices * choices
    no = [first_beyond, 2**64 - 1, proposing(stairs, 0, negative=True), proposing(stairs, reach + 1)]
    yes = [proposing(stairs, 0), proposing(stairs, reach), proposing(stairs, 3, negative=True)]
    script = Script(words(*no, *yes) + words(*[0] * 7), *[words(0)] * 9)
    assert noise._accepted(variance, reach, stairs, 7, script).tolist() == [0, reach, -3]
