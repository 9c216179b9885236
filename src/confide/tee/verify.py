"""Whether evidence holds: every check by name, none on the network, nothing accepted that a policy does not name.

    verify(bundle, policy, now=..., nonce=...) -> Verdict

The bundle may come from anybody. The time is an argument, and so is everything else: the same arguments give the same
verdict. A check that the others rest on ends it where it fails; after any other one verification goes on, so that the
verdict shows all that does not hold. docs/protocols/attestation.md lists the checks with their sources.

What must stand in `Bundle.endorsements`, by provider:

    sgx, tdx  collateral.json: what Intel's service gives for this platform, as dcap-qvl's QuoteCollateralV3 is written
    snp       vcek.der or vlek.der: the certificate of the key that signed; chain.pem: who issued it (ASK or ASVK), then
              AMD's root (ARK), as AMD's service gives them; crl.der: AMD's revocation list of that product
    nitro     nothing: the document carries its certificates
    insecure-simulated  nothing

Other names are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType

import msgspec

from confide.errors import AttestationError, ProtocolError, UsageError
from confide.tee import known, simulated
from confide.tee.amd import verify_snp
from confide.tee.checks import Asked, Check, Checks, Facts, Stop
from confide.tee.evidence import MAX_CLAIMS_BYTES, NONCE_BYTES, Bundle, Claims, Provider, Purpose, report_data
from confide.tee.intel import verify_sgx, verify_tdx
from confide.tee.nitro import verify_nitro
from confide.tee.policy import Policy

__all__ = ["Check", "Verdict", "report_json", "report_lines", "verify"]

MAX_EVIDENCE_BYTES = 1 << 15
MAX_ENDORSEMENT_BYTES = 1 << 19
MAX_ENDORSEMENTS = 8
#: Seconds since the epoch at the end of the year 9999.
_LAST_SECOND = 253402300799
#: Claims may name times up to here; larger ones are no float.
_MOST_SECONDS = 1 << 40
#: Values of a policy in one line of a report.
_MOST_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verification found.

    Args:
        provider: whose evidence it is.
        checks: in the order in which they were made; after one that the others rest on failed there are no more.
        claims: what the enclave says; None where it could not be read. True only if everything holds.
        instance: hex, which machine it is, where the hardware says so; "" else.
    """

    provider: Provider
    checks: tuple[Check, ...]
    claims: Claims | None
    instance: str = ""

    @property
    def holds(self) -> bool:
        """Return whether every check holds."""
        return self.claims is not None and all(check.holds for check in self.checks)

    def require(self) -> Claims:
        """Return the claims. Raises AttestationError, which names the first check that failed."""
        for check in self.checks:
            if not check.holds:
                raise AttestationError(check.name, f"Expected evidence that the policy accepts: {check.detail}")
        if self.claims is None:
            raise AttestationError("claims", "Expected claims")
        return self.claims


def verify(
    bundle: Bundle,
    policy: Policy,
    *,
    now: float,
    nonce: bytes | None,
    purpose: Purpose = "predict",
    allow_simulated: bool = False,
    model_sha256: str | None = None,
) -> Verdict:
    """Return the verdict on `bundle`.

    Args:
        bundle: evidence, endorsements and claims.
        policy: what is accepted.
        now: seconds since the epoch.
        nonce: the 32 bytes that were asked with; None for evidence that was made before anybody asked, which must then
            be younger than the policy's `max_age_seconds`.
        purpose: what the key shall be used for.
        allow_simulated: True if the caller has asked for a simulation by an option of its own.
        model_sha256: the model that it must be beside what the policy says; None for the policy's alone.

    Raises:
        UsageError: `now` is no time, or `nonce` has not 32 bytes.
        MissingExtra: the hardware's evidence needs a package that is not installed (extra "tee").
    """
    if not 0 <= now <= _LAST_SECOND:
        raise UsageError(f"Expected now={now} in seconds since the epoch")
    if nonce is not None and len(nonce) != NONCE_BYTES:
        raise UsageError(f"Expected a nonce of {NONCE_BYTES} bytes, not {len(nonce)}; None asks for none")
    asked = Asked(policy, now, nonce, purpose, allow_simulated, model_sha256)
    checks = Checks()
    claims: Claims | None = None
    facts: Facts | None = None
    try:
        _check_sizes(bundle, checks)
        facts = _PROVIDERS[bundle.provider](bundle, asked, checks)
        with checks.reading("claims"):
            claims = bundle.read_claims()
        assert claims is not None
        checks.add("claims", True, "written as they should be")
        _tail(bundle, claims, facts, asked, checks)
    except Stop:
        pass
    except ProtocolError as error:
        checks.add("form", False, str(error))
    return Verdict(bundle.provider, tuple(checks.made), claims, facts.instance if facts else "")


def report_lines(verdict: Verdict) -> list[str]:
    """Return one line a check: whether it holds, its name, what was found; then what follows."""
    width = max((len(check.name) for check in verdict.checks), default=0)
    lines = [f"{'holds' if one.holds else 'FAILS':<5}  {one.name:<{width}}  {one.detail}" for one in verdict.checks]
    if verdict.holds:
        provider = verdict.provider
        if not provider.hardware:
            return [*lines, f"Every check holds: evidence of {provider.value}, and shows nothing."]
        accepted = f"Every check holds: evidence of {provider.value} that the policy accepts."
        names = ", ".join(f"{one.name} ({one.year})" for one in known.breaks(provider))
        return [*lines, accepted, f"Known breaks of such hardware: {names or 'none that confide knows'}."]
    wrong = list(dict.fromkeys(check.name for check in verdict.checks if not check.holds)) or ["claims"]
    refused = f"Refused: {', '.join(wrong)} {'does' if len(wrong) == 1 else 'do'} not hold."
    made = {check.name for check in verdict.checks}
    skipped = "" if "model" in made else " Checks that rest on one that failed were not made."
    return [*lines, refused + skipped]


def report_json(verdict: Verdict) -> dict[str, object]:
    """Return a verdict as JSON can say it, with the names of the breaks that are known of such hardware."""
    return {
        "holds": verdict.holds,
        "provider": verdict.provider.value,
        "hardware": verdict.provider.hardware,
        "instance": verdict.instance,
        "claims": msgspec.to_builtins(verdict.claims) if verdict.claims and verdict.holds else None,
        "checks": [{"name": one.name, "holds": one.holds, "detail": one.detail} for one in verdict.checks],
        "known_breaks": [one.name for one in known.breaks(verdict.provider)],
    }


def _check_sizes(bundle: Bundle, checks: Checks) -> None:
    """Refuse what is larger than any vendor's evidence before anything reads it."""
    sizes = [
        ("evidence", len(bundle.evidence), MAX_EVIDENCE_BYTES),
        ("claims", len(bundle.claims), MAX_CLAIMS_BYTES),
        ("endorsements", len(bundle.endorsements), MAX_ENDORSEMENTS),
        *((name[:40], len(body), MAX_ENDORSEMENT_BYTES) for name, body in bundle.endorsements.items()),
    ]
    large = [f"{name} of {found}, of at most {most}" for name, found, most in sizes if found > most]
    checks.add("size", not large, "; ".join(large[:4]) or "within bounds", stop=True)


def _simulated(bundle: Bundle, asked: Asked, checks: Checks) -> Facts:
    rules = asked.policy.simulated
    allowed = asked.allow_simulated and rules is not None
    checks.add(
        "provider", allowed,
        simulated.WARNING if allowed else "this evidence is simulated and shows nothing; it is accepted only where the "
        "policy has a table [simulated] and the client asks for --attester simulated", stop=True,
    )  # fmt: skip
    report = simulated.read(bundle.evidence)
    assert rules is not None
    checks.add("signature", True, "signed by the key that everybody has")
    checks.add(
        "debug", not report.debug, "off" if not report.debug else "the enclave is open to its host for debugging"
    )
    shown = f"the enclave shows {report.measurement}"
    if report.measurement not in rules.measurements:
        shown += f"; the policy's [simulated] measurements name {_few(rules.measurements)}"
    checks.add("measurement", report.measurement in rules.measurements, shown)
    return Facts(bytes.fromhex(report.report_data))


def _tail(bundle: Bundle, claims: Claims, facts: Facts, asked: Asked, checks: Checks) -> None:
    """Make the checks that are the same for all hardware."""
    policy, now = asked.policy, asked.now
    bound = facts.report_data == report_data(bundle.claims)
    checks.add(
        "report data", bound, "they are the hash of the claims" if bound else "they are of other claims", stop=True
    )
    checks.add("purpose", claims.purpose == asked.purpose, f"the key is for {claims.purpose}")
    if not all(0 <= at <= _MOST_SECONDS for at in (claims.not_before, claims.not_after)):
        checks.add("validity", False, "not_before and not_after are no seconds since the epoch", stop=True)
    valid = claims.not_before <= now <= claims.not_after
    checks.add("validity", valid, f"from {_day(claims.not_before)} to {_day(claims.not_after)}, now {_day(now)}")
    if asked.nonce is None:
        young = now - claims.not_before <= policy.max_age_seconds
        checks.add("age", young, f"{now - claims.not_before:.0f} s, of at most {policy.max_age_seconds}")
    else:
        fresh = claims.nonce == asked.nonce.hex()
        checks.add("nonce", fresh, "the one that was asked with" if fresh else "another one: evidence of somebody else")
    named = not policy.model_sha256 or claims.model_sha256 in policy.model_sha256
    pinned = asked.model_sha256 is None or claims.model_sha256 == asked.model_sha256
    wanted = bool(policy.model_sha256) or asked.model_sha256 is not None
    shown = f"the enclave shows model_sha256 {claims.model_sha256}"
    if not wanted:
        shown += "; the policy names no model_sha256 and no --signer was given"
    if not named:
        shown += f"; the policy's model_sha256 names {_few(policy.model_sha256)}"
    if not pinned:
        shown += f"; the signer has signed {asked.model_sha256}"
    if not claims.names_model:
        shown = "the enclave shows a model_sha256 that is not 64 hex digits"
    checks.add("model", claims.names_model and wanted and named and pinned, shown)


def _few(values: Sequence[str]) -> str:
    """Return the first of a policy's values, and how many more there are."""
    more = len(values) - _MOST_SHOWN
    return ", ".join(values[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _day(seconds: float) -> str:
    """Return a time as people read it, in UTC; as it is where no calendar has it."""
    if not 0 <= seconds <= _LAST_SECOND:
        return f"{seconds:.0f}"
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


_PROVIDERS: Mapping[Provider, Callable[[Bundle, Asked, Checks], Facts]] = MappingProxyType(
    {
        Provider.SGX: verify_sgx,
        Provider.TDX: verify_tdx,
        Provider.SNP: verify_snp,
        Provider.NITRO: verify_nitro,
        Provider.SIMULATED: _simulated,
    }
)
