"""Values encrypted on their way into a store, under a passphrase or a key of the system's keyring.

    data key      32 random bytes; encrypts every value by ChaCha20-Poly1305 (RFC 8439) under a random nonce, bound to
                  the entry's key, so that entries cannot be exchanged
    passphrase    scrypt (RFC 7914) gives the key that encrypts the data key; salt and cost stand beside it
    keyring       the data key lies in the system's keyring, under an id that stands in the file

Guarantees:
    Whoever has the file and neither passphrase nor keyring reads no value, and changes none without being noticed.

Leaks: the keys of the entries, their sizes and times. An older copy of the whole file is taken for the newest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from confide.crypto.random import Randomness
from confide.errors import IntegrityError, MissingExtra, UsageError
from confide.wire import Store, decode, encode

KEY_BYTES = 32

_NONCE_BYTES = 12
_SALT_BYTES = 16
_FORMAT = 1
_LOCK = "lock"  # the one entry of the table of locks
_LOCK_BYTES = 1024
_WRAPPED = b"confide key store v1, data key"
_SERVICE = "confide key store"

#: Cost of scrypt: 128 MiB and some 0.3 s. A file may name another one within the bounds below.
COST_BITS = 17
_BLOCK = 8
_LEAST_BITS, _MOST_BITS = 14, 20  # 16 MiB to 1 GiB: a file from a stranger must not take all memory
_NO_KEYRING = (
    "Expected a keyring of the system that is there and open; unlock it, or take a passphrase (--passphrase-file)"
)


class Keyring(Protocol):
    """What is needed of a keyring; the package `keyring` is one."""

    def get_password(self, service_name: str, username: str) -> str | None:
        """Return what is kept under a name, or None."""
        ...

    def set_password(self, service_name: str, username: str, password: str) -> None:
        """Keep something under a name."""
        ...


class _Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the data key is kept: public.

    Args:
        format: 1.
        kind: "passphrase" or "keyring".
        id: 16 random bytes in hex, the name in the keyring.
        cost_bits, salt: of scrypt.
        wrapped: nonce and encryption of the data key.
    """

    format: int
    kind: str
    id: str
    cost_bits: int = 0
    salt: bytes = b""
    wrapped: bytes = b""


class Sealed:
    """A `Store` whose values are encrypted before they reach another one.

    Args:
        store: where they go.
        key: the data key, 32 bytes.
        rng: for the nonces.
    """

    def __init__(self, store: Store, key: bytes, rng: Randomness) -> None:
        self._store = store
        self._cipher = ChaCha20Poly1305(key)
        self._rng = rng

    def get(self, key: str) -> bytes | None:
        sealed = self._store.get(key)
        if sealed is None:
            return None
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], key.encode())
        except (InvalidTag, ValueError):  # ValueError: too short for a nonce
            raise IntegrityError("Expected the key store as it was written; delete it and keys are made anew") from None

    def keys(self, prefix: str = "") -> list[str]:
        return self._store.keys(prefix)

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        self._store.commit({key: None if value is None else self._seal(key, value) for key, value in changes.items()})

    def _seal(self, key: str, value: bytes) -> bytes:
        nonce = self._rng.bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, key.encode())


def unlocked(
    locks: Store, *, empty: bool, passphrase: str | None, keyring: Keyring | None, rng: Randomness
) -> bytes | None:
    """Return a store's data key, made and locked if the store is new; None for a store in the clear.

    Args:
        locks: where the lock of the store is kept.
        empty: True if the store holds no entry yet.
        passphrase, keyring: what opens it; not both.
        rng: for a new data key.

    Raises:
        UsageError: the passphrase is wrong or missing, the keyring has no key for this store, or a store in the clear
            was to be opened by either.
        IntegrityError: the lock is damaged.
    """
    if passphrase is not None and keyring is not None:
        raise UsageError("Expected a passphrase or the keyring, not both")
    if passphrase == "":
        raise UsageError("Expected a passphrase with letters; leave it out for a store in the clear")
    wanted = "passphrase" if passphrase is not None else "keyring" if keyring is not None else ""
    saved = locks.get(_LOCK)
    if saved is None:
        if not wanted:
            return None
        if not empty:
            raise UsageError(f"Expected a key store under a {wanted}, this one is in the clear; name a new file")
        lock, key = _made(passphrase, keyring, rng)
        locks.commit({_LOCK: encode(lock)})
        return key
    lock = _read(saved)
    if lock.kind != wanted:
        if lock.kind == "passphrase":
            text = "a passphrase for this key store; give --passphrase-file or --ask-passphrase (passphrase= in Python)"
        else:
            text = "the system's keyring for this key store; give --keyring (keyring=True in Python)"
        raise UsageError(f"Expected {text}, as when it was made")
    if passphrase is not None:
        return _unwrapped(lock, passphrase)
    assert keyring is not None
    found = keyring.get_password(_SERVICE, lock.id)
    if found is None or len(found) != 2 * KEY_BYTES:
        raise UsageError("Expected the key of this key store in the system's keyring; delete the file to start anew")
    return bytes.fromhex(found)


def system_keyring() -> Keyring:
    """Return the system's keyring. Raises MissingExtra without the package `keyring`."""
    try:
        import keyring
        import keyring.errors
    except ImportError:
        raise MissingExtra("keyring", "keyring") from None
    return _SystemKeyring(cast("Keyring", keyring), keyring.errors.KeyringError)


class _SystemKeyring:
    """The package `keyring`, with its errors as ours: a machine without a desktop has none, or it is locked."""

    def __init__(self, package: Keyring, error: type[Exception]) -> None:
        self._package = package
        self._error = error

    def get_password(self, service_name: str, username: str) -> str | None:
        try:
            return self._package.get_password(service_name, username)
        except self._error:
            raise UsageError(_NO_KEYRING) from None

    def set_password(self, service_name: str, username: str, password: str) -> None:
        try:
            self._package.set_password(service_name, username, password)
        except self._error:
            raise UsageError(_NO_KEYRING) from None


def _made(passphrase: str | None, keyring: Keyring | None, rng: Randomness) -> tuple[_Lock, bytes]:
    key, name = rng.bytes(KEY_BYTES), rng.bytes(16).hex()
    if passphrase is None:
        assert keyring is not None
        keyring.set_password(_SERVICE, name, key.hex())
        return _Lock(format=_FORMAT, kind="keyring", id=name), key
    salt, nonce = rng.bytes(_SALT_BYTES), rng.bytes(_NONCE_BYTES)
    wrapping = ChaCha20Poly1305(_stretched(passphrase, salt, COST_BITS))
    wrapped = nonce + wrapping.encrypt(nonce, key, _WRAPPED + name.encode())
    return _Lock(format=_FORMAT, kind="passphrase", id=name, cost_bits=COST_BITS, salt=salt, wrapped=wrapped), key


def _read(saved: bytes) -> _Lock:
    lock = decode(saved, _Lock, max_bytes=_LOCK_BYTES)
    if lock.format != _FORMAT or lock.kind not in ("passphrase", "keyring"):
        raise UsageError(f"Expected a key store of format {_FORMAT}; update confide")
    if lock.kind == "passphrase" and not _LEAST_BITS <= lock.cost_bits <= _MOST_BITS:
        raise IntegrityError(
            f"Expected a key store with cost_bits={lock.cost_bits} from {_LEAST_BITS} to {_MOST_BITS}; delete it"
        )
    return lock


def _unwrapped(lock: _Lock, passphrase: str) -> bytes:
    wrapping = ChaCha20Poly1305(_stretched(passphrase, lock.salt, lock.cost_bits))
    nonce, wrapped = lock.wrapped[:_NONCE_BYTES], lock.wrapped[_NONCE_BYTES:]
    try:
        return wrapping.decrypt(nonce, wrapped, _WRAPPED + lock.id.encode())
    except (InvalidTag, ValueError):
        raise UsageError("Expected the passphrase of this key store; this one does not open it") from None


def _stretched(passphrase: str, salt: bytes, cost_bits: int) -> bytes:
    return Scrypt(salt=salt, length=KEY_BYTES, n=1 << cost_bits, r=_BLOCK, p=1).derive(passphrase.encode())
