"""Files that are whole or absent, secrets that only their owner reads, and writers that take turns."""

import os
import subprocess
import sys

import msgspec
import pytest

from confide.errors import UsageError
from confide.net import folders


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with folders.new_folder(tmp_path / "a") as building:
        (building / "file").write_text("x")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a" / "file").read_text() == "x"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileNotFoundError), folders.new_folder(tmp_path / "b") as building:
        (building / "absent" / "file").write_text("x")
    assert os.listdir(tmp_path) == ["a"]


def test_an_empty_folder_may_be_filled_another_may_not(tmp_path):
    (tmp_path / "empty").mkdir()
    with folders.new_folder(tmp_path / "empty"):
        pass
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    for taken in ("full", "file"):
        with pytest.raises(UsageError, match="is there already"), folders.new_folder(tmp_path / taken):
            pass
    with pytest.raises(UsageError, match="the folder above"), folders.new_folder(tmp_path / "x" / "y"):
        pass


def test_secrets_that_others_may_read_are_refused(tmp_path):
    path = tmp_path / "secret"
    folders.write_secret(path, b"x")
    assert path.stat().st_mode & 0o777 == 0o600
    assert folders.read(path, secret=True) == b"x"
    path.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        folders.read(path, secret=True)
    assert folders.read(path) == b"x"
    with pytest.raises(UsageError, match="No such file"):
        folders.read(tmp_path / "absent")


def test_a_replaced_file_is_noticed(tmp_path):
    path = tmp_path / "file"
    assert folders.stamp(path) == (None,)
    seen = set()
    for _ in range(20):  # faster than the clock of the file system
        folders.write_public(path, b"same size")
        seen.add(folders.stamp(path))
        before = folders.stamp(path)
        folders.write_public(path, b"same size")
        assert folders.stamp(path) != before
    assert len(seen) > 1


def test_writers_take_turns_across_processes(tmp_path):
    """Four processes add one to a number 50 times each; without the lock some additions are lost."""
    (tmp_path / "n").write_text("0")
    script = """
import sys, time
from contextlib import nullcontext
from pathlib import Path
from confide.net.folders import locked
folder, me = Path(sys.argv[1]), sys.argv[3]
(folder / f"ready-{sys.argv[2]}-{me}").touch()
while len(list(folder.glob(f"ready-{sys.argv[2]}-*"))) < 4:  # starting takes longer than counting
    time.sleep(0.001)
for _ in range(50):
    with locked(folder) if sys.argv[2] == "locked" else nullcontext():
        number = int((folder / "n").read_text() or 0)
        time.sleep(0.0002)
        (folder / "n").write_text(str(number + 1))
"""

    def count(how):
        (tmp_path / "n").write_text("0")
        command = [sys.executable, "-c", script, str(tmp_path), how]
        running = [subprocess.Popen([*command, str(number)]) for number in range(4)]
        assert all(process.wait() == 0 for process in running) or how == "free"
        return int((tmp_path / "n").read_text() or 0)

    assert count("locked") == 200
    assert count("free") != 200  # the control: the test would see it; a number that is half written is another one too


def test_a_lock_needs_a_folder(tmp_path):
    with pytest.raises(UsageError, match="Expected a folder of a federation"), folders.locked(tmp_path / "absent"):
        pass


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    hosts: list[str]


@pytest.mark.parametrize("name", ["plain", 'quote " and \\', "zwei\nZeilen", "ä€𝔘", "\x7f\x00"])
def test_settings_come_back(name):
    values = {"name": name, "hosts": ["a", name]}
    body = folders.toml(values, heading="One line.\nAnother.")
    assert folders.read_toml(body, Settings, "here") == Settings(**values)


@pytest.mark.parametrize("body", [b"", b"name = 1", b"name = 'x'", b"\xff", b"[", b"name='x'\nhosts=[]\nmore=1"])
def test_settings_that_are_none_are_refused(body):
    with pytest.raises(UsageError, match="Expected here to hold name, hosts, and nothing else"):
        folders.read_toml(body, Settings, "here")


def test_an_identity_comes_back_and_nothing_else_is_one(tmp_path):
    folders.write_secret(tmp_path / folders.IDENTITY, folders.identity_pem(bytes(range(32))))
    assert folders.identity_seed(tmp_path) == bytes(range(32))
    folders.write_secret(tmp_path / folders.IDENTITY, b"none")
    with pytest.raises(UsageError, match="Ed25519 private key"):
        folders.identity_seed(tmp_path)


@pytest.mark.parametrize(
    ("lies_there", "wanted", "says"),
    [
        ("federation.toml", "member.toml", "a coordinator's folder; name a member's"),
        ("member.toml", "federation.toml", "a member's folder; name the coordinator's"),
        ("member.toml", "registry.json", "a member's folder; name the coordinator's"),
        ("pending.bin", "member.toml", "run confide federation join again"),
        ("notes.txt", "member.toml", "confide federation init makes"),
    ],
)
def test_a_wrong_folder_is_named_for_what_it_is(tmp_path, lies_there, wanted, says):
    (tmp_path / lies_there).write_text("")
    with pytest.raises(UsageError, match=says):
        folders.read(tmp_path / wanted)
