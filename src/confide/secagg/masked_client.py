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
from confide.wire import Message, Party, Step, decode, encode


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client's journal of a run: its newest session, and the exact bytes that may leave again.

    Args:
        round, attempt, context: which session.
        vector, confirmation, reply: bodies sent or about to be; empty before that and after the end.
        keys: the digest of everybody's keys.
        peers: U2, with whom the vector is masked.
        survivors: U3, as the confirmation has it.
        shares: (of the mask seed, of the self seed) of each peer whose parcel held, while they may be asked for.
    """

    round: int
    attempt: int
    context: bytes
    vector: bytes = b""
    keys: bytes = b""
    peers: tuple[str, ...] = ()
    shares: dict[str, tuple[bytes, bytes]] = {}
    survivors: tuple[str, ...] = ()
    confirmation: bytes = b""
    reply: bytes = b""


def journal_key(run: str) -> str:
    """Return where a client's store keeps the journal of `run`."""
    return f"masked/journal/{run}"


class _Secrets:
    """What a client draws for one session."""

    def __init__(self, terms: Terms, me: str, rng: Randomness) -> None:
        self.box_key = AgreementKey(rng.bytes(32))
        self.mask_seed, self.self_seed = draw_secret(rng), draw_secret(rng)
        self.mask_key = terms.mask_key(me, self.mask_seed)


def play(terms: Terms, me: str, vector: Vector, identity: SigningKey, saved: bytes | None, rng: Randomness) -> Party:
    """Return the client's party. It has no output.

    Args:
        terms: what all parties agree on.
        me: one of the cohort's clients.
        vector: int64, within the session's bound; not looked at again if the journal holds a masked one.
        identity: the long-lived key of `me`.
        saved: what the store holds under `journal_key`.
        rng: secret randomness.
    """
    entry = _resumed(terms, saved)
    if entry is None:
        entry = yield from _masked(terms, me, vector, identity, rng)
    unsent = (Message(me, terms.server, VECTOR, entry.vector),)
    if not entry.confirmation:
        received = yield _asking(terms, entry, unsent, SURVIVORS)
        entry, unsent = _confirming(terms, me, entry, identity, received[terms.server].body), ()
    unsent += (Message(me, terms.server, CONFIRM, entry.confirmation),)
    if not entry.reply:
        received = yield _asking(terms, entry, unsent, CONFIRMED)
        entry, unsent = msgspec.structs.replace(entry, reply=_reply(terms, entry, received[terms.server].body)), ()
    yield Step(send=(*unsent, Message(me, terms.server, UNMASK, entry.reply)), save=_journal(terms, entry))
    yield Step(save=_journal(terms, _opened_entry(terms)))


def _opened_entry(terms: Terms) -> Entry:
    """Return the entry that only says that the session was taken up: nothing may leave again."""
    return Entry(terms.session.round, terms.session.attempt, terms.context)


def _asking(terms: Terms, entry: Entry, send: tuple[Message, ...], tag: str) -> Step:
    """Return the step that saves `entry`, sends, and waits for the server's message `tag`."""
    return Step(send=send, await_tag=tag, wait_for=(terms.server,), save=_journal(terms, entry))


def _journal(terms: Terms, entry: Entry) -> dict[str, bytes | None]:
    return {journal_key(terms.session.run): encode(entry)}


def _resumed(terms: Terms, saved: bytes | None) -> Entry | None:
    """Return where to go on, or None for a new session.

    Raises:
        Aborted: the journal knows this session or a newer one, and holds no bytes to send again.
    """
    if saved is None:
        return None
    entry = decode(saved, Entry, max_bytes=len(saved))
    if (terms.session.round, terms.session.attempt) > (entry.round, entry.attempt):
        return None
    if entry.context == terms.context and entry.vector:
        return entry
    raise Aborted(
        f"Expected a session after round={entry.round}, attempt={entry.attempt} of run={terms.session.run}; "
        "that one is in the journal, so take the next attempt"
    )


def _masked(
    terms: Terms, me: str, vector: Vector, identity: SigningKey, rng: Randomness
) -> Generator[Step, Mapping[str, Message], Entry]:
    """Play the stages up to the masked vector and return the entry to save before it leaves."""
    server = terms.server
    secrets = _Secrets(terms, me, rng)
    own = _advert(terms, me, secrets, identity)
    received = yield Step(
        send=(Message(me, server, KEYS, encode(own)),),
        await_tag=PEERS,
        wait_for=(server,),
        save=_journal(terms, _opened_entry(terms)),
    )
    adverts = _checked(terms, me, own, received[server].body)
    agreed = {name: secrets.box_key.shared(advert.box_key) for name, advert in adverts.items()}
    parcels = _dealt(terms, me, secrets, agreed, rng)
    received = yield Step(send=(Message(me, server, SHARES, encode(parcels)),), await_tag=BOXES, wait_for=(server,))
    peers, shares = _opened(terms, me, agreed, received[server].body)
    words = vector.astype(terms.dtype)  # two's complement: reduced modulo the width of a word
    mask_keys = {name: adverts[name].mask_key for name in terms.neighbours(me, peers)}
    terms.add_self_mask(words, me, secrets.self_seed)
    terms.add_pairwise_masks(words, me, secrets.mask_key, mask_keys)
    opened = _opened_entry(terms)
    return msgspec.structs.replace(
        opened, vector=_packed(terms, words), keys=terms.keys_digest(adverts), peers=peers, shares=shares
    )


def _packed(terms: Terms, words: Words) -> bytes:
    return encode(MaskedVector(pack(words, terms.bits)))


def _advert(terms: Terms, me: str, secrets: _Secrets, identity: SigningKey) -> Advert:
    keys = secrets.box_key.public, secrets.mask_key.public, terms.seed_commitment(me, secrets.self_seed)
    return Advert(*keys, signature=identity.sign(terms.signed(me, *keys)))


def _checked(terms: Terms, me: str, own: Advert, body: bytes) -> dict[str, Advert]:
    """Return everybody's adverts, each checked against the pinned roster.

    Raises:
        ProtocolError: a stranger, a swapped, repeated or weak key, too few clients, or not the own advert.
    """
    adverts = decode(body, Adverts, max_bytes=terms.limit_bytes(ADVERT_BYTES)).adverts
    if not adverts.keys() <= set(terms.clients) or len(adverts) < terms.quorum or adverts.get(me) != own:
        raise ProtocolError(f"Expected the keys of at least quorum={terms.quorum} clients of the cohort and the own")
    for name, advert in adverts.items():
        terms.check(name, advert)
    if len({key for advert in adverts.values() for key in (advert.box_key, advert.mask_key)}) < 2 * len(adverts):
        raise ProtocolError("Expected no key twice")
    return adverts


def _binding(terms: Terms, sender: str, receiver: str) -> bytes:
    return label(terms.info("box", sender, receiver), terms.indices[receiver])


def _dealt(terms: Terms, me: str, secrets: _Secrets, agreed: Mapping[str, bytes], rng: Randomness) -> Parcels:
    """Split both seeds among everybody, `me` included, and seal one parcel for each."""
    indices = [terms.indices[name] for name in agreed]
    of_mask = split(secrets.mask_seed, threshold=terms.quorum, indices=indices, rng=rng)
    of_self = split(secrets.self_seed, threshold=terms.quorum, indices=indices, rng=rng)
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
) -> tuple[tuple[str, ...], dict[str, tuple[bytes, bytes]]]:
    """Return U2 and the shares of everyone in it whose parcel holds.

    A parcel that does not hold is its sender's fault or the server's, and no reason to leave the sum: its share will
    be missing from the reply, which tells the server whose it was.

    Raises:
        ProtocolError: too few parcels, a stranger's, or the own one missing.
    """
    parcels = decode(body, Parcels, max_bytes=terms.limit_bytes(PARCEL_BYTES)).parcels
    if not parcels.keys() <= agreed.keys() or me not in parcels or len(parcels) < terms.quorum:
        raise ProtocolError(f"Expected parcels of at least quorum={terms.quorum} clients of this session and the own")
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
    return tuple(parcels), shares


def _confirming(terms: Terms, me: str, entry: Entry, identity: SigningKey, body: bytes) -> Entry:
    """Return the journal with the one view of this session that `me` signs.

    Raises:
        ProtocolError: strangers or repeats among the survivors, too few of them, or `me` not among them.
    """
    names = decode(body, Survivors, max_bytes=terms.limit_bytes(0)).names
    survivors = frozenset(names)
    if len(survivors) < max(len(names), terms.quorum) or me not in survivors or not survivors <= set(entry.peers):
        raise ProtocolError(f"Expected at least quorum={terms.quorum} different survivors, all masked with, and me")
    signature = identity.sign(terms.view(entry.keys, entry.peers, names))
    return msgspec.structs.replace(entry, survivors=names, confirmation=encode(Confirmation(signature)))


def _reply(terms: Terms, entry: Entry, body: bytes) -> bytes:
    """Return the one answer of the session: of each peer the share of one seed, never of both.

    Raises:
        ProtocolError: fewer than a quorum of the survivors confirmed the very view that is in the journal.
    """
    signatures = decode(body, Confirmations, max_bytes=terms.limit_bytes(SIGNATURE_BYTES)).signatures
    view, agreeing = terms.view(entry.keys, entry.peers, entry.survivors), 0
    for name in entry.survivors:
        if agreeing < terms.quorum and name in signatures:
            agreeing += _holds(terms.identities[name], view, signatures[name])
    if agreeing < terms.quorum:
        raise ProtocolError(
            f"Expected quorum={terms.quorum} survivors that confirm the same keys and lists, got {agreeing}; "
            "the server may have told clients different stories, so no share leaves"
        )
    survivors = frozenset(entry.survivors)
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
