"""Attacks in a comparison: which techniques share a model, what stands before and after, what the report says."""

from __future__ import annotations

import msgspec
import pytest

from confide.compare.attacks import attacks
from confide.compare.audited import BARE, NOT_ATTACKED, Attacked, by_technique, choices
from confide.compare.campaign import campaign
from confide.compare.document import document
from confide.compare.result import read_result
from confide.compare.settings import parse
from confide.errors import JobError

JOB = {
    "job": {"name": "wards"},
    "data": {"set": "breast-cancer", "parties": 4},
    "train": {"aggregate": "masked", "rounds": 2},
    "privacy": {"epsilon": 1.0, "expected_records": 455},
    "compare": {
        "audit": True, "audit_shadows": 3, "seeds": 1, "queries": 2, "clients": 0, "check_link": False, "sizes": [],
        "epsilons": [1.0], "training": ["local", "pooled", "masked", "masked+dp"], "inference": ["plain"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    *_, last = campaign(parse(JOB), folder, seeds=1, queries=2, only=("local", "pooled", "masked", "masked+dp"))
    return last.result


def test_models_of_exact_sums_are_attacked_once(result):
    assert choices(("pooled", "masked", "mpc", "masked+dp"), NOT_ATTACKED) == (BARE, "masked", "masked+dp")
    run = {(one.choice, one.attack) for one in result.attacks}
    assert run == {
        ("plain", "membership"), ("plain", "one-run epsilon"), ("plain", "inversion"), ("masked", "inversion"),
        ("masked+dp", "membership"), ("masked+dp", "one-run epsilon"), ("masked+dp", "inversion"),
    }  # fmt: skip


def test_protections_stand_beside_none(result):
    pairs = by_technique(("masked", "masked+dp"), result.attacks)
    before, after = pairs["masked"]["inversion"]
    assert (before.verdict, after.verdict) == ("FOUND", "not found")  # what is summed is hidden
    before, after = pairs["masked"]["membership"]
    assert before is after  # and the model is the same
    before, after = pairs["masked+dp"]["membership"]
    assert before is not after
    for one in (before, after):
        for name in ("true_positive_share", "advantage_share"):
            value, low, high = one.figures[name]
            assert low <= value <= high
            assert low < high
    assert after.figures["allowed_share"][0] > 0.01


def test_the_report_has_a_row_for_each_technique_and_attack(result):
    table = attacks(result)
    assert len(table.rows) == 3 * 3  # the plain sum among them
    said = {(row[0], row[1]): row[-1] for row in table.rows}
    assert said["Federated, secure aggregation", "membership"].startswith("The sum is exact, so the model is that of a")
    assert all(sentence.endswith(".") for sentence in said.values())
    assert "Attacks" in [part.title for part in document(result).parts]
    assert read_result(result.encode()).attacks == result.attacks


def test_without_audit_there_is_no_such_part(result):
    assert attacks(msgspec.structs.replace(result, attacks=())) is None


def test_an_attack_that_fails_leaves_its_row_out(result):
    failed = msgspec.structs.replace(result, unfit={**result.unfit, "audit/masked": "too few records"})
    assert {row[0] for row in attacks(failed).rows} == {
        "Federated, plain sum",
        "Secure aggregation + differential privacy",
    }


def test_records_of_real_nodes_are_not_attacked():
    job = {**JOB, "data": {"schema": "schema.toml", "nodes": ["a", "b", "c", "d"]}}
    with pytest.raises(JobError, match=r"compare\.audit"):
        parse(job)


def test_verdicts():
    one = Attacked(choice="plain", attack="x", figures={}, headline="", sentence="", found=False, allowed=True)
    assert one.verdict == "within the label"
