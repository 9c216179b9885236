"""What travels in a masked sum, and what all its parties agree on before the first message."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping

import msgspec

from confide.cohort.roster import Roster
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
from confide.errors import ProtocolError, UsageError
from confide.ideal import Session
from confide.secagg.neighbours import Neighbours

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
    """The adverts of the recipient and its neighbours, by name."""

    adverts: dict[str, Advert]


class Parcel(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A share of each seed in a box for one recipient, and commitments by which the server checks both later."""

    box: bytes
    of_mask_seed: bytes
    of_self_seed: bytes


class Parcels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parcels by recipient on the way up, by sender on the way down.

    Args:
        peers: U2 as a bitmap, on the way down; empty on the way up.
    """

    parcels: dict[str, Parcel]
    peers: bytes = b""


class MaskedVector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The masked words, packed, and in a sparse graph a signature over the U2 that they are masked with."""

    words: bytes
    signature: bytes


class Survivors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose vectors are in the sum: the one list that says which share of whom a client may reveal.

    Args:
        members: U3 as a bitmap.
        signatures: in a sparse graph, those over U2 of the recipient's neighbours in U3.
    """

    members: bytes
    signatures: dict[str, bytes]


class Confirmation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A survivor's signature over its view of the session: the U2 and U3 that it was told."""

    signature: bytes


class Confirmations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A quorum of confirmations by name: they show each client that enough others were told the same."""

    signatures: dict[str, bytes]


class Shares(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One share per client whose parcel one holds: of the self seed of a survivor, of the mask seed of the others."""

    shares: dict[str, bytes]


class Terms:
    """A session, the roster, and what follows from both without a message.

    Args:
        session: what is summed.
        roster: the pinned one; it may list more clients than the cohort.
        degree: how many neighbours a client has; clients - 1 and more are the complete graph.
        colluding: c, how many clients may pool what they see with the server.
        graphs: by their seeds, so that parties in one process draw one once; a new one is put in.

    Raises:
        UsageError: a client of the cohort is not in the roster, or the ring is wider than 64 bits.
    """

    def __init__(
        self,
        session: Session,
        roster: Roster,
        *,
        degree: int,
        colluding: int,
        graphs: dict[bytes, Neighbours] | None = None,
    ) -> None:
        self.session, self.clients, self.quorum = session, session.cohort.clients, session.cohort.quorum
        self.colluding, complete = colluding, degree >= len(self.clients) - 1
        #: t of a seed: shares that open it.
        self.threshold = self.quorum if complete else degree // 2 + 1
        self.enough = f"quorum={self.quorum}" if complete else f"{self.threshold} neighbours'"
        self.server = session.cohort.server
        self.identities, self.indices = roster.keys(), roster.indices()
        strangers = [name for name in self.clients if name not in self.identities]
        if strangers:
            raise UsageError(f"Expected clients of the pinned roster, not {', '.join(strangers)}; run setup with them")
        self.bits = max(1, session.ring_bits)
        self.dtype = word_dtype(self.bits)
        graph = "complete" if complete else f"{degree}, {self.threshold}"
        agreed = label("confide masked v3", session.context, roster.digest, graph, colluding)
        self.context = hashlib.sha256(agreed).digest()
        graphs = {} if graphs is None else graphs
        graph = graphs.get(self.context)
        if graph is None:
            graphs.clear()  # the newest session's is all that anybody needs again
            graph = graphs[self.context] = Neighbours(self.clients, degree, self.context)
        self.graph = graph
        self._positions = {name: position for position, name in enumerate(self.clients)}
        self._holders: dict[str, tuple[str, ...]] = {}
        self._largest_name = max(len(name.encode()) for name in self.clients)

    def holders(self, name: str) -> tuple[str, ...]:
        """Return who holds shares of the seeds of `name`, in the roster's order: its neighbours and itself."""
        if name not in self._holders:
            self._holders[name] = self.in_order((*self.graph.of(name), name))
        return self._holders[name]

    def bitmap(self, names: Collection[str]) -> bytes:
        """Return a list of clients as one bit for each of the cohort, the first in the lowest bit of the first byte."""
        bits = sum(1 << self._positions[name] for name in names)
        return bits.to_bytes((len(self.clients) + 7) // 8, "little")

    def named(self, bitmap: bytes) -> tuple[str, ...]:
        """Return the clients of a bitmap, in the cohort's order.

        Raises:
            ProtocolError: it is not as long as the cohort's, or names nobody of it.
        """
        bits = int.from_bytes(bitmap, "little")
        if len(bitmap) != (len(self.clients) + 7) // 8 or bits >> len(self.clients):
            raise ProtocolError("Expected a list of clients of the cohort")
        return tuple(name for position, name in enumerate(self.clients) if bits >> position & 1)

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

    def masked_with(self, peers: bytes) -> bytes:
        """Return what the signature beside a masked vector is over: the bitmap of U2."""
        return label(self.info("peers"), peers)

    def view(self, peers: bytes, survivors: bytes) -> bytes:
        """Return what a confirmation is a signature over: the bitmaps of U2 and U3."""
        return label(self.info("view"), peers, survivors)

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
        return 64 + len(self.clients) * (self._largest_name + per_client + 32)
