"""What three servers draw, deal and send for a program: worked out once, read by all of them and by the planner.

    symbol         here            held by
    x_0, x_1, x_2  a replicated    "server" has x_0 and x_1, "helper" x_1 and x_2, "third" x_2 and x_0; their sum is x
                   sharing

An OPEN value is such a sharing whose x_0 and x_2 are drawn from streams that the third shares with one of the others,
before anything is known of x; x_1 = x - x_0 - x_2 is what the other two open to each other. So what the third holds
does not depend on an input, it sends what it deals without waiting, and nobody sends it anything.

A piece is a tensor of uniform shares: of a mask both shares come from streams; of what the third deals the server's
share comes from its stream, and the helper's is sent.

Rounds: round 0 ends when the input and the third's first message are there; in round t >= 1 server and helper send each
other one message each; after the last each sends one to whoever receives the output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

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
    Program,
    Reveal,
    Select,
    Shape,
    Sign,
    Truncate,
    operands,
)
from confide.mpc.replicated_signs import Comparison, comparison, table_type

#: The three servers' roles, in the order of the shares that they hold.
SERVER, HELPER, THIRD = "server", "helper", "third"
#: Bytes of a key, and of what shows that two servers speak of the same prediction.
KEY_BYTES = AGREEMENT_BYTES = 16
#: What the third deals leaves in messages of about this size, but for the first, which is what is needed first.
DEAL_BYTES = 1 << 18

WORD = np.dtype("<u8")
BYTE = np.dtype("u1")


@dataclass(frozen=True, slots=True)
class Piece:
    """Shares of one tensor.

    Args:
        kind: little-endian unsigned integers.
        shape: of the tensor.
        bits: shared by exclusive or instead of by sums.
        first: where the server's share begins in its stream with the third, in bytes.
        second: where the helper's share begins: in its stream with the third, or in what is dealt.
        message: number of the third's message that brings it; -1 for a mask.
        count: elements.
    """

    kind: np.dtype[np.unsignedinteger]
    shape: Shape
    bits: bool
    first: int
    second: int
    message: int
    count: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", math.prod(self.shape))

    @property
    def bytes(self) -> int:
        """Return the length of a share."""
        return self.kind.itemsize * self.count


@dataclass(frozen=True, slots=True)
class Send:
    """What server and helper open to each other in a round: an Open, or a step of a Sign.

    Args:
        operation: its number.
        level: of a Sign; the last one opens the masked sign.
        offset, bytes: where it lies in the message.
    """

    operation: int
    level: int
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A program as three servers run it.

    Args:
        program: what is run.
        hash: of the program.
        ready: for each operation the round after which its value is there.
        remainder: for each operation whether the third holds a share of a SHARED value.
        comparisons: of each Sign.
        pieces: by number of the operation and name.
        local: for each round, from 0, the operations that run after it.
        sends: for each round, from 1 (the place 0 is empty), what leaves, in the order of the message.
        deals: length of what the third deals in each message.
        deal_rounds: the round after which the helper needs each of these messages.
        server_stream, helper_stream, reveal_stream: bytes of the streams of server and third, helper and third, server
            and helper.
        reveals: operations whose values the output's receiver gets, with the length of each and its place in the last
            stream.
        dropped: by operation, those whose values server and helper drop after it.
        order: in which the third goes through the operations: in which the helper needs what is dealt.
        dropped_at_third: for each place of it the operations whose values the third drops after it.
    """

    program: Program
    hash: bytes
    ready: tuple[int, ...]
    remainder: tuple[bool, ...]
    comparisons: Mapping[int, Comparison]
    pieces: Mapping[tuple[int, str], Piece]
    local: tuple[tuple[int, ...], ...]
    sends: tuple[tuple[Send, ...], ...]
    deals: tuple[int, ...]
    deal_rounds: tuple[int, ...]
    server_stream: int
    helper_stream: int
    reveal_stream: int
    reveals: tuple[tuple[int, int, int], ...]
    dropped: Mapping[int, tuple[int, ...]]
    order: tuple[int, ...]
    dropped_at_third: tuple[tuple[int, ...], ...]

    @property
    def rounds(self) -> int:
        """Return how many times server and helper exchange messages."""
        return len(self.sends) - 1

    def exchange_bytes(self, number: int, src: str) -> int:
        """Return the length of the message of `src` in a round, 1 <= number <= rounds."""
        return self.exchange_body(number) + (0 if number > 1 else AGREEMENT_BYTES + (KEY_BYTES if src == SERVER else 0))

    def exchange_body(self, number: int) -> int:
        """Return how many of them are opened values."""
        return sum(one.offset + one.bytes for one in self.sends[number][-1:])

    def deal_bytes(self, number: int) -> int:
        """Return the length of a message from the third to the helper."""
        return self.deals[number] + (0 if number else AGREEMENT_BYTES + KEY_BYTES)

    @property
    def begin_bytes(self) -> int:
        """Return the length of the third's only message to the server."""
        return AGREEMENT_BYTES + KEY_BYTES

    @property
    def result_bytes(self) -> int:
        """Return the length of what server and helper each send to the output's receiver."""
        return sum(length for _, length, _ in self.reveals)

    @property
    def output_scale(self) -> int:
        """Return the scale of what is revealed first."""
        return self.program.values[self.reveals[0][0]].scale

    @property
    def messages(self) -> tuple[tuple[str, str, int], ...]:
        """Return sender, receiver and bytes of every message between servers, and of the results."""
        found = [(THIRD, SERVER, self.begin_bytes)]
        found += [(THIRD, HELPER, self.deal_bytes(one)) for one in range(len(self.deals))]
        for one in range(1, len(self.sends)):
            found.append((SERVER, HELPER, self.exchange_bytes(one, SERVER)))
            found.append((HELPER, SERVER, self.exchange_bytes(one, HELPER)))
        found += [(src, "client", self.result_bytes) for src in (SERVER, HELPER) if self.reveals]
        return tuple(found)


@dataclass(slots=True)
class _Draft:
    """Pieces before the third's messages are cut."""

    pieces: dict[tuple[int, str], Piece] = field(default_factory=dict[tuple[int, str], Piece])
    needed: dict[tuple[int, str], int] = field(default_factory=dict[tuple[int, str], int])
    server_stream: int = 0
    helper_stream: int = 0

    def mask(
        self, number: int, name: str, kind: np.dtype[np.unsignedinteger], shape: Shape, *, bits: bool = False
    ) -> None:
        """Add a tensor that is uniform, and of which the third knows both shares."""
        length = _length(kind, shape)
        self.pieces[number, name] = Piece(kind, shape, bits, self.server_stream, self.helper_stream, -1)
        self.server_stream += padded(length)
        self.helper_stream += padded(length)

    def deal(
        self,
        number: int,
        name: str,
        kind: np.dtype[np.unsignedinteger],
        shape: Shape,
        *,
        needed: int,
        bits: bool = False,
    ) -> None:
        """Add a tensor that the third makes, and that the helper needs after a round."""
        if (number, name) in self.pieces:
            self.needed[number, name] = min(needed, self.needed[number, name])
            return
        self.pieces[number, name] = Piece(kind, shape, bits, self.server_stream, 0, 0)
        self.needed[number, name] = needed
        self.server_stream += padded(_length(kind, shape))

    def cut(self) -> tuple[list[int], list[int]]:
        """Place what is dealt into messages; return their lengths and the rounds after which they are needed."""
        lengths, rounds = [0], [0]
        for key in sorted(self.needed, key=self.needed.__getitem__):
            after = self.needed[key]
            if after > rounds[-1] and (len(lengths) == 1 or lengths[-1] >= DEAL_BYTES):
                lengths.append(0)
                rounds.append(after)
            piece = self.pieces[key]
            self.pieces[key] = Piece(
                piece.kind, piece.shape, piece.bits, piece.first, lengths[-1], message=len(lengths) - 1
            )
            lengths[-1] += padded(piece.bytes)
        return lengths, rounds


def plan_of(program: Program) -> Plan:
    """Return how three servers run a program: the same at all of them."""
    draft = _Draft()
    ready: list[int] = []
    remainder: list[bool] = []
    comparisons: dict[int, Comparison] = {}
    roots: dict[int, int] = {}
    leaving: dict[int, list[tuple[int, int, int]]] = {}
    for number, operation in enumerate(program.operations):
        after = max((ready[one] for one in operands(operation)), default=0)
        third_has = _remains(program, number, remainder)
        if program.values[number].kind is Kind.BIT:
            roots[number] = number if isinstance(operation, Sign) else roots[operands(operation)[0]]
        if isinstance(operation, Open):
            leaving.setdefault(after + 1, []).append((number, 0, 8 * program.values[number].count))
            after += 1
        elif isinstance(operation, Sign):
            cut = comparisons[number] = comparison(operation.window - operation.drop)
            row = _row(program.values[number].count)
            for level in range(len(cut.levels)):
                leaving.setdefault(after + level + 1, []).append((number, level, cut.opened(level) * row))
            after += len(cut.levels) + 1
            leaving.setdefault(after, []).append((number, len(cut.levels), row))
        _add_pieces(draft, program, number, remainder, roots, comparisons, ready)
        ready.append(after)
        remainder.append(third_has)
    rounds = max(1, *ready)
    lengths, deal_rounds = draft.cut()
    reveals, reveal_stream = _reveals(program)
    sends = ((), *(_laid_out(leaving.get(one, [])) for one in range(1, rounds + 1)))
    local = _local(program, ready, rounds)
    held = [number for place, numbers in zip(sends, local, strict=True) for number in (*_first_sent(place), *numbers)]
    after = [max((ready[one] for one in operands(each)), default=0) for each in program.operations]
    order = tuple(sorted(range(len(after)), key=lambda number: (after[number], number)))
    return Plan(
        program,
        program.hash,
        tuple(ready),
        tuple(remainder),
        comparisons,
        draft.pieces,
        local,
        sends,
        tuple(lengths),
        tuple(deal_rounds),
        draft.server_stream,
        draft.helper_stream,
        reveal_stream,
        reveals,
        dict(zip(held, _releases(program, held), strict=True)),
        order,
        tuple(_releases(program, order)),
    )


def _first_sent(sends: tuple[Send, ...]) -> tuple[int, ...]:
    """Return the operations that send for the first time in a round."""
    return tuple(send.operation for send in sends if not send.level)


def _add_pieces(
    draft: _Draft,
    program: Program,
    number: int,
    remainder: list[bool],
    roots: Mapping[int, int],
    comparisons: Mapping[int, Comparison],
    ready: list[int],
) -> None:
    """Add what an operation draws and is dealt; `ready` are the rounds of the operations before it."""
    operation, value = program.operations[number], program.values[number]
    shape, count = value.shape, value.count
    needed = max((ready[one] for one in operands(operation)), default=0)
    match operation:
        case Open(a):
            draft.mask(number, "share", WORD, shape)
            if remainder[a]:
                draft.deal(number, "remainder", WORD, shape, needed=needed)
        case Truncate(_, bits):
            _add_truncation(draft, number, shape, bits, needed, "")
        case Sign():
            _add_sign(draft, number, count, comparisons[number], needed)
        case Select(bit, _, bits):
            draft.deal(roots[bit], "number", WORD, program.values[roots[bit]].shape, needed=ready[roots[bit]])
            if bits:
                _add_truncation(draft, number, shape, bits, needed, "")
            _add_truncation(draft, number, shape, bits, needed, "chosen ")
        case Number(bit):
            draft.deal(roots[bit], "number", WORD, program.values[roots[bit]].shape, needed=ready[roots[bit]])
        case Periodic(_, _, _, sines):
            for name in ("cosines", "sines"):
                draft.deal(number, name, WORD, (len(sines), count), needed=needed)
        case Reveal(a):
            if value.kind is Kind.BIT:
                draft.deal(number, "mask", BYTE, (_row(count),), needed=needed, bits=True)
            elif remainder[a]:
                draft.deal(number, "remainder", WORD, shape, needed=needed)
        case _:
            pass


def _add_truncation(draft: _Draft, number: int, shape: Shape, bits: int, needed: int, prefix: str) -> None:
    draft.deal(number, prefix + "shifted", WORD, shape, needed=needed)
    if bits:
        draft.deal(number, prefix + "top", small_type(bits), shape, needed=needed)


def _add_sign(draft: _Draft, number: int, count: int, cut: Comparison, needed: int) -> None:
    row = _row(count)
    draft.mask(number, "sign", BYTE, (row,), bits=True)
    for run, (bits, _, blocks) in enumerate(cut.tables):
        draft.deal(number, f"tables {run}", table_type(bits), (blocks, count), needed=needed, bits=True)
    for level in range(len(cut.levels)):
        draft.mask(number, f"masks {level}", BYTE, (cut.opened(level), row), bits=True)
        draft.deal(number, f"products {level}", BYTE, (cut.dealt(level), row), needed=needed, bits=True)


def small_type(bits: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest little-endian type with at least `bits` bits."""
    return np.dtype(f"<u{1 if bits <= 8 else 2 if bits <= 16 else 4 if bits <= 32 else 8}")


def _remains(program: Program, number: int, remainder: list[bool]) -> bool:
    """Return whether the third holds a share of what an operation makes, a SHARED value."""
    operation = program.operations[number]
    if program.values[number].kind is not Kind.SHARED:
        return False
    match operation:
        case Load(_, _, _, _, origin):
            return origin == "state"
        case MatMul() | Convolve() | Multiply():
            return True
        case Truncate() | Select() | Number() | Periodic():
            return False
        case _:
            return any(remainder[one] for one in operands(operation))


def _laid_out(leaving: list[tuple[int, int, int]]) -> tuple[Send, ...]:
    """Return the sends of a round with their places: words first, so that they lie aligned, then rows of bits."""
    found: list[Send] = []
    offset = 0
    for number, level, length in sorted(leaving, key=lambda one: one[2] % 8 != 0):
        found.append(Send(number, level, offset, length))
        offset += length
    return tuple(found)


def _local(program: Program, ready: list[int], rounds: int) -> tuple[tuple[int, ...], ...]:
    found: list[list[int]] = [[] for _ in range(rounds + 1)]
    for number, operation in enumerate(program.operations):
        if not isinstance(operation, Open | Sign):
            found[ready[number]].append(number)
    return tuple(tuple(one) for one in found)


def _reveals(program: Program) -> tuple[tuple[tuple[int, int, int], ...], int]:
    found: list[tuple[int, int, int]] = []
    place = 0
    for number, operation in enumerate(program.operations):
        if isinstance(operation, Reveal):
            value = program.values[number]
            length = _row(value.count) if value.kind is Kind.BIT else 8 * value.count
            found.append((number, length, place))
            place += padded(length)
    return tuple(found), place


def _releases(program: Program, order: Sequence[int]) -> list[tuple[int, ...]]:
    """Return for each place of an order the operations whose values nobody takes after it, nor at the end."""
    last: dict[int, int] = {}
    stays = set(kept(program).values())
    for place, number in enumerate(order):
        last.update(dict.fromkeys(operands(program.operations[number]), place))
        if isinstance(program.operations[number], Reveal):
            stays.update(operands(program.operations[number]))
    found: list[list[int]] = [[] for _ in order]
    for number, place in last.items():
        if number not in stays:
            found[place].append(number)
    return [tuple(one) for one in found]


def kept(program: Program) -> dict[str, int]:
    """Return the operations whose values are kept, by name."""
    return {one.name: number for number, one in enumerate(program.operations) if isinstance(one, Keep)}


def _row(count: int) -> int:
    return -(-count // 8)


def padded(length: int) -> int:
    """Return the bytes that a piece takes in a stream or in a message."""
    return -(-length // 16) * 16


def _length(kind: np.dtype[np.unsignedinteger], shape: Shape) -> int:
    return kind.itemsize * math.prod(shape)
