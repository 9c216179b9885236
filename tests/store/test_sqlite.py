"""The SQLite store: who may read it, bounds, age, full and broken disks, its size, and what deletion leaves behind."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import StoreError, UsageError
from confide.store import SqliteStore
from store.places import ENVIRONMENT, process, small_disk


def contents(store: SqliteStore) -> dict[str, bytes]:
    return dict(store._connection.execute(f"SELECT key, value FROM {store._table}").fetchall())


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["keys.db", "keys.db-wal", "keys.db-shm", "keys.db.run.lease"])
def test_nobody_else_can_read_it(tmp_path, name):
    old = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "keys.db")
        store.commit({"a": b"1"})
        store.exclusive("run").release()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    store.close()


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


def test_a_table_has_a_plain_name():
    for wrong in ("keys; DROP TABLE keys", "", "Keys", "1"):
        with pytest.raises(UsageError, match="table"):
            SqliteStore(None, table=wrong)


def test_the_tables_of_a_file_share_nothing(tmp_path):
    one, two = SqliteStore(tmp_path / "s.db", table="one"), SqliteStore(tmp_path / "s.db", table="two", max_uploads=1)
    for name in "abc":
        one.commit({name: b"1"})
        two.commit({name: b"2"})
    assert (one.keys(), two.keys()) == (["a", "b", "c"], ["c"])
    assert (one.get("c"), two.get("c")) == (b"1", b"2")


#: Stands before the system's own: tells of every file that was brought to the disk.
TELLING_SYNC = """
#include <dlfcn.h>
#include <cstdio>
#include <unistd.h>
static int tell(const char* name, int descriptor) {
    int result = reinterpret_cast<int (*)(int)>(dlsym(RTLD_NEXT, name))(descriptor);
    char link[64], target[512] = {};
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    if (readlink(link, target, sizeof target - 1) > 0) dprintf(1, "synced %s\\n", target);
    return result;
}
extern "C" int fsync(int descriptor) { return tell("fsync", descriptor); }
extern "C" int fdatasync(int descriptor) { return tell("fdatasync", descriptor); }
"""

ACKNOWLEDGING = """
import os, sys
from confide.store import open_store
store = open_store(sys.argv[1])
if len(sys.argv) > 2:
    store._connection.execute("PRAGMA synchronous = " + sys.argv[2])
for body in (b"1", bytes(3_000_000), None):
    os.write(1, b"begin\\n")
    store.commit({"key": body})
    os.write(1, b"acknowledged\\n")
"""


def test_every_commit_is_on_the_disk_before_it_is_acknowledged(tmp_path):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the library that watches")
    library, path = tmp_path / "sync.so", tmp_path / "store.db"
    build = [compiler, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library), "-ldl"]
    subprocess.run(build, input=TELLING_SYNC, text=True, check=True)

    def told(*setting: str) -> list[str]:
        command = [sys.executable, "-c", ACKNOWLEDGING, str(path), *setting]
        environment = {**ENVIRONMENT, "LD_PRELOAD": str(library)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return [part.split("acknowledged")[0] for part in done.stdout.split("begin\n")[1:]]

    assert [part.endswith(f"synced {path}-wal\n") for part in told()] == [True] * 3
    assert not all(told("NORMAL"))  # so it is the setting that does it


# --- bounds -----------------------------------------------------------------------------------------------------------


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
    with pytest.raises(StoreError, match="100 bytes"):
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
    assert (store.get("a"), store.keys()) == (None, ["b"])
    assert store.get("b") == b"2"
    assert set(contents(store)) == {"a", "b"}
    store.commit({"c": b"3"})
    assert set(contents(store)) == {"b", "c"}  # the old one is gone from the file


def test_without_bounds_nothing_is_forgotten():
    store = SqliteStore(None, clock=lambda: 0.0)
    for number in range(300):
        store.commit({str(number): bytes(10)})
    assert len(contents(store)) == 300


# --- size, and what deletion leaves -----------------------------------------------------------------------------------


def files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def test_many_rounds_do_not_make_the_file_grow(tmp_path):
    store, body, sizes = SqliteStore(tmp_path / "store.db"), os.urandom(4 << 20), []
    for number in range(200):
        store.commit({f"sum/{number}": body, f"sum/{number - 1}": None, f"small/{number}": b"1"})
        store.commit({f"small/{number - 5}": None})
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert sizes[-1] <= sizes[20]
    assert max(sizes) < 64 << 20
    store.close()
    assert (tmp_path / "store.db").stat().st_size < 16 << 20


def test_without_deletion_it_would_have_grown(tmp_path):
    store, body = SqliteStore(tmp_path / "store.db"), os.urandom(4 << 20)
    for number in range(20):
        store.commit({f"sum/{number}": body})
    store.close()
    assert (tmp_path / "store.db").stat().st_size > 64 << 20


@pytest.mark.parametrize("end", ["scrub", "close"])
@pytest.mark.parametrize("size", [32, 100_000])
def test_nothing_of_what_was_deleted_is_left(tmp_path, end, size):
    secret, other = os.urandom(16), os.urandom(16)
    store = SqliteStore(tmp_path / "store.db")
    store.commit({"epoch/1": secret * (size // 16), "stays": b"kept here"})
    store.commit({"epoch/1": other * (size // 16)})
    store.commit({"epoch/1": None})
    assert secret in files(tmp_path)  # the log has it still: this is why there is a scrub
    assert other in files(tmp_path)
    getattr(store, end)()
    assert secret not in files(tmp_path)
    assert other not in files(tmp_path)
    assert b"kept here" in files(tmp_path)


def test_a_scrub_beside_a_reader_says_that_it_could_not(tmp_path):
    store = SqliteStore(tmp_path / "store.db", wait_seconds=0.05)
    store.commit({"a": b"1"})
    with sqlite3.connect(tmp_path / "store.db") as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM entries").fetchall()
        store.commit({"a": None})
        with pytest.raises(StoreError, match="may still be in its log"):
            store.scrub()
        reader.execute("COMMIT")
    reader.close()
    store.scrub()
    store.close()


# --- what disks do ----------------------------------------------------------------------------------------------------


def test_a_locked_file_is_waited_for_and_then_named(tmp_path):
    store = SqliteStore(tmp_path / "store.db", wait_seconds=0.05)
    store.commit({"a": b"1"})
    with sqlite3.connect(tmp_path / "store.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"store\.db to be free.*nothing was written"):
            store.commit({"a": b"2"})
        assert store.get("a") == b"1"  # reading goes on
        other.execute("COMMIT")
        store.commit({"a": b"3"})
    other.close()
    assert store.get("a") == b"3"
    store.close()


#: Fills the store in a file system (or under a limit) that is too small, then makes room and goes on.
FILLER = """
import os, resource, signal, sys
from confide.errors import StoreError
from confide.store import open_store
store = open_store(sys.argv[1])
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
acknowledged = 0
try:
    for number in range(1000):
        store.commit({f"a/{number:03}": bytes([number % 256]) * 50_000, f"b/{number:03}": b"1"})
        acknowledged = number + 1
except StoreError as error:
    print(error, flush=True)
assert store.keys("a/") == [f"a/{number:03}" for number in range(acknowledged)]
print(acknowledged, flush=True)
sys.stdin.readline()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.commit({"after": b"1"})
store.close()
"""


def fill(path: Path, how: str, make_room) -> str:
    with process(FILLER, str(path), how) as filler:
        text, acknowledged = filler.stdout.readline(), int(filler.stdout.readline())
        assert 0 < acknowledged < 1000
        make_room()
        filler.stdin.write("\n")
        filler.stdin.flush()
        assert filler.wait() == 0
    store = SqliteStore(path)
    assert store.get("after") == b"1"
    assert store.keys("a/") == [f"a/{number:03}" for number in range(acknowledged)]
    assert store.keys("b/") == [f"b/{number:03}" for number in range(acknowledged)]
    assert all(store.get(f"a/{number:03}") == bytes([number % 256]) * 50_000 for number in range(acknowledged))
    assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.close()
    return text


def test_a_full_disk_loses_nothing(tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        (disk / "ballast").write_bytes(bytes(1 << 20))
        text = fill(disk / "store.db", "disk", (disk / "ballast").unlink)
    assert text == "Expected room on the disk of store.db; nothing was written. Make room, then go on\n"


def test_a_file_that_may_not_grow_loses_nothing(tmp_path):
    text = fill(tmp_path / "store.db", "limit", lambda: None)
    assert text.startswith("Expected the disk of store.db to work")


def test_a_disk_that_is_read_only_is_named(tmp_path):
    with small_disk(tmp_path / "disk", "8m") as disk:
        SqliteStore(disk / "store.db").close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, capture_output=True)
        for name in ("store.db", "other.db"):
            with pytest.raises(UsageError, match="folder that can be written"):
                SqliteStore(disk / name)


def test_a_store_that_became_read_only_is_named(tmp_path):
    store = SqliteStore(tmp_path / "store.db")
    store.commit({"a": b"1"})
    store._connection.execute("PRAGMA query_only = ON")  # the answer of a file that this process may no longer write
    with pytest.raises(StoreError, match=r"its folder to be writable; nothing was written"):
        store.commit({"a": b"2"})
    store._connection.execute("PRAGMA query_only = OFF")
    assert store.get("a") == b"1"
    store.commit({"a": b"3"})
    store.close()


def test_a_file_that_was_moved_takes_no_commit(tmp_path):
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    store.commit({"a": b"1"})
    path.rename(tmp_path / "elsewhere.db")
    with pytest.raises(StoreError, match=r"moved or replaced; nothing was written"):
        store.commit({"a": b"2"})
    path.touch(0o600)
    with pytest.raises(StoreError, match=r"moved or replaced; nothing was written"):
        store.commit({"a": b"2"})
    path.unlink()
    (tmp_path / "elsewhere.db").rename(path)
    store.commit({"a": b"3"})
    store.close()
    assert SqliteStore(path).get("a") == b"3"


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    store.commit({f"{number:04}": os.urandom(200) for number in range(2000)})
    store.close()
    store = SqliteStore(path)
    content = bytearray(path.read_bytes())
    content[5 * 16384 :] = os.urandom(len(content) - 5 * 16384)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"store\.db to be whole"):
        [store.get(f"{number:04}") for number in range(2000)]
    store._connection.close()


def used(path):
    """Read all of a store and write something; return the error."""
    store = None
    try:
        store = SqliteStore(path)
        keys = store.keys()
        found = [store.get(key) for key in keys]
        assert all(isinstance(value, bytes) for value in found)
        store.commit({"new": b"1"})
    except (UsageError, StoreError) as error:
        return error
    finally:
        if store is not None:
            store._connection.close()
    return None


def test_whatever_bytes_of_a_file_are_damaged_it_is_named_in_one_line(tmp_path):
    whole = tmp_path / "whole.db"
    store = SqliteStore(whole)
    store.commit({f"{number:04}": bytes([number % 256]) * 300 for number in range(300)})
    store.close()
    path, draw, found = tmp_path / "store.db", random.Random(1), []
    for _ in range(150):
        content = bytearray(whole.read_bytes())
        most = draw.choice([200, 16384, len(content)])
        for _ in range(draw.choice([1, 20, 400])):
            content[draw.randrange(most)] ^= 0xFF
        for beside in (path, tmp_path / "store.db-wal", tmp_path / "store.db-shm"):
            beside.unlink(missing_ok=True)
        path.write_bytes(content)
        path.chmod(0o600)
        found.append(used(path))
    assert {type(error) for error in found} == {UsageError, StoreError, type(None)}
    assert all("\n" not in str(error) for error in found)


def test_a_link_and_its_target_are_one_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inside").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "inside" / "store.db")
    one, two = SqliteStore("link.db"), SqliteStore("inside/store.db")
    one.commit({"a": b"1"})
    assert two.get("a") == b"1"
    with one.exclusive("run"), pytest.raises(UsageError, match="Expected nobody else"):
        two.exclusive("run")


def test_a_lease_needs_a_file_beside_the_store(tmp_path):
    store = SqliteStore(tmp_path / "store.db")
    (tmp_path / "store.db.run.lease").mkdir()
    with pytest.raises(StoreError, match=r"store\.db\.run\.lease"):
        store.exclusive("run")


def test_old_files_keep_their_pages(tmp_path):
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE other (x)")
    old.close()
    path.chmod(0o600)
    store = SqliteStore(path)
    store.commit({"a": bytes(100_000)})
    assert store.get("a") == bytes(100_000)
    assert store._connection.execute("PRAGMA page_size").fetchone() == (4096,)
    store.close()
