"""What one of three servers holds: parts of values, the streams that two of them share, and where a piece lies.

    symbol         here      held by
    x_1            masked    server and helper, of an OPEN value
    x_0, x_2       share     server, helper; the third holds both, as their sum

The streams of a run come from fresh keys: the third draws one for itself and the server and one for itself and the
helper, and sends them; the server draws one for itself and the helper. So no key serves two runs, nothing has to be
remembered, and none of the three knows all keys. What shows that messages belong together is the agreement: a hash of
the program, the model, the client and its query's number, which the first messages carry.

Paper: Araki, Furukawa, Lindell, Nof, Ohara, "High-Throughput Semi-Honest Secure Three-Party Computation with an Honest
Majority" (CCS 2016): shares of zero from keys that pairs share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError
from confide.mpc.replicated_plan import AGREEMENT_BYTES, KEY_BYTES, Piece
from confide.mpc.streams import stream

Words = NDArray[np.uint64]
Rows = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Part:
    """What one server holds of a value.

    Args:
        masked: x_1 of an OPEN value, at server and helper; else None.
        share: of an OPEN value x_0 at the server, x_2 at the helper, x_0 + x_2 at the third; of a SHARED value this
            server's share. None is zero.
    """

    masked: Words | None = field(repr=False)
    share: Words | None = field(repr=False)


def drawn(key: bytes, length: int) -> Rows:
    """Return the first bytes of the stream of a key that serves one run."""
    return stream(key, 0, -(-length // 8)).astype("<u8", copy=False).view(np.uint8)


def piece_at(piece: Piece, held: Rows | bytes, offset: int) -> NDArray[Any]:
    """Return the share of a piece that begins at an offset of a stream or of a message: a view."""
    return np.frombuffer(held, piece.kind, piece.count, offset).reshape(piece.shape)


def opened_message(body: bytes, length: int, src: str) -> bytes:
    """Return a message of the length that the plan says. Raises ProtocolError if it has another."""
    if len(body) != length:
        raise ProtocolError(f"Expected {length} bytes from {src}, got {len(body)}")
    return body


def opened_key(body: bytes, agreement: bytes, src: str) -> bytes:
    """Return the key at the beginning of a first message. Raises ProtocolError if it speaks of another run."""
    check_agreement(body, agreement, src)
    return bytes(body[AGREEMENT_BYTES : AGREEMENT_BYTES + KEY_BYTES])


def check_agreement(body: bytes, agreement: bytes, src: str) -> None:
    """Raise ProtocolError if a first message belongs to another prediction, model, client or program."""
    if bytes(body[:AGREEMENT_BYTES]) != agreement:
        raise ProtocolError(f"Expected {src} to speak of the same query, client, model and program")
