"""Server and helper, the two of three servers that know x_1 of every value, and the messages between them.

    symbol   here      meaning
    b        party     0 at the server, which holds x_0; 1 at the helper, which holds x_2
    Y        lifted    x_1 + 2^62 of a value that is truncated
    T, c     -         (Y >> f) - 2^(62-f), and 1 minus the top bit of Y: public to the two
    g        masked    a bit, exclusive or its mask beta

    product      server  x_1 y_1 + x_1 y_0 + x_0 y_1     helper  x_1 y_2 + x_2 y_1     third  (x_0 + x_2)(y_0 + y_2)
    truncation   T - u + c m, with u = r >> f and m = 2^(64-f) times the top bit of r, dealt as shares
    selection    g ? v - a : a, with v the truncation and a = beta v = beta T - beta u + c beta m
    opening      each sends its share minus x_0, or x_2; the sum is x_1

Paper: Araki et al. (CCS 2016) for the product; the reading in which one server's part of everything is
made before an input is known: Chaudhari, Choudhury, Patra, Suresh, "ASTRA" (CCSW 2019).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.mpc.gates import Linear, linear, moved, product_sum, word
from confide.mpc.operations import (
    Convolve,
    Keep,
    Kind,
    Load,
    MatMul,
    Multiply,
    Number,
    Open,
    Periodic,
    Reshape,
    Reveal,
    Select,
    Shift,
    Sign,
    Slice,
    Truncate,
    operands,
)
from confide.mpc.periodic import Series, factors
from confide.mpc.periodic import share as periodic_share
from confide.mpc.replicated_plan import (
    AGREEMENT_BYTES,
    HELPER,
    KEY_BYTES,
    SERVER,
    THIRD,
    Plan,
    Send,
    kept,
)
from confide.mpc.replicated_shares import (
    Part,
    Rows,
    Words,
    check_agreement,
    drawn,
    opened_key,
    opened_message,
    piece_at,
)
from confide.mpc.replicated_signs import combine, look_up, packed, to_open, unpacked
from confide.wire import Message, Step

_LIFT = np.uint64(1 << 62)
_TOP = np.uint64(63)


@dataclass(frozen=True, slots=True)
class Place:
    """Who runs what.

    Args:
        party: 0 at the server, 1 at the helper.
        tag: what the tags of this run's messages begin with.
        agreement: 16 bytes, what this run is about.
        client: the role that receives what is revealed.
    """

    party: int
    tag: str
    agreement: bytes
    client: str = "client"

    @property
    def me(self) -> str:
        """Return this server's role."""
        return HELPER if self.party else SERVER

    @property
    def peer(self) -> str:
        """Return the other's role."""
        return SERVER if self.party else HELPER


def run_holder(
    place: Place, plan: Plan, loads: Mapping[str, Part], rng: Randomness
) -> Generator[Step, Mapping[str, Message], dict[str, Part]]:
    """Run a program at the server or the helper.

    Args:
        place: which of the two.
        plan: of the program.
        loads: what it holds of every loaded value, by name.
        rng: where the server draws the key for what is revealed.

    Yields:
        One step a round.

    Returns:
        What it holds of the values that are kept.

    Raises:
        ProtocolError: a message of another length than the plan's, or one that speaks of another query.
    """
    run = _Holder(place, plan, loads)
    received = yield Step(await_tag=f"{place.tag}/0", wait_for=(THIRD,))
    run.begin(received[THIRD].body)
    run.compute(0)
    header = place.agreement
    if place.party == 0:
        reveal_key = rng.bytes(KEY_BYTES)
        header += reveal_key
        run.reveal_stream = drawn(reveal_key, plan.reveal_stream)
    for number in range(1, plan.rounds + 1):
        tag = f"{place.tag}/{number}"
        body = header + b"".join(run.leaving(send).data for send in plan.sends[number])
        dealt = [one for one, after in enumerate(plan.deal_rounds) if one and after == number and place.party]
        received = yield Step(
            send=(Message(place.me, place.peer, tag, body),),
            await_tag=tag,
            wait_for=(place.peer, *([THIRD] if dealt else ())),
        )
        theirs = opened_message(received[place.peer].body, plan.exchange_bytes(number, place.peer), place.peer)
        for one in dealt:
            run.deals[one] = opened_message(received[THIRD].body, plan.deal_bytes(one), THIRD)
        if number == 1:
            run.greeted(theirs)
        start = len(theirs) - plan.exchange_body(number)
        for send in plan.sends[number]:
            run.arrived(send, theirs, start + send.offset)
            if not send.level:
                run.release(send.operation)
        run.compute(number)
        header = b""
    if plan.reveals:
        body = b"".join(run.revealed(number, at).data for number, _, at in plan.reveals)
        yield Step(send=(Message(place.me, place.client, f"{place.tag}/result", body),))
    return {name: run.parts[number] for name, number in kept(plan.program).items()}


@dataclass(slots=True)
class _Bit:
    masked: Rows
    number: Words | None  # a share of beta as 0 or 1 of the ring, if somebody takes it


class _Holder:
    def __init__(self, place: Place, plan: Plan, loads: Mapping[str, Part]) -> None:
        self.place, self.plan, self.loads, self.party = place, plan, loads, place.party
        self.program = plan.program
        self.stream = self.reveal_stream = np.empty(0, np.uint8)
        self.deals: dict[int, bytes] = {}
        self.parts: dict[int, Part] = {}
        self.bits: dict[int, _Bit] = {}
        self.signs: dict[int, tuple[Rows, Rows, Rows]] = {}  # shares of E and L, and bits of x_1 above them
        self.sent: dict[int, NDArray[Any]] = {}

    def begin(self, body: bytes) -> None:
        """Take the third's first message."""
        length = self.plan.deal_bytes(0) if self.party else self.plan.begin_bytes
        key = opened_key(opened_message(body, length, THIRD), self.place.agreement, THIRD)
        self.stream = drawn(key, self.plan.helper_stream if self.party else self.plan.server_stream)
        self.deals[0] = body

    def greeted(self, body: bytes) -> None:
        """Take what only the first message of the other has."""
        if self.party:
            key = opened_key(body, self.place.agreement, self.place.peer)
            self.reveal_stream = drawn(key, self.plan.reveal_stream)
        else:
            check_agreement(body, self.place.agreement, self.place.peer)

    def piece(self, number: int, name: str) -> NDArray[Any]:
        """Return this server's share of a piece."""
        piece = self.plan.pieces[number, name]
        if not self.party:
            return piece_at(piece, self.stream, piece.first)
        if piece.message < 0:
            return piece_at(piece, self.stream, piece.second)
        header = 0 if piece.message else AGREEMENT_BYTES + KEY_BYTES
        return piece_at(piece, self.deals[piece.message], header + piece.second)

    # --- messages -----------------------------------------------------------------------------------------------------

    def leaving(self, send: Send) -> NDArray[Any]:
        """Return what this server opens for an operation in a round."""
        number, operation = send.operation, self.program.operations[send.operation]
        if isinstance(operation, Open):
            own = np.subtract(self.shared(operation.a, number), self.piece(number, "share"))
        else:
            assert isinstance(operation, Sign)
            if not send.level:
                self.signs[number] = self.compared(number, operation)
            equal, less, top = self.signs[number]
            cut = self.plan.comparisons[number]
            if send.level < len(cut.levels):
                own = to_open(cut, send.level, equal, less)
                own ^= self.piece(number, f"masks {send.level}")
            else:
                own = less[0] ^ self.piece(number, "sign")
                if not self.party:
                    own ^= top
        self.sent[number] = own
        return own

    def arrived(self, send: Send, body: bytes, offset: int) -> None:
        """Add what the other opened."""
        number = send.operation
        own = self.sent.pop(number)
        theirs = np.frombuffer(body, own.dtype, own.size, offset).reshape(own.shape)
        operation = self.program.operations[number]
        if isinstance(operation, Open):
            self.parts[number] = Part(own + theirs, self.piece(number, "share"))
            return
        cut = self.plan.comparisons[number]
        opened: Rows = np.bitwise_xor(own, theirs)
        if send.level < len(cut.levels):
            equal, less, top = self.signs[number]
            masks, dealt = self.piece(number, f"masks {send.level}"), self.piece(number, f"products {send.level}")
            found = combine(cut, send.level, self.party, equal, less, opened=opened, masks=masks, dealt=dealt)
            self.signs[number] = (*found, top)
            return
        del self.signs[number]
        value = self.program.values[number]
        share = self.piece(number, "number") if (number, "number") in self.plan.pieces else None
        self.bits[number] = _Bit(unpacked(opened, value.count).reshape(value.shape), share)

    def compared(self, number: int, operation: Sign) -> tuple[Rows, Rows, Rows]:
        """Return shares of E and L of the blocks, and the packed complement of the bit of x_1 above them."""
        cut = self.plan.comparisons[number]
        masked = self.parts[operation.a].masked
        assert masked is not None
        seen = masked.reshape(-1) >> np.uint64(operation.drop)
        names = [self.piece(number, f"tables {run}") for run in range(len(cut.tables))]
        equal, less = look_up(cut, seen & np.uint64((1 << cut.bits) - 1), names)
        top = packed((seen >> np.uint64(cut.bits)).astype(np.uint8) & np.uint8(1))
        return equal, less, top

    def revealed(self, number: int, at: int) -> NDArray[Any]:
        """Return this server's share of an output, with a share of zero on it."""
        operation, value = self.program.operations[number], self.program.values[number]
        assert isinstance(operation, Reveal)
        if value.kind is Kind.BIT:
            own = self.piece(number, "mask")
            return own if self.party else own ^ packed(self.bits[operation.a].masked.reshape(-1))
        zero = np.frombuffer(self.reveal_stream, np.uint64, value.count, at).reshape(value.shape)
        own = self.shared(operation.a, number)
        own = np.subtract(own, zero) if self.party else np.add(own, zero)
        return own >> np.uint64(operation.bits)

    # --- local --------------------------------------------------------------------------------------------------------

    def compute(self, after: int) -> None:
        """Run what is ready after a round."""
        for number in self.plan.local[after]:
            self.visit(number)
            self.release(number)

    def release(self, number: int) -> None:
        """Drop what nobody takes after an operation."""
        for one in self.plan.dropped[number]:
            self.parts.pop(one, None)
            self.bits.pop(one, None)

    def opened(self, number: int) -> tuple[Words, Words | None]:
        """Return x_1 and this server's own share of an OPEN value."""
        part = self.parts[number]
        assert part.masked is not None
        return part.masked, part.share

    def added(self, number: int) -> Words | None:
        """Return this server's share of a value as one of a sum."""
        part = self.parts[number]
        if part.masked is None or self.party:
            return part.share
        return part.masked if part.share is None else part.masked + part.share

    def shared(self, number: int, to: int) -> Words:
        """Return the share of a value, with its part of what the third held of it, for an Open or a Reveal."""
        own = self.added(number)
        if (to, "remainder") in self.plan.pieces:
            more = self.piece(to, "remainder")
            return more if own is None else np.add(own, more)
        return np.zeros(self.program.values[number].shape, np.uint64) if own is None else own

    def visit(self, number: int) -> None:
        operation = self.program.operations[number]
        match operation:
            case Load(name):
                self.parts[number] = self.loads[name]
            case MatMul(a, b) | Convolve(a, b) | Multiply(a, b):
                self.parts[number] = Part(None, self.product(operation, a, b))
            case Truncate(a, bits):
                lifted, carries = self.quotient(a, bits)
                self.parts[number] = Part(None, self.truncated(number, "", lifted, carries, bits))
            case Select(bit, a, bits):
                self.parts[number] = Part(None, self.selected(number, self.bits[bit], a, bits))
            case Number(bit):
                chosen = self.bits[bit]
                assert chosen.number is not None
                share: Words = np.where(chosen.masked, np.negative(chosen.number), chosen.number)
                self.parts[number] = Part(None, share if self.party else np.add(share, chosen.masked))
            case Periodic(a, period, cosines, sines):
                series = Series(period, cosines, sines)
                masked = self.opened(a)[0]
                waves = factors(series, masked.reshape(-1))
                share = periodic_share(
                    series, self.party, waves, (self.piece(number, "cosines"), self.piece(number, "sines"))
                )
                self.parts[number] = Part(None, share.reshape(masked.shape))
            case Shift(a, by):
                self.parts[number] = self.shifted(a, by)
            case Keep(a):
                self.parts[number] = self.parts[a]
            case Reveal() | Open() | Sign():
                return
            case _:
                self.linear(number, operation)

    def linear(self, number: int, operation: Linear) -> None:
        values, taken = self.program.values, operands(operation)
        if values[number].kind is Kind.BIT:
            assert isinstance(operation, Reshape | Slice)
            bit = self.bits[taken[0]]
            self.bits[number] = _Bit(
                moved(operation, bit.masked),
                None if bit.number is None else moved(operation, bit.number),
            )
            return
        shapes = [values[one].shape for one in taken]
        if values[number].kind is Kind.OPEN:
            parts = [self.opened(one) for one in taken]
            masked = linear(operation, [one[0] for one in parts], shapes)
            self.parts[number] = Part(masked, linear(operation, [one[1] for one in parts], shapes))
        else:
            self.parts[number] = Part(None, linear(operation, [self.added(one) for one in taken], shapes))

    def shifted(self, a: int, by: int) -> Part:
        part = self.parts[a]
        if part.masked is not None:
            return Part(part.masked + word(by), part.share)
        if self.party:
            return part
        own = np.zeros(self.program.values[a].shape, np.uint64) if part.share is None else part.share
        return Part(None, own + word(by))

    def product(self, operation: MatMul | Convolve | Multiply, a: int, b: int) -> Words | None:
        (x1, x), (y1, y) = self.opened(a), self.opened(b)
        if self.party:
            return product_sum(operation, [(x1, y), (x, y1)])
        return product_sum(operation, [(x1, y1 if y is None else y1 + y), (x, y1)])

    def quotient(self, a: int, bits: int) -> tuple[Words, Words]:
        """Return T, and the words that are all ones where c is 1."""
        lifted = self.opened(a)[0] + _LIFT
        carries = (lifted >> _TOP) - np.uint64(1)
        lifted >>= np.uint64(bits)
        lifted -= np.uint64(1 << (62 - bits))
        return lifted, carries

    def truncated(self, number: int, prefix: str, lifted: Words | None, carries: Words, bits: int) -> Words:
        """Return T - u + c m, T from `lifted` at one server alone, unless it is None."""
        share = self.piece(number, prefix + "top").astype(np.uint64)
        share <<= np.uint64(64 - bits)
        share &= carries
        share -= self.piece(number, prefix + "shifted")
        if lifted is not None and not self.party:
            share += lifted
        return share

    def selected(self, number: int, bit: _Bit, a: int, bits: int) -> Words:
        assert bit.number is not None
        if bits:
            lifted, carries = self.quotient(a, bits)
            whole = self.truncated(number, "", lifted, carries, bits)
            chosen = self.truncated(number, "chosen ", None, carries, bits)
        else:
            lifted, whole = self.opened(a)[0], self.added(a)
            chosen = self.piece(number, "chosen shifted").copy()
        chosen += bit.number * lifted
        rest = np.negative(chosen) if whole is None else np.subtract(whole, chosen)
        return np.where(bit.masked, rest, chosen)
