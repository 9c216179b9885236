"""What executes a model's computation at a server: bytes of a question in, bytes of its reply out.

    SealMachine     Microsoft SEAL, operation by operation
    NativeMachine   a program in C++ (`engine_native`), the same bytes in and out

Both make replies fresh and flood them alike: an encryption of zero under the client's public key, by SEAL, and noise;
and both let the same of them leave (`shown`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.he.arithmetic import Computation, SealArithmetic, SealEncoder, Shape
from confide.he.engine_steps import uniform
from confide.he.packed import pack
from confide.he.seal import Ciphertext, Context, Evaluation, Needs, PublicKeys, refusing_transparent
from confide.he.seal_format import Residues
from confide.he.traces import hiding


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
    """Return a ciphertext as it travels, at the fewest primes: of its slots what the reply shows (`traces`); where it
    is protected, with an encryption of zero and with noise on each output, the same in all copies.
    """
    cipher = context.switch(cipher, limbs=reply.limbs)
    if flooding is not None:
        context.add(cipher, keys.zero(limbs=reply.limbs, scale=reply.scale))
        noise = flooding_slots(context.parameters.degree, flooding, reply.period, rng)
        context.add_plain(cipher, context.encode(noise, limbs=reply.limbs, scale=reply.scale))
    if not reply.period:
        return context.to_bytes(cipher)
    form = context.form(limbs=reply.limbs, ntt=True, scale=reply.scale)
    return shown(context.residues(cipher, form), form.primes, reply.period, rng)


def shown(residues: Residues, primes: Sequence[int], period: int, rng: Randomness) -> bytes:
    """Return a reply of which only real parts, averaged over the copies, can be read.

    Args:
        residues: of the ciphertext, in NTT form, shape (2, primes, N).
        primes: of the reply.
        period: of the copies.
        rng: secret.
    """
    moduli = np.array(primes, np.uint64)[:, None]
    first = (residues[0] + hiding(residues.shape[2], period, primes, rng)) % moduli
    return pack(np.stack([first, residues[1]]), primes)


def flooding_slots(degree: int, bound: float, period: int, rng: Randomness) -> NDArray[np.float64]:
    """Return noise for every slot, uniform in [-bound, bound), the same in all copies, shape (N/2,)."""
    return np.resize(bound * uniform(rng, period), degree // 2)
