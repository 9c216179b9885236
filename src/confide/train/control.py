"""What coordinator and node say to each other beside the protocols: bodies and tags.

    coordinator -> node    federation/offer      the run and its job (`confide.train.offer`)
    node -> coordinator    federation/answer     accepted, pending or refused, and how far the node has followed
    coordinator -> node    federation/news       what was released since then (`course.Announcements`)
    coordinator -> node    federation/open       take part in one session: set-up, or an attempt at a sum
    node -> coordinator    federation/unable     not in this session, and why
    node -> coordinator    federation/ready      the node's part of a set-up is complete and durable
    coordinator -> node    federation/lines      the ledger's lines since those that the node has seen
    node -> coordinator    federation/witnessed  its signatures on them
    coordinator -> node    federation/close      the session is over here; forget it
    coordinator -> node    federation/end        the run is over: the released model, or why there is none

They travel with session "" but for open, unable, ready and close, which name theirs. A link loses what was on the way
when it breaks; after each reconnection the offer and its answer say where both stand, and the rest follows from there.

    analyst -> coordinator     analyst/submit      a job to run
    coordinator -> analyst     analyst/progress    what happens, a line at a time
    coordinator -> analyst     analyst/release     the model and the ledger's part, or why there is none
"""

from __future__ import annotations

from typing import Literal

import msgspec

from confide.net.exchange import Envelope
from confide.wire import Message, encode

OFFER, ANSWER, NEWS = "federation/offer", "federation/answer", "federation/news"
OPEN, UNABLE, READY = "federation/open", "federation/unable", "federation/ready"
CLOSE, END = "federation/close", "federation/end"
LINES, WITNESSED = "federation/lines", "federation/witnessed"

#: A control message, news and end apart, is smaller than this.
MAX_CONTROL_BYTES = 1 << 22

#: Reasons are one line for people.
MAX_REASON = 2000

#: Names of versions, hashes and sources of randomness are shorter.
MAX_NAME = 200


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node's answer to an offer.

    Args:
        run: which.
        state: "pending" waits for a person at the node.
        reason: for people; empty if accepted.
        head: hash of the last line of the run's ledger that the node has seen; empty before any.
        heard: the last round whose release the node has followed; -1 before the start.
        origin: where the node's secret randomness comes from.
        version: of its confide.
    """

    run: str
    state: Literal["accepted", "pending", "refused"]
    reason: str = ""
    heard: int = -1
    head: str = ""
    origin: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        if self.heard < -1 or max(map(len, (self.run, self.head, self.origin, self.version))) > MAX_NAME:
            raise ValueError("Expected an answer as a node gives it")


class Open(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Take part in a session.

    Args:
        kind: what it is about.
        keys: which set-up's keys it makes or uses, from 0.
        number, attempt: of a sum.
    """

    kind: Literal["setup", "round", "evaluate"]
    keys: int
    number: int = 0
    attempt: int = 0


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A set-up is complete at a node; `fingerprint` is the same at all."""

    fingerprint: str


class Lines(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lines of the ledger, byte for byte, in order."""

    lines: tuple[bytes, ...]


class Witnessed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node's countersignatures: (hash of the line in hex, number of the line in the run, 64 bytes) each."""

    signatures: tuple[tuple[str, int, bytes], ...]


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why not, for people."""

    reason: str


class End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of a run.

    Args:
        reason: why there is no model; empty if there is one.
        model: the model file.
    """

    run: str
    reason: str = ""
    model: bytes = b""


SUBMIT, PROGRESS, RELEASE = "analyst/submit", "analyst/progress", "analyst/release"


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job as TOML, and the schema that its tables have."""

    job: str
    schema: str


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an analyst receives: the signed model file and the ledger, or the reason why not."""

    reason: str = ""
    model: bytes = b""
    ledger: bytes = b""


def plain(text: str) -> str:
    """Return somebody else's text as one line of at most `MAX_REASON` letters, none of which moves a cursor."""
    shown = "".join(
        letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in text[:MAX_REASON]
    )
    return " ".join(shown.split())


def control(src: str, dst: str, tag: str, body: msgspec.Struct | bytes = b"", *, session: str = "") -> Envelope:
    """Return a control message."""
    return Envelope(session, Message(src, dst, tag, body if isinstance(body, bytes) else encode(body)))


def session_id(run: str, order: Open) -> str:
    """Return the id of the session that an order opens: the same at all its parties, different for every attempt."""
    return f"{run}/{order.kind}/{order.keys}/{order.number}/{order.attempt}"
