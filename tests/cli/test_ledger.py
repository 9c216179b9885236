"""`confide ledger verify` as people call it: what it prints when all is well, and the one line when it is not."""

import pytest

from confide.cli import main
from confide.crypto.keys import SigningKey
from confide.store import open_store
from confide.train.ledger import Ledger
from confide.train.witness import Witness
from train.countersigned import COORDINATOR, KEYS, NODES, ROSTER, Countersigned


@pytest.fixture
def run(tmp_path):
    run = Countersigned(tmp_path / "l.jsonl")
    for number in (1, 2, 3):
        run.round(number, without=("south",) if number == 3 else ())
    return run


def verify(capsys, *arguments):
    """Return exit code, what was printed, and the error line."""
    with pytest.raises(SystemExit) as stop:
        main(["ledger", "verify", *map(str, arguments)])
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


def test_who_signed_and_who_countersigned(run, tmp_path, capsys):
    roster = tmp_path / "roster.toml"
    roster.write_text("".join(f'"{name}" = "{KEYS[name].public.hex()}"\n' for name in reversed(NODES)))
    spoken = " ".join(ROSTER.fingerprint[at : at + 8].upper() for at in range(0, 64, 8))
    for whose in (roster, ROSTER.fingerprint, spoken):
        code, said, _ = verify(
            capsys,
            run.path,
            "--signer",
            COORDINATOR.public.hex(),
            "--roster",
            whose,
            "--head",
            run.witness("north").head,
        )
        assert code == 0
        assert f"8 entries are signed, those of the last run by {COORDINATOR.public.hex()}" in said
        assert "countersigned by north: 4 entries, which vouch for all up to entry 7" in said
        assert "countersigned by south: 3 entries, which vouch for all up to entry 5" in said
        assert f"roster of the last run: {ROSTER.fingerprint}" in said
        assert "whether last lines were cut off" not in said


def test_without_a_node_it_says_what_it_cannot_tell(run, tmp_path, capsys):
    code, said, _ = verify(capsys, run.path)
    assert code == 0
    assert "whether last lines were cut off, or all of it was written anew, needs" in said
    Ledger(tmp_path / "plain.jsonl").append("job", {})
    code, said, _ = verify(capsys, tmp_path / "plain.jsonl")
    assert code == 0
    assert "signed by nobody" in said
    assert "countersigned by nobody" in said


def test_a_nodes_store_tells_a_ledger_that_was_cut_off(run, tmp_path, capsys):
    """The node watches into a real store; then the coordinator's file loses its last lines."""
    where = tmp_path / "node.sqlite"
    store = open_store(where)
    witness = Witness(run.run, key=KEYS["north"], signer=COORDINATOR.public, store=store)
    for line in run.ledger.run_lines():
        witness.see(line)
    store.close()
    assert verify(capsys, run.path, "--head", where)[0] == 0
    lines = run.path.read_bytes().splitlines(keepends=True)
    run.path.write_bytes(b"".join(lines[:6]))
    assert verify(capsys, run.path)[0] == 0
    code, _, said = verify(capsys, run.path, "--head", where)
    assert code == 2
    assert "Expected line 8 of run run-1" in said
    assert "holds 6 of that run: its last lines were cut off" in said


def test_what_cannot_be_a_head_a_key_or_a_roster(run, tmp_path, capsys):
    wrong = tmp_path / "wrong.toml"
    for text in ("north", 'north = "zz"', "north = 3", f'a = "{"00" * 32}"\nb = "{"00" * 32}"', 'a = "00"'):
        wrong.write_text(text)
        code, _, said = verify(capsys, run.path, "--roster", wrong)
        assert code == 2
        assert "confide federation roster" in said
    assert "No such file" in verify(capsys, run.path, "--roster", tmp_path / "absent")[2]
    assert "--signer=zz to be 64 hex digits" in verify(capsys, run.path, "--signer", "zz")[2]
    assert "to be a hash of 64 hex digits, or the store" in verify(capsys, run.path, "--head", tmp_path / "absent")[2]
    assert not (tmp_path / "absent").exists()
    open_store(tmp_path / "empty.sqlite").close()
    assert "it has seen none" in verify(capsys, run.path, "--head", tmp_path / "empty.sqlite")[2]
    assert "was written anew" in verify(capsys, run.path, "--head", "ab" * 32)[2]


def test_another_signer_or_roster_is_named(run, capsys):
    code, _, said = verify(capsys, run.path, "--signer", SigningKey(bytes(31) + b"1").public.hex())
    assert (code, "the given key did not sign" in said) == (2, True)
    code, _, said = verify(capsys, run.path, "--roster", "ab" * 32)
    assert (code, "names the roster" in said) == (2, True)
