"""The ground of every protocol: bodies, inbox, faults, the deterministic driver, and what a transcript says."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import Aborted, ProtocolError
from confide.wire import (
    LATE_TICKS,
    Array,
    Event,
    Fault,
    Inbox,
    MemoryStore,
    Message,
    Party,
    Step,
    Transcript,
    alter,
    decode,
    delay,
    drop,
    encode,
    lose,
    repeat,
    run,
    truncate,
)


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    values: Array


# --- bodies -----------------------------------------------------------------------------------------------------------


DTYPES = ["int8", "uint8", "int64", "uint32", "uint64", "float32", "float64"]


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), min_size=1, max_size=3), st.binary(min_size=8, max_size=8))
@settings(deadline=None)
def test_arrays_come_back_as_they_were(dtype: str, shape: list[int], pattern: bytes) -> None:
    count = int(np.prod(shape))
    values = np.frombuffer(pattern * (count + 1), np.dtype(dtype))[:count].reshape(shape)
    body = decode(encode(Body("x", Array.of(values))), Body, max_bytes=10_000)
    back = body.values.numpy(dtype, tuple(shape))
    assert back.tobytes() == values.tobytes()
    assert back.shape == values.shape
    assert not back.flags.writeable


@pytest.mark.parametrize(
    "values", [np.arange(6, dtype=">i4"), np.arange(12, dtype="<i4")[::2], np.arange(6, dtype="<i4")]
)
def test_the_bytes_are_little_endian_and_contiguous_whatever_the_memory_is(values: np.ndarray) -> None:
    array = Array.of(values)
    assert array.dtype == "<i4"
    assert array.data == b"".join(int(value).to_bytes(4, "little") for value in values)


HOSTILE: list[tuple[Array, tuple[int | None, ...]]] = [
    (Array("<i8", (2,), bytes(8)), (2,)),  # bytes do not fill the shape
    (Array("<i8", (1,), bytes(16)), (1,)),
    (Array("<i8", (3,), bytes(24)), (2,)),  # another shape
    (Array("<i8", (2, 1), bytes(16)), (2,)),
    (Array("<i8", (), bytes(8)), (1,)),
    (Array("<i8", (-1,), b""), (None,)),
    (Array("<i8", (-1, -1), bytes(8)), (None, None)),
    (Array("<f8", (1,), bytes(8)), (1,)),  # another dtype
    (Array(">i8", (1,), bytes(8)), (1,)),
    (Array("|O", (1,), bytes(8)), (1,)),
    (Array("", (1,), bytes(8)), (1,)),
    (Array("<i8", (2**63, 0), b""), (None, None)),  # axes that numpy cannot hold
    (Array("<i8", (0, 2**31, 2**31, 2**31), b""), (None,) * 4),
    (Array("<i8", (2**62,), b""), (None,)),
]


@pytest.mark.parametrize(("array", "shape"), HOSTILE)
def test_arrays_that_are_not_what_was_expected_are_a_protocol_error(
    array: Array, shape: tuple[int | None, ...]
) -> None:
    with pytest.raises(ProtocolError, match="Expected an array"):
        array.numpy("int64", shape)


def test_none_lets_an_axis_be_any_length() -> None:
    array = Array.of(np.zeros((3, 2)))
    assert array.numpy("float64", (None, 2)).shape == (3, 2)
    with pytest.raises(ProtocolError):
        array.numpy("float64", (None, 3))


VALID = encode(Body("x", Array.of(np.arange(3))))

MALFORMED = [
    b"",
    b"\xc1",
    VALID[:-1],
    VALID + b"\0",
    msgspec.msgpack.encode({"name": "x"}),
    msgspec.msgpack.encode({"name": 1, "values": ["<i8", [0], b""]}),
    msgspec.msgpack.encode({"name": "x", "values": ["<i8", [0], b"", 1]}),
    msgspec.msgpack.encode({"name": "x", "values": ["<i8", [0.5], b""]}),
    msgspec.msgpack.encode({"name": "x", "values": ["<i8", [0], b""], "more": 1}),
    msgspec.msgpack.encode([1, 2, 3]),
    msgspec.msgpack.encode(None),
    b"\x82\xa4name\xa1\xff\xa6values\x93\xa3<i8\x90\xc4\x00",  # a name that is no UTF-8
    b"\x91" * 5000,  # nested too deep
    b"\xdd\xff\xff\xff\xff",  # four billion elements, announced and not there
    b"\xc6\xff\xff\xff\xff",
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_body_is_a_protocol_error_that_names_no_content(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="^Expected a well-formed Body$") as caught:
        decode(body, Body, max_bytes=10_000)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_random_bytes_are_a_body_or_a_protocol_error(body: bytes) -> None:
    try:
        decode(body, Body, max_bytes=200)
    except ProtocolError:
        return


@given(st.data())
@settings(deadline=None)
def test_one_changed_byte_gives_a_body_or_a_protocol_error(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(VALID) - 1))
    changed = VALID[:at] + data.draw(st.binary(min_size=1, max_size=1)) + VALID[at + 1 :]
    try:
        decode(changed, Body, max_bytes=200).values.numpy("int64", (3,))
    except ProtocolError:
        return


def test_the_size_is_checked_before_the_content() -> None:
    assert decode(VALID, Body, max_bytes=len(VALID)).name == "x"
    with pytest.raises(ProtocolError, match=f"at most {len(VALID) - 1} bytes, got {len(VALID)}"):
        decode(VALID, Body, max_bytes=len(VALID) - 1)
    with pytest.raises(ProtocolError, match="at most 10 bytes"):
        decode(b"\xc1" * 11, Body, max_bytes=10)


def test_a_message_shows_its_size_and_not_its_body() -> None:
    assert repr(Message("a", "b", "t", b"secret")) == "Message('a' -> 'b', 't', 6 bytes)"


# --- store ------------------------------------------------------------------------------------------------------------


def test_a_memory_store_writes_reads_and_deletes() -> None:
    store = MemoryStore()
    store.commit({"a": b"1", "b": b""})
    assert (store.get("a"), store.get("b"), store.get("c")) == (b"1", b"", None)
    store.commit({"a": None, "never": None, "b": b"2"})
    assert (store.get("a"), store.get("b")) == (None, b"2")


# --- inbox ------------------------------------------------------------------------------------------------------------


def letter(src: str, tag: str = "t", body: bytes = b"") -> Message:
    return Message(src, "me", tag, body)


def waiting(step: Step, *messages: Message) -> Inbox:
    inbox = Inbox()
    inbox.await_step(step)
    for message in messages:
        inbox.put(message)
    return inbox


ALL = Step(await_tag="t", wait_for=("a", "b"))
SOME = Step(await_tag="t", wait_for=("a", "b", "c"), at_least=2)
EACH = Step(await_tag="t", wait_for=("a", "b"), each=True)


def test_a_step_that_waits_for_nobody_is_ready() -> None:
    assert waiting(Step()).ready(Step()) == {}


def test_a_step_waits_for_all_in_its_own_order() -> None:
    inbox = waiting(ALL, letter("b"))
    assert inbox.ready(ALL) is None
    inbox.put(letter("a"))
    ready = inbox.ready(ALL)
    assert ready is not None
    assert list(ready) == ["a", "b"]
    assert inbox.ready(ALL) is None  # taken


def test_at_least_still_waits_for_all_until_the_deadline() -> None:
    inbox = waiting(SOME, letter("a"), letter("c"))
    assert inbox.ready(SOME) is None
    assert list(inbox.close(SOME)) == ["a", "c"]


@pytest.mark.parametrize(("step", "needed"), [(SOME, 2), (ALL, 2)])
def test_too_few_at_the_deadline_is_an_abort(step: Step, needed: int) -> None:
    with pytest.raises(Aborted, match=f"Expected {needed} messages tagged 't', got 1 before the deadline"):
        waiting(step, letter("a")).close(step)


def test_each_gives_one_at_a_time_and_nothing_at_the_deadline() -> None:
    inbox = waiting(EACH, letter("b"), letter("a"))
    assert inbox.ready(EACH) == {"a": letter("a")}
    assert inbox.ready(EACH) == {"b": letter("b")}
    assert inbox.ready(EACH) is None
    assert inbox.close(EACH) == {}


def test_messages_of_others_and_of_other_tags_do_not_count() -> None:
    inbox = waiting(ALL, letter("a"), letter("stranger"), letter("b", "later"))
    assert inbox.ready(ALL) is None


def test_early_messages_are_kept_for_their_stage() -> None:
    inbox = waiting(ALL, letter("a", "later"), letter("a"), letter("b"))
    assert inbox.ready(ALL) is not None
    later = Step(await_tag="later", wait_for=("a",))
    inbox.await_step(later)
    assert inbox.ready(later) == {"a": letter("a", "later")}


def test_an_identical_repeat_is_ignored_and_a_different_one_refused() -> None:
    inbox = waiting(ALL, letter("a", body=b"1"))
    inbox.put(letter("a", body=b"1"))
    with pytest.raises(ProtocolError, match="a sent two different messages tagged 't'"):
        inbox.put(letter("a", body=b"2"))
    inbox.put(letter("b"))
    ready = inbox.ready(ALL)
    assert ready is not None
    assert ready["a"].body == b"1"
    inbox.put(letter("a", body=b"1"))  # also after it was taken
    assert inbox.ready(ALL) is None


@pytest.mark.parametrize("following", [Step(), Step(await_tag="u", wait_for=("a",))])
def test_a_message_for_a_closed_stage_is_refused(following: Step) -> None:
    inbox = waiting(ALL, letter("a"))
    inbox.await_step(following)
    with pytest.raises(ProtocolError, match="b sent 't' after that stage had closed"):
        inbox.put(letter("b"))
    inbox.put(letter("a"))  # what was in time may still be repeated


def test_waiting_on_for_the_same_tag_keeps_the_stage_open() -> None:
    inbox = waiting(EACH, letter("a"))
    inbox.await_step(Step(await_tag="t", wait_for=("b",), each=True))
    inbox.put(letter("b"))


# --- the driver -------------------------------------------------------------------------------------------------------


def sender(me: str, *bodies: bytes, to: str = "hub", tag: str = "t") -> Party:
    for number, body in enumerate(bodies):
        yield Step(send=(Message(me, to, tag if len(bodies) == 1 else f"{tag}{number}", body),))
    return me


def hub(*sources: str, at_least: int | None = None, tag: str = "t") -> Party:
    received = yield Step(await_tag=tag, wait_for=sources, at_least=at_least)
    return {src: message.body for src, message in received.items()}


def tallying(*sources: str) -> Party:
    """Collect one by one, in the order of arrival."""
    order: list[str] = []
    left = list(sources)
    while left:
        received = yield Step(await_tag="t", wait_for=tuple(left), each=True)
        if not received:
            break
        order += received
        left = [name for name in left if name not in received]
    return order


def three(gather: Party, fault: Fault | None = None) -> Transcript:
    return run({"hub": gather, **{name: sender(name, name.encode()) for name in "abc"}}, fault=fault)


def test_outputs_are_what_the_parties_return() -> None:
    done = three(hub("a", "b", "c"))
    assert done.outputs == {"hub": {"a": b"a", "b": b"b", "c": b"c"}, "a": "a", "b": "b", "c": "c"}
    assert done.failures == {}


def test_a_run_is_the_same_every_time() -> None:
    def events() -> list[tuple[str, str, tuple[int, ...], tuple[int, ...]]]:
        done = three(tallying("a", "b", "c"), delay(2, src="a"))
        return [(event.party, event.tag, event.consumed, event.sent) for event in done.events]

    assert events() == events()


def test_the_deadline_closes_a_stage_that_may_close_early() -> None:
    assert three(hub("a", "b", "c", at_least=2), drop(src="b")).output("hub") == {"a": b"a", "c": b"c"}
    assert three(tallying("a", "b", "c"), drop(src="b")).output("hub") == ["a", "c"]


@pytest.mark.parametrize("at_least", [3, None])
def test_a_stage_that_may_not_close_aborts_its_party_and_no_other(at_least: int | None) -> None:
    done = three(hub("a", "b", "c", at_least=at_least), drop(src="b"))
    with pytest.raises(Aborted):
        done.output("hub")
    assert set(done.outputs) == {"a", "b", "c"}


def test_a_party_may_answer_an_abort() -> None:
    def careful() -> Party:
        try:
            yield Step(await_tag="t", wait_for=("nobody",))
        except Aborted as error:
            return str(error)

    assert run({"me": careful()}).output("me") == "me waited for 't' in vain: the others have ended"


def test_a_protocol_error_ends_its_party_and_any_other_error_is_a_bug() -> None:
    def failing(error: Exception) -> Party:
        yield Step()
        raise error

    done = run({"me": failing(ProtocolError("no")), "a": sender("a", b"")})
    assert str(done.failures["me"]) == "no"
    assert done.output("a") == "a"
    with pytest.raises(ProtocolError, match="no"):
        done.output("me")
    with pytest.raises(ZeroDivisionError):
        run({"me": failing(ZeroDivisionError())})


def test_nobody_sends_in_another_s_name() -> None:
    def forger() -> Party:
        yield Step(send=(Message("a", "hub", "t", b""),))

    with pytest.raises(ProtocolError, match="forger tried to send as a"):
        run({"forger": forger(), "hub": hub("a")})


def test_what_is_saved_is_committed_before_the_message_leaves() -> None:
    store, seen = MemoryStore(), []

    def saving() -> Party:
        yield Step(send=(Message("me", "hub", "t", b""),), save={"key": b"value"})

    def watch(message: Message) -> list[tuple[int, Message]]:
        seen.append(store.get("key"))
        return [(0, message)]

    run({"me": saving(), "hub": hub("me")}, stores={"me": store}, fault=watch)
    assert seen == [b"value"]


def test_without_a_store_saving_is_forgotten() -> None:
    def saving() -> Party:
        yield Step(save={"key": b"value"})
        return "done"

    assert run({"me": saving()}).output("me") == "done"


def test_bodies_can_be_dropped_and_sizes_stay() -> None:
    parties = {"hub": hub("a"), "a": sender("a", b"12345")}
    done = run(parties, keep_bodies=False)
    assert [message.body for message in done.messages] == [b""]
    assert done.sizes == [5]
    assert done.output("hub") == {"a": b"12345"}


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "received"),
    [
        (drop(), {}),
        (drop(src="a"), {"b": b"b", "c": b"c"}),
        (drop(dst="nobody"), {"a": b"a", "b": b"b", "c": b"c"}),
        (drop(tag="t", src="c"), {"a": b"a", "b": b"b"}),
        (lose("a", tag="t"), {"b": b"b", "c": b"c"}),
        (lose("a", tag="other"), {"a": b"a", "b": b"b", "c": b"c"}),
        (repeat(), {"a": b"a", "b": b"b", "c": b"c"}),
        (truncate(0, src="b"), {"a": b"a", "b": b"", "c": b"c"}),
        (alter(lambda body: body + b"!", dst="hub"), {"a": b"a!", "b": b"b!", "c": b"c!"}),
        (delay(5, src="a"), {"a": b"a", "b": b"b", "c": b"c"}),
        (delay(2 * LATE_TICKS, src="a"), {"b": b"b", "c": b"c"}),
    ],
)
def test_faults_do_what_they_say(fault: Fault, received: Mapping[str, bytes]) -> None:
    assert three(hub("a", "b", "c", at_least=0), fault).output("hub") == received


def test_delay_reorders_arrivals() -> None:
    assert three(tallying("a", "b", "c"), delay(1, src="a")).output("hub") == ["b", "c", "a"]
    assert three(tallying("a", "b", "c"), delay(2 * LATE_TICKS, src="a")).output("hub") == ["b", "c"]


def test_a_late_message_of_a_closed_stage_is_rejected_and_the_next_stage_goes_on() -> None:
    def two_stages() -> Party:
        first = yield Step(await_tag="t0", wait_for=("a", "b"), at_least=1)
        second = yield Step(await_tag="t1", wait_for=("a", "b"))
        return set(first), set(second)

    def slow(message: Message) -> list[tuple[int, Message]]:
        late = {("a", "t0"): 2 * LATE_TICKS, ("b", "t1"): 4 * LATE_TICKS}
        return [(late.get((message.src, message.tag), 0), message)]

    parties = {"hub": two_stages(), "a": sender("a", b"1", b"2"), "b": sender("b", b"1", b"2")}
    done = run(parties, fault=slow)
    assert done.output("hub") == ({"b"}, {"a", "b"})
    assert [(m.src, m.tag, reason) for m, reason in done.rejected] == [
        ("a", "t0", "a sent 't0' after that stage had closed")
    ]


def test_a_stage_that_may_not_close_waits_for_a_late_message() -> None:
    assert three(hub("a", "b", "c"), delay(10 * LATE_TICKS, src="a")).output("hub") == {"a": b"a", "b": b"b", "c": b"c"}


@given(st.lists(st.integers(0, 7), min_size=24, max_size=24))
@settings(deadline=None)
def test_any_delays_deliver_everything_once(delays: list[int]) -> None:
    """Many messages due at one tick, some sent earlier than others: nothing is lost, compared or repeated."""
    ticks = iter(delays)

    def collecting() -> Party:
        bodies: list[bytes] = []
        for number in range(8):
            received = yield Step(await_tag=f"t{number}", wait_for=("a", "b", "c"))
            bodies += [message.body for message in received.values()]
        return bodies

    senders = {name: sender(name, *(f"{name}{n}".encode() for n in range(8))) for name in "abc"}
    done = run({**senders, "hub": collecting()}, fault=lambda message: [(next(ticks), message)])
    assert done.output("hub") == [f"{name}{number}".encode() for number in range(8) for name in "abc"]


def test_a_second_different_message_and_one_to_somebody_gone_are_rejected() -> None:
    first, second = (Message("a", "hub", "t", body) for body in (b"1", b"2"))
    done = run(
        {"hub": hub("a", "b"), "a": sender("a", b"1"), "b": sender("b", b"")},
        fault=lambda m: [(0, m), (0, second)] if m == first else [(0, m)],
    )
    assert done.output("hub")["a"] == b"1"
    assert done.rejected == [(second, "a sent two different messages tagged 't'")]
    gone = run({"a": sender("a", b"1"), "hub": sender("hub"), "other": hub("nobody")})
    assert gone.rejected == [(first, "hub has ended")]


# --- the transcript ---------------------------------------------------------------------------------------------------


def ping_pong(rounds: int) -> Transcript:
    def left() -> Party:
        for number in range(rounds):
            yield Step(send=(Message("l", "r", f"{number}", b"12"),), await_tag=f"{number}", wait_for=("r",))

    def right() -> Party:
        for number in range(rounds):
            yield Step(await_tag=f"{number}", wait_for=("l",))
            yield Step(send=(Message("r", "l", f"{number}", b"345"),))

    return run({"l": left(), "r": right()})


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_depth_counts_one_way_trips(rounds: int) -> None:
    done = ping_pong(rounds)
    assert done.depth == 2 * rounds
    assert done.bytes_sent("l") == done.bytes_received("r") == 2 * rounds
    assert done.bytes_sent("r") == done.bytes_received("l") == 3 * rounds
    assert [message.src for message in done.view("l")] == ["r"] * rounds


def test_messages_that_do_not_depend_on_each_other_add_no_depth() -> None:
    assert three(hub("a", "b", "c")).depth == 1
    assert run({"a": sender("a", b"", b"", b"")}).depth == 1


def hand_made() -> Transcript:
    """a works 1 s, sends 1000 and 500 bytes; b works 4 s at once, then 2 s on the first, answers 250 bytes; c idles.

    At 8000 bits per second and 0.1 s latency:
        a    0 to 1 works; uplink busy 1 to 2 (first), 2 to 2.5 (second); they arrive at 2.1 and 2.6
        b    0 to 4 works, has the first since 2.1, works 4 to 6; uplink 6 to 6.25; arrives at 6.35
        c    has the second at 2.6, works 0.5 to 3.1
        a    works 6.35 to 6.6
    """
    done = Transcript()
    for src, dst, size in (("a", "b", 1000), ("a", "c", 500), ("b", "a", 250)):
        done.add(Message(src, dst, "t", bytes(size)))
    done.events = [
        Event("a", "", 1.0, (), (0, 1)),
        Event("b", "", 4.0, (), ()),
        Event("c", "", 0.0, (), ()),
        Event("b", "t", 2.0, (0,), (2,)),
        Event("c", "t", 0.5, (1,), ()),
        Event("a", "t", 0.25, (2,), ()),
    ]
    return done


def test_cost_is_the_timeline_worked_out_by_hand() -> None:
    done = hand_made()
    assert done.cost(latency_seconds=0.1, bandwidth_bps=8000) == pytest.approx(6.6)
    assert done.cost(latency_seconds=0.0, bandwidth_bps=1e15) == pytest.approx(6.25)
    # with 10 s latency: the first at 12, b to 14, on the wire to 14.25, at a 24.25, done 24.5
    assert done.cost(latency_seconds=10.0, bandwidth_bps=8000) == pytest.approx(24.5)
    # with 80 bit/s: the uplink of a is busy to 101 and 151; b to 103, on the wire to 128; c is last: 151.1 to 151.6
    assert done.cost(latency_seconds=0.1, bandwidth_bps=80) == pytest.approx(151.6)
    assert Transcript().cost(latency_seconds=1, bandwidth_bps=1) == 0


def test_cost_counts_a_message_that_nobody_consumes() -> None:
    done = Transcript()
    done.add(Message("a", "b", "t", bytes(1000)))
    done.events = [Event("a", "", 1.0, (), (0,))]
    assert done.cost(latency_seconds=0.5, bandwidth_bps=8000) == pytest.approx(2.5)


def test_seconds_and_depth_of_the_hand_made_one() -> None:
    done = hand_made()
    assert (done.seconds("a"), done.seconds("b"), done.seconds("c")) == (1.25, 6.0, 0.5)
    assert done.depth == 2


def test_merging_adds_everything_up() -> None:
    first, second = hand_made(), hand_made()
    first.outputs, second.outputs = {"a": 1, "b": 1}, {"a": 2}
    first.failures = {"c": Aborted("first")}
    both = first.merge(second)
    assert both.outputs == {"a": 2, "b": 1}
    assert set(both.failures) == {"c"}
    assert both.bytes_sent("a") == 3000
    assert both.seconds("b") == 12
    assert both.events[-1].consumed == (5,)
    assert both.depth == 4
    # b works twice 6 s without a pause, then a has its last quarter of a second
    assert both.cost(latency_seconds=0.0, bandwidth_bps=1e15) == pytest.approx(12.25)


def test_a_later_output_outlives_an_earlier_failure_and_the_other_way_round() -> None:
    failed, fine = Transcript(failures={"a": Aborted("lost")}), Transcript(outputs={"a": 1})
    assert failed.merge(fine).output("a") == 1
    with pytest.raises(Aborted, match="lost"):
        fine.merge(failed).output("a")


def test_real_work_is_measured_where_it_is_done() -> None:
    done = three(hub("a", "b", "c"))
    assert all(event.seconds >= 0 for event in done.events)
    assert done.seconds("hub") == sum(event.seconds for event in done.events if event.party == "hub")
    assert done.seconds("nobody") == 0


def test_events_name_the_tag_that_they_answer() -> None:
    done = ping_pong(1)
    assert [(event.party, event.tag) for event in done.events] == [
        ("l", ""),
        ("r", ""),
        ("r", "0"),
        ("r", ""),
        ("l", "0"),
    ]
