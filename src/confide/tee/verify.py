"""Whether evidence holds: every check by name, none on the network, nothing accepted that a policy does not name.

    verify(bundle, policy, now=..., nonce=...) -> Verdict

The bundle may come from anybody. The time is an argument, and so is everything else: the same arguments give the same
verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from confide.errors import AttestationError, ProtocolError
from confide.tee import simulated
from confide.tee.evidence import Bundle, Claims, Provider, Purpose, report_data
from confide.tee.policy import Policy


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, whether it holds, and what was found, for people."""

    name: str
    holds: bool
    detail: str


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
    """
    asked = _Asked(policy, now, nonce, purpose, allow_simulated, model_sha256)
    checks = Checks()
    claims: Claims | None = None
    facts: Facts | None = None
    try:
        facts = _PROVIDERS[bundle.provider](bundle, asked, checks)
        claims = bundle.read_claims()
        checks.add("claims", True, "written as they should be")
        _tail(bundle, claims, facts, asked, checks)
    except Stop:
        pass
    except ProtocolError as error:
        checks.add("form", False, str(error))
    return Verdict(bundle.provider, tuple(checks.made), claims, facts.instance if facts else "")


class Stop(Exception):
    """The checks after this one would have nothing to rest on."""


class Checks:
    """The checks that were made so far."""

    def __init__(self) -> None:
        self.made: list[Check] = []

    def add(self, name: str, holds: bool, detail: str, *, stop: bool = False) -> None:
        """Write one down. Raises Stop if it fails and the others rest on it."""
        self.made.append(Check(name, holds, detail))
        if stop and not holds:
            raise Stop


@dataclass(frozen=True, slots=True)
class Facts:
    """What the hardware signed, once its signature holds: the report data, and which machine."""

    report_data: bytes
    instance: str = ""


@dataclass(frozen=True, slots=True)
class _Asked:
    policy: Policy
    now: float
    nonce: bytes | None
    purpose: Purpose
    allow_simulated: bool
    model_sha256: str | None


def _simulated(bundle: Bundle, asked: _Asked, checks: Checks) -> Facts:
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
    checks.add("measurement", report.measurement in rules.measurements, f"measurement={report.measurement}")
    return Facts(bytes.fromhex(report.report_data))


def _tail(bundle: Bundle, claims: Claims, facts: Facts, asked: _Asked, checks: Checks) -> None:
    """Make the checks that are the same for all hardware."""
    policy, now = asked.policy, asked.now
    bound = facts.report_data == report_data(bundle.claims)
    checks.add(
        "report data", bound, "they are the hash of the claims" if bound else "they are of other claims", stop=True
    )
    checks.add("purpose", claims.purpose == asked.purpose, f"the key is for {claims.purpose}")
    valid = claims.not_before <= now <= claims.not_after
    checks.add("validity", valid, f"from {claims.not_before} to {claims.not_after}, now={now:.0f}")
    if asked.nonce is None:
        young = now - claims.not_before <= policy.max_age_seconds
        checks.add("age", young, f"{now - claims.not_before:.0f} s, of at most {policy.max_age_seconds}")
    else:
        fresh = claims.nonce == asked.nonce.hex()
        checks.add("nonce", fresh, "the one that was asked with" if fresh else "another one: evidence of somebody else")
    wanted = [*policy.model_sha256, *([asked.model_sha256] if asked.model_sha256 else [])]
    named = not policy.model_sha256 or claims.model_sha256 in policy.model_sha256
    pinned = asked.model_sha256 is None or claims.model_sha256 == asked.model_sha256
    checks.add("model", bool(wanted) and named and pinned, f"model_sha256={claims.model_sha256}")


_PROVIDERS: dict[Provider, Callable[[Bundle, _Asked, Checks], Facts]] = {Provider.SIMULATED: _simulated}
