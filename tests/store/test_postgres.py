"""The PostgreSQL store on a real server: gone and back, broken in the middle, leases lost and kept, what it refuses."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from confide.errors import StoreError, UsageError
from confide.store import open_store
from confide.store.postgres import PostgresStore, _conninfo, _lock_number
from postgres import PostgresServer, programs
from store.places import small_disk
from store.proxy import Proxy


@pytest.fixture
def store(database: str) -> Iterator[PostgresStore]:
    with closing(open_store(database)) as one:
        yield one


@pytest.fixture
def proxy(tmp_path_factory, postgres: PostgresServer) -> Iterator[Proxy]:
    with closing(Proxy(tmp_path_factory.mktemp("p"), postgres.folder)) as one:
        yield one


def ask(url: str, sql: str, *values) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql, values)
        return cursor.fetchall() if cursor.description else []


# --- gone and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "crashed"])
def test_gone_and_back(postgres: PostgresServer, store: PostgresStore, crash):
    store.commit({"a": b"1"})
    postgres.stop(crash=crash)
    try:
        for use in (lambda: store.commit({"a": b"2"}), lambda: store.get("a"), lambda: store.keys()):
            with pytest.raises(StoreError, match=r"to answer \(.*\); nothing was written. Start it"):
                use()
    finally:
        postgres.start()
    assert store.get("a") == b"1"
    store.commit({"a": b"3"})
    assert store.get("a") == b"3"


def test_a_restart_between_two_calls_is_not_noticed(postgres: PostgresServer, store: PostgresStore):
    for number in range(3):
        store.commit({"a": bytes([number])})
        postgres.stop(crash=number == 1)
        postgres.start()
    store.commit({"b": b"1"})
    assert (store.get("a"), store.get("b")) == (b"\x02", b"1")


def test_a_session_that_the_operator_ended_is_replaced(database: str, store: PostgresStore):
    with store.exclusive("run"):
        store.commit({"a": b"1"})
        ask(database, "SELECT pg_terminate_backend(%s, 5000)", store._connection.info.backend_pid)
        store.commit({"a": b"2"})
        assert store.get("a") == b"2"
        with closing(open_store(database)) as other, pytest.raises(UsageError, match="Expected nobody else"):
            other.exclusive("run")


def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path):
    for where in ("127.0.0.1:1", "localhost:1"):
        with pytest.raises(StoreError, match="Expected the database 'd' at .* to answer") as caught:
            open_store(f"postgresql://u:hunter2@{where}/d")
        assert "hunter2" not in str(caught.value)
    with pytest.raises(StoreError, match="to answer"):
        open_store(f"postgresql:///d?host={tmp_path}&password=hunter2")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h/d?unknown=1",
        "postgresql://u:hunter2%zz@h/d",
        "postgresql://u:hunter2@[::1/d",
        "postgresql://u@h/d?password=hunter2&x",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url):
    with pytest.raises(UsageError, match="postgresql://user@host/database") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_a_password_with_special_characters_is_passed_on():
    info, name = _conninfo("postgresql://u:p%20w%27%5C%40@db.example/d")
    assert psycopg.conninfo.conninfo_to_dict(info)["password"] == "p w'\\@"
    assert name == "the database 'd' at db.example"


@pytest.mark.parametrize(
    ("url", "mode"),
    [
        ("postgresql://u@db.example/d", "verify-full"),
        ("postgresql://u@localhost,db.example/d", "verify-full"),
        ("postgresql://u@/d?hostaddr=192.0.2.1", "verify-full"),
        ("postgresql://u@localhost.example/d", "verify-full"),
        ("postgresql://u@db.example/d?sslmode=require", "require"),
        ("postgresql://u@localhost/d", None),
        ("postgresql://u@127.0.0.1/d", None),
        ("postgresql://u@[::1]/d", None),
        ("postgresql:///d?host=/run/postgresql", None),
        ("postgresql:///d", None),
    ],
)
def test_another_machine_must_show_its_certificate(url, mode):
    assert psycopg.conninfo.conninfo_to_dict(_conninfo(url)[0]).get("sslmode") == mode


# --- broken in the middle ---------------------------------------------------------------------------------------------


def test_a_commit_whose_answer_was_lost_is_said_to_be_in_doubt(database: str, proxy: Proxy):
    with closing(open_store(proxy.url(database))) as store:
        store.commit({"a": b"1"})
        proxy.cut_at = b"COMMIT\0"
        with pytest.raises(StoreError, match=r"wholly or not at all\. Commit the same again"):
            store.commit({"a": b"2", "b": b"2"})
        store.commit({"a": b"2", "b": b"2"})
        assert (store.get("a"), store.keys()) == (b"2", ["a", "b"])
    with closing(open_store(database)) as store:
        assert store.get("b") == b"2"


def test_a_commit_that_never_arrived_is_in_doubt_too_and_is_not_there(database: str, proxy: Proxy):
    with closing(open_store(proxy.url(database))) as store:
        proxy.cut_at, proxy.swallow = b"COMMIT\0", True
        with pytest.raises(StoreError, match="Commit the same again"):
            store.commit({"a": b"2", "b": b"2"})
        assert store.keys() == []


@pytest.mark.parametrize("word", [b"BEGIN", b"INSERT", b"SELECT value"])
@pytest.mark.parametrize("swallow", [False, True])
def test_what_broke_before_the_commit_is_done_again(database: str, proxy: Proxy, word, swallow):
    with closing(open_store(proxy.url(database))) as store:
        before = proxy.connections
        proxy.cut_at, proxy.swallow = word, swallow
        store.commit({"a": b"1", "b": b"2"})
        assert (store.get("a"), store.keys()) == (b"1", ["a", "b"])
        assert proxy.connections == before + 1


def test_an_interrupt_in_the_middle_leaves_no_half(database: str, store: PostgresStore):
    store.commit({"a": b"1"})

    def interrupted(connection: psycopg.Connection) -> None:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO confide_entries VALUES ('half', '')")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store._run(interrupted)
    store.commit({"b": b"2"})
    with closing(open_store(database)) as other:
        assert other.keys() == ["a", "b"]


# --- leases -----------------------------------------------------------------------------------------------------------


def test_a_lease_is_taken_again_after_a_restart(postgres: PostgresServer, database: str, store: PostgresStore):
    lease = store.exclusive("run")
    postgres.stop()
    postgres.start()
    store.commit({"a": b"1"})
    with closing(open_store(database)) as other:
        with pytest.raises(UsageError, match="Expected nobody else"):
            other.exclusive("run")
        lease.release()
        other.exclusive("run").release()


@pytest.mark.parametrize("released", [False, True], ids=["held by another", "another has had it"])
def test_a_lease_that_somebody_had_meanwhile_is_lost(
    postgres: PostgresServer, database: str, store: PostgresStore, released
):
    lease = store.exclusive("run")
    store.commit({"a": b"mine"})
    postgres.stop()
    postgres.start()
    with closing(open_store(database)) as other:
        theirs = other.exclusive("run")
        other.commit({"a": b"theirs"})
        if released:
            theirs.release()
        for _ in range(2):
            with pytest.raises(StoreError, match=r"Expected to hold run of .* another process took it"):
                store.commit({"a": b"mine again"})
            with pytest.raises(StoreError, match="another process took it"):
                store.get("a")
        assert other.get("a") == b"theirs"
        lease.release()  # who gives it up may go on, without it
        assert store.get("a") == b"theirs"
        if not released:
            with pytest.raises(UsageError, match="Expected nobody else"):
                store.exclusive("run")


def test_a_session_that_the_server_believes_in_still_does_not_stand_in_the_way(database: str, proxy: Proxy):
    with closing(open_store(proxy.url(database))) as store, closing(open_store(database)) as other:
        store.exclusive("run")
        proxy.cut()
        with pytest.raises(UsageError, match="Expected nobody else"):
            other.exclusive("run")  # the server knows nothing: this is why the session is ended
        store.commit({"a": b"1"})
        with pytest.raises(UsageError, match="Expected nobody else"):
            other.exclusive("run")
        assert other.get("a") == b"1"


def test_a_lease_that_was_released_while_the_server_was_gone_is_not_taken_again(
    postgres: PostgresServer, database: str, store: PostgresStore
):
    lease = store.exclusive("run")
    postgres.stop()
    lease.release()
    postgres.start()
    store.commit({"a": b"1"})
    with closing(open_store(database)) as other:
        other.exclusive("run").release()


def test_leases_of_two_databases_are_two(postgres: PostgresServer, store: PostgresStore):
    url = postgres.create("beside")
    with closing(open_store(url)) as other, store.exclusive("run"), other.exclusive("run"):
        pass
    postgres.drop("beside")


def test_leases_of_two_schemas_are_two(database: str, store: PostgresStore):
    ask(database, "CREATE SCHEMA beside")
    with closing(open_store(f"{database}&options=-csearch_path%3Dbeside")) as other:
        with store.exclusive("run"), other.exclusive("run"):
            store.commit({"a": b"1"})
        assert other.keys() == []


def test_a_lease_is_a_lock_of_64_bits():
    numbers = {_lock_number(schema, name) for schema in ("public", "p") for name in map(str, range(500))}
    assert len(numbers) == 1000
    assert min(numbers) < -(2**60) < 2**60 < max(numbers) < 2**63


# --- what servers do --------------------------------------------------------------------------------------------------


def test_a_locked_entry_is_waited_for_and_then_named(database: str):
    with closing(PostgresStore(database, wait_seconds=0.05)) as store, psycopg.connect(database) as other:
        store.commit({"a": b"1", "b": b"1"})
        other.execute("UPDATE confide_entries SET value = 'x' WHERE key = 'b'")
        with pytest.raises(StoreError, match=r"to be free, but another process kept writing; nothing was written"):
            store.commit({"a": b"2", "b": b"2"})
        assert store.get("a") == b"1"
        other.rollback()
        store.commit({"a": b"3", "b": b"3"})
        assert (store.get("a"), store.get("b")) == (b"3", b"3")


def test_a_full_disk_loses_nothing(postgres: PostgresServer):  # the fixture skips where there is no server
    def fill() -> None:
        while True:
            store.commit({f"a/{len(acknowledged):03}": bytes(100_000), f"b/{len(acknowledged):03}": b"1"})
            acknowledged.append(f"{len(acknowledged):03}")

    acknowledged: list[str] = []
    own = PostgresServer(programs())  # what it cannot write keeps a server busy for long
    try:
        own.start()
        with small_disk(own.folder / "small", "32m") as disk:
            os.chown(disk, own.folder.stat().st_uid, -1)
            ask(own.url(), f"CREATE TABLESPACE small LOCATION '{disk}'")
            ask(own.url(), "CREATE DATABASE small TABLESPACE small")
            with closing(open_store(own.url("small"))) as store:
                with pytest.raises(StoreError, match=r"to have room on its disk; nothing was written"):
                    fill()
                assert acknowledged
                assert store.keys("a/") == [f"a/{name}" for name in acknowledged]
                assert store.keys("b/") == [f"b/{name}" for name in acknowledged]
                subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
                store.commit({"after": b"1"})
                assert store.get("after") == b"1"
            own.stop(crash=True)
    finally:
        own.remove()


def test_a_database_that_became_read_only_is_named(database: str, store: PostgresStore):
    store.commit({"a": b"1"})
    name = ask(database, "SELECT current_database()")[0][0]
    ask(database, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    with closing(open_store(database)) as other:
        with pytest.raises(StoreError, match=r"read-only; nothing was written\. Connect to the primary"):
            other.commit({"a": b"2"})
        with pytest.raises(StoreError, match="read-only"):
            other.exclusive("run")
        assert other.get("a") == b"1"
    store.exclusive("run").release()  # nothing was left locked


def test_a_user_without_rights_is_told(postgres: PostgresServer, database: str):
    ask(database, "DROP ROLE IF EXISTS visitor")
    ask(database, "CREATE ROLE visitor LOGIN")
    with pytest.raises(StoreError, match="to let this user create tables and write"):
        open_store(database.replace("user=confide", "user=visitor"))


def test_tables_that_were_dropped_are_missed(database: str, store: PostgresStore):
    store.commit({"a": b"1"})
    ask(database, "DROP TABLE confide_entries")
    with pytest.raises(StoreError, match=r"to have its tables, but somebody dropped them; nothing was written"):
        store.commit({"a": b"2"})


def test_a_server_that_promises_no_durability_is_refused(postgres: PostgresServer, database: str):
    postgres.stop()
    postgres.start(fsync="off")
    try:
        with pytest.raises(UsageError, match="fsync = on"):
            open_store(database)
    finally:
        postgres.stop()
        postgres.start()
    open_store(database).close()


@pytest.mark.parametrize(
    ("wanted", "used"), [("off", "on"), ("local", "on"), ("remote_write", "on"), ("on", "on"), ("remote_apply",) * 2]
)
def test_every_commit_waits_for_the_disk(database: str, wanted, used):
    name = ask(database, "SELECT current_database()")[0][0]
    ask(database, f'ALTER DATABASE "{name}" SET synchronous_commit = {wanted}')
    with closing(open_store(database)) as store:
        assert store._connection.execute("SHOW synchronous_commit").fetchone() == (used,)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_keys_do_not_depend_on_the_databases_encoding(postgres: PostgresServer, encoding):
    ask(postgres.url(), f"CREATE DATABASE other TEMPLATE template0 ENCODING '{encoding}'")
    with closing(open_store(postgres.url("other"))) as store:
        store.commit({"名前": b"1", "é": b"2", "z": b"3"})
        assert store.keys() == ["z", "é", "名前"]
        assert store.get("名前") == b"1"
    postgres.drop("other")


def test_values_are_kept_as_they_are_and_the_server_clears_up_by_bytes(database: str, store: PostgresStore):
    sql = "SELECT attstorage::text FROM pg_attribute WHERE attrelid = 'confide_entries'::regclass AND attname = 'value'"
    assert ask(database, sql) == [("e",)]
    sql = """
        SELECT toast.reloptions FROM pg_class JOIN pg_class AS toast ON toast.oid = pg_class.reltoastrelid
        WHERE pg_class.relname = 'confide_entries'
    """
    assert "autovacuum_vacuum_threshold=20000" in ask(database, sql)[0][0]


@pytest.mark.slow
def test_replaced_values_are_cleared_away(postgres: PostgresServer, database: str):
    postgres.stop()
    postgres.start(autovacuum="on", autovacuum_naptime="1s", autovacuum_vacuum_cost_delay="0")
    try:
        with closing(open_store(database)) as store:
            for number in range(40):  # 80 MB, of which 2 MB stay
                store.commit({"sum": bytes([number]) * (2 << 20)})
            vacuumed = "SELECT autovacuum_count FROM pg_stat_all_tables WHERE relid = "
            vacuumed += "(SELECT reltoastrelid FROM pg_class WHERE relname = 'confide_entries')"
            for _ in range(600):
                if ask(database, vacuumed)[0][0]:
                    break
                time.sleep(0.1)
            else:
                pytest.fail("the server has not cleared up")
    finally:
        postgres.stop()
        postgres.start()


def test_two_first_connections_make_the_tables_once(database: str):
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(open_store, [database] * 6))
    for number, store in enumerate(stores):
        store.commit({str(number): b"1"})
    assert stores[0].keys() == list("012345")
    for store in stores:
        store.close()
