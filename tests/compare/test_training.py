"""Trainings of a comparison whose models are no plain classifiers: survival and trees."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest

from confide.compare.campaign import campaign
from confide.compare.cells import variant
from confide.compare.document import document
from confide.compare.inference import agreement
from confide.compare.links import LINKS
from confide.compare.prices import PUBLISHED
from confide.compare.settings import parse
from confide.compare.training import Loader, judged, trained
from confide.compare.writing import markdown
from confide.model.zoo import hazard, logistic
from confide.train.local import Silo

SCHEMA = """
[label]
name = "died"
classes = ["no", "yes"]
time = { name = "days", unit = "days", high = 1000 }

[columns]
age = { type = "number", low = 20, high = 100 }
dose = { type = "number", low = 0, high = 10 }
"""
NAMES = ("north", "east", "south")


@pytest.fixture
def survival(tmp_path):
    """A job over three tables in which age brings the event near and dose puts it off."""
    rng = np.random.default_rng(3)
    (tmp_path / "schema.toml").write_text(SCHEMA)
    for name in NAMES:
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("age", "dose", "died", "days"))
            for _ in range(120):
                age, dose = rng.uniform(20, 100), rng.uniform(0, 10)
                until = rng.exponential(400 * np.exp(-(age - 60) / 20 + (dose - 5) / 3))
                lost = rng.uniform(0, 1000)
                rows.writerow((f"{age:.2f}", f"{dose:.2f}", "yes" if until < lost else "no", f"{min(until, lost):.1f}"))
    table = {
        "data": {"schema": "schema.toml", "tables": {name: f"{name}.csv" for name in NAMES}},
        "model": {"kind": "cox"},
        "privacy": {"epsilon": 3.0, "expected_records": 288, "mechanism": "auto"},
        "compare": {"data": "synthetic", "sizes": [], "check_link": False, "clients": 0, "epsilons": [3.0]},
    }
    return parse(table, base=tmp_path)


def brute(graph, test) -> float:
    """Harrell's concordance by its words, pair by pair."""
    score, above, pairs = graph.apply(test.x)[:, 0], 0.0, 0
    for one, other in itertools.permutations(range(len(score)), 2):
        (time, event), (later, also) = test.y[one], test.y[other]
        if event and (later > time or (later == time and not also)):
            pairs += 1
            above += 1.0 if score[one] > score[other] else 0.5 if score[one] == score[other] else 0.0
    return above / pairs


def test_survival_is_judged_by_concordance(survival):
    data = Loader().load(survival.job)
    assert judged(data.start, data.test) == pytest.approx(brute(data.start, data.test)) == 0.5
    job = variant(survival.table, survival.base, "plain")
    found = trained(job, "plain", Loader(), links=[LINKS["lan"]], prices=PUBLISHED)
    assert found.graph is not None
    test = Loader().load(job).test
    assert found.figures["concordance_share"] == pytest.approx(brute(found.graph, test))
    assert found.curve[-1] == found.figures["concordance_share"]
    assert "accuracy_share" not in found.figures


def test_a_survival_job_is_compared_to_its_end(survival, tmp_path):
    only = (
        "local",
        "pooled",
        "training/masked",
        "masked+dp",
        "groups",
        "mpc",
        "inference/plain",
        "inference/mpc-dealer",
    )
    events = list(campaign(survival, tmp_path / "cells", seeds=1, queries=8, only=only))
    result = events[-1].result
    assert result is not None
    trainings = {record.choice: record for record in result.records if record.task == "training"}
    assert set(trainings) == {"local", "pooled", "masked", "masked+dp"}
    quality = {choice: record.figure("concordance_share") for choice, record in trainings.items()}
    assert min(quality.values()) > 0.6
    assert quality["masked"] == pytest.approx(quality["pooled"], abs=0.01)
    assert 'model.kind="cox"' in result.unfit["training/groups"]
    assert 'no "cox"' in result.unfit["training/mpc"]
    assert {(curve.kind, curve.y_name) for curve in result.curves} == {
        ("rounds", "concordance_share"),
        ("epsilon", "concordance_share"),
    }
    assert "a table each" in trainings["masked"].setting
    asked = {record.choice: record for record in result.records if record.task == "inference"}
    assert asked["mpc-dealer"].figure("order_share") == 1.0
    assert "agreement_share" not in asked["mpc-dealer"].figures
    text = markdown(document(result))
    assert "concordance" in text
    assert "Concordance on held-out records" in text
    assert "Accuracy on held-out" not in text


def test_answers_of_survival_agree_where_they_keep_the_order():
    graph = hazard(2)
    truth = np.array([[3.0], [2.0], [1.0], [1.0]])
    assert agreement(graph, truth, truth) == {"order_share": 1.0}
    assert agreement(graph, -truth, truth) == {"order_share": 0.0}
    assert agreement(graph, np.zeros((4, 1)), truth) == {"order_share": 0.5}
    swapped = np.array([[2.0], [3.0], [1.0], [0.0]])  # one of five pairs of known order
    assert agreement(graph, swapped, truth)["order_share"] == pytest.approx(4 / 5)
    assert agreement(graph, truth, np.ones((4, 1))) == {}
    assert agreement(logistic(2, 1), np.array([[0.4], [0.6]]), np.array([[0.6], [0.7]])) == {"agreement_share": 0.5}


@pytest.mark.parametrize("choice", ["plain", "tee", "he"])
def test_trees_take_sums_of_several_lengths(choice):
    table = {"data": {"set": "breast-cancer"}, "model": {"kind": "trees"}, "trees": {"count": 2, "depth": 2}}
    job = variant(table, parse(table).base, choice)
    found = trained(job, choice, Loader(), links=[LINKS["wan"]], prices=PUBLISHED)
    assert found.figures["accuracy_share"] > 0.5
    assert found.figures["rounds_count"] > 2
    assert found.figures["train_wan_seconds"] > 0.02 * found.figures["rounds_count"]


def test_a_silo_of_classes_is_judged_by_accuracy():
    graph = logistic(2, 1)
    x, y = np.zeros((4, 2)), np.array([0, 0, 1, 0])
    assert judged(graph, Silo("test", x, y)) == 0.75


def test_what_does_not_fit_trees_says_why():
    table = {"data": {"set": "breast-cancer"}, "model": {"kind": "trees"}, "trees": {"count": 2, "depth": 2}}
    for choice, why in (("groups", 'model.kind="trees"'), ("mpc", 'no "trees"'), ("masked+dp", "no [privacy]")):
        with pytest.raises(Exception, match=why.replace("[", r"\[")):
            variant(table, parse(table).base, choice)
