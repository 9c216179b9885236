"""The plan of an ensemble of trees under CKKS: comparisons with secret thresholds as sums over secret weights.

The client cuts the public box of a feature into `bins` even intervals and encrypts which one holds, as a vector of one
1 and zeros. Whether "x <= t" holds is then linear in that vector, and exact, for any threshold between two intervals;
and so is the number of conditions of a leaf that a row breaks. A leaf counts if that number is 0 (`trees_levels`).

    S, N, s      slots, ring degree, scale
    D            bins; intervals k and k + D/2 stand in the real and the imaginary part of one slot
    W            labels: leaves of every output, padded to a power of two, times outputs, likewise
    K            diagonals: slot i belongs to leaf i mod W and meets the slots i ... i + K - 1 of the client's vector

Only sizes are public: W, outputs, the largest depth, D. Neither the number of trees, nor their shapes, nor which
features they compare. A threshold is moved to the nearest edge of an interval: `trees.Leaves` says what that changes.

Paper: one-hot inputs turn comparisons into inner products, as in private information retrieval; conditions of a path
summed and tested for zero after Tai, Ma, Zhao, Chow (ESORICS 2017, "path costs"); diagonals with baby and giant steps
after Halevi and Shoup (CRYPTO 2018), giant steps by Horner's rule; CKKS: Cheon, Kim, Kim, Song (ASIACRYPT 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError
from confide.he import noise
from confide.he.encode import FLOAT_ERROR
from confide.he.parameters import LIMIT_BITS, Parameters
from confide.he.seal import CONJUGATION, Needs, ntt_primes
from confide.he.speeds import SEAL, Speeds
from confide.he.trees_levels import Chain, Level, NoRoom, leaf_factor, reached, total

#: Most conditions on the way to a leaf.
MOST_DEPTH = 8

#: Most bytes of a model's plaintexts in the server's memory.
MOST_MODEL_BYTES = 1 << 32

MOST_BINS = 1 << 12
MOST_FEATURES = 1 << 12
_MOST_KEY_BYTES = 1 << 30


class TreesPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="trees"):
    """An ensemble of trees as one product of a matrix with the client's vector, and a polynomial in every slot.

    Args:
        parameters: CKKS.
        input_scale_bits: inputs are encrypted at scale 2^input_scale_bits.
        scale_bits: numbers of broken conditions have about the scale 2^scale_bits.
        leaf_scale_bits: leaf values are encoded at scale 2^leaf_scale_bits.
        input_bound: largest absolute value of a feature.
        features, outputs: columns of x and y.
        bins: D, a power of two.
        depth: the most conditions of a leaf.
        leaves: W, a power of two.
        babies: rotations of the input by 1 ... babies - 1, a power of two.
        sigmoid: whether the client applies a sigmoid to what it decrypts.
        protected: whether replies are re-randomised.
    """

    parameters: Parameters
    input_scale_bits: int
    scale_bits: int
    leaf_scale_bits: int
    input_bound: float
    features: int
    outputs: int
    bins: int
    depth: int
    leaves: int
    babies: int
    sigmoid: bool
    protected: bool

    # --- layout -------------------------------------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """Return S."""
        return self.parameters.degree // 2

    @property
    def places(self) -> int:
        """Return the slots of a feature."""
        return self.bins // 2

    @property
    def features_each(self) -> int:
        """Return how many features a ciphertext holds."""
        return min(self.features, self.slots // self.places)

    @property
    def ciphertexts(self) -> int:
        """Return the ciphertexts of a row."""
        return -(-self.features // self.features_each)

    def queries(self, rows: int) -> int:
        """Return the ciphertexts of a question."""
        return rows * self.ciphertexts

    def replies(self, rows: int) -> int:
        """Return the ciphertexts of a reply."""
        return rows

    @property
    def period(self) -> int:
        """Return the slots after which the client's vector repeats."""
        return max(_power(self.features_each * self.places), self.leaves)

    @property
    def copies(self) -> int:
        """Return how many copies of the vector, each shifted by another K, share the diagonals."""
        return min(self.slots // self.period, self.leaves)

    @property
    def diagonals(self) -> int:
        """Return K."""
        return self.leaves // self.copies

    @property
    def giants(self) -> int:
        """Return the giant steps and one."""
        return self.diagonals // self.babies

    @property
    def outputs_padded(self) -> int:
        """Return the distance of two leaves of one output."""
        return _power(self.outputs)

    @property
    def sums(self) -> tuple[int, ...]:
        """Return the rotations that add up what the diagonals of a leaf gave."""
        return _doublings(self.leaves, self.copies * self.period)

    @property
    def leaf_sums(self) -> tuple[int, ...]:
        """Return the rotations that add up the leaves of an output."""
        return _doublings(self.outputs_padded, self.leaves)

    @property
    def steps(self) -> tuple[int, ...]:
        """Return every rotation once."""
        giant = (self.babies,) if self.giants > 1 else ()
        return tuple(sorted({*range(1, self.babies), *giant, *self.sums, *self.leaf_sums}))

    @property
    def rotations(self) -> int:
        """Return how often the engine rotates or conjugates."""
        babies = self.ciphertexts * (self.babies - 1)
        return babies + self.giants - 1 + 1 + len(self.sums) + len(self.leaf_sums)

    @property
    def products(self) -> int:
        """Return the products with plaintexts."""
        return self.ciphertexts * self.diagonals + 1

    @property
    def model_bytes(self) -> int:
        """Return the size of the encoded model in the server's memory."""
        return self.products * 8 * self.parameters.degree * len(self.parameters.data_primes)

    @property
    def needs(self) -> Needs:
        """Return the public keys that the server needs."""
        full = len(self.parameters.data_primes)
        first = {CONJUGATION, self.babies if self.giants > 1 else 1, *range(1, self.babies), *self.sums}
        steps = (CONJUGATION, *self.steps)
        limbs = tuple(full if step in first else self.reply_limbs for step in steps)  # the others add leaves up
        return Needs(encryption=self.protected, relinearisation=self.depth > 1, steps=steps, limbs=limbs)

    @property
    def key_bytes(self) -> int:
        """Return the bytes of the evaluation keys, of each as much as is used, in whole words."""
        full, needs = len(self.parameters.data_primes), self.needs
        used = [*needs.limbs, *[full] * needs.relinearisation]
        return sum(16 * self.parameters.degree * limbs * (limbs + 1) for limbs in used)

    def bin_of(self, x: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return the interval of each value within the box, from 0; an edge belongs to the interval below it."""
        return np.searchsorted(edges(self.bins, self.input_bound), x, side="left")

    def source(self) -> NDArray[np.intp]:
        """Return the place in the client's vector that stands in each slot, below `period`, shape (S,)."""
        slot = np.arange(self.slots)
        copy = (slot // self.period) % self.copies
        return (slot + copy * self.diagonals) % self.period

    # --- levels -------------------------------------------------------------------------------------------------------

    @property
    def chain(self) -> Chain:
        """Return the costs of products at these parameters."""
        parameters = self.parameters
        primes = tuple(map(float, parameters.data_primes))
        return Chain(
            degree=parameters.degree,
            primes=primes,
            special=float(parameters.special),
            leaf_scale=2.0**self.leaf_scale_bits,
            least_scale=2.0 ** (self.scale_bits - 2),
        )

    @property
    def weight_scale(self) -> float:
        """Return the scale of the diagonals."""
        return 2.0 ** (self.scale_bits - self.input_scale_bits) * self.parameters.data_primes[-1]

    @property
    def broken(self) -> Level:
        """Return the level of the numbers of broken conditions, r = S / h - 1.

        Errors of different slots and of different encodings count as independent. Those of a rotation are alike in all
        ciphertexts of a row (their digits have one mean and meet one key): they are added linearly over them. The
        weights of a leaf are at most 1 and sum to at most D·d/h < 2D; an encoding meets one 1 for each feature.
        """
        chain, limbs = self.chain, len(self.parameters.data_primes)
        scale, products = 2.0**self.input_scale_bits, 2.0**self.input_scale_bits * self.weight_scale
        fresh = noise.fresh_bound(self.parameters.degree)
        switched = math.sqrt(self.ciphertexts) * chain.switching(limbs) if self.babies > 1 else 0.0
        added = math.sqrt((self.giants << len(self.sums)) + 1.0) * chain.switching(limbs) / products
        errors = (
            2 * math.sqrt(2 * self.bins) * (fresh + switched) / scale,
            2 * math.sqrt(self.features) * chain.encoding / self.weight_scale,
            2 * added,
            chain.encoding / 2.0**self.scale_bits,
            chain.rounding / 2.0**self.scale_bits,
        )
        return Level(limbs=limbs - 1, scale=2.0**self.scale_bits, error=sum(errors))

    @property
    def reply_limbs(self) -> int:
        """Return the primes of a reply."""
        return 1

    @property
    def reply_period(self) -> int:
        """Return the slots after which outputs repeat in a reply."""
        return self.outputs_padded

    @property
    def reply(self) -> Level:
        """Return the level of the reply. Raises NoRoom if the modulus is too small."""
        if len(self.parameters.data_primes) < 2 or products_bits(self) >= math.log2(self.parameters.modulus):
            raise NoRoom
        return self.chain.finished(reached(self.chain, self.chain.settled(self.broken), self.depth))

    def error_bound(self, squares: float, encoded: float) -> float:
        """Return the largest error of a normalised output, for every row in the box, against the moved thresholds.

        Args:
            squares: sum of the squares of the encoded leaf values of this output.
            encoded: largest error that the encoding of leaf values causes, over every leaf that a row can reach.
        """
        chain, reply = self.chain, self.reply
        assert reply.added is not None
        added = reply.added + (chain.switching(reply.limbs) + chain.encoding) / reply.scale
        fresh = noise.zero_bound(self.parameters.degree, self.parameters.special) / reply.scale
        errors = math.sqrt(squares) * reply.error, added * math.sqrt(2 * self.leaves), fresh
        return total(errors) + encoded + FLOAT_ERROR

    @property
    def typical_error(self) -> float:
        """Return the bound for four trees whose leaves all have the same absolute values, encoded as most are."""
        squares = min(self.leaves, 4 << self.depth) * (leaf_factor(self.depth) / 4) ** 2
        encoded = 2 * math.sqrt(self.parameters.degree / 12) / 2.0**self.leaf_scale_bits / abs(leaf_factor(self.depth))
        return self.error_bound(squares, 4 * encoded)

    @property
    def least_error(self) -> float:
        """Return what every honest bound of an output's error is above: a part of the typical one."""
        return self.typical_error / 8

    @property
    def flooding(self) -> float:
        """Return B: a protected reply gets uniform noise in [-B, B] on each output, the same in all copies, some
        times the error that is expected: what a reply's error says of the leaves is hidden in as much, no more.
        """
        return self.typical_error / 8 if self.protected else 0.0

    # --- checks and text ----------------------------------------------------------------------------------------------

    def checked(self) -> TreesPlan:
        """Return self if it is a plan of ours; a stranger may have sent it. Raises ProtocolError if not."""
        self.parameters.checked()
        powers = (self.bins, self.leaves, self.babies)
        if self.parameters.scheme != "ckks" or any(size < 1 or size & (size - 1) for size in powers):
            raise ProtocolError("Expected CKKS parameters, and bins, leaves and baby steps that are powers of two")
        if not (2 <= self.bins <= MOST_BINS and 1 <= self.features <= MOST_FEATURES and 1 <= self.depth <= MOST_DEPTH):
            raise ProtocolError("Expected bins, features and a depth in use")
        if not 1 <= self.outputs <= self.leaves <= self.slots or self.outputs_padded > self.leaves:
            raise ProtocolError("Expected leaves that fit the slots, and at least one for each output")
        if self.places > self.slots or self.babies > self.diagonals or self.model_bytes > MOST_MODEL_BYTES:
            raise ProtocolError("Expected baby and giant steps that cover the diagonals")
        bits = (self.input_scale_bits, self.scale_bits, self.leaf_scale_bits)
        if not (all(8 <= size <= 59 for size in bits) and 0 < self.input_bound < math.inf):
            raise ProtocolError("Expected scales and an input box in use")
        try:
            fits = self.reply.scale > 1 and 2.0**8 <= self.weight_scale < 2.0**59
        except NoRoom:
            fits = False
        if not fits or self.key_bytes > _MOST_KEY_BYTES:
            raise ProtocolError("Expected primes with room for the products, and keys of at most 2^30 bytes")
        return self

    def __str__(self) -> str:
        keys = f"{len(self.needs.steps) + self.needs.relinearisation} evaluation keys of {self.key_bytes / 1e6:.0f} MB"
        sizes = f"{self.features} features in {self.bins} intervals, {self.leaves} leaves of depth {self.depth}"
        query = f"{self.ciphertexts} ciphertexts a row"
        memory = f"{self.model_bytes / 1e6:.0f} MB for the model"
        work = f"{self.products} products, {self.rotations} rotations, {keys}, {memory}"
        error = f"error 2^{math.log2(self.typical_error):.0f} of the range"
        return f"{self.parameters}; {sizes}; {query}; {work}; {error} beside thresholds at edges of intervals"


def products_bits(plan: TreesPlan) -> float:
    """Return the bits that the first product takes, with its margin."""
    return plan.input_scale_bits + math.log2(plan.weight_scale) + 3


def edges(bins: int, input_bound: float) -> NDArray[np.float64]:
    """Return the edges between intervals, rising, shape (bins - 1,)."""
    return input_bound * (2 * np.arange(1, bins) / bins - 1)


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _doublings(first: int, end: int) -> tuple[int, ...]:
    return tuple(first << place for place in range((end // first).bit_length() - 1))


def bins_for(features: int) -> int:
    """Return as many bins as one ciphertext of the smallest ring holds, from 128 to 1024."""
    return min(1024, max(128, 1 << max((8192 // features).bit_length() - 1, 0)))


def plan_trees(
    shape: tuple[int, int, int, int],
    *,
    bins: int,
    sigmoid: bool,
    protected: bool,
    input_bound: float,
    precision_bits: int,
    speeds: Speeds = SEAL,
) -> TreesPlan | None:
    """Return the plan with the smallest ring and the fewest primes that gives the wanted precision.

    Args:
        shape: features, outputs, largest depth, and the leaves of the output that has most.
        bins: intervals of a feature, a power of two.
        sigmoid: whether the client applies a sigmoid at the end.
        protected: whether replies are re-randomised.
        input_bound: largest absolute value of a feature.
        precision_bits: outputs may be off by 2^-precision_bits of their range, beside what moved thresholds change.
        speeds: what operations cost.
    """
    features, outputs, depth, most = shape
    leaves = _power(most) * _power(outputs)
    rough = TreesPlan(
        parameters=Parameters(scheme="ckks", degree=8192, primes=()),
        input_scale_bits=0,
        scale_bits=0,
        leaf_scale_bits=0,
        input_bound=input_bound,
        features=features,
        outputs=outputs,
        bins=bins,
        depth=depth,
        leaves=leaves,
        babies=1,
        sigmoid=sigmoid,
        protected=protected,
    )
    for degree in (8192, 16384, 32768):
        if max(leaves, bins // 2) > degree // 2:
            continue
        for largest in sorted({speeds.largest_bits, 60}):
            plan = _smallest(rough, degree, largest, 2.0**-precision_bits, speeds)
            if plan is not None and plan.model_bytes <= MOST_MODEL_BYTES and plan.key_bytes <= _MOST_KEY_BYTES:
                return plan
    return None


def _smallest(rough: TreesPlan, degree: int, largest_bits: int, error: float, speeds: Speeds) -> TreesPlan | None:
    """Return the plan with the fewest primes that errs by no more than `error`, None if none does."""
    for count in range(2, 10):
        plan = _best(rough, degree, count, largest_bits, speeds)
        if plan is not None and plan.typical_error <= error:
            return plan
    return None


def _best(rough: TreesPlan, degree: int, count: int, largest_bits: int, speeds: Speeds) -> TreesPlan | None:
    """Return the plan with `count` data primes and the smallest error, None if none has room."""
    best: tuple[float, tuple[int, ...], tuple[int, int, int]] = math.inf, (), (0, 0, 0)
    for bits, scales in _candidates(degree, count, largest_bits):
        plan = _with(rough, degree, tuple((1 << size) - 1 for size in bits), scales, speeds)
        best = min(best, (_error_of(plan), bits, scales))
    if best[0] == math.inf:
        return None
    return _with(rough, degree, ntt_primes(degree, best[1]), best[2], speeds)


def _with(
    rough: TreesPlan, degree: int, primes: tuple[int, ...], scales: tuple[int, int, int], speeds: Speeds
) -> TreesPlan:
    plan = msgspec.structs.replace(
        rough,
        parameters=Parameters(scheme="ckks", degree=degree, primes=primes),
        input_scale_bits=scales[0],
        scale_bits=scales[1],
        leaf_scale_bits=scales[2],
    )
    sizes = [1 << place for place in range(plan.diagonals.bit_length())]
    limbs = len(plan.parameters.data_primes)

    def cost(babies: int) -> float:
        each = speeds.key_read(degree, limbs) + speeds.key_ms_per_byte * 16 * degree * limbs * (limbs + 1)
        giants = (plan.diagonals // babies - 1) * speeds.switch(degree, limbs)
        return giants + (babies - 1) * (each + plan.ciphertexts * speeds.hoisted(degree, limbs))

    return msgspec.structs.replace(plan, babies=min(sizes, key=cost))


def _candidates(degree: int, count: int, largest_bits: int) -> Iterator[tuple[tuple[int, ...], tuple[int, int, int]]]:
    """Yield sizes of primes, and scales of inputs, of numbers of broken conditions and of leaf values.

    The last data prime is the first that is divided by, after the product with the diagonals; the special one follows.
    """
    for first in (36, 44, 52, 60) if largest_bits == 60 else (36, 40, 44, largest_bits):
        for special in (55, 60) if largest_bits == 60 else (largest_bits,):
            largest = min(largest_bits, (LIMIT_BITS[degree] - special - first) // (count - 1))
            for size in (largest, *range(largest - 5, 29, -5)):
                for scale in range(26, min(size, 46) + 1, 2):
                    inputs = min(58, (first + scale) // 2 + 4)
                    for leaf in (16, 20):
                        yield (*[size] * (count - 1), first, special), (inputs, scale, leaf)


def _error_of(plan: TreesPlan) -> float:
    """Return the plan's typical error, infinite if it has no room."""
    try:
        return plan.typical_error
    except NoRoom:
        return math.inf
