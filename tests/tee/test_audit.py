"""The audit: whole lines on the disk, from several processes, over full disks and torn lines."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from confide.errors import StoreError, UsageError
from confide.tee.audit import AuditFile


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_appended_and_the_owners_alone(tmp_path):
    path = tmp_path / "audit.jsonl"
    for number in range(3):
        AuditFile(path).append({"number": number})
    assert lines(path) == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_is_flushed_before_append_returns(tmp_path, monkeypatch):
    path, order = tmp_path / "audit.jsonl", []
    audit = AuditFile(path)
    write, fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda *given: (order.append("write"), write(*given))[1])
    monkeypatch.setattr(os, "fsync", lambda *given: (order.append("fsync"), fsync(*given))[1])
    audit.append({"a": 1})
    assert order == ["write", "fsync"]

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StoreError, match="Input/output"):
        audit.append({"a": 2})


def test_a_full_disk_leaves_no_piece_of_a_line(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = AuditFile(path)
    audit.append({"a": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))
    try:
        with pytest.raises(StoreError, match="audit"):
            audit.append({"a": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lines(path) == [{"a": 1}]
    audit.append({"a": 3})
    assert lines(path) == [{"a": 1}, {"a": 3}]


def test_a_torn_line_spoils_no_other(tmp_path):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":')
    AuditFile(path).append({"a": 3})
    assert path.read_bytes() == b'{"a":1}\n{"a":\n{"a":3}\n'


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = AuditFile(path)
    audit.append({"a": 1})
    path.rename(tmp_path / "old")
    audit.append({"a": 2})
    assert lines(path) == [{"a": 2}]


def test_several_processes_write_whole_lines(tmp_path):
    path = tmp_path / "audit.jsonl"
    code = (
        "import sys; from confide.tee.audit import AuditFile; audit = AuditFile(sys.argv[1])\n"
        "for number in range(20): audit.append({'who': sys.argv[2], 'number': number, 'long': 'x' * 3000})"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(path), who]) for who in "ab"]
    assert [process.wait(60) for process in started] == [0, 0]
    found = lines(path)
    for who in "ab":
        assert [line["number"] for line in found if line["who"] == who] == list(range(20))


def test_a_reader_that_keeps_the_file_does_not_keep_the_broker(tmp_path, monkeypatch):
    path = tmp_path / "audit.jsonl"
    monkeypatch.setattr("confide.tee.audit.WAIT_SECONDS", 0.05)
    audit = AuditFile(path)
    with path.open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        with pytest.raises(StoreError, match="another process holds it"):
            audit.append({"a": 1})
    assert not lines(path)
    audit.append({"a": 2})
    assert lines(path) == [{"a": 2}]


@pytest.mark.parametrize("kind", ["folder", "pipe", "nowhere"])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "place"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = path / "absent" / "audit.jsonl"
    with pytest.raises(UsageError, match="audit file"):
        AuditFile(path)
