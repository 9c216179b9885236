"""Making keys, once per client and plan: the secret stays in the client's store, the public part goes to the server.

    client -> server   {backend}/keys     the public keys, whose SHA-256 is the key id
    server -> client   {backend}/key-id   the id, once the keys are in the server's store

Small public keys stay beside the secret, and setting up again sends the same ones. Large ones are not kept twice:
setting up again makes a new pair, which costs less than their bytes at every start and leaves nothing that links both.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import msgspec

from confide.errors import ProtocolError, UsageError
from confide.he.loaded import LoadedKeys
from confide.wire import Message, Party, Step, Store, decode, encode

#: Largest upload that is read; drivers may allow less.
MAX_KEYS_BYTES = 1 << 30

#: Largest public keys that a client keeps beside its secret key.
KEPT_PUBLIC_BYTES = 1 << 20

_KEY_ID = re.compile(r"[0-9a-f]{64}")


class Owned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client keeps: its secret key and the id of the public keys that belong to it. No repr shows it.

    Args:
        key_id: hex SHA-256 of the public keys as they were sent.
        secret: the secret key, as the backend writes it.
    """

    key_id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"Owned({self.key_id[:8]})"


class KeyId(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The server's reply to an upload."""

    key_id: str


def known_path(backend: str, key_id: str) -> str:
    """Return where a server keeps what it must know of keys before it reads them."""
    return f"{backend}/known/{key_id}"


def is_key_id(text: str) -> bool:
    """Return whether a stranger's `text` can name keys: what a store cannot even be asked for is none."""
    return _KEY_ID.fullmatch(text) is not None


def key_id_of(body: bytes) -> str:
    """Return the id of public keys."""
    return hashlib.sha256(body).hexdigest()


def _always(kept: Owned) -> bool:
    return True


def setup_client(
    backend: str,
    kit: bytes,
    make: Callable[[], tuple[bytes, bytes]],
    store: Store,
    *,
    current: Callable[[Owned], bool] = _always,
) -> Party:
    """Return the client's party: makes keys unless the store has both halves, sends the public one, returns its id.

    Args:
        backend: the registry name.
        kit: the client kit's bytes; keys for different kits do not meet.
        make: makes the secret key and the public keys, both as bytes; may take long.
        store: the client's.
        current: whether saved keys are still good; others are replaced.

    Leaks: the public keys, to the server.
    """
    path = _path(backend, kit)
    saved, body = store.get(f"{path}/secret"), store.get(f"{path}/keys")
    changes: dict[str, bytes | None] = {}
    if saved is None or body is None or not current(decode(saved, Owned, max_bytes=MAX_KEYS_BYTES)):
        secret, body = make()
        changes = {f"{path}/secret": encode(Owned(key_id_of(body), secret))}
        changes[f"{path}/keys"] = body if len(body) <= KEPT_PUBLIC_BYTES else None
    message = Message("client", "server", f"{backend}/keys", body)
    received = yield Step(send=(message,), save=changes, await_tag=f"{backend}/key-id", wait_for=("server",))
    reply = decode(received["server"].body, KeyId, max_bytes=256)
    if reply.key_id != key_id_of(body):
        raise ProtocolError("Expected the server to name the keys that were sent")
    return reply.key_id


def setup_server(
    backend: str, check: Callable[[bytes], object], *, record: Callable[[bytes], bytes] = lambda body: b"\x01"
) -> Party:
    """Return the server's party: checks the client's public keys, keeps them under their id, replies and returns it.

    Args:
        backend: the registry name.
        check: raises ProtocolError unless the bytes are keys for this kit.
        record: what is kept beside the keys, small; may raise ProtocolError, and runs before `check`.
    """
    received = yield Step(await_tag=f"{backend}/keys", wait_for=("client",))
    body = received["client"].body
    if len(body) > MAX_KEYS_BYTES:
        raise ProtocolError(f"Expected keys of at most {MAX_KEYS_BYTES} bytes")
    known = record(body)
    check(body)
    key_id = key_id_of(body)
    reply = Message("server", "client", f"{backend}/key-id", encode(KeyId(key_id)))
    yield Step(send=(reply,), save={f"{backend}/keys/{key_id}": body, known_path(backend, key_id): known})
    return key_id


def owned(backend: str, kit: bytes, store: Store) -> Owned:
    """Return the client's keys for a kit. Raises UsageError if there are none."""
    body = store.get(f"{_path(backend, kit)}/secret")
    if body is None:
        raise UsageError("Expected keys for this model in the store; run setup first")
    return decode(body, Owned, max_bytes=MAX_KEYS_BYTES)


class Registered:
    """The clients' public keys as a server kit uses them: parsed once, and kept while there is room.

    Args:
        backend: the registry name.
        parse: turns an upload into what the kit works with.
        loaded: where parsed keys are kept; a server sets one for all its kits.
    """

    def __init__(self, backend: str, parse: Callable[[bytes], object], *, loaded: LoadedKeys | None = None) -> None:
        self._backend = backend
        self._parse = parse
        self.loaded = LoadedKeys() if loaded is None else loaded

    def get(self, key_id: str, store: Store, *, here: bool = False) -> object:
        """Return the keys called `key_id`. Raises ProtocolError if the store does not have them (any more).

        Args:
            key_id: a stranger's.
            store: the server's.
            here: True if the caller has just seen in the store that they are there.
        """

        def load() -> tuple[object, int]:
            body = store.get(f"{self._backend}/keys/{key_id}")
            if body is None:
                raise _not_here()
            return self._parse(body), len(body)

        if not here and not (is_key_id(key_id) and store.get(known_path(self._backend, key_id)) is not None):
            self.loaded.forget(self, key_id)
            raise _not_here()
        return self.loaded.get(self, key_id, load)


def _not_here() -> ProtocolError:
    return ProtocolError("Expected the id of keys that are here; set up first")


def _path(backend: str, kit: bytes) -> str:
    return f"{backend}/{hashlib.sha256(kit).hexdigest()[:16]}"
