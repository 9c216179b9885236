"""Batches without I/O: as few requests as the protocols allow, the right sums, and nothing from a carrier that lies."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.crypto.random import SeededRandomness
from confide.errors import ProtocolError
from confide.net.batch import HostBatches, Member, NodeBatches
from confide.net.exchange import Envelope
from confide.net.link import Arrived, Event, Joined, Left
from confide.train.parts import AGGREGATORS
from confide.wire import Message, run
from net import parties
from net.parties import key_of

CLIENTS = ("north", "south", "west")


def host(names: tuple[str, ...], **settings: float) -> HostBatches:
    members = {name: Member("helper" if name == "helper" else "node", key_of(name).public) for name in names}
    return HostBatches(key_of("server"), members, SeededRandomness("host"), **settings)


def node(name: str, *, signer: str = "") -> NodeBatches:
    role = "helper" if name == "helper" else "node"
    key = key_of(signer or name)
    return NodeBatches(name, role, key, key_of("server").public, SeededRandomness(f"nonces/{name}"))


def message(src: str, dst: str, tag: str = "tag", body: bytes = b"body") -> Envelope:
    return Envelope("session", Message(src, dst, tag, body))


def ask(host: HostBatches, node: NodeBatches, place: int = 7, now: float = 0.0) -> list[Event]:
    """Carry the request to `node` and the reply back; return what happened at the node."""
    ((asked, request),) = host.requests_due(now)
    assert asked == place
    node.request(1, request)
    events = list(iter(node.next_event, None))
    due = node.reply_due()
    assert due is not None
    host.replied(place, due[1])
    return events


def drain(host: HostBatches) -> list[Event]:
    return list(iter(host.next_event, None))


@pytest.fixture
def pair() -> tuple[HostBatches, NodeBatches]:
    """Return a coordinator and a node that has joined at place 7."""
    one, other = host(("north",)), node("north")
    one.places([7])
    assert ask(one, other) == [Joined("server", "coordinator")]
    assert drain(one) == [Joined("north", "node")]
    assert not one.strangers
    return one, other


# --- the federation without a network ---------------------------------------------------------------------------------


class Carried:
    """Members behind batches; every step of the carrier is one request to each place that is due, and its reply."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.host = host(names)
        self.nodes = {place: (node(name), parties.Member(name)) for place, name in enumerate(names, start=11)}
        self.host.places(self.nodes)
        self.requests: Counter[str] = Counter()
        self.total = 0
        self.coordinator = parties.Coordinator(self.host.send, self.receive)
        self.coordinator.wait_for(set(names))

    def receive(self) -> Event | None:
        if (event := self.host.next_event()) is None:
            for place, request in self.host.requests_due(0.0):
                batches, member = self.nodes[place]
                batches.request(place, request)
                self.requests[member.me] += 1
                self.total += 1
                while happened := batches.next_event():
                    for envelope in member.handle(happened):
                        batches.send(envelope)
                due = batches.reply_due()
                assert due is not None
                self.host.replied(*due)
        return event


#: Requests to each client and to the helper, for one sum; docs/flower.md has the same table.
REQUESTS = {
    "amortised": (2, 0),
    "groups": (5, 0),
    "he": (1, 2),
    "masked": (5, 0),
    "plain": (1, 0),
    "shares": (1, 2),
    "tee": (1, 2),
}


def least(aggregator: str, terms: list[dict[str, Any]]) -> int:
    """Return how often a client speaks in the last sum without waiting for itself: no fewer requests can do."""
    members = {name: parties.Member(name) for name in parties.roles_of(terms[0])}
    for each in terms:
        stores = {name: member.store for name, member in members.items()}
        done = run({name: member.party(each) for name, member in members.items()}, stores=stores)
    return max(sum(bool(event.sent) for event in done.events if event.party == name) for name in CLIENTS)


def test_every_aggregator_states_its_requests():
    assert set(REQUESTS) == set(AGGREGATORS)
    page = (Path(__file__).parents[2] / "docs" / "flower.md").read_text()
    for name, (client, helper) in REQUESTS.items():
        assert re.search(rf"^\| `{name}` \| {client} \| {helper or '-'} \|", page, re.MULTILINE), name


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_sums_are_those_of_one_process_in_as_few_requests_as_can_be(aggregator):
    terms = parties.rounds(aggregator, CLIENTS, quorum=3, sums=3, length=9)
    expected = parties.in_one_process(terms)
    carried = Carried(tuple(name for name in parties.roles_of(terms[0]) if name != "server"))
    assert set(carried.requests.values()) == {1}  # a hello each
    carried.coordinator.sum(terms[0])
    for each, theirs in zip(terms[1:], expected[1:], strict=True):
        carried.requests.clear()
        ours = carried.coordinator.sum(each)
        np.testing.assert_array_equal(ours.values, theirs.values)
        assert ours.members == theirs.members
        assert {carried.requests[name] for name in CLIENTS} == {least(aggregator, terms)} == {REQUESTS[aggregator][0]}
        assert carried.requests["helper"] == REQUESTS[aggregator][1]
    assert carried.host.requests == carried.total


# --- what leaves when -------------------------------------------------------------------------------------------------


def test_everything_for_a_node_leaves_in_one_request_and_everything_back_in_one_reply(pair):
    host, node = pair
    sent = [message("server", "north", f"tag {index}") for index in range(3)]
    for envelope in sent:
        host.send("north", envelope)
    ((_, request),) = host.requests_due(0.0)
    node.request(1, request)
    assert [node.next_event() for _ in sent] == [Arrived("server", envelope) for envelope in sent]
    back = [message("north", "south", f"answer {index}") for index in range(4)]
    for envelope in back:
        node.send(envelope)
    host.replied(7, node.reply_due()[1])
    assert drain(host) == [Arrived("north", envelope) for envelope in back]
    assert not host.requests_due(0.0)


def test_a_reply_waits_until_every_message_was_handed_over(pair):
    host, node = pair
    host.send("north", message("server", "north"))
    ((_, request),) = host.requests_due(0.0)
    node.request(1, request)
    assert node.reply_due() is None
    assert isinstance(node.next_event(), Arrived)
    assert node.next_event() is None
    assert node.reply_due() is not None
    assert node.reply_due() is None


def test_a_busy_node_is_asked_once_and_gets_the_rest_later(pair):
    host, node = pair
    host.send("north", message("server", "north", "first"))
    ((_, request),) = host.requests_due(0.0)
    host.send("north", message("server", "north", "second"))
    assert not host.requests_due(1e9)
    node.request(1, request)
    assert node.next_event().envelope.message.tag == "first"
    host.replied(7, node.reply_due()[1])
    (event,) = ask(host, node)
    assert event.envelope.message.tag == "second"


def test_a_node_that_speaks_unasked_is_heard_at_the_next_beat(pair):
    host, node = pair
    node.send(message("north", "server"))
    assert not host.requests_due(29.0)
    assert host.wait_seconds(29.0) == pytest.approx(1.0)
    assert ask(host, node, now=30.0) == []
    assert drain(host) == [Arrived("north", message("north", "server"))]


def test_what_is_sent_to_nobody_is_lost():
    one = host(("north",))
    one.send("north", message("server", "north"))
    one.places([7])
    other = node("north")
    ask(one, other)
    drain(one)
    assert not one.requests_due(0.0)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_after_a_lost_reply_both_sides_hear_that_they_have_met_again(pair):
    host, node = pair
    host.send("north", message("server", "north"))
    ((_, request),) = host.requests_due(0.0)
    node.request(1, request)
    assert node.next_event()
    node.send(message("north", "server", "lost"))
    assert node.reply_due()
    host.failed(7, "SuperNode gone")
    assert drain(host) == [Left("north", "SuperNode gone")]
    assert not host.requests_due(9.0)
    assert ask(host, node, now=10.0) == [Joined("server", "coordinator")]
    assert drain(host) == [Joined("north", "node")]


def test_a_caller_that_goes_away_takes_its_answer_with_it(pair):
    host, node = pair
    host.send("north", message("server", "north"))
    ((_, request),) = host.requests_due(0.0)
    node.request(4, request)
    node.gone(3)
    node.gone(4)
    assert node.next_event()
    assert node.reply_due() is None


def test_the_second_caller_gets_the_answer_and_the_first_is_named(pair):
    _, node = pair
    other = host(("north",))
    other.places([7])
    ((_, hello),) = other.requests_due(0.0)
    assert node.request(4, hello) is None
    assert node.request(5, hello) == 4
    while node.next_event():
        pass
    assert node.reply_due()[0] == 5


def test_a_node_that_started_again_is_met_again(pair):
    host, _ = pair
    again = node("north")
    host.send("north", message("server", "north"))
    ((_, request),) = host.requests_due(0.0)
    with pytest.raises(ProtocolError, match="answers its last one"):
        again.request(1, request)
    host.failed(7, "refused")
    assert ask(host, again, now=10.0) == [Joined("server", "coordinator")]
    assert drain(host) == [Left("north", "refused"), Joined("north", "node")]


def test_a_supernode_that_comes_back_under_another_id_replaces_the_old_one(pair):
    host, node = pair
    host.places([7, 8])
    assert ask(host, node, place=8) == [Joined("server", "coordinator")]
    assert [type(event) for event in drain(host)] == [Left, Joined]
    host.send("north", message("server", "north"))
    ((place, _),) = host.requests_due(1.0)
    assert place == 8


def test_who_is_at_a_place_that_goes_offline_has_left(pair):
    host, _ = pair
    host.places([])
    assert [type(event) for event in drain(host)] == [Left]
    assert not host.requests_due(1e9)


# --- a carrier that lies ----------------------------------------------------------------------------------------------


def exchange(host: HostBatches, node: NodeBatches) -> tuple[bytes, bytes]:
    """Return an honest request and reply, neither delivered to the host."""
    host.send("north", message("server", "north"))
    ((_, request),) = host.requests_due(0.0)
    node.request(1, request)
    assert node.next_event()
    node.send(message("north", "server", "answer"))
    return request, node.reply_due()[1]


def test_the_honest_exchange_is_taken(pair):
    """The control of the tests below: what they spoil would have arrived."""
    host, node = pair
    _, reply = exchange(host, node)
    host.replied(7, reply)
    assert drain(host) == [Arrived("north", message("north", "server", "answer"))]


def test_a_request_is_taken_once(pair):
    host, node = pair
    request, _ = exchange(host, node)
    with pytest.raises(ProtocolError, match="answers its last one"):
        node.request(2, request)


def test_a_reply_is_taken_once(pair):
    host, node = pair
    _, reply = exchange(host, node)
    host.replied(7, reply)
    drain(host)
    host.replied(7, reply)  # nothing is under way
    assert drain(host) == []
    host.send("north", message("server", "north"))
    assert host.requests_due(0.0)
    host.replied(7, reply)  # another request is
    assert [type(event) for event in drain(host)] == [Left]


@given(st.data())
def test_a_changed_bit_anywhere_is_noticed(data):
    one, other = host(("north",)), node("north")
    one.places([7])
    ask(one, other)
    drain(one)
    request, reply = exchange(one, other)
    spoilt = bytearray(data.draw(st.sampled_from([request, reply])))
    spoilt[data.draw(st.integers(0, len(spoilt) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    one.replied(7, bytes(spoilt))
    assert [type(event) for event in drain(one)] == [Left]
    with pytest.raises(ProtocolError):
        other.request(2, bytes(spoilt))


@given(st.binary(max_size=200))
def test_noise_is_refused_by_both(noise):
    one, other = host(("north",)), node("north")
    one.places([7])
    assert one.requests_due(0.0)
    one.replied(7, noise)
    assert drain(one) == []
    with pytest.raises(ProtocolError):
        other.request(1, noise)


def test_a_batch_above_the_limit_is_refused_before_it_is_taken_apart(pair):
    host, node = pair
    host.send("north", message("server", "north", body=bytes(1000)))
    ((_, request),) = host.requests_due(0.0)
    node.max_bytes = 999
    with pytest.raises(ProtocolError, match="at most 999 bytes"):
        node.request(1, request)


def test_another_key_does_not_join_under_a_name():
    one = host(("north",))
    one.places([7])
    ask(one, node("north", signer="south"))
    assert drain(one) == []
    assert "signature" in one.strangers[7]


def test_nobody_joins_who_is_no_member():
    one = host(("north",))
    one.places([7])
    ask(one, node("east"))
    assert drain(one) == []


def test_a_node_does_not_join_as_a_helper():
    one = HostBatches(key_of("server"), {"north": Member("helper", key_of("north").public)}, SeededRandomness("host"))
    one.places([7])
    ask(one, node("north"))
    assert drain(one) == []


def test_a_request_for_another_node_is_refused(pair):
    host, _ = pair
    south = node("south")
    host.send("north", message("server", "north"))
    ((_, request),) = host.requests_due(0.0)
    with pytest.raises(ProtocolError, match="for south"):
        south.request(1, request)


def test_a_request_that_a_member_signed_is_none():
    other = HostBatches(key_of("south"), {}, SeededRandomness("host"))
    other.places([7])
    ((_, request),) = other.requests_due(0.0)
    with pytest.raises(ProtocolError, match="signature"):
        node("north").request(1, request)


def test_a_member_speaks_for_itself_alone(pair):
    host, node = pair
    node.send(message("south", "server"))
    ask(host, node, now=30.0)
    assert [type(event) for event in drain(host)] == [Left]


def test_a_reply_of_another_member_is_no_reply_of_this_one(pair):
    """South answers north's request, correctly signed by south."""
    one = host(("north", "south"))
    one.places([7])
    ask(one, node("north"))
    drain(one)
    one.send("north", message("server", "north"))
    assert one.requests_due(0.0)
    elsewhere = host(("south",))
    elsewhere.places([7])
    ((_, hello),) = elsewhere.requests_due(0.0)
    south = node("south")
    south.request(1, hello)
    south.next_event()
    one.replied(7, south.reply_due()[1])
    assert [type(event) for event in drain(one)] == [Left]
