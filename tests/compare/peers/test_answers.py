"""What a peer says is believed only where it is what was asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.compare.peers.answers import read_inference, read_training
from confide.errors import ProtocolError

TRAINING = {"version": "1", "predictions": [[0.25], [1.0], [0.0]], "rounds": 2, "train_seconds": 1.5}
INFERENCE = {
    "version": "1",
    "of": "logits",
    "outputs": [[0.0], [2.0]],
    "client_seconds": [0.1, 0.1],
    "server_seconds": [0.2, 0.2],
}


def training(body: bytes | None = None, *, epsilon: float | None = None, **changed):
    body = json.dumps(TRAINING | changed).encode() if body is None else body
    return read_training(body, version="1", rows=3, outputs=1, took_seconds=2.0, epsilon=epsilon)


def inference(**changed):
    body = json.dumps(INFERENCE | changed).encode()
    return read_inference(body, version="1", rows=5, outputs=1, took_seconds=2.0)


def test_a_good_answer_is_taken():
    assert training(curve=[TRAINING["predictions"]] * 2, upload_bytes=10, epsilon=None).rounds == 2
    found, y = inference()
    assert len(found.outputs) == 2
    assert y[:, 0].tolist() == pytest.approx([0.5, 1 / (1 + np.exp(-2.0))])
    assert inference(of="outputs", outputs=[[0.25], [1.0]])[1].tolist() == [[0.25], [1.0]]
    assert inference(client_seconds=[], server_seconds=[], seconds=[0.5, 0.5])[0].seconds == (0.5, 0.5)


@pytest.mark.parametrize(
    "changed",
    [
        {"version": "2"},
        {"version": "\x1b[2J" * 1000},
        {"predictions": [[0.5]] * 2},
        {"predictions": [[0.5]] * 4},
        {"predictions": [[0.5, 0.5]] * 3},
        {"predictions": [[], [], []]},
        {"predictions": [[0.5], [0.5], [1.01]]},
        {"predictions": [[0.5], [0.5], [-0.01]]},
        {"predictions": [[0.5], [0.5], [float("nan")]]},
        {"predictions": [[0.5], [0.5], [float("inf")]]},
        {"predictions": "0.5"},
        {"predictions": [["0.5"]] * 3},
        {"predictions": None},
        {"curve": [[[0.5]] * 3]},
        {"curve": [[[0.5]] * 3, [[2.0]] * 3]},
        {"curve": [[[0.5]] * 3, [[0.5]] * 2]},
        {"rounds": -1},
        {"rounds": 10**9},
        {"rounds": 1.5},
        {"train_seconds": -0.1},
        {"train_seconds": 2.5},
        {"train_seconds": 1.5, "setup_seconds": 1.0},
        {"train_seconds": 1e308, "setup_seconds": 1e308},
        {"upload_bytes": -1},
        {"upload_bytes": 1e300},
        {"client_seconds": 100.0},
        {"epsilon": 1.0},
        {"unheard_of": 1},
    ],
)
def test_a_training_that_is_not_what_was_asked_for_is_refused(changed):
    with pytest.raises(ProtocolError) as refused:
        training(**changed)
    assert len(str(refused.value)) < 1000
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("spent", [None, 0.0, -1.0, 1.1, 1e9])
def test_epsilon_is_within_the_jobs(spent):
    body = json.dumps(TRAINING | ({} if spent is None else {"epsilon": spent})).encode()
    with pytest.raises(ProtocolError, match="epsilon"):
        training(body, epsilon=1.0)
    assert training(json.dumps(TRAINING | {"epsilon": 0.99}).encode(), epsilon=1.0).epsilon == 0.99


@pytest.mark.parametrize(
    "changed",
    [
        {"version": ""},
        {"of": "guesses"},
        {"outputs": [[0.0]]},
        {"outputs": [[0.0]] * 6},
        {"outputs": [[0.0], [0.0, 0.0]]},
        {"outputs": [[0.0], [float("nan")]]},
        {"outputs": [[0.0], [1e200]]},
        {"of": "outputs", "outputs": [[0.0], [7.0]]},
        {"client_seconds": [0.1]},
        {"server_seconds": []},
        {"seconds": [0.1, 0.1]},
        {"client_seconds": [], "server_seconds": []},
        {"client_seconds": [0.1, -0.1]},
        {"client_seconds": [0.1, 5.0]},
        {"client_seconds": [1.0, 1.0]},
        {"setup_seconds": 1e9},
        {"key_bytes": float("inf")},
        {"query_bytes": -5},
        {"more": []},
    ],
)
def test_predictions_that_are_not_what_was_asked_for_are_refused(changed):
    with pytest.raises(ProtocolError):
        inference(**changed)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"version": "1"',
        b"[" * 100_000,
        b'{"version": "1", "predictions": ' + b"[" * 50_000,
        json.dumps(TRAINING).replace("1.5", "1e999").encode(),
        json.dumps(TRAINING).replace("0.25", "NaN").encode(),
    ],
)
def test_junk_is_refused(body):
    with pytest.raises(ProtocolError):
        training(body)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(body):
    with pytest.raises(ProtocolError):
        training(body)
