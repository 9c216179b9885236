"""Every change of a ledger is found; the oracle of the chain is written out here by hand."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import IntegrityError, UsageError
from confide.train.ledger import GENESIS, Ledger, verify


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
    assert verify(path, head=head) == (5, head)


def test_a_ledger_is_continued(written):
    path, head = written
    again = Ledger(path)
    assert (again.entries, again.head) == (5, head)
    again.append("saved", {})
    assert verify(path)[0] == 6


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
    assert verify(path)[0] == 4  # the chain itself still holds: that is why the label carries the head
    with pytest.raises(IntegrityError, match="end in"):
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
