"""Linear models under BFV: the client encrypts rows, the server multiplies once, the client reads dot products off.

    query   c = (c0, c1) of x̂(X), symmetric, in NTT form so that the server's product is pointwise
    reply   c' = ŵ(X)·c + E(0), of which c1' leaves, and c0' at the places of results with b̂ and flooding added

Coefficients of c0' that hold no result never leave, which hides the cross terms of the product better than a mask
would. In open mode there is neither E(0) nor flooding: c1' = ŵ(X)·c1 then gives the weights to whoever sent c1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.errors import ProtocolError
from confide.he.encode import Integers, Quantised, in_box
from confide.he.packed import unpack
from confide.he.plan_linear import LinearPlan
from confide.he.seal import Context, Evaluation, SecretKey, refusing_transparent
from confide.he.seal_format import Residues

Matrix = NDArray[np.float64]


class LinearClient:
    """The client's half: public tables of one plan.

    Args:
        plan: a stranger's, checked.
    """

    def __init__(self, plan: LinearPlan) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        self._limbs = len(plan.parameters.data_primes)
        self._form = self.context.form(limbs=self._limbs, ntt=False)

    def encrypt(self, secret: SecretKey, x: Matrix) -> tuple[bytes, ...]:
        """Return fresh encryptions of `x`, shape (rows, features).

        Raises:
            DataError: `x` is not in the certified box.
        """
        integers = self.plan.fixed.inputs(in_box(x, self.plan.features, self.plan.fixed.input_bound))
        packed = self.plan.blocks.inputs(integers)
        packed[packed < 0] += self.plan.parameters.plain_modulus
        return tuple(secret.encrypt_packed(self.context.polynomial(row)) for row in packed.astype(np.uint64))

    def decrypt(self, secret: SecretKey, c0: Residues, c1: Residues, rows: int) -> Matrix:
        """Return the exact results z, shape (rows, outputs), as float64.

        Args:
            secret: the key of the query.
            c0: shape (primes, rows, outputs), a stranger's.
            c1: shape (ciphertexts, products, primes, N), a stranger's.
            rows: of the query.

        Raises:
            ProtocolError: a number is not below its prime.
        """
        blocks, t = self.plan.blocks, self.plan.parameters.plain_modulus
        results = np.empty((rows, blocks.outputs), np.int64)
        whole = np.zeros(self._form.shape, np.uint64)
        for count, place in enumerate(range(0, rows, blocks.rows)):
            part = slice(place, min(place + blocks.rows, rows))
            for product in range(blocks.products):
                columns = slice(product * blocks.width, min((product + 1) * blocks.width, blocks.outputs))
                places = blocks.places(part.stop - part.start, product)
                whole[0] = 0
                whole[0][:, places] = c0[:, part, columns]
                whole[1] = c1[count, product]
                plain = secret.decrypt(self.context.from_residues(whole, self._form))
                results[part, columns] = self.context.coefficients(plain)[places].astype(np.int64)
        results[results > t // 2] -= t
        return results.astype(np.float64)


class LinearServer:
    """The server's half: the weights as polynomials.

    Args:
        plan: of the model's shape.
        layer: the model as integers.
    """

    def __init__(self, plan: LinearPlan, layer: Quantised) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        self.error = layer.error
        self.exponents = layer.exponents
        parameters = plan.parameters
        q, t = parameters.modulus, parameters.plain_modulus
        self._limbs = len(parameters.data_primes)
        self._reply = self.context.form(limbs=self._limbs, ntt=False)
        packed = plan.blocks.weights(layer.weights)
        multiplier = SealMultiplier if self.context.products is None else NativeMultiplier
        self._multiplier = multiplier(self.context, packed, protected=plan.protected)
        self._biases = [(2 * q * bias + t) // (2 * t) for bias in layer.biases]

    def answer(
        self, keys: Evaluation, ciphertexts: tuple[bytes, ...], rows: int, rng: Randomness
    ) -> tuple[Residues, Residues]:
        """Return c0, shape (primes, rows, outputs), and c1, shape (ciphertexts, products, primes, N).

        Args:
            keys: the client's.
            ciphertexts: a stranger's.
            rows: a stranger's: how many rows they hold.
            rng: for the flooding.

        Raises:
            ProtocolError: a malformed query.
        """
        blocks = self.plan.blocks
        if rows < 1 or len(ciphertexts) != blocks.ciphertexts(rows):
            raise ProtocolError("Expected as many ciphertexts as the rows take")
        c0 = np.empty((self._limbs, rows, blocks.outputs), np.uint64)
        c1 = np.empty((len(ciphertexts), blocks.products, *self._reply.shape[1:]), np.uint64)
        for count, body in enumerate(ciphertexts):
            products = self._multiplier.products(keys, body)
            part = slice(count * blocks.rows, min((count + 1) * blocks.rows, rows))
            for product in range(blocks.products):
                columns = slice(product * blocks.width, min((product + 1) * blocks.width, blocks.outputs))
                residues = next(products)
                c0[:, part, columns] = residues[0][:, blocks.places(part.stop - part.start, product)]
                c1[count, product] = residues[1]
        return self._add_constants(c0, rng), c1

    def _add_constants(self, c0: Residues, rng: Randomness) -> Residues:
        """Return `c0` with the bias and the flooding of each result added."""
        bound = self.plan.flooding_bound
        constants = [bias + rng.below(2 * bound + 1) - bound for _ in range(c0.shape[1]) for bias in self._biases]
        added = np.array([[value % prime for value in constants] for prime in self._reply.primes], np.uint64)
        return (c0 + added.reshape(c0.shape)) % np.array(self._reply.primes, np.uint64)[:, None, None]


class SealMultiplier:
    """Products of queries with the weights, by SEAL.

    Args:
        context: of the plan's parameters.
        weights: signed coefficients, shape (products, N).
        protected: whether each product gets a fresh encryption of zero.
    """

    def __init__(self, context: Context, weights: Integers, *, protected: bool) -> None:
        limbs = len(context.parameters.data_primes)
        self._context, self._limbs, self._protected = context, limbs, protected
        self._query, self._reply = context.form(limbs=limbs, ntt=True), context.form(limbs=limbs, ntt=False)
        coefficients = (weights % context.parameters.plain_modulus).astype(np.uint64)
        self._weights = [context.plain_to_ntt(context.polynomial(row), limbs=limbs) for row in coefficients]

    def products(self, keys: Evaluation, body: bytes) -> Iterator[Residues]:
        """Yield the product with each polynomial of weights, in coefficient form, shape (2, primes, N).

        Args:
            keys: the client's.
            body: a packed query, a stranger's.

        Raises:
            ProtocolError: a malformed query, or none that is encrypted.
        """
        query = self._context.load(body, self._query)
        for weights in self._weights:
            with refusing_transparent():
                cipher = self._context.times_plain(query, weights)
            self._context.from_ntt(cipher)
            if self._protected:
                self._context.add(cipher, keys.zero(limbs=self._limbs))
            yield self._context.residues(cipher, self._reply)


class NativeMultiplier:
    """The same by `confide._native`: the same numbers, which only the encryption of zero makes fresh."""

    def __init__(self, context: Context, weights: Integers, *, protected: bool) -> None:
        primes = context.parameters.data_primes
        self._protected = protected
        self._query = context.form(limbs=len(primes), ntt=True)
        self._reply = context.form(limbs=len(primes), ntt=False)
        assert context.products is not None
        self._products = context.products
        moduli = np.array(primes, np.int64)[:, None]
        self._weights = [self._products.forward((row % moduli).astype(np.uint64)) for row in weights]

    def products(self, keys: Evaluation, body: bytes) -> Iterator[Residues]:
        query = unpack(body, self._query.shape, self._query.primes)
        for weights in self._weights:
            zero = keys.zero_residues(self._reply) if self._protected else None
            product = self._products.multiply(query, weights, zero)
            if product is None:
                raise ProtocolError("Expected encryptions, not numbers in the clear")
            yield product
