"""Evidence of Intel SGX and TDX: quotes of version 3, 4 and 5, with Intel's collateral.

Paper: Intel, SGX ECDSA Quote Library Reference for DCAP (quote 3), TDX DCAP Quoting Library API (quotes 4 and 5), TDX
Module ABI (TDREPORT, attributes). Fields are read here by their offsets; what `dcap` checks is listed there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from confide.errors import ProtocolError
from confide.tee import dcap, known
from confide.tee.checks import Asked, Checks, Facts
from confide.tee.evidence import Bundle
from confide.tee.policy import IntelRules, SgxRules, TdxRules

_HEADER_BYTES = 48
_SGX, _TDX = 0, 0x81
#: How long a body is, by the type that a quote of version 5 names: SGX, TD 1.0, TD 1.5.
_BODIES: Mapping[int, int] = MappingProxyType({1: 384, 2: 584, 3: 648})
_SGX_INITIALISED, _SGX_DEBUG = 1 << 0, 1 << 1
_TD_DEBUG = 1 << 0
_SEPT_VE_DISABLE = 1 << 28
#: Attributes that a guest may have: SEPT_VE_DISABLE, protection keys, key locker, performance counters.
_TD_MAY = _SEPT_VE_DISABLE | 1 << 30 | 1 << 31 | 1 << 63
_ZERO = 96 * "0"

#: Of what dcap-qvl says, the words that tell which check it was; the first that is found counts.
_REASONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("revocation", ("revoked", "crl")),
    ("collateral dates", ("issue date", "expired", "expiration", "notvalidyet", "next update")),
    ("quoting enclave", ("qe report hash", "qe identity", "qe_report", "qe vendor", "qe ", "mrsigner", "isvprodid")),
    ("collateral", ("fmspc", "tcb_info", "tcbinfo", "qeidentity", "tcb info", "key length")),
    ("platform level", ("tcb",)),
    ("chain", ("chain", "certificate")),
    ("signature", ("signature",)),
)


@dataclass(frozen=True, slots=True)
class Quote:
    """The fields of a quote that are looked at. `body` is an enclave's report, or a guest's."""

    version: int
    tee: int
    body: bytes

    @staticmethod
    def read(raw: bytes) -> Quote:
        """Return what is in `raw`. Raises ProtocolError for a form that is none we know."""
        if len(raw) < _HEADER_BYTES + 6:
            raise ProtocolError("Expected a quote of Intel SGX or TDX")
        version, _, tee = struct.unpack_from("<HHI", raw)
        start, length = _HEADER_BYTES, 0
        if version == 3 and tee == _SGX:
            length = _BODIES[1]
        elif version == 4:
            length = {_SGX: _BODIES[1], _TDX: _BODIES[2]}.get(tee, 0)
        elif version == 5:
            kind, said = struct.unpack_from("<HI", raw, _HEADER_BYTES)
            start += 6
            length = _BODIES.get(kind, 0) if (kind == 1) == (tee == _SGX) and tee in (_SGX, _TDX) else 0
            length = length if said == length else 0
        if not length or len(raw) < start + length:
            raise ProtocolError(f"Expected a quote of Intel SGX or TDX, of version 3, 4 or 5; not version {version}")
        return Quote(version, tee, raw[start : start + length])

    def part(self, start: int, length: int) -> str:
        """Return `length` bytes of the body in hex."""
        return self.body[start : start + length].hex()


def verify_sgx(bundle: Bundle, asked: Asked, checks: Checks) -> Facts:
    """Make every check of an SGX quote, from its form to what the policy names."""
    rules = asked.policy.sgx
    checks.add("provider", rules is not None, "Intel SGX" if rules else "the policy has no table [sgx]", stop=True)
    assert rules is not None
    with checks.reading("form"):
        quote = Quote.read(bundle.evidence)
    checks.add("form", quote.tee == _SGX, f"a quote of version {quote.version}", stop=True)
    (attributes,) = struct.unpack_from("<Q", quote.body, 48)
    checks.add("debug", not attributes & _SGX_DEBUG, "off" if not attributes & _SGX_DEBUG else
               "the enclave is open to its host for debugging")  # fmt: skip
    checks.add("initialised", bool(attributes & _SGX_INITIALISED), f"attributes={attributes:#x}")
    platform = _check_platform(bundle, rules, asked.now, checks)
    _check_enclave(quote, rules, checks)
    return Facts(quote.body[320:384], _pin(platform, rules, checks))


def _check_enclave(quote: Quote, rules: SgxRules, checks: Checks) -> None:
    """Check the code: itself, or who signed it, as which product, of which version."""
    product, version = struct.unpack_from("<HH", quote.body, 256)
    if rules.mrenclave:
        checks.named("measurement", quote.part(64, 32), rules.mrenclave)
        return
    assert rules.min_isv_svn is not None
    checks.named("signer", quote.part(128, 32), rules.mrsigner)
    checks.add("product", product == rules.isv_prod_id, f"isv_prod_id={product}, expected {rules.isv_prod_id}")
    checks.add("version", version >= rules.min_isv_svn, f"isv_svn={version}, of at least {rules.min_isv_svn}")


def verify_tdx(bundle: Bundle, asked: Asked, checks: Checks) -> Facts:
    """Make every check of a TDX quote, from its form to what the policy names."""
    rules = asked.policy.tdx
    checks.add("provider", rules is not None, "Intel TDX" if rules else "the policy has no table [tdx]", stop=True)
    assert rules is not None
    with checks.reading("form"):
        quote = Quote.read(bundle.evidence)
    checks.add("form", quote.tee == _TDX, f"a quote of version {quote.version}", stop=True)
    _check_attributes(quote, checks)
    platform = _check_platform(bundle, rules, asked.now, checks)
    _check_guest(quote, rules, checks)
    return Facts(quote.body[520:584], _pin(platform, rules, checks))


def _check_attributes(quote: Quote, checks: Checks) -> None:
    """Check that the guest is closed to its host."""
    (attributes,) = struct.unpack_from("<Q", quote.body, 120)
    debug, hidden = bool(attributes & _TD_DEBUG), bool(attributes & _SEPT_VE_DISABLE)
    checks.add("debug", not debug, "the guest is open to its host for debugging" if debug else "off")
    checks.add("SEPT_VE_DISABLE", hidden, "set" if hidden else "clear: the host may make the guest's own pages fault")
    unknown = attributes & ~_TD_MAY & ~_TD_DEBUG
    checks.add("attributes", not unknown, f"{attributes:#x}" if not unknown else f"{unknown:#x} is for no guest of use")
    if len(quote.body) == _BODIES[3]:
        serviced = bool(quote.body[600:648].strip(b"\0"))
        checks.add("service guest", not serviced, "another guest is bound to it" if serviced else "none")


def _check_guest(quote: Quote, rules: TdxRules, checks: Checks) -> None:
    """Check what the guest was built of and what was loaded into it."""
    checks.named("measurement", quote.part(136, 48), rules.mrtd)
    names = (("rtmr0", rules.rtmr0), ("rtmr1", rules.rtmr1), ("rtmr2", rules.rtmr2), ("rtmr3", rules.rtmr3))
    for place, (name, allowed) in enumerate(names):
        found = quote.part(328 + 48 * place, 48)
        if name in rules.accept_any_rtmr:
            checks.add(name, True, f"{found}, which the policy does not look at")
        else:
            checks.named(name, found, allowed or (_ZERO,))
    checks.named("mr_config_id", quote.part(184, 48), rules.mr_config_id or (_ZERO,))
    checks.named("mr_owner", quote.part(232, 48), rules.mr_owner or (_ZERO,))
    checks.named("mr_owner_config", quote.part(280, 48), rules.mr_owner_config or (_ZERO,))
    if rules.mr_seam:
        checks.named("mr_seam", quote.part(16, 48), rules.mr_seam)


def _check_platform(bundle: Bundle, rules: IntelRules, now: float, checks: Checks) -> dcap.Verified:
    """Check everything that dcap-qvl checks, then what it only tells: status, advisories, kind of platform."""
    collateral = bundle.endorsements.get("collateral.json")
    checks.add("collateral", collateral is not None, "collateral.json" if collateral is not None else
               "there is no collateral.json among the endorsements", stop=True)  # fmt: skip
    assert collateral is not None
    try:
        with checks.reading("collateral"):
            found = dcap.verify_quote(bundle.evidence, collateral, now)
    except dcap.QuoteRefused as error:
        text = str(error)
        lower = text.lower()
        name = next((name for name, words in _REASONS if any(word in lower for word in words)), "quote")
        checks.add(name, False, text, stop=True)
        raise
    root = found.platform.root
    checks.add("root", root == known.load().roots.intel, "Intel SGX Root CA", stop=True)
    checks.add("signature", True, "of the quote, through Intel's quoting enclave and certificates")
    checks.add("revocation", True, "none, by Intel's lists")
    _check_level(found, rules, checks)
    return found


def _check_level(found: dcap.Verified, rules: IntelRules, checks: Checks) -> None:
    """Check how new the platform is, and what kind it is."""
    statuses = {found.tcb.status, found.platform.tcb_level.tcb_status, found.qe.tcb_level.tcb_status}
    refused = statuses - set(rules.statuses)
    detail = found.tcb.status if not refused else f"{', '.join(sorted(refused))}, which the policy does not name"
    checks.add("platform level", not refused, detail)
    open_ = [one for one in found.tcb.advisory_ids if one not in rules.advisories]
    checks.add("advisories", not open_, ", ".join(found.tcb.advisory_ids) or "none" if not open_ else
               f"{', '.join(open_)} open, which the policy does not name")  # fmt: skip
    least = max(rules.min_tcb_evaluation, known.load().intel_min_tcb_evaluation)
    number = found.tcb.eval_data_number
    checks.add("evaluation", number >= least, f"Intel's number {number} of evaluation, of at least {least}")
    pck = found.platform.pck
    for name, value, allowed in (
        ("dynamic platform", pck.dynamic_platform, rules.dynamic_platform_allowed),
        ("cached keys", pck.cached_keys, rules.cached_keys_allowed),
        ("smt", pck.smt_enabled, rules.smt_allowed),
    ):
        holds = allowed or value in ("False", "Undefined")
        checks.add(name, holds, value.lower() if holds else "true, which the policy does not allow")


def _pin(platform: dcap.Verified, rules: IntelRules, checks: Checks) -> str:
    """Check which machine it is, if that is pinned; return its name in hex."""
    pck = platform.platform.pck
    names = [bytes(pck.platform_instance_id or ()).hex(), bytes(pck.ppid).hex()]
    checks.pin(rules.instances, names)
    return names[0] or names[1]
