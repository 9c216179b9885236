"""The SQLite store: whole commits, bounds, age, permissions, and what is left after kill -9."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import UsageError
from confide.serve.keys import Prefixed, SqliteStore, Staged, key_store, usage_store
from confide.serve.limits import Limits
from confide.serve.protocol import Refusal
from confide.wire import MemoryStore

ROOT = Path(__file__).parents[2]


def contents(store: SqliteStore) -> dict[str, bytes]:
    return dict(store._connection.execute(f"SELECT key, value FROM {store._table}").fetchall())


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.dictionaries(st.sampled_from(["a", "b/c", "ä", ""]), st.none() | st.binary(max_size=20)), max_size=8)
)
def test_behaves_as_the_store_in_memory(commits):
    ours, oracle = SqliteStore(None), MemoryStore()
    for changes in commits:
        ours.commit(changes)
        oracle.commit(changes)
    for key in ["a", "b/c", "ä", "", "other"]:
        assert ours.get(key) == oracle.get(key)
    ours.close()


def test_outlives_the_process(tmp_path):
    first = SqliteStore(tmp_path / "keys.db")
    first.commit({"he/secret": b"s", "he/public": b"p"})
    first.close()
    assert SqliteStore(tmp_path / "keys.db").get("he/secret") == b"s"


def test_a_failed_commit_leaves_nothing(tmp_path):
    store = SqliteStore(tmp_path / "keys.db")
    store.commit({"a": b"1"})
    with pytest.raises(sqlite3.Error):
        store.commit({"a": b"2", "b": {}})  # no such value can be stored
    assert contents(store) == {"a": b"1"}
    store.commit({"a": b"3"})  # and the store still works
    assert store.get("a") == b"3"


@pytest.mark.parametrize("name", ["keys.db", "keys.db-wal", "keys.db-shm"])
def test_nobody_else_can_read_it(tmp_path, name):
    old = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "keys.db")
        store.commit({"a": b"1"})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "keys.db"
    path.touch(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        SqliteStore(path)


def test_something_else_than_a_store_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary " * 1000)
    path.chmod(0o600)
    for wrong in (path, tmp_path / "absent" / "keys.db", tmp_path):
        with pytest.raises(UsageError, match="Expected"):
            SqliteStore(wrong)
    assert path.read_text().startswith("dear diary")


def test_only_two_tables_are_known():
    with pytest.raises(UsageError, match="table"):
        SqliteStore(None, table="keys; DROP TABLE keys")


def test_entries_of_one_commit_leave_together():
    store = SqliteStore(None, max_uploads=2)
    for name in "abc":
        store.commit({f"{name}/key": b"k", f"{name}/known": b"1"})
    assert set(contents(store)) == {"b/key", "b/known", "c/key", "c/known"}


def test_the_oldest_leave_until_the_bytes_fit():
    store = SqliteStore(None, max_bytes=100)
    for name in "abcd":
        store.commit({name: bytes(40)})
    assert set(contents(store)) == {"c", "d"}
    store.commit({"e": bytes(90)})
    assert set(contents(store)) == {"e"}
    with pytest.raises(Refusal, match="100 bytes"):
        store.commit({"f": bytes(60), "g": bytes(41)})
    assert set(contents(store)) == {"e"}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=20), st.integers(1, 4))
def test_the_bounds_hold_after_every_commit(commits, max_uploads):
    store = SqliteStore(None, max_uploads=max_uploads, max_bytes=100)
    for name, size in commits:
        store.commit({str(name): bytes(size)})
        held = contents(store)
        assert len(held) <= max_uploads
        assert sum(map(len, held.values())) <= 100
        assert len(held[str(name)]) == size  # what was just written is there
    store.close()


def test_entries_are_forgotten_by_age():
    now = [100.0]
    store = SqliteStore(None, lifetime_seconds=10, clock=lambda: now[0])
    store.commit({"a": b"1"})
    now[0] = 105.0
    store.commit({"b": b"2"})
    assert store.get("a") == b"1"
    now[0] = 110.0
    assert store.get("a") is None
    assert store.get("b") == b"2"
    assert set(contents(store)) == {"a", "b"}
    store.commit({"c": b"3"})
    assert set(contents(store)) == {"b", "c"}  # the old one is gone from the file


def test_a_clients_store_forgets_nothing():
    store = SqliteStore(None, clock=lambda: 0.0)
    for number in range(300):
        store.commit({str(number): bytes(10)})
    assert len(contents(store)) == 300


def test_a_server_keeps_keys_and_counts_in_one_file(tmp_path):
    keys, usage = key_store(tmp_path / "s.db", Limits(keys=1)), usage_store(tmp_path / "s.db")
    usage.commit({"model/clinic": b"\x05"})
    for name in "abc":
        keys.commit({name: b"k"})
    assert set(contents(keys)) == {"c"}
    assert usage.get("model/clinic") == b"\x05"


def test_threads_do_not_disturb_each_other(tmp_path):
    store = SqliteStore(tmp_path / "keys.db")

    def work(name: int) -> None:
        for number in range(20):
            store.commit({f"{name}/{number}": bytes([name]) * 100})
            assert store.get(f"{name}/{number}") == bytes([name]) * 100

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(contents(store)) == 120


def test_a_part_of_a_store_sees_only_itself():
    store = MemoryStore()
    one, two = Prefixed(store, "one/"), Prefixed(store, "two/")
    one.commit({"k": b"1"})
    assert (one.get("k"), two.get("k"), store.get("one/k")) == (b"1", None, b"1")
    one.commit({"k": None})
    assert store.get("one/k") is None


def test_staged_commits_are_seen_by_the_party_and_not_by_the_store():
    store = MemoryStore()
    store.commit({"old": b"1"})
    staged = Staged(store)
    staged.commit({"new": b"2", "old": None})
    assert (staged.get("new"), staged.get("old")) == (b"2", None)
    assert (store.get("new"), store.get("old")) == (None, b"1")


WRITER = """
import hashlib, sys
from confide.serve.keys import SqliteStore
store = SqliteStore(sys.argv[1], max_uploads=50)
number = 0
while True:
    number += 1
    key = number.to_bytes(4, "little") * 100_000
    name = hashlib.sha256(key).hexdigest()
    store.commit({f"keys/{name}": key, f"known/{name}": b"1"})
    sys.stdout.write(name + "\\n")  # the reply: what was acknowledged must be there
    sys.stdout.flush()
"""


@pytest.mark.parametrize("milliseconds", [3, 31, 77, 113])
def test_killed_in_the_middle_of_writing_everything_acknowledged_is_whole(tmp_path, milliseconds):
    path = tmp_path / "keys.db"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT / "src")}) as writer:
        acknowledged = [writer.stdout.readline().decode().strip()]
        time.sleep(milliseconds / 1000)
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += writer.stdout.read().decode().splitlines()
    store = SqliteStore(path, max_uploads=50)
    held = contents(store)
    for name in acknowledged[-49:]:  # the 50th may have made room for one that was not acknowledged
        assert hashlib.sha256(held[f"keys/{name}"]).hexdigest() == name
        assert f"known/{name}" in held
    assert {key.partition("/")[2] for key in held if key.startswith("keys/")} == {
        key.partition("/")[2] for key in held if key.startswith("known/")
    }
    assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.commit({"after": b"1"})
    assert store.get("after") == b"1"
