"""Products mod 2^64 against big integers, on every engine; the seam that checks what it gets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import UsageError
from confide.mpc import products, products_numpy
from mpc.paths import engines, here, native

ENGINES = engines(products_numpy)
TOP = (1 << 64) - 1


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    monkeypatch.setattr(products, "_engine", request.param)
    return request.param


def words(seed: int, shape: tuple[int, ...], kind: str = "uniform") -> np.ndarray:
    """Return words: uniform, or only the ends, where every carry and every half is full."""
    stream = np.random.default_rng(seed)
    if kind == "halves":  # signed numbers of 32 bits, with both ends: these are multiplied in their own way
        ends = np.array([-(1 << 31), (1 << 31) - 1, -1, 0, 1], np.int64)
        mixed = np.where(
            stream.random(shape) < 0.5, stream.choice(ends, shape), stream.integers(-(1 << 31), 1 << 31, shape)
        )
        return mixed.astype(np.int64).view(np.uint64)
    if kind == "ends":
        return stream.choice(np.array([0, 1, 1 << 63, TOP, 0xFFFFFFFF, 0xFFFFFFFF00000000], np.uint64), shape)
    return stream.integers(0, TOP, shape, np.uint64, endpoint=True)


def product(a: np.ndarray, b: np.ndarray) -> list:
    """Multiply as integers without end."""
    return ((a.astype(object) @ b.astype(object)) % (1 << 64)).tolist()


class TestMatrices:
    @pytest.mark.parametrize("kind", ["uniform", "ends"])
    @pytest.mark.parametrize(
        ("m", "k", "n"),
        [(1, 1, 1), (2, 3, 5), (1, 300, 33), (4, 257, 2), (7, 64, 9), (13, 511, 17), (5, 513, 6), (99, 20, 31)],
    )
    def test_odd_shapes(self, engine, m, k, n, kind):
        a, b = words(m, (m, k), kind), words(n, (k, n), kind)
        expected = product(a, b)
        assert products.matmul(a, b).tolist() == expected
        assert products.matmul(np.ascontiguousarray(a.T), b, transpose_a=True).tolist() == expected
        assert products.matmul(a, np.ascontiguousarray(b.T), transpose_b=True).tolist() == expected

    @pytest.mark.parametrize(("m", "k", "n"), [(2, 1300, 3), (6, 1025, 520), (200, 258, 7)])
    def test_halves_of_words(self, engine, m, k, n):
        """A left side of signed numbers of 32 bits, and one with a single number beyond them, on either end."""
        a, b = words(3, (m, k), "halves"), words(4, (k, n), "ends")
        for beyond in (None, 1 << 31, -(1 << 31) - 1):
            if beyond is not None:
                a[m - 1, k // 2] = np.uint64(beyond % (1 << 64))
            assert (products.matmul(a, b) == a @ b).all()
            assert products.matmul(a[-1:], b[:, -2:]).tolist() == product(a[-1:], b[:, -2:])
            whole = np.full((m, n), 7, np.uint64)
            assert (products.matmul(a, b, out=whole) == a @ b + np.uint64(7)).all()

    @pytest.mark.parametrize(("m", "k", "n"), [(2, 1300, 3), (6, 1025, 520), (200, 258, 7)])
    def test_more_than_a_block(self, engine, m, k, n):
        """Terms, columns or rows beyond a block; numpy's own uint64 is the oracle, and checked by big integers."""
        a, b = words(1, (m, k), "ends"), words(2, (k, n))
        assert (products.matmul(a, b) == a @ b).all()
        assert products.matmul(a[:2], b[:, :2]).tolist() == product(a[:2], b[:, :2])

    @pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 3)])
    def test_leading_axes(self, engine, leading):
        a, b = words(1, (*leading, 4, 6)), words(2, (6, 5))
        assert (products.matmul(a, b) == a @ b).all()
        stack = words(3, (*leading, 6, 5))
        assert (products.matmul(a, stack) == a @ stack).all()
        turned = np.ascontiguousarray(stack.swapaxes(-1, -2))
        assert (products.matmul(a, turned, transpose_b=True) == a @ stack).all()

    def test_any_strides(self, engine):
        a, b = words(1, (9, 14)), words(2, (14, 22))
        for left, right in itertools.product(
            (a[::2, ::2], a[::-1, 7:], np.broadcast_to(a[0, :7], (4, 7))),
            (b[::2, ::3], b[7:][::-1, ::-1], np.broadcast_to(b[:7, :1], (7, 11))),
        ):
            assert (products.matmul(left, right) == left @ right).all()

    def test_words_that_lie_askew(self, engine):
        a, b = words(1, (5, 8)), words(2, (8, 4))
        askew = np.frombuffer(b"x" + a.tobytes(), np.uint64, offset=1).reshape(5, 8)
        assert not askew.flags.aligned
        assert (products.matmul(askew, b) == a @ b).all()

    @pytest.mark.parametrize(("m", "k", "n"), [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)])
    def test_nothing(self, engine, m, k, n):
        found = products.matmul(np.zeros((m, k), np.uint64), np.zeros((k, n), np.uint64))
        assert found.shape == (m, n)
        assert not found.any()
        stack = products.matmul(np.zeros((0, m, k), np.uint64), np.zeros((0, k, n), np.uint64))
        assert stack.shape == (0, m, n)

    @pytest.mark.parametrize("shape", [(5, 6, 7), (2, 300, 9), (8, 3, 2), (5, 0, 3)])
    def test_added_to_what_is_there(self, engine, shape):
        m, k, n = shape
        a, b, start = words(1, (m, k)), words(2, (k, n)), words(3, (m, n))
        out = start.copy()
        assert products.matmul(a, b, out=out) is out
        assert (out == start + a @ b).all()

    @given(m=st.integers(1, 8), k=st.integers(1, 9), n=st.integers(1, 20), seed=st.integers(0, 99))
    @pytest.mark.parametrize("one", ENGINES)
    def test_any_shape(self, one, m, k, n, seed):
        a, b = words(seed, (1, m, k), "ends"), words(seed + 1, (1, k, n), "ends")
        out = np.empty((1, m, n), np.uint64)
        one.matmul(a, b, out, False)
        assert out[0].tolist() == product(a[0], b[0])


def correlation(x, w, stride, padding) -> list:
    """Correlate as the definition says, with integers without end."""
    top, left, bottom, right = padding
    (count, channels, height, width), (outputs, _, kh, kw) = x.shape, w.shape
    tall = (height + top + bottom - kh) // stride[0] + 1
    wide = (width + left + right - kw) // stride[1] + 1
    found = np.zeros((count, outputs, tall, wide), object)
    for i, o, row, column in np.ndindex(found.shape):
        total = 0
        for c, down, across in np.ndindex(channels, kh, kw):
            at, beside = row * stride[0] + down - top, column * stride[1] + across - left
            if 0 <= at < height and 0 <= beside < width:
                total += int(x[i, c, at, beside]) * int(w[o, c, down, across])
        found[i, o, row, column] = total % (1 << 64)
    return found.tolist()


#: x, w, stride, padding.
CONVOLUTIONS = [
    ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0, 0, 0)),
    ((2, 3, 5, 6), (4, 3, 3, 3), (1, 1), (1, 1, 1, 1)),
    ((2, 2, 8, 7), (3, 2, 3, 2), (2, 3), (0, 1, 2, 0)),
    ((1, 2, 6, 6), (2, 2, 3, 3), (2, 2), (0, 0, 1, 1)),
    ((3, 1, 4, 9), (5, 1, 4, 1), (1, 2), (0, 0, 0, 0)),
    ((2, 4, 5, 5), (3, 4, 1, 1), (1, 1), (0, 0, 0, 0)),
    ((1, 1, 2, 2), (1, 1, 5, 4), (3, 3), (3, 2, 4, 1)),
    ((1, 33, 3, 3), (2, 33, 3, 3), (1, 1), (1, 1, 1, 1)),
]


class TestConvolutions:
    @pytest.mark.parametrize("kind", ["uniform", "ends"])
    @pytest.mark.parametrize(("x", "w", "stride", "padding"), CONVOLUTIONS)
    def test_strides_and_pads(self, engine, x, w, stride, padding, kind):
        pictures, kernels = words(1, x, kind), words(2, w, kind)
        expected = correlation(pictures, kernels, stride, padding)
        assert products.convolve(pictures, kernels, stride=stride, padding=padding).tolist() == expected

    @pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 0, 2, 1)])
    def test_any_strides_of_memory(self, engine, padding):
        x, w = words(1, (6, 4, 10, 9)), words(2, (3, 2, 6, 3))
        view, kernels = x[::-2, ::2, ::-1, ::2], w[:, ::-1, ::2]
        expected = correlation(view, kernels, (1, 1), padding)
        assert products.convolve(view, kernels, stride=(1, 1), padding=padding).tolist() == expected

    def test_many_pictures_and_positions(self, engine):
        """More positions than a block, from one picture and from several; numpy on patches is the oracle."""
        for shape in ((1, 2, 30, 41), (40, 2, 9, 9), (7, 2, 16, 16)):
            x, w = words(1, shape), words(2, (5, 2, 3, 3))
            padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
            found = products.convolve(x, w, stride=(1, 1), padding=(1, 1, 1, 1))
            assert found.shape == (shape[0], 5, *shape[2:])
            for down in range(shape[2]):
                patches = np.stack([padded[:, :, down : down + 3, i : i + 3] for i in range(shape[3])], 1)
                flat = patches.reshape(shape[0], shape[3], 18) @ w.reshape(5, 18).T
                assert (found[:, :, down] == flat.swapaxes(1, 2)).all()

    def test_added_to_what_is_there(self, engine):
        x, w, start = words(1, (2, 3, 6, 5)), words(2, (4, 3, 3, 3)), words(3, (2, 4, 6, 5))
        out = start.copy()
        assert products.convolve(x, w, stride=(1, 1), padding=(1, 1, 1, 1), out=out) is out
        assert (out - start == products.convolve(x, w, stride=(1, 1), padding=(1, 1, 1, 1))).all()

    @pytest.mark.parametrize(
        ("x", "w"),
        [
            ((0, 2, 4, 4), (3, 2, 2, 2)),
            ((2, 0, 4, 4), (3, 0, 2, 2)),
            ((2, 2, 4, 4), (0, 2, 2, 2)),
            ((1, 1, 0, 3), (1, 1, 2, 2)),
        ],
    )
    def test_nothing(self, engine, x, w):
        found = products.convolve(np.ones(x, np.uint64), np.ones(w, np.uint64), stride=(1, 1), padding=(1, 1, 1, 1))
        assert found.shape == (x[0], w[0], x[2] + 1, x[3] + 1)
        assert not found.any()


class TestSeam:
    @pytest.mark.parametrize(
        ("a", "b", "options"),
        [
            (np.zeros((2, 3), np.int64), np.zeros((3, 2), np.uint64), {}),
            (np.zeros((2, 3), np.uint64), np.zeros((3, 2), np.float64), {}),
            (np.zeros((2, 3), np.uint64), np.zeros((2, 3), np.uint64), {}),
            (np.zeros((2, 3), np.uint64), np.zeros((3, 2), np.uint64), {"transpose_b": True}),
            (np.zeros(3, np.uint64), np.zeros((3, 2), np.uint64), {}),
            (np.zeros((2, 2, 3), np.uint64), np.zeros((3, 3, 2), np.uint64), {}),
            (np.zeros((2, 3), np.uint64), np.zeros((1, 3, 2), np.uint64), {}),
            (np.zeros((2, 3), np.uint64), np.zeros((3, 2), np.uint64), {"out": np.zeros((2, 3), np.uint64)}),
            (np.zeros((2, 3), np.uint64), np.zeros((3, 2), np.uint64), {"out": np.zeros((2, 2), np.int64)}),
            (np.zeros((2, 3), np.uint64), np.zeros((3, 2), np.uint64), {"out": np.zeros((2, 4), np.uint64)[:, ::2]}),
        ],
    )
    def test_matrices_that_do_not_fit(self, a, b, options):
        with pytest.raises(UsageError, match="Expected"):
            products.matmul(a, b, **options)

    def test_a_result_on_top_of_what_is_multiplied(self):
        a = np.zeros((3, 3), np.uint64)
        with pytest.raises(UsageError, match="apart"):
            products.matmul(a, np.ones((3, 3), np.uint64), out=a)

    @pytest.mark.parametrize(
        ("x", "w", "stride", "padding"),
        [
            ((1, 2, 4, 4), (1, 3, 2, 2), (1, 1), (0, 0, 0, 0)),
            ((1, 2, 4), (1, 2, 2, 2), (1, 1), (0, 0, 0, 0)),
            ((1, 2, 4, 4), (1, 2, 5, 2), (1, 1), (0, 0, 0, 0)),
            ((1, 2, 4, 4), (1, 2, 0, 2), (1, 1), (0, 0, 0, 0)),
            ((1, 2, 4, 4), (1, 2, 2, 2), (0, 1), (0, 0, 0, 0)),
            ((1, 2, 4, 4), (1, 2, 2, 2), (1, 1), (0, -1, 0, 0)),
        ],
    )
    def test_convolutions_that_do_not_fit(self, x, w, stride, padding):
        with pytest.raises(UsageError, match="Expected"):
            products.convolve(np.zeros(x, np.uint64), np.zeros(w, np.uint64), stride=stride, padding=padding)

    def test_the_wrong_product_is_noticed(self, engine):
        """The oracle has teeth: one bit of one word changes the result."""
        a, b = words(1, (3, 4)), words(2, (4, 5))
        expected = product(a, b)
        a[1, 2] ^= np.uint64(1 << 63)
        assert products.matmul(a, b | np.uint64(1)).tolist() != expected


@pytest.mark.skipif(native is None, reason="installed without a C++ compiler")
class TestNativeTrustsNobody:
    """The seam checks first; the compiled code checks again, since a slip there would reach memory."""

    @pytest.mark.parametrize(
        ("a", "b", "out"),
        [
            ((1, 2, 3), (1, 4, 2), (1, 2, 2)),
            ((1, 2, 3), (1, 3, 2), (1, 2, 3)),
            ((2, 2, 3), (1, 3, 2), (2, 2, 2)),
            ((1, 2, 3), (1, 3, 2), (2, 2, 2)),
        ],
    )
    def test_shapes_of_matrices(self, a, b, out):
        arrays = [np.zeros(shape, np.uint64) for shape in (a, b, out)]
        with pytest.raises(ValueError, match="Expected a"):
            native.matmul(*arrays, False)

    @pytest.mark.parametrize(
        ("stride", "padding", "out"),
        [
            ((0, 1), (0, 0, 0, 0), (1, 1, 3, 3)),
            ((1, 1), (0, 0, 0, 1), (1, 1, 3, 3)),
            ((1, 1), (0, 0, 0, 0), (1, 1, 3, 4)),
            ((1, 1), (0, 0, 0, 0), (1, 2, 3, 3)),
            ((1, 1), (1 << 63, 0, 1 << 63, 0), (1, 1, 3, 3)),
            ((1 << 39, 1 << 39), (1 << 38, 0, 0, 1 << 38), (1, 1, 1, 1)),
        ],
    )
    def test_shapes_of_convolutions(self, stride, padding, out):
        x, w = np.zeros((1, 1, 4, 4), np.uint64), np.zeros((1, 1, 2, 2), np.uint64)
        with pytest.raises(ValueError, match="Expected"):
            native.convolve(x, w, stride, padding, np.zeros(out, np.uint64), False)

    def test_words_askew_and_paths_that_are_not_here(self):
        askew = np.frombuffer(bytes(9), np.uint64, offset=1).reshape(1, 1, 1)
        whole = np.zeros((1, 1, 1), np.uint64)
        with pytest.raises(ValueError, match="multiples of eight"):
            native.matmul(askew, whole, np.zeros((1, 1, 1), np.uint64), False)
        with pytest.raises(ValueError, match="path"):
            native.matmul(whole, whole, np.zeros((1, 1, 1), np.uint64), False, path="sse9")
        for path in {"avx2", "vaes", "avx512"} - set(here):
            with pytest.raises(ValueError, match="this machine"):
                native.matmul(whole, whole, np.zeros((1, 1, 1), np.uint64), False, path=path)
