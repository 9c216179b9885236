"""Sums of ciphertexts times integers: every instruction set and the numpy twin against big integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.he.integer_sums import IntegerMap, groups, weighted_sums
from confide.he.network import linear_map
from confide.he.seal import ntt_primes
from confide.model.graph import Conv, Linear

try:
    from confide import _native
except ImportError:
    _native = None

pytestmark = pytest.mark.skipif(_native is None, reason="installed without a C++ compiler")
PATHS = ("portable", "avx2", "ifma")
DEGREE = 1024
CONVOLUTIONS = {
    "padding": Conv(np.random.default_rng(3).normal(size=(5, 2, 3, 3)), np.zeros(5), 6, 5, (1, 1), (1, 1, 1, 1)),
    "nothing but padding": Conv(np.ones((2, 1, 2, 2)), np.zeros(2), 2, 2, (2, 2), (2, 2, 2, 2)),
}


def parts(found):
    """Return groups as the kernel takes them."""
    return [(one.results.astype(np.uint32), one.inputs.astype(np.uint32), one.weights.copy()) for one in found]


def native(maps, inputs, x, biases, primes, *, threads=1, path=""):
    out = np.full((len(biases), *x.shape[1:]), 0xDEADBEEF, np.uint64)
    added = np.array([[bias % prime for prime in primes] for bias in biases], np.uint64)
    try:
        _native.ckks.IntegerMap(inputs, len(biases), parts(maps)).sums(x, added, list(primes), out, threads, path)
    except ValueError:
        pytest.skip(f"this machine has no {path}")
    return out


def residues(stream, inputs, primes, degree=DEGREE):
    """Return words below their primes, with both ends among them."""
    x = np.stack([stream.integers(0, prime, size=(inputs, 2, degree), dtype=np.uint64) for prime in primes], axis=2)
    for place, prime in enumerate(primes):
        x[:, :, place, :3] = prime - 1, 0, prime - 1
    return x


def exact(maps, x, biases, primes):
    """Return the sums by Python's integers."""
    found = np.zeros((len(biases), *x.shape[1:]), object)
    for one in maps:
        weights = np.array([[int(w) for w in row] for row in one.weights.tolist()], object)
        found[one.results] = np.tensordot(weights, x[one.inputs].astype(object), 1)
    found[:, 0] += np.array(biases, object)[:, None, None]
    return (found % np.array(primes, object)[:, None]).astype(np.uint64)


@pytest.mark.parametrize("path", PATHS)
@given(st.integers(20, 60), st.integers(1, 9), st.integers(1, 20), st.integers(0, 1 << 30))
@settings(max_examples=10, deadline=None)
def test_sums_are_those_of_integers(path, bits, outputs, inputs, seed):
    stream = np.random.default_rng(seed)
    primes = ntt_primes(DEGREE, (bits, 50))
    part = linear_map(Linear(stream.normal(size=(outputs, inputs)) * 2.0 ** stream.uniform(-4, 12), np.zeros(outputs)))
    x = residues(stream, inputs, primes, 16)
    biases = stream.integers(-(1 << 62), 1 << 62, size=outputs).tolist()
    maps = groups(part, 12)
    assert (native(maps, inputs, x, biases, primes, path=path) == exact(maps, x, biases, primes)).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", [30, 49, 50, 51, 60])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_do_not_overflow(path, bits, sign):
    """Every word p - 1, weights that add up to 2^33 - 1, more terms than are reduced at one time."""
    (prime,) = ntt_primes(DEGREE, (bits,))
    many = np.ones(2100)
    many[0] = 2.0**33 - len(many)
    one = np.array([2.0**33 - 1, *np.zeros(2099)])
    part = linear_map(Linear(sign * np.stack([many, one]), np.zeros(2)))
    x = np.full((2100, 2, 1, 16), prime - 1, np.uint64)
    maps = groups(part, 0)
    found = native(maps, 2100, x, [prime - 1, 0], [prime], path=path)
    want = -sign * (2**33 - 1) % prime
    assert (found[:, 1] == want).all()
    assert (found[0, 0] == (want - 1) % prime).all()


@pytest.mark.parametrize("name", sorted(CONVOLUTIONS))
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_groups_and_threads_change_nothing(name, path, threads):
    layer = CONVOLUTIONS[name]
    part, stream = linear_map(layer), np.random.default_rng(4)
    primes = ntt_primes(DEGREE, (50, 40, 60))
    x = residues(stream, layer.inputs, primes)
    biases = stream.integers(-(1 << 40), 1 << 40, size=part.shape.outputs).tolist()
    maps = groups(part, 14)
    found = native(maps, layer.inputs, x, biases, primes, threads=threads, path=path)
    assert (found == weighted_sums(maps, x, biases, primes)).all()
    assert (found == IntegerMap(part, 14, native=False).sums(x, biases, primes)).all()
    assert (found == IntegerMap(part, 14).sums(x, biases, primes)).all()
    assert (found != weighted_sums(maps, x, [bias + 1 for bias in biases], primes)).any()  # the comparison can fail


WHOLE = (np.array([0, 1], np.uint32), np.array([2, 0], np.uint32), np.array([[1.0, -2.0], [3.0, 4.0]]))


def changed(place, value):
    return tuple(value if at == place else one for at, one in enumerate(WHOLE))


@pytest.mark.parametrize(
    "group",
    [
        changed(0, np.array([0, 2], np.uint32)),
        changed(0, np.array([0, 0], np.uint32)),
        changed(0, np.array([0], np.uint32)),
        changed(1, np.array([3, 0], np.uint32)),
        changed(1, np.array([0], np.uint32)),
        changed(2, np.array([[0.5, 1.0], [1.0, 1.0]])),
        changed(2, np.array([[2.0**33, 0.0], [1.0, 1.0]])),
        changed(2, np.array([[2.0**32, 2.0**32], [1.0, 1.0]])),
        changed(2, np.array([[np.nan, 0.0], [1.0, 1.0]])),
        changed(2, np.array([[-np.inf, 0.0], [1.0, 1.0]])),
    ],
    ids=["place", "twice", "missing", "input", "inputs", "fraction", "large", "sum", "nan", "infinite"],
)
def test_a_map_that_is_none_is_refused(group):
    _native.ckks.IntegerMap(3, 2, [WHOLE])
    with pytest.raises(ValueError, match="Expected"):
        _native.ckks.IntegerMap(3, 2, [group])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("degree", [16, 48, 80, 112, 1040])
def test_every_word_of_a_row_that_no_block_divides(degree, path):
    stream, primes = np.random.default_rng(degree), ntt_primes(DEGREE, (40, 51))
    x = residues(stream, 3, primes, degree)
    maps = groups(linear_map(Linear(stream.normal(size=(2, 3)), np.zeros(2))), 12)
    assert (native(maps, 3, x, [5, -7], primes, path=path) == exact(maps, x, [5, -7], primes)).all()


@pytest.mark.parametrize(
    "change",
    [
        {"residues": np.zeros((2, 2, 1, 16), np.uint64)},
        {"residues": np.zeros((3, 3, 1, 16), np.uint64)},
        {"residues": np.zeros((3, 2, 2, 16), np.uint64)},
        {"residues": np.zeros((3, 2, 1, 24), np.uint64), "out": np.zeros((2, 2, 1, 24), np.uint64)},
        {"out": np.zeros((3, 2, 1, 16), np.uint64)},
        {"out": np.zeros((2, 2, 1, 32), np.uint64)},
        {"biases": np.zeros((1, 1), np.uint64)},
        {"primes": [1]},
        {"primes": [(1 << 62) + 1]},
        {"path": "neon"},
    ],
    ids=["inputs", "polynomials", "primes", "degree", "outputs", "out", "biases", "one", "large", "path"],
)
def test_arrays_of_other_shapes_are_refused(change):
    whole = _native.ckks.IntegerMap(3, 2, [WHOLE])
    given_ = {
        "residues": np.zeros((3, 2, 1, 16), np.uint64),
        "biases": np.zeros((2, 1), np.uint64),
        "primes": list(ntt_primes(DEGREE, (40,))),
        "out": np.ones((2, 2, 1, 16), np.uint64),
        "threads": 1,
    }
    whole.sums(**given_)
    assert not given_["out"].any()
    with pytest.raises(ValueError, match="Expected"):
        whole.sums(**given_ | change)
