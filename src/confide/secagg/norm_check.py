"""The check of one client's norm between two servers that hold its vector as shares; one message from the client.

The client splits x into y = x - m, which the main server gets, and m, which the helper expands from a seed. A hash of
both halves picks projections G; each server projects its own half. With a = G y + M / 2 and b = G m, both residues in
[0, M), and one bit w_j of carry, z_j = a_j + b_j - M w_j - M / 2 is the centred residue of (G x)_j: a and b *are*
additive shares of it over F_p, up to the carries. The client shares the carries and the bits of a slack s, and proves

    b (b - 1) = 0 for every bit b,    sum_j z_j^2 + s = T    over F_p, where nothing wraps: r (3 M / 2)^2 + 2 T < p,

as one inner product, each line of bits weighted with a power of rho from a second hash. Whatever bits the carries are,
z_j is some representative of (G x)_j and no shorter than the centred one, so the sum over those is at most T.

    symbol   here            meaning
    M        modulus         2^bits
    G        projection      r rows, from the hash of both halves
    w, s     inputs          r carries, then the bits of the slack, lowest first
    rho      weights         from the hash of G's seed and of the main server's share of the inputs
    t        point           drawn by the main server; no client knows it

Hashes that one server computes over what the other must not guess carry a blind. docs/protocols/shares.md has the
proofs.

Paper: joint randomness by hashing shares, Prio3 (draft-irtf-cfrg-vdaf); the projections, see `norm_bound`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from operator import mul

import msgspec
import numpy as np
from msgspec.structs import replace

from confide.crypto.keys import KEY_BYTES, commit, derive, label
from confide.crypto.projection import project
from confide.crypto.random import Randomness
from confide.crypto.ring import Words
from confide.errors import ProtocolError, UsageError
from confide.ideal import Vector
from confide.secagg.norm_bound import NormBound
from confide.secagg.norm_proof import (
    ELEMENT_BYTES,
    PRIME,
    Point,
    Proofs,
    Query,
    elements,
    pack_elements,
    subtract,
    unpack_elements,
)


class Evidence(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the main server gets beside a vector's words: the helper expands its own shares from its seed.

    Args:
        blind: 32 bytes that only client and main server know.
        seed_digest: commitment to the helper's seed.
        inputs, proof: the main server's shares.
    """

    blind: bytes
    seed_digest: bytes
    inputs: bytes
    proof: bytes


class Opening(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the main server shows the helper of one client.

    Args:
        words_digest, inputs_digest: over the main server's shares, blinded.
        seed_digest: as the client told the main server.
        query: the main server's share of what is opened at the point.
    """

    words_digest: bytes
    inputs_digest: bytes
    seed_digest: bytes
    query: bytes

    @property
    def signed(self) -> bytes:
        """Return what the client's signature covers beside its parcel."""
        return label(self.words_digest, self.inputs_digest, self.seed_digest)


class NormCheck:
    """The check in one session.

    Args:
        context: 32 bytes that all parties of the session agree on, and no others.
        bound: what is checked.
        bits: of the ring.

    Raises:
        UsageError: the ring is too narrow for the bound, or too wide for the field.
    """

    def __init__(self, context: bytes, bound: NormBound, bits: int) -> None:
        self.bound, self._context, self._modulus = bound, context, 1 << bits
        self._slack_bits = bound.threshold.bit_length()
        self._inputs = bound.rows + self._slack_bits
        self._proofs = Proofs(self._inputs + bound.rows)
        self.query_bytes = ELEMENT_BYTES * (self._proofs.masks + 2)
        largest = bound.rows * (3 * self._modulus // 2) ** 2 + (2 << self._slack_bits)
        if bits < bound.ring_bits or largest >= PRIME:
            raise UsageError(
                f"Expected a ring of {bound.ring_bits} bits or more that a field of 127 bits can check; got {bits} "
                f"bits for norm_bound={bound.norm}; lower norm_bound, the bound of a value or the cohort"
            )

    @property
    def soundness_bits(self) -> float:
        """Return b: each try lets a vector of norm c B or more pass with probability at most 2^-b.

        A try is one hash that picks projections or weights, and costs no message. The last term is paid per upload.
        """
        terms = (-self.bound.soundness_bits, math.log2(self._inputs / PRIME), -self._proofs.soundness_bits)
        return -math.log2(sum(2**term for term in terms))

    @property
    def evidence_bytes(self) -> int:
        """Return the most bytes that `Evidence` takes in a body."""
        return 2 * KEY_BYTES + ELEMENT_BYTES * (self._inputs + self._proofs.elements) + 32

    @property
    def opening_bytes(self) -> int:
        """Return the most bytes that `Opening` takes in a body."""
        return 3 * KEY_BYTES + self.query_bytes + 32

    def check(self, vector: Vector) -> None:
        """Check an honest client's own vector, so that it is never left out.

        Raises:
            UsageError: it is longer than the bound.
        """
        largest = int(np.abs(vector).max(initial=0))
        fits = largest**2 * len(vector) < 2**63
        values = vector if fits else vector.astype(object)
        if int(values @ values) > self.bound.norm**2:
            raise UsageError(f"Expected a vector of L2 norm at most norm_bound={self.bound.norm}; clip it")

    # --- the client ---------------------------------------------------------------------------------------------------

    def prove(
        self, name: str, seed: bytes, words: Words, packed: bytes, mask: Words, rng: Randomness
    ) -> tuple[Evidence, bytes] | None:
        """Return the evidence of the client `name`, and what it must sign; None if this seed does not pass.

        Args:
            name: the client.
            seed: of the helper's share, for this vector alone.
            words, packed: the main server's share.
            mask: the helper's share, expanded.
            rng: secret randomness.
        """
        blind = rng.bytes(KEY_BYTES)
        words_digest, seed_digest = self._words_digest(name, blind, packed), self._seed_digest(name, seed)
        projection = self._projection(name, words_digest, seed_digest)
        shares = project(projection, [words, mask], self.bound.rows)
        sums = [one + other for one, other in zip(self._main(shares[0]), self._helper(shares[1]), strict=True)]
        carries = [int(value >= self._modulus) for value in sums]
        length = sum((value % self._modulus - self._modulus // 2) ** 2 for value in sums)
        if length > self.bound.threshold:
            return None
        slack = self.bound.threshold - length
        inputs = carries + [slack >> bit & 1 for bit in range(self._slack_bits)]
        own = pack_elements(subtract(inputs, self._helper_inputs(name, seed)))
        inputs_digest = self._inputs_digest(name, blind, own)
        u, v, _ = self._statement(inputs, sums, self._weights(projection, inputs_digest), leads=True)
        masks = elements(rng.bytes(KEY_BYTES), self._proofs.masks)
        proof = pack_elements(subtract(self._proofs.prove(u, v, masks), self._helper_proof(name, seed)))
        signed = Opening(words_digest, inputs_digest, seed_digest, b"").signed
        return Evidence(blind, seed_digest, own, proof), signed

    # --- the main server ----------------------------------------------------------------------------------------------

    def draw_point(self, secret: bytes) -> bytes:
        """Return the session's point, 16 bytes, from the main server's long-lived secret.

        The same whenever the session is played again: a proof that is opened at two points is not zero-knowledge.
        """
        return pack_elements([self._proofs.point(int.from_bytes(derive(secret, self._info("point")), "little"))])

    def claims(self, name: str, packed: bytes, evidence: Evidence) -> Opening:
        """Return what `name` must have signed, as an opening that opens nothing yet."""
        words_digest = self._words_digest(name, evidence.blind, packed)
        return Opening(
            words_digest, self._inputs_digest(name, evidence.blind, evidence.inputs), evidence.seed_digest, b""
        )

    def open(self, name: str, words: Words, evidence: Evidence, claims: Opening, point: bytes) -> Opening:
        """Return the main server's half of the check of `name`.

        Raises:
            ProtocolError: the evidence is not well-formed.
        """
        if {len(evidence.blind), len(evidence.seed_digest)} != {KEY_BYTES}:
            raise ProtocolError("Expected a blind and a digest of 32 bytes")
        inputs = unpack_elements(evidence.inputs, self._inputs)
        proof = unpack_elements(evidence.proof, self._proofs.elements)
        projection = self._projection(name, claims.words_digest, claims.seed_digest)
        projected = self._main(project(projection, [words], self.bound.rows)[0])
        statement = self._statement(inputs, projected, self._weights(projection, claims.inputs_digest), leads=True)
        query = self._at(point).query(*statement, proof)
        return replace(claims, query=pack_elements([*query.wires, query.gadget, query.residue]))

    # --- the helper ---------------------------------------------------------------------------------------------------

    def accepts(self, name: str, seed: bytes, mask: Words, opening: Opening, point: bytes) -> bool:
        """Return whether the vector of `name` passes.

        Raises:
            ProtocolError: opening or point are not well-formed.
        """
        theirs = unpack_elements(opening.query, self._proofs.masks + 2)
        if self._seed_digest(name, seed) != opening.seed_digest:
            return False  # else the two servers would project by different rows
        projection = self._projection(name, opening.words_digest, opening.seed_digest)
        projected = self._helper(project(projection, [mask], self.bound.rows)[0])
        weights = self._weights(projection, opening.inputs_digest)
        statement = self._statement(self._helper_inputs(name, seed), projected, weights, leads=False)
        at = self._at(point)
        ours = at.query(*statement, self._helper_proof(name, seed))
        return at.holds(Query(theirs[:-2], theirs[-2], theirs[-1]), ours)

    # --- what more than one of them computes --------------------------------------------------------------------------

    def _info(self, purpose: str, name: str = "") -> bytes:
        return label("norm", self._context, purpose, name)

    def _words_digest(self, name: str, blind: bytes, packed: bytes) -> bytes:
        return commit(packed, label(self._info("words", name), blind))

    def _inputs_digest(self, name: str, blind: bytes, inputs: bytes) -> bytes:
        return commit(inputs, label(self._info("inputs", name), blind))

    def _seed_digest(self, name: str, seed: bytes) -> bytes:
        return commit(seed, self._info("seed", name))

    def _projection(self, name: str, words_digest: bytes, seed_digest: bytes) -> bytes:
        return hashlib.sha256(label(self._info("projection", name), words_digest, seed_digest)).digest()

    def _helper_inputs(self, name: str, seed: bytes) -> list[int]:
        return elements(derive(seed, self._info("helper's inputs", name)), self._inputs)

    def _helper_proof(self, name: str, seed: bytes) -> list[int]:
        return elements(derive(seed, self._info("helper's proof", name)), self._proofs.elements)

    def _weights(self, projection: bytes, inputs_digest: bytes) -> list[int]:
        """Return rho, rho^2, ..., one for each bit of the inputs."""
        digest = hashlib.sha256(label(self._info("weights"), projection, inputs_digest)).digest()
        rho, power, weights = int.from_bytes(digest, "little") % PRIME, 1, list[int]()
        for _ in range(self._inputs):
            power = power * rho % PRIME
            weights.append(power)
        return weights

    def _main(self, projected: Words) -> list[int]:
        """Return a: the main server's half, moved so that a small sum carries or not by one bit."""
        half, modulus = self._modulus // 2, self._modulus
        return [(value + half) % modulus for value in projected.tolist()]

    def _helper(self, projected: Words) -> list[int]:
        return [value % self._modulus for value in projected.tolist()]

    def _statement(
        self, inputs: Sequence[int], projected: Sequence[int], weights: Sequence[int], *, leads: bool
    ) -> tuple[list[int], list[int], int]:
        """Return u, v and the target of <u, v> = target; of shares or of the values themselves.

        Args:
            inputs, projected: w and s, a or b or their sum.
            weights: powers of rho.
            leads: whether constants are put in: at one of the servers, and at the client.
        """
        one = 1 if leads else 0
        z = [
            value - self._modulus * carry - one * self._modulus // 2
            for value, carry in zip(projected, inputs, strict=False)
        ]
        u = [*map(mul, weights, inputs), *z]
        v = [*(bit - one for bit in inputs), *z]
        slack = sum(bit << place for place, bit in enumerate(inputs[self.bound.rows :]))
        return u, v, one * self.bound.threshold - slack

    def _at(self, point: bytes) -> Point:
        return self._proofs.at(unpack_elements(point, 1)[0])
