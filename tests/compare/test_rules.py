"""Rules of thumb: verdicts against numbers worked out by hand, on results made up for each rule."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare.example import HOSTILE, guarantee, result
from confide.compare.cells import planned
from confide.compare.record import Record, Spread
from confide.compare.result import Aside, Curve, read_result
from confide.compare.rule_report import networks_table, rules_pictures, rules_table
from confide.compare.rules import (
    HOLDS,
    NOT_HERE,
    OPTIMISTIC,
    PESSIMISTIC,
    RULES,
    UNDECIDED,
    judged_rules,
    overall,
    verdict,
)
from confide.compare.settings import load
from confide.compare.writing import table, write_all
from confide.guarantee import Claim, Trust

ROOT = Path(__file__).parents[2]
CKKS = guarantee([Claim("query", "server")], primary="CKKS, N=8192 (SEAL)", trust=Trust.CRYPTOGRAPHY, bits=128)
SHARES = guarantee(
    [Claim("query", "server", ("dealer",))], primary="additive shares mod 2^64", trust=Trust.NON_COLLUSION
)
TFHE = guarantee([Claim("query", "server")], primary="TFHE (Concrete)", trust=Trust.CRYPTOGRAPHY, bits=128)


def exactly(value):
    return Spread(value, value, value, value)


def training(choice, accuracy, **figures):
    made = {"accuracy_share": exactly(accuracy)} | {name: exactly(value) for name, value in figures.items()}
    return Record("training", choice, "a set, 4 parties", made, guarantee(), "a machine", "1", 5)


def asked(choice, held, *, layers, lan, **figures):
    made = {"weight_layers_count": layers, "latency_lan_seconds": lan, "latency_seconds": lan} | figures
    made = {name: exactly(float(value)) for name, value in made.items()}
    return Record("inference", choice, "a model", made, held, "a machine", "1", 7)


def image(on, choice, held, **given):
    return Aside(kind="network", on=on, record=asked(choice, held, layers=3, **given))


def curve(kind, choice, x, y):
    points = tuple(one if isinstance(one, Spread) else exactly(one) for one in y)
    name = {"rounds": "rounds_count", "passes": "passes_count", "epsilon": "epsilon_total"}[kind]
    return Curve(kind=kind, task="training", choice=choice, x_name=name, y_name="accuracy_share", x=tuple(x), y=points)


def ruled(key, **changes):
    made = result(**({"records": (), "curves": (), "unfit": {}} | changes))
    return next(rule for rule in judged_rules(made) if rule.key == key)


# --- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "figure", "expected"),
    [
        (exactly(0.25), "loss_share", "holds"),
        (exactly(0.20), "loss_share", "holds"),
        (exactly(0.30), "loss_share", "holds"),
        (exactly(0.01), "loss_share", "too pessimistic by 19.0 points"),
        (exactly(-0.02), "loss_share", "too pessimistic by 22.0 points"),
        (exactly(0.55), "loss_share", "too optimistic by 25.0 points"),
        (Spread(0.25, 0.1, 0.28, 0.2), "loss_share", "holds at the median, not over the whole spread"),
        (
            Spread(0.1, 0.05, 0.21, 0.1),
            "loss_share",
            "undecided: too pessimistic by 10.0 points at the median, the spread reaches the range",
        ),
    ],
)
def test_shares_differ_by_points(value, figure, expected):
    assert verdict(value, 0.2, 0.3, figure) == expected


@pytest.mark.parametrize(
    ("median", "expected"),
    [
        (0.3, "holds"),
        (0.1 / 30, "too pessimistic by 30x"),
        (0.1 / 3, "too pessimistic by 3.0x"),
        (0.1 / 1.25, "too pessimistic by 1.25x"),
        (0.1 / 2345.6, "too pessimistic by 2,346x"),
        (2.0, "too optimistic by 4.0x"),
        (0.0, "too pessimistic by any factor"),
    ],
)
def test_the_rest_differs_by_a_factor(median, expected):
    assert verdict(exactly(median), 0.1, 0.5, "latency_seconds") == expected


@given(
    median=st.floats(1e-6, 1e6),
    low=st.floats(1e-3, 1e3),
    width=st.floats(1, 100),
    down=st.floats(1, 9),
    up=st.floats(1, 9),
)
def test_a_verdict_says_on_which_side_the_median_is(median, low, width, down, up):
    high = low * width
    said = verdict(Spread(median, median / down, median * up, median), low, high, "latency_seconds")
    assert said.startswith(HOLDS) == (low <= median <= high)
    assert (PESSIMISTIC in said) == (median < low)
    assert (OPTIMISTIC in said) == (median > high)
    touches = median / down <= high and median * up >= low
    assert said.startswith(UNDECIDED) == (touches and not low <= median <= high)


def test_many_verdicts_become_one():
    assert overall([]) == NOT_HERE
    assert overall(["holds"]) == "holds"
    assert overall(["too pessimistic by 30x"]) == "too pessimistic by 30x"
    assert overall(["holds", "holds at the median, not over the whole spread"]) == "holds"
    assert overall(["too pessimistic by 30x", "too pessimistic by 9.5x"]) == "too pessimistic by 9.5x to 30x"
    assert overall(["too pessimistic by 2,346x", "too pessimistic by 9.5x"]) == "too pessimistic by 9.5x to 2,346x"
    assert overall(["too pessimistic by 19.0 points", "too pessimistic by 3.5 points"]) == (
        "too pessimistic by 3.5 points to 19.0 points"
    )
    assert overall(["holds", "too optimistic by 2.0x", "holds"]) == "holds for 2 of 3, too optimistic for 1"


# --- each rule --------------------------------------------------------------------------------------------------------

NOISY = training("masked+dp", 0.72, epsilon_total=1.0)
BARE = training("masked", 0.90)


def test_utility_at_epsilon_one_is_a_share_of_the_same_federation_without_noise():
    found = ruled("utility-at-epsilon-1", records=(NOISY, BARE, training("pooled", 0.99)))
    assert found.measured[0].value.median == pytest.approx(0.2)
    assert (found.verdict, found.left_out) == ("holds", "")
    better = ruled(
        "utility-at-epsilon-1", records=(replace(NOISY, figures=BARE.figures | {"epsilon_total": exactly(1)}), BARE)
    )
    assert better.verdict == "too pessimistic by 20.0 points"


def test_the_spread_of_a_loss_is_turned_round():
    reached = {"accuracy_share": Spread(0.72, 0.63, 0.81, 0.7), "epsilon_total": exactly(1.0)}
    found = ruled("utility-at-epsilon-1", records=(replace(NOISY, figures=reached), BARE)).measured[0].value
    assert (found.low, found.median, found.high) == pytest.approx((0.1, 0.2, 0.3))


def test_another_epsilon_counts_only_through_the_curve():
    other = training("masked+dp", 0.88, epsilon_total=4.0)
    without = ruled("utility-at-epsilon-1", records=(other, BARE))
    assert (without.verdict, without.measured) == (NOT_HERE, ())
    assert "compare.epsilons" in without.left_out
    points = curve("epsilon", "masked+dp", (0.5, 1.0, 4.0), (0.4, 0.63, 0.88))
    found = ruled("utility-at-epsilon-1", records=(other, BARE), curves=(points,))
    assert found.measured[0].value.median == pytest.approx(0.3)


def test_a_job_without_privacy_says_so():
    assert "[privacy]" in ruled("utility-at-epsilon-1", records=(BARE,)).left_out
    noisy = training("masked", 0.9, epsilon_total=1.0)  # noise on both sides is no yardstick
    assert "without noise" in ruled("utility-at-epsilon-1", records=(NOISY, noisy)).left_out


def test_further_sets_are_judged_each():
    sets = tuple(
        Aside(kind="set", on="digits", record=one) for one in (training("masked+dp", 0.45, epsilon_total=1.0), BARE)
    )
    found = ruled("utility-at-epsilon-1", records=(NOISY, BARE), asides=sets)
    assert [one.on for one in found.measured] == ["", "digits"]
    assert found.measured[1].verdict == "too optimistic by 20.0 points"
    assert found.verdict == "holds for 1 of 2, too optimistic for 1"


def test_federated_is_compared_with_pooled():
    found = ruled("federated-against-pooled", records=(training("plain", 0.776), training("pooled", 0.8)))
    assert found.measured[0].value.median == pytest.approx(0.03)
    assert found.verdict == "holds"
    assert ruled("federated-against-pooled", records=(BARE,)).verdict == NOT_HERE
    assert ruled("federated-against-pooled", records=(BARE, training("pooled", 0.0))).verdict == NOT_HERE


def test_rounds_are_counted_to_the_same_accuracy():
    passes = curve("passes", "pooled", (2, 4, 6), (0.5, 0.895, 0.9))
    rounds = curve("rounds", "masked", range(1, 61), [0.5] * 39 + [Spread(0.89, 0.88, 0.9, 0.89)] + [0.9] * 20)
    found = ruled("rounds", records=(BARE,), curves=(passes, rounds))
    value = found.measured[0].value
    assert (value.low, value.median, value.high) == (10.0, 10.0, 10.25)  # 40 / 4, 40 / 4, 41 / 4
    assert found.verdict == "holds"
    same = ruled(
        "rounds", records=(BARE,), curves=(passes, curve("rounds", "masked", (1, 2, 3, 4), (0.1, 0.2, 0.3, 0.9)))
    )
    assert same.verdict == "too pessimistic by 10x"
    never = ruled("rounds", records=(BARE,), curves=(passes, curve("rounds", "masked", (1, 2), (0.1, 0.2))))
    assert never.verdict == NOT_HERE
    assert "2 rounds" in never.left_out
    assert ruled("rounds", records=(BARE,), curves=(passes,)).verdict == NOT_HERE


def test_only_linear_models_under_encryption_count_for_the_linear_rule():
    plain = asked("plain", guarantee(), layers=1, lan=0.2)
    deep = asked("he", CKKS, layers=2, lan=0.2)
    shared = asked("mpc-dealer", SHARES, layers=1, lan=0.2)
    none = ruled("linear-under-he", records=(plain, deep, shared))
    assert none.verdict == NOT_HERE
    found = ruled("linear-under-he", records=(plain, deep, shared, asked("he", CKKS, layers=1, lan=0.005)))
    assert found.verdict == "too pessimistic by 20x"
    assert [one.choice for one in found.measured] == ["he"]


def test_without_a_lan_the_nearest_link_is_taken_and_named():
    record = asked("he", CKKS, layers=1, lan=0.2)
    figures = {name: value for name, value in record.figures.items() if "lan" not in name}
    found = ruled("linear-under-he", records=(replace(record, figures=figures),))
    assert found.measured[0].name.endswith(", here")
    assert "in one process" in found.measured[0].what


def test_images_under_encryption_are_leveled_or_exact_and_both_are_named():
    leveled = image("cifar", "he", CKKS, lan=3.0)
    found = ruled(
        "image-under-fhe", asides=(leveled,), unfit={"network/resnet20/he": "layer 1 (Relu): no such; layer 2"}
    )
    assert found.verdict == "holds"
    assert "leveled" in found.measured[0].what
    assert "resnet20 does not run: layer 1 (Relu): no such (and 1 more);" in found.left_out
    assert "exact FHE: not measured here" in found.left_out
    peer = asked("concrete-ml", TFHE, layers=2, lan=40.0)
    both = ruled("image-under-fhe", records=(peer,), asides=(leveled,))
    assert [one.choice for one in both.measured] == ["concrete-ml", "he"]
    assert both.left_out == ""


def test_images_on_shares_are_judged_over_both_links():
    both = image("cnn", "mpc-dealer", SHARES, lan=0.01, latency_wan_seconds=0.4, offline_lan_seconds=0.05)
    found = ruled("image-under-mpc", asides=(both, image("cnn", "he", CKKS, lan=1.0)))
    assert [one.verdict for one in found.measured] == ["too pessimistic by 10x", "too pessimistic by 1.67x", "holds"]
    assert [one.value.median for one in found.measured] == pytest.approx([0.01, 0.06, 0.4])
    assert ["dealer makes ahead" in one.what for one in found.measured] == [False, True, False]


def test_a_factor_is_work_over_onnxruntime_in_the_clear():
    he = image("cnn", "he", CKKS, lan=9.0, latency_loopback_seconds=0.1, clear_seconds=0.001, factor_over_plain=2.0)
    found = ruled("deep-factor", asides=(he,))
    assert found.measured[0].value.median == pytest.approx(100)
    assert found.verdict == "holds"
    dealt = image("cnn", "mpc-dealer", SHARES, lan=9.0, latency_loopback_seconds=0.02, clear_seconds=0.001)
    more = {"offline_loopback_seconds": exactly(0.03)}
    dealt = msgspec.structs.replace(dealt, record=replace(dealt.record, figures={**dealt.record.figures, **more}))
    assert ruled("deep-factor", asides=(dealt,)).measured[0].value.median == pytest.approx(50)  # dealing counts
    without = ruled("deep-factor", asides=(image("cnn", "he", CKKS, lan=9.0),))
    assert without.verdict == NOT_HERE
    assert "onnxruntime" in without.left_out
    assert (
        ruled("deep-factor", asides=(image("cnn", "tee", guarantee(), lan=9.0, clear_seconds=0.001),)).verdict
        == NOT_HERE
    )


# --- odd results ------------------------------------------------------------------------------------------------------


def test_a_result_that_measures_nothing_has_a_reason_for_every_rule():
    for rule in judged_rules(result(records=(), curves=(), unfit={})):
        assert (rule.verdict, rule.measured) == (NOT_HERE, ())
        assert rule.left_out, rule.key


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_figures_that_are_no_numbers_are_not_judged(odd):
    found = ruled("linear-under-he", records=(asked("he", CKKS, layers=1, lan=odd),))
    assert found.verdict == NOT_HERE
    assert "not finite" in found.left_out
    for key in ("utility-at-epsilon-1", "federated-against-pooled"):
        rows = (training("masked+dp", odd, epsilon_total=1.0), training("masked", odd), training("pooled", 0.9))
        assert ruled(key, records=rows).verdict == NOT_HERE
    crooked = asked("he", CKKS, layers=1, lan=0.2)
    crooked = replace(crooked, figures=crooked.figures | {"latency_lan_seconds": Spread(0.2, 0.3, 0.1, 0.2)})
    assert ruled("linear-under-he", records=(crooked,)).verdict == NOT_HERE


def full():
    """Return a hostile result in which every rule is measured."""
    records = (NOISY, BARE, training("pooled", 0.95), asked("he", CKKS, layers=1, lan=0.01))
    curves = (curve("passes", "pooled", (1, 2), (0.5, 0.9)), curve("rounds", "masked", (1, 2), (0.5, 0.9)))
    nets = (
        image(HOSTILE, "he", CKKS, lan=2.0, clear_seconds=0.001),
        image(HOSTILE, "mpc-dealer", SHARES, lan=0.2, clear_seconds=0.001),
    )
    made = result(
        records=records, curves=curves, asides=nets, unfit={f"network/{HOSTILE}/he": HOSTILE, "network/": "odd"}
    )
    return msgspec.structs.replace(made, rules=judged_rules(made))


def test_a_hostile_result_is_written_and_read_again(tmp_path):
    made = full()
    assert all(rule.measured for rule in made.rules)
    paths = {path.name: path.read_text() for path in write_all(made, tmp_path)}
    assert read_result(paths["compare.json"].encode()) == made
    page = paths["compare.html"]
    assert 'id="rules"' in page
    assert "<script" not in page
    assert "<img" not in page
    for rule in made.rules:
        assert rule.said in paths["compare.md"].replace("\\", "")
    lines = [line for line in table(made).splitlines() if line.startswith("rule,")]
    assert len(lines) == sum(len(rule.measured) for rule in made.rules)
    assert not [line for line in paths["compare.csv"].splitlines() if line.startswith("=")]


def test_the_report_shows_every_rule_and_says_what_is_missing():
    made = judged_rules(result(records=(), curves=(), unfit={}))
    rows = rules_table(made).rows
    assert len(rows) == len(RULES)
    assert all(row[2][0] == NOT_HERE and "not measured:" in row[2][1] for row in rows)
    assert rules_pictures(made) == ()
    drawn = full()
    assert len(rules_pictures(drawn.rules)) == len(RULES)
    assert len(networks_table(drawn).rows) == 4  # two that ran, two that did not


def test_rules_are_what_they_say():
    keys = [rule.key for rule in RULES]
    assert len(set(keys)) == len(keys) == 7
    for rule in RULES:
        assert 0 < rule.low < rule.high
        assert rule.sources
        for source in rule.sources:
            assert source.address or not source.read  # what was read has an address
            assert ("not opened" in source.words()) != source.read


def test_results_of_earlier_versions_are_read():
    body = msgspec.json.decode(result().encode())
    del body["rules"], body["asides"]
    assert read_result(msgspec.json.encode(body)).rules == ()


# --- the example ------------------------------------------------------------------------------------------------------


def test_the_example_measures_every_rule():
    comparison = load(ROOT / "examples" / "rules-of-thumb.toml")
    found = planned(comparison, seeds=comparison.settings.seeds, queries=comparison.settings.queries)
    assert not found.unfit
    ran = {(cell.kind, cell.choice) for cell in found.cells}
    assert {("training", one) for one in ("pooled", "masked", "masked+dp")} <= ran
    assert {("set", one) for one in ("pooled", "masked", "masked+dp")} <= ran
    assert {("inference", one) for one in ("plain", "he", "he-open", "mpc-dealer", "mpc-3pc", "tee")} <= ran
    assert {("network", one) for one in ("plain", "he", "mpc-dealer", "mpc-3pc", "tee")} <= ran
    assert comparison.job.privacy is not None
    assert comparison.job.privacy.epsilon == 1.0
