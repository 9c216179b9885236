"""What travels in an amortised sum, and what all its parties agree on before the first message."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from confide.cohort.roster import Roster
from confide.crypto.keys import KEY_BYTES, SEAL_BYTES, commit, derive, expand, label
from confide.crypto.masks import add_mask
from confide.crypto.ring import Words, word_dtype
from confide.crypto.shamir import SECRET_BYTES
from confide.errors import UsageError
from confide.ideal import Session

VECTOR = "amortised/vector"

BOX_BYTES = SECRET_BYTES + SEAL_BYTES
PARCEL_BYTES = BOX_BYTES + 2 * KEY_BYTES


def survivors_tag(stage: int) -> str:
    """Return the tag of the server's list number `stage` in a sum, from 0."""
    return f"amortised/survivors/{stage}"


def answer_tag(stage: int) -> str:
    """Return the tag of the answer to list number `stage`."""
    return f"amortised/answer/{stage}"


class Parcel(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """For one recipient: its share of the sender's self seed, sealed, and commitments to the share and the pair key."""

    box: bytes
    of_share: bytes
    of_pair_key: bytes


class Upload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a client says before it is asked: the commitment to its self seed, parcels, the masked words, packed."""

    commitment: bytes
    own_share: bytes
    parcels: dict[str, Parcel]
    words: bytes


class Survivors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose vectors the server still counts on.

    Args:
        names: never more than in the list before.
        final: False asks for the pair keys with whoever is new to the lost; True for shares of the self seeds.
        parcels: those for the recipient, by sender, with the final list.
    """

    names: tuple[str, ...]
    final: bool
    parcels: dict[str, Parcel]


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One secret per client: the pair key with one that is lost, or a share of the self seed of a survivor."""

    secrets: dict[str, bytes]


class AmortisedTerms:
    """A session, the roster, the book of keys, and what follows from them without a message.

    Args:
        session: what is summed.
        roster: the pinned one; it may list more clients than the cohort.
        book_digest: of the public keys that set-up pinned.
        epoch: of the session's round.

    Raises:
        UsageError: a client of the cohort is not in the roster, or the ring is wider than 64 bits.
    """

    def __init__(self, session: Session, roster: Roster, book_digest: bytes, epoch: int) -> None:
        self.session, self.clients, self.quorum = session, session.cohort.clients, session.cohort.quorum
        self.server, self.epoch, self.indices = session.cohort.server, epoch, roster.indices()
        strangers = [name for name in self.clients if name not in self.indices]
        if strangers:
            raise UsageError(f"Expected clients of the pinned roster, not {', '.join(strangers)}; run setup with them")
        self.bits = max(1, session.ring_bits)
        self.dtype = word_dtype(self.bits)
        self.context = hashlib.sha256(
            label("confide amortised v1", session.context, roster.digest, book_digest, epoch)
        ).digest()

    def others(self, me: str, names: Iterable[str]) -> tuple[str, ...]:
        """Return `names` without `me`."""
        return tuple(name for name in names if name != me)

    def pair_key(self, pair_secret: bytes, one: str, other: str) -> bytes:
        """Return the key of the mask of a pair in this session; it tells nothing about any other session."""
        return expand(pair_secret, self._info("pairwise mask", *self._in_order(one, other)))

    def box_key(self, pair_secret: bytes, sender: str, receiver: str) -> bytes:
        """Return the key of the one box from `sender` to `receiver`."""
        return expand(pair_secret, self._info("box", sender, receiver))

    def pair_commitment(self, one: str, other: str, key: bytes) -> bytes:
        """Return the commitment to the key of the mask of a pair."""
        return commit(key, self._info("pair key", *self._in_order(one, other)))

    def share_commitment(self, dealer: str, holder: str, share: bytes) -> bytes:
        """Return the commitment to the share of the self seed that `dealer` gave to `holder`."""
        return commit(share, self._info("share", dealer, holder))

    def seed_commitment(self, name: str, seed: bytes) -> bytes:
        """Return the commitment to the self seed of `name`."""
        return commit(seed, self._info("self seed", name))

    def add_self_mask(self, words: Words, name: str, seed: bytes, *, undo: bool = False) -> None:
        """Add the mask that `name` shares with nobody, or take it away."""
        add_mask(words, derive(seed, self._info("self mask", name)), negate=undo)

    def add_pair_masks(self, words: Words, me: str, keys: Mapping[str, bytes], *, undo: bool = False) -> None:
        """Add `me`'s half of the masks with the peers, or take it away: the first in the roster adds."""
        for peer, key in keys.items():
            add_mask(words, key, negate=(self.indices[me] > self.indices[peer]) != undo)

    def limit_bytes(self, per_client: int) -> int:
        """Return the most bytes that a body with `per_client` bytes for each client of the cohort may have."""
        return 64 + sum(len(name.encode()) + per_client + 32 for name in self.clients)

    def _info(self, purpose: str, *names: str) -> bytes:
        return label(self.context, purpose, *names)

    def _in_order(self, one: str, other: str) -> tuple[str, ...]:
        return tuple(sorted((one, other), key=self.indices.__getitem__))
