"""Secure aggregation by two servers that do not pool what they see (docs/protocols/shares.md walks through it).

Each client splits its vector into two additive shares: a seed that only the helper can open, and the vector minus the
mask that the seed expands into, for the main server. Either share alone is noise. The helper adds the masks of those
whom both servers have, once, and the main server adds that to its own total: the masks are gone, the sum is left.

    symbol       here            meaning
    x_u          vector          a client's integers
    s_u          seed            32 bytes; PRG(s_u) is the helper's share of x_u
    x_u - PRG    Upload.words    the main server's share
    A            names           clients whose two shares both servers hold

A client sends one message and is free to leave after it.

With a norm bound the two servers also check, in zero knowledge, that no vector is much longer: `norm_check` says how.

Paper: additive shares with a compressed share, Corrigan-Gibbs and Boneh (Prio), NSDI 2017, section 3 and appendix I.
Prio's proofs bound every coordinate; ours bound the L2 norm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from confide.cohort import roster
from confide.cohort.collect import SMALLEST_SUM
from confide.crypto.keys import KEY_BYTES, AgreementKey, check_agreement_key, label
from confide.crypto.random import Randomness
from confide.errors import ProtocolError, UsageError
from confide.guarantee import RECORDED_X25519, SUM_REVEALS, Adversary, Claim, Guarantee, Trust
from confide.ideal import Aggregator, Cohort, Session, Vector
from confide.secagg import shares_client
from confide.secagg.norm_bound import NormBound
from confide.secagg.norm_check import NormCheck
from confide.secagg.shares_servers import MainServer, assist
from confide.secagg.shares_terms import HELPER_KEY, HELPER_SEED, POINT_SEED, UPLOAD, HelperKey, Terms, limit_bytes
from confide.wire import Message, Party, Step, Store, decode, encode

_ROSTER_TAG, _KEY_TAG = "shares/roster", "shares/key"


def _guarantee(bound: NormBound | None) -> Guarantee:
    leaks = (
        f"{SUM_REVEALS} Who took part, to both servers; every update, if both pool what they see. The boxes for the "
        f"helper have {RECORDED_X25519} "
    )
    paper = "Corrigan-Gibbs and Boneh, NSDI 2017"
    if bound is None:
        leaks, paper = leaks + "No check bounds a client's update.", paper + " (shares only)"
    else:
        check = NormCheck(b"", bound, bound.ring_bits)
        leaks += (
            f"A client's vector of {bound.ratio_percent / 100:g} * norm_bound or more is left out, except with "
            f"probability 2^-{int(check.soundness_bits)} for each hash that the client tries. That a vector passed "
            f"moves what a server sees by a statistical distance of at most 2^-{int(bound.completeness_bits)}."
        )
        paper += "; Boneh, Boneh, Corrigan-Gibbs, Gilboa, Ishai, CRYPTO 2019"
    return Guarantee(
        claims=frozenset(
            (
                Claim("update", "server", ("helper",)),
                Claim("update", "helper", ("server",)),
                Claim("update", "other clients", ("server",)),
                Claim("update", "outsiders"),
            )
        ),
        adversary=Adversary.SEMI_HONEST,
        trust=Trust.NON_COLLUSION,
        security_bits=128,
        post_quantum=False,
        verified_result=False,
        leaks=leaks,
        primary="additive shares, X25519 + AES-256 seeds" + (", fully linear proofs" if bound else ""),
        paper=paper,
    )


class Shares(Aggregator):
    """The main server learns the sum of at least max(3, quorum) vectors; clients send once and may drop out freely.

    Args:
        norm_bound: B, the largest L2 norm of a client's vector of integers, or a `NormBound` with other error rates;
            None checks nothing.

    **Guarantees** The main server learns nothing about a vector beyond the sum, as long as the helper is honest; the
    helper learns nothing about vectors, as long as the main server is honest. The helper answers once in a session,
    over one set, only about seeds that clients of the pinned roster signed for this very session. With `norm_bound`,
    honest vectors always pass, and one of 2.5 B or more is left out and its client named, except with the probability
    that `NormCheck.soundness_bits` and docs/protocols/shares.md state, if both servers follow the protocol.

    **Leaks** The sum, to the main server; who took part, to both servers. If both pool what they see, every vector.
    Without `norm_bound` nothing bounds a client's vector beyond its range in the ring: it can move the sum anywhere.
    """

    name = "shares"
    upload = UPLOAD
    roles = ("server", "helper", "client")
    guarantee = _guarantee(None)

    def __init__(self, *, norm_bound: int | NormBound | None = None) -> None:
        self._bound = NormBound(norm_bound) if isinstance(norm_bound, int) else norm_bound
        if self._bound is not None:
            self.guarantee = _guarantee(self._bound)

    def check(self, cohort: Cohort) -> None:
        """Refuse cohorts of fewer than three."""
        if len(cohort.clients) < SMALLEST_SUM:
            raise UsageError(
                f"Expected at least {SMALLEST_SUM} clients; a sum of two shows each of them the other's vector"
            )

    def setup(self, role: str, me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        """Return the party that pins the clients' roster and the helper's key; its output is a fingerprint of both."""
        _check(role, me, cohort)
        self.check(cohort)
        if role == "server":
            return _introduce(cohort, store, rng, checks=self._bound is not None)
        return _enrol_helper(cohort, store, rng) if role == "helper" else _enrol_client(me, cohort, store, rng)

    def party(
        self, role: str, me: str, session: Session, vector: Vector | None, store: Store, rng: Randomness
    ) -> Party:
        """Return the party of one sum: the main server's output is `SharesSums`, the others have none.

        Raises:
            UsageError: no set-up, strangers in the cohort, a vector that does not fit the session or the norm bound, a
                ring that cannot check that bound.
        """
        _check(role, me, session.cohort)
        self.check(session.cohort)
        terms = Terms(session, store, self._bound)
        if role == "server":
            point = store.get(POINT_SEED) or b""
            if terms.norm is not None and not point:
                raise UsageError("Expected the server's secret for norm bounds; run setup again with norm_bound")
            return MainServer(terms, point).play()
        if role == "helper":
            secret = store.get(HELPER_SEED)
            if secret is None:
                raise UsageError("Expected the helper's key in its store; run the aggregator's setup first")
            return assist(terms, AgreementKey(secret), store)
        if vector is None:
            raise UsageError("Expected a vector at a client")
        if terms.norm is not None:
            terms.norm.check(session.checked(vector))
        return shares_client.play(terms, me, session.checked(vector), store, rng)


def _check(role: str, me: str, cohort: Cohort) -> None:
    if cohort.parties(Shares.roles).get(me) != role:
        raise UsageError(f"Expected role={role}, me={me} to be the server, the helper or a client of the cohort")


# --- set-up -----------------------------------------------------------------------------------------------------------


def _introduce(cohort: Cohort, store: Store, rng: Randomness, *, checks: bool) -> Party:
    """The main server: collect the identities, show them to the helper, show the helper's key to the clients."""
    yield from roster.register(cohort, store)
    body = roster.pinned(store).encode()
    hello = Message(cohort.server, cohort.helper, _ROSTER_TAG, body)
    received = yield Step(send=(hello,), await_tag=_KEY_TAG, wait_for=(cohort.helper,))
    key = _read_key(received[cohort.helper].body)
    sent = tuple(Message(cohort.server, name, _KEY_TAG, encode(HelperKey(key))) for name in cohort.clients)
    point = {POINT_SEED: store.get(POINT_SEED) or rng.bytes(KEY_BYTES)} if checks else {}
    yield Step(send=sent, save={**_pin_key(key, store), **point})
    return _fingerprint(roster.pinned(store), key)


def _enrol_helper(cohort: Cohort, store: Store, rng: Randomness) -> Party:
    """The helper: pin the roster, send the public half of a long-lived key that is made on first use."""
    received = yield Step(await_tag=_ROSTER_TAG, wait_for=(cohort.server,))
    body = received[cohort.server].body
    listed = decode(body, roster.Roster, max_bytes=limit_bytes(cohort, KEY_BYTES))
    if tuple(listed.keys()) != cohort.clients or store.get(roster.ROSTER) not in (None, listed.encode()):
        raise ProtocolError("Expected the pinned roster, or a first one of this cohort; compare fingerprints")
    seed = store.get(HELPER_SEED) or rng.bytes(KEY_BYTES)
    key = AgreementKey(seed).public
    save = {HELPER_SEED: seed, HELPER_KEY: encode(HelperKey(key)), roster.ROSTER: listed.encode()}
    yield Step(send=(Message(cohort.helper, cohort.server, _KEY_TAG, encode(HelperKey(key))),), save=save)
    return _fingerprint(listed, key)


def _enrol_client(me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
    """A client: enrol in the roster, pin the helper's key."""
    yield from roster.enrol(me, cohort, store, rng)
    received = yield Step(await_tag=_KEY_TAG, wait_for=(cohort.server,))
    key = _read_key(received[cohort.server].body)
    yield Step(save=_pin_key(key, store))
    return _fingerprint(roster.pinned(store), key)


def _read_key(body: bytes) -> bytes:
    key = decode(body, HelperKey, max_bytes=KEY_BYTES + 16).key
    check_agreement_key(key)
    return key


def _pin_key(key: bytes, store: Store) -> Mapping[str, bytes | None]:
    body, pin = encode(HelperKey(key)), store.get(HELPER_KEY)
    if pin not in (None, body):
        raise ProtocolError("Expected the helper's key pinned in the store; ask the helper, then remove the old pin")
    return {HELPER_KEY: body}


def _fingerprint(listed: roster.Roster, key: bytes) -> str:
    return hashlib.sha256(label("confide shares roster v1", listed.digest, key)).hexdigest()
