"""A long federation under churn: memory, ledger and accuracy after a thousand rounds, kills and rotations.

    python bench/soak.py [--rounds 1000] [--quick] [--json FILE]

The real commands in processes of their own, over TLS on loopback: five nodes, `masked`, a coordinator that is killed
with -9 once per 100 rounds and started again, a node that is killed every few seconds and comes back, a member's
certificate renewed and the federation's authority replaced on the way. Memory is the resident set of each process; the
coordinator's is taken as it grows within one life. The oracle of the accuracy is the same job in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from confide.model.artifact import load as load_model
from confide.store import open_store
from confide.train import load as load_job
from confide.train import load_data, train
from confide.train.evaluate import accuracy
from confide.train.ledger_check import verify
from confide.train.witness import seen

NAMES = ("n1", "n2", "n3", "n4", "n5")
JOB = """
[job]
name = "soak"
[data]
schema = "schema.toml"
tables = {{ {tables} }}
[train]
aggregate = "masked"
quorum = 3
rounds = {rounds}
attempts = 20
learning_rate = 0.3
momentum = 0.0
"""
POLICY = """
[limits]
require_privacy = false
most_rounds = 100000
[approval]
by = "policy"
"""


@dataclass(frozen=True)
class Figure:
    """One line of the table and one record of the file."""

    figure: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    bar: float | None = None
    met: bool | None = None


class Soak:
    """The processes of one federation, and what was seen of them."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds, self.random = folder, rounds, random.Random(4)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.logs: dict[str, int] = defaultdict(int)
        self.resident: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
        self.restarts = self.kills = 0

    def run(self, *arguments: object) -> None:
        subprocess.run(
            [sys.executable, "-m", "confide", *map(str, arguments)], cwd=self.folder, check=True, capture_output=True
        )

    def start(self, name: str, *arguments: object) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "confide", *map(str, arguments)]
            self.processes[name] = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        self.resident[name].append([])

    def coordinator(self) -> None:
        self.start("coordinator", "coordinator", "data/job.toml", "--federation", "federation", "--grace-seconds", 2)

    def node(self, name: str) -> None:
        table = f"data/{name}.csv"
        self.start(name, "node", "--identity", name, "--data", table, "--policy", "data/policy.toml", "--once")

    def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def prepare(self) -> None:
        self.run("split", "breast-cancer", "--nodes", ",".join(NAMES), "--into", "data")
        tables = ", ".join(f'{name} = "{name}.csv"' for name in NAMES)
        (self.folder / "data/job.toml").write_text(JOB.format(rounds=self.rounds, tables=tables))
        (self.folder / "data/policy.toml").write_text(POLICY)
        self.run("federation", "init", "federation", "--address", f"127.0.0.1:{self.port}")
        for name in NAMES:
            self.run("federation", "invite", name, "--federation", "federation", "--out", f"{name}.invitation")
        self.coordinator()
        for name in NAMES:
            for _ in range(60):
                try:
                    self.run("federation", "join", f"{name}.invitation", "--into", name)
                    break
                except subprocess.CalledProcessError:
                    time.sleep(0.5)
            self.node(name)

    def finished(self) -> int:
        ledger = self.folder / "federation/ledger.jsonl"
        return ledger.read_bytes().count(b'"event": "round"') if ledger.exists() else 0

    def look(self, begun: float) -> None:
        for name, process in self.processes.items():
            try:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            except (OSError, IndexError, ValueError):
                continue
            if pages:  # none are left of a process that is ending
                self.resident[name][-1].append((time.monotonic() - begun, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))

    def play(self) -> None:
        begun, next_restart, next_kill, rotated, away = time.monotonic(), 100, time.monotonic() + 6, False, ""
        while self.processes["coordinator"].poll() is None:
            time.sleep(0.5)
            self.look(begun)
            done = self.finished()
            if done >= next_restart and done < self.rounds:
                self.kill("coordinator")
                self.coordinator()
                self.restarts, next_restart = self.restarts + 1, done + 100
            if time.monotonic() > next_kill:
                if away:
                    self.node(away)
                    away = ""
                else:
                    away = self.random.choice(NAMES)
                    self.kill(away)
                    self.kills += 1
                next_kill = time.monotonic() + self.random.uniform(2, 6)
            if not rotated and done > self.rounds // 2:
                self.run("federation", "rotate", "federation")
                for name in NAMES:
                    self.run("federation", "renew", name)
                rotated = True
        if away:
            self.node(away)
        print(f"coordinator ended with {self.processes['coordinator'].returncode}", file=sys.stderr)
        time.sleep(3)
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
                process.wait()


def slope(lives: list[list[tuple[float, float]]]) -> float:
    """Return MiB per 1,000 seconds within the longest life, its first quarter apart."""
    longest = max(lives, key=len)
    settled = np.array(longest[len(longest) // 4 :])
    return float(1000 * np.polyfit(settled[:, 0], settled[:, 1], 1)[0]) if len(settled) > 8 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="150 rounds: not figures to quote")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds = 150 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as place:
        soak = Soak(Path(place), rounds)
        begun = time.monotonic()
        try:
            soak.prepare()
            soak.play()
        finally:
            for process in soak.processes.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()
        seconds = time.monotonic() - begun
        folder = soak.folder
        heads = []
        for name in NAMES:
            store = open_store(folder / name / "node.db")
            heads += seen(store)
            store.close()
        ledger = verify(folder / "federation/ledger.jsonl", seen=heads)
        lines = [json.loads(line) for line in (folder / "federation/ledger.jsonl").read_text().splitlines()]
        members = [len(line["members"]) for line in lines if line["event"] == "round"]
        job = load_job(folder / "data/job.toml")
        data = load_data(job)
        *_, last = train(job, data)
        ours = accuracy(load_model(folder / "federation/model.confide").graph, data.test.x, data.test.y)
        whole = accuracy(last.model, data.test.x, data.test.y)
        figures = [
            Figure(
                "rounds in the ledger", float(len(members)), "rounds", bar=float(rounds), met=len(members) == rounds
            ),
            Figure("coordinator killed and restarted", float(soak.restarts), "times"),
            Figure("nodes killed and restarted", float(soak.kills), "times"),
            Figure("rounds without everybody", float(sum(count < len(NAMES) for count in members)), "rounds"),
            Figure("ledger lines that verify, nodes' heads included", float(ledger.entries), "lines"),
            Figure("accuracy", ours, "share", "one process, no faults", whole, whole - 0.02, ours >= whole - 0.02),
            Figure("wall time", seconds, "s"),
        ]
        for name in ("coordinator", *NAMES):
            peak = max(value for life in soak.resident[name] for _, value in life)
            figures += [
                Figure(f"resident, {name}, largest", peak, "MiB"),
                Figure(f"resident, {name}, slope within its longest life", slope(soak.resident[name]), "MiB/1000 s"),
            ]
    for one in figures:
        peer = "" if one.peer is None else f"{one.peer}: {one.peer_value:.3f}"
        print(f"{one.figure:55} {one.value:10.3f} {one.unit:12} {peer}")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in figures], indent=2))


if __name__ == "__main__":
    main()
