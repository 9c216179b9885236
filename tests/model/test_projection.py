"""The public random projection: orthonormal rows, the same for everybody, and nothing grows."""

import hashlib

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import DataError, ModelError
from confide.model.projection import RandomProjection


@st.composite
def projections(draw):
    features = draw(st.integers(1, 90))
    return RandomProjection(features, draw(st.integers(1, features)), draw(st.integers(-(2**63), 2**63 - 1)))


@given(projections(), st.integers(0, 2**32))
@settings(deadline=None)
def test_it_is_the_matrix_that_its_module_describes(projection, seed):
    x = np.random.default_rng(seed).uniform(-1, 1, (5, projection.features))
    whole = scipy.linalg.hadamard(projection.size) / np.sqrt(projection.size)
    chosen = whole[projection.rows]
    np.testing.assert_allclose(chosen @ chosen.T, np.eye(projection.outputs), atol=1e-12)
    wanted = (x * projection.signs) @ chosen[:, : projection.features].T
    np.testing.assert_allclose(projection.apply(x), wanted, atol=1e-12)


@given(projections(), st.integers(0, 2**32))
@settings(deadline=None)
def test_no_row_grows(projection, seed):
    x = np.random.default_rng(seed).normal(size=(7, projection.features))
    before, after = np.linalg.norm(x, axis=1), np.linalg.norm(projection.apply(x), axis=1)
    assert np.all(after <= before * (1.0 + 1e-12))


@given(projections(), st.integers(1, 40), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_row_depends_on_itself_alone(projection, n, seed):
    x = np.random.default_rng(seed).normal(size=(n, projection.features))
    whole = projection.apply(x)
    for row in range(n):
        assert np.array_equal(projection.apply(x[row : row + 1])[0], whole[row])


def test_all_outputs_of_a_power_of_two_keep_every_length():
    x = np.random.default_rng(1).normal(size=(9, 64))
    kept = RandomProjection(64, 64, 3).apply(x)
    np.testing.assert_allclose(np.linalg.norm(kept, axis=1), np.linalg.norm(x, axis=1), rtol=1e-12)


def test_distances_keep_their_proportions():
    """Also of rows that differ in one feature, which a choice of features without the signs and H would lose."""
    x = np.eye(784)[:40]
    kept = RandomProjection(784, 256, 5).apply(x)
    lengths = np.linalg.norm(kept[:, None] - kept[None], axis=2)[np.triu_indices(40, 1)]
    share = lengths**2 / 2.0 / (256 / 1024)
    assert 0.6 < share.min() < share.max() < 1.5


def test_seeds_differ_and_the_bits_of_one_never_change():
    """A saved model names the seed alone, so these bits are part of its format."""
    projections = [RandomProjection(100, 30, seed) for seed in (1, 2)]
    assert not np.array_equal(projections[0].signs, projections[1].signs)
    assert not np.array_equal(projections[0].rows, projections[1].rows)
    x = np.arange(300.0).reshape(3, 100) / 7.0
    digest = hashlib.sha256(projections[0].apply(x).astype("<f8").tobytes()).hexdigest()
    assert digest == "773020279a3992a7ce982b74c8173f4ffce3fff57b7e103599fd7c1449661879"


@pytest.mark.parametrize("sizes", [(0, 0, 1), (5, 6, 1), (5, 0, 1), (2**16 + 1, 5, 1), (5, 5, 2**63)], ids=str)
def test_sizes_out_of_range_are_refused(sizes):
    with pytest.raises(ModelError):
        RandomProjection(*sizes)


@pytest.mark.parametrize("x", [np.zeros((2, 4)), np.zeros(5), np.full((1, 5), np.inf), np.full((1, 5), "1")], ids=str)
def test_rows_that_do_not_fit_are_refused(x):
    with pytest.raises(DataError):
        RandomProjection(5, 2, 1).apply(x)
