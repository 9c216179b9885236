"""Who lies over the wire: a coordinator to nodes, a node to the coordinator and to other nodes."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.cohort.journal import Journal
from confide.crypto.keys import SigningKey
from confide.errors import Aborted, IntegrityError, ProtocolError, UsageError
from confide.ideal import PlainSum
from confide.model.preprocess import Preprocess
from confide.net.exchange import Envelope
from confide.net.link import Arrived, Joined
from confide.train import control
from confide.train.approval import Approvals
from confide.train.budget import Budget
from confide.train.control import Answer, End, Open, Ready, Reason, Release, Submission, Witnessed, session_id
from confide.train.course import Announcement, Announcements, announcement
from confide.train.desk import Desk
from confide.train.gate import PolicyGate
from confide.train.ledger import Ledger
from confide.train.node import Member, Node
from confide.train.offer import Offer
from confide.train.output import labelled
from confide.train.policy import parse_policy
from confide.train.setting import Setting
from confide.wire import Array, MemoryStore, Message, Step, encode
from train.federation import COORDINATOR, HELPER, NAMES, SCHEMA, Federation, job_of, tables
from train.test_coordinator import PRIVATE, lines_of

#: All but the cryptography: what leaves is a vector in the clear, so a test sees each.
POLICY = {
    "allow": {"aggregates": ["plain", "masked"]},
    "limits": {"hide_updates": False, "smallest_cohort": 1, "greatest_epsilon": 100.0, "require_privacy": False},
    "approval": {"by": "policy"},
}


class OneMessage(PlainSum):
    """Vectors in one message, with the journal that every aggregator has which hides them."""

    def party(self, role, me, session, vector, store, rng):
        journal = Journal(f"one/{session.run}", session, session.model_hash)
        body = journal.resumed(store) or vector.tobytes()
        yield Step(send=(Message(me, "server", "plain/vector", body),), save=journal.entry(body))


class Victim:
    """The node "north" with its real gate, and a coordinator that says to it whatever a test likes."""

    def __init__(self, folder, **sections):
        self.folder, self.store, self.vectors = folder, MemoryStore(), set()
        self.federation = Federation(folder, self.job(**sections))
        self.start()

    def job(self, **sections):
        train = {"rounds": 3, "attempts": 3} | dict(sections.pop("train", {}))
        return job_of(self.folder, train=train, **sections)

    def start(self):
        key = self.federation.keys["north"]
        self.gate = PolicyGate(
            parse_policy(POLICY),
            self.store,
            Approvals(self.folder),
            self.folder / "north.csv",
            coordinator=COORDINATOR.public.hex(),
        )
        self.released, self.said = [], []
        self.node = Node(
            Member("north", "node", key),
            self.folder / "north.csv",
            self.gate,
            self.store,
            say=self.said.append,
            release=lambda offer, model: self.released.append(model),
        )
        self.node.handle(Joined("server", "coordinator"))

    def offer(self, job, run="run-1"):
        return Offer.of(job, SCHEMA, self.federation.roster, run, coordinator=COORDINATOR.public)

    def tell(self, tag, body=b"", *, session="", src="server", dst="north"):
        """Say something, and return what leaves the node."""
        raw = body if isinstance(body, bytes) else encode(body)
        self.node.handle(Arrived("server", Envelope(session, Message(src, dst, tag, raw))))
        return [envelope.message for envelope in self.node.take()]

    def begin(self, job, run="run-1"):
        """Offer a job and announce its start; return the node's answer."""
        [answer] = self.tell(control.OFFER, self.offer(job, run).encode())
        found = msgspec.msgpack.decode(answer.body, type=Answer)
        if found.state == "accepted" and found.heard < 0:
            course = self.node._run.follower.course
            self.tell(control.NEWS, Announcements((announcement(course, None),)))
        return found

    def open(self, order, run="run-1"):
        """Ask for a sum; return how many vectors leave for the first time, and close the session as a liar would."""
        session = session_id(run, order)
        sent = self.tell(control.OPEN, order, session=session)
        self.tell(control.CLOSE, session=session)
        bodies = {message.body for message in sent if message.tag == "plain/vector"}
        new = bodies - self.vectors
        self.vectors |= bodies
        return len(new)

    @property
    def releases(self):
        return sum(account.releases for account in self.gate.budget.accounts)


@pytest.fixture
def folder(tmp_path):
    tables(tmp_path)
    return tmp_path


EVALUATED = {"data": {"evaluate": "federated"}, "privacy": PRIVATE}


@pytest.fixture
def one_message(monkeypatch):
    monkeypatch.setattr(Setting, "aggregator", lambda self, *_: OneMessage())


def victim(folder, **sections):
    found = Victim(folder, **sections)
    assert found.begin(found.federation.job).state == "accepted"
    return found


@pytest.mark.usefixtures("one_message")
def test_an_honest_order_of_sums_gives_one_vector_each_and_a_charge_each(folder):
    """The control of the tests below: they would pass if nothing ever left."""
    node = victim(folder, **EVALUATED)
    orders = [Open("round", 0, 1, 0), Open("round", 0, 1, 1), Open("evaluate", 0, 4, 0)]
    assert [node.open(order) for order in orders] == [1, 1, 1]
    assert node.releases == 3


@pytest.mark.parametrize(
    ("first", "again"),
    [
        pytest.param(Open("round", 0, 1, 0), Open("round", 0, 1, 0), id="the same session, closed and opened"),
        pytest.param(Open("round", 0, 1, 0), Open("round", 1, 1, 0), id="two set-ups"),
        pytest.param(Open("round", 0, 1, 1), Open("round", 0, 1, 0), id="attempts backwards"),
        pytest.param(Open("evaluate", 0, 4, 0), Open("evaluate", 0, 4, 0), id="the same evaluation"),
        pytest.param(Open("evaluate", 0, 4, 0), Open("evaluate", 0, 4, 1), id="another attempt at the evaluation"),
        pytest.param(Open("evaluate", 0, 4, 0), Open("evaluate", 1, 4, 0), id="an evaluation with other keys"),
        pytest.param(Open("round", 0, 1, 0), Open("evaluate", 0, 1, 0), id="an evaluation in a round's place"),
        pytest.param(Open("evaluate", 0, 4, 0), Open("round", 0, 1, 0), id="a round after the evaluation"),
    ],
)
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.usefixtures("one_message")
def test_no_second_noisy_vector_leaves_under_a_charge_of_the_first(folder, first, again, restart):
    node = victim(folder, **EVALUATED)
    assert node.open(first) == 1
    if restart:
        node.start()
        assert node.begin(node.federation.job).state == "accepted"
    assert node.open(again) == 0
    assert node.releases == 1


@pytest.mark.parametrize(
    "order",
    [
        Open("round", 0, 1, 3),
        Open("round", 0, 1, -1),
        Open("round", 0, 0, 0),
        Open("round", 0, 2, 0),
        Open("round", -1, 1, 0),
        Open("round", 10**6, 1, 0),
        Open("round", 0, 4, 0),
        Open("evaluate", 0, 1, 0),
        Open("evaluate", 0, 2, 0),
        Open("evaluate", 0, 5, 0),
        Open("evaluate", 0, 4, 1),
        Open("evaluate", 0, 4, -1),
    ],
)
@pytest.mark.usefixtures("one_message")
def test_sums_that_the_job_does_not_have_get_no_vector(folder, order):
    node = victim(folder, **EVALUATED)
    assert node.open(order) == 0
    assert node.releases == 0


@pytest.mark.usefixtures("one_message")
def test_held_out_records_stay_where_the_job_asks_for_no_evaluation(folder):
    node = victim(folder)
    assert [node.open(Open("evaluate", 0, number, 0)) for number in (1, 2, 4)] == [0, 0, 0]
    assert node.open(Open("round", 0, 1, 0)) == 1  # the control


orders = st.builds(
    Open,
    kind=st.sampled_from(["round", "evaluate", "setup"]),
    keys=st.integers(0, 2),
    number=st.integers(0, 5),
    attempt=st.integers(-1, 4),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=st.lists(st.one_of(orders, st.sampled_from(["restart", "offer", "nonsense"])), max_size=12))
@pytest.mark.usefixtures("one_message")
def test_whatever_a_coordinator_asks_each_vector_is_charged_and_none_leaves_twice(folder, told):
    node = victim(folder, **EVALUATED)
    vectors = []
    for one in told:
        if one == "restart":
            node.start()
            node.begin(node.federation.job)
        elif one == "offer":
            node.begin(node.federation.job)
        elif one == "nonsense":
            node.tell(control.NEWS, b"nonsense")
        elif node.open(one):
            vectors.append((one.number, one.attempt))
    assert vectors == sorted(set(vectors))
    assert node.releases == len(vectors)


# --- one id, one job -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_message")
def test_a_run_id_never_stands_for_a_second_job(folder):
    node = victim(folder, privacy=PRIVATE)
    assert node.open(Open("round", 0, 1, 0)) == 1
    other = node.job(privacy=PRIVATE, train={"rounds": 2})
    for again in (False, True):
        answer = node.begin(other)
        assert (answer.state, "one job" in answer.reason) == ("refused", True)
        assert node.open(Open("round", 0, 1, 0)) == 0
        if not again:
            node.start()
    assert node.begin(other, "run-2").state == "accepted"  # the control: under an id of its own it is charged by itself
    assert node.open(Open("round", 0, 1, 0), "run-2") == 1
    assert [account.releases for account in node.gate.budget.accounts] == [1, 1]


@pytest.mark.usefixtures("one_message")
def test_two_runs_on_one_data_set_add_up_and_other_splits_do_too(folder):
    """A record that is held out in one run may be trained on in the next: both runs' epsilon count in full."""
    node = victim(folder, **EVALUATED)
    node.open(Open("evaluate", 0, 4, 0))
    one = node.gate.budget.spent().epsilon
    data = {"evaluate": "federated", "test_fraction": 0.5}
    assert node.begin(node.job(data=data, privacy=PRIVATE), "run-2").state == "accepted"
    for number in (1,):
        node.open(Open("round", 0, number, 0), "run-2")
    first, second = (account.epsilon for account in node.gate.budget.accounts)
    assert first == one == pytest.approx(1.0)
    assert node.gate.budget.spent().epsilon == pytest.approx(first + second)
    assert second > 0


@pytest.mark.usefixtures("one_message")
def test_within_a_run_training_and_evaluation_count_as_the_larger_only(folder):
    node = victim(folder, **EVALUATED)
    node.open(Open("round", 0, 1, 0))
    node.open(Open("evaluate", 0, 4, 0))
    [account] = node.gate.budget.accounts
    assert (account.releases, account.epsilon) == (2, pytest.approx(1.0))


def test_a_budget_does_not_charge_another_job_to_a_run(folder):
    budget = Budget(MemoryStore(), "records")
    budget.charge(run="r", job="a" * 64, round=1, attempt=0, epsilon=0.5, delta=1e-6)
    with pytest.raises(UsageError, match="one job"):
        budget.charge(run="r", job="b" * 64, round=2, attempt=0, epsilon=0.5, delta=1e-6)


# --- who may speak as the coordinator --------------------------------------------------------------------------------


@pytest.mark.parametrize("src", ["east", HELPER, "north", ""])
@pytest.mark.usefixtures("one_message")
def test_nobody_else_speaks_as_the_coordinator(folder, src):
    node = victim(folder)
    order = Open("round", 0, 1, 0)
    session = session_id("run-1", order)
    other = node.offer(node.job(train={"rounds": 2}), "run-2").encode()
    for tag, body in (
        (control.OPEN, order),
        (control.NEWS, b"nonsense"),
        (control.OFFER, other),
        (control.LINES, b"nonsense"),
        (control.END, End("run-1")),
    ):
        assert node.tell(tag, body, session=session, src=src) == []
    assert node.tell(control.OPEN, order, session=session, dst="east") == []
    assert node.node._run.offer.run == "run-1"
    assert node.node.ended is None
    assert node.open(order) == 1  # the control


# --- an offer that is swapped while a session runs -------------------------------------------------------------------


def swaps(federation):
    other = job_of(federation.folder, train={"aggregate": "masked", "rounds": 2})
    run = "swapped-1"
    identity = SigningKey(b"somebody else".ljust(32, b".")).public
    strange = Offer.of(other, SCHEMA, federation.roster, run, coordinator=identity)
    return {
        "nonsense as news": (control.NEWS, b"nonsense"),
        "nonsense as an offer": (control.OFFER, b"nonsense"),
        "an offer that is refused": (control.OFFER, strange.encode()),
        "nonsense as an end": (control.END, b"nonsense"),
    }


@pytest.mark.parametrize(
    "swap", ["nonsense as news", "nonsense as an offer", "an offer that is refused", "nonsense as an end"]
)
def test_a_session_ends_with_the_run_that_it_belongs_to(folder, swap):
    """Its vector would leave without a charge."""
    job = job_of(folder, train={"aggregate": "masked", "attempts": 1, "rounds": 2}, privacy=PRIVATE)
    with Federation(folder, job) as federation:

        class Strict(type(federation.gates["north"])):
            def decide(self, offer, setting):
                if offer.coordinator != COORDINATOR.public:
                    raise ProtocolError("Expected another coordinator")
                return super().decide(offer, setting)

        tag, body = swaps(federation)[swap]
        for name in NAMES:
            federation.gates[name] = Strict()
            federation.start(name)
        sent, told = [], []

        def fault(peer, envelope, up):
            if up:
                sent.append((peer, envelope.message.tag, envelope.session))
                return [envelope]
            inside = "/round/" in envelope.session and envelope.message.tag.startswith("masked/")
            if peer == "north" and inside and not told:
                told.append(True)
                return [Envelope("", Message("server", "north", tag, body)), envelope]
            return [envelope]

        federation.wire.fault = fault
        done = list(federation.coordinator().rounds())
    assert told
    vectors = [(peer, session) for peer, at, session in sent if at == "masked/vector"]
    assert len([one for one in vectors if one[0] == "north"]) == len(federation.gates["north"].charges)
    assert [one for one in vectors if one[0] == "north"] == []
    assert (
        len([one for one in vectors if one[0] == "west"]) == len(federation.gates["west"].charges) == 2
    )  # the control
    assert len(done) == 2


# --- a model that is another one -------------------------------------------------------------------------------------


def test_the_parameters_in_another_model_are_refused(folder):
    def file(**fields):
        return replace(made, **fields).encode(COORDINATOR)

    with Federation(folder, job_of(folder)) as federation:
        for name in NAMES:
            federation.start(name)
        coordinator = federation.coordinator()
        list(coordinator.rounds())
        made = labelled(federation.job, coordinator.setting, coordinator.final(), Ledger())
        coordinator.finish(model=made.encode(COORDINATOR))
        members = federation.threads["west"].node
        own = members._run
        members._check_release(own, made.encode(COORDINATOR))  # the control
        prepare = msgspec.structs.replace(made.preprocess, unit_rows=not made.preprocess.unit_rows)
        assert isinstance(prepare, Preprocess)
        graph = replace(made.graph, classes=tuple(reversed(made.graph.classes)))
        for forged in (file(preprocess=prepare), file(graph=graph)):
            with pytest.raises(ProtocolError, match="released another"):
                members._check_release(own, forged)
        with pytest.raises(IntegrityError):
            members._check_release(own, made.encode(SigningKey(bytes(32))))


# --- a node that lies ------------------------------------------------------------------------------------------------


def lying(federation, name, edit):
    """Let a node's answers be edited."""

    def fault(peer, envelope, up):
        message = envelope.message
        if up and peer == name and message.tag == control.ANSWER:
            answer = msgspec.msgpack.decode(message.body, type=Answer)
            return [
                replace(envelope, message=replace(message, body=body)) for body in edit(answer, msgspec.msgpack.encode)
            ]
        return [envelope]

    federation.wire.fault = fault


def _raw(answer, encoded, **fields):
    return encoded(msgspec.to_builtins(answer) | fields)


@pytest.mark.parametrize("heard", [-5, -(2**62), 10**9, 2**62])
def test_a_forged_place_in_the_run_does_not_stop_a_coordinator(folder, heard):
    job = job_of(folder, train={"rounds": 2, "quorum": 3})
    with Federation(folder, job) as federation:
        for name in NAMES:
            federation.start(name)
        asked = []

        def edit(answer, encoded):
            asked.append(True)
            if len(asked) > 1:
                return [_raw(answer, encoded, heard=heard)]
            return [_raw(answer, encoded), _raw(answer, encoded, heard=heard)]

        lying(federation, "west", edit)
        done = list(federation.coordinator().rounds())
    assert len(done) == 2
    assert asked


def test_what_a_node_says_is_one_short_line_at_the_coordinator(folder):
    job = job_of(folder, train={"rounds": 2})
    ugly = "\x1b[2Jx\n\r\x07‮<script>" * 500
    with Federation(folder, job) as federation:
        for name in NAMES:
            federation.start(name)
        coordinator = federation.coordinator()
        sent = []

        def fault(peer, envelope, up):
            if up and peer == "west" and "/round/" in envelope.session and not sent:
                sent.append(True)
                back = [control.control("west", "server", control.UNABLE, Reason(ugly), session=envelope.session)]
                back += [
                    control.control("west", "server", control.UNABLE, Reason("x"), session=f"{n}") for n in range(99)
                ]
                back += [
                    control.control("west", "server", control.READY, Ready("x"), session=f"{n}") for n in range(99)
                ]
                back += [control.control("west", "server", control.ANSWER, Answer(coordinator.run_id, "pending", ugly))]
                back += [control.control("west", "server", control.WITNESSED, Witnessed((("a", 1, bytes(64)),) * 9999))]
                back += [control.control("east", "server", control.UNABLE, Reason("x"), session=envelope.session)]
                return [*back, envelope]
            return [envelope]

        federation.wire.fault = fault
        done = list(coordinator.rounds())
        peers = coordinator.meeting.peers
        assert sent
        assert len(done) == 2
        assert "east" in done[0].members  # nobody speaks for others
        assert all(len(peer.unable) + len(peer.done) <= 1 for peer in peers.values())
    said = [text for text in federation.said if text.startswith("server: ")]
    assert any("west is out of" in text for text in said)
    assert all(text.isprintable() and len(text) < 2500 for text in said)


@pytest.mark.parametrize("field", ["origin", "version", "head", "run"])
def test_an_answer_with_endless_names_is_none(field):
    body = msgspec.msgpack.encode(msgspec.to_builtins(Answer("run", "accepted")) | {field: "x" * 201})
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(body, type=Answer)


def test_a_node_that_repeats_its_answer_is_brought_in_once(folder):
    job = job_of(folder, train={"rounds": 2})
    with Federation(folder, job) as federation:
        for name in NAMES:
            federation.start(name)
        down = []

        def fault(peer, envelope, up):
            if up and envelope.message.tag == control.ANSWER:
                return [envelope] * 50
            if not up and envelope.message.tag == control.OPEN and "/round/0/1/0" in envelope.session:
                down.append(peer)
            return [envelope]

        federation.wire.fault = fault
        assert len(list(federation.coordinator().rounds())) == 2
    assert sorted(down) == sorted(NAMES)


# --- a ledger about something else -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "field", "value"),
    [("job", "job_hash", "0" * 64), ("job", "start", "0" * 64), ("job", "roster", []), ("job", "job", "")],
)
def test_a_node_signs_no_ledger_of_another_job(folder, event, field, value):
    class Liar(Ledger):
        def append(self, said, fields):
            return super().append(said, {**fields, field: value} if said == event else fields)

    with Federation(folder, job_of(folder, train={"rounds": 2})) as federation:
        for name in NAMES:
            federation.start(name)
        with pytest.raises(Aborted, match=f"says the same {field}"):
            list(federation.coordinator(ledger=Liar(federation.ledger_path, signer=COORDINATOR)).rounds())
    assert lines_of(federation, "countersigned") == []


# --- an analyst that fills the desk ----------------------------------------------------------------------------------


class Counter:
    """The link of a desk: what an analyst says, and what it hears."""

    def __init__(self):
        self.events, self.told = [Joined("ann", "analyst"), Joined("ben", "analyst")], []

    def hand_in(self, name, body):
        self.events.append(Arrived(name, Envelope("", Message(name, "server", control.SUBMIT, body))))

    def receive(self, timeout_seconds):
        return self.events.pop(0) if self.events else None

    def send(self, peer, envelope):
        kind = Release if envelope.message.tag == control.RELEASE else Reason
        self.told.append((peer, msgspec.msgpack.decode(envelope.message.body, type=kind).reason))


def submission(text):
    return encode(Submission(text, SCHEMA))


def test_one_analyst_neither_fills_the_queue_nor_the_store(folder):
    link, store = Counter(), MemoryStore()
    desk = Desk(link, store)
    for number in range(50):
        link.hand_in("ann", submission(f"a = {number}"))
    link.hand_in("ann", submission("#" * (1 << 22)))
    link.hand_in("ann", b"nonsense")
    link.hand_in("ben", submission("b = 1"))
    while link.events:
        desk.receive(0)
    accepted = [who for who, reason in link.told if "in the queue" in reason]
    assert (accepted.count("ann"), accepted.count("ben")) == (10, 1)
    while desk.next is not None:
        desk.done(Release("no"))
    for number in range(100, 160):
        link.hand_in("ann", submission(f"a = {number}"))
        desk.receive(0)
        desk.done(Release("no"))
    kept = store.keys("desk/release/")
    assert len([key for key in kept if key.startswith("desk/release/ann/")]) == 20
    assert len([key for key in kept if key.startswith("desk/release/ben/")]) == 1
    link.told.clear()
    link.hand_in("ben", submission("b = 1"))  # the control: what is kept is handed over again
    link.hand_in("ben", submission("a = 159"))  # another analyst's job is a job of one's own
    while link.events:
        desk.receive(0)
    assert [reason.split(" ")[0] for _, reason in link.told] == ["no", "number"]


# --- what stands in texts --------------------------------------------------------------------------------------------


def test_no_text_of_a_run_holds_a_record_a_parameter_or_a_key(folder):
    planted = "73.57"
    table = folder / "north.csv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head, *(f"{planted},111.13,yes" for _ in rows)]) + "\n")
    job = job_of(folder, train={"rounds": 2})
    with Federation(folder, job) as federation:
        for name in NAMES:
            federation.start(name)
        coordinator = federation.coordinator()
        list(coordinator.rounds())
        stored = {
            value.hex()
            for name in NAMES
            for key in federation.stores[name].keys("run/")
            if (value := federation.stores[name].get(key)) and 16 <= len(value) <= 64 and "keys-" in key
        }
        model = labelled(job, coordinator.setting, coordinator.final(), coordinator._ledger)
        coordinator.finish(model=model.encode(COORDINATOR))
        texts = "\n".join([*federation.said, federation.ledger_path.read_text(), coordinator.board.json().decode()])
        keys = [seed.hex() for seed in federation.keys.values()]
        weights = [f"{value:.6g}"[:7] for value in coordinator.course.kept if abs(value) > 1e-3]
    assert stored
    assert weights
    public = {SigningKey(seed).public.hex() for seed in federation.keys.values()}
    for secret in (planted, "111.13", *keys, *(stored - public), *weights):
        assert secret not in texts, secret
    assert coordinator.offer.job_hash in texts  # the control: such texts are found where they are
    assert lines_of(federation, "round")


@pytest.mark.usefixtures("one_message")
def test_sums_that_no_round_releases_are_not_followed(folder):
    node = victim(folder)
    course = node.node._run.follower.course
    length = course.encoding.length
    for members, shape in (((("north", "east"),), (1, length)), ((NAMES,), (1, length + 1)), (((),), (1, length))):
        values = msgspec.msgpack.encode(Array.of(np.zeros(shape, "int64")))
        sums = msgspec.msgpack.decode(values, type=Array)
        said = Announcement(1, course.model_hash, sums, members)
        [answer] = node.tell(control.NEWS, Announcements((said,)))
        assert msgspec.msgpack.decode(answer.body, type=Answer).state == "refused"
        assert node.begin(node.federation.job).state == "accepted"
    assert node.node._run.follower.heard == 0


def test_a_helper_under_the_coordinators_identity_is_no_offer(folder):
    federation = Federation(folder, job_of(folder, train={"aggregate": "shares", "helper": HELPER}))
    with pytest.raises(ProtocolError, match="different identities"):
        Offer.of(
            federation.job, SCHEMA, federation.roster, "r", coordinator=COORDINATOR.public, helper=COORDINATOR.public
        )
    with pytest.raises(ProtocolError, match="different identities"):
        Offer.of(
            federation.job,
            SCHEMA,
            federation.roster,
            "r",
            coordinator=COORDINATOR.public,
            helper=federation.roster.keys()["north"],
        )
