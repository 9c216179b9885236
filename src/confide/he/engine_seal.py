"""Networks under CKKS, one row in one ciphertext: the client's half, and the execution of a plan at the server.

The plan says what to compute, at which level and scale; here it is encoded and executed, on any `Arithmetic`: SEAL's
or the native one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.he import diagonals
from confide.he.arithmetic import Arithmetic, Encoder, Shape
from confide.he.encode import in_box
from confide.he.engine_native import Engine, machine
from confide.he.engine_steps import Combination, Steps
from confide.he.error_bound import error_bound
from confide.he.machines import Keys
from confide.he.normalise import Constants, Ready
from confide.he.plan_network import NetworkPlan
from confide.he.seal import CONJUGATION, Context, Plaintext, PublicKeys, SecretKey
from confide.he.shapes import LinearMap
from confide.he.stages import Combined, Mapped, Multiplied

Matrix = NDArray[np.float64]

C = TypeVar("C")
P = TypeVar("P")


class NetworkClient:
    """The client's half: public tables of one plan.

    Args:
        plan: a stranger's, checked.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        self._reply = self.context.form(limbs=plan.reply_limbs, ntt=True, scale=plan.reply_scale)
        self._labels = plan.entry.labels(plan.slots)
        self._places = plan.packed.slots_of()

    def encrypt(self, secret: SecretKey, x: Matrix) -> tuple[bytes, ...]:
        """Return one fresh encryption per row of `x`, shape (rows, features).

        Raises:
            DataError: `x` is not in the certified box.
        """
        normal = in_box(x, self.plan.features, self.plan.input_bound) / self.plan.input_bound
        return tuple(self._encrypt(secret, row) for row in normal)

    def _encrypt(self, secret: SecretKey, row: Matrix) -> bytes:
        halves = [np.where(labels >= 0, row[np.maximum(labels, 0)], 0.0) for labels in self._labels]
        slots = halves[0] if len(halves) == 1 else halves[0] + 1j * halves[1]
        limbs = len(self.plan.parameters.data_primes)
        plain = self.context.encode(slots, limbs=limbs, scale=2.0**self.plan.scale_bits)
        return self.context.to_bytes(secret.encrypt(plain))

    def decrypt(self, secret: SecretKey, ciphertexts: tuple[bytes, ...]) -> Matrix:
        """Return the results in units, shape (rows, outputs); they include noise, so they stay with the client.

        Raises:
            ProtocolError: a malformed reply.
        """
        ciphers = [self.context.load(body, self._reply) for body in ciphertexts]
        return np.stack([self._decoded(secret.decrypt(cipher))[self._places] for cipher in ciphers])

    def _decoded(self, plain: Plaintext) -> Matrix:
        every = self.plan.reply_period
        return self.context.decode_traced(plain, self._reply, every) if every else self.context.decode(plain)


@dataclass(frozen=True, slots=True)
class EncodedMap(Generic[P]):
    """One map as plaintexts (or as ciphertexts): by giant step, (place of the baby, weights); and the bias."""

    giants: list[list[tuple[int, P]]]
    bias: P

    def __repr__(self) -> str:
        return "EncodedMap()"


class NetworkServer:
    """The server's half.

    Args:
        plan: of the model's shape.
        ready: the model, scaled for the plan.
        engine: what executes it.
        threads: that one answer may take.
    """

    def __init__(self, plan: NetworkPlan, ready: Ready, engine: Engine = "auto", threads: int = 1) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        self.error = error_bound(plan, ready)
        self.exponents = np.full(plan.outputs, ready.exponent, np.int64)
        self.machine = machine(self.context, _Computation(plan, ready), engine, threads)

    def keys(self, public: PublicKeys) -> Keys:
        """Return a client's public keys, checked. Raises ProtocolError on any others than the plan's."""
        return self.machine.keys(public, self.plan.needs)

    def answer(self, keys: Keys, ciphertexts: Sequence[bytes], rng: Randomness) -> tuple[bytes, ...]:
        """Return one reply per row.

        Args:
            keys: the client's.
            ciphertexts: a stranger's.
            rng: for the flooding of protected replies.

        Raises:
            ProtocolError: a malformed query.
        """
        return tuple(reply for body in ciphertexts for reply in self.machine.answer(keys, (body,), rng))


class _Computation:
    """One row of a network, with its weights.

    Args:
        plan: of the model's shape.
        ready: the model, scaled for the plan.
    """

    def __init__(self, plan: NetworkPlan, ready: Ready) -> None:
        self._plan, self._ready = plan, ready
        self._steps = Steps(plan)

    @property
    def question(self) -> Shape:
        return Shape(1, len(self._plan.parameters.data_primes), 2.0**self._plan.scale_bits)

    @property
    def reply(self) -> Shape:
        return self._steps.reply

    @property
    def flooding(self) -> float | None:
        return self._steps.flooding

    def encoded(self, encoder: Encoder[P]) -> list[EncodedMap[P] | Combination[P] | None]:
        return [self._encoded(encoder, number, part) for number, part in enumerate(self._ready.parts)]

    def run(self, arithmetic: Arithmetic[C, P], encoded: Any, ciphers: Sequence[C]) -> list[C]:
        return [run(self._plan, arithmetic, encoded, ciphers[0])]

    def _encoded(
        self, encoder: Encoder[P], number: int, part: LinearMap | Constants | None
    ) -> EncodedMap[P] | Combination[P] | None:
        stage = self._plan.stages[number]
        if isinstance(stage, Mapped):
            assert isinstance(part, LinearMap)
            return self._encoded_map(encoder, number, stage, part)
        if isinstance(stage, Combined):
            assert isinstance(part, Constants)
            return self._steps.encoded(encoder, number, stage, part)
        return None

    def _encoded_map(self, encoder: Encoder[P], number: int, stage: Mapped, part: LinearMap) -> EncodedMap[P]:
        plan = self._plan
        before, after = plan.registers[stage.source], plan.registers[number + 1]
        giants: list[list[tuple[int, P]]] = [[] for _ in range(stage.layout.rotations.giant[0])]
        for one in diagonals.diagonals(plan, number, part):
            plain = encoder.weight(one.values, limbs=before.limbs, scale=2.0**stage.weight_bits)
            giants[one.giant].append((one.baby, plain))
        bias = diagonals.bias(plan, number, part)
        return EncodedMap(giants, encoder.encode(bias, limbs=after.limbs, scale=after.scale))


def run(
    plan: NetworkPlan,
    arithmetic: Arithmetic[C, P],
    encoded: Sequence[EncodedMap[P] | Combination[P] | None],
    query: C,
) -> C:
    """Return the last register of a plan, whoever holds the weights.

    Args:
        plan: says what to do.
        arithmetic: does it.
        encoded: the private part of each stage.
        query: the first register.
    """
    steps = Steps(plan)
    last_use = {source: number for number, stage in enumerate(plan.stages) for source in stage.sources}
    registers: dict[int, C] = {0: query}
    for number, (stage, part) in enumerate(zip(plan.stages, encoded, strict=True)):
        match stage:
            case Mapped():
                assert isinstance(part, EncodedMap)
                result = _mapped(plan, arithmetic, number, stage, part, registers[stage.source])
            case Multiplied():
                result = steps.product(arithmetic, number, stage, registers[stage.left], registers[stage.right])
            case Combined():
                assert isinstance(part, Combination)
                result = steps.combine(arithmetic, number, stage, part, [registers[term] for term in stage.terms])
            case _:
                raise AssertionError(type(stage))
        registers[number + 1] = result
        for source in set(stage.sources):
            if last_use[source] == number:
                del registers[source]
    return registers[len(plan.stages)]


def _mapped(
    plan: NetworkPlan, arithmetic: Arithmetic[C, P], number: int, stage: Mapped, encoded: EncodedMap[P], cipher: C
) -> C:
    rotations, slots = stage.layout.rotations, plan.slots
    if rotations.fold:
        cipher = arithmetic.joined(cipher, rotations.fold)
    babies = [(origin, step % slots) for origin, step in rotations.derived()]
    total = arithmetic.transform([cipher], babies, encoded.giants, rotations.giant[1] % slots)
    Steps(plan).divide(arithmetic, number, total, stage.drops)
    groups = [[multiple * step for multiple in range(1, count)] for count, step in rotations.sums]
    arithmetic.fold(total, groups + [[CONJUGATION]] * stage.conjugate)
    return arithmetic.plus_plain(total, encoded.bias)
