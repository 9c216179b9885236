"""Sealed models: what was sealed comes back, and nothing else does, whatever is done to the file."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from confide.crypto.keys import SigningKey
from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.errors import ConfideError, IntegrityError, ModelError, ProtocolError
from confide.model.artifact import Artifact, decode, decode_statement
from confide.tee.sealed import (
    LARGEST_BYTES,
    FileKey,
    is_sealed,
    open_sealed,
    owner_of,
    read_head,
    read_sealed,
    seal_model,
)
from serve.toy import GRAPH, LABEL, PREPROCESS

OWNER, STRANGER = SigningKey(bytes(range(32))), SigningKey(bytes(range(1, 33)))
BODY = Artifact(GRAPH, PREPROCESS, LABEL).encode(OWNER)
OTHER = Artifact(GRAPH, PREPROCESS, LABEL, metadata={"job": "another"}).encode(STRANGER)
KEY = FileKey.draw(SeededRandomness("sealed"))
SEALED, HEAD = seal_model(BODY, KEY, model="model", trust=OWNER.public)


def packed(**changes) -> bytes:
    """Return a whole sealed file under KEY whose head has been changed: what a dishonest sealer could write."""
    length = int.from_bytes(SEALED[8:12], "little")
    head = msgspec.msgpack.encode(msgspec.msgpack.decode(SEALED[12 : 12 + length]) | changes)
    public = SEALED[:8] + len(head).to_bytes(4, "little") + head
    return public + AESGCM(KEY.secret).encrypt(bytes(12), BODY, public)


def test_what_was_sealed_comes_back():
    assert open_sealed(SEALED, KEY) == BODY
    assert open_sealed(packed(), KEY) == BODY  # the control of the tests below
    assert decode(open_sealed(SEALED, KEY), trust=OWNER.public).label == LABEL


def test_the_file_is_aes_256_gcm_of_the_model_under_its_head():
    """An oracle that knows the format from the page alone."""
    length = int.from_bytes(SEALED[8:12], "little")
    assert SEALED[:8] == b"CONFSEA\0"
    assert AESGCM(KEY.secret).decrypt(bytes(12), SEALED[12 + length :], SEALED[: 12 + length]) == BODY
    head = msgspec.msgpack.decode(SEALED[12 : 12 + length])
    assert set(head) == {"format", "model", "graph_sha256", "key_id", "statement"}
    prefix = b"".join(
        len(part).to_bytes(4, "little") + part for part in (b"confide sealed model v1, id of its key", KEY.secret)
    )
    assert head["key_id"] == hashlib.sha256(prefix).hexdigest()


def test_the_head_says_whose_model_it_is_without_the_key():
    head = read_head(SEALED)
    statement = decode_statement(head.statement, trust=OWNER.public)
    assert (head.model, head.key_id) == ("model", KEY.key_id)
    assert head.graph_sha256 == statement.graph_sha256.hex()
    assert owner_of(head, trust=OWNER.public).label == LABEL
    with pytest.raises(IntegrityError):
        owner_of(head, trust=STRANGER.public)


def test_no_weight_stands_in_the_file():
    windows = [BODY[at : at + 16] for at in range(len(read_head(SEALED).statement), len(BODY) - 16, 8)]
    assert windows
    assert not [window for window in windows if window in SEALED]
    assert KEY.secret not in SEALED


def test_a_key_is_in_no_repr():
    assert KEY.secret.hex() not in repr(KEY)
    assert repr(KEY.secret) not in repr((KEY, HEAD))


def test_every_file_has_a_key_of_its_own():
    first, second = FileKey.draw(SystemRandomness()), FileKey.draw(SystemRandomness())
    assert first.key_id != second.key_id
    with pytest.raises(ProtocolError, match="another"):
        open_sealed(SEALED, first)


def test_every_bit_counts():
    """One bit of every byte of the head, and of every byte behind it."""
    for at in range(len(SEALED)):
        changed = bytearray(SEALED)
        changed[at] ^= 1 << at % 8
        with pytest.raises(ConfideError):
            open_sealed(bytes(changed), KEY)


@pytest.mark.parametrize("size", [0, 7, 8, 11, 12, 40, HEAD.size_bytes, HEAD.size_bytes + 15, len(SEALED) - 1])
def test_a_file_that_is_cut_off_is_refused(size):
    with pytest.raises(ConfideError):
        open_sealed(SEALED[:size], KEY)


def test_what_is_appended_is_refused():
    with pytest.raises(IntegrityError):
        open_sealed(SEALED + b"\0", KEY)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused(body, behind_magic):
    with pytest.raises((ModelError, IntegrityError)):
        read_head((SEALED[:8] if behind_magic else b"") + body)


@given(st.integers(0, HEAD.size_bytes - 1), st.binary(min_size=1, max_size=8))
def test_any_change_of_the_head_is_refused(at, replacement):
    changed = SEALED[:at] + replacement + SEALED[at + len(replacement) :]
    if changed != SEALED:
        with pytest.raises(ConfideError):
            open_sealed(changed, KEY)


def test_a_head_names_the_model_that_its_owner_signed():
    with pytest.raises(IntegrityError, match="owner signed"):
        read_head(packed(graph_sha256="00" * 32))
    with pytest.raises(IntegrityError, match="statement"):
        read_head(packed(statement=b""))
    with pytest.raises(IntegrityError, match="name"):
        read_head(packed(model="../../etc"))
    with pytest.raises(ModelError, match="format"):
        read_head(packed(format=2))


def test_a_head_with_another_owners_statement_does_not_open():
    theirs = seal_model(OTHER, KEY, model="model", trust=STRANGER.public)[1]
    lying = packed(statement=theirs.statement, graph_sha256=theirs.graph_sha256)
    assert read_head(lying).statement == theirs.statement  # the head alone cannot tell
    with pytest.raises(IntegrityError, match="head names"):
        open_sealed(lying, KEY)


def test_the_id_commits_to_the_key():
    """A file whose tag holds under a key that its head does not name: what AES-GCM alone would accept."""
    other = FileKey(bytes(32))
    public = SEALED[: HEAD.size_bytes]
    forged = public + AESGCM(other.secret).encrypt(bytes(12), BODY, public)
    assert AESGCM(other.secret).decrypt(bytes(12), forged[len(public) :], public) == BODY
    with pytest.raises(ProtocolError):
        open_sealed(forged, other)


def test_only_models_are_sealed():
    with pytest.raises(ModelError):
        seal_model(b"no model", KEY, model="model", trust=OWNER.public)
    with pytest.raises(IntegrityError):
        seal_model(BODY[:-1], KEY, model="model", trust=OWNER.public)
    with pytest.raises(IntegrityError):
        seal_model(BODY, KEY, model="model", trust=STRANGER.public)
    with pytest.raises(ModelError, match="letters"):
        seal_model(BODY, KEY, model="a/b", trust=OWNER.public)


def test_a_file_is_read_within_its_bound(tmp_path):
    good, long, plain = tmp_path / "good", tmp_path / "long", tmp_path / "plain"
    good.write_bytes(SEALED)
    assert read_sealed(good) == SEALED
    assert is_sealed(good.read_bytes()[:8])
    plain.write_bytes(BODY)
    with long.open("wb") as file:
        file.write(SEALED[:8])
        file.truncate(LARGEST_BYTES + 1)  # a hole, not a file of that size
    for path, reason in [
        (long, "at most"),
        (plain, "confide seal"),
        (tmp_path / "absent", "no such"),
        (tmp_path, "no such"),
    ]:
        with pytest.raises(ModelError, match=reason):
            read_sealed(path)
