"""Survival over silos: the pooled Cox model by another optimiser, sums over risk sets, and gradients with noise."""

from __future__ import annotations

import csv
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from brca import brca
from confide.cli.predict import _header, _rows
from confide.crypto.random import SeededRandomness
from confide.errors import DataError, JobError, PrivacyError
from confide.he import Homomorphic
from confide.ideal import Sums
from confide.model import artifact
from confide.model.zoo import hazard
from confide.train import load, load_data, parse, pooled_model, train
from confide.train.course import Course
from confide.train.cox import Cox, places_of
from confide.train.evaluate import concordance, in_words
from confide.train.hazard_head import HazardHead
from confide.train.job import describe
from confide.train.learner import GraphLearner
from confide.train.ledger import Ledger
from confide.train.local import Silo, exp_by_record, flatten
from confide.train.output import Output, labelled
from confide.train.parts import AGGREGATORS
from confide.wire import MemoryStore
from he.oracle import ready
from tee.aggregators import asked_for
from train.federation import Federation

INTERVALS = 12
NAMES = ("north", "east", "south", "west")

SCHEMA = """
[label]
name = "died"
classes = ["no", "yes"]
time = { name = "days", unit = "days", high = 1000 }

[columns]
age = { type = "number", low = 20, high = 100 }
dose = { type = "number", low = 0, high = 10 }
stage = { type = "category", categories = ["1", "2", "3"] }
"""


# --- oracles ----------------------------------------------------------------------------------------------------------


def partial_likelihood(beta, x, places, events):
    """Breslow's log partial likelihood, record by record as in a textbook."""
    total, logs = 0.0, x @ beta
    for one in np.flatnonzero(events == 1):
        at_risk = logs[places >= places[one]]
        total += logs[one] - (at_risk.max() + math.log(np.exp(at_risk - at_risk.max()).sum()))
    return total


def pooled_cox(x, y, *, ridge, intervals=INTERVALS):
    """The maximiser of the penalised partial likelihood of records in one place, by a general optimiser."""
    places = np.maximum(np.ceil(np.round(y[:, 0] * intervals, 9)), 1)

    def loss(beta):
        return -partial_likelihood(beta, x, places, y[:, 1]) / len(x) + ridge / 2 * beta @ beta

    return minimize(loss, np.zeros(x.shape[1]), method="BFGS", options={"gtol": 1e-9}).x


def records(seed, n, features=3, *, strength=1.5):
    """Records whose hazard grows with the features, some of them lost sight of, with many equal times."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (n, features))
    slope = strength * np.linspace(1, -1, features)
    died, lost = rng.exponential(np.exp(-x @ slope)), rng.exponential(1.5, n)
    times = np.minimum(np.ceil(np.minimum(died, lost) * 20) / 40, 1.0)
    return x, np.stack([times, (died <= lost) & (times < 1)], axis=1).astype(float)


def course_of(parties, *, rounds=8, ridge=1e-3, intervals=INTERVALS, start=None):
    """The course of plain sums over (x, y) of each party."""
    train = parse(
        {
            "data": {"schema": "s", "tables": {"a": "a", "b": "b"}},
            "model": {"kind": "cox"},
            "train": {"rounds": rounds, "weight_decay": ridge},
        }
    ).train
    graph = start or hazard(parties[0][0].shape[1])
    course = Course(Cox(GraphLearner(graph, train), train, intervals=intervals), train)
    silos = [Silo(f"s{place}", x, y) for place, (x, y) in enumerate(parties)]
    while course.number < course.rounds:
        vectors = [
            course.encoding.contribution(
                course.parameters, silo, course.number + 1, SeededRandomness("r"), MemoryStore()
            )
            for silo in silos
        ]
        course.advance(Sums(np.sum(vectors, axis=0)[None], (frozenset(silo.name for silo in silos),)))
    return course


# --- without privacy --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_over_silos_it_is_the_pooled_cox_model_of_another_optimiser(seed):
    """Also where one silo has no event, and one no record."""
    x, y = records(seed, 150)
    order = np.argsort(x[:, 0])  # silos that differ
    parties = [(x[part], y[part]) for part in np.split(order, [40, 90])]
    quiet = y[order[:10]] * [1, 0]
    parties += [(x[order[:10]], quiet), (np.zeros((0, 3)), np.zeros((0, 2)))]
    whole_x, whole_y = (np.concatenate(rows) for rows in zip(*parties, strict=True))
    found = flatten_course(course_of(parties))
    assert found == pytest.approx(pooled_cox(whole_x, whole_y, ridge=1e-3), abs=2e-5)
    alone = [pooled_cox(one, other, ridge=1e-3) for one, other in parties[:3]]
    assert np.abs(np.mean(alone, axis=0) - found).max() > 1e-2  # the control: what the silos find alone is another


def flatten_course(course):
    return course.parameters[:-1]


def test_a_step_that_goes_too_far_is_halved_until_the_likelihood_rises():
    x, y = records(1, 120)
    course = course_of([(x, y)])
    encoding, best, silo = course.encoding, course.parameters, Silo("s0", x, y)
    step = np.array([2.5, 1.0, -2.0])
    encoding.resumed({**encoding.moved, "step": step})
    there = best + np.append(step, 0.0)
    for part in (1 / 2, 1 / 4, 1 / 8):
        sums = encoding.contribution(there, silo, 1, SeededRandomness("r"), MemoryStore())
        change = encoding.update(there, sums, 1, 1)
        assert change[:-1] == pytest.approx(-part * step)
        there = there + change
    assert flatten_course(course_of([(x, y)], start=far_off())) == pytest.approx(best[:-1], abs=1e-5)


def far_off():
    """A start from which Newton's method has to come back."""
    start = hazard(3)
    start.layers[0].weight[:] = [[-2.5, 2.5, 2.5]]
    return start


def test_the_bias_makes_a_constant_hazard_expect_the_events_that_there_were():
    x, y = records(2, 400)
    parameters = course_of([(x, y)], rounds=10, intervals=400).parameters
    expected = np.exp(x @ parameters[:-1] + parameters[-1]) * np.ceil(y[:, 0] * 400) / 400
    assert expected.sum() == pytest.approx(y[:, 1].sum(), rel=1e-3)


def test_sums_that_no_honest_silo_sends_move_no_model_beyond_numbers():
    course = course_of([records(3, 50)], rounds=8)
    encoding = course.encoding
    for fill in (-encoding.bound, 0, encoding.bound):
        change = encoding.update(course.parameters, np.full(encoding.length, fill, np.int64), 1, 1)
        assert np.isfinite(change).all()


def test_a_course_goes_on_from_any_state():
    x, y = records(4, 80)
    course = course_of([(x, y)], rounds=3)
    other = course_of([(x, y)], rounds=3).resumed(course.state())
    assert other.model_hash == course.model_hash
    for one in (course, other):
        assert np.array_equal(one.encoding.hazard, course.encoding.hazard)


def test_no_event_leaves_the_weights_where_they_are():
    x, y = records(5, 40)
    assert np.abs(flatten_course(course_of([(x, y * [1, 0])]))).max() < 1e-9


@pytest.mark.parametrize("y", [np.zeros(5, np.int64), np.zeros((5, 3)), np.full((5, 2), 2.0), -np.ones((5, 2))])
def test_what_is_no_survival_is_refused(y):
    with pytest.raises(DataError, match="times"):
        course_of([(np.zeros((5, 3)), y)])


def test_a_silo_with_far_more_records_than_stated_is_refused():
    x, y = records(6, 30)
    with pytest.raises(DataError, match="16 \\* train.expected_records=150"):
        course_of([(np.resize(x, (2401, 3)), np.resize(y, (2401, 2)))])


def test_an_edge_belongs_to_the_interval_below():
    times = np.arange(0, 9001, 90) / 9000
    assert places_of(times, 100).tolist() == [0, *range(100)]


# --- concordance ------------------------------------------------------------------------------------------------------

few = st.integers(0, 4).map(float)


@given(st.lists(st.tuples(few, few, st.integers(0, 1)), min_size=2, max_size=12))
def test_concordance_counts_every_pair_whose_order_is_known(rows):
    scores, times, events = (np.array(column) for column in zip(*rows, strict=True))
    above = pairs = 0.0
    for one, other in itertools.permutations(range(len(rows)), 2):
        known = events[one] and (times[one] < times[other] or (times[one] == times[other] and not events[other]))
        pairs += known
        above += known * (1.0 if scores[one] > scores[other] else 0.5 if scores[one] == scores[other] else 0.0)
    if pairs:
        assert concordance(scores, times, events) == pytest.approx(above / pairs)
    else:
        with pytest.raises(DataError, match="no pair"):
            concordance(scores, times, events)


# --- with privacy -----------------------------------------------------------------------------------------------------


def head_of(features, clip_norm=0.5):
    return HazardHead(hazard(features), row_norm=1.0, clip_norm=clip_norm)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("at", [1e3, -1e3, 1e150, 1e308])
def test_a_hazard_far_out_is_cut_without_a_warning(at):
    x, y = records(1, 20)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    head = head_of(3, 0.5)
    assert np.isfinite(head.gradient_sum(np.full(4, at), Silo("one", x, y)).total).all()


def test_the_gradient_is_that_of_the_likelihood_under_a_constant_hazard():
    rng = np.random.default_rng(1)
    x, y = records(1, 60)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    parameters, head = rng.normal(size=4), head_of(3, None)
    sums = head.sums
    clipped = head.gradient_sum(parameters, Silo("one", x, y)).total
    found = head.gradient(clipped * (sums.clip_norm / sums.grid))

    def loss(at):
        logits = x @ at[:-1] + at[-1]
        return (y[:, 0] * np.exp(logits) - y[:, 1] * logits).sum()

    wide = [1, 1, 1, 1]
    for place in range(4):
        step = np.eye(4)[place] * 1e-5
        slope = (loss(parameters + step) - loss(parameters - step)) / 2e-5
        assert found[place] == pytest.approx(slope * wide[place] if place < 3 else slope * 0.25, rel=1e-2, abs=0.05)


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 5e-324, 1e-3, 1.0, 30.0, 1e6, 1e300]),
    st.sampled_from([0.05, 0.5, 3.0]),
)
def test_neighbours_differ_by_the_sensitivity_at_most(seed, wild, clip_norm):
    """Whatever the record, the weights and the clip; replayed through the sum that gets the noise."""
    rng = np.random.default_rng(seed)
    x, y = records(seed, 12)
    x[0] *= wild
    head, parameters = head_of(3, clip_norm), rng.normal(size=4) * min(wild, 1e6)
    with_, without = (head.gradient_sum(parameters, Silo("one", x[place:], y[place:])) for place in (0, 1))
    assert math.sqrt(sum(int(value) ** 2 for value in with_.total - without.total)) <= with_.sensitivity


def test_one_record_moves_the_risk_sets_by_far_more():
    """The control: the sums of the exact model are no clipped sums, so they need [privacy]'s other loss."""
    x, y = records(9, 60)
    x[0] = 1.0
    train = parse({"data": {"schema": "s", "tables": {"a": "a", "b": "b"}}, "model": {"kind": "cox"}}).train
    encoding = Cox(GraphLearner(hazard(3), train), train, intervals=INTERVALS)
    whole, without = (
        encoding.contribution(
            np.array([3.0, 3.0, 3.0, 0.0]), Silo("one", x[place:], y[place:]), 1, SeededRandomness("r"), MemoryStore()
        )
        * 2.0**-35
        * train.expected_records
        for place in (0, 1)
    )
    assert np.linalg.norm(whole - without) > 100 * head_of(3).sums.clip_norm


@given(st.lists(st.floats(-800, 800) | st.just(math.nan), min_size=1, max_size=20))
def test_the_exponential_rounds_each_number_for_itself(numbers):
    values = np.array(numbers)
    found = exp_by_record(values)
    for value, one in zip(values, found, strict=True):
        assert np.array_equal(exp_by_record(np.array([value])), [one], equal_nan=True)
        if not math.isnan(value):
            assert one == pytest.approx(math.exp(min(700.0, max(-700.0, value))), rel=1e-12)


# --- jobs -------------------------------------------------------------------------------------------------------------


def tables(folder, n=60):
    """Write the schema and a table for each party and for the test; return the paths by name."""
    (folder / "schema.toml").write_text(SCHEMA)
    paths = {}
    for place, name in enumerate((*NAMES, "test")):
        x, y = records(20 + place, n)
        rows = [
            [
                f"{60 + 40 * a:.2f}",
                f"{5 + 5 * d:.3f}",
                "123"[int(s * 1.5 + 1.5)],
                f"{1000 * t:.1f}",
                "yes" if e else "no",
            ]
            for (a, d, s), (t, e) in zip(x.tolist(), y.tolist(), strict=True)
        ]
        paths[name] = folder / f"{name}.csv"
        with paths[name].open("w", newline="") as file:
            csv.writer(file).writerows([["age", "dose", "stage", "days", "died"], *rows])
    return paths


def job_of(folder, **sections):
    table = {
        "data": {"schema": "schema.toml", "tables": {name: f"{name}.csv" for name in NAMES}, "test": "test.csv"},
        "model": {"kind": "cox"},
        "train": {"quorum": 3},
    }
    table = {name: table.get(name, {}) | sections.get(name, {}) for name in {*table, *sections}}
    return parse(table, base=folder)


PRIVATE = {"epsilon": 3.0, "expected_records": 240, "mechanism": "auto"}


@pytest.mark.parametrize("aggregate", sorted(set(AGGREGATORS) - {"groups"}))
def test_a_job_gives_the_pooled_model_under_every_aggregator(tmp_path, aggregate):
    tables(tmp_path)
    job = job_of(tmp_path, train={"aggregate": aggregate} | asked_for(aggregate))
    data = load_data(job)
    done = list(train(job, data))
    assert len(done) == 8
    pooled = flatten(pooled_model(job, data))
    assert flatten(done[-1].model) == pytest.approx(pooled, abs=1e-6)
    x, y = (np.concatenate([getattr(silo, name) for silo in data.silos]) for name in ("x", "y"))
    assert pooled[:-1] == pytest.approx(pooled_cox(x, y, ridge=1e-3, intervals=100), abs=1e-4)
    index = concordance(done[-1].model.apply(data.test.x)[:, 0], data.test.y[:, 0], data.test.y[:, 1])
    assert index > 0.65
    assert (
        in_words(done[-1].model, data.test.x, data.test.y)
        == f"concordance index on 60 test records: {index:.3f} (by chance: 0.500)"
    )


def test_a_model_is_saved_with_its_label_and_predicts(tmp_path):
    tables(tmp_path)
    job = job_of(tmp_path, output={"model": "m.confide", "signing_key": "key.pem", "ledger": "l.jsonl"})
    output, data = Output(job), load_data(job)
    *_, last = train(job, data, ledger=output.ledger)
    saved = output.save(data, last)
    found = artifact.load(tmp_path / "m.confide", trust=bytes.fromhex(saved.signer))
    assert np.allclose(found.graph.apply(data.test.x), last.model.apply(data.test.x))
    assert found.graph.outputs == 1
    assert found.label.epsilon is None


def test_private_gradients_are_charged_and_labelled(tmp_path):
    tables(tmp_path)
    job = job_of(tmp_path, privacy=PRIVATE)
    assert (job.train.algorithm, job.train.rounds, job.train.momentum, job.model.unit_rows) == ("fedavg", 20, 0.0, True)
    assert "intervals" not in describe(job)
    ledger = Ledger()
    data = load_data(job, ledger=ledger)
    *_, last = train(job, data, ledger=ledger)
    assert 2.9 < last.epsilon <= 3.0
    label = labelled(job, data, last, ledger).label
    assert "gradient sums" in label.mechanism
    assert label.epsilon == 3.0
    index = concordance(last.model.apply(data.test.x)[:, 0], data.test.y[:, 0], data.test.y[:, 1])
    assert index > 0.55
    with pytest.raises(PrivacyError):
        labelled(job_of(tmp_path), data, last, ledger)


def test_private_gradients_without_noise_would_come_to_the_coefficients(tmp_path):
    """At an epsilon that hides nothing the steps are those of the likelihood itself."""
    tables(tmp_path, n=200)
    job = job_of(
        tmp_path,
        privacy={"epsilon": 32.0, "expected_records": 800, "clip_norm": 5.0, "delta": 1e-3, "colluding": 0},
        model={"kind": "cox", "unit_rows": True},
        train={"quorum": 4, "rounds": 100, "learning_rate": 4.0},
    )
    data = load_data(job)
    *_, last = train(job, data)
    x, y = (np.concatenate([getattr(silo, name) for silo in data.silos]) for name in ("x", "y"))
    wide = np.concatenate([x, np.ones((len(x), 1))], axis=1)

    def loss(at):
        logits = wide @ at
        return (y[:, 0] * np.exp(logits) - y[:, 1] * logits).mean() + 5e-4 * at @ at

    best = minimize(loss, np.zeros(6), method="BFGS").x
    scores = last.model.apply(x)[:, 0]
    assert np.abs(scores - wide @ best).max() < 0.25  # the coefficients of categories are not unique, scores are
    assert np.ptp(scores) > 2


@pytest.mark.parametrize("private", [False, True])
def test_over_nodes_it_is_the_model_of_one_process_bit_for_bit(tmp_path, private):
    """With privacy the centre is a sum before the rounds, and its noise other than in one process."""
    tables(tmp_path)
    data = {"schema": "schema.toml", "tables": {name: f"{name}.csv" for name in NAMES}, "test_fraction": 0.25}
    table = {"data": data, "model": {"kind": "cox"}, "train": {"rounds": 4, "quorum": 3}}
    job = parse(table | ({"privacy": PRIVATE} if private else {}), base=tmp_path)
    expected = [one.parameters for one in train(job, load_data(job), rng=SeededRandomness("same"))]
    with Federation(tmp_path, job, seed="same", schema=SCHEMA) as federation:
        nodes = [federation.start(name) for name in NAMES]
        coordinator = federation.coordinator()
        found = list(coordinator.rounds())
        coordinator.finish(model=b"")
        assert nodes[0].joining() is None
    assert len(found) == len(expected) + private
    assert np.isfinite(found[-1].parameters).all()
    assert (found[-1].epsilon is not None) == private
    if not private:
        assert [one.parameters.tobytes() for one in found] == [one.tobytes() for one in expected]


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"train": {"algorithm": "fedavg"}}, 'algorithm="risk-sets"'),
        ({"train": {"algorithm": "newton"}}, 'algorithm="risk-sets"'),
        ({"train": {"algorithm": "risk-sets"}, "privacy": PRIVATE}, 'algorithm="fedavg".* and a \\[privacy\\]'),
        ({"train": {"local_steps": 2}}, "local_steps=1"),
        ({"train": {"learning_rate": 0.1}}, "no train.learning_rate"),
        ({"train": {"class_weights": "balanced"}}, "no train.class_weights"),
        ({"train": {"aggregate": "groups"}}, "groups"),
        ({"train": {"compress": "rand-k"}}, "train.compress"),
        ({"data": {"evaluate": "federated"}}, "no data.evaluate"),
        ({"model": {"intervals": 0}}, "model.intervals=0"),
        ({"model": {"intervals": 50}, "privacy": PRIVATE}, "no model.intervals"),
        ({"model": {"kind": "logistic", "intervals": 50}}, "no model.intervals"),
        ({"model": {"kind": "logistic"}, "train": {"algorithm": "risk-sets"}}, 'model.kind="cox"'),
        ({"privacy": {"epsilon": 1.0, "expected_records": 200}}, "unit_rows=true"),
        ({"privacy": {"unit": "patient", "expected_records": 200}, "model": {"unit_rows": True}}, "record"),
    ],
)
def test_a_job_that_contradicts_itself_is_refused(tmp_path, sections, match):
    with pytest.raises(JobError, match=match):
        job_of(tmp_path, **sections)


def test_a_schema_without_times_is_refused_before_a_table_is_read(tmp_path):
    (tmp_path / "schema.toml").write_text(SCHEMA.replace("time =", "# time ="))
    with pytest.raises(JobError, match=r"label.time in the schema"):
        load_data(job_of(tmp_path))


def test_a_log_hazard_is_served_encrypted_and_printed_as_it_is(tmp_path):
    tables(tmp_path)
    job = job_of(tmp_path)
    data = load_data(job)
    *_, last = train(job, data)
    expected = last.model.apply(data.test.x)
    answers = ready(Homomorphic(), last.model).predict(data.test.x).output("client")
    assert answers == pytest.approx(expected, abs=2e-3)
    kit = SimpleNamespace(classes=(), link="identity", outputs=1)
    assert _header(kit, False) == ["output_0"]
    printed = [float(value) for (value,) in _rows(expected, kit, False)]
    assert printed == pytest.approx(expected[:, 0], abs=1e-5)


# --- TCGA-BRCA --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_six_regions_come_to_the_pooled_model_and_lose_little_by_noise(tmp_path):
    where = brca(tmp_path)

    def index(graph, held):
        return concordance(graph.apply(held.x)[:, 0], held.y[:, 0], held.y[:, 1])

    job = load(where / "brca.toml")
    data = load_data(job)
    *_, last = train(job, data)
    pooled = index(last.model, data.test)
    assert pooled == pytest.approx(0.848, abs=2e-3)
    x, y = (np.concatenate([getattr(silo, name) for silo in data.silos]) for name in ("x", "y"))
    assert flatten(last.model)[:-1] == pytest.approx(pooled_cox(x, y, ridge=1e-3, intervals=100), abs=1e-3)
    job, found = load(where / "brca_private.toml"), []
    for seed in range(20):
        rng = SeededRandomness(f"noise {seed}")
        data = load_data(job, rng=rng)
        *_, last = train(job, data, rng=rng)
        found.append(index(last.model, data.test))
    assert np.mean(found) > pooled - 0.05
