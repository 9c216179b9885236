"""One line of a ledger: how it is written, hashed, signed and countersigned, and how it is read back.

    {"event": "round", ..., "hash": hex, "previous": hex, "signature": hex}

A line is JSON with sorted keys. `hash` is SHA-256 over everything but `hash` and `signature`, as JSON with sorted keys
and no spaces; `signature` is the author's over the hash, and absent in a ledger that nobody signs. A line that begins a
run may name the run (`run`), the public key of its author (`signer`) and the identities of its nodes (`roster`).

There is one way to write a line, byte for byte: what reads otherwise was not written here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from confide.cohort.roster import Roster
from confide.crypto.keys import SIGNATURE_BYTES, SigningKey, label, verify
from confide.errors import ProtocolError

Value: TypeAlias = "str | int | float | bool | None | Sequence[Value] | Mapping[str, Value]"

#: What the first line of every ledger names as its predecessor.
GENESIS = "0" * 64

#: A line longer than this was not written by confide.
MAX_LINE_BYTES = 1 << 20

#: The events that begin a run.
BEGINS = ("job", "fit")

#: The event that brings the nodes' signatures on an earlier line.
COUNTERSIGNED = "countersigned"

_OF_THE_CHAIN = ("hash", "signature")


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is what its hash says.

    Args:
        entry: its fields, without hash and signature.
        hash: hex SHA-256 of them.
        signature: the author's, 64 bytes; None in a ledger that nobody signs.
    """

    entry: Mapping[str, Any]
    hash: str
    signature: bytes | None

    @property
    def event(self) -> str:
        """Return what the line records."""
        return str(self.entry["event"])

    @property
    def previous(self) -> str:
        """Return the hash of the line before."""
        return str(self.entry["previous"])

    @property
    def begins(self) -> bool:
        """Return whether a run begins here."""
        return self.event in BEGINS

    @property
    def signer(self) -> bytes | None:
        """Return the public key that a run's first line names as its author's.

        Raises:
            ProtocolError: it is no key.
        """
        named = self.entry.get("signer")
        return None if named is None else _unhex(named, 32)

    def says(self, event: str, fields: Mapping[str, Value]) -> bool:
        """Return whether the line records `event` with at least these fields."""
        return self.event == event and all(
            key in self.entry and _canonical(self.entry[key]) == _canonical(value) for key, value in fields.items()
        )

    def is_signed_by(self, public: bytes) -> bool:
        """Return whether the holder of `public` signed this line."""
        if self.signature is None:
            return False
        try:
            verify(public, _signed(self.hash), self.signature)
        except ProtocolError:
            return False
        return True


def write_line(previous: str, event: str, fields: Mapping[str, Value], signer: SigningKey | None) -> tuple[bytes, str]:
    """Return a new line with its end, and its hash.

    Args:
        previous: the hash of the line before, or GENESIS.
        event, fields: what it records; numbers are finite.
        signer: who signs; nobody if None.

    Raises:
        ValueError: a field cannot be written, such as NaN.
    """
    entry: dict[str, Value] = {**fields, "previous": previous, "event": event}
    digest = _digest(entry)
    signature = None if signer is None else signer.sign(_signed(digest))
    return _written(Line(entry, digest, signature)), digest


def read_line(body: bytes) -> Line:
    """Return the line that `body` is, with its end.

    Raises:
        ProtocolError: it is no line, or not what its hash says; whether its signature holds is not looked at.
    """
    try:
        if len(body) > MAX_LINE_BYTES or not body.endswith(b"\n"):
            raise ValueError
        entry = cast("dict[str, Any]", json.loads(body))
        stated, signature = entry.pop("hash"), entry.pop("signature", None)
        if not isinstance(entry["event"], str) or not isinstance(entry["previous"], str) or _digest(entry) != stated:
            raise ValueError
        line = Line(entry, stated, None if signature is None else _unhex(signature, SIGNATURE_BYTES))
        if _written(line) != body:
            raise ValueError
    except (ProtocolError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ProtocolError("Expected a line of a ledger that is what its hash says") from None
    return line


def countersign(key: SigningKey, run: str, number: int, digest: str) -> bytes:
    """Return a node's signature on a line, 64 bytes.

    Args:
        key: the node's identity.
        run: the run's id.
        number: which line of the run, 1 for its first.
        digest: the line's hash, hex.
    """
    return key.sign(_countersigned(run, number, digest))


def check_countersignature(public: bytes, signature: bytes, run: str, number: int, digest: str) -> None:
    """Check what `countersign` returned.

    Raises:
        ProtocolError: the holder of `public` signed no such line.
    """
    verify(public, _countersigned(run, number, digest), signature)


def roster_field(roster: Roster) -> Value:
    """Return a roster as the field `roster` of a run's first line: [name, hex of the key] pairs in its order."""
    return [[name, key.hex()] for name, key in roster.members]


def roster_of(line: Line) -> Roster | None:
    """Return the roster that a run's first line names, or None.

    Raises:
        ProtocolError: there is one, and it is none.
    """
    named = line.entry.get("roster")
    if named is None:
        return None
    try:
        return Roster(tuple((_text(name), _unhex(key, 32)) for name, key in named))
    except (ValueError, TypeError):
        raise ProtocolError("Expected a roster of different names and keys") from None


def signatures_of(line: Line) -> tuple[str, dict[str, bytes]]:
    """Return which line a `countersigned` line is about, by its hash, and each node's signature.

    Raises:
        ProtocolError: it says neither.
    """
    try:
        by = {_text(name): _unhex(signature, SIGNATURE_BYTES) for name, signature in line.entry["by"].items()}
        return _text(line.entry["line"]), by
    except (KeyError, AttributeError):
        raise ProtocolError("Expected the hash of a line and signatures by name") from None


def _written(line: Line) -> bytes:
    whole: dict[str, Value] = {**line.entry, "hash": line.hash}
    if line.signature is not None:
        whole["signature"] = line.signature.hex()
    return (json.dumps(whole, sort_keys=True, allow_nan=False) + "\n").encode()


def _digest(entry: Mapping[str, Value]) -> str:
    if any(key in entry for key in _OF_THE_CHAIN):
        raise ValueError("Expected fields that are not called hash or signature")
    return hashlib.sha256(_canonical(entry).encode()).hexdigest()


def _canonical(value: Value) -> str:
    """Return a value as JSON with sorted keys and no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def _signed(digest: str) -> bytes:
    return label("confide ledger line v1", bytes.fromhex(digest))


def _countersigned(run: str, number: int, digest: str) -> bytes:
    return label("confide ledger countersignature v1", run, number, bytes.fromhex(digest))


def _unhex(text: object, size: int) -> bytes:
    """Return `size` bytes from hex in lower case."""
    if not isinstance(text, str) or len(text) != 2 * size or text.strip("0123456789abcdef"):
        raise ProtocolError(f"Expected {2 * size} hex digits in lower case")
    return bytes.fromhex(text)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ProtocolError("Expected a text")
    return value
