"""On which machine a process runs, so that organisations which must not collude are not one by accident."""

from __future__ import annotations

import hashlib
import ipaddress
from contextlib import suppress
from pathlib import Path

_KERNEL, _MACHINE = Path("/proc/sys/kernel/random/boot_id"), Path("/etc/machine-id")


def machine_digest(federation: bytes) -> bytes:
    """Return what two processes of one running kernel share, and nobody else: 32 bytes.

    Args:
        federation: fingerprint of its authority, so that a machine is not recognised across federations.
    """
    found = b""
    for path in (_KERNEL, _MACHINE):
        with suppress(OSError):
            found = found or path.read_bytes().strip()
    return hashlib.sha256(b"confide machine v1\0" + federation + b"\0" + found).digest() if found else bytes(32)


def is_this_machine(address: str) -> bool:
    """Return whether an address is one of loopback."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
