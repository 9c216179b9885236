"""What executes a network in a batch: bytes of N/2 rows in, bytes of their outputs out.

Linear maps are integer sums over residues (`integer_sums`). Products, combinations and divisions are the same for each
of a register's ciphertexts:

    SealBatch     Microsoft SEAL, ciphertext by ciphertext
    NativeBatch   one program in C++ for each stage (`engine_native`), run for every ciphertext by several threads
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from confide.crypto.random import Randomness
from confide.errors import ProtocolError
from confide.he import engine_native
from confide.he.arithmetic import SealArithmetic, SealEncoder
from confide.he.engine_native import NativeKeys, native_context, threads_of
from confide.he.engine_steps import Combination, Steps
from confide.he.integer_sums import IntegerMap
from confide.he.machines import Keys, leave
from confide.he.normalise import Constants, Ready
from confide.he.packed import unpack
from confide.he.plan_batch import BatchPlan
from confide.he.recorder import Recorded, Recorder
from confide.he.seal import Ciphertext, Context, Evaluation, Needs, Plaintext, PublicKeys, refusing_transparent
from confide.he.seal_format import Form, Residues
from confide.he.shapes import LinearMap
from confide.he.stages import Combined, Multiplied, Stage, Summed

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Sums:
    """The private part of a linear map: weights and biases as integers."""

    weights: IntegerMap
    biases: list[int]

    def __repr__(self) -> str:
        return "Sums()"

    @staticmethod
    def of(plan: BatchPlan, stage: Summed, part: LinearMap) -> Sums:
        """Return the integers of a stage. Raises ModelError if they are too far apart."""
        scale = plan.registers[stage.source].scale * 2.0**stage.weight_bits
        return Sums(IntegerMap(part, stage.weight_bits), [round(bias * scale) for bias in part.bias.tolist()])


def executed(plan: BatchPlan, query: R, stage: Callable[[int, Stage, Sequence[R]], R]) -> R:
    """Return the last register; others are dropped as soon as nothing reads them.

    Args:
        plan: says which stage reads which registers.
        query: the first register.
        stage: returns the result of a stage, given its number and what its sources hold.
    """
    last_use = {source: number for number, one in enumerate(plan.stages) for source in one.sources}
    registers = {0: query}
    del query  # it is large
    for number, one in enumerate(plan.stages):
        registers[number + 1] = stage(number, one, [registers[source] for source in one.sources])
        for source in set(one.sources):
            if last_use[source] == number:
                del registers[source]
    return registers[len(plan.stages)]


def loaded(plan: BatchPlan, bodies: Sequence[bytes]) -> Residues:
    """Return a stranger's ciphertexts, shape (numbers, 2, primes, N). Raises ProtocolError on anything else."""
    primes, degree = plan.parameters.data_primes, plan.parameters.degree
    whole = np.empty((len(bodies), 2, len(primes), degree), np.uint64)
    for place, body in enumerate(bodies):
        whole[place] = unpack(body, whole.shape[1:], primes)
    return whole


def summed(plan: BatchPlan, stage: Summed, part: Sums, read: Residues, *, threads: int) -> Residues:
    """Return the sums of a stage before any division."""
    primes = plan.parameters.data_primes[: plan.registers[stage.source].limbs]
    return part.weights.sums(read, part.biases, primes, threads=threads)


# --- Microsoft SEAL ---------------------------------------------------------------------------------------------------


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


class SealBatch:
    """Execution on Microsoft SEAL.

    Args:
        plan: of the model's shape.
        ready: the model, scaled for the plan.
        context: of its parameters.
    """

    def __init__(self, plan: BatchPlan, ready: Ready, context: Context) -> None:
        self.plan = plan
        self.context = context
        self.steps = Steps(plan)
        self._encoded = [self._encode(number, part) for number, part in enumerate(ready.parts)]

    def keys(self, public: PublicKeys, needs: Needs) -> Evaluation:
        return Evaluation(self.context, public, needs)

    def answer(self, keys: Keys, bodies: Sequence[bytes], rng: Randomness) -> tuple[bytes, ...]:
        assert isinstance(keys, Evaluation)
        query = _Numbers(self.context, self._form(0), loaded(self.plan, bodies))
        reply, flooding = self.steps.reply, self.steps.flooding
        with refusing_transparent():
            results = executed(self.plan, query, partial(self._stage, keys)).ciphertexts()
            return tuple(leave(self.context, keys, one, reply, flooding, rng) for one in results)

    def _form(self, register: int) -> Form:
        at = self.plan.registers[register]
        return self.context.form(limbs=at.limbs, ntt=True, scale=at.scale)

    def _encode(self, number: int, part: LinearMap | Constants | None) -> Sums | Combination[Plaintext] | None:
        stage = self.plan.stages[number]
        if isinstance(stage, Summed):
            assert isinstance(part, LinearMap)
            return Sums.of(self.plan, stage, part)
        if isinstance(stage, Combined):
            assert isinstance(part, Constants)
            return self.steps.encoded(SealEncoder(self.context), number, stage, part)
        return None

    def _stage(self, keys: Evaluation, number: int, stage: Stage, read: Sequence[_Numbers]) -> _Numbers:
        arithmetic, part = SealArithmetic(self.context, keys), self._encoded[number]
        match stage:
            case Summed():
                assert isinstance(part, Sums)
                sums = summed(self.plan, stage, part, read[0].residues(), threads=1)
                return self._sums(arithmetic, number, stage, sums)
            case Multiplied():
                pairs = zip(*(one.ciphertexts() for one in read), strict=True)
                made = [self.steps.product(arithmetic, number, stage, *pair) for pair in pairs]
            case Combined():
                assert isinstance(part, Combination)
                terms = zip(*(one.ciphertexts() for one in read), strict=True)
                made = [self.steps.combine(arithmetic, number, stage, part, list(term)) for term in terms]
            case _:
                raise AssertionError(type(stage))
        return _Numbers(self.context, self._form(number + 1), made)

    def _sums(self, arithmetic: SealArithmetic, number: int, stage: Summed, sums: Residues) -> _Numbers:
        if not stage.drops:
            return _Numbers(self.context, self._form(number + 1), sums)
        before = self.plan.registers[stage.source]
        form = self.context.form(limbs=before.limbs, ntt=True, scale=before.scale * 2.0**stage.weight_bits)
        divided = _Numbers(self.context, form, sums).ciphertexts()
        for cipher in divided:
            self.steps.divide(arithmetic, number, cipher, stage.drops)
        return _Numbers(self.context, self._form(number + 1), divided)


# --- native -----------------------------------------------------------------------------------------------------------


class NativeBatch:
    """Execution in C++.

    Args:
        plan: of the model's shape.
        ready: the model, scaled for the plan.
        context: of its parameters.
        threads: that one answer may take, unless `CONFIDE_THREADS` says.
    """

    def __init__(self, plan: BatchPlan, ready: Ready, context: Context, threads: int) -> None:
        self.plan = plan
        self.context = context
        self.steps = Steps(plan)
        self._native = native_context(plan.parameters)
        self._threads = threads_of(threads)
        self._sums = {
            number: Sums.of(plan, stage, part)
            for number, (stage, part) in enumerate(zip(plan.stages, ready.parts, strict=True))
            if isinstance(stage, Summed) and isinstance(part, LinearMap)
        }
        self._programs: dict[int, Any] = {
            number: self._record(number, stage, part)
            for number, (stage, part) in enumerate(zip(plan.stages, ready.parts, strict=True))
            if not isinstance(stage, Summed) or stage.drops
        }

    def keys(self, public: PublicKeys, needs: Needs) -> NativeKeys:
        limbs: dict[int, int] = {}
        for program in self._programs.values():
            for element, most in program.key_limbs():
                limbs[element] = max(most, limbs.get(element, 0))
        return NativeKeys(self.context, limbs, self._native, public, needs)

    def answer(self, keys: Keys, bodies: Sequence[bytes], rng: Randomness) -> tuple[bytes, ...]:
        assert isinstance(keys, NativeKeys)
        query = loaded(self.plan, bodies)
        if not query[:, 1].any(axis=(1, 2)).all():
            raise ProtocolError("Expected encryptions, not numbers in the clear")
        reply, flooding = self.steps.reply, self.steps.flooding
        results = executed(self.plan, query, partial(self._stage, keys))[:, :, : reply.limbs]
        return tuple(
            engine_native.leave(self.context, self._native, keys, one, reply, flooding, rng) for one in results
        )

    def listing(self) -> list[str]:
        """Return every instruction of every stage's program: by the plan alone."""
        return [line for program in self._programs.values() for line in program.listing()]

    def _record(self, number: int, stage: Stage, part: LinearMap | Constants | None) -> Any:
        """Return the program of a stage, for one ciphertext of each source."""
        program, registers = engine_native.program(self._native), self.plan.registers
        recorder = Recorder(program, self.plan.parameters)
        sources = stage.sources[:1] if len(set(stage.sources)) == 1 else stage.sources
        read = [recorder.input(limbs=registers[one].limbs, scale=registers[one].scale) for one in sources]
        recorder.finish([self._written(recorder, number, stage, part, read)], limbs=registers[number + 1].limbs)
        return program

    def _written(
        self,
        recorder: Recorder,
        number: int,
        stage: Stage,
        part: LinearMap | Constants | None,
        read: list[Recorded],
    ) -> Recorded:
        match stage:
            case Summed():
                self.steps.divide(recorder, number, read[0], stage.drops)
                return read[0]
            case Multiplied():
                return self.steps.product(recorder, number, stage, read[0], read[-1])
            case Combined():
                assert isinstance(part, Constants)
                terms = read if len(read) == len(stage.terms) else read * len(stage.terms)
                return self.steps.combine(
                    recorder, number, stage, self.steps.encoded(recorder, number, stage, part), terms
                )
            case _:
                raise AssertionError(type(stage))

    def _stage(self, keys: NativeKeys, number: int, stage: Stage, read: Sequence[Residues]) -> Residues:
        inputs = list(read[:1] if len(set(stage.sources)) == 1 else read)
        if isinstance(stage, Summed):
            inputs = [summed(self.plan, stage, self._sums[number], read[0], threads=self._threads)]
            if not stage.drops:
                return inputs[0]
        shape = len(inputs[0]), 2, self.plan.registers[number + 1].limbs, self.plan.parameters.degree
        result = np.empty(shape, np.uint64)
        self._programs[number].run_each(keys.keys, inputs, [result], self._threads)
        return result
