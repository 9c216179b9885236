"""Keys: agreement (X25519), encapsulation (ML-KEM-768), signatures (Ed25519), derivation (HKDF-SHA256), sealed boxes.

Thin types over `cryptography` (OpenSSL). Secrets have no repr and compare by identity; public halves are plain bytes.
Whatever another party sent and does not hold up becomes a `ProtocolError`.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from confide.crypto.random import Randomness
from confide.errors import ProtocolError, UsageError

#: Bytes of every secret seed, key, public key and digest here.
KEY_BYTES = 32
SIGNATURE_BYTES = 64
#: What a box adds to its plaintext.
SEAL_BYTES = 16
#: Bytes of an ML-KEM-768 seed, public key and ciphertext (FIPS 203, tables 2 and 3).
ENCAPSULATION_SEED_BYTES, ENCAPSULATION_KEY_BYTES, CIPHERTEXT_BYTES = 64, 1184, 1088

#: What to say where OpenSSL has no ML-KEM.
NO_ML_KEM = (
    "Expected a cryptography package whose OpenSSL has ML-KEM; install its wheel with: pip install --force-reinstall "
    "--only-binary cryptography 'cryptography>=50'"
)

_FIELD = 2**255 - 19
#: The u-coordinates below p of the points whose order divides 8: with them every shared secret is zero.
_LOW_ORDER = frozenset(
    (
        0,
        1,
        _FIELD - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    )
)


class AgreementKey:
    """The secret half of an X25519 pair.

    Args:
        seed: 32 secret bytes.
    """

    def __init__(self, seed: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def shared(self, peer: bytes) -> bytes:
        """Return the 32 bytes shared with the holder of `peer`: not uniform, derive keys from them.

        Raises:
            ProtocolError: the peer's key has low order, so that anyone could know the result, or a wrong size.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise ProtocolError("Expected an agreement key of full order") from None

    def __repr__(self) -> str:
        return "AgreementKey(secret)"


def check_agreement_key(public: bytes) -> None:
    """Refuse a public key that no honest party makes: wrong size, not reduced modulo p, or of low order.

    Raises:
        ProtocolError: as said.
    """
    value = int.from_bytes(public, "little")
    if len(public) != KEY_BYTES or value >= _FIELD or value in _LOW_ORDER:
        raise ProtocolError("Expected an agreement key of full order")


class DecapsulationKey:
    """The secret half of an ML-KEM-768 pair (FIPS 203).

    Args:
        seed: 64 secret bytes, d and z in one.

    Raises:
        UsageError: the OpenSSL at hand has no ML-KEM.
    """

    def __init__(self, seed: bytes) -> None:
        try:
            self._key = MLKEM768PrivateKey.from_seed_bytes(seed)
        except UnsupportedAlgorithm:
            raise UsageError(NO_ML_KEM) from None
        self.public = self._key.public_key().public_bytes_raw()

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """Return the 32 uniform bytes that `encapsulate` drew with `ciphertext`.

        A ciphertext that was changed, or made for another key, gives other bytes and no error: let the sender confirm
        what it drew.

        Raises:
            ProtocolError: a wrong size.
        """
        try:
            return self._key.decapsulate(ciphertext)
        except ValueError:
            raise ProtocolError(f"Expected an ML-KEM-768 ciphertext of {CIPHERTEXT_BYTES} bytes") from None

    def __repr__(self) -> str:
        return "DecapsulationKey(secret)"


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """Return a ciphertext for the holder of `public`, and the 32 uniform bytes that it carries.

    OpenSSL draws these by itself and takes no `Randomness`: two runs from one seed differ in them.

    Raises:
        ProtocolError: as `check_encapsulation_key`.
        UsageError: the OpenSSL at hand has no ML-KEM.
    """
    secret, ciphertext = _encapsulation_key(public).encapsulate()
    return ciphertext, secret


def require_encapsulation() -> None:
    """Say so if no ML-KEM key can be made here.

    Raises:
        UsageError: the OpenSSL at hand has no ML-KEM.
    """
    DecapsulationKey(bytes(ENCAPSULATION_SEED_BYTES))


def check_encapsulation_key(public: bytes) -> None:
    """Refuse a public ML-KEM-768 key that no honest party makes: wrong size, or a coefficient not reduced modulo q.

    Raises:
        ProtocolError: as said.
        UsageError: the OpenSSL at hand has no ML-KEM.
    """
    _encapsulation_key(public)


def _encapsulation_key(public: bytes) -> MLKEM768PublicKey:
    try:
        return MLKEM768PublicKey.from_public_bytes(public)
    except UnsupportedAlgorithm:
        raise UsageError(NO_ML_KEM) from None
    except ValueError:
        raise ProtocolError(f"Expected an ML-KEM-768 public key of {ENCAPSULATION_KEY_BYTES} bytes, reduced") from None


class SigningKey:
    """The secret half of a long-lived Ed25519 identity.

    Args:
        seed: 32 secret bytes; whoever stores the identity stores these.
    """

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    @staticmethod
    def draw_seed(rng: Randomness) -> bytes:
        """Return the 32 bytes of a new identity."""
        return rng.bytes(KEY_BYTES)

    def sign(self, message: bytes) -> bytes:
        """Return the signature of `message`, 64 bytes, the same every time."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return "SigningKey(secret)"


def verify(public: bytes, message: bytes, signature: bytes) -> None:
    """Check a signature.

    Raises:
        ProtocolError: the holder of `public` did not sign `message`.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise ProtocolError("Expected a signature by the pinned identity") from None


def label(*parts: str | bytes | int) -> bytes:
    """Return `parts` as one byte string, each prefixed by its length, so that no two lists give the same bytes."""
    encoded: list[bytes] = []
    for part in parts:  # a loop, since a sum over many clients builds hundreds of thousands
        data = part if isinstance(part, bytes) else str(part).encode()
        encoded += (len(data).to_bytes(4, "little"), data)
    return b"".join(encoded)


def derive(secret: bytes, info: bytes) -> bytes:
    """Return 32 uniform bytes for one purpose, HKDF-SHA256 without salt (RFC 5869).

    Args:
        secret: input key material of at least 128 bits of entropy.
        info: what the key is for and in which session; see `label`.
    """
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(secret)


def expand(key: bytes, info: bytes) -> bytes:
    """Return 32 uniform bytes for one purpose from a key that is uniform already: HKDF-Expand alone (RFC 5869).

    Args:
        key: 32 bytes, such as `derive` returns.
        info: as for `derive`.
    """
    return hmac.digest(key, info + b"\1", "sha256")


def commit(secret: bytes, info: bytes) -> bytes:
    """Return SHA-256 of `info` and `secret`: binds to `secret`, hides it if it is drawn from 2^128 or more values."""
    return hashlib.sha256(label(info, secret)).digest()


def seal(key: bytes, plaintext: bytes, *, associated: bytes) -> bytes:
    """Return the ChaCha20-Poly1305 box of `plaintext` (RFC 8439), `SEAL_BYTES` longer.

    Args:
        key: 32 bytes that seal this box and nothing else, ever: the nonce is zero.
        plaintext: any length.
        associated: what the box belongs to; opening it needs the same bytes.
    """
    return ChaCha20Poly1305(key).encrypt(bytes(12), plaintext, associated)


def unseal(key: bytes, box: bytes, *, associated: bytes) -> bytes:
    """Return what `seal` enclosed.

    Raises:
        ProtocolError: another key, other associated bytes, or a box that was changed.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), box, associated)
    except InvalidTag:
        raise ProtocolError("Expected a box that opens under its sender's key") from None
