"""The client against servers that lie, against replays, and across crashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from confide.cohort.roster import identity, pinned
from confide.crypto.keys import AgreementKey, SigningKey
from confide.crypto.random import SeededRandomness
from confide.crypto.ring import unpack
from confide.crypto.shamir import Recovery
from confide.errors import Aborted, ProtocolError
from confide.ideal import Session
from confide.secagg import Masked, masked_client, masked_server
from confide.secagg.masked_client import Entry, journal_key, vector_key
from confide.secagg.masked_terms import (
    BOXES,
    CONFIRM,
    CONFIRMED,
    KEYS,
    PEERS,
    SHARES,
    SURVIVORS,
    UNMASK,
    VECTOR,
    Advert,
    Adverts,
    Confirmation,
    Confirmations,
    MaskedVector,
    Parcels,
    Shares,
    Survivors,
    Terms,
)
from confide.wire import Message, Party, Step, Transcript, decode, delay, encode, run
from conformance.cases import Federation, assert_is_sum, tags_of
from secagg.tamper import flip, tamper

ME = "silo-0"
#: What a client has sent at most when it refuses the message with this tag.
SENT_BEFORE = {PEERS: [KEYS], BOXES: [KEYS, SHARES], SURVIVORS: [KEYS, SHARES, VECTOR]}
SENT_BEFORE[CONFIRMED] = [*SENT_BEFORE[SURVIVORS], CONFIRM]


def federation(clients: int = 4, quorum: int = 3) -> Federation:
    return Federation(Masked(), clients, quorum)


def terms(parties: Federation, session: Session) -> Terms:
    return Terms(session, pinned(parties.stores["server"]), degree=parties.clients - 1, colluding=0)


def refuses(parties: Federation, tag: str, lie: Callable[[Any], Any]) -> bool:
    """Return True if silo-0 ends with a ProtocolError when the server lies to it, and says nothing more."""
    session = parties.session()
    done = parties.sum(session, parties.vectors(session), tamper(tag, lie, src="server", dst=ME))
    failure = done.failures.get(ME)
    assert failure is None or "in vain" not in str(failure)
    return isinstance(failure, ProtocolError) and tags_of(done, ME) == SENT_BEFORE[tag]


# --- a server that lies about keys ------------------------------------------------------------------------------------


def with_advert(name: str, change: Callable[[Advert], Advert]) -> Callable[[Adverts], Adverts]:
    return lambda body: Adverts(body.adverts | {name: change(body.adverts[name])})


EVIL = AgreementKey(b"\7" * 32).public


def signed_by_the_server(advert: Advert) -> Advert:
    return replace(advert, mask_key=EVIL, signature=SigningKey(b"\7" * 32).sign(b"anything"))


def swapped(body: Adverts) -> Adverts:
    adverts = dict(body.adverts)
    adverts["silo-1"], adverts["silo-2"] = adverts["silo-2"], adverts["silo-1"]
    return Adverts(adverts)


def without_me(body: Adverts) -> Adverts:
    return Adverts({name: advert for name, advert in body.adverts.items() if name != ME})


def renamed(entries: dict[str, Any]) -> dict[str, Any]:
    """Put a stranger in the place of silo-3."""
    return {"stranger" if name == "silo-3" else name: entry for name, entry in entries.items()}


KEY_LIES: list[Callable[[Adverts], Adverts]] = [
    with_advert("silo-1", lambda advert: replace(advert, mask_key=EVIL)),
    with_advert("silo-1", lambda advert: replace(advert, box_key=EVIL)),
    with_advert("silo-1", lambda advert: replace(advert, commitment=bytes(32))),
    with_advert("silo-3", signed_by_the_server),
    with_advert(ME, lambda advert: replace(advert, signature=flip(advert.signature))),
    lambda body: Adverts(body.adverts | {"stranger": body.adverts["silo-1"]}),
    lambda body: Adverts(renamed(body.adverts)),
    lambda body: Adverts({name: body.adverts[name] for name in (ME, "silo-1")}),
    swapped,
    without_me,
]


@pytest.mark.parametrize("lie", KEY_LIES)
def test_keys_that_the_pinned_roster_did_not_sign_are_refused_before_a_share_leaves(
    lie: Callable[[Adverts], Adverts],
) -> None:
    assert refuses(federation(), PEERS, lie)


def test_honest_keys_are_not_refused() -> None:
    assert not refuses(federation(), PEERS, lambda body: body)


def test_an_advert_of_an_earlier_session_is_refused() -> None:
    """Its signature is genuine; its context is not this one's."""
    parties = federation()
    earlier = parties.session(0)
    first = parties.sum(earlier, parties.vectors(earlier))
    body = next(m.body for m in first.messages if m.tag == PEERS)
    old = decode(body, Adverts, max_bytes=1 << 20).adverts["silo-1"]
    assert refuses(parties, PEERS, with_advert("silo-1", lambda _: old))


@pytest.mark.parametrize("weak", [bytes(32), (1).to_bytes(32, "little")])
def test_weak_and_repeated_keys_are_refused_even_if_their_owner_signed_them(weak: bytes) -> None:
    """The server and silo-1 lie together."""
    for key in (weak, "box_key of silo-2"):
        parties = federation()
        agreed, signer = terms(parties, parties.session()), identity(parties.stores["silo-1"])

        def lie(body: Adverts, key: bytes | str = key, agreed: Terms = agreed, signer: SigningKey = signer) -> Adverts:
            own = body.adverts["silo-1"]
            mask_key = key if isinstance(key, bytes) else body.adverts["silo-2"].box_key
            signature = signer.sign(agreed.signed("silo-1", own.box_key, mask_key, own.commitment))
            return Adverts(body.adverts | {"silo-1": replace(own, mask_key=mask_key, signature=signature)})

        assert refuses(parties, PEERS, lie)


# --- a server that lies about boxes and survivors ---------------------------------------------------------------------


BOX_LIES: list[Callable[[Parcels], Parcels]] = [
    lambda body: Parcels(body.parcels | {"stranger": body.parcels["silo-1"]}, body.peers),
    lambda body: Parcels(renamed(body.parcels), body.peers),
    lambda body: Parcels({name: parcel for name, parcel in body.parcels.items() if name != ME}, body.peers),
    lambda body: Parcels({name: body.parcels[name] for name in (ME, "silo-1")}, body.peers),
    lambda body: Parcels({name: body.parcels[name] for name in (ME, "silo-1")}, b"\3"),
    lambda body: Parcels({name: p for name, p in body.parcels.items() if name != ME}, b"\x0e"),
    lambda body: Parcels(body.parcels, b"\7"),
    lambda body: Parcels(body.parcels, b"\x1f"),
    lambda body: Parcels(body.parcels, body.peers + b"\0"),
    lambda body: Parcels(body.parcels, b""),
]


@pytest.mark.parametrize("lie", BOX_LIES)
def test_boxes_of_strangers_or_of_too_few_are_refused_before_the_vector_leaves(
    lie: Callable[[Parcels], Parcels],
) -> None:
    assert refuses(federation(), BOXES, lie)


@pytest.mark.parametrize(
    "members",
    [b"\x03", b"\x0e", b"\x17", b"\x00", b"", b"\x07\x00"],
    ids=["too few", "not me", "a stranger", "nobody", "no list", "a longer list"],
)
def test_survivors_that_cannot_be_are_refused_before_a_share_leaves(members: bytes) -> None:
    """One bit for each of the four clients, silo-0 the lowest."""
    assert refuses(federation(), SURVIVORS, lambda _: Survivors(members, {}))


def test_a_survivor_that_never_shared_is_refused() -> None:
    """silo-3 is in the roster and in the session, but nobody masked with it."""
    parties = federation()
    session = parties.session()

    def fault(message: Message) -> list[tuple[int, Message]]:
        if (message.src, message.tag) == ("silo-3", SHARES):
            return []
        if message.tag == SURVIVORS:
            lie = encode(Survivors(b"\x0f", {}))
            return [(0, Message(message.src, message.dst, message.tag, lie))]
        return [(0, message)]

    done = parties.sum(session, parties.vectors(session), fault)
    assert all(isinstance(done.failures[name], ProtocolError) for name in parties.cohort.clients)
    assert not [message for message in done.messages if message.tag == UNMASK]


# --- one client, driven by hand ---------------------------------------------------------------------------------------


class Scripted:
    """silo-0 against a server that this test plays; the other clients' honest messages come from a real run.

    All randomness is seeded, so a second federation with the same seed says the same as the first.
    """

    def __init__(self) -> None:
        self.parties = federation()
        self.session = self.parties.session()
        self.vectors = self.parties.vectors(self.session)
        copy = federation()
        done = copy.sum(self.session, self.vectors)
        self.down = {m.tag: m for m in done.messages if m.dst == ME}
        self.up = {m.tag: m for m in done.messages if m.src == ME}

    def party(self, sign: int = 1) -> Party:
        return self.parties.party(ME, self.session, {ME: sign * self.vectors[ME]})

    def commit(self, step: Step) -> Step:
        self.parties.stores[ME].commit(step.save)
        return step

    def answer(self, party: Party, tag: str, body: bytes | None = None) -> Step:
        message = self.down[tag] if body is None else Message("server", ME, tag, body)
        return self.commit(party.send({"server": message}))

    def until(self, tag: str, party: Party) -> Step:
        """Play `party` until it has sent `tag`; return that step."""
        step = self.commit(next(party))
        for answer in (PEERS, BOXES, SURVIVORS, CONFIRMED):
            if step.send and step.send[-1].tag == tag:
                return step
            step = self.answer(party, answer)
        return step

    def entry(self) -> Entry:
        body = self.parties.stores[ME].get(journal_key("run"))
        assert body is not None
        return decode(body, Entry, max_bytes=len(body))


def restart_of(script: Scripted, sign: int = -1) -> Party:
    """Build the client again from its store, with another vector."""
    return script.party(sign)


def test_the_script_is_the_real_exchange() -> None:
    script = Scripted()
    party = script.party()
    assert script.until(UNMASK, party).send == (script.up[UNMASK],)
    script.commit(party.send({}))
    with pytest.raises(StopIteration):
        party.send({})


def test_before_its_vector_is_journaled_a_crashed_client_drops_out() -> None:
    for tag in (KEYS, SHARES):
        script = Scripted()
        script.until(tag, script.party())
        with pytest.raises(Aborted, match="take the next attempt"):
            next(restart_of(script))


def test_after_that_it_sends_the_identical_vector_and_answers() -> None:
    script = Scripted()
    script.until(VECTOR, script.party())
    party = restart_of(script)
    step = script.commit(next(party))
    assert step.send == (script.up[VECTOR],)
    assert (step.await_tag, step.wait_for) == (SURVIVORS, ("server",))
    assert script.answer(party, SURVIVORS).send == (script.up[CONFIRM],)
    assert script.answer(party, CONFIRMED).send == (script.up[UNMASK],)


def test_the_vector_is_in_the_journal_before_it_leaves() -> None:
    script = Scripted()
    party = script.party()
    next(party)
    party.send({"server": script.down[PEERS]})
    step = party.send({"server": script.down[BOXES]})
    saved = decode(step.save[journal_key("run")] or b"", Entry, max_bytes=1 << 20)
    assert step.send == (Message(ME, "server", VECTOR, step.save[vector_key("run")] or b""),)
    assert saved.reply == b""
    confirming = party.send({"server": script.down[SURVIVORS]})
    assert confirming.save[vector_key("run")] is None  # the server has it: it said so


def test_after_its_answer_it_only_ever_repeats_it_whatever_survivors_are_named() -> None:
    """The attack: name silo-1 a survivor, crash the client, then name it a dropout: both seeds would open."""
    script = Scripted()
    script.until(UNMASK, script.party())
    other = encode(Survivors(b"\x0d", {}))
    party = restart_of(script)
    step = script.commit(next(party))
    assert step.send == (script.up[CONFIRM], script.up[UNMASK])
    assert not step.wait_for
    assert script.answer(party, SURVIVORS, other).send == ()


def test_a_second_list_of_survivors_is_not_even_read() -> None:
    parties = federation()
    session = parties.session()
    second = Message("server", ME, SURVIVORS, encode(Survivors(b"\x0d", {})))

    def fault(message: Message) -> list[tuple[int, Message]]:
        twice = message.dst == ME and message.tag == SURVIVORS
        return [(0, message), (0, second)] if twice else [(0, message)]

    done = parties.sum(session, parties.vectors(session), fault)
    assert [message for message, _ in done.rejected] == [second]
    assert len([m for m in done.messages if m.src == ME and m.tag == UNMASK]) == 1


def test_each_list_of_survivors_opens_one_share_of_each_client() -> None:
    """The other survivors sign the list with their own keys: here the server needs no honest client's help to ask."""
    for left in ("silo-1", "silo-2", "silo-3"):
        script = Scripted()
        party = script.party()
        script.until(VECTOR, party)
        entry = script.entry()
        survivors = tuple(name for name in script.parties.cohort.clients if name != left)
        agreed = terms(script.parties, script.session)
        members = agreed.bitmap(survivors)
        script.answer(party, SURVIVORS, encode(Survivors(members, {})))
        view = agreed.view(entry.peers, members)
        signed = {name: identity(script.parties.stores[name]).sign(view) for name in survivors}
        step = script.answer(party, CONFIRMED, encode(Confirmations(signed)))
        shares = decode(step.send[0].body, Shares, max_bytes=1 << 20).shares
        assert shares == {name: pair[name in survivors] for name, pair in entry.shares.items()}
        assert set(shares) == {"silo-0", "silo-1", "silo-2", "silo-3"}


def test_a_client_whose_store_lost_the_vector_drops_out_and_sends_no_empty_one() -> None:
    script = Scripted()
    script.until(VECTOR, script.party())
    store = script.parties.stores[ME]
    assert store.get(vector_key("run"))
    store.commit({vector_key("run"): None})
    with pytest.raises(Aborted, match="take the next attempt"):
        next(restart_of(script))


def test_the_end_wipes_shares_and_vectors_from_the_journal() -> None:
    script = Scripted()
    party = script.party()
    script.until(UNMASK, party)
    assert script.entry().shares
    script.commit(party.send({}))
    assert script.entry() == Entry(1, 0, terms(script.parties, script.session).context)
    assert script.parties.stores[ME].get(vector_key("run")) is None


# --- replays ----------------------------------------------------------------------------------------------------------


def test_a_session_that_was_played_is_refused_and_nothing_leaves() -> None:
    parties = federation()
    session = parties.session()
    vectors = parties.vectors(session)
    assert_is_sum(parties.sum(session, vectors).output("server"), parties.aggregator, vectors)
    again = parties.sum(session, {name: -vector for name, vector in vectors.items()})
    assert all(isinstance(again.failures[name], Aborted) for name in parties.roles)
    assert again.messages == []


@pytest.mark.parametrize(("number", "attempt", "fresh"), [(4, 9, False), (5, 1, False), (5, 3, True), (6, 0, True)])
def test_only_rounds_and_attempts_after_the_newest_are_played(number: int, attempt: int, fresh: bool) -> None:
    parties = federation()
    newest = parties.session(5, attempt=2)
    vectors = parties.vectors(newest)
    parties.sum(newest, vectors)
    done = parties.sum(parties.session(number, attempt=attempt), vectors)
    assert ("server" in done.outputs) == fresh
    assert bool(done.messages) == fresh


def test_one_round_has_one_model_and_one_cohort() -> None:
    """The same round and attempt under another model is no new session, even after a crash in mid-flight."""
    script = Scripted()
    script.until(VECTOR, script.party())
    crafted = Session("run", 1, script.parties.cohort, 12, 1000, 0, model_hash=b"\1" * 32)
    party = script.parties.party(ME, crafted, script.vectors)
    with pytest.raises(Aborted, match="round=1, attempt=0 of run=run"):
        next(party)


def test_runs_have_journals_of_their_own() -> None:
    parties = federation()
    for run_id in ("first", "second"):
        session = Session(run_id, 1, parties.cohort, 12, 1000)
        vectors = parties.vectors(session)
        assert_is_sum(parties.sum(session, vectors).output("server"), parties.aggregator, vectors)


def test_messages_of_another_session_do_not_fit() -> None:
    """A box of round 1 inside round 2: same parties, same place, other keys; the share is missing, nothing else."""
    parties = federation()
    first = parties.session(1)
    earlier = parties.sum(first, parties.vectors(first))
    body = next(m.body for m in earlier.messages if m.tag == BOXES and m.dst == ME)
    old = decode(body, Parcels, max_bytes=1 << 20).parcels["silo-1"]
    second = parties.session(2)
    vectors = parties.vectors(second)
    fault = tamper(BOXES, lambda parcels: Parcels(parcels.parcels | {"silo-1": old}, parcels.peers), dst=ME)
    output = parties.sum(second, vectors, fault).output("server")
    assert_is_sum(output, parties.aggregator, vectors)
    assert list(output.blamed) == ["silo-1"]


# --- randomness -------------------------------------------------------------------------------------------------------


def test_all_secret_randomness_is_the_argument_s() -> None:
    """The same seeds give the same bytes; another stream at one client changes all that it draws."""

    def messages(seed: str) -> dict[str, bytes]:
        parties = federation()
        parties.rngs[ME] = SeededRandomness(seed)
        session = parties.session(length=100)
        done = parties.sum(session, {name: np.zeros(100, np.int64) for name in parties.cohort.clients})
        return {m.tag: m.body for m in done.messages if m.src == ME}

    assert messages("a") == messages("a")
    ours, theirs = messages("a"), messages("b")
    assert all(ours[tag] != theirs[tag] for tag in (KEYS, SHARES, VECTOR, UNMASK))


def test_reordered_deliveries_change_no_byte() -> None:
    def messages(ticks: int) -> set[tuple[str, str, bytes]]:
        parties = federation()
        session = parties.session()
        done = parties.sum(session, parties.vectors(session), delay(ticks, src="silo-2"))
        return {(m.src, m.tag, m.body) for m in done.messages}

    assert messages(0) == messages(3)


# --- a server that tells different stories ----------------------------------------------------------------------------


def two_stories(parties: Federation, monkeypatch: pytest.MonkeyPatch) -> tuple[Transcript, dict[str, tuple[str, ...]]]:
    """Ten clients, quorum six, nobody colludes: the lists that would open the vector of silo-0 if nobody compared them.

    The victim is told that only five others shared, the helpers, so it masks with them alone. Then everybody is told
    six survivors, but not the same: all lists name the victim, and at least six leave out any one helper. Each list
    by itself passes every check, and shares of the victim's self seed and of each helper's mask seed would be due.
    The server passes every signature on to everybody. Return also who was told which survivors.
    """
    monkeypatch.setattr(masked_server, "verify", lambda *_: None)
    victim, helpers, bystanders = "silo-0", [f"silo-{i}" for i in range(1, 6)], [f"silo-{i}" for i in range(6, 10)]
    stories = {name: (name, victim, *bystanders) for name in helpers}
    stories |= {name: (victim, *bystanders, helper) for name, helper in zip(bystanders, helpers[1:], strict=True)}
    stories[victim] = (victim, *helpers)
    signed: dict[str, bytes] = {}

    def lie(message: Message) -> list[tuple[int, Message]]:
        body = message.body
        if message.dst == victim and message.tag == BOXES:
            parcels = decode(body, Parcels, max_bytes=1 << 20).parcels
            told = agreed.bitmap((victim, *helpers))
            body = encode(Parcels({name: parcels[name] for name in (victim, *helpers)}, told))
        elif message.tag == SURVIVORS:
            body = encode(Survivors(agreed.bitmap(stories[message.dst]), {}))
        elif message.tag == CONFIRM:
            signed[message.src] = decode(body, Confirmation, max_bytes=1 << 20).signature
        elif message.tag == CONFIRMED:
            body = encode(Confirmations(signed))
        return [(0, Message(message.src, message.dst, message.tag, body))]

    session = parties.session()
    agreed = terms(parties, session)
    return parties.sum(session, parties.vectors(session), lie), stories


def test_a_server_that_tells_different_stories_gets_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    parties = federation(10, quorum=6)
    done, _ = two_stories(parties, monkeypatch)
    assert {m.src for m in done.messages if m.tag == CONFIRM} == set(parties.cohort.clients)  # each list alone holds
    for name in parties.cohort.clients:
        with pytest.raises(ProtocolError, match="told clients different stories"):
            done.output(name)
    assert not [message for message in done.messages if message.tag == UNMASK]


def test_without_the_comparison_the_same_stories_open_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: clients that take any signature for a confirmation lose the victim's vector."""
    monkeypatch.setattr(masked_client, "_holds", lambda *_: True)
    parties = federation(10, quorum=6)
    done, lists = two_stories(parties, monkeypatch)
    victim, helpers = "silo-0", [f"silo-{i}" for i in range(1, 6)]
    session = parties.session()
    agreed, opened = terms(parties, session), {victim: {}, **{name: {} for name in helpers}}
    answers = {m.src: decode(m.body, Shares, max_bytes=1 << 20).shares for m in done.messages if m.tag == UNMASK}
    for holder, shares in answers.items():
        for name, found in opened.items():
            if holder != victim and (name in lists[holder]) == (name == victim):
                found[agreed.indices[holder]] = shares[name]
    up = {(m.src, m.tag): m.body for m in done.messages}
    packed = decode(up[victim, VECTOR], MaskedVector, max_bytes=1 << 20).words
    words = unpack(packed, agreed.bits, session.length).copy()
    agreed.add_self_mask(words, victim, recovered(opened[victim]), undo=True)
    for name in helpers:
        public = decode(up[victim, KEYS], Advert, max_bytes=1 << 20).mask_key
        agreed.add_pairwise_masks(words, name, agreed.mask_key(name, recovered(opened[name])), {victim: public})
    plain = parties.vectors(session)[victim].astype(np.uint32)
    np.testing.assert_array_equal((words - plain) % (1 << agreed.bits), 0)


def recovered(shares: dict[int, bytes]) -> bytes:
    indices = sorted(shares)[:6]
    assert len(indices) == 6
    return Recovery(indices).secret([shares[index] for index in indices])


def stories_differ(tag: str, lie: Callable[[Any], Any], told: tuple[str, ...]) -> None:
    """Tell `told` something else in `tag`: if neither side of five has four, nobody answers; else one side does."""
    parties = federation(5, quorum=4)
    session = parties.session()
    faults = [tamper(tag, lie, src="server", dst=name) for name in told]

    def fault(message: Message) -> list[tuple[int, Message]]:
        for one in faults:
            ((_, message),) = one(message)
        return [(0, message)]

    done = parties.sum(session, parties.vectors(session), fault)
    assert not [m for m in done.messages if m.tag == UNMASK and m.src in told]
    failure = done.failures.get("server")
    if len(told) > 1:
        assert not [m for m in done.messages if m.tag == UNMASK]
    if failure is None:
        assert len(told) == 1
        assert_is_sum(done.output("server"), parties.aggregator, parties.vectors(session))
    assert failure is None or isinstance(failure, Aborted)


@pytest.mark.parametrize("told", [("silo-0",), ("silo-0", "silo-1")])
def test_lists_of_boxes_and_of_survivors_are_both_compared(told: tuple[str, ...]) -> None:
    stories_differ(SURVIVORS, lambda _: Survivors(b"\x0f", {}), told)
    stories_differ(BOXES, lambda body: Parcels({n: p for n, p in body.parcels.items() if n != "silo-4"}, b"\x0f"), told)
    stories_differ(PEERS, lambda body: Adverts({n: a for n, a in body.adverts.items() if n != "silo-4"}), told)


CONFIRMATION_LIES: list[Callable[[Confirmations], Confirmations]] = [
    lambda body: Confirmations({}),
    lambda body: Confirmations(dict(list(body.signatures.items())[:2])),
    lambda body: Confirmations({name: flip(signature) for name, signature in body.signatures.items()}),
    lambda body: Confirmations(dict.fromkeys(body.signatures, body.signatures[ME])),
    lambda body: Confirmations({f"stranger-{name}": signature for name, signature in body.signatures.items()}),
    lambda body: Confirmations(dict.fromkeys(body.signatures, b"short")),
]


@pytest.mark.parametrize("lie", CONFIRMATION_LIES)
def test_fewer_than_a_quorum_of_distinct_valid_signatures_get_no_share(
    lie: Callable[[Confirmations], Confirmations],
) -> None:
    assert refuses(federation(), CONFIRMED, lie)


def test_confirmations_of_an_earlier_round_get_no_share() -> None:
    parties = federation()
    earlier = parties.session(0)
    first = parties.sum(earlier, parties.vectors(earlier))
    old = next(m.body for m in first.messages if m.tag == CONFIRMED)
    assert refuses(parties, CONFIRMED, lambda _: decode(old, Confirmations, max_bytes=1 << 20))


def test_a_client_signs_one_view_even_across_a_crash() -> None:
    """The second list comes after a restart: the first signature goes out again, and the list is not asked for."""
    script = Scripted()
    script.until(CONFIRM, script.party())
    party = restart_of(script)
    step = script.commit(next(party))
    assert step.send == (script.up[CONFIRM],)
    assert step.await_tag == CONFIRMED
    assert script.answer(party, CONFIRMED).send == (script.up[UNMASK],)


@pytest.mark.parametrize("others", [("silo-2",), ("silo-1", "silo-2")])
def test_clients_of_different_models_are_never_in_one_sum(others: tuple[str, ...]) -> None:
    """The server passes everybody's own context check by hand: it relays all, and no advert of the others holds."""
    parties = federation()
    session, crafted = parties.session(), Session("run", 1, parties.cohort, 12, 1000, 0, model_hash=b"\1" * 32)
    vectors = parties.vectors(session)
    plays = parties.parties(session, vectors) | {name: parties.party(name, crafted, vectors) for name in others}
    done = run(plays, stores=parties.stores)
    if len(others) == 1:
        assert done.output("server").members == (frozenset(parties.cohort.clients) - set(others),)
    else:
        assert isinstance(done.failures["server"], Aborted)
        assert not [m for m in done.messages if m.tag in (VECTOR, UNMASK)]
