"""SEAL's serialised form, checked without SEAL: what a stranger sent is read here first, in full.

Every object starts with 16 bytes: magic 5e a1, header size, major and minor version, compression, 2 reserved, total
size. A ciphertext follows with the id of its parameters (32 bytes), whether it is in NTT form, the number of
polynomials, N, the number of primes, scale and correction factor, and a nested object: a count and 64-bit words, by
polynomial, prime and coefficient. A plaintext is an id (zero in coefficient form), a count, a scale and such an object.
A set of key-switching keys is the id of the parameters, a count and, per position, a count of objects of ciphertext
form. What was made with a secret key may have a seed for its second polynomial: the nested object then has half of the
numbers, and a third one follows, the generator's name (1 byte) and the seed (64 bytes).

Source: SEAL 4.x, native/src/seal/{serialization,ciphertext,plaintext,kswitchkeys,randomgen}.cpp. We write uncompressed,
unseeded objects and read uncompressed ones, so the length of each is known before it is read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError

Residues = NDArray[np.uint64]

_HEADER = struct.Struct("<HBBBBHQ")
_CIPHERTEXT = struct.Struct("<32sBQQQdQ")
_PLAINTEXT = struct.Struct("<32sQd")
_COUNT = struct.Struct("<Q")
_ID_BYTES = 32
_MAGIC, _MAJOR, _MINOR = 0xA15E, 4, 4
_MINOR_AT = 4
_SEED = struct.Struct("<B64s")
_GENERATORS = (1, 2)  # BLAKE2xb, SHAKE256
_SEEDED_BYTES = _HEADER.size + _SEED.size
_WORDS_AT = _HEADER.size + _CIPHERTEXT.size + _HEADER.size + _COUNT.size
_COEFFICIENTS_AT = _HEADER.size + _PLAINTEXT.size + _HEADER.size + _COUNT.size


@dataclass(frozen=True, slots=True)
class Form:
    """What a ciphertext of two polynomials must look like.

    Args:
        parms_id: SEAL's hash of the parameters at its level, 32 bytes.
        degree: N.
        primes: those of its level.
        ntt: whether it is in NTT form.
        scale: its scale; 1 for BFV and for keys.
        seeded: whether a seed stands for the second polynomial.
    """

    parms_id: bytes
    degree: int
    primes: tuple[int, ...]
    ntt: bool
    scale: float = 1.0
    seeded: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (polynomials, primes, coefficients) of the numbers that are there."""
        return 2 - self.seeded, len(self.primes), self.degree

    @property
    def size_bytes(self) -> int:
        """Return the length of its serialised form."""
        return _WORDS_AT + 8 * math.prod(self.shape) + _SEEDED_BYTES * self.seeded

    def fields(self) -> tuple[bytes, int, int, int, int, float, int]:
        """Return the fields of the serialised form, in order."""
        return self.parms_id, int(self.ntt), 2, self.degree, len(self.primes), self.scale, 1


def parms_id_bytes(words: Sequence[int]) -> bytes:
    """Return SEAL's hash of parameters, four words, as it is written."""
    return struct.pack("<4Q", *words)


def check_ciphertext(body: bytes | memoryview, form: Form) -> None:
    """Check that `body` is a ciphertext, or a public key, of exactly this form.

    Raises:
        ProtocolError: anything else: length, header, fields, or a number that is not below its prime.
    """
    view = memoryview(body)
    _check_header(view, form.size_bytes)
    if _CIPHERTEXT.unpack_from(view, _HEADER.size) != form.fields():
        raise ProtocolError("Expected a ciphertext of these parameters, level and form")
    words = math.prod(form.shape)
    numbers_end = _WORDS_AT + 8 * words
    inner = view[_HEADER.size + _CIPHERTEXT.size : numbers_end]
    _check_header(inner, len(inner))
    if form.seeded:
        _check_header(view[numbers_end:], _SEEDED_BYTES)
        if view[numbers_end + _HEADER.size] not in _GENERATORS:
            raise ProtocolError("Expected a seed of a generator of SEAL's")
    if _COUNT.unpack_from(inner, _HEADER.size)[0] != words:
        raise ProtocolError("Expected as many numbers as the parameters imply")
    check_residues(np.frombuffer(view, "<u8", words, _WORDS_AT).reshape(form.shape), form.primes)


def check_residues(residues: Residues, primes: Sequence[int]) -> None:
    """Check that every number is below its prime; residues have shape (..., primes, any)."""
    if not (residues < np.array(primes, np.uint64)[:, None]).all():
        raise ProtocolError("Expected numbers below their primes")


def check_key_set(body: bytes, form: Form, *, digits: int, indices: Collection[int]) -> None:
    """Check that `body` is a set of key-switching keys, at `indices` and nowhere else.

    Args:
        body: a stranger's.
        form: of each part of a key.
        digits: parts of each key: the number of data primes.
        indices: positions at which keys must be, at least one.

    Raises:
        ProtocolError: anything else.
    """
    view = memoryview(body)
    _check_header(view, len(view))
    place = _HEADER.size + _ID_BYTES + _COUNT.size
    if len(view) < place or bytes(view[_HEADER.size : place - _COUNT.size]) != form.parms_id:
        raise ProtocolError("Expected key-switching keys of these parameters")
    (count,) = _COUNT.unpack_from(view, place - _COUNT.size)
    if not max(indices) < count <= form.degree:
        raise ProtocolError("Expected the key-switching keys of this plan")
    if len(view) != place + _COUNT.size * count + len(indices) * digits * form.size_bytes:
        raise ProtocolError("Expected the key-switching keys of this plan, each of full length")
    for index in range(count):
        (parts,) = _COUNT.unpack_from(view, place)
        place += _COUNT.size
        if parts != (digits if index in indices else 0):
            raise ProtocolError("Expected the key-switching keys of this plan, each at its place")
        for _ in range(parts):
            check_ciphertext(view[place : place + form.size_bytes], form)
            place += form.size_bytes


def key_set_places(form: Form, *, digits: int, indices: Collection[int]) -> list[int]:
    """Return where the ciphertexts of a set of key-switching keys begin, in order; arguments as in `check_key_set`."""
    first = _HEADER.size + _ID_BYTES + _COUNT.size
    return [
        first + _COUNT.size * (index + 1) + (rank * digits + part) * form.size_bytes
        for rank, index in enumerate(sorted(indices))
        for part in range(digits)
    ]


def key_set_frame(form: Form, *, digits: int, indices: Collection[int]) -> list[bytes]:
    """Return what stands before each ciphertext of a set of key-switching keys; arguments as in `check_key_set`."""
    size = key_set_places(form, digits=digits, indices=indices)[-1] + form.size_bytes
    frame = [b""] * (len(indices) * digits)
    before = -1
    for rank, index in enumerate(sorted(indices)):
        frame[rank * digits] = bytes(_COUNT.size * (index - before - 1)) + _COUNT.pack(digits)
        before = index
    frame[0] = _header(size) + form.parms_id + _COUNT.pack(max(indices) + 1) + frame[0]
    return frame


def limbs_of(body: bytes) -> int:
    """Return the number of primes of a ciphertext of SEAL's own."""
    return _CIPHERTEXT.unpack_from(body, _HEADER.size)[4]


def says_ntt(body: bytes) -> bool:
    """Return whether a ciphertext, a stranger's, says of itself that it is in NTT form."""
    return body[_HEADER.size + _ID_BYTES : _HEADER.size + _ID_BYTES + 1] == b"\x01"


def minor_of(body: bytes) -> int:
    """Return the minor version of SEAL that wrote an object, which was checked."""
    return _HEADER.unpack_from(body)[3]


def with_minor(body: bytes, minor: int) -> bytes:
    """Return an unseeded ciphertext as SEAL 4.`minor` writes it; up to 4.3 SEAL reads nothing else."""
    written = bytearray(body)
    for header in (0, _HEADER.size + _CIPHERTEXT.size):
        written[header + _MINOR_AT] = minor
    return bytes(written)


def read_ciphertext(body: bytes | memoryview, form: Form) -> Residues:
    """Return the numbers of a ciphertext that was checked, read-only, shape `form.shape`."""
    return np.frombuffer(body, "<u8", offset=_WORDS_AT).reshape(form.shape)


def aligned(residues: Residues) -> Residues:
    """Return a copy that begins at a multiple of 64 bytes: compiled loops take it as it is."""
    room = np.empty(residues.size + 7, np.uint64)
    skipped = -room.ctypes.data % 64 // 8
    copy = room[skipped : skipped + residues.size].reshape(residues.shape)
    copy[...] = residues
    return copy


def ciphertext_head(form: Form) -> bytes:
    """Return what comes before the numbers of a serialised ciphertext."""
    size = 16 * len(form.primes) * form.degree
    return _header(form.size_bytes) + _CIPHERTEXT.pack(*form.fields()) + _words_head(size)


def write_ciphertext(residues: Residues, form: Form) -> bytes:
    """Return the serialised ciphertext with these numbers, shape `form.shape`."""
    return ciphertext_head(form) + np.ascontiguousarray(residues, "<u8").tobytes()


def read_plaintext(body: bytes, degree: int) -> Residues:
    """Return the coefficients of a plaintext of our own in coefficient form, shape (degree,)."""
    found = np.frombuffer(body, "<u8", offset=_COEFFICIENTS_AT)
    return np.concatenate([found, np.zeros(degree - len(found), np.uint64)])  # SEAL leaves zeros at the end out


def read_words(body: bytes, form: Form) -> Residues:
    """Return the words of a plaintext of our own in NTT form, shape (primes, N)."""
    return np.frombuffer(body, "<u8", offset=_COEFFICIENTS_AT).reshape(len(form.primes), form.degree)


def write_words(words: Residues, form: Form) -> bytes:
    """Return the serialised plaintext in NTT form with these words, shape (primes, N)."""
    return _plaintext(words.reshape(-1), form.parms_id, form.scale)


def write_plaintext(coefficients: Residues) -> bytes:
    """Return the serialised plaintext with these coefficients, in coefficient form."""
    return _plaintext(coefficients, bytes(_ID_BYTES), 1.0)


def _plaintext(numbers: Residues, parms_id: bytes, scale: float) -> bytes:
    words = np.ascontiguousarray(numbers, "<u8").tobytes()
    fields = _PLAINTEXT.pack(parms_id, len(numbers), scale)
    return _header(_COEFFICIENTS_AT + len(words)) + fields + _words_head(len(words)) + words


def _check_header(view: memoryview, length: int) -> None:
    if len(view) != length or length < _HEADER.size + _COUNT.size:
        raise ProtocolError("Expected an object of SEAL's with the length that the parameters imply")
    magic, size, major, minor, compression, reserved, total = _HEADER.unpack_from(view)
    if (magic, size, major, compression, reserved, total) != (_MAGIC, _HEADER.size, _MAJOR, 0, 0, length):
        raise ProtocolError("Expected an uncompressed object of SEAL 4")
    if minor > _MINOR:
        raise ProtocolError(f"Expected an object of SEAL up to 4.{_MINOR}")


def _header(total: int) -> bytes:
    return _HEADER.pack(_MAGIC, _HEADER.size, _MAJOR, _MINOR, 0, 0, total)


def _words_head(size_bytes: int) -> bytes:
    return _header(_HEADER.size + _COUNT.size + size_bytes) + _COUNT.pack(size_bytes // 8)
