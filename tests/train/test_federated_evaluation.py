"""One more sum says how good a model is, under every aggregator, and no party's counts leave it."""

import json
import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import accuracy_score, roc_auc_score

from confide.crypto.random import SeededRandomness
from confide.errors import Aborted, DataError, JobError, PrivacyError
from confide.ideal import PlainSum
from confide.secagg.groups import Groups
from confide.train import load_data, parse, train
from confide.train.federated_evaluation import contribution, evaluate, evaluation_of, evaluation_session, tally_of
from confide.train.ledger import Ledger, verify
from confide.train.local import Silo, scores_by_record
from confide.train.parts import AGGREGATORS, aggregator_of
from confide.wire import drop
from conformance.cases import Federation
from tee.aggregators import as_on_hardware

PARTIES = 6
TABLE = {
    "data": {"set": "breast-cancer", "parties": PARTIES, "evaluate": "federated", "test_fraction": 0.4},
    "train": {"rounds": 2, "expected_records": 60},
}
PRIVACY = {"epsilon": 4.0, "expected_records": 340, "colluding": 1}
OF_THREE = {"groups": lambda: Groups(3), "tee": as_on_hardware}
AGGREGATOR_CASES = [pytest.param(OF_THREE.get(name, kind), id=name) for name, kind in AGGREGATORS.items()]


@pytest.fixture(scope="module")
def trained():
    job = parse(TABLE)
    data = load_data(job)
    *_, last = train(job, data)
    return job, data, last.model


@pytest.fixture(scope="module")
def private(trained):
    return parse(TABLE | {"privacy": PRIVACY})


def pooled(held):
    return np.concatenate([silo.x for silo in held]), np.concatenate([silo.y for silo in held])


def same(one, other):
    return (
        one.sentences() == other.sentences() and (one.confusion == other.confusion).all() and one.curve == other.curve
    )


@pytest.mark.parametrize("kind", AGGREGATOR_CASES)
def test_every_aggregator_gives_the_pooled_figures(trained, kind):
    job, data, model = trained
    found = evaluate(job, model, data.held, aggregator=kind(), rng=SeededRandomness("evaluation"))
    x, y = pooled(data.held)
    score = model.apply(x)[:, 0]
    assert found.records.value == len(y) == len(data.test.y)
    assert found.accuracy.exact
    assert found.accuracy.value == pytest.approx(accuracy_score(y, score > 0.5), abs=1e-15)
    assert found.auc.low - 1e-12 <= roc_auc_score(y, score) <= found.auc.high + 1e-12
    assert found.auc.high - found.auc.low < 0.02
    assert found.members == {silo.name for silo in data.held}
    assert found.smallest == (3 if kind().name == "groups" else PARTIES)
    assert same(found, evaluate(job, model, data.held, aggregator=PlainSum()))


@pytest.mark.parametrize("kind", AGGREGATOR_CASES)
def test_nobody_is_shown_a_partys_counts(trained, kind):
    """The plain sum is the control: there the very bytes of a party's counts are in what the server received."""
    job, data, model = trained
    federation = Federation(kind(), clients=PARTIES, quorum=4)
    tally = tally_of(job, model, PARTIES)
    session = evaluation_session(tally, model, federation.cohort, "run")
    held = [Silo(name, silo.x, silo.y) for name, silo in zip(federation.cohort.clients, data.held, strict=True)]
    vectors = {silo.name: contribution(tally, model, silo, SeededRandomness("-")) for silo in held}
    done = federation.sum(session, vectors)
    assert evaluation_of(tally, done.output("server")).records.value == len(data.test.y)
    pieces: set[bytes] = set()
    for vector in vectors.values():
        for dtype in ("<i8", "<u4", "<u2"):
            body = vector.astype(dtype).tobytes()
            width = np.dtype(dtype).itemsize
            filled = np.flatnonzero(vector[:-4])
            pieces |= {body[width * at : width * (at + 5)] for at in filled.tolist()}
    pieces = {piece for piece in pieces if len(set(piece)) > 3}  # some marks among zeros, too long for chance
    assert len(pieces) > 20
    shown = any(piece in message.body for message in done.messages for piece in pieces)
    assert shown == (kind().name == "plain")


def test_a_dropout_leaves_the_figures_of_the_others(trained, tmp_path):
    job, data, model = trained
    ledger = Ledger(tmp_path / "l.jsonl")
    found = evaluate(
        job, model, data.held, aggregator=aggregator_of(job, of_updates=False), fault=drop(src="party-2"), ledger=ledger
    )
    x, y = pooled([silo for silo in data.held if silo.name != "party-2"])
    assert found.accuracy.value == pytest.approx(accuracy_score(y, model.apply(x)[:, 0] > 0.5), abs=1e-15)
    line = json.loads((tmp_path / "l.jsonl").read_text())
    assert line["event"] == "evaluation"
    assert line["missing"] == ["party-2"]
    assert line["members"] == sorted(found.members)
    assert line["cohort"] == [f"party-{number}" for number in range(1, PARTIES + 1)]
    assert line["epsilon"] is None
    assert line["bytes_up"]["party-1"] > 0
    figures = {"records", "accuracy", "auc", "brier", "confusion", "curve", "calibration_error"}
    assert not figures & line.keys()  # they are in nobody's ledger


def without(*names):
    def fault(message):
        return [] if message.src in names else [(0, message)]

    return fault


def test_below_the_quorum_there_are_no_figures(trained, private, tmp_path):
    """Without a plan it is tried again; under one the first attempt may have been opened, so it is the last."""
    _, data, model = trained
    lost = without("party-1", "party-2", "party-3")
    for job, attempts in ((trained[0], 3), (private, 1)):
        ledger = Ledger(tmp_path / f"{attempts}.jsonl")
        with pytest.raises(Aborted, match=f"The evaluation failed {attempts} times"):
            evaluate(
                job, model, data.held, aggregator=aggregator_of(job, of_updates=False), fault=lost, ledger=ledger,
                spent=None if job.privacy is None else 1.0,
            )  # fmt: skip
        if job.privacy:
            assert verify(tmp_path / "1.jsonl").entries == 1  # charged, before anything left
            assert verify(tmp_path / "1.jsonl").epsilon == pytest.approx(4.0, rel=1e-6)


def test_an_evaluation_costs_nothing_beyond_the_training(private, tmp_path):
    """Held-out records are in one release, training records in the others: the ledger's epsilon stays the job's."""
    data = load_data(private)
    ledger = Ledger(tmp_path / "l.jsonl")
    *_, last = train(private, data, ledger=ledger)
    found = evaluate(
        private, last.model, data.held, aggregator=aggregator_of(private, of_updates=False), ledger=ledger,
        spent=last.epsilon,
    )  # fmt: skip
    assert verify(tmp_path / "l.jsonl").epsilon == pytest.approx(4.0, rel=1e-6)
    assert ledger.find("release", of="evaluation").entry["epsilon"] <= 4.0
    x, y = pooled(data.held)
    chosen = scores_by_record(last.model, x)[:, 0] > 0.5
    reach = 1.5 * (found.accuracy.high - found.accuracy.low)  # three times the interval's, beyond any chance
    assert abs(found.accuracy.value - accuracy_score(y, chosen)) < reach
    assert not found.accuracy.exact
    assert found.noise > 0
    assert "noise:" in found.sentences()[0]


@pytest.mark.parametrize(("epsilon", "quorum", "colluding"), [(1.0, 3, 1), (0.3, 4, 0), (8.0, 4, 3)])
def test_the_noise_is_what_one_release_needs(trained, epsilon, quorum, colluding):
    """The exact Gaussian profile, written out: the honest shares suffice, and 2 % less would not."""
    job = parse(TABLE | {
        "train": {"quorum": quorum}, "privacy": {"epsilon": epsilon, "expected_records": 340, "colluding": colluding}
    })  # fmt: skip
    tally = tally_of(job, trained[2], PARTIES)
    plan = tally.plan

    def delta(scale):
        mu = math.sqrt(2 * tally.step**2 / ((quorum - colluding) * plan.share_variance)) / scale
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)

    assert plan.rounds == 1
    assert delta(1) <= job.privacy.delta < delta(0.98)
    assert plan.epsilon_server <= epsilon


def test_nobody_honest_left_is_refused(trained):
    job = parse(TABLE | {"train": {"quorum": 3}, "privacy": PRIVACY | {"colluding": 3}})
    with pytest.raises(PrivacyError, match="somebody honest must carry the noise"):
        tally_of(job, trained[2], PARTIES)


def test_without_own_records_there_is_nothing_to_evaluate_on(trained):
    job, data, model = trained
    with pytest.raises(JobError, match="held-out records of each party"):
        evaluate(job, model, (), aggregator=PlainSum())
    nobody = [Silo(silo.name, silo.x[:0], silo.y[:0]) for silo in data.held]
    with pytest.raises(DataError, match="at least one held-out record"):
        evaluate(job, model, nobody, aggregator=PlainSum())
    some = [*nobody[:-1], data.held[-1]]
    assert evaluate(job, model, some, aggregator=PlainSum()).records.value == len(data.held[-1].y)
    with pytest.raises(JobError, match='no data.test with data.evaluate="federated"'):
        parse({"data": {"schema": "s", "tables": {"a": "a", "b": "b"}, "test": "t", "evaluate": "federated"}})


def test_held_out_records_are_the_test_records(trained):
    _, data, _ = trained
    x, y = pooled(data.held)
    rows = sorted(map(tuple, np.c_[x, y].tolist()))
    assert rows == sorted(map(tuple, np.c_[data.test.x, data.test.y].tolist()))
    for silo, held in zip(data.silos, data.held, strict=True):
        assert silo.name == held.name
