"""What every store promises, in memory, in SQLite and in a real PostgreSQL: one suite for all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.errors import MissingExtra, StoreError, UsageError
from confide.store import DurableStore, Prefixed, SqliteStore, Staged, open_store
from confide.store.entries import LARGEST_VALUE_BYTES
from store.places import ENVIRONMENT, ROOT, Place, place_of, process

ALL, DURABLE = ["memory", "sqlite", "postgres"], ["sqlite", "postgres"]
place = pytest.fixture(params=ALL)(place_of)
durable = pytest.fixture(params=DURABLE)(place_of)

HOSTILE = [
    "'",
    '"; DROP TABLE entries; --',
    "%",
    "_",
    "a%b",
    "\\",
    "?",
    "$1",
    "é",
    "e\u0301",
    "名前/鍵",
    "\U0010ffff",
    "\n",
]
KEYS = st.sampled_from(["", "a", "a/", "a/b", "a/b/c", "b", "ä", "\ud7ff", "\ue000", "\U00010000", *HOSTILE])


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(),
    st.lists(st.dictionaries(KEYS, st.none() | st.binary(max_size=20), max_size=5), max_size=6),
    st.lists(KEYS, min_size=1, max_size=4),
)
def test_behaves_as_a_dictionary(place: Place, example, commits, asked):
    whole = place.stores[0] if place.stores else place.open()
    store, oracle = Prefixed(whole, f"{len(whole.keys())}:{example}/"), {}
    for changes in commits:
        store.commit(changes)
        oracle = {key: value for key, value in {**oracle, **changes}.items() if value is not None}
    for key in asked:
        assert store.get(key) == oracle.get(key)
        assert store.keys(key) == sorted(known for known in oracle if known.startswith(key))
    assert store.keys() == sorted(oracle)


def test_hostile_keys_are_keys_like_others(place: Place):
    store = place.open()
    store.commit({key: key.encode() for key in HOSTILE})
    assert store.keys() == sorted(HOSTILE)
    for key in HOSTILE:
        assert store.get(key) == key.encode()
        assert key in store.keys(key)
    assert store.keys("%") == ["%"]
    store.commit(dict.fromkeys(HOSTILE))
    assert store.keys() == []


@pytest.mark.parametrize("key", ["a\0b", "\0", "\ud800", "k" * 1025, "é" * 513], ids=lambda key: ascii(key[:9]))
def test_a_key_that_some_store_cannot_hold_is_refused_by_all(durable: Place, key):
    store = durable.open()
    for use in (lambda: store.commit({"good": b"1", key: b"2"}), lambda: store.get(key), lambda: store.keys(key)):
        with pytest.raises(UsageError, match="Expected a key"):
            use()
    assert store.keys() == []
    store.commit({"k" * 1024: b"the longest"})
    assert store.get("k" * 1024) == b"the longest"


def test_nothing_is_a_value_and_no_deletion(place: Place):
    store = place.open()
    store.commit({"empty": b"", "absent": None})
    assert (store.get("empty"), store.get("absent"), store.keys()) == (b"", None, ["empty"])
    store.commit({"empty": None, "never": None})
    assert store.keys() == []
    store.commit({})


def test_an_update_makes_a_value_of_the_old_one_or_changes_nothing(durable: Place):
    one, two = durable.open(), durable.open()
    one.update("count", lambda old: b"1" if old is None else None)
    two.update("count", lambda old: old + b"2")
    assert one.get("count") == b"12"

    def refuse(old: bytes | None) -> bytes:
        raise UsageError("no")

    for change, error in ((refuse, UsageError), (lambda old: bytes(LARGEST_VALUE_BYTES + 1), StoreError)):
        with pytest.raises(error):
            one.update("count", change)
    assert two.get("count") == b"12"
    two.update("count", lambda old: None)
    assert one.keys() == []
    with pytest.raises(UsageError, match="Expected a key"):
        one.update("a\0b", lambda old: b"1")


def test_updates_of_two_stores_lose_nothing(durable: Place):
    stores = [durable.open(), durable.open()]

    def count(store: DurableStore) -> None:
        for _ in range(20):
            store.update("count", lambda old: (int.from_bytes(old or b"", "big") + 1).to_bytes(4, "big"))

    threads = [threading.Thread(target=count, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int.from_bytes(stores[0].get("count"), "big") == 40


def test_large_values_come_back_whole(place: Place):
    store, body = place.open(), os.urandom(1 << 20) * 24
    store.commit({"sum": body, "beside": b"1"})
    assert store.get("sum") == body
    store.commit({"sum": body[:-1]})
    assert store.get("sum") == body[:-1]


def test_a_value_that_some_store_cannot_hold_is_refused_whole(durable: Place):
    store = durable.open()
    with pytest.raises(StoreError, match=r"268435456.*nothing was written"):
        store.commit({"a": b"1", "large": bytes(LARGEST_VALUE_BYTES + 1)})
    assert store.keys() == []


@pytest.mark.slow
def test_the_largest_value_fits(durable: Place):
    store, body = durable.open(), os.urandom(1 << 20) * (LARGEST_VALUE_BYTES >> 20)
    store.commit({"large": body})
    assert store.get("large") == body


def test_outlives_the_store(durable: Place):
    first = durable.open()
    first.commit({"a": b"1", "b": b"2"})
    first.close()
    assert durable.open().keys() == ["a", "b"]


def test_two_stores_of_one_place_see_each_other(durable: Place):
    one, two = durable.open(), durable.open()
    one.commit({"a": b"1"})
    two.commit({"a": b"2", "b": b"3"})
    assert (one.get("a"), one.keys()) == (b"2", ["a", "b"])


def test_a_closed_store_says_so(durable: Place):
    store = durable.open()
    store.commit({"a": b"1"})
    store.close()
    for use in (lambda: store.get("a"), lambda: store.commit({"a": b"2"}), lambda: store.keys()):
        with pytest.raises(StoreError):
            use()
    assert durable.open().get("a") == b"1"


def test_a_failed_commit_leaves_nothing(durable: Place):
    store = durable.open()
    store.commit({"a": b"1"})
    with pytest.raises(StoreError, match="nothing was written"):
        store.commit({"a": b"2", "b": {}})  # no such value can be stored
    assert (store.get("a"), store.keys()) == (b"1", ["a"])
    store.commit({"a": b"3"})  # and the store still works
    assert store.get("a") == b"3"


def test_threads_do_not_disturb_each_other(place: Place):
    store, wrong = place.open(), []

    def work(name: int) -> None:
        for number in range(15):
            store.commit({f"{name}/{number}": bytes([name]) * 3000, f"{name}/last": bytes([number])})
            if store.get(f"{name}/{number}") != bytes([name]) * 3000 or store.get(f"{name}/last") != bytes([number]):
                wrong.append((name, number))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(store.keys()) == 6 * 16


COUNTER = """
import sys
from confide.store import open_store
store = open_store(sys.argv[1])
for number in range(30):
    store.commit({f"{sys.argv[2]}/{number}": b"1", "shared": sys.argv[2].encode()})
store.close()
"""


def test_processes_do_not_disturb_each_other(durable: Place):
    store = durable.open()
    command = [sys.executable, "-c", COUNTER, durable.where]
    writers = [subprocess.Popen([*command, name], env=ENVIRONMENT, cwd=ROOT) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(store.keys()) == 61
    assert store.get("shared") in (b"a", b"b")


def test_writers_of_the_same_entries_never_wait_for_each_other(durable: Place):
    stores, failed = [durable.open(), durable.open()], []

    def work(store: DurableStore, first: str, second: str) -> None:
        try:
            for number in range(40):
                store.commit({first: None, second: bytes([number]), **{f"{first}{part}": b"1" for part in range(20)}})
                store.commit({first: bytes([number]), second: None})
        except StoreError as error:
            failed.append(error)

    threads = [
        threading.Thread(target=work, args=(store, *names)) for store, names in zip(stores, ("ab", "ba"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# --- parts of stores --------------------------------------------------------------------------------------------------


def test_a_part_of_a_store_sees_only_itself(place: Place):
    store = place.open()
    one, two = Prefixed(store, "one/"), Prefixed(store, "two/")
    one.commit({"k": b"1", "l": b"2"})
    assert (one.get("k"), two.get("k"), store.get("one/k")) == (b"1", None, b"1")
    assert (one.keys(), one.keys("l"), two.keys()) == (["k", "l"], ["l"], [])
    one.commit({"k": None})
    assert store.get("one/k") is None


def test_staged_commits_are_seen_by_the_party_and_not_by_the_store(place: Place):
    store = place.open()
    store.commit({"old": b"1", "still": b"0"})
    staged = Staged(store)
    staged.commit({"new": b"2", "old": None})
    assert (staged.get("new"), staged.get("old"), staged.keys()) == (b"2", None, ["new", "still"])
    assert staged.keys("s") == ["still"]
    assert (store.get("new"), store.get("old"), store.keys()) == (None, b"1", ["old", "still"])
    store.commit(staged.changes)
    assert store.keys() == ["new", "still"]


# --- crashes ----------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from confide.store import open_store
store = open_store(sys.argv[1])
number = int(store.get("last") or b"0")
while True:
    number += 1
    body = number.to_bytes(4, "little") * 40_000
    changes = {f"{part}/{number:06}": body for part in "ab"} | {f"{part}/{number - 3:06}": None for part in "ab"}
    store.commit({"last": b"%d" % number, **changes})
    sys.stdout.write(f"{number}\\n")  # the reply: what was acknowledged must be there
    sys.stdout.flush()
"""


def killed_while_writing(place: Place, script: str, milliseconds: int) -> tuple[int, DurableStore]:
    """Return the last number that the writer had acknowledged when it was killed, and the store after that."""
    with process(script, place.where) as writer:
        acknowledged = [writer.stdout.readline()]
        time.sleep(milliseconds / 1000)
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += writer.stdout.readlines()
    store, last = place.open(), b""
    while place.kind == "postgres" and last != (last := store.get("last")):  # the server ends what it was sent
        time.sleep(0.1)
    return int(acknowledged[-1]), store


def is_whole(store: DurableStore, acknowledged: int) -> bool:
    last = int(store.get("last"))
    there = range(max(1, last - 2), last + 1)
    return (
        last >= acknowledged
        and all(store.keys(f"{part}/") == [f"{part}/{number:06}" for number in there] for part in "ab")
        and all(
            store.get(f"{part}/{number:06}") == number.to_bytes(4, "little") * 40_000
            for part in "ab"
            for number in there
        )
    )


KILLED_AFTER_MILLISECONDS = (0, 3, 9, 17, 31, 53)


def test_killed_in_the_middle_of_commits_everything_acknowledged_is_whole(durable: Place):
    for milliseconds in KILLED_AFTER_MILLISECONDS:
        acknowledged, store = killed_while_writing(durable, WRITER, milliseconds)
        assert is_whole(store, acknowledged)
        store.close()


def test_a_writer_without_whole_commits_is_found_out(durable: Place):
    """Five of its six pieces are written at any moment but one: all kills miss them once in 10 000 runs."""
    piecewise = WRITER.replace(
        'store.commit({"last": b"%d" % number, **changes})',
        'for key, value in {"last": b"%d" % number, **changes}.items(): store.commit({key: value})',
    )
    assert piecewise != WRITER
    whole = []
    for milliseconds in KILLED_AFTER_MILLISECONDS:
        acknowledged, store = killed_while_writing(durable, piecewise, milliseconds)
        whole.append(is_whole(store, acknowledged))
        store.close()
    assert not all(whole)


# --- leases -----------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from confide.errors import UsageError
from confide.store import open_store
store = open_store(sys.argv[1])
try:
    with store.exclusive("run"):
        print("held", flush=True)
        sys.stdin.readline()
except UsageError as error:
    print(error, flush=True)
store.close()
"""


def test_two_processes_cannot_hold_one_lease(durable: Place):
    store = durable.open()
    with process(HOLDER, durable.where) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            UsageError, match=r"Expected nobody else to hold 'run' of this store, but .*\d+.* does; stop"
        ):
            store.exclusive("run")
        store.exclusive("another-run").release()
        store.commit({"a": b"1"})  # a lease is about its name, not about the store
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.wait() == 0
    with store.exclusive("run"), process(HOLDER, durable.where) as second:
        assert second.stdout.readline().startswith("Expected nobody else to hold 'run'")


def test_a_killed_holder_holds_nothing(durable: Place):
    store = durable.open()
    for _ in range(3):
        with process(HOLDER, durable.where) as holder:
            assert holder.stdout.readline() == "held\n"
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
            store.exclusive("run").release()


def test_one_process_cannot_take_a_lease_twice(durable: Place):
    one, two = durable.open(), durable.open()
    lease = one.exclusive("run")
    for store in (one, two):
        with pytest.raises(UsageError, match="Expected nobody else"):
            store.exclusive("run")
    lease.release()
    second = two.exclusive("run")
    lease.release()  # again: it is no longer this one's to give back
    with pytest.raises(UsageError, match="Expected nobody else"):
        one.exclusive("run")
    second.release()
    with one.exclusive("run"):
        pass
    one.exclusive("run").release()


def test_a_closed_or_forgotten_store_can_be_opened_again_with_its_lease(durable: Place):
    for _ in range(3):
        store = durable.open()
        with store.exclusive("run"):
            store.commit({"a": b"1"})
        store.close()


@pytest.mark.parametrize(
    "name", ["", "a/b", "../up", "a b", "x" * 65, "é", "a\n", "'; --"], ids=lambda name: ascii(name[:9])
)
def test_a_lease_has_a_plain_name(durable: Place, name):
    with pytest.raises(UsageError, match="letters, digits"):
        durable.open().exclusive(name)


def test_a_store_in_memory_has_leases_too():
    store = SqliteStore(None)
    with store.exclusive("run"), pytest.raises(UsageError, match="Expected nobody else"):
        store.exclusive("run")
    store.exclusive("run").release()
    store.close()


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_place_is_a_path_or_a_url(tmp_path):
    for where in (tmp_path / "a.db", str(tmp_path / "b.db")):
        store = open_store(where)
        assert isinstance(store, SqliteStore)
        store.commit({"a": b"1"})
        store.close()
    assert {path.name for path in tmp_path.iterdir()} == {"a.db", "b.db"}
    for where in ("mysql://user:hunter2@host/d", "sqlite:///x.db", "https://host/"):
        with pytest.raises(UsageError, match="scheme") as caught:
            open_store(where)
        assert "hunter2" not in str(caught.value)


def test_postgres_is_an_extra():
    script = """
import sys
sys.modules["psycopg"] = None
from confide.errors import MissingExtra
from confide.store import open_store
try:
    open_store("postgresql://host/database")
except MissingExtra as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(MissingExtra("psycopg", "postgres"))
