"""What the processes of a training on shares say to each other beside its messages.

    everybody -> everybody it meets   hello       which job it has, where it runs; an owner how many rows it brings
    first server -> all               begin       everybody is there: the run's id and everybody's rows
    all -> first server               ready       it has met whom it needs; the second server names its checkpoints
    first server -> all               go          from which checkpoint
    first server -> all               progress    how far it is
    all -> first server               done        its part is over; an owner: the hash of the model that it opened
    first server -> all               end         all parts are over and agree: write what is yours
    all -> first server               bye         it is written
    whoever cannot go on -> all       stop        why

They travel with session "", the protocol's own with the run's id.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from confide.errors import ProtocolError
from confide.net.exchange import Envelope
from confide.train.shares.checkpoints import Mark
from confide.wire import Message, decode, encode

#: Of these messages; another version is not spoken with.
VERSION = 1
#: A letter is smaller than this, and a reason than that.
MAX_BYTES, MAX_REASON = 1 << 20, 400


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is there.

    Args:
        version: of these messages.
        job: hash of job and schema, 32 bytes; one job, or there is no training.
        machine: `net.machine.machine_digest`, 32 bytes.
        rows: that an owner brings; 0 of all others.
    """

    version: int
    job: bytes
    machine: bytes
    rows: int = 0


class Begin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run: its id, 32 hex digits, and the rows of each owner."""

    run: str
    rows: dict[str, int]


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody can begin; the second server says which checkpoints it has."""

    marks: tuple[Mark, ...] = ()


class Go(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The run begins, from a checkpoint or anew."""

    mark: Mark | None = None


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many runs of a program are over, and how many steps were taken."""

    number: int
    taken: int


class Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody's part is over; `model` is the hash of what an owner opened, else ""."""

    model: str = ""


class End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All parts are over; `ledger` is the hash of the ledger's last line."""

    ledger: str


class Bye(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody has written what is its own."""


class Stop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody cannot go on, and why, in one line."""

    reason: str


Letter = Hello | Begin | Ready | Go | Progress | Done | End | Bye | Stop

_KINDS: Mapping[str, type[Letter]] = {
    f"training/{kind.__name__.lower()}": kind for kind in (Hello, Begin, Ready, Go, Progress, Done, End, Bye, Stop)
}
_TAGS: Mapping[type[Letter], str] = {kind: tag for tag, kind in _KINDS.items()}


def letter(src: str, dst: str, body: Letter) -> Envelope:
    """Return a letter from one member to another."""
    return Envelope("", Message(src, dst, _TAGS[type(body)], encode(body)))


def read(message: Message) -> Letter:
    """Return what a letter says.

    Raises:
        ProtocolError: it is none.
    """
    kind = _KINDS.get(message.tag)
    if kind is None:
        raise ProtocolError("Expected a letter of a training on shares; install one version of confide at all")
    return decode(message.body, kind, max_bytes=MAX_BYTES)


def short(reason: str) -> str:
    """Return a reason as it travels: one line of bounded length."""
    return " ".join(reason.split())[:MAX_REASON]
