"""What a dealer gives two parties for one run of a program: which values, in what order, in how many bytes.

The dealer D shares a key with each of the parties P0 and P1. For every deal both sides derive a seed of 16 bytes from
it, and from the seed streams of words, one for each (operation, purpose). Where a value is dealt in shares, P0's share
is its stream, and P1 receives the difference. So P0 receives nothing but the corrections of comparison keys, which P1
receives too, the same bytes; the rest goes to P1 alone:

    purpose        for                                     P0            P1
    MASK           r of an opened value                    stream        stream, 0 bytes
    PRODUCT        r_x r_y of a product                    stream        8 bytes an element of the product
    ROOT, RHO      a comparison key's root, 1 bit of rho   stream        stream, 0 bytes
    (keys)         a comparison key's corrections          16 (n - 6) bytes, the same for both (`confide.mpc.dcf`)
    BETA           beta, the mask of a bit, as a word      stream        8 bytes
    SHIFTED        u = r >> f                              stream        8 bytes
    TOP            msb(r), of which m = msb(r) 2^(64-f)    stream        f bits, as 1, 2, 4 or 8 bytes
    BETA_SHIFTED   beta u (beta r where f = 0)             stream        8 bytes
    BETA_TOP       beta msb(r)                             stream        f bits, as 1, 2, 4 or 8 bytes
    WAVES          cosines, then sines, of r               stream        16 m bytes (`confide.mpc.periodic`)
    ZERO           0, where a client adds up both shares   stream        8 bytes

Three savings follow from what is free to choose: rho's shares are both streams, and beta is what they imply; m and
beta m are multiples of 2^(64-f), so their shares need f bits; u and m of a value are dealt once for all that use them.

All lengths follow from the program alone. `Layout` says where each value lies; a receiver checks the length before it
reads, and reads where it lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError
from confide.mpc.dcf import correction_bytes
from confide.mpc.operations import (
    AnyOperation,
    Convolve,
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
    Sign,
    Truncate,
    operands,
)
from confide.mpc.streams import stream, stream_bits

Words = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

RUN_BYTES = 16
#: Most corrections under one public AES key: 2^25 blocks, which the level of security counts on (mpc-dealer.md).
MOST_BATCH_BYTES = 16 << 25
_ALIGN = 16


class Purpose(IntEnum):
    """What a stream or a segment of an operation is for; see the module's head."""

    MASK = 0
    PRODUCT = 1
    ROOT = 2
    RHO = 3
    BETA = 4
    SHIFTED = 5
    TOP = 6
    BETA_SHIFTED = 7
    BETA_TOP = 8
    WAVES = 9
    MODEL = 10
    ZERO = 11


@dataclass(frozen=True, slots=True)
class DealId:
    """Which deal: `run` names a set-up (16 bytes), `counter` counts its deals from 0. One deal serves one run."""

    run: bytes
    counter: int

    def __post_init__(self) -> None:
        if len(self.run) != RUN_BYTES or not 0 <= self.counter < 1 << 63:
            raise ProtocolError(f"Expected the id of a deal: a run of {RUN_BYTES} bytes and a counter of at least 0")

    def encode(self) -> bytes:
        """Return 24 bytes."""
        return self.run + self.counter.to_bytes(8, "little")

    def seed(self, key: bytes) -> bytes:
        """Return the seed of this deal (16 bytes), from the key that the dealer shares with a party."""
        return _derived(b"deal", key, self.encode())

    def comparison_key(self, operation: int) -> bytes:
        """Return the public AES key of the comparison keys of an operation: each batch has its own."""
        return _derived(b"comparison", b"", self.encode() + operation.to_bytes(8, "little"))


def model_seed(key: bytes, run: bytes) -> bytes:
    """Return the seed of the masks of a model's weights (16 bytes), from the key shared with a party."""
    return _derived(b"model", key, run)


def _derived(purpose: bytes, key: bytes, context: bytes) -> bytes:
    text = b"confide mpc " + purpose + b" v1\0" + len(key).to_bytes(2, "little") + key + context
    return hashlib.sha256(text).digest()[:16]


def nonce(operation: int, purpose: Purpose) -> int:
    """Return which stream of a seed serves an operation and a purpose."""
    return operation << 8 | purpose


def drawn(seed: bytes, operation: int, purpose: Purpose, count: int) -> Words:
    """Return `count` words of a stream."""
    return stream(seed, nonce(operation, purpose), count)


def drawn_bits(seed: bytes, operation: int, count: int) -> Bytes:
    """Return `count` shares of rho."""
    return stream_bits(seed, nonce(operation, Purpose.RHO), count)


def drawn_roots(seed: bytes, operation: int, count: int) -> Bytes:
    """Return the roots of `count` comparison keys, shape (count, 16)."""
    words = drawn(seed, operation, Purpose.ROOT, 2 * count)
    return words.astype("<u8", copy=False).view(np.uint8).reshape(count, 16)


def drawn_narrow(seed: bytes, operation: int, purpose: Purpose, count: int, dtype: np.dtype[np.unsignedinteger]):
    """Return `count` numbers of a narrower type, from the bytes of a stream."""
    words = drawn(seed, operation, purpose, -(-count * dtype.itemsize // 8))
    return words.astype("<u8", copy=False).view(dtype)[:count]


def narrow(bits: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest type that holds shares modulo 2^bits."""
    return np.dtype(next(f"<u{size}" for size in (1, 2, 4, 8) if bits <= 8 * size))


# --- what a program needs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Segment:
    """Where P1's part of one dealt value lies among its words.

    Args:
        offset: bytes from the start.
        count: elements.
        dtype: "<u8", or narrower.
    """

    offset: int
    count: int
    dtype: np.dtype[np.unsignedinteger]

    def view(self, body: bytes | bytearray | memoryview) -> NDArray[np.unsignedinteger]:
        """Return the elements where they lie."""
        return np.frombuffer(body, self.dtype, self.count, self.offset)


@dataclass(frozen=True, slots=True)
class Batch:
    """The comparison keys of one `Sign`: how many, their bits n, and how long their corrections are."""

    operation: int
    count: int
    bits: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What is dealt for one run of a program.

    Args:
        program: whose.
        owned: True where P0 brings the inputs and takes what is revealed, and P1 has the model; False where both hold
            shares of everything.
        segments: P1's words, by (operation, purpose), in the order of use.
        words_bytes: their length.
        batches: the comparison keys, in the order of use; each is a message of its own.
        shifted: for each (value, bits) the operation under whose number u and msb(r) are dealt.
        bits: for each BIT the `Sign` that it comes from.
        fixed: for each operation whether it follows from the model alone, the same in every run.
        sent_bytes: for each party what it sends the other for each operation in its last round.
        binding: a hash of program and mode (32 bytes), which parties compare first.
    """

    program: Program
    owned: bool
    segments: Mapping[tuple[int, Purpose], Segment]
    words_bytes: int
    batches: tuple[Batch, ...]
    shifted: Mapping[tuple[int, int], int]
    bits: Mapping[int, int]
    fixed: tuple[bool, ...]
    sent_bytes: tuple[tuple[int, ...], tuple[int, ...]]
    binding: bytes

    @property
    def keys_bytes(self) -> int:
        """Return how long all corrections together are."""
        return sum(batch.size_bytes for batch in self.batches)

    def model(self, kind: Kind) -> list[tuple[int, Load]]:
        """Return the loads of the model that are masked (OPEN) or shared (SHARED), ordered by name."""
        found = [
            (number, operation)
            for number, operation in enumerate(self.program.operations)
            if isinstance(operation, Load) and operation.origin == "model" and operation.kind is kind
        ]
        return sorted(found, key=lambda pair: pair[1].name)

    @staticmethod
    def of(program: Program, *, owned: bool) -> Layout:
        """Return what a program needs."""
        return _Planner(program, owned).layout()


class _Planner:
    """Walks a program once and gives every dealt value its place."""

    def __init__(self, program: Program, owned: bool) -> None:
        self.program, self.owned = program, owned
        self.segments: dict[tuple[int, Purpose], Segment] = {}
        self.end = 0
        self.batches: list[Batch] = []
        self.shifted: dict[tuple[int, int], int] = {}
        self.bits: dict[int, int] = {}
        self.fixed: list[bool] = []
        self.read_as_words = self._read_as_words()

    def layout(self) -> Layout:
        for number, operation in enumerate(self.program.operations):
            self.fixed.append(self._fixed(operation))
            self._visit(number, operation)
        return Layout(
            program=self.program,
            owned=self.owned,
            segments=self.segments,
            words_bytes=self.end,
            batches=tuple(self.batches),
            shifted=self.shifted,
            bits=self.bits,
            fixed=tuple(self.fixed),
            sent_bytes=(self._sent_bytes(0), self._sent_bytes(1)),
            binding=hashlib.sha256(b"confide mpc layout v1\0" + bytes([self.owned]) + self.program.hash).digest(),
        )

    def _sent_bytes(self, party: int) -> tuple[int, ...]:
        return tuple(
            (-(-value.count // 8) if value.kind is Kind.BIT else 8 * value.count)
            if self._sends(operation, party)
            else 0
            for operation, value in zip(self.program.operations, self.program.values, strict=True)
        )

    def _sends(self, operation: AnyOperation, party: int) -> bool:
        match operation:
            case Load():
                return operation.origin == "input" and operation.kind is Kind.OPEN and not (self.owned and party == 1)
            case Reveal():
                return self.owned and party == 1
            case _:
                return isinstance(operation, Open | Sign)

    def _fixed(self, operation: AnyOperation) -> bool:
        if isinstance(operation, Load):
            return operation.origin == "model"
        talks = Open | Sign | Reveal | MatMul | Convolve | Multiply | Truncate | Select | Number | Periodic
        return not isinstance(operation, talks) and all(self.fixed[one] for one in operands(operation))

    def _read_as_words(self) -> set[int]:
        """Return the signs whose beta is needed as a word."""
        source: dict[int, int] = {}
        found: set[int] = set()
        for number, operation in enumerate(self.program.operations):
            if self.program.values[number].kind is Kind.BIT and not isinstance(operation, Reveal):
                source[number] = number if isinstance(operation, Sign) else source[operands(operation)[0]]
            if isinstance(operation, Select | Number | Reveal):
                taken = operands(operation)[0]
                found |= {source[taken]} if taken in source else set()
        return found

    def _visit(self, number: int, operation: AnyOperation) -> None:
        count = self.program.values[number].count
        match operation:
            case MatMul() | Convolve() | Multiply():
                self._place(number, Purpose.PRODUCT, count)
            case Truncate(a, bits, _):
                self._shift(number, a, bits, count)
            case Sign(_, window, drop):
                self.bits[number] = number
                bits = window - drop
                size_bytes = correction_bytes(count, bits)
                if size_bytes > MOST_BATCH_BYTES:
                    raise ProtocolError(
                        f"Expected at most {MOST_BATCH_BYTES} bytes of comparison keys in one step, got {size_bytes}; "
                        "ask fewer rows at a time"
                    )
                self.batches.append(Batch(number, count, bits, size_bytes))
                if number in self.read_as_words:
                    self._place(number, Purpose.BETA, count)
            case Select(_, a, bits):
                if bits:
                    self._shift(number, a, bits, count)
                    self._place(number, Purpose.BETA_TOP, count, narrow(bits))
                self._place(number, Purpose.BETA_SHIFTED, count)
            case Periodic(_, _, _, sines):
                self._place(number, Purpose.WAVES, 2 * len(sines) * count)
            case Reveal() if not self.owned and self.program.values[number].kind is not Kind.BIT:
                self._place(number, Purpose.ZERO, count)
            case _:
                taken = operands(operation)
                if self.program.values[number].kind is Kind.BIT and taken[0] in self.bits:
                    self.bits[number] = self.bits[taken[0]]

    def _shift(self, number: int, a: int, bits: int, count: int) -> None:
        if (a, bits) not in self.shifted:
            self.shifted[a, bits] = number
            self._place(number, Purpose.SHIFTED, count)
            self._place(number, Purpose.TOP, count, narrow(bits))

    def _place(self, number: int, purpose: Purpose, count: int, dtype: np.dtype[np.unsignedinteger] | None = None):
        kind = narrow(64) if dtype is None else dtype
        self.segments[number, purpose] = Segment(self.end, count, kind)
        self.end += -(-count * kind.itemsize // _ALIGN) * _ALIGN
