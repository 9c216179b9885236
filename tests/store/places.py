"""Where the stores under test lie, and the processes that use them from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from confide.store import DurableStore, open_store
from confide.wire import MemoryStore

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.defpath}


@dataclass
class Place:
    """One store's data: `open` opens it again and again; memory has only one."""

    kind: str
    where: str = ""
    stores: list = field(default_factory=list)

    def open(self) -> DurableStore:
        if self.kind == "memory":
            self.stores = self.stores or [MemoryStore()]
            return self.stores[0]
        self.stores.append(open_store(self.where))
        return self.stores[-1]

    def close(self) -> None:
        for store in self.stores:
            if self.kind != "memory":
                store.close()


def place_of(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Yield the place of the kind that the fixture is asked for."""
    where = {
        "memory": lambda: "",
        "sqlite": lambda: str(request.getfixturevalue("tmp_path") / "store.db"),
        "postgres": lambda: request.getfixturevalue("database"),
    }[request.param]()
    place = Place(request.param, where)
    yield place
    place.close()


@contextmanager
def process(script: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """Run a script in another process; what is left of it at the end is killed."""
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT
    ) as running:
        try:
            yield running
        finally:
            with suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGKILL)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of this size; skips the test where that is not allowed."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a small file system needs root's rights")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
