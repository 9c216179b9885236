"""Publishing what CKKS decrypted: the noise is what the page says, it is counted, and nothing else gets out."""

import math
import pickle

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.crypto.random import SystemRandomness
from confide.errors import KeysExpired, ProtocolError, UsageError
from confide.he import Homomorphic
from confide.he.publish import Decrypted, Publications, flooding
from confide.he.replies import NetworkReply, read
from confide.wire import alter, decode, encode, run
from he.oracle import Pair, corners, logistic, mlp, ready

RNG = SystemRandomness()
EIGHT = Publications(rows=8)
PRECISE = Homomorphic(precision_bits=26, publications=EIGHT)
GRAPH = mlp(1, 4, 2, 1)
PAIR = ready(PRECISE, GRAPH)


def published(pair: Pair, x, fault=None):
    """One prediction to be shown: as `Pair.predict`, with `publish` at the client."""
    parties = {
        "client": pair.backend.publish(pair.client, np.asarray(x, float), pair.stores["client"], RNG),
        "server": pair.backend.predict("server", pair.server, None, pair.stores["server"], RNG),
    }
    return run(parties, stores=pair.stores, fault=fault)


@given(
    st.floats(2.0**-50, 2.0**-30),
    st.integers(1, 100),
    st.integers(1, 1000),
    st.integers(8, 20),
    st.floats(-1, 1),
    st.floats(-1, 1),
)
def test_the_divergence_of_all_that_is_published_is_what_is_claimed(error, outputs, rows, bits, value, part):
    """From the definition: shifts in grid steps after rounding, squared, over twice the variance, added up."""
    noise = flooding(error, outputs=outputs, allowed=Publications(rows=rows, statistical_bits=bits))
    assert math.log2(noise.grid).is_integer()
    shift = np.rint((value + part * error) / noise.grid) - np.rint(value / noise.grid)
    total = rows * outputs * float(shift) ** 2 / (2 * noise.variance)
    assert total <= 2.0**-bits / 24
    assert noise.deviation >= math.sqrt(12 * rows * outputs) * 2 ** (bits / 2) * error
    assert noise.shown <= noise.deviation < 2 * noise.shown


def test_the_control_half_the_variance_would_be_too_little():
    noise = flooding(2.0**-40, outputs=1, allowed=Publications(rows=1))
    assert 64.0**2 / (2 * (noise.variance // 2)) > 2.0**-16 / 24


def test_a_plan_that_is_not_precise_enough_says_what_is_missing():
    with pytest.raises(UsageError, match="more bits of precision"):
        flooding(2.0**-20, outputs=10, allowed=Publications(rows=64, statistical_bits=30))
    pair = ready(Homomorphic(precision_bits=4), mlp(1, 4, 2, 1))
    assert "precision_bits" in str(published(pair, corners(1, 4)).failures["client"])


def test_published_values_have_the_noise_of_the_plan_and_lie_on_its_grid():
    decrypted = Decrypted(np.full((4000, 2), 0.3), np.array([0, 4]), 2.0**-40, ends_in_sigmoid=False)
    noise = flooding(2.0**-40, outputs=2, allowed=EIGHT)
    y = decrypted.publish(EIGHT, RNG) / [1, 16]
    assert (np.rint(y / noise.shown) == y / noise.shown).all()
    spread, expected = (y - 0.3).std(axis=0), math.sqrt(noise.deviation**2 + noise.shown**2 / 12)
    assert (np.abs(spread / expected - 1) < 0.07).all()  # six standard deviations of 4000 draws
    assert (np.abs((y - 0.3).mean(axis=0)) < 6 * expected / math.sqrt(4000)).all()
    assert (decrypted.private() == [[0.3, 4.8]]).all()


def test_what_was_decrypted_does_not_get_out_by_itself():
    decrypted = Decrypted(np.full((1, 1), 0.3), np.array([0]), 2.0**-40, ends_in_sigmoid=True)
    assert repr(decrypted) == "Decrypted()"
    assert not any(
        isinstance(getattr(decrypted, name), np.ndarray | float) for name in dir(decrypted) if name[0] != "_"
    )
    for use in (pickle.dumps, np.asarray, float, lambda value: value + 1):
        try:
            result = use(decrypted)
        except TypeError:
            continue
        assert np.asarray(result).dtype == object


def test_a_published_prediction_is_the_models_within_the_noise():
    x = corners(3, 4)
    transcript = published(PAIR, x)
    scale = np.ldexp(1.0, PAIR.server.engine.exponents)
    noise = flooding(2 * float((PAIR.server.error_bound / scale).max()), outputs=1, allowed=EIGHT)
    exact, y = PAIR.graph.apply(x), transcript.output("client")
    assert (np.abs(y - exact) <= PAIR.server.error_bound + 12 * noise.deviation * scale).all()
    assert (y != PAIR.predict(x).output("client")).all()


def test_publications_are_counted_and_then_take_a_new_key():
    pair = ready(PRECISE, GRAPH)
    first = pair.keys.key_id
    for rows in (3, 4):
        assert published(pair, corners(rows, 4)).output("client").shape == (rows, 1)
    assert isinstance(published(pair, corners(2, 4)).failures["client"], KeysExpired)
    assert isinstance(published(pair, corners(1, 4)).failures["client"], KeysExpired)  # the rest is forfeited
    assert pair.predict(corners(1, 4)).output("client").shape == (1, 1)  # for the owner the key is as good as before
    second = pair.setup().output("client")
    assert second != first
    assert published(pair, corners(8, 4)).output("client").shape == (8, 1)
    assert isinstance(published(pair, corners(9, 4)).failures["client"], UsageError)


def test_a_publication_counts_from_before_the_question_leaves():
    pair = ready(PRECISE, GRAPH)
    for _ in range(2):
        published(pair, corners(4, 4), fault=alter(lambda body: b"", tag="he/reply"))  # it ended badly
    assert isinstance(published(pair, corners(1, 4)).failures["client"], KeysExpired)


def test_processes_that_share_a_store_publish_no_more_than_one_may():
    """Each read how much was left before any of them wrote."""
    pair = ready(PRECISE, GRAPH)

    def ask():
        return pair.backend.publish(pair.client, corners(3, 4), pair.stores["client"], RNG)

    asking = [ask() for _ in range(4)]
    steps = [next(party) for party in asking]
    for step in steps:
        pair.stores["client"].commit(step.save)
    for party in asking:
        with pytest.raises(KeysExpired):
            next(party)
    pair.setup()
    asking = [ask() for _ in range(2)]
    for party in asking:
        pair.stores["client"].commit(next(party).save)
    assert all(next(party).send for party in asking)


def test_a_plan_that_is_not_certified_is_not_published_from():
    pair = ready(Homomorphic(precision_bits=26, publications=EIGHT, certify=False), GRAPH)
    with pytest.raises(UsageError, match="certif"):
        pair.backend.publish(pair.client, corners(1, 4), pair.stores["client"], RNG)


def test_noise_for_another_allowance_takes_a_new_key():
    """Noise for two allowances does not add up to either."""
    pair = ready(PRECISE, GRAPH)
    published(pair, corners(1, 4)).output("client")
    pair.backend = Homomorphic(precision_bits=26, publications=Publications(rows=8, statistical_bits=17))
    assert isinstance(published(pair, corners(1, 4)).failures["client"], KeysExpired)


def test_exact_results_are_published_as_they_are():
    pair = ready(Homomorphic(), logistic(1, 4))
    x = corners(200, 4)
    assert (published(pair, x).output("client") == pair.predict(x).output("client")).all()
    assert not [key for key in pair.stores["client"].keys("he/") if "published" in key]


@pytest.mark.parametrize("change", [{"rows": 0}, {"rows": 1 << 21}, {"statistical_bits": 7}, {"statistical_bits": 41}])
def test_allowances_are_checked(change):
    with pytest.raises(UsageError):
        Publications(**change)


def test_the_bound_in_a_reply_is_the_models_whatever_is_asked():
    pair, bits = PAIR, set()
    for x in (np.zeros((1, 4)), np.ones((1, 4)), corners(1, 4)):
        replies = []

        def look(body: bytes) -> bytes:
            found = decode(body, NetworkReply, max_bytes=1 << 20).error_bits
            replies.append(int.from_bytes(found, "little", signed=True))  # noqa: B023
            return body

        assert pair.altered(x, "he/reply", look).output("client").shape == (1, 1)
        bits |= set(replies)
    (bound,) = bits
    largest = (pair.server.error_bound / np.ldexp(1.0, pair.server.engine.exponents)).max()
    assert largest <= 2.0**bound < 2 * largest


@pytest.mark.parametrize("bits", [b"", b"\0", b"\1\2", bytes(4)], ids=repr)
def test_an_odd_bound_is_refused(bits):
    def other(body: bytes) -> bytes:
        return encode(msgspec.structs.replace(decode(body, NetworkReply, max_bytes=1 << 20), error_bits=bits))

    assert isinstance(PAIR.altered(corners(1, 4), "he/reply", other).failures["client"], ProtocolError)


@pytest.mark.parametrize("bits", [-512, -60, 0])
def test_a_servers_word_alone_removes_no_noise(bits):
    """The plan, which the client holds, says how exact its answers can be at best; an honest bound is above that."""
    bodies = []

    def keep(body: bytes) -> bytes:
        bodies.append(body)
        return body

    PAIR.altered(corners(1, 4), "he/reply", keep)
    reply = decode(bodies[0], NetworkReply, max_bytes=1 << 20)
    honest = 2.0 ** int.from_bytes(reply.error_bits, "little", signed=True)
    forged = msgspec.structs.replace(reply, error_bits=bits.to_bytes(2, "little", signed=True))
    found = read(PAIR.client.engine, PAIR.keys.secret, encode(forged), 1)
    least = PAIR.client.plan.least_error
    assert 2.0**-60 < least < honest
    assert found._error == max(2.0**bits, least)
