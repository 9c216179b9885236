"""Predictions sealed to an enclave, beside plain ones over HTTP: one large question, and 16 clients at once.

    python bench/tee.py [--repeats 40] [--seconds 5] [--json FILE]

SIMULATED: the attester has no hardware, so this is the cost of protocol and channel alone, not of an enclave.
A logistic model of 30 features is served by `confide serve`, once under `tee` (which is one process) and once under
`plain` (with two workers, the default); both servers run all the time, and are asked in turns.

* A question of 1 MB (4096 rows), from one client: the median time of a sealed one over that of a plain one.
* 16 clients, in two processes of 8 threads, each asking for one row as fast as answers come: answers per second.
* What comes before: fetching the kit, evidence over a nonce and its verification.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from figures import Figure, at_least, at_most, command_line, machine, show, write
from load import FEATURES, Server, saved_model

from confide.crypto.keys import SigningKey
from confide.model.artifact import decode_statement, load
from confide.serve.client import Client
from confide.tee.simulated import measure_code

ROWS = 4096  # of 30 float64: 983 kB
CLIENTS, PROCESSES = 16, 2
_TITLE = "simulated: protocol overhead only, not hardware"


def client_of(url: str, policy: str) -> Client:
    """Return a client of the server under `tee`, or of the plain one where there is no policy."""
    return Client(url, policy=policy, attester="simulated") if policy else Client(url, backend="plain")


def ask(url: str, policy: str, seconds: float) -> None:
    """Ask from several threads until the time is over, and print how many answers there were."""
    counts = [0] * (CLIENTS // PROCESSES)
    clients = [client_of(url, policy) for _ in counts]
    row = np.random.default_rng(1).uniform(-1, 1, (1, FEATURES))
    for client in clients:
        client.predict(row)
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + seconds

    def one(place: int) -> None:
        while time.monotonic() < end:
            clients[place].predict(row)
            counts[place] += 1

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(counts), flush=True)


def rate(url: str, policy: str, seconds: float) -> float:
    """Return the answers per second of all clients together."""
    command = [sys.executable, __file__, "--ask", url, "--policy", policy, "--seconds", str(seconds)]
    asking = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    for one in asking:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in asking:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    return sum(int(one.communicate()[0]) for one in asking) / seconds


def milliseconds(job: Callable[[], object]) -> float:
    """Return how long a job takes."""
    begin = time.perf_counter()
    job()
    return (time.perf_counter() - begin) * 1e3


def measured(sealed: str, plain: str, policy: str, *, repeats: int, seconds: float) -> list[Figure]:
    x = np.random.default_rng(2).uniform(-1, 1, (ROWS, FEATURES))
    with client_of(sealed, policy) as ours, client_of(plain, "") as theirs:
        first = milliseconds(lambda: ours.predict(x[:1]))
        for _ in range(3):
            ours.predict(x)
            theirs.predict(x)
        large = [
            (milliseconds(lambda: ours.predict(x)), milliseconds(lambda: theirs.predict(x))) for _ in range(repeats)
        ]
        small = [
            (milliseconds(lambda: ours.predict(x[:1])), milliseconds(lambda: theirs.predict(x[:1])))
            for _ in range(5 * repeats)
        ]
        setups = [milliseconds(ours.setup) for _ in range(repeats)]
    rates = [(rate(sealed, policy, seconds), rate(plain, "", seconds)) for _ in range(3)]
    slower = statistics.median(one / other for one, other in large)
    kept = statistics.median(one / other for one, other in rates)
    pairs = {"1 MB": large, "one row": small}
    found = [
        Figure(
            f"a question of {name}, sealed", statistics.median(one for one, _ in taken), "ms", "plain",
            statistics.median(other for _, other in taken), note=_spread([one for one, _ in taken]),
        )
        for name, taken in pairs.items()
    ]  # fmt: skip
    return [
        *found,
        Figure("sealed over plain, 1 MB", slower, "x", bar=1.5, met=at_most(slower, 1.5)),
        Figure("kit, evidence, verification and a first answer", first, "ms"),
        Figure("evidence over a nonce, and its verification", statistics.median(setups), "ms", note=_spread(setups)),
        Figure(
            f"answers per second to {CLIENTS} clients, sealed",
            statistics.median(one for one, _ in rates), "1/s", "plain",
            statistics.median(other for _, other in rates), note=_spread([one for one, _ in rates]),
        ),
        Figure("sealed rate over plain rate", kept, "x", bar=0.7, met=at_least(kept, 0.7)),
    ]  # fmt: skip


def _spread(values: list[float]) -> str:
    low, high = np.percentile(values, [5, 95])
    return f"p5 to p95: {low:.2f} to {high:.2f}"


def policy_file(server_model: Path, folder: Path) -> Path:
    """Write the policy that accepts this code, simulated, with this model."""
    model = decode_statement(load(server_model, trust=SigningKey(bytes(32)).public).statement, trust=None)
    path = folder / "policy.toml"
    path.write_text(
        f'model_sha256 = ["{model.graph_sha256.hex()}"]\n[simulated]\nmeasurements = ["{measure_code()}"]\n'
    )
    return path


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--ask", help="(a process of clients)")
    parser.add_argument("--policy", default="", help="(of those)")
    asked = parser.parse_args()
    if asked.ask:
        ask(asked.ask, asked.policy, asked.seconds)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = saved_model(folder)
        policy = policy_file(model, folder)
        sealed = Server(model, ["--backend", "tee", "--attester", "simulated"], folder / "sealed.jsonl")
        plain = Server(model, ["--backend", "plain"], folder / "plain.jsonl")
        try:
            found = measured(sealed.start(), plain.start(), str(policy), repeats=asked.repeats, seconds=asked.seconds)
        finally:
            for server in (sealed, plain):
                if server.process is not None:
                    server.stop()
    print(f"{_TITLE}; {machine()}")
    show(found)
    write(found, asked.json)


if __name__ == "__main__":
    main()
