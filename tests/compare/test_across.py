"""What is run across real nodes, what it costs, and with which rows predictions are asked."""

from __future__ import annotations

import math

import numpy as np
import pytest

from confide.compare.across import Bill, Charge, drawn, guarantee_of, planned, rows_of, rows_words, setting_of
from confide.compare.cells import Cell, training_choices
from confide.compare.settings import parse
from confide.data.schema import Schema
from confide.errors import DataError, JobError, UsageError
from confide.model.preprocess import Preprocess
from confide.train.parts import AGGREGATORS, preprocess_of

SCHEMA = """
[columns.age]
type = "number"
low = 18
high = 90
[columns.ward]
type = "category"
categories = ["a", "b", "c"]
[label]
name = "ill"
classes = ["no", "yes"]
"""
TABLE = {
    "data": {"schema": "schema.toml", "nodes": ["east", "north", "south", "west"], "evaluate": "federated"},
    "train": {"quorum": 3, "rounds": 3},
    "privacy": {"epsilon": 0.5, "delta": 1e-6, "expected_records": 400, "colluding": 1},
}


@pytest.fixture
def base(tmp_path):
    (tmp_path / "schema.toml").write_text(SCHEMA)
    return tmp_path


def comparison(base, **sections):
    return parse({**TABLE, **sections}, base=base)


def cells(base, *only, seeds=1, **sections):
    return planned(comparison(base, **sections), seeds=seeds, queries=3, only=only)


def test_only_protected_trainings_are_run_and_the_others_say_why(base):
    found = cells(base)
    trained = [cell.choice for cell in found.cells if cell.kind == "training"]
    assert trained == ["masked+dp", "amortised+dp", "he+dp", "shares+dp", "tee+dp"]
    assert not {cell.kind for cell in found.cells} & {"model", "epsilon"}
    for choice in training_choices():
        assert (choice in trained) != (f"training/{choice}" in found.unfit)
    for choice in ("local", "pooled", "plain", "masked", "mpc"):
        assert found.unfit[f"training/{choice}"].startswith("never run across real nodes: ")
    assert "each party with its own share" in found.unfit["training/plain+dp"]
    assert "would be a run across real nodes" in found.unfit["epsilon/masked+dp"]


def test_what_may_be_offered_hides_updates_and_has_noise(base):
    found = cells(base)
    for choice, job in found.jobs.items():
        held = guarantee_of(setting_of(job, SCHEMA))
        assert job.privacy is not None, choice
        assert held.hides("update", "server"), choice
        assert held.hides("record", "outsiders"), choice


def test_a_trial_without_hardware_is_not_protected(base):
    found = cells(base, train={**TABLE["train"], "aggregate": "tee", "attester": "simulated"})
    assert "tee+dp" not in found.jobs
    assert 'under "tee" the server would see each party' in found.unfit["training/tee+dp"]


def test_the_jobs_own_technique_comes_first_since_its_model_is_asked(base):
    found = cells(base, train={**TABLE["train"], "aggregate": "amortised"})
    assert next(iter(found.jobs)) == "amortised+dp"


@pytest.mark.parametrize("name", ["plain", "pooled", "local", "masked", "mpc", "training/plain", "plain+dp"])
def test_nobody_can_ask_for_a_training_without_protection(base, name):
    found = cells(base, name)
    assert not [cell for cell in found.cells if cell.kind == "training"]
    assert found.unfit[f"training/{name.removeprefix('training/')}"]


def test_predictions_alone_take_one_run(base):
    found = cells(base, "inference/plain")
    assert [(cell.kind, cell.choice) for cell in found.cells][:2] == [("training", "masked+dp"), ("inference", "plain")]
    assert {cell.choice for cell in found.cells if cell.task == "training"} == {"masked+dp"}


def test_a_name_of_no_technique_is_refused(base):
    with pytest.raises(UsageError, match="got 'maskd'"):
        cells(base, "maskd")
    assert [cell.choice for cell in cells(base, "amortised+dp").cells] == ["amortised+dp"]


def test_a_schema_that_is_absent_is_told(tmp_path):
    with pytest.raises(DataError):
        cells(tmp_path)


def test_a_charge_is_what_the_accountant_says_and_never_more_than_the_job_asks(base):
    for rounds, evaluate in ((1, "none"), (3, "none"), (3, "federated")):
        sections = {
            "train": {**TABLE["train"], "rounds": rounds},
            "data": {**TABLE["data"], "evaluate": evaluate},
        }
        setting = setting_of(cells(base, "masked+dp", **sections).jobs["masked+dp"], SCHEMA)
        charge = Charge.of(setting)
        assert 0.45 < charge.epsilon <= 0.5
        assert charge.delta == 1e-6
        assert charge.epsilon == max(
            setting.plan.spent(rounds), setting.tally().plan.spent(1) if evaluate == "federated" else 0.0
        )


def test_a_bill_adds_runs_up_and_says_what_goes_on():
    one, two, three = (Cell(kind="training", choice=f"t{place}", seed=1) for place in range(3))
    bill = Bill(
        nodes=("north", "south"),
        new=((one, Charge(0.5, 1e-6)), (two, Charge(0.25, 1e-6))),
        going_on=((three, Charge(1.0, 1e-5)),),
        measured=2,
        again=(two,),
    )
    assert bill.epsilon == 1.75
    assert bill.delta == math.fsum((1e-5, 1e-6, 1e-6))
    said = bill.sentences()
    assert said[0] == "3 runs across 2 real nodes (north, south):"
    assert [line.partition(", delta=")[0].strip() for line in said[1:4]] == [
        "training: t2, seed 1: epsilon=1",
        "training: t0, seed 1: epsilon=0.5",
        "training: t1, seed 1: epsilon=0.25",
    ]
    assert "which was interrupted and goes on" in said[1]
    assert "again: what the run before spent" in said[3]
    assert "epsilon=1.75 and delta=1.2e-05 in all" in said[4]
    assert "2 runs of before taken from the cache" in said[5]


# --- rows -------------------------------------------------------------------------------------------------------------


def preparation() -> Preprocess:
    schema = Schema.read(SCHEMA)
    return preprocess_of(schema, parse({"data": {"set": "breast-cancer"}}).job)


def test_rows_are_drawn_within_the_public_bounds_alone(base):
    columns = drawn(Schema.read(SCHEMA), 500)
    assert columns["age"].min() >= 18
    assert columns["age"].max() <= 90
    assert columns["age"].std() == pytest.approx(72 / 12**0.5, rel=0.1)  # even, and not somebody's
    assert set(columns["ward"]) == {"a", "b", "c"}
    assert "ill" not in columns
    again = drawn(Schema.read(SCHEMA), 500)
    np.testing.assert_array_equal(columns["age"], again["age"])
    assert rows_words(comparison(base)).startswith("rows drawn from the schema's public bounds")


def test_images_are_drawn_as_the_schema_bounds_them():
    image = '[columns.x]\ntype = "image"\nheight = 4\nwidth = 3\nlow = 0\nhigh = 255\n'
    text = image + '[label]\nname = "y"\nclasses = ["a", "b"]\n'
    images = drawn(Schema.read(text), 5)["x"]
    assert images.shape == (5, 4, 3)
    assert 0 <= images.min() < images.max() <= 255


def test_declared_rows_are_asked_and_repeated(base):
    (base / "rows.csv").write_text("age,ward\n20,a\n90,c\n")
    asked = comparison(base, compare={"rows": "rows.csv", "data": "synthetic"})
    x = rows_of(asked, preparation(), 5)
    assert x.shape == (5, preparation().features)
    np.testing.assert_array_equal(x[0], x[2])
    assert x[1, 0] == 1.0
    assert rows_words(asked) == "synthetic rows, as the job file declares"


def test_declared_rows_beyond_the_schema_are_refused(base):
    (base / "rows.csv").write_text("age,ward\n200,a\n")
    with pytest.raises(DataError):
        rows_of(comparison(base, compare={"rows": "rows.csv", "data": "public"}), preparation(), 2)


def test_every_aggregator_is_known_here(base):
    found = cells(base)
    assert {f"{name}+dp" for name in AGGREGATORS} == set(found.jobs) | {
        place.removeprefix("training/") for place in found.unfit if place.endswith("+dp") and place.startswith("t")
    }


def test_a_budget_of_one_process_is_not_charged_for_nodes(base):
    with pytest.raises(JobError, match="nodes keep budgets of their own"):
        comparison(base, data={**TABLE["data"], "budget": "budget.db"})
