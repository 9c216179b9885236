"""Linear models under BFV: exact integers, noise within its bound, and what a reply shows of the weights."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.he.ahead import MOST_AHEAD
from confide.he.encode import quantise
from confide.he.linear import LinearClient, LinearServer, NativeMultiplier, SealMultiplier
from confide.he.packed import ciphertext_bytes, pack
from confide.he.plan_linear import plan_linear
from confide.he.seal import Ciphertext, Evaluation
from he.oracle import (
    RNG,
    centred,
    compose,
    corners,
    dot_integers,
    linear,
    product_at,
    ternary_secret,
)


class Bench:
    """Both halves for one model, with keys."""

    def __init__(self, seed: int, outputs: int, features: int, *, protected: bool) -> None:
        plan = plan_linear((outputs, features), sigmoid=False, protected=protected, input_bound=1.0, precision_bits=10)
        assert plan is not None
        self.plan = plan
        self.layer = quantise(linear(seed, outputs, features), plan.fixed)
        self.client = LinearClient(plan)
        self.server = LinearServer(plan, self.layer)
        self.secret, public = self.client.context.generate(bytes(16), plan.needs)
        self.keys = Evaluation(self.server.context, public, plan.needs)
        self.primes = plan.parameters.data_primes

    def ask(self, x):
        query = self.client.encrypt(self.secret, x)
        return query, *self.server.answer(self.keys, query, len(x), RNG)

    def exact(self, x) -> list[list[int]]:
        integers = self.plan.fixed.inputs(x).tolist()
        return dot_integers(self.layer.weights.tolist(), self.layer.biases, integers)

    def coefficients(self, body: bytes) -> np.ndarray:
        """The numbers of a query in coefficient form, shape (2, primes, N)."""
        context = self.client.context
        cipher = context.load(body, context.form(limbs=len(self.primes), ntt=True))
        context.from_ntt(cipher)
        return context.residues(cipher, context.form(limbs=len(self.primes), ntt=False))


OPEN = Bench(1, 1, 30, protected=False)
PROTECTED = Bench(2, 1, 30, protected=True)
WIDE = Bench(3, 7, 300, protected=True)


@pytest.mark.parametrize("bench", [OPEN, PROTECTED, WIDE], ids=["open", "protected", "several products"])
@given(st.integers(0, 1 << 30), st.integers(1, 5))
@settings(max_examples=8, deadline=None)
def test_results_are_exact_integers_at_the_corners_and_inside(bench, seed, rows):
    x = corners(rows, bench.plan.features, seed)
    _, c0, c1 = bench.ask(x)
    assert bench.client.decrypt(bench.secret, c0, c1, rows).astype(int).tolist() == bench.exact(x)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("bench", [OPEN, PROTECTED], ids=["open", "protected"])
def test_the_largest_results_of_the_box_are_exact(bench, sign):
    x = sign * np.sign(bench.layer.weights).astype(float)
    _, c0, c1 = bench.ask(x)
    assert bench.client.decrypt(bench.secret, c0, c1, 1).astype(int).tolist() == bench.exact(x)


@pytest.mark.parametrize("bench", [OPEN, PROTECTED], ids=["open", "protected"])
def test_many_rows_share_ciphertexts(bench):
    rows = bench.plan.blocks.rows + 3
    x = corners(rows, 30, 5)
    query, c0, c1 = bench.ask(x)
    assert len(query) == 2
    assert c0.shape == (len(bench.primes), rows, 1)
    assert bench.client.decrypt(bench.secret, c0, c1, rows).astype(int).tolist() == bench.exact(x)


# --- noise ------------------------------------------------------------------------------------------------------------


def noise_of_results(bench: Bench, x, c0, c1) -> list[int]:
    """phase - q/t · z at every place that leaves, in exact integers."""
    q, t = bench.plan.parameters.modulus, bench.plan.parameters.plain_modulus
    s = ternary_secret(bench.client.context, bench.secret)
    places = bench.plan.blocks.places(len(x), 0)[:, 0].tolist()
    a = compose(c1[0, 0], bench.primes)
    first = compose(c0[:, :, 0], bench.primes)
    return [
        centred(first[row] + product_at(a, s, place) - (2 * q * z + t) // (2 * t), q)
        for row, (place, (z,)) in enumerate(zip(places, bench.exact(x), strict=True))
    ]


def test_fresh_noise_is_what_the_bound_assumes():
    """SEAL's errors are at most 21 in absolute value, with variance 21/2: the ground of every noise bound."""
    query, *_ = OPEN.ask(corners(1, 30))
    q, t = OPEN.plan.parameters.modulus, OPEN.plan.parameters.plain_modulus
    s = ternary_secret(OPEN.client.context, OPEN.secret)
    assert set(s) == {-1, 0, 1}
    residues = OPEN.coefficients(query[0])
    c0, c1 = compose(residues[0], OPEN.primes), compose(residues[1], OPEN.primes)
    errors = [centred(c0[k] + product_at(c1, s, k), q) for k in range(30, 1030)]  # beyond the row: encryptions of 0
    assert max(map(abs, errors)) <= 21
    variance = sum(e * e for e in errors) / len(errors)
    assert 0.75 * 10.5 < variance < 1.25 * 10.5  # the variance of 1000 has a relative deviation of 4.4 %: 5 sigma
    assert t > 2


def test_open_noise_is_within_its_bound_and_does_not_hide():
    x = corners(60, 30, 3)
    _, c0, c1 = OPEN.ask(x)
    noise = noise_of_results(OPEN, x, c0, c1)
    assert max(map(abs, noise)) <= OPEN.plan.largest_noise
    assert max(map(abs, noise)) > 2**14  # it is the weights times small numbers: it carries them


def looks_uniform(noise: list[int], bound: int) -> bool:
    """Scale, mean and shape of at least 800 numbers that should be uniform in [-bound, bound].

    False alarms: the variance has a relative deviation of sqrt(0.8 / n) = 0.032, so its window is 6 deviations; the
    mean's is 6 deviations; Kolmogorov's distance exceeds 3.4 / sqrt(n) with probability 2 exp(-2 · 3.4²).
    In all below 1e-8.
    """
    assert len(noise) >= 800
    shares = np.sort(np.array([value / bound for value in noise]))
    variance_fits = abs(3 * float(np.mean(shares**2)) - 1) < 0.2
    mean_fits = abs(float(np.mean(shares))) < 6 * math.sqrt(1 / 3 / len(shares))
    distance = np.abs((shares + 1) / 2 - np.arange(len(shares)) / len(shares)).max()
    return variance_fits and mean_fits and bool(distance < 3.4 / math.sqrt(len(shares)))


def test_protected_noise_is_uniform_at_the_flooding_bound():
    noise = []
    for seed in range(6):
        x = corners(136, 30, seed)
        _, c0, c1 = PROTECTED.ask(x)
        noise += noise_of_results(PROTECTED, x, c0, c1)
    bound = PROTECTED.plan.flooding_bound
    assert max(map(abs, noise)) <= PROTECTED.plan.largest_noise
    assert looks_uniform(noise, bound)
    assert not looks_uniform([2 * value // 3 for value in noise], bound)  # too little
    assert not looks_uniform([3 * value // 2 for value in noise], bound)  # too much: it would break exactness
    assert not looks_uniform([abs(value) for value in noise], bound)
    triangle = [(one + other) // 2 for one, other in zip(noise, noise[1:] + noise[:1], strict=True)]
    assert not looks_uniform([round(value * math.sqrt(2)) for value in triangle], bound)  # right scale, wrong shape


def test_flooding_comes_from_the_randomness_that_is_passed_in():
    class Fixed:
        origin = "nothing"
        drawn = 0

        def bytes(self, count):
            return bytes(count)

        def below(self, bound):
            Fixed.drawn += 1
            assert bound == 2 * PROTECTED.plan.flooding_bound + 1
            return 0

    query = PROTECTED.client.encrypt(PROTECTED.secret, corners(3, 30))
    PROTECTED.server.answer(PROTECTED.keys, query, 3, Fixed())
    assert Fixed.drawn == 3


# --- what a reply shows -----------------------------------------------------------------------------------------------


def weights_from(bench: Bench, query: tuple[bytes, ...], c1: np.ndarray) -> list[int] | None:
    """The client's attack: c1' = ŵ(X)·c1 is linear in ŵ, so solve 30 of its N equations modulo the first prime."""
    prime, degree = bench.primes[0], bench.plan.parameters.degree
    sent = [int(value) for value in bench.coefficients(query[0])[1][0]]
    got = [int(value) for value in c1[0, 0][0]]
    count = bench.plan.features
    rows = [
        [sent[k - i] if k >= i else -sent[k - i + degree] for i in range(count)] + [got[k]] for k in range(count + 20)
    ]
    for column in range(count):
        pivot = next(place for place in range(column, count + 20) if rows[place][column] % prime)
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = pow(rows[column][column], -1, prime)
        rows[column] = [value * inverse % prime for value in rows[column]]
        for place in range(count + 20):
            if place != column and rows[place][column]:
                factor = rows[place][column]
                rows[place] = [(v - factor * p) % prime for v, p in zip(rows[place], rows[column], strict=True)]
    if any(row[-1] for row in rows[count:]):  # the equations contradict each other: c1' is no product with ŵ
        return None
    return [centred(row[-1], prime) for row in rows[:count]][::-1]


def test_open_replies_give_every_weight_away():
    """The positive control of the next test: this is why open mode makes no claim."""
    query, _, c1 = OPEN.ask(corners(1, 30))
    assert weights_from(OPEN, query, c1) == OPEN.layer.weights[0].tolist()


def test_protected_replies_do_not():
    query, _, c1 = PROTECTED.ask(corners(1, 30))
    assert weights_from(PROTECTED, query, c1) is None


def test_protected_replies_to_one_query_share_nothing():
    query = PROTECTED.client.encrypt(PROTECTED.secret, corners(1, 30))
    first = PROTECTED.server.answer(PROTECTED.keys, query, 1, RNG)
    second = PROTECTED.server.answer(PROTECTED.keys, query, 1, RNG)
    assert (first[0] != second[0]).all()
    assert (first[1] == second[1]).mean() < 1e-3
    open_query = OPEN.client.encrypt(OPEN.secret, corners(1, 30))
    assert all(
        (one == other).all()
        for one, other in zip(
            OPEN.server.answer(OPEN.keys, open_query, 1, RNG),
            OPEN.server.answer(OPEN.keys, open_query, 1, RNG),
            strict=True,
        )
    )


def test_protected_numbers_are_uniform_modulo_their_primes():
    _, _, c1 = PROTECTED.ask(corners(1, 30))
    for numbers, prime in zip(c1[0, 0], PROTECTED.primes, strict=True):
        shares = np.sort(numbers / prime)
        distance = np.abs(shares - np.arange(len(shares)) / len(shares)).max()
        assert distance < 3.4 / math.sqrt(len(shares))


def test_only_places_of_results_leave():
    _, c0, _ = PROTECTED.ask(corners(2, 30))
    assert c0.shape == (2, 2, 1)


# --- strangers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, -1, 137, 10**9])
def test_row_counts_that_do_not_fit_are_refused(rows):
    query = PROTECTED.client.encrypt(PROTECTED.secret, corners(1, 30))
    with pytest.raises(ProtocolError):
        PROTECTED.server.answer(PROTECTED.keys, query, rows, RNG)


@pytest.mark.parametrize("bench", [OPEN, PROTECTED], ids=["open", "protected"])
def test_numbers_in_the_clear_are_refused_as_a_query_and_harmless_as_a_reply(bench):
    context = bench.client.context
    form = context.form(limbs=len(bench.primes), ntt=True)
    with pytest.raises(ProtocolError):
        bench.server.answer(bench.keys, (bytes(ciphertext_bytes(form)),), 1, RNG)
    _, c0, c1 = bench.ask(corners(1, 30))
    assert bench.client.decrypt(bench.secret, np.zeros_like(c0), np.zeros_like(c1), 1) == 0


def test_replies_with_large_numbers_are_refused():
    _, c0, c1 = PROTECTED.ask(corners(1, 30))
    for wrong in (c0, c1):
        changed = [c0.copy(), c1.copy()]
        changed[0 if wrong is c0 else 1][...] = (1 << 64) - 1
        with pytest.raises(ProtocolError):
            PROTECTED.client.decrypt(PROTECTED.secret, changed[0], changed[1], 1)


# --- engines, and what is prepared ------------------------------------------------------------------------------------


def weights_of(bench: Bench) -> np.ndarray:
    return bench.plan.blocks.weights(bench.layer.weights)


@pytest.mark.skipif(PROTECTED.server.context.products is None, reason="needs the compiled kernels")
@pytest.mark.parametrize("bench", [OPEN, WIDE], ids=["open", "several products"])
def test_compiled_products_are_those_of_seal(bench):
    context, query = bench.server.context, bench.client.encrypt(bench.secret, corners(1, bench.plan.features))[0]
    seal, native = (made(context, weights_of(bench), protected=False) for made in (SealMultiplier, NativeMultiplier))
    for theirs, ours in zip(seal.products(bench.keys, query), native.products(bench.keys, query), strict=True):
        assert (theirs == ours).all()


@pytest.mark.parametrize("engine", [SealMultiplier, NativeMultiplier])
def test_a_query_in_the_clear_is_refused_by_both(engine):
    if engine is NativeMultiplier and PROTECTED.server.context.products is None:
        pytest.skip("needs the compiled kernels")
    multiplier = engine(PROTECTED.server.context, weights_of(PROTECTED), protected=True)
    form = PROTECTED.server.context.form(limbs=len(PROTECTED.primes), ntt=True)
    residues = np.zeros(form.shape, np.uint64)
    residues[0] = 1  # the second polynomial is 0: whoever sends it reads the weights off the reply
    with pytest.raises(ProtocolError, match="in the clear"):
        next(multiplier.products(PROTECTED.keys, pack(residues, form.primes)))
    residues[1, 0, 0] = 1
    next(multiplier.products(PROTECTED.keys, pack(residues, form.primes)))


def test_the_scaled_plaintext_is_all_that_a_row_changes():
    """ct(0) + round(q m / t), prepared or not: the second polynomial and the errors are the zero's."""
    context, limbs = OPEN.client.context, len(OPEN.primes)
    q, t = OPEN.plan.parameters.modulus, OPEN.plan.parameters.plain_modulus
    zero, second = OPEN.secret._fresh_zero(limbs)
    before = context.residues(Ciphertext(zero), context.form(limbs=limbs, ntt=False)).copy()
    OPEN.secret._ahead._items, OPEN.secret._ahead._kept = {limbs: [(zero, second)]}, 1
    body = OPEN.secret.encrypt_packed(context.polynomial(np.arange(2048, dtype=np.uint64)))
    assert body.endswith(second)
    after = OPEN.coefficients(body)
    assert (after[1] == before[1]).all()
    changes = [
        (a - b) % q for a, b in zip(compose(after[0], OPEN.primes), compose(before[0], OPEN.primes), strict=True)
    ]
    assert changes == [(2 * q * m + t) // (2 * t) for m in range(2048)]


def test_queries_prepared_ahead_are_right_and_never_alike():
    x = corners(1, 30, 7)
    first = PROTECTED.client.encrypt(PROTECTED.secret, x)
    while PROTECTED.secret.prepare_ahead():
        pass
    assert len(PROTECTED.secret._ahead) == MOST_AHEAD
    bodies = [first, *(PROTECTED.client.encrypt(PROTECTED.secret, x) for _ in range(MOST_AHEAD + 1))]
    assert len(PROTECTED.secret._ahead) == 0
    half = len(first[0]) // 2
    assert len({body[half:] for (body,) in bodies}) == len(bodies)  # the random half of none is used twice
    for (body,) in bodies:
        c0, c1 = PROTECTED.server.answer(PROTECTED.keys, (body,), 1, RNG)
        assert PROTECTED.client.decrypt(PROTECTED.secret, c0, c1, 1).astype(int).tolist() == PROTECTED.exact(x)
