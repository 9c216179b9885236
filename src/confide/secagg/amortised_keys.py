"""Agreement keys for a whole run: published once, one per epoch, each erased when its epoch is over.

A client draws one seed. The secret key of epoch e comes from the e-th seed of a one-way chain, and moving on overwrites
the seed: what a later intruder finds opens no earlier epoch. All public keys travel at set-up under one signature, so
that nobody has to be present when an epoch begins, and whoever was away for one takes part in the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from confide.crypto.keys import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    AgreementKey,
    check_agreement_key,
    derive,
    label,
    verify,
)
from confide.crypto.random import Randomness
from confide.errors import Aborted, ProtocolError, UsageError
from confide.ideal import Cohort
from confide.secagg import roster
from confide.secagg.roster import Roster
from confide.wire import Message, Party, Step, Store, decode, encode

#: Where everybody keeps the public keys of all, and where a client keeps its own secret.
BOOK, SECRET = "amortised/book", "amortised/secret"

KEYS, PEERS = "amortised/keys", "amortised/peers"


class PublicKeys(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A client's public agreement keys, one per epoch, and its signature over them."""

    keys: tuple[bytes, ...]
    signature: bytes


class KeyBook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everybody's public keys by name, in the cohort's order; public."""

    members: dict[str, PublicKeys]

    @property
    def digest(self) -> bytes:
        """Return SHA-256 of the book, 32 bytes."""
        return hashlib.sha256(b"confide amortised keys v1\0" + encode(self)).digest()


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The seed of the current epoch: it gives this epoch's key and every later one, and no earlier one.

    Args:
        epoch: from 0.
        seed: 32 bytes.
        context: the digest of the book that shows its public keys.
    """

    epoch: int
    seed: bytes
    context: bytes = b""

    @property
    def key(self) -> AgreementKey:
        """Return the agreement key of the epoch."""
        return AgreementKey(derive(self.seed, label("confide amortised v1", "agreement key")))

    def at(self, epoch: int) -> Secret:
        """Return the secret of `epoch`.

        Raises:
            Aborted: that epoch is over and its key erased.
        """
        if epoch < self.epoch:
            raise Aborted(
                f"Expected a round of epoch={self.epoch} or later; earlier keys are erased, so run setup again"
            )
        seed = self.seed
        for _ in range(epoch - self.epoch):
            seed = derive(seed, label("confide amortised v1", "next epoch"))
        return Secret(epoch, seed, self.context)

    def __repr__(self) -> str:
        return f"Secret(epoch={self.epoch})"


def book(store: Store) -> KeyBook:
    """Return the public keys in `store`.

    Raises:
        UsageError: there are none.
    """
    return _kept(store, BOOK, KeyBook)


def secret(store: Store) -> Secret:
    """Return the client's own secret.

    Raises:
        UsageError: there is none.
    """
    return _kept(store, SECRET, Secret)


_Kept = TypeVar("_Kept", KeyBook, Secret)


def _kept(store: Store, key: str, kind: type[_Kept]) -> _Kept:
    body = store.get(key)
    if body is None:
        raise UsageError("Expected agreement keys in the store; run the setup of the amortised sum first")
    return decode(body, kind, max_bytes=len(body))


def pair_secrets(own: Secret, book: KeyBook, me: str) -> dict[str, bytes]:
    """Return the 32 uniform bytes that `me` shares with each other client of the book during the epoch of `own`."""
    key, found = own.key, dict[str, bytes]()
    for peer, public in book.members.items():
        if peer != me:
            info = label("confide amortised v1", "pair", own.context, own.epoch, *sorted((me, peer)))
            found[peer] = derive(key.shared(public.keys[own.epoch]), info)
    return found


def enrol(me: str, cohort: Cohort, store: Store, rng: Randomness, epochs: int) -> Party:
    """Return the client's set-up: pin the roster, publish a key for each epoch, keep everybody's.

    Its output is the roster's fingerprint. Setting up again replaces all agreement keys.

    Raises:
        ProtocolError: as `roster.enrol`; or keys that are missing, weak, repeated or not signed by the pinned roster.
    """
    fingerprint = yield from roster.enrol(me, cohort, store, rng)
    pinned, first = roster.pinned(store), Secret(0, rng.bytes(KEY_BYTES))
    keys = tuple(first.at(epoch).key.public for epoch in range(epochs))
    own = PublicKeys(keys, roster.identity(store).sign(_signed(pinned, me, keys)))
    hello = Message(me, cohort.server, KEYS, encode(own))
    received = yield Step(send=(hello,), await_tag=PEERS, wait_for=(cohort.server,))
    found = decode(received[cohort.server].body, KeyBook, max_bytes=_limit_bytes(cohort, epochs))
    if tuple(found.members) != cohort.clients or found.members[me] != own:
        raise ProtocolError("Expected the keys of this cohort and the own unchanged")
    for name, public in found.members.items():
        _check(pinned, name, public, epochs)
    _refuse_repeats(found.members)
    yield Step(save={BOOK: encode(found), SECRET: encode(Secret(0, first.seed, found.digest))})
    return fingerprint


def register(cohort: Cohort, store: Store, epochs: int) -> Party:
    """Return the server's set-up: collect everybody's keys and send them to all.

    Raises:
        Aborted: a client sent no valid keys; the text names it.
        ProtocolError: the server's store pins another roster, or two clients sent one key.
    """
    fingerprint = yield from roster.register(cohort, store)
    pinned = roster.pinned(store)
    received = yield Step(await_tag=KEYS, wait_for=cohort.clients)
    members: dict[str, PublicKeys] = {}
    for name in cohort.clients:
        try:
            members[name] = decode(received[name].body, PublicKeys, max_bytes=_limit_bytes(cohort, epochs))
            _check(pinned, name, members[name], epochs)
        except ProtocolError as error:
            raise Aborted(f"{error}; set {name} up again, it sent no such keys") from None
    _refuse_repeats(members)
    body = encode(KeyBook(members))
    send = tuple(Message(cohort.server, name, PEERS, body) for name in cohort.clients)
    yield Step(send=send, save={BOOK: body})
    return fingerprint


def _signed(pinned: Roster, name: str, keys: tuple[bytes, ...]) -> bytes:
    return label("confide amortised v1", "keys", pinned.digest, name, *keys)


def _check(pinned: Roster, name: str, public: PublicKeys, epochs: int) -> None:
    if len(public.keys) != epochs:
        raise ProtocolError(f"Expected a key for each of epochs={epochs}")
    for key in public.keys:
        check_agreement_key(key)
    verify(pinned.keys()[name], _signed(pinned, name, public.keys), public.signature)


def _refuse_repeats(members: Mapping[str, PublicKeys]) -> None:
    keys = [key for public in members.values() for key in public.keys]
    if len(set(keys)) < len(keys):
        raise ProtocolError("Expected no agreement key twice")


def _limit_bytes(cohort: Cohort, epochs: int) -> int:
    per_client = epochs * (KEY_BYTES + 2) + SIGNATURE_BYTES + 32
    return 64 + sum(len(name.encode()) + per_client for name in cohort.clients)
