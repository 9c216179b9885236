"""A federation founded by the command line, whose members joined by files: nothing has listened. No test lives here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from confide.cli import main
from train.federation import tables

ROOT = Path(__file__).parents[2]

POLICY = """
[limits]
require_privacy = false

[approval]
by = "policy"
"""


def confide(*arguments: object) -> None:
    """Run the command line here; what it refuses is an AssertionError."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert not stop.value.code, arguments


def found(folder: Path, names: tuple[str, ...], **train: object) -> Path:
    """Write tables, a policy and a job, and let everybody join; return the job's file."""
    tables(folder, names)
    (folder / "policy.toml").write_text(POLICY)
    nodes = "\n".join(f'{name} = "{name}.csv"' for name in names)
    settings = "\n".join(
        f"{key} = {str(value) if isinstance(value, int) else repr(value)}" for key, value in train.items()
    )
    (folder / "job.toml").write_text(
        f'[job]\nname = "trial"\n[data]\nschema = "schema.toml"\n[data.tables]\n{nodes}\n'
        f"[train]\nexpected_records = 60\n{settings}\n"
    )
    confide("federation", "init", folder / "federation", "--address", "127.0.0.1:1")
    for name in names:
        one = {part: folder / f"{name}.{part}" for part in ("invitation", "request", "certificate")}
        confide("federation", "invite", name, "--federation", folder / "federation", "--out", one["invitation"])
        confide("federation", "join", one["invitation"], "--into", folder / name, "--request", one["request"])
        confide(
            "federation", "sign", one["request"], "--out", one["certificate"], "--federation", folder / "federation"
        )
        confide("federation", "join", "--into", folder / name, "--certificate", one["certificate"])
    return folder / "job.toml"


def node_command(folder: Path, name: str, socket: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "confide", "node", "--identity", str(folder / name), "--once"),
        *("--data", str(folder / f"{name}.csv"), "--policy", str(folder / "policy.toml"), "--flower", str(socket)),
    ]


def coordinator_command(folder: Path, socket: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "confide", "coordinator", str(folder / "job.toml")),
        *("--federation", str(folder / "federation"), "--flower", str(socket), "--out", str(folder / "trial.confide")),
    ]


@contextlib.contextmanager
def launched(command: list[str], log: Path) -> Iterator[subprocess.Popen[Any]]:
    """Run a command of ours until it or the block ends, its output in `log`."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
