"""The documents of AWS Nitro: COSE_Sign1 around a map, in CBOR.

Paper: RFC 9052 (COSE_Sign1, Sig_structure), RFC 8949 (CBOR).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from confide.errors import ProtocolError
from confide.tee import cbor

_ALGORITHM = 1
#: Tag 18, which may stand before a COSE_Sign1 message.
_TAG = b"\xd2"


@dataclass(frozen=True, slots=True)
class Signed:
    """A COSE_Sign1 message.

    Args:
        algorithm: as the protected header names it; -35 is ES384. None where it names none.
        payload: what was signed, a map.
        signature: as it came.
        covered: the bytes that were signed (Sig_structure).
    """

    algorithm: int | None
    payload: Mapping[str, object]
    signature: bytes
    covered: bytes


def read_sign1(body: bytes) -> Signed:
    """Return the message in `body`. Raises ProtocolError for anything else."""
    message = cbor.loads(body.removeprefix(_TAG))
    parts = cast("list[object]", message) if isinstance(message, list) else []
    if len(parts) != 4 or not isinstance(parts[1], dict):
        raise ProtocolError("Expected a COSE_Sign1 message of four parts")
    protected, _, payload, signature = parts
    if not (isinstance(protected, bytes) and isinstance(payload, bytes) and isinstance(signature, bytes)):
        raise ProtocolError("Expected a COSE_Sign1 message of four parts")
    header, inner = cbor.loads(protected), cbor.loads(payload)
    if not isinstance(header, dict) or not isinstance(inner, dict):
        raise ProtocolError("Expected a COSE_Sign1 message with a header and a document")
    algorithm = cast("dict[object, object]", header).get(_ALGORITHM)
    document = cast("dict[object, object]", inner)
    if not all(isinstance(name, str) for name in document):
        raise ProtocolError("Expected a document whose fields have names")
    return Signed(
        algorithm if isinstance(algorithm, int) else None,
        cast("dict[str, object]", document), signature,
        _covered(protected, payload),
    )  # fmt: skip


def _covered(protected: bytes, payload: bytes) -> bytes:
    """Return Sig_structure: an array of "Signature1", the header, no external data, and the payload."""
    context = b"Signature1"
    parts = [cbor.head(cbor.ARRAY, 4), cbor.head(cbor.TEXT, len(context)), context]
    for part in (protected, b"", payload):
        parts += [cbor.head(cbor.BYTES, len(part)), part]
    return b"".join(parts)
