"""Images of nothing: drawn from a public seed, so that statistics of features can be known before any record is seen.

Two kinds, with grey values from 0 to 1:

    natural   what photographs and scans have in common: a spectrum that falls with a power of the frequency, and in
              every other image opaque ellipses of all sizes, one on top of the other ("dead leaves")
    strokes   one to three smooth pen strokes, bright on black

No record and no public data set goes into them. Every number is a function of the generator's raw words alone, whose
stream is fixed: that of its distributions may change with numpy's version. Machines agree up to the last digits.

Paper: A. Lee, D. Mumford and J. Huang, "Occlusion models for natural images" (2001) for dead leaves; M. Baradad et al.,
"Learning to see by looking at noise" (2021) for what features of noise are worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import public_stream

Matrix = NDArray[np.float64]
Kind = Literal["natural", "strokes"]

_LEAVES = 60
_MOST_STROKES, _MOST_STEPS = 3, 28
_SIDE = 28.0  # of the images that lengths in pixels below are meant for; others have them in proportion


def synthetic(kind: Kind, count: int, height: int, width: int, seed: int) -> Matrix:
    """Return images, shape (count, height, width), from 0 to 1.

    Args:
        kind: "natural" or "strokes".
        count: at least 1.
        height, width: in pixels, at least 1.
        seed: public.
    """
    return _DRAWN[kind](_Uniform(seed, kind), count, height, width)


class _Uniform:
    """Uniform numbers from the raw words of a public stream."""

    def __init__(self, seed: int, kind: str) -> None:
        self._bits = public_stream(seed, f"synthetic images, {kind}").bit_generator

    def __call__(self, low: float, high: float, *shape: int) -> Matrix:
        """Return uniform numbers from low to high."""
        words = np.asarray(self._bits.random_raw(math.prod(shape)), np.uint64)
        shares = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + (high - low) * shares.reshape(shape)


def _natural(uniform: _Uniform, count: int, height: int, width: int) -> Matrix:
    images = _unit(_power_law(uniform, count, height, width))
    leafy = images[1::2]
    leaves = _unit(_dead_leaves(uniform, len(leafy), height, width))
    images[1::2] = 0.8 * leaves + 0.3 * uniform(0.0, 1.0, len(leafy), 1, 1) * leafy
    return np.clip(0.5 + images * uniform(0.1, 0.3, count, 1, 1), 0.0, 1.0)


def _power_law(uniform: _Uniform, count: int, height: int, width: int) -> Matrix:
    """Return noise whose amplitude falls with a power of the frequency, one of 0.8 to 2.2 for each image."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = 1.0 / max(height, width)
    power = frequency ** -uniform(0.8, 2.2, count, 1, 1)
    return np.fft.ifft2(np.fft.fft2(uniform(-1.0, 1.0, count, height, width)) * power).real


def _dead_leaves(uniform: _Uniform, count: int, height: int, width: int) -> Matrix:
    """Return ellipses of many sizes, each hiding what was there before."""
    rows, columns = np.arange(height)[:, None], np.arange(width)
    images, scale = np.zeros((count, height, width)), math.sqrt(height * width) / _SIDE
    for _ in range(_LEAVES):
        radius = scale * np.minimum(14.0, 1.5 * uniform(1e-3, 1.0, count, 1, 1) ** -0.6)
        down = rows - height * uniform(-0.15, 1.15, count, 1, 1)
        right = columns - width * uniform(-0.15, 1.15, count, 1, 1)
        turn, narrow = uniform(0.0, math.pi, count, 1, 1), uniform(0.3, 1.0, count, 1, 1)
        along = right * np.cos(turn) + down * np.sin(turn)
        across = (down * np.cos(turn) - right * np.sin(turn)) / narrow
        inside = along * along + across * across < radius * radius
        np.copyto(images, uniform(0.0, 1.0, count, 1, 1), where=inside)
    return images


def _unit(images: Matrix) -> Matrix:
    """Return images less their mean and over their deviation."""
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    return centred / (centred.std(axis=(1, 2), keepdims=True) + 1e-6)


def _strokes(uniform: _Uniform, count: int, height: int, width: int) -> Matrix:
    images, scale = np.zeros((count, height, width)), math.sqrt(height * width) / _SIDE
    sides = np.array([height, width])
    strokes = uniform(1.0, _MOST_STROKES + 1.0, count).astype(np.int64)
    for number in range(_MOST_STROKES):
        place = sides * uniform(5 / _SIDE, 23 / _SIDE, count, 2)
        course, bend = uniform(0.0, 2.0 * math.pi, count), uniform(-0.2, 0.2, count)  # radians, and those per step
        pen = scale * uniform(0.8, 1.5, count)
        steps = uniform(6.0, float(_MOST_STEPS), count).astype(np.int64)
        drawn = number < strokes
        for step in range(_MOST_STEPS):
            course = course + bend + uniform(-0.14, 0.14, count)
            place = place + scale * np.stack([np.sin(course), np.cos(course)], axis=1)
            within = ((place > sides * (4 / _SIDE)) & (place < sides * (24 / _SIDE))).all(axis=1)
            drawn = drawn & within & (step < steps)
            _press(images, drawn, place, pen)
    return images


def _press(images: Matrix, drawn: NDArray[np.bool_], place: Matrix, pen: Matrix) -> None:
    """Leave a round spot at a place in those images in which the pen is down."""
    at = np.flatnonzero(drawn)
    rows, columns = (np.arange(side, dtype=np.float64) for side in images.shape[1:])
    down = np.exp(-0.5 * ((rows - place[at, :1]) / pen[at, None]) ** 2)
    right = np.exp(-0.5 * ((columns - place[at, 1:]) / pen[at, None]) ** 2)
    spots = np.minimum(1.0, 1.5 * down[:, :, None] * right[:, None, :])
    images[at] = np.maximum(images[at], spots)


_DRAWN = cast("Mapping[str, Callable[[_Uniform, int, int, int], Matrix]]", {"natural": _natural, "strokes": _strokes})
