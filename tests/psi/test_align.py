"""Alignment: the same people in the same order at both, nothing about the others, hostile bytes, the real network."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.crypto.points import BlindingKey
from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.errors import Aborted, DataError, ProtocolError, UsageError
from confide.net.exchange import Envelope, Exchange
from confide.net.link import Arrived
from confide.psi import align as psi
from confide.psi.align import AGREED, BLINDED, DOUBLED, GUARANTEE, align, normalised
from confide.wire import Message, Step, alter, drop, encode, repeat, run, truncate
from net.federation import Federation, until

ONE, OTHER = "clinic", "registry"


def parties(mine, theirs, *, rng=None, **more):
    sources = {name: SeededRandomness(f"{rng} {name}") if rng else SystemRandomness() for name in (ONE, OTHER)}
    both = {"session": "trial", **more}
    return {
        ONE: align(ONE, OTHER, mine, rng=sources[ONE], **both),
        OTHER: align(OTHER, ONE, theirs, rng=sources[OTHER], **both),
    }


def people(count, offset=0):
    return [f"person {number + offset}" for number in range(count)]


names = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: normalised(text, "exact")),
    min_size=1,
    max_size=12,
    unique_by=lambda text: normalised(text, "exact"),
)


@settings(max_examples=40, deadline=None)
@given(names, names, st.integers(0, 12))
def test_both_find_the_same_people_in_the_same_order(mine, theirs, shared):
    known = {normalised(text, "exact") for text in theirs}
    theirs = theirs + [text for text in mine[:shared] if normalised(text, "exact") not in known]
    done = run(parties(mine, theirs))
    here, there = done.output(ONE), done.output(OTHER)
    found = [normalised(mine[row], "exact") for row in here.rows]
    assert found == [normalised(theirs[row], "exact") for row in there.rows]
    assert set(found) == {normalised(t, "exact") for t in mine} & {normalised(t, "exact") for t in theirs}
    assert (here.mine, here.theirs) == (there.theirs, there.mine) == (len(mine), len(theirs))
    assert "rows" not in repr(here)


def test_the_order_says_nothing_about_either_table():
    """New in every session, and nobody's own: 60 rows come in a table's order by chance once in 60! times."""
    mine = people(60)
    orders = []
    for _ in range(4):
        done = run(parties(mine, mine[::-1]))
        orders.append(done.output(ONE).rows.tolist())
        assert [59 - row for row in done.output(OTHER).rows.tolist()] == orders[-1]
    assert len({tuple(order) for order in [*orders, range(60), range(59, -1, -1)]}) == 6
    # over the sessions no row keeps its place: the mean place of each row is spread as of random orders
    assert np.std(np.mean([np.argsort(order) for order in orders], axis=0)) > 4


def test_what_travels_is_in_an_order_of_its_own():
    done = run(parties(people(40), people(40, 20)))
    for message in done.messages:
        if message.tag == BLINDED:
            body = psi._points(psi.decode(message.body, psi._Blinded, max_bytes=1 << 20).points, message.src)
            assert body == sorted(body)


def tried(view, session_context, dictionary):
    """How many of a dictionary's entries somebody finds in what was sent to them, by hashing and comparing."""
    unblinded = BlindingKey(_One())
    found = {unblinded.of_text(session_context + normalised(text, "exact")) for text in dictionary}
    return sum(point in message.body for message in view for point in found)


class _One:
    """Gives the factor 1, which blinds nothing."""

    origin = "test"

    def below(self, bound):
        return 0


def test_a_dictionary_finds_nobody_in_what_was_sent_and_everybody_without_the_factor():
    mine, theirs = people(30), people(30, 20)
    context = psi._context(ONE, OTHER, "trial", "exact")
    done = run(parties(mine, theirs))
    assert tried(done.messages, context, mine + theirs) == 0
    open_ = {
        ONE: align(ONE, OTHER, mine, session="trial", rng=_One()),
        OTHER: align(OTHER, ONE, theirs, session="trial", rng=SystemRandomness()),
    }
    assert tried(run(open_).view(OTHER), context, mine) >= 30  # the control
    for message in done.messages:
        assert not any(text.encode() in message.body for text in mine)


def test_equal_identifiers_have_other_points_in_another_session():
    views = [run(parties(people(5), people(5), rng="same", session=name)).view(ONE)[0].body for name in ("a", "b")]
    assert views[0] != views[1]
    points = [set(psi._points(psi.decode(body, psi._Blinded, max_bytes=1 << 20).points, "x")) for body in views]
    assert not points[0] & points[1]


def test_seeded_runs_repeat():
    done = [run(parties(people(9), people(9, 4), rng="same")) for _ in range(2)]
    assert [m.body for m in done[0].messages] == [m.body for m in done[1].messages]


@pytest.mark.parametrize(
    ("rule", "one", "other", "same"),
    [
        ("exact", " AB-12 ", "AB-12", True),
        ("exact", "e\u0301", "\u00e9", True),
        ("exact", "AB-12", "ab-12", False),
        ("letters and digits", "AB-12 3", "ab123", True),
        ("letters and digits", "\uff21\uff22\u0031", "ab1", True),
        ("letters and digits", "ab12", "ab13", False),
    ],
)
def test_rules(rule, one, other, same):
    assert (normalised(one, rule) == normalised(other, rule)) is same


@pytest.mark.parametrize(
    ("identifiers", "rule", "text"),
    [
        ([], "exact", "0 of 0"),
        (["a", " ", ""], "exact", "2 of 3"),
        (["secret-1", "b", "secret-1 "], "exact", "1 rows repeat"),
        (["secret-1", "SECRET 1", "secret1"], "letters and digits", "2 rows repeat"),
        (["--", "a"], "letters and digits", "1 of 2"),
    ],
)
def test_rows_that_are_nobodys_or_somebodys_twice_are_counted_and_not_named(identifiers, rule, text):
    with pytest.raises(DataError, match=text) as raised:
        align(ONE, OTHER, identifiers, session="s", rng=SystemRandomness(), rule=rule)
    assert "secret" not in str(raised.value).lower()


@pytest.mark.parametrize("wrong", [{"rule": "foo"}, {"session": "\ud800"}, {"identifiers": [1, None]}])
def test_arguments_that_are_no_text_and_no_rule_are_refused(wrong):
    with pytest.raises(UsageError, match="Expected"):
        align(ONE, OTHER, **{"identifiers": ["a"], "session": "s", "rng": SystemRandomness(), **wrong})


def test_names_and_session_are_needed():
    for me, session in ((OTHER, "s"), (ONE, "")):
        with pytest.raises(UsageError):
            align(me, OTHER, ["a"], session=session, rng=SystemRandomness())


# --- who deviates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{"session": "another"}, {"rule": "letters and digits"}])
def test_parties_that_have_agreed_on_different_things_stop_before_they_answer(more):
    mixed = parties(people(5), people(5)) | {
        OTHER: parties(people(5), people(5), **({"session": "trial"} | more))[OTHER]
    }
    done = run(mixed)
    assert isinstance(done.failures[ONE], ProtocolError)
    assert {message.tag for message in done.messages} == {BLINDED}


def played(bodies, mine=("a", "b", "c"), **more):
    """Run an honest party against one that answers with these bodies; a callable gets what the honest one has sent."""
    sent = {}

    def liar():
        for tag, body in zip((BLINDED, DOUBLED, AGREED), bodies, strict=False):
            made = body(sent) if callable(body) else body
            received = yield Step(send=(Message(OTHER, ONE, tag, made),), await_tag=tag, wait_for=(ONE,))
            sent[tag] = received[ONE].body

    honest = align(ONE, OTHER, list(mine), session="trial", rng=SystemRandomness(), **more)
    done = run({ONE: honest, OTHER: liar()})
    assert ONE not in done.outputs
    return done.failures[ONE]


CONTEXT = psi._context(ONE, OTHER, "trial", "exact")
KEY = BlindingKey(SeededRandomness("liar"))
POINTS = sorted(KEY.of_text(bytes([number])) for number in range(4))


def blinded(points, context=CONTEXT):
    return encode(psi._Blinded(context, b"".join(points)))


GOOD = blinded(POINTS)


def doubled_of(sent):
    """What an honest party would answer."""
    theirs = psi._points(psi.decode(sent[BLINDED], psi._Blinded, max_bytes=1 << 20).points, ONE)
    return encode(psi._Doubled(b"".join(map(KEY.of_point, theirs))))


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"\xc1",
        GOOD[:-1],
        GOOD + b"\0",
        blinded([]),
        blinded(POINTS, bytes(32)),
        blinded(POINTS[::-1]),
        blinded([POINTS[0], POINTS[0]]),
        blinded([POINTS[0], POINTS[1][:31]]),
        blinded([b"\xff" * 32]),
        blinded(sorted([*POINTS, bytes(31) + b"\x02"])),
        blinded(sorted(POINTS * 40)),
    ],
)
def test_a_list_that_no_honest_party_sends_is_refused(first):
    assert isinstance(played([first], most_rows=100), ProtocolError)


def test_a_party_that_shows_mine_as_its_own_is_refused():
    honest = align(ONE, OTHER, ["a", "b"], session="trial", rng=SystemRandomness())
    step = next(honest)
    mirrored = Message(OTHER, ONE, BLINDED, step.send[0].body)
    with pytest.raises(ProtocolError, match="own"):
        honest.send({OTHER: mirrored})


def test_more_rows_than_allowed_are_refused_by_their_size_alone():
    points = [number.to_bytes(32, "big") for number in range(1, 200)]  # not even points
    assert "at most" in str(played([blinded(points)], most_rows=100))


@pytest.mark.parametrize(
    "second",
    [
        b"",
        encode(psi._Doubled(b"")),
        encode(psi._Doubled(bytes(64))),
        encode(psi._Doubled(bytes(96))),  # three times the same
        encode(psi._Doubled(bytes(range(95)))),
        encode(psi._Doubled(bytes(4 * 32 + 300))),
    ],
)
def test_an_answer_that_is_not_one_point_for_each_is_refused(second):
    assert isinstance(played([GOOD, second]), ProtocolError)


@pytest.mark.parametrize(
    ("third", "text"),
    [
        (b"", "well-formed"),
        (encode(psi._Agreed(b"")), "same rows"),
        (encode(psi._Agreed(hashlib.sha256(b"x").digest())), "same rows"),
    ],
)
def test_who_finds_others_in_common_is_refused(third, text):
    assert text in str(played([GOOD, doubled_of, third]))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([BLINDED, DOUBLED, AGREED]), st.binary(max_size=300), st.integers(0, 200), st.integers(1, 255))
def test_any_bytes_are_an_answer_or_a_protocol_error(tag, body, place, flip):
    """Noise, and an honest message with one byte changed."""

    def changed(honest):
        at = place % len(honest)
        return honest[:at] + bytes([honest[at] ^ flip]) + honest[at + 1 :]

    for change in (lambda _: body, changed):
        done = run(parties(["a", "b"], ["b", "c"]), fault=alter(change, src=OTHER, tag=tag))
        assert ONE not in done.outputs
        assert isinstance(done.failures[ONE], ProtocolError | Aborted)


def test_faults_of_the_network():
    for fault in (drop(src=OTHER, tag=DOUBLED), truncate(10, src=OTHER, tag=BLINDED)):
        done = run(parties(people(3), people(3)), fault=fault)
        assert isinstance(done.failures[ONE], ProtocolError | Aborted)
    done = run(parties(people(3), people(3)), fault=repeat())
    assert len(done.output(ONE).rows) == len(done.output(OTHER).rows) == 3


def test_what_is_promised():
    assert GUARANTEE.hides("identifiers that only one party has", "the other party")
    assert not GUARANTEE.verified_result
    done = run(parties(people(100), people(100, 50)))
    assert done.depth == 3
    assert done.bytes_sent(ONE) < 100 * 64 + 400


# --- the real network -------------------------------------------------------------------------------------------------


def test_over_tls_on_a_socket(tmp_path):
    """A registry that listens, a clinic that calls, each with its certificate: the rows of one process."""
    mine, theirs = people(50), people(50, 25)
    expected = run(parties(mine, theirs, rng="same"))
    with Federation(tmp_path) as federation:
        here, there = federation.joined(ONE), federation.host
        ends = {ONE: (here, "server", Exchange()), OTHER: (there, ONE, Exchange())}
        for name, party in parties(mine, theirs, rng="same").items():
            ends[name][2].open("alignment", party, me=name)
        until(lambda: min([moved(*end) for end in ends.values()]))  # each of them has its turn
        for name, (_, _, exchange) in ends.items():
            assert exchange.output("alignment").rows.tolist() == expected.output(name).rows.tolist()


def moved(link, peer, exchange):
    """Send what waits, take what came; return whether the party has ended."""
    for one in exchange.take():
        link.send(peer, one)
    if isinstance(event := link.receive(0.01), Arrived):
        message = event.envelope.message
        exchange.put(Envelope("alignment", message))
    return not exchange.is_open("alignment")
