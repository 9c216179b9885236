"""Kernels and firmware that are not there: `configfs-tsm`, `/dev/attestation`, and the public vectors that they answer.

They are written from the kernel's and Gramine's documentation, not from our attesters: generations, lost errors of
binary attributes, one provider, blobs that are made when they are read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

VECTORS = Path(__file__).parents[2] / ".." / "shared" / "vectors" / "tee"

SNP_REPORT_DATA = slice(0x50, 0x90)
SGX_REPORT_DATA = slice(368, 432)
TDX4_REPORT_DATA = slice(568, 632)
TDX5_REPORT_DATA = slice(574, 638)


@cache
def _sums() -> dict[str, str]:
    lines = (VECTORS / "SHA256SUMS").read_text().splitlines()
    return {name.lstrip("*./"): digest for digest, name in (line.split(maxsplit=1) for line in lines)}


@cache
def vector(name: str) -> bytes:
    """Return a public vector, its hash checked; skip where the vectors are not."""
    if not VECTORS.is_dir():
        pytest.skip("the public attestation vectors are not beside this checkout: ../shared/vectors/tee")
    body = (VECTORS / name).read_bytes()
    assert hashlib.sha256(body).hexdigest() == _sums()[name], f"{name} is not the file of SHA256SUMS"
    return body


def with_data(evidence: bytes, place: slice, data: bytes) -> bytes:
    return evidence[: place.start] + data + evidence[place.stop :]


def cert_table(entries: list[tuple[str, bytes]], *, page: int = 1) -> bytes:
    """Return AMD's table of certificates; `page` fills each up, as hosts do."""
    head, bodies = b"", b""
    begin = 24 * (len(entries) + 1)
    for guid, body in entries:
        padded = body + bytes(-len(body) % page)
        head += uuid.UUID(guid).bytes + (begin + len(bodies)).to_bytes(4, "little") + len(padded).to_bytes(4, "little")
        bodies += padded
    return head + bytes(24) + bodies


@dataclass
class _Entry:
    inblob: bytes = b""
    privlevel: int | None = None
    written: int = 0
    read: int = 0
    blobs: dict[str, bytes] | None = None


@dataclass
class FakeTsm:
    """What the kernel does behind /sys/kernel/config/tsm/report.

    Args:
        answer: from (inblob, privlevel) to the blobs, by name: outblob, and auxblob and manifestblob where there are.
        provider: None is a kernel without a driver.
        errors: numbers of the kernel by "operation name", taken one by one.
        spy: called before each operation, with its name and path: a second process.
        levels: whether there are privilege levels.
    """

    answer: Callable[[bytes, int | None], dict[str, bytes]]
    provider: str | None = "sev_guest"
    root: str = "/sys/kernel/config/tsm/report"
    errors: dict[str, list[int]] = field(default_factory=dict)
    spy: Callable[[str, str], None] | None = None
    levels: bool = True
    floor: int = 0
    entries: dict[str, _Entry] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    mounted: bool = True

    def exists(self, path: str) -> bool:
        return self.mounted and (path == self.root or path in self.entries)

    def make_folder(self, path: str) -> None:
        self._enter("mkdir", path)
        if self.provider is None:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), path)
        if path in self.entries:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        assert path.rpartition("/")[0] == self.root
        self.entries[path] = _Entry()

    def remove_folder(self, path: str) -> None:
        self._enter("rmdir", path)
        del self.entries[path]

    def write(self, path: str, data: bytes) -> None:
        entry, name = self._enter("write", path)
        if name == "inblob":
            if len(data) > 64:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
            entry.inblob = data
        elif name == "privlevel" and self.levels:
            if not self.floor <= int(data) <= 3:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
            entry.privlevel = int(data)
        else:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        entry.written += 1

    def read(self, path: str, limit_bytes: int) -> bytes:
        entry, name = self._enter("read", path)
        if name == "generation":
            return f"{entry.written}\n".encode()
        if name == "provider":
            return f"{self.provider}\n".encode()
        if not entry.inblob:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        if entry.blobs is None or entry.read != entry.written:
            entry.blobs = self.answer(entry.inblob, entry.privlevel)
            entry.read = entry.written
        if name not in entry.blobs:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if len(entry.blobs[name]) > limit_bytes:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return entry.blobs[name]

    def _enter(self, operation: str, path: str) -> tuple[_Entry, str]:
        folder, _, name = path.rpartition("/")
        key = f"{operation} {name}" if operation in ("read", "write") else operation
        self.log.append(key)
        if self.spy is not None:
            self.spy(key, path)
        if queue := self.errors.get(key):
            number = queue.pop(0)
            raise OSError(number, os.strerror(number), path)
        if operation in ("read", "write"):
            return self.entries[folder], name
        return _Entry(), name


@dataclass
class FakeGramine:
    """What Gramine does behind /dev/attestation."""

    answer: Callable[[bytes], bytes]
    kind: str | None = "dcap"
    root: str = "/dev/attestation"
    data: bytes = bytes(64)
    errors: dict[str, int] = field(default_factory=dict)
    spy: Callable[[FakeGramine], None] | None = None

    def exists(self, path: str) -> bool:
        return self.kind is not None and path.startswith(self.root)

    def make_folder(self, path: str) -> None:
        raise AssertionError(path)

    remove_folder = make_folder

    def write(self, path: str, data: bytes) -> None:
        self._enter(path)
        assert path == f"{self.root}/user_report_data"
        assert len(data) <= 64
        self.data = data.ljust(64, b"\0")
        if self.spy is not None:
            self.spy(self)

    def read(self, path: str, limit_bytes: int) -> bytes:
        self._enter(path)
        body = {"attestation_type": (self.kind or "").encode()}.get(path.rpartition("/")[2])
        body = self.answer(self.data) if body is None else body
        assert len(body) <= limit_bytes
        return body

    def _enter(self, path: str) -> None:
        if number := self.errors.get(path.rpartition("/")[2]):
            raise OSError(number, os.strerror(number), path)
