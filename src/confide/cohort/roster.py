"""Who is who: long-lived Ed25519 identities and the roster that every client pins.

At set-up each client sends its public identity key through the server and gets back the list of all. It pins that list
in its store: on first use, or against a list that somebody put there before (`Roster.encode` under `ROSTER`), which is
the way that does not trust the server of the first day. `Roster.fingerprint` is what people compare over the telephone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from confide.crypto.keys import KEY_BYTES, SigningKey
from confide.crypto.random import Randomness
from confide.errors import Aborted, ProtocolError, UsageError
from confide.ideal import Cohort
from confide.wire import Message, Party, Step, Store, decode, encode

#: Where a client keeps the 32-byte seed of its identity, and where everybody keeps the roster.
IDENTITY = "secagg/identity"
ROSTER = "secagg/roster"

_IDENTITY_TAG = "secagg/identity"
_ROSTER_TAG = "secagg/roster"


class Roster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names and public identity keys in a fixed order; public.

    Args:
        members: (name, Ed25519 public key of 32 bytes) pairs; names and keys differ.
    """

    members: tuple[tuple[str, bytes], ...]

    def __post_init__(self) -> None:
        names, keys = {name for name, _ in self.members}, {key for _, key in self.members}
        if not len(names) == len(keys) == len(self.members) or any(len(key) != KEY_BYTES for key in keys):
            raise ValueError("Expected different names and different keys of 32 bytes")

    def encode(self) -> bytes:
        """Return the bytes to put into a store under `ROSTER`."""
        return encode(self)

    @property
    def digest(self) -> bytes:
        """Return SHA-256 of the roster, 32 bytes."""
        return hashlib.sha256(b"confide roster v1\0" + self.encode()).digest()

    @property
    def fingerprint(self) -> str:
        """Return the digest in hex, for people to compare."""
        return self.digest.hex()

    def keys(self) -> dict[str, bytes]:
        """Return the public identity key of each name."""
        return dict(self.members)

    def indices(self) -> dict[str, int]:
        """Return each name's share index: its position, from 1."""
        return {name: position for position, (name, _) in enumerate(self.members, start=1)}


class _Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: bytes


def pinned(store: Store) -> Roster:
    """Return the roster in `store`.

    Raises:
        UsageError: there is none.
    """
    body = store.get(ROSTER)
    if body is None:
        raise UsageError("Expected a pinned roster in the store; run the aggregator's setup first")
    return decode(body, Roster, max_bytes=len(body))


def identity(store: Store) -> SigningKey:
    """Return the client's own identity.

    Raises:
        UsageError: the store holds none.
    """
    seed = store.get(IDENTITY)
    if seed is None:
        raise UsageError("Expected an identity key in the store; run the aggregator's setup first")
    return SigningKey(seed)


def enrol(me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
    """Return the client's set-up: send the identity key, pin the roster. Its output is the roster's fingerprint.

    Args:
        me: one of the cohort's clients.
        cohort: who shall be in the roster, in this order.
        store: keeps identity and roster; whatever it holds already is honoured.
        rng: draws the identity on first use.

    Raises:
        ProtocolError: the roster is malformed, lacks somebody, shows another key for `me`, or is not the pinned one.

    **Guarantees** A pinned roster is never replaced.
    **Leaks** Who takes part, to all who take part.
    """
    seed = store.get(IDENTITY) or SigningKey.draw_seed(rng)
    key = SigningKey(seed)
    hello = Message(me, cohort.server, _IDENTITY_TAG, encode(_Identity(key.public)))
    received = yield Step(send=(hello,), await_tag=_ROSTER_TAG, wait_for=(cohort.server,), save={IDENTITY: seed})
    body = received[cohort.server].body
    roster = decode(body, Roster, max_bytes=_limit_bytes(cohort))
    if tuple(roster.keys()) != cohort.clients or roster.keys()[me] != key.public:
        raise ProtocolError("Expected a roster of this cohort that shows the own identity key")
    yield Step(save=_pin(roster, store))
    return roster.fingerprint


def register(cohort: Cohort, store: Store) -> Party:
    """Return the server's set-up: collect every identity key, send the roster to all.

    Raises:
        Aborted: a client sent no valid key; the text names it.
        ProtocolError: the server's store pins another roster.
    """
    received = yield Step(await_tag=_IDENTITY_TAG, wait_for=cohort.clients)
    roster = _roster(cohort, received)
    save = _pin(roster, store)
    body = roster.encode()
    yield Step(send=tuple(Message(cohort.server, name, _ROSTER_TAG, body) for name in cohort.clients), save=save)
    return roster.fingerprint


def _roster(cohort: Cohort, received: Mapping[str, Message]) -> Roster:
    keys: dict[str, bytes] = {}
    for name in cohort.clients:
        try:
            key = decode(received[name].body, _Identity, max_bytes=_limit_bytes(cohort)).key
        except ProtocolError:
            key = b""
        if len(key) != KEY_BYTES:
            raise Aborted(f"Expected an identity key from {name}; set that client up again")
        if twin := next((other for other, taken in keys.items() if taken == key), None):
            raise Aborted(f"Expected an identity key of its own from {twin} and from {name}; set them up again")
        keys[name] = key
    return Roster(tuple(keys.items()))


def _pin(roster: Roster, store: Store) -> Mapping[str, bytes | None]:
    body, pin = roster.encode(), store.get(ROSTER)
    if pin not in (None, body):
        raise ProtocolError("Expected the roster pinned in the store; compare fingerprints, then remove the old pin")
    return {ROSTER: body}


def _limit_bytes(cohort: Cohort) -> int:
    return 64 + sum(len(name.encode()) + KEY_BYTES + 16 for name in cohort.clients)
