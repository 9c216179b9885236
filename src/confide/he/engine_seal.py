"""Networks with squares under CKKS, stage by stage, on Microsoft SEAL: one row in one ciphertext.

The plan says what to compute and at which level and scale; this engine only encodes and executes. Another engine can
take the same plan and the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.he.encode import Normalised, in_box
from confide.he.plan_mlp import MatVec, MlpPlan, Squaring
from confide.he.seal import Ciphertext, Context, Evaluation, Plaintext, SecretKey, refusing_transparent
from confide.model.graph import Linear

Matrix = NDArray[np.float64]


class MlpClient:
    """The client's half: public tables of one plan.

    Args:
        plan: a stranger's, checked.
    """

    def __init__(self, plan: MlpPlan) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        self._reply = self.context.form(limbs=1, ntt=True, scale=plan.reply_scale)
        self._source = plan.entry.source(plan.slots)

    def encrypt(self, secret: SecretKey, x: Matrix) -> tuple[bytes, ...]:
        """Return one fresh encryption per row of `x`, shape (rows, features).

        Raises:
            DataError: `x` is not in the certified box.
        """
        normal = in_box(x, self.plan.features, self.plan.input_bound) / self.plan.input_bound
        padded = np.zeros((len(x), self.plan.entry.padded_inputs))
        padded[:, : self.plan.features] = normal
        return tuple(self._encrypt(secret, row[self._source]) for row in padded)

    def _encrypt(self, secret: SecretKey, slots: Matrix) -> bytes:
        limbs = len(self.plan.parameters.data_primes)
        plain = self.context.encode(slots, limbs=limbs, scale=2.0**self.plan.scale_bits)
        return self.context.to_bytes(secret.encrypt(plain))

    def decrypt(self, secret: SecretKey, ciphertexts: tuple[bytes, ...]) -> Matrix:
        """Return the normalised results, shape (rows, outputs); they include noise, so they stay with the client.

        Raises:
            ProtocolError: a malformed reply.
        """
        ciphers = [self.context.load(body, self._reply) for body in ciphertexts]
        return np.stack([self.context.decode(secret.decrypt(cipher))[: self.plan.outputs] for cipher in ciphers])


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One matrix as plaintexts: diagonals by giant and baby step, and the bias."""

    diagonals: list[list[Plaintext]]
    bias: Plaintext

    def __repr__(self) -> str:
        return "_Matrix()"


class MlpServer:
    """The server's half: the weights as diagonals.

    Args:
        plan: of the model's shape.
        network: the model with every value in [-1, 1].
    """

    def __init__(self, plan: MlpPlan, network: Normalised) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        matrices = [layer for layer in network.layers if isinstance(layer, Linear)]
        self.error = np.ldexp(plan.error_bound([np.abs(layer.weight) for layer in matrices]), network.exponents)
        self.exponents = network.exponents
        self._query = self.context.form(limbs=len(plan.parameters.data_primes), ntt=True, scale=2.0**plan.scale_bits)
        remaining = iter(matrices)
        self._matrices = [
            self._encode(stage, next(remaining), limbs, scale) if isinstance(stage, MatVec) else None
            for stage, limbs, scale, _ in plan.levels()
        ]

    def answer(self, keys: Evaluation, ciphertexts: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Return one reply per row.

        Raises:
            ProtocolError: a malformed query.
        """
        queries = [self.context.load(body, self._query) for body in ciphertexts]
        with refusing_transparent():
            return tuple(self.context.to_bytes(self._apply(keys, query)) for query in queries)

    # --- encoding -----------------------------------------------------------------------------------------------------

    def _encode(self, stage: MatVec, layer: Linear, limbs: int, scale: float) -> _Matrix:
        """Return the plaintexts of a layer, at the scale of the prime that its product is divided by."""
        prime = float(self.plan.parameters.data_primes[limbs - 1])
        weight = np.zeros((stage.padded_outputs, stage.padded_inputs))
        weight[: stage.outputs, : stage.inputs] = layer.weight
        bias = np.zeros(stage.padded_outputs)
        bias[: stage.outputs] = layer.bias
        slots = np.arange(self.plan.slots)
        source = stage.source(self.plan.slots)

        def diagonal(giant: int, baby: int) -> Plaintext:
            # What meets the input rotated by `baby` now, and is rotated by giant * babies afterwards.
            slot = slots - giant * stage.babies
            values = weight[slot % stage.padded_outputs, source[(slots + baby) % self.plan.slots]]
            if not np.rint(values * prime).any():
                values = np.full(self.plan.slots, 1 / prime)  # SEAL refuses products with zero; this is below rounding
            return self.context.encode(values, limbs=limbs, scale=prime)

        return _Matrix(
            [[diagonal(giant, baby) for baby in range(stage.babies)] for giant in range(stage.giants)],
            self.context.encode(bias[slots % stage.padded_outputs], limbs=limbs - 1, scale=scale),
        )

    # --- execution ----------------------------------------------------------------------------------------------------

    def _apply(self, keys: Evaluation, cipher: Ciphertext) -> Ciphertext:
        for (stage, _, _, after), matrix in zip(self.plan.levels(), self._matrices, strict=True):
            if isinstance(stage, Squaring):
                self.context.square(cipher)
                keys.relinearise(cipher)
                self.context.rescale(cipher, scale=after)
            else:
                assert matrix is not None
                cipher = self._multiply(keys, stage, matrix, cipher)
                self.context.rescale(cipher, scale=after)
                self.context.add_plain(cipher, matrix.bias)
        if self.plan.protected:
            self.context.add(cipher, keys.zero(limbs=1, scale=self.plan.reply_scale))
        return cipher

    def _multiply(self, keys: Evaluation, stage: MatVec, matrix: _Matrix, cipher: Ciphertext) -> Ciphertext:
        babies = [cipher, *(keys.rotate(cipher, step) for step in range(1, stage.babies))]
        total = self._inner(babies, matrix.diagonals[-1])
        for diagonals in reversed(matrix.diagonals[:-1]):  # Horner: rotate what is there, add the next giant's
            total = keys.rotate(total, stage.babies)
            self.context.add(total, self._inner(babies, diagonals))
        for step in stage.sums:
            self.context.add(total, keys.rotate(total, step))
        return total

    def _inner(self, babies: list[Ciphertext], diagonals: list[Plaintext]) -> Ciphertext:
        total, *others = map(self.context.times_plain, babies, diagonals)
        for other in others:
            self.context.add(total, other)
        return total
