"""The wrapper: who may hold what, and what a stranger's keys must be."""

import pickle

import msgspec
import numpy as np
import pytest
import seal

from confide.errors import ProtocolError
from confide.he.packed import ciphertext_bytes
from confide.he.parameters import Parameters
from confide.he.seal import CONJUGATION, Context, Evaluation, Needs, ntt_primes

CKKS = Context(Parameters(scheme="ckks", degree=4096, primes=ntt_primes(4096, (36, 36, 37))))
ALL = Needs(encryption=True, relinearisation=True, steps=(1, 5))
SECRET, PUBLIC = CKKS.generate(bytes(range(16)), ALL)
SCALE = 2.0**30


def encrypt(values) -> object:
    return SECRET.encrypt(CKKS.encode(np.asarray(values, float), limbs=2, scale=SCALE))


def opened(cipher) -> np.ndarray:
    return CKKS.decode(SECRET.decrypt(cipher))


def test_a_secret_key_shows_nothing_and_is_not_pickled():
    assert repr(SECRET) == "SecretKey()"
    assert not any(isinstance(getattr(SECRET, name, None), bytes) for name in dir(SECRET))
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(SECRET)


def test_a_plaintext_shows_nothing():
    assert repr(CKKS.encode(np.ones(2048), limbs=2, scale=SCALE)) == "Plaintext()"


def test_a_secret_key_comes_back_from_its_bytes():
    again = CKKS.secret(SECRET.to_bytes())
    values = np.linspace(-1, 1, 2048)
    assert np.abs(CKKS.decode(again.decrypt(encrypt(values))) - values).max() < 1e-3


@pytest.mark.parametrize("body", [b"", b"\0" * 100, SECRET.to_bytes()[:-1], PUBLIC.encryption])
def test_other_bytes_are_no_secret_key(body):
    with pytest.raises(ProtocolError):
        CKKS.secret(body)


def test_public_keys_hold_nothing_of_the_secret():
    parts = (PUBLIC.nonce, PUBLIC.encryption, PUBLIC.relinearisation, PUBLIC.rotation)
    words = np.frombuffer(SECRET.to_bytes(), np.uint8)[-8 * 512 :].tobytes()
    assert not any(words in part for part in parts)


def test_keys_do_what_they_are_for():
    keys = Evaluation(CKKS, PUBLIC, ALL)
    values = np.random.default_rng(1).uniform(-1, 1, 2048)
    for step in ALL.steps:
        assert np.abs(opened(keys.rotate(encrypt(values), step)) - np.roll(values, -step)).max() < 1e-3
    zero = keys.zero(limbs=1, scale=SCALE)
    assert np.abs(opened(zero)).max() < 1e-3
    assert CKKS.to_bytes(zero) != CKKS.to_bytes(keys.zero(limbs=1, scale=SCALE))
    square = CKKS.times(encrypt(values), encrypt(values))
    keys.relinearise(square)
    assert np.abs(opened(square) - values**2).max() < 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": b""},
        {"encryption": b""},
        {"relinearisation": b""},
        {"rotation": b""},
        {"encryption": PUBLIC.encryption[:-8]},
        {"encryption": PUBLIC.relinearisation},
        {"relinearisation": PUBLIC.rotation},
        {"rotation": PUBLIC.relinearisation},
        {"rotation": CKKS.generate(bytes(16), Needs(steps=(1, 5, 6)))[1].rotation},
    ],
)
def test_keys_that_the_plan_does_not_need_are_refused(change):
    with pytest.raises(ProtocolError):
        Evaluation(CKKS, msgspec.structs.replace(PUBLIC, **change), ALL)


def test_superfluous_keys_are_refused():
    with pytest.raises(ProtocolError):
        Evaluation(CKKS, PUBLIC, Needs(encryption=True))


def test_keys_of_other_parameters_are_refused():
    other = Context(Parameters(scheme="ckks", degree=4096, primes=ntt_primes(4096, (35, 35, 36))))
    with pytest.raises(ProtocolError):
        Evaluation(other, PUBLIC, ALL)


def test_ciphertexts_of_one_level_have_one_length():
    form = CKKS.form(limbs=2, ntt=True, scale=SCALE)
    zero, noise = np.zeros(2048), np.random.default_rng(2).normal(size=2048)
    assert len(CKKS.to_bytes(encrypt(zero))) == len(CKKS.to_bytes(encrypt(noise))) == ciphertext_bytes(form)
    assert CKKS.load(CKKS.to_bytes(encrypt(noise)), form)


def test_rotation_keys_are_made_one_by_one(monkeypatch):
    """SEAL makes them at all primes: a plan of many trimmed keys would else fill a client's memory."""
    asked: list[list[int]] = []

    class Maker:
        def __init__(self, context) -> None:
            self.maker = MAKER(context)

        def __getattr__(self, name):
            return getattr(self.maker, name)

        def create_galois_keys(self, steps, made) -> None:
            asked.append(steps)
            self.maker.create_galois_keys(steps, made)

    MAKER = seal.KeyGenerator
    monkeypatch.setattr(seal, "KeyGenerator", Maker)
    needs = Needs(steps=(5, CONJUGATION, 1, 2000), limbs=(1, 2, 2, 1))
    secret, public = CKKS.generate(bytes(16), needs)
    assert sorted(asked) == [[0], [1], [5], [2000]]
    evaluation = Evaluation(CKKS, public, needs)
    x = np.random.default_rng(1).normal(size=2048)
    cipher = secret.encrypt(CKKS.encode(x, limbs=1, scale=2.0**25))
    for step in (5, 1, 2000):
        moved = CKKS.decode(secret.decrypt(evaluation.rotate(cipher, step)))
        assert np.abs(moved - np.roll(x, -step)).max() < 0.1
