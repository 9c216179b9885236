"""What is stapled: which URLs are asked, what becomes of their answers, for how long they hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from urllib.parse import parse_qs, quote, urlsplit

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from confide.errors import ConfideError, ProtocolError, ServiceError, UsageError
from confide.net.endorsements import Fetched, fetch_endorsements
from confide.tee.cert_table import to_pem
from confide.tee.endorsements import (
    COLLATERAL,
    MOST_BYTES,
    NAMES,
    Sources,
    assemble,
    endorsed,
    read_endorsements,
    valid_until,
    wanted,
)
from confide.tee.evidence import Provider, Quoted
from confide.tee.stapling import REFRESH_SECONDS, Stapler
from tee.authority import Amd
from tee.kernel import vector

INTEL = [
    ("intel_dcap_phala/sgx_quote", "intel_dcap_phala/sgx_quote_collateral.json", Provider.SGX, 1750416971),
    ("intel_dcap_phala/tdx_quote", "intel_dcap_phala/tdx_quote_collateral.json", Provider.TDX, 1750414563),
]
FALSE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
GENOA = "coco_trustee/az-snp-vtpm/genoa_snp_report_extracted.bin"


def intel_service(collateral: dict[str, str], *, pccs: bool = False) -> Callable[[httpx2.Request], httpx2.Response]:
    """Answer as Intel's PCS of version 4 does, or as a PCCS, which writes lists in hex."""

    def listed(name: str) -> bytes:
        return collateral[name].upper().encode() if pccs else bytes.fromhex(collateral[name])

    def answer(request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if path.endswith("/tcb"):
            body = f'{{"tcbInfo":{collateral["tcb_info"]},"signature":"{collateral["tcb_info_signature"]}"}}'
            return httpx2.Response(
                200, text=body, headers={"TCB-Info-Issuer-Chain": quote(collateral["tcb_info_issuer_chain"])}
            )
        if path.endswith("/qe/identity"):
            body = (
                f'{{"enclaveIdentity":{collateral["qe_identity"]},"signature":"{collateral["qe_identity_signature"]}"}}'
            )
            chain = {"SGX-Enclave-Identity-Issuer-Chain": quote(collateral["qe_identity_issuer_chain"])}
            return httpx2.Response(200, text=body, headers=chain)
        if path.endswith("/pckcrl"):
            chain = {"SGX-PCK-CRL-Issuer-Chain": quote(collateral["pck_crl_issuer_chain"])}
            return httpx2.Response(200, content=listed("pck_crl"), headers=chain)
        if path.endswith(("IntelSGXRootCA.der", "/rootcacrl")):
            return httpx2.Response(200, content=listed("root_ca_crl"))
        return httpx2.Response(404)

    return answer


def fetched(answer: Callable[[httpx2.Request], httpx2.Response], urls: dict[str, str]) -> dict[str, Fetched]:
    return fetch_endorsements(urls, transport=httpx2.MockTransport(answer), pause=lambda seconds: None)


# --- Intel ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pccs", [False, True])
@pytest.mark.parametrize(("name", "collateral_name", "provider", "now"), INTEL)
def test_collateral_of_intel_is_the_vector_s_own(name, collateral_name, provider, now, pccs):
    evidence, collateral = vector(name), json.loads(vector(collateral_name))
    sources = Sources(intel="https://pccs:8081", intel_root_crl="https://pccs:8081/sgx/certification/v4/rootcacrl")
    urls = wanted(provider, Quoted(evidence, {}), sources=sources if pccs else None)
    made = assemble(provider, fetched(intel_service(collateral, pccs=pccs), urls))
    assert json.loads(made[COLLATERAL]) == collateral
    qvl = pytest.importorskip("dcap_qvl", reason="the extra [tee] brings dcap-qvl")
    report = qvl.verify(evidence, qvl.QuoteCollateralV3.from_json(made[COLLATERAL].decode()), now)
    assert report is not None
    assert now < valid_until(made)  # and no later than any part of it says
    dates = [json.loads(collateral[part])["nextUpdate"] for part in ("tcb_info", "qe_identity")]
    assert valid_until(made) <= min(x509_date(date) for date in dates)


def x509_date(text: str) -> float:
    import calendar
    import time

    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


@pytest.mark.parametrize(("name", "collateral_name", "provider", "now"), INTEL)
def test_urls_of_intel_are_of_this_platform(name, collateral_name, provider, now):
    """The FMSPC by another library, and by Intel's own answer."""
    qvl = pytest.importorskip("dcap_qvl", reason="the extra [tee] brings dcap-qvl")
    urls = wanted(provider, Quoted(vector(name), {}))
    collateral = json.loads(vector(collateral_name))
    fmspc = parse_qs(urlsplit(urls["tcb"]).query)["fmspc"][0]
    assert fmspc.lower() == json.loads(collateral["tcb_info"])["fmspc"].lower()
    assert bytes.fromhex(fmspc) == bytes.fromhex(qvl.parse_quote(vector(name)).fmspc())
    issuer = x509.load_der_x509_crl(bytes.fromhex(collateral["pck_crl"])).issuer.rfc4514_string()
    assert parse_qs(urlsplit(urls["pck_crl"]).query)["ca"][0].title() + " CA" in issuer
    assert f"/{provider.value}/certification/v4/" in urls["tcb"]
    assert all(url.startswith("https://") and "intel.com/" in url for url in urls.values())


def test_what_is_stapled_already_is_not_asked_for():
    assert wanted(Provider.TDX, Quoted(b"", {COLLATERAL: b"{}"})) == {}
    assert wanted(Provider.NITRO, Quoted(b"", {})) == {}
    assert wanted(Provider.SIMULATED, Quoted(b"", {})) == {}
    assert assemble(Provider.NITRO, {}) == {}


@pytest.mark.parametrize(
    "quote_bytes", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", bytes(5000)]
)
def test_a_quote_without_its_certificate_is_an_error(quote_bytes):
    with pytest.raises(UsageError, match="carries its platform's certificate"):
        wanted(Provider.SGX, Quoted(quote_bytes, {}))


def test_a_certificate_of_somebody_else_says_no_platform():
    with pytest.raises(UsageError, match="carries its platform's certificate"):
        wanted(Provider.SGX, Quoted(vector("amd_snp_google/ask_ark_milan.pem"), {}))


def test_a_certificate_whose_issuer_cannot_be_read_says_no_platform():
    body = vector(INTEL[0][0])
    begin = body.index(b"-----BEGIN CERTIFICATE-----")
    leaf = x509.load_pem_x509_certificates(body[begin : body.rindex(b"-----END") + 25])[0].public_bytes(Encoding.DER)
    assert wanted(Provider.SGX, Quoted(to_pem(leaf), {}))
    place = leaf.index(b"Intel SGX PCK")
    for changed in (leaf[:place] + b"\xff" + leaf[place + 1 :], leaf[: place - 2] + b"\x03" + leaf[place - 1 :]):
        with pytest.raises(UsageError, match="carries its platform's certificate"):
            wanted(Provider.SGX, Quoted(to_pem(changed), {}))


def test_lists_of_no_known_version_are_refused():
    crl = Amd("genoa").crl()
    assert valid_until({"crl.der": crl}) is not None
    changed = crl.replace(b"\x02\x01\x01", b"\x02\x01\x07", 1)
    with pytest.raises(x509.InvalidVersion):
        x509.load_der_x509_crl(changed)
    with pytest.raises(ProtocolError, match="until when"):
        valid_until({"crl.der": changed})
    with pytest.raises(ProtocolError, match=r"crl\.der"):
        assemble(Provider.SNP, {"crl.der": Fetched(changed, {})})


@pytest.mark.parametrize("broken", ["tcb", "qe_identity", "pck_crl", "root_ca_crl"])
@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b"\xff\xfe", b"[" * 100_000, b"30", b"\x30\x03abc"])
def test_other_answers_than_intel_s_are_refused(broken, body):
    name, collateral_name, provider, _ = INTEL[0]
    urls = wanted(provider, Quoted(vector(name), {}))
    answers = fetched(intel_service(json.loads(vector(collateral_name))), urls)
    answers[broken] = Fetched(body, answers[broken].headers)
    with pytest.raises(ProtocolError):
        assemble(provider, answers)


@pytest.mark.parametrize("broken", ["tcb", "qe_identity", "pck_crl"])
def test_a_chain_that_a_proxy_cut_is_named(broken):
    name, collateral_name, provider, _ = INTEL[0]
    answers = fetched(intel_service(json.loads(vector(collateral_name))), wanted(provider, Quoted(vector(name), {})))
    answers[broken] = Fetched(answers[broken].body, {})
    with pytest.raises(ProtocolError, match="a proxy may have cut it"):
        assemble(provider, answers)


# --- AMD --------------------------------------------------------------------------------------------------------------


def patch_levels(certificate: x509.Certificate) -> dict[str, int]:
    """Return what AMD wrote into a VCEK, by the numbers of its specification."""
    numbers = {"blSPL": 1, "teeSPL": 2, "snpSPL": 3, "ucodeSPL": 8, "fmcSPL": 9}
    found = {}
    for extension in certificate.extensions:
        for name, number in numbers.items():
            if extension.oid.dotted_string == f"1.3.6.1.4.1.3704.1.3.{number}":
                found[name] = extension.value.value[-1]
    return found


def hardware_id(certificate: x509.Certificate) -> bytes:
    oid = x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.4")
    return certificate.extensions.get_extension_for_oid(oid).value.value[-64:]


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_the_url_of_a_vcek_is_that_of_the_chip_s_certificate():
    vcek = x509.load_pem_x509_certificate(vector("coco_trustee/az-snp-vtpm/vcek-genoa.pem"))
    url = urlsplit(wanted(Provider.SNP, Quoted(vector(GENOA), {}))["vcek.der"])
    assert url.netloc == "kdsintf.amd.com"
    assert url.path == f"/vcek/v1/Genoa/{hardware_id(vcek).hex()}"
    assert {name: int(value[0]) for name, value in parse_qs(url.query).items()} == patch_levels(vcek)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_report_of_version_2_is_placed_by_its_certificate():
    report, vcek = vector("coco_trustee/snp/test-report.bin"), vector("coco_trustee/snp/test-vcek.der")
    assert wanted(Provider.SNP, Quoted(report, {"vcek.der": vcek})) == {
        "chain.pem": "https://kdsintf.amd.com/vcek/v1/Milan/cert_chain",
        "crl.der": "https://kdsintf.amd.com/vcek/v1/Milan/crl",
    }
    with pytest.raises(UsageError, match="--endorsements DIR"):
        wanted(Provider.SNP, Quoted(report, {}))


def test_turin_has_its_own_url():
    """From AMD's specification by hand: 8 bytes of chip, the bytes of the levels moved, FMC before them."""
    report = bytearray(1184)
    report[0], report[0x188], report[0x189] = 3, 0x1A, 0x02
    report[0x1A0:0x1A8] = bytes.fromhex("6bb1229b7692b710")
    report[0x180:0x188] = bytes([3, 1, 2, 4, 0, 0, 0, 82])
    urls = wanted(Provider.SNP, Quoted(bytes(report), {}), sources=Sources(amd="https://cache.example/amd/"))
    assert urls["vcek.der"] == (
        "https://cache.example/amd/vcek/v1/Turin/6bb1229b7692b710?fmcSPL=03&blSPL=01&teeSPL=02&snpSPL=04&ucodeSPL=82"
    )
    report[0x1A0:0x1A8] = bytes(8)
    with pytest.raises(UsageError, match="MASK_CHIP_ID"):
        wanted(Provider.SNP, Quoted(bytes(report), {}))
    report[0x188] = 0x1B
    with pytest.raises(UsageError, match="which processor"):
        wanted(Provider.SNP, Quoted(bytes(report), {}))


def test_a_leased_key_needs_the_host_s_certificate():
    report, vlek = vector("coco_trustee/snp/test-vlek-report.bin"), vector("coco_trustee/snp/test-vlek.der")
    assert wanted(Provider.SNP, Quoted(report, {"vlek.der": vlek})) == {
        "chain.pem": "https://kdsintf.amd.com/vlek/v1/Milan/cert_chain",
        "crl.der": "https://kdsintf.amd.com/vlek/v1/Milan/crl",
    }
    with pytest.raises(UsageError, match=r"vlek\.der"):
        wanted(Provider.SNP, Quoted(report, {}))


def amd_service(request: httpx2.Request) -> httpx2.Response:
    name = request.url.path.rpartition("/")[2]
    answers = {
        "cert_chain": vector("amd_snp_google/trust/ask_ark_genoa.pem"),
        "crl": vector("intel_tdx_google/rootcrl.der"),  # AMD's are of the same form, and none is among the vectors
    }
    return httpx2.Response(200, content=answers.get(name, vector("coco_trustee/az-snp-vtpm/vcek-genoa.pem")))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_answers_of_amd_are_stapled_under_their_names():
    urls = wanted(Provider.SNP, Quoted(vector(GENOA), {}))
    made = assemble(Provider.SNP, fetched(amd_service, urls))
    assert set(made) == {"vcek.der", "chain.pem", "crl.der"}
    x509.load_der_x509_certificate(made["vcek.der"])
    assert made["chain.pem"] == vector("amd_snp_google/trust/ask_ark_genoa.pem")
    end = x509.load_der_x509_crl(made["crl.der"]).next_update_utc
    assert valid_until(made) == end.timestamp()


@pytest.mark.parametrize("name", ["vcek.der", "chain.pem", "crl.der"])
@pytest.mark.parametrize("body", [b"", b"<html>Too many requests</html>", b"\x30\x82\xff\xff\0", b"\xff" * 100])
def test_other_answers_than_amd_s_are_refused(name, body):
    with pytest.raises(ProtocolError, match=name):
        assemble(Provider.SNP, {name: Fetched(body, {})})


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"tcb_info": 5}', b"[" * 100_000, b"\xff"])
def test_collateral_without_dates_is_refused(text):
    with pytest.raises(ProtocolError):
        valid_until({COLLATERAL: text})


def test_without_dates_there_is_no_end():
    assert valid_until({}) is None
    assert valid_until({"vcek.der": b"x"}) is None


# --- given by hand ----------------------------------------------------------------------------------------------------


def test_what_is_given_stands_before_what_the_host_gave():
    quoted = endorsed(Quoted(b"e", {"vcek.der": b"host", "chain.pem": b"host"}), given={"vcek.der": b"given"})
    assert quoted == Quoted(b"e", {"vcek.der": b"given", "chain.pem": b"host"})
    with pytest.raises(UsageError, match=r"got vcek\.pem"):
        endorsed(quoted, given={"vcek.pem": b""})
    with pytest.raises(UsageError, match="at most"):
        endorsed(quoted, given={COLLATERAL: bytes(MOST_BYTES)})


def test_a_folder_holds_files_of_these_names(tmp_path):
    with pytest.raises(UsageError, match="one or more of"):
        read_endorsements(tmp_path)
    (tmp_path / "..data").mkdir()
    for name in NAMES:
        (tmp_path / name).write_bytes(name.encode())
    assert read_endorsements(tmp_path) == {name: name.encode() for name in NAMES}
    (tmp_path / "vcek.pem").write_bytes(b"")
    with pytest.raises(UsageError, match=r"got vcek\.pem"):
        read_endorsements(tmp_path)
    (tmp_path / "vcek.pem").unlink()
    (tmp_path / "crl.der").write_bytes(bytes(MOST_BYTES + 1))
    with pytest.raises(UsageError, match=r"crl\.der of at most"):
        read_endorsements(tmp_path)
    with pytest.raises(UsageError, match="a folder"):
        read_endorsements(tmp_path / "absent")


# --- kept as long as they hold ----------------------------------------------------------------------------------------


class Vendor:
    """Counts questions, and answers Intel's collateral or with an error."""

    def __init__(self) -> None:
        self.asked, self.error = 0, None

    def __call__(self, urls):
        self.asked += 1
        if self.error is not None:
            raise self.error
        return fetched(intel_service(json.loads(vector(INTEL[1][1]))), dict(urls))


@pytest.fixture
def stapled():
    """Return a stapler, its vendor and its clock, shortly after the collateral was issued."""
    clock, vendor = SimpleNamespace(now=float(INTEL[1][3])), Vendor()
    stapler = Stapler(SimpleNamespace(provider=Provider.TDX), vendor, clock=lambda: clock.now)
    return SimpleNamespace(ask=lambda: stapler(Quoted(vector(INTEL[1][0]), {})), vendor=vendor, clock=clock)


def test_answers_are_kept_for_a_day(stapled):
    first = stapled.ask()
    assert COLLATERAL in first.endorsements
    stapled.clock.now += REFRESH_SECONDS - 1
    assert stapled.ask() == first
    assert stapled.vendor.asked == 1
    stapled.clock.now += 1
    stapled.ask()
    assert stapled.vendor.asked == 2


@pytest.mark.parametrize("error", [UsageError("gone"), ServiceError(503, "busy"), ProtocolError("other")])
def test_what_still_holds_outlives_a_vendor_that_is_away(stapled, error):
    first = stapled.ask()
    stapled.vendor.error = error
    stapled.clock.now += REFRESH_SECONDS
    assert stapled.ask() == stapled.ask() == first
    assert stapled.vendor.asked == 2  # not once for every question
    stapled.clock.now = valid_until(first.endorsements)
    with pytest.raises(ConfideError):
        stapled.ask()


def test_without_anything_kept_a_vendor_that_is_away_is_an_error(stapled):
    stapled.vendor.error = UsageError("gone")
    with pytest.raises(UsageError):
        stapled.ask()
