"""The public preparation of inputs: raw columns to the feature matrix that a graph takes.

It is part of the model, runs wherever the raw data is (a silo in training, the client in prediction) and knows nothing
but what a schema says in public, unless a job asked for standardisation: then the mean and deviation of all parties'
records, from one sum, are part of it and public with it. Every feature lies in
[-1, 1], so a backend that must bound its inputs (the input box of homomorphic encryption, the range of fixed point) can
rely on 1.

Raw columns are `{name: array}`: float64 for numbers with NaN where missing, text for categories with "" or None where
missing, numbers of shape (n, height, width) for images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError, ModelError, nearest
from confide.model.encoded import Encoded
from confide.model.encoder import Encoder
from confide.model.pixels import Pixels
from confide.model.projection import RandomProjection
from confide.model.rule import check_text, first_row
from confide.structs import known

Matrix = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]

#: The level that stands for a missing category, as it appears in feature names.
MISSING = "(missing)"

#: A standardised number further than this many deviations from the mean counts as this far.
DEVIATIONS = 4.0

#: Numbers keep this share of [-1, 1] where a missing one lies beyond them.
_ROOM = 7 / 8

_LARGEST_BYTES = 1 << 20
_MOST_FEATURES = 1 << 16
_MOST_NAMED = 20  # categories in a text
_MOST_WHITENED = 4  # columns; the statistics of each are worked out anew wherever a model is opened
_BLOCK_NUMBERS = 1 << 20  # of one intermediate array


class Scale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="scale", tag_field="rule"):
    """A number, mapped linearly from [low, high] to [-1, 1].

    Args:
        name: the raw column.
        low, high: public bounds in the column's own unit, low < high.
        missing: the public value that stands for a missing one, within the bounds; None refuses missing values;
            "level" keeps them apart: there are then two features, with missing ones below and above all others, or one
            more for them beside those of intervals.
        outside: "refuse" a value beyond the bounds, or "clip" it to the nearer one.
        standard: the mean and the deviation of the column, both public, deviation > 0: mean +- 4 deviations are mapped
            to [-1, 1] instead of the bounds, values further out count as that far.
        bins: public edges within the bounds, rising: one feature for each interval instead, 1 for the one that holds. A
            value on an edge belongs to the interval above it.
        ordinal: a number's feature is the number of its interval among `bins`, mapped to [-1, 1]: what trees take.
    """

    name: str
    low: float
    high: float
    missing: float | Literal["level"] | None = None
    outside: Literal["refuse", "clip"] = "refuse"
    standard: tuple[float, float] | None = None
    bins: tuple[float, ...] = ()
    ordinal: bool = False

    def __post_init__(self) -> None:
        check_text(self.name)
        for field in ("low", "high"):  # 0 and 0.0 are the same rule, so they become the same bytes
            msgspec.structs.force_setattr(self, field, float(getattr(self, field)))
        if not isinstance(self.missing, str | None):
            msgspec.structs.force_setattr(self, "missing", float(self.missing))
        if not (self.low < self.high and math.isfinite(self.high - self.low)):
            raise ModelError(f"Expected low={self.low} below high={self.high} for column {self.name!r}")
        if not isinstance(self.missing, str | None) and not self.low <= self.missing <= self.high:
            raise ModelError(f"Expected missing={self.missing} within the bounds of column {self.name!r}")
        if self.standard is not None:
            mean, deviation = float(self.standard[0]), float(self.standard[1])
            msgspec.structs.force_setattr(self, "standard", (mean, deviation))
            if not (self.low <= mean <= self.high and 0.0 < deviation < math.inf):
                raise ModelError(f"Expected a mean within the bounds of column {self.name!r} and a deviation above 0")
        msgspec.structs.force_setattr(self, "bins", tuple(map(float, self.bins)))
        edges = (self.low, *self.bins, self.high)
        if any(not one < other for one, other in pairwise(edges)) or (
            (self.bins or self.ordinal) and self.standard is not None
        ):
            raise ModelError(f"Expected rising bins within the bounds of column {self.name!r}, and no mean beside them")

    @property
    def sides(self) -> tuple[int, ...]:
        """Return the shape of one raw value."""
        return ()

    @property
    def count(self) -> int:
        """Return the number of features this gives."""
        return len(self.features)

    @property
    def levels(self) -> int:
        """Return how many different values there are to a number of intervals, a missing one among them."""
        return len(self.bins) + 1 + (self.missing == "level")

    @property
    def features(self) -> tuple[str, ...]:
        """Return the names of the features this gives: one, or one for each interval."""
        if not self.bins or self.ordinal:
            either = (f"{self.name} (missing below)", f"{self.name} (missing above)")
            return either if self.missing == "level" else (self.name,)
        own = (f"{self.name}={MISSING}",) if self.missing == "level" else ()
        return (f"{self.name}<{self.bins[0]:g}", *(f"{self.name}>={edge:g}" for edge in self.bins), *own)

    def apply(self, values: NDArray[Any]) -> Matrix:
        """Return the features, shape (n, 1), (n, 2) or (n, intervals), from raw numbers, shape (n,)."""
        numbers, absent = self._within(values)
        apart = absent & (self.missing == "level")
        if self.bins or self.ordinal:
            places = np.searchsorted(self.bins, numbers, side="right")
            if not self.ordinal:
                return np.eye(self.levels)[np.where(apart, len(self.bins) + 1, places)]
            values = level_values(self.levels)
            if self.missing == "level":
                return np.stack([values[np.where(apart, 0, places + 1)], values[np.where(apart, -1, places)]], axis=1)
            return values[places][:, None]
        if self.standard is not None:
            mean, deviation = self.standard
            x = np.clip((numbers - mean) / deviation / DEVIATIONS, -1.0, 1.0)
        else:
            x = 2.0 * ((numbers - self.low) / (self.high - self.low)) - 1.0
        if self.missing == "level":
            return np.stack([np.where(apart, -1.0, _ROOM * x), np.where(apart, 1.0, _ROOM * x)], axis=1)
        return x[:, None]

    def _within(self, values: NDArray[Any]) -> tuple[Matrix, NDArray[np.bool_]]:
        """Return the numbers, filled in and within the bounds as the rule says, and which were missing."""
        numbers = _numbers(self.name, values)
        absent = np.isnan(numbers)
        if absent.any():
            if self.missing is None:
                raise DataError(
                    f"Expected a value of {self.name!r} in {first_row(absent)}; fill it in, or state a missing rule"
                )
            numbers = np.where(absent, self.low if self.missing == "level" else self.missing, numbers)
        beyond = (numbers < self.low) | (numbers > self.high)
        if beyond.any():
            if self.outside == "refuse":
                raise DataError(
                    f"Expected {self.name!r} from {self.low:g} to {self.high:g}, {first_row(beyond)} is outside; "
                    'correct it, or state outside = "clip"'
                )
            numbers = np.clip(numbers, self.low, self.high)
        return numbers, absent


def level_values(levels: int) -> Matrix:
    """Return where so many levels lie in [-1, 1], evenly from one end to the other; one level lies at 0."""
    return (2.0 * np.arange(levels) - (levels - 1)) / max(1, levels - 1)


class OneHot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="one-hot", tag_field="rule"):
    """A category, as one feature per known category: 1 for the one that holds, 0 for the others.

    Args:
        name: the raw column.
        categories: the known categories, all different, at least one; each is text that is not empty.
        missing: "refuse" missing values, or give them a "level" (a feature) of their own.
    """

    name: str
    categories: tuple[str, ...]
    missing: Literal["refuse", "level"] = "refuse"

    def __post_init__(self) -> None:
        check_text(self.name)
        for category in self.categories:
            check_text(category)
        if not self.categories or len(set(self.categories)) != len(self.categories) or MISSING in self.categories:
            raise ModelError(f"Expected different categories for column {self.name!r}, none named {MISSING}")

    @property
    def sides(self) -> tuple[int, ...]:
        """Return the shape of one raw value."""
        return ()

    @property
    def count(self) -> int:
        """Return the number of features this gives."""
        return len(self.categories) + (self.missing == "level")

    @property
    def features(self) -> tuple[str, ...]:
        """Return the names of the features this gives."""
        own = (MISSING,) if self.missing == "level" else ()
        return tuple(f"{self.name}={category}" for category in self.categories + own)

    def apply(self, values: NDArray[Any]) -> Matrix:
        """Return the features, shape (n, categories), from raw text, shape (n,)."""
        places: dict[object, int] = {category: place for place, category in enumerate(self.categories)}
        places |= {"": len(self.categories), None: len(self.categories)} if self.missing == "level" else {}
        out = np.zeros((len(values), len(self.features)))
        for row, value in enumerate(values.tolist()):
            if not (value is None or isinstance(value, str)) or value not in places:
                raise self._refusal(row, value)
            out[row, places[value]] = 1.0
        return out

    def _refusal(self, row: int, value: object) -> DataError:
        if value in ("", None):
            return DataError(f"Expected a value of {self.name!r} in row {row + 1}; fill it in, or state a missing rule")
        return DataError(
            f"Expected a known category of {self.name!r}, row {row + 1} has another; the model knows "
            f"{', '.join(self.categories[:_MOST_NAMED])}{' ...' if len(self.categories) > _MOST_NAMED else ''}"
        )


class Projection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A public random projection of all features to fewer.

    Args:
        outputs: features that are left, at least 1 and at most as many as there are.
        seed: of the public choice, 64 bits.
    """

    outputs: int
    seed: int


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every column's rule, in the order of the features.

    Args:
        rules: at least one, one for each raw column.
        unit_rows: scale each row to L2 norm 1 after the rules (a row of zeros stays zero). It bounds a record's
            gradient for differential privacy without clipping and needs no statistic of the data, but gives up the
            length of the row as information.
        projection: of the features of all rules to fewer, before `unit_rows`; the few that leave [-1, 1] are cut to it.
        centre: what is subtracted from each feature after that, within [-1, 1], before the result is halved and
            `unit_rows` applies; empty subtracts nothing. It may have been computed from records, and is public.

    Example:
        >>> import numpy as np
        >>> prepare = Preprocess((Scale(name="age", low=0, high=120), OneHot(name="sex", categories=("f", "m"))))
        >>> prepare.names
        ('age', 'sex=f', 'sex=m')
        >>> prepare.apply({"age": np.array([30.0]), "sex": np.array(["m"])})
        array([[-0.5,  0. ,  1. ]])

    **Guarantees**: every feature is finite and within [-1, 1]; a row's features depend on that row alone; the object
    is the same whatever data it was applied to.
    """

    rules: tuple[Scale | OneHot | Pixels | Encoded, ...]
    unit_rows: bool = False
    projection: Projection | None = None
    centre: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.rules or len(set(self.columns)) != len(self.rules):
            raise ModelError("Expected at least one rule and one rule for each column")
        if sum(getattr(rule, "whitening", None) is not None for rule in self.rules) > _MOST_WHITENED:
            raise ModelError(f"Expected at most {_MOST_WHITENED} columns of images to whiten; each takes seconds")
        if self._inner > _MOST_FEATURES:
            raise ModelError(
                f"Expected at most {_MOST_FEATURES} features, got {self._inner}; take smaller images or more scales"
            )
        self._projected()  # refuses sizes that do not fit
        if self.centre and (
            len(self.centre) != self.features or not all(-1.0 <= value <= 1.0 for value in self.centre)
        ):
            raise ModelError(f"Expected a centre of {self.features} features within [-1, 1]")

    @property
    def _inner(self) -> int:
        """The number of features before they are projected."""
        return sum(rule.count for rule in self.rules)

    def _projected(self) -> RandomProjection | None:
        found = self.projection
        return None if found is None else RandomProjection(self._inner, found.outputs, found.seed)

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the raw columns that `apply` needs."""
        return tuple(rule.name for rule in self.rules)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Return the names of the raw columns that hold numbers; the others hold text or images."""
        return tuple(rule.name for rule in self.rules if isinstance(rule, Scale))

    @property
    def images(self) -> tuple[str, ...]:
        """Return the names of the raw columns that hold images."""
        return tuple(rule.name for rule in self.rules if isinstance(rule, Pixels | Encoded))

    def categories(self, column: str) -> tuple[str, ...]:
        """Return the known categories of a raw column that holds text; () for any other."""
        found = (rule.categories for rule in self.rules if isinstance(rule, OneHot) and rule.name == column)
        return next(found, ())

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the features, in order."""
        if self.projection is not None:
            return tuple(f"projection {place}" for place in range(self.projection.outputs))
        return tuple(name for rule in self.rules for name in rule.features)

    @property
    def features(self) -> int:
        """Return the number of features."""
        return self._inner if self.projection is None else self.projection.outputs

    def apply(self, columns: Columns) -> Matrix:
        """Return the feature matrix, float64, shape (n, features), within [-1, 1].

        Args:
            columns: the raw columns, each of shape (n,), images (n, height, width); columns without a rule are ignored.

        Raises:
            DataError: a column is absent, lengths differ, or a value breaks its rule. The text names column and row,
                never the value.
        """
        return self.finished(self.fixed(columns))

    def fixed(self, columns: Columns) -> Matrix:
        """Return the features before `centre` and `unit_rows`, arguments and errors as of `apply`.

        That is all that takes time, and it depends on public values alone: whoever computes a centre from it can go on
        with `finished` instead of starting again.
        """
        for rule in self.rules:
            if rule.name not in columns:
                unclaimed = [name for name in columns if name not in self.columns]
                raise DataError(f"Expected a column {rule.name!r}{nearest(rule.name, unclaimed)}; add it")
            rows = columns[self.columns[0]].shape[:1]
            if columns[rule.name].shape != (*rows, *rule.sides) or not rows:
                size = f" of {rule.sides[0]} x {rule.sides[1]} pixels" if rule.sides else ""
                raise DataError(f"Expected column {rule.name!r} with one value{size} for each row, like the others")
        parts = [rule.apply(columns[rule.name]) for rule in self.rules]
        x = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]  # images are large
        if (projection := self._projected()) is not None:
            x = np.clip(projection.apply(x), -1.0, 1.0)
        return x

    def finished(self, x: Matrix) -> Matrix:
        """Return what `centre` and `unit_rows` make of features from `fixed`, in their place: images are large."""
        if self.centre:
            x -= np.array(self.centre)
            x /= 2.0
        return _unit(x) if self.unit_rows else x

    @property
    def encoders(self) -> tuple[str, ...]:
        """Return the SHA-256 of the encoders' files that `apply` needs."""
        return tuple(sorted({rule.sha256 for rule in self.rules if isinstance(rule, Encoded)}))

    def opened(self, encoder: Encoder) -> Preprocess:
        """Return these rules with the encoder that their images go through.

        Raises:
            ModelError: it is another one than they name, or none goes through any.
        """
        if not self.encoders:
            raise ModelError("Expected no encoder: no column of this model goes through one; leave it out")
        rules = tuple(rule.opened(encoder) if isinstance(rule, Encoded) else rule for rule in self.rules)
        return msgspec.structs.replace(self, rules=rules)

    def encode(self) -> bytes:
        """Return the rules as MessagePack: the same bytes for the same rules.

        Raises:
            ModelError: they take more than 1 MiB.
        """
        return _sized(msgspec.msgpack.encode(self))

    @staticmethod
    def decode(body: bytes) -> Preprocess:
        """Return what `encode` wrote.

        Raises:
            ModelError: `body` is larger than 1 MiB or is no well-formed set of rules.
        """
        try:
            return msgspec.msgpack.decode(_sized(body), type=known(Preprocess))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ModelError("Expected well-formed preprocessing rules; save the model again") from None


def _sized(body: bytes) -> bytes:
    if len(body) > _LARGEST_BYTES:
        raise ModelError(f"Expected preprocessing of at most {_LARGEST_BYTES} bytes, got {len(body)}")
    return body


def _numbers(name: str, values: NDArray[Any]) -> Matrix:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise DataError(f"Expected numbers in column {name!r}, got {values.dtype}; read it as numbers") from None


def _unit(x: Matrix) -> Matrix:
    """Scale the rows of `x` to length 1 where they lie, and return them; a row of zeros stays."""
    step = max(1, _BLOCK_NUMBERS // max(1, x.shape[1]))
    for start in range(0, len(x), step):
        rows = x[start : start + step]
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows /= np.where(norms > 0.0, norms, 1.0)
    return np.clip(x, -1.0, 1.0, out=x)  # rounding may leave 1 + 2^-52
