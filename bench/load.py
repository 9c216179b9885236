"""A served model under load: Locust replays a recorded encrypted question from many clients, and the server is killed.

    python bench/load.py [--clients 64] [--seconds 60] [--workers 2] [--store URL] [--json FILE]

A logistic model of 30 features is served under `he` by `confide serve` with worker processes. Our client uploads its
keys once and asks once; that question is recorded. Locust (bench/peers/locust/.venv, requirements.txt says how; without
it nothing is measured) then asks it from all clients at a time, each as fast as answers come. After a third of the time
the server is killed with SIGKILL and started again at the same port with the same store. Latencies are the clients',
those while the server was down left out. Memory is what /proc says of the server and its workers together (RSS), the
last third of the time after the restart has settled over the first third: what grows with every question shows there.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from figures import Figure, at_most, command_line, show, write

from confide.crypto.keys import SigningKey
from confide.guarantee import PrivacyLabel
from confide.model.artifact import Artifact
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.preprocess import Preprocess, Scale
from confide.serve.client import Client

FEATURES = 30
PEER = Path(__file__).parent / "peers" / "locust"
#: Answers that are no error: what was asked for, and refusals that say when to come back.
EXPECTED = {"200", "429 rate_limited", "429 quota", "503 busy", "503 worker_ended"}


@dataclass
class Recorded(httpx2.HTTPTransport):
    """Sends requests and keeps the last question with the size of its answer."""

    question: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        httpx2.HTTPTransport.__init__(self)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body = request.read()  # before it is sent: a stream is read once
        answer = super().handle_request(request)
        if request.url.path.endswith("/infer"):
            kept = {
                name: value for name, value in request.headers.items() if name.startswith(("inference", "content-t"))
            }
            self.question = {"path": request.url.path, "headers": kept, "body": body.hex()}
            self.question["reply_bytes"] = len(answer.read())
        return answer


@dataclass
class Server:
    """`confide serve` on one port, as often as it is started."""

    model: Path
    options: list[str]
    log: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Start it and return its URL once it answers."""
        command = [sys.executable, "-m", "confide", "serve", self.model, "--port", str(self.port), *self.options]
        begin = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log, (self.log.parent / "complaints").open("ab") as complaints:
            self.process = subprocess.Popen(command, stdout=log, stderr=complaints)
        while b"listening on " not in (said := self.log.read_bytes()[begin:]):
            if self.process.poll() is not None:
                raise SystemExit((self.log.parent / "complaints").read_text())
            time.sleep(0.05)
        url = said.split(b"listening on ", 1)[1].split()[0].decode()
        self.port = int(url.rsplit(":", 1)[1])
        return url

    def kill(self) -> None:
        """End it without a word, workers and all: they notice by themselves."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Stop it as a service manager does."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)

    def resident_bytes(self) -> int:
        """Return the memory of the server and its workers."""
        assert self.process is not None
        return sum(resident(pid) for pid in [self.process.pid, *children(self.process.pid)])


def children(parent: int) -> list[int]:
    """Return the processes that `parent` started."""
    try:
        tasks = list(Path(f"/proc/{parent}/task").iterdir())
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    except OSError:
        return []


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def saved_model(folder: Path) -> Path:
    """Write a logistic model of 30 features and return the file; load does not depend on its weights."""
    draw = np.random.Generator(np.random.PCG64(7))
    graph = Graph((Linear(draw.normal(size=(1, FEATURES)), np.zeros(1)), Sigmoid()))
    columns = tuple(Scale(name=f"x{number}", low=-1, high=1) for number in range(FEATURES))
    label = PrivacyLabel(aggregator="pooled", parties=("bench",), quorum=1, colluding=0, rounds=1)
    Artifact(graph, Preprocess(columns), label).save(folder / "model.confide", SigningKey(bytes(32)))
    return folder / "model.confide"


def record(url: str) -> dict[str, Any]:
    """Upload keys, ask once, and return the question."""
    transport = Recorded()
    with Client(url, transport=transport) as client:
        client.predict(np.random.Generator(np.random.PCG64(1)).uniform(-1, 1, (1, FEATURES)))
    return transport.question


@contextmanager
def watched(server: Server, samples: list[tuple[float, int]], begin: float) -> Generator[None]:
    """Note the server's memory twice a second."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            samples.append((time.monotonic() - begin, server.resident_bytes()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True)
class Outcome:
    """What happened.

    Args:
        answers: (second, milliseconds, what) of every question.
        memory: (second, bytes).
        down: seconds from the kill until the server accepted connections again.
        killed, restarted: seconds since the start.
        uploads: keys that were uploaded after the restart.
    """

    answers: list[tuple[float, float, str]]
    memory: list[tuple[float, int]]
    killed: float
    restarted: float
    uploads: int


def loaded(server: Server, folder: Path, *, locust: Path, clients: int, seconds: int) -> Outcome:
    url = server.start()
    (folder / "question.json").write_text(json.dumps(record(url)))
    command: list[Any] = [locust, "-m", "locust", "-f", PEER / "replay.py", "--headless", "--only-summary"]
    command += ["--users", clients, "--spawn-rate", clients, "--run-time", f"{seconds}s", "--host", url]
    command += ["--question", folder / "question.json", "--answers", folder / "answers.json"]
    memory: list[tuple[float, int]] = []
    with (folder / "locust").open("wb") as said:
        asking = subprocess.Popen([str(word) for word in command], stdout=said, stderr=said)
    begin = time.monotonic()
    with watched(server, memory, begin):
        time.sleep(seconds / 3)
        killed = time.monotonic() - begin
        server.kill()
        before = server.log.read_bytes().count(b'"route":"keys"')
        server.start()
        restarted = time.monotonic() - begin
        asking.wait(seconds + 120)
    if not (folder / "answers.json").exists():
        raise SystemExit((folder / "locust").read_text()[-3000:])
    uploads = server.log.read_bytes().count(b'"route":"keys"') - before
    server.stop()
    answers = [(when - begin, taken, what) for when, taken, what in json.loads((folder / "answers.json").read_text())]
    return Outcome(answers, memory, killed, restarted, uploads)


def figures(outcome: Outcome) -> list[Figure]:
    up = [one for one in outcome.answers if one[2] != "unreachable"]
    taken = np.array([milliseconds for _, milliseconds, what in up if what == "200"])
    errors = [what for *_, what in up if what not in EXPECTED]
    unreachable = [when for when, _, what in outcome.answers if what == "unreachable"]
    last = max(when for when, *_ in outcome.answers)
    settled = outcome.restarted + (last - outcome.restarted) / 4
    early = [size for when, size in outcome.memory if settled <= when < settled + (last - settled) / 3]
    late = [size for when, size in outcome.memory if last - (last - settled) / 3 <= when < last - 1]
    growth = statistics.median(late) / statistics.median(early)
    after = sum(what == "200" and when > outcome.restarted for when, _, what in outcome.answers)
    counts = Counter(what for *_, what in outcome.answers)
    found = [
        Figure("answers", len(taken), "answers"),
        Figure("answers per second while it ran", len(taken) / (last - outcome.restarted + outcome.killed), "1/s"),
        *(Figure(f"p{q}", float(np.percentile(taken, q)), "ms") for q in (50, 95, 99)),
        Figure("errors other than 429, and 503 with Retry-After", len(errors), "answers", bar=0, met=not errors),
        *(
            Figure(f"refused: {what}", counts[what], "answers")
            for what in sorted(counts)
            if what not in ("200", "unreachable")
        ),
        Figure("unreachable while it was down", len(unreachable), "questions"),
        Figure("down after SIGKILL", outcome.restarted - outcome.killed, "s"),
        Figure("answers after the restart", after, "answers", bar=1, met=after > 0),
        Figure("keys uploaded again after it", outcome.uploads, "uploads", bar=0, met=not outcome.uploads),
        Figure("memory of all server processes", statistics.median(late) / 1e6, "MB"),
        Figure("memory at the end over memory after it settled", growth, "x", bar=1.05, met=at_most(growth, 1.05)),
    ]
    return found


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--store", help="postgresql://... instead of an SQLite file")
    asked = parser.parse_args()
    locust = PEER / ".venv" / "bin" / "python"
    if not locust.exists():
        print("no environment in bench/peers/locust/.venv: nothing is measured (see requirements.txt there)")
        write([], asked.json)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ["--store", asked.store or str(folder / "server.db"), "--workers", str(asked.workers), "--metrics"]
        server = Server(saved_model(folder), options, folder / "log.jsonl")
        outcome = loaded(server, folder, locust=locust, clients=asked.clients, seconds=asked.seconds)
    found = figures(outcome)
    print(f"{asked.clients} clients for {asked.seconds} s, {asked.workers} workers")
    show(found)
    write(found, asked.json)


if __name__ == "__main__":
    main()
