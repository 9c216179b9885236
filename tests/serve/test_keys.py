"""What a server keeps over restarts: uploads of keys within its limits, and counts, in one file."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import StoreError
from confide.serve.access import Quota
from confide.serve.keys import Bounded, Uploads, key_store, open_stores, usage_store
from confide.serve.limits import Limits
from confide.serve.protocol import Refusal
from confide.store import SqliteStore
from confide.wire import MemoryStore
from serve.test_access import granted_by

ROOT = Path(__file__).parents[2]


def test_the_limits_are_the_stores_bounds():
    store = key_store(None, Limits(keys=2, keys_bytes=50, key_store_bytes=100))
    for name in "abc":
        store.commit({f"{name}/key": b"k", f"{name}/known": b"1"})
    assert store.keys() == ["b/key", "b/known", "c/key", "c/known"]
    store.commit({"d": bytes(99)})
    assert store.keys() == ["d"]


def test_old_keys_are_forgotten():
    store = key_store(None, Limits(key_lifetime_seconds=1e-9))
    store.commit({"a": b"1"})
    time.sleep(0.001)
    assert store.get("a") is None


def test_a_server_keeps_keys_and_counts_in_one_file(tmp_path):
    keys, usage = key_store(tmp_path / "s.db", Limits(keys=1)), usage_store(tmp_path / "s.db")
    usage.commit({"model/clinic": b"\x05"})
    for name in "abc":
        keys.commit({name: b"k"})
    assert keys.keys() == ["c"]
    assert usage.get("model/clinic") == b"\x05"


WRITER = """
import hashlib, sys
from confide.serve.keys import key_store
from confide.serve.limits import Limits
store = key_store(sys.argv[1], Limits(keys=50))
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
    store = key_store(path, Limits(keys=50))
    for name in acknowledged[-49:]:  # the 50th may have made room for one that was not acknowledged
        assert hashlib.sha256(store.get(f"keys/{name}")).hexdigest() == name
        assert store.get(f"known/{name}") == b"1"
    assert [key.partition("/")[2] for key in store.keys("keys/")] == [
        key.partition("/")[2] for key in store.keys("known/")
    ]
    store.commit({"after": b"1"})
    assert store.get("after") == b"1"


# --- bounds over any store, as in PostgreSQL --------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 40), st.integers(0, 30)), max_size=12))
def test_bounds_over_any_store_are_those_of_the_table(uploads):
    """The same uploads at the same times into both: what is there at the end is the same."""
    now = [1000.0]
    limits = Limits(keys=3, keys_bytes=40, key_store_bytes=80, key_lifetime_seconds=60)
    table = SqliteStore(None, max_uploads=3, max_bytes=80, lifetime_seconds=60, clock=lambda: now[0])
    inner = MemoryStore()
    bounded = Bounded(inner, limits, clock=lambda: now[0])
    for name, size, seconds in uploads:
        now[0] += 1 + seconds
        if table.get(f"{name}/key") is not None:
            assert bounded.get(f"{name}/key") is not None
            continue  # as `Uploads` does
        for store in (table, bounded):
            store.commit({f"{name}/key": bytes(size), f"{name}/known": b""})
    for name in "abcdef":
        for entry in ("key", "known"):
            assert bounded.get(f"{name}/{entry}") == table.get(f"{name}/{entry}")
    assert bounded.stored_bytes() <= 80
    assert len(inner.keys("uploads/")) <= 3


def test_bounds_forget_what_is_deleted_and_keep_the_rest():
    inner = MemoryStore()
    bounded = Bounded(inner, Limits())
    bounded.commit({"a/key": b"12345", "a/known": b"1"})
    bounded.commit({"b/key": b"123", "b/known": b"1"})
    assert (bounded.stored_bytes(), bounded.keys("a")) == (10, ["a/key", "a/known"])
    bounded.commit({"a/key": None})
    assert (bounded.get("a/key"), bounded.get("a/known")) == (None, b"1")
    bounded.commit({"a/known": None, "never there": None})
    assert (bounded.stored_bytes(), bounded.keys()) == (4, ["b/key", "b/known"])
    assert len(inner.keys()) == 3  # two entries and their upload
    with pytest.raises(StoreError, match="together"):
        Bounded(inner, Limits(keys_bytes=50, key_store_bytes=100)).commit({"c": bytes(101)})


# --- whose keys they are ----------------------------------------------------------------------------------------------

ID, OTHER = "1" * 64, "2" * 64


@pytest.mark.parametrize("bounded", [False, True])
def test_only_who_uploaded_keys_deletes_them(bounded):
    store = Bounded(MemoryStore(), Limits()) if bounded else key_store(None, Limits())
    uploads, elsewhere = (Uploads(store, "m", backend, max_bytes=1000) for backend in ("he", "paillier"))
    for key_id, owner in ((ID, "clinic"), (OTHER, "")):
        uploads.keep(key_id, {f"he/keys/{key_id}": b"k", f"he/known/{key_id}": b"1"}, owner)
    uploads.keep(ID, {f"he/keys/{ID}": b"k"}, "thief")  # known keys keep their owner
    for caller in ("", "thief", "clinic "):
        with pytest.raises(Refusal) as refusal:
            uploads.delete(ID, caller)
        assert (refusal.value.status, refusal.value.code) == (403, "not_owner")
    for wrong in ("", "../" * 10, ID[:-1], "3" * 64):
        with pytest.raises(Refusal) as refusal:
            uploads.delete(wrong, "clinic")
        assert (refusal.value.status, refusal.value.code) == (404, "unknown_key")
    with pytest.raises(Refusal, match="keys that are here"):
        elsewhere.delete(ID, "clinic")  # of another backend
    assert uploads.knows(ID)
    uploads.delete(ID, "clinic")
    uploads.delete(OTHER, "whoever knows it")
    assert store.keys() == []
    assert not uploads.knows(ID)


def test_keys_of_an_earlier_version_are_uploaded_again():
    store = key_store(None, Limits())
    store.commit({f"m/he/known/{ID}": b"\x01"})
    assert not Uploads(store, "m", "he", max_bytes=100).knows(ID)


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def test_servers_share_keys_and_counts_in_postgresql(database):
    url, limits = database, Limits(keys=2)
    one, two = open_stores(url, limits), open_stores(url, limits)
    large = os.urandom(20_000_000)
    Uploads(one.keys, "m", "he", max_bytes=1 << 30).keep(ID, {"he/keys": large}, "clinic")
    there = Uploads(two.keys, "m", "he", max_bytes=1 << 30)
    assert there.knows(ID)
    assert there.keys.get("he/keys") == large
    assert two.keys.stored_bytes() >= len(large)
    quotas = [Quota(100, store.usage) for store in (one, two)]
    for _ in range(50):
        for quota in quotas:
            quota.charge("a", "m", 1)
    for quota in quotas:
        with pytest.raises(Refusal):
            quota.charge("a", "m", 1)
    for number in range(3, 5):
        one.keys.commit({f"upload {number}": b"1"})
    assert not there.knows(ID)  # the oldest has left
    for store in (one, two):
        store.close()


def test_a_refused_count_leaves_the_connection_in_order(database):
    store = open_stores(database, Limits())

    def refuse(saved: bytes | None) -> bytes:
        raise Refusal(429, "quota", "spent")

    store.usage.commit({"k": b"1"})
    held = store.usage._store.exclusive("held")  # would be lost with the connection
    before = store.usage._store._connection
    for _ in range(2):
        with pytest.raises(Refusal, match="spent"):
            store.usage.update("k", refuse)
    assert store.usage._store._connection is before
    store.usage.update("k", lambda saved: saved + b"2")
    store.usage.update("gone", lambda saved: None)
    assert store.usage.get("k") == b"12"
    held.release()
    store.close()


@pytest.mark.slow
def test_processes_share_a_quota_in_postgresql(database):
    url, rows = database, 150
    granted = granted_by(url, rows, 3)
    assert granted <= rows
    assert granted + granted_by(url, rows, 1) == rows
