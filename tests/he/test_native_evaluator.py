"""The native evaluator against SEAL: the same bits where SEAL has the operation; where it has not, decrypted errors
within the bound that native/ckks/evaluator.hpp proves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from confide.he.packed import unpack
from confide.he.parameters import ERROR_BOUND, Parameters
from confide.he.seal import CONJUGATION, Ciphertext, Context, Evaluation, Needs, Plaintext, ntt_primes
from confide.he.seal_format import Residues

native = pytest.importorskip("confide._native", reason="installed without a C++ compiler").ckks

PATHS = [
    pytest.param(name, marks=pytest.mark.skipif(not native.runs_here(name), reason="not on this machine"))
    for name in ("portable", "avx2", "ifma")
]
#: Ring degree and bits of the primes, the special one last: 30 to 60, ascending and descending.
SHAPES = {
    f"{degree}-{'-'.join(map(str, bits))}": (degree, bits)
    for degree, bits in (
        (4096, (30, 36, 40)),
        (8192, (50, 49, 50, 50)),
        (8192, (60, 30, 45, 60)),
        (16384, (33, 50, 49, 60, 31, 50)),
        (32768, (60, 50, 40, 30, 59)),
    )
}
STEPS = (1, -3, CONJUGATION)
NEEDS = Needs(relinearisation=True, steps=STEPS)
SMALL, NARROW = SHAPES["4096-30-36-40"], SHAPES["8192-50-49-50-50"]


class Client:
    """One set of parameters, one client's keys, and SEAL."""

    def __init__(self, degree: int, bits: tuple[int, ...]) -> None:
        self.primes = ntt_primes(degree, bits)
        self.context = Context(Parameters(scheme="ckks", degree=degree, primes=self.primes))
        self.secret, public = self.context.generate(bytes(16), NEEDS)
        self.evaluation = Evaluation(self.context, public, NEEDS)
        self.degree, self.top = degree, len(bits) - 1
        shape = (self.top, 2, self.top + 1, degree)
        self.relinearisation = unpack(public.relinearisation, shape, self.primes)
        rotation = unpack(public.rotation, (len(STEPS), *shape), self.primes)
        self.galois = dict(zip(sorted(map(self.element, STEPS)), rotation, strict=True))

    def element(self, step: int) -> int:
        """Return the Galois element of a rotation."""
        return 2 * self.context.galois_index(step) + 1

    def engine(self, path: str) -> native.Context:
        """Return the native context."""
        return native.Context(self.degree, self.primes[:-1], self.primes[-1], path)

    def keys(self, engine: native.Context, limbs: int) -> native.KeySet:
        """Return the keys for levels up to `limbs`."""
        keys = native.KeySet(engine)
        keys.add_relinearisation(self.relinearisation, limbs)
        for element, residues in self.galois.items():
            keys.add_galois(element, residues, limbs)
        return keys

    def random(self, seed: int, limbs: int) -> Residues:
        """Return uniform residues of a ciphertext, smallest and largest among them."""
        stream = np.random.default_rng(seed)
        rows = np.empty((2, limbs, self.degree), np.uint64)
        for limb, prime in enumerate(self.primes[:limbs]):
            rows[:, limb] = stream.integers(0, prime, (2, self.degree), np.uint64)
            rows[:, limb, :2] = 0, prime - 1
        return rows

    def seal(self, residues: Residues, *, scale: float = 2.0**12, ntt: bool = True) -> Ciphertext:
        """Return these residues as SEAL's ciphertext."""
        return self.context.from_residues(residues, self.context.form(limbs=residues.shape[1], ntt=ntt, scale=scale))

    def words(self, value: Ciphertext | Plaintext, polynomials: int, limbs: int) -> Residues:
        """Return the residues of SEAL's object."""
        whole = value.value.to_string() if isinstance(value, Ciphertext) else value.value.to_bytes()
        return np.frombuffer(whole[-8 * polynomials * limbs * self.degree :], "<u8").reshape(polynomials, limbs, -1)

    def coefficients(self, rows: Residues) -> Residues:
        """Return the residues of the coefficients of rows in NTT form, shape (limbs, N), by SEAL."""
        cipher = self.seal(np.stack([rows, rows]))
        self.context.from_ntt(cipher)
        return self.words(cipher, 2, len(rows))[0]

    def transformed(self, rows: Residues) -> Residues:
        """Return the NTT of rows, shape (limbs, N), by SEAL."""
        cipher = self.seal(np.stack([rows, rows]), ntt=False)
        self.context.to_ntt(cipher)
        return self.words(cipher, 2, len(rows))[0]

    def opened(self, residues: Residues) -> Residues:
        """Return c0 + c1 s for a ciphertext, in NTT form, shape (limbs, N)."""
        return self.words(self.secret.decrypt(self.seal(residues)), 1, residues.shape[1])[0]

    def automorphism(self, rows: Residues, element: int) -> Residues:
        """Return the rows of f(X^element) in NTT form, by the definition on coefficients."""
        before, after = self.coefficients(rows), np.zeros_like(rows)
        place = np.arange(self.degree) * element % (2 * self.degree)
        for limb, prime in enumerate(self.primes[: len(rows)]):
            negative = (np.uint64(prime) - before[limb]) % np.uint64(prime)
            after[limb, place % self.degree] = np.where(place < self.degree, before[limb], negative)
        return self.transformed(after)

    def distance(self, rows: Residues, others: Residues) -> int:
        """Return the largest coefficient of the difference modulo q, in absolute value, by the remainder theorem."""
        primes = self.primes[: len(rows)]
        modulus = math.prod(primes)
        total = np.zeros(self.degree, object)
        pairs = zip(primes, self.coefficients(rows), self.coefficients(others), strict=True)
        for prime, one, other in pairs:
            rest = modulus // prime
            total = (total + (one.astype(object) - other.astype(object)) * (rest * pow(rest, -1, prime))) % modulus
        return int(np.minimum(total, modulus - total).max())

    def switch_bound(self, limbs: int) -> float:
        """Return K of evaluator.hpp: the error of one key switch."""
        digits = sum(self.degree * prime * ERROR_BOUND for prime in self.primes[:limbs])
        return digits / self.primes[-1] + (self.degree + 1) / 2


@cache
def client_of(degree: int, bits: tuple[int, ...]) -> Client:
    return Client(degree, bits)


def products(primes: Sequence[int], a: Residues, b: Residues) -> Residues:
    """Return a b modulo each prime, shape (limbs, N), in Python's integers."""
    rows = zip(primes, a, b, strict=False)
    return np.array([one.astype(object) * other.astype(object) % prime for prime, one, other in rows]).astype(np.uint64)


def summed(primes: Sequence[int], terms: Sequence[Residues]) -> Residues:
    """Return the sum of rows modulo each prime, shape (limbs, N)."""
    moduli = np.array(primes[: len(terms[0])], object)[:, None]
    return (np.sum([term.astype(object) for term in terms], axis=0) % moduli).astype(np.uint64)


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def client(request) -> Client:
    """Run with keys of each set of parameters."""
    return client_of(*request.param)


@pytest.fixture(params=PATHS)
def path(request) -> str:
    """Run on each instruction set of this machine."""
    return request.param


class TestTheSameBits:
    def test_arithmetic(self, client, path):
        engine, evaluator = client.engine(path), client.context.evaluator
        for limbs in range(1, client.top + 1):
            a, b = client.random(limbs, limbs), client.random(100 + limbs, limbs)
            plain = client.context.encode(np.arange(client.degree / 2), limbs=limbs, scale=2.0**12)
            rows = client.words(plain, 1, limbs)[0]
            left, right = client.seal(a).value, client.seal(b).value

            def same(found, cipher, polynomials=2, limbs=limbs):
                assert np.array_equal(found, client.words(Ciphertext(cipher), polynomials, limbs))

            same(engine.add(a, b), evaluator.add(left, right))
            same(engine.subtract(a, b), evaluator.sub(left, right))
            same(engine.add_plain(a, rows), evaluator.add_plain(left, plain.value))
            same(engine.multiply_plain(a, rows), evaluator.multiply_plain(left, plain.value))
            same(engine.multiply(a, b), evaluator.multiply(left, right), 3)
            same(engine.multiply(a, a), evaluator.square(left), 3)

    def test_levels(self, client, path):
        engine = client.engine(path)
        for limbs in range(2, client.top + 1):
            a = client.random(limbs, limbs)
            high = client.seal(a, scale=2.0**55)
            client.context.rescale(high, scale=1.0)
            assert np.array_equal(engine.rescale(a), client.words(high, 2, limbs - 1))
            low = client.context.switch(client.seal(a), limbs=1)
            assert np.array_equal(engine.drop(a, 1), client.words(low, 2, 1))

    def test_key_switches(self, client, path):
        engine = client.engine(path)
        keys = client.keys(engine, client.top)
        for limbs in range(1, client.top + 1):
            a = client.random(limbs, limbs)
            square = client.context.times(one := client.seal(a), one)
            client.evaluation.relinearise(square)
            product = engine.multiply(a, a)
            assert np.array_equal(engine.relinearise(keys, product), client.words(square, 2, limbs))
            for step in STEPS:
                seal = client.evaluation
                turned = seal.conjugate(one) if step == CONJUGATION else seal.rotate(one, step)
                element = client.element(step)
                assert np.array_equal(engine.rotate(keys, a, element), client.words(turned, 2, limbs))

    def test_encoding(self, client, path):
        stream = np.random.default_rng(0)
        coefficients = stream.integers(-(2**62), 2**62, client.degree, dtype=np.int64)
        coefficients[:6] = 0, 1, -1, client.primes[0], -client.primes[0], -(2**63)
        rows = client.engine(path).encode(coefficients, client.top, True)
        expected = np.array([coefficients.astype(object) % prime for prime in client.primes]).astype(np.uint64)
        assert np.array_equal(client.coefficients(rows[:-1]), expected[:-1])
        assert np.array_equal(rows[:-1], client.engine("portable").encode(coefficients, client.top))
        keys_only = native.Context(client.degree, client.primes[-1:], 0, path)  # the special prime alone
        assert np.array_equal(rows[-1:], keys_only.encode(coefficients, 1))

    def test_a_sum_of_products(self, path):
        client = client_of(*NARROW)
        engine = client.engine(path)
        ciphers = [client.random(seed, 3) for seed in range(5)]
        plains = [client.random(50 + seed, 3)[0] for seed in range(5)]
        whole = engine.inner(ciphers, plains)
        for polynomial in range(2):
            terms = [products(client.primes, c[polynomial], p) for c, p in zip(ciphers, plains, strict=True)]
            assert np.array_equal(whole[polynomial], summed(client.primes, terms))
        many = engine.inner(ciphers * 60, plains * 60)  # more terms than are reduced at once
        repeated = client.context.encode(60.0, limbs=3, scale=1.0)
        assert np.array_equal(many, engine.multiply_plain(whole, client.words(repeated, 1, 3)[0]))

    def test_threads_do_not_meet(self, path):
        client = client_of(*NARROW)
        engine = client.engine(path)
        keys, element = client.keys(engine, client.top), client.element(1)
        inputs = [client.random(seed, 3) for seed in range(12)]
        alone = [engine.rotate(keys, a, element) for a in inputs]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda a: engine.rotate(keys, a, element), inputs))
        assert all(map(np.array_equal, alone, together))

    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_threads_that_share_a_key_switch(self, client, threads):
        engine, pool = client.engine(""), native.Pool(threads)
        keys = client.keys(engine, client.top)
        for limbs in (1, client.top):
            a = client.random(13, limbs)
            digits, square = engine.decompose(a), engine.multiply(a, a)
            assert np.array_equal(engine.relinearise(keys, square, pool), engine.relinearise(keys, square))
            for element in client.galois:
                assert np.array_equal(engine.rotate(keys, a, element, pool), engine.rotate(keys, a, element))
                assert np.array_equal(
                    engine.rotate_hoisted(keys, a, digits, element, pool),
                    engine.rotate_hoisted(keys, a, digits, element),
                )


class TestHoisting:
    def test_a_rotation_errs_within_the_bound(self, client, path):
        engine = client.engine(path)
        keys = client.keys(engine, client.top)
        limbs = client.top
        a = client.random(7, limbs)
        digits = engine.decompose(a)
        for step in STEPS:
            element = client.element(step)
            found = engine.rotate_hoisted(keys, a, digits, element)
            expected = client.automorphism(client.opened(a), element)
            assert client.distance(client.opened(found), expected) <= client.switch_bound(limbs)
            divided = engine.divide(engine.rotate_extended(keys, a, digits, element))
            assert np.array_equal(divided, found)
            assert not np.array_equal(found, engine.rotate(keys, a, element))  # else it would say nothing

    @pytest.mark.parametrize("limbs", [1, 2])
    def test_a_sum_of_products_divides_once(self, path, limbs):
        client = client_of(*SMALL)
        engine = client.engine(path)
        keys = client.keys(engine, client.top)
        a = client.random(8, limbs)
        digits = engine.decompose(a)
        weights = [np.random.default_rng(seed).integers(-50, 51, client.degree) for seed in range(3)]
        plains = [engine.encode(weight, limbs, True) for weight in weights]
        elements = [client.element(step) for step in STEPS[:2]]
        turned = [engine.extend(a), *(engine.rotate_extended(keys, a, digits, element) for element in elements)]
        total = engine.divide(engine.inner(turned, plains, True))
        opened = client.opened(a)
        values = [opened, *(client.automorphism(opened, element) for element in elements)]
        expected = summed(client.primes, [products(client.primes, v, p) for v, p in zip(values, plains, strict=True)])
        half = (client.degree + 1) / 2
        switch = client.switch_bound(limbs) - half
        bound = sum(np.abs(weight).sum() * switch for weight in weights[1:]) + half
        assert client.distance(client.opened(total), expected) <= bound

    @pytest.mark.parametrize("limbs", [1, 2])
    def test_giant_steps_divide_once(self, path, limbs):
        client = client_of(*SMALL)
        engine = client.engine(path)
        keys = client.keys(engine, client.top)
        inputs = [client.random(seed, limbs) for seed in (1, 2)]
        elements = [client.element(step) for step in STEPS[:2]]
        sums = [engine.rotate_extended_sum(keys, engine.extend(a), e) for a, e in zip(inputs, elements, strict=True)]
        total = engine.divide(engine.add_extended(*sums))
        turned = [client.automorphism(client.opened(a), e) for a, e in zip(inputs, elements, strict=True)]
        bound = 2 * (client.switch_bound(limbs) - 0.5) + (client.degree + 1) / 2
        assert client.distance(client.opened(total), summed(client.primes, turned)) <= bound

    def test_extending_and_dividing_change_nothing(self, client, path):
        engine = client.engine(path)
        a = client.random(9, client.top)
        assert np.array_equal(engine.divide(engine.extend(a)), a)

    def test_a_wrong_key_gives_garbage(self):
        client = client_of(*SMALL)
        engine = client.engine("portable")
        keys = native.KeySet(engine)
        right, wrong = client.element(1), client.element(-3)
        keys.add_galois(right, client.galois[wrong], client.top)
        a = client.random(10, client.top)
        expected = client.automorphism(client.opened(a), right)
        half = math.prod(client.primes[: client.top]) // 2
        for found in (engine.rotate(keys, a, right), engine.rotate_hoisted(keys, a, engine.decompose(a), right)):
            assert client.distance(client.opened(found), expected) > half // 2

    def test_digits_of_another_ciphertext_give_garbage(self):
        client = client_of(*SMALL)
        engine = client.engine("portable")
        keys, element = client.keys(engine, client.top), client.element(1)
        a, other = client.random(11, client.top), client.random(12, client.top)
        found = engine.rotate_hoisted(keys, a, engine.decompose(other), element)
        expected = client.automorphism(client.opened(a), element)
        assert client.distance(client.opened(found), expected) > math.prod(client.primes[: client.top]) // 4


class TestKeys:
    def test_a_key_of_a_lower_level_is_smaller_and_does_the_same(self, path):
        client = client_of(*NARROW)
        engine = client.engine(path)
        whole, low = client.keys(engine, 3), client.keys(engine, 2)
        a, element = client.random(3, 2), client.element(1)
        assert whole.bytes < 1.001 * 4 * 8 * 8192 * 2 * 3 * 4
        assert low.bytes < 0.501 * whole.bytes
        assert np.array_equal(engine.rotate(whole, a, element), engine.rotate(low, a, element))
        with pytest.raises(ValueError, match="level"):
            engine.rotate(low, client.random(3, 3), element)
        with pytest.raises(ValueError, match="level"):
            engine.relinearise(low, np.zeros((3, 3, 8192), np.uint64))

    @pytest.mark.parametrize("place", [(0, 0, 0), (1, 1, 1), (0, 1, 2), (1, 0, 2)])
    @pytest.mark.parametrize("excess", [0, 1, 2**40])
    def test_a_residue_that_is_not_below_its_prime(self, path, place, excess):
        client = client_of(*SMALL)
        keys = native.KeySet(client.engine(path))
        residues = client.relinearisation.copy()
        residues[(*place, 777)] = client.primes[place[-1]] - 1
        keys.add_relinearisation(residues, client.top)
        residues[(*place, 777)] = client.primes[place[-1]] + excess
        with pytest.raises(ValueError, match="below their primes"):
            keys.add_relinearisation(residues, client.top)
        with pytest.raises(ValueError, match="below their primes"):
            keys.add_galois(3, residues, client.top)

    @pytest.mark.parametrize("shape", [(1, 2, 3, 4096), (2, 1, 3, 4096), (2, 2, 2, 4096), (2, 2, 3, 2048)])
    def test_a_key_of_another_shape(self, shape):
        keys = native.KeySet(client_of(*SMALL).engine("portable"))
        with pytest.raises(ValueError, match="key of these parameters"):
            keys.add_relinearisation(np.zeros(shape, np.uint64), 2)

    @pytest.mark.parametrize("limbs", [0, 3])
    def test_a_key_of_no_level(self, limbs):
        client = client_of(*SMALL)
        with pytest.raises(ValueError, match="level"):
            client.keys(client.engine("portable"), limbs)

    def test_keys_belong_to_their_context(self):
        client = client_of(*SMALL)
        keys = client.keys(client.engine("portable"), 2)
        with pytest.raises(ValueError, match="context"):
            client.engine("portable").rotate(keys, client.random(0, 2), client.element(1))

    def test_a_key_that_is_not_there(self):
        client = client_of(*SMALL)
        engine = client.engine("portable")
        with pytest.raises(ValueError, match="key"):
            engine.rotate(client.keys(engine, 2), client.random(0, 2), client.element(2))


class TestNativeTrustsNobody:
    def test_residues_are_checked(self, client, path):
        engine = client.engine(path)
        a = client.random(0, client.top)
        assert engine.below(a)
        for limb, prime in enumerate(client.primes[: client.top]):
            for excess in (0, 2**63 - prime):
                wrong = a.copy()
                wrong[1, limb, -1] = prime + excess
                assert not engine.below(wrong)

    @pytest.mark.parametrize(
        ("degree", "primes", "special"),
        [
            (4096, [], 0),
            (4096, [17], 0),
            (4000, [40961], 0),
            (4096, [40961, 40961], 0),
            (4096, [40961], 40961),
            (4096, [(1 << 62) + 1], 0),
        ],
    )
    def test_parameters(self, degree, primes, special):
        with pytest.raises(ValueError, match="Expected"):
            native.Context(degree, primes, special, "portable")

    @pytest.mark.parametrize(
        "shape", [(2, 3, 4096), (2, 0, 4096), (2, 2, 2048), (0, 2, 4096)], ids=["limbs", "none", "degree", "empty"]
    )
    def test_shapes(self, shape):
        engine = client_of(*SMALL).engine("portable")
        rows: NDArray[np.uint64] = np.zeros(shape, np.uint64)
        for refused in (lambda: engine.add(rows, rows), lambda: engine.rescale(rows), lambda: engine.below(rows)):
            with pytest.raises(ValueError, match="Expected"):
                refused()

    @pytest.mark.parametrize("threads", [0, 65])
    def test_threads_are_few(self, threads):
        with pytest.raises(ValueError, match="1 to 64"):
            native.Pool(threads)

    def test_a_path_has_a_name(self):
        with pytest.raises(ValueError, match="portable, avx2 or ifma"):
            native.runs_here("sse")
