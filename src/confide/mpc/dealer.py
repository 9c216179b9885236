"""The dealer: makes the correlations of one run from shapes, windows and seeds; it never sees a weight or an input.

It walks the program on masks alone: the mask r of every opened value, the mask beta of every bit. What P1 needs beyond
its streams is written once, where it travels; comparison keys follow batch by batch, in the order of use, so that the
first can leave before the last are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError
from confide.mpc import dcf
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
    model_seed,
    nonce,
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
from confide.mpc.periodic import Series, dealt
from confide.mpc.streams import stream


@dataclass(frozen=True, slots=True)
class Masked:
    """What the dealer knows of a masked value that lives on between programs: its mask, and which deal made it.

    Args:
        mask: uint64, in the value's shape.
        label: 24 bytes, the id of the deal that kept it; the parties' have the same.
    """

    mask: Words
    label: bytes

    def __repr__(self) -> str:
        return f"Masked({self.mask.shape})"


@dataclass(slots=True)
class Seeds:
    """The keys that a dealer shares with P0 and with P1 for one run (32 bytes each). No repr shows them."""

    client: bytes = field(repr=False)
    server: bytes = field(repr=False)

    def of(self, deal: DealId) -> tuple[bytes, bytes]:
        """Return the seeds of one deal."""
        return deal.seed(self.client), deal.seed(self.server)


def model_masks(layout: Layout, seeds: Seeds, run: bytes) -> dict[int, Words]:
    """Return r = -A of every masked weight, by the number of its load."""
    sides = (seeds.server,) if layout.owned else (seeds.client, seeds.server)
    found: dict[int, Words] = {}
    for place, (number, load) in enumerate(layout.model(Kind.OPEN)):
        shares = [model_mask_share(model_seed(side, run), place, load) for side in sides]
        found[number] = shares[0] if len(shares) == 1 else np.add(shares[0], shares[1])
    return found


def model_mask_share(seed: bytes, place: int, load: Load) -> Words:
    """Return a party's share of the mask of the weight that comes `place`-th by name."""
    count = int(np.prod(load.shape, dtype=np.int64))
    return np.negative(stream(seed, nonce(place, Purpose.MODEL), count)).reshape(load.shape)


def deal(
    layout: Layout,
    seeds: Seeds,
    deal_id: DealId,
    *,
    model: Mapping[int, Words],
    state: dict[str, Masked] | None = None,
) -> Iterator[bytes]:
    """Yield what is dealt for one run: P1's words first, then the corrections of each batch, for P0 and P1 alike.

    Args:
        layout: of the program.
        seeds: the keys shared with P0 and P1.
        deal_id: never used before.
        model: what `model_masks` returned.
        state: masks that live on between programs, by name; read by loads, and written by `Keep` before anything is
            yielded.

    Raises:
        ProtocolError: the program loads a state that nobody kept.
    """
    made = _Deal(layout, seeds.of(deal_id), model, {} if state is None else state, deal_id.encode())
    yield made.words()
    for batch in layout.batches:
        roots = [drawn_roots(seed, batch.operation, batch.count) for seed in made.seeds]
        alpha = made.thresholds.pop(batch.operation)
        yield dcf.generate(roots[0], roots[1], alpha, batch.bits, deal_id.comparison_key(batch.operation)).tobytes()


class _Deal:
    """One walk over the program, on masks."""

    def __init__(
        self,
        layout: Layout,
        seeds: tuple[bytes, bytes],
        model: Mapping[int, Words],
        state: dict[str, Masked],
        label: bytes,
    ) -> None:
        self.layout, self.program, self.seeds = layout, layout.program, seeds
        self.model, self.state, self.label = model, state, label
        self.body = bytearray(layout.words_bytes)
        self.masks: dict[int, Words] = {}
        self.betas: dict[int, Bytes] = {}
        self.thresholds: dict[int, Words] = {}
        self.tops: dict[tuple[int, int], tuple[Words, Words]] = {}  # u and msb(r) by (value, bits)

    def words(self) -> bytes:
        """Return P1's words, and leave the thresholds of the comparison keys in `thresholds`."""
        kept: dict[str, Masked] = {}
        for number, operation in enumerate(self.program.operations):
            if isinstance(operation, Keep) and operation.a in self.masks:
                kept[operation.name] = Masked(np.array(self.masks[operation.a]), self.label)
            self._visit(number, operation)
        self.state.update(kept)
        return bytes(self.body)

    def _visit(self, number: int, operation: AnyOperation) -> None:
        value = self.program.values[number]
        match operation:
            case Load():
                if operation.kind is Kind.OPEN:
                    self.masks[number] = self._loaded(number, operation)
            case Open():
                self.masks[number] = self._fresh(number)
            case MatMul() | Convolve() | Multiply():
                made = product(operation, self.masks[operation.a], self.masks[operation.b])
                self._share(number, Purpose.PRODUCT, made)
            case Truncate():
                self._shifted(number, operation.a, operation.bits)
            case Sign():
                self._sign(number, operation)
            case Select():
                self._select(number, operation)
            case Periodic():
                self._periodic(number, operation)
            case Reveal() if (number, Purpose.ZERO) in self.layout.segments:
                self._share(number, Purpose.ZERO, np.zeros(value.count, np.uint64))
            case Reshape() | Slice() if value.kind is Kind.BIT:
                self.betas[number] = moved(operation, self.betas[operation.a])
            case Shift() | Keep() if value.kind is Kind.OPEN:
                self.masks[number] = self.masks[operation.a]
            case _ if isinstance(operation, Linear) and value.kind is Kind.OPEN:
                self.masks[number] = self._linear(operation)
            case _:
                pass

    def _linear(self, operation: Linear) -> Words:
        taken = operands(operation)
        shapes = [self.program.values[one].shape for one in taken]
        found = linear(operation, [self.masks[one] for one in taken], shapes)
        assert found is not None
        return found

    def _loaded(self, number: int, load: Load) -> Words:
        """Return the mask of a masked value that is loaded."""
        if load.origin == "model":
            return self.model[number]
        if load.origin == "input":
            return self._fresh(number, client_only=self.layout.owned)
        kept = self.state.get(load.name)
        if kept is None or kept.mask.shape != load.shape:
            raise ProtocolError(f"Expected a masked state {load.name!r} of shape {load.shape}; keep it first")
        return kept.mask

    def _fresh(self, number: int, *, client_only: bool = False) -> Words:
        value = self.program.values[number]
        shares = [drawn(seed, number, Purpose.MASK, value.count) for seed in self.seeds[: 1 if client_only else 2]]
        if not client_only:
            np.add(shares[0], shares[1], out=shares[0])
        return shares[0].reshape(value.shape)

    def _share(self, number: int, purpose: Purpose, values: NDArray[Any]) -> None:
        """Write P1's share of dealt values where it travels: the values minus P0's stream."""
        segment = self.layout.segments[number, purpose]
        out = np.frombuffer(self.body, segment.dtype, segment.count, segment.offset)
        if segment.dtype.itemsize == 8:
            theirs = drawn(self.seeds[0], number, purpose, segment.count)
        else:
            theirs = drawn_narrow(self.seeds[0], number, purpose, segment.count, segment.dtype)
        flat = values.reshape(-1)
        np.subtract(flat if flat.dtype == segment.dtype else flat.astype(segment.dtype), theirs, out=out)

    def _shifted(self, number: int, a: int, bits: int) -> tuple[Words, Words]:
        """Return u = r >> bits and msb(r) of a value, dealt if this is their first use."""
        if (a, bits) not in self.tops:
            mask = self.masks[a]
            self.tops[a, bits] = np.right_shift(mask, np.uint64(bits)), np.right_shift(mask, np.uint64(63))
            if self.layout.shifted[a, bits] == number:
                self._share(number, Purpose.SHIFTED, self.tops[a, bits][0])
                self._share(number, Purpose.TOP, self.tops[a, bits][1])
        return self.tops[a, bits]

    def _sign(self, number: int, operation: Sign) -> None:
        count = self.program.values[number].count
        window, drop = operation.window, operation.drop
        q = np.right_shift(self.masks[operation.a].reshape(-1), np.uint64(drop))
        q &= word((1 << (window + 1 - drop)) - 1)
        self.thresholds[number] = q  # alpha is the low bits
        beta = (q >> np.uint64(window - drop)).astype(np.uint8)
        beta ^= np.uint8(1)
        for seed in self.seeds:
            beta ^= drawn_bits(seed, number, count)
        self.betas[number] = beta.reshape(self.program.values[number].shape)
        if (number, Purpose.BETA) in self.layout.segments:
            self._share(number, Purpose.BETA, beta)

    def _select(self, number: int, operation: Select) -> None:
        keep = np.negative(self.betas[operation.bit].astype(np.uint64))  # all ones where beta is 1
        if operation.bits:
            shifted, top = self._shifted(number, operation.a, operation.bits)
            self._share(number, Purpose.BETA_TOP, top & keep)
        else:
            shifted = self.masks[operation.a]
        self._share(number, Purpose.BETA_SHIFTED, shifted & keep)

    def _periodic(self, number: int, operation: Periodic) -> None:
        series = Series(operation.period, operation.cosines, operation.sines)
        waves = dealt(series, self.masks[operation.a].reshape(-1))
        self._share(number, Purpose.WAVES, np.concatenate([part.reshape(-1) for part in waves]))
