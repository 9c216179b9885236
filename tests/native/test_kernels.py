"""The innermost loops of every instruction set: against products of big integers, and under the sanitizers."""

from __future__ import annotations

import os
import platform
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from confide.he.seal import ntt_primes

native = pytest.importorskip("confide._native", reason="installed without a C++ compiler").ckks

NATIVE = Path(__file__).parents[2] / "native" / "ckks"
PATHS = [
    pytest.param(name, marks=pytest.mark.skipif(not native.runs_here(name), reason="not on this machine"))
    for name in ("portable", "avx2", "ifma")
]
DEGREE = 1024
#: The options that CMakeLists.txt gives to the files of one instruction set.
OPTIONS = {
    "ifma": "-mavx512f -mavx512dq -mavx512vl -mavx512ifma".split(),
    "avx2": "-mavx2 -mfma -ffp-contract=off".split(),
}


def prime_of(bits: int, degree: int = DEGREE) -> int:
    (prime,) = ntt_primes(degree, (bits,))
    return prime


def words(stream: random.Random, prime: int, count: int, kind: str) -> list[int]:
    """Return residues: uniform, or only the two ends of their range."""
    if kind == "ends":
        return [stream.choice((0, prime - 1)) for _ in range(count)]
    return [stream.randrange(prime) for _ in range(count)]


def negacyclic(a: list[int], b: list[int], prime: int) -> list[int]:
    """Multiply modulo X^N + 1 by one product of two big integers: coefficients lie 192 bits apart."""
    one, other = (sum(word << (192 * i) for i, word in enumerate(row)) for row in (a, b))
    digits = (one * other).to_bytes(24 * 2 * len(a), "little")
    product = [int.from_bytes(digits[24 * i : 24 * (i + 1)], "little") for i in range(2 * len(a))]
    return [(product[i] - product[i + len(a)]) % prime for i in range(len(a))]


def rows(*values: list[int]) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


@pytest.mark.parametrize("path", PATHS)
class TestAgainstBigIntegers:
    @pytest.mark.parametrize("kind", ["uniform", "ends"])
    @pytest.mark.parametrize("bits", [20, 36, 46, 47, 48, 49, 50, 51, 60])
    def test_products_of_transforms(self, path, bits, kind):
        prime, stream = prime_of(bits), random.Random(bits)
        ring = native.Ring(prime, DEGREE, path)
        assert ring.kernels == (path if bits <= 50 else "portable")
        a, b = words(stream, prime, DEGREE, kind), words(stream, prime, DEGREE, kind)
        values, out = rows(a, b), rows([0] * DEGREE)
        ring.forward(values)
        ring.dot(values[:1], values[1:], out)
        ring.inverse(out)
        assert out[0].tolist() == negacyclic(a, b, prime)

    @pytest.mark.parametrize("add", [False, True])
    @pytest.mark.parametrize("terms", [1, 2, 15, 16, 17, 100, 1024])
    def test_sums_of_products(self, path, terms, add):
        prime, stream = prime_of(50), random.Random(terms)
        ring = native.Ring(prime, DEGREE, path)
        kind = "ends" if terms % 2 else "uniform"
        a, b = (rows(*(words(stream, prime, DEGREE, kind) for _ in range(2))) for _ in range(2))
        start = words(stream, prime, DEGREE, kind)
        out = rows(start)
        picks = [stream.randrange(2) for _ in range(terms)], [stream.randrange(2) for _ in range(terms)]
        ring.dot(np.ascontiguousarray(a[picks[0]]), np.ascontiguousarray(b[picks[1]]), out, add)
        exact = sum(a[i].astype(object) * b[j].astype(object) for i, j in zip(*picks, strict=True))
        expected = (exact + (np.array(start, object) if add else 0)) % prime
        assert out[0].tolist() == expected.tolist()

    def test_refuses_other_shapes(self, path):
        prime = prime_of(40)
        ring = native.Ring(prime, DEGREE, path)
        right, short, two = rows([0] * DEGREE), rows([0] * (DEGREE - 1)), rows([0] * DEGREE, [0] * DEGREE)
        for call in (ring.forward, ring.inverse):
            with pytest.raises(ValueError, match="Expected"):
                call(short)
        for a, b, out in [(short, right, right), (right, short, right), (right, right, two), (two, right, right)]:
            with pytest.raises(ValueError, match="Expected"):
                ring.dot(a, b, out)
        with pytest.raises(ValueError, match="Expected"):
            ring.dot(two[:0], two[:0], right)
        composite = 8 * DEGREE**2 + 1  # 1 modulo 2N, but 3 times a number: there is no root to find
        for wrong, degree in [(prime, 3 * DEGREE), (prime, DEGREE // 2), (prime + 2, DEGREE), (composite, DEGREE)]:
            with pytest.raises(ValueError, match="Expected"):
                native.Ring(wrong, degree, path)


@pytest.mark.parametrize("degree", [1 << log for log in range(10, 17)])
@pytest.mark.parametrize("bits", [36, 48, 50])
def test_every_path_returns_the_same_bits(degree, bits):
    prime = prime_of(bits, degree)
    start = np.random.default_rng(degree + bits).integers(0, prime, (2, degree), np.uint64)
    found = []
    for path in ("portable", "avx2", "ifma"):
        if native.runs_here(path):
            ring, forward, inverse = native.Ring(prime, degree, path), start.copy(), start.copy()
            ring.forward(forward)
            ring.inverse(inverse)
            found.append((forward.tobytes(), inverse.tobytes()))
            ring.inverse(forward)
            assert (forward == start).all()
    assert len(set(found)) == 1


def compiled(folder: Path) -> Path:
    """Compile native/ckks/kernels_test.cpp with every access, shift and overflow checked."""
    flags = "-std=c++17 -g1 -O1 -Wall -Wextra -Wpedantic -Wconversion -Werror".split()
    flags += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]  # GCC's own header of AVX-512
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = sorted(NATIVE.glob("kernels*.cpp"))
    for source in sources:
        names = OPTIONS if platform.machine() in ("x86_64", "AMD64") else {}
        extra = next((options for name, options in names.items() if name in source.name), [])
        out = ["-c", str(source), "-o", str(folder / f"{source.stem}.o")]
        subprocess.run(["g++", *flags, *sanitize, *extra, *out], check=True)
    program = folder / "kernels_test"
    objects = [str(folder / f"{source.stem}.o") for source in sources]
    subprocess.run(["g++", *sanitize, *objects, "-o", str(program)], check=True)
    return program


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ on this machine")
def test_kernels_under_the_sanitizers(tmp_path):
    """All sizes of ring and prime against 128-bit division; a spoiled word is found; the path can be named."""
    program = compiled(tmp_path)

    def run(mode: str, path: str = "") -> tuple[int, str]:
        environment = os.environ | {"CONFIDE_NATIVE_PATH": path}
        done = subprocess.run([str(program), mode], capture_output=True, text=True, check=False, env=environment)
        return done.returncode, done.stdout.strip() or done.stderr

    assert run("3") == (0, "the kernels match")
    code, text = run("control")
    assert code == 1
    assert "differs" in text
    best = next(name for name in ("ifma", "avx2", "portable") if native.runs_here(name))
    assert run("path") == (0, best)
    assert run("path", "portable") == (0, "portable")
    code, text = run("path", "sse2")
    assert code == 1
    assert text == "Expected CONFIDE_NATIVE_PATH to be portable, avx2 or ifma"
