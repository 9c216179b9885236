"""The plan of a linear model: products of polynomials under BFV, exact, without rotations or evaluation keys.

    N, q, p, t   as in `parameters`
    a, f         bits of weights and inputs, as in `encode`
    B            bound of the flooding noise
    21           largest coefficient of SEAL's error, drawn with variance 21/2

A reply to a fresh query with noise v has the noise Σ ŵ (v + 1/2), plus that of an encryption of zero, plus the
flooding: `largest_noise`. Below q / 2t every result decrypts exactly, so the failure probability is 0.

Paper: SEAL's BFV; coefficient packing as in Cheetah (USENIX Security 2022, section 3); noise flooding as in Gentry's
thesis (2009, section 3.5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from confide.errors import ProtocolError
from confide.he.encode import Blocks, FixedPoint
from confide.he.parameters import ERROR_BOUND, ERROR_VARIANCE, Parameters
from confide.he.seal import Needs, ntt_primes

#: The reply of a protected model is within 2^-40 of one that depends on its outputs alone, per number in it.
FLOODING_BITS = 40

#: Ring degrees and bits of primes, cheapest first. The last of several is the special prime: no key is switched here,
#: so it is as small as the ring allows, and the ciphertexts get the rest.
_OPEN = ((2048, (54,)), (4096, (47, 46, 16)))
_PROTECTED = ((4096, (47, 46, 16)), (8192, (50, 50, 50, 17)))

_MOST_BITS = 40
_MOST_OUTPUTS = 1 << 14


class LinearPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="linear"):
    """A linear model as products of polynomials with exact integer results.

    Args:
        parameters: BFV.
        fixed: precision of inputs and weights.
        blocks: places of coefficients.
        sigmoid: whether the client applies a sigmoid to what it decrypts.
        protected: whether replies are re-randomised and flooded.
    """

    parameters: Parameters
    fixed: FixedPoint
    blocks: Blocks
    sigmoid: bool
    protected: bool

    @property
    def features(self) -> int:
        """Return the columns of x."""
        return self.blocks.features

    @property
    def outputs(self) -> int:
        """Return the columns of y."""
        return self.blocks.outputs

    @property
    def needs(self) -> Needs:
        """Return the public keys that the server needs."""
        return Needs(encryption=self.protected)

    @property
    def row_weight(self) -> int:
        """Return the largest Σ|ŵ| of one output: 2^a and the rounding of every weight."""
        return (1 << self.fixed.weight_bits) + max(self.features, 2)

    @property
    def zero_noise(self) -> float:
        """Return the largest noise of an encryption of zero under the public key.

        It is made modulo q·p, where it is at most (2N + 1) · 21, and then divided by p with a rounding of 1/2 in each
        of two polynomials, the second of which meets a ternary secret.
        """
        degree = self.parameters.degree
        return (2 * degree + 1) * ERROR_BOUND / self.parameters.special + (degree + 1) / 2

    @property
    def flooding_bound(self) -> int:
        """Return B: a protected reply gets uniform noise in [-B, B] on every number that it returns.

        What it hides: Σ ŵ v, where v is the noise of the query, which its sender knows, and the encryption of zero. A
        uniform number and the same one shifted by s are at distance |s| / (2B + 1); s is at most `mean` on average over
        the honest sender's v (variance 21/2 per coefficient, and a rounding of 1/2).
        """
        if not self.protected:
            return 0
        width = self.blocks.width
        mean = (math.sqrt(ERROR_VARIANCE * width) + width / 2) * self.row_weight + self.zero_noise
        return math.ceil(mean) << (FLOODING_BITS - 1)

    @property
    def largest_noise(self) -> int:
        """Return the largest noise of a reply, whatever the weights and the randomness."""
        product = self.blocks.width * self.row_weight * (2 * ERROR_BOUND + 1) // 2
        return product + math.ceil(self.zero_noise) * self.protected + self.flooding_bound + 1

    @property
    def exact(self) -> bool:
        """Return True if every result on the box decrypts exactly: failure probability 0."""
        t = self.parameters.plain_modulus
        largest = (self.row_weight << self.fixed.input_bits) + 1
        slack = self.parameters.modulus >> 10  # SEAL rounds in a larger basis; far less is enough
        return 2 * largest < t and 2 * t * self.largest_noise < self.parameters.modulus - slack

    def checked(self) -> LinearPlan:
        """Return self if it is a plan of ours; a stranger may have sent it. Raises ProtocolError if not."""
        self.parameters.checked()
        fixed, blocks = self.fixed, self.blocks
        if self.parameters.scheme != "bfv" or not 1 <= blocks.features <= blocks.degree == self.parameters.degree:
            raise ProtocolError("Expected a linear plan whose features fit its parameters")
        if not (
            1 <= blocks.outputs <= _MOST_OUTPUTS
            and all(1 <= bits <= _MOST_BITS for bits in (fixed.input_bits, fixed.weight_bits))
        ):
            raise ProtocolError("Expected a linear plan of a size and precision in use")
        if not (0 < fixed.input_bound < math.inf and self.exact):
            raise ProtocolError("Expected a linear plan with exact results")
        return self

    def __str__(self) -> str:
        rows = f"{self.blocks.rows} rows of {self.features} features in a ciphertext"
        return f"{self.parameters}; {rows}; inputs {self.fixed.input_bits} bits, weights {self.fixed.weight_bits} bits"


def plan_linear(
    shape: tuple[int, int], *, sigmoid: bool, protected: bool, input_bound: float, precision_bits: int
) -> LinearPlan | None:
    """Return the plan at the smallest parameters that give the wanted precision, with the best precision they allow.

    Args:
        shape: outputs and features.
        sigmoid: whether the client applies a sigmoid at the end.
        protected: whether replies must not show the weights.
        input_bound: largest absolute value of a feature.
        precision_bits: outputs may be off by 2^-precision_bits of their range.
    """
    outputs, features = shape
    for degree, bits in _PROTECTED if protected else _OPEN:
        if features > degree:
            continue
        primes = ntt_primes(degree, bits)
        blocks = Blocks(degree=degree, features=features, outputs=outputs)
        for error, fixed in _precisions(features, input_bound):
            if error > 2.0**-precision_bits:
                break
            t = 2 * ((((1 << fixed.weight_bits) + max(features, 2)) << fixed.input_bits) + 2) + 1
            parameters = Parameters(scheme="bfv", degree=degree, primes=primes, plain_modulus=t)
            plan = LinearPlan(parameters=parameters, fixed=fixed, blocks=blocks, sigmoid=sigmoid, protected=protected)
            if t < 1 << 60 and plan.exact:
                return plan
    return None


def _precisions(features: int, input_bound: float) -> Iterator[tuple[float, FixedPoint]]:
    """Yield every precision with its error in parts of the range, best first."""
    bits = range(1, _MOST_BITS + 1)
    pairs = [(2.0 ** -(f + 1) + max(features, 2) * 2.0 ** -(a + 1), f, a) for f in bits for a in bits]
    for error, f, a in sorted(pairs):
        yield error, FixedPoint(input_bound=input_bound, input_bits=f, weight_bits=a)
