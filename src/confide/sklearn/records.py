"""What every estimator does with what it is given: public bounds and classes, rows that count, what may be spent.

Functions, so that an estimator is a class of scikit-learn and of nothing else. What a record does depends on that
record and on public arguments alone:

* a value beyond its column's bounds counts as the nearer bound;
* a record with NaN or infinity, or with a label that is no class, counts for nothing, as if it were absent;
* nothing about the records is raised, warned of or kept, their number included.
"""

# pyright: basic
from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from confide.crypto.random import Randomness, SeededRandomness, SystemRandomness
from confide.dp.spending import Allowance, allowance
from confide.dp.values import array_of, numbers, places, says_text
from confide.errors import DataError, UsageError

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]


def allowance_of(estimator: Any) -> Allowance:
    """Return what an estimator may spend on one fit, from its epsilon, delta, budget and share.

    Raises:
        UsageError: they contradict each other.
        PrivacyError: it does not fit into the budget; no record was looked at.
    """
    taken = allowance(epsilon=estimator.epsilon, delta=estimator.delta, budget=estimator.budget, share=estimator.share)
    taken.check(type(estimator).__name__)
    return taken


def randomness_of(estimator: Any) -> Randomness:
    """Return the operating system's randomness, or what `random_state` repeats: the label then claims nothing.

    Raises:
        UsageError: random_state is neither None nor a whole number.
    """
    seed = estimator.random_state
    if seed is None:
        return SystemRandomness()
    if not isinstance(seed, int | np.integer):
        raise UsageError("Expected random_state to be None, for noise that is secret, or a whole number for tests")
    return SeededRandomness(f"random_state {int(seed)}")


def public_bounds(bounds: Any, columns: int, *, name: str = "bounds") -> tuple[Matrix, Matrix]:
    """Return lowest and highest values of each column, shapes (columns,).

    Args:
        bounds: (low, high), each a number or one for each column.

    Raises:
        UsageError: they are absent, do not fit the columns, are not finite or do not rise.
    """
    if bounds is None:
        raise UsageError(
            f"Expected {name}=(low, high), numbers or one for each column; they are public. Taken from the records "
            "they would be a release that no epsilon covers: know them from what the columns mean"
        )
    try:
        low, high = (np.broadcast_to(np.asarray(end, np.float64), (columns,)).copy() for end in bounds)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"Expected {name}=(low, high), numbers or arrays of {columns}, one for each column") from None
    with np.errstate(over="ignore", invalid="ignore"):
        rising = np.isfinite(high - low).all() and (low < high).all()
    if not rising:
        raise UsageError(f"Expected finite {name} whose low is below its high in every column")
    if (high / 2 - low / 2 < np.finfo(np.float64).tiny).any():
        raise UsageError(f"Expected wider {name}: half their distance is no normal float64; scale the columns")
    return low, high


def public_classes(classes: Any) -> NDArray[Any]:
    """Return the classes, sorted, shape (k,).

    Raises:
        UsageError: they are absent, fewer than two, or not different.
    """
    if classes is None:
        raise UsageError(
            "Expected classes, such as (0, 1); they are public. Which labels occur among the records is not: a class "
            "with one record would name it"
        )
    try:
        found = np.asarray(classes)
    except ValueError:
        raise UsageError("Expected at least two different classes") from None
    if found.ndim != 1 or len(found) < 2 or len(np.unique(found)) < len(found):
        raise UsageError("Expected at least two different classes")
    if found.dtype.kind in "US" and not all(isinstance(one, str | bytes) for one in classes):
        raise UsageError("Expected classes of one type, all text or all numbers")
    return np.sort(found)


def rows_of(estimator: Any, X: ArrayLike, *, reset: bool) -> Matrix:
    """Return rows as float64, shape (n, d), n >= 0, NaN and infinity included; remembers or checks the columns.

    A cell of a list or of an array of objects that is no number is NaN: one record must not decide between model and
    error.

    Raises:
        DataError: they are no numbers by their type; no value is in the text.
        ValueError: as scikit-learn says: another shape, other columns than fitted, a sparse matrix.
    """
    if hasattr(X, "toarray"):  # sparse: refused in scikit-learn's words
        validate_data(estimator, cast("Any", X), reset=reset)
    rows = _rows(X)
    if rows.shape[1] == 0:
        raise ValueError("Found array with 0 feature(s) while a minimum of 1 is required.")
    validate_data(estimator, cast("Any", X if hasattr(X, "columns") else rows), reset=reset, skip_check_array=True)
    return rows


def places_of(y: ArrayLike | None, classes: NDArray[Any], records: int) -> Vector:
    """Return the class of each record by its place, -1 where it is none.

    Raises:
        ValueError: y is absent or has another length than X.
    """
    return places(_column(y, records), classes.tolist())


def targets_of(y: ArrayLike | None, records: int) -> Matrix:
    """Return numbers to predict, float64, shape (n,), NaN and infinity included.

    Raises:
        DataError: they are no numbers.
        ValueError: y is absent or has another length than X.
    """
    labels = _column(y, records)
    try:
        return numbers(labels)
    except DataError:
        text = "Expected numbers in y, got text or objects. Unknown label type: turn them into numbers first"
        raise DataError(text) from None


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number that is an argument.

    Raises:
        UsageError: it is none, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UsageError(f"Expected {name}={value!r} to be a whole number of at least {least}")
    return int(value)


def expected_of(estimator: Any) -> int | None:
    """Return the public number of records, if there is one."""
    stated = estimator.expected_records
    return None if stated is None else whole("expected_records", stated)


def public_categories(estimator: Any, columns: int) -> dict[int, tuple[str, ...]]:
    """Return the names of the categories of those columns that have any, by the column's place.

    Raises:
        UsageError: a column that is not there or named twice, or names that are none or not different.
    """
    named = {name: place for place, name in enumerate(getattr(estimator, "feature_names_in_", ()))}
    found = dict[int, tuple[str, ...]]()
    for column, names in (estimator.categories or {}).items():
        place = named.get(column, column)
        if not isinstance(place, int | np.integer) or not 0 <= place < columns or place in found:
            raise UsageError(f"Expected columns of X in categories, each once, by place from 0 or name; got {column!r}")
        found[int(place)] = tuple(map(str, names))
        if not found[place] or len(set(found[place])) < len(found[place]):
            raise UsageError(f"Expected different names of the categories of column {column!r}, at least one")
    return found


def known_cells(x: Matrix, categories: Mapping[int, tuple[str, ...]]) -> NDArray[np.bool_]:
    """Return which values are finite numbers or, in columns with categories, places in their list; shape (n, d)."""
    found = np.isfinite(x)
    for column, names in categories.items():
        found[:, column] = np.isin(x[:, column], np.arange(len(names)))
    return found


def finite(x: Matrix) -> NDArray[np.bool_]:
    """Return which rows count."""
    return np.asarray(np.isfinite(x).all(axis=1))


def questions(estimator: Any, X: ArrayLike) -> tuple[Matrix, NDArray[np.bool_]]:
    """Return rows to answer about, cut to the bounds as in `fit`, and which are finite; the others stand in the middle.

    Raises:
        NotFittedError, ValueError: as scikit-learn says.
    """
    check_is_fitted(estimator)
    rows = rows_of(estimator, X, reset=False)
    low, high = public_bounds(estimator.bounds, rows.shape[1])
    known = finite(rows)
    return np.where(known[:, None], np.clip(rows, low, high), low / 2 + high / 2), known


def _column(y: ArrayLike | None, records: int) -> NDArray[Any]:
    if y is None:
        raise ValueError("This estimator requires y to be passed, but the target y is None.")
    labels = array_of(cast("Any", y))
    if labels.ndim == 2 and labels.shape[1] == 1:
        text = "A column-vector y was passed when a 1d array was expected. Please use y.ravel()."
        warnings.warn(text, DataConversionWarning, stacklevel=2)
        labels = labels.ravel()
    if labels.dtype.kind == "c":
        raise ValueError("Complex data not supported in y")
    if labels.ndim != 1:
        raise ValueError(f"y should be a 1d array, got an array of {labels.ndim} dimensions instead.")
    if len(labels) != records:
        raise ValueError("Expected one label for each row of X")
    return labels


def _rows(X: ArrayLike) -> Matrix:
    """Return numbers, shape (n, d), each cell read by itself; errors have scikit-learn's first words and no value."""
    if any(says_text(dtype) for dtype in (getattr(X, "dtypes", ()) if hasattr(X, "columns") else ())):
        raise DataError("Expected numbers in X; encode categories first, by their public list")
    array = array_of(X)
    if array.ndim == 1 and array.dtype.kind == "O" and isinstance(X, Sequence):
        array = _listed(cast("Sequence[Any]", X))
    if array.dtype.kind == "c":
        raise ValueError("Complex data not supported in X")
    if array.ndim > 2:
        raise ValueError(f"Found array with dim {array.ndim}, while dim <= 2 is required")
    if array.ndim < 2:
        got = "scalar array" if array.ndim == 0 else "1D array"
        raise ValueError(f"Expected 2D array, got {got} instead. Reshape your data to rows and columns")
    return numbers(array.ravel()).reshape(array.shape)


def _listed(rows: Sequence[Any]) -> NDArray[Any]:
    """Return the cells of a list of rows as objects, shape (n, d), or of anything else as it is, of one dimension."""
    tables = [list(row) for row in rows if isinstance(row, list | tuple) or np.ndim(row) == 1]
    if len(tables) < len(rows) or not rows:
        return np.empty(len(rows), object)
    if len({len(row) for row in tables}) > 1:
        raise DataError("Expected rows of one length in X")
    return np.fromiter((cell for row in tables for cell in row), object).reshape(len(tables), -1)
