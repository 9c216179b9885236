"""Noisy sums over rows whose columns lie in [-1, 1]: middles, moments of each class, products, sums of clusters.

    release     what one record adds, as integers                            where it is cut
    middle      (1, x, |x|^2 / d), and 1 once more                           a row as a whole, to a usual length
    moments     (1, u, u^2) in the block of its class, u = x - middle        the same
    products    the upper triangle of r r^T, r = (x - middle, c)             r as a whole, to the usual distance
    clusters    (c, u) in the block of its cluster                           the same

A row that is cut is cut as a whole, its 1 included: a record far out weighs less in a sum and in the weight that
divides it alike, so a mean becomes a weighted mean and a line through the records stays where it is. The length to cut
at is a constant or follows from the first release; it is never taken from the records.

Every function's value of a record is made by operations on single numbers in one order. A matrix product rounds a row
by its place and the number of rows, so that one record more could push another over the edge of a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.dp.mechanisms import clipped_sum, default_grid
from confide.dp.moments import Moments
from confide.dp.queries import Asked
from confide.dp.spending import Allowance

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

_CLEAR = 2.0  # deviations of its noise that a weight or a variance needs to count as known
_FINE = 1 << 20  # grid of short rows; noise stays below 2^40 steps for every budget that says anything
_PRODUCTS = 1 << 12  # grid of rows whose products are summed
_LEAST_SPREAD = 1e-4  # of a column's half range, squared


@dataclass(frozen=True, slots=True)
class Middle:
    """What a first release says, public.

    Args:
        centre: of every column, in [-1, 1], shape (d,); 0 where nothing is known.
        records: how many there are, about; at least 1.
        spread: mean squared distance from the centre, for each column, 1e-4 to 1.
    """

    centre: Matrix
    records: float
    spread: float

    @property
    def distance(self) -> float:
        """Return how far a record usually is from the centre."""
        return math.sqrt(self.spread * max(1, len(self.centre)))


@dataclass(frozen=True, slots=True)
class ClassMoments:
    """Weights, means and variances of each class, noise included.

    Args:
        weights: about the records of each class, shape (k,), at least 1.
        means: shape (k, d), in [-1, 1].
        variances: shape (k, d), above 0: at least twice their noise's deviation.
    """

    weights: Matrix
    means: Matrix
    variances: Matrix


def scaled(x: Matrix, low: Matrix, high: Matrix) -> Matrix:
    """Return finite rows cut to their bounds and mapped to [-1, 1]."""
    half = high / 2 - low / 2
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # what overflows is cut to 1
        t = np.clip((np.clip(x, low, high) - (low / 2 + high / 2)) / half, -1.0, 1.0)
    return np.nan_to_num(t, copy=False)  # NaN would be any integer


def unit_rows(x: Matrix) -> Matrix:
    """Return rows of length 1; rows of zeros stay."""
    peak = np.abs(x).max(axis=1, initial=0.0)[:, None]
    direction = x / np.where(peak > 0, peak, 1.0)
    length = np.sqrt(squares(direction))[:, None]
    return direction / np.where(length > 0, length, 1.0)


def squares(x: Matrix) -> Matrix:
    """Return the squared length of each row, summed in one order."""
    return np.cumsum(x * x, axis=1)[:, -1] if x.shape[1] else np.zeros(len(x))


def nearest(x: Matrix, centres: Matrix) -> Vector:
    """Return the nearest centre of each row, the first of several, from sums in one order."""
    distance = np.zeros((len(x), len(centres)))
    for column in range(x.shape[1]):
        apart = x[:, column, None] - centres[None, :, column]
        distance += apart * apart
    return distance.argmin(axis=1).astype(np.int64)


def middle_of(x: Matrix, taken: Allowance, rng: Randomness) -> Middle:
    """Return where the records are, from one release that spends all of `taken`.

    Args:
        x: float64, shape (n, d), in [-1, 1].
    """
    width = x.shape[1] + 2
    norm, grid = math.sqrt(1.25 + x.shape[1] / 2), max(_FINE, default_grid(width))
    one = math.floor(grid / norm)

    def total() -> Vector:
        rows = np.concatenate([np.ones((len(x), 1)), x, squares(x)[:, None] / x.shape[1]], axis=1)
        return np.append(clipped_sum(rows, clip_norm=norm, grid=grid).total, len(x) * one)

    asked = Asked("middle of every column", taken, rng)
    noisy = asked.released(total, length=width + 1, sensitivity=math.isqrt(grid * grid + one * one) + 1)
    records = max(1.0, float(noisy[-1]) / one)
    weight = float(noisy[0])
    if not weight > _CLEAR * asked.deviation:
        return Middle(np.zeros((x.shape[1],)), records, 1 / 3)
    centre = np.clip(np.asarray(noisy[1:-2] / weight, np.float64), -1.0, 1.0)
    spread = float(noisy[-2]) / weight - float((centre * centre).mean())
    return Middle(centre, records, min(max(spread, _LEAST_SPREAD), 1.0))


def class_moments(
    x: Matrix, place: Vector, classes: int, taken: Allowance, rng: Randomness, *, first: float = 0.2
) -> ClassMoments:
    """Return mean and variance of every column in each class.

    Args:
        x: float64, shape (n, d), in [-1, 1].
        place: the class of each record, int64, shape (n,), below `classes`.
        first: the share of mu^2 for the middle of all records, from which they are measured.
    """
    columns = x.shape[1]
    middle = middle_of(x, taken.part(first), rng)
    width, norm = 1 + 2 * columns, math.sqrt(1 + columns * min(1.0, 2 * middle.spread))
    grid = max(_FINE, default_grid(width))

    def total() -> Vector:
        u = x - middle.centre
        rows = np.concatenate([np.ones((len(x), 1)), u, u * u], axis=1)
        return _by_place(rows, place, classes, norm=norm, grid=grid)

    asked = Asked("moments of every column", taken.part(1 - first), rng)
    noisy = asked.released(total, length=classes * width, sensitivity=grid).reshape(classes, width) * (norm / grid)
    noise = asked.deviation * (norm / grid)
    weights = np.maximum(noisy[:, 0], max(1.0, _CLEAR * noise))[:, None]
    means, seconds = np.clip(noisy[:, 1 : columns + 1] / weights, -2.0, 2.0), noisy[:, columns + 1 :] / weights
    least = np.minimum(np.maximum(_CLEAR * noise * np.sqrt(1 + 4 * means * means) / weights, 1e-9), 1.0)
    variances = np.clip(seconds - means * means, least, 1.0)
    return ClassMoments(weights[:, 0], np.clip(middle.centre + means, -1.0, 1.0), variances)


@dataclass(frozen=True, slots=True)
class Products:
    """Sums of products of columns that are measured from a centre, noise included.

    Args:
        gram: sum of r r^T, shape (d + 1, d + 1), symmetric, r = (x - centre, constant).
        constant: of every record.
        noise: deviation of the noise of an entry beside the diagonal.
    """

    gram: Matrix
    constant: float
    noise: float


def products_of(x: Matrix, middle: Middle, taken: Allowance, rng: Randomness, *, reach: float = 0.75) -> Products:
    """Return the sums of products from one release that spends all of `taken`.

    Args:
        x: float64, shape (n, d), in [-1, 1].
        middle: from `middle_of`.
        reach: records further out than so many usual distances are cut, and weigh less, so that noise may be less.
    """
    distance = reach * middle.distance
    constant = distance / 2
    moments = Moments(
        features=x.shape[1] + 1,
        targets=1,  # of no use here: its weight is the least there is, a ten thousandth of the noise
        norm=math.hypot(distance, constant),
        grid=max(_PRODUCTS, default_grid(x.shape[1] + 1)),
        cross_weight=1e-9,
    )

    def total() -> Vector:
        rows = np.concatenate([x - middle.centre, np.full((len(x), 1), constant)], axis=1)
        return moments.summed(rows, np.zeros(len(x), np.int64), np.ones(len(x), np.int64)).total

    asked = Asked("products of columns", taken, rng)
    noisy = asked.released(total, length=moments.length, sensitivity=moments.sensitivity)
    gram, _ = moments.split(noisy * (moments.clip_norm / moments.sensitivity))
    noise, _ = moments.deviations(asked.deviation / moments.sensitivity)
    return Products(gram, constant, noise)


def cluster_sums(
    u: Matrix, place: Vector, clusters: int, distance: float, taken: Allowance, rng: Randomness
) -> tuple[Matrix, Matrix, float]:
    """Return about how many records each cluster has, their sums, and the noise's deviation in the former.

    Args:
        u: float64, shape (n, d), measured from a public centre.
        place: the cluster of each record.
        distance: how far records usually are from the centre.
    """
    width, constant = u.shape[1] + 1, distance / 2
    norm, grid = math.hypot(1.5 * distance, constant), max(_FINE, default_grid(width))

    def total() -> Vector:
        rows = np.concatenate([np.full((len(u), 1), constant), u], axis=1)
        return _by_place(rows, place, clusters, norm=norm, grid=grid)

    asked = Asked("sums of clusters", taken, rng)
    noisy = asked.released(total, length=clusters * width, sensitivity=grid).reshape(clusters, width) * (norm / grid)
    return noisy[:, 0] / constant, noisy[:, 1:], asked.deviation * (norm / grid) / constant


def _by_place(rows: Matrix, place: Vector, places: int, *, norm: float, grid: int) -> Vector:
    """Return the sum of the cut rows of each place, one after the other: a record is in one of them."""
    return np.concatenate([clipped_sum(rows[place == one], clip_norm=norm, grid=grid).total for one in range(places)])
