"""The kernels of `confide._native` and their numpy twins, against big integers; the seam that checks what they get."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given
from hypothesis import strategies as st

from confide.crypto import projection, ring, ring_numpy
from confide.errors import ProtocolError, UsageError

ROOT = Path(__file__).parents[1]

try:
    from confide import _native
except ImportError:
    _native = None

ENGINES = [
    ring_numpy,
    pytest.param(_native, marks=pytest.mark.skipif(_native is None, reason="installed without a C++ compiler")),
]


@pytest.fixture(params=ENGINES, ids=["numpy", "native"])
def engine(request, monkeypatch) -> ModuleType:
    """Run the seam on one engine."""
    monkeypatch.setattr(ring, "_engine", request.param)
    return request.param


@st.composite
def rings(draw) -> tuple[int, type, list[int]]:
    """Draw bits, a dtype at least as wide, and words that fill the whole dtype."""
    bits = draw(st.integers(1, 64))
    dtype = np.uint64 if bits > 32 else draw(st.sampled_from([np.uint32, np.uint64]))
    edges = st.sampled_from([0, 1, (1 << bits) - 1, np.iinfo(dtype).max])
    words = draw(st.lists(edges | st.integers(0, int(np.iinfo(dtype).max)), max_size=70))
    return bits, dtype, words


def packed_by_big_integer(words: list[int], bits: int) -> bytes:
    """Pack by arithmetic on one integer: the definition, and nothing of ours."""
    total = sum((word % (1 << bits)) << (bits * place) for place, word in enumerate(words))
    return total.to_bytes(-(-len(words) * bits // 8), "little")


class TestAgainstBigIntegers:
    @pytest.mark.parametrize("engine", ENGINES, ids=["numpy", "native"])
    @given(drawn=rings())
    def test_pack(self, engine, drawn):
        bits, dtype, words = drawn
        assert engine.pack(np.array(words, dtype), bits) == packed_by_big_integer(words, bits)

    @pytest.mark.parametrize("engine", ENGINES, ids=["numpy", "native"])
    @given(drawn=rings())
    def test_unpack(self, engine, drawn):
        bits, _, words = drawn
        back = engine.unpack(packed_by_big_integer(words, bits), bits, len(words))
        assert back.dtype == ring.word_dtype(bits)
        assert back.flags.writeable
        assert back.tolist() == [word % (1 << bits) for word in words]

    @pytest.mark.parametrize("engine", ENGINES, ids=["numpy", "native"])
    @given(drawn=rings(), negate=st.booleans())
    def test_add_words(self, engine, drawn, negate):
        _, dtype, words = drawn
        acc, other = np.array(words, dtype), np.array(words[::-1], dtype)
        engine.add_words(acc, other, negate)
        sign = -1 if negate else 1
        width = 1 << (8 * np.dtype(dtype).itemsize)
        assert acc.tolist() == [(a + sign * b) % width for a, b in zip(words, words[::-1], strict=True)]


@st.composite
def projections(draw) -> tuple[type, list[int], list[int], list[int]]:
    """Draw a dtype, sums to start from (rows by sixteens), words by eights, and the bytes of their choices."""
    dtype = draw(st.sampled_from([np.uint32, np.uint64]))
    largest = int(np.iinfo(dtype).max)
    numbers = st.sampled_from([0, 1, largest, largest // 2 + 1]) | st.integers(0, largest)
    rows, groups = 16 * draw(st.integers(0, 3)), draw(st.integers(0, 4))
    acc = draw(st.lists(numbers, min_size=rows, max_size=rows))
    words = draw(st.lists(numbers, min_size=8 * groups, max_size=8 * groups))
    octets = st.sampled_from([0, 255, 0x0F, 0x80]) | st.integers(0, 255)
    choices = draw(st.lists(octets, min_size=2 * rows * groups, max_size=2 * rows * groups))
    return dtype, acc, words, choices


class TestProjectionAgainstBigIntegers:
    @pytest.mark.parametrize("engine", ENGINES, ids=["numpy", "native"])
    @given(drawn=projections())
    def test_project(self, engine, drawn):
        dtype, start, words, choices = drawn
        acc = np.array(start, dtype)
        engine.project(acc, np.array(words, dtype), np.array(choices, np.uint8))
        rows, width = len(start), 1 << (8 * np.dtype(dtype).itemsize)
        expected = list(start)
        for place, word in enumerate(words):
            block, bit = choices[place // 8 * 2 * rows :], place % 8
            for row in range(rows):
                expected[row] += ((block[row] >> bit & 1) + (block[rows + row] >> bit & 1) - 1) * word
        assert acc.tolist() == [value % width for value in expected]

    @pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
    @pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 4000])
    def test_a_whole_vector_from_a_seed(self, engine, dtype, count):
        """The oracle reads the key stream by itself, bit by bit, across blocks and beyond the end of the vector."""
        rows, seed = 320, bytes(range(32))
        vector = np.arange(count, dtype=dtype) * dtype(0x9E3779B1)
        groups = -(-count // 8)
        stream = Cipher(AES256(seed), CTR(bytes(16))).encryptor().update(bytes(2 * rows * groups))
        bits = np.unpackbits(np.frombuffer(stream, np.uint8).reshape(groups, 2, rows, 1), axis=3, bitorder="little")
        entries = bits.sum(axis=1, dtype=np.int64) - 1  # group, row, place
        flat = entries.transpose(1, 0, 2).reshape(rows, 8 * groups)[:, :count].astype(dtype)
        (got,) = projection.project(seed, [vector], rows)
        assert got.tolist() == (flat * vector).sum(axis=1, dtype=dtype).tolist()
        if count == 4000:
            shares = np.full(200_000 // rows, 3, dtype), np.arange(200_000 // rows, dtype=dtype)
            both = projection.project(seed, shares, rows)
            assert (both[0] + both[1]).tolist() == projection.project(seed, [shares[0] + shares[1]], rows)[0].tolist()
            counts = [int((flat.astype(np.int64) % (1 << 32) == value).sum()) for value in ((1 << 32) - 1, 0, 1)]
            deviation = 6 * (rows * count / 4) ** 0.5  # six standard deviations: once in 5e8
            assert all(
                abs(found - share * rows * count) < deviation
                for found, share in zip(counts, (0.25, 0.5, 0.25), strict=True)
            )


class TestSeam:
    @pytest.mark.parametrize(
        ("acc", "words", "choices"),
        [
            (np.zeros(15, np.uint32), np.zeros(8, np.uint32), np.zeros(30, np.uint8)),
            (np.zeros(16, np.uint32), np.zeros(7, np.uint32), np.zeros(32, np.uint8)),
            (np.zeros(16, np.uint32), np.zeros(8, np.uint64), np.zeros(32, np.uint8)),
            (np.zeros(16, np.uint32), np.zeros(8, np.uint32), np.zeros(31, np.uint8)),
            (np.zeros(16, np.uint32), np.zeros(8, np.uint32), np.zeros(32, np.int8)),
            (np.frombuffer(bytes(64), np.uint32), np.zeros(8, np.uint32), np.zeros(32, np.uint8)),
        ],
        ids=["rows", "words", "width", "choices", "signed", "read-only"],
    )
    def test_what_cannot_be_projected_is_refused(self, engine, acc, words, choices):
        with pytest.raises(UsageError, match="Expected"):
            ring.project(acc, words, choices)
        with pytest.raises(UsageError, match="apart"):
            ring.project(same := np.zeros(16, np.uint32), same[:8], np.zeros(32, np.uint8))

    def test_uses_the_compiled_kernels_where_they_are(self):
        assert ring.ENGINE == ("native" if _native else "numpy")

    @pytest.mark.parametrize(("bits", "dtype"), [(1, np.uint32), (32, np.uint32), (33, np.uint64), (64, np.uint64)])
    def test_width_of_a_word(self, bits, dtype):
        assert ring.word_dtype(bits) == dtype

    @pytest.mark.parametrize("bits", [0, -1, 65])
    def test_bits_out_of_range(self, engine, bits):
        with pytest.raises(UsageError, match=f"bits={bits}"):
            ring.word_dtype(bits)
        with pytest.raises(UsageError, match="bits="):
            ring.pack(np.zeros(1, np.uint64), bits)
        with pytest.raises(UsageError, match="bits="):
            ring.unpack(b"", bits, 0)

    def test_more_bits_than_a_word_has(self, engine):
        with pytest.raises(UsageError, match="bits=33"):
            ring.pack(np.zeros(1, np.uint32), 33)

    @pytest.mark.parametrize("words", [np.zeros((2, 2), np.uint32), np.zeros(2, np.int64), np.zeros(2, ">u4")])
    def test_only_vectors_of_words_are_packed(self, engine, words):
        with pytest.raises(UsageError, match="vector of uint32 or uint64"):
            ring.pack(words, 8)

    def test_slices_are_packed_like_copies(self, engine):
        words = np.arange(20, dtype=np.uint32)
        assert ring.pack(words[::2], 7) == ring.pack(words[::2].copy(), 7)

    @pytest.mark.parametrize(("bits", "count"), [(5, 3), (8, 4), (33, 1)])
    def test_another_length_is_refused(self, engine, bits, count):
        good = ring.pack(np.zeros(count, np.uint64), bits)
        for body in (good[:-1], good + b"\0", b""):
            with pytest.raises(ProtocolError, match="packed words"):
                ring.unpack(body, bits, count)

    def test_ones_behind_the_last_word_are_refused(self, engine):
        assert ring.unpack(b"\x1f", 5, 1).tolist() == [31]
        for bit in (5, 6, 7):
            with pytest.raises(ProtocolError):
                ring.unpack(bytes([1 << bit]), 5, 1)

    def test_negative_count(self, engine):
        with pytest.raises(UsageError, match="count=-1"):
            ring.unpack(b"", 8, -1)

    def test_a_count_that_no_memory_holds(self, engine):
        with pytest.raises(ProtocolError):
            ring.unpack(b"1234", 64, 2**61)

    @pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
    def test_a_key_stream_is_read_little_endian(self, engine, dtype):
        acc = np.ones(3, dtype)
        stream = bytes(range(3 * acc.itemsize))
        ring.add_words(acc, stream)
        size = acc.itemsize
        assert acc.tolist() == [1 + int.from_bytes(stream[size * i : size * (i + 1)], "little") for i in range(3)]
        ring.add_words(acc, stream, negate=True)
        assert acc.tolist() == [1, 1, 1]

    def test_overlapping_vectors_add_as_they_were(self, engine):
        block = np.ones(6, np.uint32)
        ring.add_words(block[1:], block[:-1])
        assert block.tolist() == [1, 2, 2, 2, 2, 2]
        ring.add_words(block, block)
        assert block.tolist() == [2, 4, 4, 4, 4, 4]

    @pytest.mark.parametrize(
        ("acc", "words"),
        [
            (np.zeros(3, np.uint32), np.zeros(4, np.uint32)),
            (np.zeros(3, np.uint32), np.zeros(3, np.uint64)),
            (np.zeros(3, np.uint32), bytes(11)),
            (np.zeros(6, np.uint32)[::2], np.zeros(3, np.uint32)),
            (np.zeros((1, 3), np.uint32), np.zeros((1, 3), np.uint32)),
            (np.zeros(3, np.int64), np.zeros(3, np.int64)),
            (np.frombuffer(bytes(12), np.uint32), np.zeros(3, np.uint32)),
        ],
        ids=["length", "width", "bytes", "gaps", "shape", "signed", "read-only"],
    )
    def test_what_cannot_be_added_is_refused(self, engine, acc, words):
        with pytest.raises(UsageError, match="words"):
            ring.add_words(acc, words)


@pytest.mark.skipif(_native is None, reason="installed without a C++ compiler")
class TestNativeTrustsNobody:
    """The seam checks first; the compiled code checks again, since a slip there would reach memory."""

    @pytest.mark.parametrize("bits", [0, 33, 65])
    def test_bits(self, bits):
        with pytest.raises(ValueError, match="bits"):
            _native.pack(np.zeros(1, np.uint32), bits)

    @pytest.mark.parametrize("count", [0, 2, 2**61, 2**64 - 1])
    def test_count(self, count):
        with pytest.raises(ValueError, match="packed words"):
            _native.unpack(b"1234", 32, count)

    @pytest.mark.parametrize(
        ("rows", "words", "choices"), [(15, 8, 30), (16, 7, 32), (16, 8, 31), (16, 8, 33), (0, 8, 1)]
    )
    def test_shapes_of_a_projection(self, rows, words, choices):
        with pytest.raises(ValueError, match="Expected rows"):
            _native.project(np.zeros(rows, np.uint32), np.zeros(words, np.uint32), np.zeros(choices, np.uint8))

    def test_lengths(self):
        with pytest.raises(ValueError, match="one length"):
            _native.add_words(np.zeros(2, np.uint32), np.zeros(3, np.uint32), False)

    @pytest.mark.parametrize(
        "acc", [np.zeros(4, np.uint32)[::2], np.zeros((2, 1), np.uint32), np.frombuffer(bytes(8), np.uint32), [0, 0]]
    )
    def test_layout(self, acc):
        with pytest.raises(TypeError):
            _native.add_words(acc, np.zeros(2, np.uint32), False)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ on this machine")
@pytest.mark.parametrize(
    ("name", "kernels"), [("ring_test", ("projection", "ring")), ("histogram_test", ("histogram",))]
)
def test_kernels_under_the_sanitizers(tmp_path, name, kernels):
    """Runs native/*_test.cpp, oracles of their own, with every access and shift checked."""
    program = tmp_path / name
    flags = "-std=c++17 -g -O1 -pthread -Wall -Wextra -Wpedantic -Wconversion -Werror -DCONFIDE_SANITIZE".split()
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [str(ROOT / "native" / f"{one}.cpp") for one in (*kernels, name)]
    subprocess.run(["g++", *flags, *sanitize, *sources, "-o", str(program)], check=True)
    done = subprocess.run([str(program), "50"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "the kernels match\n"), done.stderr


#: A linear model, a network and trees, encrypted; prints the largest error and the warnings, each of which shows once.
PREDICTS = """
import sys
import warnings
import numpy as np
from confide.he import Homomorphic
from confide.model.graph import Graph
from he.oracle import corners, forest, logistic, mlp, ready

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("default")
    for graph in (logistic(1, 30), mlp(2, 8, 4, 1), Graph((forest(3, 2, 2, 2, steps=8),))):
        pair, x = ready(Homomorphic(tree_bins=8, engine=sys.argv[1]), graph), corners(2, graph.features)
        error = np.abs(pair.predict(x).output("client") - graph.apply(x)).max(axis=0)
        assert (error <= pair.server.error_bound).all()
print([warning.category.__name__ for warning in said])
"""


@pytest.fixture(scope="module")
def without_a_compiler(tmp_path_factory) -> Path:
    """The interpreter of an environment where confide was installed and nothing could be compiled."""
    folder = tmp_path_factory.mktemp("numpy")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    broken = os.environ | {"CC": "/bin/false", "CXX": "/bin/false", "SKBUILD_BUILD_DIR": str(folder / "build")}
    pip = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(ROOT)]
    subprocess.run([*pip, "hypothesis", "pytest"], check=True, env=broken, capture_output=True)
    return python


def passed(python: Path, folder: Path, *arguments: str) -> None:
    options = [
        "-q",
        "-o",
        "markers=slow",
        "-o",
        f"pythonpath={ROOT / 'tests'}",
        "-p",
        "no:cacheprovider",
        "--noconftest",
    ]
    command = [str(python), "-m", "pytest", *options, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_installs_without_a_compiler(without_a_compiler, tmp_path):
    """A broken compiler costs speed only: the same tests pass on the numpy kernels."""
    script = "import confide.crypto.ring as r; print(r.ENGINE)"
    said = subprocess.run([str(without_a_compiler), "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout == "numpy\n"
    shutil.copy(__file__, tmp_path / "test_native.py")
    passed(without_a_compiler, tmp_path, "-k", "Big or Seam", str(tmp_path))


@pytest.mark.slow
def test_predicts_without_a_compiler(without_a_compiler, tmp_path):
    """Everything encrypted runs on Microsoft SEAL and numpy; whoever loads models is told once that it is slower."""
    for engine, warnings in (("auto", "['NativeUnavailable']\n"), ("seal", "[]\n")):
        done = subprocess.run(
            [str(without_a_compiler), "-c", PREDICTS, engine],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
            cwd=tmp_path,
        )
        assert (done.returncode, done.stdout) == (0, warnings), done.stderr
    files = [str(ROOT / "tests" / "he" / name) for name in ("test_linear.py", "test_packed.py", "test_seal_wire.py")]
    passed(without_a_compiler, tmp_path, *files)
