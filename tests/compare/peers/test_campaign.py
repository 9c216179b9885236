"""Peers in a comparison: rows of their own, or the reason why there is none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from compare.peers.fake_peer import fake, variant
from confide.compare.campaign import campaign
from confide.compare.peers.environment import Environment, Stamp
from confide.compare.peers.planning import Peers
from confide.compare.settings import parse
from confide.compare.tables import described, name
from confide.compare.writing import write_all

JOB = {
    "data": {"set": "breast-cancer"},
    "train": {"rounds": 2},
    "compare": {
        "seeds": 1,
        "queries": 4,
        "sizes": [],
        "check_link": False,
        "clients": 0,
        "training": ["plain"],
        "inference": ["plain"],
    },
}
PRIVATE = {"epsilon": 1.0, "delta": 1e-5, "expected_records": 455}


def stamped(environment: Environment) -> Environment:
    """Return a fake peer whose environment is this interpreter's."""
    (environment.home / "bin").mkdir(parents=True)
    os.symlink(sys.executable, environment.python)
    stamp = Stamp(peer="fake", version="1.0", pins_sha256=environment.pins_hash(), python="3")
    (environment.home / "stamp.json").write_bytes(msgspec.json.encode(stamp))
    return environment


def run(folder: Path, environment: Environment, job=JOB):
    events = list(campaign(parse(job, base=folder), folder / "cells", seeds=1, queries=4, peers=Peers((environment,))))
    return events[-1].result, [event for event in events if event.cached]


def test_what_a_peer_gives_stands_beside_ours_and_is_kept(tmp_path):
    environment = stamped(fake(tmp_path, variant("trains", "training"), variant("answers", "inference")))
    result, cached = run(tmp_path, environment)
    assert not cached
    assert not [place for place in result.unfit if "peer:" in place]
    records = {record.choice: record for record in result.records}
    trains, answers = records["peer:trains"], records["peer:answers"]
    assert 0.3 < trains.figure("accuracy_share") < 0.8  # all of one class
    assert answers.figure("error_largest") > 0.1
    assert answers.figure("latency_seconds") == pytest.approx(1e-6)
    assert trains.guarantee.leaks == "everything"
    assert "Fake trains" in trains.setting
    assert not [asks for asks in result.people if asks.choice.startswith("peer:")]
    again, cached = run(tmp_path, environment)
    assert len(cached) == 5
    assert msgspec.json.encode(again.records) == msgspec.json.encode(result.records)
    (tmp_path / "own" / "run_fake.py").write_text((tmp_path / "own" / "run_fake.py").read_text() + "# changed\n")
    _, cached = run(tmp_path, environment)
    assert len(cached) == 3  # ours alone
    assert write_all(result, tmp_path / "report")


def test_whoever_lies_fails_or_does_not_fit_is_named_with_the_reason(tmp_path):
    environment = stamped(
        fake(
            tmp_path,
            variant("lies", "training", "nan"),
            variant("fails", "inference", "fails"),
            variant("private", "training", private=True),
            variant("trees", "training", models=("trees",)),
        )
    )
    result, _ = run(tmp_path, environment)
    assert "Expected an answer of the agreed form" in result.unfit["training/peer:lies"]
    assert "no such luck" in result.unfit["inference/peer:fails"]
    assert "the job has no [privacy]" in result.unfit["training/peer:private"]
    assert "asked to train trees models" in result.unfit["training/peer:trees"]
    assert {record.choice for record in result.records} == {"plain"}


def test_a_peer_that_spends_no_epsilon_on_a_private_job_is_refused(tmp_path):
    environment = stamped(fake(tmp_path, variant("private", "training", private=True, one_place=True)))
    result, _ = run(tmp_path, environment, JOB | {"privacy": PRIVATE})
    assert "epsilon" in result.unfit["training/peer:private"]


def test_one_that_is_not_installed_says_how(tmp_path):
    environment = fake(tmp_path, variant("trains", "training"), variant("answers", "inference"))
    result, _ = run(tmp_path, environment)
    for place in ("training/peer:trains", "inference/peer:answers"):
        assert result.unfit[place] == "not installed; `confide peers install fake` makes its environment"


def test_a_table_marks_a_peer():
    assert described("inference", "peer:tenseal").title == "TenSEAL 0.3.18 (peer)"
    assert described("inference", "peer:nobody").title == "peer:nobody"
    assert name is not None
