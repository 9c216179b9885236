"""Evidence of AWS Nitro enclaves, from the secure module behind `/dev/nsm`.

One call of ioctl carries a request in CBOR to the module and its answer back:

    {"Attestation": {"user_data": 64 bytes, "nonce": null, "public_key": null}}
    {"Attestation": {"document": bytes}}    or    {"Error": text}

`user_data` are the 64 bytes that bind the claims, and with them the nonce and the public key: the fields of those names
stay empty, so that evidence says the same on all hardware.

Paper: aws-nitro-enclaves-nsm-api (`Request`, `Response`, the driver's message of two iovec), and the same in Linux as
include/uapi/linux/nsm.h: ioctl _IOWR(0x0A, 0, 32 bytes), requests up to 4 KiB, answers up to 12 KiB. CBOR is RFC 8949;
of it only what these messages use is read, so an enclave needs no package for it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable

from confide.errors import UsageError
from confide.tee.evidence import REPORT_DATA_BYTES, Provider, Quoted

DEVICE = "/dev/nsm"

_REQUEST_BYTES = 0x1000
_ANSWER_BYTES = 0x3000
_BYTES, _TEXT, _MAP = 2, 3, 5
_NULL = b"\xf6"

#: Sends one request to the module and returns its answer.
Exchange = Callable[[bytes], bytes]


class _Iovec(ctypes.Structure):
    _fields_ = (("addr", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Message(ctypes.Structure):
    _fields_ = (("request", _Iovec), ("response", _Iovec))


#: _IOWR(0x0A, 0, struct nsm_raw): both ways, the size of the message, the driver's letter, its only command.
IOCTL = 3 << 30 | ctypes.sizeof(_Message) << 16 | 0x0A << 8


class Nitro:
    """Evidence of a Nitro enclave. See `confide.tee.attest.Attester`.

    Args:
        device: the module's file.
        exchange: talks to the module; None is this machine's device, another one in tests.

    Raises:
        UsageError: this is no such enclave.
    """

    name = "nitro"
    provider = Provider.NITRO

    def __init__(self, device: str = DEVICE, *, exchange: Exchange | None = None) -> None:
        if exchange is None and not os.path.exists(device):
            raise UsageError(
                f"Expected attester='nitro' to find {device}; it is there inside an AWS Nitro enclave (deploy/nitro), "
                "and not on the instance that started it"
            )
        self._exchange: Exchange = (lambda request: _converse(device, request)) if exchange is None else exchange

    def quote(self, report_data: bytes) -> Quoted:
        """Return evidence about `report_data`, 64 bytes.

        Raises:
            UsageError: the module refuses.
        """
        assert len(report_data) == REPORT_DATA_BYTES
        request = attestation_request(report_data)
        try:
            answer = self._exchange(request)
        except OSError as error:
            hint = "open it to this user" if error.errno in (errno.EACCES, errno.EPERM) else "start the enclave anew"
            raise UsageError(
                f"Expected an answer of the secure module, got {error.strerror or error}; {hint}"
            ) from None
        document = document_in(answer)
        if _user_data(report_data) not in document:
            raise UsageError("Expected a document about our own data from the secure module; start the enclave anew")
        return Quoted(document, {})


def attestation_request(user_data: bytes) -> bytes:
    """Return the request for a document about `user_data`, in CBOR."""
    fields = _user_data(user_data) + _text("nonce") + _NULL + _text("public_key") + _NULL
    return _head(_MAP, 1) + _text("Attestation") + _head(_MAP, 3) + fields


def document_in(answer: bytes) -> bytes:
    """Return the document in an answer of the module.

    Raises:
        UsageError: it is a refusal, or no answer in the one form there is.
    """
    try:
        reader = _Reader(answer)
        reader.expect(_MAP, 1)
        kind = reader.text()
        if kind == "Error":
            raise UsageError(
                f"Expected a document, the secure module answered {reader.text()!r}; start the enclave anew"
            )
        if kind != "Attestation":
            raise ValueError
        reader.expect(_MAP, 1)
        if reader.text() != "document":
            raise ValueError
        return reader.string(_BYTES)
    except ValueError:
        raise UsageError("Expected a document from the secure module, got something else") from None


def _head(kind: int, size: int) -> bytes:
    """Return how CBOR begins an item of `kind`: its size in the fewest bytes."""
    if size < 24:
        return bytes([kind << 5 | size])
    width = 1 if size < 1 << 8 else 2
    return bytes([kind << 5 | 23 + width]) + size.to_bytes(width, "big")


def _user_data(data: bytes) -> bytes:
    """Return the field of a request, which is written the same in a document."""
    return _text("user_data") + _head(_BYTES, len(data)) + data


def _text(text: str) -> bytes:
    return _head(_TEXT, len(text)) + text.encode("ascii")


class _Reader:
    """What is left of CBOR. Every method raises ValueError at what it does not expect."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def expect(self, kind: int, size: int) -> None:
        """Go behind the head of an item of this kind and size."""
        if self._size(kind) != size:
            raise ValueError

    def text(self) -> str:
        """Return the next item, a text."""
        return self.string(_TEXT).decode("utf-8")

    def string(self, kind: int) -> bytes:
        """Return the next item, bytes or a text."""
        return self._take(self._size(kind))

    def _size(self, kind: int) -> int:
        first = self._take(1)[0]
        if first >> 5 != kind:
            raise ValueError
        low = first & 31
        if low < 24:
            return low
        if low > 27:
            raise ValueError
        return int.from_bytes(self._take(1 << low - 24), "big")

    def _take(self, count: int) -> bytes:
        part = self._body[self._at : self._at + count]
        if len(part) != count:
            raise ValueError
        self._at += count
        return part


def _converse(device: str, request: bytes) -> bytes:
    """Return the module's answer to `request`. Raises OSError."""
    assert len(request) <= _REQUEST_BYTES
    asked = ctypes.create_string_buffer(request, len(request))
    answered = ctypes.create_string_buffer(_ANSWER_BYTES)
    message = _Message(_Iovec(ctypes.addressof(asked), len(request)), _Iovec(ctypes.addressof(answered), _ANSWER_BYTES))
    file = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(file, IOCTL, message)
    finally:
        os.close(file)
    return answered.raw[: min(int(message.response.len), _ANSWER_BYTES)]
