"""`--calibrate`: how large values become before each layer, from public rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from confide.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from confide.model.graph import Graph
    from confide.model.preprocess import Preprocess
    from confide.mpc.ranges import Ranges

_LARGEST_BYTES = 1 << 30


def ranges_from(rows: Path, graph: Graph, prepare: Preprocess | None) -> Ranges:
    """Return the ranges that a table of rows gives; see `features_from`.

    Raises:
        UsageError: the file is no table of the model's columns and no array.
        ModelError: rows of another shape, or not finite.
    """
    from confide.mpc.ranges import by_rows

    return by_rows(graph, features_from(rows, prepare))


def features_from(rows: Path, prepare: Preprocess | None) -> NDArray[np.float64]:
    """Return the features of a table of rows.

    Args:
        rows: a table with the columns that the model names, or an .npy file of features, shape (rows, features).
        prepare: columns to features; None where a model names none, as an ONNX file.

    Raises:
        UsageError: the file is neither.
    """
    from confide.cli.predict import columns_of

    if rows.suffix == ".npy":
        if not rows.is_file() or rows.stat().st_size > _LARGEST_BYTES:
            raise UsageError(f"Expected --calibrate {rows} to be a file of at most {_LARGEST_BYTES} bytes")
        try:
            features = np.load(rows, allow_pickle=False)
        except (ValueError, OSError, EOFError):
            raise UsageError(f"Expected --calibrate {rows} to be an array that numpy.save wrote") from None
        if features.dtype.kind not in "fiu":
            raise UsageError(f"Expected numbers in --calibrate {rows}, got {features.dtype}")
        return features.astype(np.float64)
    if prepare is None:
        raise UsageError(f"Expected --calibrate FILE.npy for a model that names no columns, got {rows}")
    return prepare.apply(columns_of(rows, prepare, None))
