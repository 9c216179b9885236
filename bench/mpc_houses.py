"""The organisations of bench/mpc.py as processes of their own, which talk over TLS: a server, its partners, a client.

    python bench/mpc_houses.py server|dealer|helper|third|client JOB.json

A job has `folder` (a federation's, with a folder for each member), `net`, `numbers` (.npz), `backend`, `port` and `url`
of each role, `stock` (predictions dealt ahead) and for the client `calls`, `pause_seconds` (between calls, in which
stock is filled) and `x` (.npy). Each process says "ready" once it is there and stays until its input ends; the client
prints seconds and outputs as JSON. All keep their stores in SQLite below the folder, as services do: a durable commit
at each party before a prediction's first masked byte is in these figures. Without a relay, which needs cores too, each
process stays on one core, the client and the server on two, as on machines of their own.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mpc_links import Link, free_ports
from mpc_nets import Arrays

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # who found federations for the tests

from confide.net.relay import Relay

ROLES = ("client", "server", "helper", "third", "dealer")
NAMES = {"client": "clinic", "dealer": "broker", "helper": "helper", "third": "third"}


# --- one process ------------------------------------------------------------------------------------------------------


def conditions(job: Mapping[str, Any], role: str) -> Any:
    from confide.serve.parties.service import Conditions
    from confide.store import SqliteStore

    def broken(error: BaseException) -> None:
        print(f"{role}: {error!r}", file=sys.stderr, flush=True)

    return Conditions(
        address="127.0.0.1",
        port=job["port"][role],
        store=SqliteStore(Path(job["folder"]) / f"{role}.db"),
        one_machine=True,  # a benchmark is one machine, and says so
        broken=broken,
    )


def served(job: Mapping[str, Any], backend: Any, limits: Any) -> Any:
    """Return the job's model, prepared."""
    from mpc_ours import graph_of

    from confide.crypto.random import SystemRandomness
    from confide.guarantee import PrivacyLabel
    from confide.serve.parties.service import prepared
    from confide.serve.served import Model

    with np.load(job["numbers"]) as archive:
        graph = graph_of(job["net"], dict(archive))
    assert graph is not None
    label = PrivacyLabel(aggregator="masked", parties=("north", "south"), quorum=2, colluding=0, rounds=1)
    return prepared(Model(name="bench", graph=graph, label=label, backends=(backend,)), limits, SystemRandomness())


@contextmanager
def at_work(job: Mapping[str, Any], role: str) -> Iterator[None]:
    """Be the server or one of its partners."""
    from confide.serve import load_backend
    from confide.serve.limits import Limits
    from confide.serve.parties.service import partnering, serving

    folder, backend = Path(job["folder"]), load_backend(job["backend"])
    if role == "server":
        limits = Limits(batch_rows=64)
        partners = {one: NAMES[one] for one in backend.roles if one not in ("client", "server")}
        models = served(job, backend, limits)
        with serving(folder / "federation", models, partners, conditions(job, role), limits=limits):
            yield
    else:
        with partnering(
            folder / NAMES[role],
            conditions(job, role),
            url=job["url"][role],
            stock=job["stock"],
            load=lambda _: backend,
            coordinator=job["url"]["server"],
        ):
            yield


def ask(job: Mapping[str, Any]) -> dict[str, Any]:
    """Ask as the client; return the seconds of each call, whether it ran without the dealer, and the outputs."""
    from confide.serve.client import Client

    x, seconds, outputs, stocked = np.load(job["x"]), [], [], []
    identity = Path(job["folder"]) / NAMES["client"]
    more = {"ahead": job["stock"]} if "ahead" in inspect.signature(Client).parameters else {}
    with Client(
        job["url"]["server"], identity=identity, insecure_colocated_dealer=True, timeout_seconds=120.0, **more
    ) as client:
        begin = time.perf_counter()
        client.setup()
        set_up = time.perf_counter() - begin
        for call in range(job["calls"]):
            time.sleep(job["pause_seconds"])
            begin = time.perf_counter()
            transcript = client.ask(x[call % len(x)].reshape(1, -1))
            seconds.append(time.perf_counter() - begin)
            outputs.append(transcript.output("client").tolist())
            stocked.append(all("dealer" not in (one.src, one.dst) for one in transcript.messages))
        costs = client.costs()
    return {"seconds": seconds, "outputs": outputs, "stocked": stocked, "setup_seconds": set_up, "costs": costs}


def main() -> None:
    role, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    if job["apart"]:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[ROLES.index(role) % len(cores)]})
    if role == "client":
        print(json.dumps(ask(job)))
        return
    with at_work(job, role):
        print("ready", flush=True)
        sys.stdin.read()


# --- all of them ------------------------------------------------------------------------------------------------------


def predictions(
    backend: str,
    roles: tuple[str, ...],
    link: Link,
    *,
    net: str,
    numbers: Arrays,
    x: np.ndarray,
    calls: int,
    stock: int,
    pause_seconds: float,
    seconds: float,
    program: str = __file__,
) -> dict[str, Any]:
    """Return what the client of one federation found, a process for each role and a relay before each that listens.

    Args:
        stock: predictions that the dealer deals ahead; 0 deals each when it is asked for.
        pause_seconds: between two calls.
        seconds: for all calls together.
        program: what is started for each role.

    Raises:
        RuntimeError: a process ended early, or the answers took too long.
    """
    from serve.parties.federation import founded

    listening = [role for role in ("server", *roles) if role != "client"]
    listening = list(dict.fromkeys(listening))
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        founded(folder, {NAMES[role]: role for role in roles if role != "server"})
        np.savez(folder / "numbers.npz", **numbers)
        np.save(folder / "x.npy", x)
        ports = dict(zip(listening, free_ports(len(listening)), strict=True))
        urls = {role: f"wss://127.0.0.1:{_behind(stack, link, port)}" for role, port in ports.items()}
        job = {
            "folder": str(folder), "net": net, "numbers": str(folder / "numbers.npz"), "x": str(folder / "x.npy"),
            "backend": backend, "port": ports, "url": urls,
            "stock": stock, "calls": calls, "pause_seconds": pause_seconds, "apart": link.bits_per_second is None,
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job))
        command = [sys.executable, program]
        for role in listening:
            stack.enter_context(_started([*command, role, str(folder / "job.json")]))
        asking = [*command, "client", str(folder / "job.json")]
        try:
            done = subprocess.run(asking, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"no answers in {seconds:.0f} s") from None
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return json.loads(done.stdout)


def _behind(stack: ExitStack, link: Link, port: int) -> int:
    """Return the port at which a link leads to another; each connection through it has the link's whole rate."""
    if link.bits_per_second is None:
        return port
    relay = Relay("127.0.0.1", port, delay_seconds=link.delay_seconds, bits_per_second=link.bits_per_second)
    return stack.enter_context(relay).port


@contextmanager
def _started(command: list[str]) -> Iterator[None]:
    """Run a server or a partner, once it is there, until the block ends."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    try:
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{command[2]} did not start")
        yield
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


if __name__ == "__main__":
    main()
