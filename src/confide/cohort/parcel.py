"""A client's secret for one other server, carried through the first: a box, and a signature that names its sender.

Whoever carries it can check who made it and for which session, and cannot read it.
"""

from __future__ import annotations

import msgspec

from confide.crypto.keys import (
    KEY_BYTES,
    SEAL_BYTES,
    SIGNATURE_BYTES,
    AgreementKey,
    SigningKey,
    check_agreement_key,
    derive,
    label,
    seal,
    unseal,
    verify,
)
from confide.crypto.random import Randomness
from confide.errors import ProtocolError


class Parcel(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A secret in a box: one-time public key, box, signature of the sender over both and what else it states."""

    key: bytes
    box: bytes
    signature: bytes


def parcel_bytes(secret_bytes: int) -> int:
    """Return the bytes in a parcel with a secret of that size, framing apart."""
    return KEY_BYTES + secret_bytes + SEAL_BYTES + SIGNATURE_BYTES


def seal_parcel(
    secret: bytes,
    receiver: bytes,
    *,
    context: bytes,
    sender: str,
    identity: SigningKey,
    rng: Randomness,
    signed: bytes = b"",
) -> Parcel:
    """Return `secret` in a box that only the holder of `receiver` opens, in this context alone.

    Args:
        secret: any length; the length shows.
        receiver: an X25519 public key.
        context: what the session is about, 32 bytes.
        sender: the client's name.
        identity: the client's.
        rng: draws the one-time key.
        signed: what the signature covers beside the parcel.
    """
    once = AgreementKey(rng.bytes(KEY_BYTES))
    info = _binding(context, sender, once.public)
    box = seal(derive(once.shared(receiver), info), secret, associated=info)
    return Parcel(once.public, box, identity.sign(label(info, box) + signed))


def check_parcel(
    parcel: Parcel, *, secret_bytes: int, context: bytes, sender: str, identity: bytes, signed: bytes = b""
) -> None:
    """Check form and signature of a parcel; `signed` as in `seal_parcel`.

    Raises:
        ProtocolError: the holder of the public key `identity` did not make it for this context.
    """
    if len(parcel.box) != secret_bytes + SEAL_BYTES:
        raise ProtocolError(f"Expected a box with {secret_bytes} bytes")
    check_agreement_key(parcel.key)
    verify(identity, label(_binding(context, sender, parcel.key), parcel.box) + signed, parcel.signature)


def open_parcel(parcel: Parcel, key: AgreementKey, *, context: bytes, sender: str) -> bytes:
    """Return the secret in a parcel whose signature was checked.

    Raises:
        ProtocolError: the box was not made for `key`.
    """
    info = _binding(context, sender, parcel.key)
    return unseal(derive(key.shared(parcel.key), info), parcel.box, associated=info)


def _binding(context: bytes, sender: str, once: bytes) -> bytes:
    return label(context, "parcel", sender, once)
