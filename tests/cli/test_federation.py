"""`confide federation` as three hospitals meet it: over a connection, by files, and with every mistake as one line."""

import tomllib

import pytest

from confide.cli import main
from confide.cohort.roster import Roster
from confide.net.membership import own
from confide.net.registrar import Registrar
from net.coordinators import answering, free_port


def run(capsys, *arguments):
    """Run a verb here, expect success, and return standard output and standard error."""
    with pytest.raises(SystemExit) as stop:
        main(["federation", *map(str, arguments)])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    return captured.out, captured.err


def fails(capsys, *arguments):
    """Run a verb here, expect exit code 2, and return its one line."""
    with pytest.raises(SystemExit) as stop:
        main(["federation", *map(str, arguments)])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    """A working folder with a federation `fed` in it."""
    monkeypatch.chdir(tmp_path)
    run(capsys, "init", "fed", "--address", "localhost:8443", "--name", "Three hospitals")
    return tmp_path


def fingerprint(err):
    """The authority's fingerprint, as printed for the telephone."""
    (line,) = [line for line in err.splitlines() if line.startswith("the authority")]
    return line.partition(": ")[2]


def test_three_hospitals_over_a_connection(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    listener = free_port()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    _, err = run(capsys, "init", "fed", "--address", address, "--also", "localhost")
    authority = fingerprint(err)
    with answering(tmp_path / "fed", listener, Registrar(tmp_path / "fed").reply):
        for name in ("north", "south", "east"):
            out, err = run(capsys, "invite", name, "--federation", "fed", "--out", f"{name}.invitation")
            assert f"confide federation join {name}.invitation" in err
            assert authority in err
            out, err = run(capsys, "join", f"{name}.invitation", "--into", name)
            assert f"{name}: node of" in out
            assert fingerprint(err) == authority
        out, _ = run(capsys, "renew", "north")
        assert "certificate until" in out
        run(capsys, "rotate", "fed")
        assert "not yet: north, south, east" in fails(capsys, "rotate", "fed", "--finish")
        for name in ("north", "south"):
            run(capsys, "renew", name)
        run(capsys, "revoke", "east", "--federation", "fed")
        assert "east was revoked" in fails(capsys, "renew", "east")
        _, err = run(capsys, "rotate", "fed", "--finish")
        assert fingerprint(err) != authority
    out, err = run(capsys, "roster", "fed")
    lines = tomllib.loads(out)
    assert list(lines) == ["north", "south"]
    for name in lines:  # each reads its own line aloud
        line, _ = run(capsys, "roster", name)
        assert line == f'"{name}" = "{lines[name]}"\n'
    roster = Roster(tuple((name, bytes.fromhex(key)) for name, key in lines.items()))
    assert roster.fingerprint in err.replace(" ", "")
    out, err = run(capsys, "roster", "fed", "--node", "south", "--node", "north")
    assert list(tomllib.loads(out)) == ["south", "north"]
    assert roster.fingerprint not in err.replace(" ", "")
    out, _ = run(capsys, "list", "fed")
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["east", "node", "REVOKED"],
        ["north", "node", "until"],
        ["south", "node", "until"],
    ]


def test_join_and_renew_by_files(folder, capsys):
    out, _ = run(capsys, "invite", "ana", "--role", "analyst", "--federation", "fed")
    (folder / "invitation").write_text(out)
    assert tomllib.loads(out)["role"] == "analyst"
    secret = tomllib.loads(out)["secret"]
    out, _ = run(capsys, "list", "fed")
    assert out.split()[:3] == ["ana", "analyst", "invited"]
    for verb, target in ((("join", "invitation", "--into", "ana"), ("join", "--into", "ana")), (("renew", "ana"),) * 2):
        run(capsys, *verb, "--request", "request")
        assert secret not in (folder / "request").read_text()
        run(capsys, "sign", "request", "--out", "certificate", "--federation", "fed")
        out, _ = run(capsys, *target, "--certificate", "certificate")
        assert "ana: analyst of 'Three hospitals'" in out
    Registrar(folder / "fed").admit(own(folder / "ana"))


def test_the_invitation_is_its_owners_alone(folder, capsys):
    run(capsys, "invite", "north", "--federation", "fed", "--out", "north.invitation")
    assert (folder / "north.invitation").stat().st_mode & 0o777 == 0o600


def test_a_coordinator_renews_its_own(folder, capsys):
    before = (folder / "fed" / "tls.pem").read_bytes()
    run(capsys, "renew", "fed")
    assert (folder / "fed" / "tls.pem").read_bytes() != before
    assert "a coordinator renews its own" in fails(capsys, "renew", "fed", "--request", "r")


def test_an_invitation_is_withdrawn(folder, capsys):
    run(capsys, "invite", "north", "--federation", "fed")
    out, _ = run(capsys, "revoke", "north", "--federation", "fed")
    assert out == "withdrew the invitation of north\n"


MISTAKES = [
    (("init", "fed", "--address", "a:1"), "fed is there already"),
    (("init", "new", "--address", "a"), "host:port"),
    (("init", "new/er", "--address", "a:1"), "the folder above"),
    (("init", "new", "--address", "a:1", "--also", "a b"), "DNS names"),
    (("invite", "server", "--federation", "fed"), "is not 'server'"),
    (("invite", "x", "--federation", "fed", "--role", "nodes"), 'did you mean "node"'),
    (("invite", "x", "--federation", "fed", "--valid-hours", "0"), "valid_hours=0 above 0"),
    (("invite", "x", "--federation", "fed", "--out", "no/where"), "no such folder"),
    (("invite", "x", "--federation", "absent"), "confide federation init makes"),
    (("join",), "Expected INVITATION"),
    (("join", "absent"), "No such file"),
    (("join", "fed/federation.toml"), "Expected fed/federation.toml to hold federation, coordinator"),
    (("join", "a", "--certificate", "b"), "--certificate without INVITATION"),
    (("join", "--into", "new", "--certificate", "fed/tls.pem"), "whole CONFIDE CERTIFICATE"),
    (("sign", "fed/tls.pem", "--out", "x", "--federation", "fed"), "whole CONFIDE REQUEST"),
    (("renew", "absent"), "No such file"),
    (("revoke", "nobody", "--federation", "fed"), "'nobody' is neither"),
    (("rotate", "fed", "--finish"), "rotate first"),
    (("list", "absent"), "No such file"),
    (("roster", "fed", "--node", "x"), "not x; see federation list"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES, ids=lambda value: " ".join(value[:2]) if value else "")
def test_every_mistake_is_one_line(folder, capsys, arguments, says):
    before = sorted(path.name for path in folder.rglob("*"))
    assert says in fails(capsys, *arguments)
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_nobody_answers(folder, capsys):
    (folder / "i").write_text(run(capsys, "invite", "north", "--federation", "fed")[0].replace(":8443", ":1"))
    assert "Connection refused" in fails(capsys, "join", "i", "--into", "north")
    run(capsys, "join", "i", "--into", "north", "--request", "r")  # goes on by files
    run(capsys, "sign", "r", "--out", "c", "--federation", "fed")
    run(capsys, "join", "--into", "north", "--certificate", "c")
