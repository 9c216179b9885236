"""Which candidates a scenario admits: each need against the claims, each claim against the trust there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from confide.compare.advise import Need
from confide.compare.candidates import Candidate, watcher
from confide.compare.scenario import Scenario
from confide.guarantee import Adversary, Claim, Trust

_ASSETS: Mapping[str, str] = {"updates": "update", "records": "record", "model": "weights"}
_WHO: Mapping[str, str] = {"parties": "other clients"}
#: What machines of the operator do by themselves; the others are run by somebody else.
_OF_OPERATOR = ("server", "enclave")


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate with everything that speaks against it; nothing does if it fits."""

    candidate: Candidate
    lacks: tuple[str, ...]


def needs_of(scenario: Scenario, task: str) -> tuple[Need, ...]:
    """Return what must be hidden by more than TLS and access control, which keep outsiders from all but what is shown.

    Args:
        task: "training" or "inference".
    """
    return tuple(dict.fromkeys(_needs(scenario, task)))


def _needs(scenario: Scenario, task: str) -> Iterator[Need]:
    keys = ("updates", "records", "model") if task == "training" else ("query", "prediction", "weights")
    for key in keys:
        for who in getattr(scenario.hide, key):
            asset = _ASSETS.get(key, key)
            if who == "outsiders" and asset != "record":
                continue
            if who == "server" and scenario.trust.operator:
                continue
            yield Need(asset, _WHO.get(who, who), f"hide.{key}")
    if task == "training" and scenario.needs.epsilon:
        yield Need("record", "outsiders", "needs.epsilon")


def judged(scenario: Scenario, candidate: Candidate) -> Judged:
    """Return a candidate with what speaks against it in a scenario."""
    return Judged(candidate, tuple(dict.fromkeys([*candidate.problems, *_gaps(scenario, candidate)])))


def _gaps(scenario: Scenario, candidate: Candidate) -> Iterator[str]:
    """Yield what is claimed too little of, and what is trusted too much in."""
    needs = needs_of(scenario, candidate.task)
    used: list[Claim] = []
    for need in needs:
        for who in _watchers(need, candidate):
            claim = _claim(candidate, need.asset, who)
            if claim is None:
                yield f"does not hide the {need.asset} from the {who}"
            else:
                used.append(claim)
    trust, guarantee = scenario.trust, candidate.guarantee
    others = [role for role in candidate.roles if role not in (*_OF_OPERATOR, "dealer")]
    if len(others) >= trust.servers and others:
        yield f"takes {1 + len(others)} organisations that run servers and do not pool, there are {trust.servers}"
    if "dealer" in candidate.roles and not trust.dealer:
        yield "takes a dealer that pools with nobody, there is none"
    if guarantee.trust is Trust.HARDWARE and not (trust.hardware and trust.enclaves):
        yield "rests on a vendor's hardware" + ("" if trust.enclaves else ", and no such machine is at hand")
    if not trust.parties and guarantee.trust is not Trust.HARDWARE and any(_on_parties(c, candidate) for c in used):
        yield "rests on most parties not pooling with the server"
    if needs and trust.adversary == "malicious" and guarantee.adversary is not Adversary.MALICIOUS:
        yield "holds only while everybody follows the protocol"
    if needs and scenario.needs.post_quantum and not guarantee.post_quantum:
        yield "what is recorded today falls to a quantum computer"


def _watchers(need: Need, candidate: Candidate) -> tuple[str, ...]:
    """Return from whom an asset must be hidden: "server" stands for every machine that takes part."""
    if need.hidden_from != "server":
        return (need.hidden_from,)
    return tuple(map(watcher, candidate.roles)) or ("server",)


def _claim(candidate: Candidate, asset: str, who: str) -> Claim | None:
    return next((c for c in candidate.guarantee.claims if c.asset == asset and c.hidden_from == who), None)


def _on_parties(claim: Claim, candidate: Candidate) -> bool:
    """Return whether a claim needs those that hold records to be honest: what is no role of a machine."""
    return any(one not in candidate.roles and one != "client" for one in claim.if_honest)
