"""Statistics that precondition gradients: the pooled optimum, the account of both, and who may release what when."""

from __future__ import annotations

import math
import tomllib

import dp_accounting
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from confide.crypto.random import SeededRandomness
from confide.errors import Aborted, JobError, PrivacyError
from confide.ideal import Cohort, Sums
from confide.model.zoo import logistic
from confide.train import load_data, parse, train
from confide.train.course import Announcement, Announcements, Course, Follower, announcement
from confide.train.encodings import charge
from confide.train.evaluate import accuracy
from confide.train.job import describe
from confide.train.ledger import Ledger
from confide.train.linear_head import LinearHead
from confide.train.local import Silo, descend, flatten, record_gradients, residuals, unflatten
from confide.train.newton import Newton
from confide.train.output import labelled
from confide.train.parts import encoding_of, plan_of
from confide.train.reasons import doubts, reasons
from confide.train.run import pooled_model
from confide.wire import Array, MemoryStore, encode

SECTIONS = {
    "data": {"set": "breast-cancer", "standardise": "centre", "split": "even"},
    "model": {"unit_rows": True},
    "train": {"algorithm": "newton", "quorum": 4, "expected_records": 600},
}
PRIVATE = SECTIONS | {"privacy": {"expected_records": 455, "colluding": 0}}


def changed(sections, **more):
    return {name: sections.get(name, {}) | more.get(name, {}) for name in {*sections, *more}}


# --- a linear head's gradients in integers ----------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("weights", [(), (0.25, 1.0, 0.5, 0.75)])
def test_a_heads_gradient_is_the_clipped_sum_of_every_records(outputs, weights):
    """Against gradients that are made one by one; the constant feature weighs the bias by its square."""
    rng = np.random.default_rng(outputs)
    x = rng.normal(size=(80, 9))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = rng.integers(0, max(2, outputs), 80)
    graph = unflatten(logistic(9, outputs), rng.normal(size=10 * outputs) * 2)
    head = LinearHead(graph, row_norm=1.0, clip_norm=0.5, class_weights=weights[: max(2, outputs)])
    found = head.gradient_sum(flatten(graph), Silo("one", x, y))
    each = record_gradients(graph, x, y, class_weights=weights[: max(2, outputs)])
    wide = np.concatenate([np.repeat(1.0, 9 * outputs), np.repeat(0.5, outputs)])  # weights, then biases
    norms = np.linalg.norm(each * wide, axis=1)
    expected = (each * np.minimum(1, 0.5 / norms)[:, None]).sum(axis=0) * wide**2
    assert weights or (norms > 0.5).any()
    decoded = head.gradient(found.total * (0.5 / head.sums.grid))
    np.testing.assert_allclose(decoded, expected, atol=80 * 0.5 * 0.02)
    assert np.linalg.norm(decoded - expected) < 0.02 * np.linalg.norm(expected) + 0.05


def test_another_record_changes_no_bit_of_what_a_record_adds():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-1, 1, (40, 33)), rng.integers(0, 3, 40)
    graph = unflatten(logistic(33, 3), rng.normal(size=34 * 3) * 30)
    head = LinearHead(graph, row_norm=math.sqrt(33), clip_norm=0.5)

    def total(rows):
        return head.gradient_sum(flatten(graph), Silo("some", x[rows], y[rows])).total

    whole = total(np.arange(40))
    for place in range(40):
        alone = total(np.array([place]))
        assert (whole - total(np.delete(np.arange(40), place)) == alone).all()
        assert sum(int(value) ** 2 for value in alone.tolist()) <= head.sums.grid**2


# --- the model --------------------------------------------------------------------------------------------------------


def loss_of(graph, x, y, *, decay):
    logits = x @ graph.layers[0].weight[0] + graph.layers[0].bias[0]
    bias = graph.layers[0].bias[0] / 0.5
    norms = float(graph.layers[0].weight[0] @ graph.layers[0].weight[0]) + bias**2
    return float(np.logaddexp(0, np.where(y == 1, -logits, logits)).mean()) + decay / 2 * norms


@pytest.mark.parametrize("decay", [1e-2, 1e-3])
def test_without_privacy_it_comes_to_scikit_learns_optimum(decay):
    """And after as many steps it is nearer than gradient descent."""
    job, short = (
        parse(changed(SECTIONS, train={"weight_decay": decay, "average": 0.0, "rounds": rounds}))
        for rounds in (300, 17)
    )
    data = load_data(job)
    x, y = (np.concatenate([getattr(silo, part) for silo in data.silos]) for part in ("x", "y"))
    done = pooled_model(job, data)
    wide = np.concatenate([x, np.full((len(x), 1), 0.5)], axis=1)
    best = LogisticRegression(C=1 / (decay * len(x)), fit_intercept=False, tol=1e-10, max_iter=10_000).fit(wide, y)
    optimum = unflatten(data.start, np.concatenate([best.coef_[0, :-1], best.coef_[0, -1:] * 0.5]))
    least = loss_of(optimum, x, y, decay=decay)
    assert loss_of(done, x, y, decay=decay) == pytest.approx(least, abs=2e-3)
    slow = descend(data.start, x, y, steps=17, learning_rate=1.0, momentum=0.0, weight_decay=decay)
    assert loss_of(pooled_model(short, data), x, y, decay=decay) < loss_of(slow, x, y, decay=decay)


@pytest.mark.parametrize("aggregate", ["plain", "masked", "shares"])
def test_over_parties_it_is_the_model_of_the_pooled_records(aggregate):
    job = parse(changed(SECTIONS, train={"aggregate": aggregate}))
    data = load_data(job)
    rounds = list(train(job, data))
    assert len(rounds) == 17
    pooled = pooled_model(job, data)
    assert ((pooled.apply(data.test.x) > 0.5) == (rounds[-1].model.apply(data.test.x) > 0.5)).mean() > 0.98
    np.testing.assert_allclose(flatten(rounds[-1].model), flatten(pooled), atol=0.05 * np.abs(flatten(pooled)).max())


def test_several_classes():
    job = parse(changed(SECTIONS, data={"set": "digits"}))
    data = load_data(job)
    *_, done = train(job, data)
    assert accuracy(done.model, data.test.x, data.test.y) > 0.93


# --- under [privacy] --------------------------------------------------------------------------------------------------


def test_epsilon_is_that_of_all_three_kinds_by_another_accountant():
    job = parse(changed(PRIVATE, privacy={"statistics_share": 0.3, "preprocessing_share": 0.2}))
    data = load_data(job, rng=SeededRandomness("newton"))
    plan = plan_of(job, data.start, 4, preprocess=data.preprocess)
    kinds = ((plan.preparation, 1), (plan.statistics, 1), (plan.training, 16))
    squares = [times * kind.grid**2 / (plan.shares * kind.share_variance) for kind, times in kinds]
    assert np.array(squares) / sum(squares) == pytest.approx([0.2, 0.8 * 0.3, 0.8 * 0.7], rel=1e-6)
    exact = dp_accounting.get_epsilon_gaussian(1 / math.sqrt(sum(squares)), plan.delta)
    assert exact == pytest.approx(plan.epsilon_server, rel=1e-5)
    assert 0.999 < plan.epsilon_server <= 1.0
    two = dp_accounting.get_epsilon_gaussian(1 / math.sqrt(squares[0] + squares[1]), plan.delta)
    assert plan.spent(1) == pytest.approx(two, rel=1e-5)
    assert plan.spent(plan.releases) == plan.epsilon_server
    with pytest.raises(PrivacyError, match="at most releases=17, got 18"):
        plan.spent(18)
    rounds = list(train(job, data))
    assert [one.epsilon for one in rounds] == [plan.spent(made) for made in range(1, 18)]
    label = labelled(job, data, rounds[-1], Ledger()).label
    assert "1 release of 527 sums with 24 % of mu^2, then 16 full-batch releases" in label.mechanism
    assert label.mu == pytest.approx(math.sqrt(sum(squares)), rel=1e-6)


def test_a_silo_gives_each_kind_when_it_is_due_and_never_twice():
    job = parse(PRIVATE)
    data = load_data(job)
    plan = plan_of(job, data.start, 4, preprocess=data.preprocess)
    encoding, store, rng = (
        encoding_of(job, data.start, 4, preprocess=data.preprocess),
        MemoryStore(),
        SeededRandomness("x"),
    )
    assert isinstance(encoding, Newton)
    start, silo = flatten(data.start), data.silos[0]
    first = encoding.contribution(start, silo, 1, rng, store)
    assert len(first) == plan.statistics.length == encoding.length
    store.commit(charge(store))
    with pytest.raises(PrivacyError, match="clipped_sum of this plan"):  # a second release of statistics
        encoding.contribution(start, silo, 1, rng, store)
    assert not encoding.left(1, 1)
    assert encoding.left(2, 1)
    encoding.update(start, first, frozenset("a"), 1)
    assert len(encoding.contribution(start, silo, 2, rng, store)) == plan.length == encoding.length
    for _ in range(16):
        store.commit(charge(store))
    with pytest.raises(PrivacyError, match="at most releases=17, got 18"):
        encoding.contribution(start, silo, 18, rng, store)


def test_a_record_moves_either_kind_by_its_sensitivity_at_most():
    """Through the whole encoding with its noise frozen."""
    job = parse(PRIVATE)
    data = load_data(job)
    plan = plan_of(job, data.start, 4, preprocess=data.preprocess)
    silo, rng = data.silos[0], np.random.default_rng(3)
    for started in (False, True):
        encoding = encoding_of(job, data.start, 4, preprocess=data.preprocess)
        store, parameters = MemoryStore(), flatten(data.start)
        if started:
            parameters = parameters + encoding.update(
                parameters,
                encoding.contribution(parameters, silo, 1, SeededRandomness("first"), store),
                frozenset("a"),
                1,
            )
            store.commit(charge(store))
        grid = plan.grid if started else plan.statistics.grid
        for trial in range(10):
            x = silo.x.copy()
            x[0] = rng.normal(size=x.shape[1]) * rng.choice([0.0, 1e-3, 1.0, 50.0])
            whole, without = (
                encoding.contribution(
                    parameters, Silo("a", x[place:], silo.y[place:]), 2, SeededRandomness(f"frozen {trial}"), store
                )
                for place in (0, 1)
            )
            assert 0 <= math.sqrt(sum(int(value) ** 2 for value in whole - without)) <= grid


# --- the course -------------------------------------------------------------------------------------------------------


def sums_of(encoding, parameters, silos, number):
    vectors = [
        encoding.contribution(parameters, silo, number, SeededRandomness(silo.name), MemoryStore()) for silo in silos
    ]
    return Sums(np.sum(vectors, axis=0)[None], (frozenset(silo.name for silo in silos),))


def test_a_course_goes_on_from_any_state_and_a_silo_hears_both_kinds_at_once():
    job = parse(changed(SECTIONS, train={"rounds": 4}))
    data = load_data(job)
    course = Course(encoding_of(job, data.start, 4), job.train)
    cohort = Cohort(data.names, 4)
    follower = Follower(data.names[0], cohort, course.fork(), MemoryStore())
    said, states = [announcement(course, None)], [course.state()]
    for number in range(1, 5):
        sums = sums_of(course.encoding, course.parameters, data.silos, number)
        course.advance(sums)
        said.append(announcement(course, sums))
        states.append(course.state())
    follower.follow(encode(Announcements(tuple(said))))
    assert follower.course.model_hash == course.model_hash
    for number, state in enumerate(states):
        other = Course(encoding_of(job, data.start, 4), job.train).resumed(state)
        assert other.encoding.length == (course.encoding.length if number else other.encoding.longest)
        for later in said[number + 1 :]:
            rows = later.sums.numpy("int64", (1, other.encoding.length))
            other.advance(Sums(rows, tuple(map(frozenset, later.members))))
        assert other.model_hash == course.model_hash
    short = Announcement(1, said[1].model_hash, Array.of(np.zeros((1, 5), np.int64)), said[1].members)
    with pytest.raises(Exception, match="refused"):
        Follower(data.names[0], cohort, Course(encoding_of(job, data.start, 4), job.train), MemoryStore()).follow(
            encode(Announcements((said[0], short)))
        )


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"model": {"kind": "mlp"}}, 'model.kind="logistic"'),
        ({"train": {"rounds": 1}}, "at least 2"),
        ({"train": {"local_steps": 2}}, "local_steps=1"),
        ({"train": {"momentum": 0.5}}, "no train.momentum"),
        ({"train": {"aggregate": "groups"}}, 'no train.aggregate="groups"'),
        ({"model": {"unit_rows": False}, "privacy": {"expected_records": 455}}, "unit_rows=true"),
        ({"train": {"algorithm": "fedavg"}, "privacy": {"expected_records": 455, "statistics_share": 0.3}}, "newton"),
    ],
)
def test_a_job_that_contradicts_itself_is_refused(more, match):
    with pytest.raises(JobError, match=match):
        parse(changed(SECTIONS, **more))


def test_private_gradients_of_unit_rows_have_defaults_of_their_own():
    """Steps that grow with the records over the noise, and none of momentum; whoever names a key has it."""
    sections = changed(PRIVATE, train={"algorithm": "fedavg"})
    rates = []
    for records in (455, 60_000):
        train_section = parse(changed(sections, privacy={"expected_records": records})).train
        assert (train_section.rounds, train_section.momentum, train_section.average) == (40, 0.0, 0.5)
        sigma = dp_accounting.get_sigma_gaussian(1.0, records**-1.1)
        assert train_section.learning_rate == pytest.approx(0.5 * (records / sigma) ** 0.75, rel=5e-3)
        rates.append(train_section.learning_rate)
    assert rates[1] > 20 * rates[0]
    own = parse(changed(sections, train={"rounds": 7, "learning_rate": 2.0, "momentum": 0.5})).train
    assert (own.rounds, own.learning_rate, own.momentum) == (7, 2.0, 0.5)
    job = parse(sections)
    assert parse(tomllib.loads(describe(job))) == job
    bare = parse(changed(sections, model={"unit_rows": False})).train
    assert (bare.rounds, bare.learning_rate, bare.momentum) == (30, 1.0, 0.9)


def test_auto_chooses_what_bounds_a_unit_of_several_records():
    sections = {
        "data": {"schema": "s.toml", "tables": {"a": "a.csv", "b": "b.csv"}},
        "privacy": {"expected_records": 40_000, "mechanism": "auto", "unit": "patient"},
    }
    job = parse(sections)
    assert (job.train.algorithm, job.data.standardise, job.model.unit_rows) == ("fedavg", False, True)


def test_residuals_weigh_classes():
    found = residuals(np.array([[0.25], [0.25]]), np.array([0, 1]), (0.5, 1.0))
    assert found.tolist() == [[0.125], [-0.75]]


@pytest.mark.parametrize(
    ("records", "more", "algorithm"),
    [
        (455, {}, "fedavg"),
        (32_561, {}, "newton"),
        (32_561, {"train": {"algorithm": "statistics"}}, "statistics"),
        (32_561, {"model": {"kind": "mlp"}}, "fedavg"),
        (32_561, {"privacy": {"epsilon": 0.1}}, "fedavg"),
    ],
)
def test_auto_is_a_job_that_names_what_it_chose(records, more, algorithm):
    sections = {"data": {"set": "breast-cancer"}, "privacy": {"expected_records": records, "mechanism": "auto"}}
    job = parse(changed(sections, **more))
    assert (job.train.algorithm, job.data.standardise, job.model.unit_rows) == (algorithm, "centre", True)
    text = describe(job)
    assert parse(tomllib.loads(text)) == job
    assert 'mechanism = "auto"' in text
    assert any(f'algorithm "{algorithm}"' in line for line in reasons(job))
    bare = {"data": {"standardise": False}, "model": {"unit_rows": False}, "train": {"algorithm": "fedavg"}}
    named = parse(changed(sections, **bare))
    assert (named.data.standardise, named.model.unit_rows) == (False, False)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ((115, 113, 114, 113), []),
        ((1000, 900, 1100, 1000), ["publish a whole record", "steps are too long"]),
        ((20, 20, 20, 20), ["noise large"]),
        ((1900, 1, 1, 1), ["publish a whole record", "steps are too long", "cut to what"]),
    ],
)
def test_tables_that_do_not_fit_the_public_numbers_are_named(records, said):
    job = parse(PRIVATE)
    found = list(doubts(job, records))
    assert len(found) == len(said)
    assert all(words in line for words, line in zip(said, found, strict=True))


def test_a_silo_that_missed_the_statistics_takes_part_from_then_on():
    """And counts the statistics as spent: whoever comes late never has more epsilon than was stated."""
    job = parse(changed(PRIVATE, data={"split": "even"}, train={"rounds": 5, "quorum": 3}, privacy={"colluding": 1}))
    data = load_data(job)
    late, heard = data.names[3], []

    def fault(message):
        if message.tag == "train/course":
            heard.append(message)
        lost = message.src == late and len(heard) <= 4
        return [] if lost else [(0, message)]

    rounds = list(train(job, data, fault=fault))
    assert late not in rounds[0].members
    assert late in rounds[-1].members
    assert len(rounds) == 5


def test_a_training_whose_every_release_was_lost_says_so():
    job = parse(changed(PRIVATE, train={"quorum": 4}))
    data = load_data(job)
    silent = {data.names[0]}
    with pytest.raises(Aborted, match="Expected at least one round|failed"):
        list(train(job, data, fault=lambda message: [] if message.src in silent else [(0, message)]))


def test_a_preparation_from_a_fixed_seed_voids_the_label():
    job = parse(PRIVATE)
    data = load_data(job, rng=SeededRandomness("known to everybody"))
    *_, done = train(job, data)
    assert "no privacy claim" in labelled(job, data, done, Ledger()).label.seed


def test_a_job_s_clip_norm_and_name_stay_within_reason():
    with pytest.raises(JobError, match="privacy.clip_norm"):
        parse(changed(PRIVATE, train={"algorithm": "fedavg"}, privacy={"clip_norm": 1e-310}))
    with pytest.raises(JobError, match="printable"):
        parse(changed(PRIVATE, job={"name": "ok\x1b[2J\nleft: epsilon=99"}))
