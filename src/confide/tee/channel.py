"""Bodies sealed to the key of an enclave, and replies that only the asker can open. No I/O, no time.

    request   enc (1120 bytes) || HPKE ciphertext of: reply secret (32 bytes) || body
    reply     reply nonce (32 bytes) || AES-256-GCM ciphertext of the body

HPKE in base mode with ML-KEM-768 + X25519 (what is recorded today stays closed to a quantum computer), HKDF-SHA256 and
AES-256-GCM. The reply's key is derived from the secret inside the request and the reply's own random nonce, so that a
request which is sent twice never gives two replies under one key; a hash of the encapsulation binds it to the request.

Paper: RFC 9180 (HPKE, one-shot API); draft-ietf-hpke-pq for the KEM (X-Wing, number 0x647a); RFC 9458, section 4.4, for
a reply under a nonce of its own. We carry the reply's secret in the request instead of exporting it from the context:
the library exports none, and whoever can open the request can do both.

Leaks: lengths of bodies, which grow with their rows; when, and how often.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from confide.crypto.keys import ENCAPSULATION_KEY_BYTES, ENCAPSULATION_SEED_BYTES, KEY_BYTES, NO_ML_KEM, label
from confide.crypto.random import Randomness
from confide.errors import ProtocolError, UsageError

PUBLIC_KEY_BYTES = ENCAPSULATION_KEY_BYTES + KEY_BYTES
SECRET_BYTES = 32
_ENCAPSULATED_BYTES = 1088 + KEY_BYTES
#: What sealing adds: enc, the reply's secret and the tag; the reply's nonce and the tag.
REQUEST_BYTES = _ENCAPSULATED_BYTES + SECRET_BYTES + 16
REPLY_BYTES = SECRET_BYTES + 16

_REQUEST = b"confide tee request v1"
_REPLY = b"confide tee reply v1"


def _suite() -> Suite:
    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class EnclaveKey:
    """The secret half of an enclave's pair; it never leaves the process that drew it.

    Args:
        rng: draws the seeds of both parts.

    Raises:
        UsageError: the OpenSSL at hand has no ML-KEM.
    """

    def __init__(self, rng: Randomness) -> None:
        try:
            lattice = MLKEM768PrivateKey.from_seed_bytes(rng.bytes(ENCAPSULATION_SEED_BYTES))
        except UnsupportedAlgorithm:
            raise UsageError(NO_ML_KEM) from None
        curve = X25519PrivateKey.from_private_bytes(rng.bytes(KEY_BYTES))
        self._key = MLKEM768X25519PrivateKey(lattice, curve)
        self.public = lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()

    def open(self, sealed: bytes, *, context: bytes) -> Opened:
        """Return what a client sealed, and what its reply is sealed with.

        Args:
            sealed: a request, `REQUEST_BYTES` longer than its body.
            context: what both sides know; see `context_of`.

        Raises:
            ProtocolError: sealed to another key or for another context, changed, or too short.
        """
        try:
            plaintext = _suite().decrypt(sealed, self._key, label(_REQUEST, context))
        except (InvalidTag, ValueError):
            raise ProtocolError("Expected a body sealed to this enclave's key") from None
        if len(plaintext) < SECRET_BYTES:
            raise ProtocolError("Expected a body sealed to this enclave's key")
        return Opened(plaintext[SECRET_BYTES:], ReplyKey(plaintext[:SECRET_BYTES], sealed, context))

    def __repr__(self) -> str:
        return "EnclaveKey(secret)"


class Opened:
    """A request's body, and the key of its reply."""

    def __init__(self, body: bytes, reply: ReplyKey) -> None:
        self.body = body
        self.reply = reply


class ReplyKey:
    """What a reply to one request is sealed with; the asker and the enclave have it."""

    def __init__(self, secret: bytes, sealed: bytes, context: bytes) -> None:
        self._secret = secret
        self._info = label(_REPLY, context, hashlib.sha256(sealed[:_ENCAPSULATED_BYTES]).digest())

    def seal(self, body: bytes, rng: Randomness) -> bytes:
        """Return the sealed reply, `REPLY_BYTES` longer than `body`."""
        nonce = rng.bytes(SECRET_BYTES)
        return nonce + AESGCM(self._key(nonce)).encrypt(bytes(12), body, None)

    def open(self, reply: bytes) -> bytes:
        """Return the body of a reply. Raises ProtocolError unless the enclave sealed it for this very request."""
        try:
            return AESGCM(self._key(reply[:SECRET_BYTES])).decrypt(bytes(12), reply[SECRET_BYTES:], None)
        except (InvalidTag, ValueError):
            raise ProtocolError("Expected a reply that the enclave sealed for this request") from None

    def _key(self, nonce: bytes) -> bytes:
        return HKDF(SHA256(), 32, nonce, self._info).derive(self._secret)

    def __repr__(self) -> str:
        return "ReplyKey(secret)"


def seal(body: bytes, public: bytes, *, context: bytes, rng: Randomness) -> tuple[bytes, ReplyKey]:
    """Return `body` sealed to an enclave's key, and what opens its reply.

    Args:
        body: any length.
        public: of the enclave, `PUBLIC_KEY_BYTES`, from verified claims.
        context: see `context_of`.
        rng: draws the reply's secret; the encapsulation draws from the operating system by itself.

    Raises:
        ProtocolError: `public` is no key: of another length, not reduced, or its curve's half of low order.
        UsageError: the OpenSSL at hand has no ML-KEM.
    """
    secret = rng.bytes(SECRET_BYTES)
    try:
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:ENCAPSULATION_KEY_BYTES]),
            X25519PublicKey.from_public_bytes(public[ENCAPSULATION_KEY_BYTES:]),
        )
        sealed = _suite().encrypt(secret + body, key, label(_REQUEST, context))  # low order shows only here
    except UnsupportedAlgorithm:
        raise UsageError(NO_ML_KEM) from None
    except ValueError:
        raise ProtocolError(f"Expected the enclave's public key, {PUBLIC_KEY_BYTES} bytes") from None
    return sealed, ReplyKey(secret, sealed, context)


def context_of(purpose: str, model_sha256: str, about: str = "") -> bytes:
    """Return what requests and replies are bound to beside the key: what for, which model, and `about`.

    Of a prediction that is the hex SHA-256 of the kit, so that nobody between renames classes or columns.
    """
    return label(purpose, model_sha256, about)
