"""The server of an amortised sum: collect uploads, settle who is in the sum, open the self seeds, add.

A client that stays silent is a dropout. One that sends what no honest client would send is a dropout too, and named.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping

import numpy as np
from numpy.typing import NDArray

from confide.cohort.collect import Collector
from confide.crypto.keys import KEY_BYTES
from confide.crypto.ring import Words, add_words, unpack
from confide.crypto.shamir import SECRET_BYTES, Recovery
from confide.errors import ProtocolError
from confide.secagg.amortised_terms import (
    BOX_BYTES,
    PARCEL_BYTES,
    VECTOR,
    AmortisedTerms,
    Answer,
    Survivors,
    Upload,
    answer_tag,
    survivors_tag,
)
from confide.secagg.masked_server import MaskedSums
from confide.wire import Message, Party, Step, decode, encode


class Server:
    """One session at the server; `play` is its party.

    Args:
        terms: what all parties agree on.
    """

    def __init__(self, terms: AmortisedTerms) -> None:
        self._terms = terms
        self._from = Collector()
        self._uploads: dict[str, Upload] = {}
        self._survivors: tuple[str, ...] = terms.clients
        self._total: Words = np.zeros(terms.session.length, terms.dtype)
        self._pair_keys: dict[str, dict[str, bytes]] = {}  # by survivor, then by who is lost
        self._shares: dict[str, dict[str, bytes]] = {}  # by owner of the seed, then by holder of the share

    def play(self) -> Party:
        """Return the server's party; its output is `MaskedSums`."""
        yield from self._from.collect(VECTOR, self._terms.clients, self._accept_upload)
        stage, have = 0, set(self._uploads)
        while True:
            lost = self._move_on(have)
            if not lost:
                break
            have = yield from self._settle(stage, lost)
            stage += 1
        self._shares = {name: {} for name in self._survivors}
        yield from self._from.collect(
            answer_tag(stage),
            self._survivors,
            self._accept_shares,
            self._lists(stage, final=True),
            enough=lambda: all(len(shares) >= self._terms.quorum for shares in self._shares.values()),
        )
        self._unmask()
        return MaskedSums(self._decoded()[None, :], (frozenset(self._survivors),), self._from.blamed)

    # --- who is in the sum --------------------------------------------------------------------------------------------

    def _move_on(self, have: set[str]) -> list[str]:
        """Keep the survivors in `have` and return the others.

        Raises:
            Aborted: fewer than the quorum are left; nobody's self seed has been opened.
        """
        lost = [name for name in self._survivors if name not in have]
        self._survivors = tuple(name for name in self._survivors if name in have)
        if len(self._survivors) < self._terms.quorum:
            missing = ", ".join(name for name in self._terms.clients if name not in have)
            self._from.abort(f"Expected messages of at least quorum={self._terms.quorum} clients, missing: {missing}")
        for name in lost:  # a vector that is in already goes again: its self seed stays closed
            if name in self._uploads:
                words = unpack(self._uploads[name].words, self._terms.bits, self._terms.session.length)
                add_words(self._total, words, negate=True)
        return lost

    def _settle(self, stage: int, lost: list[str]) -> Generator[Step, Mapping[str, Message], set[str]]:
        """Ask the survivors for their pair keys with `lost` and return who answered."""
        answered: set[str] = set()

        def accept(name: str, body: bytes) -> None:
            self._accept_pair_keys(name, lost, body)
            answered.add(name)

        yield from self._from.collect(answer_tag(stage), self._survivors, accept, self._lists(stage, final=False))
        return answered

    def _lists(self, stage: int, *, final: bool) -> tuple[Message, ...]:
        return tuple(
            Message(self._terms.server, name, survivors_tag(stage), encode(self._list(name, final=final)))
            for name in self._survivors
        )

    def _list(self, receiver: str, *, final: bool) -> Survivors:
        senders = self._terms.others(receiver, self._survivors) if final else ()
        parcels = {sender: self._uploads[sender].parcels[receiver] for sender in senders}
        return Survivors(self._survivors, final, parcels)

    # --- what each stage accepts --------------------------------------------------------------------------------------

    def _accept_upload(self, name: str, body: bytes) -> None:
        terms = self._terms
        length, bits = terms.session.length, terms.bits
        limit = (length * bits + 7) // 8 + terms.limit_bytes(PARCEL_BYTES) + 4 * KEY_BYTES
        upload = decode(body, Upload, max_bytes=limit)
        sizes = {(len(p.box), len(p.of_share), len(p.of_pair_key)) for p in upload.parcels.values()}
        peers = terms.others(name, terms.clients)
        if upload.parcels.keys() != set(peers) or not sizes <= {(BOX_BYTES, KEY_BYTES, KEY_BYTES)}:
            raise ProtocolError("Expected one parcel for each other client of the cohort")
        add_words(self._total, unpack(upload.words, bits, length))
        self._uploads[name] = upload

    def _accept_pair_keys(self, name: str, lost: list[str], body: bytes) -> None:
        keys = self._answer(body)
        parcels = self._uploads[name].parcels
        if keys.keys() != set(lost) or any(
            len(key) != KEY_BYTES or self._terms.pair_commitment(name, peer, key) != parcels[peer].of_pair_key
            for peer, key in keys.items()
        ):
            raise ProtocolError("Expected the pair keys with the lost clients, as committed to")
        self._pair_keys.setdefault(name, {}).update(keys)

    def _accept_shares(self, holder: str, body: bytes) -> None:
        shares = self._answer(body)
        if not shares.keys() <= self._shares.keys():
            raise ProtocolError("Expected shares of the survivors only")
        for dealer, found in self._shares.items():
            upload, share = self._uploads[dealer], shares.get(dealer)
            expected = upload.own_share if dealer == holder else upload.parcels[holder].of_share
            if share is None:
                self._from.blame(dealer, f"dealt {holder} a parcel that did not hold, as {holder} says")
            elif self._terms.share_commitment(dealer, holder, share) != expected:
                self._from.blame(holder, f"answered with a wrong share of {dealer}'s self seed")
            else:
                found[holder] = share

    def _answer(self, body: bytes) -> dict[str, bytes]:
        return decode(body, Answer, max_bytes=self._terms.limit_bytes(SECRET_BYTES)).secrets

    # --- taking the masks away ----------------------------------------------------------------------------------------

    def _unmask(self) -> None:
        """Open the self seed of each survivor and take away whatever does not cancel among them."""
        recoveries: dict[tuple[str, ...], Recovery] = {}
        for name in self._survivors:
            self._terms.add_self_mask(self._total, name, self._opened(name, recoveries), undo=True)
            self._terms.add_pair_masks(self._total, name, self._pair_keys.get(name, {}), undo=True)

    def _opened(self, name: str, recoveries: dict[tuple[str, ...], Recovery]) -> bytes:
        terms, shares = self._terms, self._shares[name]
        if len(shares) < terms.quorum:
            self._from.abort(f"Expected quorum={terms.quorum} shares of {name}'s self seed, got {len(shares)}")
        holders = tuple(sorted(shares, key=terms.indices.__getitem__)[: terms.quorum])
        if holders not in recoveries:
            recoveries[holders] = Recovery([terms.indices[holder] for holder in holders])
        try:
            seed = recoveries[holders].secret([shares[holder] for holder in holders])
        except ProtocolError:
            seed = b""
        if terms.seed_commitment(name, seed) != self._uploads[name].commitment:
            self._from.blame(name, "dealt shares that do not open its self seed")
            self._from.abort("Expected seeds that open as committed; take the next attempt without whoever is named")
        return seed

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
