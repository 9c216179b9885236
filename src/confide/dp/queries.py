"""Statistics of one holder's records under differential privacy: count, sum, mean, variance, histograms, groups.

Every query is one sum over the records of integer vectors whose L2 norm is bounded whatever the record, plus exact
discrete Gaussian noise; what is read from the noisy sum is public. With t = (x - middle) / half in [-1, 1]:

    query       what one record adds                    squared norm at most
    count       1                                       1
    sum         x                                       max(|low|, |high|)^2
    mean        (t, c)               c^2 = 1/2          1 + c^2
    variance    (t, 2 t^2 - 1, c)                       2 + c^2
    histogram   1 in its cell                           1

Neighbours differ by one record, added or removed, so the number of records is as private as the rest: a mean divides by
a noisy count that its own release contains, and nothing divides by len(values). Bounds, cells and groups are arguments,
because bounds taken from the records are a release that nobody accounts for: one record of 1,000,000 moves them at
will.

**Values that are not numbers**: a record whose value is NaN or infinite counts for nothing, as if it were absent.
Nothing is raised and no number of them is told, because either would tell of records. Values beyond the bounds count as
the nearer bound; beyond the cells of a histogram they count for nothing. In lists and arrays of objects every entry is
read by itself, and what is no number (None, pandas.NA, text, dates, lists) is NaN: numpy would find one type for all of
a list, so that one record could rewrite every other. Arrays of text or dates are refused: their type is public, and the
message never holds a value.

The quantiles are in `confide.dp.quantiles`.

Source: the release and its account, docs/protocols/dp-gradient.md (theorem 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.crypto.noise import discrete_gaussian
from confide.crypto.random import Randomness, SystemRandomness
from confide.dp.spending import Allowance, Budget, allowance, label_of
from confide.dp.values import column_of, number_column, numbers, places
from confide.errors import DataError, PrivacyError, UsageError
from confide.guarantee import PrivacyLabel

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]
Bounds = tuple[float, float]

#: Steps of a number in [-1, 1], and of a one: fine enough that rounding is far below any noise.
GRID = 1 << 24

#: What a record adds to the count beside a mean, sqrt(1/2): about the best where the mean's place is unknown.
_COUNT = math.isqrt(GRID * GRID // 2)

_CLEAR = 5.0  # deviations of its noise that a count needs before anything is divided by it


class Spending(TypedDict, total=False):
    """What every query may be told about what it spends.

    epsilon, delta: of this answer alone; with a `budget` its delta counts.
    budget, share: a budget that others share, and how much of its mu^2 this takes, unless `epsilon` says so.
    rng: secret randomness; the operating system's without it. A fixed seed voids the claim, and the label says so.
    """

    epsilon: float | None
    delta: float | None
    budget: Budget | None
    share: float | None
    rng: Randomness | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """An answer with its noise.

    Args:
        of: what was asked.
        value: a number, or an array of them.
        standard_error: deviation of the noise in `value`, one for all or one each; it says nothing about sampling. Of a
            ratio (mean, variance) to first order.
        low, high: what no value can be beyond; infinite where nothing is known.
        label: the privacy label: epsilon, delta, mu, unit, relation, noise and its source.
    """

    of: str
    value: Any
    standard_error: Any
    low: float = -math.inf
    high: float = math.inf
    label: PrivacyLabel

    @property
    def epsilon(self) -> float:
        """Return what this answer cost alone, at `delta`."""
        assert self.label.epsilon is not None
        return self.label.epsilon

    @property
    def delta(self) -> float:
        """Return the delta of the budget that paid."""
        assert self.label.delta is not None
        return self.label.delta

    def interval(self, confidence: float = 0.95) -> tuple[Any, Any]:
        """Return the ends of an interval that holds the same figure without noise with this probability.

        Args:
            confidence: 0 < confidence < 1.
        """
        if not 0 < confidence < 1:
            raise UsageError(f"Expected confidence={confidence} between 0 and 1")
        width = NormalDist().inv_cdf((1 + confidence) / 2) * np.asarray(self.standard_error)
        return _plain(np.clip(self.value - width, self.low, self.high)), _plain(
            np.clip(self.value + width, self.low, self.high)
        )

    def __float__(self) -> float:
        return float(self.value)


def count(values: ArrayLike, **spending: Unpack[Spending]) -> Estimate:
    """Return how many records there are.

    Args:
        values: shape (n,), n >= 0: numpy, pandas, polars or a list. Values that are not finite are no record.
        spending: see `Spending`.

    Example:
        >>> found = count([1.0] * 5000, epsilon=1.0, delta=1e-6)
        >>> abs(found.value - 5000) < 8 * found.standard_error
        True
    """
    asked, values = asked_for("count", spending), number_column(values)

    def total() -> Vector:
        return np.array([np.isfinite(numbers(values)).sum() * GRID], np.int64)

    noisy = asked.released(total, length=1, sensitivity=GRID)
    value = max(0, round(float(noisy[0]) / GRID))
    return asked.estimate(value, asked.deviation / GRID, low=0.0)


def sum(values: ArrayLike, *, bounds: Bounds, **spending: Unpack[Spending]) -> Estimate:
    """Return the sum of numbers, each cut to public bounds.

    Args:
        values: as in `count`.
        bounds: (low, high) in the unit of the values, public; the noise is that of the one further from 0.
        spending: see `Spending`.
    """
    low, high = checked_bounds(bounds)
    asked, reach = asked_for("sum", spending), max(abs(low), abs(high))
    values = number_column(values)

    def total() -> Vector:
        inside = np.clip(_finite(numbers(values)), low, high)
        return np.rint(inside / reach * GRID).astype(np.int64).sum(keepdims=True)

    noisy = asked.released(total, length=1, sensitivity=GRID)
    return asked.estimate(float(noisy[0]) * (reach / GRID), asked.deviation * (reach / GRID))


def mean(values: ArrayLike, *, bounds: Bounds, **spending: Unpack[Spending]) -> Estimate:
    """Return the mean of numbers, each cut to public bounds: a noisy sum over a noisy count, both from one release.

    Where the count is not clear of its noise nothing is known: the value is the middle of the bounds, with an infinite
    standard error.

    Args:
        values: as in `count`.
        bounds: (low, high) in the unit of the values, public.
        spending: see `Spending`.
    """
    low, high = checked_bounds(bounds)
    asked, values = asked_for("mean", spending), number_column(values)

    def total() -> Vector:
        steps = _steps(_finite(numbers(values)), low, high)
        return np.array([steps.sum(), len(steps) * _COUNT], np.int64)

    noisy = asked.released(total, length=2, sensitivity=_norm(GRID, _COUNT))
    value, error = _means(noisy[:1], noisy[1:], asked.deviation, low, high)
    return asked.estimate(float(value[0]), float(error[0]), low=low, high=high)


def variance(values: ArrayLike, *, bounds: Bounds, **spending: Unpack[Spending]) -> Estimate:
    """Return the variance of numbers, each cut to public bounds; divided by n, not n - 1.

    Args:
        values: as in `count`.
        bounds: (low, high) in the unit of the values, public.
        spending: see `Spending`.
    """
    low, high = checked_bounds(bounds)
    asked, half = asked_for("variance", spending), high / 2 - low / 2
    values = number_column(values)

    def total() -> Vector:
        inside = _finite(numbers(values))
        t = within(inside, low, high)
        squares = np.rint((2 * t * t - 1) * GRID).astype(np.int64)
        return np.array([_steps(inside, low, high).sum(), squares.sum(), len(inside) * _COUNT], np.int64)

    noisy = asked.released(total, length=3, sensitivity=_norm(GRID, GRID, _COUNT))
    records, beside = float(noisy[2]) / _COUNT, asked.deviation / _COUNT
    most = half * half  # no variance within the bounds is larger
    if records < max(1.0, _CLEAR * beside):
        return asked.estimate(most / 2, math.inf, low=0.0, high=most)
    first, second = (float(number) / GRID / records for number in noisy[:2])
    value = (second + 1) / 2 - first * first
    each = asked.deviation / GRID / records
    error = math.hypot(each / 2, 2 * first * each, (2 * first * first - second / 2) * beside / records)
    return asked.estimate(min(max(value, 0.0), 1.0) * most, error * most, low=0.0, high=most)


def std(values: ArrayLike, *, bounds: Bounds, **spending: Unpack[Spending]) -> Estimate:
    """Return the standard deviation of numbers, each cut to public bounds: the root of `variance`."""
    found = variance(values, bounds=bounds, **spending)
    root = math.sqrt(found.value)
    error = found.standard_error
    error = min(error / (2 * root), math.sqrt(error)) if root > 0 and math.isfinite(error) else math.inf
    return Estimate(of="std", value=root, standard_error=error, low=0.0, high=math.sqrt(found.high), label=found.label)


def histogram(values: ArrayLike, *, edges: ArrayLike, **spending: Unpack[Spending]) -> Estimate:
    """Return how many records lie in each cell: whole numbers, shape (cells,), below 0 where noise made them so.

    Sums of cells that were cut at 0 are too large; cut them where you show them, not before.

    Args:
        values: as in `count`; those beyond the edges lie in no cell.
        edges: public, rising, shape (cells + 1,); a value on an edge lies above it, on the last edge below it.
        spending: see `Spending`.
    """
    cuts = checked_edges(edges)
    asked, cells = asked_for("histogram", spending), len(cuts) - 1
    values = number_column(values)

    def total() -> Vector:
        return _cells(cell_of(numbers(values), cuts), cells)

    noisy = asked.released(total, length=cells, sensitivity=GRID)
    return asked.estimate(np.rint(noisy / GRID).astype(np.int64), asked.deviation / GRID, low=0.0)


def histogram2d(
    first: ArrayLike, second: ArrayLike, *, edges: tuple[ArrayLike, ArrayLike], **spending: Unpack[Spending]
) -> Estimate:
    """Return how many records lie in each cell of two columns, shape (cells of the first, cells of the second).

    Args:
        first, second: as in `histogram`, of the same records.
        edges: public, of either column.
        spending: see `Spending`.
    """
    one, other = (checked_edges(cuts) for cuts in edges)
    asked, rows, columns = asked_for("histogram2d", spending), len(one) - 1, len(other) - 1
    first, second = number_column(first), number_column(second)
    _check_lengths(first, second)

    def total() -> Vector:
        row, column = cell_of(numbers(first), one), cell_of(numbers(second), other)
        return _cells(np.where((row >= 0) & (column >= 0), row * columns + column, -1), rows * columns)

    noisy = asked.released(total, length=rows * columns, sensitivity=GRID)
    value = np.rint(noisy / GRID).astype(np.int64).reshape(rows, columns)
    return asked.estimate(value, asked.deviation / GRID, low=0.0)


def group_by(
    keys: ArrayLike,
    *,
    groups: Sequence[Any],
    of: Literal["count", "sum", "mean"] = "count",
    values: ArrayLike | None = None,
    bounds: Bounds | None = None,
    **spending: Unpack[Spending],
) -> Estimate:
    """Return the count, sum or mean of each group of records, shape (groups,), in their order.

    A record is in one group at most, so all groups together cost what one does.

    Args:
        keys: shape (n,): the group of each record; records of other groups count for nothing.
        groups: public: which groups there may be. The groups that occur are not: a rare one would name its record.
        of: what of each group.
        values, bounds: of "sum" and "mean", as there.
        spending: see `Spending`.
    """
    if of not in ("count", "sum", "mean"):
        raise UsageError(f'Expected of={of!r} to be "count", "sum" or "mean"')
    _check_groups(groups)
    if (of == "count") != (values is None) or (values is None) != (bounds is None):
        raise UsageError(f"Expected values and bounds for of={of!r} if and only if it is a sum or a mean")
    low, high = (-1.0, 1.0) if bounds is None else checked_bounds(bounds)
    asked, number = asked_for(f"{of} of {len(groups)} groups", spending), len(groups)
    keyed = column_of(keys)
    x = np.zeros(len(keyed)) if values is None else number_column(values)
    _check_lengths(keyed, x)
    reach = max(abs(low), abs(high))

    def total() -> Vector:
        place, found = places(keyed, groups), numbers(x)
        kept = (place >= 0) & np.isfinite(found)
        place, found = place[kept], found[kept]
        one = np.bincount(place, minlength=number).astype(np.int64)
        if of == "count":
            return one * GRID
        inside = np.clip(found, low, high)
        steps = np.rint(inside / reach * GRID).astype(np.int64) if of == "sum" else _steps(inside, low, high)
        sums = np.zeros(number, np.int64)
        np.add.at(sums, place, steps)
        return sums if of == "sum" else np.concatenate([sums, one * _COUNT])

    if of == "mean":
        noisy = asked.released(total, length=2 * number, sensitivity=_norm(GRID, _COUNT))
        value, error = _means(noisy[:number], noisy[number:], asked.deviation, low, high)
        return asked.estimate(value, error, low=low, high=high)
    noisy = asked.released(total, length=number, sensitivity=GRID)
    if of == "count":
        return asked.estimate(np.rint(noisy / GRID).astype(np.int64), asked.deviation / GRID, low=0.0)
    return asked.estimate(noisy * (reach / GRID), asked.deviation * (reach / GRID))


# --- what the queries share -------------------------------------------------------------------------------------------


def asked_for(of: str, spending: Spending) -> Asked:
    """Return a query that spends what its caller was told; see `Spending`."""
    if unknown := sorted(set(spending) - set(Spending.__annotations__)):
        raise UsageError(f"Unknown argument {unknown[0]!r} of {of}; there are epsilon, delta, budget, share and rng")
    taken = allowance(
        epsilon=spending.get("epsilon"),
        delta=spending.get("delta"),
        budget=spending.get("budget"),
        share=spending.get("share"),
    )
    taken.check(of)  # before the data is looked at
    return Asked(of, taken, spending.get("rng") or SystemRandomness())


class Asked:
    """One query: what it may spend, its noise, and how it says what it found.

    Args:
        of: what is released.
        taken: what it may spend.
        rng: secret randomness.
    """

    def __init__(self, of: str, taken: Allowance, rng: Randomness) -> None:
        self.of, self.rng, self._taken = of, rng, taken
        self.variance, self.sensitivity, self._lengths = 0.0, 0, list[int]()

    @property
    def deviation(self) -> float:
        """Return the noise's deviation in each number, in steps."""
        return math.sqrt(self.variance)

    def charge(self, lengths: Sequence[int], *, sensitivity: int) -> None:
        """Spend everything on sums of these lengths, in equal parts of mu^2; each of them is then released once.

        Raises:
            PrivacyError: it does not fit.
        """
        part = self._taken.part(1 / len(lengths))
        events = [part.sums(length=length, sensitivity=sensitivity) for length in lengths]
        self._taken.budget.charge(*events, of=self.of)
        self.variance, self.sensitivity, self._lengths = events[0].share_variance, sensitivity, list(lengths)

    def released(self, total: Callable[[], Vector], *, length: int, sensitivity: int) -> Matrix:
        """Return `total` with noise, float64, after it was charged: only then is the data looked at."""
        self.charge([length], sensitivity=sensitivity)
        return self.noisy(total())

    def noisy(self, exact: Vector) -> Matrix:
        """Return one sum of those that were charged with its noise, float64, in steps.

        Raises:
            PrivacyError: all that were charged were released, or it is longer or shorter than the next.
        """
        if not self._lengths or exact.shape != (self._lengths.pop(0),):
            raise PrivacyError(f"Expected {self.of} to release what was charged, once and in its length")
        return (exact + discrete_gaussian(self.variance, len(exact), self.rng)).astype(np.float64)

    def estimate(
        self, value: Any, error: Any, *, low: float = -math.inf, high: float = math.inf, releases: int = 1
    ) -> Estimate:
        """Return the answer with its label."""
        label = label_of(
            self._taken,
            mechanism=(
                f"{self.of}: {releases} sums of integer vectors of norm at most {self.sensitivity / GRID:.4g} with "
                f"discrete Gaussian noise of deviation {self.deviation / GRID:.4g}"
            ),
            releases=releases,
            noise_from=self.rng.origin,
            released="the answer",
        )
        return Estimate(of=self.of, value=value, standard_error=error, low=low, high=high, label=label)


def checked_bounds(bounds: Any) -> Bounds:
    """Return public bounds as two floats.

    Raises:
        UsageError: they are absent, not finite, do not rise, or are too close to measure from their middle.
    """
    if bounds is None:
        raise UsageError(
            "Expected bounds=(low, high); they are public and say how far one record can reach. Taken from the records "
            "they would be a release of their own that no epsilon covers: know them from the field's meaning"
        )
    try:
        low, high = (float(end) for end in bounds)
    except (TypeError, ValueError, OverflowError):
        raise UsageError("Expected bounds=(low, high), two numbers") from None
    if not (low < high and math.isfinite(high - low)):
        raise UsageError(f"Expected finite bounds with low={low} below high={high}")
    if high / 2 - low / 2 < np.finfo(np.float64).tiny:
        raise UsageError("Expected wider bounds: half their distance is no normal float64; scale the values")
    return low, high


def checked_edges(edges: Any) -> Matrix:
    """Return public edges of cells.

    Raises:
        UsageError: they are a number of cells, or do not rise.
    """
    if np.ndim(edges) == 0:
        raise UsageError(
            "Expected edges, an array of at least two rising numbers; a number of cells alone would take the ends from "
            "the records. np.linspace(low, high, cells + 1) makes edges from public bounds"
        )
    cuts = np.asarray(edges, np.float64)
    if cuts.ndim != 1 or len(cuts) < 2 or not (np.isfinite(cuts).all() and (np.diff(cuts) > 0).all()):
        raise UsageError("Expected edges of shape (cells + 1,), finite and rising")
    return cuts


def cell_of(x: Matrix, edges: Matrix) -> Vector:
    """Return the cell of each number, -1 where there is none."""
    cell = np.searchsorted(edges, x, side="right") - 1
    cell = np.where(x == edges[-1], len(edges) - 2, cell)
    return np.where(np.isfinite(x) & (cell < len(edges) - 1), cell, -1).astype(np.int64)


def _cells(cell: Vector, cells: int) -> Vector:
    return np.bincount(cell[cell >= 0], minlength=cells).astype(np.int64) * GRID


def _check_groups(groups: Sequence[Any]) -> None:
    try:
        different = len(set(groups)) == len(groups) > 0
    except TypeError:
        raise UsageError("Expected a list of groups that can be keys of a dictionary; they are public") from None
    if not different:
        raise UsageError(f"Expected different groups, at least one, got {len(groups)}; they are public")


def _check_lengths(one: NDArray[Any], other: NDArray[Any]) -> None:
    if len(one) != len(other):
        raise DataError("Expected as many values of one kind as of the other: they are of the same records")


def _finite(x: Matrix) -> Matrix:
    return x[np.isfinite(x)]


def within(x: Matrix, low: float, high: float) -> Matrix:
    """Return finite numbers in [-1, 1]: cut to the bounds, measured from their middle."""
    half = high / 2 - low / 2
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # what overflows is cut to 1
        t = np.clip((np.clip(x, low, high) - (low / 2 + high / 2)) / half, -1.0, 1.0)
    return np.nan_to_num(t, copy=False)  # NaN would be any integer


def _steps(x: Matrix, low: float, high: float) -> Vector:
    return np.rint(within(x, low, high) * GRID).astype(np.int64)


def _norm(*entries: int) -> int:
    """Return the L2 norm of integers, rounded up."""
    square = 0
    for entry in entries:
        square += entry * entry
    root = math.isqrt(square)
    return root if root * root == square else root + 1


def _means(sums: Matrix, counts: Matrix, deviation: float, low: float, high: float) -> tuple[Matrix, Matrix]:
    """Return means and their standard errors from noisy sums and counts in steps."""
    half, middle = high / 2 - low / 2, low / 2 + high / 2
    records, beside = counts / _COUNT, deviation / _COUNT
    known = records >= max(1.0, _CLEAR * beside)
    safe = np.where(known, records, 1.0)
    ratio = np.where(known, sums / GRID / safe, 0.0)
    error = half * np.hypot(deviation / GRID, ratio * beside) / safe
    return np.clip(middle + half * ratio, low, high), np.where(known, error, np.inf)


def _plain(values: NDArray[Any]) -> Any:
    return values if values.ndim else float(values)
