"""A federation of real processes and what goes wrong with it: the right sum of the survivors, or a clear refusal."""

from __future__ import annotations

import random
import time

import pytest

from cli.federation_processes import NAMES, Processes, until, verb


def test_the_control_nothing_goes_wrong(tmp_path):
    with Processes(tmp_path, rounds=4) as four:
        server = four.start()
        assert server.ends() == 0
        assert four.check() == [set(NAMES)] * 4


#: Minutes of real processes: they are for `make test-all`; the same faults in memory are in tests/train.
pytestmark = pytest.mark.slow


# --- kill -9 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("private", [False, True])
def test_the_coordinator_is_killed_again_and_again(tmp_path, seed, private):
    moments = random.Random(seed)
    with Processes(tmp_path, rounds=30, private=private) as four:
        server = four.start()
        for number in (1, 8, 16):
            four.until_round(number)
            time.sleep(moments.uniform(0.0, 0.3))
            server.kill()
            server = four.coordinator()
        assert server.ends() == 0
        # under a plan an attempt for which vectors had left, and that failed, took the release of a round
        assert (27 if private else 30) <= len(four.check(private=private)) <= 30


@pytest.mark.parametrize("private", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nodes_are_killed_again_and_again(tmp_path, private):
    moments = random.Random(4)
    with Processes(tmp_path, rounds=30, private=private) as four:
        server = four.start()
        for number in (1, 8, 16):
            four.until_round(number)
            time.sleep(moments.uniform(0.0, 0.3))
            name = moments.choice(NAMES)
            four.running[name].kill()
            four.node(name)
        assert server.ends() == 0
        # under a plan an attempt for which vectors had left, and that failed, took the release of a round
        assert (27 if private else 30) <= len(four.check(private=private)) <= 30


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("aggregate", ["amortised", "masked"])
def test_everybody_is_killed_again_and_again(tmp_path, seed, aggregate):
    moments = random.Random(f"{seed} {aggregate}")
    with Processes(tmp_path, rounds=40, aggregate=aggregate, private=bool(seed % 2)) as four:
        server = four.start()
        for number in (1, 6, 12, 18):
            four.until_round(number)
            time.sleep(moments.uniform(0.0, 0.5))
            dead = moments.sample(("server", *NAMES), moments.randint(2, 5))
            for name in dead:
                four.running[name].kill()
            for name in dead:
                if name == "server":
                    server = four.coordinator()
                else:
                    four.node(name)
        assert server.ends() == 0
        assert (36 if seed % 2 else 40) <= len(four.check(private=bool(seed % 2))) <= 40


def test_the_coordinator_is_killed_during_the_set_up(tmp_path):
    with Processes(tmp_path, rounds=3) as four:
        server = four.start()
        until(lambda: four.lines("job"))
        for _ in range(3):
            server.kill()
            server = four.coordinator()
            time.sleep(0.7)
        assert server.ends() == 0
        four.check()
        assert len(four.lines("job")) == 1


# --- who may be here --------------------------------------------------------------------------------------------------


def test_a_node_that_is_revoked_in_the_middle_is_dropped_and_the_run_goes_on(tmp_path):
    with Processes(tmp_path, rounds=40, delay_seconds=0.03) as four:
        server = four.start()
        four.until_round(2)
        verb("federation", "revoke", "east", "--federation", four.federation)
        assert four.running["east"].ends() == 2
        four.running["east"].says("east was revoked")
        assert not server.is_over
        again = four.node("east")
        assert again.ends() == 2  # and does not come in again
        assert again.text().count("east was revoked") > 1
        assert not server.is_over
        assert server.ends() == 0
        members = four.check()
        assert members[0] == set(NAMES)
        assert members[-1] == set(NAMES) - {"east"}


def test_two_coordinators_for_one_run_and_two_processes_of_one_node(tmp_path):
    with Processes(tmp_path) as four:
        server = four.coordinator()
        server.says("listening")
        second = four.run("second", "coordinator", four.job_file, "--federation", four.federation)
        assert second.ends() == 2
        assert f"process {server.pid} does; stop it first" in second.text()
        north = four.node("north")
        north.says("takes part|accepted|in the run")
        data = ["--data", tmp_path / "data" / "north.csv", "--policy", tmp_path / "policy.toml"]
        second = four.run("second", "node", "--identity", tmp_path / "north", *data)
        assert second.ends() == 2
        assert f"process {north.pid} does; stop it first" in second.text()
        for name in NAMES[1:]:
            four.node(name)
        assert server.ends() == 0
        assert four.check() == [set(NAMES)] * 4


# --- people and their approval ----------------------------------------------------------------------------------------


def test_everybody_approves_and_a_table_that_changed_waits_for_another_approval(tmp_path):
    with Processes(tmp_path, rounds=30, approval="person", delay_seconds=0.03) as four:
        server = four.start()
        for name in NAMES:
            four.running[name].says("Waiting for this node's people")
        assert not server.is_over
        for name in NAMES:
            verb("node", "approve", "--yes", "--identity", tmp_path / name)
        four.until_round(2)
        four.running["east"].kill()
        table = tmp_path / "data" / "east.csv"
        before = table.read_text()
        table.write_text(before.rstrip("\n").rpartition("\n")[0] + "\n")  # a record was withdrawn
        east = four.node("east")
        east.says("Expected the table that was approved on .*, it has changed since")
        rounds = len(four.lines("round"))
        four.until_round(rounds + 3)
        assert "east" not in four.lines("round")[-1]["members"]
        for waiting in four.lines("round")[rounds:]:
            assert "east" not in waiting["members"]
        digest = east.text().rpartition("confide node approve ")[2].split()[0]
        verb("node", "approve", digest, "--identity", tmp_path / "east")
        until(lambda: "east" in four.lines("round")[-1]["members"], server.text)
        table.write_text(before)
        assert server.ends() == 0


def test_people_who_refuse_end_the_run_with_their_reason(tmp_path):
    with Processes(tmp_path, approval="person") as four:
        server = four.start()
        for name in NAMES:
            four.running[name].says("Waiting for this node's people")
        for name in NAMES[1:]:
            verb("node", "approve", "--yes", "--identity", tmp_path / name)
        digest = four.running["north"].text().rpartition("confide node show ")[2].split()[0]
        verb("node", "refuse", digest, "--reason", "the board said no", "--identity", tmp_path / "north")
        assert server.ends() == 2
        assert "north: Refused by this node's people: the board said no" in server.text()
        assert four.lines("round") == []
        four.check_nothing_leaked()


# --- analysts ---------------------------------------------------------------------------------------------------------


def test_an_analyst_is_killed_asks_again_and_receives_the_release_of_each_of_two_jobs(tmp_path):
    with Processes(tmp_path, approval="person", analyst=True) as four:
        server = four.coordinator(queue=True)
        for name in NAMES:
            four.node(name)
        first, second = four.job_file, four.write_job("second.toml", rounds=2, name="second")
        asked = [
            ("submit", job, "--identity", tmp_path / "ana", "--out", job.with_suffix(".confide"))
            for job in (first, second)
        ]
        ana = four.run("ana", *asked[0], "--ledger", tmp_path / "copy.jsonl")
        ana.says("number 1 in the queue")
        ana.kill()
        ana = four.run("ana", *asked[1])
        ana.says("number 2 in the queue")
        ana.kill()
        ana = four.run("ana", *asked[0], "--ledger", tmp_path / "copy.jsonl")
        ana.says("number 1 in the queue", times=2)
        for name in NAMES:
            four.running[name].says("Waiting for this node's people")
            verb("node", "approve", "--yes", "--identity", tmp_path / name)
        assert ana.ends() == 0
        assert (tmp_path / "copy.jsonl").read_bytes() in four.ledger.read_bytes()
        server.kill()  # between two jobs, or in the second: neither it nor the first's release is lost
        server = four.coordinator(queue=True)
        for name in NAMES:
            four.running[name].says("Waiting for this node's people", times=2)
            verb("node", "approve", "--yes", "--identity", tmp_path / name)
        ana = four.run("ana", *asked[1])
        assert ana.ends() == 0
        before = first.with_suffix(".confide").read_bytes()
        ana = four.run("ana", *asked[0])
        assert ana.ends() == 0
        assert first.with_suffix(".confide").read_bytes() == before
        assert not server.is_over
        four.check(job=second, model=second.with_suffix(".confide"))


def test_a_job_that_nodes_refuse_is_its_analysts_to_read_and_the_next_one_runs(tmp_path):
    with Processes(tmp_path, analyst=True) as four:
        bad = four.write_job("bad.toml", rounds=2, aggregate="plain")
        server = four.coordinator(queue=True)
        for name in NAMES:
            four.node(name)
        ana = four.run("ana", "submit", bad, "--identity", tmp_path / "ana", "--out", tmp_path / "bad.confide")
        assert ana.ends() == 2
        assert "The job was not done" in ana.text()
        assert "north: " in ana.text()
        assert not (tmp_path / "bad.confide").exists()
        out = tmp_path / "released.confide"
        ana = four.run("ana", "submit", four.job_file, "--identity", tmp_path / "ana", "--out", out)
        assert ana.ends() == 0
        assert not server.is_over
        four.check(model=out)
