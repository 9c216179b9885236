"""The memory of a server: 1,000 clients with a million values each, within 1 GB.

    python bench/secagg_memory.py [--clients 1000] [--length 1000000] [--json FILE]

The server of a masked sum runs in a process of its own, which reads messages from a pipe as they come and adds each
vector when it is there; its peak resident memory is what counts, interpreter included. The clients live in this
process, hold one common vector, and are resumed one by one. A tenth of them drops out after key sharing. The sum is
checked.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections import deque
from typing import BinaryIO

import msgspec
import numpy as np
from figures import Figure, at_most, command_line, write

from confide.cohort.roster import ROSTER, pinned
from confide.crypto.random import SystemRandomness
from confide.ideal import Cohort, Session
from confide.secagg import Masked
from confide.wire import Inbox, MemoryStore, Message, Party, Step, run

BAR_BYTES = 1_000_000_000


class Frame(msgspec.Struct, array_like=True):
    """A message on the pipe; one without a tag says that nothing more comes in this stage."""

    src: str
    dst: str
    tag: str
    body: bytes


def write_frame(pipe: BinaryIO, frame: Frame) -> None:
    data = msgspec.msgpack.encode(frame)
    pipe.write(len(data).to_bytes(8, "little") + data)


def read_frame(pipe: BinaryIO) -> Frame | None:
    size = pipe.read(8)
    return msgspec.msgpack.decode(pipe.read(int.from_bytes(size, "little")), type=Frame) if len(size) == 8 else None


def cohort_of(clients: int) -> Cohort:
    return Cohort(tuple(f"c{index}" for index in range(clients)), 6 * clients // 10)


def serve(clients: int, length: int) -> None:
    """The child: a server that knows nothing but what comes through the pipe."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    store = MemoryStore()
    first = read_frame(source)
    assert first is not None
    store.commit({ROSTER: first.body})
    session = Session("memory", 1, cohort_of(clients), length, 1000)
    party = Masked().party("server", "server", session, None, store, SystemRandomness())
    inbox, step = Inbox(), next(party)
    try:
        while True:
            inbox.await_step(step)
            for message in step.send:
                write_frame(sink, Frame(message.src, message.dst, message.tag, message.body))
            write_frame(sink, Frame("", "", "", b""))  # the stage's messages are out
            sink.flush()
            step = collected(party, step, inbox, source)
    except StopIteration as stop:
        values = stop.value.values[0]
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write_frame(sink, Frame("server", "", "done", msgspec.msgpack.encode([peak, len(stop.value.members[0])])))
        write_frame(sink, Frame("server", "", "sum", values.tobytes()))
        sink.flush()


def collected(party: Party, step: Step, inbox: Inbox, source: BinaryIO) -> Step:
    """Resume the server with each message of a stage as it comes; return the step that begins the next stage."""
    moved = False
    while True:
        frame = read_frame(source)
        assert frame is not None
        if not frame.tag:
            return step if moved else party.send(inbox.close(step))
        inbox.put(Message(frame.src, frame.dst, frame.tag, frame.body))
        received = None if moved else inbox.ready(step)
        if received is not None:
            try:
                step = party.send(received)
            except StopIteration:  # it needs no more answers; the clients' pipe must be emptied all the same
                while (frame := read_frame(source)) and frame.tag:
                    pass
                raise
            moved = bool(step.send)


def play(clients: int, length: int) -> tuple[int, float]:
    """The parent: every client; return the server's peak bytes and the seconds that it all took."""
    cohort, masked, rng = cohort_of(clients), Masked(), SystemRandomness()
    roles = cohort.parties(masked.roles)
    stores = {name: MemoryStore() for name in roles}
    run({me: masked.setup(r, me, cohort, stores[me], rng) for me, r in roles.items()}, stores=stores, keep_bodies=False)
    lost, vector = set(cohort.clients[::10]), (np.arange(length) % 1000).astype(np.int64)
    session = Session("memory", 1, cohort, length, 1000)
    parties = {me: masked.party("client", me, session, vector, stores[me], rng) for me in cohort.clients}
    begin = time.perf_counter()
    command = [sys.executable, __file__, "--serve", f"--clients={clients}", f"--length={length}"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    write_frame(child.stdin, Frame("", "", "roster", pinned(stores["server"]).encode()))
    child.stdin.flush()
    waiting: deque[Frame] = deque(Frame("", name, "", b"") for name in cohort.clients)
    while read_stage(child.stdout, waiting):
        while waiting:
            frame = waiting.popleft()
            advance(parties, frame, stores, child.stdin, lost)
        write_frame(child.stdin, Frame("", "", "", b""))
        child.stdin.flush()
    peak, members = msgspec.msgpack.decode(waiting.popleft().body)
    total = read_frame(child.stdout)
    assert total is not None
    assert members == clients - len(lost)
    assert np.array_equal(np.frombuffer(total.body, np.int64), vector * members), "the sum is wrong"
    child.wait()
    return peak, time.perf_counter() - begin


def read_stage(pipe: BinaryIO, waiting: deque[Frame]) -> bool:
    """Read what the server sends until its stage is out; False when it is done."""
    while True:
        frame = read_frame(pipe)
        assert frame is not None, "the server died"
        if frame.tag == "done":
            waiting.append(frame)
            return False
        if not frame.tag:
            return True
        waiting.append(frame)


def advance(
    parties: dict[str, Party], frame: Frame, stores: dict[str, MemoryStore], sink: BinaryIO, lost: set[str]
) -> None:
    """Resume one client with one message of the server, or start it, and pass on what it says."""
    party, name = parties[frame.dst], frame.dst
    step = next(party) if not frame.tag else party.send({"server": Message("server", name, frame.tag, frame.body)})
    while True:
        # What a crash would need is another machine's concern: 1,000 of them do not fit into this one.
        stores[name].commit({key: value for key, value in step.save.items() if "vector" not in key})
        for message in step.send:
            if not (name in lost and message.tag == "masked/vector"):
                write_frame(sink, Frame(name, message.dst, message.tag, message.body))
        if step.wait_for:
            return
        try:
            step = party.send({})
        except StopIteration:
            return


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--length", type=int, default=1_000_000)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.clients, options.length)
        return
    peak, seconds = play(options.clients, options.length)
    title = f"masked server, {options.clients} clients x {options.length} values, peak memory"
    all_vectors = 4 * options.clients * options.length
    print(f"{title}: {peak / 1e6:.0f} MB (all vectors: {all_vectors / 1e6:.0f} MB), {seconds:.0f} s in all")
    beside, bar, met = "all masked vectors at once", BAR_BYTES / 1e6, at_most(peak, BAR_BYTES)
    write([Figure(title, round(peak / 1e6, 1), "MB", beside, all_vectors / 1e6, bar, met)], options.json)


if __name__ == "__main__":
    main()
