"""Approvals bind: any byte of job, schema, roster or table that changes ends them; a crash leaves them whole."""

import hashlib
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.cohort.roster import Roster
from confide.data.files import digest_of
from confide.errors import Aborted, DataError, UsageError
from confide.train import approval
from confide.train.approval import MOST_WAITING, Approvals
from confide.train.budget import Spent
from train.offers import KEYS, ROSTER, SCHEMA, changed, job_of, offer_of

OFFER = offer_of()
DATA = hashlib.sha256(b"table").hexdigest()


def ask(approvals, offer=OFFER, *, when="2026-01-01T00:00:00+00:00", epsilon=0.0):
    approvals.ask(
        offer,
        data=Path("table.csv"),
        when=when,
        spent=Spent(epsilon, 0.0),
        greatest_epsilon=3.0,
        greatest_delta=1e-4,
    )


def approved(folder, offer=OFFER, data=DATA):
    approvals = Approvals(folder)
    ask(approvals, offer)
    approvals.approve(approvals.find(offer.digest), data=data, who="dr. north", when="2026-01-02")
    return approvals


def test_a_job_waits_then_a_person_approves(tmp_path):
    node, people = Approvals(tmp_path), Approvals(tmp_path)  # two processes: nothing is shared but the folder
    assert node.verdict(OFFER, DATA).state == "waiting"
    ask(node)
    assert OFFER.digest[:12] in node.verdict(OFFER, DATA).reason
    [asked] = people.waiting()
    assert asked.offer == OFFER
    assert Path(asked.data).is_absolute()
    people.approve(asked, data=DATA, who="dr. north", when="2026-01-02")
    assert node.verdict(OFFER, DATA).state == "approved"
    assert node.verdict(OFFER, DATA).reason == ""
    assert people.waiting() == []
    assert node.decision(OFFER.digest).who == "dr. north"


def test_a_new_run_of_an_approved_job_needs_no_new_approval(tmp_path):
    assert approved(tmp_path).verdict(offer_of(run="run-2"), DATA).state == "approved"


def test_a_refusal_carries_its_reason(tmp_path):
    approvals = approved(tmp_path)
    approvals.refuse(approvals.find(OFFER.digest), reason="ethics\nvote  pending", who="dr. north", when="2026-01-03")
    verdict = approvals.verdict(OFFER, DATA)
    assert (verdict.state, verdict.reason) == ("refused", "Refused by this node's people: ethics vote pending")
    approvals.approve(approvals.find(OFFER.digest), data=DATA, who="dr. north", when="2026-01-04")
    assert approvals.verdict(OFFER, DATA).state == "approved"


def test_changed_data_end_an_approval_and_the_reason_says_how_to_go_on(tmp_path):
    table = tmp_path / "table.csv"
    table.write_bytes(b"age\n50\n")
    approvals = approved(tmp_path, data=digest_of(table))
    assert approvals.verdict(OFFER, digest_of(table)).state == "approved"
    table.write_bytes(b"age\n51\n")
    verdict = approvals.verdict(OFFER, digest_of(table))
    assert verdict.state == "changed"
    assert "approved on 2026-01-02, it has changed since" in verdict.reason
    assert f"confide node approve {OFFER.digest[:12]}" in verdict.reason
    approvals.approve(approvals.find(OFFER.digest), data=digest_of(table), who="x", when="2026-01-05")
    assert approvals.verdict(OFFER, digest_of(table)).state == "approved"


OTHERS = {
    "job": offer_of(job_of(train={"rounds": 6})),
    "one byte of the schema": offer_of(schema=SCHEMA + "\n"),
    "no privacy": offer_of(job_of(privacy=None)),
    "roster": offer_of(roster=Roster((*ROSTER.members[:2], ("west", KEYS["other"])))),
    "coordinator": offer_of(coordinator=KEYS["other"]),
    "helper": offer_of(helper=KEYS["helper"]),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_offer_is_not_approved(tmp_path, what):
    approvals = approved(tmp_path)
    assert approvals.verdict(OTHERS[what], DATA).state == "waiting"
    # nor if somebody puts the decision under the other's name
    (tmp_path / "approvals" / f"{OTHERS[what].digest}.decision").write_bytes(
        (tmp_path / "approvals" / f"{OFFER.digest}.decision").read_bytes()
    )
    verdict = approvals.verdict(OTHERS[what], DATA)
    assert verdict.state == "waiting"
    assert "decide again" in verdict.reason


@given(st.data())
def test_any_byte_of_the_job_or_schema_counts(tmp_path_factory, data):
    field = data.draw(st.sampled_from(["job", "schema", "start_hash"]))
    text = getattr(OFFER, field)
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("abc0 \n").filter(lambda letter: letter != text[place]))
    tampered = changed(OFFER, **{field: text[:place] + other + text[place + 1 :]})
    assert approved(tmp_path_factory.mktemp("a")).verdict(tampered, DATA).state == "waiting"


def test_what_a_person_looked_at_cannot_be_exchanged_before_the_approval(tmp_path):
    """The coordinator offers the same job with another roster while somebody reads: the short name means two now."""
    approvals = Approvals(tmp_path)
    ask(approvals)
    assert approvals.find(OFFER.job_hash[:8]).offer == OFFER
    ask(approvals, OTHERS["roster"])
    with pytest.raises(UsageError, match="stands for 2: one job with different members"):
        approvals.find(OFFER.job_hash[:8])
    assert approvals.find(OFFER.digest[:8]).offer == OFFER


def test_a_file_under_another_name_is_no_offer(tmp_path):
    approvals = Approvals(tmp_path)
    ask(approvals)
    ask(approvals, OTHERS["roster"])
    folder = tmp_path / "approvals"
    (folder / f"{OFFER.digest}.offer").write_bytes((folder / f"{OTHERS['roster'].digest}.offer").read_bytes())
    assert [asked.offer for asked in approvals.all()] == [OTHERS["roster"]]


def test_asking_again_keeps_the_time_and_tells_what_the_budget_has_spent_now(tmp_path):
    approvals = Approvals(tmp_path)
    ask(approvals)
    ask(approvals, changed(OFFER, run="run-2"), when="2026-02-02", epsilon=0.7)
    [asked] = approvals.all()
    assert (asked.when, asked.epsilon, asked.offer.run) == ("2026-01-01T00:00:00+00:00", 0.7, "run-1")
    approvals.withdraw(OFFER)
    approvals.withdraw(OFFER)
    assert approvals.all() == []


def test_the_oldest_comes_first(tmp_path):
    approvals = Approvals(tmp_path)
    ask(approvals, OTHERS["job"], when="2026-03-01")
    ask(approvals, OFFER, when="2026-01-01")
    assert [asked.offer for asked in approvals.waiting()] == [OFFER, OTHERS["job"]]


def test_a_coordinator_fills_no_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(approval, "MOST_WAITING", 2)
    approvals = Approvals(tmp_path)
    ask(approvals)
    ask(approvals, OTHERS["job"])
    with pytest.raises(Aborted, match="fewer than 2 jobs"):
        ask(approvals, OTHERS["roster"])
    ask(approvals)  # one that is there already
    approvals.refuse(approvals.find(OFFER.digest), reason="no", who="x", when="y")
    ask(approvals, OTHERS["roster"])
    assert MOST_WAITING == 100


@pytest.mark.parametrize("prefix", ["", "abc", "0" * 12, "../x"])
def test_names_that_stand_for_no_job(tmp_path, prefix):
    approvals = Approvals(tmp_path)
    ask(approvals)
    with pytest.raises(UsageError, match="confide node pending"):
        approvals.find(prefix)


@pytest.mark.parametrize("body", [b"", b"{}", b"[" * 99_999, b"\xff", b'{"approved": true}', b" " * 20_000])
def test_a_damaged_decision_is_none(tmp_path, body):
    approvals = approved(tmp_path)
    (tmp_path / "approvals" / f"{OFFER.digest}.decision").write_bytes(body)
    assert approvals.verdict(OFFER, DATA).state == "waiting"
    with pytest.raises(UsageError, match="approve or refuse again"):
        approvals.decision(OFFER.digest)


@pytest.mark.parametrize("body", [b"", b"\xc1", b"x" * 100])
def test_a_damaged_offer_is_left_out(tmp_path, body):
    approvals = Approvals(tmp_path)
    ask(approvals)
    ask(approvals, OTHERS["job"])
    (tmp_path / "approvals" / f"{OFFER.digest}.offer").write_bytes(body)
    assert [asked.offer for asked in approvals.all()] == [OTHERS["job"]]


def test_nobody_else_may_look_or_write(tmp_path):
    approvals = approved(tmp_path / "member")
    assert stat.S_IMODE((tmp_path / "member" / "approvals").stat().st_mode) & 0o077 == 0
    for path in (tmp_path / "member" / "approvals").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert len(list((tmp_path / "member" / "approvals").iterdir())) == 2
    assert approvals.verdict(OFFER, DATA).state == "approved"


def test_a_crash_leaves_the_earlier_decision(tmp_path, monkeypatch):
    approvals = approved(tmp_path)

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        approvals.refuse(approvals.find(OFFER.digest), reason="no", who="x", when="y")
    assert approvals.verdict(OFFER, DATA).state == "approved"
    assert len(list((tmp_path / "approvals").iterdir())) == 2


def test_a_reason_has_an_end(tmp_path):
    approvals = approved(tmp_path)
    with pytest.raises(UsageError, match="shorten"):
        approvals.refuse(approvals.find(OFFER.digest), reason="x" * 20_000, who="x", when="y")


def test_the_digest_of_a_file_is_sha256(tmp_path):
    body = bytes(range(256)) * 5000  # more than one piece
    (tmp_path / "t").write_bytes(body)
    assert digest_of(tmp_path / "t") == hashlib.sha256(body).hexdigest()
    with pytest.raises(DataError, match="readable table"):
        digest_of(tmp_path / "absent")
