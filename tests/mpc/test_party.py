"""Two parties run programs on shares: bit for bit what the masks say, within the stated bounds of the truth."""

from __future__ import annotations

import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.errors import ProtocolError
from confide.mpc import operations as op
from confide.mpc.ahead import add_corrections, prepare
from confide.mpc.correlations import MOST_BATCH_BYTES, DealId, Layout, drawn
from confide.mpc.dealer import deal, model_masks
from confide.mpc.operations import Kind, Program
from confide.mpc.party import Place, run_program, schedule_of, sent_bytes
from confide.mpc.periodic import fit
from confide.wire import Message, alter, truncate
from mpc import plain
from mpc.parties import NAMES, RNG, Table, emulate

OPEN, S = Kind.OPEN, Kind.SHARED
EDGE = 1 << 62


def words(values) -> np.ndarray:
    return np.asarray(values, np.int64).view(np.uint64)


def fixed(values, scale: int = 16) -> np.ndarray:
    return words(np.rint(np.asarray(values) * 2.0**scale))


def modes(test):
    return pytest.mark.parametrize("owned", [True, False], ids=["owned", "shared"])(test)


def network(rows: int = 2) -> Program:
    """A convolution, a pool before its ReLU, a residual sum, a dense layer: every gate of inference."""
    made: list[op.AnyOperation] = []

    def add(operation: op.AnyOperation) -> int:
        made.append(operation)
        return len(made) - 1

    x = add(op.Load("x", (rows, 2, 6, 6), 16, OPEN, "input"))
    w, b = add(op.Load("w", (4, 2, 3, 3), 16, OPEN, "model")), add(op.Load("b", (4,), 32, S, "model"))
    y = add(op.Convolve(x, w, (1, 1), (1, 1, 1, 1)))
    b = add(op.Broadcast(add(op.Reshape(b, (4, 1, 1))), (rows, 4, 6, 6)))
    y = add(op.Open(add(op.Add(y, b))))
    first = add(op.Slice(y, (0,) * 4, (rows, 4, 6, 6), (1, 1, 1, 2)))
    second = add(op.Slice(y, (0, 0, 0, 1), (rows, 4, 6, 6), (1, 1, 1, 2)))
    apart = add(op.Subtract(first, second))
    larger = add(op.Select(add(op.Sign(apart, 45, 16)), apart))
    y = add(op.Open(add(op.Add(larger, second))))
    z = add(op.Select(add(op.Sign(y, 44, 16)), y, 16))
    skip = add(op.Times(add(op.Truncate(y, 16)), 2))
    z = add(op.Open(add(op.Reshape(add(op.Add(z, skip)), (rows, 72)))))
    v, c = add(op.Load("v", (72, 3), 16, OPEN, "model")), add(op.Load("c", (3,), 32, S, "model"))
    y = add(op.Add(add(op.MatMul(z, v)), add(op.Broadcast(c, (rows, 3)))))
    y = add(op.Shift(y, 5 << 32))
    add(op.Reveal(y))
    return Program(tuple(made))


def weights(seed: int = 1) -> dict[str, np.ndarray]:
    stream = np.random.default_rng(seed)
    shapes = {"w": ((4, 2, 3, 3), 16), "b": ((4,), 32), "v": ((72, 3), 16), "c": ((3,), 32)}
    return {name: fixed(0.3 * stream.normal(size=shape), scale) for name, (shape, scale) in shapes.items()}


def images(seed: int, rows: int = 2) -> np.ndarray:
    return fixed(np.random.default_rng(seed).uniform(-1, 1, (rows, 2, 6, 6)))


@modes
@pytest.mark.parametrize("seed", range(3))
def test_a_network_is_bit_for_bit_what_the_masks_say_and_near_the_truth(owned, seed):
    model, x = weights(), images(seed)
    played = Table(owned, model).play(network(), {"x": x})
    loaded = {**model, "x": x}
    assert (played.output() == played.emulated(loaded)).all()
    truth = plain.run(network(), loaded).output()
    assert np.abs(played.output() * 2.0**-32 - truth).max() < 2e-3
    assert not (owned and played.outcomes[1].outputs)  # the server learns nothing


def gates(*, series: bool) -> Program:
    """What inference does not use: private products, squares, sums, bits, a Fourier series, state."""
    made: list[op.AnyOperation] = []

    def add(operation: op.AnyOperation) -> int:
        made.append(operation)
        return len(made) - 1

    a = add(op.Load("a", (3, 4, 5), 16, S, "input"))
    b = add(op.Load("b", (3, 5, 2), 16, S, "input"))
    p, q = add(op.Open(a)), add(op.Open(b))
    y = add(op.MatMul(p, q))
    t = add(op.MatMul(q, p, True, True))  # (2, 5) x (5, 4)
    y = add(op.Subtract(y, add(op.Transpose(t, (0, 2, 1)))))
    add(op.Reveal(y, "zero"))
    square = add(op.Sum(add(op.Multiply(p, p)), 2))
    add(op.Reveal(square, "square"))
    masked = add(op.Open(square))
    add(op.Reveal(add(op.Truncate(masked, 20, 16)), "less"))
    bit = add(op.Sign(p, 30, 4))
    some = add(op.Slice(add(op.Reshape(bit, (12, 5))), (0, 0), (12, 5), (2, 1)))
    add(op.Reveal(add(op.Number(some)), "count"))
    add(op.Reveal(some, "bits"))
    add(op.Reveal(add(op.Select(bit, add(op.Shift(p, -7)), 3)), "third"))
    if series:
        tanh = fit(np.tanh, -2.0, 2.0, error=1e-3, scale=16)
        add(op.Reveal(add(op.Periodic(p, tanh.period, tanh.cosines, tanh.sines)), "tanh"))
    joined = add(op.Concatenate((add(op.Slice(a, (0, 0, 0), (3, 4, 2), (1, 1, 1))), a), 2))
    add(op.Reveal(add(op.Times(joined, -3, 2)), "joined"))
    add(op.Keep(p, "p"))
    add(op.Keep(square, "square"))
    return Program(tuple(made))


@modes
def test_every_other_gate_is_what_it_says(owned):
    stream = np.random.default_rng(3)
    given = {"a": fixed(stream.uniform(-1.9, 1.9, (3, 4, 5))), "b": fixed(stream.uniform(-2, 2, (3, 5, 2)))}
    played = Table(owned).play(gates(series=True), given)
    truth = plain.run(gates(series=False), given)
    exact = Table(owned).play(gates(series=False), given)
    for name in truth.outputs:
        assert (exact.output(name) == exact.emulated(given, name)).all()
    assert (played.output("zero") == 0).all()
    for name in ("square", "joined"):
        assert (played.output(name) == truth.outputs[name]).all()
    assert (np.abs(played.output("less") - truth.outputs["less"]) <= 1).all()
    assert (np.abs(played.output("third") - truth.outputs["third"]) <= 1).all()
    apart = np.abs(given["a"].view(np.int64)).reshape(12, 5)[::2] >= 16  # nearer to 0 a sign may slip
    for name in ("bits", "count"):
        assert (played.output(name) == truth.outputs[name])[apart].all()
    assert (
        np.abs(played.output("tanh") * 2.0**-op.PERIODIC_SCALE - np.tanh(given["a"].view(np.int64) * 2.0**-16)).max()
        < 2e-3
    )


def opened(operation: op.AnyOperation, count: int, *, scale: int = 32) -> Program:
    """x, opened, one operation, revealed."""
    return Program((op.Load("x", (count,), scale, S, "input"), op.Open(0), operation, op.Reveal(2)))


def truncation(count: int, seed: int) -> tuple[int, float]:
    """How many of `count` truncations are wrong by more than one, and how often one is rounded up against its share."""
    stream = np.random.default_rng(seed)
    y = stream.integers(-EDGE, EDGE, count)
    y[:4] = -EDGE, EDGE - 1, -1, 0
    found = Table(seed % 2 == 0).play(opened(op.Truncate(1, 16), count), {"x": words(y)}).output()
    up = found - (y >> 16)
    return int(((up != 0) & (up != 1)).sum()), float(up.mean() - (y & 0xFFFF).mean() / 65536)


def test_no_truncation_is_far_off_over_the_whole_range():
    wrong, bias = truncation(1_000_000, 0)
    assert wrong == 0
    assert abs(bias) < 5 * 0.5 / 1000  # five standard deviations


@pytest.mark.slow
def test_no_truncation_is_far_off_in_1e8():
    for seed in range(100):
        wrong, bias = truncation(1_000_000, seed)
        assert wrong == 0
        assert abs(bias) < 6 * 0.5 / 1000


def test_truncation_of_shares_alone_is_far_off():
    """The control: what others do in one local step fails for values of this size, so the tests above have teeth."""
    stream = np.random.default_rng(1)
    y = stream.integers(-EDGE, EDGE, 1_000_000)
    mine = stream.integers(0, 1 << 64, len(y), np.uint64)
    theirs = y.view(np.uint64) - mine
    found = (mine >> np.uint64(16)) - ((-theirs.view(np.int64)).view(np.uint64) >> np.uint64(16))
    assert (np.abs(found.view(np.int64) - (y >> 16)) > 1).sum() > 1000


@modes
@pytest.mark.parametrize(("window", "drop"), [(44, 16), (45, 16), (20, 0), (62, 30), (8, 1), (62, 0)])
def test_signs_are_exact_where_that_is_stated(owned, window, drop):
    stream = np.random.default_rng(window)
    low, high, slack = -(1 << window), (1 << window) - (1 << drop), 1 << drop
    d = stream.integers(low, high, 4000)
    d[:8] = low, low + 1, -slack, -slack - (drop > 0), 0, 1, high - 1, high - 2
    d = d[(d >= 0) | (d <= -slack)]
    found = Table(owned).play(opened(op.Sign(1, window, drop), len(d)), {"x": words(d)}).output()
    assert (found == (d >= 0)).all()


def test_between_a_sign_slips_as_often_as_stated():
    d = np.repeat([-1, -16384, -32768, -49152, -65535], 4000)
    found = Table().play(opened(op.Sign(1, 44, 16), len(d)), {"x": words(d)}).output().reshape(5, 4000)
    stated = 1 - np.array([1, 16384, 32768, 49152, 65535]) / 65536
    assert (np.abs(found.mean(axis=1) - stated) < 5 * 0.5 / 4000**0.5).all()


def test_outside_its_window_a_sign_is_wrong():
    d = np.full(100, 1 << 44)
    assert not Table().play(opened(op.Sign(1, 44, 16), len(d)), {"x": words(d)}).output().any()


@modes
def test_the_larger_of_two_is_off_by_less_than_an_ulp(owned):
    stream = np.random.default_rng(5)
    a = stream.integers(-(1 << 43), 1 << 43, 3000)
    b = a + stream.integers(-(1 << 17), 1 << 17, 3000)
    a[:2], b[:2] = ((1 << 43) - 1, -(1 << 43)), (-(1 << 43), (1 << 43) - 1)
    load = tuple(op.Load(name, (3000,), 32, S, "input") for name in "ab")
    pick = (op.Open(0), op.Open(1), op.Subtract(2, 3), op.Sign(4, 45, 16), op.Select(5, 4), op.Add(6, 3), op.Reveal(7))
    found = Table(owned).play(Program((*load, *pick)), {"a": words(a), "b": words(b)}).output()
    assert ((found == a) | (found == b)).all()
    assert (np.maximum(a, b) - found < 1 << 16).all()
    assert (found != np.maximum(a, b)).any()  # some slip: the bound is not idle


# --- state ------------------------------------------------------------------------------------------------------------


@modes
def test_values_live_on_between_programs(owned):
    """Weights that are kept masked and shared, opened anew in each step under a fresh mask."""
    first = Program((op.Load("x", (4,), 16, S, "input"), op.Open(0), op.Keep(1, "w"), op.Keep(0, "v")))
    load = op.Load("w", (4,), 16, OPEN, "state"), op.Load("v", (4,), 16, S, "state")
    then = Program(
        (*load, op.Multiply(0, 0), op.Add(1, 1), op.Open(3), op.Keep(4, "w"), op.Reveal(2), op.Reveal(1, "v"))
    )
    table, x = Table(owned), np.array([3, -4, 5, -6])
    table.play(first, {"x": words(x)})
    assert (table.play(then, {}).output() == x * x).all()
    for times in (2, 2):
        played = table.play(then, {})
        assert (played.output() == (times * x) ** 2).all()
        assert (played.output("v") == x).all()


def test_a_state_that_nobody_kept_is_refused():
    program = Program((op.Load("w", (4,), 16, OPEN, "state"), op.Multiply(0, 0), op.Reveal(1)))
    with pytest.raises(ProtocolError, match="keep it first"):
        Table().play(program, {})


# --- what is sent -----------------------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("bits", [1, 16, 40, 62])
def test_what_is_told_without_its_low_bits_is_the_floor_or_one_more(owned, bits):
    y = np.random.default_rng(bits).integers(-(1 << 61), 1 << 61, 3000)
    program = Program((op.Load("x", (3000,), 62, S, "input"), op.Open(0), op.Add(1, 0), op.Reveal(2, "y", bits)))
    found = Table(owned).play(program, {"x": words(y)}).output()
    up = found - (2 * y >> bits)
    assert set(np.unique(up)) == {0, 1}


@modes
def test_rounds_and_bytes_are_those_of_the_schedule(owned):
    played = Table(owned, weights()).play(network(), {"x": images(1)})
    schedule = schedule_of(played.layout)
    for party, name in enumerate(NAMES):
        stated = sum(sent_bytes(played.layout, party, n) for n in {n for each in schedule.rounds for n in each.sends})
        assert played.transcript.bytes_sent(name) == stated
    # P0's first opening does not wait for P1; shares of x come, and those of y go, beside this run
    assert played.transcript.depth == len(schedule.rounds) - (1 if owned else 2)


def bodies(played, party: str) -> bytes:
    return b"".join(message.body for message in played.transcript.messages if message.src == party)


def skewed(body: bytes) -> float:
    """The chi-squared statistic of the bytes: 255 degrees of freedom, above 400 once in 10^7."""
    counts = np.bincount(np.frombuffer(body, np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


@modes
def test_everything_sent_is_uniform_whatever_the_input(owned):
    for x in (np.zeros(20_000), np.full(20_000, 1 << 20), np.full(20_000, -1)):
        played = Table(owned).play(_relu(20_000), {"x": words(x)})
        for name in NAMES:
            assert skewed(bodies(played, name)) < 400


def _relu(count: int) -> Program:
    return Program(
        (op.Load("x", (count,), 32, S, "input"), op.Open(0), op.Sign(1, 44, 16), op.Select(2, 1, 16), op.Open(3))
    )


def test_small_masks_would_show():
    """The control: masks of 40 bits leave the high bytes of small values as they are."""
    x = np.full(20_000, 1 << 20, np.uint64)
    masked = x + np.random.default_rng(1).integers(0, 1 << 40, len(x), np.uint64)
    assert skewed(masked.tobytes()) > 400


def test_masks_fill_the_word():
    played = Table().play(_relu(20_000), {"x": words(np.zeros(20_000))})
    masks = emulate(played, {"x": words(np.zeros(20_000))}).masks
    assert all(abs((mask >> np.uint64(63)).mean() - 0.5) < 0.02 for mask in masks.values())


# --- malformed messages -----------------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("to", NAMES)
@pytest.mark.parametrize("keep", [0, 1, 7, 8])
def test_messages_of_another_length_are_refused(owned, to, keep):
    rounds = len(schedule_of(Table(owned, weights()).play(network(), {"x": images(1)}).layout).rounds)
    for count in range(1, rounds + 1):
        for fault in (
            truncate(keep, dst=to, tag=f"test/{count}"),
            alter(lambda b: b + b"\0", dst=to, tag=f"test/{count}"),
        ):
            played = Table(owned, weights()).play(network(), {"x": images(1)}, fault=fault)
            touched = any(m.dst == to and m.tag == f"test/{count}" for m in played.transcript.messages)
            failed = played.transcript.failures.get(to)
            assert isinstance(failed, ProtocolError) if touched else failed is None


# --- what a view can be made from -------------------------------------------------------------------------------------


def test_under_the_same_masks_another_input_shows_itself():
    """Why an id serves once: two runs under one deal differ by the difference of the inputs, in the clear."""
    seen = []
    for x in (np.array([5, 6, 7]), np.array([5, 6, 1007])):
        table = Table(rng=SeededRandomness("masks"))
        played = table.play(_relu(3), {"x": words(x)})
        seen.append(np.frombuffer(played.transcript.messages[0].body, np.uint64))
    assert (seen[1] - seen[0] == [0, 0, 1000]).all()
    other = Table(rng=SeededRandomness("other masks")).play(_relu(3), {"x": words([5, 6, 7])})
    assert (np.frombuffer(other.transcript.messages[0].body, np.uint64) != seen[0]).all()


def test_fresh_masks_make_openings_independent_of_the_input():
    """Each bit of what P0 opens agrees with the same bit of its input half the time."""
    x = np.random.default_rng(2).integers(-(1 << 40), 1 << 40, 40_000)
    sent = np.frombuffer(Table().play(_relu(len(x)), {"x": words(x)}).transcript.messages[0].body, np.uint64)
    agree = np.unpackbits((sent[: len(x)] ^ ~words(x)).view(np.uint8)).reshape(len(x), 64).mean(axis=0)
    assert (np.abs(agree - 0.5) < 6 * 0.5 / 200).all()


@modes
@pytest.mark.parametrize("party", [0, 1])
def test_a_view_is_simulated_by_random_messages(owned, party):
    """A party runs to its end on uniform bytes in place of the other's messages, and what it sends stays uniform: its
    view holds nothing that its own randomness and, at the receiver, the output do not give."""
    table = Table(owned, weights())
    layout = Layout.of(network(2), owned=owned)
    deal_id = DealId(table.run_id, 0)
    dealt, *corrections = deal(layout, table.seeds, deal_id, model=model_masks(layout, table.seeds, table.run_id))
    fixed = table.fixed(layout)[party]
    ready = prepare(layout, party, table.keys()[party], deal_id, dealt if party else b"", fixed)
    for place, body in enumerate(corrections):
        add_corrections(layout, ready, place, body)
    given = {"x": images(1)} if party == 0 or not owned else {}
    schedule = schedule_of(layout)
    running = run_program(Place(party, NAMES, "test"), layout, schedule, fixed, ready, given)
    other, sent, steps = NAMES[1 - party], b"", 0
    try:
        step = next(running)
        while True:
            steps += 1
            sent += b"".join(message.body for message in step.send)
            count = int(step.await_tag.rpartition("/")[2]) if step.wait_for else 0
            sends = schedule.rounds[count - 1].sends if count else ()
            size = sum(sent_bytes(layout, 1 - party, n) for n in sends if schedule.ready[n] == count)
            messages = {other: Message(other, NAMES[party], step.await_tag, RNG.bytes(size))}
            step = running.send(messages if step.wait_for else {})
    except StopIteration as stop:
        outcome = stop.value
    assert steps >= len(schedule.rounds) - 2
    assert bool(outcome.outputs) == (party == 0 or not owned)
    assert skewed(sent) < 400


def _evens(count: int) -> Program:
    """A function whose public factors are multiples of 2^20: shares of its values are multiples of it as well."""
    return Program(
        (op.Load("x", (count,), 16, S, "input"), op.Open(0), op.Periodic(1, 1, (0, 1 << 20), (0,)), op.Reveal(2, "y"))
    )


def test_shares_of_what_is_told_are_uniform_whatever_was_computed():
    x = np.arange(20_000)
    played = Table(owned=False).play(_evens(len(x)), {"x": words(x)})
    assert (played.output() == np.where(x % 2, -1, 1) * (1 << 48)).all()
    for outcome in played.outcomes:
        assert skewed(outcome.outputs["y"].tobytes()) < 400
    bare = Table(owned=False)
    layout = Layout.of(_evens(len(x)), owned=False)
    number, purpose = next(key for key in layout.segments if key[1].name == "ZERO")
    segment = layout.segments[number, purpose]
    deal_id = DealId(bare.run_id, 0)
    dealt, *_ = deal(layout, bare.seeds, deal_id, model={})
    theirs = segment.view(dealt).astype(np.uint64)
    mine = drawn(deal_id.seed(bare.seeds.client), number, purpose, len(x))
    assert (mine + theirs == 0).all()
    share = played.outcomes[0].outputs["y"] - drawn(
        played.deal_id.seed(played.table.seeds.client), number, purpose, len(x)
    )
    assert not (share & np.uint64((1 << 20) - 1)).any()  # the control: without the share of zero they are not


def test_comparison_keys_under_one_aes_key_are_bounded():
    def layout(count: int) -> Layout:
        return Layout.of(Program((op.Load("x", (count,), 32, OPEN, "input"), op.Sign(0, 44, 16))), owned=True)

    most = MOST_BATCH_BYTES // (16 * 22)
    assert layout(most).batches[0].size_bytes <= MOST_BATCH_BYTES
    with pytest.raises(ProtocolError, match="fewer rows"):
        layout(most + 1)
