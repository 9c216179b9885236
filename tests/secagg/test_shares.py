"""Two-server shares: dropouts, what each server enforces by itself, what each sees, liars, pins and journals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from msgspec.structs import replace

from confide.cohort import roster
from confide.crypto.keys import AgreementKey, derive, label
from confide.crypto.random import SeededRandomness
from confide.crypto.ring import unpack
from confide.errors import Aborted, ProtocolError, UsageError
from confide.guarantee import Trust
from confide.ideal import Cohort, Session
from confide.secagg import Shares
from confide.secagg.shares_terms import (
    HELPER_KEY,
    HELPER_SEED,
    MASKS,
    RECEIVED,
    UPLOAD,
    HelperKey,
    Masks,
    Received,
    Terms,
    Upload,
)
from confide.wire import LATE_TICKS, Fault, MemoryStore, Message, alter, decode, delay, drop, encode, lose, run
from conformance.cases import Federation, assert_is_sum, bytes_are_uniform
from secagg.tamper import flip


def federation(clients: int = 5, quorum: int = 3) -> Federation:
    return Federation(Shares(), clients, quorum)


def change(tag: str, kind: type, edit: Callable, *, src: str | None = None) -> Fault:
    return alter(lambda body: encode(edit(decode(body, kind, max_bytes=1 << 30))), src=src, tag=tag)


def members_of(parties: Federation, fault: Fault | None = None, number: int = 1) -> frozenset[str]:
    session = parties.session(number)
    vectors = parties.vectors(session)
    return assert_is_sum(parties.sum(session, vectors, fault).output("server"), parties.aggregator, vectors)


def everybody(parties: Federation) -> frozenset[str]:
    return frozenset(parties.cohort.clients)


# --- set-up -----------------------------------------------------------------------------------------------------------


def test_everybody_gets_the_same_fingerprint_and_it_names_the_helper_s_key() -> None:
    one, other = federation(), Federation(Shares(), 5, 3, seed="other")
    assert len(set(one.setup.outputs.values())) == 1
    assert set(one.setup.outputs.values()) != set(other.setup.outputs.values())


def again(parties: Federation, fault: Fault | None = None):
    built = {
        name: Shares().setup(role, name, parties.cohort, parties.stores[name], SeededRandomness(f"again/{name}"))
        for name, role in parties.roles.items()
    }
    return run(built, stores=parties.stores, fault=fault)


def test_set_up_again_changes_nothing() -> None:
    parties = federation()
    assert again(parties).outputs == parties.setup.outputs


def test_a_pinned_helper_key_is_never_replaced() -> None:
    parties = federation()
    own = AgreementKey(bytes(range(32))).public
    before = parties.stores["silo-0"].get(HELPER_KEY)
    done = again(parties, change("shares/key", HelperKey, lambda body: replace(body, key=own), src="server"))
    assert all(isinstance(done.failures[name], ProtocolError) for name in parties.cohort.clients)
    assert parties.stores["silo-0"].get(HELPER_KEY) == before


def test_a_weak_helper_key_and_another_roster_are_refused() -> None:
    parties = federation()
    done = again(parties, change("shares/key", HelperKey, lambda body: replace(body, key=bytes(32))))
    assert isinstance(done.failures["server"], ProtocolError)
    other = Federation(Shares(), 5, 3, seed="other").stores["server"].get("secagg/roster")
    done = again(parties, alter(lambda _: other, tag="shares/roster"))
    assert isinstance(done.failures["helper"], ProtocolError)


def test_misuse_is_named() -> None:
    parties, technique, rng = federation(), Shares(), SeededRandomness("x")
    session, store = parties.session(), parties.stores["silo-0"]
    with pytest.raises(UsageError, match="at least 3 clients"):
        technique.setup("server", "server", Cohort(("a", "b"), 2), MemoryStore(), rng)
    with pytest.raises(UsageError, match="role=client, me=server"):
        technique.party("client", "server", session, None, store, rng)
    with pytest.raises(UsageError, match="vector"):
        technique.party("client", "silo-0", session, None, store, rng)
    with pytest.raises(UsageError, match="setup"):
        technique.party("server", "server", session, None, MemoryStore(), rng)
    strangers = Session("run", 1, Cohort((*parties.cohort.clients, "stranger"), 3), 4, 10)
    with pytest.raises(UsageError, match="stranger"):
        technique.party("server", "server", strangers, None, parties.stores["server"], rng)
    for key in (HELPER_SEED, HELPER_KEY):
        parties.stores["helper"].commit({key: None})
        with pytest.raises(UsageError, match="helper's key"):
            technique.party("helper", "helper", session, None, parties.stores["helper"], rng)
    with pytest.raises(UsageError, match="helper"):
        Cohort(("a", "helper", "c"), 2)


def test_the_guarantee_names_what_it_rests_on() -> None:
    claims = {(claim.hidden_from, claim.if_honest) for claim in Shares.guarantee.claims}
    assert {("server", ("helper",)), ("helper", ("server",))} <= claims
    assert Shares.guarantee.trust is Trust.NON_COLLUSION
    assert "No check bounds" in Shares.guarantee.leaks


# --- who is in the sum ------------------------------------------------------------------------------------------------


def test_dropouts_are_free_down_to_three() -> None:
    parties = federation()
    fault = drop(src="silo-1", tag=UPLOAD)
    assert members_of(parties, fault) == everybody(parties) - {"silo-1"}
    two = lambda message: [] if message.src in ("silo-1", "silo-4") else [(0, message)]  # noqa: E731
    assert members_of(parties, two, 2) == everybody(parties) - {"silo-1", "silo-4"}


@pytest.mark.parametrize("quorum", [1, 2, 3])
def test_two_are_never_a_sum(quorum: int) -> None:
    parties = Federation(Shares(), 3, quorum)
    session = parties.session()
    done = parties.sum(session, parties.vectors(session), lose("silo-1", tag=UPLOAD))
    assert isinstance(done.failures["server"], Aborted)
    assert not [message for message in done.messages if message.tag in (RECEIVED, MASKS)]


def fewer(count: int) -> Fault:
    return change(RECEIVED, Received, lambda body: Received(dict(list(body.parcels.items())[:count])))


@pytest.mark.parametrize(("quorum", "asked", "allowed"), [(1, 2, False), (1, 3, True), (4, 3, False), (4, 4, True)])
def test_the_helper_enforces_quorum_and_minimum_by_itself(quorum: int, asked: int, allowed: bool) -> None:
    """A server that asks about fewer gets nothing; the fault stands for the lie, so the honest half checks the sum."""
    parties = federation(quorum=quorum)
    if allowed:
        assert len(members_of(parties, fewer(asked))) == asked
        return
    session = parties.session()
    done = parties.sum(session, parties.vectors(session), fewer(asked))
    assert isinstance(done.failures["helper"], Aborted)
    assert not [message for message in done.messages if message.tag == MASKS]


def test_the_server_enforces_quorum_by_itself() -> None:
    parties = federation()
    session = parties.session()
    fault = change(MASKS, Masks, lambda body: replace(body, names=body.names[:2]))
    assert isinstance(parties.sum(session, parties.vectors(session), fault).failures["server"], Aborted)


@pytest.mark.parametrize(
    "edit", [lambda names: (*names, "stranger"), lambda names: names[::-1], lambda names: (*names, names[0])]
)
def test_a_set_beyond_the_server_s_own_is_refused(edit: Callable) -> None:
    parties = federation()
    session = parties.session()
    fault = change(MASKS, Masks, lambda body: replace(body, names=edit(body.names)))
    assert isinstance(parties.sum(session, parties.vectors(session), fault).failures["server"], Aborted)


def test_a_wrong_sum_of_masks_is_seen_when_it_leaves_the_range() -> None:
    parties = federation()
    session = parties.session(bound=2**29 - 7)
    fault = change(MASKS, Masks, lambda body: replace(body, names=body.names[:-1]))
    done = parties.sum(session, parties.vectors(session), fault)
    assert isinstance(done.failures["server"], Aborted)


def test_late_and_second_uploads_are_refused() -> None:
    parties = federation()
    assert members_of(parties, delay(2 * LATE_TICKS, src="silo-2")) == everybody(parties) - {"silo-2"}

    def twice(message: Message) -> list[tuple[int, Message]]:
        other = Message(message.src, message.dst, message.tag, flip(message.body, len(message.body) // 2))
        return [(0, message), (0, other)] if message.tag == UPLOAD and message.src == "silo-0" else [(0, message)]

    session = parties.session(2)
    vectors = parties.vectors(session)
    done = parties.sum(session, vectors, twice)
    assert assert_is_sum(done.output("server"), parties.aggregator, vectors) == everybody(parties)
    assert [reason for message, reason in done.rejected if message.src == "silo-0"]


# --- parcels that somebody made up ------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["key", "box", "signature"])
def test_a_changed_parcel_leaves_its_client_out(field: str) -> None:
    parties = federation()

    def at_server(body: Upload) -> Upload:
        return replace(body, parcel=replace(body.parcel, **{field: flip(getattr(body.parcel, field))}))

    def at_helper(body: Received) -> Received:
        parcel = body.parcels["silo-3"]
        return Received(body.parcels | {"silo-3": replace(parcel, **{field: flip(getattr(parcel, field))})})

    assert members_of(parties, change(UPLOAD, Upload, at_server, src="silo-3")) == everybody(parties) - {"silo-3"}
    assert members_of(parties, change(RECEIVED, Received, at_helper), 2) == everybody(parties) - {"silo-3"}


def test_parcels_of_another_client_or_session_do_not_open() -> None:
    parties = federation()
    session = parties.session(1)
    first = parties.sum(session, parties.vectors(session))
    old = decode(next(m.body for m in first.messages if m.tag == RECEIVED), Received, max_bytes=1 << 20).parcels
    replayed = change(RECEIVED, Received, lambda body: Received(body.parcels | {"silo-1": old["silo-1"]}))
    assert members_of(parties, replayed, 2) == everybody(parties) - {"silo-1"}
    copied = change(RECEIVED, Received, lambda body: Received(body.parcels | {"silo-1": body.parcels["silo-2"]}))
    assert members_of(parties, copied, 3) == everybody(parties) - {"silo-1"}


def test_a_signed_box_for_another_key_leaves_its_client_out_at_the_helper() -> None:
    """The server cannot see that the box is bad; the set says so, and the sum is right without its client."""
    parties = federation()
    terms = Terms(parties.session(), parties.stores["silo-2"])
    terms.helper_key = AgreementKey(bytes(range(32))).public
    parcel = terms.seal_seed("silo-2", bytes(32), roster.identity(parties.stores["silo-2"]), parties.rngs["helper"])
    fault = change(UPLOAD, Upload, lambda body: replace(body, parcel=parcel), src="silo-2")
    assert members_of(parties, fault) == everybody(parties) - {"silo-2"}


# --- what each server sees --------------------------------------------------------------------------------------------


def test_the_shares_are_those_of_the_paper() -> None:
    """The oracle expands the seed by itself: HKDF and AES from the library, sums in Python's integers."""
    parties = federation()
    session = parties.session()
    vectors = parties.vectors(session)
    done = parties.sum(session, vectors)
    terms = Terms(session, parties.stores["helper"])
    key = AgreementKey(parties.stores["helper"].get(HELPER_SEED))
    for message in [message for message in done.messages if message.tag == UPLOAD]:
        upload = decode(message.body, Upload, max_bytes=1 << 20)
        seed = terms.open_seed(message.src, upload.parcel, key)
        stream_key = derive(seed, label(terms.context, "share", message.src))
        stream = Cipher(AES256(stream_key), CTR(bytes(16))).encryptor().update(bytes(4 * session.length))
        packed = int.from_bytes(upload.words, "little")
        for index, value in enumerate(vectors[message.src]):
            word = packed >> (index * terms.bits) & (2**terms.bits - 1)
            mask = int.from_bytes(stream[4 * index : 4 * index + 4], "little")
            assert (word + mask - int(value)) % 2**terms.bits == 0


def test_neither_server_s_view_depends_on_one_vector() -> None:
    """The same seeds, two sets of vectors of the same sum: the helper sees the same bytes, the server uniform ones."""
    views = []
    for shift in (0, 5):
        parties = federation()
        session = parties.session(length=20_000, bound=(2**32 - 1) // 10)
        vectors = {name: np.full(session.length, 7, np.int64) for name in parties.cohort.clients}
        vectors["silo-0"] += shift
        vectors["silo-1"] -= shift
        done = parties.sum(session, vectors)
        views.append([message.body for message in done.view("helper")])
        words = [decode(m.body, Upload, max_bytes=1 << 20).words for m in done.view("server") if m.tag == UPLOAD]
        assert all(map(bytes_are_uniform, words))
        assert not bytes_are_uniform(vectors["silo-0"].tobytes())
    assert views[0] == views[1]


def test_both_servers_together_read_everything() -> None:
    """The negative control of the claim: what non-collusion carries falls with it."""
    parties = federation()
    session = parties.session()
    vectors = parties.vectors(session)
    upload = decode(parties.sum(session, vectors).view("server")[0].body, Upload, max_bytes=1 << 20)
    terms = Terms(session, parties.stores["helper"])
    seed = terms.open_seed("silo-0", upload.parcel, AgreementKey(parties.stores["helper"].get(HELPER_SEED)))
    words = unpack(upload.words, terms.bits, session.length)
    terms.add_share(words, "silo-0", seed)
    shift = 32 - terms.bits
    np.testing.assert_array_equal((words << np.uint32(shift)).view(np.int32) >> shift, vectors["silo-0"])


# --- once per session -------------------------------------------------------------------------------------------------


def test_the_helper_answers_a_session_once_whatever_it_is_asked() -> None:
    parties = federation()
    session = parties.session()
    vectors = parties.vectors(session)
    first = parties.sum(session, vectors)
    asked = next(m.body for m in first.messages if m.tag == RECEIVED)
    helper = parties.party("helper", session, {})
    step = next(helper)
    assert [m.body for m in step.send] == [m.body for m in first.messages if m.tag == MASKS]
    with pytest.raises(StopIteration):
        helper.send({"server": Message("server", "helper", RECEIVED, asked)})
    earlier = parties.session(0)
    with pytest.raises(Aborted, match="next attempt"):
        next(parties.party("helper", earlier, {}))
    with pytest.raises(Aborted, match="next attempt"):
        next(parties.party("silo-0", session, vectors))


def test_a_session_with_other_terms_and_the_same_number_is_refused() -> None:
    parties = federation()
    session = parties.session()
    parties.sum(session, parties.vectors(session))
    with pytest.raises(Aborted):
        next(parties.party("helper", parties.session(length=13), {}))
