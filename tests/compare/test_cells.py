"""What is run, and why the rest is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from confide.compare.cells import Cell, inference_choices, planned, training_choices, variant
from confide.compare.settings import parse
from confide.errors import JobError, UsageError
from confide.serve import BACKENDS
from confide.train.parts import AGGREGATORS

HERE = Path()
PRIVATE = {"privacy": {"expected_records": 455, "epsilon": 2.0}}


def job(**compare):
    return {"data": {"set": "breast-cancer", "parties": 4}, "train": {"quorum": 3, "rounds": 5}, "compare": compare}


def cells_of(table, **given):
    return planned(parse(table), **{"seeds": 2, "queries": 7} | given)


def test_the_list_follows_from_the_registries():
    assert set(AGGREGATORS) < set(training_choices())
    assert set(BACKENDS) < set(inference_choices())
    assert len(set(training_choices())) == len(training_choices())


def test_every_technique_is_run_or_has_a_reason():
    found = cells_of(job())
    trained = {cell.choice for cell in found.cells if cell.kind == "training"}
    for choice in training_choices():
        assert (choice in trained) != (f"training/{choice}" in found.unfit), choice
    assert "no [privacy]" in found.unfit["training/masked+dp"]
    assert "groups" in found.unfit["training/groups"]
    asked = {cell.choice for cell in found.cells if cell.kind == "inference"}
    assert asked == set(inference_choices())  # whether they fit shows once there is a model


def test_seeds_queries_and_points_of_curves_are_counted():
    found = cells_of(
        {**job(epsilons=[1.0, 3.0], sizes=[4]), **PRIVATE},
        only=("masked", "masked+dp", "training/plain", "inference/plain", "inference/he"),
    )
    kinds = [cell.kind for cell in found.cells]
    assert kinds.count("training") == 2 * 3
    assert kinds.count("epsilon") == 2 * 2
    assert kinds.count("inference") == kinds.count("size") == 2
    assert (kinds.count("model"), kinds.count("link")) == (1, 2)
    assert all(cell.count == 7 for cell in found.cells if cell.kind == "inference")
    assert len(set(found.cells)) == len(found.cells)


def test_only_what_is_asked_is_run():
    found = cells_of(job(), only=("masked",))
    assert {cell.choice for cell in found.cells} == {"masked"}
    both = cells_of(job(), only=("he",))
    assert {cell.task for cell in both.cells} == {"training", "inference"}
    one = cells_of(job(), only=("training/he",))
    assert {cell.task for cell in one.cells} == {"training"}
    with pytest.raises(UsageError, match='did you mean "masked"'):
        cells_of(job(), only=("maskd",))
    named = cells_of(job(training=["plain"], inference=["tee"], sizes=[]))
    assert {cell.choice for cell in named.cells if cell.kind != "model"} == {"plain", "tee"}


def test_a_training_without_noise_is_one_without_privacy():
    table = {key: value for key, value in {**job(), **PRIVATE}.items() if key != "compare"}
    assert variant(table, HERE, "masked").privacy is None
    noisy = variant(table, HERE, "masked+dp")
    assert noisy.privacy is not None
    assert noisy.privacy.epsilon == 2.0
    other = variant(table, HERE, "masked+dp", epsilon=0.5)
    assert other.privacy is not None
    assert other.privacy.epsilon == 0.5


def test_training_on_shares_takes_its_own_steps():
    table = {key: value for key, value in job().items() if key != "compare"}
    found = variant(table, HERE, "mpc")
    assert (found.train.aggregate, found.train.algorithm, found.train.quorum) == ("mpc", "sgd", 4)
    back = variant({**table, "train": {"aggregate": "mpc", "learning_rate": 0.5}, "shares": {}}, HERE, "masked")
    assert (back.train.algorithm, back.shares) == ("fedavg", None)


def test_what_contradicts_the_job_says_why():
    trees = {"data": {"set": "breast-cancer"}, "model": {"kind": "trees"}}
    with pytest.raises(JobError, match=r"model\.kind"):
        variant(trees, HERE, "mpc")


def test_cells_are_told_apart_by_words():
    cells = [
        Cell(kind="training", choice="he", seed=1),
        Cell(kind="training", choice="he", seed=2),
        Cell(kind="inference", choice="he"),
        Cell(kind="size", choice="he", at=8.0),
        Cell(kind="epsilon", choice="masked+dp", at=0.5, seed=1),
    ]
    assert len({cell.words() for cell in cells}) == len(cells)
