"""Client level through the federated loop: plain sums without noise, dropouts, refusals, and jobs."""

from __future__ import annotations

import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.dp import client_plan
from confide.dp.client_plan import ClientPlan
from confide.dp.factorisation import banded, independent
from confide.errors import JobError, ModelError, PrivacyError
from confide.ideal import PlainSum, Sums
from confide.model.zoo import logistic
from confide.secagg.masked import Masked
from confide.train import client_simulation, parse
from confide.train.client_level import ClientUpdates
from confide.train.client_simulation import simulated
from confide.train.course import Course
from confide.train.learner import GraphLearner
from confide.train.ledger import Ledger
from confide.train.local import Silo
from confide.train.parts import encoding_of
from confide.train.reasons import reasons
from confide.train.rounds import federate
from confide.train.run import load_data
from confide.train.sections import TrainSection
from confide.wire import MemoryStore, drop

CLIENTS, FEATURES, ROUNDS = 12, 5, 8
START = logistic(FEATURES)
SETTINGS = TrainSection(rounds=ROUNDS, local_steps=3, momentum=0.0, average=0.0, quorum=7, weight_decay=0.0)
NAMES = [f"c{place}" for place in range(CLIENTS)]
BANDS = banded(ROUNDS, 4, 4)


def clients(seed: int = 1, count: int = CLIENTS) -> list[Silo]:
    rng = np.random.default_rng(seed)
    return [Silo(name, rng.normal(size=(6, FEATURES)), rng.integers(0, 2, 6)) for name in NAMES[:count]]


def plan_of(bands=BANDS, **changes) -> ClientPlan:
    asked = {"epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.4, "bands": bands, "length": START.parameters}
    return ClientPlan.calibrate(**asked | {"clients": CLIENTS, "quorum": 7, "colluding": 1} | changes)


def encoding(plan: ClientPlan | None = None) -> ClientUpdates:
    return ClientUpdates(GraphLearner(START, SETTINGS), plan or plan_of(), NAMES)


@pytest.fixture
def silent(monkeypatch):
    """No noise at all, in federation and simulation."""
    for module in (client_plan, client_simulation):
        monkeypatch.setattr(module, "discrete_gaussian", lambda variance, count, rng: np.zeros(count, np.int64))


def run(silos, made=None, aggregator=None, **options):
    made, aggregator = made or encoding(), aggregator or PlainSum()
    rounds = federate(silos, made, SETTINGS, aggregator=aggregator, rng=SeededRandomness("clients"), **options)
    return list(rounds)


def averaged(silos, plan, *, clip=True):
    """Federated averaging of those who are on, written out: no integers, no bands."""
    learner, parameters, found = GraphLearner(START, SETTINGS), GraphLearner(START, SETTINGS).start, []
    for number in range(1, ROUNDS + 1):
        on = [place for place in range(CLIENTS) if (number - 1 - place) % plan.bands.period == 0]
        changes = [learner.change(parameters, silos[place], MemoryStore(), number=number) for place in on]
        norms = [max(1.0, np.linalg.norm(change) / plan.clip_norm) if clip else 1.0 for change in changes]
        parameters = parameters + np.mean([c / n for c, n in zip(changes, norms, strict=True)], axis=0)
        found.append(parameters)
    return found


@pytest.mark.parametrize("bands", [independent(ROUNDS), independent(ROUNDS, 4), BANDS, banded(ROUNDS, 3, 2)])
def test_without_noise_it_is_federated_averaging_of_clipped_updates(silent, bands):
    plan = plan_of(bands)
    plain = averaged(clients(), plan)
    for done, expected in zip(run(clients(), encoding(plan)), plain, strict=True):
        assert done.parameters == pytest.approx(expected, abs=0.03)  # the grid takes up to 1 % of each clip
    assert np.abs(np.array(averaged(clients(), plan, clip=False)[-1]) - plain[-1]).max() > 0.1  # the clip is there


def test_the_simulation_gives_the_same_sums_without_noise(silent):
    silos, plan, learner = clients(), plan_of(), GraphLearner(START, SETTINGS)
    for fault, present in ((None, range(CLIENTS)), (drop(src="c5"), set(range(CLIENTS)) - {5})):
        rounds = run(silos, fault=fault)
        kept = simulated(
            silos, learner, plan, SETTINGS, rng=SeededRandomness("x"), present=lambda number, who=present: who
        )
        assert [done.parameters.tolist() for done in rounds] == [parameters.tolist() for parameters in kept]


def test_under_masks_the_rounds_are_those_of_plain_sums():
    plain, masked = (run(clients(), aggregator=aggregator) for aggregator in (PlainSum(), Masked(colluding=1)))
    assert [done.parameters.tolist() for done in plain] == [done.parameters.tolist() for done in masked]
    assert [done.epsilon for done in masked] == [plan_of().spent(number) for number in range(1, ROUNDS + 1)]
    assert masked[-1].epsilon <= 8.0


def test_what_a_client_sends_through_all_rounds_is_within_its_sensitivity(monkeypatch):
    """The integers that really leave, with the noise taken away, under dropouts; a missing clip is refused."""
    plan, silos = plan_of(), clients()
    silos[0] = Silo("c0", np.full((6, FEATURES), 1e3), np.zeros(6, np.int64))
    monkeypatch.setattr(client_plan, "discrete_gaussian", lambda variance, count, rng: np.zeros(count, np.int64))

    def squares(encoding, absent=()):
        store, total = MemoryStore(), 0
        for number in range(1, ROUNDS + 1):
            vector = encoding.contribution(START_PARAMETERS, silos[0], number, SeededRandomness("x"), store)
            store.commit(encoding.charge(store))
            total += int((vector**2).sum())
            encoding.settle(store, number not in absent)
        return total

    whole = squares(encoding(plan))
    largest = plan.bands.squared_norm() * plan.grid**2
    assert 0.9 * largest < whole <= largest
    for absent in ((1,), (2, 3), (1, 5), tuple(range(1, 9))):
        assert squares(encoding(plan), absent) <= whole
    monkeypatch.setattr(client_plan, "to_grid", lambda rows, clip, grid: (np.rint(rows * 1e4).astype(np.int64), 1))
    with pytest.raises(PrivacyError):
        squares(encoding(plan))


START_PARAMETERS = GraphLearner(START, SETTINGS).start


def test_a_round_is_sent_once():
    made, store, silo = encoding(), MemoryStore(), clients()[0]
    made.contribution(START_PARAMETERS, silo, 1, SeededRandomness("x"), store)
    made.contribution(START_PARAMETERS, silo, 1, SeededRandomness("x"), store)  # nothing has left yet
    store.commit(made.charge(store))
    assert made.charged(store) == 1
    for number in (1, 0):
        with pytest.raises(PrivacyError, match="for the first time"):
            made.contribution(START_PARAMETERS, silo, number, SeededRandomness("x"), store)
    made.contribution(START_PARAMETERS, silo, 3, SeededRandomness("x"), store)


def test_an_update_that_was_in_no_sum_is_not_sent_on(silent):
    made, silo = encoding(), clients()[0]
    for member in (True, False):
        store = MemoryStore()
        made.contribution(START_PARAMETERS, silo, 1, SeededRandomness("x"), store)
        store.commit(made.charge(store))
        made.settle(store, member)
        later = made.contribution(START_PARAMETERS, silo, 2, SeededRandomness("x"), store)
        assert bool(later.any()) == member


def test_a_sum_that_is_lost_after_vectors_left_ends_the_training():
    """A repeated round would be a second release; the model of the round before stands, and the ledger says so."""
    left = []

    def fault(message):
        if message.tag != PlainSum.upload or message.src in NAMES[:5]:
            return [(0, message)]
        left.append(message)
        return [(0, message)] if len(left) <= 2 * (CLIENTS - 5) else []  # two rounds arrive

    made, ledger = encoding(), Ledger()
    done = run(clients(), made, fault=fault, ledger=ledger)
    assert [one.number for one in done] == [1, 2]
    assert done[-1].attempts == 1
    assert len(left) == 3 * (CLIENTS - 5)
    assert ledger.entries == 2 + 3  # two rounds, three releases: the lost one was charged before it left


def test_clients_without_records_or_whose_training_diverges_send_what_others_send(silent):
    silos = clients()
    silos[1] = Silo("c1", np.zeros((0, FEATURES)), np.zeros(0, np.int64))
    silos[2] = Silo("c2", np.full((2, FEATURES), 1e308), np.array([0, 1]))
    assert np.isfinite([done.parameters for done in run(silos)]).all()


@pytest.mark.parametrize("bands", [independent(ROUNDS), BANDS])
def test_a_course_goes_on_from_its_state(bands):
    plan = plan_of(bands)
    whole, parts = Course(encoding(plan), SETTINGS), Course(encoding(plan), SETTINGS)
    rng = np.random.default_rng(2)
    for number in range(ROUNDS):
        sums = Sums(rng.integers(-1000, 1000, (1, plan.length)), (frozenset(NAMES),))
        whole.advance(sums)
        parts = Course(encoding(plan), SETTINGS).resumed(parts.state())
        parts.advance(sums)
        assert parts.model_hash == whole.model_hash
        assert parts.encoding.left(number + 2, number + 1)
        assert not parts.encoding.left(number + 2, number + 2)


def test_clients_with_other_multiples_refuse_to_follow():
    plans = plan_of(), plan_of(banded(ROUNDS, 4, 3))
    assert len({Course(encoding(plan), SETTINGS).model_hash for plan in plans}) == 2


def test_a_store_of_another_model_is_refused():
    store = MemoryStore()
    store.commit({"client/own": b"1234"})
    with pytest.raises(ModelError, match="empty one"):
        encoding().contribution(START_PARAMETERS, clients()[0], 2, SeededRandomness("x"), store)


# --- jobs -------------------------------------------------------------------------------------------------------------

JOB = {
    "data": {"set": "digits", "parties": 300, "split": "even"},
    "train": {"quorum": 280, "rounds": 8, "rotation": 4, "local_steps": 2},
    "privacy": {"unit": "client", "epsilon": 2.0, "delta": 1e-5, "colluding": 10},
}


def job(**changes):
    return changes | {name: {**table, **changes.get(name, {})} for name, table in JOB.items()}


def test_a_job_resolves_to_a_plan_of_its_rotation():
    read = parse(JOB)
    assert read.privacy is not None
    assert (read.privacy.bands, read.privacy.expected_records) == (4, 300)
    assert read.train.momentum == 0
    assert parse(job(train={"algorithm": "fedadam"})).train.momentum == 0.9
    data = load_data(read)
    made = encoding_of(read, data.start, 300)
    assert isinstance(made, ClientUpdates)
    assert made._plan.bands == banded(8, 4, 4)
    assert made._plan.shares == 270
    assert any("everything that one party holds" in line for line in reasons(read))
    assert any("train.rotation = 4" in line for line in reasons(read))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": {"epsilon": 0.5}}, "Expected about .* parties or more"),
        (
            {"data": {"parties": 10}, "train": {"quorum": 8}, "privacy": {"colluding": 1}},
            "0.2.* times privacy.clip_norm",
        ),
        ({"privacy": {"bands": 5}}, "at most train.rotation=4"),
        ({"train": {"rotation": 9}}, "train.rotation=9"),
        ({"train": {"algorithm": "scaffold"}}, "scaffold"),
        ({"train": {"algorithm": "statistics", "rounds": 1, "local_steps": 1, "rotation": 1}}, "statistics"),
        ({"train": {"class_weights": "balanced"}}, "class_weights"),
        ({"privacy": {"mechanism": "auto"}}, "no privacy.mechanism"),
        ({"train": {"algorithm": "newton", "local_steps": 1, "rotation": 1}, "model": {"unit_rows": True}}, "newton"),
        ({"data": {"standardise": True}}, "no data.standardise"),
        ({"data": {"evaluate": "federated"}}, "evaluate"),
        ({"privacy": {"expected_records": 300}}, "no privacy.expected_records"),
        ({"privacy": {"max_records": 300}}, "no privacy.max_records"),
        ({"privacy": {"delta": 0.01}}, "below 1 / parties"),
        ({"privacy": {"unit": "record", "expected_records": 1000}, "train": {"local_steps": 1}}, "no train.rotation"),
        ({"train": {"aggregate": "groups"}}, "groups"),
        ({"train": {"compress": "sketch"}}, "compress"),
    ],
)
def test_a_job_that_hides_no_clients_is_refused(changes, words):
    with pytest.raises(JobError, match=words):
        parse(job(**changes))
