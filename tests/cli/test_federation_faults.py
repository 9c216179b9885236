"""A federation of real processes and what goes wrong with it: the right sum of the survivors, or a clear refusal."""

from __future__ import annotations

import os
import random
import socket
import ssl
import subprocess
import time
from contextlib import suppress

import pytest

from cli.federation_processes import NAMES, Processes, until, verb
from confide.net.relay import Relay


def test_the_control_nothing_goes_wrong(tmp_path):
    with Processes(tmp_path, rounds=4) as four:
        server = four.start()
        assert server.ends() == 0
        assert four.check() == [set(NAMES)] * 4


#: Minutes of real processes: they are for `make test-all`; the same faults in memory are in tests/train.
pytestmark = pytest.mark.slow


# --- kill -9 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
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


@pytest.mark.parametrize("private", [False, True])
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


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", ["amortised", "masked"])
def test_a_link_that_is_late_breaks_again_and_again_and_is_gone_for_some_rounds(tmp_path, aggregate):
    with Processes(tmp_path, rounds=25, aggregate=aggregate, attempts=50, delay_seconds=0.02) as four:
        server = four.coordinator()
        for name in NAMES[1:]:
            four.node(name)
        with Relay("127.0.0.1", four.port, delay_seconds=0.01, jitter_seconds=0.05) as bad:
            four.node("north", port=bad.port)
            four.until_round(1)
            for _ in range(8):
                time.sleep(0.3)
                bad.cut()
            four.until_round(len(four.lines("round")) + 1)
            bad.block()
            bad.cut()
            four.until_round(len(four.lines("round")) + 3)
            bad.unblock()
            assert server.ends() == 0
            members = four.check()
        assert any("north" not in one for one in members)
        assert all(set(NAMES[1:]) <= one for one in members)


def test_strangers_at_the_port_are_turned_away_and_the_run_goes_on(tmp_path):
    with Processes(tmp_path, rounds=60, delay_seconds=0.03) as four:
        server = four.start()
        four.until_round(1)
        anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
        held = [socket.create_connection(("127.0.0.1", four.port)) for _ in range(20)]  # and never say a word
        hello = bytes.fromhex("160301020001000001fc0303")  # the begin of a handshake
        upgrade = (
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        shut = b"\x88\x80" + bytes(4)
        for body in (
            b"GET / HTTP/1.1\r\n\r\n",
            os.urandom(100_000),
            hello,
            bytes(1_000_000),
            upgrade + b"\x82\xff" + b"\xff" * 12,  # announces more than there is in the world
            upgrade + b"\x82\xfe\xff\xff" + bytes(70_000),
            upgrade + b"\x82\x81" + bytes(5) + shut,
            upgrade + shut,
            upgrade + os.urandom(5000),
        ):
            with suppress(OSError), socket.create_connection(("127.0.0.1", four.port), timeout=0.2) as raw:
                raw.sendall(body)
            with (
                suppress(OSError),
                socket.create_connection(("127.0.0.1", four.port), timeout=0.2) as raw,
                anonymous.wrap_socket(raw) as tls,
            ):
                tls.sendall(body)
                while tls.recv(1000):
                    pass
        assert not server.is_over
        assert server.ends() == 0
        for one in held:
            one.close()
        assert four.check() == [set(NAMES)] * 60


# --- certificates -----------------------------------------------------------------------------------------------------


def test_certificates_that_are_expired_missing_or_of_another_federation(tmp_path):
    with Processes(tmp_path / "one", rounds=3, ages_days={"west": 100.0}) as four, Processes(tmp_path / "two") as other:
        west, folder = four.node("west"), tmp_path / "one"
        assert west.ends() == 2
        assert "expired" in west.text()
        (folder / "south" / "tls.pem").rename(folder / "kept.pem")
        south = four.node("south")
        assert south.ends() == 2
        server = four.coordinator()
        server.says("listening")
        stranger = other.node("east", port=four.port)
        assert stranger.ends() == 2
        assert "certificate is refused" in stranger.text()
        forged = (folder / "east" / "authority.pem").read_bytes()  # the stranger believes in us: we do not in it
        before = (tmp_path / "two" / "east" / "authority.pem").read_bytes()
        (tmp_path / "two" / "east" / "authority.pem").write_bytes(forged)
        stranger = other.node("east", port=four.port)
        assert stranger.ends() == 2
        (tmp_path / "two" / "east" / "authority.pem").write_bytes(before)
        (folder / "kept.pem").rename(folder / "south" / "tls.pem")
        verb("federation", "renew", folder / "west")  # also when it has expired
        for name in NAMES:
            four.node(name)
        assert server.ends() == 0
        assert four.check() == [set(NAMES)] * 3


def test_certificates_are_renewed_in_the_middle_by_the_processes_and_by_people(tmp_path):
    old = {"server": 70.0, "north": 70.0, "east": 70.0}  # of 90 days: less than a third is left
    with Processes(tmp_path, rounds=80, ages_days=old, delay_seconds=0.03) as four:
        before = {name: (tmp_path / name / "tls.pem").read_bytes() for name in ("federation", *NAMES)}
        server = four.start()
        four.running["north"].says("the certificate was renewed")
        four.running["east"].says("the certificate was renewed")
        four.until_round(2)
        for _ in range(5):  # more often than the coordinator remembers old certificates
            verb("federation", "renew", tmp_path / "south")
        verb("federation", "renew", four.federation)
        assert four.relay is not None
        four.relay.cut()
        four.until_round(len(four.lines("round")) + 2)
        until(lambda: "south" in four.lines("round")[-1]["members"], four.running["south"].text)
        assert server.ends() == 0
        for name in ("federation", "north", "east", "south"):
            assert (tmp_path / name / "tls.pem").read_bytes() != before[name]
        assert (tmp_path / "west" / "tls.pem").read_bytes() == before["west"]
        assert four.check()[-1] == set(NAMES)


def test_clocks_that_are_wrong_by_a_day_and_by_ten(tmp_path):
    """Certificates show what a machine's clock said: one is a day late, one a day early; ten days early is refused."""
    with Processes(tmp_path, rounds=3, ages_days={"north": 1.0, "east": -1.0, "south": -10.0}) as four:
        server = four.start("north", "east", "west")
        south = four.node("south")
        assert south.ends() == 2
        assert "clock" in south.text()
        assert not server.is_over
        four.enrol_again("south")
        server.kill()
        server = four.coordinator()
        four.node("south")
        assert server.ends() == 0
        assert four.check() == [set(NAMES)] * 3


# --- stores -----------------------------------------------------------------------------------------------------------


def test_the_coordinator_is_killed_over_postgresql(tmp_path, database):
    with Processes(tmp_path, rounds=20, store=database) as four:
        server = four.start()
        for number in (1, 8):
            four.until_round(number)
            server.kill()
            server = four.coordinator()
        assert server.ends() == 0
        four.check()


def test_the_database_is_gone_and_comes_back(tmp_path, postgres, database):
    with Processes(tmp_path, rounds=30, store=database, delay_seconds=0.02) as four:
        server = four.start()
        for crash in (False, True):
            four.until_round(len(four.lines("round")) + 2)
            postgres.stop(crash=crash)
            try:
                server.says("waiting for the store", times=1 + crash)
            finally:
                postgres.start()
            server.says("the store is back", times=1 + crash)
        assert server.ends() == 0
        four.check()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of 48 MB, and what fills and frees it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs root: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def filled(folder):
    """Fill a disk to its last byte, and return the file that does."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_the_disk_of_the_journal_is_full_and_then_has_room(tmp_path, small_disk):
    with Processes(tmp_path / "four", rounds=30, store=str(small_disk / "c.db"), delay_seconds=0.02) as four:
        server = four.start()
        four.until_round(2)
        ballast = filled(small_disk)
        server.says("waiting for the store")
        ballast.unlink()
        server.says("the store is back")
        assert server.ends() == 0
        four.check()


def test_the_disk_of_the_ledger_is_full_and_then_has_room(tmp_path, small_disk):
    with Processes(tmp_path / "four", rounds=30, delay_seconds=0.02, private=True) as four:
        (small_disk / "ledger.jsonl").touch()
        four.ledger.symlink_to(small_disk / "ledger.jsonl")
        server = four.start()
        four.until_round(2)
        ballast = filled(small_disk)
        server.says("waiting for the store: Expected to add a line to the ledger")
        server.kill()  # whoever does not want to wait
        ballast.unlink()
        server = four.coordinator()
        assert server.ends() == 0
        assert len(four.check(private=True)) == 30


def test_a_model_that_cannot_be_written_is_written_by_the_next_start(tmp_path):
    with Processes(tmp_path, rounds=3, evaluate="federated") as four:
        (four.federation / "model.confide").mkdir()
        server = four.start()
        assert server.ends() == 2
        (four.federation / "model.confide").rmdir()
        server = four.coordinator()
        assert server.ends() == 0
        assert four.check() == [set(NAMES)] * 3
        assert len(four.lines("job")) == len(four.lines("evaluation")) == 1
