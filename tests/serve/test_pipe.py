"""What goes between a server and its workers: whole messages, in time or not at all."""

import asyncio
import os
import socket
import threading
import time

import msgspec
import pytest

from confide.serve.pipe import Pipe
from confide.serve.worker import Done, Job, _serve


@pytest.fixture
def ends():
    one, two = map(Pipe, socket.socketpair())
    yield one, two
    one.close()
    two.close()


@pytest.mark.parametrize("sizes", [(0, 0), (1, 0), (0, 1), (300, 100_000), (100_000, 3 << 20)])
def test_messages_of_any_size_arrive_whole_and_in_order(ends, sizes):
    here, there = ends
    head, body = (os.urandom(size) for size in sizes)
    sender = threading.Thread(target=lambda: [here.send(head, body), here.send(b"next")])
    sender.start()
    assert there.recv() == (head, body)
    sender.join()
    assert there.recv(deadline=time.monotonic() + 5) == (b"next", b"")


@pytest.mark.parametrize("sizes", [(0, 0), (1, 0), (300, 100_000), (10, 3 << 20)])
def test_an_exchange_on_an_event_loop_is_the_same(ends, sizes):
    here, there = ends
    head, body = (os.urandom(size) for size in sizes)

    def echo() -> None:
        for _ in range(2):
            there.send(*there.recv())
        there.send(b"third", b"unasked")

    echoing = threading.Thread(target=echo)
    echoing.start()

    async def twice():
        return [await here.exchange(head, body), await here.exchange(b"second", b"")]

    assert asyncio.run(twice()) == [(head, body), (b"second", b"")]
    echoing.join()
    assert here.recv() == (b"third", b"unasked")


def test_an_exchange_ends_with_the_other_end_and_can_be_given_up(ends):
    here, there = ends

    async def late():
        async with asyncio.timeout(0.05):
            await here.exchange(b"", bytes(8 << 20))

    with pytest.raises(TimeoutError):
        asyncio.run(late())
    there.close()
    with pytest.raises((EOFError, OSError)):
        asyncio.run(here.exchange(b"", b""))


def test_a_message_is_waited_for_until_the_deadline(ends):
    here, there = ends
    with pytest.raises(TimeoutError):
        here.recv(deadline=time.monotonic() + 0.05)
    with pytest.raises(TimeoutError):
        here.recv(deadline=time.monotonic() - 1)
    there.send(b"late")
    assert here.recv() == (b"late", b"")


def test_what_nobody_takes_is_sent_until_the_deadline(ends):
    with pytest.raises(TimeoutError):
        ends[0].send(b"", bytes(8 << 20), deadline=time.monotonic() + 0.05)


def test_an_end_that_has_gone_is_the_end(ends):
    here, there = ends
    there.close()
    assert here.poll()
    with pytest.raises(EOFError):
        here.recv()
    with pytest.raises(OSError, match="pipe"):
        here.send(b"x", bytes(1 << 20))


def test_half_a_message_is_the_end_too():
    one, two = socket.socketpair()
    with one:
        one.sendall(b"\x05\0\0\0\x05\0\0\0\0\0\0\0abc")
    with pytest.raises(EOFError):
        Pipe(two).recv()
    two.close()


class Busy:
    """A worker's work that has pieces to prepare, and tells in which order things happen."""

    def __init__(self, pieces: int) -> None:
        self.order: list[str] = []
        self.left = pieces
        self.served: dict = {}

    def prepare_ahead(self) -> bool:
        if not self.left:
            return False
        self.left -= 1
        self.order.append("prepare")
        time.sleep(0.01)
        return True

    def figures(self):
        from confide.serve.work import Figures

        return Figures(0, 0, 0, 0, 0)


def test_a_worker_prepares_while_nobody_asks_and_answers_at_once(ends):
    here, there = ends
    work = Busy(1000)

    def serve() -> None:
        with pytest.raises(EOFError):
            _serve(work, there)

    thread = threading.Thread(target=serve)
    thread.start()
    job = msgspec.msgpack.encode(Job(kind="infer", model="m", backend="b", caller=""))
    for _ in range(3):
        time.sleep(0.05)
        here.send(job)
        head, _ = here.recv(deadline=time.monotonic() + 5)
        assert msgspec.msgpack.decode(head, type=Done).refused is not None  # there is no such model
        work.order.append("answer")
    work.left = 0
    here.close()
    thread.join(5)
    assert work.order[0] == "prepare"
    assert "prepare" in work.order[work.order.index("answer") + 1 :]  # and it goes on after an answer
    assert work.left == 0
