"""What the processes of a mode say to each other besides the protocol: typed, size-limited, and never secret.

    hello    everybody -> everybody        who listens where, on which machine, and whether one machine is accepted
    ask      client -> server              which model
    offer    server -> client              the kit, and who takes part
    part     server -> dealer, helper ...  that organisation's kit of a model
    order    in a session                  begin it: set up, deal ahead, or predict
    abort    in a session                  it has ended without a result
    revoked  server -> dealer, helper ...  who is a member no more

An order travels in the session that it begins, ahead of everything else of it on that link. A session is called after
the member who orders it and what it does, so nobody can begin, fill or end those of others.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from confide.errors import Aborted, AskAgain, ConfideError, ProtocolError, SetUpAgain
from confide.net.exchange import Envelope
from confide.wire import Message, decode, encode

#: Version of everything here; processes of two versions refuse each other.
VERSION = 1
HELLO, ASK, OFFER, REFUSED = "parties/hello", "parties/ask", "parties/offer", "parties/refused"
PART, TAKEN, ORDER, ABORT = "parties/part", "parties/taken", "parties/order", "parties/abort"
REVOKED = "parties/revoked"
#: The session of messages that belong to none.
NO_SESSION = ""

_SMALL_BYTES = 1 << 14
LARGEST_OFFER_BYTES = 64 << 20
LARGEST_PART_BYTES = 256 << 20
LARGEST_REVOKED_BYTES = 16 << 20

_Name = Annotated[str, msgspec.Meta(max_length=64)]
_Url = Annotated[str, msgspec.Meta(max_length=256)]
_Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Reason = Annotated[str, msgspec.Meta(max_length=500)]
_Rows = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]

Kind = Literal["setup", "deal", "predict"]


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first message over a link, from both ends.

    Args:
        version: `VERSION`.
        url: where this process is dialled, "" if it is not.
        machine: `net.machine.machine_digest` of where it runs.
        one_machine: it accepts to share a machine with a role that must not collude with it.
        stock: a dealer's: predictions that it deals ahead for, for one client and model.
    """

    version: int
    url: _Url
    machine: _Digest
    one_machine: bool
    stock: _Rows = 0


class Seat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who takes a role.

    Args:
        role: of the backend.
        name: the member's.
        url: where it is dialled, "" if it is not.
        identity: Ed25519 public key, 32 bytes.
    """

    role: _Name
    name: _Name
    url: _Url
    identity: _Digest


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model, "" for the only one; under which backend, "" for the server's."""

    model: _Name
    backend: _Name


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one model is asked.

    Args:
        model: id of the prepared model: `seats.model_id`.
        kit: the bytes of `ClientKit`.
        seats: of everybody but the client, the server's first.
        insecure: why nothing is hidden although the protocol runs, "" if that does not apply.
    """

    model: _Digest
    kit: bytes
    seats: tuple[Seat, ...]
    insecure: _Reason


class Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No; `reason` is one line for people. `again`: it may be another answer soon."""

    reason: _Reason
    again: bool = False


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one organisation needs to take part in predictions with one model.

    Args:
        model: id of the prepared model.
        name: the model's.
        backend, role: what it takes part in, as what.
        kit: for `Backend.decode_kit`.
        seats: of everybody but the client.
        insecure: as in `Offer`.
        max_rows: of one prediction.
    """

    model: _Digest
    name: _Name
    backend: _Name
    role: _Name
    kit: bytes
    seats: tuple[Seat, ...]
    insecure: _Reason
    max_rows: _Rows


class Taken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer to a part: it is ready to serve, or why it does not.

    Args:
        refusal: why not; "" if it is ready.
        proof: of a partner that brought its own half of the model, of which training that is; b"" of others.
    """

    model: _Digest
    refusal: _Reason
    proof: Annotated[bytes, msgspec.Meta(max_length=32)] = b""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Begins a session.

    Args:
        kind: what it does.
        model: id of the prepared model.
        client: the member who asks, "" where none takes part.
        identity: the client's, as the server has seen it; b"" from a client itself.
        rows: of one prediction.
        count: how many predictions are dealt for.
        dealt: False for a prediction from stock, in which the dealer takes no part.
    """

    kind: Kind
    model: _Digest
    client: _Name
    identity: Annotated[bytes, msgspec.Meta(max_length=32)]
    rows: _Rows
    count: _Rows
    dealt: bool = True


class Abort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ends a session at its receiver.

    Args:
        reason: one line for people.
        set_up: the client must be set up again first.
        by: who ended it, "" for the sender.
        again: what was dealt for this question is lost; the client asks again, under what was dealt next.
    """

    reason: _Reason
    set_up: bool = False
    by: _Name = ""
    again: bool = False

    @staticmethod
    def of(error: ConfideError) -> Abort:
        """Return what to tell others of an error that ended a session."""
        return Abort(short(str(error)), isinstance(error, SetUpAgain), again=isinstance(error, AskAgain))

    def error(self, reason: str) -> Aborted:
        """Return the error with which a session ends here."""
        return SetUpAgain(reason) if self.set_up else AskAgain(reason) if self.again else Aborted(reason)


class Revoked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The identities of all members that were revoked: whoever hears it lets none of them in."""

    identities: tuple[_Digest, ...]


#: Which kind of body travels under which tag, and how large it may be.
_KINDS: tuple[tuple[str, type[msgspec.Struct], int], ...] = (
    (HELLO, Hello, _SMALL_BYTES),
    (ASK, Ask, _SMALL_BYTES),
    (OFFER, Offer, LARGEST_OFFER_BYTES),
    (REFUSED, Refused, _SMALL_BYTES),
    (PART, Part, LARGEST_PART_BYTES),
    (TAKEN, Taken, _SMALL_BYTES),
    (ORDER, Order, _SMALL_BYTES),
    (ABORT, Abort, _SMALL_BYTES),
    (REVOKED, Revoked, LARGEST_REVOKED_BYTES),
)


def session_id(client: str, kind: Kind, random: bytes) -> str:
    """Return what a session is called that `client` orders; `random` is 16 bytes."""
    return f"{client}/{kind}/{random.hex()}"


def owner_of(session: str) -> str:
    """Return who orders a session of this id."""
    return session.partition("/")[0]


def check_session(session: str, order: Order) -> None:
    """Refuse an order under an id that `session_id` does not make for it. Raises ProtocolError."""
    if not re.fullmatch(rf"{re.escape(order.client)}/{order.kind}/[0-9a-f]{{32}}", session):
        raise ProtocolError("Expected a session that is called after its client and what it does")


def letter(src: str, dst: str, body: msgspec.Struct, *, session: str = NO_SESSION) -> Envelope:
    """Return the envelope in which `body` travels."""
    tag = next(tag for tag, kind, _ in _KINDS if isinstance(body, kind))
    return Envelope(session, Message(src, dst, tag, encode(body)))


def read(message: Message) -> msgspec.Struct:
    """Return what a message of this kind says.

    Raises:
        ProtocolError: an unknown tag, or a body that is malformed or too large.
    """
    for tag, kind, most_bytes in _KINDS:
        if tag == message.tag:
            return decode(message.body, kind, max_bytes=most_bytes)
    raise ProtocolError("Expected a message that these processes know")


def short(text: str) -> str:
    """Return a reason as it fits into a message, on one line."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:400]
