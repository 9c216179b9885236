"""Coordinators and nodes that are interrupted, started too early, or given the wrong folder: one line, and no harm."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial

import pytest

from cli.federation_processes import NAMES, Processes


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow, id="int"),
        pytest.param(signal.SIGTERM, 143, "", id="term"),
    ],
)
def test_both_sides_stop_when_asked_and_start_again(tmp_path, number, code, word):
    with Processes(tmp_path) as four:
        for start in (four.coordinator, partial(four.node, "north")):
            for times in (1, 2):  # the second on the same store and the same port
                one = start()
                one.says("listening on|waiting for the coordinator", times=times)
                one.kill(number)
                assert one.ends() == code
                assert not word or one.text().count(word) == times
                assert "Traceback" not in one.text()


_SIGNAL_IN_A_FINALIZER = """
import signal, sys, time
from confide.cli.console import stops_cleanly

class Deleted:
    def __del__(self):
        signal.raise_signal(int(sys.argv[1]))
        time.sleep(0)

with stops_cleanly():
    Deleted()
    time.sleep(20)
    print("was not stopped")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_python_drops_stops_all_the_same(number):
    """As happens once in a hundred interrupts, in `ZipFile.__del__` after an import."""
    command = [sys.executable, "-c", _SIGNAL_IN_A_FINALIZER, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode
    assert "was not stopped" not in done.stdout
    assert ("KeyboardInterrupt" if number == signal.SIGINT else "Exit") in done.stderr


def test_a_node_waits_for_its_coordinator_and_says_so_once(tmp_path):
    with Processes(tmp_path) as four:
        north = four.node("north")
        north.says("trying again: ")
        four.coordinator()
        north.says("\nconnected\n")
        text = north.text()
        assert text.index("node north of") < text.index("waiting for the coordinator") < text.index("trying again")
        assert len({line for line in text.splitlines() if "trying again" in line}) == text.count("trying again")


def test_a_coordinators_folder_is_no_members_and_stays_as_it_is(tmp_path):
    with Processes(tmp_path) as four:
        before = sorted(path.name for path in four.federation.iterdir())
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "confide",
                "node",
                "--identity",
                four.federation,
                "--policy",
                tmp_path / "policy.toml",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "that is a coordinator's folder; name a member's" in done.stderr
        assert sorted(path.name for path in four.federation.iterdir()) == before


@pytest.mark.parametrize("line", ["node --identity north --data x --policy policy.toml", "federation renew north"])
def test_without_websockets_the_extra_is_named(tmp_path, line):
    with Processes(tmp_path):
        program = f"import sys; sys.modules['websockets'] = None; from confide.cli import main; main({line.split()!r})"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr == "confide: Expected the package websockets; install it with: pip install 'confide[federate]'\n"


def test_an_analyst_who_waits_hears_nothing_of_another_job(tmp_path):
    with Processes(tmp_path, analyst=True) as four:
        server = four.coordinator()
        server.says("listening on")
        ana = four.run(
            "ana", "submit", four.job_file, "--identity", tmp_path / "ana", "--out", tmp_path / "ana.confide"
        )
        ana.says("number 1 in the queue")
        for name in NAMES:
            four.node(name)
        assert server.ends() == 0
        assert "wrote " in server.text()
        assert "next: confide ledger verify" in server.text()
        assert "round 4 of 4" in server.text()
        assert "round" not in ana.text()
        assert "offered" not in ana.text()
