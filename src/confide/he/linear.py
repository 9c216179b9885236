"""Linear models under BFV: the client encrypts rows, the server multiplies once, the client reads dot products off.

    query   c = (c0, c1) of x̂(X), symmetric, in NTT form so that the server's product is pointwise
    reply   c' = ŵ(X)·c + E(0), of which c1' leaves, and c0' at the places of results with b̂ and flooding added

Coefficients of c0' that hold no result never leave, which hides the cross terms of the product better than a mask
would. In open mode there is neither E(0) nor flooding: c1' = ŵ(X)·c1 then gives the weights to whoever sent c1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.errors import ProtocolError
from confide.he.encode import Quantised, in_box
from confide.he.plan_linear import LinearPlan
from confide.he.seal import Ciphertext, Context, Evaluation, SecretKey, refusing_transparent
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
        return tuple(self._encrypt(secret, row) for row in packed.astype(np.uint64))

    def _encrypt(self, secret: SecretKey, coefficients: Residues) -> bytes:
        cipher = secret.encrypt(self.context.polynomial(coefficients))
        self.context.to_ntt(cipher)
        return self.context.to_bytes(cipher)

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
        self._query = self.context.form(limbs=self._limbs, ntt=True)
        self._reply = self.context.form(limbs=self._limbs, ntt=False)
        packed = plan.blocks.weights(layer.weights)
        packed[packed < 0] += t
        plains = [self.context.polynomial(row) for row in packed.astype(np.uint64)]
        self._weights = [self.context.plain_to_ntt(plain, limbs=self._limbs) for plain in plains]
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
        queries = [self.context.load(body, self._query) for body in ciphertexts]
        c0 = np.empty((self._limbs, rows, blocks.outputs), np.uint64)
        c1 = np.empty((len(queries), blocks.products, *self._reply.shape[1:]), np.uint64)
        for count, query in enumerate(queries):
            part = slice(count * blocks.rows, min((count + 1) * blocks.rows, rows))
            for product in range(blocks.products):
                columns = slice(product * blocks.width, min((product + 1) * blocks.width, blocks.outputs))
                residues = self.context.residues(self._product(keys, query, product), self._reply)
                c0[:, part, columns] = residues[0][:, blocks.places(part.stop - part.start, product)]
                c1[count, product] = residues[1]
        return self._add_constants(c0, rng), c1

    def _product(self, keys: Evaluation, query: Ciphertext, product: int) -> Ciphertext:
        with refusing_transparent():
            cipher = self.context.times_plain(query, self._weights[product])
        self.context.from_ntt(cipher)
        if self.plan.protected:
            self.context.add(cipher, keys.zero(limbs=self._limbs))
        return cipher

    def _add_constants(self, c0: Residues, rng: Randomness) -> Residues:
        """Return `c0` with the bias and the flooding of each result added."""
        bound = self.plan.flooding_bound
        constants = [bias + rng.below(2 * bound + 1) - bound for _ in range(c0.shape[1]) for bias in self._biases]
        added = np.array([[value % prime for value in constants] for prime in self._reply.primes], np.uint64)
        return (c0 + added.reshape(c0.shape)) % np.array(self._reply.primes, np.uint64)[:, None, None]
