"""Gramine's files, as it shows them inside an enclave."""

from __future__ import annotations

import errno

import pytest

from confide.errors import UsageError
from confide.tee.evidence import Provider
from confide.tee.gramine import Gramine
from tee.kernel import SGX_REPORT_DATA, FakeGramine, vector, with_data

DATA = bytes(range(64))


def quote(data: bytes) -> bytes:
    return with_data(b"\3\0\2\0" + bytes(4596), SGX_REPORT_DATA, data)


def test_a_quote_is_about_our_data():
    source = Gramine(devices=FakeGramine(quote))
    assert source.provider is Provider.SGX
    assert source.quote(DATA).evidence == quote(DATA)
    assert source.quote(DATA).endorsements == {}


@pytest.mark.parametrize("name", ["intel_dcap_phala/sgx_quote", "coco_trustee/occlum_quote.dat"])
def test_real_quotes_leave_as_they_came(name):
    real = vector(name)
    source = Gramine(devices=FakeGramine(lambda data: with_data(real, SGX_REPORT_DATA, data)))
    assert source.quote(real[SGX_REPORT_DATA]).evidence == real


@pytest.mark.parametrize("kind", ["dcap", "dcap\n", "dcap\0"])
def test_dcap_is_taken(kind):
    Gramine(devices=FakeGramine(quote, kind))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("none", "gramine-direct, which protects nothing"),
        ("epid", "Intel has ended"),
        ("", "does not know"),
        ("dcap2", "does not know"),
        ("DCAP", "does not know"),
    ],
)
def test_other_types_are_refused_with_what_they_mean(kind, text):
    with pytest.raises(UsageError, match=f"Expected attestation_type='dcap'.*{text}"):
        Gramine(devices=FakeGramine(quote, kind))


def test_outside_an_enclave():
    with pytest.raises(UsageError, match="inside an SGX enclave"):
        Gramine(devices=FakeGramine(quote, None))


@pytest.mark.parametrize("name", ["user_report_data", "quote"])
def test_errors_name_the_file_and_the_host_s_service(name):
    kernel = FakeGramine(quote)
    source = Gramine(devices=kernel)
    kernel.errors = {name: errno.EIO}
    with pytest.raises(UsageError, match=f"{name}.*aesmd"):
        source.quote(DATA)


def test_another_writer_in_the_process_is_noticed():
    kernel = FakeGramine(quote)
    source = Gramine(devices=kernel)
    kernel.spy = lambda device: setattr(device, "data", bytes(64))
    with pytest.raises(UsageError, match="something else writes there"):
        source.quote(DATA)


@pytest.mark.parametrize("body", [b"", b"\3\0", quote(DATA)[:400], b"\4" + quote(DATA)[1:], quote(DATA)[:4] + b"\x81"])
def test_answers_in_another_form_are_refused(body):
    with pytest.raises(UsageError, match="Expected"):
        Gramine(devices=FakeGramine(lambda _: body)).quote(DATA)
