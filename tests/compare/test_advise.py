"""Advice over hand-made records: the cheapest that covers the needs, and a reason against every other."""

import dataclasses

from confide.compare.advise import Need, advise
from confide.compare.record import Record, Spread, summarise
from confide.guarantee import Adversary, Claim, Guarantee, Trust, nothing_hidden

HIDES_QUERY = Guarantee(
    claims=frozenset({Claim("query", "server")}),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.CRYPTOGRAPHY,
    security_bits=128,
    post_quantum=True,
    verified_result=False,
    leaks="the answer",
    primary="a scheme",
    paper="",
)
QUERY = Need("query", "server", "the patient does not trust it")


def record(choice, guarantee, **figures):
    spreads = {name: Spread(value, value, value, value) for name, value in figures.items()}
    return Record("inference", choice, "", spreads, guarantee, "", "", 1)


PLAIN = record("plain", nothing_hidden("everything"), latency_seconds=0.001)
SLOW = record("paillier", HIDES_QUERY, latency_seconds=0.5, accuracy_share=0.95)
FAST = record("he", HIDES_QUERY, latency_seconds=0.004, accuracy_share=0.90)


def test_without_needs_plain_serving_is_enough():
    advice = advise([FAST, PLAIN, SLOW], [], cost="latency_seconds")
    assert advice.choice == "plain"
    assert any("none needed" in reason for reason in advice.reasons)
    assert {name for name, _ in advice.refused} == {"he", "paillier"}


def test_the_cheapest_that_hides_enough_wins():
    advice = advise([PLAIN, SLOW, FAST], [QUERY], cost="latency_seconds")
    assert advice.choice == "he"
    assert dict(advice.refused)["plain"] == "does not hide the query from the server"
    assert "500 ms" in dict(advice.refused)["paillier"]


def test_a_floor_moves_the_choice():
    advice = advise([SLOW, FAST], [QUERY], cost="latency_seconds", least=("accuracy_share", 0.93))
    assert advice.choice == "paillier"


def test_a_role_that_nobody_can_take_rules_a_choice_out():
    """Claims that rest on a helper's honesty are worth nothing where there is no helper."""
    claims = frozenset({Claim("query", "server", ("helper",))})
    helped = record("mpc-dealer", dataclasses.replace(HIDES_QUERY, claims=claims), latency_seconds=0.0001)
    assert advise([helped, FAST], [QUERY], cost="latency_seconds").choice == "mpc-dealer"
    advice = advise([helped, FAST], [QUERY], cost="latency_seconds", absent={"helper": "nobody can be one"})
    assert advice.choice == "he"
    assert dict(advice.refused)["mpc-dealer"] == "nobody can be one"


def test_nothing_fits():
    advice = advise([PLAIN], [QUERY], cost="latency_seconds")
    assert advice.choice is None
    assert advice.refused == (("plain", "does not hide the query from the server"),)


def test_a_claim_about_another_role_does_not_count():
    assert advise([FAST], [Need("query", "dealer", "")], cost="latency_seconds").choice is None


def test_summaries():
    rows = [{"a": float(i)} | ({"b": 1.0} if i else {}) for i in range(101)]
    spreads = summarise(rows)
    assert spreads["a"] == Spread(50.0, 5.0, 95.0, 50.0)
    assert spreads["b"].median == 1.0
