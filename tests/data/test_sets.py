"""Shipped sets: the records are scikit-learn's, the bounds are public and sensible."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from confide.data.schema import Number
from confide.data.sets import SETS, load_set
from confide.errors import DataError, MissingExtra


def test_breast_cancer_is_what_scikit_learn_ships():
    schema, table = load_set("breast-cancer")
    reference = load_breast_cancer()
    assert [column.name for column in schema.columns] == reference.feature_names.tolist()
    for place, name in enumerate(table.columns):
        np.testing.assert_array_equal(table.columns[name], reference.data[:, place])
    assert schema.label.classes == ("benign", "malignant")
    np.testing.assert_array_equal(table.labels, 1 - reference.target)  # there 0 is malignant
    assert (table.n, int(table.labels.sum())) == (569, 212)  # counts of the data set's own description


def test_bounds_are_round_numbers_not_the_extremes_of_the_records():
    schema, table = load_set("breast-cancer")
    for column in schema.columns:
        assert isinstance(column, Number)
        values = table.columns[column.name]
        for bound in (column.low, column.high):
            assert float(f"{bound:.2g}") == bound  # two significant digits
        assert column.low < values.min() or column.low == 0.0
        assert column.high != values.max()
        assert column.outside == "clip" or column.high > values.max()
        assert np.mean(values > column.high) < 0.06  # clipping leaves the bulk alone


def test_every_set_loads():
    for name in SETS:
        schema, table = load_set(name)
        assert schema.name == name
        assert schema.source
        assert set(table.labels.tolist()) == set(range(len(schema.label.classes)))


def test_unknown_sets_name_the_nearest():
    with pytest.raises(DataError, match=r"'breast' \(did you mean \"breast-cancer\"\?\); there are breast-cancer"):
        load_set("breast")


def test_without_scikit_learn_the_install_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"scikit-learn; install it with: pip install"):
        load_set("breast-cancer")


def test_digits_are_what_scikit_learn_ships():
    schema, table = load_set("digits")
    reference = load_digits()
    found = np.stack([table.columns[column.name] for column in schema.columns], axis=1)
    np.testing.assert_array_equal(found, reference.data)
    np.testing.assert_array_equal(table.labels, reference.target)
    assert {(column.low, column.high) for column in schema.columns} == {(0.0, 16.0)}
