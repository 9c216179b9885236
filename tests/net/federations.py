"""A federation to test with: folders under a temporary path, a clock that can be set, OpenSSL as a second opinion."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from confide.net import founding, membership
from confide.net.enrolment import Invitation
from confide.net.registrar import Registrar


class Clock:
    """A clock that the test sets; starts at the real time, since OpenSSL reads that one."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class Houses:
    """A coordinator's folder and members' folders beside it."""

    def __init__(self, root: Path, *, address: str = "127.0.0.1:8443", clock: Clock | None = None) -> None:
        self.root, self.clock = root, clock or Clock()
        self.coordinator = root / "coordinator"
        founding.found(self.coordinator, name="three", address=address, also=["localhost"], now=self.clock)
        self.registrar = Registrar(self.coordinator, now=self.clock)

    def invited(self, name: str, role: str = "node", **options) -> Invitation:
        return self.registrar.invite(name, role, **options)

    def member(self, name: str, role: str = "node") -> Path:
        """Return the folder of a new member."""
        folder = self.root / name
        membership.join(folder, self.invited(name, role), self.registrar.answer, now=self.clock)
        return folder


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the OpenSSL program, which is not our code."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program is not installed: no second opinion on certificates")
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
