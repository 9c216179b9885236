"""Compressed rounds: alike under every aggregator, near the uncompressed, as small on the wire as is said."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.errors import ModelError
from confide.ideal import Cohort, PlainSum, Session
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.zoo import logistic
from confide.secagg.masked import Masked
from confide.train import AGGREGATORS, load_data, parse, train
from confide.train.encodings import WeightedUpdates
from confide.train.evaluate import accuracy
from confide.train.learner import GraphLearner
from confide.train.local import Silo, flatten
from confide.train.rounds import federate, parameters_hash
from confide.train.sections import TrainSection
from confide.wire import MemoryStore, drop
from tee.aggregators import MADE

FEATURES = 40
START = Graph((Linear(np.zeros((1, FEATURES)), np.zeros(1)), Sigmoid()))
COMMON = {"rounds": 6, "average": 0.0, "expected_records": 40, "quorum": 3, "momentum": 0.0}
KINDS = {
    "none": {},
    "clipped": {"clip_norm": 0.05, "clip_quantile": 0.5},
    "rotate": {"compress": "rotate", "compress_bits": 6, "clip_norm": 1.0, "clip_quantile": 0.9},
    "rotate-2": {"compress": "rotate", "compress_bits": 2, "clip_norm": 1.0},
    "rand-k": {"compress": "rand-k", "compress_share": 0.25},
    "sketch": {"compress": "sketch", "compress_share": 0.5, "clip_norm": 0.5},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def silos(sizes=(30, 50, 7, 64)):
    rng = np.random.default_rng(0)
    made = []
    for number, size in enumerate(sizes):
        x = rng.uniform(-1, 1, size=(size, FEATURES))
        made.append(Silo(f"h{number}", x, (x[:, 0] + 0.2 * number > x[:, 1]).astype(np.int64)))
    return made


def encoding_of(kind, **keys):
    chosen = TrainSection(**COMMON | KINDS[kind] | keys)
    return WeightedUpdates(GraphLearner(START, chosen), chosen, seed=1), chosen


def run(kind, aggregator=None, parties=None, *, rng=None, **more):
    encoding, chosen = encoding_of(kind)
    rng = rng or SeededRandomness("compressed")
    return list(federate(parties or silos(), encoding, chosen, aggregator=aggregator or PlainSum(), rng=rng, **more))


def contributions(encoding, parties, number=1, parameters=None, seed="own"):
    parameters = encoding.learner.start if parameters is None else parameters
    return np.array([
        encoding.contribution(parameters, silo, number, SeededRandomness(f"{seed}/{silo.name}"), MemoryStore())
        for silo in parties
    ])  # fmt: skip


# --- the same sum -----------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_aggregator_gives_the_same_model_bit_for_bit(kind, name):
    """The rounding's chance is each party's own and not what the protocol draws, so a seed fixes the vectors."""
    plain, secure = run(kind), run(kind, MADE[name]())
    assert [parameters_hash(done.parameters) for done in plain] == [parameters_hash(done.parameters) for done in secure]


def test_the_rounding_is_drawn_from_the_randomness_that_is_passed_in():
    one, other, system = run("rotate"), run("rotate", rng=SeededRandomness("other")), run("rotate")
    assert parameters_hash(one[-1].parameters) != parameters_hash(other[-1].parameters)
    assert parameters_hash(one[-1].parameters) == parameters_hash(system[-1].parameters)
    first, second = (run("rotate", rng=SystemRandomness())[-1].parameters for _ in range(2))
    assert parameters_hash(first) != parameters_hash(second)


@every_kind
def test_one_round_is_the_weighted_mean_of_the_updates_up_to_what_is_stated(kind):
    """The oracle is the mean in float, clipped by hand; the mean over 300 maps and roundings must come to it."""
    parties, chosen = silos(), TrainSection(**COMMON | KINDS[kind])
    learner = GraphLearner(START, chosen)
    weights = np.array([len(silo.x) / 40 for silo in parties])
    changes = [learner.change(learner.start, silo, MemoryStore(), number=1) for silo in parties]
    moves = weights[:, None] * np.array(changes)
    if chosen.clip_norm:
        moves *= np.minimum(1, chosen.clip_norm / np.linalg.norm(moves, axis=1))[:, None]
    expected, found = moves.sum(axis=0) / weights.sum(), []
    for number in range(1, 301):
        encoding, _ = encoding_of(kind)
        sums = contributions(encoding, parties, number, seed=f"{number}").sum(axis=0)
        found.append(encoding.update(learner.start, sums, frozenset(map(str, range(len(parties)))), number))
    errors = np.array(found) - expected
    if kind in ("none", "clipped"):
        assert np.abs(errors).max() < 1e-6
    else:
        squared = (errors**2).sum(axis=1).mean()
        assert (errors.mean(axis=0) ** 2).sum() < 2 * squared / len(errors)


# --- the ring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parties", [3, 4, 5, 8, 10, 64, 100, 1000])
@pytest.mark.parametrize("bits", range(2, 17))
def test_the_ring_has_the_bits_that_are_stated(bits, parties):
    encoding, _ = encoding_of("rotate", compress_bits=bits)
    cohort = Cohort(tuple(f"h{number}" for number in range(parties)), 3)
    session = Session(run="run", round=1, cohort=cohort, length=encoding.length, bound=encoding.bound)
    most = parties * (2 ** (bits - 1) - 1)
    assert 2 ** (session.ring_bits - 1) <= 2 * most < 2**session.ring_bits  # the least that holds -most to most
    assert session.ring_bits <= bits + math.ceil(math.log2(parties))


def test_a_masked_upload_shrinks_by_what_is_stated():
    """1,001 parameters: the sum's part of an upload is length * ring bits / 8 bytes; the rest is the protocol's."""
    parties = [Silo(f"h{n}", np.eye(3, 1000), np.array([0, 1, 1])) for n in range(4)]
    up, expected = {}, {}
    for kind in ("none", "rotate", "rotate-2", "rand-k", "sketch"):
        chosen = TrainSection(**COMMON | KINDS[kind] | {"rounds": 1})
        encoding = WeightedUpdates(GraphLearner(logistic(1000), chosen), chosen)
        done = list(federate(parties, encoding, chosen, aggregator=Masked(), rng=SystemRandomness()))[-1]
        up[kind], bits = done.bytes_up["h0"], (2 * 4 * encoding.bound).bit_length()
        expected[kind] = math.ceil(encoding.length * bits / 8)
    assert expected["none"] == math.ceil(1002 * 31 / 8)
    assert expected["rotate"] == math.ceil((1001 + 1 + 6) * 8 / 8)  # a weight of 27 bits in digits of 5
    assert expected["rotate-2"] == math.ceil((1001 + 27) * 4 / 8)
    assert expected["rand-k"] == math.ceil(251 * 31 / 8)
    assert expected["sketch"] == math.ceil(501 * 31 / 8)
    for kind in ("rotate", "rotate-2", "rand-k", "sketch"):
        assert abs((up["none"] - up[kind]) - (expected["none"] - expected[kind])) <= 8  # lengths of lengths


@given(st.lists(st.integers(1, 16 * 40), min_size=1, max_size=12), st.integers(2, 16))
@settings(deadline=None, max_examples=25)
def test_the_weight_is_exact_under_every_compression(sizes, bits):
    """The digits of the sum are the sum of the digits: the oracle is Python's own whole numbers."""
    encoding, _ = encoding_of("rotate", compress_bits=bits)
    parties = [Silo(f"h{n}", np.zeros((size, FEATURES)), np.zeros(size, np.int64)) for n, size in enumerate(sizes)]
    sums = contributions(encoding, parties).sum(axis=0).tolist()
    total = sum(digit * 2 ** ((bits - 1) * place) for place, digit in enumerate(sums[FEATURES + 2 :]))
    assert total == sum(round(size / 40 * 2**22) for size in sizes)
    assert 0 <= sums[FEATURES + 1] <= len(sizes)


# --- what a round starts from -----------------------------------------------------------------------------------------


def test_parties_with_another_map_or_norm_have_another_session():
    def started(kind, seed=1, norm=None, **keys):
        chosen = TrainSection(**COMMON | KINDS[kind] | keys)
        encoding = WeightedUpdates(GraphLearner(START, chosen), chosen, seed=seed)
        encoding.clip.norm = norm or encoding.clip.norm
        return encoding.broadcast(encoding.learner.start).tobytes()

    ways = [
        started("none"), started("clipped"), started("clipped", norm=0.06), started("rotate"), started("rotate", 2),
        started("rotate", compress_bits=5), started("rotate", norm=0.5), started("rand-k"), started("rand-k", 2),
        started("rand-k", compress_share=0.3), started("sketch"), started("sketch", compress_share=0.3),
    ]  # fmt: skip
    assert len(set(ways)) == len(ways)
    assert started("rotate") == started("rotate")
    assert started("none") == START.layers[0].weight.tobytes() + START.layers[0].bias.tobytes()


@pytest.mark.parametrize("kind", ["clipped", "rotate"])
def test_the_norm_follows_from_released_sums_alone(kind):
    """Somebody who sees no more than the sums and their members comes to the same norm and the same model."""
    seen = {}

    class Watched(WeightedUpdates):
        def update(self, parameters, sums, members, number):
            seen[number] = (sums.copy(), members, number)
            return WeightedUpdates.update(self, parameters, sums, members, number)

    chosen = TrainSection(**COMMON | KINDS[kind])
    watched = Watched(GraphLearner(START, chosen), chosen, seed=1)
    done = list(federate(silos(), watched, chosen, aggregator=Masked(), rng=SeededRandomness("watched")))
    outside, parameters = encoding_of(kind)[0], flatten(START)
    for sums, members, number in seen.values():
        parameters = parameters + outside.update(parameters, sums, members, number)
    assert outside.clip.norm == watched.clip.norm != chosen.clip_norm
    np.testing.assert_array_equal(parameters, done[-1].parameters)


# --- dropouts and liars -----------------------------------------------------------------------------------------------


@every_kind
def test_a_dropout_leaves_the_model_of_the_others(kind):
    """Nothing is remembered of a party: with the last one lost in every round the run is that of the first three."""
    with_loss = run(kind, fault=drop(src="h3"))
    assert with_loss[0].missing == {"h3"}
    without = run(kind, parties=silos()[:3])
    np.testing.assert_array_equal(with_loss[-1].parameters, without[-1].parameters)
    assert np.abs(with_loss[-1].parameters - run(kind)[-1].parameters).max() > 1e-3


@every_kind
def test_a_repeated_attempt_uses_the_same_map_and_moves_no_norm(kind):
    lost = []

    def first_attempt(message):
        if message.tag == "plain/vector" and len(lost) < 2:
            lost.append(message)
            return []
        return [(0, message)]

    repeated, once = run(kind, fault=first_attempt), run(kind)
    assert repeated[0].attempts == 2
    if "rotate" not in kind:  # there the rounding draws afresh
        np.testing.assert_array_equal(repeated[-1].parameters, once[-1].parameters)


@given(st.lists(st.floats(-1e12, 1e12), min_size=FEATURES + 1, max_size=FEATURES + 1), st.sampled_from(sorted(KINDS)))
@settings(deadline=None, max_examples=60)
def test_whatever_the_update_is_the_vector_fits_the_session(change, kind):
    encoding, _ = encoding_of(kind)
    encoding.learner.change = lambda *_, **__: np.array(change)
    vector = contributions(encoding, silos()[:1])[0]
    cohort = Cohort(("h0", "h1", "h2"), 3)
    Session(run="run", round=1, cohort=cohort, length=encoding.length, bound=encoding.bound).checked(vector)


@every_kind
def test_an_update_that_is_no_number_is_refused(kind):
    encoding, _ = encoding_of(kind)
    encoding.learner.change = lambda *_, **__: np.full(FEATURES + 1, math.nan)
    with pytest.raises(ModelError, match="finite update of h0"):
        contributions(encoding, silos()[:1])


@every_kind
def test_a_forged_weight_that_leaves_no_sum_moves_nothing_beyond_the_bound(kind):
    for forged in (-1, 0):
        encoding, chosen = encoding_of(kind)
        change = encoding.update(
            encoding.learner.start, np.full(encoding.length, forged * encoding.bound), frozenset("a"), 1
        )
        assert np.abs(change).max() <= chosen.update_bound


@every_kind
def test_weights_that_add_up_to_nothing_beside_numbers_that_do_not(kind):
    """The quotients are infinite, and a way back that adds them would find no number."""
    encoding, chosen = encoding_of(kind)
    sums = np.resize([1, 1, -1], encoding.length) * 4 * encoding.bound
    sums[-encoding._digits.count :] = 0
    with np.errstate(over="raise", invalid="raise"):
        change = encoding.update(encoding.learner.start, sums, frozenset("abcd"), 1)
    assert np.abs(change).max() <= chosen.update_bound


def test_digits_of_a_forged_weight_may_stand_for_more_than_64_bits():
    encoding, chosen = encoding_of("rotate", compress_bits=16, fraction_bits=56)
    sums = np.full(encoding.length, encoding.bound)
    assert encoding._digits.join(sums[-encoding._digits.count :]) > 2**63
    assert np.abs(encoding.update(encoding.learner.start, sums, frozenset("a"), 1)).max() <= chosen.update_bound


@every_kind
def test_one_forged_vector_cannot_stop_the_round(kind):
    """A party may put its largest number everywhere: the others' round still ends, with finite parameters."""
    encoding, chosen = encoding_of(kind)
    sums = contributions(encoding, silos()).sum(axis=0) + encoding.bound
    change = encoding.update(encoding.learner.start, sums, frozenset("abcde"), 1)
    assert np.isfinite(change).all()
    if chosen.clip_quantile:
        assert abs(math.log(encoding.clip.norm / chosen.clip_norm)) <= chosen.clip_rate


# --- what it costs to learn with it -----------------------------------------------------------------------------------


def loss_and_accuracy(seed, keys):
    job = parse({
        "job": {"seed": seed}, "data": {"set": "breast-cancer"},
        "train": {"aggregate": "plain", "local_steps": 5, "momentum": 0.0, **keys},
    })  # fmt: skip
    data = load_data(job)
    *_, done = train(job, data, rng=SeededRandomness(f"learn {seed}"))
    x, y = np.concatenate([s.x for s in data.silos]), np.concatenate([s.y for s in data.silos])
    chance = np.where(y == 1, *[side[:, 0] for side in (done.model.apply(x), 1 - done.model.apply(x))])
    return -np.log(chance).mean(), accuracy(done.model, data.test.x, data.test.y)


@pytest.mark.parametrize(
    ("keys", "room"),
    [
        ({"compress": "rotate", "compress_bits": 4}, 0.01),
        ({"compress": "rotate"}, 0.003),
        ({"compress": "rand-k", "compress_share": 0.25}, 0.01),
        ({"compress": "sketch", "compress_share": 0.5}, 0.02),
        ({"clip_norm": 1.0, "clip_quantile": 0.9}, 0.003),
    ],
    ids=str,
)
def test_breast_cancer_is_learned_as_well(keys, room):
    """Training loss within `room` of the uncompressed run's, test accuracy within two of its 114 records."""
    for seed in (1, 2):
        loss, right = loss_and_accuracy(seed, keys)
        plain_loss, plain_right = loss_and_accuracy(seed, {})
        assert abs(loss - plain_loss) < room
        assert abs(right - plain_right) <= 2.01 / 114


def test_a_bias_would_be_noticed():
    """The negative control: the same subsets without the factor d / k learn a quarter as fast."""
    unscaled = {"compress": "rand-k", "compress_share": 0.25, "server_learning_rate": 0.25}
    assert loss_and_accuracy(1, unscaled)[0] > loss_and_accuracy(1, {})[0] + 0.05
