"""The tables: every cell is a figure or a part of a guarantee, and what was not measured says so."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare.example import HELD, QUERY, SPLIT, guarantee, inference, result, training
from confide.compare.charts import against_security, front_table, gallery
from confide.compare.deeper import deeper, fully_against_partially, inference_against, on_shares, reached, scheme
from confide.compare.pareto import as_private, beats, front
from confide.compare.plots import spread_out
from confide.compare.quantities import number, ranged, shown, unit, words
from confide.compare.record import Record, Spread
from confide.compare.tables import costs, name, people, roles, strategic
from confide.compare.techniques import INFERENCE, TRAINING
from confide.guarantee import Adversary, Claim, Trust

GAP = "\N{NO-BREAK SPACE}"
AXES = {"agreement_share": True, "latency_seconds": False, "money_dollars": False}


def rows(table):
    return {row[0]: row for row in table.rows}


def test_every_technique_stands_in_the_strategic_table_measured_or_not():
    for task, known in (("training", TRAINING), ("inference", INFERENCE)):
        table = strategic(result(), task)
        titles = " ".join(str(row[0]) for row in table.rows)
        assert all(one.title in titles for one in known.values())
        assert all(len(row) == len(table.columns) for row in table.rows)
    found = rows(strategic(result(), "training"))
    assert found["Robust group sums"][1].startswith("not measured: 4 parties are too few")
    assert found["Homomorphic sum"][1:4] == ("not measured",) * 3
    he = rows(strategic(result(), "inference"))[INFERENCE["he"].title]
    assert he[1] == ("BFV, N=4096 (SEAL)", "128 bits", "post-quantum")
    assert he[2][0] == f"here: 20.0{GAP}ms (18.0 to 22.0)"
    assert "query hidden from server" in he[5]


def test_a_simulation_is_titled_as_one_wherever_it_stands():
    said = "simulated: protocol overhead only, not hardware"
    for table in (strategic(result(), "inference"), costs(result(), "inference"), people(result(), "inference")):
        (row,) = [row for row in table.rows if "enclave" in row[0]]
        assert said in row[0]
    real = Record("inference", "tee", "s", {}, guarantee([QUERY], trust=Trust.HARDWARE), "m", "1", 1)
    assert said not in name(real)


def test_families_follow_from_what_carries_a_guarantee():
    kinds = {choice: scheme(inference(choice)) for choice in HELD}
    assert kinds["he"] == "leveled homomorphic, exact integers (BFV)"
    assert kinds["paillier"] == "partially homomorphic: additions (Paillier)"
    assert kinds["plain"] is kinds["mpc-dealer"] is None
    assert [choice for choice in HELD if on_shares(inference(choice))] == ["mpc-dealer"]
    for primary in ("replicated secret sharing mod 2^64 (ABY3)", "additive shares mod 2^64, RLWE for products"):
        assert on_shares(Record("inference", "peer:spu", "s", {}, guarantee(primary=primary), "m", "1", 1))
    ckks = Record("inference", "he", "s", {}, guarantee(primary="CKKS, N=8192, log q=200"), "m", "1", 1)
    assert scheme(ckks) == "leveled homomorphic, approximate (CKKS)"


def test_deeper_tables_have_the_figures_of_the_records():
    table = fully_against_partially(result())
    found = rows(table)
    assert table.columns[1:] == (
        INFERENCE["he"].title, INFERENCE["paillier"].title, "Exact FHE (TFHE, through Concrete ML)",
    )  # fmt: skip
    assert found["bytes of a query, times plain"][1:] == ("10.0 times", "10.0 times", "not measured")
    assert found["runs networks"][1:3] == ("yes, up to 4,097 parameters here", "no: adds and scales only")
    assert all(row[-1] == "not measured" for row in table.rows[1:])
    assert table.rows[0][-1] == "not measured: `confide peers install concrete-ml`, then `confide compare --peers`"
    failed = result(unfit={"inference/peer:concrete-ml": "it could not be installed"})
    assert fully_against_partially(failed).rows[0][-1] == "not measured: it could not be installed"
    against = rows(inference_against(result()))
    # 20 ms under HE, 4 ms on shares
    assert against["here, p50, the job's model"][1:] == (
        f"20.0{GAP}ms", f"800{GAP}ms", f"4.00{GAP}ms", "MPC, 5.00 times",
    )  # fmt: skip
    assert against["over WAN, network of 281 parameters"][-1].endswith("1.00 times")


def test_a_table_without_a_side_says_so():
    records = tuple(inference(choice) for choice in ("plain", "he"))
    tables = {table.title: table for table in deeper(result(records=records, curves=()))}
    assert "no technique on shares was measured" in tables["HE against MPC: inference"].text
    assert tables["HE-based against MPC-based inference"].rows[0][-1] == "not measured"
    assert tables["HE against MPC: training"].rows == ()


def test_rounds_and_bytes_to_an_accuracy():
    found = rows(reached(result(), within_share=0.11))
    assert found["Federated, plain sum"][1:3] == ("2", f"2.00{GAP}kB")
    assert found["Federated, secure aggregation"][1:3] == ("2", f"6.00{GAP}kB")


def test_people_count_repeated_steps_and_roles_have_their_figures():
    found = rows(people(result(), "inference"))[INFERENCE["he"].title]
    assert ("pip install it", "run it (2 times)") in found
    table = roles(result(), "inference")
    used = {row[1]: dict(zip(table.columns, row, strict=True)) for row in table.rows if row[0] == INFERENCE["he"].title}
    assert list(used) == ["server", "each client", "all, in one process"]
    assert used["server"]["CPU"].startswith(f"10.0{GAP}ms")
    assert used["each client"]["disk"] == f"300{GAP}B"
    assert used["each client"]["peak memory of its processes, under load"] == "not measured"
    assert used["server"]["peak memory of its processes, under load"] == f"200{GAP}MB"
    assert used["all, in one process"]["memory that all roles add"] == f"3.00{GAP}MB"
    assert roles(result(records=()), "training").rows == ()
    coded = replace(inference("he"), figures={"lines_of_user_code_count": Spread(3, 3, 3, 3)})
    assert roles(result(records=(coded,)), "inference").rows == ()


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12))
def test_discs_that_lie_close_are_moved_apart_and_others_stay(points):
    found = spread_out(points, apart=17.0)
    for one, (x, y) in enumerate(found):
        assert all(math.hypot(x - a, y - b) > 12 for a, b in found[:one])
    far = [(place * 40.0, 0.0) for place in range(len(points))]
    assert spread_out(far, apart=17.0) == far


def test_names_of_points_on_one_another_stay_apart():
    (first, second) = spread_out([(5.0, 5.0), (5.0, 5.0)], apart=17.0)
    assert math.dist(first, second) >= 16.9
    assert (first[0] + second[0], first[1] + second[1]) == pytest.approx((10, 10))


# --- the front --------------------------------------------------------------------------------------------------------


def test_privacy_is_compared_claim_by_claim():
    plain, he, shares = (inference(choice) for choice in ("plain", "he", "mpc-dealer"))
    assert as_private(he, plain)
    assert not as_private(plain, he)
    assert as_private(he, shares)  # hidden from the server, whoever is honest
    assert not as_private(shares, he)  # needs the dealer
    strong = guarantee([QUERY], trust=Trust.CRYPTOGRAPHY)
    malicious = type(strong)(**{f: getattr(strong, f) for f in strong.__slots__} | {"adversary": Adversary.MALICIOUS})
    a, b = (Record("inference", "x", "", {}, one, "", "", 1) for one in (strong, malicious))
    assert as_private(b, a)
    assert not as_private(a, b)
    less, more = (training("masked+dp", strong, epsilon_total=value) for value in (1.0, 8.0))
    assert as_private(less, more)
    assert not as_private(more, less)
    assert not as_private(training("masked", strong), more)  # no bound at all


def test_the_front_keeps_what_nothing_beats():
    records = [inference(choice) for choice in ("plain", "he", "paillier", "mpc-dealer")]
    beaten = front(records, AXES)
    assert beaten == {"plain": None, "he": None, "paillier": "he", "mpc-dealer": None}
    table = rows(front_table(result(), "inference"))
    assert table[INFERENCE["paillier"].title][-1] == INFERENCE["he"].title


claims = st.frozensets(
    st.builds(Claim, st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from([(), ("d",), ("d", "e")])),
    max_size=4,
)
some_records = st.builds(
    lambda held, a, b: Record(
        "inference", f"{a}{b}", "", {"latency_seconds": Spread(a, a, a, a), "agreement_share": Spread(b, b, b, b)},
        guarantee(held, trust=Trust.CRYPTOGRAPHY if held else Trust.OPERATOR), "", "", 1,
    ),
    claims, st.integers(1, 3), st.integers(0, 1),
)  # fmt: skip


@given(st.lists(some_records, min_size=1, max_size=6))
def test_to_beat_is_a_strict_order_and_the_front_is_never_empty(records):
    for a in records:
        assert not beats(a, a, AXES)
        for b in records:
            assert not (beats(a, b, AXES) and beats(b, a, AXES))
            for c in records:
                assert not (beats(a, b, AXES) and beats(b, c, AXES)) or beats(a, c, AXES)
    assert any(not any(beats(other, one, AXES) for other in records) for one in records)


# --- figures in words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "value", "text"),
    [
        ("latency_seconds", 0.0042, "4.20 ms"), ("train_seconds", 75.0, "75.0 s"), ("x_seconds", 6e-6, "6.00 µs"),
        ("x_seconds", 600.0, "10.0 min"), ("x_seconds", 0.0, "0 s"), ("upload_bytes", 47701.0, "47.7 kB"),
        ("key_bytes", 112.0, "112 B"), ("offline_bytes", 9.04e8, "904 MB"), ("accuracy_share", 0.965, "96.5 %"),
        ("money_dollars", 1.234e-7, "$0.00000012"),
        ("money_dollars", 0.01318, "$0.0132"), ("rounds_count", 1234.0, "1,234"), ("error_largest", 5e-5, "5.0e-05"),
        ("requests_per_second_rate", 3261.8, "3,262 /s"), ("error_largest", float("inf"), "inf"),
    ],
)  # fmt: skip
def test_values_are_printed_with_their_unit(figure, value, text):
    assert shown(figure, value).replace(GAP, " ") == text


def test_a_spread_names_its_unit_once():
    assert ranged("latency_seconds", Spread(0.02, 0.01, 0.03, 0.02)) == f"20.0{GAP}ms (10.0 to 30.0)"
    assert ranged("latency_seconds", Spread(0.9, 0.9, 1.1, 1.0)) == f"900{GAP}ms (900{GAP}ms to 1.10{GAP}s)"
    assert ranged("rounds_count", Spread(30, 30, 30, 30)) == "30"
    assert (unit("latency_wan_seconds"), unit("epsilon_total")) == ("seconds", "")
    assert words("latency_wan_seconds") == "over WAN"
    assert words("latency_mobile_seconds") == "over mobile"
    assert words("cpu_of_dealer_seconds") == "CPU, dealer"
    assert words("disk_of_server_bytes") == "disk, server"


@given(st.floats(1e-3, 1e14))
def test_three_digits_are_kept(value):
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=5.1e-3)


def test_a_picture_without_data_is_left_out_and_says_why():
    bare = result(curves=(), records=(inference("plain"),))
    drawn = gallery(bare, "training"), gallery(bare, "inference")
    assert not drawn[0].pictures
    assert "sweep over epsilon" in drawn[0].left_out["accuracy against epsilon"]
    assert set(drawn[1].left_out) == {
        "latency against model size", "latency over the WAN against model size", "bytes against model size",
        "money against model size", "the Pareto front",
    }  # fmt: skip
    unloaded = inference("plain")
    unloaded = replace(unloaded, figures={k: v for k, v in unloaded.figures.items() if "rate" not in k})
    assert "under load" in str(against_security(result(records=(unloaded,))))
    assert SPLIT in HELD["mpc-dealer"].claims
