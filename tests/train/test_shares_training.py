"""Training on shares by owners, two servers and a dealer: equal to float training, and nobody sees anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from confide.crypto.random import SeededRandomness
from confide.errors import Aborted, ProtocolError, UsageError
from confide.mpc.training_plan import Rates, Task
from confide.train.shares.course import Course, Piece
from confide.train.shares.parties import DEALER, KEY, ROWS, SERVERS
from confide.train.shares.run import starting_weights
from confide.train.shares.simulate import joined, simulate, words_of
from confide.wire import Message, alter, drop, truncate

from ..mpc.float_training import start_of, train_in_float

BATCH, ROWS_COUNT = 16, 40
TASKS = {
    "logistic": Task(features=6, rates=Rates.of(learning_rate=1.0, batch=BATCH, momentum=0.75, weight_decay=1e-2)),
    "linear": Task(features=6, loss="squared", rates=Rates.of(learning_rate=0.125, batch=BATCH)),
    "sigmoid": Task(features=6, loss="sigmoid", rates=Rates.of(learning_rate=1.0, batch=BATCH)),
    "softmax": Task(features=6, outputs=3, loss="softmax", rates=Rates.of(learning_rate=1.0, batch=BATCH)),
    "network": Task(features=6, hidden=(5, 4), outputs=2, rates=Rates.of(learning_rate=0.25, batch=BATCH)),
}


def data_of(task: Task, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (ROWS_COUNT, task.features))
    return x, (x @ rng.normal(size=(task.features, task.outputs)) > 0) * 1.0


def by_rows(x, y, cut: int = 13):
    columns = np.arange(x.shape[1])
    places = {"north": np.arange(cut), "south": np.arange(cut, len(x))}
    pieces = {name: Piece(rows, columns, targets=True) for name, rows in places.items()}
    return pieces, {name: (x[rows], y[rows]) for name, rows in places.items()}


def by_columns(x, y):
    rows = np.arange(len(x))
    pieces = {"bank": Piece(rows, np.array([0, 3]), targets=False), "shop": Piece(rows, np.array([1, 2, 4, 5]), True)}
    return pieces, {"bank": (x[:, [0, 3]], None), "shop": (x[:, [1, 2, 4, 5]], y)}


def course_of(task: Task, pieces, **given) -> Course:
    asked = {"task": task, "pieces": pieces, "rows": ROWS_COUNT, "batch": BATCH, "passes": 3, "opened": True} | given
    return Course(**asked)


def distance(one, other) -> float:
    pairs = [*zip(one.weights, other.weights, strict=True), *zip(one.biases, other.biases, strict=True)]
    return max(float(np.abs(a - b).max()) for a, b in pairs)


@pytest.mark.parametrize("name", TASKS)
def test_weights_equal_those_of_float_training_with_the_same_batches(name: str):
    task = TASKS[name]
    x, y = data_of(task)
    pieces, rows = by_rows(x, y)
    course, start = course_of(task, pieces), start_of(task)
    found = simulate(course, rows, SeededRandomness("train"), start=start)
    batches = [(x[at], y[at]) for _ in range(course.passes) for at in course.batches]
    model = train_in_float(task, start, batches, batch=BATCH)
    assert found.opened is not None
    assert distance(found.opened, model) < 2e-4
    assert distance(joined(task, found.shares), model) < 2e-4 + 2**-15
    assert distance(found.opened, train_in_float(task, start, batches[:-1], batch=BATCH)) > 1e-3  # one step less


def test_columns_at_different_owners_give_the_model_of_rows_at_different_owners():
    task = TASKS["logistic"]
    x, y = data_of(task)
    found = []
    for pieces, rows in (by_rows(x, y), by_columns(x, y)):
        result = simulate(course_of(task, pieces), rows, SeededRandomness("same"))
        assert result.opened is not None
        found.append(result.opened)
    assert distance(*found) < 1e-4


def test_weights_may_stay_shares_and_one_share_says_nothing():
    task = TASKS["logistic"]
    x, y = data_of(task)
    pieces, rows = by_rows(x, y)
    course = course_of(task, pieces, opened=False)
    first, second = (simulate(course, rows, SeededRandomness(seed)) for seed in ("one", "two"))
    assert first.opened is None
    assert {message.tag for message in first.transcript.messages if message.dst in pieces} == set()
    assert distance(joined(task, first.shares), joined(task, second.shares)) < 1e-3
    for server in (0, 1):  # the same model, other shares
        assert not np.any(first.shares[server].parts["w1"] == second.shares[server].parts["w1"])


def captured(course: Course, rows, seed: str = "watched"):
    messages = []

    def watch(message):
        messages.append(message)
        return [(0, message)]

    simulate(course, rows, SeededRandomness(seed), fault=watch)
    return messages


def uneven(body: bytes) -> float:
    """Return how unlikely the counts of bytes are if they are uniform: small is unlikely."""
    counts = np.bincount(np.frombuffer(body, np.uint8), minlength=256)
    return float(chi2.sf(((counts - counts.mean()) ** 2 / counts.mean()).sum(), 255))


def test_what_anybody_receives_is_uniform_or_the_dealers_and_the_dealer_receives_no_data():
    task = replace(TASKS["logistic"], rates=Rates.of(learning_rate=1.0, batch=BATCH))
    x, y = data_of(task)
    pieces, rows = by_rows(x, y)
    messages = captured(course_of(task, pieces, passes=16), rows)
    to_dealer = {message.tag.rpartition("/")[0] for message in messages if message.dst == DEALER}
    assert to_dealer == {KEY.rpartition("/")[0], "shares/go"}
    assert sum(len(message.body) for message in messages if message.dst == DEALER) < 64 * 150
    for server, other in (SERVERS, SERVERS[::-1]):
        rounds = [message.body for message in messages if (message.src, message.dst) == (server, other)]
        masked = b"".join(body for body in rounds if len(body) > 64)  # bits are few and padded with zeros
        assert len(masked) > 4_000
        assert uneven(masked) > 1e-6
    shared = [m.body for m in messages if m.tag == ROWS and m.dst == SERVERS[1]]
    assert uneven(b"".join(body[64:] for body in shared)) > 1e-6
    assert uneven(words_of(x).tobytes()) < 1e-30  # the control: rows in the clear
    clear = {words_of(x)[row].tobytes() for row in range(len(x))}
    assert not any(row in message.body for message in messages for row in clear)


def test_the_same_rows_never_look_the_same_twice():
    task = TASKS["linear"]
    x, y = data_of(task)
    pieces, rows = by_rows(x, y)
    first, second = (captured(course_of(task, pieces, passes=1), rows, seed) for seed in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        assert (one.tag, len(one.body)) == (other.tag, len(other.body))  # sizes say nothing
        assert one.body != other.body or "go" in one.tag


@pytest.mark.parametrize(
    "fault",
    [
        truncate(20, tag=ROWS, dst=SERVERS[1]),
        truncate(3, tag=ROWS, dst=SERVERS[0]),
        truncate(10, tag=KEY),
        truncate(100, tag="shares/deal/4"),
        alter(lambda body: body + b"\0", tag="shares/deal/4"),
        truncate(8, tag="shares/4/1"),
        alter(lambda body: body + bytes(8), tag="shares/4/2"),
        drop(tag="shares/3/2", src=SERVERS[0]),
        alter(lambda body: b"\x81\xa6number\x07", tag="shares/go/2"),
        truncate(9, tag="shares/model"),
    ],
)
def test_messages_that_are_cut_changed_or_lost_end_the_training(fault):
    task = TASKS["logistic"]
    x, y = data_of(task)
    pieces, rows = by_rows(x, y)
    with pytest.raises((ProtocolError, Aborted)):
        simulate(course_of(task, pieces, passes=1), rows, SeededRandomness("fault"), fault=fault)


def test_whatever_is_changed_on_the_way_only_our_own_errors_come_and_a_change_of_form_is_named():
    """Every message once: cut, grown, emptied, filled with noise, or replaced by an earlier one."""
    task = TASKS["linear"]
    x, y = data_of(task)
    pieces, rows = by_rows(x, y)
    course = course_of(task, pieces, passes=1)
    sent = captured(course, rows, "t")
    noise = np.random.default_rng(7)
    for place, aim in enumerate(sent):
        earlier = next((one for one in sent[:place] if one.dst == aim.dst and len(one.body) != len(aim.body)), None)
        forms = [aim.body[:-1], aim.body + b"\0", b"", aim.body[: len(aim.body) // 2]]
        forms += [] if earlier is None else [earlier.body]
        for body in forms:
            with pytest.raises(ProtocolError):
                simulate(course, rows, SeededRandomness("t"), fault=replaced(aim, body))
        try:
            simulate(course, rows, SeededRandomness("t"), fault=replaced(aim, noise.bytes(len(aim.body))))
        except (ProtocolError, Aborted):
            continue
        # masked values and shares are words of any bits: who follows the protocol sends the right ones (semi-honest)
        assert aim.tag.startswith("shares/")
        assert aim.src in SERVERS


def replaced(aim, body: bytes):
    """Return a fault that delivers `body` in the place of one message."""

    def fault(message):
        hit = (message.src, message.dst, message.tag) == (aim.src, aim.dst, aim.tag)
        return [(0, Message(message.src, message.dst, message.tag, body) if hit else message)]

    return fault


def test_a_message_of_one_round_is_not_taken_in_another():
    task = TASKS["linear"]
    x, y = data_of(task)
    pieces, rows = by_rows(x, y)
    course = course_of(task, pieces, passes=2)
    sent = captured(course, rows, "t")
    deals = [one for one in sent if one.tag.startswith("shares/deal/") and one.dst == SERVERS[1]]
    steps = [one for one in deals if len(one.body) == len(deals[-2].body)]
    other = [one for one in captured(course, rows, "u") if one.tag == steps[-1].tag and one.dst == SERVERS[1]]
    with pytest.raises(ProtocolError, match="one run"):  # of another training, with the same sizes
        simulate(course, rows, SeededRandomness("t"), fault=replaced(steps[-1], other[0].body))

    def twice(message):  # a second, different message under a tag that was used
        more = [(1, Message(message.src, message.dst, message.tag, message.body + b"x"))]
        return [(0, message), *(more if message.tag == "shares/4/1" else [])]

    first = simulate(course, rows, SeededRandomness("t"))
    second = simulate(course, rows, SeededRandomness("t"), fault=twice)
    assert second.transcript.rejected
    assert first.opened is not None
    assert second.opened is not None
    assert distance(first.opened, second.opened) == 0  # it is refused, and changes nothing


def test_courses_that_cannot_be_are_refused():
    task = TASKS["logistic"]
    x, y = data_of(task)
    pieces, rows = by_rows(x, y)
    twice = pieces | {"south": Piece(np.arange(12, ROWS_COUNT), np.arange(6), True)}
    unlabelled = pieces | {"south": replace(pieces["south"], targets=False)}
    called = {"dealer": pieces["north"], "south": pieces["south"]}
    for wrong in (
        {"pieces": {}},
        {"pieces": called},
        {"pieces": twice},
        {"pieces": unlabelled},
        {"rows": 39},
        {"batch": 0},
        {"passes": 0},
    ):
        with pytest.raises((UsageError, IndexError)):
            course_of(task, **({"pieces": pieces} | wrong))
    with pytest.raises(UsageError, match="at most 1024 in size"):
        simulate(
            course_of(task, pieces), rows | {"north": (rows["north"][0] * 1e6, rows["north"][1])}, SeededRandomness("n")
        )
    with pytest.raises(UsageError, match="finite"):
        words_of(np.array([np.nan]))


def test_starting_weights_are_public_and_zero_for_linear_models():
    assert all((weight == 0).all() for weight in starting_weights(TASKS["logistic"], 1))
    one, again, other = (starting_weights(TASKS["network"], seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))
