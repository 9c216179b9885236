"""The names of attesters: each is itself or an error, none stands in for another."""

from __future__ import annotations

import pytest

from confide.errors import UsageError
from confide.tee import attest
from confide.tee.attest import ATTESTERS, HARDWARE, found, load_attester
from confide.tee.evidence import Claims, Provider, report_data
from confide.tee.simulated import Simulated

CLAIMS = Claims(
    purpose="predict", public_key="00", model_sha256="11" * 32, code_version="0", not_before=0, not_after=1
).encode()


def test_every_name_is_known():
    assert set(ATTESTERS) == {*HARDWARE, "simulated"}


def test_simulated_is_taken_by_its_name_alone():
    assert isinstance(load_attester("simulated"), Simulated)
    assert "simulated" not in HARDWARE
    assert "simulated" not in found()


@pytest.mark.parametrize("name", HARDWARE)
def test_hardware_that_is_absent_is_an_error_and_nothing_else(name):
    if name in found():
        pytest.skip(f"this machine has {name}")
    with pytest.raises(UsageError, match=f"Expected .*({name}|attestation_type|tsm/report).*") as caught:
        load_attester(name)
    assert ";" in str(caught.value)  # what to do
    assert "simulated" not in str(caught.value)


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match='did you mean "gramine"'):
        load_attester("grammine")


def test_found_lists_what_can_be_used(monkeypatch):
    class Usable:
        name, provider = "nitro", Provider.NITRO

    def absent():
        raise UsageError("Expected it; it is not here")

    monkeypatch.setattr(
        attest,
        "ATTESTERS",
        {"configfs-tsm": absent, "gramine": absent, "nitro": Usable, "simulated": Simulated},
    )
    assert found() == ["nitro"]
    with pytest.raises(UsageError, match="not here"):
        load_attester("gramine")


@pytest.mark.parametrize("name", HARDWARE)
def test_real_hardware_signs(name):
    """Runs where a real device is, and there alone."""
    if name not in found():
        pytest.skip(f"no hardware for {name} on this machine")
    attester = load_attester(name)
    first, second = (attester.quote(report_data(CLAIMS + tail)) for tail in (b"1", b"2"))
    assert attester.provider.hardware
    assert first.evidence != second.evidence
    assert report_data(CLAIMS + b"1") in first.evidence
