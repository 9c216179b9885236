"""`confide node`: what people see and decide, beside a node that is played here."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from confide.cli import main
from confide.cli.console import plain
from confide.data.files import digest_of
from confide.errors import JobError
from confide.train.approval import Approvals
from confide.train.budget import Spent
from confide.train.job import load
from confide.train.offer import job_hash
from train.offers import KEYS, NODES, ROSTER, SCHEMA, job_of, offer_of
from train.test_dry_run import table

JOB = """
[data]
schema = "heart.schema.toml"
nodes = ["north", "south", "west"]
[train]
rounds = 5
[privacy]
delta = 1e-5
expected_records = 150
"""


def runs(capsys, *arguments):
    """Run the command line here and return its exit code and both outputs."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


@pytest.fixture
def member(tmp_path):
    """A member's folder whose node was asked for one job."""
    asks(tmp_path, offer_of())
    return tmp_path


def asks(folder: Path, offer, when="2026-01-01"):
    if not (folder / "table.csv").exists():
        table(folder)
    Approvals(folder).ask(
        offer,
        data=folder / "table.csv",
        when=when,
        spent=Spent(0.75, 1e-5),
        greatest_epsilon=3.0,
        greatest_delta=1e-4,
    )


def verdict(folder, offer=None):
    return Approvals(folder).verdict(offer or offer_of(), digest_of(folder / "table.csv"))


def test_pending_show_approve(member, capsys):
    offer = offer_of()
    code, out, _ = runs(capsys, "node", "pending", "--identity", member)
    assert code == 0
    assert re.fullmatch(rf"{offer.digest[:12]}  asked 2026-01-01  job {offer.job_hash[:12]}  heart\n", out)
    code, out, _ = runs(capsys, "node", "show", offer.job_hash[:8], "--identity", member)
    assert code == 0
    for text in (
        "epsilon=1 at delta=1e-05 per record, against the coordinator with 1 of the others",
        "budget: epsilon=0.75 of 3",
        "left: epsilon=2.25",
        "cohort: 3 nodes, released with 3 or more, hidden among 3",
        f"roster, to compare by telephone: {ROSTER.fingerprint}",
        f"coordinator: {KEYS['server'].hex()}",
        "helper: none",
        "guarantee: update hidden from",
        "columns: age, height, sex",
        "rounds = 5",
        offer.job_hash,
        offer.digest,
        "waiting for a person",
        *(f"  {name}  {KEYS[name].hex()}" for name in NODES),
    ):
        assert text in out
    code, out, _ = runs(capsys, "node", "approve", offer.digest[:8], "--identity", member, "--by", "dr. north")
    assert (code, verdict(member).state) == (0, "approved")
    assert "approved" in out
    assert "dr. north" in out
    assert runs(capsys, "node", "pending", "--identity", member)[1] == ""
    assert "approved by dr. north" in runs(capsys, "node", "show", offer.digest[:8], "--identity", member)[1]


def test_a_helper_has_no_table_to_approve_for(tmp_path, capsys):
    Approvals(tmp_path).ask(
        offer_of(), data=None, when="2026-01-01", spent=Spent(0.0, 0.0), greatest_epsilon=3.0, greatest_delta=1e-4
    )
    assert "table: none" in runs(capsys, "node", "show", offer_of().digest[:8], "--identity", tmp_path)[1]
    code, out, _ = runs(capsys, "node", "approve", offer_of().digest[:8], "--identity", tmp_path, "--by", "dr. west")
    assert (code, "for the table" in out) == (0, False)
    assert Approvals(tmp_path).verdict(offer_of(), "").state == "approved"


def test_changed_data_need_a_new_approval(member, capsys):
    runs(capsys, "node", "approve", offer_of().digest, "--identity", member)
    (member / "table.csv").write_text((member / "table.csv").read_text() + "50,170,f,no\n")
    said = verdict(member)
    assert said.state == "changed"
    command = re.search(r"confide (node approve \w+)", said.reason)[1]
    assert runs(capsys, *command.split(), "--identity", member)[0] == 0
    assert verdict(member).state == "approved"


def test_refuse_with_a_reason(member, capsys):
    code, out, _ = runs(
        capsys, "node", "refuse", offer_of().digest[:8], "--reason", "no vote yet", "--identity", member
    )
    assert (code, out[:7]) == (0, "refused")
    assert verdict(member).reason == "Refused by this node's people: no vote yet"
    assert "refused (no vote yet) by" in runs(capsys, "node", "show", offer_of().digest[:8], "--identity", member)[1]


def test_approve_the_only_one_after_a_question(member, capsys, monkeypatch):
    monkeypatch.setattr("typer.confirm", lambda *_, **__: pytest.fail("asked"))
    assert runs(capsys, "node", "approve", "--yes", "--identity", member)[0] == 0
    assert verdict(member).state == "approved"
    code, _, err = runs(capsys, "node", "approve", "--yes", "--identity", member)
    assert code == 2
    assert "HASH while 0 jobs wait" in err


@pytest.mark.parametrize(("answer", "state"), [("y\n", "approved"), ("n\n", "waiting"), ("", "waiting")])
def test_the_question(member, capsys, monkeypatch, answer, state):
    from io import StringIO

    monkeypatch.setattr("sys.stdin", StringIO(answer))
    code, out, _ = runs(capsys, "node", "approve", "--identity", member)
    assert ROSTER.fingerprint in out  # what is asked about was shown
    assert verdict(member).state == state
    assert (code == 0) == (state == "approved")


def test_two_jobs_need_a_name(member, capsys):
    asks(member, offer_of(job_of(train={"rounds": 6})))
    code, _, err = runs(capsys, "node", "approve", "--yes", "--identity", member)
    assert code == 2
    assert "HASH while 2 jobs wait" in err
    assert verdict(member).state == "waiting"


def test_the_folder_may_be_named_before_the_command(member, capsys):
    assert offer_of().digest[:12] in runs(capsys, "node", "--identity", member, "pending")[1]
    code, _, err = runs(capsys, "node", "--data", "x.csv", "pending", "--identity", member)
    assert code == 2
    assert "only --identity before pending" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("show", "abcdef12"), "a job that was offered"),
        (("show", "ab"), "at least 6 digits"),
        (("approve", "abcdef12"), "a job that was offered"),
        (("refuse", "abcdef12", "--reason", "x"), "a job that was offered"),
    ],
)
def test_mistakes_are_one_line(member, capsys, arguments, text):
    code, out, err = runs(capsys, "node", *arguments, "--identity", member)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert text in err
    code, _, err = runs(capsys, "node", *arguments, "--identity", member / "absent")
    assert code == 2
    assert "member's folder" in err


def test_texts_of_the_coordinator_move_no_cursor(tmp_path, capsys):
    with pytest.raises(JobError, match="printable"):
        job_of(job={"name": "x\x1b[2J\u202eok\x9b1A"})
    schema = SCHEMA + '"a\u202eb" = { type = "number", low = 0, high = 1 }\n'
    asks(tmp_path, offer_of(job_of(), schema=schema))
    for command in (("pending",), ("show", Approvals(tmp_path).all()[0].offer.digest)):
        _, out, _ = runs(capsys, "node", *command, "--identity", tmp_path)
        assert all(letter.isprintable() or letter == "\n" for letter in out)
    assert r"\u202e" in out
    assert plain("a\nb") == r"a\u000ab"


# --- the dry run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "heart.schema.toml").write_text(SCHEMA)
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "policy.toml").write_text("")
    table(tmp_path)
    return tmp_path


def checks(capsys, folder, *more, job=True):
    given = ("--job", folder / "job.toml") if job else ("--schema", folder / "heart.schema.toml")
    return runs(capsys, "node", "check", "--data", folder / "table.csv", *given, *more)


def test_a_good_table_passes(folder, capsys):
    code, out, _ = checks(capsys, folder, "--policy", folder / "policy.toml")
    assert code == 0
    assert "60 records" in out
    assert job_hash(load(folder / "job.toml"), SCHEMA) in out
    assert "allowed by the policy" in out
    assert "one round's local work took" in out
    code, out, _ = checks(capsys, folder, job=False)
    assert code == 0
    assert "classes: no " in out
    assert "job hash" not in out


def test_problems_end_with_2_and_are_all_there(folder, capsys):
    table(folder, sex=["x\x1b"] * 30 + ["f"] * 30, age=["12345.678"] * 60, ill=["no"] * 60)
    (folder / "policy.toml").write_text("[limits]\nmost_rounds = 1\n[allow]\nmodels = ['mlp']\n")
    code, out, err = checks(capsys, folder, "--policy", folder / "policy.toml")
    assert (code, err) == (2, "")
    assert out.count("problem: ") == 2
    assert out.count("refused by the policy: ") == 2
    assert "no record is of the class 'yes'" in out
    assert "x\\u001b" not in out
    assert r"x\u001b" in checks(capsys, folder, "--texts")[1]
    assert "\x1b" not in out
    assert "12345" not in out
    assert "rows 1, 2, 3" in out


def test_json_can_be_passed_on(folder, capsys):
    table(folder, sex=["private text"] * 60, age=["12345.678"] * 60)
    code, out, _ = checks(capsys, folder, "--json")
    found = json.loads(out)
    assert (code, found["passes"]) == (2, False)
    assert found["survey"]["records"] == 60
    assert {one["where"] for one in found["survey"]["findings"] if one["level"] == "problem"} == {"age", "sex"}
    assert found["job"]["hash"] == job_hash(load(folder / "job.toml"), SCHEMA)
    for word in ("private", "12345"):
        assert word not in out
    assert "private text" not in checks(capsys, folder)[1]
    assert "private text" in checks(capsys, folder, "--texts")[1]  # the control: asked for, it is shown
    table(folder)
    code, out, _ = checks(capsys, folder, "--json")
    assert (code, json.loads(out)["passes"]) == (0, True)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--schema", "absent.toml"), "readable schema at absent.toml"),
        (("--schema", "heart.schema.toml", "--policy", "absent.toml"), "readable policy at absent.toml"),
        (("--job", "absent.toml"), "readable job file at absent.toml"),
        ((), "--schema, or a --job"),
    ],
)
def test_mistakes_of_a_check(folder, capsys, monkeypatch, more, text):
    monkeypatch.chdir(folder)
    code, out, err = runs(capsys, "node", "check", "--data", folder / "table.csv", *more)
    assert (code, out) == (2, "")
    assert text in err


def test_a_set_has_no_nodes(folder, capsys):
    (folder / "job.toml").write_text('[data]\nset = "breast-cancer"\n')
    code, out, _ = checks(capsys, folder, "--schema", folder / "heart.schema.toml")
    assert code == 2
    assert "a shipped set has no organisations" in out


def test_the_example_of_the_page_is_a_job():
    page = (Path(__file__).parents[2] / "docs" / "node.md").read_text()
    text = re.search(r"```toml\n(.*?)```", page, re.DOTALL)[1]
    assert tomllib.loads(text)["data"]["nodes"] == list(NODES)


def test_check_reads_the_policy_of_enclaves(tmp_path, capsys):
    (tmp_path / "heart.schema.toml").write_text(SCHEMA)
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "policy.toml").write_text('[attestation]\npolicy = "absent.toml"\n')
    said = (
        "node", "check", "--data", table(tmp_path), "--job", tmp_path / "job.toml", "--policy", tmp_path / "policy.toml"
    )  # fmt: skip
    code, _, err = runs(capsys, *said)
    assert code == 2
    assert "absent.toml" in "".join(err.split())
