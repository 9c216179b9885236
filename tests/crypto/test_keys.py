"""What `keys` wraps, against the vectors of the RFCs and against oracles written from them."""

from __future__ import annotations

import hashlib
import hmac
from itertools import pairwise

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import mlkem as library
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.crypto.keys import (
    CIPHERTEXT_BYTES,
    ENCAPSULATION_KEY_BYTES,
    ENCAPSULATION_SEED_BYTES,
    SEAL_BYTES,
    AgreementKey,
    DecapsulationKey,
    SigningKey,
    check_agreement_key,
    check_encapsulation_key,
    commit,
    derive,
    encapsulate,
    label,
    seal,
    unseal,
    verify,
)
from confide.crypto.random import SeededRandomness
from confide.errors import ProtocolError, UsageError
from crypto import chacha, mlkem

hexed = bytes.fromhex
P = 2**255 - 19

# RFC 7748, section 6.1: secret and public halves of both sides, and what they share
ALICE = hexed("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
ALICE_PUBLIC = hexed("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = hexed("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = hexed("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
SHARED = hexed("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
# RFC 8032, section 7.1, tests 1 to 3: secret, public, message, signature
ED25519 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
        "655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aee"
        "b00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d"
        "c027beceea1ec40a",
    ),
]


def test_agreement_is_x25519_of_rfc_7748() -> None:
    alice, bob = AgreementKey(ALICE), AgreementKey(BOB)
    assert (alice.public, bob.public) == (ALICE_PUBLIC, BOB_PUBLIC)
    assert alice.shared(BOB_PUBLIC) == bob.shared(ALICE_PUBLIC) == SHARED


def test_iterated_agreement_of_rfc_7748() -> None:
    k = u = (9).to_bytes(32, "little")
    for _ in range(1000):
        k, u = AgreementKey(k).shared(u), k
    assert k == hexed("684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51")


LOW_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
]


@pytest.mark.parametrize("point", LOW_ORDER)
@pytest.mark.parametrize("top_bit", [0, 1 << 255])
def test_low_order_keys_are_refused_in_every_encoding(point: int, top_bit: int) -> None:
    public = (point + top_bit).to_bytes(32, "little")
    with pytest.raises(ProtocolError, match="full order"):
        check_agreement_key(public)
    with pytest.raises(ProtocolError, match="full order"):  # what the check spares: the result would be zero
        AgreementKey(ALICE).shared(public)


def doubled(u: int) -> tuple[int, int]:
    """Return 2Q on Curve25519 by its u-coordinate (RFC 7748's formula), as numerator and denominator modulo p."""
    return pow(u * u - 1, 2, P), 4 * u * (u * u + 486662 * u + 1) % P


def test_the_refused_keys_are_exactly_those_of_order_dividing_eight() -> None:
    """8Q is the point at infinity for each of them, and for no honest key."""

    def order_divides_eight(u: int) -> bool:
        for _ in range(3):
            above, below = doubled(u)
            if below == 0:
                return True
            u = above * pow(below, -1, P) % P
        return False

    assert all(order_divides_eight(point) for point in LOW_ORDER[:5])
    assert not order_divides_eight(int.from_bytes(ALICE_PUBLIC, "little"))


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33), (P + 9).to_bytes(32, "little"), b"\xff" * 32])
def test_keys_of_another_size_or_not_reduced_are_refused(public: bytes) -> None:
    with pytest.raises(ProtocolError, match="full order"):
        check_agreement_key(public)


def test_a_key_of_another_size_is_a_protocol_error_in_the_agreement_too() -> None:
    with pytest.raises(ProtocolError, match="full order"):
        AgreementKey(ALICE).shared(bytes(31))


@given(st.binary(min_size=32, max_size=32))
@settings(max_examples=50, deadline=None)
def test_honest_keys_pass(seed: bytes) -> None:
    check_agreement_key(AgreementKey(seed).public)


# --- encapsulation ----------------------------------------------------------------------------------------------------

#: SHAKE128 over the answers to 100 cases that SHAKE128 of nothing draws: the scheme of C2SP CCTV's accumulated vectors,
#: the digest of `TestAccumulated` in Go's crypto/mlkem.
ACCUMULATED = "1114b1b6699ed191734fa339376afa7e285c9e6acf6ff0177d346696ce564415"


def test_encapsulation_is_ml_kem_768_of_fips_203() -> None:
    """Keys, secrets and the secrets of random ciphertexts are ours; the ciphertexts are those of the oracle."""
    drawn, answers = hashlib.shake_128().digest(100 * (64 + 32 + CIPHERTEXT_BYTES)), hashlib.shake_128()
    for start in range(0, len(drawn), 64 + 32 + CIPHERTEXT_BYTES):
        key = DecapsulationKey(drawn[start : start + 64])
        ciphertext, secret = mlkem.encapsulate(key.public, drawn[start + 64 : start + 96])
        assert key.decapsulate(ciphertext) == secret
        other = key.decapsulate(drawn[start + 96 : start + 96 + CIPHERTEXT_BYTES])
        answers.update(key.public + ciphertext + secret + other)
    assert answers.hexdigest(32) == ACCUMULATED


@given(st.binary(min_size=64, max_size=64))
@settings(max_examples=25, deadline=None)
def test_what_was_encapsulated_is_what_the_holder_decapsulates_and_nobody_else(seed: bytes) -> None:
    key, other = DecapsulationKey(seed), DecapsulationKey(bytes([seed[0] ^ 1]) + seed[1:])
    check_encapsulation_key(key.public)
    (first, secret), (second, another) = encapsulate(key.public), encapsulate(key.public)
    assert (len(key.public), len(first), len(secret)) == (ENCAPSULATION_KEY_BYTES, CIPHERTEXT_BYTES, 32)
    assert (key.decapsulate(first), key.decapsulate(second)) == (secret, another)
    assert len({secret, another, other.decapsulate(first)}) == 3


@pytest.mark.parametrize("at", [0, 959, 960, CIPHERTEXT_BYTES - 1])
def test_a_changed_ciphertext_gives_another_secret_and_no_error(at: int) -> None:
    key = DecapsulationKey(bytes(ENCAPSULATION_SEED_BYTES))
    ciphertext, secret = encapsulate(key.public)
    changed = ciphertext[:at] + bytes([ciphertext[at] ^ 1]) + ciphertext[at + 1 :]
    assert key.decapsulate(changed) != secret
    assert key.decapsulate(changed) == key.decapsulate(changed)


def with_coefficient(public: bytes, position: int, value: int) -> bytes:
    """Return `public` with one of its 768 coefficients of 12 bits replaced."""
    packed = int.from_bytes(public[:1152], "little") & ~(0xFFF << 12 * position)
    return (packed | value << 12 * position).to_bytes(1152, "little") + public[1152:]


@pytest.mark.parametrize("position", [0, 1, 255, 256, 767])
def test_public_keys_with_a_coefficient_that_is_not_reduced_are_refused(position: int) -> None:
    """FIPS 203, section 7.2, the modulus check: q - 1 passes at every place, q does not."""
    public = DecapsulationKey(bytes(ENCAPSULATION_SEED_BYTES)).public
    check_encapsulation_key(with_coefficient(public, position, mlkem.Q - 1))
    for value in (mlkem.Q, 4095):
        for refuse in (check_encapsulation_key, encapsulate):
            with pytest.raises(ProtocolError, match="1184 bytes, reduced"):
                refuse(with_coefficient(public, position, value))


def test_keys_and_ciphertexts_of_another_size_are_refused() -> None:
    key = DecapsulationKey(bytes(ENCAPSULATION_SEED_BYTES))
    ciphertext, _ = encapsulate(key.public)
    for public in (b"", key.public[:-1], key.public + b"\0", bytes(32)):
        with pytest.raises(ProtocolError, match="1184 bytes"):
            check_encapsulation_key(public)
    for candidate in (b"", ciphertext[:-1], ciphertext + b"\0", bytes(32)):
        with pytest.raises(ProtocolError, match="1088 bytes"):
            key.decapsulate(candidate)


def test_an_openssl_without_ml_kem_is_one_line_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    public = DecapsulationKey(bytes(ENCAPSULATION_SEED_BYTES)).public

    def absent(_: bytes) -> None:
        raise UnsupportedAlgorithm("ML-KEM-768 is not supported by this backend.")

    monkeypatch.setattr(library.MLKEM768PrivateKey, "from_seed_bytes", absent)
    monkeypatch.setattr(library.MLKEM768PublicKey, "from_public_bytes", absent)
    for use in (
        lambda: DecapsulationKey(bytes(64)),
        lambda: encapsulate(public),
        lambda: check_encapsulation_key(public),
    ):
        with pytest.raises(UsageError, match="pip install .*cryptography"):
            use()


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "public", "message", "signature"), ED25519)
def test_signatures_are_ed25519_of_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    key = SigningKey(hexed(seed))
    assert key.public == hexed(public)
    assert key.sign(hexed(message)) == hexed(signature)
    verify(hexed(public), hexed(message), hexed(signature))


def test_other_signatures_messages_and_keys_are_refused() -> None:
    key = SigningKey(SigningKey.draw_seed(SeededRandomness("a")))
    other = SigningKey(SigningKey.draw_seed(SeededRandomness("b")))
    signature = key.sign(b"round 1")
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    wrong = [
        (other.public, b"round 1", signature),
        (key.public, b"round 2", signature),
        (key.public, b"round 1", flipped),
        (key.public, b"round 1", signature[:63]),
        (key.public, b"round 1", b""),
        (key.public[:31], b"round 1", signature),
    ]
    for public, message, candidate in wrong:
        with pytest.raises(ProtocolError, match="pinned identity"):
            verify(public, message, candidate)


def test_derivation_is_hkdf_of_rfc_5869() -> None:
    """Test case 3 (no salt, no info); its first 32 bytes are the whole of a 32-byte output."""
    assert derive(b"\x0b" * 22, b"") == hexed("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d")


@given(st.binary(min_size=1, max_size=80), st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_derivation_equals_the_two_steps_of_the_rfc(secret: bytes, info: bytes) -> None:
    extracted = hmac.digest(bytes(32), secret, "sha256")
    assert derive(secret, info) == hmac.digest(extracted, info + b"\x01", "sha256")


def test_the_oracle_meets_rfc_8439() -> None:
    """Section 2.8.2."""
    key, nonce = bytes(range(0x80, 0xA0)), hexed("070000004041424344454647")
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    sealed = chacha.aead(key, nonce, text, hexed("50515253c0c1c2c3c4c5c6c7"))
    assert sealed[:16] == hexed("d31a8d34648e60db7b86afbc53ef7ec2")
    assert sealed[-16:] == hexed("1ae10b594f09e26a7e902ecbd0600691")


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=130), st.binary(max_size=40))
@settings(max_examples=25, deadline=None)
def test_a_box_is_the_rfc_s_aead_under_a_zero_nonce(key: bytes, plaintext: bytes, associated: bytes) -> None:
    box = seal(key, plaintext, associated=associated)
    assert box == chacha.aead(key, bytes(12), plaintext, associated)
    assert len(box) == len(plaintext) + SEAL_BYTES
    assert unseal(key, box, associated=associated) == plaintext


def test_a_box_opens_only_as_it_was_sealed() -> None:
    key, other = bytes(32), b"\1" * 32
    box = seal(key, b"two shares", associated=b"a to b")
    changed = [bytes([box[i] ^ 1 if i == at else box[i] for i in range(len(box))]) for at in range(len(box))]
    for candidate in (*changed, box[:-1], box + b"\0", b""):
        with pytest.raises(ProtocolError, match="opens under its sender's key"):
            unseal(key, candidate, associated=b"a to b")
    for wrong_key, associated in ((other, b"a to b"), (key, b"b to a"), (key, b"")):
        with pytest.raises(ProtocolError, match="opens under its sender's key"):
            unseal(wrong_key, box, associated=associated)


_part = st.one_of(st.binary(max_size=6), st.text(max_size=6), st.integers(-9, 99))


@given(st.lists(_part, max_size=4), st.lists(_part, max_size=4))
@settings(deadline=None)
def test_labels_of_different_lists_differ(first: list[str | bytes | int], second: list[str | bytes | int]) -> None:
    def plain(parts: list[str | bytes | int]) -> list[bytes]:
        return [part if isinstance(part, bytes) else str(part).encode() for part in parts]

    assert (label(*first) == label(*second)) == (plain(first) == plain(second))


def test_no_label_is_the_start_of_another_of_as_many_parts() -> None:
    labels = sorted(label(a, b) for a in ("", "a", "ab") for b in ("", "b", "ab"))
    assert not any(later.startswith(earlier) for earlier, later in pairwise(labels))


def test_a_commitment_binds_its_secret_and_its_purpose() -> None:
    parts = (b"seed of a", bytes(32))
    written_out = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    assert commit(bytes(32), b"seed of a") == hashlib.sha256(written_out).digest()
    assert len({commit(bytes(32), b"a"), commit(bytes(32), b"b"), commit(b"\1" * 32, b"a")}) == 3


def test_secrets_have_no_repr() -> None:
    seed = SeededRandomness("repr").bytes(32)
    for key in (AgreementKey(seed), SigningKey(seed), DecapsulationKey(2 * seed)):
        assert repr(key).endswith("(secret)")
        assert seed.hex() not in repr(vars(key))
