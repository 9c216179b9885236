"""`confide audit`: what is run under which protection, what is not and why, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import confide.serve
from confide.cli import main
from confide.compare.audit import Progress, Report, Settings, audit_endpoint, audit_job, unfit, variants
from confide.compare.findings import of_epsilon, of_membership
from confide.compare.membership import Membership, advantage, rates
from confide.crypto.random import SeededRandomness
from confide.dp.audit import LowerBound, Scores
from confide.errors import UsageError
from confide.guarantee import PrivacyLabel
from confide.ideal import PlainPredict
from confide.model.graph import Graph, Linear, Relu, Sigmoid
from confide.net.http import InProcess
from confide.serve.access import hash_api_key
from confide.serve.client import Client
from confide.serve.limits import Limits
from confide.serve.server import create_app
from confide.train.figures import Figure
from serve.toy import PREPROCESS, Toy, toy_model

JOB = {
    "job": {"name": "wards"},
    "data": {"set": "breast-cancer", "parties": 3, "split": "even"},
    "train": {"rounds": 3, "quorum": 3},
    "privacy": {"epsilon": 1.0, "delta": 1e-5, "expected_records": 455},
}
QUICK = Settings(shadows=3, rounds=1, sensitive="mean radius")


def report_of(steps) -> Report:
    *_, last = steps
    assert isinstance(last, Report)
    return last


@pytest.fixture(scope="module")
def report():
    return report_of(audit_job(JOB, Path(), QUICK, SeededRandomness("audit")))


# --- a job ------------------------------------------------------------------------------------------------------------


def test_every_attack_stands_before_and_after_the_protections(report):
    run = {(finding.attack, finding.protection) for finding in report.findings}
    both = ("without [privacy]", "as given")
    expected = {(attack, how) for attack in ("membership", "one-run epsilon", "attribute") for how in both}
    assert run == expected | {("inversion", how) for how in ('aggregate = "plain"', *both)}
    assert not report.unfit
    assert all(finding.sentence.endswith(".") and finding.figures for finding in report.findings)


def test_the_protections_make_the_difference(report):
    broken = {
        (finding.protection, finding.figures["records_count"].value): finding.broken
        for finding in report.findings
        if finding.attack == "inversion"
    }
    assert broken == {
        ('aggregate = "plain"', 3): True,
        ('aggregate = "plain"', 455): False,
        ("without [privacy]", 3): False,
        ("without [privacy]", 455): False,
        ("as given", 3): False,
        ("as given", 455): False,
    }


def test_the_label_s_bound_stands_beside_the_attack(report):
    given = {finding.attack: finding for finding in report.findings if finding.protection == "as given"}
    assert 0.01 < given["membership"].figures["allowed_share"].value < 0.021
    assert given["one-run epsilon"].figures["epsilon_stated"].value == pytest.approx(1.0, abs=1e-3)
    assert not given["membership"].broken
    bare = next(finding for finding in report.findings if finding.protection == "without [privacy]")
    assert "allowed_share" not in bare.figures


def test_public_data_is_not_marked_and_an_own_table_is(report, tmp_path):
    assert (report.private, report.data_kind, report.plain()["mark"]) == (False, "public", "")
    draw = np.random.default_rng(1)
    (tmp_path / "schema.toml").write_text(
        'name = "wards"\n[label]\nname = "ill"\nclasses = ["no", "yes"]\n'
        '[columns.age]\ntype = "number"\nlow = 0\nhigh = 100\n'
    )
    for name in ("north", "south", "west"):
        rows = "".join(f"{age:.1f},{('no', 'yes')[draw.integers(2)]}\n" for age in draw.uniform(0, 100, 60))
        (tmp_path / f"{name}.csv").write_text(f"age,ill\n{rows}")
    tables = {name: f"{name}.csv" for name in ("north", "south", "west")}
    own = {
        "data": {"schema": "schema.toml", "tables": tables, "budget": "absent.sqlite"},
        "train": JOB["train"],
        "output": {"ledger": "ledger.jsonl"},
    }
    found = report_of(audit_job(own, tmp_path, Settings(shadows=3), SeededRandomness("own")))
    assert (found.private, found.data_kind) == (True, "own table")
    assert found.plain()["mark"] == "not private: do not publish"
    assert "--sensitive" in found.unfit["attribute"]
    assert not (tmp_path / "ledger.jsonl").exists()
    assert not (tmp_path / "absent.sqlite").exists()


def test_variants_take_one_protection_away_at_a_time():
    given, missing = variants(JOB, Path())
    assert not missing
    found = [(one.protection, one.job.train.aggregate, one.job.privacy is not None) for one in given]
    assert found == [
        ('aggregate = "plain"', "plain", False),
        ("without [privacy]", "masked", False),
        ("as given", "masked", True),
    ]
    plain = {**JOB, "train": {**JOB["train"], "aggregate": "plain"}}
    del plain["privacy"]
    assert [one.protection for one in variants(plain, Path())[0]] == ["as given"]


def test_what_cannot_be_audited_here_is_refused():
    nodes = {"schema": "schema.toml", "nodes": ["a", "b", "c"]}
    with pytest.raises(UsageError, match=r"data\.nodes"):
        variants({"data": nodes}, Path())
    with pytest.raises(UsageError, match="trains on shares"):
        variants({**JOB, "train": {"aggregate": "mpc"}, "privacy": {}} | {"privacy": JOB["privacy"]}, Path())


def test_trees_have_no_gradients_to_divide():
    table = {"data": JOB["data"], "model": {"kind": "trees"}, "trees": {"count": 2, "depth": 2}}
    found = report_of(audit_job(table, Path(), Settings(shadows=3), SeededRandomness("trees")))
    assert "histograms" in found.unfit["inversion, as given"]
    assert {finding.attack for finding in found.findings} == {"membership", "one-run epsilon"}


@pytest.mark.parametrize("prepared", [{"unit_rows": True}, {"project": 12}], ids=["unit rows", "projection"])
def test_a_column_is_attacked_behind_a_preparation_that_mixes_it(prepared):
    job = {"data": JOB["data"], "train": JOB["train"], "model": prepared}
    settings = Settings(shadows=3, attacks=("attribute",), sensitive="mean texture")
    found = report_of(audit_job(job, Path(), settings, SeededRandomness("mixed")))
    assert [finding.attack for finding in found.findings] == ["attribute"]
    assert 0.5 < found.findings[0].figures["without_model_share"].value <= 1


def test_attacks_that_were_not_asked_for_are_named():
    job = variants(JOB, Path())[0][0].job
    assert unfit(job, Settings(attacks=("inversion",))).keys() == {"membership", "attribute"}


# --- sentences --------------------------------------------------------------------------------------------------------


def label(**claims):
    return PrivacyLabel(aggregator="masked", parties=("a", "b"), quorum=2, colluding=1, rounds=3, **claims)


def found_out():
    values = np.concatenate([np.full(500, 2.0), np.arange(500) / 500])
    scores = Scores(values, np.arange(1000) < 500)
    hits, alarms = rates(scores)
    bound = LowerBound(3.0, 1e-5, 0.95, 1000)
    return Membership(scores, Figure(1.0, 1.0, 1.0), hits, alarms, advantage(scores, 1.5), bound, records=500, models=2)


def test_a_label_that_does_not_hold_is_refuted():
    private = label(epsilon=1.0, delta=1e-5, mu=0.268, unit="record", relation="add or remove one")
    finding = of_membership("as given", found_out(), private)
    assert finding.broken
    assert "refuted" in finding.sentence
    epsilon = of_epsilon("as given", found_out().bound, private)
    assert epsilon.broken
    assert "refutes" in epsilon.sentence
    assert not of_epsilon("as given", LowerBound(0.2, 1e-5, 0.95, 1000), private).broken


def test_without_a_label_s_bound_the_model_tells():
    finding = of_membership("without [privacy]", found_out(), label())
    assert finding.broken
    assert "tells who was in its training" in finding.sentence


# --- an endpoint ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _toys(monkeypatch):
    monkeypatch.setattr(confide.serve, "BACKENDS", {**confide.serve.BACKENDS, "toy": "serve.toy:Toy"})


def network() -> Graph:
    draw = np.random.default_rng(5)
    first = Linear(draw.normal(size=(8, 3)), np.zeros(8))
    return Graph((first, Relu(), Linear(draw.normal(size=(1, 8)), np.zeros(1)), Sigmoid()), ("benign", "malignant"))


@pytest.mark.usefixtures("_toys")
def test_a_served_linear_model_is_read_from_four_rows():
    app = create_app([toy_model("diagnosis", Toy(), PlainPredict(), preprocess=PREPROCESS)])
    with Client("http://127.0.0.1:8080", transport=InProcess(app)) as client:
        first, *_, found = audit_endpoint(client, budget=20)
    assert first == Progress("extraction from diagnosis", 0, 20)
    (finding,) = found.findings
    assert finding.broken
    assert "4 answered rows gave it exactly" in finding.sentence
    assert found.target == "diagnosis"
    assert not found.private


@pytest.mark.usefixtures("_toys")
def test_a_quota_stops_it_and_is_told():
    keys = {"clinic": hash_api_key("k" * 43)}
    app = create_app(
        [toy_model("diagnosis", Toy(), PlainPredict(), preprocess=PREPROCESS)],
        limits=Limits(query_quota=3),
        api_keys=keys,
    )
    with Client("http://127.0.0.1:8080", transport=InProcess(app), api_key="k" * 43) as client:
        (finding,) = report_of(audit_endpoint(client, budget=20)).findings
    assert not finding.broken
    assert finding.figures["asked_rows"].value == 3
    assert "after 3 rows the server stopped it" in finding.sentence


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_prints_sentences_and_writes_figures(tmp_path, capsys):
    job = tmp_path / "job.toml"
    job.write_text(
        '[data]\nset = "breast-cancer"\nparties = 3\nsplit = "even"\n[train]\naggregate = "plain"\nrounds = 2\n'
    )
    out = tmp_path / "audit.json"
    with pytest.raises(SystemExit) as ended:
        main(["audit", str(job), "--attack", "inversion", "--quick", "--out", str(out)])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "3 of 3 records stand in what it sees" in printed
    assert "not run: membership: left out by --attack" in printed
    assert "fails proves nothing" in printed
    written = json.loads(out.read_text())
    assert written["findings"][0]["figures"]["read_out_share"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert written["notes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("absent.toml",), "readable job file"),
        (("absent.toml", "--attack", "everything"), "out of membership, inversion, attribute"),
        (("absent.toml", "--out", "absent/report.json"), "make the folder first"),
    ],
)
def test_what_a_user_can_mend_is_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["audit", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
