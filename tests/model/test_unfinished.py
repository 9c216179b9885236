"""Folders that processes begin: what a killed one left is gone at the next start, what another fills stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from confide.model.unfinished import begin, clear
from confide.net import folders

SCRIPT = """
import sys, time
from pathlib import Path
from confide.net.folders import new_folder
with new_folder(Path(sys.argv[1])) as building:
    (building / "share").write_bytes(b"secret")
    print(building, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def filling(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "shares")], stdout=subprocess.PIPE)
    line = process.stdout.readline().decode().strip()
    yield process, line
    process.kill()
    process.wait()
    process.stdout.close()


def test_what_a_killed_process_left_is_gone_at_the_next_start(tmp_path, filling):
    process, begun = filling
    others = [tmp_path / name for name in (".shares.toolong123", ".others.abcdefgh", ".shares.ABCDEFGH", "shares.x")]
    for one in others:
        one.mkdir()
    (tmp_path / ".shares.linked12").symlink_to(others[0])
    clear(tmp_path / "shares")
    assert os.path.exists(begun)  # it is alive
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.path.exists(os.path.join(begun, "share"))
    with folders.new_folder(tmp_path / "shares") as building:
        assert not os.path.exists(begun)
        (building / "share").write_bytes(b"whole")
    assert (tmp_path / "shares" / "share").read_bytes() == b"whole"
    assert all(one.exists() for one in others)
    assert (tmp_path / ".shares.linked12").is_symlink()


def test_two_at_once_leave_each_other_alone(tmp_path):
    first, held = begin(tmp_path / "a")
    second, other = begin(tmp_path / "a")
    assert first.exists()
    assert second.exists()
    assert first.stat().st_mode & 0o777 == 0o700
    os.close(held)
    clear(tmp_path / "a")
    assert not first.exists()
    assert second.exists()
    os.close(other)


def test_nothing_there_to_clear(tmp_path):
    clear(tmp_path / "absent" / "a")
