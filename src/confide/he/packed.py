"""Ciphertexts and keys as they travel: their numbers, packed, and nothing that the plan says already.

    q_i    prime i            b_i    ceil(log2 q_i), the bits of a number modulo q_i
    N      ring degree        l      data primes; keys live modulo one more

A ciphertext is its two polynomials, by polynomial and prime; the N numbers of each take b_i bits, lowest bit first, as
in `confide.crypto.ring`. A set of key-switching keys is its keys by position, l ciphertexts each. Headers, level,
scale, positions and hashes of parameters stay where they are known from; so a stranger's only freedom is in the
numbers, and `unpack` refuses those that are not below their primes. Lengths are checked before anything is allocated,
and nothing is compressed, so no body grows to more than 64 / b_i of its size.

SEAL could send a seed for half of a fresh symmetric ciphertext or key; its Python binding makes no such objects.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from confide.crypto import ring
from confide.errors import ProtocolError
from confide.he.compiled import NATIVE
from confide.he.seal_format import (
    Form,
    Residues,
    check_ciphertext,
    check_key_set,
    ciphertext_head,
    key_set_frame,
    key_set_places,
    read_ciphertext,
)


def residue_bits(prime: int) -> int:
    """Return b, the bits of the largest number below `prime`."""
    return (prime - 1).bit_length()


def packed_bytes(primes: Sequence[int], *, rows: int, count: int) -> int:
    """Return the length of `rows` times `count` packed numbers modulo each prime."""
    return rows * sum((count * residue_bits(prime) + 7) // 8 for prime in primes)


def pack(residues: Residues, primes: Sequence[int]) -> bytes:
    """Return numbers packed, shape (..., primes, count), each below its prime."""
    rows = np.ascontiguousarray(residues, np.uint64).reshape(math.prod(residues.shape[:-1]), residues.shape[-1])
    if NATIVE:
        return NATIVE.pack_residues(rows, primes)
    bits = [residue_bits(prime) for prime in primes] * math.prod(residues.shape[:-2])
    return b"".join(map(ring.pack, rows, bits))


def unpack(body: bytes | memoryview, shape: tuple[int, ...], primes: Sequence[int]) -> Residues:
    """Return the numbers in `body`, a stranger's, shape (..., primes, count) as given.

    Raises:
        ProtocolError: another length, a number that is not below its prime, ones in the bits that fill up a byte.
    """
    rows, count = math.prod(shape[:-2]), shape[-1]
    if len(body) != packed_bytes(primes, rows=rows, count=count):
        raise ProtocolError("Expected as many packed numbers as the plan implies")
    return _numbers(body, primes, rows, count).reshape(shape)


def _numbers(body: bytes | memoryview, primes: Sequence[int], rows: int, count: int) -> Residues:
    """Return the numbers of each row modulo each prime, shape (rows * primes, count), from a body of the right length.

    Raises:
        ProtocolError: a number that is not below its prime, or ones in the bits that fill up a byte.
    """
    if NATIVE:
        found = NATIVE.unpack_residues(np.frombuffer(body, np.uint8), primes, rows, count)
        if found is None:
            raise ProtocolError("Expected numbers below their primes, and zeros behind them")
        return found
    residues = np.empty((rows * len(primes), count), np.uint64)
    view, at = memoryview(body), 0
    for place, row in enumerate(residues):
        prime = primes[place % len(primes)]
        bits = residue_bits(prime)
        end = at + (count * bits + 7) // 8
        row[:] = ring.unpack(bytes(view[at:end]), bits, count)
        if count and int(row.max()) >= prime:
            raise ProtocolError("Expected numbers below their primes")
        at = end
    return residues


# --- ciphertexts ------------------------------------------------------------------------------------------------------


def ciphertext_bytes(form: Form) -> int:
    """Return the length of a packed ciphertext or public key."""
    return packed_bytes(form.primes, rows=2, count=form.degree)


def pack_ciphertext(body: bytes, form: Form) -> bytes:
    """Return a ciphertext or public key of SEAL's, packed. Raises ProtocolError if it is not of this form."""
    check_ciphertext(body, form)
    return pack(read_ciphertext(body, form), form.primes)


def unpack_ciphertext(body: bytes, form: Form) -> bytes:
    """Return the ciphertext or public key in `body`, a stranger's, as SEAL reads it.

    Raises:
        ProtocolError: another length, or a number that is not below its prime.
    """
    if len(body) != ciphertext_bytes(form):
        raise ProtocolError("Expected a ciphertext of the length that the plan implies")
    return b"".join(_pieces(memoryview(body), form))


def _pieces(body: memoryview, form: Form) -> Iterator[bytes | memoryview]:
    """Yield a packed ciphertext in SEAL's form, piece by piece."""
    yield ciphertext_head(form)
    yield _numbers(body, form.primes, 2, form.degree).astype("<u8", copy=False).data


# --- keys -------------------------------------------------------------------------------------------------------------


def key_set_bytes(form: Form, *, digits: int, keys: int) -> int:
    """Return the length of a packed set of key-switching keys."""
    return keys * digits * ciphertext_bytes(form)


def pack_key_set(body: bytes, form: Form, *, digits: int, indices: Collection[int]) -> bytes:
    """Return a set of SEAL's key-switching keys, packed.

    Args:
        body: as SEAL writes it.
        form: of each part of a key.
        digits: parts of each key.
        indices: positions of the keys.

    Raises:
        ProtocolError: it is not a set of such keys at these positions.
    """
    check_key_set(body, form, digits=digits, indices=indices)
    places = key_set_places(form, digits=digits, indices=indices)
    view, size = memoryview(body), form.size_bytes
    return b"".join(pack(read_ciphertext(view[at : at + size], form), form.primes) for at in places)


def unpack_key_set(body: bytes, form: Form, *, digits: int, indices: Collection[int]) -> bytes:
    """Return the key-switching keys in `body`, a stranger's, as SEAL reads them.

    Raises:
        ProtocolError: another length, or a number that is not below its prime.
    """
    if len(body) != key_set_bytes(form, digits=digits, keys=len(indices)):
        raise ProtocolError("Expected the key-switching keys of this plan, each of full length, and no others")
    return b"".join(_set_pieces(memoryview(body), form, digits, indices))


def _set_pieces(body: memoryview, form: Form, digits: int, indices: Collection[int]) -> Iterator[bytes | memoryview]:
    """Yield packed keys in SEAL's form, piece by piece."""
    size = ciphertext_bytes(form)
    for count, between in enumerate(key_set_frame(form, digits=digits, indices=indices)):
        yield between
        yield from _pieces(body[count * size : (count + 1) * size], form)
