"""The inside of an enclave that sums: keys and a journal in memory alone, and the party that works with them.

Whoever runs the enclave's machine can stop it, start it again and give it back an older disk. So nothing that protects
a vector is on a disk: an enclave that starts again has other keys, and no vector that was sealed before opens; one that
runs lets out one result of each round of a run, whatever its store says, in whichever attempt and after whichever
set-up: two sums of one round differ by single clients' vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import metadata
from threading import Lock

import msgspec
import numpy as np

from confide.cohort import roster
from confide.cohort.robust import combine
from confide.crypto.keys import KEY_BYTES, SigningKey
from confide.crypto.random import Randomness
from confide.errors import Aborted, ProtocolError, UsageError
from confide.ideal import Cohort, Vector
from confide.tee.aggregate_terms import (
    ASKED,
    EVIDENCE,
    RESULT,
    SHOWN,
    Asked,
    Relayed,
    Result,
    Rule,
    Shown,
    Terms,
    agreed,
    checked_nonces,
    joint_nonce,
    nonces_bytes,
    relay_tag,
)
from confide.tee.attest import Attester
from confide.tee.channel import EnclaveKey
from confide.tee.evidence import Bundle, Claims, report_data
from confide.wire import Array, Message, Party, Step, Store, decode, encode

#: Clocks of enclave and clients may differ by so much, and evidence is for a set-up that happens now.
_EARLY_SECONDS, _VALID_SECONDS = 300, 3600

#: Of so many runs the newest result is held to be sent again; of the others only that their round is out.
_MOST_RESULTS = 8


@dataclass(frozen=True, slots=True)
class _Out:
    """The newest round of a run that was let out.

    Args:
        round: which.
        about: what was summed in it, without attempt and keys.
        context: of the session in which it was let out.
        result: unsigned, or None where it is held no longer.
    """

    round: int
    about: bytes
    context: bytes
    result: Result | None


class Released:
    """What the enclave of this process has let out: of each round of a run one result, across attempts and set-ups.

    A coordinator that lost a result gets that one again. It is in memory alone, and safe under threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._newest: dict[str, _Out] = {}

    def __repr__(self) -> str:
        return f"Released(runs={len(self._newest)})"

    def again(self, terms: Terms) -> Result | None:
        """Return the result that is out of the session's round, unsigned, or None for a new round.

        It is given in the session that let it out and in later attempts at the same sum.

        Raises:
            Aborted: the round is out and this is another sum or another set-up's first try, or a later round is out.
        """
        with self._lock:
            return self._find(terms)

    def release(self, terms: Terms, result: Result) -> None:
        """Remember a result before it leaves; looking and remembering are one step.

        Raises:
            Aborted: a result of this round, or of a later one, was let out in the meantime.
        """
        session = terms.session
        with self._lock:
            if self._find(terms) is not None:
                raise Aborted(f"Expected one party for round={session.round} of run={session.run}; another was faster")
            self._newest.pop(session.run, None)
            self._newest[session.run] = _Out(session.round, terms.about, terms.context, result)
            for run in list(self._newest)[:-_MOST_RESULTS]:
                self._newest[run] = replace(self._newest[run], result=None)

    def _find(self, terms: Terms) -> Result | None:
        session, out = terms.session, self._newest.get(terms.session.run)
        if out is None or session.round > out.round:
            return None
        held = out.result if session.round == out.round and terms.about == out.about else None
        if held is not None and (terms.context == out.context or session.attempt > held.attempt):
            return held
        raise Aborted(
            f"Expected a round after round={out.round} of run={session.run}, or a later attempt at the same sum; the "
            "enclave lets each round out once: take another run id for another training"
        )


class Inside:
    """What one set-up's enclave holds in memory: the key that opens, and the key that signs.

    Args:
        rng: draws the keys, inside.
    """

    def __init__(self, rng: Randomness) -> None:
        self.key = EnclaveKey(rng)
        self.signer = SigningKey(rng.bytes(KEY_BYTES))

    def __repr__(self) -> str:
        return "Inside(secret)"


def code_version() -> str:
    """Return the version that claims name, for people."""
    return metadata.version("confide")


def evidence_of(inside: Inside, attester: Attester, now: float, *, agreed_sha256: str, nonce: bytes) -> Bundle:
    """Return fresh evidence that binds the keys of `inside`.

    Args:
        agreed_sha256: hex, what the enclave shall do.
        nonce: 32 bytes.
    """
    claims = Claims(
        purpose="aggregate",
        public_key=inside.key.public.hex(),
        model_sha256=agreed_sha256,
        code_version=code_version(),
        not_before=int(now) - _EARLY_SECONDS,
        not_after=int(now) + _VALID_SECONDS,
        nonce=nonce.hex(),
    ).encode()
    quoted = attester.quote(report_data(claims))
    return Bundle(provider=attester.provider, evidence=quoted.evidence, endorsements=quoted.endorsements, claims=claims)


def enrol(
    inside: Inside, cohort: Cohort, rule: Rule, store: Store, attester: Attester, now: float, *, simulated: bool
) -> Party:
    """The enclave's set-up: pin the roster, show evidence over everybody's nonces: one quote for all.

    Raises:
        UsageError: there is no such hardware here; or the attester is simulated and the job's is not, or the reverse.
        ProtocolError: another roster, or nonces that are none.
    """
    received = yield Step(await_tag=ASKED, wait_for=(cohort.server,))
    asked = decode(received[cohort.server].body, Asked, max_bytes=nonces_bytes(cohort))
    listed = decode(asked.roster, roster.Roster, max_bytes=len(asked.roster))
    if tuple(listed.keys()) != cohort.clients or store.get(roster.ROSTER) not in (None, listed.encode()):
        raise ProtocolError("Expected the pinned roster, or a first one of this cohort; compare fingerprints")
    nonces = checked_nonces(asked.nonces, cohort)
    terms_sha256 = agreed(cohort, listed, rule, inside.signer.public)
    bundle = evidence_of(inside, attester, now, agreed_sha256=terms_sha256, nonce=joint_nonce(nonces))
    if bundle.provider.hardware == simulated:
        asks = "simulated" if simulated else "hardware"
        raise UsageError(f"Expected evidence as the job asks for it, train.attester={asks!r}; got {bundle.provider}")
    body = encode(Shown(bundle.encode(), inside.signer.public, nonces))
    sent = Message(cohort.helper, cohort.server, EVIDENCE, body)
    yield Step(send=(sent,), save={SHOWN: body, roster.ROSTER: listed.encode()})


def play(terms: Terms, inside: Inside, released: Released) -> Party:
    """The enclave's party of one sum: take what the server passes on, let one result out.

    Where this round is out already, that result is sent again, and nothing of what the server passes on is taken.

    Args:
        terms: what all parties agree on.
        inside: the keys that clients have verified.
        released: what this process has let out.

    Raises:
        Aborted: too few vectors; or another sum of the round, or a later round, was let out, even while this one ran.
    """
    server = terms.cohort.server
    result = released.again(terms)
    if result is None:
        taken = _Taken(terms, inside)
        for count in range(len(terms.cohort.clients) + 1):
            received = yield Step(await_tag=relay_tag(count), wait_for=(server,))
            relayed = decode(received[server].body, Relayed, max_bytes=terms.upload_bytes)
            if not relayed.name:
                break
            taken.add(relayed)
        result = taken.result()
        released.release(terms, result)
    signed = msgspec.structs.replace(result, signature=inside.signer.sign(terms.released(result)))
    yield Step(send=(Message(terms.cohort.helper, server, RESULT, encode(signed)),))


class _Taken:
    """The vectors of one session: their sum so far, or all of them where a rule needs them."""

    def __init__(self, terms: Terms, inside: Inside) -> None:
        self._terms, self._inside = terms, inside
        self._total = np.zeros(terms.session.length, np.int64)
        self._rows: dict[str, Vector] = {}
        self._members: set[str] = set()
        self._refused: set[str] = set()

    def add(self, relayed: Relayed) -> None:
        """Take one upload. Raises ProtocolError if it is not a client's of this session; then the server lies."""
        terms, name = self._terms, relayed.name
        if name not in terms.cohort.clients or name in self._members | self._refused:
            raise ProtocolError("Expected one upload of each client of the cohort")
        terms.check(name, relayed.sealed, relayed.signature)
        try:
            opened = self._inside.key.open(relayed.sealed, context=terms.sealing(name))
            vector = terms.unpack(opened.body)
        except ProtocolError:
            self._refused.add(name)  # signed by the client itself: its own fault
            return
        self._members.add(name)
        if terms.rule.exact:
            self._total += vector
        else:
            self._rows[name] = vector

    def result(self) -> Result:
        """Return what is let out, unsigned. Raises Aborted: too few vectors."""
        terms = self._terms
        members = tuple(name for name in terms.cohort.clients if name in self._members)
        refused = tuple(name for name in terms.cohort.clients if name in self._refused)
        terms.require(members, "enclave")
        values = Array.of(self._total if terms.rule.exact else self._combined(members))
        return Result(values, members, refused, terms.session.attempt)

    def _combined(self, members: tuple[str, ...]) -> Vector:
        """Return the rule's vector times the number of members, so that it is read like a sum over them."""
        rows = np.stack([self._rows[name] for name in members]).astype(np.float64)
        if not rows.shape[1]:
            return self._total
        largest = len(members) * self._terms.session.bound
        combined = combine(self._terms.rule.name, rows, liars=self._terms.rule.liars) * len(members)
        return np.clip(np.rint(combined).astype(np.int64), -largest, largest)
