"""Parcels: only the receiver reads them, everybody sees whose and for what they are."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec.structs import replace

from confide.cohort.parcel import Parcel, check_parcel, open_parcel, parcel_bytes, seal_parcel
from confide.crypto.keys import AgreementKey, SigningKey
from confide.crypto.random import SeededRandomness
from confide.errors import ProtocolError
from secagg.tamper import flip

SEED = bytes(range(32))
RECEIVER, IDENTITY, CONTEXT = AgreementKey(SEED), SigningKey(bytes(32)), b"c" * 32
SECRET = b"nineteen bytes long"


def sealed(*, sender: str = "north", context: bytes = CONTEXT) -> Parcel:
    rng = SeededRandomness("parcel")
    return seal_parcel(SECRET, RECEIVER.public, context=context, sender=sender, identity=IDENTITY, rng=rng)


def check(parcel: Parcel, *, sender: str = "north", context: bytes = CONTEXT, key: bytes = IDENTITY.public) -> None:
    check_parcel(parcel, secret_bytes=len(SECRET), context=context, sender=sender, identity=key)


def test_the_receiver_reads_it() -> None:
    parcel = sealed()
    check(parcel)
    assert open_parcel(parcel, RECEIVER, context=CONTEXT, sender="north") == SECRET
    assert sum(map(len, (parcel.key, parcel.box, parcel.signature))) == parcel_bytes(len(SECRET))


def test_it_is_what_the_library_opens() -> None:
    parcel = sealed()
    parts = (CONTEXT, b"parcel", b"north", parcel.key)
    info = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    shared = X25519PrivateKey.from_private_bytes(SEED).exchange(X25519PublicKey.from_public_bytes(parcel.key))
    key = HKDF(SHA256(), 32, None, info).derive(shared)
    assert ChaCha20Poly1305(key).decrypt(bytes(12), parcel.box, info) == SECRET


def test_nobody_else_reads_it() -> None:
    with pytest.raises(ProtocolError):
        open_parcel(sealed(), AgreementKey(bytes(32)), context=CONTEXT, sender="north")


@pytest.mark.parametrize(
    "other",
    [{"sender": "south"}, {"context": b"d" * 32}, {"key": SigningKey(SEED).public}],
    ids=lambda other: next(iter(other)),
)
def test_it_belongs_to_its_sender_and_session(other: dict) -> None:
    with pytest.raises(ProtocolError):
        check(sealed(), **other)
    if "key" not in other:
        with pytest.raises(ProtocolError):
            open_parcel(sealed(), RECEIVER, **{"context": CONTEXT, "sender": "north"} | other)


@pytest.mark.parametrize("field", ["key", "box", "signature"])
def test_a_changed_parcel_is_refused(field: str) -> None:
    parcel = sealed()
    with pytest.raises(ProtocolError):
        check(replace(parcel, **{field: flip(getattr(parcel, field))}))
    with pytest.raises(ProtocolError):
        check(replace(parcel, **{field: getattr(parcel, field)[:-1]}))
    with pytest.raises(ProtocolError):
        check(replace(parcel, key=bytes(32)))
