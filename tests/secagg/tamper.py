"""Faults that open a body, change it and close it again: a server or a client that lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from confide.secagg.masked_terms import (
    BOXES,
    CONFIRM,
    CONFIRMED,
    KEYS,
    PEERS,
    SHARES,
    SURVIVORS,
    UNMASK,
    VECTOR,
    Advert,
    Adverts,
    Confirmation,
    Confirmations,
    MaskedVector,
    Parcels,
    Shares,
    Survivors,
)
from confide.wire import Fault, alter, decode, encode

KINDS: dict[str, type[msgspec.Struct]] = {
    KEYS: Advert,
    PEERS: Adverts,
    SHARES: Parcels,
    BOXES: Parcels,
    VECTOR: MaskedVector,
    SURVIVORS: Survivors,
    CONFIRM: Confirmation,
    CONFIRMED: Confirmations,
    UNMASK: Shares,
}

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def tamper(tag: str, change: Callable[[_Struct], _Struct], *, src: str | None = None, dst: str | None = None) -> Fault:
    """Apply `change` to the struct in every matching message."""

    def rewrite(body: bytes) -> bytes:
        return encode(change(decode(body, KINDS[tag], max_bytes=1 << 30)))  # type: ignore[arg-type]

    return alter(rewrite, src=src, dst=dst, tag=tag)


def flip(data: bytes, at: int = 0) -> bytes:
    """Change one bit."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
