"""The native evaluator beside Microsoft SEAL in the same run, and how far it is from what the machine could do.

    python bench/native.py [--seconds 3] [--only transforms|rotations] [--path ifma|avx2|portable] [--json FILE]

Number-theoretic transforms of one limb (N residues of one prime), each instruction set, forward and back. SEAL's time
is that of `transform_to_ntt` and `transform_from_ntt` on a whole ciphertext, over its rows. Then the rotations of
bench/native_rotations.py, by the best kernels that run here or those of --path.

Two limits stand beside a transform by AVX-512-IFMA. Products: N/2 log2 N butterflies of three 52-bit products each,
over the rate at which one core makes them, measured here by bench/native_rate.cpp (g++). Bytes: a row read and written
once and its factors read once, over the speed of memory, as if nothing were in a cache.

One thread; least of many runs in processor time, SEAL and native in turns: other programs only ever make a run longer.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from figures import Figure, at_most, command_line, machine, show, write
from native_rotations import CASES as ROTATIONS
from native_rotations import figures_of, memory_speed
from numpy.typing import NDArray

from confide import _native
from confide.he.parameters import Parameters
from confide.he.seal import Context, Needs, ntt_primes

Pair = tuple[Callable[[], None], Callable[[], None]]

PATHS = ("ifma", "avx2", "portable")
#: Ring degree; bits of the data primes; the bar in microseconds.
TRANSFORMS = (
    (8192, (46, 46, 46), 12.0),
    (8192, (50, 50, 50), 12.0),
    (16384, (46, 46, 46), None),
    (32768, (46, 46, 46), None),
)


def product_rate() -> float | None:
    """Return how many 52-bit products one core makes in a second, eight to an instruction; None without the means."""
    if not shutil.which("g++") or not _native.ckks.runs_here("ifma"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "rate"
        source = Path(__file__).with_name("native_rate.cpp")
        subprocess.run(["g++", "-O2", "-mavx512f", "-mavx512ifma", str(source), "-o", str(program)], check=True)
        done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    return 8 * float(done.stdout.split()[0])


def both_ways(limbs: Sequence[tuple[_native.ckks.Ring, NDArray[np.uint64]]]) -> Pair:
    """Return what transforms all limbs in place, back and forth."""

    def inverse() -> None:
        for ring, words in limbs:
            ring.inverse(words)

    def forward() -> None:
        for ring, words in limbs:
            ring.forward(words)

    return inverse, forward


def least_of(pairs: Sequence[Pair], seconds: float) -> list[list[float]]:
    """Return the least seconds of both runs of each pair, which are run in turns: one undoes the other."""
    found = [[float("inf")] * 2 for _ in pairs]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for best, pair in zip(found, pairs, strict=True):
            for way in (0, 1) * 16:
                start = time.thread_time()
                pair[way]()
                best[way] = min(best[way], time.thread_time() - start)
    return found


def transforms(
    degree: int, bits: tuple[int, ...], bar: float | None, seconds: float, rate: float | None, speed: float
) -> list[Figure]:
    """Return the figures of one ring: each path both ways, in microseconds a limb."""
    primes = ntt_primes(degree, (*bits, max(bits)))
    context = Context(Parameters(scheme="ckks", degree=degree, primes=primes))
    secret, _ = context.generate(bytes(16), Needs())
    cipher = secret.encrypt(context.encode(np.ones(1), limbs=len(bits), scale=2.0**30))
    rows = 2 * len(bits)
    stream = np.random.default_rng(0)
    paths = [path for path in PATHS if _native.ckks.runs_here(path)]
    pairs: list[Pair] = [(lambda: context.from_ntt(cipher), lambda: context.to_ntt(cipher))]
    for path in paths:
        rings = [_native.ckks.Ring(prime, degree, path) for prime in primes[:-1]]
        words = [stream.integers(0, prime, (2, degree), np.uint64) for prime in primes[:-1]]
        pairs.append(both_ways(list(zip(rings, words, strict=True))))
    spent = [1e6 * value / rows for pair in least_of(pairs, seconds) for value in pair]
    found: list[Figure] = []
    for place, path in enumerate(paths):
        for way, name in enumerate(("inverse", "forward")):
            value, theirs = spent[2 + 2 * place + way], spent[way]
            note = limits(degree, value, rate, speed) if path == "ifma" else ""
            title = f"NTT {name}, N={degree}, {bits[0]}-bit primes, {path}, per limb"
            aim = bar if place == 0 else None
            found.append(Figure(title, value, "us", "SEAL", theirs, aim, at_most(value, aim), note))
    return found


def limits(degree: int, value: float, rate: float | None, speed: float) -> str:
    """Say how near a transform of `value` microseconds is to its limits."""
    size = 8 * degree * 2 + 16 * degree
    from_memory = 1e-3 * size / speed
    text = f"{size / 1e3:.0f} kB at {speed:.1f} GB/s: {from_memory:.1f} us"
    if rate is None:
        return text
    products = 3 * degree // 2 * (degree.bit_length() - 1)
    limit = 1e6 * products / rate
    return f"{products} products at {rate / 1e9:.1f} G/s: {limit:.1f} us, {limit / value:.0%} of the time; {text}"


def figures(seconds: float, only: str | None, path: str) -> list[Figure]:
    """Return the figures of one part or of both."""
    speed, rate = memory_speed(seconds / 3), product_rate()
    found: list[Figure] = []
    if only != "rotations":
        found += [figure for case in TRANSFORMS for figure in transforms(*case, seconds, rate, speed)]
    if only != "transforms":
        found += [figure for case in ROTATIONS for figure in figures_of(case, path, seconds, speed)]
    return found


def main() -> None:
    """Print the table, and write the figures if asked."""
    parser = command_line(__doc__)
    parser.add_argument("--seconds", type=float, default=3, help="for each set of figures")
    parser.add_argument("--only", choices=("transforms", "rotations"))
    parser.add_argument("--path", default="", choices=PATHS, help="kernels of the rotations")
    options = parser.parse_args()
    found = figures(options.seconds, options.only, options.path)
    print(machine())
    show(found, digits=3)
    write(found, options.json)


if __name__ == "__main__":
    main()
