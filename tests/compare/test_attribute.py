"""Attribute inference: a column that the answers hold is guessed, one that they do not hold is not."""

from __future__ import annotations

import numpy as np
import pytest

from confide.compare.attribute import attribute, split_features, unfit
from confide.errors import UsageError
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.preprocess import OneHot, Preprocess, Scale
from confide.train.local import Silo
from confide.train.run import Prepared

PREPARE = Preprocess(
    (
        Scale(name="age", low=0, high=100),
        OneHot(name="gene", categories=("a", "b", "c")),
        Scale(name="dose", low=0, high=10),
    )
)


ZEROS = np.zeros(200, np.int64)


def data(seed, records=600):
    """Return independent columns: nothing but a model can tell one from the others."""
    draw = np.random.default_rng(seed)

    def silo(name, count):
        columns = {
            "age": draw.uniform(0, 100, count),
            "gene": np.array(["a", "b", "c"], object)[draw.integers(3, size=count)],
            "dose": draw.uniform(0, 10, count),
        }
        return Silo(name, PREPARE.apply(columns), draw.integers(2, size=count))

    silos = (silo("north", records // 2), silo("south", records // 2))
    return Prepared(preprocess=PREPARE, silos=silos, test=silo("test", records), start=model(), held=())


def model(age=0.0, gene=(0.0, 0.0, 0.0), dose=0.0):
    return Graph((Linear(np.array([[age, *gene, dose]]), np.zeros(1)), Sigmoid()))


def test_a_category_that_the_answer_holds_is_guessed():
    found = attribute(model(age=1, gene=(-2, 0, 2), dose=1), data(1), "gene", seed=1)
    assert found.values == 3
    assert found.members.with_model > 0.6 > 0.45 > found.members.without
    assert found.members.gain.low > 0.1
    assert found.others.gain.low > 0.1  # it is not the training that tells it


def test_a_number_that_the_answer_holds_is_guessed():
    found = attribute(model(age=1, gene=(-2, 0, 2), dose=1), data(2), "dose", seed=1)
    assert found.values == 2
    assert found.members.with_model > 0.95
    assert found.members.gain.low > 0.3


def test_the_last_column_of_a_linear_model_is_exact():
    """Of unknown weights: nothing but answers and own records are needed."""
    prepare = Preprocess((PREPARE.rules[0], PREPARE.rules[2]))
    draw = np.random.default_rng(6)

    def silo(name):
        return Silo(name, prepare.apply({"age": draw.uniform(0, 100, 200), "dose": draw.uniform(0, 10, 200)}), ZEROS)

    graph = Graph((Linear(np.array([[1.0, 0.2]]), np.array([0.3])), Sigmoid()))
    whole = Prepared(preprocess=prepare, silos=(silo("a"), silo("b")), test=silo("test"), start=graph)
    found = attribute(graph, whole, "dose", seed=1)
    assert found.members.with_model == found.others.with_model == 1.0
    assert found.members.without < 0.65


@pytest.mark.parametrize("column", ["gene", "dose"])
def test_an_answer_that_does_not_depend_on_a_column_tells_nothing(column):
    found = attribute(model(age=1), data(3), column, seed=1)
    assert found.members.gain.low <= 0 <= found.members.gain.high
    assert abs(found.members.with_model - found.commonest) < 0.1


def test_features_are_parted_by_column():
    x = PREPARE.apply({"age": np.array([100.0]), "gene": np.array(["b"]), "dose": np.array([5.0])})
    own, others = split_features(PREPARE, "gene", x)
    assert own.tolist() == [[0, 1, 0]]
    assert others.tolist() == [[1, 0]]
    with pytest.raises(UsageError, match="did you mean"):
        split_features(PREPARE, "genes", x)


def test_what_does_not_fit_says_why():
    assert unfit(PREPARE, "gene") == ""
    assert "--sensitive" in unfit(PREPARE, None)
    assert 'did you mean "gene"' in unfit(PREPARE, "genes")
    assert unfit(Preprocess(PREPARE.rules, unit_rows=True), "gene") == ""  # the records are read without them as well


def test_too_few_records_are_refused():
    with pytest.raises(UsageError, match="training records"):
        attribute(model(), data(4, records=20), "gene", seed=1)


def unit(found):
    """Return records as unit rows, as a job with model.unit_rows prepares them."""

    def silo(one):
        return Silo(one.name, one.x / np.linalg.norm(one.x, axis=1, keepdims=True), one.y)

    return Prepared(
        preprocess=Preprocess(PREPARE.rules, unit_rows=True), silos=tuple(map(silo, found.silos)),
        test=silo(found.test), start=found.start, held=(),
    )  # fmt: skip


def test_unit_rows_are_attacked_from_the_columns_before_them():
    """Lengths mix the columns in what the model takes; the attacker's are its own."""
    plain = data(8)
    found = attribute(model(gene=(-6, 0, 6)), unit(plain), "gene", seed=1, plain=plain)
    assert found.values == 3
    assert found.members.gain.low > 0.3
    blind = attribute(model(age=5), unit(plain), "gene", seed=1, plain=plain)
    assert blind.members.gain.low <= 0.1


def test_other_records_are_not_taken_for_the_same():
    with pytest.raises(UsageError, match="same records"):
        attribute(model(), unit(data(8)), "gene", seed=1, plain=data(9))
