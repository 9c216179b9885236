"""A federation against the loop in one process: the same model bit for bit, whoever vanishes, restarts or lies."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
import pytest

from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.data.schema import Schema
from confide.errors import Aborted, IntegrityError, PrivacyError
from confide.ideal import PlainSum
from confide.secagg.masked import Masked
from confide.secagg.masked_terms import Survivors
from confide.train import load_data, train
from confide.train.control import ANSWER, NEWS, UNABLE, WITNESSED
from confide.train.course import Announcements
from confide.train.evaluate import accuracy
from confide.train.ledger import Ledger, verify
from confide.train.local import flatten
from confide.train.output import labelled
from confide.train.parts import AGGREGATORS
from confide.train.setting import Setting
from confide.train.witness import seen as seen_by
from confide.wire import Array, MemoryStore, decode, encode
from tee.aggregators import asked_for
from train.federation import COORDINATOR, HELPER, NAMES, QUICK, SCHEMA, Federation, Killed, Mortal, Open, job_of, tables


def in_process(job, seed=None):
    """The oracle: the same job in one process."""
    rng = SeededRandomness(seed) if seed else None
    return list(train(job, load_data(job, rng=rng), rng=rng))


@pytest.mark.parametrize("aggregate", AGGREGATORS)
def test_a_federation_trains_the_model_of_one_process_bit_for_bit(tmp_path, aggregate):
    tables(tmp_path)
    more = {"helper": HELPER} if aggregate in ("shares", "he", "tee") else {}
    more |= asked_for(aggregate)
    more |= {"rule": "mean", "group_size": 3} if aggregate == "groups" else {}
    job = job_of(tmp_path, train={"aggregate": aggregate} | more)
    with Federation(tmp_path, job) as federation:
        for name in (*NAMES, *((HELPER,) if "helper" in more else ())):
            federation.start(name)
        done = list(federation.coordinator().rounds())
    expected = in_process(job)
    assert [one.parameters.tobytes() for one in done] == [one.parameters.tobytes() for one in expected]
    assert len(done) == 4
    assert all(one.members == frozenset(NAMES) and one.attempts == 1 for one in done)


# --- whoever is killed, and whenever ----------------------------------------------------------------------------------


class MortalLedger(Ledger):
    """A ledger whose process dies at its line number `at`, before or after it is written."""

    def __init__(self, path, at: int, *, after: bool) -> None:
        super().__init__(path, signer=COORDINATOR)
        self.left, self.after = at, after

    def append(self, event, fields):
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        digest = super().append(event, fields)
        if self.left == 0:
            raise Killed
        return digest


def over_members(job, done):
    """The oracle of a run in which nodes were missing: plain sums over each round's members, in one place."""
    data = load_data(job)
    setting = Setting.of(job, Schema.load(job.path(job.data.schema)))
    course, silos = setting.course(), {silo.name: silo for silo in data.silos}
    models = []
    for one in done:
        encoding = course.encoding
        vectors = {
            name: encoding.contribution(course.parameters, silos[name], one.number, SystemRandomness(), MemoryStore())
            for name in one.members
        }
        course.advance(PlainSum().ideal(vectors))
        models.append(course.kept.tobytes())
    return models


def until_done(federation, first, deaths):
    """Run a coordinator; whenever it is killed start the next one. Return the one that came to the end."""
    build = first
    while True:
        try:
            coordinator = build()
            for _ in coordinator.rounds():
                pass
            return coordinator
        except Killed:
            deaths.append(True)
            federation.wire.restart_host()
            build = federation.coordinator


def lines_of(federation, event):
    entries = [json.loads(line) for line in federation.ledger_path.read_text().splitlines()]
    return [entry for entry in entries if entry["event"] == event]


PRIVATE = {"epsilon": 1.0, "delta": 1e-5, "expected_records": 200}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("private", [False, True])
def test_a_coordinator_killed_at_any_commit_or_line_loses_no_finished_round(tmp_path, after, private):
    tables(tmp_path)
    extra = {"privacy": PRIVATE} if private else {}
    job = job_of(tmp_path, train={"rounds": 2, "aggregate": "amortised"}, **extra)
    expected = None if private else [one.parameters.tobytes() for one in in_process(job)]
    at = 0
    while True:
        at += 1
        deaths = []
        folder = tmp_path / f"{at}"
        folder.mkdir()
        for path in (*tmp_path.glob("*.csv"), tmp_path / "schema.toml"):
            (folder / path.name).write_bytes(path.read_bytes())
        with Federation(folder, job) as federation:
            for name in NAMES:
                federation.start(name)
            store = Mortal(federation.stores["server"], at, after=after)
            coordinator = until_done(federation, partial(federation.coordinator, store=store), deaths)
            rounds = lines_of(federation, "round")
            assert [entry["round"] for entry in rounds] == [1, 2]
            assert coordinator.course.number == 2
            if expected:
                assert coordinator.course.kept.tobytes() == expected[-1]
            if private:  # nothing uncharged, nothing charged twice for one attempt
                charged = {(entry["round"], entry["attempt"]) for entry in lines_of(federation, "release")}
                assert len(charged) == len(lines_of(federation, "release"))
                assert charged == {(number, attempt + 1) for number, attempt, _ in federation.gates["north"].charges}
            verify(federation.ledger_path)
        if not deaths:
            break
    assert at > 6  # it did die, at many places


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("aggregate", ["masked", "amortised"])
def test_a_node_killed_at_any_commit_comes_back_and_every_sum_is_over_whom_it_says(tmp_path, aggregate, after):
    tables(tmp_path)
    job = job_of(tmp_path, train={"rounds": 3, "aggregate": aggregate})
    at, left_out = 0, 0
    while True:
        at += 1
        with Federation(tmp_path, job) as federation:
            federation.ledger_path = tmp_path / f"{at}.jsonl"
            for name in NAMES[1:]:
                federation.start(name)
            store = Mortal(federation.stores["north"], at, after=after)
            federation.start("north", store=store)
            done = list(federation.coordinator().rounds())
            assert [one.number for one in done] == [1, 2, 3]
            assert [one.parameters.tobytes() for one in done] == over_members(job, done)
            left_out += sum(len(one.members) < len(NAMES) for one in done)
            assert all(len(one.members) >= 3 for one in done)
            verify(federation.ledger_path)
        if store.left > 0:
            break
    assert at > 8
    assert left_out or aggregate == "amortised"  # which goes on from its store; masks for one round die with their node


def test_a_node_that_is_away_misses_rounds_and_takes_part_again(tmp_path):
    tables(tmp_path)
    job = job_of(tmp_path, train={"rounds": 6, "aggregate": "amortised", "algorithm": "scaffold", "local_steps": 2})
    with Federation(tmp_path, job) as federation:
        for name in NAMES:
            federation.start(name)
        done = []
        for one in federation.coordinator().rounds():
            done.append(one)
            if one.number == 1:
                federation.kill("east")
            if one.number == 4:
                federation.start("east")
                time.sleep(0.2)
        assert [len(one.members) for one in done] == [4, 3, 3, 3, 4, 4]
        assert done[1].missing == {"east"}


def test_a_round_below_its_quorum_is_repeated_when_enough_are_back_and_never_reported(tmp_path):
    tables(tmp_path)
    job = job_of(tmp_path, train={"rounds": 3, "aggregate": "masked"})
    with Federation(tmp_path, job) as federation:
        for name in NAMES:
            federation.start(name)
        lost = []

        def fault(peer, envelope, up):
            if (
                up
                and envelope.message.tag == "masked/vector"
                and "/round/0/2/0" in envelope.session
                and peer in NAMES[:2]
            ):
                lost.append(peer)
                threading.Thread(target=federation.wire.cut, args=(peer,)).start()
                threading.Timer(1.0, federation.wire.join, args=(peer,)).start()
                return []
            return [envelope]

        federation.wire.fault = fault
        done = list(federation.coordinator().rounds())
    assert sorted(lost) == sorted(NAMES[:2])
    assert [(one.number, one.attempts) for one in done] == [(1, 1), (2, 2), (3, 1)]
    assert [one.parameters.tobytes() for one in done] == over_members(job, done)
    assert [entry["round"] for entry in lines_of(federation, "round")] == [1, 2, 3]


# --- a coordinator that lies ------------------------------------------------------------------------------------------


def lie(federation, tag, edit, *, to=NAMES):
    """Let the coordinator send something else under `tag`; return what the nodes send after the first lie."""
    sent = []

    def fault(peer, envelope, up):
        if up:
            sent.append((peer, envelope.message.tag))
        elif envelope.message.tag == tag and peer in to:
            changed = edit(envelope)
            if changed != envelope.message.body:
                sent.clear()
            message = replace(envelope.message, body=changed)
            return [replace(envelope, message=message)]
        return [envelope]

    federation.wire.fault = fault
    return sent


def other_model(envelope):
    told = decode(envelope.message.body, Announcements, max_bytes=1 << 20)
    *_, last = told.missed
    if last.number == 0:
        return envelope.message.body
    return encode(Announcements((*told.missed[:-1], msgspec.structs.replace(last, model_hash=bytes(32)))))


def other_sums(envelope):
    told = decode(envelope.message.body, Announcements, max_bytes=1 << 20)
    *_, last = told.missed
    if last.sums is None:
        return envelope.message.body
    moved = Array.of(last.sums.numpy("int64", (None, None)) + 1)
    return encode(Announcements((*told.missed[:-1], msgspec.structs.replace(last, sums=moved))))


@pytest.mark.parametrize("edit", [other_model, other_sums])
def test_a_model_that_the_released_sums_do_not_give_is_refused_and_nothing_more_leaves(tmp_path, edit):
    tables(tmp_path)
    job = job_of(tmp_path)
    with Federation(tmp_path, job) as federation:
        for name in NAMES:
            federation.start(name)
        sent = lie(federation, NEWS, edit)
        with pytest.raises(Aborted, match="north: Round 2 is refused by north.*west: Round 2 is refused by west"):
            list(federation.coordinator().rounds())
    assert {tag for _, tag in sent} <= {ANSWER, UNABLE, WITNESSED}


def test_a_coordinator_that_tells_two_survivor_lists_learns_no_share(tmp_path):
    """Of masked's lies those that the wire can show: half the nodes hear of other survivors than the other half."""
    tables(tmp_path)
    job = job_of(tmp_path, train={"attempts": 1})

    def fewer(envelope):
        told = decode(envelope.message.body, Survivors, max_bytes=1 << 16)
        return encode(msgspec.structs.replace(told, members=bytes([0b0111])))

    with Federation(tmp_path, job) as federation:
        for name in NAMES:
            federation.start(name)
        sent = lie(federation, "masked/survivors", fewer, to=NAMES[:2])
        with pytest.raises(Aborted):
            list(federation.coordinator().rounds())
    assert "masked/unmask" not in {tag for _, tag in sent}


def test_a_release_that_is_not_the_model_of_the_sums_is_not_kept(tmp_path):
    tables(tmp_path)
    job, key = job_of(tmp_path), COORDINATOR
    with Federation(tmp_path, job) as federation:
        for name in NAMES:
            federation.start(name)
        coordinator = federation.coordinator()
        list(coordinator.rounds())
        done = coordinator.final()
        honest = labelled(job, coordinator.setting, done, Ledger()).encode(key)
        other = replace(done, model=coordinator.setting.start)
        coordinator.finish(model=labelled(job, coordinator.setting, other, Ledger()).encode(key))
        assert federation.models == {}
        assert any("released another" in text for text in federation.said)
    with Federation(tmp_path, job) as federation:  # the control: the same with the honest file
        for name in NAMES:
            federation.start(name)
        coordinator = federation.coordinator()
        list(coordinator.rounds())
        coordinator.finish(model=honest)
        assert federation.models == dict.fromkeys(NAMES, honest)


def test_a_node_beyond_its_budget_leaves_the_sum_before_its_vector_does(tmp_path):
    class Poor(Open):
        def charge(self, offer, *, number, attempt, epsilon, delta):
            if number > 1:
                raise PrivacyError("Expected a budget")
            return super().charge(offer, number=number, attempt=attempt, epsilon=epsilon, delta=delta)

    tables(tmp_path)
    job = job_of(tmp_path, train={"rounds": 3}, privacy=PRIVATE)
    with Federation(tmp_path, job) as federation:
        federation.gates["west"] = Poor()
        for name in NAMES:
            federation.start(name)
        sent = lie(federation, "", lambda envelope: envelope.message.body)
        done = list(federation.coordinator().rounds())
    vectors = [peer for peer, tag in sent if tag == "masked/vector"]
    assert vectors.count("west") == 1
    assert vectors.count("north") == 3
    assert len(done) == 3
    assert [number for number, _, _ in federation.gates["north"].charges] == [1, 2, 3]
    assert federation.gates["north"].charges[-1][2] == pytest.approx(done[-1].epsilon)


def test_a_private_job_under_test_seeds_gives_the_same_noise_under_both_drivers(tmp_path):
    tables(tmp_path)
    job = job_of(tmp_path, train={"rounds": 3}, privacy=PRIVATE)
    with Federation(tmp_path, job, seed="same") as federation:
        for name in NAMES:
            federation.start(name)
        done = list(federation.coordinator().rounds())
    expected = in_process(job, "same")
    assert [one.parameters.tobytes() for one in done] == [one.parameters.tobytes() for one in expected]
    assert [one.epsilon for one in done] == [one.epsilon for one in expected]
    assert "no privacy claim" in done[-1].origin


# --- the ledger and the evaluation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
def test_a_coordinator_killed_at_any_line_of_the_ledger_writes_each_round_and_release_once(tmp_path, after):
    tables(tmp_path)
    job = job_of(tmp_path, train={"rounds": 2, "aggregate": "amortised"}, privacy=PRIVATE)
    at = 0
    while True:
        at += 1
        deaths = []
        with Federation(tmp_path, job) as federation:
            federation.ledger_path = tmp_path / f"{at}.jsonl"
            for name in NAMES:
                federation.start(name)

            def mortal(federation=federation, at=at):
                ledger = MortalLedger(federation.ledger_path, at, after=after)
                return federation.coordinator(ledger=ledger)

            coordinator = until_done(federation, mortal, deaths)
            assert coordinator.course.number == 2
            for event, count in (("job", 1), ("round", 2), ("release", 2)):
                assert len(lines_of(federation, event)) == count, (at, event)
            assert verify(federation.ledger_path).signer == COORDINATOR.public
        if not deaths:
            break
    assert at > 5


@pytest.mark.parametrize("private", [False, True])
def test_nodes_countersign_evaluate_together_and_remember_the_head(tmp_path, private):
    tables(tmp_path)
    more = {"privacy": PRIVATE} if private else {}
    job = job_of(
        tmp_path,
        train={"rounds": 3 if private else 40, "aggregate": "amortised"},
        data={"evaluate": "federated"},
        **more,
    )
    with Federation(tmp_path, job) as federation:
        nodes = [federation.start(name) for name in NAMES]
        coordinator = federation.coordinator()
        list(coordinator.rounds())
        found = coordinator.evaluate()
        done = coordinator.final()
        model = labelled(job, coordinator.setting, done, coordinator._ledger)
        coordinator.finish(model=model.encode(COORDINATOR))
        joined = nodes[0].joining()
    assert set(federation.models) == set(NAMES)
    joining, alone = joined
    assert joining.party == NAMES[0]
    assert alone.label.parties == NAMES[:1]
    assert alone.label.epsilon is None
    assert alone.preprocess == model.preprocess
    assert not np.array_equal(flatten(alone.graph), flatten(model.graph))
    whole = verify(federation.ledger_path, roster=federation.roster)
    assert set(whole.countersigned) == set(NAMES)
    assert {one.up_to for one in whole.countersigned.values()} == {whole.entries - 1}  # all but the line that says so
    heads = [seen for name in NAMES for seen in seen_by(federation.stores[name])]
    assert len(heads) == len(NAMES)
    verify(federation.ledger_path, seen=heads)
    if not private:  # the oracle: everybody's held-out records in one place
        test = load_data(job).test
        assert found.records.value == len(test.y)
        assert found.accuracy.value == pytest.approx(accuracy(done.model, test.x, test.y), abs=1e-12)
    else:
        spent = [entry["epsilon"] for entry in lines_of(federation, "release")]
        assert spent[-1] == max(spent)
        assert max(charge[2] for charge in federation.gates["north"].charges) == pytest.approx(spent[-1])
    lines = federation.ledger_path.read_bytes().splitlines(keepends=True)
    cut = next(place for place, line in enumerate(lines) if b'"event": "model"' in line or b'"event":"model"' in line)
    federation.ledger_path.write_bytes(
        b"".join(lines[:cut])
    )  # its author cuts the end off: the chain alone still holds
    verify(federation.ledger_path)
    with pytest.raises(IntegrityError):
        verify(federation.ledger_path, seen=heads)


def test_a_job_that_not_all_agree_to_ends_in_time_so_that_the_next_one_may_begin(tmp_path):
    tables(tmp_path)
    with Federation(tmp_path, job_of(tmp_path, train={"rounds": 3})) as federation:
        federation.start(NAMES[0])
        coordinator = federation.coordinator(patience=replace(QUICK, agree_seconds=1.0))
        with pytest.raises(Aborted, match=f"accept the job within .* hours; waited for {NAMES[1]}"):
            list(coordinator.rounds())
        coordinator.finish(reason="not in time")
        federation.kill(NAMES[0])
        for name in NAMES:
            federation.start(name)
        later = federation.coordinator(patience=replace(QUICK, agree_seconds=30.0))
        assert len(list(later.rounds())) == 3


def test_a_node_does_not_sign_a_line_that_says_something_else_than_it_saw(tmp_path):
    tables(tmp_path)
    job = job_of(tmp_path, train={"rounds": 3})

    class Liar(Ledger):
        def append(self, event, fields):
            if event == "round" and fields["round"] == 2:
                fields = {**fields, "members": sorted(NAMES)[:3]}
            return super().append(event, fields)

    with Federation(tmp_path, job) as federation:
        for name in NAMES:
            federation.start(name)
        with pytest.raises(Aborted, match="says the same members"):
            list(federation.coordinator(ledger=Liar(federation.ledger_path, signer=COORDINATOR)).rounds())


@pytest.mark.parametrize("private", [False, True])
def test_one_sum_over_records_is_a_federations_whole_training(tmp_path, private):
    tables(tmp_path)
    more = {"privacy": PRIVATE | {"clip_norm": 2.0}} if private else {}
    job = job_of(tmp_path, train={"algorithm": "statistics", "rounds": 1}, **more)
    with Federation(tmp_path, job, seed="one sum" if private else None) as federation:
        for name in NAMES:
            federation.start(name)
        (done,) = federation.coordinator().rounds()
    if not private:
        np.testing.assert_array_equal(flatten(done.model), flatten(in_process(job)[0].model))
    else:
        assert done.epsilon <= PRIVATE["epsilon"]
        assert {charge[:2] for charge in federation.gates["north"].charges} == {(1, 0)}


PREPARED = {
    "centre": {"data": {"standardise": "centre"}, "model": {"unit_rows": True}},
    "standardise": {"data": {"standardise": True}, "train": {"class_weights": "balanced"}},
    "newton": {"data": {"standardise": "centre"}, "model": {"unit_rows": True}, "train": {"algorithm": "newton"}},
    "trees": {
        "model": {"kind": "trees"},
        "trees": {"count": 3, "depth": 2, "bins": 8, "patience": 2},
        "train": {"rounds": 7, "class_weights": "balanced"},
    },
}


def prepared_job(folder, kind, *, private):
    asked = PREPARED[kind]
    privacy = {"privacy": PRIVATE | {"expected_records": 250}} if private else {}
    data = {"test_fraction": 0.3, "evaluate": "federated", **asked.get("data", {})}
    return job_of(folder, **asked | {"data": data, "train": {"rounds": 3} | asked.get("train", {})} | privacy)


@pytest.mark.parametrize("kind", PREPARED)
def test_nodes_prepare_their_records_as_one_process_does(tmp_path, kind):
    """The preparation is the first sum: the same model bit for bit, and its file says how inputs are prepared."""
    tables(tmp_path)
    job = prepared_job(tmp_path, kind, private=False)
    with Federation(tmp_path, job) as federation:
        for name in NAMES:
            federation.start(name)
        coordinator = federation.coordinator()
        done = list(coordinator.rounds())
        coordinator.evaluate()
        joined = federation.threads["north"].node.joining()
        after = coordinator.setting.after(coordinator.course)
        coordinator.finish()
    data = load_data(job)
    expected = list(train(job, data))
    assert [one.parameters.tobytes() for one in done[1:]] == [one.parameters.tobytes() for one in expected]
    assert not done[0].parameters.any()
    assert after.preprocess == data.preprocess != coordinator.setting.preprocess
    comparison, own = joined
    assert own.preprocess == data.preprocess
    held = next(silo for silo in data.held if silo.name == "north")
    assert comparison.common.accuracy.value == pytest.approx(accuracy(expected[-1].model, held.x, held.y))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", ["centre", "newton"])
def test_a_preparation_under_privacy_survives_a_kill_at_any_commit(tmp_path, kind, after):
    """Of it one vector leaves and no second, it is charged before it leaves, and everybody ends with one model."""
    tables(tmp_path)
    job = prepared_job(tmp_path, kind, private=True)
    plan = Setting.of(job, Schema.read(SCHEMA)).plan
    for at in range(2, 14, 3):
        with Federation(tmp_path, job, seed="prepared") as federation:
            for name in NAMES:
                store = Mortal(federation.stores[name], at, after=after) if name == "north" else None
                federation.start(name, store=store)
            federation.ledger_path = tmp_path / f"{kind}-{after}-{at}.jsonl"
            done = list(federation.coordinator().rounds())
            sums = len(done)
            charges = federation.gates["north"].charges
        assert done[-1].number == 4
        assert done[-1].epsilon <= 1.0
        assert sums == 4
        assert {attempt for _, attempt, _ in charges} == {0}
        by_number = {number: epsilon for number, _, epsilon in charges}
        assert by_number.pop(1, plan.spent(0)) == plan.spent(0)
        spent = [by_number[number] for number in sorted(by_number)]
        assert spent == sorted(spent)
        # It may have been away for a round: it is charged for no less than what left it, and for no more than the plan.
        taken = [one.number for one in done if one.number > 1 and "north" in one.members]
        assert set(taken) <= set(by_number)
        for number, epsilon in by_number.items():
            made = sum(other <= number for other in taken)
            assert plan.spent(made) <= epsilon <= plan.spent(number - 1)
        if after and taken == [2, 3, 4]:
            assert spent == [plan.spent(1), plan.spent(2), plan.spent(3)]


def test_a_preparation_that_loses_its_quorum_is_not_repeated_under_privacy(tmp_path):
    tables(tmp_path)
    job = prepared_job(tmp_path, "centre", private=True)
    with Federation(tmp_path, job, seed="lost") as federation:
        for name in NAMES:
            federation.start(name)
        lost = {"north", "east"}

        def silent(peer, envelope, up):
            gone = up and peer in lost and envelope.message.tag == Masked().upload
            return [] if gone else [envelope]

        federation.wire.fault = silent
        coordinator = federation.coordinator()
        with pytest.raises(Aborted, match="every release"):
            list(coordinator.rounds())
        assert coordinator.releases == 1
        assert coordinator.final() is None
