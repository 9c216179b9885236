"""AMD's table of certificates, which a host gives to its guest with a report (`auxblob`).

    entry   GUID 16 B, offset u32, length u32, little-endian; the last one is all zeros
    then the certificates themselves, at their offsets from the begin of the table

The host wrote it: what is in it is handed on, and believed by nobody before `verify` has checked it.

Paper: AMD GHCB specification 2.03, section 4.1.8.1 (MSG_REPORT_REQ). A GUID stands there as its digits are printed.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
import uuid
from collections.abc import Mapping
from types import MappingProxyType

from confide.errors import UsageError

VCEK = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK = uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
ASK = uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
ARK = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
CRL = uuid.UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea")

_NAMES: Mapping[uuid.UUID, str] = MappingProxyType({VCEK: "vcek.der", VLEK: "vlek.der", CRL: "crl.der"})
_ENTRY = struct.Struct("<16sII")
_MOST_ENTRIES = 32
_LONGEST_BYTES = 1 << 16
_PEM = re.compile(rb"-----BEGIN [A-Z0-9 ]+-----\s*([A-Za-z0-9+/=\s]+?)\s*-----END [A-Z0-9 ]+-----")


def read_table(table: bytes) -> dict[uuid.UUID, bytes]:
    """Return the entries of `table`; {} for an empty one, which is a host that gives none.

    Raises:
        UsageError: an entry that lies outside, twice, or too many of them.
    """
    entries: dict[uuid.UUID, bytes] = {}
    for number in range(_MOST_ENTRIES + 1):
        if not table[number * _ENTRY.size :].strip(b"\0"):
            return entries
        if len(table) < (number + 1) * _ENTRY.size:
            raise UsageError("Expected the host's table of certificates to end with an empty entry")
        guid, offset, length = _ENTRY.unpack_from(table, number * _ENTRY.size)
        if guid == bytes(16):
            return entries
        name = uuid.UUID(bytes=guid)
        if offset < _ENTRY.size or length > _LONGEST_BYTES or offset + length > len(table) or name in entries:
            raise UsageError(f"Expected the host's table of certificates to hold {name} once and inside")
        entries[name] = table[offset : offset + length]
    raise UsageError(f"Expected at most {_MOST_ENTRIES} certificates from the host")


def endorsements_in(table: bytes) -> dict[str, bytes]:
    """Return what of `table` is stapled: "vcek.der" or "vlek.der", "chain.pem" (ASK, then ARK), "crl.der".

    Raises:
        UsageError: it is no such table.
    """
    entries = read_table(table)
    found = {name: to_der(entries[guid]) for guid, name in _NAMES.items() if entries.get(guid)}
    if entries.get(ASK) and entries.get(ARK):
        found["chain.pem"] = to_pem(to_der(entries[ASK])) + to_pem(to_der(entries[ARK]))
    return found


def to_der(body: bytes) -> bytes:
    """Return DER for what is DER already, or the first PEM block; padding behind it is cut."""
    if found := _PEM.search(body):
        try:
            return base64.b64decode(found[1])
        except binascii.Error:
            raise UsageError("Expected a certificate in PEM or DER") from None
    return _first(body)


def to_pem(der: bytes) -> bytes:
    """Return a certificate in PEM."""
    text = base64.b64encode(der)
    lines = [text[begin : begin + 64] for begin in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])


def _first(body: bytes) -> bytes:
    """Return the first DER sequence in `body`, which a host may have filled up to whole pages."""
    if len(body) < 4 or body[0] != 0x30:
        raise UsageError("Expected a certificate in PEM or DER")
    width = body[1] - 0x80 if body[1] > 0x80 else 0
    length = int.from_bytes(body[2 : 2 + width], "big") if width else body[1]
    end = 2 + width + length
    if width > 3 or end > len(body):
        raise UsageError("Expected a whole certificate in DER")
    return body[:end]
