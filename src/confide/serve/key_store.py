"""Where a client keeps its secret keys between two runs: one file, its own alone, encrypted if wished, with an age.

The keys of one model of one server stand under one path, `client/<part>/`, and live and die together:

    about       which server, model and backend they are for
    made        when the first of them was written, Unix seconds
    key_id      under which name the server has the public keys; `pending` until it has said so
    keys/...    what the backend keeps: the secret key, and public keys only where they are small

Public keys of networks (10 MB and more) are not kept: the server has them, and when it has forgotten them a new pair is
made, which takes less than reading them would cost at every start.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import ProtocolError, UsageError
from confide.store import Lease, SqliteStore
from confide.store.sealed import Keyring, Sealed, system_keyring, unlocked
from confide.wire import Store, decode

#: How long keys are used by default: a month.
LIFETIME_SECONDS = 30 * 86400.0

_ABOUT_BYTES = 1 << 14


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose keys they are: the server's URL, the path of the endpoints, the model, the backend."""

    server: str
    path: str
    model: str
    backend: str


@dataclass(frozen=True, slots=True)
class Kept:
    """The keys for one model of one server.

    Args:
        part: names them in the store, 32 hex digits.
        about: what they are for; None if the file does not say.
        key_id: the name of the public keys at the server; "" if none were confirmed.
        made_seconds: when, Unix time.
        expires_seconds: from when on they are not used any more, Unix time; None for never.
        size_bytes: of all entries together, as stored.
    """

    part: str
    about: About | None
    key_id: str
    made_seconds: float
    expires_seconds: float | None
    size_bytes: int


class KeyStore:
    """A client's keys in one file; a `Store` for `Client(store=...)`. Safe for threads and for several processes.

    Args:
        path: the file, made with mode 0600; folders that are missing are made with mode 0700.
        passphrase: encrypts what is in it (`confide.store.sealed`); needed again each time.
        keyring: True keeps the encrypting key in the system's keyring (`pip install 'confide[keyring]'`); an object
            with `get_password` and `set_password` is used instead.
        lifetime_seconds: age at which keys are deleted and made anew; None keeps them. A month by default.
        clock: Unix seconds.
        rng: for keys and nonces of the encryption.

    Raises:
        UsageError: the passphrase is wrong, others can read the file or write its folder, the file is something else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, KeyStore(f"{folder}/confide/keys.sqlite") as store:
        ...     store.commit({"client/0a/keys/x": b"secret"})
        ...     [kept.part for kept in store.list()]
        ['0a']

    **Guarantees**: nobody but the file's owner can open it. With neither passphrase nor keyring that is all that
    protects it: backups and whoever reads the disk have the keys. With one of them the file alone says nothing but the
    number, sizes and times of entries.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        passphrase: str | None = None,
        keyring: bool | Keyring = False,
        lifetime_seconds: float | None = LIFETIME_SECONDS,
        clock: Callable[[], float] = time.time,
        rng: Randomness | None = None,
    ) -> None:
        if lifetime_seconds is not None and not lifetime_seconds > 0:
            raise UsageError(f"Expected lifetime_seconds={lifetime_seconds} above 0, or None for keys without an end")
        file = Path(path).expanduser()
        _check_folder(file.parent)
        rng = SystemRandomness() if rng is None else rng
        ring = system_keyring() if keyring is True else keyring or None
        self._lifetime_seconds = lifetime_seconds
        self._clock = clock
        self._lock = threading.RLock()
        self._file = SqliteStore(file)
        self._locks = SqliteStore(file, table="locks")
        try:
            empty = not self._file.keys()
            key = unlocked(self._locks, empty=empty, passphrase=passphrase, keyring=ring, rng=rng)
        except BaseException:
            self.close()
            raise
        self.encrypted = key is not None
        self._store: Store = self._file if key is None else Sealed(self._file, key, rng)
        self.expire()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._locks.close()
        self._file.close()

    # --- a store ------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        return None if self._is_old(_part(key)) else self._store.get(key)

    def keys(self, prefix: str = "") -> list[str]:
        found = [key for key in self._store.keys(prefix) if not key.endswith("/made")]
        old = {part for part in {_part(key) for key in found} if self._is_old(part)}
        return [key for key in found if _part(key) not in old]

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        """Write all of `changes` or none of it; keys that are too old go first."""
        with self._lock:
            parts = {_part(key) for key, value in changes.items() if value is not None} - {""}
            more: dict[str, bytes | None] = {}
            for part in sorted(parts):
                if self._is_old(part):
                    more |= dict.fromkeys(self._store.keys(f"client/{part}/"))
                if self._is_old(part) or self._made(part) is None:
                    more[f"client/{part}/made"] = repr(float(self._clock())).encode()
            self._store.commit({**more, **changes})
            gone = {_part(key) for key, value in changes.items() if value is None} - {""}
            for part in gone:  # the last entry takes the time with it
                if self._store.keys(f"client/{part}/") == [f"client/{part}/made"]:
                    self._store.commit({f"client/{part}/made": None})

    def exclusive(self, name: str) -> Lease:
        """Return the lease called `name` of this file. Raises UsageError while another process holds it."""
        return self._file.exclusive(name)

    # --- for people ---------------------------------------------------------------------------------------------------

    def list(self) -> list[Kept]:
        """Return the keys that are kept, the oldest first; no secret is in it."""
        parts = sorted({_part(key) for key in self._store.keys("client/")} - {""})
        return sorted(
            (self._kept(part) for part in parts if not self._is_old(part)), key=lambda kept: kept.made_seconds
        )

    def delete(self, part: str) -> None:
        """Delete keys from the file; the server is not told (`Client.forget` tells it).

        Raises:
            UsageError: there are none by that name.
        """
        with self._lock:
            entries = self._store.keys(f"client/{part}/") if part else []
            if not entries:
                raise UsageError(f"Expected keys called {part!r} in this key store; list() shows what there is")
            self._store.commit(dict.fromkeys(entries))
        self._file.scrub()

    def expire(self, older_seconds: float | None = None) -> int:
        """Delete keys that are older than the lifetime, or than `older_seconds`; return how many there were."""
        limit = self._lifetime_seconds if older_seconds is None else older_seconds
        with self._lock:
            found = sorted({_part(key) for key in self._store.keys("client/")})
            old = [part for part in found if self._is_older(part, limit)]
            entries = [key for part in old for key in self._store.keys(f"client/{part}/")]
            if entries:
                self._store.commit(dict.fromkeys(entries))
        if old:
            self._file.scrub()
        return len(old)

    def _kept(self, part: str) -> Kept:
        path = f"client/{part}/"
        saved, key_id, made = self._store.get(f"{path}about"), self._store.get(f"{path}key_id"), self._made(part) or 0.0
        about = None
        with suppress(ProtocolError):
            about = decode(saved or b"", About, max_bytes=_ABOUT_BYTES)
        expires = None if self._lifetime_seconds is None else made + self._lifetime_seconds
        size = sum(len(self._file.get(key) or b"") for key in self._file.keys(path))
        return Kept(part, about, (key_id or b"").decode(), made, expires, size)

    def _made(self, part: str) -> float | None:
        saved = self._store.get(f"client/{part}/made") if part else None
        return None if saved is None else float(saved)

    def _is_old(self, part: str) -> bool:
        return self._is_older(part, self._lifetime_seconds)

    def _is_older(self, part: str, seconds: float | None) -> bool:
        made = None if seconds is None else self._made(part)
        return seconds is not None and made is not None and made + seconds <= self._clock()


def _part(key: str) -> str:
    """Return which keys an entry belongs to; "" for entries that stand alone."""
    first, _, rest = key.partition("/")
    part, slash, _ = rest.partition("/")
    return part if first == "client" and slash else ""


def _check_folder(folder: Path) -> None:
    """Make the folder if it is missing, for its owner alone; refuse one in which others could exchange the file."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)
    mode = os.stat(folder).st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise UsageError(f"Expected a folder that only you can write, {folder.name} is open; run: chmod go-w {folder}")
