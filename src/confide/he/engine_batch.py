"""Networks in a batch under CKKS: slot r of every ciphertext holds row r, each number has a ciphertext of its own.

Linear maps are integer sums over residues (`integer_sums`); products, combinations and divisions are Microsoft SEAL's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.he.arithmetic import SealArithmetic, SealEncoder
from confide.he.encode import in_box
from confide.he.engine_steps import Combination, Steps
from confide.he.error_bound import error_bound
from confide.he.integer_sums import IntegerMap
from confide.he.machines import Keys, leave
from confide.he.normalise import Constants, Ready
from confide.he.packed import unpack
from confide.he.plan_batch import BatchPlan
from confide.he.seal import Ciphertext, Context, Evaluation, Plaintext, PublicKeys, SecretKey, refusing_transparent
from confide.he.seal_format import Form, Residues
from confide.he.shapes import LinearMap
from confide.he.stages import Combined, Multiplied, Summed

Matrix = NDArray[np.float64]
_Encoded = tuple[IntegerMap, list[int]] | Combination[Plaintext] | None


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
        columns = np.stack([self.context.decode(secret.decrypt(cipher)) for cipher in ciphers])
        blocks = columns.reshape(-1, self.plan.outputs, self.plan.slots)
        return np.ascontiguousarray(blocks.transpose(0, 2, 1)).reshape(-1, self.plan.outputs)


class _Numbers:
    """The ciphertexts of one register, as SEAL has them or as residues, shape (numbers, 2, primes, N)."""

    def __init__(self, context: Context, form: Form, held: list[Ciphertext] | Residues) -> None:
        self._context, self._form, self._held = context, form, held

    def ciphertexts(self) -> list[Ciphertext]:
        if not isinstance(self._held, list):
            self._held = [self._context.from_residues(one, self._form) for one in self._held]
        return self._held

    def residues(self) -> Residues:
        if isinstance(self._held, list):
            return np.stack([self._context.residues(one, self._form) for one in self._held])
        return self._held


class BatchServer:
    """The server's half: the weights as integers, and the execution.

    Args:
        plan: of the model's shape.
        ready: the model, scaled for the plan.

    Raises:
        ModelError: weights that are too far apart (`integer_sums`).
    """

    def __init__(self, plan: BatchPlan, ready: Ready) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        self._steps = Steps(plan)
        self.error = error_bound(plan, ready)
        self.exponents = np.full(plan.outputs, ready.exponent, np.int64)
        self._encoded = [self._encode(number, part) for number, part in enumerate(ready.parts)]
        self._last_use = {source: number for number, stage in enumerate(plan.stages) for source in stage.sources}

    def keys(self, public: PublicKeys) -> Keys:
        """Return a client's public keys, checked. Raises ProtocolError on any others than the plan's."""
        return Evaluation(self.context, public, self.plan.needs)

    def answer(self, keys: Keys, ciphertexts: Sequence[bytes], rng: Randomness) -> tuple[bytes, ...]:
        """Return one reply per output, for N/2 rows at a time.

        Args:
            keys: the client's.
            ciphertexts: a stranger's, as many as the features or a multiple.
            rng: for the flooding of protected replies.

        Raises:
            ProtocolError: a malformed query.
        """
        assert isinstance(keys, Evaluation)
        replies: list[bytes] = []
        reply, flooding = self._steps.reply, self._steps.flooding
        for start in range(0, len(ciphertexts), self.plan.features):
            query = self._load(ciphertexts[start : start + self.plan.features])
            with refusing_transparent():
                results = self._run(SealArithmetic(self.context, keys), query).ciphertexts()
                replies += [leave(self.context, keys, one, reply, flooding, rng) for one in results]
        return tuple(replies)

    def _load(self, bodies: Sequence[bytes]) -> _Numbers:
        primes, degree = self.plan.parameters.data_primes, self.plan.parameters.degree
        whole = np.empty((len(bodies), 2, len(primes), degree), np.uint64)
        for place, body in enumerate(bodies):
            whole[place] = unpack(body, whole.shape[1:], primes)
        return _Numbers(self.context, self._form(0), whole)

    def _form(self, register: int) -> Form:
        at = self.plan.registers[register]
        return self.context.form(limbs=at.limbs, ntt=True, scale=at.scale)

    def _encode(self, number: int, part: LinearMap | Constants | None) -> _Encoded:
        stage = self.plan.stages[number]
        match stage:
            case Summed():
                assert isinstance(part, LinearMap)
                scale = self.plan.registers[stage.source].scale * 2.0**stage.weight_bits
                return IntegerMap(part, stage.weight_bits), [round(bias * scale) for bias in part.bias.tolist()]
            case Combined():
                assert isinstance(part, Constants)
                return self._steps.encoded(SealEncoder(self.context), number, stage, part)
            case _:
                return None

    def _run(self, arithmetic: SealArithmetic, query: _Numbers) -> _Numbers:
        registers = {0: query}
        for number, (stage, encoded) in enumerate(zip(self.plan.stages, self._encoded, strict=True)):
            match stage:
                case Summed():
                    assert isinstance(encoded, tuple)
                    result = self._sums(arithmetic, number, stage, encoded, registers[stage.source])
                case Multiplied():
                    sides = registers[stage.left].ciphertexts(), registers[stage.right].ciphertexts()
                    pairs = zip(*sides, strict=True)
                    products = [self._steps.product(arithmetic, number, stage, *pair) for pair in pairs]
                    result = _Numbers(self.context, self._form(number + 1), products)
                case Combined():
                    assert isinstance(encoded, Combination)
                    terms = zip(*(registers[term].ciphertexts() for term in stage.terms), strict=True)
                    combined = [self._steps.combine(arithmetic, number, stage, encoded, list(read)) for read in terms]
                    result = _Numbers(self.context, self._form(number + 1), combined)
                case _:
                    raise AssertionError(type(stage))
            registers[number + 1] = result
            for source in set(stage.sources):
                if self._last_use[source] == number:
                    del registers[source]
        return registers[len(self.plan.stages)]

    def _sums(
        self,
        arithmetic: SealArithmetic,
        number: int,
        stage: Summed,
        encoded: tuple[IntegerMap, list[int]],
        read: _Numbers,
    ) -> _Numbers:
        before = self.plan.registers[stage.source]
        primes = self.plan.parameters.data_primes[: before.limbs]
        sums = encoded[0].sums(read.residues(), encoded[1], primes)
        if not stage.drops:
            return _Numbers(self.context, self._form(number + 1), sums)
        scale = before.scale * 2.0**stage.weight_bits
        form = self.context.form(limbs=before.limbs, ntt=True, scale=scale)
        divided = _Numbers(self.context, form, sums).ciphertexts()
        for cipher in divided:
            self._steps.divide(arithmetic, number, cipher, stage.drops)
        return _Numbers(self.context, self._form(number + 1), divided)
