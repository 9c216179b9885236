"""Preparation under a privacy plan: its sensitivity, its noise, its price, and what a job says of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import dp_accounting
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import chi2

from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.data.table import Table
from confide.dp.plan import PrivacyPlan, Releases
from confide.errors import Aborted, JobError, PrivacyError
from confide.model.label import page
from confide.model.preprocess import OneHot, Preprocess, Scale
from confide.model.zoo import logistic
from confide.secagg.masked import Masked
from confide.train import Output, load_data, parse, train
from confide.train.ledger import Ledger, verify
from confide.train.output import label_of
from confide.train.parts import plan_of
from confide.train.preparing import Preparation, Preparing, PreparingSum, prepared
from confide.wire import drop

SCALES = [
    Scale(name="age", low=0, high=120),
    Scale(name="dose", low=-1e3, high=1e3, missing=2.0, outside="clip"),
]
RULES = Preprocess((*SCALES, OneHot(name="sex", categories=("f", "m"))))
SHARE = 0.1


def numbers_of(count):
    """Rules of so many numbers."""
    return Preprocess(tuple(Scale(name=f"c{place}", low=-1, high=1) for place in range(count)))


def plan_for(numbers, *, epsilon=1.0, records=600, **changes):
    return PrivacyPlan.calibrate(
        **{
            "epsilon": epsilon,
            "delta": 1e-5,
            "clip_norm": 0.5,
            "rounds": 20,
            "length": 31,
            "silos": 4,
            "quorum": 3,
            "colluding": 1,
            "expected_records": records,
            "preparation": Preparing(numbers_of(numbers), "standardise").portion(SHARE),
        }
        | changes
    )


PLAN = plan_for(2)

#: Two-sided; the seeds are fixed, so this is how likely a new seed would have failed.
FALSE_ALARM = 1e-6

tables = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        arrays.arrays(float, n, elements=st.floats(0, 120)),
        arrays.arrays(float, n, elements=st.floats(-1e9, 1e9) | st.just(math.nan)),
    )
)


NUMBERS = Preparing(RULES, "standardise")
CENTRED = Preparing(RULES, "centre", classes=2)


@pytest.mark.parametrize("asked", [NUMBERS, CENTRED, Preparing(RULES, classes=2)])
@settings(max_examples=200)
@given(table=tables, place=st.integers(0, 29))
def test_neighbours_differ_by_the_sensitivity_at_most(asked, table, place):
    """With a record left out anywhere, NaN that a rule fills and values beyond the bounds included."""
    age, dose = table
    place %= len(age)
    plan = plan_for(2, preparation=asked.portion(SHARE))
    kind, labels = plan.preparation, np.arange(len(age)) % 2
    columns = {"age": age, "dose": dose, "sex": np.resize(["f", "m"], len(age))}
    others = {name: np.delete(values, place) for name, values in columns.items()}
    whole = kind.clipped_sum(asked.rows(columns, labels))
    less = kind.clipped_sum(asked.rows(others, np.delete(labels, place)))
    distance = math.sqrt(float(((whole.total - less.total) ** 2).sum()))
    assert distance <= kind.grid == plan.composition(2).parts[0].sensitivity
    assert distance > 0  # the 1 of a record counts, whatever its numbers are


def test_a_sum_that_is_not_clipped_would_be_caught():
    """The negative control: the same rows, rounded to the same grid without a clip, move by more than the grid."""
    kind, corner = PLAN.preparation, {"age": np.array([120.0]), "dose": np.array([1e9])}
    rows = NUMBERS.rows(corner, np.zeros(1, np.int64))
    bare = np.rint(rows * kind.grid / kind.clip_norm)
    assert np.linalg.norm(bare) > 1.5 * kind.grid
    clipped = kind.clipped_sum(rows).total
    assert 0.98 * kind.grid < np.linalg.norm(clipped) <= kind.grid


def test_epsilon_is_that_of_both_releases_by_another_accountant():
    """mu^2 adds up, computed here from grids and variances alone; and dp-accounting's PLD of the composed events."""
    kind, shares = PLAN.preparation, PLAN.shares
    first = kind.grid**2 / (shares * kind.share_variance)
    rest = PLAN.rounds * PLAN.grid**2 / (shares * PLAN.share_variance)
    assert first / (first + rest) == pytest.approx(SHARE, rel=1e-6)
    exact = dp_accounting.get_epsilon_gaussian(1 / math.sqrt(first + rest), PLAN.delta)
    assert exact == pytest.approx(PLAN.epsilon_server, rel=1e-5)
    assert PLAN.epsilon_server <= 1.0
    accountant = dp_accounting.pld.PLDAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4
    )
    accountant.compose(dp_accounting.GaussianDpEvent(1 / math.sqrt(first)))
    accountant.compose(dp_accounting.GaussianDpEvent(PLAN.noise_multiplier), PLAN.rounds)
    assert accountant.get_epsilon(PLAN.delta) == pytest.approx(PLAN.epsilon_server, rel=2e-3)
    alone = dp_accounting.get_epsilon_gaussian(1 / math.sqrt(first), PLAN.delta)
    assert PLAN.spent(0) == pytest.approx(alone, rel=1e-5)
    assert PLAN.label_fields()["preprocessing_epsilon"] == PLAN.spent(0)
    assert PLAN.spent(0) < PLAN.spent(1) < PLAN.spent(PLAN.rounds) == PLAN.epsilon_server


def test_the_training_pays_for_what_the_preparation_takes():
    without = plan_for(2, preparation=None)
    assert PLAN.noise_multiplier / without.noise_multiplier == pytest.approx(1 / math.sqrt(1 - SHARE), rel=1e-6)
    assert without.spent(0) == 0.0
    with pytest.raises(PrivacyError, match="Expected noise for epsilon"):  # the rest of the noise is not enough
        replace(PLAN, share_variance=without.share_variance)


def test_a_silo_makes_the_release_once_and_before_the_training():
    kind, rng = PLAN.preparation, SystemRandomness()
    clipped = kind.clipped_sum(np.zeros((0, 5)))
    releases = Releases(PLAN)
    releases.prepare(clipped, rng)
    with pytest.raises(PrivacyError, match="one release before the training"):
        releases.prepare(clipped, rng)
    with pytest.raises(PrivacyError, match="one release before the training"):
        Releases(PLAN, prepared=True).prepare(clipped, rng)
    with pytest.raises(PrivacyError, match="one release before the training"):
        Releases(PLAN, done=1).prepare(clipped, rng)
    with pytest.raises(PrivacyError, match="one release before the training"):
        Releases(plan_for(2, preparation=None)).prepare(clipped, rng)
    with pytest.raises(PrivacyError, match="clipped_sum of this plan"):  # the other kind's sum
        Releases(PLAN).prepare(PLAN.clipped_sum(np.zeros((0, 31))), rng)


def standardised(parties, plan, *, rules=RULES, rng=None, **others):
    """Return the preparation of parties' columns through masked sums of three at least."""
    tables = {
        name: Table(columns, np.zeros(len(next(iter(columns.values()))), np.int64)) for name, columns in parties.items()
    }
    asked = PreparingSum(Preparing(rules, "standardise"), 150, plan)
    rng = rng or SystemRandomness()
    return prepared(asked, tables, aggregator=Masked(colluding=1), quorum=3, rng=rng, **others).preprocess


def noisy_sums(monkeypatch, *, repeats, silos=4, fault=None):
    """Return what the server decodes from parties without records: noise alone, in units of one release's claim."""
    numbers = 30
    plan, seen = plan_for(numbers), []

    def read(self, values, *, noise):
        seen.append(values)
        return Preparation(self.preprocess)

    monkeypatch.setattr(Preparing, "read", read)
    rules = Preprocess(tuple(Scale(name=f"c{place}", low=0, high=1) for place in range(numbers)))
    nobody = {rule.name: np.zeros(0) for rule in rules.rules}
    for seed in range(repeats):
        standardised(
            {f"h{place}": nobody for place in range(silos)},
            plan,
            rules=rules,
            rng=SeededRandomness(f"noise {seed}"),
            fault=fault,
        )
    return plan, np.concatenate(seen)


def has_deviation(sample, deviation):
    """The chi-square test that zero-mean normal draws have the given standard deviation."""
    statistic = float((sample**2).sum()) / deviation**2
    return chi2.ppf(FALSE_ALARM / 2, sample.size) < statistic < chi2.isf(FALSE_ALARM / 2, sample.size)


@pytest.mark.parametrize(("fault", "silos"), [(None, 4), (drop(src="h2"), 3)])
def test_the_sum_carries_the_noise_of_every_survivor(monkeypatch, fault, silos):
    plan, sample = noisy_sums(monkeypatch, repeats=12, fault=fault)
    kind = plan.preparation
    # mu^2 of this release is the share of the whole mu^2: what h = 2 shares must carry, times what survivors add
    whole = 1 / dp_accounting.get_sigma_gaussian(1.0, plan.delta)
    expected = kind.clip_norm / (math.sqrt(SHARE) * whole) * math.sqrt(silos / plan.shares)
    assert kind.deviation(silos) == pytest.approx(expected, rel=1e-3)
    assert has_deviation(sample, expected)
    assert not has_deviation(sample * 2 / 3, expected)
    assert not has_deviation(sample * 3 / 2, expected)
    assert not has_deviation(sample, expected * math.sqrt((silos - 1) / silos))  # one share left out is noticed


def people(size, seed, *, spread=12.0):
    draw = np.random.default_rng(seed)
    dose = draw.normal(300, 150, size)
    dose[::9] = np.nan
    return {
        "age": np.clip(draw.normal(70, spread, size), 0, 120),
        "dose": dose,
        "sex": np.array(["f", "m"] * size)[:size],
    }


def test_with_many_records_it_is_near_the_exact_one():
    parties = {f"h{place}": people(30_000, place) for place in range(4)}
    prepare = standardised(parties, plan_for(2, records=120_000))
    age = np.concatenate([party["age"] for party in parties.values()])
    dose = np.nan_to_num(np.concatenate([party["dose"] for party in parties.values()]), nan=2.0)
    for rule, exact in zip(prepare.rules, (age, dose), strict=False):
        mean, deviation = rule.standard
        assert mean == pytest.approx(exact.mean(), abs=0.03 * exact.std())
        assert deviation == pytest.approx(exact.std(), rel=0.05)
    assert prepare.rules[2] == RULES.rules[2]


def test_what_the_noise_leaves_unclear_keeps_the_schema_s_scale():
    few = {f"h{place}": people(5, place) for place in range(4)}
    narrow = {f"h{place}": people(200, place, spread=0.5) for place in range(4)}
    for parties in (few, narrow):
        kept = 0
        for seed in range(40):
            prepare = standardised(parties, plan_for(2), rng=SeededRandomness(f"unclear {seed}"))
            kept += prepare.rules[0].standard is None
            assert np.abs(prepare.apply(parties["h0"])).max() <= 1  # whatever the noise was
        assert kept >= 34  # two deviations are passed by one in forty, or a few more where the count is noise too


def test_a_lost_quorum_is_charged_and_not_tried_again():
    ledger = Ledger()
    with pytest.raises(Aborted):
        standardised({f"h{place}": people(9, place) for place in range(4)}, PLAN, ledger=ledger, fault=_two_are_silent)
    assert ledger.find("release", of="preparation").entry["epsilon"] == PLAN.spent(0)
    assert ledger.find("preparation") is None


def _two_are_silent(message):
    return [] if message.src in ("h1", "h2") else [(0, message)]


# --- jobs -------------------------------------------------------------------------------------------------------------

JOB = """
[data]
set = "breast-cancer"
standardise = true
[train]
rounds = 4
[privacy]
expected_records = 455
preprocessing_share = 0.3
[output]
model = "m.confide"
ledger = "l.jsonl"
signing_key = "k.pem"
"""


@pytest.fixture
def job(tmp_path):
    from confide.train import load

    (tmp_path / "job.toml").write_text(JOB)
    return load(tmp_path / "job.toml")


def test_a_job_from_its_file_to_a_label_that_says_what_was_charged(job, tmp_path):
    output = Output(job)
    data = load_data(job, ledger=output.ledger)
    done = list(train(job, data, ledger=output.ledger))
    artifact = output.save(data, done[-1])
    label = artifact.label
    # an account of our own: from what the label says about noise, in mu^2
    whole = 1 / dp_accounting.get_sigma_gaussian(1.0, 455**-1.1)
    assert label.mu == pytest.approx(whole, rel=1e-6)
    assert 4 / label.noise_multiplier**2 == pytest.approx(0.7 * whole**2, rel=1e-6)
    alone = dp_accounting.get_epsilon_gaussian(1 / (math.sqrt(0.3) * whole), 455**-1.1)
    assert label.preprocessing_epsilon == pytest.approx(alone, rel=1e-5)
    assert "took 30 % of mu^2" in label.preprocessing
    assert label.epsilon == 1.0 >= done[-1].epsilon > 0.999
    assert "one noisy sum of moments" in label.server_sees
    assert "took 30 % of mu^2" in " ".join(" ".join(page(artifact, pinned=True)).split())
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines[:4]] == ["job", "release", "preparation", "release"]
    assert [line["event"] for line in lines].count("job") == 1
    assert (lines[1]["of"], lines[1]["epsilon"]) == ("preparation", pytest.approx(alone, rel=1e-5))
    assert lines[3]["epsilon"] == done[0].epsilon > lines[1]["epsilon"]
    assert verify(tmp_path / "l.jsonl", head=label.ledger).epsilon == pytest.approx(1.0, rel=1e-9)


def test_a_second_training_on_one_preparation_is_a_run_of_its_own(job):
    ledger = Ledger()
    data = load_data(job, ledger=ledger)
    for _ in range(2):
        assert len(list(train(job, data, ledger=ledger))) == 4
    events = [json.loads(line) for line in ledger.lines_after()]
    assert [event["event"] for event in events].count("job") == 2
    later = Ledger()
    list(train(job, load_data(job), ledger=later))  # a ledger that came late states it all the same
    second = json.loads(list(later.lines_after())[1])
    assert (second["event"], second["of"]) == ("release", "preparation")


def test_data_that_were_prepared_otherwise_are_refused(job):
    exact = load_data(msgspec.structs.replace(job, privacy=None))
    with pytest.raises(PrivacyError, match="prepared under this job"):
        train(job, exact)
    unscaled = msgspec.structs.replace(job, data=msgspec.structs.replace(job.data, standardise=False))
    with pytest.raises(PrivacyError, match="prepared under this job"):
        train(unscaled, exact)
    noisy = load_data(job)
    other = msgspec.structs.replace(job, privacy=msgspec.structs.replace(job.privacy, epsilon=2.0))
    for strange in (unscaled, other):
        with pytest.raises(PrivacyError, match="prepared under this job"):
            train(strange, noisy)
    assert len(list(train(job, noisy))) == 4  # the control


def test_the_release_cannot_be_left_out_of_the_account(job):
    with pytest.raises(PrivacyError, match="not accounted"):
        plan_of(job, logistic(30), 4)
    none = Preprocess((OneHot(name="sex", categories=("f", "m")),))
    assert plan_of(job, logistic(30), 4, preprocess=none).preparation is None
    assert plan_of(job, logistic(30), 4, preprocess=numbers_of(30)).preparation.length == 61
    centred = msgspec.structs.replace(job, data=msgspec.structs.replace(job.data, standardise="centre"))
    plan = plan_of(centred, logistic(2), 4, preprocess=none)
    assert plan.preparation.length == 3
    assert plan.label_fields()["preprocessing"].startswith("mean of every feature from one noisy sum (3 numbers")


@pytest.mark.parametrize("private", [False, True])
def test_a_centre_is_the_mean_of_every_feature_over_all_parties(job, private):
    """Without noise exactly, with it as far off as its own law says; and the model subtracts it wherever it goes."""
    centred = msgspec.structs.replace(
        job,
        data=msgspec.structs.replace(job.data, standardise="centre"),
        privacy=job.privacy if private else None,
        model=msgspec.structs.replace(job.model, unit_rows=True),
    )
    plain = msgspec.structs.replace(
        job, data=msgspec.structs.replace(job.data, standardise=False), model=job.model, privacy=centred.privacy
    )
    data, before = load_data(centred), load_data(plain)
    x = np.concatenate([silo.x for silo in before.silos])
    found = np.array(data.preprocess.centre)
    if private:
        kind = data.plan.preparation
        assert np.abs(found - x.mean(axis=0)).max() < 6 * kind.deviation(4) / len(x) + 0.05  # and far rows weigh less
        assert np.abs(found - x.mean(axis=0)).max() > 1e-4
    else:
        np.testing.assert_allclose(found, x.mean(axis=0), atol=1e-6)
    apart = x - found
    rows = apart / np.linalg.norm(apart, axis=1, keepdims=True)
    np.testing.assert_allclose(np.concatenate([silo.x for silo in data.silos]), rows, atol=1e-12)
    assert Preprocess.decode(data.preprocess.encode()) == data.preprocess


def test_a_label_without_privacy_says_where_the_moments_came_from(job):
    bare = msgspec.structs.replace(job, privacy=None)
    data = load_data(bare)
    *_, last = train(bare, data)
    label = label_of(bare, data, last)
    assert label.preprocessing == "mean and deviation of every number, from one sum without noise"
    assert label.preprocessing_epsilon is None


def test_a_job_that_could_not_hide_the_sum_takes_none():
    sections = {"data": {"set": "breast-cancer", "standardise": True}, "privacy": {"expected_records": 455}}
    ledger = Ledger()
    for train_section, reason in (({"aggregate": "plain"}, "own share of the noise"), ({"quorum": 9}, "quorum=9")):
        with pytest.raises(JobError, match=reason):
            load_data(parse(sections | {"train": train_section}), ledger=ledger)
    with pytest.raises(JobError, match="below the quorum"):
        load_data(parse(sections | {"privacy": {"expected_records": 455, "colluding": 4}}), ledger=ledger)
    assert ledger.entries == 0
    with pytest.raises(JobError, match="without data.standardise"):
        parse({"data": {"set": "breast-cancer"}, "privacy": {"expected_records": 455, "preprocessing_share": 0.2}})
    for share in (0, 1, -0.5):
        with pytest.raises(JobError, match="privacy.preprocessing_share"):
            parse(sections | {"privacy": {"expected_records": 455, "preprocessing_share": share}})
