"""The sessions of one process, alone: what peers may send, what waits, and who is told how one ended."""

from __future__ import annotations

import pytest

from confide.errors import Aborted, ProtocolError, StoreError, UsageError
from confide.net.exchange import Envelope
from confide.net.link import Arrived, Joined
from confide.serve.parties.circle import Circle, Me
from confide.serve.parties.circle import _There as There
from confide.serve.parties.messages import ABORT, VERSION, Abort, Hello, Order, check_session, letter, read, session_id
from confide.serve.parties.sessions import Bounds, Cast, Sessions
from confide.wire import MemoryStore, Message, Step

NAMES = {"client": "ann", "server": "server", "dealer": "broker"}


class Alone:
    """The sessions of a server whose links are lists."""

    def __init__(self, store=None, me="server", **bounds) -> None:
        self.sent: list[tuple[str, Envelope]] = []
        self.ended: list = []
        self.broken: list[BaseException] = []
        self.sessions = Sessions(
            me,
            lambda peer, envelope: self.sent.append((peer, envelope)),
            store or MemoryStore(),
            bounds=Bounds(**bounds),
            broken=self.broken.append,
        )

    def open(self, session, party, *, prefix="p/", names=NAMES):
        self.sessions.open(session, party, Cast("server", names), prefix=prefix, done=self.ended.append)

    def hears(self, peer, session, tag, body=b""):
        self.sessions.arrived(peer, Envelope(session, Message(peer, "server", tag, body)))

    def told(self):
        return {name: read(one.message) for name, one in self.sent if one.message.tag == ABORT}


def waits(tag="never", role="client"):
    yield Step(await_tag=tag, wait_for=(role,))
    return "done"


# --- ahead of an order ------------------------------------------------------------------------------------------------


def test_what_a_partner_sends_of_one_members_sessions_spends_nothing_of_others():
    one = Alone(early_sessions=4, early_bytes=1 << 20)
    for number in range(100):
        one.hears("broker", f"rogue/predict/{number}", "x", bytes(1 << 16))
    assert len(one.sessions._early) == 4
    one.hears("broker", "ann/predict/1", "x", b"ann")
    one.open("ann/predict/1", waits("x", "dealer"))
    assert one.ended[-1].output == "done"


def test_who_orders_is_dropped_for_what_comes_ahead():
    one = Alone(early_sessions=4)
    for number in range(4):
        one.hears("ann", f"ann/predict/{number}", "x")
    with pytest.raises(ProtocolError, match="order ahead"):
        one.hears("ann", "ann/predict/4", "x")


def test_empty_messages_ahead_are_not_free():
    one = Alone(early_bytes=1 << 20)
    for number in range(2000):
        one.hears("ann", "ann/predict/1", f"{number}")
    with pytest.raises(ProtocolError, match="order ahead"):
        one.hears("ann", "ann/predict/1", "x" * 20_000)
    assert one.sessions._early["ann", "ann/predict/1"].bytes > 2000 * 512


def test_what_comes_of_a_refused_session_is_thrown_away():
    one = Alone()
    one.hears("broker", "ann/setup/1", "x")
    one.sessions.shut("ann/setup/1")
    one.hears("broker", "ann/setup/1", "y")
    assert not one.sessions._early
    with pytest.raises(ProtocolError, match="id of its own"):
        one.open("ann/setup/1", waits())


# --- what waits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [bytes(1 << 16), b""])
def test_what_nobody_asked_for_ends_the_session_of_who_sent_it(body):
    one = Alone(waiting_bytes=1 << 20)
    one.open("ann/predict/1", waits())
    one.open("bob/predict/1", waits("x"), names=NAMES | {"client": "bob"})
    sent = 0
    while not one.ended:
        one.hears("ann", "ann/predict/1", f"any/{sent}", body)
        sent += 1
        assert sent < 4000
    assert "not asked for" in str(one.ended[0].error)
    assert sent * (len(body) + 512) < (1 << 20) + (1 << 17)
    one.hears("bob", "bob/predict/1", "x")
    assert one.ended[1].output == "done"


def test_what_was_asked_for_does_not_wait():
    def many():
        for number in range(50):
            yield Step(await_tag=f"{number}", wait_for=("client",))
        return "all"

    one = Alone(waiting_bytes=1 << 16)
    one.open("ann/predict/1", many())
    for number in range(50):
        one.hears("ann", "ann/predict/1", f"{number}", bytes(1 << 15))
    assert one.ended[0].output == "all"


def test_all_that_waits_has_a_limit_and_the_greediest_session_ends():
    one = Alone(total_waiting_bytes=1 << 20)
    for name in ("ann", "bob"):
        one.open(f"{name}/predict/1", waits("x"), names=NAMES | {"client": name})
    one.hears("bob", "bob/predict/1", "y", bytes(1000))
    for number in range(40):  # of the dealer, who sends what it was ordered: the client bounds it, and is not told
        one.hears("broker", "ann/predict/1", f"deal/{number}", bytes(1 << 16))
    assert [ended.session for ended in one.ended] == ["ann/predict/1"]
    assert "no room" in str(one.ended[0].error)


def test_a_session_takes_no_more_than_its_bytes_empty_or_not():
    one = Alone(session_bytes=100_000)
    one.open("ann/predict/1", waits())
    for number in range(300):
        one.hears("ann", "ann/predict/1", f"{number}")
    assert "100000 bytes in one session" in str(one.ended[0].error)


def test_a_member_has_so_many_sessions_open():
    one = Alone(sessions=3)
    for number in range(3):
        one.open(f"ann/predict/{number}", waits(), prefix=f"{number}/")
    with pytest.raises(ProtocolError, match="3 sessions at a time"):
        one.open("ann/predict/3", waits())
    one.open("bob/predict/3", waits(), names=NAMES | {"client": "bob"})


# --- the end ----------------------------------------------------------------------------------------------------------


def test_everybody_is_told_of_an_abort_and_of_who_ended_it():
    one = Alone()
    one.open("ann/setup/1", waits())
    said = Abort("Expected something", True)
    one.sessions.arrived("broker", letter("broker", "server", said, session="ann/setup/1"))
    assert one.told() == {"ann": Abort("Expected something", True, "broker")}
    ann = Alone(me="ann")
    ann.sessions.open("ann/setup/1", waits(role="server"), Cast("client", NAMES), prefix="", done=ann.ended.append)
    ann.sessions.arrived("server", one.sent[0][1])
    assert str(ann.ended[0].error) == "broker ended it: Expected something"


def test_who_takes_no_part_is_not_named_as_who_ended_it():
    one = Alone()
    one.open("ann/setup/1", waits())
    one.sessions.arrived("ann", letter("ann", "server", Abort("no", by="mallory"), session="ann/setup/1"))
    assert str(one.ended[0].error) == "ann ended it: no"


class Small(MemoryStore):
    """A disk with little room."""

    def commit(self, changes):
        if sum(len(value or b"") for value in changes.values()) > 1000:
            raise StoreError("Expected room on the disk")
        super().commit(changes)


def test_a_commit_that_fails_fails_for_its_own_session_alone():
    def saving(size):
        yield Step(send=(Message("server", "client", "said", b""),), save={"blob": bytes(size)})
        return size

    store = Small()
    one = Alone(store)
    for number, size in enumerate((10, 5000, 20, 30)):
        one.open(f"ann/predict/{number}", saving(size), prefix=f"{number}/")
    assert [ended.output for ended in one.ended] == [10, None, 20, 30]
    assert "store of server" in str(one.ended[1].error)
    assert [envelope.session for _, envelope in one.sent if envelope.message.tag == "said"] == [
        "ann/predict/0", "ann/predict/2", "ann/predict/3",
    ]  # fmt: skip
    assert store.keys() == ["0/blob", "2/blob", "3/blob"]


def test_a_peer_that_goes_while_it_is_sent_to_ends_its_session_and_nothing_else():
    one = Alone()

    def leaves(peer, envelope):
        if peer == "broker" and envelope.message.tag != ABORT:
            one.sessions.left("broker")

    one.sessions._send = leaves

    def saying():
        yield Step(
            send=tuple(Message("server", role, f"{at}", b"") for at in range(3) for role in ("dealer", "client"))
        )
        yield Step(await_tag="never", wait_for=("client",))

    one.open("ann/predict/1", saying())
    assert "lost" in str(one.ended[0].error)
    assert not one.broken


# --- turns ------------------------------------------------------------------------------------------------------------


class Nobody:
    def greeted(self, peer): ...
    def told(self, peer, body): ...
    def ordered(self, peer, session, order): ...
    def lost(self, peer, reason): ...


@pytest.fixture
def circle():
    me = Me(name="ann", role="client", url="", machine=b"S" * 32, identity=b"s" * 32, one_machine=True)
    one = Circle(me, MemoryStore(), Nobody())
    one.hello = lambda peer: None if peer == "absent" else True
    yield one
    one.close()


def cannot():
    raise UsageError("Expected keys for this model in the store; run setup first")


def test_who_waited_for_a_turn_and_cannot_begin_is_told(circle):
    cast, ended, sent = Cast("client", {"client": "ann", "server": "server"}), [], []
    circle.mesh.send = lambda peer, envelope: sent.append((peer, envelope.session, envelope.message.tag))

    def go():
        for number, build in enumerate((lambda: waits(role="server"), cannot, cannot, lambda: waits(role="server"))):
            circle.begin(f"ann/predict/{number}", build, cast, prefix="p/", kind="predict", done=ended.append)
        circle.sessions.abort("ann/predict/0", "over")

    circle.mesh.call(go)
    assert [one.session[-1] for one in ended] == ["0", "1", "2"]
    assert [type(one.error) for one in ended] == [Aborted, UsageError, UsageError]
    assert sent == [("server", f"ann/predict/{number}", ABORT) for number in (1, 2)]
    assert circle.sessions.is_open("ann/predict/3")


@pytest.mark.parametrize("names", [{"server": "server"}, {"server": "server", "dealer": "absent"}])
def test_who_cannot_begin_at_once_is_told_and_so_is_everybody(circle, names):
    ended, sent = [], []
    circle.mesh.send = lambda peer, envelope: sent.append(peer)
    cast = Cast("client", {"client": "ann"} | names)
    circle.mesh.call(lambda: circle.begin("ann/setup/1", cannot, cast, prefix="p/", kind="setup", done=ended.append))
    assert sent == list(names.values())
    assert len(ended) == 1
    assert not circle._turns


def test_a_client_that_claims_the_machine_of_a_partner_keeps_nobody_out(monkeypatch):
    """Digests of machines are told to everybody, so anybody can say one: who asks goes, the partner stays."""
    me = Me(name="server", role="coordinator", url="", machine=b"S" * 32, identity=b"s" * 32, one_machine=False)
    lines, dropped, there = [], [], {"mallory": "client", "broker": "dealer"}
    one = Circle(me, MemoryStore(), Nobody(), say=lines.append)
    monkeypatch.setattr("confide.serve.parties.circle.read_member", lambda der: type("Member", (), {"identity": der}))
    monkeypatch.setattr(one.mesh, "peer", lambda name: type("Peer", (), {"certificate": name.encode().ljust(32)}))
    monkeypatch.setattr(one.mesh, "address", lambda name: f"203.0.113.{len(name)}")
    monkeypatch.setattr(one.mesh, "drop", lambda name, reason: dropped.append(name))

    def hello(name):
        one._heard(Joined(name, there[name]))
        one._heard(Arrived(name, letter(name, "server", Hello(VERSION, "", b"D" * 32, False))))

    try:
        one.mesh.call(lambda: [hello(name) for name in there])
        assert one.facts("broker") is not None
        assert dropped == ["mallory"]
        assert "refused mallory" in lines[-1]
        with pytest.raises(ProtocolError, match="apart"):  # and the other way round it is refused itself
            one.mesh.call(lambda: hello("mallory"))
    finally:
        one.close()


def test_what_is_sent_of_sessions_of_members_who_are_not_here_is_thrown_away(circle):
    def go():
        circle._there["server"] = There("coordinator", hello=True)
        circle._there["bob"] = There("client", hello=True)
        for owner in ("ann", "bob", "eve"):
            circle._arrived("server", Envelope(f"{owner}/predict/1", Message("server", "ann", "x", b"")))
        return [session for _, session in circle.sessions._early]

    assert circle.mesh.call(go) == ["ann/predict/1", "bob/predict/1"]


# --- ids --------------------------------------------------------------------------------------------------------------


def test_ids_of_sessions_name_who_orders_them_and_what():
    order = Order("deal", bytes(32), "ann.b", b"", 1, 1)
    check_session(session_id("ann.b", "deal", bytes(16)), order)
    good = "ann.b/deal/" + "0" * 32
    for bad in (
        "",
        good + "\n",
        good[:-1],
        good.replace("ann.b", "annxb"),
        good.replace("deal", "setup"),
        good[:-1] + "G",
    ):
        with pytest.raises(ProtocolError, match="called after"):
            check_session(bad, order)
