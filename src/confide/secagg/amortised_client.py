"""The client of an amortised sum: one upload, then one answer to each list of survivors until the final one.

Everything that leaves is journaled before it does. A client that is rebuilt after a crash sends the same bytes again.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from confide.crypto.keys import seal, unseal
from confide.crypto.random import Randomness
from confide.crypto.ring import pack
from confide.crypto.shamir import draw_secret, split
from confide.errors import Aborted, ProtocolError
from confide.ideal import Vector
from confide.secagg.amortised_terms import (
    PARCEL_BYTES,
    VECTOR,
    AmortisedTerms,
    Answer,
    Parcel,
    Survivors,
    Upload,
    answer_tag,
    survivors_tag,
)
from confide.wire import Message, Party, Step, decode, encode


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client's journal of a run: its newest session, and the exact bytes that may leave again.

    Args:
        round, attempt, context: which session.
        upload, answers: bodies sent or about to be, the answers in the order of the lists; empty after the end.
        survivors: the newest list; everybody at the start.
        own_share: of the own self seed.
        final: the last answer has been given.
    """

    round: int
    attempt: int
    context: bytes
    upload: bytes = b""
    survivors: tuple[str, ...] = ()
    own_share: bytes = b""
    answers: tuple[bytes, ...] = ()
    final: bool = False


def journal_key(run: str) -> str:
    """Return where a client's store keeps the journal of `run`."""
    return f"amortised/journal/{run}"


def play(
    terms: AmortisedTerms,
    me: str,
    vector: Vector,
    pair_secrets: Mapping[str, bytes],
    entry: Entry | None,
    moved: Mapping[str, bytes | None],
    rng: Randomness,
) -> Party:
    """Return the client's party. It has no output.

    Args:
        terms: what all parties agree on.
        me: one of the cohort's clients.
        vector: int64, within the session's bound; not looked at again if the journal holds a masked one.
        pair_secrets: what `me` shares with each other client of the cohort during the epoch.
        entry: from `resumed`.
        moved: saved together with the upload: the epoch's secret.
        rng: secret randomness.
    """
    entry = entry or _uploaded(terms, me, vector, pair_secrets, rng)
    bodies = {VECTOR: entry.upload} | {answer_tag(stage): body for stage, body in enumerate(entry.answers)}
    send = tuple(Message(me, terms.server, tag, body) for tag, body in bodies.items())
    while not entry.final:
        stage = len(entry.answers)
        received = yield Step(
            send=send,
            await_tag=survivors_tag(stage),
            wait_for=(terms.server,),
            save=_journal(terms, entry) | dict(moved),
        )
        entry = _answered(terms, me, pair_secrets, entry, received[terms.server].body)
        send = (Message(me, terms.server, answer_tag(stage), entry.answers[-1]),)
    yield Step(send=send, save=_journal(terms, entry))
    yield Step(save=_journal(terms, Entry(entry.round, entry.attempt, entry.context)))


def resumed(terms: AmortisedTerms, saved: bytes | None) -> Entry | None:
    """Return where to go on, or None for a new session.

    Raises:
        Aborted: the journal knows this session or a newer one, and holds no bytes to send again.
    """
    if saved is None:
        return None
    entry = decode(saved, Entry, max_bytes=len(saved))
    if (terms.session.round, terms.session.attempt) > (entry.round, entry.attempt):
        return None
    if entry.context == terms.context and entry.upload:
        return entry
    raise Aborted(
        f"Expected a session after round={entry.round}, attempt={entry.attempt} of run={terms.session.run}; "
        "that one is in the journal, so take the next attempt"
    )


def _journal(terms: AmortisedTerms, entry: Entry) -> dict[str, bytes | None]:
    return {journal_key(terms.session.run): encode(entry)}


def _uploaded(
    terms: AmortisedTerms, me: str, vector: Vector, pair_secrets: Mapping[str, bytes], rng: Randomness
) -> Entry:
    """Mask the vector, share the self seed, and return the entry to save before the upload leaves."""
    self_seed = draw_secret(rng)
    indices = [terms.indices[name] for name in terms.clients]
    dealt = split(self_seed, threshold=terms.quorum, indices=indices, rng=rng)
    shares = dict(zip(terms.clients, dealt, strict=True))
    keys = {peer: terms.pair_key(pair_secrets[peer], me, peer) for peer in terms.others(me, terms.clients)}
    words = vector.astype(terms.dtype)  # two's complement: reduced modulo the width of a word
    terms.add_self_mask(words, me, self_seed)
    terms.add_pair_masks(words, me, keys)
    upload = Upload(
        terms.seed_commitment(me, self_seed),
        terms.share_commitment(me, me, shares[me]),
        {
            peer: Parcel(
                seal(terms.box_key(pair_secrets[peer], me, peer), shares[peer], associated=terms.context),
                terms.share_commitment(me, peer, shares[peer]),
                terms.pair_commitment(me, peer, key),
            )
            for peer, key in keys.items()
        },
        pack(words, terms.bits),
    )
    session = terms.session
    return Entry(session.round, session.attempt, terms.context, encode(upload), terms.clients, shares[me])


def _answered(terms: AmortisedTerms, me: str, pair_secrets: Mapping[str, bytes], entry: Entry, body: bytes) -> Entry:
    """Return the entry with the answer to one more list.

    Lists only shrink and the final one repeats the last, so nobody is ever among the lost and among the survivors: of
    each peer either the pair key leaves or a share of its self seed.

    Raises:
        ProtocolError: strangers or repeats among the survivors, too few, `me` not among them, or someone back from the
            lost.
    """
    survivors = decode(body, Survivors, max_bytes=terms.limit_bytes(PARCEL_BYTES) + terms.limit_bytes(0))
    names, before = frozenset(survivors.names), frozenset(entry.survivors)
    if len(names) < max(len(survivors.names), terms.quorum) or me not in names:
        raise ProtocolError(f"Expected at least quorum={terms.quorum} different survivors, and me")
    if not (names == before if survivors.final else names < before):
        raise ProtocolError("Expected lists of survivors that shrink until the final one repeats the last")
    if survivors.final:
        secrets = _self_shares(terms, me, pair_secrets, entry, survivors)
    else:
        lost = [name for name in entry.survivors if name not in names]
        secrets = {name: terms.pair_key(pair_secrets[name], me, name) for name in lost}
    return msgspec.structs.replace(
        entry,
        survivors=tuple(name for name in entry.survivors if name in names),
        answers=(*entry.answers, encode(Answer(secrets))),
        final=survivors.final,
    )


def _self_shares(
    terms: AmortisedTerms, me: str, pair_secrets: Mapping[str, bytes], entry: Entry, survivors: Survivors
) -> dict[str, bytes]:
    """Return the shares of the survivors' self seeds, without those whose parcel does not hold: that is its answer."""
    shares = {me: entry.own_share}
    for name in survivors.names:
        parcel = survivors.parcels.get(name)
        if name == me or parcel is None:
            continue
        try:
            share = unseal(terms.box_key(pair_secrets[name], name, me), parcel.box, associated=terms.context)
        except ProtocolError:
            continue
        if terms.share_commitment(name, me, share) == parcel.of_share:
            shares[name] = share
    return shares
