"""The third of three servers: it holds x_0 and x_2 of every value, deals what depends on them, and is sent nothing.

    symbol   here      meaning
    r        mask      -(x_0 + x_2): x_1 = x + r
    beta     beta      mask of a BIT: server and helper know g = bit xor beta
    f        bits      low bits that a truncation drops

All that it computes follows from streams: of a product it has (x_0 + x_2)(y_0 + y_2), of a truncation r >> f and the
top bit of r, of a selection these times beta, of a sign the tables and products of `replicated_signs`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.mpc.gates import Linear, linear, moved, product_sum
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
from confide.mpc.periodic import Series, dealt
from confide.mpc.replicated_plan import HELPER, KEY_BYTES, SERVER, THIRD, Plan, kept
from confide.mpc.replicated_shares import Part, Rows, Words, drawn, piece_at
from confide.mpc.replicated_signs import packed, products, tables, unpacked
from confide.wire import Message, Step


def run_third(
    plan: Plan, loads: Mapping[str, Part], *, tag: str, agreement: bytes, rng: Randomness
) -> Generator[Step, Mapping[str, Message], dict[str, Part]]:
    """Run a program at the third server.

    Args:
        plan: of the program.
        loads: what it holds of every loaded value, by name.
        tag: what the tags of this run's messages begin with.
        agreement: 16 bytes, what this run is about.
        rng: where the keys of the run come from.

    Yields:
        Steps that send and wait for nothing.

    Returns:
        What it holds of the values that are kept.
    """
    keys = rng.bytes(KEY_BYTES), rng.bytes(KEY_BYTES)
    run = _Third(plan, loads, keys)
    begin = Message(THIRD, SERVER, f"{tag}/0", agreement + keys[0])
    sent = 0
    for ready in run.work():
        leaving: list[Message] = [] if sent else [begin]
        for number in range(sent, ready):
            body = bytes(run.deals[number])
            if not number:
                body = b"".join((agreement, keys[1], body))
            leaving.append(Message(THIRD, HELPER, f"{tag}/{plan.deal_rounds[number]}", body))
            run.deals[number] = bytearray()
        sent = ready
        yield Step(send=tuple(leaving))
    return {name: run.parts[number] for name, number in kept(plan.program).items()}


class _Third:
    def __init__(self, plan: Plan, loads: Mapping[str, Part], keys: tuple[bytes, bytes]) -> None:
        self.plan = plan
        self.loads = loads
        self.first = drawn(keys[0], plan.server_stream)
        self.second = drawn(keys[1], plan.helper_stream)
        self.deals = [bytearray(length) for length in plan.deals]
        self.parts: dict[int, Part] = {}
        self.betas: dict[int, Rows] = {}
        self.missing = [0] * len(plan.deals)
        for piece in plan.pieces.values():
            if piece.message >= 0:
                self.missing[piece.message] += 1

    def work(self) -> Iterator[int]:
        """Go through the program in the order in which the helper needs what is dealt.

        Yields how many messages are ready, as soon as there is one more.
        """
        done = 0
        for number, dropped in zip(self.plan.order, self.plan.dropped_at_third, strict=True):
            self.visit(number)
            for one in dropped:
                self.parts.pop(one, None)
                self.betas.pop(one, None)
            made = done
            while made < len(self.missing) and not self.missing[made]:
                made += 1
            if made > done:
                done = made
                yield done

    def share(self, number: int) -> Words | None:
        return self.parts[number].share

    def zeros(self, number: int) -> Words:
        """Return the sum of masks, or the share, of an operand, with zeros for None."""
        share = self.share(number)
        return np.zeros(self.plan.program.values[number].shape, np.uint64) if share is None else share

    def visit(self, number: int) -> None:
        operation, program = self.plan.program.operations[number], self.plan.program
        match operation:
            case Load(name):
                self.parts[number] = self.loads[name]
            case Open(a):
                self.parts[number] = Part(None, self.total(number, "share"))
                self.deal_remainder(number, a)
            case MatMul(a, b) | Convolve(a, b) | Multiply(a, b):
                self.parts[number] = Part(None, product_sum(operation, [(self.share(a), self.share(b))]))
            case Truncate(a, bits):
                self.deal_truncation(number, "", np.negative(self.zeros(a)), bits, None)
                self.parts[number] = Part(None, None)
            case Sign(a, window, drop):
                self.sign(number, np.negative(self.zeros(a)).reshape(-1), window, drop)
            case Select(bit, a, bits):
                total = self.zeros(a)
                if bits:
                    self.deal_truncation(number, "", np.negative(total), bits, None)
                self.deal_truncation(number, "chosen ", np.negative(total) if bits else total, bits, self.betas[bit])
                self.parts[number] = Part(None, None)
            case Number():
                self.parts[number] = Part(None, None)
            case Periodic(a, period, cosines, sines):
                waves = dealt(Series(period, cosines, sines), np.negative(self.zeros(a)).reshape(-1))
                self.put(number, "cosines", waves[0])
                self.put(number, "sines", waves[1])
                self.parts[number] = Part(None, None)
            case Shift(a) | Keep(a):
                self.parts[number] = self.parts[a]
            case Reveal(a):
                if program.values[number].kind is Kind.BIT:
                    self.put(number, "mask", packed(self.betas[a].reshape(-1)))
                else:
                    self.deal_remainder(number, a)
            case _:
                self.linear(number, operation)

    def linear(self, number: int, operation: Linear) -> None:
        program = self.plan.program
        taken = operands(operation)
        if program.values[number].kind is Kind.BIT:
            assert isinstance(operation, Reshape | Slice)
            self.betas[number] = moved(operation, self.betas[taken[0]])
            return
        opens = program.values[number].kind is Kind.OPEN
        parts = [self.share(one) if opens or program.values[one].kind is Kind.SHARED else None for one in taken]
        self.parts[number] = Part(None, linear(operation, parts, [program.values[one].shape for one in taken]))

    # --- what it deals ------------------------------------------------------------------------------------------------

    def total(self, number: int, name: str) -> NDArray[np.unsignedinteger]:
        """Return a mask: the sum, or the exclusive or, of both shares."""
        piece = self.plan.pieces[number, name]
        own = piece_at(piece, self.first, piece.first), piece_at(piece, self.second, piece.second)
        return np.bitwise_xor(*own) if piece.bits else np.add(*own)

    def put(self, number: int, name: str, value: NDArray[np.unsignedinteger]) -> None:
        """Write the helper's share of a piece into the message that brings it."""
        piece = self.plan.pieces[number, name]
        first = piece_at(piece, self.first, piece.first)
        buffer = np.frombuffer(self.deals[piece.message], np.uint8)
        second = piece_at(piece, buffer, piece.second)
        whole = value.astype(piece.kind, copy=False).reshape(piece.shape)
        (np.bitwise_xor if piece.bits else np.subtract)(whole, first, out=second)
        self.missing[piece.message] -= 1

    def deal_remainder(self, number: int, a: int) -> None:
        if (number, "remainder") in self.plan.pieces:
            self.put(number, "remainder", self.zeros(a))

    def deal_truncation(self, number: int, prefix: str, mask: Words, bits: int, beta: Rows | None) -> None:
        shifted = mask >> np.uint64(bits)
        top = mask >> np.uint64(63)
        if beta is not None:
            shifted = np.where(beta, shifted, np.uint64(0))
            top = top & beta
        self.put(number, prefix + "shifted", shifted)
        if bits:
            self.put(number, prefix + "top", top)

    def sign(self, number: int, mask: Words, window: int, drop: int) -> None:
        cut = self.plan.comparisons[number]
        value = self.plan.program.values[number]
        seen = (mask & np.uint64((1 << (window + 1)) - 1)) >> np.uint64(drop)
        alpha, top = seen & np.uint64((1 << cut.bits) - 1), (seen >> np.uint64(cut.bits)).astype(np.uint8)
        drawn_bits = unpacked(self.total(number, "sign").astype(np.uint8, copy=False), value.count)
        beta: Rows = np.bitwise_xor(drawn_bits, top ^ np.uint8(1)).reshape(value.shape)
        self.betas[number] = beta
        for run, table in enumerate(tables(cut, alpha)):
            self.put(number, f"tables {run}", table)
        for level in range(len(cut.levels)):
            masks = self.total(number, f"masks {level}").astype(np.uint8, copy=False)
            self.put(number, f"products {level}", products(cut, level, masks))
        if (number, "number") in self.plan.pieces:
            self.put(number, "number", beta)
