"""The format of a line, written out by hand, and everything that is no line."""

import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.cohort.roster import Roster
from confide.crypto.keys import SigningKey
from confide.errors import ProtocolError
from confide.train.ledger_lines import (
    GENESIS,
    check_countersignature,
    countersign,
    read_line,
    roster_field,
    roster_of,
    signatures_of,
    write_line,
)

SEED = bytes(range(32))
KEY = SigningKey(SEED)


def by_hand(previous, event, fields):
    """Return a signed line from the library that lies below, and nothing of ours."""
    entry = {"previous": previous, "event": event} | fields
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()).digest()
    purpose = b"confide ledger line v1"
    message = len(purpose).to_bytes(4, "little") + purpose + (32).to_bytes(4, "little") + digest
    signature = Ed25519PrivateKey.from_private_bytes(SEED).sign(message)
    return (json.dumps(entry | {"hash": digest.hex(), "signature": signature.hex()}, sort_keys=True) + "\n").encode()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"epsilon": 0.1, "members": ["ä", 'q"', "\n"], "nested": {"b": [1, [2.5, None, True]], "a": {}}, "n": 2**70},
        {"tuple": ("a", ("b", 1))},
    ],
)
def test_a_line_by_hand(fields):
    body, digest = write_line(GENESIS, "job", fields, KEY)
    assert body == by_hand(GENESIS, "job", fields)
    line = read_line(body)
    assert (line.event, line.previous, line.hash, line.begins) == ("job", GENESIS, digest, True)
    assert line.says("job", fields)
    assert not line.says("fit", fields)
    assert line.is_signed_by(KEY.public)
    assert not line.is_signed_by(SigningKey(bytes(32)).public)
    unsigned, same = write_line(GENESIS, "job", fields, None)
    assert same == digest  # a signature is not part of what it signs
    assert not read_line(unsigned).is_signed_by(KEY.public)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b'"a": 1', b'"a": 2'),
        lambda line: line.replace(b'"a": 1', b'"a":  1'),  # the same content, written otherwise
        lambda line: line.replace(b'"a": 1', b'"a": 7, "a": 1'),  # readers differ about which one counts
        lambda line: line.replace(b'"a": 1', b'"a": NaN'),
        lambda line: line.replace(b'"a": 1', b'"a": 1, "b": 2'),
        lambda line: line[:-1],
        lambda line: line + b"\n",
        lambda line: b" " + line,
        lambda line: line.replace(b'"signature": "', b'"signature": "zz'),
        lambda line: line.replace(b'"event": "job"', b'"event": ["job"]'),
        lambda line: b"[" * 100_000 + b"\n",
        lambda line: b"[]\n",
        lambda line: b'{"hash": "", "previous": "", "event": ""}\n',
        lambda line: line[:-2] + b" " * (1 << 20) + b"}\n",
    ],
)
def test_what_is_no_line(change):
    body, _ = write_line(GENESIS, "job", {"a": 1}, KEY)
    read_line(body)
    assert change(body) != body
    with pytest.raises(ProtocolError, match="a line of a ledger"):
        read_line(change(body))


def test_a_countersignature_is_for_one_place_of_one_run():
    digest = "ab" * 32
    signature = countersign(KEY, "run", 3, digest)
    check_countersignature(KEY.public, signature, "run", 3, digest)
    for run, number, line in (("run3", 3, digest), ("run", 4, digest), ("run", 3, "ac" * 32)):
        with pytest.raises(ProtocolError):
            check_countersignature(KEY.public, signature, run, number, line)


def test_a_roster_keeps_its_fingerprint():
    roster = Roster((("west", bytes(32)), ("east", bytes(range(32)))))  # not in the order of the alphabet
    line = read_line(write_line(GENESIS, "job", {"roster": roster_field(roster)}, None)[0])
    assert roster_of(line).fingerprint == roster.fingerprint
    assert roster_of(read_line(write_line(GENESIS, "job", {}, None)[0])) is None


@pytest.mark.parametrize(
    "roster", [3, [["a"]], [["a", "zz"]], [["a", "00" * 31]], [["a", "00" * 32]] * 2, [[1, "00" * 32]], {"a": "b"}]
)
def test_what_is_no_roster(roster):
    line = read_line(write_line(GENESIS, "job", {"roster": roster}, None)[0])
    with pytest.raises(ProtocolError):
        roster_of(line)


@pytest.mark.parametrize(
    "fields", [{}, {"line": 3, "by": {}}, {"line": "x", "by": []}, {"line": "x", "by": {"a": "00"}}, {"by": {}}]
)
def test_what_brings_no_signatures(fields):
    with pytest.raises(ProtocolError):
        signatures_of(read_line(write_line(GENESIS, "countersigned", fields, None)[0]))


@pytest.mark.parametrize("signer", ["00", "zz" * 32, "AB" * 32, 3])
def test_what_is_no_signer(signer):
    with pytest.raises(ProtocolError):
        _ = read_line(write_line(GENESIS, "job", {"signer": signer}, None)[0]).signer
