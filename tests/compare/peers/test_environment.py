"""Environments are made whole or not at all, and a failure is remembered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compare.peers.fake_peer import fake, variant
from confide.compare.peers.catalogue import PEERS, named, technique, variants
from confide.compare.peers.environment import Environment, interpreter, pinned
from confide.errors import UsageError


def quiet(_: str) -> None:
    pass


def test_every_peer_has_its_list_and_its_script():
    for peer in PEERS.values():
        environment = Environment(peer, Path("nowhere"))
        lines = pinned(environment.pins)
        assert environment.runner.is_file()
        assert all("==" in line for line in lines), peer.name
        assert len({line.partition("==")[0].lower().replace("_", "-") for line in lines}) == len(lines), peer.name
        assert any(line.endswith(f"=={peer.version}") for line in lines), peer.name
        assert peer.variants
    assert len(PEERS) == 9
    assert all(choice.startswith("peer:") for choice in variants())
    assert technique("peer:tenseal").title == "TenSEAL 0.3.18 (peer)"
    assert technique("he") is None


def test_a_name_that_nobody_has_is_refused():
    with pytest.raises(UsageError, match='did you mean "tenseal"'):
        named(("tensael",))


def test_a_peer_that_is_not_there_says_how_to_get_it(tmp_path):
    environment = fake(tmp_path)
    assert environment.absent() == "not installed; `confide peers install fake` makes its environment"
    assert environment.stamp() is None
    assert not environment.remove()
    assert environment.size_bytes() == 0


def test_a_python_that_is_not_here_is_asked_for(tmp_path):
    with pytest.raises(UsageError, match="Expected Python 9.7 or 9.8"):
        interpreter(("9.7", "9.8"))
    environment = fake(tmp_path, pythons=("9.9",))
    with pytest.raises(UsageError, match="Expected Python 9.9"):
        environment.install(progress=quiet)
    assert "could not be installed: Expected Python 9.9" in environment.absent()


def test_a_failure_of_other_pins_is_forgotten(tmp_path):
    environment = fake(tmp_path, pythons=("9.9",))
    with pytest.raises(UsageError):
        environment.install(progress=quiet)
    (tmp_path / "own" / "fake.txt").write_text("other==1\n")
    assert environment.absent().startswith("not installed")
    assert environment.remove()
    assert not environment.root.exists()


@pytest.mark.parametrize("body", [b"", b"{}", b"junk", b'{"peer": 1}', b"[" * 100_000])
def test_a_damaged_stamp_is_no_stamp(tmp_path, body):
    environment = fake(tmp_path)
    (environment.home / "bin").mkdir(parents=True)
    environment.python.touch()
    (environment.home / "stamp.json").write_bytes(body)
    (environment.root / ".failed.json").write_bytes(body)
    assert environment.stamp() is None
    assert environment.absent() is not None


def test_an_environment_that_somebody_else_made_is_left_alone(tmp_path):
    environment = fake(tmp_path)
    environment.home.mkdir(parents=True)
    (environment.home / "mine.txt").write_text("mine")
    for act in (environment.remove, lambda: environment.install(progress=quiet)):
        with pytest.raises(UsageError, match="move it away"):
            act()
        assert (environment.home / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("wrong", [{"peer": "other"}, {"version": "9.9"}, {"pins_sha256": ""}, {}])
def test_a_stamp_is_of_this_peer_this_version_and_a_python_that_runs(tmp_path, wrong):
    environment = fake(tmp_path)
    (environment.home / "bin").mkdir(parents=True)
    environment.python.touch(mode=0o755 if wrong else 0o600)
    said = {"peer": "fake", "version": "1.0", "pins_sha256": environment.pins_hash(), "python": "3.11.0"} | wrong
    (environment.home / "stamp.json").write_text(json.dumps(said))
    assert environment.stamp() is None
    said |= {"peer": "fake", "version": "1.0", "pins_sha256": environment.pins_hash()}
    (environment.home / "stamp.json").write_text(json.dumps(said))
    environment.python.chmod(0o755)
    assert environment.stamp() is not None


@pytest.mark.slow
def test_an_environment_is_made_taken_again_and_removed(tmp_path):
    environment, words = fake(tmp_path, variant("fake", "training")), list[str]()
    stamp = environment.install(progress=words.append)
    assert (stamp.version, stamp.peer) == ("1.0", "fake")
    assert environment.absent() is None
    assert environment.size_bytes() > 1 << 20
    assert any("environment of python" in one for one in words)
    made = environment.python.lstat().st_mtime_ns
    assert environment.install(progress=quiet) == stamp
    assert environment.python.lstat().st_mtime_ns == made
    (tmp_path / "own" / "fake.txt").write_text("some==1\n")
    assert "from other versions" in environment.absent()
    (tmp_path / "own" / "fake.txt").write_text("")
    (environment.root / "note.txt").write_text("somebody else's")
    assert environment.remove()
    assert not environment.home.exists()
    assert (environment.root / "note.txt").exists()


@pytest.mark.slow
def test_a_failing_installer_is_remembered_with_its_last_lines(tmp_path):
    environment = fake(tmp_path, pins=f"absent @ file://{tmp_path}/absent.whl\n")
    with pytest.raises(UsageError, match=r"ERROR: .*absent\.whl"):
        environment.install(progress=quiet)
    assert "could not be installed: ERROR" in environment.absent()
    assert not environment.home.exists()


@pytest.mark.slow
def test_a_peer_of_another_version_is_no_peer(tmp_path):
    environment = fake(tmp_path, version="2.0")
    with pytest.raises(UsageError, match=r"Expected Fake 2\.0, got 1\.0"):
        environment.install(progress=quiet)
    assert environment.stamp() is None


INSTALL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fake_peer import fake
fake(Path(sys.argv[1]), sleep=float(sys.argv[3])).install(progress=lambda words: print(words, flush=True))
"""


@pytest.mark.slow
def test_an_installer_that_is_killed_leaves_nothing_that_is_taken_for_an_environment(tmp_path):
    here = str(Path(__file__).parent)
    command, environment = [sys.executable, "-c", INSTALL, str(tmp_path), here], fake(tmp_path, sleep=600.0)
    with subprocess.Popen([*command, "600"], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "imported" in line:
                break
        pid = tmp_path / "own" / "pid"
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(UsageError, match="Expected nobody else"):  # its last step still runs
        environment.install(progress=quiet)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    time.sleep(0.2)
    assert environment.home.exists()
    assert environment.stamp() is None
    assert "half made" in environment.absent()
    assert fake(tmp_path).install(progress=quiet).version == "1.0"
    assert environment.absent() is None
