"""Parameters: the table, and what a stranger may not send."""

import msgspec
import pytest
import seal
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.he.parameters import LIMIT_BITS, Parameters, is_prime
from confide.he.seal import Context, ntt_primes

GOOD = Parameters(scheme="bfv", degree=4096, primes=ntt_primes(4096, (47, 46, 16)), plain_modulus=(1 << 34) + 1)


@pytest.mark.parametrize("degree", sorted(LIMIT_BITS))
def test_the_table_is_seals_own_at_128_bits(degree):
    assert LIMIT_BITS[degree] == seal.CoeffModulus.MaxBitCount(degree, seal.sec_level_type.tc128)


def test_the_table_is_that_of_the_standard():
    assert dict(LIMIT_BITS) == {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}


def test_moduli_count_the_special_prime():
    assert GOOD.total_bits == 109
    assert GOOD.modulus * GOOD.special == GOOD.primes[0] * GOOD.primes[1] * GOOD.primes[2]
    single = msgspec.structs.replace(GOOD, primes=GOOD.primes[:1])
    assert (single.special, single.data_primes) == (1, GOOD.primes[:1])


@pytest.mark.parametrize(
    "change",
    [
        {"degree": 3000},
        {"degree": 65536},
        {"degree": 2048},  # 109 bits are too many there
        {"primes": ()},
        {"primes": ntt_primes(4096, (55, 55))},  # 110 bits
        {"primes": (GOOD.primes[0], GOOD.primes[0])},
        {"primes": (GOOD.primes[0] + 2,)},
        {"primes": (2**61 - 1,)},
        {"primes": (-8191,)},
        {"plain_modulus": 0},
        {"plain_modulus": 1 << 60},
        {"scheme": "ckks"},
    ],
)
def test_weak_or_odd_parameters_are_refused(change):
    with pytest.raises(ProtocolError):
        msgspec.structs.replace(GOOD, **change).checked()


def test_good_parameters_pass_here_and_in_seal():
    assert GOOD.checked() is GOOD
    assert Context(GOOD).parameters is GOOD
    assert "109" not in str(GOOD)
    assert str(GOOD) == "BFV, N=4096, q=47+46+16 bits, t=35 bits"


@given(st.sampled_from([2048, 4096, 8192]), st.lists(st.integers(18, 60), min_size=1, max_size=5))
def test_whatever_passes_here_passes_in_seal_at_128_bits(degree, bits):
    try:
        primes = ntt_primes(degree, bits)
    except (RuntimeError, ValueError):
        return
    parameters = Parameters(scheme="ckks", degree=degree, primes=primes)
    fits = sum(bits) <= LIMIT_BITS[degree]  # SEAL's primes are the largest of their size, so bits add up
    if parameters.total_bits <= LIMIT_BITS[degree] and max(bits) < 60:
        Context(parameters)
    elif not fits:
        with pytest.raises(ProtocolError):
            Context(parameters)


def test_a_composite_is_refused():
    composite = next(n for n in range(1 << 40, 1 << 41, 1) if n % 8192 == 1 and n % 3 == 0)
    with pytest.raises(ProtocolError, match="prime"):
        Context(msgspec.structs.replace(GOOD, primes=(composite,)))


# --- primes -----------------------------------------------------------------------------------------------------------

PSEUDOPRIMES = (561, 2047, 1373653, 25326001, 3215031751, 2152302898747, 3474749660383, 341550071728321)
PSEUDOPRIMES += (3825123056546413051, 318665857834031151167461 % (1 << 64))  # the first fools nine bases


@given(st.integers(-3, 200_000))
def test_primes_are_what_trial_division_says(number):
    divides = any(number % d == 0 for d in range(2, int(max(number, 0) ** 0.5) + 1))
    assert is_prime(number) is (number > 1 and not divides)


def test_numbers_that_fool_weaker_tests_do_not_pass():
    """Carmichael's and the least strong pseudoprimes to the first bases (OEIS A014233)."""
    assert not any(map(is_prime, PSEUDOPRIMES))


@given(st.integers(2, 1 << 30), st.integers(2, 1 << 30))
def test_products_are_not_prime(one, other):
    assert not is_prime(one * other)


@pytest.mark.parametrize("degree", [2048, 8192, 32768])
def test_seals_primes_are_prime(degree):
    assert all(map(is_prime, ntt_primes(degree, (20, 30, 45, 59, 60)[degree > 16384 :])))


def test_a_square_of_a_prime_is_refused():
    (prime,) = ntt_primes(4096, (28,))
    with pytest.raises(ProtocolError, match="prime"):
        msgspec.structs.replace(GOOD, primes=(prime * prime,)).checked()


def test_switching_keys_takes_a_special_prime():
    ckks = {"scheme": "ckks", "degree": 8192}
    Parameters(**ckks, primes=ntt_primes(8192, (40, 40))).check_switching()
    with pytest.raises(ProtocolError, match="special"):
        Parameters(**ckks, primes=ntt_primes(8192, (50,))).check_switching()
