"""How connections end: codes for programs, reasons for people."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

_LONGEST_REASON_BYTES = 120


class Code(IntEnum):
    """Why a connection was closed, for the other side's program; the reason beside it is for people."""

    DONE = 1000
    STOPS = 1001
    BUSY = 1013
    #: Coming again cannot mend it: revoked, unknown, a certificate of somebody else.
    REFUSED = 4001
    #: A newer connection shows the same name.
    REPLACED = 4002
    #: It sent what no honest peer sends, or does not read.
    DROPPED = 4003


#: After these nobody comes again.
FINAL: tuple[int, ...] = (Code.REFUSED, Code.REPLACED)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended.

    Args:
        reason: one line for people.
        final: coming again cannot mend it.
        certificate: it ended over a certificate, before anything was said.
        code: that of the close frame, if one side sent one.
    """

    reason: str
    final: bool = False
    certificate: bool = False
    code: int = 0


def one_line(text: str) -> str:
    """Return what another side said, fit to be printed."""
    return "".join(char if char.isprintable() else " " for char in text[:500]).strip()


def short(text: str) -> str:
    """Return as much of `text` as a close frame holds."""
    return text.encode()[:_LONGEST_REASON_BYTES].decode(errors="ignore")
