"""What peers answer, and the checks that it passes before it is believed: a peer's process is a stranger's.

JSON in the forms below, nothing else. Shapes, ranges and finiteness are checked against what was asked, versions
against the pins, and seconds against the clock of this process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.compare.peers.process import printable
from confide.errors import ProtocolError
from confide.structs import known

Matrix = NDArray[np.float64]

_MOST_ROUNDS = 100_000
_MOST_BYTES = float(1 << 50)
_MOST_LOGIT = 1e9
_SLACK = 1e-6


class TrainingAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a training gave.

    Args:
        version: of the framework.
        predictions: of the test rows, in [0, 1], shape (rows, outputs).
        curve: the same after each round; () where there are no rounds.
        rounds: how many were run.
        train_seconds: without what the framework takes to start.
        setup_seconds: what it took to start.
        upload_bytes, download_bytes: of one party over all rounds; None where nobody counted.
        client_seconds, server_seconds: of one party, and of the server, over all rounds; None where nobody measured.
        epsilon: that was spent, by the framework's own accountant; None without privacy.
        peak_memory_bytes: of all its processes.
    """

    version: str
    predictions: tuple[tuple[float, ...], ...]
    curve: tuple[tuple[tuple[float, ...], ...], ...] = ()
    rounds: int
    train_seconds: float
    setup_seconds: float = 0.0
    upload_bytes: float | None = None
    download_bytes: float | None = None
    client_seconds: float | None = None
    server_seconds: float | None = None
    epsilon: float | None = None
    peak_memory_bytes: float = 0.0


class InferenceAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What predictions gave, one row at a time.

    Args:
        version: of the framework.
        outputs: for the first rows that were asked, in their order, shape (answered, outputs).
        of: "logits", before the last sigmoid, or "outputs", after it.
        client_seconds, server_seconds: of each row; () where one clock runs for both, then `seconds` has them.
        seconds: of each row, all roles together.
        setup_seconds: keys, compilation, and what else is done once.
        key_bytes, query_bytes, reply_bytes: that travel; None where nobody counted.
        between_servers_bytes: of one row, all servers together.
        peak_memory_bytes: of all its processes.
    """

    version: str
    outputs: tuple[tuple[float, ...], ...]
    of: Literal["logits", "outputs"]
    client_seconds: tuple[float, ...] = ()
    server_seconds: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    setup_seconds: float = 0.0
    key_bytes: float | None = None
    query_bytes: float | None = None
    reply_bytes: float | None = None
    between_servers_bytes: float | None = None
    peak_memory_bytes: float = 0.0


_Answer = TypeVar("_Answer", TrainingAnswer, InferenceAnswer)


def read_training(
    body: bytes, *, version: str, rows: int, outputs: int, took_seconds: float, epsilon: float | None
) -> TrainingAnswer:
    """Return a training's answer, checked.

    Args:
        body: what the peer wrote.
        version: of the pins.
        rows, outputs: that its predictions must have.
        took_seconds: of its whole process.
        epsilon: the most it may have spent; None for a training without privacy.

    Raises:
        ProtocolError: it is not what was asked for.
    """
    found = _decoded(body, TrainingAnswer)
    _version(found.version, version)
    _probabilities(found.predictions, rows, outputs, "predictions")
    _within("rounds", [found.rounds], _MOST_ROUNDS)
    if found.curve and len(found.curve) != found.rounds:
        raise ProtocolError(f"Expected a curve of {found.rounds} rounds from the peer, got {len(found.curve)}")
    for number, point in enumerate(found.curve, 1):
        _probabilities(point, rows, outputs, f"curve, round {number}")
    _seconds([found.train_seconds + found.setup_seconds, found.train_seconds, found.setup_seconds], took_seconds)
    _within("bytes", _given(found.upload_bytes, found.download_bytes, found.peak_memory_bytes), _MOST_BYTES)
    _within("seconds of a side", _given(found.client_seconds, found.server_seconds), took_seconds + 1.0)
    if (found.epsilon is None) != (epsilon is None):
        raise ProtocolError("Expected the peer to say what epsilon it spent where the job has one, and nowhere else")
    if found.epsilon is not None and epsilon is not None and not 0 < found.epsilon <= epsilon * (1 + 1e-3):
        raise ProtocolError(f"Expected the peer to spend at most epsilon={epsilon:g}, got {found.epsilon:g}")
    return found


def read_inference(
    body: bytes, *, version: str, rows: int, outputs: int, took_seconds: float
) -> tuple[InferenceAnswer, Matrix]:
    """Return what a peer answered to queries, checked, and its outputs after the last sigmoid.

    Args:
        body: what the peer wrote.
        version: of the pins.
        rows: that were asked for at most; at least 2 must be answered.
        outputs: of each.
        took_seconds: of its whole process.

    Raises:
        ProtocolError: it is not what was asked for.
    """
    found = _decoded(body, InferenceAnswer)
    _version(found.version, version)
    answered = len(found.outputs)
    if not 2 <= answered <= rows:
        raise ProtocolError(f"Expected from 2 to {rows} answers from the peer, got {answered}")
    y = _matrix(found.outputs, answered, outputs, "outputs")
    if float(np.abs(y).max()) > _MOST_LOGIT or (found.of == "outputs" and (y.min() < -0.5 or y.max() > 1.5)):
        raise ProtocolError("Expected outputs of the model's range from the peer")
    split = len(found.client_seconds), len(found.server_seconds)
    if (split, len(found.seconds)) not in (((answered, answered), 0), ((0, 0), answered)):
        raise ProtocolError(f"Expected seconds of {answered} answers from the peer, of both sides or of all together")
    _seconds([*found.client_seconds, *found.server_seconds, *found.seconds], took_seconds)
    _seconds([sum(found.client_seconds) + sum(found.server_seconds) + sum(found.seconds)], took_seconds)
    _seconds([found.setup_seconds], took_seconds)
    sizes = found.key_bytes, found.query_bytes, found.reply_bytes, found.between_servers_bytes, found.peak_memory_bytes
    _within("bytes", _given(*sizes), _MOST_BYTES)
    return found, y if found.of == "outputs" else 1 / (1 + np.exp(-np.clip(y, -700, 700)))


def _decoded(body: bytes, kind: type[_Answer]) -> _Answer:
    try:
        return msgspec.json.decode(body, type=known(kind))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"Expected an answer of the agreed form from the peer; {printable(str(error))}") from None


def _version(found: str, wanted: str) -> None:
    if found != wanted:
        raise ProtocolError(f"Expected version {wanted} of the peer, got {printable(found, most=40)}")


def _given(*values: float | None) -> list[float]:
    return [value for value in values if value is not None]


def _matrix(rows: tuple[tuple[float, ...], ...], count: int, width: int, what: str) -> Matrix:
    if len(rows) != count or any(len(row) != width for row in rows):
        raise ProtocolError(f"Expected {what} of shape ({count}, {width}) from the peer")
    found = np.array(rows, np.float64).reshape(count, width)
    if not np.isfinite(found).all():
        raise ProtocolError(f"Expected finite numbers as {what} from the peer")
    return found


def _probabilities(rows: tuple[tuple[float, ...], ...], count: int, width: int, what: str) -> None:
    found = _matrix(rows, count, width, what)
    if found.min(initial=0.0) < -_SLACK or found.max(initial=0.0) > 1 + _SLACK:
        raise ProtocolError(f"Expected {what} from 0 to 1 from the peer")


def _within(what: str, values: Iterable[float], most: float) -> None:
    for value in values:
        if not (math.isfinite(value) and 0 <= value <= most):
            raise ProtocolError(f"Expected {what} from 0 to {most:g} from the peer, got {value:g}")


def _seconds(values: Iterable[float], took: float) -> None:
    """Refuse seconds that this process's own clock did not see pass."""
    _within("seconds", values, took)
