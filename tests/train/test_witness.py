"""A node signs one line at each place, whatever the coordinator tells it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.crypto.keys import SigningKey, verify
from confide.errors import ProtocolError
from confide.train.ledger import Ledger
from confide.train.ledger_lines import countersign, roster_field, write_line
from confide.train.witness import Witness, seen
from confide.wire import MemoryStore
from train.countersigned import COORDINATOR, KEYS, NODES, ROSTER, Countersigned


@pytest.fixture
def one():
    """A coordinator's ledger with 4 lines, and the lines."""
    ledger = Ledger(signer=COORDINATOR)
    ledger.append("job", {"run": "r", "roster": roster_field(ROSTER)})
    for number in (1, 2, 3):
        ledger.append("round", {"round": number, "members": list(NODES), "epsilon": number / 8})
    return list(ledger.lines_after())


def witness(store=None, run="r", name="north"):
    return Witness(run, key=KEYS[name], signer=COORDINATOR.public, store=MemoryStore() if store is None else store)


def after(lines, store=None):
    found = witness(store)
    for line in lines:
        found.see(line)
    return found


def other_line(line, **fields):
    """Return a line at the same place that the coordinator signs as well."""
    entry = json.loads(line)
    kept = {key: value for key, value in entry.items() if key not in ("hash", "signature", "previous", "event")}
    return write_line(entry["previous"], entry["event"], kept | fields, COORDINATOR)[0]


def test_what_is_signed_by_hand(one):
    """The bytes of a countersignature, written out: purpose, run, number, hash, each with its length before it."""
    parts = (b"confide ledger countersignature v1", b"r", b"3", bytes.fromhex(json.loads(one[2])["hash"]))
    message = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    signature = after(one[:2]).see(one[2])
    verify(KEYS["north"].public, message, signature)
    with pytest.raises(ProtocolError):
        verify(KEYS["east"].public, message, signature)


def test_a_node_follows_also_over_restarts(one):
    store = MemoryStore()
    for number, line in enumerate(one, start=1):
        found = witness(store)
        signature = found.see(line)
        assert signature == countersign(KEYS["north"], "r", number, json.loads(line)["hash"])
        assert (found.number, found.head) == (number, json.loads(line)["hash"])
        assert witness(store).see(line) == signature  # the answer was lost: the same once more
    assert [(s.run, s.number, s.head) for s in seen(store)] == [("r", 4, json.loads(one[3])["hash"])]


def test_a_head_is_durable_before_the_signature_leaves(one):
    class Full(MemoryStore):
        def commit(self, changes):
            raise OSError(28, "No space left on device")

    store = Full()
    with pytest.raises(OSError, match="No space"):
        witness(store).see(one[0])
    assert witness(store).head is None


@pytest.mark.parametrize("known", [1, 2, 3, 4])
def test_forks_gaps_and_replays_are_refused(one, known):
    store = MemoryStore()
    before = after(one[:known], store).head
    for place in range(known):
        with pytest.raises(ProtocolError, match="forked"):
            witness(store).see(other_line(one[place], epsilon=9.0))
    for place in range(known - 1):
        with pytest.raises(ProtocolError, match=f"line {place + 1} was replayed"):
            witness(store).see(one[place])
    for line in one[known + 1 :]:
        with pytest.raises(ProtocolError, match=f"Expected the line after {known} .* missing; send what follows"):
            witness(store).see(line)
    assert witness(store).head == before
    for line in one[known:]:  # and it goes on where it was
        witness(store).see(line)
    assert witness(store).number == 4


def test_a_missed_stretch_is_sent_again(tmp_path):
    run = Countersigned(tmp_path / "l.jsonl")
    for number in range(1, 7):
        run.round(number, without=("south",) if 1 < number < 6 else ())
    heads = {name: run.witness(name).head for name in NODES}
    assert len(set(heads.values())) == 1
    assert run.witness("south").number == run.witness("north").number


def test_a_node_that_joins_late_reads_the_run_from_its_first_line(one):
    with pytest.raises(ProtocolError, match="the first line of run r, lines before this one are missing"):
        witness().see(one[2])
    assert after(one).number == 4


def test_the_first_line_must_name_run_and_key(one):
    with pytest.raises(ProtocolError, match="names run other"):
        witness(run="other").see(one[0])
    stranger = SigningKey(b"stranger".ljust(32))
    theirs, _ = write_line("0" * 64, "job", {"run": "r", "signer": stranger.public.hex()}, stranger)
    with pytest.raises(ProtocolError, match="coordinator's signature"):
        witness().see(theirs)
    stolen, _ = write_line("0" * 64, "job", {"run": "r", "signer": stranger.public.hex()}, COORDINATOR)
    with pytest.raises(ProtocolError, match="the coordinator's key"):
        witness().see(stolen)


def test_another_run_does_not_continue_this_one(one):
    found = after(one)
    line, _ = write_line(
        found.head, "job", {"run": "next", "signer": COORDINATOR.public.hex()}, COORDINATOR
    )  # fmt: skip
    with pytest.raises(ProtocolError, match="another run begins"):
        found.see(line)
    again, _ = write_line(found.head, "job", {"run": "r", "signer": COORDINATOR.public.hex()}, COORDINATOR)
    with pytest.raises(ProtocolError, match="forked"):
        found.see(again)
    store = MemoryStore()
    after(one, store)
    witness(store, run="next").see(line)  # the node keeps both
    assert {s.run: s.number for s in seen(store)} == {"r": 4, "next": 1}


@pytest.mark.parametrize(
    "field", [{"members": ["north"]}, {"epsilon": 0.2}, {"round": 2}, {"event": "release"}, {"model": None}]
)
def test_a_line_that_says_something_else_is_not_signed(one, field):
    found = after(one[:1])
    right = {"event": "round", "round": 1, "members": list(NODES), "epsilon": 0.125}
    with pytest.raises(ProtocolError, match=f"says the same {next(iter(field))}"):
        found.see(one[1], right | field)
    assert found.number == 1
    assert found.see(one[1], right)


def test_lines_that_bring_signatures_are_followed_and_not_signed():
    run = Countersigned(None)
    found = after_run(run)
    assert found[0] is not None
    assert found[1] is None


def after_run(run):
    store = MemoryStore()
    mine = Witness(run.run, key=KEYS["north"], signer=COORDINATOR.public, store=store)
    return [mine.see(line) for line in run.ledger.run_lines()]


@settings(max_examples=80, deadline=None)
@given(place=st.integers(0, 600), byte=st.integers(0, 255), cut=st.booleans())
def test_no_changed_byte_is_signed(place, byte, cut):
    ledger = Ledger(signer=COORDINATOR)
    ledger.append("job", {"run": "r"})
    line = next(ledger.lines_after())
    place %= len(line)
    changed = line[:place] if cut else line[:place] + bytes([byte]) + line[place + 1 :]
    if changed != line:
        with pytest.raises(ProtocolError):
            witness().see(changed)
    assert witness().see(line)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_hostile_bytes_give_one_error(data):
    with pytest.raises(ProtocolError):
        witness().see(data)
    with pytest.raises(ProtocolError):
        witness().see(data + b"\n")
