"""Three servers in one process for tests: any program, on values that are shared here; and what must come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import SeededRandomness
from confide.mpc import operations as op
from confide.mpc.operations import Kind, Load, Program
from confide.mpc.replicated_holders import Place, run_holder
from confide.mpc.replicated_plan import Plan, plan_of
from confide.mpc.replicated_sessions import joined
from confide.mpc.replicated_shares import Part, drawn, piece_at
from confide.mpc.replicated_third import run_third
from confide.wire import Step, Transcript, run
from mpc import plain

Words = NDArray[np.uint64]
SERVERS = ("server", "helper", "third")
AGREEMENT = b"sixteen bytes or"


@dataclass
class Shared:
    """What the three hold of loaded values, and the masks r = x_1 - x of the OPEN ones."""

    parts: dict[str, dict[str, Part]]
    masks: dict[str, Words]


def share(program: Program, values: Mapping[str, Any], seed: int = 0) -> Shared:
    """Share integers (int64) among the three."""
    stream = np.random.default_rng(seed)
    found = Shared({role: {} for role in SERVERS}, {})
    for load in program.operations:
        if not isinstance(load, Load):
            continue
        value = np.asarray(values[load.name], np.int64).view(np.uint64).reshape(load.shape)
        first, second = (stream.integers(0, 1 << 64, load.shape, np.uint64) for _ in range(2))
        if load.kind is Kind.OPEN:
            masked = value - first - second
            parts = Part(masked, first), Part(masked, second), Part(None, first + second)
            found.masks[load.name] = -(first + second)
        elif load.origin == "state":
            parts = Part(None, first), Part(None, second), Part(None, value - first - second)
        else:
            parts = Part(None, first), Part(None, value - first), Part(None, None)
        for role, part in zip(SERVERS, parts, strict=True):
            found.parts[role][load.name] = part
    return found


def randomness(seed: str = "run") -> dict[str, SeededRandomness]:
    return {role: SeededRandomness(f"{seed} {role}") for role in SERVERS}


def client(tag: str):
    received = yield Step(await_tag=f"{tag}/result", wait_for=("server", "helper"))
    return [received[role].body for role in ("server", "helper")]


@dataclass
class Outcome:
    plan: Plan
    transcript: Transcript
    integers: dict[str, NDArray[np.int64]]
    kept: dict[str, dict[str, Part]]

    def output(self, name: str = "y") -> NDArray[np.float64]:
        """An output as real numbers."""
        scales = {
            operation.name: value.scale
            for operation, value in zip(self.plan.program.operations, self.plan.program.values, strict=True)
            if isinstance(operation, op.Reveal)
        }
        return plain.decoded(self.integers[name], scales[name])


def parties(plan: Plan, parts: Mapping[str, Mapping[str, Part]], *, tag: str = "run", seed: str = "run") -> dict:
    rng = randomness(seed)
    found: dict[str, Any] = {
        role: run_holder(Place(party, tag, AGREEMENT), plan, parts[role], rng[role])
        for party, role in enumerate(("server", "helper"))
    }
    found["third"] = run_third(plan, parts["third"], tag=tag, agreement=AGREEMENT, rng=rng["third"])
    return found | ({"client": client(tag)} if plan.reveals else {})


def compute(
    program: Program,
    values: Mapping[str, Any],
    *,
    seed: str = "run",
    parts: Mapping[str, Any] | None = None,
    fault=None,
) -> Outcome:
    """Run a program on integers by name, or on `parts`."""
    plan = plan_of(program)
    held = share(program, values).parts if parts is None else parts
    transcript = run(parties(plan, held, seed=seed), fault=fault)
    if fault is not None:
        return Outcome(plan, transcript, {}, {})
    assert not transcript.failures, transcript.failures
    outputs = joined(plan, transcript.outputs["client"]) if plan.reveals else {}
    return Outcome(plan, transcript, outputs, {role: transcript.outputs[role] for role in SERVERS})


# --- what must come out, from the masks -------------------------------------------------------------------------------


def emulate(program: Program, values: Mapping[str, Any], *, seed: str = "run") -> dict[str, NDArray[np.int64]]:
    """What the servers reveal, computed from values and masks in the clear, by formulas without shares.

    A truncation gives floor(v / 2^f), plus 1 if the low bits of v and of its mask r carry; a sign sees floor(v / 2^s)
    plus the carry of their low s bits.
    """
    plan = plan_of(program)
    source = randomness(seed)["third"]
    keys = source.bytes(16), source.bytes(16)
    streams = drawn(keys[0], plan.server_stream), drawn(keys[1], plan.helper_stream)
    loaded = share(program, values).masks
    made: list[NDArray[np.int64]] = []
    masks: dict[int, NDArray[np.int64]] = {}
    found: dict[str, NDArray[np.int64]] = {}
    for number, operation in enumerate(program.operations):
        taken = op.operands(operation)
        given = [made[one] for one in taken]
        match operation:
            case op.Load():
                value = np.asarray(values[operation.name], np.int64).reshape(operation.shape)
                if operation.kind is Kind.OPEN:
                    masks[number] = loaded[operation.name].view(np.int64)
            case op.Open():
                value = given[0]
                piece = plan.pieces[number, "share"]
                first, second = piece_at(piece, streams[0], piece.first), piece_at(piece, streams[1], piece.second)
                masks[number] = (-(first + second)).astype(np.uint64).view(np.int64)
            case op.Truncate(a, bits):
                value = _carried(made[a], masks[a], bits)
            case op.Sign(a, window, drop):
                seen = _carried(made[a], masks[a], drop) & ((1 << (window + 1 - drop)) - 1)
                value = (seen < 1 << (window - drop)).astype(np.int64)
            case op.Select(bit, a, bits):
                value = made[bit] * _carried(made[a], masks[a], bits)
            case op.Reveal():
                value = given[0]
                found[operation.name] = value
            case _:
                value = plain._made(operation, given, {})
                if program.values[number].kind is Kind.OPEN:
                    own = [masks[one] for one in taken]
                    masks[number] = own[0] if isinstance(operation, op.Shift) else plain._made(operation, own, {})
        made.append(value)
    return found


def _carried(v: NDArray[np.int64], r: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    low = (1 << bits) - 1
    return (v >> bits) + (((v & low) + (r & low)) >> bits)
