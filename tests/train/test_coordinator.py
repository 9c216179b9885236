"""A federation against the loop in one process: the same model bit for bit, whoever vanishes, restarts or lies."""

from __future__ import annotations

import pytest

from confide.crypto.random import SeededRandomness
from confide.train import load_data, train
from train.federation import NAMES, Federation, job_of, tables


def in_process(job, seed=None):
    """The oracle: the same job in one process."""
    rng = SeededRandomness(seed) if seed else None
    return list(train(job, load_data(job, rng=rng), rng=rng))


@pytest.mark.parametrize("aggregate", ["plain", "masked", "amortised"])
def test_a_federation_trains_the_model_of_one_process_bit_for_bit(tmp_path, aggregate):
    tables(tmp_path)
    job = job_of(tmp_path, train={"aggregate": aggregate})
    with Federation(tmp_path, job) as federation:
        for name in NAMES:
            federation.start(name)
        done = list(federation.coordinator().rounds())
    expected = in_process(job)
    assert [one.parameters.tobytes() for one in done] == [one.parameters.tobytes() for one in expected]
    assert all(one.members == frozenset(NAMES) and one.attempts == 1 for one in done)
