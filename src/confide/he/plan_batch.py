"""The plan of a network in a batch: slot r of every ciphertext holds row r, every number has a ciphertext of its own.

There are no rotations, so one key serves (for products), and a linear map is sums of ciphertexts times integers. A
question costs the same whether it holds one row or N/2: this plan is for bulk scoring.

Paper: CryptoNets (ICML 2016); the primes and the scales are chosen as for `plan_network`.
"""

from __future__ import annotations

from functools import cached_property

from confide.errors import ProtocolError
from confide.he.packed import packed_bytes
from confide.he.plan_staged import StagedPlan
from confide.he.stages import Summed, sizes

#: Largest number of ciphertexts that a plan holds at one time.
MOST_CIPHERTEXTS = 1 << 16


class BatchPlan(StagedPlan, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="batch", dict=True):
    """A network as stages over slots, N/2 rows in as many ciphertexts as there are features.

    Args:
        features: columns of x.
    """

    features: int

    @cached_property
    def sizes(self) -> list[int]:
        """Return how many ciphertexts each register is."""
        return sizes(self.features, self.stages)

    @property
    def outputs(self) -> int:
        """Return the columns of y."""
        return self.sizes[-1]

    @property
    def reply_period(self) -> int:
        """Return the slots after which a reply repeats: none does, but imaginary parts do not leave."""
        return self.slots

    @property
    def products(self) -> int:
        """Return the products with weights."""
        return sum(products(stage) for stage in self.stages if isinstance(stage, Summed))

    @property
    def block_bytes(self) -> int:
        """Return the bytes of the question of one block or, if that is larger, of its reply."""
        primes, degree = self.parameters.data_primes, self.parameters.degree
        query = self.features * packed_bytes(primes, rows=2, count=degree)
        return max(query, self.outputs * packed_bytes(primes[: self.reply_limbs], rows=2, count=degree))

    def blocks(self, rows: int) -> int:
        """Return how many times N/2 rows a question holds."""
        return -(-rows // self.slots)

    def queries(self, rows: int) -> int:
        """Return the ciphertexts of a question."""
        return self.blocks(rows) * self.features

    def replies(self, rows: int) -> int:
        """Return the ciphertexts of a reply."""
        return self.blocks(rows) * self.outputs

    def checked(self) -> BatchPlan:
        """Return self if it is a plan of ours; a stranger may have sent it. Raises ProtocolError if not."""
        self.check_levels()
        if max(self.sizes) > MOST_CIPHERTEXTS or min(self.sizes) < 1 or self.needs.steps:
            raise ProtocolError("Expected as many ciphertexts as a batch can be")
        return self

    def __str__(self) -> str:
        rows = f"{self.slots} rows in {self.features} ciphertexts, {self.outputs} back"
        keys = f"no rotations, {int(self.needs.relinearisation)} evaluation key of {self.key_bytes / 1e6:.1f} MB"
        return f"{self.parameters}; scale {self.scale_bits} bits; {rows}; {self.products} products, {keys}"


def products(stage: Summed) -> int:
    """Return the products with weights of a stage, padding counted too."""
    return stage.shape.fan_in * stage.shape.outputs
