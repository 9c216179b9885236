"""The federated loop: equal to pooled descent, dropouts, retries, budgets, averaging."""

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from confide.crypto.random import SeededRandomness, SystemRandomness
from confide.errors import Aborted, DataError, ModelError
from confide.ideal import PlainSum
from confide.model.graph import Graph, Linear, Sigmoid
from confide.secagg import Shares
from confide.secagg.masked import Masked
from confide.train import learner
from confide.train.encodings import WeightedUpdates, integer_norm_bound
from confide.train.learner import GraphLearner
from confide.train.ledger import Ledger, verify
from confide.train.local import Silo, descend, flatten
from confide.train.rounds import federate, parameters_hash
from confide.train.sections import TrainSection
from confide.wire import MemoryStore, drop

START = Graph((Linear(np.zeros((1, 5)), np.zeros(1)), Sigmoid()))
SETTINGS = TrainSection(
    average=0.0, rounds=12, learning_rate=1.0, momentum=0.8, weight_decay=0.01, expected_records=40, quorum=3
)


def silos(sizes=(30, 50, 7, 64), seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for number, size in enumerate(sizes):
        x = rng.uniform(-1, 1, size=(size, 5))
        made.append(Silo(f"h{number}", x, (x @ [2, -1, 0, 1, 0.5] + 0.2 * number > 0).astype(np.int64)))
    return made


def run(aggregator, parties=None, settings=SETTINGS, **more):
    parties = parties or silos()
    encoding = WeightedUpdates(GraphLearner(START, settings), settings)
    return list(federate(parties, encoding, settings, aggregator=aggregator, rng=SystemRandomness(), **more))


def pooled(parties, settings=SETTINGS):
    x, y = np.vstack([s.x for s in parties]), np.concatenate([s.y for s in parties])
    return descend(
        START,
        x,
        y,
        steps=settings.rounds,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )


def fixed_point_bound(parties, settings):
    """How far rounding may move a parameter: each of T updates errs by at most e, momentum carries it on.

    One sum of n roundings to 2^-f errs by n 2^-f / 2, in the weighted change and in the weight, relative to the
    total weight; a gradient step of an L-smooth loss with learning rate r amplifies earlier errors by at most 1 + rL.
    """
    total = sum(len(s.x) for s in parties) / settings.expected_records
    error = len(parties) * 2.0 ** -(settings.fraction_bits + 1) * (1 + settings.update_bound) / total
    smooth = max(np.linalg.norm(np.c_[s.x, np.ones(len(s.x))], axis=1).max() ** 2 for s in parties) / 4
    place, velocity = 0.0, 0.0
    for _ in range(settings.rounds):
        velocity = (
            settings.momentum * velocity + settings.learning_rate * (smooth + settings.weight_decay) * place + error
        )
        place += velocity
    return place


@pytest.mark.parametrize("aggregator", [PlainSum(), Masked()], ids=lambda a: a.name)
def test_federated_equals_pooled_to_the_fixed_point_bound(aggregator):
    """The oracle is float descent on the pooled records: neither fixed point nor any protocol is in it."""
    parties = silos()
    done = run(aggregator, parties)
    gap = np.abs(flatten(done[-1].model) - flatten(pooled(parties))).max()
    assert gap <= fixed_point_bound(parties, SETTINGS)
    assert gap < 1e-4
    assert [round_.number for round_ in done] == list(range(1, 13))


def test_secure_equals_plain_bit_for_bit():
    plain, masked = run(PlainSum()), run(Masked())
    assert [parameters_hash(r.parameters) for r in plain] == [parameters_hash(r.parameters) for r in masked]


def test_coarse_fixed_point_is_noticed():
    """The negative control of the bound: with 8 bits the gap is far above the bound of 22."""
    coarse = TrainSection(**{f: getattr(SETTINGS, f) for f in SETTINGS.__struct_fields__} | {"fraction_bits": 8})
    gap = np.abs(flatten(run(PlainSum(), settings=coarse)[-1].model) - flatten(pooled(silos()))).max()
    assert gap > 1e-4


def test_a_dropout_leaves_the_model_of_the_others(tmp_path):
    parties = silos()
    path = tmp_path / "ledger.jsonl"
    done = run(PlainSum(), parties, fault=drop(src="h1"), ledger=Ledger(path))
    gap = np.abs(flatten(done[-1].model) - flatten(pooled([s for s in parties if s.name != "h1"]))).max()
    assert gap < 1e-4
    assert done[0].missing == {"h1"}
    assert verify(path).entries == len(done)
    assert "h1" in path.read_text()


def test_a_round_without_quorum_is_repeated_then_refused():
    lost = []

    def first_two_attempts(message):
        # three of the four vectors of two attempts
        if message.tag == "plain/vector" and message.src != "h0" and len(lost) < 6:
            lost.append(message)
            return []
        return [(0, message)]

    done = run(PlainSum(), fault=first_two_attempts)
    assert done[0].attempts == 3
    assert done[1].attempts == 1
    assert parameters_hash(done[-1].parameters) == parameters_hash(run(PlainSum())[-1].parameters)
    with pytest.raises(Aborted, match="Round 1 failed 3 times"):
        run(PlainSum(), fault=drop(tag="plain/vector"))


def test_local_steps_move_further_and_averaging_averages():
    more = TrainSection(average=0.0, rounds=4, local_steps=5, momentum=0.0, learning_rate=0.5, expected_records=40)
    one = TrainSection(average=0.0, rounds=4, local_steps=1, momentum=0.0, learning_rate=0.5, expected_records=40)
    far, near = run(PlainSum(), settings=more)[-1].model, run(PlainSum(), settings=one)[-1].model
    assert np.linalg.norm(flatten(far)) > 2 * np.linalg.norm(flatten(near))
    half = TrainSection(rounds=4, momentum=0.0, learning_rate=0.5, expected_records=40, average=0.5)
    plain = run(PlainSum(), settings=one)
    expected = (flatten(plain[2].model) + flatten(plain[3].model)) / 2
    np.testing.assert_allclose(flatten(run(PlainSum(), settings=half)[-1].model), expected, atol=1e-12)


def test_an_update_beyond_the_bound_is_scaled_not_wrapped():
    wild = TrainSection(
        average=0.0, rounds=1, learning_rate=1000.0, momentum=0.0, expected_records=40, update_bound=2.0
    )
    assert np.abs(flatten(run(Masked(), settings=wild)[-1].model)).max() <= 2.0 + 1e-5


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox"])
def test_an_update_that_is_not_finite_is_refused_by_the_name_of_its_silo(algorithm):
    """Integers cannot say NaN: it is refused before there are any. Only the features of h1 are large enough."""
    settings = replace(SETTINGS, algorithm=algorithm, learning_rate=1e200)
    parties = [Silo(silo.name, np.zeros_like(silo.x), silo.y) for silo in silos()]
    run(PlainSum(), parties, replace(settings, rounds=1))
    parties[1] = Silo("h1", 1e150 * silos()[1].x, parties[1].y)
    with pytest.raises(ModelError, match="diverged.*h1"):
        run(PlainSum(), parties, replace(settings, rounds=1))


def test_a_difference_of_finite_models_that_is_not_finite_is_refused_too(monkeypatch):
    far = Graph((Linear(np.full((1, 5), 1.7e308), np.zeros(1)), Sigmoid()))
    start = Graph((Linear(np.full((1, 5), -1.7e308), np.zeros(1)), Sigmoid()))
    monkeypatch.setattr(learner, "descend", lambda *_, **__: far)
    encoding = WeightedUpdates(GraphLearner(start, SETTINGS), SETTINGS)
    with pytest.raises(ModelError, match="finite update of h0"):
        encoding.contribution(flatten(start), silos()[0], 1, SystemRandomness(), MemoryStore())


def test_too_many_records_for_the_ring_are_refused():
    few = TrainSection(rounds=1, expected_records=1)
    with pytest.raises(DataError, match="train.expected_records"):
        run(PlainSum(), settings=few)


def test_a_seeded_run_repeats():
    def once():
        encoding = WeightedUpdates(GraphLearner(START, SETTINGS), SETTINGS)
        rng = SeededRandomness("x")
        return [r.bytes_up for r in federate(silos(), encoding, SETTINGS, aggregator=Masked(), rng=rng)]

    assert once() == once()


# --- a bound on every norm --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm_bound", "reached"), [(1.7, True), (2.5, True), (50.0, False)])
def test_contributions_keep_the_norm_bound_and_their_direction(norm_bound, reached):
    """The oracle takes norms in Python's integers; the control is the same contribution without a bound."""
    parties = silos()
    plain = msgspec.structs.replace(SETTINGS, learning_rate=40.0, update_bound=50.0)
    bounded = msgspec.structs.replace(plain, norm_bound=norm_bound)
    largest = integer_norm_bound(bounded)
    assert integer_norm_bound(plain) is None
    for silo in parties:
        free, kept = (
            WeightedUpdates(GraphLearner(START, settings), settings).contribution(
                np.zeros(6), silo, 1, SystemRandomness(), MemoryStore()
            )
            for settings in (plain, bounded)
        )
        square = sum(int(value) ** 2 for value in kept)
        assert square <= largest**2
        assert kept[-1] == free[-1]
        if reached and sum(int(value) ** 2 for value in free) > largest**2:
            assert square > (0.999 * largest) ** 2
        else:
            np.testing.assert_array_equal(kept, free)
        scale = np.linalg.norm(kept[:-1]) / np.linalg.norm(free[:-1])
        np.testing.assert_allclose(kept[:-1], scale * free[:-1], atol=2)


def test_a_party_heavier_than_the_norm_bound_is_refused():
    settings = msgspec.structs.replace(SETTINGS, norm_bound=1.0)
    with pytest.raises(DataError, match=r"train.norm_bound=1.0"):
        run(Shares(norm_bound=integer_norm_bound(settings)), settings=settings)


def test_a_bounded_sum_under_shares_is_that_under_plain():
    settings = msgspec.structs.replace(SETTINGS, norm_bound=2.0, rounds=3)
    bounded = run(Shares(norm_bound=integer_norm_bound(settings)), settings=settings)
    plain = run(PlainSum(), settings=settings)
    np.testing.assert_array_equal(bounded[-1].parameters, plain[-1].parameters)
    assert bounded[-1].members == plain[-1].members
