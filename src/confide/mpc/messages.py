"""What parties and dealer say beside masked values: set-up, deals, and the first message of a prediction."""

from __future__ import annotations

from typing import Annotated

import msgspec

from confide.errors import ProtocolError
from confide.mpc.correlations import RUN_BYTES, DealId

#: Version of kits and messages.
FORMAT = 1
KEY_BYTES = 32
MOST_ROWS, MOST_DEALS = 4096, 1 << 16
#: Largest of the small messages here.
SMALL_BYTES = 4096

_Run = Annotated[bytes, msgspec.Meta(min_length=RUN_BYTES, max_length=RUN_BYTES)]
_Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Counter = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Rows = Annotated[int, msgspec.Meta(ge=1, le=MOST_ROWS)]
_Deals = Annotated[int, msgspec.Meta(ge=1, le=MOST_DEALS)]


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """To the dealer: set up. `binding` is that of the program for one row."""

    format: int
    binding: _Hash


class Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From the dealer: the run, and the key that it shares with the receiver; b"" for who only asks."""

    run: _Run
    key: Annotated[bytes, msgspec.Meta(max_length=KEY_BYTES)]

    def __repr__(self) -> str:
        return f"Keys({self.run[:4].hex()})"


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """To the dealer: correlations for `count` later predictions of `rows` rows."""

    run: _Run
    rows: _Rows
    count: _Deals


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From the dealer, before what is dealt: the ids, never given before, and what they are for."""

    run: _Run
    first: _Counter
    count: _Deals
    rows: _Rows
    binding: _Hash

    def ids(self) -> list[DealId]:
        """Return the ids."""
        return [DealId(self.run, self.first + place) for place in range(self.count)]


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """To whoever asked for stock: all of it is in the sender's store."""

    run: _Run
    first: _Counter
    count: _Deals


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first message of a prediction: with which correlations, for which program.

    Args:
        format: FORMAT.
        run, counter: the id of the deal.
        rows: how many.
        binding: `Layout.binding` of the program.
        on_demand: whether the dealer sends the correlations now.
        waits: the client sends nothing masked before who computes has said that the id was not used before.
    """

    format: int
    run: _Run
    counter: _Counter
    rows: _Rows
    binding: _Hash
    on_demand: bool
    waits: bool = False

    @property
    def deal_id(self) -> DealId:
        """Return the id of the deal."""
        return DealId(self.run, self.counter)


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An `Ask` with a share of x: a seed of 16 bytes, or words."""

    ask: Ask
    share: bytes

    def __repr__(self) -> str:
        return f"Query({self.ask.rows} rows)"


def expect_format(found: int) -> None:
    """Refuse another version of the protocol. Raises ProtocolError."""
    if found != FORMAT:
        raise ProtocolError(f"Expected format={FORMAT}, got {found}; both sides must run the same version")


def expect_binding(found: bytes, own: bytes) -> None:
    """Refuse another program. Raises ProtocolError."""
    if found != own:
        raise ProtocolError("Expected the program of the same model; fetch the kit again")
