"""One round of sums over records: the pooled model whoever has them, right solutions, and noise that is paid for."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from confide.crypto.random import SeededRandomness
from confide.errors import DataError, JobError, ModelError, PrivacyError
from confide.model.zoo import logistic
from confide.train import AGGREGATORS, load_data, parse, train
from confide.train.encodings import charge
from confide.train.evaluate import accuracy
from confide.train.ledger import Ledger
from confide.train.local import Silo, flatten
from confide.train.output import labelled
from confide.train.parts import encoding_of, plan_of
from confide.train.run import pooled_model
from confide.train.sections import TrainSection
from confide.train.statistics import CONSTANT, discriminant, ridge_regression, solve, solved
from confide.wire import MemoryStore
from tee.aggregators import asked_for


def job_of(**more):
    table = {"data": {"set": "breast-cancer"}, "train": {"algorithm": "statistics"}}
    for name, keys in more.items():
        table[name] = table.get(name, {}) | keys
    return parse(table)


def scaled(x):
    low, high = x.min(axis=0), x.max(axis=0)
    return 2 * (x - low) / np.where(high > low, high - low, 1.0) - 1


def section(**more):
    return TrainSection(algorithm="statistics", rounds=1, momentum=0.0, average=0.0, expected_records=2000, **more)


# --- what is solved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 9, 60])
def test_the_solver_agrees_with_another(size):
    rng = np.random.default_rng(size)
    root = rng.normal(size=(size + 3, size))
    matrix, right = root.T @ root + 0.01 * np.eye(size), rng.normal(size=(size, 3))
    np.testing.assert_allclose(solve(matrix, right), np.linalg.solve(matrix, right), rtol=1e-8, atol=1e-10)
    with pytest.raises(np.linalg.LinAlgError):
        solve(matrix - 2 * np.linalg.eigvalsh(matrix).max() * np.eye(size), right)


def test_sums_that_nothing_can_be_solved_from_end_in_a_refusal():
    """A server may invent sums; whoever follows them must come to an end."""
    assert np.isfinite(ridge_regression(-1e19 * np.ones((5, 5)), np.ones((5, 1)), ridge=1e-9)).all()
    with pytest.raises(ModelError, match="not finite"):
        ridge_regression(np.full((5, 5), np.nan), np.ones((5, 1)), ridge=1e-9)


def test_least_squares_is_scikit_learns():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(200, 5)), rng.normal(size=(200, 2))
    found = ridge_regression(x.T @ x, x.T @ y, ridge=3.0)
    np.testing.assert_allclose(found.T, Ridge(alpha=3.0, fit_intercept=False).fit(x, y).coef_, rtol=1e-9)


@pytest.mark.parametrize("load", [load_breast_cancer, load_digits])
def test_discriminant_analysis_is_scikit_learns(load):
    x, y = load(return_X_y=True)
    x = scaled(x)[:, :20] + 1e-3 * np.random.default_rng(0).normal(size=(len(x), 20))
    wide = np.concatenate([x, np.full((len(x), 1), CONSTANT)], axis=1)
    hot = np.eye(y.max() + 1)[y]
    found = discriminant(wide.T @ wide, wide.T @ hot, ridge=1e-9, constant=CONSTANT)
    scores = wide @ found
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y).predict_log_proba(x)
    ours = scores - np.log(np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    ours = ours - scores.max(axis=1, keepdims=True)
    close = np.abs(np.exp(ours) - np.exp(theirs)).max()
    assert close < 1e-6


@pytest.mark.parametrize("solver", ["discriminant", "ridge"])
@pytest.mark.parametrize("load", [load_breast_cancer, load_digits])
def test_a_model_from_sums_predicts_as_its_kind_does(load, solver):
    x, y = load(return_X_y=True)
    x, y = scaled(x), y.astype(np.int64)
    start = logistic(x.shape[1], 1 if y.max() == 1 else int(y.max()) + 1)
    found = accuracy(solved(section(solver=solver), start, x, y), x, y)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-3).fit(x, y).score(x, y)
    assert found > theirs - (0.02 if solver == "discriminant" else 0.04)


# --- over parties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", sorted(set(AGGREGATORS) - {"groups"}))
def test_the_model_over_parties_is_the_pooled_one_bit_for_bit(aggregate):
    job = job_of(train={"aggregate": aggregate} | asked_for(aggregate))
    data = load_data(job)
    (done,) = train(job, data)
    np.testing.assert_array_equal(flatten(done.model), flatten(pooled_model(job, data)))
    assert accuracy(done.model, data.test.x, data.test.y) > 0.92
    assert "no differential privacy" in labelled(job, data, done, Ledger()).label.sentence()


def test_the_sums_take_as_many_records_as_the_job_says():
    job = job_of(train={"expected_records": 2})
    with pytest.raises(DataError, match=r"Expected at most 16 \* train.expected_records=2 records at"):
        list(train(job, load_data(job)))


# --- under [privacy] --------------------------------------------------------------------------------------------------

PRIVATE = {
    "data": {"parties": 4, "split": "even"},
    "model": {"unit_rows": True},
    "train": {"quorum": 3},
    "privacy": {"expected_records": 455},
}


def test_a_private_job_runs_and_its_label_says_what_it_was():
    job = job_of(**PRIVATE)
    data = load_data(job, rng=SeededRandomness("a private job"))
    (done,) = train(job, data)
    label = labelled(job, data, done, Ledger()).label
    plan = plan_of(job, data.start, 4)
    assert done.epsilon == plan.spent(1) <= 1.0
    assert "sufficient statistics" in label.mechanism
    assert label.rounds == 1
    assert job.privacy.clip_norm == 1.0


def test_the_model_without_the_noise_is_far_from_the_one_with_it():
    """The noise really enters: parties' sums differ from their clipped sums by a deviation as the plan has it."""
    job = job_of(**PRIVATE)
    data = load_data(job)
    encoding, plan = encoding_of(job, data.start, 4), plan_of(job, data.start, 4)
    silo, parameters = data.silos[0], flatten(data.start)
    draws = [
        encoding.contribution(parameters, silo, 1, SeededRandomness(f"{seed}"), MemoryStore()).astype(np.float64)
        for seed in range(40)
    ]
    deviation = np.std(draws, axis=0, ddof=1)
    assert np.sqrt(np.mean(deviation**2)) == pytest.approx(np.sqrt(plan.share_variance), rel=0.01)


def test_a_second_release_is_refused_by_the_silos_own_count():
    job = job_of(**PRIVATE)
    data = load_data(job)
    encoding, store = encoding_of(job, data.start, 4), MemoryStore()
    store.commit(charge(store))
    with pytest.raises(PrivacyError, match="at most releases=1, got 2"):
        encoding.contribution(flatten(data.start), data.silos[0], 1, SeededRandomness("again"), store)


def test_a_record_moves_what_leaves_by_the_sensitivity_at_most():
    """Through the whole encoding, the noise frozen: neighbours differ by one record, and by nothing but it."""
    job = job_of(**PRIVATE)
    data = load_data(job)
    encoding, plan = encoding_of(job, data.start, 4), plan_of(job, data.start, 4)
    silo, rng = data.silos[0], np.random.default_rng(3)
    for trial in range(30):
        x = silo.x.copy()
        x[0] = rng.normal(size=x.shape[1]) * rng.choice([0.0, 1e-3, 1.0, 50.0])
        frozen = f"frozen {trial}"
        whole, without = (
            encoding.contribution(
                flatten(data.start),
                Silo("a", x[first:], silo.y[first:]),
                1,
                SeededRandomness(frozen),
                MemoryStore(),
            )
            for first in (0, 1)
        )
        moved = np.sqrt(sum(int(value) ** 2 for value in whole - without))
        assert moved <= plan.grid


# --- contradictions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"model": {"kind": "mlp"}}, 'model.kind="logistic"'),
        ({"train": {"rounds": 2}}, "train.rounds=1"),
        ({"train": {"local_steps": 2}}, "local_steps=1"),
        ({"train": {"compress": "rotate"}}, "train.compress"),
        ({"train": {"aggregate": "shares", "norm_bound": 9.0}}, "norm_bound"),
        ({"train": {"learning_rate": 0.5}}, "no train.learning_rate"),
        ({"train": {"momentum": 0.5}}, "no train.momentum"),
        ({"privacy": {"expected_records": 455}}, "unit_rows=true"),
    ],
)
def test_a_job_that_contradicts_itself_is_refused(more, match):
    with pytest.raises(JobError, match=match):
        job_of(**more)


def test_a_solver_belongs_to_statistics():
    with pytest.raises(JobError, match="no train.solver"):
        parse({"data": {"set": "breast-cancer"}, "train": {"solver": "ridge"}})
