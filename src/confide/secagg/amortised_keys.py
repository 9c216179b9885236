"""Agreement keys for a whole run: published once, one per epoch, each erased when its epoch is over.

A client draws one seed. The secret key of epoch e comes from the e-th seed of a one-way chain, and moving on overwrites
the seed: what a later intruder finds opens no earlier epoch. All public keys travel at set-up under one signature, so
that nobody has to be present when an epoch begins, and whoever was away for one takes part in the next. A hybrid set-up
adds an ML-KEM-768 key to them and a second chain for each pair (`amortised_chains`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

import msgspec

from confide.cohort import roster
from confide.cohort.roster import Roster
from confide.crypto.keys import (
    ENCAPSULATION_KEY_BYTES,
    ENCAPSULATION_SEED_BYTES,
    KEY_BYTES,
    SIGNATURE_BYTES,
    AgreementKey,
    DecapsulationKey,
    check_agreement_key,
    check_encapsulation_key,
    derive,
    label,
    verify,
)
from confide.crypto.random import Randomness
from confide.errors import Aborted, ProtocolError, UsageError
from confide.ideal import Cohort
from confide.secagg import amortised_chains
from confide.wire import Message, Party, Step, Store, decode, encode

#: Where everybody keeps the public keys of all, and where a client keeps its own secret.
BOOK, SECRET = "amortised/book", "amortised/secret"

KEYS, PEERS = "amortised/keys", "amortised/peers"


class PublicKeys(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A client's public agreement keys, one per epoch, its ML-KEM key or b"", and its signature over all of them."""

    keys: tuple[bytes, ...]
    encapsulation: bytes
    signature: bytes


class KeyBook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everybody's public keys by name, in the cohort's order; public."""

    members: dict[str, PublicKeys]

    @property
    def digest(self) -> bytes:
        """Return SHA-256 of the book, 32 bytes."""
        return hashlib.sha256(b"confide amortised keys v1\0" + encode(self)).digest()

    @property
    def hybrid(self) -> bool:
        """Return True if the book holds ML-KEM keys: everybody's, as it was checked at set-up."""
        return any(public.encapsulation for public in self.members.values())


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The seed of the current epoch: it gives this epoch's key and every later one, and no earlier one.

    Args:
        epoch: from 0.
        seed: 32 bytes.
        context: the digest of the book that shows its public keys.
        links: of the epoch, with each other client; None without ML-KEM.
    """

    epoch: int
    seed: bytes
    context: bytes = b""
    links: dict[str, bytes] | None = None

    @property
    def key(self) -> AgreementKey:
        """Return the agreement key of the epoch."""
        return AgreementKey(derive(self.seed, label("confide amortised v1", "agreement key")))

    def public_keys(self, count: int) -> Iterator[bytes]:
        """Yield the public agreement keys of this epoch and those after it, `count` in all."""
        secret = self
        for epoch in range(self.epoch, self.epoch + count):
            secret = secret.at(epoch)
            yield secret.key.public

    def at(self, epoch: int) -> Secret:
        """Return the secret of `epoch`.

        Raises:
            Aborted: that epoch is over and its key erased.
        """
        if epoch < self.epoch:
            raise Aborted(
                f"Expected a round of epoch={self.epoch} or later; earlier keys are erased, so run setup again"
            )
        seed, links = self.seed, self.links
        for _ in range(epoch - self.epoch):
            seed = derive(seed, label("confide amortised v1", "next epoch"))
            links = links and {peer: amortised_chains.next_link(link) for peer, link in links.items()}
        return Secret(epoch, seed, self.context, links)

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
    found: dict[str, bytes] = {}
    for peer, agreed in _agreed(own, book, me).items():
        info = label("confide amortised v1", "pair", own.context, own.epoch, *sorted((me, peer)))
        found[peer] = derive(agreed if own.links is None else agreed + own.links[peer], info)
    return found


def _agreed(own: Secret, book: KeyBook, me: str) -> dict[str, bytes]:
    """Return the X25519 secrets of the epoch: not uniform."""
    key = own.key
    return {peer: key.shared(public.keys[own.epoch]) for peer, public in book.members.items() if peer != me}


def enrol(me: str, cohort: Cohort, store: Store, rng: Randomness, epochs: int, *, hybrid: bool) -> Party:
    """Return the client's set-up: pin the roster, publish a key for each epoch, keep everybody's.

    Its output is the roster's fingerprint. Setting up again replaces all agreement keys.

    Raises:
        ProtocolError: as `roster.enrol` and `amortised_chains.agree`; or keys that are missing, weak, repeated or not
            signed by the pinned roster.
    """
    fingerprint = yield from roster.enrol(me, cohort, store, rng)
    pinned, first = roster.pinned(store), Secret(0, rng.bytes(KEY_BYTES))
    kem = DecapsulationKey(rng.bytes(ENCAPSULATION_SEED_BYTES)) if hybrid else None
    own = PublicKeys(tuple(first.public_keys(epochs)), kem.public if kem else b"", b"")
    own = msgspec.structs.replace(own, signature=roster.identity(store).sign(_signed(pinned, me, own)))
    hello = Message(me, cohort.server, KEYS, encode(own))
    received = yield Step(send=(hello,), await_tag=PEERS, wait_for=(cohort.server,))
    found = decode(received[cohort.server].body, KeyBook, max_bytes=_limit_bytes(cohort, epochs))
    if tuple(found.members) != cohort.clients or found.members[me] != own:
        raise ProtocolError("Expected the keys of this cohort and the own unchanged")
    for name, public in found.members.items():
        _check(pinned, name, public, epochs, hybrid=hybrid)
    _refuse_repeats(found.members)
    links = None
    if kem:
        peers = {name: public.encapsulation for name, public in found.members.items()}
        agreed = _agreed(first, found, me)
        links = yield from amortised_chains.agree(me, cohort, kem, peers, agreed, found.digest)
    yield Step(save={BOOK: encode(found), SECRET: encode(Secret(0, first.seed, found.digest, links))})
    return fingerprint


def register(cohort: Cohort, store: Store, epochs: int, *, hybrid: bool) -> Party:
    """Return the server's set-up: collect everybody's keys and send them to all, then pass on the ciphertexts.

    Raises:
        Aborted: a client sent no valid keys or ciphertexts; the text names it.
        ProtocolError: the server's store pins another roster, or two clients sent one key.
    """
    fingerprint = yield from roster.register(cohort, store)
    pinned = roster.pinned(store)
    received = yield Step(await_tag=KEYS, wait_for=cohort.clients)
    members: dict[str, PublicKeys] = {}
    for name in cohort.clients:
        try:
            members[name] = decode(received[name].body, PublicKeys, max_bytes=_limit_bytes(cohort, epochs))
            _check(pinned, name, members[name], epochs, hybrid=hybrid)
        except ProtocolError as error:
            raise Aborted(f"{error}; set {name} up again, it sent no such keys") from None
    _refuse_repeats(members)
    body = encode(KeyBook(members))
    send = tuple(Message(cohort.server, name, PEERS, body) for name in cohort.clients)
    if hybrid:
        send = yield from amortised_chains.forward(cohort, send)
    yield Step(send=send, save={BOOK: body})
    return fingerprint


def _signed(pinned: Roster, name: str, public: PublicKeys) -> bytes:
    return label("confide amortised v1", "keys", pinned.digest, name, public.encapsulation, *public.keys)


def _check(pinned: Roster, name: str, public: PublicKeys, epochs: int, *, hybrid: bool) -> None:
    if len(public.keys) != epochs:
        raise ProtocolError(f"Expected a key for each of epochs={epochs}")
    if bool(public.encapsulation) != hybrid:
        raise ProtocolError(f"Expected hybrid={hybrid} at every party, as here; {name} was set up otherwise")
    for key in public.keys:
        check_agreement_key(key)
    if hybrid:
        check_encapsulation_key(public.encapsulation)
    verify(pinned.keys()[name], _signed(pinned, name, public), public.signature)


def _refuse_repeats(members: Mapping[str, PublicKeys]) -> None:
    keys = [key for public in members.values() for key in public.keys]
    if len(set(keys)) < len(keys):
        raise ProtocolError("Expected no agreement key twice")


def _limit_bytes(cohort: Cohort, epochs: int) -> int:
    per_client = epochs * (KEY_BYTES + 2) + ENCAPSULATION_KEY_BYTES + SIGNATURE_BYTES + 32
    return 64 + sum(len(name.encode()) + per_client for name in cohort.clients)
