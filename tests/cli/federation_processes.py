"""A federation of real processes on loopback: `python -m confide coordinator` and `node` over TLS, in one folder.

Every process has a log of its own and is stopped by its pid. What a run came to is compared with plain sums over the
members that the ledger names, in one process; logs, ledger and model are searched for every key of the folder.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from confide.cli import main
from confide.crypto.keys import SigningKey
from confide.crypto.random import SystemRandomness
from confide.data.schema import Schema
from confide.ideal import PlainSum
from confide.model.artifact import load as load_model
from confide.net.folders import identity_seed
from confide.net.founding import found
from confide.net.membership import join
from confide.net.registrar import Registrar
from confide.net.relay import Relay
from confide.store import SqliteStore
from confide.train import load, load_data
from confide.train.budget import Account, Budget
from confide.train.course import parameters_hash
from confide.train.ledger_check import verify
from confide.train.local import flatten
from confide.train.setting import Setting
from confide.train.witness import seen
from confide.wire import MemoryStore
from net.coordinators import free_port

NAMES = ("north", "east", "south", "west")
SET = "breast-cancer"

#: How long anything may take here before the test is lost; no test asserts a time below it.
LOST_SECONDS = 120.0

_JOB = """\
[job]
name = "trial"

[data]
schema = "schema.toml"
tables = {{ {tables} }}
evaluate = "{evaluate}"

[train]
aggregate = "{aggregate}"
quorum = {quorum}
rounds = {rounds}
local_steps = {local_steps}
attempts = {attempts}
expected_records = 100
"""

_PRIVACY = """
[privacy]
epsilon = 1.0
delta = 1e-5
expected_records = 300
colluding = 1
"""

_POLICY = """\
[allow]
aggregates = ["masked", "amortised"]

[limits]
require_privacy = false
most_rounds = 1000

[data]
data_set = "breast-cancer"

[approval]
by = "{approval}"
"""


class Running:
    """One process with its log."""

    def __init__(self, log: Path, *arguments: object) -> None:
        self.log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "confide", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=log.parent,
                env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self.pid = self._process.pid

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def ends(self) -> int:
        """Wait for its end and return the exit code."""
        try:
            return self._process.wait(LOST_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end of {self.log.name}:\n{self.text()[-3000:]}") from None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it at once; nothing of it runs any more when this returns."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
        self._process.wait(LOST_SECONDS)

    def says(self, pattern: str, *, times: int = 1) -> None:
        """Wait until its log shows `pattern` so many times."""
        until(lambda: len(re.findall(pattern, self.text())) >= times, lambda: f"{pattern!r} in\n{self.text()[-3000:]}")


def until(condition: Callable[[], object], told: Callable[[], str] = lambda: "") -> None:
    """Wait for a condition; fail with what `told` says when it does not come."""
    deadline = time.monotonic() + LOST_SECONDS
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)


def verb(*arguments: object, code: int = 0) -> str:
    """Run a verb of the command line in this process, expect an exit code, and forget what it printed."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == code, arguments
    return str(stop.value.code)


class Processes:
    """A federation in `folder`; a context manager that leaves no process behind.

    Args:
        folder: empty.
        rounds, aggregate, local_steps, quorum, attempts, evaluate: of the job.
        private: with [privacy].
        approval: "policy" or "person" decides at the nodes.
        analyst: a further member "ana".
        ages_days: how long ago a member's certificate was issued, or "server"'s; today if left out.
        store: the coordinator's --store.
        grace_seconds: of the coordinator.
        delay_seconds: of the relay through which nodes connect; a round takes six times as long at least, so that a
            test can be sure to meet a run that goes on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rounds: int = 4,
        aggregate: str = "amortised",
        local_steps: int = 1,
        quorum: int = 3,
        attempts: int = 5,
        evaluate: str = "none",
        private: bool = False,
        approval: str = "policy",
        analyst: bool = False,
        ages_days: Mapping[str, float] | None = None,
        store: str | None = None,
        grace_seconds: float = 1.0,
        delay_seconds: float | None = None,
    ) -> None:
        self.folder, self.ages_days = folder, dict(ages_days or {})
        self.store, self.grace_seconds = store, grace_seconds
        self.running: dict[str, Running] = {}
        verb("split", SET, "--nodes", ",".join(NAMES), "--into", folder / "data")
        self.job_file = self.write_job(
            "job.toml",
            rounds=rounds,
            aggregate=aggregate,
            local_steps=local_steps,
            quorum=quorum,
            attempts=attempts,
            evaluate=evaluate,
            private=private,
        )
        (folder / "policy.toml").write_text(_POLICY.format(approval=approval))
        with free_port() as listener:
            self.port = int(listener.getsockname()[1])
        self.relay = None if delay_seconds is None else Relay("127.0.0.1", self.port, delay_seconds=delay_seconds)
        self.federation = folder / "federation"
        found(self.federation, name="Four", address=f"127.0.0.1:{self.port}", now=self._clock("server"))
        for name in NAMES:
            self.enrol(name)
        if analyst:
            self.enrol("ana", "analyst")

    def write_job(self, file: str, *, rounds: int, private: bool = False, name: str = "trial", **train: object) -> Path:
        """Write a job file over the tables of the folder, and return its path."""
        settings = {"aggregate": "amortised", "quorum": 3, "local_steps": 1, "attempts": 5, "evaluate": "none"} | train
        tables = ", ".join(f'{one} = "{one}.csv"' for one in NAMES)
        text = _JOB.format(rounds=rounds, tables=tables, **settings).replace('"trial"', f'"{name}"')
        if private:
            text = text.replace("local_steps = 1\n", "").replace("expected_records = 100\n", "") + _PRIVACY
        path = self.folder / "data" / file
        path.write_text(text)
        return path

    def _clock(self, name: str) -> Callable[[], datetime]:
        moment = datetime.now(UTC) - timedelta(days=self.ages_days.get(name, 0.0))
        return lambda: moment

    def enrol(self, name: str, role: str = "node") -> None:
        """Let somebody join, as long ago as `ages_days` says."""
        now = self._clock(name)
        registrar = Registrar(self.federation, now=now)
        join(self.folder / name, registrar.invite(name, role), registrar.answer, now=now)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exc: object) -> None:
        for one in self.running.values():
            one.kill()
        if self.relay is not None:
            self.relay.close()

    # --- processes ----------------------------------------------------------------------------------------------------

    def run(self, name: str, *arguments: object) -> Running:
        """Start a process under a name of its own; its log is NAME.log."""
        assert name not in self.running or self.running[name].is_over
        self.running[name] = Running(self.folder / f"{name}.log", *arguments)
        return self.running[name]

    def coordinator(self, *more: object, job: Path | None = None, queue: bool = False) -> Running:
        """Start the coordinator with its job, or with the queue of the analysts."""
        where = ["--store", self.store] if self.store else []
        which = [] if queue else [job or self.job_file]
        patience = ["--grace-seconds", self.grace_seconds, "--stage-seconds", 60]
        return self.run("server", "coordinator", *which, "--federation", self.federation, *where, *patience, *more)

    def node(self, name: str, *more: object, port: int | None = None) -> Running:
        """Start a node, which connects to another port than the coordinator's if asked."""
        port = port or (self.relay.port if self.relay else None)
        url = ["--coordinator", f"wss://127.0.0.1:{port}"] if port else []
        data = ["--data", self.folder / "data" / f"{name}.csv", "--policy", self.folder / "policy.toml"]
        return self.run(name, "node", "--identity", self.folder / name, *data, *url, *more)

    def start(self, *names: str) -> Running:
        """Start the coordinator and nodes, all of them if none is named."""
        server = self.coordinator()
        for name in names or NAMES:
            self.node(name)
        return server

    # --- what there is ------------------------------------------------------------------------------------------------

    @property
    def ledger(self) -> Path:
        return self.federation / "ledger.jsonl"

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the whole lines of the ledger that say `event`."""
        if not self.ledger.exists():
            return []
        whole = self.ledger.read_bytes().rpartition(b"\n")[0]
        return [entry for line in whole.splitlines() if (entry := json.loads(line))["event"] == event]

    def until_round(self, number: int) -> None:
        """Wait until the ledger has the line of a round."""
        until(
            lambda: any(entry["round"] >= number for entry in self.lines("round")),
            lambda: f"no round {number}:\n{self.running['server'].text()[-3000:]}",
        )

    def charges(self, name: str) -> tuple[Account, ...]:
        """Return a node's budget; its process is over."""
        store = SqliteStore(self.folder / name / "node.db")
        try:
            return Budget(store, SET, greatest_epsilon=3.0, greatest_delta=1e-4).accounts
        finally:
            store.close()

    def heads(self) -> list[Any]:
        """Return what the nodes have seen of the ledger; their processes are over."""
        found: list[Any] = []
        for name in NAMES:
            if (self.folder / name / "node.db").exists():
                store = SqliteStore(self.folder / name / "node.db")
                found += seen(store)
                store.close()
        return found

    # --- what it came to ----------------------------------------------------------------------------------------------

    def check(self, *, job: Path | None = None, model: Path | None = None, private: bool = False) -> list[set[str]]:
        """Check what a finished run left behind, and return the members of its rounds.

        The ledger holds, has every round once and reaches as far as the nodes have seen; the model of each round is
        what plain sums over the members that it names give (without [privacy]) or was charged before (with it), at the
        coordinator and at every member; no key of the folder stands in what was written for others.
        """
        loaded = load(job or self.job_file)
        rounds = self.lines("round")[-loaded.train.rounds :]
        if not private:
            assert [entry["round"] for entry in rounds] == list(range(1, loaded.train.rounds + 1))
            assert [entry["model"] for entry in rounds] == over_members(self.folder, loaded, rounds)
        assert all(len(entry["members"]) >= loaded.train.quorum for entry in rounds)
        for one in self.running.values():
            one.kill()
        verify(self.ledger, seen=self.heads())
        signer = SigningKey(identity_seed(self.federation)).public
        written = load_model(model or self.federation / "model.confide", trust=signer)
        assert parameters_hash(flatten(written.graph)).hex() == rounds[-1]["model"]
        if private:
            self._check_charged(rounds)
        self.check_nothing_leaked()
        return [set(entry["members"]) for entry in rounds]

    def _check_charged(self, rounds: list[dict[str, Any]]) -> None:
        """Check that what was released was charged, at the coordinator and at whoever was in it, at least."""
        charged = [(entry["round"], entry["attempt"]) for entry in self.lines("release") if "round" in entry]
        assert len(charged) == len(set(charged))
        assert [(entry["round"], entry["attempts"]) for entry in rounds] == [
            max(one for one in charged if one[0] == entry["round"]) for entry in rounds
        ]
        for name in NAMES:
            (account,) = self.charges(name)
            taken = sum(name in entry["members"] for entry in rounds)
            assert taken <= account.releases <= len(charged)
            assert account.epsilon is not None

    def check_nothing_leaked(self) -> None:
        """Check that no secret of a folder, and no trace of an exception, is in a log, the ledger or the model."""
        secrets: list[bytes] = []
        for name in ("federation", *NAMES):
            if (self.folder / name).exists():
                seed = identity_seed(self.folder / name)
                secrets += [seed, seed.hex().encode()]
            for path in (self.folder / name).glob("*.pem"):
                body = path.read_bytes()
                if b"PRIVATE KEY" in body:
                    secrets.append(body.split(b"-----")[2].split(b"\n")[1])
        outside = [*self.folder.glob("*.log"), self.ledger, *self.folder.rglob("*.confide")]
        for path in outside:
            body = path.read_bytes() if path.exists() else b""
            assert not any(secret in body for secret in secrets), path
            assert b"Traceback" not in body, body[-3000:].decode(errors="replace")


def over_members(folder: Path, job: Any, rounds: list[dict[str, Any]]) -> list[str]:
    """Return the hashes of the models that plain sums over each round's members give, in one process: the oracle."""
    silos = {silo.name: silo for silo in load_data(job).silos}
    course = Setting.of(job, Schema.load(job.path(job.data.schema))).course()
    models: list[str] = []
    for entry in rounds:
        vectors = {
            name: course.encoding.contribution(
                course.parameters, silos[name], entry["round"], SystemRandomness(), MemoryStore()
            )
            for name in entry["members"]
        }
        course.advance(PlainSum().ideal(vectors))
        models.append(parameters_hash(course.kept).hex())
    return models
