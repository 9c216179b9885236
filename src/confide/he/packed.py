"""Ciphertexts and keys as they travel: their numbers, packed, and nothing that the plan says already.

    q_i    prime i            b_i    ceil(log2 q_i), the bits of a number modulo q_i
    N      ring degree        l      data primes; keys live modulo one more

A ciphertext is its two polynomials, by polynomial and prime; the N numbers of each take b_i bits, lowest bit first, as
in `confide.crypto.ring`. A set of key-switching keys is its keys by position, l ciphertexts each. Headers, level,
scale, positions and hashes of parameters stay where they are known from. A key that is used at fewer primes than all
travels as what is read of it there: as many of its ciphertexts, modulo as many data primes and the special one.

So a stranger's only freedom is in the numbers, and `unpack` refuses those that are not below their primes. Lengths are
checked before anything is allocated, and nothing is compressed, so no body grows to more than 64 / b_i of its size,
but for what is not used of a key: zeros fill it up to its whole size where SEAL reads it.

SEAL could send a seed for half of a fresh symmetric ciphertext or key; its Python binding makes no such objects.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

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


def key_primes(form: Form, limbs: int) -> tuple[int, ...]:
    """Return the primes at which a key is read that is used at `limbs` data primes: those, and the special one."""
    return (*form.primes[:limbs], form.primes[-1])


def key_set_bytes(form: Form, *, levels: Collection[int]) -> int:
    """Return the length of a packed set of key-switching keys, by the data primes that each is used at."""
    return sum(limbs * packed_bytes(key_primes(form, limbs), rows=2, count=form.degree) for limbs in levels)


def pack_key_set(body: bytes, form: Form, *, digits: int, levels: Mapping[int, int]) -> bytes:
    """Return a set of SEAL's key-switching keys, packed.

    Args:
        body: as SEAL writes it.
        form: of each part of a key.
        digits: parts of each key.
        levels: the data primes that each key is used at, by its position.

    Raises:
        ProtocolError: it is not a set of such keys at these positions.
    """
    check_key_set(body, form, digits=digits, indices=levels.keys())
    places = key_set_places(form, digits=digits, indices=levels.keys())
    view, size = memoryview(body), form.size_bytes
    found: list[bytes] = []
    for rank, index in enumerate(sorted(levels)):
        limbs = levels[index]
        for at in places[rank * digits : rank * digits + limbs]:
            residues = read_ciphertext(view[at : at + size], form)
            found.append(pack(residues[:, [*range(limbs), -1]], key_primes(form, limbs)))
    return b"".join(found)


def unpack_key_set(body: bytes, form: Form, *, digits: int, levels: Mapping[int, int]) -> bytes:
    """Return the key-switching keys in `body`, a stranger's, as SEAL reads them; what is not used of a key is 0.

    Raises:
        ProtocolError: another length, or a number that is not below its prime.
    """
    if len(body) != key_set_bytes(form, levels=levels.values()):
        raise ProtocolError("Expected the key-switching keys of this plan, each of full length, and no others")
    return b"".join(_set_pieces(body, form, digits, levels))


def unpack_keys(body: bytes, form: Form, levels: Mapping[int, int]) -> Iterator[tuple[int, Residues]]:
    """Yield position and numbers of each key in `body`, a stranger's of the right length, by rising position.

    Shape (digits, 2, primes, N), as far as the key is used: `limbs` digits and `key_primes`.

    Raises:
        ProtocolError: a number that is not below its prime.
    """
    view, at = memoryview(body), 0
    for index in sorted(levels):
        limbs, primes = levels[index], key_primes(form, levels[index])
        end = at + key_set_bytes(form, levels=(limbs,))
        yield index, unpack(view[at:end], (limbs, 2, len(primes), form.degree), primes)
        at = end


def whole_key(residues: Residues, form: Form, digits: int) -> Residues:
    """Return a key of `unpack_keys` with zeros where it is not used, shape (digits, 2, primes, N)."""
    limbs = len(residues)
    if limbs == digits:
        return residues
    whole = np.zeros((digits, *form.shape), np.uint64)
    whole[:limbs, :, :limbs], whole[:limbs, :, -1] = residues[:, :, :-1], residues[:, :, -1]
    return whole


def _set_pieces(body: bytes, form: Form, digits: int, levels: Mapping[int, int]) -> Iterator[bytes | memoryview]:
    """Yield packed keys in SEAL's form, piece by piece."""
    frame = iter(key_set_frame(form, digits=digits, indices=levels.keys()))
    for _, residues in unpack_keys(body, form, levels):
        for part in whole_key(residues, form, digits):
            yield next(frame)
            yield ciphertext_head(form)
            yield np.ascontiguousarray(part, "<u8").data
