"""What a bound on every client's norm costs a sum of two-server shares: bytes and milliseconds, beside no bound.

    python bench/norm.py [--repeats 5] [--json FILE]

Ten clients, 100,000 and 1,000,000 values, a bound of 22 bits and vectors of exactly that norm. Every party runs in this
process, one after the other on one core; seconds are those that the driver's transcript holds for each party. Bytes are
message bodies: a client's up, the main server's to the helper. Every sum is checked against the plain one. The peer of
each figure is the same sum without a bound, in the same run. `numpy` figures are those without the compiled kernels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from figures import Figure, at_most, command_line, show, write

from confide.crypto import ring, ring_numpy
from confide.crypto.random import SystemRandomness, public_stream
from confide.ideal import Aggregator, Cohort, Session
from confide.secagg import NormBound, Shares
from confide.wire import MemoryStore, run

CLIENTS, NORM = 10, 2**22 - 1
BOUND = NormBound(NORM)
#: Bytes may grow by this share, at 100,000 values; what the check was planned to cost at most.
LARGEST_SHARE = 0.04


@dataclass(frozen=True)
class Cost:
    """Figures of each repeat: milliseconds of the median client and of both servers, kB sent."""

    client_ms: Sequence[float]
    server_ms: Sequence[float]
    helper_ms: Sequence[float]
    client_kb: Sequence[float]
    between_kb: Sequence[float]


def vectors_of(names: Sequence[str], length: int) -> dict[str, np.ndarray]:
    """Return directions that are uniform, scaled to the largest integer norm within the bound."""
    draw, found = public_stream(1, "bench"), {}
    for name in names:
        direction = draw.normal(size=length)
        found[name] = np.trunc(direction * (NORM / np.linalg.norm(direction))).astype(np.int64)
    return found


def measure(aggregator: Aggregator, length: int, repeats: int) -> Cost:
    """Return the cost of one sum, after a sum that warms everything up."""
    names = tuple(f"hospital-{index:02d}" for index in range(CLIENTS))
    cohort, rng = Cohort(names, CLIENTS // 2), SystemRandomness()
    roles = cohort.parties(aggregator.roles)
    stores = {name: MemoryStore() for name in roles}
    run({me: aggregator.setup(role, me, cohort, stores[me], rng) for me, role in roles.items()}, stores=stores)
    vectors = vectors_of(names, length)
    expected = aggregator.ideal(vectors)
    costs: list[tuple[float, ...]] = []
    for number in range(repeats + 1):
        session = Session("bench", number, cohort, length, NORM)
        parties, building = {}, {}
        for me, role in roles.items():  # a client checks its own norm when its party is built
            begin = time.perf_counter()
            parties[me] = aggregator.party(role, me, session, vectors.get(me), stores[me], rng)
            building[me] = time.perf_counter() - begin
        done = run(parties, stores=stores, keep_bodies=False)
        sums = done.output("server")
        if not np.array_equal(sums.values, expected.values) or sums.members != expected.members:
            raise SystemExit("the sum is wrong")
        costs.append(
            (
                1e3 * statistics.median(building[name] + done.seconds(name) for name in names),
                1e3 * (building["server"] + done.seconds("server")),
                1e3 * (building["helper"] + done.seconds("helper")),
                statistics.median(done.bytes_sent(name) for name in names) / 1e3,
                done.bytes_sent("server") / 1e3,
            )
        )
    return Cost(*zip(*costs[1:], strict=True))


def figures(length: int, bounded: Cost, plain: Cost) -> list[Figure]:
    """Return a figure for each cost, beside the same sum without a bound."""
    found: list[Figure] = []
    for cost in ("client_ms", "server_ms", "helper_ms", "client_kb", "between_kb"):
        who, _, unit = cost.rpartition("_")
        with_bound, without = (statistics.median(getattr(one, cost)) for one in (bounded, plain))
        bar = round(without * (1 + LARGEST_SHARE), 2) if cost == "client_kb" else None
        found.append(
            Figure(
                figure=f"shares with norm_bound, n={CLIENTS} d={length} {who}",
                value=round(with_bound, 2),
                unit={"ms": "ms", "kb": "kB"}[unit],
                peer="shares without a bound",
                peer_value=round(without, 2),
                bar=bar,
                met=at_most(with_bound, bar),
                note=f"{with_bound / without - 1:+.1%}",
            )
        )
    return found


def projection_ms(engine: object, length: int, dtype: type) -> float:
    """Return what one projection of one share costs on `engine`, the fastest of three."""
    from confide.crypto.projection import project

    before, words = ring._engine, np.arange(length, dtype=dtype)
    ring._engine = engine  # pyright: ignore[reportAttributeAccessIssue]
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        project(bytes(32), [words], BOUND.rows)
        times.append(1e3 * (time.perf_counter() - begin))
    ring._engine = before
    return min(times)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    found: list[Figure] = []
    for length in (100_000, 1_000_000):
        bounded = measure(Shares(norm_bound=BOUND), length, args.repeats)
        found += figures(length, bounded, measure(Shares(), length, args.repeats))
    for dtype in (np.uint32, np.uint64):
        ours, numpy = projection_ms(ring._engine, 1_000_000, dtype), projection_ms(ring_numpy, 1_000_000, dtype)
        name = f"projection of 1,000,000 {np.dtype(dtype)}"
        found.append(Figure(name, round(ours, 2), "ms", "numpy", round(numpy, 2)))
    print(f"ring arithmetic: {ring.ENGINE}; medians; n={CLIENTS}, norm_bound={NORM}, rows={BOUND.rows}\n")
    show(found)
    print(
        f"\na vector of {BOUND.ratio_percent / 100:g} bounds passes with 2^-{BOUND.soundness_bits:.1f} for each "
        f"draw of projections, an honest one draws again with 2^-{BOUND.completeness_bits:.1f}"
    )
    write(found, args.json)


if __name__ == "__main__":
    main()
