"""The kernels of computing on shares, each instruction set of this machine, beside numpy and OpenSSL in the same run.

    python bench/mpc_kernels.py [--seconds 2] [--json FILE]

Products mod 2^64: matrices of 384 x 512 by 512 x 512, a layer of 32 channels of 16 x 16 by 3 x 3, also with weights of
32 bits, which a model's are, and one row by 1568 x 64; numpy's own uint64 beside them. The note has the rate of
bench/mpc_rate.cpp (g++): the multiply-adds of whole words that the vector units make with nothing to load, of the
widest instruction set that runs here.
Streams: 8 MB of AES-128 in counter mode; OpenSSL's CTR beside them. Comparison keys of 28 bits: 16,384 of them, made
and evaluated on corrections that come from memory; beside them the numpy twin, whose AES is OpenSSL's.

One thread; least of many runs in processor time, native and peer in turns: other programs only ever make a run longer.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import CTR
from figures import Figure, at_least, at_most, command_line, machine, show, write

from confide import _native
from confide.mpc import dcf, dcf_numpy

native = _native.mpc
PATHS = [path for path in ("avx512", "vaes", "avx2", "portable") if native.runs_here(path)]
PRODUCTS = [path for path in PATHS if path != "vaes"]  # whose products are those of avx2
KEYS, BITS = 16_384, 28
#: Copies of the corrections, together more than caches hold.
COLD = 16
WORDS = 1 << 20
MATRICES = {"matrices 384 x 512 x 512": (384, 512, 512), "one row by 1568 x 64, transposed": (1, 1568, 64)}
#: Billions of multiply-adds in a second, for matrices.
BARS = {"avx512": 30.0, "avx2": 10.0}


def product_rate() -> float | None:
    """Return the billions of multiply-adds in a second that one core makes at most; None without the means."""
    if not shutil.which("g++") or not native.runs_here("avx2"):
        return None
    options = ["-mavx512f", "-mavx512dq"] if native.runs_here("avx512") else ["-mavx2"]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "rate"
        source = Path(__file__).with_name("mpc_rate.cpp")
        subprocess.run(["g++", "-O2", *options, str(source), "-o", str(program)], check=True)
        done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[0]) / 1e9


def least(runs: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Return the least seconds of each of `runs`, which take turns; each runs at least twice."""
    found = [float("inf")] * len(runs)
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 2 or time.perf_counter() < end:
        rounds += 1
        for place, run in enumerate(runs):
            start = time.thread_time()
            run()
            found[place] = min(found[place], time.thread_time() - start)
    return found


def words(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1 << 64, shape, np.uint64)


def matrices(name: str, shape: tuple[int, int, int], seconds: float, note: str) -> list[Figure]:
    """Return billions of multiply-adds in a second for one product."""
    m, k, n = shape
    a, out = words(1, m, k), words(1, m, n)
    b = words(1, n, k).swapaxes(1, 2) if m == 1 else words(1, k, n)
    runs = [lambda path=path: native.matmul(a, b, out, False, path=path) for path in PRODUCTS]
    *ours, theirs = (m * k * n / spent / 1e9 for spent in least([*runs, lambda: a @ b], seconds))
    bars = [BARS.get(path) if m > 1 else None for path in PRODUCTS]
    return [
        Figure(f"{name}, {path}", value, "G/s", "numpy", theirs, bar, at_least(value, bar), note)
        for path, value, bar in zip(PRODUCTS, ours, bars, strict=True)
    ]


def products(seconds: float) -> list[Figure]:
    """Return billions of multiply-adds in a second."""
    rate = product_rate()
    note = "" if rate is None else f"vector units: {rate:.1f}"
    found = [one for name, shape in MATRICES.items() for one in matrices(name, shape, seconds, note)]
    x, w, out = words(1, 32, 16, 16), words(32, 32, 3, 3), words(1, 32, 16, 16)
    count = 32 * 32 * 9 * 256
    halves = (w.view(np.int64) >> 32).view(np.uint64)
    for kind, weights in (("", w), (", weights of 32 bits", halves)):
        runs = [
            lambda path=path, given=weights: native.convolve(x, given, (1, 1), (1, 1, 1, 1), out, False, path=path)
            for path in PRODUCTS
        ]
        for path, spent in zip(PRODUCTS, least(runs, seconds), strict=True):
            title = f"convolution 32 x 16 x 16 by 32 x 3 x 3{kind}, {path}"
            found.append(Figure(title, count / spent / 1e9, "G/s", note=note))
    return found


def streams(seconds: float) -> list[Figure]:
    """Return gigabytes in a second."""
    key, out, zeros = bytes(16), np.empty(WORDS, np.uint64), bytes(8 * WORDS)
    runs = [lambda path=path: native.stream(key, 1, out, path=path) for path in PATHS]
    *ours, theirs = least([*runs, lambda: Cipher(AES128(key), CTR(bytes(16))).encryptor().update(zeros)], seconds)
    found: list[Figure] = []
    for path, spent in zip(PATHS, ours, strict=True):
        value, bar = 8e-9 * WORDS / spent, 10.0 if path == PATHS[0] else None
        peer = 8e-9 * WORDS / theirs
        found.append(Figure(f"stream of words, {path}", value, "GB/s", "OpenSSL", peer, bar, at_least(value, bar)))
    return found


def comparisons(seconds: float) -> list[Figure]:
    """Return microseconds for a key, and the bytes that a party reads in a second."""
    roots = np.random.default_rng(1).integers(0, 256, (2, KEYS, 16), np.uint8)
    alpha, x, key = words(KEYS), words(KEYS)[::-1].copy(), bytes(range(16))
    size = dcf.correction_bytes(KEYS, BITS)
    body, share = np.empty(size, np.uint8), np.empty(KEYS, np.uint8)
    makers = [
        lambda path=path: native.dcf_generate(roots[0], roots[1], alpha, BITS, key, body, path=path) for path in PATHS
    ]
    made = least([*makers, lambda: dcf_numpy.dcf_generate(roots[0], roots[1], alpha, BITS, key, body)], seconds)
    bodies = cycle([body.copy() for _ in range(COLD)])  # from memory, as the correlations of the next run are
    readers = [
        lambda path=path: native.dcf_evaluate(0, roots[0], next(bodies), x, BITS, key, share, path=path)
        for path in PATHS
    ]
    read = least([*readers, lambda: dcf_numpy.dcf_evaluate(0, roots[0], body, x, BITS, key, share)], seconds)
    found: list[Figure] = []
    for title, spent, aim in (("made for both parties", made, 0.15), ("evaluated by one", read, 0.06)):
        for path, seconds_taken in zip(PATHS, spent, strict=False):
            value, bar = 1e6 * seconds_taken / KEYS, aim if path == PATHS[0] else None
            note = f"{1e-9 * size / seconds_taken:.1f} GB/s of corrections"
            name = f"comparison key of {BITS} bits {title}, {path}"
            peer = 1e6 * spent[-1] / KEYS
            found.append(Figure(name, value, "us", "numpy", peer, bar, at_most(value, bar), note))
    return found


def main() -> None:
    """Print the table, and write the figures if asked."""
    parser = command_line(__doc__)
    parser.add_argument("--seconds", type=float, default=2, help="for each set of figures")
    options = parser.parse_args()
    found = [*products(options.seconds), *streams(options.seconds), *comparisons(options.seconds)]
    print(machine())
    show(found, digits=3)
    write(found, options.json)


if __name__ == "__main__":
    main()
