"""Policy files: strict, and drafts of them from evidence."""

from __future__ import annotations

import base64

import msgspec
import pytest

from confide.errors import UsageError
from confide.tee import known
from confide.tee.draft import policy_text
from confide.tee.evidence import Bundle, Provider, report_data
from confide.tee.policy import Policy, SgxRules, SimulatedRules, parse_policy, read_policy
from confide.tee.simulated import Simulated
from confide.tee.verify import verify
from tee.authority import NOW, Amd, Aws, Chip
from tee.vectors import CLAIMS, NONCE, TDX_NOW, checked, failed, vector

H32, H48, H64 = "ab" * 32, "ab" * 48, "ab" * 64
FULL = f"""
model_sha256 = ["{H32}"]
max_age_seconds = 60
[sgx]
mrsigner = ["{H32}"]
isv_prod_id = 1
min_isv_svn = 2
statuses = ["UpToDate", "SWHardeningNeeded"]
advisories = ["INTEL-SA-00615"]
instances = ["{"ab" * 16}"]
[tdx]
mrtd = ["{H48}"]
rtmr1 = ["{H48}"]
accept_any_rtmr = ["rtmr0"]
dynamic_platform_allowed = true
[snp]
measurement = ["{H48}"]
products = ["genoa", "milan"]
accept_broken_milan = true
max_vmpl = 1
instances = ["{H64}"]
platform = ["alias-check"]
[snp.tcb_floor.genoa]
snp = 23
microcode = 84
[nitro]
pcr0 = ["{H48}"]
pcr1 = ["{H48}"]
pcr2 = ["{H48}"]
[simulated]
measurements = ["{H48}"]
"""


def test_a_policy_with_everything_is_read(tmp_path):
    (tmp_path / "policy.toml").write_text(FULL)
    policy = read_policy(tmp_path / "policy.toml")
    assert policy.max_age_seconds == 60
    assert policy.snp is not None
    assert policy.snp.tcb_floor["genoa"].microcode == 84
    assert policy.tdx is not None
    assert policy.tdx.accept_any_rtmr == ("rtmr0",)
    assert policy.sgx == SgxRules(
        mrsigner=(H32,), isv_prod_id=1, min_isv_svn=2, statuses=("UpToDate", "SWHardeningNeeded"),
        advisories=("INTEL-SA-00615",), instances=("ab" * 16,),
    )  # fmt: skip


def test_a_policy_is_strict_by_itself():
    snp = parse_policy(f'[snp]\nmeasurement = ["{H48}"]'.encode(), "here").snp
    assert snp is not None
    assert snp.products == ("genoa", "turin")
    assert (snp.max_vmpl, snp.accept_broken_milan) == (0, False)
    tdx = parse_policy(f'[tdx]\nmrtd = ["{H48}"]'.encode(), "here").tdx
    assert tdx is not None
    assert tdx.statuses == ("UpToDate",)
    assert tdx.advisories == ()
    assert [tdx.dynamic_platform_allowed, tdx.cached_keys_allowed, tdx.smt_allowed] == [False] * 3


@pytest.mark.parametrize(
    "text",
    [
        "unknown = 1",
        "max_age_seconds = 0",
        'max_age_seconds = "60"',
        f'model_sha256 = ["{H48}"]',
        'model_sha256 = ["any"]',
        "[sgx]",
        f'[sgx]\nmrenclave = ["{H32}"]\nmrsigner = ["{H32}"]\nisv_prod_id = 0\nmin_isv_svn = 0',
        f'[sgx]\nmrsigner = ["{H32}"]',
        f'[sgx]\nmrsigner = ["{H32}"]\nisv_prod_id = 0',
        f'[sgx]\nmrenclave = ["{H48}"]',
        f'[sgx]\nmrenclave = ["{"0" * 64}"]',
        f'[sgx]\nmrenclave = ["{H32.upper()}"]',
        f'[sgx]\nmrenclave = ["{H32}"]\nstatuses = []',
        f'[sgx]\nmrenclave = ["{H32}"]\nstatuses = ["Revoked"]',
        f'[sgx]\nmrenclave = ["{H32}"]\nadvisories = ["*"]',
        f'[sgx]\nmrenclave = ["{H32}"]\nrtmr0 = ["{H48}"]',
        "[tdx]",
        "[tdx]\nmrtd = []",
        'mrtd = ["any"]',
        f'[tdx]\nmrtd = ["{H48}"]\naccept_any_rtmr = ["rtmr4"]',
        f'[tdx]\nmrtd = ["{H48}"]\nrtmr0 = ["{H48}"]\naccept_any_rtmr = ["rtmr0"]',
        f'[tdx]\nmrtd = ["{H48}"]\ndebug_allowed = true',
        f'[snp]\nmeasurement = ["{"0" * 96}"]',
        f'[snp]\nmeasurement = ["{H48}"]\nproducts = []',
        f'[snp]\nmeasurement = ["{H48}"]\nproducts = ["milan"]',
        f'[snp]\nmeasurement = ["{H48}"]\naccept_broken_milan = true',
        f'[snp]\nmeasurement = ["{H48}"]\nmax_vmpl = 4',
        f'[snp]\nmeasurement = ["{H48}"]\ntcb_floor = {{ genoa = {{ snp = 256 }} }}',
        f'[snp]\nmeasurement = ["{H48}"]\ntcb_floor = {{ genoa = {{ }} }}',
        f'[snp]\nmeasurement = ["{H48}"]\naccept_older_tcb = true',
        f'[snp]\nmeasurement = ["{H48}"]\ntcb_floor = {{ rome = {{ snp = 1 }} }}',
        f'[snp]\nmeasurement = ["{H48}"]\nplatform = ["fast"]',
        f'[nitro]\npcr0 = ["{H48}"]',
        f'[nitro]\npcr0 = ["{"0" * 96}"]\npcr1 = ["{H48}"]\npcr2 = ["{H48}"]',
        "[simulated]",
        "[simulated]\nmeasurements = []",
        '[simulated]\nmeasurements = [""]',
        '[simulated]\nmeasurements = ["any"]',
        f'[simulated]\nmeasurements = ["{H64}"]',
        "[nonsense",
        "\xff",
        "a = " + "[" * 3000,
    ],
)
def test_what_is_no_policy_is_refused(text, tmp_path):
    with pytest.raises(UsageError):
        parse_policy(text.encode("latin-1"), "here")
    (tmp_path / "policy.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError):
        read_policy(tmp_path / "policy.toml")


def test_another_policy_has_another_digest():
    policies = [Policy(), Policy(max_age_seconds=5), parse_policy(FULL.encode(), "here"),
                parse_policy(FULL.replace("max_vmpl = 1", "max_vmpl = 2").encode(), "here")]  # fmt: skip
    assert len({policy.digest for policy in policies}) == len(policies)
    assert parse_policy(FULL.encode(), "a").digest == parse_policy(("# words\n" + FULL).encode(), "b").digest


# --- drafts ---


def bundle_of(provider: Provider, evidence: bytes, endorsements: dict[str, bytes] | None = None) -> Bundle:
    return Bundle(provider=provider, evidence=evidence, endorsements=endorsements or {}, claims=CLAIMS.encode())


def test_a_draft_accepts_what_it_was_drafted_from_and_says_what_it_is(monkeypatch):
    bound = report_data(CLAIMS.encode())
    genoa, turin, aws = Amd("genoa"), Amd("turin"), Aws()
    trusted = msgspec.structs.replace(genoa.known(), roots=msgspec.structs.replace(
        aws.known().roots, snp={**genoa.known().roots.snp, "turin": turin.known().roots.snp["turin"]}))  # fmt: skip
    monkeypatch.setattr(known, "load", lambda: trusted)
    chips = [Chip(genoa), Chip(turin), Chip(genoa, vlek=True)]
    bundles = [
        *(bundle_of(Provider.SNP, chip.report(bound, host_data=bytes(31) + b"\1", vmpl=1, author_key=b"a" * 48),
                    chip.endorsements()) for chip in chips),
        bundle_of(Provider.NITRO, aws.document(bound)),
        bundle_of(Provider.SIMULATED, Simulated().quote(bound).evidence),
    ]  # fmt: skip
    for bundle in bundles:
        text = policy_text(bundle)
        assert "TRUST ON FIRST USE" in text
        verdict = verify(bundle, parse_policy(text.encode(), "draft"), now=NOW, nonce=NONCE, allow_simulated=True)
        assert failed(verdict) == [], bundle.provider


def test_drafts_of_public_quotes_name_their_code():
    quote = vector("intel_dcap_phala/tdx_quote")
    collateral = {"collateral.json": vector("intel_dcap_phala/tdx_quote_collateral.json")}
    policy = parse_policy(policy_text(bundle_of(Provider.TDX, quote)).encode(), "draft")
    verdict = checked(Provider.TDX, quote, collateral, policy, TDX_NOW)
    assert failed(verdict) == ["dynamic platform", "cached keys", "smt", "report data"]
    sgx = policy_text(bundle_of(Provider.SGX, vector("intel_dcap_phala/sgx_quote")))
    assert "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb" in sgx
    milan = policy_text(bundle_of(Provider.SNP, vector("coco_trustee/snp/test-report.bin")))
    assert "accept_broken_milan = true" in milan


def test_no_draft_accepts_debugging_or_nonsense():
    debugged = base64.b64decode(vector("aws_nitro_evervault/valid-attestation-doc-base64"))
    for provider, evidence in ((Provider.NITRO, debugged), (Provider.SNP, b"x"), (Provider.TDX, b""),
                               (Provider.SIMULATED, b"{}")):  # fmt: skip
        with pytest.raises(UsageError):
            policy_text(bundle_of(provider, evidence))


@pytest.mark.parametrize("model", ["", "ab" * 31, "AB" * 32, "ab" * 32 + "\n", "ab" * 32 + '"]\nsgx = { }\n#'])
def test_a_draft_takes_no_text_of_an_enclave_for_a_model(model):
    claims = msgspec.structs.replace(CLAIMS, model_sha256=model).encode()
    quote = Simulated().quote(report_data(claims)).evidence
    with pytest.raises(UsageError, match="model_sha256"):
        policy_text(Bundle(provider=Provider.SIMULATED, evidence=quote, endorsements={}, claims=claims))


def test_simulated_rules_name_measurements():
    assert Policy(simulated=SimulatedRules(measurements=(H48,))).simulated is not None
    for measurements in ((), ("a",), ("any",)):
        with pytest.raises(ValueError, match="measurements"):
            SimulatedRules(measurements=measurements)
