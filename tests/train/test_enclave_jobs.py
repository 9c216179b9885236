"""`aggregate = "tee"` in jobs: what they refuse, what nodes refuse, liars inside, an enclave that starts again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from confide.cohort.roster import Roster
from confide.crypto.keys import SigningKey
from confide.crypto.random import SystemRandomness
from confide.errors import Aborted, JobError, UsageError
from confide.ideal import Cohort
from confide.model.graph import Graph
from confide.tee.aggregate_terms import RESULT, Result
from confide.train import Output, load_data, parse, train
from confide.train.approval import Approvals
from confide.train.evaluate import accuracy
from confide.train.gate import PolicyGate
from confide.train.ledger import Ledger
from confide.train.offer import Offer, read
from confide.train.output import labelled
from confide.train.parts import aggregator_of, hidden_among
from confide.train.policy import enclaves_of, load_policy, parse_policy, refusals_of_enclaves
from confide.train.rounds import federate
from confide.train.setting import Setting
from confide.wire import MemoryStore, decode
from tee.aggregators import MEASUREMENT, accepted
from train.federation import COORDINATOR, HELPER, NAMES, QUICK, SCHEMA, Federation, job_of, tables

TEE = {"aggregate": "tee", "attester": "simulated"}


def shipped(parties: int = 5, **train_):
    return {"data": {"set": "breast-cancer", "parties": parties}, "train": TEE | {"rounds": 3} | train_}


# --- what a job may say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (shipped(rule="mean", liars=1), "a mean outvotes nobody"),
        (shipped(4, rule="multi-krum"), "at least 5 parties"),
        (shipped(5, rule="multi-krum", quorum=4), "a train.quorum of as many"),
        (shipped(rule="median") | {"privacy": {"expected_records": 400}}, "leaves their shares of the noise out"),
        (shipped(rule="median", algorithm="scaffold"), 'train.rule="mean" with train.algorithm="scaffold"'),
        (shipped(rule="median", algorithm="statistics"), 'train.rule="mean" with train.algorithm="statistics"'),
        (shipped(rule="median", compress="rotate"), "train.clip_quantile=0"),
        (shipped(group_size=3), "belongs to groups"),
        ({"data": {"set": "breast-cancer"}, "train": {"attester": "simulated"}}, "belongs to tee"),
        ({"data": {"set": "breast-cancer"}, "train": {"rule": "median"}}, "belongs to groups and tee"),
    ],
)
def test_what_contradicts_itself_is_refused(table, text):
    if table["train"].get("algorithm") == "statistics":
        table["train"].pop("rounds")
    with pytest.raises(JobError, match=text):
        parse(table)


def test_defaults_are_an_exact_sum_on_hardware_and_a_quorum_that_the_rule_needs():
    job = parse({"data": {"set": "breast-cancer", "parties": 5}, "train": {"aggregate": "tee"}})
    assert (job.train.rule, job.train.liars, job.train.attester, job.train.quorum) == ("mean", 0, "hardware", 3)
    job = parse(shipped(7, rule="multi-krum"))
    assert (job.train.liars, job.train.quorum) == (1, 5)


def test_one_process_has_no_enclave_and_says_how_to_simulate_one():
    job = parse({"data": {"set": "breast-cancer", "parties": 4}, "train": {"aggregate": "tee", "rounds": 1}})
    with pytest.raises(UsageError, match='an attester at the enclave.*train.attester = "simulated"'):
        next(train(job, load_data(job)))


def test_a_simulation_says_so_wherever_it_is_shown():
    job = parse(shipped())
    data = load_data(job)
    *_, last = train(job, data)
    label = labelled(job, data, last, Ledger()).label
    assert "simulated and unprotected" in label.sentence()
    assert "INSECURE SIMULATION" in str(label.server_sees)
    assert label.hidden_among is None
    hardware = parse({"data": {"set": "breast-cancer", "parties": 5}, "train": {"aggregate": "tee"}})
    assert hidden_among(hardware, 5) == 3
    with pytest.raises(JobError, match="to hide updates when there is a"):
        next(train(private := parse(shipped() | {"privacy": {"expected_records": 400}}), load_data(private)))


def test_noise_of_many_adds_up_inside_as_in_every_other_sum():
    """On hardware (the guarantee hides updates) a job with [privacy] is taken, and its label says what it costs."""
    table = {"data": {"set": "breast-cancer", "parties": 4}, "privacy": {"expected_records": 400}}
    job = parse(table | {"train": {"aggregate": "tee", "rounds": 2}})
    assert aggregator_of(job).guarantee.hides("update", "server")


# --- liars ------------------------------------------------------------------------------------------------------------


class Flipping:
    """An encoding of which one party sends its update with the sign changed, and many times as large."""

    def __init__(self, inner, liar: str) -> None:
        self._inner, self._liar = inner, liar

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def __copy__(self):
        from copy import copy

        return Flipping(copy(self._inner), self._liar)

    def contribution(self, parameters, silo, number, rng, store):
        vector = self._inner.contribution(parameters, silo, number, rng, store)
        if silo.name != self._liar:
            return vector
        lie = np.clip(-30 * vector, -self._inner.bound, self._inner.bound)
        lie[-1] = vector[-1]  # its weight is as it was
        return lie


def of_a_liar(rule: str) -> float:
    from confide.train.parts import encoding_of

    job = parse({**shipped(7, rule=rule, rounds=25), "data": {"set": "breast-cancer", "parties": 7, "split": "even"}})
    data = load_data(job)
    encoding = Flipping(encoding_of(job, data.start, 7, preprocess=data.preprocess), data.names[2])
    *_, last = federate(data.silos, encoding, job.train, aggregator=aggregator_of(job), rng=SystemRandomness())
    model: Graph = last.model
    return accuracy(model, data.test.x, data.test.y)


def test_a_rule_inside_keeps_the_model_where_a_sum_loses_it():
    assert of_a_liar("mean") < 0.7
    for rule in ("median", "trimmed-mean", "multi-krum"):
        assert of_a_liar(rule) > 0.9, rule


# --- over machines ----------------------------------------------------------------------------------------------------


def in_process(job):
    return [one.parameters.tobytes() for one in train(job, load_data(job))]


def test_an_enclave_that_starts_again_is_verified_anew_and_the_run_goes_on(tmp_path):
    tables(tmp_path)
    job = job_of(tmp_path, train=TEE | {"helper": HELPER, "attempts": 4})
    with Federation(tmp_path, job) as federation:
        for name in (*NAMES, HELPER):
            federation.start(name)
        rounds = federation.coordinator().rounds()
        first = next(rounds)
        federation.kill(HELPER)
        federation.start(HELPER)
        done = [first, *rounds]
    assert [one.parameters.tobytes() for one in done] == in_process(job)
    assert any("everybody verifies it anew" in line for line in federation.said)
    warned = [line for line in federation.said if "can read this node's update" in line]
    assert sorted(line.split(":")[0] for line in warned) == sorted(NAMES)
    assert max(one.attempts for one in done) > 1


@pytest.mark.parametrize("late", [False, True], ids=["lost once", "lost in two attempts"])
def test_a_coordinator_that_lost_a_result_gets_it_again_and_the_run_goes_on(tmp_path, late):
    """The network loses the result of round 2; its next attempt gets what the enclave let out, and so does one more."""
    tables(tmp_path)
    job = job_of(tmp_path, train=TEE | {"helper": HELPER, "attempts": 4})
    lost: list[bytes] = []

    def losing(peer, envelope, up):
        here = up and peer == HELPER and envelope.message.tag == RESULT
        result = decode(envelope.message.body, Result, max_bytes=1 << 20) if here else None
        if result is not None and "/round/" in envelope.session:
            number = int(envelope.session.split("/")[-2])
            if number == 2 and len(lost) < 1 + late:
                lost.append(result.values.data)
                return []
            if number == 2:
                lost.append(result.values.data)
        return [envelope]

    with Federation(tmp_path, job) as federation:
        federation.wire.fault = losing
        for name in (*NAMES, HELPER):
            federation.start(name)
        done = list(federation.coordinator(patience=replace(QUICK, stage_seconds=2.0)).rounds())
    assert [one.parameters.tobytes() for one in done] == in_process(job)
    assert [one.attempts for one in done] == [1, 2 + late, 1, 1]
    assert len(lost) == 2 + late
    assert len(set(lost)) == 1


def test_an_enclave_that_refuses_a_round_in_each_attempt_ends_the_run_and_another_run_goes_through(tmp_path):
    """Another sum of this round is out already, as far as the enclave knows: its process lets out no second one."""
    tables(tmp_path)
    job = job_of(tmp_path, train=TEE | {"helper": HELPER, "attempts": 2})
    with Federation(tmp_path, job) as federation:
        for name in (*NAMES, HELPER):
            federation.start(name)
        rounds = federation.coordinator().rounds()
        next(rounds)
        out = federation.enclaves[HELPER].released._newest
        (run,) = out
        out[run] = replace(out[run], round=2, about=bytes(32))
        with pytest.raises(Aborted, match="Round 2 failed 2 times"):
            list(rounds)
        assert any("lets each round out once" in line for line in federation.said)
        federation.wire.restart_host()
        again = Ledger(tmp_path / "again.jsonl", signer=COORDINATOR)
        done = list(federation.coordinator(store=MemoryStore(), ledger=again).rounds())  # the same enclave's process
    assert [one.parameters.tobytes() for one in done] == in_process(job)


def test_a_node_that_accepts_other_code_stops_the_set_up(tmp_path):
    tables(tmp_path)
    job = job_of(tmp_path, train=TEE | {"helper": HELPER})
    with Federation(tmp_path, job) as federation:
        federation.enclaves["east"] = replace(federation.enclaves["east"], policy=accepted(measurement="00" * 48))
        for name in (*NAMES, HELPER):
            federation.start(name)
        with pytest.raises(Aborted, match="The set-up failed"):
            list(federation.coordinator().rounds())
    assert any(line.startswith("east: left out of") and "[measurement]" in line for line in federation.said)


# --- a node's policy --------------------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    (folder / "policy.toml").write_text(text)
    return folder / "policy.toml"


def test_a_policy_names_the_file_beside_it_and_what_it_asks_for(tmp_path):
    (tmp_path / "enclave.toml").write_text(f'[simulated]\nmeasurements = ["{MEASUREMENT}"]\n')
    path = write(tmp_path, '[attestation]\npolicy = "enclave.toml"\nallow_simulated = true\n')
    found = enclaves_of(load_policy(path), path)
    assert found.allow_simulated
    assert found.policy is not None
    assert found.policy.simulated is not None
    assert found.policy.simulated.measurements == (MEASUREMENT,)
    assert enclaves_of(parse_policy({}), path).policy is None
    path = write(tmp_path, '[attestation]\npolicy = "absent.toml"\n')
    with pytest.raises(UsageError, match="attestation policy in"):
        enclaves_of(load_policy(path), path)


def test_a_cohort_too_small_for_a_sum_is_refused_with_the_job():
    with pytest.raises(UsageError, match="at least 3 clients"):
        aggregator_of(parse(shipped())).check(Cohort(("a", "b"), 2))


def test_the_output_of_a_simulated_job_needs_no_more_than_others(tmp_path):
    job = parse(shipped(), base=tmp_path)
    assert Output(job).written == ()


def test_one_process_refuses_hardware_before_it_reads_anything(tmp_path):
    table = {"data": {"set": "breast-cancer", "parties": 4}, "train": {"aggregate": "tee", "rounds": 1}}
    with pytest.raises(JobError, match="simulated"):
        load_data(parse(table))
    load_data(parse(table | {"train": TEE | {"rounds": 1}}))


@pytest.mark.parametrize(
    ("attester", "text", "fits"),
    [
        ("simulated", f'[simulated]\nmeasurements = ["{MEASUREMENT}"]\n', True),
        ("simulated", f'[snp]\nmeasurement = ["{MEASUREMENT}"]\n', False),
        ("hardware", f'[simulated]\nmeasurements = ["{MEASUREMENT}"]\n', False),
        ("hardware", f'[snp]\nmeasurement = ["{MEASUREMENT}"]\n', True),
    ],
)
def test_a_policy_that_could_accept_no_enclave_of_the_job_is_refused(tmp_path, attester, text, fits):
    (tmp_path / "enclave.toml").write_text(text)
    path = write(tmp_path, '[attestation]\npolicy = "enclave.toml"\nallow_simulated = true\n')
    enclaves = enclaves_of(load_policy(path), path)
    job = parse(shipped(attester=attester))
    assert (refusals_of_enclaves(job, enclaves) == []) is fits
    assert refusals_of_enclaves(parse({"data": {"set": "breast-cancer", "parties": 5}}), enclaves) == []


@pytest.mark.parametrize(("attester", "fits"), [("simulated", True), ("hardware", False)])
def test_a_node_that_runs_refuses_an_enclave_that_its_policy_could_not_accept(tmp_path, attester, fits):
    (tmp_path / "enclave.toml").write_text(f'[simulated]\nmeasurements = ["{MEASUREMENT}"]\n')
    path = write(tmp_path, '[attestation]\npolicy = "enclave.toml"\nallow_simulated = true\n')
    tables(tmp_path)
    job = job_of(tmp_path, train=TEE | {"attester": attester, "helper": HELPER})
    roster = Roster(tuple((name, SigningKey(name.encode().ljust(32, b".")).public) for name in NAMES))
    policy = load_policy(path)
    gate = PolicyGate(
        policy,
        MemoryStore(),
        Approvals(tmp_path),
        tmp_path / "north.csv",
        coordinator=COORDINATOR.public.hex(),
        enclaves=enclaves_of(policy, path),
    )
    offer = Offer.of(job, SCHEMA, roster, "run-1", coordinator=COORDINATOR.public, helper=SigningKey(b"h" * 32).public)
    decision = gate.decide(offer, Setting.of(*read(offer)))
    assert ("no evidence of its enclave would be accepted" in decision.reason) is not fits
