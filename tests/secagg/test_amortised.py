"""The amortised sum: every dropout pattern, epochs, liars with names, crashes, and what can be opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations, pairwise, product
from typing import TypeVar

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from confide.crypto.keys import AgreementKey, expand
from confide.crypto.random import SeededRandomness
from confide.crypto.ring import pack, unpack
from confide.crypto.shamir import draw_secret
from confide.errors import Aborted, ProtocolError, UsageError
from confide.ideal import Cohort, Session
from confide.secagg import Amortised, amortised_keys
from confide.secagg.amortised_client import Entry, journal_key
from confide.secagg.amortised_keys import KEYS, SECRET, PublicKeys, Secret
from confide.secagg.amortised_terms import (
    VECTOR,
    Answer,
    Survivors,
    Upload,
    answer_tag,
    survivors_tag,
)
from confide.wire import LATE_TICKS, Fault, MemoryStore, Message, Transcript, delay, encode, lose, run
from conformance.cases import Federation, assert_is_sum, bytes_are_uniform
from secagg.amortised_cases import (
    all_of,
    book_lie,
    federation,
    opened,
    set_up,
    sums,
    tamper,
    terms,
    upload_of,
    wide,
    zeros,
)
from secagg.tamper import flip

FIRST, SECOND = answer_tag(0), answer_tag(1)
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


# --- dropouts ---------------------------------------------------------------------------------------------------------


def test_every_dropout_pattern_of_four_clients() -> None:
    """Each client stays, or leaves before its vector, its first or its second answer: 4^4 patterns.

    Who is in the sum is worked out apart: the lost before the vector are out; then stages go on until one in which
    nobody more is lost, and the losses of that last one, in which the seeds are opened, cost the sum nothing.
    """
    parties = federation(4, quorum=2)
    names = parties.cohort.clients
    for number, pattern in enumerate(product((None, VECTOR, FIRST, SECOND), repeat=4)):
        gone = dict(zip(names, pattern, strict=True))
        inside = {name for name in names if gone[name] != VECTOR}
        answers = set(inside)
        stage, before = 0, set(names)
        while len(inside) >= 2:
            answers = {name for name in inside if gone[name] not in (answer_tag(stage),)}
            if inside == before:
                break
            before, inside, stage = inside, answers, stage + 1
        session = parties.session(number, attempt=0)
        vectors = parties.vectors(session)
        done = parties.sum(
            Session(f"run {number}", 1, session.cohort, session.length, session.bound),
            vectors,
            all_of(lose(name, tag=tag) for name, tag in gone.items() if tag),
        )
        if len(inside) < 2 or len(answers) < 2:
            assert isinstance(done.failures["server"], Aborted), pattern
        else:
            assert assert_is_sum(done.output("server"), parties.aggregator, vectors) == inside, pattern


def test_a_round_is_one_upload_and_one_answer_and_dropouts_cost_one_more_exchange() -> None:
    _, done = sums(federation())
    assert done.depth == 3
    assert [m.tag for m in done.messages if m.src == "silo-0"] == [VECTOR, FIRST]
    _, done = sums(federation(5, quorum=3), all_of([lose("silo-1", tag=VECTOR), lose("silo-2", tag=VECTOR)]))
    assert done.depth == 5
    assert [m.tag for m in done.messages if m.src == "silo-0"] == [VECTOR, FIRST, SECOND]


def test_a_client_that_was_away_joins_the_next_round_and_epoch() -> None:
    parties = federation(rounds_per_epoch=2, epochs=4)
    everybody = frozenset(parties.cohort.clients)
    for number, away in ((1, ("silo-1",)), (2, ("silo-1",)), (4, ("silo-1",)), (5, ()), (7, ("silo-0",))):
        output, _ = sums(parties, all_of(lose(name, tag=VECTOR) for name in away), number)
        assert output.members == (everybody - set(away),)
        assert output.blamed == {}


@pytest.mark.parametrize("quorum", [1, 2])
def test_sums_below_three_are_refused_by_every_party(quorum: int) -> None:
    cohort = Cohort(("silo-0", "silo-1", "silo-2"), quorum)
    session = Session(run="run", round=0, cohort=cohort, length=1, bound=1)
    for role, me, vector in (("server", "server", None), ("client", "silo-0", np.zeros(1, np.int64))):
        with pytest.raises(UsageError, match="at least 3"):
            Amortised().party(role, me, session, vector, MemoryStore(), SeededRandomness("x"))


def test_a_quorum_of_one_and_a_cohort_of_one_work() -> None:
    output, _ = sums(federation(3, quorum=1), all_of([lose("silo-0", tag=VECTOR), lose("silo-2", tag=VECTOR)]))
    assert output.members == (frozenset({"silo-1"}),)
    output, _ = sums(federation(1, quorum=1))
    assert output.members == (frozenset({"silo-0"}),)


def test_a_part_of_the_enrolled_clients_can_make_a_sum() -> None:
    parties = federation(5)
    some = Cohort(("silo-4", "silo-0", "silo-2"), quorum=2)
    session = Session("run", 1, some, 12, 1000)
    vectors = {name: vector for name, vector in parties.vectors(session_of(parties)).items() if name in some.clients}
    running = {"server": parties.party("server", session, {})}
    running |= {name: parties.party(name, session, vectors) for name in some.clients}
    done = run(running, stores=parties.stores, fault=lose("silo-2", tag=VECTOR))
    assert assert_is_sum(done.output("server"), parties.aggregator, vectors) == {"silo-4", "silo-0"}


def session_of(parties: Federation) -> Session:
    return parties.session(1)


@pytest.mark.parametrize("bits", [3, 9, 31, 32, 33, 64])
def test_sums_at_the_edge_of_the_ring_are_exact(bits: int) -> None:
    parties = federation(3, quorum=2)
    bound = (2**bits - 1) // 6
    for number, lost in enumerate((None, VECTOR, FIRST)):
        session = parties.session(number, length=3, bound=bound)
        vectors = {name: np.array([bound, -bound, 0]) for name in parties.cohort.clients}
        done = parties.sum(session, vectors, lose("silo-0", tag=lost) if lost else None)
        assert_is_sum(done.output("server"), parties.aggregator, vectors)


# --- what the server sees ---------------------------------------------------------------------------------------------


def without_pair_masks(parties: Federation, done: Transcript, session: Session, name: str) -> np.ndarray:
    """Take away every pairwise mask of `name`, by the keys that its partners told the server."""
    words, agreed = upload_of(done, name, session), terms(parties, session)
    keys = {}
    for message in done.messages:
        if message.tag == FIRST:
            keys[message.src] = opened(message.body, Answer).secrets[name]
    assert set(keys) == set(parties.cohort.clients) - {name}
    agreed.add_pair_masks(words, name, keys, undo=True)
    return words


@pytest.mark.usefixtures("seeded_encapsulation")
def test_a_late_vector_is_noise_even_to_a_server_that_has_all_its_pair_keys() -> None:
    """What the self mask is for. The control: with the self mask gone as well, the zeros of the vector show."""
    parties = federation()
    session = wide(parties, 1)
    done = zeros(parties, session, delay(2 * LATE_TICKS, src="silo-1", tag=VECTOR))
    assert done.output("server").members == (frozenset({"silo-0", "silo-2", "silo-3"}),)
    words = without_pair_masks(parties, done, session, "silo-1")
    assert bytes_are_uniform(words.tobytes())
    replayed = SeededRandomness("conformance/silo-1")
    replayed.bytes(32 + 32 + 64)  # identity, the first epoch's seed, the seed of the ML-KEM key
    terms(parties, session).add_self_mask(words, "silo-1", draw_secret(replayed), undo=True)
    assert not words.any()


@pytest.mark.usefixtures("seeded_encapsulation")
def test_two_rounds_of_one_client_have_independent_masks_pairwise_ones_alone_included() -> None:
    """Attempts, rounds, epochs; 255 degrees each, two-sided, false alarm 2e-6. The control subtracts a vector twice."""
    parties = federation(rounds_per_epoch=2)
    found = []
    for session in (wide(parties, 0), wide(parties, 1), wide(parties, 1, attempt=1), wide(parties, 2)):
        done = zeros(parties, session)
        mask, keys = np.zeros(session.length, np.uint32), {}
        client = parties.aggregator._agreed["silo-2"][1]  # the test knows what silo-2 shares with the others
        agreed = terms(parties, session, session.round // 2)
        for peer, shared in client.items():
            keys[peer] = agreed.pair_key(shared, "silo-2", peer)
        agreed.add_pair_masks(mask, "silo-2", keys)
        found += [[upload_of(done, "silo-2", session), mask]]
    for first, second in pairwise(found):
        for one, other in zip(first, second, strict=True):
            assert bytes_are_uniform((one - other).tobytes())
    assert not bytes_are_uniform((found[0][0] - found[0][0]).tobytes())


def test_of_each_client_either_the_self_seed_or_the_pair_keys_are_told() -> None:
    """silo-4 sends no vector, silo-3 is lost after its vector: of both only pair keys, of the others only shares."""
    parties = federation(5, quorum=3)
    faults = all_of([lose("silo-4", tag=VECTOR), lose("silo-3", tag=FIRST)])
    _, done = sums(parties, faults)
    told: dict[str, list[set[str]]] = {}
    for message in done.messages:
        if message.tag.startswith("amortised/answer") and message.src != "silo-3":
            told.setdefault(message.src, []).append(set(opened(message.body, Answer).secrets))
    rest = {"silo-0", "silo-1", "silo-2"}
    assert told == {name: [{"silo-4"}, {"silo-3"}, rest] for name in rest}


# --- servers that lie -------------------------------------------------------------------------------------------------


def lists(*names: str, final: bool = False) -> Callable[[Survivors], Survivors]:
    return lambda body: Survivors(names, final, body.parcels)


@pytest.mark.parametrize(
    "lie",
    [
        lists("silo-0", "silo-1", final=False),  # below the quorum
        lists("silo-1", "silo-2", "silo-3"),  # without me
        lists("silo-0", "silo-1", "silo-2", "silo-2"),
        lists("silo-0", "silo-1", "silo-2", "stranger"),
        lists("silo-0", "silo-1", "silo-2", "silo-3"),  # no final one, and nobody lost
        lists("silo-0", "silo-1", "silo-2", final=True),  # lost without a word about pair keys
        lists(),
    ],
)
def test_lists_that_cannot_be_are_refused_and_nothing_leaves(lie: Callable[[Survivors], Survivors]) -> None:
    parties = federation()
    fault = tamper(Survivors, lie, tag=survivors_tag(0), src="server", dst="silo-0")
    _, done = sums(parties, fault)
    assert isinstance(done.failures["silo-0"], ProtocolError)
    assert [m.tag for m in done.messages if m.src == "silo-0"] == [VECTOR]


def test_whoever_was_lost_never_comes_back_as_a_survivor() -> None:
    """Else the pair keys and the self seed of one client would both be told."""
    parties = federation(5, quorum=3)
    back = lists("silo-0", "silo-1", "silo-2", "silo-3", "silo-4", final=True)
    fault = all_of([lose("silo-4", tag=VECTOR)])
    session = parties.session()

    def both(message: Message) -> list[tuple[int, Message]]:
        passed = fault(message)
        lie = tamper(Survivors, back, tag=survivors_tag(1), src="server", dst="silo-0")
        return [pair for _, kept in passed for pair in lie(kept)]

    done = parties.sum(session, parties.vectors(session), both)
    assert isinstance(done.failures["silo-0"], ProtocolError)
    assert [m.tag for m in done.messages if m.src == "silo-0"] == [VECTOR, FIRST]


EVIL = AgreementKey(b"\7" * 32).public


def told(parties: Federation, session: Session, lists: Mapping[str, frozenset[str]]) -> Transcript:
    """Play the clients against a server that shows each of them its own list, and later that list as the final one."""
    done, names = Transcript(), parties.cohort.clients
    running = {name: parties.party(name, session, parties.vectors(session)) for name in names}
    steps = {name: next(party) for name, party in running.items()}
    uploads = {name: opened(step.send[0].body, Upload) for name, step in steps.items()}
    for name, party in running.items():
        done.add(steps[name].send[0])
        listed = tuple(peer for peer in names if peer in lists[name])
        parcels = {peer: uploads[peer].parcels[name] for peer in listed if peer != name}
        bodies = [Survivors(listed, False, {})] * (len(listed) < len(names)) + [Survivors(listed, True, parcels)]
        for stage, body in enumerate(bodies):
            message = Message("server", name, survivors_tag(stage), encode(body))
            for sent in party.send({"server": message}).send:
                done.add(sent)
    return done


def what_opens(done: Transcript, lists: Mapping[str, frozenset[str]], quorum: int) -> list[frozenset[str]]:
    """Return every set of clients whose sum the server can compute from the answers."""
    names, keys, holders = tuple(lists), set[frozenset[str]](), dict.fromkeys(lists, 0)
    for message in done.messages:
        if message.tag == VECTOR:
            continue
        for peer in opened(message.body, Answer).secrets:
            if peer in lists[message.src]:
                holders[peer] += 1
            else:
                keys.add(frozenset((message.src, peer)))
    seeds = [name for name in names if holders[name] >= quorum]
    return [
        frozenset(some)
        for size in range(1, len(seeds) + 1)
        for some in combinations(seeds, size)
        if all(frozenset((one, peer)) in keys for one in some for peer in names if peer not in some)
    ]


@pytest.mark.parametrize(("clients", "quorum"), [(3, 2), (4, 3), (4, 4)])
def test_lists_that_differ_open_no_sum_below_twice_the_quorum_less_the_clients(clients: int, quorum: int) -> None:
    """Every choice of a list for each client. No claim of the protocol, but what its page counts; and it is reached."""
    parties = federation(clients, quorum)
    names = parties.cohort.clients
    some = [frozenset(names), *map(frozenset, combinations(names, quorum))]
    choices = product(*([one for one in some if name in one] for name in names))
    smallest = clients
    for number, chosen in enumerate(choices):
        lists = dict(zip(names, chosen, strict=True))
        session = Session(f"run {number}", 1, parties.cohort, 1, 1000)
        sets = what_opens(told(parties, session, lists), lists, quorum)
        smallest = min([smallest, *map(len, sets)])
    assert smallest == 2 * quorum - clients


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m | {"silo-1": replace(m["silo-1"], keys=(EVIL, *m["silo-1"].keys[1:]))},
        lambda m: m | {"silo-1": replace(m["silo-1"], keys=m["silo-1"].keys[:-1])},
        lambda m: m | {"silo-1": replace(m["silo-1"], keys=(bytes(32), *m["silo-1"].keys[1:]))},
        lambda m: m | {"silo-0": replace(m["silo-0"], signature=flip(m["silo-0"].signature))},
        lambda m: m | {"silo-1": m["silo-2"]},
        lambda m: {name: keys for name, keys in m.items() if name != "silo-2"},
    ],
)
def test_keys_that_the_pinned_roster_did_not_sign_are_refused_at_set_up(change: Callable[..., object]) -> None:
    done, stores = set_up(book_lie(change))  # type: ignore[arg-type]
    assert isinstance(done.failures["silo-0"], ProtocolError)
    assert stores["silo-0"].get(SECRET) is None
    assert not done.outputs  # the ciphertexts of silo-0 are missing, and set-up ends for all or for none
    done, _ = set_up(book_lie(change), hybrid=False)  # type: ignore[arg-type]
    assert isinstance(done.failures["silo-0"], ProtocolError)
    assert set(done.outputs) == {"server", "silo-1", "silo-2"}


@pytest.mark.parametrize(
    "change",
    [
        lambda own: replace(own, keys=own.keys[:1]),
        lambda own: replace(own, signature=flip(own.signature)),
        lambda own: replace(own, keys=(bytes(32), EVIL)),
    ],
)
def test_the_server_names_who_sent_no_valid_keys(change: Callable[[PublicKeys], PublicKeys]) -> None:
    done, _ = set_up(tamper(PublicKeys, change, tag=KEYS, src="silo-1", dst="server"))
    with pytest.raises(Aborted, match="set silo-1 up again"):
        done.output("server")


def test_everybody_sees_the_same_fingerprint() -> None:
    done, _ = set_up()
    assert len(set(done.outputs.values())) == 1


# --- clients that lie -------------------------------------------------------------------------------------------------


def client_lie(kind: type[_Struct], change: Callable[[_Struct], _Struct], tag: str) -> Fault:
    return tamper(kind, change, tag=tag, src="silo-2", dst="server")


def bad_box(upload: Upload) -> Upload:
    parcel = upload.parcels["silo-0"]
    return replace(upload, parcels=upload.parcels | {"silo-0": replace(parcel, box=flip(parcel.box))})


def few_parcels(upload: Upload) -> Upload:
    return replace(upload, parcels={"silo-0": upload.parcels["silo-0"]})


@pytest.mark.parametrize(
    ("fault", "blames", "inside"),
    [
        (client_lie(Upload, few_parcels, VECTOR), "malformed amortised/vector", False),
        (client_lie(Upload, lambda u: replace(u, words=u.words + b"\0"), VECTOR), "malformed amortised/vector", False),
        (client_lie(Upload, bad_box, VECTOR), "did not hold, as silo-0 says", True),
        (client_lie(Answer, lambda a: Answer({n: flip(s) for n, s in a.secrets.items()}), FIRST), "wrong share", True),
        (client_lie(Answer, lambda a: Answer({"stranger": bytes(32)}), FIRST), "shares of the survivors only", True),
    ],
)
def test_a_client_that_lies_is_named(fault: Fault, blames: str, inside: bool) -> None:
    output, _ = sums(federation(5, quorum=3), fault)
    assert ("silo-2" in output.members[0]) == inside
    assert list(output.blamed) == ["silo-2"]
    assert blames in output.blamed["silo-2"]


def test_a_wrong_pair_key_is_caught_and_its_author_is_out_of_the_sum() -> None:
    lie = client_lie(Answer, lambda a: Answer({n: flip(s) for n, s in a.secrets.items()}), FIRST)
    lost = lose("silo-4", tag=VECTOR)
    output, _ = sums(federation(5, quorum=3), lambda m: [pair for _, kept in lost(m) for pair in lie(kept)])
    assert output.members == (frozenset({"silo-0", "silo-1", "silo-3"}),)
    assert "as committed to" in output.blamed["silo-2"]


def test_a_seed_that_is_not_the_committed_one_ends_the_sum_and_names_the_dealer() -> None:
    parties = federation()
    fault = client_lie(Upload, lambda u: replace(u, commitment=flip(u.commitment)), VECTOR)
    done = parties.sum(parties.session(), parties.vectors(parties.session()), fault)
    with pytest.raises(Aborted, match="silo-2 dealt shares that do not open"):
        done.output("server")


def test_a_vector_beyond_its_bound_ends_the_sum() -> None:
    parties = federation(3)
    session = parties.session(bound=1000)

    def shifted(upload: Upload) -> Upload:
        words = unpack(upload.words, session.ring_bits, session.length).copy()
        words += np.uint32(5000)
        return replace(upload, words=pack(words, session.ring_bits))

    done = parties.sum(session, parties.vectors(session), client_lie(Upload, shifted, VECTOR))
    with pytest.raises(Aborted, match="bound"):
        done.output("server")


# --- epochs -----------------------------------------------------------------------------------------------------------


def test_an_epoch_erases_the_secret_of_the_one_before() -> None:
    """The store after the change gives the later key and not the earlier; the earlier store gives both."""
    parties = federation(rounds_per_epoch=2)
    book = amortised_keys.book(parties.stores["server"]).members["silo-0"].keys
    before = amortised_keys.secret(parties.stores["silo-0"])
    assert (before.epoch, before.key.public, before.at(1).key.public) == (0, book[0], book[1])
    sums(parties, number=1)
    assert amortised_keys.secret(parties.stores["silo-0"]) == before
    sums(parties, number=3)
    after = amortised_keys.secret(parties.stores["silo-0"])
    assert (after.epoch, after.key.public) == (1, book[1])
    assert parties.aggregator._agreed["silo-0"][0].epoch == 1  # nothing of the earlier epoch is left in memory either
    with pytest.raises(Aborted, match="erased"):
        after.at(0)
    body = parties.stores["silo-0"].get(SECRET)
    assert body is not None
    assert before.seed not in body


def test_rounds_of_an_erased_epoch_are_refused_in_every_run() -> None:
    parties = federation(rounds_per_epoch=2)
    sums(parties, number=2)
    session = Session("another run", 1, parties.cohort, 12, 1000)
    done = parties.sum(session, parties.vectors(session))
    assert all(isinstance(done.failures[name], Aborted) for name in parties.roles)
    assert done.messages == []
    session = Session("another run", 3, parties.cohort, 12, 1000)
    vectors = parties.vectors(session)
    assert_is_sum(parties.sum(session, vectors).output("server"), parties.aggregator, vectors)


def test_what_a_pair_shares_differs_in_every_epoch_and_after_every_set_up() -> None:
    parties = federation(rounds_per_epoch=1)
    seen = set()
    for number in (0, 1, 2):
        sums(parties, number=number)
        one, other = (parties.aggregator._agreed[name][1] for name in ("silo-0", "silo-1"))
        assert one["silo-1"] == other["silo-0"]
        seen.add(one["silo-1"])
    assert len(seen) == 3


@pytest.mark.parametrize("number", [6, 1000, -1])
def test_a_round_after_the_last_epoch_is_refused(number: int) -> None:
    parties = federation(rounds_per_epoch=2, epochs=3)
    for name in parties.roles:
        with pytest.raises(UsageError, match="prepare more epochs"):
            parties.party(name, parties.session(number), {name: np.zeros(12, np.int64)})


# --- crashes and replays ----------------------------------------------------------------------------------------------


def test_a_session_that_was_played_is_refused_and_nothing_leaves() -> None:
    parties = federation()
    sums(parties, number=2)
    for number in (2, 1):
        session = parties.session(number)
        again = parties.sum(session, {name: -vector for name, vector in parties.vectors(session).items()})
        assert all(isinstance(again.failures[name], Aborted) for name in parties.roles)
        assert again.messages == []


def test_a_client_is_rebuilt_at_every_list_and_only_repeats_itself() -> None:
    """Driven by hand through a lost client, a second lost one and the final list; rebuilt before each.

    Without ML-KEM, whose encapsulations differ between two federations of one seed.
    """
    parties = federation(5, quorum=3, hybrid=False)
    session = parties.session()
    vectors = parties.vectors(session)
    copy = federation(5, quorum=3, hybrid=False)
    done = copy.sum(session, vectors, all_of([lose("silo-4", tag=VECTOR), lose("silo-3", tag=FIRST)]))
    down = {m.tag: m for m in done.messages if m.dst == "silo-0"}
    sent = [m for m in done.messages if m.src == "silo-0"]
    store = parties.stores["silo-0"]
    for stage in range(4):
        party = parties.party("silo-0", session, {"silo-0": -vectors["silo-0"] if stage else vectors["silo-0"]})
        step = next(party)
        store.commit(step.save)
        assert step.send == tuple(sent[: stage + 1])
        if stage < 3:
            assert step.await_tag == survivors_tag(stage)
            store.commit(party.send({"server": down[survivors_tag(stage)]}).save)
    assert not step.wait_for
    store.commit(party.send({}).save)
    body = store.get(journal_key("run"))
    assert body is not None
    assert opened(body, Entry) == Entry(1, 0, terms(parties, session).context)


def test_another_model_in_the_same_round_is_no_new_session() -> None:
    parties = federation()
    session = parties.session()
    party = parties.party("silo-0", session, parties.vectors(session))
    parties.stores["silo-0"].commit(next(party).save)
    crafted = Session("run", 1, parties.cohort, 12, 1000, 0, model_hash=b"\1" * 32)
    with pytest.raises(Aborted, match="round=1, attempt=0"):
        next(parties.party("silo-0", crafted, parties.vectors(session)))


# --- misuse -----------------------------------------------------------------------------------------------------------


def test_misuse_says_what_to_do() -> None:
    parties = federation()
    session, rng = parties.session(), SeededRandomness("x")
    aggregator, zero = parties.aggregator, np.zeros(12, np.int64)
    for role, me in (("server", "server"), ("client", "silo-0")):
        with pytest.raises(UsageError, match="run the setup"):
            aggregator.party(role, me, session, zero, MemoryStore(), rng)
    with pytest.raises(UsageError, match="Expected a vector"):
        parties.party("silo-0", session, {})
    with pytest.raises(UsageError, match="role="):
        aggregator.party("client", "nobody", session, zero, parties.stores["silo-0"], rng)
    with pytest.raises(UsageError, match="role="):
        aggregator.setup("client", "nobody", parties.cohort, MemoryStore(), rng)
    with pytest.raises(UsageError, match="at least 1"):
        Amortised(epochs=0)
    assert "seed" not in repr(Secret(0, b"\1" * 32))


def test_expand_is_hkdf_without_its_first_half() -> None:
    """RFC 5869, test case 1: the first block of the output from its PRK."""
    prk = bytes.fromhex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5")
    okm = bytes.fromhex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf")
    assert expand(prk, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")) == okm
