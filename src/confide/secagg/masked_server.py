"""The server of a masked sum: pass on keys and boxes, add the vectors as they come, take the masks away.

A client that stays silent is a dropout. One that sends what no honest client would send is a dropout too, and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from confide.cohort.collect import Collector
from confide.crypto.keys import KEY_BYTES, SIGNATURE_BYTES, verify
from confide.crypto.ring import Words, add_words, unpack
from confide.crypto.shamir import SECRET_BYTES, Recovery
from confide.errors import ProtocolError
from confide.ideal import Sums
from confide.secagg.masked_terms import (
    ADVERT_BYTES,
    BOX_BYTES,
    BOXES,
    CONFIRM,
    CONFIRMED,
    KEYS,
    MASK_SEED,
    PARCEL_BYTES,
    PEERS,
    SELF_SEED,
    SHARES,
    SURVIVORS,
    UNMASK,
    VECTOR,
    Advert,
    Adverts,
    Confirmation,
    Confirmations,
    MaskedVector,
    Parcel,
    Parcels,
    Shares,
    Survivors,
    Terms,
)
from confide.wire import Message, Party, decode, encode

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class MaskedSums(Sums):
    """The sum, and who misbehaved on the way to it.

    Args:
        blamed: what each named client did wrong.
    """

    blamed: Mapping[str, str] = field(default_factory=dict[str, str])


class Server:
    """One session at the server; `play` is its party.

    Args:
        terms: what all parties agree on.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._from = Collector()
        self._adverts: dict[str, Advert] = {}  # U1
        self._parcels: dict[str, dict[str, Parcel]] = {}  # U2: by sender, then by recipient
        self._total: Words = np.zeros(terms.session.length, terms.dtype)
        self._peers = b""  # the bitmap of U2
        self._signed: dict[str, bytes] = {}  # U3, in a sparse graph: signatures over U2
        self._survivors: dict[str, None] = {}  # U3
        self._view = b""  # what the survivors sign
        self._confirmed: dict[str, bytes] = {}  # U4: signatures
        self._answers: dict[str, dict[str, bytes]] = {}  # by owner of the seed, then by holder of the share
        self._recoveries: dict[tuple[int, ...], Recovery] = {}

    def play(self) -> Party:
        """Return the server's party; its output is `MaskedSums`."""
        terms = self._terms
        yield from self._from.collect(KEYS, terms.clients, self._accept_advert)
        self._refuse_repeated_keys()
        self._require("keys", self._adverts)
        keys = {name: encode(Adverts(self._near(name, self._adverts))) for name in self._adverts}
        yield from self._from.collect(SHARES, self._adverts, self._accept_parcels, self._to(PEERS, keys))
        self._leave_out_the_lonely()
        self._require("shares", self._parcels)
        self._peers = terms.bitmap(self._parcels)
        boxes = {name: encode(Parcels(self._addressed(name), self._peers)) for name in self._parcels}
        yield from self._from.collect(VECTOR, self._parcels, self._accept_vector, self._to(BOXES, boxes))
        self._require("masked vectors", self._survivors)
        self._require_one_piece()
        members = terms.bitmap(self._survivors)
        self._view = terms.view(self._peers, members)
        lists = {name: encode(Survivors(members, self._near(name, self._signed))) for name in self._survivors}
        yield from self._from.collect(CONFIRM, self._survivors, self._accept_confirmation, self._to(SURVIVORS, lists))
        self._require("confirmations", self._confirmed)
        enough = terms.in_order(self._confirmed)[: terms.quorum]
        signatures = encode(Confirmations({name: self._confirmed[name] for name in enough}))
        self._answers = {name: {} for name in self._parcels}
        yield from self._from.collect(
            UNMASK,
            self._confirmed,
            self._accept_shares,
            self._to(CONFIRMED, dict.fromkeys(terms.in_order(self._confirmed), signatures)),
            enough=self._has_all_shares,
        )
        self._unmask()
        return MaskedSums(self._decoded()[None, :], (frozenset(self._survivors),), self._from.blamed)

    def _to(self, tag: str, bodies: Mapping[str, bytes]) -> tuple[Message, ...]:
        return tuple(Message(self._terms.server, name, tag, body) for name, body in bodies.items())

    def _require(self, what: str, have: Iterable[str]) -> None:
        names = set(have)
        if len(names) < self._terms.quorum:
            missing = ", ".join(name for name in self._terms.clients if name not in names)
            self._from.abort(f"Expected {what} of at least quorum={self._terms.quorum} clients, missing: {missing}")

    def _near(self, name: str, found: Mapping[str, _Found]) -> dict[str, _Found]:
        """Return what there is of `name` and its neighbours."""
        return {holder: found[holder] for holder in self._terms.holders(name) if holder in found}

    def _leave_out_the_lonely(self) -> None:
        """Drop who has too few neighbours left to open its seeds, until nobody is: a complete graph has none."""
        if self._terms.graph.complete:
            return  # a quorum is a quorum of everybody
        lonely = [True]
        while lonely:
            lonely = [name for name in self._parcels if len(self._near(name, self._parcels)) < self._terms.threshold]
            for name in lonely:
                del self._parcels[name]

    def _require_one_piece(self) -> None:
        """End the sum when the survivors' graph is not what they will ask for; the next attempt draws another."""
        terms = self._terms
        for name in self._survivors:
            left = len(self._near(name, self._survivors))
            if not terms.graph.complete and left < terms.threshold:
                self._from.abort(
                    f"Expected {terms.enough} survivors, {name} included, got {left}; take the next "
                    "attempt, or more neighbours"
                )
        if not terms.graph.hold_together(self._survivors, terms.colluding):
            self._from.abort(
                f"Expected survivors whose graph holds together without any colluding={terms.colluding} of them; take "
                "the next attempt, or more neighbours"
            )

    # --- what each stage accepts --------------------------------------------------------------------------------------

    def _accept_advert(self, name: str, body: bytes) -> None:
        advert = decode(body, Advert, max_bytes=ADVERT_BYTES + 32)
        self._terms.check(name, advert)
        self._adverts[name] = advert

    def _refuse_repeated_keys(self) -> None:
        """Drop everyone who advertised a key that somebody advertised too: nobody knows whose secret it is."""
        owners: dict[bytes, str] = {}
        for name, advert in list(self._adverts.items()):
            for key in (advert.box_key, advert.mask_key):
                for twin in {name, owners[key]} if key in owners else ():
                    self._from.blame(twin, "advertised a key that was advertised twice")
                    self._adverts.pop(twin, None)
                owners.setdefault(key, name)

    def _accept_parcels(self, name: str, body: bytes) -> None:
        parcels = decode(body, Parcels, max_bytes=self._terms.limit_bytes(PARCEL_BYTES)).parcels
        sizes = {(len(p.box), len(p.of_mask_seed), len(p.of_self_seed)) for p in parcels.values()}
        if parcels.keys() != self._near(name, self._adverts).keys() or sizes != {(BOX_BYTES, KEY_BYTES, KEY_BYTES)}:
            raise ProtocolError("Expected one parcel for each neighbour in the session")
        self._parcels[name] = parcels

    def _addressed(self, receiver: str) -> dict[str, Parcel]:
        return {sender: parcels[receiver] for sender, parcels in self._near(receiver, self._parcels).items()}

    def _accept_vector(self, name: str, body: bytes) -> None:
        length, bits = self._terms.session.length, self._terms.bits
        masked = decode(body, MaskedVector, max_bytes=(length * bits + 7) // 8 + SIGNATURE_BYTES + 64)
        words = unpack(masked.words, bits, length)
        if not self._terms.graph.complete:
            verify(self._terms.identities[name], self._terms.masked_with(self._peers), masked.signature)
            self._signed[name] = masked.signature
        add_words(self._total, words)
        self._survivors[name] = None

    def _accept_confirmation(self, name: str, body: bytes) -> None:
        signature = decode(body, Confirmation, max_bytes=SIGNATURE_BYTES + 32).signature
        verify(self._terms.identities[name], self._view, signature)
        self._confirmed[name] = signature

    def _accept_shares(self, holder: str, body: bytes) -> None:
        shares = decode(body, Shares, max_bytes=self._terms.limit_bytes(SECRET_BYTES)).shares
        dealers = self._near(holder, self._parcels)
        if not shares.keys() <= dealers.keys():
            raise ProtocolError("Expected shares of neighbours in this session only")
        for dealer, parcels in dealers.items():
            purpose = self._purpose(dealer)
            share = shares.get(dealer)
            expected = parcels[holder].of_self_seed if purpose == SELF_SEED else parcels[holder].of_mask_seed
            if share is None:
                self._from.blame(dealer, f"dealt {holder} a parcel that did not hold, as {holder} says")
            elif self._terms.share_commitment(purpose, dealer, holder, share) != expected:
                self._from.blame(holder, f"answered with a wrong share of {dealer}'s {purpose}")
            else:
                self._answers[dealer][holder] = share

    def _purpose(self, name: str) -> str:
        """Return which seed of `name` is opened; of each client exactly one is."""
        return SELF_SEED if name in self._survivors else MASK_SEED

    def _has_all_shares(self) -> bool:
        return all(len(shares) >= self._terms.threshold for shares in self._answers.values())

    # --- taking the masks away ----------------------------------------------------------------------------------------

    def _unmask(self) -> None:
        """Open one seed of each client and take the masks away that it stands for."""
        seeds = {name: self._opened(name) for name in self._answers}
        for name, seed in seeds.items():
            if self._purpose(name) == SELF_SEED:
                if self._terms.seed_commitment(name, seed) != self._adverts[name].commitment:
                    self._abort_dealer(name)
                self._terms.add_self_mask(self._total, name, seed, undo=True)
            else:
                key = self._terms.mask_key(name, seed)
                if key.public != self._adverts[name].mask_key:
                    self._abort_dealer(name)
                peers = self._near(name, self._survivors)
                mask_keys = {peer: self._adverts[peer].mask_key for peer in peers}
                self._terms.add_pairwise_masks(self._total, name, key, mask_keys)

    def _opened(self, name: str) -> bytes:
        """Return the seed of `name` that its purpose calls for."""
        shares = self._answers[name]
        if len(shares) < self._terms.threshold:
            self._from.abort(
                f"Expected {self._terms.enough} shares of {name}'s {self._purpose(name)}, got {len(shares)}"
            )
        holders = self._terms.in_order(shares)[: self._terms.threshold]
        indices = tuple(self._terms.indices[holder] for holder in holders)
        if indices not in self._recoveries:
            self._recoveries[indices] = Recovery(indices)
        try:
            return self._recoveries[indices].secret([shares[holder] for holder in holders])
        except ProtocolError:
            self._abort_dealer(name)

    def _abort_dealer(self, name: str) -> NoReturn:
        """End the session because of shares that agree with their commitments and not with each other."""
        self._from.blame(name, f"dealt shares that do not open its {self._purpose(name)}")
        self._from.abort("Expected seeds that open as committed; take the next attempt without whoever is named")

    def _decoded(self) -> NDArray[np.int64]:
        """Return the sum as signed integers.

        Raises:
            Aborted: a value that no sum of honest vectors has.
        """
        shift = np.uint64(64 - self._terms.bits)
        values = (self._total.astype(np.uint64) << shift).view(np.int64) >> np.int64(shift)
        largest = len(self._survivors) * self._terms.session.bound
        if values.size and (values.max() > largest or values.min() < -largest):
            self._from.abort("Expected a sum within clients * bound; somebody's vector broke its bound")
        return values
