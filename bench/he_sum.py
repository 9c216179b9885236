"""What an encrypted sum costs each client, the server and the keyholder, beside a masked sum in the same run.

    python bench/he_sum.py [--repeats 5] [--json FILE]

Every party runs in this process, one after the other on one core; seconds are those that the driver's transcript holds
for each party, building it included, so nobody pays for the others or for the driver. Bytes are message bodies. Nobody
drops out; every sum is checked against the plain one. Values are uniform over the whole range that fits the ring. The
expansion is a client's upload over its vector as 32-bit words. The peer is our own `masked`, which has no keyholder.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from figures import Figure, at_most, command_line, show, spread, write

from confide.crypto.random import SystemRandomness, public_stream
from confide.he import EncryptedSum
from confide.ideal import Aggregator, Cohort, Session
from confide.secagg import Masked
from confide.wire import MemoryStore, run

LENGTH = 100_000


@dataclass(frozen=True)
class Cost:
    """Figures of each repeat; those of the keyholder are None where there is none."""

    client_ms: Sequence[float]
    server_ms: Sequence[float]
    keyholder_ms: Sequence[float] | None
    up_kb: Sequence[float]
    to_keyholder_kb: Sequence[float] | None
    set_up_ms: float
    set_up_down_kb: float


def measure(aggregator: Aggregator, *, clients: int, ring_bits: int, repeats: int) -> Cost:
    """Return the cost of sums over all clients, after one that warms everything up."""
    names = tuple(f"hospital-{index:02d}" for index in range(clients))
    cohort, rng = Cohort(names, clients // 2 + 1), SystemRandomness()
    roles = cohort.parties(aggregator.roles)
    stores = {name: MemoryStore() for name in roles}
    parties = {me: aggregator.setup(role, me, cohort, stores[me], rng) for me, role in roles.items()}
    ready = run(parties, stores=stores)
    bound = (2**ring_bits - 1) // (2 * clients)
    draw = public_stream(1, "bench")
    vectors = {name: draw.integers(-bound, bound + 1, LENGTH) for name in names}
    expected = aggregator.ideal(vectors)
    seconds: dict[str, list[float]] = {"client": [], "server": [], "keyholder": []}
    sizes: dict[str, list[float]] = {"up": [], "keyholder": []}
    for number in range(repeats + 1):
        session = Session("bench", number, cohort, LENGTH, bound)
        parties, spent = {}, {}
        for me, role in roles.items():
            begin = time.perf_counter()
            parties[me] = aggregator.party(role, me, session, vectors.get(me), stores[me], rng)
            spent[me] = time.perf_counter() - begin
        done = run(parties, stores=stores, keep_bodies=False)
        sums = done.output(cohort.server)
        if session.ring_bits != ring_bits or not np.array_equal(sums.values, expected.values):
            raise SystemExit(f"{aggregator.name} n={clients}: the sum is wrong")
        spent = {me: 1e3 * (spent[me] + done.seconds(me)) for me in roles}
        seconds["client"].append(statistics.median(spent[name] for name in names))
        seconds["server"].append(spent[cohort.server])
        seconds["keyholder"].append(spent.get(cohort.helper, 0.0))
        sizes["up"].append(statistics.median(done.bytes_sent(name) for name in names) / 1e3)
        sizes["keyholder"].append(done.bytes_received(cohort.helper) / 1e3)
    held = cohort.helper in roles
    return Cost(
        seconds["client"][1:],
        seconds["server"][1:],
        seconds["keyholder"][1:] if held else None,
        sizes["up"][1:],
        sizes["keyholder"][1:] if held else None,
        1e3 * statistics.median(ready.seconds(name) for name in names),
        ready.bytes_received(names[0]) / 1e3,
    )


def figures(title: str, ours: Cost, theirs: Cost, most_expansion: float) -> list[Figure]:
    """Return a figure for each cost, beside the masked sum's where it has one."""
    found: list[Figure] = []
    for cost, unit in (
        ("client_ms", "ms"),
        ("server_ms", "ms"),
        ("keyholder_ms", "ms"),
        ("up_kb", "kB"),
        ("to_keyholder_kb", "kB"),
    ):
        values: Sequence[float] = getattr(ours, cost)
        others: Sequence[float] | None = getattr(theirs, cost)
        found.append(
            Figure(
                figure=f"{title} {cost.rpartition('_')[0].replace('_', ' ')}",
                value=round(statistics.median(values), 2),
                unit=unit,
                peer="masked" if others else None,
                peer_value=round(statistics.median(others), 2) if others else None,
                note=spread(values),
            )
        )
    expansion, other = (1e3 * statistics.median(cost.up_kb) / (4 * LENGTH) for cost in (ours, theirs))
    met = at_most(expansion, most_expansion)
    found.append(Figure(f"{title} expansion", round(expansion, 3), "x", "masked", round(other, 3), most_expansion, met))
    return found


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    found: list[Figure] = []
    notes: list[str] = []
    for clients, ring_bits, most in ((10, 32, 3.0), (50, 32, 3.0), (10, 20, 2.0), (50, 20, 2.0)):
        costs = [
            measure(kind(), clients=clients, ring_bits=ring_bits, repeats=args.repeats)
            for kind in (EncryptedSum, Masked)
        ]
        title = f"he n={clients} d={LENGTH} ring={ring_bits}"
        found += figures(title, costs[0], costs[1], most)
        notes.append(
            f"n={clients}: set-up {costs[0].set_up_ms:.1f} ms and {costs[0].set_up_down_kb:.0f} kB down per client"
        )
    print("medians, [fastest to slowest repeat]\n")
    show(found)
    print("\nonce per cohort, " + "; ".join(dict.fromkeys(notes)))
    write(found, args.json)


if __name__ == "__main__":
    main()
