"""A scattering transform: features of an image that are fixed in advance, so that no record has any influence on them.

An image goes through wavelets of several scales and directions, a modulus, the same once more, and a local mean. What
comes out keeps the shape of strokes and textures but not their exact place; a linear model on it does the work of a
small convolutional network, and a linear model loses least under differential privacy.

    symbol     here         meaning
    J          scales       octaves; the local mean covers about 2^J pixels
    L          angles       directions of a wavelet, over half a turn
    phi        low pass     a Gaussian of deviation 0.8 * 2^(J-1), sum 1
    psi_{j,l}  band pass    a Morlet wavelet: a Gaussian of deviation 0.8 * 2^j along its wave, L/4 times that across
                            it, on a wave of 3/4 pi / 2^j radians per pixel, less a Gaussian so that its sum is 0
    U          moduli       |x * psi|, then ||x * psi_{j1}| * psi_{j2}| with j2 > j1
    S          coefficients U * phi at every 2^J-th pixel; x * phi itself is order 0

The wavelets share one factor, chosen so that the Littlewood-Paley sum |phi|^2 + 1/2 sum (|psi(w)|^2 + |psi(-w)|^2) is
at most 1 at every frequency w. A moving picture of scale j changes slowly, so it is kept at every 2^j-th pixel only.

Paper: J. Bruna and S. Mallat, "Invariant scattering convolution networks" (2013), sections 2 and 3. F. Tramer and
D. Boneh, "Differentially private learning needs better features" (arXiv 2011.11660) for the use under privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.errors import DataError, ModelError

Matrix = NDArray[np.float64]
Array = NDArray[Any]

#: Of an image: what a transform of one takes stays within some seconds and some hundred megabytes.
LARGEST_SIDE = 256
MOST_SCALES = 5
MOST_ANGLES = 16

_DEVIATION = 0.8  # of a wavelet of scale 0, in pixels
_WAVE = 0.75 * math.pi  # its radians per pixel
_SMALLEST_VARIANCE = 1e-6  # of a group: what is weaker stays weak
_BLOCK_BYTES = 1 << 22  # of one intermediate array


@dataclass(frozen=True)
class Scattering:
    """The transform of images of one size.

    Args:
        height, width: of an image, in pixels, from 2^(scales + 1) to 256.
        scales: octaves, 1 to 5.
        angles: directions of each wavelet, 1 to 16.
        averaged: return each channel's mean over the image in place of a small map.
        groups: 0, or into how many groups of neighbouring channels the coefficients of each image are parted; each
            group is then centred and divided by its own deviation, so that weak channels count as much as strong ones.

    Example:
        >>> Scattering(28, 28).shape
        (81, 7, 7)
        >>> Scattering(28, 28, averaged=True).apply(np.ones((2, 28, 28))).shape
        (2, 81)

    **Guarantees**: a row of features depends on its own image alone, bit by bit; an image of zeros gives zeros. Without
    groups, the features of any two images differ by no more than the images do once mirrored at their edges (L2), so by
    no more than twice as much as the images themselves. With groups, no row of features is longer than 1.
    """

    height: int
    width: int
    scales: int = 2
    angles: int = 8
    averaged: bool = False
    groups: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.scales <= MOST_SCALES and 1 <= self.angles <= MOST_ANGLES):
            raise ModelError(
                f"Expected scales={self.scales} from 1 to {MOST_SCALES} and angles={self.angles} from 1 to "
                f"{MOST_ANGLES}; 2 and 8 suit images of 28 x 28"
            )
        if not 2 ** (self.scales + 1) <= min(self.height, self.width) <= max(self.height, self.width) <= LARGEST_SIDE:
            raise ModelError(
                f"Expected images from {2 ** (self.scales + 1)} (twice 2^scales) to {LARGEST_SIDE} pixels on a side, "
                f"got {self.height} x {self.width}; take fewer scales or other images"
            )

        if self.groups < 0 or (self.groups and self.channels % self.groups):
            raise ModelError(
                f"Expected groups={self.groups} to divide the {self.channels} channels; 27 suits 81, 0 leaves the "
                "coefficients as they are"
            )

    @property
    def channels(self) -> int:
        """Return the number of coefficients at one place: 1 + J L + L^2 J (J - 1) / 2."""
        pairs = self.scales * (self.scales - 1) // 2
        return 1 + self.scales * self.angles + pairs * self.angles**2

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width) of the features of an image; height and width are 1 if averaged."""
        if self.averaged:
            return self.channels, 1, 1
        return self.channels, self.height >> self.scales, self.width >> self.scales

    @property
    def features(self) -> int:
        """Return the number of features."""
        return math.prod(self.shape)

    @property
    def bound(self) -> float:
        """Return the largest L2 norm of the features of any image with pixels in [-1, 1]."""
        return 1.0 if self.groups else 2.0 * math.sqrt(self.height * self.width)

    @cached_property
    def filters(self) -> Filters:
        """Return the filters for this size."""
        rows, columns = _Side.of(self.height, self.scales), _Side.of(self.width, self.scales)
        return Filters.of(rows, columns, self.scales, self.angles)

    def apply(self, images: ArrayLike) -> Matrix:
        """Return the features, float64, shape (n, features), ordered by channel, row and column.

        Channels stand in the order of their paths: order 0; (j, l) with l fastest; (j1, l1, j2, l2) with l2 fastest. An
        angle l is a wave vector at pi l / L from the column axis (downwards) towards the row axis. The transform is
        computed in float32: relative errors are near 1e-6.

        Args:
            images: finite real numbers, shape (n, height, width).

        Raises:
            DataError: another shape, or numbers that are not finite or not real.
        """
        values = np.asarray(images)
        if values.dtype.kind not in "fiub" or values.shape[1:] != (self.height, self.width) or values.ndim != 3:
            raise DataError(
                f"Expected images as numbers of shape (n, {self.height}, {self.width}), got {values.dtype} of shape "
                f"{values.shape}; scale or cut them to this size"
            )
        out = np.empty((len(values), self.features))
        step = self._block
        for start in range(0, len(values), step):
            block = values[start : start + step].astype(np.float32)
            if not np.isfinite(block).all():
                raise DataError("Expected finite pixels; correct the image that has others")
            found = self.filters.transform(block)
            found = found.mean(axis=(2, 3), dtype=np.float64) if self.averaged else found
            found = found.reshape(len(block), -1)
            out[start : start + step] = _normalised(found, self.groups) if self.groups else found
        return out

    @property
    def _block(self) -> int:
        """Return how many images are transformed at a time: their moduli of order 1 fill some megabytes."""
        return max(1, _BLOCK_BYTES // (8 * self.filters.bands[0, 0].size))


@dataclass(frozen=True, slots=True)
class _Side:
    """One axis of an image: how it is mirrored, and where coefficients are taken."""

    places: NDArray[np.int64]
    first: int
    count: int

    @staticmethod
    def of(length: int, scales: int) -> _Side:
        """Mirror at both ends, without repeating the edge, to a multiple of 2^J that leaves room for the low pass."""
        step = 1 << scales
        padded = ((length + step) // step + 1) * step
        before = (padded - length) // 2
        places = np.abs(np.arange(padded) - before)
        places = np.where(places >= length, 2 * (length - 1) - places, places)
        return _Side(places, step, length // step)

    @property
    def frequencies(self) -> Matrix:
        """Return the frequency of each bin of the Fourier transform, in radians per pixel, within [-pi, pi)."""
        return np.asarray(2.0 * math.pi * np.fft.fftfreq(len(self.places)), np.float64)

    def low(self, scales: int) -> Matrix:
        """Return the low pass along this axis at every frequency, exactly 1 at 0."""
        spectrum = _gaussian(self.frequencies, _DEVIATION * 2.0 ** (scales - 1))
        return spectrum / spectrum[0]

    def means(self, scale: int, scales: int) -> Array:
        """Return the low pass along this axis and the choice of places as one matrix, for every 2^scale-th pixel."""
        length = len(self.places) >> scale
        kernel = np.fft.ifft(_cut(self.low(scales), 0, scale)).real
        at = (np.arange(1, self.count + 1) * self.first) >> scale
        return kernel[(at[:, None] - np.arange(length)) % length].astype(np.float32)


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters of one image size, as real functions of the frequency.

    Args:
        sides: the two axes.
        bands: of (scale of the pixels, scale of the wavelet): shape (angles, rows, columns).
        means: of each scale of the pixels: the low passes of rows and columns.
        low: |phi| at every frequency of the mirrored image.
        factor: of the wavelets.
    """

    sides: tuple[_Side, _Side]
    bands: dict[tuple[int, int], Array]
    means: tuple[tuple[Array, Array], ...]
    low: Matrix
    factor: float

    @staticmethod
    def of(rows: _Side, columns: _Side, scales: int, angles: int) -> Filters:
        """Return the filters with the factor that keeps the Littlewood-Paley sum within 1."""
        wavelets = [_wavelets(rows, columns, scale, angles) for scale in range(scales)]
        low = np.outer(rows.low(scales), columns.low(scales))
        energy = sum(map(_energy, wavelets), np.zeros_like(low))
        energy[0, 0] = 1.0  # exactly 0, as 1 - phi^2 is
        room = 1.0 - low * low
        room[0, 0] = np.inf
        factor = (1.0 - 1e-6) * math.sqrt(float((room / energy).min()))
        bands = {
            (pixels, scale): _cut(_cut(factor * wavelets[scale], 1, pixels), 2, pixels).astype(np.float32)
            for scale in range(scales)
            for pixels in range(scale + 1)
        }
        means = tuple((rows.means(scale, scales), columns.means(scale, scales)) for scale in range(scales))
        return Filters((rows, columns), bands, means, low, factor)

    def littlewood_paley(self, pixels: int = 0) -> Matrix:
        """Return the Littlewood-Paley sum at every frequency of maps that keep every 2^pixels-th pixel."""
        bands = [band for (kept, _), band in self.bands.items() if kept == pixels]
        low = _cut(_cut(self.low, 0, pixels), 1, pixels)
        return low**2 + sum((_energy(band.astype(np.float64)) for band in bands), np.zeros_like(low))

    def transform(self, images: Array) -> Array:
        """Return the coefficients, float32, shape (n, channels, rows, columns), of float32 images."""
        rows, columns = self.sides
        x = images[:, rows.places[:, None], columns.places]
        spectrum = _spectrum(x)
        scales = len(self.means)
        first = [self._moduli(spectrum[:, None], 0, scale) for scale in range(scales)]
        parts = [self._mean(x[:, None], 0), *(self._mean(u, scale) for scale, u in enumerate(first))]
        for scale, moduli in enumerate(first[:-1]):
            for angle in range(moduli.shape[1]):  # one at a time: they fit into the cache
                spectrum = _spectrum(moduli[:, angle, None])
                parts += [self._mean(self._moduli(spectrum, scale, j), j) for j in range(scale + 1, scales)]
        return np.concatenate(parts, axis=1)

    def _moduli(self, spectrum: Array, pixels: int, scale: int) -> Array:
        """Return |x * psi| at every 2^scale-th pixel, (n, L, ., .), of x at every 2^pixels-th, (n, 1, ., .)."""
        band, times = self.bands[pixels, scale], 1 << (scale - pixels)
        rows, columns = band.shape[1] // times, band.shape[2] // times
        folded = np.zeros((len(spectrum), len(band), rows, columns), np.complex64)
        for top in range(0, band.shape[1], rows):  # keeping each k-th pixel adds up k^2 parts of the spectrum
            for left in range(0, band.shape[2], columns):
                part = np.s_[..., top : top + rows, left : left + columns]
                folded += spectrum[part] * band[part]
        return np.abs(np.fft.ifft2(folded)) * np.float32(1.0 / times**2)

    def _mean(self, moduli: Array, pixels: int) -> Array:
        """Return the local means of maps at every 2^pixels-th pixel."""
        rows, columns = self.means[pixels]
        return rows @ (moduli @ columns.T)


def _gaussian(frequencies: Matrix, deviation: float) -> Matrix:
    """Return the transform of a Gaussian of this deviation, sampled at the pixels."""
    shifts = 2.0 * math.pi * np.arange(-2, 3)
    return np.exp(-0.5 * (deviation * (frequencies[:, None] + shifts)) ** 2).sum(axis=1)


def _wavelets(rows: _Side, columns: _Side, scale: int, angles: int) -> Matrix:
    """Return the transforms of the Morlet wavelets of one scale, shape (angles, rows, columns), before their factor."""
    wave, deviation = _WAVE / 2.0**scale, _DEVIATION * 2.0**scale
    shifts = 2.0 * math.pi * np.arange(-2, 3)
    down = (rows.frequencies[:, None] + shifts)[:, None, :, None]
    right = (columns.frequencies[:, None] + shifts)[:, None, :]
    out = np.empty((angles, len(rows.places), len(columns.places)))
    for number in range(angles):
        cosine, sine = math.cos(math.pi * number / angles), math.sin(math.pi * number / angles)
        along, across = cosine * down + sine * right, (cosine * right - sine * down) * (angles / 4.0)
        wide = -0.5 * deviation**2 * across**2
        carried = np.exp(wide - 0.5 * deviation**2 * (along - wave) ** 2).sum(axis=(2, 3))
        still = np.exp(wide - 0.5 * deviation**2 * along**2).sum(axis=(2, 3))
        out[number] = carried - carried[0, 0] / still[0, 0] * still
    return out


def _energy(wavelets: Matrix) -> Matrix:
    """Return 1/2 sum (|psi(w)|^2 + |psi(-w)|^2): what real images leave of their energy in these bands."""
    power = (wavelets * wavelets).sum(axis=0)
    opposite = np.roll(power[::-1, ::-1], 1, axis=(0, 1))
    return 0.5 * (power + opposite)


def _normalised(features: Array, groups: int) -> Matrix:
    """Return each group of a row less its mean and over its deviation, divided so that the row has length 1 at most."""
    parts = features.astype(np.float64).reshape(len(features), groups, -1)
    parts -= parts.mean(axis=2, keepdims=True)
    parts /= np.sqrt((parts * parts).mean(axis=2, keepdims=True) + _SMALLEST_VARIANCE)
    return parts.reshape(features.shape) / math.sqrt(features.shape[1])


def _cut(spectrum: Matrix, axis: int, scale: int) -> Matrix:
    """Return the low frequencies along an axis, 1 / 2^scale of them, in the order of a Fourier transform."""
    length = spectrum.shape[axis] >> scale
    keep = np.roll(np.arange(-(length // 2), length - length // 2, dtype=np.int64), -(length // 2))  # 0, 1 ... -2, -1
    return np.take(spectrum, keep, axis=axis, mode="wrap")


def _spectrum(x: Array) -> Array:
    """Return the whole two-dimensional Fourier transform of real maps, complex64; both sides are even."""
    half = np.fft.rfft2(x)
    rows, columns = x.shape[-2:]
    whole = np.empty(x.shape, np.complex64)
    whole[..., : columns // 2 + 1] = half
    mirrored = half[..., (-np.arange(rows)) % rows, :]
    whole[..., columns // 2 + 1 :] = mirrored[..., columns // 2 - 1 : 0 : -1].conj()
    return whole
