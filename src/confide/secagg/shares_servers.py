"""The two servers of a sum of shares: each enforces the quorum by itself, together they check norms.

Who sends what no honest client would send is left out and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from confide.cohort.collect import Collector
from confide.cohort.parcel import Parcel
from confide.crypto.keys import AgreementKey
from confide.crypto.ring import Words, add_words, pack, unpack
from confide.errors import Aborted, ProtocolError
from confide.ideal import Sums, Vector
from confide.secagg.norm_check import Opening
from confide.secagg.shares_terms import (
    MASKS,
    PARCEL_BYTES,
    RECEIVED,
    UPLOAD,
    Masks,
    Received,
    Terms,
    Upload,
    limit_bytes,
)
from confide.wire import Message, Party, Step, Store, decode, encode


@dataclass(frozen=True, slots=True)
class SharesSums(Sums):
    """The sum, and who misbehaved on the way to it.

    Args:
        blamed: what each named client did wrong.
    """

    blamed: Mapping[str, str] = field(default_factory=dict[str, str])


class MainServer:
    """One session at the main server; `play` is its party.

    Args:
        terms: what all parties agree on.
        point_secret: from its store, when norms are checked.
    """

    def __init__(self, terms: Terms, point_secret: bytes = b"") -> None:
        self._terms = terms
        self._from = Collector()
        self._parcels: dict[str, Parcel] = {}
        self._words: dict[str, Words] = {}
        self._openings: dict[str, Opening] = {}
        self._point = terms.norm.draw_point(point_secret) if terms.norm else b""

    def play(self) -> Party:
        """Collect, let the helper say which of them it can open and lets pass, add its masks."""
        terms = self._terms
        yield from self._from.collect(UPLOAD, terms.cohort.clients, self._accept)
        names = tuple(name for name in terms.cohort.clients if name in self._parcels)
        terms.require(names, "server")
        openings = {name: self._openings[name] for name in names} if terms.norm else {}
        request = encode(Received({name: self._parcels[name] for name in names}, openings, self._point))
        received = yield Step(
            send=(Message(terms.cohort.server, terms.cohort.helper, RECEIVED, request),),
            await_tag=MASKS,
            wait_for=(terms.cohort.helper,),
        )
        limit = limit_bytes(terms.cohort, 0) + terms.words_bytes
        masks = decode(received[terms.cohort.helper].body, Masks, max_bytes=limit)
        agreed = tuple(name for name in names if name in masks.names)
        failed = tuple(name for name in names if name in masks.failed)
        if masks.names != agreed or masks.failed != failed or set(agreed) & set(failed):
            raise Aborted("Expected the helper's sets to lie within the server's, in the cohort's order")
        self._blame(names, masks)
        terms.require(agreed, "server")
        return SharesSums(self._sum(masks)[None, :], (frozenset(agreed),), self._from.blamed)

    def _accept(self, name: str, body: bytes) -> None:
        terms, norm = self._terms, self._terms.norm
        limit = terms.words_bytes + PARCEL_BYTES + 64 + (norm.evidence_bytes if norm else 0)
        upload = decode(body, Upload, max_bytes=limit)
        if (upload.evidence is None) != (norm is None):
            raise ProtocolError("Expected evidence with a norm bound, and none without")
        words = unpack(upload.words, terms.bits, terms.session.length)
        if norm is None or upload.evidence is None:
            terms.check(name, upload.parcel)
        else:
            claims = norm.claims(name, upload.words, upload.evidence)
            terms.check(name, upload.parcel, signed=claims.signed)
            self._openings[name] = norm.open(name, words, upload.evidence, claims, self._point)
        self._parcels[name], self._words[name] = upload.parcel, words

    def _blame(self, names: tuple[str, ...], masks: Masks) -> None:
        for name in names:
            if name in masks.failed:
                self._from.blame(name, "sent a vector beyond norm_bound, or a proof that does not hold")
            elif name not in masks.names:
                self._from.blame(name, "sealed a share that the helper cannot open")

    def _sum(self, masks: Masks) -> Vector:
        terms = self._terms
        total = unpack(masks.words, terms.bits, terms.session.length)
        for name in masks.names:
            add_words(total, self._words[name])
        shift = np.uint64(64 - terms.bits)
        values = (total.astype(np.uint64) << shift).view(np.int64) >> np.int64(shift)
        largest = len(masks.names) * terms.session.bound
        if values.size and (values.max() > largest or values.min() < -largest):
            raise Aborted("Expected a sum within clients * bound; somebody's share is wrong")
        return values


def assist(terms: Terms, key: AgreementKey, store: Store) -> Party:
    """Return the helper's party: open what can be opened, release the sum of the masks of what passes, once.

    Args:
        terms: what all parties agree on.
        key: opens the parcels.
        store: with the journal.
    """
    server = terms.cohort.server
    body = terms.journal.resumed(store)
    if body is None:
        received = yield Step(await_tag=RECEIVED, wait_for=(server,))
        limit = limit_bytes(terms.cohort, PARCEL_BYTES)
        limit += limit_bytes(terms.cohort, terms.norm.opening_bytes) if terms.norm else 0
        body = encode(_answer(terms, key, decode(received[server].body, Received, max_bytes=limit)))
    yield Step(send=(Message(terms.cohort.helper, server, MASKS, body),), save=terms.journal.entry(body))


def _answer(terms: Terms, key: AgreementKey, asked: Received) -> Masks:
    """Return the sum of the masks; whoever is left out is so by the client's fault or the server's, and both see it."""
    names: list[str] = []
    failed: list[str] = []
    total = np.zeros(terms.session.length, terms.dtype)
    for name in terms.cohort.clients:
        try:
            if name in asked.parcels:
                passed = _add(terms, key, asked, name, total)
                (names if passed else failed).append(name)
        except ProtocolError:
            continue
    terms.require(tuple(names), "helper")
    return Masks(tuple(names), pack(total, terms.bits), tuple(failed))


def _add(terms: Terms, key: AgreementKey, asked: Received, name: str, total: Words) -> bool:
    """Add the mask of `name` to `total` if its norm passes, and return whether it does.

    Raises:
        ProtocolError: its parcel does not open, or the server's half of the check is not well-formed.
    """
    if terms.norm is None:
        terms.add_share(total, name, terms.open_seed(name, asked.parcels[name], key))
        return True
    opening = asked.openings.get(name)
    if opening is None:
        raise ProtocolError("Expected the main server's half of the check")
    seed = terms.open_seed(name, asked.parcels[name], key, signed=opening.signed)
    mask = np.zeros_like(total)
    terms.add_share(mask, name, seed)
    passed = terms.norm.accepts(name, seed, mask, opening, asked.point)
    if passed:
        add_words(total, mask)
    return passed
