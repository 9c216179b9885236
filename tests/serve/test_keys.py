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

from confide.serve.keys import key_store, usage_store
from confide.serve.limits import Limits

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
