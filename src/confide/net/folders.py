"""Folders of a federation: what lies where, and how it is written so that a crash leaves nothing half done.

    both           tls.pem          the TLS key and its certificates, one file so that they change together (0600)
                   authority.pem    the authorities that are trusted
                   identity.pem     the long-lived Ed25519 identity (0600)
    a member       member.toml      name, role, coordinator: whose folder this is
                   pending.bin      a request that has not been answered yet, with its key (0600)
    coordinator    federation.toml  name and address
                   issuer.pem       the authority's key and certificate, its predecessors and their endorsements (0600)
                   registry.json    members, their certificates, invitations, who is revoked (0600)
                   revoked.pem      the revocation list, for software other than confide

Every file is replaced whole. Who changes the registry holds `.lock`; readers need not.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tomllib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from confide.errors import UsageError
from confide.model.artifact import write_whole
from confide.model.unfinished import begin
from confide.structs import known

TLS, AUTHORITY, IDENTITY = "tls.pem", "authority.pem", "identity.pem"
MEMBER, PENDING = "member.toml", "pending.bin"
FEDERATION, ISSUER, REGISTRY, REVOKED = "federation.toml", "issuer.pem", "registry.json", "revoked.pem"

_LOCK = ".lock"
_LARGEST_BYTES = 1 << 26
_PUBLIC_MODE = 0o644

_Settings = TypeVar("_Settings", bound=msgspec.Struct)

#: What tells two versions of a file apart without reading them.
Stamp = tuple[int, int, int]


@contextmanager
def new_folder(folder: Path) -> Generator[Path]:
    """Give a folder to fill that becomes `folder`, whole or not at all.

    Raises:
        UsageError: `folder` exists and is not empty, or the one above it is not there.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"Expected a new folder, {folder} is there already; name another")
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"Expected that the folder above {folder} exists; make it first")
    building, held = begin(folder)
    try:
        yield building
        os.rename(building, folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    finally:
        os.close(held)
    _sync(folder.absolute().parent)


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keep every other process that changes `folder` waiting.

    Raises:
        UsageError: there is no such folder, or it may not be written to.
    """
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"Expected a folder of a federation at {folder}; {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_secret(path: Path, body: bytes) -> None:
    """Write a file whole that its owner alone may read."""
    write_whole(path, body)


def write_public(path: Path, body: bytes) -> None:
    """Write a file whole that everybody may read."""
    write_whole(path, body, mode=_PUBLIC_MODE)


def read(path: Path, *, secret: bool = False) -> bytes:
    """Return a file's bytes.

    Raises:
        UsageError: it cannot be read, or it is secret and others may read it.
    """
    try:
        with path.open("rb") as file:
            if secret and os.fstat(file.fileno()).st_mode & 0o077:
                raise UsageError(f"Expected that only you can read {path}; run: chmod 600 {path}")
            body = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"Expected {path.name} in {path.parent}: {error.strerror}; {_instead(path)}") from None
    if len(body) > _LARGEST_BYTES:
        raise UsageError(f"Expected at most {_LARGEST_BYTES} bytes in {path}; restore it from a backup")
    return body


def _instead(path: Path) -> str:
    """Return what to do about a file of a folder that cannot be read: often the folder is another one."""
    folder = path.parent
    if (folder / FEDERATION).exists() and path.name == MEMBER:
        return "that is a coordinator's folder; name a member's, which confide federation join makes"
    if (folder / MEMBER).exists() and path.name in (FEDERATION, ISSUER, REGISTRY, REVOKED):
        return "that is a member's folder; name the coordinator's, which confide federation init made"
    if (folder / PENDING).exists():
        return "this member has not joined yet; run confide federation join again"
    return "confide federation init makes a coordinator's folder, confide federation join a member's"


def stamp(*paths: Path) -> tuple[Stamp | None, ...]:
    """Return what changes when one of the files is replaced; None for one that is not there."""
    found: list[Stamp | None] = []
    for path in paths:
        try:
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_ino, status.st_size))
        except OSError:
            found.append(None)
    return tuple(found)


def toml(values: Mapping[str, str | Sequence[str]], *, heading: str) -> bytes:
    """Return lines KEY = "value" under a comment."""
    lines = [f"# {line}" for line in heading.splitlines()]
    for key, value in values.items():
        text = json.dumps(value if isinstance(value, str) else list(value), ensure_ascii=False)
        lines.append(f"{key} = {text}".replace("\x7f", "\\u007f"))  # the one letter that JSON takes and TOML does not
    return ("\n".join(lines) + "\n").encode()


def read_toml(body: bytes, kind: type[_Settings], where: str) -> _Settings:
    """Return the settings in a TOML text.

    Raises:
        UsageError: it is not exactly a `kind`; the text shows no content.
    """
    try:
        found: dict[str, Any] = tomllib.loads(body.decode())
        return msgspec.convert(found, known(kind))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.MsgspecError, ValueError):
        fields = ", ".join(kind.__struct_fields__)
        raise UsageError(f"Expected {where} to hold {fields}, and nothing else; get it again, whole") from None


def identity_pem(seed: bytes) -> bytes:
    """Return an identity's 32-byte seed as PEM, PKCS #8."""
    return Ed25519PrivateKey.from_private_bytes(seed).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def identity_seed(folder: Path) -> bytes:
    """Return the 32 secret bytes of the identity in a coordinator's or a member's folder, for `SigningKey`.

    Raises:
        UsageError: there is none, or others may read it.
    """
    path = folder / IDENTITY
    body = read(path, secret=True)
    try:
        key = load_pem_private_key(body, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"Expected an Ed25519 private key without password, as PEM, in {path}; restore it")
    return key.private_bytes_raw()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
