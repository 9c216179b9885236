"""`confide budget` as people call it: set once, show every run, refuse what does not fit in one line."""

import json

import pytest

from confide.cli import main

JOB = """
[data]
set = "breast-cancer"
budget = "budget.db"
[train]
rounds = 2
[privacy]
epsilon = 0.6
expected_records = 455
"""


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


@pytest.fixture
def job(tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


def test_set_train_show_and_the_refusal(job, capsys):
    code, _, err = call(capsys, "train", job)
    assert (code, "confide budget set" in err) == (2, True)
    code, out, _ = call(capsys, "budget", "set", job, "--epsilon", "1", "--delta", "0.01")
    assert code == 0
    assert "data set breast-cancer" in out
    assert "left: epsilon=1" in out
    assert call(capsys, "train", job)[0] == 0
    code, _, err = call(capsys, "train", job)
    assert code == 2
    assert "has epsilon=0.4" in err
    code, out, _ = call(capsys, "budget", "show", job)
    assert code == 0
    for said in ("limit: epsilon=1", "confide", "together: epsilon=0.6", "by mu=", "left: epsilon=0.4"):
        assert said in out
    code, out, _ = call(capsys, "budget", "show", job.parent / "budget.db", "--json")
    (found,) = json.loads(out)
    assert found["spent"]["epsilon"] == 0.6
    assert found["runs"][0]["epsilon"] == 0.6
    assert found["left"]["epsilon"] == pytest.approx(0.4)


def test_a_limit_rises_only_aloud(job, capsys):
    call(capsys, "budget", "set", job, "--epsilon", "1", "--delta", "0.01")
    code, _, err = call(capsys, "budget", "set", job, "--epsilon", "2", "--delta", "0.01")
    assert (code, "--raise" in err) == (2, True)
    code, out, _ = call(capsys, "budget", "set", job, "--epsilon", "2", "--delta", "0.01", "--raise")
    assert code == 0
    assert "earlier limit: epsilon=1" in out


def test_what_cannot_be_shown_or_set_is_one_line(job, tmp_path, capsys):
    job.write_text(JOB.replace('budget = "budget.db"', ""))
    for arguments in (
        ("show", job),
        ("show", tmp_path / "absent.db"),
        ("set", tmp_path / "new.db", "--epsilon", "1", "--delta", "0.01"),
        ("set", tmp_path / "new.db", "--epsilon", "1", "--delta", "0.01", "--data-set", "w", "--rule", "best"),
        ("set", tmp_path / "new.db", "--epsilon", "99", "--delta", "0.01", "--data-set", "w"),
    ):
        code, _, err = call(capsys, "budget", *arguments)
        assert code == 2
        assert err.startswith("confide: Expected")
        assert err.count("\n") == 1


def test_help_teaches(capsys):
    code, out, _ = call(capsys, "budget", "--help")
    assert code == 0
    assert "never comes back" in out
    for verb in ("set", "show"):
        code, out, _ = call(capsys, "budget", verb, "--help")
        assert (code, "confide budget" in out) == (0, True)


@pytest.mark.parametrize("given", [("--epsilon", "nan"), ("--data-set", "../x"), ("--unit", "a\x1b[31mb")])
def test_what_cannot_be_leaves_no_limit(tmp_path, capsys, given):
    options = {"--epsilon": "1", "--delta": "1e-5", "--data-set": "ward"} | dict([given])
    place = tmp_path / "new.db"
    code, _, err = call(capsys, "budget", "set", place, *(part for pair in options.items() for part in pair))
    assert code == 2
    assert "\x1b" not in err
    assert not place.exists() or given[0] == "--unit"


def test_links_in_a_circle_are_a_clear_error(tmp_path, capsys):
    place = tmp_path / "loop.db"
    place.symlink_to(place)
    code, _, err = call(capsys, "budget", "set", place, "--data-set", "ward", "--epsilon", "1", "--delta", "1e-5")
    assert code == 2
    assert "Expected a path" in err


def test_a_budget_under_two_names_is_refused(job, capsys):
    assert call(capsys, "budget", "set", job, "--epsilon", "1", "--delta", "0.01")[0] == 0
    (job.parent / "other.db").hardlink_to(job.parent / "budget.db")
    code, _, err = call(capsys, "train", job)
    assert code == 2
    assert "hard links" in err
