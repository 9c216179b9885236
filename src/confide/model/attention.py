"""Layers that compare a record's numbers with each other: softmax, layer normalisation, attention, argmax.

A record of `positions` tokens with `channels` numbers each is held channel after channel, as images are: feature
c positions + p is channel c of token p. So a matrix that is applied to each token is a `Conv` with a kernel of 1 x 1 on
an image channels x 1 x positions, and one that takes tokens as they come (token after token, features together) into
this order is a `Conv` with a kernel of 1 x features on an image 1 x positions x features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError

Matrix = NDArray[np.float64]

#: Most numbers that a record may have in one of these layers, and most positions of an attention.
MOST_NUMBERS, MOST_POSITIONS = 1 << 22, 1 << 11


@dataclass(frozen=True, slots=True)
class Softmax:
    """y[c, p] = exp(x[c, p]) / sum over d of exp(x[d, p]).

    Args:
        channels: at least 1; the numbers that add up to 1.
        positions: at least 1.

    Raises:
        ModelError: sizes out of range.
    """

    channels: int
    positions: int = 1

    def __post_init__(self) -> None:
        _require(self.channels, self.positions)

    def __repr__(self) -> str:
        return f"Softmax({self.channels}x{self.positions})"

    @property
    def inputs(self) -> int:
        """Return the features of a record."""
        return self.channels * self.positions

    def apply(self, x: Matrix) -> Matrix:
        """Return y, shape (batch, features), of x of the same shape."""
        y = softmax(x.reshape(-1, self.channels, self.positions), axis=1)
        return y.reshape(len(x), self.inputs)


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm:
    """y[c, p] = gain[c] (x[c, p] - mean[p]) / sqrt(variance[p] + epsilon) + bias[c], over the channels of a position.

    The variance divides by the number of channels.

    Args:
        gain, bias: float64, shape (channels,).
        positions: at least 1.
        epsilon: above 0.

    Raises:
        ModelError: shapes that do not fit, or parameters that are not finite.
    """

    gain: Matrix
    bias: Matrix
    positions: int
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.gain.ndim != 1 or self.gain.shape != self.bias.shape:
            raise ModelError(f"Expected gain and bias of shape (channels,), got {self.gain.shape}, {self.bias.shape}")
        _require(len(self.gain), self.positions)
        if not (np.isfinite(self.gain).all() and np.isfinite(self.bias).all() and 0 < self.epsilon < math.inf):
            raise ModelError("Expected finite parameters and epsilon above 0; the training diverged: lower its rate")

    def __repr__(self) -> str:  # parameters are private, the shape is not
        return f"LayerNorm({self.channels}x{self.positions})"

    @property
    def channels(self) -> int:
        """Return the numbers of a position."""
        return len(self.gain)

    @property
    def inputs(self) -> int:
        """Return the features of a record."""
        return self.channels * self.positions

    def apply(self, x: Matrix) -> Matrix:
        """Return y, shape (batch, features), of x of the same shape."""
        tokens = x.reshape(-1, self.channels, self.positions)
        tokens = tokens - tokens.mean(axis=1, keepdims=True)
        tokens = tokens / np.sqrt((tokens * tokens).mean(axis=1, keepdims=True) + self.epsilon)
        return (tokens * self.gain[:, None] + self.bias[:, None]).reshape(len(x), self.inputs)


@dataclass(frozen=True, slots=True)
class Attention:
    """Scaled dot-product attention in several heads, without parameters: what stands between two linear maps.

    Channels of x are queries, then keys, then values, `channels` of each; a head takes channels / heads of each, one
    after the other.

        y[h, p] = sum over q of softmax over q of (Q[h, p] . K[h, q] / sqrt(channels / heads)) V[h, q]

    Args:
        channels: of the result, a multiple of `heads`.
        positions: at least 1.
        heads: at least 1.

    Raises:
        ModelError: sizes out of range.

    Paper: Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), section 3.2.
    """

    channels: int
    positions: int
    heads: int = 1

    def __post_init__(self) -> None:
        _require(3 * self.channels, self.positions)
        if self.heads < 1 or self.channels % self.heads or self.positions > MOST_POSITIONS:
            raise ModelError(
                f"Expected channels={self.channels} to be a multiple of heads={self.heads}, "
                f"and positions={self.positions} of at most {MOST_POSITIONS}"
            )

    def __repr__(self) -> str:
        return f"Attention({self.channels}x{self.positions}, {self.heads} heads)"

    @property
    def inputs(self) -> int:
        """Return the features of a record that the layer takes."""
        return 3 * self.channels * self.positions

    @property
    def outputs(self) -> int:
        """Return the features that it gives."""
        return self.channels * self.positions

    @property
    def factor(self) -> float:
        """Return what scores are multiplied by."""
        return 1 / math.sqrt(self.channels // self.heads)

    def apply(self, x: Matrix) -> Matrix:
        """Return y, shape (batch, outputs), of x, shape (batch, inputs)."""
        parts = x.reshape(len(x), 3, self.heads, self.channels // self.heads, self.positions)
        queries, keys, values = parts[:, 0], parts[:, 1], parts[:, 2]
        weights = softmax(queries.swapaxes(-1, -2) @ keys * self.factor, axis=-1)
        return (values @ weights.swapaxes(-1, -2)).reshape(len(x), self.outputs)


@dataclass(frozen=True, slots=True)
class Argmax:
    """y = the number of the largest of x, from 0, as a real number; the first of several.

    Args:
        channels: of x, at least 1.

    Raises:
        ModelError: a size out of range.
    """

    channels: int

    def __post_init__(self) -> None:
        _require(self.channels, 1)

    def __repr__(self) -> str:
        return f"Argmax({self.channels})"

    @property
    def inputs(self) -> int:
        """Return the features of a record."""
        return self.channels

    def apply(self, x: Matrix) -> Matrix:
        """Return y, shape (batch, 1), of x, shape (batch, channels)."""
        return np.argmax(x, axis=1).astype(np.float64)[:, None]


def softmax(x: Matrix, axis: int) -> Matrix:
    """Return exp(x) over its sum along an axis, without overflow for any finite x."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _require(channels: int, positions: int) -> None:
    if channels < 1 or positions < 1 or channels * positions > MOST_NUMBERS:
        raise ModelError(f"Expected {channels} channels of {positions} positions, at least 1, at most {MOST_NUMBERS}")
