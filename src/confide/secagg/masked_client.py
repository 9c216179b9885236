"""The client of a masked sum: advertise keys, share seeds, send the masked vector, confirm who is left, reveal shares.

What must not happen twice is journaled before it leaves: the vector's exact bytes, the one view of the session that is
signed, and the one answer about shares. A client that is rebuilt after a crash sends the same bytes again; one that had
not come so far drops out.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping

import msgspec

from confide.crypto.keys import SIGNATURE_BYTES, AgreementKey, SigningKey, derive, label, seal, unseal, verify
from confide.crypto.random import Randomness
from confide.crypto.ring import Words, pack
from confide.crypto.shamir import SECRET_BYTES, draw_secret, split
from confide.errors import Aborted, ProtocolError
from confide.ideal import Vector
from confide.secagg.masked_terms import (
    ADVERT_BYTES,
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
from confide.wire import Message, Party, Step, Store, decode, encode


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client's journal of a run: its newest session, and the exact bytes that may leave again.

    The masked vector, which is large, is kept apart, and only until the server has named it among the survivors'.

    Args:
        round, attempt, context: which session.
        peers: the bitmap of U2, with whom the vector is masked; empty before that and after the end.
        shares: (of the mask seed, of the self seed) of each peer whose parcel held, while they may be asked for.
        survivors: the bitmap of U3, as the confirmation has it.
        confirmation, reply: bodies sent or about to be; empty before that and after the end.
    """

    round: int
    attempt: int
    context: bytes
    peers: bytes = b""
    shares: dict[str, tuple[bytes, bytes]] = {}
    survivors: bytes = b""
    confirmation: bytes = b""
    reply: bytes = b""


def journal_key(run: str) -> str:
    """Return where a client's store keeps the journal of `run`."""
    return f"masked/journal/{run}"


def vector_key(run: str) -> str:
    """Return where a client's store keeps the masked vector of the newest session of `run`."""
    return f"masked/vector/{run}"


class _Secrets:
    """What a client draws for one session."""

    def __init__(self, terms: Terms, me: str, rng: Randomness) -> None:
        self.box_key = AgreementKey(rng.bytes(32))
        self.mask_seed, self.self_seed = draw_secret(rng), draw_secret(rng)
        self.mask_key = terms.mask_key(me, self.mask_seed)


def play(terms: Terms, me: str, vector: Vector, identity: SigningKey, store: Store, rng: Randomness) -> Party:
    """Return the client's party. It has no output.

    Args:
        terms: what all parties agree on.
        me: one of the cohort's clients.
        vector: int64, within the session's bound; not looked at again if the journal holds a masked one.
        identity: the long-lived key of `me`.
        store: what the party reads its journal from.
        rng: secret randomness.
    """
    entry, body = _resumed(terms, store)
    if entry is None:
        entry, body = yield from _masked(terms, me, vector, identity, rng)
    if not entry.confirmation:
        kept = {vector_key(terms.session.run): body}
        received = yield _asking(terms, entry, (Message(me, terms.server, VECTOR, body),), SURVIVORS, kept)
        entry, body = _confirming(terms, me, entry, identity, received[terms.server].body), b""
    unsent = (Message(me, terms.server, CONFIRM, entry.confirmation),)
    if not entry.reply:
        received = yield _asking(terms, entry, unsent, CONFIRMED, {vector_key(terms.session.run): None})
        entry, unsent = msgspec.structs.replace(entry, reply=_reply(terms, entry, received[terms.server].body)), ()
    yield Step(send=(*unsent, Message(me, terms.server, UNMASK, entry.reply)), save=_journal(terms, entry))
    yield Step(save=_journal(terms, _opened_entry(terms)))


def _opened_entry(terms: Terms) -> Entry:
    """Return the entry that only says that the session was taken up: nothing may leave again."""
    return Entry(terms.session.round, terms.session.attempt, terms.context)


def _asking(terms: Terms, entry: Entry, send: tuple[Message, ...], tag: str, kept: Mapping[str, bytes | None]) -> Step:
    """Return the step that saves `entry` and `kept`, sends, and waits for the server's message `tag`."""
    return Step(send=send, await_tag=tag, wait_for=(terms.server,), save=_journal(terms, entry) | dict(kept))


def _journal(terms: Terms, entry: Entry) -> dict[str, bytes | None]:
    return {journal_key(terms.session.run): encode(entry)}


def _resumed(terms: Terms, store: Store) -> tuple[Entry | None, bytes]:
    """Return where to go on and the masked vector, which is empty once it need not leave again; None for a new session.

    Raises:
        Aborted: the journal knows this session or a newer one, and holds no bytes to send again.
    """
    saved = store.get(journal_key(terms.session.run))
    if saved is None:
        return None, b""
    entry = decode(saved, Entry, max_bytes=len(saved))
    if (terms.session.round, terms.session.attempt) > (entry.round, entry.attempt):
        return None, b""
    body = store.get(vector_key(terms.session.run)) or b""
    if entry.context == terms.context and entry.peers and (body or entry.confirmation):
        return entry, body
    raise Aborted(
        f"Expected a session after round={entry.round}, attempt={entry.attempt} of run={terms.session.run}; "
        "that one is in the journal, so take the next attempt"
    )


def _masked(
    terms: Terms, me: str, vector: Vector, identity: SigningKey, rng: Randomness
) -> Generator[Step, Mapping[str, Message], tuple[Entry, bytes]]:
    """Play the stages up to the masked vector; return the entry and the body to save before it leaves."""
    server = terms.server
    secrets = _Secrets(terms, me, rng)
    own = _advert(terms, me, secrets, identity)
    received = yield Step(
        send=(Message(me, server, KEYS, encode(own)),),
        await_tag=PEERS,
        wait_for=(server,),
        save=_journal(terms, _opened_entry(terms)) | {vector_key(terms.session.run): None},
    )
    adverts = _checked(terms, me, own, received[server].body)
    agreed = {name: secrets.box_key.shared(advert.box_key) for name, advert in adverts.items()}
    parcels = _dealt(terms, me, secrets, agreed, rng)
    received = yield Step(send=(Message(me, server, SHARES, encode(parcels)),), await_tag=BOXES, wait_for=(server,))
    peers, shares = _opened(terms, me, agreed, received[server].body)
    words = vector.astype(terms.dtype)  # two's complement: reduced modulo the width of a word
    alive = frozenset(terms.named(peers))
    mask_keys = {name: adverts[name].mask_key for name in terms.graph.of(me) if name in alive}
    terms.add_self_mask(words, me, secrets.self_seed)
    terms.add_pairwise_masks(words, me, secrets.mask_key, mask_keys)
    entry = msgspec.structs.replace(_opened_entry(terms), peers=peers, shares=shares)
    return entry, _packed(terms, words, peers, identity)


def _packed(terms: Terms, words: Words, peers: bytes, identity: SigningKey) -> bytes:
    signature = b"" if terms.graph.complete else identity.sign(terms.masked_with(peers))
    return encode(MaskedVector(pack(words, terms.bits), signature))


def _advert(terms: Terms, me: str, secrets: _Secrets, identity: SigningKey) -> Advert:
    keys = secrets.box_key.public, secrets.mask_key.public, terms.seed_commitment(me, secrets.self_seed)
    return Advert(*keys, signature=identity.sign(terms.signed(me, *keys)))


def _checked(terms: Terms, me: str, own: Advert, body: bytes) -> dict[str, Advert]:
    """Return the adverts of `me` and its neighbours, each checked against the pinned roster.

    Raises:
        ProtocolError: a stranger, a swapped, repeated or weak key, too few clients, or not the own advert.
    """
    adverts = decode(body, Adverts, max_bytes=terms.limit_bytes(ADVERT_BYTES)).adverts
    if not adverts.keys() <= set(terms.holders(me)) or len(adverts) < terms.threshold or adverts.get(me) != own:
        raise ProtocolError(f"Expected the keys of at least {terms.enough} clients of the cohort and the own")
    for name, advert in adverts.items():
        terms.check(name, advert)
    if len({key for advert in adverts.values() for key in (advert.box_key, advert.mask_key)}) < 2 * len(adverts):
        raise ProtocolError("Expected no key twice")
    return adverts


def _binding(terms: Terms, sender: str, receiver: str) -> bytes:
    return label(terms.info("box", sender, receiver), terms.indices[receiver])


def _dealt(terms: Terms, me: str, secrets: _Secrets, agreed: Mapping[str, bytes], rng: Randomness) -> Parcels:
    """Split both seeds among `me` and its neighbours, and seal one parcel for each."""
    indices = [terms.indices[name] for name in agreed]
    of_mask = split(secrets.mask_seed, threshold=terms.threshold, indices=indices, rng=rng)
    of_self = split(secrets.self_seed, threshold=terms.threshold, indices=indices, rng=rng)
    parcels: dict[str, Parcel] = {}
    for (name, shared), mask_share, self_share in zip(agreed.items(), of_mask, of_self, strict=True):
        binding = _binding(terms, me, name)
        parcels[name] = Parcel(
            seal(derive(shared, binding), mask_share + self_share, associated=binding),
            terms.share_commitment(MASK_SEED, me, name, mask_share),
            terms.share_commitment(SELF_SEED, me, name, self_share),
        )
    return Parcels(parcels)


def _opened(
    terms: Terms, me: str, agreed: Mapping[str, bytes], body: bytes
) -> tuple[bytes, dict[str, tuple[bytes, bytes]]]:
    """Return the bitmap of U2 and the shares of every neighbour in it whose parcel holds.

    A parcel that does not hold is its sender's fault or the server's, and no reason to leave the sum: its share will
    be missing from the reply, which tells the server whose it was.

    Raises:
        ProtocolError: too few in U2, too few parcels, a stranger's, or the own one missing; or parcels that are not
            those of the neighbours in U2.
    """
    told = decode(body, Parcels, max_bytes=terms.limit_bytes(PARCEL_BYTES))
    parcels, peers = told.parcels, frozenset(terms.named(told.peers))
    if len(peers) < terms.quorum or me not in peers:
        raise ProtocolError(f"Expected parcels of at least quorum={terms.quorum} clients of this session and the own")
    due = peers.intersection(terms.holders(me))
    if not parcels.keys() == due <= agreed.keys() or len(due) < terms.threshold:
        raise ProtocolError(f"Expected the parcels of all neighbours in this session, at least {terms.enough}")
    shares: dict[str, tuple[bytes, bytes]] = {}
    for name, parcel in parcels.items():
        binding = _binding(terms, name, me)
        try:
            both = unseal(derive(agreed[name], binding), parcel.box, associated=binding)
        except ProtocolError:
            continue
        mask_share, self_share = both[:SECRET_BYTES], both[SECRET_BYTES:]
        if (
            terms.share_commitment(MASK_SEED, name, me, mask_share) == parcel.of_mask_seed
            and terms.share_commitment(SELF_SEED, name, me, self_share) == parcel.of_self_seed
        ):
            shares[name] = mask_share, self_share
    return told.peers, shares


def _confirming(terms: Terms, me: str, entry: Entry, identity: SigningKey, body: bytes) -> Entry:
    """Return the journal with the one view of this session that `me` signs.

    Raises:
        ProtocolError: strangers among the survivors, too few of them, or `me` not among them. In a sparse graph also:
            too few neighbours, one that signed another U2, or a graph that could fall apart.
    """
    told = decode(body, Survivors, max_bytes=terms.limit_bytes(SIGNATURE_BYTES))
    survivors = frozenset(terms.named(told.members))
    if len(survivors) < terms.quorum or me not in survivors or not survivors <= set(terms.named(entry.peers)):
        raise ProtocolError(f"Expected at least quorum={terms.quorum} survivors, all masked with, and me")
    if not terms.graph.complete:
        _check_neighbourhood(terms, me, entry, survivors, told.signatures)
    signature = identity.sign(terms.view(entry.peers, told.members))
    return msgspec.structs.replace(entry, survivors=told.members, confirmation=encode(Confirmation(signature)))


def _check_neighbourhood(
    terms: Terms, me: str, entry: Entry, survivors: frozenset[str], signatures: Mapping[str, bytes]
) -> None:
    """Check what a complete graph has by itself: see "Why two stories open nothing" in docs/protocols/masked.md.

    Raises:
        ProtocolError: as said.
    """
    near = [name for name in terms.graph.of(me) if name in survivors]
    if len(near) + 1 < terms.threshold:
        raise ProtocolError(f"Expected {terms.enough} survivors, me included, got {len(near) + 1}")
    text = terms.masked_with(entry.peers)
    for name in near:
        if not _holds(terms.identities[name], text, signatures.get(name, b"")):
            raise ProtocolError(f"Expected {name} to have masked its vector with the same clients as mine")
    if not terms.graph.hold_together(survivors, terms.colluding):
        raise ProtocolError(
            f"Expected survivors whose graph holds together without any colluding={terms.colluding} of them; "
            "a sum over a part could come out, so no share leaves"
        )


def _reply(terms: Terms, entry: Entry, body: bytes) -> bytes:
    """Return the one answer of the session: of each peer the share of one seed, never of both.

    Raises:
        ProtocolError: fewer than a quorum of the survivors confirmed the very view that is in the journal.
    """
    signatures = decode(body, Confirmations, max_bytes=terms.limit_bytes(SIGNATURE_BYTES)).signatures
    view, agreeing = terms.view(entry.peers, entry.survivors), 0
    names = terms.named(entry.survivors)
    for name in names:
        if agreeing < terms.quorum and name in signatures:
            agreeing += _holds(terms.identities[name], view, signatures[name])
    if agreeing < terms.quorum:
        raise ProtocolError(
            f"Expected quorum={terms.quorum} survivors that confirm the same lists, got {agreeing}; "
            "the server may have told clients different stories, so no share leaves"
        )
    survivors = frozenset(names)
    return encode(
        Shares(
            {
                name: self_share if name in survivors else mask_share
                for name, (mask_share, self_share) in entry.shares.items()
            }
        )
    )


def _holds(public: bytes, text: bytes, signature: bytes) -> bool:
    try:
        verify(public, text, signature)
    except ProtocolError:
        return False
    return True
