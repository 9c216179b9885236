"""The secure module of a Nitro enclave: our few bytes of CBOR against a library's, and the real message of ioctl."""

from __future__ import annotations

import ctypes
import errno
import fcntl
from contextlib import suppress

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import UsageError
from confide.tee import nsm
from confide.tee.evidence import Provider
from confide.tee.nsm import IOCTL, Nitro, attestation_request, document_in
from tee.kernel import vector

DATA = bytes(range(64))


def answer(document: bytes) -> bytes:
    return cbor2.dumps({"Attestation": {"document": document}})


def field(data: bytes) -> bytes:
    """Return `user_data` as it stands in a document."""
    return cbor2.dumps("user_data") + cbor2.dumps(data)


@given(st.binary(min_size=0, max_size=1024))
def test_a_request_is_what_a_library_reads(data):
    fields = {"user_data": data, "nonce": None, "public_key": None}
    assert cbor2.loads(attestation_request(data)) == {"Attestation": fields}
    assert attestation_request(data) == cbor2.dumps({"Attestation": fields})


@given(st.binary(max_size=70_000))
def test_a_document_is_what_a_library_wrote(document):
    assert document_in(answer(document)) == document


def test_a_real_document_leaves_as_it_came():
    real = vector("aws_nitro_evervault/valid-attestation-doc-bytes")
    nonce = cbor2.loads(cbor2.loads(real)[2])["nonce"]
    data = nonce[:64].ljust(64, b"\0")
    assert document_in(answer(real)) == real
    with pytest.raises(UsageError, match="about our own data"):
        Nitro(exchange=lambda _: answer(real)).quote(data)  # its user_data is another


def test_a_quote_asks_for_our_data():
    asked = []

    def exchange(request: bytes) -> bytes:
        asked.append(request)
        return answer(b"cose" + field(cbor2.loads(request)["Attestation"]["user_data"]))

    source = Nitro(exchange=exchange)
    assert source.provider is Provider.NITRO
    assert source.quote(DATA).evidence == b"cose" + field(DATA)
    assert asked == [attestation_request(DATA)]


@pytest.mark.parametrize("name", ["InvalidArgument", "InternalError", "InputTooLarge"])
def test_refusals_are_named(name):
    with pytest.raises(UsageError, match=name):
        Nitro(exchange=lambda _: cbor2.dumps({"Error": name})).quote(DATA)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xa1",
        b"\xff" * 20,
        cbor2.dumps("Attestation"),
        cbor2.dumps({"DescribeNSM": {}}),
        cbor2.dumps({"Attestation": {"documents": b""}}),
        cbor2.dumps({"Attestation": {"document": "text"}}),
        cbor2.dumps({"Attestation": {"document": b"1", "more": 1}}),
        cbor2.dumps({"Error": 5}),
        b"\xa1\x6bAttestation\xa1\x68document\x5b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa1\x62\xff\xff",
        answer(bytes(100))[:-1],
    ],
)
def test_answers_in_another_form_are_refused(body):
    with pytest.raises(UsageError, match="got something else"):
        document_in(body)


@given(st.binary(max_size=64))
def test_no_answer_breaks_the_reader(body):
    with suppress(UsageError):
        document_in(body)


def test_the_number_is_the_driver_s():
    """From linux/ioctl.h by hand: direction 3, size 32, type 0x0A, number 0."""
    assert IOCTL == 0xC0200A00


def test_the_message_is_the_driver_s(monkeypatch, tmp_path):
    """A driver that reads the two iovec as the kernel does: address and length, twice; it writes the length back."""
    device = tmp_path / "nsm"
    device.write_bytes(b"")
    seen = []

    def driver(file, number, message):
        raw = ctypes.string_at(ctypes.addressof(message), 32)
        asked, asked_size, answered, room = (int.from_bytes(raw[at : at + 8], "little") for at in (0, 8, 16, 24))
        seen.append((number, ctypes.string_at(asked, asked_size), room))
        body = answer(b"document" + field(DATA))
        ctypes.memmove(answered, body, len(body))
        message.response.len = len(body)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", driver)
    assert nsm.Nitro(str(device)).quote(DATA).evidence == b"document" + field(DATA)
    assert seen == [(0xC0200A00, attestation_request(DATA), 0x3000)]


def test_outside_an_enclave(tmp_path):
    with pytest.raises(UsageError, match="inside an AWS Nitro enclave"):
        Nitro(str(tmp_path / "nsm"))


@pytest.mark.parametrize(("number", "text"), [(errno.EACCES, "open it to this user"), (errno.EIO, "start the enclave")])
def test_errors_of_the_device_are_explained(number, text):
    def exchange(_: bytes) -> bytes:
        raise OSError(number, "it failed")

    with pytest.raises(UsageError, match=text):
        Nitro(exchange=exchange).quote(DATA)


def test_a_file_that_is_no_device_is_an_error(tmp_path):
    file = tmp_path / "nsm"
    file.write_bytes(b"")
    with pytest.raises(UsageError, match="Expected an answer of the secure module"):
        Nitro(str(file)).quote(DATA)
