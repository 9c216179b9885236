"""Networks under CKKS on Microsoft SEAL: the client's half, and the engine that executes a plan at the server.

The plan says what to compute, at which level and scale; this engine only encodes and executes. Another engine can take
the same plan, the same weights (`diagonals`) and the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.he import diagonals
from confide.he.encode import in_box
from confide.he.engine_steps import Combination, Steps
from confide.he.error_bound import error_bound
from confide.he.normalise import Constants, Ready
from confide.he.packing import imaginary
from confide.he.plan_network import NetworkPlan
from confide.he.seal import Ciphertext, Context, Evaluation, Plaintext, SecretKey, refusing_transparent
from confide.he.shapes import LinearMap
from confide.he.stages import Combined, Mapped, Multiplied

Matrix = NDArray[np.float64]


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
        return np.stack([self.context.decode(secret.decrypt(cipher))[self._places] for cipher in ciphers])


@dataclass(frozen=True, slots=True)
class EncodedMap:
    """One map as plaintexts, or all as ciphertexts: by giant step, (place of the baby, weights); and the bias."""

    giants: list[list[tuple[int, Plaintext | Ciphertext]]]
    bias: Plaintext | Ciphertext

    def __repr__(self) -> str:
        return "EncodedMap()"


Encoded = EncodedMap | Combination | None


class NetworkServer:
    """The server's half: the weights as plaintexts, and the execution.

    Args:
        plan: of the model's shape.
        ready: the model, scaled for the plan.
    """

    def __init__(self, plan: NetworkPlan, ready: Ready) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        self._steps = Steps(plan, self.context)
        self.error = error_bound(plan, ready)
        self.exponents = np.full(plan.outputs, ready.exponent, np.int64)
        limbs = len(plan.parameters.data_primes)
        self._query = self.context.form(limbs=limbs, ntt=True, scale=2.0**plan.scale_bits)
        self._encoded = [self._encode(number, part) for number, part in enumerate(ready.parts)]
        self._execution = Execution(plan, self._steps)

    def answer(self, keys: Evaluation, ciphertexts: Sequence[bytes], rng: Randomness) -> tuple[bytes, ...]:
        """Return one reply per row.

        Args:
            keys: the client's.
            ciphertexts: a stranger's.
            rng: for the flooding of protected replies.

        Raises:
            ProtocolError: a malformed query.
        """
        queries = [self.context.load(body, self._query) for body in ciphertexts]
        with refusing_transparent():
            return tuple(
                self._steps.leave(keys, self._execution.run(keys, self._encoded, query), rng) for query in queries
            )

    # --- encoding -----------------------------------------------------------------------------------------------------

    def _encode(self, number: int, part: LinearMap | Constants | None) -> Encoded:
        stage = self.plan.stages[number]
        if isinstance(stage, Mapped):
            assert isinstance(part, LinearMap)
            return self._encode_map(number, stage, part)
        if isinstance(stage, Combined):
            assert isinstance(part, Constants)
            return self._steps.encoded(number, stage, part)
        return None

    def _encode_map(self, number: int, stage: Mapped, part: LinearMap) -> EncodedMap:
        before, after = self.plan.registers[stage.source], self.plan.registers[number + 1]
        giants: list[list[tuple[int, Plaintext | Ciphertext]]] = [[] for _ in range(stage.layout.rotations.giant[0])]
        for one in diagonals.diagonals(self.plan, number, part):
            plain = self._steps.nonzero(one.values, before.limbs, 2.0**stage.weight_bits)
            giants[one.giant].append((one.baby, plain))
        bias = diagonals.bias(self.plan, number, part)
        return EncodedMap(giants, self.context.encode(bias, limbs=after.limbs, scale=after.scale))


class Execution:
    """The execution of a plan, whoever holds the weights.

    Args:
        plan: says what to do.
        steps: of its parameters.
    """

    def __init__(self, plan: NetworkPlan, steps: Steps) -> None:
        self.plan = plan
        self.context = steps.context
        self._steps = steps
        sources = [source for stage in plan.stages for source in stage.sources]
        mapped = [stage for stage in plan.stages if isinstance(stage, Mapped) and stage.layout.rotations.fold]
        folded = {plan.registers[stage.source].limbs for stage in mapped}
        units = imaginary(plan.slots)
        self._units = {limbs: self.context.encode(units, limbs=limbs, scale=1.0) for limbs in folded}
        self._last_use = {
            source: max(n for n, s in enumerate(plan.stages) if source in s.sources) for source in sources
        }

    def run(self, keys: Evaluation, encoded: Sequence[Encoded], query: Ciphertext) -> Ciphertext:
        """Return the last register.

        Args:
            keys: the client's.
            encoded: the private part of each stage.
            query: the first register.
        """
        registers: dict[int, Ciphertext] = {0: query}
        for number, (stage, part) in enumerate(zip(self.plan.stages, encoded, strict=True)):
            match stage:
                case Mapped():
                    assert isinstance(part, EncodedMap)
                    result = self._map(keys, number, stage, part, registers[stage.source])
                case Multiplied():
                    result = self._steps.product(keys, number, stage, registers[stage.left], registers[stage.right])
                case Combined():
                    assert isinstance(part, Combination)
                    result = self._steps.combine(number, stage, part, [registers[term] for term in stage.terms])
                case _:
                    raise AssertionError(type(stage))
            registers[number + 1] = result
            for source in set(stage.sources):
                if self._last_use[source] == number:
                    del registers[source]
        return registers[len(self.plan.stages)]

    def _map(self, keys: Evaluation, number: int, stage: Mapped, encoded: EncodedMap, cipher: Ciphertext) -> Ciphertext:
        rotations, slots = stage.layout.rotations, self.plan.slots
        if rotations.fold:
            half = keys.rotate(cipher, rotations.fold)
            whole = self.context.times_plain(half, self._units[self.plan.registers[stage.source].limbs])
            self.context.add(whole, cipher)
            cipher = whole
        babies = {-1: cipher}
        for origin, line in rotations.lines():
            for place, step in line:
                babies[place] = keys.rotate(babies[origin], step % slots) if step % slots else babies[origin]
        total: Ciphertext | None = None
        for weights in reversed(encoded.giants):  # Horner: rotate what is there, add the next giant's
            if total is not None:
                total = keys.rotate(total, rotations.giant[1] % slots)
            added = self._products(keys, weights, babies)
            if total is None:
                total = added
            elif added is not None:
                self.context.add(total, added)
        assert total is not None
        self._steps.divide(number, total, stage.drops)
        for count, step in rotations.sums:
            for part in [keys.rotate(total, multiple * step) for multiple in range(1, count)]:
                self.context.add(total, part)
        if stage.conjugate:
            self.context.add(total, keys.conjugate(total))
        if isinstance(encoded.bias, Ciphertext):
            self.context.add(total, encoded.bias)
        else:
            self.context.add_plain(total, encoded.bias)
        return total

    def _products(
        self, keys: Evaluation, weights: Sequence[tuple[int, Plaintext | Ciphertext]], babies: Mapping[int, Ciphertext]
    ) -> Ciphertext | None:
        """Return Σ weights · babies; products of ciphertexts are summed at three polynomials, relinearised once."""
        total: Ciphertext | None = None
        for baby, weight in weights:
            if isinstance(weight, Ciphertext):
                product = self.context.times(babies[baby], weight)
            else:
                product = self.context.times_plain(babies[baby], weight)
            if total is None:
                total = product
            else:
                self.context.add(total, product)
        if total is not None and isinstance(weights[0][1], Ciphertext):
            keys.relinearise(total)
        return total
