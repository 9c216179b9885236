"""The key store: nobody else reads it, keys age, and what the file holds says nothing without its passphrase."""

from __future__ import annotations

import os
import stat
import threading

import msgspec
import pytest

from confide.crypto.random import SeededRandomness
from confide.errors import IntegrityError, MissingExtra, UsageError
from confide.serve.key_store import About, KeyStore
from confide.store import SqliteStore, sealed
from confide.wire import MemoryStore, Store, encode

SECRET = b"secret key " * 20
ABOUT = encode(About("https://models.example.org", "/v2/models/m/versions/he", "m", "he"))
DAY = 86400.0


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    monkeypatch.setattr(sealed, "COST_BITS", 14)


class Ring:
    """A keyring in memory."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service_name, username):
        return self.kept.get((service_name, username))

    def set_password(self, service_name, username, password):
        self.kept[service_name, username] = password


def filled(path, part="0a" * 16, **options) -> KeyStore:
    store = KeyStore(path, **options)
    store.commit({f"client/{part}/about": ABOUT, f"client/{part}/keys/he/secret": SECRET})
    return store


def bytes_beside(path) -> bytes:
    return b"".join(one.read_bytes() for one in path.parent.glob(f"{path.name}*"))


OPENERS = {"clear": dict, "passphrase": lambda: {"passphrase": "correct horse"}, "keyring": lambda: {"keyring": Ring()}}


@pytest.mark.parametrize("how", sorted(OPENERS))
def test_what_is_kept_comes_back(tmp_path, how):
    path, options = tmp_path / "keys.sqlite", OPENERS[how]()
    with filled(path, **options) as store:
        assert isinstance(store, KeyStore)
        assert store.encrypted == (how != "clear")
    with KeyStore(path, **options) as store:
        assert store.get("client/" + "0a" * 16 + "/keys/he/secret") == SECRET
        assert store.get("client/x/absent") is None
        assert store.keys("client/") == [f"client/{'0a' * 16}/about", f"client/{'0a' * 16}/keys/he/secret"]
        (kept,) = store.list()
        assert (kept.about.model, kept.about.backend, kept.key_id) == ("m", "he", "")
    assert (SECRET in bytes_beside(path)) == (how == "clear")
    assert (b"example.org" in bytes_beside(path)) == (how == "clear")


def test_file_and_folder_are_the_owners_alone(tmp_path):
    before = os.umask(0)
    try:
        filled(tmp_path / "one" / "two" / "keys.sqlite").close()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / part).stat().st_mode) for part in ("one", "one/two", "one/two/keys.sqlite")]
    assert modes == [0o700, 0o700, 0o600]
    (tmp_path / "one" / "two" / "keys.sqlite").chmod(0o640)
    with pytest.raises(UsageError, match="owner alone"):
        KeyStore(tmp_path / "one" / "two" / "keys.sqlite")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UsageError, match="chmod go-w"):
        KeyStore(tmp_path / "open" / "keys.sqlite")


def test_a_wrong_passphrase_is_said_and_opens_nothing(tmp_path):
    path = tmp_path / "keys.sqlite"
    filled(path, passphrase="correct horse").close()
    for options, text in (
        ({"passphrase": "wrong horse"}, "does not open"),
        ({}, "a passphrase for this key store; give --passphrase-file or --ask-passphrase"),
        ({"keyring": Ring()}, "a passphrase for this key store; give --passphrase-file or --ask-passphrase"),
        ({"passphrase": ""}, "letters"),
        ({"passphrase": "correct horse", "keyring": Ring()}, "not both"),
    ):
        with pytest.raises(UsageError, match=text) as raised:
            KeyStore(path, **options)
        assert "horse" not in str(raised.value)


def test_a_store_in_the_clear_is_not_taken_for_an_encrypted_one(tmp_path):
    path = tmp_path / "keys.sqlite"
    filled(path).close()
    with pytest.raises(UsageError, match="in the clear"):
        KeyStore(path, passphrase="correct horse")


def test_a_keyring_without_the_key_and_a_system_without_a_keyring(tmp_path, monkeypatch):
    filled(tmp_path / "keys.sqlite", keyring=Ring()).close()
    with pytest.raises(UsageError, match="keyring"):
        KeyStore(tmp_path / "keys.sqlite", keyring=Ring())
    monkeypatch.setitem(__import__("sys").modules, "keyring", None)
    with pytest.raises(MissingExtra, match=r"confide\[keyring\]"):
        KeyStore(tmp_path / "other.sqlite", keyring=True)


def test_the_systems_keyring_is_the_package(tmp_path, monkeypatch):
    package, ring = pytest.importorskip("keyring"), Ring()
    monkeypatch.setattr(package, "get_password", ring.get_password)
    monkeypatch.setattr(package, "set_password", ring.set_password)
    filled(tmp_path / "keys.sqlite", keyring=True).close()
    assert len(ring.kept) == 1
    with KeyStore(tmp_path / "keys.sqlite", keyring=True) as store:
        assert store.encrypted


@pytest.mark.parametrize("made", [False, True])
def test_a_system_whose_keyring_is_absent_or_locked_is_told_so(tmp_path, monkeypatch, made):
    package, path = pytest.importorskip("keyring"), tmp_path / "keys.sqlite"
    if made:
        filled(path, keyring=Ring()).close()

    def fails(*_):
        raise package.errors.NoKeyringError("No recommended backend was available")

    monkeypatch.setattr(package, "get_password", fails)
    monkeypatch.setattr(package, "set_password", fails)
    with pytest.raises(UsageError, match="a keyring of the system that is there and open; .*--passphrase-file"):
        KeyStore(path, keyring=True)


def test_entries_that_were_changed_or_exchanged_are_noticed():
    inner = MemoryStore()
    store: Store = sealed.Sealed(inner, bytes(32), SeededRandomness("nonces"))
    store.commit({"a": b"one", "b": b"two"})
    assert (store.get("a"), store.get("b")) == (b"one", b"two")
    first, second = inner.get("a"), inner.get("b")
    assert first is not None
    assert first[:12] != second[:12]  # never one nonce twice
    for wrong in (second, first[:-1], first[:5], b"", bytes([first[0] ^ 1]) + first[1:], first[:-1] + b"x" + b""):
        inner.commit({"a": wrong})
        if wrong != first:
            with pytest.raises(IntegrityError):
                store.get("a")


@pytest.mark.parametrize("bits", [0, 13, 21, 40, 10**9])
def test_a_lock_that_would_take_all_memory_or_none_is_refused(tmp_path, bits):
    path = tmp_path / "keys.sqlite"
    filled(path, passphrase="correct horse").close()
    locks = SqliteStore(path, table="locks")
    lock = msgspec.msgpack.decode(locks.get("lock"))
    locks.commit({"lock": msgspec.msgpack.encode({**lock, "cost_bits": bits})})
    locks.close()
    with pytest.raises(IntegrityError, match="cost_bits"):
        KeyStore(path, passphrase="correct horse")


def test_keys_die_together_after_their_lifetime(tmp_path):
    now = [1e9]
    path = tmp_path / "keys.sqlite"
    with filled(path, lifetime_seconds=DAY, clock=lambda: now[0]) as store:
        now[0] += 0.9 * DAY
        store.commit({"client/" + "0a" * 16 + "/key_id": b"later"})  # does not make the others younger
        store.commit({"client/" + "0b" * 16 + "/keys/he/secret": SECRET})
        assert len(store.list()) == 2
        now[0] += 0.1 * DAY
        assert store.get("client/" + "0a" * 16 + "/keys/he/secret") is None
        assert store.get("client/" + "0a" * 16 + "/key_id") is None
        assert [kept.part for kept in store.list()] == ["0b" * 16]
        assert store.list()[0].expires_seconds == 1e9 + 1.9 * DAY
        store.commit({"client/" + "0a" * 16 + "/keys/he/secret": b"new"})  # leaves nothing of the old ones
        assert store.keys("client/" + "0a" * 16) == ["client/" + "0a" * 16 + "/keys/he/secret"]
        now[0] += DAY
    with KeyStore(path, lifetime_seconds=DAY, clock=lambda: now[0]) as store:
        assert store.list() == []
    assert SECRET not in bytes_beside(path)
    with KeyStore(path, lifetime_seconds=None, clock=lambda: now[0]) as store:
        store.commit({"client/0c/x": b"1"})
        now[0] += 1e9
        assert (store.expire(), store.get("client/0c/x")) == (0, b"1")
        assert (store.expire(1e9), store.get("client/0c/x")) == (1, None)


def test_deleting_leaves_nothing_in_the_file(tmp_path):
    path = tmp_path / "keys.sqlite"
    with filled(path) as store:
        with pytest.raises(UsageError, match="list"):
            store.delete("0c")
        with pytest.raises(UsageError):
            store.delete("")
        store.delete("0a" * 16)
        assert store.list() == []
        assert store.keys() == []
        assert SECRET not in bytes_beside(path)


def test_deleting_the_last_entry_takes_the_time_with_it(tmp_path):
    now = [1e9]
    with filled(tmp_path / "keys.sqlite", lifetime_seconds=DAY, clock=lambda: now[0]) as store:
        store.commit(dict.fromkeys(store.keys()))
        now[0] += 0.9 * DAY
        store.commit({"client/" + "0a" * 16 + "/x": b"1"})
        now[0] += 0.9 * DAY
        assert store.get("client/" + "0a" * 16 + "/x") == b"1"


def test_threads_share_a_store(tmp_path):
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(5):
                store.commit({f"client/{number:02}/x": bytes([step])})
                assert store.get(f"client/{number:02}/x") == bytes([step])
        except BaseException as error:  # shown below
            failures.append(error)

    with KeyStore(tmp_path / "keys.sqlite", passphrase="correct horse") as store:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(store.list()) == 4


@pytest.mark.parametrize("lifetime", [0, -1.0, float("nan")])
def test_a_lifetime_is_more_than_nothing(tmp_path, lifetime):
    with pytest.raises(UsageError, match="lifetime_seconds"):
        KeyStore(tmp_path / "keys.sqlite", lifetime_seconds=lifetime)
    assert not (tmp_path / "keys.sqlite").exists()
