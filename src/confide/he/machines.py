"""What executes a model's computation at a server: bytes of a question in, bytes of its reply out.

    SealMachine     Microsoft SEAL, operation by operation
    NativeMachine   a program in C++ (`engine_native`), the same bytes in and out

Both make replies fresh and flood them alike: an encryption of zero under the client's public key, by SEAL, and noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from confide.crypto.random import Randomness
from confide.he.arithmetic import Computation, SealArithmetic, SealEncoder, Shape
from confide.he.engine_steps import uniform
from confide.he.seal import Ciphertext, Context, Evaluation, Needs, PublicKeys, refusing_transparent


@runtime_checkable
class Keys(Protocol):
    """A client's public keys as a machine works with them."""

    def zero(self, *, limbs: int, scale: float = 1.0) -> Ciphertext:
        """Return a fresh encryption of zero under the client's key."""
        ...


class Machine(Protocol):
    """What executes a computation."""

    def keys(self, public: PublicKeys, needs: Needs) -> Keys:
        """Return a client's keys, checked. Raises ProtocolError on any others than those that are needed."""
        ...

    def answer(self, keys: Keys, bodies: Sequence[bytes], rng: Randomness) -> tuple[bytes, ...]:
        """Return the reply to one question.

        Args:
            keys: of `keys`.
            bodies: a stranger's ciphertexts, as many as the computation takes.
            rng: for the flooding of protected replies.

        Raises:
            ProtocolError: a malformed question.
        """
        ...


class SealMachine:
    """Execution on Microsoft SEAL.

    Args:
        context: of the parameters.
        computation: the model's.
    """

    def __init__(self, context: Context, computation: Computation) -> None:
        self._context = context
        self._computation = computation
        question = computation.question
        self._form = context.form(limbs=question.limbs, ntt=True, scale=question.scale)
        self._encoded = computation.encoded(SealEncoder(context))

    def keys(self, public: PublicKeys, needs: Needs) -> Evaluation:
        return Evaluation(self._context, public, needs)

    def answer(self, keys: Keys, bodies: Sequence[bytes], rng: Randomness) -> tuple[bytes, ...]:
        assert isinstance(keys, Evaluation)
        ciphers = [self._context.load(body, self._form) for body in bodies]
        with refusing_transparent():
            results = self._computation.run(SealArithmetic(self._context, keys), self._encoded, ciphers)
            reply, flooding = self._computation.reply, self._computation.flooding
            return tuple(leave(self._context, keys, one, reply, flooding, rng) for one in results)


def leave(
    context: Context, keys: Evaluation, cipher: Ciphertext, reply: Shape, flooding: float | None, rng: Randomness
) -> bytes:
    """Return a ciphertext as it travels, at the fewest primes; where it is protected, with an encryption of zero and
    with noise.
    """
    cipher = context.switch(cipher, limbs=reply.limbs)
    if flooding is not None:
        context.add(cipher, keys.zero(limbs=reply.limbs, scale=reply.scale))
        noise = flooding_slots(context.parameters.degree, flooding, rng)
        context.add_plain(cipher, context.encode(noise, limbs=reply.limbs, scale=reply.scale))
    return context.to_bytes(cipher)


def flooding_slots(degree: int, bound: float, rng: Randomness) -> np.ndarray[tuple[int], np.dtype[np.complex128]]:
    """Return noise for every slot, uniform in [-bound, bound) on both parts, shape (N/2,)."""
    return bound * uniform(rng, degree).view(np.complex128)
