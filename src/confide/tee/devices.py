"""The few operations on special files that attesters need, so that a test can be the kernel behind them.

Such files are no ordinary ones: each write is one message, reading makes the hardware work, and errors come as numbers
of the kernel. Nothing here creates, truncates or keeps a file.
"""

from __future__ import annotations

import errno
import os
from typing import Protocol


class Devices(Protocol):
    """Special files. All operations raise OSError with the kernel's number."""

    def exists(self, path: str) -> bool:
        """Return whether `path` is there."""
        ...

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Return everything in `path`; more than `limit_bytes` is EFBIG."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write `data` to `path`, which is there, in one go."""
        ...

    def make_folder(self, path: str) -> None:
        """Make a folder; EEXIST if there is one."""
        ...

    def remove_folder(self, path: str) -> None:
        """Remove a folder, with what the kernel put there."""
        ...


class SystemDevices:
    """The special files of this machine. See `Devices`."""

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def read(self, path: str, limit_bytes: int) -> bytes:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            body = bytearray()
            while part := os.read(file, limit_bytes + 1 - len(body)):
                body += part
                if len(body) > limit_bytes:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
            return bytes(body)
        finally:
            os.close(file)

    def write(self, path: str, data: bytes) -> None:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.write(file, data) != len(data):
                raise OSError(errno.EIO, "Only a part was written", path)
        finally:
            os.close(file)

    def make_folder(self, path: str) -> None:
        os.mkdir(path, 0o700)

    def remove_folder(self, path: str) -> None:
        os.rmdir(path)
