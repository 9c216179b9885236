"""What can be done to a signed, countersigned ledger, by whom, and what shows it; each beside what does not show it."""

import json

import pytest

from confide.cohort.roster import Roster
from confide.crypto.keys import SigningKey
from confide.errors import IntegrityError
from confide.train.ledger import Ledger
from confide.train.ledger_check import Countersigned as By
from confide.train.ledger_check import Seen, verify
from confide.train.ledger_lines import GENESIS, countersign, roster_field, write_line
from confide.train.witness import seen
from train.countersigned import COORDINATOR, KEYS, NODES, ROSTER, Countersigned

ROUNDS = 4
STRANGER = SigningKey(b"stranger".ljust(32))


@pytest.fixture
def run(tmp_path):
    """A run whose south was away in round 2; lines: job, c, (round, c) times 4."""
    run = Countersigned(tmp_path / "l.jsonl")
    for number in range(1, ROUNDS + 1):
        run.round(number, without=("south",) if number == 2 else ())
    return run


def rewritten(path, change=lambda fields: fields, *, signer, keep=lambda event: True):
    """Write the whole chain anew, every hash and the author's signatures right."""
    previous, lines, hashes = GENESIS, [], {}
    for text in path.read_text().splitlines():
        entry = json.loads(text)
        digest = entry.pop("hash")
        entry.pop("signature", None)
        entry.pop("previous")
        event = entry.pop("event")
        if not keep(event):
            continue
        if event == "countersigned":
            entry["line"] = hashes[entry["line"]]
        if "signer" in entry:
            entry["signer"] = signer.public.hex()
        line, previous = write_line(previous, event, change(entry), signer)
        hashes[digest] = previous
        lines.append(line)
    path.write_bytes(b"".join(lines))


def fewer_members(fields):
    return fields | {"members": ["north"]} if "members" in fields else fields


def test_it_says_who_signed_what(run):
    found = verify(run.path, signer=COORDINATOR.public, roster=ROSTER, seen=seen(run.stores["south"]))
    assert (found.entries, found.signed, found.signer, found.runs) == (10, 10, COORDINATOR.public, 1)
    assert found.countersigned == {"east": By(5, 9), "north": By(5, 9), "south": By(4, 9)}
    assert found.roster == ROSTER.fingerprint
    assert found.head == run.ledger.head
    assert verify(run.path, roster=ROSTER.fingerprint).entries == 10
    assert found.epsilon == pytest.approx(ROUNDS / 8)


@pytest.mark.parametrize("line", range(10))
@pytest.mark.parametrize("change", ["edit", "remove", "swap", "repeat", "cut"])
def test_every_change_of_a_line_is_found(run, line, change):
    lines = run.path.read_bytes().splitlines(keepends=True)
    if change == "edit":
        place = lines[line].index(b'": ') + 4
        lines[line] = lines[line][:place] + bytes([lines[line][place] ^ 1]) + lines[line][place + 1 :]
    elif change == "remove":
        del lines[line]
    elif change == "swap":
        lines[line], lines[line - 1] = lines[line - 1], lines[line]
    elif change == "repeat":
        lines.insert(line, lines[line])
    else:
        lines[line] = lines[line][:-1]
    run.path.write_bytes(b"".join(lines))
    if (change, line) == ("remove", 9):  # nothing but a head shows this: the last line is nobody's but the author's
        assert verify(run.path).entries == 9
        with pytest.raises(IntegrityError, match="cut off"):
            verify(run.path, head=run.ledger.head)
    else:
        with pytest.raises(IntegrityError, match=r"Line \d+ of the ledger"):
            verify(run.path)


@pytest.mark.parametrize("kept", range(1, 10))
def test_lines_that_were_cut_off_are_found_by_what_a_node_remembers(run, kept):
    lines = run.path.read_bytes().splitlines(keepends=True)[:kept]
    run.path.write_bytes(b"".join(lines))
    assert verify(run.path).entries == kept  # the rest holds
    if kept < 9:  # the tenth brings signatures that no node was told of yet
        with pytest.raises(IntegrityError, match=f"holds {kept} of that run: its last lines were cut off"):
            verify(run.path, seen=seen(run.stores["north"]))
    with pytest.raises(IntegrityError, match="cut off, or it was written anew"):
        verify(run.path, heads=[run.ledger.head])


def test_a_torn_last_line_is_named_so(run):
    whole = run.path.read_bytes()
    for kept in (1, 30):
        run.path.write_bytes(whole[:-kept])
        with pytest.raises(IntegrityError, match=r"Line 10 of the ledger, its last, is torn.*the 9 lines before"):
            verify(run.path)
    run.path.write_bytes(whole[: len(whole) // 2].rstrip(b"\n") + b"\n")  # ends, and is not whole
    with pytest.raises(IntegrityError, match="does not hold"):
        verify(run.path)


def test_somebody_else_cannot_write_it_anew(run):
    """Who has no key must sign with another one: nodes' signatures no longer fit, and without them the key does not."""
    rewritten(run.path, fewer_members, signer=STRANGER)
    with pytest.raises(IntegrityError, match="did not give for that line"):
        verify(run.path)
    rewritten(run.path, signer=STRANGER, keep=lambda event: event != "countersigned")
    assert verify(run.path).countersigned == {}  # by itself it holds, and says that nobody countersigned
    with pytest.raises(IntegrityError, match="Line 1 .* the given key did not sign"):
        verify(run.path, signer=COORDINATOR.public)


def test_its_own_author_can_write_it_anew_and_a_node_tells(run):
    head = run.witness("north").head
    rewritten(run.path, fewer_members, signer=COORDINATOR, keep=lambda event: event != "countersigned")
    found = verify(run.path, signer=COORDINATOR.public, roster=ROSTER)  # what no chain and no signature can show
    assert found.countersigned == {}
    with pytest.raises(IntegrityError, match="cut off, or it was written anew"):
        verify(run.path, heads=[head])
    ledger = Ledger(run.path, signer=COORDINATOR)
    for number in range(5, 12):  # made longer than what the node has seen
        ledger.append("round", {"round": number})
    with pytest.raises(IntegrityError, match="line 9 of run run-1 .* another line stands there: it was written anew"):
        verify(run.path, seen=seen(run.stores["north"]))


def test_signatures_do_not_move_to_other_lines(run):
    """The author rewrites and keeps the old signatures: they are for other hashes."""
    rewritten(run.path, signer=COORDINATOR)  # the same content: every signature still fits, hash for hash
    assert verify(run.path, seen=seen(run.stores["east"])).countersigned["east"] == By(5, 9)
    rewritten(run.path, fewer_members, signer=COORDINATOR)
    with pytest.raises(IntegrityError, match="Line 4 .* signature that east did not give"):
        verify(run.path)


def ledger_of(path, *entries, signer=COORDINATOR):
    previous, body = GENESIS, b""
    for event, fields in entries:
        line, previous = write_line(previous, event, fields(previous) if callable(fields) else fields, signer)
        body += line
    path.write_bytes(body)
    return path


def begin(**more):
    return "job", {"run": "r", "signer": COORDINATOR.public.hex(), "roster": roster_field(ROSTER)} | more


def given_by(name, *, key=None, number=1, run="r"):
    return lambda head: {"line": head, "by": {name: countersign(key or KEYS[name], run, number, head).hex()}}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (given_by("north"), None),
        (given_by("north", key=STRANGER), "north did not give"),
        (given_by("north", number=2), "north did not give"),
        (given_by("north", run="other"), "north did not give"),
        (given_by("nobody", key=STRANGER), "nobody, whom its run's roster does not name"),
        ({"line": "ab" * 32, "by": {}}, "no earlier line of its run"),
        ({"line": 3, "by": {}}, "no earlier line of its run"),
        ({}, "no earlier line of its run"),
    ],
)
def test_who_may_countersign_what(tmp_path, fields, text):
    path = ledger_of(tmp_path / "l.jsonl", begin(), ("countersigned", fields))
    if text is None:
        assert verify(path).countersigned == {"north": By(1, 1)}
    else:
        with pytest.raises(IntegrityError, match=f"Line 2 .* {text}"):
            verify(path)


def test_a_line_of_another_run_is_not_countersigned_here(tmp_path):
    first = []

    def remember(head):
        first.append(head)
        return {"round": 1}

    path = ledger_of(
        tmp_path / "l.jsonl", begin(), ("round", remember), begin(run="s"),
        ("countersigned", lambda head: given_by("north")(first[0])),
    )  # fmt: skip
    with pytest.raises(IntegrityError, match=r"Line 4 .* no earlier line of its run"):
        verify(path)


def test_signatures_are_all_or_none(tmp_path):
    path = tmp_path / "l.jsonl"
    line, head = write_line(GENESIS, *begin(), COORDINATOR)
    path.write_bytes(line + write_line(head, "round", {}, None)[0])
    with pytest.raises(IntegrityError, match="Line 2 .* does not carry the signature of its run's signer"):
        verify(path)
    path.write_bytes(line + write_line(head, "round", {}, STRANGER)[0])
    with pytest.raises(IntegrityError, match="Line 2 .* somebody else wrote it"):
        verify(path)
    ledger_of(path, ("job", {"run": "r"}))
    with pytest.raises(IntegrityError, match="Line 1 .* its run names no signer"):
        verify(path)
    for more in ({"signer": "x"}, {"roster": 3}):
        ledger_of(path, begin(**more))
        with pytest.raises(IntegrityError, match="Line 1 .* no signer or roster that can be"):
            verify(path)


def test_the_roster_that_people_compared(run):
    other = Roster((*ROSTER.members[:2], ("south", STRANGER.public)))
    with pytest.raises(IntegrityError, match="identities that the given roster does not know: south"):
        verify(run.path, roster=other)
    with pytest.raises(IntegrityError, match=f"names the roster {ROSTER.fingerprint}, expected {other.fingerprint}"):
        verify(run.path, roster=other.fingerprint)
    more = Roster((*ROSTER.members, ("west", STRANGER.public)))
    assert verify(run.path, roster=more).runs == 1  # a federation grows; a run keeps to those that it began with


def test_several_runs_in_one_file(run):
    later = Countersigned(run.path, run="run-2")
    later.round(1)
    found = verify(run.path, head=run.ledger.head, seen=[*seen(run.stores["north"]), *seen(later.stores["north"])])
    assert (found.runs, found.later, found.countersigned["north"]) == (2, 4, By(7, 13))
    with pytest.raises(IntegrityError, match="holds 0 of that run"):
        verify(run.path, seen=[Seen("run-3", 1, "ab" * 32)])
    assert NODES == ("north", "east", "south")
