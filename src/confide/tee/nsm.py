"""Evidence of AWS Nitro enclaves, from the secure module behind `/dev/nsm`.

One call of ioctl carries a request in CBOR to the module and its answer back:

    {"Attestation": {"user_data": 64 bytes, "nonce": null, "public_key": null}}
    {"Attestation": {"document": bytes}}    or    {"Error": text}

`user_data` are the 64 bytes that bind the claims, and with them the nonce and the public key: the fields of those names
stay empty, so that evidence says the same on all hardware.

Paper: aws-nitro-enclaves-nsm-api (`Request`, `Response`, the driver's message of two iovec), and the same in Linux as
include/uapi/linux/nsm.h: ioctl _IOWR(0x0A, 0, 32 bytes), requests up to 4 KiB, answers up to 12 KiB.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable

from confide.errors import ProtocolError, UsageError
from confide.tee import cbor
from confide.tee.evidence import REPORT_DATA_BYTES, Provider, Quoted

DEVICE = "/dev/nsm"

_REQUEST_BYTES = 0x1000
_ANSWER_BYTES = 0x3000
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
    return cbor.head(cbor.MAP, 1) + _text("Attestation") + cbor.head(cbor.MAP, 3) + fields


def document_in(answer: bytes) -> bytes:
    """Return the document in an answer of the module.

    Raises:
        UsageError: it is a refusal, or no answer in the one form there is.
    """
    try:
        item = cbor.loads(answer)
    except ProtocolError:
        item = None
    match item:  # and nothing beside it
        case {"Attestation": {"document": bytes(document)}} if item == {"Attestation": {"document": document}}:
            return document
        case {"Error": str(refusal)} if item == {"Error": refusal}:
            raise UsageError(f"Expected a document, the secure module answered {refusal!r}; start the enclave anew")
        case _:
            raise UsageError("Expected a document from the secure module, got something else")


def _user_data(data: bytes) -> bytes:
    """Return the field of a request, which is written the same in a document."""
    return _text("user_data") + cbor.head(cbor.BYTES, len(data)) + data


def _text(text: str) -> bytes:
    return cbor.head(cbor.TEXT, len(text)) + text.encode("ascii")


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
