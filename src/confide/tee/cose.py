"""The documents of AWS Nitro: COSE_Sign1 around a map, in CBOR. What cbor2 reads, and raises, ends here.

Paper: RFC 9052 (COSE_Sign1, Sig_structure), RFC 8949 (CBOR).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from confide.errors import MissingExtra, ProtocolError

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
    """Return the message in `body`. Raises ProtocolError for anything else, MissingExtra without cbor2."""
    message = _load(body.removeprefix(_TAG))
    parts = cast("list[object]", message) if isinstance(message, list) else []
    if len(parts) != 4 or not isinstance(parts[1], dict):
        raise ProtocolError("Expected a COSE_Sign1 message of four parts")
    protected, _, payload, signature = parts
    if not (isinstance(protected, bytes) and isinstance(payload, bytes) and isinstance(signature, bytes)):
        raise ProtocolError("Expected a COSE_Sign1 message of four parts")
    header, inner = _load(protected), _load(payload)
    if not isinstance(header, dict) or not isinstance(inner, dict):
        raise ProtocolError("Expected a COSE_Sign1 message with a header and a document")
    algorithm = cast("dict[object, object]", header).get(_ALGORITHM)
    document = cast("dict[object, object]", inner)
    if not all(isinstance(name, str) for name in document):
        raise ProtocolError("Expected a document whose fields have names")
    return Signed(
        algorithm if isinstance(algorithm, int) else None,
        cast("dict[str, object]", document), signature,
        _dump(["Signature1", protected, b"", payload]),
    )  # fmt: skip


def _load(body: bytes) -> Any:
    """Return the one CBOR item in `body`."""
    try:
        import cbor2
    except ImportError:
        raise MissingExtra("cbor2", "tee") from None
    try:
        return cbor2.loads(body)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:  # cbor2 lets through what tags of its own raise
        raise ProtocolError("Expected a document in CBOR") from None


def _dump(value: list[str | bytes]) -> bytes:
    import cbor2

    return cbor2.dumps(value)
