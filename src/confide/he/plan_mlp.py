"""The plan of a network with squares: matrix-vector products and squares over slots under CKKS.

    N, q, p    as in `parameters`
    P, Q       inputs and outputs of a matrix, padded to powers of two
    S          scale

Paper: Cheon, Kim, Kim, Song (ASIACRYPT 2017); diagonals with baby and giant steps after Halevi and Shoup (CRYPTO 2018),
giant steps by Horner's rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError
from confide.he.encode import FLOAT_ERROR
from confide.he.parameters import ERROR_BOUND, ERROR_VARIANCE, LIMIT_BITS, Parameters
from confide.he.seal import Needs, ntt_primes
from confide.model.graph import Linear, Square

Matrix = NDArray[np.float64]

#: Sums of many small independent terms are bounded by this many standard deviations; beyond it with less than 2^-64.
_TAIL = 12.0

_LARGEST_LAYER = 1 << 14
_MOST_KEY_BYTES = 1 << 30


class MatVec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="matvec"):
    """y = W x + b over slots, by diagonals, baby steps and giant steps.

    Sizes are padded to powers of two, P inputs and Q outputs; the input repeats in the slots with period max(P, Q), the
    output with period Q. Diagonal k pairs output s with input s + k, k < min(P, Q). The first layer's input may arrive
    as `copies` that are shifted against each other, each of which meets another part of the diagonals: rotations that
    happen before encryption. Giant steps follow Horner's rule: one key for all of them.

    Args:
        inputs, outputs: as in the model.
        copies: shifted copies in the input; 1 but for the first layer.
        babies, giants: rotations by 1 ... babies-1, and giants-1 times by babies.
    """

    inputs: int
    outputs: int
    copies: int
    babies: int
    giants: int

    @property
    def padded_inputs(self) -> int:
        """Return P."""
        return _power(self.inputs)

    @property
    def padded_outputs(self) -> int:
        """Return Q."""
        return _power(self.outputs)

    @property
    def period(self) -> int:
        """Return the slots of one copy of the input."""
        return max(self.padded_inputs, self.padded_outputs)

    @property
    def diagonals(self) -> int:
        """Return the diagonals that each copy meets."""
        return min(self.padded_inputs, self.padded_outputs) // self.copies

    @property
    def sums(self) -> tuple[int, ...]:
        """Return the rotations that add copies and parts up."""
        span, steps = self.copies * self.period, self.padded_outputs
        return tuple(steps << place for place in range((span // steps).bit_length() - 1))

    @property
    def steps(self) -> tuple[int, ...]:
        """Return every rotation."""
        giant = (self.babies,) if self.giants > 1 else ()
        return (*range(1, self.babies), *giant, *self.sums)

    @property
    def rotations(self) -> int:
        """Return how often the engine rotates."""
        return self.babies + self.giants - 2 + len(self.sums)

    def source(self, slots: int) -> NDArray[np.intp]:
        """Return the padded input that stands in each slot, shape (slots,)."""
        slot = np.arange(slots)
        copy = (slot // self.period) % self.copies
        return ((slot + copy * self.diagonals) % self.period) % self.padded_inputs

    def checked(self, slots: int) -> MatVec:
        """Return self if it fits `slots`. Raises ProtocolError if not."""
        sizes = (self.inputs, self.outputs, self.copies, self.babies, self.giants)
        if any(not 1 <= size <= _LARGEST_LAYER for size in sizes) or self.copies * self.period > slots:
            raise ProtocolError("Expected layers that fit the slots")
        if any(size & (size - 1) for size in sizes[2:]) or self.babies * self.giants != self.diagonals:
            raise ProtocolError("Expected baby and giant steps that cover the diagonals")
        return self


class Squaring(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="square"):
    """y = x² in every slot."""


Stage = MatVec | Squaring


class MlpPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="mlp"):
    """A network with squares as stages over slots; each stage uses up one prime, one remains for the reply.

    Args:
        parameters: CKKS; the first prime leaves room for the result, the others are close to the scale.
        scale_bits: inputs are encrypted at scale 2^scale_bits.
        input_bound: largest absolute value of a feature.
        stages: in order.
        sigmoid: whether the client applies a sigmoid to what it decrypts.
        protected: whether replies are re-randomised.
    """

    parameters: Parameters
    scale_bits: int
    input_bound: float
    stages: tuple[Stage, ...]
    sigmoid: bool
    protected: bool

    @property
    def slots(self) -> int:
        """Return the slots of a ciphertext."""
        return self.parameters.degree // 2

    @property
    def entry(self) -> MatVec:
        """Return the first stage, which says how the client packs its input."""
        first = self.stages[0]
        assert isinstance(first, MatVec)
        return first

    @property
    def features(self) -> int:
        """Return the columns of x."""
        return self.entry.inputs

    @property
    def outputs(self) -> int:
        """Return the columns of y."""
        return next(stage.outputs for stage in reversed(self.stages) if isinstance(stage, MatVec))

    @property
    def needs(self) -> Needs:
        """Return the public keys that the server needs."""
        steps = sorted({step for stage in self.stages if isinstance(stage, MatVec) for step in stage.steps})
        return Needs(encryption=self.protected, relinearisation=True, steps=tuple(steps))

    @property
    def key_bytes(self) -> int:
        """Return the size of the evaluation keys: each has a part for every data prime, modulo every prime."""
        digits = len(self.parameters.data_primes)
        return (len(self.needs.steps) + 1) * 16 * self.parameters.degree * digits * (digits + 1)

    def levels(self) -> Iterator[tuple[Stage, int, float, float]]:
        """Yield each stage with the primes it starts with, and the scales before and after it."""
        primes, scale = self.parameters.data_primes, 2.0**self.scale_bits
        for place, stage in enumerate(self.stages):
            limbs = len(primes) - place
            after = scale * scale / primes[limbs - 1] if isinstance(stage, Squaring) else scale
            yield stage, limbs, scale, after
            scale = after

    @property
    def reply_scale(self) -> float:
        """Return the scale of the reply."""
        return list(self.levels())[-1][3]

    def error_bound(self, magnitudes: Sequence[Matrix]) -> Matrix:
        """Return the largest error of each output, in normalised units, for every input in the box.

        Rounding and key-switching errors count as independent and small, and are bounded at 12 standard deviations: the
        bound fails with probability below 2^-64 under that usual assumption.

        Args:
            magnitudes: absolute normalised weights of each matrix, shape (outputs, inputs); values are at most 1.

        Returns:
            float64, shape (outputs,).
        """
        degree, primes = self.parameters.degree, self.parameters.data_primes
        encoding, rounding = _TAIL * math.sqrt(degree / 12), _rounding(degree)
        error = np.full(self.features, (ERROR_BOUND + 0.5) * degree / 2.0**self.scale_bits)
        weights = iter(magnitudes)
        for stage, limbs, scale, after in self.levels():
            switching = _key_switching(degree, primes[:limbs], self.parameters.special)
            if isinstance(stage, Squaring):
                error = 2 * error + error**2 + switching / scale**2 + rounding / after
                continue
            error = error + (switching / scale if stage.babies > 1 else 0.0)
            products = stage.padded_inputs * encoding * (1 + error.max()) / primes[limbs - 1]
            switched = (stage.giants << len(stage.sums)) * switching / (scale * primes[limbs - 1])
            error = next(weights) @ error + products + switched + (rounding + encoding) / scale
        return error + FLOAT_ERROR

    def checked(self) -> MlpPlan:
        """Return self if it is a plan of ours; a stranger may have sent it. Raises ProtocolError if not."""
        self.parameters.checked()
        if self.parameters.scheme != "ckks" or len(self.parameters.data_primes) != len(self.stages) + 1:
            raise ProtocolError("Expected CKKS parameters with one prime for each stage and one for the reply")
        if not (20 <= self.scale_bits <= 55 and 0 < self.input_bound < math.inf):
            raise ProtocolError("Expected a scale and an input box in use")
        width = 0
        for place, stage in enumerate(self.stages):
            if isinstance(stage, MatVec):
                stage.checked(self.slots)
                if place and (stage.inputs != width or stage.copies != 1):
                    raise ProtocolError("Expected stages that fit each other")
                width = stage.outputs
        if not self.stages or not isinstance(self.stages[0], MatVec):
            raise ProtocolError("Expected a first stage that takes the input")
        if self.key_bytes > _MOST_KEY_BYTES:
            raise ProtocolError(f"Expected evaluation keys of at most {_MOST_KEY_BYTES} bytes")
        return self

    def __str__(self) -> str:
        rotations = sum(stage.rotations for stage in self.stages if isinstance(stage, MatVec))
        keys = f"{len(self.needs.steps) + 1} evaluation keys of {self.key_bytes / 1e6:.0f} MB"
        return f"{self.parameters}; scale {self.scale_bits} bits; {rotations} rotations, {keys}"


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _rounding(degree: int) -> float:
    """Return the error in a slot after a division by a prime: roundings of two polynomials, one times the secret."""
    return _TAIL * math.sqrt(degree / 12) * (1 + _TAIL * math.sqrt(2 * degree / 3))


def _key_switching(degree: int, primes: Sequence[int], special: int) -> float:
    """Return the error in a slot after a key switch at the level of `primes`.

    Each digit lies in [0, prime), so its slots are at most N·prime/π from the mean 1/2 of its coefficients, and a sum
    of independent terms beside that; it meets a key's error, and the sum is divided by the special prime.
    """
    digit = degree / math.pi + _TAIL * math.sqrt(degree / 12)
    error = _TAIL * math.sqrt(ERROR_VARIANCE * degree)
    return sum(primes) / special * digit * error + _rounding(degree)


def _matvec(inputs: int, outputs: int, most_copies: int) -> MatVec:
    """Return the layout with the fewest rotations, then the fewest keys."""
    diagonals = min(_power(inputs), _power(outputs))
    candidates: list[MatVec] = []
    for copies in (1 << place for place in range(min(diagonals, most_copies).bit_length())):
        for babies in (1 << place for place in range((diagonals // copies).bit_length())):
            giants = diagonals // copies // babies
            candidates.append(MatVec(inputs=inputs, outputs=outputs, copies=copies, babies=babies, giants=giants))
    return min(candidates, key=lambda stage: (stage.rotations, len(stage.steps)))


def _stages(layers: Sequence[Linear | Square], slots: int) -> tuple[Stage, ...] | None:
    stages: list[Stage] = []
    for layer in layers:
        if isinstance(layer, Square):
            stages.append(Squaring())
            continue
        outputs, inputs = layer.weight.shape
        period = max(_power(inputs), _power(outputs))
        if period > slots:
            return None
        stages.append(_matvec(inputs, outputs, 1 if stages else slots // period))
    return tuple(stages)


def plan_mlp(
    layers: Sequence[Linear | Square], *, sigmoid: bool, protected: bool, input_bound: float, precision_bits: int
) -> MlpPlan | None:
    """Return the plan at the smallest ring that gives the wanted precision, at the scale with the smallest error.

    Args:
        layers: no two linear ones are neighbours; their shapes matter, their weights do not.
        sigmoid: whether the client applies a sigmoid at the end.
        protected: whether replies are re-randomised.
        input_bound: largest absolute value of a feature.
        precision_bits: outputs may be off by 2^-precision_bits of their range.
    """
    even = [np.full(layer.weight.shape, 1 / layer.weight.shape[1]) for layer in layers if isinstance(layer, Linear)]
    for degree in (8192, 16384, 32768):
        stages = _stages(layers, degree // 2)
        if stages is None:
            continue
        plans = [
            MlpPlan(
                parameters=Parameters(scheme="ckks", degree=degree, primes=ntt_primes(degree, bits)),
                scale_bits=bits[1],
                input_bound=input_bound,
                stages=stages,
                sigmoid=sigmoid,
                protected=protected,
            )
            for bits in _prime_bits(LIMIT_BITS[degree], len(stages))
        ]
        errors = [float(plan.error_bound(even).max()) for plan in plans]
        if errors and min(errors) <= 2.0**-precision_bits and plans[0].key_bytes <= _MOST_KEY_BYTES:
            return plans[errors.index(min(errors))]
    return None


def _prime_bits(limit_bits: int, stages: int) -> Iterator[tuple[int, ...]]:
    """Yield sizes of primes: room for the result, one prime for each stage, and the special one, which is largest."""
    for scale_bits in range(24, 51):
        special_bits = min(60, limit_bits - scale_bits * (stages + 1) - 3)
        if special_bits >= scale_bits + 3 and stages <= 14:
            yield (scale_bits + 3, *[scale_bits] * stages, special_bits)
