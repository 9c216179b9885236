"""From files to a signed, labelled model: what a job does on disk, and what it refuses before it touches the disk."""

import csv
import re

import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.errors import DataError, IntegrityError, JobError, ModelError, PrivacyError, UsageError
from confide.ideal import Cohort
from confide.model.artifact import load, read_public_key
from confide.train import AGGREGATORS, Output, load_data, local_models, parse, pooled_model, train
from confide.train.evaluate import accuracy
from confide.train.ledger import Ledger, verify
from confide.train.parts import aggregator_of
from confide.wire import drop
from conformance.cases import Federation, assert_is_sum
from tee.aggregators import asked_for

SCHEMA = """
[label]
name = "ill"
classes = ["no", "yes"]
[columns]
age = { type = "number", unit = "years", low = 0, high = 120 }
dose = { type = "number", low = -1, high = 1, missing = "middle" }
sex = { type = "category", categories = ["f", "m"] }
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "schema.toml").write_text(SCHEMA)
    for name, rows in {"north": 60, "south": 40, "east": 50, "west": 45}.items():
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["ill", "dose", "age", "sex"])
            for _ in range(rows):
                age, dose = rng.uniform(0, 120), rng.uniform(-1, 1)
                ill = age / 60 - 1 + dose + rng.normal(0, 0.2) > 0
                writer.writerow(
                    [
                        "yes" if ill else "no",
                        f"{dose:.3f}" if rng.random() > 0.1 else "",
                        f"{age:.1f}",
                        "fm"[rng.integers(2)],
                    ]
                )
    return tmp_path


def job_of(folder, **sections):
    tables = {name: f"{name}.csv" for name in ("north", "south", "east", "west")}
    base = {
        "data": {"schema": "schema.toml", "tables": tables},
        "train": {"quorum": 3, "rounds": 30},
        "output": {"model": "m.confide", "ledger": "l.jsonl", "signing_key": "k.pem"},
    }
    return parse(base | sections, base=folder)


def finish(job, **more):
    data, output = load_data(job), Output(job)
    *_, last = train(job, data, ledger=output.ledger, **more)
    return data, last, output.save(data, last)


def test_a_model_from_files_is_signed_labelled_and_right(folder):
    data, last, saved = finish(job_of(folder))
    trust = read_public_key(folder / "k.pem.pub")
    loaded = load(folder / "m.confide", trust=trust)
    assert loaded.fingerprint == saved.fingerprint
    np.testing.assert_array_equal(loaded.graph.apply(data.test.x), last.model.apply(data.test.x))
    assert accuracy(loaded.graph, data.test.x, data.test.y) > 0.85
    assert loaded.graph.classes == ("no", "yes")
    assert loaded.label.aggregator == "masked"
    assert loaded.label.parties == ("north", "south", "east", "west")
    assert loaded.label.epsilon is None
    assert verify(folder / "l.jsonl", head=loaded.label.ledger).entries == 32  # the job, 30 rounds, the model
    assert (folder / "k.pem").stat().st_mode & 0o077 == 0


def test_two_parties_are_told_why_masked_refuses_them(folder):
    tables = {"north": "north.csv", "south": "south.csv"}
    job = job_of(folder, data={"schema": "schema.toml", "tables": tables}, train={"rounds": 2})
    with pytest.raises(UsageError, match="quorum=2 of clients=2.*take more clients"):
        finish(job)


def test_a_second_run_continues_the_ledger_and_keeps_the_key(folder):
    first = finish(job_of(folder))[2]
    second = finish(job_of(folder))[2]
    assert first.signer == second.signer
    assert verify(folder / "l.jsonl", head=second.label.ledger).entries == 64
    assert verify(folder / "l.jsonl", head=first.label.ledger).later == 32


def test_the_label_states_the_privacy_that_was_kept(folder):
    privacy = {"epsilon": 2.0, "expected_records": 150, "colluding": 0}
    label = finish(job_of(folder, privacy=privacy))[2].label
    assert (label.epsilon, label.unit, label.quorum, label.colluding) == (2.0, "record", 3, 0)
    assert label.delta == pytest.approx(150**-1.1)
    assert label.epsilon_outsiders <= label.epsilon
    assert label.seed == "operating system"


def test_a_fixed_seed_voids_the_claim_in_the_label(folder):
    assert "no privacy claim" in finish(job_of(folder), rng=SeededRandomness("test"))[2].label.seed


def test_a_label_that_does_not_fit_the_rounds_is_refused(folder):
    """Rounds without noise, saved under a job that promises noise."""
    data = load_data(job_of(folder))
    *_, last = train(job_of(folder), data)
    with pytest.raises(PrivacyError, match="no label fits"):
        Output(job_of(folder, privacy={"expected_records": 150})).save(data, last)
    assert not (folder / "m.confide").exists()


def test_every_release_is_on_record_before_it_is_made(folder):
    privacy = {"expected_records": 150, "colluding": 0}
    job = job_of(folder, privacy=privacy)
    data, output = load_data(job), Output(job)
    rounds = train(job, data, ledger=output.ledger)
    first = next(rounds)
    rounds.close()  # the run dies here
    assert verify(folder / "l.jsonl").epsilon == pytest.approx(first.epsilon)


def test_a_record_decides_only_its_own_side_under_privacy(folder):
    """Neighbours stay neighbours: without one record, every other record is where it was."""
    job = job_of(folder, privacy={"expected_records": 150})
    whole = load_data(job)
    lines = (folder / "north.csv").read_text().splitlines(keepends=True)
    (folder / "north.csv").write_text("".join(lines[:5] + lines[6:]))
    less = load_data(job)
    rows = [{tuple(row) for row in silo.x.tolist()} for data in (whole, less) for silo in (data.silos[0], data.test)]
    assert rows[2] <= rows[0]
    assert rows[3] <= rows[1]
    assert len(rows[0] - rows[2]) + len(rows[1] - rows[3]) == 1


def test_without_privacy_the_split_is_stratified_and_so_not_stable(folder):
    """The negative control of the test above."""
    whole = load_data(job_of(folder))
    lines = (folder / "north.csv").read_text().splitlines(keepends=True)
    (folder / "north.csv").write_text("".join(lines[:5] + lines[6:]))
    less = load_data(job_of(folder))
    rows = [{tuple(row) for row in data.silos[0].x.tolist()} for data in (whole, less)]
    assert len(rows[0] ^ rows[1]) > 1


def test_a_dropout_is_in_the_ledger(folder):
    finish(job_of(folder), fault=drop(src="south"))
    assert '"missing": ["south"]' in (folder / "l.jsonl").read_text()


def test_no_record_reaches_ledger_or_label(folder):
    """The negative control of a leak: cells of the tables do not occur in what is written."""
    finish(job_of(folder))
    written = re.sub(r'"seconds": \{[^}]*\}', "", (folder / "l.jsonl").read_text())  # any digits may be in these
    lines = (folder / "north.csv").read_text().splitlines()[1:]
    cells = {cell for line in lines for cell in line.split(",") if len(cell) > 3}
    assert not [cell for cell in cells if f" {cell}" in written]


def test_baselines(folder):
    job = job_of(folder)
    data = load_data(job)
    assert set(local_models(job, data)) == {"north", "south", "east", "west"}
    assert accuracy(pooled_model(job, data), data.test.x, data.test.y) > 0.85


def test_a_test_table_of_its_own(folder):
    tables = {"north": "north.csv", "south": "south.csv"}
    job = job_of(folder, data={"schema": "schema.toml", "tables": tables, "test": "east.csv"})
    data = load_data(job)
    assert (len(data.test.y), sum(len(silo.y) for silo in data.silos)) == (50, 100)


@pytest.mark.parametrize(
    ("sections", "error", "text"),
    [
        ({"train": {"aggregate": "maskd"}}, JobError, r'"maskd" \(did you mean "masked"\?\)'),
        ({"train": {"quorum": 5}}, JobError, "train.quorum=5 to be at most the 4 parties"),
        ({"privacy": {"expected_records": 9, "colluding": 3}}, JobError, "privacy.colluding=3 below the quorum"),
        ({"output": {"model": "absent/m.confide", "signing_key": "k.pem"}}, JobError, "folder that exists"),
        ({"output": {"model": "m.confide"}}, JobError, "output.signing_key"),
        ({"output": {"model": "x", "signing_key": "x"}}, JobError, "different files"),
        ({"train": {"aggregate": "plain"}, "privacy": {"expected_records": 9}}, JobError, "own share of the noise"),
        ({"privacy": {"expected_records": 9, "delta": 0.2}}, JobError, "below 1 / expected_records"),
        ({"data": {"schema": "schema.toml", "tables": {"a": "north.csv", "b": "absent.csv"}}}, DataError, "absent.csv"),
        ({"data": {"schema": "absent.toml", "tables": {"a": "a", "b": "b"}}}, DataError, "absent.toml"),
        ({"data": {"set": "breast-cancr"}}, DataError, "breast-cancer"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_written(folder, sections, error, text):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(error, match=text):
        finish(job_of(folder, **sections))
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_ledger_that_does_not_hold_is_not_continued(folder):
    finish(job_of(folder))
    (folder / "l.jsonl").write_text((folder / "l.jsonl").read_text().replace("north", "nirth"))
    with pytest.raises(IntegrityError, match="Line 1"):
        finish(job_of(folder))


def test_a_signing_key_that_others_can_read_is_refused(folder):
    finish(job_of(folder))
    (folder / "k.pem").chmod(0o644)
    with pytest.raises(ModelError, match="chmod 600"):
        finish(job_of(folder))


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_every_aggregator_trains_the_shipped_set(name):
    data = {"set": "breast-cancer", "parties": 9 if name == "groups" else 4}
    job = parse({"data": data, "train": {"aggregate": name, "quorum": 3, "rounds": 20} | asked_for(name)})
    data = load_data(job)
    *_, last = train(job, data)
    assert accuracy(last.model, data.test.x, data.test.y) > 0.93


def test_two_servers_bound_norms_where_the_job_says_so():
    sections = {"data": {"set": "breast-cancer"}, "train": {"aggregate": "shares", "quorum": 3, "rounds": 20}}
    sections["train"] |= {"norm_bound": 4.0}
    job = parse(sections)
    data = load_data(job)
    *_, last = train(job, data)
    assert accuracy(last.model, data.test.x, data.test.y) > 0.93
    assert last.bytes_up["party-1"] > 7000  # the evidence


@pytest.mark.parametrize(
    "more",
    [
        {"train": {"norm_bound": 4.0}},
        {"train": {"norm_bound": 4.0, "aggregate": "plain"}},
        {"train": {"norm_bound": 4.0, "aggregate": "shares", "algorithm": "scaffold", "local_steps": 2}},
        {"train": {"norm_bound": 4.0, "aggregate": "shares"}, "privacy": {"expected_records": 455}},
    ],
)
def test_a_norm_bound_that_nobody_checks_is_refused(more):
    with pytest.raises(JobError, match=r"no train.norm_bound"):
        parse({"data": {"set": "breast-cancer"}} | more)


def test_a_norm_bound_below_the_grid_is_refused():
    with pytest.raises(JobError, match=r"norm_bound=1e-07 to be at least one step"):
        parse({"data": {"set": "breast-cancer"}, "train": {"norm_bound": 1e-7, "aggregate": "shares"}})


def test_an_mlp_trains():
    job = parse({"data": {"set": "breast-cancer"}, "model": {"kind": "mlp"}, "train": {"rounds": 60}})
    data = load_data(job)
    *_, last = train(job, data)
    assert accuracy(last.model, data.test.x, data.test.y) > 0.93


@pytest.mark.parametrize(
    "train_",
    [
        {"aggregate": "masked", "quorum": 2},
        {"aggregate": "amortised", "quorum": 2},
        {"aggregate": "masked", "quorum": 3},
    ],
)
def test_a_cohort_that_the_aggregator_refuses_leaves_no_ledger(tmp_path, train_):
    """A quorum of 3 of 8 is no majority: two sets of survivors could both reach it."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    job = parse({"data": {"set": "breast-cancer", "parties": 8}, "train": train_})
    data = load_data(job)
    with pytest.raises(UsageError, match="quorum"):
        train(job, data, ledger=ledger)
    assert not (tmp_path / "ledger.jsonl").exists()


@pytest.mark.parametrize(
    ("parties", "quorum", "colluding"), [(60, 0, 0), (64, 0, 1), (65, 0, 0), (64, 34, 3), (64, 64, 6)]
)
def test_a_large_cohort_withstands_the_colluding_parties_that_its_quorum_spares(parties, quorum, colluding):
    """2 quorum - parties - 1, at most a quarter of the neighbours; a complete graph needs no number of its own."""
    job = parse({"data": {"set": "breast-cancer", "parties": parties}, "train": {"quorum": quorum}})
    aggregator = aggregator_of(job)
    aggregator.check(Cohort(tuple(map(str, range(parties))), job.train.quorum))
    (claim,) = (claim for claim in aggregator.guarantee.claims if claim.hidden_from == "server")
    assert f"colluding={colluding}" in claim.if_honest[0]


@pytest.mark.parametrize("rounds", [1, 31, 32, 33, 5000])
def test_the_keys_of_amortised_last_as_long_as_the_job(rounds):
    """In the last sum: before, a job of more than 2,047 rounds ended there."""
    job = parse({"data": {"set": "breast-cancer"}, "train": {"aggregate": "amortised", "rounds": rounds}})
    aggregator = aggregator_of(job)
    federation = Federation(aggregator)
    session = federation.session(rounds + 1)  # the evaluation
    vectors = federation.vectors(session)
    assert assert_is_sum(federation.sum(session, vectors).output("server"), aggregator, vectors) == set(vectors)
