"""SEV-SNP: the public vectors, and authorities of our own for revocation lists, Turin, and evidence of our claims."""

from __future__ import annotations

import shutil
import struct
import subprocess

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import AttestationError, ProtocolError
from confide.tee import amd, certificates, known
from confide.tee.evidence import Bundle, Provider, report_data
from confide.tee.policy import Policy, SnpRules, TcbFloor
from confide.tee.verify import verify
from tee.authority import CHIP, NOW, TCB, Amd, Chip, der, pem
from tee.vectors import CLAIMS, LATER, MEASURED, NONCE, checked, failed, flipped, vector

SNP_NOW = 1748736000  # 2025-06-01
MILAN_CHAIN = "amd_snp_google/ask_ark_milan.pem"
VCEK_REPORT = "coco_trustee/snp/test-report.bin"
VLEK_REPORT = "coco_trustee/snp/test-vlek-report.bin"
GENOA_REPORT = "coco_trustee/az-snp-vtpm/genoa_snp_report_extracted.bin"


def milan_rules(report: bytes, **changes) -> Policy:
    """Return a policy that names what a Milan report shows, old versions included."""
    rules = {"measurement": (report[0x90:0xC0].hex(),), "products": ("milan",), "accept_broken_milan": True,
             "tcb_floor": {"milan": TcbFloor(snp=0)}, **changes}  # fmt: skip
    rules["accept_older_tcb"] = bool(rules["tcb_floor"])
    return Policy(snp=SnpRules(**rules))


def genoa() -> tuple[bytes, dict[str, bytes]]:
    lines = vector("coco_trustee/az-snp-vtpm/vcek-genoa.pem")
    body = certificates.read_chain(lines, "vcek", 1)[0]
    return vector(GENOA_REPORT), {
        "vcek.der": body.public_bytes(Encoding.DER),
        "chain.pem": vector("amd_snp_google/trust/ask_ark_genoa.pem"),
    }


def real(name: str) -> tuple[bytes, dict[str, bytes], Policy]:
    """Return a public report, its certificates (without a list: none is public), and a policy that names it."""
    if name == "genoa":
        report, endorsements = genoa()
        return report, endorsements, Policy(snp=SnpRules(measurement=(report[0x90:0xC0].hex(),)))
    if name == "vlek":
        report = vector(VLEK_REPORT)
        chain = vector("amd_snp_google/trust/ask_ark_milan_vlek.pem")
        return report, {"vlek.der": vector("coco_trustee/snp/test-vlek.der"), "chain.pem": chain}, milan_rules(
            report, max_vmpl=1, tcb_floor={}
        )  # fmt: skip
    if name == "virtee":
        report = bytes.fromhex(vector("amd_snp_virtee/report_milan.hex").decode().strip())
        endorsements = {"vcek.der": vector("amd_snp_virtee/vcek_milan.der"),
                        "chain.pem": vector("amd_snp_virtee/cert_chain_milan")}  # fmt: skip
        return report, endorsements, milan_rules(report)
    report = vector(VCEK_REPORT)
    endorsements = {"vcek.der": vector("coco_trustee/snp/test-vcek.der"), "chain.pem": vector(MILAN_CHAIN)}
    return report, endorsements, milan_rules(report)


@pytest.mark.parametrize("name", ["vcek", "virtee", "vlek", "genoa"])
def test_everything_of_a_public_report_holds_but_the_list_that_is_not_public(name):
    report, endorsements, policy = real(name)
    verdict = checked(Provider.SNP, report, endorsements, policy, SNP_NOW)
    assert failed(verdict) == ["revocation", "report data"]
    assert verdict.instance == ("" if name == "vlek" else report[0x1A0:0x1E0].hex())


def test_a_certificate_out_of_date_is_refused():
    report, endorsements, policy = real("vlek")
    assert "certificate dates" in failed(checked(Provider.SNP, report, endorsements, policy, LATER))
    report, endorsements, policy = real("vcek")
    assert "certificate dates" in failed(checked(Provider.SNP, report, endorsements, policy, 2_000_000_000))


def test_milan_is_refused_unless_a_policy_takes_what_is_broken():
    report, endorsements, _ = real("vcek")
    policy = Policy(snp=SnpRules(measurement=(report[0x90:0xC0].hex(),)))
    verdict = checked(Provider.SNP, report, endorsements, policy, SNP_NOW)
    assert "accepted product" in failed(verdict)
    (check,) = [one for one in verdict.checks if one.name == "accepted product"]
    assert "2605.12990" in check.detail


def test_old_firmware_is_below_the_floor_that_is_shipped():
    report, endorsements, _ = real("vcek")
    verdict = checked(Provider.SNP, report, endorsements, milan_rules(report, tcb_floor={}), SNP_NOW)
    assert {"version floor", "version at launch"} <= set(failed(verdict))


def test_debugging_is_refused_though_it_is_signed():
    report = vector("amd_snp_google/attestation.bin")
    endorsements = {"vcek.der": vector("amd_snp_google/vcek_milan.der"), "chain.pem": vector(MILAN_CHAIN)}
    verdict = checked(Provider.SNP, report, endorsements, milan_rules(report), SNP_NOW)
    assert failed(verdict) == ["revocation", "debug", "report data"]


@pytest.mark.parametrize("name", ["legacy", "new"])
def test_a_certificate_that_amd_did_not_sign_ends_it(name):
    report, endorsements, policy = real("vcek")
    endorsements["vcek.der"] = vector(f"coco_trustee/snp/test-vcek-invalid-{name}.der")
    verdict = checked(Provider.SNP, report, endorsements, policy, SNP_NOW)
    assert failed(verdict) == ["chain"]
    assert verdict.checks[-1].name == "chain"


@pytest.mark.parametrize("place", [*range(0, 0x2A0, 41), 0x90, 0x2A0, 0x2E8, 0x30F])
def test_no_byte_of_what_is_signed_can_change(place):
    report, endorsements, policy = real("genoa")
    changed = checked(Provider.SNP, flipped(report, place), endorsements, policy, SNP_NOW)
    assert set(failed(changed)) & {"signature", "form", "certificates", "product", "signature algorithm"}


def test_a_vlek_names_no_machine_that_could_be_pinned():
    report, endorsements, _ = real("vlek")
    policy = milan_rules(report, max_vmpl=1, tcb_floor={}, instances=("01" * 64,))
    verdict = checked(Provider.SNP, report, endorsements, policy, SNP_NOW)
    assert failed(verdict) == ["revocation", "instance", "report data"]
    (check,) = [one for one in verdict.checks if one.name == "instance"]
    assert "VLEK" in check.detail


def test_the_chain_of_another_product_or_key_is_refused():
    report, endorsements, policy = real("vcek")
    for other in ("ask_ark_genoa", "ask_ark_milan_vlek", "ask_ark_turin_vcek"):
        changed = {**endorsements, "chain.pem": vector(f"amd_snp_google/trust/{other}.pem")}
        assert set(failed(checked(Provider.SNP, report, changed, policy, SNP_NOW))) & {"product", "chain"}


def test_the_public_chain_of_turin_holds():
    leaf = certificates.read_certificate(vector("amd_snp_virtee/vcek_turin.der"), "vcek")
    signer, root = certificates.read_chain(vector("amd_snp_virtee/cert_chain_turin"), "chain", 2)
    assert certificates.fingerprint(root) == known.load().roots.snp["turin"]
    assert certificates.issued(signer, root)
    assert certificates.issued(leaf, signer)
    assert certificates.serial_number(leaf) == 0


def test_openssl_finds_the_same_signature(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    report, endorsements, _ = real("genoa")
    key = certificates.read_certificate(endorsements["vcek.der"], "vcek").public_key()
    (tmp_path / "key.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    halves = [report[0x2A0:0x2E8][::-1].lstrip(b"\0"), report[0x2E8:0x330][::-1].lstrip(b"\0")]
    halves = [b"\0" + half if half[0] & 0x80 else half for half in halves]
    inner = b"".join(b"\x02" + bytes([len(half)]) + half for half in halves)
    (tmp_path / "signature").write_bytes(b"\x30" + bytes([len(inner)]) + inner)
    for body, expected in ((report[:0x2A0], 0), (flipped(report, 0x90)[:0x2A0], 1)):
        (tmp_path / "body").write_bytes(body)
        command = ["openssl", "dgst", "-sha384", "-verify", "key.pem", "-signature", "signature", "body"]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == expected


def test_fields_are_where_the_index_says_they_are():
    report = amd.Report.read(vector(VLEK_REPORT))
    assert (report.version, report.vmpl, report.key, report.product) == (3, 1, "vlek", "milan")
    assert report.chip_id == bytes(64)
    assert amd.Report.read(vector(GENOA_REPORT)).product == "genoa"
    assert amd.tcb(bytes.fromhex("0102030400000007"), "turin") == {
        "fmc": 1, "boot_loader": 2, "tee": 3, "snp": 4, "microcode": 7,
    }  # fmt: skip
    assert amd.tcb(bytes.fromhex("0102000000000607"), "genoa") == {
        "boot_loader": 1, "tee": 2, "snp": 6, "microcode": 7,
    }  # fmt: skip


# --- authorities of our own ---


@pytest.fixture(scope="module", params=["genoa", "turin"])
def authority(request) -> Amd:
    return Amd(request.param)


@pytest.fixture
def ours(authority, monkeypatch) -> Amd:
    trusted = authority.known()
    monkeypatch.setattr(known, "load", lambda: trusted)
    return authority


def policy_of(**changes) -> Policy:
    rules = {"measurement": (MEASURED,), "tcb_floor": {"turin": TcbFloor(fmc=2, snp=3)}, **changes}
    return Policy(snp=SnpRules(**rules), model_sha256=(CLAIMS.model_sha256,))


def judged(source: Chip, /, *, under: Policy | None = None, endorsements=None, now: float = NOW, **fields):
    report = source.report(report_data(CLAIMS.encode()), **fields)
    return checked(Provider.SNP, report, source.endorsements() if endorsements is None else endorsements,
                   under or policy_of(), now)  # fmt: skip


def test_a_report_that_binds_our_claims_holds(ours):
    chip = Chip(ours)
    verdict = judged(chip)
    assert failed(verdict) == []
    assert verdict.require() == CLAIMS
    assert verdict.instance == chip.chip.ljust(64, b"\0").hex()
    assert failed(judged(Chip(ours, vlek=True))) == []


def test_revocation_lists_are_enforced(ours):
    chip = Chip(ours)
    without = chip.endorsements()
    del without["crl.der"]
    assert failed(judged(chip, endorsements=without)) == ["revocation"]
    signer, other = ours.vcek_signer.serial_number, Amd(ours.product)
    for list_ in (
        ours.crl(signer),
        ours.crl(chip.certificate.serial_number),
        ours.crl(start=0, days=9),
        ours.crl(start=11),
        ours.crl(key=other.root_key),
        ours.crl(key=ours.signer_key),
        flipped(ours.crl(), -1 % len(ours.crl())),
        b"",
        b"\x30\x03abc",
    ):
        verdict = judged(chip, endorsements=chip.endorsements(list_))
        assert failed(verdict) == ["revocation"]
        with pytest.raises(AttestationError) as error:
            verdict.require()
        assert error.value.check == "revocation"
    assert failed(judged(chip, endorsements=chip.endorsements(ours.crl(12345)))) == []


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"policy": 0x30000 | 1 << 19}, "debug"),
        ({"policy": 0x30000 | 1 << 18}, "migration"),
        ({"vmpl": 1}, "privilege level"),
        ({"measurement": bytes(48)}, "measurement"),
        ({"host_data": bytes(31) + b"\1"}, "host data"),
        ({"reported": {**TCB, "microcode": 0xD8}}, "certified version"),
        ({"launch": {**TCB, "snp": 2}}, "version at launch"),
        ({"chip": bytes(64)}, "chip"),
        ({"chip": CHIP[::-1]}, "chip"),
        ({"cpuid": (0x19, 1)}, "product"),
        ({"cpuid": (0x17, 1)}, "product"),
        ({"algorithm": 2}, "signature algorithm"),
        ({"version": 1}, "form"),
        ({"version": 6}, "form"),
    ],
)
def test_each_check_names_what_does_not_hold(ours, fields, name):
    assert failed(judged(Chip(ours), **fields)) == [name]


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ({"measurement": ("cd" * 48,)}, ["measurement"]),
        ({"host_data": ("01" * 32,)}, ["host data"]),
        ({"id_key_digest": ("01" * 48,)}, ["id key"]),
        ({"author_key_digest": ("01" * 48,)}, ["author key"]),
        ({"min_guest_svn": 2}, ["guest version"]),
        ({"instances": ("01" * 64,)}, ["instance"]),
        ({"platform": ("ciphertext-hiding",)}, ["platform"]),
        ({"platform": ("alias-check", "ecc", "smt-off")}, []),
        ({"min_guest_svn": 1, "max_vmpl": 3}, []),
    ],
)
def test_a_policy_is_kept_to(ours, rules, names):
    assert failed(judged(Chip(ours), under=policy_of(**rules))) == names


def test_a_pinned_chip_holds(ours):
    chip = Chip(ours)
    pin = chip.chip.ljust(64, b"\0").hex()
    assert failed(judged(chip, under=policy_of(instances=(pin,)))) == []
    assert failed(judged(Chip(ours, vlek=True), under=policy_of(instances=(pin,)))) == ["instance"]


def test_a_product_that_is_not_named_and_one_without_a_floor_are_refused(ours):
    other = "turin" if ours.product == "genoa" else "genoa"
    assert failed(judged(Chip(ours), under=policy_of(products=(other,)))) == ["accepted product"]
    names = failed(judged(Chip(ours), under=policy_of(tcb_floor={})))
    assert names == ([] if ours.product == "genoa" else ["version floor"])


@pytest.mark.parametrize(
    ("floor", "older", "holds"),
    [
        ({"snp": 1}, False, False),  # a policy alone does not go below what is shipped
        ({"boot_loader": 1}, False, False),  # nor by naming another part
        ({"boot_loader": 1}, True, False),
        ({"snp": 1}, True, True),
        ({"snp": 2}, True, False),
    ],
)
def test_what_is_shipped_holds_unless_a_policy_takes_older_versions(monkeypatch, floor, older, holds):
    authority = Amd("genoa")
    trusted = authority.known()
    monkeypatch.setattr(known, "load", lambda: trusted)
    assert trusted.snp_floor["genoa"].snp > 1
    old = {**TCB, "snp": 1}
    under = policy_of(tcb_floor={"genoa": TcbFloor(**floor)}, accept_older_tcb=older)
    names = failed(judged(Chip(authority, tcb=old), under=under, reported=old, launch=old))
    assert names == ([] if holds else ["version floor", "version at launch"])


def test_a_policy_raises_what_is_shipped(ours):
    high = policy_of(tcb_floor={ours.product: TcbFloor(microcode=255)})
    assert failed(judged(Chip(ours), under=high)) == ["version floor", "version at launch"]


def test_old_evidence_another_key_and_another_model_are_refused(ours):
    chip = Chip(ours)
    report = chip.report(report_data(CLAIMS.encode()))

    def names(claims=CLAIMS, **asked):
        bundle = Bundle(provider=Provider.SNP, evidence=report, endorsements=chip.endorsements(),
                        claims=claims.encode())  # fmt: skip
        return failed(verify(bundle, policy_of(), **{"now": NOW, "nonce": NONCE, **asked}))

    assert names() == []
    assert names(nonce=bytes(32)) == ["nonce"]  # replayed
    assert names(nonce=None) == ["age"]
    assert names(model_sha256="ef" * 32) == ["model"]
    assert names(purpose="unseal") == ["purpose"]
    assert names(msgspec.structs.replace(CLAIMS, public_key="01")) == ["report data"]


def test_leaves_that_are_out_of_date_or_no_chips_are_refused(ours):
    assert failed(judged(Chip(ours, days=5))) == ["certificate dates"]
    assert failed(judged(Chip(ours, name="SEV-VLEK"))) == ["chain"]
    chip, other = Chip(ours), Chip(ours)
    assert failed(judged(chip, key=other.key)) == ["signature"]
    swapped = {**chip.endorsements(), "vcek.der": other.endorsements()["vcek.der"]}
    assert failed(judged(chip, endorsements=swapped)) == ["signature"]
    upside_down = {**chip.endorsements(), "chain.pem": pem(ours.root, ours.vcek_signer)}
    assert failed(judged(chip, endorsements=upside_down)) == ["root"]
    vlek = {**chip.endorsements(), "chain.pem": pem(ours.vlek_signer, ours.root)}
    assert failed(judged(chip, endorsements=vlek)) == ["chain"]
    foreign = Amd(ours.product)
    assert failed(judged(Chip(foreign))) == ["root"]


def test_missing_or_malformed_certificates_are_named(ours):
    chip = Chip(ours)
    good = chip.endorsements()
    for name in ("vcek.der", "chain.pem"):
        for body in (None, b"", b"nonsense", b"\x30" * 20000, good[name][:-20], der(chip.certificate) * 2):
            changed = {**good, name: body} if body is not None else {k: v for k, v in good.items() if k != name}
            assert failed(judged(chip, endorsements=changed)) == ["certificates"], (name, body and body[:10])


@given(st.binary(max_size=1200) | st.binary(min_size=1184, max_size=1184))
def test_random_bytes_are_no_report(body):
    try:
        amd.Report.read(struct.pack("<I", 3) + body[4:] if len(body) == 1184 else body)
    except ProtocolError:
        assert len(body) != 1184


@given(st.integers(0, 1183), st.binary(min_size=1, max_size=64))
def test_spliced_reports_end_in_a_verdict(place, piece):
    report, endorsements, policy = real("genoa")
    changed = (report[:place] + piece + report[place + len(piece) :])[:1184]
    verdict = checked(Provider.SNP, changed, endorsements, policy, SNP_NOW)
    assert not verdict.holds
    if changed[:0x2A0] != report[:0x2A0]:
        assert set(failed(verdict)) & {"signature", "form", "certificates", "product", "signature algorithm"}


@given(st.sampled_from(["vcek.der", "chain.pem"]), st.integers(0, 4000), st.binary(min_size=1, max_size=8))
def test_spliced_certificates_end_in_a_verdict(name, place, piece):
    report, endorsements, policy = real("genoa")
    body = endorsements[name]
    place %= len(body)
    changed = body[:place] + piece + body[place + len(piece) :]
    names = failed(checked(Provider.SNP, report, {**endorsements, name: changed}, policy, SNP_NOW))
    if name == "vcek.der" and changed != body:
        assert set(names) & {"certificates", "chain", "product", "signature"}


SOMEBODY = Amd("genoa")


@given(st.integers(0, 600), st.binary(min_size=1, max_size=8))
def test_spliced_lists_clear_nobody(place, piece):
    body = SOMEBODY.crl(7)
    place %= len(body)
    changed = body[:place] + piece + body[place + len(piece) :]
    try:
        crl = certificates.read_crl(changed, "crl.der")
    except ProtocolError:
        return
    assert certificates.revoked(crl, SOMEBODY.root, [8], NOW) or changed == body
