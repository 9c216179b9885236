"""What a party makes of correlations before a run: its shares of all masks, and the part of every share that is known.

A share of a value is the sum of two parts. The part that is known ahead follows from masks, the model and what was
dealt; the other follows from opened values, during the run. For a product of x with fixed weights W, held as
W^ = W + r_W with shares [r_W],

    [x W]_b = x^ [W]_b  +  ([r_x r_W]_b - [r_x]_b W^)

the second part, as much work as the first, is done here. A party with [W]_b = 0 has nothing left to do in the run.

    symbol     here            meaning
    [r]_b      mask            share of the mask of an OPEN value; None is zero
    -          known           part of a share of a SHARED value that is known ahead; None is zero
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError
from confide.mpc.correlations import (
    Bytes,
    DealId,
    Layout,
    Purpose,
    Words,
    drawn,
    drawn_bits,
    drawn_narrow,
    drawn_roots,
)
from confide.mpc.gates import Linear, linear, moved, product, word
from confide.mpc.operations import (
    AnyOperation,
    Convolve,
    Keep,
    Kind,
    Load,
    MatMul,
    Multiply,
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
from confide.mpc.selections import Dealt, dealt

Array = NDArray[Any]
_Any = TypeVar("_Any", bound=Array)


@dataclass(frozen=True, slots=True)
class Held:
    """A party's half of a value: what both know of it (v^, if it is OPEN), and its share of the mask or of the value.

    Args:
        opened: v^, or None if the value is SHARED.
        share: [r]_b of an OPEN value, [v]_b of a SHARED one; None is zero.
        label: 24 bytes, which deal made the mask of an OPEN value that was kept; else b"".
    """

    opened: Words | None = field(repr=False)
    share: Words | None = field(repr=False)
    label: bytes = b""


@dataclass(slots=True)
class Fixed:
    """What follows from the model alone, made once: by the number of the operation.

    Args:
        opened: v^ of OPEN values.
        mask: [r]_b of OPEN values.
        share: [v]_b of OPEN and SHARED values.
    """

    opened: dict[int, Words] = field(default_factory=dict[int, Words], repr=False)
    mask: dict[int, Words | None] = field(default_factory=dict[int, "Words | None"], repr=False)
    share: dict[int, Words | None] = field(default_factory=dict[int, "Words | None"], repr=False)

    @staticmethod
    def of(
        layout: Layout, party: int, model: Mapping[str, Held], *, weights: Mapping[str, Words] | None = None
    ) -> Fixed:
        """Return what follows from a party's half of the model.

        Args:
            layout: of the program.
            party: 0 or 1.
            model: by the names of the loads.
            weights: the weights themselves, at whoever owns the model.
        """
        made = Fixed()
        program = layout.program
        for number, operation in enumerate(program.operations):
            if not layout.fixed[number]:
                continue
            kind = program.values[number].kind
            if isinstance(operation, Load):
                held = model[operation.name]
                if kind is Kind.OPEN:
                    assert held.opened is not None
                    made.opened[number], made.mask[number] = held.opened, held.share
                else:
                    made.share[number] = held.share
            else:
                made._derive(layout, party, number, operation)
            if kind is Kind.OPEN:
                own = None if weights is None or not isinstance(operation, Load) else weights[operation.name]
                made.share[number] = made._share(party, number) if own is None else own
        return made

    def _share(self, party: int, number: int) -> Words | None:
        mask = self.mask[number]
        if party == 0:
            return None if mask is None else np.negative(mask)
        return self.opened[number] if mask is None else np.subtract(self.opened[number], mask)

    def _derive(self, layout: Layout, party: int, number: int, operation: AnyOperation) -> None:
        taken = operands(operation)
        shapes = [layout.program.values[one].shape for one in taken]
        both_open = layout.program.values[number].kind is Kind.OPEN
        if isinstance(operation, Shift):
            a = operation.a
            if both_open:
                self.opened[number], self.mask[number] = np.add(self.opened[a], word(operation.by)), self.mask[a]
            else:
                self.share[number] = shifted(self.share[a], operation.by, party, shapes[0])
        elif isinstance(operation, Keep):
            raise ProtocolError("Expected a value of the run where one is kept; the model's stays as it is")
        elif isinstance(operation, Linear):
            if both_open:
                opened = linear(operation, [self.opened[one] for one in taken], shapes)
                assert opened is not None
                self.opened[number] = opened
                self.mask[number] = linear(operation, [self.mask[one] for one in taken], shapes)
            else:
                self.share[number] = linear(operation, [self.share[one] for one in taken], shapes)


def shifted(part: Words | None, by: int, party: int, shape: tuple[int, ...]) -> Words | None:
    """Return a share plus a public integer: party 1 adds it."""
    if party == 0 or by == 0:
        return part
    return np.broadcast_to(word(by), shape) if part is None else np.add(part, word(by))


@dataclass(slots=True)
class Selection:
    """A party's shares of what a bit is multiplied by, and of that times the mask beta of the bit."""

    whole: Dealt
    chosen: Dealt


@dataclass(slots=True)
class Ready:
    """One run's correlations at a party, made ready: by the number of the operation. No repr shows any of it."""

    deal_id: DealId
    mask: dict[int, Words | None] = field(default_factory=dict[int, "Words | None"], repr=False)
    known: dict[int, Words | None] = field(default_factory=dict[int, "Words | None"], repr=False)
    opening: dict[int, Words] = field(default_factory=dict[int, Words], repr=False)
    roots: dict[int, Bytes] = field(default_factory=dict[int, Bytes], repr=False)
    rho: dict[int, Bytes] = field(default_factory=dict[int, Bytes], repr=False)
    bit: dict[int, Words] = field(default_factory=dict[int, Words], repr=False)  # [beta]_b
    tops: dict[int, Dealt] = field(default_factory=dict[int, Dealt], repr=False)
    selection: dict[int, Selection] = field(default_factory=dict[int, Selection], repr=False)
    waves: dict[int, Words] = field(default_factory=dict[int, Words], repr=False)
    zero: dict[int, Words] = field(default_factory=dict[int, Words], repr=False)
    corrections: dict[int, bytes] = field(default_factory=dict[int, bytes], repr=False)

    secrets: list[Array] = field(default_factory=list[Array], repr=False)

    def own(self, array: _Any) -> _Any:
        """Note that an array was made for this run alone, so that `wipe` overwrites it; return it."""
        self.secrets.append(array)
        return array

    @property
    def size_bytes(self) -> int:
        """Return what it takes in memory."""
        return sum(each.nbytes for each in self.secrets) + sum(map(len, self.corrections.values()))

    def wipe(self) -> None:
        """Overwrite what was made for this run with zeros, and forget the rest."""
        for each in self.secrets:
            each.fill(0)
        self.secrets.clear()
        found = self.mask, self.known, self.opening, self.roots, self.rho, self.bit, self.waves, self.zero
        for each in (*found, self.tops, self.selection, self.corrections):
            each.clear()


def prepare(
    layout: Layout,
    party: int,
    key: bytes,
    deal_id: DealId,
    words: bytes,
    fixed: Fixed,
    *,
    state: Mapping[str, Held] | None = None,
) -> Ready:
    """Return a party's correlations of one run, made ready; corrections are added as they come (`add_corrections`).

    Args:
        layout: of the program.
        party: 0 or 1.
        key: shared with the dealer.
        deal_id: of this deal.
        words: P1's words; b"" at P0.
        fixed: what follows from the model.
        state: values that live on between programs, by name.

    Raises:
        ProtocolError: the words have another length, or a state is not there.
    """
    expected = layout.words_bytes if party else 0
    if len(words) != expected:
        raise ProtocolError(f"Expected {expected} bytes of correlations, got {len(words)}")
    made = _Preparation(layout, party, deal_id.seed(key), words, fixed, {} if state is None else state, Ready(deal_id))
    for number, operation in enumerate(layout.program.operations):
        if not layout.fixed[number]:
            made.visit(number, operation)
    return made.ready


def add_corrections(layout: Layout, ready: Ready, place: int, body: bytes) -> None:
    """Take the corrections of the batch at `place`. Raises ProtocolError if their length is not the program's."""
    batch = layout.batches[place]
    if len(body) != batch.size_bytes:
        raise ProtocolError(f"Expected {batch.size_bytes} bytes of corrections, got {len(body)}")
    ready.corrections[batch.operation] = body


class _Preparation:
    """One walk over the program, on shares of masks."""

    def __init__(
        self,
        layout: Layout,
        party: int,
        seed: bytes,
        words: bytes,
        fixed: Fixed,
        state: Mapping[str, Held],
        ready: Ready,
    ) -> None:
        self.layout, self.program, self.party = layout, layout.program, party
        self.seed, self.words, self.fixed, self.state, self.ready = seed, words, fixed, state, ready

    def visit(self, number: int, operation: AnyOperation) -> None:
        """Prepare one operation, once those before it are."""
        ready, value = self.ready, self.program.values[number]
        match operation:
            case Load():
                self._load(number, operation)
            case Open():
                mask = self._fresh(number)
                ready.mask[number] = mask
                known = self.known(operation.a)
                ready.opening[number] = mask if known is None else ready.own(np.add(known, mask))
            case MatMul() | Convolve() | Multiply():
                ready.known[number] = self._product(number, operation)
            case Truncate(a, bits, _):
                ready.tops[number] = self._tops(a, bits)
            case Sign():
                self._sign(number, value.count, value.shape)
            case Select(_, a, bits):
                if bits:
                    ready.tops[number] = self._tops(a, bits)
                ready.selection[number] = self._selection(number, operation)
            case Periodic(_, _, _, sines):
                ready.waves[number] = self._dealt(number, Purpose.WAVES).reshape(2, len(sines), value.count)
            case Reveal() if (number, Purpose.ZERO) in self.layout.segments:
                ready.zero[number] = self._dealt(number, Purpose.ZERO).reshape(value.shape)
            case Reshape() | Slice() if value.kind is Kind.BIT:
                if operation.a in ready.bit:
                    ready.bit[number] = moved(operation, ready.bit[operation.a])
            case Shift(a, by):
                if value.kind is Kind.OPEN:
                    ready.mask[number] = self.mask(a)
                else:
                    ready.known[number] = shifted(self.known(a), by, self.party, value.shape)
            case Keep(a):
                if value.kind is Kind.OPEN:
                    ready.mask[number] = self.mask(a)
                else:
                    ready.known[number] = self.known(a)
            case _ if isinstance(operation, Linear):
                self._linear(number, operation)
            case _:
                pass

    def mask(self, number: int) -> Words | None:
        """Return the share of the mask of an OPEN value."""
        return self.fixed.mask[number] if self.layout.fixed[number] else self.ready.mask[number]

    def known(self, number: int) -> Words | None:
        """Return the part of a share that is known ahead."""
        if self.program.values[number].kind is Kind.OPEN:
            mask = self.mask(number)
            return None if mask is None else np.negative(mask)
        return self.fixed.share[number] if self.layout.fixed[number] else self.ready.known.get(number)

    def _load(self, number: int, load: Load) -> None:
        if load.origin == "state":
            held = self.state.get(load.name)
            fits = held is not None and (held.opened is not None) == (load.kind is Kind.OPEN)
            if held is None or not fits or (held.share is not None and held.share.shape != load.shape):
                raise ProtocolError(f"Expected the state {load.name!r} of shape {load.shape}; keep it first")
            if load.kind is Kind.OPEN:
                self.ready.mask[number] = held.share
        elif load.kind is Kind.OPEN:
            theirs_alone = self.layout.owned and self.party == 1  # the client's own mask: party 1 has no share of it
            self.ready.mask[number] = None if theirs_alone else self._fresh(number)

    def _fresh(self, number: int) -> Words:
        value = self.program.values[number]
        return self.ready.own(drawn(self.seed, number, Purpose.MASK, value.count)).reshape(value.shape)

    def _dealt(self, number: int, purpose: Purpose) -> Words:
        """Return this party's share of dealt words, flat."""
        segment = self.layout.segments[number, purpose]
        if self.party:
            return segment.view(self.words).astype(np.uint64, copy=False)
        if segment.dtype.itemsize == 8:
            return self.ready.own(drawn(self.seed, number, purpose, segment.count))
        return drawn_narrow(self.seed, number, purpose, segment.count, segment.dtype).astype(np.uint64)

    def _product(self, number: int, operation: MatMul | Convolve | Multiply) -> Words:
        a, b = operation.a, operation.b
        made = self._dealt(number, Purpose.PRODUCT).reshape(self.program.values[number].shape)
        if self.layout.fixed[b]:
            pair = self._negative(a), self.fixed.opened[b]
        elif self.layout.fixed[a]:
            pair = self.fixed.opened[a], self._negative(b)
        else:
            return made
        if pair[0] is None or pair[1] is None:
            return made
        return product(operation, pair[0], pair[1], out=self.ready.own(np.array(made)) if self.party else made)

    def _negative(self, number: int) -> Words | None:
        mask = self.mask(number)
        return None if mask is None else np.negative(mask)

    def _as_dealt(self, number: int, purpose: Purpose) -> NDArray[np.unsignedinteger]:
        """Return this party's share of dealt numbers in the type in which they come, flat."""
        segment = self.layout.segments[number, purpose]
        if self.party:
            return segment.view(self.words)
        return self.ready.own(drawn_narrow(self.seed, number, purpose, segment.count, segment.dtype))

    def _tops(self, a: int, bits: int) -> Dealt:
        owner = self.layout.shifted[a, bits]
        if owner in self.ready.tops:
            return self.ready.tops[owner]
        return dealt(self._dealt(owner, Purpose.SHIFTED), self._as_dealt(owner, Purpose.TOP))

    def _selection(self, number: int, operation: Select) -> Selection:
        """Return shares of what `Select` chooses from: u and m, or the mask itself; and those times beta."""
        beta_shifted = self._dealt(number, Purpose.BETA_SHIFTED)
        if operation.bits:
            chosen = dealt(beta_shifted, self._as_dealt(number, Purpose.BETA_TOP))
            return Selection(self.ready.tops[number], chosen)
        mask = self.mask(operation.a)
        whole = np.zeros(len(beta_shifted), np.uint64) if mask is None else self._contiguous(mask)
        return Selection(dealt(whole), dealt(beta_shifted))

    def _contiguous(self, words: Words) -> Words:
        made = np.ascontiguousarray(words)
        return made if made is words or np.may_share_memory(made, words) else self.ready.own(made)

    def _sign(self, number: int, count: int, shape: tuple[int, ...]) -> None:
        self.ready.roots[number] = self.ready.own(drawn_roots(self.seed, number, count))
        self.ready.rho[number] = self.ready.own(drawn_bits(self.seed, number, count))
        if (number, Purpose.BETA) in self.layout.segments:
            self.ready.bit[number] = self._dealt(number, Purpose.BETA).reshape(shape)

    def _linear(self, number: int, operation: Linear) -> None:
        taken = operands(operation)
        shapes = [self.program.values[one].shape for one in taken]
        opened = self.program.values[number].kind is Kind.OPEN
        parts = [self.mask(one) if opened else self.known(one) for one in taken]
        made = linear(operation, parts, shapes)
        if made is not None and made.base is None and not any(made is part for part in parts):
            self.ready.own(made)
        (self.ready.mask if opened else self.ready.known)[number] = made
