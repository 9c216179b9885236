"""A data set's budget: refused before a row is read, spent before anything leaves, never passed by two at once."""

import math
import os
import signal
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from statistics import NormalDist

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.dp.accountant import gaussian_delta, gaussian_mu
from confide.dp.plan import PrivacyPlan
from confide.errors import JobError, PrivacyError, StoreError, UsageError
from confide.store import SqliteStore
from confide.train import load, load_data, train
from confide.train.data_budget import (
    JobBudget,
    Limit,
    alone,
    data_sets,
    limits_of,
    set_limit,
    standing,
)
from confide.train.run import budget_of

SCHEMA = """
name = "ward"
[label]
name = "ill"
classes = ["no", "yes"]
[columns]
age = { type = "number", low = 0, high = 100 }
dose = { type = "number", low = 0, high = 1 }
"""

JOB = """
[job]
name = "first"
[data]
schema = "ward.toml"
tables = {{ north = "north.csv", south = "south.csv", west = "west.csv" }}
budget = "budget.db"
{data}
[model]
unit_rows = true
[train]
rounds = 2
[privacy]
epsilon = {epsilon}
expected_records = 150
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ward.toml").write_text(SCHEMA)
    stream = np.random.default_rng(1)
    for name in ("north", "south", "west"):
        rows = [f"{a:.1f},{d:.3f},{'yes' if a > 50 else 'no'}" for a, d in stream.uniform(0, 1, (50, 2)) * [100, 1]]
        (tmp_path / f"{name}.csv").write_text("\n".join(["age,dose,ill", *rows]) + "\n")
    return tmp_path


def job_in(folder, epsilon=0.5, data=""):
    (folder / "job.toml").write_text(JOB.format(epsilon=epsilon, data=data))
    return load(folder / "job.toml")


def limit(folder, **given):
    store = SqliteStore(folder / "budget.db")
    set_limit(store, "ward", **{"epsilon": 1.2, "delta": 0.02, **given})
    store.close()


def where(folder):
    store = SqliteStore(folder / "budget.db")
    try:
        return standing(store, "ward")
    finally:
        store.close()


def run(job):
    return list(train(job, load_data(job)))


def test_jobs_spend_until_nothing_fits_and_the_next_is_refused_before_a_row_is_read(folder):
    limit(folder)
    job = job_in(folder)
    run(job)
    run(job)
    found = where(folder)
    assert found.spent.epsilon == 1.0
    assert [account.told.name for account in found.accounts] == ["first", "first"]
    assert found.accounts[0].run != found.accounts[1].run  # the same job run again is another run
    assert math.isclose(found.left[0], 0.2)
    for name in ("north", "south", "west"):
        (folder / f"{name}.csv").unlink()  # whoever read a row would say so
    with pytest.raises(PrivacyError, match="left of 1.2"):
        load_data(job)
    assert where(folder) == found


def test_no_budget_was_set(folder):
    with pytest.raises(PrivacyError, match="confide budget set"):
        load_data(job_in(folder))
    assert not (folder / "budget.db").exists()
    SqliteStore(folder / "budget.db").close()
    with pytest.raises(PrivacyError, match="confide budget set"):
        load_data(job_in(folder))


def test_what_is_charged_is_what_the_label_says_and_delta_has_its_own_limit(folder):
    limit(folder, delta=0.005)
    job = job_in(folder)
    run(job)
    assert where(folder).spent.epsilon == job.privacy.epsilon
    assert where(folder).spent.delta == job.privacy.delta
    with pytest.raises(PrivacyError):
        run(job)  # 0.004 of 0.005 is spent


def test_an_unreadable_table_costs_nothing(folder):
    limit(folder)
    (folder / "west.csv").write_text("age,dose,ill\n200,1,no\n")
    with pytest.raises(UsageError):
        load_data(job_in(folder))
    assert where(folder).accounts == ()


def test_a_training_that_is_begun_twice_is_charged_twice(folder):
    limit(folder)
    job = job_in(folder)
    data = load_data(job)
    assert where(folder).accounts == ()  # nothing has left yet
    list(train(job, data))
    list(train(job, data))
    assert where(folder).spent.epsilon == 1.0
    with pytest.raises(PrivacyError):
        train(job, data)


def test_a_preparation_is_charged_before_it_and_covers_the_first_training(folder):
    limit(folder)
    job = job_in(folder, data="standardise = true")
    data = load_data(job)
    assert where(folder).spent.epsilon == 0.5
    list(train(job, data))
    assert where(folder).spent.epsilon == 0.5
    list(train(job, data))
    assert where(folder).spent.epsilon == 1.0


def test_a_copy_of_prepared_data_cannot_train_on_what_another_began(folder):
    """As processes of a pool have it: what was begun is in the store, not in the object."""
    limit(folder)
    data = load_data(job_in(folder, data="standardise = true"))
    for copy in (deepcopy(data.budget), twin(data.budget)):
        copy.begin()
    assert where(folder).spent.epsilon == 1.0
    with pytest.raises(PrivacyError):
        data.budget.begin()


def twin(budget):
    other = object.__new__(type(budget))
    other.__dict__.update(budget.__dict__)
    return other


def test_a_schema_that_changed_is_the_same_data_set(folder):
    limit(folder)
    run(job_in(folder))
    (folder / "ward.toml").write_text(SCHEMA.replace("high = 100", "high = 110"))
    run(job_in(folder))
    found = where(folder)
    assert found.spent.epsilon == 1.0
    assert len({account.told.schema for account in found.accounts}) == 2


def test_jobs_that_no_budget_bounds_are_refused(folder):
    (folder / "open.toml").write_text(JOB.format(epsilon=1, data="").split("[privacy]")[0])
    with pytest.raises(JobError, match=r"data\.budget"):
        load(folder / "open.toml")
    (folder / "ward.toml").write_text(SCHEMA.replace('"ward"', '"the ward"'))
    with pytest.raises(JobError, match="a budget is kept by it"):
        budget_of(job_in(folder))


def test_a_limit_is_lowered_by_anybody_raised_only_aloud_and_never_forgotten(folder):
    limit(folder)
    limit(folder, epsilon=1.0)
    for higher in ({"epsilon": 1.1}, {"epsilon": 1.0, "delta": 0.03}):
        with pytest.raises(UsageError, match="--raise"):
            limit(folder, **higher)
    with pytest.raises(UsageError, match="rule"):
        limit(folder, rule="gaussian", epsilon=0.5)
    limit(folder, epsilon=2.0, raising=True)
    store = SqliteStore(folder / "budget.db")
    assert [one.epsilon for one in limits_of(store, "ward")] == [1.2, 1.0, 2.0]
    assert data_sets(store) == ("ward",)
    store.close()


def plans(epsilon, *, rounds=3):
    return PrivacyPlan.calibrate(
        epsilon=epsilon, delta=1e-5, clip_norm=1.0, rounds=rounds, length=8, expected_records=1000
    )


def test_many_gaussian_runs_spend_less_by_mu_than_added_up(folder):
    """The oracle is the closed form of Gaussian differential privacy, written out anew from scipy's normal law."""
    norm = NormalDist()
    limit(folder, epsilon=1.0, delta=1e-5, rule="gaussian")
    job = job_in(folder)
    for _ in range(12):
        JobBudget(job, "ward", "", [plans(0.25)]).charge()
    with pytest.raises(PrivacyError, match="left of 1"):
        JobBudget(job, "ward", "", [plans(0.25)]).charge()
    found = where(folder)
    assert len(found.accounts) == 12  # added up they would be epsilon 3
    mu = math.sqrt(sum(account.told.mu**2 for account in found.accounts))

    def delta(epsilon):
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)

    assert delta(1.0) <= 1e-5
    together = found.epsilon_by_mu(1e-5)
    assert together <= 1.0
    assert math.isclose(delta(together), 1e-5, rel_tol=1e-6)
    one_more = math.hypot(mu, gaussian_mu(0.25, 1e-5))
    assert gaussian_delta(one_more, 1.0) > 1e-5 * 0.99  # and no run that fits was refused


def test_a_run_that_is_no_gaussian_mechanism_is_refused_under_that_rule(folder):
    limit(folder, rule="gaussian")
    budget = JobBudget(job_in(folder), "ward", "", [plans(0.25)])
    budget._told = msgspec.structs.replace(budget._told, mu=None)
    with pytest.raises(PrivacyError, match="Gaussian"):
        budget.charge()


def test_what_integers_add_has_its_room_and_no_more():
    limit = Limit(1.0, 1e-5, "gaussian", "")
    assert math.exp(0.001) * gaussian_delta(limit.mu, 1.0 - 0.001) + 0.001 * 1e-5 <= 1e-5
    assert limit.mu > 0.998 * gaussian_mu(1.0, 1e-5)


@settings(deadline=None, max_examples=25)
@given(asked=st.lists(st.integers(1, 40), min_size=1, max_size=8), most=st.integers(1, 100))
def test_the_account_never_passes_the_limit_and_refuses_nothing_that_fits(tmp_path_factory, asked, most):
    folder = tmp_path_factory.mktemp("budget")
    (folder / "ward.toml").write_text(SCHEMA)
    job = job_in(folder)
    limit(folder, epsilon=most / 64, delta=0.5)
    spent = Fraction(0)
    for number in asked:
        plan = replace(plans(number / 64))
        if spent + Fraction(number, 64) <= Fraction(most, 64):
            JobBudget(job, "ward", "", [plan]).charge()
            spent += Fraction(number, 64)
        else:
            with pytest.raises(PrivacyError):
                JobBudget(job, "ward", "", [plan]).charge()
    assert where(folder).spent.epsilon == spent


CHARGES = """
import sys
from copy import deepcopy
from copy import deepcopy
from pathlib import Path
from confide.errors import PrivacyError
from confide.train import load
from confide.train.run import budget_of
job = load(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    try:
        budget_of(job).charge()
    except PrivacyError:
        break
"""

DIES = """
import os, signal, sys
from pathlib import Path
from confide.dp.plan import PrivacyPlan
from confide.train import load, load_data, train
job = load(Path(sys.argv[1]))
data = load_data(job)
rounds = train(job, data)
os.kill(os.getpid(), signal.SIGKILL)
"""


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def test_processes_at_once_never_pass_the_limit_together(folder):
    limit(folder, epsilon=3.0, delta=0.5)
    job_in(folder, epsilon=0.5)
    processes = [start(CHARGES, folder / "job.toml", 5) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    found = where(folder)
    assert found.spent.epsilon == 3.0
    assert len(found.accounts) == 6


def test_a_process_that_is_killed_between_charge_and_release_has_spent(folder):
    limit(folder)
    job_in(folder)
    process = start(DIES, folder / "job.toml")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert where(folder).spent.epsilon == 0.5


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_leaves_whole_charges(folder):
    limit(folder, epsilon=32.0, delta=0.9)
    job_in(folder, epsilon=0.125)
    for wait in (0.0, 0.01, 0.03, 0.1, 0.2):
        process = start(CHARGES, folder / "job.toml", 1000)
        process.stdout.readline()
        process.stdin.write(b"\n")
        process.stdin.flush()
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        found = where(folder)
        assert found.spent.epsilon == 0.125 * len(found.accounts)
    budget_of(job_in(folder, epsilon=0.125)).charge()  # and the lease of the dead is free


def test_a_budget_that_somebody_holds_is_waited_for_and_then_nothing_is_charged(tmp_path):
    store = SqliteStore(tmp_path / "budget.db")
    with alone(store), pytest.raises(StoreError, match="nothing was charged"), alone(store, wait_seconds=0.1):
        pass
    with alone(store):
        pass
    store.close()
