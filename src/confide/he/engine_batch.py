"""Networks in a batch under CKKS: slot r of every ciphertext holds row r, each number has a ciphertext of its own.

What executes them is in `batch_machines`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.he.batch_machines import NativeBatch, SealBatch
from confide.he.encode import in_box
from confide.he.engine_native import Engine, chosen
from confide.he.error_bound import error_bound
from confide.he.machines import Keys
from confide.he.normalise import Ready
from confide.he.plan_batch import BatchPlan
from confide.he.seal import Context, PublicKeys, SecretKey

Matrix = NDArray[np.float64]


class BatchClient:
    """The client's half: public tables of one plan.

    Args:
        plan: a stranger's, checked.
    """

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        self._reply = self.context.form(limbs=plan.reply_limbs, ntt=True, scale=plan.reply_scale)

    def encrypt(self, secret: SecretKey, x: Matrix) -> tuple[bytes, ...]:
        """Return fresh encryptions of `x`, shape (rows, features): for N/2 rows at a time one for each feature.

        Raises:
            DataError: `x` is not in the certified box.
        """
        plan = self.plan
        normal = in_box(x, plan.features, plan.input_bound) / plan.input_bound
        slots = np.zeros((plan.blocks(len(x)), plan.slots, plan.features))
        slots.reshape(-1, plan.features)[: len(x)] = normal
        limbs, scale = len(plan.parameters.data_primes), 2.0**plan.scale_bits
        columns = np.ascontiguousarray(slots.transpose(0, 2, 1)).reshape(-1, plan.slots)
        return tuple(
            self.context.to_bytes(secret.encrypt(self.context.encode(column, limbs=limbs, scale=scale)))
            for column in columns
        )

    def decrypt(self, secret: SecretKey, ciphertexts: tuple[bytes, ...]) -> Matrix:
        """Return the results in units, shape (rows, outputs), N/2 rows at a time: more than were asked for.

        They include noise, so they stay with the client.

        Raises:
            ProtocolError: a malformed reply.
        """
        ciphers = [self.context.load(body, self._reply) for body in ciphertexts]
        plains = [secret.decrypt(cipher) for cipher in ciphers]
        columns = np.stack([self.context.decode_traced(one, self._reply, self.plan.slots) for one in plains])
        blocks = columns.reshape(-1, self.plan.outputs, self.plan.slots)
        return np.ascontiguousarray(blocks.transpose(0, 2, 1)).reshape(-1, self.plan.outputs)


class BatchServer:
    """The server's half: the weights as integers, and the execution.

    Args:
        plan: of the model's shape.
        ready: the model, scaled for the plan.
        engine: what executes it.
        threads: that one answer may take.

    Raises:
        ModelError: weights that are too far apart (`integer_sums`).
    """

    def __init__(self, plan: BatchPlan, ready: Ready, engine: Engine = "auto", threads: int = 1) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        self.error = error_bound(plan, ready)
        self.exponents = np.full(plan.outputs, ready.exponent, np.int64)
        if chosen(engine):
            self.machine = NativeBatch(plan, ready, self.context, threads)
        else:
            self.machine = SealBatch(plan, ready, self.context)

    def keys(self, public: PublicKeys) -> Keys:
        """Return a client's public keys, checked. Raises ProtocolError on any others than the plan's."""
        return self.machine.keys(public, self.plan.needs)

    def answer(self, keys: Keys, ciphertexts: Sequence[bytes], rng: Randomness) -> tuple[bytes, ...]:
        """Return one reply per output, for N/2 rows at a time.

        Args:
            keys: the client's.
            ciphertexts: a stranger's, as many as the features or a multiple.
            rng: for the flooding of protected replies.

        Raises:
            ProtocolError: a malformed query.
        """
        each = self.plan.features
        return tuple(
            reply
            for start in range(0, len(ciphertexts), each)
            for reply in self.machine.answer(keys, ciphertexts[start : start + each], rng)
        )
