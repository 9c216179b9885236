"""Envelopes: HMAC from the standard library as the oracle; strangers, mix-ups and replays are refused."""

import hashlib
import hmac

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import ConfideError, ProtocolError
from confide.he import Homomorphic
from confide.he.enrolment import Dates, Enrolment, Known
from confide.he.envelope import Channel, SealedQuery, SealedReply
from confide.he.seal import Context, Evaluation, PublicKeys
from confide.wire import Message, alter, decode, encode
from he.oracle import Pair, corners, logistic, mlp, ready

KEY, KIT, KEY_ID = bytes(range(32)), b"kit", "ab" * 32
CHANNEL = Channel(KEY, kit=KIT, key_id=KEY_ID)


def hkdf(secret: bytes, info: bytes) -> bytes:
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\1", hashlib.sha256).digest()


def labelled(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def test_tags_are_hmacs_over_what_the_page_says():
    kit, body, reply = hashlib.sha256(KIT).digest(), b"rows", b"answer"
    query = CHANNEL.query(KEY_ID, 7, body, bytes(16))
    key = hkdf(KEY, labelled(b"confide he query v1", kit, KEY_ID.encode()))
    content = bytes(16) + (7).to_bytes(8, "little") + hashlib.sha256(body).digest()
    assert query.tag == hmac.new(key, content, hashlib.sha256).digest()
    key = hkdf(KEY, labelled(b"confide he reply v1", kit, KEY_ID.encode()))
    assert (
        CHANNEL.reply(query, reply).tag
        == hmac.new(key, query.tag + hashlib.sha256(reply).digest(), hashlib.sha256).digest()
    )


@given(st.binary(max_size=80), st.integers(1, 1 << 31), st.binary(min_size=16, max_size=16), st.binary(max_size=80))
def test_what_was_sealed_opens_on_the_other_side(body, rows, nonce, answer):
    query = CHANNEL.query(KEY_ID, rows, body, nonce)
    assert CHANNEL.opened(query) == body
    assert CHANNEL.answer(query, CHANNEL.reply(query, answer)) == answer


QUERY = CHANNEL.query(KEY_ID, 3, b"body", b"n" * 16)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 4},
        {"rows": 0},
        {"rows": -3},
        {"rows": 3 + (1 << 32)},
        {"nonce": b"m" * 16},
        {"nonce": b"n" * 15},
        {"nonce": b"n" * 16 + b"\3"},
        {"body": b"bodY"},
        {"body": b""},
        {"tag": bytes(32)},
        {"tag": b""},
        {"tag": QUERY.tag[:16]},
    ],
    ids=str,
)
def test_a_changed_question_is_refused(change):
    with pytest.raises(ProtocolError):
        CHANNEL.opened(msgspec.structs.replace(QUERY, **change))


@pytest.mark.parametrize(
    "other",
    [
        Channel(KEY[::-1], kit=KIT, key_id=KEY_ID),
        Channel(KEY, kit=b"another kit", key_id=KEY_ID),
        Channel(KEY, kit=KIT, key_id="cd" * 32),
    ],
    ids=["key", "kit", "key id"],
)
def test_channels_of_other_keys_kits_or_ids_do_not_meet(other):
    with pytest.raises(ProtocolError):
        other.opened(QUERY)
    with pytest.raises(ProtocolError):
        CHANNEL.answer(QUERY, other.reply(QUERY, b"x"))


def test_a_reply_belongs_to_one_question():
    reply = CHANNEL.reply(QUERY, b"x")
    again = CHANNEL.query(KEY_ID, 3, b"body", b"o" * 16)
    for query, sealed in (
        (again, reply),
        (QUERY, msgspec.structs.replace(reply, body=b"y")),
        (QUERY, msgspec.structs.replace(reply, tag=QUERY.tag)),  # a question reflected
    ):
        with pytest.raises(ProtocolError):
            CHANNEL.answer(query, sealed)


def test_nothing_shows_a_key():
    dates = Dates(created=1, expires=2)
    known = Known(dates=dates, authentication=KEY)
    upload = Enrolment(kit=b"", dates=dates, authentication=KEY, keys=PublicKeys(nonce=b""))
    for holder in (CHANNEL, known, upload, [known, upload]):
        assert repr(KEY)[2:-1] not in repr(holder)


# --- in a conversation ------------------------------------------------------------------------------------------------


def forbid_work(monkeypatch) -> None:
    """From here on no ciphertext and no evaluation key may be looked at."""

    def touched(*args, **kwargs):
        raise AssertionError("work was done for a stranger")

    monkeypatch.setattr(Context, "load", touched)
    monkeypatch.setattr(Evaluation, "__init__", touched)


PAIR = ready(Homomorphic(), mlp(1, 4, 2, 1))
X = corners(1, 4)


def changed(kind, **change):
    return lambda body: encode(msgspec.structs.replace(decode(body, kind, max_bytes=1 << 28), **change))


def test_a_question_under_somebody_elses_key_id_costs_the_server_nothing(monkeypatch):
    other = Pair(PAIR.backend, PAIR.graph, server=PAIR.stores["server"])
    other.setup()
    stranger = Pair(PAIR.backend, PAIR.graph, server=PAIR.stores["server"], client=PAIR.stores["client"])
    forbid_work(monkeypatch)  # and this server has parsed nobody's keys
    transcript = stranger.predict(X, fault=alter(changed(SealedQuery, key_id=other.keys.key_id), tag="he/query"))
    assert isinstance(transcript.failures["server"], ProtocolError)


def test_a_question_that_was_changed_on_the_way_costs_the_server_nothing(monkeypatch):
    forbid_work(monkeypatch)
    flip = alter(lambda body: body[:-40] + bytes([body[-40] ^ 1]) + body[-39:], tag="he/query")
    assert isinstance(PAIR.predict(X, fault=flip).failures["server"], ProtocolError)


def test_an_older_reply_is_refused():
    kept = PAIR.predict(X).messages[1].body
    assert isinstance(PAIR.predict(X, fault=alter(lambda body: kept, tag="he/reply")).failures["client"], ProtocolError)


def test_a_reply_to_another_client_is_refused():
    other = ready(PAIR.backend, PAIR.graph)
    theirs = other.predict(X).messages[1].body
    failure = PAIR.predict(X, fault=alter(lambda body: theirs, tag="he/reply")).failures["client"]
    assert isinstance(failure, ProtocolError)


def test_a_reply_is_refused_before_it_is_decrypted(monkeypatch):
    def touched(*args):
        raise AssertionError("decrypted what nobody vouches for")

    monkeypatch.setattr("confide.he.seal.SecretKey.decrypt", touched)
    failures = PAIR.predict(X, fault=alter(changed(SealedReply, tag=bytes(32)), tag="he/reply")).failures
    assert isinstance(failures["client"], ProtocolError)


def test_a_client_that_refuses_a_reply_says_nothing_more():
    """Whether it decrypted would tell a server about the key; so the client's last message is its question."""
    for change in (changed(SealedReply, tag=bytes(32)), changed(SealedReply, body=b"")):
        transcript = PAIR.predict(X, fault=alter(change, tag="he/reply"))
        assert isinstance(transcript.failures["client"], ConfideError)
        assert [message.tag for message in transcript.messages] == ["he/query", "he/reply"]


def test_models_of_another_shape_refuse_the_upload_by_its_kit():
    one, two = Pair(Homomorphic(), logistic(1, 4)), Pair(Homomorphic(), logistic(1, 5))
    body = one.setup().messages[0].body
    failures = two.setup(fault=alter(lambda _: body, tag="he/keys")).failures
    assert "kit" in str(failures["server"])
    assert len(body) == len(two.setup().messages[0].body)  # so nothing else would have told


def test_messages_are_small_outside_their_ciphertexts():
    graph = logistic(1, 4)
    pair = Pair(Homomorphic(), graph)
    keys = pair.setup().messages[0].body
    assert len(keys) < pair.server.plan.parameters.degree * 2 * 109 // 8 + 400
    query, reply = pair.predict(X).messages
    assert isinstance(query, Message)
    assert len(query.body) < 4096 * 2 * 93 // 8 + 400
    assert len(reply.body) < 4096 * 93 // 8 + 400
