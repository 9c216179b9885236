"""A peer's process: what it sees, how long and how much it may, and that it ends with all it started."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from confide.compare.peers import process
from confide.compare.peers.process import ask, printable
from confide.errors import ProtocolError

HEAD = "import json, os, pathlib, subprocess, sys, time\nfolder = pathlib.Path(sys.argv[1])\n"
PYTHON = Path(sys.executable)


def asked(tmp_path: Path, text: str, *, seconds: float = 30.0) -> bytes:
    script = tmp_path / "script.py"
    script.write_text(HEAD + text)
    return ask(PYTHON, script, {"task": "training"}, {"x": np.zeros((2, 3))}, seconds=seconds)[0]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_is_given_a_task_and_arrays_and_nothing_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_OURS", "1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    text = """
import numpy
task = json.loads((folder / "task.json").read_text())
shape = numpy.load(folder / "arrays.npz")["x"].shape
found = {"task": task, "shape": shape, "environment": sorted(os.environ), "input": sys.stdin.read()}
(folder / "answer.json").write_text(json.dumps(found))
"""
    found = asked(tmp_path, text).decode()
    assert '"shape": [2, 3]' in found
    assert '"task": {"task": "training"}' in found
    assert "SECRET_OF_OURS" not in found
    assert "PYTHONPATH" not in found
    assert '"input": ""' in found


def test_its_last_lines_say_why_it_failed(tmp_path):
    with pytest.raises(ProtocolError, match=r"ended with 3: one; two\x20*") as failed:
        asked(tmp_path, "print('one\\ntwo\\x1b[31m'); sys.stdout.flush(); os._exit(3)")
    assert "\x1b" not in str(failed.value)


@pytest.mark.parametrize(
    "text",
    [
        "pass",
        "(folder / 'answer.json').mkdir()",
        "(folder / 'answer.json').symlink_to('/etc/hostname')",
    ],
)
def test_no_answer_is_an_error(tmp_path, text):
    with pytest.raises(ProtocolError, match="Expected an answer"):
        asked(tmp_path, text)


@pytest.mark.parametrize("name", ["answer.json", "log"])
def test_what_it_writes_is_bounded_while_it_runs(tmp_path, monkeypatch, name):
    monkeypatch.setattr(process, "MOST_ANSWER_BYTES", 1 << 20)
    monkeypatch.setattr(process, "_MOST_LOG_BYTES", 1 << 20)
    target = "sys.stdout.buffer" if name == "log" else "(folder / 'answer.json').open('wb')"
    text = f"file = {target}\nwhile True:\n    file.write(b'x' * (1 << 18)); file.flush(); time.sleep(0.001)"
    with pytest.raises(ProtocolError, match=f"at most 1048576 bytes in {name}"):
        asked(tmp_path, text)


def test_one_that_takes_too_long_is_ended_with_its_children(tmp_path):
    note = tmp_path / "pid"
    text = f"""
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(note)!r}).write_text(str(child.pid))
time.sleep(600)
"""
    with pytest.raises(ProtocolError, match="within 2 s"):
        asked(tmp_path, text, seconds=2.0)
    pid = int(note.read_text())
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(pid)


def test_an_interrupt_ends_it_and_leaves_no_folder(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    note = tmp_path / "pid"

    def interrupted(_: float) -> None:
        if note.exists() and note.read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(process.time, "sleep", interrupted)
    text = f"pathlib.Path({str(note)!r}).write_text(str(os.getpid()))\nwhile True: time.sleep(1)"
    with pytest.raises(KeyboardInterrupt):
        asked(tmp_path, text)
    assert not alive(int(note.read_text()))
    assert not os.listdir(tmp_path / "temporary")


def test_a_strangers_text_is_cut_and_cleaned():
    assert printable("a\x1b[31mb\u202ec") == "a [31mb c"
    assert len(printable("x" * 10_000)) < 700


@pytest.mark.parametrize("trick", ["os.symlink('/etc/hostname', log)", "os.mkfifo(log)", "log.mkdir()", "pass"])
def test_what_it_puts_in_place_of_its_log_is_not_read(tmp_path, trick):
    text = f"print('my words'); sys.stdout.flush(); log = folder / 'log'; log.unlink(); {trick}; os._exit(1)"
    with pytest.raises(ProtocolError, match="ended with 1: my words$"):
        asked(tmp_path, text, seconds=20.0)


@pytest.mark.parametrize(
    "trick", ["os.symlink('/etc/hostname', answer)", "os.mkfifo(answer)", "answer.mkdir()", "pass"]
)
def test_an_answer_is_a_file_of_its_own(tmp_path, trick):
    with pytest.raises(ProtocolError, match="Expected an answer of at most"):
        asked(tmp_path, f"answer = folder / 'answer.json'; {trick}", seconds=20.0)


def test_a_folder_that_it_takes_away_and_an_interpreter_that_is_none(tmp_path):
    with pytest.raises(ProtocolError):
        asked(tmp_path, "import shutil; shutil.rmtree(folder); os._exit(0)")
    none = tmp_path / "python"
    with pytest.raises(ProtocolError, match="--again"):
        ask(none, tmp_path / "script.py", {}, {}, seconds=5.0)
    none.touch(mode=0o600)
    with pytest.raises(ProtocolError, match="--again"):
        ask(none, tmp_path / "script.py", {}, {}, seconds=5.0)
