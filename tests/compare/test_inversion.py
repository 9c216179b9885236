"""Inversion: a record stands in a single update of one record, in no sum of several parties, and not under noise."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from confide.compare.inversion import errors, inversion, quotients, unfit
from confide.crypto.random import SeededRandomness
from confide.errors import ModelError
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.zoo import boosted
from confide.train.job import parse
from confide.train.local import gradient_sum
from confide.train.run import load_data

TABLE = {"data": {"set": "breast-cancer", "parties": 4, "split": "even"}, "train": {"rounds": 2, "quorum": 3}}


def job(aggregate, *, model="logistic", privacy=None, **train):
    table = {**TABLE, "model": {"kind": model}, "train": {**TABLE["train"], "aggregate": aggregate, **train}}
    return parse(table | ({"privacy": privacy} if privacy else {}))


@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_an_update_of_one_record_is_the_record(model):
    plain = job("plain", model=model)
    found = inversion(plain, load_data(plain), records=1, times=3, rng=SeededRandomness("plain"))
    assert found.single
    assert found.read == len(found.errors) == 12


@pytest.mark.parametrize("aggregate", ["masked", "amortised"])
def test_a_sum_over_parties_holds_no_record(aggregate):
    hidden = job(aggregate)
    found = inversion(hidden, load_data(hidden), records=1, times=3, rng=SeededRandomness("masked"))
    assert not found.single
    assert 1 <= found.guesses <= 3  # residuals that cancel leave nothing to divide by
    assert found.read == 0
    assert found.errors.min() > 0.2


def test_the_sum_gives_the_record_away_if_the_others_bring_nothing():
    """The control of the one above: with one record at all parties, which is then the sum, it is read out again."""
    hidden = job("masked")
    data = load_data(hidden)
    one = data.silos[0].x[:1], data.silos[0].y[:1]
    data = replace(data, silos=tuple(replace(silo, x=one[0], y=one[1]) for silo in data.silos))
    spread = load_data(hidden)
    found = inversion(hidden, data, records=1, times=1, rng=SeededRandomness("alike"))
    guess = quotients(data.start, -gradient_sum(data.start, *one))
    assert np.linalg.norm(guess - one[0]) < 1e-9
    assert found.guesses == 1
    average = np.concatenate([silo.x for silo in spread.silos]).mean(axis=0)
    assert errors(guess, one[0], average)[0] < 1e-9


def test_records_of_a_batch_are_not_read_out():
    plain = job("plain")
    found = inversion(plain, load_data(plain), records=None, times=1, rng=SeededRandomness("batch"))
    assert len(found.errors) == 455
    assert found.read == 0


def test_noise_hides_a_record_even_alone():
    private = job("masked", privacy={"epsilon": 1.0, "delta": 1e-5, "expected_records": 455})
    found = inversion(private, load_data(private), records=1, times=2, rng=SeededRandomness("noise"))
    assert found.read == 0
    assert found.errors.min() > 1


def test_weight_decay_and_local_steps_do_not_hide_it():
    plain = job("plain", weight_decay=0.1, local_steps=1, model="mlp")
    found = inversion(plain, load_data(plain), records=1, times=1, rng=SeededRandomness("decay"))
    assert found.read == 4


def test_what_does_not_fit_says_why():
    plain = job("plain")
    data = load_data(plain)
    assert unfit(plain, data.start, 4) == ""
    assert "trees" in unfit(plain, boosted(3, 2, 2), 4)
    statistics = msgspec.structs.replace(plain, train=parse({**TABLE, "train": {"algorithm": "statistics"}}).train)
    assert "moments" in unfit(statistics, data.start, 4, data)


def test_a_distance_is_measured_from_the_average():
    x, average = np.array([[1.0, 0.0], [0.0, 2.0]]), np.zeros(2)
    np.testing.assert_allclose(errors(np.array([[1.0, 0.0]]), x, average), [0, np.sqrt(5) / 2])
    assert np.isinf(errors(np.zeros((0, 2)), x, average)).all()
    with pytest.raises(ModelError, match="Linear"):
        quotients(boosted(3, 2, 2), np.zeros(9))


def test_a_unit_that_did_not_move_gives_no_guess():
    graph = Graph((Linear(np.zeros((2, 3)), np.zeros(2)), Sigmoid()))
    change = np.array([2.0, 4, 6, 1, 1, 1, 2, 0])
    np.testing.assert_array_equal(quotients(graph, change), [[1, 2, 3]])
