"""`aggregate = "groups"`: poisoned parties spoil the mean and not the rule, and jobs whose groups prove nothing end."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache

import msgspec
import numpy as np
import pytest
from scipy import stats

from confide.compare.measure import training_choices, training_guarantee
from confide.crypto.random import SeededRandomness
from confide.errors import Aborted, JobError, ProtocolError
from confide.ideal import Cohort, Sums
from confide.model.artifact import load, read_public_key
from confide.train import Output, describe, load_data, parse, pooled_model, train
from confide.train.course import COURSE, Announcements, Course, Follower, announcement
from confide.train.encodings import WeightedUpdates
from confide.train.evaluate import accuracy
from confide.train.learner import GraphLearner
from confide.train.ledger import verify
from confide.train.local import Silo, descend, flatten
from confide.train.output import label_of
from confide.train.parts import aggregator_of
from confide.train.rounds import Round, federate
from confide.train.run import Prepared
from confide.train.sections import Job
from confide.wire import MemoryStore, Message, decode, drop, encode

FIFTEEN = {"set": "breast-cancer", "parties": 15, "split": "even"}
LIARS = ("party-1", "party-2")


def job_of(parties: int = 15, **train_: object) -> Job:
    return parse(
        {
            "data": FIFTEEN | {"parties": parties},
            "train": {"aggregate": "groups", "group_size": 3, "rounds": 20} | train_,
        }
    )


@cache
def data_of(parties: int = 15) -> Prepared:
    return load_data(parse({"data": FIFTEEN | {"parties": parties}}))


# --- liars ------------------------------------------------------------------------------------------------------------

Lie = Callable[["Poisoned", np.ndarray, Silo, int], np.ndarray]


class Poisoned(WeightedUpdates):
    """Two parties submit what `lie` says, anything that the ring lets through; the others are honest."""

    def __init__(self, job: Job, lie: Lie | None) -> None:
        super().__init__(GraphLearner(data_of(job.data.parties).start, job.train), job.train)
        self._lie = lie

    def honest(self, parameters: np.ndarray, silo: Silo, number: int) -> np.ndarray:
        return super().contribution(parameters, silo, number, SeededRandomness("unused"), MemoryStore())

    def contribution(self, parameters, silo, number, rng, store):
        if self._lie is None or silo.name not in LIARS:
            return self.honest(parameters, silo, number)
        return np.clip(self._lie(self, parameters, silo, number), -self.bound, self.bound)


def times(factor: int) -> Lie:
    return lambda encoding, parameters, silo, number: (
        encoding.honest(parameters, silo, number) * np.append(np.full(len(parameters), factor), 1)
    )


def flipped_labels(encoding: Poisoned, parameters: np.ndarray, silo: Silo, number: int) -> np.ndarray:
    """Trained on the opposite labels, and as many records claimed as the ring lets through."""
    vector = encoding.honest(parameters, Silo(silo.name, silo.x, 1 - silo.y), number)
    return vector * (encoding.bound // vector[-1])


def signs(encoding: Poisoned, parameters: np.ndarray, silo: Silo, number: int) -> np.ndarray:
    vector = np.random.default_rng(number).choice([-1, 1], len(parameters) + 1) * encoding.bound
    return np.append(vector[:-1], 1)


def no_weight(encoding: Poisoned, parameters: np.ndarray, silo: Silo, number: int) -> np.ndarray:
    return np.append(encoding.honest(parameters, silo, number)[:-1], -encoding.bound)


LIES: dict[str, Lie] = {
    "sign flip, 10 times": times(-10),
    "scaled 1000 times": times(1000),
    "labels flipped": flipped_labels,
    "largest values": signs,
    "weight below nothing": no_weight,
}


def outcome(job: Job, lie: Lie | None) -> Round:
    rng = SeededRandomness("groups")
    silos = data_of(job.data.parties).silos
    *_, last = federate(silos, Poisoned(job, lie), job.train, aggregator=aggregator_of(job), rng=rng)
    return last


def right(done: Round) -> float:
    test = data_of().test
    return accuracy(done.model, test.x, test.y)


@cache
def masked(lie: str | None) -> Round:
    return outcome(parse({"data": FIFTEEN, "train": {"rounds": 20}}), LIES[lie] if lie else None)


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_two_poisoned_parties_of_fifteen_spoil_the_mean_and_not_the_rule(rule: str, lie: str) -> None:
    """Chance is 0.63 here. Scaling in the right direction leaves the decisions; it is seen in the parameters."""
    done = outcome(job_of(rule=rule, liars=2), LIES[lie])
    assert right(done) > 0.91
    honest = masked(None).parameters
    far, near = (np.linalg.norm(one.parameters - honest) for one in (masked(lie), done))
    assert near < 0.5 * np.linalg.norm(honest)
    assert far > 4 * near
    if not lie.startswith("scaled"):
        assert right(masked(lie)) < 0.86 < right(done) - 0.05


def test_krum_needs_more_groups_and_then_holds() -> None:
    job = job_of(21, rule="multi-krum", liars=2, rounds=12)
    assert right(outcome(job, times(-10))) > 0.9
    assert right(outcome(parse({"data": FIFTEEN | {"parties": 21}, "train": {"rounds": 12}}), times(-30))) < 0.8


def test_more_liars_than_the_job_says_win() -> None:
    """The negative control: f = 1 in the job, liars in two of three groups."""
    names = [f"party-{number}" for number in range(1, 10)]

    class Many(Poisoned):
        def contribution(self, parameters, silo, number, rng, store):
            vector = self.honest(parameters, silo, number)
            return np.append(-10 * vector[:-1], vector[-1]) if silo.name in names[:6] else vector

    job = job_of(9)
    rng = SeededRandomness("many")
    *_, last = federate(data_of(9).silos, Many(job, None), job.train, aggregator=aggregator_of(job), rng=rng)
    test = data_of(9).test
    assert accuracy(last.model, test.x, test.y) < 0.7


@pytest.mark.parametrize(("rule", "parties"), [("median", 15), ("trimmed-mean", 15), ("multi-krum", 15), ("mean", 9)])
def test_without_liars_groups_are_close_to_pooled(rule: str, parties: int) -> None:
    job, data = job_of(parties, rule=rule), data_of(parties)
    *_, done = train(job, data)
    pooled = pooled_model(job, data)
    assert accuracy(done.model, data.test.x, data.test.y) > accuracy(pooled, data.test.x, data.test.y) - 0.04
    gap = np.linalg.norm(flatten(done.model) - flatten(pooled)) / np.linalg.norm(flatten(pooled))
    assert gap < (0.02 if rule == "mean" else 0.3)


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean"])
def test_a_round_is_the_rule_over_the_groups_weighted_means(rule: str) -> None:
    """The oracle: float descent for each party, numpy's average in each group, scipy's rule over them."""
    told: list[Announcements] = []

    def spy(message: Message) -> list[tuple[int, Message]]:
        if (message.tag, message.dst) == (COURSE, "party-1"):
            told.append(decode(message.body, Announcements, max_bytes=1 << 20))
        return [(0, message)]

    job, data = job_of(rule=rule, rounds=1, average=0.0, momentum=0.0), data_of()
    done = next(train(job, data, fault=spy))
    silos = {silo.name: silo for silo in data.silos}
    ends = {
        name: flatten(descend(data.start, silo.x, silo.y, steps=1, learning_rate=1.0, momentum=0.0, weight_decay=1e-4))
        for name, silo in silos.items()
    }
    groups = told[1].missed[0].members
    assert sorted(map(len, groups)) == [3] * 5
    rows = np.array(
        [
            np.average([ends[name] for name in group], axis=0, weights=[len(silos[name].y) for name in group])
            for group in groups
        ]
    )
    rules = {"mean": rows.mean(axis=0), "median": np.median(rows, axis=0), "trimmed-mean": stats.trim_mean(rows, 0.21)}
    np.testing.assert_allclose(done.parameters, rules[rule], atol=1e-5)
    assert done.members == frozenset(silos)
    assert done.smallest == 3


# --- groups that fall out ---------------------------------------------------------------------------------------------


def test_a_group_that_falls_out_is_missed_and_the_rest_go_on() -> None:
    done = list(train(job_of(rounds=2), data_of(), fault=drop(src="party-4", tag="masked/keys")))
    assert [len(round_.missing) for round_ in done] == [3, 3]
    assert "party-4" in done[0].missing


def test_too_few_groups_are_a_failed_attempt() -> None:
    """9 parties in threes: one dropout leaves two groups, which cannot outvote one liar."""
    lost: list[Message] = []

    def once(message: Message) -> list[tuple[int, Message]]:
        if (message.src, message.tag) == ("party-4", "masked/keys") and not lost:
            lost.append(message)
            return []
        return [(0, message)]

    assert next(train(job_of(9), data_of(9), fault=once)).attempts == 2
    with pytest.raises(Aborted, match=r"Round 1 failed 3 times; Expected at least 3 groups .* got 2; .*party-4.*: "):
        next(train(job_of(9), data_of(9), fault=drop(src="party-4", tag="masked/keys")))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_silo_refuses_a_server_that_leaves_groups_out(rows: int) -> None:
    job = job_of(9)
    course = Course(Poisoned(job, None), job.train)
    names = tuple(silo.name for silo in data_of(9).silos)
    one = Follower(names[0], Cohort(names, 1), course, MemoryStore())
    one.follow(encode(Announcements((announcement(course, None),))))
    sums = Sums(np.ones((rows, course.encoding.length), np.int64), tuple(frozenset(names[at::3]) for at in range(rows)))
    ahead = course.fork()
    if rows == 3:
        ahead.advance(sums)
        return one.follow(encode(Announcements((announcement(ahead, sums),))))
    ahead.number = 1
    with pytest.raises(ProtocolError, match="Expected 3 sums at least"):
        one.follow(encode(Announcements((announcement(ahead, sums),))))


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parties", "train_", "text"),
    [
        (4, {}, r"at least 3 groups.*train.liars=1.*4 parties in groups of 3 make 1. Take 9 parties"),
        (9, {"liars": 2}, r"at least 5 groups.*Take 15 parties"),
        (12, {"rule": "multi-krum"}, r"at least 5 groups, which train.rule=\"multi-krum\""),
        (9, {"group_size": 4}, r"9 parties in groups of 4 make 2. Take 12 parties"),
        (9, {"group_size": 2}, r"train.group_size=2 to be 3 at least"),
        (9, {"rule": "mean", "liars": 1}, r"train.liars=0 with train.rule=\"mean\""),
        (9, {"rule": "krum"}, r"train.rule to be .*did you mean \"multi-krum\""),
        (9, {"algorithm": "scaffold", "local_steps": 2}, r"no scaffold with train.aggregate=\"groups\""),
        (9, {"aggregate": "masked", "liars": 1}, r"no train.liars with train.aggregate=\"masked\""),
        (9, {"aggregate": "masked", "group_size": 3}, r"no train.group_size"),
        (9, {"aggregate": "plain", "rule": "median"}, r"no train.rule"),
    ],
)
def test_groups_that_cannot_keep_their_promise_are_refused(parties: int, train_: dict, text: str) -> None:
    table = {"data": {"set": "breast-cancer", "parties": parties}, "train": {"aggregate": "groups"} | train_}
    with pytest.raises(JobError, match=text):
        parse(table)


def test_privacy_is_refused_with_its_price() -> None:
    table = {"data": FIFTEEN, "train": {"aggregate": "groups", "group_size": 3}}
    with pytest.raises(JobError, match=r"sqrt\(5\) = 2.24 times the noise"):
        parse(table | {"privacy": {"expected_records": 455}})
    private = parse({"data": FIFTEEN, "privacy": {"expected_records": 455}})
    changed = msgspec.structs.replace(private, train=msgspec.structs.replace(private.train, aggregate="groups"))
    with pytest.raises(JobError, match=r"no \[privacy\]"):
        train(changed, data_of())


@pytest.mark.parametrize(
    ("parties", "train_", "expected"),
    [
        (9, {}, (3, "trimmed-mean", 1)),
        (15, {}, (5, "trimmed-mean", 1)),
        (40, {}, (5, "trimmed-mean", 1)),
        (15, {"liars": 2}, (3, "trimmed-mean", 2)),
        (20, {"rule": "multi-krum"}, (4, "multi-krum", 1)),
        (4, {"rule": "mean"}, (4, "mean", 0)),
    ],
)
def test_defaults_are_filled_in_and_printed(parties: int, train_: dict, expected: tuple) -> None:
    job = parse(
        {
            "data": {"set": "breast-cancer", "parties": parties},
            "train": {"aggregate": "groups"} | train_,
        }
    )
    assert (job.train.group_size, job.train.rule, job.train.liars) == expected
    assert parse(tomllib.loads(describe(job))) == job
    for key in ("group_size", "rule", "liars"):
        assert f"\n{key} = " in describe(job)
        assert f"\n{key} = " not in describe(parse({"data": {"set": "breast-cancer"}}))


def test_standardised_moments_add_up_over_the_groups() -> None:
    jobs = [
        parse({"data": FIFTEEN | {"standardise": True, "parties": 9}, "train": {"aggregate": name}})
        for name in ("plain", "groups")
    ]
    one, other = (load_data(job).preprocess.encode() for job in jobs)
    assert one == other


def test_a_grouped_job_from_the_command_line_says_among_how_many(tmp_path) -> None:
    (tmp_path / "job.toml").write_text(
        '[data]\nset = "breast-cancer"\nparties = 9\n[train]\naggregate = "groups"\nrounds = 5\n'
        '[output]\nmodel = "m.confide"\nledger = "l.jsonl"\nsigning_key = "k.pem"\n'
    )
    command = [sys.executable, "-m", "confide", "train", "job.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "trained by groups over 9 parties in sums over 3 or more of them, no differential privacy" in done.stdout
    label = load(tmp_path / "m.confide", trust=read_public_key(tmp_path / "k.pem.pub")).label
    assert label.hidden_among == 3
    assert verify(tmp_path / "l.jsonl", head=label.ledger).entries == 7
    assert '"smallest": 3' in (tmp_path / "l.jsonl").read_text()


@pytest.mark.parametrize(("name", "among"), [("masked", 5), ("plain", None), ("groups", 3)])
def test_labels_say_among_how_many_an_update_hides(name: str, among: int | None) -> None:
    job = parse({"data": FIFTEEN | {"parties": 9}, "train": {"aggregate": name, "rounds": 1}})
    data = data_of(9)
    (done,) = train(job, data)
    label = label_of(job, data, done)
    assert label.hidden_among == among
    assert ("or more of them" in label.sentence()) == (name == "groups")
    assert Output(job).save(data, done).label.hidden_among == among


def test_groups_are_compared_where_they_fit_and_their_guarantee_names_their_size() -> None:
    few, many = (parse({"data": FIFTEEN | {"parties": parties}}) for parties in (4, 9))
    assert "groups" not in training_choices(few)
    assert "groups" in training_choices(many)
    assert "group of at least 3 clients" in training_guarantee(many, data_of(9), "groups").leaks
