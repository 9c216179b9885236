"""Frames over a Unix socket: whole, bounded, and one bad caller hurts no other."""

from __future__ import annotations

import contextlib
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from confide.errors import UsageError
from confide.net.local import Frame, Gone, Listener, pack


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    one = Listener(tmp_path / "it.sock", max_bytes=1 << 20, most_callers=3)
    yield one
    one.close()


@pytest.fixture
def call(tmp_path: Path, listener: Listener) -> Iterator[object]:
    with contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(10)
            sock.connect(str(tmp_path / "it.sock"))
            return sock

        yield connect


def happens(listener: Listener, count: int) -> list[Frame | Gone]:
    have: list[Frame | Gone] = []
    for _ in range(200):
        have += listener.poll(0.05)
        if len(have) >= count:
            break
    return have


def test_frames_arrive_whole_whatever_pieces_they_come_in(listener, call):
    sock = call()
    stream = pack(b"{}", b"first") + pack(b"", b"") + pack(b'{"a":1}', bytes(3000))
    have: list[Frame | Gone] = []
    for start in range(0, len(stream), 700):
        sock.sendall(stream[start : start + 700])
        have += listener.poll(0)
    have += happens(listener, 3 - len(have)) if len(have) < 3 else []
    assert [(frame.header, frame.body) for frame in have] == [
        (b"{}", b"first"),
        (b"", b""),
        (b'{"a":1}', bytes(3000)),
    ]


def test_an_answer_larger_than_any_buffer_gets_through(listener, call):
    sock = call()
    sock.sendall(pack(b"", b"question"))
    (frame,) = happens(listener, 1)
    body = bytes(range(256)) * 40_000
    listener.send(frame.caller, b"{}", body)
    sock.setblocking(False)
    have = bytearray()
    for _ in range(100_000):
        list(listener.poll(0))
        with contextlib.suppress(BlockingIOError):
            have += sock.recv(1 << 20)
        if len(have) == len(pack(b"{}", body)):
            break
    assert bytes(have) == pack(b"{}", body)


def test_one_that_does_not_read_and_one_that_does_not_finish_delay_nobody(listener, call):
    deaf, slow, good = call(), call(), call()
    deaf.sendall(pack(b"", b"deaf"))
    (frame,) = happens(listener, 1)
    listener.send(frame.caller, b"", bytes(1 << 20))
    slow.sendall(pack(b"", bytes(100))[:-1])
    good.sendall(pack(b"", b"good"))
    assert [frame.body for frame in happens(listener, 1)] == [b"good"]


@pytest.mark.parametrize("start", [pack(b"", bytes((1 << 20) + 1))[:64], b"\xff" * 64])
def test_a_caller_that_announces_too_much_is_hung_up_on(listener, call, start):
    sock = call()
    sock.sendall(start)
    assert [type(event) for event in happens(listener, 1)] == [Gone]
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""


def test_the_one_who_waited_longest_makes_room(listener, call):
    first = call()
    first.sendall(pack(b"", b"first"))
    (frame,) = happens(listener, 1)
    others = [call() for _ in range(3)]
    assert happens(listener, 1) == [Gone(frame.caller)]
    for sock in others:
        sock.sendall(pack(b"", b"still here"))
    assert [event.body for event in happens(listener, 3)] == [b"still here"] * 3


def test_who_hangs_up_is_gone_and_can_be_sent_to_in_vain(listener, call):
    sock = call()
    sock.sendall(pack(b"", b""))
    (frame,) = happens(listener, 1)
    sock.close()
    assert happens(listener, 1) == [Gone(frame.caller)]
    listener.send(frame.caller, b"", b"late")
    listener.hang_up(frame.caller)


def test_what_is_queued_leaves_before_the_end(tmp_path):
    one = Listener(tmp_path / "end.sock", max_bytes=100)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(tmp_path / "end.sock"))
        sock.sendall(pack(b"", b""))
        (frame,) = happens(one, 1)
        one.send(frame.caller, b"", b"last words")
        one.close()
        assert sock.recv(100) == pack(b"", b"last words")
        assert sock.recv(1) == b""
    assert not (tmp_path / "end.sock").exists()


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_mode_is_the_one_asked_for(tmp_path, mode):
    one = Listener(tmp_path / "it.sock", mode=mode, max_bytes=1)
    assert stat.S_IMODE((tmp_path / "it.sock").stat().st_mode) == mode
    one.close()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path):
    path = tmp_path / "it.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    one = Listener(path, max_bytes=1)
    with pytest.raises(UsageError, match="another process listens"):
        Listener(path, max_bytes=1)
    one.close()


def test_what_cannot_be_listened_on_is_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UsageError, match="a socket or absent"):
        Listener(tmp_path / "file", max_bytes=1)
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(UsageError, match="folder"):
        Listener(tmp_path / "absent" / "it.sock", max_bytes=1)
    with pytest.raises(UsageError, match="107 bytes"):
        Listener(tmp_path / ("x" * 108), max_bytes=1)
