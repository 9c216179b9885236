"""Errors of key switches against their bounds: in every slot, under many keys, by SEAL and by the native evaluator."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from confide.he import noise
from confide.he.compiled import NATIVE
from confide.he.packed import unpack
from confide.he.parameters import ERROR_VARIANCE, Parameters
from confide.he.seal import CONJUGATION, Ciphertext, Context, Evaluation, Needs, SecretKey, ntt_primes

Slots = NDArray[np.complex128]

#: Special primes of the size of the data primes, and of 2^8 times it.
SHAPES = {"equal": (36, 36, 36), "larger": (32, 32, 40)}
STEPS = (1, 100, CONJUGATION)
NEEDS = Needs(encryption=True, relinearisation=True, steps=STEPS)
DEGREE, LIMBS, KEYS = 4096, 2, 30
SCALE = 2.0**10


class Client:
    """One client's keys."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.secret, self.public = context.generate(bytes(16), NEEDS)
        self.evaluation = Evaluation(context, self.public, NEEDS)

    def zero(self) -> Ciphertext:
        """Return a symmetric encryption of zero: its slots are its error."""
        return self.secret.encrypt(self.context.encode(0.0, limbs=LIMBS, scale=SCALE))


def slots_of(context: Context, secret: SecretKey, cipher: Ciphertext) -> Slots:
    """Return what the slots hold, times the scale: values of c0 + c1 s at powers of zeta, by numpy's transform."""
    limbs = cipher.value.coeff_modulus_size()
    rows = np.frombuffer(secret.decrypt(cipher).value.to_bytes()[-8 * limbs * DEGREE :], "<u8").reshape(limbs, DEGREE)
    whole = context.from_residues(np.stack([rows, rows]), context.form(limbs=limbs, ntt=True))
    context.from_ntt(whole)
    first = context.residues(whole, context.form(limbs=limbs, ntt=False))[0, 0].astype(np.int64)
    prime = context.parameters.data_primes[0]
    coefficients = np.where(first > prime // 2, first - prime, first)  # errors are far below the first prime
    power = np.arange(DEGREE)
    values = np.fft.ifft(coefficients * np.exp(1j * np.pi * power / DEGREE)) * DEGREE
    exponents = [pow(3, slot, 2 * DEGREE) for slot in range(DEGREE // 2)]
    return values[[exponent // 2 for exponent in exponents]]


def turned(slots: Slots, step: int) -> Slots:
    return slots.conj() if step == CONJUGATION else np.roll(slots, -step)


def by_seal(client: Client, cipher: Ciphertext, step: int) -> Ciphertext:
    return client.evaluation.conjugate(cipher) if step == CONJUGATION else client.evaluation.rotate(cipher, step)


def hoisted(client: Client, cipher: Ciphertext, step: int) -> Ciphertext:
    native = pytest.importorskip("confide._native", reason="installed without a C++ compiler").ckks
    context, primes = client.context, client.context.parameters.primes
    engine = native.Context(DEGREE, list(primes[:-1]), primes[-1])
    elements = sorted(2 * context.galois_index(one) + 1 for one in STEPS)
    shape = len(STEPS), LIMBS, 2, LIMBS + 1, DEGREE
    made, keys = unpack(client.public.rotation, shape, primes), native.KeySet(engine)
    element = 2 * context.galois_index(step) + 1
    keys.add_galois(element, made[elements.index(element)], LIMBS)
    form = context.form(limbs=LIMBS, ntt=True, scale=SCALE)
    before = context.residues(cipher, form)
    return context.from_residues(engine.rotate_hoisted(keys, before, engine.decompose(before), element), form)


def errors(client: Client, rotate, step: int, queries: int = 1) -> list[Slots]:
    """Return the errors of rotations of different ciphertexts under one key, each of shape (N/2,)."""
    found: list[Slots] = []
    for _ in range(queries):
        cipher = client.zero()
        before, after = (slots_of(client.context, client.secret, one) for one in (cipher, rotate(client, cipher, step)))
        found.append(after - turned(before, step))
    return found


def context_of(name: str) -> Context:
    return Context(Parameters(scheme="ckks", degree=DEGREE, primes=ntt_primes(DEGREE, SHAPES[name])))


def bound_of(context: Context) -> float:
    return noise.switching_bound(DEGREE, context.parameters.data_primes, context.parameters.special)


@pytest.fixture(scope="module")
def clients() -> dict[str, list[Client]]:
    return {name: [Client(context_of(name)) for _ in range(KEYS)] for name in SHAPES}


MACHINES = [
    pytest.param(by_seal, id="seal"),
    pytest.param(hoisted, id="native", marks=pytest.mark.skipif(NATIVE is None, reason="installed without C++")),
]


@pytest.mark.parametrize("rotate", MACHINES)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_bound_of_a_rotation_holds_in_every_slot_under_every_key(clients, name, step, rotate):
    bound = bound_of(clients[name][0].context)
    for client in clients[name]:
        assert np.abs(errors(client, rotate, step)[0]).max() < bound


def test_the_bound_is_within_some_factor_of_what_happens(clients):
    """Else it would say little: thirty keys reach a twelfth of it."""
    found = [np.abs(errors(client, by_seal, 1)[0]).max() for client in clients["equal"]]
    assert max(found) > bound_of(clients["equal"][0].context) / 12


@pytest.mark.parametrize("rotate", MACHINES)
def test_twelve_deviations_are_no_bound(clients, rotate):
    """The negative control: the deviation over all slots bounds no error in those that a digit's mean is large in."""
    primes, special = (one := clients["equal"][0].context.parameters).data_primes, one.special
    before = 12 * noise.switching(DEGREE, primes, special)
    beyond = [np.abs(errors(client, rotate, 1)[0]).max() > before for client in clients["equal"]]
    assert sum(beyond) > KEYS / 2


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_deviations_are_those_of_all_slots(clients, name):
    """Mean squares over slots, keys and queries; the first slot's are those of `mean` where it outweighs the rest."""
    parameters = clients[name][0].context.parameters
    found = np.array([errors(client, by_seal, 100)[0] for client in clients[name]])
    expected = noise.switching(DEGREE, parameters.data_primes, parameters.special)
    assert 0.6 * expected < np.sqrt((np.abs(found) ** 2).mean()) < 1.1 * expected
    first = np.sqrt((np.abs(found[:, 0]) ** 2).mean())
    least = noise.mean(DEGREE, parameters.data_primes, parameters.special)
    assert 0.6 * least < first < 1.5 * math.hypot(least, expected)  # 30 keys: seven deviations of a mean square


@pytest.mark.parametrize("rotate", MACHINES)
def test_errors_under_one_key_are_alike(clients, rotate):
    """So they add up linearly: what one rotation errs by in its worst slot, the next one errs by, too."""
    for client in clients["equal"][:5]:
        one, *others = errors(client, rotate, 1, queries=4)
        worst = int(np.abs(one).argmax())
        for other in others:
            assert abs(other[worst] - one[worst]) < abs(one[worst]) / 2


def test_the_means_slots_are_those_of_the_geometric_sum():
    """Every odd power of zeta, by the definition; no slot exceeds the bound's."""
    zeta = np.exp(1j * np.pi / DEGREE)
    powers = zeta ** np.outer([1, 3, 5, 101, DEGREE - 1, 2 * DEGREE - 1], np.arange(DEGREE))
    sums = np.abs(powers.sum(axis=1)) / 2
    assert np.allclose(sums[:1], 1 / (2 * math.sin(math.pi / (2 * DEGREE))), rtol=1e-9)
    assert (sums <= sums[0] * (1 + 1e-9)).all()
    assert sums[0] == pytest.approx(DEGREE / math.pi, rel=1e-6)
    one = noise.mean(DEGREE, [1 << 40], 1 << 40)
    assert one == pytest.approx(sums[0] * math.sqrt(ERROR_VARIANCE * DEGREE))


@pytest.mark.parametrize(("limbs", "count"), [(1, 40)])
def test_fresh_encryptions_divisions_and_zeros_stay_within_theirs(clients, limbs, count):
    """And reach a tenth of what a sum may, a thirtieth of what a product may."""
    client = clients["larger"][0]
    context, secret = client.context, client.secret
    prime = context.parameters.data_primes[-1]
    found: dict[str, float] = {"fresh": 0.0, "rounding": 0.0, "zero": 0.0}
    for _ in range(count):
        fresh = client.zero()
        before = slots_of(context, secret, fresh)
        context.rescale(fresh, scale=1.0)
        after = slots_of(context, secret, fresh)
        zero = slots_of(context, secret, client.evaluation.zero(limbs=limbs))
        for name, slots in (("fresh", before), ("rounding", after - before / prime), ("zero", zero)):
            found[name] = max(found[name], float(np.abs(slots).max()))
    assert noise.fresh_bound(DEGREE) / 10 < found["fresh"] < noise.fresh_bound(DEGREE)
    assert noise.rounding_bound(DEGREE) / 30 < found["rounding"] < noise.rounding_bound(DEGREE)
    bound = noise.zero_bound(DEGREE, context.parameters.special)
    assert bound / 30 < found["zero"] < bound


def test_the_tails_are_those_of_the_proof():
    assert math.e * noise.TAIL**2 * math.exp(-(noise.TAIL**2)) < 2.0**-73
    assert (math.e * noise.PRODUCT_TAIL) ** 2 * math.exp(-2 * noise.PRODUCT_TAIL) < 2.0**-73


@pytest.mark.parametrize("least", [2.0, 3.0])
def test_the_tails_hold_for_sums_and_products_where_they_can_be_seen(least):
    """Frequencies of large slots of random polynomials, against the formula at tails that do occur."""
    rng = np.random.default_rng(1)
    shape = 400, 1024
    values = [np.fft.fft(draw, axis=1)[:, 1:512].ravel() for draw in (rng.integers(-1, 2, shape), rng.random(shape))]
    one, other = (np.abs(value) / math.sqrt(float((np.abs(value) ** 2).mean())) for value in values)
    assert (one > least).mean() <= math.e * least**2 * math.exp(-(least**2))
    assert (other > least).mean() <= math.e * least**2 * math.exp(-(least**2))
    assert (one * other > least).mean() <= (math.e * least) ** 2 * math.exp(-2 * least)
    if least == 3.0:  # a product has another tail
        assert (one * other > least).mean() > 2 * math.e * least**2 * math.exp(-(least**2))
