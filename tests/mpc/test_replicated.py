"""Three servers run programs: every block against integers and at its bounds, messages as planned, views uniform."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError
from confide.mpc import replicated_holders, replicated_third
from confide.mpc.building import Builder
from confide.mpc.operations import Kind, Load, Open, Program, Reveal, Select, Sign, Truncate
from confide.mpc.periodic import fit
from confide.mpc.replicated_plan import plan_of
from confide.wire import alter, delay, drop, repeat, run, truncate
from mpc import plain
from mpc.servers import SERVERS, compute, emulate, parties, share

EDGE = 1 << 62
WORD = 1 << 64


def single(count: int, *operations, scale: int = 32, kind: Kind = Kind.OPEN) -> Program:
    """A program on one input of `count` numbers."""
    return Program((Load("x", (count,), scale, kind, "input"), *operations))


def spread(count: int, low: int, high: int, seed: int = 0) -> np.ndarray:
    """Integers of all sizes in [low, high), and its edges."""
    stream = np.random.default_rng(seed)
    sizes = stream.integers(0, 63, count)
    found = stream.integers(-(1 << 62), 1 << 62, count) >> sizes
    found = np.clip(found, low, high - 1)
    edges = [low, low + 1, high - 1, high - 2, -1, 0, 1]
    found[: len(edges)] = np.clip(edges, low, high - 1)
    return found


# --- truncation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 4, 8, 9, 16, 17, 31, 32, 40, 62])
def test_truncation_is_the_floor_or_one_more_up_to_the_edges(bits):
    x = spread(5000, -EDGE, EDGE, bits)
    found = compute(single(5000, Truncate(0, bits, 0), Reveal(1)), {"x": x}).integers["y"]
    assert set(np.unique(found - (x >> bits))) <= {0, 1}


def test_truncation_never_wraps_in_many_elements():
    x = np.random.default_rng(1).integers(-EDGE, EDGE, 400_000)
    found = compute(single(x.size, Truncate(0, 16), Reveal(1)), {"x": x}).integers["y"]
    assert set(np.unique(found - (x >> 16))) == {0, 1}


def test_local_truncation_of_shares_would_wrap():
    """The control of the test above: dropping low bits share by share is wrong by 2^48 for many of these."""
    stream = np.random.default_rng(1)
    x = stream.integers(-EDGE, EDGE, 100_000)
    first = stream.integers(0, WORD, x.size, np.uint64)
    second = x.view(np.uint64) - first
    local = ((first.view(np.int64) >> 16) + (second.view(np.int64) >> 16)) - (x >> 16)
    assert (np.abs(local) > 1).mean() > 0.1


def test_truncation_rounds_without_bias():
    low = 0.3
    x = np.full(200_000, int(low * (1 << 16)) + (5 << 16))
    found = compute(single(x.size, Truncate(0, 16), Reveal(1)), {"x": x}).integers["y"] - 5
    assert abs(found.mean() - low) < 5 * np.sqrt(low * (1 - low) / x.size)


# --- signs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "drop"), [(44, 16), (45, 16), (62, 0), (62, 16), (30, 24), (5, 0), (20, 1)])
def test_signs_are_exact_in_the_window_and_slip_below_zero_alone(window, drop):
    x = spread(6000, -(1 << window), (1 << window) - (1 << drop), window)
    x[100:1000] = -np.random.default_rng(2).integers(1, 1 << max(drop, 1), 900)
    found = compute(single(6000, Sign(0, window, drop), Reveal(1)), {"x": x}).integers["y"]
    sure = (x >= 0) | (x <= -(1 << drop))
    assert (found[sure] == (x >= 0)[sure]).all()
    if not drop:
        assert (found == (x >= 0)).all()


def test_the_slip_of_a_sign_has_the_stated_probability():
    for part in (0.25, 0.75):
        x = np.full(100_000, -int(part * (1 << 16)))
        found = compute(single(x.size, Sign(0, 44, 16), Reveal(1)), {"x": x}).integers["y"]
        assert abs(found.mean() - (1 - part)) < 5 * np.sqrt(part * (1 - part) / x.size)


def test_small_positive_numbers_never_slip():
    x = np.arange(100_000)
    assert compute(single(x.size, Sign(0, 44, 16), Reveal(1)), {"x": x}).integers["y"].all()


# --- programs ---------------------------------------------------------------------------------------------------------


def blocks() -> tuple[Program, dict[str, np.ndarray]]:
    """A program with every operation but Periodic."""
    stream = np.random.default_rng(9)
    b = Builder()
    x = b.input("x", (2, 3, 6, 6))
    w, v = b.weight("w", (4, 3, 3, 3)), b.weight("v", (5, 36))
    y = b(Open(b.convolve(x, w, stride=(1, 2), padding=(1, 0, 1, 1))))
    rows = b.reshape(y, (2, 72))
    halves = [b.part(rows, 1, at, 72, 2) for at in (0, 1)]
    difference = b.minus(*halves)
    larger = b(Sign(difference, 45, 16))
    best = b.open(b.plus(b(Select(larger, difference)), halves[1]))
    positive = b(Sign(best, 44, 16))
    h = b.open(b(Select(positive, best, 16)))
    z = b.plus(b.matmul(h, v, transpose_b=True), b.broadcast(b.bias("c", (5,)), (2, 5)))
    b.reveal(z, "logits")
    square = b.multiply(h, h)
    b.reveal(square, "square")
    b.reveal(positive, "bits")
    b.reveal(b.number(b.part(positive, 1, 0, 10, 3)), "numbers")
    b.reveal(b.sum(b.plus(square, b.times(b.shift(h, 0.5), 3 << 16, rescaled=16)), 1), "sum")
    b.reveal(b.concatenate([b.transpose(z, (1, 0)), b.transpose(z, (1, 0))], 0), "both")
    b.reveal(b.truncate(z, 16), "short")
    values = {
        "x": plain.encoded(stream.normal(size=(2, 3, 6, 6)), 16),
        "w": plain.encoded(stream.normal(size=(4, 3, 3, 3)), 16),
        "v": plain.encoded(stream.normal(size=(5, 36)), 16),
        "c": plain.encoded(stream.normal(size=5), 32),
    }
    return b.program(), values


def test_a_program_is_its_emulation_to_the_last_bit():
    program, values = blocks()
    for seed in ("one", "two", "three"):
        outcome, wanted = compute(program, values, seed=seed), emulate(program, values, seed=seed)
        assert set(wanted) == {"logits", "square", "bits", "numbers", "sum", "both", "short"}
        for name, integers in wanted.items():
            assert (outcome.integers[name] == integers).all(), name


def test_a_program_is_near_what_it_means():
    program, values = blocks()
    outcome, clear = compute(program, values), plain.run(program, values)
    assert np.abs(outcome.output("logits") - clear.output("logits")).max() < 36 * 5 * 2.0**-15
    assert np.abs(outcome.output("short") - clear.output("short")).max() < 36 * 5 * 2.0**-15


def test_what_is_revealed_without_its_low_bits():
    x = spread(2000, -(1 << 61), 1 << 61)
    found = compute(single(2000, Reveal(0, "y", 16), kind=Kind.SHARED), {"x": x}).integers["y"]
    assert set(np.unique(found - (x >> 16))) <= {0, 1}


def test_smooth_functions():
    series = fit(np.tanh, -4, 4, error=1e-4, scale=16)
    b = Builder()
    b.reveal(b.periodic(b.input("x", (500,)), series))
    x = np.linspace(-4, 4, 500)
    found = compute(b.program(), {"x": plain.encoded(x, 16)}).output("y")
    assert np.abs(found - np.tanh(x)).max() < 2e-4


def test_kept_values_live_on_in_later_programs():
    """A step of training: both factors private, weights kept OPEN, momentum SHARED with a share at the third."""
    b = Builder()
    x, w = b.input("x", (8, 3)), b.state("w", (3, 2))
    m = b.state("m", (3, 2), kind=Kind.SHARED, scale=32)
    errors = b.open(b.truncate(b.matmul(x, w), 16))
    gradient = b.plus(b.matmul(x, errors, transpose_a=True), m)
    b.keep(b.open(b.truncate(gradient, 16)), "w")
    b.keep(gradient, "m")
    step = b.program()
    stream = np.random.default_rng(4)
    values = {
        name: plain.encoded(stream.normal(size=shape) / 4, scale)
        for name, shape, scale in (("x", (8, 3), 16), ("w", (3, 2), 16), ("m", (3, 2), 32))
    }
    parts = share(step, values).parts
    first = compute(step, values)
    for role in SERVERS:
        assert set(first.kept[role]) == {"w", "m"}
    held = {role: {"x": parts[role]["x"], "w": first.kept[role]["w"]} for role in SERVERS}
    b = Builder()
    w, x = b.state("w", (3, 2)), b.input("x", (8, 3))
    b.reveal(b.matmul(x, w))
    again = compute(b.program(), {}, parts=held).output("y")
    clear = plain.run(step, values).kept["w"] * 2.0**-16
    assert np.abs(again - plain.decoded(values["x"], 16) @ clear).max() < 8 * 2.0**-15


@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.integers(1, 70), st.integers(1, 20), st.integers(0, 1 << 30))
def test_any_number_of_elements(count, drop, seed):
    x = np.random.default_rng(seed).integers(-(1 << 40), 1 << 40, count)
    program = single(
        count, Sign(0, 44, drop), Select(1, 0, drop), Select(1, 0), Reveal(1, "s"), Reveal(2), Reveal(3, "m")
    )
    outcome, wanted = compute(program, {"x": x}), emulate(program, {"x": x})
    assert all((outcome.integers[name] == one).all() for name, one in wanted.items())


# --- messages ---------------------------------------------------------------------------------------------------------


def test_messages_are_those_of_the_plan():
    for program, values in (blocks(), (single(9, Reveal(0), kind=Kind.SHARED), {"x": np.arange(9)})):
        outcome = compute(program, values)
        sent = Counter(
            (message.src, message.dst, size)
            for message, size in zip(outcome.transcript.messages, outcome.transcript.sizes, strict=True)
        )
        assert sent == Counter(outcome.plan.messages)
        assert outcome.transcript.depth == outcome.plan.rounds + 2
        tags = Counter((message.src, message.dst, message.tag) for message in outcome.transcript.messages)
        assert set(tags.values()) == {1}  # at most one message to each peer in a round


def test_nobody_sends_the_third_anything():
    program, values = blocks()
    assert not compute(program, values).transcript.view("third")


def failures(fault) -> dict:
    program, values = blocks()
    transcript = run(parties(plan_of(program), share(program, values).parts), fault=fault)
    return transcript.failures


TAGS = [("third", "server", 0), ("third", "helper", 0), ("server", "helper", 1), ("helper", "server", 1)]
TAGS += [("server", "helper", 4), ("helper", "server", 6)]


@pytest.mark.parametrize(("src", "dst", "number"), TAGS)
@pytest.mark.parametrize("change", [lambda b: b"", lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:7]])
def test_another_length_is_refused(src, dst, number, change):
    found = failures(alter(change, src=src, dst=dst, tag=f"run/{number}"))
    assert isinstance(found[dst], ProtocolError)
    assert all(isinstance(one, ProtocolError) for one in found.values())


@pytest.mark.parametrize(("src", "dst", "number"), TAGS[:4])
def test_another_run_is_refused(src, dst, number):
    found = failures(alter(lambda body: bytes([body[0] ^ 1]) + body[1:], src=src, dst=dst, tag=f"run/{number}"))
    assert "same query" in str(found[dst])


@pytest.mark.parametrize("fault", [drop(tag="run/3"), truncate(5, tag="run/2"), drop(src="third", dst="helper")])
def test_lost_messages_end_the_run(fault):
    assert all(isinstance(one, ProtocolError) for one in failures(fault).values())
    assert failures(fault)


@pytest.mark.parametrize("fault", [repeat(tag="run/2"), delay(3, tag="run/1"), delay(9, src="third")])
def test_repeated_and_late_messages_change_nothing(fault):
    program, values = blocks()
    transcript = run(parties(plan_of(program), share(program, values).parts), fault=fault)
    whole = run(parties(plan_of(program), share(program, values).parts))
    assert not transcript.failures
    assert transcript.outputs["client"] == whole.outputs["client"]


def test_a_flipped_bit_of_a_share_is_no_error_and_no_crash():
    for number in range(1, 7):
        assert not failures(alter(lambda body: body[:-1] + bytes([body[-1] ^ 1]), tag=f"run/{number}"))


# --- views ------------------------------------------------------------------------------------------------------------


def uniform(body: bytes) -> bool:
    """Chi-squared of the bytes, 255 degrees of freedom: beyond 400 with probability 2e-8."""
    counts = np.bincount(np.frombuffer(body, np.uint8), minlength=256)
    expected = counts.sum() / 256
    return bool(((counts - expected) ** 2 / expected).sum() < 400)


def wide() -> tuple[Program, dict[str, np.ndarray]]:
    """One product, a maximum and a ReLU of constants: what is not masked stands out."""
    count = 20_000
    b = Builder()
    x, w = b.input("x", (count,)), b.weight("w", (count,))
    y = b.open(b.multiply(x, w))
    z = b.open(b(Select(b(Sign(y, 44, 16)), y, 16)))
    b.reveal(z if b.kind(z) is Kind.SHARED else b.multiply(z, z))
    return b.program(), {"x": np.full(count, 3 << 16), "w": np.full(count, 1 << 15)}


def uniform_views(outcome) -> dict[str, list[bool]]:
    return {
        role: [uniform(one.body) for one in outcome.transcript.view(role) if len(one.body) > 2000]
        for role in ("server", "helper")
    }


def test_every_message_is_uniform():
    found = uniform_views(compute(*wide()))
    assert all(all(one) for one in found.values())
    assert len(found["server"]) == 4
    assert len(found["helper"]) >= 5


def test_messages_without_masks_are_not(monkeypatch):
    """The control: the same protocol with streams of zeros shows what it computes on."""
    for module in (replicated_holders, replicated_third):
        monkeypatch.setattr(module, "drawn", lambda key, length: np.zeros(-(-length // 8) * 8, np.uint8))
    found = uniform_views(compute(*wide()))
    assert not any(any(one) for one in found.values())


def test_views_do_not_depend_on_values():
    """With other inputs and weights every opened message changes in the same way that fresh masks change it."""
    program, values = wide()
    others = {"x": -values["x"], "w": values["w"] * 7}
    one, other, again = compute(program, values), compute(program, others), compute(program, values, seed="fresh")
    for role in ("server", "helper"):
        for first, second, third in zip(*(each.transcript.view(role) for each in (one, other, again)), strict=True):
            if first.src in ("server", "helper") and len(first.body) > 2000:
                assert uniform(bytes(np.frombuffer(first.body, np.uint8) ^ np.frombuffer(third.body, np.uint8)))
                assert len(first.body) == len(second.body)
    assert one.transcript.sizes == other.transcript.sizes


def test_what_the_third_deals_depends_on_nothing():
    program, values = wide()
    one, other = compute(program, values), compute(program, {"x": -values["x"], "w": values["w"]})
    dealt = [[m.body for m in each.transcript.messages if m.src == "third"] for each in (one, other)]
    assert dealt[0] == dealt[1]


def test_shares_of_the_output_are_uniform_and_no_two_runs_share_masks():
    program, values = wide()
    one, other = compute(program, values, seed="one"), compute(program, values, seed="other")
    for body in one.transcript.outputs["client"]:
        assert uniform(body)
    same = [a.body == b.body for a, b in zip(one.transcript.messages, other.transcript.messages, strict=True)]
    assert not any(same)
