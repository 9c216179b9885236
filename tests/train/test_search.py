"""A charged search: its cost is known before a row is read, its result says so, and only the best leaves."""

from __future__ import annotations

import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.dp.selection import Selection
from confide.errors import JobError, PrivacyError
from confide.store import SqliteStore
from confide.train import parse
from confide.train import search as searching
from confide.train.data_budget import set_limit, standing
from confide.train.federated_evaluation import evaluate
from confide.train.search import SearchPlan, search

SCHEMA = """
name = "ward"
[label]
name = "ill"
classes = ["no", "yes"]
[columns]
age = { type = "number", low = 0, high = 100 }
dose = { type = "number", low = 0, high = 1 }
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ward.toml").write_text(SCHEMA)
    stream = np.random.default_rng(1)
    for name in ("north", "south", "west"):
        rows = [f"{a:.1f},{d:.3f},{'yes' if a > 50 else 'no'}" for a, d in stream.uniform(0, 1, (300, 2)) * [100, 1]]
        (tmp_path / f"{name}.csv").write_text("\n".join(["age,dose,ill", *rows]) + "\n")
    return tmp_path


def job(folder, *, data=None, privacy=None, **train):
    tables = {name: f"{name}.csv" for name in ("north", "south", "west")}
    return parse(
        {
            "data": {"schema": "ward.toml", "tables": tables, "evaluate": "federated"} | (data or {}),
            "model": {"unit_rows": True},
            "train": {"rounds": 2, "momentum": 0.0} | train,
            "privacy": {"epsilon": 0.5, "expected_records": 900} | (privacy or {}),
        },
        base=folder,
    )


def test_the_best_of_a_secret_number_of_runs_has_the_label_of_the_whole_search(folder, monkeypatch):
    plan = SearchPlan.of([job(folder, learning_rate=20.0), job(folder, rounds=1)], mean_runs=6)
    monkeypatch.setattr(Selection, "draw_runs", lambda self, rng: 4)
    assert 0.5 < plan.epsilon < 1.6
    seen = []

    def watched(*given, **named):
        seen.append(evaluate(*given, **named))
        return seen[-1]

    monkeypatch.setattr(searching, "evaluate", watched)
    found = search(plan, rng=SeededRandomness("runs"))
    assert len(seen) == 4
    assert found.figures is max(seen, key=lambda figures: figures.accuracy.value)
    assert found.job in plan.candidates
    label = found.model.label
    assert label.epsilon == label.epsilon_outsiders == plan.epsilon
    assert label.mu is None
    for said in ("2 settings", "mean 6", "epsilon 0.5"):
        assert said in label.tuning
    assert "has seen every run" in label.server_sees


def test_the_cost_is_that_of_the_dearest_release_of_the_dearest_candidate(folder):
    cheap, dear = job(folder, privacy={"epsilon": 0.3}), job(folder)
    alone, both = (SearchPlan.of(jobs, mean_runs=5) for jobs in ([dear], [cheap, dear]))
    assert both.epsilon == alone.epsilon > SearchPlan.of([cheap], mean_runs=5).epsilon
    assert isinstance(both.selection, Selection)
    assert alone.epsilon < SearchPlan.of([dear], mean_runs=50).epsilon


def test_a_search_is_charged_to_the_budget_before_it_reads_a_row(folder):
    store = SqliteStore(folder / "b.db")
    set_limit(store, "ward", epsilon=2.0, delta=0.01)
    plan = SearchPlan.of([job(folder, data={"budget": "b.db"})], mean_runs=3)
    search(plan, rng=SeededRandomness("x"))
    (account,) = standing(store, "ward").accounts
    assert account.epsilon == plan.epsilon  # and none for the runs within it
    assert "secret number of runs" in account.told.mechanism
    for name in ("north", "south", "west"):
        (folder / f"{name}.csv").unlink()
    with pytest.raises(PrivacyError, match="left of 2"):
        search(plan)
    store.close()


def test_what_cannot_be_searched_among_is_refused(folder):
    fine = job(folder)
    without = parse({"data": {"set": "digits"}})
    for wrong in (
        [],
        [without],
        [fine, job(folder, privacy={"delta": 1e-4})],
        [fine, job(folder, data={"test_fraction": 0.3})],
        [job(folder, data={"evaluate": "none"})],
        [parse({"data": {"set": "digits", "evaluate": "federated"}, "privacy": {"expected_records": 1400}})],
        [
            parse(
                {
                    "data": {"schema": "w.toml", "nodes": ["a", "b", "c"], "evaluate": "federated"},
                    "privacy": {"expected_records": 900},
                }
            )
        ],
    ):
        with pytest.raises(JobError, match="Expected"):
            SearchPlan.of(wrong, mean_runs=3)
    with pytest.raises(PrivacyError, match="fewer runs"):
        SearchPlan.of([job(folder, privacy={"epsilon": 30.0})], mean_runs=1000)
