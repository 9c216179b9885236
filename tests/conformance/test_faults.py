"""Every aggregator of the registry under clients that misbehave, a server that tells two stories, and losses at random.

The same faults run over all of them; what may come out is the same for all: the exact sum over the members that the
output names, or a refusal, in which nobody honest is blamed; and of each honest client one body per stage, noise to
whoever looks. Faults that are lies in the words of one protocol stand with it:

    fault                             plain       masked                  amortised       shares          groups
    silence at every stage            here        here, test_masked       here, itself    here, itself    here, itself
    garbage, too much, late, twice    here        here, tamper tests      here, itself    here, itself    here
    another run's, round's, client's  here        here                    here            here, itself    here
    two stories, replay               here        here, masked_client     here, itself    here, itself    here
    another roster, other keys        -           here, test_roster       here, chains    here, itself    here
    lists of survivors that lie       -           masked_client           itself          itself          as masked
    both shares of one client         -           masked_client           itself          once only       as masked
    a word beyond the ring's range    here        here, test_masked       here, itself    here            here
    NaN, infinity                     before any of them: tests/train/test_rounds, crypto/test_fixed
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from confide.cohort.roster import ROSTER, Roster, pinned
from confide.crypto.keys import SigningKey
from confide.crypto.random import SeededRandomness, public_stream
from confide.errors import Aborted, ConfideError, ProtocolError, UsageError
from confide.ideal import Aggregator, Cohort, PlainSum, Session, Sums, Vector
from confide.secagg import Groups, GroupSums, Masked, MaskedSums, Shares
from confide.secagg.masked_terms import VECTOR
from confide.train.parts import AGGREGATORS
from confide.wire import LATE_TICKS, Fault, MemoryStore, Message, Transcript, alter, drop, lose, run
from conformance.cases import Federation, assert_is_sum, bytes_are_uniform, tags_of
from tee.aggregators import as_on_hardware

TRIED = {**AGGREGATORS, "tee": as_on_hardware}
HIDING = {name: kind for name, kind in TRIED.items() if kind().guarantee.hides("update", "server")}

every_aggregator = pytest.mark.parametrize("aggregator", [kind() for kind in TRIED.values()], ids=TRIED)
every_hiding_aggregator = pytest.mark.parametrize("aggregator", [kind() for kind in HIDING.values()], ids=HIDING)

LIAR = "silo-1"
#: Long enough that the bytes of a body say whether they are noise. The ring of 32 bits is twice what honest sums need:
#: words that are none of this session's show in the sum.
LENGTH, RING_BITS = 3000, 32


def federation(aggregator: Aggregator, clients: int = 5, quorum: int = 3) -> Federation:
    return Federation(aggregator, clients, quorum, seed="faults")


def wide(parties: Federation, number: int) -> Session:
    return parties.session(number, length=LENGTH, bound=2 ** (RING_BITS - 1) // (2 * parties.clients) + 1)


def constant(parties: Federation, session: Session) -> dict[str, Vector]:
    """Return a vector for each client that shows at once if it is not masked."""
    return {name: np.full(session.length, 7 + at, np.int64) for at, name in enumerate(parties.cohort.clients)}


def blamed(done: Transcript) -> set[str]:
    """Return whom the server accuses, in its output or in the text of its refusal."""
    error = done.failures.get("server")
    if error is not None:
        return set(re.findall(r"[;:] (\S+) (?:sent|dealt|answered|advertised)", str(error)))
    output: Sums = done.output("server")
    parts = output.inner if isinstance(output, GroupSums) else (output,)
    named = {name for part in parts if isinstance(part, MaskedSums) for name in part.blamed}
    if isinstance(output, GroupSums):
        named |= set(re.findall(r"; (\S+) (?:sent|dealt|answered|advertised)", " ".join(output.left_out.values())))
    return named


def with_vector(message: Message) -> bool:
    """Return True for a client's message that is as large as a vector; what servers pass on is sums or public."""
    return message.src.startswith("silo") and len(message.body) >= LENGTH * RING_BITS // 8


def out_of_range(done: Transcript) -> bool:
    """Return True if the server only saw that some vector was none of this session's: it cannot tell whose."""
    text = str(done.failures.get("server"))
    return "sum within clients * bound" in text or "the tags do not hold" in text


def outcome(parties: Federation, done: Transcript, vectors: Mapping[str, Vector]) -> frozenset[str] | None:
    """Check what must hold under every fault; return the members of the sum, or None if the server refused."""
    assert all(isinstance(error, ConfideError) for error in done.failures.values())
    assert blamed(done) <= {LIAR}
    hidden = parties.aggregator.guarantee.hides("update", "server")
    for name in parties.cohort.clients:
        sent = [message for message in done.messages if message.src == name]
        assert len({message.tag for message in sent}) == len(sent)  # one body per stage
        assert all(bytes_are_uniform(message.body) == hidden for message in sent if with_vector(message))
    if "server" in done.failures:
        assert isinstance(done.failures["server"], Aborted)
        return None
    members = assert_is_sum(done.output("server"), parties.aggregator, vectors)
    assert len(members) >= parties.quorum
    return members


# --- clients that misbehave -------------------------------------------------------------------------------------------

#: What the network delivers in place of one message of the liar: given that message and the liar's own of another run
#: and of an earlier round, by tag.
Lie = Callable[[Message, Mapping[str, bytes], Mapping[str, bytes]], list[tuple[int, Message]]]


def instead(message: Message, body: bytes, ticks: int = 0) -> list[tuple[int, Message]]:
    return [(ticks, Message(message.src, message.dst, message.tag, body))]


LIES: dict[str, Lie] = {
    "garbage": lambda message, _, __: instead(message, b"\xc1" * 40),
    "nothing in it": lambda message, _, __: instead(message, b""),
    "another type": lambda message, _, __: instead(message, b"\x93\x01\x02\x03"),
    "too much": lambda message, _, __: instead(message, message.body + bytes(1 << 20)),
    "out of range": lambda message, _, __: instead(message, message.body[:-1] + bytes([message.body[-1] ^ 0x80])),
    "late": lambda message, _, __: [(2 * LATE_TICKS, message)],
    "another run's": lambda message, run, _: instead(message, run[message.tag]),
    "an earlier round's": lambda message, _, earlier: instead(message, earlier[message.tag]),
}


def bodies_of(done: Transcript, name: str) -> dict[str, bytes]:
    return {message.tag: message.body for message in done.messages if message.src == name}


@every_aggregator
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.usefixtures("seeded_encapsulation")
def test_a_client_that_misbehaves_at_any_stage_is_out_or_ends_the_sum(aggregator: Aggregator, lie: str) -> None:
    """A plain server cannot tell an old body from a new one, so all of the liar's vectors are the same."""
    parties = federation(aggregator)
    hidden = aggregator.guarantee.hides("update", "server")
    other = replace(wide(parties, 0), run="another run")
    another = bodies_of(parties.sum(other, constant(parties, other)), LIAR)
    earlier = bodies_of(parties.sum(wide(parties, 0), constant(parties, other)), LIAR)
    for number, tag in enumerate(parties.client_tags(), start=1):
        session = wide(parties, number)
        vectors = constant(parties, session)

        def fault(message: Message, tag: str = tag) -> list[tuple[int, Message]]:
            hit = (message.src, message.tag) == (LIAR, tag)
            return LIES[lie](message, another, earlier) if hit else [(0, message)]

        done = parties.sum(session, vectors, fault)
        members = outcome(parties, done, vectors)
        if members is None:
            assert blamed(done) == {LIAR} or out_of_range(done)
        else:
            assert members >= frozenset(parties.cohort.clients) - {LIAR}
            assert LIAR not in members or number > 1 or not hidden
        quiet = lie in ("late", "out of range")  # silence is no lie, and one bit may lie where nobody has to look
        if isinstance(done.outputs.get("server"), MaskedSums | GroupSums) and not quiet:
            assert blamed(done) == {LIAR}


def test_in_a_ring_without_room_another_vector_is_not_noticed() -> None:
    """The control of the test above, and what docs/protocols/masked.md says: a wrong vector is not caught."""
    parties = federation(Masked())
    session = replace(wide(parties, 1), bound=(2**32 - 1) // (2 * parties.clients))
    vectors = constant(parties, session)
    other = replace(session, run="another run")
    another = bodies_of(parties.sum(other, vectors), LIAR)
    lie = lambda m: instead(m, another[m.tag]) if (m.src, m.tag) == (LIAR, VECTOR) else [(0, m)]  # noqa: E731
    done = parties.sum(session, vectors, lie)
    assert LIAR in done.output("server").members[0]
    with pytest.raises(AssertionError):
        outcome(parties, done, vectors)


@every_aggregator
@pytest.mark.usefixtures("seeded_encapsulation")
def test_of_two_different_messages_the_first_counts_and_the_second_is_on_record(aggregator: Aggregator) -> None:
    parties = federation(aggregator)
    for number, tag in enumerate(parties.client_tags(), start=1):
        session = wide(parties, number)
        vectors = constant(parties, session)

        def twice(message: Message, tag: str = tag) -> list[tuple[int, Message]]:
            second = instead(message, message.body[:-1] + bytes([message.body[-1] ^ 1]))
            return [(0, message), *second] if (message.src, message.tag) == (LIAR, tag) else [(0, message)]

        done = parties.sum(session, vectors, twice)
        assert outcome(parties, done, vectors) == frozenset(parties.cohort.clients)
        assert not blamed(done)
        assert [(message.src, message.tag) for message, _ in done.rejected] == [(LIAR, tag)]


@every_hiding_aggregator
@pytest.mark.usefixtures("seeded_encapsulation")
def test_another_client_s_message_is_nobody_s(aggregator: Aggregator) -> None:
    """silo-2's bodies arrive in silo-1's name as well, in place of its own."""
    parties = federation(aggregator)
    for number, tag in enumerate(parties.client_tags(), start=1):
        session = wide(parties, number)
        vectors = constant(parties, session)

        def copied(message: Message, tag: str = tag) -> list[tuple[int, Message]]:
            if message.tag != tag or message.src not in (LIAR, "silo-2"):
                return [(0, message)]
            copy = Message(LIAR, message.dst, tag, message.body)
            return [] if message.src == LIAR else [(0, message), (0, copy)]

        done = parties.sum(session, vectors, copied)
        members = outcome(parties, done, vectors)
        if members is None:
            assert blamed(done) == {LIAR} or out_of_range(done)
        else:
            assert members >= {"silo-0", "silo-2", "silo-3", "silo-4"}
            assert LIAR not in members or number > 1


# --- servers that lie -------------------------------------------------------------------------------------------------

STORIES: dict[str, Callable[[Session], Session]] = {
    "another model": lambda session: replace(session, model_hash=b"\1" * 32),
    "another roster": lambda session: replace(session, cohort=Cohort(session.cohort.clients[:4], 3)),
    "another order": lambda session: replace(session, cohort=Cohort(session.cohort.clients[::-1], 3)),
    "another quorum": lambda session: replace(session, cohort=Cohort(session.cohort.clients, 4)),
    "another round": lambda session: replace(session, round=session.round + 1),
    "another attempt": lambda session: replace(session, attempt=1),
    "another run": lambda session: replace(session, run="another run"),
    "another bound": lambda session: replace(session, bound=session.bound - 1),
}


@every_hiding_aggregator
@pytest.mark.parametrize("story", STORIES)
@pytest.mark.usefixtures("seeded_encapsulation")
def test_clients_that_were_told_two_stories_are_never_in_one_sum(aggregator: Aggregator, story: str) -> None:
    """Two clients believe another session than the server and the other three, who are a quorum."""
    parties = federation(aggregator)
    session = wide(parties, 1)
    vectors = constant(parties, session)
    misled = ("silo-0", "silo-1")
    running = parties.parties(session, vectors)
    if isinstance(aggregator, Groups) and story in ("another roster", "another order"):
        with pytest.raises(UsageError, match="the cohort that the groups were drawn for"):
            parties.party("silo-0", STORIES[story](session), vectors)
        return
    running |= {name: parties.party(name, STORIES[story](session), vectors) for name in misled}
    done = run(running, stores=parties.stores)
    assert all(isinstance(error, ProtocolError) for error in done.failures.values())
    assert all(bytes_are_uniform(message.body) for message in done.messages if with_vector(message))
    if "server" in done.outputs:
        members = assert_is_sum(done.output("server"), aggregator, vectors)
        assert members == {"silo-2", "silo-3", "silo-4"}


def test_the_plain_sum_mixes_two_stories() -> None:
    """The control: nothing ties a plain vector to its session."""
    parties = federation(PlainSum())
    session = parties.session()
    vectors = parties.vectors(session)
    told = {"silo-0": parties.party("silo-0", STORIES["another model"](session), vectors)}
    done = run(parties.parties(session, vectors) | told, stores=parties.stores)
    assert assert_is_sum(done.output("server"), parties.aggregator, vectors) == frozenset(parties.cohort.clients)


@every_hiding_aggregator
@pytest.mark.usefixtures("seeded_encapsulation")
def test_a_session_that_is_played_again_gets_not_a_byte(aggregator: Aggregator) -> None:
    parties = federation(aggregator)
    session = wide(parties, 2)
    vectors = constant(parties, session)
    assert outcome(parties, parties.sum(session, vectors), vectors) == frozenset(parties.cohort.clients)
    for repeated in (session, replace(session, round=1), replace(session, model_hash=b"\1" * 32)):
        again = parties.sum(repeated, {name: -vector for name, vector in vectors.items()})
        assert all(isinstance(again.failures[name], Aborted) for name in parties.roles if name != "helper")
        assert not [message for message in again.messages if message.src in parties.cohort.clients]


@every_hiding_aggregator
def test_a_roster_other_than_the_pinned_one_is_refused_and_the_pin_stays(aggregator: Aggregator) -> None:
    parties = federation(aggregator)
    pins = {name: parties.stores[name].get(ROSTER) for name in parties.roles}
    keys = pinned(parties.stores["server"]).keys() | {"silo-2": SigningKey(b"\7" * 32).public}
    fault = alter(lambda _: Roster(tuple(keys.items())).encode(), tag="secagg/roster", src="server", dst="silo-0")
    for store in parties.stores.values():
        store.commit({"groups/draw": None})  # else a second draw is refused before the roster comes
    done = run(
        {
            name: aggregator.setup(role, name, parties.cohort, parties.stores[name], SeededRandomness(f"again/{name}"))
            for name, role in parties.roles.items()
        },
        stores=parties.stores,
        fault=fault,
    )
    with pytest.raises(ProtocolError, match="Expected the roster pinned"):
        done.output("silo-0")
    assert {name: parties.stores[name].get(ROSTER) for name in parties.roles} == pins


# --- set-up -----------------------------------------------------------------------------------------------------------


def set_up(aggregator: Aggregator, fault: Fault | None = None) -> Transcript:
    cohort = Cohort(tuple(f"silo-{index}" for index in range(4)), 3)
    roles = cohort.parties(aggregator.roles)
    stores = {name: MemoryStore() for name in roles}
    rngs = {name: SeededRandomness(name) for name in roles}
    parties = {name: aggregator.setup(role, name, cohort, stores[name], rngs[name]) for name, role in roles.items()}
    return run(parties, stores=stores, fault=fault)


@every_hiding_aggregator
@pytest.mark.parametrize("lie", ["garbage", "nothing in it", "another type", "too much", "another client's"])
def test_a_client_that_misbehaves_at_set_up_ends_it_by_name(aggregator: Aggregator, lie: str) -> None:
    plain = set_up(aggregator)
    honest = bodies_of(plain, "silo-2")
    assert not plain.failures
    for tag in tags_of(plain, LIAR):

        def fault(message: Message, tag: str = tag) -> list[tuple[int, Message]]:
            if (message.src, message.tag) != (LIAR, tag):
                return [(0, message)]
            return instead(message, honest[tag]) if lie == "another client's" else LIES[lie](message, {}, {})

        done = set_up(aggregator, fault)
        assert isinstance(done.failures["server"], ProtocolError), tag
        noticed_itself = type(done.failures.get(LIAR)) is ProtocolError
        assert LIAR in str(done.failures["server"]) or noticed_itself, tag
        assert all(isinstance(error, ConfideError) for error in done.failures.values())
        assert not [name for name in done.outputs if name != LIAR]


@every_hiding_aggregator
def test_a_client_that_is_lost_at_set_up_ends_it_for_all(aggregator: Aggregator) -> None:
    for tag in tags_of(set_up(aggregator), LIAR):
        done = set_up(aggregator, lose(LIAR, tag=tag))
        assert isinstance(done.failures["server"], Aborted), tag
        assert not done.outputs


# --- every loss among few clients, losses at random among many --------------------------------------------------------


def leaving(after: Mapping[str, int]) -> Fault:
    """Let each client of `after` die once it has sent that many messages."""
    left = dict(after)

    def fault(message: Message) -> list[tuple[int, Message]]:
        if message.src in left:
            left[message.src] -= 1
            return [(0, message)] if left[message.src] >= 0 else []
        return [] if left.get(message.dst, 0) < 0 else [(0, message)]

    return fault


@every_aggregator
def test_every_loss_of_one_or_two_of_five_clients_leaves_the_exact_sum(aggregator: Aggregator) -> None:
    """Each after any number of its messages, none included. Whoever sent nothing is out, whoever stayed is in.

    Every pair at every two stages of a protocol with five stages is long, and stands in test_masked alone.
    """
    parties = federation(aggregator)
    stages = range(len(parties.client_tags()) + 1)
    lost = [((name,), (after,)) for name in parties.cohort.clients for after in stages]
    if len(stages) < 5:
        pairs = combinations(parties.cohort.clients, 2)
        lost += [(pair, after) for pair, after in product(pairs, product(stages, stages))]
    for number, (names, after) in enumerate(lost, start=1):
        session = parties.session(number)
        vectors = parties.vectors(session)
        done = parties.sum(session, vectors, leaving(dict(zip(names, after, strict=True))))
        members = outcome(parties, done, vectors)
        assert members is not None, (names, after)
        assert members >= frozenset(parties.cohort.clients) - set(names)
        assert not members & {name for name, sent in zip(names, after, strict=True) if not sent}


def test_without_a_helper_there_is_no_sum_of_shares() -> None:
    parties = federation(Shares())
    session = parties.session()
    done = parties.sum(session, parties.vectors(session), drop(src="helper"))
    assert isinstance(done.failures["server"], Aborted)


@every_aggregator
@pytest.mark.parametrize("clients", [12, 20])
def test_any_losses_among_many_clients_down_to_the_quorum_leave_the_exact_sum(
    aggregator: Aggregator, clients: int
) -> None:
    """Each trial draws how many leave, who, and after which of their messages. At last one more than may leave does."""
    quorum = clients // 2 + 1
    parties = federation(aggregator, clients, quorum)
    names = np.array(parties.cohort.clients)
    most = len(parties.client_tags()) + 2
    draw = public_stream(clients, "losses")
    for number in range(1, 7):
        session = parties.session(number)
        vectors = parties.vectors(session)
        gone = draw.permutation(names)[: draw.integers(1, clients - quorum + 1)]
        after = {str(name): int(draw.integers(0, most)) for name in gone}
        done = parties.sum(session, vectors, leaving(after))
        members = outcome(parties, done, vectors)
        stayed = frozenset(map(str, names)) - set(after)
        if isinstance(aggregator, Groups):  # a group may fall below its own quorum: then it is left out as a whole
            if members is not None:
                out = {name for group in done.output("server").left_out for name in group}
                assert stayed - out <= members
            continue
        assert members is not None
        assert members >= stayed
        assert not members & {name for name, sent in after.items() if sent == 0}
    session = parties.session(7)
    vectors = parties.vectors(session)
    after = dict.fromkeys(map(str, draw.permutation(names)[: clients - quorum + 1]), 0)
    assert outcome(parties, parties.sum(session, vectors, leaving(after)), vectors) is None
