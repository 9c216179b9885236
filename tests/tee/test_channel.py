"""The sealed channel against RFC 9180 and X-Wing written out by hand, and against whoever changes what travels.

By hand means hashlib, hmac, and the raw ML-KEM-768, X25519 and AES-256-GCM: nothing of `hpke.Suite`, nothing of ours.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.errors import ProtocolError, UsageError
from confide.tee import channel
from confide.tee.channel import (
    PUBLIC_KEY_BYTES,
    REPLY_BYTES,
    REQUEST_BYTES,
    SECRET_BYTES,
    EnclaveKey,
    ReplyKey,
    context_of,
    seal,
)

CONTEXT = context_of("predict", "ab" * 32)
ENC_BYTES = 1120
BODY = b"a question of nobody's business"

# --- by hand ----------------------------------------------------------------------------------------------------------


class Stream:
    """A `Randomness` that gives the bytes of one string, in order."""

    def __init__(self, source: bytes) -> None:
        self._rest = source

    def bytes(self, count: int) -> bytes:
        taken, self._rest = self._rest[:count], self._rest[count:]
        assert len(taken) == count
        return taken


class XWing:
    """A decapsulation key of draft-connolly-cfrg-xwing-kem, from its seed of 32 bytes."""

    def __init__(self, seed: bytes) -> None:
        self.expanded = hashlib.shake_256(seed).digest(96)
        self._lattice = MLKEM768PrivateKey.from_seed_bytes(self.expanded[:64])
        self._curve = X25519PrivateKey.from_private_bytes(self.expanded[64:])
        self._curve_public = self._curve.public_key().public_bytes_raw()
        self.public = self._lattice.public_key().public_bytes_raw() + self._curve_public

    def decapsulate(self, enc: bytes) -> bytes:
        lattice, curve = enc[:1088], enc[1088:]
        return combined(
            self._lattice.decapsulate(lattice),
            self._curve.exchange(X25519PublicKey.from_public_bytes(curve)),
            curve,
            self._curve_public,
        )


def combined(lattice_secret: bytes, curve_secret: bytes, curve_ciphertext: bytes, curve_public: bytes) -> bytes:
    return hashlib.sha3_256(lattice_secret + curve_secret + curve_ciphertext + curve_public + b"\\.//^\\").digest()


def encapsulated(public: bytes) -> tuple[bytes, bytes]:
    """Return the shared secret and enc for whoever has the key of `public`."""
    lattice_secret, lattice_ciphertext = MLKEM768PublicKey.from_public_bytes(public[:1184]).encapsulate()
    ephemeral = X25519PrivateKey.generate()
    curve_ciphertext = ephemeral.public_key().public_bytes_raw()
    curve_secret = ephemeral.exchange(X25519PublicKey.from_public_bytes(public[1184:]))
    secret = combined(lattice_secret, curve_secret, curve_ciphertext, public[1184:])
    return secret, lattice_ciphertext + curve_ciphertext


def key_schedule(secret: bytes, info: bytes, aead: int) -> tuple[bytes, bytes]:
    """Return key and base nonce of RFC 9180, section 5.1, in base mode with HKDF-SHA256."""
    suite = b"HPKE" + (0x647A).to_bytes(2, "big") + (1).to_bytes(2, "big") + aead.to_bytes(2, "big")

    def extract(salt: bytes, label: bytes, material: bytes) -> bytes:
        return hmac.digest(salt, b"HPKE-v1" + suite + label + material, "sha256")

    def expand(key: bytes, label: bytes, context: bytes, length: int) -> bytes:
        message = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return hmac.digest(key, message + b"\1", "sha256")[:length]

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    schedule = extract(secret, b"secret", b"")
    return expand(schedule, b"key", context, 32), expand(schedule, b"base_nonce", context, 12)


def labelled(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def reply_key(secret: bytes, nonce: bytes, enc: bytes) -> bytes:
    extracted = hmac.digest(nonce, secret, "sha256")
    info = labelled(b"confide tee reply v1", CONTEXT, hashlib.sha256(enc).digest())
    return hmac.digest(extracted, info + b"\1", "sha256")


REQUEST_INFO = labelled(b"confide tee request v1", CONTEXT)
AES_256_GCM, CHACHA20_POLY1305 = 2, 3


def test_the_oracle_and_our_keys_agree_with_the_vector_of_the_draft():
    """draft-ietf-hpke-pq has this KEM and key schedule with another cipher only."""
    vector = json.loads((Path(__file__).parent / "hpke_pq.json").read_text())["vector"]
    value = {name: bytes.fromhex(text) for name, text in vector.items() if isinstance(text, str)}
    first = {name: bytes.fromhex(text) for name, text in vector["encryption"].items()}
    assert (vector["kem_id"], vector["kdf_id"], vector["aead_id"]) == (0x647A, 1, CHACHA20_POLY1305)
    key = XWing(value["skRm"])
    assert key.public == value["pkRm"]
    assert EnclaveKey(Stream(key.expanded)).public == value["pkRm"]
    secret = key.decapsulate(value["enc"])
    assert secret == value["shared_secret"]
    assert key_schedule(secret, value["info"], CHACHA20_POLY1305) == (value["key"], value["base_nonce"])
    assert ChaCha20Poly1305(value["key"]).encrypt(value["base_nonce"], first["pt"], first["aad"]) == first["ct"]
    # and what the draft's encapsulation gives under our cipher is opened by the library that we use
    aes, nonce = key_schedule(secret, REQUEST_INFO, AES_256_GCM)
    sealed = value["enc"] + AESGCM(aes).encrypt(nonce, bytes(SECRET_BYTES) + BODY, None)
    assert EnclaveKey(Stream(key.expanded)).open(sealed, context=CONTEXT).body == BODY


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 5000])
def test_what_we_seal_opens_by_hand_and_the_reply_made_by_hand_opens_here(size):
    key, body = XWing(bytes(range(32))), bytes(i % 251 for i in range(size))
    sealed, reply = seal(body, key.public, context=CONTEXT, rng=SystemRandomness())
    assert len(sealed) == REQUEST_BYTES + size
    enc, ciphertext = sealed[:ENC_BYTES], sealed[ENC_BYTES:]
    aes, base_nonce = key_schedule(key.decapsulate(enc), REQUEST_INFO, AES_256_GCM)
    opened = AESGCM(aes).decrypt(base_nonce, ciphertext, None)
    assert opened[SECRET_BYTES:] == body
    nonce = bytes(range(100, 132))
    answer = nonce + AESGCM(reply_key(opened[:SECRET_BYTES], nonce, enc)).encrypt(bytes(12), b"answer", None)
    assert reply.open(answer) == b"answer"


def test_what_is_sealed_by_hand_opens_here_and_our_reply_opens_by_hand():
    enclave, secret = EnclaveKey(SystemRandomness()), bytes(range(32))
    shared, enc = encapsulated(enclave.public)
    key, nonce = key_schedule(shared, REQUEST_INFO, AES_256_GCM)
    opened = enclave.open(enc + AESGCM(key).encrypt(nonce, secret + BODY, None), context=CONTEXT)
    assert opened.body == BODY
    answer = opened.reply.seal(b"answer", SystemRandomness())
    assert len(answer) == REPLY_BYTES + 6
    assert AESGCM(reply_key(secret, answer[:32], enc)).decrypt(bytes(12), answer[32:], None) == b"answer"


def test_a_request_without_a_whole_secret_for_the_reply_is_refused():
    enclave = EnclaveKey(SystemRandomness())
    for size, fits in ((0, False), (SECRET_BYTES - 1, False), (SECRET_BYTES, True)):
        shared, enc = encapsulated(enclave.public)
        key, nonce = key_schedule(shared, REQUEST_INFO, AES_256_GCM)
        sealed = enc + AESGCM(key).encrypt(nonce, bytes(size), None)
        if fits:
            assert enclave.open(sealed, context=CONTEXT).body == b""
        else:
            with pytest.raises(ProtocolError, match="sealed to this enclave"):
                enclave.open(sealed, context=CONTEXT)


# --- whoever changes what travels -------------------------------------------------------------------------------------

ENCLAVE = EnclaveKey(SeededRandomness("5"))
SEALED, REPLY = seal(BODY, ENCLAVE.public, context=CONTEXT, rng=SeededRandomness("6"))
ANSWER = ENCLAVE.open(SEALED, context=CONTEXT).reply.seal(b"answer", SeededRandomness("7"))


def flipped(body: bytes, bit: int) -> bytes:
    at = bit // 8
    return body[:at] + bytes([body[at] ^ 1 << bit % 8]) + body[at + 1 :]


def test_the_control_nothing_changed_opens():
    opened = ENCLAVE.open(SEALED, context=CONTEXT)
    assert opened.body == BODY
    assert REPLY.open(ANSWER) == b"answer"
    assert opened.reply.open(ANSWER) == b"answer"


def test_a_flipped_bit_anywhere_in_a_request_is_refused():
    """One bit of each byte; the bits of a byte take turns."""
    taken = 0
    for at in range(len(SEALED)):
        with pytest.raises(ProtocolError, match="sealed to this enclave"):
            ENCLAVE.open(flipped(SEALED, 8 * at + at % 8), context=CONTEXT)
        taken += 1
    assert taken == REQUEST_BYTES + len(BODY)


def test_the_bit_of_an_x25519_key_that_nobody_reads_is_bound_too():
    """RFC 7748 ignores the highest bit; the combiner hashes the bytes, so both spellings differ."""
    with pytest.raises(ProtocolError):
        ENCLAVE.open(flipped(SEALED, 8 * ENC_BYTES - 1), context=CONTEXT)


def test_any_flipped_bit_of_a_reply_is_refused():
    for bit in range(8 * len(ANSWER)):
        with pytest.raises(ProtocolError, match="sealed for this request"):
            REPLY.open(flipped(ANSWER, bit))


@given(st.binary(max_size=3000))
def test_whatever_comes_instead_is_refused(hostile):
    with pytest.raises(ProtocolError):
        ENCLAVE.open(hostile, context=CONTEXT)
    with pytest.raises(ProtocolError):
        REPLY.open(hostile)


@given(st.integers(0, len(SEALED) - 1), st.integers(0, len(ANSWER) - 1), st.binary(min_size=1, max_size=40))
def test_any_other_length_is_refused(kept, kept_reply, more):
    for sealed in (SEALED[:kept], SEALED[len(SEALED) - kept :], SEALED + more, more + SEALED):
        with pytest.raises(ProtocolError):
            ENCLAVE.open(sealed, context=CONTEXT)
    for answer in (ANSWER[:kept_reply], ANSWER[len(ANSWER) - kept_reply :], ANSWER + more, more + ANSWER):
        with pytest.raises(ProtocolError):
            REPLY.open(answer)


@given(st.binary(max_size=2 * PUBLIC_KEY_BYTES).filter(lambda key: len(key) != PUBLIC_KEY_BYTES))
def test_a_key_of_another_length_is_refused(public):
    with pytest.raises(ProtocolError, match=f"{PUBLIC_KEY_BYTES} bytes"):
        seal(BODY, public, context=CONTEXT, rng=SystemRandomness())


@pytest.mark.parametrize("change", ["cut", "longer", "not reduced", "low order"])
def test_a_key_that_nobody_makes_is_refused(change):
    public = {
        "cut": ENCLAVE.public[:-1],
        "longer": ENCLAVE.public + b"\0",
        "not reduced": b"\xff" * 1184 + ENCLAVE.public[1184:],
        "low order": ENCLAVE.public[:1184] + bytes(32),
    }[change]
    with pytest.raises(ProtocolError, match="public key"):
        seal(BODY, public, context=CONTEXT, rng=SystemRandomness())


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31)], ids=["0", "1"])
def test_a_request_whose_point_has_low_order_is_refused(point):
    with pytest.raises(ProtocolError):
        ENCLAVE.open(SEALED[:1088] + point + SEALED[ENC_BYTES:], context=CONTEXT)


def test_without_ml_kem_both_sides_say_what_to_install(monkeypatch):
    class Missing:
        @staticmethod
        def refuse(_: bytes) -> None:
            raise UnsupportedAlgorithm("no ML-KEM")

        from_seed_bytes = from_public_bytes = refuse

    monkeypatch.setattr(channel, "MLKEM768PrivateKey", Missing)
    monkeypatch.setattr(channel, "MLKEM768PublicKey", Missing)
    with pytest.raises(UsageError, match="pip install"):
        EnclaveKey(SystemRandomness())
    with pytest.raises(UsageError, match="pip install"):
        seal(BODY, ENCLAVE.public, context=CONTEXT, rng=SystemRandomness())


@given(st.binary(max_size=60000))
def test_lengths_are_those_that_are_published(body):
    sealed, _ = seal(body, ENCLAVE.public, context=CONTEXT, rng=SystemRandomness())
    opened = ENCLAVE.open(sealed, context=CONTEXT)
    assert (len(sealed), opened.body) == (REQUEST_BYTES + len(body), body)
    assert len(opened.reply.seal(body, SystemRandomness())) == REPLY_BYTES + len(body)


@pytest.mark.parametrize(
    "other",
    [context_of("aggregate", "ab" * 32), context_of("predict", "ac" * 32), b"", CONTEXT + b"\0", CONTEXT[:-1]],
)
def test_another_context_is_refused(other):
    with pytest.raises(ProtocolError):
        ENCLAVE.open(SEALED, context=other)


def test_parts_of_a_context_cannot_run_into_each_other():
    assert context_of("predict", "ab") != context_of("predicta", "b")


def test_another_enclave_opens_nothing():
    with pytest.raises(ProtocolError):
        EnclaveKey(SeededRandomness("8")).open(SEALED, context=CONTEXT)


@pytest.mark.parametrize("half", ["lattice", "curve"])
def test_half_of_the_key_opens_nothing(half):
    """A quantum computer has the curve's half; whoever breaks the lattice has the other."""
    seeds = SeededRandomness("5")
    lattice, curve = seeds.bytes(64), seeds.bytes(32)
    assert EnclaveKey(Stream(lattice + curve)).open(SEALED, context=CONTEXT).body == BODY  # the control
    stolen = Stream(lattice + bytes(32)) if half == "lattice" else Stream(bytes(64) + curve)
    with pytest.raises(ProtocolError):
        EnclaveKey(stolen).open(SEALED, context=CONTEXT)


def test_the_reply_to_one_request_opens_for_no_other():
    other, other_reply = seal(BODY, ENCLAVE.public, context=CONTEXT, rng=SeededRandomness("6"))
    assert other != SEALED  # though the same secret for the reply was drawn
    with pytest.raises(ProtocolError):
        other_reply.open(ANSWER)
    for context, enc in ((CONTEXT + b"\0", SEALED), (CONTEXT, other)):
        with pytest.raises(ProtocolError):
            ReplyKey(SeededRandomness("6").bytes(SECRET_BYTES), enc, context).open(ANSWER)
    assert ReplyKey(SeededRandomness("6").bytes(SECRET_BYTES), SEALED, CONTEXT).open(ANSWER) == b"answer"  # the control


def test_two_replies_to_a_request_that_was_sent_twice_have_two_keys():
    """Under one key and nonce, two ciphertexts would show the exclusive or of the two bodies."""
    rng = SystemRandomness()
    one, other = (ENCLAVE.open(SEALED, context=CONTEXT).reply.seal(bytes(64), rng) for _ in range(2))
    assert one[:32] != other[:32]
    assert one[32:] != other[32:]
    assert REPLY.open(one) == REPLY.open(other) == bytes(64)
    with pytest.raises(ProtocolError):
        REPLY.open(one[:32] + other[32:])


def test_one_body_sealed_twice_has_nothing_in_common():
    rng = SystemRandomness()
    one, other = (seal(BODY, ENCLAVE.public, context=CONTEXT, rng=rng)[0] for _ in range(2))
    assert one[:ENC_BYTES] != other[:ENC_BYTES]
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 40  # of 1199, about 5 by chance


def test_no_secret_is_in_a_repr():
    seeds = SeededRandomness("5")
    secrets = [seeds.bytes(64), seeds.bytes(32), SeededRandomness("6").bytes(SECRET_BYTES), BODY]
    opened = ENCLAVE.open(SEALED, context=CONTEXT)
    shown = f"{ENCLAVE!r} {ENCLAVE} {REPLY!r} {REPLY} {opened!r} {opened} {opened.reply!r}"
    for secret in secrets:
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
        assert secret[:8].hex() not in shown
