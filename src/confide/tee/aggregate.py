"""Aggregation inside an enclave: the server passes sealed vectors on and learns the result
(docs/protocols/tee-sum.md walks through it).

Each client verifies, under a policy of its own, what code runs in the enclave and on whose hardware, then seals its
vector to a key that only that code holds. Inside, a rule may look at single vectors and outvote liars, which no sum
under cryptography allows.

    symbol   here           meaning
    x_u      vector         a client's integers
    pk       public_key     of the enclave, in its evidence
    A        members        clients whose vectors were taken in

Paper: RFC 9334 (remote attestation), RFC 9180 (HPKE). Robust rules inside: `confide.cohort.robust`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from confide.cohort import roster
from confide.cohort.collect import SMALLEST_SUM, Collector
from confide.crypto.keys import label, verify
from confide.crypto.random import Randomness
from confide.errors import Aborted, ProtocolError, UsageError
from confide.guarantee import RECORDED_CLOSED, SUM_REVEALS, Adversary, Claim, Guarantee, Trust, nothing_hidden
from confide.ideal import Aggregator, Cohort, Session, Sums, Vector
from confide.tee import aggregate_enclave, simulated
from confide.tee.aggregate_enclave import Inside, Released
from confide.tee.aggregate_terms import (
    ASKED,
    EVIDENCE,
    NONCE,
    RESULT,
    SHOWN,
    UPLOAD,
    Asked,
    Nonce,
    Relayed,
    Result,
    Rule,
    Shown,
    Terms,
    Upload,
    agreed,
    checked_nonces,
    joint_nonce,
    public_key_of,
    relay_tag,
    shown_bytes,
)
from confide.tee.attest import Attester, load_attester
from confide.tee.channel import seal
from confide.tee.evidence import NONCE_BYTES, Bundle
from confide.tee.policy import Policy, SimulatedRules
from confide.tee.verify import verify as verify_evidence
from confide.wire import Message, Party, Step, Store, decode, encode

#: Set-ups whose keys one process holds at a time; a run has one, and another after a failed one.
_MOST_INSIDE = 8

_HARDWARE = ("hardware vendor", "whoever has physical access to the enclave's host")
_ROBUST = (
    "By a rule the server learns one combined vector in place of the sum; a vector weighs as the rule says, and "
    "nothing proves to the server or to clients that the code which they accept applies it but the evidence."
)


@dataclass(frozen=True, slots=True)
class Enclaves:
    """What a member brings of its own to sums inside enclaves; neither is in a job, and no coordinator changes it.

    Args:
        policy: which evidence a client accepts; None accepts none.
        allow_simulated: True if the client's people have asked for simulations.
        attester: of an enclave: what signs its evidence; None where there is none.
        now: seconds since the epoch; evidence is checked at it.
        released: of an enclave: what its process has let out, one for all runs and set-ups of the process.
    """

    policy: Policy | None = None
    allow_simulated: bool = False
    attester: Attester | None = None
    now: Callable[[], float] = time.time
    released: Released = field(default_factory=Released, compare=False)


def simulated_enclaves() -> Enclaves:
    """Return what parties in one process bring to a simulation, which protects nothing."""
    accepted = Policy(simulated=SimulatedRules(measurements=(simulated.measure_code(),)))
    return Enclaves(policy=accepted, allow_simulated=True, attester=load_attester("simulated"))


@dataclass(frozen=True, slots=True)
class TeeSums(Sums):
    """The result, and who misbehaved on the way to it.

    Args:
        blamed: what each named client did wrong.
    """

    blamed: Mapping[str, str] = field(default_factory=dict[str, str])


def _guarantee(rule: Rule) -> Guarantee:
    hidden_from = ("server", "enclave's operator", "other clients")
    return Guarantee(
        claims=frozenset(
            (*(Claim("update", who, _HARDWARE) for who in hidden_from), Claim("update", "outsiders", _HARDWARE))
        ),
        adversary=Adversary.MALICIOUS,
        trust=Trust.HARDWARE,
        security_bits=128,
        post_quantum=True,
        verified_result=False,
        leaks=f"{SUM_REVEALS} Who took part, and how long vectors are. {'' if rule.exact else _ROBUST + ' '}"
        "The evidence shows which code runs, not that it has no fault; caches, page accesses, power and memory buses "
        "have leaked secrets of every kind of enclave, and who opened the server's case has forged evidence (WireTap, "
        f"Battering RAM, TEE.fail). {RECORDED_CLOSED}",
        primary="HPKE (ML-KEM-768 + X25519, AES-256-GCM) to an attested enclave",
        paper="RFC 9334, RFC 9180",
    )


class Tee(Aggregator):
    """An enclave learns the vectors, the server their sum, or what a robust rule makes of them.

    Args:
        rule: "mean", the exact sum, or "median", "trimmed-mean", "multi-krum" of `confide.cohort.robust`.
        liars: how many vectors of a session the rule outvotes.
        simulated: True for a trial without hardware: the guarantee then hides nothing. Clients and the enclave must ask
            for it by `enclaves` as well.
        enclaves: what this member brings; the default brings nothing, with which only the server's role can be played.

    **Guarantees** A client's vector is sealed to a key whose evidence the client has verified under its own policy,
    made after its own nonce, for this cohort, roster, quorum and rule; it opens for this session, client and key
    alone. The enclave lets out one result of each round of a run, over at least max(3, quorum, what the rule needs)
    vectors that their clients signed; later attempts get that one again. Its keys and that memory die with its process.
    All this as far as the hardware keeps what its vendor says.

    **Leaks** The result and who is in it, to the server; lengths. A simulated enclave protects nothing.
    """

    name = "tee"
    upload = UPLOAD
    roles = ("server", "enclave", "client")
    renews: ClassVar[bool] = True

    def __init__(
        self, *, rule: str = "mean", liars: int = 0, simulated: bool = False, enclaves: Enclaves | None = None
    ) -> None:
        self._rule, self._simulated, self._enclaves = Rule(rule, liars), simulated, enclaves or Enclaves()
        self._inside: dict[bytes, Inside] = {}
        self.guarantee = _SIMULATED if simulated else _guarantee(self._rule)

    def check(self, cohort: Cohort) -> None:
        """Refuse cohorts of fewer than three, or fewer than the rule needs."""
        needed = max(SMALLEST_SUM, self._rule.fewest)
        if len(cohort.clients) < needed:
            why = "a sum of two shows each of them the other's vector" if needed == SMALLEST_SUM else self._rule.name
            raise UsageError(f"Expected at least {needed} clients; {why}")

    def setup(self, role: str, me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        """Return the party that pins the roster and the enclave's keys; its output is a fingerprint of both.

        Raises:
            UsageError: a client that accepts no enclaves, or an enclave without an attester.
        """
        _check(role, me, cohort)
        self.check(cohort)
        if role == "server":
            return self._introduce(cohort, store)
        if role == "client":
            if self._enclaves.policy is None:
                raise UsageError(
                    "Expected a policy for enclaves at this client; name one: [attestation] of docs/policy.md"
                )
            return self._verify(self._enclaves.policy, me, cohort, store, rng)
        if self._enclaves.attester is None:
            raise UsageError(
                "Expected an attester at the enclave: `confide node --attester NAME` on its machine; in one process "
                'there is no enclave: train.attester = "simulated" for a trial that protects nothing'
            )
        return self._enrol(self._enclaves.attester, cohort, store, rng)

    def party(
        self, role: str, me: str, session: Session, vector: Vector | None, store: Store, rng: Randomness
    ) -> Party:
        """Return the party of one sum: the server's output is `TeeSums`, the others have none.

        Raises:
            UsageError: no set-up, strangers in the cohort, a vector that does not fit the session; or the enclave's
                process is another than the one that clients have verified, and has other keys.
        """
        _check(role, me, session.cohort)
        self.check(session.cohort)
        terms = Terms(session, store, self._rule)
        if role == "server":
            return _serve(terms)
        if role == "enclave":
            inside = self._inside.get(terms.public_key)
            if inside is None:
                raise UsageError("Expected the enclave's keys in memory; it has started again: run setup again")
            return aggregate_enclave.play(terms, inside, self._enclaves.released)
        if vector is None:
            raise UsageError("Expected a vector at a client")
        return _client(terms, me, session.checked(vector), store, rng)

    # --- set-up -------------------------------------------------------------------------------------------------------

    def _introduce(self, cohort: Cohort, store: Store) -> Party:
        """The server: collect identities and nonces, have the enclave show evidence, show that to the clients."""
        yield from roster.register(cohort, store)
        listed = roster.pinned(store)
        received = yield Step(await_tag=NONCE, wait_for=cohort.clients)
        asked = Asked(listed.encode(), _nonces(cohort, received))
        ask = Message(cohort.server, cohort.helper, ASKED, encode(asked))
        received = yield Step(send=(ask,), await_tag=EVIDENCE, wait_for=(cohort.helper,))
        body = received[cohort.helper].body
        shown = _read(body, cohort)
        sent = tuple(Message(cohort.server, name, EVIDENCE, body) for name in cohort.clients)
        yield Step(send=sent, save={SHOWN: body})
        return _fingerprint(listed, shown)

    def _enrol(self, attester: Attester, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        """The enclave: keys in memory alone, evidence that binds them."""
        inside, now = Inside(rng), self._enclaves.now()
        while len(self._inside) >= _MOST_INSIDE:
            del self._inside[next(iter(self._inside))]
        self._inside[inside.key.public] = inside
        yield from aggregate_enclave.enrol(inside, cohort, self._rule, store, attester, now, simulated=self._simulated)
        pin = store.get(SHOWN)
        assert pin is not None
        return _fingerprint(roster.pinned(store), decode(pin, Shown, max_bytes=len(pin)))

    def _verify(self, policy: Policy, me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        """A client: enrol in the roster, draw a nonce, verify what the enclave shows before anything is sealed to it.

        Raises:
            AttestationError: the evidence is none that its policy accepts; the check that failed is named.
        """
        yield from roster.enrol(me, cohort, store, rng)
        listed, nonce = roster.pinned(store), rng.bytes(NONCE_BYTES)
        ask = Message(me, cohort.server, NONCE, encode(Nonce(nonce)))
        received = yield Step(send=(ask,), await_tag=EVIDENCE, wait_for=(cohort.server,))
        body = received[cohort.server].body
        shown = _read(body, cohort)
        if shown.nonces[me] != nonce:
            raise ProtocolError("Expected evidence over the nonce of this client")
        verdict = verify_evidence(
            Bundle.decode(shown.bundle),
            policy,
            now=self._enclaves.now(),
            nonce=joint_nonce(shown.nonces),
            purpose="aggregate",
            allow_simulated=self._simulated and self._enclaves.allow_simulated,
            model_sha256=agreed(cohort, listed, self._rule, shown.signer),
        )
        verdict.require()
        yield Step(save={SHOWN: body})
        return _fingerprint(listed, shown)


_SIMULATED = nothing_hidden(f"{simulated.WARNING}, and so does whoever forges its evidence. {SUM_REVEALS}")


def _check(role: str, me: str, cohort: Cohort) -> None:
    if cohort.parties(Tee.roles).get(me) != role:
        raise UsageError(f"Expected role={role}, me={me} to be the server, the enclave or a client of the cohort")


def _nonces(cohort: Cohort, received: Mapping[str, Message]) -> dict[str, bytes]:
    nonces: dict[str, bytes] = {}
    for name in cohort.clients:
        try:
            nonce = decode(received[name].body, Nonce, max_bytes=NONCE_BYTES + 16).nonce
        except ProtocolError:
            nonce = b""
        if len(nonce) != NONCE_BYTES:
            raise Aborted(f"Expected a nonce from {name}; set that client up again")
        if twin := next((other for other, taken in nonces.items() if taken == nonce), None):
            raise Aborted(f"Expected a nonce of its own from {twin} and from {name}; set them up again")
        nonces[name] = nonce
    return nonces


def _read(body: bytes, cohort: Cohort) -> Shown:
    """Return what an enclave shows, well-formed and not believed yet."""
    shown = decode(body, Shown, max_bytes=shown_bytes(cohort))
    checked_nonces(shown.nonces, cohort)
    public_key_of(shown)
    return shown


def _fingerprint(listed: roster.Roster, shown: Shown) -> str:
    return hashlib.sha256(label("confide tee set-up v1", listed.digest, shown.signer, shown.bundle)).hexdigest()


# --- a sum ------------------------------------------------------------------------------------------------------------


def _client(terms: Terms, me: str, vector: Vector, store: Store, rng: Randomness) -> Party:
    """The client: one message, and it may leave."""
    body = terms.journal.resumed(store)
    if body is None:
        sealed, _ = seal(terms.pack(vector), terms.public_key, context=terms.sealing(me), rng=rng)
        body = encode(Upload(sealed, roster.identity(store).sign(terms.signed(me, sealed))))
    yield Step(send=(Message(me, terms.cohort.server, UPLOAD, body),), save=terms.journal.entry(body))
    yield Step(save=terms.journal.entry())


def _serve(terms: Terms) -> Party:
    """The server: pass each upload on as it comes, then ask for the result."""
    cohort, collector = terms.cohort, Collector()
    waiting, names = dict.fromkeys(cohort.clients), list[str]()
    send: tuple[Message, ...] = ()
    while waiting:
        received = yield Step(send=send, await_tag=UPLOAD, wait_for=tuple(waiting), each=True)
        send = ()
        if not received:
            break
        ((name, message),) = received.items()
        del waiting[name]
        try:
            upload = decode(message.body, Upload, max_bytes=terms.upload_bytes)
            terms.check(name, upload.sealed, upload.signature)
        except ProtocolError as error:
            collector.blame(name, f"sent a malformed {UPLOAD}: {error}")
            continue
        passed = encode(Relayed(name, upload.sealed, upload.signature))
        send = (Message(cohort.server, cohort.helper, relay_tag(len(names)), passed),)
        names.append(name)
    if len(names) < terms.quorum:
        collector.abort(f"Expected vectors of at least {terms.quorum} clients, got {len(names)}")
    end = Message(cohort.server, cohort.helper, relay_tag(len(names)), encode(Relayed()))
    received = yield Step(send=(*send, end), await_tag=RESULT, wait_for=(cohort.helper,))
    return _read_result(terms, received[cohort.helper].body, names, collector)


def _read_result(terms: Terms, body: bytes, names: list[str], collector: Collector) -> TeeSums:
    result = decode(body, Result, max_bytes=terms.result_bytes)
    values = result.values.numpy("int64", (terms.session.length,))
    if not 0 <= result.attempt <= terms.session.attempt:
        raise Aborted("Expected a result of this attempt, or of an earlier one of the round")
    # a round is let out once: after an attempt whose result was lost, that result comes, over who was in it
    mine = result.attempt == terms.session.attempt
    passed = [name for name in terms.cohort.clients if name in names or not mine]
    told = set(result.members) | set(result.refused)
    if tuple(n for n in passed if n in result.members) != result.members or not told <= set(passed):
        raise Aborted("Expected the enclave's sets to lie within the server's, in the cohort's order")
    if mine and told != set(names):
        raise Aborted("Expected every upload that was passed on in the enclave's sets")
    verify(terms.signer, terms.released(result), result.signature)
    for name in result.refused:
        collector.blame(name, "sent a body that the enclave cannot open, or no vector of this session")
    if len(result.members) < terms.quorum:
        collector.abort(f"Expected vectors of at least {terms.quorum} clients, got {len(result.members)}")
    largest = len(result.members) * terms.session.bound
    if values.size and (values.max() > largest or values.min() < -largest):
        raise Aborted("Expected a result within clients * bound")
    return TeeSums(values[None, :], (frozenset(result.members),), collector.blamed)
