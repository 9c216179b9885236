"""What travels in a masked sum, and what all its parties agree on before the first message."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from confide.crypto.keys import (
    KEY_BYTES,
    SEAL_BYTES,
    SIGNATURE_BYTES,
    AgreementKey,
    check_agreement_key,
    commit,
    derive,
    label,
    verify,
)
from confide.crypto.masks import add_mask
from confide.crypto.ring import Words, word_dtype
from confide.crypto.shamir import SECRET_BYTES
from confide.errors import UsageError
from confide.ideal import Session
from confide.secagg.roster import Roster

# Tags in the order in which they travel: up, down, up, down, up, down, up, down, up.
KEYS, PEERS = "masked/keys", "masked/peers"
SHARES, BOXES = "masked/shares", "masked/boxes"
VECTOR = "masked/vector"
SURVIVORS, CONFIRM = "masked/survivors", "masked/confirm"
CONFIRMED, UNMASK = "masked/confirmed", "masked/unmask"

#: The two secrets of a client: what its mask key comes from, and the seed of the mask that it shares with nobody.
MASK_SEED, SELF_SEED = "mask seed", "self seed"

ADVERT_BYTES = 3 * KEY_BYTES + SIGNATURE_BYTES
BOX_BYTES = 2 * SECRET_BYTES + SEAL_BYTES
PARCEL_BYTES = BOX_BYTES + 2 * KEY_BYTES


class Advert(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A client's public keys of one session, the commitment to its self seed, and its signature over all three."""

    box_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: bytes


class Adverts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everybody's adverts by name."""

    adverts: dict[str, Advert]


class Parcel(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A share of each seed in a box for one recipient, and commitments by which the server checks both later."""

    box: bytes
    of_mask_seed: bytes
    of_self_seed: bytes


class Parcels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parcels by recipient on the way up, by sender on the way down."""

    parcels: dict[str, Parcel]


class MaskedVector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The masked words, packed."""

    words: bytes


class Survivors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose vectors are in the sum: the one list that says which share of whom a client may reveal."""

    names: tuple[str, ...]


class Confirmation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A survivor's signature over its view of the session: the keys, U2 and U3 that it was told."""

    signature: bytes


class Confirmations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everybody's confirmations by name: they show each client that enough others were told the same."""

    signatures: dict[str, bytes]


class Shares(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One share per client: of the self seed of a survivor, of the mask seed of everybody else."""

    shares: dict[str, bytes]


class Terms:
    """A session, the roster, and what follows from both without a message.

    Args:
        session: what is summed.
        roster: the pinned one; it may list more clients than the cohort.

    Raises:
        UsageError: a client of the cohort is not in the roster, or the ring is wider than 64 bits.
    """

    def __init__(self, session: Session, roster: Roster) -> None:
        self.session, self.clients, self.quorum = session, session.cohort.clients, session.cohort.quorum
        self.server = session.cohort.server
        self.identities, self.indices = roster.keys(), roster.indices()
        strangers = [name for name in self.clients if name not in self.identities]
        if strangers:
            raise UsageError(f"Expected clients of the pinned roster, not {', '.join(strangers)}; run setup with them")
        self.bits = max(1, session.ring_bits)
        self.dtype = word_dtype(self.bits)
        self.context = hashlib.sha256(label("confide masked v2", session.context, roster.digest)).digest()

    def neighbours(self, me: str, participants: Iterable[str]) -> tuple[str, ...]:
        """Return with whom `me` shares masks and seeds: with all, the complete graph."""
        return tuple(name for name in participants if name != me)

    def info(self, purpose: str, *names: str) -> bytes:
        """Return the text that ties a key, a signature or a commitment to this session, a purpose and its parties."""
        return label(self.context, purpose, *names)

    def signed(self, name: str, box_key: bytes, mask_key: bytes, commitment: bytes) -> bytes:
        """Return what the signature in the advert of `name` is over."""
        return label(self.info("advert", name), box_key, mask_key, commitment)

    def check(self, name: str, advert: Advert) -> None:
        """Check that `advert` is well-formed and signed by the pinned identity of `name`.

        Raises:
            ProtocolError: it is not.
        """
        check_agreement_key(advert.box_key)
        check_agreement_key(advert.mask_key)
        signed = self.signed(name, advert.box_key, advert.mask_key, advert.commitment)
        verify(self.identities[name], signed, advert.signature)

    def keys_digest(self, adverts: Mapping[str, Advert]) -> bytes:
        """Return SHA-256 of who advertised which keys, 32 bytes, whatever the order."""
        parts: list[str | bytes] = []
        for name in self.in_order(adverts):
            advert = adverts[name]
            parts += [name, advert.box_key, advert.mask_key, advert.commitment]
        return hashlib.sha256(self.info("keys") + label(*parts)).digest()

    def view(self, keys: bytes, peers: Iterable[str], survivors: Iterable[str]) -> bytes:
        """Return what a confirmation is a signature over: `keys_digest`, U2 and U3."""
        both = (label(*self.in_order(names)) for names in (peers, survivors))
        return label(self.info("view"), keys, *both)

    def in_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return `names` in the roster's order, so that no message depends on who was first."""
        return tuple(sorted(names, key=self.indices.__getitem__))

    def mask_key(self, name: str, seed: bytes) -> AgreementKey:
        """Return the mask key of `name`, whose secret half comes from its mask seed."""
        return AgreementKey(derive(seed, self.info("mask key", name)))

    def seed_commitment(self, name: str, seed: bytes) -> bytes:
        """Return the commitment to the self seed of `name`."""
        return commit(seed, self.info("self seed", name))

    def share_commitment(self, purpose: str, dealer: str, holder: str, share: bytes) -> bytes:
        """Return the commitment to the share that `dealer` gave to `holder`."""
        return commit(share, self.info(f"share of {purpose}", dealer, holder))

    def add_self_mask(self, words: Words, name: str, seed: bytes, *, undo: bool = False) -> None:
        """Add the mask that `name` shares with nobody, or take it away."""
        add_mask(words, derive(seed, self.info("self mask", name)), negate=undo)

    def add_pairwise_masks(self, words: Words, name: str, key: AgreementKey, peer_keys: Mapping[str, bytes]) -> None:
        """Add the half of `name`, holder of `key`, of the masks that it shares with the peers.

        Of each pair the first in the roster adds and the second subtracts. So the same call completes a sum from which
        `name` is missing: its half cancels the halves that the peers have put in.
        """
        for peer, peer_key in peer_keys.items():
            first, second = sorted((name, peer), key=self.indices.__getitem__)
            mask = derive(key.shared(peer_key), self.info("pairwise mask", first, second))
            add_mask(words, mask, negate=name == second)

    def limit_bytes(self, per_client: int) -> int:
        """Return the most bytes that a body with `per_client` bytes for each client of the cohort may have."""
        return 64 + sum(len(name.encode()) + per_client + 32 for name in self.clients)
