"""Layers that compare a record's numbers, as parts of a description and as operations: softmax, layer norm, attention,
argmax, trees.

A record of tokens comes channel after channel (`model.attention`), and what `functions` compares lies along the last
axis, so softmax and layer norm turn it there and back, which costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from confide.errors import ModelError
from confide.model.graph import Argmax, Attention, Layer, LayerNorm, Softmax, Trees
from confide.mpc import functions
from confide.mpc.architecture import (
    MOST_BITS,
    MOST_TREE_DEPTH,
    WEIGHT_SCALE,
    ArgmaxPart,
    AttentionPart,
    NormPart,
    SoftmaxPart,
    TreesPart,
    Waves,
    takes_gain,
)
from confide.mpc.building import Builder
from confide.mpc.operations import MOST_ELEMENTS, SCALE
from confide.mpc.periodic import Series
from confide.mpc.ranges import Ranges
from confide.mpc.series import SCORE_SCALE, power_series, reciprocal_series, root_series
from confide.mpc.tree_layout import depth_of

Compared = Softmax | LayerNorm | Attention | Argmax | Trees
ComparedPart = SoftmaxPart | NormPart | AttentionPart | ArgmaxPart | TreesPart

_FINEST_SCORES = SCALE + WEIGHT_SCALE  # what a product has: as they are, they take no round to be cut
_LEAF_SCALE = 2 * SCALE  # a sum of many leaves adds up what they round by


# --- what is public of a layer ----------------------------------------------------------------------------------------


def compared_part(layer: Compared, name: str, ranges: Ranges, behind: Sequence[Layer]) -> ComparedPart:
    """Return what is public of a layer.

    Args:
        name: of the layer in `ranges`.
        behind: the layers after it in its chain.

    Raises:
        ModelError: a layer that is not computed on shares with these ranges; the message says what to do.
    """
    match layer:
        case Softmax(channels, positions):
            spread = ranges.spread(name)
            powers, inverse = power_series(spread), reciprocal_series(channels)
            return SoftmaxPart(channels, positions, _bits(spread), waves(powers), waves(inverse))
        case Attention(channels, positions, heads):
            spread = ranges.spread(name)
            powers, inverse = power_series(spread, layer.factor), reciprocal_series(positions)
            return AttentionPart(channels, positions, heads, _bits(spread), waves(powers), waves(inverse))
        case LayerNorm():
            root, scale, shift = root_series(layer.channels, *ranges.variance(name), layer.epsilon)
            plain = takes_gain(layer.channels, behind) > 0
            return NormPart(layer.channels, layer.positions, plain, scale, shift, waves(root))
        case Argmax(channels):
            return ArgmaxPart(channels, min(ranges.whole_bits(name), MOST_BITS - 1))
        case Trees():
            return _trees_part(layer, name, ranges)


def _trees_part(layer: Trees, name: str, ranges: Ranges) -> TreesPart:
    depth, count, outputs = depth_of(layer), len(layer.roots), len(layer.offset)
    if depth > MOST_TREE_DEPTH:
        raise ModelError(f"Expected trees of depth={depth} to be {MOST_TREE_DEPTH} or less; train with max_depth")
    if (count << depth) * max(layer.features, outputs) > MOST_ELEMENTS:
        raise ModelError(f"Expected fewer than {count} trees of {layer.features} features; train with n_estimators")
    largest = float(np.abs(layer.threshold).max(initial=0.0))
    whole = max(ranges.whole_bits(name), _bits(largest))
    if whole >= MOST_BITS:
        raise ModelError(f"Expected features and thresholds below 2^{MOST_BITS - 1}; scale features before training")
    return TreesPart(layer.features, count, depth, outputs, whole)


def _bits(size: float) -> int:
    """Return the least k of at least 1 with size < 2^k."""
    return max(1, math.frexp(size)[1])


def waves(series: Series) -> Waves:
    """Return a series as a part has it."""
    return Waves(series.period, series.cosines, series.sines)


def _series(part: Waves, finer: int = 0) -> Series:
    """Return the series of a part, for arguments that are held with `finer` more bits."""
    return Series(part.period + finer, part.cosines, part.sines)


# --- operations -------------------------------------------------------------------------------------------------------


def write_compared(build: Builder, part: ComparedPart, name: str, x: int) -> int:
    """Write a layer of x, shape (rows, features), and return what it gives, without its bias."""
    rows = build.shape(x)[0]
    match part:
        case SoftmaxPart():
            scale = build.scale(x) if SCORE_SCALE <= build.scale(x) <= _FINEST_SCORES else SCORE_SCALE
            scores = _turned(build, build.at_scale(x, scale), part.channels, part.positions)
            window, drop = scale + part.whole_bits, scale - SCALE
            powers, inverse = _series(part.powers, scale - SCORE_SCALE), _series(part.inverse)
            y = functions.softmax(build, scores, powers=powers, inverse=inverse, window=window, drop=drop)
            return _turned_back(build, y)
        case NormPart():
            gain = None if part.plain else build.weight(f"{name}.gain", (part.channels,))
            values = _turned(build, x, part.channels, part.positions)
            root = _series(part.root)
            y = functions.normalised(build, values, root=root, scale=part.scale, shift=part.shift, gain=gain)
            return _turned_back(build, y)
        case AttentionPart():
            return _write_attention(build, part, x)
        case ArgmaxPart():
            values = build.reshape(x, (rows, part.channels))
            scale = build.scale(values)
            return functions.argmax(build, values, scale + part.whole_bits + 1, max(scale - SCALE, 0))
        case TreesPart():
            nodes = part.count * ((1 << part.depth) - 1)
            return functions.trees(
                build,
                build.open(build.at_scale(x, SCALE)),
                selection=build.weight(f"{name}.selection", (part.features, nodes)),
                thresholds=build.bias(f"{name}.thresholds", (nodes,)),
                leaves=build.weight(f"{name}.leaves", (part.count << part.depth, part.outputs), scale=_LEAF_SCALE),
                count=part.count,
                depth=part.depth,
                window=2 * SCALE + part.whole_bits + 1,
            )


def _write_attention(build: Builder, part: AttentionPart, x: int) -> int:
    rows, size = build.shape(x)[0], part.channels // part.heads
    x = build.open(build.at_scale(x, SCALE))
    three = build.reshape(x, (rows, 3, part.heads, size, part.positions))
    shape = (rows, part.heads, size, part.positions)
    queries, keys, values = (build.reshape(build.part(three, 1, place, place + 1), shape) for place in range(3))
    window, drop = SCORE_SCALE + part.whole_bits, SCORE_SCALE - SCALE
    powers, inverse = _series(part.powers), _series(part.inverse)
    y = functions.attention(build, queries, keys, values, powers=powers, inverse=inverse, window=window, drop=drop)
    return build.reshape(y, (rows, part.channels * part.positions))


def _turned(build: Builder, x: int, channels: int, positions: int) -> int:
    """Return records as (rows, positions, channels)."""
    return build.transpose(build.reshape(x, (build.shape(x)[0], channels, positions)), (0, 2, 1))


def _turned_back(build: Builder, y: int) -> int:
    """Return (rows, positions, channels) as records."""
    rows, positions, channels = build.shape(y)
    return build.reshape(build.transpose(y, (0, 2, 1)), (rows, channels * positions))
