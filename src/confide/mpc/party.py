"""A party's run of a program: one step a round, at most one message to the other a round, of a length known ahead.

P0 and P1 hold the same opened values and their own parts of every share (`confide.mpc.ahead`). What is done here is
what an input is needed for: opened values, products with them, and the gates of docs/protocols/mpc.md.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError
from confide.mpc import dcf, selections
from confide.mpc.ahead import Fixed, Held, Ready, Selection, add_corrections
from confide.mpc.correlations import Bytes, Layout, Words
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
from confide.mpc.schedule import Round, Schedule, rounds
from confide.wire import Message, Step


@dataclass(frozen=True, slots=True)
class Place:
    """Who a party is in a run.

    Args:
        party: 0 or 1.
        names: the roles of P0 and P1.
        tag: what the tags of its messages begin with; differs between runs of one session.
        deal_tag: what the tags of the dealer's messages begin with, where corrections come during the run.
    """

    party: int
    names: tuple[str, str]
    tag: str
    deal_tag: str = ""


@dataclass(slots=True)
class Outcome:
    """What a run leaves at a party.

    Args:
        outputs: by name. Where P0 takes what is revealed, the values, at P0 alone; else this party's shares, additive
            for words and by XOR for bits.
        state: what was kept, by name.
    """

    outputs: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    state: dict[str, Held] = field(default_factory=dict[str, Held], repr=False)


def schedule_of(layout: Layout) -> Schedule:
    """Return when the operations of a program run under a mode."""
    return rounds(layout.program, inputs="masked" if layout.owned else "shared")


def sent_bytes(layout: Layout, party: int, number: int) -> int:
    """Return the bytes that a party sends the other for an operation in its last round."""
    return layout.sent_bytes[party][number]


def run_program(
    place: Place,
    layout: Layout,
    schedule: Schedule,
    fixed: Fixed,
    ready: Ready,
    inputs: Mapping[str, Words],
    *,
    state: Mapping[str, Held] | None = None,
    first: Step | None = None,
) -> Generator[Step, Mapping[str, Message], Outcome]:
    """Run a program at one party.

    Args:
        place: which party, and whom it talks to.
        layout, schedule: of the program.
        fixed: what follows from the model.
        ready: this run's correlations; wiped at the end, however it ends.
        inputs: by the names of the loads: the values at P0 where it owns them, else this party's shares. A missing one
            is a share of zeros.
        state: values that live on between programs, those that `ready` was made with.
        first: what leaves and what is saved with the first message.

    Yields:
        One step a round.

    Returns:
        The outcome.

    Raises:
        ProtocolError: a message of another length than the program's.
    """
    run = _Run(place, layout, fixed, ready, inputs, {} if state is None else state)
    try:
        for number in schedule.before:
            run.visit(number)
        for count, each in enumerate(schedule.rounds, 1):
            for step in run.awaited(each):
                run.arrived((yield step))
            last = {number for number in each.sends if schedule.ready[number] == count}
            step = run.step(each, last, count)
            if first is not None:
                step = Step((*first.send, *step.send), step.await_tag, step.wait_for, save=first.save)
            received: Mapping[str, Message] = {}
            if first is not None or step.send or step.wait_for:
                first = None
                received = yield step
            run.take(each, last, received)
            for number in each.local:
                run.visit(number)
        return run.outcome
    finally:
        ready.wipe()


class _Run:
    """The opened values and the parts of shares that a run makes, by the number of the operation."""

    def __init__(
        self,
        place: Place,
        layout: Layout,
        fixed: Fixed,
        ready: Ready,
        inputs: Mapping[str, Words],
        state: Mapping[str, Held],
    ) -> None:
        self.place, self.layout, self.program, self.party = place, layout, layout.program, place.party
        self.fixed, self.ready, self.inputs, self.state = fixed, ready, inputs, state
        self.opened: dict[int, Words] = dict(fixed.opened)
        self.found: dict[int, Words | None] = {}  # the part of a share that the run finds; None is zero
        self.bits: dict[int, Bytes] = {}
        self.mine: dict[int, NDArray[Any]] = {}  # what this party sent of an operation
        self.outcome = Outcome()
        self.their_bytes = layout.sent_bytes[1 - place.party]
        self.places = {batch.operation: number for number, batch in enumerate(layout.batches)}
        self.next_batch = len(ready.corrections)

    # --- messages ---------------------------------------------------------------------------------------------------

    def awaited(self, each: Round) -> list[Step]:
        """Return the steps that wait for the corrections which a round needs and which have not come yet."""
        wanted = max((self.places[number] for number in each.sends if number in self.places), default=-1)
        return [
            Step(await_tag=f"{self.place.deal_tag}/corrections/{batch}", wait_for=("dealer",))
            for batch in range(self.next_batch, wanted + 1)
        ]

    def arrived(self, received: Mapping[str, Message]) -> None:
        """Take the corrections of the next batch."""
        add_corrections(self.layout, self.ready, self.next_batch, received["dealer"].body)
        self.next_batch += 1

    def step(self, each: Round, last: set[int], count: int) -> Step:
        """Return what leaves in a round and what is awaited."""
        tag = f"{self.place.tag}/{count}"
        me, other = self.place.names[self.party], self.place.names[1 - self.party]
        parts = [self.leaving(number) for number in each.sends if number in last]
        bodies = [part.tobytes() for part in parts if part is not None]
        body = bodies[0] if len(bodies) == 1 else b"".join(bodies)
        theirs = sum([self.their_bytes[number] for number in last])
        send = (Message(me, other, tag, body),) if body else ()
        return Step(send, tag, (other,)) if theirs else Step(send)

    def leaving(self, number: int) -> Bytes | Words | None:
        """Return what this party sends of an operation; None if nothing."""
        operation = self.program.operations[number]
        match operation:
            case Load():
                return self._leaving_input(number, operation)
            case Open(a):
                found, opening = self.dynamic(a), self.ready.opening[number]
                mine = opening if found is None else np.add(found, opening)
                self.mine[number] = mine
                return mine
            case Sign():
                self.mine[number] = mine = self._sign(number, operation)
                return np.packbits(mine, bitorder="little")
            case Reveal(a, _, bits):
                return self._leaving_output(number, a, bits)
            case _:
                raise AssertionError("an operation that sends")

    def take(self, each: Round, last: set[int], received: Mapping[str, Message]) -> None:
        """Read what the other party sent in a round."""
        other = self.place.names[1 - self.party]
        body = received[other].body if other in received else b""
        expected = sum([self.their_bytes[number] for number in last])
        if len(body) != expected:
            raise ProtocolError(f"Expected {expected} bytes from {other}, got {len(body)}")
        offset = 0
        for number in each.sends:
            if number in last:
                size = self.their_bytes[number]
                self._take(number, body, offset, size)
                offset += size

    def _take(self, number: int, body: bytes, offset: int, size: int) -> None:
        operation, value = self.program.operations[number], self.program.values[number]
        if value.kind is Kind.BIT:
            packed = np.frombuffer(body, np.uint8, size, offset)
            theirs = np.unpackbits(packed, count=value.count, bitorder="little") if size else None
        else:
            theirs = np.frombuffer(body, "<u8", size // 8, offset).reshape(value.shape) if size else None
        match operation:
            case Load(_, _, _, Kind.SHARED):
                self.found[number] = self.inputs.get(operation.name)
            case Load() | Open():
                mine = self.mine.pop(number, None)
                opened = theirs if mine is None else mine if theirs is None else np.add(mine, theirs)
                assert opened is not None
                self.opened[number] = opened
            case Sign():
                assert theirs is not None
                opened_bits: Bytes = np.bitwise_xor(self.mine.pop(number), theirs)
                self.bits[number] = opened_bits.reshape(value.shape)
            case Reveal():
                self._revealed(number, operation, theirs)
            case _:
                pass

    def _leaving_input(self, number: int, load: Load) -> Words | None:
        if load.kind is Kind.SHARED or (self.layout.owned and self.party == 1):
            return None
        value, mask = self.inputs.get(load.name), self.ready.mask[number]
        assert mask is not None
        self.mine[number] = mine = mask if value is None else np.add(value.reshape(mask.shape), mask)
        return mine

    def _leaving_output(self, number: int, a: int, bits: int) -> Bytes | Words | None:
        if self.program.values[number].kind is Kind.BIT:
            share = (self.ready.bit[a] & np.uint64(1)).astype(np.uint8).reshape(-1)
            if not (self.layout.owned and self.party == 1):
                # the receiver, or party 1 of two that both send theirs on, adds the public bit
                adds = self.layout.owned or self.party == 1
                self.mine[number] = share ^ self.bits[a].reshape(-1) if adds else share
                return None
            return np.packbits(share, bitorder="little")
        total = self.total(a)
        share = np.zeros(self.program.values[a].shape, np.uint64) if total is None else total
        if number in self.ready.zero:  # so that shares tell who adds them up nothing but their sum
            share = np.add(share, self.ready.zero[number])
        share = np.right_shift(share, np.uint64(bits))  # a copy: what the run holds is wiped
        if self.layout.owned and self.party == 1:
            return np.ascontiguousarray(share)
        self.mine[number] = share
        return None

    def _revealed(self, number: int, reveal: Reveal, theirs: Any) -> None:
        if number not in self.mine:
            return
        value, mine = self.program.values[number], self.mine.pop(number)
        if theirs is None:
            made = mine
        else:
            made = mine ^ theirs.reshape(mine.shape) if value.kind is Kind.BIT else told(mine, theirs, reveal.bits)
        self.outcome.outputs[reveal.name] = made.reshape(value.shape)

    # --- shares -----------------------------------------------------------------------------------------------------

    def dynamic(self, number: int) -> Words | None:
        """Return the part of a share that the run finds."""
        if self.program.values[number].kind is Kind.OPEN:
            return self.opened[number] if self.party else None
        return self.found.get(number)

    def known(self, number: int) -> Words | None:
        """Return the part of a share that was known ahead."""
        if self.program.values[number].kind is Kind.OPEN:
            mask = self.mask(number)
            return None if mask is None else np.negative(mask)
        return self.fixed.share[number] if self.layout.fixed[number] else self.ready.known.get(number)

    def mask(self, number: int) -> Words | None:
        """Return the share of the mask of an OPEN value."""
        return self.fixed.mask[number] if self.layout.fixed[number] else self.ready.mask[number]

    def total(self, number: int) -> Words | None:
        """Return this party's share of a value; None is zero."""
        found, known = self.dynamic(number), self.known(number)
        if found is None or known is None:
            return known if found is None else found
        return np.add(found, known)

    # --- operations that send nothing -------------------------------------------------------------------------------

    def visit(self, number: int) -> None:
        """Do one local operation, once its operands are there."""
        operation, value = self.program.operations[number], self.program.values[number]
        if self.layout.fixed[number]:
            return
        match operation:
            case Load():
                self._load_state(number, operation)
            case MatMul() | Convolve() | Multiply():
                self.found[number] = self._product(operation)
            case Truncate(a, bits, _):
                self.found[number] = selections.truncate(self.party, self.opened[a], bits, self.ready.tops[number])
            case Select():
                self.found[number] = self._select(operation, self.ready.selection[number])
            case Number(bit):
                self.found[number] = self._number(bit)
            case Periodic():
                self.found[number] = self._periodic(number, operation)
            case Reshape() | Slice() if value.kind is Kind.BIT:
                self.bits[number] = moved(operation, self.bits[operation.a])
            case Shift(a, by):
                if value.kind is Kind.OPEN:
                    self.opened[number] = np.add(self.opened[a], word(by))
                else:
                    self.found[number] = self.dynamic(a)
            case Keep():
                self._keep(number, operation)
            case _ if isinstance(operation, Linear):
                self._linear(number, operation)
            case _:
                raise AssertionError("an operation that sends nothing")

    def _load_state(self, number: int, load: Load) -> None:
        held = self.state[load.name]
        if load.kind is Kind.OPEN:
            if held.opened is None or held.opened.shape != load.shape:
                raise ProtocolError(f"Expected the state {load.name!r} of shape {load.shape}; keep it first")
            self.opened[number] = held.opened
        else:
            self.found[number] = held.share

    def _keep(self, number: int, keep: Keep) -> None:
        a = keep.a
        if self.program.values[a].kind is Kind.OPEN:
            mask = self.mask(a)
            self.opened[number] = self.opened[a]
            kept = None if mask is None else np.array(mask)  # what the run holds is wiped
            self.outcome.state[keep.name] = Held(np.array(self.opened[a]), kept, self.ready.deal_id.encode())
        else:
            self.found[number] = self.dynamic(a)
            total = self.total(a)
            self.outcome.state[keep.name] = Held(None, None if total is None else np.array(total))

    def _linear(self, number: int, operation: Linear) -> None:
        taken = operands(operation)
        shapes = [self.program.values[one].shape for one in taken]
        if self.program.values[number].kind is Kind.OPEN:
            opened = linear(operation, [self.opened[one] for one in taken], shapes)
            assert opened is not None
            self.opened[number] = opened
        else:
            self.found[number] = linear(operation, [self.dynamic(one) for one in taken], shapes)

    def _product(self, operation: MatMul | Convolve | Multiply) -> Words | None:
        a, b = operation.a, operation.b
        if self.layout.fixed[b]:
            return product_sum(operation, [(self.opened[a], self.fixed.share[b])])
        if self.layout.fixed[a]:
            return product_sum(operation, [(self.fixed.share[a], self.opened[b])])
        mask = self.mask(a)
        negative = None if mask is None else np.negative(mask)
        return product_sum(operation, [(self.opened[a], self.total(b)), (negative, self.opened[b])])

    def _number(self, bit: int) -> Words:
        """Return [bit]_b: [beta]_b where g = 0, b - [beta]_b where g = 1."""
        ones = np.negative(self.bits[bit].astype(np.uint64))
        made = np.bitwise_xor(self.ready.bit[bit], ones)
        made -= ones
        if self.party:
            made -= ones
        return made

    def _select(self, operation: Select, selection: Selection) -> Words:
        """Return [bit v]_b: the share of the bit times T, minus that of (bit u), plus that of (bit m)."""
        g, beta = self.bits[operation.bit], self.ready.bit[operation.bit]
        opened, bits = self.opened[operation.a], operation.bits
        return selections.select(self.party, g, beta, opened, bits, selection.whole, selection.chosen)

    def _sign(self, number: int, operation: Sign) -> Bytes:
        """Return this party's share of g, flat."""
        ready, drop = self.ready, operation.drop
        mine = dcf.evaluate(
            self.party,
            ready.roots[number],
            ready.corrections[number],
            self.opened[operation.a].reshape(-1),
            operation.window - drop,
            ready.deal_id.comparison_key(number),
            drop=drop,
            top=self.party == 0,
        )
        mine ^= ready.rho[number]
        return mine

    def _periodic(self, number: int, operation: Periodic) -> Words:
        series = Series(operation.period, operation.cosines, operation.sines)
        opened = self.opened[operation.a]
        waves = self.ready.waves[number]
        made = periodic_share(series, self.party, factors(series, opened.reshape(-1)), (waves[0], waves[1]))
        return made.reshape(opened.shape)


def told(mine: Words, theirs: Words, bits: int) -> Words:
    """Return what is revealed, from both shares without their lowest `bits`: see `Reveal`."""
    total = np.add(mine, theirs)
    if bits:
        total += np.uint64(1)
        total <<= np.uint64(bits)  # the sign is that of a number of 64 - bits bits
        total = (total.view(np.int64) >> bits).view(np.uint64)
    return total
