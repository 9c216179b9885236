"""Frames: what goes in comes out, sessions take turns, and nothing is kept that a limit forbids."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ProtocolError, UsageError
from confide.net.exchange import Envelope
from confide.net.frames import FRAME_BYTES, LARGEST_FRAME_BYTES, UNFINISHED, Assembly, Outbox, check_envelope
from confide.net.limits import Account, Limits
from confide.wire import Message

LIMITS = Limits(message_bytes=6 * FRAME_BYTES)


def envelope(session: str, body: bytes, tag: str = "t") -> Envelope:
    return Envelope(session, Message("a", "server", tag, body))


def frames(outbox: Outbox) -> list[bytes]:
    found = []
    while (frame := outbox.take()) is not None:
        found.append(frame)
    return found


def first(
    size: int, data: bytes, *, stream: object = 1, session: object = "s", src: object = "a", kind: object = 0
) -> bytes:
    """Return a frame that need not be an honest one, by the layout that the module's docstring gives."""
    return msgspec.msgpack.encode([kind, stream, session, src, "server", "t", size, data])


def following(data: bytes, *, stream: int = 1) -> bytes:
    return msgspec.msgpack.encode([1, stream, data])


FULL = bytes(FRAME_BYTES)
sizes = st.one_of(
    st.integers(0, 40),
    st.sampled_from([FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES, 5 * FRAME_BYTES + 3]),
)


@given(st.lists(st.tuples(st.sampled_from("xyz"), sizes), max_size=8))
@settings(max_examples=40, deadline=None)
def test_every_message_comes_out_whole_and_each_session_in_order(wanted: list[tuple[str, int]]) -> None:
    outbox, assembly = Outbox(LIMITS), Assembly(LIMITS)
    put = [envelope(session, bytes([n]) * size, str(n)) for n, (session, size) in enumerate(wanted)]
    for one in put:
        outbox.put(one)
    came = []
    for frame in frames(outbox):
        assert len(frame) <= LARGEST_FRAME_BYTES
        if (whole := assembly.put(frame)) is not None:
            came.append(whole)
    for session in "xyz":
        assert [one for one in came if one.session == session] == [one for one in put if one.session == session]
    assert len(came) == len(put)
    assert outbox.bytes == assembly.bytes == 0


def test_a_small_message_does_not_wait_for_a_large_one_of_another_session() -> None:
    outbox, assembly = Outbox(LIMITS), Assembly(LIMITS)
    outbox.put(envelope("large", 5 * FULL))
    outbox.put(envelope("small", b"hello"))
    order = [whole.session for frame in frames(outbox) if (whole := assembly.put(frame))]
    assert order == ["small", "large"]


def test_two_large_ones_take_turns() -> None:
    outbox = Outbox(LIMITS)
    outbox.put(envelope("x", 3 * FULL))
    outbox.put(envelope("y", 3 * FULL))
    streams = [msgspec.msgpack.decode(frame)[1] for frame in frames(outbox)]
    assert streams == [1, 2, 1, 2, 1, 2]


def test_no_more_begin_than_the_other_side_allows() -> None:
    many = Limits(message_bytes=1 << 30)
    for limits, size in ((many, 2 * FRAME_BYTES), (LIMITS, 4 * FRAME_BYTES)):
        outbox, assembly = Outbox(limits), Assembly(limits)
        for number in range(UNFINISHED + 4):
            outbox.put(envelope(str(number), bytes(size)))
        assert sum(assembly.put(frame) is not None for frame in frames(outbox)) == UNFINISHED + 4


@pytest.mark.parametrize(
    "sent",
    [
        [b""],
        [b"\xc1"],
        [b"\x91" * 100_000],
        [msgspec.msgpack.encode({"a": 1})],
        [msgspec.msgpack.encode([0, 1])],
        [first(3, b"abc", kind=2)],
        [first(3, b"abc", kind="first")],
        [first(3, b"abc", stream=-1)],
        [first(3, b"abc", stream=1.5)],
        [first(3, b"abc", session=b"\xff\xfe")],
        [first(3, b"abc", session="s" * 257)],
        [first(3, b"abc", src="a" * 65)],
        [msgspec.msgpack.encode([0, 1, "s", "a", "server", "t", 3, b"abc", "more"])],
        [first(3, b"abc") + b"\x00"],
        [first(2, b"abc")],
        [first(4, b"abc")],
        [first(-1, b"")],
        [first(2 * FRAME_BYTES, b"half")],
        [first(2 * FRAME_BYTES, FULL + b"x")],
        [following(FULL)],
        [first(2 * FRAME_BYTES, FULL), following(FULL, stream=2)],
        [first(2 * FRAME_BYTES, FULL), following(b"short")],
        [first(FRAME_BYTES + 3, FULL), following(b"long")],
        [first(FRAME_BYTES + 3, FULL), following(b"")],
        [first(FRAME_BYTES + 3, FULL), following(b"end"), following(b"end")],
        [first(2 * FRAME_BYTES, FULL), first(2 * FRAME_BYTES, FULL)],
        [first(LIMITS.message_bytes + 1, FULL)],
        [first(1 << 52, FULL)],
        [first(1 << 63, FULL)],
        [first(4 * FRAME_BYTES, FULL), first(3 * FRAME_BYTES, FULL, stream=2)],
    ],
)
def test_what_no_honest_peer_sends_is_refused_and_not_kept(sent: list[bytes]) -> None:
    assembly = Assembly(LIMITS)
    for frame in sent[:-1]:
        assembly.put(frame)
    before = assembly.bytes
    with pytest.raises(ProtocolError, match="Expected") as raised:
        assembly.put(sent[-1])
    assert assembly.bytes == before
    assert "abc" not in str(raised.value)


def test_the_frames_of_these_tests_are_those_of_the_module() -> None:
    """Or else each of them would be refused for its form alone."""
    assembly = Assembly(LIMITS)
    assert assembly.put(first(3, b"abc")) == envelope("s", b"abc")
    assert assembly.put(first(FRAME_BYTES + 3, FULL)) is None
    assert assembly.put(following(b"end")) == envelope("s", FULL + b"end")


def test_too_many_unfinished_messages() -> None:
    assembly = Assembly(Limits())
    for stream in range(UNFINISHED):
        assembly.put(first(2 * FRAME_BYTES, FULL, stream=stream))
    with pytest.raises(ProtocolError):
        assembly.put(first(2 * FRAME_BYTES, FULL, stream=UNFINISHED))


def test_what_was_announced_is_not_allocated() -> None:
    assembly = Assembly(Limits())
    assembly.put(first(Limits().message_bytes, FULL))
    assert assembly.bytes == FRAME_BYTES


@pytest.mark.parametrize(
    "wrong",
    [
        Envelope("s" * 257, Message("a", "b", "t", b"")),
        Envelope("s", Message("a" * 65, "b", "t", b"")),
        Envelope("s", Message("a", "b" * 65, "t", b"")),
        Envelope("s", Message("a", "b", "t" * 257, b"")),
        Envelope("s", Message("a", "b", "t", bytes(LIMITS.message_bytes + 1))),
    ],
)
def test_what_the_other_side_would_refuse_is_refused_before_it_leaves(wrong: Envelope) -> None:
    with pytest.raises(UsageError):
        check_envelope(wrong, LIMITS)
    outbox, assembly = Outbox(Limits()), Assembly(LIMITS)
    outbox.put(wrong)
    with pytest.raises(ProtocolError):
        [assembly.put(frame) for frame in frames(outbox)]


def test_a_bucket_fills_again_and_not_beyond_its_burst() -> None:
    account = Account(Limits(frames_per_second=10, frames_burst=5), now=100.0)
    assert [account.frames.take(1, 100.0) for _ in range(6)] == [4, 3, 2, 1, 0, -1]
    assert account.frames.take(1, 100.3) == pytest.approx(1.0)
    assert account.frames.take(1, 1000.0) == pytest.approx(4.0)
