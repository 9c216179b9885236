"""Private training of torch modules: what is executed is what is accounted, and the noise is really there."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import nn
from torch.nn import functional

from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.errors import JobError, ModelError, PrivacyError
from confide.ideal import PlainSum
from confide.model.artifact import Artifact, create_signing_key, load
from confide.model.label import page
from confide.model.preprocess import Preprocess, Scale
from confide.train import (
    Polynomial,
    PrivateTorchLearner,
    Silo,
    Square,
    fit,
    fit_privately,
    graph_of,
    outputs,
    private_label,
    train_section,
)
from confide.train.ledger import Ledger
from confide.train.private_torch import SampledGradients
from confide.train.rounds import federate
from confide.wire import MemoryStore

ROUNDS, FEATURES = 6, 6
TRAIN = train_section(aggregate="masked", rounds=ROUNDS, learning_rate=1.0, quorum=3)


def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(FEATURES, 4), Square(), nn.Linear(4, 2))


def silos(count=100, parties=4):
    draw = np.random.Generator(np.random.PCG64(4))
    x = draw.uniform(-1, 1, (count * parties, FEATURES)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    return [Silo(f"h{n}", x[n::parties], y[n::parties]) for n in range(parties)]


def setting(train=TRAIN, module=None, slots=16, **given):
    learner = PrivateTorchLearner(module or network(), train, slots=slots)
    chosen = {"parties": 4, "colluding": 1, "expected_batch": 100, "expected_records": 400} | given
    return learner, learner.plan(train, **chosen)


def test_the_rounds_executed_are_the_event_accounted(tmp_path):
    learner, plan = setting()
    stores = {f"h{n}": MemoryStore() for n in range(4)}
    ledger = Ledger(tmp_path / "run.jsonl")
    done = list(fit_privately(learner, silos(), TRAIN, plan, stores=stores, ledger=ledger))
    assert len(done) == ROUNDS == plan.event(2).sums.rounds
    assert [one.epsilon for one in done] == sorted(one.epsilon for one in done)
    assert done[-1].epsilon == plan.epsilon_server <= 1.0
    assert {store.get("dp/released") for store in stores.values()} == {str(ROUNDS).encode()}
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert sum(line["event"] == "release" for line in lines) == ROUNDS
    assert lines[0]["rate"] == plan.rate
    rest, _ = setting()
    with pytest.raises(PrivacyError, match="fewer than rounds"):  # a silo counts by itself, whatever the server asks
        next(fit_privately(rest, silos(), TRAIN, plan, stores=stores))


def moves(module, parties, seed="noise", **given):
    """Return what each round added to the parameters in plain sums, over the learning rate."""
    learner, plan = setting(module=module, **given)
    encoding = SampledGradients(learner, plan, TRAIN)
    done = list(federate(parties, encoding, TRAIN, aggregator=PlainSum(), rng=SeededRandomness(seed)))
    return np.diff([learner.start, *(one.parameters for one in done)], axis=0), plan


def has_deviation(sample, deviation, alarm=1e-6):
    statistic = float((sample**2).sum()) / deviation**2
    return chi2.ppf(alarm / 2, sample.size) < statistic < chi2.isf(alarm / 2, sample.size)


def test_empty_samples_take_the_same_path_and_carry_the_noise_of_every_silo():
    empty = [Silo(f"h{n}", np.zeros((0, FEATURES), np.float32), np.zeros(0, np.int64)) for n in range(4)]
    sample, plan = moves(nn.Sequential(nn.Linear(FEATURES, 40), nn.Tanh(), nn.Linear(40, 2)), empty)
    claimed = plan.noise_multiplier * plan.clip_norm / plan.expected_batch
    expected = claimed * np.sqrt(4 / plan.shares)
    assert has_deviation(sample, expected)
    for wrong in (0.5, 2 / 3, 3 / 2, np.sqrt(3 / 4)):  # the last: one silo's share is missing
        assert not has_deviation(sample * wrong, expected)


def test_each_round_takes_a_sample_of_its_own():
    """A silo whose every record pushes one way: the size of each push is the size of the sample, binomial."""
    module = nn.Sequential(nn.Linear(1, 2, bias=False))
    nn.init.zeros_(module[0].weight)
    party = Silo("h0", np.ones((300, 1), np.float32), np.ones(300, np.int64))
    train = train_section(aggregate="plain", rounds=60, learning_rate=1.0, quorum=1)
    learner, plan = setting(
        train, module, parties=1, colluding=0, expected_batch=90, expected_records=300, epsilon=4.0, clip_norm=0.1
    )
    rng = SeededRandomness("sizes")
    totals = [learner.clipped_sum(learner.start, party, plan, rng).total for _ in range(plan.rounds)]
    one = learner.clipped_sum(learner.start, party, replace(plan, coin=1 << 64, epsilon=30.0), rng).total[1] / 300
    sizes = np.array(totals)[:, 1] / one
    assert sizes == pytest.approx(np.rint(sizes), abs=1e-9)
    assert has_deviation(sizes - sizes.mean(), np.sqrt(300 * 0.3 * 0.7) * np.sqrt(59 / 60))
    assert abs(sizes.mean() - 90) < 5 * np.sqrt(63 / 60)
    assert not has_deviation(np.zeros(60), np.sqrt(63))  # batches of a fixed size do not pass


def test_it_learns():
    train = train_section(aggregate="plain", rounds=20, learning_rate=2.0, quorum=1, momentum=0.5, average=0.3)
    (party,) = silos(2000, 1)
    learner, plan = setting(
        train, slots=256, parties=1, colluding=0, expected_batch=2000, expected_records=2000, epsilon=8.0
    )
    *_, done = fit_privately(learner, [party], train, plan, rng=SeededRandomness("learn"))
    assert (outputs(done.model, party.x).argmax(1) == party.y).mean() > 0.8


def test_the_same_learner_trains_without_privacy():
    learner, _ = setting()
    *_, done = fit(learner, silos(), TRAIN)
    assert done.epsilon is None


def test_plans_and_settings_that_do_not_fit_are_refused():
    learner, plan = setting()
    with pytest.raises(PrivacyError, match="rounds"):
        fit_privately(learner, silos(), train_section(rounds=ROUNDS + 1, quorum=3), plan)
    with pytest.raises(PrivacyError, match="silos"):
        fit_privately(learner, silos(parties=3), TRAIN, plan)
    with pytest.raises(PrivacyError, match="hides updates"):
        fit_privately(learner, silos(), train_section(aggregate="plain", rounds=ROUNDS, quorum=3), plan)
    with pytest.raises(JobError, match="aggregate"):
        fit_privately(learner, silos(), train_section(aggregate="groups", rounds=ROUNDS, quorum=3), plan)
    with pytest.raises(ModelError, match="GroupNorm"):
        setting(module=nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))
    with pytest.raises(PrivacyError, match="honest"):
        setting(colluding=3)


def test_the_label_says_what_ran():
    learner, plan = setting()
    parties = silos()
    done = next(fit_privately(learner, parties, TRAIN, plan, rng=SystemRandomness()))
    label = private_label(plan, TRAIN, parties, done, preprocessing="none")
    assert not label.voided
    assert label.mu is None
    assert "Poisson" in label.sampling
    assert "dp-accounting 0.6" in label.accountant
    seeded = private_label(
        plan, TRAIN, parties, next(fit_privately(*setting()[:1], parties, TRAIN, plan, rng=SeededRandomness("x")))
    )
    assert seeded.voided


# --- towards encrypted serving ----------------------------------------------------------------------------------------


def test_a_private_network_becomes_a_signed_model_with_its_label(tmp_path):
    learner, plan = setting()
    parties = silos()
    *_, done = fit_privately(learner, parties, TRAIN, plan)
    graph = graph_of(done.model, classes=("no", "yes"))
    rules = tuple(Scale(name=f"c{n}", low=-1.0, high=1.0, missing=None, outside="refuse") for n in range(FEATURES))
    artifact = Artifact(graph, Preprocess(rules), private_label(plan, TRAIN, parties, done))
    key = create_signing_key(tmp_path / "key.pem", SystemRandomness())
    saved = artifact.save(tmp_path / "model.confide", key)
    read = load(tmp_path / "model.confide", trust=bytes.fromhex(saved.signer))
    assert read.label.epsilon == 1.0
    assert any("DP-SGD" in line for line in page(read, pinned=True))
    x = parties[0].x
    softmax = functional.softmax(torch.from_numpy(outputs(done.model, x)), dim=1)[:, 1].numpy()
    assert read.graph.apply(x.astype(np.float64))[:, 0] == pytest.approx(softmax, abs=1e-5)


@pytest.mark.parametrize("outs", [1, 2, 3])
def test_graphs_compute_what_the_module_does(outs):
    torch.manual_seed(5)
    module = nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 5),
        Polynomial(0.3, -0.7, 0.2),
        nn.Sequential(nn.Linear(5, 4, bias=False), Square()),
        nn.Linear(4, 4),
        nn.Sigmoid(),
        nn.Linear(4, outs),
    )
    x = np.random.Generator(np.random.PCG64(6)).normal(size=(20, 6)).astype(np.float32)
    logits = outputs(module, x)
    wanted = logits[:, 1:] - logits[:, :1] if outs == 2 else logits
    assert graph_of(module).apply(x.astype(np.float64)) == pytest.approx(1 / (1 + np.exp(-wanted)), abs=1e-5)


def test_what_a_graph_cannot_hold_is_named():
    with pytest.raises(ModelError, match=r"0 \(Conv2d\)[\s\S]*2 \(ReLU\)"):
        graph_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.ReLU(), nn.Linear(2, 1)))
    with pytest.raises(ModelError, match="followed by"):
        graph_of(nn.Sequential(nn.Linear(2, 2), Polynomial()))
    with pytest.raises(ModelError, match="other than 0"):
        Polynomial(a=0.0)
