"""The course of a training: every silo recomputes the server's step, and refuses a server that took another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.dp.plan import PrivacyPlan
from confide.errors import IntegrityError, ProtocolError
from confide.ideal import Cohort, PlainSum, Sums
from confide.model.graph import Graph, Linear, Sigmoid
from confide.secagg import Masked
from confide.train import load_data, parse, start_hash, train
from confide.train.course import (
    COURSE,
    Announcement,
    Announcements,
    Course,
    Follower,
    announcement,
    approve,
    parameters_hash,
)
from confide.train.encodings import Encoding, PrivateGradients, Scaffold, WeightedUpdates
from confide.train.learner import GraphLearner
from confide.train.local import Silo
from confide.train.rounds import federate
from confide.train.sections import TrainSection
from confide.wire import Array, Fault, MemoryStore, Message, decode, drop, encode

START = Graph((Linear(np.zeros((1, 5)), np.zeros(1)), Sigmoid()))
NAMES = ("h0", "h1", "h2", "h3")
COHORT = Cohort(NAMES, 3)
ALGORITHMS = ("fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "scaffold")


def settings(algorithm: str = "fedavg", **more: object) -> TrainSection:
    return TrainSection(
        **({"rounds": 6, "local_steps": 2, "learning_rate": 0.5, "expected_records": 40, "quorum": 3} | more),
        algorithm=algorithm,
    )


def silos(seed: int = 0) -> list[Silo]:
    rng, made = np.random.default_rng(seed), []
    for name, size in zip(NAMES, (30, 50, 7, 64), strict=True):
        x = rng.uniform(-1, 1, size=(size, 5))
        made.append(Silo(name, x, (x @ [2, -1, 0, 1, 0.5] > 0).astype(np.int64)))
    return made


def encoding_of(train_: TrainSection, *, private: bool = False) -> Encoding:
    learner = GraphLearner(START, train_)
    if private:
        plan = PrivacyPlan.calibrate(
            epsilon=1.0, clip_norm=0.5, rounds=train_.rounds, length=6, silos=4, quorum=3, expected_records=150
        )
        return PrivateGradients(learner, plan, train_)
    if train_.algorithm == "scaffold":
        return Scaffold(learner, train_, parties=4)
    return WeightedUpdates(learner, train_)


class Network:
    """A network that writes down who sends what, and rewrites what the server announces."""

    def __init__(self, edit: Callable[[Message, Announcements], Announcements] | None = None) -> None:
        self.told: dict[str, list[bytes]] = {name: [] for name in NAMES}
        self.sent_after_lie: list[str] = []
        self._edit, self._lied = edit, False

    def __call__(self, message: Message) -> list[tuple[int, Message]]:
        if message.tag == COURSE:
            if self._edit is not None:
                body = encode(self._edit(message, decode(message.body, Announcements, max_bytes=1 << 20)))
                self._lied = self._lied or body != message.body
                message = Message(message.src, message.dst, message.tag, body)
            self.told[message.dst].append(message.body)
        elif self._lied and message.src in NAMES:
            self.sent_after_lie.append(message.tag)
        return [(0, message)]


def run(train_: TrainSection, *, private: bool = False, fault: Fault | None = None, **more):
    more = {"aggregator": PlainSum(), "rng": SystemRandomness()} | more
    return federate(silos(), encoding_of(train_, private=private), train_, fault=fault, **more)


def follower(train_: TrainSection, *, private: bool = False, me: str = "h0") -> Follower:
    return Follower(me, COHORT, Course(encoding_of(train_, private=private), train_), MemoryStore())


# --- a course that outlives its process -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train_",
    [
        *(settings(name, average=0.8) for name in ALGORITHMS),
        settings(clip_norm=1.0, clip_quantile=0.5),
        settings(compress="rotate", clip_norm=1.0, clip_quantile=0.9),
    ],
)
def test_a_course_resumed_in_every_round_takes_the_same_way(train_: TrainSection) -> None:
    """The oracle never stops; the other one is thrown away after each round and read back from its bytes."""
    network = Network()
    list(run(train_, fault=network))
    whole, torn = follower(train_), follower(train_)
    for body in network.told["h0"]:
        torn.follow(body)
        whole.follow(body)
        known, torn = (torn.heard, torn.course.model_hash), follower(train_)
        torn.resume(whole.course.fork().state(), known)
        assert torn.course.model_hash == whole.course.model_hash
        assert torn.course.kept.tobytes() == whole.course.kept.tobytes()


@pytest.mark.parametrize("written", [None, 1])
def test_a_course_resumed_from_an_earlier_state_hears_the_news_again_and_no_others(written: int | None) -> None:
    train_ = settings("fedadam", average=0.8)
    told, others = [], []
    for seed, bodies in enumerate((told, others)):
        network, encoding = Network(), encoding_of(train_)
        list(federate(silos(seed), encoding, train_, aggregator=PlainSum(), rng=SystemRandomness(), fault=network))
        bodies.extend(network.told["h0"])
    whole, state = follower(train_), None
    for body in told[:4]:
        whole.follow(body)
        state = whole.course.state() if whole.heard == written else state
    again = follower(train_)
    again.resume(state, (whole.heard, whole.course.model_hash))
    assert again.heard == (-1 if written is None else written)
    if written is None:  # the control: a whole course of other sums, which a silo that remembers nothing follows
        lied_to, new = follower(train_), follower(train_)
        lied_to.resume(None, (whole.heard, whole.course.model_hash))
        for body in others[:3]:
            lied_to.follow(body)
        with pytest.raises(ProtocolError, match="followed before"):
            lied_to.follow(others[3])
        for body in others:
            new.follow(body)
    for body in told[again.heard + 1 :]:
        again.follow(body)
    for body in told[4:]:
        whole.follow(body)
    assert again.course.model_hash == whole.course.model_hash


def test_the_state_of_another_job_s_course_is_refused() -> None:
    other = follower(settings("scaffold")).course.state()
    with pytest.raises(ProtocolError):
        follower(settings("fedavg")).resume(other, (0, b""))
    small = Course(
        WeightedUpdates(
            GraphLearner(Graph((Linear(np.zeros((1, 2)), np.zeros(1)), Sigmoid())), settings()), settings()
        ),
        settings(),
    )
    with pytest.raises(ProtocolError):
        follower(settings()).resume(small.state(), (0, b""))


# --- an honest server -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "private"), [*((name, False) for name in ALGORITHMS), ("fedavg", True)])
def test_a_silo_alone_computes_the_server_s_models_bit_for_bit(algorithm: str, private: bool) -> None:
    """The oracle: the loop's rounds. The follower has the job and what was announced to it, nothing else."""
    train_ = settings(algorithm, rounds=40, **({"local_steps": 1} if private else {}))
    network = Network()
    done = list(run(train_, private=private, fault=network))
    alone = follower(train_, private=private)
    alone.follow(network.told["h0"][0])
    for body, round_ in zip(network.told["h0"][1:], done, strict=True):
        alone.follow(body)
        assert alone.course.kept.tobytes() == round_.parameters.tobytes()
    assert len(done) == 40


def test_another_process_computes_the_same_bits() -> None:
    train_, network = settings("fedyogi"), Network()
    *_, last = run(train_, fault=network)
    script = (
        "import sys; sys.path.insert(0, 'tests'); from train.test_course import *\n"
        "one = follower(settings('fedyogi'))\n"
        "for line in sys.stdin: one.follow(bytes.fromhex(line))\n"
        "sys.stdout.write(parameters_hash(one.course.kept).hex())"
    )
    told = "\n".join(body.hex() for body in network.told["h0"])
    found = subprocess.run([sys.executable, "-c", script], input=told, capture_output=True, text=True, check=True)
    assert found.stdout == parameters_hash(last.parameters).hex()


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_a_silo_that_missed_news_sits_out_and_catches_up(algorithm: str) -> None:
    """h1 hears nothing between rounds 1 and 3; nobody else notices, and from round 4 on it is back."""
    lost: list[bytes] = []

    def deaf(message: Message) -> list[tuple[int, Message]]:
        if (message.tag, message.dst) == (COURSE, "h1"):
            numbers = [said.number for said in decode(message.body, Announcements, max_bytes=1 << 20).missed]
            if numbers[-1] in (1, 2):
                lost.append(message.body)
                return []
            assert numbers in ([0], [1, 2, 3], [4], [5], [6])
        return [(0, message)]

    done = list(run(settings(algorithm), fault=deaf, aggregator=Masked()))
    assert len(lost) == 2
    assert [sorted(round_.missing) for round_ in done] == [[], ["h1"], ["h1"], [], [], []]


def test_silos_of_one_process_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per round two recomputations: the server's, and one for all silos, who are told the same bytes."""
    count = [0]
    advance = Course.advance

    def counted(self: Course, sums: Sums) -> None:
        count[0] += 1
        advance(self, sums)

    monkeypatch.setattr(Course, "advance", counted)
    list(run(settings()))
    assert count == [2 * 6]


def test_a_fork_goes_its_own_way() -> None:
    train_ = settings("scaffold", momentum=0.9)
    course = Course(encoding_of(train_), train_)
    sums = Sums(np.full((1, 13), 1 << 22), (frozenset(NAMES),))
    course.advance(sums)
    before = course.model_hash, course.parameters.tobytes(), course.encoding.broadcast(course.parameters).tobytes()
    other = course.fork()
    other.advance(sums)
    assert before == (
        course.model_hash, course.parameters.tobytes(), course.encoding.broadcast(course.parameters).tobytes()
    )  # fmt: skip
    course.advance(sums)
    assert course.model_hash == other.model_hash


# --- a server that does something else --------------------------------------------------------------------------------


def rogue(number: int, train_: TrainSection, told: list[Announcement], job: TrainSection) -> bytes:
    """Return the hash of the model that a server reaches with `job` instead, from the true sums."""
    course = Course(encoding_of(job), job)
    for said in told[1 : number + 1]:
        course.advance(sums_of(said))
    if number == 0:
        course.parameters = course.parameters + 1e-9
    return parameters_hash(course.encoding.broadcast(course.parameters))


def sums_of(said: Announcement) -> Sums:
    assert said.sums is not None
    return Sums(said.sums.numpy("int64", (1, None)), tuple(frozenset(row) for row in said.members))


def nudged(said: Announcement, at: int) -> Announcement:
    """Another sum under the hash of the true one."""
    values = sums_of(said).values.copy()
    values[0, at] += 1 << 8
    return replace(said, sums=Array.of(values))


Lie = Callable[[Announcement, list[Announcement], TrainSection], Announcement]
LIES: dict[str, Lie] = {
    "another model": lambda said, told, job: replace(said, model_hash=bytes(32)),
    "another step": lambda said, told, job: replace(
        said, model_hash=rogue(said.number, job, told, msgspec.structs.replace(job, server_learning_rate=1.001))
    ),
    "another momentum": lambda said, told, job: replace(
        said, model_hash=rogue(said.number, job, told, msgspec.structs.replace(job, momentum=0.5))
    ),
    "an old model": lambda said, told, job: replace(said, model_hash=told[said.number - 1].model_hash),
    "an old announcement": lambda said, told, job: told[said.number - 1],
    "an old sum": lambda said, told, job: replace(
        told[said.number - 1], number=said.number, model_hash=said.model_hash
    ),
    "no sum": lambda said, told, job: replace(said, sums=None, members=()),
    "a changed sum": lambda said, told, job: nudged(said, 0),
    "a changed weight": lambda said, told, job: nudged(said, -1),
    "another shape": lambda said, told, job: replace(said, sums=Array.of(sums_of(said).values[:, :-1])),
    "two sums": lambda said, told, job: replace(
        said, sums=Array.of(np.repeat(sums_of(said).values, 2, axis=0)), members=(("h0", "h1"), ("h2", "h3"))
    ),
    "too few": lambda said, told, job: replace(said, members=(("h0", "h1"),)),
    "strangers": lambda said, told, job: replace(said, members=(("h0", "h1", "mallory"),)),
    "one twice": lambda said, told, job: replace(said, members=(("h0", "h1", "h1", "h2"),)),
    "beyond the range": lambda said, told, job: replace(
        said, sums=Array.of(np.full_like(sums_of(said).values, np.iinfo(np.int64).min))
    ),
    "a round too far": lambda said, told, job: replace(said, number=said.number + 1),
}
AT_START = ("another model", "another step", "a round too far")


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "fedadam"])
@pytest.mark.parametrize(("number", "lie"), [*((0, lie) for lie in AT_START), *((2, lie) for lie in LIES)])
def test_every_silo_refuses_and_sends_nothing(algorithm: str, number: int, lie: str) -> None:
    """Before round 1 (number 0) and before round 3 (number 2)."""
    told: list[Announcement] = []
    train_ = settings(algorithm)

    def edit(message: Message, body: Announcements) -> Announcements:
        if body.missed[-1].number >= len(told):
            told.append(body.missed[-1])
        return Announcements((LIES[lie](told[-1], told, train_),)) if told[-1].number == number else body

    network = Network(edit)
    rounds = run(train_, fault=network)
    for _ in range(number - 1):
        next(rounds)
    with pytest.raises(ProtocolError, match=f"^Round {number + 1} is refused by h0: Expected"):
        next(rounds)
    assert network.sent_after_lie == []
    for name in NAMES:  # not only the first of them
        one = follower(train_, me=name)
        for body in network.told[name][:-1]:
            one.follow(body)
        course = one.course
        with pytest.raises(ProtocolError):
            one.follow(network.told[name][-1])
        assert one.course is course
        one.follow(encode(Announcements((told[number],))))  # the control: the truth is taken after the lie


def test_one_silo_that_is_told_something_else_is_enough() -> None:
    """A server that lies to h2 alone; the loop stops at once, for its caller is the server."""

    def edit(message: Message, body: Announcements) -> Announcements:
        said = body.missed[0]
        lied = message.dst == "h2" and said.number == 1
        return Announcements((replace(said, model_hash=bytes(32)),)) if lied else body

    network = Network(edit)
    with pytest.raises(ProtocolError, match="^Round 2 is refused by h2"):
        list(run(settings(), fault=network))
    assert network.sent_after_lie == []


def test_different_sums_for_different_silos_open_nothing() -> None:
    """Each silo is told a story that fits itself. Both models are followed, and no masked sum mixes the two."""
    train_ = settings()
    course = Course(encoding_of(train_), train_)

    def edit(message: Message, body: Announcements) -> Announcements:
        said = body.missed[0]
        if message.dst not in ("h2", "h3") or said.number != 1:
            return body
        other = course.fork()
        sums = sums_of(nudged(said, 0))
        other.advance(sums)
        return Announcements((announcement(other, sums),))

    rounds = run(train_, fault=Network(edit), aggregator=Masked())
    next(rounds)
    with pytest.raises(ProtocolError, match="Round 2 failed 3 times"):
        next(rounds)


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_what_is_not_checked_sums_that_a_server_invents_for_all_but_only_within_the_update_bound(
    algorithm: str,
) -> None:
    """The limit of the check, and the limit of the damage: a round moves no parameter by more than update_bound."""
    train_ = settings(algorithm, update_bound=0.25, momentum=0.0)
    course = Course(encoding_of(train_), train_)
    one = follower(train_)
    one.follow(encode(Announcements((announcement(course, None),))))
    invented = np.full((1, course.encoding.length), 3 * course.encoding.bound)
    for weight in (1, 0, -1, 3 * course.encoding.bound):
        invented[0, -1] = weight
        before, sums = course.parameters, Sums(invented, (frozenset(NAMES),))
        course.advance(sums)
        one.follow(encode(Announcements((announcement(course, sums),))))
        assert one.course.parameters.tobytes() == course.parameters.tobytes()
        assert np.abs(course.parameters - before).max() <= 0.25
    assert np.abs(course.parameters).max() > 0.25  # it did move


def test_a_sum_that_no_silos_can_submit_is_refused_though_its_hash_fits() -> None:
    """The step cuts all of these to one model or its mirror: the range is what tells them apart."""
    train_ = settings()
    start = Course(encoding_of(train_), train_)
    reach = 4 * start.encoding.bound
    for value in (reach, -reach, reach + 1, -reach - 1, np.iinfo(np.int64).min):
        one, ahead = follower(train_), start.fork()
        one.follow(encode(Announcements((announcement(start, None),))))
        values = np.array([[value, 1, 1, 1, 1, 1, 1]])
        sums = Sums(values, (frozenset(NAMES),))
        ahead.advance(sums)
        body = encode(Announcements((announcement(ahead, sums),)))
        if abs(int(value)) <= reach:
            one.follow(body)
            continue
        with pytest.raises(ProtocolError, match="within the range"):
            one.follow(body)


def test_a_sum_over_nobody_is_refused() -> None:
    """It would have a say among the groups, and no share of its members keeps within a norm that follows."""
    train_ = settings(aggregate="groups", rule="median", clip_norm=1.0, clip_quantile=0.9)
    start = Course(encoding_of(train_), train_)
    one = Follower("h0", COHORT, start, MemoryStore())
    one.follow(encode(Announcements((announcement(start, None),))))
    nobody = Announcement(1, bytes(32), Array.of(np.zeros((3, start.encoding.length), np.int64)), (NAMES, (), ()))
    with pytest.raises(ProtocolError, match="none over nobody"):
        one.follow(encode(Announcements((nobody,))))


def test_a_silo_is_told_whether_it_counted_by_the_announcement() -> None:
    """The other limit: who counts as dropped out is the server's word."""
    train_ = settings("scaffold")
    course, store = Course(encoding_of(train_), train_), MemoryStore()
    one = Follower("h0", COHORT, course, store)
    one.follow(encode(Announcements((announcement(course, None),))))
    store.commit({"scaffold/control/next": b"mine"})
    ahead, sums = course.fork(), Sums(np.ones((1, 13), np.int64), (frozenset(NAMES[1:]),))
    ahead.advance(sums)
    one.follow(encode(Announcements((announcement(ahead, sums),))))
    assert store.get("scaffold/control/next") is None
    assert store.get("scaffold/control") is None


@pytest.mark.parametrize("body", [b"", b"\xc1", encode(Announcements(()))[:-1], bytes(1 << 20)])
def test_what_is_no_announcement_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        follower(settings()).follow(body)


# --- the first model --------------------------------------------------------------------------------------------------


def test_only_approved_starting_parameters_are_followed(tmp_path) -> None:
    data = {"data": {"set": "breast-cancer"}}
    job = parse({**data, "train": {"rounds": 1}})
    found = start_hash(load_data(job))
    approved = parse({**data, "train": {"rounds": 1, "start_hash": found}})
    assert len(list(train(approved, load_data(approved)))) == 1
    for other in ({"seed": 2}, {"seed": 3}):
        hidden = {"kind": "mlp", "hidden": 3}
        changed = parse({**data, "job": other, "model": hidden, "train": {"rounds": 1, "start_hash": found}})
        with pytest.raises(IntegrityError, match=f"train.start_hash={found}"):
            train(changed, load_data(changed))
    with pytest.raises(IntegrityError):
        next(run(settings(), start_hash="00" * 32))
    course = Course(encoding_of(settings()), settings())
    with pytest.raises(IntegrityError):
        Follower("h0", COHORT, course, MemoryStore(), start_hash="00" * 32)
    approve(course.parameters, parameters_hash(course.parameters).hex())


def test_a_lost_start_keeps_a_silo_out() -> None:
    done = run(settings(), fault=drop(dst="h3", tag=COURSE), rng=SeededRandomness("x"))
    assert all(round_.missing == {"h3"} for round_ in done)
