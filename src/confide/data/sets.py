"""Data sets that come along, by name: real records with a schema whose bounds are stated in public."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from confide.data.schema import Schema
from confide.data.table import Table, check
from confide.errors import DataError, MissingExtra, nearest

Columns = dict[str, NDArray[Any]]


def load_set(name: str) -> tuple[Schema, Table]:
    """Return a shipped set with its schema.

    Args:
        name: a key of `SETS`.

    Raises:
        DataError: there is no such set.
        MissingExtra: the package that the set comes with is not installed.
    """
    with as_file(_schema_file(name)) as path:
        schema = Schema.load(path)
    return schema, check(SETS[name](), schema, where=f"the set {name!r}")


def schema_text(name: str) -> str:
    """Return the schema file of a shipped set.

    Raises:
        DataError: there is no such set.
    """
    return _schema_file(name).read_text()


def _schema_file(name: str) -> Traversable:
    if name not in SETS:
        raise DataError(f"Unknown data set {name!r}{nearest(name, SETS)}; there are {', '.join(sorted(SETS))}")
    return files("confide.data") / f"{name.replace('-', '_')}.schema.toml"


def _breast_cancer() -> Columns:
    """Wisconsin Diagnostic Breast Cancer: 569 biopsies, 30 measurements of cell nuclei each, as scikit-learn has it."""
    try:
        from sklearn.datasets import load_breast_cancer  # pyright: ignore
    except ImportError:
        raise MissingExtra("scikit-learn", "compare") from None
    records = cast("Any", load_breast_cancer())
    columns: Columns = {str(name): records.data[:, place] for place, name in enumerate(records.feature_names)}
    return columns | {"diagnosis": np.asarray(records.target_names)[records.target]}


def _digits() -> Columns:
    """Handwritten digits of UCI's optical recognition set: 1,797 images of 8 x 8 places, as scikit-learn has them."""
    try:
        from sklearn.datasets import load_digits  # pyright: ignore
    except ImportError:
        raise MissingExtra("scikit-learn", "compare") from None
    records = cast("Any", load_digits())
    columns: Columns = {f"p{place // 8}{place % 8}": records.data[:, place] for place in range(64)}
    return columns | {"digit": records.target.astype(str)}


#: The raw columns of each shipped set; its schema lies beside this file.
SETS: Mapping[str, Callable[[], Columns]] = {"breast-cancer": _breast_cancer, "digits": _digits}
