"""Seconds of a whole federated round over TLS: the coordinator and each node in a process of its own, on this machine.

    python bench/federation.py [--nodes 8] [--rounds 25] [--with-flower] [--json FILE]

`amortised`, an mlp of 100,401 parameters, few records at each node. A round lasts from the end of the round before to
its own: news of the last sums to every node, the ledger's lines and countersignatures, local training, upload,
survivors and answers, the model, journal and ledger on disk. All processes share this machine's cores and its disk,
where a real federation has a machine for each (so numpy takes one thread in each); the relay delays and limits each
node's connection by itself. Local training is measured beside, as the seconds of one node's own thread, and subtracted.

The peer is Flower's deployment for a sum of as many values (bench/flower.py, three SuperNodes), if it is asked for.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from figures import Figure, at_most, command_line, machine, read, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the processes that the tests start

from confide.net.relay import Relay
from confide.train.attendance import Patience
from train.deployment import Deployment, Nodes, finished, start_coordinator

FEATURES, HIDDEN, RECORDS = 500, 200, 24
WARM_UP = 4
DELAY_SECONDS, BITS_PER_SECOND = 0.02, 200e6
PATIENCE = Patience(stage_seconds=60, grace_seconds=5, gather_seconds=30)


def one_thread_each() -> None:
    """Let numpy take one thread in each process that is started from here."""
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"


def job_text(rounds: int, nodes: int, aggregate: str = "amortised", hidden: int = HIDDEN) -> str:
    model = f'kind = "mlp"\nhidden = {hidden}' if hidden else 'kind = "logistic"'
    return f"""
[model]
{model}
[train]
aggregate = "{aggregate}"
rounds = {rounds}
quorum = {max(3, nodes - 2)}
expected_records = {RECORDS}
learning_rate = 0.01
"""


def measure(folder: Path, nodes: int, rounds: int, *, shaped: bool) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds of each round after the first ones, and one node's seconds of training: own, on the wall."""
    made = Deployment.make(folder, nodes, features=FEATURES, records=RECORDS, job=job_text(rounds + WARM_UP, nodes))
    running: list[Nodes] = []
    relay = None
    if shaped:
        relay = Relay("127.0.0.1", made.port, delay_seconds=DELAY_SECONDS, bits_per_second=BITS_PER_SECOND)
    url = f"wss://127.0.0.1:{relay.port}" if relay else None
    coordinator = start_coordinator(made, PATIENCE)
    try:
        running += [Nodes(made, [name], url) for name in made.names]
        finished(coordinator, running)
        training = [pair for one in running for pair in one.tell("figures")["training"][WARM_UP : rounds + WARM_UP]]
    finally:
        for one in running:
            one.end()
        if relay:
            relay.close()
        if coordinator.is_alive():
            coordinator.kill()
    seconds = [line["seconds"] for line in made.lines()][WARM_UP:]
    assert len(seconds) == rounds
    return seconds, [own for _, own in training], [wall for wall, _ in training]


def quartiles(values: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{1e3 * low:.0f} to {1e3 * high:.0f}, worst {1e3 * max(values):.0f}"


def flower(rounds: int) -> float | None:
    """Return the seconds of Flower's amortised sum of 100,000 values, or None where Flower is not here."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "flower.json"
        command = [sys.executable, Path(__file__).with_name("flower.py"), "--rounds", str(rounds), "--json", place]
        subprocess.run(command, check=True)
        return next((one.value for one in read(place) if one.figure == "amortised over Flower, a sum"), None)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--only", choices=("loopback", "relay"))
    parser.add_argument("--with-flower", action="store_true", help="measure Flower's deployment in the same run")
    options = parser.parse_args()
    one_thread_each()
    print(f"{machine()} before")
    peer = flower(3) if options.with_flower else None
    beside = "Flower, three SuperNodes" if peer else None
    if peer is None:
        print("no peer: Flower was not asked for (--with-flower), or is not here (make setup-flower)")
    figures: list[Figure] = []
    print(f"{'':28}{'round ms':>10}{'quartiles':>26}{'training ms':>13}{'besides ms':>12}{'bar':>7}{'Flower ms':>11}")
    for link, bar in (("loopback", 300.0), ("relay", 1000.0)):
        if options.only not in (None, link):
            continue
        with tempfile.TemporaryDirectory() as folder:
            seconds, own, wall = measure(Path(folder), options.nodes, options.rounds, shaped=link == "relay")
        whole, trained = 1e3 * statistics.median(seconds), 1e3 * statistics.median(own)
        besides = whole - trained
        name = link if link == "loopback" else "relay, 20 ms, 200 Mbit/s"
        flowers = f"{1e3 * peer:11.0f}" if peer else f"{'-':>11}"
        print(
            f"{name:28}{whole:10.0f}{quartiles(seconds):>26}{trained:13.1f}{besides:12.0f}{bar:7.0f}{flowers}",
            flush=True,
        )
        title = f"amortised round, {options.nodes} nodes, 100k values, {name}"
        theirs = 1e3 * peer if peer else None
        figures += [
            Figure(f"{title}, besides training", besides, "ms", beside, theirs, bar, at_most(besides, bar)),
            Figure(f"{title}, whole", whole, "ms"),
            Figure(f"{title}, one node's training on the wall", 1e3 * statistics.median(wall), "ms"),
        ]
    print(f"{machine()} after, {time.strftime('%H:%M')}")
    write(figures, options.json)


if __name__ == "__main__":
    main()
