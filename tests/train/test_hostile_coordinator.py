"""A node against a coordinator that it must not trust: what it wants is a second release that costs nothing."""

from __future__ import annotations

import msgspec
import pytest

from confide.crypto.random import SeededRandomness
from confide.errors import ProtocolError
from confide.net.exchange import Envelope
from confide.net.link import Arrived
from confide.train.control import ANSWER, END, NEWS, OFFER, OPEN, UNABLE, Answer, End, Open, Reason, control, session_id
from confide.train.course import Announcements, announcement
from confide.train.node import Member, Node
from confide.train.offer import Offer
from confide.train.setting import Setting
from confide.wire import MemoryStore, Message, decode
from train.federation import COORDINATOR, NAMES, SCHEMA, Federation, job_of, tables
from train.federation import Open as Gate

PRIVATE = {"epsilon": 1.0, "delta": 1e-5, "expected_records": 200}


class Victim:
    """A node that is spoken to by hand; what it sends is kept."""

    def __init__(self, tmp_path, aggregate: str = "plain", **sections) -> None:
        tables(tmp_path)
        self.job = job_of(tmp_path, train={"aggregate": aggregate, "rounds": 3, "attempts": 2}, **sections)
        self.federation = Federation(tmp_path, self.job)
        self.folder, self.store, self.gate = tmp_path, MemoryStore(), Gate()
        self.offer = self.offered("run-1")
        self.begin()

    def offered(self, run: str, job=None) -> Offer:
        return Offer.of(job or self.job, SCHEMA, self.federation.roster, run, coordinator=COORDINATOR.public)

    def begin(self) -> None:
        """Start the process, or start it again after a kill -9."""
        member = Member("north", "node", self.federation.keys["north"])
        self.node = Node(member, self.folder / "north.csv", self.gate, self.store, rng=SeededRandomness("victim"))

    def tell(self, tag: str, body, *, session: str = "") -> list[Message]:
        """Send a control message, and return what the node sends for it."""
        self.node.handle(Arrived("server", control("server", "north", tag, body, session=session)))
        return [envelope.message for envelope in self.node.take()]

    def accept(self, offer: Offer | None = None) -> Answer:
        (message,) = self.tell(OFFER, offer or self.offer)
        return decode(message.body, Answer, max_bytes=1 << 16)

    def start(self) -> None:
        assert self.accept().state == "accepted"
        course = Setting.of(self.job, _schema()).course()
        self.tell(NEWS, Announcements((announcement(course, None),)))

    def open(self, order: Open, run: str = "run-1") -> tuple[list[str], str]:
        """Order a session; return the tags of what leaves in it, and the reason if the node is unable."""
        sent = self.tell(OPEN, order, session=session_id(run, order))
        reasons = [decode(one.body, Reason, max_bytes=1 << 16).reason for one in sent if one.tag == UNABLE]
        return [one.tag for one in sent if one.tag != UNABLE], "".join(reasons)


def _schema():
    from confide.data.schema import Schema

    return Schema.read(SCHEMA, where="the schema")


def test_the_control_an_honest_order_gets_one_vector_and_one_charge(tmp_path):
    victim = Victim(tmp_path)
    victim.start()
    assert victim.open(Open("round", 0, 1, 0)) == (["plain/vector"], "")
    assert victim.gate.charges == [(1, 0, None)]


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (Open("round", 1, 1, 0), "for which a vector has left"),  # the same attempt under the keys of another set-up
        (Open("round", 0, 1, 2), "a sum of the job"),  # attempts without end average the noise away
        (Open("round", 0, 1, -1), "a sum of the job"),
        (Open("round", 0, 2, 0), "after the releases"),  # a round of which nothing was announced
        (Open("round", 0, 0, 0), "a sum of the job"),
        (Open("evaluate", 0, 4, 0), "a sum of the job"),
        (Open("evaluate", 0, 1, 1), "a sum of the job"),
    ],
)
@pytest.mark.parametrize("killed", [False, True])
def test_after_a_vector_has_left_no_other_order_gets_one(tmp_path, order, reason, killed):
    victim = Victim(tmp_path)
    victim.start()
    victim.open(Open("round", 0, 1, 0))
    if killed:
        victim.begin()
        victim.accept()
    tags, why = victim.open(order)
    assert tags == []
    assert reason in why
    assert victim.gate.charges == [(1, 0, None)]


def test_attempts_go_forward_only(tmp_path):
    victim = Victim(tmp_path)
    victim.start()
    assert victim.open(Open("round", 0, 1, 1))[0] == ["plain/vector"]
    assert victim.open(Open("round", 0, 1, 0))[0] == []
    assert victim.gate.charges == [(1, 1, None)]


def test_a_private_evaluation_comes_once_and_ends_the_training(tmp_path):
    victim = Victim(tmp_path, "masked", privacy=PRIVATE, data={"evaluate": "federated"})
    victim.start()
    tags, why = victim.open(Open("evaluate", 0, 4, 1))
    assert tags == []
    assert "a sum of the job" in why
    run = victim.node._run
    victim.store.commit({"run/run-1/charged": msgspec.msgpack.encode(Open("evaluate", 0, 4, 0))})  # its tally has left
    for order in (Open("round", 0, 1, 0), Open("evaluate", 1, 4, 0), Open("round", 0, 1, 1)):
        with pytest.raises(ProtocolError, match="for which a vector has left"):
            run.require_turn(order)


def test_one_run_s_id_never_stands_for_another_job(tmp_path):
    """Charges are counted by the run's id: another job under it would release for nothing."""
    victim = Victim(tmp_path)
    victim.start()
    victim.open(Open("round", 0, 1, 0))
    train = msgspec.structs.replace(victim.job.train, learning_rate=0.5)
    other = victim.offered("run-1", msgspec.structs.replace(victim.job, train=train))
    for _ in range(2):
        answer = victim.accept(other)
        assert answer.state == "refused"
        assert "one job" in answer.reason
        victim.begin()  # nor after a restart
    assert victim.accept(victim.offered("run-2", msgspec.structs.replace(victim.job, train=train))).state == "accepted"


def test_a_run_that_has_ended_gives_nothing_any_more_and_leaves_no_secret(tmp_path):
    victim = Victim(tmp_path, "masked")
    victim.start()
    assert victim.open(Open("setup", 0))[0]
    assert [key for key in victim.store.keys("run/") if "secagg" in key]
    victim.tell(END, End("run-1", "stopped by its coordinator"))
    assert {key.rpartition("/")[2] for key in victim.store.keys("run/")} <= {"offer", "charged", "ended"}
    for restarted in (False, True):
        if restarted:
            victim.begin()
        answer = victim.accept()
        assert (answer.state, answer.heard) == ("accepted", 0)  # so that an honest coordinator can end too
        for order in (Open("setup", 1), Open("round", 0, 1, 0), Open("round", 0, 1, 1)):
            tags, why = victim.open(order)
            assert tags == []
            assert "accepted" in why


def test_nothing_leaves_for_a_job_that_nobody_accepted(tmp_path):
    class Closed(Gate):
        def decide(self, offer, setting):
            from confide.train.node import Decision

            return Decision("pending", "Waiting for this node's people")

    victim = Victim(tmp_path)
    victim.gate = Closed()
    victim.begin()
    assert victim.accept().state == "pending"
    course = Setting.of(victim.job, _schema()).course()
    for tag, body in ((NEWS, Announcements((announcement(course, None),))), (END, End("run-1", model=b"x"))):
        assert {one.tag for one in victim.tell(tag, body)} <= {ANSWER}
    for order in (Open("setup", 0), Open("round", 0, 1, 0), Open("evaluate", 0, 4, 0)):
        tags, why = victim.open(order)
        assert tags == []
        assert "accepted" in why


@pytest.mark.parametrize(
    "tag",
    [
        "federation/offer",
        "federation/news",
        "federation/open",
        "federation/lines",
        "federation/close",
        "federation/end",
        "plain/vector",
        "",
        "x" * 200,
    ],
)
@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x80", b"\x93\x01\x02\x03", bytes(1 << 16), b"\xdf\xff\xff\xff\xff"])
def test_no_bytes_end_a_node(tmp_path, tag, body):
    victim = Victim(tmp_path)
    victim.start()
    for session in ("", "run-1/round/0/1/0", "\u202e"):
        envelope = Envelope(session, Message("server", "north", tag, body))
        victim.node.handle(Arrived("server", envelope))
        assert {one.message.tag for one in victim.node.take()} <= {ANSWER, UNABLE}
    assert victim.gate.charges == []
    assert NAMES[0] == victim.node.member.name
