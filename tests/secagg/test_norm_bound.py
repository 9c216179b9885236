"""The bound that projections check: its lemma against exact distributions, its errors against sampled projections."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from confide.crypto.projection import project
from confide.errors import UsageError
from confide.secagg import NormBound
from confide.secagg.norm_bound import worst

#: Small enough for exact distributions, with the room that the lemma asks for: M >= 12 c B.
NORM, RATIO = 40, 2.5
MODULUS = 1 << NormBound(NORM).ring_bits


def centred(values: np.ndarray, modulus: int) -> np.ndarray:
    return (np.asarray(values) + modulus // 2) % modulus - modulus // 2


def exact(x: list[int], tilt: float, *, modulus: int = MODULUS, norm: int = NORM) -> float:
    """Return E exp(-tilt cmod(<g, x>)^2 / 2 B^2) from the exact law of <g, x> mod M, one coordinate after the other."""
    law = np.zeros(modulus)
    law[0] = 1.0
    for value in x:
        law = law / 2 + np.roll(law, value) / 4 + np.roll(law, -value) / 4
    return float(law @ np.exp(-tilt * centred(np.arange(modulus), modulus) ** 2 / (2 * norm**2)))


def length(x: list[int], modulus: int = MODULUS) -> float:
    return math.sqrt(int((centred(np.array(x, np.int64), modulus) ** 2).sum()))


def stretched(x: list[int]) -> list[int]:
    """Return x, or x with one coordinate more, so that its centred norm is c B or above, and hardly above."""
    missing = (RATIO * NORM) ** 2 - length(x) ** 2
    return x if missing <= 0 else [*x, math.ceil(math.sqrt(missing))]


# --- the lemma --------------------------------------------------------------------------------------------------------


@given(
    x=st.lists(
        st.integers(-MODULUS // 2, MODULUS // 2)
        | st.integers(-NORM, NORM)
        | st.sampled_from([MODULUS // 2, MODULUS // 4, MODULUS // 3, int(RATIO * NORM), 2 * NORM]),
        max_size=7,
    ),
    tilt=st.sampled_from([0.5, 0.7, 1.0, 1.5]),
)
@settings(max_examples=300)
def test_no_long_vector_beats_the_lemma(x: list[int], tilt: float) -> None:
    x = stretched(x)
    assert length(x) >= RATIO * NORM
    assert exact(x, tilt) <= worst(tilt, RATIO)


@pytest.mark.parametrize("tilt", [0.5, 0.7, 1.0])
def test_a_climb_uphill_does_not_beat_the_lemma_and_comes_close(tilt: float) -> None:
    """An adversary that changes one coordinate at a time, from many starts: below the bound, and within 3 % of it."""
    rng, best = np.random.default_rng(7), 0.0
    for size in (1, 2, 3, 6, 12, 40):
        step = int(RATIO * NORM / math.sqrt(size))
        x = stretched([step] * size)
        value = exact(x, tilt)
        for _ in range(60):
            other = list(x)
            other[rng.integers(len(x))] += int(rng.integers(-step, step + 1))
            other = stretched(other)
            if (found := exact(other, tilt)) > value:
                x, value = other, found
        best = max(best, value)
    bound = worst(tilt, RATIO)
    assert 0.97 * bound < best <= bound


def test_in_a_ring_without_room_the_lemma_fails() -> None:
    """The control: modulo 4 B sums that wrap look short, whatever they are."""
    small = 4 * NORM
    x = [NORM] * 30
    assert length(x, small) >= RATIO * NORM
    assert exact(x, 0.7, modulus=small) > 1.05 * worst(0.7, RATIO)


def test_a_vector_within_the_bound_is_not_a_long_one() -> None:
    """The other control: at norm B the expectation is above the bound, or the test would refuse honest vectors too."""
    assert exact([NORM], 0.7) > 1.2 * worst(0.7, RATIO)


@pytest.mark.parametrize("tilt", [0.4, 0.7, 1.1])
def test_the_supremum_is_that_of_a_fine_grid(tilt: float) -> None:
    """The oracle integrates with scipy, adaptively, at values of u between those of ours."""
    from scipy.integrate import quad

    bound = worst(tilt, RATIO)
    for u in np.linspace(0.013, RATIO, 37):
        power = 2 * (RATIO / u) ** 2
        density = lambda xi, u=u, power=power: (  # noqa: E731
            abs(math.cos(math.sqrt(tilt) * xi * u / 2)) ** power * math.exp(-(xi**2) / 2) / math.sqrt(2 * math.pi)
        )
        value, error = quad(density, -12, 12, limit=400)
        assert value <= bound + 10 * error + 1e-9


# --- the errors -------------------------------------------------------------------------------------------------------


def passing(x: np.ndarray, bound: NormBound, tries: int, modulus: int) -> int:
    """Return how many of `tries` projections let x pass."""
    words = (x % modulus).astype(np.uint64)
    count = 0
    for number in range(tries):
        (sums,) = project(number.to_bytes(32, "little"), [words], bound.rows)
        z = centred(sums.astype(np.int64) % modulus, modulus)
        count += int((z.astype(object) ** 2).sum()) <= bound.threshold
    return count


TOY = NormBound(NORM, rows=16, excess_percent=200)


@pytest.mark.parametrize(
    "x",
    [
        [int(RATIO * NORM)],
        [MODULUS // 2],
        [MODULUS // 4] * 2,
        [NORM // 4] * 100,
        [int(RATIO * NORM / math.sqrt(2)) + 1] * 2,
        [MODULUS // 2 - 1, MODULUS // 2] * 8,
    ],
    ids=["one coordinate", "half the ring", "quarters", "many small", "two", "many that wrap"],
)
def test_long_vectors_pass_toy_checks_as_rarely_as_is_said(x: list[int]) -> None:
    """2,000 draws; a share above the bound by six standard deviations would be a false alarm in 1e9."""
    assert length(x) >= RATIO * NORM
    tries, bound = 2000, 2.0**-TOY.soundness_bits
    count = passing(np.array(x), TOY, tries, MODULUS)
    assert count <= tries * bound + 6 * math.sqrt(tries * bound)


def test_one_huge_coordinate_passes_exactly_as_often_as_coins_fall() -> None:
    """The oracle is the binomial law: a row is zero, or too long, with probability 1/2 each."""
    short = int(TOY.threshold // (RATIO * NORM) ** 2)
    tries, share = 4000, stats.binom.cdf(short, TOY.rows, 0.5)
    count = passing(np.array([int(RATIO * NORM)]), TOY, tries, MODULUS)
    assert stats.binomtest(count, tries, share).pvalue > 1e-6


def test_honest_vectors_fail_toy_checks_as_rarely_as_is_said_and_not_never() -> None:
    loose = NormBound(NORM, rows=16, excess_percent=60)
    tries, bound = 3000, 2.0**-loose.completeness_bits
    failing = tries - passing(np.array([NORM // 10] * 100), loose, tries, MODULUS)
    assert 0 < failing <= tries * bound + 6 * math.sqrt(tries * bound)


def test_the_defaults_are_as_documented() -> None:
    bound = NormBound(1000)
    assert bound.soundness_bits > 122
    assert bound.completeness_bits > 48
    assert bound.threshold == 320 * 1000**2 * 9 // 10
    assert (1 << bound.ring_bits) >= 30 * 1000 > (1 << bound.ring_bits - 1)
    assert NormBound(1).ring_bits == 5


def test_more_rows_and_less_slack_are_sounder_and_the_norm_does_not_matter() -> None:
    base = NormBound(1000).soundness_bits
    assert NormBound(1000, rows=352).soundness_bits > base > NormBound(1000, excess_percent=90).soundness_bits
    assert NormBound(10**9).soundness_bits == base
    assert NormBound(1000, ratio_percent=300).soundness_bits > base


@pytest.mark.parametrize(
    "wrong",
    [{"norm": 0}, {"rows": 0}, {"rows": 24}, {"rows": 2**14 + 16}, {"excess_percent": 0}, {"ratio_percent": 199}],
)
def test_settings_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        NormBound(**{"norm": 10, **wrong})
