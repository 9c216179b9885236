"""Rotations of the native evaluator beside Microsoft SEAL's, one thread and two, the same keys and ciphertexts.

Used by bench/native.py. For each set of parameters: one rotation alone; one of 16 that share a decomposition, which
counts for a sixteenth of itself; the same in extended form, as sums of products take it, which divide once. Each
rotation has a key of its own, so keys come from memory as they do in a plan. What a hoisted rotation cannot be faster
than: the bytes of its key over the speed at which one core here reads memory.

One thread: the least of many runs in processor time; two: by the clock. SEAL and native take turns of some runs each.
Other programs only ever make a run longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from figures import Figure, at_most

from confide import _native
from confide.he.packed import unpack
from confide.he.parameters import Parameters
from confide.he.seal import Context, Evaluation, Needs, ntt_primes

STEPS = tuple(range(1, 17))


@dataclass(frozen=True)
class Rotations:
    """One set of parameters, and the bars in milliseconds: alone, hoisted."""

    degree: int
    bits: tuple[int, ...]
    alone: float
    hoisted: float | None = None


CASES: tuple[Rotations, ...] = (
    Rotations(8192, (50, 50, 50, 50), 0.35, 0.12),
    Rotations(16384, (48,) * 8 + (50,), 2.5),
)


def least(
    runs: Sequence[Callable[[], object]], seconds: float, clock: Callable[[], float] = time.thread_time
) -> list[float]:
    """Return the least milliseconds of each run, taken in turns for so long."""
    found = [float("inf")] * len(runs)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for place, run in enumerate(runs):
            for _ in range(len(STEPS)):
                start = clock()
                run()
                found[place] = min(found[place], 1e3 * (clock() - start))
    return found


def memory_speed(seconds: float) -> float:
    """Return how many GB one core reads from memory in a second."""
    block = np.ones(1 << 25, np.int64)  # 256 MiB, more than any cache
    (milliseconds,) = least([block.sum], seconds)
    return block.nbytes / milliseconds / 1e6


def figures_of(case: Rotations, path: str, seconds: float, speed: float) -> list[Figure]:
    """Return the figures of one set of parameters, by the kernels called `path`; "" is the machine's best."""
    primes = ntt_primes(case.degree, case.bits)
    context = Context(Parameters(scheme="ckks", degree=case.degree, primes=primes))
    needs = Needs(steps=STEPS)
    _, public = context.generate(bytes(16), needs)
    peer = Evaluation(context, public, needs)
    limbs = len(primes) - 1
    engine = _native.ckks.Context(case.degree, primes[:-1], primes[-1], path)
    keys = _native.ckks.KeySet(engine)
    elements = sorted(2 * context.galois_index(step) + 1 for step in STEPS)
    parts = unpack(public.rotation, (len(STEPS), limbs, 2, limbs + 1, case.degree), primes)
    for element, residues in zip(elements, parts, strict=True):
        keys.add_galois(element, residues, limbs)
    stream = np.random.default_rng(0)
    rows = np.stack([stream.integers(0, prime, (2, case.degree), np.uint64) for prime in primes[:-1]], axis=1)
    cipher = context.from_residues(rows, context.form(limbs=limbs, ntt=True, scale=1.0))

    rows = engine.drop(rows, limbs)  # an aligned copy: others are copied at each call
    digits, following = engine.decompose(rows), cycle(elements)

    def each(operation: Callable[..., object], *inputs: object) -> Callable[[], object]:
        return lambda: operation(keys, rows, *inputs, next(following))

    pool = _native.ckks.Pool(2)
    runs = [
        lambda: peer.rotate(cipher, 1),
        lambda: engine.decompose(rows),
        each(engine.rotate),
        each(engine.rotate_hoisted, digits),
        each(engine.rotate_extended, digits),
    ]
    seal, decomposition, one, many, extended = least(runs, seconds)
    shared = [
        lambda: engine.rotate(keys, rows, next(following), pool),
        lambda: engine.rotate_hoisted(keys, rows, digits, next(following), pool),
    ]
    both, both_many = least(shared, seconds, time.perf_counter)
    share = decomposition / len(STEPS)
    size = keys.bytes / len(STEPS) / 1e6
    note = f"{engine.kernels}; key {size:.2f} MB: {size / speed:.3f} ms from memory at {speed:.1f} GB/s"

    def figure(name: str, value: float, bar: float | None) -> Figure:
        whole = f"rotation, N={case.degree}, {len(primes)} primes, {name}"
        share = f"{note}, {size / speed / value:.0%} of the time"
        return Figure(whole, value, "ms", "SEAL", seal, bar, at_most(value, bar), share)

    return [
        figure("alone", one, case.alone),
        figure("alone, 2 threads", both, case.alone),
        figure("hoisted", many + share, case.hoisted),
        figure("hoisted, 2 threads", both_many + share / 2, case.hoisted),
        figure("hoisted, division left to the sum", extended + share, case.hoisted),
    ]
