"""Two parties and a dealer in one process, and what they must find: a program on integers, given the dealer's masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness, SystemRandomness
from confide.mpc import operations as op
from confide.mpc.ahead import Fixed, Held, add_corrections, prepare
from confide.mpc.correlations import DealId, Layout, Purpose, drawn, model_seed
from confide.mpc.dealer import Masked, Seeds, deal, model_mask_share, model_masks
from confide.mpc.operations import Kind, Program
from confide.mpc.party import Outcome, Place, run_program, schedule_of
from confide.wire import Transcript, run
from mpc import plain

NAMES = ("client", "server")
RNG = SystemRandomness()


@dataclass
class Table:
    """A dealer and two parties with keys and a model, for programs that come one after the other.

    Args:
        owned: whether P0 brings the inputs and P1 has the model.
        model: uint64 words by name.
    """

    owned: bool = True
    model: Mapping[str, NDArray[np.uint64]] = field(default_factory=dict)
    rng: Randomness = RNG

    def __post_init__(self) -> None:
        self.seeds = Seeds(self.rng.bytes(32), self.rng.bytes(32))
        self.run_id = self.rng.bytes(16)
        self.counter = 0
        self.masks: dict[str, Masked] = {}  # the dealer's state
        self.states: list[dict[str, Held]] = [{}, {}]
        half = {
            name: np.frombuffer(self.rng.bytes(w.nbytes), np.uint64).reshape(w.shape) for name, w in self.model.items()
        }
        self.shares = [half, {name: w - half[name] for name, w in self.model.items()}]
        if self.owned:
            self.shares = [{}, dict(self.model)]

    def keys(self) -> tuple[bytes, bytes]:
        return self.seeds.client, self.seeds.server

    def fixed(self, layout: Layout) -> list[Fixed]:
        held: list[dict[str, Held]] = [{}, {}]
        for place, (number, load) in enumerate(layout.model(Kind.OPEN)):
            opened = self.model[load.name] + model_masks(layout, self.seeds, self.run_id)[number]
            for party in (0, 1):
                mask = (
                    None
                    if self.owned and party == 0
                    else model_mask_share(model_seed(self.keys()[party], self.run_id), place, load)
                )
                held[party][load.name] = Held(opened, mask)
        for _, load in layout.model(Kind.SHARED):
            for party in (0, 1):
                held[party][load.name] = Held(None, self.shares[party].get(load.name))
        return [
            Fixed.of(layout, party, held[party], weights=self.model if self.owned and party else None)
            for party in (0, 1)
        ]

    def play(self, program: Program, inputs: Mapping[str, Any], *, fault=None, split: bool = True) -> Played:
        """Deal for a program and run it; inputs are words, which P0 owns, or which are shared here."""
        layout = Layout.of(program, owned=self.owned)
        deal_id = DealId(self.run_id, self.counter)
        self.counter += 1
        before = dict(self.masks)
        model = model_masks(layout, self.seeds, self.run_id)
        words, *corrections = list(deal(layout, self.seeds, deal_id, model=model, state=self.masks))
        shares: list[dict[str, NDArray[np.uint64]]] = [dict(inputs), {}]
        if not self.owned and split:
            noise = {
                name: np.frombuffer(self.rng.bytes(8 * w.size), np.uint64).reshape(w.shape)
                for name, w in inputs.items()
            }
            shares = [noise, {name: w - noise[name] for name, w in inputs.items()}]
        fixed, parties = self.fixed(layout), {}
        for party, name in enumerate(NAMES):
            ready = prepare(
                layout,
                party,
                self.keys()[party],
                deal_id,
                words if party else b"",
                fixed[party],
                state=self.states[party],
            )
            for place, body in enumerate(corrections):
                add_corrections(layout, ready, place, body)
            parties[name] = run_program(
                Place(party, NAMES, "test"), layout, schedule_of(layout), fixed[party], ready, shares[party],
                state=self.states[party],
            )  # fmt: skip
        transcript = run(parties, fault=fault)
        outcomes = [transcript.outputs.get(name, Outcome()) for name in NAMES]
        for state, outcome in zip(self.states, outcomes, strict=True):
            state.update(outcome.state)
        return Played(self, layout, deal_id, model, before, transcript, outcomes)


@dataclass
class Played:
    """What came of one program."""

    table: Table
    layout: Layout
    deal_id: DealId
    model: Mapping[int, NDArray[np.uint64]]
    state: Mapping[str, Masked]
    transcript: Transcript
    outcomes: list[Outcome]

    def output(self, name: str = "y") -> NDArray[np.int64]:
        """The integers that were told under a name."""
        assert not self.transcript.failures, self.transcript.failures
        parts = [outcome.outputs[name] for outcome in self.outcomes if name in outcome.outputs]
        if parts[0].dtype == np.uint8:
            return (parts[0] if len(parts) == 1 else parts[0] ^ parts[1]).astype(np.int64)
        bits = next(o.bits for o in self.layout.program.operations if isinstance(o, op.Reveal) and o.name == name)
        if len(parts) == 1:
            return parts[0].view(np.int64)
        with np.errstate(over="ignore"):
            total = parts[0] + parts[1] + np.uint64(bits > 0)
        return (total << np.uint64(bits)).view(np.int64) >> bits

    def emulated(self, loaded: Mapping[str, Any], name: str = "y") -> NDArray[np.int64]:
        """What had to be told, from the masks alone: rounding and slips are functions of value and mask."""
        return emulate(self, loaded).outputs[name]


@dataclass
class Emulation:
    """A program in the clear, with the masks r of its opened values."""

    masks: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    values: list[NDArray[np.int64]] = field(default_factory=list)
    outputs: dict[str, NDArray[np.int64]] = field(default_factory=dict)


def emulate(played: Played, loaded: Mapping[str, Any]) -> Emulation:
    """Run a program on integers. Linear operations and products are those of `plain`; what depends on r is here:

    Truncate   floor((y + (r mod 2^f)) / 2^f), for y in [-2^62, 2^62)
    Sign       whether floor((d + (r mod 2^s)) / 2^s) is at least 0, modulo 2^(B + 1 - s)
    """
    program, table = played.layout.program, played.table
    seeds = table.seeds.of(played.deal_id)
    found = Emulation()

    def fresh(number: int, sides: int) -> NDArray[np.uint64]:
        value = program.values[number]
        parts = [drawn(seed, number, Purpose.MASK, value.count).reshape(value.shape) for seed in seeds[:sides]]
        with np.errstate(over="ignore"):
            return sum(parts[1:], parts[0])

    for number, operation in enumerate(program.operations):
        given = [found.values[one] for one in op.operands(operation)]
        taken = [found.masks.get(one) for one in op.operands(operation)]
        value = program.values[number]
        with np.errstate(over="ignore"):
            match operation:
                case op.Truncate(_, bits):
                    made = _shifted(given[0], taken[0], bits)
                case op.Sign(_, window, drop):
                    made = _nonnegative(given[0], taken[0], window, drop)
                case op.Select(_, _, bits):
                    made = given[0] * (_shifted(given[1], taken[1], bits) if bits else given[1])
                case _:
                    made = plain._made(operation, given, loaded)
            if value.kind is Kind.OPEN:
                match operation:
                    case op.Open():
                        found.masks[number] = fresh(number, 2)
                    case op.Load(name, _, _, _, "input"):
                        found.masks[number] = fresh(number, 1 if played.layout.owned else 2)
                    case op.Load(_, _, _, _, "model"):
                        found.masks[number] = played.model[number]
                    case op.Load(name, _, _, _, "state"):
                        found.masks[number] = played.state[name].mask
                    case op.Shift() | op.Keep():
                        found.masks[number] = taken[0]
                    case _:
                        masks = [one.view(np.int64) for one in taken]
                        found.masks[number] = plain._made(operation, masks, {}).view(np.uint64)
        found.values.append(made)
        if isinstance(operation, op.Reveal):
            found.outputs[operation.name] = made
    return found


def _shifted(y: NDArray[np.int64], r: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    low = (r & np.uint64((1 << bits) - 1)).astype(np.int64)
    return (y + low) >> bits


def _nonnegative(d: NDArray[np.int64], r: NDArray[np.uint64], window: int, drop: int) -> NDArray[np.int64]:
    low = (r & np.uint64((1 << drop) - 1)).astype(np.int64)
    return 1 - ((d + low) >> window & 1)
