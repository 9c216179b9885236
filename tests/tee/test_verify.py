"""What is the same for all hardware: sizes, times, reports, and what is known of the vendors."""

from __future__ import annotations

import socket
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import AttestationError, UsageError
from confide.tee import known
from confide.tee.evidence import Bundle, Provider, report_data
from confide.tee.policy import Policy, SimulatedRules, parse_policy
from confide.tee.simulated import Simulated
from confide.tee.verify import Check, Verdict, report_json, report_lines, verify
from tee.test_policy import FULL
from tee.vectors import CLAIMS, MEASURED, NONCE, failed, vector

ALL = parse_policy(FULL.encode(), "here")
NOW = 1_800_000_000.0


def bundle(provider: Provider = Provider.SIMULATED, evidence: bytes | None = None, **changes) -> Bundle:
    body = Simulated(MEASURED).quote(report_data(CLAIMS.encode())).evidence if evidence is None else evidence
    return msgspec.structs.replace(
        Bundle(provider=provider, evidence=body, endorsements={}, claims=CLAIMS.encode()), **changes
    )


def trial(one: Bundle, **asked):
    policy = Policy(simulated=SimulatedRules(measurements=(MEASURED,)), model_sha256=(CLAIMS.model_sha256,))
    return verify(one, policy, **{"now": NOW, "nonce": NONCE, "allow_simulated": True, **asked})


def test_simulated_evidence_needs_both_sides():
    assert trial(bundle()).holds
    assert failed(trial(bundle(), allow_simulated=False)) == ["provider"]
    assert failed(verify(bundle(), Policy(), now=NOW, nonce=NONCE, allow_simulated=True)) == ["provider"]


@pytest.mark.parametrize("provider", [one for one in Provider if one.hardware])
def test_hardware_without_a_table_is_refused(provider):
    assert failed(verify(bundle(provider), Policy(), now=NOW, nonce=NONCE)) == ["provider"]


@pytest.mark.parametrize("provider", list(Provider))
def test_what_is_too_large_is_refused_before_it_is_read(provider):
    for changes in ({"evidence": bytes(1 << 16)}, {"endorsements": {"a": bytes(1 << 20)}}, {"claims": bytes(1 << 14)},
                    {"endorsements": {str(i): b"" for i in range(9)}}):  # fmt: skip
        assert failed(verify(bundle(provider, **changes), ALL, now=NOW, nonce=NONCE)) == ["size"]


def claimed(**changes) -> Bundle:
    """Return simulated evidence of other claims."""
    claims = msgspec.structs.replace(CLAIMS, **changes).encode()
    return bundle(evidence=Simulated(MEASURED).quote(report_data(claims)).evidence, claims=claims)


@pytest.mark.parametrize("nonce", [b"", b"a", bytes(31), bytes(33)])
def test_a_nonce_has_its_length(nonce):
    with pytest.raises(UsageError, match="32 bytes"):
        trial(claimed(nonce=nonce.hex()), nonce=nonce)


@pytest.mark.parametrize("asked", [{}, {"nonce": None}])
@pytest.mark.parametrize("changes", [{"not_before": -1}, {"not_before": -(10**400)}, {"not_after": 10**400},
                                     {"not_after": (1 << 40) + 1}])  # fmt: skip
def test_claims_name_times_that_are_some(changes, asked):
    assert failed(trial(claimed(**changes), **asked)) == ["validity"]


@pytest.mark.parametrize("model", ["", "cd" * 31, "CD" * 32, "any", "cd" * 32 + "\n"])
def test_a_model_is_named_by_a_hash(model):
    policy = Policy(simulated=SimulatedRules(measurements=(MEASURED,)), model_sha256=(model,))
    verdict = verify(claimed(model_sha256=model), policy, now=NOW, nonce=NONCE, allow_simulated=True)
    assert failed(verdict) == ["model"]


@pytest.mark.parametrize("now", [-1.0, float("nan"), float("inf"), 1e12])
def test_the_time_must_be_one(now):
    with pytest.raises(UsageError):
        trial(bundle(), now=now)


def test_claims_that_cannot_be_read_are_named():
    for claims in (b"", b"{}", b"[", CLAIMS.encode() + b" "):
        data = report_data(claims)
        verdict = trial(bundle(evidence=Simulated(MEASURED).quote(data).evidence, claims=claims))
        assert failed(verdict) == ["claims"]
        with pytest.raises(AttestationError):
            verdict.require()


@settings(max_examples=60)
@given(st.sampled_from(list(Provider)), st.binary(max_size=600),
       st.dictionaries(st.sampled_from(["collateral.json", "vcek.der", "vlek.der", "chain.pem", "crl.der", "x"]),
                       st.binary(max_size=99)), st.binary(max_size=99))  # fmt: skip
def test_random_bundles_end_in_a_verdict(provider, evidence, endorsements, claims):
    one = Bundle(provider=provider, evidence=evidence, endorsements=endorsements, claims=claims)
    verdict = verify(one, ALL, now=NOW, nonce=NONCE, allow_simulated=True)
    assert not verdict.holds
    assert report_lines(verdict)


def test_nothing_is_asked_of_a_network_or_a_clock(monkeypatch):
    def refuse(*_):
        raise AssertionError("verification asked something outside")

    for place, name in ((socket, "socket"), (socket, "getaddrinfo"), (time, "time")):
        monkeypatch.setattr(place, name, refuse)
    collateral = {"collateral.json": vector("intel_dcap_phala/tdx_quote_collateral.json")}
    quote = bundle(Provider.TDX, vector("intel_dcap_phala/tdx_quote"), endorsements=collateral)
    assert "measurement" in failed(verify(quote, ALL, now=1750414563, nonce=NONCE))
    assert failed(verify(bundle(Provider.NITRO, vector("aws_nitro_evervault/valid-attestation-doc-bytes")), ALL,
                         now=1665651482, nonce=NONCE))  # fmt: skip
    assert failed(verify(bundle(Provider.SNP, vector("coco_trustee/snp/test-report.bin")), ALL, now=NOW, nonce=NONCE))


def test_a_report_has_a_line_for_every_check_and_says_what_follows():
    good, bad = trial(bundle()), trial(bundle(), nonce=bytes(32))
    assert len(report_lines(good)) == len(good.checks) + 1
    assert "Every check holds" in report_lines(good)[-1]
    assert "shows nothing" in report_lines(good)[-1]
    assert any(line.startswith("FAILS  nonce") for line in report_lines(bad))
    assert report_lines(bad)[-1] == "Refused: nonce does not hold."
    told = report_json(bad)
    assert told["holds"] is False
    assert told["claims"] is None
    assert report_json(good)["hardware"] is False
    msgspec.json.encode(told)


def test_what_is_known_of_the_vendors_is_shipped():
    data = known.load()
    assert {len(pin) for pin in data.roots.snp.values()} == {64}
    assert set(data.roots.snp) == {"milan", "genoa", "turin"}
    forged = {one.name for one in known.breaks(Provider.SNP, "milan") if one.forges_evidence}
    assert any("BadFuse" in name for name in forged)
    assert not any("BadFuse" in one.name for one in known.breaks(Provider.SNP, "genoa"))
    assert any("TEE.fail" in one.name for one in known.breaks(Provider.TDX))
    for provider in (Provider.SGX, Provider.TDX, Provider.SNP):
        assert len(known.breaks(provider)) >= 4
    for one in data.breaks:
        assert one.source
        assert one.needs in one.sentence()


def test_a_report_tells_all_that_fails_and_only_what_was_skipped():
    old = report_lines(trial(bundle(), nonce=None, now=NOW + 400 * 86400))
    assert old[-1] == "Refused: validity, age do not hold."
    assert any("UTC" in line for line in old if "validity" in line)
    assert "were not made" in report_lines(trial(bundle(), allow_simulated=False))[-1]


def test_a_report_tells_what_is_shown_beside_what_is_accepted():
    other = Policy(simulated=SimulatedRules(measurements=("cd" * 48,)))
    lines = report_lines(verify(bundle(), other, now=NOW, nonce=NONCE, allow_simulated=True))
    measured = next(line for line in lines if "measurement" in line)
    assert MEASURED in measured
    assert "cd" * 48 in measured
    assert any("names no model_sha256 and no --signer" in line for line in lines)
    assert lines[-1] == "Refused: measurement, model do not hold."


def test_a_report_on_hardware_names_its_known_breaks():
    told = report_lines(Verdict(Provider.TDX, (Check("claims", True, ""),), CLAIMS))
    assert any("TEE.fail" in line for line in told)
