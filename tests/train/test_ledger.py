"""Every change of a ledger is found; the oracle of the chain is written out here by hand."""

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.cohort.roster import Roster
from confide.crypto.keys import SigningKey
from confide.errors import IntegrityError, UsageError
from confide.train.ledger import GENESIS, Ledger, verify
from confide.train.ledger_lines import roster_field


@pytest.fixture
def written(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for number in range(5):
        ledger.append("round", {"round": number, "members": ["a", "b"], "epsilon": None, "bytes_up": {"a": 1.0}})
    return tmp_path / "ledger.jsonl", ledger.head


def test_the_chain_by_hand(written):
    path, head = written
    previous = GENESIS
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        stated = entry.pop("hash")
        assert entry["previous"] == previous
        previous = hashlib.sha256(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        assert previous == stated
    assert previous == head
    found = verify(path, head=head)
    assert (found.entries, found.head, found.later) == (5, head, 0)


def test_a_ledger_is_continued(written):
    path, head = written
    again = Ledger(path)
    assert (again.entries, again.head) == (5, head)
    again.append("saved", {})
    assert verify(path).entries == 6
    assert verify(path, head=head).later == 1  # an earlier model's line is still there


@pytest.mark.parametrize("line", range(5))
@pytest.mark.parametrize("change", ["edit", "remove", "swap", "repeat", "garbage", "cut"])
def test_every_change_is_found(written, line, change):
    path, head = written
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "edit":
        lines[line] = lines[line].replace(b'"members": ["a", "b"]', b'"members": ["a", "c"]')
    elif change == "remove":
        del lines[line]
    elif change == "swap":
        lines[line], lines[line - 1] = lines[line - 1], lines[line]
    elif change == "repeat":
        lines.insert(line, lines[line])
    elif change == "garbage":
        lines[line] = b'{"hash": 3, "previous"\n'
    else:
        lines[line] = lines[line][:-1]
    path.write_bytes(b"".join(lines))
    with pytest.raises(IntegrityError):
        verify(path, head=head)


def test_a_cut_tail_is_found_by_the_head_alone(written):
    path, head = written
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert verify(path).entries == 4  # the chain itself still holds: that is why the label carries the head
    with pytest.raises(IntegrityError, match="cut off"):
        verify(path, head=head)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300))
def test_hostile_bytes_give_one_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("ledger") / "x"
    path.write_bytes(data)
    if data:
        with pytest.raises(IntegrityError):
            verify(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        verify(tmp_path / "absent.jsonl")


def test_two_writers_cannot_tear_the_chain(written):
    path, _ = written
    one, two = Ledger(path), Ledger(path)
    one.append("round", {"round": 1})
    with pytest.raises(UsageError, match="no other run"):
        two.append("round", {"round": 1})
    assert verify(path).entries == 6


def test_a_line_that_was_never_finished_is_dropped_by_the_next_run(written):
    path, head = written
    with path.open("ab") as file:
        file.write(b'{"event": "round", "prev')
    with pytest.raises(IntegrityError, match="Line 6 of the ledger, its last, is torn.*the 5 lines before it hold"):
        verify(path)
    again = Ledger(path)
    assert (again.entries, again.head) == (5, head)
    again.append("round", {})
    assert verify(path).entries == 6


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """In a process of its own whose files may not grow beyond 1,000 bytes."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from confide.errors import StoreError\n"
        "from confide.train.ledger import Ledger\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "try:\n"
        "    while True: ledger.append('round', {'round': ledger.entries})\n"
        "except StoreError as error: print(ledger.entries, error)\n"
    )
    path = tmp_path / "l.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert "add a line to the ledger" in done.stdout, done.stderr
    assert verify(path).entries == int(done.stdout.split()[0]) > 0
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("signed", [False, True])
def test_a_writer_that_is_killed_leaves_whole_lines_and_its_successor_goes_on(tmp_path, signed):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from confide.crypto.keys import SigningKey\n"
        "from confide.train.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), signer=SigningKey(bytes(32)) if sys.argv[2] else None)\n"
        "ledger.append('job', {'run': 'r'})\n"
        "while True: ledger.append('round', {'round': ledger.entries}); print(ledger.head, flush=True)\n"
    )
    path, acknowledged = tmp_path / "l.jsonl", GENESIS
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path), "yes" if signed else ""], stdout=subprocess.PIPE, text=True
        ) as writer:
            for _ in range(20):
                acknowledged = writer.stdout.readline().strip()
            writer.kill()
            rest = writer.stdout.read().splitlines()
        acknowledged = next((line for line in reversed(rest) if len(line) == 64), acknowledged)
        ledger = Ledger(path, signer=SigningKey(bytes(32)) if signed else None)  # drops a torn line, if there is one
        found = verify(path, head=acknowledged)  # what was acknowledged is there
        assert found.later <= 1
        assert found.signed == (found.entries if signed else 0)
        assert ledger.head == found.head
    assert found.entries >= 63


def test_what_runs_spent_adds_up(tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl")
    for _ in range(2):
        ledger.append("job", {})
        for epsilon in (0.4, 0.7, 1.0):
            ledger.append("release", {"epsilon": epsilon})
    ledger.append("job", {})
    ledger.append("release", {"epsilon": 0.25})  # a run that died after its first release
    found = verify(tmp_path / "l.jsonl")
    assert (found.runs, found.epsilon) == (3, pytest.approx(2.25))
    assert Ledger(tmp_path / "l.jsonl").spent == pytest.approx(2.25)


def test_a_model_does_not_hide_what_failed_rounds_spent_after_it(tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl")
    ledger.append("job", {})
    ledger.append("release", {"round": 1, "epsilon": 0.5})
    ledger.append("release", {"round": 2, "epsilon": 0.9})  # it never ended
    ledger.append("model", {"epsilon": 0.5})
    assert verify(tmp_path / "l.jsonl").epsilon == 0.9


@pytest.mark.parametrize("signer", [None, SigningKey(bytes(32))])
@pytest.mark.parametrize("on_disk", [True, False])
def test_the_last_line_is_not_added_again(tmp_path, signer, on_disk):
    """A coordinator that was killed after an append does the same append again."""
    path = tmp_path / "l.jsonl" if on_disk else None
    ledger = Ledger(path, signer=signer)
    roster = roster_field(Roster((("a", bytes(32)), ("b", bytes(range(32))))))
    fields = {"run": "r", "parties": ["a", "b"], "roster": roster}
    first = ledger.append("job", fields)
    if on_disk:
        ledger = Ledger(path, signer=signer)
    assert ledger.append("job", fields) == first
    assert (ledger.entries, ledger.head) == (1, first)
    assert ledger.append("job", fields | {"run": "other"}) != first
    assert ledger.append("job", fields) != first  # no longer the last
    less = {key: value for key, value in fields.items() if key != "parties"}
    assert ledger.append("job", less) == ledger.head
    assert ledger.entries == 4


@pytest.mark.parametrize("on_disk", [True, False])
def test_lines_are_found_and_sent_again(tmp_path, on_disk):
    ledger = Ledger(tmp_path / "l.jsonl" if on_disk else None)
    heads = [ledger.append("job", {"run": "one"}), ledger.append("round", {"round": 1, "epsilon": 0.5})]
    heads.append(ledger.append("job", {"run": "two"}))
    heads += [ledger.append("round", {"round": number, "members": ["a"]}) for number in (1, 2)]
    sent = [json.loads(line)["hash"] for line in ledger.lines_after()]
    assert sent == heads == [json.loads(line)["hash"] for line in ledger.lines_after(GENESIS)]
    assert [json.loads(line)["hash"] for line in ledger.lines_after(heads[2])] == heads[3:]
    assert not list(ledger.lines_after(heads[-1]))
    assert [json.loads(line)["hash"] for line in ledger.run_lines()] == heads[2:]
    if on_disk:
        assert b"".join(ledger.lines_after()) == (tmp_path / "l.jsonl").read_bytes()
    with pytest.raises(UsageError, match="it keeps another one"):
        list(ledger.lines_after("ab" * 32))
    assert ledger.find("round", round=2).hash == heads[4]
    assert ledger.find("round").hash == heads[4]
    assert ledger.find("round", round=1, members=["a"]).entry["members"] == ["a"]
    assert ledger.find("job", run="two").hash == heads[2]
    assert ledger.find("job", run="one") is None  # of an earlier run
    assert ledger.find("round", epsilon=0.5) is None
    assert ledger.find("round", absent=None) is None


def test_a_run_is_gone_on_with_by_its_signer_alone(tmp_path):
    path, mine = tmp_path / "l.jsonl", SigningKey(bytes(32))
    with pytest.raises(IntegrityError, match="the signer who began this run"):
        Ledger(path, signer=mine).append("round", {"round": 1})
    assert not path.exists()
    Ledger(path, signer=mine).append("job", {"run": "r"})
    for other in (None, SigningKey(bytes(31) + b"1")):
        ledger = Ledger(path, signer=other)
        with pytest.raises(IntegrityError, match="the signer who began this run"):
            ledger.append("round", {"round": 1})
    Ledger(path, signer=mine).append("round", {"round": 1})
    Ledger(path).append("job", {"run": "unsigned"})
    found = verify(path)
    assert (found.entries, found.signed, found.signer, found.runs) == (3, 2, None, 2)


def test_a_line_that_cannot_be_written_is_not(tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl")
    for fields in ({"epsilon": float("nan")}, {"hash": "x"}, {"signature": "x"}):
        with pytest.raises(ValueError, match="JSON|called hash or signature"):
            ledger.append("round", fields)
    assert ledger.entries == 0
    assert not (tmp_path / "l.jsonl").exists()
