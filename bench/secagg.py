"""What a masked and an amortised sum cost each client and the server, beside Flower's SecAgg+ in the same run.

    python bench/secagg.py [--repeats 7] [--json FILE] [--no-peer]

Every party runs in this process, one after the other on one core; seconds are those that the driver's transcript holds
for each party, so nobody pays for the others or for the driver. Bytes are message bodies. Clients that drop out do so
after key sharing: their vectors never come and their masks must be reconstructed. The amortised sum is measured per
round within an epoch, after a first round that agrees on its keys; set-up is a figure of its own. Every sum is checked
against the plain one. Values are uniform over the whole range that fits the ring.

The peer runs its released workflow and mod in one process, its network replaced by function calls, with the same graph
as `masked` in each setting: complete, or k neighbours with the same threshold. Where it is sparse the peer trusts more:
its clients compare no signatures, ours check those of a quorum. The amortised sum has no sparse form and stands beside
the complete peer of the same cohort. It needs bench/peers/flower/.venv (`make setup-flower`); without it the
peer's column stays empty.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from figures import Figure, at_least, at_most, command_line, show, spread, write

from confide.crypto.random import SystemRandomness, public_stream
from confide.crypto.ring import ENGINE
from confide.ideal import Aggregator, Cohort, Session
from confide.secagg import Amortised, Masked
from confide.wire import MemoryStore, Message, run

HERE = Path(__file__).parent / "peers" / "flower"


@dataclass(frozen=True)
class Setting:
    """One federation: n clients with d values each, t shares open a secret, some vectors never come."""

    clients: int
    length: int
    quorum: int
    drops: int
    ring_bits: int = 32
    neighbours: int | None = None
    peer_repeats: int = 0  # 0 where the peer is not run

    @property
    def title(self) -> str:
        graph = f" k={self.neighbours}" if self.neighbours else ""
        return f"n={self.clients} d={self.length} t={self.quorum}{graph} drops={self.drops} ring={self.ring_bits}"

    @property
    def peer_name(self) -> str:
        shares = self.neighbours or self.clients
        return f"flwr 1.42.0 SecAgg+, k={shares}, t={self.peer_threshold}"

    @property
    def peer_threshold(self) -> int:
        return self.neighbours // 2 + 1 if self.neighbours else self.quorum


@dataclass(frozen=True)
class Cost:
    """Figures of each repeat."""

    client_ms: Sequence[float]
    server_ms: Sequence[float]
    up_kb: Sequence[float]


@dataclass(frozen=True)
class SetUp:
    """What it costs once: milliseconds of the median client and of the server, kB that a client sends and gets."""

    client_ms: float
    server_ms: float
    up_kb: float
    down_kb: float


#: How many times less than the peer: client seconds, server seconds; and the share of the peer's bytes.
BARS = {"masked": (12.0, 120.0, 0.55), "amortised": (30.0, 200.0, 0.55)}

HEADLINE = Setting(clients=50, length=100_000, quorum=30, drops=5, peer_repeats=2)
SPARSE = Setting(clients=50, length=100_000, quorum=30, drops=5, neighbours=13, peer_repeats=7)
LONG = Setting(clients=20, length=1_000_000, quorum=12, drops=1, peer_repeats=2)
LONG_SPARSE = Setting(clients=20, length=1_000_000, quorum=12, drops=1, neighbours=9, peer_repeats=5)
LARGE = Setting(clients=200, length=100_000, quorum=120, drops=20, neighbours=31, peer_repeats=1)
WITH_PEER = (HEADLINE, SPARSE, LONG, LONG_SPARSE, LARGE)
ALONE = (
    Setting(clients=50, length=100_000, quorum=30, drops=5, ring_bits=22),
    Setting(clients=4, length=10_000, quorum=3, drops=1),
)


def measure(setting: Setting, repeats: int, aggregator: Aggregator) -> tuple[Cost, SetUp]:
    """Return the cost of one sum, after a sum that warms everything up, and of the set-up."""
    names = tuple(f"hospital-{index:02d}" for index in range(setting.clients))
    lost = set(names[:: setting.clients // setting.drops][: setting.drops])
    left = [name for name in names if name not in lost]
    cohort, rng = Cohort(names, setting.quorum), SystemRandomness()
    roles = {"server": "server"} | dict.fromkeys(names, "client")
    stores = {name: MemoryStore() for name in roles}
    parties = {me: aggregator.setup(role, me, cohort, stores[me], rng) for me, role in roles.items()}
    ready = run(parties, stores=stores)
    set_up = SetUp(
        1e3 * statistics.median(ready.seconds(name) for name in names),
        1e3 * ready.seconds("server"),
        ready.bytes_sent(names[0]) / 1e3,
        ready.bytes_received(names[0]) / 1e3,
    )
    bound = (2**setting.ring_bits - 1) // (2 * setting.clients)
    draw = public_stream(1, "bench")
    vectors = {name: draw.integers(-bound, bound + 1, setting.length) for name in names}
    expected = aggregator.ideal({name: vectors[name] for name in left})

    def lose(message: Message) -> list[tuple[int, Message]]:
        return [] if message.src in lost and message.tag == f"{aggregator.name}/vector" else [(0, message)]

    client, server, up = [], [], []
    for number in range(repeats + 1):
        session = Session("bench", number, cohort, setting.length, bound)
        parties, building = {}, {}
        for me, role in roles.items():  # what a party reads from its store when it is built counts too
            begin = time.perf_counter()
            parties[me] = aggregator.party(role, me, session, vectors.get(me), stores[me], rng)
            building[me] = time.perf_counter() - begin
        done = run(parties, stores=stores, fault=lose, keep_bodies=False)
        sums = done.output("server")
        if session.ring_bits != setting.ring_bits or not (
            np.array_equal(sums.values, expected.values) and sums.members == expected.members
        ):
            raise SystemExit(f"{setting.title}: the sum is wrong")
        client.append(1e3 * statistics.median(building[name] + done.seconds(name) for name in left))
        server.append(1e3 * (building["server"] + done.seconds("server")))
        up.append(statistics.median(done.bytes_sent(name) for name in left) / 1e3)
    return Cost(client[1:], server[1:], up[1:]), set_up


def peer(folder: Path, setting: Setting) -> Cost | None:
    """Return what Flower's SecAgg+ costs, or None where it is not installed."""
    python = folder / ".venv" / "bin" / "python"
    if not python.exists():
        return None
    options = {
        "clients": setting.clients,
        "length": setting.length,
        "drops": setting.drops,
        "shares": setting.neighbours or setting.clients,
        "threshold": setting.peer_threshold,
        "repeats": setting.peer_repeats,
    }
    command = [str(python), str(HERE / "secagg.py"), *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    return Cost(
        [1e3 * seconds for seconds in figures["client_seconds"]],
        [1e3 * seconds for seconds in figures["server_seconds"]],
        [count / 1e3 for count in figures["up_bytes"]],
    )


def figures(name: str, setting: Setting, ours: Cost, theirs: Cost | None = None) -> list[Figure]:
    """Return a figure for each cost, and how it stands to the peer's where there is one."""
    found: list[Figure] = []
    for place, (cost, unit) in enumerate((("client_ms", "ms"), ("server_ms", "ms"), ("up_kb", "kB"))):
        values: Sequence[float] = getattr(ours, cost)
        value = statistics.median(values)
        title = f"{name} {setting.title} {cost.rpartition('_')[0]}"
        found.append(Figure(title, round(value, 2), unit, note=spread(values)))
        if theirs is None:
            continue
        peer_value = statistics.median(getattr(theirs, cost))
        ratio = value / peer_value if unit == "kB" else peer_value / value
        bar = BARS[name][place]
        met = at_most(ratio, bar) if unit == "kB" else at_least(ratio, bar)
        found.append(
            Figure(
                figure=f"{title}, {'share of' if unit == 'kB' else 'times less than'} the peer",
                value=round(ratio, 2),
                unit="ratio",
                peer=setting.peer_name,
                peer_value=round(peer_value, 2),
                bar=bar,
                met=met,
            )
        )
    return found


def report(found: Sequence[Figure]) -> None:
    print(f"ring arithmetic: {ENGINE}; medians, [fastest to slowest repeat]\n")
    show(found)
    for cost in ("client", "server"):
        ratios = [one for one in found if f" {cost}, times less" in one.figure and one.figure.startswith("masked")]
        if ratios:
            least = min(ratios, key=lambda one: one.value)
            print(f"\nsmallest ratio of a masked {cost} over all settings: {least.value:.1f}x ({least.figure})")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--peer", type=Path, default=HERE, help="the folder whose .venv holds the peer")
    args = parser.parse_args()
    found: list[Figure] = []
    set_up: SetUp | None = None
    for setting in (*WITH_PEER, *ALONE):
        theirs = peer(args.peer, setting) if setting.peer_repeats and not args.no_peer else None
        repeats = args.repeats if setting.clients < 100 else 2
        found += figures("masked", setting, measure(setting, repeats, Masked(neighbours=setting.neighbours))[0], theirs)
        if setting.neighbours is None:
            cost, once = measure(setting, repeats, Amortised())
            found += figures("amortised", setting, cost, theirs)
            set_up = set_up or once
    report(found)
    if set_up:
        print(
            f"\namortised set-up, {HEADLINE.clients} clients, once per run: {set_up.client_ms:.1f} ms per client, "
            f"{set_up.server_ms:.1f} ms at the server, {set_up.up_kb:.1f} kB up and {set_up.down_kb:.1f} kB down each"
        )
    write(found, args.json)


if __name__ == "__main__":
    main()
