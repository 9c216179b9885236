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

Paper: additive shares with a compressed share, Corrigan-Gibbs and Boneh (Prio), NSDI 2017, section 3 and appendix I;
without Prio's proofs: a client's vector is not checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping

import msgspec
import numpy as np

from confide.cohort import roster
from confide.cohort.collect import SMALLEST_SUM
from confide.cohort.journal import Journal
from confide.cohort.parcel import Parcel, check_parcel, open_parcel, parcel_bytes, seal_parcel
from confide.crypto.keys import KEY_BYTES, AgreementKey, SigningKey, check_agreement_key, derive, label
from confide.crypto.masks import add_mask
from confide.crypto.random import Randomness
from confide.crypto.ring import Words, add_words, pack, unpack, word_dtype
from confide.errors import Aborted, ProtocolError, UsageError
from confide.guarantee import RECORDED_X25519, SUM_REVEALS, Adversary, Claim, Guarantee, Trust
from confide.ideal import Aggregator, Cohort, Session, Sums, Vector
from confide.wire import Message, Party, Step, Store, decode, encode

#: Where the helper keeps the seed of its key, and where everybody keeps the public half.
HELPER_SEED = "shares/helper seed"
HELPER_KEY = "shares/helper key"

_ROSTER_TAG, _KEY_TAG = "shares/roster", "shares/key"
UPLOAD, RECEIVED, MASKS = "shares/upload", "shares/received", "shares/masks"

_PARCEL_BYTES = parcel_bytes(KEY_BYTES)


class HelperKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The helper's public X25519 key; in a store under `HELPER_KEY` it is a pin."""

    key: bytes


class Upload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a client sends: the helper's share, sealed, and the main server's, packed."""

    parcel: Parcel
    words: bytes


class Received(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose words the main server holds, with their parcels."""

    parcels: dict[str, Parcel]


class Masks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The set that both servers have, and the sum of its masks, packed."""

    names: tuple[str, ...]
    words: bytes


class Shares(Aggregator):
    """The main server learns the sum of at least max(3, quorum) vectors; clients send once and may drop out freely.

    **Guarantees** The main server learns nothing about a vector beyond the sum, as long as the helper is honest; the
    helper learns nothing about vectors, as long as the main server is honest. The helper answers once in a session,
    over one set, only about seeds that clients of the pinned roster signed for this very session.

    **Leaks** The sum, to the main server; who took part, to both servers. If both pool what they see, every vector.
    Nothing bounds a client's vector beyond its range in the ring: one client can move the sum anywhere.
    """

    name = "shares"
    roles = ("server", "helper", "client")
    guarantee = Guarantee(
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
        leaks=f"{SUM_REVEALS} Who took part, to both servers; every update, if both pool what they see. No check "
        f"bounds a client's update. The boxes for the helper have {RECORDED_X25519}",
        primary="additive shares, X25519 + AES-256 seeds",
        paper="Corrigan-Gibbs and Boneh, NSDI 2017 (shares only)",
    )

    def setup(self, role: str, me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        """Return the party that pins the clients' roster and the helper's key; its output is a fingerprint of both."""
        _check(role, me, cohort)
        if role == "server":
            return _introduce(cohort, store)
        return _enrol_helper(cohort, store, rng) if role == "helper" else _enrol_client(me, cohort, store, rng)

    def party(
        self, role: str, me: str, session: Session, vector: Vector | None, store: Store, rng: Randomness
    ) -> Party:
        """Return the party of one sum: the main server's output is `Sums`, the others have none.

        Raises:
            UsageError: no set-up, strangers in the cohort, a vector that does not fit the session.
        """
        _check(role, me, session.cohort)
        terms = _Terms(session, store)
        if role == "server":
            return _serve(terms)
        if role == "helper":
            secret = store.get(HELPER_SEED)
            if secret is None:
                raise UsageError("Expected the helper's key in its store; run the aggregator's setup first")
            return _help(terms, AgreementKey(secret), store)
        if vector is None:
            raise UsageError("Expected a vector at a client")
        return _contribute(terms, me, session.checked(vector), store, rng)


def journal_key(run: str) -> str:
    """Return where clients and helper keep the journal of `run`."""
    return f"shares/journal/{run}"


def _check(role: str, me: str, cohort: Cohort) -> None:
    if cohort.parties(Shares.roles).get(me) != role:
        raise UsageError(f"Expected role={role}, me={me} to be the server, the helper or a client of the cohort")
    if len(cohort.clients) < SMALLEST_SUM:
        raise UsageError(
            f"Expected at least {SMALLEST_SUM} clients; a sum of two shows each of them the other's vector"
        )


# --- set-up -----------------------------------------------------------------------------------------------------------


def _introduce(cohort: Cohort, store: Store) -> Party:
    """The main server: collect the identities, show them to the helper, show the helper's key to the clients."""
    yield from roster.register(cohort, store)
    body = roster.pinned(store).encode()
    hello = Message(cohort.server, cohort.helper, _ROSTER_TAG, body)
    received = yield Step(send=(hello,), await_tag=_KEY_TAG, wait_for=(cohort.helper,))
    key = _read_key(received[cohort.helper].body)
    sent = tuple(Message(cohort.server, name, _KEY_TAG, encode(HelperKey(key))) for name in cohort.clients)
    yield Step(send=sent, save=_pin_key(key, store))
    return _fingerprint(roster.pinned(store), key)


def _enrol_helper(cohort: Cohort, store: Store, rng: Randomness) -> Party:
    """The helper: pin the roster, send the public half of a long-lived key that is made on first use."""
    received = yield Step(await_tag=_ROSTER_TAG, wait_for=(cohort.server,))
    body = received[cohort.server].body
    listed = decode(body, roster.Roster, max_bytes=_limit_bytes(cohort, KEY_BYTES))
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


def _limit_bytes(cohort: Cohort, per_client: int) -> int:
    return 64 + sum(len(name.encode()) + per_client + 32 for name in cohort.clients)


# --- what all parties of a sum agree on -------------------------------------------------------------------------------


class _Terms:
    """A session with the pinned keys, and what follows from them without a message."""

    def __init__(self, session: Session, store: Store) -> None:
        listed, pin = roster.pinned(store), store.get(HELPER_KEY)
        if pin is None:
            raise UsageError("Expected the helper's key in the store; run the aggregator's setup first")
        self.session, self.cohort = session, session.cohort
        self.identities, self.helper_key = listed.keys(), decode(pin, HelperKey, max_bytes=len(pin)).key
        strangers = [name for name in self.cohort.clients if name not in self.identities]
        if strangers:
            raise UsageError(f"Expected clients of the pinned roster, not {', '.join(strangers)}; run setup with them")
        self.bits = max(1, session.ring_bits)
        self.dtype = word_dtype(self.bits)
        agreed = label("confide shares v1", session.context, self.cohort.helper, listed.digest, self.helper_key)
        self.context = hashlib.sha256(agreed).digest()
        self.quorum = max(SMALLEST_SUM, self.cohort.quorum)
        self.words_bytes = (session.length * self.bits + 7) // 8

    def seal_seed(self, name: str, seed: bytes, identity: SigningKey, rng: Randomness) -> Parcel:
        """Return `seed` of the client `name` in a box that only the helper opens, for this session alone."""
        return seal_parcel(seed, self.helper_key, context=self.context, sender=name, identity=identity, rng=rng)

    def check(self, name: str, parcel: Parcel) -> None:
        """Check form and signature of a parcel of `name`.

        Raises:
            ProtocolError: the holder of the pinned identity did not make it for this session.
        """
        identity = self.identities[name]
        check_parcel(parcel, secret_bytes=KEY_BYTES, context=self.context, sender=name, identity=identity)

    def open_seed(self, name: str, parcel: Parcel, key: AgreementKey) -> bytes:
        """Return the seed in a parcel of `name`; the helper's.

        Raises:
            ProtocolError: as `check`, or the box does not open.
        """
        self.check(name, parcel)
        return open_parcel(parcel, key, context=self.context, sender=name)

    def add_share(self, words: Words, name: str, seed: bytes, *, negate: bool = False) -> None:
        """Add PRG(seed), the helper's share of the client `name`, or take it away."""
        add_mask(words, derive(seed, label(self.context, "share", name)), negate=negate)

    def require(self, names: tuple[str, ...], where: str) -> None:
        """Check that a sum over `names` may be released; each server does so by itself.

        Raises:
            Aborted: too few.
        """
        if len(names) < self.quorum:
            raise Aborted(f"Expected shares of at least {self.quorum} clients at the {where}, got {len(names)}")

    @property
    def journal(self) -> Journal:
        """Return this session's place in the journal of a client or the helper."""
        return Journal(journal_key(self.session.run), self.session, self.context)


# --- one sum ----------------------------------------------------------------------------------------------------------


def _contribute(terms: _Terms, me: str, vector: Vector, store: Store, rng: Randomness) -> Party:
    """The client: two shares, one message."""
    identity, body = roster.identity(store), terms.journal.resumed(store)
    if body is None:
        seed = rng.bytes(KEY_BYTES)
        words = vector.astype(terms.dtype)  # two's complement: reduced modulo the width of a word
        terms.add_share(words, me, seed, negate=True)
        body = encode(Upload(terms.seal_seed(me, seed, identity, rng), pack(words, terms.bits)))
    yield Step(send=(Message(me, terms.cohort.server, UPLOAD, body),), save=terms.journal.entry(body))
    yield Step(save=terms.journal.entry())


def _serve(terms: _Terms) -> Party:
    """The main server: collect, let the helper say which of them it can open, add its masks."""
    held = yield from _collect(terms)
    names = tuple(name for name in terms.cohort.clients if name in held)
    terms.require(names, "server")
    request = encode(Received({name: held[name][0] for name in names}))
    received = yield Step(
        send=(Message(terms.cohort.server, terms.cohort.helper, RECEIVED, request),),
        await_tag=MASKS,
        wait_for=(terms.cohort.helper,),
    )
    limit = _limit_bytes(terms.cohort, 0) + terms.words_bytes
    masks = decode(received[terms.cohort.helper].body, Masks, max_bytes=limit)
    agreed = tuple(name for name in names if name in masks.names)
    if masks.names != agreed:
        raise Aborted("Expected the helper's set to lie within the server's, in the cohort's order")
    terms.require(agreed, "server")
    total = unpack(masks.words, terms.bits, terms.session.length)
    for name in agreed:
        add_words(total, held[name][1])
    shift = np.uint64(64 - terms.bits)
    values = (total.astype(np.uint64) << shift).view(np.int64) >> np.int64(shift)
    largest = len(agreed) * terms.session.bound
    if values.size and (values.max() > largest or values.min() < -largest):
        raise Aborted("Expected a sum within clients * bound; somebody's share is wrong")
    return Sums(values[None, :], (frozenset(agreed),))


def _collect(terms: _Terms) -> Generator[Step, Mapping[str, Message], dict[str, tuple[Parcel, Words]]]:
    """Return every well-formed upload; a malformed one counts as a dropout."""
    held: dict[str, tuple[Parcel, Words]] = {}
    waiting = terms.cohort.clients
    while waiting:
        received = yield Step(await_tag=UPLOAD, wait_for=waiting, each=True)
        if not received:
            break
        for name, message in received.items():
            waiting = tuple(other for other in waiting if other != name)
            try:
                upload = decode(message.body, Upload, max_bytes=terms.words_bytes + _PARCEL_BYTES + 64)
                terms.check(name, upload.parcel)
                held[name] = upload.parcel, unpack(upload.words, terms.bits, terms.session.length)
            except ProtocolError:
                continue
    return held


def _help(terms: _Terms, key: AgreementKey, store: Store) -> Party:
    """The helper: open what can be opened, release the sum of the masks, once."""
    server = terms.cohort.server
    body = terms.journal.resumed(store)
    if body is None:
        received = yield Step(await_tag=RECEIVED, wait_for=(server,))
        limit = _limit_bytes(terms.cohort, _PARCEL_BYTES)
        parcels = decode(received[server].body, Received, max_bytes=limit).parcels
        seeds: dict[str, bytes] = {}
        for name in terms.cohort.clients:
            try:
                if name in parcels:
                    seeds[name] = terms.open_seed(name, parcels[name], key)
            except ProtocolError:
                continue  # the client's fault or the server's: left out of the set, and both servers see it
        terms.require(tuple(seeds), "helper")
        total = np.zeros(terms.session.length, terms.dtype)
        for name, seed in seeds.items():
            terms.add_share(total, name, seed)
        body = encode(Masks(tuple(seeds), pack(total, terms.bits)))
    yield Step(send=(Message(terms.cohort.helper, server, MASKS, body),), save=terms.journal.entry(body))
