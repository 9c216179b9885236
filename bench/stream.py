"""What the network driver costs on loopback: a round trip, megabytes per second, an upload of every node, idle peers.

    python bench/stream.py [--nodes 8] [--idle 1000] [--json FILE]

The coordinator is this process, all members are one other (their work is counted apart). The peer of the first three
rows is a bare TLS 1.3 socket pair between the same processes: the same bytes, no WebSocket, no frames, no event loop.
Medians; the machine should be idle.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import ssl
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from figures import Figure, command_line, write

from confide.net.exchange import Envelope
from confide.net.link import Arrived, Joined
from confide.net.stream import Host, Join
from confide.wire import Message

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from net.federation import Authority, until, wait_for

SMALL, LARGE, TRIPS, UPLOADS = 1000, 64 << 20, 1000, 15


def envelope(name: str, body: bytes, number: object = 0) -> Envelope:
    return Envelope("s", Message(name, "server", str(number), body))


def members(pipe: Connection, url: str, contexts: dict[str, tuple[str, str, str]]) -> None:
    """Do what the coordinator's process says, and answer with the seconds of processor time."""
    links: list[Join] = []
    while (order := pipe.recv()) != "end":
        begin = time.process_time()
        if order[0] == "join":
            for name in order[1]:
                links.append(Join(url, client(contexts[name])))
                wait_for(links[-1], Joined)
        elif order[0] == "send":
            for number, link in enumerate(links[: order[1]]):
                link.send("server", envelope(f"n{number}", bytes(order[2]), order[3]))
        elif order[0] == "echo":
            for _ in range(order[1]):
                links[0].send("server", wait_for(links[0], Arrived).envelope)
        elif order[0] == "take":
            wait_for(links[0], Arrived)
        elif order[0] == "bare":
            bare(order[1], client(contexts["n0"]), order[2])
        pipe.send(time.process_time() - begin)
    for link in links:
        link.close()


def client(paths: tuple[str, str, str]) -> ssl.SSLContext:
    from confide.net.tls import join_context

    return join_context(*map(Path, paths))


def bare(port: int, context: ssl.SSLContext, kind: str) -> None:
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as tls,
    ):
        raw_nodelay(tls)
        if kind == "echo":
            for _ in range(TRIPS):
                tls.sendall(exactly(tls, SMALL))
        else:
            tls.sendall(bytes(LARGE))
            tls.recv(1)


def raw_nodelay(tls: ssl.SSLSocket) -> None:
    tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def exactly(tls: ssl.SSLSocket, size: int) -> bytearray:
    data, have = bytearray(size), 0
    while have < size:
        have += tls.recv_into(memoryview(data)[have:])
    return data


def bare_figures(pipe: Connection, context: ssl.SSLContext) -> dict[str, float]:
    figures: dict[str, float] = {}
    with socket.create_server(("127.0.0.1", 0)) as server:
        for kind in ("echo", "upload"):
            pipe.send(("bare", server.getsockname()[1], kind))
            raw, _ = server.accept()
            with context.wrap_socket(raw, server_side=True) as tls:
                raw_nodelay(tls)
                begin = time.perf_counter()
                if kind == "echo":
                    trips = []
                    for _ in range(TRIPS):
                        begin = time.perf_counter()
                        tls.sendall(bytes(SMALL))
                        exactly(tls, SMALL)
                        trips.append(time.perf_counter() - begin)
                    figures["round_trip_ms"] = 1e3 * statistics.median(trips)
                else:
                    exactly(tls, LARGE)
                    figures["up_mb_per_s"] = LARGE / 1e6 / (time.perf_counter() - begin)
                    tls.sendall(b".")
            pipe.recv()
    return figures


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def our_figures(pipe: Connection, host: Host, nodes: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    names = [f"n{number}" for number in range(nodes)]
    order(pipe, "join", names)
    for _ in names:
        wait_for(host, Joined)
    pipe.send(("echo", TRIPS))
    trips, work = [], time.process_time()
    for number in range(TRIPS):
        begin = time.perf_counter()
        host.send("n0", envelope("n0", bytes(SMALL), number))
        wait_for(host, Arrived)
        trips.append(time.perf_counter() - begin)
    member_seconds = pipe.recv()
    figures["round_trip_ms"] = 1e3 * statistics.median(trips)
    figures["round_trip_host_cpu_ms"] = 1e3 * (time.process_time() - work) / TRIPS
    figures["round_trip_member_cpu_ms"] = 1e3 * member_seconds / TRIPS
    for key, up in (("up_mb_per_s", True), ("down_mb_per_s", False)):
        rates = []
        for number in range(3):
            begin = time.perf_counter()
            if up:
                pipe.send(("send", 1, LARGE, number))
                wait_for(host, Arrived)
                rates.append(LARGE / 1e6 / (time.perf_counter() - begin))
                pipe.recv()
            else:
                host.send("n0", envelope("n0", bytes(LARGE), number))
                order(pipe, "take")
                rates.append(LARGE / 1e6 / (time.perf_counter() - begin))
        figures[key] = statistics.median(rates)
    for size in (400_000, 800_000):
        seconds, work = [], time.process_time()
        for number in range(UPLOADS):
            begin = time.perf_counter()
            pipe.send(("send", nodes, size, number))
            for _ in names:
                wait_for(host, Arrived)
            seconds.append(time.perf_counter() - begin)
            pipe.recv()
        per_upload = 1e3 / nodes
        figures[f"upload_{size // 1000}kb_ms_per_node"] = per_upload * statistics.median(seconds)
        figures[f"upload_{size // 1000}kb_host_cpu_ms"] = per_upload * (time.process_time() - work) / UPLOADS
    return figures


def idle_figures(pipe: Connection, host: Host, idle: int) -> dict[str, float]:
    order(pipe, "join", ["i0"])
    before, begin, work = resident_bytes(), time.perf_counter(), time.process_time()
    members_work = order(pipe, "join", [f"i{number}" for number in range(1, idle)])
    until(lambda: len(host._listener._members) == idle)
    figures = {
        "idle_host_kb_each": (resident_bytes() - before) / 1e3 / idle,
        "join_host_cpu_ms_each": 1e3 * (time.process_time() - work) / idle,
        "join_member_cpu_ms_each": 1e3 * members_work / idle,
        "join_ms_each": 1e3 * (time.perf_counter() - begin) / idle,
    }
    work = time.process_time()
    time.sleep(5)
    return figures | {"idle_host_cpu_percent": 100 * (time.process_time() - work) / 5}


class Side:
    """A host here and its members in another process."""

    def __init__(self, context: ssl.SSLContext, paths: dict[str, tuple[str, str, str]]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.host = Host("127.0.0.1", 0, context, admit=lambda peer: None)
        self.pipe, far = spawn.Pipe()
        self.process = spawn.Process(target=members, args=(far, f"wss://127.0.0.1:{self.host.port}", paths))
        self.process.start()

    def __enter__(self) -> tuple[Connection, Host]:
        return self.pipe, self.host

    def __exit__(self, *exc: object) -> None:
        self.pipe.send("end")
        self.process.join()
        self.host.close()


def order(pipe: Connection, *what: Any) -> float:
    pipe.send(what)
    return pipe.recv()


def unit_of(name: str) -> str:
    """Return the unit that is in the name of a figure: milliseconds where it is none of these."""
    units = {"mb_per_s": "MB/s", "cpu_percent": "%", "kb_each": "kB"}
    return next((unit for end, unit in units.items() if name.endswith(end)), "ms")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--idle", type=int, default=200, help="further members that do nothing, a thread each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder))
        context = authority.host_context()
        names = [f"n{n}" for n in range(options.nodes)] + [f"i{n}" for n in range(options.idle)]
        paths = {name: (*map(str, authority.issue(name)), str(authority.path)) for name in names}
        with Side(context, paths) as (pipe, host):
            idle = idle_figures(pipe, host, options.idle)
        with Side(context, paths) as (pipe, host):
            ours = our_figures(pipe, host, options.nodes) | idle
            bare = bare_figures(pipe, authority.host_context(file="bare"))
    figures: list[Figure] = []
    print(f"{'':32}{'confide':>12}{'bare TLS':>12}")
    for name, value in ours.items():
        other = f"{bare[name]:12.3f}" if name in bare else ""
        print(f"{name:32}{value:12.3f}{other}")
        figures.append(Figure(name, value, unit_of(name), "bare TLS" if name in bare else None, bare.get(name)))
    write(figures, options.json)


if __name__ == "__main__":
    main()
