"""A step of training on shares with the two servers, the dealer and an owner as processes that talk over TLS.

    python bench/training_on_shares_tls.py [--steps 30] [--json FILE]

The parties are those of `confide train` with aggregate = "mpc", each in a process of its own, with links of
`confide.net.mesh` on 127.0.0.1. Seconds are of the wall clock, so other work on this machine counts.

online      correlations of the step are there and made ready at both servers: from then to the end of the step at the
            later one. The dealer deals the next run after it.
whole       one step behind the other as the protocol has it: the dealer deals the next while this one runs, on the same
            cores; what must be sent, taken and made ready is in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from figures import Figure, at_most, command_line, machine, show, write
from mpc_links import free_ports

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # who found federations for the tests

from confide.crypto.random import SystemRandomness
from confide.mpc.training_plan import Rates, Task
from confide.net.contexts import client_context, server_context
from confide.net.exchange import Envelope
from confide.net.limits import Limits
from confide.net.link import Arrived, Event, Joined, Left
from confide.net.mesh import Mesh
from confide.train.shares.course import Course, Piece, Run
from confide.train.shares.parties import dealer, owner, server
from confide.train.shares.run import starting_weights
from confide.train.shares.simulate import beginning_of, words_of
from confide.wire import Inbox, Message, Party, Step

BATCH, PASS_ROWS = 128, 60_000
TASKS = {
    "logistic": (Task(features=30, rates=Rates.of(learning_rate=1.0, batch=BATCH)), 0.008),
    "network": (
        Task(features=784, hidden=(128, 128), outputs=10, rates=Rates.of(learning_rate=0.125, batch=BATCH)),
        0.060,
    ),
}
#: The member of each party, the role in its certificate, and whom it dials.
MEMBERS = {"server-0": "server", "server-1": "second", "dealer": "broker", "owner": "clinic"}
ROLES = {"second": "helper", "broker": "dealer", "clinic": "client"}
DIALS = {
    "server-0": (),
    "server-1": ("server-0",),
    "dealer": ("server-0", "server-1"),
    "owner": ("server-0", "server-1"),
}
LIMITS = Limits(
    frames_per_second=50_000.0, frames_burst=200_000.0, bytes_per_second=4e9, bytes_burst=8e9, arrived_bytes=512 << 20
)


# --- one process ------------------------------------------------------------------------------------------------------


class House:
    """One party and its links; all of it runs in the thread of the links.

    Args:
        me: the party's name.
        apart: hold back at server 0 what starts the dealer's next run until this run has ended.
    """

    def __init__(self, me: str, *, apart: bool) -> None:
        self.me, self.apart = me, apart
        self.party: Party | None = None
        self.inbox, self.step, self.held = Inbox(), Step(), list[Message]()
        self.there: set[str] = set()
        self.ready: dict[int, float] = {}
        self.done: dict[int, float] = {}
        self.ended = threading.Event()
        self.output: Any = None
        self.failed = ""
        self.received = dict[str, int]()
        self.sent = dict[str, int]()
        self.mesh = Mesh(self.heard, broken=self.broke, limits=LIMITS)

    def links(self, folder: Path, ports: Mapping[str, int]) -> None:
        """Listen, and dial."""
        if self.me in ports:
            context = server_context(folder).context
            self.mesh.listen("127.0.0.1", ports[self.me], context, admit=lambda peer: None)
        if not DIALS[self.me]:
            return
        context = client_context(folder)

        def dial() -> None:
            for name in DIALS[self.me]:
                member = MEMBERS[name]
                role = ROLES.get(member, "coordinator")
                self.mesh.dial(member, f"wss://127.0.0.1:{ports[name]}", context, role=role)

        self.mesh.call(dial)

    def broke(self, error: BaseException) -> None:
        self.failed = repr(error)
        self.ended.set()

    def needed(self) -> set[str]:
        """Return the members whom this party speaks with."""
        meets = {name for name, others in DIALS.items() if self.me in others} | set(DIALS[self.me])
        return {MEMBERS[name] for name in meets}

    def heard(self, event: Event) -> None:
        match event:
            case Joined(peer, _):
                self.there.add(peer)
                if self.there >= self.needed() and self.party is not None and not self.step.wait_for:
                    self.resume(None)
            case Left(peer, reason):
                if peer in self.there and not self.ended.is_set():
                    self.broke(RuntimeError(f"{peer} left: {reason}"))
            case Arrived(_, envelope):
                self.inbox.put(envelope.message)
                got = envelope.message
                self.received[got.src] = self.received.get(got.src, 0) + len(got.body)
                self.advance()

    def advance(self) -> None:
        while self.step.wait_for and not self.ended.is_set():
            received = self.inbox.ready(self.step)
            if received is None:
                return
            self.resume(received)

    def resume(self, received: Mapping[str, Message] | None) -> None:
        assert self.party is not None
        try:
            self.step = next(self.party) if received is None else self.party.send(self.named(received))
            while True:
                self.leave()
                if self.step.wait_for:
                    break
                self.step = self.party.send({})
        except StopIteration as end:
            self.output = end.value
            self.ended.set()
            return
        self.step = Step(await_tag=self.step.await_tag, wait_for=tuple(MEMBERS[one] for one in self.step.wait_for))
        self.inbox.await_step(self.step)
        if received is None:
            self.advance()

    def named(self, received: Mapping[str, Message]) -> dict[str, Message]:
        names = {member: name for name, member in MEMBERS.items()}
        return {names[src]: Message(names[src], self.me, one.tag, one.body) for src, one in received.items()}

    def leave(self) -> None:
        """Send what a step sends."""
        for message in self.step.send:
            parts = message.tag.split("/")
            if parts[-1] == "1" and len(parts) == 3 and parts[1].isdigit():
                self.ready[int(parts[1])] = time.monotonic()  # the first round: all of the run is made ready
            if self.apart and message.tag.startswith("shares/go/"):
                self.held.append(message)
            else:
                self.send(message)

    def send(self, message: Message) -> None:
        to = MEMBERS[message.dst]
        self.sent[message.dst] = self.sent.get(message.dst, 0) + len(message.body)
        self.mesh.send(to, Envelope("training", Message(MEMBERS[self.me], to, message.tag, message.body)))

    def finished(self, run: Run) -> None:
        """Hear that a run has ended."""
        self.done[run.number] = time.monotonic()
        while self.held:
            self.send(self.held.pop())


def course_of(task: Task, steps: int) -> Course:
    piece = Piece(np.arange(BATCH), np.arange(task.features), targets=True)
    return Course(task=task, pieces={"owner": piece}, rows=BATCH, batch=BATCH, passes=steps, opened=True)


def party_of(house: House, task: Task, course: Course) -> Party:
    rng, numbers = SystemRandomness(), np.random.default_rng(1)
    if house.me == "dealer":
        return dealer(course, rng)
    if house.me == "owner":
        x = numbers.uniform(-1, 1, (BATCH, task.features))
        y = np.eye(max(2, task.outputs))[numbers.integers(max(2, task.outputs), size=BATCH)][:, -task.outputs :]
        return owner("owner", course, words_of(x), words_of(y), rng)
    begun = beginning_of(task, starting_weights(task, 1))
    return server(int(house.me[-1]), course, begun, rng, done=house.finished)


def be(me: str, job: Mapping[str, Any]) -> None:
    """Be one party; print what was found when it ends, and stay until the input does."""
    task, _ = TASKS[job["task"]]
    course = course_of(task, job["steps"])
    house = House(me, apart=job["apart"])
    house.party = party_of(house, task, course)
    folder = Path(job["folder"]) / ("federation" if me == "server-0" else MEMBERS[me])
    house.links(folder, job["ports"])
    house.ended.wait(job["seconds"])
    failed = house.failed or ("" if house.ended.is_set() else f"waits for {house.step.await_tag}")
    found = {"ready": house.ready, "done": house.done, "received": house.received, "sent": house.sent}
    print(json.dumps(found | {"failed": failed}), flush=True)
    sys.stdin.read()
    house.mesh.close()


# --- all of them ------------------------------------------------------------------------------------------------------


def trained(task: str, steps: int, *, apart: bool, seconds: float = 120.0) -> dict[str, Any]:
    """Return what each party's process found.

    Raises:
        RuntimeError: one ended without its result.
    """
    from serve.parties.federation import founded

    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        founded(folder, ROLES)
        ports = dict(zip(("server-0", "server-1"), free_ports(2), strict=True))
        job = {"folder": place, "task": task, "steps": steps, "apart": apart, "ports": ports, "seconds": seconds}
        (folder / "job.json").write_text(json.dumps(job))
        started: dict[str, subprocess.Popen[str]] = {}
        for name in MEMBERS:
            command = [sys.executable, __file__, "--be", name, str(folder / "job.json")]
            started[name] = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        found: dict[str, Any] = {}
        for name, process in started.items():
            assert process.stdout is not None
            line = process.stdout.readline()
            found[name] = json.loads(line) if line else {"failed": "ended early"}
        for process in started.values():
            assert process.stdin is not None
            process.stdin.close()
        for name, one in found.items():
            if one["failed"]:
                raise RuntimeError(f"{name}: {one['failed']}")
        return found


def measure(name: str, steps: int) -> list[Figure]:
    """Return the figures of one model."""
    task, bar = TASKS[name]
    course = course_of(task, steps)
    numbers = [run.number for run in course.runs if run.stage == "step"]
    found = trained(name, steps, apart=True)
    pair = [found["server-0"], found["server-1"]]
    online = [max(one["done"][str(n)] for one in pair) - max(one["ready"][str(n)] for one in pair) for n in numbers]
    beside = trained(name, steps, apart=False)
    ends = [max(beside[one]["done"][str(n)] for one in ("server-0", "server-1")) for n in numbers]
    whole = np.diff(ends)
    layout = course.plan(Run(0, "step", 0)).layout
    offline = layout.keys_bytes, layout.keys_bytes + layout.words_bytes
    steps_of_pass = -(-PASS_ROWS // BATCH)
    sent = {
        one: beside[one]["sent"][other] / steps for one, other in (("server-0", "server-1"), ("server-1", "server-0"))
    }
    note = f"{1000 * min(online):.1f} to {1000 * max(online):.1f}"
    around = f"{1000 * whole.min():.1f} to {1000 * whole.max():.1f}"
    at = f"{name}, TLS: "
    return [
        Figure(
            at + "a step online",
            1000 * median(online),
            "ms",
            bar=1000 * bar,
            met=at_most(median(online), bar),
            note=note,
        ),
        Figure(at + "a step, all of it, the dealer beside", 1000 * float(np.median(whole)), "ms", note=around),
        Figure(at + "sent by a server to the other, a step", max(sent.values()) / 1e6, "MB"),
        Figure(at + "offline to the first server, a step", offline[0] / 1e6, "MB"),
        Figure(at + "offline to the second server, a step", offline[1] / 1e6, "MB"),
        Figure(at + f"offline to the second, {PASS_ROWS} rows", steps_of_pass * offline[1] / 1e6, "MB"),
    ]


def main() -> None:
    """Measure, print, write."""
    if sys.argv[1:2] == ["--be"]:
        be(sys.argv[2], json.loads(Path(sys.argv[3]).read_text()))
        return
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    print(machine())
    figures: list[Figure] = []
    for name in TASKS:
        found = measure(name, given.steps)
        show(found, digits=3)
        figures += found
    write(figures, given.json)


if __name__ == "__main__":
    main()
