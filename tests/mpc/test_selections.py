"""One pass over truncated and chosen values: what the gates promise, by Python's integers, on every engine."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import UsageError
from confide.mpc import selections, selections_numpy
from mpc.paths import native

WORD = 1 << 64
TYPES = {1: np.uint8, 7: np.uint8, 8: np.uint8, 9: np.uint16, 16: np.uint16, 17: np.uint32, 32: np.uint32}
ENGINES = [
    pytest.param(selections_numpy, id="numpy"),
    pytest.param(native, id="native", marks=pytest.mark.skipif(native is None, reason="no native code here")),
]


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    monkeypatch.setattr(selections, "_engine", request.param)
    return request.param


def split(values: list[int], modulus: int, random: np.random.Generator, dtype: type = np.uint64) -> list[np.ndarray]:
    """Return two uniform arrays whose sum is the values."""
    first = [int(one) % modulus for one in random.integers(0, WORD, len(values), np.uint64)]
    second = [(value - one) % modulus for value, one in zip(values, first, strict=True)]
    return [np.array(part, np.uint64).astype(dtype) for part in (first, second)]


def edges(random: np.random.Generator, count: int) -> list[int]:
    """Return integers in [-2^62, 2^62), the ends and the middle among them."""
    chosen = [-(1 << 62), (1 << 62) - 1, -1, 0, 1, 65535, 65536, -65536, -65537]
    more = [
        int(one) >> int(by) for one, by in zip(random.integers(-(1 << 62), 1 << 62, count), range(count), strict=True)
    ]
    return [*chosen, *more][:count]


class Dealt:
    """Values, masks, bits and all shares of one gate."""

    def __init__(self, bits: int, count: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        kind = TYPES.get(bits, np.uint64)
        self.bits, self.values = bits, edges(random, count)
        self.masks = [int(one) for one in random.integers(0, WORD, count, np.uint64)]
        self.masks[: count // 4] = [[0, WORD - 1, 1 << 63, (1 << 63) - 1][n % 4] for n in range(count // 4)]
        pairs = list(zip(self.values, self.masks, strict=True))
        # The mask of the gate is that of Y = y^ + 2^62, which has the same mask.
        self.opened = np.array([(value + mask) % WORD for value, mask in pairs], np.uint64)
        self.g, self.beta = (random.integers(0, 2, count).astype(np.uint8) for _ in range(2))
        u = [mask >> bits for mask in self.masks] if bits else self.masks
        m = [mask >> 63 for mask in self.masks]
        beta = [int(one) for one in self.beta]
        self.betas = split(beta, WORD, random)
        self.whole = self._dealt(u, m, kind, random)
        self.chosen = self._dealt(
            [b * one for b, one in zip(beta, u, strict=True)],
            [b * one for b, one in zip(beta, m, strict=True)],
            kind,
            random,
        )

    def _dealt(self, u: list[int], m: list[int], kind: type, random: np.random.Generator) -> list[selections.Dealt]:
        tops = split(m, 1 << self.bits, random, kind) if self.bits else [None, None]
        return [selections.dealt(*pair) for pair in zip(split(u, WORD, random), tops, strict=True)]

    def truncated(self) -> list[int]:
        return added(selections.truncate(b, self.opened, self.bits, self.whole[b]) for b in (0, 1))

    def selected(self) -> list[int]:
        return added(
            selections.select(b, self.g, self.betas[b], self.opened, self.bits, self.whole[b], self.chosen[b])
            for b in (0, 1)
        )

    def allowed(self) -> list[tuple[int, ...]]:
        """Return what a truncated value may be: floor, or one more where bits are lost."""
        return [
            (value >> self.bits,) if value % (1 << self.bits) == 0 else (value >> self.bits, (value >> self.bits) + 1)
            for value in self.values
        ]


def added(shares) -> list[int]:
    first, second = shares
    return np.add(first, second).view(np.int64).tolist()


@pytest.mark.parametrize("bits", [1, 7, 8, 9, 16, 17, 32, 33, 61, 62])
class TestCutOff:
    def test_a_truncated_value_is_floor_or_one_more(self, engine, bits):
        case = Dealt(bits, 203, bits)
        assert all(one in may for one, may in zip(case.truncated(), case.allowed(), strict=True))

    def test_a_bit_times_it(self, engine, bits):
        case = Dealt(bits, 203, bits)
        truth = case.g ^ case.beta
        for one, bit, may in zip(case.selected(), truth, case.allowed(), strict=True):
            assert one in (may if bit else (0,))

    def test_another_bit_is_noticed(self, engine, bits):
        case = Dealt(bits, 64, bits)
        case.g ^= 1
        found = case.selected()
        assert any((one != 0) != bit for one, bit in zip(found, case.g ^ 1 ^ case.beta, strict=True))


def test_a_bit_times_a_value_as_it_is(engine):
    case = Dealt(0, 203)
    assert case.selected() == [
        value if bit else 0 for value, bit in zip(case.values, (case.g ^ case.beta).tolist(), strict=True)
    ]


@pytest.mark.skipif(native is None, reason="no native code here")
@settings(max_examples=60, deadline=None)
@given(bits=st.integers(0, 62), count=st.integers(1, 70), party=st.integers(0, 1), seed=st.integers(0, 1 << 30))
def test_engines_agree_on_any_words(bits, count, party, seed):
    """Uniform words, not shares of anything: the twin gives the same bits."""
    assert native is not None
    random = np.random.default_rng(seed)
    size = next(one for one in (0, 1, 2, 4, 8) if bits <= 8 * one)
    octets = [random.integers(0, 256, count * each, np.uint8) for each in (8, 8, size, 8, size)]
    g, opened = random.integers(0, 2, count).astype(np.uint8), random.integers(0, WORD, count, np.uint64)
    found = np.empty((2, count), np.uint64)
    for engine, out in zip((native, selections_numpy), found, strict=True):
        engine.select(party, g, octets[0], opened, bits, *octets[1:], out)
    assert (found[0] == found[1]).all()
    if bits:
        for engine, out in zip((native, selections_numpy), found, strict=True):
            engine.truncate(party, opened, bits, octets[1], octets[2], out)
        assert (found[0] == found[1]).all()


def test_shapes_strides_and_nothing(engine):
    case = Dealt(16, 48)
    flat = selections.truncate(1, case.opened, 16, case.whole[1])
    wide = np.repeat(case.opened.reshape(6, 8), 2, axis=1)[:, ::2]
    assert not wide.flags.c_contiguous
    assert (selections.truncate(1, wide, 16, case.whole[1]) == flat.reshape(6, 8)).all()
    nothing = np.empty((0, 3), np.uint64)
    empty = selections.dealt(nothing, np.empty(0, np.uint16))
    assert selections.truncate(0, nothing, 16, empty).shape == (0, 3)
    assert selections.select(0, np.empty(0, np.uint8), nothing, nothing, 16, empty, empty).shape == (0, 3)


@pytest.mark.parametrize("bits", [-1, 63])
def test_bits_out_of_range(bits):
    case = Dealt(16, 8)
    with pytest.raises(UsageError, match="bits"):
        selections.truncate(0, case.opened, bits, case.whole[0])
    with pytest.raises(UsageError, match="bits"):
        selections.select(0, case.g, case.betas[0], case.opened, bits, case.whole[0], case.chosen[0])


def test_what_does_not_fit():
    case, other = Dealt(16, 8), Dealt(17, 8)
    with pytest.raises(UsageError, match="party"):
        selections.truncate(2, case.opened, 16, case.whole[0])
    with pytest.raises(UsageError, match="shares of 8 values"):
        selections.truncate(0, case.opened, 16, other.whole[0])
    with pytest.raises(UsageError, match="a bit"):
        selections.select(0, case.g[:7], case.betas[0], case.opened, 16, case.whole[0], case.chosen[0])
    with pytest.raises(UsageError, match="shares of 8 values"):
        selections.select(0, case.g, case.betas[0], case.opened, 16, case.whole[0], other.chosen[0])


@pytest.mark.skipif(native is None, reason="no native code here")
@pytest.mark.parametrize(
    "change",
    [
        {"party": 2},
        {"bits": 63},
        {"count": 7},
        {"g": 7},
        {"beta": 63},
        {"shifted": 63},
        {"top": 15},
        {"chosen_top": 17},
    ],
)
def test_the_native_code_checks_sizes_itself(change):
    assert native is not None
    sizes = {
        "party": 0,
        "g": 8,
        "beta": 64,
        "count": 8,
        "bits": 16,
        "shifted": 64,
        "top": 16,
        "chosen_top": 16,
    } | change

    def octets(name: str) -> np.ndarray:
        return np.zeros(sizes[name], np.uint8)

    with pytest.raises(ValueError, match="Expected"):
        native.select(
            sizes["party"],
            octets("g"),
            octets("beta"),
            np.zeros(sizes["count"], np.uint64),
            sizes["bits"],
            octets("shifted"),
            octets("top"),
            np.zeros(64, np.uint8),
            octets("chosen_top"),
            np.zeros(8, np.uint64),
        )
