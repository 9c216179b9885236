"""SGX and TDX: every public quote at its time, and what must not hold."""

from __future__ import annotations

import contextlib
import json
import struct

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.tee import dcap, known
from confide.tee.evidence import Provider
from confide.tee.intel import Quote
from confide.tee.policy import Policy, SgxRules, TdxRules
from tee.vectors import LATER, OUTDATED_NOW, SGX_NOW, TDX_NOW, checked, failed, flipped, vector

MRENCLAVE = "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"
MRSIGNER = "815f42f11cf64430c30bab7816ba596a1da0130c3b028b673133a66cf9a3e0e6"
ADVISORIES = ("INTEL-SA-00289", "INTEL-SA-00615")
SGX = {"mrenclave": (MRENCLAVE,), "statuses": ("ConfigurationAndSWHardeningNeeded", "UpToDate"),
       "advisories": ADVISORIES}  # fmt: skip
MULTI = {"dynamic_platform_allowed": True, "cached_keys_allowed": True, "smt_allowed": True}


def sgx(*, quote: bytes | None = None, collateral: bytes | None = None, now: float = SGX_NOW, **rules):
    body = vector("intel_dcap_phala/sgx_quote") if quote is None else quote
    stapled = vector("intel_dcap_phala/sgx_quote_collateral.json") if collateral is None else collateral
    policy = Policy(sgx=SgxRules(**{**SGX, **rules}))
    return checked(Provider.SGX, body, {"collateral.json": stapled}, policy, now)


def registers(quote: bytes) -> dict[str, tuple[str, ...]]:
    """Read a quote of version 4 by the offsets of Intel's document, from the start of the quote."""
    places = {"mrtd": 184, "rtmr0": 376, "rtmr1": 424, "rtmr2": 472, "rtmr3": 520}
    return {name: (quote[at : at + 48].hex(),) for name, at in places.items()}


def tdx(*, quote: bytes | None = None, collateral: bytes | None = None, now: float = TDX_NOW, **rules):
    genuine = vector("intel_dcap_phala/tdx_quote")
    stapled = vector("intel_dcap_phala/tdx_quote_collateral.json") if collateral is None else collateral
    policy = Policy(tdx=TdxRules(**{**registers(genuine), **MULTI, **rules}))
    return checked(Provider.TDX, genuine if quote is None else quote, {"collateral.json": stapled}, policy, now)


def test_the_public_quotes_hold_but_for_the_claims_of_their_code():
    assert failed(sgx()) == ["report data"]
    assert failed(tdx()) == ["report data"]
    assert tdx().instance == "07828474603e7019dc930775ffe8cdd2"
    assert sgx().instance == "d04ec06d4e6d92dc90d0ad3cf5ee2ddf"


def test_a_strict_policy_shows_everything_that_it_does_not_accept():
    verdict = sgx(statuses=("UpToDate",), advisories=())
    assert failed(verdict) == ["platform level", "advisories", "report data"]
    text = " ".join(check.detail for check in verdict.checks)
    assert "ConfigurationAndSWHardeningNeeded" in text
    assert all(one in text for one in ADVISORIES)
    assert failed(sgx(advisories=ADVISORIES[:1])) == ["advisories", "report data"]
    strict = dict.fromkeys(MULTI, False)
    assert failed(tdx(**strict)) == ["dynamic platform", "cached keys", "smt", "report data"]


@pytest.mark.parametrize(
    ("kind", "rules", "names"),
    [
        (sgx, {"mrenclave": ("ab" * 32,)}, ["measurement"]),
        (sgx, {"mrenclave": (), "mrsigner": (MRSIGNER,), "isv_prod_id": 0, "min_isv_svn": 0}, []),
        (sgx, {"mrenclave": (), "mrsigner": (MRSIGNER,), "isv_prod_id": 1, "min_isv_svn": 1}, ["product", "version"]),
        (sgx, {"mrenclave": (), "mrsigner": ("ab" * 32,), "isv_prod_id": 0, "min_isv_svn": 0}, ["signer"]),
        (sgx, {"min_tcb_evaluation": 18}, ["evaluation"]),
        (sgx, {"instances": ("d04ec06d4e6d92dc90d0ad3cf5ee2ddf",)}, []),
        (sgx, {"instances": ("ab" * 16,)}, ["instance"]),
        (tdx, {"instances": ("811dca2a26b952e85bb6448b097ba4fd",)}, []),
        (tdx, {"instances": ("07828474603e7019dc930775ffe8cdd2",)}, []),
        (tdx, {"instances": ("ab" * 16,)}, ["instance"]),
        (tdx, {"mrtd": ("ab" * 48,)}, ["measurement"]),
        (tdx, {"rtmr0": ()}, ["rtmr0"]),
        (tdx, {"rtmr0": (), "accept_any_rtmr": ("rtmr0",)}, []),
        (tdx, {"rtmr1": ("ab" * 48,)}, ["rtmr1"]),
        (tdx, {"rtmr3": ()}, []),
        (tdx, {"mr_config_id": ("ab" * 48,), "mr_owner": ("ab" * 48,)}, ["mr_config_id", "mr_owner"]),
        (tdx, {"mr_seam": ("ab" * 48,)}, ["mr_seam"]),
    ],
)
def test_a_policy_is_kept_to(kind, rules, names):
    assert failed(kind(**rules)) == [*names, "report data"]


@pytest.mark.parametrize(
    ("verdict", "name", "words"),
    [
        (lambda: sgx(now=LATER), "revocation", "CrlExpired"),
        (lambda: tdx(now=LATER), "revocation", "CrlExpired"),
        (lambda: tdx(now=1750000000), "collateral dates", "TCBInfo issue date is in the future"),
        (lambda: sgx(quote=flipped(vector("intel_dcap_phala/sgx_quote"), 148)), "signature",
         "ISV enclave report signature is invalid"),
        (lambda: outdated("intel_dcap_phala/tdx_quote_outdated"), "platform level", "No matching TCB level found"),
        (lambda: outdated("intel_dcap_phala/tdx_quote"), "collateral", "Fmspc mismatch"),
        (lambda: sgx(collateral=vector("intel_dcap_phala/tdx_quote_collateral.json"), now=TDX_NOW), "quoting enclave",
         "Unsupported QE Identity id/version"),
    ],
)  # fmt: skip
def test_the_vectors_that_must_fail_do_so_for_their_reason(verdict, name, words):
    found = verdict()
    assert failed(found) == [name]
    assert words in found.checks[-1].detail


def outdated(quote: str):
    collateral = vector("intel_dcap_phala/tdx_quote_outdated_collateral.json")
    return tdx(quote=vector(quote), collateral=collateral, now=OUTDATED_NOW)


@pytest.mark.parametrize("kind", [sgx, tdx])
def test_both_edges_of_the_window_are_kept(kind):
    start, end = (1750330571, 1752919278) if kind is sgx else (1750329147, 1752919235)
    assert failed(kind(now=start)) == ["report data"]
    assert failed(kind(now=end - 1)) == ["report data"]
    assert failed(kind(now=start - 1)) == ["collateral dates"]
    assert failed(kind(now=end + 1)) in (["revocation"], ["collateral dates"], ["chain"])  # a list's end says "chain"


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("coco_trustee/tdx_quote_4.dat", "debug"),
        ("intel_tdx_google/tdx_prod_quote_SPR_E4.dat", "SEPT_VE_DISABLE"),
        ("coco_trustee/az-tdx-vtpm/td-quote.bin", "SEPT_VE_DISABLE"),
    ],
)
def test_guests_that_their_host_may_look_into_are_refused(name, check):
    assert check in failed(tdx(quote=vector(name)))


def test_a_debugged_enclave_is_refused_before_its_signature_is_looked_at():
    quote = bytearray(vector("intel_dcap_phala/sgx_quote"))
    quote[48 + 48] |= 2
    assert failed(sgx(quote=bytes(quote))) == ["debug", "signature"]


@pytest.mark.parametrize("kind", [sgx, tdx])
def test_no_byte_of_what_is_signed_can_change(kind):
    quote = vector("intel_dcap_phala/sgx_quote" if kind is sgx else "intel_dcap_phala/tdx_quote")
    signed = 48 + (384 if kind is sgx else 584)
    for place in range(0, signed, 13):
        names = failed(kind(quote=flipped(quote, place, place % 8)))
        assert names not in ([], ["report data"]), place


def changed_collateral(**fields: str) -> bytes:
    stapled = json.loads(vector("intel_dcap_phala/tdx_quote_collateral.json"))
    return json.dumps({**stapled, **fields}).encode()


def foreign_list(old: x509.CertificateRevocationList, *serials: int) -> str:
    """Write a list like `old`, of a key that is nobody's."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(old.issuer)
    builder = builder.last_update(old.last_update_utc).next_update(old.next_update_utc)
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256()).public_bytes(Encoding.DER).hex()


def test_revocation_lists_are_enforced():
    stapled = json.loads(vector("intel_dcap_phala/tdx_quote_collateral.json"))
    list_ = x509.load_der_x509_crl(bytes.fromhex(stapled["pck_crl"]))
    for fields in (
        {"pck_crl": ""},
        {"root_ca_crl": ""},
        {"pck_crl": stapled["root_ca_crl"]},
        {"root_ca_crl": stapled["pck_crl"]},
        {"pck_crl": foreign_list(list_)},
        {"pck_crl": json.loads(vector("intel_dcap_phala/sgx_quote_collateral.json"))["pck_crl"]},
    ):
        assert len(failed(tdx(collateral=changed_collateral(**fields)))) == 1, fields


@pytest.mark.parametrize(
    ("field", "old", "new"), [("tcb_info", "OutOfDate", "UpToDate"), ("qe_identity", '"isvsvn":4', '"isvsvn":3')]
)
def test_collateral_that_was_made_kinder_is_refused(field, old, new):
    stapled = json.loads(vector("intel_dcap_phala/tdx_quote_collateral.json"))
    kinder = stapled[field].replace(old, new)
    assert kinder != stapled[field]
    assert len(failed(tdx(collateral=changed_collateral(**{field: kinder})))) == 1


def test_collateral_must_be_there_and_be_read():
    policy = Policy(tdx=TdxRules(**registers(vector("intel_dcap_phala/tdx_quote")), **MULTI))
    assert failed(checked(Provider.TDX, vector("intel_dcap_phala/tdx_quote"), {}, policy, TDX_NOW)) == ["collateral"]
    for body in (b"", b"{}", b"[]", b"\xff\xfe", b"[" * 5000, b'{"tcb_info": 1}'):
        assert failed(tdx(collateral=body)) == ["collateral"]


def test_another_root_is_not_the_one_that_is_pinned(monkeypatch):
    shipped = known.load()
    other = msgspec.structs.replace(shipped, roots=msgspec.structs.replace(shipped.roots, intel="ab" * 48))
    monkeypatch.setattr(known, "load", lambda: other)
    assert failed(tdx()) == ["root"]


def test_a_quote_does_not_lead_to_an_authority_of_ours():
    key = ec.generate_private_key(ec.SECP256R1())
    stapled = json.loads(vector("intel_dcap_phala/sgx_quote_collateral.json"))
    root = x509.load_pem_x509_certificates(stapled["tcb_info_issuer_chain"].encode())[-1]
    builder = x509.CertificateBuilder().subject_name(root.subject).issuer_name(root.subject).serial_number(1)
    builder = builder.public_key(key.public_key()).not_valid_before(root.not_valid_before_utc)
    ours = builder.not_valid_after(root.not_valid_after_utc).sign(key, SHA256()).public_bytes(Encoding.DER)
    arguments = (vector("intel_dcap_phala/sgx_quote"), vector("intel_dcap_phala/sgx_quote_collateral.json"), SGX_NOW)
    assert dcap.verify_quote(*arguments, root.public_bytes(Encoding.DER)).platform.root == known.load().roots.intel
    with pytest.raises(dcap.QuoteRefused):
        dcap.verify_quote(*arguments, ours)


def test_an_sgx_quote_is_none_of_tdx():
    assert failed(tdx(quote=vector("intel_dcap_phala/sgx_quote"))) == ["form"]
    assert failed(sgx(quote=vector("intel_dcap_phala/tdx_quote"))) == ["form"]


# --- fields ---


def test_fields_are_what_another_parser_found():
    expected = json.loads(vector("coco_trustee/parse_tdx_claims_expected.json"))["quote"]["body"]
    quote = Quote.read(vector("coco_trustee/tdx_quote_4.dat"))
    found = {
        "mr_seam": quote.part(16, 48), "td_attributes": quote.part(120, 8), "mr_td": quote.part(136, 48),
        "mr_config_id": quote.part(184, 48), "mr_owner": quote.part(232, 48), "mr_owner_config": quote.part(280, 48),
        **{f"rtmr_{i}": quote.part(328 + 48 * i, 48) for i in range(4)}, "report_data": quote.part(520, 64),
    }  # fmt: skip
    assert found == {name: expected[name] for name in found}


@pytest.mark.parametrize(
    ("name", "version", "length"),
    [
        ("coco_trustee/tdx_quote_5.dat", 5, 648),
        ("intel_tdx_google/quote_v5_sample.dat", 5, 648),
        ("coco_trustee/tdx_quote_6.dat", 4, 584),
        ("coco_trustee/occlum_quote.dat", 3, 384),
        ("intel_tdx_google/cos-113-tdx-quote.dat", 4, 584),
    ],
)
def test_every_form_of_a_quote_is_read(name, version, length):
    quote = Quote.read(vector(name))
    assert (quote.version, len(quote.body)) == (version, length)
    if version == 5:
        assert quote.body == vector(name)[54 : 54 + length]


def test_the_report_data_of_the_index_are_where_they_should_be():
    quote = Quote.read(vector("intel_dcap_phala/sgx_quote"))
    assert quote.body[320:384] == b"Hello, world!".ljust(64, b"\0")
    nonce = vector("intel_tdx_google/cos-113-nonce.dat")
    assert Quote.read(vector("intel_tdx_google/cos-113-tdx-quote.dat")).body[520:584] == nonce


@given(st.binary(max_size=900), st.sampled_from([(3, 0), (4, 0), (4, 0x81), (5, 0x81), (5, 0), (3, 0x81)]))
def test_random_bytes_are_read_or_refused(body, kind):
    version, tee = kind
    raw = struct.pack("<HHI", version, 2, tee) + body
    with contextlib.suppress(ProtocolError):
        assert len(Quote.read(raw).body) in (384, 584, 648)


@settings(max_examples=40)
@given(st.integers(0, 5005), st.binary(min_size=1, max_size=300), st.booleans())
def test_spliced_quotes_end_in_a_verdict(place, piece, cut):
    quote = vector("intel_dcap_phala/tdx_quote")
    changed = quote[:place] if cut else quote[:place] + piece + quote[place + len(piece) :]
    verdict = tdx(quote=changed)
    assert not verdict.holds
    if changed[: 48 + 584] != quote[: 48 + 584]:
        assert failed(verdict) != ["report data"]


@settings(max_examples=40)
@given(st.integers(0, 16071), st.binary(min_size=1, max_size=40))
def test_spliced_collateral_ends_in_a_verdict(place, piece):
    body = vector("intel_dcap_phala/tdx_quote_collateral.json")
    assert not tdx(collateral=body[:place] + piece + body[place + len(piece) :]).holds
