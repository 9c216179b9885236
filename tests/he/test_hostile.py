"""Whatever bytes a stranger sends: a ProtocolError, and no more memory than a few times what was sent."""

import tracemalloc
from contextlib import suppress

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.he import Homomorphic
from confide.he.enrolment import Enrolment
from confide.he.envelope import SealedQuery, SealedReply
from confide.he.kits import ClientKit
from confide.he.packed import pack
from confide.he.replies import LinearReply, NetworkReply, Query
from confide.net.http import answer
from confide.wire import MemoryStore, Message, alter, decode, encode
from he.oracle import RNG, Pair, corners, logistic, mlp, ready

LINEAR = ready(Homomorphic(), logistic(1, 4))
NETWORK = ready(Homomorphic(precision_bits=6), mlp(1, 4, 2, 1))
PAIRS = {"linear": LINEAR, "network": NETWORK}
X = corners(1, 4)
HONEST = {name: (pair.setup(), pair.predict(X)) for name, pair in PAIRS.items()}
names = st.sampled_from(sorted(PAIRS))


def mutated(draw, body: bytes) -> bytes:
    """Cut, extend, overwrite, splice or repeat; or something else altogether."""
    how = draw(st.sampled_from(["cut", "extend", "flip", "overwrite", "insert", "junk", "nested", "claim"]))
    place = draw(st.integers(0, max(0, min(len(body) - 1, 400))))
    piece = draw(st.binary(min_size=1, max_size=16))
    match how:
        case "cut":
            return body[:place] if draw(st.booleans()) else body[place + 1 :]
        case "extend":
            return body + piece
        case "flip":
            return body[:place] + bytes([body[place] ^ (1 << draw(st.integers(0, 7)))]) + body[place + 1 :]
        case "overwrite":
            return body[:place] + piece + body[place + len(piece) :]
        case "insert":
            return body[:place] + piece + body[place:]
        case "nested":
            return b"\x91" * draw(st.integers(1, 5000))
        case "claim":  # four billion bytes, items or fields
            return body[:place] + draw(st.sampled_from([b"\xc6", b"\xdd", b"\xdf"])) + b"\xff\xff\xff\xff"
        case _:
            return piece


@st.composite
def messages(draw, step: int, place: int):
    """The name of a pair and its honest message, changed."""
    name = draw(names)
    body = HONEST[name][step].messages[place].body
    changed = mutated(draw, body)
    if changed == body:
        changed = b""
    return name, changed


def only_protocol_errors(failures: dict) -> None:
    assert all(isinstance(error, ProtocolError) for error in failures.values()), failures


@settings(deadline=None)
@given(messages(0, 0))
def test_any_upload(message):
    name, body = message
    pair, store = PAIRS[name], MemoryStore()
    with suppress(ProtocolError):  # a flip in a key leaves a key: numbers below their primes
        answer(pair.backend.setup("server", pair.server, store, RNG), body, store=store)
        assert len(body) == HONEST[name][0].sizes[0]


@settings(deadline=None)
@given(messages(1, 0))
def test_any_question(message):
    name, body = message
    pair, store = PAIRS[name], PAIRS[name].stores["server"]
    with pytest.raises(ProtocolError):
        answer(pair.backend.predict("server", pair.server, None, store, RNG), body, store=store)


@settings(deadline=None)
@given(messages(1, 1))
def test_any_reply(message):
    name, body = message
    pair = PAIRS[name]
    party = pair.backend.predict("client", pair.client, X, pair.stores["client"], RNG)
    next(party)
    with pytest.raises(ProtocolError):
        party.send({"server": Message("server", "client", "he/reply", body)})


@settings(deadline=None)
@given(st.data(), names, st.sampled_from(["he/query", "he/reply"]))
def test_any_body_by_somebody_who_holds_the_keys(data, name, tag):
    """A client that lies to its server, and a server that lies to its client: tags hold, bodies do not."""
    pair = PAIRS[name]

    def change(*args):
        body = mutated(data.draw, args[-1])
        return (args[0], body) if tag == "he/query" else body

    only_protocol_errors(pair.altered(X, tag, change).failures)


@settings(deadline=None)
@given(st.data(), names)
def test_any_kit(data, name):
    kit = PAIRS[name].client
    assert isinstance(kit, ClientKit)
    body = mutated(data.draw, kit.encode())
    with suppress(ProtocolError):
        Homomorphic().decode_kit("client", body)


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_bytes(work) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BOMBS = {
    "four billion items": b"\xdd\xff\xff\xff\xff",
    "four billion bytes": b"\xc6\xff\xff\xff\xff",
    "four billion fields": b"\xdf\xff\xff\xff\xff",
    "deep": b"\x91" * 100_000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("kind", [Enrolment, SealedQuery, SealedReply, Query, LinearReply, NetworkReply])
def test_lengths_that_are_only_claimed_cost_nothing(kind, bomb):
    for body in (bomb, b"\x81\xabciphertexts" + bomb, b"\x81\xa4keys" + bomb, b"\x81\xa4body" + bomb):
        assert peak_bytes(lambda body=body: decode(body, kind, max_bytes=1 << 20)) < 1 << 20


def test_a_million_empty_ciphertexts_are_not_counted_out():
    body = b"\x81\xabciphertexts\xdd" + (1 << 20).to_bytes(4, "big") + b"\xc4\x00" * (1 << 20)
    assert peak_bytes(lambda: decode(body, Query, max_bytes=1 << 28)) < 1 << 20


def test_a_reply_larger_than_the_question_implies_is_not_read():
    body = encode(SealedReply(body=bytes(1 << 22), tag=bytes(32)))
    failures = LINEAR.predict(X, fault=alter(lambda _: body, tag="he/reply")).failures
    assert "at most" in str(failures["client"])


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_the_control_an_honest_reply_is_as_large_as_the_bound_allows(name):
    pair = PAIRS[name]
    size = HONEST[name][1].sizes[1]
    assert size <= pair.server.reply_bytes(1) <= size + 1500


# --- keys and ciphertexts of others -----------------------------------------------------------------------------------


def network_ciphertexts() -> tuple[bytes, ...]:
    sealed = decode(HONEST["network"][1].messages[0].body, SealedQuery, max_bytes=1 << 28)
    return decode(sealed.body, Query, max_bytes=1 << 28).ciphertexts


def test_ciphertexts_of_another_level_or_count_are_refused():
    pair = NETWORK
    (one,) = network_ciphertexts()
    for ciphertexts in ((), (one, one), (one[: len(one) // 2],), (one[:-1],), (one + b"\0",), (b"\xff" * len(one),)):
        body = encode(Query(ciphertexts))
        failures = pair.altered(X, "he/query", lambda rows, _, body=body: (rows, body)).failures
        assert isinstance(failures["server"], ProtocolError)


def test_the_control_numbers_below_their_primes_are_answered():
    rng = np.random.default_rng(1)
    (one,) = network_ciphertexts()
    primes = NETWORK.server.plan.parameters.data_primes
    form = NETWORK.server.engine.context.form(limbs=len(primes), ntt=True)
    noise = np.stack([rng.integers(0, prime, (2, form.degree), dtype=np.uint64) for prime in form.primes], axis=1)
    body = encode(Query((pack(noise, form.primes),)))
    assert len(body) == len(encode(Query((one,))))
    assert "server" not in NETWORK.altered(X, "he/query", lambda rows, _: (rows, body)).failures


@pytest.mark.parametrize("part", ["encryption", "relinearisation", "rotation"])
def test_missing_and_superfluous_keys_are_refused(part):
    def change(value):
        def altered(body: bytes) -> bytes:
            sent = decode(body, Enrolment, max_bytes=1 << 28)
            keys = msgspec.structs.replace(sent.keys, **{part: value(getattr(sent.keys, part))})
            return encode(msgspec.structs.replace(sent, keys=keys))

        return altered

    for pair in (Pair(LINEAR.backend, LINEAR.graph), Pair(NETWORK.backend, NETWORK.graph)):
        for value in (lambda body: b"" if body else b"x", lambda body: body + b"x", lambda body: 2 * body or bytes(99)):
            failures = pair.setup(fault=alter(change(value), tag="he/keys")).failures
            assert isinstance(failures["server"], ProtocolError)
            assert not pair.stores["server"].keys()


def test_scales_do_not_travel():
    """A ciphertext is as long as its numbers: no NaN, no infinity, no other scale can be said."""
    primes = NETWORK.server.plan.parameters.data_primes
    form = NETWORK.server.engine.context.form(limbs=len(primes), ntt=True)
    bits = sum((prime - 1).bit_length() for prime in form.primes)
    assert 8 * len(network_ciphertexts()[0]) == 2 * form.degree * bits
